//! PUT, GET and DELETE /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device,
//! POST /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events
//!
//! <https://github.com/matrix-org/matrix-spec-proposals/pull/3814>

use axum::extract::State;
use myelin_http::{ApiError, Matrix, RawJson, Reply};
use myelin_store::WaitingMessage;
use ruma::{
    api::client::dehydrated_device::{
        delete_dehydrated_device::unstable as delete_device, get_dehydrated_device::unstable as get_device,
        get_events::unstable as get_events, put_dehydrated_device::unstable as put_device,
    },
    events::AnyToDeviceEvent,
    serde::Raw,
};
use serde::Serialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::owner;
use crate::{Services, errors::Result};

pub(super) async fn put(State(services): State<Services>, request: Matrix<put_device::Request>) -> Result<RawJson> {
    let session = request.session();
    session.require_full_account()?;
    let body = &request.body;
    body.device_data.deserialize().map_err(|error| ApiError::bad_json(format!("device_data: {error}")))?;
    services
        .encryption
        .put_dehydrated_device(
            &owner(session),
            &body.device_id,
            body.initial_device_display_name.as_deref(),
            body.device_data.json(),
            &body.device_keys,
            &body.one_time_keys,
            &body.fallback_keys,
        )
        .await?;
    Ok(RawJson(json!({ "device_id": body.device_id }).to_string().into()))
}

pub(super) async fn show(
    State(services): State<Services>,
    request: Matrix<get_device::Request>,
) -> Result<Reply<get_device::Response>> {
    let device = services.encryption.dehydrated_device(request.session().user_nid).await?;
    let data = RawValue::from_string(device.data).map_err(ApiError::unknown)?;
    Ok(Reply(get_device::Response::new(device.device_id.into(), Raw::from_json(data))))
}

pub(super) async fn delete(
    State(services): State<Services>,
    request: Matrix<delete_device::Request>,
) -> Result<Reply<delete_device::Response>> {
    let device_id = services.encryption.delete_dehydrated_device(request.session().user_nid).await?;
    Ok(Reply(delete_device::Response::new(device_id.into())))
}

pub(super) async fn events(
    State(services): State<Services>,
    request: Matrix<get_events::Request>,
) -> Result<Reply<get_events::Response>> {
    let user_nid = request.session().user_nid;
    let get_events::Request { device_id, next_batch, .. } = &request.body;
    let (messages, next) = services.encryption.dehydrated_messages(user_nid, device_id, next_batch.as_deref()).await?;
    let events = messages.iter().map(told).collect::<Result<_, serde_json::Error>>().map_err(ApiError::unknown)?;
    let mut response = get_events::Response::new(events);
    response.next_batch = Some(next);
    Ok(Reply(response))
}

fn told(message: &WaitingMessage) -> Result<Raw<AnyToDeviceEvent>, serde_json::Error> {
    #[derive(Serialize)]
    struct Event<'a> {
        sender: &'a str,
        #[serde(rename = "type")]
        event_type: &'a str,
        content: &'a RawValue,
    }
    let content: &RawValue = serde_json::from_str(&message.content)?;
    let event = Event { sender: &message.sender, event_type: &message.event_type, content };
    Ok(Raw::from_json(to_raw_value(&event)?))
}
