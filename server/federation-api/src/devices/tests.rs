use http::StatusCode;
use serde_json::json;

use crate::testing::{Server, on_both};

const V1: &str = "/_matrix/federation/v1";

/// Of our users alone, and of nobody else.
#[tokio::test]
async fn devices_of_our_users_are_told() {
    on_both(async |server: &Server| {
        let peer = server.peer("peer.org");
        server.user("alice").await;
        let devices = peer.get(server, &format!("{V1}/user/devices/%40alice%3Aexample.org")).await.json(StatusCode::OK);
        assert_eq!(devices["user_id"], "@alice:example.org");
        assert_eq!(devices["devices"], json!([]));
        assert!(devices["stream_id"].is_u64());
        for nobody in ["%40nobody%3Aexample.org", "%40bob%3Apeer.org"] {
            let refused = peer.get(server, &format!("{V1}/user/devices/{nobody}")).await;
            assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{nobody}");
        }
        let query = json!({ "device_keys": { "@alice:example.org": [], "@bob:peer.org": [] } });
        let keys = peer.post(server, &format!("{V1}/user/keys/query"), &query).await.json(StatusCode::OK);
        assert_eq!(keys["device_keys"], json!({ "@alice:example.org": {} }));
        let claim = json!({ "one_time_keys": { "@alice:example.org": { "PHONE": "signed_curve25519" } } });
        let claimed = peer.post(server, &format!("{V1}/user/keys/claim"), &claim).await.json(StatusCode::OK);
        assert!(claimed["one_time_keys"]["@alice:example.org"]["PHONE"].as_object().is_none_or(|keys| keys.is_empty()));
        for path in ["user/keys/query", "user/keys/claim"] {
            let refused = peer.post(server, &format!("{V1}/{path}"), &json!({})).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM", "{path}");
        }
    })
    .await;
}
