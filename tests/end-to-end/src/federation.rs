use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use toml::{Table, Value};

use crate::{
    Engine, Homeserver, Setup, Synapse,
    api::{Api, Person},
    free_port,
};

/// A certificate authority of a test's own, that the servers of one private federation trust, and a certificate of it
/// for `localhost`, that all of them have.
pub struct Authority {
    folder: TempDir,
}

impl Authority {
    /// Makes one.
    ///
    /// # Panics
    ///
    /// When the temporary folder cannot be written to.
    pub fn new() -> Self {
        let authority =
            Self { folder: tempfile::Builder::new().prefix("myelin-ca-").tempdir().expect("make a folder") };
        let mut params = CertificateParams::new(Vec::new()).expect("an authority has no names");
        // Names that differ: OpenSSL takes a certificate that names itself as its issuer for a root.
        params.distinguished_name.push(DnType::CommonName, "The tests' authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("make a key");
        let root = params.self_signed(&key).expect("sign the root");
        fs::write(authority.root(), root.pem()).expect("write the root");

        let mut names = CertificateParams::new(vec!["localhost".to_owned()]).expect("localhost is a name");
        names.distinguished_name.push(DnType::CommonName, "localhost");
        let key_of_all = KeyPair::generate().expect("make a key");
        let certificate = names.signed_by(&key_of_all, &Issuer::new(params, key)).expect("sign a certificate");
        fs::write(authority.certificate(), certificate.pem()).expect("write the certificate");
        fs::write(authority.private_key(), key_of_all.serialize_pem()).expect("write its key");
        authority
    }

    /// The root, in PEM.
    pub fn root(&self) -> PathBuf {
        self.path("root.pem")
    }

    /// The certificate for `localhost`, in PEM.
    pub fn certificate(&self) -> PathBuf {
        self.path("certificate.pem")
    }

    /// Its private key, in PEM.
    pub fn private_key(&self) -> PathBuf {
        self.path("key.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// The way by which other servers reach one server. It can be cut, which looks like an outage of the server to them,
/// and not to its users.
pub struct Gate {
    port: u16,
    is_open: Arc<watch::Sender<bool>>,
}

impl Gate {
    /// Opens a way to a loopback port. It listens as long as the runtime runs.
    ///
    /// # Panics
    ///
    /// When no port is free.
    pub async fn to(target: u16) -> Self {
        let (listener, port) = loop {
            let port = free_port();
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
                break (listener, port);
            }
        };
        let is_open = Arc::new(watch::Sender::new(true));
        tokio::spawn(take_connections(listener, target, Arc::clone(&is_open)));
        Self { port, is_open }
    }

    /// Closes every connection, and each that comes.
    pub fn cut(&self) {
        self.is_open.send_replace(false);
    }

    /// Lets connections pass again.
    pub fn heal(&self) {
        self.is_open.send_replace(true);
    }
}

async fn take_connections(listener: TcpListener, target: u16, is_open: Arc<watch::Sender<bool>>) {
    while let Ok((inner, _)) = listener.accept().await {
        let mut state = is_open.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                _ = state.wait_for(|is_open| !is_open) => {}
                () = pass(inner, target) => {}
            }
        });
    }
}

async fn pass(mut inner: TcpStream, target: u16) {
    // Where the server is down, the connection closes, as it would without us.
    if let Ok(mut outer) = TcpStream::connect(("127.0.0.1", target)).await {
        let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
    }
}

/// A homeserver that talks with others, over TLS, as `localhost:PORT`.
pub struct Peer {
    name: String,
    gate: Gate,
    program: Program,
}

enum Program {
    Myelin(Homeserver),
    Synapse(Synapse),
}

impl Peer {
    /// The release binary.
    pub async fn myelin(engine: Engine, authority: &Authority) -> Self {
        Self::myelin_with(Setup::new(engine), authority).await
    }

    /// The release binary with a configuration, to which everything about federation is added.
    pub async fn myelin_with(setup: Setup, authority: &Authority) -> Self {
        let port = free_port();
        let gate = Gate::to(port).await;
        let name = format!("localhost:{}", gate.port);
        let mut listener = Table::new();
        listener.insert("address".to_owned(), format!("127.0.0.1:{port}").into());
        listener.insert("resources".to_owned(), vec!["federation"].into());
        listener.insert("tls".to_owned(), true.into());
        let path = |path: &Path| path.display().to_string();
        let setup = setup
            .listen(Value::Table(listener))
            .set("server_name", name.as_str())
            .set("tls.mode", "files")
            .set("tls.certificate", path(&authority.certificate()))
            .set("tls.private_key", path(&authority.private_key()))
            .set("federation.trusted_ca_file", path(&authority.root()))
            .set("federation.allow_private_addresses", true)
            .set("federation.trusted_key_servers", Vec::<String>::new());
        Self { name, gate, program: Program::Myelin(setup.start().await) }
    }

    /// A Synapse.
    pub async fn synapse(authority: &Authority) -> Self {
        let port = free_port();
        let gate = Gate::to(port).await;
        let name = format!("localhost:{}", gate.port);
        let synapse = Synapse::start(&name, port, authority).await;
        Self { name, gate, program: Program::Synapse(synapse) }
    }

    /// Its server name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A client that has not logged in.
    pub fn api(&self) -> &Api {
        match &self.program {
            Program::Myelin(server) => server.api(),
            Program::Synapse(server) => server.api(),
        }
    }

    /// A client of the listener that gives metrics.
    ///
    /// # Panics
    ///
    /// When it is no Myelin.
    pub fn metrics(&self) -> Api {
        match &self.program {
            Program::Myelin(server) => server.metrics(),
            Program::Synapse(_) => panic!("metrics are Myelin's"),
        }
    }

    /// Registers an account.
    pub async fn register(&self, name: &str) -> Person {
        Person::register(self.api(), name).await
    }

    /// Cuts it off from the other servers, which cannot reach it any longer; it still reaches those that are not cut
    /// off themselves.
    pub fn cut(&self) {
        self.gate.cut();
    }

    /// Ends [`Self::cut`].
    pub fn heal(&self) {
        self.gate.heal();
    }

    /// Ends it and waits until it has.
    pub async fn stop(&mut self) {
        match &mut self.program {
            Program::Myelin(server) => assert!(server.terminate().await.success(), "it ends well"),
            Program::Synapse(server) => server.stop().await,
        }
    }

    /// Ends it without a warning.
    pub fn kill(&mut self) {
        match &mut self.program {
            Program::Myelin(server) => server.kill(),
            Program::Synapse(server) => server.kill(),
        }
    }

    /// Starts it on the data that it has.
    pub async fn start_again(&mut self) {
        match &mut self.program {
            Program::Myelin(server) => server.start_again().await,
            Program::Synapse(server) => server.start_again().await,
        }
    }
}
