//! Facts about machines that servers learn: what the node says of itself.

use anneal_protocol::api::NodeReport;
use serde::Serialize;

use super::{Result, Store, StoreError, during};

impl Store {
    /// Keeps what the installed system said when it called home.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_node_report(&self, machine: &str, report: &NodeReport) -> Result<()> {
        let text = json("node report", report)?;
        sqlx::query("UPDATE machines SET node = $2 WHERE name = $1")
            .bind(machine)
            .bind(text)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(during("storing a node's report"))
    }
}

fn json<T: Serialize>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|source| StoreError::Corrupt { what, source })
}
