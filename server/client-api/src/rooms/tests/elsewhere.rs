//! What other servers are asked for.

use std::{collections::BTreeMap, sync::Arc};

use http::StatusCode;
use myelin_rooms::remote::{RemoteError, RemoteServers, VerifyKeys, WantedKeys};
use ruma::{
    OwnedServerName, ServerName,
    api::{IncomingResponse, OutgoingBody as _, OutgoingRequest, path_builder::PathBuilder},
};
use serde_json::{Value, json};

use super::{Client, FORBIDDEN, refused, room_id, segment};
use crate::testing::{Server, on_both};

const NOT_FOUND: (StatusCode, &str) = (StatusCode::NOT_FOUND, "M_NOT_FOUND");
const BAD_GATEWAY: (StatusCode, &str) = (StatusCode::BAD_GATEWAY, "M_UNKNOWN");

/// The server `elsewhere.test`; it answers by the request's path and body, and no other server answers.
struct Elsewhere {
    answer: fn(&str, &Value) -> (u16, Value),
}

impl Elsewhere {
    fn connect(server: &Server, answer: fn(&str, &Value) -> (u16, Value)) {
        server.services.rooms.connect(Arc::new(Self { answer }));
    }

    async fn call<R>(&self, server: &ServerName, request: R) -> Result<R::IncomingResponse, RemoteError>
    where
        R: OutgoingRequest + Send,
        for<'a> R::PathBuilder: PathBuilder<Input<'a> = ()>,
    {
        let server = server.to_owned();
        if server != "elsewhere.test" {
            return Err(RemoteError::Unreachable { server, reason: "it is not there".into() });
        }
        let (head, body) = request.try_into_http_request_inner("", ()).unwrap().into_parts();
        let body: Vec<u8> = body.try_into_buf().ok().expect("requests can be written");
        let (status, body) = (self.answer)(&head.uri.to_string(), &serde_json::from_slice(&body).unwrap_or_default());
        if status != 200 {
            let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
            let (errcode, message) = (text("errcode"), text("error"));
            return Err(RemoteError::Refused { server, status, errcode, message, body: body.as_object().cloned() });
        }
        let body = body.to_string();
        R::IncomingResponse::try_from_http_response_inner(http::Response::new(body.as_bytes()))
            .map_err(|error| RemoteError::Nonsense { server, reason: error.to_string() })
    }
}

impl RemoteServers for Elsewhere {
    fn verify_keys<'a>(
        &'a self,
        _: &'a BTreeMap<OwnedServerName, WantedKeys>,
    ) -> futures_util::future::BoxFuture<'a, VerifyKeys> {
        Box::pin(async { VerifyKeys::default() })
    }

    myelin_rooms::remote_requests_by_call!();
}

/// Profiles of other servers' users, whole and by field; who is refused there is refused here.
#[tokio::test]
async fn profiles() {
    on_both(async |server: &Server| {
        Elsewhere::connect(server, |path, _| {
            let profile = |user: &str| path.contains(&format!("/query/profile?user_id=%40{user}%3Aelsewhere.test"));
            if profile("bob") {
                (200, json!({ "displayname": "Bob", "avatar_url": 1, "org.example.x": [1] }))
            } else if profile("shy") {
                (403, json!({ "errcode": "M_FORBIDDEN", "error": "No" }))
            } else if profile("large") {
                (200, json!({ "org.example.x": "x".repeat(70_000) }))
            } else {
                (404, json!({ "errcode": "M_NOT_FOUND", "error": "Nobody" }))
            }
        });
        let get = async |path: &str| server.get(&format!("/_matrix/client/v3/profile/{path}"), None).await;
        let whole = get("@bob:elsewhere.test").await.json(StatusCode::OK);
        assert_eq!(whole, json!({ "displayname": "Bob", "org.example.x": [1] }), "an avatar is a text");
        let field = get("@bob:elsewhere.test/displayname").await.json(StatusCode::OK);
        assert_eq!(field, json!({ "displayname": "Bob" }));
        refused(&get("@bob:elsewhere.test/avatar_url").await, NOT_FOUND);
        refused(&get("@nobody:elsewhere.test").await, NOT_FOUND);
        refused(&get("@shy:elsewhere.test").await, FORBIDDEN);
        refused(&get("@large:elsewhere.test").await, BAD_GATEWAY);
        refused(&get("@bob:away.test").await, BAD_GATEWAY);
        let alice = Client::new(server, "alice").await;
        let path = format!("/profile/{}/displayname", segment("@bob:elsewhere.test"));
        refused(&alice.put(&path, json!({ "displayname": "Mallory" })).await, FORBIDDEN);
    })
    .await;
}

