//! Files of a folder.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, IF_MODIFIED_SINCE, LAST_MODIFIED, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::upstream::{AnswerBody, empty, refusal};

/// A folder whose files may be read by anybody.
#[derive(Clone, Debug)]
pub struct StaticFiles {
    root: PathBuf,
    prefix: String,
}

impl StaticFiles {
    /// The files in `root`, below the path `prefix`.
    ///
    /// # Errors
    /// If the folder is not there.
    pub fn new(root: &Path, prefix: &str) -> io::Result<Self> {
        Ok(Self { root: root.canonicalize()?, prefix: prefix.trim_end_matches('/').to_owned() })
    }

    /// A file, or why not.
    pub(crate) async fn answer<B>(&self, request: &Request<B>) -> Response<AnswerBody> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "This can be read only.");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match self.open(request.uri().path()).await {
            Ok(Some((file, path, length, modified))) => show(request, file, &path, length, modified),
            Ok(None) => refusal(StatusCode::NOT_FOUND, "There is nothing here."),
            Err(error) => {
                tracing::warn!(%error, "a file cannot be read");
                refusal(StatusCode::NOT_FOUND, "There is nothing here.")
            }
        }
    }

    /// The file behind a path of a URL, its length and when it was changed. None if there is none.
    async fn open(&self, path: &str) -> io::Result<Option<(File, PathBuf, u64, SystemTime)>> {
        let below = path.strip_prefix(&self.prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let Some(path) = below.and_then(relative) else { return Ok(None) };
        let mut path = self.root.join(path);
        if tokio::fs::metadata(&path).await.is_ok_and(|metadata| metadata.is_dir()) {
            path.push("index.html");
        }
        // A link may lead out of the folder.
        let path = match tokio::fs::canonicalize(&path).await {
            Ok(path) if path.starts_with(&self.root) => path,
            Ok(_) => return Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let file = File::open(&path).await?;
        let metadata = file.metadata().await?;
        if !metadata.is_file() {
            return Ok(None);
        }
        Ok(Some((file, path, metadata.len(), metadata.modified()?)))
    }
}

/// The path of a URL as one below a folder: no hidden files, nothing above, nothing strange.
fn relative(path: &str) -> Option<PathBuf> {
    let mut relative = PathBuf::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        let segment = decode(segment)?;
        if segment.starts_with('.') || segment.contains(['/', '\\', '\0']) {
            return None;
        }
        relative.push(segment);
    }
    Some(relative)
}

/// Undoes the encoding by `%XX`.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first == b'%' {
            let digits = behind.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = &behind[2..];
        } else {
            bytes.push(*first);
            rest = behind;
        }
    }
    String::from_utf8(bytes).ok()
}

fn show<B>(request: &Request<B>, file: File, path: &Path, length: u64, modified: SystemTime) -> Response<AnswerBody> {
    let known = request.headers().get(IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok());
    let known = known.and_then(|value| httpdate::parse_http_date(value).ok());
    // The header has whole seconds.
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut response = if known.is_some_and(|known| seconds(modified) <= seconds(known)) {
        let mut response = Response::new(empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else if request.method() == Method::HEAD {
        Response::new(empty())
    } else {
        let frames = ReaderStream::new(file).map_ok(Frame::<Bytes>::data).map_err(Into::into);
        Response::new(StreamBody::new(frames).boxed_unsync())
    };
    let status = response.status();
    let headers = response.headers_mut();
    if status == StatusCode::OK {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type(path)));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(modified) = HeaderValue::try_from(httpdate::fmt_http_date(modified)) {
        headers.insert(LAST_MODIFIED, modified);
    }
    response
}

/// What a web client's files are; the others are for saving.
fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "htm") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("json" | "map") => "application/json",
        Some("webmanifest") => "application/manifest+json",
        Some("wasm") => "application/wasm",
        Some("txt") => "text/plain; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("webp") => "image/webp",
        Some("gif") => "image/gif",
        Some("ico") => "image/x-icon",
        Some("woff") => "font/woff",
        Some("woff2") => "font/woff2",
        Some("mp3") => "audio/mpeg",
        Some("ogg") => "audio/ogg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};
    use http_body_util::BodyExt as _;

    use super::StaticFiles;

    /// Files and a folder's page are read; nothing outside, nothing hidden, no link that leads out.
    #[tokio::test]
    async fn stays_in_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("www");
        std::fs::create_dir_all(root.join("sub dir")).unwrap();
        std::fs::write(folder.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("index.html"), "page").unwrap();
        std::fs::write(root.join(".hidden"), "hidden").unwrap();
        std::fs::write(root.join("sub dir/a.js"), "code").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("link")).unwrap();
        let files = StaticFiles::new(&root, "/app/").unwrap();
        let get = async |path: &str| {
            let response = files.answer(&Request::get(path).body(()).unwrap()).await;
            let status = response.status();
            let text = response.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8(text.to_vec()).unwrap())
        };
        assert_eq!(get("/app/").await, (StatusCode::OK, "page".to_owned()));
        assert_eq!(get("/app").await, (StatusCode::OK, "page".to_owned()));
        assert_eq!(get("/app/sub%20dir/a.js").await, (StatusCode::OK, "code".to_owned()));
        for path in [
            "/app/../secret",
            "/app/%2e%2e/secret",
            "/app/..%2fsecret",
            "/app/%2E%2E%2Fsecret",
            "/app/.hidden",
            "/app/link",
            "/app/missing",
            "/app/index.html/x",
            "/app/%zz",
            "/app/%",
            "/app/a%00b",
            "/secret",
            "/appindex.html",
        ] {
            assert_eq!(get(path).await.0, StatusCode::NOT_FOUND, "{path}");
        }
        let post = files.answer(&Request::post("/app/").body(()).unwrap()).await;
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
        let first = files.answer(&Request::head("/app/").body(()).unwrap()).await;
        assert_eq!(first.headers()["content-length"], "4");
        let again = Request::get("/app/").header("if-modified-since", first.headers()["last-modified"].clone());
        assert_eq!(files.answer(&again.body(()).unwrap()).await.status(), StatusCode::NOT_MODIFIED);
    }
}
