//! The client: login, discovery, and the three operations.

use reqwest::StatusCode;
use reqwest::header::{ETAG, LOCATION};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use zeroize::{Zeroize, Zeroizing};

use crate::auth::{Credentials, Login, X_AUTH_TOKEN};
use crate::boot::{self, BootTarget, Kept, Rung, Situation};
use crate::endpoint::Endpoint;
use crate::error::{Error, Result};
use crate::http::{Reply, Request, Timing, Transport};
use crate::power::{self, PowerAction, PowerState, Reported, Step};
use crate::quirks::Quirks;
use crate::view::{self, Reset};

const ROOT: &str = "/redfish/v1/";
const SYSTEMS: &str = "/redfish/v1/Systems";
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
/// Looks at an accepted boot device before it counts as ignored.
const LOOKS: u32 = 3;
/// Pages of a collection that are read at most.
const MOST_PAGES: u32 = 20;

/// A client of one BMC, for one machine. Keeps its session between calls; [`Client::logout`]
/// gives it back, because BMCs have few.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    credentials: Credentials,
    transport: Transport,
    timing: Timing,
    login: Login,
    found: Option<Found>,
}

/// What discovery found out; it does not change while a client lives.
#[derive(Debug, Clone)]
struct Found {
    system: String,
    quirks: Quirks,
}

/// A resource and where it was read.
#[derive(Debug)]
struct Resource {
    path: String,
    etag: Option<String>,
    body: Value,
}

impl Client {
    /// Prepares a client; nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Setup`] when the process has no TLS provider.
    pub fn new(endpoint: Endpoint, credentials: Credentials, timing: Timing) -> Result<Self> {
        Ok(Self {
            transport: Transport::new(&endpoint, timing.clone())?,
            endpoint,
            credentials,
            timing,
            login: Login::None,
            found: None,
        })
    }

    /// Reads the power state.
    ///
    /// # Errors
    /// As every call: [`Error`], all variants but those of the other operations.
    pub async fn power_state(&mut self) -> Result<PowerState> {
        let system = self.system().await?;
        Ok(reported(&system)?.settled())
    }

    /// Switches the power and returns when the BMC reports the wanted state. Repeating it is
    /// harmless, except that [`PowerAction::Cycle`] cycles again.
    ///
    /// # Errors
    /// [`Error::PowerStuck`] when the state does not follow in [`Timing::power`],
    /// [`Error::Unsupported`] when the BMC offers no fitting reset type.
    pub async fn power(&mut self, action: PowerAction) -> Result<()> {
        let system = self.system().await?;
        let now = reported(&system)?;
        let reset = Reset::of(&system.body)
            .ok_or_else(|| Error::Unsupported(format!("{} has no reset action", system.path)))?;
        let allowed = self.reset_types(&reset).await?;
        for step in power::plan(action, now, &allowed)? {
            match step {
                Step::Reset(kind, wanted) => self.reset(&reset.target, kind, wanted).await?,
                Step::Await(wanted) => self.wait_for_power(wanted).await?,
                Step::Settle => sleep(self.timing.settle).await,
            }
        }
        Ok(())
    }

