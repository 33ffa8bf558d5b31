//! Logging in and out.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#legacy-login>

use std::time::Duration;

use myelin_store::{Account, KeepDevices, LogIn, Refresh, RefreshOutcome};
use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};

use crate::{
    Accounts, Error, Result, Session,
    devices::{check_device_id, check_device_name},
    sessions::Ended,
    tokens::{self, Token},
    usernames,
};

/// How long a login token can be used.
const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_secs(120);
/// Characters of a device id that we choose, and how many.
const DEVICE_ID_CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DEVICE_ID_LENGTH: usize = 10;

/// The device that someone logs in on.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewDevice<'a> {
    /// A known one, or a new one of this name; without it we choose.
    pub device_id: Option<&'a DeviceId>,
    /// What it is called if it is new.
    pub initial_display_name: Option<&'a str>,
    /// Whether the client can refresh tokens. If so, its access tokens expire.
    pub can_refresh: bool,
}

impl NewDevice<'_> {
    /// Refuses a device that nobody could log in on, so that nothing has to be undone for its sake.
    pub(crate) fn check(&self) -> Result<()> {
        self.device_id.map_or(Ok(()), check_device_id)?;
        self.initial_display_name.map_or(Ok(()), check_device_name)
    }
}

/// Someone is logged in.
#[derive(Clone)]
pub struct LoggedIn {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
    /// The access token. It is told this once.
    pub access_token: String,
    /// The refresh token. It is told this once.
    pub refresh_token: Option<String>,
    /// How long the access token lives.
    pub expires_in: Option<Duration>,
}

impl std::fmt::Debug for LoggedIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedIn")
            .field("user_id", &self.user_id)
            .field("device_id", &self.device_id)
            .finish_non_exhaustive()
    }
}

/// A token by which another client of the same user can log in.
#[derive(Clone)]
pub struct LoginToken {
    /// The token.
    pub token: String,
    /// How long it can be used.
    pub expires_in: Duration,
}

