//! Cross-signing keys, and the signatures that tie keys together.

use std::sync::Arc;

use super::device_lists::{Audience, DeviceListChange};
use crate::{
    Change, Error, Result, Store,
    sql::{Ids, execute, listed, optional, rows},
};

/// A user's cross-signing key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossSigningKey {
    /// Whose it is.
    pub user_nid: i64,
    /// `master`, `self_signing` or `user_signing`.
    pub usage: String,
    /// The key: JSON.
    pub json: String,
}

/// What changes of a user's cross-signing keys.
#[derive(Clone, Debug, Default)]
pub struct CrossSigningUpdate {
    /// The master key that the user must still have for the change to go through.
    pub expected_master: Option<String>,
    /// The new keys: usage, JSON.
    pub keys: Vec<(String, String)>,
    /// The usages of keys that go.
    pub gone: Vec<String>,
    /// The public keys, in base64, that are replaced or gone: signatures of them and by them go too.
    pub replaced: Vec<String>,
}

/// A signature that one of our users has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySignature {
    /// Whose key was signed.
    pub target_nid: i64,
    /// A device's identifier, or a cross-signing key in base64.
    pub target: String,
    /// Who signed it.
    pub signer_nid: i64,
    /// By which key, for example `ed25519:DEVICE`.
    pub key_id: String,
    /// The signature in base64.
    pub signature: String,
}

type SignatureRow = (i64, String, i64, String, String);

impl Store {
    /// The cross-signing keys of some users.
    pub async fn cross_signing_keys(&self, user_nids: &[i64]) -> Result<Vec<CrossSigningKey>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(i64, String, String)> = rows!(
            reader,
            listed!("SELECT user_nid, usage, json FROM cross_signing_keys WHERE user_nid ", "$1", ""),
            Ids(user_nids)
        )?;
        Ok(found.into_iter().map(|(user_nid, usage, json)| CrossSigningKey { user_nid, usage, json }).collect())
    }

    /// Changes one of our users' cross-signing keys, and announces that. False if the master key is not the expected
    /// one any more.
    pub async fn set_cross_signing_keys(self: &Arc<Self>, user_nid: i64, update: CrossSigningUpdate) -> Result<bool> {
        let audience = self.own_audience(user_nid).await?;
        self.write_in_stream(move |write| {
            Box::pin(async move {
                let master: Option<(String,)> = optional!(
                    write.transaction,
                    "SELECT json FROM cross_signing_keys WHERE user_nid = $1 AND usage = 'master'",
                    user_nid
                )?;
                if master.map(|(json,)| json) != update.expected_master {
                    return Ok(false);
                }
                for usage in &update.gone {
                    execute!(
                        write.transaction,
                        "DELETE FROM cross_signing_keys WHERE user_nid = $1 AND usage = $2",
                        user_nid,
                        &**usage
                    )?;
                }
                for (usage, json) in &update.keys {
                    write.put_cross_signing_key(user_nid, usage, json).await?;
                }
                for key in &update.replaced {
                    execute!(
                        write.transaction,
                        "DELETE FROM key_signatures
                         WHERE (target_nid = $1 AND target = $2) OR (signer_nid = $1 AND key_id = $3)",
                        user_nid,
                        &**key,
                        format!("ed25519:{key}")
                    )?;
                }
                write.announce_device(user_nid, "", &audience).await?;
                Ok(true)
            })
        })
        .await
    }

    /// The signatures on the keys of some users that they made themselves, and those that a viewer made.
    pub async fn key_signatures(&self, target_nids: &[i64], viewer_nid: Option<i64>) -> Result<Vec<KeySignature>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<SignatureRow> = rows!(
            reader,
            listed!(
                "SELECT target_nid, target, signer_nid, key_id, signature FROM key_signatures WHERE target_nid ",
                "$1",
                " AND (signer_nid = target_nid OR signer_nid = $2)"
            ),
            Ids(target_nids),
            viewer_nid
        )?;
        Ok(found
            .into_iter()
            .map(|(target_nid, target, signer_nid, key_id, signature)| KeySignature {
                target_nid,
                target,
                signer_nid,
                key_id,
                signature,
            })
            .collect())
    }

    /// Keeps signatures that one of our users has made, and announces them to those who may see them.
    pub async fn add_key_signatures(self: &Arc<Self>, signer_nid: i64, signatures: Vec<KeySignature>) -> Result<()> {
        if signatures.is_empty() {
            return Ok(());
        }
        let audience = self.own_audience(signer_nid).await?;
        self.write_in_stream(move |write| {
            Box::pin(async move {
                for signature in &signatures {
                    let is_own = signature.target_nid == signer_nid;
                    let pos = if is_own {
                        let device_id = write.own_device(signature).await?;
                        write.announce_device(signer_nid, &device_id, &audience).await?
                    } else {
                        write.announce_signed(signer_nid, signature.target_nid).await?
                    };
                    execute!(
                        write.transaction,
                        "INSERT INTO key_signatures (target_nid, target, signer_nid, key_id, signature, pos)
                         VALUES ($1, $2, $3, $4, $5, $6)
                         ON CONFLICT (target_nid, target, signer_nid, key_id)
                         DO UPDATE SET signature = excluded.signature, pos = excluded.pos",
                        signature.target_nid,
                        &*signature.target,
                        signature.signer_nid,
                        &*signature.key_id,
                        &*signature.signature,
                        pos
                    )?;
                }
                Ok(())
            })
        })
        .await
    }
}

