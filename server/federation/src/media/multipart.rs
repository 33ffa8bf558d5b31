//! Reading `multipart/mixed` as it comes: <https://datatracker.ietf.org/doc/html/rfc2046#section-5.1>.

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream};
use myelin_media::BoxError;

use super::connection::Content;

/// What comes before the content of a part, in bytes: preambles, the metadata, headers.
const AROUND_MAX: usize = 64 * 1024;
/// Headers of a part.
const HEADERS_MAX: usize = 32;
/// "Boundary delimiters must be no longer than 70 characters".
const BOUNDARY_MAX: usize = 70;

/// What is wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("it is not multipart/mixed with a boundary")]
    Type,
    #[error("a part has malformed headers")]
    Headers,
    #[error("the parts are not where they should be")]
    Parts,
    #[error("there is too much before the file")]
    TooLong,
    #[error("it ends too early")]
    Ended,
    #[error("it broke off: {0}")]
    Broken(BoxError),
}

/// The boundary that the headers of an answer name.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, Malformed> {
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).ok_or(Malformed::Type)?;
    let (essence, parameters) = text.split_once(';').ok_or(Malformed::Type)?;
    if !essence.trim().eq_ignore_ascii_case("multipart/mixed") {
        return Err(Malformed::Type);
    }
    let named = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut named = named.filter(|(name, _)| name.trim().eq_ignore_ascii_case("boundary"));
    let boundary = named.next().map(|(_, value)| value.trim().trim_matches('"')).ok_or(Malformed::Type)?;
    if boundary.is_empty() || boundary.len() > BOUNDARY_MAX {
        return Err(Malformed::Type);
    }
    Ok(boundary.to_owned())
}

/// The parts of a body.
pub(super) struct Multipart {
    body: Content,
    /// What was read and not given out.
    buffer: BytesMut,
    delimiter: Vec<u8>,
}

impl Multipart {
    pub(super) fn new(body: Content, boundary: &str) -> Self {
        // The first delimiter stands at the beginning of a line that has none before it.
        Self { body, buffer: BytesMut::from("\r\n"), delimiter: format!("\r\n--{boundary}").into_bytes() }
    }

    /// Skips what is left of the part before, and reads the headers of the next.
    pub(super) async fn next_part(&mut self) -> Result<HeaderMap, Malformed> {
        let delimiter = self.delimiter.clone();
        let start = self.find(&delimiter).await?;
        let _ = self.buffer.split_to(start + delimiter.len());
        // What is behind the boundary belongs to its line; "--" would be the end.
        let line = self.find(b"\r\n").await?;
        if !self.buffer[..line].iter().all(|byte| matches!(byte, b' ' | b'\t')) {
            return Err(Malformed::Parts);
        }
        let _ = self.buffer.split_to(line);
        // The end of that line, then lines of headers, then an empty one.
        let end = self.find(b"\r\n\r\n").await?;
        let head = self.buffer.split_to(end + 4);
        headers(&head)
    }

    /// The content of the part whose headers were read.
    pub(super) fn into_content(self) -> impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static {
        let state = Some(self);
        stream::unfold(state, |state| async move {
            let mut parts = state?;
            loop {
                match find(&parts.buffer, &parts.delimiter) {
                    Found::At(0) => return None,
                    Found::At(end) => return Some((Ok(parts.buffer.split_to(end).freeze()), None)),
                    // What may be the beginning of a delimiter waits for the rest.
                    Found::NotBefore(0) => {}
                    Found::NotBefore(end) => return Some((Ok(parts.buffer.split_to(end).freeze()), Some(parts))),
                }
                match parts.body.next().await {
                    Some(Ok(piece)) => parts.buffer.extend_from_slice(&piece),
                    Some(Err(error)) => return Some((Err(error), None)),
                    None => return Some((Err(Malformed::Ended.into()), None)),
                }
            }
        })
    }

    /// Where something begins, which is read for as far as need be.
    async fn find(&mut self, wanted: &[u8]) -> Result<usize, Malformed> {
        loop {
            if let Found::At(start) = find(&self.buffer, wanted) {
                return Ok(start);
            }
            if self.buffer.len() > AROUND_MAX {
                return Err(Malformed::TooLong);
            }
            let piece = self.body.next().await.ok_or(Malformed::Ended)?.map_err(Malformed::Broken)?;
            self.buffer.extend_from_slice(&piece);
        }
    }
}

enum Found {
    /// It begins here.
    At(usize),
    /// It begins nowhere before this place.
    NotBefore(usize),
}

