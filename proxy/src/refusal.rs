//! Short answers on connections that get nothing else.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

/// How long a client has to take an answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
/// What is read of a request that is not looked at.
const LINGER_BYTES: u64 = 64 * 1024;

/// Why a connection is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// All connections are in use.
    Full,
    /// The address has too many.
    Address,
    /// It speaks HTTP where TLS is spoken.
    PlainHttp,
}

impl Refusal {
    fn answer(self) -> String {
        let (status, more, text) = match self {
            Self::Full => (
                "503 Service Unavailable",
                "retry-after: 5\r\n",
                "The server has as many connections as it can take. Try again in some seconds.\n",
            ),
            Self::Address => {
                ("429 Too Many Requests", "retry-after: 10\r\n", "There are too many connections from your address.\n")
            }
            Self::PlainHttp => (
                "400 Bad Request",
                "",
                "This is an HTTP request, and this port speaks HTTPS: use https:// in the address.\n",
            ),
        };
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n{more}access-control-allow-origin: *\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{text}",
            text.len()
        )
    }

    /// Answers, waits a little for the client to read it, and closes.
    pub(crate) async fn tell(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let telling = async {
            stream.write_all(self.answer().as_bytes()).await?;
            stream.shutdown().await?;
            // Closing with bytes unread would reset the connection, and take the answer away from the client.
            let mut rest = stream.take(LINGER_BYTES);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        };
        match timeout(LINGER_TIME, telling).await {
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a connection that was refused is gone already"),
        }
    }
}
