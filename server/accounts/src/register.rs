//! New accounts.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#legacy-account-registration>

use myelin_store::{AccountCreation, NewAccount};
use ruma::{OwnedUserId, UserId};
use subtle::ConstantTimeEq as _;

use crate::{
    Accounts, Authorization, Error, LoggedIn, NewDevice, Result, Stage, passwords::check_password,
    profiles::check_display_name, tokens, usernames,
};

/// Characters of a name that we choose, and how many.
const NAME_CHARACTERS: &[u8] = b"abcdefghijkmnpqrstuvwxyz23456789";
const NAME_LENGTH: usize = 12;

/// Someone who registers.
#[derive(Clone, Copy, Debug)]
pub struct Registration<'a> {
    /// The name; without it we choose.
    pub username: Option<&'a str>,
    /// The password.
    pub password: &'a str,
    /// The device to log in on; none to stay logged out.
    pub device: Option<NewDevice<'a>>,
}

/// A user that an operator makes.
#[derive(Clone, Copy)]
pub struct NewUser<'a> {
    /// The name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
    /// Whether it is an operator.
    pub is_admin: bool,
    /// What it is called.
    pub display_name: Option<&'a str>,
}

impl std::fmt::Debug for NewUser<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewUser").field("username", &self.username).finish_non_exhaustive()
    }
}

