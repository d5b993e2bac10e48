//! Against a strict server of our own: TLS with a client certificate, and it answers nothing but
//! what it expects. What a real API server makes of it is tested in `tests/api/kube_apiserver.rs`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anneal_protocol::time::Millis;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::Request;
use super::*;
use crate::settings::{ClusterSettings, IssuerSettings};

/// A certificate and its key, signed by another or by itself.
struct Signed {
    pem: String,
    key: rcgen::KeyPair,
    params: rcgen::CertificateParams,
}

fn signed(name: &str, by: Option<&Signed>) -> Signed {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = match by {
        Some(by) => {
            let issuer = rcgen::Issuer::from_params(&by.params, &by.key);
            params.signed_by(&key, &issuer).unwrap()
        }
        None => {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.self_signed(&key).unwrap()
        }
    };
    Signed {
        pem: certificate.pem(),
        key,
        params,
    }
}

#[derive(Default)]
struct Seen {
    /// Ids of the Secrets that there are.
    secrets: Vec<String>,
    /// What is wrong with a request.
    complaints: Vec<String>,
    /// Refuse the next Secret as taken.
    taken: bool,
    /// Answer so, whatever is asked.
    fail: Option<(u16, String)>,
    cluster_info: Option<String>,
    /// Bearer token that is expected, or none.
    bearer: Option<String>,
    bodies: Vec<Value>,
}

type Shared = Arc<Mutex<Seen>>;

/// The part of the API that is expected, and nothing else.
async fn answer(
    State(seen): State<Shared>,
    method: axum::http::Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut seen = seen.lock().unwrap();
    if let Some((status, text)) = seen.fail.clone() {
        let status = StatusCode::from_u16(status).unwrap();
        return (status, text).into_response();
    }
    let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let expected = seen.bearer.as_ref().map(|token| format!("Bearer {token}"));
    if header("authorization") != expected {
        seen.complaints
            .push(format!("authorization {:?}", header("authorization")));
    }
    if uri.query().is_some() {
        seen.complaints.push(format!("query {uri}"));
    }
    match (method.as_str(), uri.path()) {
        ("POST", SECRETS) => {
            if header("content-type").as_deref() != Some("application/json") {
                seen.complaints.push("content type".to_owned());
            }
            let body: Value = serde_json::from_slice(&body).unwrap();
            if std::mem::take(&mut seen.taken) {
                return (StatusCode::CONFLICT, "{}").into_response();
            }
            let id = body["stringData"]["token-id"].as_str().unwrap().to_owned();
            seen.secrets.push(id);
            seen.bodies.push(body);
            (StatusCode::CREATED, "{}").into_response()
        }
        ("DELETE", path) if path.starts_with(SECRETS) && body.is_empty() => {
            let id = path.rsplit('-').next().unwrap();
            let before = seen.secrets.len();
            seen.secrets.retain(|there| there != id);
            match seen.secrets.len() < before {
                true => (StatusCode::OK, "{}").into_response(),
                false => (StatusCode::NOT_FOUND, "{}").into_response(),
            }
        }
        ("GET", CLUSTER_INFO) => match &seen.cluster_info {
            Some(text) => axum::Json(json!({ "data": { "kubeconfig": text } })).into_response(),
            None => (StatusCode::FORBIDDEN, "{}").into_response(),
        },
        _ => {
            seen.complaints.push(format!("{method} {uri}"));
            StatusCode::METHOD_NOT_ALLOWED.into_response()
        }
    }
}

struct TlsListener {
    tcp: tokio::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let (tcp, address) = self.tcp.accept().await.unwrap();
            // Whoever has no certificate of ours gets nowhere.
            if let Ok(stream) = self.acceptor.accept(tcp).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

struct Server {
    seen: Shared,
    ca: Signed,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = signed("kubernetes", None);
        let own = signed("127.0.0.1", Some(&ca));
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(der(&ca.pem)).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots));
        let key = PrivateKeyDer::from_pem_slice(own.key.serialize_pem().as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(clients.build().unwrap())
            .with_single_cert(vec![der(&own.pem)], key)
            .unwrap();
        let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let seen = Shared::default();
        let router = axum::Router::new()
            .fallback(answer)
            .with_state(seen.clone());
        let listener = TlsListener {
            tcp,
            acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)),
        };
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            seen,
            ca,
            address,
            task,
        }
    }

    /// As a client with a certificate of the server's authority.
    fn connection(&self) -> Connection {
        let client = signed("anneal", Some(&self.ca));
        let pem = format!("{}\n{}", client.pem, client.key.serialize_pem());
        Connection {
            server: format!("https://{}", self.address),
            ca_pem: self.ca.pem.clone(),
            identity: Some(Zeroizing::new(pem)),
            token: None,
        }
    }

    fn api(&self) -> Api {
        Api::new(self.connection()).unwrap()
    }

    fn complaints(&self) -> Vec<String> {
        self.seen.lock().unwrap().complaints.clone()
    }
}

fn record() -> JoinToken {
    let cluster = ClusterSettings {
        name: "prod".into(),
        endpoint: "https://10.0.0.1:6443".into(),
        host: "10.0.0.1:6443".into(),
        ttl: Duration::from_secs(7200),
        ca: None,
        issuer: IssuerSettings::Kubernetes {
            access: Access::InCluster,
            groups: vec![],
        },
    };
    let request = Request {
        cluster: "prod",
        machine: "r1n1",
        run: "run-1",
        why: "step 3",
        replaces: true,
    };
    JoinToken::new(&cluster, request, Millis(1_700_000_000_000))
}

