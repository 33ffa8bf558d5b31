//! What users say about themselves.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#profiles>

use std::{future::Future, pin::Pin, sync::Arc};

use ruma::{MxcUri, OwnedDeviceId, UserId};
use serde_json::{Value, value::RawValue};

use crate::{Accounts, Error, Result, usernames};

/// "the total profile MUST be under 64 KiB."
pub const PROFILE_BYTES_MAX: usize = 64 * 1024 - 1;
/// "the maximum allowed key length of 255 bytes."
const FIELD_NAME_BYTES_MAX: usize = 255;
/// The longest display name in bytes: it goes into an event of every room.
const DISPLAY_NAME_BYTES_MAX: usize = 1024;
/// The longest avatar URL in bytes.
const AVATAR_URL_BYTES_MAX: usize = 1024;

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A profile field with its value.
pub type Field = (String, Box<RawValue>);

/// What of a profile goes into a membership event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberProfile {
    /// `displayname`
    pub display_name: Option<String>,
    /// `avatar_url`
    pub avatar_url: Option<String>,
}

/// Has to know of changed profiles and ended accounts. Called after the change is stored, before the client has its
/// answer; what takes long goes into a task of the observer's own. A failure is logged and does not undo the change.
pub trait ProfileObserver: Send + Sync {
    /// The display name or the avatar has changed: membership events follow.
    fn profile_changed<'a>(
        &'a self,
        user_id: &'a UserId,
        profile: &'a MemberProfile,
    ) -> BoxFuture<'a, Result<(), Box<dyn std::error::Error + Send + Sync>>>;

    /// The account has ended: its user leaves all rooms and refuses all invites.
    fn deactivated<'a>(
        &'a self,
        user_id: &'a UserId,
        erase: bool,
    ) -> BoxFuture<'a, Result<(), Box<dyn std::error::Error + Send + Sync>>>;

    /// Devices are gone, with their sessions.
    fn devices_removed<'a>(
        &'a self,
        user_id: &'a UserId,
        device_ids: &'a [OwnedDeviceId],
    ) -> BoxFuture<'a, Result<(), Box<dyn std::error::Error + Send + Sync>>> {
        let _ = (user_id, device_ids);
        Box::pin(async { Ok(()) })
    }
}

impl Accounts {
    /// All fields of a user's profile. `None` if there is no such user here.
    pub async fn profile(&self, user_id: &UserId) -> Result<Option<Vec<Field>>> {
        if !usernames::may_exist(user_id.as_str()) {
            return Ok(None);
        }
        let Some(account) = self.store.account(user_id).await? else { return Ok(None) };
        let fields = self.store.profile(account.user_nid).await?;
        fields.into_iter().map(|(field, value)| Ok((field, stored(value)?))).collect::<Result<_>>().map(Some)
    }

    /// One field of a user's profile. `None` if there is no such field, or no such user here.
    pub async fn profile_field(&self, user_id: &UserId, field: &str) -> Result<Option<Box<RawValue>>> {
        check_field_name(field)?;
        if !usernames::may_exist(user_id.as_str()) {
            return Ok(None);
        }
        let Some(user_nid) = self.store.known_user_nid(user_id).await? else { return Ok(None) };
        self.store.profile_field(user_nid, field).await?.map(stored).transpose()
    }

    /// What goes into a user's membership events.
    pub async fn member_profile(&self, user_nid: i64) -> Result<MemberProfile> {
        let mut profile = MemberProfile::default();
        for (field, value) in self.store.profile(user_nid).await? {
            let part = match field.as_str() {
                "displayname" => &mut profile.display_name,
                "avatar_url" => &mut profile.avatar_url,
                _ => continue,
            };
            *part = serde_json::from_str(&value).map_err(|_| corrupt())?;
        }
        Ok(profile)
    }

