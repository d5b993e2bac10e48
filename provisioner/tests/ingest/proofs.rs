//! Proofs of the publisher by the command line, against the daemon: what holds, what is refused, who
//! may do without, and where that shows.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::lab::{Lab, disk, made, sha256, text};

const LABELS: [&str; 1] = ["root"];

/// Makes an OpenPGP key `NAME.gpg` and its signature over `disk.raw`, `NAME.sig`.
fn sign(lab: &Lab, name: &str) -> (String, String) {
    let path = |end: &str| {
        lab.path(&format!("{name}.{end}"))
            .to_str()
            .unwrap()
            .to_owned()
    };
    let (home, key, signature) = (path("d"), path("gpg"), path("sig"));
    std::fs::create_dir(&home).unwrap();
    let gpg = |words: &[&str]| {
        // In a process namespace of its own, so that the agent that gpg starts ends with it.
        let output = Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "gpg", "--batch", "--yes"])
            .args([
                "--pinentry-mode",
                "loopback",
                "--passphrase",
                "",
                "--homedir",
                &home,
            ])
            .args(words)
            .stdin(Stdio::null())
            .output()
            .expect("unshare (package util-linux)");
        let told = text(&output.stderr);
        assert!(output.status.success(), "gpg (package gpg): {told}");
    };
    gpg(&["--quick-gen-key", name, "ed25519", "sign", "never"]);
    gpg(&["--output", &key, "--export", name]);
    let raw = lab.path("disk.raw");
    gpg(&[
        "--output",
        &signature,
        "--detach-sign",
        raw.to_str().unwrap(),
    ]);
    (key, signature)
}

fn add(lab: &Lab, reference: &str, source: &str, proof: &[&str]) -> Value {
    lab.add_with(reference, source, &[&["--os", "debian"], proof].concat())
}

/// Makes a key pair as cosign's; the paths of the secret and the public key.
pub fn cosign_keys(lab: &Lab, name: &str) -> (String, String) {
    let path = |end: &str| lab.path(&format!("{name}.{end}"));
    let path = |end: &str| path(end).to_str().unwrap().to_owned();
    let (secret, public) = (path("key"), path("pub"));
    let curve = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out";
    let words: Vec<&str> = curve.split(' ').chain([secret.as_str()]).collect();
    made("openssl", &words);
    let public_of = ["pkey", "-in", &secret, "-pubout", "-out", &public];
    made("openssl", &public_of);
    (secret, public)
}

/// The signature as `cosign sign-blob --key` makes it: the base64 of an ECDSA signature over the
/// file.
pub fn cosign_sign(lab: &Lab, secret: &str, file: &str) -> String {
    let der = made("openssl", &["dgst", "-sha256", "-sign", secret, file]);
    let der = lab.file("signature.der", &der);
    text(&made("base64", &["-w0", &der]))
}

fn refused(lab: &Lab, source: &str, proof: &[&str], words: &[&str]) {
    let before = lab.stored();
    let told = lab.add_fails("x@1", source, &[&["--os", "debian"], proof].concat());
    for word in words {
        assert!(told.contains(word), "\"{word}\" is missing in: {told}");
    }
    assert_eq!(lab.stored(), before, "something stays behind: {told}");
    let list = lab.get("images");
    let names = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| &image["name"]);
    assert!(!names.into_iter().any(|name| name == "x@1"), "{list}");
}

#[test]
fn a_publishers_signature_decides_what_is_added() {
    let lab = Lab::new("");
    let raw = disk(&lab, "disk.raw", 4, &LABELS);
    let source = lab.path("disk.raw").to_str().unwrap().to_owned();
    let (key, signature) = sign(&lab, "mine");
    let (thiefs_key, thiefs) = sign(&lab, "thief");

    let proof = ["--signature", &signature, "--key", &key];
    let image = add(&lab, "pgp@1", &source, &proof);
    assert_eq!(image["proof"]["method"], "openpgp");
    assert_eq!(image["proof"]["source"], "mine.sig");
    assert_eq!(image["proof"]["signer"].as_str().unwrap().len(), 40);

    // The signature is over the file as published: here, compressed.
    let digest = sha256(&made("gzip", &["-n", "-c", &source]));
    let gz = lab.file("disk.gz", &made("gzip", &["-n", "-c", &source]));
    let sums = lab.file("SHA256SUMS", format!("{digest} *disk.gz\n").as_bytes());
    let image = add(&lab, "sums@1", &gz, &["--sha256", &sums]);
    assert_eq!(image["proof"]["method"], "sha256");
    assert_eq!(image["sha256"], sha256(&raw));

    let (secret, public) = cosign_keys(&lab, "c");
    let blob = lab.file("c.sig", cosign_sign(&lab, &secret, &source).as_bytes());
    let proof = ["--signature", &blob, "--cosign-key", &public];
    let image = add(&lab, "cosign@1", &source, &proof);
    assert_eq!(image["proof"]["method"], "cosign");

    // Both must hold.
    let both = [
        "--signature",
        &signature,
        "--key",
        &key,
        "--sha256",
        &digest,
    ];
    refused(&lab, &source, &both, &["the proof does not hold", &digest]);
    refused(
        &lab,
        &source,
        &["--signature", &thiefs, "--key", &key],
        &["not among the keys given"],
    );
    let mut changed = raw.clone();
    changed[3 << 20] ^= 1;
    let damaged = lab.file("damaged.raw", &changed);
    let proof = ["--signature", &signature, "--key", &key];
    refused(&lab, &damaged, &proof, &["does not belong to these bytes"]);
    let proof = ["--signature", &thiefs, "--key", &thiefs_key];
    add(&lab, "thief@1", &source, &proof);
    refused(
        &lab,
        &source,
        &[],
        &["comes without proof", "--sums", "--unproven"],
    );
}

