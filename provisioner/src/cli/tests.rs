//! The commands against a daemon's API: real TLS, a certificate of our own authority, and
//! handlers that answer what a test needs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anneal_protocol::api::{MachineView, Page, Plan, Problem, RunView};
use axum::Router;
use axum::extract::{Query, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Refused, Unreachable};
use super::context::Context;
use super::follow::{self, Show};
use super::*;
use crate::http::listener::Listener;
use crate::pki::Pki;

/// A daemon's TLS listener with the handlers of one test.
pub(super) struct Daemon {
    pub(super) client: Client,
    context: Context,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) async fn daemon(router: Router) -> Daemon {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::open(dir.path(), &["127.0.0.1".parse().unwrap()]).unwrap();
    let tls = Some(pki.server_config().unwrap());
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), tls)
        .await
        .unwrap();
    let context = Context {
        server: format!("https://{}", listener.local_addr().unwrap()),
        ca: pki.ca_pem().to_owned(),
        key: "the-key".to_owned(),
    };
    let stop = CancellationToken::new();
    tokio::spawn(listener.run(router, stop.clone()));
    Daemon {
        client: Client::new(&context).unwrap(),
        context,
        stop,
        _dir: dir,
    }
}

type Seen = Arc<Mutex<Vec<HeaderMap>>>;

fn problem(status: StatusCode, code: &str, detail: &str) -> impl IntoResponse {
    let problem = Problem {
        kind: format!("/problems/{code}"),
        title: code.to_owned(),
        status: status.as_u16(),
        code: code.to_owned(),
        detail: detail.to_owned(),
    };
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, serde_json::to_string(&problem).unwrap())
}

fn run(state: &str) -> Value {
    json!({
        "id": "run-1", "machine": "r1n1", "workflow": "install-image", "state": state,
        "why": "waits for the agent", "requested_by": "test",
        "created_at": "2026-11-21T10:00:00.000Z", "deadline": "2026-11-21T10:45:00.000Z",
        "steps": [],
    })
}

fn event(id: i64, kind: &str, second: u32) -> String {
    let view = json!({
        "id": id, "at": format!("2026-11-21T10:00:{second:02}.500Z"), "kind": kind,
        "run": "run-1", "message": "it happened", "data": {},
    });
    format!("id: {id}\nevent: {kind}\ndata: {view}\n\n")
}

#[test]
fn the_grammar_is_sound() {
    Cli::command().debug_assert();
}

#[tokio::test]
async fn trusts_no_other_authority_than_the_contexts() {
    let ours = daemon(Router::new()).await;
    let other = daemon(Router::new()).await;
    let mixed = Context {
        ca: other.context.ca.clone(),
        ..ours.context.clone()
    };
    let client = Client::new(&mixed).unwrap();
    let error = client.get::<Value>(&["machines"], &[]).await.unwrap_err();
    assert!(error.downcast_ref::<Unreachable>().is_some(), "{error:#}");
    assert!(format!("{error:#}").contains("certificate"), "{error:#}");
}

#[test]
fn never_sends_the_key_in_clear() {
    let context = Context {
        server: "http://127.0.0.1:1".to_owned(),
        ca: String::new(),
        key: "k".to_owned(),
    };
    let error = Client::new(&context).unwrap_err().to_string();
    assert!(error.contains("is not https"), "{error}");
    assert!(!format!("{context:?}").contains("\"k\""));
}

#[tokio::test]
async fn a_daemon_that_is_not_there_has_a_hint() {
    let gone = daemon(Router::new()).await;
    let context = Context {
        server: "https://127.0.0.1:1".to_owned(),
        ..gone.context.clone()
    };
    let error = Client::new(&context)
        .unwrap()
        .get::<Value>(&["x"], &[])
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot reach the daemon at https://127.0.0.1:1")
    );
    assert!(client::hint(&error).unwrap().contains("anneal serve"));
}

