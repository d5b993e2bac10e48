//! What cloud-init's own `phone_home` module posts: a form, not JSON, and no header of ours. Pure.
//!
//! Its fields are those of `cc_phone_home`: `instance_id`, `hostname`, `fqdn` and the public host
//! keys. What it could not find out it calls `N/A`.

use anneal_protocol::api::NodeReport;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// The media type of a form.
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// Bytes of a text that are kept.
const TEXT: usize = 256;

/// Host keys that are kept: one of each sort, and some to spare.
const KEYS: usize = 8;

/// What a form says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    /// As of any node.
    pub report: NodeReport,
    /// What only cloud-init says.
    pub more: Value,
}

/// Reads a form. Unknown fields are skipped: newer versions may post more.
pub(super) fn read(form: &[u8]) -> Said {
    let mut said = Said {
        report: NodeReport::default(),
        more: json!({ "by": "cloud-init" }),
    };
    let mut keys = Vec::new();
    for (name, value) in form_urlencoded::parse(form) {
        if value == "N/A" {
            continue;
        }
        match &*name {
            "hostname" => said.report.hostname = Some(value.into_owned()),
            "instance_id" | "fqdn" if value.len() <= TEXT && !value.contains(char::is_control) => {
                said.more[&*name] = Value::from(&*value);
            }
            "pub_key_rsa" | "pub_key_ecdsa" | "pub_key_ed25519" | "pub_key_dsa"
                if keys.len() < KEYS =>
            {
                keys.extend(fingerprint(&value));
            }
            _ => {}
        }
    }
    if !keys.is_empty() {
        said.more["ssh_host_keys"] = keys.into();
    }
    said
}

/// A public key as `ssh-keygen -l` shows it: type and digest. `None` when it is no key.
fn fingerprint(line: &str) -> Option<String> {
    let mut words = line.split_ascii_whitespace();
    let (kind, key) = (words.next()?, STANDARD.decode(words.next()?).ok()?);
    // The type is in the key once more, after its length.
    let length = u32::from_be_bytes(key.get(..4)?.try_into().ok()?);
    let inside = key.get(4..4 + usize::try_from(length).ok()?)?;
    (inside == kind.as_bytes() && kind.len() <= TEXT && kind.is_ascii()).then(|| {
        let digest = STANDARD_NO_PAD.encode(Sha256::digest(&key));
        format!("{kind} SHA256:{digest}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key made by ssh-keygen for this test, and what `ssh-keygen -lf` says of it.
    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPAHJSHoJ/OIbF/6EbAOA8dnF2fOztz3oABDg9i6908L root@r1n1";
    const SHOWN: &str = "ssh-ed25519 SHA256:BjGliixDnPoZGNCzaAR0YdzMpEiEKuLy5qipA4uZVC0";

    #[test]
    fn reads_what_cloud_init_posts() {
        let form = form_urlencoded::Serializer::new(String::new())
            .append_pair("pub_key_rsa", "N/A")
            .append_pair("pub_key_ed25519", KEY)
            .append_pair("instance_id", "run-1")
            .append_pair("hostname", "r1n1")
            .append_pair("fqdn", "r1n1.rack")
            .append_pair("news", "x")
            .finish();
        let said = read(form.as_bytes());
        assert_eq!(said.report.hostname.as_deref(), Some("r1n1"));
        let more = json!({"by": "cloud-init", "instance_id": "run-1", "fqdn": "r1n1.rack", "ssh_host_keys": [SHOWN]});
        assert_eq!(said.more, more);
    }

    #[test]
    fn what_is_no_key_is_left_out() {
        for line in [
            "",
            "ssh-rsa",
            "ssh-rsa !!!",
            "ssh-rsa AAAA",
            "ssh-rsa /////w==",
        ] {
            assert_eq!(fingerprint(line), None, "{line}");
        }
        let other = KEY.replace("ssh-ed25519", "ssh-rsa");
        assert_eq!(fingerprint(&other), None);
        assert_eq!(read(b"%ff=%00&&&=").more, json!({ "by": "cloud-init" }));
    }
}
