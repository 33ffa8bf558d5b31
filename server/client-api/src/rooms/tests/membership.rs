use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use super::{Client, FORBIDDEN, refused, room_id, segment};
use crate::testing::{Server, on_both};

const UNKNOWN_ROOM: &str = "/rooms/%21nowhere%3Aexample.org";
const GUEST_REFUSED: (StatusCode, &str) = (StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN");

async fn membership(alice: &Client<'_>, room: &str, user_id: &str) -> String {
    let member = alice.ok(alice.get(&format!("{room}/state/m.room.member/{}", segment(user_id))).await);
    member["membership"].as_str().unwrap().to_owned()
}

/// Who is invited may enter; who is kicked may come back when invited again; who is banned may not until unbanned.
#[tokio::test]
async fn people_come_and_go() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({})).await;
        let him = json!({ "user_id": bob.user_id, "reason": "because" });
        refused(&bob.post(&format!("{room}/join"), json!({})).await, FORBIDDEN);
        alice.act(&room, "invite", him.clone()).await;
        alice.act(&room, "invite", him.clone()).await;
        let joined = bob.post(&format!("/join/{}", segment(&room_id(&room))), json!({})).await;
        assert_eq!(joined.json(StatusCode::OK), json!({ "room_id": room_id(&room) }));
        bob.join(&room).await;
        refused(&alice.post(&format!("{room}/invite"), him.clone()).await, FORBIDDEN);
        refused(&bob.post(&format!("{room}/kick"), json!({ "user_id": alice.user_id })).await, FORBIDDEN);
        refused(&bob.post(&format!("{room}/ban"), json!({ "user_id": alice.user_id })).await, FORBIDDEN);
        alice.act(&room, "kick", him.clone()).await;
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "leave");
        refused(&alice.post(&format!("{room}/kick"), him.clone()).await, FORBIDDEN);
        refused(&alice.post(&format!("{room}/unban"), him.clone()).await, FORBIDDEN);
        refused(&bob.post(&format!("{room}/join"), json!({})).await, FORBIDDEN);
        alice.act(&room, "ban", him.clone()).await;
        refused(&alice.post(&format!("{room}/invite"), him.clone()).await, FORBIDDEN);
        alice.act(&room, "unban", him.clone()).await;
        alice.act(&room, "invite", him.clone()).await;
        bob.leave(&room).await;
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "leave");
        // An empty body is an empty object.
        alice.act(&room, "invite", him.clone()).await;
        for path in [format!("/join/{}", segment(&room_id(&room))), format!("{room}/leave")] {
            let path = format!("/_matrix/client/v3{path}");
            bob.ok(server.send(Method::POST, &path, Some(&bob.token), &[], Vec::new()).await);
        }
        let missing = alice.post(&format!("{room}/kick"), json!({})).await;
        refused(&missing, (StatusCode::BAD_REQUEST, "M_MISSING_PARAM"));
        let wrong = alice.post(&format!("{room}/ban"), json!({ "user_id": "bob" })).await;
        refused(&wrong, (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"));
    })
    .await;
}

/// Only a room that was left can be forgotten, and then nothing of it can be read any more.
#[tokio::test]
async fn rooms_are_forgotten() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create_public("shared").await;
        bob.join(&room).await;
        alice.say(&room, "hello").await;
        let forget = format!("{room}/forget");
        refused(&bob.post(&forget, json!({})).await, (StatusCode::BAD_REQUEST, "M_UNKNOWN"));
        bob.leave(&room).await;
        assert_eq!(bob.history(&room, 10).await, ["hello"]);
        bob.act(&room, "forget", json!({})).await;
        bob.act(&room, "forget", json!({})).await;
        refused(&bob.get(&format!("{room}/messages?dir=b")).await, FORBIDDEN);
        refused(&bob.get(&format!("{room}/state")).await, FORBIDDEN);
        bob.join(&room).await;
        assert_eq!(bob.history(&room, 10).await, ["hello"]);
        let carol = Client::new(server, "carol").await;
        refused(&carol.post(&forget, json!({})).await, FORBIDDEN);
        refused(&carol.post(&format!("{UNKNOWN_ROOM}/forget"), json!({})).await, FORBIDDEN);
    })
    .await;
}

