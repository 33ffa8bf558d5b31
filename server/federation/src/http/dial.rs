//! Connecting: names to addresses, addresses to TCP, TCP to TLS.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use myelin_process::{
    address::is_public,
    metrics::{self, IntCounterVec},
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::Semaphore, time};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::chain;
use crate::discovery::{Dns, DnsError};

static DIALS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_federation_dials_total",
    "Connections to other servers that were tried, by what came of it.",
    ["outcome"]
);

/// The next address is tried when the one before has not answered for this long.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
/// Connections that are being made at once: those to the dead must not take all from the living.
const DIALS_MAX: usize = 128;

/// What to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The machine.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// An IP literal.
    Address(IpAddr),
    /// A name to be looked up.
    Name(String),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => write!(f, "{}", SocketAddr::new(*address, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// A name cannot be looked up.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// A name has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// All its addresses are of private networks.
    #[error("{0} is at a private address, which federation.allow_private_addresses does not allow")]
    Private(String),
    /// Nobody answers there.
    #[error("connect to {address}: {reason}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// TLS could not be agreed on, or the certificate is not good.
    #[error("TLS with {address}: {reason}")]
    Tls {
        /// Where.
        address: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// It takes too long.
    #[error("{0} does not answer")]
    Timeout(String),
    /// There is nothing to connect to.
    #[error("it says that it has no such service")]
    NoService,
}

/// Makes connections.
pub(crate) struct Dialer {
    dns: Arc<dyn Dns>,
    allow_private_addresses: bool,
    timeout: Duration,
    dials: Semaphore,
}

impl Dialer {
    pub(crate) fn new(dns: Arc<dyn Dns>, allow_private_addresses: bool, timeout: Duration) -> Self {
        Self { dns, allow_private_addresses, timeout, dials: Semaphore::new(DIALS_MAX) }
    }

    /// Connects to the first of the endpoints that answers and has a certificate for `name`.
    pub(crate) async fn dial(
        &self,
        endpoints: &[Endpoint],
        name: &ServerName<'static>,
        config: &Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let mut failure = DialError::NoService;
        for endpoint in endpoints {
            match self.dial_one(endpoint, name, config).await {
                Ok(stream) => {
                    DIALS.with_label_values(&["ok"]).inc();
                    return Ok(stream);
                }
                Err(error) => {
                    DIALS.with_label_values(&[kind(&error)]).inc();
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn dial_one(
        &self,
        endpoint: &Endpoint,
        name: &ServerName<'static>,
        config: &Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        // The semaphore is never closed.
        let _permit = self.dials.acquire().await.map_err(|_| DialError::NoService)?;
        let addresses = self.addresses(endpoint).await?;
        let connecting = async {
            let (address, stream) = first(&addresses).await?;
            let connector = TlsConnector::from(Arc::clone(config));
            let failed = |error: io::Error| DialError::Tls { address, reason: chain(&error) };
            connector.connect(name.clone(), stream).await.map_err(failed)
        };
        time::timeout(self.timeout, connecting).await.map_err(|_| DialError::Timeout(endpoint.to_string()))?
    }

    /// Connects without TLS. For web pages alone.
    pub(crate) async fn dial_plain(&self, endpoint: &Endpoint) -> Result<TcpStream, DialError> {
        // The semaphore is never closed.
        let _permit = self.dials.acquire().await.map_err(|_| DialError::NoService)?;
        let addresses = self.addresses(endpoint).await?;
        let connected = time::timeout(self.timeout, first(&addresses)).await;
        let (_, stream) = connected.map_err(|_| DialError::Timeout(endpoint.to_string()))??;
        Ok(stream)
    }

    /// The addresses of an endpoint that may be connected to, in the order to try them.
    pub(crate) async fn addresses(&self, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, DialError> {
        let found = match &endpoint.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.dns.addresses(name).await?,
        };
        if found.is_empty() {
            return Err(DialError::NoAddress(endpoint.to_string()));
        }
        // What is looked at here is what is connected to: a name that changes meanwhile changes nothing.
        let allowed = found.into_iter().filter(|address| self.allow_private_addresses || is_public(*address));
        let addresses: Vec<_> = alternating(allowed.collect());
        if addresses.is_empty() {
            return Err(DialError::Private(endpoint.to_string()));
        }
        Ok(addresses.into_iter().take(ADDRESSES_MAX).map(|address| SocketAddr::new(address, endpoint.port)).collect())
    }
}

/// IPv6 and IPv4 in turn, so that one that is broken costs one step.
fn alternating(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (mut sixes, mut fours): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    sixes.reverse();
    fours.reverse();
    let mut order = Vec::with_capacity(sixes.len() + fours.len());
    while !sixes.is_empty() || !fours.is_empty() {
        order.extend(sixes.pop());
        order.extend(fours.pop());
    }
    order
}

/// The first connection that stands; an address that is slow does not hold up the next.
async fn first(addresses: &[SocketAddr]) -> Result<(SocketAddr, TcpStream), DialError> {
    let connect = async |address: SocketAddr| match TcpStream::connect(address).await {
        Ok(stream) => Ok((address, stream)),
        Err(error) => Err(DialError::Connect { address, reason: error.to_string() }),
    };
    let mut waiting = addresses.iter().copied();
    let mut trying = FuturesUnordered::new();
    let mut failure = DialError::NoService;
    trying.extend(waiting.next().map(connect));
    loop {
        tokio::select! {
            tried = trying.next() => match tried {
                Some(Ok((address, stream))) => {
                    // Requests are small and wait for their answers. A socket that refuses this works as well.
                    let _ = stream.set_nodelay(true);
                    return Ok((address, stream));
                }
                Some(Err(error)) => {
                    failure = error;
                    trying.extend(waiting.next().map(connect));
                }
                None => return Err(failure),
            },
            () = time::sleep(NEXT_ADDRESS), if waiting.len() > 0 => trying.extend(waiting.next().map(connect)),
        }
    }
}

fn kind(error: &DialError) -> &'static str {
    match error {
        DialError::Dns(_) | DialError::NoAddress(_) | DialError::NoService => "dns",
        DialError::Private(_) => "private",
        DialError::Connect { .. } => "connect",
        DialError::Tls { .. } => "tls",
        DialError::Timeout(_) => "timeout",
    }
}
