//! The messages of a client: what our agent and the probe for foreign servers say and hear.
//!
//! A client here is a value; whoever uses it sends the bytes (from port 68 to port 67 of
//! 255.255.255.255) and keeps the time. It asks for broadcast answers, so a plain UDP socket
//! bound to the interface can receive them before there is an address.

use std::net::Ipv4Addr;

use super::{BROADCAST, Message, MessageType, Op, Packet, code};
use crate::machine::Mac;

/// What a client asks every server for.
const WANTED: [u8; 10] = [
    code::SUBNET_MASK,
    code::ROUTER,
    code::DNS,
    code::HOST_NAME,
    code::BROADCAST_ADDRESS,
    code::LEASE_TIME,
    code::SERVER_ID,
    code::RENEWAL,
    code::REBINDING,
    code::BOOT_FILE,
];
/// Largest message we take: one Ethernet frame.
const MAX_SIZE: u16 = 1500;

/// One client's transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client<'a> {
    /// Its card.
    pub mac: Mac,
    /// Transaction number; pick a new one at random for every acquisition.
    pub xid: u32,
    /// Vendor class (option 60); empty sends none.
    pub vendor_class: &'a str,
}

/// What a server offers or grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Prefix length of the subnet; 32 when the server sent no usable mask.
    pub prefix: u8,
    /// Server identifier.
    pub server: Ipv4Addr,
    /// First router.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// Lease time in seconds; `u32::MAX` is for ever.
    pub lease_secs: u32,
    /// When to renew, in seconds from the grant (T1; half the lease unless the server said).
    pub renew_secs: u32,
    /// When to ask every server (T2; seven eighths of the lease unless the server said).
    pub rebind_secs: u32,
}

/// What a server said to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It offers this.
    Offer(Lease),
    /// It grants this.
    Ack(Lease),
    /// It refuses: begin again with a DISCOVER.
    Nak,
}

impl Client<'_> {
    /// Looks for servers.
    #[must_use]
    pub fn discover(&self, secs: u16) -> Vec<u8> {
        self.message(MessageType::Discover, secs).encode()
    }

    /// Takes an offer; every server hears it (RFC 2131 section 4.3.2, SELECTING).
    #[must_use]
    pub fn request(&self, offer: &Lease, secs: u16) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, secs);
        message
            .address(code::REQUESTED_ADDRESS, offer.address)
            .address(code::SERVER_ID, offer.server);
        message.encode()
    }

    /// Keeps a lease: unicast to its server from T1 on, broadcast from T2 on.
    #[must_use]
    pub fn renew(&self, lease: &Lease) -> Vec<u8> {
        let mut message = self.message(MessageType::Request, 0);
        message.ciaddr = lease.address;
        message.flags = 0;
        message.encode()
    }

    /// Gives a lease back; there is no answer.
    #[must_use]
    pub fn release(&self, lease: &Lease) -> Vec<u8> {
        let mut message = Message::request(MessageType::Release, self.mac, self.xid);
        message.ciaddr = lease.address;
        message.address(code::SERVER_ID, lease.server);
        message.encode()
    }

    /// Reads a frame from port 67; `None` when it is not a well-formed answer to this client.
    #[must_use]
    pub fn read(&self, frame: &[u8]) -> Option<Answer> {
        let packet = Packet::parse(frame).ok()?;
        if packet.op != Op::Reply || packet.xid != self.xid || packet.mac() != Some(self.mac) {
            return None;
        }
        match packet.message_type()? {
            MessageType::Offer => Some(Answer::Offer(lease(&packet)?)),
            MessageType::Ack => Some(Answer::Ack(lease(&packet)?)),
            MessageType::Nak => Some(Answer::Nak),
            _ => None,
        }
    }

    fn message(&self, kind: MessageType, secs: u16) -> Message {
        let mut message = Message::request(kind, self.mac, self.xid);
        message.secs = secs;
        message.flags = BROADCAST;
        message.option(code::MAX_SIZE, MAX_SIZE.to_be_bytes());
        if !self.vendor_class.is_empty() {
            message.option(code::VENDOR_CLASS, self.vendor_class);
        }
        let mut id = vec![1];
        id.extend_from_slice(&self.mac.0);
        message.option(code::CLIENT_ID, id);
        message.option(code::PARAMETERS, WANTED);
        message
    }
}

