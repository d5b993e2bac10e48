//! Bottlerocket, Kairos and A/B images: what can be said of their texts without them.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use serde_json::Value;

use super::{FAMILIES, Family, NETWORKS, RUN, TOKEN, case, cases, conformance, folder, run};

fn unb64(text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text)
        .unwrap();
    String::from_utf8(bytes).unwrap()
}

fn toml(text: &str) -> Value {
    let table: toml::Table = text.parse().unwrap_or_else(|e| panic!("{e}\n{text}"));
    serde_json::to_value(table).unwrap()
}

#[test]
fn bottlerocket_settings_are_toml() {
    for case in cases(Family::of("bottlerocket")) {
        let all = toml(&case.own("user-data.toml"));
        let kubernetes = &all["settings"]["kubernetes"];
        assert_eq!(
            unb64(kubernetes["cluster-certificate"].as_str().unwrap()),
            super::ca()
        );
        assert_eq!(kubernetes["bootstrap-token"], super::JOIN_TOKEN);
        toml(&case.own("net.toml"));
    }
    let all = toml(&case(Family::of("bottlerocket"), "worker", "static").own("user-data.toml"));
    let settings = &all["settings"];
    assert_eq!(
        settings["kubernetes"]["node-taints"]["fresh"][0],
        ":NoExecute"
    );
    assert_eq!(
        settings["kubernetes"]["node-labels"]["topology.kubernetes.io/zone"],
        "r1"
    );
    assert_eq!(
        settings["boot"]["kernel-parameters"]["console"][0],
        "ttyS0,115200n8"
    );
    assert_eq!(settings["boot"]["kernel-parameters"]["quiet"][0], "");
    assert_eq!(
        settings["container-registry"]["mirrors"][0]["registry"],
        "docker.io"
    );
    let admin = unb64(
        settings["host-containers"]["admin"]["user-data"]
            .as_str()
            .unwrap(),
    );
    let admin: Value = serde_json::from_str(&admin).unwrap();
    assert!(
        admin["ssh"]["authorized-keys"][0]
            .as_str()
            .unwrap()
            .starts_with("ssh-ed25519 ")
    );
}

#[test]
fn bottlerocket_cards_are_named_by_mac() {
    let net = |network| toml(&case(Family::of("bottlerocket"), "worker", network).own("net.toml"));
    assert_eq!(net("dhcp")["52:54:00:aa:00:01"]["primary"], true);
    let one = net("static");
    assert_eq!(
        one["52:54:00:aa:00:01"]["static4"]["addresses"][0],
        "10.77.0.11/24"
    );
    assert_eq!(one["52:54:00:aa:00:01"]["route"][0]["via"], "10.77.0.1");
    let many = net("bond-vlan");
    assert_eq!(many["bond0"]["interfaces"][1], "lan1");
    assert_eq!(many["vlan100"]["device"], "bond0");
    assert_eq!(many["storage"]["device"], "lan2");
    assert!(
        many["52:54:00:aa:00:01"].is_null(),
        "a bond's member has nothing of its own"
    );
}

