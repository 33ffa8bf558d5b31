//! Registration by operators' tools, who know a secret that they share with the server.
//!
//! A tool asks for a nonce, and sends it back with the user's name and password and an HMAC-SHA1 over
//! `nonce \0 user \0 password \0 (admin | notadmin) [\0 user_type]`, keyed by the secret.

use hmac::{Hmac, Mac as _};
use sha1::Sha1;

use crate::{Accounts, Error, LoggedIn, NewDevice, NewUser, Result, tokens};

/// How long a nonce can be used, in milliseconds.
const NONCE_LIFETIME_MS: i64 = 60_000;
const NONCE_LENGTH: usize = 32;
/// What nonces are for, among the other authentications under way, whose bound holds for them too.
const OPERATION: &str = "shared-secret registration";

/// A user that a tool wants to be made.
#[derive(Clone, Copy)]
pub struct SharedSecretRegistration<'a> {
    /// The nonce.
    pub nonce: &'a str,
    /// The name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
    /// Whether it is an operator.
    pub admin: bool,
    /// A kind of user; covered by the code, and otherwise without meaning here.
    pub user_type: Option<&'a str>,
    /// What it is called.
    pub display_name: Option<&'a str>,
    /// The code, in hexadecimal digits.
    pub mac: &'a str,
}

impl std::fmt::Debug for SharedSecretRegistration<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedSecretRegistration").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Accounts {
    /// A nonce for a tool, good for one registration in the next minute, on any replica.
    ///
    /// # Errors
    ///
    /// [`Error::SharedSecretDisabled`].
    pub async fn create_nonce(&self) -> Result<String> {
        if self.options.shared_secret.is_none() {
            return Err(Error::SharedSecretDisabled);
        }
        let nonce = tokens::readable(NONCE_LENGTH);
        self.store.put_uia_session(&nonce, OPERATION, "{}", self.now_ms() + NONCE_LIFETIME_MS).await?;
        Ok(nonce)
    }

    /// Makes the user that a tool asks for, logged in.
    ///
    /// # Errors
    ///
    /// [`Error::SharedSecretDisabled`], [`Error::InvalidNonce`], [`Error::WrongMac`], and those of
    /// [`Accounts::create_user`].
    pub async fn register_by_shared_secret(&self, request: SharedSecretRegistration<'_>) -> Result<LoggedIn> {
        let secret = self.options.shared_secret.as_deref().ok_or(Error::SharedSecretDisabled)?;
        self.use_nonce(request.nonce).await?;
        check_mac(secret, &request)?;
        let new = NewUser {
            username: request.username,
            password: request.password,
            is_admin: request.admin,
            display_name: request.display_name,
        };
        let user_id = self.create_user(new).await?;
        let user_nid = self.store.user_nid(&user_id).await?;
        self.log_in(user_nid, user_id, NewDevice::default()).await
    }

    async fn use_nonce(&self, nonce: &str) -> Result<()> {
        if nonce.len() != NONCE_LENGTH || nonce.contains('\0') {
            return Err(Error::InvalidNonce);
        }
        match self.store.uia_session(nonce, self.now_ms()).await? {
            Some((operation, _)) if operation == OPERATION && self.store.end_uia_session(nonce).await? => Ok(()),
            _ => Err(Error::InvalidNonce),
        }
    }
}

fn check_mac(secret: &str, request: &SharedSecretRegistration<'_>) -> Result<()> {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).map_err(|_| Error::WrongMac)?;
    mac.update(request.nonce.as_bytes());
    mac.update(b"\0");
    mac.update(request.username.as_bytes());
    mac.update(b"\0");
    mac.update(request.password.as_bytes());
    mac.update(b"\0");
    mac.update(if request.admin { b"admin" } else { b"notadmin" });
    if let Some(user_type) = request.user_type {
        mac.update(b"\0");
        mac.update(user_type.as_bytes());
    }
    let shown = from_hex(request.mac).ok_or(Error::WrongMac)?;
    // Takes the same time wherever the difference is.
    mac.verify_slice(&shown).map_err(|_| Error::WrongMac)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) || text.len() > 128 {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{SharedSecretRegistration, check_mac};
    use crate::{
        Error,
        testing::{PASSWORD, Server, on_both},
    };

    fn request<'a>(nonce: &'a str, mac: &'a str) -> SharedSecretRegistration<'a> {
        SharedSecretRegistration {
            nonce,
            username: "pepper",
            password: PASSWORD,
            admin: true,
            user_type: None,
            display_name: None,
            mac,
        }
    }

    fn sign(secret: &str, nonce: &str, password: &str, role: &str) -> String {
        use hmac::Mac as _;
        let mut mac = hmac::Hmac::<sha1::Sha1>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(format!("{nonce}\0pepper\0{password}\0{role}").as_bytes());
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The code covers every part, as another implementation of HMAC-SHA1 computes it.
    #[test]
    fn code_matches_a_known_one() {
        // printf 'thisisanonce\0pepper_roni\0pizza\0admin' | openssl dgst -sha1 -hmac shared_secret
        let known = SharedSecretRegistration {
            nonce: "thisisanonce",
            username: "pepper_roni",
            password: "pizza",
            admin: true,
            user_type: None,
            display_name: None,
            mac: KNOWN_MAC,
        };
        check_mac("shared_secret", &known).unwrap();
        for wrong in [
            SharedSecretRegistration { admin: false, ..known },
            SharedSecretRegistration { user_type: Some("bot"), ..known },
            SharedSecretRegistration { password: "pizz", ..known },
            SharedSecretRegistration { mac: "", ..known },
            SharedSecretRegistration { mac: "zz", ..known },
            SharedSecretRegistration { mac: "é", ..known },
        ] {
            assert!(matches!(check_mac("shared_secret", &wrong), Err(Error::WrongMac)));
        }
        assert!(check_mac("other", &known).is_err());
    }

    const KNOWN_MAC: &str = "48715842ad67d5dc9a9ee938a3bda4fcfae8d7c7";

    /// A tool that knows the secret makes a user with each nonce; a nonce works once, on any replica, for a minute.
    #[tokio::test]
    async fn tools_make_users() {
        on_both(async |server: &Server| {
            let with_secret = |options: &mut crate::AccountsOptions| options.shared_secret = Some("secret".to_owned());
            let accounts = server.accounts_with(with_secret).await;
            let replica = server.accounts_with(with_secret).await;
            let nonce = accounts.create_nonce().await.unwrap();
            let mac = sign("secret", &nonce, PASSWORD, "admin");
            let login = replica.register_by_shared_secret(request(&nonce, &mac)).await.unwrap();
            assert!(accounts.session(&login.access_token, None).await.unwrap().is_admin);
            let again = accounts.register_by_shared_secret(request(&nonce, &mac)).await;
            assert!(matches!(again, Err(Error::InvalidNonce)));
            let nonce = accounts.create_nonce().await.unwrap();
            let mac = sign("guess", &nonce, PASSWORD, "admin");
            let wrong = accounts.register_by_shared_secret(request(&nonce, &mac)).await;
            assert!(matches!(wrong, Err(Error::WrongMac)));
            let nonce = accounts.create_nonce().await.unwrap();
            server.set_time(server.time() + super::NONCE_LIFETIME_MS);
            let mac = sign("secret", &nonce, PASSWORD, "admin");
            let late = accounts.register_by_shared_secret(request(&nonce, &mac)).await;
            assert!(matches!(late, Err(Error::InvalidNonce)));
            let without = server.accounts().await;
            assert!(matches!(without.create_nonce().await, Err(Error::SharedSecretDisabled)));
        })
        .await;
    }
}
