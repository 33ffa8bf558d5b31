//! Which files were uploaded, by whom. The bytes are elsewhere, by their hash.

use crate::{
    Result, Store,
    sql::{execute, optional},
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
}

type MediaRow = (String, i64, Option<String>, Option<String>, i64, Vec<u8>, i64);

impl Store {
    /// Remembers an uploaded file.
    pub async fn create_media(&self, file: &MediaFile) -> Result<()> {
        let mut transaction = self.database.begin().await?;
        execute!(
            transaction,
            "INSERT INTO media (media_id, uploader_nid, content_type, file_name, size, sha256, created_ts)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            file.media_id.as_str(),
            file.uploader_nid,
            file.content_type.as_deref(),
            file.file_name.as_deref(),
            file.size,
            file.sha256.as_slice(),
            file.created_ts
        )?;
        transaction.commit().await
    }

    /// An uploaded file.
    pub async fn media(&self, media_id: &str) -> Result<Option<MediaFile>> {
        let mut reader = self.database.reader().await?;
        let found: Option<MediaRow> = optional!(
            reader,
            "SELECT media_id, uploader_nid, content_type, file_name, size, sha256, created_ts FROM media
             WHERE media_id = $1",
            media_id
        )?;
        Ok(found.map(|(media_id, uploader_nid, content_type, file_name, size, sha256, created_ts)| MediaFile {
            media_id,
            uploader_nid,
            content_type,
            file_name,
            size,
            sha256,
            created_ts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::MediaFile;
    use crate::testing::{Fresh, on_both};

    /// What is told of a file comes back, and an identifier is given out once.
    #[tokio::test]
    async fn files_are_found_by_their_identifier() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let file = MediaFile {
                media_id: "abc".to_owned(),
                uploader_nid: store.user_nid(user_id!("@alice:example.org")).await.unwrap(),
                content_type: Some("image/png".to_owned()),
                file_name: None,
                size: 3,
                sha256: vec![0, 255, 7],
                created_ts: 5,
            };
            store.create_media(&file).await.unwrap();
            assert!(store.create_media(&file).await.unwrap_err().is_constraint());
            assert_eq!(store.media("abc").await.unwrap(), Some(file));
            assert!(store.media("ABC").await.unwrap().is_none());
            store.close().await;
        })
        .await;
    }
}
