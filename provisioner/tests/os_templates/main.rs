//! The shipped templates, rendered for fixture machines by the real renderer.
//!
//! `golden/machines/*.yaml` are inventories, one a network variant; every template of every family
//! is rendered for each of them and each role, and compared with a file below `golden/<family>/`, unless
//! the text is the first machine's. `config.ign` is made of `ignition.yaml`: one of it is enough.
//! `ANNEAL_BLESS=1` writes these files anew. The other modules hold what the systems' own
//! software says to the same texts.
#![allow(clippy::unwrap_used)]

mod cloud_init;
#[path = "../executable/mod.rs"]
mod executable;
mod golden;
mod ignition;
mod others;
mod refusals;
mod scripts;
mod talos;
mod versions;
mod workflows;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use base64::Engine as _;
use provisioner::machine::{Machine, file};
use provisioner::render::{
    ClusterFacts, ConfigBase, Context, ImageFacts, JoinSecrets, PhoneHome, RenderError, Renderer,
};

/// A run's id.
pub const RUN: &str = "0199f0a2-7c11-7000-8000-000000000001";
/// The phone-home token.
pub const TOKEN: &str = "5ec7e7";
/// A token to join with.
pub const JOIN_TOKEN: &str = "abcdef.0123456789abcdef";
/// A private key of a Talos cluster, in base64.
pub const SECRET_KEY: &str = "c2VjcmV0IGtleQ==";
/// Names of the inventories.
pub const NETWORKS: [&str; 3] = ["dhcp", "static", "bond-vlan"];

/// An operating system, and what is rendered for it.
pub struct Family {
    /// Its word.
    pub name: &'static str,
    /// Folder of its golden files.
    pub folder: &'static str,
    /// Version of the image.
    pub version: &'static str,
    /// Templates of the family.
    pub templates: &'static [&'static str],
    /// Roles that its machines may have; an empty one is none.
    pub roles: &'static [&'static str],
}

const CLOUD_INIT: &[&str] = &[
    "user-data",
    "meta-data",
    "meta-data-net",
    "network-config",
    "vendor-data",
    "grub-default.cfg",
];

const SEED: &[&str] = &["user-data", "meta-data", "network-config"];
const FLATCAR: &[&str] = &["ignition.yaml", "config.ign", "pointer.ign", "grub.cfg"];
const COREOS: &[&str] = &[
    "ignition.yaml",
    "config.ign",
    "pointer.ign",
    "ignition.firstboot",
];
const KAIROS: &[&str] = &["cloud-config.yaml", "grubcustom"];
const TALOS: &[&str] = &["machine.yaml", "cmdline", "meta-data", "meta-network.yaml"];
const BOTH: &[&str] = &["worker", "control-plane"];

const fn family(
    folder: &'static str,
    name: &'static str,
    version: &'static str,
    templates: &'static [&'static str],
    roles: &'static [&'static str],
) -> Family {
    Family {
        name,
        folder,
        version,
        templates,
        roles,
    }
}

/// All of them.
pub const FAMILIES: &[Family] = &[
    family(
        "debian",
        "debian",
        "12.9",
        CLOUD_INIT,
        &["", "worker", "control-plane"],
    ),
    family("ubuntu", "ubuntu", "24.04", CLOUD_INIT, BOTH),
    family("flatcar", "flatcar", "4593.2.5", FLATCAR, BOTH),
    family("fcos", "fcos", "43.20261101.3.0", COREOS, BOTH),
    family("rhcos", "rhcos", "9.6.20261101-0", COREOS, BOTH),
    family(
        "bottlerocket",
        "bottlerocket",
        "1.30.0",
        &["net.toml", "user-data.toml"],
        &["worker"],
    ),
    family("kairos", "kairos", "4.2.0", KAIROS, BOTH),
    family("bootc", "bootc", "43", SEED, BOTH),
    family("rauc", "rauc", "7", &["configure"], BOTH),
    family("talos-1.13", "talos", "1.13.9", TALOS, BOTH),
    family("talos-1.15", "talos", "1.15.0", TALOS, BOTH),
];

impl Family {
    /// Finds one by the folder of its golden files.
    pub fn of(folder: &str) -> &'static Self {
        FAMILIES.iter().find(|f| f.folder == folder).unwrap()
    }
}

/// One text to render.
#[derive(Clone)]
pub struct Case {
    /// For which system.
    pub family: &'static Family,
    /// For which machine.
    pub machine: Machine,
    /// `worker-dhcp`.
    pub variant: String,
    /// Version of the image.
    pub version: &'static str,
}

/// Every machine of a family.
pub fn cases(family: &'static Family) -> impl Iterator<Item = Case> {
    let all = family.roles.iter();
    all.flat_map(|role| NETWORKS.map(|network| (*role, network)))
        .map(move |(role, network)| case(family, role, network))
}

