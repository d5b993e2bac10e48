//! `{{ render('flatcar/ignition.yaml') | ignition('3.4.0') }}`: Ignition written as YAML -> JSON.
//!
//! Owns: our YAML words for Ignition (`input`, `storage`), which of them a version of the
//! specification has (`spec`), and how contents travel (`contents`).
//!
//! Invariants: pure; a key that nobody knows, or that the asked-for version does not have, is an
//! error with its line, never dropped; the same text gives the same bytes.
//!
//! Not here: what a systemd unit or a file means, and what a running Ignition does with it.
//! Source: Ignition's `docs/configuration-v3_0.md` to `configuration-v3_5.md`.

mod contents;
mod convert;
mod input;
mod place;
mod spec;
mod storage;

use minijinja::{Error, ErrorKind, State};

pub use convert::convert;
pub use spec::Spec;

/// The filter. Without a version: the newest that the image's system surely takes.
pub(super) fn filter(state: &State, text: &str, version: Option<&str>) -> Result<String, Error> {
    let fail = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let spec = match version {
        Some(version) => version.parse().map_err(fail)?,
        None => {
            let image = state.lookup("image");
            let os = image.and_then(|image| image.get_attr("os").ok());
            Spec::of_family(os.as_ref().and_then(|os| os.as_str()).unwrap_or_default())
        }
    };
    let origin = super::origin::of(state, text);
    let name = origin.as_deref().unwrap_or(state.name());
    convert(text, name, spec).map_err(|error| {
        let source = origin
            .as_deref()
            .and_then(|name| state.env().get_template(name).ok());
        fail(match source {
            Some(source) => place::in_template(&error, text, source.source()),
            None => error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests;
