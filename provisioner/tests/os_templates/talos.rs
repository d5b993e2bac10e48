//! Talos' JSON Schemas judge its documents.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Case, Family, NETWORKS, case, cases, conformance, folder};

/// Families by golden folder, with the schema of the version nearest to theirs.
const SCHEMAS: [(&str, &str); 2] = [
    ("talos-1.13", "config-v1.13.9.schema.json"),
    ("talos-1.15", "config-v1.15-dev.schema.json"),
];

/// What a schema says of each document; nothing of a good one. The validator is the one that
/// `anneal config validate` runs.
fn mistakes(schema: &str, documents: &[Value]) -> Vec<Vec<String>> {
    use std::io::Write as _;
    let mut child = Command::new("/usr/bin/python3")
        .arg("tests/os_templates/schema.py")
        .arg(format!("tests/fixtures/talos/{schema}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = serde_json::to_vec(documents).unwrap();
    child.stdin.take().unwrap().write_all(&text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "apt-get install python3-jsonschema"
    );
    let told: Vec<Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told.len(), documents.len());
    told
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n")
        .map(|part| serde_saphyr::from_str(part).unwrap())
        .collect()
}

fn kinds(documents: &[Value]) -> Vec<&str> {
    documents
        .iter()
        .map(|document| document["kind"].as_str().unwrap_or("v1alpha1"))
        .collect()
}

fn find<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    let found = documents.iter().find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind} in {:?}", kinds(documents)))
}

#[test]
fn every_document_fits_the_schema_of_its_version() {
    for (folder, schema) in SCHEMAS {
        let all: Vec<(String, Value)> = cases(Family::of(folder))
            .flat_map(|case| {
                let documents = documents(&case.own("machine.yaml"));
                documents
                    .into_iter()
                    .map(move |d| (case.variant.clone(), d))
            })
            .collect();
        assert!(all.len() > 50, "{}", all.len());
        let values: Vec<Value> = all.iter().map(|(_, document)| document.clone()).collect();
        for ((variant, document), told) in all.iter().zip(mistakes(schema, &values)) {
            assert!(told.is_empty(), "{folder} {variant}: {told:?}: {document}");
        }
    }
}

/// Talos' own loader and validation, of 1.13: what its schema does not know.
#[test]
fn talos_own_code_takes_every_document() {
    let dir = folder(&[]);
    let Some(program) = conformance("talos", dir.path()) else {
        return;
    };
    let judge = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let output = Command::new(&program).arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), told)
    };
    for case in cases(Family::of("talos-1.13")) {
        for name in ["machine.yaml", "meta-network.yaml"] {
            let text = case.own(name);
            // A machine without a fixed address needs nothing in META.
            if !text.trim().is_empty() {
                let (good, told) = judge(name, &text);
                assert!(good, "{} {name}: {told}", case.variant);
            }
        }
    }
    let text = case(Family::of("talos-1.13"), "worker", "dhcp").own("machine.yaml");
    for (wrong, about) in [
        (text.replace("    disk: /dev/none\n", ""), "install disk"),
        (text.replace("kubePrism", "kubeprism"), "kubeprism"),
    ] {
        let (good, told) = judge("machine.yaml", &wrong);
        assert!(!good && told.contains(about), "{told}");
    }
    let (good, told) = judge("meta-network.yaml", "address: []\n");
    assert!(!good, "{told}");
}

/// Its API server gets an empty file otherwise, and does not start.
#[test]
fn a_control_plane_says_who_may_ask_its_api_server() {
    for network in NETWORKS {
        let text = case(Family::of("talos-1.15"), "control-plane", network).own("machine.yaml");
        let all = documents(&text);
        let anonymous = &find(&all, "KubeAuthenticationConfig")["configuration"]["anonymous"];
        assert_eq!(anonymous["conditions"][0]["path"], "/livez");
        let text = case(Family::of("talos-1.13"), "control-plane", network).own("machine.yaml");
        let all = documents(&text);
        let kubelet = all[0]["machine"]["kubelet"]["image"].as_str();
        let server = all[0]["cluster"]["apiServer"]["image"].as_str();
        let version = |image: Option<&str>| image.map(|i| i.rsplit(':').next().map(str::to_owned));
        assert_eq!(version(kubelet), version(server));
    }
}

