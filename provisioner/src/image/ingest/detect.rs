//! Which operating system is on a raw disk, as far as its partition table and the file's name
//! tell. Pure.
//!
//! Only what is sure is said: labels and type GUIDs that one family of systems uses. What is in
//! the file systems is not looked at.

use super::IngestError;
use crate::render::family::canonical;

/// A GPT partition: as much as telling systems apart needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its name.
    pub label: String,
    /// Its type, as in the table (mixed endian).
    pub kind: [u8; 16],
}

/// What was found out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detected {
    /// Families that have such a disk, the most likely first; empty: it cannot be told.
    pub families: Vec<&'static str>,
    /// Version, from the file's name.
    pub version: Option<String>,
}

/// The system to seal the image with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// Family.
    pub os: String,
    /// Version.
    pub version: Option<String>,
}

/// How many bytes a disk that begins like this has, by its GPT: the backup header is in the
/// last sector (UEFI 2.10, section 5.3.2). None without a GPT.
#[must_use]
pub fn table_end(head: &[u8]) -> Option<u64> {
    let (header, sector) = header(head)?;
    let backup = le64(header, 32)?;
    backup.checked_add(1)?.checked_mul(sector as u64)
}

fn header(head: &[u8]) -> Option<(&[u8], usize)> {
    [512_usize, 4096].into_iter().find_map(|sector| {
        let header = head.get(sector..sector + 92)?;
        header.starts_with(b"EFI PART").then_some((header, sector))
    })
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn le32(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

/// The partitions of a GPT, as far as `head` reaches.
#[must_use]
pub fn partitions(head: &[u8]) -> Vec<Partition> {
    let table = || {
        let (header, sector) = header(head)?;
        let start = usize::try_from(le64(header, 72)?)
            .ok()?
            .checked_mul(sector)?;
        let (count, size) = (le32(header, 80)?.min(256), le32(header, 84)?);
        (128..=4096).contains(&size).then_some((start, count, size))
    };
    let Some((start, count, size)) = table() else {
        return Vec::new();
    };
    head.get(start..)
        .unwrap_or_default()
        .chunks_exact(size)
        .take(count)
        .filter_map(|entry| {
            let kind: [u8; 16] = entry[..16].try_into().ok()?;
            let units: Vec<u16> = entry[56..128]
                .chunks_exact(2)
                .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
                .take_while(|unit| *unit != 0)
                .collect();
            let label = String::from_utf16_lossy(&units);
            (kind != [0; 16]).then_some(Partition { label, kind })
        })
        .collect()
}

/// Bottlerocket's private partition, 440408bb-eb0b-4328-a6e5-a29038fad706 as it lies on disk.
const BOTTLEROCKET_PRIVATE: [u8; 16] = [
    0xbb, 0x08, 0x04, 0x44, 0x0b, 0xeb, 0x28, 0x43, 0xa6, 0xe5, 0xa2, 0x90, 0x38, 0xfa, 0xd7, 0x06,
];

/// Tells the system from the beginning of the raw disk and the names that the file had.
#[must_use]
pub fn detect(head: &[u8], names: &[&str]) -> Detected {
    let mut families = families(&partitions(head));
    // The same layout, another name: the file says which.
    let named = |family: &str| names.iter().any(|name| name.contains(family));
    if let Some(at) = families.iter().position(|family| named(family)) {
        families.swap(0, at);
    }
    let version = families
        .first()
        .and_then(|family| names.iter().find_map(|name| version(family, name)));
    Detected { families, version }
}

fn families(partitions: &[Partition]) -> Vec<&'static str> {
    let has = |label: &str| partitions.iter().any(|part| part.label == label);
    let begins = |prefix: &str| partitions.iter().any(|part| part.label.starts_with(prefix));
    let private = |part: &Partition| part.kind == BOTTLEROCKET_PRIVATE;
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
            return Err(IngestError::System(
                "which operating system this is cannot be told from its partitions: say it with `--os`, for example `--os debian`".to_owned(),
            ));
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
mod tests {
    use super::*;

    /// The head of a disk with a GPT of these labels.
    fn disk(labels: &[&str], sector: usize) -> Vec<u8> {
        let mut head = vec![0; 64 << 10];
        head[sector..sector + 8].copy_from_slice(b"EFI PART");
        head[sector + 32..sector + 40].copy_from_slice(&999_u64.to_le_bytes());
        head[sector + 72..sector + 80].copy_from_slice(&2_u64.to_le_bytes());
        head[sector + 80..sector + 84].copy_from_slice(&128_u32.to_le_bytes());
        head[sector + 84..sector + 88].copy_from_slice(&128_u32.to_le_bytes());
        for (index, label) in labels.iter().enumerate() {
            let entry = &mut head[2 * sector + index * 128..][..128];
            entry[0] = 1;
            for (at, unit) in label.encode_utf16().enumerate() {
                entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
            }
        }
        head
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
    fn knows_how_long_a_gpt_disk_is() {
        for sector in [512_usize, 4096] {
            let mut head = disk(&[], sector);
            assert_eq!(table_end(&head), Some(1000 * sector as u64));
            head[sector + 32..sector + 40].copy_from_slice(&u64::MAX.to_le_bytes());
            assert_eq!(table_end(&head), None);
        }
        assert_eq!(table_end(&[0; 8192]), None);
        assert_eq!(table_end(&[0; 100]), None);
    }
}
