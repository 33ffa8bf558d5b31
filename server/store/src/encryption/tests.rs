//! Keys, device lists and messages, on each engine that is there.

use std::{collections::HashSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ruma::{OwnedUserId, user_id};

use crate::{
    AccountCreation, BackupPart, BackupSession, BackupWrite, Batch, Change, CrossSigningUpdate, EduSubject,
    FetchedDeviceList, Identity, KeepDevices, KeyCounts, KeySignature, KeyUpload, LogIn, NewAccount,
    NewDehydratedDevice, NewKey, Observer, Operation, RemoteDevice, RemoteDeviceUpdate, Store, ToDevice,
    ToDeviceMessage, UpdateOutcome,
    testing::{Fresh, on_both},
};

async fn user(store: &Store, name: &str) -> i64 {
    let user_id = OwnedUserId::try_from(format!("@{name}:example.org")).unwrap();
    let new = NewAccount {
        user_id: &user_id,
        password_hash: None,
        is_admin: false,
        is_guest: false,
        registration_token: None,
        now_ms: 0,
    };
    match store.create_account(new).await.unwrap() {
        AccountCreation::Created(nid) => nid,
        other => panic!("{other:?}"),
    }
}

async fn device(store: &Store, user_nid: i64, device_id: &str) -> i64 {
    let hash: [u8; 8] = rand::random();
    let login = LogIn {
        user_nid,
        device_id,
        initial_display_name: None,
        access_token_hash: &hash,
        expires_ts: None,
        refresh_token_hash: None,
        now_ms: 0,
    };
    store.log_in(login).await.unwrap().unwrap()
}

fn key(id: &str) -> NewKey {
    NewKey { algorithm: "signed_curve25519".to_owned(), key_id: id.to_owned(), json: format!("{{\"key\":\"{id}\"}}") }
}

fn wanted(device_nid: i64) -> Vec<(i64, String)> {
    vec![(device_nid, "signed_curve25519".to_owned())]
}

fn sent(device: (i64, i64), txn: &str, body: &str) -> Operation {
    Operation::ToDevice(Box::new(ToDevice {
        origin: "7".into(),
        txn: txn.into(),
        sender: "@bob:example.org".into(),
        event_type: "m.test".into(),
        messages: vec![ToDeviceMessage { user_nid: device.0, device_nid: device.1, content: body.into() }],
        edus: Vec::new(),
        now_ms: 1000,
        pos: 0,
    }))
}

#[derive(Default)]
struct Told(Mutex<Vec<Change>>);

impl Observer for Told {
    fn committed(&self, batch: &Batch) {
        self.0.lock().extend(batch.changes.iter().cloned());
    }
}

impl Told {
    fn lists(&self) -> Vec<i64> {
        let told = self.0.lock();
        let lists = told.iter().filter_map(|change| match change {
            Change::DeviceList(change) => Some(change.user_nid),
            _ => None,
        });
        lists.collect()
    }
}

/// 64 claimers on two replicas, where there can be two, get different keys; then everyone gets the fallback key.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_time_keys_are_given_out_once() {
    on_both(async |fresh: &Fresh| {
        let mut stores = vec![fresh.open().await];
        if stores[0].database().engine_name() == "postgres" {
            stores.push(fresh.open().await);
        }
        let alice = user(&stores[0], "alice").await;
        let phone = device(&stores[0], alice, "PHONE").await;
        let keys: Vec<NewKey> = (0..100).map(|n| key(&format!("{n:03}"))).collect();
        let KeyUpload::Stored(counts) = stores[0].add_keys(phone, &keys, &[key("fallback")]).await.unwrap() else {
            panic!("the keys are new");
        };
        assert_eq!(counts.one_time, [("signed_curve25519".to_owned(), 100)]);
        assert_eq!(counts.unused_fallback, ["signed_curve25519"]);
        let mut claims = tokio::task::JoinSet::new();
        for claimer in 0..64 {
            let store = stores[claimer % stores.len()].clone();
            claims.spawn(async move {
                let mut got = Vec::new();
                for _ in 0..2 {
                    let claimed = store.claim_keys(&wanted(phone)).await.unwrap();
                    got.extend(claimed.into_iter().map(|key| key.key_id));
                }
                got
            });
        }
        let got: Vec<String> = claims.join_all().await.into_iter().flatten().collect();
        assert_eq!(got.len(), 128);
        let once: Vec<&String> = got.iter().filter(|id| *id != "fallback").collect();
        assert_eq!(once.len(), 100, "every key is given out");
        assert_eq!(once.iter().collect::<HashSet<_>>().len(), 100, "and none twice");
        let counts = stores[0].key_counts(phone).await.unwrap();
        assert_eq!((counts.one_time.len(), counts.unused_fallback.len()), (0, 0));
        for store in stores {
            store.close().await;
        }
        // Nor after a restart.
        let store = fresh.open().await;
        assert_eq!(store.claim_keys(&wanted(phone)).await.unwrap()[0].key_id, "fallback");
        store.close().await;
    })
    .await;
}

