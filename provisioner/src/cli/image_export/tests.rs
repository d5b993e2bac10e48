//! What comes out of `image export`, and what must not.

use anneal_image::{Facts, PackOptions, SigningKey, pack};
use axum::Router;
use axum::routing::get;
use serde_json::json;

use super::super::tests::{Daemon, daemon};
use super::*;

const MIB: usize = 1 << 20;

fn disk() -> Vec<u8> {
    let mut raw = vec![0; 9 * MIB];
    raw[100..300].fill(7);
    raw[8 * MIB..8 * MIB + 5000].fill(9);
    raw
}

struct Stored {
    view: serde_json::Value,
    key: String,
    manifest: Vec<u8>,
    data: Vec<u8>,
}

fn stored() -> Stored {
    let raw = disk();
    let mut data = Vec::new();
    let packed = pack(
        &mut &raw[..],
        &mut data,
        &PackOptions::default(),
        &mut |_| {},
    )
    .unwrap();
    let facts = Facts {
        os: "debian".into(),
        ..Facts::default()
    };
    let manifest = packed.into_manifest(facts).unwrap();
    let key = SigningKey::from_seed(&[3; 32]);
    Stored {
        view: json!({
            "name": "x@1", "id": manifest.id(), "size": raw.len(), "stored": data.len(),
            "sha256": manifest.sha256(), "os": "debian", "added_at": "2026-11-21T10:00:00Z",
        }),
        key: key.public().to_hex(),
        manifest: SignedManifest::sign(manifest, &key).to_json(),
        data,
    }
}

async fn serve(stored: Stored) -> Daemon {
    let keys = json!({"items": [{"id": "k", "key": stored.key, "signs": true, "images": []}]});
    let view = stored.view;
    daemon(
        Router::new()
            .route("/api/v1/images/{name}", get(async move || axum::Json(view)))
            .route("/api/v1/image-keys", get(async move || axum::Json(keys)))
            .route(
                "/api/v1/images/{name}/manifest",
                get(async move || stored.manifest),
            )
            .route("/api/v1/images/{name}/data", get(async move || stored.data)),
    )
    .await
}

async fn exported(daemon: &Daemon, target: &Path, raw: bool) -> anyhow::Result<()> {
    let arguments = Export {
        name: "x@1".into(),
        target: target.to_owned(),
        raw,
    };
    export(&daemon.client, arguments).await
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_gets_both_files() {
    let daemon = serve(stored()).await;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("out");
    exported(&daemon, &target, false).await.unwrap();
    assert_eq!(files(&target), ["data.zst", "manifest.json"]);
    let truth = stored();
    assert_eq!(std::fs::read(target.join("data.zst")).unwrap(), truth.data);
    let json = std::fs::read(target.join("manifest.json")).unwrap();
    assert_eq!(json, truth.manifest);

    let error = exported(&daemon, &target, false).await.unwrap_err();
    assert!(
        error.to_string().contains("data.zst exists: remove it"),
        "{error}"
    );
}

#[tokio::test]
async fn a_raw_disk_has_holes() {
    use std::os::unix::fs::MetadataExt as _;
    let daemon = serve(stored()).await;
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("disk.raw");
    exported(&daemon, &target, true).await.unwrap();
    assert_eq!(files(dir.path()), ["disk.raw"]);
    assert_eq!(std::fs::read(&target).unwrap(), disk());
    let used = target.metadata().unwrap().blocks() * 512;
    assert!(used < MIB as u64, "{used} bytes used");
}

#[tokio::test]
async fn what_is_not_the_image_gets_no_name() {
    let other_key = SigningKey::from_seed(&[4; 32]).public().to_hex();
    type Change = Box<dyn Fn(&mut Stored)>;
    let cases: [(Change, &str); 6] = [
        (
            Box::new(move |s| s.key = other_key.clone()),
            "is signed by key",
        ),
        (
            Box::new(|s| s.view["id"] = json!("blake3:00")),
            "is that of",
        ),
        (Box::new(|s| s.data[20] ^= 1), "frame 0 does not match"),
        (
            Box::new(|s| s.data.truncate(s.data.len() - 1)),
            "the data ends early",
        ),
        (Box::new(|s| s.data.push(0)), "goes on after its end"),
        (
            Box::new(|s| {
                let last = s.data.len() - 1;
                s.data[last] ^= 1;
            }),
            "seek table",
        ),
    ];
    for (change, expected) in cases {
        for raw in [false, true] {
            let mut image = stored();
            change(&mut image);
            let daemon = serve(image).await;
            let dir = tempfile::tempdir().unwrap();
            let target = match raw {
                true => dir.path().join("disk"),
                false => dir.path().to_owned(),
            };
            let error = exported(&daemon, &target, raw).await.unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{error} / {expected}");
            assert_eq!(files(dir.path()), [""; 0], "{expected}");
        }
    }
}