/// One machine of a family.
pub fn case(family: &'static Family, role: &str, network: &str) -> Case {
    let path = format!("tests/golden/machines/{network}.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    let inventory = file::parse(&text, &path).unwrap();
    let mut machine = inventory.machines.into_iter().next().unwrap().machine;
    machine.role = Some(role.to_owned()).filter(|role| !role.is_empty());
    adapt(family.name, &mut machine);
    let shown = if role.is_empty() { "plain" } else { role };
    Case {
        family,
        machine,
        variant: format!("{shown}-{network}"),
        version: family.version,
    }
}

/// Leaves out what a system refuses, and says what it wants besides; the refusals are tested too.
fn adapt(family: &str, machine: &mut Machine) {
    let config = &mut machine.config;
    config.cluster = machine.role.as_ref().map(|_| "prod".to_owned());
    if ["bottlerocket", "talos"].contains(&family) {
        config.files.clear();
    }
    let labels = &mut machine.labels;
    match family {
        "bottlerocket" => machine.nics.iter_mut().for_each(|nic| nic.mtu = None),
        "rhcos" => {
            config.registries.clear();
            config.ntp.clear();
            config.node_labels.clear();
            config.node_taints.clear();
        }
        "rauc" => {
            labels.insert("rauc/boot-entries".to_owned(), "ESP".to_owned());
        }
        "talos" => {
            config.kernel_args.clear();
            config.ssh_keys.clear();
            labels.insert("kubernetes/version".to_owned(), "v1.34.1".to_owned());
        }
        _ => {}
    }
    // One founds the cluster, others join it.
    if machine.role.as_deref() == Some("control-plane")
        && config.ntp.is_empty()
        && config.bonds.is_empty()
    {
        labels.insert("cluster/init".to_owned(), "true".to_owned());
    }
}

/// A program of `tests/conformance`, which has a system's own packages, built; none where there is no Go or no way to
/// its modules.
pub fn conformance(name: &str, work: &Path) -> Option<PathBuf> {
    use std::io::Write as _;
    let program = work.join(name);
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(format!("../tests/conformance/{name}"))
        .output();
    let told = match built {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => format!("go: {error}"),
    };
    // Not `eprintln!`: what that says in a test that passes is kept back.
    let notice = format!("SKIPPED: tests/conformance/{name} cannot be built here: {told}\n");
    std::io::stderr().write_all(notice.as_bytes()).unwrap();
    None
}

/// What the cluster `prod` gives to a machine of it.
fn secrets() -> JoinSecrets {
    let text = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let pair = serde_json::json!({ "crt": text(&ca()), "key": SECRET_KEY });
    let bundle = serde_json::json!({
        "cluster_id": "id=", "cluster_secret": "secret=", "cluster_token": "inn7ol.u4ehnti8qyls9ymo",
        "machine_token": "d8cwfa.eyvpi0xwxyarbfid", "secretbox_secret": "sbx=",
        "machine_ca": pair, "k8s_ca": pair, "k8s_aggregator_ca": pair, "etcd_ca": pair,
        "k8s_service_account": { "key": SECRET_KEY },
    });
    JoinSecrets {
        token: Some(JOIN_TOKEN.to_owned().into()),
        token_id: Some("abcdef".into()),
        expires_at: Some("2026-11-21T20:00:00Z".into()),
        ca_pem: Some(ca()),
        ca_hash: Some(format!("sha256:{}", "ab".repeat(32))),
        bundle: bundle.as_object().cloned(),
    }
}

impl Case {
    /// The image that is installed.
    pub fn image(&self) -> ImageFacts {
        ImageFacts {
            id: "blake3:00ff".into(),
            name: self.family.name.into(),
            version: self.version.into(),
            os: self.family.name.into(),
            os_version: None,
            size: 512,
            sha256: "00".into(),
            unproven: false,
        }
    }

    /// What templates see.
    pub fn context(&self) -> Context {
        let image = self.image();
        let phone_home = PhoneHome {
            url: "https://10.77.0.1:8443/node/v1/phone-home".into(),
            token: TOKEN.into(),
        };
        let base = ConfigBase {
            tls: "https://10.77.0.1:8443".into(),
            plain: Some("http://10.77.0.1:8080".into()),
            metadata: None,
        };
        let cluster = self
            .machine
            .config
            .cluster
            .as_ref()
            .map(|name| ClusterFacts {
                name: name.clone(),
                endpoint: "https://10.77.0.100:6443".into(),
                host: "10.77.0.100:6443".into(),
                token_id: true,
                ca: true,
                bundle: self.family.name == "talos",
                // As `talosctl gen secrets` makes them.
                lacks: vec!["aescbc_secret"],
            });
        let server = "https://10.77.0.1:8443";
        Context::new(&self.machine, Some(&image), RUN, server, &ca(), phone_home)
            .with_event_sink(Some("10.77.0.1:8082"))
            .with_cluster(cluster.as_ref(), Some(&secrets()))
            .with_configs(base, None)
    }

    /// Renders a template of any folder.
    pub fn render(&self, template: &str) -> Result<String, RenderError> {
        renderer().render(template, &self.context())
    }

    /// Renders a template of the family.
    pub fn own(&self, template: &str) -> String {
        let name = format!("{}/{template}", self.family.name);
        self.render(&name)
            .unwrap_or_else(|e| panic!("{} for {}: {e}", name, self.variant))
    }
}

/// The renderer, with the templates as they are now: no compiling after an edit.
pub fn renderer() -> &'static Renderer {
    static RENDERER: LazyLock<Renderer> =
        LazyLock::new(|| Renderer::new(Some("../templates".into())).unwrap());
    &RENDERER
}

/// The certificate of `static.yaml`, for whoever needs one.
pub fn ca() -> String {
    let text = std::fs::read_to_string("tests/golden/machines/static.yaml").unwrap();
    let inventory = file::parse(&text, "static.yaml").unwrap();
    let registries = &inventory.machines[0].machine.config.registries;
    registries[0].ca.clone().unwrap()
}

/// Runs a program; a missing one fails the test with the package to install.
pub fn run(package: &str, command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        let program = command.get_program().to_string_lossy().into_owned();
        panic!("{program}: {error}; apt-get install {package}")
    })
}

/// A new folder with these files; removed by whoever gets it.
pub fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

/// Where the golden file of a text is.
pub fn golden_path(case: &Case, template: &str) -> PathBuf {
    Path::new("tests/golden")
        .join(case.family.folder)
        .join(&case.variant)
        .join(template)
}
