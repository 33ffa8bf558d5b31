//! The server's certificate, the accounts at authorities that issue it, and the proofs that they want to see.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::{
    Lease, Result, Store,
    database::Transaction,
    sql::{execute, optional},
};

/// The certificate that the listeners use. There is one so far.
const SERVER: &str = "server";
/// Proofs that are older are of orders that nobody remembers, in milliseconds.
const PROOF_AGE_MS_MAX: i64 = 3600 * 1000;

/// A certificate, as it was issued.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// The names that it was asked for: a list in JSON.
    pub names: String,
    /// The directory of the authority.
    pub directory: String,
    /// The chain, in PEM.
    pub chain: String,
    /// The private key, in PEM.
    pub private_key: String,
    /// When it was issued, in milliseconds since 1970.
    pub issued_ts: i64,
}

impl std::fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedCertificate").field("names", &self.names).field("issued_ts", &self.issued_ts).finish()
    }
}

/// The certificate and how its renewal stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The certificate; none until the first one is issued.
    pub issued: Option<IssuedCertificate>,
    /// What the failures were about.
    pub wanted: Option<String>,
    /// Failures in a row.
    pub failures: i64,
    /// No attempt before this time, in milliseconds since 1970.
    pub next_attempt_ts: i64,
    /// The last failure.
    pub last_error: Option<String>,
    /// Somebody asked for a new certificate.
    pub renewal_asked: bool,
}

type IssuedRow = (Option<String>, Option<String>, Option<String>, Option<String>, Option<i64>);
type RenewalRow = (Option<String>, i64, i64, Option<String>, bool);

impl Store {
    /// The server's certificate and how its renewal stands; the default if nobody ever asked for one.
    pub async fn certificate(&self) -> Result<CertificateRecord> {
        // Both rows are read in one moment.
        let mut transaction = self.database.begin().await?;
        let issued: Option<IssuedRow> = optional!(
            transaction,
            "SELECT names, directory, chain, private_key, issued_ts FROM certificates WHERE name = $1",
            SERVER
        )?;
        let renewal: Option<RenewalRow> = optional!(
            transaction,
            "SELECT wanted, failures, next_attempt_ts, last_error, renewal_asked FROM certificates WHERE name = $1",
            SERVER
        )?;
        transaction.commit().await?;
        let issued = match issued {
            Some((Some(names), Some(directory), Some(chain), Some(private_key), Some(issued_ts))) => {
                Some(IssuedCertificate { names, directory, chain, private_key, issued_ts })
            }
            _ => None,
        };
        let (wanted, failures, next_attempt_ts, last_error, renewal_asked) = renewal.unwrap_or_default();
        Ok(CertificateRecord { issued, wanted, failures, next_attempt_ts, last_error, renewal_asked })
    }

    /// Writes the record, if `lease` is still held; false if it is not.
    pub async fn put_certificate(&self, lease: &Lease, record: &CertificateRecord) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        if !Self::is_held(&mut transaction, lease).await? {
            return Ok(false);
        }
        ensure_row(&mut transaction).await?;
        let issued = record.issued.as_ref();
        execute!(
            transaction,
            "UPDATE certificates SET names = $2, directory = $3, chain = $4, private_key = $5, issued_ts = $6, wanted = $7,
                 failures = $8, next_attempt_ts = $9, last_error = $10, renewal_asked = $11
             WHERE name = $1",
            SERVER,
            issued.map(|issued| issued.names.as_str()),
            issued.map(|issued| issued.directory.as_str()),
            issued.map(|issued| issued.chain.as_str()),
            issued.map(|issued| issued.private_key.as_str()),
            issued.map(|issued| issued.issued_ts),
            record.wanted.as_deref(),
            record.failures,
            record.next_attempt_ts,
            record.last_error.as_deref(),
            record.renewal_asked
        )?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Asks whoever looks after the certificate for a new one, now.
    pub async fn ask_for_certificate(&self) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        ensure_row(&mut transaction).await?;
        execute!(
            transaction,
            "UPDATE certificates SET renewal_asked = TRUE, failures = 0, next_attempt_ts = 0 WHERE name = $1",
            SERVER
        )?;
        transaction.commit().await
    }

    /// The credentials of the account at an authority, in JSON.
    pub async fn acme_account(&self, directory: &str) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> =
            optional!(reader, "SELECT credentials FROM acme_accounts WHERE directory = $1", directory)?;
        Ok(found.map(|(credentials,)| credentials))
    }

    /// Keeps them, in place of older ones.
    pub async fn put_acme_account(&self, directory: &str, credentials: &str) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO acme_accounts (directory, credentials, created_ts) VALUES ($1, $2, $3)
             ON CONFLICT (directory) DO UPDATE SET credentials = excluded.credentials, created_ts = excluded.created_ts",
            directory,
            credentials,
            now_ms()
        )?;
        transaction.commit().await
    }

    /// What is shown to an authority that asks for `subject` (a token, or a name).
    pub async fn acme_proof(&self, kind: &str, subject: &str) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> = optional!(
            reader,
            "SELECT value FROM acme_proofs WHERE kind = $1 AND subject = $2 AND created_ts > $3",
            kind,
            subject,
            now_ms() - PROOF_AGE_MS_MAX
        )?;
        Ok(found.map(|(value,)| value))
    }

    /// Keeps a proof for an hour.
    pub async fn put_acme_proof(&self, kind: &str, subject: &str, value: &str) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM acme_proofs WHERE created_ts <= $1", now_ms() - PROOF_AGE_MS_MAX)?;
        execute!(
            transaction,
            "INSERT INTO acme_proofs (kind, subject, value, created_ts) VALUES ($1, $2, $3, $4)
             ON CONFLICT (kind, subject) DO UPDATE SET value = excluded.value, created_ts = excluded.created_ts",
            kind,
            subject,
            value,
            now_ms()
        )?;
        transaction.commit().await
    }

    /// Forgets a proof.
    pub async fn forget_acme_proof(&self, kind: &str, subject: &str) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM acme_proofs WHERE kind = $1 AND subject = $2", kind, subject)?;
        transaction.commit().await
    }
}

