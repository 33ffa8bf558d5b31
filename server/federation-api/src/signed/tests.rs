use axum::body::Body;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use myelin_http::layers;
use ruma::server_name;
use serde_json::json;
use tower::ServiceExt as _;

use super::now_ms;
use crate::{
    router,
    testing::{Peer, Server, on_both},
};

const PROFILE: &str = "/_matrix/federation/v1/query/profile?user_id=%40alice%3Aexample.org";
const SEND: &str = "/_matrix/federation/v1/send/1";

fn transaction(origin: &str) -> serde_json::Value {
    json!({ "origin": origin, "origin_server_ts": 1, "pdus": [] })
}

#[track_caller]
fn assert_unauthorized(answer: &crate::testing::Answer) {
    assert_eq!(answer.errcode(StatusCode::UNAUTHORIZED), "M_UNAUTHORIZED");
}

/// Who signs what they send is let in, and counts as heard from.
#[tokio::test]
async fn signed_requests_are_let_in() {
    on_both(async |server: &Server| {
        server.user("alice").await;
        let peer = server.peer("peer.org:8448");
        peer.get(server, PROFILE).await.json(StatusCode::OK);
        peer.put(server, SEND, &transaction("peer.org:8448")).await.json(StatusCode::OK);
        assert_eq!(*server.world.heard.lock(), [peer.name.clone(), peer.name.clone()]);

        // "recipients should accept requests without this parameter"
        let mut request = peer.request(Method::GET, PROFILE, None);
        let header = request.headers()[header::AUTHORIZATION].to_str().unwrap().replace("destination=example.org,", "");
        assert!(!header.contains("destination"));
        request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from(header).unwrap());
        server.send(request).await.json(StatusCode::OK);

        // Of several signatures one is enough.
        let mut request = Peer { name: peer.name.clone(), ..Peer::new("peer.org") }.request(Method::GET, PROFILE, None);
        let wrong = request.headers()[header::AUTHORIZATION].clone();
        assert_unauthorized(&server.send(request).await);
        request = peer.request(Method::GET, PROFILE, None);
        let right = request.headers()[header::AUTHORIZATION].clone();
        request.headers_mut().insert(header::AUTHORIZATION, wrong);
        request.headers_mut().append(header::AUTHORIZATION, right);
        server.send(request).await.json(StatusCode::OK);
    })
    .await;
}

/// Each thing that is signed, when it was changed on the way, and each thing that does not fit.
#[tokio::test]
async fn forged_requests_are_refused() {
    on_both(async |server: &Server| {
        server.user("alice").await;
        let peer = server.peer("peer.org");
        let good = || peer.request(Method::PUT, SEND, Some(&transaction("peer.org")));

        let mut none = good();
        none.headers_mut().remove(header::AUTHORIZATION);
        assert_unauthorized(&server.send(none).await);
        let mut bearer = good();
        bearer.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer secret"));
        assert_unauthorized(&server.send(bearer).await);
        let mut malformed = good();
        malformed.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("X-Matrix origin=peer.org"));
        assert_unauthorized(&server.send(malformed).await);
        assert!(server.world.asked.lock().is_empty(), "nobody's keys are asked for");

        let mut body = good();
        *body.body_mut() = transaction("peer.org").to_string().replace("[]", "[1]").into_bytes();
        assert_unauthorized(&server.send(body).await);
        let mut empty = good();
        empty.body_mut().clear();
        assert_unauthorized(&server.send(empty).await);
        let mut uri = good();
        *uri.uri_mut() = "/_matrix/federation/v1/send/2".parse().unwrap();
        assert_unauthorized(&server.send(uri).await);
        let mut query = peer.request(Method::GET, PROFILE, None);
        *query.uri_mut() = format!("{PROFILE}&field=displayname").parse().unwrap();
        assert_unauthorized(&server.send(query).await);
        let mut method = peer.request(Method::GET, "/_matrix/federation/v1/publicRooms", None);
        *method.method_mut() = Method::POST;
        assert_unauthorized(&server.send(method).await);

        assert_unauthorized(&server.send(peer.request_to("other.org", Method::GET, PROFILE, None)).await);
        let mut origin = peer.request(Method::GET, PROFILE, None);
        let header = origin.headers()[header::AUTHORIZATION].to_str().unwrap().replace("peer.org", "victim.org");
        server.peer("victim.org");
        origin.headers_mut().insert(header::AUTHORIZATION, HeaderValue::try_from(header).unwrap());
        assert_unauthorized(&server.send(origin).await);
        let us = server.peer("example.org");
        assert_unauthorized(&us.get(server, PROFILE).await);
        assert!(server.world.heard.lock().is_empty(), "nobody was heard from");
        server.send(good()).await.json(StatusCode::OK);
    })
    .await;
}

