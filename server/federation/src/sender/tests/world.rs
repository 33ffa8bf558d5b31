//! What the tests stand on: a clock, a network, and rooms.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use myelin_rooms::remote::RemoteError;
use myelin_store::{
    Append, Event, EventParts, Head, Membership, MembershipChange, NewRoom, Operation, StateKey, Store,
};
use parking_lot::Mutex;
use ruma::{EventId, OwnedServerName, OwnedUserId, RoomId, RoomVersionId, ServerName, UserId};
use serde_json::Value;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::super::{Clock, Sender, SenderOptions, Transaction, TransactionAnswer, Transport};

/// Our user.
pub(super) const ALICE: &str = "@alice:example.org";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A clock that stands still until it is moved.
pub(super) struct TestClock(watch::Sender<u64>);

impl TestClock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(1_000_000)))
    }

    pub(super) fn advance(&self, ms: u64) {
        self.0.send_modify(|now| *now += ms);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        *self.0.borrow()
    }

    fn sleep(&self, time_ms: u64) -> BoxFuture<'static, ()> {
        let mut now = self.0.subscribe();
        let until = *now.borrow() + time_ms;
        Box::pin(async move {
            if now.wait_for(|now| *now >= until).await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    Answers,
    Refuses,
    Hangs,
}

/// A server of the network.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) behaviour: Behaviour,
    /// The transactions that it took.
    pub(super) taken: Vec<Transaction>,
    /// The identifiers of all tries.
    pub(super) tries: Vec<String>,
    under_way: usize,
    pub(super) most_under_way: usize,
}

impl Default for Peer {
    fn default() -> Self {
        Self { behaviour: Behaviour::Answers, taken: Vec::new(), tries: Vec::new(), under_way: 0, most_under_way: 0 }
    }
}

impl Peer {
    /// The events that it took, by their numbers in the tests, in order.
    pub(super) fn numbers(&self) -> Vec<i64> {
        let pdus = self.taken.iter().flat_map(|transaction| &transaction.pdus);
        pdus.filter_map(|pdu| number(pdu.get())).collect()
    }

    /// The same, each once.
    pub(super) fn distinct(&self) -> Vec<i64> {
        let mut seen = std::collections::HashSet::new();
        self.numbers().into_iter().filter(|number| seen.insert(*number)).collect()
    }

    /// The EDUs that it took.
    pub(super) fn edus(&self) -> Vec<Value> {
        let edus = self.taken.iter().flat_map(|transaction| &transaction.edus);
        edus.map(|edu| serde_json::from_str(edu.get()).unwrap()).collect()
    }
}

fn number(pdu: &str) -> Option<i64> {
    serde_json::from_str::<Value>(pdu).unwrap()["content"]["n"].as_i64()
}

/// A network of other servers.
pub(super) struct Network {
    peers: Mutex<HashMap<OwnedServerName, Peer>>,
    most_under_way: Mutex<(usize, usize)>,
    changes: watch::Sender<u64>,
}

