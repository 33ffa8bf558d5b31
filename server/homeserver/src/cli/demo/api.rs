//! A client of the client-server API, as small as can be.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, bail};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client of the server at one port of this machine.
pub(super) struct Api {
    port: u16,
    token: String,
}

impl Api {
    /// A client that is logged in.
    pub(super) fn new(port: u16, token: String) -> Self {
        Self { port, token }
    }

    /// The access token.
    pub(super) fn token(&self) -> &str {
        &self.token
    }

    /// The answer to a request, which must be a success.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let asked = format!("{method} {path} on port {}", self.port);
        let answer = tokio::time::timeout(TIMEOUT, self.send(method, path, body)).await;
        answer.with_context(|| format!("{asked}: no answer within {TIMEOUT:?}"))?.context(asked)
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("localhost:{}", self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))?;
        let answer = async {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
            if !status.is_success() {
                bail!("{status} {}", String::from_utf8_lossy(&body));
            }
            Ok(serde_json::from_slice(&body)?)
        };
        // The connection works while the answer is waited for, and ends when it has come.
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = connection => {
                ended?;
                answer.await
            }
        }
    }
}
