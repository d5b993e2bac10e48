//! What becomes of tokens for joining when their run does not wait for them.

use std::time::Duration;

use serde_json::json;

use crate::join::{INVENTORY, Machine, apply, site};

/// A run that is cancelled while its token is made: nobody gets the token, and it is taken back.
#[tokio::test]
async fn a_token_that_comes_too_late_goes_to_nobody() {
    let (daemon, state) = site().await;
    let place = |text: &str| text.replace("STATE", &state.to_string_lossy());
    let (status, told) = apply(&daemon, place(INVENTORY)).await;
    assert_eq!(status, 200, "{told}");
    let slow = "cd STATE
echo x > asked
while [ ! -e go ]; do sleep 0.05; done
echo late01.0123456789abcdef
";
    std::fs::write(state.join("mint"), place(slow)).unwrap();
    let machine = Machine::start(&daemon, "r1n1", "10.77.0.11", "52-54-00-aa-00-01").await;
    let inventory = json!({"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []});
    let ask = json!({"run": machine.run, "boot_id": "boot-1", "inventory": inventory});
    let agent = async {
        loop {
            let next = machine.call("next", &ask).await;
            if next["next"] != "wait" {
                return next;
            }
        }
    };
    let meanwhile = async {
        while !state.join("asked").exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let path = format!("/api/v1/runs/{}/cancel", machine.run);
        let (status, told) = daemon.post(&path, json!({})).await;
        assert!((200..300).contains(&status), "{told}");
        std::fs::write(state.join("go"), "").unwrap();
    };
    let both = async { tokio::join!(agent, meanwhile) };
    let (next, ()) = tokio::time::timeout(Duration::from_secs(60), both)
        .await
        .expect("an answer");
    assert_eq!(next["next"], "finished", "{next}");
    assert!(!next.to_string().contains("late01"), "{next}");
    daemon
        .until("/api/v1/tokens", |page| {
            let all = page["items"].as_array().unwrap();
            let mut join = all.iter().filter(|t| t["purpose"] == "join");
            join.any(|t| t["state"] == "revoked")
        })
        .await;
    let revoked = std::fs::read_to_string(state.join("revoked")).unwrap();
    assert_eq!(revoked, "late01\n");
    daemon.stop().await;
}
