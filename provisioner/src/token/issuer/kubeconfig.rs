//! A kubeconfig: how to reach a cluster's API, and as whom.
//!
//! Keys that we do not know are left alone, because the file belongs to others; those that would
//! change who we are or whom we speak to, and that we cannot follow, are refused.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Failure, LONGEST_FILE, file};
use crate::bmc::PasswordDirs;
use crate::yaml;

/// How to reach an API server, and as whom.
pub(super) struct Connection {
    /// URL without a slash at its end.
    pub server: String,
    /// Authorities that its certificate must be signed by, PEM.
    pub ca_pem: String,
    /// Client certificate and key, PEM.
    pub identity: Option<Zeroizing<String>>,
    /// Bearer token.
    pub token: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct KubeconfigFile {
    #[serde(default, rename = "current-context")]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    #[serde(default)]
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    #[serde(default)]
    certificate_authority: Option<PathBuf>,
    #[serde(default)]
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default)]
    tls_server_name: Option<String>,
    #[serde(default)]
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

/// Reads a kubeconfig and the files that it names.
pub(super) async fn read(
    path: &Path,
    context: Option<&str>,
    files: &PasswordDirs,
) -> Result<Connection, Failure> {
    let text = files.read_text(path, LONGEST_FILE).await;
    let text = text.map_err(|e| file(&e))?;
    let name = path.to_string_lossy();
    let raw: KubeconfigFile =
        yaml::parse(&text, &name).map_err(|e| Failure::lasting(e.to_string()))?;
    let refuse = |told: String| Failure::lasting(format!("{name}: {told}"));
    let (cluster, user) = raw.chosen(context).map_err(refuse)?;
    let (cluster_name, user_name) = (cluster.name.as_str(), user.name.as_str());
    let (cluster, user) = (&cluster.cluster, &user.user);
    for (unknown, key) in [
        (cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify"),
        (cluster.tls_server_name.is_some(), "tls-server-name"),
        (cluster.proxy_url.is_some(), "proxy-url"),
    ] {
        if unknown {
            return Err(refuse(format!(
                "cluster `{cluster_name}` has `{key}`, which is not supported"
            )));
        }
    }
    for (unknown, key) in [
        (user.exec.is_some(), "exec"),
        (user.auth_provider.is_some(), "auth-provider"),
        (user.username.is_some(), "username"),
        (user.impersonate.is_some(), "as"),
    ] {
        if unknown {
            return Err(refuse(format!(
                "user `{user_name}` has `{key}`, which is not supported: expected a client certificate or a token"
            )));
        }
    }
    if !cluster.server.starts_with("https://") {
        return Err(refuse(format!(
            "cluster `{cluster_name}`: `server` is not https: the token would travel in clear"
        )));
    }
    let reader = Reader {
        directory: path.parent().unwrap_or(Path::new("/")),
        files,
        name: &name,
    };
    let ca = (
        &cluster.certificate_authority_data,
        &cluster.certificate_authority,
    );
    let ca = reader.pem("certificate-authority", ca).await?;
    let Some(ca) = ca else {
        return Err(refuse(format!(
            "cluster `{cluster_name}` names no certificate authority: expected `certificate-authority-data` or `certificate-authority`"
        )));
    };
    let certificate = (&user.client_certificate_data, &user.client_certificate);
    let certificate = reader.pem("client-certificate", certificate).await?;
    let key = (&user.client_key_data, &user.client_key);
    let key = reader.pem("client-key", key).await?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            Some(Zeroizing::new(format!("{}\n{}", *certificate, *key)))
        }
        (None, None) => None,
        _ => {
            return Err(refuse(format!(
                "user `{user_name}` has half of a client certificate: expected certificate and key"
            )));
        }
    };
    let token = match (&user.token, &user.token_file) {
        (Some(token), _) => Some(Zeroizing::new(token.clone())),
        (None, Some(path)) => {
            let read = files.read(&reader.directory.join(path)).await;
            Some(read.map_err(|e| file(&e))?)
        }
        (None, None) => None,
    };
    if identity.is_none() && token.is_none() {
        return Err(refuse(format!(
            "user `{user_name}` has no credential: expected a client certificate or a token"
        )));
    }
    Ok(Connection {
        server: cluster.server.trim_end_matches('/').to_owned(),
        ca_pem: ca.to_string(),
        identity,
        token,
    })
}

/// The certificate authority in the kubeconfig of the ConfigMap `cluster-info`.
pub(super) fn authority(text: &str) -> Option<String> {
    let raw: KubeconfigFile = yaml::parse(text, "cluster-info").ok()?;
    let data = raw
        .clusters
        .first()?
        .cluster
        .certificate_authority_data
        .as_deref()?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
    String::from_utf8(bytes.ok()?).ok()
}

