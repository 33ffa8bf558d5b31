//! Which servers did not answer lately.

use std::{collections::HashMap, sync::LazyLock, time::Duration};

use myelin_process::metrics::{self, IntGauge};
use parking_lot::Mutex;
use rand::Rng as _;
use ruma::{OwnedServerName, ServerName};
use tokio::time::Instant;

static BACKING_OFF: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_federation_backing_off_servers",
    "Servers that failed lately, so that they are asked less often, since they were heard of last."
);

/// The wait after the first failure; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(15);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Failing servers that are remembered. Beyond that, those that failed first are asked as if they had not.
const SERVERS_MAX: usize = 20_000;

/// How long a request lets itself be put off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as the server is left alone.
    Patient,
    /// A user waits for it: one try a minute is allowed.
    User,
    /// The caller keeps its own account.
    None,
}

/// The longest time that a user is put off.
const USER_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Failing {
    failures: u32,
    since: Instant,
    until: Instant,
}

/// The servers that failed lately.
#[derive(Default)]
pub(crate) struct Backoff(Mutex<HashMap<OwnedServerName, Failing>>);

impl Backoff {
    /// How long a server is still to be left alone.
    pub(crate) fn wait(&self, server: &ServerName, patience: Patience) -> Option<Duration> {
        let failing = *self.0.lock().get(server)?;
        let until = match patience {
            Patience::Patient => failing.until,
            Patience::User => failing.until.min(failing.since + USER_MAX),
            Patience::None => return None,
        };
        until.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero())
    }

    /// Notes that a request that began at `began` failed.
    pub(crate) fn failed(&self, server: &ServerName, began: Instant) {
        let mut servers = self.0.lock();
        let now = Instant::now();
        let failures = match servers.get(server) {
            // It was under way while another one failed: the same outage.
            Some(failing) if began < failing.since => return,
            Some(failing) => failing.failures.saturating_add(1),
            None => 1,
        };
        if servers.len() >= SERVERS_MAX && !servers.contains_key(server) {
            forget_some(&mut servers, now);
        }
        let wait = jittered(LONGEST.min(FIRST.saturating_mul(1 << (failures - 1).min(16))));
        servers.insert(server.to_owned(), Failing { failures, since: now, until: now + wait });
        BACKING_OFF.set(i64::try_from(servers.len()).unwrap_or(i64::MAX));
    }

    /// Notes that a server answers. True if it had failed before.
    pub(crate) fn succeeded(&self, server: &ServerName) -> bool {
        let mut servers = self.0.lock();
        let had_failed = servers.remove(server).is_some();
        if had_failed {
            BACKING_OFF.set(i64::try_from(servers.len()).unwrap_or(i64::MAX));
        }
        had_failed
    }

    /// Forgets those whose wait was over long ago.
    pub(crate) fn sweep(&self) {
        let mut servers = self.0.lock();
        let now = Instant::now();
        servers.retain(|_, failing| failing.until + LONGEST > now);
        BACKING_OFF.set(i64::try_from(servers.len()).unwrap_or(i64::MAX));
    }
}

/// Makes room: those whose wait is over, else the older half.
fn forget_some(servers: &mut HashMap<OwnedServerName, Failing>, now: Instant) {
    servers.retain(|_, failing| failing.until > now);
    if servers.len() >= SERVERS_MAX {
        let mut times: Vec<Instant> = servers.values().map(|failing| failing.since).collect();
        let middle = times.len() / 2;
        let (_, middle, _) = times.select_nth_unstable(middle);
        let middle = *middle;
        servers.retain(|_, failing| failing.since > middle);
    }
}

/// Within a quarter of it, so that not all come back at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.75..=1.25))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ruma::{ServerName, server_name};
    use tokio::time::{Instant, advance};

    use super::{Backoff, LONGEST, Patience, SERVERS_MAX};

    /// The wait grows with each failure up to an hour, and ends when the server is heard of.
    #[tokio::test(start_paused = true)]
    async fn waits_grow() {
        let (backoff, server) = (Backoff::default(), server_name!("a.example"));
        assert_eq!(backoff.wait(server, Patience::Patient), None);
        for expected in [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600] {
            backoff.failed(server, Instant::now());
            let wait = backoff.wait(server, Patience::Patient).unwrap();
            let middle = Duration::from_secs(expected);
            assert!(wait >= middle.mul_f64(0.75) && wait <= middle.mul_f64(1.25), "{wait:?} for {expected}");
            assert!(backoff.wait(server, Patience::User).unwrap() <= Duration::from_secs(60));
            assert_eq!(backoff.wait(server, Patience::None), None);
            advance(wait).await;
            assert_eq!(backoff.wait(server, Patience::Patient), None);
        }
        assert!(backoff.succeeded(server) && !backoff.succeeded(server));
        assert_eq!(backoff.wait(server, Patience::Patient), None);
    }

    /// Many requests that fail in one outage count once.
    #[tokio::test(start_paused = true)]
    async fn one_outage_counts_once() {
        let (backoff, server) = (Backoff::default(), server_name!("a.example"));
        let began = Instant::now();
        advance(Duration::from_secs(1)).await;
        for _ in 0..100 {
            backoff.failed(server, began);
        }
        assert!(backoff.wait(server, Patience::Patient).unwrap() < Duration::from_secs(20));
    }

    /// The table is bounded, and what is over long ago goes.
    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded() {
        let backoff = Backoff::default();
        for n in 0..SERVERS_MAX + 10 {
            let name = format!("s{n}.example");
            backoff.failed(<&ServerName>::try_from(name.as_str()).unwrap(), Instant::now());
        }
        assert!(backoff.0.lock().len() <= SERVERS_MAX);
        advance(LONGEST * 3).await;
        backoff.sweep();
        assert!(backoff.0.lock().is_empty());
    }
}
