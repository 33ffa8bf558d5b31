//! Certificates by ACME, kept in the database.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use myelin_process::{
    config::{self, AcmeChallenge, Config},
    shutdown::Shutdown,
};
use myelin_proxy::{
    Tls,
    acme::{
        Acme, AcmeSettings, ChallengeKind, Challenges, Dns, DnsCommand, DnsKey, DnsKeyAlgorithm, DnsUpdate,
        ExternalAccount, Issued, Pace, Proof, Record, Storage, StorageError,
    },
};
use myelin_store::{Candidate, CertificateRecord, IssuedCertificate, Lease, Store};

use crate::exit::{Exit, Failure};

/// The duty of asking for certificates.
const LEASE: &str = "certificates";

/// What the configuration asks for.
pub(crate) fn settings(config: &Config) -> Result<AcmeSettings, Failure> {
    let refuse = |error: anyhow::Error| Failure::new(Exit::Config, error);
    let acme = &config.acme;
    let key = config.acme_external_account_key().map_err(|error| refuse(error.into()))?;
    let external_account = acme.external_account_id.clone().zip(key);
    let trusted = acme.trusted_ca_file.as_ref().map(std::fs::read).transpose();
    let kind = |kind: &AcmeChallenge| match kind {
        AcmeChallenge::TlsAlpn01 => ChallengeKind::TlsAlpn01,
        AcmeChallenge::Http01 => ChallengeKind::Http01,
        AcmeChallenge::Dns01 => ChallengeKind::Dns01,
    };
    Ok(AcmeSettings {
        directory: acme.directory.to_string(),
        staging: acme.staging_directory.as_ref().map(ToString::to_string),
        contact: acme.contact.clone(),
        names: config.acme_names(),
        challenges: acme.challenges.iter().map(kind).collect(),
        external_account: external_account
            .map(|(key_id, key)| ExternalAccount { key_id, hmac_key: key.expose().to_owned() }),
        trusted: trusted.context("read acme.trusted_ca_file").map_err(refuse)?,
        profile: acme.profile.clone(),
        dns: dns(config).map_err(refuse)?,
        pace: Pace::default(),
    })
}

/// What makes DNS records.
fn dns(config: &Config) -> anyhow::Result<Option<Dns>> {
    let acme = &config.acme;
    let wait = Duration::from_secs(acme.dns_wait_seconds);
    let Some(server) = acme.dns_server.clone() else {
        return Ok(acme.dns_command.clone().map(|program| Dns::Command(DnsCommand { program, wait })));
    };
    let name = acme.dns_key_name.as_deref().context("acme.dns_key_name is missing")?;
    let secret = config.acme_dns_key_secret()?.context("acme.dns_key_secret is missing")?;
    let algorithm = match acme.dns_key_algorithm {
        config::DnsKeyAlgorithm::HmacSha256 => DnsKeyAlgorithm::HmacSha256,
        config::DnsKeyAlgorithm::HmacSha512 => DnsKeyAlgorithm::HmacSha512,
    };
    let key = DnsKey::new(name, algorithm, secret.expose()).context("acme.dns_key_name and acme.dns_key_secret")?;
    let ttl = Duration::from_secs(acme.dns_ttl_seconds.into());
    let (zone, others) = (acme.dns_zone.clone(), acme.dns_other_servers.clone());
    Ok(Some(Dns::Update(DnsUpdate { server, zone, key, ttl, others, wait })))
}

/// Begins to look after the certificate.
pub(crate) async fn start(
    config: &Config,
    store: Arc<Store>,
    shutdown: &Shutdown,
) -> Result<(Tls, Arc<dyn Challenges>), Failure> {
    let unavailable = |error: anyhow::Error| Failure::new(Exit::Unavailable, error);
    let acme = Acme::open(settings(config)?, Arc::new(Database::new(store))).await;
    let acme = Arc::new(acme.context("look after the certificate").map_err(unavailable)?);
    let challenges = acme.challenges();
    let tls = Tls::new(acme.certificates()).map_err(|error| Failure::new(Exit::Software, error))?;
    shutdown.spawn(acme.run(shutdown.clone()));
    Ok((tls.with_challenges(Arc::clone(&challenges)), challenges))
}

/// The database as the place where it is kept.
pub(crate) struct Database {
    store: Arc<Store>,
    holder: String,
}