/// Looks for something that begins with a carriage return.
fn find(buffer: &[u8], wanted: &[u8]) -> Found {
    let mut from = 0;
    while let Some(next) = buffer[from..].iter().position(|byte| *byte == b'\r') {
        let start = from + next;
        let rest = &buffer[start..];
        if rest.starts_with(wanted) {
            return Found::At(start);
        }
        if wanted.starts_with(rest) {
            return Found::NotBefore(start);
        }
        from = start + 1;
    }
    Found::NotBefore(buffer.len())
}

/// The headers of a part, each behind the end of a line.
fn headers(head: &[u8]) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Malformed::Headers)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| Malformed::Headers)?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| Malformed::Headers)?;
        if headers.len() >= HEADERS_MAX {
            return Err(Malformed::Headers);
        }
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use ::http::{HeaderMap, HeaderValue, header};
    use bytes::Bytes;
    use futures_util::{StreamExt as _, TryStreamExt as _, stream};
    use myelin_media::BoxError;

    use super::{Malformed, Multipart, boundary};

    /// A body in pieces of so many bytes.
    fn parts(body: &[u8], piece: usize) -> Multipart {
        let pieces: Vec<_> = body.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Multipart::new(stream::iter(pieces).boxed(), "b0undary")
    }

    async fn read(body: &[u8], piece: usize) -> Result<(HeaderMap, Result<Vec<u8>, BoxError>), Malformed> {
        let mut parts = parts(body, piece);
        parts.next_part().await?;
        let headers = parts.next_part().await?;
        let content: Result<Vec<Bytes>, BoxError> = Box::pin(parts.into_content()).try_collect().await;
        Ok((headers, content.map(|pieces| pieces.concat())))
    }

    /// However a body is cut into pieces and written, its second part comes out whole.
    #[tokio::test]
    async fn parts_come_apart() {
        let content = b"\r\n--b0undar \r\r\n-\r\n--\r\n--b0undar\r";
        let written = [
            (
                "",
                "--b0undary\r\nContent-Type: application/json\r\n\r\n{}\r\n--b0undary\r\nX: y\r\n\r\n",
                "\r\n--b0undary--\r\n",
            ),
            ("\r\n", "--b0undary \r\n\r\n{}\r\n--b0undary\t\r\nx:  y \r\nZ:\r\n\r\n", "\r\n--b0undary"),
            ("preamble\r\n", "--b0undary\r\nA: b\r\n\r\n\r\n--b0undary\r\nx:y\r\n\r\n", "\r\n--b0undary--epilogue"),
        ];
        for (before, middle, after) in written {
            let body = [before.as_bytes(), middle.as_bytes(), content, after.as_bytes()].concat();
            for piece in [1, 2, 3, 7, 1000] {
                let (headers, found) = read(&body, piece).await.unwrap();
                assert_eq!(headers["x"], "y", "{middle:?}");
                assert_eq!(found.unwrap(), content, "{middle:?} by {piece}");
            }
            let empty = [before.as_bytes(), middle.as_bytes(), after.as_bytes()].concat();
            assert_eq!(read(&empty, 1000).await.unwrap().1.unwrap(), b"");
        }
    }

    /// What ends too early, or is none, is told apart from a file.
    #[tokio::test]
    async fn broken_bodies_are_refused() {
        let whole = b"--b0undary\r\n\r\n{}\r\n--b0undary\r\n\r\ncontent\r\n--b0undary--";
        for end in 0..whole.len() - 2 {
            match read(&whole[..end], 5).await {
                Err(Malformed::Ended) => {}
                Ok((_, content)) => assert!(content.is_err(), "{end}"),
                Err(error) => panic!("{end}: {error}"),
            }
        }
        let one = b"--b0undary\r\n\r\n{}\r\n--b0undary--\r\n";
        assert!(matches!(read(one, 5).await, Err(Malformed::Parts)));
        let long = [b"--b0undary\r\n\r\n", &[b'x'; 100_000][..], b"\r\n--b0undary\r\n\r\n"].concat();
        assert!(matches!(read(&long, 1000).await, Err(Malformed::TooLong)));
        let header = b"--b0undary\r\n\r\n{}\r\n--b0undary\r\nno header\r\n\r\ncontent\r\n--b0undary--";
        assert!(matches!(read(header, 5).await, Err(Malformed::Headers)));
    }

    /// The boundary is what the header says, with quotes or without.
    #[test]
    fn boundaries_are_read() {
        let of = |text: &str| {
            boundary(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_str(text).unwrap())]))
        };
        assert_eq!(of("multipart/mixed; boundary=abc").unwrap(), "abc");
        assert_eq!(of("Multipart/Mixed; charset=x; Boundary=\"a b\"").unwrap(), "a b");
        let long = format!("multipart/mixed; boundary={}", "x".repeat(71));
        for wrong in ["multipart/mixed", "text/plain; boundary=a", "multipart/mixed; boundary=", &long] {
            of(wrong).unwrap_err();
        }
    }
}
