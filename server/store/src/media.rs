//! Which files there are: uploaded ones, copies of other servers', and smaller pictures. The bytes are elsewhere, by
//! their hash; what loses a row is noted as garbage, and removed when no other row refers to it.

use crate::{
    Result, Store,
    database::Transaction,
    sql::{execute, optional, row, rows},
};

/// A file that was uploaded here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaFile {
    /// The part of the `mxc://` URI behind the server's name.
    pub media_id: String,
    /// Who uploaded it.
    pub uploader_nid: i64,
    /// What its uploader says it is.
    pub content_type: Option<String>,
    /// What its uploader calls it.
    pub file_name: Option<String>,
    /// Its length in bytes.
    pub size: i64,
    /// The SHA-256 hash of its content.
    pub sha256: Vec<u8>,
    /// When it was uploaded, in milliseconds since 1970.
    pub created_ts: i64,
    /// Since when it is withheld from everybody.
    pub quarantined_ts: Option<i64>,
}

/// A copy of another server's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteMediaFile {
    /// Whose file it is.
    pub server_name: String,
    /// The part of the `mxc://` URI behind the server's name.
    pub media_id: String,
    /// What its server says it is.
    pub content_type: Option<String>,
    /// What its server calls it.
    pub file_name: Option<String>,
    /// Its length in bytes.
    pub size: i64,
    /// The SHA-256 hash of its content.
    pub sha256: Vec<u8>,
    /// When it was fetched, in milliseconds since 1970.
    pub fetched_ts: i64,
    /// When somebody asked for it last, about.
    pub used_ts: i64,
    /// Since when it is withheld from everybody.
    pub quarantined_ts: Option<i64>,
}

/// An identifier that was given out before there is a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaReservation {
    /// Who may upload it.
    pub uploader_nid: i64,
    /// Until when, in milliseconds since 1970.
    pub expires_ts: i64,
}

/// A smaller picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaThumbnail {
    /// The hash of the content that it was made of.
    pub source_sha256: Vec<u8>,
    /// The width that it was made for, in pixels.
    pub width: i64,
    /// The height that it was made for, in pixels.
    pub height: i64,
    /// How it was made to fit.
    pub method: String,
    /// What it is.
    pub content_type: String,
    /// Its length in bytes.
    pub size: i64,
    /// The SHA-256 hash of its content.
    pub sha256: Vec<u8>,
    /// When it was made, in milliseconds since 1970.
    pub created_ts: i64,
}

/// How much there is of a kind of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaTotal {
    /// `local`, `remote` or `thumbnails`.
    pub kind: &'static str,
    /// How many there are.
    pub files: i64,
    /// Their bytes. What several have in common is on the disk once and counted for each.
    pub bytes: i64,
}

type MediaRow = (String, i64, Option<String>, Option<String>, i64, Vec<u8>, i64, Option<i64>);
type RemoteRow = (Option<String>, Option<String>, i64, Vec<u8>, i64, i64, Option<i64>);

