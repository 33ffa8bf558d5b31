//! What happens to every request before it is answered, and to every answer.

use std::{future::ready, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONNECTION, CONTENT_TYPE, HOST, LOCATION},
    uri::Authority,
};
use http_body_util::Full;

use crate::{TrustedProxies, acme::Challenges};

/// Where a certificate authority asks for the proof that a name is ours (RFC 8555, section 8.3).
const HTTP_01: &str = "/.well-known/acme-challenge/";
/// The longest token of a challenge that is looked for.
const TOKEN_BYTES_MAX: usize = 128;

/// How requests are received on a listener.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Who may say whose request it is.
    pub trusted: TrustedProxies,
    /// Send everybody to this port of the same host, with TLS.
    pub redirect_to_https: Option<u16>,
    /// Headers that answers get.
    pub headers: HostHeaders,
    /// The proofs that a certificate authority asks for.
    pub challenges: Option<Arc<dyn Challenges>>,
}

/// Headers that answers get if they have none of the name, by the host that was asked.
#[derive(Clone, Debug, Default)]
pub struct HostHeaders(pub Vec<(Option<String>, HeaderName, HeaderValue)>);

impl HostHeaders {
    /// Adds what is missing. `host` is in small letters.
    pub(crate) fn add<B>(&self, host: Option<&str>, response: &mut Response<B>) {
        for (of, name, value) in &self.0 {
            if of.as_deref().is_none_or(|of| Some(of) == host) && !response.headers().contains_key(name) {
                response.headers_mut().insert(name.clone(), value.clone());
            }
        }
    }
}

impl Manners {
    /// Whose request it is.
    pub(crate) fn client<B>(&self, peer: SocketAddr, request: &Request<B>) -> SocketAddr {
        self.trusted.client(peer, request.headers())
    }

    /// The answer, if it needs no more than this.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Option<BoxFuture<'static, Response<Full<Bytes>>>> {
        if request.headers().get_all(HOST).into_iter().nth(1).is_some() {
            // Whoever looks at the first one and whoever looks at the last one would not agree.
            let mut response = text(StatusCode::BAD_REQUEST, "There is more than one Host header.");
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Some(ready(response).boxed());
        }
        if let Some(challenges) = &self.challenges
            && let Some(token) = request.uri().path().strip_prefix(HTTP_01)
        {
            return Some(proof(Arc::clone(challenges), token.to_owned()).boxed());
        }
        self.redirect_to_https.map(|port| ready(redirect(request, port)).boxed())
    }
}

async fn proof(challenges: Arc<dyn Challenges>, token: String) -> Response<Full<Bytes>> {
    let is_token = (1..=TOKEN_BYTES_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    match if is_token { challenges.http_01(&token).await } else { None } {
        Some(proof) => {
            let mut response = Response::new(proof.into());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            response
        }
        None => text(StatusCode::NOT_FOUND, "No certificate is being asked for with this token."),
    }
}

/// RFC 9110, section 15.4.9: 308 keeps the method and the body.
fn redirect<B>(request: &Request<B>, port: u16) -> Response<Full<Bytes>> {
    let location = host(request).and_then(|host| {
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let authority = if port == 443 { host } else { format!("{host}:{port}") };
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let uri = Uri::builder().scheme("https").authority(authority).path_and_query(path).build().ok()?;
        HeaderValue::try_from(uri.to_string()).ok()
    });
    let Some(location) = location else {
        return text(StatusCode::BAD_REQUEST, "The request does not say which host it is for.");
    };
    let mut response = text(StatusCode::PERMANENT_REDIRECT, "This is at https://.");
    response.headers_mut().insert(LOCATION, location);
    response
}

/// The host that was asked, without its port, in small letters, an IPv6 address without brackets.
pub(crate) fn host<B>(request: &Request<B>) -> Option<String> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.clone(),
        None => Authority::try_from(request.headers().get(HOST)?.as_bytes()).ok()?,
    };
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    (!host.is_empty()).then_some(host)
}

/// A short answer for people.
pub(crate) fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue, Request, Response, StatusCode};

    use super::{HostHeaders, Manners, host};

    fn request(uri: &str, host: &str) -> Request<()> {
        Request::get(uri).header("host", host).body(()).unwrap()
    }

    /// The same path at https://, on the port where TLS is spoken.
    #[tokio::test]
    async fn redirects() {
        let to = async |port: u16, uri: &str, host: &str| {
            let manners = Manners { redirect_to_https: Some(port), ..Manners::default() };
            let response = manners.answer(&request(uri, host)).unwrap().await;
            let location = response.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
            (response.status(), location)
        };
        let moved = |uri: &str| (StatusCode::PERMANENT_REDIRECT, Some(uri.to_owned()));
        assert_eq!(to(443, "/a?b=c", "Example.org:80").await, moved("https://example.org/a?b=c"));
        assert_eq!(to(8448, "/", "example.org").await, moved("https://example.org:8448/"));
        assert_eq!(to(443, "/", "[2001:db8::1]:80").await, moved("https://[2001:db8::1]/"));
        assert_eq!(to(443, "http://a.example/x", "b.example").await, moved("https://a.example/x"));
        for wrong in ["", "a b", "a/b", "a\\b"] {
            assert_eq!(to(443, "/", wrong).await, (StatusCode::BAD_REQUEST, None), "{wrong}");
        }
        assert!(Manners::default().answer(&request("/", "a.example")).is_none());
    }

    /// Two hosts at once are the beginning of a confusion.
    #[tokio::test]
    async fn refuses_two_hosts() {
        let two = Request::get("/").header("host", "a.example").header("host", "b.example").body(()).unwrap();
        assert_eq!(Manners::default().answer(&two).unwrap().await.status(), StatusCode::BAD_REQUEST);
    }

    /// Headers by host, and never over what the answer has.
    #[test]
    fn headers_by_host() {
        let header = |of: Option<&str>, value: &'static str| {
            (of.map(str::to_owned), HeaderName::from_static("x-frame-options"), HeaderValue::from_static(value))
        };
        let headers = HostHeaders(vec![header(Some("a.example"), "DENY"), header(None, "SAMEORIGIN")]);
        let of = |asked: &str| {
            let mut response = Response::new(());
            headers.add(host(&request("/", asked)).as_deref(), &mut response);
            response.headers()["x-frame-options"].to_str().unwrap().to_owned()
        };
        assert_eq!((of("A.example:443").as_str(), of("b.example").as_str()), ("DENY", "SAMEORIGIN"));
        let mut own = Response::builder().header("x-frame-options", "own").body(()).unwrap();
        headers.add(None, &mut own);
        assert_eq!(own.headers()["x-frame-options"], "own");
    }
}
