//! A loop device that nobody has to take away: also for the tests inside the crate.

use std::fs::File;
use std::path::Path;
use std::process::Command;

/// A loop device. It goes when nobody has it open any more: the last is this process, however it
/// ends.
#[derive(Debug)]
pub struct Attached {
    /// Its node in `/dev`.
    pub node: String,
    _open: File,
}

impl Attached {
    /// Over this file, with more arguments of losetup.
    pub fn new(file: &Path, more: &[&str]) -> Self {
        let node = losetup(&["--show", "-f"], more, file);
        let open = File::open(&node);
        // Open, it is only marked.
        losetup(&["-d"], &[], Path::new(&node));
        Self {
            node,
            _open: open.unwrap(),
        }
    }
}

fn losetup(what: &[&str], more: &[&str], of: &Path) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new("losetup")
        .args(what)
        .args(more)
        .arg(of)
        .env("PATH", path)
        .output()
        .expect("losetup: install the package mount");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "losetup {what:?}: {told}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
