//! Refuses nonsense before a server loses power: does this workflow make sense for this machine?
//!
//! Pure. Errors stop a run from being made; warnings are shown in the plan.

use anneal_protocol::agent::Inventory;
use anneal_protocol::disk::{DiskHints, DiskInfo, same_wwn};

use super::action::Action;
use super::caller::{Caller, Wait};
use super::plan::{Step, Workflow};
use crate::machine::Machine;
use crate::render::ImageFacts;
use crate::render::family::canonical;

/// What the check found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Findings {
    /// Reasons not to start.
    pub errors: Vec<String>,
    /// What to know before saying yes.
    pub warnings: Vec<String>,
}

/// What a workflow is checked against.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The image the run would install.
    pub image: Option<&'a ImageFacts>,
    /// The machine's hardware as last reported.
    pub inventory: Option<&'a Inventory>,
    /// By position: steps whose condition is false.
    pub skip: &'a [bool],
    /// Whether any step renders the phone-home token.
    pub token_used: bool,
    /// Whether the daemon has an event sink.
    pub event_sink: bool,
}

/// Checks a workflow against a machine.
#[must_use]
pub fn check(workflow: &Workflow, subject: &Subject<'_>) -> Findings {
    let mut findings = Findings::default();
    let runs = |offset: usize, steps: &[Step]| -> Vec<Step> {
        steps
            .iter()
            .enumerate()
            .filter(|(i, _)| !subject.skip.get(offset + i).copied().unwrap_or(false))
            .map(|(_, step)| step.clone())
            .collect()
    };
    let main = runs(0, &workflow.steps);
    let on_failure = runs(workflow.steps.len(), &workflow.on_failure);
    if main.is_empty() {
        findings
            .errors
            .push("no step would run: every `when` is false".to_owned());
    }
    order(&main, &mut findings);
    for step in main.iter().chain(&on_failure) {
        power(step, subject.machine, &mut findings);
    }
    for step in on_failure.iter().filter(|s| s.uses.spec().destructive) {
        findings.errors.push(format!(
            "{}: `{}` would write to a disk of a run that failed; on_failure must not",
            step.place, step.name
        ));
    }
    if let Some(image) = subject.image {
        family(workflow, image, &mut findings);
    }
    let destructive = main.iter().any(|s| s.uses.spec().destructive);
    if destructive {
        disks(subject, &mut findings);
    }
    if let Some(image) = subject.image.filter(|image| image.unproven) {
        findings.warnings.push(format!(
            "image {}@{} was added without proof of its publisher",
            image.name, image.version
        ));
    }
    for step in &main {
        if let Some(wait) = Wait::of(step) {
            calls(step, wait, subject, &mut findings);
        }
    }
    findings
}

/// Whether what must say that the system is up can.
fn calls(step: &Step, wait: Wait, subject: &Subject<'_>, findings: &mut Findings) {
    let at = format!("{}: `{}`", step.place, step.name);
    let machine = &subject.machine.name;
    if wait.api_port && wait.by != Caller::Talos {
        let message = format!("{at}: `fallback: api-port` is for `by: talos` only");
        findings.errors.push(message);
    }
    if wait.api_port && subject.machine.addresses().next().is_none() {
        findings.errors.push(format!(
            "{at}: `fallback: api-port` needs to know where {machine} is: give it an `address`"
        ));
    }
    match wait.by {
        Caller::Talos if !subject.event_sink => findings.errors.push(format!(
            "{at} waits for events of Talos, and there is no event sink: set `event_sink: {{ listen: \":8082\" }}` in anneal.yaml"
        )),
        Caller::Token | Caller::Kairos if !subject.token_used => findings.warnings.push(
            "no step gives the node a phone-home token (`phone_home.token`), so `wait-phone-home` will time out unless the image has one"
                .to_owned(),
        ),
        Caller::Token | Caller::Talos | Caller::Kairos => {}
    }
}

/// Whether the workflow is for the image's family.
fn family(workflow: &Workflow, image: &ImageFacts, findings: &mut Findings) {
    let os = canonical(&image.os);
    if !workflow.os.is_empty() && !workflow.os.iter().any(|family| family == os) {
        findings.errors.push(format!(
            "{}: workflow {} is for {}, and image {}@{} is {os}: use another workflow or image",
            workflow.os_place,
            workflow.name,
            workflow.os.join(", "),
            image.name,
            image.version,
        ));
    }
}

