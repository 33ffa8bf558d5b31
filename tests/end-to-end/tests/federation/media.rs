//! Files that people of one server share with those of another.

use myelin_end_to_end::{Answer, Authority, Engine, Method, Peer, Person, on_both_engines};
use serde_json::json;

use crate::guest::Guest;

on_both_engines!(files_are_shared, files_come_when_they_come);

/// A GIF of one pixel.
const PICTURE: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

/// Uploads a file; answers what stands behind `mxc://`.
async fn upload(person: &Person, name: &str, content: Vec<u8>) -> String {
    let path = format!("/_matrix/media/v3/upload?filename={name}");
    let made = person.send(Method::POST, &path, content).await.unwrap().ok();
    made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

async fn download(person: &Person, id: &str) -> Answer {
    person.get(&format!("/_matrix/client/v1/media/download/{id}")).await
}

/// What somebody uploads, people of the other server see, however large; also when the first server is gone.
async fn files_are_shared(engine: Engine) {
    let authority = Authority::new();
    let (mut ours, theirs) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    let (alice, bob) = (Guest::of(&ours, "alice").await, Guest::of(&theirs, "bob").await);
    let large: Vec<u8> = (0..5_000_000_u32).map(|place| (place ^ (place >> 8)) as u8).collect();
    let film = upload(&alice, "film.bin", large.clone()).await;
    let picture = upload(&alice, "dot.gif", PICTURE.to_vec()).await;
    let unseen = upload(&alice, "unseen", b"nobody asks in time".to_vec()).await;

    // Two who ask at once get the same.
    let (one, two) = tokio::join!(download(&bob, &film), download(&bob, &film));
    for answer in [one, two] {
        assert_eq!(answer.status, 200, "{answer}");
        assert!(answer.body == large, "the file is another one");
    }
    let found = download(&bob, &picture).await;
    assert_eq!((found.status, &*found.body), (200, PICTURE));
    assert_eq!(found.headers["content-disposition"].to_str().unwrap(), "inline; filename=dot.gif");
    let small = format!("/_matrix/client/v1/media/thumbnail/{picture}?width=32&height=32&method=crop");
    let thumbnail = bob.get(&small).await;
    assert_eq!(thumbnail.status, 200, "{thumbnail}");
    assert!(thumbnail.headers["content-type"].to_str().unwrap().starts_with("image/"));
    let server = ours.name().to_owned();
    bob.get(&format!("/_matrix/client/v1/media/download/{server}/nothing")).await.refused(404, "M_NOT_FOUND");
    // Whoever has no token does not make a server ask others for ever new files, if they say so.
    let anybody = theirs.api().get(&format!("/_matrix/media/v3/download/{unseen}?allow_remote=false")).await;
    anybody.refused(404, "M_NOT_FOUND");

    ours.stop().await;
    let copy = download(&bob, &film).await;
    assert!(copy.status == 200 && copy.body == large, "the copy is kept");
    download(&bob, &unseen).await.refused(502, "M_UNKNOWN");
    let metrics = theirs.metrics().get("/metrics").await.text();
    assert!(metrics.contains("myelin_media_fetch_seconds_count{outcome=\"ok\"} 2"), "each was fetched once");
}

/// A file whose identifier is known before it is uploaded is waited for by people of the other server.
async fn files_come_when_they_come(engine: Engine) {
    let authority = Authority::new();
    let (ours, theirs) = (Peer::myelin(engine, &authority).await, Peer::myelin(engine, &authority).await);
    let (alice, bob) = (Guest::of(&ours, "alice").await, Guest::of(&theirs, "bob").await);
    let made = alice.post("/_matrix/media/v1/create", json!({})).await.ok();
    let id = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let path = format!("/_matrix/media/v3/upload/{id}");
    let (found, filled) = tokio::join!(download(&bob, &id), alice.send(Method::PUT, &path, b"late".to_vec()));
    filled.unwrap().ok();
    assert_eq!((found.status, &*found.body), (200, &b"late"[..]), "{found}");
    alice.send(Method::PUT, &path, b"again".to_vec()).await.unwrap().refused(409, "M_CANNOT_OVERWRITE_MEDIA");
}
