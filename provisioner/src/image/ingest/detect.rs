//! Which operating system is on a raw disk, as far as its partition table and the file's name
//! tell. Pure.
//!
//! Only what is sure is said: labels and type GUIDs that one family of systems uses. What is in
//! the file systems is not looked at.

use anneal_image::HEAD;
use anneal_image::gpt::{self, Entry, GptError, Header};

use super::IngestError;
use crate::render::family::canonical;

/// What was found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// Families that have such a disk, the most likely first; empty: it cannot be told.
    pub families: Vec<&'static str>,
    /// Version, from the file's name.
    pub version: Option<String>,
    /// Why nothing is known of the partitions, although there seems to be a table.
    pub problem: Option<String>,
}

/// The system to seal the image with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Family.
    pub os: String,
    /// Version.
    pub version: Option<String>,
}

/// Bytes from the beginning of a disk that its GPT takes, told by the first of them. None without
/// a GPT that can be used, and when it takes more than is looked at when the disk is sealed.
#[must_use]
pub fn reach(head: &[u8]) -> Option<usize> {
    let header = Header::first(head, gpt::sector_size(head)?).ok()?;
    let end = usize::try_from(header.place().end).ok()?;
    Some(end).filter(|end| *end <= HEAD)
}

fn partitions(head: &[u8]) -> Result<Vec<Entry>, GptError> {
    match gpt::sector_size(head) {
        Some(sector) => gpt::primary(head, sector),
        None => Ok(Vec::new()),
    }
}

/// Type of Bottlerocket's private partition.
const BOTTLEROCKET_PRIVATE: &str = "440408bb-eb0b-4328-a6e5-a29038fad706";

/// Tells the system from the beginning of the raw disk and the names that the file had.
#[must_use]
pub fn detect(head: &[u8], names: &[&str]) -> Detected {
    let (partitions, problem) = match partitions(head) {
        Ok(partitions) => (partitions, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let mut families = families(&partitions);
    // The same layout, another name: the file says which.
    let named = |family: &str| names.iter().any(|name| name.contains(family));
    if let Some(at) = families.iter().position(|family| named(family)) {
        families.swap(0, at);
    }
    let version = families
        .first()
        .and_then(|family| names.iter().find_map(|name| version(family, name)));
    Detected {
        families,
        version,
        problem,
    }
}

fn families(partitions: &[Entry]) -> Vec<&'static str> {
    let has = |label: &str| partitions.iter().any(|part| part.name == label);
    let begins = |prefix: &str| partitions.iter().any(|part| part.name.starts_with(prefix));
    let private = |part: &Entry| part.type_guid == BOTTLEROCKET_PRIVATE;
    if begins("BOTTLEROCKET-") || partitions.iter().any(private) {
        vec!["bottlerocket"]
    } else if has("USR-A") && has("OEM") {
        vec!["flatcar"]
    } else if has("META") && (has("STATE") || has("EFI")) {
        vec!["talos"]
    } else if begins("COS_") {
        vec!["kairos"]
    } else if has("boot") && has("root") && has("EFI-SYSTEM") {
        vec!["fcos", "rhcos", "scos"]
    } else {
        Vec::new()
    }
}

/// The version in a file name or URL of a system's publisher.
fn version(family: &str, name: &str) -> Option<String> {
    // A dotted number: at least one dot, digits first.
    let dotted = |part: &&str| {
        let digits = part.split('.').next().unwrap_or_default();
        !digits.is_empty()
            && digits.bytes().all(|c| c.is_ascii_digit())
            && part.contains('.')
            && part.bytes().all(|c| c.is_ascii_digit() || c == b'.')
    };
    let found = match family {
        // …/4230.2.1/flatcar_production_image.bin.bz2
        "flatcar" => name.split('/').rev().find(dotted),
        // …/v1.9.1/metal-amd64.raw.zst
        "talos" => name
            .split('/')
            .rev()
            .filter_map(|part| part.strip_prefix('v'))
            .find(|part| part.split('-').next().is_some_and(|word| dotted(&word))),
        // fedora-coreos-41.20250105.3.0-metal.x86_64.raw.xz
        "fcos" | "rhcos" | "scos" => name.rsplit('/').next()?.split('-').find(dotted),
        // bottlerocket-metal-k8s-1.29-x86_64-1.26.1-943d9a41.img.lz4
        "bottlerocket" => name.rsplit('/').next()?.split('-').rev().find(dotted),
        // kairos-opensuse-leap-15.6-core-amd64-generic-v3.2.1.raw
        "kairos" => name
            .rsplit('/')
            .next()?
            .trim_end_matches(".raw.gz")
            .trim_end_matches(".raw")
            .split('-')
            .filter_map(|part| part.strip_prefix('v'))
            .find(dotted),
        _ => None,
    };
    found
        .map(str::to_owned)
        .filter(|version| is_version(version))
}

/// Versions are short words.
#[must_use]
pub fn is_version(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_alphanumeric() || b"._-+~".contains(&c))
}

