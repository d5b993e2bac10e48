//! An image of the shape of Fedora CoreOS: its four partitions, and on `boot` what its installer
//! looks for and what it must leave alone.

use std::path::{Path, PathBuf};

use anneal_tests::sim::tool;
use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

pub const MIB: u64 = 1 << 20;
/// Size of the image.
pub const SIZE: u64 = 80 * MIB;
/// Where the boot partition begins, and how long it is.
pub const BOOT: (u64, u64) = (10 * MIB, 32 * MIB);

const BIOS: u64 = MIB;
const EFI: (u64, u64) = (2 * MIB, 8 * MIB);
const ROOT: (u64, u64) = (42 * MIB, 37 * MIB);
const KERNEL: &str = "ostree/fedora-coreos-5cbb/vmlinuz-6.17.1-300.fc43.x86_64";
const INITRAMFS: &str = "ostree/fedora-coreos-5cbb/initramfs-6.17.1-300.fc43.x86_64.img";

/// The entry, below `boot`. `loader` is a link, as ostree has it.
pub const ENTRY: &str = "loader.1/entries/ostree-1.conf";
/// Its arguments as they are in the image.
pub const OPTIONS: &str = "options $ignition_firstboot ignition.platform.id=metal mitigations=auto,nosmt \
     ostree=/ostree/boot.1/fedora-coreos/5cbb/0";

const GRUB: &str = "\
set pager=1
# CONSOLE-SETTINGS-START
# CONSOLE-SETTINGS-END
search --label boot --set boot --no-floppy
set root=$boot
if [ -f /ignition.firstboot ]; then
    set ignition_network_kcmdline=''
    source /ignition.firstboot
    set ignition_firstboot=\"ignition.firstboot ${ignition_network_kcmdline}\"
fi
blscfg
";

/// Noise of its own for each name: what does not compress, and is nowhere twice.
fn noise(name: &str, bytes: u64) -> Vec<u8> {
    let mut block = Sha256::digest(name);
    let mut noise = Vec::new();
    while (noise.len() as u64) < bytes {
        noise.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    noise
}

/// A file system in a file, made of a folder.
fn file_system(file: &Path, bytes: u64, label: &str, folder: &Path) -> anyhow::Result<()> {
    std::fs::File::create(file)?.set_len(bytes)?;
    let mut mkfs = tool::command("mkfs.ext4")?;
    mkfs.args(["-q", "-L", label, "-d"]).arg(folder).arg(file);
    tool::run(&mut mkfs).map(drop)
}

fn boot(work: &Path) -> anyhow::Result<PathBuf> {
    let (folder, file) = (work.join("boot"), work.join("boot.ext4"));
    let put = |path: &str, contents: &[u8]| -> anyhow::Result<PathBuf> {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().context("a folder")?)?;
        std::fs::write(&path, contents)?;
        Ok(path)
    };
    put("grub2/grub.cfg", GRUB.as_bytes())?;
    put(KERNEL, &noise("kernel", 3 * MIB))?;
    put(INITRAMFS, &noise("initramfs", 2 * MIB))?;
    let entry = format!(
        "title Fedora CoreOS 43.20261101.3.0 (ostree:0)\nversion 1\n{OPTIONS}\nlinux /{KERNEL}\ninitrd /{INITRAMFS}\n"
    );
    std::os::unix::fs::symlink("loader.1", folder.join("loader"))?;
    // Labels as SELinux of the installed system wants them.
    for labelled in [
        put(ENTRY, entry.as_bytes())?,
        put("ignition.firstboot", b"")?,
    ] {
        let label = b"system_u:object_r:boot_t:s0\0";
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&labelled, super::LABEL, label, flags)?;
    }
    file_system(&file, BOOT.1, "boot", &folder)?;
    Ok(file)
}

fn root(work: &Path) -> anyhow::Result<PathBuf> {
    let (folder, file) = (work.join("root"), work.join("root.ext4"));
    let deploy = folder.join("ostree/deploy/fedora-coreos");
    std::fs::create_dir_all(&deploy)?;
    std::fs::write(deploy.join("object"), noise("root", 4 * MIB))?;
    file_system(&file, ROOT.1, "root", &folder)?;
    Ok(file)
}

fn efi(work: &Path) -> anyhow::Result<PathBuf> {
    let (loader, file) = (work.join("BOOTX64.EFI"), work.join("efi.vfat"));
    std::fs::write(&loader, noise("loader", MIB))?;
    std::fs::File::create(&file)?.set_len(EFI.1)?;
    let mut mkfs = tool::command("mkfs.vfat")?;
    tool::run(mkfs.args(["-n", "EFI-SYSTEM"]).arg(&file))?;
    let mut mcopy = tool::command("mcopy")?;
    tool::run(mcopy.arg("-i").arg(&file).arg(&loader).arg("::/"))?;
    Ok(file)
}

/// Makes the image, and compresses it as Fedora does: the raw file and the one of xz.
pub fn make(work: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    use std::os::unix::fs::FileExt as _;
    let raw = work.join("fedora-coreos-43.20261101.3.0-metal.x86_64.raw");
    let file = std::fs::File::create_new(&raw)?;
    file.set_len(SIZE)?;
    let mut sgdisk = tool::command("sgdisk")?;
    sgdisk
        .args(["-n1:1M:+1M", "-t1:EF02", "-c1:BIOS-BOOT"])
        .args(["-n2:2M:+8M", "-t2:EF00", "-c2:EFI-SYSTEM"])
        .args(["-n3:10M:+32M", "-t3:8300", "-c3:boot"])
        .args(["-n4:42M:+37M", "-t4:8304", "-c4:root"])
        .arg(&raw);
    tool::run(&mut sgdisk)?;
    // The boot loader of BIOS machines: what the MBR holds, and the partition it starts.
    file.write_all_at(&noise("mbr", 440)[..440], 0)?;
    file.write_all_at(&noise("bios", 200_000), BIOS)?;
    for (made, at) in [
        (efi(work)?, EFI.0),
        (boot(work)?, BOOT.0),
        (root(work)?, ROOT.0),
    ] {
        file.write_all_at(&std::fs::read(made)?, at)?;
    }
    let mut xz = tool::command("xz")?;
    tool::run(xz.args(["-0", "--keep"]).arg(&raw))?;
    let packed = raw.with_extension("raw.xz");
    Ok((raw, packed))
}