#[tokio::test]
async fn tells_what_the_daemon_says() {
    let router = Router::new()
        .route(
            "/api/v1/machines/r1n1/provision",
            post(|| async {
                problem(StatusCode::CONFLICT, "run-active", "machine r1n1 has run x")
            }),
        )
        .fallback(|| async { (StatusCode::NOT_FOUND, "not ours") });
    let daemon = daemon(router).await;
    let path = ["machines", "r1n1", "provision"];
    let error = daemon.client.post(&path, &json!({})).await.unwrap_err();
    assert_eq!(error.to_string(), "machine r1n1 has run x");
    assert!(client::hint(&error).unwrap().contains("anneal run cancel"));
    let error = daemon
        .client
        .get::<Value>(&["runs"], &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("404 Not Found"), "{error}");
}

#[tokio::test]
async fn reads_every_page_and_encodes_names() {
    #[derive(serde::Deserialize)]
    struct Which {
        after: Option<String>,
    }
    let router = Router::new()
        .route(
            "/api/v1/tokens",
            get(|Query(which): Query<Which>| async move {
                let (items, next) = match which.after.as_deref() {
                    None => (vec![1, 2], Some("2 &x".to_owned())),
                    Some("2 &x") => (vec![3], None),
                    Some(_) => (vec![], None),
                };
                axum::Json(Page { items, next })
            }),
        )
        .fallback(
            |request: Request| async move { axum::Json(json!({ "path": request.uri().path() })) },
        );
    let daemon = daemon(router).await;
    let all: Vec<u32> = daemon.client.list(&["tokens"], &[], 100).await.unwrap();
    assert_eq!(all, [1, 2, 3]);
    let two: Vec<u32> = daemon.client.list(&["tokens"], &[], 2).await.unwrap();
    assert_eq!(two, [1, 2]);
    let told: Value = daemon
        .client
        .get(&["machines", "a/../b"], &[])
        .await
        .unwrap();
    assert_eq!(told["path"], "/api/v1/machines/a%2F..%2Fb");
}

#[tokio::test]
async fn a_write_is_repeated_with_its_key_when_the_connection_breaks() {
    let seen = Seen::default();
    let record = seen.clone();
    let router = Router::new().route(
        "/api/v1/runs/run-1/cancel",
        post(move |headers: HeaderMap| async move {
            let mut seen = record.lock().unwrap();
            seen.push(headers);
            let first = seen.len() == 1;
            drop(seen);
            // A panic drops the connection without an answer.
            assert!(!first, "on purpose: the connection breaks here");
            axum::Json(run("cancelled"))
        }),
    );
    let daemon = daemon(router).await;
    daemon
        .client
        .post(&["runs", "run-1", "cancel"], &json!({}))
        .await
        .unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0]["idempotency-key"], seen[1]["idempotency-key"]);
    assert_eq!(seen[0]["authorization"], "Bearer the-key");
}

const INVENTORY: &str = "machines:\n  - name: r1n1\n    nics: [ { mac: \"52:54:00:aa:00:01\" } ]\n    \
    bmc: { url: \"redfish+https://10.77.1.11\", username: root, password: { file: secret } }\n    \
    disk: { hints: { type: sata } }\n";

#[tokio::test]
async fn apply_sends_all_files_at_once_with_their_names_and_absolute_paths() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let router = Router::new().route(
        "/api/v1/inventory",
        post(
            move |query: Query<Value>, files: axum::Json<Value>| async move {
                record.lock().unwrap().push((query.0, files.0));
                axum::Json(json!({ "dry_run": true, "changes": [] }))
            },
        ),
    );
    let daemon = daemon(router).await;
    let dir = tempfile::tempdir().unwrap();
    let files = ["a.yaml", "b.yml"].map(|name| dir.path().join(name));
    std::fs::write(&files[0], INVENTORY).unwrap();
    let other = INVENTORY.replace("r1n1", "r1n2").replace(":01\"", ":02\"");
    std::fs::write(&files[1], other).unwrap();
    let line = [
        "anneal",
        "apply",
        "--dry-run",
        "-f",
        dir.path().to_str().unwrap(),
        "-o",
        "json",
    ];
    let Command::Apply(args) = Cli::parse_from(line).command else {
        panic!()
    };
    apply::apply(daemon.client.clone(), args, Format::Json)
        .await
        .unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1, "one request, so all or nothing");
    let (query, sent) = &seen[0];
    assert_eq!(query["dry_run"], "true");
    let secret = dir.path().join("secret");
    for (n, file) in files.iter().enumerate() {
        assert_eq!(sent["files"][n]["name"], file.to_str().unwrap());
        let text = sent["files"][n]["text"].as_str().unwrap();
        let path = format!("{{ file: \"{}\" }}", secret.display());
        assert!(text.contains(&path), "{text}");
    }
}

