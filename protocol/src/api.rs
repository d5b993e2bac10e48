//! The operator's HTTP API under `/api/v1`: what the CLI and other programs see.
//!
//! Errors are RFC 9457 problem documents ([`Problem`]) with a stable `code`. Moments are
//! RFC 3339 text, durations milliseconds, sizes bytes.

mod image;
mod ingest;
mod page;
mod proof;
mod render;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agent::{Inventory, Progress};
use crate::disk::{DiskHints, ProtectedDisk};
use crate::machine::MachineState;
use crate::node::NodeConfig;

pub use crate::node::{Bond, ExtraFile, Nic, Registry, Vlan};
pub use image::{
    AddMirror, AddedMirror, CollectRequest, CollectView, CollectedImage, ImageKeyView, ImageView,
    ResignView, VerifyView,
};
pub use ingest::{
    IngestRequest, IngestSource, IngestState, IngestView, OciSource, UploadSource, UrlSource,
};
pub use page::{
    ApiKeyPage, ClusterPage, EventPage, ImageKeyPage, ImagePage, IngestPage, MachinePage, Page,
    RunPage, TokenPage, WorkflowPage,
};
pub use proof::{Evidence, ProofRequest, ProofView};
pub use render::{CheckOutcome, CheckView, RenderView, RenderedDocument, ValidateView};

/// An error, RFC 9457 (`application/problem+json`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// URI reference that names the kind; `/problems/{code}`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short text for the kind.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable word for programs, `machine-not-found`.
    pub code: String,
    /// What happened here, and what to do next.
    pub detail: String,
}

/// A BMC as shown: the password stays where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BmcView {
    /// `redfish+https://host[:port][/redfish/v1/Systems/ID]`.
    pub url: String,
    /// User name.
    pub username: String,
    /// SHA-256 of the certificate to insist on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_sha256: Option<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MachineView {
    /// Unique name.
    pub name: String,
    /// Rack: the failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Role, free text such as `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Where it is in its life.
    pub state: MachineState,
    /// One sentence: what it waits for, since when, until when.
    pub why: String,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// Its BMC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bmc: Option<BmcView>,
    /// Which disk to install to.
    pub disk: DiskHints,
    /// Disks that are never written.
    #[serde(default)]
    pub protected_disks: Vec<ProtectedDisk>,
    /// Image it should run, `name@version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Images without proof of their publisher that it should run or that were last written to
    /// its disk, `name@version`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unproven: Vec<String>,
    /// Workflow to use when a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What the installed system is told.
    #[serde(flatten)]
    pub config: NodeConfig,
    /// The active run, or else the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What the installed system said about itself when it last phoned home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeReport>,
    /// Hardware as the agent last saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// When it was last changed, RFC 3339.
    pub updated_at: String,
}

/// What a node says about itself when it phones home.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeReport {
    /// `/etc/machine-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// `PRETTY_NAME` of os-release, or what the OS calls its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Version of the OS that runs, as its publisher counts: `VERSION_ID` of os-release, Kairos'
    /// `KAIROS_VERSION` without the `v`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Version of the image that runs, if the image carries one: `IMAGE_VERSION` of os-release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_version: Option<String>,
    /// Version that the run installed, when the node says that it runs another. The daemon's word,
    /// not the node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed_version: Option<String>,
    /// Host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Digest of the image that its configuration was made for, from the node's own copy of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// Body of `POST /machines/{name}/provision`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Default)]
#[serde(deny_unknown_fields)]
pub struct ProvisionRequest {
    /// Workflow; default: the machine's, else `install-image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<String>,
    /// Image `name@version`; default: the machine's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Only say what would be done ([`Plan`]); nothing is stored or touched.
    #[serde(default)]
    pub plan: bool,
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StepView {
    /// Position.
    pub index: u32,
    /// `main` or `on-failure`.
    pub phase: String,
    /// Name as written.
    pub name: String,
    /// Action.
    pub uses: String,
    /// `pending`, `running`, `waiting`, `leaving`, `succeeded`, `failed`, `skipped`, `cancelled`.
    pub state: String,
    /// Attempts so far.
    pub attempts: u32,
    /// Why it is in that state, one sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// First start, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// End, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// How far the current attempt is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The typed result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<serde_json::Value>,
}

/// One execution of a workflow for one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunView {
    /// Id.
    pub id: String,
    /// Machine.
    pub machine: String,
    /// Workflow name.
    pub workflow: String,
    /// Image id that the run installs, if it installs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `pending`, `running`, `failing`, `succeeded`, `failed`, `cancelled`.
    pub state: String,
    /// One sentence: what it waits for or how it ended.
    pub why: String,
    /// Who asked.
    pub requested_by: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<String>,
    /// When it fails for taking too long, RFC 3339.
    pub deadline: String,
    /// Its steps.
    pub steps: Vec<StepView>,
    /// Time spent in each phase, milliseconds, in order of occurrence: `power`, `dhcp`,
    /// `bootloader`, `agent`, `write`, `config`, `first-boot`.
    #[serde(default)]
    pub phases: Vec<PhaseView>,
}

