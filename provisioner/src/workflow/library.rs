//! The workflows that can be named: those of the configured folder, then the built-in ones.

use std::path::{Path, PathBuf};

use super::plan::{self, Workflow};
use crate::render::{Renderer, data};
use crate::yaml::YamlError;

/// Workflow of a machine that names none.
pub const DEFAULT: &str = "install-image";

/// Where workflows come from. Files are read when a run is made, so an edit needs no restart.
#[derive(Debug, Clone)]
pub struct Library {
    folder: Option<PathBuf>,
}

/// Why there is no such workflow.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Nobody wrote it.
    #[error("there is no workflow `{name}`; there are: {known}")]
    NotFound {
        /// Wanted.
        name: String,
        /// All names.
        known: String,
    },
    /// Its file cannot be read.
    #[error("workflow file {} cannot be read", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is wrong.
    #[error("{0}")]
    Invalid(YamlError),
}

impl Library {
    /// With the files of `folder` before the built-in ones.
    #[must_use]
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// All names, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = data::WORKFLOWS
            .iter()
            .map(|(file, _)| file.trim_end_matches(".yaml").to_owned())
            .collect();
        let entries = self.folder.as_deref().map(std::fs::read_dir);
        for entry in entries.into_iter().flatten().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                names.extend(
                    path.file_stem()
                        .map(|stem| stem.to_string_lossy().into_owned()),
                );
            }
        }
        names.sort();
        names.dedup();
        names
    }

    /// Reads and validates a workflow.
    ///
    /// # Errors
    /// When there is none with this name, or it is wrong.
    pub fn load(&self, name: &str, renderer: &Renderer) -> Result<Workflow, LibraryError> {
        let (text, file) = self.text(name)?;
        plan::parse(&text, &file, renderer).map_err(LibraryError::Invalid)
    }

    fn text(&self, name: &str) -> Result<(String, String), LibraryError> {
        let not_found = || LibraryError::NotFound {
            name: name.to_owned(),
            known: self.names().join(", "),
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(not_found());
        }
        let file = format!("{name}.yaml");
        if let Some(path) = self
            .folder
            .as_deref()
            .map(|folder: &Path| folder.join(&file))
        {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok((text, path.display().to_string())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(LibraryError::Read { path, source }),
            }
        }
        let built_in = data::WORKFLOWS.iter().find(|(known, _)| *known == file);
        built_in
            .map(|(_, text)| ((*text).to_owned(), format!("workflows/{file}")))
            .ok_or_else(not_found)
    }
}
