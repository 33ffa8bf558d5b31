//! `m.presence`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#presence)

use std::time::Duration;

use myelin_store::Membership;
use ruma::{
    OwnedUserId, ServerName,
    api::federation::transactions::edu::{PresenceContent, PresenceUpdate},
    presence::PresenceState,
};

use super::edus::{Budget, Outcome, failed, told};
use crate::Services;

pub(super) async fn take(services: &Services, origin: &ServerName, content: &str, budget: &mut Budget) -> Outcome {
    let Ok(PresenceContent { push, .. }) = serde_json::from_str(content) else { return Outcome::Malformed };
    let mut outcome = Outcome::Ignored;
    for update in push {
        if !budget.take() {
            break;
        }
        outcome = outcome.max(set(services, origin, update).await);
    }
    outcome
}

async fn set(services: &Services, origin: &ServerName, update: PresenceUpdate) -> Outcome {
    let PresenceUpdate { user_id, presence, status_msg, last_active_ago, .. } = update;
    let ago = Duration::from_millis(last_active_ago.into());
    if user_id.server_name() != origin {
        return Outcome::Refused;
    }
    if !matches!(presence, PresenceState::Online | PresenceState::Offline | PresenceState::Unavailable) {
        return Outcome::Malformed;
    }
    match who_shares_rooms(services, &user_id).await {
        Ok(Some(user_nid)) => told(services.sync.set_presence_as_of(user_nid, presence, status_msg, Some(ago)).await),
        Ok(None) => Outcome::Ignored,
        Err(error) => failed(&error),
    }
}

/// The user's number, if they are in a room that we know of: nobody else's presence interests anybody here, or is kept.
async fn who_shares_rooms(services: &Services, user_id: &OwnedUserId) -> Result<Option<i64>, myelin_store::Error> {
    let Some(user_nid) = services.store.known_user_nid(user_id).await? else { return Ok(None) };
    let rooms = services.store.memberships(user_nid).await?;
    Ok(rooms.iter().any(|member| member.membership == Membership::Join).then_some(user_nid))
}
