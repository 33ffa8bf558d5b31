//! Certificates from an authority.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use myelin_process::shutdown::Shutdown;
use myelin_proxy::{
    Certificates, Limits, Listening, Manners, RequestBody, Serve, Tls,
    acme::{Acme, AcmeSettings, ChallengeKind, Dns, DnsCommand, ExternalAccount, Folder, Pace, Record, Storage as _},
};

use crate::{
    harness::{Door, certificate, client, connect, eventually},
    pebble::{self, EXTERNAL_KEY, Habits, Pebble},
};

pub(crate) const PACE: Pace = Pace {
    poll: Duration::from_millis(50),
    retry_first: Duration::from_millis(200),
    retry_max: Duration::from_secs(1),
    renew_min: Duration::ZERO,
    answer: Duration::from_secs(60),
};

/// A server with a plain and an encrypted door, and the authority that looks at them.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pebble: Pebble,
    pub(crate) settings: AcmeSettings,
    pub(crate) plain: Door,
    pub(crate) tls: Door,
    pub(crate) storage: Arc<Folder>,
    pub(crate) acme: Arc<Acme<Folder>>,
    pub(crate) shutdown: Shutdown,
}

pub(crate) async fn open(folder: &Path, settings: &AcmeSettings) -> (Arc<Folder>, Arc<Acme<Folder>>) {
    let storage = Arc::new(Folder::open(folder.join("acme")).unwrap());
    (Arc::clone(&storage), Arc::new(Acme::open(settings.clone(), storage).await.unwrap()))
}

impl World {
    /// The authority is prepared, and does not run yet.
    pub(crate) async fn new(habits: Habits, names: &[&str], challenges: &[ChallengeKind]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The doors are opened first, since the authority is told their ports.
        let settings = AcmeSettings {
            directory: String::new(),
            staging: None,
            contact: Some("admin@example.org".to_owned()),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            challenges: challenges.to_vec(),
            external_account: None,
            trusted: None,
            profile: None,
            dns: None,
            pace: PACE,
        };
        let (_, shown) = open(folder.path(), &settings).await;
        let manners = Manners { challenges: Some(shown.challenges()), ..Manners::default() };
        let plain = Door::open(Limits::default(), |socket| Listening { manners, ..Listening::new(socket) });
        let tls = Tls::new(shown.certificates()).unwrap().with_challenges(shown.challenges());
        let tls = Door::open(Limits::default(), |socket| Listening { tls: Some(tls), ..Listening::new(socket) });
        let pebble = Pebble::prepare(folder.path(), habits, plain.address.port(), tls.address.port());
        let mut settings =
            AcmeSettings { directory: pebble.directory(), trusted: Some(pebble.trusted.clone()), ..settings };
        if challenges.contains(&ChallengeKind::Dns01) {
            let program = pebble.dns_command();
            settings.dns = Some(Dns::Command(DnsCommand { program, wait: Duration::ZERO }));
        }
        let (storage, acme) = open(folder.path(), &settings).await;
        Self { folder, pebble, settings, plain, tls, storage, acme, shutdown: Shutdown::new() }
    }

    pub(crate) fn run(&self) {
        self.shutdown.spawn(Arc::clone(&self.acme).run(self.shutdown.clone()));
    }

    pub(crate) async fn record(&self) -> Record {
        self.storage.record().await.unwrap()
    }

    pub(crate) async fn issued(&self) {
        eventually("a certificate is issued", async || !self.acme.is_waiting()).await;
        assert_eq!(
            self.acme.certificates().current().chain(),
            self.record().await.issued.unwrap().certificate().unwrap().chain()
        );
    }

