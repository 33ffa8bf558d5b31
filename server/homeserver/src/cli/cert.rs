//! `myelin cert status` and `myelin cert renew`

use std::{
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::anyhow;
use clap::Subcommand;
use myelin_process::config::{Config, TlsMode};
use myelin_proxy::{Certificate, acme::Record};

use super::{ConfigFiles, print};
use crate::{
    acme,
    exit::{Exit, Failure},
    front_door, parts,
};

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Show the certificate, until when it counts, and how its renewal stands.
    Status(ConfigFiles),
    /// Ask for a new certificate by ACME. A running server gets it, within a minute.
    Renew(ConfigFiles),
}

impl CertCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::System, error))?;
        match self {
            Self::Status(files) => {
                let config = files.load()?;
                print(&runtime.block_on(status(&config))?)
            }
            Self::Renew(files) => {
                let config = files.load()?;
                runtime.block_on(renew(&config))?;
                print("A new certificate is asked for. `myelin cert status` shows what comes of it.\n")
            }
        }
    }
}

async fn status(config: &Config) -> Result<String, Failure> {
    let now = SystemTime::now();
    match config.tls.mode {
        TlsMode::SelfSigned => Ok("The certificate is made at each start, and nobody trusts it.\n".to_owned()),
        TlsMode::Files => match front_door::certificate_in_files(config)? {
            Some(certificate) => Ok(describe(&certificate, now)),
            None => Ok("tls.certificate and tls.private_key are not set.\n".to_owned()),
        },
        TlsMode::Acme => Ok(describe_record(&record(config).await?, now)),
    }
}

async fn record(config: &Config) -> Result<Record, Failure> {
    let store = parts::open_store(config).await?;
    let stored = store.certificate().await;
    store.close().await;
    let stored = stored.map_err(|error| Failure::new(Exit::Unavailable, error))?;
    acme::from_stored(stored).map_err(|error| Failure::new(Exit::Software, anyhow!(error)))
}

async fn renew(config: &Config) -> Result<(), Failure> {
    if config.tls.mode != TlsMode::Acme {
        let error = anyhow!("certificates are not asked for: tls.mode is not \"acme\"");
        return Err(
            Failure::new(Exit::Usage, error).hint("A certificate in files is taken over as soon as the files change.")
        );
    }
    let store = parts::open_store(config).await?;
    let asked = store.ask_for_certificate().await;
    store.close().await;
    asked.map_err(|error| Failure::new(Exit::Unavailable, error))
}

fn describe(certificate: &Certificate, now: SystemTime) -> String {
    let until = match certificate.remaining(now) {
        Some(left) => format!("for {}", span(left)),
        None => {
            format!("no more: it ended {} ago", span(now.duration_since(certificate.valid_until()).unwrap_or_default()))
        }
    };
    format!("names     {}\nvalid     {until}\n", certificate.names().join(", "))
}

fn describe_record(record: &Record, now: SystemTime) -> String {
    let mut text = match record.issued.as_ref().map(|issued| (issued.certificate(), &issued.directory)) {
        Some((Ok(certificate), directory)) => format!("{}issuer    {directory}\n", describe(&certificate, now)),
        Some((Err(error), _)) => format!("The certificate in the database cannot be read: {error}\n"),
        None => "There is no certificate yet. Connections get a self-signed one meanwhile.\n".to_owned(),
    };
    let mut line = |name: &str, value: &str| writeln!(text, "{name:<10}{value}").expect("a String takes every write");
    if record.failures > 0 {
        line("failures", &record.failures.to_string());
    }
    if let Some(error) = &record.last_error {
        line("error", error);
    }
    let next = UNIX_EPOCH + Duration::from_millis(u64::try_from(record.next_attempt_ts).unwrap_or(0));
    match next.duration_since(now) {
        Ok(wait) if record.failures > 0 => line("next try", &format!("in {}", span(wait))),
        _ if record.renewal_asked => line("renewal", "asked for"),
        _ => {}
    }
    text
}

/// A time for people.
fn span(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    match minutes {
        0..120 => format!("{minutes} minutes"),
        120..2880 => format!("{} hours", minutes / 60),
        _ => format!("{} days", minutes / 60 / 24),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use myelin_proxy::{Certificate, acme::Record};

    /// Names and the time that is left are told, and what went wrong.
    #[test]
    fn tells_how_it_stands() {
        let now = SystemTime::now();
        let certificate = Certificate::self_signed(&["a.example".to_owned()]).unwrap();
        let text = super::describe(&certificate, now);
        assert!(text.contains("a.example") && text.contains("for 364 days"), "{text}");
        let text = super::describe(&certificate, now + Duration::from_secs(400 * 86400));
        assert!(text.contains("it ended 35 days ago") || text.contains("it ended 34 days ago"), "{text}");
        let in_an_hour = (now + Duration::from_secs(3630)).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let failed = Record {
            failures: 2,
            last_error: Some("it rains".to_owned()),
            next_attempt_ts: i64::try_from(in_an_hour.as_millis()).unwrap(),
            ..Record::default()
        };
        let text = super::describe_record(&failed, now);
        assert!(text.contains("no certificate yet") && text.contains("it rains"), "{text}");
        assert!(text.contains("in 60 minutes"), "{text}");
    }
}
