//! Joining clusters, from the settings to the end of the run; and that nothing secret is left
//! anywhere when runs are over. Agent and node are this test.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anneal_protocol::cmdline::Boot;
use base64::Engine as _;
use provisioner::settings::{ClusterSettings, IssuerSettings, Settings};
use serde_json::{Value, json};

use crate::daemon::{Daemon, NodeKey};
use crate::scan::Scan;

pub const INVENTORY: &str = r#"machines:
  - name: r1n1
    nics: [ { mac: "52:54:00:aa:00:01", address: 10.77.0.11/24, boot: true } ]
    disk: { hints: { serial: "DISK1" } }
    workflow: join
    cluster: prod
  - name: r1n2
    nics: [ { mac: "52:54:00:aa:00:02", address: 10.77.0.12/24, boot: true } ]
    disk: { hints: { serial: "DISK2" } }
    workflow: talos
    cluster: metal
  - name: r1n3
    nics: [ { mac: "52:54:00:aa:00:03", boot: true } ]
    bmc: { url: "redfish+http://10.77.0.1:9", username: root, password: { file: STATE/passwords/r1n3 } }
    disk: { hints: { serial: "DISK3" } }
    workflow: join
    cluster: prod
"#;

const JOIN: &str = r#"name: join
steps:
  - uses: netboot
  - name: write the config
    uses: write-file
    retries: 1
    retry_delay: 1s
    with:
      partition: { label: OEM }
      path: /join
      contents: "{{ join.token }} {{ join.ca_hash }} {{ cluster.host }} {{ config_url('site/seed') }} {{ phone_home.token }}"
  - uses: reboot
  - uses: wait-phone-home
"#;

const TALOS: &str = r#"name: talos
steps:
  - uses: netboot
  - uses: write-file
    with: { partition: { label: OEM }, path: /talos, contents: "{{ talos.machine_token }} {{ talos.k8s_ca.key }}" }
"#;

/// Prints another token each time; the first time it fails.
const MINT: &str = r#"cd STATE
echo x >> asked
n=$(wc -l < asked)
[ "$n" = 1 ] && { echo "the API does not answer" >&2; exit 1; }
token=$(printf 'tok%03d.%s' "$n" "$(head -c 8 /dev/urandom | od -An -tx1 | tr -d ' \n')")
echo "$token" >> minted
echo "$token"
"#;

/// What the daemon logs, whatever its level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn key_pem() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// What `talosctl gen secrets` would write, with made-up secrets.
pub fn bundle() -> String {
    let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let (crt, key) = key_pem();
    let (crt, key) = (b64(&crt), b64(&key));
    let pair = format!("{{ crt: {crt}, key: {key} }}");
    format!(
        "cluster: {{ id: zZ1aD0nQ, secret: bm90IHJlYWxseSBzZWNyZXQ= }}
secrets: {{ bootstraptoken: 4q2gnh.bpqkbz0m9nnv7dzq, secretboxencryptionsecret: c2VjcmV0Ym94LXNlY3JldA== }}
trustdinfo: {{ token: hs3uek.vu7w7yb2bcqbz1x1 }}
certs:
  etcd: {pair}
  k8s: {pair}
  k8saggregator: {pair}
  k8sserviceaccount: {{ key: {key} }}
  os: {pair}
"
    )
}

fn prepare(state: &Path) {
    let place = |text: &str| text.replace("STATE", &state.to_string_lossy());
    for (name, text) in [
        ("workflows/join.yaml", JOIN),
        ("workflows/talos.yaml", TALOS),
        (
            "templates/site/seed",
            "{{ join.token }} {{ machine.name }}\n",
        ),
        ("passwords/r1n3", "bmc-password-of-r1n3\n"),
        ("ca.pem", &key_pem().0),
        ("mint", &place(MINT)),
        ("revoke", &place("echo \"$1\" >> STATE/revoked\n")),
    ] {
        let file = state.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
}

fn change(settings: &mut Settings, state: &Path) {
    settings.workflows_dir = Some(state.join("workflows"));
    settings.templates_dir = Some(state.join("templates"));
    let cluster = |name: &str, ca: Option<PathBuf>, issuer| ClusterSettings {
        name: name.to_owned(),
        endpoint: "https://10.77.0.5:6443".to_owned(),
        host: "10.77.0.5:6443".to_owned(),
        ttl: Duration::from_secs(7200),
        ca,
        issuer,
    };
    let script = |name: &str| state.join(name).to_string_lossy().into_owned();
    // The shell is the program: a script that this process wrote may still be open for writing in
    // a child of another test's, and cannot be started then.
    let shell = || "/bin/sh".to_owned();
    let exec = IssuerSettings::Exec {
        command: vec![shell(), script("mint")],
        revoke: Some(vec![shell(), script("revoke"), "{token_id}".to_owned()]),
        timeout: Duration::from_secs(20),
    };
    let talos = IssuerSettings::Talos { secrets: None };
    settings.join.clusters = vec![
        cluster("prod", Some(state.join("ca.pem")), exec),
        cluster("metal", None, talos),
    ];
}

/// A machine on which a run is under way.
pub struct Machine<'a> {
    daemon: &'a Daemon,
    pub run: String,
    agent: reqwest::Client,
    address: &'static str,
    mac: &'static str,
    boot_token: String,
}

