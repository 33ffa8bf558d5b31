//! Users who want no invitations.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#invite-permission)

use ruma::UserId;
use serde::Deserialize;

use crate::{Error, Result, Rooms};

/// The account data that says whether a user wants invitations.
pub const INVITE_PERMISSION: &str = "m.invite_permission_config";

/// Whether the content of [`INVITE_PERMISSION`] says that the user wants none. "A missing, invalid or unsupported value
/// means that the user wants to receive invites as normal."
#[must_use]
pub fn blocks_invites(content: &str) -> bool {
    #[derive(Deserialize)]
    struct Content<'a> {
        #[serde(borrow)]
        default_action: Option<std::borrow::Cow<'a, str>>,
    }
    serde_json::from_str::<Content<'_>>(content).is_ok_and(|content| content.default_action.as_deref() == Some("block"))
}

impl Rooms {
    /// Refuses an invitation of one of our users who wants none. To be asked when nothing else stands in its way: nobody
    /// learns it who could not invite the user.
    pub(crate) async fn must_want_invites(&self, target: &UserId) -> Result<()> {
        if target.server_name() != self.server_name {
            return Ok(());
        }
        let user_nid = self.store.user_nid(target).await?;
        let data = self.store.account_data(user_nid, 0, INVITE_PERMISSION).await?;
        if data.is_some_and(|data| blocks_invites(&data.content)) { Err(Error::InviteBlocked) } else { Ok(()) }
    }
}
