//! Every operation of the specification has a route, or stands here with the reason why it has none.

use http::{Method, StatusCode};

use crate::testing::{Server, on_both};

/// All operations: a line each, the method and the path.
const OPERATIONS: &str = include_str!("operations.txt");

/// What this router does not answer, and why.
const LEFT_OUT: &[(&str, &[&str])] = &[
    (
        "The binary answers them beside this router, from the configuration.",
        &["GET /.well-known/matrix/client", "GET /.well-known/matrix/support"],
    ),
    ("This is no policy server.", &["GET /.well-known/matrix/policy_server"]),
    (
        "Not there yet: accounts of OAuth 2.0, and single sign-on. A server without them does not have these.",
        &[
            "GET /_matrix/client/v1/auth_metadata",
            "GET /_matrix/client/v3/login/sso/redirect",
            "GET /_matrix/client/v3/login/sso/redirect/{idpId}",
        ],
    ),
    (
        "Not there yet: application services.",
        &[
            "POST /_matrix/client/v1/appservice/{appserviceId}/ping",
            "PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}",
        ],
    ),
    (
        "Not there yet: addresses of e-mail and telephones of accounts.",
        &[
            "POST /_matrix/client/v3/account/3pid",
            "POST /_matrix/client/v3/account/3pid/add",
            "POST /_matrix/client/v3/account/3pid/bind",
            "POST /_matrix/client/v3/account/3pid/delete",
            "POST /_matrix/client/v3/account/3pid/email/requestToken",
            "POST /_matrix/client/v3/account/3pid/msisdn/requestToken",
            "POST /_matrix/client/v3/account/3pid/unbind",
            "POST /_matrix/client/v3/account/password/email/requestToken",
            "POST /_matrix/client/v3/account/password/msisdn/requestToken",
            "POST /_matrix/client/v3/register/email/requestToken",
            "POST /_matrix/client/v3/register/msisdn/requestToken",
        ],
    ),
];

fn left_out() -> impl Iterator<Item = &'static str> {
    LEFT_OUT.iter().flat_map(|(_, operations)| *operations).copied()
}

fn operations() -> impl Iterator<Item = &'static str> {
    OPERATIONS.lines().filter(|line| !line.starts_with('#'))
}

/// A path with something in the place of each parameter.
fn filled(path: &str) -> String {
    let segment = |segment: &str| match segment {
        "{userId}" => "@someone:example.org".to_owned(),
        "{roomId}" | "{roomIdOrAlias}" => "!room:example.org".to_owned(),
        "{roomAlias}" => "%23alias:example.org".to_owned(),
        "{eventId}" => "$event".to_owned(),
        "{serverName}" => "example.org".to_owned(),
        other => other.trim_matches(['{', '}']).to_owned(),
    };
    path.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// Whether the router has an operation: whatever is wrong with the request, the answer is not that nobody knows it.
async fn is_routed(server: &Server, operation: &str) -> bool {
    let (method, path) = operation.split_once(' ').unwrap();
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let answer = server.send(method, &filled(path), None, &[], b"{}".to_vec()).await;
    if !matches!(answer.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
        return true;
    }
    let body: serde_json::Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    body["errcode"] != "M_UNRECOGNIZED"
}

/// All of the specification is answered, but for what is left out on purpose; and of that nothing is answered, so that
/// the list says the truth.
#[tokio::test]
async fn every_operation_has_a_route() {
    assert_eq!(operations().count(), 164, "166 operations, two of which are there a second time for their text");
    on_both(async |server: &Server| {
        let (mut missing, mut answered) = (Vec::new(), Vec::new());
        for operation in operations() {
            match (is_routed(server, operation).await, left_out().any(|left_out| left_out == operation)) {
                (false, false) => missing.push(operation),
                (true, true) => answered.push(operation),
                _ => {}
            }
        }
        assert!(missing.is_empty(), "without a route: {missing:#?}");
        assert!(answered.is_empty(), "said to be left out, and answered: {answered:#?}");
        let unknown: Vec<_> = left_out().filter(|left_out| !operations().any(|known| known == *left_out)).collect();
        assert!(unknown.is_empty(), "left out, and not of the specification: {unknown:#?}");
    })
    .await;
}
