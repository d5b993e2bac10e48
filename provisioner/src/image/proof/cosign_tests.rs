//! Signatures as cosign makes them with a key pair, made by openssl: `cosign sign-blob` writes the
//! base64 of a plain ASN.1 ECDSA signature over the SHA-256 of the blob, and nothing else.

use anneal_image::ProofMethod;
use anneal_protocol::api::ProofRequest;
use base64::Engine as _;

use super::super::testing::{Publisher, check, check_by, image, policy};

pub const P256: &[&str] = &[
    "genpkey",
    "-algorithm",
    "EC",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
];
const P384: &[&str] = &[
    "genpkey",
    "-algorithm",
    "EC",
    "-pkeyopt",
    "ec_paramgen_curve:P-384",
];
const RSA: &[&str] = &[
    "genpkey",
    "-algorithm",
    "RSA",
    "-pkeyopt",
    "rsa_keygen_bits:2048",
];
const ED25519: &[&str] = &["genpkey", "-algorithm", "ED25519"];

/// Makes the key pair `NAME.key`, `NAME.pub`; gives the public key.
pub fn key_pair(publisher: &Publisher, name: &str, kind: &[&str]) -> String {
    let (secret, public) = (format!("{name}.key"), format!("{name}.pub"));
    let mut arguments = kind.to_vec();
    arguments.extend(["-out", &secret]);
    publisher.run("openssl", &arguments);
    publisher.run(
        "openssl",
        &["pkey", "-in", &secret, "-pubout", "-out", &public],
    );
    publisher.text(&public)
}

/// The signature over a file, in base64 as cosign writes it.
pub fn sign(publisher: &Publisher, name: &str, file: &str, kind: &[&str]) -> String {
    let secret = format!("{name}.key");
    let raw: &[&str] = &[
        "pkeyutl", "-sign", "-rawin", "-inkey", &secret, "-in", file, "-out", "sig",
    ];
    let hashed: &[&str] = &["dgst", "-sha256", "-sign", &secret, "-out", "sig", file];
    publisher.run("openssl", if kind == ED25519 { raw } else { hashed });
    base64::engine::general_purpose::STANDARD.encode(publisher.read("sig"))
}

fn request(signature: &str, key: &str) -> ProofRequest {
    ProofRequest::Cosign {
        signature: Some(signature.to_owned()),
        key: key.to_owned(),
        source: None,
    }
}

#[tokio::test]
async fn a_blob_signature_holds_for_its_bytes_only() {
    for kind in [P256, ED25519] {
        let publisher = Publisher::new();
        publisher.write("image.raw", image());
        let key = key_pair(&publisher, "a", kind);
        let signature = sign(&publisher, "a", "image.raw", kind) + "\n";
        let proof = check(&request(&signature, &key), &image()).await.unwrap();
        assert_eq!(proof.method, ProofMethod::Cosign);
        publisher.run(
            "openssl",
            &[
                "pkey", "-pubin", "-in", "a.pub", "-outform", "DER", "-out", "a.der",
            ],
        );
        let told = publisher
            .run("openssl", &["dgst", "-sha256", "-r", "a.der"])
            .stdout;
        let told = String::from_utf8(told).unwrap();
        let digest = told.split(' ').next().unwrap();
        assert_eq!(proof.signer.unwrap(), format!("sha256:{digest}"));

        let mut changed = image();
        changed[0] ^= 1;
        let other = key_pair(&publisher, "b", kind);
        for (key, bytes) in [(&key, &changed), (&other, &image())] {
            let told = check(&request(&signature, key), bytes).await.unwrap_err();
            assert_eq!(told.code(), "image-proof-failed");
        }
    }
}

/// Newer cosigns sign blobs with Ed25519 keys over the SHA-512 (Ed25519ph, RFC 8032).
#[tokio::test]
async fn a_prehashed_ed25519_signature_holds_too() {
    use ed25519_dalek::SigningKey;
    use ed25519_dalek::pkcs8::DecodePrivateKey as _;
    use sha2::{Digest as _, Sha512};

    let publisher = Publisher::new();
    let key = key_pair(&publisher, "a", ED25519);
    let secret = SigningKey::from_pkcs8_pem(&publisher.text("a.key")).unwrap();
    let sign = |bytes: &[u8]| {
        let signature = secret.sign_prehashed(Sha512::new_with_prefix(bytes), None);
        base64::engine::general_purpose::STANDARD.encode(signature.unwrap().to_bytes())
    };
    check(&request(&sign(&image()), &key), &image())
        .await
        .unwrap();
    let told = check(&request(&sign(b"other"), &key), &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
}

#[tokio::test]
async fn other_keys_and_files_are_named() {
    let publisher = Publisher::new();
    let p256 = key_pair(&publisher, "p", P256);
    let good = base64::engine::general_purpose::STANDARD.encode([0x30, 6, 2, 1, 1, 2, 1, 1]);
    for (kind, name) in [(P384, "p384"), (RSA, "rsa")] {
        let key = key_pair(&publisher, name, kind);
        let told = check(&request(&good, &key), b"x")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            told.contains("expected a PEM file") && told.contains("ECDSA P-256"),
            "{told}"
        );
    }
    let secret = publisher.text("p.key");
    let told = check(&request(&good, &secret), b"x")
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("private one"), "{told}");
    let bundle = r#"{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"}"#;
    let told = check(&request(bundle, &p256), b"x")
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("bundles are not read"), "{told}");
    let alone = ProofRequest::Cosign {
        signature: None,
        key: p256.clone(),
        source: None,
    };
    let told = check(&alone, b"x").await.unwrap_err().to_string();
    assert!(told.contains("OCI registry"), "{told}");

    let policy = policy(publisher.dir.path(), &[publisher.path("p.pub")]);
    publisher.write("image.raw", b"x");
    let signature = sign(&publisher, "p", "image.raw", P256);
    check_by(&policy, &request(&signature, &p256), b"x")
        .await
        .unwrap();
    let other = key_pair(&publisher, "q", P256);
    let told = check_by(&policy, &request(&signature, &other), b"x")
        .await
        .unwrap_err();
    assert!(told.to_string().contains("images.trusted_keys"), "{told}");
}
