//! What a signature of an image must be about. That it is found in a registry, and through which
//! requests, is tested with the whole daemon (`tests/ingest/registry.rs`).

use sha2::{Digest as _, Sha256};

use super::super::cosign::tests::{P256, key_pair, sign};
use super::super::testing::Publisher;
use super::*;

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn statement(digest: &str, kind: &str) -> String {
    format!(
        r#"{{"critical":{{"identity":{{"docker-reference":"example.org/os"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"{kind}"}},"optional":null}}"#
    )
}

const KIND: &str = "cosign container image signature";

#[test]
fn a_statement_must_be_about_this_image() {
    let publisher = Publisher::new();
    let pem = key_pair(&publisher, "a", P256);
    let key = cosign::Key::parse(&pem).unwrap();
    let told = |payload: &str, digest: &str| {
        publisher.write("payload", payload);
        let signature = sign(&publisher, "a", "payload", P256);
        judge(payload.as_bytes(), &signature, digest, &key)
    };
    let (mine, other) = (digest_of(b"mine"), digest_of(b"other"));
    let good = statement(&mine, KIND);
    assert_eq!(
        told(&good, &mine).unwrap().as_deref(),
        Some("example.org/os")
    );
    let text = told(&good, &other).unwrap_err();
    assert!(text.contains(&mine) && text.contains("expected"), "{text}");
    let text = told(&statement(&mine, "something else"), &mine).unwrap_err();
    assert!(text.contains("something else"), "{text}");
    let text = told("{}", &mine).unwrap_err();
    assert!(text.contains("not about an image"), "{text}");
    let text = judge(good.as_bytes(), "MEUC", &mine, &key).unwrap_err();
    assert!(text.contains("not by the key"), "{text}");
    assert!(tag("sha256:abc").is_err() && tag("sha512:00").is_err());
}
