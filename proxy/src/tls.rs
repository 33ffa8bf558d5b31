//! The server's side of TLS.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_process::metrics::{self, Histogram, IntCounterVec};
use rustls::{
    HandshakeKind, ServerConfig,
    crypto::ring,
    server::{Acceptor, ResolvesServerCert},
    sign::SingleCertAndKey,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, server::TlsStream};

use crate::{
    Certificates,
    acme::{ACME_TLS, Challenges, tls_alpn_certificate},
};

/// TLS sessions that may be resumed without a ticket, by clients of TLS 1.2.
const SESSIONS: usize = 4096;

static HANDSHAKES: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_tls_handshakes_total",
    "Handshakes by their outcome: full, resumed, failed, timeout; challenge, if a certificate authority asked.",
    ["outcome"]
);
static HANDSHAKE_TIME: LazyLock<Histogram> =
    metrics::seconds!("myelin_tls_handshake_seconds", "Time of handshakes that succeeded.");

/// How connections are encrypted. Clones are one.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    refusing: Arc<ServerConfig>,
    challenges: Option<Arc<dyn Challenges>>,
}

/// Why TLS cannot be had at all.
#[derive(Debug, thiserror::Error)]
#[error("set TLS up")]
pub struct TlsError(#[from] rustls::Error);

/// Who was greeted.
pub(crate) enum Greeted {
    /// A client, on the heap.
    Client(Box<TlsStream<TcpStream>>),
    /// A certificate authority, which has seen what it wanted to see.
    Challenger,
}

impl Tls {
    /// TLS 1.2 and 1.3 with the certificate that is current when a connection comes; HTTP/2 or HTTP/1.1.
    pub fn new(certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        let mut config = server_config(certificates)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions outlive the connection at the client, so that thousands of them cost nothing here.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        let mut refusing = config.clone();
        refusing.alpn_protocols = vec![b"http/1.1".to_vec()];
        refusing.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), refusing: Arc::new(refusing), challenges: None })
    }

    /// Answers questions of TLS-ALPN-01 with these proofs.
    #[must_use]
    pub fn with_challenges(self, challenges: Arc<dyn Challenges>) -> Self {
        Self { challenges: Some(challenges), ..self }
    }

    /// Greets a client. The whole has `time`.
    pub(crate) async fn accept(&self, stream: TcpStream, time: Duration) -> io::Result<Greeted> {
        let begun = Instant::now();
        let outcome = timeout_at(begun + time, self.handshake(stream)).await;
        let label = match &outcome {
            Ok(Ok(Greeted::Client(stream))) => {
                HANDSHAKE_TIME.observe(begun.elapsed().as_secs_f64());
                match stream.get_ref().1.handshake_kind() {
                    Some(HandshakeKind::Resumed) => "resumed",
                    _ => "full",
                }
            }
            Ok(Ok(Greeted::Challenger)) => "challenge",
            Ok(Err(_)) => "failed",
            Err(_) => "timeout",
        };
        HANDSHAKES.with_label_values(&[label]).inc();
        outcome.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Greets a client that is told by HTTP/1.1 that there is no room.
    pub(crate) async fn accept_for_refusal(
        &self,
        stream: TcpStream,
        time: Duration,
    ) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&self.refusing));
        tokio::time::timeout(time, acceptor.accept(stream)).await?
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Greeted> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        if let Some(challenges) = &self.challenges
            && hello.client_hello().alpn().is_some_and(|mut offered| offered.any(|protocol| protocol == ACME_TLS))
        {
            prove(hello, challenges.as_ref()).await?;
            return Ok(Greeted::Challenger);
        }
        let stream = hello.into_stream(Arc::clone(&self.config)).await?;
        Ok(Greeted::Client(Box::new(stream)))
    }
}

/// RFC 8737, section 3: the handshake is the proof; "once the handshake is completed, the client MUST NOT exchange any
/// further data with the server and MUST immediately close the connection".
async fn prove(hello: StartHandshake<TcpStream>, challenges: &dyn Challenges) -> io::Result<()> {
    let name = hello.client_hello().server_name().map(str::to_owned);
    let name = name.ok_or_else(|| io::Error::other("it asks for a proof of no name"))?;
    let digest = challenges.tls_alpn_01(&name).await;
    let digest = digest.ok_or_else(|| io::Error::other("it asks for a proof of a name that is not ours"))?;
    let certificate = tls_alpn_certificate(&name, &digest).map_err(io::Error::other)?;
    let mut config = server_config(Arc::new(SingleCertAndKey::from(certificate))).map_err(io::Error::other)?;
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    hello.into_stream(Arc::new(config)).await?.shutdown().await
}

fn server_config(certificates: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, rustls::Error> {
    // The provider is named, since a test's program may hold another one besides.
    Ok(ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(certificates))
}
