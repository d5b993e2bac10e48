//! Applying inventories to a real database.

use super::*;
use crate::machine::file;

struct Bench {
    store: Store,
    _dir: tempfile::TempDir,
}

const AT: Millis = Millis(1_700_000_000_000);

fn inventory(machines: &[(&str, &str, &str)]) -> Inventory {
    let mut text = String::from("machines:\n");
    for (name, mac, address) in machines {
        text.push_str(&format!(
            "  - name: {name}\n    nics: [ {{ mac: \"52:54:00:aa:00:{mac}\", address: 10.77.0.{address}/24 }} ]\n    \
             disk: {{ hints: {{ type: sata }} }}\n"
        ));
    }
    file::parse(&text, "rack1.yaml").unwrap()
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        Self { store, _dir: dir }
    }

    async fn apply(
        &self,
        machines: &[(&str, &str, &str)],
    ) -> std::result::Result<Vec<String>, String> {
        self.store
            .apply_inventory(&inventory(machines), false, AT)
            .await
            .map(|changes| changes.into_iter().map(|change| change.action).collect())
            .map_err(|error| error.to_string())
    }

    async fn give_run(&self, machine: &str) {
        sqlx::query("UPDATE machines SET active_run = 'run-1', last_run = 'run-1', state = 'provisioning' WHERE name = $1")
            .bind(machine)
            .execute(&self.store.writer)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn applying_twice_changes_nothing() {
    let bench = Bench::new().await;
    let rack = [("r1n1", "01", "11"), ("r1n2", "02", "12")];
    assert_eq!(bench.apply(&rack).await.unwrap(), ["create", "create"]);
    assert_eq!(
        bench.apply(&rack).await.unwrap(),
        ["unchanged", "unchanged"]
    );
    let history = bench.store.machine_history("r1n1").await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(history[0].after, "registered");
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let bench = Bench::new().await;
    let rack = inventory(&[("r1n1", "01", "11")]);
    let changes = bench.store.apply_inventory(&rack, true, AT).await.unwrap();
    assert_eq!(changes[0].action, "create");
    assert_eq!(bench.store.machine("r1n1").await.unwrap(), None);
    // The writer is free again.
    assert_eq!(
        bench.apply(&[("r1n1", "01", "11")]).await.unwrap(),
        ["create"]
    );
}

#[tokio::test]
async fn refuses_what_another_machine_holds_and_stores_nothing() {
    let bench = Bench::new().await;
    bench.apply(&[("r1n1", "01", "11")]).await.unwrap();
    assert_eq!(
        bench
            .apply(&[("r1n3", "03", "13"), ("r1n2", "01", "12")])
            .await
            .unwrap_err(),
        "rack1.yaml:6:20: MAC 52:54:00:aa:00:01 belongs to machine r1n1 already"
    );
    assert_eq!(
        bench.apply(&[("r1n2", "02", "11")]).await.unwrap_err(),
        "rack1.yaml:3:50: address 10.77.0.11 belongs to machine r1n1 already"
    );
    assert_eq!(bench.store.machines(None, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn cards_move_between_machines_of_one_file() {
    let bench = Bench::new().await;
    bench
        .apply(&[("r1n1", "01", "11"), ("r1n2", "02", "12")])
        .await
        .unwrap();
    let swapped = [("r1n1", "02", "12"), ("r1n2", "01", "11")];
    assert_eq!(bench.apply(&swapped).await.unwrap(), ["update", "update"]);
    let snapshot = bench.store.machine_snapshot().await.unwrap();
    let card = &snapshot.by_mac[&"52:54:00:aa:00:01".parse().unwrap()];
    assert_eq!(card.machine, "r1n2");
    assert_eq!(card.address.unwrap().to_string(), "10.77.0.11/24");
    assert!(card.boot);
    assert_eq!(snapshot.by_mac.len(), 2);
}

#[tokio::test]
async fn a_run_keeps_its_machine_as_it_is() {
    let bench = Bench::new().await;
    bench.apply(&[("r1n1", "01", "11")]).await.unwrap();
    bench.give_run("r1n1").await;
    assert_eq!(
        bench.apply(&[("r1n1", "09", "11")]).await.unwrap_err(),
        "rack1.yaml:2:11: `nics` of machine r1n1 cannot change while run run-1 is active: wait for \
         it or cancel it"
    );
    let mut labelled = inventory(&[("r1n1", "01", "11")]);
    labelled.machines[0]
        .machine
        .labels
        .insert("pool".into(), "general".into());
    let changes = bench
        .store
        .apply_inventory(&labelled, false, AT)
        .await
        .unwrap();
    assert_eq!(changes[0].action, "update");
    let row = bench.store.machine("r1n1").await.unwrap().unwrap();
    assert_eq!(row.state, MachineState::Provisioning);
    assert_eq!(row.active_run.as_deref(), Some("run-1"));
    assert_eq!(row.machine.labels["pool"], "general");
    assert_eq!(
        bench
            .store
            .remove_machine("r1n1", AT)
            .await
            .unwrap_err()
            .to_string(),
        "machine r1n1 has an active run: cancel run run-1 first"
    );
}

#[tokio::test]
async fn removes_a_machine_and_frees_its_cards() {
    let bench = Bench::new().await;
    bench.apply(&[("r1n1", "01", "11")]).await.unwrap();
    bench.store.remove_machine("r1n1", AT).await.unwrap();
    assert!(
        bench
            .store
            .machine_snapshot()
            .await
            .unwrap()
            .by_mac
            .is_empty()
    );
    assert_eq!(
        bench.apply(&[("r1n2", "01", "11")]).await.unwrap(),
        ["create"]
    );
    let history = bench.store.machine_history("r1n1").await.unwrap();
    assert_eq!(history[1].before.as_deref(), Some("registered"));
    assert_eq!(history[1].after, "removed");
    assert_eq!(
        bench
            .store
            .remove_machine("r1n1", AT)
            .await
            .unwrap_err()
            .to_string(),
        "no machine is called r1n1"
    );
}

#[tokio::test]
async fn lists_in_pages() {
    let bench = Bench::new().await;
    bench
        .apply(&[
            ("r1n3", "03", "13"),
            ("r1n1", "01", "11"),
            ("r1n2", "02", "12"),
        ])
        .await
        .unwrap();
    let names = |rows: Vec<MachineRow>| -> Vec<String> {
        rows.into_iter().map(|row| row.machine.name).collect()
    };
    let first = names(bench.store.machines(None, 2).await.unwrap());
    assert_eq!(first, ["r1n1", "r1n2"]);
    let rest = names(bench.store.machines(Some("r1n2"), 2).await.unwrap());
    assert_eq!(rest, ["r1n3"]);
}