/// Who knocks is let in by an invitation; a room without such a rule refuses.
#[tokio::test]
async fn people_knock() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({ "room_alias_name": "door" })).await;
        let knock = format!("/knock/{}", segment("#door:example.org"));
        refused(&bob.post(&knock, json!({})).await, FORBIDDEN);
        alice.ok(alice.set(&room, "m.room.join_rules", json!({ "join_rule": "knock" })).await);
        bob.ok(bob.post(&knock, json!({ "reason": "it rains" })).await);
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "knock");
        refused(&bob.get(&format!("{room}/state")).await, FORBIDDEN);
        alice.act(&room, "invite", json!({ "user_id": bob.user_id })).await;
        bob.join(&room).await;
        let nowhere = bob.post("/knock/%21nowhere%3Aexample.org", json!({})).await;
        refused(&nowhere, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
        let nowhere = bob.post("/join/%23nowhere%3Aexample.org", json!({})).await;
        refused(&nowhere, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
    })
    .await;
}

/// A restricted room is open to the members of the rooms that it names, and to no one else.
#[tokio::test]
async fn restricted_rooms() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let club = alice.create_public("shared").await;
        let allow = json!([{ "type": "m.room_membership", "room_id": room_id(&club) }]);
        let rule = json!({ "join_rule": "restricted", "allow": allow });
        let state = json!([{ "type": "m.room.join_rules", "content": rule }]);
        let room = alice.create(json!({ "initial_state": state })).await;
        refused(&bob.post(&format!("{room}/join"), json!({})).await, FORBIDDEN);
        let forged = json!({ "membership": "join", "join_authorised_via_users_server": alice.user_id });
        let path = format!("{room}/state/m.room.member/{}", bob.user_id);
        refused(&bob.put(&path, forged).await, FORBIDDEN);
        bob.join(&club).await;
        bob.join(&room).await;
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "join");
    })
    .await;
}

/// Guests enter only rooms that admit them, and have to go when a room does so no longer.
#[tokio::test]
async fn guests() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let guest = Client::guest(server).await;
        let room = alice.create_public("shared").await;
        let join = format!("{room}/join");
        refused(&guest.post(&join, json!({})).await, GUEST_REFUSED);
        let path = format!("{room}/state/m.room.member/{}", segment(&guest.user_id));
        refused(&guest.put(&path, json!({ "membership": "join" })).await, GUEST_REFUSED);
        alice.ok(alice.set(&room, "m.room.guest_access", json!({ "guest_access": "can_join" })).await);
        guest.join(&room).await;
        guest.say(&room, "hello").await;
        let invite = guest.post(&format!("{room}/invite"), json!({ "user_id": alice.user_id })).await;
        refused(&invite, GUEST_REFUSED);
        alice.ok(alice.set(&room, "m.room.guest_access", json!({ "guest_access": "forbidden" })).await);
        assert_eq!(membership(&alice, &room, &guest.user_id).await, "leave");
    })
    .await;
}

/// Guests have to go also when nobody waits for the answer to the change that makes them.
#[tokio::test]
async fn guests_go_without_an_asker() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create_public("shared").await;
        alice.ok(alice.set(&room, "m.room.guest_access", json!({ "guest_access": "can_join" })).await);
        let mut guests = Vec::new();
        for _ in 0..8 {
            let guest = Client::guest(server).await;
            guest.join(&room).await;
            guests.push(guest);
        }
        let rooms = &server.services.rooms;
        let name = rooms.room(&ruma::RoomId::parse(room_id(&room)).unwrap()).await.unwrap();
        let is_closed = async || loop {
            let access = rooms.state_event(&name, "m.room.guest_access", "").await.unwrap().unwrap();
            if access.content().contains("forbidden") {
                return;
            }
            tokio::task::yield_now().await;
        };
        // As soon as the change can be seen, the request is given up.
        tokio::select! {
            biased;
            () = is_closed() => {}
            answer = alice.set(&room, "m.room.guest_access", json!({ "guest_access": "forbidden" })) => drop(answer),
        }
        for guest in &guests {
            let gone = async {
                while membership(&alice, &room, &guest.user_id).await != "leave" {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), gone).await.expect("every guest leaves");
        }
    })
    .await;
}

