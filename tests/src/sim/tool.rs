//! External programs: where they are, which Debian package has them, and running one to its end.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::Context;

/// Programs the simulator starts, and the package that has each.
const PACKAGES: &[(&str, &str)] = &[
    ("bash", "bash"),
    ("blockdev", "util-linux"),
    ("bmaptool", "bmap-tools"),
    ("casync", "casync"),
    ("cmp", "diffutils"),
    ("curl", "curl"),
    ("dd", "coreutils"),
    ("debugfs", "e2fsprogs"),
    ("dnsmasq", "dnsmasq-base"),
    ("docker-registry", "docker-registry"),
    ("e2fsck", "e2fsprogs"),
    ("gpg", "gpg"),
    ("gpgconf", "gpgconf"),
    ("ip", "iproute2"),
    ("libvirtd", "libvirt-daemon-system"),
    ("losetup", "mount"),
    ("mcopy", "mtools"),
    ("mdir", "mtools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("qemu-img", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("sfdisk", "fdisk"),
    ("sgdisk", "gdisk"),
    ("sha256sum", "coreutils"),
    ("tc", "iproute2"),
    ("timeout", "coreutils"),
    ("unshare", "util-linux"),
    ("virsh", "libvirt-clients"),
    ("xargs", "findutils"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Path of a program.
///
/// # Errors
/// Names the Debian package to install.
pub fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| {
            let package = PACKAGES
                .iter()
                .find(|(program, _)| *program == name)
                .map_or(name, |(_, package)| package);
            format!("{name} is missing: run `make setup`, or install the package {package}")
        })
}

/// A command for a program, without standard input.
///
/// # Errors
/// As [`find`].
pub fn command(name: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(find(name)?);
    command.stdin(Stdio::null());
    Ok(command)
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started or fails: names the command and what it printed.
pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    let rendered = render(command);
    let output = command
        .output()
        .with_context(|| format!("starting {rendered}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{rendered}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(output)
}

/// A command as one would type it.
#[must_use]
pub fn render(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_package_of_a_missing_program() {
        let error = find("no-such-program").unwrap_err().to_string();
        assert!(
            error.contains("install the package no-such-program"),
            "{error}"
        );
    }

    #[test]
    fn reports_what_a_failed_command_printed() {
        let mut command = command("sh").unwrap();
        command.args(["-c", "echo broken >&2; exit 3"]);
        let error = run(&mut command).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("broken"),
            "{error}"
        );
    }
}
