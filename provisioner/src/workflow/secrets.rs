//! Secrets that are made when a text is really needed, and the documents behind config URLs.
//!
//! A text is rendered without secrets first, which tells what it wants; then fresh tokens are
//! made, and it is rendered with them. Only the second text is ever sent, once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::driver::{Engine, EngineError};
use super::run::Snapshot;
use super::start::StartError;
use crate::clock::now;
use crate::machine::Machine;
use crate::render::{
    ClusterFacts, ConfigBase, ConfigRef, Context, ImageFacts, JoinSecrets, PhoneHome, REDACTED,
    SEED, ServedBy, Wanted,
};
use crate::token::issuer::{self, IssueError};
use crate::token::{Mint, Purpose, RunOver, TokenRecord};

/// How much longer than its run a phone-home token lives: a node needs that long to boot.
const AFTER_THE_RUN: Duration = Duration::from_secs(300);

/// What stands in for secrets in a rendering, or the secrets.
#[derive(Default)]
pub(super) struct Secrets {
    phone_home: Option<String>,
    configs: Option<BTreeMap<ConfigRef, String>>,
    join: Option<JoinSecrets>,
}

/// What a text with secrets is for.
pub(super) struct Destination<'a> {
    /// For people: a step, or a config URL.
    pub why: &'a str,
    /// A text that was rendered for the same end before is in nobody's hands.
    pub replaces: bool,
}

impl Secrets {
    /// None: everything is redacted.
    pub(super) fn redacted() -> Self {
        Self::default()
    }
}

/// Stands in for the boot and phone-home tokens, and for the secret of a config URL: 64 digits, as they are.
pub(super) const PLACEHOLDER: &str =
    "0000000000000000000000000000000000000000000000000000000000000000";

impl Secrets {
    /// Of the right shape and worth nothing: for looking at, and for the systems' own validators.
    pub(super) fn placeholders(wanted: &Wanted) -> Self {
        let secret = |config: &ConfigRef| (config.clone(), PLACEHOLDER.to_owned());
        Self {
            phone_home: Some(PLACEHOLDER.to_owned()),
            configs: Some(wanted.configs.iter().map(secret).collect()),
            join: Some(JoinSecrets::placeholders()),
        }
    }
}

impl Engine {
    /// The variables of a rendering. `cluster`: of the machine's cluster, from
    /// [`Engine::look_at_cluster`].
    pub(super) fn context(
        &self,
        machine: &Machine,
        image: Option<&ImageFacts>,
        run: &str,
        cluster: Option<&ClusterFacts>,
        secrets: &Secrets,
    ) -> Context {
        let deps = &self.inner.deps;
        let token = secrets.phone_home.as_deref().unwrap_or(REDACTED);
        let phone_home = PhoneHome {
            url: format!("{}/node/v1/phone-home", deps.node_url),
            token: token.to_owned(),
        };
        let base = ConfigBase {
            tls: deps.node_url.clone(),
            plain: deps.plain_config_url.clone(),
            metadata: deps.metadata_url.clone(),
        };
        Context::new(
            machine,
            image,
            run,
            &deps.node_url,
            &deps.ca_pem,
            phone_home,
        )
        .with_cluster(cluster, secrets.join.as_ref())
        .with_configs(base, secrets.configs.clone())
        .with_event_sink(deps.event_sink.as_deref())
    }

    /// Refuses a machine that joins a cluster which nobody knows, and tells what a rendering may be
    /// told of the others.
    ///
    /// # Errors
    /// Names the known ones.
    pub(super) async fn known_cluster(
        &self,
        machine: &Machine,
    ) -> Result<Option<ClusterFacts>, StartError> {
        if let Some(name) = machine.cluster() {
            let known = self.inner.deps.join.cluster(name);
            known.map_err(|told| StartError::Refused(vec![told]))?;
        }
        Ok(self.look_at_cluster(machine).await)
    }

    /// What a rendering for this machine may be told of its cluster, if it joins one.
    pub(super) async fn look_at_cluster(&self, machine: &Machine) -> Option<ClusterFacts> {
        self.inner.deps.join.look(machine.cluster()?).await
    }

    /// As [`Engine::look_at_cluster`], and why the cluster's secrets could not be read, if so.
    pub(super) async fn read_cluster(
        &self,
        machine: &Machine,
    ) -> (Option<ClusterFacts>, Option<IssueError>) {
        let Some(name) = machine.cluster() else {
            return (None, None);
        };
        match self.inner.deps.join.read(name).await {
            Some((facts, unread)) => (Some(facts), unread),
            None => (None, None),
        }
    }

    /// Whether the machine's cluster can be joined: its issuer could be asked, if a text that was
    /// rendered with `context` will want it to be. Gives what to know before saying yes.
    ///
    /// # Errors
    /// When something of the issuer is missing.
    pub(super) async fn ready_to_join(
        &self,
        machine: &Machine,
        context: &Context,
    ) -> Result<Vec<String>, StartError> {
        let Some(name) = machine.cluster().filter(|_| context.join_promised()) else {
            return Ok(Vec::new());
        };
        let ready = self.inner.deps.join.ready(name).await;
        ready.map_err(|told| StartError::Refused(vec![told]))
    }

