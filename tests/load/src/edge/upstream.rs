//! The server behind front doors: it answers every request alike, and does nothing else.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 39\r\n\r\n{\"versions\":[\"v1.12\",\"v1.13\",\"v1.14\"]} ";
/// The longest head of a request.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Answers at `address` until the process ends.
pub(crate) async fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    answer_all(listener).await
}

pub(super) async fn answer_all(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accept a connection")?;
        tokio::spawn(async move {
            // Whoever measures sees that there is no answer.
            let _ = answer(stream).await;
        });
    }
}

/// Answers each head; no request here has a body.
async fn answer(mut stream: TcpStream) -> anyhow::Result<()> {
    const END: &[u8] = b"\r\n\r\n";
    stream.set_nodelay(true)?;
    let mut read = Vec::new();
    while read.len() <= HEAD_BYTES_MAX && stream.read_buf(&mut read).await? > 0 {
        while let Some(end) = read.windows(END.len()).position(|window| window == END) {
            read.drain(..end + END.len());
            stream.write_all(ANSWER).await?;
        }
    }
    Ok(())
}
