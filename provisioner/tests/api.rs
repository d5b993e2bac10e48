//! The daemon's HTTP surfaces, over real sockets and TLS: DHCP and TFTP are off (they have their
//! own tests), and the machines' "firmware" is this test.

#![allow(clippy::unwrap_used)]

#[path = "api/cli.rs"]
mod cli;
#[path = "api/cloud_init.rs"]
mod cloud_init;
#[path = "api/config_urls.rs"]
mod config_urls;
mod daemon;
#[path = "api/event_sink.rs"]
mod event_sink;
#[path = "api/join.rs"]
mod join;
#[path = "api/join_late.rs"]
mod join_late;
#[path = "api/kairos.rs"]
mod kairos;
#[path = "api/kube_apiserver.rs"]
mod kube_apiserver;
#[path = "api/nodes.rs"]
mod nodes;
#[path = "api/render.rs"]
mod render;
#[path = "api/scan.rs"]
mod scan;
#[path = "api/two_parties.rs"]
mod two_parties;
#[path = "api/versions.rs"]
mod versions;

use std::time::Duration;

use anneal_protocol::cmdline::Boot;
use daemon::{Daemon, INVENTORY, NodeKey};
use serde_json::{Value, json};

#[tokio::test]
async fn nothing_but_boot_health_and_metrics_answers_without_a_key() {
    let daemon = Daemon::start().await;
    for path in [
        "machines",
        "runs",
        "events",
        "event-log",
        "tokens",
        "clusters",
        "images",
        "api-keys",
        "workflows",
        "openapi.json",
    ] {
        let answer = daemon
            .anonymous
            .get(daemon.url(&format!("/api/v1/{path}")))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401, "{path}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "unauthorized");
    }
    for base in [&daemon.tls, &daemon.boot] {
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = daemon
                .anonymous
                .get(format!("{base}{path}"))
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), 200, "{base}{path}");
        }
    }
    let metrics = daemon
        .anonymous
        .get(format!("{}/metrics", daemon.boot))
        .send()
        .await
        .unwrap();
    assert!(metrics.text().await.unwrap().ends_with("# EOF\n"));
    for path in ["/agent/v1/next", "/agent/v1/report", "/agent/v1/result"] {
        let answer = daemon
            .anonymous
            .post(daemon.url(path))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 401, "{path}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn several_inventory_files_are_applied_all_or_none() {
    let daemon = Daemon::start().await;
    let other = |text: &str| text.replace("r1n1", "r2n1").replace("r1n2", "r2n2");
    let moved = |text: &str| {
        let text = text.replace("aa:00:0", "bb:00:0");
        text.replace("10.77.0.1", "10.77.0.2")
    };
    let apply = async |second: String| {
        let files = json!({ "files": [
            { "name": "rack1.yaml", "text": INVENTORY }, { "name": "rack2.yaml", "text": second },
        ] });
        daemon.post("/api/v1/inventory", files).await
    };
    // The second file is wrong by itself, or against the first.
    for (second, told) in [
        ("machines: 1\n".to_owned(), "rack2.yaml:1:"),
        (
            other(INVENTORY),
            "MAC 52:54:00:aa:00:01 belongs to machine r1n1 already, in line 4 of rack1.yaml",
        ),
        (
            other(INVENTORY).replace("aa:00:0", "bb:00:0"),
            "address 10.77.0.11 belongs to machine r1n1 already, in line 4 of rack1.yaml",
        ),
        (
            moved(INVENTORY),
            "machine r1n1 is described twice, first in line 2 of rack1.yaml",
        ),
    ] {
        let (status, problem) = apply(second).await;
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(status, 422, "{detail}");
        assert!(
            detail.starts_with("rack2.yaml:") && detail.contains(told),
            "{detail}"
        );
        let stored = daemon.get("/api/v1/machines").await;
        assert_eq!(
            stored["items"],
            json!([]),
            "nothing of the first file either"
        );
    }
    let (status, result) = apply(moved(&other(INVENTORY))).await;
    assert_eq!(status, 200, "{result}");
    assert_eq!(result["changes"].as_array().unwrap().len(), 4);
    let (status, problem) = daemon
        .post("/api/v1/inventory", json!({ "files": [] }))
        .await;
    assert_eq!((status, &problem["code"]), (422, &json!("body-invalid")));
    daemon.stop().await;
}

