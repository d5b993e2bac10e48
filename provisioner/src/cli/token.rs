//! `anneal token …`

use anneal_protocol::api::TokenView;
use clap::Subcommand;

use super::client::Client;
use super::output::{self, Format, Table, cell};

/// `anneal token …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List tokens, newest first, without the secrets
    List {
        /// How many at most.
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
}

/// Carries out `anneal token …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    let Command::List { limit } = command;
    let tokens: Vec<TokenView> = client.list(&["tokens"], &[], limit).await?;
    output::show(format, &tokens, |tokens| {
        let mut table = Table::new([
            "ID", "PURPOSE", "FOR", "MACHINE", "STATE", "CREATED", "EXPIRES", "USED", "RUN",
        ]);
        for token in tokens {
            // What a join token is for: its cluster, and what holds it.
            let join = token.join.as_ref();
            let join = join.map(|join| format!("{}: {}", join.cluster, join.why));
            table.row([
                token.id.as_str(),
                &token.purpose,
                cell(join.as_deref().or(token.subject.as_deref())),
                &token.machine,
                &token.state,
                &token.created_at,
                token.expires_at.as_deref().unwrap_or("never"),
                cell(token.used_at.as_deref()),
                &token.run,
            ]);
        }
        table.to_string()
    })
}
