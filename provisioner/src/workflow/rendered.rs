//! What a machine would get, for people: the same preparation as of a run, and no run.

use anneal_protocol::api::RenderView;

use super::driver::Engine;
use super::secrets::Secrets;
use super::start::{Prepared, StartError, StartRun, prepare};
use super::texts::{Text, texts};

/// Stands in for the id of a run that is not made.
const NO_RUN: &str = "(not started)";

/// What stands where secrets will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// `(redacted)`.
    Redacted,
    /// Texts of the same shape as the secrets, so that the whole can be checked. No secret is made
    /// or read for it.
    Placeholders,
}

impl Shown {
    /// What stands where a one-use token will be.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Redacted => crate::render::REDACTED,
            Self::Placeholders => super::secrets::PLACEHOLDER,
        }
    }
}

impl Engine {
    /// Prepares a run of what is there now.
    pub(super) async fn prepare(
        &self,
        request: &StartRun,
        run: &str,
    ) -> Result<Prepared, StartError> {
        let material = self.material(request, run).await?;
        let (machine, context) = (material.machine.clone(), material.context.clone());
        let mut prepared = prepare(material)?;
        let warnings = self.ready_to_join(&machine, &context).await?;
        prepared.shown.warnings.extend(warnings);
        Ok(prepared)
    }

    /// The daemon's TLS address for machines.
    #[must_use]
    pub fn server_url(&self) -> &str {
        &self.inner.deps.node_url
    }

    /// Renders everything that a machine would get. Nothing is stored, made or touched.
    ///
    /// # Errors
    /// As [`Engine::start`]: with every reason found, each with file and line.
    pub async fn rendered(
        &self,
        request: &StartRun,
        shown: Shown,
    ) -> Result<RenderView, StartError> {
        let material = self.material(request, NO_RUN).await?;
        let wanted = material.context.clone();
        let mut prepared = prepare(material.clone())?;
        if shown == Shown::Placeholders {
            let secrets = Secrets::placeholders(&wanted.wanted());
            let (machine, image) = (&material.machine, material.image.as_ref());
            let cluster = self.look_at_cluster(machine).await;
            let context = self.context(machine, image, NO_RUN, cluster.as_ref(), &secrets);
            prepared = prepare(super::start::Material {
                context,
                ..material
            })?;
        }
        Ok(view(prepared))
    }
}

fn view(prepared: Prepared) -> RenderView {
    let Prepared {
        plan,
        shown,
        documents,
    } = prepared;
    let image = plan.image.as_ref();
    RenderView {
        machine: shown.machine,
        workflow: shown.workflow,
        image: image.map(|image| format!("{}@{}", image.name, image.version)),
        os: image.map(|image| image.os.clone()),
        agent_arguments: None,
        steps: shown.steps,
        documents,
        warnings: shown.warnings,
    }
}

/// Every text in a view, with where it goes.
#[must_use]
pub fn texts_of(view: &RenderView) -> Vec<Text> {
    texts(&view.steps, &view.documents)
}
