//! Whose connection it is.

use myelin_proxy::{Limits, Listening, Manners, TrustedProxies};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Door, certificate, client, connect, get_http1, rest};

fn behind(trusted: &str, proxy_protocol: bool, limits: Limits) -> Door {
    let trusted = TrustedProxies { networks: vec![trusted.parse().unwrap()], ..TrustedProxies::default() };
    let manners = Manners { trusted, ..Manners::default() };
    Door::open(limits, |socket| Listening { proxy_protocol, manners, ..Listening::new(socket) })
}

/// A request with X-Forwarded-For.
const FORWARDED: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.9\r\nconnection: close\r\n\r\n";

/// What a trusted proxy says about the client counts, and what anybody else says does not.
#[tokio::test]
async fn forwarded_for() {
    let door = behind("127.0.0.0/8", false, Limits::default());
    assert!(rest(door.send(FORWARDED).await).await.contains("192.0.2.9:0"));
    let door = behind("10.0.0.0/8", false, Limits::default());
    assert!(rest(door.send(FORWARDED).await).await.contains("127.0.0.1:"));
}

/// The address of the PROXY protocol counts, of both versions, in front of plain HTTP.
#[tokio::test]
async fn proxy_protocol() {
    let door = behind("127.0.0.1", true, Limits::default());
    let one = [b"PROXY TCP4 192.0.2.7 10.0.0.1 56324 80\r\n", FORWARDED].concat();
    // The client behind the balancer is not trusted: its own header is not believed.
    assert!(rest(door.send(&one).await).await.contains("192.0.2.7:56324"));
    let two = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\xdc\x04\0\x50", FORWARDED].concat();
    assert!(rest(door.send(&two).await).await.contains("192.0.2.7:56324"));
    assert!(rest(door.send(FORWARDED).await).await.is_empty(), "there is no header");
    let door = behind("10.0.0.0/8", true, Limits::default());
    assert!(rest(door.send(&one).await).await.is_empty(), "the sender is not trusted");
}

/// The header stands before the handshake of TLS.
#[tokio::test]
async fn proxy_protocol_before_tls() {
    let own = certificate();
    let tls = myelin_proxy::Tls::new(myelin_proxy::Certificates::new(own.clone())).unwrap();
    let trusted = TrustedProxies { networks: vec!["127.0.0.1".parse().unwrap()], ..TrustedProxies::default() };
    let manners = Manners { trusted, ..Manners::default() };
    let door = Door::open(Limits::default(), |socket| Listening {
        tls: Some(tls),
        proxy_protocol: true,
        manners,
        ..Listening::new(socket)
    });
    let mut stream = tokio::net::TcpStream::connect(door.address).await.unwrap();
    stream.write_all(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n").await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = client(&[&own], &["http/1.1"]).connect(name, stream).await.unwrap();
    assert!(get_http1(stream, "/").await.unwrap().1.contains("[2001:db8::7]:4711"));
    // Without it there is no handshake.
    assert!(connect(&client(&[&own], &[]), door.address).await.is_err());
}

/// The limit on connections of one address counts clients, not the balancer.
#[tokio::test]
async fn limits_count_clients() {
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let door = behind("127.0.0.1", true, limits);
    let ask = async |address: &str, path: &str| {
        let bytes = format!(
            "PROXY TCP4 {address} 10.0.0.1 56324 80\r\nGET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        );
        door.send(bytes.as_bytes()).await
    };
    let waiting = [ask("192.0.2.1", "/wait").await, ask("192.0.2.1", "/wait").await];
    crate::harness::eventually("the third is refused", async || {
        rest(ask("192.0.2.1", "/").await).await.starts_with("HTTP/1.1 429")
    })
    .await;
    assert!(rest(ask("192.0.2.2", "/").await).await.starts_with("HTTP/1.1 200"));
    drop(waiting);
    crate::harness::eventually("places come back", async || {
        rest(ask("192.0.2.1", "/").await).await.starts_with("HTTP/1.1 200")
    })
    .await;
}
