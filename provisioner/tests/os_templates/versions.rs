//! What a system says of its version after it was installed, beside what was read from the name of
//! the file that it was installed from: the same image must never count as another.

use anneal_image::gpt::crc32;
use provisioner::image::ingest::detect::detect;
use provisioner::workflow::version::Other;
use serde_json::Value;

use super::scripts::{run_call_home, sent};
use super::{Family, case, folder};

const COREOS: &[&str] = &["BIOS-BOOT", "EFI-SYSTEM", "boot", "root"];
const FLATCAR: &[&str] = &["EFI-SYSTEM", "USR-A", "USR-B", "OEM", "ROOT"];
const BOTTLEROCKET: &[&str] = &["BOTTLEROCKET-BOOT-A", "BOTTLEROCKET-PRIVATE"];
const KAIROS: &[&str] = &["COS_GRUB", "COS_OEM", "COS_RECOVERY"];

/// An image as its publisher calls it, and the system in it.
struct Published {
    /// Folder of its golden files, which is its word.
    family: &'static str,
    /// Partitions of its disk.
    partitions: &'static [&'static str],
    /// Name of its file.
    file: &'static str,
    /// Its `/etc/os-release`.
    os_release: &'static str,
    /// Its `/etc/kairos-release`.
    kairos_release: Option<&'static str>,
    /// Version that it says; empty: none.
    says: &'static str,
}

const PUBLISHED: &[Published] = &[
    Published {
        family: "flatcar",
        partitions: FLATCAR,
        file: "https://stable.release.flatcar-linux.net/amd64-usr/4230.2.1/flatcar_production_image.bin.bz2",
        os_release: "NAME=\"Flatcar Container Linux by Kinvolk\"
ID=flatcar
ID_LIKE=coreos
VERSION=4230.2.1
VERSION_ID=4230.2.1
BUILD_ID=2025-07-15-1859
SYSEXT_LEVEL=1.0
PRETTY_NAME=\"Flatcar Container Linux by Kinvolk 4230.2.1 (Oklo)\"
",
        kairos_release: None,
        says: "4230.2.1",
    },
    Published {
        family: "fcos",
        partitions: COREOS,
        file: "fedora-coreos-41.20250105.3.0-metal.x86_64.raw.xz",
        os_release: "NAME=\"Fedora Linux\"
VERSION=\"41.20250105.3.0 (CoreOS)\"
ID=fedora
VERSION_ID=41
PRETTY_NAME=\"Fedora CoreOS 41.20250105.3.0\"
VARIANT_ID=coreos
OSTREE_VERSION='41.20250105.3.0'
",
        kairos_release: None,
        says: "41.20250105.3.0",
    },
    // By the name of the mirror, before 4.19, and since.
    Published {
        family: "rhcos",
        partitions: COREOS,
        file: "rhcos-4.17.0-x86_64-metal.x86_64.raw.gz",
        os_release: RHCOS_4_17,
        kairos_release: None,
        says: "",
    },
    Published {
        family: "rhcos",
        partitions: COREOS,
        file: "rhcos-417.94.202407010929-0-metal.x86_64.raw.gz",
        os_release: RHCOS_4_17,
        kairos_release: None,
        says: "",
    },
    Published {
        family: "rhcos",
        partitions: COREOS,
        file: "rhcos-9.6.20250523-0-metal.x86_64.raw.gz",
        os_release: "NAME=\"Red Hat Enterprise Linux CoreOS\"
ID=\"rhel\"
VERSION=\"9.6.20250611-0 (Plow)\"
VERSION_ID=\"9.6\"
PRETTY_NAME=\"Red Hat Enterprise Linux CoreOS 9.6.20250611-0 (Plow)\"
OPENSHIFT_VERSION=\"4.19\"
OSTREE_VERSION='9.6.20250611-0'
",
        kairos_release: None,
        says: "",
    },
    // The host container that calls home is an Amazon Linux.
    Published {
        family: "bottlerocket",
        partitions: BOTTLEROCKET,
        file: "bottlerocket-metal-k8s-1.29-x86_64-1.26.1-943d9a41.img.lz4",
        os_release: "NAME=\"Amazon Linux\"
VERSION=\"2\"
ID=\"amzn\"
VERSION_ID=\"2\"
PRETTY_NAME=\"Amazon Linux 2\"
",
        kairos_release: None,
        says: "",
    },
    // Kairos without Kubernetes, as kairos-init makes it; with it, as before kairos-init.
    Published {
        family: "kairos",
        partitions: KAIROS,
        file: "kairos-ubuntu-24.04-core-amd64-generic-v3.2.1.raw",
        os_release: UBUNTU,
        kairos_release: Some(
            "KAIROS_FLAVOR_RELEASE=\"24.04\"
KAIROS_ID=\"kairos\"
KAIROS_RELEASE=\"v3.2.1\"
KAIROS_VERSION=\"v3.2.1\"
",
        ),
        says: "3.2.1",
    },
    Published {
        family: "kairos",
        partitions: KAIROS,
        file: "kairos-ubuntu-24.04-standard-amd64-generic-v3.2.4-k3sv1.32.0+k3s1.raw",
        os_release: UBUNTU,
        kairos_release: Some(
            "KAIROS_SOFTWARE_VERSION=\"v1.32.0+k3s1\"
KAIROS_RELEASE=\"v3.2.4\"
KAIROS_VERSION=\"v3.2.4-v1.32.0-k3s1\"
",
        ),
        says: "3.2.4-v1.32.0-k3s1",
    },
    // One that does not say: its base's version is not its own.
    Published {
        family: "kairos",
        partitions: KAIROS,
        file: "kairos-ubuntu-24.04-core-amd64-generic-v3.2.1.raw",
        os_release: UBUNTU,
        kairos_release: None,
        says: "",
    },
];

