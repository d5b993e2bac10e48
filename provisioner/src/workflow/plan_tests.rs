//! Workflow files: what is accepted, and the exact words of what is refused.

use std::collections::BTreeMap;

use anneal_protocol::agent::{AgentAction, Inventory};
use anneal_protocol::disk::{DiskHints, DiskInfo, DiskType, ProtectedDisk};
use anneal_protocol::machine::MachineState;

use super::check::{Subject, check};
use super::inputs::{self, Inputs};
use super::library::Library;
use super::plan::{self, Workflow};
use super::start::{Material, StartError, prepare};
use crate::bmc::BootDevice;
use crate::machine::Machine;
use crate::render::{Context, ImageFacts, PhoneHome, REDACTED, Renderer};

pub(crate) fn machine() -> Machine {
    let text = "machines:\n  - name: r1n1\n    role: worker\n    nics: [ { mac: \"52:54:00:aa:00:01\", address: 10.77.0.11/24, boot: true } ]\n    bmc: { url: \"redfish+http://10.77.1.1:8000\", username: root, password: { file: /nowhere } }\n    disk: { hints: { type: virtio } }\n    protected_disks: [ { serial: KEEP } ]\n";
    let inventory = crate::machine::file::parse(text, "rack.yaml").unwrap();
    inventory.machines.into_iter().next().unwrap().machine
}

pub(super) fn image() -> ImageFacts {
    ImageFacts {
        id: "blake3:11".into(),
        name: "debian".into(),
        version: "12".into(),
        os: "debian".into(),
        os_version: None,
        size: 1 << 30,
        sha256: "aa11".into(),
        unproven: false,
    }
}

fn renderer() -> Renderer {
    let files = [
        ("debian/user-data", "{{ phone_home.token }}"),
        ("debian/meta-data", "{{ machine.name }}"),
        ("debian/network-config", "{{ machine.address }}"),
    ];
    let sources = files
        .iter()
        .map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
    Renderer::from_sources(sources.collect::<BTreeMap<_, _>>()).unwrap()
}

fn context(machine: &Machine) -> Context {
    let phone_home = PhoneHome {
        url: "https://10.77.0.1:8443/node/v1/phone-home".into(),
        token: REDACTED.into(),
    };
    Context::new(
        machine,
        Some(&image()),
        "run-1",
        "https://10.77.0.1:8443",
        "PEM",
        phone_home,
    )
}

fn parse(text: &str) -> Result<Workflow, String> {
    plan::parse(text, "w.yaml", &renderer()).map_err(|e| e.to_string())
}

fn steps(steps: &str) -> String {
    format!("name: w\nsteps:\n{steps}")
}

fn prepared(text: &str, machine: Machine) -> Result<anneal_protocol::api::Plan, StartError> {
    let renderer = renderer();
    let context = context(&machine);
    prepare(Material {
        machine,
        state: MachineState::Registered,
        inventory: None,
        image: Some(image()),
        workflow: parse(text).unwrap(),
        renderer: &renderer,
        context,
    })
    .map(|prepared| prepared.shown)
}

