use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use myelin_rooms::remote::{RemoteError, RemoteServers};
use ruma::{
    OwnedServerName, ServerName,
    api::federation::{
        authentication::XMatrix, discovery::get_server_version::v1 as version,
        event::get_room_state_ids::v1 as state_ids, query::get_room_information::v1 as directory,
        transactions::send_transaction_message::v1 as transaction,
    },
    event_id, owned_event_id, owned_room_id, owned_server_name, room_alias_id,
    serde::Base64,
    signatures::PublicKeyMap,
};

use crate::{
    AllowedServers, Limits, Ports, Srv,
    testing::{Authority, FakeDns, Handler, Ours, Peer, always, handler, json, ours, own_name, until},
};

const VERSION: &str = r#"{"server":{"name":"Peer","version":"1"}}"#;

/// `peer.example` with a service record to a peer that answers by `handler`, and a client that finds it.
struct World {
    ours: Ours,
    peer: Peer,
    _authority: Authority,
}

async fn world(alpn: &[&str], handler: Handler, change: impl FnOnce(&mut crate::ClientOptions)) -> World {
    let authority = Authority::new();
    let peer = Peer::new(authority.config(&["peer.example", "127.0.0.1"], alpn), handler).await;
    let dns = FakeDns::here(&["peer.example", "target.example"]).service(
        "_matrix-fed._tcp.peer.example",
        "target.example",
        peer.port(),
    );
    // Nobody answers on port 1, so there is no .well-known file.
    let ours = ours(&authority, dns, Ports { https: 1, federation: 1 }, change).await;
    World { ours, peer, _authority: authority }
}

impl World {
    async fn version(&self, server: &str) -> Result<version::Response, RemoteError> {
        let server = <&ServerName>::try_from(server).unwrap();
        self.ours.client.call(server, version::Request::new()).await
    }

    async fn peer_version(&self) -> Result<version::Response, RemoteError> {
        self.version("peer.example").await
    }

    fn connections(&self) -> usize {
        let seen = self.peer.seen();
        seen.iter().map(|seen| seen.connection).collect::<std::collections::BTreeSet<_>>().len()
    }
}

fn transaction() -> transaction::Request {
    transaction::Request::new("1".into(), own_name(), ruma::MilliSecondsSinceUnixEpoch::now())
}

