use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use ::http::header;
use ruma::ServerName;
use tokio::sync::Notify;

use super::{Discovery, Route, Step, well_known::fetch};
use crate::{
    ClientOptions, Ports,
    http::Dialer,
    testing::{Authority, FakeDns, Handler, Peer, always, handler, json, own_name},
    tls::Tls,
};

const WELL_KNOWN_HOSTS: [&str; 2] = ["a.example", "b.example"];

/// What is needed to find servers: `a.example` and `b.example` have a web server that answers by `handler`.
struct World {
    discovery: Discovery,
    dns: Arc<FakeDns>,
    dialer: Arc<Dialer>,
    tls: Tls,
    web: Peer,
    ports: Ports,
}

async fn world(mut dns: FakeDns, handler: Handler) -> World {
    let authority = Authority::new();
    let web = Peer::new(authority.config(&WELL_KNOWN_HOSTS, &[]), handler).await;
    for host in WELL_KNOWN_HOSTS {
        dns.addresses.insert(host.to_owned(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
    let options = ClientOptions {
        trusted_ca_file: Some(authority.path()),
        only_trusted_ca_file: true,
        ..ClientOptions::new(own_name())
    };
    let tls = Tls::new(&options).unwrap();
    let dns = Arc::new(dns);
    let dialer = Arc::new(Dialer::new(dns.clone(), true, Duration::from_secs(5)));
    let ports = Ports { https: web.port(), federation: 8448 };
    let discovery = Discovery::new(dns.clone(), dialer.clone(), tls.files.clone(), ports);
    World { discovery, dns, dialer, tls, web, ports }
}

impl World {
    async fn find(&self, server: &str) -> Route {
        self.discovery.find(<&ServerName>::try_from(server).unwrap()).await.unwrap()
    }

    async fn fetch(&self, host: &str) -> Result<String, String> {
        let found = fetch(&self.dialer, &self.tls.files, self.ports, host).await;
        found.map(|found| found.server.to_string()).map_err(|error| error.to_string())
    }
}

/// `(step, Host header, the certificate's name, where to connect)`.
fn summary(route: &Route) -> (Step, &str, String, Vec<String>) {
    let endpoints = route.endpoints.iter().map(ToString::to_string).collect();
    (route.step, &route.host, route.tls_name.to_str().into_owned(), endpoints)
}

fn delegating(to: &str) -> Handler {
    always(200, &format!(r#"{{"m.server":"{to}"}}"#))
}

/// Steps 1 and 2 need nobody: an IP literal is where it says, a port means that nothing else is asked.
#[tokio::test]
async fn literals_and_ports() {
    let world = world(FakeDns::default(), always(404, "")).await;
    for (name, step, tls, endpoint) in [
        ("192.0.2.1", Step::IpLiteral, "192.0.2.1", "192.0.2.1:8448"),
        ("192.0.2.1:1", Step::IpLiteral, "192.0.2.1", "192.0.2.1:1"),
        ("[2001:db8::1]", Step::IpLiteral, "2001:db8::1", "[2001:db8::1]:8448"),
        ("[2001:db8::1]:1", Step::IpLiteral, "2001:db8::1", "[2001:db8::1]:1"),
        ("a.example:8448", Step::Port, "a.example", "a.example:8448"),
    ] {
        let route = world.find(name).await;
        assert_eq!(summary(&route), (step, name, tls.to_owned(), vec![endpoint.to_owned()]), "{name}");
    }
    assert!(world.web.seen().is_empty() && world.dns.asked.lock().is_empty());
}

/// Step 3: the delegated name decides in all its forms, and is in the header and in the certificate.
#[tokio::test]
async fn delegation() {
    let records = || {
        FakeDns::default()
            .service("_matrix-fed._tcp.new.example", "target.example", 1)
            .service("_matrix._tcp.new.example", "wrong.example", 2)
            .service("_matrix._tcp.old.example", "target.example", 3)
            .service("_matrix-fed._tcp.a.example", "wrong.example", 4)
    };
    for (to, step, tls, endpoint) in [
        ("192.0.2.1", Step::DelegatedIpLiteral, "192.0.2.1", "192.0.2.1:8448"),
        ("[2001:db8::1]:1", Step::DelegatedIpLiteral, "2001:db8::1", "[2001:db8::1]:1"),
        ("c.example:443", Step::DelegatedPort, "c.example", "c.example:443"),
        ("new.example", Step::DelegatedService, "new.example", "target.example:1"),
        ("old.example", Step::DelegatedOldService, "old.example", "target.example:3"),
        ("plain.example", Step::DelegatedAddress, "plain.example", "plain.example:8448"),
    ] {
        let world = world(records(), delegating(to)).await;
        let route = world.find("a.example").await;
        assert_eq!(summary(&route), (step, to, tls.to_owned(), vec![endpoint.to_owned()]), "{to}");
    }
}

/// Steps 4 to 6: without a usable file the name itself decides.
#[tokio::test]
async fn without_delegation() {
    let new = || FakeDns::default().service("_matrix-fed._tcp.a.example", "target.example", 1);
    let old = || FakeDns::default().service("_matrix._tcp.a.example", "target.example", 2);
    for (dns, step, endpoint) in [
        (new(), Step::Service, "target.example:1"),
        (old(), Step::OldService, "target.example:2"),
        (FakeDns::default(), Step::Address, "a.example:8448"),
    ] {
        let world = world(dns, always(404, "{}")).await;
        let route = world.find("a.example").await;
        let expected = (step, "a.example", "a.example".to_owned(), vec![endpoint.to_owned()]);
        assert_eq!(summary(&route), expected);
    }
    let none = FakeDns::default().service("_matrix-fed._tcp.a.example", "", 0);
    assert!(world(none, always(404, "")).await.find("a.example").await.endpoints.is_empty());
}

/// The file is asked for as the specification says, and once: the answer is remembered, good or bad.
#[tokio::test]
async fn files_are_asked_for_once() {
    let gate = Arc::new(Notify::new());
    let wait = gate.clone();
    let slow = handler(move |_| {
        let wait = wait.clone();
        async move {
            wait.notified().await;
            json(200, r#"{"m.server":"c.example:1"}"#)
        }
    });
    let world = world(FakeDns::default(), slow).await;
    let finding = futures_util::future::join_all((0..50).map(|_| world.find("a.example")));
    let opening = async {
        crate::testing::until(|| !world.web.seen().is_empty()).await;
        gate.notify_one();
    };
    let (found, ()) = tokio::join!(finding, opening);
    assert!(found.iter().all(|route| route.host == "c.example:1"));
    world.find("A.example").await;
    let seen = world.web.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].path.as_str(), seen[0].sni.as_deref()), ("/.well-known/matrix/server", Some("a.example")));
    assert_eq!(seen[0].host, format!("a.example:{}", world.web.port()));
    assert_eq!(world.discovery.well_knowns(), 1);
}

/// A failure is remembered too.
#[tokio::test]
async fn failures_are_asked_for_once() {
    let world = world(FakeDns::default(), always(500, "")).await;
    for _ in 0..3 {
        assert_eq!(world.find("a.example").await.step, Step::Address);
    }
    assert_eq!(world.web.seen().len(), 1);
}

/// Redirects are followed to other hosts and paths; loops, other schemes and nonsense are not.
#[tokio::test]
async fn redirects() {
    let redirecting = handler(|request| async move {
        let host = request.headers()[header::HOST].to_str().unwrap().to_owned();
        let port = host.split(':').nth(1).unwrap().to_owned();
        let to = match (request.uri().path(), host.starts_with("b.")) {
            ("/.well-known/matrix/server", false) => format!("https://b.example:{port}/.well-known/matrix/server"),
            ("/.well-known/matrix/server", true) => "/elsewhere?x=1".to_owned(),
            ("/elsewhere", _) => return json(200, r#"{"m.server":"c.example"}"#),
            _ => unreachable!(),
        };
        let mut answer = json(307, "");
        answer.headers_mut().insert(header::LOCATION, to.parse().unwrap());
        answer
    });
    let good = world(FakeDns::default(), redirecting).await;
    assert_eq!(good.fetch("a.example").await.unwrap(), "c.example");
    assert_eq!(good.web.seen().len(), 3);
    let to = |location: &'static str| {
        handler(move |_| async move {
            let mut answer = json(302, "");
            answer.headers_mut().insert(header::LOCATION, location.parse().unwrap());
            answer
        })
    };
    let circle = world(FakeDns::default(), to("/.well-known/matrix/server")).await;
    assert!(circle.fetch("a.example").await.unwrap_err().contains("redirects"));
    assert_eq!(circle.web.seen().len(), 6);
    for refused in ["http://b.example/x", "ftp://b.example/", "https://", "https://user@b.example/"] {
        let world = world(FakeDns::default(), to(refused)).await;
        assert!(world.fetch("a.example").await.unwrap_err().contains("redirect"), "{refused}");
    }
}

/// Nonsense of any kind is no delegation, and costs little.
#[tokio::test]
async fn bad_files() {
    for body in ["", "nonsense", "[]", r#"{"m.server":7}"#, r#"{"m.server":"a/b"}"#, r#"{"m.server":"a.example:x"}"#] {
        let world = world(FakeDns::default(), always(200, body)).await;
        world.fetch("a.example").await.unwrap_err();
        assert_eq!(world.find("a.example").await.step, Step::Address, "{body}");
    }
    let large = format!(r#"{{"m.server":"c.example","padding":"{}"}}"#, "x".repeat(100_000));
    let world = world(FakeDns::default(), always(200, &large)).await;
    assert!(world.fetch("a.example").await.unwrap_err().contains("more than"));
}

/// A certificate of another name is no answer.
#[tokio::test]
async fn files_of_others() {
    let mut dns = FakeDns::default();
    dns.addresses.insert("other.example".to_owned(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    let world = world(dns, delegating("c.example")).await;
    assert!(world.fetch("other.example").await.unwrap_err().contains("TLS"));
    assert!(world.fetch("nowhere.example").await.unwrap_err().contains("no address"));
}
