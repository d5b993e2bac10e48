//! The systems' own validators, as programs on this host.
//!
//! Each gets a file in a folder of its own that only we can read, nothing else, and 30 seconds; two
//! run at once. They are confined as [`subprocess`] says.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anneal_protocol::api::{CheckOutcome, CheckView};
use tokio::sync::Semaphore;

use super::check;
use crate::subprocess::{self, Failed};

/// How long a validator may think.
const LIMIT: Duration = Duration::from_secs(30);
/// How many validators may think at once, whoever asked.
const AT_ONCE: usize = 2;
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);
/// Longest explanation that is passed on, characters.
const TOLD_MAX: usize = 2_000;

/// A validator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Validator {
    /// For people.
    name: &'static str,
    program: &'static str,
    /// Arguments before the file.
    arguments: &'static [&'static str],
    /// The Debian package, or where it comes from.
    from: &'static str,
    /// What it says of a text that it is too old for.
    too_old: Option<&'static str>,
}

/// Of Ignition itself.
pub(super) const IGNITION: Validator = Validator {
    name: "ignition-validate",
    program: "ignition-validate",
    arguments: &[],
    from: "the Debian package `ignition`",
    too_old: Some("unsupported config version"),
};

/// Of cloud-init itself.
pub(super) const CLOUD_INIT: Validator = Validator {
    name: "cloud-init schema",
    program: "cloud-init",
    arguments: &["schema", "--config-file"],
    from: "the Debian package `cloud-init`",
    too_old: None,
};

/// Of Talos itself.
pub(super) const TALOSCTL: Validator = Validator {
    name: "talosctl validate",
    program: "talosctl",
    arguments: &["validate", "--mode", "metal", "--config"],
    from: "a release of Talos",
    too_old: None,
};

/// Checks a text with a program, if it is there.
pub(super) async fn run(validator: Validator, place: &str, text: &str) -> CheckView {
    run_with(validator, validator.arguments, place, text).await
}

async fn run_with(validator: Validator, arguments: &[&str], place: &str, text: &str) -> CheckView {
    let not_run = |why: String| check(validator.name, place, CheckOutcome::NotRun, why);
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => return not_run(format!("no temporary folder: {error}")),
    };
    let file = folder.path().join("document");
    if let Err(error) = tokio::fs::write(&file, text).await {
        return not_run(format!("the text could not be written: {error}"));
    }
    let mut process = subprocess::confined(validator.program);
    process
        .args(arguments)
        .arg(&file)
        .env("HOME", folder.path())
        .current_dir(folder.path());
    let turn = TURNS.acquire().await;
    let ended = subprocess::run(&mut process, LIMIT).await;
    drop(turn);
    let ended = match ended {
        Err(Failed::Late) => {
            return not_run(format!("it did not end within {} s", LIMIT.as_secs()));
        }
        Err(Failed::Start(error)) if error.kind() == ErrorKind::NotFound => {
            return not_run(format!(
                "`{}` is not installed on the daemon's host: it is in {}",
                validator.program, validator.from
            ));
        }
        Err(Failed::Start(error)) => return not_run(format!("it cannot be started: {error}")),
        Ok(ended) => ended,
    };
    let status = match ended.status {
        Ok(status) => status,
        Err(error) => return not_run(format!("how it ended is not known: {error}")),
    };
    let told = [ended.stderr.as_slice(), ended.stdout.as_slice()].concat();
    let told = String::from_utf8_lossy(&told).replace(&file.display().to_string(), "the text");
    if validator.too_old.is_some_and(|words| told.contains(words)) {
        return not_run(
            "the installed program is too old for this version of the document".to_owned(),
        );
    }
    let told: String = told.trim().chars().take(TOLD_MAX).collect();
    match status.success() {
        true => check(validator.name, place, CheckOutcome::Passed, ""),
        false => check(validator.name, place, CheckOutcome::Failed, told),
    }
}

/// The JSON Schema for a Talos version, `talos-v1.13.json` in the folder of schemas.
pub(super) fn talos_schema(schemas: &Path, image: Option<&str>) -> Result<PathBuf, String> {
    let version = image
        .and_then(|image| image.split_once('@'))
        .map(|(_, version)| version);
    let minor = version.and_then(|version| {
        let mut parts = version.trim_start_matches('v').split('.');
        Some(format!("{}.{}", parts.next()?, parts.next()?))
    });
    let Some(minor) = minor else {
        return Err("the image's version does not say which schema to use".to_owned());
    };
    let path = schemas.join(format!("talos-v{minor}.json"));
    match path.exists() {
        true => Ok(path),
        false => Err(format!(
            "there is no {}: it is `pkg/machinery/config/schemas/config.schema.json` of Talos v{minor}",
            path.display()
        )),
    }
}

/// Checks every document of a Talos configuration with its schema.
pub(super) async fn talos(schema: Result<PathBuf, String>, place: &str, text: &str) -> CheckView {
    const NAME: &str = "Talos JSON Schema";
    let schema = match schema {
        Ok(schema) => schema,
        Err(why) => return check(NAME, place, CheckOutcome::NotRun, why),
    };
    let validator = Validator {
        name: NAME,
        program: "jsonschema",
        arguments: &[],
        from: "the Debian package `python3-jsonschema`",
        too_old: None,
    };
    let schema = schema.to_string_lossy().into_owned();
    let mut last = check(NAME, place, CheckOutcome::NotRun, "there is no document");
    for document in crate::workflow::texts::yaml_documents(text) {
        // The command takes the schema last: the file comes after `-i`.
        let arguments = [schema.as_str(), "-i"];
        last = run_with(validator, &arguments, place, &document.to_string()).await;
        if last.outcome != CheckOutcome::Passed {
            return last;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Validator = Validator {
        name: "shell",
        program: "sh",
        arguments: &["-c", "env; exit 1", "sh"],
        from: "every system",
        too_old: None,
    };

    #[tokio::test]
    async fn a_validator_waits_its_turn_and_is_told_nothing() {
        let turns = u32::try_from(AT_ONCE).unwrap();
        let all = TURNS.acquire_many(turns).await.unwrap();
        let mut waiting = Box::pin(run(SHELL, "here", "text"));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut waiting).await;
        assert!(early.is_err(), "it did not wait");
        drop(all);
        let ran = waiting.await;
        assert_eq!(ran.outcome, CheckOutcome::Failed, "{}", ran.detail);
        assert!(ran.detail.contains("LANG=C.UTF-8"), "{}", ran.detail);
        assert!(!ran.detail.contains("CARGO_"), "{}", ran.detail);
    }
}