/// Every request is signed for its destination: path with query, method and body.
#[tokio::test]
async fn requests_are_signed() {
    let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
    let keep = handler(move |request| {
        send.send(request).unwrap();
        std::future::ready(json(200, r#"{"pdus":{}, "room_id":"!a:b.example", "servers":[]}"#))
    });
    let world = world(&[], keep, |_| {}).await;
    let client = &world.ours.client;
    let peer = owned_server_name!("peer.example");
    let alias = room_alias_id!("#süß & sauer?:peer.example").to_owned();
    client.call(&peer, directory::Request::new(alias)).await.unwrap();
    client.send_transaction(&peer, transaction(), Duration::from_secs(10)).await.unwrap();
    let keys = [(format!("ed25519:{}", client.key.version()), Base64::new(client.key.public_key().to_vec()))];
    let keys = PublicKeyMap::from([(own_name().to_string(), keys.into())]);
    for method in ["GET", "PUT"] {
        let request = receive.recv().await.unwrap();
        assert_eq!(request.method(), method);
        let claim = XMatrix::extract_from_http_headers(request.headers()).unwrap();
        assert_eq!((&claim.origin, claim.destination.as_ref()), (&own_name(), Some(&peer)));
        claim.verify_http_request(&request, &peer, &keys).unwrap();
        claim.verify_http_request(&request, &owned_server_name!("other.example"), &keys).unwrap_err();
        let is_json = request.headers().get("content-type").is_some_and(|value| value == "application/json");
        assert_eq!(is_json, method == "PUT");
    }
}

/// Host header and SNI are of the server's name, not of what its service record points to; none for an IP literal.
#[tokio::test]
async fn names_on_the_wire() {
    let world = world(&[], always(200, VERSION), |_| {}).await;
    world.peer_version().await.unwrap();
    let port = world.peer.port();
    world.version(&format!("127.0.0.1:{port}")).await.unwrap();
    world.version(&format!("peer.example:{port}")).await.unwrap();
    let seen: Vec<_> = world.peer.seen().into_iter().map(|seen| (seen.host, seen.sni)).collect();
    let name = || Some("peer.example".to_owned());
    let expected = [
        ("peer.example".to_owned(), name()),
        (format!("127.0.0.1:{port}"), None),
        (format!("peer.example:{port}"), name()),
    ];
    assert_eq!(seen, expected);
}

/// A connection serves many requests, one after the other; one that was closed meanwhile is replaced unnoticed.
#[tokio::test]
async fn connections_are_kept() {
    let world = world(&["http/1.1"], always(200, VERSION), |_| {}).await;
    for _ in 0..5 {
        world.peer_version().await.unwrap();
    }
    assert_eq!(world.connections(), 1);
    world.peer.cut().await;
    world.peer_version().await.unwrap();
    assert_eq!((world.connections(), world.peer.seen().len()), (2, 6));
}

/// By HTTP/2, where the server has it, many requests share a connection.
#[tokio::test]
async fn http2() {
    let world = world(&["h2", "http/1.1"], always(200, VERSION), |_| {}).await;
    world.peer_version().await.unwrap();
    for answer in join_all((0..10).map(|_| world.peer_version())).await {
        answer.unwrap();
    }
    let seen = world.peer.seen();
    assert!(seen.iter().all(|seen| seen.is_http2 && seen.host == "peer.example"), "{seen:?}");
    assert_eq!(seen.len(), 11);
    assert!(world.connections() < 11, "{seen:?}");
    world.peer.cut().await;
    world.peer_version().await.unwrap();
}

/// However many requests there are, a server gets its share of connections at the most.
#[tokio::test]
async fn connections_are_bounded() {
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let wait = gate.clone();
    let slow = handler(move |_| {
        let wait = wait.clone();
        async move {
            wait.acquire().await.unwrap().forget();
            json(200, VERSION)
        }
    });
    let world = world(&[], slow, |options| options.connections_per_server_max = 4).await;
    let asking = join_all((0..40).map(|_| world.peer_version()));
    let opening = async {
        until(|| world.peer.seen().len() == 4).await;
        gate.add_permits(40);
    };
    let (answers, ()) = tokio::join!(asking, opening);
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(world.peer.open_max.load(Ordering::SeqCst), 4);
    assert_eq!(world.peer.seen().len(), 40);
}

/// When all connections are taken, one that nobody uses makes room.
#[tokio::test]
async fn idle_connections_make_room() {
    let world = world(&[], always(200, VERSION), |options| options.connections_max = 1).await;
    world.peer_version().await.unwrap();
    world.version(&format!("peer.example:{}", world.peer.port())).await.unwrap();
    world.peer_version().await.unwrap();
    assert_eq!(world.connections(), 3);
    assert_eq!(world.peer.open_max.load(Ordering::SeqCst), 1);
}

/// What is not used for a while is closed.
#[tokio::test]
async fn idle_connections_end() {
    let world = world(&[], always(200, VERSION), |options| options.idle_max = Duration::ZERO).await;
    world.peer_version().await.unwrap();
    world.ours.client.pool.sweep();
    until(|| world.peer.open.load(Ordering::SeqCst) == 0).await;
    world.ours.client.pool.sweep();
    assert_eq!(world.ours.client.pool.servers(), 0);
}

/// A certificate of another name, or of an authority that nobody knows, ends the matter before anything is sent.
#[tokio::test]
async fn certificates_are_checked() {
    let world = world(&[], always(200, VERSION), |_| {}).await;
    let port = world.peer.port();
    let error = world.version(&format!("target.example:{port}")).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Unreachable { reason, .. } if reason.contains("TLS")), "{error}");
    let stranger = Authority::new();
    let dns = FakeDns::here(&["peer.example"]);
    let ours = ours(&stranger, dns, Ports { https: 1, federation: port }, |_| {}).await;
    let error = ours.client.call(&owned_server_name!("peer.example"), version::Request::new()).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Unreachable { reason, .. } if reason.contains("certificate")), "{error}");
    assert!(world.peer.seen().is_empty());
}

