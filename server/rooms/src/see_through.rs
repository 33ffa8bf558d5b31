//! Acts of several steps that must not be left half done.

use std::{error::Error as _, panic::resume_unwind, sync::Arc};

use tracing::Instrument as _;

use crate::Result;

/// Does something to its end, also when whoever asked for it waits no longer: because the client has gone, or the
/// deadline of the request was met.
///
/// It ends with the process, like the request that it is for.
pub(crate) async fn see_through<T: Send + 'static>(act: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let waiting = Arc::new(());
    let asker = Arc::downgrade(&waiting);
    let act = async move {
        let outcome = act.await;
        if let Err(error) = &outcome
            && asker.strong_count() == 0
        {
            tracing::warn!(error = %error, source = error.source(), "an act that nobody waited for any more failed");
        }
        outcome
    };
    let outcome = tokio::spawn(act.in_current_span()).await;
    drop(waiting);
    match outcome {
        Ok(outcome) => outcome,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The process ends.
            Err(_) => Err(myelin_store::Error::Closed.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    /// Who stops waiting does not stop the act; who waits gets the outcome.
    #[tokio::test]
    async fn goes_on_without_its_asker() {
        let (done, is_done) = tokio::sync::oneshot::channel();
        let act = async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            done.send(()).map_err(|()| crate::Error::Busy)
        };
        assert!(see_through(act).now_or_never().is_none());
        tokio::time::timeout(Duration::from_secs(10), is_done).await.unwrap().unwrap();
        assert!(matches!(see_through(async { Err::<(), _>(crate::Error::Busy) }).await, Err(crate::Error::Busy)));
        assert_eq!(see_through(async { Ok(7) }).await.unwrap(), 7);
    }
}
