//! What docs/images.md says about checking an image with other programs is true.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use anneal_image::{Facts, PackOptions, Proof, ProofMethod, SignedManifest, SigningKey, pack};

fn run(dir: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program} is needed ({error}): apt-get install python3 openssl")
        });
    assert!(output.status.success(), "{program}: {output:?}");
    output.stdout
}

#[test]
fn openssl_accepts_the_signature_of_the_canonical_form() {
    let key = SigningKey::from_seed(&[5; 32]);
    let mut disk = vec![0; 9 << 20];
    disk[5 << 20..6 << 20].fill(7);
    let options = PackOptions::default();
    let packed = pack(&mut &disk[..], &mut std::io::sink(), &options, &mut |_| {}).unwrap();
    let facts = Facts {
        os: "debian".into(),
        os_version: Some("12.9".into()),
        proof: Some(Proof {
            method: ProofMethod::Openpgp,
            signer: Some("Jörg <j@example.org>".into()),
            source: None,
            detail: None,
        }),
        ..Facts::default()
    };
    let manifest = packed.into_manifest(facts).unwrap();
    let signed = SignedManifest::sign(manifest.clone(), &key);

    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("manifest.json"), signed.to_json()).unwrap();
    std::fs::write(dir.join("key.pem"), key.to_pem().unwrap()).unwrap();
    let canonical = run(
        dir,
        "python3",
        &[
            "-c",
            r#"import json; print(end=json.dumps(json.load(open("manifest.json"))["manifest"], separators=(",", ":"), ensure_ascii=False))"#,
        ],
    );
    assert_eq!(canonical, manifest.canonical());
    std::fs::write(dir.join("canonical"), &canonical).unwrap();
    std::fs::write(
        dir.join("signature"),
        hex::decode(&signed.signature).unwrap(),
    )
    .unwrap();
    run(
        dir,
        "openssl",
        &["pkey", "-in", "key.pem", "-pubout", "-out", "key.pub"],
    );
    let said = run(
        dir,
        "openssl",
        &[
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            "key.pub",
            "-rawin",
            "-in",
            "canonical",
            "-sigfile",
            "signature",
        ],
    );
    assert!(String::from_utf8_lossy(&said).contains("Verified Successfully"));
}
