//! Two people chat through a client that does not know Myelin: matrix-sdk, on the specification alone.

// The futures of the client are deep.
#![recursion_limit = "256"]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use matrix_sdk::{
    Client, Room, RoomMemberships, RoomState, SessionMeta,
    config::SyncSettings,
    room::MessagesOptions,
    ruma::{
        EventId, OwnedEventId, RoomId, TransactionId,
        api::client::{
            account::register,
            receipt::create_receipt::v3::ReceiptType,
            room::create_room::{self, v3::RoomPreset},
            uiaa::{AuthData, Dummy},
        },
        events::{
            AnySyncMessageLikeEvent, AnySyncTimelineEvent,
            receipt::ReceiptThread,
            room::message::{MessageType, RoomMessageEventContent},
            typing::SyncTypingEvent,
        },
        mxc_uri,
    },
};
use myelin_end_to_end::{Engine, Homeserver, Person, eventually, on_both_engines};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    task::JoinHandle,
};

/// How long anything may take to reach the other person.
const PATIENCE: Duration = Duration::from_secs(20);

on_both_engines!(
    two_people_talk,
    profiles_reach_the_room,
    typing_and_receipts_reach_the_other,
    devices_share_an_account,
);

/// A person with a client that syncs all the time, and what it has told them so far.
struct Chatter {
    client: Client,
    timeline: UnboundedReceiver<AnySyncTimelineEvent>,
    typing: UnboundedReceiver<usize>,
    sync: JoinHandle<()>,
}

impl Chatter {
    /// Registers by the dummy stage, which the client is told of by the first refusal, and logs in.
    async fn arrive(server: &Homeserver, name: &str) -> Self {
        let registering = client(server).await;
        let mut request = register::v3::Request::new();
        request.username = Some(name.to_owned());
        request.password = Some(Person::PASSWORD.to_owned());
        let refusal = registering.matrix_auth().register(request.clone()).await.unwrap_err();
        let mut stage = Dummy::new();
        stage.session = refusal.as_uiaa_response().expect("the stages to go through").session.clone();
        request.auth = Some(AuthData::Dummy(stage));
        registering.matrix_auth().register(request).await.unwrap();

        let client = client(server).await;
        let login = client.matrix_auth().login_username(name, Person::PASSWORD);
        login.initial_device_display_name("a test").send().await.unwrap();
        Self::follow(client)
    }

    fn follow(client: Client) -> Self {
        let (events, timeline) = mpsc::unbounded_channel();
        client.add_event_handler(move |event: AnySyncTimelineEvent| {
            // The test may have ended while the client still listens.
            let _ = events.send(event);
            async {}
        });
        let (typists, typing) = mpsc::unbounded_channel();
        client.add_event_handler(move |event: SyncTypingEvent| {
            let _ = typists.send(event.content.user_ids.len());
            async {}
        });
        let syncing = client.clone();
        let sync = tokio::spawn(async move {
            let error = syncing.sync(SyncSettings::new().timeout(PATIENCE)).await.unwrap_err();
            panic!("sync ended: {error}");
        });
        Self { client, timeline, typing, sync }
    }

    fn me(&self) -> &SessionMeta {
        self.client.session_meta().expect("logged in")
    }

    /// The room, once it is in the state that is waited for.
    async fn room(&self, room: &RoomId, state: RoomState) -> Room {
        eventually(&format!("{} is {state:?} in {room}", self.me().user_id), PATIENCE, || async {
            self.client.get_room(room).filter(|room| room.state() == state)
        })
        .await
    }

