//! The scripts are run, by the shell that the systems have.

use std::path::Path;
use std::process::{Command, Output};

use super::{Case, FAMILIES, Family, NETWORKS, TOKEN, case, cases, executable, folder, run};

/// Makes a program that prints `text`.
fn stub(dir: &Path, name: &str, text: &str) {
    executable::write(&dir.join(name), &format!("#!/bin/sh\n{text}\n"));
}

/// Runs the call-home script on this machine, with `curl` in place of the network.
fn call_home(curl: &str, bootc: Option<&str>) -> (tempfile::TempDir, Output) {
    let case = case(Family::of("debian"), "", "dhcp");
    run_call_home(&case, "/etc", curl, bootc)
}

/// Runs the call-home script of a machine beside its files. `etc` stands for its `/etc`.
pub fn run_call_home(
    case: &Case,
    etc: &str,
    curl: &str,
    bootc: Option<&str>,
) -> (tempfile::TempDir, Output) {
    let text = |name: &str| case.render(&format!("common/{name}")).unwrap();
    let script = text("phone-home.sh").replace("/etc/", &format!("{etc}/"));
    let dir = folder(&[
        ("phone-home.sh", &script),
        ("phone-home.conf", &text("phone-home.conf")),
        ("installed", &text("installed")),
        ("ca.pem", &super::ca()),
    ]);
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    stub(
        &bin,
        "curl",
        &format!(
            "cp \"$(dirname \"$0\")\"/../phone-home.conf.json \"$(dirname \"$0\")\"/../sent; {curl}"
        ),
    );
    stub(&bin, "sleep", "exit 0");
    if let Some(status) = bootc {
        stub(&bin, "bootc", &format!("cat <<'END'\n{status}\nEND"));
    }
    let output = run(
        "dash",
        Command::new("dash")
            .arg(dir.path().join("phone-home.sh"))
            .arg(dir.path().join("phone-home.conf"))
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display())),
    );
    (dir, output)
}

pub fn sent(dir: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(dir.join("sent")).unwrap()).unwrap()
}

#[test]
fn calls_home_and_forgets_the_token() {
    for answer in ["204", "410"] {
        let (dir, output) = call_home(&format!("echo {answer}"), None);
        assert!(output.status.success(), "{output:?}");
        let report = sent(dir.path());
        assert_eq!(report["image"], "blake3:00ff");
        assert!(report["os"].as_str().unwrap().len() > 3, "{report}");
        assert!(!dir.path().join("phone-home.conf").exists());
        assert!(!dir.path().join("phone-home.conf.json").exists());
    }
}

#[test]
fn tries_again_until_it_is_heard() {
    // The first answers are those of a network that is not up yet.
    let curl = "n=$(dirname \"$0\")/n; echo x >>$n; [ \"$(wc -l <$n)\" -gt 3 ] && echo 204 || { echo 000; exit 7; }";
    let (dir, output) = call_home(curl, None);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("calling home failed").count(), 3, "{told}");
    assert!(!dir.path().join("phone-home.conf").exists());
}

#[test]
fn says_which_container_runs() {
    let status = r#"{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost","spec":{"image":{"image":"quay.io/x:2","transport":"registry"}},
  "status":{"staged":null,
    "booted":{"image":{"image":{"image":"quay.io/x:1","transport":"registry"},"version":"9.2","timestamp":null,"imageDigest":"sha256:beef","architecture":"amd64"},
      "cachedUpdate":null,"incompatible":false,"pinned":false,"ostree":{"checksum":"ab","deploySerial":0,"stateroot":"default"}},
    "rollback":{"image":{"image":{"image":"quay.io/x:0","transport":"registry"},"imageDigest":"sha256:dead"}}}}"#;
    let (dir, _) = call_home("echo 204", Some(status));
    let os = sent(dir.path())["os"].as_str().unwrap().to_owned();
    assert!(os.ends_with(", bootc sha256:beef"), "{os}");
}

