//! `POST /_matrix/client/v3/createRoom`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom)

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_rooms::{CreateRoom, InitialState, Preset, content};
use ruma::{
    CanonicalJsonValue, OwnedRoomAliasId, RoomVersionId, ServerName,
    api::client::room::{
        Visibility,
        create_room::v3::{Request, Response, RoomPreset},
    },
    serde::Raw,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{Services, errors::Result};

/// The version of a room that is asked for without one.
const DEFAULT_VERSION: RoomVersionId = RoomVersionId::V12;
/// Users that are invited by one request.
const INVITED: usize = 500;
/// Pieces of state that are set by one request.
const INITIAL_STATE: usize = 500;

pub(super) async fn create(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    session.require_good_standing()?;
    let creator = session.user_id.clone();
    let wanted = wanted(request.body, services.rooms.server_name(), creator)?;
    let room = services.rooms.create(wanted).await?;
    Ok(Reply(Response::new(room.room_id.clone())))
}

fn wanted(request: Request, server_name: &ServerName, creator: ruma::OwnedUserId) -> Result<CreateRoom> {
    if !request.invite_3pid.is_empty() {
        Err(ApiError::forbidden("This server does not invite by e-mail address or telephone number"))?;
    }
    if request.invite.len() > INVITED {
        Err(ApiError::invalid_param(format!("At most {INVITED} users can be invited at once")))?;
    }
    if request.initial_state.len() > INITIAL_STATE {
        Err(ApiError::invalid_param(format!("At most {INITIAL_STATE} pieces of state can be set at once")))?;
    }
    let is_public = match &request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        other => Err(ApiError::invalid_param(format!("There is no visibility {:?}", other.as_str())))?,
    };
    let preset = match &request.preset {
        Some(RoomPreset::PublicChat) => Preset::PublicChat,
        Some(RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(other) => Err(ApiError::invalid_param(format!("There is no preset {:?}", other.as_str())))?,
        None if is_public => Preset::PublicChat,
        None => Preset::PrivateChat,
    };
    let alias = request.room_alias_name.map(|name| alias(&name, server_name)).transpose()?;
    let initial_state = request.initial_state.iter().map(|event| initial_state(event.json())).collect::<Result<_>>()?;
    let mut invite = request.invite;
    invite.sort();
    invite.dedup();
    let wanted = CreateRoom {
        creator,
        version: request.room_version.unwrap_or(DEFAULT_VERSION),
        preset,
        is_public,
        alias,
        name: request.name,
        topic: request.topic,
        invite,
        is_direct: request.is_direct,
        creation_content: object(request.creation_content)?,
        initial_state,
        power_level_content_override: object(request.power_level_content_override)?,
    };
    check_named_aliases(&wanted)?;
    Ok(wanted)
}

fn alias(name: &str, server_name: &ServerName) -> Result<OwnedRoomAliasId> {
    let invalid = || ApiError::invalid_param("room_alias_name must be the local part of a room alias");
    if name.is_empty() || name.contains([':', '#', '\0']) || name.chars().any(char::is_whitespace) {
        Err(invalid())?;
    }
    let alias = OwnedRoomAliasId::try_from(format!("#{name}:{server_name}")).map_err(|_| invalid())?;
    if alias.as_str().len() > 255 {
        Err(invalid())?;
    }
    Ok(alias)
}

fn object<T>(raw: Option<Raw<T>>) -> Result<ruma::CanonicalJsonObject> {
    Ok(raw.map(|raw| content(raw.json())).transpose()?.unwrap_or_default())
}

fn initial_state(json: &RawValue) -> Result<InitialState> {
    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(rename = "type")]
        event_type: String,
        #[serde(default)]
        state_key: String,
        #[serde(borrow)]
        content: &'a RawValue,
    }
    let fields: Fields<'_> =
        serde_json::from_str(json.get()).map_err(|error| ApiError::bad_json(format!("initial_state: {error}")))?;
    Ok(InitialState { event_type: fields.event_type, state_key: fields.state_key, content: content(fields.content)? })
}

/// No alias points to a room that is yet to be made, but for the one that it is made with.
fn check_named_aliases(wanted: &CreateRoom) -> Result<()> {
    let own = wanted.alias.as_ref().map(|alias| alias.as_str());
    for state in wanted.initial_state.iter().filter(|state| state.event_type == "m.room.canonical_alias") {
        let others = match state.content.get("alt_aliases") {
            Some(CanonicalJsonValue::Array(others)) => others.as_slice(),
            _ => &[],
        };
        let named = state.content.get("alias").into_iter().chain(others).filter_map(CanonicalJsonValue::as_str);
        if let Some(foreign) = named.into_iter().find(|named| !named.is_empty() && Some(*named) != own) {
            Err(myelin_rooms::Error::BadAlias(format!("the alias {foreign} does not point to this room")))?;
        }
    }
    Ok(())
}
