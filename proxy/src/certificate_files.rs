//! A certificate in files, which whoever renews it may replace at any time.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use myelin_process::{
    metrics::{self, IntCounterVec},
    shutdown::Shutdown,
};

use crate::{Certificate, CertificateError, Certificates};

/// How often the files are looked at. Reading two small files costs less than what tells of changes, and works for
/// links that are exchanged and on network disks as well.
const WATCH_PERIOD: Duration = Duration::from_secs(5);
/// The most that is read of a file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

static RELOADS: LazyLock<IntCounterVec> = metrics::counter!(
    "myelin_tls_certificate_reloads_total",
    "Changed certificate files that were taken over, or refused.",
    ["outcome"]
);

/// Where a certificate and its key are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub private_key: PathBuf,
}

/// Why files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// What is in them is not a certificate and its key.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// The file in which it was noticed.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
}

/// The bytes of both files.
type Contents = (Vec<u8>, Vec<u8>);

impl CertificateFiles {
    /// Reads the files. What is expired is read as well: better an old certificate than none.
    pub fn load(&self) -> Result<Certificate, FilesError> {
        self.parse(&self.read()?)
    }

    fn read(&self) -> Result<Contents, FilesError> {
        Ok((read(&self.certificate)?, read(&self.private_key)?))
    }

    fn parse(&self, (chain, key): &Contents) -> Result<Certificate, FilesError> {
        Certificate::from_pem(chain, key).map_err(|source| {
            let of_key =
                matches!(source, CertificateError::NoKey | CertificateError::Key(_) | CertificateError::Mismatch);
            let path = if of_key { &self.private_key } else { &self.certificate };
            FilesError::Certificate { path: path.clone(), source }
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| FilesError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

/// Looks at the files again and again until the process stops, and takes over what changed. What cannot be used is
/// told once, and the certificate stays as it was.
pub async fn watch(files: CertificateFiles, certificates: Arc<Certificates>, shutdown: Shutdown) {
    watch_every(WATCH_PERIOD, files, certificates, shutdown).await;
}

/// [`watch`] at another pace.
pub async fn watch_every(
    period: Duration,
    files: CertificateFiles,
    certificates: Arc<Certificates>,
    shutdown: Shutdown,
) {
    let mut seen: Option<Contents> = None;
    let mut told = None;
    let mut ticks = tokio::time::interval(period);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let task = (files.clone(), seen.clone(), certificates.current());
        let looked = tokio::task::spawn_blocking(move || look(&task.0, task.1.as_ref(), &task.2)).await;
        match looked {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((contents, new)))) => {
                if new.chain() != certificates.current().chain() {
                    RELOADS.with_label_values(&["done"]).inc();
                    tracing::info!(names = ?new.names(), "took over the certificate in {}", files.certificate.display());
                }
                certificates.replace(new);
                (seen, told) = (Some(contents), None);
            }
            // Files are often replaced one after the other, so what does not fit is looked at again, and told once.
            Ok(Err(error)) => {
                let message = error.to_string();
                if told.as_ref() != Some(&message) {
                    RELOADS.with_label_values(&["refused"]).inc();
                    tracing::error!("the certificate stays the old one: {message}");
                    told = Some(message);
                }
            }
            Err(error) => tracing::error!(%error, "looking at the certificate files failed"),
        }
    }
}

/// What is in the files, if that is not what was seen.
fn look(
    files: &CertificateFiles,
    seen: Option<&Contents>,
    current: &Certificate,
) -> Result<Option<(Contents, Certificate)>, FilesError> {
    let contents = files.read()?;
    if seen == Some(&contents) {
        return Ok(None);
    }
    let new = files.parse(&contents)?;
    let now = SystemTime::now();
    if new.remaining(now).is_none() && current.remaining(now).is_some() {
        let ended = now.duration_since(new.valid_until()).unwrap_or_default();
        let source = CertificateError::Expired(ended);
        return Err(FilesError::Certificate { path: files.certificate.clone(), source });
    }
    Ok(Some((contents, new)))
}
