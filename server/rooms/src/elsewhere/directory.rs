//! The directories of other servers.

use ruma::{ServerName, UInt, api::federation::directory::get_public_rooms_filtered::v1};

use super::asked;
use crate::{Error, Result, Rooms};

/// Rooms of an answer where the client does not say how many.
const LIMIT: u32 = 100;
/// Rooms of an answer at the most.
const LIMIT_MAX: u32 = 500;
/// The longest token that is taken and handed out, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

impl Rooms {
    /// A page of the directory of another server. Its tokens are that server's.
    ///
    /// # Errors
    ///
    /// [`Error::Remote`] when it gives none, [`Error::InvalidParam`] for a token of excessive length,
    /// [`Error::NotFederating`].
    pub async fn directory_elsewhere(&self, server: &ServerName, mut search: v1::Request) -> Result<v1::Response> {
        if search.since.as_ref().is_some_and(|since| since.len() > TOKEN_BYTES_MAX) {
            return Err(Error::InvalidParam("since is too long".into()));
        }
        let limit = search.limit.unwrap_or(UInt::from(LIMIT));
        search.limit = Some(limit.clamp(UInt::from(1_u32), UInt::from(LIMIT_MAX)));
        let mut page = asked("public_rooms", self.remote()?.public_rooms(server, search).await)?;
        // Some servers give more than they were asked for.
        page.chunk.truncate(LIMIT_MAX as usize);
        for token in [&mut page.next_batch, &mut page.prev_batch] {
            token.take_if(|token| token.len() > TOKEN_BYTES_MAX);
        }
        Ok(page)
    }
}
