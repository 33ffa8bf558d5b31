use std::sync::Arc;

use myelin_store::{
    Membership, Store,
    testing::{Fresh, on_both},
};

use super::world::{ALICE, Behaviour, Network, Room, Running, TestClock, name, options, until};

/// Lets a server fail until its queue is given up.
async fn lose(network: &Network, clock: &TestClock, store: &Arc<Store>, server: &str) {
    let given_up = async || {
        clock.advance(1_000);
        let row = store.destination(server).await.unwrap();
        row.is_some_and(|row| row.failures >= 3 && row.pending_from.is_some())
    };
    network.until(server, |peer| !peer.tries.is_empty()).await;
    until(given_up).await;
}

/// After a long outage the newest event of each room comes first, then everything in order; meanwhile and afterwards
/// nothing is lost.
#[tokio::test]
async fn newest_first_then_the_gap() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let mut rooms = Vec::new();
        for _ in 0..3 {
            rooms.push(Room::with(&store, &["a.example"]).await);
        }
        network.set("a.example", Behaviour::Refuses);
        for batch in 0..10 {
            for (place, room) in rooms.iter_mut().enumerate() {
                let start = place as i64 * 1000 + batch * 20;
                room.say(start..start + 20).await;
            }
        }
        lose(&network, &clock, &store, "a.example").await;
        let mut expected: Vec<i64> = Vec::new();
        for batch in 0..10 {
            (0..3).for_each(|room| expected.extend(room * 1000 + batch * 20..room * 1000 + batch * 20 + 20));
        }
        network.set("a.example", Behaviour::Answers);
        running.sender.wake(&name("a.example"));
        clock.advance(1_000);
        network.until("a.example", |peer| peer.distinct().len() == 600).await;
        network.peer("a.example", |peer| {
            let numbers = peer.numbers();
            assert_eq!(numbers[..3], [199, 1199, 2199], "the newest of each room");
            assert_eq!(numbers[3..], expected, "the gap in order");
            assert_eq!(peer.most_under_way, 1);
        });
        rooms[0].say([777]).await;
        network.until("a.example", |peer| peer.numbers().last() == Some(&777)).await;
        running.stop(&clock).await;
        assert_eq!(store.count_troubled().await.unwrap(), (0, 0));
        store.close().await;
    })
    .await;
}

/// A few missing events come just in order. Who has left meanwhile gets what was sent until then; who has come gets
/// nothing from before.
#[tokio::test]
async fn a_small_gap_and_stays() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let mut stays = Room::with(&store, &["a.example"]).await;
        let mut leaves = Room::with(&store, &["a.example"]).await;
        let mut comes = Room::with(&store, &["b.example"]).await;
        network.set("a.example", Behaviour::Refuses);
        stays.say([1]).await;
        leaves.say([2]).await;
        comes.say([3]).await;
        let ban = leaves.member(ALICE, "@u:a.example", Membership::Ban).await;
        leaves.say([4]).await;
        comes.member("@u:a.example", "@u:a.example", Membership::Join).await;
        comes.say([5]).await;
        // Another profile, which says nothing about since when the user is there.
        stays.member("@u:a.example", "@u:a.example", Membership::Join).await;
        stays.say([6]).await;
        network.until("b.example", |peer| peer.numbers() == [3, 5]).await;
        lose(&network, &clock, &store, "a.example").await;
        network.set("a.example", Behaviour::Answers);
        clock.advance(60_000);
        network.until("a.example", |peer| peer.numbers().contains(&6)).await;
        network.peer("a.example", |peer| {
            assert_eq!(peer.numbers(), [1, 2, 5, 6]);
            assert!(peer.taken[0].pdus.iter().any(|pdu| pdu.get() == ban.json()));
        });
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// A server that does not keep up loses its place in memory and nothing else.
#[tokio::test]
async fn overflow() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let mut options = options(&clock);
        options.queue_max = 20;
        let running = Running::start(&store, &network, options).await;
        let mut room = Room::with(&store, &["a.example", "b.example"]).await;
        network.set("a.example", Behaviour::Hangs);
        room.say([0]).await;
        network.until("a.example", |peer| peer.tries.len() == 1).await;
        for start in (1..41).step_by(10) {
            room.say(start..start + 10).await;
        }
        network.until("b.example", |peer| peer.distinct().len() == 41).await;
        network.set("a.example", Behaviour::Answers);
        network.until("a.example", |peer| peer.distinct().len() == 41).await;
        room.say([41]).await;
        network.until("a.example", |peer| peer.distinct().len() == 42).await;
        network.peer("a.example", |peer| assert_eq!(peer.numbers(), (0..42).collect::<Vec<_>>()));
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}
