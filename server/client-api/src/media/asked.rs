//! Which file is asked for, and how.

use std::time::Duration;

use myelin_http::ApiError;
use myelin_media::{Access, Wanted};
use ruma::{OwnedServerName, media::default_download_timeout};
use serde::Deserialize;

/// What the queries of downloads and thumbnails have in common.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Parameters {
    timeout_ms: Option<u64>,
    /// Of the deprecated paths alone.
    allow_remote: Option<bool>,
}

/// A file that is asked for.
pub(super) struct Asked {
    server_name: OwnedServerName,
    media_id: String,
    timeout: Duration,
    allow_remote: bool,
    access: Access,
}

impl Asked {
    pub(super) fn new(
        server_name: &str,
        media_id: String,
        parameters: &Parameters,
        access: Access,
    ) -> Result<Self, ApiError> {
        let server_name = server_name.try_into();
        Ok(Self {
            server_name: server_name.map_err(|error: ruma::IdParseError| ApiError::invalid_param(error.to_string()))?,
            media_id,
            timeout: parameters.timeout_ms.map_or_else(default_download_timeout, Duration::from_millis),
            allow_remote: access == Access::Authenticated || parameters.allow_remote.unwrap_or(true),
            access,
        })
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        Wanted {
            server_name: &self.server_name,
            media_id: &self.media_id,
            timeout: self.timeout,
            allow_remote: self.allow_remote,
            access: self.access,
        }
    }
}
