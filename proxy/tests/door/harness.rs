//! A front door on a free port, and clients for it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use myelin_process::shutdown::Shutdown;
use myelin_proxy::{Certificate, Certificates, FrontDoor, Limits, Listening, RequestBody, Serve, Tls};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long anything may take until the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request that closes the connection after its answer.
pub(crate) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// Answers `/slow` after a while, `/wait` never, and everything else at once, its body unread, with the client's address and the version of HTTP.
#[derive(Clone)]
pub(crate) struct Echo;

impl Serve for Echo {
    type Body = Full<Bytes>;

    async fn serve(self, request: Request<RequestBody>, client: SocketAddr) -> Response<Self::Body> {
        if request.uri().path() == "/slow" {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        if request.uri().path() == "/wait" {
            std::future::pending::<()>().await;
        }
        let version = request.version();
        Response::new(format!("{client} {version:?}").into())
    }
}

/// An open door.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: Shutdown,
}

impl Door {
    pub(crate) fn plain(limits: Limits) -> Self {
        Self::open(limits, Listening::new)
    }

    pub(crate) fn tls(limits: Limits, certificates: Arc<Certificates>) -> Self {
        let tls = Tls::new(certificates).unwrap();
        Self::open(limits, |socket| Listening { tls: Some(tls), ..Listening::new(socket) })
    }

    pub(crate) fn open(limits: Limits, listening: impl FnOnce(tokio::net::TcpListener) -> Listening) -> Self {
        Self::serve(limits, listening, Echo)
    }

    pub(crate) fn serve<S: Serve>(
        limits: Limits,
        listening: impl FnOnce(tokio::net::TcpListener) -> Listening,
        service: S,
    ) -> Self {
        let shutdown = Shutdown::new();
        let socket = myelin_proxy::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        FrontDoor::new(limits, Vec::new(), shutdown.clone()).open(listening(socket), service);
        Self { address, shutdown }
    }

    pub(crate) async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }
}

/// Everything that comes until the peer closes.
pub(crate) async fn rest(mut stream: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    // A reset after the last byte is an end as well.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the connection ends");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A certificate for localhost.
pub(crate) fn certificate() -> Certificate {
    Certificate::self_signed(&["localhost".to_owned()]).unwrap()
}

/// A client that trusts these certificates and offers these protocols.
pub(crate) fn client(trusted: &[&Certificate], alpn: &[&str]) -> TlsConnector {
    TlsConnector::from(Arc::new(client_config(trusted, alpn)))
}

pub(crate) fn client_config(trusted: &[&Certificate], alpn: &[&str]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(CertificateDer::from(certificate.chain()[0].to_vec())).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

pub(crate) async fn connect(connector: &TlsConnector, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await.expect("the handshake ends")
}

/// One request by HTTP/1.1.
pub(crate) async fn get_http1<I>(io: I, path: &str) -> Result<(StatusCode, String), Box<dyn std::error::Error>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new())?;
    read(sender.send_request(request).await?).await
}

/// One request by HTTP/2.
pub(crate) async fn get_http2<I>(io: I, path: &str) -> Result<(StatusCode, String), Box<dyn std::error::Error>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await?;
    tokio::spawn(connection);
    let request = Request::get(format!("https://localhost{path}")).version(Version::HTTP_2);
    read(sender.send_request(request.body(Empty::<Bytes>::new())?).await?).await
}

async fn read(response: Response<Incoming>) -> Result<(StatusCode, String), Box<dyn std::error::Error>> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec())?))
}

/// Asks until it is so.
pub(crate) async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !probe().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not so after {PATIENCE:?}"));
}
