//! Programs that tests write and start.

use std::path::Path;
use std::process::Command;

/// Writes a program. A child does it: had this process the file open for writing, a child that
/// another test starts in that moment would inherit that, and the program could not be started
/// ("Text file busy") until that child is another program.
pub fn write(path: &Path, text: &str) {
    let script = r#"printf %s "$2" >"$1" && chmod 755 "$1""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(path).arg(text);
    let status = shell.status().unwrap();
    assert!(status.success(), "{}: {status}", path.display());
}
