//! Real clients fetch boot files from our TFTP and HTTP servers: tftp-hpa, atftp, curl, and
//! firmware (`firmware` module).

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a test that cannot go on fails there"
)]

mod boot_clients {
    pub mod firmware;
    pub mod http;
    pub mod rack;
    pub mod tftp;
    pub mod wire;
}
