//! What must not become an image, and what must not stay behind.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use super::lab::{Lab, disk, drained, made, sha256, text, until};
use super::web::{self, How};

const NOTHING: [&str; 0] = [];

#[test]
fn damaged_cut_and_foreign_content_is_refused_and_leaves_nothing() {
    let lab = Lab::new("  max_size: 64MiB\n");
    let raw = disk(&lab, "raw", 12, &["root"]);
    let file = lab.path("raw");
    let xz = made("xz", &["-0", "-c", file.to_str().unwrap()]);
    let mut flipped = xz.clone();
    flipped[xz.len() / 2] ^= 1;
    let bomb = lab.file("zeros", &vec![0; 65 << 20]);
    for (name, bytes, word) in [
        ("cut.xz", xz[..xz.len() - 9].to_vec(), "ends in the middle"),
        ("flipped.xz", flipped, "is damaged"),
        ("more.xz", [&xz[..], b"more"].concat(), "follows at byte"),
        ("cut.raw", raw[..8 << 20].to_vec(), "cut short"),
        ("odd.raw", vec![1; 1000], "multiple of 512"),
        (
            "page.html",
            b"<!DOCTYPE html><title>404</title>".to_vec(),
            "a web page",
        ),
        (
            "bomb.zst",
            made("zstd", &["-q", "-c", &bomb]),
            "images.max_size",
        ),
        (
            "tar.xz",
            made("tar", &["-cJf", "-", file.to_str().unwrap()]),
            "tar archive",
        ),
    ] {
        let source = lab.file(name, &bytes);
        let told = lab.add_fails("x@1", &source, &["--os", "debian", "--unproven"]);
        assert!(told.contains(word), "{name}: {told}");
        assert_eq!(lab.stored(), NOTHING, "{name}");
    }
    let told = lab.add_fails("x@1", "/dev/null", &["--os", "debian", "--unproven"]);
    assert!(told.contains("is empty"), "{told}");
    let told = lab.add_fails("x@1", "ftp://example.org/x", &["--unproven"]);
    assert!(told.contains("is no source"), "{told}");
    assert_eq!(lab.get("images")["items"], serde_json::json!([]));
}

/// Sparse files: reading them to the end would take an hour.
#[test]
fn a_disk_that_is_too_large_is_refused_before_it_is_read() {
    for (settings, size, word) in [
        ("", 2_u64 << 40, "images.max_size"),
        (
            "  max_size: 8TiB\n",
            5 << 40,
            "an image can have 4398046511104",
        ),
    ] {
        let lab = Lab::new(settings);
        let large = lab.path("large.raw");
        let file = std::fs::File::create(&large).unwrap();
        file.set_len(size).unwrap();
        let source = large.to_str().unwrap();
        let told = lab.add_fails("x@1", source, &["--os", "debian", "--unproven"]);
        assert!(told.contains(word), "{told}");
        assert_eq!(lab.stored(), NOTHING);
    }
}

#[test]
fn a_flipped_bit_on_the_way_is_caught_by_the_proof() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 4, &[]);
    let digest = sha256(&raw);
    let web = web::serve(raw, vec![How::Flip(3 << 20), How::Well]);
    let args = ["--os", "debian", "--sha256", &digest];
    let told = lab.add_fails("x@1", &web.url, &args);
    assert!(told.contains("proof"), "{told}");
    assert_eq!(lab.stored(), NOTHING);
    // And the name is free again.
    let output = lab.anneal(&[&["image", "add", "x@1", &web.url][..], &args].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn the_daemons_own_host_is_not_a_source_unless_allowed() {
    let lab = Lab::new("  allow_local_sources: false\n");
    for url in [
        "http://127.0.0.1:1/x",
        "http://localhost:1/x",
        "http://[::1]/x",
        "http://169.254.169.254/latest",
    ] {
        let told = lab.add_fails("x@1", url, &["--os", "debian", "--unproven"]);
        assert!(told.contains("images.allow_local_sources"), "{url}: {told}");
    }
    let told = lab.add_fails(
        "x@1",
        "oci://127.0.0.1:5000/os/debian:12",
        &["--plain-http", "--unproven"],
    );
    assert!(told.contains("images.allow_local_sources"), "{told}");
}

#[test]
fn roles_names_and_authors_are_kept() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 4, &[]);
    let file = lab.file("x.raw", &raw);
    let told = lab.add_fails("x@1", &file, &["--os", "debian"]);
    assert!(told.contains("without proof"), "{told}");
    let web = web::serve(raw.clone(), vec![How::HoldAt(1 << 20)]);
    let mut first = lab.adding(&web.url).spawn().unwrap();
    let ingest = lab.until_ingest(|ingest| ingest["received"].as_u64() > Some(0));
    let told = lab.add_fails("x@1", &file, &["--os", "debian", "--unproven"]);
    assert!(
        told.contains("is being added already by local-admin"),
        "{told}"
    );
    let path = format!("images/ingests/{}/data", ingest["id"].as_str().unwrap());
    let put = lab.curl(&["-T", &file], &path);
    assert!(
        text(&put.stdout).contains("ingest-not-an-upload"),
        "{}",
        text(&put.stdout)
    );
    web.go_on.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(first.wait().unwrap().success(), "{}", drained(&mut first));
}

