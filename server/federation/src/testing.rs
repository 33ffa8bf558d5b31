//! Other servers for tests: real sockets and TLS on loopback, names that are made up.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use myelin_store::{Store, testing::Fresh};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ruma::OwnedServerName;
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{Client, ClientOptions, Dns, DnsError, Ports, Srv};

/// A certificate authority that only the tests believe.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    pub(crate) fn config(&self, names: &[&str], alpn: &[&str]) -> Arc<ServerConfig> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// A request as a peer saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) sni: Option<String>,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) is_http2: bool,
    pub(crate) connection: usize,
}

/// What a peer answers.
pub(crate) type Handler = Arc<dyn Fn(Request<Bytes>) -> BoxFuture<'static, Response<Full<Bytes>>> + Send + Sync>;

/// A server that answers whatever the test wants.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) open_max: Arc<AtomicUsize>,
    /// Changed, all connections end.
    cut: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Peer {
    pub(crate) async fn new(config: Arc<ServerConfig>, handler: Handler) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (open, open_max) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let cut = watch::Sender::new(());
        let all = (seen.clone(), open.clone(), open_max.clone(), cut.subscribe());
        let task = tokio::spawn(async move {
            let (seen, open, open_max, cut) = all;
            let acceptor = TlsAcceptor::from(config);
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, handler, seen) = (acceptor.clone(), handler.clone(), seen.clone());
                let (open, open_max, mut cut) = (open.clone(), open_max.clone(), cut.clone());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let tls = stream.get_ref().1;
                    let sni = tls.server_name().map(str::to_owned);
                    let is_http2 = tls.alpn_protocol() == Some(b"h2");
                    let service = service_fn(|request: Request<Incoming>| {
                        let host = match request.uri().authority() {
                            Some(authority) => authority.to_string(),
                            None => request.headers()["host"].to_str().unwrap().to_owned(),
                        };
                        let path = request.uri().path_and_query().unwrap().to_string();
                        seen.lock().push(Seen { sni: sni.clone(), host, path, is_http2, connection });
                        let handler = handler.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            Ok::<_, hyper::Error>(handler(Request::from_parts(head, body)).await)
                        }
                    });
                    let now = open.fetch_add(1, Ordering::SeqCst) + 1;
                    open_max.fetch_max(now, Ordering::SeqCst);
                    let stream = TokioIo::new(stream);
                    let serving = async {
                        // What the client does to the connection is the client's test.
                        let _ = match is_http2 {
                            true => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await,
                            false => http1::Builder::new().serve_connection(stream, service).await,
                        };
                    };
                    tokio::select! {
                        () = serving => {}
                        _ = cut.changed() => {}
                    }
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, seen, open, open_max, cut, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// Ends all connections.
    pub(crate) async fn cut(&self) {
        self.cut.send_replace(());
        until(|| self.open.load(Ordering::SeqCst) == 0).await;
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
        self.cut.send_replace(());
    }
}

/// Waits for a condition that other tasks bring about.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the condition comes true");
}

pub(crate) fn handler<F>(answer: impl Fn(Request<Bytes>) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    Arc::new(move |request| Box::pin(answer(request)))
}

pub(crate) fn json(status: u16, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.into())));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A peer that answers the same to everything.
pub(crate) fn always(status: u16, body: &str) -> Handler {
    let body = body.to_owned();
    handler(move |_| std::future::ready(json(status, body.clone())))
}

/// Names that are made up.
#[derive(Default)]
pub(crate) struct FakeDns {
    pub(crate) addresses: HashMap<String, Vec<IpAddr>>,
    pub(crate) services: HashMap<String, Vec<Srv>>,
    pub(crate) asked: Mutex<Vec<String>>,
}

impl FakeDns {
    /// All these names are this machine.
    pub(crate) fn here(names: &[&str]) -> Self {
        let here = || vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        Self { addresses: names.iter().map(|name| (name.to_string(), here())).collect(), ..Self::default() }
    }

    pub(crate) fn service(mut self, name: &str, target: &str, port: u16) -> Self {
        let srv = Srv { priority: 1, weight: 1, port, target: target.to_owned() };
        self.services.entry(name.to_owned()).or_default().push(srv);
        self
    }
}

impl Dns for FakeDns {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsError>> {
        self.asked.lock().push(host.to_owned());
        Box::pin(std::future::ready(Ok(self.addresses.get(host).cloned().unwrap_or_default())))
    }

    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Srv>, DnsError>> {
        self.asked.lock().push(name.to_owned());
        Box::pin(std::future::ready(Ok(self.services.get(name).cloned().unwrap_or_default())))
    }
}

/// A client with a database of its own.
pub(crate) struct Ours {
    pub(crate) client: Arc<Client>,
    pub(crate) store: Arc<Store>,
    pub(crate) fresh: Fresh,
}

pub(crate) fn own_name() -> OwnedServerName {
    myelin_store::testing::SERVER_NAME.try_into().unwrap()
}

/// A client that believes the tests' authority and finds names by `dns`.
pub(crate) async fn ours(
    authority: &Authority,
    dns: FakeDns,
    ports: Ports,
    change: impl FnOnce(&mut ClientOptions),
) -> Ours {
    let fresh = Fresh::sqlite();
    let store = fresh.open().await;
    let client = client(&store, authority, dns, ports, change).await;
    Ours { client, store, fresh }
}

pub(crate) async fn client(
    store: &Arc<Store>,
    authority: &Authority,
    dns: FakeDns,
    ports: Ports,
    change: impl FnOnce(&mut ClientOptions),
) -> Arc<Client> {
    let mut options = ClientOptions {
        trusted_ca_file: Some(authority.path()),
        only_trusted_ca_file: true,
        allow_private_addresses: true,
        dns: Some(Arc::new(dns)),
        ports,
        ..ClientOptions::new(own_name())
    };
    change(&mut options);
    Client::new(Arc::clone(store), options).await.unwrap()
}