/// A schema that takes anything would prove nothing.
#[test]
fn the_schemas_refuse_the_words_of_the_other_version() {
    let read = |folder| documents(&case(Family::of(folder), "worker", "dhcp").own("machine.yaml"));
    let old = &read("talos-1.13")[..1];
    let new = [find(&read("talos-1.15"), "KubeNodeConfig").clone()];
    let good =
        |schema: usize, documents: &[Value]| mistakes(SCHEMAS[schema].1, documents)[0].is_empty();
    assert!(good(0, old));
    assert!(!good(1, old), "`cluster.ca` is gone");
    assert!(good(1, &new));
    assert!(!good(0, &new));
}

#[test]
fn a_worker_has_no_key_of_the_cluster() {
    for (folder, _) in SCHEMAS {
        for network in NETWORKS {
            let text = case(Family::of(folder), "worker", network).own("machine.yaml");
            assert!(!text.contains(super::SECRET_KEY), "{folder}");
            let all = documents(&text);
            assert_eq!(all[0]["machine"]["ca"]["key"], "");
            assert!(all[0]["cluster"]["etcd"].is_null());
        }
        let text = case(Family::of(folder), "control-plane", "dhcp").own("machine.yaml");
        assert!(text.contains(super::SECRET_KEY), "{folder}");
    }
}

#[test]
fn taints_of_a_worker_are_set_when_it_registers() {
    let of =
        |folder, role| documents(&case(Family::of(folder), role, "static").own("machine.yaml"));
    let first = "/0/effect";
    let taints = |kubelet: &Value| kubelet["registerWithTaints"].pointer(first).cloned();
    let effect = Some(Value::from("NoSchedule"));
    let old = of("talos-1.13", "worker");
    assert_eq!(taints(&old[0]["machine"]["kubelet"]["extraConfig"]), effect);
    let new = of("talos-1.15", "worker");
    assert_eq!(taints(&find(&new, "KubeletConfig")["config"]), effect);
    assert!(find(&new, "KubeNodeConfig")["taints"].is_null());
    let leader = of("talos-1.15", "control-plane");
    let taints = &find(&leader, "KubeNodeConfig")["taints"];
    assert_eq!(taints["dedicated"], "storage:NoSchedule");
    assert_eq!(
        taints["node-role.kubernetes.io/control-plane"],
        "NoSchedule"
    );
}

/// Talos stops without the first two; the others would loop or belong to the image.
#[test]
fn the_first_start_has_what_talos_wants_and_nothing_that_wipes() {
    for (folder, _) in SCHEMAS {
        let line = case(Family::of(folder), "worker", "dhcp").own("cmdline");
        let words: Vec<&str> = line.split(' ').collect();
        for needed in ["slab_nomerge=", "pti=on", "talos.platform=metal"] {
            assert!(words.contains(&needed), "{line}");
        }
        assert!(!line.contains("wipe"), "{line}");
        assert!(line.len() < 4096 && !line.contains('\n'));
    }
}

/// A VLAN's name, tag and address in the configuration, a card's address.
fn configured(documents: &[Value]) -> Vec<(Option<(String, u64)>, String)> {
    let mut all = Vec::new();
    for document in documents {
        let vlan = document["kind"] == "VLANConfig";
        let name = document["name"].as_str().unwrap_or_default().to_owned();
        let vlan = vlan.then(|| (name, document["vlanID"].as_u64().unwrap()));
        for address in document["addresses"].as_array().into_iter().flatten() {
            let address = address["address"].as_str().unwrap().to_owned();
            all.push((vlan.clone(), address));
        }
    }
    all
}

