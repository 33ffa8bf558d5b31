//! Who may do what.

use std::sync::Arc;

use ruma::{UserId, events::room::power_levels::UserPowerLevel};
use ruma_state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField};

use crate::{Error, Pdu, Result, RoomWriter};

impl RoomWriter {
    async fn power_levels(&mut self) -> Result<Option<RoomPowerLevelsEvent<Arc<Pdu>>>> {
        Ok(self.state_event("m.room.power_levels", "").await?.map(RoomPowerLevelsEvent::new))
    }

    /// The power of a user.
    pub async fn level_of(&mut self, user_id: &UserId) -> Result<UserPowerLevel> {
        let create = self.state_event("m.room.create", "").await?;
        let create = create.ok_or(Error::NotFound("the room has no beginning"))?;
        let power_levels = self.power_levels().await?;
        let rules = &self.rules().authorization;
        let creators = RoomCreateEvent::new(create).creators(rules).map_err(Error::Forbidden)?;
        let is_creator = creators.contains(user_id);
        if is_creator && rules.explicitly_privilege_room_creators {
            return Ok(UserPowerLevel::Infinite);
        }
        let level = match power_levels {
            Some(power_levels) => power_levels.user_power_level(user_id, rules).map_err(Error::Forbidden)?,
            None if is_creator => ruma::int!(100),
            None => ruma::int!(0),
        };
        Ok(level.into())
    }

    /// The power that an action needs.
    pub async fn level_for(&mut self, action: RoomPowerLevelsIntField) -> Result<UserPowerLevel> {
        let power_levels = self.power_levels().await?;
        let rules = &self.rules().authorization;
        match power_levels {
            Some(power_levels) => {
                Ok(power_levels.get_as_int_or_default(action, rules).map_err(Error::Forbidden)?.into())
            }
            None => Ok(action.default_value().into()),
        }
    }
}
