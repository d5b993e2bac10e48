//! Configuration by URL: a document is served once, with a short grace for the same client.
//!
//! First-boot loaders probe and repeat; so, for [`GRACE`] after the first answer, the same
//! address gets the same bytes. They are kept in memory only, and no longer. A daemon that was
//! restarted in between renders the document anew.
//!
//! Not here: what is in a document (`workflow`), and HTTP.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anneal_protocol::time::Millis;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Claim, Purpose, Refused, TokenRecord, Tokens, Use, digest, judge_config};
use crate::clock::now;
use crate::event::{Event, Recorder, kind};
use crate::store::{Store, StoreError};

/// How long the client that fetched a document may fetch it again.
pub const GRACE: Duration = Duration::from_secs(60);

/// Who asks again within this time for a document that could not be made is not news.
const SAME_FAILURE: Duration = Duration::from_secs(600);

/// One fetch of one document.
#[derive(Debug, Clone, Copy)]
pub struct Fetch<'a> {
    /// What the secret must be: of a config URL, of the metadata service, or a session there.
    pub purpose: Purpose,
    /// The secret.
    pub secret: &'a str,
    /// Name in the folder; empty: the token's own template.
    pub document: &'a str,
    /// Machine that the caller is seen to be, if its address says so.
    pub machine: Option<&'a str>,
    /// Address of the caller.
    pub by: &'a str,
    /// It came over TLS.
    pub tls: bool,
}