#[test]
fn bottlerocket_calls_home_from_a_container() {
    let mut case = case(Family::of("bottlerocket"), "worker", "dhcp");
    let image = "registry.example/call-home:1";
    let labels = &mut case.machine.labels;
    labels.insert("bottlerocket/phone-home-image".to_owned(), image.to_owned());
    let all = toml(&case.own("user-data.toml"));
    let container = &all["settings"]["host-containers"]["anneal"];
    assert_eq!(container["source"], image);
    let script = unb64(container["user-data"].as_str().unwrap());
    assert!(script.contains(TOKEN));
    let dir = folder(&[("script", &script)]);
    let output = run(
        "dash",
        Command::new("dash")
            .arg("-n")
            .arg(dir.path().join("script")),
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn bottlerocket_refusals() {
    let refused = |edit: fn(&mut provisioner::machine::Machine), template: &str| {
        let mut case = case(Family::of("bottlerocket"), "worker", "bond-vlan");
        edit(&mut case.machine);
        case.render(template).unwrap_err().to_string()
    };
    let told = refused(
        |m| m.role = Some("control-plane".into()),
        "bottlerocket/user-data.toml",
    );
    assert!(told.contains("no control plane role"), "{told}");
    let told = refused(
        |m| m.config.bonds[0].mode = "802.3ad".into(),
        "bottlerocket/net.toml",
    );
    assert!(told.contains("active-backup only, not 802.3ad"), "{told}");
    let told = refused(|m| m.nics[1].name = None, "bottlerocket/net.toml");
    assert!(
        told.contains("card 52:54:00:aa:00:02 belongs to bond bond0"),
        "{told}"
    );
    let told = refused(|m| m.nics[0].mtu = Some(9000), "bottlerocket/net.toml");
    assert!(told.contains("leave `mtu` out"), "{told}");
}

fn kairos(role: &str, network: &str) -> Value {
    let text = case(Family::of("kairos"), role, network).own("cloud-config.yaml");
    assert!(text.starts_with("#cloud-config\n"));
    serde_saphyr::from_str(&text).unwrap()
}

/// The raw image's first boot is its recovery system: nothing must call home from there, nor
/// again from later boots.
/// Kairos' schema, its types of stages, and what its agent wants before it resets.
#[test]
fn kairos_own_code_takes_every_document() {
    let dir = folder(&[]);
    let Some(program) = conformance("kairos", dir.path()) else {
        return;
    };
    let judge = |text: &str| {
        let path = dir.path().join("cloud-config.yaml");
        std::fs::write(&path, text).unwrap();
        let output = Command::new(&program).arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), told)
    };
    for case in cases(Family::of("kairos")) {
        let (good, told) = judge(&case.own("cloud-config.yaml"));
        assert!(good, "{}: {told}", case.variant);
    }
    let text = case(Family::of("kairos"), "worker", "dhcp").own("cloud-config.yaml");
    for (wrong, about) in [
        (
            text.replace("  nousers: true\n", "  nousers: false\n"),
            "users",
        ),
        (text.replace("      commands:", "      comands:"), "comands"),
    ] {
        let (good, told) = judge(&wrong);
        assert!(!good && told.contains(about), "{told}");
    }
}