/// Private addresses are refused, however they are come by: as a literal, by name, or by a service record.
#[tokio::test]
async fn private_addresses_are_refused() {
    let world = world(&[], always(200, VERSION), |options| options.allow_private_addresses = false).await;
    let port = world.peer.port();
    for name in [
        "peer.example".to_owned(),
        format!("peer.example:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
    ] {
        let error = world.version(&name).await.unwrap_err();
        assert!(matches!(&error, RemoteError::Unreachable { reason, .. } if reason.contains("private")), "{error}");
    }
    assert!(world.peer.seen().is_empty());
}

/// Of several addresses, one that works is enough.
#[tokio::test]
async fn addresses_are_tried_in_turn() {
    let authority = Authority::new();
    let peer = Peer::new(authority.config(&["peer.example"], &[]), always(200, VERSION)).await;
    let mut dns = FakeDns::default();
    // Nobody listens on the first two, and a service record leads to nowhere first.
    let addresses = [Ipv4Addr::new(127, 0, 0, 9), Ipv4Addr::new(127, 0, 0, 8), Ipv4Addr::LOCALHOST];
    dns.addresses.insert("target.example".to_owned(), addresses.map(IpAddr::V4).to_vec());
    let srv = |priority, target: &str| Srv { priority, weight: 0, port: peer.port(), target: target.to_owned() };
    let services = vec![srv(1, "nowhere.example"), srv(2, "target.example")];
    dns.services.insert("_matrix-fed._tcp.peer.example".to_owned(), services);
    let ours = ours(&authority, dns, Ports { https: 1, federation: 1 }, |_| {}).await;
    ours.client.call(&owned_server_name!("peer.example"), version::Request::new()).await.unwrap();
}

/// The operator's lists, and the switch, are looked at before anything else; we do not call ourselves.
#[tokio::test]
async fn lists_are_kept() {
    let denied = AllowedServers::new(vec!["*".to_owned()], vec!["peer.*".to_owned()]);
    let world = world(&[], always(200, VERSION), |options| options.allowed = denied).await;
    for name in ["peer.example", "example.org"] {
        assert!(matches!(world.version(name).await.unwrap_err(), RemoteError::NotAllowed(_)));
    }
    let off = self::world(&[], always(200, VERSION), |options| options.enabled = false).await;
    assert!(matches!(off.peer_version().await.unwrap_err(), RemoteError::NotAllowed(_)));
    assert!(world.peer.seen().is_empty() && off.peer.seen().is_empty());
}

/// A refusal is told with all that it says; whatever is no JSON is a refusal without a word.
#[tokio::test]
async fn refusals() {
    let body = r#"{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"no","room_version":"99"}"#;
    let refusing = world(&[], always(400, body), |_| {}).await;
    match refusing.peer_version().await.unwrap_err() {
        RemoteError::Refused { status: 400, errcode, message, body: Some(body), .. } => {
            assert_eq!((errcode.as_str(), message.as_str()), ("M_INCOMPATIBLE_ROOM_VERSION", "no"));
            assert_eq!(body["room_version"], "99");
        }
        error => panic!("{error}"),
    }
    let silent = world(&[], always(404, "<html>"), |_| {}).await;
    match silent.peer_version().await.unwrap_err() {
        RemoteError::Refused { status: 404, errcode, body: None, .. } => assert_eq!(errcode, "M_UNKNOWN"),
        error => panic!("{error}"),
    }
    // Who refuses is there, and is asked again at once.
    silent.peer_version().await.unwrap_err();
    assert_eq!(silent.peer.seen().len(), 2);
}

/// Answers that make no sense, or too much of it.
#[tokio::test]
async fn nonsense() {
    let peer = owned_server_name!("peer.example");
    let alias = room_alias_id!("#a:peer.example");
    for body in ["", "[]", "{}", r#"{"room_id":"!a:b","servers":7}"#, r#"{"room_id":"a","servers":[]}"#, "<html>"] {
        let world = world(&[], always(200, body), |_| {}).await;
        let answer = world.ours.client.call(&peer, directory::Request::new(alias.to_owned())).await;
        assert!(matches!(answer.unwrap_err(), RemoteError::Nonsense { .. }), "{body}");
    }
    let large = format!("{{\"padding\":\"{}\"}}", "x".repeat(3_000_000));
    let world = world(&[], always(200, &large), |_| {}).await;
    let error = world.peer_version().await.unwrap_err();
    assert!(matches!(&error, RemoteError::Nonsense { reason, .. } if reason.contains("more than")), "{error}");
    // The same is fine where much may come.
    let limits = Limits { deadline: Duration::from_secs(20), answer_bytes_max: 4_000_000 };
    world.ours.client.call_within(&peer, version::Request::new(), limits).await.unwrap();
}

/// A peer that says nothing is given up in time, and left alone for a while.
#[tokio::test]
async fn hung_peers() {
    let world = world(&[], handler(|_| std::future::pending()), |_| {}).await;
    let peer = owned_server_name!("peer.example");
    let limits = Limits { deadline: Duration::from_millis(200), answer_bytes_max: 1000 };
    let error = world.ours.client.call_within(&peer, version::Request::new(), limits).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }), "{error}");
    assert!(matches!(world.peer_version().await.unwrap_err(), RemoteError::BackingOff { .. }));
    // The connection that hangs is not kept.
    until(|| world.peer.open.load(Ordering::SeqCst) == 0).await;
}

