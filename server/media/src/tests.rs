use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, future::join_all, stream};
use myelin_store::{Store, testing::Fresh};
use parking_lot::Mutex;
use ruma::{MxcUri, ServerName, owned_server_name, server_name, user_id};
use tokio::sync::Notify;

use super::{Access, Error, FetchError, Media, MediaOptions, Owner, RemoteFile, RemoteFiles, Upload, Wanted};

const UPLOAD: Upload<'static> =
    Upload { uploader_nid: 0, content_type: Some("text/plain"), file_name: Some("a\n.txt") };

/// Files on a fresh store.
struct World {
    media: Arc<Media>,
    store: Arc<Store>,
    upload: Upload<'static>,
    folder: PathBuf,
}

async fn with_media(change: impl Fn(&mut MediaOptions), test: impl AsyncFn(World)) {
    for fresh in Fresh::each().await {
        let store = fresh.open().await;
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().join("media");
        let mut options = MediaOptions {
            upload_bytes_max: 10,
            remote_bytes_max: 10,
            ..MediaOptions::new(owned_server_name!("example.org"), folder.clone())
        };
        change(&mut options);
        let media = Media::open(store.clone(), options).await.unwrap();
        let uploader_nid = store.user_nid(user_id!("@alice:example.org")).await.unwrap();
        let upload = Upload { uploader_nid, ..UPLOAD };
        Box::pin(test(World { media, store: store.clone(), upload, folder })).await;
        store.close().await;
    }
}

fn media_id(uri: &MxcUri) -> String {
    uri.media_id().unwrap().to_owned()
}

fn wanted<'a>(server_name: &'a ServerName, media_id: &'a str) -> Wanted<'a> {
    let timeout = Duration::from_millis(1);
    Wanted { server_name, media_id, timeout, allow_remote: true, access: Access::Authenticated }
}

impl World {
    async fn upload(&self, pieces: &[&'static str]) -> Result<String, Error> {
        let content = stream::iter(pieces.iter().map(|piece| Ok::<_, io::Error>(Bytes::from_static(piece.as_bytes()))));
        Ok(media_id(&self.media.upload(self.upload, content).await?))
    }

    async fn read(&self, wanted: &Wanted<'_>) -> Result<Option<(Vec<u8>, Option<String>)>, Error> {
        let Some(download) = self.media.download(wanted).await? else { return Ok(None) };
        let name = download.about.file_name.clone();
        let pieces: Vec<Bytes> = download.into_stream().try_collect().await.unwrap();
        Ok(Some((pieces.concat(), name)))
    }

    async fn content(&self, media_id: &str) -> Option<(Vec<u8>, Option<String>)> {
        self.read(&wanted(server_name!("example.org"), media_id)).await.unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        files(&self.folder)
    }

    /// Makes all contents look as if they had been written long ago.
    fn age(&self) {
        for file in self.files() {
            let old = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
            std::fs::File::open(file).unwrap().set_modified(old).unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// What goes in comes out; the same content is on the disk once.
#[tokio::test]
async fn files_come_back() {
    with_media(
        |_| {},
        async |world| {
            let one = world.upload(&["hello", "", " you"]).await.unwrap();
            let two = world.upload(&["hello you"]).await.unwrap();
            let empty = world.upload(&[]).await.unwrap();
            assert_ne!(one, two);
            assert_eq!(world.content(&one).await.unwrap(), (b"hello you".to_vec(), Some("a.txt".to_owned())));
            assert_eq!(world.content(&two).await.unwrap().0, b"hello you");
            assert_eq!(world.content(&empty).await.unwrap().0, b"");
            assert_eq!(world.files().len(), 2);
            let name = server_name!("example.org");
            let download = world.media.download(&wanted(name, &one)).await.unwrap().unwrap();
            let part: Vec<Bytes> = download.into_part(2..7).await.unwrap().try_collect().await.unwrap();
            assert_eq!(part.concat(), b"llo y");
        },
    )
    .await;
}

/// Too much, half of it, or one that stalls is refused and leaves nothing behind.
#[tokio::test]
async fn refused_uploads_leave_nothing() {
    with_media(
        |options| options.stall = Duration::from_millis(20),
        async |world| {
            assert!(matches!(world.upload(&["0123456789", "0"]).await, Err(Error::TooLarge)));
            let broken = stream::iter([Ok(Bytes::from_static(b"half")), Err(io::Error::other("gone"))]);
            assert!(matches!(world.media.upload(world.upload, broken).await, Err(Error::Interrupted(_))));
            let stalled = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"half"))]).chain(stream::pending());
            assert!(matches!(world.media.upload(world.upload, stalled).await, Err(Error::Stalled)));
            assert!(world.files().is_empty());
            world.upload(&["0123456789"]).await.unwrap();
        },
    )
    .await;
}