#[tokio::test]
async fn an_inventory_cannot_name_any_file_of_the_host() {
    let daemon = Daemon::start().await;
    let body = json!({"name": "op", "role": "operator"});
    let (_, key) = daemon.post("/api/v1/api-keys", body).await;
    let operator = daemon.client(key["key"].as_str());
    let apply = async |file: &str| {
        let bmc = format!(
            "disk: {{ hints: {{ serial: DISK2 }} }}\n    bmc: {{ url: \"redfish+https://10.77.0.9\", username: root, password: {{ file: {file} }} }}\n"
        );
        let text = INVENTORY.replace("disk: { hints: { serial: \"DISK2\" } }\n", &bmc);
        let request = operator.post(daemon.url("/api/v1/inventory?dry_run=false"));
        let request = request.header("x-file-name", "rack.yaml").body(text);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let ca_key = daemon.state_path().join("state/pki/ca-key.pem");
    for file in ["/etc/shadow", ca_key.to_str().unwrap()] {
        let (status, problem): (u16, Value) = apply(file).await;
        assert_eq!(
            (status, problem["code"].as_str()),
            (422, Some("inventory-invalid"))
        );
        let told = problem["detail"].as_str().unwrap();
        let wanted = format!("`bmc.password.file`: {file} is not in a directory for passwords");
        assert!(
            told.starts_with("rack.yaml:13:") && told.contains(&wanted),
            "{told}"
        );
    }
    let allowed = daemon.state_path().join("passwords/r1n2");
    let (status, _): (u16, Value) = apply(allowed.to_str().unwrap()).await;
    assert_eq!(status, 200);
    daemon.stop().await;
}

#[tokio::test]
async fn roles_are_kept() {
    let daemon = Daemon::start().await;
    let (status, key) = daemon
        .post(
            "/api/v1/api-keys",
            json!({"name": "eyes", "role": "viewer"}),
        )
        .await;
    assert_eq!(status, 201);
    let viewer = daemon.client(key["key"].as_str());
    let seen = viewer
        .get(daemon.url("/api/v1/machines"))
        .send()
        .await
        .unwrap();
    assert_eq!(seen.status(), 200);
    let dry = viewer
        .post(daemon.url("/api/v1/inventory?dry_run=true"))
        .body(INVENTORY)
        .send()
        .await
        .unwrap();
    assert_eq!(dry.status(), 200);
    let applied = viewer
        .post(daemon.url("/api/v1/inventory"))
        .body(INVENTORY)
        .send()
        .await
        .unwrap();
    assert_eq!(applied.status(), 403);
    let keys = viewer
        .get(daemon.url("/api/v1/api-keys"))
        .send()
        .await
        .unwrap();
    assert_eq!(keys.status(), 403);
    let (status, taken) = daemon
        .post("/api/v1/api-keys", json!({"name": "eyes", "role": "admin"}))
        .await;
    assert_eq!((status, taken["code"].as_str()), (409, Some("conflict")));
    let last = daemon
        .admin
        .delete(daemon.url("/api/v1/api-keys/local-admin"))
        .send()
        .await
        .unwrap();
    assert_eq!(last.status(), 409, "the last admin key must stay");
    let gone = daemon
        .admin
        .delete(daemon.url("/api/v1/api-keys/eyes"))
        .send()
        .await
        .unwrap();
    assert_eq!(gone.status(), 204);
    let seen = viewer
        .get(daemon.url("/api/v1/machines"))
        .send()
        .await
        .unwrap();
    assert_eq!(seen.status(), 401);
    daemon.stop().await;
}

#[tokio::test]
async fn a_wrong_inventory_names_file_line_and_column_and_changes_nothing() {
    let daemon = Daemon::start().await;
    let twice = INVENTORY.replace("52:54:00:aa:00:02", "52:54:00:aa:00:01");
    let answer = daemon
        .admin
        .post(daemon.url("/api/v1/inventory"))
        .header("x-file-name", "rack1.yaml")
        .body(twice)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 422);
    let problem: Value = answer.json().await.unwrap();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.starts_with("rack1.yaml:9:"), "{detail}");
    assert!(detail.contains("r1n1"), "the holder is named: {detail}");
    let machines: Value = daemon.get("/api/v1/machines").await;
    assert_eq!(machines["items"], json!([]));
    daemon.stop().await;
}

