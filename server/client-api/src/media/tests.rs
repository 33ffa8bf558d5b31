use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use http::{Method, StatusCode, header};
use myelin_http::{RateLimit, RateLimits};
use myelin_media::{FetchError, Page, RemoteFile, RemoteFiles, Web, WebError};
use ruma::ServerName;
use serde_json::json;
use url::Url;

use crate::testing::{Server, UPLOAD_BYTES_MAX, on_both};

async fn upload(server: &Server, token: &str, content_type: &str, query: &str, content: &[u8]) -> String {
    let path = format!("/_matrix/media/v3/upload{query}");
    let headers = [(header::CONTENT_TYPE, content_type)];
    let made = server.send(Method::POST, &path, Some(token), &headers, content.to_vec()).await;
    let made = made.json(StatusCode::OK);
    made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

/// A file comes back with its type, and cannot do any harm.
#[tokio::test]
async fn files_come_back_and_are_tame() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let id = upload(server, &token, "image/png", "?filename=caf%C3%A9.png", b"picture").await;
        let path = format!("/_matrix/client/v1/media/download/{id}");
        assert_eq!(server.get(&path, None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let file = server.get(&path, Some(&token)).await;
        assert_eq!((file.status(), file.body()), (StatusCode::OK, &b"picture"[..]));
        assert_eq!(file.header("content-type"), "image/png");
        assert_eq!(file.header("content-length"), "7");
        assert_eq!(file.header("content-disposition"), "inline; filename*=utf-8''caf%C3%A9.png");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        assert_eq!(file.header("cross-origin-resource-policy"), "cross-origin");
        assert!(file.header("content-security-policy").starts_with("sandbox; default-src 'none';"));
        let tag = file.header("etag").to_owned();
        let again = server.send(Method::GET, &path, Some(&token), &[(header::IF_NONE_MATCH, &tag)], Vec::new()).await;
        assert_eq!((again.status(), again.body()), (StatusCode::NOT_MODIFIED, &b""[..]));
        let named = server.get(&format!("{path}/other.png"), Some(&token)).await;
        assert_eq!(named.header("content-disposition"), "inline; filename=other.png");
        for version in ["v3", "r0", "v1"] {
            let file = server.get(&format!("/_matrix/media/{version}/download/{id}"), None).await;
            assert_eq!((file.status(), file.body()), (StatusCode::OK, &b"picture"[..]));
        }
        let page = upload(server, &token, "text/html", "", b"<script>").await;
        let page = server.get(&format!("/_matrix/client/v1/media/download/{page}"), Some(&token)).await;
        assert_eq!(page.header("content-disposition"), "attachment");
    })
    .await;
}

/// Uploads and downloads count like other requests: those with a token by their user, those without by address.
#[tokio::test]
async fn files_have_a_rate_limit() {
    on_both(async |server: &Server| {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let id = upload(server, &alice, "text/plain", "", b"x").await;
        let one = RateLimit { per_second: 0.001, burst: 1 };
        let limits = RateLimits { enabled: true, login: one, registration: one, joins: one, messages: one, other: one };
        let authenticated = format!("/_matrix/client/v1/media/download/{id}");
        let deprecated = format!("/_matrix/media/v3/download/{id}");
        for (path, token) in [
            (authenticated.clone(), Some(&*bob)),
            (format!("{authenticated}/name"), Some(&*bob)),
            (deprecated.clone(), None),
            (format!("{deprecated}/name"), None),
        ] {
            server.services.rate_limiter.reload(&limits).unwrap();
            assert_eq!(server.get(&path, token).await.status(), StatusCode::OK, "{path}");
            let refused = server.get(&path, token).await;
            assert_eq!(refused.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED", "{path}");
            assert_eq!(server.get(&authenticated, Some(&alice)).await.status(), StatusCode::OK, "{path}");
        }
        let path = "/_matrix/media/v3/upload";
        let refused = server.send(Method::POST, path, Some(&alice), &[], b"x".to_vec()).await;
        assert_eq!(refused.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED");
    })
    .await;
}

/// What is too large, unknown, another server's or not built yet is refused.
#[tokio::test]
async fn refuses_what_it_cannot_do() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let large = vec![b'x'; UPLOAD_BYTES_MAX + 1];
        let large = server.send(Method::POST, "/_matrix/media/v3/upload", Some(&token), &[], large).await;
        assert_eq!(large.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
        let stranger = server.send(Method::POST, "/_matrix/media/v3/upload", None, &[], b"x".to_vec()).await;
        assert_eq!(stranger.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        for id in ["example.org/nothing", "elsewhere.org/abc", "example.org/a%2Fb", "example.org/%00"] {
            let unknown = server.get(&format!("/_matrix/client/v1/media/download/{id}"), Some(&token)).await;
            assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{id}");
        }
        for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"] {
            let config = server.get(path, Some(&token)).await.json(StatusCode::OK);
            assert_eq!(config, json!({ "m.upload.size": UPLOAD_BYTES_MAX }));
        }
    })
    .await;
}

