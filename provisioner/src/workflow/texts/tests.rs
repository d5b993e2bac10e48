//! What a machine would get, taken apart and judged.

use serde_json::json;

use super::*;
use crate::workflow::plan_tests::machine;

fn text(path: &str, text: &str) -> Text {
    Text {
        place: format!("step 2 `config` {path}"),
        path: path.into(),
        text: text.into(),
    }
}

/// Errors and warnings for a machine with a kernel argument of its own.
fn linted(texts: &[Text]) -> (Vec<String>, Vec<String>) {
    let mut machine = machine();
    machine.config.kernel_args = vec!["mitigations=auto".into(), "console=ttyS0".into()];
    lint(&machine, texts, true)
}

fn ignition(files: serde_json::Value, arguments: serde_json::Value) -> Text {
    let document = json!({
        "ignition": { "version": "3.3.0" },
        "storage": { "files": files },
        "kernelArguments": { "shouldExist": arguments },
    });
    text("/config.ign", &document.to_string())
}

#[test]
fn contents_of_meta_are_texts_of_their_own() {
    let step = PlannedStep {
        name: "first network".into(),
        uses: "write-talos-meta".into(),
        runs_on: "agent".into(),
        with: json!({ "values": { "network": "links: []\n", "0xb": "code", "12": 7 } }),
        runs: true,
        destructive: true,
    };
    let found = texts(&[step], &[]);
    let found: Vec<_> = found
        .iter()
        .map(|t| (t.place.as_str(), t.path.as_str(), t.text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            ("step 1 `first network` META's `0xb`", "META/0xb", "code"),
            ("step 1 `first network` META's `12`", "META/0xc", "7"),
            (
                "step 1 `first network` META's `network`",
                "META/network.yaml",
                "links: []\n"
            ),
        ]
    );
}

#[test]
fn what_belongs_to_the_cluster_is_warned_about() {
    let yaml = "files:\n  - path: /opt/start.sh\n    compress: gzip\n    contents: |\n      #!/bin/sh\n      kubectl apply -f x.yaml\n";
    let spec = "3.3.0".parse().unwrap();
    let packed = crate::render::ignition::convert(yaml, "t", spec).unwrap();
    for (text, expected) in [
        (
            text("/config.ign", &packed),
            "step 2 `config` /config.ign: /opt/start.sh: `kubectl apply` changes the cluster",
        ),
        (
            ignition(
                json!([{ "path": "/var/lib/rancher/k3s/server/manifests/a.yaml", "contents": { "source": "data:,a" } }]),
                json!([]),
            ),
            "/var/lib/rancher/k3s/server/manifests/a.yaml is a manifest",
        ),
        (
            text(
                "/user-data",
                "#cloud-config\nruncmd:\n  - helm install x y\n",
            ),
            "step 2 `config` /user-data: `helm install`",
        ),
        (
            text("/a.yaml", "apiVersion: apps/v1\nkind: Deployment\n"),
            "a Deployment is a workload",
        ),
        (
            text(
                "/talos",
                "version: v1alpha1\ncluster:\n  inlineManifests: []\n---\nkind: X\n",
            ),
            "`cluster.inlineManifests` are manifests",
        ),
    ] {
        let (errors, warnings) = linted(&[text]);
        assert_eq!(errors, Vec::<String>::new());
        assert!(
            warnings.iter().any(|warning| warning.contains(expected)),
            "{expected}: {warnings:?}"
        );
    }
    let harmless = text(
        "/user-data",
        "#cloud-config\nhostname: r1n1\n# kubectl apply is not for us\n",
    );
    assert_eq!(lint(&machine(), &[harmless], true), (vec![], vec![]));
}

#[test]
fn a_kernel_argument_has_one_place() {
    let errors = |arguments: serde_json::Value| linted(&[ignition(json!([]), arguments)]).0;
    assert_eq!(
        errors(json!([
            "mitigations=auto",
            "console=ttyS0",
            "console=tty0",
            "quiet"
        ])),
        Vec::<String>::new()
    );
    assert_eq!(
        errors(json!(["mitigations=off"])),
        [
            "step 2 `config` /config.ign kernel_args: kernel argument `mitigations` is set here and, otherwise, in the `kernel_args` of machine r1n1: leave it in one place"
        ]
    );
    assert_eq!(
        errors(json!(["quiet", "quiet"])),
        ["step 2 `config` /config.ign kernel_args: kernel argument `quiet` is set twice"]
    );
    let talos = text(
        "/t",
        "machine:\n  install:\n    extraKernelArgs: [ mitigations=off ]\n",
    );
    assert_eq!(linted(&[talos]).0.len(), 1);
}

