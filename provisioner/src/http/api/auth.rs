//! Who calls, and whether they may.

use anneal_protocol::api::Role;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::Shared;
use crate::http::problem::ApiError;
use crate::token;

/// The bearer of an API key.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Name of the key: what the record says about who did it.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Caller {
    /// Refuses callers below `role`.
    ///
    /// # Errors
    /// 403 that names both roles.
    pub fn must_be(&self, role: Role) -> Result<(), ApiError> {
        if self.role >= role {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!(
                "API key \"{}\" has the role {:?}, this needs {:?}",
                self.name, self.role, role
            )
            .to_lowercase(),
        ))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(unauthorized)
    }
}

/// Lets requests with a valid key through, with their [`Caller`]; answers 401 to others.
pub async fn authenticate(
    State(shared): State<Shared>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(secret) = bearer(request.headers()) else {
        return unauthorized().into_response();
    };
    // The key is 256 random bits looked up by its digest: timing tells nothing about a key.
    match shared.store.api_key_by_digest(&token::digest(secret)).await {
        Ok(Some(key)) => {
            request.extensions_mut().insert(Caller {
                name: key.name,
                role: key.role,
            });
            next.run(request).await
        }
        Ok(None) => unauthorized().into_response(),
        Err(error) => ApiError::from(error).into_response(),
    }
}

/// The secret of an `Authorization: Bearer` header.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

fn unauthorized() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "send an API key as \"Authorization: Bearer KEY\"; the daemon wrote the first one into \
         admin.context.json in its state directory",
    )
}
