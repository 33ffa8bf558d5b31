//! How much of the requests of other servers is in memory and under way at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header::CONTENT_LENGTH};
use http_body_util::BodyExt as _;
use myelin_http::ApiError;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName, api::error::ErrorCode};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::{
    metrics::{BODY_BYTES, LIMITED, ORIGINS},
    transactions::Answers,
};

/// Requests of one server that are answered at the same time.
const REQUESTS_MAX: usize = 64;
/// Transactions of one server that are under way or wait for their turn: "The sending server must wait and retry for a
/// 200 OK response before sending a transaction with a different txnId", so more than a few are a server out of its mind.
const TRANSACTIONS_MAX: usize = 4;
/// Bytes of all bodies together, of which most are not verified yet.
const BODIES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// A body that is not complete by then is given up.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// When who was refused should come again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// What is under way for other servers, and what they were answered lately.
#[derive(Debug)]
pub struct Inbound {
    origins: Mutex<HashMap<OwnedServerName, Origin>>,
    bodies: Arc<Semaphore>,
    pub(crate) answers: Answers,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            origins: Mutex::default(),
            bodies: Arc::new(Semaphore::new(BODIES_BYTES_MAX)),
            answers: Answers::default(),
        }
    }
}

/// A server that has requests under way.
#[derive(Debug, Default)]
struct Origin {
    requests: usize,
    transactions: usize,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Inbound {
    /// Counts a request of a server until it is answered.
    pub(crate) fn admit(self: &Arc<Self>, origin: &ServerName) -> Result<Admission, ApiError> {
        let mut origins = self.origins.lock();
        let known = origins.entry(origin.to_owned()).or_default();
        if known.requests >= REQUESTS_MAX {
            return Err(limited("requests"));
        }
        known.requests += 1;
        ORIGINS.set(i64::try_from(origins.len()).unwrap_or(i64::MAX));
        Ok(Admission { inbound: Arc::clone(self), origin: origin.to_owned() })
    }

    /// Reads a body, and holds its bytes against the bound on all of them for as long as the [`Held`] lives.
    pub(crate) async fn read(&self, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Held, ApiError> {
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|announced| announced > bytes_max as u64) {
            return Err(too_large(bytes_max));
        }
        match tokio::time::timeout(BODY_TIME_MAX, self.collect(body, bytes_max)).await {
            Ok(read) => read,
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                ErrorCode::Unknown,
                "The request body did not arrive in time",
            )),
        }
    }

    async fn collect(&self, mut body: Body, bytes_max: usize) -> Result<Held, ApiError> {
        let mut held = Held { bytes: Bytes::new(), permits: Vec::new() };
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::new(StatusCode::BAD_REQUEST, ErrorCode::Unknown, "The request body ended early")
            })?;
            // Trailers are no business of ours.
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > bytes_max {
                return Err(too_large(bytes_max));
            }
            held.take(&self.bodies, data.len())?;
            bytes.extend_from_slice(&data);
        }
        held.bytes = bytes.freeze();
        Ok(held)
    }
}

fn too_large(bytes_max: usize) -> ApiError {
    ApiError::too_large(format!("The request body is over the limit of {bytes_max} bytes"))
}

fn limited(limit: &str) -> ApiError {
    LIMITED.with_label_values(&[limit]).inc();
    ApiError::limit_exceeded(RETRY_AFTER)
}

/// A body in memory.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) bytes: Bytes,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Held {
    fn take(&mut self, bodies: &Arc<Semaphore>, bytes: usize) -> Result<(), ApiError> {
        let count = u32::try_from(bytes).map_err(|_| limited("bodies"))?;
        let permit = Arc::clone(bodies).try_acquire_many_owned(count).map_err(|_| limited("bodies"))?;
        match self.permits.first_mut() {
            Some(first) => first.merge(permit),
            None => self.permits.push(permit),
        }
        BODY_BYTES.add(i64::from(count));
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let bytes: usize = self.permits.iter().map(OwnedSemaphorePermit::num_permits).sum();
        BODY_BYTES.sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// A request that is counted.
#[derive(Debug)]
pub(crate) struct Admission {
    inbound: Arc<Inbound>,
    origin: OwnedServerName,
}

impl Admission {
    /// Waits for the turn of a transaction: those of one server are taken one after the other.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, ApiError> {
        let (queued, turn) = {
            let mut origins = self.inbound.origins.lock();
            let known = origins.entry(self.origin.clone()).or_default();
            if known.transactions >= TRANSACTIONS_MAX {
                return Err(limited("transactions"));
            }
            known.transactions += 1;
            (Queued(self), Arc::clone(&known.turn))
        };
        Ok(Turn { _guard: turn.lock_owned().await, _queued: queued })
    }

    fn count(&self, change: impl FnOnce(&mut Origin)) {
        let mut origins = self.inbound.origins.lock();
        if let Some(known) = origins.get_mut(&self.origin) {
            change(known);
            if known.requests == 0 {
                origins.remove(&self.origin);
                ORIGINS.set(i64::try_from(origins.len()).unwrap_or(i64::MAX));
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.count(|known| known.requests = known.requests.saturating_sub(1));
    }
}

/// A transaction that waits or is under way.
struct Queued<'a>(&'a Admission);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.count(|known| known.transactions = known.transactions.saturating_sub(1));
    }
}

