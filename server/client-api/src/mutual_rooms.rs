//! GET /_matrix/client/v1/mutual_rooms
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#mutual-rooms>

use axum::{Router, extract::State};
use myelin_http::{ApiError, Endpoints as _, Matrix, Reply};
use ruma::{
    UInt,
    api::client::membership::get_mutual_rooms::v1::{Request, Response},
};

use crate::{Services, errors::Result};

/// Rooms of one answer at the most.
const LIMIT: usize = 500;

/// Adds the endpoint.
pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(mutual_rooms)
}

async fn mutual_rooms(State(services): State<Services>, request: Matrix<Request>) -> Result<Reply<Response>> {
    let session = request.session();
    session.require_full_account()?;
    let Request { user_id, from, .. } = &request.body;
    if session.user_id == *user_id {
        return Err(ApiError::invalid_param("That is you").into());
    }
    user_id.validate_strict().map_err(|_| ApiError::invalid_param("The user ID provided was invalid"))?;
    let invalid = |_| ApiError::invalid_param("from is not a token of this server");
    let after = from.as_deref().map(str::parse::<i64>).transpose().map_err(invalid)?;
    let (rooms, next, count) =
        services.rooms.mutual_rooms(session.user_nid, user_id, after.unwrap_or(i64::MIN), LIMIT).await?;
    let joined = rooms.iter().map(|room| room.room_id.clone()).collect();
    let count = UInt::try_from(count).map_err(ApiError::unknown)?;
    let mut response = Response::new(count, joined);
    response.next_batch = next.map(|next| next.to_string());
    Ok(Reply(response))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    const V3: &str = "/_matrix/client/v3";

    /// The rooms that both are in now, and no others; strangers share none, and oneself is no other user.
    #[tokio::test]
    async fn shared_rooms_are_told() {
        on_both(async |server: &Server| {
            let (alice, bob) = (server.user("alice").await, server.user("bob").await);
            let mut rooms = Vec::new();
            for name in ["one", "two", "three", "four"] {
                let wanted = json!({ "preset": "public_chat", "name": name });
                let made = server.post(&format!("{V3}/createRoom"), Some(&alice), &wanted).await.json(StatusCode::OK);
                let room = made["room_id"].as_str().unwrap().to_owned();
                if name != "one" {
                    server.post(&format!("{V3}/join/{room}"), Some(&bob), &json!({})).await.json(StatusCode::OK);
                }
                rooms.push(room);
            }
            let path = format!("{V3}/rooms/{}/leave", rooms[1]);
            server.post(&path, Some(&bob), &json!({})).await.json(StatusCode::OK);
            let ask =
                async |query: &str| server.get(&format!("/_matrix/client/v1/mutual_rooms{query}"), Some(&alice)).await;
            let shared = ask("?user_id=@bob:example.org").await.json(StatusCode::OK);
            assert_eq!(shared, json!({ "joined": [rooms[2], rooms[3]], "count": 2 }));
            let none = json!({ "joined": [], "count": 0 });
            assert_eq!(ask("?user_id=@nobody:example.org").await.json(StatusCode::OK), none);
            assert_eq!(ask("?user_id=@x:elsewhere.example").await.json(StatusCode::OK), none);
            for query in [
                "?user_id=@alice:example.org",
                "?user_id=@B%C3%B6b:example.org",
                "?user_id=bob",
                "?user_id=@bob:example.org&from=x",
            ] {
                assert_eq!(ask(query).await.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM", "{query}");
            }
            assert_eq!(ask("").await.errcode(StatusCode::BAD_REQUEST), "M_MISSING_PARAM");
        })
        .await;
    }
}