/// Unknown files, other servers' and names that would lead out of the folder are not there; a lost file is told.
#[tokio::test]
async fn unknown_files_are_not_there() {
    with_media(
        |_| {},
        async |world| {
            for strange in ["nothing", "", "..", "../../etc/passwd", "a/b", "a\0b"] {
                assert!(world.content(strange).await.is_none(), "{strange:?}");
                let elsewhere = Wanted { allow_remote: false, ..wanted(server_name!("elsewhere.org"), strange) };
                assert!(world.read(&elsewhere).await.unwrap().is_none(), "{strange:?}");
            }
            let id = world.upload(&["x"]).await.unwrap();
            // Nobody has shown the way to other servers.
            let elsewhere = world.read(&wanted(server_name!("elsewhere.org"), &id)).await;
            assert!(matches!(elsewhere, Err(Error::Fetch(FetchError::NotAllowed))), "{elsewhere:?}");
            std::fs::remove_dir_all(&world.folder).unwrap();
            let lost = world.media.download(&wanted(server_name!("example.org"), &id)).await;
            assert!(matches!(lost, Err(Error::Lost { .. })));
        },
    )
    .await;
}

/// A user has room for so many bytes, and a blocked content never comes again.
#[tokio::test]
async fn quotas_and_blocks_hold() {
    with_media(
        |options| options.user_bytes_max = Some(12),
        async |world| {
            let bad = world.upload(&["bad"]).await.unwrap();
            assert!(matches!(world.upload(&["0123456789"]).await, Err(Error::Quota)));
            world.upload(&["012345678"]).await.unwrap();
            assert!(matches!(world.upload(&["0"]).await, Err(Error::Quota)));
            assert_eq!(world.media.delete(Owner::User(world.upload.uploader_nid)).await.unwrap(), 2);
            assert!(world.content(&bad).await.is_none());
            let bad = world.upload(&["bad"]).await.unwrap();
            let sha256 = world.store.media(&bad).await.unwrap().unwrap().sha256;
            world.media.block(&sha256.try_into().unwrap()).await.unwrap();
            assert!(world.content(&bad).await.is_none());
            assert!(matches!(world.upload(&["bad"]).await, Err(Error::Blocked)));
        },
    )
    .await;
}

/// A file may come after its identifier: who waits gets it, and it comes once, from its owner.
#[tokio::test]
async fn files_come_after_their_identifier() {
    with_media(
        |options| options.pending_uploads_max = 1,
        async |world| {
            let (media, ours) = (&world.media, server_name!("example.org"));
            let bob = world.store.user_nid(user_id!("@bob:example.org")).await.unwrap();
            let pending = media.create_pending(world.upload.uploader_nid).await.unwrap();
            assert!(matches!(media.create_pending(world.upload.uploader_nid).await, Err(Error::TooManyPending)));
            let id = media_id(&pending.uri);
            assert!(matches!(world.read(&wanted(ours, &id)).await, Err(Error::NotYetUploaded)));
            let content = || stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"late"))]);
            let others = Upload { uploader_nid: bob, ..world.upload };
            let fill = async |upload, id: &str| media.fill_pending(ours, id, upload, content()).await;
            assert!(matches!(fill(others, &id).await, Err(Error::NotYours)));
            assert!(matches!(fill(world.upload, "unknown").await, Err(Error::UnknownId)));
            let elsewhere = media.fill_pending(server_name!("elsewhere.org"), &id, world.upload, content()).await;
            assert!(matches!(elsewhere, Err(Error::UnknownId)));
            let patient = Wanted { timeout: Duration::from_secs(30), ..wanted(ours, &id) };
            let (found, filled) = tokio::join!(world.read(&patient), fill(world.upload, &id));
            filled.unwrap();
            assert_eq!(found.unwrap().unwrap().0, b"late");
            assert!(matches!(fill(world.upload, &id).await, Err(Error::AlreadyUploaded)));
            media.create_pending(world.upload.uploader_nid).await.unwrap();
        },
    )
    .await;
}

