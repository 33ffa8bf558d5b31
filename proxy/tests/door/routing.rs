//! Requests that are handed on.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use myelin_process::shutdown::Shutdown;
use myelin_proxy::{Limits, Listening, RequestBody, Route, Router, Serve, Target, Upstreams};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixListener,
};

use crate::harness::{Door, PATIENCE, eventually, rest};

/// A server behind that tells what it got. `/tunnel` becomes an echo of bytes, `/ill` is an error.
#[derive(Clone)]
struct Behind(&'static str);

impl Serve for Behind {
    type Body = Full<Bytes>;

    const UPGRADES: bool = true;

    async fn serve(self, mut request: Request<RequestBody>, _: SocketAddr) -> Response<Self::Body> {
        if request.uri().path() == "/tunnel" {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                stream.read_exact(&mut bytes).await.unwrap();
                bytes.reverse();
                stream.write_all(&bytes).await.unwrap();
            });
            let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
            return response.body(Full::default()).unwrap();
        }
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        let mut text = format!("{} {} {}\n", self.0, request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        text.push_str(&String::from_utf8_lossy(&body));
        Response::builder().header("connection", "x-private").header("x-private", "1").body(text.into()).unwrap()
    }
}

fn behind(name: &'static str) -> Door {
    Door::serve(Limits::default(), Listening::new, Behind(name))
}

fn door(addresses: &[String], time: Duration) -> (Door, Arc<Upstreams>) {
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let upstreams = Upstreams::new(addresses, Some("/health".to_owned()), time, Shutdown::new());
    let routes = vec![Route { host: None, path: "/".to_owned(), target: Target::Upstreams(Arc::clone(&upstreams)) }];
    (Door::serve(Limits::default(), Listening::new, Router::new(routes, false)), upstreams)
}

async fn ask(door: &Door, request: &str) -> String {
    rest(door.send(format!("{request}\r\nconnection: close\r\n\r\n").as_bytes()).await).await
}

/// Method, path as it came, body and headers arrive; what the client says of itself and what is between neighbours
/// does not.
#[tokio::test]
async fn hands_on_and_brings_back() {
    let server = behind("one");
    let (door, _) = door(&[format!("http://{}", server.address)], PATIENCE);
    let answer = ask(
        &door,
        "GET /_matrix/%2Fa%20b/..%2f?x=%00 HTTP/1.1\r\nhost: Example.org\r\nx-forwarded-for: 192.0.2.1\r\n\
         forwarded: for=192.0.2.1\r\nx-hop: 1\r\nkeep: 2\r\nte: trailers\r\nconnection: x-hop, x-forwarded-for, host",
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("one GET /_matrix/%2Fa%20b/..%2f?x=%00\n"),
        "{answer}"
    );
    for there in ["host: Example.org\n", "x-forwarded-for: 127.0.0.1\n", "x-forwarded-proto: http\n", "keep: 2\n"] {
        assert!(answer.contains(there), "{there}: {answer}");
    }
    for gone in ["192.0.2.1", "x-hop:", "\nte:", "x-private"] {
        assert!(!answer.contains(gone), "{gone}: {answer}");
    }
    let post = "POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                4\r\nbody\r\n0\r\n\r\n";
    let answer = rest(door.send(post.as_bytes()).await).await;
    assert!(answer.contains("one POST /p") && answer.contains("body") && !answer.contains("99"), "{answer}");
}

/// A server that is gone is passed over, requests are spread over the others, and nobody notices.
#[tokio::test]
async fn passes_over_who_is_gone() {
    let (one, two) = (behind("one"), behind("two"));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let addresses = [one.address, gone, two.address].map(|address| format!("http://{address}"));
    let (door, _) = door(&addresses, PATIENCE);
    let mut names = std::collections::HashSet::new();
    for _ in 0..20 {
        let answer = ask(&door, "GET / HTTP/1.1\r\nhost: x").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        names.insert(answer.contains("one GET"));
    }
    assert_eq!(names.len(), 2);
}

/// When all are gone or too slow, the client is told so; health is found out anew.
#[tokio::test]
async fn tells_when_nobody_is_there() {
    let server = behind("one");
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (nobody, _) = door(&[format!("http://{gone}")], PATIENCE);
    assert!(ask(&nobody, "GET / HTTP/1.1\r\nhost: x").await.starts_with("HTTP/1.1 502"));
    let (slow, _) = door(&[format!("http://{}", server.address)], Duration::from_millis(100));
    assert!(ask(&slow, "GET /never HTTP/1.1\r\nhost: x").await.starts_with("HTTP/1.1 504"));
    let (back, upstreams) = door(&[format!("http://{gone}"), format!("http://{}", server.address)], PATIENCE);
    tokio::spawn(upstreams.look_after());
    eventually("a POST is never sent to who is not well", async || {
        let mut all = true;
        for _ in 0..4 {
            let post = "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0";
            all &= ask(&back, post).await.starts_with("HTTP/1.1 200");
        }
        all
    })
    .await;
}

/// A WebSocket, or another protocol, goes through in both directions.
#[tokio::test]
async fn tunnels() {
    let server = behind("one");
    let (door, _) = door(&[format!("http://{}", server.address)], PATIENCE);
    let mut stream =
        door.send(b"GET /tunnel HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream.write_all(b"abcd").await.unwrap();
    assert_eq!(rest(stream).await, "dcba");
    // Who does not ask for it does not get it.
    assert!(!ask(&door, "GET /x HTTP/1.1\r\nhost: x\r\nupgrade: echo").await.contains("upgrade: echo"));
}

/// A server at a unix socket.
#[tokio::test]
async fn unix_sockets() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nunix").await.unwrap();
    });
    let (door, _) = door(&[format!("unix:{}", path.display())], PATIENCE);
    let answer = ask(&door, "GET / HTTP/1.1\r\nhost: x").await;
    assert!(answer.ends_with("unix"), "{answer}");
}
