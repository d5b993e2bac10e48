//! What a machine would get, and whether its readers would take it. Changes nothing.

use anneal_protocol::api::{Problem, RenderView, Role, ValidateView};
use axum::Json;
use axum::extract::{Path, Query, State};

use super::auth::Caller;
use crate::app::Shared;
use crate::http::problem::ApiResult;
use crate::validate;
use crate::workflow::{Action, Shown, StartRun};
use crate::{boot, render};

/// What to render.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct RenderQuery {
    /// Workflow; default: the machine's, else `install-image`.
    pub workflow: Option<String>,
    /// Image `name@version`; default: the machine's.
    pub image: Option<String>,
    /// Texts of the shape of secrets instead of `(redacted)`; admins only.
    #[serde(default)]
    pub show_secrets: bool,
}

/// What to check.
#[derive(Debug, Clone, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ValidateQuery {
    /// Workflow; default: the machine's, else `install-image`.
    pub workflow: Option<String>,
    /// Image `name@version`; default: the machine's.
    pub image: Option<String>,
}

/// Everything that a machine would get: parameters and texts of every step, documents behind
/// config URLs, the agent's kernel arguments. No token is made for it.
#[utoipa::path(get, path = "/api/v1/machines/{name}/render", tag = "machines",
    params(("name" = String, Path), RenderQuery),
    responses((status = 200, body = RenderView), (status = 404, body = Problem), (status = 422, body = Problem)))]
pub async fn render(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<RenderQuery>,
) -> ApiResult<Json<RenderView>> {
    let shown = match query.show_secrets {
        true => Shown::Placeholders,
        false => Shown::Redacted,
    };
    caller.must_be(match shown {
        Shown::Redacted => Role::Viewer,
        Shown::Placeholders => Role::Admin,
    })?;
    let request = StartRun {
        machine: name,
        workflow: query.workflow,
        image: query.image,
        requested_by: caller.name,
    };
    let mut view = shared.engine.rendered(&request, shown).await?;
    view.agent_arguments = agent_arguments(&shared, &view, shown).await?;
    Ok(Json(view))
}

/// All checks of what a machine would get: templates, workflow, the boundary of the system, and the
/// systems' own validators where they are installed beside the daemon. For operators: it starts
/// programs.
#[utoipa::path(get, path = "/api/v1/machines/{name}/validate", tag = "machines",
    params(("name" = String, Path), ValidateQuery),
    responses((status = 200, body = ValidateView), (status = 403, body = Problem), (status = 404, body = Problem)))]
pub async fn validate(
    State(shared): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<ValidateQuery>,
) -> ApiResult<Json<ValidateView>> {
    caller.must_be(Role::Operator)?;
    let request = StartRun {
        machine: name.clone(),
        workflow: query.workflow,
        image: query.image,
        requested_by: caller.name,
    };
    let rendered = shared.engine.rendered(&request, Shown::Placeholders).await;
    let schemas = shared.settings.state_dir.join("schemas");
    Ok(Json(validate::machine(&name, rendered, &schemas).await?))
}

/// What the boot script would hand to the agent's kernel, were the run started now.
async fn agent_arguments(
    shared: &Shared,
    view: &RenderView,
    shown: Shown,
) -> ApiResult<Option<String>> {
    let netboot = Action::Netboot.spec().name;
    if !view
        .steps
        .iter()
        .any(|step| step.runs && step.uses == netboot)
    {
        return Ok(None);
    }
    let Some(row) = shared.store.machine(&view.machine).await? else {
        return Ok(None);
    };
    let Some(nic) = row.machine.boot_nic() else {
        return Ok(None);
    };
    let card = (nic.mac, nic.address);
    let (run, token) = (render::REDACTED.to_owned(), shown.token().to_owned());
    let boot = shared.boot(view.machine.clone(), card, run, token);
    Ok(Some(boot::agent_arguments(&boot)))
}
