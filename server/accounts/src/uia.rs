//! User-interactive authentication: a request that matters is made again until its stages are done.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#user-interactive-authentication-api>

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{
    UserId,
    api::{
        client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
        error::{ErrorKind, StandardErrorBody},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::{Accounts, Error, tokens, usernames};

/// How long an authentication may take, in milliseconds.
const LIFETIME_MS: i64 = 30 * 60 * 1000;
/// Authentications under way at the most; the oldest make place.
pub(crate) const SESSIONS_MAX: i64 = 10_000;
const SESSION_ID_LENGTH: usize = 24;

/// One thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Show the password of the account.
    #[serde(rename = "m.login.password")]
    Password,
    /// Show a registration token.
    #[serde(rename = "m.login.registration_token")]
    RegistrationToken,
    /// Ask once more.
    #[serde(rename = "m.login.dummy")]
    Dummy,
}

impl Stage {
    fn auth_type(self) -> AuthType {
        match self {
            Self::Password => AuthType::Password,
            Self::RegistrationToken => AuthType::RegistrationToken,
            Self::Dummy => AuthType::Dummy,
        }
    }
}

/// What is asked for: an authentication that was begun for one thing is worth nothing for another.
#[derive(Clone, Debug)]
pub struct Operation<'a> {
    fingerprint: String,
    user_id: Option<&'a UserId>,
}

impl<'a> Operation<'a> {
    /// An endpoint, who asks, and what distinguishes this request from others of theirs (all but `auth`).
    pub fn new(endpoint: &str, user_id: Option<&'a UserId>, subject: &[&str]) -> Self {
        let mut hash = Sha256::new();
        let parts = [endpoint, user_id.map_or("", UserId::as_str)];
        for part in parts.iter().chain(subject) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Self { fingerprint: URL_SAFE_NO_PAD.encode(hash.finalize()), user_id }
    }
}

/// All stages are done.
#[derive(Clone, Debug, Default)]
pub struct Authorization {
    /// The registration token that was shown.
    pub registration_token: Option<String>,
}

/// Why a request may not go on.
#[derive(Debug)]
pub enum UiaError {
    /// There is more to do: this is the body of the 401.
    Challenge(Box<UiaaInfo>),
    /// Something else went wrong.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for UiaError {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Where an authentication stands.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    completed: Vec<Stage>,
    registration_token: Option<String>,
}

