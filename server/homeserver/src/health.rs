//! GET /health/live, GET /health/ready
//!
//! Live: the process answers. Ready: it can do its work, and is not about to end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use http::{
    StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use myelin_process::shutdown::Shutdown;
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

/// How long one probe may take.
const PROBE_TIME: Duration = Duration::from_secs(3);
/// How long the outcome of probes stands in for new ones, so that asking often costs nothing.
const REUSE_TIME: Duration = Duration::from_millis(500);

/// Looks whether something that the server needs is there; an error is for the logs.
pub(crate) type Probe = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// The health of the server.
#[derive(Clone)]
pub(crate) struct Health {
    shutdown: Shutdown,
    probes: Arc<Vec<(&'static str, Probe)>>,
    latest: Arc<Mutex<Option<(Instant, Outcome)>>>,
}

/// Which of the things that the server needs are there.
#[derive(Clone, Debug)]
struct Outcome(Vec<(&'static str, bool)>);

impl Health {
    /// A server that needs what `probes` look for, each under its name.
    pub(crate) fn new(shutdown: Shutdown, probes: Vec<(&'static str, Probe)>) -> Self {
        Self { shutdown, probes: Arc::new(probes), latest: Arc::default() }
    }

    /// Whether the server can do its work.
    pub(crate) async fn is_ready(&self) -> bool {
        !self.shutdown.is_draining() && self.probe().await.0.iter().all(|(_, there)| *there)
    }

    async fn probe(&self) -> Outcome {
        // Whoever comes while probes are under way waits for their outcome.
        let mut latest = self.latest.lock().await;
        if let Some((at, outcome)) = &*latest
            && at.elapsed() < REUSE_TIME
        {
            return outcome.clone();
        }
        let mut outcome = Vec::with_capacity(self.probes.len());
        for (name, probe) in self.probes.iter() {
            let there = match tokio::time::timeout(PROBE_TIME, probe()).await {
                Ok(Ok(())) => true,
                Ok(Err(error)) => {
                    tracing::warn!("not ready: {name}: {error:#}");
                    false
                }
                Err(_) => {
                    tracing::warn!("not ready: {name}: no answer within {PROBE_TIME:?}");
                    false
                }
            };
            outcome.push((*name, there));
        }
        let outcome = Outcome(outcome);
        *latest = Some((Instant::now(), outcome.clone()));
        outcome
    }
}

/// The two addresses.
pub(crate) fn routes(health: Health) -> Router {
    Router::new().route("/health/live", get(live)).route("/health/ready", get(ready)).with_state(health)
}

async fn live() -> Response {
    answer(StatusCode::OK, &json!({ "status": "live" }))
}

async fn ready(State(health): State<Health>) -> Response {
    if health.shutdown.is_draining() {
        return answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "status": "stopping" }));
    }
    let Outcome(probed) = health.probe().await;
    let all = probed.iter().all(|(_, there)| *there);
    let (code, status) = if all { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready") };
    let checks: Map<String, Value> =
        probed.into_iter().map(|(name, there)| (name.to_owned(), if there { "ok" } else { "failed" }.into())).collect();
    answer(code, &json!({ "status": status, "checks": checks }))
}

fn answer(status: StatusCode, body: &Value) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use axum::body::Body;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt as _;
    use myelin_process::shutdown::Shutdown;
    use tower::ServiceExt as _;

    use super::{Health, REUSE_TIME};

    async fn ask(health: &Health, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = super::routes(health.clone()).oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Readiness follows the probes and tells nobody outside why one failed; liveness does not depend on them.
    #[tokio::test]
    async fn readiness_follows_the_probes() {
        let there = Arc::new(AtomicBool::new(true));
        let probe = Arc::clone(&there);
        let probe: super::Probe = Box::new(move || {
            let there = probe.load(Ordering::SeqCst);
            Box::pin(async move { if there { Ok(()) } else { Err(anyhow::anyhow!("10.1.2.3 is gone")) } })
        });
        let health = Health::new(Shutdown::new(), vec![("database", probe)]);
        assert_eq!(ask(&health, "/health/ready").await.0, StatusCode::OK);
        there.store(false, Ordering::SeqCst);
        tokio::time::sleep(REUSE_TIME).await;
        let (status, body) = ask(&health, "/health/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("database") && !body.contains("10.1.2.3"), "{body}");
        assert_eq!(ask(&health, "/health/live").await.0, StatusCode::OK);
    }

    /// A server that is about to end is not ready, so that nobody sends it more.
    #[tokio::test]
    async fn a_draining_server_is_not_ready() {
        let shutdown = Shutdown::new();
        let health = Health::new(shutdown.clone(), Vec::new());
        assert!(health.is_ready().await);
        shutdown.drain();
        assert!(!health.is_ready().await);
        assert_eq!(ask(&health, "/health/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }

    /// Many who ask at once cause one probe.
    #[tokio::test]
    async fn asking_often_costs_nothing() {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let probe: super::Probe = Box::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            Box::pin(async {
                tokio::task::yield_now().await;
                Ok(())
            })
        });
        let health = Health::new(Shutdown::new(), vec![("database", probe)]);
        futures_util::future::join_all((0..20).map(|_| health.is_ready())).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }
}
