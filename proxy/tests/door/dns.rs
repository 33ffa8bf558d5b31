//! Certificates by DNS-01, with records made by updates of the zone.

use std::time::Duration;

use hickory_proto::rr::RecordType;
use myelin_process::shutdown::Shutdown;
use myelin_proxy::acme::{ChallengeKind, Dns, DnsKey, DnsKeyAlgorithm, DnsUpdate};

use crate::{
    acme::{World, open},
    bind::{self, Bind, SECRET},
    harness::eventually,
    pebble::{self, Habits},
};

const NAMES: [&str; 3] = ["*.example.org", "example.org", "matrix.example.org"];

fn updates(server: &Bind, key: &str, algorithm: DnsKeyAlgorithm, secret: &str) -> DnsUpdate {
    DnsUpdate {
        server: server.address(),
        zone: None,
        key: DnsKey::new(key, algorithm, secret).unwrap(),
        ttl: Duration::from_secs(1),
        others: Vec::new(),
        wait: Duration::from_secs(20),
    }
}

async fn world(server: &Bind) -> World {
    let habits = Habits { dns: Some(server.port), ..Habits::default() };
    let mut world = World::new(habits, &NAMES, &[ChallengeKind::Dns01]).await;
    world.pebble.start().await;
    world
}

async fn begin(world: &mut World, update: DnsUpdate) {
    world.settings.dns = Some(Dns::Update(update));
    (world.storage, world.acme) = open(world.folder.path(), &world.settings).await;
    world.shutdown = Shutdown::new();
    world.run();
}

/// A wildcard, its name, which has its records at the same place, and another one: the authority asks the server that
/// copies the zone, and is only asked to look when the records are there. Afterwards they are gone.
#[tokio::test(flavor = "multi_thread")]
async fn issues_by_updates() {
    if !pebble::is_there() || !bind::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = bind::pair(folder.path()).await;
    for (key, algorithm, zone) in
        [("short", DnsKeyAlgorithm::HmacSha256, None), ("long", DnsKeyAlgorithm::HmacSha512, Some("example.org"))]
    {
        let mut world = world(&second).await;
        let update = updates(&first, key, algorithm, SECRET);
        let others = vec![second.address()];
        begin(&mut world, DnsUpdate { zone: zone.map(str::to_owned), others, ..update }).await;
        world.issued().await;
        let mut names = world.acme.certificates().current().names().to_vec();
        names.sort();
        assert_eq!(names, NAMES);
        for name in ["_acme-challenge.example.org", "_acme-challenge.matrix.example.org"] {
            assert!(first.has(RecordType::TXT, name).await.is_empty(), "{name}");
        }
    }
    assert_eq!((first.updates("adding an RR"), first.updates("deleting an RR")), (6, 6));
}

/// Keys that are unknown, wrong, or for another part of the zone, and names that the server does not have: told so that
/// it can be corrected, and no record is left.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told() {
    if !pebble::is_there() || !bind::is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = bind::pair(folder.path()).await;
    let mut world = world(&first).await;
    let right = updates(&first, "short", DnsKeyAlgorithm::HmacSha256, SECRET);
    let key = |name, algorithm, secret| DnsUpdate { ..updates(&first, name, algorithm, secret) };
    for (update, message) in [
        (key("short", DnsKeyAlgorithm::HmacSha256, "d3Jvbmc="), "another secret for the key short"),
        (key("nobody", DnsKeyAlgorithm::HmacSha256, SECRET), "does not know the key nobody"),
        (
            key("long", DnsKeyAlgorithm::HmacSha256, SECRET),
            "does not know the key long, or has it for another algorithm",
        ),
        (key("elsewhere", DnsKeyAlgorithm::HmacSha256, SECRET), "the key elsewhere may not change it"),
        (DnsUpdate { zone: Some("example.com".to_owned()), ..right.clone() }, "is in no zone of"),
        (DnsUpdate { server: "127.0.0.1:1".to_owned(), ..right.clone() }, "ask the DNS server 127.0.0.1:1"),
        // The one that copies takes no updates.
        (DnsUpdate { server: second.address(), ..right.clone() }, "refused the update"),
    ] {
        begin(&mut world, update).await;
        eventually(message, async || world.record().await.last_error.is_some_and(|error| error.contains(message)))
            .await;
        world.shutdown.close(Duration::from_secs(20)).await.unwrap();
        assert!(first.has(RecordType::TXT, "_acme-challenge.example.org").await.is_empty());
    }
    // Corrected, it is tried at once.
    begin(&mut world, right).await;
    world.issued().await;
}

/// A server of the zone that does not learn of the records is waited for, and named.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lags_behind() {
    if !pebble::is_there() || !bind::is_there() {
        return;
    }
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _second) = bind::pair(folder.path()).await;
    let (stranger, _) = bind::pair(other.path()).await;
    let mut world = world(&first).await;
    let update = updates(&first, "short", DnsKeyAlgorithm::HmacSha256, SECRET);
    begin(&mut world, DnsUpdate { others: vec![stranger.address()], wait: Duration::from_secs(1), ..update }).await;
    let message = format!("{} does not show the record", stranger.address());
    eventually(&message, async || world.record().await.last_error.is_some_and(|error| error.contains(&message))).await;
    world.shutdown.close(Duration::from_secs(20)).await.unwrap();
    assert!(first.has(RecordType::TXT, "_acme-challenge.example.org").await.is_empty(), "it is cleared all the same");
}
