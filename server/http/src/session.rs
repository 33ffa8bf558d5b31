//! Who asks: access tokens in, sessions out.

use std::{
    borrow::Cow,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::extract::{ConnectInfo, FromRequestParts};
use http::{
    StatusCode, Uri,
    header::{AUTHORIZATION, USER_AGENT},
    request::Parts,
};
use ruma::{
    OwnedDeviceId, OwnedUserId,
    api::{
        auth_scheme::{
            AccessToken, AccessTokenOptional, AppserviceToken, AppserviceTokenOptional, AuthScheme, NoAccessToken,
            NoAuthentication,
        },
        error::ErrorCode,
    },
};

use crate::{ApiError, BoxError, RateLimiter};

/// Whom a valid access token belongs to.
#[derive(Clone, Debug)]
pub struct Session {
    /// The user's internal number.
    pub user_nid: i64,
    /// The user.
    pub user_id: OwnedUserId,
    /// The device's internal number.
    pub device_nid: i64,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// Whether this is a guest, who may do little.
    pub is_guest: bool,
    /// Whether this is an administrator of the server.
    pub is_admin: bool,
    /// What the administrators think of the account.
    pub standing: Standing,
    /// The application service whose token this is.
    pub appservice_id: Option<Arc<str>>,
    /// Whether no rate limit counts this session's requests.
    pub is_rate_limit_exempt: bool,
}

/// What the administrators allow an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Standing {
    /// Everything.
    #[default]
    Good,
    /// [To read, but not to act](https://spec.matrix.org/v1.19/client-server-api/#account-suspension). Endpoints that
    /// this forbids call [`Session::require_good_standing`].
    Suspended,
    /// [Nothing but to log out](https://spec.matrix.org/v1.19/client-server-api/#account-locking), which
    /// [`Matrix`](crate::Matrix) sees to.
    Locked,
}

impl Session {
    /// Refuses a suspended user with `M_USER_SUSPENDED`.
    pub fn require_good_standing(&self) -> Result<(), ApiError> {
        match self.standing {
            Standing::Good => Ok(()),
            Standing::Suspended => Err(ApiError::user_suspended()),
            Standing::Locked => Err(ApiError::user_locked()),
        }
    }

    /// Refuses a guest with `M_GUEST_ACCESS_FORBIDDEN`.
    pub fn require_full_account(&self) -> Result<(), ApiError> {
        if self.is_guest { Err(ApiError::guest_access_forbidden()) } else { Ok(()) }
    }

    /// Refuses everyone but the server's administrators, with `M_FORBIDDEN`.
    pub fn require_admin(&self) -> Result<(), ApiError> {
        if self.is_admin { Ok(()) } else { Err(ApiError::forbidden("You are not an administrator of this server")) }
    }
}

/// The state of a router with Matrix endpoints: it knows whose tokens are valid.
pub trait Authenticator: Send + Sync + 'static {
    /// Finds the session of an access token. Called for each request with a token: cache what you can.
    fn authenticate(
        &self,
        credentials: Credentials<'_>,
    ) -> impl Future<Output = Result<Arc<Session>, AuthError>> + Send;

    /// The limits that endpoints are held to before their body is read; without one there are none.
    fn rate_limiter(&self) -> Option<&RateLimiter> {
        None
    }
}

impl<T: Authenticator> Authenticator for Arc<T> {
    fn authenticate(
        &self,
        credentials: Credentials<'_>,
    ) -> impl Future<Output = Result<Arc<Session>, AuthError>> + Send {
        T::authenticate(self, credentials)
    }

    fn rate_limiter(&self) -> Option<&RateLimiter> {
        T::rate_limiter(self)
    }
}

/// What a request shows of who sent it.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    /// The access token.
    pub token: &'a str,
    /// The address that the request came from.
    pub client_address: IpAddr,
    /// The client's name for itself.
    pub user_agent: Option<&'a str>,
    query: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    /// Of an application service: the user that it [acts for](https://spec.matrix.org/v1.19/application-service-api/#identity-assertion).
    pub fn asserted_user_id(&self) -> Option<Cow<'a, str>> {
        self.query_field("user_id")
    }

    /// Of an application service: the device that it acts for.
    pub fn asserted_device_id(&self) -> Option<Cow<'a, str>> {
        self.query_field("device_id")
    }

    fn query_field(&self, name: &str) -> Option<Cow<'a, str>> {
        form_urlencoded::parse(self.query?.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// Why a token opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// Nobody's token, or no longer anybody's.
    #[error("unknown access token")]
    UnknownToken {
        /// Whether the client may log in again with the same device.
        soft_logout: bool,
    },
    /// An application service acts for a user that is not its own.
    #[error("the application service may not act for this user")]
    NotItsUser,
    /// An application service acts for a device that its user does not have.
    #[error("the user does not have this device")]
    UnknownDevice,
    /// Who has this token cannot be found out now.
    #[error("check access token")]
    Unavailable(#[source] BoxError),
}

impl From<AuthError> for ApiError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::UnknownToken { soft_logout } => Self::unknown_token(soft_logout),
            AuthError::NotItsUser => Self::forbidden("The application service may not act for this user"),
            AuthError::UnknownDevice => {
                Self::new(StatusCode::BAD_REQUEST, ErrorCode::UnknownDevice, "The user does not have this device")
            }
            AuthError::Unavailable(_) => Self::unavailable(error),
        }
    }
}