impl std::fmt::Debug for LoginToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoginToken").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl Accounts {
    /// Logs in by "user ID or user localpart" and password.
    ///
    /// # Errors
    ///
    /// [`Error::WrongPassword`] for an unknown user as for a wrong password, after the same time;
    /// [`Error::Deactivated`] and [`Error::Locked`].
    pub async fn log_in_by_password(&self, name: &str, password: &str, device: NewDevice<'_>) -> Result<LoggedIn> {
        device.check()?;
        let account = self.meant_account(name).await?;
        // Nobody has the password of an account that has ended, so that it can be told to whomever asks.
        if account.as_ref().is_some_and(|account| account.deactivated_ts.is_some()) {
            return Err(Error::Deactivated);
        }
        let stored = account.as_ref().and_then(|account| account.password_hash.as_deref());
        let matches = self.passwords.verify(password, stored).await?;
        match account {
            Some(account) if matches && account.locked => Err(Error::Locked),
            Some(account) if matches => self.log_in(account.user_nid, account.user_id, device).await,
            _ => Err(Error::WrongPassword),
        }
    }

    /// What attempts to log in as "user ID or user localpart" are counted by: the same for all spellings that can mean
    /// the same user.
    #[must_use]
    pub fn login_key(&self, name: &str) -> String {
        let meant = usernames::meant(name, &self.options.server_name);
        // A name that means nobody opens no account: how it is counted does not matter.
        meant.last().map_or_else(|| name.to_owned(), |user_id| user_id.to_string())
    }

    /// Logs in by a token of [`Accounts::create_login_token`], which is used up.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidLoginToken`], [`Error::Deactivated`], [`Error::Locked`].
    pub async fn log_in_by_token(&self, token: &str, device: NewDevice<'_>) -> Result<LoggedIn> {
        device.check()?;
        let taken = self.store.take_login_token(&tokens::hash(token), self.now_ms()).await?;
        let user_id = taken.ok_or(Error::InvalidLoginToken)?;
        let account = self.store.account(&user_id).await?.ok_or(Error::InvalidLoginToken)?;
        if account.locked {
            return Err(Error::Locked);
        }
        self.log_in(account.user_nid, user_id, device).await
    }

    /// Makes a token by which another client of this user can log in, once and soon.
    pub async fn create_login_token(&self, session: &Session) -> Result<LoginToken> {
        let token = Token::login();
        let now_ms = self.now_ms();
        let expires_ts = now_ms + LOGIN_TOKEN_LIFETIME.as_millis() as i64;
        self.store.create_login_token(session.user_nid, &token.hash, expires_ts, now_ms).await?;
        Ok(LoginToken { token: token.text, expires_in: LOGIN_TOKEN_LIFETIME })
    }

    /// Logs a user in without asking for anything: whoever calls this has asked.
    pub(crate) async fn log_in(&self, user_nid: i64, user_id: OwnedUserId, device: NewDevice<'_>) -> Result<LoggedIn> {
        device.check()?;
        let device_id = device.device_id.map_or_else(new_device_id, DeviceId::to_owned);
        let access = Token::access();
        let refresh = device.can_refresh.then(Token::refresh);
        let expires_in = device.can_refresh.then_some(self.options.access_token_lifetime);
        let now_ms = self.now_ms();
        let login = LogIn {
            user_nid,
            device_id: device_id.as_str(),
            initial_display_name: device.initial_display_name,
            access_token_hash: &access.hash,
            expires_ts: expires_in.map(|lifetime| now_ms + lifetime.as_millis() as i64),
            refresh_token_hash: refresh.as_ref().map(|token| token.hash.as_slice()),
            now_ms,
        };
        let device_nid = self.store.log_in(login).await?.ok_or(Error::Deactivated)?;
        // A known device's tokens have ended.
        self.forget_sessions(&Ended::Device(device_nid));
        Ok(LoggedIn {
            user_id,
            device_id,
            access_token: access.text,
            refresh_token: refresh.map(|token| token.text),
            expires_in,
        })
    }

    /// Trades a refresh token for new tokens.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRefreshToken`], [`Error::Locked`].
    pub async fn refresh(&self, refresh_token: &str) -> Result<(String, String, Duration)> {
        let (access, refresh) = (Token::access(), Token::refresh());
        let lifetime = self.options.access_token_lifetime;
        let now_ms = self.now_ms();
        let outcome = self
            .store
            .refresh(Refresh {
                token_hash: &tokens::hash(refresh_token),
                access_token_hash: &access.hash,
                expires_ts: Some(now_ms + lifetime.as_millis() as i64),
                refresh_token_hash: &refresh.hash,
                now_ms,
            })
            .await?;
        match outcome {
            RefreshOutcome::Refreshed => Ok((access.text, refresh.text, lifetime)),
            RefreshOutcome::Unknown => Err(Error::InvalidRefreshToken),
            RefreshOutcome::Locked => Err(Error::Locked),
        }
    }

    /// Ends a session: its device goes, with its tokens.
    pub async fn log_out(&self, session: &Session) -> Result<()> {
        self.store.delete_devices(session.user_nid, &[session.device_id.as_str()]).await?;
        self.forget_sessions(&Ended::Device(session.device_nid));
        self.tell_devices_removed(&session.user_id, vec![session.device_id.clone()]).await;
        Ok(())
    }

    /// Ends all sessions of a user: all devices go, with their tokens.
    pub async fn log_out_everywhere(&self, user_nid: i64, user_id: &UserId) -> Result<()> {
        let gone = self.store.delete_all_devices(user_nid).await?;
        self.forget_sessions(&Ended::User(user_nid));
        self.tell_devices_removed(user_id, gone.into_iter().map(OwnedDeviceId::from).collect()).await;
        Ok(())
    }

    /// Sets a user's password. With `logout_devices`, all other devices go.
    pub async fn change_password(&self, session: &Session, password: &str, logout_devices: bool) -> Result<()> {
        let hash = self.passwords.hash(password).await?;
        let keep = if logout_devices { KeepDevices::Only(session.device_nid) } else { KeepDevices::All };
        let before = if logout_devices { self.store.devices(session.user_nid).await? } else { Vec::new() };
        self.store.set_password(session.user_nid, &hash, keep).await?;
        if logout_devices {
            self.forget_sessions(&Ended::Others(session.user_nid, session.device_nid));
            let gone = before.into_iter().filter(|device| device.device_nid != session.device_nid);
            self.tell_devices_removed(&session.user_id, gone.map(|device| device.device_id.into()).collect()).await;
        }
        Ok(())
    }

    /// Sets the password of any user of ours, for operators. All devices go.
    ///
    /// # Errors
    ///
    /// [`Error::WrongPassword`] if there is no such user, [`Error::Deactivated`].
    pub async fn reset_password(&self, user_id: &UserId, password: &str) -> Result<()> {
        let account = self.store.account(user_id).await?.ok_or(Error::WrongPassword)?;
        if account.deactivated_ts.is_some() {
            return Err(Error::Deactivated);
        }
        let hash = self.passwords.hash(password).await?;
        let before = self.store.devices(account.user_nid).await?;
        self.store.set_password(account.user_nid, &hash, KeepDevices::None).await?;
        self.forget_sessions(&Ended::User(account.user_nid));
        self.store.doubt_sessions().await?;
        self.tell_devices_removed(user_id, before.into_iter().map(|device| device.device_id.into()).collect()).await;
        Ok(())
    }

    /// Ends an account for good. With `erase`, its profile and its account data go, and its events are shown redacted to
    /// those who join later.
    pub async fn deactivate(&self, user_nid: i64, user_id: &UserId, erase: bool) -> Result<()> {
        let devices = self.store.devices(user_nid).await?;
        let ended = self.store.deactivate_account(user_nid, erase, self.now_ms()).await?;
        self.forget_sessions(&Ended::User(user_nid));
        if ended {
            self.tell_devices_removed(user_id, devices.into_iter().map(|device| device.device_id.into()).collect())
                .await;
            self.tell_deactivated(user_id, erase).await;
        }
        Ok(())
    }

    /// Whether this is the user's password.
    pub(crate) async fn is_password_of(&self, user_id: &UserId, password: &str) -> Result<bool> {
        let account = self.store.account(user_id).await?;
        let stored = account.as_ref().and_then(|account| account.password_hash.as_deref());
        self.passwords.verify(password, stored).await
    }

    pub(crate) async fn meant_account(&self, name: &str) -> Result<Option<Account>> {
        for user_id in usernames::meant(name, &self.options.server_name) {
            if let Some(account) = self.store.account(&user_id).await? {
                return Ok(Some(account));
            }
        }
        Ok(None)
    }

    pub(crate) async fn hash_password(&self, password: &str) -> Result<String> {
        self.passwords.hash(password).await
    }
}