#[test]
fn refuses_with_place_and_nearest_word() {
    for (text, expected) in [
        (
            "name: w\nstep: []\n",
            "w.yaml:2:1: unknown key `step`, did you mean `steps`?",
        ),
        (
            "name: w\nsteps: []\n",
            "w.yaml:2:8: a workflow has 1 to 200 steps",
        ),
        (
            "name: a b\nsteps: [ { uses: reboot } ]\n",
            "w.yaml:1:7: a name has letters, digits, `-`, `_` and `.` only",
        ),
        (
            &steps("  - { uses: netbot }\n"),
            "w.yaml:3:13: unknown action `netbot`, did you mean `netboot`?",
        ),
        (
            &steps("  - { uses: netboot, time_out: 3m }\n"),
            "w.yaml:3:22: unknown key `time_out`, did you mean `timeout`?",
        ),
        (
            &steps("  - { uses: netboot, timeout: 10 m }\n"),
            "w.yaml:3:31: expected a duration such as `90s`, `45m` or `1h30m`, at most 30d",
        ),
        (
            &steps("  - uses: netboot\n    with: { devise: pxe }\n"),
            "w.yaml:4:21: unknown parameter of `netboot` `devise`, did you mean `device`?",
        ),
        (
            &steps("  - uses: netboot\n    with: { device: pxee }\n"),
            "w.yaml:4:21: unknown word `pxee`, did you mean `pxe`?",
        ),
        (
            &steps("  - uses: reboot\n    with: { now: 1 }\n"),
            "w.yaml:4:18: `reboot` takes no parameters, found `now`",
        ),
        (
            &steps("  - uses: power\n"),
            "w.yaml:3:11: `power` needs the parameter `action`",
        ),
        (
            &steps("  - uses: wipe-disk\n    with: { disk: \"{{ machine.dsk }}\" }\n"),
            "w.yaml:4:19: unknown template variable `machine.dsk`, did you mean `machine.disk`?",
        ),
        (
            &steps("  - uses: reboot\n    when: machine.rol == 'x'\n"),
            "w.yaml:4:11: unknown template variable `machine.rol`, did you mean `machine.role`?",
        ),
        (
            &steps(
                "  - uses: write-file\n    with: { partition: { lable: X }, path: /x, contents: x }\n",
            ),
            "w.yaml:4:24: unknown key `lable`, did you mean `label`?",
        ),
        (
            &steps(
                "  - uses: write-file\n    with: { partition: { label: X }, path: ../x, contents: x }\n",
            ),
            "w.yaml:4:44: expected an absolute path without `..`",
        ),
        (
            &steps(
                "  - uses: write-file\n    with: { partition: { label: X }, path: /x, contents: x, mode: 600 }\n",
            ),
            "w.yaml:4:67: expected permission bits as quoted octal text, `\"0600\"`",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
    let broken = parse(&steps("  - uses: kexec\n    with: { cmdline: \"{{ x\" }\n")).unwrap_err();
    assert!(broken.starts_with("w.yaml:4:22: template: "), "{broken}");
}

#[test]
fn fills_in_defaults() {
    let workflow = parse(&steps(
        "  - uses: stream-image\n  - { uses: reboot, retries: 0, timeout: 90s }\n",
    ))
    .unwrap();
    assert_eq!(workflow.timeout_ms, 3_600_000);
    let [image, reboot] = workflow.steps.as_slice() else {
        panic!("two steps");
    };
    assert_eq!(
        (image.name.as_str(), image.retries, image.timeout_ms),
        ("stream-image", 3, 1_800_000)
    );
    assert_eq!(
        (reboot.retries, reboot.timeout_ms, reboot.retry_delay_ms),
        (0, 90_000, 5_000)
    );
    assert_eq!(reboot.place, "w.yaml:4");
}

#[test]
fn every_shipped_workflow_passes_for_a_machine() {
    let library = Library::new(None);
    let renderer = renderer();
    let load = |name: String| library.load(&name, &renderer).unwrap();
    // Those for one system need its templates: tests/os_templates plans them.
    let all = library.names();
    let general: Vec<String> = all
        .into_iter()
        .filter(|name| load(name.clone()).os.is_empty())
        .collect();
    assert_eq!(general, ["audit", "install-image", "inventory", "wipe"]);
    for name in general {
        let workflow = load(name.clone());
        assert_eq!(workflow.name, name);
        assert!(!workflow.description.is_empty());
        let machine = machine();
        let context = context(&machine);
        let shown = prepare(Material {
            machine,
            state: MachineState::Registered,
            inventory: None,
            image: Some(image()),
            workflow,
            renderer: &renderer,
            context,
        });
        assert_eq!(
            shown.unwrap().shown.warnings,
            Vec::<String>::new(),
            "{name}"
        );
    }
}

#[test]
fn the_folder_comes_before_what_is_built_in() {
    let dir = tempfile::tempdir().unwrap();
    let library = Library::new(Some(dir.path().to_owned()));
    std::fs::write(
        dir.path().join("wipe.yaml"),
        "name: wipe\nsteps: [ { uses: netbot } ]\n",
    )
    .unwrap();
    let error = library.load("wipe", &renderer()).unwrap_err().to_string();
    assert!(
        error.ends_with("wipe.yaml:2:18: unknown action `netbot`, did you mean `netboot`?"),
        "{error}"
    );
    assert!(library.load("inventory", &renderer()).is_ok());
    let known = library.names();
    assert!(known.contains(&"wipe".to_owned()));
    for name in ["", "../wipe", "nothing"] {
        let error = library.load(name, &renderer()).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "there is no workflow `{name}`; there are: {}",
                known.join(", ")
            )
        );
    }
}

