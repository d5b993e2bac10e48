//! Keys and signatures made by GnuPG itself; where it has an opinion, `gpgv` must share ours.

use anneal_image::{Proof, ProofMethod};
use anneal_protocol::api::ProofRequest;
use sha2::{Digest as _, Sha256};

use super::super::ProofError;
use super::super::testing::{Publisher, check, check_by, evidence, image, policy};

/// A publisher with a GnuPG home; time can be chosen.
struct Pgp(Publisher);

impl Pgp {
    fn new() -> Self {
        let publisher = Publisher::new();
        std::fs::create_dir(publisher.path("home")).unwrap();
        publisher.run("chmod", &["700", "home"]);
        publisher.write("image.raw", image());
        Self(publisher)
    }

    /// Runs gpg. In a process namespace of its own, so that the agent it starts ends with it.
    fn gpg(&self, when: &str, arguments: &[&str]) -> String {
        let time = format!("{when}T120000");
        let mut all = vec![
            "--pid",
            "--fork",
            "--kill-child",
            "gpg",
            "--homedir",
            "home",
        ];
        all.extend([
            "--batch",
            "--yes",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]);
        all.extend(["--no-auto-check-trustdb", "--trust-model", "always"]);
        if when != "now" {
            all.extend(["--faked-system-time", &time]);
        }
        all.extend(arguments);
        String::from_utf8(self.0.run("unshare", &all).stdout).unwrap()
    }

    /// Makes a key; gives its fingerprint.
    fn key(&self, when: &str, name: &str, algorithm: &str, usage: &str, expires: &str) -> String {
        self.gpg(when, &["--quick-gen-key", name, algorithm, usage, expires]);
        self.fingerprint(name)
    }

