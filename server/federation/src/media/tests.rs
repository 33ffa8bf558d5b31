use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::Full;
use myelin_media::{FetchError, RemoteFiles as _};
use ruma::server_name;

use crate::{
    Ports,
    testing::{Authority, FakeDns, Handler, Ours, Peer, handler, json, ours},
};

const MAX: u64 = 1000;

struct World {
    ours: Ours,
    peer: Peer,
    _authority: Authority,
}

async fn world(handler: Handler, change: impl FnOnce(&mut crate::ClientOptions)) -> World {
    let authority = Authority::new();
    let peer = Peer::new(authority.config(&["peer.example", "files.example"], &[]), handler).await;
    let dns = FakeDns::here(&["peer.example", "files.example"]).service(
        "_matrix-fed._tcp.peer.example",
        "peer.example",
        peer.port(),
    );
    // Nobody answers on port 1, so there is no .well-known file.
    let ours = ours(&authority, dns, Ports { https: 1, federation: 1 }, change).await;
    World { ours, peer, _authority: authority }
}

/// Type, name and content of a file.
type Fetched = (Option<String>, Option<String>, Vec<u8>);

impl World {
    async fn fetch(&self) -> Result<Fetched, FetchError> {
        let file = self.ours.client.fetch(server_name!("peer.example"), "abc", MAX).await?;
        let pieces: Vec<Bytes> =
            file.content.try_collect().await.map_err(|error| FetchError::Nonsense(error.to_string()))?;
        Ok((file.content_type, file.file_name, pieces.concat()))
    }

    fn paths(&self) -> Vec<String> {
        self.peer.seen().into_iter().map(|seen| seen.path).collect()
    }
}

const FEDERATION: &str = "/_matrix/federation/v1/media/download/abc";
const DEPRECATED: &str = "/_matrix/media/v3/download/peer.example/abc?allow_remote=false&allow_redirect=true";

fn multipart(second: &str) -> Response<Full<Bytes>> {
    let body = format!("\r\n--XX\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--XX\r\n{second}\r\n--XX--");
    Response::builder().header("content-type", "multipart/mixed; boundary=XX").body(body.into_bytes().into()).unwrap()
}

fn answering(answer: impl Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static) -> Handler {
    handler(move |request| std::future::ready(answer(&request)))
}

/// A file comes with what its server says of it, asked for with our signature.
#[tokio::test]
async fn files_come_by_federation() {
    let signed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&signed);
    let world = world(
        answering(move |request| {
            let authorization = request.headers().get("authorization");
            let is_signed = authorization.is_some_and(|value| value.to_str().unwrap().starts_with("X-Matrix"));
            seen.store(is_signed, Ordering::SeqCst);
            multipart("Content-Type: image/png\r\nContent-Disposition: inline; filename=\"a b.png\"\r\n\r\npicture\r\n")
        }),
        |_| {},
    )
    .await;
    let (content_type, name, content) = world.fetch().await.unwrap();
    assert_eq!((content_type.as_deref(), name.as_deref()), (Some("image/png"), Some("a b.png")));
    assert_eq!(content, b"picture\r\n");
    assert!(signed.load(Ordering::SeqCst));
    assert_eq!(world.paths(), [FEDERATION]);
}

