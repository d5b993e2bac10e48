//! Facts about machines that servers learn: hardware, and what the node says of itself.

use anneal_protocol::agent::Inventory;
use anneal_protocol::api::NodeReport;
use serde::Serialize;

use super::{Result, Store, StoreError, during};

impl Store {
    /// Keeps the hardware that the agent reported.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_inventory(&self, machine: &str, inventory: &Inventory) -> Result<()> {
        let text = json("inventory", inventory)?;
        sqlx::query("UPDATE machines SET inventory = $2 WHERE name = $1")
            .bind(machine)
            .bind(text)
            .execute(&self.writer)
            .await
            .map(drop)
            .map_err(during("storing a hardware report"))
    }

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
