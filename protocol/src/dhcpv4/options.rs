//! Options as they were sent: raw bytes by code, long ones joined (RFC 3396).

use std::net::Ipv4Addr;

use super::code;

/// The options of one packet, in order of first appearance. Contents are raw: an accessor returns
/// `None` for an option that is absent or whose length is wrong for that reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    list: Vec<(u8, Vec<u8>)>,
}

impl Options {
    /// Walks one options field and adds what it finds. False when an option runs past the end.
    /// A missing END is accepted: real clients forget it.
    pub(super) fn collect(&mut self, mut field: &[u8]) -> bool {
        loop {
            match field {
                [] | [code::END, ..] => return true,
                [code::PAD, rest @ ..] => field = rest,
                [tag, length, rest @ ..] => {
                    let Some((data, rest)) = rest.split_at_checked(usize::from(*length)) else {
                        return false;
                    };
                    self.append(*tag, data);
                    field = rest;
                }
                [_] => return false,
            }
        }
    }

    /// The second piece of a split option continues the first.
    fn append(&mut self, tag: u8, data: &[u8]) {
        match self.list.iter_mut().find(|(known, _)| *known == tag) {
            Some((_, known)) => known.extend_from_slice(data),
            None => self.list.push((tag, data.to_vec())),
        }
    }

    /// Content of an option.
    #[must_use]
    pub fn get(&self, tag: u8) -> Option<&[u8]> {
        self.list
            .iter()
            .find(|(known, _)| *known == tag)
            .map(|(_, data)| data.as_slice())
    }

    /// All options in order of first appearance.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.list.iter().map(|(tag, data)| (*tag, data.as_slice()))
    }

    /// An option of one byte.
    #[must_use]
    pub fn u8(&self, tag: u8) -> Option<u8> {
        self.array(tag).map(|[byte]| byte)
    }

    /// An option of two bytes.
    #[must_use]
    pub fn u16(&self, tag: u8) -> Option<u16> {
        self.array(tag).map(u16::from_be_bytes)
    }

    /// An option of four bytes.
    #[must_use]
    pub fn u32(&self, tag: u8) -> Option<u32> {
        self.array(tag).map(u32::from_be_bytes)
    }

    /// An option that is one address.
    #[must_use]
    pub fn address(&self, tag: u8) -> Option<Ipv4Addr> {
        self.array::<4>(tag).map(Ipv4Addr::from)
    }

    /// An option that is a list of addresses; empty when absent or not a multiple of four bytes.
    #[must_use]
    pub fn addresses(&self, tag: u8) -> Vec<Ipv4Addr> {
        let (addresses, rest) = self.get(tag).unwrap_or_default().as_chunks::<4>();
        if !rest.is_empty() {
            return Vec::new();
        }
        addresses
            .iter()
            .map(|bytes| Ipv4Addr::from(*bytes))
            .collect()
    }

    /// Every architecture in option 93, which is a list; `None` when it is absent, empty or odd.
    #[must_use]
    pub fn architectures(&self) -> Option<Vec<u16>> {
        let (values, rest) = self.get(code::ARCHITECTURE)?.as_chunks::<2>();
        (rest.is_empty() && !values.is_empty()).then(|| {
            values
                .iter()
                .map(|bytes| u16::from_be_bytes(*bytes))
                .collect()
        })
    }

    fn array<const N: usize>(&self, tag: u8) -> Option<[u8; N]> {
        self.get(tag)?.try_into().ok()
    }
}

/// Content of one sub-option inside option 43, 82 or 175. The walk ends at a sub-option that runs
/// past the end.
#[must_use]
pub fn encapsulated(data: &[u8], tag: u8) -> Option<&[u8]> {
    let mut rest = data;
    loop {
        match rest {
            [] | [_] | [code::END, ..] => return None,
            [code::PAD, after @ ..] => rest = after,
            [found, length, after @ ..] => {
                let (content, after) = after.split_at_checked(usize::from(*length))?;
                if *found == tag {
                    return Some(content);
                }
                rest = after;
            }
        }
    }
}

/// Encodes sub-options for option 43, closed with END because some firmware wants it. Contents
/// longer than 255 bytes are cut: no sub-option we send comes near.
#[must_use]
pub fn encapsulated_end(items: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, content) in items {
        let length = u8::try_from(content.len()).unwrap_or(u8::MAX);
        bytes.extend_from_slice(&[*tag, length]);
        bytes.extend_from_slice(&content[..usize::from(length)]);
    }
    bytes.push(code::END);
    bytes
}

