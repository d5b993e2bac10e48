//! Golden output, refusals with their places, and Debian's own validator.

use std::process::Command;

use serde_json::{Value, json};

use super::*;
use crate::render::{Context, ImageFacts, PhoneHome, Renderer};
use crate::workflow::plan_tests::machine;

const FULL: &str = r#"files:
  - path: /etc/hostname
    mode: "0644"
    overwrite: true
    contents: |
      r1n1
  - { path: /etc/secret, mode: "0600", user: core, group: 500, contents: "a b\n", compress: gzip }
  - path: /opt/tool
    source: https://10.77.0.1:8443/tool
    hash: sha512-HASH
directories:
  - { path: /var/lib/app, mode: "0750", user: core }
links:
  - { path: /etc/localtime, target: /usr/share/zoneinfo/UTC, overwrite: true }
units:
  - name: call-home.service
    enabled: true
    contents: |
      [Service]
      ExecStart=/bin/true
      [Install]
      WantedBy=multi-user.target
  - { name: sshd.service, mask: true }
  - name: kubelet.service
    dropins: [ { name: 10-args.conf, contents: "[Service]\n" } ]
users:
  - name: core
    ssh_keys: [ "ssh-ed25519 AAAA ops" ]
    groups: [ sudo ]
    password_hash: "$y$abc"
    shell: /bin/bash
    no_create_home: false
storage:
  filesystems:
    - { device: /dev/disk/by-partlabel/data, format: ext4, path: /var/data, label: data }
kernel_args:
  should_exist: [ quiet, "console=ttyS0" ]
  should_not_exist: [ debug ]
merge:
  - { source: "https://10.77.0.1:8443/more.ign" }
ca: [ "OWN\n" ]
certificate_authorities:
  - contents: "PEM\n"
"#;

fn full() -> String {
    FULL.replace("HASH", &"ab".repeat(64))
}

fn spec(text: &str) -> Spec {
    text.parse().unwrap()
}

fn converted(text: &str, version: &str) -> Value {
    serde_json::from_str(&convert(text, "t.yaml", spec(version)).unwrap()).unwrap()
}

fn refusal(text: &str, version: &str) -> String {
    convert(text, "t.yaml", spec(version))
        .unwrap_err()
        .to_string()
}

#[test]
fn everything_at_once() {
    let mut got = converted(&full(), "3.4.0");
    let packed = got["storage"]["files"][1]["contents"]["source"].take();
    assert_eq!(gunzip(&packed), "a b\n");
    let expected = json!({
        "ignition": {
            "version": "3.4.0",
            "config": { "merge": [ { "source": "https://10.77.0.1:8443/more.ign" } ] },
            "security": { "tls": { "certificateAuthorities": [ { "source": "data:,OWN%0A" }, { "source": "data:,PEM%0A" } ] } },
        },
        "kernelArguments": { "shouldExist": ["quiet", "console=ttyS0"], "shouldNotExist": ["debug"] },
        "passwd": { "users": [ {
            "name": "core", "sshAuthorizedKeys": ["ssh-ed25519 AAAA ops"], "groups": ["sudo"],
            "passwordHash": "$y$abc", "shell": "/bin/bash", "noCreateHome": false,
        } ] },
        "storage": {
            "filesystems": [ {
                "device": "/dev/disk/by-partlabel/data", "format": "ext4", "path": "/var/data",
                "label": "data",
            } ],
            "directories": [ { "path": "/var/lib/app", "mode": 488, "user": { "name": "core" } } ],
            "files": [
                { "path": "/etc/hostname", "mode": 420, "overwrite": true,
                  "contents": { "source": "data:,r1n1%0A" } },
                { "path": "/etc/secret", "mode": 384, "user": { "name": "core" },
                  "group": { "id": 500 }, "contents": { "source": null, "compression": "gzip" } },
                { "path": "/opt/tool", "contents": {
                    "source": "https://10.77.0.1:8443/tool",
                    "verification": { "hash": format!("sha512-{}", "ab".repeat(64)) },
                } },
            ],
            "links": [ { "path": "/etc/localtime", "target": "/usr/share/zoneinfo/UTC", "overwrite": true } ],
        },
        "systemd": { "units": [
            { "name": "call-home.service", "enabled": true,
              "contents": "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n" },
            { "name": "sshd.service", "mask": true },
            { "name": "kubelet.service", "dropins": [ { "name": "10-args.conf", "contents": "[Service]\n" } ] },
        ] },
    });
    assert_eq!(got, expected);
    assert_eq!(
        converted("{}", "3.0.0"),
        json!({ "ignition": { "version": "3.0.0" } })
    );
}

