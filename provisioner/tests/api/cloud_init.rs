//! What cloud-init itself says and asks: its `phone_home` module and its Ec2 data source, run from
//! Debian's package; and the metadata service by curl.

use std::process::Command;

use serde_json::{Value, json};

use crate::daemon::inventory_with_a_vlan;
use crate::nodes::{MACHINE, NOBODY, Node, OTHER_MACHINE, come_from, run};

const TEMPLATES: &[(&str, &str)] = &[
    (
        "seed/user-data",
        "#cloud-config\n# {{ machine.name }} {{ phone_home.token }}\n",
    ),
    ("seed/meta-data", "instance-id: {{ run.id }}\n"),
];

/// A part of cloud-init, and what it printed.
async fn cloud_init(node: &Node, part: &str, url: &str) -> (String, String) {
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), node.daemon.ca()).unwrap();
    let mut python = Command::new("/usr/bin/python3");
    python
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/api/cloud_init.py"
        ))
        .args([part, url])
        // As the image would: the daemon's authority among those that it trusts.
        .env("REQUESTS_CA_BUNDLE", ca.path())
        .env("no_proxy", "*");
    let output = run(python, "").await;
    let told = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, log) = (told(output.stdout), told(output.stderr));
    assert!(output.status.success(), "package cloud-init? {log}");
    (out, log)
}

/// Status and body of a request by curl from an address.
async fn curl(node: &Node, from: &str, more: &[&str], url: &str) -> (u16, String) {
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), node.daemon.ca()).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--interface", from, "--cacert"])
        .arg(ca.path())
        .args(["-w", "\n%{http_code}"])
        .args(more)
        .arg(url);
    let output = run(curl, "").await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text} {output:?}");
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn cloud_init_phones_home_with_its_own_module() {
    let url = "{{ phone_home.url }}/{{ phone_home.token }}";
    let node = Node::installed(url, "{ by: token }", |_| {}, &[]).await;
    come_from(MACHINE).await;
    let (_, log) = cloud_init(&node, "phone-home", &node.written).await;
    assert!(!log.contains("Failed to post phone home data"), "{log}");
    let said = node.said().await;
    assert_eq!(said["by"], "cloud-init", "{said}");
    assert_eq!(said["hostname"], "r1n1");
    assert_eq!(said["fqdn"], "r1n1.rack");
    assert_eq!(said["instance_id"], "iid-r1n1");
    // A second time, as when its answer was lost: spent, and nobody is alarmed.
    let (_, log) = cloud_init(&node, "phone-home", &node.written).await;
    assert!(log.contains("410"), "{log}");
    assert_eq!(node.events("token.alarm").await, Vec::<Value>::new());
    node.daemon.stop().await;
}

/// The body that cloud-init posts where host keys can be read, as it was captured from it.
#[tokio::test]
async fn host_keys_are_kept_as_fingerprints() {
    let url = "{{ phone_home.url }}/{{ phone_home.token }}";
    let node = Node::installed(url, "{}", |_| {}, &[]).await;
    let body = "pub_key_dsa=N%2FA&pub_key_rsa=N%2FA&pub_key_ed25519=ssh-ed25519+AAAAC3NzaC1lZDI1NTE5AAAAIPAHJSHoJ%2FOIbF%2F6EbAOA8dnF2fOztz3oABDg9i6908L+root%40r1n1%0A&instance_id=i-1&hostname=r1n1&fqdn=r1n1";
    let json = ["-H", "content-type: application/json", "-d", "{}"];
    let (status, text) = curl(&node, MACHINE, &json, &node.written).await;
    assert_eq!(status, 415, "{text}");
    let long = format!("hostname={}", "x".repeat(300));
    let (status, text) = curl(&node, MACHINE, &["-d", &long], &node.written).await;
    assert_eq!(status, 422, "{text}");
    // Whose address it is, is known of VLANs too.
    node.daemon.apply(inventory_with_a_vlan()).await;
    let (status, text) = curl(&node, OTHER_MACHINE, &["-d", body], &node.written).await;
    assert_eq!(status, 403, "{text}");
    let (status, text) = curl(&node, MACHINE, &["-d", body], &node.written).await;
    assert_eq!((status, text.as_str()), (204, ""));
    let said = node.said().await;
    let shown = "ssh-ed25519 SHA256:BjGliixDnPoZGNCzaAR0YdzMpEiEKuLy5qipA4uZVC0";
    assert_eq!(said["ssh_host_keys"], json!([shown]));
    node.daemon.stop().await;
}

fn metadata(settings: &mut provisioner::settings::Settings) {
    settings.metadata = Some(provisioner::settings::MetadataSettings {
        listen: ([10, 77, 0, 1], 0).into(),
        plain: false,
    });
}

const PUT: [&str; 4] = [
    "-X",
    "PUT",
    "-H",
    "x-aws-ec2-metadata-token-ttl-seconds: 600",
];