#[test]
fn tokens_have_the_form_that_kubernetes_wants() {
    let tokens: Vec<_> = (0..200)
        .map(|_| BootstrapToken::random().unwrap())
        .collect();
    let mut used = std::collections::BTreeSet::new();
    for token in &tokens {
        let text = token.text();
        assert_eq!(exec::token_id(&text).as_deref(), Some(token.id.as_str()));
        used.extend(text.bytes());
        assert!(!format!("{token:?}").contains(token.secret.as_str()));
    }
    assert_eq!(used.len(), 37, "all 36 characters, and the dot");
}

#[tokio::test]
async fn creates_and_deletes_what_kubeadm_would() {
    let server = Server::start().await;
    let api = server.api();
    let token = BootstrapToken::random().unwrap();
    let groups = [
        "system:bootstrappers:a".to_owned(),
        "system:bootstrappers:b".to_owned(),
    ];
    assert!(api.create(&token, &record(), &groups).await.unwrap());
    let body = server.seen.lock().unwrap().bodies[0].clone();
    assert_eq!(
        body,
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {
                "name": format!("bootstrap-token-{}", token.id),
                "namespace": "kube-system",
                "labels": { "app.kubernetes.io/managed-by": "anneal" },
            },
            "stringData": {
                "token-id": token.id,
                "token-secret": token.secret.as_str(),
                "expiration": "2023-11-15T00:13:20.000Z",
                "usage-bootstrap-authentication": "true",
                "usage-bootstrap-signing": "true",
                "auth-extra-groups": "system:bootstrappers:a,system:bootstrappers:b",
                "description": "anneal: machine r1n1, run run-1",
            },
        })
    );
    api.delete(&token.id).await.unwrap();
    assert!(server.seen.lock().unwrap().secrets.is_empty());
    api.delete(&token.id).await.unwrap();
    server.seen.lock().unwrap().taken = true;
    assert!(!api.create(&token, &record(), &[]).await.unwrap());
    assert_eq!(server.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn speaks_as_a_service_account_too() {
    let server = Server::start().await;
    server.seen.lock().unwrap().bearer = Some("t0ken".to_owned());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca.crt"), &server.ca.pem).unwrap();
    std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
    let (host, port) = (server.address.ip(), server.address.port());
    let inside = in_cluster(dir.path(), Some(host.to_string()), Some(port.to_string())).await;
    let mut inside = inside.unwrap_or_else(|failure| panic!("{}", failure.reason));
    inside.identity = server.connection().identity;
    let token = BootstrapToken::random().unwrap();
    let api = Api::new(inside).unwrap();
    assert!(api.create(&token, &record(), &[]).await.unwrap());
    assert_eq!(server.complaints(), Vec::<String>::new());
    assert!(in_cluster(dir.path(), None, None).await.is_err());
}

#[tokio::test]
async fn finds_the_authority_that_nodes_are_to_trust() {
    use base64::Engine as _;
    let server = Server::start().await;
    assert_eq!(server.api().ca().await.unwrap(), server.ca.pem, "forbidden");
    let data = base64::engine::general_purpose::STANDARD.encode("OTHER");
    let info = format!(
        "clusters:\n- cluster:\n    certificate-authority-data: {data}\n    server: https://x\n"
    );
    server.seen.lock().unwrap().cluster_info = Some(info);
    assert_eq!(server.api().ca().await.unwrap(), "OTHER");
    assert_eq!(server.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn says_what_the_server_says_and_what_may_have_happened() {
    let server = Server::start().await;
    let token = BootstrapToken::random().unwrap();
    for (status, retryable, maybe_made) in [
        (403, false, false),
        (422, false, false),
        (429, true, false),
        (500, true, true),
        (503, true, true),
    ] {
        let text = format!(
            "{{\"kind\":\"Status\",\"message\":\"secrets is forbidden: {}\"}}",
            token.text().as_str()
        );
        server.seen.lock().unwrap().fail = Some((status, text));
        let failure = server
            .api()
            .create(&token, &record(), &[])
            .await
            .unwrap_err();
        let told = format!("creating the bootstrap token: {status} ");
        assert!(failure.reason.contains(&told), "{}", failure.reason);
        assert!(
            failure.reason.ends_with("secrets is forbidden: (redacted)"),
            "{}",
            failure.reason
        );
        assert_eq!(
            (failure.retryable, failure.maybe_made),
            (retryable, maybe_made),
            "{status}"
        );
    }
    let address = server.address;
    let connection = server.connection();
    drop(server);
    // Nobody listens any more.
    let listener = std::net::TcpListener::bind(address);
    drop(listener);
    let failure = Api::new(connection)
        .unwrap()
        .create(&token, &record(), &[])
        .await
        .unwrap_err();
    assert!(
        failure.retryable && failure.maybe_made,
        "{}",
        failure.reason
    );
}

#[tokio::test]
async fn trusts_nobody_but_its_authority() {
    let server = Server::start().await;
    let mut stranger = server.connection();
    stranger.ca_pem = signed("kubernetes", None).pem;
    let failure = Api::new(stranger)
        .unwrap()
        .delete("abcdef")
        .await
        .unwrap_err();
    assert!(failure.reason.contains("certificate"), "{}", failure.reason);
    let mut nobody = server.connection();
    nobody.identity = None;
    assert!(Api::new(nobody).unwrap().delete("abcdef").await.is_err());
}
