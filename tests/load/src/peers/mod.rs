//! Other homeservers, as light as can be: they hold a room, answer for it, and take what they are sent. All are in this
//! process, each with a port and a name of its own (`localhost:PORT`), and sign with one key.

mod answers;
pub(crate) mod authority;
mod room;
mod signer;

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{json, value::RawValue};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::room::RoomSize;
use self::{
    answers::{Question, Reply},
    room::{Room, VERSION},
    signer::{Signer, now_ms},
};

/// The largest body that a peer takes.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A message that a peer was sent.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Which of the peers.
    pub(crate) peer: usize,
    /// What it says.
    pub(crate) words: String,
    /// When it came.
    pub(crate) at: Instant,
}

/// A transaction, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    /// Where to.
    pub(crate) path: String,
    /// The `Authorization`.
    pub(crate) authorization: String,
    /// The body.
    pub(crate) body: Bytes,
    /// The ids of its events.
    pub(crate) events: Vec<String>,
}

/// Peers that hold one room.
#[derive(Debug)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// They end with it.
    _listeners: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    names: Vec<String>,
    signer: Signer,
    room: Mutex<Room>,
    arrivals: mpsc::UnboundedSender<Arrival>,
}

impl Peers {
    /// Starts some, with a room that has members of each. `authority` is a folder that [`authority::make`] filled.
    pub(crate) async fn start(authority: &Path, count: usize, size: RoomSize) -> anyhow::Result<Self> {
        let tls = TlsAcceptor::from(authority::tls(authority)?);
        let mut listeners = Vec::with_capacity(count);
        for _ in 0..count {
            listeners.push(TcpListener::bind(("127.0.0.1", 0)).await.context("listen for a server")?);
        }
        let name = |listener: &TcpListener| anyhow::Ok(format!("localhost:{}", listener.local_addr()?.port()));
        let names = listeners.iter().map(name).collect::<anyhow::Result<Vec<_>>>()?;
        let signer = Signer::new(VERSION.rules().context("the room version is known")?)?;
        let room = Mutex::new(Room::new(&signer, &names, size).context("make a room")?);
        let (sender, arrivals) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { names, signer, room, arrivals: sender });
        let mut tasks = JoinSet::new();
        for (peer, listener) in listeners.into_iter().enumerate() {
            tasks.spawn(listen(listener, tls.clone(), shared.clone(), peer));
        }
        Ok(Self { shared, arrivals, _listeners: tasks })
    }

    /// The name of the server that made the room.
    pub(crate) fn holder(&self) -> &str {
        &self.shared.names[0]
    }

    /// The room's id.
    pub(crate) fn room(&self) -> String {
        self.shared.room.lock().id.clone()
    }

    /// The next message that a peer is sent.
    pub(crate) async fn arrival(&mut self) -> Option<Arrival> {
        self.arrivals.recv().await
    }

    /// The room's members say more, which the server that holds it sends in one transaction.
    pub(crate) fn transaction(&self, destination: &str, number: usize, events: usize) -> anyhow::Result<Transaction> {
        let mut room = self.shared.room.lock();
        let mut pdus = Vec::with_capacity(events);
        let mut ids = Vec::with_capacity(events);
        for event in 0..events {
            let (_, id, json) = room.speak(&self.shared.signer, &format!("Word {event} of transaction {number}."))?;
            ids.push(id);
            pdus.push(json);
        }
        let body = json!({ "origin": self.holder(), "origin_server_ts": now_ms(), "pdus": pdus, "edus": [] });
        let body = RawValue::from_string(body.to_string())?;
        let path = format!("/_matrix/federation/v1/send/load-{}-{number}", now_ms());
        let authorization = self.shared.signer.authorization(self.holder(), destination, "PUT", &path, &body)?;
        Ok(Transaction { path, authorization, body: Bytes::from(body.get().to_owned()), events: ids })
    }
}

async fn listen(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>, peer: usize) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => _ = connections.spawn(serve(stream, tls.clone(), shared.clone(), peer)),
            Err(error) => {
                eprintln!("a peer cannot accept connections: {error}");
                return;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A connection that breaks is for the measured server to tell, not for us.
async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>, peer: usize) {
    // Without it an answer might wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| respond(&shared, peer, request));
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    shared: &Shared,
    peer: usize,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, http::Error> {
    let (head, body) = request.into_parts();
    let (status, json) = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => {
            let body = body.to_bytes();
            let question = Question {
                method: head.method,
                path: head.uri.path(),
                query: head.uri.query().unwrap_or_default(),
                body: &body,
            };
            shared.answer(peer, &question).unwrap_or_else(|error| bad(&format!("{error:#}")))
        }
        Err(error) => bad(&error.to_string()),
    };
    Response::builder().status(status).header(header::CONTENT_TYPE, "application/json").body(Full::from(json))
}

/// A request that cannot be understood.
fn bad(why: &str) -> Reply {
    (StatusCode::BAD_REQUEST, json!({ "errcode": "M_UNKNOWN", "error": why }).to_string().into_bytes())
}
