use std::path::Path;

use super::super::interface::Interface;
use super::super::{Flags, Host, Settings, merge};
use super::*;

fn with(text: &str) -> Result<Settings, SettingsError> {
    let host = Host {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            up: true,
            broadcast: true,
            addresses: vec!["10.77.0.1/24".parse().unwrap()],
        }],
        program_dir: None,
        working_dir: "/".into(),
    };
    merge(
        Some((text, Path::new("/etc/anneal.yaml"))),
        &Flags::default(),
        &host,
    )
}

fn cluster(more: &str) -> String {
    format!("clusters:\n  - name: prod\n    endpoint: https://10.77.0.5:6443\n    {more}\n")
}

#[test]
fn reads_every_issuer() {
    let one = |more: &str| {
        let mut join = with(&cluster(more)).unwrap().join;
        assert_eq!(join.clusters.len(), 1);
        join.clusters.remove(0)
    };
    let kubernetes = one("issuer: { kubernetes: { kubeconfig: { file: prod.kubeconfig } } }");
    assert_eq!(kubernetes.host, "10.77.0.5:6443");
    assert_eq!(kubernetes.ttl, Duration::from_secs(7200));
    assert_eq!(
        kubernetes.issuer,
        IssuerSettings::Kubernetes {
            access: Access::Kubeconfig {
                file: "/etc/prod.kubeconfig".into(),
                context: None,
            },
            groups: vec![GROUP.to_owned()],
        }
    );
    let inside =
        one("issuer: { kubernetes: { in_cluster: true, groups: ['system:bootstrappers:x'] } }");
    assert!(inside.issuer.expires());
    let exec = one(
        "ttl: 30m\n    ca: prod.pem\n    issuer: { exec: { command: [/usr/bin/kubeadm, token, create, --ttl, '{ttl}'], revoke: [/bin/x, '{token_id}'], timeout: 20s } }",
    );
    assert_eq!(exec.ttl, Duration::from_secs(1800));
    assert_eq!(exec.ca.unwrap(), Path::new("/etc/prod.pem"));
    assert_eq!(exec.issuer.as_str(), "exec");
    let talos = one("issuer: { talos: {} }");
    assert_eq!(talos.issuer, IssuerSettings::Talos { secrets: None });
    let text = cluster("issuer: { static: { token: { file: t } } }");
    let fixed = with(&format!(
        "{text}join_tokens: {{ allow_static: true, secret_dirs: [ s ] }}\n"
    ));
    let join = fixed.unwrap().join;
    assert_eq!(join.secret_dirs, [Path::new("/etc/s")]);
    assert!(!join.clusters[0].issuer.expires());
}

#[test]
fn the_longest_life_is_the_administrators() {
    let text = cluster("issuer: { kubernetes: { in_cluster: true } }");
    let short = with(&format!("{text}join_tokens: {{ max_ttl: 30m }}\n"));
    assert_eq!(
        short.unwrap().join.clusters[0].ttl,
        Duration::from_secs(1800)
    );
}

#[test]
fn tells_each_mistake_with_its_place() {
    for (more, told) in [
        (
            "issuer: {}",
            "4:13: expected one of `kubernetes`, `exec`, `talos`, `static`",
        ),
        (
            "issuer: { kubernetes: { in_cluster: true }, talos: {} }",
            "4:13: expected one of `kubernetes`, `exec`, `talos`, `static`",
        ),
        (
            "issuer: { kubernets: {} }",
            "4:15: unknown key `kubernets`, did you mean `kubernetes`?",
        ),
        (
            "issuer: { kubernetes: {} }",
            "4:13: expected `kubeconfig: { file: PATH }` or `in_cluster: true`, and not both",
        ),
        (
            "issuer: { exec: { command: [kubeadm] } }",
            "4:33: \"kubeadm\" is not an absolute path: no shell and no search path finds the program",
        ),
        (
            "issuer: { exec: { command: [/bin/x, '{tll}'] } }",
            "4:41: unknown placeholder `{tll}`, did you mean `{ttl}`?",
        ),
        (
            "issuer: { exec: { command: [] } }",
            "4:32: expected a program and its arguments, as a list",
        ),
        (
            "issuer: { static: { token: { file: x } } }",
            "4:13: a static token is good for everybody who ever saw it, for ever: use another issuer, or set `join_tokens: { allow_static: true }`",
        ),
        (
            "ttl: 25h\n    issuer: { kubernetes: { in_cluster: true } }",
            "4:10: \"25h\" is longer than `join_tokens.max_ttl`: expected at most 1d",
        ),
        (
            "ttl: 2h\n    issuer: { talos: {} }",
            "4:10: a token of the `talos` issuer never expires: leave `ttl` out",
        ),
        (
            "issuer: { kubernetes: { in_cluster: true, groups: [admins] } }",
            "4:56: \"admins\" is not a group for bootstrap tokens: expected system:bootstrappers:… of lower-case letters, digits, `:` and `-`",
        ),
    ] {
        let error = with(&cluster(more)).unwrap_err().to_string();
        assert_eq!(error, format!("/etc/anneal.yaml:{told}"), "{more}");
    }
    for endpoint in [
        "http://h:6443",
        "https://",
        "https://u:p@h:6443",
        "https://h:6443/x",
        "h:6443",
    ] {
        let text = cluster("issuer: { talos: {} }").replace("https://10.77.0.5:6443", endpoint);
        let error = with(&text).unwrap_err().to_string();
        assert!(error.contains("is not a cluster's endpoint"), "{error}");
        assert!(error.starts_with("/etc/anneal.yaml:3:15: "), "{error}");
    }
    let twice = format!(
        "{}  - {{ name: prod, endpoint: 'https://h:1', issuer: {{ talos: {{}} }} }}\n",
        cluster("issuer: { talos: {} }")
    );
    let error = with(&twice).unwrap_err().to_string();
    assert!(
        error.ends_with("5:13: two clusters are named \"prod\""),
        "{error}"
    );
}
