//! People with several devices each talk in an encrypted room through a client that does not know Myelin: matrix-sdk.

// The futures of the client are deep.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use matrix_sdk::{
    Client, Room, RoomState,
    config::SyncSettings,
    encryption::{BackupDownloadStrategy, EncryptionSettings, recovery::RecoveryState},
    room::MessagesOptions,
    ruma::{
        OwnedRoomId, RoomId,
        api::client::{
            account::register,
            room::create_room::{self, v3::RoomPreset},
            uiaa::{AuthData, Dummy},
        },
        events::{
            AnySyncMessageLikeEvent, AnySyncTimelineEvent, InitialStateEvent,
            room::{
                encryption::RoomEncryptionEventContent,
                message::{MessageType, RoomMessageEventContent},
            },
        },
    },
};
use myelin_end_to_end::{Engine, Homeserver, Person, eventually, on_both_engines};
use tokio::task::JoinHandle;

/// How long anything may take to reach another device.
const PATIENCE: Duration = Duration::from_secs(40);
/// How long a client waits until it tries again, while the server is away.
const AGAIN: Duration = Duration::from_millis(100);

on_both_engines!(every_device_decrypts_everything, a_new_device_recovers);

/// A device with a client that syncs, and the words that it could read.
struct Device {
    name: &'static str,
    client: Client,
    read: Arc<Mutex<BTreeSet<String>>>,
    sync: Option<JoinHandle<()>>,
}

impl Device {
    /// Logs a user in who has registered, and syncs from then on.
    async fn log_in(server: &Homeserver, user: &str, name: &'static str) -> Self {
        let client = client(server).await;
        client.matrix_auth().login_username(user, Person::PASSWORD).device_id(name).send().await.unwrap();
        client.encryption().wait_for_e2ee_initialization_tasks().await;
        let read: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let words = read.clone();
        client.add_event_handler(move |event: AnySyncTimelineEvent| {
            words.lock().unwrap().extend(text_of(&event));
            async {}
        });
        let mut device = Self { name, client, read, sync: None };
        device.go_online();
        device
    }

    /// Syncs until it goes offline, however often the server is away.
    fn go_online(&mut self) {
        let client = self.client.clone();
        self.sync = Some(tokio::spawn(async move {
            loop {
                let _ = client.sync(SyncSettings::new().timeout(Duration::from_secs(10))).await;
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }

    fn go_offline(&mut self) {
        if let Some(sync) = self.sync.take() {
            sync.abort();
        }
    }

    async fn room(&self, room: &RoomId, state: RoomState) -> Room {
        eventually(&format!("{} is {state:?} in {room}", self.name), PATIENCE, || async {
            self.client.get_room(room).filter(|room| room.state() == state)
        })
        .await
    }

    /// Says something, as soon as the server can be reached.
    async fn says(&self, room: &RoomId, words: &str) {
        let room = self.room(room, RoomState::Joined).await;
        eventually(&format!("{} says {words}", self.name), PATIENCE, || async {
            room.send(RoomMessageEventContent::text_plain(words)).await.ok()
        })
        .await;
    }

    /// Waits until it has the keys of another device.
    async fn knows(&self, other: &Device) {
        let (user, device) = (other.client.user_id().unwrap(), other.client.device_id().unwrap());
        eventually(&format!("{} knows {}", self.name, other.name), PATIENCE, || async {
            let known = self.client.encryption().get_user_devices(user).await.unwrap();
            known.get(device).map(drop)
        })
        .await;
    }

    async fn reads(&self, words: &str) {
        eventually(&format!("{} reads {words}", self.name), PATIENCE, || async {
            self.read.lock().unwrap().contains(words).then_some(())
        })
        .await;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.go_offline();
    }
}

async fn client(server: &Homeserver) -> Client {
    let settings = EncryptionSettings {
        auto_enable_cross_signing: false,
        auto_enable_backups: false,
        backup_download_strategy: BackupDownloadStrategy::Manual,
    };
    Client::builder().homeserver_url(server.url()).with_encryption_settings(settings).build().await.unwrap()
}

async fn register(server: &Homeserver, name: &str) {
    let client = client(server).await;
    let mut request = register::v3::Request::new();
    request.username = Some(name.to_owned());
    request.password = Some(Person::PASSWORD.to_owned());
    request.inhibit_login = true;
    let refusal = client.matrix_auth().register(request.clone()).await.unwrap_err();
    let mut stage = Dummy::new();
    stage.session = refusal.as_uiaa_response().expect("the stages to go through").session.clone();
    request.auth = Some(AuthData::Dummy(stage));
    client.matrix_auth().register(request).await.unwrap();
}

/// The words of a text message that could be decrypted.
fn text_of(event: &AnySyncTimelineEvent) -> Option<String> {
    match event {
        AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(message)) => {
            match &message.as_original()?.content.msgtype {
                MessageType::Text(text) => Some(text.body.clone()),
                _ => None,
            }
        }
        _ => None,
    }
}

/// An encrypted room that one device has made, and that others were invited to and have joined.
async fn encrypted_room(maker: &Device, guests: &[&Device]) -> OwnedRoomId {
    let mut request = create_room::v3::Request::new();
    request.preset = Some(RoomPreset::PrivateChat);
    let encryption = RoomEncryptionEventContent::with_recommended_defaults();
    request.initial_state = vec![InitialStateEvent::with_empty_state_key(encryption).to_raw_any()];
    request.invite = guests.iter().map(|guest| guest.client.user_id().unwrap().to_owned()).collect();
    let room = maker.client.create_room(request).await.unwrap().room_id().to_owned();
    for guest in guests {
        guest.room(&room, RoomState::Invited).await.join().await.unwrap();
    }
    room
}

/// Two people with two devices each: every device decrypts every message, also those sent while it was offline, before
/// and after the server was killed.
async fn every_device_decrypts_everything(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    for name in ["alice", "bob"] {
        register(&server, name).await;
    }
    let mut devices = Vec::new();
    for (user, name) in [("alice", "A1"), ("alice", "A2"), ("bob", "B1"), ("bob", "B2")] {
        devices.push(Device::log_in(&server, user, name).await);
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

    // One device is away while the others talk, and while the server dies.
    devices[3].go_offline();
    devices[0].says(&room, "B2 is away").await;
    devices[2].says(&room, "so it is").await;
    for device in &devices[..3] {
        device.reads("B2 is away").await;
        device.reads("so it is").await;
    }
    server.kill();
    server.start_again().await;
    devices[1].says(&room, "the server was away too").await;
    devices[3].go_online();
    for device in &devices {
        device.reads("B2 is away").await;
        device.reads("so it is").await;
        device.reads("the server was away too").await;
    }

    // A device that comes now reads what comes from now on, whoever says it; and one that goes hears no more.
    let late = Device::log_in(&server, "bob", "B3").await;
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
    register(&server, "alice").await;
    let first = Device::log_in(&server, "alice", "FIRST").await;
    let room = encrypted_room(&first, &[]).await;
    first.says(&room, "remember this").await;
    first.reads("remember this").await;
    first.client.encryption().bootstrap_cross_signing(None).await.unwrap();
    let recovery = first.client.encryption().recovery();
    let key = recovery.enable().wait_for_backups_to_upload().await.unwrap();

    server.kill();
    server.start_again().await;
    let second = Device::log_in(&server, "alice", "SECOND").await;
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
