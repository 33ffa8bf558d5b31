//! Clients that mean harm, all kinds of them at once, against the whole program, and what a well-behaved one notices; and
//! what happens when the program has no file descriptor left.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs, io,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use myelin_end_to_end::{Api, Authority, Engine, Homeserver, Setup, eventually, free_port, http, run};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use toml::{Table, Value};

/// How long an answer to a well-behaved client may take, but for one of a hundred.
const GOOD_TIME: Duration = Duration::from_secs(1).checked_div(10).unwrap();
/// How much longer it may take than without an attack, on a machine that is too busy with other things for the time
/// above. What is the attack's doing grows with its connections, of which there are hundreds.
const GOOD_FACTOR: u32 = 4;
/// Requests of the well-behaved client, before, during, and after.
const GOOD_REQUESTS: usize = 400;
/// How long a hostile connection is held.
const HOLD_TIME: Duration = Duration::from_secs(2);
/// The pause between two bytes of a slow one.
const DRIP_TIME: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(30);

/// A homeserver with and without TLS.
struct Scene {
    server: Homeserver,
    authority: Authority,
    tls: u16,
}

impl Scene {
    async fn set() -> Self {
        let (authority, tls) = (Authority::new(), free_port());
        let mut listener = Table::new();
        listener.insert("address".to_owned(), format!("127.0.0.1:{tls}").into());
        listener.insert("resources".to_owned(), vec!["client", "health"].into());
        listener.insert("tls".to_owned(), true.into());
        let setup = Setup::new(Engine::Sqlite)
            .listen(Value::Table(listener))
            .set("tls.mode", "files")
            .set("tls.certificate", authority.certificate().display().to_string())
            .set("tls.private_key", authority.private_key().display().to_string());
        Self { server: setup.start().await, authority, tls }
    }

    fn plain(&self) -> u16 {
        self.server.url().rsplit(':').next().unwrap().parse().unwrap()
    }

    fn target(&self) -> Arc<Target> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.authority.root()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(Target { plain: self.plain(), tls: self.tls, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// A client by TLS, with connections of its own.
    fn client(&self) -> Api {
        let root = reqwest::Certificate::from_pem(&fs::read(self.authority.root()).unwrap()).unwrap();
        let client = http().tls_certs_only([root]).build().unwrap();
        Api::by(client, format!("https://localhost:{}", self.tls))
    }
}

/// What is attacked.
struct Target {
    plain: u16,
    tls: u16,
    connector: TlsConnector,
}

impl Target {
    async fn plainly(&self) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.plain)).await
    }

    async fn at_tls(&self) -> io::Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", self.tls)).await
    }

    async fn encrypted(&self, name: &'static str) -> io::Result<TlsStream<TcpStream>> {
        self.connector.connect(ServerName::try_from(name).unwrap(), self.at_tls().await?).await
    }
}

/// Connects and says nothing.
async fn half_open(target: Arc<Target>) -> io::Result<()> {
    let _both = (target.plainly().await?, target.at_tls().await?);
    sleep(HOLD_TIME).await;
    Ok(())
}

/// Says a little again and again.
async fn drip(mut stream: impl AsyncWrite + Unpin, bytes: &[u8]) -> io::Result<()> {
    let begun = Instant::now();
    for byte in bytes.iter().cycle() {
        if begun.elapsed() > HOLD_TIME {
            break;
        }
        stream.write_all(&[*byte]).await?;
        sleep(DRIP_TIME).await;
    }
    Ok(())
}

async fn slow_header(target: Arc<Target>) -> io::Result<()> {
    let mut stream = target.plainly().await?;
    stream.write_all(b"GET /_matrix/client/versions HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await?;
    drip(stream, b"x").await
}

async fn slow_body(target: Arc<Target>) -> io::Result<()> {
    let mut stream = target.plainly().await?;
    let head = b"POST /_matrix/client/v3/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9999\r\n\r\n{";
    stream.write_all(head).await?;
    drip(stream, b" ").await
}

/// A record of TLS that is announced and comes byte by byte.
async fn slow_handshake(target: Arc<Target>) -> io::Result<()> {
    let mut stream = target.at_tls().await?;
    stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await?;
    drip(stream, b"x").await
}

/// Streams of HTTP/2 that are reset as fast as they are opened.
async fn rapid_resets(target: Arc<Target>) -> io::Result<()> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for number in 0..2000_u32 {
        let id = (number * 2 + 1).to_be_bytes();
        // HEADERS with END_STREAM and END_HEADERS: GET https://x/_matrix/client/versions, then RST_STREAM.
        let head = b"\x82\x87\x41\x01x\x44\x18/_matrix/client/versions";
        bytes.extend([0, 0, head.len() as u8, 1, 5]);
        bytes.extend(id);
        bytes.extend(head);
        bytes.extend([0, 0, 4, 3, 0]);
        bytes.extend(id);
        bytes.extend([0, 0, 0, 8]);
    }
    let (mut reader, mut writer) = tokio::io::split(target.encrypted("localhost").await?);
    let send = async { writer.write_all(&bytes).await };
    let read = read(&mut reader);
    let (_, answer) = tokio::join!(send, read);
    // GOAWAY with ENHANCE_YOUR_CALM, unless the connection was gone before it could be read.
    let calm = answer.is_empty() || answer.windows(4).any(|window| window == [0, 0, 0, 11]);
    if calm { Ok(()) } else { Err(io::Error::other(format!("resets: {}", answer.escape_ascii()))) }
}

