//! What can be known about a failure before the disk is touched again.

use anneal_protocol::agent::Evidence;

use crate::cmdline::Options;
use crate::disk;

/// Lines of the kernel log that travel.
const LINES: usize = 200;

/// Gathers it.
#[must_use]
pub fn collect(options: &Options) -> Evidence {
    Evidence {
        kernel_log: tail(&kernel_log(), LINES),
        disks: disk::list(options).into_iter().map(|d| d.info).collect(),
    }
}

/// The kernel's ring buffer (syslog(2), `SYSLOG_ACTION_READ_ALL`); empty when not permitted.
fn kernel_log() -> String {
    const READ_ALL: libc::c_int = 3;
    const SIZE_BUFFER: libc::c_int = 10;
    // SAFETY: asks for a size; no buffer is involved.
    let size = unsafe { libc::klogctl(SIZE_BUFFER, std::ptr::null_mut(), 0) };
    let mut bytes = vec![0_u8; usize::try_from(size).unwrap_or(0)];
    // SAFETY: the kernel writes at most the length given, which is that of the vector.
    let read = unsafe {
        libc::klogctl(
            READ_ALL,
            bytes.as_mut_ptr().cast(),
            libc::c_int::try_from(bytes.len()).unwrap_or(libc::c_int::MAX),
        )
    };
    bytes.truncate(usize::try_from(read).unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines, without anything from a kernel command line: it holds the boot token.
fn tail(text: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("anneal.token="))
        .collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| (*line).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_end_and_no_token() {
        let text = "a\nKernel command line: anneal.token=secret\nb\nc\n";
        assert_eq!(tail(text, 2), ["b", "c"]);
        assert_eq!(tail(text, 9), ["a", "b", "c"]);
        assert!(tail("", 3).is_empty());
    }
}
