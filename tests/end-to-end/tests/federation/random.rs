//! Three servers on which anything happens, while now this one and now that one cannot be reached.

use futures_util::future::join_all;
use myelin_end_to_end::{Answer, Authority, Engine, Peer, encode, run};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;

use crate::guest::{Guest, agree, event_id};

const STEPS: usize = 400;

/// They come to the same state of the room, whatever happened.
#[test]
fn three_servers_agree_in_the_end() {
    run(async {
        let seed = rand::random();
        println!("the seed is {seed}");
        let authority = Authority::new();
        let peers = join_all((0..3).map(|_| Peer::myelin(Engine::Sqlite, &authority))).await;
        // Rooms whose state is resolved by the second version of the algorithm, and by its newest one.
        let mut worlds = [World::new(&peers, 10, seed).await, World::new(&peers, 12, seed + 1).await];
        for _ in 0..STEPS {
            worlds[0].cut_or_heal();
            let [one, other] = &mut worlds;
            tokio::join!(one.step(), other.step());
        }
        peers.iter().for_each(Peer::heal);
        let [one, other] = &mut worlds;
        tokio::join!(one.end(), other.end());
    });
}

/// A room of three servers.
struct World<'a> {
    peers: &'a [Peer],
    rng: StdRng,
    room: String,
    /// One of each server, who may do everything and stays.
    hosts: Vec<Guest>,
    /// One of each server, who comes and goes.
    visitors: Vec<Guest>,
    /// What hosts said.
    said: Vec<String>,
}

impl<'a> World<'a> {
    async fn new(peers: &'a [Peer], version: u8, seed: u64) -> Self {
        let hosts = join_all(peers.iter().map(|peer| Guest::of(peer, "host"))).await;
        let visitors = join_all(peers.iter().map(|peer| Guest::of(peer, "visitor"))).await;
        let request = json!({ "preset": "public_chat", "room_version": version.to_string() });
        let room = hosts[0].create_room(request).await;
        for host in &hosts[1..] {
            host.join_through(&room, &peers[0]).await.ok();
        }
        let mut power = hosts[0].state(&room, "m.room.power_levels", "").await.unwrap();
        for host in &hosts[1..] {
            power["users"][host.user_id()] = 100.into();
        }
        hosts[0].sets(&room, "m.room.power_levels", "", power).await.ok();
        for host in &hosts[1..] {
            agree(&hosts[0], host, &room).await;
        }
        Self { peers, rng: StdRng::seed_from_u64(seed), room, hosts, visitors, said: Vec::new() }
    }

    /// Now and then, a server cannot be reached any longer, or can again.
    fn cut_or_heal(&mut self) {
        let peer = &self.peers[self.rng.random_range(0..self.peers.len())];
        match self.rng.random_range(0..10) {
            0 | 1 => peer.cut(),
            2 | 3 => peer.heal(),
            _ => {}
        }
    }

    /// Somebody does something, which may be refused.
    async fn step(&mut self) {
        let host = &self.hosts[self.rng.random_range(0..self.hosts.len())];
        let visitor = &self.visitors[self.rng.random_range(0..self.visitors.len())];
        let (room, what) = (&self.room, self.rng.random_range(0..9));
        let number = self.rng.random_range(0..1000);
        let topic = json!({ "topic": format!("topic {number}") });
        let rule = json!({ "join_rule": if number % 2 == 0 { "public" } else { "invite" } });
        let answer = match what {
            0 | 1 => {
                self.said.push(host.says(room, "something").await);
                return;
            }
            2 => host.sets(room, "m.room.topic", "", topic).await,
            3 => visitor.sets(room, "m.room.topic", "", topic).await,
            4 => {
                let level = [0, 25, 50][number % 3];
                let mut power = host.state(room, "m.room.power_levels", "").await.unwrap();
                power["users"][visitor.user_id()] = level.into();
                power["events"]["m.room.topic"] = [0, 50][number % 2].into();
                host.sets(room, "m.room.power_levels", "", power).await
            }
            5 => host.does(["ban", "kick", "unban"][number % 3], room, visitor).await,
            6 => host.sets(room, "m.room.join_rules", "", rule).await,
            7 => visitor.post(&format!("rooms/{}/join", encode(room)), json!({})).await,
            _ => visitor.post(&format!("rooms/{}/leave", encode(room)), json!({})).await,
        };
        may_be_refused(&answer);
    }

    /// Everybody is heard, and all have the same.
    async fn end(&mut self) {
        for host in &self.hosts {
            self.said
                .push(event_id(&host.sets(&self.room, "m.room.name", "", json!({ "name": host.user_id() })).await));
        }
        for event in &self.said {
            for host in &self.hosts {
                host.sees(&self.room, event).await;
            }
        }
        for host in &self.hosts[1..] {
            agree(&self.hosts[0], host, &self.room).await;
        }
    }
}

fn may_be_refused(answer: &Answer) {
    assert!([200, 403].contains(&answer.status), "{answer}");
}
