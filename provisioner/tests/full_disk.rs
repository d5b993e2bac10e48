//! A daemon whose disk is full: it says so, claims nothing that is not stored, and goes on when
//! there is room again. Its state is on a small tmpfs in a mount namespace of the test's own
//! thread, which goes away with it. Needs root.

#![allow(clippy::unwrap_used)]

mod daemon;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use daemon::{Daemon, INVENTORY};
use serde_json::{Value, json};

/// Room for a database with a few hundred rows.
const SIZE: &str = "size=6m";
const KEYS: &str = "/api/v1/api-keys";

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).status();
    let status = status.expect("mount: install the package mount");
    assert!(status.success(), "mount {args:?}");
}

/// A directory whose `state` is a small file system of its own.
fn small_disk() -> tempfile::TempDir {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .expect("this test needs root: a mount namespace");
    mount(&["--make-rprivate", "/"]);
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    mount(&["-t", "tmpfs", "-o", SIZE, "tmpfs", state.to_str().unwrap()]);
    dir
}

/// Takes all room there is.
fn fill(state: &Path) {
    let mut filler = std::fs::File::create(state.join("state/filler")).unwrap();
    for piece in [1 << 16, 1 << 12, 1] {
        while filler.write_all(&vec![0; piece]).is_ok() {}
    }
}

fn free(state: &Path) {
    std::fs::remove_file(state.join("state/filler")).unwrap();
}

async fn names(daemon: &Daemon) -> Vec<String> {
    let keys = daemon.get(KEYS).await;
    let items = keys["items"].as_array().unwrap();
    let name = |key: &Value| key["name"].as_str().unwrap().to_owned();
    items
        .iter()
        .map(name)
        .filter(|name| name != "local-admin")
        .collect()
}

/// Makes keys until one is refused; the names of those that were made.
async fn make_until_refused(daemon: &Daemon) -> Vec<String> {
    let mut made = Vec::new();
    for n in 0..2_000 {
        let name = format!("key-{n}");
        let (status, answer) = daemon
            .post(KEYS, json!({"name": name, "role": "viewer"}))
            .await;
        match status {
            201 => made.push(name),
            _ => {
                assert_eq!(
                    (status, &answer["code"]),
                    (507, &json!("disk-full")),
                    "{answer}"
                );
                let told = answer["detail"].as_str().unwrap();
                assert!(told.starts_with("nothing was stored"), "{told}");
                return made;
            }
        }
    }
    panic!("the disk is never full");
}

async fn apply(daemon: &Daemon, text: String) -> (u16, Value) {
    let request = daemon.admin.post(daemon.url("/api/v1/inventory"));
    let answer = request.body(text).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_claimed_that_is_not_stored() {
    let daemon = Daemon::start_on(small_disk()).await;
    assert_eq!(apply(&daemon, INVENTORY.to_owned()).await.0, 200);
    fill(daemon.state_path());
    let mut made = make_until_refused(&daemon).await;

    // Writing is refused, reading and booting go on.
    let with_label = INVENTORY.replace("image: debian@99", "image: debian@100");
    let (status, problem) = apply(&daemon, with_label.clone()).await;
    assert_eq!(
        (status, &problem["code"]),
        (507, &json!("disk-full")),
        "{problem}"
    );
    let image = "/api/v1/machines/r1n1";
    assert_eq!(daemon.get(image).await["image"], "debian@99");
    assert_eq!(names(&daemon).await.len(), made.len());
    let script = daemon.script("10.77.0.11", "52:54:00:aa:00:01").await;
    assert!(
        script.contains("disk") || script.contains("exit"),
        "{script}"
    );

    // Room again, without a restart; what is stored is exactly what was said.
    free(daemon.state_path());
    let start = Instant::now();
    loop {
        let (status, answer) = daemon
            .post(KEYS, json!({"name": "after", "role": "viewer"}))
            .await;
        if status == 201 {
            break;
        }
        assert_eq!(status, 507, "{answer}");
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "it does not recover"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(apply(&daemon, with_label).await.0, 200);
    made.push("after".to_owned());
    made.sort();
    let mut found = names(&daemon).await;
    found.sort();
    assert_eq!(found, made);
    // The events that waited are there, and the chain holds.
    let wanted =
        |log: &Value| log.to_string().contains("api-key") && log.to_string().contains("after");
    daemon.until("/api/v1/event-log?limit=1000", wanted).await;
    let state = daemon.stop().await;
    let again = Daemon::start_in(state).await;
    let mut found = names(&again).await;
    found.sort();
    assert_eq!(found, made);
    assert_eq!(again.get(image).await["image"], "debian@100");
    let log = again.get("/api/v1/event-log?limit=1000").await.to_string();
    assert!(!log.contains("chain-broken"), "{log}");
    again.stop().await;
}
