//! Connections to a front door: made, used, and held.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use rustls::{
    ClientConfig, HandshakeKind, RootCertStore,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long any of it may take.
const PATIENCE: Duration = Duration::from_secs(30);
const REQUEST: &[u8] = b"GET /_matrix/client/versions HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// The largest answer that is expected.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// What rustls keeps of one server to resume with; each handshake takes one and gets one or two.
const TICKETS: usize = 8;

/// Whether a handshake is one of those that know each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handshake {
    Full,
    Resumed,
}

/// A connection on which requests are made one after the other.
pub(super) struct Connection<I> {
    io: I,
    read: Vec<u8>,
}

/// One without TLS.
pub(super) type Plain = Connection<TcpStream>;
/// One with TLS.
pub(super) type Encrypted = Connection<TlsStream<TcpStream>>;

/// Makes connections to one front door.
pub(super) struct Client {
    address: SocketAddr,
    full: TlsConnector,
    resuming: TlsConnector,
}

impl Plain {
    pub(super) async fn to(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { io: stream, read: Vec::new() })
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Connection<I> {
    /// One request and its answer, which must be a success.
    pub(super) async fn ask(&mut self) -> anyhow::Result<()> {
        timeout(PATIENCE, self.exchange()).await.context("no answer")?
    }

    async fn exchange(&mut self) -> anyhow::Result<()> {
        self.io.write_all(REQUEST).await?;
        self.io.flush().await?;
        self.read.clear();
        loop {
            if let Some(whole) = answer_bytes(&self.read)?
                && self.read.len() >= whole
            {
                return Ok(());
            }
            ensure!(self.read.len() <= ANSWER_BYTES_MAX, "the answer has no end");
            ensure!(self.io.read_buf(&mut self.read).await? > 0, "the connection ended");
        }
    }
}

/// How long an answer is whose head is there; none while it is not.
fn answer_bytes(read: &[u8]) -> anyhow::Result<Option<usize>> {
    let Some(head) = read.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&read[..head]).context("read the answer's head")?.to_ascii_lowercase();
    ensure!(text.starts_with("http/1.1 200"), "an answer that is no success: {text}");
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.context("an answer without a length")?.trim().parse()?;
    Ok(Some(head + 4 + length))
}

/// Requests one after the other on one connection, and what each took.
pub(super) async fn alone<I>(connection: &mut Connection<I>, count: usize) -> anyhow::Result<Vec<Duration>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let mut delays = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        let begun = Instant::now();
        connection.ask().await?;
        delays.push(begun.elapsed());
    }
    Ok(delays)
}

impl Client {
    pub(super) fn new(address: SocketAddr, root: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(root) {
            roots.add(certificate.context("read the root")?)?;
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let resuming = TlsConnector::from(Arc::new(config.clone()));
        config.resumption = Resumption::disabled();
        Ok(Self { address, full: TlsConnector::from(Arc::new(config)), resuming })
    }

    /// Connects, and asks once: only with the answer has a client what it needs to resume.
    pub(super) async fn connect(&self, handshake: Handshake) -> anyhow::Result<Encrypted> {
        let mut connection = timeout(PATIENCE, self.greet(handshake)).await.context("no handshake")??;
        connection.ask().await?;
        Ok(connection)
    }

    async fn greet(&self, handshake: Handshake) -> anyhow::Result<Encrypted> {
        let connector = match handshake {
            Handshake::Full => &self.full,
            Handshake::Resumed => &self.resuming,
        };
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let io = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        Ok(Connection { io, read: Vec::new() })
    }

    /// `count` connections, some of them at a time, each with one request, and what each took.
    pub(super) async fn connect_often(
        &self,
        handshake: Handshake,
        count: usize,
        at_once: usize,
    ) -> anyhow::Result<Vec<Duration>> {
        let at_once = at_once.min(TICKETS / 2);
        let (left, resumed) = (AtomicUsize::new(count), AtomicUsize::new(0));
        if handshake == Handshake::Resumed {
            // The first ones learn what the others resume with.
            try_join_all((0..at_once).map(|_| self.connect(handshake))).await?;
        }
        let side = async || {
            let mut delays = Vec::new();
            while take(&left) {
                let begun = Instant::now();
                let connection = self.connect(handshake).await?;
                delays.push(begun.elapsed());
                if connection.io.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
                    resumed.fetch_add(1, Ordering::Relaxed);
                }
            }
            anyhow::Ok(delays)
        };
        let delays = try_join_all((0..at_once).map(|_| side())).await?.concat();
        match (handshake, resumed.into_inner()) {
            (Handshake::Full, 0) => Ok(delays),
            (Handshake::Resumed, resumed) if resumed * 100 >= count * 95 => Ok(delays),
            (_, resumed) => bail!("{resumed} of {count} handshakes were resumed"),
        }
    }

    /// `count` requests on `at_once` connections, and what each took.
    pub(super) async fn ask_often(&self, count: usize, at_once: usize) -> anyhow::Result<Vec<Duration>> {
        let left = AtomicUsize::new(count);
        let side = async || {
            let mut connection = self.connect(Handshake::Full).await?;
            let mut delays = Vec::new();
            while take(&left) {
                let begun = Instant::now();
                connection.ask().await?;
                delays.push(begun.elapsed());
            }
            anyhow::Ok(delays)
        };
        Ok(try_join_all((0..at_once).map(|_| side())).await?.concat())
    }

    /// Connections that were used once and then wait.
    pub(super) async fn hold(&self, count: usize, at_once: usize) -> anyhow::Result<Vec<Encrypted>> {
        let left = AtomicUsize::new(count);
        let side = async || {
            let mut held = Vec::new();
            while take(&left) {
                held.push(self.connect(Handshake::Full).await?);
            }
            anyhow::Ok(held)
        };
        Ok(try_join_all((0..at_once).map(|_| side())).await?.into_iter().flatten().collect())
    }
}

/// Takes one of what is left.
fn take(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::upstream;

    /// An answer is whole when its body is; what is no success is told.
    #[test]
    fn answers_have_a_length() {
        assert_eq!(answer_bytes(b"HTTP/1.1 200 OK\r\nContent-Le").unwrap(), None);
        assert_eq!(answer_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na").unwrap(), Some(41));
        assert!(answer_bytes(b"HTTP/1.1 503 No\r\nContent-Length: 3\r\n\r\n").is_err());
        assert!(answer_bytes(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    /// The server behind answers each request on a connection, also those that come at once.
    #[tokio::test]
    async fn the_upstream_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(upstream::answer_all(listener));
        let mut connection = Plain::to(address).await.unwrap();
        assert_eq!(alone(&mut connection, 5).await.unwrap().len(), 5);
        connection.io.write_all(&REQUEST.repeat(3)).await.unwrap();
        connection.io.shutdown().await.unwrap();
        let mut answers = String::new();
        connection.io.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200").count(), 3);
        serving.abort();
    }
}
