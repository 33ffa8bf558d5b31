//! The same room is changed on two servers that do not reach each other.

use serde_json::json;

use crate::{
    guest::{Guest, agree, wait},
    together::Pair,
};

/// A room of two servers, in which one of each may do nearly everything.
pub(crate) struct Dispute {
    room: String,
    alice: Guest,
    bob: Guest,
    /// Of alice's server.
    dave: Guest,
    /// Of bob's server.
    carol: Guest,
}

impl Pair<'_> {
    /// Makes the room and waits until both servers have the same of it.
    pub(crate) async fn prepare_dispute(self) -> Dispute {
        let (alice, bob) = self.people().await;
        let (dave, carol) = (Guest::of(self.maker, "dave").await, Guest::of(self.joiner, "carol").await);
        let room = self.shared_room(&alice, &bob).await;
        carol.join_through(&room, self.maker).await.ok();
        dave.join(&room).await;
        let mut power = alice.state(&room, "m.room.power_levels", "").await.unwrap();
        power["users"][bob.user_id()] = 100.into();
        alice.sets(&room, "m.room.power_levels", "", power).await.ok();
        let pointer = format!("/users/{}", bob.user_id());
        bob.sees_state(&room, "m.room.power_levels", &pointer, &100.into()).await;
        bob.sees_member(&room, &dave, "join").await;
        alice.sees_member(&room, &carol, "join").await;
        agree(&alice, &bob, &room).await;
        Dispute { room, alice, bob, dave, carol }
    }
}

impl Dispute {
    /// Both change the power levels and the topic, and each bans a friend of the other, to whom the other gives power.
    pub(crate) async fn act(&self) -> [String; 2] {
        let Self { room, alice, bob, dave, carol } = self;
        for (who, friend, foe) in [(alice, dave, carol), (bob, carol, dave)] {
            let mut power = who.state(room, "m.room.power_levels", "").await.unwrap();
            power["users"][friend.user_id()] = 50.into();
            who.sets(room, "m.room.power_levels", "", power).await.ok();
            who.does("ban", room, foe).await.ok();
            who.sets(room, "m.room.topic", "", json!({ "topic": format!("by {}", who.user_id()) })).await.ok();
            friend.sets(room, "org.example.friend", friend.user_id(), json!({ "hello": true })).await.ok();
        }
        [alice.says(room, "is anybody there?").await, bob.says(room, "is anybody there?").await]
    }

    /// Neither side has heard of the other.
    pub(crate) async fn is_undecided(&self, said: &[String; 2]) {
        assert_eq!(self.bob.event(&self.room, &said[0]).await, None, "the servers reach each other");
        assert_eq!(self.alice.event(&self.room, &said[1]).await, None, "the servers reach each other");
    }

    /// Both sides hear of each other again and come to the same state; the room goes on.
    pub(crate) async fn settle(&self) {
        let Self { room, alice, bob, .. } = self;
        // A server that was away is tried again when there is something to say.
        let (ours, theirs) = (alice.says(room, "there you are").await, bob.says(room, "there you are").await);
        bob.sees(room, &ours).await;
        alice.sees(room, &theirs).await;
        agree(alice, bob, room).await;
        let later = alice.sets(room, "m.room.name", "", json!({ "name": "Peace" })).await.ok();
        bob.sees(room, later["event_id"].as_str().unwrap()).await;
        agree(alice, bob, room).await;
        let heard = wait("all is heard on both sides", async || {
            let (mut here, mut there) = (alice.history(room).await, bob.history(room).await);
            here.sort();
            there.sort();
            (here == there).then_some(here)
        });
        assert_eq!(heard.await.len(), 4);
    }
}
