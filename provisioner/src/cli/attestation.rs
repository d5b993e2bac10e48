//! `anneal attestation …`

use std::path::{Path, PathBuf};

use anneal_image::PublicKey;
use anneal_protocol::audit::{AttestationKey, AttestationView};
use anyhow::Context as _;
use clap::Subcommand;
use serde_json::Value;

use super::client::Client;
use super::output::{self, Format, Table, cell, printable};
use crate::attestation::Envelope;
use crate::attestation::dsse::MAX_ENVELOPE;

/// `anneal attestation …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List attestations, newest first
    List {
        /// Only about this machine.
        #[arg(long, value_name = "NAME")]
        machine: Option<String>,
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show the statement of an attestation
    Show {
        /// Its id.
        id: String,
    },
    /// Print the signed envelope (DSSE), for those who verify it elsewhere
    Export {
        /// Its id.
        id: String,
    },
    /// Print the public keys that verify this daemon's attestations (PEM), the present one first
    Keys,
    /// Verify an exported envelope; needs no daemon
    Verify(Verify),
}

/// What to verify with which keys.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Exported envelope
    file: PathBuf,
    /// File of public keys (PEM) to trust; may be given several times
    #[arg(long, required = true, value_name = "FILE")]
    key: Vec<PathBuf>,
}

/// Carries out what needs the daemon.
///
/// # Errors
/// When the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List { machine, limit } => {
            let query: Vec<_> = machine
                .iter()
                .map(|name| ("machine", name.as_str()))
                .collect();
            let found: Vec<AttestationView> = client.list(&["attestations"], &query, limit).await?;
            output::show(format, &found, |found| list(found))
        }
        Command::Show { id } => {
            let found: AttestationView = client.get(&["attestations", &id], &[]).await?;
            let envelope = envelope(&found)?;
            let statement = unverified(&envelope)?;
            output::show(format, &statement, show)
        }
        Command::Export { id } => {
            let found: AttestationView = client.get(&["attestations", &id], &[]).await?;
            let text = serde_json::to_string(&envelope(&found)?)?;
            output::print(&format!("{text}\n"))
        }
        Command::Keys => {
            let keys: Vec<AttestationKey> =
                client.list(&["attestation-keys"], &[], usize::MAX).await?;
            output::show(format, &keys, |keys| {
                let pems = keys.iter().map(|key| key.public_key.as_str());
                pems.collect::<String>()
            })
        }
        Command::Verify(args) => verify(&args, format),
    }
}

/// `anneal attestation verify`: offline.
///
/// # Errors
/// When a file cannot be read, or no given key signed the envelope.
pub fn verify(args: &Verify, format: Format) -> anyhow::Result<()> {
    let mut keys = Vec::new();
    for path in &args.key {
        keys.extend(read_keys(path)?);
    }
    let text = read(&args.file)?;
    let file = args.file.display();
    let envelope = Envelope::parse(&text).with_context(|| format!("reading {file}"))?;
    let (payload, key) = envelope
        .open(&keys)
        .with_context(|| format!("{file} is not verified"))?;
    let statement: Value = serde_json::from_slice(&payload)
        .with_context(|| format!("{file}: the signed statement is not json"))?;
    output::show(format, &statement, |statement| {
        format!("verified: signed by key {}\n{}", key.id(), show(statement))
    })
}

fn read_keys(path: &Path) -> anyhow::Result<Vec<PublicKey>> {
    const END: &str = "-----END PUBLIC KEY-----";
    let text = String::from_utf8(read(path)?).unwrap_or_default();
    let pems = text.split_inclusive(END).filter(|pem| pem.ends_with(END));
    let keys: Result<Vec<_>, _> = pems.map(|pem| PublicKey::from_pem(pem.trim())).collect();
    match keys {
        Ok(keys) if !keys.is_empty() => Ok(keys),
        _ => anyhow::bail!(
            "reading {}: expected ed25519 public keys in pem, as `anneal attestation keys` prints them",
            path.display()
        ),
    }
}

/// A file of bounded size: what is verified may come from anybody.
fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_ENVELOPE as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(bytes)
}

fn envelope(view: &AttestationView) -> anyhow::Result<Envelope> {
    let value = view.envelope.clone().unwrap_or_default();
    serde_json::from_value(value).context("the daemon's answer has no envelope")
}

/// The statement as the daemon sent it, over TLS: its signature matters to those who get the
/// file from elsewhere.
fn unverified(envelope: &Envelope) -> anyhow::Result<Value> {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::STANDARD
        .decode(&envelope.payload)
        .context("the envelope's payload is not base64")?;
    serde_json::from_slice(&payload).context("the statement is not json")
}

fn list(found: &[AttestationView]) -> String {
    let mut table = Table::new(["ID", "KIND", "MACHINE", "SIGNED", "SUMMARY", "RUN"]);
    for item in found {
        table.row([
            item.id.as_str(),
            &item.kind,
            &item.machine,
            &item.created_at,
            &printable(&item.summary),
            &item.run,
        ]);
    }
    table.to_string()
}

/// A statement as people read it.
pub(super) fn show(statement: &Value) -> String {
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    let predicate = &statement["predicate"];
    let mut table = Table::plain();
    let subject = &statement["subject"][0];
    table.row(["machine", &text(&predicate["machine"]["name"])]);
    table.row(["image", &text(&subject["name"])]);
    table.row(["sha256", &text(&subject["digest"]["sha256"])]);
    table.row(["run", &text(&predicate["run"]["id"])]);
    table.row(["by", &text(&predicate["run"]["requested_by"])]);
    table.row(["finished", &text(&predicate["run"]["finished_at"])]);
    let mut shown = table.to_string();
    match serde_json::from_value(predicate["audit"].clone()) {
        Ok(result) => shown.push_str(&format!("\n{}", super::audit::show(&result))),
        Err(_) => {
            let written = &predicate["written"];
            let disk = text(&written["disk"]);
            let serial = written["serial"].as_str().map(printable);
            let serial = cell(serial.as_deref());
            shown.push_str(&format!("written to {disk}, serial {serial}\n"));
        }
    }
    shown
}
