use std::{net::Ipv4Addr, sync::Arc};

use ruma::{
    CanonicalJsonObject, ServerName,
    serde::{Base64, base64::Standard},
    signatures::{Ed25519KeyPair, sign_json},
};
use serde_json::json;

use super::{Check, Report, Verdict, examine};
use crate::{
    ClientOptions, Ports,
    keys::now_ms,
    testing::{Authority, FakeDns, Handler, Peer, handler, own_name},
};

/// The document of a server, made anew.
fn document(server: &str, valid_until_ts: i64) -> String {
    let key = Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), "1".to_owned()).unwrap();
    let public = Base64::<Standard, _>::new(key.public_key()).encode();
    let document = json!({
        "server_name": server,
        "valid_until_ts": valid_until_ts,
        "verify_keys": { "ed25519:1": { "key": public } },
    });
    let mut document: CanonicalJsonObject = serde_json::from_value(document).unwrap();
    sign_json(server, &key, &mut document).unwrap();
    serde_json::to_string(&document).unwrap()
}

fn answering(keys: String, version: &'static str) -> Handler {
    handler(move |request| {
        let (status, body) = match request.uri().path() {
            "/_matrix/key/v2/server" => (200, keys.clone()),
            "/_matrix/federation/v1/version" => (200, version.to_owned()),
            _ => (404, String::new()),
        };
        std::future::ready(crate::testing::json(status, body))
    })
}

async fn report(names: &[&str], handler: Handler, server: &str, change: impl FnOnce(&mut ClientOptions)) -> Report {
    let authority = Authority::new();
    let peer = Peer::new(authority.config(names, &["h2", "http/1.1"]), handler).await;
    let mut options = ClientOptions {
        trusted_ca_file: Some(authority.path()),
        only_trusted_ca_file: true,
        allow_private_addresses: true,
        dns: Some(Arc::new(FakeDns::here(&["a.example"]))),
        // The same peer answers for files: it has none.
        ports: Ports { https: peer.port(), federation: peer.port() },
        ..ClientOptions::new(own_name())
    };
    change(&mut options);
    examine(&options, <&ServerName>::try_from(server).unwrap()).await.unwrap()
}

fn verdict(report: &Report, name: &str) -> Verdict {
    let found: Vec<&Check> = report.checks.iter().filter(|check| check.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {report:#?}");
    assert_eq!(found[0].advice.is_some(), matches!(found[0].verdict, Verdict::Bad | Verdict::Warning), "{found:?}");
    found[0].verdict
}

const VERSION: &str = r#"{"server":{"name":"Peer","version":"1"}}"#;
const DAY: i64 = 24 * 3600 * 1000;

/// A server that is in order passes every check, and the report says so to programs as well.
#[tokio::test]
async fn a_good_server() {
    let keys = document("a.example", now_ms() + DAY);
    let report = report(&["a.example"], answering(keys, VERSION), "a.example", |_| {}).await;
    for name in ["well_known", "srv", "addresses", "tls", "keys", "version"] {
        assert_eq!(verdict(&report, name), Verdict::Ok, "{name} in {report:#?}");
    }
    assert!(!report.is_bad());
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!((&json["server"], &json["checks"][0]["verdict"]), (&json!("a.example"), &json!("ok")));
    assert!(report.checks.iter().any(|check| check.found == "Peer 1"));
}

/// A certificate of another name is found, told, and ends the visit.
#[tokio::test]
async fn a_wrong_certificate() {
    let keys = document("a.example", now_ms() + DAY);
    let report = report(&["b.example"], answering(keys, VERSION), "a.example", |_| {}).await;
    assert_eq!(verdict(&report, "well_known"), Verdict::Warning);
    assert_eq!(verdict(&report, "tls"), Verdict::Bad);
    assert_eq!(verdict(&report, "keys"), Verdict::Skipped);
    let tls = report.checks.iter().find(|check| check.name == "tls").unwrap();
    assert!(tls.advice.as_ref().unwrap().contains("must be for a.example"), "{tls:?}");
    assert!(report.is_bad());
}

/// Keys of another server, and keys that ran out.
#[tokio::test]
async fn wrong_keys() {
    for keys in [document("b.example", now_ms() + DAY), document("a.example", now_ms() - DAY), "{}".to_owned()] {
        let report = report(&["a.example"], answering(keys, "nonsense"), "a.example", |_| {}).await;
        assert_eq!(verdict(&report, "keys"), Verdict::Bad, "{report:#?}");
        assert_eq!(verdict(&report, "version"), Verdict::Bad);
    }
    let keys = document("a.example", now_ms() + DAY / 48);
    let soon = report(&["a.example"], answering(keys, VERSION), "a.example", |_| {}).await;
    assert_eq!(verdict(&soon, "keys"), Verdict::Warning);
    assert!(!soon.is_bad());
}

/// A name without addresses, with private ones, and an address where nobody listens.
#[tokio::test]
async fn nowhere() {
    let nowhere = report(&["a.example"], answering(String::new(), VERSION), "nowhere.example", |_| {}).await;
    assert_eq!((verdict(&nowhere, "addresses"), verdict(&nowhere, "tls")), (Verdict::Bad, Verdict::Skipped));
    let refusing = |options: &mut ClientOptions| options.allow_private_addresses = false;
    let private = report(&["a.example"], answering(String::new(), VERSION), "a.example", refusing).await;
    assert_eq!(verdict(&private, "addresses"), Verdict::Bad);
    // A port that was free just now.
    let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let name = format!("a.example:{port}");
    let closed = report(&["a.example"], answering(String::new(), VERSION), &name, |_| {}).await;
    assert_eq!((verdict(&closed, "well_known"), verdict(&closed, "srv")), (Verdict::Skipped, Verdict::Skipped));
    assert_eq!((verdict(&closed, "tls"), verdict(&closed, "keys")), (Verdict::Bad, Verdict::Skipped));
}
