//! Metrics, in the registry of the process, and their text for Prometheus.
//!
//! A crate declares each of its metrics as a static beside the code that counts, in one line:
//!
//! ```
//! use std::sync::LazyLock;
//! use myelin_process::metrics::{self, IntCounter, Histogram};
//!
//! static EVENTS: LazyLock<IntCounter> = metrics::counter!("myelin_events_total", "Events written.");
//! static COMMIT: LazyLock<Histogram> = metrics::seconds!("myelin_commit_seconds", "Time of a commit.");
//!
//! EVENTS.inc();
//! let _timer = COMMIT.start_timer();
//! ```
//!
//! A name begins with `myelin_` and ends with its unit: `_total` for a counter, `_seconds`, `_bytes`. A metric shows
//! from its first use on; [`LazyLock::force`](std::sync::LazyLock::force) at start makes it show at once. Labels are
//! few and have a bounded set of values: routes and kinds, never users or rooms.

use std::sync::{LazyLock, Once};

pub use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, core::Collector,
};
use prometheus::{HistogramOpts, Opts, TextEncoder};

/// Upper bounds of the buckets of durations, in seconds: a fast request to a long poll.
pub const SECONDS: &[f64] =
    &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Upper bounds of the buckets of counts, such as the size of a batch.
pub const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];
/// The media type of what [`render`] returns.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `LazyLock<IntCounter>`: `counter!(name, help)`, or `LazyLock<IntCounterVec>`: `counter!(name, help, labels)`.
#[macro_export]
#[doc(hidden)]
macro_rules! __counter {
    ($name:literal, $help:literal) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::counter_metric($name, $help))
    };
    ($name:literal, $help:literal, $labels:expr) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::counter_family($name, $help, &$labels))
    };
}

/// `LazyLock<IntGauge>`: `gauge!(name, help)`, or `LazyLock<IntGaugeVec>`: `gauge!(name, help, labels)`.
#[macro_export]
#[doc(hidden)]
macro_rules! __gauge {
    ($name:literal, $help:literal) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::gauge_metric($name, $help))
    };
    ($name:literal, $help:literal, $labels:expr) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::gauge_family($name, $help, &$labels))
    };
}

/// `LazyLock<Histogram>` of seconds: `seconds!(name, help)`, or `LazyLock<HistogramVec>`: `seconds!(name, help, labels)`.
#[macro_export]
#[doc(hidden)]
macro_rules! __seconds {
    ($name:literal, $help:literal) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::histogram_metric($name, $help, $crate::metrics::SECONDS))
    };
    ($name:literal, $help:literal, $labels:expr) => {
        ::std::sync::LazyLock::new(|| {
            $crate::metrics::histogram_family($name, $help, $crate::metrics::SECONDS, &$labels)
        })
    };
}

/// `LazyLock<Histogram>` of counts or sizes: `sizes!(name, help)` with [`COUNTS`], or `sizes!(name, help, buckets)`.
#[macro_export]
#[doc(hidden)]
macro_rules! __sizes {
    ($name:literal, $help:literal) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::histogram_metric($name, $help, $crate::metrics::COUNTS))
    };
    ($name:literal, $help:literal, $buckets:expr) => {
        ::std::sync::LazyLock::new(|| $crate::metrics::histogram_metric($name, $help, $buckets))
    };
}

pub use crate::{__counter as counter, __gauge as gauge, __seconds as seconds, __sizes as sizes};

/// What every one of these functions asks of its caller, in one sentence for the panic that ends a wrong program.
const DECLARATION: &str = "a metric's name and labels are literals of the program, and well formed";

/// A counter in the registry of the process. Use [`counter!`].
#[must_use]
pub fn counter_metric(name: &str, help: &str) -> IntCounter {
    registered(IntCounter::new(name, help).expect(DECLARATION))
}

/// Counters that differ by labels. Use [`counter!`].
#[must_use]
pub fn counter_family(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    registered(IntCounterVec::new(Opts::new(name, help), labels).expect(DECLARATION))
}

/// A gauge in the registry of the process. Use [`gauge!`].
#[must_use]
pub fn gauge_metric(name: &str, help: &str) -> IntGauge {
    registered(IntGauge::new(name, help).expect(DECLARATION))
}

/// Gauges that differ by labels. Use [`gauge!`].
#[must_use]
pub fn gauge_family(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    registered(IntGaugeVec::new(Opts::new(name, help), labels).expect(DECLARATION))
}

/// A histogram in the registry of the process. Use [`seconds!`] or [`sizes!`].
#[must_use]
pub fn histogram_metric(name: &str, help: &str, buckets: &[f64]) -> Histogram {
    registered(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())).expect(DECLARATION))
}