impl Network {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { peers: Mutex::default(), most_under_way: Mutex::default(), changes: watch::Sender::new(0) })
    }

    pub(super) fn peer<T>(&self, server: &str, look: impl FnOnce(&mut Peer) -> T) -> T {
        let found = look(self.peers.lock().entry(name(server)).or_default());
        self.changes.send_modify(|count| *count += 1);
        found
    }

    pub(super) fn set(&self, server: &str, behaviour: Behaviour) {
        self.peer(server, |peer| peer.behaviour = behaviour);
    }

    /// Transactions under way at once, over all servers, at the most so far.
    pub(super) fn most_under_way(&self) -> usize {
        self.most_under_way.lock().1
    }

    /// Waits until a server is as expected.
    pub(super) async fn until(&self, server: &str, expected: impl Fn(&Peer) -> bool) {
        let mut changes = self.changes.subscribe();
        let fulfilled = async {
            loop {
                changes.borrow_and_update();
                if expected(self.peers.lock().entry(name(server)).or_default()) {
                    return;
                }
                changes.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(PATIENCE, fulfilled).await.is_err() {
            let peers = self.peers.lock();
            let peer = &peers[&name(server)];
            panic!("{server} has taken {:?} in {} tries", peer.numbers(), peer.tries.len());
        }
    }
}

struct UnderWay<'n>(&'n Network, &'n ServerName);

impl<'n> UnderWay<'n> {
    fn new(network: &'n Network, server: &'n ServerName) -> Self {
        let mut total = network.most_under_way.lock();
        total.0 += 1;
        total.1 = total.1.max(total.0);
        drop(total);
        let mut peers = network.peers.lock();
        let peer = peers.entry(server.to_owned()).or_default();
        peer.under_way += 1;
        peer.most_under_way = peer.most_under_way.max(peer.under_way);
        Self(network, server)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.most_under_way.lock().0 -= 1;
        if let Some(peer) = self.0.peers.lock().get_mut(self.1) {
            peer.under_way -= 1;
        }
    }
}

impl Transport for Network {
    fn send<'a>(
        &'a self,
        server: &'a ServerName,
        transaction: Transaction,
    ) -> BoxFuture<'a, Result<TransactionAnswer, RemoteError>> {
        Box::pin(async move {
            let _under_way = UnderWay::new(self, server);
            let mut changes = self.changes.subscribe();
            let id = transaction.id.to_string();
            self.peer(server.as_str(), |peer| peer.tries.push(id));
            tokio::task::yield_now().await;
            loop {
                changes.borrow_and_update();
                match self.peers.lock().entry(server.to_owned()).or_default().behaviour {
                    Behaviour::Answers => break,
                    Behaviour::Refuses => {
                        let reason = "the test says so".to_owned();
                        return Err(RemoteError::Unreachable { server: server.to_owned(), reason });
                    }
                    Behaviour::Hangs => {}
                }
                changes.changed().await.unwrap();
            }
            self.peer(server.as_str(), |peer| peer.taken.push(transaction));
            Ok(TransactionAnswer::default())
        })
    }
}

pub(super) fn name(server: &str) -> OwnedServerName {
    ServerName::parse(server).unwrap()
}

/// The options of the tests.
pub(super) fn options(clock: &Arc<TestClock>) -> SenderOptions {
    SenderOptions { clock: clock.clone(), seed: Some(7), ..SenderOptions::new(name("example.org")) }
}

/// A sender that runs.
pub(super) struct Running {
    pub(super) sender: Arc<Sender>,
    store: Arc<Store>,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Running {
    /// Starts a sender and waits until it has the duty.
    pub(super) async fn start(store: &Arc<Store>, network: &Arc<Network>, options: SenderOptions) -> Self {
        let running = Self::begin(store, network, options);
        until(async || running.sender.is_leading()).await;
        running
    }

    /// Starts a sender.
    pub(super) fn begin(store: &Arc<Store>, network: &Arc<Network>, options: SenderOptions) -> Self {
        let sender = Sender::new(store.clone(), network.clone(), options);
        let stop = CancellationToken::new();
        let task = tokio::spawn(sender.clone().run(stop.clone()));
        Self { sender, store: store.clone(), task, stop }
    }

    /// The position up to which everything is in the queues.
    pub(super) fn distributed(&self) -> i64 {
        self.sender.term.read().as_ref().unwrap().distributed()
    }

    /// Ends in order.
    pub(super) async fn stop(self, clock: &TestClock) {
        self.stop.cancel();
        // So that those who wait for answers that do not come are given up.
        let mut task = self.task;
        loop {
            tokio::select! {
                ended = &mut task => return ended.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(5)) => clock.advance(1_000),
            }
        }
    }

    /// Ends as a process does that is killed, at once; and its lease runs out.
    pub(super) async fn kill(self) {
        let lease = self.sender.term.read().as_ref().unwrap().lease.clone();
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
        assert!(self.store.release_lease(&lease).await.unwrap());
    }
}

