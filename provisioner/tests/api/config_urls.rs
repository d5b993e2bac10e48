//! Configuration by URL, fetched by curl and by Ignition itself. The agent is this test: it takes
//! the order that holds the URL.

use std::path::Path;
use std::process::Command;

use anneal_protocol::cmdline::Boot;
use base64::Engine as _;
use serde_json::{Value, json};

use crate::daemon::{Daemon, INVENTORY, NodeKey, inventory_with_a_vlan};
use crate::nodes::run;

const MACHINE: &str = "10.77.0.11";
const OTHER_MACHINE: &str = "10.77.0.12";
/// Nobody's reserved address.
const THIEF: &str = "10.77.0.1";

const WORKFLOW: &str = r#"name: by-url
steps:
  - uses: netboot
  - name: write the pointer
    uses: write-file
    with: { partition: { label: OEM }, path: /config.ign, contents: "{{ CONTENTS }}" }
"#;

const TEMPLATES: &[(&str, &str)] = &[
    (
        "site/pointer.ign",
        r#"{"ignition": {"version": "3.3.0",
  "config": {"replace": {"source": {{ config_url('site/worker.ign') | tojson }} }},
  "security": {"tls": {"certificateAuthorities": [
    {"source": {{ ("data:;base64," ~ (server.ca_pem | b64)) | tojson }} }]}}}}"#,
    ),
    (
        "site/worker.ign",
        r#"{"ignition": {"version": "3.3.0"}, "storage": {"files": [{"path": "/etc/token",
  "contents": {"source": {{ ("data:," ~ machine.name ~ "," ~ phone_home.token) | tojson }} }}]}}"#,
    ),
    (
        "seed/user-data",
        "#cloud-config\nhostname: {{ machine.name }}\n",
    ),
    ("seed/meta-data", "instance-id: {{ run.id }}\n"),
    ("broken/user-data", "one\n{{ machine.nothing }}\n"),
];

struct Site {
    daemon: Daemon,
    run: String,
    /// What the agent was told to write.
    written: String,
    ca: tempfile::NamedTempFile,
}

fn given(contents: &str) -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    let workflows = state.path().join("workflows");
    std::fs::create_dir_all(&workflows).unwrap();
    let workflow = WORKFLOW.replace("{{ CONTENTS }}", contents);
    std::fs::write(workflows.join("by-url.yaml"), workflow).unwrap();
    for (name, text) in TEMPLATES {
        let file = state.path().join("templates").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    state
}

async fn serving(contents: &str, plain: bool) -> Daemon {
    crate::daemon::own_network();
    let daemon = Daemon::start_with(given(contents), |settings| {
        let state = settings.state_dir.parent().unwrap().to_owned();
        settings.workflows_dir = Some(state.join("workflows"));
        settings.templates_dir = Some(state.join("templates"));
        settings.plain_config_urls = plain;
    })
    .await;
    let answer = daemon
        .admin
        .post(daemon.url("/api/v1/inventory"))
        .body(INVENTORY)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    daemon
}

