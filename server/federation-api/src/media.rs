//! `GET /_matrix/federation/v1/media/download/{mediaId}` and `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`
//!
//! [Specification](https://spec.matrix.org/v1.19/server-server-api/#content-repository)

use std::{io, time::Duration};

use axum::{Router, body::Body, extract::State, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use myelin_http::{ApiError, Endpoints as _, RouteOptions};
use myelin_media::{Access, Download, Error, Method, Size, Wanted};
use rand::{Rng as _, distr::Alphanumeric};
use ruma::{
    UInt,
    api::{
        error::ErrorCode,
        federation::authenticated_media::{get_content, get_content_thumbnail},
    },
    http_headers::{ContentDisposition, ContentDispositionType},
    media,
};

use crate::{
    Services,
    errors::{Refusal, Result, of_store},
    signed::Signed,
};

/// The longest time that a file to come is waited for, and that of making a thumbnail besides.
const DEADLINE: Duration = Duration::from_secs(2 * 60);
const BOUNDARY_LENGTH: usize = 30;
const ANY: &str = "application/octet-stream";

pub(crate) fn routes(router: Router<Services>) -> Router<Services> {
    let options = RouteOptions::new().deadline(DEADLINE);
    router.endpoint_with(options, download).endpoint_with(options, thumbnail)
}

async fn download(State(services): State<Services>, request: Signed<get_content::v1::Request>) -> Result<Response> {
    let get_content::v1::Request { media_id, timeout_ms, .. } = &request.body;
    let found = Box::pin(services.media.download(&wanted(&services, media_id, *timeout_ms))).await?;
    Ok(multipart(found.ok_or_else(|| ApiError::not_found("There is no such file"))?))
}

/// `animated` is not looked at: a thumbnail never moves, which the server may choose.
async fn thumbnail(
    State(services): State<Services>,
    request: Signed<get_content_thumbnail::v1::Request>,
) -> Result<Response> {
    let get_content_thumbnail::v1::Request { media_id, width, height, method, timeout_ms, .. } = &request.body;
    let method = match method {
        None | Some(media::Method::Scale) => Method::Scale,
        Some(media::Method::Crop) => Method::Crop,
        Some(_) => return Err(ApiError::invalid_param("method is either crop or scale").into()),
    };
    let size = Size { width: side(*width)?, height: side(*height)?, method };
    let found = Box::pin(services.media.thumbnail(&wanted(&services, media_id, *timeout_ms), size)).await?;
    Ok(multipart(found.ok_or_else(|| ApiError::not_found("There is no such file"))?))
}

fn wanted<'a>(services: &'a Services, media_id: &'a str, timeout: Duration) -> Wanted<'a> {
    Wanted {
        server_name: services.media.server_name(),
        media_id,
        timeout,
        // It is ours anyway.
        allow_remote: false,
        access: Access::Authenticated,
    }
}

fn side(pixels: UInt) -> Result<u32, ApiError> {
    match u32::try_from(u64::from(pixels)) {
        Ok(pixels) if pixels > 0 => Ok(pixels),
        _ => Err(ApiError::invalid_param("width and height are more than nothing, and less than 2^32")),
    }
}

/// "MUST contain a boundary (per RFC 2046) delineating exactly two parts".
fn multipart(download: Download) -> Response {
    let boundary: String = rand::rng().sample_iter(Alphanumeric).take(BOUNDARY_LENGTH).map(char::from).collect();
    let about = &download.about;
    let content_type = about.content_type.as_deref().unwrap_or(ANY);
    // What we call inline or not is for our own clients; the other server has its own list.
    let disposition =
        ContentDisposition::new(ContentDispositionType::Attachment).with_filename(about.file_name.clone());
    let before = format!(
        "\r\n--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\
         \r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
    );
    let after = format!("\r\n--{boundary}--\r\n");
    let length = about.size.unsigned_abs() + before.len() as u64 + after.len() as u64;
    let around = |text: String| stream::iter([Ok::<_, io::Error>(Bytes::from(text))]);
    let mut response =
        Response::new(Body::from_stream(around(before).chain(download.into_stream()).chain(around(after))));
    let headers = response.headers_mut();
    let content_type = HeaderValue::try_from(format!("multipart/mixed; boundary={boundary}"));
    headers.insert(CONTENT_TYPE, content_type.unwrap_or(HeaderValue::from_static("multipart/mixed")));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self(of_media(error))
    }
}

