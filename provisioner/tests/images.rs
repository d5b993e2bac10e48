//! Images over the API: who may do what, what is recorded, and what comes out again.

#![allow(clippy::unwrap_used)]

mod daemon;

use anneal_image::{PublicKey, SignedManifest, verify_store};
use daemon::Daemon;
use serde_json::{Value, json};

fn disk(seed: u8) -> Vec<u8> {
    let mut raw = vec![0; 3 << 20];
    for (index, byte) in raw[..1 << 20].iter_mut().enumerate() {
        *byte = seed.wrapping_add((index / 7) as u8);
    }
    raw
}

async fn call(
    client: &reqwest::Client,
    method: &str,
    url: String,
    body: Option<Value>,
) -> (u16, Value) {
    let mut request = client.request(method.parse().unwrap(), url);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or(Value::Null))
}

#[tokio::test]
async fn what_is_stored_comes_out_and_is_the_image() {
    let daemon = Daemon::start().await;
    let raw = disk(1);
    let image = daemon.add_image("debian@1", raw.clone()).await;
    assert_eq!(image["pinned"], false);
    let keys = daemon.get("/api/v1/image-keys").await;
    let key = PublicKey::from_hex(keys["items"][0]["key"].as_str().unwrap()).unwrap();
    assert_eq!(keys["items"][0]["images"], json!(["debian@1"]));
    let bytes = async |path: &str| {
        let answer = daemon.admin.get(daemon.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.bytes().await.unwrap()
    };
    let json = bytes("/api/v1/images/debian@1/manifest").await;
    let id = image["id"].as_str().unwrap();
    let manifest = SignedManifest::open(&json, &[key], id).unwrap();
    let data = bytes("/api/v1/images/debian@1/data").await;
    assert_eq!(data.len() as u64, image["stored"].as_u64().unwrap());
    verify_store(&data[..], &manifest, &mut |_| {}).unwrap();
    let part = daemon
        .admin
        .get(daemon.url("/api/v1/images/debian@1/data"))
        .header("range", "bytes=5-9")
        .send()
        .await
        .unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), data[5..10]);

    let (status, result) = daemon
        .post("/api/v1/images/debian@1/verify", json!({}))
        .await;
    assert_eq!((status, &result["intact"]), (200, &json!(true)));
    assert_eq!(result["verified"], raw.len());
    let stored = daemon
        .state_path()
        .join("state/images")
        .join(id.trim_start_matches("blake3:"));
    let mut damaged = data.to_vec();
    damaged[100] ^= 1;
    std::fs::write(stored.join("data.zst"), damaged).unwrap();
    let (status, result) = daemon
        .post("/api/v1/images/debian@1/verify", json!({}))
        .await;
    assert_eq!((status, &result["intact"]), (200, &json!(false)));
    assert_eq!(result["frame"], 0);
    let log = daemon
        .until("/api/v1/event-log", |log| {
            log.to_string().contains("image.damaged")
        })
        .await;
    assert!(
        log.to_string()
            .contains("the image debian@1 is damaged in the store")
    );
    daemon.stop().await;
}

#[tokio::test]
async fn each_change_needs_its_role_and_is_recorded() {
    let daemon = Daemon::start().await;
    daemon.add_image("debian@1", disk(1)).await;
    daemon.add_image("debian@2", disk(2)).await;
    let mut clients = Vec::new();
    for role in ["viewer", "operator"] {
        let body = json!({"name": role, "role": role});
        let (status, key) = daemon.post("/api/v1/api-keys", body).await;
        assert_eq!(status, 201);
        clients.push(daemon.client(key["key"].as_str()));
    }
    let (viewer, operator) = (&clients[0], &clients[1]);
    let mirror = "/api/v1/images/debian@1/mirrors";
    let no_mirror = json!({"url": "ftp://nowhere"});
    let all_ages = json!({"older_than_ms": 0});
    // Method, path, body, status for a viewer, an operator, the admin.
    let table: [(&str, &str, Option<Value>, [u16; 3]); 9] = [
        ("PUT", "/api/v1/images/debian@1/pin", None, [403, 200, 200]),
        (
            "DELETE",
            "/api/v1/images/debian@1/pin",
            None,
            [403, 200, 200],
        ),
        ("PUT", "/api/v1/images/debian@1/pin", None, [403, 200, 200]),
        ("POST", mirror, Some(no_mirror), [403, 422, 422]),
        (
            "DELETE",
            "/api/v1/images/debian@1/mirrors?url=x",
            None,
            [403, 422, 422],
        ),
        ("POST", "/api/v1/images/gc", Some(all_ages), [403, 403, 200]),
        ("POST", "/api/v1/image-keys", None, [403, 403, 201]),
        ("POST", "/api/v1/image-keys/resign", None, [403, 403, 200]),
        (
            "POST",
            "/api/v1/images/debian@1/verify",
            None,
            [200, 200, 200],
        ),
    ];
    for (method, path, body, expected) in table {
        for (client, expected) in [viewer, operator, &daemon.admin].into_iter().zip(expected) {
            let (status, answer) = call(client, method, daemon.url(path), body.clone()).await;
            assert_eq!(status, expected, "{method} {path}: {answer}");
        }
    }
    // The second had no pin.
    let images = daemon.get("/api/v1/images").await;
    let names: Vec<_> = images["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["name"])
        .collect();
    assert_eq!(names, ["debian@1"]);
    assert_eq!(images["items"][0]["pinned"], true);
    let keys = daemon.get("/api/v1/image-keys").await;
    assert_eq!(keys["items"].as_array().unwrap().len(), 1, "{keys}");

    let log = daemon
        .until("/api/v1/event-log", |log| {
            log.to_string().contains("image-key.resigned")
        })
        .await
        .to_string();
    for said in [
        "operator pinned the image debian@1",
        "operator took the pin off the image debian@1",
        "collected the image debian@2",
        "made the image key",
        "signed 1 images again",
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
    for (path, status) in [
        ("/api/v1/images/debian@9/pin", 404),
        ("/api/v1/images/debian/pin", 422),
    ] {
        let (found, answer) = call(operator, "PUT", daemon.url(path), None).await;
        assert_eq!(found, status, "{answer}");
    }
    daemon.stop().await;
}