/// What comes after the freeze is for those with a token; nothing is fetched for the others.
#[tokio::test]
async fn the_freeze_keeps_what_was_there() {
    with_media(
        |_| {},
        async |world| {
            let before = world.upload(&["before"]).await.unwrap();
            // The clock has milliseconds.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let options = MediaOptions { freeze_unauthenticated: true, ..world.media.options.clone() };
            let media = Media::open(world.store.clone(), options).await.unwrap();
            let world = World { media, ..world };
            let after = world.upload(&["after"]).await.unwrap();
            let ours = server_name!("example.org");
            let anybody = |id| Wanted { access: Access::Anonymous, ..wanted(ours, id) };
            assert!(world.read(&anybody(&before)).await.unwrap().is_some());
            assert!(world.read(&anybody(&after)).await.unwrap().is_none());
            assert!(world.content(&after).await.is_some());
            let remote = Elsewhere::default();
            let asked = Arc::clone(&remote.asked);
            world.media.connect(Arc::new(remote));
            let elsewhere = Wanted { access: Access::Anonymous, ..wanted(server_name!("elsewhere.org"), "file") };
            assert!(world.read(&elsewhere).await.unwrap().is_none());
            assert_eq!(asked.load(Ordering::SeqCst), 0);
        },
    )
    .await;
}

/// Another server, whose files have their identifiers for content.
#[derive(Default)]
struct Elsewhere {
    asked: Arc<AtomicUsize>,
    /// When it is given out, one answer goes on.
    gate: Option<Arc<Notify>>,
    refusal: Mutex<Option<FetchError>>,
}

impl RemoteFiles for Elsewhere {
    fn fetch<'a>(
        &'a self,
        _: &'a ServerName,
        media_id: &'a str,
        _: u64,
    ) -> BoxFuture<'a, Result<RemoteFile, FetchError>> {
        async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            if let Some(refusal) = self.refusal.lock().take() {
                return Err(refusal);
            }
            let content = match media_id {
                "broken" => stream::iter([Ok(Bytes::from_static(b"half")), Err("gone".into())]).boxed(),
                "stalled" => stream::pending().boxed(),
                id => stream::iter([Ok(Bytes::copy_from_slice(id.as_bytes()))]).boxed(),
            };
            Ok(RemoteFile {
                content_type: Some("text/plain\r\nX: y".to_owned()),
                file_name: Some("n\0ame".to_owned()),
                content,
            })
        }
        .boxed()
    }
}

/// Many ask, one fetches; the next gets the copy.
#[tokio::test]
async fn a_file_is_fetched_once() {
    with_media(
        |_| {},
        async |world| {
            let gate = Arc::new(Notify::new());
            let remote = Elsewhere { gate: Some(Arc::clone(&gate)), ..Elsewhere::default() };
            let asked = Arc::clone(&remote.asked);
            world.media.connect(Arc::new(remote));
            let elsewhere = server_name!("elsewhere.org");
            let file = wanted(elsewhere, "file");
            let (found, ()) = tokio::join!(join_all((0..10).map(|_| world.read(&file))), async { gate.notify_one() });
            for found in found {
                assert_eq!(found.unwrap().unwrap(), (b"file".to_vec(), Some("name".to_owned())));
            }
            let again = world.media.download(&Wanted { allow_remote: false, ..file }).await.unwrap().unwrap();
            assert_eq!((again.about.content_type, again.about.is_remote), (None, true));
            assert_eq!(asked.load(Ordering::SeqCst), 1);
            assert!(world.media.fetches.0.lock().values().all(|fetch| fetch.upgrade().is_none()));
            // A copy that was lost is fetched again.
            for file in world.files() {
                std::fs::remove_file(file).unwrap();
            }
            let (found, ()) = tokio::join!(world.read(&file), async { gate.notify_one() });
            assert_eq!(found.unwrap().unwrap().0, b"file");
            assert_eq!(asked.load(Ordering::SeqCst), 2);
        },
    )
    .await;
}

