//! TFTP packets: reading what firmware really sends, writing what it accepts.
//!
//! ```text
//!   RRQ/WRQ   | 1 or 2 | name | 0 | mode | 0 | option | 0 | value | 0 | ...
//!   DATA      | 3 | block (u16) | up to blksize bytes
//!   ACK       | 4 | block (u16)
//!   ERROR     | 5 | code (u16) | message | 0
//!   OACK      | 6 | option | 0 | value | 0 | ...
//! ```
//!
//! Invariants: reading never fails on a request that a person could still understand (no final
//! NUL, no mode, NULs at the end, 0xff after the name, backslashes); options with values out of
//! range count as not asked; an OACK holds only what was asked.

/// Default block size, in bytes.
pub const DEFAULT_BLOCK: u16 = 512;
/// Smallest and largest block size of RFC 2348, in bytes.
const BLOCK_RANGE: std::ops::RangeInclusive<u64> = 8..=65_464;

/// Error codes of RFC 1350 and 2347.
pub mod code {
    /// See the message.
    pub const UNDEFINED: u16 = 0;
    /// File not found.
    pub const NOT_FOUND: u16 = 1;
    /// Access violation.
    pub const ACCESS: u16 = 2;
    /// Illegal operation.
    pub const ILLEGAL: u16 = 4;
    /// Unknown transfer.
    pub const UNKNOWN_TID: u16 = 5;
    /// The client does not want what the OACK offers; EDK2 ends its size probe with it.
    pub const OPTION: u16 = 8;
}

/// A packet from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Wants to read.
    Read(Request),
    /// Wants to write.
    Write(Request),
    /// Has this block.
    Ack(u16),
    /// Gives up.
    Error {
        /// Code.
        code: u16,
        /// Printable part of its message.
        message: String,
    },
    /// DATA or OACK, which a client of ours never sends.
    Unexpected(u16),
}

/// A read or write request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Name as it is looked up: `/` for `\`, no leading slashes, printable.
    pub file: String,
    /// Mode.
    pub mode: Mode,
    /// Options that make sense.
    pub options: Options,
}

/// Transfer modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are; also when a ROM names no mode.
    Octet,
    /// Text with converted line ends.
    Netascii,
    /// Anything else.
    Other,
}

/// What a request asks for; absent means not asked, or not sensibly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Block size in bytes, 8 to 65464 (RFC 2348).
    pub blksize: Option<u16>,
    /// The client wants to know the size (RFC 2349).
    pub tsize: bool,
    /// Seconds between repetitions, 1 to 255 (RFC 2349).
    pub timeout: Option<u8>,
    /// Blocks without an ACK between them, 1 to 65535 (RFC 7440).
    pub windowsize: Option<u16>,
}

/// Why bytes are not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Too short for its kind.
    #[error("TFTP packet is too short")]
    Short,
    /// No such kind.
    #[error("TFTP operation {0} does not exist")]
    Operation(u16),
}

impl Packet {
    /// Reads a packet.
    ///
    /// # Errors
    /// When it is too short or of no known kind.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (operation, rest) = word(bytes).ok_or(Malformed::Short)?;
        match operation {
            1 => Ok(Self::Read(Request::parse(rest))),
            2 => Ok(Self::Write(Request::parse(rest))),
            4 => Ok(Self::Ack(word(rest).ok_or(Malformed::Short)?.0)),
            5 => {
                let (code, message) = word(rest).ok_or(Malformed::Short)?;
                let message = printable(message.split(|b| *b == 0).next().unwrap_or_default());
                Ok(Self::Error { code, message })
            }
            3 | 6 => Ok(Self::Unexpected(operation)),
            other => Err(Malformed::Operation(other)),
        }
    }
}

impl Request {
    fn parse(bytes: &[u8]) -> Self {
        let mut fields = bytes.split(|b| *b == 0);
        let file = fields.next().unwrap_or_default();
        let mode = match fields.next().unwrap_or_default() {
            mode if mode.is_empty() || mode.eq_ignore_ascii_case(b"octet") => Mode::Octet,
            mode if mode.eq_ignore_ascii_case(b"netascii") => Mode::Netascii,
            _ => Mode::Other,
        };
        let mut options = Options::default();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            options.take(name, value);
        }
        Self {
            file: file_name(file),
            mode,
            options,
        }
    }
}

impl Options {
    /// Notes one option; of several equal ones the first counts.
    fn take(&mut self, name: &[u8], value: &[u8]) {
        let Some(number) = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
        else {
            return;
        };
        if name.eq_ignore_ascii_case(b"blksize") {
            // More than the largest is a wish for the largest.
            let wish = number.min(*BLOCK_RANGE.end());
            if BLOCK_RANGE.contains(&wish) {
                self.blksize = self.blksize.or(u16::try_from(wish).ok());
            }
        } else if name.eq_ignore_ascii_case(b"tsize") {
            self.tsize = true;
        } else if name.eq_ignore_ascii_case(b"timeout") {
            let seconds = u8::try_from(number).ok().filter(|s| *s > 0);
            self.timeout = self.timeout.or(seconds);
        } else if name.eq_ignore_ascii_case(b"windowsize") {
            let blocks = u16::try_from(number).ok().filter(|w| *w > 0);
            self.windowsize = self.windowsize.or(blocks);
        }
    }
}

/// A name as it is looked up. Some ROMs read past option 67 and add its end mark, 0xff.
fn file_name(bytes: &[u8]) -> String {
    let mut end = bytes.len();
    while end > 0 && bytes[end - 1] == 0xff {
        end -= 1;
    }
    printable(&bytes[..end])
        .replace('\\', "/")
        .trim_start_matches('/')
        .to_owned()
}

