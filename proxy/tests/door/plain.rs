//! Plain connections.

use std::time::Duration;

use myelin_proxy::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::{Door, PATIENCE, REQUEST, rest};

/// Who answers knows who asks, for the limits on addresses.
#[tokio::test]
async fn passes_the_peer_on() {
    let door = Door::plain(Limits::default());
    let stream = door.send(REQUEST).await;
    let own = stream.local_addr().unwrap().to_string();
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&own), "{answer}");
}

/// A request under way is answered when the server stops; a silent connection is closed, a new one refused.
#[tokio::test]
async fn drains() {
    let door = Door::plain(Limits::default());
    let silent = TcpStream::connect(door.address).await.unwrap();
    let asking = door.send(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
    // The request has been taken when another one on a later connection is answered.
    assert!(rest(door.send(REQUEST).await).await.contains("200"));
    door.shutdown.close(Duration::from_secs(10)).await.unwrap();
    let answer = rest(asking).await;
    assert!(answer.contains("200") && answer.ends_with("HTTP/1.1"), "{answer}");
    assert!(rest(silent).await.is_empty());
    assert!(TcpStream::connect(door.address).await.is_err());
}

/// The preface of HTTP/2 gets HTTP/2's settings for an answer, in one piece or in two; other bytes get HTTP/1.1.
#[tokio::test]
async fn tells_protocols_apart() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let door = Door::plain(Limits::default());
    let mut stream = door.send(&PREFACE[..9]).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    stream.write_all(&PREFACE[9..]).await.unwrap();
    stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut frame = [0; 9];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut frame)).await.unwrap().unwrap();
    assert_eq!(frame[3], 4, "a SETTINGS frame: {frame:?}");
    let answer = rest(door.send(b"PRINT / NONSENSE\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
}