impl Store {
    /// Remembers an uploaded file.
    pub async fn create_media(&self, file: &MediaFile) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        insert(&mut transaction, file).await?;
        transaction.commit().await
    }

    /// An uploaded file.
    pub async fn media(&self, media_id: &str) -> Result<Option<MediaFile>> {
        let mut reader = self.database.reader().await?;
        let found: Option<MediaRow> = optional!(
            reader,
            "SELECT media_id, uploader_nid, content_type, file_name, size, sha256, created_ts, quarantined_ts
             FROM media WHERE media_id = $1",
            media_id
        )?;
        Ok(found.map(|(media_id, uploader_nid, content_type, file_name, size, sha256, created_ts, quarantined_ts)| {
            MediaFile { media_id, uploader_nid, content_type, file_name, size, sha256, created_ts, quarantined_ts }
        }))
    }

    /// Bytes of all that a user has uploaded.
    pub async fn uploaded_bytes(&self, uploader_nid: i64) -> Result<i64> {
        let mut reader = self.database.reader().await?;
        let (bytes,): (i64,) = row!(
            reader,
            "SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM media WHERE uploader_nid = $1",
            uploader_nid
        )?;
        Ok(bytes)
    }

    /// Gives out an identifier for a file to come. `false` if the user has `reservations_max` already that are not over.
    pub async fn reserve_media(
        &self,
        media_id: &str,
        reservation: MediaReservation,
        reservations_max: i64,
        now_ms: i64,
    ) -> Result<bool> {
        let MediaReservation { uploader_nid, expires_ts } = reservation;
        let mut transaction = self.database.begin().await?;
        // Two requests of a user count one after the other.
        execute!(transaction, "UPDATE users SET user_nid = user_nid WHERE user_nid = $1", uploader_nid)?;
        let (count,): (i64,) = row!(
            transaction,
            "SELECT count(*) FROM media_reservations WHERE uploader_nid = $1 AND expires_ts > $2",
            uploader_nid,
            now_ms
        )?;
        if count >= reservations_max {
            return Ok(false);
        }
        execute!(
            transaction,
            "INSERT INTO media_reservations (media_id, uploader_nid, expires_ts) VALUES ($1, $2, $3)",
            media_id,
            uploader_nid,
            expires_ts
        )?;
        transaction.commit().await?;
        Ok(true)
    }

    /// What an identifier was given out for, as long as that is not over.
    pub async fn media_reservation(&self, media_id: &str, now_ms: i64) -> Result<Option<MediaReservation>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(i64, i64)> = optional!(
            reader,
            "SELECT uploader_nid, expires_ts FROM media_reservations WHERE media_id = $1 AND expires_ts > $2",
            media_id,
            now_ms
        )?;
        Ok(found.map(|(uploader_nid, expires_ts)| MediaReservation { uploader_nid, expires_ts }))
    }

    /// Remembers a file whose identifier was given out before. `false` if its time is over, or it came already.
    pub async fn fill_media(&self, file: &MediaFile) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let ended = execute!(
            transaction,
            "DELETE FROM media_reservations WHERE media_id = $1 AND uploader_nid = $2 AND expires_ts > $3",
            file.media_id.as_str(),
            file.uploader_nid,
            file.created_ts
        )?;
        if ended != 1 {
            return Ok(false);
        }
        insert(&mut transaction, file).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Forgets identifiers whose time is over.
    pub async fn expire_media_reservations(&self, now_ms: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let ended = execute!(transaction, "DELETE FROM media_reservations WHERE expires_ts <= $1", now_ms)?;
        transaction.commit().await?;
        Ok(ended)
    }

    /// A copy of another server's file.
    pub async fn remote_media(&self, server_name: &str, media_id: &str) -> Result<Option<RemoteMediaFile>> {
        let mut reader = self.database.reader().await?;
        let found: Option<RemoteRow> = optional!(
            reader,
            "SELECT content_type, file_name, size, sha256, fetched_ts, used_ts, quarantined_ts FROM remote_media
             WHERE server_name = $1 AND media_id = $2",
            server_name,
            media_id
        )?;
        Ok(found.map(|(content_type, file_name, size, sha256, fetched_ts, used_ts, quarantined_ts)| RemoteMediaFile {
            server_name: server_name.to_owned(),
            media_id: media_id.to_owned(),
            content_type,
            file_name,
            size,
            sha256,
            fetched_ts,
            used_ts,
            quarantined_ts,
        }))
    }

    /// Remembers a copy of another server's file, in place of the one before. That a file is withheld stays.
    pub async fn keep_remote_media(&self, file: &RemoteMediaFile) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO media_garbage (sha256, since_ts)
             SELECT sha256, $3 FROM remote_media WHERE server_name = $1 AND media_id = $2
             ON CONFLICT (sha256) DO NOTHING",
            file.server_name.as_str(),
            file.media_id.as_str(),
            file.fetched_ts
        )?;
        execute!(
            transaction,
            "INSERT INTO remote_media
                 (server_name, media_id, content_type, file_name, size, sha256, fetched_ts, used_ts, quarantined_ts)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (server_name, media_id) DO UPDATE SET
                 content_type = excluded.content_type, file_name = excluded.file_name, size = excluded.size,
                 sha256 = excluded.sha256, fetched_ts = excluded.fetched_ts, used_ts = excluded.used_ts",
            file.server_name.as_str(),
            file.media_id.as_str(),
            file.content_type.as_deref(),
            file.file_name.as_deref(),
            file.size,
            file.sha256.as_slice(),
            file.fetched_ts,
            file.used_ts,
            file.quarantined_ts
        )?;
        transaction.commit().await
    }

    /// Notes that somebody asked for a copy.
    pub async fn use_remote_media(&self, server_name: &str, media_id: &str, used_ts: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "UPDATE remote_media SET used_ts = $3 WHERE server_name = $1 AND media_id = $2 AND used_ts < $3",
            server_name,
            media_id,
            used_ts
        )?;
        transaction.commit().await
    }

    /// Forgets copies that nobody asked for since; what is withheld stays, so that it is not fetched again. Answers how
    /// many, at most `limit`.
    pub async fn forget_unused_remote_media(&self, before_ts: i64, now_ms: i64, limit: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let gone: Vec<(Vec<u8>,)> = rows!(
            transaction,
            "DELETE FROM remote_media WHERE (server_name, media_id) IN (
                 SELECT server_name, media_id FROM remote_media
                 WHERE used_ts < $1 AND quarantined_ts IS NULL ORDER BY used_ts LIMIT $2
             ) RETURNING sha256",
            before_ts,
            limit
        )?;
        for (sha256,) in &gone {
            discard(&mut transaction, sha256, now_ms).await?;
        }
        transaction.commit().await?;
        Ok(gone.len() as u64)
    }

    /// Removes an uploaded file or, with the name of another server, the copy of its file. `false` if there is none.
    pub async fn delete_media(&self, server_name: Option<&str>, media_id: &str, now_ms: i64) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let gone: Option<(Vec<u8>,)> = match server_name {
            None => optional!(transaction, "DELETE FROM media WHERE media_id = $1 RETURNING sha256", media_id)?,
            Some(server_name) => optional!(
                transaction,
                "DELETE FROM remote_media WHERE server_name = $1 AND media_id = $2 RETURNING sha256",
                server_name,
                media_id
            )?,
        };
        let Some((sha256,)) = gone else { return Ok(false) };
        discard(&mut transaction, &sha256, now_ms).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes what a user has uploaded, at most `limit` files. Answers how many.
    pub async fn delete_media_of(&self, uploader_nid: i64, now_ms: i64, limit: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let gone: Vec<(Vec<u8>,)> = rows!(
            transaction,
            "DELETE FROM media WHERE media_id IN (SELECT media_id FROM media WHERE uploader_nid = $1 LIMIT $2)
             RETURNING sha256",
            uploader_nid,
            limit
        )?;
        for (sha256,) in &gone {
            discard(&mut transaction, sha256, now_ms).await?;
        }
        transaction.commit().await?;
        Ok(gone.len() as u64)
    }

    /// Withholds a file from everybody, or with `None` gives it back. `false` if there is none.
    pub async fn quarantine_media(
        &self,
        server_name: Option<&str>,
        media_id: &str,
        quarantined_ts: Option<i64>,
    ) -> Result<bool> {
        let mut transaction = self.database.begin().await?;
        let changed = match server_name {
            None => execute!(
                transaction,
                "UPDATE media SET quarantined_ts = $2 WHERE media_id = $1",
                media_id,
                quarantined_ts
            )?,
            Some(server_name) => execute!(
                transaction,
                "UPDATE remote_media SET quarantined_ts = $3 WHERE server_name = $1 AND media_id = $2",
                server_name,
                media_id,
                quarantined_ts
            )?,
        };
        transaction.commit().await?;
        Ok(changed > 0)
    }

    /// Withholds all that a user has uploaded. Answers how many files.
    pub async fn quarantine_media_of(&self, uploader_nid: i64, quarantined_ts: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let changed = execute!(
            transaction,
            "UPDATE media SET quarantined_ts = $2 WHERE uploader_nid = $1 AND quarantined_ts IS NULL",
            uploader_nid,
            quarantined_ts
        )?;
        transaction.commit().await?;
        Ok(changed)
    }

    /// Lets nobody upload or fetch a content, and withholds all files that have it.
    pub async fn block_media(&self, sha256: &[u8], blocked_ts: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO media_blocked (sha256, blocked_ts) VALUES ($1, $2) ON CONFLICT (sha256) DO NOTHING",
            sha256,
            blocked_ts
        )?;
        execute!(
            transaction,
            "UPDATE media SET quarantined_ts = $2 WHERE sha256 = $1 AND quarantined_ts IS NULL",
            sha256,
            blocked_ts
        )?;
        execute!(
            transaction,
            "UPDATE remote_media SET quarantined_ts = $2 WHERE sha256 = $1 AND quarantined_ts IS NULL",
            sha256,
            blocked_ts
        )?;
        transaction.commit().await
    }

    /// Whether nobody may upload or fetch a content.
    pub async fn is_media_blocked(&self, sha256: &[u8]) -> Result<bool> {
        let mut reader = self.database.reader().await?;
        let found: Option<(i64,)> =
            optional!(reader, "SELECT blocked_ts FROM media_blocked WHERE sha256 = $1", sha256)?;
        Ok(found.is_some())
    }

    /// A smaller picture.
    pub async fn media_thumbnail(
        &self,
        source_sha256: &[u8],
        width: i64,
        height: i64,
        method: &str,
    ) -> Result<Option<MediaThumbnail>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String, i64, Vec<u8>, i64)> = optional!(
            reader,
            "SELECT content_type, size, sha256, created_ts FROM media_thumbnails
             WHERE source_sha256 = $1 AND width = $2 AND height = $3 AND method = $4",
            source_sha256,
            width,
            height,
            method
        )?;
        Ok(found.map(|(content_type, size, sha256, created_ts)| MediaThumbnail {
            source_sha256: source_sha256.to_vec(),
            width,
            height,
            method: method.to_owned(),
            content_type,
            size,
            sha256,
            created_ts,
        }))
    }

    /// Remembers a smaller picture, in place of the one before.
    pub async fn keep_media_thumbnail(&self, thumbnail: &MediaThumbnail) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO media_thumbnails
                 (source_sha256, width, height, method, content_type, size, sha256, created_ts)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (source_sha256, width, height, method) DO UPDATE SET
                 content_type = excluded.content_type, size = excluded.size, sha256 = excluded.sha256,
                 created_ts = excluded.created_ts",
            thumbnail.source_sha256.as_slice(),
            thumbnail.width,
            thumbnail.height,
            thumbnail.method.as_str(),
            thumbnail.content_type.as_str(),
            thumbnail.size,
            thumbnail.sha256.as_slice(),
            thumbnail.created_ts
        )?;
        transaction.commit().await
    }

    /// Notes that a content may have no row.
    pub async fn note_media_garbage(&self, sha256: &[u8], since_ts: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        discard(&mut transaction, sha256, since_ts).await?;
        transaction.commit().await
    }

    /// Contents that lost a row before a time, the oldest first.
    pub async fn media_garbage(&self, before_ts: i64, limit: i64) -> Result<Vec<Vec<u8>>> {
        let mut reader = self.database.reader().await?;
        let found: Vec<(Vec<u8>,)> = rows!(
            reader,
            "SELECT sha256 FROM media_garbage WHERE since_ts < $1 ORDER BY since_ts LIMIT $2",
            before_ts,
            limit
        )?;
        Ok(found.into_iter().map(|(sha256,)| sha256).collect())
    }

    /// How many rows refer to a content. Thumbnails of what is there no more do not count.
    pub async fn media_references(&self, sha256: &[u8]) -> Result<i64> {
        let mut reader = self.database.reader().await?;
        let (count,): (i64,) = row!(
            reader,
            "SELECT (SELECT count(*) FROM media WHERE sha256 = $1)
                  + (SELECT count(*) FROM remote_media WHERE sha256 = $1)
                  + (SELECT count(*) FROM media_thumbnails AS t WHERE t.sha256 = $1 AND (
                        EXISTS (SELECT 1 FROM media WHERE sha256 = t.source_sha256)
                        OR EXISTS (SELECT 1 FROM remote_media WHERE sha256 = t.source_sha256)))",
            sha256
        )?;
        Ok(count)
    }

    /// Forgets a content that was looked at; with `is_gone` also the thumbnails that were made of it, whose contents are
    /// looked at next.
    pub async fn settle_media_garbage(&self, sha256: &[u8], is_gone: bool, now_ms: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(transaction, "DELETE FROM media_garbage WHERE sha256 = $1", sha256)?;
        if is_gone {
            let gone: Vec<(Vec<u8>,)> =
                rows!(transaction, "DELETE FROM media_thumbnails WHERE source_sha256 = $1 RETURNING sha256", sha256)?;
            for (thumbnail,) in gone.iter().filter(|(thumbnail,)| thumbnail != sha256) {
                discard(&mut transaction, thumbnail, now_ms).await?;
            }
        }
        transaction.commit().await
    }

    /// The contents that there should be, in the order of their hashes, after one.
    pub async fn media_contents(&self, after: &[u8], limit: i64) -> Result<Vec<(Vec<u8>, i64)>> {
        let mut reader = self.database.reader().await?;
        Ok(rows!(
            reader,
            "SELECT sha256, max(size) FROM (
                 SELECT sha256, size FROM media WHERE sha256 > $1
                 UNION SELECT sha256, size FROM remote_media WHERE sha256 > $1
                 UNION SELECT sha256, size FROM media_thumbnails WHERE sha256 > $1
             ) AS contents GROUP BY sha256 ORDER BY sha256 LIMIT $2",
            after,
            limit
        )?)
    }

    /// How much there is of each kind.
    pub async fn media_totals(&self) -> Result<[MediaTotal; 3]> {
        let mut reader = self.database.reader().await?;
        let local: (i64, i64) = row!(reader, "SELECT count(*), CAST(coalesce(sum(size), 0) AS BIGINT) FROM media")?;
        let remote: (i64, i64) =
            row!(reader, "SELECT count(*), CAST(coalesce(sum(size), 0) AS BIGINT) FROM remote_media")?;
        let small: (i64, i64) =
            row!(reader, "SELECT count(*), CAST(coalesce(sum(size), 0) AS BIGINT) FROM media_thumbnails")?;
        let total = |kind, (files, bytes)| MediaTotal { kind, files, bytes };
        Ok([total("local", local), total("remote", remote), total("thumbnails", small)])
    }

    /// When access without a token was frozen: now, if it was not before.
    pub async fn freeze_media(&self, now_ms: i64) -> Result<i64> {
        let pinned = self.database.pin("media_frozen_ts", &now_ms.to_string()).await?;
        Ok(pinned.parse().unwrap_or(now_ms))
    }

    /// What a page said of itself, by the hash of its address.
    pub async fn url_preview(&self, url_hash: &[u8], now_ms: i64) -> Result<Option<String>> {
        let mut reader = self.database.reader().await?;
        let found: Option<(String,)> = optional!(
            reader,
            "SELECT preview FROM url_previews WHERE url_hash = $1 AND expires_ts > $2",
            url_hash,
            now_ms
        )?;
        Ok(found.map(|(preview,)| preview))
    }

    /// Remembers what a page says of itself.
    pub async fn keep_url_preview(&self, url_hash: &[u8], preview: &str, expires_ts: i64) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO url_previews (url_hash, preview, expires_ts) VALUES ($1, $2, $3)
             ON CONFLICT (url_hash) DO UPDATE SET preview = excluded.preview, expires_ts = excluded.expires_ts",
            url_hash,
            preview,
            expires_ts
        )?;
        transaction.commit().await
    }

    /// Forgets what pages said too long ago.
    pub async fn expire_url_previews(&self, now_ms: i64) -> Result<u64> {
        let mut transaction = self.database.begin().await?;
        let gone = execute!(transaction, "DELETE FROM url_previews WHERE expires_ts <= $1", now_ms)?;
        transaction.commit().await?;
        Ok(gone)
    }
}