impl Accounts {
    /// What has to be done to register.
    ///
    /// # Errors
    ///
    /// [`Error::RegistrationDisabled`].
    pub fn registration_flows(&self) -> Result<&'static [&'static [Stage]]> {
        if !self.options.registration {
            return Err(Error::RegistrationDisabled);
        }
        Ok(if self.options.require_registration_token { &[&[Stage::RegistrationToken]] } else { &[&[Stage::Dummy]] })
    }

    /// Whether a name is free.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::UserInUse`].
    pub async fn check_username(&self, username: &str) -> Result<()> {
        let user_id = usernames::new_user(username, &self.options.server_name)?;
        match self.store.account(&user_id).await? {
            None => Ok(()),
            Some(_) => Err(Error::UserInUse),
        }
    }

    /// Refuses what [`Accounts::register`] would refuse, as far as it is known yet; before anything has to be shown.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::UserInUse`], and those of passwords and devices.
    pub async fn check_registration(
        &self,
        username: Option<&str>,
        password: Option<&str>,
        device: Option<&NewDevice<'_>>,
    ) -> Result<()> {
        if let Some(username) = username {
            self.check_username(username).await?;
        }
        password.map_or(Ok(()), check_password)?;
        device.map_or(Ok(()), NewDevice::check)
    }

    /// Makes the account of someone who has done what [`Accounts::registration_flows`] asks for.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::UserInUse`], [`Error::InvalidRegistrationToken`] when the token was used
    /// up meanwhile, and those of passwords and devices.
    pub async fn register(
        &self,
        registration: Registration<'_>,
        authorization: Authorization,
    ) -> Result<(OwnedUserId, Option<LoggedIn>)> {
        self.registration_flows()?;
        registration.device.as_ref().map_or(Ok(()), NewDevice::check)?;
        let password_hash = self.hash_password(registration.password).await?;
        // The shared token has no row that could be used up.
        let token = authorization.registration_token.filter(|token| !self.is_shared_token(token));
        let (user_nid, user_id) = match registration.username {
            Some(username) => {
                let user_id = usernames::new_user(username, &self.options.server_name)?;
                (self.create(&user_id, Some(&password_hash), Kind::User, token.as_deref()).await?, user_id)
            }
            None => self.create_nameless("", Some(&password_hash), Kind::User, token.as_deref()).await?,
        };
        let login = match registration.device {
            Some(device) => Some(self.log_in(user_nid, user_id.clone(), device).await?),
            None => None,
        };
        Ok((user_id, login))
    }

    /// Makes a guest, logged in.
    ///
    /// # Errors
    ///
    /// [`Error::GuestAccessDisabled`], [`Error::DeviceNameTooLong`].
    pub async fn register_guest(&self, device_name: Option<&str>) -> Result<LoggedIn> {
        if !self.options.guest_access {
            return Err(Error::GuestAccessDisabled);
        }
        let device = NewDevice { initial_display_name: device_name, ..NewDevice::default() };
        device.check()?;
        let (user_nid, user_id) = self.create_nameless("guest-", None, Kind::Guest, None).await?;
        self.log_in(user_nid, user_id, device).await
    }

    /// Makes a user, for an operator.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidUsername`], [`Error::UserInUse`], and those of passwords and profiles.
    pub async fn create_user(&self, new: NewUser<'_>) -> Result<OwnedUserId> {
        let user_id = usernames::new_user(new.username, &self.options.server_name)?;
        new.display_name.map_or(Ok(()), check_display_name)?;
        let password_hash = self.hash_password(new.password).await?;
        let kind = if new.is_admin { Kind::Admin } else { Kind::User };
        let user_nid = self.create(&user_id, Some(&password_hash), kind, None).await?;
        if let Some(display_name) = new.display_name {
            self.set_profile_field(user_nid, &user_id, "displayname", display_name.into()).await?;
        }
        Ok(user_id)
    }

    /// Whether a registration token could be used now.
    pub async fn is_registration_token_valid(&self, token: &str) -> Result<bool> {
        if self.is_shared_token(token) {
            return Ok(true);
        }
        Ok(!token.contains('\0') && self.store.is_registration_token_valid(token, self.now_ms()).await?)
    }

    fn is_shared_token(&self, token: &str) -> bool {
        token.as_bytes().ct_eq(self.registration_token.as_bytes()).into()
    }

    async fn create_nameless(
        &self,
        prefix: &str,
        password_hash: Option<&str>,
        kind: Kind,
        token: Option<&str>,
    ) -> Result<(i64, OwnedUserId)> {
        loop {
            let name = format!("{prefix}{}", tokens::of_characters(NAME_CHARACTERS, NAME_LENGTH));
            let user_id = usernames::new_user(&name, &self.options.server_name)?;
            match self.create(&user_id, password_hash, kind, token).await {
                // One of 10^18: next one.
                Err(Error::UserInUse) => {}
                outcome => return Ok((outcome?, user_id)),
            }
        }
    }

    async fn create(
        &self,
        user_id: &UserId,
        password_hash: Option<&str>,
        kind: Kind,
        token: Option<&str>,
    ) -> Result<i64> {
        let new = NewAccount {
            user_id,
            password_hash,
            is_admin: kind == Kind::Admin,
            is_guest: kind == Kind::Guest,
            registration_token: token,
            now_ms: self.now_ms(),
        };
        match self.store.create_account(new).await? {
            AccountCreation::Created(user_nid) => Ok(user_nid),
            AccountCreation::NameTaken => Err(Error::UserInUse),
            AccountCreation::TokenRefused => Err(Error::InvalidRegistrationToken),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    Admin,
    Guest,
}

#[cfg(test)]
mod tests {
    use super::{NewUser, Registration};
    use crate::{
        Authorization, Error, NewDevice,
        testing::{PASSWORD, Server, on_both},
    };

    fn registration(username: Option<&str>) -> Registration<'_> {
        Registration { username, password: PASSWORD, device: Some(NewDevice::default()) }
    }

    fn by_token(token: &str) -> Authorization {
        Authorization { registration_token: Some(token.to_owned()) }
    }

    /// Names are checked and given out once; without a name there is a random one; a token is used up once.
    #[tokio::test]
    async fn registration_makes_accounts() {
        on_both(async |server: &Server| {
            let accounts = server.accounts_with(|options| options.registration = true).await;
            accounts.check_username("Alice").await.unwrap();
            let shared = || by_token(accounts.registration_token());
            let (alice, login) = accounts.register(registration(Some("Alice")), shared()).await.unwrap();
            assert_eq!(alice, "@alice:example.org");
            accounts.session(&login.unwrap().access_token, None).await.unwrap();
            assert!(matches!(accounts.check_username("alice").await, Err(Error::UserInUse)));
            assert!(matches!(accounts.check_username("al ice").await, Err(Error::InvalidUsername)));
            let taken = accounts.register(registration(Some("alice")), shared()).await;
            assert!(matches!(taken, Err(Error::UserInUse)));
            let silent = Registration { device: None, ..registration(None) };
            let (_, login) = accounts.register(silent, shared()).await.unwrap();
            assert!(login.is_none());
            server.store().create_registration_token("once", Some(1), None).await.unwrap();
            assert!(accounts.is_registration_token_valid("once").await.unwrap());
            accounts.register(registration(None), by_token("once")).await.unwrap();
            assert!(!accounts.is_registration_token_valid("once").await.unwrap());
            let used_up = accounts.register(registration(None), by_token("once")).await;
            assert!(matches!(used_up, Err(Error::InvalidRegistrationToken)));
        })
        .await;
    }

    /// A registration that is refused for its device, its password or its display name makes no account and uses up no
    /// token.
    #[tokio::test]
    async fn refused_registrations_change_nothing() {
        on_both(async |server: &Server| {
            let accounts = server
                .accounts_with(|options| {
                    options.registration = true;
                    options.guest_access = true;
                })
                .await;
            server.store().create_registration_token("once", Some(1), None).await.unwrap();
            let (long, strange) = ("x".repeat(256), "a\u{7}");
            let devices = [(Some(""), None), (Some(&*long), None), (Some(strange), None), (None, Some(&*long))];
            for (device_id, initial_display_name) in devices {
                let device =
                    NewDevice { device_id: device_id.map(Into::into), initial_display_name, can_refresh: false };
                let checked = accounts.check_registration(Some("alice"), Some(PASSWORD), Some(&device)).await;
                assert!(matches!(checked, Err(Error::InvalidDeviceId | Error::DeviceNameTooLong)));
                let refused = Registration { device: Some(device), ..registration(Some("alice")) };
                let refused = accounts.register(refused, by_token("once")).await;
                assert!(matches!(refused, Err(Error::InvalidDeviceId | Error::DeviceNameTooLong)));
            }
            for password in ["", &*"x".repeat(1025)] {
                let checked = accounts.check_registration(Some("alice"), Some(password), None).await;
                assert!(matches!(checked, Err(Error::EmptyPassword | Error::PasswordTooLong)));
            }
            let name = "x".repeat(1025);
            let new =
                NewUser { username: "alice", password: PASSWORD, is_admin: false, display_name: Some(name.as_str()) };
            assert!(matches!(accounts.create_user(new).await, Err(Error::InvalidFieldValue(_))));
            accounts.check_username("alice").await.unwrap();
            // A guest's name is not known; users are numbered one by one.
            let before = server.store().user_nid(ruma::user_id!("@before:example.org")).await.unwrap();
            assert!(matches!(accounts.register_guest(Some(&long)).await, Err(Error::DeviceNameTooLong)));
            let after = server.store().user_nid(ruma::user_id!("@after:example.org")).await.unwrap();
            assert_eq!(after, before + 1);
            accounts.check_registration(Some("alice"), None, None).await.unwrap();
            accounts.register(registration(Some("alice")), by_token("once")).await.unwrap();
        })
        .await;
    }

    /// Where registration and guests are off, there are none, however one asks; operators still make users.
    #[tokio::test]
    async fn registration_can_be_off() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            assert!(matches!(accounts.registration_flows(), Err(Error::RegistrationDisabled)));
            let refused = accounts.register(registration(None), by_token(accounts.registration_token())).await;
            assert!(matches!(refused, Err(Error::RegistrationDisabled)));
            assert!(matches!(accounts.register_guest(None).await, Err(Error::GuestAccessDisabled)));
            let new = NewUser { username: "root", password: PASSWORD, is_admin: true, display_name: Some("Root") };
            let root = accounts.create_user(new).await.unwrap();
            let login = accounts.log_in_by_password("root", PASSWORD, NewDevice::default()).await.unwrap();
            let session = accounts.session(&login.access_token, None).await.unwrap();
            assert!(session.is_admin && session.user_id == root);
            assert_eq!(accounts.member_profile(session.user_nid).await.unwrap().display_name.as_deref(), Some("Root"));
            let guests = server.accounts_with(|options| options.guest_access = true).await;
            let guest = guests.register_guest(None).await.unwrap();
            assert!(guests.session(&guest.access_token, None).await.unwrap().is_guest);
        })
        .await;
    }
}