/// Keys go out in the order of their uploads; an upload made again changes nothing, and another key under a known name
/// is refused together with all others.
#[tokio::test]
async fn uploads_are_idempotent() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store, "alice").await;
        let phone = device(&store, alice, "PHONE").await;
        store.add_keys(phone, &[key("z")], &[key("f1")]).await.unwrap();
        store.add_keys(phone, &[key("a"), key("b")], &[]).await.unwrap();
        let next = async || store.claim_keys(&wanted(phone)).await.unwrap()[0].key_id.clone();
        assert_eq!(next().await, "z");
        store.add_keys(phone, &[key("z"), key("a")], &[]).await.unwrap();
        assert_eq!((next().await, next().await, next().await), ("a".to_owned(), "b".to_owned(), "f1".to_owned()));
        // A fallback key that was used is not unused again because the client repeats itself; a new one is.
        store.add_keys(phone, &[], &[key("f1")]).await.unwrap();
        assert!(store.key_counts(phone).await.unwrap().unused_fallback.is_empty());
        store.add_keys(phone, &[], &[key("f2")]).await.unwrap();
        assert_eq!(store.key_counts(phone).await.unwrap().unused_fallback.len(), 1);
        store.add_keys(phone, &[key("c")], &[]).await.unwrap();
        let other = NewKey { json: "{}".to_owned(), ..key("c") };
        let refused = store.add_keys(phone, &[key("d"), other], &[]).await.unwrap();
        assert_eq!(refused, KeyUpload::Exists("signed_curve25519:c".to_owned()));
        assert_eq!(store.key_counts(phone).await.unwrap().one_time[0].1, 1);
        let many: Vec<NewKey> = (0..crate::ONE_TIME_KEYS_MAX).map(|n| key(&format!("m{n}"))).collect();
        assert_eq!(store.add_keys(phone, &many, &[]).await.unwrap(), KeyUpload::TooMany);
        assert_eq!(store.key_counts(phone).await.unwrap().one_time[0].1, 1);
        // A device that has lost its keys begins anew.
        store.set_device_keys(alice, phone, "PHONE", "{}", Identity::Other).await.unwrap();
        assert_eq!(store.key_counts(phone).await.unwrap(), KeyCounts::default());
        store.close().await;
    })
    .await;
}