impl super::StreamWrite {
    /// Removes what a user whose account ends has kept of keys, but for the devices: cross-signing keys, backups.
    pub(crate) async fn delete_own_keys(&mut self, user_nid: i64) -> Result<()> {
        execute!(self.transaction, "DELETE FROM cross_signing_keys WHERE user_nid = $1", user_nid)?;
        execute!(self.transaction, "DELETE FROM key_signatures WHERE target_nid = $1 OR signer_nid = $1", user_nid)?;
        execute!(self.transaction, "DELETE FROM backup_sessions WHERE user_nid = $1", user_nid)?;
        execute!(self.transaction, "DELETE FROM backups WHERE user_nid = $1", user_nid)?;
        Ok(())
    }

    pub(crate) async fn put_cross_signing_key(&mut self, user_nid: i64, usage: &str, json: &str) -> Result<()> {
        execute!(
            self.transaction,
            "INSERT INTO cross_signing_keys (user_nid, usage, json) VALUES ($1, $2, $3)
             ON CONFLICT (user_nid, usage) DO UPDATE SET json = excluded.json",
            user_nid,
            usage,
            json
        )?;
        Ok(())
    }

    /// The device that was signed; empty if it was a cross-signing key.
    async fn own_device(&mut self, signature: &KeySignature) -> Result<String, Error> {
        let device: Option<(String,)> = optional!(
            self.transaction,
            "SELECT device_id FROM devices WHERE user_nid = $1 AND device_id = $2",
            signature.target_nid,
            &*signature.target
        )?;
        Ok(device.map(|(device_id,)| device_id).unwrap_or_default())
    }

    /// Tells who signed another user's key that it is signed; nobody else may know.
    async fn announce_signed(&mut self, signer_nid: i64, target_nid: i64) -> Result<i64> {
        let pos = self.position().await?;
        let rooms = Arc::default();
        let change = DeviceListChange { pos, user_nid: target_nid, rooms, only_for: Some(signer_nid) };
        self.tell(Change::DeviceList(Arc::new(change)));
        Ok(pos)
    }

    /// Announces that another server's user has other cross-signing keys or devices.
    pub(crate) async fn announce_remote(&mut self, user_nid: i64, audience: &Audience) -> Result<()> {
        self.announce_device(user_nid, "", audience).await.map(drop)
    }
}
