//! What this process was told at its start: switches (tests) and the kernel command line.
//!
//! Pure but for [`kernel_cmdline`]. As PID 1 there are no switches.

use std::path::PathBuf;

use crate::io::memory;

/// How to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The process is PID 1 of the netboot environment: it owns the machine.
    pub pid1: bool,
    /// Used in place of `/proc/cmdline`.
    pub cmdline: Option<String>,
    /// Leave network and clock as they are.
    pub no_net: bool,
    /// Run by `sh -c` where PID 1 would leave the agent; `ANNEAL_LEAVE` is `reboot`, `kexec` or
    /// `power-off`. Without it a process other than PID 1 refuses to leave.
    pub reboot_command: Option<String>,
    /// Loop devices that count as disks; no other ever does.
    pub allow_loop: Vec<PathBuf>,
}

const USAGE: &str = "usage: anneal-agent [--cmdline TEXT] [--no-net] [--reboot-command COMMAND] [--allow-loop /dev/loopN]...

       anneal-agent write --help

Runs as PID 1 of anneal's netboot environment. The switches are for tests:
  --cmdline TEXT            use TEXT in place of /proc/cmdline
  --no-net                  leave network and clock alone
  --reboot-command COMMAND  run COMMAND instead of rebooting, switching off or kexec
  --allow-loop /dev/loopN   treat this loop device as a disk (may be repeated)";

impl Options {
    /// As the kernel starts it.
    #[must_use]
    pub fn pid1() -> Self {
        Self {
            pid1: true,
            ..Self::default()
        }
    }

    /// Reads the switches. `None`: help was asked for and printed.
    ///
    /// # Errors
    /// Names the switch that is unknown or lacks its value.
    pub fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<Self>> {
        let mut options = Self::default();
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .ok_or_else(|| anyhow::anyhow!("{arg} needs a value\n{USAGE}"))
            };
            match arg.as_str() {
                "--cmdline" => options.cmdline = Some(value()?),
                "--no-net" => options.no_net = true,
                "--reboot-command" => options.reboot_command = Some(value()?),
                "--allow-loop" => options.allow_loop.push(loop_device(&value()?)?),
                "--help" | "-h" => {
                    println!("{USAGE}");
                    return Ok(None);
                }
                _ => anyhow::bail!("unknown argument {arg}\n{USAGE}"),
            }
        }
        Ok(Some(options))
    }
}

fn loop_device(path: &str) -> anyhow::Result<PathBuf> {
    let number = path.strip_prefix("/dev/loop").unwrap_or_default();
    anyhow::ensure!(
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()),
        "--allow-loop {path}: expected /dev/loopN"
    );
    Ok(PathBuf::from(path))
}

/// The text of the kernel command line.
///
/// # Errors
/// When `/proc/cmdline` cannot be read.
pub fn kernel_cmdline(options: &Options) -> std::io::Result<String> {
    match &options.cmdline {
        Some(text) => Ok(text.clone()),
        None => std::fs::read_to_string("/proc/cmdline"),
    }
}

/// Most memory for an image on its way: `anneal.memory=`, in MiB, or the default. In bytes.
///
/// # Errors
/// When the value is no number of MiB.
pub fn memory_limit(cmdline: &str) -> anyhow::Result<u64> {
    let words = cmdline.split_ascii_whitespace();
    let Some(value) = words
        .filter_map(|word| word.strip_prefix("anneal.memory="))
        .next_back()
    else {
        return Ok(memory::DEFAULT_LIMIT);
    };
    let mib: u32 = value.parse().map_err(|_| {
        anyhow::anyhow!("kernel command line has anneal.memory={value}, expected MiB")
    })?;
    Ok(u64::from(mib) << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> anyhow::Result<Option<Options>> {
        Options::parse(args.iter().map(|a| (*a).to_owned()))
    }

    #[test]
    fn reads_every_switch() {
        let options = parse(&[
            "--cmdline",
            "anneal.run=1 quiet",
            "--no-net",
            "--reboot-command",
            "true",
            "--allow-loop",
            "/dev/loop7",
            "--allow-loop",
            "/dev/loop12",
        ])
        .unwrap()
        .unwrap();
        assert_eq!(
            options,
            Options {
                pid1: false,
                cmdline: Some("anneal.run=1 quiet".into()),
                no_net: true,
                reboot_command: Some("true".into()),
                allow_loop: vec!["/dev/loop7".into(), "/dev/loop12".into()],
            }
        );
    }

    #[test]
    fn reads_the_memory_limit() {
        assert_eq!(memory_limit("quiet").unwrap(), memory::DEFAULT_LIMIT);
        assert_eq!(memory_limit("anneal.memory=64 quiet").unwrap(), 64 << 20);
        let error = memory_limit("anneal.memory=64M").unwrap_err().to_string();
        assert!(error.contains("anneal.memory=64M"), "{error}");
    }

    #[test]
    fn refuses_what_is_not_a_loop_device() {
        for path in [
            "/dev/sda",
            "/dev/loop",
            "loop1",
            "/dev/loop1p1",
            "/dev/loop/../sda",
        ] {
            let error = parse(&["--allow-loop", path]).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }

    #[test]
    fn names_the_unknown_switch_and_the_missing_value() {
        assert!(
            parse(&["--frob"])
                .unwrap_err()
                .to_string()
                .contains("--frob")
        );
        assert!(
            parse(&["--cmdline"])
                .unwrap_err()
                .to_string()
                .contains("--cmdline needs a value")
        );
    }
}
