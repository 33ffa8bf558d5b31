//! What a changed profile and an ended account mean for rooms.

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use myelin_accounts::{BoxFuture, MemberProfile, ProfileObserver};
use myelin_rooms::Rooms;
use ruma::UserId;

/// How long a request waits for the rooms of its user. What takes longer goes on without it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tells a user's rooms of a changed profile, and takes a user whose account has ended out of them.
///
/// [`Accounts::observe`](myelin_accounts::Accounts::observe) takes it.
#[derive(Clone, Debug)]
pub struct RoomProfiles(Arc<Rooms>);

impl RoomProfiles {
    /// For these rooms.
    pub fn new(rooms: Arc<Rooms>) -> Self {
        Self(rooms)
    }
}

type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

impl ProfileObserver for RoomProfiles {
    fn profile_changed<'a>(&'a self, user_id: &'a UserId, _: &'a MemberProfile) -> BoxFuture<'a, Outcome> {
        let (rooms, user_id) = (self.0.clone(), user_id.to_owned());
        Box::pin(wait_a_little(async move { rooms.update_profile(&user_id).await }))
    }

    fn deactivated<'a>(&'a self, user_id: &'a UserId, erase: bool) -> BoxFuture<'a, Outcome> {
        let (rooms, user_id) = (self.0.clone(), user_id.to_owned());
        Box::pin(wait_a_little(async move {
            // First, so that what is written of the leaving does not name the user again.
            if erase && let Some(user_nid) = rooms.store().known_user_nid(&user_id).await? {
                rooms.note_erased(user_nid);
            }
            rooms.leave_all(&user_id).await
        }))
    }
}

async fn wait_a_little(act: impl Future<Output = myelin_rooms::Result<()>> + Send + 'static) -> Outcome {
    let task = tokio::spawn(async move {
        let outcome = act.await;
        if let Err(error) = &outcome {
            tracing::warn!(error = error as &dyn Error, "could not write a user's change to all of their rooms");
        }
        outcome
    });
    match tokio::time::timeout(PATIENCE, task).await {
        Ok(Ok(outcome)) => Ok(outcome?),
        Ok(Err(error)) => Err(error.into()),
        // The task has the rest of it.
        Err(_) => Ok(()),
    }
}