#[test]
fn whoever_presses_ctrl_c_leaves_nothing_behind() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 8, &[]);
    let web = web::serve(raw, vec![How::HoldAt(4 << 20)]);
    for signal in ["-INT", "-TERM"] {
        let mut adding = lab.adding(&web.url).spawn().unwrap();
        lab.until_ingest(|ingest| {
            ingest["received"].as_u64() > Some(0) && ingest["problem"].is_null()
        });
        kill(signal, adding.id());
        let status = adding.wait().unwrap();
        assert_eq!(status.code(), Some(1));
        let told = drained(&mut adding);
        assert!(told.contains("cancelled, nothing was kept"), "{told}");
        let ingest = lab.until_ingest(|ingest| ingest["state"] == "failed");
        assert_eq!(ingest["problem"]["code"], "ingest-cancelled");
        assert_eq!(lab.stored(), NOTHING);
    }
}

#[test]
fn an_upload_of_a_killed_command_expires() {
    let lab = Lab::new("  upload_patience: 5s\n");
    let mut adding = lab
        .adding("-")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = adding.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &vec![1; 9 << 20]).unwrap();
    lab.until_ingest(|ingest| ingest["received"].as_u64() > Some(0));
    adding.kill().unwrap();
    assert_eq!(adding.wait().unwrap().signal(), Some(9));
    let ingest = lab.until_ingest(|ingest| ingest["state"] == "failed");
    assert!(
        ingest["problem"]["detail"]
            .as_str()
            .unwrap()
            .contains("given up"),
        "{ingest}"
    );
    assert_eq!(lab.stored(), NOTHING);
}

#[test]
fn a_killed_daemon_leaves_nothing_behind_and_the_command_says_so() {
    let mut lab = Lab::new("");
    let raw = disk(&lab, "raw", 8, &[]);
    let web = web::serve(raw, vec![How::HoldAt(5 << 20)]);
    let mut adding = lab.adding(&web.url).spawn().unwrap();
    lab.until_ingest(|ingest| ingest["received"].as_u64() > Some(4 << 20));
    until("a draft", || (!lab.stored().is_empty()).then_some(()));
    lab.kill_and_restart();
    assert_eq!(lab.stored(), NOTHING);
    assert_eq!(adding.wait().unwrap().code(), Some(1));
    let told = drained(&mut adding);
    assert!(told.contains("the daemon was restarted"), "{told}");
}

#[test]
fn a_full_store_is_an_error_and_is_empty_again() {
    let lab = Lab::new("");
    disk(&lab, "raw", 200, &[]);
    // A store of its own, too small for the disk.
    let images = lab.path("state/images");
    let mount = |args: &[&str]| {
        Command::new("mount")
            .args(args)
            .arg(&images)
            .status()
            .unwrap()
    };
    assert!(mount(&["-t", "tmpfs", "-o", "size=90M", "tmpfs"]).success());
    let raw = lab.path("raw");
    let told = lab.add_fails(
        "x@1",
        raw.to_str().unwrap(),
        &["--os", "debian", "--unproven"],
    );
    let stored = lab.stored();
    let unmounted = Command::new("umount").arg(&images).status().unwrap();
    assert!(
        told.contains("No space left") || told.contains("bytes free"),
        "{told}"
    );
    assert_eq!(stored, NOTHING);
    assert!(unmounted.success());
}

pub fn kill(signal: &str, process: u32) {
    let status = Command::new("kill")
        .args([signal, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}
