//! One TLS provider in each program (see the decision record on TLS providers): the agent has
//! ring, the daemon aws-lc-rs. Both in one tree make rustls panic at its first use.

use std::path::Path;
use std::process::Command;

fn tree(package: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "-e",
            "normal",
            "--prefix",
            "none",
            "-p",
            package,
        ])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn has(tree: &str, name: &str) -> bool {
    tree.lines()
        .any(|line| line.split(' ').next() == Some(name))
}

#[test]
fn agent_and_daemon_have_one_tls_provider_each() {
    let agent = tree("anneal-agent");
    assert!(has(&agent, "ring"));
    for other in ["aws-lc-rs", "openssl", "native-tls"] {
        assert!(!has(&agent, other), "the agent has {other}");
    }
    let daemon = tree("anneal");
    assert!(has(&daemon, "aws-lc-rs"));
    for other in ["ring", "openssl", "native-tls"] {
        assert!(!has(&daemon, other), "the daemon has {other}");
    }
}
