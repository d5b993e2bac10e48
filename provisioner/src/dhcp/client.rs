//! Who is asking: which stage of its boot a client is in, and what it can start.
//!
//! Pure. Sources: RFC 4578 and the IANA list of processor architectures (option 93), RFC 3004
//! (option 77), iPXE's `dhcp.h` and `features.h` (option 175).

use anneal_protocol::dhcpv4::{AGENT_VENDOR_CLASS, Packet, code, encapsulated, user_classes};
use anneal_protocol::machine::Mac;

/// Boot files by platform; `boot` serves them under these names.
const LOADER_BIOS: &str = "undionly.kpxe";
const LOADER_X64: &str = "snponly.efi";
const LOADER_ARM64: &str = "ipxe-arm64.efi";

/// Ethernet prefixes of Raspberry Pi boards. Their firmware claims to be a PC (93 = 0) but cannot
/// run a PC's loader.
const RASPBERRY_PI: [[u8; 3]; 5] = [
    [0xb8, 0x27, 0xeb],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
];

/// Which program on the machine speaks DHCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// PXE or UEFI HTTP boot.
    Firmware,
    /// iPXE.
    Ipxe,
    /// Our agent.
    Agent,
    /// Anything else: an installed system.
    System,
}

impl Stage {
    /// The word used in events.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Ipxe => "ipxe",
            Self::Agent => "agent",
            Self::System => "system",
        }
    }
}

/// What a client needs to go on booting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wants {
    /// No boot file.
    Nothing,
    /// This iPXE binary by TFTP.
    LoaderByTftp(&'static str),
    /// This iPXE binary by HTTP, answered in the class `HTTPClient`.
    LoaderByHttp(&'static str),
    /// Its boot script.
    Script,
    /// A boot file that we do not have; why.
    Unsupported(String),
}

/// A client as its packet describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Where it is in its boot.
    pub stage: Stage,
    /// Architecture it named, the first that we know.
    pub arch: Option<u16>,
    /// What it needs.
    pub wants: Wants,
}

/// A network boot client whose identification is garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("option {0} of a boot client has a wrong length or type")]
pub struct Unreadable(pub u8);

/// The two ways in which firmware fetches its boot file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tftp,
    Http,
}

/// Recognises a client.
///
/// # Errors
/// When it is a boot client and its options 93 or 97 cannot be read.
pub fn recognise(packet: &Packet, mac: Mac) -> Result<Client, Unreadable> {
    let options = &packet.options;
    let class = options.get(code::VENDOR_CLASS).unwrap_or_default();
    let boot_class = class.starts_with(b"PXEClient") || class.starts_with(b"HTTPClient");
    let ipxe = is_ipxe(packet);
    if !ipxe && class.starts_with(AGENT_VENDOR_CLASS.as_bytes()) {
        return Ok(plain(Stage::Agent));
    }
    if !ipxe && !boot_class && options.get(code::ARCHITECTURE).is_none() {
        return Ok(plain(Stage::System));
    }
    if let Some(id) = options.get(code::MACHINE_ID)
        && (id.len() != 17 || id[0] != 0)
    {
        return Err(Unreadable(code::MACHINE_ID));
    }
    let arch = match options.get(code::ARCHITECTURE) {
        Some(_) => Some(first_known(
            &options
                .architectures()
                .ok_or(Unreadable(code::ARCHITECTURE))?,
        )),
        None => arch_in_class(class),
    };
    let wants = if ipxe && speaks_http(packet) {
        Wants::Script
    } else {
        loader(arch, mac, class.starts_with(b"HTTPClient") && !ipxe)
    };
    let stage = if ipxe { Stage::Ipxe } else { Stage::Firmware };
    Ok(Client { stage, arch, wants })
}

fn plain(stage: Stage) -> Client {
    Client {
        stage,
        arch: None,
        wants: Wants::Nothing,
    }
}

/// iPXE names itself in option 77 unless a script changed it; option 175 it always sends.
fn is_ipxe(packet: &Packet) -> bool {
    let named = packet
        .options
        .get(code::USER_CLASS)
        .is_some_and(|data| user_classes(data).contains(&&b"iPXE"[..]));
    named || packet.options.get(code::IPXE).is_some()
}