/// A join to a restricted room is vouched for by those who stand above the others, and only by those who are in it; by
/// anyone where anyone may invite.
#[tokio::test]
async fn who_lets_people_in() {
    on_both(async |server: &Server| {
        // The numbers of users are given in the order in which they come.
        let carol = Client::new(server, "carol").await;
        let bob = Client::new(server, "bob").await;
        let alice = Client::new(server, "alice").await;
        let club = alice.create_public("shared").await;
        let allow = json!([{ "type": "m.room_membership", "room_id": room_id(&club) }]);
        let state = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "restricted", "allow": allow } }]);
        let levels = json!({ "invite": 10, "users_default": 10, "users": { &bob.user_id: 60 } });
        let wanted = json!({ "initial_state": state, "power_level_content_override": levels });
        let room = alice.create(wanted).await;
        let voucher = async |joiner: &Client<'_>| {
            joiner.join(&club).await;
            joiner.join(&room).await;
            let path = format!("{room}/state/m.room.member/{}", segment(&joiner.user_id));
            let member = joiner.ok(joiner.get(&path).await);
            member["join_authorised_via_users_server"].as_str().unwrap_or_default().to_owned()
        };
        assert_eq!(voucher(&carol).await, alice.user_id);
        assert_eq!(voucher(&bob).await, alice.user_id);
        alice.leave(&room).await;
        assert_eq!(voucher(&Client::new(server, "dora").await).await, bob.user_id);
        bob.leave(&room).await;
        assert_eq!(voucher(&Client::new(server, "emil").await).await, carol.user_id);
    })
    .await;
}

/// A membership written as state is held to the same conditions as one made by an endpoint.
#[tokio::test]
async fn membership_as_state() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let room = alice.create(json!({})).await;
        let put = async |client: &Client<'_>, key: &str, content| {
            client.put(&format!("{room}/state/m.room.member/{}", segment(key)), content).await
        };
        refused(&put(&bob, &bob.user_id, json!({ "membership": "join" })).await, FORBIDDEN);
        alice.ok(put(&alice, &bob.user_id, json!({ "membership": "invite" })).await);
        refused(&put(&alice, &bob.user_id, json!({ "membership": "join" })).await, FORBIDDEN);
        bob.ok(put(&bob, &bob.user_id, json!({ "membership": "join", "displayname": "Bobby" })).await);
        bob.ok(put(&bob, &bob.user_id, json!({ "membership": "join", "displayname": "Robert" })).await);
        refused(&put(&alice, &bob.user_id, json!({ "membership": "invite" })).await, FORBIDDEN);
        let bad_json = (StatusCode::BAD_REQUEST, "M_BAD_JSON");
        refused(&put(&bob, &bob.user_id, json!({ "membership": "asleep" })).await, bad_json);
        refused(&put(&bob, &bob.user_id, json!({})).await, bad_json);
        let invalid = (StatusCode::BAD_REQUEST, "M_INVALID_PARAM");
        refused(&put(&bob, "bob", json!({ "membership": "join" })).await, invalid);
        let remote = put(&alice, "@x:elsewhere.example", json!({ "membership": "invite" })).await;
        refused(&remote, FORBIDDEN);
        let members = alice.ok(alice.get(&format!("{room}/joined_members")).await);
        assert_eq!(members["joined"][&bob.user_id], json!({ "display_name": "Robert" }));
    })
    .await;
}

/// A changed profile reaches the rooms of its user, and who ends the account leaves them.
#[tokio::test]
async fn profiles_reach_rooms() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let rooms = [alice.create_public("shared").await, alice.create_public("shared").await];
        bob.join(&rooms[0]).await;
        let path = format!("/profile/{}/displayname", bob.user_id);
        bob.ok(bob.put(&path, json!({ "displayname": "Robert" })).await);
        let members = alice.ok(alice.get(&format!("{}/joined_members", rooms[0])).await);
        assert_eq!(members["joined"][&bob.user_id], json!({ "display_name": "Robert" }));
        assert!(alice.ok(alice.get(&format!("{}/joined_members", rooms[1])).await)["joined"][&bob.user_id].is_null());
        bob.join(&rooms[1]).await;
        let auth = server.password_auth("bob");
        bob.ok(bob.post("/account/deactivate", json!({ "auth": auth })).await);
        for room in &rooms {
            assert_eq!(membership(&alice, room, &bob.user_id).await, "leave");
        }
    })
    .await;
}

