use std::collections::BTreeMap;

use anneal_protocol::disk::{DiskHints, DiskType};

use super::*;
use crate::machine::{Cidr, Machine, Nic};

fn machine() -> Machine {
    Machine {
        name: "r1n1".into(),
        rack: Some("r1".into()),
        role: None,
        nics: vec![Nic {
            address: Some(Cidr {
                ip: "10.77.0.11".parse().unwrap(),
                prefix: 24,
            }),
            boot: true,
            ..Nic::new("52:54:00:aa:00:01".parse().unwrap())
        }],
        bmc: None,
        disk: DiskHints {
            kind: Some(DiskType::Virtio),
            ..DiskHints::default()
        },
        protected_disks: vec![],
        image: None,
        workflow: None,
        labels: BTreeMap::from([("pool".to_owned(), "it's".to_owned())]),
        ..Machine::default()
    }
}

fn context() -> Context {
    Context::new(
        &machine(),
        None,
        "run-1",
        "https://10.77.0.1:8443",
        "PEM",
        PhoneHome {
            url: "https://10.77.0.1:8443/node/v1/phone-home".into(),
            token: REDACTED.into(),
        },
    )
}

fn renderer(files: &[(&str, &str)]) -> Renderer {
    Renderer::from_sources(
        files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect(),
    )
    .unwrap()
}

#[test]
fn renders_every_filter() {
    let renderer = renderer(&[]);
    for (text, expected) in [
        ("{{ machine.labels.pool | shquote }}!", r"'it'\''s'!"),
        ("x{{ 'hi' | b64 }}", "xaGk="),
        (
            "x{{ '52:54:00:12:34:56' | toyaml }}",
            "x\"52:54:00:12:34:56\"",
        ),
        ("x{{ {'a': 1} | tojson }}", "x{\"a\": 1}"),
        (
            "{{ machine.address }}/{{ machine.prefix }}",
            "10.77.0.11/24",
        ),
        ("<{{ '<&>' }}>", "<<&>>"),
    ] {
        let got = renderer.evaluate(text, "t", &context()).unwrap();
        assert_eq!(got, serde_json::json!(expected), "{text}");
    }
}

#[test]
fn a_sole_expression_keeps_its_type() {
    let got = renderer(&[])
        .evaluate("{{ machine.disk }}", "t", &context())
        .unwrap();
    assert_eq!(got, serde_json::json!(machine().disk_selector()));
}

#[test]
fn an_undefined_variable_names_template_and_line() {
    let renderer = renderer(&[("debian/user-data", "a\nb {{ machine.role }}\n")]);
    let error = renderer.render("debian/user-data", &context()).unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("debian/user-data", 2));
    assert!(error.message.contains("undefined"), "{error}");
    let nested = renderer
        .evaluate("x {{ render('debian/user-data') }}", "outer", &context())
        .unwrap_err();
    assert_eq!((nested.file.as_str(), nested.line), ("debian/user-data", 2));
    assert!(
        renderer
            .evaluate("{{ machine.role }}", "t", &context())
            .is_err()
    );
    for filter in ["toyaml", "tojson", "shquote", "b64"] {
        let text = format!("x{{{{ machine.role | {filter} }}}}");
        assert!(
            renderer.evaluate(&text, "t", &context()).is_err(),
            "{filter}"
        );
    }
}

#[test]
fn work_is_bounded() {
    let renderer = renderer(&[("self", "{{ render('self') }}")]);
    assert!(renderer.render("self", &context()).is_err());
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
    let error = renderer.evaluate(loops, "t", &context()).unwrap_err();
    assert!(error.message.contains("too much work"), "{error}");
}

#[test]
fn a_folder_overrides_built_in_templates() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("debian")).unwrap();
    std::fs::write(
        dir.path().join("debian/user-data.j2"),
        "mine {{ machine.name }}\n",
    )
    .unwrap();
    let renderer = Renderer::new(Some(dir.path().to_owned())).unwrap();
    assert_eq!(
        renderer.render("debian/user-data", &context()).unwrap(),
        "mine r1n1\n"
    );
    std::fs::write(dir.path().join("bad"), "{% if %}").unwrap();
    let error = Renderer::new(Some(dir.path().to_owned())).unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("bad", 1));
}

#[test]
fn knows_whether_the_token_was_used() {
    let renderer = renderer(&[("t", "{{ phone_home.token }}")]);
    let unused = context();
    renderer
        .evaluate("{{ phone_home.url }}", "x", &unused)
        .unwrap();
    assert!(!unused.token_used());
    let used = context();
    let text = renderer
        .evaluate("x {{ render('t') }}", "x", &used)
        .unwrap();
    assert!(used.token_used());
    assert_eq!(text, "x (redacted)");
}

#[test]
fn every_template_of_debian_renders_for_a_machine_without_leaking_the_token() {
    let image = ImageFacts {
        id: "blake3:11".into(),
        name: "debian".into(),
        version: "12".into(),
        os: "debian".into(),
        os_version: None,
        size: 1,
        sha256: "aa".into(),
        unproven: false,
    };
    let phone_home = PhoneHome {
        url: "https://10.77.0.1:8443/node/v1/phone-home".into(),
        token: REDACTED.into(),
    };
    let context = Context::new(
        &machine(),
        Some(&image),
        "run-1",
        "https://10.77.0.1:8443",
        "PEM",
        phone_home,
    );
    let renderer = Renderer::new(None).unwrap();
    // Those of other systems are rendered, with what they need, in tests/os_templates.
    let names = renderer.names();
    for name in names.iter().filter(|name| name.starts_with("debian/")) {
        let text = renderer.render(name, &context).unwrap();
        // Nothing but a template that says so with a comment is empty.
        let empty = name.ends_with("/vendor-data");
        assert_eq!(text.trim().is_empty(), empty, "{name}");
    }
}

#[test]
fn changed_files_count_when_asked_to_look_again() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("own")).unwrap();
    let path = dir.path().join("own/motd.j2");
    std::fs::write(&path, "one").unwrap();
    let renderer = Renderer::new(Some(dir.path().to_owned())).unwrap();
    let motd = || renderer.render("own/motd", &context()).unwrap();
    renderer.refresh().unwrap();
    assert_eq!(motd(), "one");
    // The same length, by renaming another file over it as editors do.
    std::fs::write(dir.path().join("new"), "two").unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    assert_eq!(motd(), "one", "only when asked");
    renderer.refresh().unwrap();
    assert_eq!(motd(), "two");
    // A mistake is told each time, and what was there stays.
    std::fs::write(&path, "{{ oops").unwrap();
    for _ in 0..2 {
        let error = renderer.refresh().unwrap_err().to_string();
        assert!(error.starts_with("own/motd:1:"), "{error}");
        assert_eq!(motd(), "two");
    }
    std::fs::remove_file(&path).unwrap();
    renderer.refresh().unwrap();
    assert!(renderer.render("own/motd", &context()).is_err());
}
