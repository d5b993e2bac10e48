//! A machine whose run waits for its installed system: the tests of what such systems say begin
//! here. The agent is this test.

use std::process::{Command, Output};

use anneal_protocol::cmdline::Boot;
use base64::Engine as _;
use provisioner::settings::Settings;
use serde_json::{Value, json};

use crate::daemon::{Daemon, INVENTORY, NodeKey, own_network};

pub const MACHINE: &str = "10.77.0.11";
pub const OTHER_MACHINE: &str = "10.77.0.12";
/// Nobody's reserved address.
pub const NOBODY: &str = "10.77.0.1";

/// Bytes of an image that is written to a machine of code.
const IMAGE_SIZE: u64 = 1 << 20;

/// A daemon and a machine that it has installed.
pub struct Node {
    pub daemon: Daemon,
    pub run: String,
    /// What was written to its disk.
    pub written: String,
    agent: reqwest::Client,
}

impl Node {
    /// Goes on until the machine leaves for its disk; the next boot script lets it.
    pub async fn written(
        contents: &str,
        wait: &str,
        change: impl FnOnce(&mut Settings),
        templates: &[(&str, &str)],
    ) -> Self {
        let mut node = Self::enrolled(None, contents, wait, change, templates).await;
        node.configured().await;
        node
    }

    /// As [`Self::installed`], from an image whose OS is of this version.
    pub async fn of_version(contents: &str, os_version: &str) -> Self {
        let mut node =
            Self::enrolled(Some(os_version), contents, "{ by: token }", |_| {}, &[]).await;
        let order = node.order().await;
        let amount = |bytes| json!({ "frames": 1, "bytes": bytes });
        let output = json!({
            "disk": "vda", "serial": "DISK1", "image": order["action"]["image"], "bytes": IMAGE_SIZE,
            "written": amount(IMAGE_SIZE), "zeroed": amount(0), "unchanged": amount(0), "compared": amount(0),
            "transferred": 1, "sources": [], "duration_ms": 1, "peak_memory": 0,
            "times": { "compare_ms": 0, "fetch_ms": 1, "write_ms": 1, "verify_ms": 1 },
        });
        node.tell(&order, json!({"outcome": "succeeded", "output": output}))
            .await;
        node.configured().await;
        node.started("step 5").await;
        node
    }