#[tokio::test]
async fn a_repeated_write_is_answered_not_repeated() {
    let daemon = Daemon::with_inventory().await;
    let send = |body: Value| {
        daemon
            .admin
            .post(daemon.url("/api/v1/machines/r1n1/provision"))
            .header("idempotency-key", "one")
            .json(&body)
            .send()
    };
    let body = json!({"workflow": "inventory"});
    let (first, second) = tokio::join!(send(body.clone()), send(body.clone()));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(
        (first.status().as_u16(), second.status().as_u16()),
        (201, 201)
    );
    let replayed = [&first, &second]
        .iter()
        .filter(|r| r.headers().contains_key("idempotent-replay"))
        .count();
    assert_eq!(replayed, 1);
    let (first, second): (Value, Value) =
        (first.json().await.unwrap(), second.json().await.unwrap());
    assert_eq!(first["id"], second["id"]);
    let other = send(json!({"workflow": "wipe"})).await.unwrap();
    assert_eq!(other.status(), 422);
    assert_eq!(
        other.json::<Value>().await.unwrap()["code"],
        "idempotency-key-reused"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_second_run_for_one_machine_is_a_conflict_and_cancel_frees_it() {
    let daemon = Daemon::with_inventory().await;
    let (status, run) = daemon
        .post(
            "/api/v1/machines/r1n1/provision",
            json!({"workflow": "inventory"}),
        )
        .await;
    assert_eq!(status, 201, "{run}");
    let (status, problem) = daemon
        .post(
            "/api/v1/machines/r1n1/reprovision",
            json!({"workflow": "inventory"}),
        )
        .await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (409, Some("run-active")),
        "{problem}"
    );
    let by_hand = |machine: &Value| machine["why"].as_str().unwrap().contains("by hand");
    let machine = daemon.until("/api/v1/machines/r1n1", by_hand).await;
    assert_eq!(machine["state"], "provisioning");
    let id = run["id"].as_str().unwrap();
    let (status, cancelled) = daemon
        .post(&format!("/api/v1/runs/{id}/cancel"), json!({}))
        .await;
    assert_eq!(status, 200, "{cancelled}");
    daemon
        .until(&format!("/api/v1/runs/{id}"), |run| {
            run["state"] == "cancelled"
        })
        .await;
    let (status, again) = daemon
        .post(
            "/api/v1/machines/r1n1/provision",
            json!({"workflow": "inventory"}),
        )
        .await;
    assert_eq!(status, 201, "{again}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_is_not_retried_with_a_plan_that_the_inventory_left_behind() {
    let daemon = Daemon::with_inventory().await;
    let (_, run) = daemon
        .post(
            "/api/v1/machines/r1n1/provision",
            json!({"workflow": "inventory"}),
        )
        .await;
    let id = run["id"].as_str().unwrap();
    daemon
        .post(&format!("/api/v1/runs/{id}/cancel"), json!({}))
        .await;
    daemon
        .until(&format!("/api/v1/runs/{id}"), |run| {
            run["state"] == "cancelled"
        })
        .await;
    let protected = INVENTORY.replace(
        "disk: { hints: { serial: \"DISK1\" } }",
        "disk: { hints: { type: nvme } }\n    protected_disks: [ { serial: \"DISK1\" } ]",
    );
    let applied = daemon
        .admin
        .post(daemon.url("/api/v1/inventory"))
        .body(protected)
        .send()
        .await
        .unwrap();
    assert_eq!(applied.status(), 200, "{}", applied.text().await.unwrap());
    let (status, problem) = daemon
        .post(&format!("/api/v1/runs/{id}/retry"), json!({}))
        .await;
    assert_eq!(status, 409, "{problem}");
    assert!(
        problem["detail"].as_str().unwrap().contains("`disk`"),
        "{problem}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_a_run_exists() {
    let daemon = Daemon::with_inventory().await;
    let cases = [
        ("nobody", json!({}), 404),
        ("r1n1", json!({"workflow": "no-such"}), 404),
        ("r1n1", json!({"image": "debian@99"}), 404),
        ("r1n1", json!({"imgae": "debian@12"}), 422),
    ];
    for (machine, body, expected) in cases {
        let (status, problem) = daemon
            .post(
                &format!("/api/v1/machines/{machine}/provision"),
                body.clone(),
            )
            .await;
        assert_eq!(status, expected, "{machine} {body}: {problem}");
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    let runs: Value = daemon.get("/api/v1/runs").await;
    assert_eq!(runs["items"], json!([]));
    daemon.stop().await;
}

#[tokio::test]
async fn the_event_stream_resumes_without_gaps() {
    let daemon = Daemon::with_inventory().await;
    for name in ["a", "b", "c"] {
        daemon
            .post("/api/v1/api-keys", json!({"name": name, "role": "viewer"}))
            .await;
    }
    let log: Value = daemon
        .until("/api/v1/event-log", |log| {
            log["items"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|e| e["kind"] == "api-key.created")
                .count()
                == 3
        })
        .await;
    let items = log["items"].as_array().unwrap();
    let from = items[1]["id"].as_i64().unwrap();
    let mut answer = daemon
        .admin
        .get(daemon.url("/api/v1/events"))
        .header("last-event-id", from.to_string())
        .send()
        .await
        .unwrap();
    daemon
        .post("/api/v1/api-keys", json!({"name": "d", "role": "viewer"}))
        .await;
    let mut text = String::new();
    let read = async {
        while !text.contains("API key \\\"d\\\"") {
            text.push_str(&String::from_utf8_lossy(
                &answer.chunk().await.unwrap().unwrap(),
            ));
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .expect("the new event arrives");
    let ids: Vec<i64> = text
        .lines()
        .filter_map(|l| l.strip_prefix("id: "))
        .map(|id| id.parse().unwrap())
        .collect();
    let expected: Vec<i64> = (from + 1..=from + i64::try_from(ids.len()).unwrap()).collect();
    assert_eq!(ids, expected);
    drop(answer);
    daemon.stop().await;
}

/// Provisions r1n1 and reads the boot script as its firmware would.
pub async fn booted(daemon: &Daemon) -> (String, Boot) {
    let (status, run) = daemon
        .post(
            "/api/v1/machines/r1n1/provision",
            json!({"workflow": "inventory"}),
        )
        .await;
    assert_eq!(status, 201, "{run}");
    let script = daemon.script("10.77.0.11", "52-54-00-aa-00-01").await;
    let line = script
        .lines()
        .find(|l| l.contains("anneal.token="))
        .unwrap_or_else(|| panic!("{script}"));
    (
        run["id"].as_str().unwrap().to_owned(),
        Boot::parse(line).unwrap(),
    )
}

#[tokio::test]
async fn a_boot_token_is_good_once_for_one_key() {
    let daemon = Daemon::with_inventory().await;
    let (run, boot) = booted(&daemon).await;
    assert_eq!(
        (boot.machine.as_str(), boot.run.as_str()),
        ("r1n1", run.as_str())
    );
    let key = NodeKey::new();
    let (status, first) = daemon.enroll("10.77.0.11", &boot, &key).await;
    assert_eq!(status, 200, "{first}");
    let (status, repeat) = daemon.enroll("10.77.0.11", &boot, &key).await;
    assert_eq!(
        status, 200,
        "a repeat by the same key is the same use: {repeat}"
    );
    let (status, replay) = daemon.enroll("10.77.0.11", &boot, &NodeKey::new()).await;
    assert_eq!(
        (status, replay["code"].as_str()),
        (403, Some("token-refused")),
        "{replay}"
    );
    let run = daemon
        .until(&format!("/api/v1/runs/{run}"), |run| {
            run["state"] == "failed"
        })
        .await;
    assert!(
        run["why"].as_str().unwrap().contains("redeemed twice"),
        "{run}"
    );
    let id = run["id"].as_str().unwrap();
    let (status, refused) = daemon
        .post(&format!("/api/v1/runs/{id}/retry"), json!({}))
        .await;
    assert_eq!(
        status, 409,
        "a thief may hold this run's certificate: {refused}"
    );
    let log: Value = daemon.get("/api/v1/event-log?limit=1000").await;
    assert!(
        log["items"]
            .as_array()
            .unwrap()
            .iter()
            .any(|e| e["kind"] == "token.alarm")
    );
    let text = log.to_string();
    assert!(
        !text.contains(&boot.token),
        "the token must not be in the record"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_boot_token_is_refused_from_another_machine_and_after_a_new_script() {
    let daemon = Daemon::with_inventory().await;
    let (run, old) = booted(&daemon).await;
    let (status, other) = daemon.enroll("10.77.0.12", &old, &NodeKey::new()).await;
    assert_eq!(status, 403, "{other}");
    let script = daemon.script("10.77.0.11", "52-54-00-aa-00-01").await;
    assert!(script.contains("anneal.token="));
    let (status, late) = daemon.enroll("10.77.0.11", &old, &NodeKey::new()).await;
    assert_eq!(
        status, 403,
        "a newer script makes the older token worthless: {late}"
    );
    let run = daemon
        .until(&format!("/api/v1/runs/{run}"), |run| {
            run["state"] == "failed"
        })
        .await;
    assert!(
        run["why"]
            .as_str()
            .unwrap()
            .contains("a newer one was fetched since"),
        "the older script's agent lives: somebody else fetched the newer one: {run}"
    );
    let stranger = daemon.script("10.77.0.12", "52-54-00-aa-00-01").await;
    assert!(!stranger.contains("anneal.token="), "{stranger}");
    let unknown = daemon.script("10.77.0.11", "52-54-00-bb-00-01").await;
    assert!(!unknown.contains("anneal.token="), "{unknown}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_agent_speaks_for_its_own_run_only() {
    let daemon = Daemon::with_inventory().await;
    let (run, boot) = booted(&daemon).await;
    let key = NodeKey::new();
    let (status, enrolled) = daemon.enroll("10.77.0.11", &boot, &key).await;
    assert_eq!(status, 200, "{enrolled}");
    let agent = daemon.agent_client(&key, enrolled["certificate"].as_str().unwrap());
    let ask = |run: &str| {
        agent
            .post(daemon.url("/agent/v1/next"))
            .json(&json!({"run": run, "boot_id": "boot-1", "inventory": {"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []}}))
            .send()
    };
    let foreign = ask("another-run").await.unwrap();
    assert_eq!(foreign.status(), 403);
    let own = ask(&run).await.unwrap();
    assert_eq!(own.status(), 200);
    let order: Value = own.json().await.unwrap();
    assert_eq!(order["next"], "order", "{order}");
    assert_eq!(order["action"]["uses"], "inventory", "{order}");
    let as_operator = agent
        .get(daemon.url("/api/v1/machines"))
        .send()
        .await
        .unwrap();
    assert_eq!(as_operator.status(), 401, "an agent is no operator");
    daemon.stop().await;
}

#[tokio::test]
async fn a_machine_without_a_run_boots_its_disk() {
    let daemon = Daemon::with_inventory().await;
    let script = daemon.script("10.77.0.11", "52-54-00-aa-00-01").await;
    assert!(script.starts_with("#!ipxe"), "{script}");
    assert!(!script.contains("anneal.token="), "{script}");
    daemon.stop().await;
}

#[tokio::test]
async fn keys_and_authority_survive_a_restart() {
    let daemon = Daemon::with_inventory().await;
    let key = daemon.key.clone();
    let state = daemon.stop().await;
    let daemon = Daemon::start_in(state).await;
    assert_eq!(daemon.key, key);
    let machines: Value = daemon.get("/api/v1/machines").await;
    assert_eq!(machines["items"].as_array().unwrap().len(), 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_refused_by_name() {
    let daemon = Daemon::start().await;
    let port: u16 = daemon.boot.rsplit(':').next().unwrap().parse().unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut settings = daemon::settings(state.path());
    settings.boot_port = port;
    let error = provisioner::app::App::build(settings)
        .await
        .err()
        .expect("must be refused");
    let text = format!("{error:#}");
    assert!(
        text.contains(&format!("10.77.0.1:{port}"))
            && text.contains("another program has this port"),
        "{text}"
    );
    daemon.stop().await;
}