    /// The first event, from those not looked at yet, that `choose` accepts.
    async fn hears<T>(&mut self, what: &str, choose: impl Fn(&AnySyncTimelineEvent) -> Option<T>) -> T {
        let wait = async {
            loop {
                let event = self.timeline.recv().await.expect("the client listens");
                if let Some(found) = choose(&event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: never came"))
    }

    /// Waits for a message with these words, and returns its id.
    async fn reads(&mut self, words: &str) -> OwnedEventId {
        self.hears(words, |event| (text_of(event)? == words).then(|| event.event_id().to_owned())).await
    }
}

impl Drop for Chatter {
    fn drop(&mut self) {
        self.sync.abort();
    }
}

async fn client(server: &Homeserver) -> Client {
    Client::builder().homeserver_url(server.url()).build().await.unwrap()
}

/// The words of a text message that is not redacted.
fn text_of(event: &AnySyncTimelineEvent) -> Option<&str> {
    match event {
        AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(message)) => {
            match &message.as_original()?.content.msgtype {
                MessageType::Text(text) => Some(&text.body),
                _ => None,
            }
        }
        _ => None,
    }
}

async fn say(room: &Room, words: &str) -> OwnedEventId {
    room.send(RoomMessageEventContent::text_plain(words)).await.unwrap().response.event_id
}

/// The texts of the whole history, oldest first, in pages of three.
async fn history(room: &Room) -> Vec<(OwnedEventId, Option<String>)> {
    let mut texts = Vec::new();
    let mut from = None;
    loop {
        let mut options = MessagesOptions::backward().from(from.as_deref());
        options.limit = 3_u32.into();
        let page = room.messages(options).await.unwrap();
        for event in &page.chunk {
            let event = event.raw().deserialize().unwrap();
            if let AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomMessage(_)) = &event {
                texts.push((event.event_id().to_owned(), text_of(&event).map(str::to_owned)));
            }
        }
        from = page.end;
        if from.is_none() {
            texts.reverse();
            return texts;
        }
    }
}

fn is_redaction_of<'event>(event: &'event AnySyncTimelineEvent, target: &EventId) -> Option<&'event EventId> {
    match event {
        AnySyncTimelineEvent::MessageLike(AnySyncMessageLikeEvent::RoomRedaction(redaction)) => {
            let redaction = redaction.as_original()?;
            let redacts = redaction.redacts.as_deref().or(redaction.content.redacts.as_deref())?;
            (redacts == target).then_some(&*redaction.event_id)
        }
        _ => None,
    }
}

async fn invited_room(alice: &Chatter, bob: &Chatter) -> (Room, Room) {
    let mut request = create_room::v3::Request::new();
    request.preset = Some(RoomPreset::PrivateChat);
    request.name = Some("Tea".to_owned());
    let room_id = alice.client.create_room(request).await.unwrap().room_id().to_owned();
    let hers = alice.room(&room_id, RoomState::Joined).await;
    hers.invite_user_by_id(&bob.me().user_id).await.unwrap();
    let his = bob.room(&room_id, RoomState::Invited).await;
    his.join().await.unwrap();
    (hers, bob.room(&room_id, RoomState::Joined).await)
}

/// Two people register, log in, meet in a room by invitation, talk both ways, redact, read back, and part.
async fn two_people_talk(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let mut alice = Chatter::arrive(&server, "alice").await;
    let mut bob = Chatter::arrive(&server, "bob").await;
    let (hers, his) = invited_room(&alice, &bob).await;

    let greeting = say(&hers, "Hello, Bob").await;
    assert_eq!(bob.reads("Hello, Bob").await, greeting);
    let answer = say(&his, "Hello, Alice").await;
    assert_eq!(alice.reads("Hello, Alice").await, answer);
    for number in 1..=10 {
        let (room, reader) = if number % 2 == 0 { (&hers, &mut bob) } else { (&his, &mut alice) };
        let words = format!("word {number}");
        assert_eq!(say(room, &words).await, reader.reads(&words).await);
    }
    assert_eq!(his.name().as_deref(), Some("Tea"), "the room's name came with the sync");

    hers.redact(&greeting, Some("too formal"), Some(TransactionId::new())).await.unwrap();
    bob.hears("the redaction", |event| is_redaction_of(event, &greeting).map(ToOwned::to_owned)).await;

    let read_back = history(&his).await;
    let texts: Vec<_> = read_back.iter().map(|(_, text)| text.as_deref()).collect();
    let words: Vec<_> = (1..=10).map(|number| format!("word {number}")).collect();
    let expected: Vec<_> =
        [None, Some("Hello, Alice")].into_iter().chain(words.iter().map(|words| Some(words.as_str()))).collect();
    assert_eq!(texts, expected, "the redacted message is there without its words, the others in order");
    assert_eq!(read_back, history(&hers).await, "both read the same history");

    his.leave().await.unwrap();
    bob.room(his.room_id(), RoomState::Left).await;
    eventually("alice sees that bob left", PATIENCE, || async {
        let there = hers.members_no_sync(RoomMemberships::JOIN).await.unwrap();
        (there.len() == 1).then_some(())
    })
    .await;
    let refused = his.send(RoomMessageEventContent::text_plain("am I still here?")).await;
    refused.expect_err("who has left cannot speak");
}

