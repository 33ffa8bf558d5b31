//! Web pages, for previews: asked for at public addresses only, as they are looked up for each connection.

use std::{sync::Arc, time::Duration};

use ::http::{Request, header};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture};
use myelin_media::{Page, Web, WebError};
use myelin_process::config::Outbound;
use ruma::owned_server_name;
use rustls::ClientConfig;
use tokio::time;
use url::Url;

use crate::{
    http::Dialer,
    media::connection::{Opened, Plain, open_url},
    options::{ClientOptions, SetupError},
    tls::Tls,
};

/// The time to connect to one address, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// A page that sends nothing for this long is given up.
const STALLED: Duration = Duration::from_secs(10);
/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// Asks for web pages. One for a process.
pub struct WebClient {
    dialer: Dialer,
    tls: Arc<ClientConfig>,
}

impl WebClient {
    /// A way to the web, as the configuration allows.
    ///
    /// # Errors
    ///
    /// If the certificate authorities or the resolver cannot be had.
    pub fn new(config: &Outbound) -> Result<Self, SetupError> {
        // The name is not told to anybody.
        let options = ClientOptions::new(owned_server_name!("localhost"));
        Self::with(&options, config.allow_private_addresses)
    }

    pub(crate) fn with(options: &ClientOptions, allow_private_addresses: bool) -> Result<Self, SetupError> {
        let dialer = Dialer::new(options.dns()?, allow_private_addresses, CONNECT);
        Ok(Self { dialer, tls: Tls::new(options)?.files })
    }

    async fn follow(
        &self,
        start: &Url,
        bytes_max: usize,
        may_ask: &(dyn Fn(&Url) -> bool + Send + Sync),
    ) -> Result<Page, WebError> {
        let mut url = start.clone();
        for _ in 0..=REDIRECTS_MAX {
            if !may_ask(&url) {
                return Err(WebError(format!("{url} may not be asked")));
            }
            let request = Request::get(&url[url::Position::BeforePath..url::Position::AfterQuery])
                .header(header::ACCEPT, "text/html,application/xhtml+xml,image/*;q=0.8,*/*;q=0.5")
                .header(header::ACCEPT_LANGUAGE, "en,*;q=0.5")
                .body(())
                .map_err(|error| WebError(error.to_string()))?;
            let opened = open_url(&self.dialer, &self.tls, &url, request, Plain::Allowed).await;
            let opened = opened.map_err(|error| WebError(format!("{url}: {error}")))?;
            if opened.status.is_redirection()
                && let Some(location) = opened.headers.get(header::LOCATION)
            {
                let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
                url = url.join(&location).map_err(|_| WebError(format!("{url} redirects to {location:?}")))?;
                continue;
            }
            if !opened.status.is_success() {
                return Err(WebError(format!("{url} answers {}", opened.status)));
            }
            return read(url, opened, bytes_max).await;
        }
        Err(WebError(format!("more than {REDIRECTS_MAX} redirects from {start}")))
    }
}

impl Web for WebClient {
    fn get<'a>(
        &'a self,
        url: &'a Url,
        bytes_max: usize,
        may_ask: &'a (dyn Fn(&Url) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Result<Page, WebError>> {
        Box::pin(self.follow(url, bytes_max, may_ask))
    }
}

impl std::fmt::Debug for WebClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebClient").finish_non_exhaustive()
    }
}

async fn read(url: Url, opened: Opened, bytes_max: usize) -> Result<Page, WebError> {
    let content_type =
        opened.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut content = opened.into_stream();
    let mut body = Vec::new();
    let mut is_whole = true;
    while let Some(piece) =
        time::timeout(STALLED, content.next()).await.map_err(|_| WebError(format!("{url} stopped in the middle")))?
    {
        let piece = piece.map_err(|error| WebError(format!("{url}: {error}")))?;
        let left = bytes_max - body.len();
        body.extend_from_slice(&piece[..piece.len().min(left)]);
        if piece.len() > left {
            is_whole = false;
            break;
        }
    }
    Ok(Page { url, content_type, body: Bytes::from(body), is_whole })
}

#[cfg(test)]
mod tests {
    use ::http::Response;
    use myelin_media::Web as _;
    use url::Url;

    use super::WebClient;
    use crate::{
        ClientOptions,
        testing::{Authority, FakeDns, Peer, handler, own_name},
    };

    async fn world(allow_private_addresses: bool) -> (WebClient, Peer, Authority) {
        let authority = Authority::new();
        let answer = handler(|request| {
            let response = match request.uri().path() {
                "/page" => Response::builder().header("content-type", "text/html").body("<title>x".into()),
                "/once" => Response::builder().status(302).header("location", "page").body("".into()),
                "/denied" => {
                    Response::builder().status(301).header("location", "https://denied.example/").body("".into())
                }
                "/inside" => Response::builder().status(301).header("location", "file:///etc/passwd").body("".into()),
                _ => Response::builder().status(302).header("location", "/loop").body("".into()),
            };
            std::future::ready(response.unwrap())
        });
        let peer = Peer::new(authority.config(&["web.example"], &[]), answer).await;
        let options = ClientOptions {
            trusted_ca_file: Some(authority.path()),
            only_trusted_ca_file: true,
            dns: Some(std::sync::Arc::new(FakeDns::here(&["web.example", "denied.example"]))),
            ..ClientOptions::new(own_name())
        };
        (WebClient::with(&options, allow_private_addresses).unwrap(), peer, authority)
    }

    fn may_ask(url: &Url) -> bool {
        matches!(url.scheme(), "http" | "https") && url.host_str() != Some("denied.example")
    }

    /// Pages come, redirects followed, as far as they may be asked; of large ones the beginning.
    #[tokio::test]
    async fn pages_come() {
        let (web, peer, _authority) = world(true).await;
        let get = async |path: &str, bytes_max| {
            let url: Url = format!("https://web.example:{}{path}", peer.port()).parse().unwrap();
            web.get(&url, bytes_max, &may_ask).await
        };
        for path in ["/page", "/once"] {
            let page = get(path, 100).await.unwrap();
            assert_eq!((page.url.path(), &*page.body, page.is_whole), ("/page", &b"<title>x"[..], true));
            assert_eq!(page.content_type.as_deref(), Some("text/html"));
        }
        let part = get("/page", 3).await.unwrap();
        assert_eq!((&*part.body, part.is_whole), (&b"<ti"[..], false));
        for path in ["/loop", "/denied", "/inside"] {
            get(path, 100).await.unwrap_err();
        }
    }

    /// Nobody is asked within our own network, by name or by number, with TLS or without.
    #[tokio::test]
    async fn nothing_inside_is_asked() {
        let (web, peer, _authority) = world(false).await;
        let port = peer.port();
        for inside in [
            format!("https://web.example:{port}/page"),
            format!("http://web.example:{port}/page"),
            format!("http://127.0.0.1:{port}/page"),
            format!("http://[::1]:{port}/page"),
            format!("http://0x7f000001:{port}/page"),
            format!("http://[::ffff:7f00:1]:{port}/page"),
            "http://169.254.169.254/latest/meta-data".to_owned(),
        ] {
            let error = web.get(&inside.parse().unwrap(), 100, &may_ask).await.unwrap_err();
            assert!(error.0.contains("private"), "{inside}: {error}");
        }
        assert!(peer.seen().is_empty());
    }
}
