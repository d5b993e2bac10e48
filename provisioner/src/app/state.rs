//! The state directory and what the daemon leaves in it for the CLI and curl on its own host.

use std::path::Path;

use anneal_protocol::api::Role;
use anyhow::Context;

use super::Shared;
use crate::clock::now;
use crate::store::ApiKeyRecord;
use crate::token;

/// Name of the API key in the context that the daemon writes for its own host.
const LOCAL_KEY: &str = "local-admin";

/// Makes the state directory, readable by its owner only.
pub(super) fn private_dir(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| {
            format!(
                "creating the state directory {}; see --state-dir",
                path.display()
            )
        })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("restricting the state directory {}", path.display()))
}

/// Writes the context with which the CLI on this host reaches the daemon. The key in it is made
/// anew when the file is missing; its digest is what the store has.
pub(super) async fn write_admin_context(shared: &Shared, server_url: &str) -> anyhow::Result<()> {
    let path = shared.settings.state_dir.join("admin.context.json");
    let kept = std::fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .and_then(|context| context["key"].as_str().map(str::to_owned));
    let known = match &kept {
        Some(key) => shared
            .store
            .api_key_by_digest(&token::digest(key))
            .await?
            .is_some(),
        None => false,
    };
    let key = match kept.filter(|_| known) {
        Some(key) => key,
        None => {
            let key = token::random_secret()?;
            let record = ApiKeyRecord {
                name: LOCAL_KEY.to_owned(),
                role: Role::Admin,
                created_at: now(),
            };
            shared
                .store
                .replace_api_key(&record, &token::digest(&key))
                .await?;
            key
        }
    };
    let context = serde_json::json!({
        "server": server_url,
        "ca": shared.pki.ca_pem(),
        "key": key,
    });
    let text = serde_json::to_string_pretty(&context)?;
    crate::pki::write_file(&path, 0o600, text.as_bytes())?;
    // For curl --cacert: public.
    let ca_path = shared.settings.state_dir.join("ca.pem");
    crate::pki::write_file(&ca_path, 0o644, shared.pki.ca_pem().as_bytes())
}
