use http::{Request, StatusCode};
use myelin_rooms::Error;
use serde_json::{Value, json};

use crate::testing::{Answer, Server, on_both};

async fn on_bind(server: &Server, mxid: &str, invites: &[Value]) -> Answer {
    let body = json!({ "medium": "email", "address": "alice@example.org", "mxid": mxid, "invites": invites });
    let request = Request::put("/_matrix/federation/v1/3pid/onbind").body(body.to_string().into_bytes()).unwrap();
    server.send(request).await
}

fn invite(mxid: &str) -> Value {
    json!({
        "medium": "email",
        "address": "alice@example.org",
        "mxid": mxid,
        "room_id": "!room:peer.org",
        "sender": "@bob:peer.org",
        "signed": { "mxid": mxid, "token": "abc", "signatures": { "id.org": { "ed25519:0": "c2ln" } } },
    })
}

/// An invite is made here, or where it came from; and only for a user of ours, whom the identity server names.
#[tokio::test]
async fn bound_addresses_are_invited() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        let invites = [invite(alice.as_str()), invite("@other:example.org")];
        on_bind(server, alice.as_str(), &invites).await.json(StatusCode::OK);
        let calls = server.writes.take_calls();
        assert_eq!(calls.len(), 1);
        let event: Value =
            serde_json::from_str(calls[0].strip_prefix("exchange example.org !room:peer.org ").unwrap()).unwrap();
        assert_eq!(event["type"], "m.room.member");
        assert_eq!(
            (event["sender"].as_str(), event["state_key"].as_str()),
            (Some("@bob:peer.org"), Some(alice.as_str()))
        );
        assert_eq!(event["content"]["membership"], "invite");
        assert_eq!(event["content"]["third_party_invite"]["signed"], invites[0]["signed"]);
        assert!(server.world.called.lock().is_empty());

        *server.writes.next_error.lock() = Some(Error::NotFound("there is no such room"));
        on_bind(server, alice.as_str(), &invites).await.json(StatusCode::OK);
        assert_eq!(*server.world.called.lock(), ["peer.org"]);
        server.world.denied.lock().insert("peer.org".try_into().unwrap());
        *server.writes.next_error.lock() = Some(Error::NotFound("there is no such room"));
        on_bind(server, alice.as_str(), &invites).await.json(StatusCode::OK);
        assert_eq!(server.world.called.lock().len(), 1);

        for nobody in ["@nobody:example.org", "@bob:peer.org"] {
            let refused = on_bind(server, nobody, &invites).await;
            assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{nobody}");
        }
        let many = vec![invite(alice.as_str()); super::INVITES_MAX + 1];
        let refused = on_bind(server, alice.as_str(), &many).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
    })
    .await;
}
