//! Rate limits for each user and each address.
//!
//! <https://spec.matrix.org/v1.19/client-server-api/#rate-limiting>

use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use governor::{
    Quota,
    clock::{Clock, DefaultClock},
    middleware::NoOpMiddleware,
    state::keyed::DashMapStateStore,
};

use crate::{
    ApiError, Session,
    metrics::{RATE_LIMIT_KEYS, RATE_LIMITED},
};

/// How many users and addresses one kind of limit remembers; those beyond share [`SHARED_BUCKETS`].
const KEYS_MAX: usize = 100_000;
const SHARED_BUCKETS: u64 = 4096;
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// What a request counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitKind {
    /// An attempt to log in.
    Login,
    /// An attempt to register.
    Registration,
    /// A join.
    Joins,
    /// A message or another event.
    Messages,
    /// Everything else.
    Other,
}

impl LimitKind {
    const ALL: [Self; 5] = [Self::Login, Self::Registration, Self::Joins, Self::Messages, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Registration => "registration",
            Self::Joins => "joins",
            Self::Messages => "messages",
            Self::Other => "other",
        }
    }
}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    /// How many requests a second are allowed in the long run.
    pub per_second: f64,
    /// How many may come at once after a quiet time.
    pub burst: u32,
}

/// The limit of each kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimits {
    /// `false` turns all of them off.
    pub enabled: bool,
    /// For each address, and each account ([`RateLimiter::account`]).
    pub login: RateLimit,
    /// For each address.
    pub registration: RateLimit,
    /// For each user.
    pub joins: RateLimit,
    /// For each user.
    pub messages: RateLimit,
    /// For each user, or address without a user.
    pub other: RateLimit,
}

impl RateLimits {
    /// No limits at all.
    pub const OFF: Self = {
        let any = RateLimit { per_second: 1.0, burst: 1 };
        Self { enabled: false, login: any, registration: any, joins: any, messages: any, other: any }
    };

    fn of(&self, kind: LimitKind) -> RateLimit {
        match kind {
            LimitKind::Login => self.login,
            LimitKind::Registration => self.registration,
            LimitKind::Joins => self.joins,
            LimitKind::Messages => self.messages,
            LimitKind::Other => self.other,
        }
    }
}

/// A limit that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum RateLimitsError {
    /// A rate has to be a positive number, and one that a clock in nanoseconds can count.
    #[error("the rate limit for {kind} must be between 0.000001 and 1000000 a second, not {per_second}")]
    Rate {
        /// The limit's name.
        kind: &'static str,
        /// Its rate.
        per_second: f64,
    },
    /// A burst of none lets nothing through.
    #[error("the burst of the rate limit for {kind} must be at least 1")]
    Burst {
        /// The limit's name.
        kind: &'static str,
    },
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey(Key);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    User(i64),
    Address(IpAddr),
    Account(u64),
    Shared(u64),
}

impl LimitKey {
    /// All sessions of a user.
    pub fn user(user_nid: i64) -> Self {
        Self(Key::User(user_nid))
    }

    /// An address; of IPv6 the network of 64 bits, since whoever has one address has all of them.
    pub fn address(address: IpAddr) -> Self {
        Self(Key::Address(match address.to_canonical() {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        }))
    }
}

type Limiter<C> =
    governor::RateLimiter<LimitKey, DashMapStateStore<LimitKey>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// Counts requests against [`RateLimits`]. What it remembers is bounded, however many addresses ask.
pub struct RateLimiter<C: Clock = DefaultClock> {
    clock: C,
    keys_max: usize,
    hasher: RandomState,
    // None when the limits are off. One for each of `LimitKind::ALL`, in that order.
    limiters: RwLock<Option<[Limiter<C>; 5]>>,
}

