//! Percentiles of measured delays.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A summary of many delays, in milliseconds, by the nearest-rank definition: `p95` is the smallest measured value
/// that at least 95 % of all values do not exceed, so every figure is a delay that really happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How many delays were summed up.
    pub(crate) count: usize,
    /// The arithmetic mean.
    pub(crate) mean_ms: f64,
    /// The median.
    pub(crate) p50_ms: f64,
    /// The 95th percentile.
    pub(crate) p95_ms: f64,
    /// The 99th percentile.
    pub(crate) p99_ms: f64,
    /// The longest delay.
    pub(crate) max_ms: f64,
}

impl Summary {
    /// Sums up `delays`, in any order; all figures are zero when there are none.
    pub(crate) fn of(delays: &[Duration]) -> Self {
        let mut sorted: Vec<Duration> = delays.to_vec();
        sorted.sort_unstable();
        let Some(longest) = sorted.last() else {
            return Self::default();
        };
        let total: Duration = sorted.iter().sum();
        Self {
            count: sorted.len(),
            mean_ms: milliseconds(total) / sorted.len() as f64,
            p50_ms: milliseconds(nearest_rank(&sorted, 50)),
            p95_ms: milliseconds(nearest_rank(&sorted, 95)),
            p99_ms: milliseconds(nearest_rank(&sorted, 99)),
            max_ms: milliseconds(*longest),
        }
    }
}

/// The `percent`th percentile of a sorted list by nearest rank; zero of an empty list.
fn nearest_rank(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// A duration as milliseconds with a fraction.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(milliseconds: impl IntoIterator<Item = u64>) -> Vec<Duration> {
        milliseconds.into_iter().map(Duration::from_millis).collect()
    }

    /// Of 1 to 100 ms, each percentile is its own number, whatever order they came in.
    #[test]
    fn percentiles_of_a_hundred_are_the_ranks() {
        let summary = Summary::of(&delays((1..=100).rev()));
        assert_eq!((summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms), (50.0, 95.0, 99.0, 100.0));
        assert_eq!(summary.mean_ms, 50.5);
        assert_eq!(summary.count, 100);
    }

    /// The rank is rounded up: the median of four is the second, and the 95th percentile of few is the longest.
    #[test]
    fn ranks_of_few_values_round_up() {
        let summary = Summary::of(&delays([40, 10, 30, 20]));
        assert_eq!((summary.p50_ms, summary.p95_ms, summary.p99_ms), (20.0, 40.0, 40.0));
    }

    /// One outlier in a hundred shows in the maximum, and not below.
    #[test]
    fn one_outlier_in_a_hundred_is_beyond_p99() {
        let mut values = vec![5; 99];
        values.push(9_000);
        let summary = Summary::of(&delays(values));
        assert_eq!((summary.p99_ms, summary.max_ms), (5.0, 9_000.0));
    }

    /// One delay is every percentile; none gives zeroes rather than a panic.
    #[test]
    fn one_and_none() {
        let one = Summary::of(&delays([7]));
        assert_eq!((one.p50_ms, one.p95_ms, one.p99_ms, one.max_ms), (7.0, 7.0, 7.0, 7.0));
        assert_eq!(Summary::of(&[]), Summary::default());
    }
}
