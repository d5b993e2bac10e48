//! The event sink, spoken to by gRPC's C core (Debian's python3-grpcio) with messages that protoc
//! makes of `talos/events.proto`: our transcription of what Talos publishes.

use std::process::Command;

use serde_json::{Value, json};

use crate::nodes::{MACHINE, NOBODY, Node, OTHER_MACHINE, come_from, run};

const SINK: &str = "{{ event_sink.endpoint }}";
const READY: &str = r#"["MachineStatusEvent", {"stage": "RUNNING", "status": {"ready": true}}]"#;
const UNREADY: &str = r#"["MachineStatusEvent", {"stage": "RUNNING", "status": {"ready": false,
    "unmetConditions": [{"name": "nodeReady", "reason": "node is not ready"}]}}]"#;

fn on(settings: &mut provisioner::settings::Settings) {
    settings.event_sink = Some(([10, 77, 0, 1], 0).into());
}

/// Sends events; the status of each call.
async fn publish(target: &str, events: &[&str]) -> Vec<String> {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/talos");
    let generated = tempfile::tempdir().unwrap();
    let mut protoc = Command::new("protoc");
    protoc
        .arg(format!("--python_out={}", generated.path().display()))
        .args(["-I", here, "events.proto"]);
    let made = run(protoc, "").await;
    assert!(made.status.success(), "{made:?}");
    let mut client = Command::new("/usr/bin/python3");
    client
        .arg(format!("{here}/client.py"))
        .arg(target)
        .arg(generated.path())
        .env("no_proxy", "*");
    let lines: Vec<_> = events.iter().map(|e| e.replace('\n', " ")).collect();
    let output = run(client, &lines.join("\n")).await;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    told.lines().map(str::to_owned).collect()
}

fn messages(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .map(|e| e["message"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn talos_ends_a_run_when_it_is_running_and_ready() {
    let node = Node::installed(SINK, "{ by: talos }", on, &[]).await;
    come_from(MACHINE).await;
    let sink = &node.written;
    let long = format!(
        r#"["ConfigValidationErrorEvent", {{"error": "{}"}}]"#,
        "x".repeat(100_000)
    );
    let told = publish(
        sink,
        &[
            r#"["SequenceEvent", {"sequence": "boot", "action": "START"}]"#,
            r#"["PhaseEvent", {"phase": "startEverything", "action": "START"}]"#,
            r#"["TaskEvent", {"task": "startAllServices", "action": "START"}]"#,
            r#"["ServiceStateEvent", {"service": "etcd", "action": "FAILED", "message": "no quorum"}]"#,
            r#"["AddressEvent", {"hostname": "r1n1", "addresses": ["10.77.0.11"]}]"#,
            &long,
            UNREADY,
        ],
    )
    .await;
    assert_eq!(told, ["OK"; 7]);
    let waits = node
        .until(|run| run["why"].as_str().unwrap().contains("nodeReady"))
        .await;
    assert!(
        waits["why"].as_str().unwrap().contains(
            "waits for Talos to report that it is running and ready (it says: running, not ready: nodeReady: node is not ready)"
        ),
        "{waits}"
    );
    let log = node.events("talos.event").await;
    assert_eq!(
        messages(&log),
        [
            "Talos: sequence boot begins",
            "Talos: phase startEverything begins",
            "Talos: service etcd failed: no quorum",
        ],
        "no tasks, and nothing that is too large"
    );
    assert_eq!(publish(sink, &[READY]).await, ["OK"]);
    let said = node.said().await;
    assert_eq!(
        said,
        json!({"os": "Talos Linux", "by": "talos", "evidence": "event-sink", "hostname": "r1n1",
            "addresses": ["10.77.0.11"], "address": MACHINE})
    );
    let machine = node.daemon.get("/api/v1/machines/r1n1").await;
    assert_eq!(machine["state"], "provisioned", "{machine}");
    assert_eq!(machine["node"]["hostname"], "r1n1", "{machine}");
    // A later boot says it again: acknowledged, and of no consequence.
    let before = node.events("talos.ready").await.len();
    assert_eq!(publish(sink, &[UNREADY, READY]).await, ["OK", "OK"]);
    assert_eq!(node.events("talos.ready").await.len(), before);
    node.daemon.stop().await;
}

/// Whoever is not the machine, or too early, is not believed.
#[tokio::test]
async fn only_the_machine_is_believed_and_only_while_its_run_waits() {
    let node = Node::written(SINK, "{ by: talos }", on, &[]).await;
    let sink = &node.written;
    come_from(NOBODY).await;
    let told = publish(sink, &[READY]).await;
    assert_eq!(told, ["PERMISSION_DENIED no machine has your address"]);
    // Another machine, without a run of its own.
    come_from(OTHER_MACHINE).await;
    assert_eq!(publish(sink, &[READY]).await, ["OK"]);
    assert_eq!(node.events("talos.ready").await, Vec::<Value>::new());
    node.daemon.script(MACHINE, "52-54-00-aa-00-01").await;
    node.until(|run| run["why"].as_str().unwrap().contains("step 4"))
        .await;
    assert_eq!(publish(sink, &[READY]).await, ["OK"]);
    let run = node.until(|_| true).await;
    assert_eq!(run["state"], "running", "{run}");
    come_from(MACHINE).await;
    assert_eq!(publish(sink, &[READY]).await, ["OK"]);
    node.succeeded().await;
    node.daemon.stop().await;
}

/// What is not Talos gets an answer that says so, and the sink goes on.
#[tokio::test]
async fn strangers_to_grpc_are_told_so() {
    let node = Node::installed(SINK, "{ by: talos }", on, &[]).await;
    come_from(MACHINE).await;
    let sink = &node.written;
    let curl = async |more: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "-o", "/dev/null", "-w"])
            .arg("%{http_code} %header{grpc-status} %header{grpc-message}")
            .args(more)
            .arg(format!("http://{sink}{path}"));
        let output = run(curl, "").await;
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    const PUBLISH: &str = "/events.EventSinkService/Publish";
    let http1 = curl(&[], "/").await;
    assert!(http1.starts_with("000"), "{http1}");
    let h2 = "--http2-prior-knowledge";
    assert_eq!(curl(&[h2, "-d", "x"], PUBLISH).await, "415");
    let grpc = ["-H", "content-type: application/grpc"];
    let told = curl(&[h2, "-d", "x", grpc[0], grpc[1]], PUBLISH).await;
    assert_eq!(told, "200 3 expected one message");
    let told = curl(
        &[h2, "-d", "x", grpc[0], grpc[1]],
        "/machine.MachineService/Reset",
    )
    .await;
    assert_eq!(told, "200 12 this is an event sink for Talos");
    assert_eq!(publish(sink, &[READY]).await, ["OK"]);
    node.succeeded().await;
    node.daemon.stop().await;
}
