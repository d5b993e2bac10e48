//! Who fetches boot scripts beside the machine: honest repeats go on, thieves fail the run.

use anneal_protocol::cmdline::Boot;
use serde_json::{Value, json};

use crate::booted;
use crate::daemon::{Daemon, NodeKey};

async fn script(daemon: &Daemon) -> Boot {
    let script = daemon.script("10.77.0.11", "52-54-00-aa-00-01").await;
    let line = script
        .lines()
        .find(|l| l.contains("anneal.token="))
        .unwrap_or_else(|| panic!("{script}"));
    Boot::parse(line).unwrap()
}

/// Enrols; the client that speaks for it.
async fn enrolled(daemon: &Daemon, boot: &Boot) -> reqwest::Client {
    let key = NodeKey::new();
    let (status, answer) = daemon.enroll("10.77.0.11", boot, &key).await;
    assert_eq!(status, 200, "{answer}");
    daemon.agent_client(&key, answer["certificate"].as_str().unwrap())
}

async fn next(daemon: &Daemon, agent: &reqwest::Client, run: &str, boot: &str) -> (u16, Value) {
    let inventory = json!({"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []});
    let answer = agent
        .post(daemon.url("/agent/v1/next"))
        .json(&json!({"run": run, "boot_id": boot, "inventory": inventory}))
        .send()
        .await
        .unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn alarms(daemon: &Daemon) -> usize {
    let log = daemon.get("/api/v1/event-log?limit=1000").await;
    let events = log["items"].as_array().unwrap();
    events.iter().filter(|e| e["kind"] == "token.alarm").count()
}

/// Firmware that fetches twice, and a machine that is switched off and on before and after its
/// agent enrols: each time the latest script is the one that runs.
#[tokio::test]
async fn a_machine_that_starts_again_alarms_nobody() {
    let daemon = Daemon::with_inventory().await;
    let (run, _) = booted(&daemon).await;
    script(&daemon).await;
    let first = enrolled(&daemon, &script(&daemon).await).await;
    let (status, order) = next(&daemon, &first, &run, "boot-1").await;
    assert_eq!(
        (status, order["next"].as_str()),
        (200, Some("order")),
        "{order}"
    );
    // Here the machine loses power: its agent never speaks again.
    script(&daemon).await;
    let second = enrolled(&daemon, &script(&daemon).await).await;
    let (status, order) = next(&daemon, &second, &run, "boot-2").await;
    assert_eq!(
        (status, order["next"].as_str()),
        (200, Some("order")),
        "{order}"
    );
    assert_eq!(order["id"]["attempt"], 2, "{order}");
    assert_eq!(alarms(&daemon).await, 0);
    daemon.stop().await;
}

/// A thief fetches a script while the machine's agent works, and enrols with it.
#[tokio::test]
async fn two_living_agents_fail_the_run() {
    let daemon = Daemon::with_inventory().await;
    let (run, boot) = booted(&daemon).await;
    let machine = enrolled(&daemon, &boot).await;
    let (status, _) = next(&daemon, &machine, &run, "boot-1").await;
    assert_eq!(status, 200);
    let stolen = script(&daemon).await;
    let (status, order) = next(&daemon, &machine, &run, "boot-1").await;
    assert_eq!(status, 200, "a script alone changes nothing: {order}");
    let thief = enrolled(&daemon, &stolen).await;
    let (status, problem) = next(&daemon, &machine, &run, "boot-1").await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (403, Some("superseded"))
    );
    let view = daemon
        .until(&format!("/api/v1/runs/{run}"), |run| {
            run["state"] == "failed"
        })
        .await;
    let why = view["why"].as_str().unwrap();
    assert!(why.contains("two agents speak for r1n1"), "{why}");
    assert_eq!(alarms(&daemon).await, 1);
    let (_, over) = next(&daemon, &thief, &run, "boot-2").await;
    assert_eq!(over["next"], "finished", "{over}");
    let (status, refused) = daemon
        .post(&format!("/api/v1/runs/{run}/retry"), json!({}))
        .await;
    assert_eq!(status, 409, "{refused}");
    daemon.stop().await;
}

/// An agent that was silent when its run was retried is not the run's agent any more, though
/// nobody has followed it yet. Nobody is alarmed: there is only one.
#[tokio::test]
async fn a_retry_without_its_agent_leaves_the_agents_certificate_behind() {
    let silence = std::time::Duration::from_millis(200);
    let daemon = Daemon::start_with_inventory(|settings| settings.agent_silence = silence).await;
    let (run, boot) = booted(&daemon).await;
    let agent = enrolled(&daemon, &boot).await;
    let (status, _) = next(&daemon, &agent, &run, "boot-1").await;
    assert_eq!(status, 200);
    let path = |what: &str| format!("/api/v1/runs/{run}/{what}");
    daemon.post(&path("cancel"), json!({})).await;
    // It says once that it is over.
    let (_, over) = next(&daemon, &agent, &run, "boot-1").await;
    assert_eq!(over["next"], "finished", "{over}");
    tokio::time::sleep(2 * silence).await;
    let (status, answer) = daemon.post(&path("retry"), json!({})).await;
    assert!(status < 300, "{answer}");
    let (status, problem) = next(&daemon, &agent, &run, "boot-1").await;
    assert_eq!(
        (status, problem["code"].as_str()),
        (403, Some("enrolment-void")),
        "{problem}"
    );
    assert_eq!(alarms(&daemon).await, 0);
    let again = enrolled(&daemon, &script(&daemon).await).await;
    let (status, answer) = next(&daemon, &again, &run, "boot-2").await;
    assert_eq!(status, 200, "{answer}");
    assert_ne!(answer["next"], "finished", "{answer}");
    daemon.stop().await;
}