/// What was asked for and what was found, together.
///
/// # Errors
/// When neither says it, or they contradict each other and `force` is not set.
pub fn choose(
    asked: Option<&str>,
    asked_version: Option<&str>,
    force: bool,
    detected: &Detected,
    annotated_version: Option<&str>,
) -> Result<System, IngestError> {
    let found = detected.families.first().copied();
    let asked = asked.map(canonical);
    let os = match (asked, found) {
        (Some(asked), Some(found)) if !detected.families.contains(&asked) && !force => {
            return Err(IngestError::System(format!(
                "the disk's partitions are those of {found}, not of {asked}: leave `--os` out, or say `--force-os` if you know better"
            )));
        }
        (Some(asked), _) => asked,
        (None, Some(found)) => found,
        (None, None) => {
            let problem = detected.problem.as_ref();
            let why = problem.map(|problem| format!(" ({problem})"));
            return Err(IngestError::System(format!(
                "which operating system this is cannot be told from its partitions{}: say it with `--os`, for example `--os debian`",
                why.unwrap_or_default()
            )));
        }
    };
    // A version that was found speaks of the family that was found.
    let found_version = detected
        .version
        .as_deref()
        .filter(|_| detected.families.contains(&os));
    let version = asked_version
        .or(found_version)
        .or(annotated_version.filter(|version| is_version(version)));
    Ok(System {
        os: os.to_owned(),
        version: version.map(str::to_owned),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use anneal_image::gpt::crc32;

    use super::super::format::PEEK;
    use super::*;

    /// The head of a disk whose GPT has so many entries; these are used, by index.
    pub fn table(sector: usize, count: usize, labels: &[(usize, &str)]) -> Vec<u8> {
        let mut head = vec![0; 2 * sector + count * 128];
        for (index, label) in labels {
            let entry = &mut head[2 * sector + index * 128..][..128];
            entry[0] = 1;
            for (at, unit) in label.encode_utf16().enumerate() {
                entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
            }
        }
        let entries = crc32(&head[2 * sector..]);
        let header = &mut head[sector..sector + 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[24] = 1;
        header[72] = 2;
        header[80..84].copy_from_slice(&(count as u32).to_le_bytes());
        header[84] = 128;
        header[88..92].copy_from_slice(&entries.to_le_bytes());
        let checksum = crc32(header);
        header[16..20].copy_from_slice(&checksum.to_le_bytes());
        head
    }

    /// The usual one, with these labels.
    fn disk(labels: &[&str], sector: usize) -> Vec<u8> {
        let labels: Vec<_> = labels.iter().copied().enumerate().collect();
        table(sector, 128, &labels)
    }

    #[test]
    fn tells_systems_by_their_partitions_and_versions_by_the_name() {
        for (labels, name, os, version) in [
            (
                &[
                    "EFI-SYSTEM",
                    "BIOS-BOOT",
                    "USR-A",
                    "USR-B",
                    "ROOT-C",
                    "OEM",
                    "ROOT",
                ][..],
                "https://stable.release.flatcar-linux.net/amd64-usr/4230.2.1/flatcar_production_image.bin.bz2",
                Some("flatcar"),
                Some("4230.2.1"),
            ),
            (
                &["BIOS-BOOT", "EFI-SYSTEM", "boot", "root"],
                "fedora-coreos-41.20250105.3.0-metal.x86_64.raw.xz",
                Some("fcos"),
                Some("41.20250105.3.0"),
            ),
            (
                &["BIOS-BOOT", "EFI-SYSTEM", "boot", "root"],
                "rhcos-4.17.0-x86_64-metal.x86_64.raw.gz",
                Some("rhcos"),
                Some("4.17.0"),
            ),
            (
                &["EFI", "BIOS", "BOOT", "META"],
                "https://github.com/siderolabs/talos/releases/download/v1.9.1/metal-amd64.raw.zst",
                Some("talos"),
                Some("1.9.1"),
            ),
            (
                &[
                    "BIOS-BOOT",
                    "EFI-SYSTEM",
                    "BOTTLEROCKET-BOOT-A",
                    "BOTTLEROCKET-PRIVATE",
                ],
                "bottlerocket-metal-k8s-1.29-x86_64-1.26.1-943d9a41.img.lz4",
                Some("bottlerocket"),
                Some("1.26.1"),
            ),
            (
                &["COS_GRUB", "COS_OEM", "COS_RECOVERY"],
                "kairos-opensuse-leap-15.6-core-amd64-generic-v3.2.1.raw",
                Some("kairos"),
                Some("3.2.1"),
            ),
            (&["root", "EFI"], "debian-12.raw", None, None),
        ] {
            for sector in [512, 4096] {
                let detected = detect(&disk(labels, sector), &[name]);
                assert_eq!(detected.families.first().copied(), os, "{name}");
                assert_eq!(detected.version.as_deref(), version, "{name}");
            }
        }
        assert_eq!(detect(&[0; 100], &["x"]), Detected::default());
    }

    #[test]
    fn what_is_asked_for_must_not_contradict_the_disk() {
        let flatcar = Detected {
            families: vec!["flatcar"],
            version: Some("4230.2.1".to_owned()),
            problem: None,
        };
        let none = Detected::default();
        let system = choose(None, None, false, &flatcar, None).unwrap();
        assert_eq!(
            (system.os.as_str(), system.version.as_deref()),
            ("flatcar", Some("4230.2.1"))
        );
        let error = choose(Some("talos"), None, false, &flatcar, None).unwrap_err();
        assert!(
            error.to_string().contains("those of flatcar, not of talos"),
            "{error}"
        );
        let system = choose(Some("talos"), None, true, &flatcar, Some("1.9")).unwrap();
        assert_eq!(
            (system.os.as_str(), system.version.as_deref()),
            ("talos", Some("1.9"))
        );
        let error = choose(None, Some("1"), false, &none, None).unwrap_err();
        assert!(error.to_string().contains("`--os`"), "{error}");
        let system = choose(Some("debian"), Some("12"), false, &none, Some("11")).unwrap();
        assert_eq!(
            (system.os.as_str(), system.version.as_deref()),
            ("debian", Some("12"))
        );
    }

    #[test]
    fn bottlerocket_has_a_type_of_its_own() {
        let mut head = table(512, 4, &[]);
        // As it lies on a disk.
        let private = [
            0xbb, 0x08, 0x04, 0x44, 0x0b, 0xeb, 0x28, 0x43, 0xa6, 0xe5, 0xa2, 0x90, 0x38, 0xfa,
            0xd7, 0x06,
        ];
        head[1024..1040].copy_from_slice(&private);
        let entries = crc32(&head[1024..]);
        head[600..604].copy_from_slice(&entries.to_le_bytes());
        head[528..532].fill(0);
        let checksum = crc32(&head[512..604]);
        head[528..532].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(detect(&head, &[]).families, ["bottlerocket"]);
    }

    /// Labels far behind the usual 128 entries tell a system like others; those of a table that
    /// cannot be trusted tell none.
    #[test]
    fn all_of_the_table_counts_or_nothing() {
        for sector in [512, 4096] {
            let head = table(sector, 4096, &[(300, "USR-A"), (4095, "OEM")]);
            assert_eq!(detect(&head, &[]).families, ["flatcar"]);
            assert_eq!(reach(&head[..PEEK]), Some(head.len()));
            let told = |head: &[u8]| {
                let detected = detect(head, &[]);
                assert_eq!(detected.families, [""; 0]);
                choose(None, None, false, &detected, None)
                    .unwrap_err()
                    .to_string()
            };
            let error = told(&head[..PEEK]);
            assert!(error.contains("not in the first 65536 bytes"), "{error}");
            let mut damaged = head.clone();
            damaged[2 * sector + 56] ^= 1;
            let error = told(&damaged);
            assert!(error.contains("(gpt entries have a wrong"), "{error}");
            assert!(error.contains("`--os`"), "{error}");
            let error = told(&table(sector, 4097, &[(0, "USR-A"), (1, "OEM")]));
            assert!(error.contains("has 4097 entries"), "{error}");
        }
        for none in [&[0; 8192][..], &[0; 100], &[]] {
            assert_eq!(
                (reach(none), detect(none, &[])),
                (None, Detected::default())
            );
        }
    }
}
