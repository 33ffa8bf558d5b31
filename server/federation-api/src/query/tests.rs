use http::StatusCode;
use serde_json::json;

use crate::testing::{Server, on_both};

const QUERY: &str = "/_matrix/federation/v1/query";

/// Profiles of our users, whole or a field of them.
#[tokio::test]
async fn profiles_are_told() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let alice = server.user("alice").await;
        let nid = server.services.store.user_nid(&alice).await.unwrap();
        let accounts = &server.services.accounts;
        accounts.set_profile_field(nid, &alice, "displayname", "Älice".into()).await.unwrap();
        accounts.set_profile_field(nid, &alice, "org.example.x", json!({ "b": 1, "a": [] })).await.unwrap();
        let path = format!("{QUERY}/profile?user_id=%40alice%3Aexample.org");
        let whole = peer.get(server, &path).await.json(StatusCode::OK);
        assert_eq!(whole, json!({ "displayname": "Älice", "org.example.x": { "b": 1, "a": [] } }));
        let field = peer.get(server, &format!("{path}&field=displayname")).await.json(StatusCode::OK);
        assert_eq!(field, json!({ "displayname": "Älice" }));
        let missing = peer.get(server, &format!("{path}&field=avatar_url")).await;
        assert_eq!(missing.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let nobody = peer.get(server, &path.replace("alice", "nobody")).await;
        assert_eq!(nobody.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let foreign = peer.get(server, &path.replace("example.org", "peer.org")).await;
        assert_eq!(foreign.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let malformed = peer.get(server, &format!("{QUERY}/profile?user_id=alice")).await;
        assert_eq!(malformed.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let without = peer.get(server, &format!("{QUERY}/profile")).await;
        assert_eq!(without.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        assert_eq!(server.get(&path).await.errcode(StatusCode::UNAUTHORIZED), "M_UNAUTHORIZED");
    })
    .await;
}

/// Aliases of ours, and no others; other questions are none that we know.
#[tokio::test]
async fn aliases_are_resolved() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let alice = server.user("alice").await;
        let room = server.room(&alice).await;
        let path = |alias: &str| format!("{QUERY}/directory?room_alias=%23{alias}");
        let found = peer.get(server, &path("room%3Aexample.org")).await.json(StatusCode::OK);
        assert_eq!(found, json!({ "room_id": room.room_id, "servers": ["example.org"] }));
        for unknown in ["other%3Aexample.org", "room%3Apeer.org"] {
            let refused = peer.get(server, &path(unknown)).await;
            assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{unknown}");
        }
        let malformed = peer.get(server, &format!("{QUERY}/directory?room_alias=room")).await;
        assert_eq!(malformed.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let other = peer.get(server, &format!("{QUERY}/org.example.other?a=b")).await;
        assert_eq!(other.errcode(StatusCode::NOT_FOUND), "M_UNRECOGNIZED");
    })
    .await;
}

/// The directory is listed, in pages, and searched.
#[tokio::test]
async fn public_rooms_are_listed() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let alice = server.user("alice").await;
        let room = server.room(&alice).await;
        let path = "/_matrix/federation/v1/publicRooms";
        let all = peer.get(server, path).await.json(StatusCode::OK);
        assert_eq!(all["total_room_count_estimate"], 1);
        assert_eq!(all["chunk"][0]["room_id"], room.room_id.as_str());
        assert_eq!(all["chunk"][0]["canonical_alias"], "#room:example.org");
        let next = peer.get(server, &format!("{path}?since=p1&limit=0")).await.json(StatusCode::OK);
        assert_eq!(next["chunk"], json!([]));
        let bad = peer.get(server, &format!("{path}?since=nonsense")).await;
        assert_eq!(bad.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        for (term, found) in [("ROO", 1), ("nothing", 0)] {
            let search = json!({ "filter": { "generic_search_term": term }, "limit": 10 });
            let answer = peer.post(server, path, &search).await.json(StatusCode::OK);
            assert_eq!(answer["chunk"].as_array().unwrap().len(), found, "{term}");
        }
        let network = peer.get(server, &format!("{path}?third_party_instance_id=irc")).await.json(StatusCode::OK);
        assert_eq!(network["chunk"], json!([]));
    })
    .await;
}