/// Messages come in order, once for a transaction, and are gone when they are acknowledged or the device is removed.
#[tokio::test]
async fn messages_wait_for_their_device() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let told = Arc::new(Told::default());
        store.observe(told.clone());
        let alice = user(&store, "alice").await;
        let phone = (alice, device(&store, alice, "PHONE").await);
        let mut waiting = Vec::new();
        for n in 0..20 {
            waiting.push(store.place().await.unwrap().submit(sent(
                phone,
                &format!("{}", n / 2),
                &format!("{{\"n\":{}}}", n / 2),
            )));
        }
        for waiting in waiting {
            waiting.await.unwrap().unwrap();
        }
        store.commit(sent(phone, "3", "{}")).await.unwrap();
        let messages = store.to_device_messages(phone.1, 0, i64::MAX, 100).await.unwrap();
        let contents: Vec<&str> = messages.iter().map(|message| &*message.content).collect();
        assert_eq!(contents, (0..10).map(|n| format!("{{\"n\":{n}}}")).collect::<Vec<_>>());
        assert!(messages.is_sorted_by(|one, next| one.pos < next.pos));
        let arrivals = told.0.lock().iter().filter(|change| matches!(change, Change::ToDevice(_))).count();
        assert_eq!(arrivals, 10);
        store.delete_to_device(phone.1, messages[3].pos).await.unwrap();
        assert_eq!(store.to_device_messages(phone.1, 0, i64::MAX, 2).await.unwrap(), messages[4..6]);
        store.delete_devices(alice, &["PHONE"]).await.unwrap();
        assert!(store.to_device_messages(phone.1, 0, i64::MAX, 100).await.unwrap().is_empty());
        store.commit(sent(phone, "late", "{}")).await.unwrap();
        assert!(store.to_device_messages(phone.1, 0, i64::MAX, 100).await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}

/// However many messages come, a bounded number waits: the newest.
#[tokio::test]
async fn waiting_messages_are_bounded() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store, "alice").await;
        let phone = (alice, device(&store, alice, "PHONE").await);
        store.commit(sent(phone, "first", "{}")).await.unwrap();
        // As if there had been many before.
        store.set_to_device_number(phone.1, crate::TO_DEVICE_MAX + 250).await;
        for n in 0..10 {
            store.commit(sent(phone, &format!("{n}"), &format!("{{\"n\":{n}}}"))).await.unwrap();
        }
        let left = store.to_device_messages(phone.1, 0, i64::MAX, 100).await.unwrap();
        assert_eq!(left.len(), 11, "it is looked now and then only");
        for n in 10..260 {
            store.commit(sent(phone, &format!("{n}"), "{}")).await.unwrap();
        }
        let left = store.to_device_messages(phone.1, 0, i64::MAX, 1000).await.unwrap();
        assert_eq!(left.len(), 261, "these are within the bound");
        store.close().await;
    })
    .await;
}

/// Other replicas hear of messages and device lists from the stream.
#[tokio::test]
async fn replicas_hear_of_them() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let (here, there) = (fresh.open().await, fresh.open().await);
    let told = Arc::new(Told::default());
    there.observe(told.clone());
    let alice = user(&here, "alice").await;
    let phone = (alice, device(&here, alice, "PHONE").await);
    here.commit(sent(phone, "1", "{}")).await.unwrap();
    here.set_device_keys(alice, phone.1, "PHONE", "{}", Identity::Same).await.unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    while there.position() < here.position() {
        assert!(tokio::time::Instant::now() < end, "nothing was heard");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(told.lists(), [alice]);
    let arrived = told.0.lock().iter().any(|change| matches!(change, Change::ToDevice(to) if to.devices == [phone]));
    assert!(arrived);
    here.close().await;
    there.close().await;
}