impl KubeconfigFile {
    fn chosen(&self, context: Option<&str>) -> Result<(&NamedCluster, &NamedUser), String> {
        let name = context.unwrap_or(&self.current_context);
        if name.is_empty() {
            return Err("it has no `current-context`: set `context` of the issuer".to_owned());
        }
        let missing = |kind: &str, name: &str| format!("there is no {kind} `{name}` in it");
        let context = self.contexts.iter().find(|c| c.name == name);
        let context = &context.ok_or_else(|| missing("context", name))?.context;
        let cluster = self.clusters.iter().find(|c| c.name == context.cluster);
        let user = self.users.iter().find(|u| u.name == context.user);
        Ok((
            cluster.ok_or_else(|| missing("cluster", &context.cluster))?,
            user.ok_or_else(|| missing("user", &context.user))?,
        ))
    }
}

/// Reads what a kubeconfig holds or points to.
struct Reader<'a> {
    directory: &'a Path,
    files: &'a PasswordDirs,
    name: &'a str,
}

impl Reader<'_> {
    /// Data comes before files, as kubectl has it.
    async fn pem(
        &self,
        key: &str,
        (data, path): (&Option<String>, &Option<PathBuf>),
    ) -> Result<Option<Zeroizing<String>>, Failure> {
        if let Some(data) = data.as_deref().filter(|data| !data.is_empty()) {
            let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim());
            let text = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let wrong =
                || Failure::lasting(format!("{}: `{key}-data` is not PEM in base64", self.name));
            return text
                .map(|text| Some(Zeroizing::new(text)))
                .ok_or_else(wrong);
        }
        let Some(path) = path else { return Ok(None) };
        let path = self.directory.join(path);
        let text = self.files.read_text(&path, LONGEST_FILE).await;
        text.map(Some).map_err(|e| file(&e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: v1
kind: Config
current-context: a
preferences: {}
clusters:
  - name: prod
    cluster: { server: 'https://10.0.0.1:6443/', certificate-authority: ca.pem }
contexts:
  - name: a
    context: { cluster: prod, user: anneal, namespace: kube-system }
  - name: b
    context: { cluster: prod, user: nobody }
users:
  - name: anneal
    user: { tokenFile: token }
";

    async fn read_text(text: &str, context: Option<&str>) -> Result<Connection, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, text).unwrap();
        std::fs::write(dir.path().join("ca.pem"), "CA").unwrap();
        std::fs::write(dir.path().join("token"), "t0ken\n").unwrap();
        let files = PasswordDirs::for_clusters(vec![dir.path().to_owned()]);
        let read = read(&path, context, &files).await;
        read.map_err(|failure| failure.reason)
    }

    #[tokio::test]
    async fn follows_the_current_context_and_its_files() {
        let connection = read_text(GOOD, None).await.unwrap();
        assert_eq!(connection.server, "https://10.0.0.1:6443");
        assert_eq!(connection.ca_pem, "CA");
        assert_eq!(connection.token.unwrap().as_str(), "t0ken");
        assert!(connection.identity.is_none());
        let data = base64::engine::general_purpose::STANDARD.encode("PEM");
        let text = GOOD.replace(
            "tokenFile: token",
            &format!("client-certificate-data: {data}, client-key-data: {data}"),
        );
        let connection = read_text(&text, Some("a")).await.unwrap();
        assert_eq!(connection.identity.unwrap().as_str(), "PEM\nPEM");
    }

    #[tokio::test]
    async fn refuses_what_it_cannot_follow() {
        for (from, to, context, told) in [
            ("", "", Some("b"), "there is no user `nobody` in it"),
            ("", "", Some("c"), "there is no context `c` in it"),
            ("current-context: a", "x: 1", None, "no `current-context`"),
            (
                "tokenFile: token",
                "exec: { command: aws }",
                None,
                "has `exec`, which is not supported",
            ),
            ("tokenFile: token", "username: u", None, "has `username`"),
            ("tokenFile: token", "as: root, token: x", None, "has `as`"),
            (
                "tokenFile: token",
                "client-key-data: eA==",
                None,
                "half of a client certificate",
            ),
            ("tokenFile: token", "", None, "has no credential"),
            ("https:", "http:", None, "`server` is not https"),
            (
                ", certificate-authority: ca.pem",
                "",
                None,
                "names no certificate authority",
            ),
            (
                "certificate-authority: ca.pem",
                "insecure-skip-tls-verify: true",
                None,
                "has `insecure-skip-tls-verify`",
            ),
            (
                "tokenFile: token",
                "tokenFile: /etc/shadow",
                None,
                "is not in a directory for cluster secrets",
            ),
        ] {
            let Err(error) = read_text(&GOOD.replace(from, to), context).await else {
                panic!("{to} was accepted");
            };
            assert!(error.contains(told), "{to}: {error}");
        }
    }

    #[test]
    fn finds_the_authority_of_cluster_info() {
        let data = base64::engine::general_purpose::STANDARD.encode("PEM");
        let text = format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {data}\n    server: https://x:6443\n  name: \"\"\nkind: Config\n"
        );
        assert_eq!(authority(&text).unwrap(), "PEM");
        assert_eq!(authority("kind: Config\n"), None);
    }
}