#[test]
fn mistakes_in_files_are_told_before_anything_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a.yaml"), INVENTORY).unwrap();
    std::fs::write(path("b.yml"), INVENTORY).unwrap();
    let read = |paths: &[PathBuf]| apply::read_all(paths).unwrap_err().to_string();
    assert_eq!(
        read(&[dir.path().to_owned()]),
        format!(
            "machine r1n1 is described in {} and in {}: keep one",
            path("a.yaml").display(),
            path("b.yml").display()
        )
    );
    std::fs::write(path("a.yaml"), INVENTORY.replace("sata", "sato")).unwrap();
    assert_eq!(
        read(&[path("a.yaml")]),
        format!(
            "{}:5:28: unknown word `sato`, did you mean `sata`?",
            path("a.yaml").display()
        )
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(read(&[empty.path().to_owned()]).contains("has no *.yaml"));
}

/// A daemon whose event stream breaks after the first event; the run then ends as `end`.
async fn run_that_ends(end: &'static str) -> (Daemon, Seen) {
    let seen = Seen::default();
    let record = seen.clone();
    let streams = seen.clone();
    let router = Router::new()
        .route(
            "/api/v1/events",
            get(move |headers: HeaderMap| async move {
                let mut seen = record.lock().unwrap();
                seen.push(headers);
                let text = match seen.len() {
                    1 => event(7, "step.running", 2),
                    _ => event(8, &format!("run.{end}"), 3),
                };
                ([(header::CONTENT_TYPE, "text/event-stream")], text)
            }),
        )
        .route(
            "/api/v1/runs/run-1",
            get(move || async move {
                let over = streams.lock().unwrap().len() > 1;
                axum::Json(run(if over { end } else { "running" }))
            }),
        )
        .route(
            "/api/v1/event-log",
            get(|| async { axum::Json(json!({ "items": [] })) }),
        );
    (daemon(router).await, seen)
}

async fn follow_to_the_end(end: &'static str) -> (anyhow::Result<RunView>, Seen) {
    let (daemon, seen) = run_that_ends(end).await;
    let run: RunView = serde_json::from_value(run("pending")).unwrap();
    let show = Show {
        screen: None,
        label: String::new(),
        after: 0,
    };
    let ended = follow::follow(&daemon.client, run, show).await.unwrap();
    (follow::succeeded(ended), seen)
}

#[tokio::test]
async fn following_resumes_after_the_last_event() {
    let (ended, seen) = follow_to_the_end("succeeded").await;
    assert_eq!(ended.unwrap().state, "succeeded");
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0]["last-event-id"], "0");
    assert_eq!(seen[1]["last-event-id"], "7");
}

#[tokio::test]
async fn following_a_run_that_fails_is_a_failure() {
    let (ended, _) = follow_to_the_end("failed").await;
    let error = ended.unwrap_err();
    assert_eq!(
        error.to_string(),
        "run run-1 of machine r1n1 failed: waits for the agent"
    );
    assert!(
        client::hint(&error)
            .unwrap()
            .contains("anneal run retry run-1")
    );
}

#[tokio::test]
async fn following_ends_when_the_daemon_refuses() {
    let router = Router::new().fallback(|| async {
        problem(StatusCode::UNAUTHORIZED, "unauthorized", "send an API key")
    });
    let daemon = daemon(router).await;
    let run: RunView = serde_json::from_value(run("running")).unwrap();
    let show = Show {
        screen: None,
        label: String::new(),
        after: 0,
    };
    let error = follow::follow(&daemon.client, run, show).await.unwrap_err();
    assert!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
}

