//! Runs against a machine made of code: the whole way, faults, and a daemon killed at every
//! commit.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anneal_protocol::agent::{OrderId, Report};
use anneal_protocol::machine::MachineState;

use super::rack::{MACHINE, Rack};
use super::run::{RunState, StepState};

pub(super) const INSTALL: &str = r#"
name: install-image
timeout: 10m
steps:
  - { uses: netboot, timeout: 1m, retry_delay: 10ms }
  - { name: write, uses: stream-image, timeout: 1m, retry_delay: 10ms }
  - name: user-data
    uses: write-file
    retry_delay: 10ms
    with: { partition: { label: CIDATA }, path: /user-data, contents: "{{ render(image.os ~ '/user-data') }}" }
  - { uses: reboot, timeout: 1m, retry_delay: 10ms }
  - { uses: wait-phone-home, timeout: 1m }
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
        // What is stored of a run and what was told of it are the same, wherever it died.
        let events = rack.store.events_after(0, 10_000, None, Some(&run));
        let events = events.await.unwrap();
        let count = |kind: &str| events.iter().filter(|row| row.event.kind == kind).count();
        let told = ["run.pending", "run.succeeded", "step.succeeded"].map(count);
        assert_eq!(told, [1, 1, 5], "{why}");
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

/// Waits until something is so, for at most a minute.
async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

#[tokio::test]
async fn one_fault_of_each_kind_costs_an_attempt_and_not_the_run() {
    for fault in ["bmc", "reset", "hang", "failure"] {
        let mut rack = Rack::new(INSTALL).await;
        let faults = &rack.world.faults;
        let (counter, step, cycles) = match fault {
            "bmc" => (&faults.bmc_errors, 0, 1),
            "reset" => (&faults.resets, 1, 1),
            "hang" => (&faults.hangs, 1, 2),
            _ => (&faults.failures, 1, 1),
        };
        counter.store(1, Ordering::SeqCst);
        if fault == "hang" {
            rack.silence = Duration::from_secs(2);
        }
        let engine = rack.start_daemon(None);
        let run = engine.start(&Rack::request()).await.unwrap();
        let row = rack.wait(&run).await;
        assert_eq!(row.state, RunState::Succeeded, "{fault}: {}", row.reason);
        let (_, _, steps) = rack.store.run(&run).await.unwrap();
        assert!(steps[step].attempt >= 2, "{fault}: {:?}", steps[step]);
        assert!(*rack.world.cycles.borrow() >= cycles, "{fault}");
        rack.assert_same_inputs();
    }
}

#[tokio::test]
async fn a_node_that_stays_mute_fails_the_run_and_retry_goes_on_from_there() {
    let workflow = INSTALL.replace(
        "wait-phone-home, timeout: 1m",
        "wait-phone-home, timeout: 300ms",
    );
    let mut rack = Rack::new(&workflow).await;
    rack.world.faults.mute.store(1, Ordering::SeqCst);
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    let row = rack.wait(&run).await;
    assert_eq!(row.state, RunState::Failed);
    assert_eq!(
        row.reason,
        "step `wait-phone-home` failed: the installed system did not phone home within 300ms"
    );
    assert_eq!(machine_state(&rack).await, (MachineState::Failed, None));
    let (_, _, steps) = rack.store.run(&run).await.unwrap();
    assert_eq!(
        steps[5].state,
        StepState::Skipped,
        "no agent to collect evidence"
    );
    // Somebody presses the button: without an active run the machine starts its disk.
    rack.world.cycles.send_modify(|n| *n += 1);
    until("the node calls home", async || {
        let seen = rack.store.sightings(MACHINE).await.unwrap();
        seen.iter()
            .any(|s| s.kind == crate::event::kind::PHONE_HOME)
    })
    .await;
    engine.retry(&run).await.unwrap();
    assert_eq!(rack.wait(&run).await.state, RunState::Succeeded);
    assert_eq!(
        machine_state(&rack).await,
        (MachineState::Provisioned, None)
    );
    let error = engine.retry(&run).await.unwrap_err().to_string();
    assert!(
        error.contains("only a run that failed can be retried"),
        "{error}"
    );
}