/// The right to take a transaction.
pub(crate) struct Turn<'a> {
    _guard: OwnedMutexGuard<()>,
    _queued: Queued<'a>,
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    /// One server cannot have everything under way; others are not held up, and nothing is remembered afterwards.
    #[tokio::test]
    async fn a_server_has_so_many_requests() {
        let inbound = Arc::new(Inbound::default());
        let mut admitted = Vec::new();
        for _ in 0..REQUESTS_MAX {
            admitted.push(inbound.admit(server_name!("a.org")).unwrap());
        }
        let refused = inbound.admit(server_name!("a.org")).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        inbound.admit(server_name!("b.org")).unwrap();
        admitted.pop();
        inbound.admit(server_name!("a.org")).unwrap();
        admitted.clear();
        assert!(inbound.origins.lock().is_empty());
    }

    /// Transactions of a server take turns, and only a few may wait.
    #[tokio::test]
    async fn transactions_take_turns() {
        let inbound = Arc::new(Inbound::default());
        let admission = inbound.admit(server_name!("a.org")).unwrap();
        let first = admission.turn().await.unwrap();
        let mut waiting = Vec::new();
        for _ in 1..TRANSACTIONS_MAX {
            let mut turn = Box::pin(admission.turn());
            assert!(futures_util::poll!(&mut turn).is_pending());
            waiting.push(turn);
        }
        assert_eq!(admission.turn().await.err().unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
        let other = inbound.admit(server_name!("b.org")).unwrap();
        other.turn().await.unwrap();
        drop(first);
        waiting.remove(0).await.unwrap();
        // One who gives up makes room.
        waiting.clear();
        admission.turn().await.unwrap();
    }

    /// What is announced to be too large is not read, what turns out to be so is not read to its end, and what does not
    /// come is not waited for; none of it stays in memory.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_never_end() {
        let inbound = Inbound::default();
        let chunk = || Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; 1024]));
        let announced = HeaderMap::from_iter([(CONTENT_LENGTH, "104857600".parse().unwrap())]);
        let unread = Body::from_stream(futures_util::stream::poll_fn(
            |_| -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> { panic!("it was looked at") },
        ));
        let refused = inbound.read(&announced, unread, 1024 * 1024).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let endless = Body::from_stream(futures_util::stream::repeat_with(chunk));
        let refused = inbound.read(&HeaderMap::new(), endless, 1024 * 1024).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        // A byte now and then, and none at all.
        let drops = futures_util::stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        for slow in
            [Body::from_stream(drops), Body::from_stream(futures_util::stream::pending::<std::io::Result<Bytes>>())]
        {
            let began = tokio::time::Instant::now();
            let refused = inbound.read(&HeaderMap::new(), slow, 1024 * 1024).await.unwrap_err();
            assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
            assert_eq!(began.elapsed().as_secs(), BODY_TIME_MAX.as_secs());
        }
        let broken = futures_util::stream::iter([chunk(), Err(std::io::Error::other("gone"))]);
        let refused = inbound.read(&HeaderMap::new(), Body::from_stream(broken), 1024 * 1024).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(inbound.bodies.available_permits(), BODIES_BYTES_MAX);
    }

    /// All bodies together are bounded, and their bytes are given back.
    #[tokio::test]
    async fn bodies_are_bounded() {
        let inbound = Inbound { bodies: Arc::new(Semaphore::new(10)), ..Inbound::default() };
        let headers = HeaderMap::new();
        let held = inbound.read(&headers, Body::from("123456"), 8).await.unwrap();
        assert_eq!(held.bytes, "123456");
        let refused = inbound.read(&headers, Body::from("12345"), 8).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        drop(held);
        inbound.read(&headers, Body::from("12345678"), 8).await.unwrap();
        let refused = inbound.read(&headers, Body::from("123456789"), 8).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(inbound.bodies.available_permits(), 10);
    }
}