    fn fingerprint(&self, name: &str) -> String {
        let list = self.gpg("now", &["--with-colons", "--list-keys", name]);
        let line = list.lines().find(|line| line.starts_with("fpr")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    fn public(&self, name: &str) -> Vec<u8> {
        self.gpg("now", &["--output", "out.gpg", "--export", name]);
        self.0.read("out.gpg")
    }

    /// Signs the image.
    fn sign(&self, when: &str, name: &str, more: &[&str]) -> Vec<u8> {
        let mut arguments = vec!["--local-user", name, "--output", "image.sig"];
        arguments.extend(more);
        arguments.extend(["--detach-sign", "image.raw"]);
        self.gpg(when, &arguments);
        self.0.read("image.sig")
    }

    /// What GnuPG's own verifier says of the image.
    fn gpgv(&self, signature: &[u8], keys: &[u8]) -> bool {
        self.0.write("v.sig", signature);
        self.0.write("v.gpg", keys);
        let keyring = self.0.path("v.gpg").to_string_lossy().into_owned();
        let arguments = ["--keyring", &keyring, "v.sig", "image.raw"];
        self.0.try_run("gpgv", &arguments).status.success()
    }
}

fn request(signature: &[u8], keys: &[u8]) -> ProofRequest {
    ProofRequest::Openpgp {
        signature: evidence(signature.to_vec()),
        keys: evidence(keys.to_vec()),
        source: Some("image.sig".to_owned()),
    }
}

async fn verdict(signature: &[u8], keys: &[u8]) -> Result<Proof, ProofError> {
    check(&request(signature, keys), &image()).await
}

/// Refused before the image is read, with a text that has these words.
async fn refused(signature: &[u8], keys: &[u8], words: &[&str]) {
    let told = verdict(signature, keys).await.unwrap_err();
    assert_eq!(told.code(), "image-proof-failed", "{told}");
    let text = told.to_string();
    for word in words {
        assert!(text.contains(word), "\"{word}\" is missing in: {text}");
    }
}

#[tokio::test]
async fn a_signature_holds_for_its_bytes_only() {
    let pgp = Pgp::new();
    for (name, algorithm) in [("ed", "ed25519"), ("rsa", "rsa2048"), ("ec", "nistp256")] {
        let fingerprint = pgp.key("20250101", name, algorithm, "sign", "never");
        let keys = pgp.public(name);
        let armored = pgp.gpg("now", &["--armor", "--export", name]).into_bytes();
        for armor in [&[][..], &["--armor"]] {
            let signature = pgp.sign("20250601", name, armor);
            assert!(pgp.gpgv(&signature, &keys));
            for keys in [&keys, &armored] {
                let proof = verdict(&signature, keys).await.unwrap();
                assert_eq!(proof.method, ProofMethod::Openpgp);
                assert_eq!(proof.signer.as_ref(), Some(&fingerprint));
                assert_eq!(proof.detail.as_deref(), Some("signed 2025-06-01"));
            }
            let mut changed = image();
            changed[999_999] ^= 0x80;
            let told = check(&request(&signature, &keys), &changed)
                .await
                .unwrap_err();
            assert_eq!(told.code(), "image-proof-failed");
            assert!(
                told.to_string().contains("does not belong to these bytes"),
                "{told}"
            );
        }
    }
}

/// As Flatcar signs: the primary key certifies only, a subkey signs.
#[tokio::test]
async fn a_signing_subkey_speaks_for_its_certificate_while_it_is_not_revoked() {
    let pgp = Pgp::new();
    let primary = pgp.key("20250101", "flat", "ed25519", "cert", "never");
    pgp.gpg(
        "20250101",
        &["--quick-add-key", &primary, "ed25519", "sign", "never"],
    );
    let signature = pgp.sign("20250601", "flat", &[]);
    let keys = pgp.public("flat");
    assert!(pgp.gpgv(&signature, &keys));
    let proof = verdict(&signature, &keys).await.unwrap();
    assert_eq!(proof.signer.as_ref(), Some(&primary));
    let detail = proof.detail.unwrap();
    assert!(
        detail.contains("signed 2025-06-01 with the subkey "),
        "{detail}"
    );

    // Revoked by its owner, whatever the time of the signature.
    let edit = "key 1\nrevkey\ny\n0\n\ny\nsave\n";
    pgp.0.write("edit", edit);
    pgp.gpg(
        "20250801",
        &[
            "--command-file",
            "edit",
            "--no-batch",
            "--no-tty",
            "--edit-key",
            &primary,
        ],
    );
    refused(
        &signature,
        &pgp.public("flat"),
        &["was revoked on 2025-08-01"],
    )
    .await;
    // The trusted copy knows of the revocation; the copy given does not.
    let trusted = pgp.0.write("trusted.gpg", pgp.public("flat"));
    let policy = policy(pgp.0.dir.path(), &[trusted]);
    let told = check_by(&policy, &request(&signature, &keys), &image()).await;
    let told = told.unwrap_err().to_string();
    assert!(told.contains("was revoked"), "{told}");
}

#[tokio::test]
async fn an_expired_key_is_refused_although_it_lived_when_it_signed() {
    let pgp = Pgp::new();
    pgp.key("20200101", "old", "ed25519", "sign", "1y");
    let signature = pgp.sign("20200601", "old", &[]);
    refused(
        &signature,
        &pgp.public("old"),
        &["expired on 20", "current key file"],
    )
    .await;

    // A subkey that expires, as Flatcar's do every year; the certificate lives on.
    let primary = pgp.key("20200101", "flat", "ed25519", "cert", "never");
    pgp.gpg(
        "20200101",
        &["--quick-add-key", &primary, "ed25519", "sign", "1y"],
    );
    let signature = pgp.sign("20200601", "flat", &[]);
    refused(&signature, &pgp.public("flat"), &["expired on 20"]).await;
    // A later self-signature gives it more time.
    pgp.gpg("20201101", &["--quick-set-expire", &primary, "20y", "*"]);
    verdict(&signature, &pgp.public("flat")).await.unwrap();
}

#[tokio::test]
async fn a_revoked_key_is_refused() {
    let pgp = Pgp::new();
    let fingerprint = pgp.key("20250101", "gone", "ed25519", "sign", "never");
    let signature = pgp.sign("20250601", "gone", &[]);
    verdict(&signature, &pgp.public("gone")).await.unwrap();
    // GnuPG prepares a revocation with every key, and makes it unusable with a colon.
    let revocation = pgp
        .0
        .text(&format!("home/openpgp-revocs.d/{fingerprint}.rev"));
    pgp.0
        .write("rev", revocation.replace("\n:-----", "\n-----"));
    pgp.gpg("20250801", &["--import", "rev"]);
    let keys = pgp.public("gone");
    refused(&signature, &keys, &[&fingerprint, "was revoked"]).await;
}

#[tokio::test]
async fn weak_digests_and_keys_and_future_signatures_are_refused() {
    let pgp = Pgp::new();
    pgp.key("20250101", "rsa", "rsa2048", "sign", "never");
    let keys = pgp.public("rsa");
    let signature = pgp.sign("20250601", "rsa", &["--digest-algo", "SHA1"]);
    refused(&signature, &keys, &["digest SHA1", "SHA-256 or better"]).await;
    let signature = pgp.sign("20250601", "rsa", &["--digest-algo", "SHA224"]);
    refused(&signature, &keys, &["digest SHA224"]).await;
    let signature = pgp.sign("20990601", "rsa", &[]);
    refused(&signature, &keys, &["made in the future, 2099-06-01"]).await;
    let expired = pgp.sign("20250601", "rsa", &["--default-sig-expire", "10d"]);
    refused(&expired, &keys, &["signature expired on 2025-06-11"]).await;
    let text = pgp.sign("20250601", "rsa", &["--textmode"]);
    refused(&text, &keys, &["of the kind Text, expected Binary"]).await;

    pgp.key("20250101", "weak", "rsa1024", "sign", "never");
    let signature = pgp.sign("20250601", "weak", &["--digest-algo", "SHA256"]);
    refused(&signature, &pgp.public("weak"), &["too weak"]).await;
    pgp.key("20250101", "self", "rsa2048", "sign", "never");
    // The newest self-signature with a weak digest does not count, and there is no other.
    pgp.gpg(
        "20250101",
        &[
            "--cert-digest-algo",
            "SHA1",
            "--quick-gen-key",
            "sha1",
            "rsa2048",
            "sign",
            "never",
        ],
    );
    let signature = pgp.sign("20250601", "sha1", &["--digest-algo", "SHA256"]);
    refused(
        &signature,
        &pgp.public("sha1"),
        &["no valid self-signature"],
    )
    .await;
}

#[tokio::test]
async fn the_keys_given_decide_and_trusted_ones_decide_more() {
    let pgp = Pgp::new();
    let mine = pgp.key("20250101", "mine", "ed25519", "sign", "never");
    let thief = pgp.key("20250101", "thief", "ed25519", "sign", "never");
    let (my_keys, thiefs_keys) = (pgp.public("mine"), pgp.public("thief"));
    let signature = pgp.sign("20250601", "thief", &[]);
    refused(
        &signature,
        &my_keys,
        &[&thief, "not among the keys given", &mine],
    )
    .await;

    // A keyring of several, binary and as armored blocks one after the other.
    let both = [my_keys.clone(), thiefs_keys.clone()].concat();
    let armored = [
        pgp.gpg("now", &["--armor", "--export", "mine"]),
        pgp.gpg("now", &["--armor", "--export", "thief"]),
    ];
    for keys in [both.clone(), armored.concat().into_bytes()] {
        let proof = verdict(&signature, &keys).await.unwrap();
        assert_eq!(proof.signer.as_ref(), Some(&thief));
    }
    let trusted = pgp.0.write("mine.gpg", &my_keys);
    let policy = policy(pgp.0.dir.path(), &[trusted]);
    let told = check_by(&policy, &request(&signature, &both), &image()).await;
    let told = told.unwrap_err().to_string();
    assert!(
        told.contains("images.trusted_keys") && told.contains(&thief),
        "{told}"
    );
    let signature = pgp.sign("20250601", "mine", &[]);
    check_by(&policy, &request(&signature, &both), &image())
        .await
        .unwrap();

    let secret = pgp.gpg("now", &["--armor", "--export-secret-keys", "mine"]);
    let told = verdict(&signature, secret.as_bytes()).await.unwrap_err();
    assert!(told.to_string().contains("private"), "{told}");
    for nonsense in [&b""[..], b"not a key", &signature] {
        let told = verdict(&signature, nonsense).await.unwrap_err();
        assert_eq!(told.code(), "image-proof-invalid");
    }
    for nonsense in [&b""[..], b"not a signature", &my_keys, &signature[..20]] {
        let told = verdict(nonsense, &my_keys).await.unwrap_err();
        assert_eq!(told.code(), "image-proof-failed");
    }
    let flood = signature.repeat(17);
    refused(&flood, &my_keys, &["17 signatures"]).await;
}

fn sums(text: &str, signature: Option<Vec<u8>>, keys: &[u8]) -> ProofRequest {
    ProofRequest::Sums {
        text: text.to_owned(),
        file_name: "image.raw".to_owned(),
        signature: signature.map(evidence),
        keys: Some(evidence(keys.to_vec())),
        source: Some("SUMS".to_owned()),
    }
}

/// As Debian signs: a list, and a signature over it.
#[tokio::test]
async fn a_signed_list_vouches_for_the_digests_in_it() {
    let pgp = Pgp::new();
    let fingerprint = pgp.key("20250101", "deb", "rsa2048", "sign", "never");
    let keys = pgp.public("deb");
    let digest = hex::encode(Sha256::digest(image()));
    let list = format!("{digest}  image.raw\n{digest}  other.raw\n");
    pgp.0.write("SUMS", &list);
    pgp.gpg(
        "20250601",
        &["--armor", "--output", "SUMS.sign", "--detach-sign", "SUMS"],
    );
    let signature = pgp.0.read("SUMS.sign");
    let signed = sums(&list, Some(signature.clone()), &keys);
    let proof = check(&signed, &image()).await.unwrap();
    assert_eq!(
        (proof.method, proof.signer),
        (ProofMethod::Openpgp, Some(fingerprint))
    );
    assert_eq!(proof.source.as_deref(), Some("SUMS"));
    let detail = proof.detail.unwrap();
    assert_eq!(detail, "sha256 from a list, signed 2025-06-01");
    // Other bytes; another list; a list without signature.
    let told = check(&signed, b"other bytes").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let other = format!("{list}{digest}  added.raw\n");
    let told = check(&sums(&other, Some(signature), &keys), &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let told = check(&sums(&list, None, &keys), &image())
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("carries no signature"), "{told}");
}

/// As Fedora signs: the list within its signature.
#[tokio::test]
async fn a_cleartext_signed_list_counts_between_its_lines_only() {
    let pgp = Pgp::new();
    pgp.key("20250101", "fedora", "rsa2048", "sign", "never");
    let keys = pgp.public("fedora");
    let digest = hex::encode(Sha256::digest(image()));
    // The dash is escaped, the blanks at the end are not signed.
    let list = format!("# image.raw: 12 bytes  \n-- a dash\nSHA256 (image.raw) = {digest}\n");
    pgp.0.write("CHECKSUM", &list);
    pgp.gpg(
        "20250601",
        &["--output", "CHECKSUM.asc", "--clearsign", "CHECKSUM"],
    );
    let signed = pgp.0.text("CHECKSUM.asc");
    let proof = check(&sums(&signed, None, &keys), &image()).await.unwrap();
    assert_eq!(proof.method, ProofMethod::Openpgp);
    check(&sums(&signed.replace('\n', "\r\n"), None, &keys), &image())
        .await
        .unwrap();

    let forged = "00".repeat(32);
    let line = format!("SHA256 (image.raw) = {forged}\n");
    for changed in [
        signed.replace(&digest, &forged),
        format!("{line}{signed}"),
        format!("{signed}{line}"),
        signed.replace("Hash: SHA", &format!("{line}Hash: SHA")),
    ] {
        let told = check(&sums(&changed, None, &keys), &image())
            .await
            .unwrap_err();
        assert_eq!(told.code(), "image-proof-failed", "{told}");
    }
    // Without keys it is a list like any other, and said to be.
    let ProofRequest::Sums { text, .. } = sums(&signed, None, &keys) else {
        unreachable!()
    };
    let unsigned = ProofRequest::Sums {
        text,
        file_name: "image.raw".to_owned(),
        signature: None,
        keys: None,
        source: None,
    };
    let proof = check(&unsigned, &image()).await.unwrap();
    assert_eq!((proof.method, proof.signer), (ProofMethod::Sha256, None));
    assert!(proof.detail.unwrap().contains("not checked"));
}