#[test]
fn a_run_reads_well() {
    let mut value = run("failed");
    value["finished_at"] = json!("2026-11-21T10:02:00.000Z");
    value["why"] = json!("write the image: the disk is too small");
    value["steps"] = json!([
        { "index": 0, "phase": "main", "name": "boot the agent", "uses": "netboot",
          "state": "succeeded", "attempts": 1, "started_at": "2026-11-21T10:00:00.100Z",
          "finished_at": "2026-11-21T10:00:40.100Z" },
        { "index": 1, "phase": "main", "name": "write the image", "uses": "stream-image",
          "state": "failed", "attempts": 3, "reason": "the disk is too small",
          "started_at": "2026-11-21T10:00:40.100Z", "finished_at": "2026-11-21T10:02:00.000Z" },
        { "index": 2, "phase": "on-failure", "name": "collect-evidence",
          "uses": "collect-evidence", "state": "pending", "attempts": 0 },
    ]);
    value["phases"] = json!([
        { "name": "power", "duration_ms": 3000 }, { "name": "dhcp", "duration_ms": 9000 },
    ]);
    let run: RunView = serde_json::from_value(value).unwrap();
    assert_eq!(
        super::run::summary(&run),
        "\
run run-1 of machine r1n1: failed (took 2m00s)
write the image: the disk is too small

#  STEP                           USES              STATE      TRIES  STARTED  TOOK   WHY
1  boot the agent                 netboot           succeeded  1      +0.1s    40.0s
2  write the image                stream-image      failed     3      +40.1s   1m19s  the disk is too small
3  collect-evidence (on-failure)  collect-evidence  pending    0

PHASE  TIME
power  3.0s   25%
dhcp   9.0s   75%
"
    );
}

#[test]
fn a_plan_reads_well() {
    let plan: Plan = serde_json::from_value(json!({
        "machine": "r1n1", "workflow": "install-image", "image": "blake3:ab",
        "disk": "type nvme, min_size 100.0 GiB", "warnings": ["the machine was never seen"],
        "steps": [
            { "name": "boot the agent", "uses": "netboot", "runs_on": "daemon", "with": {},
              "runs": true, "destructive": false },
            { "name": "write the config", "uses": "write-file", "runs_on": "agent",
              "with": { "path": "/user-data", "contents": "#cloud-config\ntoken: (redacted)\n" },
              "runs": true, "destructive": true },
        ],
    }))
    .unwrap();
    assert_eq!(
        provision::show_plan(&plan),
        "\
r1n1: workflow install-image, image blake3:ab
disk: type nvme, min_size 100.0 GiB
warning: the machine was never seen
#  STEP              USES        WHERE   DISK
1  boot the agent    netboot     daemon
2  write the config  write-file  agent   writes

2. write the config
   contents:
     | #cloud-config
     | token: (redacted)
   path: /user-data
nothing was touched: leave out --plan to do this
"
    );
}

#[test]
fn a_machine_reads_well() {
    let machine: MachineView = serde_json::from_value(json!({
        "name": "r1n1", "rack": "r1", "state": "provisioned", "why": "provisioned 2 minutes ago",
        "nics": [ { "mac": "52:54:00:aa:00:01", "address": "10.77.0.11/24", "boot": true } ],
        "disk": { "type": "nvme", "min_size": 107_374_182_400u64 },
        "protected_disks": [ { "serial": "S5" } ],
        "node": { "os": "Debian GNU/Linux 12", "version": "12", "image_version": "1", "installed_version": "2",
                  "machine_id": "ab12" },
        "labels": { "pool": "general" }, "updated_at": "2026-11-21T10:00:00.000Z",
    }))
    .unwrap();
    assert_eq!(
        super::machine::show(&machine),
        "\
r1n1: provisioned 2 minutes ago
state            provisioned
rack             r1
nic              52:54:00:aa:00:01 10.77.0.11/24 (boots)
bmc              none: a person works the power button
disk             min_size 100.0 GiB, type nvme
protected        serial S5
label            pool=general
node os          Debian GNU/Linux 12
node version     1, NOT 2, which was installed
node machine-id  ab12
changed          2026-11-21T10:00:00.000Z
"
    );
}
