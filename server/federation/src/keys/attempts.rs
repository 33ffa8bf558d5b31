//! How often a server's keys are asked for.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::time::Instant;

use super::Source;

/// After an answer, the same server is not asked again for this long: "Requesting servers should limit how frequently
/// they query for certificates to avoid flooding a server with requests."
const AFTER_ANSWER: Duration = Duration::from_secs(60);
/// After the first failure; it doubles with each further one.
const AFTER_FAILURE: Duration = Duration::from_secs(30);
/// The longest time between two attempts.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Servers that are remembered.
const SERVERS_MAX: usize = 50_000;

struct Attempt {
    failures: u32,
    next: Instant,
}

/// When servers were asked last.
#[derive(Default)]
pub(super) struct Attempts(Mutex<HashMap<(OwnedServerName, bool), Attempt>>);

impl Attempts {
    /// Whether the keys of a server may be asked for now.
    pub(super) fn may_ask(&self, server: &ServerName, source: Source) -> bool {
        let attempts = self.0.lock();
        attempts.get(&key(server, source)).is_none_or(|attempt| attempt.next <= Instant::now())
    }

    pub(super) fn note(&self, server: &ServerName, source: Source, has_answered: bool) {
        let mut attempts = self.0.lock();
        let now = Instant::now();
        if attempts.len() >= SERVERS_MAX {
            attempts.retain(|_, attempt| attempt.next > now);
        }
        if attempts.len() >= SERVERS_MAX {
            // Someone makes up names by the thousand; real ones are asked once more.
            attempts.clear();
        }
        let attempt = attempts.entry(key(server, source)).or_insert(Attempt { failures: 0, next: now });
        if has_answered {
            *attempt = Attempt { failures: 0, next: now + AFTER_ANSWER };
        } else {
            attempt.next = now + LONGEST.min(AFTER_FAILURE.saturating_mul(1 << attempt.failures.min(10)));
            attempt.failures = attempt.failures.saturating_add(1);
        }
    }

    pub(super) fn sweep(&self) {
        let now = Instant::now();
        self.0.lock().retain(|_, attempt| attempt.next + LONGEST > now);
    }
}

fn key(server: &ServerName, source: Source) -> (OwnedServerName, bool) {
    (server.to_owned(), source == Source::Notary)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ruma::server_name;
    use tokio::time::advance;

    use super::{Attempts, Source};

    /// Failures put the next attempt off for longer each time, an answer for a minute; sources are apart.
    #[tokio::test(start_paused = true)]
    async fn attempts_are_put_off() {
        let (attempts, server) = (Attempts::default(), server_name!("a.example"));
        assert!(attempts.may_ask(server, Source::Server));
        for seconds in [30, 60, 120] {
            attempts.note(server, Source::Server, false);
            assert!(attempts.may_ask(server, Source::Notary));
            advance(Duration::from_secs(seconds - 1)).await;
            assert!(!attempts.may_ask(server, Source::Server));
            advance(Duration::from_secs(1)).await;
            assert!(attempts.may_ask(server, Source::Server));
        }
        attempts.note(server, Source::Server, true);
        assert!(!attempts.may_ask(server, Source::Server));
        advance(Duration::from_secs(60)).await;
        assert!(attempts.may_ask(server, Source::Server));
        attempts.note(server, Source::Server, false);
        advance(Duration::from_secs(30)).await;
        assert!(attempts.may_ask(server, Source::Server));
        advance(Duration::from_secs(7200)).await;
        attempts.sweep();
        assert!(attempts.0.lock().is_empty());
    }
}
