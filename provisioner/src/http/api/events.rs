//! Events: a page of the log, or a stream that resumes.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anneal_protocol::api::{EventPage, EventView, Page};
use axum::Json;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures_util::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::page_size;
use crate::app::Shared;
use crate::clock::rfc3339;
use crate::http::problem::ApiResult;
use crate::store::{EventRow, Store};

/// Which events.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct EventQuery {
    /// Only events after this id.
    pub after: Option<i64>,
    /// Page size, 1 to 1000.
    pub limit: Option<u32>,
    /// Only of this machine.
    pub machine: Option<String>,
    /// Only of this run.
    pub run: Option<String>,
}

impl EventQuery {
    fn wants(&self, row: &EventRow) -> bool {
        let same = |wanted: &Option<String>, got: &Option<String>| {
            wanted.as_ref().is_none_or(|w| got.as_ref() == Some(w))
        };
        same(&self.machine, &row.event.machine) && same(&self.run, &row.event.run)
    }
}

/// A page of the event log, oldest first.
#[utoipa::path(get, path = "/api/v1/event-log", tag = "events", params(EventQuery), responses((status = 200, body = EventPage)))]
pub async fn log(
    State(shared): State<Shared>,
    Query(query): Query<EventQuery>,
) -> ApiResult<Json<Page<EventView>>> {
    let limit = page_size(query.limit);
    let rows = shared
        .store
        .events_after(
            query.after.unwrap_or(0),
            limit,
            query.machine.as_deref(),
            query.run.as_deref(),
        )
        .await?;
    let next = rows
        .last()
        .filter(|_| rows.len() == limit as usize)
        .map(|row| row.id.to_string());
    Ok(Json(Page {
        items: rows.iter().map(view).collect(),
        next,
    }))
}

/// A stream of events (`text/event-stream`). With `Last-Event-ID` (or `after`) it first sends
/// what was missed; without, it begins now.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", params(EventQuery),
    responses((status = 200, description = "server-sent events, data is an EventView", content_type = "text/event-stream", body = EventView)))]
pub async fn stream(
    State(shared): State<Shared>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
) -> ApiResult<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>> {
    let last = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .or(query.after);
    // Watch first, then read the store: nothing falls between the two.
    let watcher = shared.recorder.watch();
    let after = match last {
        Some(id) => id,
        None => shared.store.last_event_id().await?,
    };
    let feed = Feed {
        store: shared.store.clone(),
        watcher,
        query,
        after,
        waiting: VecDeque::new(),
    };
    let stream = futures_util::stream::unfold(feed, |mut feed| async move {
        let row = feed.next().await?;
        Some((Ok(encode(&row)), feed))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))))
}

/// Events in order without gaps: what is stored, then what is announced.
struct Feed {
    store: Store,
    watcher: broadcast::Receiver<Arc<EventRow>>,
    query: EventQuery,
    after: i64,
    waiting: VecDeque<EventRow>,
}

impl Feed {
    /// The next event; `None` ends the stream (the client resumes with `Last-Event-ID`).
    async fn next(&mut self) -> Option<EventRow> {
        let mut look = true;
        loop {
            if let Some(row) = self.waiting.pop_front() {
                self.after = row.id;
                return Some(row);
            }
            if look {
                let rows = self
                    .store
                    .events_after(
                        self.after,
                        500,
                        self.query.machine.as_deref(),
                        self.query.run.as_deref(),
                    )
                    .await
                    .ok()?;
                look = false;
                self.waiting.extend(rows);
                continue;
            }
            match self.watcher.recv().await {
                // Shown but not stored (progress): passed on as it is.
                Ok(row) if row.id == 0 && self.query.wants(&row) => return Some((*row).clone()),
                Ok(row) if row.id > self.after && self.query.wants(&row) => look = true,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => look = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn encode(row: &EventRow) -> sse::Event {
    let view = view(row);
    let event = sse::Event::default().event(view.kind.clone());
    let event = if row.id > 0 {
        event.id(row.id.to_string())
    } else {
        event
    };
    event.data(serde_json::to_string(&view).unwrap_or_default())
}

/// An event as the API shows it.
#[must_use]
pub fn view(row: &EventRow) -> EventView {
    EventView {
        id: row.id,
        at: rfc3339(row.at),
        kind: row.event.kind.clone(),
        machine: row.event.machine.clone(),
        run: row.event.run.clone(),
        message: row.event.message.clone(),
        data: row.event.data.clone(),
    }
}