#[test]
fn a_plan_shows_what_is_written_and_no_secret() {
    let text = steps(
        "  - uses: netboot\n  - uses: stream-image\n  - uses: write-file\n    with: { partition: { label: CIDATA }, path: /user-data, contents: \"{{ render('debian/user-data') }}\" }\n  - { uses: reboot, when: machine.role == 'other' }\n",
    );
    let plan = prepared(&text, machine()).unwrap();
    assert_eq!(plan.disk, "type: virtio: not seen yet; 1 protected");
    assert_eq!(plan.steps[2].with["contents"], REDACTED);
    let runs: Vec<_> = plan.steps.iter().map(|s| (s.runs, s.destructive)).collect();
    assert_eq!(
        runs,
        [(true, false), (true, true), (true, true), (false, false)]
    );
}

#[test]
fn refuses_nonsense_before_power_is_touched() {
    let no_bmc = || Machine {
        bmc: None,
        ..machine()
    };
    let no_disk = || Machine {
        disk: DiskHints::default(),
        ..machine()
    };
    for (text, machine, expected) in [
        (
            "  - uses: stream-image\n",
            machine(),
            "w.yaml:3: `stream-image` needs the agent, but no `netboot` step before it starts one",
        ),
        (
            "  - uses: netboot\n  - uses: reboot\n  - uses: wipe-disk\n",
            machine(),
            "w.yaml:5: `wipe-disk` needs the agent, but no `netboot` step before it starts one",
        ),
        (
            "  - uses: netboot\n  - uses: reboot\n  - uses: wait-phone-home\n",
            machine(),
            "w.yaml:5: `wait-phone-home` would wait for a system that no step before it installs",
        ),
        (
            "  - uses: netboot\n  - uses: stream-image\n  - uses: wait-phone-home\n",
            machine(),
            "w.yaml:5: `wait-phone-home` would wait for a system that is never started: put `reboot` or `kexec` before it",
        ),
        (
            "  - uses: netboot\n  - uses: stream-image\n  - uses: reboot\n  - uses: wait-phone-home\n    with: { by: talos }\n",
            machine(),
            "w.yaml:6: `wait-phone-home` waits for events of Talos, and there is no event sink: set `event_sink: { listen: \":8082\" }` in anneal.yaml",
        ),
        (
            "  - uses: netboot\n  - uses: stream-image\n  - uses: reboot\n  - uses: wait-phone-home\n    with: { by: kairos, fallback: api-port }\n",
            machine(),
            "w.yaml:6: `wait-phone-home`: `fallback: api-port` is for `by: talos` only",
        ),
        (
            "  - uses: netboot\n  - uses: wipe-disk\n",
            no_disk(),
            "machine r1n1 has no disk hints: say which disk to write to",
        ),
        (
            "  - uses: power\n    with: { action: off }\n",
            no_bmc(),
            "w.yaml:3: `power` needs a BMC, and r1n1 has none",
        ),
        (
            "  - uses: netboot\non_failure:\n  - uses: wipe-disk\n",
            machine(),
            "w.yaml:5: `wipe-disk` would write to a disk of a run that failed",
        ),
        (
            "  - { uses: reboot, when: machine.role == 'x' }\n",
            machine(),
            "no step would run: every `when` is false",
        ),
        (
            "  - uses: netboot\n  - uses: stream-image\n    with: { image: other }\n",
            machine(),
            "w.yaml:4: parameter `image`: a run installs the image that it was asked for",
        ),
        (
            "  - uses: netboot\n  - uses: kexec\n    with: { partition: { number: 1 }, kernel: /k, cmdline: \"{{ machine.rack }}\" }\n",
            machine(),
            "w.yaml:4",
        ),
    ] {
        let error = prepared(&steps(text), machine).unwrap_err();
        let StartError::Refused(reasons) = error else {
            panic!("{error}");
        };
        assert!(
            reasons.iter().any(|r| r.starts_with(expected)),
            "{text}: {reasons:?}"
        );
    }
    assert!(
        prepared(&steps("  - uses: netboot\n"), no_bmc())
            .unwrap()
            .warnings[0]
            .contains("powers it on")
    );
}

