//! The room list of many rooms comes up by sliding sync, in the client that Element X is built on, and follows what happens.

// The futures of the client are deep.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use matrix_sdk::{
    Client, RoomState,
    ruma::{OwnedRoomId, RoomId},
};
use matrix_sdk_ui::{
    RoomListService,
    room_list_service::RoomListLoadingState,
    timeline::{RoomExt as _, Timeline},
};
use myelin_encryption_end_to_end::client;
use myelin_end_to_end::{Engine, Homeserver, Person, eventually, on_both_engines};
use serde_json::json;

on_both_engines!(the_room_list_of_500_rooms);

/// How long anything may take to reach the client.
const PATIENCE: Duration = Duration::from_secs(60);
const ROOMS: usize = 500;
/// Rooms that are made at once.
const AT_ONCE: usize = 8;

async fn the_room_list_of_500_rooms(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let rooms = shared_rooms(&alice, &bob).await;
    for room in &rooms {
        alice.say(room, &format!("first in {room}"), "hello").await;
    }

    let client = client(server.api()).await;
    client.matrix_auth().login_username("bob", Person::PASSWORD).device_id("LIST").send().await.unwrap();
    let list = Arc::new(RoomListService::new(client.clone()).await.unwrap());
    let syncing = list.clone();
    let sync = tokio::spawn(async move {
        // The stream ends with an error while the server is away, and is begun again, as applications do.
        loop {
            let mut updates = pin!(syncing.sync());
            while let Some(Ok(())) = updates.next().await {}
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let all_rooms = list.all_rooms().await.unwrap();
    let state = all_rooms.loading_state();
    eventually("all rooms are in the list", PATIENCE, || async {
        let counted = matches!(state.get(), RoomListLoadingState::Loaded { maximum_number_of_rooms: Some(500) });
        (counted && client.joined_rooms().len() == ROOMS).then_some(())
    })
    .await;

    // An open room shows its history, and what is said from then on.
    let open = OwnedRoomId::try_from(rooms[0].as_str()).unwrap();
    list.subscribe_to_rooms(&[&open]).await;
    let timeline = client.get_room(&open).unwrap().timeline().await.unwrap();
    shows(&timeline, "hello").await;
    let event = alice.say(&rooms[0], "second", "are you there").await;
    shows(&timeline, "are you there").await;
    counts(&client, &open, 2).await;
    bob.post(&format!("rooms/{}/receipt/m.read/{event}", rooms[0]), json!({})).await.ok();
    counts(&client, &open, 0).await;

    // What happens in a room that is not open, an invitation, and the end of a membership.
    let quiet = OwnedRoomId::try_from(rooms[ROOMS - 1].as_str()).unwrap();
    alice.say(&rooms[ROOMS - 1], "second", "psst").await;
    counts(&client, &quiet, 2).await;
    let secret = alice.create_room(json!({ "preset": "private_chat", "invite": [bob.user_id()] })).await;
    let secret = OwnedRoomId::try_from(secret).unwrap();
    is(&client, &secret, RoomState::Invited).await;
    bob.join(secret.as_str()).await;
    is(&client, &secret, RoomState::Joined).await;
    bob.post(&format!("rooms/{quiet}/leave"), json!({})).await.ok();
    is(&client, &quiet, RoomState::Left).await;

    // The client goes on where it was after the server was killed.
    server.kill();
    server.start_again().await;
    alice.say(&rooms[0], "third", "back again").await;
    shows(&timeline, "back again").await;
    sync.abort();
}

/// Rooms that both are in.
async fn shared_rooms(alice: &Person, bob: &Person) -> Vec<String> {
    let making = futures_util::stream::iter(0..ROOMS).map(|number| async move {
        let room = alice.create_room(json!({ "preset": "public_chat", "name": format!("Room {number}") })).await;
        bob.join(&room).await;
        room
    });
    making.buffered(AT_ONCE).collect().await
}

async fn shows(timeline: &Timeline, words: &str) {
    eventually(&format!("the timeline shows: {words}"), PATIENCE, || async {
        let items = timeline.items().await;
        let mut messages = items.iter().filter_map(|item| item.as_event()?.content().as_message());
        messages.any(|message| message.body() == words).then_some(())
    })
    .await;
}

async fn counts(client: &Client, room: &RoomId, unread: u64) {
    eventually(&format!("{unread} are unread in {room}"), PATIENCE, || async {
        let counts = client.get_room(room)?.unread_notification_counts();
        (counts.notification_count == unread).then_some(())
    })
    .await;
}

async fn is(client: &Client, room: &RoomId, state: RoomState) {
    eventually(&format!("{room} is {state:?}"), PATIENCE, || async {
        (client.get_room(room)?.state() == state).then_some(())
    })
    .await;
}