/// What ends a device takes its keys with it and announces that, once; a device without keys is nobody's business.
#[tokio::test]
async fn ended_devices_are_announced() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let told = Arc::new(Told::default());
        store.observe(told.clone());
        let alice = user(&store, "alice").await;
        for (round, name) in ["A", "B", "C"].into_iter().enumerate() {
            let keyed = device(&store, alice, name).await;
            device(&store, alice, "PLAIN").await;
            store.set_device_keys(alice, keyed, name, "{}", Identity::Same).await.unwrap();
            store.set_device_keys(alice, keyed, name, "{}", Identity::Same).await.unwrap();
            store.add_keys(keyed, &[key("1")], &[key("2")]).await.unwrap();
            assert_eq!(told.lists().len(), 2 * round + 1);
            assert_eq!(store.key_counts(keyed).await.unwrap().one_time.len(), 1);
            match round {
                0 => drop(store.delete_devices(alice, &[name, "PLAIN", "NONE"]).await.unwrap()),
                1 => store.set_password(alice, "x", KeepDevices::None).await.unwrap(),
                _ => assert!(store.deactivate_account(alice, false, 1).await.unwrap()),
            }
            assert_eq!(told.lists().len(), 2 * round + 2);
            assert!(store.device_keys_of(&[alice]).await.unwrap().is_empty());
            assert!(store.claim_keys(&wanted(keyed)).await.unwrap().is_empty());
        }
        assert_eq!(store.device_lists_changed(alice, 0, i64::MAX).await.unwrap(), [alice]);
        store.close().await;
    })
    .await;
}

/// One device of a user waits to be taken over; the next one takes its place.
#[tokio::test]
async fn dehydrated_devices_replace_each_other() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store, "alice").await;
        device(&store, alice, "PHONE").await;
        let new = |device_id: &str| NewDehydratedDevice {
            device_id: device_id.to_owned(),
            display_name: None,
            data: "{}".to_owned(),
            keys: "{}".to_owned(),
            now_ms: 1,
        };
        assert_eq!(store.put_dehydrated_device(alice, new("PHONE")).await.unwrap(), None);
        assert_eq!(store.dehydrated_device(alice).await.unwrap(), None);
        for name in ["ONE", "ONE", "TWO"] {
            let nid = store.put_dehydrated_device(alice, new(name)).await.unwrap().unwrap();
            let waiting = store.dehydrated_device(alice).await.unwrap().unwrap();
            assert_eq!((waiting.device_nid, &*waiting.device_id), (nid, name));
            let keys = store.device_keys_of(&[alice]).await.unwrap();
            assert_eq!(keys.len(), 1);
            assert!(keys[0].is_dehydrated && keys[0].device_id == name);
        }
        assert_eq!(store.devices(alice).await.unwrap().len(), 2);
        store.delete_devices(alice, &["TWO"]).await.unwrap();
        assert_eq!(store.dehydrated_device(alice).await.unwrap(), None);
        store.close().await;
    })
    .await;
}

/// Signatures are seen by whom they concern, and go with what they sign or were made by.
#[tokio::test]
async fn signatures_are_seen_by_their_makers() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let (alice, bob) = (user(&store, "alice").await, user(&store, "bob").await);
        let update = |master: &str, expected: Option<&str>| CrossSigningUpdate {
            expected_master: expected.map(str::to_owned),
            keys: vec![("master".to_owned(), master.to_owned())],
            ..CrossSigningUpdate::default()
        };
        assert!(store.set_cross_signing_keys(alice, update("one", None)).await.unwrap());
        assert!(!store.set_cross_signing_keys(alice, update("two", None)).await.unwrap(), "another was first");
        let signature = |target_nid: i64, target: &str, signer_nid: i64, key: &str| KeySignature {
            target_nid,
            target: target.to_owned(),
            signer_nid,
            key_id: format!("ed25519:{key}"),
            signature: "s".to_owned(),
        };
        let own = signature(alice, "PHONE", alice, "self");
        store.add_key_signatures(alice, vec![own.clone()]).await.unwrap();
        let before = store.position();
        let of_bob = signature(alice, "one", bob, "user");
        store.add_key_signatures(bob, vec![of_bob.clone()]).await.unwrap();
        assert_eq!(store.device_lists_changed(bob, before, i64::MAX).await.unwrap(), [alice]);
        assert!(store.device_lists_changed(alice, before, i64::MAX).await.unwrap().is_empty());
        assert_eq!(store.key_signatures(&[alice], None).await.unwrap(), std::slice::from_ref(&own));
        assert_eq!(store.key_signatures(&[alice], Some(bob)).await.unwrap().len(), 2);
        let replaced = vec!["one".to_owned(), "self".to_owned()];
        let update = CrossSigningUpdate { replaced, ..update("three", Some("one")) };
        assert!(store.set_cross_signing_keys(alice, update).await.unwrap());
        assert!(store.key_signatures(&[alice], Some(bob)).await.unwrap().is_empty());
        store.close().await;
    })
    .await;
}