/// A picture of this size, as a PNG.
fn picture(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(width, height).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A part of a file is answered as one, and one that is not there is refused.
#[tokio::test]
async fn parts_of_files() {
    on_both(async |server: &Server| {
        let token = server.user("alice").await;
        let id = upload(server, &token, "video/mp4", "", b"0123456789").await;
        let path = format!("/_matrix/client/v1/media/download/{id}");
        let part = async |range: &str| {
            server.send(Method::GET, &path, Some(&token), &[(header::RANGE, range)], Vec::new()).await
        };
        assert_eq!(server.get(&path, Some(&token)).await.header("accept-ranges"), "bytes");
        let middle = part("bytes=3-5").await;
        assert_eq!((middle.status(), middle.body()), (StatusCode::PARTIAL_CONTENT, &b"345"[..]));
        assert_eq!((middle.header("content-range"), middle.header("content-length")), ("bytes 3-5/10", "3"));
        assert_eq!(middle.header("content-type"), "video/mp4");
        let beyond = part("bytes=10-").await;
        assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(beyond.header("content-range"), "bytes */10");
        assert_eq!((part("bytes=0-1,4-5").await.status(), part("x").await.status()), (StatusCode::OK, StatusCode::OK));
    })
    .await;
}

/// An identifier is given out before its file, which comes once, from who has it, in time.
#[tokio::test]
async fn files_may_come_later() {
    on_both(async |server: &Server| {
        let server = server.with_media(|options| options.pending_uploads_max = 2).await;
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let create = async || server.post("/_matrix/media/v1/create", Some(&alice), &json!({})).await;
        let refused = server.post("/_matrix/media/v1/create", None, &json!({})).await;
        assert_eq!(refused.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let made = create().await.json(StatusCode::OK);
        assert!(made["unused_expires_at"].is_u64());
        let id = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
        create().await.json(StatusCode::OK);
        assert_eq!(create().await.errcode(StatusCode::TOO_MANY_REQUESTS), "M_LIMIT_EXCEEDED");
        let download = format!("/_matrix/client/v1/media/download/{id}?timeout_ms=1");
        let early = server.get(&download, Some(&bob)).await;
        assert_eq!(early.errcode(StatusCode::GATEWAY_TIMEOUT), "M_NOT_YET_UPLOADED");
        let thumbnail = format!("/_matrix/client/v1/media/thumbnail/{id}?timeout_ms=1&width=32&height=32");
        let early = server.get(&thumbnail, Some(&bob)).await;
        assert_eq!(early.errcode(StatusCode::GATEWAY_TIMEOUT), "M_NOT_YET_UPLOADED");
        let put = async |token: &str, id: &str| {
            let path = format!("/_matrix/media/v3/upload/{id}?filename=late.txt");
            server
                .send(Method::PUT, &path, Some(token), &[(header::CONTENT_TYPE, "text/plain")], b"late".to_vec())
                .await
        };
        assert_eq!(put(&bob, &id).await.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        for unknown in ["example.org/unknown", "elsewhere.org/abc", "example.org/a%2Fb"] {
            assert_eq!(put(&alice, unknown).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{unknown}");
        }
        assert_eq!(put(&alice, &id).await.json(StatusCode::OK), json!({}));
        assert_eq!(put(&alice, &id).await.errcode(StatusCode::CONFLICT), "M_CANNOT_OVERWRITE_MEDIA");
        let file = server.get(&download, Some(&bob)).await;
        assert_eq!((file.body(), file.header("content-disposition")), (&b"late"[..], "inline; filename=late.txt"));
        create().await.json(StatusCode::OK);
    })
    .await;
}

/// An identifier whose time is over is unknown.
#[tokio::test]
async fn identifiers_expire() {
    on_both(async |server: &Server| {
        let server = server.with_media(|options| options.pending_upload_life = std::time::Duration::ZERO).await;
        let alice = server.user("alice").await;
        let made = server.post("/_matrix/media/v1/create", Some(&alice), &json!({})).await.json(StatusCode::OK);
        let id = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap();
        let path = format!("/_matrix/media/v3/upload/{id}");
        let late = server.send(Method::PUT, &path, Some(&alice), &[], b"late".to_vec()).await;
        assert_eq!(late.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let path = format!("/_matrix/client/v1/media/download/{id}");
        assert_eq!(server.get(&path, Some(&alice)).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
    })
    .await;
}

/// Pictures become smaller, whatever their uploader says they are; what is none does not.
#[tokio::test]
async fn thumbnails_are_made() {
    on_both(async |server: &Server| {
        let server = server.with_media(|options| options.thumbnail_pixels_max = 500_000).await;
        let alice = server.user("alice").await;
        let id = upload(&server, &alice, "text/html", "?filename=evil.html", &picture(400, 200)).await;
        let path = |id: &str, query: &str| format!("/_matrix/client/v1/media/thumbnail/{id}?{query}");
        let missing = server.get(&path(&id, "width=32&height=32"), None).await;
        assert_eq!(missing.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let (crop, scale) = ("width=90&height=90&method=crop", "width=100&height=100&animated=true");
        for (query, size) in [(crop, (96, 96)), (crop, (96, 96)), (scale, (320, 160))] {
            let thumbnail = server.get(&path(&id, query), Some(&alice)).await;
            assert_eq!(thumbnail.status(), StatusCode::OK);
            assert_eq!(thumbnail.header("content-type"), "image/jpeg");
            assert_eq!(thumbnail.header("content-disposition"), "inline; filename=thumbnail.jpeg");
            assert!(thumbnail.header("content-security-policy").starts_with("sandbox;"));
            let picture = image::load_from_memory(thumbnail.body()).unwrap();
            assert_eq!((picture.width(), picture.height()), size, "{query}");
        }
        let deprecated = server.get(&format!("/_matrix/media/v3/thumbnail/{id}?{crop}"), None).await;
        assert_eq!(deprecated.header("content-type"), "image/jpeg");
        let text = upload(&server, &alice, "image/png", "", b"no picture").await;
        let refused = server.get(&path(&text, crop), Some(&alice)).await;
        assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_UNKNOWN");
        let large = upload(&server, &alice, "image/png", "", &picture(1000, 501)).await;
        let refused = server.get(&path(&large, crop), Some(&alice)).await;
        assert_eq!(refused.errcode(StatusCode::PAYLOAD_TOO_LARGE), "M_TOO_LARGE");
        for bad in
            ["", "width=1", "width=0&height=1", "width=-1&height=1", "width=1&height=1&method=x", "width=x&height=1"]
        {
            let refused = server.get(&path(&id, bad), Some(&alice)).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_INVALID_PARAM", "{bad}");
        }
        let unknown = server.get(&path("example.org/nothing", crop), Some(&alice)).await;
        assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
    })
    .await;
}

/// What comes after the freeze is not for those without a token.
#[tokio::test]
async fn the_freeze_is_for_those_without_a_token() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        let frozen = server.with_media(|options| options.freeze_unauthenticated = true).await;
        let id = upload(&frozen, &alice, "image/png", "", &picture(40, 40)).await;
        for path in ["download/{id}", "download/{id}/name", "thumbnail/{id}?width=32&height=32"] {
            let path = path.replace("{id}", &id);
            let refused = frozen.get(&format!("/_matrix/media/v3/{path}"), None).await;
            assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{path}");
            let found = frozen.get(&format!("/_matrix/client/v1/media/{path}"), Some(&alice)).await;
            assert_eq!(found.status(), StatusCode::OK, "{path}");
        }
    })
    .await;
}

/// A server with one picture, which is asked for over and over.
struct Elsewhere;

impl RemoteFiles for Elsewhere {
    fn fetch<'a>(
        &'a self,
        _: &'a ServerName,
        media_id: &'a str,
        _: u64,
    ) -> BoxFuture<'a, Result<RemoteFile, FetchError>> {
        let found = match media_id {
            "picture" => Ok(picture(40, 40)),
            "large" => Err(FetchError::TooLarge),
            "later" => Err(FetchError::NotYetUploaded),
            "away" => Err(FetchError::Unreachable("it is away".to_owned())),
            _ => Err(FetchError::NotFound),
        };
        let file = found.map(|content| RemoteFile {
            content_type: Some("image/png".to_owned()),
            file_name: Some("theirs.png".to_owned()),
            content: stream::iter([Ok(content.into())]).boxed(),
        });
        async { file }.boxed()
    }
}

/// Other servers' files come through this one; why they do not is told.
#[tokio::test]
async fn files_of_other_servers() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        server.services.media.connect(std::sync::Arc::new(Elsewhere));
        let path = |id: &str| format!("/_matrix/client/v1/media/download/elsewhere.org/{id}");
        let without = "/_matrix/media/v3/download/elsewhere.org/picture?allow_remote=false";
        assert_eq!(server.get(without, None).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        let file = server.get(&path("picture"), Some(&alice)).await;
        assert_eq!((file.status(), file.body()), (StatusCode::OK, &*picture(40, 40)));
        assert_eq!(file.header("content-disposition"), "inline; filename=theirs.png");
        assert_eq!(server.get(without, None).await.status(), StatusCode::OK);
        let thumbnail = "/_matrix/client/v1/media/thumbnail/elsewhere.org/picture?width=32&height=32&method=crop";
        assert_eq!(server.get(thumbnail, Some(&alice)).await.header("content-type"), "image/jpeg");
        for (id, status, errcode) in [
            ("unknown", StatusCode::NOT_FOUND, "M_NOT_FOUND"),
            ("large", StatusCode::BAD_GATEWAY, "M_TOO_LARGE"),
            ("later", StatusCode::GATEWAY_TIMEOUT, "M_NOT_YET_UPLOADED"),
            ("away", StatusCode::BAD_GATEWAY, "M_UNKNOWN"),
        ] {
            assert_eq!(server.get(&path(id), Some(&alice)).await.errcode(status), errcode, "{id}");
        }
    })
    .await;
}