#[tokio::test]
async fn cancel_and_alarm_stop_a_run_at_once_and_the_agent_is_told() {
    let mut rack = Rack::new(INSTALL).await;
    rack.world.faults.hangs.store(2, Ordering::SeqCst);
    let engine = rack.start_daemon(None);
    for expected in [RunState::Cancelled, RunState::Failed] {
        let before = rack.world.carried.lock().unwrap().len();
        let run = engine.start(&Rack::request()).await.unwrap();
        let second = engine.start(&Rack::request()).await.unwrap_err();
        assert!(matches!(second, super::StartError::Conflict(_)), "{second}");
        let world = rack.world.clone();
        until("the agent writes", async || {
            world.carried.lock().unwrap().len() > before
        })
        .await;
        let (_, _, steps) = rack.store.run(&run).await.unwrap();
        let report = Report {
            order: OrderId {
                run: run.clone(),
                step: 1,
                attempt: 1,
            },
            boot_id: steps[1].boot_id.clone().unwrap(),
            progress: None,
            logs: vec![],
            logs_dropped: 0,
        };
        assert!(!engine.report(MACHINE, &report).await.unwrap().abandon);
        assert!(
            engine.report("r1n2", &report).await.unwrap().abandon,
            "not its run"
        );
        if expected == RunState::Cancelled {
            engine.cancel(&run).await.unwrap();
        } else {
            engine
                .fail_security(&run, "boot token used twice")
                .await
                .unwrap();
        }
        assert_eq!(rack.store.run_row(&run).await.unwrap().state, expected);
        assert!(engine.report(MACHINE, &report).await.unwrap().abandon);
        assert_eq!(engine.wants_agent(MACHINE).await.unwrap(), None);
        assert!(engine.cancel(&run).await.is_err());
    }
    let why = engine.why(MACHINE).await.unwrap();
    assert_eq!(why, "its last run (install-image): boot token used twice");
}

#[tokio::test]
async fn a_plan_that_the_inventory_left_behind_is_not_started() {
    let mut rack = Rack::new(INSTALL).await;
    let engine = rack.start_daemon(None);
    let request = Rack::request();
    let edits: [fn(&mut crate::machine::Machine); 3] = [
        |machine| machine.protected_disks = vec![serial("KEEP")],
        |machine| {
            machine.labels.insert("pool".to_owned(), "other".to_owned());
        },
        |machine| machine.image = Some("debian@12.1".to_owned()),
    ];
    for edit in edits {
        let plan = engine.prepare(&request, "run-1").await.unwrap().plan;
        rack.edit_machine(edit).await;
        let error = engine.insert("run-1".to_owned(), &request, plan).await;
        let error = error.unwrap_err();
        assert!(matches!(error, super::StartError::Stale(_)), "{error}");
        assert_eq!(machine_state(&rack).await, (MachineState::Registered, None));
        assert!(rack.store.run_row("run-1").await.is_err());
    }
    let plan = engine.prepare(&request, "run-1").await;
    assert!(matches!(plan, Err(super::StartError::ImageMissing(_))));
    rack.edit_machine(|machine| machine.image = Some("debian@12".to_owned()))
        .await;
    let plan = engine.prepare(&request, "run-1").await.unwrap().plan;
    let now = crate::clock::now();
    rack.store.remove_machine(MACHINE, now).await.unwrap();
    let error = engine.insert("run-1".to_owned(), &request, plan).await;
    assert!(
        matches!(error, Err(super::StartError::Stale(_))),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_retry_meets_a_changed_inventory_in_its_own_transaction() {
    let workflow = INSTALL.replace(
        "wait-phone-home, timeout: 1m",
        "wait-phone-home, timeout: 300ms",
    );
    let mut rack = Rack::new(&workflow).await;
    rack.world.faults.mute.store(1, Ordering::SeqCst);
    let engine = rack.start_daemon(None);
    let run = engine.start(&Rack::request()).await.unwrap();
    assert_eq!(rack.wait(&run).await.state, RunState::Failed);
    // After `retry` looked at the inventory, before it stores the change.
    let s = engine.load(&run).await.unwrap();
    let change = super::engine::reopen(&s, crate::clock::now()).unwrap();
    rack.edit_machine(|machine| machine.protected_disks = vec![serial("KEEP")])
        .await;
    let error = engine.commit(&s, &change).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`protected_disks` of machine r1n1 was changed"),
        "{error}"
    );
    assert_eq!(machine_state(&rack).await, (MachineState::Failed, None));
    assert_eq!(
        rack.store.run_row(&run).await.unwrap().state,
        RunState::Failed
    );
    // Whatever its texts may say, not only what it boots and writes to.
    rack.edit_machine(|machine| {
        machine.protected_disks.clear();
        machine.config.ssh_keys = vec!["ssh-ed25519 AAAA".to_owned()];
    })
    .await;
    let error = engine.retry(&run).await.unwrap_err().to_string();
    assert!(error.contains("`ssh_keys` differs"), "{error}");
}

fn serial(serial: &str) -> anneal_protocol::disk::ProtectedDisk {
    anneal_protocol::disk::ProtectedDisk {
        serial: Some(serial.to_owned()),
        ..Default::default()
    }
}
