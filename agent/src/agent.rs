//! The agent's life: network, clock, enrolment, then orders until it leaves.
//!
//! Every call may be repeated. Nothing is kept across boots: each has a fresh key and boot id.

use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::agent::{EnrollRequest, Next, NextRequest, Order, Outcome, StepResult};
use anneal_protocol::cmdline::Boot;
use anyhow::Context as _;

use crate::boot::{self, Departure};
use crate::client::{CallError, Client, Identity, insist};
use crate::cmdline::{Options, kernel_cmdline, memory_limit};
use crate::disk;
use crate::step::{self, Context};
use crate::{inventory, net, report};

/// A daemon that restarts is back within this; the boot token is dead by then.
const ENROLL_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// Pause between questions once the run is over.
const IDLE: Duration = Duration::from_secs(30);
/// Longest pause the daemon may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Does everything. Returns when the agent has left the machine by way of `--reboot-command`;
/// as PID 1 it leaves for real.
///
/// # Errors
/// When the machine cannot be reached or the daemon refuses this boot for good.
pub fn run(options: Options) -> anyhow::Result<()> {
    let text = kernel_cmdline(&options).context("cannot read the kernel command line")?;
    let boot = Boot::parse(&text)?;
    let memory = memory_limit(&text)?;
    tracing::info!(
        machine = boot.machine,
        run = boot.run,
        server = boot.server,
        "booted"
    );
    if options.pid1 {
        disk::settle();
    }
    for line in inventory::describe(&options) {
        tracing::info!("{line}");
    }
    if !options.no_net {
        net::up(&boot)?;
        net::set_clock(boot.time_secs);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let departure = runtime.block_on(session(Arc::new(options.clone()), &boot, memory))?;
    boot::leave(&options, departure)
}

/// Enrols and carries out orders until one of them leaves the agent.
async fn session(options: Arc<Options>, boot: &Boot, memory: u64) -> anyhow::Result<Departure> {
    let boot_id = hex::encode(net::random::<16>()?);
    let (client, image_keys, run) = enroll(boot, &boot_id).await?;
    report::remember_way_out(client.clone(), &boot_id);
    let context = Context {
        options,
        client,
        image_keys,
        memory,
    };
    let mut request = NextRequest {
        run,
        boot_id: boot_id.clone(),
        inventory: Some(context.inventory().await?),
    };
    let mut last_reason = None;
    loop {
        let next = insist("ask for work", None, async || {
            context.client.next(&request).await
        })
        .await;
        request.inventory = None;
        match next.context("the server ended this boot")? {
            Next::Wait { after_ms } => {
                tokio::time::sleep(Duration::from_millis(after_ms).min(LONGEST_WAIT)).await;
            }
            Next::Finished { reason } => {
                if last_reason.as_ref() != Some(&reason) {
                    tracing::info!(reason, "the run is over; waiting for the server");
                    last_reason = Some(reason);
                }
                tokio::time::sleep(IDLE).await;
            }
            Next::Order(order) => {
                if let Some(departure) = carry_out(&context, &boot_id, *order).await {
                    return Ok(departure);
                }
            }
        }
    }
}

/// Trades the boot token for a certificate.
async fn enroll(boot: &Boot, boot_id: &str) -> anyhow::Result<(Client, Vec<String>, String)> {
    let identity = Identity::generate(&boot.machine)?;
    let request = EnrollRequest {
        token: boot.token.clone(),
        machine: boot.machine.clone(),
        csr: identity.request()?,
        mac: boot.mac,
        boot_id: boot_id.to_owned(),
        uuid: inventory::smbios_uuid(),
    };
    let pinned = Client::pinned(&boot.server, &boot.ca_sha256)?;
    let answer = insist("enroll", Some(ENROLL_PATIENCE), async || {
        pinned.enroll(&request).await
    })
    .await
    .with_context(|| format!("cannot enroll {} at {}", boot.machine, boot.server))?;
    let client = Client::enrolled(&boot.server, &boot.ca_sha256, &identity, &answer)?;
    tracing::info!(machine = boot.machine, run = answer.run, "enrolled");
    Ok((client, answer.image_keys, answer.run))
}

/// One order from start to acknowledged result. Returns how to leave, if it says so.
async fn carry_out(context: &Context, boot_id: &str, order: Order) -> Option<Departure> {
    report::begin(&order.id);
    tracing::info!(step = order.name, attempt = order.id.attempt, "begin");
    let done = step::run_reported(context, boot_id, &order).await;
    match &done.outcome {
        Outcome::Failed(failure) => tracing::error!(
            step = order.name,
            code = ?failure.code,
            "failed: {}",
            failure.message
        ),
        Outcome::Leaving => tracing::info!(step = order.name, "about to leave"),
        Outcome::Succeeded { .. } => tracing::info!(step = order.name, "done"),
    }
    let result = StepResult {
        order: order.id,
        boot_id: boot_id.to_owned(),
        outcome: done.outcome,
    };
    let sent = insist("send the result", None, async || {
        context.client.result(&result).await
    })
    .await;
    if let Err(CallError::Refused { status, reason }) = sent {
        // The attempt is over for the daemon; the next answer says what counts.
        tracing::warn!(status, reason, "the result was refused");
        return None;
    }
    done.departure
}
