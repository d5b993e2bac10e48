//! `anneal-agent write`: the code of `stream-image` from any running Linux, without a daemon: for
//! a rescue system, for measurements, for tests.
//!
//! Asks nothing. Refuses a disk that is mounted, in use, read-only or too small. The result is
//! one JSON object on standard output; what happens meanwhile goes to standard error.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anneal_image::SignedManifest;
use anneal_protocol::agent::{
    FailureCode, StepFailure, StreamOptions, StreamResult, Verify, stall_timeout_ms,
};

use crate::disk;
use crate::disk::stream::{How, Order, image_key, install, manifest_failure};
use crate::init;
use crate::io::memory;
use crate::io::source::Origin;
use crate::step::fail;

const USAGE: &str =
    "usage: anneal-agent write --manifest FILE --key HEX --source URL... --disk DEVICE [options]

Writes a sealed image to a disk of this machine. EVERYTHING ON THE DISK IS LOST; nothing is asked.
  --manifest FILE       the image's signed manifest.json
  --key HEX             Ed25519 public key that it must be signed with
  --source URL          where data.zst is, or its folder with a / at the end; may be repeated
  --disk DEVICE         a whole disk that nothing uses
  --delta auto|off      fetch only what differs from what is on the disk (auto), or everything
  --verify none|changed|full  what to read back afterwards (full)
  --memory MIB          most memory for bytes on their way (256)
  --connections N       at the same time (4)
  --grow last|LABEL     let this partition take what the disk has beyond the image
  --stall-timeout S     seconds without data from anywhere after which it is given up (300)

Exit code: 0 done; 1 failed, and the disk may have been changed (it does not boot then);
2 wrong arguments; 3 refused, nothing was changed.";

/// What was asked for.
#[derive(Debug, Clone, PartialEq)]
struct Request {
    manifest: PathBuf,
    key: String,
    disk: PathBuf,
    verify: Verify,
    options: StreamOptions,
    stall_timeout: Duration,
}

/// Reads arguments, writes, prints the result.
#[must_use]
pub fn main(args: impl Iterator<Item = String>) -> ExitCode {
    let request = match parse(args) {
        Ok(Some(request)) => request,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("anneal-agent write: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    init::log_to_stderr();
    let (text, code) = match write(&request) {
        Ok(result) => (serde_json::to_string(&result), ExitCode::SUCCESS),
        Err(failure) => {
            eprintln!("anneal-agent write: {}", failure.message);
            let code = exit_code(&failure);
            let text = serde_json::to_string(&serde_json::json!({ "failed": failure }));
            (text, ExitCode::from(code))
        }
    };
    match text {
        Ok(text) => {
            println!("{text}");
            code
        }
        Err(error) => {
            eprintln!("anneal-agent write: the result cannot be printed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Failures before the first change have a code of their own. Once something was changed, none of
/// these is returned.
fn exit_code(failure: &StepFailure) -> u8 {
    match failure.code {
        FailureCode::NoDisk
        | FailureCode::AmbiguousDisk
        | FailureCode::DiskRefused
        | FailureCode::DiskTooSmall
        | FailureCode::ManifestInvalid
        | FailureCode::BadOrder => 3,
        _ => 1,
    }
}

fn write(request: &Request) -> Result<StreamResult, StepFailure> {
    let shown = request.manifest.display();
    let text = std::fs::read(&request.manifest)
        .map_err(|e| fail(FailureCode::BadOrder, format!("cannot read {shown}: {e}")))?;
    let failure = |e| manifest_failure(&shown.to_string(), &e);
    let signed = SignedManifest::parse(&text).map_err(failure)?;
    signed.verify(&image_key(&request.key)?).map_err(failure)?;
    let sources = request.options.sources.iter();
    let origins = sources
        .map(|url| Origin::mirror(url, 0))
        .collect::<Result<_, _>>()?;
    let chosen = disk::named(&request.disk)?;
    let order = Order {
        image: signed.manifest.id(),
        manifest: signed.manifest,
        how: How {
            verify: request.verify,
            stall_timeout: request.stall_timeout,
            options: request.options.clone(),
        },
        origins,
        memory: memory::DEFAULT_LIMIT,
    };
    install(&chosen, order, &mut || Ok(()))
}

/// None: help was asked for.
fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Option<Request>> {
    let (mut manifest, mut key, mut disk) = (None, None, None);
    let mut verify = Verify::default();
    let mut stall_timeout = Duration::from_millis(stall_timeout_ms());
    let mut options = StreamOptions::default();
    while let Some(arg) = args.next() {
        if arg == "--help" || arg == "-h" {
            return Ok(None);
        }
        let mut value = || {
            args.next()
                .ok_or_else(|| anyhow::anyhow!("{arg} needs a value"))
        };
        match arg.as_str() {
            "--manifest" => manifest = Some(PathBuf::from(value()?)),
            "--key" => key = Some(value()?),
            "--disk" => disk = Some(PathBuf::from(value()?)),
            "--source" => options.sources.push(value()?),
            "--delta" => options.delta = word(&arg, &value()?)?,
            "--verify" => verify = word(&arg, &value()?)?,
            "--memory" => options.memory = Some(number(&arg, &value()?)?),
            "--grow" => options.grow = Some(value()?),
            "--connections" => options.connections = Some(number(&arg, &value()?)?),
            "--stall-timeout" => {
                stall_timeout = Duration::from_secs(number(&arg, &value()?)?.into());
            }
            _ => anyhow::bail!("unknown argument {arg}"),
        }
    }
    let missing = |name: &str| anyhow::anyhow!("{name} is missing");
    anyhow::ensure!(!options.sources.is_empty(), "--source is missing");
    Ok(Some(Request {
        manifest: manifest.ok_or_else(|| missing("--manifest"))?,
        key: key.ok_or_else(|| missing("--key"))?,
        disk: disk.ok_or_else(|| missing("--disk"))?,
        verify,
        options,
        stall_timeout,
    }))
}

fn word<T: serde::de::DeserializeOwned>(arg: &str, value: &str) -> anyhow::Result<T> {
    serde_json::from_value(value.into())
        .map_err(|_| anyhow::anyhow!("{arg} {value}: not one of the known words"))
}

fn number(arg: &str, value: &str) -> anyhow::Result<u32> {
    match value.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => anyhow::bail!("{arg} {value}: expected a whole number from 1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anneal_protocol::agent::Delta;

    fn parsed(line: &str) -> anyhow::Result<Option<Request>> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn reads_every_argument() {
        let request = parsed(
            "--manifest m --key k --disk /dev/sda --source http://a/ --source http://b/x \
             --delta off --verify changed --memory 64 --connections 9 --stall-timeout 5 --grow STATE",
        )
        .unwrap()
        .unwrap();
        assert_eq!(request.verify, Verify::Changed);
        assert_eq!(request.options.delta, Delta::Off);
        assert_eq!(request.options.sources, ["http://a/", "http://b/x"]);
        assert_eq!(request.options.memory, Some(64));
        assert_eq!(request.options.connections, Some(9));
        assert_eq!(request.options.grow.as_deref(), Some("STATE"));
        assert_eq!(request.stall_timeout, Duration::from_secs(5));
    }

    #[test]
    fn says_what_is_wrong() {
        for (line, part) in [
            ("--manifest m --key k --disk d", "--source is missing"),
            ("--manifest m --key k --source s", "--disk is missing"),
            ("--delta maybe", "--delta maybe"),
            ("--memory 0", "--memory 0"),
            ("--frob", "--frob"),
            ("--key", "--key needs a value"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(parsed("--help").unwrap().is_none());
    }
}