/// A list of another server's user follows the changes; one that is missed makes it stale until it is fetched anew.
#[tokio::test]
async fn remote_lists_notice_gaps() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let eve = store.user_nid(user_id!("@eve:elsewhere.example")).await.unwrap();
        let device = |id: &str| RemoteDevice { device_id: id.to_owned(), display_name: None, keys: Some("{}".into()) };
        let update = |stream_id: i64, prev: &[i64], id: &str| RemoteDeviceUpdate {
            stream_id,
            prev_ids: prev.to_vec(),
            device: device(id),
            deleted: false,
        };
        let names = async || -> Vec<String> {
            store.remote_devices(&[eve]).await.unwrap().into_iter().map(|(_, device)| device.device_id).collect()
        };
        assert_eq!(store.update_remote_device(eve, update(3, &[], "A")).await.unwrap(), UpdateOutcome::Missed);
        let list = FetchedDeviceList { stream_id: 5, devices: vec![device("A")], cross_signing: Vec::new() };
        store.set_remote_devices(eve, list.clone(), false).await.unwrap();
        assert_eq!(store.update_remote_device(eve, update(5, &[], "X")).await.unwrap(), UpdateOutcome::Known);
        assert_eq!(store.update_remote_device(eve, update(8, &[5], "B")).await.unwrap(), UpdateOutcome::Applied);
        let gone = RemoteDeviceUpdate { deleted: true, ..update(9, &[8], "A") };
        assert_eq!(store.update_remote_device(eve, gone).await.unwrap(), UpdateOutcome::Applied);
        assert_eq!(names().await, ["B"]);
        assert_eq!(store.update_remote_device(eve, update(12, &[11], "C")).await.unwrap(), UpdateOutcome::Missed);
        assert!(store.remote_device_lists(&[eve]).await.unwrap()[0].stale);
        assert_eq!(store.update_remote_device(eve, update(13, &[12], "D")).await.unwrap(), UpdateOutcome::Missed);
        assert_eq!(store.stale_device_lists(0, 10).await.unwrap(), [eve]);
        store.postpone_device_list(eve, 0).await.unwrap();
        assert!(store.stale_device_lists(20_000, 10).await.unwrap().is_empty());
        assert_eq!(store.stale_device_lists(40_000, 10).await.unwrap(), [eve]);
        store.set_remote_devices(eve, FetchedDeviceList { stream_id: 13, ..list }, true).await.unwrap();
        assert!(!store.remote_device_lists(&[eve]).await.unwrap()[0].stale);
        assert_eq!(store.forget_unshared_device_lists().await.unwrap(), 1, "nobody shares a room with them");
        assert!(names().await.is_empty());
        store.close().await;
    })
    .await;
}

/// What other servers are told waits until they acknowledge it, messages and devices in one order.
#[tokio::test]
async fn edus_wait_for_their_servers() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let Operation::ToDevice(mut to) = sent((0, 0), "1", "{}") else { unreachable!() };
        to.messages.clear();
        to.edus = vec![("one.example".to_owned(), "{}".to_owned()), ("two.example".to_owned(), "{}".to_owned())];
        store.commit(Operation::ToDevice(to.clone())).await.unwrap();
        store.commit(Operation::ToDevice(to.clone())).await.unwrap();
        to.txn = "2".into();
        store.commit(Operation::ToDevice(to)).await.unwrap();
        let pending = store.pending_edus("one.example", 10).await.unwrap();
        assert_eq!(pending.len(), 2);
        assert_eq!(pending[0].subject, EduSubject::ToDevice("{}".to_owned()));
        assert_eq!(store.pending_edus("one.example", 1).await.unwrap(), pending[..1]);
        store.edus_sent("one.example", pending[0].pos).await.unwrap();
        assert_eq!(store.pending_edus("one.example", 10).await.unwrap(), pending[1..]);
        assert_eq!(store.edu_destinations().await.unwrap(), ["one.example", "two.example"]);
        let since = store.edu_destinations_since(pending[1].pos, i64::MAX).await.unwrap();
        assert!(since.is_empty());
        store.close().await;
    })
    .await;
}

