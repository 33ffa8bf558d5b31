//! GET /_matrix/client/v3/capabilities
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3capabilities>

use std::sync::LazyLock;

use axum::extract::State;
use bytes::Bytes;
use myelin_http::{Matrix, RawJson};
use ruma::api::client::discovery::get_capabilities::v3::Request;
use serde_json::{Map, Value, json};

use crate::{Services, errors::Result};

/// The version of rooms that are made without another one being asked for.
const ROOM_VERSION_DEFAULT: u32 = 12;
/// Versions 1 to this one can be made and joined.
const ROOM_VERSION_MAX: u32 = 12;

/// Written out in full: ruma leaves away what is as good as its default, and not all clients know the defaults.
static CAPABILITIES: LazyLock<Bytes> = LazyLock::new(|| capabilities(false));
/// What administrators can do besides.
static OF_ADMINISTRATORS: LazyLock<Bytes> = LazyLock::new(|| capabilities(true));

fn capabilities(is_admin: bool) -> Bytes {
    let versions: Map<String, Value> =
        (1..=ROOM_VERSION_MAX).map(|version| (version.to_string(), "stable".into())).collect();
    let on = json!({ "enabled": true });
    let off = json!({ "enabled": false });
    let mut capabilities = json!({
        "m.change_password": on,
        "m.room_versions": { "default": ROOM_VERSION_DEFAULT.to_string(), "available": versions },
        "m.set_displayname": on,
        "m.set_avatar_url": on,
        "m.3pid_changes": off,
        "m.get_login_token": on,
        "m.profile_fields": on,
        "m.forget_forced_upon_leave": off,
    });
    // "This property should be omitted altogether if suspend and lock would be false."
    if is_admin {
        capabilities["m.account_moderation"] = json!({ "suspend": true, "lock": true });
    }
    json!({ "capabilities": capabilities }).to_string().into()
}

pub(crate) async fn list(_: State<Services>, request: Matrix<Request>) -> Result<RawJson> {
    let capabilities = if request.session().is_admin { &*OF_ADMINISTRATORS } else { &*CAPABILITIES };
    Ok(RawJson(capabilities.clone()))
}