fn gunzip(source: &Value) -> String {
    use base64::Engine as _;
    let packed = source
        .as_str()
        .unwrap()
        .strip_prefix("data:;base64,")
        .unwrap();
    let packed = base64::engine::general_purpose::STANDARD
        .decode(packed)
        .unwrap();
    std::io::read_to_string(flate2::read::GzDecoder::new(&packed[..])).unwrap()
}

#[test]
fn large_contents_are_compressed_unless_told_otherwise() {
    let text = |compress: &str| {
        let lines = "word ".repeat(2000);
        format!("files:\n  - {{ path: /a, contents: \"{lines}\"{compress} }}\n")
    };
    let file = |compress: &str| converted(&text(compress), "3.3.0")["storage"]["files"][0].clone();
    let packed = file("");
    assert_eq!(packed["contents"]["compression"], "gzip");
    assert_eq!(gunzip(&packed["contents"]["source"]), "word ".repeat(2000));
    assert_eq!(file(""), packed, "always the same bytes");
    assert!(
        file(", compress: none")["contents"]
            .get("compression")
            .is_none()
    );
}

#[test]
fn refusals_point_into_the_text() {
    let mut wrong = Vec::new();
    let hash = "ab".repeat(32);
    for (text, version, expected) in [
        ("fils: []\n", "3.4.0", "1:1: unknown key `fils`, did you mean `files`?".to_owned()),
        ("files:\n  - { pth: /a }\n", "3.4.0", "2:7: unknown key `pth`, did you mean `path`?".into()),
        ("files:\n  - { path: a, contents: x }\n", "3.4.0", "2:13: expected an absolute path without `..`".into()),
        ("files:\n  - { path: /a }\n", "3.4.0", "2:13: expected either `contents` or `source`".into()),
        ("files:\n  - { path: /a, contents: x }\nlinks:\n  - { path: /a, target: b }\n", "3.4.0", "4:13: path /a is given twice, first in line 2".into()),
        ("files:\n  - { path: /a, mode: \"rw\", contents: x }\n", "3.4.0", "2:23: not permission bits: expected octal digits such as \"0644\"".into()),
        ("directories:\n  - { path: /a, mode: \"1777\" }\n", "3.3.0", "2:23: spec 3.3.0 has no setuid, setgid and sticky bits: expected a spec from 3.4.0 on".into()),
        ("files:\n  - { path: /a, source: \"http://x/a\" }\n", "3.4.0", "2:25: what comes without TLS can be changed on its way: expected `hash` too, or https".into()),
        ("files:\n  - { path: /a, source: \"ftp://x/a\" }\n", "3.4.0", "2:25: not a URL that Ignition fetches: expected one of http, https, tftp, data, s3, gs".into()),
        (&format!("merge:\n  - {{ source: \"http://x/a\", hash: sha256-{hash} }}\n"), "3.0.0", "2:35: spec 3.0.0 knows SHA-512 only: expected sha512-, or a spec from 3.1.0 on".into()),
        ("units:\n  - { name: a }\n", "3.4.0", "2:13: not the name of a unit: expected one that ends with .service, .socket, .device, .mount, .automount, .swap, .target, .path, .timer, .slice, .scope".into()),
        ("units:\n  - { name: a.service, enabled: true, contents: \"[Service]\" }\n", "3.4.0", "2:33: the unit would not be started, since its contents have no [Install] section: expected `WantedBy=` in one, or no `enabled`".into()),
        ("kernel_args:\n  should_exist: [ quiet ]\n", "3.2.0", "2:3: spec 3.2.0 has no kernel arguments: expected a spec from 3.3.0 on".into()),
        ("users:\n  - { name: core, password_hash: hunter2 }\n", "3.4.0", "2:34: a password is never written in clear: expected its hash, as `mkpasswd` gives it".into()),
        ("storage:\n  luks: [ { name: a, device: b } ]\n", "3.1.0", "2:3: spec 3.1.0 has no `luks`: expected a spec from 3.2.0 on".into()),
        ("storage:\n  files: []\n", "3.4.0", "2:3: unknown key `files`, did you mean `filesystems`?".into()),
    ] {
        let told = refusal(text, version);
        if told != format!("t.yaml:{expected}") {
            wrong.push((told, expected));
        }
    }
    assert_eq!(wrong, []);
    let error = "3.6.0".parse::<Spec>().unwrap_err();
    assert!(error.contains("did you mean `3."), "{error}");
}

