//! Listening: addresses are taken, connections accepted and bounded, and drained at the end.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_process::{
    metrics::{self, IntGauge},
    shutdown::Shutdown,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use crate::{Serve, Tls, connection, http::Conversation};

/// Connections that the operating system keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failure to accept that the next attempt would only repeat, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static OPEN: LazyLock<IntGauge> = metrics::gauge!("myelin_connections", "Connections that are open.");

/// The bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of all listeners together.
    pub connections: usize,
    /// How long a new connection may take to show which protocol it speaks.
    pub first_bytes_time: Duration,
    /// How long a handshake of TLS may take.
    pub handshake_time: Duration,
    /// How long a connection may be silent between requests, and how long the head of a request may take.
    pub head_time: Duration,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            first_bytes_time: Duration::from_secs(30),
            handshake_time: Duration::from_secs(10),
            // Longer than proxies keep a connection that they might use again (a minute, mostly), so that they never
            // send into a closed one.
            head_time: Duration::from_secs(120),
            http2_streams: 256,
        }
    }
}

/// Takes the address, and tells the operating system to queue connections.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the last connections of the old process to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// One address, and how to speak there.
#[derive(Debug)]
pub struct Listening {
    /// The socket, see [`bind`].
    pub socket: TcpListener,
    /// None for plain HTTP.
    pub tls: Option<Tls>,
}

/// What all listeners of a process share.
#[derive(Clone, Debug)]
pub struct FrontDoor {
    limits: Limits,
    room: Arc<Semaphore>,
    shutdown: Shutdown,
}

impl FrontDoor {
    /// Nobody is let in yet.
    pub fn new(limits: Limits, shutdown: Shutdown) -> Self {
        let room = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
        Self { limits, room, shutdown }
    }

    /// Accepts connections and serves them by `service` until the process drains; those under way then finish their
    /// request.
    pub fn open<S: Serve>(&self, listening: Listening, service: S) {
        self.shutdown.spawn_connection(self.clone().accept(listening, service));
    }

    async fn accept<S: Serve>(self, listening: Listening, service: S) {
        let mut draining = pin!(self.shutdown.draining());
        loop {
            let next = async {
                let permit = Arc::clone(&self.room).acquire_owned().await;
                (permit, listening.socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = &mut draining => return,
                next = next => next,
            };
            let Ok(permit) = permit else { return };
            match accepted {
                Ok((stream, peer)) => {
                    let conversation = Conversation { service: service.clone(), peer, shutdown: self.shutdown.clone() };
                    let served = connection::serve(stream, listening.tls.clone(), self.limits, conversation);
                    let open = Open::new(permit);
                    self.shutdown.spawn_connection(async move {
                        let _open = open;
                        served.await;
                    });
                }
                Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection was gone too soon"),
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Counts a connection while it is open.
struct Open {
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(permit: OwnedSemaphorePermit) -> Self {
        OPEN.inc();
        Self { _permit: permit }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.dec();
    }
}
