//! HTTP to other servers: connections and what goes over them.

mod body;
mod dial;
mod pool;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::Full;
use tokio::sync::OwnedSemaphorePermit;

pub(crate) use self::{
    body::{Budget, read},
    dial::{DialError, Dialer, Endpoint, Host},
    pool::Pool,
};

/// What we call ourselves.
pub(crate) const USER_AGENT: &str = concat!("Myelin/", env!("CARGO_PKG_VERSION"));

pub(crate) type RequestBody = Full<Bytes>;

/// The bounds of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For all of it: waiting for a connection, asking, and reading the answer.
    pub deadline: Duration,
    /// Bytes of the answer's body.
    pub answer_bytes_max: usize,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Memory for large answers is shared; this share is given back with the answer.
    pub(crate) _share: Option<OwnedSemaphorePermit>,
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection failed: {}", chain(.0.as_ref()))]
    Connection(Arc<hyper::Error>),
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("it stopped in the middle of its answer")]
    Stalled,
    #[error("its answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("too many requests are on their way to it")]
    Crowded,
}

impl From<hyper::Error> for HttpError {
    fn from(error: hyper::Error) -> Self {
        Self::Connection(Arc::new(error))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