/// Waits until something is so that nobody tells.
pub(super) async fn until(so: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !so().await {
        assert!(began.elapsed() < PATIENCE, "it did not come so far");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A room, as the tests write it.
pub(super) struct Room {
    store: Arc<Store>,
    pub(super) nid: i64,
    head: Head,
    is_new: bool,
    members: HashMap<String, (i64, i64)>,
}

/// One event to write.
pub(super) enum Write<'a> {
    Message { sender: &'a str, number: i64, flags: i64 },
    Member { sender: &'a str, user: &'a str, membership: Membership, flags: i64 },
}

impl Room {
    /// A room that is not there before the first write.
    pub(super) async fn new(store: &Arc<Store>) -> Self {
        let nid = store.take_nids(1).await.unwrap().start;
        let head = Head { version: 0, last_pos: 0, depth: 0, extremities: Vec::new(), state_root: 0 };
        Self { store: store.clone(), nid, head, is_new: true, members: HashMap::new() }
    }

    /// A room with Alice and a user `@u` of each of some servers.
    pub(super) async fn with(store: &Arc<Store>, servers: &[&str]) -> Self {
        let mut room = Self::new(store).await;
        let users: Vec<String> =
            [ALICE.to_owned()].into_iter().chain(servers.iter().map(|server| format!("@u:{server}"))).collect();
        let joins = users
            .iter()
            .map(|user| Write::Member { sender: user, user, membership: Membership::Join, flags: 0 })
            .collect();
        room.write(joins).await;
        room
    }

    pub(super) async fn say(&mut self, numbers: impl IntoIterator<Item = i64>) -> Vec<Arc<Event>> {
        let messages = numbers.into_iter().map(|number| Write::Message { sender: ALICE, number, flags: 0 }).collect();
        self.write(messages).await
    }

    pub(super) async fn member(&mut self, sender: &str, user: &str, membership: Membership) -> Arc<Event> {
        self.write(vec![Write::Member { sender, user, membership, flags: 0 }]).await.remove(0)
    }

    /// Writes events, in one commit.
    pub(super) async fn write(&mut self, writes: Vec<Write<'_>>) -> Vec<Arc<Event>> {
        let mut append = Append {
            room_nid: self.nid,
            expected_version: self.head.version,
            create: self.is_new.then(|| NewRoom {
                room_id: RoomId::parse(format!("!room{}:example.org", self.nid)).unwrap(),
                version: RoomVersionId::V12,
                is_public: false,
                alias: None,
            }),
            ..Append::default()
        };
        for write in writes {
            match write {
                Write::Message { sender, number, flags } => {
                    let content = serde_json::json!({ "n": number });
                    self.push(&mut append, sender, "m.room.message", None, &content, flags).await;
                }
                Write::Member { sender, user, membership, flags } => {
                    let content = serde_json::json!({ "membership": membership.word() });
                    self.push(&mut append, sender, "m.room.member", Some(user), &content, flags).await;
                    let user_nid = self.store.user_nid(&self.user(user)).await.unwrap();
                    let event_nid = self.head.version;
                    append.memberships.retain(|change| change.user_nid != user_nid);
                    append.memberships.push(MembershipChange { user_nid, membership, event_nid });
                }
            }
        }
        append.head = self.head.clone();
        self.is_new = false;
        self.store.commit(Operation::Append(Box::new(append))).await.unwrap().events
    }

    fn user(&self, user: &str) -> OwnedUserId {
        UserId::parse(user).unwrap()
    }

    async fn push(
        &mut self,
        append: &mut Append,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: &Value,
        flags: i64,
    ) {
        let nid = self.store.take_event_nids(1).await.unwrap().start;
        let state_before = self.head.state_root;
        let mut parts = EventParts {
            nid,
            room_nid: self.nid,
            depth: self.head.depth + 1,
            sender_nid: self.store.user_nid(&self.user(sender)).await.unwrap(),
            state_before,
            room_state: state_before,
            flags,
            ..EventParts::default()
        };
        let mut json = serde_json::json!({ "type": event_type, "sender": sender, "content": content,
            "origin_server_ts": nid, "depth": parts.depth, "room_id": format!("!room{}:example.org", self.nid) });
        if let Some(state_key) = state_key {
            json["state_key"] = state_key.into();
            let key = self.store.key_nids(&[StateKey::new(event_type, state_key)]).await.unwrap()[0];
            let (root, nodes) = self.store.update_state(state_before, &[(key, Some(nid))]).await.unwrap();
            append.nodes.extend(nodes);
            parts.key_nid = Some(key);
            parts.room_state = root;
            parts.replaces = self.members.insert(state_key.to_owned(), (key, nid)).map(|(_, nid)| nid);
        }
        self.head = Head {
            version: nid,
            last_pos: 0,
            depth: parts.depth,
            extremities: vec![nid],
            state_root: parts.room_state,
        };
        let event_id = EventId::parse(format!("$event{nid}")).unwrap();
        append.events.push(Event::new(parts, event_id, json.to_string().into()).unwrap());
    }
}
