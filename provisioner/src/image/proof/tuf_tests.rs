//! Repositories made with tough's own editor, served over HTTP: good, expired, gone back, forged.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use anneal_protocol::api::ProofRequest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use jiff::{SignedDuration, Timestamp};
use tough::editor::RepositoryEditor;
use tough::editor::signed::SignedRole;
use tough::key_source::{KeySource, LocalKeySource};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{KeyHolder, RoleKeys, Root};

use super::super::testing::{Publisher, check_by, image, policy};
use super::*;

fn in_days(days: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_hours(24 * days)
}

fn version(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

/// A publisher of a repository with one target, and a server for it.
struct Repository {
    publisher: Publisher,
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Repository {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Repository {
    async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let publisher = Publisher::new();
        publisher.write("image.raw", image());
        std::fs::create_dir(publisher.path("metadata")).unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let files = tower_http::services::ServeDir::new(publisher.path("metadata"));
        let app = axum::Router::new().fallback_service(files);
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            publisher,
            url,
            server,
        }
    }

    fn key(&self, name: &str) -> Vec<Box<dyn KeySource>> {
        let path = self.publisher.path(name);
        if !path.exists() {
            let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
            std::fs::write(&path, document.as_ref()).unwrap();
        }
        vec![Box::new(LocalKeySource { path })]
    }

    /// A root in which one key has all roles.
    async fn root(&self, key: &str, expires: Timestamp) -> String {
        let keys = self.key(key);
        let public = keys[0].as_sign().await.unwrap().tuf_key();
        let id: Decoded<Hex> = public.key_id().unwrap();
        let roles = [
            RoleType::Root,
            RoleType::Snapshot,
            RoleType::Targets,
            RoleType::Timestamp,
        ];
        let role = || RoleKeys {
            keyids: vec![id.clone()],
            threshold: version(1),
            _extra: HashMap::new(),
        };
        let root = Root {
            spec_version: "1.0.0".to_owned(),
            consistent_snapshot: true,
            version: version(1),
            expires,
            keys: HashMap::from([(id.clone(), public)]),
            roles: roles.into_iter().map(|kind| (kind, role())).collect(),
            _extra: HashMap::new(),
        };
        let holder = KeyHolder::Root(root.clone());
        let signed = SignedRole::new(root, &holder, &keys, &SystemRandom::new())
            .await
            .unwrap();
        String::from_utf8(signed.buffer().clone()).unwrap()
    }

    /// Publishes the image as version `number`.
    async fn publish(&self, root: &str, key: &str, number: u64, expires: Timestamp) {
        let root = self.publisher.write("root.json", root);
        let mut editor = RepositoryEditor::new(root).await.unwrap();
        editor
            .targets_version(version(number))
            .unwrap()
            .targets_expires(in_days(30))
            .unwrap()
            .snapshot_version(version(number))
            .snapshot_expires(in_days(30))
            .timestamp_version(version(number))
            .timestamp_expires(expires)
            .add_target_path(self.publisher.path("image.raw"))
            .await
            .unwrap();
        let signed = editor.sign(&self.key(key)).await.unwrap();
        signed.write(self.publisher.path("metadata")).await.unwrap();
    }

    fn request(&self, root: &str, target: &str) -> ProofRequest {
        ProofRequest::Tuf {
            root: root.to_owned(),
            metadata_url: self.url.clone(),
            target: target.to_owned(),
        }
    }

    async fn check(&self, root: &str, state: &str, bytes: &[u8]) -> Result<Proof, ProofError> {
        let state: PathBuf = self.publisher.path(state);
        let policy = policy(&state, &[]);
        check_by(&policy, &self.request(root, "image.raw"), bytes).await
    }
}

#[tokio::test]
async fn a_target_is_proved_by_the_operators_root() {
    let repository = Repository::new().await;
    let root = repository.root("key", in_days(365)).await;
    repository.publish(&root, "key", 7, in_days(2)).await;
    let proof = repository.check(&root, "state", &image()).await.unwrap();
    assert_eq!(proof.method, ProofMethod::Tuf);
    let digest = hex::encode(Sha256::digest(&root));
    assert_eq!(proof.signer, Some(format!("sha256:{digest}")));
    assert_eq!(proof.source.as_ref(), Some(&repository.url));
    let detail = proof.detail.unwrap();
    assert!(
        detail.contains("target image.raw, targets version 7"),
        "{detail}"
    );

    let mut changed = image();
    changed[5] ^= 1;
    let longer = [image(), vec![0]].concat();
    for bytes in [&changed, &longer] {
        let told = repository.check(&root, "state", bytes).await.unwrap_err();
        assert_eq!(told.code(), "image-proof-failed");
    }
    let policy = policy(&repository.publisher.path("state"), &[]);
    let told = check_by(&policy, &repository.request(&root, "other.raw"), b"").await;
    let told = told.unwrap_err().to_string();
    assert!(
        told.contains("no target \"other.raw\", but image.raw"),
        "{told}"
    );
}

#[tokio::test]
async fn expired_metadata_is_refused() {
    let repository = Repository::new().await;
    let root = repository.root("key", in_days(365)).await;
    repository.publish(&root, "key", 1, in_days(-1)).await;
    let told = repository
        .check(&root, "state", &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let text = told.to_string();
    assert!(
        text.contains("timestamp metadata") && text.contains("has expired"),
        "{text}"
    );

    let old = repository.root("key", in_days(-1)).await;
    repository.publish(&old, "key", 2, in_days(2)).await;
    let told = repository
        .check(&old, "state", &image())
        .await
        .unwrap_err()
        .to_string();
    assert!(told.contains("get a current root.json"), "{told}");
}

#[tokio::test]
async fn a_repository_that_goes_back_is_refused() {
    let repository = Repository::new().await;
    let root = repository.root("key", in_days(365)).await;
    repository.publish(&root, "key", 5, in_days(2)).await;
    repository.check(&root, "state", &image()).await.unwrap();
    repository.publish(&root, "key", 4, in_days(2)).await;
    let told = repository
        .check(&root, "state", &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");
    let text = told.to_string();
    assert!(text.contains("went back from version 5 to 4"), "{text}");
    // Who has not seen version 5 cannot know.
    repository
        .check(&root, "elsewhere", &image())
        .await
        .unwrap();
    // Forward is fine.
    repository.publish(&root, "key", 6, in_days(2)).await;
    repository.check(&root, "state", &image()).await.unwrap();
}

#[tokio::test]
async fn another_publishers_repository_is_refused() {
    let repository = Repository::new().await;
    let mine = repository.root("key", in_days(365)).await;
    let theirs = repository.root("thief", in_days(365)).await;
    repository.publish(&theirs, "thief", 9, in_days(2)).await;
    let told = repository
        .check(&mine, "state", &image())
        .await
        .unwrap_err();
    assert_eq!(told.code(), "image-proof-failed");

    let nowhere = ProofRequest::Tuf {
        root: mine.clone(),
        metadata_url: "file:///etc/".to_owned(),
        target: "image.raw".to_owned(),
    };
    let policy = policy(&repository.publisher.path("state"), &[]);
    let told = check_by(&policy, &nowhere, b"").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-invalid");
    repository.server.abort();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let gone = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    let request = ProofRequest::Tuf {
        root: mine,
        metadata_url: gone,
        target: "image.raw".to_owned(),
    };
    let told = check_by(&policy, &request, b"").await.unwrap_err();
    assert_eq!(told.code(), "image-proof-unreachable");
}

#[tokio::test]
async fn metadata_is_not_fetched_from_the_daemons_own_host() {
    let repository = Repository::new().await;
    let root = repository.root("key", in_days(365)).await;
    repository.publish(&root, "key", 1, in_days(2)).await;
    let settings = crate::settings::ImageSettings::default();
    let state = repository.publisher.path("state");
    let strict = super::super::Policy::load(&settings, state).unwrap();
    let request = repository.request(&root, "image.raw");
    let told = check_by(&strict, &request, &image()).await.unwrap_err();
    assert_eq!(told.code(), "image-proof-invalid");
    let text = told.to_string();
    assert!(text.contains("images.allow_local_sources"), "{text}");
}