#[tokio::test]
async fn cloud_init_crawls_the_metadata_of_its_machine() {
    let node = Node::installed("{{ metadata_url('seed/') }}", "{}", metadata, TEMPLATES).await;
    come_from(MACHINE).await;
    let (crawled, log) = cloud_init(&node, "metadata", &node.written).await;
    let crawled: Value = serde_json::from_str(&crawled).unwrap();
    let facts = &crawled["meta-data"];
    assert_eq!(facts["instance-id"], node.run.as_str(), "{crawled} {log}");
    assert_eq!(facts["local-hostname"], "r1n1");
    assert_eq!(facts["local-ipv4"], MACHINE);
    let card = &facts["network"]["interfaces"]["macs"]["52:54:00:aa:00:01"];
    assert_eq!(card["local-ipv4s"], MACHINE, "{facts}");
    let user_data = crawled["user-data"].as_str().unwrap();
    let words: Vec<_> = user_data.split_ascii_whitespace().collect();
    assert_eq!(words[..3], ["#cloud-config", "#", "r1n1"]);
    assert_eq!(words[3].len(), 64, "a token was made for it");
    node.daemon.stop().await;
}

#[tokio::test]
async fn a_session_is_for_who_has_the_secret_and_for_one_address() {
    let node = Node::installed("{{ metadata_url('seed/') }}", "{}", metadata, TEMPLATES).await;
    let (base, secret) = node.written.rsplit_once('/').unwrap();
    let at = |path: &str| format!("{base}/{path}");
    let token = at("latest/api/token");
    // The address alone is nothing.
    let (status, text) = curl(&node, MACHINE, &PUT, &token).await;
    assert_eq!(status, 401, "{text}");
    let (status, _) = curl(&node, MACHINE, &[], &at("latest/meta-data/")).await;
    assert_eq!(status, 401);
    let shown = format!("x-anneal-metadata-token: {secret}");
    let with = [&PUT[..], &["-H", &shown]].concat();
    let (status, text) = curl(&node, OTHER_MACHINE, &with, &token).await;
    assert_eq!(status, 403, "{text}");
    for (header, expected) in [
        ("x-forwarded-for: 10.0.0.1", 403),
        ("x-aws-ec2-metadata-token-ttl-seconds: 0", 400),
    ] {
        let odd = ["-X", "PUT", "-H", &shown, "-H", header];
        let odd = match expected {
            403 => [&odd[..], &PUT[2..]].concat(),
            _ => odd.to_vec(),
        };
        let (status, text) = curl(&node, MACHINE, &odd, &token).await;
        assert_eq!(status, expected, "{text}");
    }
    let (status, session) = curl(&node, MACHINE, &with, &token).await;
    assert_eq!(status, 200, "{session}");
    assert_eq!(session.len(), 64);
    let (_, again) = curl(
        &node,
        MACHINE,
        &PUT,
        &format!("{base}/{secret}/latest/api/token"),
    )
    .await;
    assert_eq!(again, session, "a client whose answer was lost asks again");
    let shown = format!("x-aws-ec2-metadata-token: {session}");
    let show = ["-H", &shown];
    for (path, expected) in [
        ("latest/meta-data/hostname", (200, "r1n1")),
        ("2021-03-23/meta-data/placement/", (404, "")),
        ("latest/dynamic/instance-identity/document", (404, "")),
    ] {
        let (status, text) = curl(&node, MACHINE, &show, &at(path)).await;
        assert_eq!(status, expected.0, "{path}: {text}");
        assert!(status != 200 || text == expected.1, "{path}: {text}");
    }
    let (status, text) = curl(&node, MACHINE, &show, &at("latest/user-data")).await;
    assert_eq!(status, 200, "{text}");
    assert!(text.starts_with("#cloud-config\n# r1n1 "), "{text}");
    let (_, repeat) = curl(&node, MACHINE, &show, &at("latest/user-data")).await;
    assert_eq!(repeat, text, "the same bytes for a minute");
    // The secret is the metadata service's: it is no config URL.
    let by_url = format!("/node/v1/config/{secret}/user-data");
    let (status, text) = curl(&node, MACHINE, &[], &node.daemon.url(&by_url)).await;
    assert_eq!(status, 403, "{text}");
    let tokens = node.daemon.get("/api/v1/tokens").await.to_string();
    let log = node
        .daemon
        .get("/api/v1/event-log?limit=1000")
        .await
        .to_string();
    for hidden in [secret, &session] {
        assert!(!tokens.contains(hidden) && !log.contains(hidden));
    }
    // In other hands it is an alarm.
    let (status, _) = curl(&node, NOBODY, &show, &at("latest/user-data")).await;
    assert_eq!(status, 401);
    let run = node.until(|run| run["state"] == "failed").await;
    assert!(
        run["why"].as_str().unwrap().contains("two addresses"),
        "{run}"
    );
    node.daemon.stop().await;
}