impl Site {
    /// Goes on until the agent has the order that holds the URL.
    async fn set(contents: &str, plain: bool) -> Self {
        let daemon = serving(contents, plain).await;
        let (status, run) = daemon
            .post(
                "/api/v1/machines/r1n1/provision",
                json!({"workflow": "by-url"}),
            )
            .await;
        assert_eq!(status, 201, "{run}");
        let run = run["id"].as_str().unwrap().to_owned();
        let script = daemon.script(MACHINE, "52-54-00-aa-00-01").await;
        let line = script
            .lines()
            .find(|l| l.contains("anneal.token="))
            .unwrap();
        let key = NodeKey::new();
        let (status, enrolled) = daemon
            .enroll(MACHINE, &Boot::parse(line).unwrap(), &key)
            .await;
        assert_eq!(status, 200, "{enrolled}");
        let agent = daemon.agent_client(&key, enrolled["certificate"].as_str().unwrap());
        let next = json!({"run": run, "boot_id": "boot-1", "inventory": {"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []}});
        let order: Value = agent
            .post(daemon.url("/agent/v1/next"))
            .json(&next)
            .send()
            .await
            .unwrap()
            .json()
            .await
            .unwrap();
        let contents = order["action"]["contents_base64"].as_str();
        let contents = contents.unwrap_or_else(|| panic!("{order}"));
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(contents)
            .unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), daemon.ca()).unwrap();
        Self {
            daemon,
            run,
            written: String::from_utf8(bytes).unwrap(),
            ca,
        }
    }

    /// Status and body of a fetch by curl from an address, with the pinned authority.
    async fn curl(&self, from: &str, more: &[&str], url: &str) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--interface", from])
            .arg("--cacert")
            .arg(self.ca.path())
            .args(["-w", "\n%{http_code}"])
            .args(more)
            .arg(url);
        let output = run(curl, "").await;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text} {output:?}");
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    async fn tokens(&self) -> Vec<Value> {
        let page = self.daemon.get("/api/v1/tokens").await;
        let all = page["items"].as_array().unwrap().clone();
        all.into_iter()
            .filter(|t| t["purpose"] == "config")
            .collect()
    }

    async fn expect_failed(&self, word: &str) {
        let run = self
            .daemon
            .until(&format!("/api/v1/runs/{}", self.run), |run| {
                run["state"] == "failed"
            })
            .await;
        assert!(run["why"].as_str().unwrap().contains(word), "{run}");
    }
}

#[tokio::test]
async fn a_config_url_is_served_once_to_one_client() {
    let site = Site::set("{{ config_url('site/worker.ign') }}", false).await;
    let url = site.written.clone();
    assert!(
        url.starts_with(&format!("{}/node/v1/config/", site.daemon.tls)),
        "{url}"
    );
    let tokens = site.tokens().await;
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0]["subject"], "site/worker.ign");
    assert_eq!(tokens[0]["state"], "live");

    // What does not use it up.
    let (status, _) = site.curl(MACHINE, &["-I"], &url).await;
    assert_eq!(status, 200);
    let (status, body) = site.curl(MACHINE, &["-r", "0-9"], &url).await;
    assert_eq!(status, 416, "{body}");
    let (status, body) = site.curl(MACHINE, &["-d", "x"], &url).await;
    assert_eq!(status, 405, "{body}");
    let (status, body) = site.curl(OTHER_MACHINE, &[], &url).await;
    assert_eq!(status, 403, "another machine: {body}");
    site.daemon.apply(inventory_with_a_vlan()).await;
    let (status, body) = site.curl(OTHER_MACHINE, &[], &url).await;
    assert_eq!(status, 403, "another machine, by its VLAN: {body}");
    let (status, body) = site.curl(MACHINE, &[], &format!("{url}/user-data")).await;
    assert_eq!(status, 404, "{body}");
    assert_eq!(site.tokens().await[0]["state"], "live");

    let (status, first) = site.curl(MACHINE, &[], &url).await;
    assert_eq!(status, 200, "{first}");
    let config: Value = serde_json::from_str(&first).unwrap();
    let source = config["storage"]["files"][0]["contents"]["source"]
        .as_str()
        .unwrap();
    let inner = source.strip_prefix("data:,r1n1,").unwrap();
    assert_eq!(
        inner.len(),
        64,
        "a phone-home token was made for it: {inner}"
    );
    let (status, again) = site.curl(MACHINE, &[], &url).await;
    assert_eq!(
        (status, &again),
        (200, &first),
        "the same bytes in the grace"
    );
    assert_eq!(site.tokens().await[0]["state"], "used");
    let (status, _) = site.curl(MACHINE, &["-I"], &url).await;
    assert_eq!(status, 200, "HEAD in the grace");

    let (status, body) = site.curl(THIEF, &[], &url).await;
    assert_eq!(status, 410, "{body}");
    assert!(body.contains("\"token-spent\""), "{body}");
    site.expect_failed("fetched again").await;
    let (status, _) = site.curl(MACHINE, &[], &url).await;
    assert_eq!(status, 410, "its run is over");
    // Nothing that the other one may have copied is good any more.
    let bearer = format!("Authorization: Bearer {inner}");
    let home = site.daemon.url("/node/v1/phone-home");
    let json = "Content-Type: application/json";
    let report = ["-H", bearer.as_str(), "-H", json, "-d", r#"{"os": "x"}"#];
    let (status, body) = site.curl(MACHINE, &report, &home).await;
    assert_eq!(status, 410, "{body}");

    let log = site.daemon.get("/api/v1/event-log?limit=1000").await;
    let events = log["items"].as_array().unwrap();
    let served = events.iter().filter(|e| e["kind"] == "config.served");
    assert_eq!(served.count(), 2, "{log}");
    let alarm = |e: &&Value| e["kind"] == "token.alarm" && e["data"]["fails_run"] == true;
    assert_eq!(events.iter().filter(alarm).count(), 1, "{log}");
    let secret = url.rsplit('/').next().unwrap();
    for hidden in [secret, inner] {
        assert!(
            !log.to_string().contains(hidden),
            "a secret is in the record"
        );
    }
    let (status, refused) = site
        .daemon
        .post(&format!("/api/v1/runs/{}/retry", site.run), json!({}))
        .await;
    assert_eq!(status, 409, "{refused}");
    site.daemon.stop().await;
}

