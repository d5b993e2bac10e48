//! Ways out of the agent: restart, switch off, or straight into another kernel.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use anneal_protocol::agent::{FailureCode, StepFailure};
use rustix::system::{RebootCommand, reboot};

use crate::cmdline::Options;
use crate::step::fail;

/// How to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Through the firmware.
    Reboot,
    /// Into the kernel that [`load`] has loaded.
    Kexec,
    /// Power off.
    PowerOff,
}

impl Departure {
    fn word(self) -> &'static str {
        match self {
            Self::Reboot => "reboot",
            Self::Kexec => "kexec",
            Self::PowerOff => "power-off",
        }
    }
}

/// Whether this process may leave at all: asked before the daemon is told that it will.
///
/// # Errors
/// An ordinary process has no machine to restart.
pub fn allowed(options: &Options) -> Result<(), StepFailure> {
    if options.pid1 || options.reboot_command.is_some() {
        return Ok(());
    }
    Err(fail(
        FailureCode::BadOrder,
        "the agent is not PID 1 and has no --reboot-command: it does not restart this machine",
    ))
}

/// Leaves. As PID 1 this does not return.
///
/// # Errors
/// When the kernel or the command refuses.
pub fn leave(options: &Options, departure: Departure) -> anyhow::Result<()> {
    if let Some(command) = &options.reboot_command {
        let status = Command::new("sh")
            .args(["-c", command])
            .env("ANNEAL_LEAVE", departure.word())
            .status()?;
        anyhow::ensure!(status.success(), "--reboot-command ended with {status}");
        return Ok(());
    }
    anyhow::ensure!(options.pid1, "not PID 1: this machine is left alone");
    rustix::fs::sync();
    eprintln!("leaving: {}", departure.word());
    let command = match departure {
        Departure::Reboot => RebootCommand::Restart,
        Departure::Kexec => RebootCommand::Kexec,
        Departure::PowerOff => RebootCommand::PowerOff,
    };
    reboot(command).map_err(|e| anyhow::anyhow!("the kernel refuses to {}: {e}", departure.word()))
}

/// Loads a kernel to be started by [`Departure::Kexec`] (kexec_file_load(2)). `name` is what people call it.
///
/// # Errors
/// When the running kernel refuses it, with what to do: wrong format, or unsigned under lockdown.
pub fn load(
    name: &str,
    kernel: &File,
    initramfs: Option<&File>,
    cmdline: &str,
) -> Result<(), StepFailure> {
    /// `KEXEC_FILE_NO_INITRAMFS`.
    const NO_INITRAMFS: libc::c_ulong = 4;
    let line = std::ffi::CString::new(cmdline).map_err(|_| {
        fail(
            FailureCode::BadOrder,
            "the kernel command line holds a zero byte",
        )
    })?;
    let bytes = line.as_bytes_with_nul();
    let (initramfs, flags) = match initramfs {
        Some(file) => (file.as_raw_fd(), 0),
        None => (-1, NO_INITRAMFS),
    };
    // SAFETY: the descriptors are open and the text outlives the call; the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initramfs,
            bytes.len(),
            bytes.as_ptr(),
            flags,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(refused(name, bytes.len(), &error))
}

/// Why the running kernel does not load `name`, and what to do about it.
fn refused(name: &str, cmdline_bytes: usize, error: &std::io::Error) -> StepFailure {
    let advice = match error.raw_os_error() {
        Some(libc::ENOEXEC) => {
            ": it is no kernel that this one can start; `kernel` must be a bzImage or Image for this processor, and a unified kernel image (.efi) is none".to_owned()
        }
        Some(libc::EPERM) => {
            ": the agent's kernel is locked down, as it is under Secure Boot, and starts only kernels that are signed for it, or kexec is switched off there; switch Secure Boot off, or use `reboot` in place of `kexec`".to_owned()
        }
        Some(libc::ENODATA | libc::ENOKEY | libc::EKEYREJECTED | libc::EBADMSG) => {
            ": the agent's kernel starts only kernels whose signature it knows; use `reboot` in place of `kexec`".to_owned()
        }
        Some(libc::EINVAL) => format!(
            ": kernel or initramfs is empty or no file, or `cmdline` is longer than that kernel takes (it has {cmdline_bytes} bytes)"
        ),
        Some(libc::ENOSYS) => {
            ": the agent's kernel was built without CONFIG_KEXEC_FILE; boot the agent with another, or use `reboot` in place of `kexec`".to_owned()
        }
        Some(libc::ENOMEM | libc::EADDRNOTAVAIL) => {
            ": there is no room in memory for kernel and initramfs beside the agent".to_owned()
        }
        _ => String::new(),
    };
    fail(
        FailureCode::Kexec,
        format!("cannot load {name} ({error}){advice}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_process_leaves_nothing() {
        let options = Options::default();
        assert_eq!(allowed(&options).unwrap_err().code, FailureCode::BadOrder);
        assert!(leave(&options, Departure::PowerOff).is_err());
    }

    #[test]
    fn the_command_learns_how() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("how");
        let options = Options {
            reboot_command: Some(format!("printf %s $ANNEAL_LEAVE > {}", file.display())),
            ..Options::default()
        };
        allowed(&options).unwrap();
        leave(&options, Departure::Kexec).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "kexec");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let failure = load("/vmlinuz on vda2", &file, None, "quiet").unwrap_err();
        assert_eq!(failure.code, FailureCode::Kexec);
        assert!(
            failure
                .message
                .starts_with("cannot load /vmlinuz on vda2 ("),
            "{failure:?}"
        );
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (errno, advice) in [
            (libc::ENOEXEC, "must be a bzImage"),
            (libc::EPERM, "switch Secure Boot off, or use `reboot`"),
            (libc::EPERM, "or kexec is switched off there"),
            (libc::EKEYREJECTED, "use `reboot` in place of `kexec`"),
            (libc::EINVAL, "(it has 2049 bytes)"),
            (libc::ENOSYS, "CONFIG_KEXEC_FILE"),
            (libc::ENOMEM, "no room in memory"),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            let failure = refused("/vmlinuz on vda2", 2049, &error);
            assert!(failure.message.contains(advice), "{failure:?}");
            assert!(!failure.retryable, "{failure:?}");
        }
        // What nobody foresaw is told as it is.
        let error = std::io::Error::from_raw_os_error(libc::EIO);
        let failure = refused("/vmlinuz on vda2", 6, &error);
        assert_eq!(
            failure.message,
            format!("cannot load /vmlinuz on vda2 ({error})")
        );
    }
}