/// An attempt at a stage that did not succeed, and may be made again.
struct Attempt(ErrorKind, &'static str);

impl Accounts {
    /// Lets a request go on once a client has done all stages of one of the flows.
    ///
    /// # Errors
    ///
    /// [`UiaError::Challenge`] with what is left to do, and what was wrong with the attempt.
    pub async fn authorize(
        &self,
        operation: &Operation<'_>,
        flows: &[&[Stage]],
        auth: Option<&AuthData>,
    ) -> Result<Authorization, UiaError> {
        // "A request to an endpoint that uses User-Interactive Authentication never succeeds without auth."
        let Some(auth) = auth else {
            return Err(self.challenge(operation, flows, None, State::default(), None).await);
        };
        let mut state = State::default();
        let session_id = auth.session();
        if let Some(session_id) = session_id {
            match self.uia_state(operation, session_id).await? {
                Some(known) => state = known,
                None => {
                    let attempt = Attempt(ErrorKind::Forbidden, "The authentication has expired; begin anew");
                    return Err(self.challenge(operation, flows, None, State::default(), Some(attempt)).await);
                }
            }
        }
        if let Err(attempt) = self.attempt(operation, flows, auth, &mut state).await? {
            return Err(self.challenge(operation, flows, session_id, state, Some(attempt)).await);
        }
        let is_done = flows.iter().any(|flow| flow.iter().all(|stage| state.completed.contains(stage)));
        if !is_done {
            return Err(self.challenge(operation, flows, session_id, state, None).await);
        }
        // Of two requests that finish the same authentication at once, one goes on.
        if let Some(session_id) = session_id
            && !self.store.end_uia_session(session_id).await?
        {
            let attempt = Attempt(ErrorKind::Forbidden, "The authentication was used already; begin anew");
            return Err(self.challenge(operation, flows, None, State::default(), Some(attempt)).await);
        }
        Ok(Authorization { registration_token: state.registration_token })
    }

    async fn uia_state(&self, operation: &Operation<'_>, session_id: &str) -> Result<Option<State>, Error> {
        if session_id.len() > SESSION_ID_LENGTH || session_id.contains('\0') {
            return Ok(None);
        }
        let Some((fingerprint, state)) = self.store.uia_session(session_id, self.now_ms()).await? else {
            return Ok(None);
        };
        if fingerprint != operation.fingerprint {
            return Err(Error::OperationChanged);
        }
        let corrupt = |_| Error::Store(myelin_store::Error::Corrupt { what: "authentication" });
        serde_json::from_str(&state).map(Some).map_err(corrupt)
    }

    /// Tries one stage. The outer error is not the client's.
    async fn attempt(
        &self,
        operation: &Operation<'_>,
        flows: &[&[Stage]],
        auth: &AuthData,
        state: &mut State,
    ) -> Result<Result<(), Attempt>, Error> {
        // "the client retries the request with an auth dict containing only the session key"
        let Some(auth_type) = auth.auth_type() else { return Ok(Ok(())) };
        let offered = flows.iter().flat_map(|flow| flow.iter()).copied();
        let Some(stage) = offered.into_iter().find(|stage| stage.auth_type() == auth_type) else {
            return Ok(Err(Attempt(ErrorKind::Unrecognized, "This is no stage of any of the flows")));
        };
        // "Completed stages cannot be retried by clients"
        if state.completed.contains(&stage) {
            return Ok(Ok(()));
        }
        let outcome = match (stage, auth) {
            (Stage::Password, AuthData::Password(shown)) => {
                self.attempt_password(operation.user_id, &shown.identifier, &shown.password).await?
            }
            (Stage::RegistrationToken, AuthData::RegistrationToken(shown)) => {
                if self.is_registration_token_valid(&shown.token).await? {
                    state.registration_token = Some(shown.token.clone());
                    Ok(())
                } else {
                    Err(Attempt(ErrorKind::Forbidden, "The registration token is not valid"))
                }
            }
            (Stage::Dummy, AuthData::Dummy(_)) => Ok(()),
            _ => Err(Attempt(ErrorKind::BadJson, "The authentication does not fit its type")),
        };
        if outcome.is_ok() {
            state.completed.push(stage);
        }
        Ok(outcome)
    }

    async fn attempt_password(
        &self,
        user_id: Option<&UserId>,
        identifier: &UserIdentifier,
        password: &str,
    ) -> Result<Result<(), Attempt>, Error> {
        let wrong = Attempt(ErrorKind::Forbidden, "Invalid username or password");
        // "In the case that the homeserver does not know about the supplied 3PID, the homeserver must respond with 403
        // Forbidden." We know none.
        let UserIdentifier::Matrix(named) = identifier else { return Err(Error::UnknownThirdPartyIdentifier) };
        let Some(user_id) = user_id else { return Ok(Err(wrong)) };
        // Whoever asks shows the own password, not anybody's.
        if !usernames::meant(&named.user, self.server_name()).iter().any(|meant| meant == user_id) {
            return Ok(Err(wrong));
        }
        Ok(if self.is_password_of(user_id, password).await? { Ok(()) } else { Err(wrong) })
    }

    /// Remembers where an authentication stands, and tells the client what is left to do.
    async fn challenge(
        &self,
        operation: &Operation<'_>,
        flows: &[&[Stage]],
        session_id: Option<&str>,
        state: State,
        attempt: Option<Attempt>,
    ) -> UiaError {
        let session_id = session_id.map_or_else(|| tokens::readable(SESSION_ID_LENGTH), str::to_owned);
        let text = serde_json::to_string(&state).expect("names and strings have a form in JSON");
        let expires_ts = self.now_ms() + LIFETIME_MS;
        if let Err(error) = self.store.put_uia_session(&session_id, &operation.fingerprint, &text, expires_ts).await {
            return error.into();
        }
        let stages = |flow: &&[Stage]| AuthFlow::new(flow.iter().map(|stage| stage.auth_type()).collect());
        let mut info = UiaaInfo::new(flows.iter().map(stages).collect());
        info.completed = state.completed.iter().map(|stage| stage.auth_type()).collect();
        // Some clients expect it to be there.
        info.params = RawValue::from_string("{}".to_owned()).ok();
        info.session = Some(session_id);
        info.auth_error =
            attempt.map(|Attempt(kind, message)| Box::new(StandardErrorBody::new(kind, message.to_owned())));
        UiaError::Challenge(Box::new(info))
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        UserId,
        api::client::uiaa::{AuthData, AuthType, UiaaInfo},
        user_id,
    };
    use serde_json::{Value, json};

    use super::{Authorization, Operation, Stage, UiaError};
    use crate::{
        Accounts, Error,
        testing::{PASSWORD, Server, on_both},
    };

    const BY_PASSWORD: &[&[Stage]] = &[&[Stage::Password]];

    fn alice() -> &'static UserId {
        user_id!("@alice:example.org")
    }

    fn auth(json: Value) -> AuthData {
        serde_json::from_value(json).unwrap()
    }

    fn password(session: Option<&str>, user: &str, password: &str) -> AuthData {
        let identifier = json!({ "type": "m.id.user", "user": user });
        let mut json = json!({ "type": "m.login.password", "identifier": identifier, "password": password });
        if let Some(session) = session {
            json["session"] = session.into();
        }
        auth(json)
    }

    fn challenged(outcome: Result<Authorization, UiaError>) -> UiaaInfo {
        match outcome {
            Err(UiaError::Challenge(info)) => *info,
            other => panic!("{other:?}"),
        }
    }

    fn message(info: &UiaaInfo) -> Value {
        serde_json::to_value(info).unwrap()["errcode"].clone()
    }

    async fn begin(accounts: &Accounts, operation: &Operation<'_>, flows: &[&[Stage]]) -> String {
        let info = challenged(accounts.authorize(operation, flows, None).await);
        assert!(info.completed.is_empty() && info.auth_error.is_none());
        info.session.unwrap()
    }

    /// The own password lets a request go on, once; a wrong one, or another user's, may be tried again.
    #[tokio::test]
    async fn passwords_authorize_one_request() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            server.user(&accounts, "alice").await;
            server.user(&accounts, "bob").await;
            let operation = Operation::new("delete", Some(alice()), &["PHONE"]);
            let session = begin(&accounts, &operation, BY_PASSWORD).await;
            for wrong in [password(Some(&session), "alice", "wrong"), password(Some(&session), "bob", PASSWORD)] {
                let info = challenged(accounts.authorize(&operation, BY_PASSWORD, Some(&wrong)).await);
                assert_eq!((message(&info), info.session.as_deref()), (json!("M_FORBIDDEN"), Some(&*session)));
            }
            let address = json!({ "type": "m.id.thirdparty", "medium": "email", "address": "alice@example.org" });
            let by_address = json!({ "type": "m.login.password", "identifier": address, "password": PASSWORD });
            let refused = accounts.authorize(&operation, BY_PASSWORD, Some(&auth(by_address))).await;
            assert!(matches!(refused, Err(UiaError::Failed(Error::UnknownThirdPartyIdentifier))));
            let right = password(Some(&session), "@alice:example.org", PASSWORD);
            accounts.authorize(&operation, BY_PASSWORD, Some(&right)).await.unwrap();
            let again = challenged(accounts.authorize(&operation, BY_PASSWORD, Some(&right)).await);
            assert_ne!(again.session.unwrap(), session);
            // Without a session, a client that shows all at once is believed.
            let at_once = password(None, "alice", PASSWORD);
            accounts.authorize(&operation, BY_PASSWORD, Some(&at_once)).await.unwrap();
        })
        .await;
    }

    /// What was begun for one request is worth nothing for another, nor for another user, nor after its time.
    #[tokio::test]
    async fn authentications_are_bound_to_their_request() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            server.user(&accounts, "alice").await;
            let operation = Operation::new("delete", Some(alice()), &["PHONE"]);
            let session = begin(&accounts, &operation, BY_PASSWORD).await;
            let right = password(Some(&session), "alice", PASSWORD);
            for other in [
                Operation::new("delete", Some(alice()), &["TABLET"]),
                Operation::new("delete", Some(alice()), &["PHO", "NE"]),
                Operation::new("deactivate", Some(alice()), &["PHONE"]),
                Operation::new("delete", Some(user_id!("@bob:example.org")), &["PHONE"]),
            ] {
                let refused = accounts.authorize(&other, BY_PASSWORD, Some(&right)).await;
                assert!(matches!(refused, Err(UiaError::Failed(Error::OperationChanged))));
            }
            server.set_time(server.time() + super::LIFETIME_MS);
            let info = challenged(accounts.authorize(&operation, BY_PASSWORD, Some(&right)).await);
            assert_eq!(message(&info), "M_FORBIDDEN");
        })
        .await;
    }

    /// Stages are done one after the other, are remembered, and one that is not asked for is refused.
    #[tokio::test]
    async fn stages_are_done_one_by_one() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let flows: &[&[Stage]] = &[&[Stage::RegistrationToken, Stage::Dummy]];
            let operation = Operation::new("register", None, &[]);
            let session = begin(&accounts, &operation, flows).await;
            let wrong = auth(json!({ "type": "m.login.registration_token", "token": "no", "session": session }));
            let info = challenged(accounts.authorize(&operation, flows, Some(&wrong)).await);
            assert_eq!(message(&info), "M_FORBIDDEN");
            let token = accounts.registration_token();
            let right = auth(json!({ "type": "m.login.registration_token", "token": token, "session": session }));
            let info = challenged(accounts.authorize(&operation, flows, Some(&right)).await);
            assert_eq!(info.completed, [AuthType::RegistrationToken]);
            let strange = auth(json!({ "type": "m.login.terms", "session": session }));
            let info = challenged(accounts.authorize(&operation, flows, Some(&strange)).await);
            assert_eq!((message(&info), info.completed), (json!("M_UNRECOGNIZED"), vec![AuthType::RegistrationToken]));
            let reminder = auth(json!({ "session": session }));
            challenged(accounts.authorize(&operation, flows, Some(&reminder)).await);
            let dummy = auth(json!({ "type": "m.login.dummy", "session": session }));
            let done = accounts.authorize(&operation, flows, Some(&dummy)).await.unwrap();
            assert_eq!(done.registration_token.as_deref(), Some(token));
        })
        .await;
    }
}
