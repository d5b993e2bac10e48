//! What an answer says: times, network, boot file. Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use anneal_protocol::dhcpv4::client::default_times;
use anneal_protocol::dhcpv4::{Message, MessageType, code};

use super::client::{self, Client, Stage, Wants};
use super::policy::Case;
use super::subnet::{contains, mask};
use crate::machine::Cidr;

/// How often an iPXE that cannot run our scripts is given one that can, before we stop: its
/// successor evidently cannot either.
const LOADERS_FOR_IPXE: usize = 2;

/// What became of the boot file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Boot {
    /// File or URL that was named.
    pub file: Option<String>,
    /// Why a client that wants one gets none.
    pub why_not: Option<String>,
    /// An iPXE was given our iPXE.
    pub loader_for_ipxe: bool,
}

/// Lease time, T1 and T2.
pub(super) fn times(message: &mut Message, lease: Duration) {
    let secs = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
    let (renewal, rebinding) = default_times(secs);
    message
        .u32(code::LEASE_TIME, secs)
        .u32(code::RENEWAL, renewal)
        .u32(code::REBINDING, rebinding);
}

/// The network around `address`, and who the client is.
pub(super) fn network(message: &mut Message, case: &Case<'_>, address: Cidr) {
    let settings = &case.view.rules.settings;
    message.u32(code::SUBNET_MASK, mask(address.prefix));
    if let Some(router) = settings.router.filter(|router| contains(address, *router)) {
        message.address(code::ROUTER, router);
    }
    let servers: Vec<u8> = settings.dns.iter().flat_map(Ipv4Addr::octets).collect();
    if !servers.is_empty() {
        message.option(code::DNS, servers);
    }
    // RFC 6842: the client id comes back.
    if let Some(id) = case.packet.options.get(code::CLIENT_ID) {
        message.optional(code::CLIENT_ID, id);
    }
    if let Some(reservation) = case.reservation
        && asked(case, code::HOST_NAME)
    {
        message.optional(code::HOST_NAME, reservation.machine.as_bytes());
    }
    if asked(case, code::BROADCAST_ADDRESS) && address.prefix < 31 {
        let last = u32::from(address.ip) | !mask(address.prefix);
        message.optional(code::BROADCAST_ADDRESS, last.to_be_bytes());
    }
}

/// The boot file, for a client that wants one.
///
/// Option 60 is left out for PXE clients: with it, EDK2 and iPXE expect a PXE boot server on port
/// 4011 too. UEFI HTTP clients in turn accept nothing without it.
pub(super) fn boot(message: &mut Message, case: &Case<'_>) -> Boot {
    let rules = case.view.rules;
    if case.client.stage == Stage::Ipxe && !rules.settings.allow_foreign {
        // We are the only server: iPXE need not wait two seconds for another.
        message.option(code::IPXE, [code::IPXE_NO_PROXY, 1, 1]);
    }
    let refused = |why: &str| Boot {
        why_not: Some(why.to_owned()),
        ..Boot::default()
    };
    let wants = &case.client.wants;
    if *wants == Wants::Nothing {
        return Boot::default();
    }
    match case.reservation {
        None => return refused("it is not in the inventory"),
        Some(reservation) if !reservation.boot => return refused("it is not the boot card"),
        Some(_) => (),
    }
    let for_ipxe = case.client.stage == Stage::Ipxe && *wants != Wants::Script;
    if for_ipxe && case.view.loaders_given >= LOADERS_FOR_IPXE {
        return refused("its iPXE keeps coming back without HTTP (boot loop)");
    }
    let file = match wants {
        Wants::Nothing => return Boot::default(),
        Wants::Unsupported(why) => return refused(why),
        Wants::LoaderByTftp(name) => {
            tftp_server(message, case);
            (*name).to_owned()
        }
        Wants::LoaderByHttp(name) => {
            message.option(code::VENDOR_CLASS, *b"HTTPClient");
            format!("{}/boot/{name}", rules.boot.boot_http)
        }
        Wants::Script => {
            tftp_server(message, case);
            let mac = case.mac.hyphenated();
            format!("{}/boot/script/{mac}", rules.boot.boot_http)
        }
    };
    message.boot_file(&file);
    Boot {
        file: Some(file),
        why_not: None,
        loader_for_ipxe: for_ipxe,
    }
}

/// `siaddr` is what PXE clients read; the options are for those that ask for them.
fn tftp_server(message: &mut Message, case: &Case<'_>) {
    let server = case.view.rules.boot.tftp;
    message.siaddr = server;
    if asked(case, code::TFTP_SERVER) {
        // Closed by NUL like the boot file: ROMs read past its end.
        message.optional(code::TFTP_SERVER, format!("{server}\0").into_bytes());
    }
    if asked(case, code::TFTP_ADDRESSES) {
        message.optional(code::TFTP_ADDRESSES, server.octets());
    }
}

fn asked(case: &Case<'_>, option: u8) -> bool {
    let list = case.packet.options.get(code::PARAMETERS);
    list.is_some_and(|list| list.contains(&option))
}

/// One sentence about an offer or a grant.
pub(super) fn sentence(kind: MessageType, ip: Ipv4Addr, client: &Client, boot: &Boot) -> String {
    let verb = match kind {
        MessageType::Offer => "was offered",
        _ => "has",
    };
    let stage = client.stage.word();
    let arch = client.arch.map_or(String::new(), |arch| {
        format!(" ({})", client::arch_name(arch))
    });
    match (&boot.file, &boot.why_not) {
        (Some(file), _) => format!("{stage}{arch} {verb} {ip}, boot file {file}"),
        (None, Some(why)) => format!("{stage}{arch} {verb} {ip}, no boot file: {why}"),
        (None, None) => format!("{stage}{arch} {verb} {ip}"),
    }
}
