//! The `kubernetes` issuer against a real API server, with no more rights than the documentation
//! asks for. Ignored unless `make test-kubernetes` asks for it: that builds `kube-apiserver` with Go
//! from the modules of its release, which takes many minutes, and needs etcd (package etcd-server).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use provisioner::settings::{Access, ClusterSettings, IssuerSettings};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::join::{Machine, contents, join_tokens};

const SERVER: &str = "https://127.0.0.1:6443";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";
const INVENTORY: &str = r#"machines:
  - name: r1n1
    nics: [ { mac: "52:54:00:aa:00:01", address: 10.77.0.11/24, boot: true } ]
    disk: { hints: { serial: "DISK1" } }
    workflow: join
    cluster: prod
"#;
const WORKFLOW: &str = r#"name: join
steps:
  - uses: netboot
  - uses: write-file
    with: { partition: { label: OEM }, path: /join, contents: "{{ join.token }} {{ join.ca_hash }}" }
"#;

/// What `make test-kubernetes` built.
fn server_binary() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/kube-apiserver");
    let path = std::env::var_os("ANNEAL_KUBE_APISERVER").map_or(built, PathBuf::from);
    assert!(path.exists(), "{}: make test-kubernetes", path.display());
    path
}

struct Authority {
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { key, params, pem }
    }

    /// Certificate and key of a user in a group, or of a server at an address.
    fn sign(&self, name: &str, group: Option<&str>) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(rcgen::DnType::CommonName, name);
        if let Some(group) = group {
            subject.push(rcgen::DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        (pem, key.serialize_pem())
    }

    fn client(&self, identity: Option<(String, String)>) -> Client {
        let ca = reqwest::Certificate::from_pem(self.pem.as_bytes()).unwrap();
        let mut builder = Client::builder().tls_certs_only([ca]);
        if let Some((certificate, key)) = identity {
            let pem = format!("{certificate}\n{key}");
            builder = builder.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        builder.timeout(Duration::from_secs(20)).build().unwrap()
    }
}

/// A process that ends with the test, also when that is killed.
struct Running(Child);

impl Running {
    fn start(program: &Path, arguments: &[String], log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self(child.expect("`setpriv` (package util-linux)"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// etcd and an API server, in this thread's network.
struct Cluster {
    dir: tempfile::TempDir,
    binary: PathBuf,
    ca: Authority,
    admin: Client,
    server: Option<Running>,
    _etcd: Running,
}

impl Cluster {
    async fn start(binary: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::new();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let (certificate, key) = ca.sign("127.0.0.1", None);
        write("ca.pem", &ca.pem);
        write("server.pem", &certificate);
        write("server-key.pem", &key);
        let accounts = rcgen::KeyPair::generate().unwrap();
        write("accounts.pem", &accounts.public_key_pem());
        write("accounts-key.pem", &accounts.serialize_pem());
        let data = format!("--data-dir={}", dir.path().join("etcd").display());
        let etcd = Path::new("/usr/bin/etcd");
        assert!(etcd.exists(), "etcd is missing (package etcd-server)");
        let etcd = Running::start(etcd, &[data], &dir.path().join("etcd.log"));
        let admin = ca.client(Some(ca.sign("admin", Some("system:masters"))));
        let mut cluster = Self {
            dir,
            binary,
            ca,
            admin,
            server: None,
            _etcd: etcd,
        };
        cluster.start_server().await;
        cluster
    }

    async fn start_server(&mut self) {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let arguments = [
            "--etcd-servers=http://127.0.0.1:2379".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=10.77.0.1".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            "--authorization-mode=RBAC".to_owned(),
            "--enable-bootstrap-token-auth".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--client-ca-file={}", file("ca.pem")),
            format!("--tls-cert-file={}", file("server.pem")),
            format!("--tls-private-key-file={}", file("server-key.pem")),
            format!("--service-account-key-file={}", file("accounts.pem")),
            format!(
                "--service-account-signing-key-file={}",
                file("accounts-key.pem")
            ),
        ];
        let log = self.dir.path().join("server.log");
        let server = self
            .server
            .insert(Running::start(&self.binary, &arguments, &log));
        let start = Instant::now();
        loop {
            let answer = self.admin.get(format!("{SERVER}/readyz")).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            let told = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(server.0.try_wait().unwrap().is_none(), "{}", told());
            assert!(start.elapsed() < Duration::from_secs(180), "{}", told());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn create(&self, path: &str, body: Value) {
        let start = Instant::now();
        loop {
            let request = self.admin.post(format!("{SERVER}{path}")).json(&body);
            let answer = request.send().await.unwrap();
            let status = answer.status();
            let told = answer.text().await.unwrap();
            if status == StatusCode::CREATED {
                return;
            }
            // Its namespaces come a moment after the server.
            assert!(start.elapsed() < Duration::from_secs(60), "{path}: {told}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The user of the daemon's kubeconfig may do what the documentation says, and no more.
    async fn allow(&self) {
        let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system";
        let group = "rbac.authorization.k8s.io";
        let rule =
            json!({ "apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "delete"] });
        let role = json!({ "metadata": { "name": "anneal" }, "rules": [rule] });
        self.create(&format!("{rbac}/roles"), role).await;
        let binding = json!({
            "metadata": { "name": "anneal" },
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "anneal" },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": "anneal" }],
        });
        self.create(&format!("{rbac}/rolebindings"), binding).await;
    }

    fn kubeconfig(&self) -> String {
        use base64::Engine as _;
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let (certificate, key) = self.ca.sign("anneal", None);
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{ "name": "k", "cluster": {
                "server": SERVER, "certificate-authority-data": b64(&self.ca.pem),
            }}],
            "users": [{ "name": "anneal", "user": {
                "client-certificate-data": b64(&certificate), "client-key-data": b64(&key),
            }}],
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "anneal" }}],
        })
        .to_string()
    }

    /// Who the bearer of a token is; none when nobody.
    async fn who(&self, token: &str) -> Option<Value> {
        let url = format!("{SERVER}/apis/authentication.k8s.io/v1/selfsubjectreviews");
        let request = self.ca.client(None).post(url).bearer_auth(token);
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
        let answer = request.json(&body).send().await.unwrap();
        match answer.status() {
            StatusCode::UNAUTHORIZED => None,
            status => {
                let body: Value = answer.json().await.unwrap();
                assert_eq!(status, StatusCode::CREATED, "{body}");
                Some(body["status"]["userInfo"].clone())
            }
        }
    }

    async fn secret(&self, id: &str) -> (StatusCode, Value) {
        let url = format!("{SERVER}{SECRETS}/bootstrap-token-{id}");
        let answer = self.admin.get(url).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Waits for a token to be nobody's; the server remembers one for ten seconds.
    async fn until_unknown(&self, token: &str) {
        let start = Instant::now();
        while self.who(token).await.is_some() {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "it is still known"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn daemon(cluster: &Cluster) -> Daemon {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().to_owned();
    std::fs::create_dir(path.join("workflows")).unwrap();
    std::fs::write(path.join("workflows/join.yaml"), WORKFLOW).unwrap();
    std::fs::create_dir(path.join("clusters")).unwrap();
    let file = path.join("clusters/prod");
    std::fs::write(&file, cluster.kubeconfig()).unwrap();
    let daemon = Daemon::start_with(state, |settings| {
        settings.workflows_dir = Some(path.join("workflows"));
        settings.join.secret_dirs = vec![path.join("clusters")];
        settings.join.clusters = vec![ClusterSettings {
            name: "prod".to_owned(),
            endpoint: SERVER.to_owned(),
            host: "127.0.0.1:6443".to_owned(),
            ttl: Duration::from_secs(3600),
            ca: None,
            issuer: IssuerSettings::Kubernetes {
                access: Access::Kubeconfig {
                    file,
                    context: None,
                },
                groups: vec![GROUP.to_owned()],
            },
        }];
    })
    .await;
    let url = daemon.url("/api/v1/inventory");
    let applied = daemon.admin.post(url).body(INVENTORY).send().await.unwrap();
    assert_eq!(applied.status(), 200);
    daemon
}

async fn cancel(daemon: &Daemon, run: &str) {
    let path = format!("/api/v1/runs/{run}/cancel");
    let (status, told) = daemon.post(&path, json!({})).await;
    assert!((200..300).contains(&status), "{told}");
}

#[tokio::test]
#[ignore = "needs a kube-apiserver: make test-kubernetes"]
async fn a_real_api_server_knows_our_tokens_as_long_as_it_should() {
    crate::daemon::own_network();
    // Whoever is first: another test of this program, or none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut cluster = Cluster::start(server_binary()).await;
    cluster.allow().await;
    let daemon = daemon(&cluster).await;
    let machine = Machine::start(&daemon, "r1n1", "10.77.0.11", "52-54-00-aa-00-01").await;
    let order = machine.order("write-file").await;
    let text = contents(&order);
    let (token, ca_hash) = text.split_once(' ').unwrap();
    assert_eq!(ca_hash.len(), 71, "{ca_hash}");
    let id = token.split('.').next().unwrap();
    let user = cluster.who(token).await.expect("the token is good");
    assert_eq!(user["username"], format!("system:bootstrap:{id}"));
    let groups = user["groups"].as_array().unwrap();
    assert!(groups.contains(&json!(GROUP)), "{user}");
    let (status, secret) = cluster.secret(id).await;
    assert_eq!(status, StatusCode::OK, "{secret}");
    assert_eq!(secret["type"], "bootstrap.kubernetes.io/token");
    for key in ["expiration", "description", "usage-bootstrap-signing"] {
        assert!(secret["data"][key].is_string(), "{key}: {secret}");
    }
    cancel(&daemon, &machine.run).await;
    daemon
        .until("/api/v1/tokens", |page| {
            page["items"][0]["state"] == "revoked"
        })
        .await;
    assert_eq!(cluster.secret(id).await.0, StatusCode::NOT_FOUND);
    cluster.until_unknown(token).await;

    // The API is away when the run ends: its token is taken back when it is there again.
    let machine = Machine::start(&daemon, "r1n1", "10.77.0.11", "52-54-00-aa-00-01").await;
    let text = contents(&machine.order("write-file").await);
    let id = text.split('.').next().unwrap();
    cluster.server = None;
    cancel(&daemon, &machine.run).await;
    let page = daemon
        .until("/api/v1/tokens", |page| {
            page["items"][0]["state"] == "revoking"
        })
        .await;
    let problem = &page["items"][0]["join"]["problem"];
    assert!(problem.as_str().unwrap().starts_with(SERVER), "{problem}");
    cluster.start_server().await;
    let start = Instant::now();
    while join_tokens(&daemon).await[0]["state"] != "revoked" {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "it was not revoked"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(cluster.secret(id).await.0, StatusCode::NOT_FOUND);
    daemon.stop().await;
}
