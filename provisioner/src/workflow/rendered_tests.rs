//! Everything that machines would get, for many of them, and what is refused.

use std::collections::BTreeMap;

use anneal_protocol::machine::MachineState;

use super::plan;
use super::plan_tests::image;
use super::start::{Material, Prepared, StartError, prepare};
use crate::machine::{Machine, file};
use crate::render::{ConfigBase, Context, ImageFacts, PhoneHome, REDACTED, Renderer};

const WORKFLOW: &str = "name: w
os: [flatcar, fcos]
steps:
  - { uses: netboot }
  - { uses: stream-image }
  - name: config
    uses: write-file
    with:
      partition: { label: OEM }
      path: /config.ign
      contents: \"{{ render('flatcar/config.ign') }}\"
  - { uses: reboot }
  - { uses: wait-phone-home }
";

const IGNITION: &str = "files:
  - path: /etc/hostname
    mode: \"0644\"
    contents: {{ machine.hostname | toyaml }}
  - path: /etc/rack
    contents: {{ machine.rack | toyaml }}
{% for file in machine.files %}
  - path: {{ file.path | toyaml }}
    mode: {{ file.mode | toyaml }}
    contents: {{ file.contents | tojson }}
{% endfor %}
units:
  - name: call-home.service
    enabled: true
    contents: |
      [Service]
      ExecStart=/usr/bin/curl -H 'Authorization: Bearer {{ phone_home.token }}' {{ phone_home.url }}
      [Install]
      WantedBy=multi-user.target
merge: [ { source: {{ config_url('common/more.ign') | toyaml }} } ]
";

fn renderer() -> Renderer {
    let config = "{{ render('flatcar/ignition.yaml') | ignition('3.3.0') }}";
    let files = [
        ("flatcar/config.ign", config),
        ("flatcar/ignition.yaml", IGNITION),
        ("common/more.ign", "{{ '{}' | ignition('3.3.0') }}"),
        ("talos/config.yaml", "version: v1alpha1\n"),
    ];
    let sources = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
    Renderer::from_sources(BTreeMap::from(sources)).unwrap()
}

fn machines(number: u32) -> Vec<Machine> {
    let mut text = "machines:\n".to_owned();
    for at in 0..number {
        let (high, low) = (at / 250, at % 250 + 1);
        let contents = "line of a file\\n".repeat(200);
        text += &format!(
            "  - name: n{at}\n    rack: r{high}\n    \
             nics: [ {{ mac: \"52:54:00:aa:{high:02x}:{low:02x}\", address: 10.77.{high}.{low}/16 }} ]\n    \
             bmc: {{ url: \"redfish+http://10.78.{high}.{low}\", username: root, password: {{ file: /p }} }}\n    \
             disk: {{ hints: {{ type: nvme }} }}\n    files: [ {{ path: /etc/motd, contents: \"{contents}\" }} ]\n"
        );
    }
    let described = file::parse(&text, "rack.yaml").unwrap().machines;
    described
        .into_iter()
        .map(|described| described.machine)
        .collect()
}

fn flatcar() -> ImageFacts {
    ImageFacts {
        os: "flatcar".into(),
        os_version: None,
        ..image()
    }
}

fn prepared(
    machine: &Machine,
    image: impl Into<Option<ImageFacts>>,
    workflow: &str,
    renderer: &Renderer,
) -> Result<Prepared, Vec<String>> {
    let phone_home = PhoneHome {
        url: "https://d/node/v1/phone-home".into(),
        token: REDACTED.into(),
    };
    let base = ConfigBase {
        tls: "https://d".into(),
        plain: None,
        metadata: None,
    };
    let image = image.into();
    let context = Context::new(
        machine,
        image.as_ref(),
        "run-1",
        "https://d",
        "PEM",
        phone_home,
    );
    let prepared = prepare(Material {
        machine: machine.clone(),
        state: MachineState::Registered,
        inventory: None,
        image,
        workflow: plan::parse(workflow, "w.yaml", renderer).unwrap(),
        renderer,
        context: context.with_configs(base, None),
    });
    prepared.map_err(|error| match error {
        StartError::Refused(reasons) => reasons,
        other => vec![other.to_string()],
    })
}

