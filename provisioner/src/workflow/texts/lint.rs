//! The boundary of an immutable system, kept softly.

use std::collections::{BTreeMap, BTreeSet};

use super::Text;
use super::parts::{self, Arguments, Part};
use crate::machine::{Machine, repeatable_kernel_arg};

/// Commands that change a cluster, not its node.
const COMMANDS: &[&str] = &[
    "kubectl apply",
    "kubectl create",
    "kubectl patch",
    "kubectl replace",
    "helm install",
    "helm upgrade",
];

/// Folders whose files a server turns into objects of the cluster.
const MANIFESTS: &[&str] = &[
    "/var/lib/rancher/k3s/server/manifests",
    "/var/lib/rancher/rke2/server/manifests",
];

/// Kinds of objects that are workloads of a cluster.
const WORKLOADS: &[&str] = &[
    "Deployment",
    "DaemonSet",
    "StatefulSet",
    "ReplicaSet",
    "CronJob",
    "HelmChart",
    "HelmRelease",
];

/// What a node keeps for itself, by the words of the kubelet's file and of its flags.
const RESERVATIONS: &[(&str, [&str; 2])] = &[
    ("system-reserved", ["systemReserved", "--system-reserved"]),
    ("kube-reserved", ["kubeReserved", "--kube-reserved"]),
];

/// What templates write otherwise than it was given: an argument with it is not found in a text.
const ESCAPED: [char; 6] = ['\'', '"', '\\', '<', '>', '&'];

/// What was found: errors, then warnings. Both name the place and the reason. `installs`: the texts are for a system
/// that the workflow puts on the disk.
pub(crate) fn lint(
    machine: &Machine,
    texts: &[Text],
    installs: bool,
) -> (Vec<String>, Vec<String>) {
    let mut files = Vec::new();
    let mut arguments = Vec::new();
    for text in texts {
        let (more, lists) = parts::split(text);
        files.extend(more);
        arguments.extend(lists);
    }
    let mut errors = kernel_arguments(machine, &arguments);
    errors.extend(reservations(&files));
    let mut warnings = match installs {
        true => unused(machine, &files, &arguments),
        false => Vec::new(),
    };
    for part in &files {
        if let Some(what) = cluster_layer(part) {
            warnings.push(format!(
                "{}: {what}, which belongs to the Kubernetes layer: it would be frozen into this \
                 node's configuration and run again at every installation; let the cluster's own \
                 tools deliver it",
                part.place
            ));
        }
    }
    // A document and a file in it say the same.
    let mut seen = BTreeSet::new();
    warnings.retain(|warning| seen.insert(warning.clone()));
    (errors, warnings)
}

fn cluster_layer(part: &Part) -> Option<String> {
    if MANIFESTS.iter().any(|folder| part.path.starts_with(folder)) {
        return Some(format!("{} is a manifest", part.path));
    }
    let lines = || {
        part.text
            .lines()
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
    };
    if let Some(command) = COMMANDS
        .iter()
        .find(|command| lines().any(|l| l.contains(**command)))
    {
        return Some(format!("`{command}` changes the cluster"));
    }
    for document in parts::yaml_documents(&part.text) {
        let kind = document
            .get("kind")
            .and_then(|kind| kind.as_str())
            .unwrap_or_default();
        if document.get("apiVersion").is_some() && WORKLOADS.contains(&kind) {
            return Some(format!("a {kind} is a workload"));
        }
        for key in ["inlineManifests", "extraManifests"] {
            if document.pointer(&format!("/cluster/{key}")).is_some() {
                return Some(format!("`cluster.{key}` are manifests"));
            }
        }
    }
    None
}

fn named(argument: &str) -> (&str, &str) {
    argument.split_once('=').unwrap_or((argument, ""))
}

/// Arguments that are said twice: the kernel takes one of them, and nobody knows which was meant.
fn kernel_arguments(machine: &Machine, lists: &[Arguments]) -> Vec<String> {
    let mut errors = Vec::new();
    let own = || {
        machine
            .config
            .kernel_args
            .iter()
            .map(|argument| named(argument))
    };
    for Arguments { place, list } in lists {
        let mut seen = BTreeMap::new();
        for (name, value) in list.iter().map(|argument| named(argument)) {
            if repeatable_kernel_arg(name) {
                continue;
            }
            if seen.insert(name, value).is_some() {
                errors.push(format!("{place}: kernel argument `{name}` is set twice"));
            } else if own().any(|(own, other)| own == name && other != value) {
                errors.push(format!(
                    "{place}: kernel argument `{name}` is set here and, otherwise, in the \
                     `kernel_args` of machine {}: leave it in one place",
                    machine.name
                ));
            }
        }
    }
    errors.sort();
    errors.dedup();
    errors
}

/// Arguments of the inventory that are in nothing that the machine gets: its workflow forgot them.
fn unused(machine: &Machine, files: &[Part], lists: &[Arguments]) -> Vec<String> {
    let texts = || {
        let files = files.iter().map(|part| &part.text);
        files.chain(lists.iter().flat_map(|arguments| &arguments.list))
    };
    let said = |words: &str| texts().any(|text| text.contains(words));
    let forgotten = machine.config.kernel_args.iter().filter(|argument| {
        // Name and value may stand apart from each other.
        let (name, value) = named(argument);
        !argument.contains(ESCAPED) && (!said(name) || !said(value))
    });
    forgotten
        .map(|argument| {
            format!(
                "kernel argument `{}` of machine {} is in nothing that this workflow writes: the \
                 installed system will not have it",
                named(argument).0,
                machine.name
            )
        })
        .collect()
}

/// Reservations that are said in two files: the kubelet takes its flag, and the file lies.
fn reservations(files: &[Part]) -> Vec<String> {
    let mut errors = Vec::new();
    for (what, words) in RESERVATIONS {
        // The smallest parts: a document that holds a file is not a second place.
        let says = |part: &&Part| {
            let says = |line: &str| !line.trim_start().starts_with('#') && has_any(line, words);
            part.text.lines().any(says)
        };
        let all: Vec<&Part> = files.iter().filter(says).collect();
        let inner = |part: &&&Part| {
            let prefix = format!("{}: ", part.place);
            !all.iter().any(|other| other.place.starts_with(&prefix))
        };
        let places: Vec<&str> = all
            .iter()
            .filter(inner)
            .map(|part| part.place.as_str())
            .collect();
        if places.len() > 1 {
            errors.push(format!(
                "{what} is set in {} places: {}; leave it in one",
                places.len(),
                places.join(" and ")
            ));
        }
    }
    errors
}

fn has_any(line: &str, words: &[&str]) -> bool {
    words.iter().any(|word| line.contains(word))
}
