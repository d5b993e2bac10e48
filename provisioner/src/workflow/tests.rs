//! Runs against a machine made of code: the whole way, faults, and a daemon killed at every
//! commit.

use anneal_protocol::machine::MachineState;

use super::rack::{MACHINE, Rack};
use super::run::{RunState, StepState};

const INSTALL: &str = r#"
name: install-image
timeout: 60s
steps:
  - { uses: netboot, timeout: 5s, retry_delay: 10ms }
  - { name: write, uses: stream-image, timeout: 10s, retry_delay: 10ms }
  - name: user-data
    uses: write-file
    retry_delay: 10ms
    with: { partition: { label: CIDATA }, path: /user-data, contents: "{{ render(image.os ~ '/user-data') }}" }
  - { uses: reboot, timeout: 5s, retry_delay: 10ms }
  - { uses: wait-phone-home, timeout: 5s }
on_failure:
  - uses: collect-evidence
"#;

async fn machine_state(rack: &Rack) -> (MachineState, Option<String>) {
    let row = rack.store.machine(MACHINE).await.unwrap().unwrap();
    (row.state, row.active_run)
}

#[tokio::test]
async fn installs_a_machine() {
    let mut rack = Rack::new(INSTALL).await;
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    assert_eq!(
        machine_state(&rack).await,
        (MachineState::Provisioning, Some(run.clone()))
    );
    let row = rack.wait(&run).await;
    assert_eq!((row.state, row.reason.as_str()), (RunState::Succeeded, ""));
    assert_eq!(
        machine_state(&rack).await,
        (MachineState::Provisioned, None)
    );
    let node = rack.store.machine(MACHINE).await.unwrap().unwrap().node;
    assert_eq!(node.unwrap().hostname.as_deref(), Some(MACHINE));
    let carried: Vec<_> = rack
        .world
        .carried
        .lock()
        .unwrap()
        .iter()
        .map(|c| c.step)
        .collect();
    assert_eq!(carried, [1, 2, 3]);
    assert_eq!(*rack.world.cycles.borrow(), 1);
    assert_eq!(engine.wants_agent(MACHINE).await.unwrap(), None);
    let view = engine.view(&run).await.unwrap();
    assert!(view.why.starts_with("succeeded at "), "{}", view.why);
    let again = engine.start(&Rack::request()).await.unwrap();
    assert_eq!(rack.wait(&again).await.state, RunState::Succeeded);
}

#[tokio::test]
async fn survives_being_killed_at_every_commit() {
    let mut points = 0;
    loop {
        let mut rack = Rack::new(INSTALL).await;
        let engine = rack.start_daemon(Some(points));
        // A start that was not answered was not promised.
        let run = match engine.start(&Rack::request()).await {
            Ok(run) => run,
            Err(error) => panic!("{error}"),
        };
        let row = rack.wait(&run).await;
        let why = format!("killed at point {points}: {}", row.reason);
        assert_eq!(row.state, RunState::Succeeded, "{why}");
        rack.assert_same_inputs();
        let (_, _, steps) = rack.store.run(&run).await.unwrap();
        let main = &steps[..5];
        assert!(
            main.iter().all(|s| s.state == StepState::Succeeded),
            "{why}: {main:?}"
        );
        let streamed = rack
            .world
            .carried
            .lock()
            .unwrap()
            .iter()
            .filter(|c| c.step == 1)
            .count();
        assert_eq!(streamed, 1, "{why}: written more often than needed");
        if !engine.inner.crash.happened() {
            break;
        }
        points += 1;
    }
    assert!(points > 20, "only {points} places to die");
}
