//! Listening: addresses are taken, connections accepted and bounded, and drained at the end.

use std::{
    fs::File,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use listenfd::ListenFd;
use myelin_process::{config::Network, shutdown::Shutdown};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::sleep,
};

use crate::{
    Manners, Serve, Tls,
    admission::{Admission, REFUSED},
    connection,
    refusal::Refusal,
};

/// Connections that the operating system keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Pause after a failure to accept that the next attempt would only repeat.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections at once that are told why they are refused; further ones are closed without a word.
const REFUSALS: usize = 64;
/// File descriptors that are kept back.
const SPARE_FILES: usize = 4;
/// How often the log is told of the same trouble.
const TELL_PERIOD: Duration = Duration::from_secs(60);

/// The bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of all listeners together.
    pub connections: usize,
    /// Connections of one address.
    pub connections_per_address: usize,
    /// Connections that have not asked for anything yet.
    pub newcomers: usize,
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
            connections_per_address: 1024,
            newcomers: 512,
            first_bytes_time: Duration::from_secs(30),
            handshake_time: Duration::from_secs(10),
            // Longer than proxies keep a connection that they might use again (a minute, mostly), so that they never
            // send into a closed one.
            head_time: Duration::from_secs(120),
            http2_streams: 256,
        }
    }
}

/// Takes addresses: those that the service manager holds for us already, and others by ourselves.
///
/// With systemd's socket activation, a privileged port needs no privilege, and connections wait during a restart.
#[derive(Default)]
pub struct Binder {
    inherited: Vec<std::net::TcpListener>,
}

impl Binder {
    /// Finds the sockets that the service manager handed over. Those of other kinds are left alone.
    pub fn from_env() -> io::Result<Self> {
        let mut handed = ListenFd::from_env();
        let mut inherited = Vec::new();
        for number in 0..handed.len() {
            if let Ok(Some(socket)) = handed.take_tcp_listener(number) {
                inherited.push(socket);
            }
        }
        Ok(Self { inherited })
    }

    /// Takes the address.
    pub fn bind(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
        let place = self.inherited.iter().position(|socket| socket.local_addr().is_ok_and(|own| own == address));
        let Some(place) = place else { return bind(address) };
        let socket = self.inherited.swap_remove(place);
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
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
    /// The socket, see [`Binder`].
    pub socket: TcpListener,
    /// None for plain HTTP.
    pub tls: Option<Tls>,
    /// Whether connections begin with a header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// How requests are received.
    pub manners: Manners,
}

impl Listening {
    /// Plain HTTP and nothing special.
    pub fn new(socket: TcpListener) -> Self {
        Self { socket, tls: None, proxy_protocol: false, manners: Manners::default() }
    }
}

/// What all listeners of a process share.
#[derive(Clone, Debug)]
pub struct FrontDoor {
    pub(crate) limits: Limits,
    pub(crate) admission: Arc<Admission>,
    pub(crate) shutdown: Shutdown,
    refusals: Arc<Semaphore>,
    spares: Arc<Spares>,
}

/// What the connections of one listener share.
pub(crate) struct Entrance {
    pub(crate) door: FrontDoor,
    pub(crate) tls: Option<Tls>,
    pub(crate) proxy_protocol: bool,
    pub(crate) manners: Manners,
}

impl FrontDoor {
    /// Nobody is let in yet. The limit on connections of one address does not count for those in `exempt`.
    pub fn new(limits: Limits, exempt: Vec<Network>, shutdown: Shutdown) -> Self {
        let admission = Admission::new(limits.connections, limits.newcomers, limits.connections_per_address, exempt);
        let (refusals, spares) = (Arc::new(Semaphore::new(REFUSALS)), Arc::new(Spares::new()));
        Self { limits, admission, shutdown, refusals, spares }
    }

