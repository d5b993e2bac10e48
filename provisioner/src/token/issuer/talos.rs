//! A Talos cluster's secrets, as `talosctl gen secrets` writes them.
//!
//! They never expire, and there is nothing to mint: every machine of the cluster holds a part of
//! them for as long as it lives.

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{ca, exec};
use crate::render::JoinSecrets;
use crate::yaml;

/// The secrets of a cluster, checked.
pub(super) struct Bundle(BundleFile);

#[derive(Deserialize)]
struct BundleFile {
    cluster: ClusterPart,
    secrets: SecretsPart,
    trustdinfo: TrustdPart,
    certs: CertsPart,
}

#[derive(Deserialize)]
struct ClusterPart {
    id: String,
    secret: String,
}

#[derive(Deserialize)]
struct SecretsPart {
    bootstraptoken: String,
    #[serde(default)]
    secretboxencryptionsecret: Option<String>,
    /// Of clusters made before Talos 1.3.
    #[serde(default)]
    aescbcencryptionsecret: Option<String>,
}

#[derive(Deserialize)]
struct TrustdPart {
    token: String,
}

#[derive(Deserialize)]
struct CertsPart {
    etcd: Pair,
    k8s: Pair,
    k8saggregator: Pair,
    k8sserviceaccount: Key,
    os: Pair,
}

/// Certificate and key, each PEM in base64.
#[derive(Deserialize)]
struct Pair {
    crt: String,
    key: String,
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

impl Bundle {
    /// Reads and checks a bundle; `name` is for refusals.
    ///
    /// # Errors
    /// What is wrong, without any value.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self, String> {
        let raw: BundleFile = yaml::parse(text, name)
            .map_err(|e| format!("{e}; expected what `talosctl gen secrets` writes"))?;
        let refuse =
            |key: &str, expected: &str| Err(format!("{name}: `{key}`: expected {expected}"));
        for (key, token) in [
            ("secrets.bootstraptoken", &raw.secrets.bootstraptoken),
            ("trustdinfo.token", &raw.trustdinfo.token),
        ] {
            if exec::token_id(token).is_none() {
                return refuse(key, "a token such as abcdef.0123456789abcdef");
            }
        }
        for (key, text) in [
            ("cluster.id", &raw.cluster.id),
            ("cluster.secret", &raw.cluster.secret),
        ] {
            if text.is_empty() {
                return refuse(key, "text");
            }
        }
        let certs = &raw.certs;
        for (key, pair) in [
            ("certs.etcd", &certs.etcd),
            ("certs.k8s", &certs.k8s),
            ("certs.k8saggregator", &certs.k8saggregator),
            ("certs.os", &certs.os),
        ] {
            if !is_pem(&pair.crt) || !is_pem(&pair.key) {
                return refuse(key, "`crt` and `key`, PEM in base64");
            }
        }
        if !is_pem(&certs.k8sserviceaccount.key) {
            return refuse("certs.k8sserviceaccount", "`key`, PEM in base64");
        }
        if raw.secrets.secretboxencryptionsecret.is_none()
            && raw.secrets.aescbcencryptionsecret.is_none()
        {
            return refuse("secrets", "`secretboxencryptionsecret`");
        }
        Ok(Self(raw))
    }

    /// The Kubernetes bootstrap token.
    pub(super) fn join_token(&self) -> &str {
        &self.0.secrets.bootstraptoken
    }