/// Why a document is not served.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The token is not good. Where it is known, its record comes with it.
    #[error("config token refused")]
    Refused(#[source] Refused, Option<Box<TokenRecord>>),
    /// The token has no such document; it is not used up by asking.
    #[error("the token has no document of this name")]
    NoDocument,
    /// The store failed.
    #[error("token store")]
    Store(#[from] StoreError),
    /// It could not be rendered.
    #[error("the document could not be rendered")]
    Render(#[source] anyhow::Error),
}

/// A document is not made because the run that it was for, of this id, is over.
#[derive(Debug, thiserror::Error)]
#[error("run {0} is over")]
pub struct RunOver(pub String);

/// A document on its way, and until when it is kept.
#[derive(Debug)]
struct Kept {
    bytes: Bytes,
    until: Millis,
}

/// A document's place. Held while it is rendered: two fetches at once are one use. What it takes
/// to render one, a secret made elsewhere perhaps, holds up nobody but those who want it.
type Place = Arc<Mutex<Option<Kept>>>;

/// Serves documents; share it.
#[derive(Debug)]
pub struct Configs {
    tokens: Tokens,
    store: Store,
    recorder: Recorder,
    /// By the token's digest and the document.
    places: std::sync::Mutex<HashMap<(String, String), Place>>,
    /// Why a document was not made when it was asked for last, and when that was; by the token's id and the document.
    failures: std::sync::Mutex<HashMap<(String, String), (String, Millis)>>,
}

impl Configs {
    /// Over these tokens.
    #[must_use]
    pub fn new(tokens: Tokens, store: Store, recorder: Recorder) -> Self {
        Self {
            tokens,
            store,
            recorder,
            places: std::sync::Mutex::default(),
            failures: std::sync::Mutex::default(),
        }
    }

    /// Whether a fetch would be answered, without using anything up or recording anything.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    pub async fn probe(&self, fetch: Fetch<'_>) -> Result<TokenRecord, FetchError> {
        self.look(fetch).await.map(|(token, _)| token)
    }

    /// Answers a fetch. `render` makes the document, with secrets minted for it; `None` when the
    /// token has no document of that name. A refusal is recorded; that the run is over is not,
    /// which `render` says with [`RunOver`].
    ///
    /// # Errors
    /// See [`FetchError`]. A token that was refused comes with its record, so that the caller
    /// can fail its run.
    pub async fn fetch<F, R>(&self, fetch: Fetch<'_>, render: F) -> Result<Bytes, FetchError>
    where
        F: FnOnce(TokenRecord) -> R,
        R: Future<Output = anyhow::Result<Option<String>>>,
    {
        let place = self.place(fetch);
        let mut kept = place.lock().await;
        let (token, using) = match self.look(fetch).await {
            Err(FetchError::Refused(refused, token)) => {
                self.tokens.refuse(refused, token.as_deref(), fetch.claim());
                return Err(FetchError::Refused(refused, token));
            }
            other => other?,
        };
        if let (Use::Repeat, Some(kept)) = (using, kept.as_ref()) {
            let bytes = kept.bytes.clone();
            self.served(&token, fetch, true);
            return Ok(bytes);
        }
        let rendered = match render(token.clone()).await {
            // A token may outlive its run: for calling home, not for this.
            Err(error) if error.is::<RunOver>() => {
                return Err(FetchError::Refused(Refused::Revoked, Some(Box::new(token))));
            }
            Err(error) => {
                self.unserved(&token, fetch, &error);
                return Err(FetchError::Render(error));
            }
            Ok(rendered) => rendered,
        };
        let bytes = Bytes::from(rendered.ok_or(FetchError::NoDocument)?);
        let at = now();
        if using == Use::First
            && !self
                .store
                .serve_config(&token.id, fetch.document, fetch.by, at)
                .await?
        {
            // The run ended while the document was rendered, or another daemon served it.
            let refused = match self.look(fetch).await {
                Err(FetchError::Refused(refused, _)) => refused,
                Err(error) => return Err(error),
                Ok(_) => Refused::Replayed,
            };
            self.tokens.refuse(refused, Some(&token), fetch.claim());
            return Err(FetchError::Refused(refused, Some(Box::new(token))));
        }
        *kept = Some(Kept {
            bytes: bytes.clone(),
            until: at.plus(GRACE),
        });
        self.served(&token, fetch, using == Use::Repeat);
        Ok(bytes)
    }

    /// Forgets documents whose grace is over, until `stop`: they hold secrets.
    pub async fn forget(&self, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(GRACE) => {}
            }
            Self::sweep(&mut self.places());
        }
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, fetch: Fetch<'_>) -> Place {
        let mut places = self.places();
        Self::sweep(&mut places);
        let key = (digest(fetch.secret), fetch.document.to_owned());
        places.entry(key).or_default().clone()
    }

    /// Forgets the places of documents whose grace is over, unless somebody holds them.
    fn sweep(places: &mut HashMap<(String, String), Place>) {
        places.retain(|_, place| {
            let kept = place.try_lock();
            let live = |kept: &Option<Kept>| kept.as_ref().is_some_and(|kept| now() < kept.until);
            Arc::strong_count(place) > 1 || kept.is_ok_and(|kept| live(&kept))
        });
    }

    async fn look(&self, fetch: Fetch<'_>) -> Result<(TokenRecord, Use), FetchError> {
        let Some(token) = self.tokens.find(fetch.secret).await? else {
            return Err(FetchError::Refused(Refused::Unknown, None));
        };
        let served_at = self.store.config_served(&token.id, fetch.document).await?;
        let served = matches!(
            token.purpose,
            Purpose::Config | Purpose::Metadata | Purpose::Session
        );
        let verdict = if served && !(fetch.tls || token.plain) {
            Err(Refused::InClear)
        } else {
            judge_config(&token, served_at, fetch.claim(), GRACE, now())
        };
        match verdict {
            Ok(using) => Ok((token, using)),
            Err(refused) => Err(FetchError::Refused(refused, Some(Box::new(token)))),
        }
    }

    /// Whether this failure of a document is another than its last one.
    fn is_news(&self, token: &TokenRecord, fetch: Fetch<'_>, reason: &str) -> bool {
        let at = now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, last)| at.since(*last) < SAME_FAILURE);
        let key = (token.id.clone(), fetch.document.to_owned());
        let last = failures.insert(key, (reason.to_owned(), at));
        last.is_none_or(|(before, _)| before != reason)
    }

    /// The token is not used up: loaders ask again, every few seconds, and one event says why.
    fn unserved(&self, token: &TokenRecord, fetch: Fetch<'_>, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if !self.is_news(token, fetch, &reason) {
            return;
        }
        let name = document_name(token, fetch);
        let message = format!("{} did not get its {name}: {reason}", token.machine);
        self.recorder.record(
            Event::new(kind::CONFIG_FAILED, message)
                .machine(&token.machine)
                .run(&token.run)
                .data(serde_json::json!({
                    "document": name,
                    "address": fetch.by,
                    "reason": reason,
                    "token": token.id,
                })),
        );
    }

    fn served(&self, token: &TokenRecord, fetch: Fetch<'_>, again: bool) {
        let name = document_name(token, fetch);
        let again_text = if again { " again" } else { "" };
        let message = format!("{} fetched its {name}{again_text}", token.machine);
        self.recorder.record(
            Event::new(kind::CONFIG_SERVED, message)
                .machine(&token.machine)
                .run(&token.run)
                .data(serde_json::json!({
                    "document": name,
                    "address": fetch.by,
                    "tls": fetch.tls,
                    "again": again,
                    "token": token.id,
                })),
        );
    }
}

/// A document as its template is called.
fn document_name(token: &TokenRecord, fetch: Fetch<'_>) -> String {
    let subject = token.subject.as_deref().unwrap_or_default();
    format!("{subject}{}", fetch.document)
}

