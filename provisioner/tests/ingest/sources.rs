//! Every source and every format gives the same sealed disk.

use std::io::Write as _;
use std::process::Stdio;

use super::lab::{Lab, disk, made, sha256, text};
use super::web::{self, How};

const FLATCAR: [&str; 5] = ["EFI-SYSTEM", "BIOS-BOOT", "USR-A", "USR-B", "OEM"];

#[test]
fn files_in_every_format_are_one_image() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 12, &FLATCAR);
    let file = lab.path("raw");
    let file = file.to_str().unwrap();
    let qcow2 = lab.path("disk.qcow2");
    made(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-c",
            file,
            qcow2.to_str().unwrap(),
        ],
    );
    let mut ids = Vec::new();
    for (name, bytes, format) in [
        ("disk.raw", raw.clone(), "raw"),
        ("disk.gz", made("gzip", &["-c", file]), "gzip"),
        ("disk.xz", made("xz", &["-0", "-c", file]), "xz"),
        ("disk.bz2", made("bzip2", &["-1", "-c", file]), "bzip2"),
        // The name says nothing.
        ("disk.iso", made("zstd", &["-q", "-c", file]), "zstd"),
        ("disk.lz4", made("lz4", &["-q", "-c", file]), "lz4"),
        ("disk.img", std::fs::read(&qcow2).unwrap(), "qcow2"),
    ] {
        let source = lab.file(name, &bytes);
        let image = lab.add(&format!("flatcar@{format}"), &source, &[]);
        assert_eq!(image["os"], "flatcar", "told by the partitions");
        assert_eq!(image["sha256"], sha256(&raw), "{format}");
        let ingest = lab.until_ingest(|_| true);
        assert_eq!(
            (&ingest["format"], &ingest["state"]),
            (&format.into(), &"done".into())
        );
        assert_eq!(ingest["received"], bytes.len());
        assert_eq!(ingest["written"], raw.len());
        ids.push(image["id"].as_str().unwrap().to_owned());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one disk, stored once: {ids:?}");
    assert_eq!(lab.stored(), [ids[0].trim_start_matches("blake3:")]);
}

#[test]
fn standard_input_and_curl_are_sources_too() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 20, &[]);
    let mut child = lab
        .command(&[
            "image",
            "add",
            "debian@1",
            "-",
            "--os",
            "debian",
            "--unproven",
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&raw).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).contains(&sha256(&raw)),
        "{}",
        text(&output.stdout)
    );

    let request =
        r#"{"name":"debian","version":"2","os":"debian","unproven":true,"source":{"upload":{}}}"#;
    let made = lab.curl(
        &["-H", "content-type: application/json", "-d", request],
        "images/ingests",
    );
    let ingest: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(ingest["state"], "waiting", "{ingest}");
    let path = format!("images/ingests/{}/data", ingest["id"].as_str().unwrap());
    let file = lab.path("raw");
    let put = lab.curl(&["-T", file.to_str().unwrap()], &path);
    assert!(
        text(&put.stdout).contains("\"id\""),
        "{}",
        text(&put.stdout)
    );
    let ended = lab.until_ingest(|ingest| ingest["state"] == "done");
    assert_eq!(ended["image"]["sha256"], sha256(&raw));
}

#[test]
fn urls_are_fetched_and_go_on_after_a_cut() {
    let lab = Lab::new("");
    let raw = disk(&lab, "raw", 12, &FLATCAR);
    let xz = made("xz", &["-0", "-c", lab.path("raw").to_str().unwrap()]);
    let half = xz.len() / 2;
    let web = web::serve(
        xz.clone(),
        vec![How::Unavailable, How::CutAt(half), How::Well],
    );
    let url = format!(
        "{}/amd64-usr/4230.2.1/flatcar_production_image.bin.xz",
        web.url
    );
    let digest = sha256(&xz);
    let output = lab.anneal(&[
        "image",
        "add",
        "flatcar@4230",
        &url,
        "--sha256",
        &digest,
        "-o",
        "json",
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let image: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(image["sha256"], sha256(&raw));
    assert_eq!(image["proof"]["method"], "sha256");
    assert_eq!(image["os_version"], "4230.2.1");
    let ranges = web.ranges.lock().unwrap();
    assert_eq!(ranges.len(), 1, "{ranges:?}");
    assert!(ranges[0].trim_end_matches('-').parse::<usize>().unwrap() > 0);
}

#[test]
fn the_system_must_be_known_and_not_contradicted() {
    let lab = Lab::new("");
    disk(&lab, "raw", 8, &FLATCAR);
    disk(&lab, "plain", 4, &[]);
    let (raw, plain) = (lab.path("raw"), lab.path("plain"));
    let told = lab.add_fails("x@1", plain.to_str().unwrap(), &["--unproven"]);
    assert!(told.contains("`--os`"), "{told}");
    let told = lab.add_fails(
        "x@1",
        raw.to_str().unwrap(),
        &["--unproven", "--os", "talos"],
    );
    assert!(told.contains("those of flatcar, not of talos"), "{told}");
    assert_eq!(lab.stored(), [""; 0]);
    let image = lab.add(
        "x@1",
        raw.to_str().unwrap(),
        &["--os", "talos", "--force-os", "--os-version", "1.9"],
    );
    assert_eq!(
        (&image["os"], &image["os_version"]),
        (&"talos".into(), &"1.9".into())
    );
}

/// No HTTP/2 is offered, and whoever asks for it gets ranges all the same.
#[test]
fn an_image_is_fetched_over_tls_by_ranges() {
    let lab = Lab::new("");
    disk(&lab, "raw", 8, &[]);
    let file = lab.path("raw").to_str().unwrap().to_owned();
    lab.add("debian@1", &file, &["--os", "debian"]);
    let path = "images/debian@1/data";
    let whole = lab.curl(&[], path).stdout;
    assert!(whole.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let version = ["--http2", "-w", "%{http_version}", "-r", "100000-3000000"];
    let part = lab.curl(&version, path);
    assert!(part.status.success(), "{}", text(&part.stderr));
    let (bytes, version) = part.stdout.split_at(part.stdout.len() - 3);
    assert_eq!(text(version), "1.1");
    assert!(bytes == &whole[100_000..=3_000_000]);
}