impl Database {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        // Different for every process, and for every start of one.
        let holder = format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>());
        Self { store, holder }
    }
}

impl Storage for Database {
    type Lease = Lease;

    async fn take_lease(&self, time: Duration) -> Result<Option<Lease>, StorageError> {
        let candidate = Candidate { name: LEASE, holder: self.holder.clone(), ttl: time };
        Ok(self.store.take_lease(&candidate).await?)
    }

    async fn renew_lease(&self, lease: &Lease, time: Duration) -> Result<bool, StorageError> {
        Ok(self.store.renew_lease(lease, time).await?)
    }

    async fn release_lease(&self, lease: Lease) -> Result<(), StorageError> {
        // It may be another's already, which is as good.
        self.store.release_lease(&lease).await?;
        Ok(())
    }

    async fn record(&self) -> Result<Record, StorageError> {
        from_stored(self.store.certificate().await?)
    }

    async fn save_record(&self, lease: &Lease, record: &Record) -> Result<bool, StorageError> {
        Ok(self.store.put_certificate(lease, &to_stored(record)?).await?)
    }

    async fn account(&self, directory: &str) -> Result<Option<String>, StorageError> {
        Ok(self.store.acme_account(directory).await?)
    }

    async fn save_account(&self, directory: &str, credentials: &str) -> Result<(), StorageError> {
        Ok(self.store.put_acme_account(directory, credentials).await?)
    }

    async fn proof(&self, kind: &str, subject: &str) -> Result<Option<String>, StorageError> {
        Ok(self.store.acme_proof(kind, subject).await?)
    }

    async fn save_proof(&self, proof: &Proof) -> Result<(), StorageError> {
        Ok(self.store.put_acme_proof(proof.kind, &proof.subject, &proof.value).await?)
    }

    async fn forget_proof(&self, proof: &Proof) -> Result<(), StorageError> {
        Ok(self.store.forget_acme_proof(proof.kind, &proof.subject).await?)
    }
}

/// A record out of the database.
pub(crate) fn from_stored(stored: CertificateRecord) -> Result<Record, StorageError> {
    let issued = stored.issued.map(|issued| {
        Ok::<_, serde_json::Error>(Issued {
            names: serde_json::from_str(&issued.names)?,
            directory: issued.directory,
            chain: issued.chain,
            private_key: issued.private_key,
            issued_ts: issued.issued_ts,
        })
    });
    Ok(Record {
        issued: issued.transpose()?,
        wanted: stored.wanted,
        failures: u32::try_from(stored.failures).unwrap_or(u32::MAX),
        next_attempt_ts: stored.next_attempt_ts,
        last_error: stored.last_error,
        renewal_asked: stored.renewal_asked,
    })
}

fn to_stored(record: &Record) -> Result<CertificateRecord, StorageError> {
    let issued = record.issued.as_ref().map(|issued| {
        Ok::<_, serde_json::Error>(IssuedCertificate {
            names: serde_json::to_string(&issued.names)?,
            directory: issued.directory.clone(),
            chain: issued.chain.clone(),
            private_key: issued.private_key.clone(),
            issued_ts: issued.issued_ts,
        })
    });
    Ok(CertificateRecord {
        issued: issued.transpose()?,
        wanted: record.wanted.clone(),
        failures: record.failures.into(),
        next_attempt_ts: record.next_attempt_ts,
        last_error: record.last_error.clone(),
        renewal_asked: record.renewal_asked,
    })
}

#[cfg(test)]
mod tests {
    use myelin_proxy::acme::{Issued, Record};

    /// What is written to the database is what is read from it.
    #[test]
    fn records_survive_the_database() {
        let issued = Issued {
            names: vec!["a.example".to_owned(), "b.example".to_owned()],
            directory: "https://acme.example/".to_owned(),
            chain: "chain".to_owned(),
            private_key: "key".to_owned(),
            issued_ts: 5,
        };
        let record = Record {
            issued: Some(issued),
            wanted: Some("w".to_owned()),
            failures: 3,
            next_attempt_ts: 7,
            last_error: Some("no".to_owned()),
            renewal_asked: true,
        };
        for record in [record, Record::default()] {
            assert_eq!(super::from_stored(super::to_stored(&record).unwrap()).unwrap(), record);
        }
    }
}