/// Histograms that differ by labels. Use [`seconds!`].
#[must_use]
pub fn histogram_family(name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    registered(HistogramVec::new(options, labels).expect(DECLARATION))
}

/// Puts a metric into the registry. Two of one name are a mistake that must not end a running server: the second
/// one counts, and does not show.
fn registered<C: Collector + Clone + 'static>(metric: C) -> C {
    if let Err(error) = prometheus::register(Box::new(metric.clone())) {
        let name = metric.desc().first().map_or_else(String::new, |desc| desc.fq_name.clone());
        tracing::error!(metric = name, %error, "the metric {name} is declared twice");
        debug_assert!(false, "the metric {name} is declared twice: {error}");
    }
    metric
}

static JEMALLOC: LazyLock<IntGaugeVec> = gauge!(
    "myelin_jemalloc_bytes",
    "Memory by its state in the allocator: allocated by the program; active, in pages that hold allocations; \
     resident, in physical memory; mapped, in the address space; retained, given back but still mapped; metadata, of \
     the allocator itself.",
    ["state"]
);
static BUILD: LazyLock<IntGaugeVec> = gauge!("myelin_build_info", "Always 1; the version is its label.", ["version"]);

/// All metrics of the process, in the text format of Prometheus. Its media type is [`CONTENT_TYPE`].
#[must_use]
pub fn render() -> String {
    static BUILD_KNOWN: Once = Once::new();
    BUILD_KNOWN.call_once(|| BUILD.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1));
    if let Err(error) = read_jemalloc() {
        tracing::debug!(%error, "the allocator gives no figures");
    }
    let mut text = String::new();
    // The encoder fails on a metric without a name or samples, which the registry does not gather.
    if let Err(error) = TextEncoder::new().encode_utf8(&prometheus::gather(), &mut text) {
        tracing::error!(%error, "some metrics cannot be written");
    }
    text
}

fn read_jemalloc() -> Result<(), tikv_jemalloc_ctl::Error> {
    use tikv_jemalloc_ctl::{epoch, stats};

    // The figures are those of the moment when the epoch was last advanced.
    epoch::advance()?;
    let states = [
        ("allocated", stats::allocated::read()?),
        ("active", stats::active::read()?),
        ("resident", stats::resident::read()?),
        ("mapped", stats::mapped::read()?),
        ("retained", stats::retained::read()?),
        ("metadata", stats::metadata::read()?),
    ];
    for (state, bytes) in states {
        JEMALLOC.with_label_values(&[state]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

    static COUNTER: LazyLock<IntCounter> = super::counter!("myelin_test_total", "A test.");
    static FAMILY: LazyLock<IntCounterVec> = super::counter!("myelin_test_kinds_total", "A test.", ["kind"]);
    static GAUGE: LazyLock<IntGauge> = super::gauge!("myelin_test_waiting", "A test.");
    static SECONDS: LazyLock<Histogram> = super::seconds!("myelin_test_seconds", "A test.");
    static ROUTES: LazyLock<HistogramVec> = super::seconds!("myelin_test_route_seconds", "A test.", ["route"]);
    static SIZES: LazyLock<Histogram> = super::sizes!("myelin_test_batch", "A test.");

    /// What was declared and used is in the text, with its labels and buckets.
    #[test]
    fn shows_what_was_counted() {
        COUNTER.inc_by(3);
        FAMILY.with_label_values(&["a"]).inc();
        GAUGE.set(7);
        SECONDS.observe(0.3);
        ROUTES.with_label_values(&["/x"]).observe(0.004);
        SIZES.observe(5.0);
        let text = super::render();
        for line in [
            "myelin_test_total 3",
            "myelin_test_kinds_total{kind=\"a\"} 1",
            "myelin_test_waiting 7",
            "myelin_test_seconds_bucket{le=\"0.25\"} 0",
            "myelin_test_seconds_bucket{le=\"0.5\"} 1",
            "myelin_test_route_seconds_count{route=\"/x\"} 1",
            "myelin_test_batch_bucket{le=\"4\"} 0",
            "myelin_test_batch_bucket{le=\"8\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    /// The process describes itself: version, memory, open files and their limit.
    #[test]
    fn shows_the_process() {
        let text = super::render();
        let version = format!("myelin_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
        for start in [
            version.as_str(),
            "process_open_fds ",
            "process_max_fds ",
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "myelin_jemalloc_bytes{state=\"allocated\"} ",
            "myelin_jemalloc_bytes{state=\"resident\"} ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(start)), "{start} is not in\n{text}");
        }
    }
}
