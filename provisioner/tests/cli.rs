//! The `anneal` program as it is run by people: exit codes, what is printed where.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `anneal` with nothing of this host's configuration.
fn anneal(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_anneal"))
        .args(args)
        .env_clear()
        .env("XDG_CONFIG_HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exit code 1, and exactly this on standard error, nothing on standard output.
fn fails(home: &Path, args: &[&str], expected: &str) {
    let output = anneal(home, args);
    assert_eq!(text(&output.stderr), expected, "{args:?}");
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty(), "{args:?}");
}

#[test]
fn a_mistyped_command_exits_with_2_and_suggests() {
    let home = tempfile::tempdir().unwrap();
    let output = anneal(home.path(), &["machin", "list"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("machine"));
}

#[test]
fn serve_refuses_what_cannot_be_served() {
    let home = tempfile::tempdir().unwrap();
    let output = anneal(home.path(), &["serve", "--interface", "nosuch0"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.starts_with("error: no interface is called nosuch0 ("),
        "{told}"
    );

    let file = home.path().join("anneal.yaml");
    std::fs::write(&file, "tls_prot: 1\n").unwrap();
    let path = file.to_str().unwrap();
    fails(
        home.path(),
        &["serve", "--config", path],
        &format!("error: {path}:1:1: unknown key `tls_prot`, did you mean `tls_port`?\n"),
    );
    fails(
        home.path(),
        &["serve", "--config", "/nosuch/anneal.yaml"],
        "error: cannot read /nosuch/anneal.yaml: No such file or directory (os error 2)\n",
    );
}

#[test]
fn a_wrong_inventory_is_told_with_its_place() {
    let home = tempfile::tempdir().unwrap();
    let context = home.path().join("context.json");
    std::fs::write(
        &context,
        r#"{"server":"https://127.0.0.1:1","ca":"","key":"k"}"#,
    )
    .unwrap();
    let file = home.path().join("rack.yaml");
    std::fs::write(
        &file,
        "machines:\n  - name: R1\n    nics: []\n    disk: /dev/sda\n",
    )
    .unwrap();
    let path = file.to_str().unwrap();
    fails(
        home.path(),
        &["apply", "-f", path, "--context", context.to_str().unwrap()],
        &format!(
            "error: {path}:2:11: \"R1\" is not a valid name: expected 1 to 63 lower-case letters, \
             digits and `-`, beginning and ending with a letter or digit\n"
        ),
    );
}

#[test]
fn contexts_are_kept_chosen_and_listed() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("admin.json");
    std::fs::write(
        &file,
        r#"{"server":"https://10.77.0.1:8443","ca":"","key":"secret"}"#,
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for args in [
        vec!["context", "add", "lab", "--file", file],
        vec![
            "context",
            "add",
            "hall-2",
            "--file",
            file,
            "--server",
            "https://10.78.0.1:8443",
        ],
        vec!["context", "use", "hall-2"],
    ] {
        let output = anneal(home.path(), &args);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let output = anneal(home.path(), &["context", "list"]);
    assert_eq!(
        text(&output.stdout),
        "   NAME    SERVER\n*  hall-2  https://10.78.0.1:8443\n   lab     https://10.77.0.1:8443\n"
    );
    let kept = home.path().join("anneal/contexts/lab.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&kept.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    fails(
        home.path(),
        &["context", "use", "../../etc"],
        "error: \"../../etc\" is not a valid name: expected 1 to 63 lower-case letters, digits and \
         `-`, beginning and ending with a letter or digit\n",
    );
    let output = anneal(home.path(), &["--context", "nosuch", "machine", "list"]);
    assert!(text(&output.stderr).starts_with("error: reading the context "));
}

#[test]
fn a_broken_context_does_not_show_its_key() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("context.json");
    std::fs::write(&file, "{\"server\":\"x\",\n\"key\": hunter2}").unwrap();
    let path = file.to_str().unwrap();
    fails(
        home.path(),
        &["--context", path, "machine", "list"],
        &format!("error: {path}:2:8: not a context file: expected JSON with server, ca and key\n"),
    );
}

#[test]
fn prints_completions_and_survives_a_reader_that_leaves() {
    let home = tempfile::tempdir().unwrap();
    let output = anneal(home.path(), &["completion", "bash"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("complete -F _anneal"));
    // Standard output is a pipe that nobody reads.
    let mut child = Command::new(env!("CARGO_BIN_EXE_anneal"))
        .args(["completion", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty());
}
