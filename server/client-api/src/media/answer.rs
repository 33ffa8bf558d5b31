//! A file as an answer: headers that keep it from doing harm, and the part that is asked for.

use std::ops::Range;

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY,
        CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE, X_CONTENT_TYPE_OPTIONS,
    },
};
use myelin_http::ApiError;
use myelin_media::Download;
use ruma::http_headers::{ContentDisposition, ContentDispositionType};

use crate::errors::Result;

const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
/// "The recommended policy".
const POLICY: &str = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
                      style-src 'unsafe-inline'; object-src 'self';";
/// A content type that tells nothing.
const ANY: HeaderValue = HeaderValue::from_static("application/octet-stream");
/// "Servers SHOULD restrict Content-Type headers to one of the following values when serving content with
/// Content-Disposition: inline".
const INLINE: &[&str] = &[
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// What of the content is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Range(Range<u64>),
    /// Nothing that there is.
    Unsatisfiable,
}

/// The file, as far as the asker does not have it, under its name or another.
pub(super) async fn answer(download: Download, file_name: Option<String>, asked: &HeaderMap) -> Result<Response> {
    let tag = HeaderValue::try_from(download.entity_tag()).map_err(ApiError::unknown)?;
    let mut response = if is_known(asked, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        content(download, file_name, asked, &tag).await?
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag);
    // The content behind an identifier never changes.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, max-age=86400, immutable"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
    Ok(response)
}

async fn content(
    download: Download,
    file_name: Option<String>,
    asked: &HeaderMap,
    tag: &HeaderValue,
) -> Result<Response> {
    let about = &download.about;
    let content_type = about.content_type.as_deref();
    let disposition =
        ContentDisposition::new(disposition(content_type)).with_filename(file_name.or_else(|| about.file_name.clone()));
    let content_type = content_type.and_then(|content_type| HeaderValue::try_from(content_type).ok()).unwrap_or(ANY);
    // A name that no header can hold is left out.
    let disposition = HeaderValue::try_from(disposition.to_string()).unwrap_or(HeaderValue::from_static("attachment"));
    let size = about.size.unsigned_abs();
    let mut response = match part(asked, tag, size) {
        Part::Whole => {
            let mut response = Response::new(Body::from_stream(download.into_stream()));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(size));
            response
        }
        Part::Range(range) => {
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            let length = range.end - range.start;
            let mut response = Response::new(Body::from_stream(download.into_part(range).await?));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
            response.headers_mut().insert(CONTENT_RANGE, HeaderValue::try_from(told).map_err(ApiError::unknown)?);
            response
        }
        Part::Unsatisfiable => {
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            let told = HeaderValue::try_from(format!("bytes */{size}")).map_err(ApiError::unknown)?;
            response.headers_mut().insert(CONTENT_RANGE, told);
            return Ok(response);
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_DISPOSITION, disposition);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    Ok(response)
}

fn disposition(content_type: Option<&str>) -> ContentDispositionType {
    let essence = content_type.and_then(|content_type| content_type.split(';').next()).unwrap_or_default().trim();
    if INLINE.iter().any(|inline| essence.eq_ignore_ascii_case(inline)) {
        ContentDispositionType::Inline
    } else {
        ContentDispositionType::Attachment
    }
}

/// Whether the list of an `If-None-Match` header has this tag.
fn is_known(asked: &HeaderMap, tag: &HeaderValue) -> bool {
    let known = asked.get_all(IF_NONE_MATCH).iter().filter_map(|known| known.to_str().ok());
    known
        .flat_map(|known| known.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known).as_bytes() == tag.as_bytes())
}

/// Which part is asked for: one, of bytes. More than one may be answered by the whole.
fn part(asked: &HeaderMap, tag: &HeaderValue, size: u64) -> Part {
    // "If the validator does not match, the server SHOULD ignore the Range header field": RFC 9110, section 13.1.5.
    if asked.get(IF_RANGE).is_some_and(|known| known != tag) {
        return Part::Whole;
    }
    let Some(ranges) = asked.get(RANGE).and_then(|value| value.to_str().ok()) else { return Part::Whole };
    let Some((first, last)) = ranges.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Part::Whole;
    };
    let range = match (first.trim(), last.trim()) {
        ("", last) => last.parse::<u64>().ok().map(|length| size.saturating_sub(length)..size),
        (first, "") => first.parse().ok().map(|first| first..size),
        (first, last) => match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => Some(first..last.saturating_add(1).min(size)),
            _ => None,
        },
    };
    match range {
        None => Part::Whole,
        Some(range) if range.start >= range.end => Part::Unsatisfiable,
        Some(range) => Part::Range(range),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{Part, part};

    /// One range is cut to what there is; what is none, or more than one, is answered by the whole.
    #[test]
    fn ranges_are_read() {
        let tag = HeaderValue::from_static("\"t\"");
        let of = |range: &str| {
            let asked = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_str(range).unwrap())]);
            part(&asked, &tag, 10)
        };
        for (text, range) in [
            ("0-0", 0..1),
            ("2-5", 2..6),
            ("5-", 5..10),
            ("-3", 7..10),
            ("-30", 0..10),
            ("9-18446744073709551615", 9..10),
        ] {
            assert_eq!(of(&format!("bytes={text}")), Part::Range(range), "{text}");
        }
        for none in ["10-", "10-12", "-0"] {
            assert_eq!(of(&format!("bytes={none}")), Part::Unsatisfiable, "{none}");
        }
        for whole in
            ["bytes=0-1,3-4", "bytes=5-2", "bytes=a-b", "bytes=-", "bytes", "lines=1-2", "bytes=1-99999999999999999999"]
        {
            assert_eq!(of(whole), Part::Whole, "{whole}");
        }
        let mut asked = HeaderMap::from_iter([(header::RANGE, HeaderValue::from_static("bytes=1-2"))]);
        asked.insert(header::IF_RANGE, HeaderValue::from_static("\"other\""));
        assert_eq!(part(&asked, &tag, 10), Part::Whole);
        asked.insert(header::IF_RANGE, tag.clone());
        assert_eq!(part(&asked, &tag, 10), Part::Range(1..3));
    }
}
