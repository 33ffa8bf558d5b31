//! `GET /_matrix/federation/v1/version`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#get_matrixfederationv1version)

use axum::Router;
use myelin_http::{ApiError, Endpoints as _, Matrix, Reply};
use ruma::api::federation::discovery::get_server_version::v1::{Request, Response, Server};

use crate::Services;

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    router.endpoint(version)
}

async fn version(_: Matrix<Request>) -> Result<Reply<Response>, ApiError> {
    let mut server = Server::new();
    server.name = Some("Myelin".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = Response::new();
    response.server = Some(server);
    Ok(Reply(response))
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use serde_json::json;

    use crate::testing::{Server, on_both};

    /// Anyone may ask who we are.
    #[tokio::test]
    async fn the_version_needs_no_signature() {
        on_both(async |server: &Server| {
            let answer = server.get("/_matrix/federation/v1/version").await.json(StatusCode::OK);
            assert_eq!(answer, json!({ "server": { "name": "Myelin", "version": env!("CARGO_PKG_VERSION") } }));
        })
        .await;
    }
}