/// HTTP is among the features in option 175, or no feature is listed at all.
fn speaks_http(packet: &Packet) -> bool {
    const FEATURES: std::ops::RangeInclusive<u8> = 0x10..=0x4f;
    let Some(data) = packet.options.get(code::IPXE) else {
        return true;
    };
    let has = |feature: u8| encapsulated(data, feature).is_some_and(|value| value != [0]);
    has(code::IPXE_HTTP) || !FEATURES.into_iter().any(has)
}

/// How an architecture boots; `None` for those that we have no loader for.
fn platform(arch: u16) -> Option<(&'static str, Transport)> {
    Some(match arch {
        0 => (LOADER_BIOS, Transport::Tftp),
        // 9 is "EFI byte code", which older x64 firmware sends.
        7 | 9 => (LOADER_X64, Transport::Tftp),
        11 => (LOADER_ARM64, Transport::Tftp),
        16 => (LOADER_X64, Transport::Http),
        19 => (LOADER_ARM64, Transport::Http),
        _ => return None,
    })
}

/// Option 93 is a list; the first one that we know decides.
fn first_known(list: &[u16]) -> u16 {
    let known = list.iter().find(|arch| platform(**arch).is_some());
    *known.or(list.first()).unwrap_or(&u16::MAX)
}

/// Clients without option 93 say it in their class: `PXEClient:Arch:00007:UNDI:003016`.
fn arch_in_class(class: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(class).ok()?;
    let (_, rest) = text.split_once(":Arch:")?;
    rest.get(..5)?.parse().ok()
}

fn loader(arch: Option<u16>, mac: Mac, http_class: bool) -> Wants {
    let [a, b, c, ..] = mac.0;
    let pi = RASPBERRY_PI.contains(&[a, b, c]);
    if (pi && arch == Some(0)) || arch == Some(41) {
        return Wants::Unsupported("the Raspberry Pi boot loader is not supported".to_owned());
    }
    let Some(arch) = arch else {
        return Wants::Unsupported("the client names no architecture (option 93)".to_owned());
    };
    match platform(arch) {
        // The class decides how the answer is read, whatever the architecture's usual way is.
        Some((file, Transport::Http)) if http_class => Wants::LoaderByHttp(file),
        Some((file, Transport::Tftp)) if http_class && arch != 0 => Wants::LoaderByHttp(file),
        Some((file, _)) if !http_class => Wants::LoaderByTftp(file),
        _ => Wants::Unsupported(format!(
            "there is no boot file for architecture {arch} ({})",
            arch_name(arch)
        )),
    }
}

