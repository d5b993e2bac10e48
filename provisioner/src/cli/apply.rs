//! `anneal apply`: inventory files to the daemon.
//!
//! Files are read and checked here first, so that mistakes are told without a daemon, and
//! relative paths get their meaning from the place of the file.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anneal_protocol::api::{ApplyResult, Change, InventoryFile, InventoryFiles};
use anyhow::{Context as _, bail};

use super::client::{self, Client};
use super::output::{self, Format};
use crate::machine::file;

/// What to apply.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Inventory files; a directory means its *.yaml and *.yml, `-` standard input
    #[arg(short, long = "file", value_name = "FILE|DIR|-", required = true, num_args = 1..)]
    file: Vec<PathBuf>,
    /// Only print what would change
    #[arg(long)]
    dry_run: bool,
}

/// Carries out `anneal apply`. All files are applied, or none.
///
/// # Errors
/// When a file is wrong, with its place, or the daemon refuses.
pub async fn apply(client: Client, args: Args, format: Format) -> anyhow::Result<()> {
    let files = InventoryFiles {
        files: read_all(&args.file)?,
    };
    let dry_run = if args.dry_run { "true" } else { "false" };
    let response = client
        .post_file(
            &["inventory"],
            &[("dry_run", dry_run)],
            "application/json",
            "inventory",
            serde_json::to_string(&files)?,
        )
        .await?;
    let result: ApplyResult = client::parse(response).await?;
    output::show(format, &result, text)
}

/// Reads and checks all files before anything is sent.
pub(super) fn read_all(paths: &[PathBuf]) -> anyhow::Result<Vec<InventoryFile>> {
    let mut files = Vec::new();
    let mut described: HashMap<String, String> = HashMap::new();
    for path in expand(paths)? {
        let (name, text, directory) = read(&path)?;
        let inventory = file::parse(&text, &name)?;
        for machine in &inventory.machines {
            let machine = &machine.machine.name;
            if let Some(first) = described.insert(machine.clone(), name.clone()) {
                bail!("machine {machine} is described in {first} and in {name}: keep one");
            }
        }
        let text = file::with_absolute_paths(&text, &inventory, &directory);
        files.push(InventoryFile { name, text });
    }
    Ok(files)
}

fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let doing = || format!("listing {}", path.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).with_context(doing)? {
            let file = entry.with_context(doing)?.path();
            if file
                .extension()
                .is_some_and(|ext| ext == "yaml" || ext == "yml")
            {
                found.push(file);
            }
        }
        if found.is_empty() {
            bail!("{} has no *.yaml or *.yml file", path.display());
        }
        found.sort();
        files.extend(found);
    }
    Ok(files)
}

/// Name, text, and the directory that relative paths are meant in.
fn read(path: &Path) -> anyhow::Result<(String, String, PathBuf)> {
    if path == Path::new("-") {
        let text = std::io::read_to_string(std::io::stdin()).context("reading standard input")?;
        return Ok(("stdin".to_owned(), text, std::env::current_dir()?));
    }
    let doing = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(path).with_context(doing)?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let directory = std::path::absolute(parent.join(".")).with_context(doing)?;
    Ok((path.to_string_lossy().into_owned(), text, directory))
}

fn text(result: &ApplyResult) -> String {
    let mut text = String::new();
    for change in &result.changes {
        text.push_str(&format!("{}  {}\n", change.machine, change.action));
        for field in &change.fields {
            let side =
                |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
            text.push_str(&format!(
                "    {}: {} -> {}\n",
                field.field,
                side(&field.before),
                side(&field.after)
            ));
        }
    }
    text + &summary(result)
}

fn summary(result: &ApplyResult) -> String {
    let count = |action: &str| {
        let same = |change: &&Change| change.action == action;
        result.changes.iter().filter(same).count()
    };
    let (created, updated, same) = (count("create"), count("update"), count("unchanged"));
    let end = if result.dry_run {
        " (dry run: nothing was stored)"
    } else {
        ""
    };
    format!("{created} created, {updated} updated, {same} unchanged{end}\n")
}
