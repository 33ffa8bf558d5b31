//! Questions about what a user may do in a room.

use std::sync::Arc;

use myelin_store::{Membership, RoomName};
use ruma::{
    UserId,
    events::{TimelineEventType, room::power_levels::UserPowerLevel},
};
use ruma_state_res::events::RoomPowerLevelsEvent;

use crate::{Result, RoomWriter, Rooms, membership::membership_of};

impl RoomWriter {
    /// True if a user is in the room and has the power to send a type of state.
    pub(crate) async fn may_send_state(&mut self, user_id: &UserId, event_type: &str) -> Result<bool> {
        if membership_of(self, user_id).await? != Some(Membership::Join) {
            return Ok(false);
        }
        let needed = match self.state_event("m.room.power_levels", "").await? {
            Some(power_levels) => RoomPowerLevelsEvent::new(power_levels)
                .event_power_level(&TimelineEventType::from(event_type), Some(""), &self.rules().authorization)
                .map_err(crate::Error::Forbidden)?,
            // "[If] there is no m.room.power_levels event, the state_default is 50."
            None => ruma::int!(50),
        };
        Ok(self.level_of(user_id).await? >= UserPowerLevel::Int(needed))
    }
}

impl Rooms {
    /// True if a user is in the room and has the power to send a type of state.
    pub async fn may_send_state(
        self: &Arc<Self>,
        room: &Arc<RoomName>,
        user_id: &UserId,
        event_type: &str,
    ) -> Result<bool> {
        // The writer alone knows what is about to be committed; what it finds is confirmed like a write.
        let mut attempts = self.attempts(room);
        loop {
            let mut writer = attempts.open().await?;
            let may = writer.may_send_state(user_id, event_type).await;
            if let Some(may) = attempts.finish(writer, may).await? {
                return Ok(may);
            }
        }
    }
}
