//! Keeps a certificate: gets the first one, renews it, and takes over what other replicas got.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use instant_acme::CertificateIdentifier;
use myelin_process::{
    metrics::{self, IntCounterVec, IntGauge},
    shutdown::Shutdown,
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{
    AcmeError, AcmeSettings, Challenges, Issued, Record, Storage, client::Client, order::Attempt, schedule,
    storage::millis,
};
use crate::{Certificate, Certificates};

/// How long the lease of an attempt lasts when it is not renewed.
const LEASE_TIME: Duration = Duration::from_secs(60);
/// How long an attempt may take in all.
const ATTEMPT_TIME: Duration = Duration::from_secs(15 * 60);
/// How often the authority is asked when it wants a certificate renewed, at the least and at the most.
const WINDOW_TIMES: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
/// The longest error that is kept, in characters.
const ERROR_LENGTH_MAX: usize = 1000;

static ATTEMPTS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_acme_attempts_total",
    "Attempts to get a certificate by their outcome: done, or the cause of the failure.",
    ["outcome"]
);
static WAITING: LazyLock<IntGauge> = metrics::gauge!(
    "myelin_acme_waiting",
    "1 while the first certificate is not there and a self-signed one stands in for it."
);
static DUE: LazyLock<IntGauge> =
    metrics::gauge!("myelin_acme_next_attempt_timestamp_seconds", "When the next certificate is due, since 1970.");

/// Keeps the certificate of a process current by ACME.
pub struct Acme<S> {
    settings: AcmeSettings,
    storage: Arc<S>,
    certificates: Arc<Certificates>,
    loaded: Mutex<Option<Issued>>,
    window: Mutex<Option<Window>>,
}

/// When the authority wants a certificate renewed.
struct Window {
    of: Issued,
    span: Option<(SystemTime, SystemTime)>,
    ask_again: Instant,
}

impl<S: Storage> Acme<S> {
    /// Begins with the certificate that is kept, or with one that the process makes itself until there is one.
    pub async fn open(settings: AcmeSettings, storage: Arc<S>) -> Result<Self, AcmeError> {
        let first = Certificate::self_signed(&settings.names)?;
        let certificates = Certificates::new(first);
        let (loaded, window) = (Mutex::default(), Mutex::default());
        let acme = Self { settings, storage, certificates, loaded, window };
        let record = acme.storage.record().await?;
        acme.take_over(&record);
        if acme.is_waiting() {
            tracing::warn!(
                "there is no certificate for {} yet: connections get a self-signed one until {} has issued one",
                acme.settings.names.join(", "),
                acme.settings.directory
            );
        }
        Ok(acme)
    }

    /// The certificate, for connections.
    pub fn certificates(&self) -> Arc<Certificates> {
        Arc::clone(&self.certificates)
    }

    /// What is shown to the authority.
    pub fn challenges(&self) -> Arc<dyn Challenges> {
        Arc::new(Stored(Arc::clone(&self.storage)))
    }

    /// Whether the first certificate is still waited for.
    pub fn is_waiting(&self) -> bool {
        self.loaded.lock().is_none()
    }

    /// Does what is due, again and again, until the process stops.
    pub async fn run(self: Arc<Self>, shutdown: Shutdown) {
        loop {
            let round = async {
                if let Err(error) = Box::pin(self.round()).await {
                    tracing::error!("the certificate cannot be looked after: {error}");
                }
                // Replicas that were started together need not look at the same time.
                let part = f64::from(std::process::id() % 64) / 256.0;
                sleep(self.settings.pace.poll.mul_f64(1.0 + part)).await;
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = round => {}
            }
        }
    }

