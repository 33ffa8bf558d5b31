//! The pushers that people set.

use std::sync::Arc;

use myelin_store::{Ephemeral, NewPusher, PUSHERS_MAX, Pusher, PusherSet, PusherSettings, Store};
use serde_json::{Map, Value};
use url::Url;

/// Says to the replica that pushes that the pushers of a user have changed.
pub(crate) const CHANGED: &str = "pushers_changed";

/// "Max length, 64 chars."
const APP_ID_CHARS_MAX: usize = 64;
/// "Max length, 512 bytes."
const PUSHKEY_BYTES_MAX: usize = 512;
/// The bound on every name and the language, in bytes.
const NAME_BYTES_MAX: usize = 1024;
/// The bound on `data`, in bytes.
const DATA_BYTES_MAX: usize = 16 * 1024;
/// "MUST be an HTTPS URL with a path of `/_matrix/push/v1/notify`."
const PATH: &str = "/_matrix/push/v1/notify";
/// The format in which a gateway is told no more than that there is an event.
pub(crate) const EVENT_ID_ONLY: &str = "event_id_only";

/// Why a pusher is not set.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database did not do what was asked.
    #[error("use the store")]
    Store(#[from] myelin_store::Error),
    /// There is no such kind of pushers here.
    #[error("pushers of the kind {0:?} are not supported")]
    UnknownKind(String),
    /// Something that its kind needs is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value is not one that it may be.
    #[error("{0}")]
    Invalid(String),
    /// The device of the session is gone.
    #[error("the device is gone")]
    NoDevice,
}

/// A result of this module.
type Result<T, E = Error> = std::result::Result<T, E>;

/// The pushers that people have: one for a process.
#[derive(Debug)]
pub struct Pushers {
    store: Arc<Store>,
    allow_private_addresses: bool,
}

impl Pushers {
    /// The pushers of a store. Where gateways in private networks are allowed, so are those that are asked without TLS.
    #[must_use]
    pub fn new(store: Arc<Store>, allow_private_addresses: bool) -> Self {
        Self { store, allow_private_addresses }
    }

    /// A user's pushers, the oldest first.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn of(&self, user_nid: i64) -> Result<Vec<Pusher>> {
        Ok(self.store.pushers_of(&[user_nid]).await?)
    }

    /// Makes a pusher of a user's device, or changes the user's one of the same application and key.
    ///
    /// # Errors
    ///
    /// Those that say what is wrong with it; [`Error::NoDevice`]; [`Error::Store`].
    pub async fn set(&self, new: &NewPusher) -> Result<()> {
        self.check(&new.settings)?;
        match self.store.set_pusher(new).await? {
            PusherSet::Done { removed_from } => {
                for user_nid in removed_from.into_iter().chain([new.user_nid]) {
                    self.tell_changed(user_nid);
                }
                Ok(())
            }
            PusherSet::NoDevice => Err(Error::NoDevice),
            PusherSet::TooMany => Err(Error::Invalid(format!("a user has at most {PUSHERS_MAX} pushers"))),
        }
    }

    /// Removes a pusher. It is no mistake if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn remove(&self, user_nid: i64, app_id: &str, pushkey: &str) -> Result<()> {
        if self.store.delete_pusher(user_nid, app_id, pushkey).await? {
            self.tell_changed(user_nid);
        }
        Ok(())
    }

    fn tell_changed(&self, user_nid: i64) {
        self.store.pass(&Ephemeral { kind: CHANGED.to_owned(), json: user_nid.to_string() });
    }

    fn check(&self, settings: &PusherSettings) -> Result<()> {
        if settings.kind != "http" {
            return Err(Error::UnknownKind(settings.kind.clone()));
        }
        let invalid = |reason: String| Err(Error::Invalid(reason));
        if settings.app_id.is_empty() || settings.app_id.chars().count() > APP_ID_CHARS_MAX {
            return invalid(format!("app_id has 1 to {APP_ID_CHARS_MAX} characters"));
        }
        if settings.pushkey.is_empty() || settings.pushkey.len() > PUSHKEY_BYTES_MAX {
            return invalid(format!("pushkey has 1 to {PUSHKEY_BYTES_MAX} bytes"));
        }
        let names = [
            ("app_display_name", settings.app_display_name.as_str()),
            ("device_display_name", &settings.device_display_name),
            ("profile_tag", settings.profile_tag.as_deref().unwrap_or_default()),
            ("lang", &settings.lang),
        ];
        if let Some((name, _)) = names.iter().find(|(_, text)| text.len() > NAME_BYTES_MAX) {
            return invalid(format!("{name} has at most {NAME_BYTES_MAX} bytes"));
        }
        if settings.data.len() > DATA_BYTES_MAX {
            return invalid(format!("data has at most {DATA_BYTES_MAX} bytes"));
        }
        let data: Map<String, Value> =
            serde_json::from_str(&settings.data).map_err(|_| Error::Invalid("data is an object".to_owned()))?;
        match data.get("format") {
            None | Some(Value::Null) => {}
            Some(Value::String(format)) if format == EVENT_ID_ONLY => {}
            // Who asks for less than everything, in a way that we do not know, must not get everything.
            Some(_) => return invalid(format!("data.format is {EVENT_ID_ONLY:?}, or is left out")),
        }
        let url = data.get("url").ok_or(Error::Missing("data.url"))?;
        let url = url.as_str().and_then(|url| Url::parse(url).ok());
        let Some(url) = url else { return invalid("data.url is a URL".to_owned()) };
        self.check_url(&url)
    }

    fn check_url(&self, url: &Url) -> Result<()> {
        let is_allowed = match url.scheme() {
            "https" => true,
            "http" => self.allow_private_addresses,
            _ => false,
        };
        if !is_allowed || url.host_str().is_none_or(str::is_empty) {
            return Err(Error::Invalid("data.url is an HTTPS URL".to_owned()));
        }
        if url.path() != PATH {
            return Err(Error::Invalid(format!("the path of data.url is {PATH}")));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Error::Invalid("data.url has no user name".to_owned()));
        }
        Ok(())
    }
}