/// The directory of another server, with what was asked for and its own tokens.
#[tokio::test]
async fn directories() {
    on_both(async |server: &Server| {
        Elsewhere::connect(server, |path, body| {
            assert_eq!(path, "/_matrix/federation/v1/publicRooms");
            if body["since"] == "bad" {
                return (400, json!({ "errcode": "M_INVALID_PARAM", "error": "since" }));
            }
            let room = json!({
                "room_id": "!a:elsewhere.test", "name": body.to_string(), "num_joined_members": 3,
                "world_readable": false, "guest_can_join": false,
            });
            (200, json!({ "chunk": vec![room; 600], "next_batch": "n", "total_room_count_estimate": 600 }))
        });
        let path = "/_matrix/client/v3/publicRooms?server=elsewhere.test";
        let got = server.get(&format!("{path}&limit=7&since=x"), None).await.json(StatusCode::OK);
        assert_eq!((&got["next_batch"], &got["total_room_count_estimate"]), (&json!("n"), &json!(600)));
        assert_eq!(got["chunk"].as_array().unwrap().len(), 500, "no more than is allowed");
        let asked =
            |answer: &Value| serde_json::from_str::<Value>(answer["chunk"][0]["name"].as_str().unwrap()).unwrap();
        assert_eq!(asked(&got), json!({ "limit": 7, "since": "x" }));
        let alice = Client::new(server, "alice").await;
        let filter = json!({ "generic_search_term": "tea", "room_types": [null] });
        let wanted = json!({ "limit": 9999, "filter": filter });
        let found = alice.ok(alice.post("/publicRooms?server=elsewhere.test", wanted).await);
        assert_eq!(asked(&found), json!({ "limit": 500, "filter": filter }));
        refused(&server.get(&format!("{path}&since=bad"), None).await, BAD_GATEWAY);
        refused(&alice.get("/publicRooms?server=away.test").await, BAD_GATEWAY);
        let long = "x".repeat(5000);
        refused(
            &alice.get(&format!("/publicRooms?server=elsewhere.test&since={long}")).await,
            (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
        );
    })
    .await;
}

/// A summary of a room here or elsewhere, by its name or its alias.
#[tokio::test]
async fn summaries() {
    on_both(async |server: &Server| {
        Elsewhere::connect(server, |path, _| {
            let summary = |room_id: &str, join_rule: &str| {
                json!({
                    "room_id": room_id, "name": "Theirs", "num_joined_members": 2, "join_rule": join_rule,
                    "world_readable": false, "guest_can_join": false, "children_state": [], "room_version": "11",
                })
            };
            let told = |room| (200, json!({ "room": room, "children": [], "inaccessible_children": [] }));
            if path.contains("/query/directory") {
                (200, json!({ "room_id": "!open:elsewhere.test", "servers": ["elsewhere.test"] }))
            } else if path.contains("open") {
                told(summary("!open:elsewhere.test", "public"))
            } else if path.contains("closed") {
                told(summary("!closed:elsewhere.test", "invite"))
            } else if path.contains("liar") {
                told(summary("!other:elsewhere.test", "public"))
            } else {
                (404, json!({ "errcode": "M_NOT_FOUND", "error": "No" }))
            }
        });
        let alice = Client::new(server, "alice").await;
        let summary = async |room: &str, token: Option<&str>| {
            server.get(&format!("/_matrix/client/v1/room_summary/{}", segment(room)), token).await
        };
        let own = alice.create(json!({ "preset": "public_chat", "name": "Ours", "room_alias_name": "ours" })).await;
        let told = summary(&room_id(&own), Some(&alice.token)).await.json(StatusCode::OK);
        assert_eq!((&told["name"], &told["membership"]), (&json!("Ours"), &json!("join")));
        let told = summary("#ours:example.org", None).await.json(StatusCode::OK);
        assert_eq!((&told["name"], told.get("membership")), (&json!("Ours"), None));
        for room in ["!open:elsewhere.test", "#open:elsewhere.test"] {
            let told = summary(room, Some(&alice.token)).await.json(StatusCode::OK);
            assert_eq!(
                told,
                json!({
                    "room_id": "!open:elsewhere.test", "name": "Theirs", "num_joined_members": 2,
                    "join_rule": "public", "world_readable": false, "guest_can_join": false, "room_version": "11",
                    "membership": "leave",
                })
            );
        }
        refused(&summary("!open:elsewhere.test", None).await, NOT_FOUND);
        for room in ["!closed:elsewhere.test", "!liar:elsewhere.test", "!x:elsewhere.test", "!x:away.test"] {
            refused(&summary(room, Some(&alice.token)).await, NOT_FOUND);
        }
        let path = format!("/_matrix/client/v1/room_summary/{}?via=away.test&via=elsewhere.test", segment("!open"));
        assert_eq!(server.get(&path, Some(&alice.token)).await.status(), StatusCode::NOT_FOUND, "it is another room");
        let closed = alice.create(json!({ "preset": "private_chat" })).await;
        refused(&summary(&room_id(&closed), None).await, NOT_FOUND);
    })
    .await;
}
