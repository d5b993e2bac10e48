//! The workflow file: YAML text -> raw types that remember their places.
//!
//! Not here: what the words mean (`plan`).

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::yaml::{self, Spanned, YamlError};

/// A workflow as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Name.
    pub name: Spanned<String>,
    /// One sentence for lists.
    #[serde(default)]
    pub description: Option<String>,
    /// Families of systems that it is for; all when absent.
    #[serde(default)]
    pub os: Vec<Spanned<String>>,
    /// Of the whole run.
    #[serde(default)]
    pub timeout: Option<Spanned<String>>,
    /// Steps.
    pub steps: Spanned<Vec<FileStep>>,
    /// Steps of a run that failed.
    #[serde(default)]
    pub on_failure: Vec<FileStep>,
}

/// A step as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStep {
    /// Name; the action's word when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Action.
    pub uses: Spanned<String>,
    /// Parameters.
    #[serde(default)]
    pub with: Params,
    /// Condition.
    #[serde(default)]
    pub when: Option<Spanned<String>>,
    /// Of one attempt.
    #[serde(default)]
    pub timeout: Option<Spanned<String>>,
    /// Further attempts.
    #[serde(default)]
    pub retries: Option<u32>,
    /// Pause before the second attempt; doubles with each further one.
    #[serde(default)]
    pub retry_delay: Option<Spanned<String>>,
    /// Go on when it fails.
    #[serde(default)]
    pub continue_on_error: bool,
}

/// Parameters in written order, with their places.
#[derive(Debug, Default)]
pub struct Params(pub Vec<(String, Spanned<serde_json::Value>)>);

impl<'de> Deserialize<'de> for Params {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Params;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Params, A::Error> {
                let mut params = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    params.push(entry);
                }
                Ok(Params(params))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// Reads a workflow file.
///
/// # Errors
/// When it is not YAML or has not the shape of a workflow; names file, line and column.
pub fn parse(text: &str, file: &str) -> Result<File, YamlError> {
    yaml::parse(text, file)
}
