use bytes::Bytes;
use myelin_process::config::Outbound;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use url::Url;

use super::{ANSWER_BYTES_MAX, DialError, Gateway as _, GatewayError, HttpGateways};

fn gateways(allow_private_addresses: bool) -> HttpGateways {
    HttpGateways::new(&Outbound { allow_private_addresses, accept_invalid_certificates: false }).unwrap()
}

/// Reads one request, head and body, and answers it.
async fn answer(stream: &mut TcpStream, answer: &str) -> String {
    let mut read = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let bytes = stream.read(&mut chunk).await.unwrap();
        read.extend_from_slice(&chunk[..bytes]);
        if bytes == 0 || read.ends_with(b"{}") {
            break;
        }
    }
    // A client that was refused may be gone.
    let _ = stream.write_all(answer.as_bytes()).await;
    String::from_utf8(read).unwrap()
}

fn with_body(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

async fn listener() -> (TcpListener, Url) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/_matrix/push/v1/notify?key=a").parse().unwrap();
    (listener, url)
}

/// A connection is used again, until the gateway closes it; then the request is repeated on a new one.
#[tokio::test]
async fn connections_are_used_again() {
    let (listener, url) = listener().await;
    let gateway = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        let head = answer(&mut first, &with_body("200 OK", "{\"rejected\":[]}")).await;
        answer(&mut first, &with_body("200 OK", "2")).await;
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        answer(&mut second, &with_body("200 OK", "3")).await;
        head
    });
    let gateways = gateways(true);
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(gateways.notify(&url, Bytes::from_static(b"{}")).await.unwrap());
    }
    assert_eq!(answers, [b"{\"rejected\":[]}".to_vec(), b"2".to_vec(), b"3".to_vec()]);
    let head = gateway.await.unwrap();
    assert!(head.starts_with("POST /_matrix/push/v1/notify?key=a HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("host: 127.0.0.1:{}\r\n", url.port().unwrap())), "{head}");
}

/// Errors, redirects and answers without an end are failures; a redirect leads nowhere.
#[tokio::test]
async fn bad_answers_are_failures() {
    let (listener, url) = listener().await;
    let too_large = with_body("200 OK", &"x".repeat(ANSWER_BYTES_MAX + 1));
    let redirect = format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n");
    let cases = [(with_body("502 Bad Gateway", ""), "error"), (redirect, "error"), (too_large, "too_large")];
    let gateways = gateways(true);
    for (text, label) in cases {
        let asking = gateways.notify(&url, Bytes::from_static(b"{}"));
        let answering = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, &text).await;
        };
        let (asked, ()) = tokio::join!(asking, answering);
        assert_eq!(asked.unwrap_err().label(), label, "{text:.40}");
        gateways.known.lock().clear();
    }
}

/// What is behind our own firewall is not reached, by whatever name.
#[tokio::test]
async fn private_addresses_are_not_asked() {
    let (_listener, url) = listener().await;
    let gateways = gateways(false);
    let port = url.port().unwrap();
    for host in ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"] {
        let url: Url = format!("http://{host}:{port}/_matrix/push/v1/notify").parse().unwrap();
        let refused = gateways.notify(&url, Bytes::from_static(b"{}")).await.unwrap_err();
        assert!(matches!(refused, GatewayError::Dial(DialError::Private(_))), "{host}: {refused}");
    }
}
