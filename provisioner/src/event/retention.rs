//! Old events go: those beyond an age or a number, in small batches, between other work.
//!
//! Invariants: only the oldest go, so the chain of those that stay can still be checked from where
//! it begins; nothing from the first event of an active run on goes, because decisions look at it.
//!
//! Not here: the latest fact of each kind about a machine (`sightings`), which stays.

use std::time::Duration;

use anneal_protocol::time::Millis;
use tokio_util::sync::CancellationToken;

use crate::clock::now;
use crate::settings::EventSettings;
use crate::store::Store;

/// How often old events are looked for.
const LOOK: Duration = Duration::from_secs(600);
/// How many go in one transaction: others wait for it.
const BATCH: u32 = 500;

/// Prunes until `stop`. A failure is not a reason to stop: there is always a next time.
///
/// # Errors
/// Never.
pub async fn run(
    store: Store,
    settings: EventSettings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        match prune(&store, settings, &stop).await {
            Ok(0) => {}
            Ok(pruned) => tracing::info!(pruned, "old events were pruned"),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "pruning old events");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Prunes what is too old or too much now; returns how many events went.
async fn prune(
    store: &Store,
    settings: EventSettings,
    stop: &CancellationToken,
) -> anyhow::Result<u64> {
    let mut all = 0;
    while !stop.is_cancelled() {
        let before = before(now(), settings.keep);
        let pruned = store.prune_events(before, settings.max, BATCH).await?;
        all += pruned;
        if pruned < u64::from(BATCH) {
            break;
        }
        // The store has one writer: let those who wait for it go first.
        tokio::task::yield_now().await;
    }
    Ok(all)
}

fn before(moment: Millis, duration: Duration) -> Millis {
    let ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    Millis(moment.0.saturating_sub(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    const DAY: Duration = Duration::from_secs(86_400);

    /// A store with `count` events, each as many days old as are newer than it.
    async fn store_of(dir: &tempfile::TempDir, count: u64) -> Store {
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let events: Vec<(Millis, Event)> = (0..count)
            .rev()
            .map(|days| {
                let at = before(now(), DAY * u32::try_from(days).unwrap());
                (at, Event::new("test.n", days.to_string()).run("old-run"))
            })
            .collect();
        store.append_events(&events).await.unwrap();
        store
    }

    async fn left(store: &Store) -> Vec<String> {
        let rows = store.events_after(0, 10_000, None, None).await.unwrap();
        rows.into_iter().map(|row| row.event.message).collect()
    }

    #[tokio::test]
    async fn what_is_too_old_or_too_much_goes_and_the_chain_holds() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_of(&dir, 1_300).await;
        let stop = CancellationToken::new();
        let mut settings = EventSettings {
            keep: DAY * 90 - Duration::from_secs(60),
            max: 100,
        };
        // More than one batch; by age.
        assert_eq!(prune(&store, settings, &stop).await.unwrap(), 1_210);
        let messages = left(&store).await;
        assert_eq!((messages.len(), messages[0].as_str()), (90, "89"));
        assert_eq!(store.broken_event_chain().await.unwrap(), None);
        // By number.
        settings.max = 10;
        assert_eq!(prune(&store, settings, &stop).await.unwrap(), 80);
        assert_eq!(prune(&store, settings, &stop).await.unwrap(), 0);
        assert_eq!(left(&store).await.len(), 10);
        // All of it, and the chain still goes on from there.
        settings.keep = Duration::ZERO;
        assert_eq!(prune(&store, settings, &stop).await.unwrap(), 10);
        let next = [(now(), Event::new("test.n", "next"))];
        let rows = store.append_events(&next).await.unwrap();
        assert_eq!(rows[0].id, 1_301);
        assert_eq!(store.broken_event_chain().await.unwrap(), None);
        // Somebody who removes the next one by hand is found out.
        store.append_events(&next).await.unwrap();
        sqlx::query("DELETE FROM events WHERE id = 1301")
            .execute(&store.writer)
            .await
            .unwrap();
        assert_eq!(store.broken_event_chain().await.unwrap(), Some(1_302));
    }

    #[tokio::test]
    async fn nothing_goes_from_the_first_event_of_an_active_run_on() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_of(&dir, 20).await;
        sqlx::query(
            "INSERT INTO runs (id, machine, workflow, plan, state, requested_by, created_at, deadline) \
             VALUES ('active', 'r1n1', 'w', '{}', 'running', 'test', 0, 0)",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        sqlx::query("UPDATE events SET run = 'active' WHERE id = 5")
            .execute(&store.writer)
            .await
            .unwrap();
        let stop = CancellationToken::new();
        let settings = EventSettings {
            keep: Duration::ZERO,
            max: 1,
        };
        assert_eq!(prune(&store, settings, &stop).await.unwrap(), 4);
        assert_eq!(left(&store).await.len(), 16);
    }
}