/// Text that may go to a log or an error message: everything else becomes `?`.
fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|b| match b {
            b' '..=b'~' => char::from(*b),
            _ => '?',
        })
        .collect()
}

fn word(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*head), rest))
}

/// Writes DATA over `packet`; `block` wraps from 65535 to 0.
pub fn data(packet: &mut Vec<u8>, block: u16, bytes: &[u8]) {
    packet.clear();
    packet.extend_from_slice(&3_u16.to_be_bytes());
    packet.extend_from_slice(&block.to_be_bytes());
    packet.extend_from_slice(bytes);
}

/// ERROR.
#[must_use]
pub fn error(code: u16, message: &str) -> Vec<u8> {
    let mut packet = Vec::with_capacity(5 + message.len());
    packet.extend_from_slice(&5_u16.to_be_bytes());
    packet.extend_from_slice(&code.to_be_bytes());
    packet.extend(printable(message.as_bytes()).bytes());
    packet.push(0);
    packet
}

/// OACK with `options`; the size only when it was asked for.
#[must_use]
pub fn oack(options: &Options, size: u64) -> Vec<u8> {
    let mut packet = 6_u16.to_be_bytes().to_vec();
    let mut add = |name: &str, value: String| {
        packet.extend_from_slice(name.as_bytes());
        packet.push(0);
        packet.extend_from_slice(value.as_bytes());
        packet.push(0);
    };
    if let Some(blksize) = options.blksize {
        add("blksize", blksize.to_string());
    }
    if options.tsize {
        add("tsize", size.to_string());
    }
    if let Some(timeout) = options.timeout {
        add("timeout", timeout.to_string());
    }
    if let Some(windowsize) = options.windowsize {
        add("windowsize", windowsize.to_string());
    }
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(bytes: &[u8]) -> Request {
        let mut packet = vec![0, 1];
        packet.extend_from_slice(bytes);
        match Packet::parse(&packet) {
            Ok(Packet::Read(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_names_as_firmware_sends_them() {
        let table: [(&[u8], &str); 9] = [
            (b"snponly.efi\0octet\0", "snponly.efi"),
            (b"/snponly.efi\0octet\0", "snponly.efi"),
            (b"\\boot\\x.efi\0octet\0", "boot/x.efi"),
            (b"undionly.kpxe\xff\0octet\0", "undionly.kpxe"),
            (b"undionly.kpxe", "undionly.kpxe"),
            (b"undionly.kpxe\0", "undionly.kpxe"),
            (b"a\0OcTeT\0\0\0\0\0", "a"),
            (b"../../etc/passwd\0octet\0", "../../etc/passwd"),
            (b"a\nb\x80\0octet\0", "a?b?"),
        ];
        for (bytes, expected) in table {
            let request = request(bytes);
            assert_eq!(request.file, expected);
            assert_eq!(request.mode, Mode::Octet, "{expected}");
            assert_eq!(request.options, Options::default(), "{expected}");
        }
        assert_eq!(request(b"a\0NetASCII\0").mode, Mode::Netascii);
        assert_eq!(request(b"a\0mail\0").mode, Mode::Other);
    }

    #[test]
    fn reads_options_and_ignores_nonsense() {
        let all = request(
            b"a\0octet\0tsize\x000\0BLKSIZE\x001468\0windowsize\x004\0timeout\x003\0x\0y\0",
        );
        assert_eq!(
            all.options,
            Options {
                blksize: Some(1468),
                tsize: true,
                timeout: Some(3),
                windowsize: Some(4),
            }
        );
        let table: [(&[u8], Option<u16>); 8] = [
            (b"8", Some(8)),
            (b"7", None),
            (b"0", None),
            (b"abc", None),
            (b"-1", None),
            (b"65464", Some(65_464)),
            (b"70000", Some(65_464)),
            (b"", None),
        ];
        for (value, expected) in table {
            let mut bytes = b"a\0octet\0blksize\0".to_vec();
            bytes.extend_from_slice(value);
            assert_eq!(request(&bytes).options.blksize, expected, "{value:?}");
        }
        let none = request(b"a\0octet\0windowsize\x000\0timeout\x00256\0timeout\x000\0tsize\0");
        assert_eq!(none.options, Options::default());
    }

    #[test]
    fn tells_the_kinds_apart() {
        assert_eq!(Packet::parse(&[0, 4, 1, 2]), Ok(Packet::Ack(0x102)));
        assert_eq!(Packet::parse(&[0, 3, 0, 1]), Ok(Packet::Unexpected(3)));
        assert_eq!(Packet::parse(&[0, 4, 1]), Err(Malformed::Short));
        assert_eq!(Packet::parse(&[0]), Err(Malformed::Short));
        assert_eq!(Packet::parse(&[0, 9, 0]), Err(Malformed::Operation(9)));
        let error = error(code::OPTION, "User aborted the transfer");
        assert_eq!(
            Packet::parse(&error),
            Ok(Packet::Error {
                code: 8,
                message: "User aborted the transfer".into()
            })
        );
    }

    #[test]
    fn an_oack_says_only_what_was_asked() {
        let asked = Options {
            tsize: true,
            ..Options::default()
        };
        assert_eq!(oack(&asked, 284_672), b"\0\x06tsize\x00284672\0");
        let asked = Options {
            blksize: Some(1468),
            windowsize: Some(4),
            ..Options::default()
        };
        assert_eq!(oack(&asked, 1), b"\0\x06blksize\x001468\0windowsize\x004\0");
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(Packet::Read(request) | Packet::Write(request)) = Packet::parse(&bytes) {
                prop_assert!(!request.file.starts_with('/') && !request.file.contains('\\'));
                prop_assert!(request.file.bytes().all(|b| (b' '..=b'~').contains(&b)));
            }
        }
    }
}
