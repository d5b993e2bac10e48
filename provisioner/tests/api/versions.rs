//! What a node says that it runs, and what of it is kept when it is not what was installed.

use serde_json::{Value, json};

use crate::nodes::{MACHINE, Node};

/// The node calls home; what was answered.
async fn calls_home(node: &Node, report: Value) -> (u16, Value) {
    let url = node.daemon.url("/node/v1/phone-home");
    let client = node.daemon.client_at(MACHINE);
    let request = client.post(url).bearer_auth(&node.written);
    let answer = request.json(&report).send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or(Value::Null))
}

const TOKEN: &str = "{{ phone_home.token }}";

#[tokio::test]
async fn a_node_that_fell_back_is_recorded_as_it_runs_and_its_run_fails() {
    let node = Node::of_version(TOKEN, "2").await;
    for (report, field) in [
        (json!({ "version": "1\n2" }), "version"),
        (json!({ "image_version": "1".repeat(257) }), "image_version"),
    ] {
        let (status, problem) = calls_home(&node, report).await;
        assert_eq!(status, 422, "{problem}");
        assert!(
            problem["detail"].as_str().unwrap().starts_with(field),
            "{problem}"
        );
    }
    let report = json!({ "os": "Debian GNU/Linux 12", "version": "12", "image_version": "1" });
    assert_eq!(calls_home(&node, report).await.0, 204);
    let run = node.until(|run| run["state"] == "failed").await;
    let why = run["why"].as_str().unwrap();
    let difference = "the installed image debian@99 says version 2, the node runs 1";
    assert!(why.contains(difference), "{why}");
    let machine = node.daemon.get("/api/v1/machines/r1n1").await;
    assert_eq!(machine["state"], "failed");
    assert!(
        machine["why"].as_str().unwrap().contains(difference),
        "{machine}"
    );
    let told = json!({
        "os": "Debian GNU/Linux 12", "version": "12", "image_version": "1", "installed_version": "2",
    });
    assert_eq!(machine["node"], told);
    let events = node.events("node.other-version").await;
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["message"], difference);
    assert_eq!(events[0]["data"]["installed_version"], "2");
    node.daemon.stop().await;
}

#[tokio::test]
async fn what_was_installed_is_the_daemons_word_and_no_version_is_unknown() {
    for (report, kept) in [
        (
            json!({ "version": "12", "image_version": "2", "installed_version": "3" }),
            json!({ "version": "12", "image_version": "2" }),
        ),
        (
            json!({ "hostname": "r1n1", "version": "", "image_version": "" }),
            json!({ "hostname": "r1n1" }),
        ),
    ] {
        let node = Node::of_version(TOKEN, "2").await;
        assert_eq!(calls_home(&node, report).await.0, 204);
        node.succeeded().await;
        let machine = node.daemon.get("/api/v1/machines/r1n1").await;
        assert_eq!(
            (&machine["state"], &machine["node"]),
            (&json!("provisioned"), &kept)
        );
        assert!(node.events("node.other-version").await.is_empty());
        node.daemon.stop().await;
    }
}
