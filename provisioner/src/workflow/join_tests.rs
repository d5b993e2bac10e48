//! Runs of a machine that joins a cluster.

use std::time::Duration;

use super::drive::NoInputs;
use super::engine;
use super::rack::Rack;
use super::run::{RunState, StepState};
use super::secrets::Secrets;
use super::tests::INSTALL;
use crate::settings::{ClusterSettings, IssuerSettings, JoinSettings};

/// A rack whose machine joins a cluster with tokens that a script makes.
async fn joining(workflow: &str) -> Rack {
    let mut rack = Rack::new(workflow).await;
    let dir = rack.dir.path();
    let program = dir.join("mint");
    let script = format!(
        "echo x >> {}/minted\necho abcdef.0123456789abcdef\n",
        dir.display()
    );
    std::fs::write(&program, script).unwrap();
    rack.join = JoinSettings {
        clusters: vec![ClusterSettings {
            name: "prod".into(),
            endpoint: "https://10.0.0.1:6443".into(),
            host: "10.0.0.1:6443".into(),
            ttl: Duration::from_secs(3600),
            ca: None,
            issuer: IssuerSettings::Exec {
                // Not started itself: another test's child may have it open for writing.
                command: vec!["/bin/sh".into(), program.to_string_lossy().into_owned()],
                revoke: None,
                timeout: Duration::from_secs(20),
            },
        }],
        secret_dirs: Vec::new(),
    };
    rack.edit_machine(|machine| machine.config.cluster = Some("prod".into()))
        .await;
    rack
}

/// What can be planned and not be written fails its step, once and for all: an agent that asks
/// again would have secrets made without end.
#[tokio::test]
async fn a_text_that_its_secrets_break_fails_the_step() {
    let workflow = INSTALL.replace(
        "render(image.os ~ '/user-data')",
        "phone_home.token ~ (join.token | unb64)",
    );
    assert_ne!(workflow, INSTALL);
    let mut rack = joining(&workflow).await;
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    let row = rack.wait(&run).await;
    assert_eq!(row.state, RunState::Failed);
    let told = "what was planned cannot be rendered with the secrets";
    assert!(
        row.reason.starts_with("step `user-data` failed: ") && row.reason.contains(told),
        "{}",
        row.reason
    );
    assert!(!row.reason.contains("0123456789abcdef"), "{}", row.reason);
    let minted = std::fs::read_to_string(rack.dir.path().join("minted")).unwrap();
    assert_eq!(minted, "x\n", "once");
}

/// A text that would be another one without them is not rendered.
#[tokio::test]
async fn secrets_that_cannot_be_read_now_are_no_change_of_a_template() {
    let mut rack = joining(INSTALL).await;
    rack.join.clusters[0].issuer = IssuerSettings::Talos { secrets: None };
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    let row = rack.wait(&run).await;
    assert_eq!(row.state, RunState::Succeeded, "{}", row.reason);
    let mut s = engine.load(&run).await.unwrap();
    let idx = s.steps.iter().position(|row| row.name == "user-data");
    let idx = idx.unwrap();
    let none = Secrets::redacted();
    assert!(engine.inputs(&s, idx, &none).await.is_ok());
    let contents = "{{ 'a' if talos.aescbc_secret is defined else 'b' }}";
    let step = &mut s.plan.workflow.steps[idx];
    step.with.insert("contents".into(), contents.into());
    let told = engine.inputs(&s, idx, &none).await;
    assert!(matches!(told, Err(NoInputs::Issuer(_))), "{told:?}");
    s.steps[idx].state = StepState::Running;
    s.steps[idx].attempt = 1;
    let change = engine::later(&s, idx, "no secrets", crate::clock::now());
    let row = &change.steps[idx];
    assert_eq!(
        (row.state, row.reason.as_str()),
        (StepState::Pending, "no secrets")
    );
}
