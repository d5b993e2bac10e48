//! The Kairos agent's phone-home API. The client is `kairos.py`: written after the protocol of the
//! agent's published source, the agent itself is Go and not built here.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::nodes::{MACHINE, NOBODY, Node, run};

const TOKEN: &str = "{{ phone_home.token }}";

struct Agent {
    node: Node,
    ca: tempfile::NamedTempFile,
    home: tempfile::TempDir,
}

impl Agent {
    async fn installed() -> Self {
        let node = Node::installed(TOKEN, "{ by: kairos }", |_| {}, &[]).await;
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), node.daemon.ca()).unwrap();
        let home = tempfile::tempdir().unwrap();
        Self { node, ca, home }
    }

    fn credentials(&self) -> std::path::PathBuf {
        self.home.path().join("credentials")
    }

    /// One life of the agent: what it heard.
    async fn lives(
        &self,
        token: &str,
        from: &str,
        credentials: &Path,
        states: &[&str],
    ) -> Vec<Value> {
        let mut agent = Command::new("/usr/bin/python3");
        agent
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/kairos.py"))
            .args([&self.node.daemon.tls, token])
            .arg(self.ca.path())
            .arg(from)
            .arg(credentials)
            .args(states);
        let output = run(agent, "").await;
        assert!(output.status.success(), "{output:?}");
        let told = String::from_utf8(output.stdout).unwrap();
        told.lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect()
    }

    async fn runs(&self, states: &[&str]) -> Vec<Value> {
        let credentials = self.credentials();
        self.lives(&self.node.written, MACHINE, &credentials, states)
            .await
    }
}

#[tokio::test]
async fn a_kairos_node_registers_and_its_active_image_ends_the_run() {
    let agent = Agent::installed().await;
    let told = agent.runs(&["recovery", "active"]).await;
    assert_eq!(
        told,
        [
            json!(["registered", "r1n1"]),
            json!(["connected"]),
            json!(["pong", "ping"]),
            json!(["closed", 1000, "the run is over"]),
        ],
        "no command is ever sent"
    );
    let said = agent.node.said().await;
    assert_eq!(said["by"], "kairos");
    assert_eq!(said["hostname"], "r1n1");
    assert_eq!(said["os"], "Ubuntu 24.04.1 LTS, Kairos v4.2.0");
    assert_eq!(said["evidence"], "heartbeat");
    let reports = agent.node.events("kairos.report").await;
    let messages: Vec<_> = reports
        .iter()
        .map(|e| e["message"].as_str().unwrap())
        .collect();
    assert_eq!(
        messages,
        [
            "the Kairos agent registered, from its recovery image, as at the first boot of a raw image",
            "the Kairos agent reports from its recovery image, as at the first boot of a raw image",
            "the Kairos agent reports from its active image",
        ]
    );
    let machine = agent.node.daemon.get("/api/v1/machines/r1n1").await;
    assert_eq!(machine["state"], "provisioned", "{machine}");
    // It comes back with what it has kept, as after every boot: nobody listens, nothing alarms.
    assert_eq!(
        agent.runs(&["active"]).await,
        [json!(["websocket dial", 401])]
    );
    let all = agent.node.daemon.get("/api/v1/event-log?limit=1000").await;
    let text = all.to_string();
    assert!(
        !text.contains("token.alarm") && !text.contains(&agent.node.written),
        "{text}"
    );
    agent.node.daemon.stop().await;
}

/// The first boot of a raw image, in recovery, may forget its credentials.
#[tokio::test]
async fn a_node_that_forgot_its_credentials_registers_again() {
    let agent = Agent::installed().await;
    let mut first = Box::pin(agent.runs(&["recovery"]));
    let recovery = async {
        loop {
            if agent.node.events("kairos.report").await.len() == 2 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        told = &mut first => panic!("closed: {told:?}"),
        heard = tokio::time::timeout(std::time::Duration::from_secs(60), recovery) => heard.expect("its reports are kept"),
    }
    let run = agent.node.until(|_| true).await;
    assert_eq!(run["state"], "running", "recovery is not the system: {run}");
    let old = agent.home.path().join("old");
    std::fs::rename(agent.credentials(), &old).unwrap();
    let mut second = Box::pin(agent.runs(&["recovery"]));
    let minute = std::time::Duration::from_secs(60);
    let told = tokio::select! {
        told = &mut second => panic!("closed: {told:?}"),
        told = tokio::time::timeout(minute, first) => told.expect("a run has one socket"),
    };
    let replaced = json!(["closed", 1000, "another socket took its place"]);
    assert_eq!(told.last(), Some(&replaced), "{told:?}");
    let token = agent.node.written.clone();
    let told = agent.lives(&token, MACHINE, &old, &["active"]).await;
    assert_eq!(
        told,
        [json!(["websocket dial", 401])],
        "the key before is no good"
    );
    // With what it has kept.
    let third = agent.runs(&["active"]).await;
    assert_eq!(third[0], json!(["connected"]), "{third:?}");
    agent.node.succeeded().await;
    let told = second.await;
    assert_eq!(told[0], json!(["registered", "r1n1"]));
    assert_eq!(told.last(), Some(&replaced), "{told:?}");
    agent.node.daemon.stop().await;
}

#[tokio::test]
async fn what_is_stolen_fails_the_run() {
    let agent = Agent::installed().await;
    let nowhere = agent.home.path().join("none");
    let told = agent.lives("00", MACHINE, &nowhere, &[]).await;
    assert_eq!(told, [json!(["registration failed", 403, "token-refused"])]);
    let token = agent.node.written.clone();
    let mut real = Box::pin(agent.runs(&["passive"]));
    let passive = async {
        while agent.node.events("kairos.report").await.len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        told = &mut real => panic!("closed: {told:?}"),
        heard = tokio::time::timeout(std::time::Duration::from_secs(60), passive) => heard.expect("its reports are kept"),
    }
    let told = agent.lives(&token, NOBODY, &nowhere, &["active"]).await;
    assert_eq!(told, [json!(["registration failed", 410, "token-spent"])]);
    let run = agent.node.until(|run| run["state"] == "failed").await;
    assert!(run["why"].as_str().unwrap().contains("used twice"), "{run}");
    assert_eq!(real.await.last().unwrap()[0], "closed");
    agent.node.daemon.stop().await;
}