#[tokio::test]
async fn a_seed_serves_each_document_and_outlives_the_daemon() {
    let site = Site::set("{{ config_url('seed/') }}", false).await;
    let url = site.written.clone();
    assert!(url.ends_with('/'), "{url}");
    let (status, meta) = site.curl(MACHINE, &[], &format!("{url}meta-data")).await;
    assert_eq!(
        (status, meta),
        (200, format!("instance-id: {}\n", site.run))
    );
    let (status, user) = site.curl(MACHINE, &[], &format!("{url}user-data")).await;
    assert_eq!(
        (status, user.as_str()),
        (200, "#cloud-config\nhostname: r1n1\n")
    );
    for absent in ["vendor-data", "network-config", "passwd", ""] {
        let (status, body) = site.curl(MACHINE, &[], &format!("{url}{absent}")).await;
        assert_eq!(status, 404, "{absent}: {body}");
    }
    // Its address and port are new, its tokens are not.
    let Site {
        daemon, run, ca, ..
    } = site;
    let path = url.strip_prefix(&daemon.tls).unwrap().to_owned();
    let daemon = Daemon::start_with(daemon.stop().await, |settings| {
        let state = settings.state_dir.parent().unwrap().to_owned();
        settings.workflows_dir = Some(state.join("workflows"));
        settings.templates_dir = Some(state.join("templates"));
    })
    .await;
    let site = Site {
        written: daemon.url(&path),
        daemon,
        run,
        ca,
    };
    let (status, user) = site
        .curl(MACHINE, &[], &format!("{}user-data", site.written))
        .await;
    assert_eq!(
        (status, user.as_str()),
        (200, "#cloud-config\nhostname: r1n1\n")
    );
    // Grace is for the one client.
    let (status, _) = site
        .curl(THIEF, &[], &format!("{}meta-data", site.written))
        .await;
    assert_eq!(status, 410);
    site.expect_failed("fetched again").await;
    site.daemon.stop().await;
}