/// A peer that takes the connection and never says a word of TLS holds nobody up for longer than connecting may take.
#[tokio::test]
async fn silent_listeners() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let quick = |options: &mut crate::ClientOptions| options.connect_timeout = Duration::from_millis(100);
    let world = world(&[], always(200, VERSION), quick).await;
    let error = world.version(&format!("127.0.0.1:{port}")).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Unreachable { reason, .. } if reason.contains("does not answer")), "{error}");
}

/// A server that is away is not asked again until it is heard of, except by the queues; whoever listens is told.
#[tokio::test]
async fn servers_that_are_away() {
    let world = world(&[], always(200, VERSION), |_| {}).await;
    let client = &world.ours.client;
    let gone: OwnedServerName = "peer.example:1".try_into().unwrap();
    let mut heard = client.heard();
    let ask = async || client.call(&gone, version::Request::new()).await.unwrap_err();
    assert!(matches!(ask().await, RemoteError::Unreachable { .. }));
    assert!(matches!(ask().await, RemoteError::BackingOff { .. }));
    let send = client.send_transaction(&gone, transaction(), Duration::from_secs(10));
    assert!(matches!(send.await.unwrap_err(), RemoteError::Unreachable { .. }));
    client.heard_from(&gone);
    assert_eq!(heard.recv().await.unwrap(), gone);
    assert!(matches!(ask().await, RemoteError::Unreachable { .. }));
}

/// A proxy whose server is down is a server that is away.
#[tokio::test]
async fn bad_gateways() {
    let world = world(&[], always(502, "down"), |_| {}).await;
    assert!(matches!(world.peer_version().await.unwrap_err(), RemoteError::Refused { status: 502, .. }));
    assert!(matches!(world.peer_version().await.unwrap_err(), RemoteError::BackingOff { .. }));
}

/// Rooms ask by their trait; an answer of many megabytes is one that they get.
#[tokio::test]
async fn rooms_ask_by_their_trait() {
    let ids: Vec<String> = (0..60_000).map(|n| format!("\"${n:043}\"")).collect();
    let body = format!(r#"{{"auth_chain_ids":[],"pdu_ids":[{}]}}"#, ids.join(","));
    assert!(body.len() > 2_000_000);
    let world = world(&["h2"], always(200, &body), |_| {}).await;
    let remote: Arc<dyn RemoteServers> = world.ours.client.clone();
    let request = state_ids::Request::new(owned_event_id!("$a"), owned_room_id!("!a:b.example"));
    let answer = remote.state_ids(&owned_server_name!("peer.example"), request).await.unwrap();
    assert_eq!(answer.pdu_ids.len(), 60_000);
    assert_eq!(answer.pdu_ids[7], event_id!("$0000000000000000000000000000000000000000007"));
    assert_eq!(world.peer.seen()[0].path, "/_matrix/federation/v1/state_ids/!a:b.example?event_id=%24a");
}