impl RateLimiter {
    /// A limiter by the machine's clock.
    pub fn new(limits: &RateLimits) -> Result<Self, RateLimitsError> {
        Self::with_clock(limits, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimiter<C> {
    /// A limiter by this clock.
    pub fn with_clock(limits: &RateLimits, clock: C) -> Result<Self, RateLimitsError> {
        let limiters = RwLock::new(limiters(limits, &clock)?);
        Ok(Self { clock, keys_max: KEYS_MAX, hasher: RandomState::new(), limiters })
    }

    /// Takes other limits from now on, and forgets what was counted.
    pub fn reload(&self, limits: &RateLimits) -> Result<(), RateLimitsError> {
        let limiters = limiters(limits, &self.clock)?;
        *self.limiters.write().unwrap_or_else(PoisonError::into_inner) = limiters;
        Ok(())
    }

    /// Counts one request, or refuses it with `M_LIMIT_EXCEEDED` and the time to wait.
    pub fn check(&self, kind: LimitKind, key: LimitKey) -> Result<(), ApiError> {
        let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
        let Some(limiters) = limiters.as_ref() else { return Ok(()) };
        let limiter = &limiters[kind as usize];
        let key = if limiter.len() < self.keys_max {
            key
        } else {
            LimitKey(Key::Shared(self.hasher.hash_one(key) % SHARED_BUCKETS))
        };
        limiter.check_key(&key).map_err(|not_until| {
            RATE_LIMITED.with_label_values(&[kind.name()]).inc();
            ApiError::limit_exceeded(not_until.wait_time_from(self.clock.now()))
        })
    }

    /// [`check`](Self::check) for whoever asks: a session by its user, anyone else, and every attempt to log in or to
    /// register, by its address. A session may be exempt.
    pub fn check_caller(
        &self,
        kind: LimitKind,
        session: Option<&Session>,
        client_address: IpAddr,
    ) -> Result<(), ApiError> {
        match session {
            Some(session) if session.is_rate_limit_exempt => Ok(()),
            Some(session) if !matches!(kind, LimitKind::Login | LimitKind::Registration) => {
                self.check(kind, LimitKey::user(session.user_nid))
            }
            Some(_) | None => self.check(kind, LimitKey::address(client_address)),
        }
    }

    /// A key for an account that someone without a session speaks of, such as the one that they try to log in to.
    pub fn account(&self, name: &str) -> LimitKey {
        LimitKey(Key::Account(self.hasher.hash_one(name)))
    }

    /// Forgets those who have been quiet long enough that nothing would be held against them.
    pub fn sweep(&self) {
        let limiters = self.limiters.read().unwrap_or_else(PoisonError::into_inner);
        for (kind, limiter) in LimitKind::ALL.into_iter().zip(limiters.iter().flatten()) {
            limiter.retain_recent();
            limiter.shrink_to_fit();
            let keys = i64::try_from(limiter.len()).unwrap_or(i64::MAX);
            RATE_LIMIT_KEYS.with_label_values(&[kind.name()]).set(keys);
        }
    }

    /// [`sweep`](Self::sweep)s once a minute, for as long as it is polled. Whoever owns the limiter runs this.
    pub async fn keep_swept(&self) {
        let mut ticks = tokio::time::interval(SWEEP_PERIOD);
        loop {
            ticks.tick().await;
            self.sweep();
        }
    }
}

fn limiters<C: Clock + Clone>(limits: &RateLimits, clock: &C) -> Result<Option<[Limiter<C>; 5]>, RateLimitsError> {
    if !limits.enabled {
        return Ok(None);
    }
    let [login, registration, joins, messages, other] = LimitKind::ALL.map(|kind| {
        let quota = quota(kind, limits.of(kind))?;
        Ok(Limiter::new(quota, DashMapStateStore::default(), clock.clone()))
    });
    Ok(Some([login?, registration?, joins?, messages?, other?]))
}

fn quota(kind: LimitKind, RateLimit { per_second, burst }: RateLimit) -> Result<Quota, RateLimitsError> {
    let burst = NonZeroU32::new(burst).ok_or(RateLimitsError::Burst { kind: kind.name() })?;
    let rate = || RateLimitsError::Rate { kind: kind.name(), per_second };
    if !(0.000_001..=1_000_000.0).contains(&per_second) {
        return Err(rate());
    }
    let period = Duration::from_secs_f64(1.0 / per_second);
    Ok(Quota::with_period(period).ok_or_else(rate)?.allow_burst(burst))
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use http::StatusCode;

    use super::*;

    fn limits(per_second: f64, burst: u32) -> RateLimits {
        let one = RateLimit { per_second, burst };
        RateLimits { enabled: true, login: one, registration: one, joins: one, messages: one, other: one }
    }

    /// A burst passes, the next is refused, and time brings the right back, for this user and this kind alone.
    #[test]
    fn refuses_after_the_burst_until_time_has_passed() {
        let clock = FakeRelativeClock::default();
        let limiter = RateLimiter::with_clock(&limits(0.5, 2), clock.clone()).unwrap();
        let user = LimitKey::user(1);
        limiter.check(LimitKind::Messages, user).unwrap();
        limiter.check(LimitKind::Messages, user).unwrap();
        let refused = limiter.check(LimitKind::Messages, user).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);

        limiter.check(LimitKind::Messages, LimitKey::user(2)).unwrap();
        limiter.check(LimitKind::Joins, user).unwrap();

        clock.advance(Duration::from_millis(1999));
        limiter.check(LimitKind::Messages, user).unwrap_err();
        clock.advance(Duration::from_millis(1));
        limiter.check(LimitKind::Messages, user).unwrap();
    }

    /// Over its bound of keys the limiter remembers a fixed number of shared buckets, and forgets when swept.
    #[test]
    fn memory_is_bounded() {
        let clock = FakeRelativeClock::default();
        let mut limiter = RateLimiter::with_clock(&limits(1.0, 1), clock.clone()).unwrap();
        limiter.keys_max = 100;
        let keys = |limiter: &RateLimiter<FakeRelativeClock>| {
            limiter.limiters.read().unwrap().as_ref().unwrap()[LimitKind::Other as usize].len()
        };
        let mut refused = 0_usize;
        for user in 0..50_000 {
            refused += usize::from(limiter.check(LimitKind::Other, LimitKey::user(user)).is_err());
        }
        assert!(refused > 0, "shared buckets still limit");
        assert!(keys(&limiter) <= 100 + SHARED_BUCKETS as usize, "{} keys", keys(&limiter));

        clock.advance(Duration::from_secs(10));
        limiter.sweep();
        assert_eq!(keys(&limiter), 0);
    }

    /// One network of 64 bits is one caller; neighbours are others; a mapped address is the IPv4 address.
    #[test]
    fn addresses_of_one_network_count_together() {
        let key = |address: &str| LimitKey::address(address.parse().unwrap());
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    /// Limits that cannot be kept are named, and reloading replaces what is in force.
    #[test]
    fn limits_are_checked_and_reloaded() {
        for (per_second, burst) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (1.0, 0)] {
            assert!(RateLimiter::new(&limits(per_second, burst)).is_err(), "{per_second} {burst}");
        }
        let limiter = RateLimiter::new(&limits(0.001, 1)).unwrap();
        let user = LimitKey::user(1);
        limiter.check(LimitKind::Login, user).unwrap();
        limiter.check(LimitKind::Login, user).unwrap_err();
        limiter.reload(&RateLimits::OFF).unwrap();
        limiter.check(LimitKind::Login, user).unwrap();
    }
}