async fn ensure_row(transaction: &mut Transaction) -> Result<()> {
    execute!(
        transaction,
        "INSERT INTO certificates (name, failures, next_attempt_ts, renewal_asked) VALUES ($1, 0, 0, FALSE)
         ON CONFLICT (name) DO NOTHING",
        SERVER
    )?;
    Ok(())
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CertificateRecord, IssuedCertificate};
    use crate::{
        Candidate,
        testing::{Fresh, on_both},
    };

    /// The record is what was written by who holds the lease, and nobody else writes it.
    #[tokio::test]
    async fn only_the_holder_writes() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let candidate = |holder: &str, seconds: u64| Candidate {
                name: "certificates",
                holder: holder.to_owned(),
                ttl: Duration::from_secs(seconds),
            };
            assert_eq!(store.certificate().await.unwrap(), CertificateRecord::default());
            let first = store.take_lease(&candidate("a", 0)).await.unwrap().unwrap();
            let second = store.take_lease(&candidate("b", 600)).await.unwrap().unwrap();
            let failed = CertificateRecord {
                wanted: Some("w".to_owned()),
                failures: 2,
                next_attempt_ts: i64::MAX / 2,
                last_error: Some("no".to_owned()),
                ..CertificateRecord::default()
            };
            assert!(!store.put_certificate(&first, &failed).await.unwrap());
            assert_eq!(store.certificate().await.unwrap(), CertificateRecord::default());
            assert!(store.put_certificate(&second, &failed).await.unwrap());
            assert_eq!(store.certificate().await.unwrap(), failed);
            store.ask_for_certificate().await.unwrap();
            let asked = store.certificate().await.unwrap();
            assert!(asked.renewal_asked && asked.failures == 0 && asked.next_attempt_ts == 0);
            let issued = IssuedCertificate {
                names: "[\"a.example\"]".to_owned(),
                directory: "https://acme.example/".to_owned(),
                chain: "chain".to_owned(),
                private_key: "key".to_owned(),
                issued_ts: 17,
            };
            let done = CertificateRecord { issued: Some(issued), ..CertificateRecord::default() };
            assert!(store.put_certificate(&second, &done).await.unwrap());
            assert_eq!(store.certificate().await.unwrap(), done);
            assert!(!format!("{done:?}").contains("key"), "{done:?}");
            store.close().await;
        })
        .await;
    }

    /// Accounts and proofs are kept and replaced, proofs are forgotten.
    #[tokio::test]
    async fn accounts_and_proofs() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            assert!(store.acme_account("https://a/").await.unwrap().is_none());
            for credentials in ["{}", "{\"id\":1}"] {
                store.put_acme_account("https://a/", credentials).await.unwrap();
                assert_eq!(store.acme_account("https://a/").await.unwrap().as_deref(), Some(credentials));
            }
            for value in ["v", "w"] {
                store.put_acme_proof("http-01", "token", value).await.unwrap();
                assert_eq!(store.acme_proof("http-01", "token").await.unwrap().as_deref(), Some(value));
            }
            assert!(store.acme_proof("tls-alpn-01", "token").await.unwrap().is_none());
            store.forget_acme_proof("http-01", "token").await.unwrap();
            assert!(store.acme_proof("http-01", "token").await.unwrap().is_none());
            store.close().await;
        })
        .await;
    }
}
