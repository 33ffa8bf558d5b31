//! Passwords: argon2id, in threads of their own, as many at once as there are cores.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::{self, SaltString},
};
use prometheus::{Histogram, IntGauge, register_histogram, register_int_gauge};
use tokio::sync::Semaphore;

use crate::{Error, Result};

/// The longest password. Longer ones are refused before they are hashed.
const PASSWORD_BYTES_MAX: usize = 1024;
/// Passwords that wait to be checked, at the most; more are refused.
const WAITING_MAX: usize = 256;

static WAITING: LazyLock<IntGauge> = LazyLock::new(|| {
    register_int_gauge!("myelin_accounts_password_queue", "Passwords that are being checked or wait for it.")
        .expect("metric names are unique")
});
static SECONDS: LazyLock<Histogram> = LazyLock::new(|| {
    register_histogram!(
        "myelin_accounts_password_seconds",
        "Time until a password was hashed or checked, with the wait for a free core.",
        vec![0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
    )
    .expect("metric names are unique")
});

/// What hashing a password costs, whoever does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl Default for PasswordCost {
    /// What OWASP recommends as the least: 19 MiB and two passes.
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2 }
    }
}

/// Hashes and checks passwords.
#[derive(Debug)]
pub(crate) struct Passwords {
    argon2: Argon2<'static>,
    /// The hash of a password that nobody has, checked where there is no other, so that it takes the same time.
    /// Made when it is first needed: it takes as much memory and time as any other.
    nobodys: Arc<OnceLock<String>>,
    cores: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Passwords {
    pub(crate) fn new(cost: &PasswordCost) -> Result<Self> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(Error::HashParameters)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Ok(Self {
            argon2,
            nobodys: Arc::default(),
            cores: Arc::new(Semaphore::new(cores)),
            waiting: AtomicUsize::new(0),
        })
    }

    /// A password as it is stored.
    pub(crate) async fn hash(&self, password: &str) -> Result<String> {
        check_password(password)?;
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        self.in_background(move || hash(&argon2, &password)).await
    }

    /// Whether this is the password. Takes its time also if there is none.
    pub(crate) async fn verify(&self, password: &str, stored: Option<&str>) -> Result<bool> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Ok(false);
        }
        let is_someones = stored.is_some();
        let (argon2, password) = (self.argon2.clone(), password.to_owned());
        let (stored, nobodys) = (stored.map(str::to_owned), self.nobodys.clone());
        let check = move || match stored {
            Some(stored) => verify(&argon2, &password, &stored),
            None => {
                if nobodys.get().is_none() {
                    // Who comes later than another finds that one's, which is as good.
                    let _ = nobodys.set(hash(&argon2, &crate::tokens::readable(32))?);
                }
                verify(&argon2, &password, nobodys.get().map_or("", String::as_str))
            }
        };
        Ok(self.in_background(check).await? && is_someones)
    }

    async fn in_background<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let _place = Place::take(&self.waiting)?;
        let _timer = SECONDS.start_timer();
        let permit = self.cores.clone().acquire_owned().await.map_err(|_| Error::Busy)?;
        let task = tokio::task::spawn_blocking(move || {
            let outcome = work();
            // Held until the work is done, also when nobody waits for it any more.
            drop(permit);
            outcome
        });
        task.await.map_err(Error::HashThread)?
    }
}

/// Refuses what can be nobody's password.
pub(crate) fn check_password(password: &str) -> Result<()> {
    if password.is_empty() {
        return Err(Error::EmptyPassword);
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Error::PasswordTooLong);
    }
    Ok(())
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize) -> Result<Self> {
        let place = Self(waiting);
        WAITING.inc();
        if waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(Error::Busy);
        }
        Ok(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        WAITING.dec();
    }
}

fn hash(argon2: &Argon2<'_>, password: &str) -> Result<String> {
    let salt = SaltString::encode_b64(&rand::random::<[u8; 16]>()).map_err(Error::Hash)?;
    Ok(argon2.hash_password(password.as_bytes(), &salt).map_err(Error::Hash)?.to_string())
}

fn verify(argon2: &Argon2<'_>, password: &str, stored: &str) -> Result<bool> {
    let stored = PasswordHash::new(stored).map_err(Error::Hash)?;
    match argon2.verify_password(password.as_bytes(), &stored) {
        Ok(()) => Ok(true),
        Err(password_hash::Error::Password) => Ok(false),
        Err(error) => Err(Error::Hash(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::{PASSWORD_BYTES_MAX, Passwords, WAITING_MAX};
    use crate::{Error, PasswordCost, testing::CHEAP};

    /// A password matches its own hash and no other; without a hash nothing matches.
    #[tokio::test]
    async fn only_the_password_matches() {
        let passwords = Passwords::new(&CHEAP).unwrap();
        let stored = passwords.hash("correct horse").await.unwrap();
        assert!(stored.starts_with("$argon2id$v=19$"));
        assert_ne!(stored, passwords.hash("correct horse").await.unwrap(), "salted");
        assert!(passwords.verify("correct horse", Some(&stored)).await.unwrap());
        assert!(!passwords.verify("correct hors", Some(&stored)).await.unwrap());
        assert!(!passwords.verify("correct horse", None).await.unwrap());
        assert!(passwords.verify("x", Some("not a hash")).await.is_err());
    }

    /// Hashes made at another cost stay valid when the cost is changed.
    #[tokio::test]
    async fn old_costs_stay_valid() {
        let stored = Passwords::new(&CHEAP).unwrap().hash("x").await.unwrap();
        let dearer = Passwords::new(&PasswordCost { memory_kib: 64, passes: 2 }).unwrap();
        assert!(dearer.verify("x", Some(&stored)).await.unwrap());
    }

    /// Lengths are bounded, and so is the number of those who wait.
    #[tokio::test]
    async fn work_is_bounded() {
        let passwords = Passwords::new(&CHEAP).unwrap();
        assert!(matches!(passwords.hash("").await, Err(Error::EmptyPassword)));
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        assert!(matches!(passwords.hash(&long).await, Err(Error::PasswordTooLong)));
        assert!(!passwords.verify(&long, None).await.unwrap());
        passwords.waiting.store(WAITING_MAX, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(passwords.verify("x", None).await, Err(Error::Busy)));
        assert_eq!(passwords.waiting.load(std::sync::atomic::Ordering::Relaxed), WAITING_MAX);
    }
}