fn lease(packet: &Packet) -> Option<Lease> {
    let options = &packet.options;
    let lease_secs = options.u32(code::LEASE_TIME)?;
    let (renew, rebind) = default_times(lease_secs);
    Some(Lease {
        address: Some(packet.yiaddr).filter(|address| !address.is_unspecified())?,
        prefix: options
            .address(code::SUBNET_MASK)
            .map(u32::from)
            .filter(|mask| mask.leading_ones() == mask.count_ones())
            .map_or(32, |mask| u8::try_from(mask.count_ones()).unwrap_or(32)),
        server: options.address(code::SERVER_ID)?,
        router: options.addresses(code::ROUTER).first().copied(),
        dns: options.addresses(code::DNS),
        lease_secs,
        renew_secs: options.u32(code::RENEWAL).unwrap_or(renew),
        rebind_secs: options.u32(code::REBINDING).unwrap_or(rebind),
    })
}

/// T1 and T2 of a lease (RFC 2131 section 4.4.5), in seconds; for ever stays for ever.
#[must_use]
pub fn default_times(lease_secs: u32) -> (u32, u32) {
    if lease_secs == u32::MAX {
        return (u32::MAX, u32::MAX);
    }
    (lease_secs / 2, lease_secs - lease_secs / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Client<'static> = Client {
        mac: Mac([0x52, 0x54, 0, 0xaa, 0, 1]),
        xid: 0x1234_5678,
        vendor_class: super::super::AGENT_VENDOR_CLASS,
    };

    fn offer(edit: impl FnOnce(&mut Message)) -> Vec<u8> {
        let packet = Packet::parse(&CLIENT.discover(0)).unwrap();
        let mut reply = Message::reply_to(&packet, MessageType::Offer);
        reply.yiaddr = Ipv4Addr::new(10, 77, 0, 11);
        reply
            .address(code::SERVER_ID, Ipv4Addr::new(10, 77, 0, 1))
            .u32(code::LEASE_TIME, 3600)
            .address(code::SUBNET_MASK, Ipv4Addr::new(255, 255, 255, 0))
            .address(code::ROUTER, Ipv4Addr::new(10, 77, 0, 254));
        edit(&mut reply);
        reply.encode()
    }

    #[test]
    fn reads_an_offer_and_takes_it() {
        let Some(Answer::Offer(lease)) = CLIENT.read(&offer(|_| ())) else {
            panic!("no offer");
        };
        assert_eq!(
            lease,
            Lease {
                address: Ipv4Addr::new(10, 77, 0, 11),
                prefix: 24,
                server: Ipv4Addr::new(10, 77, 0, 1),
                router: Some(Ipv4Addr::new(10, 77, 0, 254)),
                dns: vec![],
                lease_secs: 3600,
                renew_secs: 1800,
                rebind_secs: 3150,
            }
        );
        let request = Packet::parse(&CLIENT.request(&lease, 1)).unwrap();
        assert_eq!(request.options.address(50), Some(lease.address));
        assert_eq!(request.options.address(54), Some(lease.server));
        assert_eq!(request.options.get(60), Some(&b"anneal-agent"[..]));
        assert_eq!(request.ciaddr, Ipv4Addr::UNSPECIFIED);
        let renew = Packet::parse(&CLIENT.renew(&lease)).unwrap();
        assert_eq!(renew.ciaddr, lease.address);
        assert_eq!(renew.options.get(54), None);
    }

    #[test]
    fn ignores_what_is_for_others_or_incomplete() {
        assert_eq!(CLIENT.read(&offer(|reply| reply.xid = 1)), None);
        assert_eq!(CLIENT.read(&offer(|reply| reply.chaddr[5] = 9)), None);
        assert_eq!(
            CLIENT.read(&offer(|reply| reply.yiaddr = Ipv4Addr::UNSPECIFIED)),
            None
        );
        assert_eq!(CLIENT.read(&CLIENT.discover(0)), None);
        assert_eq!(CLIENT.read(b"garbage"), None);
    }

    #[test]
    fn a_lease_for_ever_is_never_renewed() {
        assert_eq!(default_times(u32::MAX), (u32::MAX, u32::MAX));
        assert_eq!(default_times(u32::MAX - 1).0, u32::MAX / 2);
        assert_eq!(default_times(0), (0, 0));
    }
}
