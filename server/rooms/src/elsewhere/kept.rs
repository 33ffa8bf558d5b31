//! Answers that are good for a while.

use std::{
    hash::Hash,
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use quick_cache::{Weighter, sync::Cache};

use super::{ANSWERS, BYTES};

/// A value that takes some bytes of memory.
pub(crate) trait Weight {
    fn weight(&self) -> u64;
}

/// Answers by what was asked, bounded in bytes. Who asks for the same at the same time waits for one answer.
pub(crate) struct Kept<K, V> {
    what: &'static str,
    cache: Cache<K, Timed<V>, ByWeight>,
    /// What the metric says of this cache.
    shown: AtomicI64,
}

#[derive(Clone)]
struct Timed<V> {
    value: V,
    until: Instant,
}

#[derive(Clone, Debug)]
struct ByWeight;

impl<K, V: Weight> Weighter<K, Timed<V>> for ByWeight {
    fn weight(&self, _: &K, timed: &Timed<V>) -> u64 {
        timed.value.weight()
    }
}

impl<K, V> Kept<K, V>
where
    K: Clone + Eq + Hash,
    V: Clone + Weight,
{
    /// For about so many values; never more bytes than these.
    pub(crate) fn new(what: &'static str, count: usize, bytes_max: u64) -> Self {
        Self { what, cache: Cache::with_weighter(count, bytes_max, ByWeight), shown: AtomicI64::new(0) }
    }

    /// What is known, or is found out now, with how long it is good. An error is not kept.
    pub(crate) async fn get_or_ask<E>(
        &self,
        key: &K,
        ask: impl Future<Output = Result<(V, Duration), E>>,
    ) -> Result<V, E> {
        let now = Instant::now();
        self.cache.remove_if(key, |timed| timed.until <= now);
        let guard = match self.cache.get_value_or_guard_async(key).await {
            Ok(timed) => {
                ANSWERS.with_label_values(&[self.what, "memory"]).inc();
                return Ok(timed.value);
            }
            Err(guard) => guard,
        };
        let (value, lifetime) = super::asked(self.what, ask.await)?;
        // It may be too large to be kept.
        drop(guard.insert(Timed { value: value.clone(), until: Instant::now() + lifetime }));
        self.show_weight();
        Ok(value)
    }

    fn show_weight(&self) {
        let weight = i64::try_from(self.cache.weight()).unwrap_or(i64::MAX);
        BYTES.add(weight - self.shown.swap(weight, Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use super::*;

    impl Weight for u32 {
        fn weight(&self) -> u64 {
            100
        }
    }

    /// An answer is asked for once while it is good, an old one again, an error every time; the bound holds.
    #[tokio::test]
    async fn answers_are_kept_for_a_while() {
        let kept: Kept<u32, u32> = Kept::new("profile", 10, 1000);
        let asked = Cell::new(0);
        let ask = async |key: u32, seconds: u64| {
            let answer = async {
                asked.set(asked.get() + 1);
                Ok::<_, Infallible>((asked.get(), Duration::from_secs(seconds)))
            };
            kept.get_or_ask(&key, answer).await.unwrap()
        };
        assert_eq!((ask(1, 1000).await, ask(1, 1000).await), (1, 1));
        assert_eq!((ask(2, 0).await, ask(2, 1000).await, ask(2, 1000).await), (2, 3, 3));
        let failed = kept.get_or_ask(&3, async { Err::<(u32, Duration), _>("no") }).await;
        assert_eq!(failed, Err("no"));
        assert_eq!(ask(3, 1000).await, 4);
        for key in 4..100 {
            ask(key, 1000).await;
        }
        assert!(kept.cache.weight() <= 1000);
    }
}
