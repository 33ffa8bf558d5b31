//! The server's side of TLS.

use std::{
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_process::metrics::{self, Histogram, IntCounterVec};
use rustls::{HandshakeKind, ServerConfig, crypto::ring, server::Acceptor};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

use crate::Certificates;

/// TLS sessions that may be resumed without a ticket, by clients of TLS 1.2.
const SESSIONS: usize = 4096;

static HANDSHAKES: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_tls_handshakes_total",
    "Handshakes by their outcome: full, resumed, failed, timeout.",
    ["outcome"]
);
static HANDSHAKE_TIME: LazyLock<Histogram> =
    metrics::seconds!("myelin_tls_handshake_seconds", "Time of handshakes that succeeded.");

/// How connections are encrypted. Clones are one.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
}

/// Why TLS cannot be had at all.
#[derive(Debug, thiserror::Error)]
#[error("set TLS up")]
pub struct TlsError(#[from] rustls::Error);

impl Tls {
    /// TLS 1.2 and 1.3 with the certificate that is current when a connection comes; HTTP/2 or HTTP/1.1.
    pub fn new(certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        // The provider is named, since a test's program may hold another one besides.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions outlive the connection at the client, so that thousands of them cost nothing here.
        config.ticketer = ring::Ticketer::new()?;
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SESSIONS);
        Ok(Self { config: Arc::new(config) })
    }

    /// Greets a client. The whole has `time`.
    pub(crate) async fn accept(&self, stream: TcpStream, time: Duration) -> io::Result<Box<TlsStream<TcpStream>>> {
        let begun = Instant::now();
        let outcome = timeout_at(begun + time, self.handshake(stream)).await;
        let label = match &outcome {
            Ok(Ok(stream)) => {
                HANDSHAKE_TIME.observe(begun.elapsed().as_secs_f64());
                match stream.get_ref().1.handshake_kind() {
                    Some(HandshakeKind::Resumed) => "resumed",
                    _ => "full",
                }
            }
            Ok(Err(_)) => "failed",
            Err(_) => "timeout",
        };
        HANDSHAKES.with_label_values(&[label]).inc();
        outcome.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Box<TlsStream<TcpStream>>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let stream = hello.into_stream(Arc::clone(&self.config)).await?;
        Ok(Box::new(stream))
    }
}