#[test]
fn what_grubs_tools_read_is_a_place_too() {
    let file = |path: &str, value: &str| {
        text(
            path,
            &format!("# read by update-grub\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {value}\"\n"),
        )
    };
    let ours = file(
        "/etc/default/grub.d/99-anneal.cfg",
        "'mitigations=auto' 'console=ttyS0'",
    );
    assert_eq!(linted(&[ours]), (vec![], vec![]));
    let other = file("/etc/default/grub", "mitigations=off");
    assert_eq!(
        linted(&[other]).0,
        [
            "step 2 `config` /etc/default/grub: kernel argument `mitigations` is set here and, otherwise, in the `kernel_args` of machine r1n1: leave it in one place"
        ]
    );
    // One for each variable, and a comment is none.
    let lines = "GRUB_CMDLINE_LINUX=\"mitigations=auto console=ttyS0\" # mitigations=off is for the lab, not mitigations=off here\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet mitigations=auto\"\nGRUB_CMDLINE_LINUX_RECOVERY=quiet\n";
    let several = text("/etc/default/grub", lines);
    assert_eq!(linted(&[several]).0, Vec::<String>::new());
    let twice = text("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"quiet quiet\"\n");
    assert_eq!(
        linted(&[twice]).0,
        ["step 2 `config` /etc/default/grub: kernel argument `quiet` is set twice"]
    );
    let inside = "#cloud-config\nwrite_files:\n  - path: /etc/default/grub.d/site.cfg\n    content: GRUB_CMDLINE_LINUX=mitigations=off\n";
    assert_eq!(linted(&[text("/user-data", inside)]).0.len(), 1);
    assert_eq!(
        linted(&[file("/etc/motd", "mitigations=off")]).0,
        Vec::<String>::new()
    );
}

#[test]
fn a_kernel_argument_that_goes_nowhere_is_warned_about() {
    let cmdline = |list: &str| text(CMDLINE, list);
    let warnings = |texts: &[Text]| linted(texts).1;
    let both = cmdline("mitigations=auto console=ttyS0");
    assert_eq!(warnings(&[both]), Vec::<String>::new());
    // Name and value apart, as in TOML.
    let apart = text("/a", "mitigations = [\"auto\"]\nconsole = [\"ttyS0\"]\n");
    assert_eq!(warnings(&[apart]), Vec::<String>::new());
    assert_eq!(
        warnings(&[cmdline("mitigations=auto"), text("/motd", "ttyS0")]),
        [
            "kernel argument `console` of machine r1n1 is in nothing that this workflow writes: the installed system will not have it"
        ]
    );
    // Whoever writes nothing beside the image.
    assert_eq!(warnings(&[]).len(), 2);
    let mut machine = machine();
    machine.config.kernel_args = vec!["mitigations=auto".into()];
    // Whoever wipes a disk, or edits what is there, installs nothing.
    let motd = text("/etc/motd", "hello");
    assert_eq!(lint(&machine, &[motd], false), (vec![], vec![]));
    // A template escapes it.
    machine.config.kernel_args = vec!["dyndbg=\"file a.c +p\"".into()];
    let escaped = text("/a", "dyndbg=\\\"file a.c +p\\\"");
    assert_eq!(lint(&machine, &[escaped], true), (vec![], vec![]));
}

#[test]
fn a_reservation_has_one_place() {
    let flags = json!({ "path": "/etc/default/kubelet", "contents": { "source": "data:,--system-reserved%3Dcpu%3D1" } });
    let config = json!({ "path": "/etc/kubelet.yaml", "contents": { "source": "data:,systemReserved:%0A%20%20cpu: 1" } });
    assert_eq!(
        linted(&[ignition(json!([flags]), json!([]))]).0,
        Vec::<String>::new()
    );
    let (errors, _) = linted(&[ignition(json!([flags, config]), json!([]))]);
    assert_eq!(
        errors,
        [
            "system-reserved is set in 2 places: step 2 `config` /config.ign: /etc/default/kubelet and step 2 `config` /config.ign: /etc/kubelet.yaml; leave it in one"
        ]
    );
    let cloud = "#cloud-config\nwrite_files:\n  - path: /etc/kubelet.yaml\n    content: |\n      systemReserved: { cpu: 1 }\n";
    assert_eq!(
        linted(&[text("/user-data", cloud)]).0,
        Vec::<String>::new(),
        "one place, though inside another"
    );
}