/// A word for an architecture, for people.
#[must_use]
pub fn arch_name(arch: u16) -> &'static str {
    match arch {
        0 => "bios",
        6 => "efi-ia32",
        7 | 9 => "efi-x64",
        10 => "efi-arm32",
        11 => "efi-arm64",
        15 => "efi-ia32-http",
        16 => "efi-x64-http",
        18 => "efi-arm32-http",
        19 => "efi-arm64-http",
        20 => "bios-http",
        25..=30 => "riscv",
        37..=40 => "loongarch",
        41 => "raspberry-pi",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use anneal_protocol::dhcpv4::{Message, MessageType};

    use super::*;

    const PC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
    const PI: Mac = Mac([0xdc, 0xa6, 0x32, 0, 0, 1]);
    const PXE: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";
    const HTTP: &[u8] = b"HTTPClient:Arch:00016:UNDI:003001";
    const UUID: &[u8] = &[0; 17];

    type RawOption<'a> = (u8, &'a [u8]);

    fn seen(mac: Mac, options: &[(u8, &[u8])]) -> Result<Client, Unreadable> {
        let mut message = Message::request(MessageType::Discover, mac, 1);
        for (code, data) in options {
            message.option(*code, *data);
        }
        recognise(&Packet::parse(&message.encode()).unwrap(), mac)
    }

    fn unsupported(wants: &Wants) -> bool {
        matches!(wants, Wants::Unsupported(_))
    }

    #[test]
    fn firmware_gets_the_loader_of_its_architecture() {
        let cases: [(&[u8], &[u8], Wants); 9] = [
            (PXE, &[0, 0], Wants::LoaderByTftp("undionly.kpxe")),
            (PXE, &[0, 7], Wants::LoaderByTftp("snponly.efi")),
            (PXE, &[0, 9], Wants::LoaderByTftp("snponly.efi")),
            (PXE, &[0, 11], Wants::LoaderByTftp("ipxe-arm64.efi")),
            (PXE, &[0x12, 0x34, 0, 7], Wants::LoaderByTftp("snponly.efi")),
            (HTTP, &[0, 16], Wants::LoaderByHttp("snponly.efi")),
            (HTTP, &[0, 19], Wants::LoaderByHttp("ipxe-arm64.efi")),
            (HTTP, &[0, 7], Wants::LoaderByHttp("snponly.efi")),
            // The Pi repeats 93 but not 60 in its REQUEST; so may others.
            (b"", &[0, 7], Wants::LoaderByTftp("snponly.efi")),
        ];
        for (class, arch, wants) in cases {
            let client = seen(PC, &[(60, class), (93, arch), (97, UUID)]).unwrap();
            assert_eq!(client.wants, wants, "{arch:?}");
            assert_eq!(client.stage, Stage::Firmware);
        }
    }

    #[test]
    fn machine_id_may_be_absent_and_the_class_may_name_the_architecture() {
        let client = seen(PC, &[(60, b"PXEClient:Arch:00007:UNDI:003016")]).unwrap();
        assert_eq!(client.arch, Some(7));
        assert_eq!(client.wants, Wants::LoaderByTftp("snponly.efi"));
        assert!(unsupported(&seen(PC, &[(60, b"PXEClient")]).unwrap().wants));
    }

    #[test]
    fn says_what_it_cannot_boot() {
        for arch in [6_u16, 10, 15, 20, 27, 39, 0x1234] {
            let client = seen(PC, &[(60, PXE), (93, &arch.to_be_bytes())]).unwrap();
            assert!(unsupported(&client.wants), "{arch}");
        }
        let pi = seen(PI, &[(60, PXE), (93, &[0, 0])]).unwrap();
        assert!(unsupported(&pi.wants));
        assert!(unsupported(
            &seen(PC, &[(60, HTTP), (93, &[0, 0])]).unwrap().wants
        ));
        // A system on a Pi is a system.
        assert_eq!(seen(PI, &[]).unwrap().stage, Stage::System);
    }

    #[test]
    fn garbage_from_a_boot_client_is_an_error() {
        let pxe = |code: u8, data: &[u8]| seen(PC, &[(60, PXE), (code, data)]);
        assert_eq!(pxe(93, &[]), Err(Unreadable(93)));
        assert_eq!(pxe(93, &[0, 7, 0]), Err(Unreadable(93)));
        assert_eq!(pxe(97, &[0, 1, 2, 3, 4]), Err(Unreadable(97)));
        assert_eq!(pxe(97, &[9; 17]), Err(Unreadable(97)));
        // Systems put other things into 97: not ours to judge.
        assert!(seen(PC, &[(97, &[1, 2, 3])]).is_ok());
    }

    #[test]
    fn recognises_ipxe_however_it_says_so() {
        let http: &[u8] = &[19, 1, 1, 21, 1, 1];
        let features_without_http: &[u8] = &[21, 1, 1, 33, 1, 1];
        let bus_only: &[u8] = &[177, 5, 1, 0x1a, 0xf4, 0x10, 0];
        let script = Wants::Script;
        let loader = Wants::LoaderByTftp("snponly.efi");
        let cases: [(&[RawOption<'_>], &Wants); 7] = [
            (&[(77, b"iPXE")], &script),
            (&[(77, b"\x04iPXE")], &script),
            (&[(77, b"\x03lab\x04iPXE")], &script),
            (&[(77, b"iPXE"), (175, http)], &script),
            (&[(77, b"custom"), (175, http)], &script),
            (&[(77, b"iPXE"), (175, bus_only)], &script),
            (&[(77, b"iPXE"), (175, features_without_http)], &loader),
        ];
        for (extra, wants) in cases {
            let mut options: Vec<(u8, &[u8])> = vec![(60, PXE), (93, &[0, 7]), (97, UUID)];
            options.extend_from_slice(extra);
            let client = seen(PC, &options).unwrap();
            assert_eq!(client.stage, Stage::Ipxe, "{extra:?}");
            assert_eq!(&client.wants, wants, "{extra:?}");
        }
    }

    #[test]
    fn tells_the_agent_from_a_system() {
        assert_eq!(
            seen(PC, &[(60, b"anneal-agent")]).unwrap().stage,
            Stage::Agent
        );
        assert_eq!(
            seen(PC, &[(60, b"udhcp 1.35")]).unwrap().stage,
            Stage::System
        );
        assert_eq!(seen(PC, &[]).unwrap().wants, Wants::Nothing);
    }
}
