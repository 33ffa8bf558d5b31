use std::time::Duration;

use myelin_store::{
    FEDERATION_SENDER,
    testing::{Fresh, on_both},
};

use super::{
    super::checkpoint::{Checkpoints, Written},
    world::{Network, Room, Running, TestClock, options, until},
};

/// Of two senders one sends. When its lease is lost the other one goes on where it was, and what the old one would still
/// write is refused.
#[tokio::test]
async fn moves_and_fences() {
    on_both(async |fresh: &Fresh| {
        let store = fresh.open().await;
        let (clock, first_network, second_network) = (TestClock::new(), Network::new(), Network::new());
        let mut options = options(&clock);
        options.lease_ttl = Duration::from_secs(4);
        let first = Running::start(&store, &first_network, options.clone()).await;
        options.seed = Some(8);
        let second = Running::begin(&store, &second_network, options);
        let mut room = Room::with(&store, &["a.example"]).await;
        room.say([1]).await;
        first_network.until("a.example", |peer| peer.numbers() == [1]).await;
        clock.advance(1_000);
        let last = store.position();
        until(async || store.duty_position(FEDERATION_SENDER).await.unwrap() == last).await;
        assert!(first.sender.is_leading() && !second.sender.is_leading());

        // The first one is cut off from its lease, and does not know.
        let old = first.sender.term.read().clone().unwrap();
        assert!(store.release_lease(&old.lease).await.unwrap());
        until(async || second.sender.is_leading() || first.sender.is_leading()).await;
        until(async || second.sender.is_leading()).await;
        until(async || !first.sender.is_leading()).await;
        room.say([2]).await;
        second_network.until("a.example", |peer| peer.numbers() == [2]).await;
        old.set_distributed(last + 1000);
        let mut checkpoints = Checkpoints::new(0);
        assert_eq!(checkpoints.write(&old).await.unwrap(), Written::LeaseLost);
        assert!(store.duty_position(FEDERATION_SENDER).await.unwrap() <= store.position());
        first_network.peer("a.example", |peer| assert_eq!(peer.numbers(), [1]));

        // In order, it goes back, at once.
        drop(old);
        second.stop(&clock).await;
        until(async || first.sender.is_leading()).await;
        room.say([3]).await;
        first_network.until("a.example", |peer| peer.numbers() == [1, 3]).await;
        first.stop(&clock).await;
        store.close().await;
    })
    .await;
}
