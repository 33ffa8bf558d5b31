//! Profiles of other servers' users.

use std::{sync::Arc, time::Duration};

use ruma::{UserId, api::federation::query::get_profile_information, profile::UserProfile};

use super::Weight;
use crate::{Error, Result, Rooms, remote::RemoteError};

/// How long a profile is believed: a client asks for its parts one by one, and several at a time ask for the same.
const LIFETIME: Duration = Duration::from_secs(120);
/// "the total profile MUST be under 64 KiB"
const BYTES_MAX: usize = 64 * 1024;

/// What a server says of one of its users.
#[derive(Debug)]
pub(super) enum KnownProfile {
    Told { profile: UserProfile, bytes: usize },
    NoSuchUser,
    NotTold,
}

impl Weight for Arc<KnownProfile> {
    fn weight(&self) -> u64 {
        // As values in memory, fields take more than as text.
        let bytes = if let KnownProfile::Told { bytes, .. } = &**self { 3 * bytes } else { 0 };
        256 + bytes as u64
    }
}

impl Rooms {
    /// What the server of a user who is not ours tells of the user.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it knows no such user, [`Error::Forbidden`] when it does not tell, [`Error::Remote`] when
    /// it cannot be asked, [`Error::NotFederating`].
    pub async fn profile_elsewhere(&self, user_id: &UserId) -> Result<UserProfile> {
        let user = user_id.to_owned();
        let known = self.elsewhere.profiles.get_or_ask(&user, async {
            let request = get_profile_information::v1::Request::new(user_id.to_owned());
            let known = match self.remote()?.profile(user_id.server_name(), request).await {
                Ok(answer) => told(user_id, answer.data)?,
                Err(RemoteError::Refused { status: 404, .. }) => KnownProfile::NoSuchUser,
                Err(RemoteError::Refused { status: 403, .. }) => KnownProfile::NotTold,
                Err(error) => return Err(Error::from(error)),
            };
            Ok((Arc::new(known), LIFETIME))
        });
        match &*known.await? {
            KnownProfile::Told { profile, .. } => Ok(profile.clone()),
            KnownProfile::NoSuchUser => Err(Error::NotFound("there is no such user")),
            KnownProfile::NotTold => Err(Error::forbidden("the user's server does not tell the profile")),
        }
    }
}

/// A profile with the names that clients read being what they are to be.
fn told(user_id: &UserId, profile: UserProfile) -> Result<KnownProfile, RemoteError> {
    let is_text = |name: &str| matches!(name, "displayname" | "avatar_url" | "m.tz");
    let profile: UserProfile =
        profile.into_iter().filter(|(name, value)| !is_text(name) || value.is_string()).collect();
    let bytes = serde_json::to_string(&profile).map_or(usize::MAX, |json| json.len());
    if bytes > BYTES_MAX {
        let reason = format!("a profile of {bytes} bytes");
        return Err(RemoteError::Nonsense { server: user_id.server_name().to_owned(), reason });
    }
    Ok(KnownProfile::Told { profile, bytes })
}