/// What is refused, too large, or does not come to its end leaves nothing, and can be asked for again.
#[tokio::test]
async fn failed_fetches_leave_nothing() {
    with_media(
        |options| options.stall = Duration::from_millis(20),
        async |world| {
            let remote = Arc::new(Elsewhere::default());
            world.media.connect(remote.clone());
            let elsewhere = server_name!("elsewhere.org");
            let reason = async |id: &str| match world.read(&wanted(elsewhere, id)).await {
                Err(Error::Shared(error)) => format!("{error:?}"),
                other => panic!("{other:?}"),
            };
            *remote.refusal.lock() = Some(FetchError::NotFound);
            assert_eq!(reason("file").await, "Fetch(NotFound)");
            assert_eq!(reason("larger_than_ten_bytes").await, "Fetch(TooLarge)");
            assert_eq!(reason("broken").await, "Fetch(Unreachable(\"gone\"))");
            assert_eq!(reason("stalled").await, "Stalled");
            assert!(world.files().is_empty());
            assert!(world.read(&wanted(elsewhere, "file")).await.unwrap().is_some());
            for strange in ["..", "a/b", "a b", ""] {
                assert!(world.read(&wanted(elsewhere, strange)).await.unwrap().is_none(), "{strange:?}");
            }
            assert_eq!(remote.asked.load(Ordering::SeqCst), 5);
        },
    )
    .await;
}

/// Copies that nobody uses go from the disk; what another file has in common with them, and what is withheld, stays.
#[tokio::test]
async fn unused_copies_go() {
    with_media(
        |options| options.remote_retention = Some(Duration::ZERO),
        async |world| {
            world.media.connect(Arc::new(Elsewhere::default()));
            let elsewhere = server_name!("elsewhere.org");
            for id in ["alone", "common", "bad"] {
                world.read(&wanted(elsewhere, id)).await.unwrap();
            }
            let mine = world.upload(&["common"]).await.unwrap();
            assert_eq!(world.media.quarantine(Owner::File(elsewhere, "bad")).await.unwrap(), 1);
            assert!(world.read(&wanted(elsewhere, "bad")).await.unwrap().is_none());
            tokio::time::sleep(Duration::from_millis(2)).await;
            world.media.sweep().await.unwrap();
            // Contents stay for a while after their last row.
            assert_eq!(world.files().len(), 3);
            let kept = Wanted { allow_remote: false, ..wanted(elsewhere, "alone") };
            assert!(world.read(&kept).await.unwrap().is_none());
            world.media.remove_garbage(i64::MAX).await.unwrap();
            assert_eq!(world.files().len(), 3, "they were written just now");
            world.age();
            world.media.remove_garbage(i64::MAX).await.unwrap();
            assert_eq!(world.files().len(), 2);
            assert_eq!(world.content(&mine).await.unwrap().0, b"common");
            assert!(world.media.release(elsewhere, "bad").await.unwrap());
            assert!(world.read(&wanted(elsewhere, "bad")).await.unwrap().is_some());
            assert!(!world.media.release(elsewhere, "nothing").await.unwrap());
            // What is asked for again comes again.
            assert!(world.read(&wanted(elsewhere, "alone")).await.unwrap().is_some());
        },
    )
    .await;
}

/// Verification names what is missing or damaged.
#[tokio::test]
async fn damage_is_found() {
    with_media(
        |_| {},
        async |world| {
            let found = world.media.verify().await.unwrap();
            assert_eq!((found.contents, found.missing.len(), found.damaged.len()), (0, 0, 0));
            for content in ["good", "lost", "spoilt"] {
                world.upload(&[content]).await.unwrap();
            }
            for file in world.files() {
                match std::fs::read(&file).unwrap().as_slice() {
                    b"lost" => std::fs::remove_file(&file).unwrap(),
                    b"spoilt" => std::fs::write(&file, "spoiled").unwrap(),
                    _ => {}
                }
            }
            let found = world.media.verify().await.unwrap();
            assert_eq!((found.contents, found.bytes), (3, 14));
            assert_eq!((found.missing.len(), found.damaged.len()), (1, 1));
        },
    )
    .await;
}
