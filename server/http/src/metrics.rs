//! The metrics of this crate, in the default registry.

use std::sync::LazyLock;

use prometheus::{
    HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, register_histogram_vec, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

const REGISTERED: &str = "each metric is registered once, under a name of its own";

pub(crate) static REQUESTS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!(
        "myelin_http_requests_total",
        "Requests answered, by route, method and status (499: the client left before the answer)",
        &["route", "method", "status"]
    )
    .expect(REGISTERED)
});

pub(crate) static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    register_histogram_vec!(
        "myelin_http_request_duration_seconds",
        "Time from a request's headers to its answer's headers",
        &["route", "method"],
        vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]
    )
    .expect(REGISTERED)
});

pub(crate) static IN_FLIGHT: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_http_requests_in_flight", "Requests that are being answered").expect(REGISTERED)
});

pub(crate) static RATE_LIMITED: LazyLock<IntCounterVec> = LazyLock::new(|| {
    register_int_counter_vec!("myelin_http_rate_limited_total", "Requests refused by a rate limit", &["kind"])
        .expect(REGISTERED)
});

pub(crate) static RATE_LIMIT_KEYS: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    register_int_gauge_vec!(
        "myelin_http_rate_limit_keys",
        "Users and addresses that a rate limit remembers, when last swept",
        &["kind"]
    )
    .expect(REGISTERED)
});