impl<'a> Machine<'a> {
    pub async fn start(
        daemon: &'a Daemon,
        name: &str,
        address: &'static str,
        mac: &'static str,
    ) -> Self {
        let path = format!("/api/v1/machines/{name}/provision");
        let (status, run) = daemon.post(&path, json!({})).await;
        assert_eq!(status, 201, "{run}");
        let script = daemon.script(address, mac).await;
        let line = script
            .lines()
            .find(|l| l.contains("anneal.token="))
            .unwrap();
        let boot = Boot::parse(line).unwrap();
        let key = NodeKey::new();
        let (status, enrolled) = daemon.enroll(address, &boot, &key).await;
        assert_eq!(status, 200, "{enrolled}");
        Self {
            daemon,
            run: run["id"].as_str().unwrap().to_owned(),
            agent: daemon.agent_client(&key, enrolled["certificate"].as_str().unwrap()),
            address,
            mac,
            boot_token: boot.token.to_string(),
        }
    }

    pub async fn call(&self, path: &str, body: &Value) -> Value {
        let url = self.daemon.url(&format!("/agent/v1/{path}"));
        let answer = self.agent.post(url).json(body).send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "{path}: {status}");
        answer.json().await.unwrap_or_default()
    }

    /// Asks until there is an order for this action.
    pub async fn order(&self, action: &str) -> Value {
        let inventory =
            json!({"firmware": "uefi", "cpus": 2, "memory": 1, "nics": [], "disks": []});
        let ask = json!({"run": self.run, "boot_id": "boot-1", "inventory": inventory});
        let asked = async {
            loop {
                let next = self.call("next", &ask).await;
                if next["action"]["uses"] == action {
                    return next;
                }
                assert_eq!(next["next"], "wait", "{next}");
            }
        };
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, asked).await.expect("an order")
    }

    async fn done(&self, order: &Value, outcome: Value) {
        let mut result = json!({ "order": order["id"], "boot_id": "boot-1" });
        result["outcome"] = outcome;
        self.call("result", &result).await;
    }
}

pub fn contents(order: &Value) -> String {
    let encoded = order["action"]["contents_base64"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded);
    String::from_utf8(bytes.unwrap()).unwrap()
}

pub async fn join_tokens(daemon: &Daemon) -> Vec<Value> {
    let page = daemon.get("/api/v1/tokens").await;
    let all = page["items"].as_array().unwrap().clone();
    all.into_iter().filter(|t| t["purpose"] == "join").collect()
}

pub async fn site() -> (Daemon, PathBuf) {
    crate::daemon::own_network();
    let state = tempfile::tempdir().unwrap();
    prepare(state.path());
    let path = state.path().to_owned();
    let daemon = Daemon::start_with(state, |settings| change(settings, &path)).await;
    (daemon, path)
}

