//! `anneal event …`

use anneal_protocol::api::EventView;
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;

use super::client::{Client, Unreachable};
use super::output::{self, Format, cell, printable};
use super::{sse, time};

/// `anneal event …`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List what happened, oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// How many at most.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Print what happens as it happens, until interrupted
    Follow {
        #[command(flatten)]
        which: Which,
    },
}

/// Which events.
#[derive(Debug, Args)]
pub struct Which {
    /// Only of this machine.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Only of this run.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
    /// Only after the event with this number.
    #[arg(long, value_name = "NUMBER")]
    after: Option<i64>,
}

impl Which {
    fn query(&self) -> Vec<(&str, &str)> {
        let machine = self.machine.as_deref().map(|name| ("machine", name));
        let run = self.run.as_deref().map(|id| ("run", id));
        machine.into_iter().chain(run).collect()
    }
}

/// Carries out `anneal event …`.
///
/// # Errors
/// When the daemon refuses or cannot be reached.
pub async fn run(client: Client, command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::List { which, limit } => {
            let after = which.after.unwrap_or(0).to_string();
            let mut query = which.query();
            query.push(("after", &after));
            let events: Vec<EventView> = client.list(&["event-log"], &query, limit).await?;
            output::show(format, &events, |events| events.iter().map(line).collect())
        }
        Command::Follow { which } => follow(&client, &which, format).await,
    }
}

/// Prints events for ever; a connection that breaks is resumed after the last event.
async fn follow(client: &Client, which: &Which, format: Format) -> anyhow::Result<()> {
    let mut last = which.after;
    let mut tries = 0;
    // A daemon that was never reached is an error at once.
    let mut response = client.events(&which.query(), last).await?;
    loop {
        let mut bytes = response.bytes_stream();
        let mut parser = sse::Parser::default();
        while let Some(Ok(part)) = bytes.next().await {
            tries = 0;
            for message in parser.feed(&part)? {
                let event: EventView = serde_json::from_str(&message.data)?;
                last = if event.id > 0 { Some(event.id) } else { last };
                output::show_one(format, &event, line)?;
            }
        }
        response = loop {
            tokio::time::sleep(time::backoff(tries)).await;
            tries += 1;
            match client.events(&which.query(), last).await {
                Err(error) if error.downcast_ref::<Unreachable>().is_some() => {}
                other => break other?,
            }
        };
    }
}

fn line(event: &EventView) -> String {
    format!(
        "{}  {:<10}  {:<18}  {}\n",
        time::clock(&event.at),
        cell(event.machine.as_deref()),
        event.kind,
        printable(&event.message)
    )
}