async fn insert(transaction: &mut Transaction, file: &MediaFile) -> Result<()> {
    execute!(
        transaction,
        "INSERT INTO media (media_id, uploader_nid, content_type, file_name, size, sha256, created_ts, quarantined_ts)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        file.media_id.as_str(),
        file.uploader_nid,
        file.content_type.as_deref(),
        file.file_name.as_deref(),
        file.size,
        file.sha256.as_slice(),
        file.created_ts,
        file.quarantined_ts
    )?;
    Ok(())
}

/// Notes that a content lost a row.
async fn discard(transaction: &mut Transaction, sha256: &[u8], now_ms: i64) -> Result<()> {
    execute!(
        transaction,
        "INSERT INTO media_garbage (sha256, since_ts) VALUES ($1, $2) ON CONFLICT (sha256) DO NOTHING",
        sha256,
        now_ms
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ruma::user_id;

    use super::{MediaFile, MediaReservation, MediaThumbnail, RemoteMediaFile};
    use crate::{
        Store,
        testing::{Fresh, on_both},
    };

    async fn file(store: &Arc<Store>, media_id: &str, sha256: &[u8]) -> MediaFile {
        MediaFile {
            media_id: media_id.to_owned(),
            uploader_nid: store.user_nid(user_id!("@alice:example.org")).await.unwrap(),
            content_type: Some("image/png".to_owned()),
            file_name: None,
            size: 3,
            sha256: sha256.to_vec(),
            created_ts: 5,
            quarantined_ts: None,
        }
    }

    fn copy(media_id: &str, sha256: &[u8], used_ts: i64) -> RemoteMediaFile {
        RemoteMediaFile {
            server_name: "elsewhere.org".to_owned(),
            media_id: media_id.to_owned(),
            content_type: None,
            file_name: Some("x".to_owned()),
            size: 7,
            sha256: sha256.to_vec(),
            fetched_ts: 5,
            used_ts,
            quarantined_ts: None,
        }
    }

    /// What is told of a file comes back, and an identifier is given out once.
    #[tokio::test]
    async fn files_are_found_by_their_identifier() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let file = file(&store, "abc", &[0, 255, 7]).await;
            store.create_media(&file).await.unwrap();
            assert!(store.create_media(&file).await.unwrap_err().is_constraint());
            assert_eq!(store.media("abc").await.unwrap(), Some(file.clone()));
            assert!(store.media("ABC").await.unwrap().is_none());
            assert_eq!(store.uploaded_bytes(file.uploader_nid).await.unwrap(), 3);
            assert!(store.quarantine_media(None, "abc", Some(9)).await.unwrap());
            assert!(!store.quarantine_media(None, "abd", Some(9)).await.unwrap());
            assert_eq!(store.media("abc").await.unwrap().unwrap().quarantined_ts, Some(9));
            store.close().await;
        })
        .await;
    }

    /// An identifier given out is filled once, by its owner, in time; and nobody has too many.
    #[tokio::test]
    async fn reservations_are_filled_once() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let mut file = file(&store, "a", &[1]).await;
            let bob = store.user_nid(user_id!("@bob:example.org")).await.unwrap();
            let reservation = MediaReservation { uploader_nid: file.uploader_nid, expires_ts: 10 };
            assert!(store.reserve_media("a", reservation, 2, 0).await.unwrap());
            assert!(store.reserve_media("b", reservation, 2, 0).await.unwrap());
            assert!(!store.reserve_media("c", reservation, 2, 0).await.unwrap());
            // Those that are over do not count.
            assert!(store.reserve_media("c", MediaReservation { expires_ts: 20, ..reservation }, 1, 10).await.unwrap());
            assert_eq!(store.media_reservation("a", 9).await.unwrap(), Some(reservation));
            assert_eq!(store.media_reservation("a", 10).await.unwrap(), None);
            assert!(!store.fill_media(&MediaFile { uploader_nid: bob, ..file.clone() }).await.unwrap());
            assert!(store.fill_media(&file).await.unwrap());
            assert!(!store.fill_media(&file).await.unwrap());
            file.media_id = "b".to_owned();
            file.created_ts = 10;
            assert!(!store.fill_media(&file).await.unwrap());
            assert_eq!(store.expire_media_reservations(10).await.unwrap(), 1);
            store.close().await;
        })
        .await;
    }

    /// Copies that nobody uses go, those that are withheld stay; a content is garbage when its last row is gone.
    #[tokio::test]
    async fn unused_copies_become_garbage() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            for (id, sha256, used_ts) in [("old", [1], 10), ("shared", [2], 11), ("new", [3], 90), ("bad", [4], 1)] {
                store.keep_remote_media(&copy(id, &sha256, used_ts)).await.unwrap();
            }
            store.create_media(&file(&store, "mine", &[2]).await).await.unwrap();
            store.use_remote_media("elsewhere.org", "new", 95).await.unwrap();
            store.use_remote_media("elsewhere.org", "new", 20).await.unwrap();
            assert_eq!(store.remote_media("elsewhere.org", "new").await.unwrap().unwrap().used_ts, 95);
            store.block_media(&[4], 50).await.unwrap();
            assert!(store.is_media_blocked(&[4]).await.unwrap() && !store.is_media_blocked(&[1]).await.unwrap());
            let small = MediaThumbnail {
                source_sha256: vec![1],
                width: 32,
                height: 32,
                method: "crop".to_owned(),
                content_type: "image/png".to_owned(),
                size: 1,
                sha256: vec![9],
                created_ts: 1,
            };
            store.keep_media_thumbnail(&small).await.unwrap();
            assert_eq!(store.media_thumbnail(&[1], 32, 32, "crop").await.unwrap(), Some(small));
            assert_eq!(store.media_thumbnail(&[1], 32, 32, "scale").await.unwrap(), None);
            assert_eq!(store.forget_unused_remote_media(50, 100, 1).await.unwrap(), 1);
            assert_eq!(store.forget_unused_remote_media(50, 100, 10).await.unwrap(), 1);
            assert!(store.remote_media("elsewhere.org", "bad").await.unwrap().unwrap().quarantined_ts.is_some());
            assert_eq!(store.media_garbage(100, 10).await.unwrap(), Vec::<Vec<u8>>::new());
            let mut garbage = store.media_garbage(101, 10).await.unwrap();
            garbage.sort();
            assert_eq!(garbage, [vec![1], vec![2]]);
            assert_eq!(store.media_references(&[1]).await.unwrap(), 0);
            assert_eq!(store.media_references(&[2]).await.unwrap(), 1);
            assert_eq!(store.media_references(&[9]).await.unwrap(), 0);
            store.settle_media_garbage(&[2], false, 100).await.unwrap();
            store.settle_media_garbage(&[1], true, 100).await.unwrap();
            // The thumbnail of what is gone is looked at next.
            assert_eq!(store.media_garbage(101, 10).await.unwrap(), [vec![9]]);
            assert!(store.delete_media(None, "mine", 100).await.unwrap());
            assert!(!store.delete_media(None, "mine", 100).await.unwrap());
            let totals = store.media_totals().await.unwrap();
            assert_eq!(totals.map(|total| (total.files, total.bytes)), [(0, 0), (2, 14), (0, 0)]);
            assert_eq!(store.media_contents(&[], 1).await.unwrap(), [(vec![3], 7)]);
            assert_eq!(store.media_contents(&[3], 10).await.unwrap(), [(vec![4], 7)]);
            store.close().await;
        })
        .await;
    }

    /// Previews are remembered for their time; the freeze for ever.
    #[tokio::test]
    async fn previews_expire() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            store.keep_url_preview(&[1], "{}", 10).await.unwrap();
            store.keep_url_preview(&[1], "{1}", 20).await.unwrap();
            assert_eq!(store.url_preview(&[1], 19).await.unwrap().as_deref(), Some("{1}"));
            assert_eq!(store.url_preview(&[1], 20).await.unwrap(), None);
            assert_eq!(store.expire_url_previews(20).await.unwrap(), 1);
            assert_eq!(store.freeze_media(7).await.unwrap(), 7);
            assert_eq!(store.freeze_media(8).await.unwrap(), 7);
            store.close().await;
        })
        .await;
    }
}