    /// Sets a field of a user's profile. An empty or null display name or avatar is none.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidFieldName`], [`Error::FieldNameTooLong`], [`Error::InvalidFieldValue`],
    /// [`Error::ProfileTooLarge`].
    pub async fn set_profile_field(&self, user_nid: i64, user_id: &UserId, field: &str, value: Value) -> Result<()> {
        check_field_name(field)?;
        match (field, &value) {
            ("displayname" | "avatar_url", Value::Null) => {
                return self.delete_profile_field(user_nid, user_id, field).await;
            }
            ("displayname" | "avatar_url", Value::String(text)) if text.is_empty() => {
                return self.delete_profile_field(user_nid, user_id, field).await;
            }
            ("displayname", Value::String(name)) => check_display_name(name)?,
            ("displayname", _) => return Err(Error::InvalidFieldValue("displayname must be a string")),
            ("avatar_url", value) => check_avatar_url(value)?,
            ("m.tz", value) if !value.is_string() => return Err(Error::InvalidFieldValue("m.tz must be a string")),
            _ => {}
        }
        let text = value.to_string();
        if !self.store.set_profile_field(user_nid, field, &text, PROFILE_BYTES_MAX).await? {
            return Err(Error::ProfileTooLarge);
        }
        self.tell_profile(user_nid, user_id, field).await
    }

    /// Removes a field of a user's profile. One that is not there is no error.
    pub async fn delete_profile_field(&self, user_nid: i64, user_id: &UserId, field: &str) -> Result<()> {
        check_field_name(field)?;
        if self.store.delete_profile_field(user_nid, field).await? {
            self.tell_profile(user_nid, user_id, field).await?;
        }
        Ok(())
    }

    async fn tell_profile(&self, user_nid: i64, user_id: &UserId, field: &str) -> Result<()> {
        if !matches!(field, "displayname" | "avatar_url") {
            return Ok(());
        }
        let profile = self.member_profile(user_nid).await?;
        for observer in self.observers() {
            if let Err(error) = observer.profile_changed(user_id, &profile).await {
                tracing::warn!(user.id = %user_id, error = &*error as &dyn std::error::Error, "a changed profile did not reach all rooms");
            }
        }
        Ok(())
    }

    pub(crate) async fn tell_deactivated(&self, user_id: &UserId, erase: bool) {
        for observer in self.observers() {
            if let Err(error) = observer.deactivated(user_id, erase).await {
                tracing::error!(user.id = %user_id, error = &*error as &dyn std::error::Error, "a deactivated user is still in rooms");
            }
        }
    }

    pub(crate) async fn tell_devices_removed(&self, user_id: &UserId, device_ids: Vec<OwnedDeviceId>) {
        if device_ids.is_empty() {
            return;
        }
        for observer in self.observers() {
            if let Err(error) = observer.devices_removed(user_id, &device_ids).await {
                tracing::warn!(user.id = %user_id, error = &*error as &dyn std::error::Error, "not all is known of removed devices");
            }
        }
    }

    fn observers(&self) -> Vec<Arc<dyn ProfileObserver>> {
        self.observers.read().clone()
    }
}

/// The [Common Namespaced Identifier Grammar](https://spec.matrix.org/v1.19/appendices/#common-namespaced-identifier-grammar),
/// which the two fields without a namespace follow too.
fn check_field_name(field: &str) -> Result<()> {
    if field.len() > FIELD_NAME_BYTES_MAX {
        return Err(Error::FieldNameTooLong);
    }
    let starts = field.starts_with(|first: char| first.is_ascii_lowercase());
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    if starts && field.bytes().all(fits) { Ok(()) } else { Err(Error::InvalidFieldName) }
}

/// Refuses a name that no profile can have.
pub(crate) fn check_display_name(name: &str) -> Result<()> {
    if name.len() > DISPLAY_NAME_BYTES_MAX {
        return Err(Error::InvalidFieldValue("displayname must have at most 1024 bytes"));
    }
    Ok(())
}

fn check_avatar_url(value: &Value) -> Result<()> {
    match value.as_str() {
        Some(url) if url.len() <= AVATAR_URL_BYTES_MAX && <&MxcUri>::from(url).is_valid() => Ok(()),
        _ => Err(Error::InvalidFieldValue("avatar_url must be an mxc:// URI")),
    }
}

fn stored(value: String) -> Result<Box<RawValue>> {
    RawValue::from_string(value).map_err(|_| corrupt())
}