    /// Looks what there is, and gets a certificate if one is due and nobody else does.
    async fn round(&self) -> Result<(), AcmeError> {
        let record = self.storage.record().await?;
        self.take_over(&record);
        if self.due(&record).await > SystemTime::now() {
            return Ok(());
        }
        let Some(lease) = self.storage.take_lease(LEASE_TIME).await? else { return Ok(()) };
        let done = tokio::select! {
            done = self.under_lease(&lease) => done,
            () = self.keep(&lease) => Err(AcmeError::LeaseLost),
        };
        self.storage.release_lease(lease).await?;
        done
    }

    /// Renews the lease until it is lost.
    async fn keep(&self, lease: &S::Lease) {
        let mut held = Instant::now();
        while held.elapsed() < LEASE_TIME {
            sleep(LEASE_TIME / 4).await;
            match self.storage.renew_lease(lease, LEASE_TIME).await {
                Ok(true) => held = Instant::now(),
                Ok(false) => return,
                Err(error) => tracing::warn!(error, "the lease for certificates could not be renewed; trying again"),
            }
        }
    }

    async fn under_lease(&self, lease: &S::Lease) -> Result<(), AcmeError> {
        // Another replica may have been faster.
        let mut record = self.storage.record().await?;
        self.take_over(&record);
        if self.due(&record).await > SystemTime::now() {
            return Ok(());
        }
        if record.wanted.is_some() && record.wanted.as_deref() != Some(&self.settings.wanted()) {
            record.failures = 0;
        }
        tracing::info!(tls.names = ?self.settings.names, "asking {} for a certificate", self.settings.directory);
        let outcome = match timeout(ATTEMPT_TIME, Box::pin(self.attempt(&record))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(AcmeError::Timeout(ATTEMPT_TIME)),
        };
        let record = match outcome {
            Ok(issued) => {
                ATTEMPTS.with_label_values(&["done"]).inc();
                Record { issued: Some(issued), ..Record::default() }
            }
            Err(error) => self.failed(record, &error),
        };
        if !self.storage.save_record(lease, &record).await? {
            return Err(AcmeError::LeaseLost);
        }
        self.take_over(&record);
        self.due(&record).await;
        Ok(())
    }

    async fn attempt(&self, record: &Record) -> Result<Issued, AcmeError> {
        let attempt = Attempt { settings: &self.settings, storage: &*self.storage, failures: record.failures };
        let settings = &self.settings;
        let known = record.issued.as_ref().is_some_and(|issued| issued.directory == settings.directory);
        if let (Some(staging), false) = (&settings.staging, known) {
            attempt.run(staging, None).await?;
            tracing::info!("{staging} has issued a certificate for practice; asking the real authority now");
        }
        let old = record.issued.as_ref().filter(|_| known).and_then(|issued| issued.certificate().ok());
        let replaces = old.as_ref().and_then(identifier);
        let answer = attempt.run(&settings.directory, replaces).await?;
        let issued = Issued {
            names: settings.names.clone(),
            directory: settings.directory.clone(),
            chain: answer.chain,
            private_key: answer.private_key,
            issued_ts: millis(SystemTime::now()),
        };
        let certificate = issued.certificate()?;
        if certificate.valid_from() > SystemTime::now() + Duration::from_secs(3600) {
            tracing::error!("the new certificate is not valid yet: is the clock of this machine right?");
        }
        Ok(issued)
    }

