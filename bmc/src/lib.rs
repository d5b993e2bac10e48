//! A thin Redfish client: power, power state and one-time boot device of one machine.
//!
//! Owns: how to talk to BMCs that break the standard: login (session, else basic), TLS pinning,
//! entity tags, bounded retries, and the ladders of requests that different BMCs accept. What one
//! vendor needs is data in [`quirks`]; everything else works by looking at what the BMC offers.
//!
//! Invariants:
//! - One request at a time: every call takes `&mut Client`.
//! - Every wait is bounded by [`Timing`]; nothing retries for ever.
//! - A login that the BMC refused is not repeated, because BMCs lock accounts.
//! - Credentials are sent to the configured host only, never over a redirect to another one, and
//!   with a pin never before the certificate was compared.
//! - Passwords are wiped on drop, and neither logs nor errors contain credentials.
//! - The boot mode (UEFI or Legacy) of a machine is never changed.
//!
//! Not here: IPMI, machines, workflows, queues (`provisioner::bmc`). The TLS provider is the
//! binary's choice: it installs one for the process before the first `https` BMC is used.
//!
//! ```no_run
//! # async fn example() -> Result<(), anneal_bmc::Error> {
//! use anneal_bmc::{BootTarget, Client, Credentials, Endpoint, PowerAction, Timing};
//!
//! let endpoint = Endpoint::parse("redfish+https://10.77.1.11", Some("AA:BB:..."))?;
//! let credentials = Credentials::new("root", "secret".to_owned());
//! let mut bmc = Client::new(endpoint, credentials, Timing::default())?;
//! bmc.boot_once(BootTarget::Pxe).await?;
//! bmc.power(PowerAction::Cycle).await?;
//! bmc.logout().await;
//! # Ok(())
//! # }
//! ```

mod auth;
mod boot;
mod client;
mod endpoint;
mod error;
mod http;
mod power;
pub mod quirks;
mod tls;
mod view;

pub use auth::Credentials;
pub use boot::BootTarget;
pub use client::Client;
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use http::Timing;
pub use power::{PowerAction, PowerState};
