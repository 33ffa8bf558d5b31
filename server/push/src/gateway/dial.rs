//! Connecting: names to addresses that may be connected to, addresses to TCP, TCP to TLS.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    time::Duration,
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use myelin_process::{address::is_public, config::Outbound};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time,
};
use tokio_rustls::TlsConnector;

use super::tls::{self, SetupError};

/// The time to look up a name.
const LOOK_UP: Duration = Duration::from_secs(5);
/// The time to connect to one address, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 3;
/// Answers of the resolver that are remembered.
const NAMES: u64 = 1_024;

/// What requests are sent over.
pub(super) type Stream = Pin<Box<dyn Connected>>;

/// A connection, encrypted or not.
pub(super) trait Connected: AsyncRead + AsyncWrite + Send {}

impl<C: AsyncRead + AsyncWrite + Send> Connected for C {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A name cannot be looked up.
    #[error("look up {name}: {reason}")]
    Dns {
        /// The name.
        name: String,
        /// What happened.
        reason: String,
    },
    /// It is at addresses of private networks alone.
    #[error("{0} is at a private address, which outbound.allow_private_addresses does not allow")]
    Private(String),
    /// Nobody answers there, or not with a good certificate.
    #[error("connect to {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{0} does not answer")]
    Timeout(SocketAddr),
}

/// Makes connections.
pub(super) struct Dialer {
    resolver: TokioResolver,
    tls: TlsConnector,
    allow_private_addresses: bool,
}

impl Dialer {
    pub(super) fn new(config: &Outbound) -> Result<Self, SetupError> {
        let dns = |error: &dyn std::fmt::Display| SetupError::Dns(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(|error| dns(&error))?;
        let options = builder.options_mut();
        options.cache_size = NAMES;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        let resolver = builder.build().map_err(|error| dns(&error))?;
        let tls = tls::connector(config.accept_invalid_certificates)?;
        Ok(Self { resolver, tls, allow_private_addresses: config.allow_private_addresses })
    }

    /// Connects to a host, as it stands in a URL.
    pub(super) async fn dial(&self, host: &str, port: u16, is_tls: bool) -> Result<Stream, DialError> {
        let mut failure = DialError::Dns { name: host.to_owned(), reason: "it has no address".to_owned() };
        for address in self.addresses(host).await? {
            let address = SocketAddr::new(address, port);
            let connecting = self.connect(address, host, is_tls);
            match time::timeout(CONNECT, connecting).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) => failure = DialError::Connect { address, source },
                Err(_) => failure = DialError::Timeout(address),
            }
        }
        Err(failure)
    }

    async fn connect(&self, address: SocketAddr, host: &str, is_tls: bool) -> std::io::Result<Stream> {
        let stream = TcpStream::connect(address).await?;
        // A request is small and waits for its answer. A socket that refuses this works as well.
        let _ = stream.set_nodelay(true);
        if !is_tls {
            return Ok(Box::pin(stream));
        }
        let name = ServerName::try_from(unbracketed(host).to_owned()).map_err(std::io::Error::other)?;
        Ok(Box::pin(self.tls.connect(name, stream).await?))
    }

    /// The addresses of a host that may be connected to. What is looked at here is what is connected to: a name that
    /// changes meanwhile changes nothing.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, DialError> {
        let mut found: Vec<IpAddr> = match unbracketed(host).parse() {
            Ok(address) => vec![address],
            Err(_) => {
                let failed = |reason: String| DialError::Dns { name: host.to_owned(), reason };
                let looked_up = time::timeout(LOOK_UP, self.resolver.lookup_ip(host)).await;
                let looked_up = looked_up.map_err(|_| failed("no answer in time".to_owned()))?;
                looked_up.map_err(|error| failed(error.to_string()))?.iter().collect()
            }
        };
        if !self.allow_private_addresses {
            found.retain(|address| is_public(*address));
            if found.is_empty() {
                return Err(DialError::Private(host.to_owned()));
            }
        }
        found.truncate(ADDRESSES_MAX);
        Ok(found)
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
