//! User-interactive authentication, as a step of a handler.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>

use myelin_accounts::{Authorization, Operation, Stage, UiaError};
use myelin_http::{ApiError, LimitKey, LimitKind, Session};
use ruma::api::client::uiaa::AuthData;

use crate::{Services, errors::Result};

/// What a logged-in user has to do: show the password.
const BY_PASSWORD: &[&[Stage]] = &[&[Stage::Password]];

/// Goes on once the user has shown the password for this operation; `subject` is what the request asks for.
pub(crate) async fn confirm(
    services: &Services,
    session: &Session,
    endpoint: &str,
    subject: &[&str],
    auth: Option<&AuthData>,
) -> Result<()> {
    // Guesses count like those at /login.
    if matches!(auth, Some(AuthData::Password(_))) && !session.is_rate_limit_exempt {
        services.rate_limiter.check(LimitKind::Login, LimitKey::user(session.user_nid))?;
    }
    let operation = Operation::new(endpoint, Some(&session.user_id), subject);
    authorize(services, &operation, BY_PASSWORD, auth).await.map(drop)
}

/// Goes on once the stages of one of the flows are done.
pub(crate) async fn authorize(
    services: &Services,
    operation: &Operation<'_>,
    flows: &[&[Stage]],
    auth: Option<&AuthData>,
) -> Result<Authorization> {
    match services.accounts.authorize(operation, flows, auth).await {
        Ok(authorization) => Ok(authorization),
        Err(UiaError::Challenge(info)) => Err(ApiError::uiaa(&info).into()),
        Err(UiaError::Failed(error)) => Err(error.into()),
    }
}
