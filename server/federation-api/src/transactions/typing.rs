//! `m.typing`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#typing-notifications)

use ruma::{ServerName, api::federation::transactions::edu::TypingContent};

use super::edus::{Outcome, failed, told};
use crate::Services;

/// "Receiving servers should verify that the user is in the room, and is a user belonging to the sending server."
pub(super) async fn take(services: &Services, origin: &ServerName, content: &str) -> Outcome {
    let Ok(TypingContent { room_id, user_id, typing, .. }) = serde_json::from_str(content) else {
        return Outcome::Malformed;
    };
    if user_id.server_name() != origin {
        return Outcome::Refused;
    }
    let known = async {
        let Some(room) = services.store.room(&room_id).await? else { return Ok(None) };
        let Some(user_nid) = services.store.known_user_nid(&user_id).await? else { return Ok(None) };
        Ok::<_, myelin_store::Error>(Some((room, user_nid)))
    };
    let (room, user_nid) = match known.await {
        Ok(Some(known)) => known,
        Ok(None) => return Outcome::Ignored,
        Err(error) => return failed(&error),
    };
    // "if the sending server is denied access to the room identified by room_id, the EDU MUST be ignored"
    if services.writes.check_acl(origin, &room_id).await.is_err() {
        return Outcome::Refused;
    }
    told(services.sync.set_typing(&room, user_nid, typing, None).await)
}
