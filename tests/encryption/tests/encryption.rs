//! People with several devices each talk in encrypted rooms: on one server, and across servers.

// The futures of the client are deep.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use matrix_sdk::{RoomState, encryption::recovery::RecoveryState, room::MessagesOptions};
use myelin_encryption_end_to_end::{Device, PATIENCE, encrypted_room, register, text_of};
use myelin_end_to_end::{Api, Authority, Engine, Homeserver, Peer, eventually, on_both_engines};

on_both_engines!(on_one_server, on_two_myelins, on_myelin_and_synapse, a_new_device_recovers);

async fn on_one_server(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    let api = server.api().clone();
    every_device_decrypts_everything(&api, &api, async || {
        server.kill();
        server.start_again().await;
    })
    .await;
}

async fn on_two_myelins(engine: Engine) {
    let authority = Authority::new();
    let (home, mut other) = tokio::join!(Peer::myelin(engine, &authority), Peer::myelin(engine, &authority));
    let (here, there) = (home.api().clone(), other.api().clone());
    every_device_decrypts_everything(&here, &there, async || {
        other.kill();
        other.start_again().await;
    })
    .await;
}

async fn on_myelin_and_synapse(engine: Engine) {
    let authority = Authority::new();
    let (mut home, other) = tokio::join!(Peer::myelin(engine, &authority), Peer::synapse(&authority));
    let (here, there) = (home.api().clone(), other.api().clone());
    every_device_decrypts_everything(&here, &there, async || {
        home.kill();
        home.start_again().await;
    })
    .await;
}

/// Two people with two devices each, Alice `here` and Bob `there`: every device decrypts every message, also those sent
/// while it was offline, before and after a server was killed.
async fn every_device_decrypts_everything(here: &Api, there: &Api, kill: impl AsyncFnOnce()) {
    register(here, "alice").await;
    register(there, "bob").await;
    let mut devices = Vec::new();
    for (server, user, name) in
        [(here, "alice", "A1"), (here, "alice", "A2"), (there, "bob", "B1"), (there, "bob", "B2")]
    {
        devices.push(Device::log_in(server, user, name).await);
    }
    let room = encrypted_room(&devices[0], &[&devices[2]]).await;
    for device in &devices {
        let room = device.room(&room, RoomState::Joined).await;
        assert!(room.latest_encryption_state().await.unwrap().is_encrypted());
    }
    // The client encrypts for the devices that it knows, and asks for those that it is told of with its next sync.
    for device in &devices {
        for other in &devices {
            device.knows(other).await;
        }
    }
    for device in &devices {
        device.says(&room, &format!("{} is here", device.name)).await;
    }
    for device in &devices {
        for other in &devices {
            device.reads(&format!("{} is here", other.name)).await;
        }
    }

    // One device is away while the others talk, and while a server dies.
    devices[3].go_offline();
    devices[0].says(&room, "B2 is away").await;
    devices[2].says(&room, "so it is").await;
    for device in &devices[..3] {
        device.reads("B2 is away").await;
        device.reads("so it is").await;
    }
    kill().await;
    devices[1].says(&room, "the server was away too").await;
    devices[3].go_online();
    for device in &devices {
        device.reads("B2 is away").await;
        device.reads("so it is").await;
        device.reads("the server was away too").await;
    }

    // A device that comes now reads what comes from now on, whoever says it; and one that goes hears no more.
    let late = Device::log_in(there, "bob", "B3").await;
    late.room(&room, RoomState::Joined).await;
    for device in &devices {
        device.knows(&late).await;
        late.knows(device).await;
    }
    devices[0].says(&room, "welcome").await;
    late.says(&room, "thanks").await;
    for device in devices.iter().chain([&late]) {
        device.reads("welcome").await;
        device.reads("thanks").await;
    }
    late.client.matrix_auth().logout().await.unwrap();
    eventually("alice knows that the device is gone", PATIENCE, || async {
        let bob = devices[2].client.user_id().unwrap();
        let known = devices[0].client.encryption().get_user_devices(bob).await.unwrap();
        known.devices().all(|device| device.device_id() != "B3").then_some(())
    })
    .await;
}

/// A person sets up cross-signing and recovery, and reads the history on a new device, also after the server was killed.
async fn a_new_device_recovers(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    register(server.api(), "alice").await;
    let first = Device::log_in(server.api(), "alice", "FIRST").await;
    let room = encrypted_room(&first, &[]).await;
    first.says(&room, "remember this").await;
    first.reads("remember this").await;
    first.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    let recovery = first.client.encryption().recovery();
    let key = recovery.enable().wait_for_backups_to_upload().await.unwrap();

    server.kill();
    server.start_again().await;
    let second = Device::log_in(server.api(), "alice", "SECOND").await;
    let room = second.room(&room, RoomState::Joined).await;
    let recovery = second.client.encryption().recovery();
    eventually("the new device knows of the recovery", PATIENCE, || async {
        (recovery.state() == RecoveryState::Incomplete).then_some(())
    })
    .await;
    recovery.recover(&key).await.unwrap();
    let status = second.client.encryption().cross_signing_status().await.unwrap();
    assert!(status.is_complete(), "{status:?}");
    second.client.encryption().backups().download_room_keys_for_room(room.room_id()).await.unwrap();
    let page = room.messages(MessagesOptions::backward()).await.unwrap();
    let texts: Vec<String> =
        page.chunk.iter().filter_map(|event| text_of(&event.raw().deserialize().unwrap())).collect();
    assert_eq!(texts, ["remember this"]);
    // The new device is signed now, which the first one hears of.
    eventually("the new device is verified", PATIENCE, || async {
        let own = first.client.user_id().unwrap();
        let devices = first.client.encryption().get_user_devices(own).await.unwrap();
        devices
            .get(second.client.device_id().unwrap())
            .filter(|device| device.is_verified_with_cross_signing())
            .map(drop)
    })
    .await;
}