/// Debian's Ignition, as a first boot runs it: the pointer from the disk names the authority and
/// the URL.
#[tokio::test]
async fn ignition_fetches_its_config_by_url() {
    let site = Site::set("{{ render('site/pointer.ign') }}", false).await;
    let dir = tempfile::tempdir().unwrap();
    let pointer = dir.path().join("config.ign");
    std::fs::write(&pointer, &site.written).unwrap();
    let cache = dir.path().join("cache.json");
    let fetch = |cache: &Path| {
        let mut ignition = Command::new("/usr/lib/dracut/modules.d/30ignition/ignition");
        ignition
            .args(["--stage", "fetch", "--platform", "file", "--log-to-stdout"])
            .arg("--root")
            .arg(dir.path())
            .arg("--config-cache")
            .arg(cache)
            .env("IGNITION_CONFIG_FILE", &pointer);
        run(ignition, "")
    };
    let output = fetch(&cache).await;
    assert!(output.status.success(), "{output:?}");
    let config = std::fs::read_to_string(&cache).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    let file = &config["storage"]["files"][0];
    assert_eq!(file["path"], "/etc/token");
    let source = file["contents"]["source"].as_str().unwrap();
    assert!(source.starts_with("data:,r1n1,"), "{source}");
    // The daemon sees it from an address that no machine has reserved; it is the token's all the
    // same, and nobody else's.
    let token = &site.tokens().await[0];
    assert_eq!(token["state"], "used");
    let url = serde_json::from_str::<Value>(&site.written).unwrap();
    let url = url["ignition"]["config"]["replace"]["source"]
        .as_str()
        .unwrap()
        .to_owned();
    let (status, _) = site.curl(MACHINE, &[], &url).await;
    assert_eq!(status, 410, "another address");
    site.expect_failed("fetched again").await;
    site.daemon.stop().await;
}

#[tokio::test]
async fn configuration_in_clear_needs_the_setting_and_the_template() {
    let clear = "{{ config_url('site/worker.ign', plain=true) }}";
    let site = Site::set(clear, true).await;
    let url = site.written.clone();
    assert!(
        url.starts_with(&format!("{}/node/v1/config/", site.daemon.boot)),
        "{url}"
    );
    let (status, body) = site.curl(MACHINE, &[], &url).await;
    assert_eq!(status, 200, "{body}");
    site.daemon.stop().await;

    // A token that was made for TLS is worth nothing in clear.
    let site = Site::set("{{ config_url('site/worker.ign') }}", true).await;
    let in_clear = site.written.replace(&site.daemon.tls, &site.daemon.boot);
    let (status, body) = site.curl(MACHINE, &[], &in_clear).await;
    assert_eq!(status, 403, "{body}");
    site.daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_before_power() {
    for (contents, words) in [
        (
            "{{ config_url('site/workers.ign') }}",
            &["site/worker.ign"][..],
        ),
        ("{{ config_url('nowhere/') }}", &["nowhere/user-data"]),
        (
            "{{ config_url('broken/user-data') }}",
            &["broken/user-data:2", "undefined"],
        ),
        (
            "{{ config_url('site/worker.ign', plain=true) }}",
            &["plain_config_urls"],
        ),
        ("{{ config_url('site/worker.ign', plan=true) }}", &["plan"]),
    ] {
        let daemon = serving(contents, false).await;
        let (status, problem) = daemon
            .post(
                "/api/v1/machines/r1n1/provision",
                json!({"workflow": "by-url", "plan": true}),
            )
            .await;
        assert_eq!(status, 422, "{contents}: {problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("by-url.yaml:5"), "{contents}: {detail}");
        for word in words {
            assert!(detail.contains(word), "{contents}: {detail}");
        }
        daemon.stop().await;
    }
    let daemon = serving("{{ config_url('site/worker.ign') }}", false).await;
    let (status, plan) = daemon
        .post(
            "/api/v1/machines/r1n1/provision",
            json!({"workflow": "by-url", "plan": true}),
        )
        .await;
    assert_eq!(status, 200, "{plan}");
    let shown = plan.to_string();
    assert!(shown.contains("/node/v1/config/(redacted)"), "{shown}");
    let tokens = daemon.get("/api/v1/tokens").await;
    assert_eq!(tokens["items"], json!([]), "a plan makes no token");
    daemon.stop().await;
}
