//! Why a template has no text: file, line, column, and the variable that is missing.

use std::fmt;
use std::ops::Range;

use minijinja::{Error, ErrorKind};

/// Why a template has no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct RenderError {
    /// Template, or the place of the text that was rendered.
    pub file: String,
    /// Line in it, from 1; 0 when unknown.
    pub line: usize,
    /// Column in the line, from 1; 0 when unknown.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for RenderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            line,
            column,
            message,
        } = self;
        match column {
            0 => write!(f, "{file}:{line}: {message}"),
            _ => write!(f, "{file}:{line}:{column}: {message}"),
        }
    }
}

impl RenderError {
    /// About a whole file or text.
    pub(super) fn new(file: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            message: message.into(),
        }
    }

    /// About a template; `file` names it when the engine does not.
    pub(super) fn from_engine(error: &Error, file: &str) -> Self {
        let error = cause(error);
        let source = error.template_source().unwrap_or_default();
        let range = error.range().map(|range| filtered(source, range));
        let start = range.as_ref().map(|range| range.start);
        let what = range.and_then(|range| source.get(range)).map(str::trim);
        let mut message = match (error.detail(), what) {
            (Some(detail), _) => format!("{}: {detail}", error.kind()),
            // The engine knows where, but not what it is called.
            (None, Some(what)) if error.kind() == ErrorKind::UndefinedError => {
                format!("{}: `{what}`", error.kind())
            }
            _ => error.kind().to_string(),
        };
        if error.kind() == ErrorKind::OutOfFuel {
            message = "the template does too much work: does a loop end?".to_owned();
        }
        Self {
            // A sole expression has no name of its own.
            file: error
                .name()
                .filter(|name| *name != "<expression>")
                .unwrap_or(file)
                .to_owned(),
            line: error.line().unwrap_or(0),
            column: start.map_or(0, |start| column(source, start)),
            message,
        }
    }

    /// About a text at a place that has its own line: columns in it would mislead.
    pub(super) fn in_text(error: &Error, place: &str) -> Self {
        let mut error = Self::from_engine(error, place);
        if error.file == place {
            error.column = 0;
        }
        error
    }
}

/// Where a filter refuses a value, the engine says where the filter is: what went into it is wanted.
fn filtered(source: &str, range: Range<usize>) -> Range<usize> {
    let before = source.get(..range.start).unwrap_or_default().trim_end();
    let Some(value) = before.strip_suffix('|') else {
        return range;
    };
    let opened = value.rfind("{{").max(value.rfind("{%"));
    let Some(value) = opened.map(|at| &value[at + 2..]) else {
        return range;
    };
    let end = before.len() - 1;
    let start = end - value.trim_start_matches('-').trim_start().len();
    start..end
}

/// What went wrong in an imported template, not that importing it went wrong.
fn cause(error: &Error) -> &Error {
    let mut error = error;
    while error.kind() == ErrorKind::BadInclude
        && let Some(inner) = std::error::Error::source(error)
        && let Some(inner) = inner.downcast_ref::<Error>()
    {
        error = inner;
    }
    error
}

/// Column of a byte, from 1, in characters; 0 when it is not in the text.
fn column(source: &str, start: usize) -> usize {
    let Some(before) = source.get(..start).filter(|_| !source.is_empty()) else {
        return 0;
    };
    let line = before.rsplit('\n').next().unwrap_or_default();
    line.chars().count() + 1
}
