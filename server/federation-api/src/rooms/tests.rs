use http::{Method, StatusCode};
use myelin_rooms::{Error, JoinedRoom};
use ruma::{OwnedRoomId, OwnedServerName, user_id};
use serde_json::{Value, json};

use crate::testing::{Server, on_both};

const ROOM: &str = "%21room%3Aexample.org";
const V1: &str = "/_matrix/federation/v1";
const V2: &str = "/_matrix/federation/v2";

fn room_id() -> OwnedRoomId {
    "!room:example.org".try_into().unwrap()
}

/// The paths that rooms have for other servers, each with a body that fits.
fn all_of_room() -> Vec<(Method, String, Option<Value>)> {
    let user = "%40bob%3Apeer.org";
    let event = json!({ "type": "m.room.member", "b": 1, "a": 2 });
    let invite = json!({ "room_version": "11", "event": event, "invite_room_state": [] });
    vec![
        (Method::GET, format!("{V1}/make_join/{ROOM}/{user}?ver=11"), None),
        (Method::GET, format!("{V1}/make_leave/{ROOM}/{user}"), None),
        (Method::GET, format!("{V1}/make_knock/{ROOM}/{user}?ver=11"), None),
        (Method::PUT, format!("{V1}/send_join/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V2}/send_join/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V1}/send_leave/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V2}/send_leave/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V1}/send_knock/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V1}/invite/{ROOM}/%24e"), Some(event.clone())),
        (Method::PUT, format!("{V2}/invite/{ROOM}/%24e"), Some(invite)),
        (Method::PUT, format!("{V1}/exchange_third_party_invite/{ROOM}"), Some(event)),
    ]
}

/// Templates are for users of the origin, in the versions that it knows.
#[tokio::test]
async fn templates_are_made() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let user = "%40bob%3Apeer.org";
        let join = peer.get(server, &format!("{V1}/make_join/{ROOM}/{user}?ver=10&ver=11&ver=org.custom")).await;
        let event = json!({ "type": "m.room.member", "state_key": "@bob:peer.org" });
        assert_eq!(join.json(StatusCode::OK), json!({ "room_version": "11", "event": event }));
        // "Defaults to [1]."
        peer.get(server, &format!("{V1}/make_join/{ROOM}/{user}")).await.json(StatusCode::OK);
        let leave = peer.get(server, &format!("{V1}/make_leave/{ROOM}/{user}")).await;
        assert_eq!(leave.json(StatusCode::OK), json!({ "room_version": "11", "event": event }));
        let knock = peer.get(server, &format!("{V1}/make_knock/{ROOM}/{user}?ver=11")).await;
        assert_eq!(knock.json(StatusCode::OK), json!({ "room_version": "11", "event": event }));
        let expected = [
            "make_join peer.org !room:example.org @bob:peer.org 10,11,org.custom",
            "make_join peer.org !room:example.org @bob:peer.org 1",
            "make_leave peer.org !room:example.org @bob:peer.org",
            "make_knock peer.org !room:example.org @bob:peer.org 11",
        ];
        assert_eq!(server.writes.take_calls(), expected);

        for make in ["make_join", "make_leave", "make_knock"] {
            let other = peer.get(server, &format!("{V1}/{make}/{ROOM}/%40alice%3Aexample.org?ver=11")).await;
            assert_eq!(other.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN", "{make}");
            let malformed = peer.get(server, &format!("{V1}/{make}/{ROOM}/bob?ver=11")).await;
            assert_eq!(malformed.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM", "{make}");
        }
        assert!(server.writes.take_calls().is_empty());
    })
    .await;
}

/// The state of a joined room is handed out as it is stored, byte for byte, in both versions' forms.
#[tokio::test]
async fn joins_are_answered_with_the_room() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let alice = server.user("alice").await;
        let room = server.room(&alice).await;
        server.join(&room, user_id!("@bob:peer.org")).await;
        let rooms = &server.services.rooms;
        let root = rooms.state_root(&room).await.unwrap();
        let state = server.services.store.all_state_events(root).await.unwrap();
        let join = rooms.state_event(&room, "m.room.member", "@bob:peer.org").await.unwrap().unwrap();
        let joined = |servers: Option<Vec<OwnedServerName>>| JoinedRoom {
            event: join.clone(),
            state: state.clone(),
            auth_chain: state[..1].to_vec(),
            members_omitted: servers.is_some(),
            servers_in_room: servers,
        };
        let pdu = json!({ "b": 1, "a": { "c": [] } });
        *server.writes.joined.lock() = Some(joined(Some(vec!["example.org".try_into().unwrap()])));
        let path = format!("{V2}/send_join/{ROOM}/%24e?omit_members=true");
        let answer = peer.put(server, &path, &pdu).await;
        let json = answer.json(StatusCode::OK);
        assert_eq!(json["members_omitted"], true);
        assert_eq!(json["servers_in_room"], json!(["example.org"]));
        assert_eq!(json["auth_chain"].as_array().unwrap().len(), 1);
        assert_eq!(json["state"].as_array().unwrap().len(), state.len());
        let text = String::from_utf8(answer.body.clone()).unwrap();
        let spliced = state.iter().map(|event| event.json()).collect::<Vec<_>>().join(",");
        assert!(text.contains(&format!("\"state\":[{spliced}]")));
        assert!(text.contains(&format!("\"event\":{}", join.json())));

        *server.writes.joined.lock() = Some(joined(None));
        let old = peer.put(server, &format!("{V1}/send_join/{ROOM}/%24e"), &pdu).await.json(StatusCode::OK);
        assert_eq!(old[0], 200);
        assert_eq!(old[1]["members_omitted"], false);
        assert!(old[1].get("servers_in_room").is_none());
        let called = format!("send_join peer.org !room:example.org $e {pdu}");
        assert_eq!(server.writes.take_calls(), [format!("{called} true"), format!("{called} false")]);
    })
    .await;
}

