//! What two servers do together, whichever they are. The room is made on the first.

use myelin_end_to_end::{Method, Peer, encode};
use serde_json::{Value, json};

use crate::guest::{Guest, agree, next, wait};

/// Two servers and the version of the rooms that they share.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    pub(crate) maker: &'a Peer,
    pub(crate) joiner: &'a Peer,
    pub(crate) version: u8,
}

impl Pair<'_> {
    /// Somebody of each server.
    pub(crate) async fn people(&self) -> (Guest, Guest) {
        (Guest::of(self.maker, "alice").await, Guest::of(self.joiner, "bob").await)
    }

    /// A room of the pair's version. `more` is added to the request.
    async fn room(&self, maker: &Guest, more: Value) -> String {
        let mut request = json!({ "room_version": self.version.to_string() });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        maker.create_room(request).await
    }

    /// A public room that the second of them has joined through the first one's server.
    pub(crate) async fn shared_room(&self, maker: &Guest, joiner: &Guest) -> String {
        let room = self.room(maker, json!({ "preset": "public_chat" })).await;
        joiner.join_through(&room, self.maker).await.ok();
        maker.sees_member(&room, joiner, "join").await;
        room
    }

    /// A public room is found by its alias; people talk, react, take things back, leave and come back.
    pub(crate) async fn talk(self) {
        let (alice, bob) = self.people().await;
        let alias = format!("room-{}", next());
        let request =
            json!({ "preset": "public_chat", "room_alias_name": alias, "name": "A room", "topic": "Federation" });
        let room = self.room(&alice, request).await;
        let before = alice.says(&room, "before anybody came").await;

        let alias = format!("#{alias}:{}", self.maker.name());
        let found = bob.get(&format!("directory/room/{}", encode(&alias))).await.ok();
        assert_eq!(found["room_id"], room);
        assert!(found["servers"].as_array().unwrap().contains(&self.maker.name().into()), "{found}");
        let joined = bob.join_through(&alias, self.maker).await.ok();
        assert_eq!(joined["room_id"], room);
        alice.sees_member(&room, &bob, "join").await;
        agree(&alice, &bob, &room).await;
        bob.sees_state(&room, "m.room.create", "/room_version", &self.version.to_string().into()).await;

        self.exchange(&alice, &bob, &room).await;
        let history = bob.history(&room).await;
        assert_eq!(history.first().map(String::as_str), Some("before anybody came"), "{history:?}");
        assert_eq!(bob.sees(&room, &before).await["sender"], alice.user_id());

        bob.leaves(&room).await;
        alice.sees_member(&room, &bob, "leave").await;
        let missed = alice.says(&room, "while nobody was there").await;
        bob.join_through(&room, self.maker).await.ok();
        alice.sees_member(&room, &bob, "join").await;
        agree(&alice, &bob, &room).await;
        let seen = bob.history(&room).await;
        assert!(seen.iter().any(|words| words == "while nobody was there"), "{missed} is not in {seen:?}");
        let again = alice.says(&room, "welcome back").await;
        bob.sees(&room, &again).await;
    }

    /// Messages, reactions and redactions reach the other side, both ways.
    async fn exchange(&self, alice: &Guest, bob: &Guest, room: &str) {
        let (hello, hi) = (alice.says(room, "hello").await, bob.says(room, "hi").await);
        assert_eq!(bob.sees(room, &hello).await["content"]["body"], "hello");
        assert_eq!(alice.sees(room, &hi).await["content"]["body"], "hi");
        let (liked, loved) = (bob.reacts(room, &hello, "👍").await, alice.reacts(room, &hi, "♥").await);
        assert_eq!(alice.sees(room, &liked).await["content"]["m.relates_to"]["event_id"], hello);
        assert_eq!(bob.sees(room, &loved).await["content"]["m.relates_to"]["event_id"], hi);
        bob.redacts(room, &hi).await;
        alice.sees_redacted(room, &hi).await;
        let rude = bob.says(room, "something rude").await;
        alice.sees(room, &rude).await;
        alice.redacts(room, &rude).await;
        bob.sees_redacted(room, &rude).await;
    }

    /// People are invited both ways, accept and refuse, are kicked and banned.
    pub(crate) async fn invite(self) {
        let (alice, bob) = self.people().await;
        let (carol, dave) = (Guest::of(self.joiner, "carol").await, Guest::of(self.maker, "dave").await);
        let room = self.room(&alice, json!({ "preset": "private_chat", "name": "A private room" })).await;
        assert_eq!(bob.join_through(&room, self.maker).await.status, 403, "nobody invited bob");

        alice.does("invite", &room, &bob).await.ok();
        let invited = bob.finds("invite", &room).await;
        let events = invited["invite_state"]["events"].as_array().unwrap();
        let name = events.iter().find(|event| event["type"] == "m.room.name");
        assert_eq!(name.map(|event| &event["content"]["name"]), Some(&"A private room".into()), "{invited}");
        bob.insists(Method::POST, &format!("rooms/{}/join", encode(&room)), json!({})).await;
        alice.sees_member(&room, &bob, "join").await;

        // Carol is on a server that is in the room already.
        alice.does("invite", &room, &carol).await.ok();
        carol.finds("invite", &room).await;
        carol.leaves(&room).await;
        alice.sees_member(&room, &carol, "leave").await;
        bob.sees_member(&room, &carol, "leave").await;

        let mut power = alice.state(&room, "m.room.power_levels", "").await.unwrap();
        power["users"][bob.user_id()] = 50.into();
        alice.sets(&room, "m.room.power_levels", "", power).await.ok();
        let pointer = format!("/users/{}", bob.user_id());
        bob.sees_state(&room, "m.room.power_levels", &pointer, &50.into()).await;
        bob.does("invite", &room, &dave).await.ok();
        dave.finds("invite", &room).await;
        dave.join(&room).await;
        bob.sees_member(&room, &dave, "join").await;
        bob.does("kick", &room, &dave).await.ok();
        alice.sees_member(&room, &dave, "leave").await;
        bob.does("ban", &room, &dave).await.ok();
        alice.sees_member(&room, &dave, "ban").await;
        assert_eq!(alice.does("invite", &room, &dave).await.status, 403, "he is banned");
        agree(&alice, &bob, &room).await;

        alice.does("kick", &room, &bob).await.ok();
        bob.finds("leave", &room).await;
        alice.does("invite", &room, &bob).await.ok();
        bob.finds("invite", &room).await;
        bob.insists(Method::POST, &format!("rooms/{}/join", encode(&room)), json!({})).await;
        alice.sees_member(&room, &bob, "join").await;
        alice.does("ban", &room, &bob).await.ok();
        bob.finds("leave", &room).await;
        assert_eq!(bob.join_through(&room, self.maker).await.status, 403, "bob is banned");
        alice.does("unban", &room, &bob).await.ok();
        alice.sees_member(&room, &bob, "leave").await;
    }

    /// Somebody who is the only one of their server refuses an invitation.
    pub(crate) async fn refuse(self) {
        let (alice, bob) = self.people().await;
        let room = self.room(&alice, json!({ "preset": "private_chat" })).await;
        alice.does("invite", &room, &bob).await.ok();
        bob.finds("invite", &room).await;
        bob.leaves(&room).await;
        alice.sees_member(&room, &bob, "leave").await;
    }

    /// Somebody knocks, is let in; somebody else is not. In versions that have no knocking, nobody may.
    pub(crate) async fn knock(self) {
        let (alice, bob) = self.people().await;
        let room = self.room(&alice, json!({ "preset": "private_chat", "name": "Closed" })).await;
        let path = format!("knock/{}?via={via}&server_name={via}", encode(&room), via = encode(self.maker.name()));
        let knock = async |guest: &Guest| guest.post(&path, json!({ "reason": "let me in" })).await;
        assert_eq!(knock(&bob).await.status, 403, "nobody may knock");
        if self.version < 7 {
            return;
        }
        alice.sets(&room, "m.room.join_rules", "", json!({ "join_rule": "knock" })).await.ok();
        knock(&bob).await.ok();
        alice.sees_member(&room, &bob, "knock").await;
        bob.finds("knock", &room).await;
        alice.does("invite", &room, &bob).await.ok();
        bob.finds("invite", &room).await;
        bob.insists(Method::POST, &format!("rooms/{}/join", encode(&room)), json!({})).await;
        alice.sees_member(&room, &bob, "join").await;

        let carol = Guest::of(self.joiner, "carol").await;
        knock(&carol).await.ok();
        alice.sees_member(&room, &carol, "knock").await;
        carol.leaves(&room).await;
        alice.sees_member(&room, &carol, "leave").await;
    }

    /// Members of another room may join without an invitation, and nobody else.
    pub(crate) async fn restrict(self) {
        if self.version < 8 {
            return;
        }
        let (alice, bob) = self.people().await;
        let carol = Guest::of(self.joiner, "carol").await;
        let club = self.shared_room(&alice, &bob).await;
        let rule = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let state = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rule }]);
        let room = self.room(&alice, json!({ "preset": "private_chat", "initial_state": state })).await;
        assert_eq!(carol.join_through(&room, self.maker).await.status, 403, "carol is not in the club");
        bob.join_through(&room, self.maker).await.ok();
        alice.sees_member(&room, &bob, "join").await;
        agree(&alice, &bob, &room).await;

        // Now the joining server is in the room, and still nobody of it can let anybody in.
        assert_eq!(carol.join_through(&room, self.maker).await.status, 403, "carol is not in the club");
        carol.join_through(&club, self.maker).await.ok();
        alice.sees_member(&club, &carol, "join").await;
        carol.join_through(&room, self.maker).await.ok();
        alice.sees_member(&room, &carol, "join").await;
        agree(&alice, &bob, &room).await;
        let welcome = carol.says(&room, "thank you").await;
        alice.sees(&room, &welcome).await;
    }

    /// A profile and the list of public rooms are had from the other server.
    pub(crate) async fn look_up(self) {
        let (alice, bob) = self.people().await;
        let me = encode(alice.user_id());
        let name = json!({ "displayname": "Alice of the first server" });
        alice.put(&format!("profile/{me}/displayname"), name).await.ok();
        let profile = bob.get(&format!("profile/{me}")).await.ok();
        assert_eq!(profile["displayname"], "Alice of the first server");
        let nobody = encode(&format!("@nobody:{}", self.maker.name()));
        assert_eq!(bob.get(&format!("profile/{nobody}")).await.status, 404);

        let request = json!({ "preset": "public_chat", "visibility": "public", "name": format!("Listed {}", next()) });
        let room = self.room(&alice, request.clone()).await;
        let path = format!("publicRooms?server={}", encode(self.maker.name()));
        let filter = json!({ "limit": 50, "filter": { "generic_search_term": request["name"] } });
        let listed = wait("the room is listed", async || {
            let answer = bob.post(&path, filter.clone()).await.ok();
            answer["chunk"].as_array()?.iter().find(|listed| listed["room_id"] == room).cloned()
        })
        .await;
        assert_eq!(listed["name"], request["name"], "{listed}");
        let missing = encode(&format!("#nothing-{}:{}", next(), self.maker.name()));
        assert_eq!(bob.get(&format!("directory/room/{missing}")).await.status, 404);
    }

    /// Somebody who comes late reads all that was said before.
    pub(crate) async fn read_back(self, messages: usize) {
        let (alice, bob) = self.people().await;
        let room = self.room(&alice, json!({ "preset": "public_chat" })).await;
        let mut said = Vec::with_capacity(messages);
        for number in 0..messages {
            said.push(format!("message {number}"));
            alice.says(&room, &said[number]).await;
        }
        bob.join_through(&room, self.maker).await.ok();
        assert_eq!(bob.history(&room).await, said);
    }

    /// Devices and their keys are known on the other side, and messages reach them.
    pub(crate) async fn encrypt(self) {
        let (alice, bob) = self.people().await;
        self.shared_room(&alice, &bob).await;
        for (who, other) in [(&alice, &bob), (&bob, &alice)] {
            let keys = device_keys(who);
            let before = other.everything().await["next_batch"].as_str().unwrap().to_owned();
            who.post("keys/upload", json!({ "device_keys": keys })).await.ok();
            wait("it is told that there is a new device", async || {
                let news = other.sync(Some(&before), &json!({})).await;
                let changed = news["device_lists"]["changed"].as_array()?.clone();
                changed.contains(&who.user_id().into()).then_some(())
            })
            .await;
            let query = json!({ "device_keys": { who.user_id(): [] } });
            wait("the device's keys are known", async || {
                let known = other.post("keys/query", query.clone()).await.ok();
                (known["device_keys"][who.user_id()][who.device_id()]["keys"] == keys["keys"]).then_some(())
            })
            .await;

            let one_time = json!({ format!("signed_curve25519:{}", next()): { "key": "b25l", "signatures": {} } });
            who.post("keys/upload", json!({ "one_time_keys": one_time })).await.ok();
            let claim = json!({ "one_time_keys": { who.user_id(): { who.device_id(): "signed_curve25519" } } });
            let claimed = other.post("keys/claim", claim).await.ok();
            assert_eq!(claimed["one_time_keys"][who.user_id()][who.device_id()], one_time, "{claimed}");

            let messages = json!({ "messages": { who.user_id(): { who.device_id(): { "words": "psst" } } } });
            other.put(&format!("sendToDevice/org.example.whisper/{}", next()), messages).await.ok();
            let heard = wait("the message has come", async || {
                let synced = who.everything().await;
                let events = synced["to_device"]["events"].as_array()?.clone();
                events.into_iter().find(|event| event["type"] == "org.example.whisper")
            })
            .await;
            assert_eq!((&heard["sender"], &heard["content"]["words"]), (&other.user_id().into(), &"psst".into()));
        }
    }
}

/// Keys of somebody's device, in the right form, signed by nobody whom a server would have to believe.
fn device_keys(of: &Guest) -> Value {
    let device = of.device_id();
    json!({
        "user_id": of.user_id(),
        "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {
            format!("curve25519:{device}"): "wjLpTLRqbqBzLs63aYaEv2Boi6cFEbbM/sSRQ2oAKk4",
            format!("ed25519:{device}"): "nE6W2fCblxDcOFmeEtCHNl8/l8bXcu7GKyAswA4r3mM",
        },
        "signatures": {},
    })
}
