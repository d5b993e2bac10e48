//! Which request comes out of which flags, with files on disk.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    proof: ProofArgs,
}

async fn request(flags: &[&str], source: &str) -> anyhow::Result<Option<ProofRequest>> {
    let flags = Flags::try_parse_from(std::iter::once(&"x").chain(flags))?;
    flags.proof.request(source).await
}

async fn refusal(flags: &[&str], source: &str) -> String {
    format!("{:#}", request(flags, source).await.unwrap_err())
}

#[tokio::test]
async fn no_flags_no_proof() {
    assert_eq!(request(&[], "disk.raw").await.unwrap(), None);
    assert_eq!(request(&["--unproven"], "disk.raw").await.unwrap(), None);
    let value = "aa".repeat(32);
    let told = refusal(&["--unproven", "--sha256", &value], "disk.raw").await;
    assert!(told.contains("cannot be used with"), "{told}");
}

#[tokio::test]
async fn a_value_is_sent_as_it_is_and_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let value = "AA".repeat(32);
    let given = request(&["--sha256", &value], "disk.raw").await.unwrap();
    let expected = ProofRequest::Sha256 {
        value: value.clone(),
        source: None,
    };
    assert_eq!(given, Some(expected));

    let found = Some(ProofRequest::Sha256 {
        value: value.to_lowercase(),
        source: Some("d.sha256".to_owned()),
    });
    for text in [format!("{value}\n"), format!("{value}  disk.raw\n")] {
        std::fs::write(path("d.sha256"), text).unwrap();
        let given = request(&["--sha256", &path("d.sha256")], "/some/disk.raw").await;
        assert_eq!(given.unwrap(), found);
    }
    let told = refusal(&["--sha256", &path("d.sha256")], "other.raw").await;
    assert!(told.contains("it has disk.raw"), "{told}");
    let told = refusal(&["--sha256", &path("d.sha256")], "-").await;
    assert!(told.contains("give --published-name"), "{told}");
    let flags = [
        "--sha256",
        &path("d.sha256"),
        "--published-name",
        "disk.raw",
    ];
    assert_eq!(request(&flags, "-").await.unwrap(), found);

    std::fs::write(path("d.sha256"), format!("{}\n", "bb".repeat(64))).unwrap();
    let told = refusal(&["--sha256", &path("d.sha256")], "disk.raw").await;
    assert!(told.contains("has a sha512, not a sha256"), "{told}");
    std::fs::write(path("big"), vec![b'a'; limit::SUMS + 1]).unwrap();
    let told = refusal(&["--sha256", &path("big")], "disk.raw").await;
    assert!(told.contains("has more than the"), "{told}");
}

#[tokio::test]
async fn the_content_tells_what_kind_of_signature_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    };
    let key = file("key", b"a key");
    let sig = file("i.minisig", b"untrusted comment: x\nRU");
    let given = request(&["--signature", &sig, "--key", &key], "i").await;
    assert!(matches!(
        given.unwrap(),
        Some(ProofRequest::Minisign { .. })
    ));
    let sig = file("i.sig", b"\x88\xff");
    let given = request(&["--signature", &sig, "--key", &key], "i").await;
    let Some(ProofRequest::Openpgp {
        signature, source, ..
    }) = given.unwrap()
    else {
        panic!("expected openpgp")
    };
    assert_eq!(signature, Evidence::Base64("iP8=".to_owned()));
    assert_eq!(source.as_deref(), Some("i.sig"));
    let sig = file("i.b64", b"MEUC");
    let value = "aa".repeat(32);
    let flags = [
        "--signature",
        &sig,
        "--cosign-key",
        &key,
        "--sha256",
        &value,
    ];
    let Some(ProofRequest::All { proofs }) = request(&flags, "i").await.unwrap() else {
        panic!("expected two proofs")
    };
    assert!(matches!(proofs[1], ProofRequest::Cosign { .. }));
    for (flags, expected) in [
        (vec!["--signature", &sig], "give --key FILE or --cosign-key"),
        (vec!["--key", &key], "--key alone proves nothing"),
        (vec!["--cosign-key", &key], "--cosign-key needs --signature"),
        (vec!["--tuf-target", "x"], "--tuf-root"),
    ] {
        let told = refusal(&flags, "i").await;
        assert!(told.contains(expected), "{told}");
    }
    let given = request(&["--cosign-key", &key], "oci://r/i:1")
        .await
        .unwrap();
    assert!(matches!(
        given,
        Some(ProofRequest::Cosign {
            signature: None,
            ..
        })
    ));
}

#[test]
fn what_may_be_secret_in_an_address_is_not_recorded() {
    assert_eq!(
        shown("https://user:pw@host/a/SUMS?token=1#x"),
        "https://host/a/SUMS"
    );
    assert_eq!(shown("/home/me/keys/SUMS"), "SUMS");
}