#[test]
fn warns_about_disks_that_the_last_report_makes_doubtful() {
    let disk = |name: &str, size: u64, serial: &str| DiskInfo {
        name: name.into(),
        kind: DiskType::Virtio,
        size,
        sector_size: 512,
        rotational: false,
        read_only: false,
        removable: false,
        serial: Some(serial.into()),
        wwn: None,
        model: None,
        path: None,
        labels: vec![],
        labels_unreadable: false,
    };
    let workflow = parse(&steps(
        "  - uses: netboot\n  - uses: stream-image\n  - uses: reboot\n  - uses: wait-phone-home\n",
    ))
    .unwrap();
    let machine = machine();
    let image = image();
    let found = |disks: Vec<DiskInfo>| {
        let inventory = Inventory {
            disks,
            ..Inventory::default()
        };
        check(
            &workflow,
            &Subject {
                machine: &machine,
                image: Some(&image),
                inventory: Some(&inventory),
                skip: &[false; 4],
                token_used: true,
                event_sink: false,
            },
        )
    };
    let big = 2 << 30;
    assert_eq!(
        found(vec![disk("vda", big, "A"), disk("vdb", big, "KEEP")]),
        super::check::Findings::default()
    );
    assert!(
        found(vec![disk("vda", big, "A"), disk("vdb", big, "B")]).warnings[0]
            .contains("match 2 disks")
    );
    assert!(found(vec![disk("vdb", big, "KEEP")]).warnings[0].contains("no disk"));
    let nameless = DiskInfo {
        serial: None,
        ..disk("vdb", big, "")
    };
    assert!(found(vec![nameless]).warnings[0].contains("no disk"));
    assert!(found(vec![disk("vda", 1 << 20, "A")]).errors[0].contains("does not fit"));
}

#[test]
fn protected_disks_stay_protected_whatever_the_step_says() {
    let workflow = parse(&steps(
        "  - uses: wipe-disk\n    with: { disk: { serial: X } }\n",
    ))
    .unwrap();
    let step = &workflow.steps[0];
    let machine = machine();
    let params = inputs::render(step, &renderer(), &context(&machine)).unwrap();
    let Inputs::Agent(action) = inputs::typed(step, &params, &machine, None).unwrap() else {
        panic!("an agent step");
    };
    let AgentAction::WipeDisk { disk } = *action else {
        panic!("{action:?}");
    };
    assert_eq!(disk.hints.serial.as_deref(), Some("X"));
    let kept = ProtectedDisk {
        serial: Some("KEEP".into()),
        ..ProtectedDisk::default()
    };
    assert_eq!(disk.protected, [kept]);
}

