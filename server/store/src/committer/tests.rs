//! What one operation of a batch does to the others, on both engines.

use ruma::{EventId, RoomId, RoomVersionId};

use super::{Append, Head, NewRoom, Operation, Waiting};
use crate::{
    AccountData, Error, Event, EventParts, Receipt, StateKey, Store,
    testing::{Fresh, on_both},
};

/// The user of everything here.
async fn user(store: &Store) -> i64 {
    store.user_nid(ruma::user_id!("@a:example.org")).await.unwrap()
}

/// A message.
fn event(nid: i64, room_nid: i64, sender_nid: i64) -> Event {
    let parts = EventParts {
        nid,
        room_nid,
        pos: None,
        depth: 1,
        sender_nid,
        key_nid: None,
        state_before: 0,
        room_state: 0,
        forked_state: None,
        replaces: None,
        redacted_by: None,
        device_nid: None,
        txn: None,
        flags: 0,
    };
    let json = r#"{"type":"m.room.message","sender":"@a:example.org","content":{},"origin_server_ts":1,"depth":1}"#;
    Event::new(parts, EventId::parse(format!("$event{nid}")).unwrap(), json.into()).unwrap()
}

fn append(nid: i64, sender_nid: i64, expected_version: i64) -> Append {
    let room_nid = 1;
    Append {
        room_nid,
        expected_version,
        create: (expected_version == 0).then(|| NewRoom {
            room_id: RoomId::parse(format!("!room{room_nid}:example.org")).unwrap(),
            version: RoomVersionId::V12,
            is_public: false,
            alias: None,
        }),
        events: vec![event(nid, room_nid, sender_nid)],
        head: Head { version: nid, last_pos: 0, depth: 1, extremities: vec![nid], state_root: 0 },
        ..Append::default()
    }
}

fn data(user_nid: i64) -> Operation {
    Operation::AccountData(AccountData {
        user_nid,
        room_nid: 0,
        data_type: "m.note".into(),
        content: "{}".into(),
        pos: 0,
    })
}

fn receipt(user_nid: i64, event_pos: i64) -> Operation {
    Operation::Receipt(Receipt {
        room_nid: 1,
        user_nid,
        receipt_type: "m.read".into(),
        thread: "".into(),
        event_nid: 10,
        event_pos,
        ts: 0,
        pos: 0,
    })
}

/// Queues operations at once, which makes them one batch: the committer does not run before the first answer is
/// awaited.
async fn batch(store: &Store, operations: Vec<Operation>) -> Vec<crate::Result<super::Committed>> {
    let mut places = Vec::new();
    for _ in &operations {
        places.push(store.place().await.unwrap());
    }
    let waiting: Vec<Waiting> =
        places.into_iter().zip(operations).map(|(place, operation)| place.submit(operation)).collect();
    let mut outcomes = Vec::new();
    for waiting in waiting {
        outcomes.push(waiting.await.unwrap());
    }
    outcomes
}

/// Two writes that both follow the same event cannot both stand; neither does, the room stays as it was, and the rest
/// of the batch goes through.
#[tokio::test]
async fn a_broken_run_leaves_the_room_alone() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store).await;
        store.commit(Operation::Append(Box::new(append(10, alice, 0)))).await.unwrap();
        let forks = [append(11, alice, 10), append(12, alice, 10)].map(|fork| Operation::Append(Box::new(fork)));
        let outcomes = batch(&store, forks.into_iter().chain([data(alice)]).collect()).await;
        assert!(matches!(outcomes[..], [Err(Error::Conflict), Err(Error::Conflict), Ok(_)]), "{outcomes:?}");
        let head = store.head(1).await.unwrap();
        assert_eq!((head.version, head.extremities), (10, vec![10]));
        store.commit(Operation::Append(Box::new(append(13, alice, 10)))).await.unwrap();
        assert_eq!(store.head(1).await.unwrap().version, 13);
        store.close().await;
    })
    .await;
}

/// An operation that the database cannot take fails alone.
#[tokio::test]
async fn one_bad_operation_fails_alone() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store).await;
        let nobody = alice + 1000;
        let operations = (0..21).map(|place| data(if place == 7 { nobody } else { alice })).collect();
        let outcomes = batch(&store, operations).await;
        let failed: Vec<usize> = (0..outcomes.len()).filter(|place| outcomes[*place].is_err()).collect();
        assert_eq!(failed, [7]);
        assert_eq!(store.account_data_since(alice, 0, i64::MAX).await.unwrap().len(), 1);
        store.close().await;
    })
    .await;
}

/// Of receipts for the same, the one for the later event stays, whichever comes last, in one batch or in two.
#[tokio::test]
async fn receipts_move_forward_only() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store).await;
        store.commit(Operation::Append(Box::new(append(10, alice, 0)))).await.unwrap();
        batch(&store, [5, 9, 7].map(|pos| receipt(alice, pos)).into()).await;
        let stored = async || store.receipts_of_user(alice, &[1]).await.unwrap().pop().unwrap().event_pos;
        assert_eq!(stored().await, 9);
        store.commit(receipt(alice, 8)).await.unwrap();
        assert_eq!(stored().await, 9);
        store.commit(receipt(alice, 10)).await.unwrap();
        assert_eq!(stored().await, 10);
        store.close().await;
    })
    .await;
}

/// More names may be asked for at once than there is memory for.
#[tokio::test]
async fn names_may_outgrow_the_cache() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let keys: Vec<StateKey> =
            (0..8000).map(|number| StateKey::new("m.room.member", &format!("@user{number}:example.org"))).collect();
        let nids = store.key_nids(&keys).await.unwrap();
        for _ in 0..2 {
            let found = store.state_keys(&nids).await.unwrap();
            assert!(found.iter().zip(&keys).all(|(found, key)| **found == *key));
            let known = store.known_key_nids(&keys).await.unwrap();
            assert!(known.iter().zip(&nids).all(|(known, nid)| *known == Some(*nid)));
        }
        store.close().await;
    })
    .await;
}