pub async fn apply(daemon: &Daemon, text: String) -> (u16, String) {
    let url = daemon.url("/api/v1/inventory");
    let answer = daemon.admin.post(url).body(text).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_cluster_that_nobody_knows_is_refused_with_the_known_ones() {
    let (daemon, state) = site().await;
    let text = INVENTORY.replace("STATE", &state.to_string_lossy());
    let (status, told) = apply(&daemon, text.replace("cluster: prod", "cluster: prd")).await;
    assert_eq!(status, 422, "{told}");
    let expected =
        "inventory.yaml:6:14: `cluster`: there is no cluster `prd`, did you mean `prod`?";
    assert!(told.contains(expected), "{told}");
    let (status, told) = apply(&daemon, text).await;
    assert_eq!(status, 200, "{told}");
    // What is missing is told before a server loses power.
    let (status, told) = daemon
        .post("/api/v1/machines/r1n2/provision", json!({}))
        .await;
    assert_eq!(status, 422, "{told}");
    let told = told["detail"].as_str().unwrap();
    assert!(told.contains("anneal cluster import metal FILE"), "{told}");
    daemon.stop().await;
}

/// The whole life of two runs, and then a look into every corner.
#[tokio::test]
async fn nothing_secret_is_left_in_clear() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter("info,provisioner=trace,anneal_bmc=trace,sqlx=debug")
        .with_writer(move || writer.clone())
        .finish();
    // While there is but one, `tracing` asks the thread that comes first to an event whether anybody
    // listens to it, and threads of other tests have nobody.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    let _logging = tracing::subscriber::set_default(subscriber);
    let (daemon, state) = site().await;
    let text = INVENTORY.replace("STATE", &state.to_string_lossy());
    let (status, told) = apply(&daemon, text).await;
    assert_eq!(status, 200, "{told}");
    let secrets = bundle();
    let url = daemon.url("/api/v1/clusters/metal/secrets");
    let imported = daemon
        .admin
        .put(url)
        .body(secrets.clone())
        .send()
        .await
        .unwrap();
    assert_eq!(imported.status(), 204);
    daemon.add_image("debian@99", noise(2 << 20)).await;

    let mut scan = Scan::default();
    scan.add("API key", &daemon.key);
    scan.add("BMC password", "bmc-password-of-r1n3");
    for line in secrets
        .split([' ', '\n', '{', '}', ','])
        .filter(|word| word.len() > 15 && !word.ends_with(':'))
    {
        scan.add("secret of the Talos cluster", line);
    }
    own_keys(&mut scan, &state.join("state"));

    join(&daemon, &state, &mut scan).await;
    talos(&daemon, &secrets, &mut scan).await;
    // Nobody listens at its BMC's address: the password is read and tried.
    let (status, run) = daemon
        .post("/api/v1/machines/r1n3/provision", json!({}))
        .await;
    assert_eq!(status, 201, "{run}");
    let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
    daemon.until(&path, |run| run["state"] == "running").await;
    let (status, told) = daemon.post(&format!("{path}/cancel"), json!({})).await;
    assert!((200..300).contains(&status), "{told}");

    let mut answers = String::new();
    for path in [
        "machines",
        "machines/r1n1",
        "machines/r1n2",
        "runs",
        "event-log?limit=1000",
        "tokens",
        "images",
        "clusters",
        "clusters/metal",
        "api-keys",
        "workflows",
        "attestations",
        "image-keys",
    ] {
        answers.push_str(&daemon.get(&format!("/api/v1/{path}")).await.to_string());
    }
    for run in daemon.get("/api/v1/runs").await["items"]
        .as_array()
        .unwrap()
    {
        let path = format!("/api/v1/runs/{}", run["id"].as_str().unwrap());
        answers.push_str(&daemon.get(&path).await.to_string());
    }
    scan.text("API answers", answers.as_bytes());
    let metrics = daemon
        .admin
        .get(daemon.url("/metrics"))
        .send()
        .await
        .unwrap();
    scan.text("metrics", &metrics.bytes().await.unwrap());
    // With its write-ahead log, and once more when the daemon has ended.
    assert!(state.join("state/anneal.db-wal").exists());
    scan.folder(&state.join("state"));
    let log_text = log.0.lock().unwrap().clone();
    let log_shown = String::from_utf8_lossy(&log_text);
    assert!(log_shown.contains("run changed its state"), "{log_shown}");
    scan.text("log", &log_text);
    let kept = daemon.stop().await;
    scan.folder(&state.join("state"));
    assert_eq!(scan.found(), Vec::<String>::new());
    assert!(scan.looked_at() > 1 << 20, "the image is among it");
    drop(kept);
}

/// Bytes that no compression makes small.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 56) as u8
    };
    (0..length).map(next).collect()
}

/// The daemon's own keys, each of which is in its own file and nowhere else.
fn own_keys(scan: &mut Scan, state: &Path) {
    scan.allow(&state.join("admin.context.json"), "API key");
    for path in [
        "pki/ca-key.pem",
        "pki/server-key.pem",
        "image-key.pem",
        "cluster-secrets.key",
    ] {
        let path = state.join(path);
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let text = String::from_utf8(bytes.clone()).unwrap_or_default();
        match text.lines().nth(1) {
            Some(body) => scan.add(&name, body),
            None => scan.add_bytes(&name, &bytes),
        }
        scan.allow(&path, &name);
    }
}

