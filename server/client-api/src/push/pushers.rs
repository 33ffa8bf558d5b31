//! `GET /_matrix/client/v3/pushers` and `POST /_matrix/client/v3/pushers/set`
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3pushers)

use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::State;
use myelin_http::{ApiError, Matrix, Reply};
use myelin_store::{NewPusher, PusherSettings};
use ruma::api::client::push::{
    Pusher, get_pushers,
    set_pusher::{self, v3::PusherAction},
};
use serde_json::{Map, Value, json};

use crate::{Services, errors::Result};

pub(super) async fn list(
    State(services): State<Services>,
    request: Matrix<get_pushers::v3::Request>,
) -> Result<Reply<get_pushers::v3::Response>> {
    let session = request.session();
    session.require_full_account()?;
    let pushers = services.pushers.of(session.user_nid).await?;
    let shown = pushers.into_iter().map(|pusher| shown(pusher.settings)).collect::<Result<Vec<_>, _>>();
    Ok(Reply(get_pushers::v3::Response::new(shown.map_err(ApiError::unknown)?)))
}

pub(super) async fn set(
    State(services): State<Services>,
    request: Matrix<set_pusher::v3::Request>,
) -> Result<Reply<set_pusher::v3::Response>> {
    let session = request.session();
    session.require_full_account()?;
    match &request.body.action {
        PusherAction::Post(post) => {
            let new = NewPusher {
                user_nid: session.user_nid,
                device_nid: session.device_nid,
                settings: settings(&post.pusher)?,
                append: post.append,
                now_ms: now_ms(),
            };
            services.pushers.set(&new).await?;
        }
        PusherAction::Delete(ids) => services.pushers.remove(session.user_nid, &ids.app_id, &ids.pushkey).await?,
        _ => return Err(ApiError::unrecognized().into()),
    }
    Ok(Reply(set_pusher::v3::Response::new()))
}

/// What a client says, as it is kept.
fn settings(pusher: &Pusher) -> Result<PusherSettings, ApiError> {
    let unwritable = |_| ApiError::bad_json("The pusher is not one");
    let mut kind: Map<String, Value> = match serde_json::to_value(&pusher.kind).map_err(unwritable)? {
        Value::Object(kind) => kind,
        _ => Map::new(),
    };
    let name = kind.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let data = kind.remove("data").unwrap_or_else(|| json!({}));
    Ok(PusherSettings {
        app_id: pusher.ids.app_id.clone(),
        pushkey: pusher.ids.pushkey.clone(),
        kind: name,
        app_display_name: pusher.app_display_name.clone(),
        device_display_name: pusher.device_display_name.clone(),
        profile_tag: pusher.profile_tag.clone(),
        lang: pusher.lang.clone(),
        data: data.to_string(),
    })
}

/// What is kept, as a client is shown it.
fn shown(settings: PusherSettings) -> serde_json::Result<Pusher> {
    let data: Value = serde_json::from_str(&settings.data)?;
    let mut pusher = json!({
        "app_id": settings.app_id,
        "pushkey": settings.pushkey,
        "kind": settings.kind,
        "app_display_name": settings.app_display_name,
        "device_display_name": settings.device_display_name,
        "lang": settings.lang,
        "data": data,
    });
    if let Some(profile_tag) = settings.profile_tag {
        pusher["profile_tag"] = profile_tag.into();
    }
    serde_json::from_value(pusher)
}

fn now_ms() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}
