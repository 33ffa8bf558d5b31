use std::{collections::HashSet, sync::Arc};

use myelin_store::{
    FEDERATION_SENDER, Membership, flags,
    testing::{Fresh, on_both},
};

use super::world::{ALICE, Behaviour, Network, Room, Running, TestClock, Write, options, until};

/// Every server gets every event once, in order, in transactions that are within the limits, one at a time, with the
/// bytes that were signed; and nothing is written for servers that are well.
#[tokio::test]
async fn in_order_within_the_limits() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let mut room = Room::with(&store, &["a.example", "b.example:8448"]).await;
        let mut events = Vec::new();
        // The second server is slow: its queue fills while a transaction is under way.
        network.set("b.example:8448", Behaviour::Hangs);
        for batch in 0..8 {
            events.extend(room.say(batch * 10..batch * 10 + 10).await);
        }
        network.until("a.example", |peer| peer.numbers().len() == 80).await;
        network.set("b.example:8448", Behaviour::Answers);
        network.until("b.example:8448", |peer| peer.numbers().len() == 80).await;
        let mut ids = HashSet::new();
        for server in ["a.example", "b.example:8448"] {
            network.peer(server, |peer| {
                assert_eq!(peer.numbers(), (0..80).collect::<Vec<_>>());
                assert_eq!(peer.most_under_way, 1);
                assert!(peer.taken.iter().all(|transaction| transaction.pdus.len() <= 50));
                assert!(peer.taken.iter().all(|transaction| ids.insert(transaction.id.clone())));
                let sent = peer.taken.iter().flat_map(|transaction| &transaction.pdus).map(|pdu| pdu.get());
                // Alice's own join came before there was anyone.
                assert!(sent.eq(events.iter().map(|event| event.json())));
            });
        }
        clock.advance(1_000);
        let last = store.position();
        until(async || store.duty_position(FEDERATION_SENDER).await.unwrap() == last).await;
        assert!(store.destination("a.example").await.unwrap().is_none());
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// Who is in the room when an event is sent gets it, nobody else; who is put out is told so; events of others are sent
/// when they are marked.
#[tokio::test]
async fn to_those_whom_it_concerns() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let mut room = Room::with(&store, &["a.example", "b.example", "c.example"]).await;
        room.say([1]).await;
        // Two users of one server; one of them goes.
        room.member("@v:a.example", "@v:a.example", Membership::Join).await;
        room.member("@v:a.example", "@v:a.example", Membership::Leave).await;
        room.say([2]).await;
        let kick = room.member(ALICE, "@u:b.example", Membership::Leave).await;
        room.say([3]).await;
        let marked = |sender, number, flags| Write::Message { sender, number, flags };
        room.write(vec![marked("@u:c.example", 4, flags::TO_SEND), marked("@u:c.example", 5, 0)]).await;
        let rejected = marked(ALICE, 6, flags::SOFT_FAILED);
        room.write(vec![rejected]).await;
        room.member(ALICE, "@u:d.example", Membership::Invite).await;
        let taken_back = room.member(ALICE, "@u:d.example", Membership::Leave).await;
        room.member("@u:e.example", "@u:e.example", Membership::Join).await;
        room.say([7]).await;
        network.until("a.example", |peer| peer.numbers() == [1, 2, 3, 4, 7]).await;
        network.until("c.example", |peer| peer.numbers() == [1, 2, 3, 7]).await;
        network.until("e.example", |peer| peer.numbers() == [7]).await;
        let sent_last = |server: &str, event: &Arc<myelin_store::Event>| {
            network.peer(server, |peer| peer.taken.last().unwrap().pdus.last().unwrap().get() == event.json())
        };
        network.until("b.example", |peer| peer.taken.iter().map(|sent| sent.pdus.len()).sum::<usize>() == 3).await;
        network.peer("b.example", |peer| assert_eq!(peer.numbers(), [1, 2]));
        assert!(sent_last("b.example", &kick));
        network.until("d.example", |peer| !peer.taken.is_empty()).await;
        assert!(sent_last("d.example", &taken_back));
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// What happens while nobody sends is sent later, and a process that is killed in the middle loses nothing.
#[tokio::test]
async fn a_restart_loses_nothing() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let mut room = Room::with(&store, &["a.example", "b.example"]).await;
        room.say(0..10).await;
        let running = Running::start(&store, &network, options(&clock)).await;
        network.until("b.example", |peer| peer.numbers().len() == 10).await;
        network.set("b.example", Behaviour::Hangs);
        let first = room.say(10..20).await[0].pos.unwrap();
        network.until("a.example", |peer| peer.numbers().len() == 20).await;
        network.until("b.example", |peer| peer.tries.len() > peer.taken.len()).await;
        // The written position waits for the second server, of which nothing is written yet.
        clock.advance(1_000);
        until(async || store.duty_position(FEDERATION_SENDER).await.unwrap() == first - 1).await;
        assert!(store.destination("b.example").await.unwrap().is_none());
        running.kill().await;
        room.say(20..30).await;
        let running = Running::start(&store, &network, options(&clock)).await;
        network.until("a.example", |peer| peer.distinct().len() == 30).await;
        network.until("b.example", |peer| peer.tries.len() > peer.taken.len() + 1).await;
        // Killed after that: the position is ahead of what this server has.
        let written = async || {
            clock.advance(1_000);
            let row = store.destination("b.example").await.unwrap();
            row.is_some_and(|row| row.pending_from.is_some())
                && store.duty_position(FEDERATION_SENDER).await.unwrap() == store.position()
        };
        until(written).await;
        running.kill().await;
        network.set("b.example", Behaviour::Answers);
        room.say(30..40).await;
        // Its next try may be some seconds away.
        let running = Running::start(&store, &network, options(&clock)).await;
        clock.advance(60_000);
        for server in ["a.example", "b.example"] {
            network.until(server, |peer| peer.distinct().len() == 40).await;
            network.peer(server, |peer| assert_eq!(peer.distinct(), (0..40).collect::<Vec<_>>()));
        }
        network.peer("b.example", |peer| {
            let ids: HashSet<_> = peer.tries.iter().collect();
            assert_eq!(ids.len(), peer.tries.len(), "identifiers are not used again after a restart");
        });
        running.stop(&clock).await;
        // A stop in order leaves nothing behind.
        assert_eq!(store.duty_position(FEDERATION_SENDER).await.unwrap(), store.position());
        assert_eq!(store.count_troubled().await.unwrap(), (0, 0));
        store.close().await;
    })
    .await;
}