#[test]
fn kairos_calls_home_from_the_active_system_once() {
    let config = kairos("worker", "dhcp");
    let stage = &config["stages"]["network"][0];
    let condition = stage["if"].as_str().unwrap();
    for (files, holds) in [
        (&["/run/cos/recovery_mode"][..], false),
        (&["/run/cos/active_mode"][..], true),
        (
            &["/run/cos/active_mode", &format!("/usr/local/anneal/{RUN}")][..],
            false,
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let below = root.path().display().to_string();
        let here = condition
            .replace("/run/cos", &format!("{below}/run/cos"))
            .replace("/usr/local", &format!("{below}/usr/local"));
        let output = run("dash", Command::new("dash").args(["-c", &here]));
        assert_eq!(output.status.success(), holds, "{files:?}");
    }
    let token_files: Vec<_> = stage["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|file| file["content"].as_str().unwrap().contains(TOKEN))
        .collect();
    assert_eq!(token_files.len(), 1);
    assert_eq!(token_files[0]["path"], "/run/anneal/phone-home.conf");
}

#[test]
fn kairos_joins_by_k3s() {
    let worker = kairos("worker", "static");
    let agent = &worker["k3s-agent"];
    assert_eq!(agent["env"]["K3S_URL"], "https://10.77.0.100:6443");
    assert_eq!(agent["env"]["K3S_TOKEN"], super::JOIN_TOKEN);
    let args = |node: &Value| node["args"].as_array().unwrap().clone();
    for wanted in [
        "--node-label pool=general",
        "--node-taint dedicated=storage:NoSchedule",
        "--node-ip 10.77.0.11",
    ] {
        assert!(args(agent).contains(&wanted.into()), "{wanted}");
    }
    assert!(args(&kairos("control-plane", "dhcp")["k3s"]).contains(&"--cluster-init".into()));
    assert!(
        args(&kairos("control-plane", "static")["k3s"])
            .contains(&"--server https://10.77.0.100:6443".into())
    );
}

#[test]
fn kairos_uses_the_network_service_of_its_flavour() {
    let mut case = case(Family::of("kairos"), "worker", "static");
    let key = "kairos/network".to_owned();
    case.machine
        .labels
        .insert(key.clone(), "networkmanager".into());
    assert!(
        case.own("cloud-config.yaml")
            .contains("/system-connections/lan0.nmconnection")
    );
    case.machine.labels.insert(key, "wicked".into());
    let told = case
        .render("kairos/cloud-config.yaml")
        .unwrap_err()
        .to_string();
    assert!(told.contains("not `wicked`"), "{told}");
}

/// Runs the script of an A/B image below a folder.
fn configured(network: &str) -> (tempfile::TempDir, String) {
    let case = case(Family::of("rauc"), "worker", network);
    let dir = folder(&[("configure", &case.own("configure"))]);
    let root = dir.path().join("root");
    let mut command = Command::new("dash");
    let output = run("dash", command.arg(dir.path().join("configure")).arg(&root));
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    (dir, told)
}

fn read(dir: &Path, path: &str) -> String {
    std::fs::read_to_string(dir.join("root").join(path)).unwrap()
}

#[test]
fn an_ab_image_is_configured_in_ram() {
    for network in NETWORKS {
        let (dir, told) = configured(network);
        assert_eq!(told, "");
        let conf = dir.path().join("root/run/anneal/phone-home.conf");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(&conf).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert!(read(dir.path(), "run/anneal/phone-home.conf").contains(TOKEN));
        let unit = read(dir.path(), "run/systemd/system/kubeadm-join.service");
        assert!(
            unit.contains("kubeadm join --config /run/anneal/kubeadm.yaml"),
            "{unit}"
        );
        assert!(!dir.path().join("root/etc/systemd").exists());
    }
    let (dir, _) = configured("static");
    let network = read(dir.path(), "run/systemd/network/10-lan0.network");
    assert!(
        network.contains("Address=10.77.0.11/24\nGateway=10.77.0.1\n"),
        "{network}"
    );
    assert_eq!(read(dir.path(), "etc/motd"), "rack r1\nkeep out");
    assert!(read(dir.path(), "run/anneal/authorized_keys").starts_with("ssh-ed25519 "));
}

/// In whichever slot, and after every restart: a node calls home once for a run.
#[test]
fn an_ab_image_that_called_home_gets_no_token_again() {
    let (dir, _) = configured("dhcp");
    let done = read(
        dir.path(),
        "run/systemd/system/anneal-phone-home.service.d/done.conf",
    );
    let marker = dir.path().join(format!("called-home-{RUN}"));
    assert_eq!(
        done,
        format!("[Service]\nExecStartPost=/bin/touch {}\n", marker.display())
    );
    std::fs::write(marker, "").unwrap();
    std::fs::remove_dir_all(dir.path().join("root")).unwrap();
    let mut command = Command::new("dash");
    let output = run(
        "dash",
        command
            .arg(dir.path().join("configure"))
            .arg(dir.path().join("root")),
    );
    assert!(output.status.success());
    assert!(!dir.path().join("root/run/anneal/phone-home.conf").exists());
    assert!(dir.path().join("root/run/anneal/kubeadm.yaml").exists());
}

/// systemd's own program reads every unit that any system gets.
#[test]
fn systemd_reads_the_units() {
    let mut seen = 0;
    for family in FAMILIES {
        let Some(template) = family
            .templates
            .iter()
            .find(|t| ["ignition.yaml", "user-data", "cloud-config.yaml"].contains(t))
        else {
            continue;
        };
        if family.name == "talos" {
            continue;
        }
        for role in family.roles {
            let text = case(family, role, "static").own(template);
            let config: Value = serde_saphyr::from_str(&text).unwrap();
            let mut units = Vec::new();
            find_units(&config, &mut units);
            assert!(!units.is_empty(), "{}", family.name);
            let files: Vec<(&str, &str)> = units
                .iter()
                .map(|(n, t)| (n.as_str(), t.as_str()))
                .collect();
            let dir = folder(&files);
            for (name, _) in &files {
                let mut command = Command::new("systemd-analyze");
                command.args([
                    "verify",
                    "--man=no",
                    "--generators=no",
                    "--recursive-errors=no",
                ]);
                let output = run("systemd", command.arg(dir.path().join(name)));
                let told = String::from_utf8_lossy(&output.stderr).into_owned();
                // kubeadm is the image's.
                let bad: Vec<_> = told
                    .lines()
                    .filter(|line| {
                        line.contains(name) && !line.contains("kubeadm is not executable")
                    })
                    .collect();
                assert!(bad.is_empty(), "{}/{name}: {told}", family.name);
                seen += 1;
            }
        }
    }
    assert!(seen > 10, "{seen}");
}

/// Every systemd unit in a document, by name and text.
fn find_units(value: &Value, found: &mut Vec<(String, String)>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| find_units(item, found)),
        Value::Object(entries) => {
            let name = entries.get("name").or_else(|| entries.get("path"));
            let text = entries.get("contents").or_else(|| entries.get("content"));
            if let (Some(Value::String(name)), Some(Value::String(text))) = (name, text)
                && let Some(unit) = name.rsplit('/').next()
                && [".service", ".path"].iter().any(|end| unit.ends_with(end))
            {
                found.push((unit.to_owned(), text.clone()));
            }
            entries.values().for_each(|item| find_units(item, found));
        }
        _ => {}
    }
}
