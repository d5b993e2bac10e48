//! The image port with real clients: curl, nginx beside it, hostile and slow ones, many at once.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that cannot go on fails there"
)]

mod image_port {
    pub mod curl;
    pub mod faults;
    pub mod many;
    pub mod port;
}
