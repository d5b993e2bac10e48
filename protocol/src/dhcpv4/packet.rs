//! Reading a frame from the wire.

use std::net::Ipv4Addr;

use super::{COOKIE, FIXED, MessageType, Op, Options, code};
use crate::machine::Mac;

/// Why a frame is not a DHCP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed header.
    #[error("shorter than a DHCP header")]
    Short,
    /// Not BOOTREQUEST or BOOTREPLY.
    #[error("op is neither request nor reply")]
    Op,
    /// `hlen` says more than `chaddr` can hold.
    #[error("hardware address longer than 16 bytes")]
    HardwareLength,
    /// No magic cookie: plain BOOTP or something else.
    #[error("no DHCP magic cookie")]
    Cookie,
    /// An option says it is longer than what is left.
    #[error("an option runs past the end")]
    OptionOverrun,
}

/// A packet from the wire: header fields as sent, options raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Client or server.
    pub op: Op,
    /// Hardware type; 1 is Ethernet.
    pub htype: u8,
    /// Length of the hardware address, 0 to 16.
    pub hlen: u8,
    /// Relays passed.
    pub hops: u8,
    /// Transaction.
    pub xid: u32,
    /// Seconds since the client began, they say; iPXE puts other things here.
    pub secs: u16,
    /// Flags; see [`super::BROADCAST`].
    pub flags: u16,
    /// Address the client already uses.
    pub ciaddr: Ipv4Addr,
    /// Address given.
    pub yiaddr: Ipv4Addr,
    /// Next server.
    pub siaddr: Ipv4Addr,
    /// Relay.
    pub giaddr: Ipv4Addr,
    /// Hardware address, padded.
    pub chaddr: [u8; 16],
    /// Options, those in overloaded fields included.
    pub options: Options,
    /// The `file` field up to its first NUL; empty when it holds options.
    pub file: Vec<u8>,
}

