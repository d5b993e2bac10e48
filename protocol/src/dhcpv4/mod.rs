//! DHCPv4 on the wire: reading what arrived, writing what leaves, nothing in between.
//!
//! Owns: the parser that hostile frames pass through ([`Packet`]), the ordered writer for messages
//! whose bytes must be exact ([`Message`]), and the messages of a client ([`client`]).
//!
//! Invariants: parsing never panics and never reads outside the frame. An option whose content is
//! nonsense does not hide the options after it, because contents are read only when asked for.
//! What [`Message`] writes is well-formed: real firmware drops a whole packet for one option of a
//! wrong length.
//!
//! Not here: sockets, leases, and what to answer.
//!
//! Sources: RFC 2131 and 2132 (message and options), 3396 (long options), 3046, 3527 and 5107
//! (relays), 3004 (user class), 4578 (PXE clients).

pub mod client;
mod message;
mod options;
mod packet;

pub use message::{Message, TooLong};
pub use options::{Options, encapsulated, encapsulated_end, user_classes};
pub use packet::{Malformed, Packet};

/// UDP port of servers and relays.
pub const SERVER_PORT: u16 = 67;
/// UDP port of clients.
pub const CLIENT_PORT: u16 = 68;
/// The flag (in `flags`) of a client that cannot receive unicast before it has an address.
pub const BROADCAST: u16 = 0x8000;
/// Vendor class (option 60) of our own agent, so that the daemon can tell it from an installed
/// system.
pub const AGENT_VENDOR_CLASS: &str = "anneal-agent";

/// Bytes before the options: the fixed header and the magic cookie (RFC 2131 section 2).
pub(crate) const FIXED: usize = 240;
/// Begins the options field (RFC 2131 section 3).
pub(crate) const COOKIE: [u8; 4] = [99, 130, 83, 99];

/// Who a message comes from (`op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// A client.
    Request = 1,
    /// A server.
    Reply = 2,
}

/// DHCP message type (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// A client looks for servers.
    Discover = 1,
    /// A server offers an address.
    Offer = 2,
    /// A client wants this address (selecting, rebooting, renewing or rebinding).
    Request = 3,
    /// A client found the address in use.
    Decline = 4,
    /// A server grants.
    Ack = 5,
    /// A server refuses.
    Nak = 6,
    /// A client is done with its address.
    Release = 7,
    /// A client has an address and wants the rest.
    Inform = 8,
}

impl MessageType {
    /// Reads option 53.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            _ => return None,
        })
    }

    /// The name RFC 2131 gives it, without "DHCP", lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Offer => "offer",
            Self::Request => "request",
            Self::Decline => "decline",
            Self::Ack => "ack",
            Self::Nak => "nak",
            Self::Release => "release",
            Self::Inform => "inform",
        }
    }
}

/// Option codes that we read or write (RFC 2132 unless said otherwise).
pub mod code {
    /// Filler without a length.
    pub const PAD: u8 = 0;
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers.
    pub const ROUTER: u8 = 3;
    /// Name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Broadcast address of the subnet.
    pub const BROADCAST_ADDRESS: u8 = 28;
    /// Address the client asks for.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time, seconds.
    pub const LEASE_TIME: u8 = 51;
    /// The `file` and `sname` fields hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER_ID: u8 = 54;
    /// Options the client wants.
    pub const PARAMETERS: u8 = 55;
    /// Text of a refusal.
    pub const MESSAGE: u8 = 56;
    /// Largest message the client takes.
    pub const MAX_SIZE: u8 = 57;
    /// Renewal time T1, seconds.
    pub const RENEWAL: u8 = 58;
    /// Rebinding time T2, seconds.
    pub const REBINDING: u8 = 59;
    /// Vendor class.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// TFTP server name.
    pub const TFTP_SERVER: u8 = 66;
    /// Boot file name.
    pub const BOOT_FILE: u8 = 67;
    /// User class (RFC 3004).
    pub const USER_CLASS: u8 = 77;
    /// Rapid commit (RFC 4039).
    pub const RAPID_COMMIT: u8 = 80;
    /// Relay agent information (RFC 3046).
    pub const RELAY_AGENT: u8 = 82;
    /// Client system architecture (RFC 4578).
    pub const ARCHITECTURE: u8 = 93;
    /// Client machine identifier, a UUID (RFC 4578).
    pub const MACHINE_ID: u8 = 97;
    /// Subnet selection (RFC 3011).
    pub const SUBNET_SELECTION: u8 = 118;
    /// TFTP server addresses (RFC 5859).
    pub const TFTP_ADDRESSES: u8 = 150;
    /// iPXE's encapsulated options.
    pub const IPXE: u8 = 175;
    /// Last option.
    pub const END: u8 = 255;

    /// In option 82: link selection (RFC 3527).
    pub const RELAY_LINK_SELECTION: u8 = 5;
    /// In option 82: server identifier override (RFC 5107).
    pub const RELAY_SERVER_ID: u8 = 11;
    /// In option 175: this iPXE speaks HTTP.
    pub const IPXE_HTTP: u8 = 19;
    /// In option 175: do not wait for a proxy DHCP server.
    pub const IPXE_NO_PROXY: u8 = 176;
}