/// Everything that comes until the end.
async fn read(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut answer = Vec::new();
    // A reset after the last byte is an end as well.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends");
    answer
}

/// Sends all of it, and wants an answer that begins so, or a reset.
async fn refused(stream: TcpStream, bytes: &[u8], status: &str) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let send = async { writer.write_all(bytes).await };
    let (_, answer) = tokio::join!(send, read(&mut reader));
    let answer = String::from_utf8_lossy(&answer);
    if answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")) {
        return Ok(());
    }
    Err(io::Error::other(format!("{status} was expected: {answer}")))
}

async fn large_header(target: Arc<Target>) -> io::Result<()> {
    let bytes = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx-large: {}", "x".repeat(100_000));
    refused(target.plainly().await?, bytes.as_bytes(), "431").await
}

async fn large_body(target: Arc<Target>) -> io::Result<()> {
    let head = "POST /_matrix/client/v3/login HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length:";
    let bytes = format!("{head} 3000000\r\n\r\n{}", " ".repeat(3_000_000));
    refused(target.plainly().await?, bytes.as_bytes(), "413").await
}

async fn garbage(target: Arc<Target>) -> io::Result<()> {
    refused(target.at_tls().await?, b"\x16\x03\x01\x00\x20 nothing that anybody understands", "never").await.or_else(
        // An alert of TLS: that it did not understand.
        |error| if error.to_string().contains('\u{15}') { Ok(()) } else { Err(error) },
    )
}

/// HTTP where TLS is spoken gets a hint.
async fn plain_at_tls(target: Arc<Target>) -> io::Result<()> {
    refused(target.at_tls().await?, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", "400").await
}

/// Asks for another name, and then does not like the certificate.
async fn wrong_name(target: Arc<Target>) -> io::Result<()> {
    match target.encrypted("elsewhere.example").await {
        Ok(_) => Err(io::Error::other("there is a certificate for elsewhere.example")),
        Err(_) => Ok(()),
    }
}

/// What an attack came to: how often it was made, and what was not as it should be.
#[derive(Default)]
struct Toll {
    made: AtomicUsize,
    faults: Mutex<BTreeMap<String, usize>>,
}

/// Attacks under way.
struct Attacks {
    target: Arc<Target>,
    over: Arc<AtomicBool>,
    tolls: Vec<(&'static str, Arc<Toll>)>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Attacks {
    /// Makes an attack again and again, from `at_once` sides.
    fn begin<F, Fut>(&mut self, name: &'static str, at_once: usize, attack: F)
    where
        F: Fn(Arc<Target>) -> Fut + Copy + Send + 'static,
        Fut: Future<Output = io::Result<()>> + Send,
    {
        let toll = Arc::new(Toll::default());
        for _ in 0..at_once {
            let (target, over, toll) = (Arc::clone(&self.target), Arc::clone(&self.over), Arc::clone(&toll));
            self.tasks.push(tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match attack(Arc::clone(&target)).await {
                        Ok(()) => _ = toll.made.fetch_add(1, Ordering::Relaxed),
                        // To be sent away is what hostile connections are for.
                        Err(error) if error.kind() == io::ErrorKind::Other => {
                            *toll.faults.lock().unwrap().entry(error.to_string()).or_default() += 1;
                        }
                        Err(_) => _ = toll.made.fetch_add(1, Ordering::Relaxed),
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            }));
        }
        self.tolls.push((name, toll));
    }
}

/// The well-behaved client, in a thread of its own, so that it does not wait for the attackers' turns: nine requests on a
/// connection that it has, and each tenth on a new one. Returns the time that one of a hundred took longer than.
async fn well_behaved(scene: &Scene, token: &str) -> Duration {
    let (kept, token) = (scene.client().with_token(token), token.to_owned());
    let fresh: Vec<_> = (0..GOOD_REQUESTS / 10).map(|_| scene.client().with_token(&token)).collect();
    let asked = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut times = Vec::new();
            for number in 0..GOOD_REQUESTS {
                let client = if number % 10 == 0 { &fresh[number / 10] } else { &kept };
                let begun = Instant::now();
                let answer = client.get("account/whoami").await;
                times.push(begun.elapsed());
                assert_eq!(answer.status, 200, "{answer}");
                sleep(Duration::from_millis(5)).await;
            }
            times.sort();
            times[GOOD_REQUESTS * 99 / 100 - 1]
        })
    });
    asked.await.unwrap()
}