    /// Sets the device for the next start, once where the BMC can, and checks that it was kept.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the BMC or the boot mode has no such device,
    /// [`Error::Ignored`] when it accepts every form and keeps none, otherwise the last refusal.
    pub async fn boot_once(&mut self, target: BootTarget) -> Result<()> {
        let system = self.system().await?;
        let quirks = self.found().await?.quirks;
        let settings = self.settings(&system).await?;
        let situation = Situation {
            path: &system.path,
            system: &system.body,
            settings: settings.as_ref().map(|s| (s.path.as_str(), &s.body)),
            quirks: &quirks,
        };
        let mut last = None;
        for rung in boot::ladder(target, situation)? {
            let outcome = match self.patch(&rung.path, &rung.body).await {
                Ok(()) => self.check_boot(target, &rung, &system, &quirks).await,
                refused => refused,
            };
            match outcome {
                Ok(()) => return Ok(()),
                // Another form may be accepted; anything else would fail again.
                Err(error @ (Error::Refused { busy: false, .. } | Error::Ignored { .. })) => {
                    tracing::debug!(path = rung.path, %error, "BMC did not take this form");
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Unsupported("no way to set a boot device".to_owned())))
    }

    /// Ends the session. Tried once: a BMC that does not answer drops it by itself in time.
    pub async fn logout(&mut self) {
        if let Login::Session { location, .. } = &self.login
            && let Some(location) = location.clone()
            && let Ok(auth) = self.login.headers(&self.credentials)
        {
            let request = Request {
                method: reqwest::Method::DELETE,
                ..Request::get(&location)
            };
            if let Err(error) = self.transport.once(&request, auth).await {
                tracing::debug!(%error, "session not deleted");
            }
        }
        self.login = Login::None;
    }

    // ---- power

    /// Sends one reset. "Conflict" and the like are fine when the machine is there already.
    async fn reset(&mut self, target: &str, kind: &str, wanted: PowerState) -> Result<()> {
        let body = json!({ "ResetType": kind });
        match self.request(Request::post(target, &body)).await {
            Ok(_) => Ok(()),
            Err(
                error @ Error::Refused {
                    status: 400 | 409, ..
                },
            ) => {
                let now = reported(&self.system().await?)?;
                if now.is(wanted) { Ok(()) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }

    async fn wait_for_power(&mut self, wanted: PowerState) -> Result<()> {
        let deadline = Instant::now() + self.timing.power;
        loop {
            let system = self.system().await?;
            if reported(&system)?.is(wanted) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::PowerStuck {
                    wanted: match wanted {
                        PowerState::On => "On",
                        PowerState::Off => "Off",
                    },
                    last: view::text(&system.body, "/PowerState")
                        .unwrap_or("nothing")
                        .to_owned(),
                    after: self.timing.power,
                });
            }
            sleep(self.timing.poll).await;
        }
    }

    async fn reset_types(&mut self, reset: &Reset) -> Result<Vec<String>> {
        match &reset.info {
            Some(info) if reset.allowed.is_empty() => {
                let info = self.read(info).await?;
                Ok(view::action_info_reset_types(&info.body))
            }
            _ => Ok(reset.allowed.clone()),
        }
    }

    // ---- boot

    /// The resource for pending settings, if the system names one that exists.
    async fn settings(&mut self, system: &Resource) -> Result<Option<Resource>> {
        let Some(path) = view::settings(&system.body) else {
            return Ok(None);
        };
        match self.read(&path).await {
            Ok(settings) => Ok(Some(settings)),
            Err(Error::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks whether the BMC kept what it accepted; some take a moment, some never do.
    async fn check_boot(
        &mut self,
        target: BootTarget,
        rung: &Rung,
        before: &Resource,
        quirks: &Quirks,
    ) -> Result<()> {
        let mut looks = 0;
        loop {
            let system = self.system().await?;
            let mut now = vec![&system.body];
            let patched;
            if rung.path != before.path {
                patched = self.read(&rung.path).await?;
                now.push(&patched.body);
            }
            let kept = boot::kept(target, rung.says_enabled, &before.body, &now, quirks);
            let Kept::No(reported) = kept else {
                return Ok(());
            };
            looks += 1;
            if looks == LOOKS {
                return Err(Error::Ignored {
                    wanted: target.name(),
                    reported,
                });
            }
            sleep(self.timing.poll).await;
        }
    }

    /// PATCHes with the entity tag that the resource has now, if it has one. BMCs differ: the tag
    /// moves under one's feet, weak tags are refused or wanted, any tag is refused.
    async fn patch(&mut self, path: &str, body: &Value) -> Result<()> {
        let mut tag = self.read(path).await?.etag;
        for attempt in 0.. {
            let request = Request {
                method: reqwest::Method::PATCH,
                path,
                body: Some(body),
                if_match: tag.as_deref(),
            };
            let refused = match self.request(request).await {
                Err(
                    error @ Error::Refused {
                        status: 412 | 428, ..
                    },
                ) => error,
                other => return other.map(|_| ()),
            };
            tag = match (attempt, self.read(path).await?.etag) {
                (0, Some(fresh)) => Some(fresh),
                (1, Some(fresh)) => Some(fresh.trim_start_matches("W/").to_owned()),
                (2, Some(_)) => None,
                _ => return Err(refused),
            };
        }
        Ok(())
    }

    // ---- discovery

    async fn system(&mut self) -> Result<Resource> {
        let found = self.found().await?;
        self.read(&found.system).await
    }

    /// Which system is meant, and how its vendor has to be treated.
    async fn found(&mut self) -> Result<Found> {
        if let Some(found) = &self.found {
            return Ok(found.clone());
        }
        let root = self.root().await?;
        let path = match self.endpoint.system.clone() {
            Some(path) => path,
            None => self.only_system(&root).await?,
        };
        let system = self.read(&path).await?;
        let names = ["/Manufacturer", "/Vendor"].map(|key| view::text(&system.body, key));
        let vendor = view::text(&root.body, "/Vendor");
        let names: Vec<&str> = names.into_iter().chain([vendor]).flatten().collect();
        let found = Found {
            // Where it really is: a name may redirect to an id.
            system: system.path.clone(),
            quirks: Quirks::of(&names),
        };
        tracing::debug!(system = found.system, ?names, "BMC discovered");
        self.found = Some(found.clone());
        Ok(found)
    }

    async fn only_system(&mut self, root: &Resource) -> Result<String> {
        // Some roots have no links until the BMC was restarted.
        let collection = view::link(&root.body, "/Systems").unwrap_or_else(|| SYSTEMS.to_owned());
        let mut systems = Vec::new();
        let mut page = Some(collection.clone());
        for _ in 0..MOST_PAGES {
            let Some(path) = page else { break };
            let list = self.read(&path).await?;
            systems.extend(view::members(&list.body));
            page = view::text(&list.body, "/Members@odata.nextLink").map(str::to_owned);
        }
        match systems.len() {
            0 => Err(Error::NoSystem(collection)),
            1 => Ok(systems.remove(0)),
            _ => Err(Error::AmbiguousSystem { systems }),
        }
    }

    /// The service root, which every BMC shows without login.
    async fn root(&mut self) -> Result<Resource> {
        let request = Request::get(ROOT);
        let reply = self.transport.send(&request, Default::default()).await?;
        if reply.status.is_success() {
            Ok(resource(reply))
        } else {
            Err(reply.refusal(&request))
        }
    }

    // ---- requests

    async fn read(&mut self, path: &str) -> Result<Resource> {
        self.request(Request::get(path)).await.map(resource)
    }

    /// Sends an authorised request; a 401 is answered by one new login.
    async fn request(&mut self, request: Request<'_>) -> Result<Reply> {
        let mut logged_in_again = false;
        loop {
            if matches!(self.login, Login::None) {
                self.log_in().await?;
            }
            let auth = self.login.headers(&self.credentials)?;
            let reply = self.transport.send(&request, auth).await?;
            if reply.status == StatusCode::UNAUTHORIZED {
                if logged_in_again {
                    return Err(Error::Credentials { status: 401 });
                }
                logged_in_again = true;
                // A session may have expired. Without sessions the same is sent once more.
                if matches!(self.login, Login::Session { .. }) {
                    self.login = Login::None;
                }
                continue;
            }
            return if reply.status.is_success() {
                Ok(reply)
            } else {
                Err(reply.refusal(&request))
            };
        }
    }

    /// Opens a session where the BMC says, else at the usual place; a BMC without sessions gets
    /// the password with each request.
    async fn log_in(&mut self) -> Result<()> {
        let root = self.root().await?;
        let advertised = view::link(&root.body, "/Links/Sessions");
        let path = advertised.as_deref().unwrap_or(SESSIONS);
        let mut body = self.credentials.session_body();
        let request = Request::post(path, &body);
        let reply = self.transport.send(&request, Default::default()).await;
        wipe(&mut body);
        let reply = reply?;
        match reply.status.as_u16() {
            200..=299 => self.login = session(&reply, path)?,
            // No such resource or method: this BMC has no sessions. Behind basic authentication,
            // a place that does not exist answers 401 as well.
            404 | 405 | 501 => self.login = Login::Basic,
            401 if advertised.is_none() => self.login = Login::Basic,
            status @ (400 | 401 | 403) if !reply.busy() => {
                // What it says is not quoted: it may repeat the password.
                let complaint = view::Complaint::of(&reply.body);
                return Err(if complaint.has("PasswordChangeRequired") {
                    Error::PasswordChange
                } else {
                    Error::Credentials { status }
                });
            }
            status => {
                return Err(Error::Refused {
                    method: "POST".to_owned(),
                    path: path.to_owned(),
                    status,
                    message: "no session opened".to_owned(),
                    busy: reply.busy(),
                });
            }
        }
        tracing::debug!(login = ?self.login, "logged in to BMC");
        Ok(())
    }
}

fn reported(system: &Resource) -> Result<Reported> {
    let state = view::text(&system.body, "/PowerState");
    state
        .and_then(Reported::parse)
        .ok_or_else(|| Error::Malformed {
            path: system.path.clone(),
            reason: format!("PowerState is {}", state.unwrap_or("missing")),
        })
}

fn resource(reply: Reply) -> Resource {
    let header = reply.header(ETAG).map(str::to_owned);
    let inline = || view::text(&reply.body, "/@odata.etag").map(str::to_owned);
    // A proxy that compressed the answer marks the tag; the BMC does not know that mark.
    let tag = header
        .or_else(inline)
        .map(|tag| tag.replace("-gzip\"", "\""));
    Resource {
        etag: tag.filter(|tag| !tag.trim_matches('"').is_empty()),
        path: reply.path,
        body: reply.body,
    }
}

/// The session that a login opened. Only the token is sure to be there.
fn session(reply: &Reply, path: &str) -> Result<Login> {
    let token = reply.header(X_AUTH_TOKEN).ok_or_else(|| Error::Malformed {
        path: path.to_owned(),
        reason: "a session was opened without X-Auth-Token".to_owned(),
    })?;
    let location = reply.header(LOCATION).map(str::to_owned);
    let inline = || view::text(&reply.body, "/@odata.id").map(str::to_owned);
    Ok(Login::Session {
        token: Zeroizing::new(token.to_owned()),
        location: location.or_else(inline),
    })
}

/// Overwrites the texts of a body that held a password.
fn wipe(body: &mut Value) {
    if let Value::Object(fields) = body {
        for field in fields.values_mut() {
            if let Value::String(text) = field {
                text.zeroize();
            }
        }
    }
}