/// A web with one page and its picture.
struct Pages;

impl Web for Pages {
    fn get<'a>(
        &'a self,
        url: &'a Url,
        _: usize,
        _: &'a (dyn Fn(&Url) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Result<Page, WebError>> {
        let page = match url.path() {
            "/page" => Ok(("text/html", b"<title>A page</title><meta property=og:image content=/picture>".to_vec())),
            "/picture" => Ok(("image/png", picture(40, 30))),
            "/lie" => Ok(("image/png", b"no picture".to_vec())),
            "/film" => Ok(("video/mp4", Vec::new())),
            _ => Err(WebError("it is away".to_owned())),
        };
        let page = page.map(|(content_type, body)| Page {
            url: url.clone(),
            content_type: Some(content_type.to_owned()),
            body: body.into(),
            is_whole: true,
        });
        async { page }.boxed()
    }
}

/// Previews are off until they are switched on; then they tell what a page says, with its picture as a file of ours.
#[tokio::test]
async fn pages_are_previewed() {
    on_both(async |server: &Server| {
        let alice = server.user("alice").await;
        let path = |url: &str| format!("/_matrix/client/v1/media/preview_url?url={}", url.replace(':', "%3A"));
        let page = path("https://web.example/page#part");
        assert_eq!(server.get(&page, Some(&alice)).await.errcode(StatusCode::NOT_FOUND), "M_UNRECOGNIZED");
        server.services.media.connect_web(std::sync::Arc::new(Pages), vec!["*.denied.example".to_owned()]);
        assert_eq!(server.get(&page, None).await.errcode(StatusCode::UNAUTHORIZED), "M_MISSING_TOKEN");
        let preview = server.get(&page, Some(&alice)).await.json(StatusCode::OK);
        assert_eq!(preview["og:title"], "A page");
        assert_eq!((&preview["og:image:width"], &preview["og:image:height"]), (&json!(40), &json!(30)));
        assert_eq!(preview["matrix:image:size"], picture(40, 30).len());
        let image = preview["og:image"].as_str().unwrap().strip_prefix("mxc://").unwrap();
        let image = server.get(&format!("/_matrix/client/v1/media/download/{image}"), Some(&alice)).await;
        assert_eq!((image.header("content-type"), image.body()), ("image/png", &*picture(40, 30)));
        // It is remembered, and the deprecated path knows it too.
        let old = page.replace("/client/v1/media/", "/media/v3/");
        assert_eq!(server.get(&old, Some(&alice)).await.json(StatusCode::OK), preview);
        for (nothing, expected) in [("lie", json!({})), ("film", json!({}))] {
            let preview = server.get(&path(&format!("http://web.example/{nothing}")), Some(&alice)).await;
            assert_eq!(preview.json(StatusCode::OK), expected);
        }
        let away = server.get(&path("https://web.example/away"), Some(&alice)).await;
        assert_eq!(away.errcode(StatusCode::BAD_GATEWAY), "M_UNKNOWN");
        for refused in [
            "https://a.denied.example/page",
            "ftp://web.example/page",
            "file:///page",
            "nonsense",
            "https://u@web.example/page",
        ] {
            let refused = server.get(&path(refused), Some(&alice)).await;
            assert_eq!(refused.errcode(StatusCode::FORBIDDEN), "M_FORBIDDEN");
        }
        let without = server.get("/_matrix/client/v1/media/preview_url", Some(&alice)).await;
        assert_eq!(without.status(), StatusCode::BAD_REQUEST);
    })
    .await;
}
