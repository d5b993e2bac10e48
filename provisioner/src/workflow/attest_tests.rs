//! What is attested about runs of the machine made of code, and that it verifies.

use std::time::Duration;

use anneal_image::SigningKey;
use serde_json::{Value, json};

use super::StartRun;
use super::rack::{MACHINE, Rack};
use super::run::RunState;
use super::tests::INSTALL;
use crate::attestation::statement::{AUDIT, PROVISION, STATEMENT};
use crate::attestation::{Attestation, Envelope};
use crate::event::{Event, kind};

async fn attested(rack: &Rack) -> Vec<Attestation> {
    let all = rack
        .store
        .attestations(Some(MACHINE), None, None, None, 100);
    all.await.unwrap()
}

/// The statement, if the daemon's key signed it.
fn open(attestation: &Attestation) -> Value {
    let envelope = Envelope::parse(attestation.envelope.as_bytes()).unwrap();
    let key = SigningKey::from_seed(&[5; 32]).public();
    let (payload, _) = envelope.open(&[key]).unwrap();
    serde_json::from_slice(&payload).unwrap()
}

#[tokio::test]
async fn an_installed_machine_is_attested_and_so_is_its_audit() {
    let mut rack = Rack::new(INSTALL).await;
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    rack.wait(&run).await;
    let installed = &attested(&rack).await[0];
    let statement = open(installed);
    assert_eq!(statement["_type"], STATEMENT);
    assert_eq!(statement["predicateType"], PROVISION);
    assert_eq!(statement["subject"][0]["name"], "debian@12");
    let predicate = &statement["predicate"];
    assert_eq!(predicate["machine"]["name"], MACHINE);
    assert_eq!(predicate["run"]["id"], run.as_str());
    assert_eq!(predicate["steps"].as_array().unwrap().len(), 5);
    assert_eq!(predicate["node"]["hostname"], MACHINE);
    let secrets = rack.world.tokens.lock().unwrap().clone();
    assert!(!secrets.is_empty());
    for secret in secrets {
        assert!(!statement.to_string().contains(&secret), "{statement}");
    }

    let audit = StartRun {
        workflow: Some("audit".to_owned()),
        ..Rack::request()
    };
    let run = engine.start(&audit).await.unwrap();
    assert_eq!(rack.wait(&run).await.state, RunState::Succeeded);
    let all = attested(&rack).await;
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[0].kind.as_str(), all[0].run.as_str()),
        ("audit", run.as_str())
    );
    assert_eq!(all[0].summary, "drifted: ROOT");
    let statement = open(&all[0]);
    assert_eq!(statement["predicateType"], AUDIT);
    assert_eq!(statement["predicate"]["verdict"], "drifted");
}

#[tokio::test]
async fn a_run_that_fails_is_not_attested() {
    let mut rack = Rack::new(&INSTALL.replace("retry_delay: 10ms", "retries: 0")).await;
    let engine = rack.start_daemon(None);
    rack.world
        .faults
        .failures
        .store(1, std::sync::atomic::Ordering::SeqCst);
    let run = engine.start(&Rack::request()).await.unwrap();
    assert_eq!(rack.wait(&run).await.state, RunState::Failed);
    assert!(attested(&rack).await.is_empty());
}

#[tokio::test]
async fn a_daemon_killed_at_the_end_attests_exactly_once() {
    for points in 0.. {
        let mut rack = Rack::new(INSTALL).await;
        let engine = rack.start_daemon(Some(points));
        let run = engine.start(&Rack::request()).await.unwrap();
        assert_eq!(rack.wait(&run).await.state, RunState::Succeeded);
        assert_eq!(attested(&rack).await.len(), 1, "killed at point {points}");
        if !engine.inner.crash.happened() {
            return;
        }
    }
}

/// A unit that calls home beside the agent that is waited for: the latter's word counts.
#[tokio::test]
async fn the_node_is_attested_as_the_wait_heard_it() {
    let wait = "wait-phone-home, timeout: 1m";
    let workflow = INSTALL.replace(wait, &format!("{wait}, with: {{ by: kairos }}"));
    let mut rack = Rack::new(&workflow).await;
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    let called = async {
        loop {
            let seen = rack.store.sightings(MACHINE).await.unwrap();
            if seen.iter().any(|s| s.kind == kind::PHONE_HOME) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let limit = Duration::from_secs(60);
    let called = tokio::time::timeout(limit, called).await;
    called.expect("the unit calls home");
    let daemon = rack.world.daemon.read().unwrap().clone().unwrap();
    let ready = Event::new(kind::KAIROS_READY, "ready")
        .machine(MACHINE)
        .run(&run)
        .data(json!({ "hostname": "from-kairos" }));
    daemon.recorder.record_durably(ready).await.unwrap();
    assert_eq!(rack.wait(&run).await.state, RunState::Succeeded);
    let statement = open(&attested(&rack).await[0]);
    assert_eq!(
        statement["predicate"]["node"],
        json!({ "hostname": "from-kairos" })
    );
    let node = rack.store.machine(MACHINE).await.unwrap().unwrap().node;
    assert_eq!(node.unwrap().hostname.as_deref(), Some("from-kairos"));
}
