//! Which template a text came from, as long as one rendering lasts: filters that refuse a text
//! can then name its file.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use minijinja::State;
use minijinja::value::{Object, Value};

/// Variable that carries it; not for templates.
pub(super) const ORIGINS: &str = "_origins";

/// Template by text.
#[derive(Default)]
struct Origins(Mutex<HashMap<String, String>>);

// Not derived: it would print texts, which hold secrets.
impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origins")
    }
}

impl Object for Origins {}

/// An empty one.
pub(super) fn value() -> Value {
    Value::from_object(Origins::default())
}

fn with<T>(state: &State, look: impl FnOnce(&mut HashMap<String, String>) -> T) -> Option<T> {
    let value = state.lookup(ORIGINS)?;
    let origins = value.downcast_object_ref::<Origins>()?;
    let mut known = origins.0.lock().unwrap_or_else(PoisonError::into_inner);
    Some(look(&mut known))
}

/// Notes that `template` gave `text`.
pub(super) fn note(state: &State, template: &str, text: &str) {
    with(state, |known| {
        known.insert(text.to_owned(), template.to_owned())
    });
}

/// The template that gave `text`, if `render` did in this rendering.
pub(super) fn of(state: &State, text: &str) -> Option<String> {
    with(state, |known| known.get(text).cloned()).flatten()
}
