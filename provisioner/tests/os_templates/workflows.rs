//! The shipped workflows, planned for every machine of their systems.

use provisioner::workflow::inputs;
use provisioner::workflow::plan::{self, Workflow};

use super::{Case, FAMILIES, Family, case, cases, renderer};

fn shipped() -> Vec<Workflow> {
    let mut files: Vec<_> = std::fs::read_dir("../workflows")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    let read = |path: &std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        plan::parse(&text, &name, renderer()).unwrap_or_else(|e| panic!("{e}"))
    };
    files.iter().map(read).collect()
}

/// Renders and checks each step that would run; how many that are.
fn planned(workflow: &Workflow, case: &Case) -> usize {
    let (image, context) = (case.image(), case.context());
    let mut count = 0;
    for step in workflow.all_steps() {
        let runs = step
            .when
            .as_ref()
            .is_none_or(|when| renderer().condition(when, &step.place, &context).unwrap());
        if !runs {
            continue;
        }
        count += 1;
        let shown = |e: inputs::InputError| -> String {
            format!(
                "{} for {} {}: {e}",
                step.place, case.family.folder, case.variant
            )
        };
        let rendered = inputs::render(step, renderer(), &context);
        let rendered = rendered.unwrap_or_else(|e| panic!("{}", shown(e)));
        inputs::typed(step, &rendered, &case.machine, Some(&image))
            .unwrap_or_else(|e| panic!("{}", shown(e)));
    }
    count
}

#[test]
fn every_workflow_can_be_planned_for_its_systems() {
    let workflows = shipped();
    for workflow in &workflows {
        assert!(!workflow.description.is_empty());
        for family in FAMILIES
            .iter()
            .filter(|f| workflow.os.iter().any(|os| os == f.name))
        {
            for case in cases(family) {
                assert!(planned(workflow, &case) > 4, "{}", workflow.name);
            }
        }
    }
    for family in FAMILIES {
        let served = workflows
            .iter()
            .any(|w| w.os.iter().any(|os| os == family.name));
        assert!(served, "no workflow for {}", family.name);
    }
}

/// Whoever wants no kernel arguments has the plan that there was without them.
#[test]
fn kernel_arguments_are_steps_of_their_own() {
    let steps = [
        ("install-image", 1),
        ("install-cloud-image", 2),
        ("install-cloud-image-url", 2),
    ];
    let workflows = shipped();
    for (name, more) in steps {
        let workflow = workflows.iter().find(|w| w.name == name).unwrap();
        for family in ["debian", "ubuntu"] {
            let mut case = case(Family::of(family), "worker", "static");
            let with = planned(workflow, &case);
            case.machine.config.kernel_args.clear();
            assert_eq!(with, planned(workflow, &case) + more, "{name} {family}");
        }
    }
}

/// Systems that find their configuration by label read a stale one from another disk.
#[test]
fn whoever_writes_by_label_wants_the_label_to_be_unique() {
    for workflow in shipped() {
        let labels = workflow.steps.iter().filter_map(|step| {
            let label = step.with.get("partition")?.get("label")?.as_str()?;
            // Talos' and bootc's are read on the disk that was started.
            (!label.contains("{{") && !["BOOT", "root"].contains(&label)).then_some(label)
        });
        let labels: std::collections::BTreeSet<_> = labels.collect();
        let unique: Vec<_> = workflow
            .steps
            .iter()
            .filter_map(|step| step.with.get("unique_labels")?.as_array())
            .flatten()
            .filter_map(|label| label.as_str())
            .collect();
        // The default workflow is as old as its images, which have the label on one disk only.
        if workflow.name == "install-image" {
            continue;
        }
        for label in labels {
            assert!(unique.contains(&label), "{}: {label}", workflow.name);
        }
    }
}
