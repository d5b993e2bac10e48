//! The daemon's state in SQLite: one function per question, one file per noun.
//!
//! Owns: the connection pools, the migrations, and every SQL text of the daemon.
//!
//! Invariants: all writes go through one connection (`writer`), so a transaction never meets a
//! busy database; reads use their own pool. SQL uses `$1` placeholders so that another engine
//! can be added. No secret is stored in clear. No decision is made here.

mod api_keys;
mod attestations;
mod events;
mod facts;
mod image_care;
mod images;
mod join_tokens;
mod leases;
mod machines;
mod migrations;
mod run_machine;
mod runs;
mod tokens;
mod written;

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, Sqlite, SqlitePool, Transaction};

pub use api_keys::{ApiKeyRecord, StoredAnswer};
pub use events::{EventRow, Sighting};
pub use join_tokens::ClusterSecrets;
pub use leases::{Lease, LeaseChange, LeaseState};
pub use machines::{ApplyError, HistoryRow, MachineRow};
pub use run_machine::MachineChange;
pub use written::OnDisk;

/// Why a question to the store has no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or failed.
    #[error("database: {operation}")]
    Database {
        /// What was being done.
        operation: &'static str,
        /// The driver's word.
        #[source]
        source: sqlx::Error,
    },
    /// Stored JSON does not have the expected shape.
    #[error("database: stored {what} cannot be read")]
    Corrupt {
        /// Which value.
        what: &'static str,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Another writer was faster (optimistic lock) or a uniqueness rule was hit.
    #[error("{0}")]
    Conflict(String),
    /// What the change was planned from is not so any more; nothing was stored.
    #[error("{0}")]
    Stale(String),
    /// No such row.
    #[error("{0}")]
    NotFound(String),
}

impl StoreError {
    /// Whether there is no room, or the disk did not do it: nothing was stored, and the same may
    /// work later. Result codes 13 (`SQLITE_FULL`) and 10 (`SQLITE_IOERR`) with all their
    /// extended forms.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        let Self::Database { source, .. } = self else {
            return false;
        };
        let code = source.as_database_error().and_then(|error| error.code());
        let code = code.and_then(|code| code.parse::<u32>().ok());
        matches!(code.map(|code| code & 0xff), Some(13 | 10))
    }
}

/// Result of a question to the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Adds the operation to a driver error.
pub(crate) fn during(operation: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Database { operation, source }
}

/// Handle on the state; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) writer: SqlitePool,
    pub(crate) reader: SqlitePool,
}

impl Store {
    /// Opens or creates the database file and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A run's state must survive power loss, not only SIGKILL.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(std::time::Duration::from_secs(10));
        // SQLite ends a transaction by itself when the disk is full. The driver then still counts
        // it as open, its next one is a savepoint that is never committed, and what is written
        // beside it is lost: such a connection must not be used again.
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .after_release(move |connection, _| {
                let clean = !connection.is_in_transaction();
                Box::pin(async move { Ok(clean) })
            })
            .connect_with(options.clone())
            .await?;
        migrations::all()?.run(&writer).await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        Ok(Self { writer, reader })
    }

    /// Begins a write transaction. Do not await anything but the store while holding it.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>> {
        self.writer
            .begin()
            .await
            .map_err(during("beginning a transaction"))
    }
}