/// Of two changes of a profile at a time, the rooms keep the later one.
#[tokio::test]
async fn the_last_profile_stays() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let room = alice.create_public("shared").await;
        let user_id = ruma::UserId::parse(&alice.user_id).unwrap();
        let (store, rooms) = (&server.services.store, &server.services.rooms);
        let user_nid = store.user_nid(&user_id).await.unwrap();
        let name = rooms.room(&ruma::RoomId::parse(room_id(&room)).unwrap()).await.unwrap();
        assert!(store.set_profile_field(user_nid, "displayname", "\"old\"", 1000).await.unwrap());
        let writer = rooms.attempts(&name).open().await.unwrap();
        let waiting = tokio::spawn({
            let (rooms, user_id) = (rooms.clone(), user_id.clone());
            async move { rooms.update_profile(&user_id).await }
        });
        // By now it waits for the room.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(store.set_profile_field(user_nid, "displayname", "\"new\"", 1000).await.unwrap());
        drop(writer);
        waiting.await.unwrap().unwrap();
        let members = alice.ok(alice.get(&format!("{room}/joined_members")).await);
        assert_eq!(members["joined"][&alice.user_id], json!({ "display_name": "new" }));
    })
    .await;
}

/// The list of one's rooms has those that one is in, and no others.
#[tokio::test]
async fn joined_rooms() {
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let first = alice.create_public("shared").await;
        let second = alice.create(json!({ "invite": [bob.user_id] })).await;
        bob.join(&first).await;
        assert_eq!(bob.ok(bob.get("/joined_rooms").await), json!({ "joined_rooms": [room_id(&first)] }));
        bob.join(&second).await;
        bob.leave(&first).await;
        assert_eq!(bob.ok(bob.get("/joined_rooms").await), json!({ "joined_rooms": [room_id(&second)] }));
        let wrong =
            server.request(Method::DELETE, "/_matrix/client/v3/joined_rooms", Some(&bob.token), &json!({})).await;
        assert_eq!(wrong.errcode(StatusCode::METHOD_NOT_ALLOWED), "M_UNRECOGNIZED");
    })
    .await;
}

/// Who wants no invitations gets none, whichever way they are sent; nobody learns of it who could not have invited.
#[tokio::test]
async fn invitations_are_blocked() {
    const BLOCKED: (StatusCode, &str) = (StatusCode::FORBIDDEN, "M_INVITE_BLOCKED");
    on_both(async |server: &Server| {
        let alice = Client::new(server, "alice").await;
        let bob = Client::new(server, "bob").await;
        let carol = Client::new(server, "carol").await;
        let before = alice.create(json!({ "invite": [bob.user_id] })).await;
        let room = alice.create(json!({})).await;
        let permission = format!("/user/{}/account_data/m.invite_permission_config", segment(&bob.user_id));
        bob.ok(bob.put(&permission, json!({ "default_action": "block" })).await);

        let him = json!({ "user_id": bob.user_id });
        refused(&alice.post(&format!("{room}/invite"), him.clone()).await, BLOCKED);
        let member = format!("{room}/state/m.room.member/{}", segment(&bob.user_id));
        refused(&alice.put(&member, json!({ "membership": "invite" })).await, BLOCKED);
        refused(&alice.post("/createRoom", json!({ "invite": [bob.user_id] })).await, BLOCKED);
        refused(&carol.post(&format!("{room}/invite"), him.clone()).await, FORBIDDEN);
        refused(&alice.get(&member).await, (StatusCode::NOT_FOUND, "M_NOT_FOUND"));
        // Nor is the user told of an invitation that was there.
        let news = bob.ok(bob.get("/sync").await);
        assert_eq!(news["rooms"]["invite"].as_object().map_or(0, |rooms| rooms.len()), 0, "{news}");

        // Anything else than that blocks nothing.
        bob.ok(bob.put(&permission, json!({ "default_action": 1 })).await);
        let news = bob.ok(bob.get("/sync").await);
        assert!(news["rooms"]["invite"].get(room_id(&before)).is_some(), "{news}");
        alice.act(&room, "invite", him).await;
        assert_eq!(membership(&alice, &room, &bob.user_id).await, "invite");
    })
    .await;
}