/// With another name of a VLAN the kernel would refuse the second one; with another address or
/// metric the machine would have both.
#[test]
fn the_first_network_is_a_part_of_the_one_that_is_configured() {
    let case_of = |network| case(Family::of("talos-1.13"), "worker", network);
    let mut on_cards = case_of("static");
    let mut vlans = case_of("bond-vlan").machine.config.vlans;
    vlans.iter_mut().for_each(|vlan| vlan.name = None);
    vlans[0].parent = "lan0".to_owned();
    vlans[1].parent = "52:54:00:AA:00:02".to_owned();
    on_cards.machine.config.vlans = vlans;
    for (case, number) in [
        (case_of("static"), 1),
        (case_of("bond-vlan"), 1),
        (on_cards, 3),
    ] {
        let configured = configured(&documents(&case.own("machine.yaml")));
        let first: Value = serde_saphyr::from_str(&case.own("meta-network.yaml")).unwrap();
        let list = |key: &str| first[key].as_array().cloned().unwrap_or_default();
        assert_eq!(list("addresses").len(), number);
        assert_eq!(list("links").len(), number);
        for (address, link) in list("addresses").iter().zip(list("links")) {
            assert_eq!(address["linkName"], link["name"]);
            // As in the configuration, where it is not set: Talos would replace one by the other.
            assert!(address["priority"].is_null());
            let name = link["name"].as_str().unwrap().to_owned();
            let vlan = link["vlan"]["vlanID"].as_u64().map(|id| (name.clone(), id));
            // Names of interfaces have at most 15 letters.
            assert!(vlan.is_some() || (name.starts_with("enx525400aa000") && name.len() == 15));
            let wanted = (vlan, address["address"].as_str().unwrap().to_owned());
            assert!(configured.contains(&wanted), "{wanted:?} {configured:?}");
        }
        for route in list("routes") {
            // `DefaultRouteMetric` of Talos, which routes of the configuration have.
            assert_eq!(route["priority"], 1024);
        }
    }
    assert_eq!(case_of("dhcp").own("meta-network.yaml"), "");
}

/// A card in a bond must not be named: Talos would have it in the bond and outside by turns.
#[test]
fn the_first_network_says_nothing_of_bonds() {
    let text = case(Family::of("talos-1.13"), "worker", "bond-vlan").own("meta-network.yaml");
    for word in ["bond0", "enx525400aa0001", "enx525400aa0002", "10.77.0.11"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    assert!(text.contains("parentName: \"enx525400aa0003\""), "{text}");
}

/// What a machine has by DHCP only needs no key of META.
#[test]
fn meta_is_written_for_fixed_addresses_only() {
    let text = std::fs::read_to_string("../workflows/install-talos.yaml").unwrap();
    let workflow = provisioner::workflow::plan::parse(&text, "w", super::renderer()).unwrap();
    let uses = provisioner::workflow::Action::WriteTalosMeta;
    let step = workflow.steps.iter().find(|step| step.uses == uses);
    let when = step.unwrap().when.clone().unwrap();
    let runs = NETWORKS.map(|network| {
        let case = case(Family::of("talos-1.13"), "worker", network);
        let held = super::renderer().condition(&when, "w", &case.context());
        held.unwrap()
    });
    assert_eq!(NETWORKS, ["dhcp", "static", "bond-vlan"]);
    assert_eq!(runs, [false, true, true]);
}

fn refused(change: impl Fn(&mut Case)) -> String {
    let mut case = case(Family::of("talos-1.13"), "worker", "dhcp");
    change(&mut case);
    case.render("talos/machine.yaml").unwrap_err().to_string()
}

#[test]
fn refuses_what_talos_has_not() {
    let config =
        |edit: fn(&mut provisioner::machine::Machine)| refused(|case| edit(&mut case.machine));
    let told = config(|m| m.config.kernel_args = vec!["talos.experimental.wipe=system".into()]);
    assert!(told.contains("would wipe and restart for ever"), "{told}");
    let told = config(|m| m.config.ssh_keys = vec!["ssh-ed25519 A".into()]);
    assert!(told.contains("Talos has no SSH"), "{told}");
    let told = config(|m| m.role = Some("gateway".into()));
    assert!(told.contains("not `gateway`"), "{told}");
    let told = config(|m| m.role = None);
    assert!(told.contains("give it `cluster` and `role"), "{told}");
    let told = config(|m| {
        m.config.node_taints = vec!["a=1:NoSchedule".into(), "a=2:NoExecute".into()];
    });
    assert!(told.contains("`a` is there twice"), "{told}");
}

#[test]
fn refuses_a_talos_that_it_does_not_know() {
    for (version, expected) in [
        ("1.9.3", "use 1.12 or newer"),
        ("stable", "such as `1.13.9`"),
    ] {
        let mut case = case(Family::of("talos-1.13"), "worker", "dhcp");
        case.version = version;
        let told = case.render("talos/machine.yaml").unwrap_err().to_string();
        assert!(told.contains(expected), "{told}");
    }
    let mut case = case(Family::of("talos-1.15"), "worker", "dhcp");
    case.machine.labels.clear();
    let told = case.render("talos/machine.yaml").unwrap_err().to_string();
    assert!(told.contains("label `kubernetes/version`"), "{told}");
}