/// Leaves, knocks and invites are passed on as they came, and answered in the form of their version.
#[tokio::test]
async fn events_are_passed_on() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let event = json!({ "type": "m.room.member", "b": 1, "unsigned": { "invite_room_state": [{}, {}] } });
        let put = async |path: String, body: &Value| {
            (peer.put(server, &path, body).await.json(StatusCode::OK), server.writes.take_calls().pop().unwrap())
        };
        let (answer, call) = put(format!("{V2}/send_leave/{ROOM}/%24e"), &event).await;
        assert_eq!((answer, call), (json!({}), format!("send_leave peer.org !room:example.org $e {event}")));
        let (answer, _) = put(format!("{V1}/send_leave/{ROOM}/%24e"), &event).await;
        assert_eq!(answer, json!([200, {}]));
        let (answer, call) = put(format!("{V1}/send_knock/{ROOM}/%24e"), &event).await;
        assert_eq!(answer, json!({ "knock_room_state": [event] }));
        assert_eq!(call, format!("send_knock peer.org !room:example.org $e {event}"));
        let invite = json!({ "room_version": "12", "event": event, "invite_room_state": [{}] });
        let (answer, call) = put(format!("{V2}/invite/{ROOM}/%24e"), &invite).await;
        assert_eq!(answer, json!({ "event": event }));
        assert_eq!(call, format!("invite peer.org !room:example.org $e 12 {event} 1"));
        let (answer, call) = put(format!("{V1}/invite/{ROOM}/%24e"), &event).await;
        assert_eq!(answer, json!([200, { "event": event }]));
        assert_eq!(call, format!("invite peer.org !room:example.org $e 1 {event} 2"));
        let (answer, call) = put(format!("{V1}/exchange_third_party_invite/{ROOM}"), &event).await;
        assert_eq!((answer, call), (json!({}), format!("exchange peer.org !room:example.org {event}")));
        let bad = peer.put(server, &format!("{V2}/invite/{ROOM}/%24e"), &json!({ "room_version": "12" })).await;
        assert_eq!(bad.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
    })
    .await;
}

/// "If the server is denied access to a room, the receiving server MUST reply with a 403 HTTP status code and an errcode of
/// M_FORBIDDEN." Nothing is asked of the room then.
#[tokio::test]
async fn denied_servers_do_nothing_in_a_room() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        server.writes.denied_rooms.lock().insert(room_id());
        for (method, path, body) in all_of_room() {
            let answer = server.send(peer.request(method, &path, body.as_ref())).await;
            assert_eq!(answer.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN", "{path}");
        }
        assert!(server.writes.take_calls().is_empty());
    })
    .await;
}

/// Each refusal of a room has its status and errcode, on each endpoint.
#[tokio::test]
async fn refusals_have_their_errcodes() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        type Case = (fn() -> Error, StatusCode, &'static str);
        let errors: [Case; 6] = [
            (|| Error::UnableToAuthoriseJoin, StatusCode::BAD_REQUEST, "M_UNABLE_TO_AUTHORISE_JOIN"),
            (|| Error::UnableToGrantJoin, StatusCode::BAD_REQUEST, "M_UNABLE_TO_GRANT_JOIN"),
            (|| Error::NotFound("there is no such room"), StatusCode::NOT_FOUND, "M_NOT_FOUND"),
            (|| Error::Forbidden("you are not invited".into()), StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            (|| Error::InvalidParam("not a join".into()), StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
            (|| Error::UnsupportedRoomVersion("9".into()), StatusCode::BAD_REQUEST, "M_INCOMPATIBLE_ROOM_VERSION"),
        ];
        for (method, path, body) in all_of_room() {
            for (error, status, errcode) in &errors {
                *server.writes.next_error.lock() = Some(error());
                let answer = server.send(peer.request(method.clone(), &path, body.as_ref())).await;
                assert_eq!(answer.errcode(*status), *errcode, "{path}");
                if *errcode == "M_INCOMPATIBLE_ROOM_VERSION" {
                    assert_eq!(answer.json(*status)["room_version"], "9");
                }
            }
        }
    })
    .await;
}