fn corrupt() -> Error {
    Error::Store(myelin_store::Error::Corrupt { what: "profile field" })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use ruma::{OwnedUserId, UserId};
    use serde_json::json;

    use super::{BoxFuture, MemberProfile, ProfileObserver};
    use crate::{
        Error,
        testing::{Server, on_both},
    };

    #[derive(Default)]
    struct Notes(Mutex<Vec<(OwnedUserId, Option<MemberProfile>)>>);

    impl ProfileObserver for Notes {
        fn profile_changed<'a>(
            &'a self,
            user_id: &'a UserId,
            profile: &'a MemberProfile,
        ) -> BoxFuture<'a, Result<(), Box<dyn std::error::Error + Send + Sync>>> {
            self.0.lock().push((user_id.to_owned(), Some(profile.clone())));
            Box::pin(async { Ok(()) })
        }

        fn deactivated<'a>(
            &'a self,
            user_id: &'a UserId,
            _erase: bool,
        ) -> BoxFuture<'a, Result<(), Box<dyn std::error::Error + Send + Sync>>> {
            self.0.lock().push((user_id.to_owned(), None));
            Box::pin(async { Err("not all rooms were left".into()) })
        }
    }

    /// Fields of any name are kept; what goes into events is checked, and told to the observers.
    #[tokio::test]
    async fn fields_are_kept_and_told() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let notes = Arc::new(Notes::default());
            accounts.observe(notes.clone());
            let alice = server.user(&accounts, "alice").await;
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            let (nid, id) = (session.user_nid, &*session.user_id);
            let set = async |field: &str, value| accounts.set_profile_field(nid, id, field, value).await;
            set("displayname", json!("Alice")).await.unwrap();
            set("avatar_url", json!("mxc://example.org/a")).await.unwrap();
            set("org.example.langs", json!(["de", null, {"a": 1.5}])).await.unwrap();
            set("org.example.nothing", json!(null)).await.unwrap();
            let fields = accounts.profile(id).await.unwrap().unwrap();
            let fields: Vec<_> = fields.iter().map(|(field, value)| (field.as_str(), value.get())).collect();
            assert_eq!(
                fields,
                [
                    ("avatar_url", "\"mxc://example.org/a\""),
                    ("displayname", "\"Alice\""),
                    ("org.example.langs", "[\"de\",null,{\"a\":1.5}]"),
                    ("org.example.nothing", "null"),
                ]
            );
            set("avatar_url", json!("")).await.unwrap();
            assert!(accounts.profile_field(id, "avatar_url").await.unwrap().is_none());
            let whole = |avatar: Option<&str>| MemberProfile {
                display_name: Some("Alice".to_owned()),
                avatar_url: avatar.map(str::to_owned),
            };
            let told: Vec<_> = notes.0.lock().iter().map(|(_, profile)| profile.clone()).collect();
            let named = MemberProfile { display_name: Some("Alice".to_owned()), avatar_url: None };
            assert_eq!(told, [Some(named), Some(whole(Some("mxc://example.org/a"))), Some(whole(None))]);
            // An observer's failure is not the user's.
            accounts.deactivate(nid, id, true).await.unwrap();
            assert_eq!(notes.0.lock().last().unwrap().1, None);
            assert!(accounts.profile(id).await.unwrap().unwrap().is_empty());
        })
        .await;
    }

    /// Wrong names, wrong values and too much are refused and change nothing.
    #[tokio::test]
    async fn bad_fields_are_refused() {
        on_both(async |server: &Server| {
            let accounts = server.accounts().await;
            let alice = server.user(&accounts, "alice").await;
            let session = accounts.session(&alice.access_token, None).await.unwrap();
            let (nid, id) = (session.user_nid, &*session.user_id);
            let set = async |field: &str, value| accounts.set_profile_field(nid, id, field, value).await;
            for name in ["", "Upper", "a b", "é", "1a", ".a"] {
                assert!(matches!(set(name, json!(1)).await, Err(Error::InvalidFieldName)), "{name}");
            }
            assert!(matches!(set(&"a".repeat(256), json!(1)).await, Err(Error::FieldNameTooLong)));
            for (field, value) in [
                ("displayname", json!(1)),
                ("displayname", json!("x".repeat(1025))),
                ("avatar_url", json!("https://example.org/a.png")),
                ("avatar_url", json!({})),
                ("m.tz", json!(2)),
            ] {
                assert!(matches!(set(field, value).await, Err(Error::InvalidFieldValue(_))), "{field}");
            }
            let large = json!("x".repeat(super::PROFILE_BYTES_MAX));
            assert!(matches!(set("org.example.large", large).await, Err(Error::ProfileTooLarge)));
            assert!(accounts.profile(id).await.unwrap().unwrap().is_empty());
            assert!(accounts.profile(ruma::user_id!("@nobody:example.org")).await.unwrap().is_none());
        })
        .await;
    }
}