fn new_device_id() -> OwnedDeviceId {
    tokens::of_characters(DEVICE_ID_CHARACTERS, DEVICE_ID_LENGTH).into()
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::NewDevice;
    use crate::{
        Error, SessionError,
        testing::{PASSWORD, Server, on_both},
    };

    /// However a user is spelt who can log in by it, attempts count together; other users are counted apart.
    #[tokio::test]
    async fn spellings_count_together() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            for name in ["alice", "Alice", "ALICE", "@alice:example.org", "@aLiCe:example.org"] {
                assert_eq!(accounts.login_key(name), "@alice:example.org", "{name}");
            }
            for name in ["alic", "@alice:elsewhere.org", "bob", &"a".repeat(300)] {
                assert_ne!(accounts.login_key(name), "@alice:example.org", "{name}");
            }
        })
        .await;
    }

    /// The right name and password log in; everything else is refused alike.
    #[tokio::test]
    async fn passwords_open_their_account_only() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            server.user(&accounts, "alice").await;
            for name in ["alice", "@alice:example.org", "ALICE"] {
                let login = accounts.log_in_by_password(name, PASSWORD, NewDevice::default()).await.unwrap();
                assert_eq!(login.user_id, "@alice:example.org");
                assert!(login.refresh_token.is_none() && login.expires_in.is_none());
                accounts.session(&login.access_token, None).await.unwrap();
            }
            for (name, password) in [("alice", "wrong"), ("nobody", PASSWORD), ("@alice:else.org", PASSWORD)] {
                let refused = accounts.log_in_by_password(name, password, NewDevice::default()).await;
                assert!(matches!(refused, Err(Error::WrongPassword)), "{name}");
            }
            let long = "d".repeat(256);
            let device = NewDevice { device_id: Some((*long).into()), ..NewDevice::default() };
            let refused = accounts.log_in_by_password("alice", PASSWORD, device).await;
            assert!(matches!(refused, Err(Error::InvalidDeviceId)));
        })
        .await;
    }

    /// A known device gets new tokens and loses its old ones.
    #[tokio::test]
    async fn a_known_device_is_logged_in_anew() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            server.user(&accounts, "alice").await;
            let device = NewDevice { device_id: Some(device_id!("PHONE")), ..NewDevice::default() };
            let first = accounts.log_in_by_password("alice", PASSWORD, device).await.unwrap();
            let session = accounts.session(&first.access_token, None).await.unwrap();
            let second = accounts.log_in_by_password("alice", PASSWORD, device).await.unwrap();
            assert!(matches!(accounts.session(&first.access_token, None).await, Err(SessionError::Unknown)));
            let again = accounts.session(&second.access_token, None).await.unwrap();
            assert_eq!(again.device_nid, session.device_nid);
        })
        .await;
    }

    /// An access token that can be refreshed expires softly; the new one ends the old one when it is first used.
    #[tokio::test]
    async fn tokens_expire_and_are_refreshed() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            server.user(&accounts, "alice").await;
            server.set_time(0);
            let device = NewDevice { can_refresh: true, ..NewDevice::default() };
            let login = accounts.log_in_by_password("alice", PASSWORD, device).await.unwrap();
            let lifetime_ms = login.expires_in.unwrap().as_millis() as i64;
            server.set_time(lifetime_ms - 1);
            accounts.session(&login.access_token, None).await.unwrap();
            server.set_time(lifetime_ms);
            assert!(matches!(accounts.session(&login.access_token, None).await, Err(SessionError::Expired)));
            server.set_time(lifetime_ms / 2);
            let refresh = login.refresh_token.unwrap();
            let (access, _, _) = accounts.refresh(&refresh).await.unwrap();
            accounts.session(&login.access_token, None).await.unwrap();
            accounts.session(&access, None).await.unwrap();
            assert!(matches!(accounts.session(&login.access_token, None).await, Err(SessionError::Unknown)));
            assert!(matches!(accounts.refresh(&refresh).await, Err(Error::InvalidRefreshToken)));
        })
        .await;
    }

    /// A login token logs one client in.
    #[tokio::test]
    async fn login_tokens_log_in_once() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            let token = accounts.create_login_token(&session).await.unwrap().token;
            let login = accounts.log_in_by_token(&token, NewDevice::default()).await.unwrap();
            assert_eq!(login.user_id, session.user_id);
            assert_ne!(login.device_id, session.device_id);
            let refused = accounts.log_in_by_token(&token, NewDevice::default()).await;
            assert!(matches!(refused, Err(Error::InvalidLoginToken)));
        })
        .await;
    }

    /// A new password ends the other sessions, the old password and nothing else.
    #[tokio::test]
    async fn a_new_password_ends_other_sessions() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let other = accounts.log_in_by_password("alice", PASSWORD, NewDevice::default()).await.unwrap();
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            accounts.session(&other.access_token, None).await.unwrap();
            accounts.change_password(&session, "second", false).await.unwrap();
            accounts.session(&other.access_token, None).await.unwrap();
            accounts.change_password(&session, "third", true).await.unwrap();
            accounts.session(&alice.access_token, None).await.unwrap();
            assert!(matches!(accounts.session(&other.access_token, None).await, Err(SessionError::Unknown)));
            for old in [PASSWORD, "second"] {
                let refused = accounts.log_in_by_password("alice", old, NewDevice::default()).await;
                assert!(matches!(refused, Err(Error::WrongPassword)));
            }
            accounts.log_in_by_password("alice", "third", NewDevice::default()).await.unwrap();
            accounts.reset_password(user_id!("@alice:example.org"), "fourth").await.unwrap();
            assert!(matches!(accounts.session(&alice.access_token, None).await, Err(SessionError::Unknown)));
        })
        .await;
    }

    /// Locked accounts are told so to those who know the password; ended ones do not open at all.
    #[tokio::test]
    async fn locked_and_ended_accounts_do_not_open() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            server.store().set_account_locked(session.user_nid, true).await.unwrap();
            let login = async |password| accounts.log_in_by_password("alice", password, NewDevice::default()).await;
            assert!(matches!(login(PASSWORD).await, Err(Error::Locked)));
            assert!(matches!(login("wrong").await, Err(Error::WrongPassword)));
            server.store().set_account_locked(session.user_nid, false).await.unwrap();
            accounts.deactivate(session.user_nid, &session.user_id, true).await.unwrap();
            assert!(matches!(login(PASSWORD).await, Err(Error::Deactivated)));
            assert!(matches!(accounts.session(&alice.access_token, None).await, Err(SessionError::Unknown)));
        })
        .await;
    }
}
