//! From an action to the function that carries it out.

use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::agent::{AgentAction, FailureCode, Inventory, Order, Outcome, StepFailure};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::boot::{self, Departure};
use crate::client::{CallError, Client};
use crate::cmdline::Options;
use crate::disk::{audit, boot_arguments, files, stream, talos_meta, wipe};
use crate::{evidence, inventory, report};

/// What every step may use.
#[derive(Debug, Clone)]
pub struct Context {
    /// How the agent runs.
    pub options: Arc<Options>,
    /// The daemon.
    pub client: Client,
    /// Keys, one of which must have signed an image's manifest, hex.
    pub image_keys: Vec<String>,
    /// Most memory for an image on its way, in bytes.
    pub memory: u64,
}

impl Context {
    /// The hardware, read anew.
    ///
    /// # Errors
    /// When the thread that reads it dies.
    pub async fn inventory(&self) -> anyhow::Result<Inventory> {
        let options = self.options.clone();
        Ok(tokio::task::spawn_blocking(move || inventory::collect(&options)).await?)
    }
}

/// How a step ended, and whether the agent now leaves.
#[derive(Debug)]
pub struct Done {
    /// For the daemon.
    pub outcome: Outcome,
    /// To be done once the daemon has acknowledged the outcome.
    pub departure: Option<Departure>,
}

/// A failure that trying again cannot cure.
pub fn fail(code: FailureCode, message: impl Into<String>) -> StepFailure {
    StepFailure {
        code,
        message: message.into(),
        retryable: false,
    }
}

/// A failure that may be gone next time.
pub fn fail_for_now(code: FailureCode, message: impl Into<String>) -> StepFailure {
    StepFailure {
        retryable: true,
        ..fail(code, message)
    }
}

impl From<CallError> for StepFailure {
    fn from(error: CallError) -> Self {
        fail_for_now(FailureCode::Server, error.to_string())
    }
}

/// Runs a step under its deadline while reports flow; stops it when the daemon abandons it.
pub async fn run_reported(context: &Context, boot_id: &str, order: &Order) -> Done {
    let cancel = CancellationToken::new();
    let stop_pump = CancellationToken::new();
    let pump = tokio::spawn(report::pump(
        context.client.clone(),
        boot_id.to_owned(),
        cancel.clone(),
        stop_pump.clone(),
    ));
    let deadline = tokio::time::sleep(Duration::from_millis(order.timeout_ms));
    let work = run(context, &order.action, &cancel);
    tokio::pin!(deadline, work);
    let outcome = tokio::select! {
        outcome = &mut work => outcome,
        () = &mut deadline => {
            cancel.cancel();
            // Ends at its next look at the token, with the disk in a known state.
            work.await
        }
    };
    stop_pump.cancel();
    // It ends by itself; a panic in it must not take the result along.
    let _ = pump.await;
    match outcome {
        Ok((outcome, departure)) => Done { outcome, departure },
        Err(failure) => Done {
            outcome: Outcome::Failed(failure),
            departure: None,
        },
    }
}

type Ended = Result<(Outcome, Option<Departure>), StepFailure>;

async fn run(context: &Context, action: &AgentAction, cancel: &CancellationToken) -> Ended {
    let options = context.options.clone();
    let action = action.clone();
    match action {
        AgentAction::Inventory => {
            succeeded(blocking(move || Ok(inventory::collect(&options))).await?)
        }
        AgentAction::CollectEvidence => {
            succeeded(blocking(move || Ok(evidence::collect(&options))).await?)
        }
        AgentAction::WipeDisk { disk } => {
            let cancel = cancel.clone();
            succeeded(blocking(move || wipe::run(&options, &disk, &cancel)).await?)
        }
        AgentAction::StreamImage {
            image,
            disk,
            verify,
            stall_timeout_ms,
            options,
        } => {
            let how = stream::How {
                verify,
                stall_timeout: Duration::from_millis(stall_timeout_ms),
                options,
            };
            succeeded(stream::run(context, &image, disk, how, cancel).await?)
        }
        AgentAction::AuditDisk { image, disk } => {
            succeeded(audit::run(context, &image, disk, cancel).await?)
        }
        AgentAction::WriteFile { .. } => {
            succeeded(blocking(move || files::write(&options, &action)).await?)
        }
        AgentAction::BootArguments { .. } => {
            let cancel = cancel.clone();
            succeeded(blocking(move || boot_arguments::edit(&options, &action, &cancel)).await?)
        }
        AgentAction::WriteTalosMeta { .. } => {
            let cancel = cancel.clone();
            succeeded(blocking(move || talos_meta::write(&options, &action, &cancel)).await?)
        }
        AgentAction::Kexec { .. } => {
            boot::allowed(&options)?;
            blocking(move || files::load_kernel(&options, &action)).await?;
            // Reading it may have taken long.
            still_wanted(cancel)?;
            leaving(Departure::Kexec)
        }
        AgentAction::Reboot => {
            boot::allowed(&options)?;
            leaving(Departure::Reboot)
        }
        AgentAction::PowerOff => {
            boot::allowed(&options)?;
            leaving(Departure::PowerOff)
        }
    }
}

fn succeeded<T: Serialize>(output: T) -> Ended {
    let output = serde_json::to_value(output)
        .map_err(|e| fail(FailureCode::Internal, format!("result is not JSON: {e}")))?;
    Ok((Outcome::Succeeded { output }, None))
}

fn leaving(departure: Departure) -> Ended {
    Ok((Outcome::Leaving, Some(departure)))
}

/// Runs what blocks on a thread of its own.
///
/// # Errors
/// The work's own, or `Internal` when it panics.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StepFailure> + Send + 'static,
) -> Result<T, StepFailure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(fail_for_now(
            FailureCode::Internal,
            format!("step died: {e}"),
        ))
    })
}

/// The end of a step that is no longer wanted or out of time.
pub fn abandoned() -> StepFailure {
    fail_for_now(
        FailureCode::Abandoned,
        "stopped: the server abandoned the step or its deadline passed",
    )
}

/// Stops a step that is no longer wanted.
///
/// # Errors
/// [`abandoned`] once the token is cancelled.
pub fn still_wanted(cancel: &CancellationToken) -> Result<(), StepFailure> {
    if cancel.is_cancelled() {
        return Err(abandoned());
    }
    Ok(())
}