/// Time spent in one phase of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PhaseView {
    /// Phase.
    pub name: String,
    /// Milliseconds.
    pub duration_ms: u64,
}

/// A workflow that can be named in a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WorkflowView {
    /// Name.
    pub name: String,
    /// Its steps, `name (action)`.
    pub steps: Vec<String>,
    /// Why it cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// Machine.
    pub machine: String,
    /// Workflow.
    pub workflow: String,
    /// Image id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The disk by its hints, and what is known of it from the last hardware report.
    pub disk: String,
    /// The steps, rendered, secrets redacted.
    pub steps: Vec<PlannedStep>,
    /// What to know before saying yes.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One step of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedStep {
    /// Name as written.
    pub name: String,
    /// Action.
    pub uses: String,
    /// `daemon` or `agent`.
    pub runs_on: String,
    /// Rendered parameters, secrets as `(redacted)`.
    pub with: serde_json::Value,
    /// False when `when` is already known to be false.
    pub runs: bool,
    /// Whether it writes to a disk.
    pub destructive: bool,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventView {
    /// Sequence number; `Last-Event-ID` of the stream.
    pub id: i64,
    /// RFC 3339 with milliseconds.
    pub at: String,
    /// Dotted word: `dhcp.ack`, `run.succeeded`.
    pub kind: String,
    /// Machine it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Run it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// One sentence.
    pub message: String,
    /// Details.
    #[serde(default)]
    pub data: serde_json::Value,
}

/// What only a token for joining a cluster has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinTokenView {
    /// Cluster that it lets join.
    pub cluster: String,
    /// Who made it: `kubernetes`, `exec`, `talos` or `static`.
    pub issuer: String,
    /// Its public half, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// What holds it: a step, or a config URL.
    pub why: String,
    /// When it was taken back, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Why it could not be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A cluster that machines may join, as the settings have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterView {
    /// Name.
    pub name: String,
    /// URL of its API.
    pub endpoint: String,
    /// Who makes tokens for it: `kubernetes`, `exec`, `talos` or `static`.
    pub issuer: String,
    /// How long a token lives, seconds; absent: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Whether its issuer could be asked now: `ready`, or what is missing.
    pub state: String,
    /// When its secrets were imported, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_at: Option<String>,
    /// Whose API key imported them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_by: Option<String>,
}

/// A token, without the token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenView {
    /// Id (not the secret).
    pub id: String,
    /// `boot`, `config`, `metadata`, `phone-home`, `session` or `join`.
    pub purpose: String,
    /// What a config or metadata token serves: a template, or a folder of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Machine it is bound to.
    pub machine: String,
    /// Run it is bound to.
    pub run: String,
    /// `live`, `used`, `expired` or `revoked`; of join tokens also `asked` (the issuer has not
    /// answered), `revoking` (it could not be taken back yet) and `permanent` (it never expires).
    pub state: String,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_at: Option<String>,
    /// What a join token is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinTokenView>,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApiKeyView {
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// RFC 3339.
    pub created_at: String,
}

/// Body of `POST /api-keys`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateApiKey {
    /// Unique name.
    pub name: String,
    /// What its bearer may do.
    pub role: Role,
}

/// Answer to `POST /api-keys`: the only time the key is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedApiKey {
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// The secret; send as `Authorization: Bearer …`.
    pub key: String,
}

/// Inventory files that are applied together: all of them or none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct InventoryFiles {
    /// The files, at least one.
    pub files: Vec<InventoryFile>,
}

/// An inventory file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct InventoryFile {
    /// Its name, for messages.
    pub name: String,
    /// Its text, YAML.
    pub text: String,
}

/// Result of applying inventory files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ApplyResult {
    /// Nothing was stored.
    pub dry_run: bool,
    /// What changed (or would), in file order.
    pub changes: Vec<Change>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// Machine.
    pub machine: String,
    /// `create`, `update` or `unchanged`.
    pub action: String,
    /// For an update: what differs, one entry a field.
    #[serde(default)]
    pub fields: Vec<FieldChange>,
}

/// A changed field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FieldChange {
    /// Dotted path, `nics[0].address`.
    pub field: String,
    /// Value before, as JSON text; secrets never appear.
    pub before: Option<String>,
    /// Value after.
    pub after: Option<String>,
}

/// What the bearer of an API key may do; each role includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read everything but secrets.
    Viewer,
    /// Provision, cancel, retry, apply inventory.
    Operator,
    /// Manage keys and images, remove machines.
    Admin,
}
