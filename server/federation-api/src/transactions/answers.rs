//! What transactions were answered with, for those who did not hear it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quick_cache::{
    DefaultHashBuilder, Weighter,
    sync::{Cache, DefaultLifecycle, PlaceholderGuard},
};
use ruma::{OwnedServerName, OwnedTransactionId, ServerName, TransactionId};

/// Bytes of all answers together. Events and to-device messages know for themselves that they came before; this saves
/// work.
const BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Answers in memory, about.
const COUNT: usize = 16 * 1024;
/// An answer is not one to a later transaction of a server that counts from the beginning again.
const AGE_MAX: Duration = Duration::from_secs(3600);

type Key = (OwnedServerName, OwnedTransactionId);

#[derive(Clone, Debug)]
struct Answer {
    json: Bytes,
    at: Instant,
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Key, Answer> for ByBytes {
    fn weight(&self, (origin, id): &Key, answer: &Answer) -> u64 {
        (origin.as_str().len() + id.as_str().len() + answer.json.len() + 128) as u64
    }
}

/// The answers by origin and transaction id.
pub(crate) struct Answers(Cache<Key, Answer, ByBytes>);

/// The right to say what a transaction is answered with. Whoever asks in the meantime waits; when it is dropped, the next
/// one gets it.
pub(crate) struct Place<'a>(
    PlaceholderGuard<'a, Key, Answer, ByBytes, DefaultHashBuilder, DefaultLifecycle<Key, Answer>>,
);

impl Default for Answers {
    fn default() -> Self {
        Self(Cache::with_weighter(COUNT, BYTES_MAX, ByBytes))
    }
}

impl std::fmt::Debug for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answers").field("bytes", &self.0.weight()).finish()
    }
}

impl Answers {
    /// The answer, or the place for it.
    pub(crate) async fn find(&self, origin: &ServerName, id: &TransactionId) -> Result<Bytes, Place<'_>> {
        let key = (origin.to_owned(), id.to_owned());
        loop {
            match self.0.get_value_or_guard_async(&key).await {
                Ok(answer) if answer.at.elapsed() < AGE_MAX => return Ok(answer.json),
                Ok(_) => drop(self.0.remove(&key)),
                Err(guard) => return Err(Place(guard)),
            }
        }
    }
}

impl Place<'_> {
    /// Puts the answer there.
    pub(crate) fn put(self, json: Bytes) {
        // It fails only where somebody else has put one there.
        drop(self.0.insert(Answer { json, at: Instant::now() }));
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    /// Those who ask while a transaction is under way get its answer, or its place when it comes to nothing; origins do
    /// not share ids; the memory is bounded.
    #[tokio::test]
    async fn one_answer_a_transaction() {
        let answers = Answers::default();
        let (a, b): (&ServerName, &ServerName) = (server_name!("a.org"), server_name!("b.org"));
        let first = answers.find(a, "1".into()).await.err().unwrap();
        let mut second = Box::pin(answers.find(a, "1".into()));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        let second = second.await.err().unwrap();
        let mut third = Box::pin(answers.find(a, "1".into()));
        assert!(futures_util::poll!(&mut third).is_pending());
        second.put(Bytes::from_static(b"{}"));
        assert_eq!(third.await.ok().unwrap(), "{}");
        assert!(answers.find(b, "1".into()).await.is_err());

        for id in 0..10_000 {
            let id = ruma::OwnedTransactionId::from(id.to_string());
            if let Err(place) = answers.find(a, &id).await {
                place.put(Bytes::from(vec![b' '; 4096]));
            }
        }
        assert!(answers.0.weight() <= BYTES_MAX, "{}", answers.0.weight());
    }
}
