//! What settings come out of a file and flags, and how each mistake is told.

use super::*;

fn host() -> Host {
    Host {
        interfaces: vec![Interface {
            name: "eth0".to_owned(),
            up: true,
            broadcast: true,
            addresses: vec!["10.77.0.1/24".parse().unwrap()],
        }],
        program_dir: None,
        working_dir: "/home/op".into(),
    }
}

fn with_file(text: &str) -> Result<Settings, SettingsError> {
    merge(
        Some((text, Path::new("/etc/anneal/anneal.yaml"))),
        &Flags::default(),
        &host(),
    )
}

fn with_flags(flags: &Flags) -> Result<Settings, SettingsError> {
    merge(None, flags, &host())
}

#[test]
fn works_with_nothing_said() {
    let settings = with_flags(&Flags::default()).unwrap();
    assert_eq!(settings.interface, "eth0");
    assert_eq!(settings.address.to_string(), "10.77.0.1/24");
    assert_eq!(settings.state_dir, Path::new("/var/lib/anneal"));
    assert_eq!(settings.netboot_dir, Path::new("/usr/share/anneal/netboot"));
    assert_eq!((settings.boot_port, settings.tls_port), (8080, 8443));
    let dhcp = settings.dhcp.unwrap();
    assert_eq!(dhcp.pool, None);
    assert!(!dhcp.serve_unknown && !dhcp.allow_foreign && settings.tftp);
}

#[test]
fn boot_files_beside_the_program_are_found() {
    let prefix = tempfile::tempdir().unwrap();
    let netboot = prefix.path().join("share/anneal/netboot");
    std::fs::create_dir_all(&netboot).unwrap();
    let mut host = host();
    host.program_dir = Some(prefix.path().join("bin"));
    let settings = merge(None, &Flags::default(), &host).unwrap();
    assert_eq!(settings.netboot_dir, netboot);
}

#[test]
fn a_flag_wins_over_the_file_and_paths_are_relative_to_who_wrote_them() {
    let text = "state_dir: state\nnetboot_dir: nb\ndhcp: { pool: 10.77.0.50-10.77.0.60 }\n";
    let flags = Flags {
        netboot_dir: Some("build/netboot".to_owned()),
        dhcp_pool: Some("10.77.0.100-10.77.0.199".to_owned()),
        no_tftp: true,
        allow_foreign_dhcp: true,
        ..Flags::default()
    };
    let settings = merge(
        Some((text, Path::new("/etc/anneal/anneal.yaml"))),
        &flags,
        &host(),
    )
    .unwrap();
    assert_eq!(settings.state_dir, Path::new("/etc/anneal/state"));
    assert_eq!(settings.netboot_dir, Path::new("/home/op/build/netboot"));
    assert!(!settings.tftp);
    let dhcp = settings.dhcp.unwrap();
    assert!(dhcp.allow_foreign);
    assert_eq!(
        dhcp.pool,
        Some((
            "10.77.0.100".parse().unwrap(),
            "10.77.0.199".parse().unwrap()
        ))
    );
    let off = Flags {
        no_dhcp: true,
        ..Flags::default()
    };
    assert_eq!(with_flags(&off).unwrap().dhcp, None);
}

#[test]
fn tells_each_mistake_of_the_file_with_its_place() {
    for (text, told) in [
        (
            "interfaces: eth0\n",
            "1:1: unknown key `interfaces`, did you mean `interface`?",
        ),
        (
            "tls_port: 0\n",
            "1:11: \"0\" is not a port: expected 1 to 65535",
        ),
        (
            "tls_port: 70000\n",
            "1:11: \"70000\" is not a port: expected 1 to 65535",
        ),
        (
            "address: 10.77.0.1\n",
            "1:10: \"10.77.0.1\" is not an address with its prefix length: expected 10.77.0.11/24",
        ),
        ("password_dirs: [ a, \"\" ]\n", "1:21: expected a directory"),
        (
            "events: { max: 10 }\n",
            "1:16: \"10\" is not a number of events: expected at least 1000",
        ),
        (
            "events: { keep: 1h }\n",
            "1:17: \"1h\" is out of range: expected 1d to 3650d",
        ),
        ("tftp: yes\n", "1:7: expected `true` or `false`"),
        (
            "agent_silence: 45\n",
            "1:16: \"45\" is not a duration: expected a number and a unit such as 90s, 45m or 1h30m",
        ),
        (
            "agent_silence: 1s\n",
            "1:16: \"1s\" is out of range: expected 10s to 1h",
        ),
        (
            "dhcp:\n  lease: 1s\n",
            "2:10: \"1s\" is out of range: expected 2m to 30d",
        ),
        (
            "dhcp:\n  pool: 10.77.0.100\n",
            "2:9: \"10.77.0.100\" is not a pool: expected first and last address such as 10.77.0.100-10.77.0.199",
        ),
        (
            "dhcp:\n  pool: 10.77.0.9-10.77.0.2\n",
            "2:9: the pool ends before it begins: 10.77.0.9 is after 10.77.0.2",
        ),
        (
            "dhcp:\n  pool: 10.78.0.9-10.78.0.20\n",
            "2:9: the pool 10.78.0.9-10.78.0.20 is not inside the network of our address 10.77.0.1/24",
        ),
        (
            "dhcp:\n  pool: 10.77.0.9-10.77.0.255\n",
            "2:9: the pool 10.77.0.9-10.77.0.255 is not inside the network of our address 10.77.0.1/24",
        ),
        (
            "dhcp:\n  pool: 10.77.0.1-10.77.0.20\n",
            "2:9: the pool 10.77.0.1-10.77.0.20 holds our own address 10.77.0.1",
        ),
        (
            "dhcp:\n  serve_unknown: true\n",
            "2:18: machines that are not in the inventory need addresses: expected `pool` as well",
        ),
        (
            "dhcp:\n  router: 10.78.0.1\n",
            "2:11: 10.78.0.1 is not in the network of 10.77.0.1/24",
        ),
        (
            "dhcp:\n  dns: [dns.example]\n",
            "2:9: \"dns.example\" is not an IPv4 address",
        ),
    ] {
        assert_eq!(
            with_file(text).unwrap_err().to_string(),
            format!("/etc/anneal/anneal.yaml:{told}")
        );
    }
}

