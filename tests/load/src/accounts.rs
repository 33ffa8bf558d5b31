//! Accounts for the scenarios: made when first asked for, then used again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hmac::{Hmac, Mac as _};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::client::{Homeserver, Session};

const ADMIN_REGISTER: &str = "/_synapse/admin/v1/register";
const REGISTER: &str = "/_matrix/client/v3/register";

/// How accounts are made.
#[derive(Clone, Debug)]
pub(crate) enum Registration {
    /// By the operators' interface, proving that the shared secret is known.
    SharedSecret(String),
    /// By the clients' interface with a registration token.
    Token(String),
    /// By the clients' interface of a server that lets everyone in.
    Open,
}

/// The accounts of one run.
#[derive(Debug)]
pub(crate) struct Accounts {
    server: Arc<Homeserver>,
    registration: Registration,
    run: String,
    concurrency: usize,
    crowd: Vec<Session>,
    numbered: usize,
    named: BTreeMap<String, Session>,
}

#[derive(Deserialize)]
struct Registered {
    user_id: String,
    access_token: String,
}

impl Accounts {
    /// No accounts yet. `run` tells this run's user names from those of others on the same server; at most
    /// `concurrency` registrations are under way at once.
    pub(crate) fn new(server: Arc<Homeserver>, registration: Registration, run: String, concurrency: usize) -> Self {
        Self { server, registration, run, concurrency, crowd: Vec::new(), numbered: 0, named: BTreeMap::new() }
    }

    /// The first `count` of the crowd, the same ones whenever they are asked for.
    pub(crate) async fn crowd(&mut self, count: usize) -> anyhow::Result<Vec<Session>> {
        let missing = count.saturating_sub(self.crowd.len());
        // A number is used once, even if registering fails halfway and is tried again for the next scenario.
        let numbers = self.numbered..self.numbered + missing;
        self.numbered = numbers.end;
        let new: Vec<Session> = stream::iter(numbers)
            .map(|number| self.register(format!("load-{}-{number}", self.run)))
            .buffered(self.concurrency)
            .try_collect()
            .await?;
        self.crowd.extend(new);
        Ok(self.crowd.iter().take(count).cloned().collect())
    }

    /// An account that is in no rooms of the crowd's.
    pub(crate) async fn named(&mut self, name: &str) -> anyhow::Result<Session> {
        if let Some(session) = self.named.get(name) {
            return Ok(session.clone());
        }
        let session = self.register(format!("load-{}-{name}", self.run)).await?;
        self.named.insert(name.to_owned(), session.clone());
        Ok(session)
    }

    async fn register(&self, user: String) -> anyhow::Result<Session> {
        // Good enough for an account of a test server, and known to whoever wants to look into one.
        let password = format!("password of {user}");
        let registered = match &self.registration {
            Registration::SharedSecret(secret) => self.register_as_operator(&user, &password, secret).await,
            Registration::Token(token) => self.register_as_client(&user, &password, Some(token)).await,
            Registration::Open => self.register_as_client(&user, &password, None).await,
        }
        .with_context(|| format!("register {user}"))?;
        Ok(Session {
            server: self.server.clone(),
            user_id: registered.user_id.into(),
            password: password.into(),
            token: registered.access_token.into(),
        })
    }