/// An older server is asked by the deprecated path, and may not ask others for its part.
#[tokio::test]
async fn older_servers_are_asked_as_they_know_it() {
    for refusal in [json(404, r#"{"errcode":"M_UNRECOGNIZED","error":"?"}"#), json(404, "<html>404</html>")] {
        let world = world(
            answering(move |request| match request.uri().path() {
                FEDERATION => refusal.clone(),
                _ => {
                    let file = Response::builder().header("content-type", "text/plain");
                    file.header("content-disposition", "attachment; filename=x.txt").body("old".into()).unwrap()
                }
            }),
            |_| {},
        )
        .await;
        let (content_type, name, content) = world.fetch().await.unwrap();
        assert_eq!((content_type.as_deref(), name.as_deref()), (Some("text/plain"), Some("x.txt")));
        assert_eq!(content, b"old");
        assert_eq!(world.paths(), [FEDERATION, DEPRECATED]);
    }
}

/// What a server refuses is not asked for by another path, and tells why.
#[tokio::test]
async fn refusals_are_told_apart() {
    let cases = [
        (json(404, r#"{"errcode":"M_NOT_FOUND","error":"?"}"#), "NotFound"),
        (json(504, r#"{"errcode":"M_NOT_YET_UPLOADED","error":"?"}"#), "NotYetUploaded"),
        (json(502, r#"{"errcode":"M_TOO_LARGE","error":"?"}"#), "TooLarge"),
        (json(403, r#"{"errcode":"M_FORBIDDEN","error":"?"}"#), "Refused"),
        (json(200, "no multipart"), "Nonsense"),
        (multipart(&format!("\r\n{}", "x".repeat(100_000))), "TooLarge"),
    ];
    for (answer, expected) in cases {
        let world = world(answering(move |_| answer.clone()), |_| {}).await;
        let error = world.fetch().await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{error:?}");
        assert_eq!(world.paths(), [FEDERATION], "{expected}");
    }
    let world = world(answering(|_| json(200, "")), |options| {
        options.allowed = crate::AllowedServers::new(vec!["*".to_owned()], vec!["peer.example".to_owned()]);
    })
    .await;
    assert!(matches!(world.fetch().await.unwrap_err(), FetchError::NotAllowed));
    assert!(world.paths().is_empty());
}

/// A redirect is followed, a few times, with what the place says of the file.
#[tokio::test]
async fn redirects_are_followed() {
    let world = world(
        answering(|request| {
            let port = request.headers()["host"].to_str().unwrap().rsplit_once(':').map(|(_, port)| port.to_owned());
            let query = request.uri().query().unwrap_or_default().to_owned();
            match request.uri().path() {
                FEDERATION => multipart("Location: https://files.example:PORT/first?signature=x\r\n\r\n"),
                "/first" => Response::builder().status(307).header("location", "/second?y").body("".into()).unwrap(),
                "/second" => Response::builder()
                    .header("content-type", "image/gif")
                    .body(format!("{query} {}", port.is_some()).into_bytes().into())
                    .unwrap(),
                _ => Response::builder().status(308).header("location", "/again").body("".into()).unwrap(),
            }
        }),
        |_| {},
    )
    .await;
    let client = &world.ours.client;
    let url = |path: &str| format!("https://files.example:{}{path}", world.peer.port());
    let file = client.at_location(&url("/first?signature=x"), MAX).await.unwrap();
    assert_eq!(file.content_type.as_deref(), Some("image/gif"));
    let pieces: Vec<Bytes> = file.content.try_collect().await.unwrap();
    assert_eq!(pieces.concat(), b"y true");
    assert!(matches!(client.at_location(&url("/again"), MAX).await.unwrap_err(), FetchError::Nonsense(_)));
    // The place that the answer names is not there: its port is no number.
    assert!(matches!(world.fetch().await.unwrap_err(), FetchError::Nonsense(_)));
}

/// No server sends us to our own network, nor anywhere without TLS; nor does an address that it sends us to.
#[tokio::test]
async fn redirects_do_not_lead_inside() {
    let world = world(
        answering(|_| {
            Response::builder().status(302).header("location", "http://files.example/").body("".into()).unwrap()
        }),
        |options| options.allow_private_addresses = false,
    )
    .await;
    let port = world.peer.port();
    let inside = [
        format!("https://files.example:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        format!("https://2130706433:{port}/"),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://[fd00::1]/".to_owned(),
        format!("http://files.example:{port}/"),
        "file:///etc/passwd".to_owned(),
        "ftp://files.example/".to_owned(),
        format!("https://user:password@files.example:{port}/"),
        "nonsense".to_owned(),
        String::new(),
    ];
    for location in inside {
        let error = world.ours.client.at_location(&location, MAX).await.unwrap_err();
        assert!(matches!(error, FetchError::Unreachable(_) | FetchError::Nonsense(_)), "{location}: {error:?}");
    }
    assert!(world.paths().is_empty(), "nobody was asked");
}

/// A redirect from a public place to one without TLS is refused as well.
#[tokio::test]
async fn redirects_keep_their_encryption() {
    let world = world(
        answering(|_| {
            Response::builder().status(302).header("location", "http://files.example/").body("".into()).unwrap()
        }),
        |_| {},
    )
    .await;
    let location = format!("https://files.example:{}/", world.peer.port());
    let error = world.ours.client.at_location(&location, MAX).await.unwrap_err();
    assert!(matches!(error, FetchError::Unreachable(_)), "{error:?}");
    assert_eq!(world.paths(), ["/"]);
}

/// A server that cannot be reached is left alone for a while.
#[tokio::test]
async fn servers_that_fail_are_left_alone() {
    let world = world(answering(|_| json(503, "")), |_| {}).await;
    assert!(
        matches!(world.fetch().await.unwrap_err(), FetchError::Refused { status, .. } if status == StatusCode::SERVICE_UNAVAILABLE)
    );
    assert!(matches!(world.fetch().await.unwrap_err(), FetchError::Unreachable(_)));
    assert_eq!(world.paths(), [FEDERATION]);
}
