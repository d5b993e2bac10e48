//! `anneal api-key …`

use anneal_protocol::api::{ApiKeyView, CreateApiKey, CreatedApiKey, Role};
use clap::{Subcommand, ValueEnum};

use super::client::{self, Client};
use super::output::{self, Format, Table};

/// `anneal api-key …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a key; this is the only time it is shown
    Create {
        /// A name to know it by.
        name: String,
        /// What its bearer may do.
        #[arg(long, value_enum)]
        role: RoleName,
    },
    /// List keys, without the keys
    List,
    /// Remove keys; whoever uses them is refused from then on
    Remove {
        /// Their names.
        #[arg(required = true)]
        names: Vec<String>,
    },
}

/// What the bearer of a key may do; each may do what the one before may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// Look at everything but secrets.
    Viewer,
    /// Apply inventory; provision, cancel, retry.
    Operator,
    /// Manage keys and images, remove machines.
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Viewer => Self::Viewer,
            RoleName::Operator => Self::Operator,
            RoleName::Admin => Self::Admin,
        }
    }
}

/// Carries out `anneal api-key …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Create { name, role } => {
            let request = CreateApiKey {
                name,
                role: role.into(),
            };
            let response = client.post(&["api-keys"], &request).await?;
            let key: CreatedApiKey = client::parse(response).await?;
            output::show(format, &key, |key| format!("{}\n", key.key))
        }
        Command::List => {
            let keys: Vec<ApiKeyView> = client.list(&["api-keys"], &[], usize::MAX).await?;
            output::show(format, &keys, |keys| {
                let mut table = Table::new(["NAME", "ROLE", "CREATED"]);
                for key in keys {
                    let role = format!("{:?}", key.role).to_lowercase();
                    table.row([key.name.as_str(), &role, &key.created_at]);
                }
                table.to_string()
            })
        }
        Command::Remove { names } => {
            for name in names {
                client.delete(&["api-keys", &name]).await?;
                output::print(&format!("{name} removed\n"))?;
            }
            Ok(())
        }
    }
}