impl<'a> Fetch<'a> {
    /// As any claim to a token.
    #[must_use]
    pub fn claim(&self) -> Claim<'a> {
        Claim {
            purpose: self.purpose,
            machine: self.machine,
            by: self.by,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::Mint;
    use super::*;

    /// What an operator sees is the run's events, not the daemon's log.
    #[tokio::test]
    async fn a_document_that_cannot_be_made_is_told_and_may_be_fetched_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, writer) = crate::event::channel(store.clone());
        let mut events = recorder.watch();
        let tokens = Tokens::new(store.clone(), recorder.clone());
        let configs = Configs::new(tokens.clone(), store, recorder);
        let stop = CancellationToken::new();
        let writing = tokio::spawn(writer.run(stop.clone()));
        let mint = Mint {
            purpose: Purpose::Config,
            machine: "r1n1",
            run: "run",
            ttl: Purpose::Config.default_ttl(),
            subject: Some("site/"),
            plain: false,
        };
        let secret = tokens.mint(mint).await.unwrap();
        let fetch = Fetch {
            purpose: Purpose::Config,
            secret: &secret,
            document: "user-data",
            machine: Some("r1n1"),
            by: "10.0.0.1",
            tls: true,
        };
        let broken = |_| async { Err(anyhow::anyhow!("no token was made").context("join")) };
        let failed = configs.fetch(fetch, broken).await;
        assert!(matches!(failed, Err(FetchError::Render(_))), "{failed:?}");
        // It asks again, which is one event, and then something else is wrong.
        assert!(configs.fetch(fetch, broken).await.is_err());
        let other = |_| async { Err(anyhow::anyhow!("no CA")) };
        assert!(configs.fetch(fetch, other).await.is_err());
        let told = async {
            let mut told = Vec::new();
            while told.len() < 2 {
                let row = events.recv().await.unwrap();
                if row.event.kind == kind::CONFIG_FAILED {
                    told.push(row.event.clone());
                }
            }
            told
        };
        let told = tokio::time::timeout(Duration::from_secs(60), told)
            .await
            .expect("nobody is told");
        assert_eq!(told[0].run.as_deref(), Some("run"));
        let messages: Vec<_> = told.iter().map(|event| event.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "r1n1 did not get its site/user-data: join: no token was made",
                "r1n1 did not get its site/user-data: no CA",
            ]
        );
        let later = |_| async { Ok(Some("text".to_owned())) };
        assert_eq!(configs.fetch(fetch, later).await.unwrap(), "text");
        stop.cancel();
        writing.await.unwrap().unwrap();
    }

    /// A document may wait for a secret that is made elsewhere; other machines do not.
    #[tokio::test]
    async fn a_slow_document_holds_up_only_those_who_want_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let (recorder, _writer) = crate::event::channel(store.clone());
        let tokens = Tokens::new(store.clone(), recorder.clone());
        let configs = Arc::new(Configs::new(tokens.clone(), store, recorder));
        let mint = |machine| Mint {
            purpose: Purpose::Config,
            machine,
            run: "run",
            ttl: Purpose::Config.default_ttl(),
            subject: Some("x"),
            plain: false,
        };
        let fetch = |secret| Fetch {
            purpose: Purpose::Config,
            secret,
            document: "",
            machine: None,
            by: "10.0.0.1",
            tls: true,
        };
        let slow = tokens.mint(mint("r1n1")).await.unwrap();
        let quick = tokens.mint(mint("r1n2")).await.unwrap();
        let (go_on, wait) = oneshot::channel();
        let first = configs.fetch(fetch(&slow), |_| async {
            wait.await?;
            Ok(Some("slow".to_owned()))
        });
        let never = |_| async { Err(anyhow::anyhow!("rendered twice")) };
        // The same document again: it waits for the first, and is the same use.
        let repeat = configs.fetch(fetch(&slow), never);
        let other = async {
            let render = |_| async { Ok(Some("quick".to_owned())) };
            let bytes = configs.fetch(fetch(&quick), render).await;
            go_on.send(()).unwrap();
            bytes
        };
        let all = async { tokio::join!(biased; first, repeat, other) };
        let (first, repeat, other) = tokio::time::timeout(Duration::from_secs(60), all)
            .await
            .expect("one document waits for another's");
        assert_eq!(first.unwrap(), "slow");
        assert_eq!(repeat.unwrap(), "slow");
        assert_eq!(other.unwrap(), "quick");
        // A secret is good at its own place alone.
        let metadata = Fetch {
            purpose: Purpose::Metadata,
            ..fetch(&quick)
        };
        let elsewhere = configs.fetch(metadata, never).await;
        assert!(
            matches!(
                elsewhere,
                Err(FetchError::Refused(Refused::WrongPurpose, Some(_)))
            ),
            "{elsewhere:?}"
        );
        configs.places().clear();
        let late = configs.fetch(fetch(&quick), |_| async { Ok(None) }).await;
        assert!(matches!(late, Err(FetchError::NoDocument)), "{late:?}");
        let over = |_| async { Err(anyhow::Error::new(RunOver("run".to_owned()))) };
        let over = configs.fetch(fetch(&quick), over).await;
        let revoked = matches!(over, Err(FetchError::Refused(Refused::Revoked, Some(_))));
        assert!(revoked, "{over:?}");
    }
}
