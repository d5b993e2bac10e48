//! Contexts: how to reach a daemon. A context is a small JSON file with the server's URL, its CA
//! certificate and an API key, readable by its owner only.
//!
//! `anneal serve` writes one for its own host; others are in the user's configuration directory.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use super::output::{self, Format, Table};
use crate::machine::check;

/// The context that the daemon writes on its own host.
const LOCAL: &str = "/var/lib/anneal/admin.context.json";

/// How to reach a daemon.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// URL, `https://10.77.0.1:8443`.
    pub server: String,
    /// Certificate of its CA, PEM: the only one that is trusted.
    pub ca: String,
    /// API key.
    pub key: String,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("Context")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// `anneal context …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List contexts; the current one has a `*`
    List,
    /// Use this context from now on
    Use {
        /// Its name.
        name: String,
    },
    /// Keep a context under a name
    Add {
        /// Its name.
        name: String,
        /// A context file to copy, such as the daemon's admin.context.json; `-` reads it from
        /// standard input.
        #[arg(long, value_name = "FILE", required_unless_present_all = ["server", "ca", "key_file"])]
        file: Option<PathBuf>,
        /// URL of the daemon; wins over the file's.
        #[arg(long, value_name = "URL")]
        server: Option<String>,
        /// The daemon's CA certificate, PEM; wins over the file's.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
        /// A file that holds the API key; wins over the file's.
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    current: bool,
    server: String,
}

/// Carries out `anneal context …`.
///
/// # Errors
/// When a file cannot be read or written, or is not a context.
pub fn run(command: Command, format: Format) -> anyhow::Result<()> {
    let directory = directory()?;
    match command {
        Command::List => list(&directory, format),
        Command::Use { name } => {
            read(&path_of(&directory, &name)?)?;
            write(&directory.join("current"), name.as_bytes())
        }
        Command::Add {
            name,
            file,
            server,
            ca,
            key_file,
        } => {
            let context = assemble(file.as_deref(), server, ca.as_deref(), key_file.as_deref())?;
            super::client::Client::new(&context)?;
            let text = serde_json::to_vec_pretty(&context)?;
            write(&path_of(&directory, &name)?, &text)?;
            if current(&directory).is_none() {
                write(&directory.join("current"), name.as_bytes())?;
            }
            Ok(())
        }
    }
}

/// Finds the context to use: the one asked for (a file, or the name of a kept one), else the
/// current one, else the one that the daemon wrote on this host.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn find(asked: Option<&str>) -> anyhow::Result<Context> {
    if let Some(asked) = asked {
        let path = Path::new(asked);
        if asked.contains('/') || path.exists() {
            return read(path);
        }
        return read(&path_of(&directory()?, asked)?);
    }
    if let Ok(directory) = directory()
        && let Some(name) = current(&directory)
    {
        return read(&path_of(&directory, &name)?);
    }
    if !matches!(Path::new(LOCAL).try_exists(), Ok(false)) {
        return read(Path::new(LOCAL)).with_context(|| {
            "no context is chosen (`anneal context use NAME`), so the one of this host's daemon \
             was tried"
        });
    }
    bail!(
        "no daemon is known here: run `anneal serve` on this host, or copy its \
         admin.context.json and run `anneal context add NAME --file FILE`"
    )
}

fn list(directory: &Path, format: Format) -> anyhow::Result<()> {
    let current = current(directory);
    let mut contexts = Vec::new();
    let entries = match std::fs::read_dir(directory.join("contexts")) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).context("listing contexts"),
    };
    for entry in entries {
        let path = entry.path();
        if let Some(name) = path
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned())
        {
            let server = read(&path)?.server;
            contexts.push(Listed {
                current: current.as_deref() == Some(&name),
                name,
                server,
            });
        }
    }
    contexts.sort_by(|a, b| a.name.cmp(&b.name));
    output::show(format, &contexts, |contexts| {
        let mut table = Table::new(["", "NAME", "SERVER"]);
        for context in contexts {
            let mark = if context.current { "*" } else { "" };
            table.row([mark, &context.name, &context.server]);
        }
        table.to_string()
    })
}

fn assemble(
    file: Option<&Path>,
    server: Option<String>,
    ca: Option<&Path>,
    key_file: Option<&Path>,
) -> anyhow::Result<Context> {
    let base = match file {
        Some(path) if path == Path::new("-") => {
            let text = std::io::read_to_string(std::io::stdin())?;
            serde_json::from_str(&text).context("standard input is not a context file")?
        }
        Some(path) => read(path)?,
        None => Context {
            server: String::new(),
            ca: String::new(),
            key: String::new(),
        },
    };
    let text = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
    };
    Ok(Context {
        server: server.unwrap_or(base.server),
        ca: ca.map(text).transpose()?.unwrap_or(base.ca),
        key: key_file
            .map(text)
            .transpose()?
            .map_or(base.key, |key| key.trim().to_owned()),
    })
}

fn read(path: &Path) -> anyhow::Result<Context> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the context {}", path.display()))?;
    // The parser's own words could repeat a part of the key.
    serde_json::from_str(&text).map_err(|error| {
        anyhow::anyhow!(
            "{}:{}:{}: not a context file: expected JSON with server, ca and key",
            path.display(),
            error.line(),
            error.column()
        )
    })
}

fn directory() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".config")))
        .map(|config| config.join("anneal"))
        .context("neither XDG_CONFIG_HOME nor HOME is set: name a file with --context")
}

fn path_of(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    check::name(name).map_err(anyhow::Error::msg)?;
    Ok(directory.join("contexts").join(format!("{name}.json")))
}

fn current(directory: &Path) -> Option<String> {
    let name = std::fs::read_to_string(directory.join("current")).ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Replaces a file that only its owner can read.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let doing = || format!("writing {}", path.display());
    let parent = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).with_context(doing)?;
    let next = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .with_context(doing)?;
    file.write_all(bytes).with_context(doing)?;
    std::fs::rename(&next, path).with_context(doing)
}