impl Packet {
    /// Reads one UDP payload.
    ///
    /// # Errors
    /// When it is no DHCP packet; see [`Malformed`]. Nonsense inside an option is not an error.
    pub fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let (head, tail) = frame.split_at_checked(FIXED).ok_or(Malformed::Short)?;
        let op = match head[0] {
            1 => Op::Request,
            2 => Op::Reply,
            _ => return Err(Malformed::Op),
        };
        let hlen = head[2];
        if usize::from(hlen) > 16 {
            return Err(Malformed::HardwareLength);
        }
        if head[236..240] != COOKIE {
            return Err(Malformed::Cookie);
        }
        let mut options = Options::default();
        let mut whole = options.collect(tail);
        // RFC 2131 section 4.1: first the options field, then `file`, then `sname`.
        let overload = options.u8(code::OVERLOAD).unwrap_or(0);
        if overload & 1 != 0 {
            whole &= options.collect(&head[108..236]);
        }
        if overload & 2 != 0 {
            whole &= options.collect(&head[44..108]);
        }
        if !whole {
            return Err(Malformed::OptionOverrun);
        }
        let address = |at: usize| Ipv4Addr::new(head[at], head[at + 1], head[at + 2], head[at + 3]);
        let mut chaddr = [0; 16];
        chaddr.copy_from_slice(&head[28..44]);
        Ok(Self {
            op,
            htype: head[1],
            hlen,
            hops: head[3],
            xid: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
            secs: u16::from_be_bytes([head[8], head[9]]),
            flags: u16::from_be_bytes([head[10], head[11]]),
            ciaddr: address(12),
            yiaddr: address(16),
            siaddr: address(20),
            giaddr: address(24),
            chaddr,
            options,
            file: if overload & 1 == 0 {
                until_nul(&head[108..236]).to_vec()
            } else {
                Vec::new()
            },
        })
    }

    /// Option 53, when it holds a type we know.
    #[must_use]
    pub fn message_type(&self) -> Option<MessageType> {
        MessageType::from_code(self.options.u8(code::MESSAGE_TYPE)?)
    }

    /// The client's Ethernet address; `None` for other hardware and for addresses that no card
    /// can own.
    #[must_use]
    pub fn mac(&self) -> Option<Mac> {
        if self.htype != 1 || self.hlen != 6 {
            return None;
        }
        let [a, b, c, d, e, f, ..] = self.chaddr;
        Some(Mac([a, b, c, d, e, f])).filter(Mac::is_unicast)
    }

    /// Boot file: option 67 without its trailing NUL, else the `file` field.
    #[must_use]
    pub fn boot_file(&self) -> Option<&[u8]> {
        let named = match self.options.get(code::BOOT_FILE) {
            Some(option) => until_nul(option),
            None => &self.file,
        };
        (!named.is_empty()).then_some(named)
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; FIXED];
        frame[..3].copy_from_slice(&[1, 1, 6]);
        frame[28..34].copy_from_slice(&[0x52, 0x54, 0, 0xaa, 0, 1]);
        frame[236..240].copy_from_slice(&COOKIE);
        frame.extend_from_slice(options);
        frame
    }

    #[test]
    fn refuses_what_is_no_packet() {
        let good = frame(&[53, 1, 1, 255]);
        assert!(Packet::parse(&good).is_ok());
        assert_eq!(Packet::parse(&[]), Err(Malformed::Short));
        assert_eq!(Packet::parse(&good[..239]), Err(Malformed::Short));
        let with = |at: usize, value: u8| {
            let mut bad = good.clone();
            bad[at] = value;
            Packet::parse(&bad)
        };
        assert_eq!(with(0, 3), Err(Malformed::Op));
        assert_eq!(with(2, 17), Err(Malformed::HardwareLength));
        assert_eq!(with(238, 0), Err(Malformed::Cookie));
        assert_eq!(
            Packet::parse(&frame(&[53, 1, 1, 61, 9, 1])),
            Err(Malformed::OptionOverrun)
        );
        assert_eq!(Packet::parse(&vec![0xa5; 2 << 20]), Err(Malformed::Op));
    }

    #[test]
    fn no_message_type_is_no_panic() {
        for options in [
            &[255u8][..],
            &[53, 0, 255],
            &[53, 1, 99, 255],
            &[53, 2, 1, 1],
        ] {
            assert_eq!(Packet::parse(&frame(options)).unwrap().message_type(), None);
        }
    }

    #[test]
    fn reads_options_from_overloaded_fields() {
        let mut bytes = frame(&[52, 1, 3, 255]);
        bytes[108..112].copy_from_slice(&[53, 1, 1, 255]);
        bytes[44..50].copy_from_slice(&[60, 3, b'P', b'X', b'E', 255]);
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.message_type(), Some(MessageType::Discover));
        assert_eq!(packet.options.get(60), Some(&b"PXE"[..]));
        assert_eq!(packet.boot_file(), None);
        // An option must not run from one field into the next.
        bytes[108..110].copy_from_slice(&[12, 200]);
        assert_eq!(Packet::parse(&bytes), Err(Malformed::OptionOverrun));
    }

    #[test]
    fn knows_only_ethernet_addresses() {
        let mut bytes = frame(&[255]);
        let mac = |bytes: &[u8]| Packet::parse(bytes).unwrap().mac();
        assert_eq!(mac(&bytes), "52:54:00:aa:00:01".parse().ok());
        bytes[28] = 0xff;
        assert_eq!(mac(&bytes), None);
        bytes[28] = 0x52;
        bytes[2] = 16;
        assert_eq!(mac(&bytes), None);
    }

    #[test]
    fn prefers_option_67_over_the_field() {
        let mut bytes = frame(&[67, 3, b'a', b'b', 0, 255]);
        bytes[108..111].copy_from_slice(b"xyz");
        assert_eq!(Packet::parse(&bytes).unwrap().boot_file(), Some(&b"ab"[..]));
        bytes[240] = 12;
        assert_eq!(
            Packet::parse(&bytes).unwrap().boot_file(),
            Some(&b"xyz"[..])
        );
    }
}
