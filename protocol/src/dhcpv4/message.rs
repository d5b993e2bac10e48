//! Writing a message whose every byte is ours to choose.

use std::net::Ipv4Addr;

use super::{COOKIE, FIXED, MessageType, Op, Packet, code};
use crate::machine::Mac;

/// Smallest message on the wire: some relays and ROMs drop shorter ones (RFC 1542 section 2.1).
const MINIMUM: usize = 300;
/// What every client must take (RFC 2131 section 2), IP and UDP headers included.
const GUARANTEED: u16 = 576;
/// More than this does not fit into one Ethernet frame.
const ETHERNET: u16 = 1500;
/// IP and UDP headers.
const HEADERS: u16 = 28;

/// A message that does not fit into what the client takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a reply of {needed} bytes does not fit into the {limit} that the client takes")]
pub struct TooLong {
    /// Bytes the message needs without anything that could be left out.
    pub needed: usize,
    /// Bytes the client takes.
    pub limit: usize,
}

/// A message to be written. Options leave in the order in which they were added; option 82 and END
/// come last. Options longer than 255 bytes are split (RFC 3396). Fields are never overloaded:
/// some ROMs cannot read that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Client or server.
    pub op: Op,
    /// Hardware type.
    pub htype: u8,
    /// Length of the hardware address.
    pub hlen: u8,
    /// Transaction.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// Flags.
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
    file: Vec<u8>,
    options: Vec<Entry>,
    relay_agent: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    code: u8,
    data: Vec<u8>,
    needed: bool,
}

impl Message {
    /// A client's message for its Ethernet card; the message type is already in.
    #[must_use]
    pub fn request(kind: MessageType, mac: Mac, xid: u32) -> Self {
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&mac.0);
        let mut message = Self {
            op: Op::Request,
            htype: 1,
            hlen: 6,
            xid,
            secs: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr,
            file: Vec::new(),
            options: Vec::new(),
            relay_agent: None,
        };
        message.option(code::MESSAGE_TYPE, [kind as u8]);
        message
    }

    /// The answer to a packet: transaction, flags, relay, hardware address and option 82 are
    /// copied (RFC 2131 table 3, RFC 3046 section 2.2); the message type is already in.
    #[must_use]
    pub fn reply_to(packet: &Packet, kind: MessageType) -> Self {
        let mut message = Self {
            op: Op::Reply,
            htype: packet.htype,
            hlen: packet.hlen,
            xid: packet.xid,
            secs: 0,
            flags: packet.flags,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: packet.giaddr,
            chaddr: packet.chaddr,
            file: Vec::new(),
            options: Vec::new(),
            relay_agent: packet.options.get(code::RELAY_AGENT).map(<[u8]>::to_vec),
        };
        message.option(code::MESSAGE_TYPE, [kind as u8]);
        message
    }

    /// Adds an option that the receiver cannot do without.
    pub fn option(&mut self, code: u8, data: impl Into<Vec<u8>>) -> &mut Self {
        self.push(code, data.into(), true)
    }

    /// Adds an option that is left out when the message would be too long; the last added goes
    /// first.
    pub fn optional(&mut self, code: u8, data: impl Into<Vec<u8>>) -> &mut Self {
        self.push(code, data.into(), false)
    }

    /// Adds an option that is one address.
    pub fn address(&mut self, code: u8, address: Ipv4Addr) -> &mut Self {
        self.option(code, address.octets())
    }

    /// Adds an option of four bytes.
    pub fn u32(&mut self, code: u8, value: u32) -> &mut Self {
        self.option(code, value.to_be_bytes())
    }

    /// Names the boot file: in option 67, closed by NUL because ROMs and EDK2 read past it or
    /// write one behind it, and in the `file` field too when it fits, because old ROMs and U-Boot
    /// read nothing else.
    pub fn boot_file(&mut self, name: &str) -> &mut Self {
        self.file = if name.len() < 128 {
            name.as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let mut terminated = name.as_bytes().to_vec();
        terminated.push(0);
        self.option(code::BOOT_FILE, terminated)
    }

    fn push(&mut self, code: u8, data: Vec<u8>, needed: bool) -> &mut Self {
        self.options.push(Entry { code, data, needed });
        self
    }

    /// How long an answer to `packet` may be as a UDP payload: option 57, never less than what
    /// every client must take, never more than one Ethernet frame.
    #[must_use]
    pub fn limit_for(packet: &Packet) -> usize {
        let asked = packet.options.u16(code::MAX_SIZE).unwrap_or(GUARANTEED);
        usize::from(asked.clamp(GUARANTEED, ETHERNET) - HEADERS)
    }

    /// The bytes, with everything in.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.write(self.options.len())
    }

    /// The bytes, at most `limit` of them. Optional options are left out until it fits.
    ///
    /// # Errors
    /// When the needed options alone are too long.
    pub fn encode_within(&self, limit: usize) -> Result<Vec<u8>, TooLong> {
        let optional = self.options.iter().filter(|entry| !entry.needed).count();
        let mut needed = 0;
        for kept in (0..=optional).rev() {
            let bytes = self.write(kept);
            if bytes.len() <= limit {
                return Ok(bytes);
            }
            needed = bytes.len();
        }
        Err(TooLong { needed, limit })
    }

    /// Writes the message with the first `optional` of its optional options.
    fn write(&self, optional: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MINIMUM * 2);
        bytes.extend_from_slice(&[self.op as u8, self.htype, self.hlen, 0]);
        bytes.extend_from_slice(&self.xid.to_be_bytes());
        bytes.extend_from_slice(&self.secs.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend_from_slice(&address.octets());
        }
        bytes.extend_from_slice(&self.chaddr);
        bytes.resize(108, 0);
        bytes.extend_from_slice(&self.file);
        bytes.resize(FIXED - COOKIE.len(), 0);
        bytes.extend_from_slice(&COOKIE);
        let mut left = optional;
        for entry in &self.options {
            if !entry.needed {
                if left == 0 {
                    continue;
                }
                left -= 1;
            }
            write_option(&mut bytes, entry.code, &entry.data);
        }
        if let Some(data) = &self.relay_agent {
            write_option(&mut bytes, code::RELAY_AGENT, data);
        }
        bytes.push(code::END);
        if bytes.len() < MINIMUM {
            bytes.resize(MINIMUM, code::PAD);
        }
        bytes
    }
}

