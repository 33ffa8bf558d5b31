//! One connection: told apart as TLS or not, as HTTP/1.1 or HTTP/2, and served.
//!
//! Most connections of a homeserver wait in a long poll, so what one costs while it waits is kept small: hyper's
//! smallest buffers, no wrapper around the socket, no timer while a handler works.

use std::{io, pin::Pin, sync::LazyLock, time::Duration};

use myelin_process::metrics::{self, IntCounterVec};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{Limits, Serve, Tls, http::Conversation};

/// What an HTTP/2 connection begins with (RFC 9113, section 3.4).
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

static ACCEPTED: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_connections_total",
    "Connections by their protocol; none if they never said.",
    ["protocol"]
);

/// Serves a connection until it ends.
pub(crate) async fn serve<S: Serve>(
    stream: TcpStream,
    tls: Option<Tls>,
    limits: Limits,
    conversation: Conversation<S>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection is gone already");
        return;
    }
    let peer = conversation.peer;
    let shutdown = conversation.shutdown.clone();
    let greeted = async {
        match tls {
            Some(tls) => greet_encrypted(stream, &tls, limits, conversation).await,
            None => greet(stream, limits, conversation).await,
        }
    };
    let greeted = tokio::select! {
        () = shutdown.draining() => return,
        greeted = greeted => greeted,
    };
    let (protocol, served) = match greeted {
        Ok((protocol, served)) => (protocol.name(), Some(served)),
        Err(error) => {
            tracing::debug!(%peer, %error, "a connection never began");
            ("none", None)
        }
    };
    ACCEPTED.with_label_values(&[protocol]).inc();
    if let Some(served) = served
        && let Err(error) = served.await
    {
        // Peers go away as they please.
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

/// A connection that speaks. It is on the heap, so that the task holds no more than one of the protocol that it is.
type Served = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

async fn greet<S: Serve>(
    stream: TcpStream,
    limits: Limits,
    conversation: Conversation<S>,
) -> io::Result<(Protocol, Served)> {
    let protocol = timeout(limits.first_bytes_time, protocol(&stream)).await??;
    let served: Served = match protocol {
        Protocol::Http1 => Box::pin(conversation.http1(stream, limits)),
        Protocol::Http2 => Box::pin(conversation.http2(stream, limits)),
    };
    Ok((protocol, served))
}

async fn greet_encrypted<S: Serve>(
    stream: TcpStream,
    tls: &Tls,
    limits: Limits,
    conversation: Conversation<S>,
) -> io::Result<(Protocol, Served)> {
    let stream = tls.accept(stream, limits.handshake_time).await?;
    Ok(match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => (Protocol::Http2, Box::pin(conversation.http2(stream, limits))),
        _ => (Protocol::Http1, Box::pin(conversation.http1(stream, limits))),
    })
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
