//! Reading answers of unknown size.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpError;

/// A peer that sends nothing for this long in the middle of its answer is given up.
const STALLED: Duration = Duration::from_secs(30);
/// The unit of the budget, which is also what every answer may have for nothing, in bytes.
const UNIT: usize = 1024 * 1024;
/// Units for all answers together.
const UNITS: usize = 512;

/// Memory for answers that are large. Who finds none left waits, until its deadline.
#[derive(Clone, Debug)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(UNITS)))
    }
}

/// Reads a body of at most `bytes_max` bytes.
pub(crate) async fn read(
    mut body: Incoming,
    bytes_max: usize,
    budget: &Budget,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), HttpError> {
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(HttpError::TooLarge(bytes_max));
    }
    let mut read = Vec::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = tokio::time::timeout(STALLED, body.frame()).await.map_err(|_| HttpError::Stalled)? {
        let Ok(data) = frame?.into_data() else { continue };
        if read.len() + data.len() > bytes_max {
            return Err(HttpError::TooLarge(bytes_max));
        }
        let units = (read.len() + data.len()) / UNIT;
        let missing = units.saturating_sub(share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if missing > 0 {
            let missing = u32::try_from(missing).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            let more = Arc::clone(&budget.0).acquire_many_owned(missing).await.map_err(|_| HttpError::Crowded)?;
            match &mut share {
                Some(share) => share.merge(more),
                None => share = Some(more),
            }
        }
        read.extend_from_slice(&data);
    }
    Ok((read, share))
}