/// All kinds of hostile clients at once, hundreds of connections: each is dealt with as it should be, and a well-behaved
/// one is answered within a tenth of a second, but for one request of a hundred. A machine that cannot even do that
/// without the attack is given in proportion: the same client asks before and after.
#[test]
fn good_clients_do_not_notice() {
    run(async {
        let scene = Scene::set().await;
        let token = scene.server.register("alice").await.token().unwrap().to_owned();
        let before = well_behaved(&scene, &token).await;

        let over = Arc::new(AtomicBool::new(false));
        let mut attacks =
            Attacks { target: scene.target(), over: Arc::clone(&over), tolls: Vec::new(), tasks: Vec::new() };
        attacks.begin("half open", 200, half_open);
        attacks.begin("slow header", 100, slow_header);
        attacks.begin("slow body", 100, slow_body);
        attacks.begin("slow handshake", 100, slow_handshake);
        attacks.begin("rapid resets", 2, rapid_resets);
        attacks.begin("large header", 2, large_header);
        attacks.begin("large body", 2, large_body);
        attacks.begin("garbage", 4, garbage);
        attacks.begin("plain at TLS", 2, plain_at_tls);
        attacks.begin("wrong name", 2, wrong_name);
        eventually("every attack was made", PATIENCE, async || {
            attacks.tolls.iter().all(|(_, toll)| toll.made.load(Ordering::Relaxed) > 0).then_some(())
        })
        .await;
        let during = well_behaved(&scene, &token).await;
        over.store(true, Ordering::Relaxed);
        for task in attacks.tasks.drain(..) {
            task.await.unwrap();
        }
        for (name, toll) in &attacks.tolls {
            let faults = toll.faults.lock().unwrap();
            println!("{name}: {} times", toll.made.load(Ordering::Relaxed));
            assert!(faults.is_empty(), "{name}: {faults:?}");
        }

        let after = well_behaved(&scene, &token).await;
        let allowed = GOOD_TIME.max(before.max(after) * GOOD_FACTOR);
        println!("of a hundred requests one took longer than {before:?} before, {during:?} during, {after:?} after");
        assert!(during <= allowed, "{during:?} during the attack, {before:?} before and {after:?} after");
    });
}

/// The limit that leaves a process so many descriptors: it is one on their numbers.
fn limit_that_leaves(process: u32, spare: usize) -> usize {
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let used: Vec<usize> = files.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    (0..).filter(|number| !used.contains(number)).nth(spare).unwrap()
}

fn limit_files(process: u32, files: usize) {
    let (process, limit) = (process.to_string(), format!("--nofile={files}:"));
    let status = Command::new("prlimit").args(["--pid", &process, &limit]).status().expect("run prlimit");
    assert!(status.success(), "prlimit: {status}");
}

/// When no file descriptor is left, who comes is sent away at once and does not hang, who is there already is served, and
/// when there are some again, everybody is.
#[test]
fn without_file_descriptors() {
    run(async {
        const SPARE: usize = 8;
        const CLIENTS: usize = 30;
        let scene = Scene::set().await;
        let (there, process) = (scene.client(), scene.server.process());
        there.get("/_matrix/client/versions").await.ok();
        limit_files(process, limit_that_leaves(process, SPARE));

        let mut kept = Vec::new();
        let mut sent_away = 0;
        for number in 0..CLIENTS {
            let port = if number % 2 == 0 { scene.plain() } else { scene.tls };
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // Who is let in hears nothing, since it says nothing; who is not sees the end of the connection.
            let mut first = [0];
            match timeout(Duration::from_secs(1), stream.read(&mut first)).await {
                Ok(_) => sent_away += 1,
                Err(_) => kept.push(stream),
            }
        }
        assert!((1..=SPARE).contains(&kept.len()), "{} were let in", kept.len());
        assert_eq!(sent_away, CLIENTS - kept.len());
        there.get("/_matrix/client/versions").await.ok();
        let refused = scene.client().send(reqwest::Method::GET, "/_matrix/client/versions", "").await;
        assert!(refused.as_ref().is_err() || refused.is_ok_and(|answer| answer.status == 503));

        drop(kept);
        eventually("there is room again", PATIENCE, async || {
            let answer = scene.client().send(reqwest::Method::GET, "/_matrix/client/versions", "").await;
            answer.ok().filter(|answer| answer.status == 200)
        })
        .await;
        limit_files(process, 1024);
        let metrics = scene.server.metrics().get("/metrics").await.text();
        let line = metrics.lines().find(|line| line.starts_with("myelin_connections_refused_total{reason=\"files\"}"));
        let counted: usize = line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap());
        assert!(counted >= sent_away, "{line:?}");
    });
}
