//! What a machine would get, and whether its readers would take it.

use serde::{Deserialize, Serialize};

use super::PlannedStep;

/// A document that a machine would fetch by a config URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenderedDocument {
    /// What the URL is for: a template, or a folder of them with a slash at its end.
    pub subject: String,
    /// Over plain HTTP.
    pub plain: bool,
    /// Template that the document is made from.
    pub template: String,
    /// Its text.
    pub text: String,
}

/// Every text that a machine would get. Nothing was made, stored or touched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RenderView {
    /// Machine.
    pub machine: String,
    /// Workflow.
    pub workflow: String,
    /// Image, `name@version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Family of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Kernel arguments of the agent, as the boot script would hand them over; none when no step
    /// boots it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_arguments: Option<String>,
    /// The steps with their parameters, texts included.
    pub steps: Vec<PlannedStep>,
    /// The documents behind config URLs.
    pub documents: Vec<RenderedDocument>,
    /// What to know before saying yes.
    pub warnings: Vec<String>,
}

/// Whether something was checked, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// Checked, and found right.
    Passed,
    /// Checked, and found wrong.
    Failed,
    /// Not checked; `detail` says why.
    NotRun,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckView {
    /// What checked: `templates`, `boundary`, `ignition-validate`, `cloud-init schema`, …
    pub check: String,
    /// What was checked.
    pub subject: String,
    /// How it ended.
    pub outcome: CheckOutcome,
    /// What is wrong, or why it could not run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// All checks of what a machine would get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ValidateView {
    /// Machine.
    pub machine: String,
    /// No check failed.
    pub valid: bool,
    /// The checks, in the order in which they ran.
    pub checks: Vec<CheckView>,
}