#[test]
fn debians_validator_takes_what_we_write() {
    let validate = |name: &str, text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.ign");
        std::fs::write(&path, text).unwrap();
        let out = Command::new("ignition-validate").arg(&path).output();
        let out = out.expect("ignition-validate is missing: install the Debian package `ignition`");
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{name}: {told}\n{text}");
        // It warns about keys that it does not know.
        assert!(!told.contains("warning"), "{name}: {told}");
    };
    validate("3.3.0", &convert(&full(), "t", spec("3.3.0")).unwrap());
    let old: String = full().split("kernel_args:").next().unwrap().to_owned();
    for version in ["3.0.0", "3.1.0", "3.2.0"] {
        validate(version, &convert(&old, "t", spec(version)).unwrap());
    }
    let broken = r#"{"ignition":{"version":"3.3.0"},"storage":{"files":[{"path":"a"}]}}"#;
    let refused = std::panic::catch_unwind(|| validate("broken", broken));
    assert!(refused.is_err(), "the validator is not a stub");
}

fn evaluate(files: &[(&str, &str)], template: &str, os: &str) -> Result<String, String> {
    let sources = files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    let renderer = Renderer::from_sources(sources.collect()).unwrap();
    let image = ImageFacts {
        id: "blake3:11".into(),
        name: os.into(),
        version: "1".into(),
        os: os.into(),
        os_version: None,
        size: 1,
        sha256: "aa".into(),
        unproven: false,
    };
    let phone_home = PhoneHome {
        url: "https://d".into(),
        token: "t".into(),
    };
    let context = Context::new(
        &machine(),
        Some(&image),
        "run-1",
        "https://d",
        "PEM",
        phone_home,
    );
    renderer
        .render(template, &context)
        .map_err(|error| error.to_string())
}

const CONFIG: &str = "{{ render('flatcar/ignition.yaml') | ignition }}\n";

#[test]
fn the_filter_takes_the_newest_spec_of_the_system() {
    for (os, version) in [
        ("debian", "3.3.0"),
        ("flatcar", "3.4.0"),
        ("fcos", "3.4.0"),
        ("rhcos", "3.2.0"),
        ("own", "3.3.0"),
    ] {
        let files = [
            ("site/ignition.yaml", "{}\n"),
            (
                "site/config.ign",
                "{{ render('site/ignition.yaml') | ignition }}",
            ),
        ];
        let json: Value =
            serde_json::from_str(&evaluate(&files, "site/config.ign", os).unwrap()).unwrap();
        assert_eq!(json["ignition"]["version"], version, "{os}");
    }
}

#[test]
fn an_error_names_the_line_of_the_template_that_was_written() {
    let yaml = "{% for nic in [1, 2, 3] %}\n# {{ nic }}\n{% endfor %}\nfiles:\n  - path: /etc/{{ machine.name }}\n    conten: x\n  - path: x{{ machine.name }}\n    contents: y\n";
    let files = |yaml: &'static str| {
        [
            ("flatcar/ignition.yaml", yaml),
            ("flatcar/config.ign", CONFIG),
        ]
    };
    let told = evaluate(&files(yaml), "flatcar/config.ign", "flatcar").unwrap_err();
    assert!(told.starts_with("flatcar/config.ign:1"), "{told}");
    assert!(
        told.ends_with("flatcar/ignition.yaml:6:5: unknown key `conten`, did you mean `contents`?"),
        "{told}"
    );
    // A value was put before the place: the line is sure, the column is not.
    let fixed: &'static str =
        "{% if true %}{% endif %}\n\nfiles:\n  - path: x{{ machine.name }}\n    contents: y\n";
    let told = evaluate(&files(fixed), "flatcar/config.ign", "flatcar").unwrap_err();
    assert!(
        told.ends_with("flatcar/ignition.yaml:4: expected an absolute path without `..`"),
        "{told}"
    );
}