/// The user classes in option 77. RFC 3004 wants counted strings, iPXE and others send one bare
/// string: if the counts add up exactly they are counts, else the whole is one class.
#[must_use]
pub fn user_classes(data: &[u8]) -> Vec<&[u8]> {
    let mut classes = Vec::new();
    let mut rest = data;
    while let [length, after @ ..] = rest {
        match after.split_at_checked(usize::from(*length)) {
            Some((class, after)) if !class.is_empty() => {
                classes.push(class);
                rest = after;
            }
            _ => return vec![data],
        }
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(field: &[u8]) -> Options {
        let mut options = Options::default();
        assert!(options.collect(field));
        options
    }

    #[test]
    fn nonsense_in_one_option_does_not_hide_the_next() {
        // Host name that is not UTF-8, two TFTP addresses, an odd 93, then the class.
        let seen = options(&[
            12, 2, 0xff, 0xfe, 150, 8, 10, 0, 0, 1, 10, 0, 0, 2, 93, 3, 0, 7, 0, 60, 3, b'P', b'X',
            b'E', 255,
        ]);
        assert_eq!(seen.get(code::VENDOR_CLASS), Some(&b"PXE"[..]));
        assert_eq!(seen.addresses(code::TFTP_ADDRESSES).len(), 2);
        assert_eq!(seen.architectures(), None);
    }

    #[test]
    fn joins_split_options_in_order() {
        let seen = options(&[67, 2, b'a', b'b', 53, 1, 1, 67, 1, b'c', 255]);
        assert_eq!(seen.get(code::BOOT_FILE), Some(&b"abc"[..]));
        assert_eq!(seen.iter().count(), 2);
    }

    #[test]
    fn stops_at_the_end_and_accepts_its_absence() {
        assert_eq!(options(&[53, 1, 1]).u8(53), Some(1));
        assert_eq!(options(&[255, 53, 1, 1]).u8(53), None);
        assert_eq!(options(&[0, 0, 53, 1, 1, 0]).u8(53), Some(1));
    }

    #[test]
    fn says_when_an_option_runs_past_the_end() {
        for field in [&[53u8][..], &[53, 2, 1], &[53, 1, 1, 61, 255, 1]] {
            assert!(!Options::default().collect(field), "{field:?}");
        }
    }

    #[test]
    fn wrong_lengths_read_as_absent() {
        let seen = options(&[
            57, 1, 5, 54, 3, 1, 2, 3, 3, 5, 1, 2, 3, 4, 5, 53, 2, 1, 1, 93, 0,
        ]);
        assert_eq!(seen.u16(57), None);
        assert_eq!(seen.address(54), None);
        assert_eq!(seen.addresses(3), Vec::<Ipv4Addr>::new());
        assert_eq!(seen.u8(53), None);
        assert_eq!(seen.architectures(), None);
    }

    #[test]
    fn reads_every_architecture() {
        let seen = options(&[93, 4, 0x12, 0x34, 0, 7]);
        assert_eq!(seen.architectures(), Some(vec![0x1234, 7]));
    }

    #[test]
    fn reads_bare_and_counted_user_classes() {
        let cases: [(&[u8], Vec<&[u8]>); 6] = [
            (b"iPXE", vec![b"iPXE"]),
            (b"\x04iPXE", vec![b"iPXE"]),
            (b"\x04iPXE\x03lab", vec![b"iPXE", b"lab"]),
            (b"\x04iPXE\x09lab", vec![b"\x04iPXE\x09lab"]),
            (b"", vec![]),
            (b"\x00", vec![b"\x00"]),
        ];
        for (data, classes) in cases {
            assert_eq!(user_classes(data), classes, "{data:?}");
        }
    }

    #[test]
    fn finds_sub_options() {
        let data = [17, 1, 1, 0, 19, 2, 3, 4, 255, 20, 1, 1];
        assert_eq!(encapsulated(&data, 19), Some(&[3u8, 4][..]));
        assert_eq!(encapsulated(&data, 20), None);
        assert_eq!(encapsulated(&[19, 9, 1], 19), None);
        assert_eq!(encapsulated_end(&[(6, &[8])]), [6, 1, 8, 255]);
    }
}