/// A key has to be one that the origin signs with now.
#[tokio::test]
async fn keys_have_to_be_known_and_in_use() {
    on_both(async |server: &Server| {
        server.user("alice").await;
        assert_unauthorized(&Peer::new("unknown.org").get(server, PROFILE).await);
        let peer = Peer::new("peer.org");
        server.world.publish(&peer, now_ms() - 1);
        assert_unauthorized(&peer.get(server, PROFILE).await);
        server.world.publish(&peer, now_ms() + 60_000);
        peer.get(server, PROFILE).await.json(StatusCode::OK);
    })
    .await;
}

/// Servers that the operator does not deal with learn that, before anybody is asked for their keys.
#[tokio::test]
async fn denied_servers_are_refused() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        server.world.denied.lock().insert(peer.name.clone());
        assert_eq!(peer.get(server, PROFILE).await.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        assert!(server.world.asked.lock().is_empty());
        let mut services = server.services.clone();
        services.is_enabled = false;
        for path in [PROFILE, "/_matrix/key/v2/server", "/_matrix/federation/v1/version"] {
            let request = Request::get(path).body(Body::empty()).unwrap();
            let response = layers(router(services.clone())).oneshot(request).await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains("M_UNRECOGNIZED"));
        }
    })
    .await;
}

/// Bodies are bounded, and have to be JSON objects; the path and the body are looked at only when the sender is known.
#[tokio::test]
async fn bodies_and_paths_are_checked() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let leave = "/_matrix/federation/v2/send_leave/%21room%3Aexample.org/%24event";
        let large = json!({ "large": "x".repeat(super::BODY_BYTES_MAX) });
        assert_eq!(peer.put(server, leave, &large).await.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
        let many = json!({ "many": "x".repeat(super::VERIFY_HERE_MAX) });
        peer.put(server, leave, &many).await.json(StatusCode::OK);
        for (body, errcode) in [("{", "M_NOT_JSON"), ("[]", "M_BAD_JSON"), ("\u{fffd}", "M_NOT_JSON")] {
            let mut request = peer.request(Method::PUT, leave, None);
            *request.body_mut() = body.as_bytes().to_vec();
            assert_eq!(server.send(request).await.errcode(StatusCode::BAD_REQUEST), errcode, "{body}");
        }
        for broken in [&b"\xff"[..], b"{\"a\":\"\xc3\x28\"}", b"{\"\xed\xa0\x80\":1}"] {
            let mut request = peer.request(Method::PUT, leave, None);
            *request.body_mut() = broken.to_vec();
            assert_eq!(server.send(request).await.errcode(StatusCode::BAD_REQUEST), "M_NOT_JSON", "{broken:?}");
        }
        let room = "/_matrix/federation/v1/make_leave/room/%40user%3Apeer.org";
        assert_eq!(peer.get(server, room).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        assert_unauthorized(&Peer::new("unknown.org").get(server, room).await);
        let long = format!("/_matrix/federation/v1/make_leave/%21{}/%40user%3Apeer.org", "a".repeat(300));
        assert_eq!(peer.get(server, &long).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
        let unknown = peer.get(server, "/_matrix/federation/v1/nothing").await;
        assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_UNRECOGNIZED");
        let method = peer.put(server, PROFILE, &json!({})).await;
        assert_eq!(method.errcode(StatusCode::METHOD_NOT_ALLOWED), "M_UNRECOGNIZED");
    })
    .await;
}

/// Numbers that canonical JSON does not know are no reason to refuse what is signed over them.
#[tokio::test]
async fn strange_numbers_are_verified() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        let body = r#"{"origin":"peer.org","origin_server_ts":1,"pdus":[{"depth":1.5,"event_id":"$a","n":1e+16}]}"#;
        let signed = format!(
            r#"{{"content":{body},"destination":"example.org","method":"PUT","origin":"peer.org","uri":"{SEND}"}}"#
        );
        let signature = ruma::signatures::KeyPair::sign(&peer.key, signed.as_bytes()).base64();
        let header = format!(r#"X-Matrix origin="{}",key="ed25519:1",sig="{signature}""#, server_name!("peer.org"));
        let request = Request::put(SEND).header(header::AUTHORIZATION, header).body(body.as_bytes().to_vec()).unwrap();
        let answer = server.send(request).await.json(StatusCode::OK);
        assert_eq!(answer, json!({ "pdus": { "$a": {} } }));
    })
    .await;
}