const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04.1 LTS\"
NAME=\"Ubuntu\"
VERSION_ID=\"24.04\"
VERSION=\"24.04.1 LTS (Noble Numbat)\"
ID=ubuntu
IMAGE_VERSION=\"20260101\"
";

/// As the cluster's own release is, which the node starts before it joins.
const RHCOS_4_17: &str = "NAME=\"Red Hat Enterprise Linux CoreOS\"
ID=\"rhcos\"
VERSION=\"417.94.202411201839-0\"
VERSION_ID=\"4.17\"
PRETTY_NAME=\"Red Hat Enterprise Linux CoreOS 417.94.202411201839-0\"
OPENSHIFT_VERSION=\"4.17\"
RHEL_VERSION=\"9.4\"
OSTREE_VERSION=\"417.94.202411201839-0\"
";

/// The head of a disk with these partitions.
fn disk(labels: &[&str]) -> Vec<u8> {
    const ENTRIES: usize = 1024;
    let mut head = vec![0; 64 << 10];
    for (index, label) in labels.iter().enumerate() {
        let entry = &mut head[ENTRIES + index * 128..][..128];
        entry[0] = 1;
        for (at, unit) in label.encode_utf16().enumerate() {
            entry[56 + 2 * at..58 + 2 * at].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let entries = crc32(&head[ENTRIES..ENTRIES + 128 * 128]);
    let header = &mut head[512..512 + 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12] = 92;
    // Where it lies and its entries, how many of them, and how long each is.
    header[24] = 1;
    header[72] = 2;
    header[80] = 128;
    header[84] = 128;
    header[88..92].copy_from_slice(&entries.to_le_bytes());
    let checksum = crc32(header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    head
}

/// What a machine with these files in its `/etc` says when it calls home.
fn said(family: &str, os_release: &str, kairos_release: Option<&str>) -> Value {
    let mut files = vec![("os-release", os_release), ("machine-id", "00ff\n")];
    files.extend(kairos_release.map(|text| ("kairos-release", text)));
    let etc = folder(&files);
    let case = case(Family::of(family), "worker", "dhcp");
    let etc = etc.path().to_str().unwrap();
    let (dir, output) = run_call_home(&case, etc, "echo 204", None);
    assert!(output.status.success(), "{output:?}");
    sent(dir.path())
}

#[test]
fn what_was_installed_is_what_runs() {
    for published in PUBLISHED {
        let file = published.file;
        let found = detect(&disk(published.partitions), &[file]);
        assert_eq!(found.families.first(), Some(&published.family), "{file}");
        let said = said(
            published.family,
            published.os_release,
            published.kairos_release,
        );
        assert_eq!(said["version"], published.says, "{file}");
        assert_eq!(said["image_version"], "", "{file}");
        let mut image = case(Family::of(published.family), "worker", "dhcp").image();
        image.os_version = found.version;
        assert!(image.os_version.is_some(), "{file}");
        assert_eq!(Other::of(&said, &image), None, "{file}");
        // Another one is noticed by those that say what they are.
        image.os_version = Some("0.9.0".to_owned());
        let noticed = Other::of(&said, &image).is_some();
        assert_eq!(noticed, !published.says.is_empty(), "{file}");
    }
}

/// Whose files do not say a version, with what people say for them.
#[test]
fn what_people_say_of_a_release_is_what_runs() {
    let debian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"
NAME=\"Debian GNU/Linux\"
VERSION_ID=\"12\"
IMAGE_ID=\"debian-12-generic\"
IMAGE_VERSION=\"20261115-2293\"
";
    let fedora = "NAME=\"Fedora Linux\"\nVERSION_ID=43\nOSTREE_VERSION='43.20261105.0'\n";
    let ubuntu = &UBUNTU[..UBUNTU.find("IMAGE_VERSION").unwrap()];
    for (family, os_release, asked, same) in [
        ("ubuntu", ubuntu, "24.04", true),
        ("ubuntu", ubuntu, "24.04.1", true),
        ("ubuntu", ubuntu, "22.04", false),
        ("debian", debian, "12", true),
        ("debian", debian, "20261115-2293", true),
        ("debian", debian, "13", false),
        ("bootc", fedora, "43", true),
        ("bootc", fedora, "43.20261105.0", true),
        ("bootc", fedora, "42", false),
        ("rauc", debian, "20261115-2293", true),
        ("rauc", debian, "20261115-2294", false),
    ] {
        let said = said(family, os_release, None);
        let mut image = case(Family::of(family), "worker", "dhcp").image();
        image.os_version = Some(asked.to_owned());
        assert_eq!(
            Other::of(&said, &image).is_none(),
            same,
            "{family} {asked}: {said}"
        );
    }
}

#[test]
fn kairos_is_named_beside_what_is_below_it() {
    let said = said("kairos", UBUNTU, Some("KAIROS_VERSION=\"v4.2.0\"\n"));
    assert_eq!(said["os"], "Ubuntu 24.04.1 LTS, Kairos v4.2.0");
}
