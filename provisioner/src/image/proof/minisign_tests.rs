//! Signatures made by minisign itself (Debian's package), of both kinds.

use anneal_image::ProofMethod;
use anneal_protocol::api::ProofRequest;

use super::super::testing::{Publisher, check, check_by, image, policy};

/// A publisher with the key pair `NAME.pub`, `NAME.key`.
fn publisher(names: &[&str]) -> Publisher {
    let publisher = Publisher::new();
    for name in names {
        let (public, secret) = (format!("{name}.pub"), format!("{name}.key"));
        publisher.run("minisign", &["-G", "-W", "-p", &public, "-s", &secret]);
    }
    publisher.write("image.raw", image());
    publisher
}

fn sign(publisher: &Publisher, key: &str, more: &[&str]) -> String {
    let key = format!("{key}.key");
    let mut arguments = vec![
        "-S",
        "-s",
        &key,
        "-m",
        "image.raw",
        "-t",
        "release 4230.2.1",
    ];
    arguments.extend(more);
    publisher.run("minisign", &arguments);
    publisher.text("image.raw.minisig")
}

fn request(signature: &str, key: &str) -> ProofRequest {
    ProofRequest::Minisign {
        signature: signature.to_owned(),
        key: key.to_owned(),
        source: Some("image.raw.minisig".to_owned()),
    }
}

#[tokio::test]
async fn both_kinds_of_signature_hold_for_their_bytes_only() {
    let publisher = publisher(&["a"]);
    let key = publisher.text("a.pub");
    // `-l`: the legacy kind, over the file itself. The other is over its BLAKE2b.
    for kind in [&[][..], &["-l"]] {
        let signature = sign(&publisher, "a", kind);
        let proof = check(&request(&signature, &key), &image()).await.unwrap();
        assert_eq!(proof.method, ProofMethod::Minisign);
        assert_eq!(proof.signer.as_deref(), key.lines().nth(1));
        assert_eq!(proof.detail.as_deref(), Some("release 4230.2.1"));
        // The second line alone is a key too.
        let line = key.lines().nth(1).unwrap();
        check(&request(&signature, line), &image()).await.unwrap();

        let mut changed = image();
        changed[777_777] ^= 1;
        for bytes in [&changed, &image()[1..], &image()[..1_199_999]] {
            let told = check(&request(&signature, &key), bytes).await.unwrap_err();
            assert_eq!(told.code(), "image-proof-failed");
            assert!(
                told.to_string().contains("does not belong to these bytes"),
                "{told}"
            );
        }
    }
}

#[tokio::test]
async fn a_comment_that_was_changed_is_never_shown() {
    let publisher = publisher(&["a"]);
    let signature = sign(&publisher, "a", &[]).replace("4230.2.1", "9999.0.0");
    let told = check(&request(&signature, &publisher.text("a.pub")), &image()).await;
    let told = told.unwrap_err().to_string();
    assert!(told.contains("trusted comment"), "{told}");
}

#[tokio::test]
async fn another_key_does_not_do() {
    let publisher = publisher(&["a", "b"]);
    let signature = sign(&publisher, "a", &[]);
    let told = check(&request(&signature, &publisher.text("b.pub")), &image()).await;
    let told = told.unwrap_err().to_string();
    assert!(told.contains("was made by the key"), "{told}");

    // The same id in front of another key: ids are short, and nobody's property.
    let decode = |name: &str| {
        let text = publisher.text(name);
        super::decode::<42>(text.lines().nth(1).unwrap()).unwrap()
    };
    let (a, mut b) = (decode("a.pub"), decode("b.pub"));
    b[2..10].copy_from_slice(&a[2..10]);
    let forged = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, b);
    let told = check(&request(&signature, &forged), &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");

    for nonsense in ["", "untrusted comment: x", "RWQ=", &signature] {
        let told = check(&request(&signature, nonsense), &image())
            .await
            .unwrap_err();
        assert_eq!(told.code(), "image-proof-invalid", "{nonsense}");
    }
    for nonsense in ["", "untrusted comment: x\nRWQ=\n", &publisher.text("a.pub")] {
        let told = check(&request(nonsense, &publisher.text("a.pub")), &image()).await;
        let told = told.unwrap_err().to_string();
        assert!(told.contains("cannot be read"), "{told}");
    }
}

#[tokio::test]
async fn only_trusted_keys_count_where_there_are_some() {
    let publisher = publisher(&["a", "b"]);
    let policy = policy(publisher.dir.path(), &[publisher.path("b.pub")]);
    let by = |key: &str| {
        request(
            &sign(&publisher, key, &[]),
            &publisher.text(&format!("{key}.pub")),
        )
    };
    check_by(&policy, &by("b"), &image()).await.unwrap();
    let told = check_by(&policy, &by("a"), &image())
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("images.trusted_keys"), "{told}");
}
