//! Other servers that mean no good, on the wire. What they may say that is wrong is tested where it is read.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use futures_util::future::join_all;
use myelin_end_to_end::{Authority, Engine, Peer, encode, run};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use crate::{
    guest::{Guest, PATIENCE, agree},
    together::Pair,
};

const MIB: usize = 1024 * 1024;

/// What a server may add to its memory while all of it happens: much less than it is sent.
const MEMORY_MAX: f64 = 64.0 * MIB as f64;

/// Bodies without end, bodies and answers that come too slowly: each is refused in time and takes little memory, and
/// meanwhile the room goes on.
#[test]
fn hostile_servers_hurt_nobody() {
    run(async {
        let authority = Authority::new();
        let (maker, joiner) =
            (Peer::myelin(Engine::Sqlite, &authority).await, Peer::myelin(Engine::Sqlite, &authority).await);
        let pair = Pair { maker: &maker, joiner: &joiner, version: 12 };
        let (alice, bob) = pair.people().await;
        let room = pair.shared_room(&alice, &bob).await;
        let before = memory(&joiner).await;
        let intruder = Intruder {
            authority: &authority,
            target: &joiner,
            key: key_of(&authority, &maker).await,
            origin: maker.name(),
        };
        let attacks = async {
            tokio::join!(
                intruder.announces_much(),
                intruder.sends_without_end(),
                join_all((0..20).map(|_| intruder.sends_slowly())),
                join_all([Answer::Hangs, Answer::Drips, Answer::NeverEnds].map(|how| asks(&authority, &bob, how))),
            )
        };
        let (_, words) = tokio::join!(attacks, talk(&alice, &bob, &room));
        assert!(memory(&joiner).await - before < MEMORY_MAX, "{before} before");
        assert_eq!(alice.history(&room).await.len(), words);
        agree(&alice, &bob, &room).await;
    });
}

/// People of both servers talk; returns how much was said.
async fn talk(alice: &Guest, bob: &Guest, room: &str) -> usize {
    const WORDS: usize = 100;
    for number in 0..WORDS {
        let (who, other) = if number % 2 == 0 { (alice, bob) } else { (bob, alice) };
        let event = who.says(room, "never mind them").await;
        other.sees(room, &event).await;
    }
    WORDS
}

/// The memory that the server's process holds.
async fn memory(server: &Peer) -> f64 {
    let text = server.metrics().get("/metrics").await.text();
    let line = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    line.unwrap().parse().unwrap()
}

/// Who speaks as if for a server of the room: a signature is only known to be wrong once the body is there.
struct Intruder<'a> {
    authority: &'a Authority,
    target: &'a Peer,
    origin: &'a str,
    /// The name of a key of that server.
    key: String,
}

impl Intruder<'_> {
    /// 100 MB are announced, and refused before they are sent.
    async fn announces_much(&self) {
        let mut stream = self.begin(&format!("content-length: {}", 100 * MIB)).await;
        assert_eq!(status(&mut stream).await, Some(413));
    }

    /// As much as is taken is sent, with no end announced. What comes after the refusal may be read, but is not kept.
    async fn sends_without_end(&self) {
        let stream = self.begin("transfer-encoding: chunked").await;
        let mut chunk = format!("{:x}\r\n", 64 * 1024);
        write!(chunk, "{}\r\n", " ".repeat(64 * 1024)).unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let sending = async {
            while writer.write_all(chunk.as_bytes()).await.is_ok() {}
            // The connection is closed; whether there was an answer is seen where it is read.
            std::future::pending().await
        };
        let mut answer = [0; 12];
        let read = tokio::select! {
            never = sending => never,
            read = timeout(PATIENCE, reader.read_exact(&mut answer)) => read.expect("there is an answer"),
        };
        // Who is refused in the middle of sending may find the connection closed before reading why.
        assert!(read.is_err() || &answer == b"HTTP/1.1 413", "{answer:?}");
    }

    /// The beginning of a body comes, and then nothing.
    async fn sends_slowly(&self) {
        let mut stream = self.begin("content-length: 1000").await;
        stream.write_all(b"{").await.unwrap();
        // The time for a body, or that for any answer, has passed.
        let status = status(&mut stream).await;
        assert!(matches!(status, Some(408 | 503)), "{status:?}");
    }

    /// Sends the beginning of a transaction that looks as if it were signed.
    async fn begin(&self, length: &str) -> TlsStream<TcpStream> {
        let Self { authority, target, origin, key } = self;
        let mut stream = connect(authority, target).await;
        let (name, sig) = (target.name(), "A".repeat(86));
        let head = format!(
            "PUT /_matrix/federation/v1/send/1 HTTP/1.1\r\nhost: {name}\r\ncontent-type: application/json\r\n\
             authorization: X-Matrix origin=\"{origin}\",destination=\"{name}\",key=\"{key}\",sig=\"{sig}\"\r\n\
             {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }
}

/// The name of a server's key, from the server itself.
async fn key_of(authority: &Authority, server: &Peer) -> String {
    let mut stream = connect(authority, server).await;
    let request =
        format!("GET /_matrix/key/v2/server HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", server.name());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let name = answer.split('"').find(|word| word.starts_with("ed25519:"));
    name.unwrap_or_else(|| panic!("no key in {answer}")).to_owned()
}

/// How another server answers everything.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// It stops in the middle.
    Hangs,
    /// Now and then there is one more byte.
    Drips,
    /// It goes on and on.
    NeverEnds,
}

/// Somebody wants something of such a server, and is told in time that it cannot be had.
async fn asks(authority: &Authority, bob: &Guest, how: Answer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("localhost:{}", listener.local_addr().unwrap().port());
    let certificate = CertificateDer::from_pem_file(authority.certificate()).unwrap();
    let key = PrivateKeyDer::from_pem_file(authority.private_key()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let serving = async {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Connections stay open as long as the other side wants.
            tokio::spawn(answer(acceptor.clone(), stream, how));
        }
    };
    let asking = async {
        let path = format!("directory/room/{}", encode(&format!("#room:{name}")));
        let answer = timeout(PATIENCE, bob.get(&path)).await.unwrap_or_else(|_| panic!("{how:?}: no answer"));
        assert!([404, 502, 504].contains(&answer.status), "{how:?}: {answer}");
    };
    tokio::select! {
        () = serving => {}
        () = asking => {}
    }
}

/// Answers with the beginning of a body that announces itself as long.
async fn answer(acceptor: TlsAcceptor, stream: TcpStream, how: Answer) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    // It has begun to ask.
    stream.read_u8().await.ok()?;
    let start =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n{\"room_id\":\"";
    stream.write_all(start).await.ok()?;
    let (more, pause) = match how {
        Answer::Hangs => return std::future::pending().await,
        Answer::Drips => (vec![b'a'], Duration::from_millis(100)),
        Answer::NeverEnds => (vec![b'a'; 64 * 1024], Duration::ZERO),
    };
    loop {
        stream.write_all(&more).await.ok()?;
        stream.flush().await.ok()?;
        sleep(pause).await;
    }
}

/// A connection as another server has it.
async fn connect(authority: &Authority, server: &Peer) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.root()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.name()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
}

/// The status of the answer; none if the connection is closed without one.
async fn status(stream: &mut TlsStream<TcpStream>) -> Option<u16> {
    let mut line = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut line)).await.expect("there is an answer in time").ok()?;
    std::str::from_utf8(&line).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
}