    /// Goes on until the agent has enrolled.
    async fn enrolled(
        image: Option<&str>,
        contents: &str,
        wait: &str,
        change: impl FnOnce(&mut Settings),
        templates: &[(&str, &str)],
    ) -> Self {
        own_network();
        let state = tempfile::tempdir().unwrap();
        let folder = |name: &str| state.path().join(name);
        std::fs::create_dir_all(folder("workflows")).unwrap();
        let stream = image.map_or(
            "",
            |_| "  - uses: stream-image\n    with: { verify: none }\n",
        );
        let workflow = format!(
            "name: node\nsteps:\n  - uses: netboot\n{stream}  - uses: write-file\n    with: {{ partition: {{ label: OEM }}, path: /config, contents: {} }}\n  - uses: reboot\n  - uses: wait-phone-home\n    with: {wait}\n    timeout: 5m\n",
            json!(contents)
        );
        std::fs::write(folder("workflows/node.yaml"), workflow).unwrap();
        std::fs::create_dir_all(folder("templates")).unwrap();
        for (name, text) in templates {
            let file = folder("templates").join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        let (workflows, templates) = (folder("workflows"), folder("templates"));
        let daemon = Daemon::start_with(state, |settings| {
            settings.workflows_dir = Some(workflows);
            settings.templates_dir = Some(templates);
            change(settings);
        })
        .await;
        if image.is_some() {
            let raw = vec![7; usize::try_from(IMAGE_SIZE).unwrap()];
            daemon.add_image_of("debian@99", raw, image).await;
        }
        let inventory = daemon.admin.post(daemon.url("/api/v1/inventory"));
        let answer = inventory.body(INVENTORY).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let wanted = json!({"workflow": "node"});
        let (status, run) = daemon.post("/api/v1/machines/r1n1/provision", wanted).await;
        assert_eq!(status, 201, "{run}");
        let script = daemon.script(MACHINE, "52-54-00-aa-00-01").await;
        let token = script.lines().find(|l| l.contains("anneal.token="));
        let boot = Boot::parse(token.unwrap_or_else(|| panic!("{script}"))).unwrap();
        let key = NodeKey::new();
        let (status, enrolled) = daemon.enroll(MACHINE, &boot, &key).await;
        assert_eq!(status, 200, "{enrolled}");
        let agent = daemon.agent_client(&key, enrolled["certificate"].as_str().unwrap());
        Self {
            run: run["id"].as_str().unwrap().to_owned(),
            written: String::new(),
            daemon,
            agent,
        }
    }

    /// The agent writes the configuration and leaves.
    async fn configured(&mut self) {
        let order = self.wrote().await;
        self.tell(&order, json!({"outcome": "leaving"})).await;
    }

    /// The agent writes the configuration; what it is to do next.
    async fn wrote(&mut self) -> Value {
        let order = self.order().await;
        let contents = order["action"]["contents_base64"].as_str();
        let contents = contents.unwrap_or_else(|| panic!("{order}"));
        let bytes = base64::engine::general_purpose::STANDARD.decode(contents);
        self.written = String::from_utf8(bytes.unwrap()).unwrap();
        let output = json!({"partition": "vda3", "bytes": 1, "sha256": "00"});
        self.tell(&order, json!({"outcome": "succeeded", "output": output}))
            .await;
        self.order().await
    }

    /// The machine starts its disk.
    async fn started(&self, waits_at: &str) {
        self.daemon.script(MACHINE, "52-54-00-aa-00-01").await;
        self.until(|run| run["why"].as_str().unwrap().contains(waits_at))
            .await;
    }

    /// As [`Self::written`], and the machine starts its disk: its run waits for it.
    pub async fn installed(
        contents: &str,
        wait: &str,
        change: impl FnOnce(&mut Settings),
        templates: &[(&str, &str)],
    ) -> Self {
        let node = Self::written(contents, wait, change, templates).await;
        node.started("step 4").await;
        node
    }

    async fn order(&self) -> Value {
        let inventory =
            json!({"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []});
        let request = json!({"run": self.run, "boot_id": "boot-1", "inventory": inventory});
        let next = self.agent.post(self.daemon.url("/agent/v1/next"));
        let answer = next.json(&request).send().await.unwrap();
        let order: Value = answer.json().await.unwrap();
        assert_eq!(order["next"], "order", "{order}");
        order
    }

    async fn tell(&self, order: &Value, outcome: Value) {
        let (status, text) = self.told(order, outcome).await;
        assert_eq!(status, 204, "{text}");
    }

    /// What is answered to a result.
    async fn told(&self, order: &Value, outcome: Value) -> (u16, String) {
        let result = json!({"order": order["id"], "boot_id": "boot-1", "outcome": outcome});
        let answer = self.agent.post(self.daemon.url("/agent/v1/result"));
        let answer = answer.json(&result).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    pub async fn until(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let path = format!("/api/v1/runs/{}", self.run);
        self.daemon.until(&path, wanted).await
    }

    /// The run as it is when it has succeeded.
    pub async fn succeeded(&self) -> Value {
        self.until(|run| run["state"] == "succeeded").await
    }

    /// What the machine's last step said when it ended.
    pub async fn said(&self) -> Value {
        let run = self.succeeded().await;
        let steps = run["steps"].as_array().unwrap();
        steps.last().unwrap()["output"].clone()
    }

    /// Recorded events of a kind about the machine, newest last.
    pub async fn events(&self, kind: &str) -> Vec<Value> {
        let log = self.daemon.get("/api/v1/event-log?limit=1000").await;
        let events = log["items"].as_array().unwrap().clone();
        events.into_iter().filter(|e| e["kind"] == kind).collect()
    }
}

/// Runs a program while the daemon, which lives in this thread, goes on. A thread inherits the
/// network namespace of the one that makes it.
pub async fn run(command: Command, input: &str) -> Output {
    use std::io::Write as _;
    use std::process::Stdio;
    let name = format!("{:?}", command.get_program());
    let (done, wait) = tokio::sync::oneshot::channel();
    let (mut command, input) = (command, input.to_owned());
    let thread = std::thread::spawn(move || {
        let outcome = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                child.stdin.take().unwrap().write_all(input.as_bytes())?;
                child.wait_with_output()
            });
        let _ = done.send(outcome);
    });
    let output = wait.await.unwrap();
    thread.join().unwrap();
    output.unwrap_or_else(|e| panic!("{name}: {e}; see PACKAGES in scripts/setup.sh"))
}

/// What connects to the daemon from now on, without saying from where, comes from this address.
pub async fn come_from(address: &str) {
    let mut ip = Command::new("ip");
    ip.args(
        "route replace local 10.77.0.1 dev lo table local proto kernel scope host src".split(' '),
    )
    .arg(address);
    let output = run(ip, "").await;
    assert!(output.status.success(), "{output:?}");
}

/// Whoever cancels a run finds the machine where it was, also when its agent is about to leave.
#[tokio::test]
async fn an_agent_leaves_for_an_attempt_that_counts_and_for_no_other() {
    let mut node = Node::enrolled(None, "text", "{ by: token }", |_| {}, &[]).await;
    let order = node.wrote().await;
    let leaving = json!({"outcome": "leaving"});
    let mut late = order.clone();
    late["id"]["attempt"] = 0.into();
    let (status, text) = node.told(&late, leaving.clone()).await;
    assert_eq!(status, 409, "{text}");
    assert!(text.contains("attempt-over"), "{text}");
    // The second time because the first answer was lost.
    node.tell(&order, leaving.clone()).await;
    node.tell(&order, leaving.clone()).await;
    let path = format!("/api/v1/runs/{}/cancel", node.run);
    let (status, told) = node.daemon.post(&path, json!({})).await;
    assert_eq!(status, 200, "{told}");
    node.until(|run| run["state"] == "cancelled").await;
    let (status, text) = node.told(&order, leaving).await;
    assert_eq!(status, 409, "{text}");
    // Of any other result there is nothing to be said.
    let failed =
        json!({"outcome": "failed", "code": "internal", "message": "no", "retryable": true});
    node.tell(&order, failed).await;
}
