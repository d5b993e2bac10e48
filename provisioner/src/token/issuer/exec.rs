//! The `exec` issuer: a command that prints a token, and one that takes it back.
//!
//! No shell: the words of the settings are the arguments, with placeholders replaced in them. The
//! environment is empty but for what is listed here; see [`subprocess`] for the other bounds.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Failure, JoinToken};
use crate::settings::{ClusterSettings, IssuerSettings};
use crate::subprocess::{self, Ended, Failed, LONGEST_OUTPUT};

/// A token of k0s is a whole kubeconfig.
const LONGEST_TOKEN: usize = 16 * 1024;
const SHORTEST_TOKEN: usize = 16;
/// Most that is told of a complaint, characters.
const LONGEST_COMPLAINT: usize = 300;

/// Whether a command could be started.
pub(super) fn check(command: &[String]) -> Result<(), Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let program = Path::new(command.first().map_or("", String::as_str));
    let problem = match std::fs::metadata(program) {
        Err(error) => error.to_string(),
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => return Ok(()),
        Ok(_) => "not a program".to_owned(),
    };
    let program = program.display();
    Err(Failure::lasting(format!("{program}: {problem}")))
}

/// Has a token made.
pub(super) async fn mint(
    cluster: &ClusterSettings,
    record: &JoinToken,
) -> Result<Zeroizing<String>, Failure> {
    let IssuerSettings::Exec {
        command, timeout, ..
    } = &cluster.issuer
    else {
        return Err(Failure::lasting("no command makes its tokens"));
    };
    let output = run(command, *timeout, cluster, record).await?;
    let first = output.lines().next().unwrap_or_default().trim();
    // It ended well, so there may be a token, whatever it printed.
    let wrong = |told: String| Failure {
        maybe_made: true,
        ..Failure::lasting(format!("{}: {told}", command[0]))
    };
    shape(first).map_err(wrong)?;
    Ok(Zeroizing::new(first.to_owned()))
}

/// Takes a token back. False when the settings name no command for it.
pub(super) async fn revoke(cluster: &ClusterSettings, record: &JoinToken) -> Result<bool, Failure> {
    let IssuerSettings::Exec {
        revoke: Some(command),
        timeout,
        ..
    } = &cluster.issuer
    else {
        return Ok(false);
    };
    let needs_id = command.iter().any(|word| word.contains("{token_id}"));
    if needs_id && record.token_id.is_none() {
        return Err(Failure::lasting(format!(
            "{}: nobody heard the token's id, if there is one: look for {}, or it expires by itself",
            command[0],
            record.description()
        )));
    }
    run(command, *timeout, cluster, record).await?;
    Ok(true)
}

/// Whether a text can be a token: one printable word.
///
/// # Errors
/// Says what is wrong, without the text.
pub(super) fn shape(token: &str) -> Result<(), String> {
    if !(SHORTEST_TOKEN..=LONGEST_TOKEN).contains(&token.len()) {
        return Err(format!(
            "expected a token of {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters in the first line, found {}",
            token.len()
        ));
    }
    match token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("expected a token of printable characters without blanks".to_owned()),
    }
}

/// The public half of a token of the form of kubeadm's, also when k3s put its CA before it.
pub(super) fn token_id(token: &str) -> Option<String> {
    let bare = token.rsplit("::").next()?;
    let (id, secret) = bare.split_once('.')?;
    let plain = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then(|| id.to_owned())
}

/// Runs a command to its end and gives what it printed.
async fn run(
    command: &[String],
    timeout: Duration,
    cluster: &ClusterSettings,
    record: &JoinToken,
) -> Result<Zeroizing<String>, Failure> {
    let values = values(cluster, record);
    let program = &command[0];
    let arguments = command[1..].iter().map(|word| replaced(word, &values));
    let mut process = subprocess::confined(program);
    process
        .args(arguments)
        .env("ANNEAL_ENDPOINT", &cluster.endpoint)
        .envs(values.iter().map(|(name, value)| (variable(name), value)));
    let ended = subprocess::run(&mut process, timeout).await;
    let Ended {
        status,
        stdout: printed,
        stderr: complaint,
    } = ended.map_err(|failed| match failed {
        Failed::Start(error) => Failure::lasting(format!("{program}: {error}")),
        Failed::Late => Failure {
            maybe_made: true,
            ..Failure::away(format!(
                "{program} did not end within {}",
                crate::workflow::duration::show(timeout)
            ))
        },
    })?;
    let status = status.map_err(|e| Failure::unknown(format!("{program}: {e}")))?;
    if !status.success() {
        let told = complain(program, status, &complaint);
        // Killed at any moment, or failed after it had something to show: the deed may be done.
        let silent = printed.iter().all(u8::is_ascii_whitespace);
        return Err(match status.code() {
            Some(_) if silent => Failure::passing(told),
            _ => Failure::unknown(told),
        });
    }
    if printed.len() as u64 > LONGEST_OUTPUT {
        return Err(Failure::unknown(format!(
            "{program} printed more than {LONGEST_OUTPUT} bytes"
        )));
    }
    let text = String::from_utf8(printed.to_vec())
        .map_err(|_| Failure::unknown(format!("{program} printed what is not text")))?;
    Ok(Zeroizing::new(text))
}

/// What placeholders stand for.
fn values(cluster: &ClusterSettings, record: &JoinToken) -> Vec<(&'static str, String)> {
    let mut values = vec![
        ("cluster", cluster.name.clone()),
        ("machine", record.machine.clone()),
        ("run", record.run.clone()),
        ("ttl", format!("{}s", cluster.ttl.as_secs())),
        ("description", record.description()),
    ];
    if let Some(id) = &record.token_id {
        values.push(("token_id", id.clone()));
    }
    values
}

fn variable(name: &str) -> String {
    format!("ANNEAL_{}", name.to_ascii_uppercase())
}

fn replaced(word: &str, values: &[(&str, String)]) -> String {
    let replace =
        |text: String, (name, value): &(&str, String)| text.replace(&format!("{{{name}}}"), value);
    values.iter().fold(word.to_owned(), replace)
}

/// What a command said when it failed, without what looks like a token.
fn complain(program: &str, status: ExitStatus, complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let said = text.lines().rev().find(|line| !line.trim().is_empty());
    let ended = match status.code() {
        Some(code) => format!("{program} ended with {code}"),
        None => format!("{program} was killed ({status})"),
    };
    match said {
        None => ended,
        Some(said) => format!("{ended}: {}", masked(said.trim())),
    }
}

/// A complaint with long unbroken words hidden: a token may be among them.
pub(super) fn masked(text: &str) -> String {
    let short: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_COMPLAINT)
        .collect();
    let hidden = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let secret = token_id(bare).is_some()
            || (bare.len() >= 24
                && !bare.contains(['/', ':'])
                && bare.contains(|c: char| c.is_ascii_digit()));
        if secret || bare.contains("::") {
            crate::render::REDACTED.to_owned()
        } else {
            word.to_owned()
        }
    };
    short.split(' ').map(hidden).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