/// What another server is told when a file is not to be had.
fn of_media(error: Error) -> ApiError {
    let refused = |status, errcode, message| ApiError::new(status, errcode, message);
    match error {
        Error::Store(error) => of_store(error),
        Error::NotYetUploaded => {
            refused(StatusCode::GATEWAY_TIMEOUT, ErrorCode::NotYetUploaded, "The file is not uploaded yet")
        }
        Error::NoThumbnail(_) => {
            refused(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "No thumbnail can be made of this file")
        }
        Error::PictureTooLarge { .. } => ApiError::too_large("The picture is too large for a thumbnail"),
        Error::Lost { .. } => {
            tracing::error!(error = &error as &dyn std::error::Error, "{error}");
            ApiError::not_found("The content of this file is lost")
        }
        error @ Error::Busy => ApiError::unavailable(error),
        // Nothing else comes of looking for a file of ours.
        error => ApiError::unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use http::StatusCode;
    use myelin_media::{Owner, Upload};
    use ruma::{MxcUri, server_name};

    use crate::testing::{Answer, Server, on_both};

    const PATH: &str = "/_matrix/federation/v1/media";

    async fn upload(server: &Server, content: &[u8], content_type: Option<&str>, file_name: Option<&str>) -> String {
        let alice = server.services.store.user_nid("@alice:example.org".try_into().unwrap()).await.unwrap();
        let about = Upload { uploader_nid: alice, content_type, file_name };
        let content = stream::iter([Ok::<_, std::io::Error>(Bytes::copy_from_slice(content))]);
        let uri = server.services.media.upload(about, content).await.unwrap();
        <&MxcUri>::from(uri.as_str()).media_id().unwrap().to_owned()
    }

    /// The two parts of an answer: their headers, and the second one's content.
    fn parts(answer: &Answer) -> (String, String, Vec<u8>) {
        let content_type = answer.headers["content-type"].to_str().unwrap();
        let boundary = content_type.strip_prefix("multipart/mixed; boundary=").unwrap();
        assert_eq!(answer.headers["content-length"].to_str().unwrap(), answer.body.len().to_string());
        let delimiter = format!("\r\n--{boundary}");
        let mut ends =
            answer.body.windows(delimiter.len()).enumerate().filter(|(_, found)| *found == delimiter.as_bytes());
        let [first, second, third] = [(); 3].map(|()| ends.next().unwrap().0);
        assert!(ends.next().is_none());
        assert_eq!(&answer.body[third + delimiter.len()..], b"--\r\n");
        let text = |part: &[u8]| String::from_utf8(part.to_vec()).unwrap();
        let part = &answer.body[second + delimiter.len()..third];
        let head = part.windows(4).position(|found| found == b"\r\n\r\n").unwrap();
        (text(&answer.body[first + delimiter.len()..second]), text(&part[..head]), part[head + 4..].to_vec())
    }

    /// Our files go to servers that sign, in two parts.
    #[tokio::test]
    async fn files_go_out_in_two_parts() {
        on_both(async |server: &Server| {
            let peer = server.peer("peer.org");
            let content = b"pic\r\n--ture\r\n\0";
            let id = upload(server, content, Some("image/png"), Some("ä b.png")).await;
            let answer = peer.get(server, &format!("{PATH}/download/{id}")).await;
            let (metadata, headers, found) = parts(&answer);
            assert_eq!(metadata, "\r\nContent-Type: application/json\r\n\r\n{}");
            assert!(headers.contains("\r\nContent-Type: image/png\r\n"), "{headers}");
            assert!(headers.contains("filename*=utf-8''%C3%A4%20b.png"), "{headers}");
            assert_eq!(found, content);
            let plain = upload(server, b"", None, None).await;
            let (_, headers, found) = parts(&peer.get(server, &format!("{PATH}/download/{plain}")).await);
            assert!(headers.contains("Content-Type: application/octet-stream\r\nContent-Disposition: attachment"));
            assert_eq!(found, b"");
        })
        .await;
    }

    /// Who does not sign, or asks for what is not there, withheld, or still to come, is refused.
    #[tokio::test]
    async fn other_requests_are_refused() {
        on_both(async |server: &Server| {
            let peer = server.peer("peer.org");
            let id = upload(server, b"x", None, None).await;
            let path = format!("{PATH}/download/{id}");
            assert_eq!(server.get(&path).await.errcode(StatusCode::UNAUTHORIZED), "M_UNAUTHORIZED");
            for unknown in ["nothing", "..%2F..%2Fetc", "a%20b", "%C3%A4"] {
                let refused = peer.get(server, &format!("{PATH}/download/{unknown}")).await;
                assert_eq!(refused.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND", "{unknown}");
            }
            let alice = server.services.store.user_nid("@alice:example.org".try_into().unwrap()).await.unwrap();
            let pending = server.services.media.create_pending(alice).await.unwrap();
            let pending = <&MxcUri>::from(pending.uri.as_str()).media_id().unwrap();
            let waiting = peer.get(server, &format!("{PATH}/download/{pending}?timeout_ms=1")).await;
            assert_eq!(waiting.errcode(StatusCode::GATEWAY_TIMEOUT), "M_NOT_YET_UPLOADED");
            let owner = Owner::File(server_name!("example.org"), &id);
            assert_eq!(server.services.media.quarantine(owner).await.unwrap(), 1);
            assert_eq!(peer.get(server, &path).await.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        })
        .await;
    }

    /// Thumbnails go the same way; what is no picture has none.
    #[tokio::test]
    async fn thumbnails_go_out() {
        on_both(async |server: &Server| {
            let peer = server.peer("peer.org");
            // A GIF of one black pixel.
            let gif = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";
            let id = upload(server, gif, Some("text/html"), None).await;
            let path = format!("{PATH}/thumbnail/{id}?width=32&height=32&method=crop");
            let (_, headers, found) = parts(&peer.get(server, &path).await);
            assert!(headers.contains("Content-Type: image/"), "{headers}");
            assert!(!found.is_empty() && found != gif);
            let text = upload(server, b"text", Some("image/png"), None).await;
            let refused = peer.get(server, &format!("{PATH}/thumbnail/{text}?width=32&height=32")).await;
            assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), "M_UNKNOWN");
            for (query, errcode) in
                [("width=0&height=3", "M_INVALID_PARAM"), ("width=2&height=3&method=x", "M_INVALID_PARAM")]
            {
                let refused = peer.get(server, &format!("{PATH}/thumbnail/{id}?{query}")).await;
                assert_eq!(refused.errcode(StatusCode::BAD_REQUEST), errcode, "{query}");
            }
            let unknown = peer.get(server, &format!("{PATH}/thumbnail/nothing?width=32&height=32")).await;
            assert_eq!(unknown.errcode(StatusCode::NOT_FOUND), "M_NOT_FOUND");
        })
        .await;
    }
}