/// A section is there to switch something on.
#[test]
fn what_listens_says_where() {
    for text in [
        "event_sink: {}\n",
        "metadata: {}\n",
        "metadata: { plain: true }\n",
    ] {
        let told = with_file(text).unwrap_err().to_string();
        assert!(told.starts_with("/etc/anneal/anneal.yaml:1:"), "{told}");
        assert!(told.contains("expected `listen`"), "{told}");
    }
    let settings = with_file("metadata: { listen: \":8444\" }\n").unwrap();
    assert!(settings.metadata.is_some() && settings.event_sink.is_none());
}

#[test]
fn password_directories_follow_the_state_directory_the_file_and_the_flag() {
    let dirs = |text: &str, flags: &Flags| {
        let file = Path::new("/etc/anneal/anneal.yaml");
        let settings = merge(Some((text, file)), flags, &host()).unwrap();
        settings.password_dirs
    };
    let none = Flags::default();
    let usual = ["/etc/anneal/secrets", "/srv/state/secrets"].map(PathBuf::from);
    assert_eq!(dirs("state_dir: /srv/state\n", &none), usual);
    let text = "password_dirs: [ pw, /run/secrets ]\n";
    let written = ["/etc/anneal/pw", "/run/secrets"].map(PathBuf::from);
    assert_eq!(dirs(text, &none), written);
    let flags = Flags {
        password_dirs: vec!["lab".to_owned()],
        ..Flags::default()
    };
    assert_eq!(dirs(text, &flags), [PathBuf::from("/home/op/lab")]);
}

#[test]
fn tells_mistakes_of_flags_with_their_names() {
    let text = |value: &str| Some(value.to_owned());
    for (flags, told) in [
        (
            Flags {
                dhcp_pool: text("x"),
                ..Flags::default()
            },
            "--dhcp-pool: \"x\" is not a pool: expected first and last address such as 10.77.0.100-10.77.0.199",
        ),
        (
            Flags {
                boot_port: text("8443"),
                ..Flags::default()
            },
            "--boot-port and --tls-port: both are 8443: expected two ports",
        ),
        (
            Flags {
                interface: text("br0"),
                ..Flags::default()
            },
            "no interface is called br0 (there are: eth0 (10.77.0.1/24))",
        ),
    ] {
        assert_eq!(with_flags(&flags).unwrap_err().to_string(), told);
    }
}

/// The reference file; a key is a line like `#key: value`, a comment has one space after `#`.
fn reference() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/anneal.yaml");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_reference_file_changes_nothing() {
    let plain = with_flags(&Flags::default()).unwrap();
    assert_eq!(with_file(&reference()).unwrap(), plain);
}

#[test]
fn the_reference_file_tells_the_defaults() {
    let text: String = reference()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') || key.starts_with("  ") => format!("{key}\n"),
            _ => "\n".to_owned(),
        })
        .collect();
    let mut settings = with_file(&text).unwrap();
    // These have no default, or one that depends on the host: the file shows an example.
    assert_eq!(
        settings.workflows_dir.take().unwrap(),
        Path::new("/etc/anneal/workflows")
    );
    assert_eq!(
        settings.templates_dir.take().unwrap(),
        Path::new("/etc/anneal/templates")
    );
    assert!(settings.event_sink.take().is_some());
    assert!(settings.metadata.take().is_some());
    assert_eq!(std::mem::take(&mut settings.join.clusters).len(), 1);
    assert!(!std::mem::take(&mut settings.images.trusted_keys).is_empty());
    assert!(settings.images.limits.per_machine.take().is_some());
    assert!(settings.images.limits.total.take().is_some());
    let dhcp = settings.dhcp.as_mut().unwrap();
    assert!(dhcp.pool.take().is_some());
    assert!(dhcp.router.take().is_some());
    assert!(!std::mem::take(&mut dhcp.dns).is_empty());
    assert_eq!(settings, with_flags(&Flags::default()).unwrap());
    // Every key of the file type is there.
    for key in [
        "state_dir",
        "netboot_dir",
        "workflows_dir",
        "templates_dir",
        "password_dirs",
        "interface",
        "address",
        "boot_port",
        "tls_port",
        "events",
        "  keep",
        "  max",
        "dhcp",
        "tftp",
        "agent_silence",
        "event_sink",
        "metadata",
        "images",
        "  require_proof",
        "  trusted_keys",
        "  listen",
        "  plain",
        "  limit_per_machine",
        "  limit_total",
        "  max_size",
        "  allow_local_sources",
        "  upload_patience",
        "plain_config_urls",
        "clusters",
        "join_tokens",
        "  max_ttl",
        "  allow_static",
        "  secret_dirs",
        "  enabled",
        "  pool",
        "  serve_unknown",
        "  router",
        "  dns",
        "  lease",
        "  allow_foreign",
    ] {
        let line = format!("\n#{key}:");
        assert!(
            reference().contains(&line),
            "{key} is missing in packaging/anneal.yaml"
        );
    }
}