    /// Accepts connections and serves them by `service` until the process drains; those under way then finish their
    /// request.
    pub fn open<S: Serve>(&self, listening: Listening, service: S) {
        let Listening { socket, tls, proxy_protocol, manners } = listening;
        let entrance = Entrance { door: self.clone(), tls, proxy_protocol, manners };
        self.shutdown.spawn_connection(accept(socket, Arc::new(entrance), service));
    }
}

async fn accept<S: Serve>(socket: TcpListener, entrance: Arc<Entrance>, service: S) {
    let shutdown = entrance.door.shutdown.clone();
    let mut draining = pin!(shutdown.draining());
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            () = &mut draining => return,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match entrance.door.admission.enter() {
                Some(place) => {
                    entrance.door.spares.refill();
                    let entrance = Arc::clone(&entrance);
                    shutdown.spawn_connection(connection::serve(stream, peer, entrance, service.clone(), place));
                }
                None => {
                    trouble.tell("all connections are in use; more are refused");
                    refuse(stream, &entrance);
                }
            },
            Err(error) if is_of_one_connection(&error) => tracing::debug!(%error, "a connection was gone too soon"),
            Err(error) => {
                trouble.tell(&format!("cannot accept connections: {error}"));
                let door = &entrance.door;
                let sent = if is_exhausted(&error) { Some(door.spares.send_one_away(&socket).await) } else { None };
                match sent {
                    Some(SentAway::One | SentAway::Nobody) => {}
                    // Somebody has to go before there can be room.
                    Some(SentAway::NotEven) => {
                        door.admission.send_oldest_away();
                        sleep(ACCEPT_PAUSE).await;
                    }
                    None => sleep(ACCEPT_PAUSE).await,
                }
            }
        }
    }
}

/// Tells a client that there is no room, unless too many are being told already.
fn refuse(stream: TcpStream, entrance: &Entrance) {
    REFUSED.with_label_values(&["full"]).inc();
    let Ok(permit) = Arc::clone(&entrance.door.refusals).try_acquire_owned() else { return };
    let (tls, time) = (entrance.tls.clone(), entrance.door.limits.handshake_time);
    entrance.door.shutdown.spawn_connection(async move {
        let _permit = permit;
        match tls {
            None => Refusal::Full.tell(stream).await,
            Some(tls) => match tls.accept_for_refusal(stream, time).await {
                Ok(stream) => Refusal::Full.tell(stream).await,
                Err(error) => tracing::debug!(%error, "a connection was refused before it began"),
            },
        }
    });
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

/// Whether there is no file descriptor left, in the process or in the system.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// File descriptors for the time when there is no other left: connections are then closed at once with their help, and do
/// not hang until somebody else has given one back. All listeners share them. They are several, since while one is given
/// up for a moment, another thread may take it and keep it.
#[derive(Debug)]
struct Spares(Mutex<Vec<File>>);

/// What came of sending somebody away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SentAway {
    /// One is gone.
    One,
    /// Nobody was there: without descriptors, accepting fails also then.
    Nobody,
    /// There is not even a descriptor for that.
    NotEven,
}

impl Spares {
    fn new() -> Self {
        let spares = Self(Mutex::default());
        spares.refill();
        spares
    }

    /// Takes back what others took.
    fn refill(&self) {
        Self::refill_in(&mut self.0.lock());
    }

    fn refill_in(files: &mut Vec<File>) {
        while files.len() < SPARE_FILES
            && let Ok(file) = File::open("/dev/null")
        {
            files.push(file);
        }
    }

    /// Accepts a connection and closes it. It waits for nothing in between, so that the descriptor is free for no longer
    /// than that takes.
    async fn send_one_away(&self, socket: &TcpListener) -> SentAway {
        poll_fn(|context| {
            let mut files = self.0.lock();
            if files.pop().is_none() {
                Self::refill_in(&mut files);
                return Poll::Ready(SentAway::NotEven);
            }
            let sent = match socket.poll_accept(context) {
                Poll::Ready(Ok(_)) => SentAway::One,
                // It was taken in between.
                Poll::Ready(Err(_)) => SentAway::NotEven,
                Poll::Pending => SentAway::Nobody,
            };
            if sent == SentAway::One {
                REFUSED.with_label_values(&["files"]).inc();
            }
            Self::refill_in(&mut files);
            Poll::Ready(sent)
        })
        .await
    }
}

/// Tells the log of trouble, but not of every instance.
#[derive(Default)]
struct Trouble(Option<Instant>);

impl Trouble {
    fn tell(&mut self, message: &str) {
        if self.0.is_none_or(|last| last.elapsed() >= TELL_PERIOD) {
            tracing::error!("{message}");
            self.0 = Some(Instant::now());
        }
    }
}