#[test]
fn says_the_version_that_runs() {
    let release = std::fs::read_to_string("/etc/os-release").unwrap();
    let said = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_ID="));
    let (dir, _) = call_home("echo 204", None);
    let report = sent(dir.path());
    assert_eq!(
        report["version"],
        said.unwrap_or_default().trim_matches('"'),
        "{report}"
    );
    let image = release
        .lines()
        .find_map(|line| line.strip_prefix("IMAGE_VERSION="));
    assert_eq!(
        report["image_version"],
        image.unwrap_or_default().trim_matches('"'),
        "{report}"
    );
}

#[test]
fn the_token_is_where_only_root_reads() {
    let text = case(Family::of("debian"), "", "dhcp").own("user-data");
    let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let files = config["write_files"].as_array().unwrap();
    for file in files {
        let secret = file["content"].as_str().unwrap().contains(TOKEN);
        assert_eq!(secret, file["permissions"] == "0600", "{}", file["path"]);
    }
    let command = config["runcmd"].as_array().unwrap().last().unwrap();
    assert_eq!(command[4 - 1], "anneal-phone-home.service");
}

/// What GRUB sources, read by GRUB's own parser; and an argument is what it was, whatever is in it.
#[test]
fn grub_reads_what_is_written_for_it() {
    let mut seen = 0;
    for family in FAMILIES {
        let sourced = ["grub.cfg", "grubcustom", "ignition.firstboot"];
        for template in family.templates.iter().filter(|t| sourced.contains(t)) {
            for mut case in cases(family) {
                case.machine
                    .config
                    .kernel_args
                    .push("a=$x\"it's".to_owned());
                let text = case.own(template);
                let dir = folder(&[("file", &text)]);
                let mut check = Command::new("grub-script-check");
                let output = run("grub-common", check.arg(dir.path().join("file")));
                assert!(output.status.success(), "{output:?}: {text}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 4 * 2 * NETWORKS.len());
    for (family, template, before) in [
        ("flatcar", "grub.cfg", "linux_append="),
        (
            "kairos",
            "grubcustom",
            "extra_cmdline=\"${extra_cmdline} \"",
        ),
    ] {
        let mut case = case(Family::of(family), "worker", "static");
        case.machine.config.kernel_args = vec!["quiet".to_owned(), "a=$x\"it's".to_owned()];
        let expected = format!("set {before}'quiet a=$x\"it'\\''s'");
        assert_eq!(case.own(template).trim_end(), expected);
    }
}

/// As `grub-mkconfig` does it: the shell reads the file, and GRUB the line that is made of it.
#[test]
fn arguments_are_in_what_update_grub_makes() {
    const MAKE: &str = "GRUB_CMDLINE_LINUX=console=tty0 GRUB_CMDLINE_LINUX_DEFAULT=console=tty1
        cd \"$1\"; . ./ours.cfg
        cat >grub.cfg <<END
linux /v ro ${GRUB_CMDLINE_LINUX} ${GRUB_CMDLINE_LINUX_DEFAULT}
linux /v ro single ${GRUB_CMDLINE_LINUX}
END
";
    for family in ["debian", "ubuntu"] {
        let mut case = case(Family::of(family), "worker", "static");
        case.machine.config.kernel_args = vec!["quiet".to_owned(), "a=$x;b`c".to_owned()];
        let dir = folder(&[("ours.cfg", &case.own("grub-default.cfg"))]);
        let mut shell = Command::new("dash");
        shell.args(["-euc", MAKE, "dash"]).arg(dir.path());
        let output = run("dash", &mut shell);
        assert!(output.status.success(), "{output:?}");
        let made = std::fs::read_to_string(dir.path().join("grub.cfg")).unwrap();
        let all = "console=tty0 console=tty1 'quiet' 'a=$x;b`c'";
        assert_eq!(
            made,
            format!("linux /v ro {all} \nlinux /v ro single {all}\n")
        );
        let mut check = Command::new("grub-script-check");
        let output = run("grub-common", check.arg(dir.path().join("grub.cfg")));
        assert!(output.status.success(), "{output:?}: {made}");
    }
}