    async fn register_as_operator(&self, user: &str, password: &str, secret: &str) -> anyhow::Result<Registered> {
        #[derive(Deserialize)]
        struct Nonce {
            nonce: String,
        }
        let answer = self.server.call(Method::GET, ADMIN_REGISTER, None, None, Duration::ZERO).await?;
        let Nonce { nonce } = serde_json::from_slice(&answer)?;
        let body = json!({
            "nonce": nonce,
            "username": user,
            "password": password,
            "admin": false,
            "mac": registration_mac(secret, &nonce, user, password)?,
        });
        let answer = self.server.call(Method::POST, ADMIN_REGISTER, None, Some(&body), Duration::ZERO).await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Registers by user-interactive authentication, one stage after the other of the first flow that asks for
    /// nothing but what we can give.
    async fn register_as_client(&self, user: &str, password: &str, token: Option<&str>) -> anyhow::Result<Registered> {
        const STAGES_MAX: usize = 4;
        let mut auth: Option<Value> = None;
        for _ in 0..=STAGES_MAX {
            let mut body = json!({ "username": user, "password": password });
            if let Some(auth) = auth {
                body["auth"] = auth;
            }
            let answer = self.server.exchange(Method::POST, REGISTER, None, Some(&body), Duration::ZERO).await?;
            match answer.status {
                StatusCode::OK => return Ok(serde_json::from_slice(&answer.body)?),
                StatusCode::UNAUTHORIZED => {
                    let challenge: Challenge =
                        serde_json::from_slice(&answer.body).context("registration is refused")?;
                    auth = Some(challenge.answer(token)?);
                }
                status => bail!("registration is refused: {status} {}", String::from_utf8_lossy(&answer.body)),
            }
        }
        bail!("registration asks for more than {STAGES_MAX} stages")
    }
}

/// What user-interactive authentication asks for.
#[derive(Deserialize)]
struct Challenge {
    session: String,
    flows: Vec<Flow>,
    #[serde(default)]
    completed: Vec<String>,
    /// Why the stage before was not passed.
    errcode: Option<String>,
}

#[derive(Deserialize)]
struct Flow {
    stages: Vec<String>,
}

impl Challenge {
    /// The `auth` of the next request.
    fn answer(&self, token: Option<&str>) -> anyhow::Result<Value> {
        const DUMMY: &str = "m.login.dummy";
        const TOKEN: &str = "m.login.registration_token";
        if let Some(errcode) = &self.errcode {
            bail!("the server does not accept the stage: {errcode}");
        }
        let can_do = |stage: &String| stage == DUMMY || (stage == TOKEN && token.is_some());
        let stage = self
            .flows
            .iter()
            .filter(|flow| flow.stages.iter().all(can_do))
            .find_map(|flow| flow.stages.iter().find(|stage| !self.completed.contains(stage)))
            .ok_or_else(|| anyhow!("the server offers no way to register but with a token or more"))?;
        let mut auth = json!({ "type": stage, "session": self.session });
        if stage == TOKEN {
            auth["token"] = json!(token);
        }
        Ok(auth)
    }
}

/// The proof of the shared secret: HMAC-SHA1 over nonce, user, password and "notadmin", parted by NUL, in hex.
fn registration_mac(secret: &str, nonce: &str, user: &str, password: &str) -> anyhow::Result<String> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).context("take the shared secret as a key")?;
    mac.update([nonce, user, password, "notadmin"].join("\0").as_bytes());
    Ok(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value is `printf 'nonce\0user\0word\0notadmin' | openssl dgst -sha1 -hmac secret`.
    #[test]
    fn the_mac_is_what_openssl_computes() {
        let mac = registration_mac("secret", "nonce", "user", "word").unwrap();
        assert_eq!(mac, "47ff1967f84b64892bedafbd9540b1d50f3aa54c");
    }

    fn challenge(flows: Value, completed: Value) -> Challenge {
        serde_json::from_value(json!({ "session": "s", "flows": flows, "completed": completed })).unwrap()
    }

    /// The token goes first, then what remains; a flow that asks for mail is left alone.
    #[test]
    fn stages_are_answered_one_after_the_other() {
        let flows = json!([
            { "stages": ["m.login.email.identity"] },
            { "stages": ["m.login.registration_token", "m.login.dummy"] },
        ]);
        let first = challenge(flows.clone(), json!([])).answer(Some("t")).unwrap();
        assert_eq!(first, json!({ "type": "m.login.registration_token", "session": "s", "token": "t" }));
        let second = challenge(flows, json!(["m.login.registration_token"])).answer(Some("t")).unwrap();
        assert_eq!(second, json!({ "type": "m.login.dummy", "session": "s" }));
    }

    /// A stage that failed is not tried again: a wrong token stays wrong.
    #[test]
    fn a_failed_stage_ends_registration() {
        let flows = json!([{ "stages": ["m.login.registration_token"] }]);
        let failed = Challenge { errcode: Some("M_UNAUTHORIZED".to_owned()), ..challenge(flows, json!([])) };
        let error = failed.answer(Some("wrong")).unwrap_err();
        assert!(error.to_string().contains("M_UNAUTHORIZED"), "{error}");
    }

    /// Without a token, a server that asks for one cannot be used.
    #[test]
    fn a_token_that_we_lack_is_an_error() {
        let flows = json!([{ "stages": ["m.login.registration_token"] }]);
        assert!(challenge(flows, json!([])).answer(None).is_err());
    }
}