/// A machine joins, calls home, and its token is taken back.
async fn join(daemon: &Daemon, state: &Path, scan: &mut Scan) {
    let machine = Machine::start(daemon, "r1n1", "10.77.0.11", "52-54-00-aa-00-01").await;
    scan.add("boot token", &machine.boot_token);
    assert!(
        !state.join("asked").exists(),
        "not before its step is handed out"
    );
    // The issuer fails the first time; the step's rules say that it is tried again.
    let order = machine.order("write-file").await;
    assert_eq!(order["id"]["attempt"], 2, "{order}");
    let text = contents(&order);
    scan.add(
        "the whole order",
        order["action"]["contents_base64"].as_str().unwrap(),
    );
    let words: Vec<&str> = text.split(' ').collect();
    let [token, ca_hash, host, url, phone_home] = words[..] else {
        panic!("{text}");
    };
    assert!(token.starts_with("tok002."), "{text}");
    assert!(
        ca_hash.starts_with("sha256:") && ca_hash.len() == 71,
        "{text}"
    );
    assert_eq!(host, "10.77.0.5:6443");
    scan.add("join token", token);
    scan.add(
        "secret half of the join token",
        token.split('.').nth(1).unwrap(),
    );
    scan.add("phone-home token", phone_home);
    scan.add("config token", url.rsplit('/').next().unwrap());
    // The URL's document has a token of its own, made now.
    assert_eq!(join_tokens(daemon).await.len(), 1);
    let from: std::net::IpAddr = machine.address.parse().unwrap();
    let ca = reqwest::Certificate::from_pem(daemon.ca().as_bytes()).unwrap();
    let node = reqwest::Client::builder()
        .tls_certs_only([ca])
        .local_address(from);
    let node = node.build().unwrap();
    let document = node.get(url).send().await.unwrap().text().await.unwrap();
    let second = document.split(' ').next().unwrap();
    assert!(second.starts_with("tok003."), "{document}");
    scan.add("join token of the URL", second);
    let tokens = join_tokens(daemon).await;
    assert_eq!(tokens.len(), 2);
    for token in &tokens {
        assert_eq!(
            (&token["state"], &token["machine"]),
            (&json!("live"), &json!("r1n1"))
        );
        assert_eq!(token["join"]["cluster"], "prod");
    }
    assert_eq!(tokens[1]["join"]["why"], "step 2 `write the config`");
    assert_eq!(tokens[0]["join"]["why"], "config URL site/seed");

    let output = json!({"partition": "vda3", "bytes": 1, "sha256": "aa"});
    machine
        .done(&order, json!({"outcome": "succeeded", "output": output}))
        .await;
    let order = machine.order("reboot").await;
    machine.done(&order, json!({"outcome": "leaving"})).await;
    let script = daemon.script(machine.address, machine.mac).await;
    assert!(!script.contains("anneal.token="), "{script}");
    let home = node
        .post(daemon.url("/node/v1/phone-home"))
        .bearer_auth(phone_home);
    let home = home.json(&json!({"os": "Debian"})).send().await.unwrap();
    assert_eq!(home.status(), 204);
    let path = format!("/api/v1/runs/{}", machine.run);
    daemon.until(&path, |run| run["state"] == "succeeded").await;
    daemon
        .until("/api/v1/tokens", |page| {
            let all = page["items"].as_array().unwrap();
            let join: Vec<_> = all.iter().filter(|t| t["purpose"] == "join").collect();
            join.iter().all(|t| t["state"] == "revoked")
        })
        .await;
    let revoked = std::fs::read_to_string(state.join("revoked")).unwrap();
    assert_eq!(revoked, "tok002\ntok003\n");
    let log = daemon.get("/api/v1/event-log?limit=1000").await;
    let events = log["items"].as_array().unwrap();
    let count = |kind: &str| events.iter().filter(|e| e["kind"] == kind).count();
    assert_eq!(
        (count("join.issued"), count("join.failed")),
        (2, 1),
        "{log}"
    );
}

/// A Talos machine gets its cluster's secrets, which never expire.
async fn talos(daemon: &Daemon, secrets: &str, scan: &mut Scan) {
    let machine = Machine::start(daemon, "r1n2", "10.77.0.12", "52-54-00-aa-00-02").await;
    scan.add("boot token", &machine.boot_token);
    let order = machine.order("write-file").await;
    let text = contents(&order);
    let (token, key) = text.split_once(' ').unwrap();
    assert_eq!(token, "hs3uek.vu7w7yb2bcqbz1x1");
    assert!(key.len() > 100 && secrets.contains(key));
    let tokens = join_tokens(daemon).await;
    assert_eq!(tokens[0]["state"], "permanent");
    assert!(tokens[0]["expires_at"].is_null());
    let output = json!({"partition": "vda3", "bytes": 1, "sha256": "aa"});
    machine
        .done(&order, json!({"outcome": "succeeded", "output": output}))
        .await;
    let path = format!("/api/v1/runs/{}", machine.run);
    daemon.until(&path, |run| run["state"] == "succeeded").await;
}
