use http::{Method, Request, StatusCode};
use ruma::{
    CanonicalJsonObject,
    api::federation::discovery::ServerSigningKeys,
    signatures::{PublicKeyMap, verify_json},
};
use serde_json::{Value, json};

use crate::testing::{Server, on_both};

fn assert_is_ours(document: &Value) {
    let keys: ServerSigningKeys = serde_json::from_value(document.clone()).unwrap();
    assert_eq!(keys.server_name, "example.org");
    let published = keys.verify_keys.iter().map(|(id, key)| (id.to_string(), key.key.clone()));
    let map = PublicKeyMap::from([("example.org".to_owned(), published.collect())]);
    let object: CanonicalJsonObject = serde_json::from_value(document.clone()).unwrap();
    verify_json(&map, &object).unwrap();
}

/// Anyone may have our keys, from us and from us as a notary.
#[tokio::test]
async fn our_keys_are_published() {
    on_both(async |server: &Server| {
        assert_is_ours(&server.get("/_matrix/key/v2/server").await.json(StatusCode::OK));
        let one = server.get("/_matrix/key/v2/query/example.org").await.json(StatusCode::OK);
        assert_is_ours(&one["server_keys"][0]);
        let body = json!({ "server_keys": { "example.org": {} } }).to_string().into_bytes();
        let request = Request::post("/_matrix/key/v2/query").body(body).unwrap();
        let several = server.send(request).await.json(StatusCode::OK);
        assert_is_ours(&several["server_keys"][0]);
        let (version, _) = server.services.store.signing_key().await.unwrap();
        assert!(several["server_keys"][0]["verify_keys"][format!("ed25519:{version}")].is_object());
    })
    .await;
}

/// Nobody is asked for the keys of servers that we do not deal with; what cannot be read is refused.
#[tokio::test]
async fn notary_requests_are_checked() {
    on_both(async |server: &Server| {
        server.world.denied.lock().insert("bad.org".try_into().unwrap());
        let answer = server.get("/_matrix/key/v2/query/bad.org").await.json(StatusCode::OK);
        assert_eq!(answer, json!({ "server_keys": [] }));
        assert!(server.world.asked.lock().is_empty());
        let post = async |body: &str| {
            let request = Request::builder().method(Method::POST).uri("/_matrix/key/v2/query");
            server.send(request.body(body.as_bytes().to_vec()).unwrap()).await
        };
        let none = post(r#"{"server_keys":{}}"#).await.json(StatusCode::OK);
        assert_eq!(none, json!({ "server_keys": [] }));
        for (body, errcode) in [("{", "M_NOT_JSON"), ("{}", "M_MISSING_PARAM"), (r#"{"server_keys":1}"#, "M_BAD_JSON")]
        {
            assert_eq!(post(body).await.errcode(StatusCode::BAD_REQUEST), errcode, "{body}");
        }
        let name = server.get("/_matrix/key/v2/query/a%20b").await;
        assert_eq!(name.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM");
    })
    .await;
}