#[test]
fn partitions_and_kernel_arguments_reach_the_agent_as_written() {
    let typed = |with: &str| {
        let text = steps(&format!("  - uses: boot-arguments\n    with: {with}\n"));
        let workflow = parse(&text).map_err(|e| e.clone())?;
        let step = &workflow.steps[0];
        let params = inputs::render(step, &renderer(), &context(&machine())).unwrap();
        inputs::typed(step, &params, &machine(), None).map_err(|e| e.to_string())
    };
    let with = "{ partition: { fs_label: boot, uuid: 1A2B-3C4D, type: 0fc6, number: 3 }, add: [\"host={{ machine.name }}\", 1], remove: [quiet] }";
    let Inputs::Agent(action) = typed(with).unwrap() else {
        panic!("an agent step");
    };
    let shown = serde_json::to_value(&action).unwrap();
    let partition =
        serde_json::json!({ "fs_label": "boot", "uuid": "1A2B-3C4D", "type": "0fc6", "number": 3 });
    assert_eq!(shown["partition"], partition);
    // Every key that a workflow may write is one of the agent's.
    assert_eq!(
        inputs::PARTITION_KEYS.len(),
        partition.as_object().unwrap().len() + 1
    );
    assert_eq!(shown["add"], serde_json::json!(["host=r1n1", "1"]));
    assert_eq!(shown["remove"], serde_json::json!(["quiet"]));
    // The agent looks for it.
    let Inputs::Agent(action) = typed("{ add: [quiet] }").unwrap() else {
        panic!("an agent step");
    };
    let shown = serde_json::to_value(&action).unwrap();
    assert!(shown.get("partition").is_none(), "{shown}");
    for (with, told) in [
        (
            "{ partition: { number: 1 }, add: quiet }",
            "expected a list of texts",
        ),
        (
            "{ partition: { number: 1 }, add: [\"\"] }",
            "expected a list of texts",
        ),
        (
            "{ partition: { number: x }, add: [a] }",
            "expected `label`, `fs_label`, `uuid`, `type`, `number`",
        ),
        (
            "{ partition: { typ: x }, add: [a] }",
            "did you mean `type`?",
        ),
    ] {
        let error = typed(with).unwrap_err();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn the_boot_device_is_the_steps_or_the_machines() {
    let device = |with: &str, label: Option<&str>| {
        let workflow = parse(&steps(&format!("  - uses: netboot\n{with}"))).unwrap();
        let mut machine = machine();
        if let Some(label) = label {
            machine
                .labels
                .insert(inputs::BOOT_DEVICE_LABEL.to_owned(), label.to_owned());
        }
        inputs::typed(&workflow.steps[0], &workflow.steps[0].with, &machine, None)
    };
    let with = "    with: { device: pxe }\n";
    assert_eq!(device("", None), Ok(Inputs::Netboot(BootDevice::Pxe)));
    assert_eq!(
        device("", Some("uefi-http")),
        Ok(Inputs::Netboot(BootDevice::UefiHttp))
    );
    assert_eq!(
        device(with, Some("uefi-http")),
        Ok(Inputs::Netboot(BootDevice::Pxe))
    );
    let error = device("", Some("uefi-htp")).unwrap_err().to_string();
    assert!(error.contains("did you mean `uefi-http`?"), "{error}");
}

#[test]
fn an_unproven_image_is_named_in_the_plan() {
    let renderer = renderer();
    let shown = |unproven| {
        let image = ImageFacts {
            unproven,
            ..image()
        };
        prepare(Material {
            machine: machine(),
            state: MachineState::Registered,
            inventory: None,
            image: Some(image),
            workflow: parse(&steps("  - uses: netboot\n  - uses: power-off\n")).unwrap(),
            renderer: &renderer,
            context: context(&machine()),
        })
        .unwrap()
        .shown
        .warnings
    };
    assert_eq!(shown(false), Vec::<String>::new());
    assert_eq!(
        shown(true),
        ["image debian@12 was added without proof of its publisher"]
    );
}
