//! Keeps what belongs to a certificate in a folder, for a process that has no database.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{Issued, Proof, Record, Storage, StorageError};

/// Proofs that are older are of orders that nobody remembers.
const PROOF_AGE_MAX: Duration = Duration::from_secs(3600);

/// A folder. All of it can be read by its owner alone.
#[derive(Clone, Debug)]
pub struct Folder {
    path: Arc<Path>,
}

impl Folder {
    /// Makes the folder if it is not there.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path.join("proofs"))?;
        Ok(Self { path: path.into() })
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        // A new file takes the place of the old one whole, or not at all.
        let new = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, self.path.join(name))
    }

    fn read(&self, name: &str) -> io::Result<Option<String>> {
        match fs::read_to_string(self.path.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn forget_old_proofs(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.path.join("proofs"))? {
            let entry = entry?;
            if entry.metadata()?.modified()?.elapsed().unwrap_or_default() > PROOF_AGE_MAX {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// A name for a file, of whatever text.
fn file_name(kind: &str, subject: &str) -> String {
    format!("{kind}-{}", super::order::hex(&Sha256::digest(subject)))
}

fn to_json(record: &Record) -> String {
    let issued = record.issued.as_ref().map(|issued| {
        json!({
            "names": issued.names,
            "directory": issued.directory,
            "chain": issued.chain,
            "private_key": issued.private_key,
            "issued_ts": issued.issued_ts,
        })
    });
    json!({
        "issued": issued,
        "wanted": record.wanted,
        "failures": record.failures,
        "next_attempt_ts": record.next_attempt_ts,
        "last_error": record.last_error,
        "renewal_asked": record.renewal_asked,
    })
    .to_string()
}

fn from_json(text: &str) -> Result<Record, StorageError> {
    let fields: Map<String, Value> = serde_json::from_str(text)?;
    let issued = match fields.get("issued") {
        None | Some(Value::Null) => None,
        Some(issued) => Some(issued_from_json(issued).ok_or("the record of the certificate is damaged")?),
    };
    Ok(Record {
        issued,
        wanted: fields.get("wanted").and_then(Value::as_str).map(str::to_owned),
        failures: fields.get("failures").and_then(Value::as_u64).and_then(|count| count.try_into().ok()).unwrap_or(0),
        next_attempt_ts: fields.get("next_attempt_ts").and_then(Value::as_i64).unwrap_or(0),
        last_error: fields.get("last_error").and_then(Value::as_str).map(str::to_owned),
        renewal_asked: fields.get("renewal_asked").and_then(Value::as_bool).unwrap_or(false),
    })
}

fn issued_from_json(issued: &Value) -> Option<Issued> {
    let text = |key: &str| issued.get(key)?.as_str().map(str::to_owned);
    let names = issued.get("names")?.as_array()?;
    Some(Issued {
        names: names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?,
        directory: text("directory")?,
        chain: text("chain")?,
        private_key: text("private_key")?,
        issued_ts: issued.get("issued_ts")?.as_i64()?,
    })
}

impl Storage for Folder {
    /// The lock on a file, which ends with the process.
    type Lease = File;

    async fn take_lease(&self, _time: Duration) -> Result<Option<File>, StorageError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    async fn renew_lease(&self, _lease: &File, _time: Duration) -> Result<bool, StorageError> {
        Ok(true)
    }

    async fn release_lease(&self, lease: File) -> Result<(), StorageError> {
        Ok(lease.unlock()?)
    }

    async fn record(&self) -> Result<Record, StorageError> {
        self.read("certificate.json")?.map_or_else(|| Ok(Record::default()), |text| from_json(&text))
    }

    async fn save_record(&self, _lease: &File, record: &Record) -> Result<bool, StorageError> {
        self.write("certificate.json", &to_json(record))?;
        Ok(true)
    }

    async fn account(&self, directory: &str) -> Result<Option<String>, StorageError> {
        Ok(self.read(&file_name("account", directory))?)
    }

    async fn save_account(&self, directory: &str, credentials: &str) -> Result<(), StorageError> {
        Ok(self.write(&file_name("account", directory), credentials)?)
    }

    async fn proof(&self, kind: &str, subject: &str) -> Result<Option<String>, StorageError> {
        Ok(self.read(&format!("proofs/{}", file_name(kind, subject)))?)
    }

    async fn save_proof(&self, proof: &Proof) -> Result<(), StorageError> {
        self.forget_old_proofs()?;
        Ok(self.write(&format!("proofs/{}", file_name(proof.kind, &proof.subject)), &proof.value)?)
    }

    async fn forget_proof(&self, proof: &Proof) -> Result<(), StorageError> {
        match fs::remove_file(self.path.join(format!("proofs/{}", file_name(proof.kind, &proof.subject)))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