    /// Fields of `talos` that it does not have.
    pub(super) fn lacks(&self) -> Vec<&'static str> {
        let secrets = &self.0.secrets;
        let optional = [
            ("secretbox_secret", &secrets.secretboxencryptionsecret),
            ("aescbc_secret", &secrets.aescbcencryptionsecret),
        ];
        let lacking = optional.into_iter().filter(|(_, secret)| secret.is_none());
        lacking.map(|(name, _)| name).collect()
    }

    /// Puts everything where templates find it.
    pub(super) fn fill(&self, secrets: &mut JoinSecrets) -> Result<(), super::Failure> {
        let lasting = super::Failure::lasting;
        let token = self.join_token();
        let pem = base64::engine::general_purpose::STANDARD.decode(self.0.certs.k8s.crt.trim());
        let pem = pem.ok().and_then(|pem| String::from_utf8(pem).ok());
        let pem = pem.ok_or_else(|| lasting("`certs.k8s.crt` is not PEM in base64".to_owned()))?;
        secrets.ca_hash = Some(ca::pin(&pem).map_err(lasting)?);
        secrets.ca_pem = Some(pem);
        secrets.token = Some(Zeroizing::new(token.to_owned()));
        secrets.token_id = exec::token_id(token);
        secrets.expires_at = Some("never".to_owned());
        secrets.bundle = Some(self.variables());
        Ok(())
    }

    /// The names that templates use, which are close to those of the machine configuration.
    fn variables(&self) -> Map<String, Value> {
        let BundleFile {
            cluster,
            secrets,
            trustdinfo,
            certs,
        } = &self.0;
        let pair = |pair: &Pair| json!({ "crt": pair.crt, "key": pair.key });
        let mut all = Map::new();
        let mut put = |name: &str, value: Value| all.insert(name.to_owned(), value);
        put("cluster_id", json!(cluster.id));
        put("cluster_secret", json!(cluster.secret));
        put("cluster_token", json!(secrets.bootstraptoken));
        put("machine_token", json!(trustdinfo.token));
        put("machine_ca", pair(&certs.os));
        put("k8s_ca", pair(&certs.k8s));
        put("k8s_aggregator_ca", pair(&certs.k8saggregator));
        put("etcd_ca", pair(&certs.etcd));
        let account = json!({ "key": certs.k8sserviceaccount.key });
        put("k8s_service_account", account);
        if let Some(secret) = &secrets.secretboxencryptionsecret {
            put("secretbox_secret", json!(secret));
        }
        if let Some(secret) = &secrets.aescbcencryptionsecret {
            put("aescbc_secret", json!(secret));
        }
        all
    }
}

fn is_pem(text: &str) -> bool {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text.trim());
    bytes.is_ok_and(|bytes| bytes.starts_with(b"-----BEGIN "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A bundle of the shape that `talosctl gen secrets` writes, with made-up secrets.
    pub(in crate::token::issuer) fn bundle() -> String {
        let b64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["kubernetes".to_owned()]).unwrap();
        let crt = b64(&params.self_signed(&key).unwrap().pem());
        let key = b64(&key.serialize_pem());
        let pair = format!("crt: {crt}\n        key: {key}");
        format!(
            "cluster:
    id: zZ1aD0nQ
    secret: bm90IHJlYWxseSBzZWNyZXQ=
secrets:
    bootstraptoken: 4q2gnh.bpqkbz0m9nnv7dzq
    secretboxencryptionsecret: c2VjcmV0Ym94
trustdinfo:
    token: hs3uek.vu7w7yb2bcqbz1x1
certs:
    etcd:
        {pair}
    k8s:
        {pair}
    k8saggregator:
        {pair}
    k8sserviceaccount:
        key: {key}
    os:
        {pair}
"
        )
    }

    #[test]
    fn reads_what_talosctl_writes() {
        let text = bundle();
        let bundle = Bundle::parse(&text, "secrets.yaml").unwrap();
        let mut secrets = JoinSecrets::default();
        bundle.fill(&mut secrets).unwrap();
        assert_eq!(secrets.token_id.as_deref(), Some("4q2gnh"));
        assert_eq!(secrets.expires_at.as_deref(), Some("never"));
        assert!(secrets.ca_hash.unwrap().starts_with("sha256:"));
        assert!(secrets.ca_pem.unwrap().starts_with("-----BEGIN CERT"));
        let all = secrets.bundle.unwrap();
        assert_eq!(all["machine_token"], "hs3uek.vu7w7yb2bcqbz1x1");
        assert_eq!(all["secretbox_secret"], "c2VjcmV0Ym94");
        assert!(all["k8s_service_account"]["key"].is_string());
        assert!(!all.contains_key("aescbc_secret"));
        assert_eq!(bundle.lacks(), ["aescbc_secret"]);
        let old = text.replace("secretboxencryptionsecret", "aescbcencryptionsecret");
        let old = Bundle::parse(&old, "secrets.yaml").unwrap();
        assert_eq!(old.lacks(), ["secretbox_secret"]);
    }

    #[test]
    fn refuses_without_repeating_a_value() {
        let text = bundle();
        for (from, to, told) in [
            (
                "4q2gnh.bpqkbz0m9nnv7dzq",
                "s3cr3t",
                "`secrets.bootstraptoken`: expected a token such as",
            ),
            ("hs3uek.vu7w7yb2bcqbz1x1", "s3cr3t", "`trustdinfo.token`"),
            (
                "    os:\n        crt: ",
                "    os:\n        crt: s3cr3t",
                "`certs.os`",
            ),
            ("zZ1aD0nQ", "''", "`cluster.id`"),
            ("    id: zZ1aD0nQ\n", "", "key `id` is missing"),
            (
                "secretboxencryptionsecret",
                "x",
                "`secretboxencryptionsecret`",
            ),
        ] {
            let error = Bundle::parse(&text.replace(from, to), "f").err().unwrap();
            assert!(error.starts_with("f:") && error.contains(told), "{error}");
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
