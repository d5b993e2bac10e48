//! The OpenAPI 3.1 document, made from the handlers themselves.

use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

/// Describes the API.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "anneal", description = "Bare-metal provisioning for immutable operating systems"),
    paths(
        super::machines::list, super::machines::show, super::machines::remove, super::machines::apply,
        super::render::render, super::render::validate,
        super::runs::provision, super::runs::list, super::runs::show, super::runs::cancel, super::runs::retry,
        super::workflows::list, super::workflows::validate,
        super::events::log, super::events::stream,
        super::tokens::list,
        super::clusters::list, super::clusters::show, super::clusters::import, super::clusters::remove,
        super::images::list, super::images::show, super::images::remove,
        super::ingests::create, super::ingests::list, super::ingests::show, super::ingests::put, super::ingests::cancel,
        super::image_care::verify, super::image_care::manifest, super::image_care::data,
        super::image_care::pin, super::image_care::unpin,
        super::image_care::add_mirror, super::image_care::remove_mirror, super::image_care::collect,
        super::image_care::keys, super::image_care::rotate, super::image_care::resign,
        super::attestations::list, super::attestations::show, super::attestations::keys,
        super::keys::list, super::keys::create, super::keys::remove,
        crate::http::config::serve,
        crate::http::node::phone_home_form,
        crate::http::kairos::register,
    ),
    modifiers(&Bearer),
    security(("api_key" = []))
)]
pub struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        if let Some(components) = document.components.as_mut() {
            components.add_security_scheme(
                "api_key",
                SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)),
            );
        }
    }
}

/// `GET /api/v1/openapi.json`.
pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_openapi_3_1_and_describes_the_main_job() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        let provision = &document["paths"]["/api/v1/machines/{name}/provision"]["post"];
        assert!(provision["requestBody"].is_object(), "{provision}");
        assert!(document["components"]["schemas"]["RunView"].is_object());
    }
}
