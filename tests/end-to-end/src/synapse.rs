use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use tempfile::TempDir;

use crate::{
    api::Api,
    eventually,
    federation::Authority,
    free_port,
    process::{mortal, spawn},
};

/// It makes its database first, on a machine that may be busy.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// The end of the log that a failed test shows.
const LOG_SHOWN_BYTES: usize = 20_000;

/// Limits on how often something may be done.
const RATE_LIMITS: [&str; 12] = [
    "rc_message",
    "rc_registration",
    "rc_admin_redaction",
    "rc_third_party_invite",
    "rc_media_create",
    "rc_reports",
    "rc_room_creation",
    "rc_joins_per_room",
    "rc_key_requests",
    "rc_delayed_event_mgmt",
    "rc_user_directory",
    "rc_profile",
];

/// Synapse, another homeserver, as a peer that knows nothing of Myelin, with its data in a folder that is removed with
/// it.
pub struct Synapse {
    folder: TempDir,
    api: Api,
    child: Option<Child>,
}

impl Synapse {
    /// Starts one with an empty database that lets everybody register, and serves other servers at a loopback port.
    ///
    /// # Panics
    ///
    /// When it is not installed, or does not start; the message shows its log.
    pub(crate) async fn start(name: &str, federation_port: u16, authority: &Authority) -> Self {
        let folder = tempfile::Builder::new().prefix("myelin-synapse-").tempdir().expect("make a folder");
        let port = free_port();
        let config = configuration(folder.path(), name, port, federation_port, authority);
        fs::write(folder.path().join("homeserver.yaml"), config).expect("write the configuration");
        let seed = BASE64_STANDARD_NO_PAD.encode(rand::random::<[u8; 32]>());
        fs::write(folder.path().join("signing.key"), format!("ed25519 a_test {seed}\n")).expect("write the key");
        let mut synapse = Self { folder, api: Api::new(format!("http://127.0.0.1:{port}")), child: None };
        synapse.start_again().await;
        synapse
    }

    /// A client that has not logged in.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Starts it on the data that it has, and waits until it is ready.
    pub(crate) async fn start_again(&mut self) {
        assert!(self.child.is_none(), "Synapse is already running");
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("open the log");
        let mut command = mortal(&python());
        command
            .args(["-m", "synapse.app.homeserver", "--config-path", "homeserver.yaml"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        let child = self.child.insert(spawn(command).expect("start Synapse"));
        let api = &self.api;
        let started = eventually("Synapse is ready", START_TIMEOUT, || {
            let ended = child.try_wait().expect("ask for Synapse's status");
            async move {
                if let Some(status) = ended {
                    return Some(Err(status));
                }
                let answer = api.send(reqwest::Method::GET, "/health", "").await.ok()?;
                (answer.status == 200).then_some(Ok(()))
            }
        });
        let started: Result<(), ExitStatus> = started.await;
        assert!(started.is_ok(), "Synapse did not start: {started:?}\n{}", self.log_text());
    }

    /// Asks it to end and waits until it has.
    pub(crate) async fn stop(&mut self) {
        let mut child = self.child.take().expect("Synapse is running");
        let asked = Command::new("kill").arg(child.id().to_string()).status().expect("run kill");
        assert!(asked.success(), "kill: {asked}");
        eventually("Synapse ends", STOP_TIMEOUT, || {
            let status = child.try_wait().expect("ask for Synapse's status");
            async move { status }
        })
        .await;
    }

    /// Ends it in the middle of what it does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("Synapse is running");
        child.kill().and_then(|()| child.wait()).expect("kill Synapse");
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log_text(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_SHOWN_BYTES)..]).into_owned()
    }
}

impl Drop for Synapse {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- Synapse wrote\n{}\n----", self.log_text());
        }
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// The interpreter of the virtual environment that Synapse is installed in: that of `SYNAPSE_VENV`, which
/// `tests/environment.sh` sets.
///
/// # Panics
///
/// When it is not there.
fn python() -> PathBuf {
    let folder = std::env::var_os("SYNAPSE_VENV").map(PathBuf::from).expect(
        "SYNAPSE_VENV: the folder of a virtual environment of Python with `matrix-synapse` in it, as `tests/run` makes it",
    );
    let python = folder.join("bin/python");
    assert!(python.is_file(), "no Python at {}", python.display());
    python
}

/// What is not said here is as Synapse has it, but that nothing slows the tests down.
fn configuration(folder: &Path, name: &str, port: u16, federation_port: u16, authority: &Authority) -> String {
    let folder = folder.display();
    let mut yaml = format!(
        "server_name: '{name}'
public_baseurl: 'http://127.0.0.1:{port}/'
pid_file: '{folder}/pid'
signing_key_path: '{folder}/signing.key'
media_store_path: '{folder}/media'
database: {{ name: sqlite3, args: {{ database: '{folder}/homeserver.db' }} }}
listeners:
  - {{ port: {port}, bind_addresses: ['127.0.0.1'], type: http, resources: [ {{ names: [client] }} ] }}
  - {{ port: {federation_port}, bind_addresses: ['127.0.0.1'], type: http, tls: true, resources: [ {{ names: [federation] }} ] }}
tls_certificate_path: '{certificate}'
tls_private_key_path: '{key}'
federation_custom_ca_list: ['{root}']
ip_range_blacklist: []
federation_ip_range_blacklist: []
trusted_key_servers: []
report_stats: false
enable_registration: true
enable_registration_without_verification: true
registration_shared_secret: 'the secret of the operators'
allow_public_rooms_over_federation: true
room_list_publication_rules: [{{ action: allow }}]
bcrypt_rounds: 4
federation: {{ destination_min_retry_interval: 100, destination_retry_multiplier: 1, destination_max_retry_interval: 500 }}
federation_rr_transactions_per_room_per_second: 1000
rc_federation: {{ window_size: 1000, sleep_limit: 100000, sleep_delay: 1, reject_limit: 100000, concurrent: 100 }}
rc_login: {{ address: {UNLIMITED}, account: {UNLIMITED}, failed_attempts: {UNLIMITED} }}
rc_presence: {{ per_user: {UNLIMITED} }}
rc_joins: {{ local: {UNLIMITED}, remote: {UNLIMITED} }}
rc_invites: {{ per_room: {UNLIMITED}, per_user: {UNLIMITED}, per_issuer: {UNLIMITED} }}
",
        certificate = authority.certificate().display(),
        key = authority.private_key().display(),
        root = authority.root().display(),
    );
    for limit in RATE_LIMITS {
        writeln!(yaml, "{limit}: {UNLIMITED}").expect("a string can be written to");
    }
    yaml
}

const UNLIMITED: &str = "{ per_second: 100000, burst_count: 100000 }";
