//! Digests and lists of digests: what holds, what does not, and what several proofs come to.

use super::super::testing::check;
use super::*;

/// `printf abc | sha256sum`, `printf abc | sha512sum` (FIPS 180-2, appendices B.1 and C.1).
const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const SHA512: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

fn sha256(value: &str) -> ProofRequest {
    ProofRequest::Sha256 {
        value: value.to_owned(),
        source: Some("https://example.org/abc.sha256".to_owned()),
    }
}

fn sums(text: &str) -> ProofRequest {
    ProofRequest::Sums {
        text: text.to_owned(),
        file_name: "abc.raw".to_owned(),
        signature: None,
        keys: None,
        source: Some("SUMS".to_owned()),
    }
}

#[tokio::test]
async fn a_digest_holds_for_its_bytes_only() {
    let proof = check(&sha256(&SHA256.to_uppercase()), b"abc")
        .await
        .unwrap();
    assert_eq!(proof.method, ProofMethod::Sha256);
    assert_eq!(proof.signer, None);
    assert_eq!(
        proof.source.as_deref(),
        Some("https://example.org/abc.sha256")
    );

    let told = check(&sha256(SHA256), b"abd").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let text = told.to_string();
    assert!(
        text.contains("the 3 bytes that came") && text.contains(SHA256),
        "{text}"
    );
    let told = check(&sha256("abc"), b"abc").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-invalid");
}

#[tokio::test]
async fn an_unsigned_list_proves_what_its_digest_proves_and_says_so() {
    let proof = check(&sums(&format!("{SHA512}  abc.raw\n")), b"abc")
        .await
        .unwrap();
    assert_eq!(proof.method, ProofMethod::Sha512);
    assert_eq!(proof.detail.as_deref(), Some("from an unsigned list"));
    let told = check(&sums(&format!("{SHA512}  other\n")), b"abc")
        .await
        .unwrap_err();
    assert!(told.to_string().contains("it has other"), "{told}");
    let large = sums(&"x".repeat(limit::SUMS + 1));
    let told = check(&large, b"abc").await.unwrap_err();
    assert!(told.to_string().contains("allowed are"), "{told}");
}

#[tokio::test]
async fn all_of_several_must_hold() {
    let list = sums(&format!("{SHA512}  abc.raw\n"));
    let all = |proofs: Vec<ProofRequest>| ProofRequest::All { proofs };
    let proof = check(&all(vec![sha256(SHA256), list.clone()]), b"abc")
        .await
        .unwrap();
    assert_eq!(proof.detail.as_deref(), Some("also sha512"));
    let wrong = sha256(&"00".repeat(32));
    for proofs in [vec![wrong.clone(), list.clone()], vec![list, wrong.clone()]] {
        let told = check(&all(proofs), b"abc").await.unwrap_err();
        assert_eq!(told.code(), "image-proof-failed");
    }
    for proofs in [
        vec![],
        vec![all(vec![wrong.clone()])],
        vec![wrong; limit::PROOFS + 1],
    ] {
        let told = check(&all(proofs), b"abc").await.unwrap_err();
        assert_eq!(told.code(), "image-proof-invalid");
    }
}
