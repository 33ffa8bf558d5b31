//! People with several devices each, whose client does not know Myelin: matrix-sdk.

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
    encryption::{BackupDownloadStrategy, EncryptionSettings},
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
use myelin_end_to_end::{Api, Person, eventually};
use tokio::task::JoinHandle;

/// How long anything may take to reach another device.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// How long a client waits until it tries again, while the server is away.
const AGAIN: Duration = Duration::from_millis(100);

/// A device with a client that syncs, and the words that it could read.
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// The client.
    pub client: Client,
    read: Arc<Mutex<BTreeSet<String>>>,
    sync: Option<JoinHandle<()>>,
}

impl Device {
    /// Logs a user in who has registered, and syncs from then on.
    pub async fn log_in(server: &Api, user: &str, name: &'static str) -> Self {
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
    pub fn go_online(&mut self) {
        let client = self.client.clone();
        self.sync = Some(tokio::spawn(async move {
            loop {
                let _ = client.sync(SyncSettings::new().timeout(Duration::from_secs(10))).await;
                tokio::time::sleep(AGAIN).await;
            }
        }));
    }

    /// Goes away without a word.
    pub fn go_offline(&mut self) {
        if let Some(sync) = self.sync.take() {
            sync.abort();
        }
    }

    /// The room, as soon as the user is in it in this way.
    pub async fn room(&self, room: &RoomId, state: RoomState) -> Room {
        eventually(&format!("{} is {state:?} in {room}", self.name), PATIENCE, || async {
            self.client.get_room(room).filter(|room| room.state() == state)
        })
        .await
    }

    /// Says something, as soon as the server can be reached.
    pub async fn says(&self, room: &RoomId, words: &str) {
        let room = self.room(room, RoomState::Joined).await;
        eventually(&format!("{} says {words}", self.name), PATIENCE, || async {
            room.send(RoomMessageEventContent::text_plain(words)).await.ok()
        })
        .await;
    }

    /// Waits until it has the keys of another device.
    pub async fn knows(&self, other: &Device) {
        let (user, device) = (other.client.user_id().unwrap(), other.client.device_id().unwrap());
        eventually(&format!("{} knows {}", self.name, other.name), PATIENCE, || async {
            let known = self.client.encryption().get_user_devices(user).await.unwrap();
            known.get(device).map(drop)
        })
        .await;
    }

    /// Waits until it could decrypt these words.
    pub async fn reads(&self, words: &str) {
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

/// A client that has not logged in, and does by itself no more than it must.
pub async fn client(server: &Api) -> Client {
    let settings = EncryptionSettings {
        auto_enable_cross_signing: false,
        auto_enable_backups: false,
        backup_download_strategy: BackupDownloadStrategy::Manual,
    };
    Client::builder().homeserver_url(server.base()).with_encryption_settings(settings).build().await.unwrap()
}

/// Registers a user.
pub async fn register(server: &Api, name: &str) {
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
pub fn text_of(event: &AnySyncTimelineEvent) -> Option<String> {
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
pub async fn encrypted_room(maker: &Device, guests: &[&Device]) -> OwnedRoomId {
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