    /// Makes the tokens that a rendering wants.
    pub(super) async fn mint(
        &self,
        s: &Snapshot,
        wanted: &Wanted,
        destination: Destination<'_>,
    ) -> Result<Secrets, EngineError> {
        let tokens = &self.inner.deps.tokens;
        let mint = |purpose: Purpose, ttl: Duration| Mint {
            purpose,
            machine: &s.run.machine,
            run: &s.run.id,
            ttl,
            subject: None,
            plain: false,
        };
        let mut secrets = Secrets {
            phone_home: None,
            configs: Some(BTreeMap::new()),
            join: None,
        };
        if let (Some(cluster), true) = (s.plan.machine.cluster(), wanted.join.any()) {
            let request = issuer::Request {
                cluster,
                machine: &s.run.machine,
                run: &s.run.id,
                why: destination.why,
                replaces: destination.replaces,
            };
            let issued = self.inner.deps.join.issue(request, wanted.join).await;
            secrets.join = Some(issued.map_err(EngineError::Issuer)?);
        }
        if wanted.phone_home {
            // Good as long as the run may take, and a little longer than the node needs.
            let ttl = s.run.deadline.since(now()) + AFTER_THE_RUN;
            let token = tokens.mint(mint(Purpose::PhoneHome, ttl)).await;
            secrets.phone_home = Some(token.map_err(EngineError::Internal)?);
        }
        let configs = secrets.configs.get_or_insert_default();
        for config in &wanted.configs {
            let purpose = match config.served_by {
                ServedBy::ConfigUrl => Purpose::Config,
                ServedBy::Metadata => Purpose::Metadata,
            };
            let mint = Mint {
                subject: Some(&config.subject),
                plain: config.plain,
                ..mint(purpose, purpose.default_ttl())
            };
            let token = tokens.mint(mint).await.map_err(EngineError::Internal)?;
            configs.insert(config.clone(), token);
        }
        Ok(secrets)
    }

    /// The document behind a config URL, rendered now, with secrets made now. `None` when the
    /// token has no document of that name. The caller has judged the token.
    ///
    /// # Errors
    /// [`RunOver`]; and when a template fails, or the database does.
    pub async fn config_document(
        &self,
        token: &TokenRecord,
        document: &str,
    ) -> anyhow::Result<Option<String>> {
        let renderer = &self.inner.deps.renderer;
        let Some(template) = template_of(token, document, &renderer.names()) else {
            return Ok(None);
        };
        let s = self.active(&token.run).await?;
        let (machine, image) = (&s.plan.machine, s.plan.image.as_ref());
        let (cluster, unread) = self.read_cluster(machine).await;
        let context =
            |secrets: &Secrets| self.context(machine, image, &s.run.id, cluster.as_ref(), secrets);
        let redacted = context(&Secrets::redacted());
        let rendered = renderer.render(&template, &redacted);
        let wanted = redacted.wanted();
        if let Some(error) = unread.filter(|_| wanted.join.bundle) {
            return Err(error.into());
        }
        rendered?;
        let why = format!("config URL {template}");
        let destination = Destination {
            why: &why,
            // The machine may have the one before.
            replaces: false,
        };
        let secrets = self.mint(&s, &wanted, destination).await?;
        // That takes time: a run that ended meanwhile gets none of them.
        self.active(&token.run).await?;
        let text = renderer.render(&template, &context(&secrets));
        // What it says may repeat a secret, and is shown to operators.
        let text = text.map_err(|_| {
            anyhow::anyhow!("{template} cannot be rendered with its secrets, only without them")
        })?;
        Ok(Some(text))
    }

    /// A session of the metadata service for its one-use token, as long as asked, but no longer than
    /// its run. `None` when the token serves no folder.
    ///
    /// # Errors
    /// [`RunOver`]; and when the database fails.
    pub async fn metadata_session(
        &self,
        token: &TokenRecord,
        asked: Duration,
    ) -> anyhow::Result<Option<String>> {
        let subject = token.subject.as_deref();
        let Some(subject) = subject.filter(|subject| subject.ends_with('/')) else {
            return Ok(None);
        };
        let s = self.active(&token.run).await?;
        let mint = Mint {
            purpose: Purpose::Session,
            machine: &token.machine,
            run: &token.run,
            ttl: asked.min(s.run.deadline.since(now()) + AFTER_THE_RUN),
            subject: Some(subject),
            plain: token.plain,
        };
        Ok(Some(self.inner.deps.tokens.mint(mint).await?))
    }

    /// A run, unless it is over.
    async fn active(&self, run: &str) -> anyhow::Result<Snapshot> {
        let s = self.load(run).await?;
        anyhow::ensure!(s.run.state.is_active(), RunOver(s.run.id));
        Ok(s)
    }

    /// The machine as its run was made for it; `None` when the run is over.
    ///
    /// # Errors
    /// When there is no such run or the database fails.
    pub async fn machine_in(&self, run: &str) -> Result<Option<Machine>, EngineError> {
        let s = self.load(run).await?;
        Ok(s.run.state.is_active().then_some(s.plan.machine))
    }

    /// Whether a config token has a document of this name.
    #[must_use]
    pub fn has_config(&self, token: &TokenRecord, document: &str) -> bool {
        template_of(token, document, &self.inner.deps.renderer.names()).is_some()
    }
}

/// The template that a token serves under a document's name.
fn template_of(token: &TokenRecord, document: &str, names: &[String]) -> Option<String> {
    let subject = token.subject.as_deref()?;
    let template = match (subject.ends_with('/'), document) {
        (false, "") => subject.to_owned(),
        (true, document) if SEED.contains(&document) => format!("{subject}{document}"),
        _ => return None,
    };
    names.contains(&template).then_some(template)
}
