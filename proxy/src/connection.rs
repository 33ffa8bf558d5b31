//! One connection: told apart as TLS or not, as HTTP/1.1 or HTTP/2, and served.
//!
//! Most connections of a homeserver wait in a long poll, so what one costs while it waits is kept small: hyper's
//! smallest buffers, no wrapper around the socket, no timer while a handler works.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use myelin_process::metrics::{self, IntCounterVec};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    Serve, Tls,
    accept::Entrance,
    admission::{Newcomer, Place, REFUSED},
    http::{Conversation, Served},
    proxy_protocol,
    refusal::Refusal,
    tls::Greeted,
};

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The first byte of a TLS connection: a record of the type `handshake` (RFC 8446, section 5.1).
const TLS_HANDSHAKE: u8 = 22;

static ACCEPTED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_connections_total",
    "Connections by their protocol; none if they never said.",
    ["protocol"]
);

/// Serves a connection until it ends. It has its place until then.
pub(crate) fn serve<S: Serve>(
    stream: TcpStream,
    peer: SocketAddr,
    entrance: Arc<Entrance>,
    service: S,
    place: Place,
) -> impl Future<Output = ()> + Send {
    let shutdown = entrance.door.shutdown.clone();
    let (newcomer, mut told_to_go) = entrance.door.admission.newcomer();
    // On the heap: what a greeting needs is given back when it is over.
    let mut greeting = Box::pin(greet(stream, peer, entrance, service, newcomer));
    async move {
        let _place = &place;
        let greeted = tokio::select! {
            () = shutdown.draining() => return,
            Ok(()) = &mut told_to_go => Err(io::Error::other("it was told to go")),
            greeted = &mut greeting => greeted,
        };
        drop(greeting);
        let (protocol, mut served) = match greeted {
            Ok((protocol, served)) => (protocol, served),
            Err(error) => {
                tracing::debug!(%peer, %error, "a connection never began");
                ACCEPTED.with_label_values(&["none"]).inc();
                return;
            }
        };
        ACCEPTED.with_label_values(&[protocol.name()]).inc();
        let ended = tokio::select! {
            ended = &mut served => ended,
            Ok(()) = &mut told_to_go => return,
        };
        if let Err(error) = ended {
            // Peers go away as they please.
            tracing::debug!(%peer, %error, "a connection ended early");
        }
    }
}

/// Finds out whose connection it is and what it speaks.
async fn greet<S: Serve>(
    mut stream: TcpStream,
    peer: SocketAddr,
    entrance: Arc<Entrance>,
    service: S,
    newcomer: Newcomer,
) -> io::Result<(Protocol, Served)> {
    stream.set_nodelay(true)?;
    let peer = sender(&mut stream, peer, &entrance).await?;
    let Some(counted) = entrance.door.admission.of_address(peer.ip()) else {
        REFUSED.with_label_values(&["address"]).inc();
        if entrance.tls.is_none() {
            Refusal::Address.tell(stream).await;
        }
        return Err(io::Error::other("its address has too many"));
    };
    let conversation = Conversation { service, peer, entrance: Arc::clone(&entrance), newcomer, _counted: counted };
    match &entrance.tls {
        // A handshake is ten times the size of everything else here.
        Some(tls) => Box::pin(greet_encrypted(stream, tls, conversation)).await,
        None => {
            let protocol = timeout(entrance.door.limits.first_bytes_time, protocol(&stream)).await??;
            Ok((protocol, conversation.in_protocol(protocol, stream)))
        }
    }
}

/// Who is at the other end: of a balancer that speaks the PROXY protocol, the one for whom it speaks.
async fn sender(stream: &mut TcpStream, peer: SocketAddr, entrance: &Entrance) -> io::Result<SocketAddr> {
    if !entrance.proxy_protocol {
        return Ok(peer);
    }
    if !entrance.manners.trusted.contain(peer.ip()) {
        REFUSED.with_label_values(&["untrusted"]).inc();
        return Err(io::Error::other("the peer is not a trusted proxy"));
    }
    let header = timeout(entrance.door.limits.handshake_time, proxy_protocol::read(stream)).await?;
    Ok(header?.unwrap_or(peer))
}

async fn greet_encrypted<S: Serve>(
    stream: TcpStream,
    tls: &Tls,
    conversation: Conversation<S>,
) -> io::Result<(Protocol, Served)> {
    let time = conversation.entrance.door.limits.handshake_time;
    let mut first = [0];
    timeout(time, stream.peek(&mut first)).await??;
    if first[0] != TLS_HANDSHAKE {
        if first[0].is_ascii_alphabetic() {
            Refusal::PlainHttp.tell(stream).await;
        }
        return Err(io::Error::other("it does not speak TLS"));
    }
    match tls.accept(stream, time).await? {
        Greeted::Client(stream) => {
            let protocol = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Protocol::Http2,
                _ => Protocol::Http1,
            };
            Ok((protocol, conversation.in_protocol(protocol, stream)))
        }
        Greeted::Challenger => Err(io::Error::other("it was a question of ACME, and is answered")),
    }
}

impl<S: Serve> Conversation<S> {
    fn in_protocol<I>(self, protocol: Protocol, io: I) -> Served
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        match protocol {
            Protocol::Http1 => self.http1(io),
            Protocol::Http2 => self.http2(io),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
        }
    }
}

/// Looks at the first bytes without taking them.
async fn protocol(stream: &TcpStream) -> io::Result<Protocol> {
    let mut seen = [0; HTTP2_PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        match &seen[..count] {
            [] => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes if !HTTP2_PREFACE.starts_with(bytes) => return Ok(Protocol::Http1),
            bytes if bytes.len() == HTTP2_PREFACE.len() => return Ok(Protocol::Http2),
            // The beginning of the preface, and readable at once again: wait a little for the rest.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}
