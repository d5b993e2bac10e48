//! Who shows a session's token: for the sockets of nodes and the metadata service.

use super::problem::{ApiError, ApiResult};
use crate::app::Shared;
use crate::token::{Claim, Refused, TokenError, TokenRecord};

/// The session with this secret, if it is of the wanted sort, the caller's, and not over. One that
/// is shown from two addresses is in two hands: it fails its run, as any token would.
///
/// # Errors
/// When the database fails.
pub(super) async fn known(
    shared: &Shared,
    claim: Claim<'_>,
    secret: &str,
    wanted: impl Fn(&TokenRecord) -> bool,
) -> ApiResult<Option<TokenRecord>> {
    match shared.tokens.session(secret, claim, wanted).await {
        Ok(token) => Ok(Some(token)),
        Err((TokenError::Refused(refused), token)) => {
            if let (Refused::Replayed, Some(token)) = (refused, token) {
                let reason = "a session of the installed system was used from two addresses";
                let failed = shared.engine.fail_security(&token.run, reason).await;
                failed.map_err(|error| ApiError::internal(&error))?;
            }
            Ok(None)
        }
        Err((error, _)) => Err(ApiError::internal(&error)),
    }
}