/// Whether the agent is there when a step needs it, and gone when a step needs it gone.
fn order(main: &[Step], findings: &mut Findings) {
    let mut agent = false;
    let mut written = false;
    let mut left_after_write = false;
    let mut streamed = false;
    for step in main {
        let at = format!("{}: `{}`", step.place, step.name);
        if step.uses.on_agent() && !agent {
            findings.errors.push(format!(
                "{at} needs the agent, but no `netboot` step before it starts one"
            ));
            // One missing netboot is one mistake, however many steps follow.
            agent = true;
        }
        match step.uses {
            Action::Netboot => agent = true,
            Action::Power | Action::Reboot | Action::Kexec | Action::PowerOff => {
                agent = false;
                left_after_write |= written;
            }
            Action::WaitPhoneHome if !written => findings.errors.push(format!(
                "{at} would wait for a system that no step before it installs"
            )),
            Action::WaitPhoneHome if !left_after_write => findings.errors.push(format!(
                "{at} would wait for a system that is never started: put `reboot` or `kexec` before it"
            )),
            Action::StreamImage => {
                if written && !streamed {
                    findings.warnings.push(format!("{at} replaces what earlier steps wrote"));
                }
                written = true;
                streamed = true;
            }
            Action::WriteFile | Action::BootArguments | Action::WriteTalosMeta => written = true,
            Action::WipeDisk if written => {
                findings.warnings.push(format!("{at} erases what earlier steps wrote"));
                written = false;
            }
            _ => {}
        }
    }
    if streamed && !main.iter().any(|s| s.uses == Action::WaitPhoneHome) {
        findings.warnings.push(
            "no step waits for the installed system (`wait-phone-home`): the run succeeds whether or not it boots".to_owned(),
        );
    }
}

fn power(step: &Step, machine: &Machine, findings: &mut Findings) {
    if machine.bmc.is_some() {
        return;
    }
    let at = format!("{}: `{}`", step.place, step.name);
    match step.uses {
        Action::Netboot => findings.warnings.push(format!(
            "{} has no BMC: {at} waits until somebody powers it on, booting from the network",
            machine.name
        )),
        Action::Power | Action::BootDevice => findings
            .errors
            .push(format!("{at} needs a BMC, and {} has none", machine.name)),
        _ => {}
    }
}

fn disks(subject: &Subject<'_>, findings: &mut Findings) {
    let machine = subject.machine;
    if machine.disk == DiskHints::default() {
        findings.errors.push(format!(
            "machine {} has no disk hints: say which disk to write to, such as `disk: {{ hints: {{ type: nvme }} }}`",
            machine.name
        ));
        return;
    }
    let Some(inventory) = subject.inventory else {
        return;
    };
    let found = candidates(machine, inventory);
    match found.as_slice() {
        [] => findings.warnings.push(format!(
            "no disk in the last hardware report of {} matches its hints",
            machine.name
        )),
        [disk] => {
            if let Some(image) = subject.image.filter(|image| image.size > disk.size) {
                findings.errors.push(format!(
                    "{} does not fit: the image is {} bytes, disk {} of {} is {} bytes",
                    image.name, image.size, disk.name, machine.name, disk.size
                ));
            }
        }
        several => findings.warnings.push(format!(
            "the hints of {} match {} disks in its last hardware report, and the agent will refuse to choose: add a serial or WWN",
            machine.name,
            several.len()
        )),
    }
}

/// Disks of a hardware report that the machine's hints allow, protected ones left out.
#[must_use]
pub fn candidates<'a>(machine: &Machine, inventory: &'a Inventory) -> Vec<&'a DiskInfo> {
    inventory
        .disks
        .iter()
        .filter(|disk| matches(&machine.disk, disk) && !is_protected(machine, disk))
        .collect()
}

fn matches(hints: &DiskHints, disk: &DiskInfo) -> bool {
    let model = |wanted: &String| {
        disk.model
            .as_ref()
            .is_some_and(|m| m.to_lowercase().contains(&wanted.to_lowercase()))
    };
    hints.kind.is_none_or(|kind| kind == disk.kind)
        && hints.min_size.is_none_or(|min| disk.size >= min)
        && hints.max_size.is_none_or(|max| disk.size <= max)
        && hints
            .serial
            .as_ref()
            .is_none_or(|s| disk.serial.as_ref() == Some(s))
        && hints
            .wwn
            .as_ref()
            .is_none_or(|w| disk.wwn.as_ref().is_some_and(|found| same_wwn(found, w)))
        && hints.model.as_ref().is_none_or(model)
        && hints.rotational.is_none_or(|r| r == disk.rotational)
}

/// As the agent judges: what could not be read counts as a match.
fn is_protected(machine: &Machine, disk: &DiskInfo) -> bool {
    machine.protected_disks.iter().any(|rule| {
        let serial = rule
            .serial
            .as_ref()
            .is_none_or(|s| disk.serial.as_ref().is_none_or(|found| found == s));
        let wwn = rule
            .wwn
            .as_ref()
            .is_none_or(|w| disk.wwn.as_ref().is_none_or(|found| same_wwn(found, w)));
        let label = rule
            .label
            .as_ref()
            .is_none_or(|l| disk.labels_unreadable || disk.labels.contains(l));
        serial && wwn && label
    })
}