#[test]
fn only_trusted_keys_count_where_there_are_some() {
    let lab = Lab::new("");
    disk(&lab, "disk.raw", 4, &LABELS);
    let (key, _) = sign(&lab, "mine");
    let (thiefs_key, thiefs) = sign(&lab, "thief");
    let trusting = Lab::new(&format!("  trusted_keys: [ {key} ]\n"));
    let source = lab.path("disk.raw").to_str().unwrap().to_owned();
    let proof = ["--signature", &thiefs, "--key", &thiefs_key];
    refused(&trusting, &source, &proof, &["images.trusted_keys"]);
    let signature = lab.path("mine.sig").to_str().unwrap().to_owned();
    add(
        &trusting,
        "mine@1",
        &source,
        &["--signature", &signature, "--key", &key],
    );
}

#[test]
fn unproven_images_need_an_admin_and_stay_visible() {
    let lab = Lab::new("");
    let raw = disk(&lab, "disk.raw", 4, &LABELS);
    let source = lab.path("disk.raw").to_str().unwrap().to_owned();
    let mut context: Value =
        serde_json::from_slice(&std::fs::read(lab.context()).unwrap()).unwrap();
    let body = json!({ "name": "op", "role": "operator" }).to_string();
    let made = lab.curl(
        &["-H", "Content-Type: application/json", "-d", &body],
        "api-keys",
    );
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    context["key"] = made["key"].clone();
    let operator = lab.file("op.json", context.to_string().as_bytes());
    let as_operator = |proof: &[&str]| {
        let words = [
            "--context",
            &operator,
            "image",
            "add",
            "own@1",
            &source,
            "--os",
            "debian",
        ];
        lab.anneal(&[&words[..], proof].concat())
    };
    let output = as_operator(&["--unproven"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("needs the role admin, the caller is operator"),
        "{told}"
    );
    let output = as_operator(&["--sha256", &sha256(&raw)]);
    assert!(output.status.success(), "{}", text(&output.stderr));

    let image = add(&lab, "own@2", &source, &["--unproven"]);
    assert_eq!(image.get("proof"), None);
    let list = text(&lab.anneal(&["image", "list"]).stdout);
    let line = list.lines().find(|line| line.contains("own@2")).unwrap();
    assert!(line.contains("unproven"), "{list}");
    let machine = |name: &str, mac: &str, image: &str| {
        format!(
            "  - {{ name: {name}, nics: [ {{ mac: \"52:54:00:aa:00:{mac}\" }} ], image: {image}, disk: {{ hints: {{ type: sata }} }} }}\n"
        )
    };
    let inventory = format!(
        "machines:\n{}{}",
        machine("r1n1", "01", "own@1"),
        machine("r1n2", "02", "own@2")
    );
    let file = lab.file("rack.yaml", inventory.as_bytes());
    let applied = lab.anneal(&["apply", "-f", &file]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    let list = text(&lab.anneal(&["machine", "list"]).stdout);
    assert!(list.contains("own@2 (unproven)"), "{list}");
    assert!(!list.contains("own@1 (unproven)"), "{list}");
    let shown = text(&lab.anneal(&["machine", "show", "r1n2"]).stdout);
    assert!(
        shown.contains("own@2 was added without proof of its publisher"),
        "{shown}"
    );
    let plan = text(&lab.anneal(&["provision", "r1n2", "--plan"]).stdout);
    assert!(plan.contains("own@2 was added without proof"), "{plan}");
    let log = lab.get("event-log?limit=1000");
    let added = log["items"].as_array().unwrap().iter();
    let added: Vec<&Value> = added
        .filter(|event| event["kind"] == "image.added")
        .collect();
    assert_eq!(added.len(), 2, "{log}");
    assert!(
        added.iter().any(|event| event["data"]["unproven"] == true),
        "{log}"
    );
    assert!(
        added
            .iter()
            .any(|event| event["data"]["proof"]["method"] == "sha256"),
        "{log}"
    );
}