/// A changed display name and avatar reach the profile, and the other person in the room.
async fn profiles_reach_the_room(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = Chatter::arrive(&server, "alice").await;
    let bob = Chatter::arrive(&server, "bob").await;
    let (_, his) = invited_room(&alice, &bob).await;
    let avatar = mxc_uri!("mxc://myelin.test/portrait");

    alice.client.account().set_display_name(Some("Alice of the Garden")).await.unwrap();
    alice.client.account().set_avatar_url(Some(avatar)).await.unwrap();

    let account = alice.client.account();
    assert_eq!(account.get_display_name().await.unwrap().as_deref(), Some("Alice of the Garden"));
    assert_eq!(account.get_avatar_url().await.unwrap().as_deref(), Some(avatar));
    eventually("bob sees alice's new name and face", PATIENCE, || async {
        let member = his.get_member_no_sync(&alice.me().user_id).await.unwrap()?;
        let changed = member.display_name() == Some("Alice of the Garden") && member.avatar_url() == Some(avatar);
        changed.then_some(())
    })
    .await;
}

/// One sees that the other is typing, and what they have read.
async fn typing_and_receipts_reach_the_other(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = Chatter::arrive(&server, "alice").await;
    let mut bob = Chatter::arrive(&server, "bob").await;
    let (hers, his) = invited_room(&alice, &bob).await;

    hers.typing_notice(true).await.unwrap();
    let typists = tokio::time::timeout(PATIENCE, bob.typing.recv()).await.expect("typing comes");
    assert_eq!(typists, Some(1));

    let message = say(&hers, "Read me").await;
    bob.reads("Read me").await;
    his.send_single_receipt(ReceiptType::Read, ReceiptThread::Unthreaded, message.clone()).await.unwrap();
    eventually("alice sees that bob has read", PATIENCE, || async {
        let readers = hers
            .load_event_receipts(
                matrix_sdk::ruma::events::receipt::ReceiptType::Read,
                ReceiptThread::Unthreaded,
                &message,
            )
            .await
            .unwrap();
        readers.iter().any(|(reader, _)| *reader == bob.me().user_id).then_some(())
    })
    .await;
}

/// A second device sees what the first did, and does not outlive its log-out.
async fn devices_share_an_account(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = Chatter::arrive(&server, "alice").await;
    let bob = Chatter::arrive(&server, "bob").await;
    let (hers, _) = invited_room(&alice, &bob).await;

    let tablet = client(&server).await;
    tablet.matrix_auth().login_username("alice", Person::PASSWORD).send().await.unwrap();
    let mut tablet = Chatter::follow(tablet);
    assert_ne!(tablet.me().device_id, alice.me().device_id);
    tablet.room(hers.room_id(), RoomState::Joined).await;
    let message = say(&hers, "from my telephone").await;
    assert_eq!(tablet.reads("from my telephone").await, message);
    let devices = alice.client.devices().await.unwrap().devices;
    assert!(devices.iter().any(|device| device.device_id == tablet.me().device_id));

    tablet.sync.abort();
    tablet.client.matrix_auth().logout().await.unwrap();
    tablet.client.whoami().await.expect_err("a logged-out device is nobody");
    alice.client.whoami().await.expect("the other device stays");
}