    /// Writes a failure down, and when to try again.
    fn failed(&self, record: Record, error: &AcmeError) -> Record {
        ATTEMPTS.with_label_values(&[error.cause()]).inc();
        let failures = record.failures.saturating_add(1);
        let now = SystemTime::now();
        let chance = f64::from(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_millis())) / 1000.0;
        let mut at = now + schedule::pause(&self.settings.pace, failures, chance);
        if let AcmeError::RateLimited(_, Some(until)) = error {
            at = at.max(*until);
        }
        let minutes = at.duration_since(now).unwrap_or_default().as_secs() / 60;
        tracing::error!(
            acme.failures = failures,
            "no certificate for {}: {error}; trying again in {minutes} minutes",
            self.settings.names.join(", ")
        );
        let last_error = Some(error.to_string().chars().take(ERROR_LENGTH_MAX).collect());
        let wanted = Some(self.settings.wanted());
        Record { wanted, failures, next_attempt_ts: millis(at), last_error, ..record }
    }

    /// Uses the certificate that is kept, if it is another one.
    fn take_over(&self, record: &Record) {
        let mut loaded = self.loaded.lock();
        if let Some(issued) = &record.issued
            && loaded.as_ref() != Some(issued)
        {
            match issued.certificate() {
                Ok(certificate) => {
                    tracing::info!(tls.names = ?certificate.names(), "using the certificate of {}", issued.directory);
                    self.certificates.replace(certificate);
                    *loaded = Some(issued.clone());
                }
                Err(error) => tracing::error!("the certificate that is kept cannot be used: {error}"),
            }
        }
        WAITING.set(i64::from(loaded.is_none()));
    }

    async fn due(&self, record: &Record) -> SystemTime {
        let certificate = record.issued.as_ref().and_then(|issued| issued.certificate().ok());
        let window = match &record.issued {
            Some(issued) => self.window(issued).await,
            None => None,
        };
        let due = schedule::due(&self.settings, record, certificate.as_ref(), window);
        DUE.set(millis(due) / 1000);
        due
    }

    /// When the authority wants the certificate renewed, if it says so at all (RFC 9773).
    async fn window(&self, issued: &Issued) -> Option<(SystemTime, SystemTime)> {
        if let Some(window) = &*self.window.lock()
            && window.of == *issued
            && window.ask_again > Instant::now()
        {
            return window.span;
        }
        let (span, again) = match self.ask_window(issued).await {
            Ok((span, again)) => (Some(span), again),
            Err(error) => {
                tracing::debug!(%error, "the authority does not say when it wants the certificate renewed");
                (None, WINDOW_TIMES.0)
            }
        };
        let ask_again = Instant::now() + again.clamp(WINDOW_TIMES.0, WINDOW_TIMES.1);
        *self.window.lock() = Some(Window { of: issued.clone(), span, ask_again });
        span
    }

    async fn ask_window(&self, issued: &Issued) -> Result<((SystemTime, SystemTime), Duration), AcmeError> {
        let certificate = issued.certificate()?;
        let identifier = identifier(&certificate)
            .ok_or(instant_acme::Error::Unsupported("renewal of certificates without a key identifier"))?;
        let attempt = Attempt { settings: &self.settings, storage: &*self.storage, failures: 0 };
        if self.storage.account(&issued.directory).await?.is_none() {
            return Err(instant_acme::Error::Unsupported("renewal without the account that asked").into());
        }
        let client = Client::new(self.settings.trusted.as_deref())?;
        let account = attempt.account(&client, &issued.directory, false).await?;
        let (info, again) = account.renewal_info(&identifier).await?;
        let window = info.suggested_window;
        Ok(((window.start.into(), window.end.into()), again))
    }
}

/// What the certificate is called when its renewal is talked about.
fn identifier(certificate: &Certificate) -> Option<CertificateIdentifier<'static>> {
    let identifier = CertificateIdentifier::try_from(certificate.chain().first()?).ok()?;
    Some(identifier.into_owned())
}

/// The proofs that are kept.
struct Stored<S>(Arc<S>);

impl<S> fmt::Debug for Stored<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stored")
    }
}

impl<S: Storage> Stored<S> {
    async fn find(&self, kind: &str, subject: &str) -> Option<String> {
        match self.0.proof(kind, subject).await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(error, "a proof for the certificate authority cannot be looked up");
                None
            }
        }
    }
}

impl<S: Storage> Challenges for Stored<S> {
    fn http_01<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<String>> {
        self.find("http-01", token).boxed()
    }

    fn tls_alpn_01<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<Vec<u8>>> {
        async move { unhex(&self.find("tls-alpn-01", name).await?) }.boxed()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