/// A better key replaces a worse one and nothing else does; counts and tags follow; only the newest backup grows.
#[tokio::test]
async fn backups_keep_the_better_keys() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let alice = user(&store, "alice").await;
        let session = |id: &str, is_verified: bool, first_message_index: i64, forwarded_count: i64| BackupSession {
            room_id: "!a:example.org".to_owned(),
            session_id: id.to_owned(),
            first_message_index,
            forwarded_count,
            is_verified,
            session_data: format!("{{\"from\":\"{is_verified} {first_message_index} {forwarded_count}\"}}"),
        };
        let put = async |version: i64, sessions: &[BackupSession]| {
            store.put_backup_sessions(alice, version, sessions).await.unwrap()
        };
        assert_eq!(put(1, &[session("s", false, 5, 5)]).await, BackupWrite::Missing);
        assert_eq!(store.create_backup(alice, "a", "{}").await.unwrap(), 1);
        let steps = [
            (session("s", false, 5, 5), true),
            (session("s", false, 6, 0), false),
            (session("s", false, 5, 5), false),
            (session("s", false, 5, 4), true),
            (session("s", false, 4, 9), true),
            (session("s", true, 9, 9), true),
            (session("s", false, 0, 0), false),
        ];
        let (mut etag, mut kept) = (0, None);
        for (step, replaces) in steps {
            let BackupWrite::Written(backup) = put(1, std::slice::from_ref(&step)).await else { panic!("current") };
            assert_eq!((backup.etag != etag, backup.count), (replaces, 1), "{step:?}");
            etag = backup.etag;
            if replaces {
                kept = Some(step);
            }
            let part = BackupPart::Session("!a:example.org", "s");
            assert_eq!(
                store.backup_sessions(alice, 1, part).await.unwrap(),
                kept.clone().into_iter().collect::<Vec<_>>()
            );
        }
        let BackupWrite::Written(backup) = put(1, &[session("t", true, 0, 0), session("s", true, 0, 0)]).await else {
            panic!("current");
        };
        assert_eq!(backup.count, 2);
        assert_eq!(store.create_backup(alice, "a", "{}").await.unwrap(), 2);
        assert_eq!(put(1, &[session("u", true, 0, 0)]).await, BackupWrite::NotCurrent(2));
        assert_eq!(store.backup(alice, Some(1)).await.unwrap(), Some(backup));
        let one = store.delete_backup_sessions(alice, 1, BackupPart::Session("!a:example.org", "t")).await.unwrap();
        assert_eq!(one.unwrap().count, 1);
        assert!(store.delete_backup(alice, 2).await.unwrap());
        assert!(!store.delete_backup(alice, 2).await.unwrap());
        assert_eq!(store.backup(alice, None).await.unwrap().unwrap().version, 1);
        assert!(store.delete_backup_sessions(alice, 2, BackupPart::Whole).await.unwrap().is_none());
        assert_eq!(store.create_backup(alice, "a", "{}").await.unwrap(), 3, "no number comes twice");
        store.close().await;
    })
    .await;
}

impl Store {
    /// Sets how many messages a device had so far.
    async fn set_to_device_number(&self, device_nid: i64, n: i64) {
        let mut transaction = self.database.begin().await.unwrap();
        crate::sql::execute!(transaction, "UPDATE to_device SET n = $2 WHERE device_nid = $1", device_nid, n).unwrap();
        transaction.commit().await.unwrap();
    }
}