/// One of ruma's authentication schemes, and whom its endpoints are called by.
pub trait Scheme: AuthScheme {
    /// The caller: `()`, a session, or perhaps a session.
    type Caller: Send + Sync;

    /// What is done with a token.
    #[doc(hidden)]
    const TOKEN: Token;

    /// Turns what a token showed into the caller, or refuses.
    #[doc(hidden)]
    fn admit(session: Option<Arc<Session>>) -> Result<Self::Caller, ApiError>;
}

#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Not even looked at.
    Ignored,
    /// Has to be right, where there is one.
    Checked,
    /// Counts if it is an application service's. Clients send the one that they had when they log in again.
    CheckedForAppservice,
}

macro_rules! scheme {
    ($scheme:ty: $token:ident, |$session:ident| -> $caller:ty $admit:block) => {
        impl Scheme for $scheme {
            type Caller = $caller;
            const TOKEN: Token = Token::$token;

            fn admit($session: Option<Arc<Session>>) -> Result<Self::Caller, ApiError> {
                $admit
            }
        }
    };
}

scheme!(NoAuthentication: Ignored, |_session| -> () { Ok(()) });
scheme!(NoAccessToken: Ignored, |_session| -> () { Ok(()) });
scheme!(AccessToken: Checked, |session| -> Arc<Session> { session.ok_or_else(ApiError::missing_token) });
scheme!(AccessTokenOptional: Checked, |session| -> Option<Arc<Session>> { Ok(session) });
scheme!(AppserviceToken: Checked, |session| -> Arc<Session> {
    let session = session.ok_or_else(ApiError::missing_token)?;
    if session.appservice_id.is_none() {
        return Err(ApiError::forbidden("Only application services may do this"));
    }
    Ok(session)
});
scheme!(AppserviceTokenOptional: CheckedForAppservice, |session| -> Option<Arc<Session>> { Ok(session) });

/// Finds the session of a request, and takes a token out of its query so that no handler takes it for a field.
pub(crate) async fn identify<S: Authenticator>(
    state: &S,
    parts: &mut Parts,
    token: Token,
) -> Result<Option<Arc<Session>>, ApiError> {
    let query_token = take_query_token(&mut parts.uri);
    if token == Token::Ignored {
        return Ok(None);
    }
    let Some(shown) = bearer_token(parts).map(Cow::Borrowed).or(query_token.map(Cow::Owned)) else {
        return Ok(None);
    };
    let credentials = Credentials {
        token: &shown,
        client_address: client_address(parts),
        user_agent: parts.headers.get(USER_AGENT).and_then(|name| name.to_str().ok()),
        query: parts.uri.query(),
    };
    match (state.authenticate(credentials).await, token) {
        (Ok(session), Token::CheckedForAppservice) if session.appservice_id.is_none() => Ok(None),
        (Err(AuthError::UnknownToken { .. }), Token::CheckedForAppservice) => Ok(None),
        (outcome, _) => Ok(Some(outcome?)),
    }
}

/// The token of `Authorization: Bearer`. Another scheme is no business of ours, and no token.
fn bearer_token(parts: &Parts) -> Option<&str> {
    let (scheme, token) = parts.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// The token of `?access_token=`, deprecated since version 1.11. It leaves the query, where it was a secret among
/// fields that some handlers pass on.
fn take_query_token(uri: &mut Uri) -> Option<String> {
    let query = uri.query()?;
    let is_token = |pair: &&str| pair.starts_with("access_token=");
    let pair = query.split('&').find(is_token)?;
    let (_, token) = form_urlencoded::parse(pair.as_bytes()).next()?;
    let token = token.into_owned();

    let rest: Vec<&str> = query.split('&').filter(|pair| !is_token(pair)).collect();
    let rest = format!("{}?{}", uri.path(), rest.join("&"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(rest.parse().ok()?);
    *uri = Uri::from_parts(parts).ok()?;
    (!token.is_empty()).then_some(token)
}

/// The address that the connection came from, as the listener tells.
pub(crate) fn client_address(parts: &Parts) -> IpAddr {
    parts
        .extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| address.ip().to_canonical())
}

/// The session of a request to a route that has no type of ruma's, such as an upload that is not held in memory, or
/// the operators' API. Refuses like an endpoint with required authentication.
#[derive(Clone, Debug)]
pub struct Authenticated(pub Arc<Session>);

impl<S: Authenticator> FromRequestParts<S> for Authenticated {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let session = identify(state, parts, Token::Checked).await?.ok_or_else(ApiError::missing_token)?;
        if session.standing == Standing::Locked {
            return Err(ApiError::user_locked());
        }
        Ok(Self(session))
    }
}

/// The address that a request came from; `0.0.0.0` where the listener does not tell.
#[derive(Clone, Copy, Debug)]
pub struct ClientAddress(pub IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for ClientAddress {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(client_address(parts)))
    }
}
