use myelin_store::testing::{Fresh, on_both};

use super::{
    super::Clock as _,
    world::{Behaviour, Network, Room, Running, TestClock, name, options, until},
};

/// A server that fails is left alone for longer and longer; the same transaction is tried at first; the pauses outlive
/// a restart; hearing from the server ends them.
#[tokio::test]
async fn backs_off_and_wakes() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let running = Running::start(&store, &network, options(&clock)).await;
        let mut room = Room::with(&store, &["a.example"]).await;
        network.set("a.example", Behaviour::Refuses);
        room.say([1]).await;
        network.until("a.example", |peer| peer.tries.len() == 1).await;
        until(async || is_left_alone(&running)).await;
        // The first pause is a second, a quarter more or less.
        clock.advance(700);
        room.say([2]).await;
        let last = store.position();
        until(async || running.distributed() == last).await;
        network.peer("a.example", |peer| assert_eq!(peer.tries.len(), 1));
        clock.advance(600);
        network.until("a.example", |peer| peer.tries.len() == 2).await;
        network.peer("a.example", |peer| assert_eq!(peer.tries[0], peer.tries[1], "the same transaction"));
        // Three days later there were far fewer tries than seconds, and the pause is written down.
        for _ in 0..72 {
            until(async || is_left_alone(&running)).await;
            let tries = network.peer("a.example", |peer| peer.tries.len());
            clock.advance(3_600_000);
            // An hour is longer than the first dozen of pauses.
            if tries < 12 {
                network.until("a.example", |peer| peer.tries.len() > tries).await;
            }
        }
        let settled = async || {
            clock.advance(1_000);
            let row = store.destination("a.example").await.unwrap().unwrap();
            row.failures as usize == network.peer("a.example", |peer| peer.tries.len())
                && row.retry_at > i64::try_from(clock.now_ms()).unwrap()
        };
        until(settled).await;
        let tries = network.peer("a.example", |peer| peer.tries.len());
        assert!((12..24).contains(&tries), "{tries} tries");
        running.kill().await;

        let running = Running::start(&store, &network, options(&clock)).await;
        room.say([3]).await;
        let last = store.position();
        until(async || running.distributed() == last).await;
        assert!(is_left_alone(&running));
        network.peer("a.example", |peer| {
            assert_eq!(peer.tries.len(), tries, "it is left alone after the restart too");
            peer.behaviour = Behaviour::Answers;
        });
        running.sender.wake(&name("a.example"));
        network.until("a.example", |peer| peer.numbers() == [1, 2, 3]).await;
        let recovered = async || {
            clock.advance(1_000);
            let row = store.destination("a.example").await.unwrap().unwrap();
            (row.pending_from, row.failures) == (None, 0) && row.last_success_ts.is_some()
        };
        until(recovered).await;
        running.stop(&clock).await;
        store.close().await;
    })
    .await;
}

/// A server that speaks to us and does not answer is not tried each time that it speaks.
#[tokio::test]
async fn waking_is_bounded() {
    let fresh = Fresh::sqlite();
    let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
    let running = Running::start(&store, &network, options(&clock)).await;
    let mut room = Room::with(&store, &["a.example"]).await;
    network.set("a.example", Behaviour::Refuses);
    room.say([1]).await;
    network.until("a.example", |peer| peer.tries.len() == 1).await;
    for _ in 0..600 {
        running.sender.wake(&name("a.example"));
        clock.advance(1_000);
        tokio::task::yield_now().await;
    }
    let tries = network.peer("a.example", |peer| peer.tries.len());
    assert!(tries < 40, "{tries} tries in ten minutes");
    running.stop(&clock).await;
    store.close().await;
}

/// A thousand servers that hang do not delay one that answers: not at all if that is known, a few seconds if nothing is
/// known of any of them; and what is under way at once is bounded.
#[tokio::test]
async fn the_dead_do_not_delay_the_living() {
    on_both(async |fresh: &Fresh| {
        let (store, clock, network) = (fresh.open().await, TestClock::new(), Network::new());
        let servers: Vec<String> = (0..1000).map(|number| format!("dead{number}.example")).collect();
        let mut names: Vec<&str> = servers.iter().map(String::as_str).collect();
        names.push("living.example");
        let mut room = Room::with(&store, &names).await;
        for server in &servers {
            network.set(server, Behaviour::Hangs);
        }
        let running = Running::start(&store, &network, options(&clock)).await;
        room.say([1]).await;
        let mut seconds = 0;
        while network.peer("living.example", |peer| peer.numbers() != [1]) {
            until(async || network.peer("living.example", |peer| peer.numbers() == [1]) || has_tried(&network)).await;
            clock.advance(1_000);
            seconds += 1;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(seconds <= 20, "{seconds} seconds although nothing was known");
        for number in 2..6 {
            room.say([number]).await;
            network.until("living.example", |peer| peer.numbers().last() == Some(&number)).await;
        }
        network.peer("living.example", |peer| assert_eq!(peer.numbers(), [1, 2, 3, 4, 5]));
        assert!(network.most_under_way() <= 256);
        // They come back, and get everything.
        for server in &servers {
            network.set(server, Behaviour::Answers);
        }
        for server in &servers {
            let complete = async || {
                clock.advance(1_000);
                network.peer(server, |peer| peer.distinct() == [1, 2, 3, 4, 5])
            };
            until(complete).await;
        }
        running.stop(&clock).await;
        assert_eq!(store.count_troubled().await.unwrap(), (0, 0));
        store.close().await;
    })
    .await;
}

/// The one server there is failed, and is going to be tried again.
fn is_left_alone(running: &Running) -> bool {
    let destinations = running.sender.term.read().as_ref().unwrap().all();
    destinations.iter().all(|destination| destination.retry_at().is_some())
}

/// Some transaction is under way.
fn has_tried(network: &Network) -> bool {
    network.most_under_way() > 0
}
