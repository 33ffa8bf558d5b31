//! Users who have asked that what they wrote be erased.
//!
//! "Erasure means that any users (or servers) which join the room after the erasure request are served redacted copies
//! of the events sent by this account" ([specification]).
//!
//! [specification]: https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3accountdeactivate

use std::{
    collections::HashSet,
    sync::{Arc, Weak},
};

use myelin_store::{Batch, Ephemeral, Event, EventParts, Observer, RoomName, Store};
use parking_lot::RwLock;

use crate::{Result, Rooms, redact::redacted_json, writer::rules_of};

/// What replicas tell each other of.
const ERASED: &str = "erased";

/// All erased users, by number: read from the database when first asked for, and told of from then on.
#[derive(Debug, Default)]
pub(crate) struct Erased {
    known: RwLock<Known>,
    /// Held by the one who reads them.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    users: Arc<HashSet<i64>>,
    is_complete: bool,
    /// How often it could not be said that all are known.
    doubts: u64,
}

impl Erased {
    /// All of them.
    pub(crate) async fn users(&self, store: &Store) -> Result<Arc<HashSet<i64>>> {
        if let Ok(users) = self.complete() {
            return Ok(users);
        }
        let _alone = self.reading.lock().await;
        let doubts = match self.complete() {
            Ok(users) => return Ok(users),
            Err(doubts) => doubts,
        };
        let stored = store.erased_users().await?;
        let mut known = self.known.write();
        Arc::make_mut(&mut known.users).extend(stored);
        // Otherwise the next one reads again.
        known.is_complete = known.doubts == doubts;
        Ok(known.users.clone())
    }

    /// The users if all are known, else how many doubts there were.
    fn complete(&self) -> Result<Arc<HashSet<i64>>, u64> {
        let known = self.known.read();
        if known.is_complete { Ok(known.users.clone()) } else { Err(known.doubts) }
    }

    fn add(&self, user_nid: i64) {
        Arc::make_mut(&mut self.known.write().users).insert(user_nid);
    }

    fn doubt(&self) {
        let mut known = self.known.write();
        known.is_complete = false;
        known.doubts += 1;
    }
}

/// Listens for users who are erased, here or at another replica.
pub(crate) struct Erasures(pub(crate) Weak<Rooms>);

impl Observer for Erasures {
    fn committed(&self, _: &Batch) {}

    fn passed(&self, ephemeral: &Ephemeral) {
        if ephemeral.kind == ERASED
            && let Ok(user_nid) = serde_json::from_str(&ephemeral.json)
            && let Some(rooms) = self.0.upgrade()
        {
            rooms.erased.add(user_nid);
        }
    }

    fn missed(&self) {
        if let Some(rooms) = self.0.upgrade() {
            rooms.erased.doubt();
        }
    }
}

impl Rooms {
    /// Takes note, here and at all replicas, that a user is erased, which the database knows already.
    pub fn note_erased(&self, user_nid: i64) {
        self.store.pass(&Ephemeral { kind: ERASED.to_owned(), json: user_nid.to_string() });
    }
}

/// True for what is not to be shown as it was to those who were not there.
///
/// The settings of a room stay: who reads a room without its encryption or its name is told something wrong, and they
/// say nothing of the user.
pub(crate) fn is_erased(event: &Event, erased: &HashSet<i64>) -> bool {
    erased.contains(&event.sender_nid) && (event.state_key().is_none() || event.event_type() == "m.room.member")
}

/// The event as it would be if it was redacted, without what came before it or who sent it from where.
pub(crate) fn redacted_copy(event: &Event, room: &RoomName) -> Result<Arc<Event>> {
    let json = redacted_json(event, &rules_of(&room.version)?)?;
    let parts = EventParts { replaces: None, device_nid: None, txn: None, ..event.parts() };
    Ok(Arc::new(Event::new(parts, event.event_id.clone(), json)?))
}

#[cfg(test)]
mod tests {
    use myelin_store::testing::{Fresh, on_both};
    use ruma::user_id;

    use super::*;

    async fn erase(store: &Arc<Store>, user_id: &ruma::UserId) -> i64 {
        let user_nid = store.user_nid(user_id).await.unwrap();
        let new = myelin_store::NewAccount {
            user_id,
            password_hash: None,
            is_admin: false,
            is_guest: false,
            registration_token: None,
            now_ms: 1,
        };
        store.create_account(new).await.unwrap();
        assert!(store.deactivate_account(user_nid, true, 2).await.unwrap());
        user_nid
    }

    /// What one replica is told, the others hear.
    #[tokio::test(flavor = "multi_thread")]
    async fn replicas_hear_of_it() {
        let Some(fresh) = Fresh::postgres().await else { return };
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let store = fresh.open().await;
            let (version, document) = store.signing_key().await.unwrap();
            let key = ruma::signatures::Ed25519KeyPair::from_der(&document, version).unwrap();
            replicas.push(Rooms::new(store, ruma::owned_server_name!("example.org"), key));
        }
        let [here, there] = &replicas[..] else { unreachable!("there are two") };
        let heard = async {
            while !there.erased.users(&there.store).await.unwrap().contains(&7) {
                here.note_erased(7);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), heard).await.expect("the other replica hears of it");
        for rooms in &replicas {
            rooms.store.close().await;
        }
    }

    /// What the database knows is found out at first, what is told is added, and after a doubt it is asked again.
    #[tokio::test]
    async fn all_are_known() {
        on_both(async |fresh: &Fresh| {
            let store = fresh.open().await;
            let erased = Erased::default();
            let alice = erase(&store, user_id!("@alice:example.org")).await;
            assert_eq!(*erased.users(&store).await.unwrap(), HashSet::from([alice]));
            erased.add(7);
            let bob = erase(&store, user_id!("@bob:example.org")).await;
            assert_eq!(*erased.users(&store).await.unwrap(), HashSet::from([alice, 7]));
            erased.doubt();
            assert_eq!(*erased.users(&store).await.unwrap(), HashSet::from([alice, 7, bob]));
            store.close().await;
        })
        .await;
    }
}