    async fn ask_for_renewal(&self) {
        let lease = loop {
            match self.storage.take_lease(Duration::from_secs(1)).await.unwrap() {
                Some(lease) => break lease,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let record = Record { renewal_asked: true, next_attempt_ts: 0, ..self.record().await };
        self.storage.save_record(&lease, &record).await.unwrap();
        self.storage.release_lease(lease).await.unwrap();
    }
}

/// Each kind of proof gets the first certificate, for several names, and renews it; proofs are cleared away.
#[tokio::test(flavor = "multi_thread")]
async fn issues_and_renews_by_each_kind() {
    if !pebble::is_there() {
        return;
    }
    let names = ["example.org", "matrix.example.org"];
    for kind in [ChallengeKind::TlsAlpn01, ChallengeKind::Http01, ChallengeKind::Dns01] {
        let mut world = World::new(Habits::default(), &names, &[kind]).await;
        assert!(world.acme.is_waiting());
        world.pebble.start().await;
        world.run();
        world.issued().await;
        let first = world.acme.certificates().current();
        let mut issued_for = first.names().to_vec();
        issued_for.sort();
        assert_eq!(issued_for, names, "{kind:?}");
        world.ask_for_renewal().await;
        eventually("it is renewed", async || world.acme.certificates().current().chain() != first.chain()).await;
        assert_eq!((world.pebble.issued(), world.record().await.renewal_asked), (2, false));
        assert_eq!(std::fs::read_dir(world.folder.path().join("acme/proofs")).unwrap().count(), 0);
    }
}

/// An authority that refuses nonces at random, takes its time, and wants an external account and practice before.
#[tokio::test(flavor = "multi_thread")]
async fn a_difficult_authority() {
    if !pebble::is_there() {
        return;
    }
    let habits = Habits { strict: true, external_account: true, ..Habits::default() };
    let mut world = World::new(habits, &["example.org"], &[ChallengeKind::TlsAlpn01]).await;
    world.pebble.start().await;
    let external_account = Some(ExternalAccount { key_id: "kid-1".to_owned(), hmac_key: EXTERNAL_KEY.to_owned() });
    let staging = Some(world.pebble.directory());
    let settings = AcmeSettings { external_account, staging, ..world.settings.clone() };
    (world.storage, world.acme) = open(world.folder.path(), &settings).await;
    world.run();
    // Random refusals may make an attempt fail as a whole; the next one succeeds.
    tokio::time::timeout(Duration::from_secs(120), async {
        while world.acme.is_waiting() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a certificate is issued");
    assert!(world.pebble.issued() >= 2, "one for practice");
}

/// A name that the authority forbids, and one that cannot be proven: told, counted, tried again later and later, and
/// the certificate that was there before goes on being used.
#[tokio::test(flavor = "multi_thread")]
async fn failures_leave_the_old_certificate() {
    if !pebble::is_there() {
        return;
    }
    let mut world = World::new(Habits::default(), &["example.org"], &[ChallengeKind::Http01]).await;
    world.pebble.start().await;
    world.run();
    world.issued().await;
    world.shutdown.close(Duration::from_secs(5)).await.unwrap();
    let old = world.acme.certificates().current();

    for (names, challenges, messages) in [
        (["example.org", "blocked.example"], ChallengeKind::Http01, ["blocked.example", "forbidden"]),
        // Nobody there answers DNS for it.
        (["example.org", "other.example"], ChallengeKind::Dns01, ["by dns-01", "TXT"]),
    ] {
        let names = names.map(str::to_owned).to_vec();
        let mut settings = AcmeSettings { names, challenges: vec![challenges], ..world.settings.clone() };
        let nothing = Path::new("/bin/true").to_owned();
        settings.dns = Some(Dns::Command(DnsCommand { program: nothing, wait: Duration::ZERO }));
        (world.storage, world.acme) = open(world.folder.path(), &settings).await;
        assert!(!world.acme.is_waiting());
        world.shutdown = Shutdown::new();
        world.run();
        eventually("it fails twice", async || {
            let record = world.record().await;
            record.failures >= 2 && record.wanted.is_some_and(|wanted| wanted.contains(&settings.names[1]))
        })
        .await;
        world.shutdown.close(Duration::from_secs(5)).await.unwrap();
        let record = world.record().await;
        let error = record.last_error.unwrap();
        assert!(messages.iter().all(|message| error.contains(message)), "{error}");
        assert!(record.next_attempt_ts > 0);
        assert_eq!(world.acme.certificates().current().chain(), old.chain());
    }
}

/// An authority whose look at a name fails for reasons of its own, while it also refuses nonces: it is tried again, and
/// nothing of a failed attempt is in the way of a later one.
#[tokio::test(flavor = "multi_thread")]
async fn validation_that_fails_at_first() {
    if !pebble::is_there() {
        return;
    }
    let habits = Habits { strict: true, ..Habits::default() };
    let mut world = World::new(habits, &["example.org"], &[ChallengeKind::Http01, ChallengeKind::TlsAlpn01]).await;
    world.pebble.start().await;
    world.pebble.lookups_fail("example.org", true).await;
    world.run();
    let mut causes = Vec::new();
    tokio::time::timeout(Duration::from_secs(120), async {
        while !["by http-01", "by tls-alpn-01"]
            .iter()
            .all(|kind| causes.iter().any(|cause: &String| cause.contains(kind)))
        {
            causes.extend(world.record().await.last_error.filter(|error| !causes.contains(error)));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("each kind of proof is tried: {causes:?}"));
    assert!(world.acme.is_waiting());
    world.pebble.lookups_fail("example.org", false).await;
    tokio::time::timeout(Duration::from_secs(120), async {
        while world.acme.is_waiting() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a certificate is issued");
    assert_eq!(world.record().await.failures, 0);
    assert_eq!(std::fs::read_dir(world.folder.path().join("acme/proofs")).unwrap().count(), 0);
}

/// An authority that was restored from nothing does not know our account: another one is made.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_account_is_made_anew() {
    if !pebble::is_there() {
        return;
    }
    let mut world = World::new(Habits::default(), &["example.org"], &[ChallengeKind::TlsAlpn01]).await;
    world.pebble.start().await;
    world.run();
    world.issued().await;
    let first = world.acme.certificates().current();
    let account = world.storage.account(&world.settings.directory).await.unwrap();
    world.pebble.start().await;
    world.ask_for_renewal().await;
    eventually("it is renewed", async || world.acme.certificates().current().chain() != first.chain()).await;
    assert_ne!(world.storage.account(&world.settings.directory).await.unwrap(), account);
}

/// An authority that is down when the server starts is asked again, and connections get an answer meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_comes_later() {
    if !pebble::is_there() {
        return;
    }
    let mut world = World::new(Habits::default(), &["example.org"], &[ChallengeKind::Http01]).await;
    world.run();
    eventually("it fails", async || world.record().await.failures >= 1).await;
    assert!(world.record().await.last_error.unwrap().starts_with("reach localhost"));
    // A self-signed certificate stands in: the handshake gets as far as the client's refusal of it.
    let refused = connect(&client(&[&certificate()], &[]), world.tls.address).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    world.pebble.start().await;
    world.issued().await;
    assert_eq!(world.record().await.failures, 0);
    drop(world.plain);
}

/// Of several replicas that start at once, one asks, and all use what it got.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_issue_once() {
    if !pebble::is_there() {
        return;
    }
    let mut world = World::new(Habits::default(), &["example.org"], &[ChallengeKind::TlsAlpn01]).await;
    world.pebble.start().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(open(world.folder.path(), &world.settings).await.1);
    }
    for replica in &replicas {
        world.shutdown.spawn(Arc::clone(replica).run(world.shutdown.clone()));
    }
    eventually("all have it", async || replicas.iter().all(|replica| !replica.is_waiting())).await;
    let chains: Vec<_> = replicas.iter().map(|replica| replica.certificates().current()).collect();
    assert!(chains.iter().all(|other| other.chain() == chains[0].chain()));
    assert_eq!(world.pebble.issued(), 1);
}

/// An authority that answers everything with this.
#[derive(Clone)]
struct Always(StatusCode, &'static str);

impl Serve for Always {
    type Body = Full<Bytes>;

    async fn serve(self, _: Request<RequestBody>, _: SocketAddr) -> Response<Self::Body> {
        let response = Response::builder().status(self.0).header("retry-after", "3600").body(self.1.into());
        response.map_err(|error| -> Infallible { panic!("{error}") }).unwrap()
    }
}

/// An authority that talks nonsense, and one that wants to be left alone for an hour, and is.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_do_not_help() {
    let own = certificate();
    let folder = tempfile::tempdir().unwrap();
    for (answer, hour) in [
        (Always(StatusCode::OK, "nonsense"), false),
        (Always(StatusCode::OK, "{}"), false),
        (Always(StatusCode::TOO_MANY_REQUESTS, "{\"type\": \"urn:ietf:params:acme:error:rateLimited\"}"), true),
    ] {
        let tls = Tls::new(Certificates::new(own.clone())).unwrap();
        let door =
            Door::serve(Limits::default(), |socket| Listening { tls: Some(tls), ..Listening::new(socket) }, answer);
        let settings = AcmeSettings {
            directory: format!("https://localhost:{}/", door.address.port()),
            staging: None,
            contact: None,
            names: vec!["example.org".to_owned()],
            challenges: vec![ChallengeKind::Http01],
            external_account: None,
            trusted: Some(pem(&own).into_bytes()),
            profile: None,
            dns: None,
            pace: PACE,
        };
        let path = folder.path().join(format!("{}", door.address.port()));
        let (storage, acme) = open(&path, &settings).await;
        let shutdown = Shutdown::new();
        shutdown.spawn(acme.run(shutdown.clone()));
        eventually("it fails", async || storage.record().await.unwrap().failures >= 1).await;
        shutdown.close(Duration::from_secs(5)).await.unwrap();
        let record = storage.record().await.unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        assert_eq!(record.next_attempt_ts > now + 3_500_000, hour, "{:?}", record.last_error);
    }
}

fn pem(certificate: &myelin_proxy::Certificate) -> String {
    use base64::Engine as _;

    let text = base64::prelude::BASE64_STANDARD.encode(&certificate.chain()[0]);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}