#[test]
fn a_machine_without_image_is_told_what_to_do() {
    let workflow = "name: w\nsteps:\n  - uses: netboot\n  - uses: stream-image\n    with: { image: \"{{ image.digest }}\" }\n";
    let refused = prepared(&machines(1)[0], None, workflow, &renderer()).unwrap_err();
    assert!(
        refused[0].contains("has no image, and workflow w needs one"),
        "{refused:?}"
    );
    assert!(refused[0].contains("`image: NAME@VERSION`"), "{refused:?}");
    // One that needs none is not asked for one.
    let workflow = "name: w\nsteps:\n  - uses: netboot\n  - uses: power-off\n";
    assert!(prepared(&machines(1)[0], None, workflow, &renderer()).is_ok());
}

#[test]
fn a_mistake_in_one_of_two_hundred_machines_is_told_for_that_one() {
    let renderer = renderer();
    let mut machines = machines(200);
    machines[77].rack = None;
    let mut refused = Vec::new();
    for machine in &machines {
        match prepared(machine, flatcar(), WORKFLOW, &renderer) {
            Ok(prepared) => {
                let text = prepared.shown.steps[2].with["contents"].as_str().unwrap();
                assert!(text.contains(&format!("data:,{}", machine.name)), "{text}");
                assert!(
                    text.contains("https://d/node/v1/config/(redacted)"),
                    "{text}"
                );
                let documents: Vec<&str> = prepared
                    .documents
                    .iter()
                    .map(|d| d.template.as_str())
                    .collect();
                assert_eq!(documents, ["common/more.ign"]);
            }
            Err(reasons) => refused.push((machine.name.clone(), reasons)),
        }
    }
    assert_eq!(
        refused,
        [(
            "n77".to_owned(),
            vec![
                "w.yaml:7: flatcar/ignition.yaml:6:18: undefined value: `machine.rack`".to_owned()
            ]
        )]
    );
}

/// `cargo test -p anneal --lib -- --ignored --nocapture figures` says how long it takes.
#[test]
#[ignore = "figures, not a check"]
fn figures_of_two_hundred_machines() {
    let renderer = renderer();
    let machines = machines(200);
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM"))
            .unwrap();
        line.to_owned()
    };
    let before = peak();
    let began = std::time::Instant::now();
    let bytes: usize = machines
        .iter()
        .map(|machine| prepared(machine, flatcar(), WORKFLOW, &renderer).unwrap())
        .map(|prepared| {
            prepared.shown.steps[2].with["contents"]
                .as_str()
                .unwrap()
                .len()
        })
        .sum();
    println!(
        "{bytes} bytes in {:?}; before {before}, after {}",
        began.elapsed(),
        peak()
    );
}

#[test]
fn another_family_is_refused_with_file_and_line() {
    let renderer = renderer();
    let machine = machines(1).remove(0);
    let debian = prepared(&machine, image(), WORKFLOW, &renderer).unwrap_err();
    assert_eq!(
        debian[1],
        "w.yaml:2: workflow w is for flatcar, fcos, and image debian@12 is debian: use another workflow or image"
    );
    assert!(
        debian[0].contains("template `flatcar/config.ign` is for flatcar, and the image is debian"),
        "{debian:?}"
    );
    let talos = WORKFLOW.replace("flatcar/config.ign", "talos/config.yaml");
    let told = prepared(&machine, flatcar(), &talos, &renderer).unwrap_err();
    assert!(
        told[0].starts_with("w.yaml:7:") && told[0].contains("`talos/config.yaml`"),
        "{told:?}"
    );
    let slip = WORKFLOW.replace("[flatcar,", "[flatcer,");
    let told = plan::parse(&slip, "w.yaml", &renderer)
        .unwrap_err()
        .to_string();
    assert_eq!(
        told,
        "w.yaml:2:6: unknown family `flatcer`, did you mean `flatcar`?"
    );
}

#[test]
fn what_is_said_twice_refuses_the_plan() {
    let renderer = renderer();
    let mut machine = machines(1).remove(0);
    machine.config.kernel_args = vec!["mitigations=auto".into()];
    let kexec = "  - uses: kexec\n    with: { partition: { label: boot }, kernel: /vmlinuz, cmdline: \"quiet mitigations=off\" }\n";
    let workflow = WORKFLOW.replace("  - { uses: reboot }\n", kexec);
    let told = prepared(&machine, flatcar(), &workflow, &renderer).unwrap_err();
    assert!(
        told[0].contains("kernel argument `mitigations` is set here and"),
        "{told:?}"
    );
}