fn write_option(bytes: &mut Vec<u8>, code: u8, data: &[u8]) {
    if data.is_empty() {
        bytes.extend_from_slice(&[code, 0]);
    }
    for piece in data.chunks(255) {
        // A piece is at most 255 bytes, so nothing is cut.
        bytes.extend_from_slice(&[code, u8::try_from(piece.len()).unwrap_or(u8::MAX)]);
        bytes.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);

    fn discover(extra: &[(u8, &[u8])]) -> Packet {
        let mut message = Message::request(MessageType::Discover, MAC, 7);
        for (code, data) in extra {
            message.option(*code, *data);
        }
        Packet::parse(&message.encode()).unwrap()
    }

    #[test]
    fn relay_information_comes_back_byte_for_byte_and_last() {
        // Sub-options out of order and repeated, as relays send them.
        let relay: &[u8] = &[2, 3, 1, 2, 3, 1, 1, 9, 1, 1, 8];
        let mut reply = Message::reply_to(&discover(&[(82, relay)]), MessageType::Offer);
        reply.u32(51, 60).optional(12, *b"r1n1");
        let bytes = reply.encode();
        let end = bytes.iter().rposition(|byte| *byte == 255).unwrap();
        assert_eq!(&bytes[end - relay.len()..end], relay);
        assert_eq!(bytes[end - relay.len() - 2..end - relay.len()], [82, 11]);
    }

    #[test]
    fn boot_file_is_terminated_and_fills_the_field_when_it_fits() {
        for (length, in_field) in [(11, true), (127, true), (128, false), (300, false)] {
            let name = "x".repeat(length);
            let mut reply = Message::reply_to(&discover(&[]), MessageType::Offer);
            reply.boot_file(&name);
            let packet = Packet::parse(&reply.encode()).unwrap();
            let option = packet.options.get(67).unwrap();
            assert_eq!(option.len(), length + 1);
            assert_eq!(option.last(), Some(&0));
            assert_eq!(packet.file == name.as_bytes(), in_field, "{length}");
            assert_eq!(packet.boot_file(), Some(name.as_bytes()));
        }
    }

    #[test]
    fn pads_to_three_hundred_bytes() {
        let bytes = Message::request(MessageType::Discover, MAC, 7).encode();
        assert_eq!(bytes.len(), 300);
        assert_eq!(bytes[240..245], [53, 1, 1, 255, 0]);
    }

    #[test]
    fn leaves_out_what_can_be_left_out_and_refuses_the_rest() {
        let mut reply = Message::reply_to(&discover(&[]), MessageType::Offer);
        reply.u32(51, 60).optional(12, vec![b'a'; 200]);
        reply.optional(6, [1, 1, 1, 1].repeat(30)).u32(58, 30);
        let packet = Packet::parse(&reply.encode_within(548).unwrap()).unwrap();
        assert!(packet.options.get(12).is_some());
        assert!(packet.options.get(6).is_none());
        assert_eq!(packet.options.u32(58), Some(30));
        reply.option(43, vec![1; 400]);
        let error = reply.encode_within(548).unwrap_err();
        assert_eq!(error.limit, 548);
        assert!(error.needed > 548);
    }

    #[test]
    fn takes_the_limit_from_the_client() {
        let limit = |extra: &[(u8, &[u8])]| Message::limit_for(&discover(extra));
        assert_eq!(limit(&[]), 548);
        assert_eq!(limit(&[(57, &[0, 1])]), 548);
        assert_eq!(limit(&[(57, &[5, 0xc0])]), 1444);
        assert_eq!(limit(&[(57, &[255, 255])]), 1472);
    }
}
