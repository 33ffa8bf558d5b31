use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use toml::{Table, Value};

use crate::{
    Engine, Postgres,
    api::{Api, Person},
    eventually,
    process::{free_port, mortal, spawn},
};

/// The name that the homeserver goes by.
pub const SERVER_NAME: &str = "myelin.test";

/// The secret that operators' tools register accounts with.
pub const SHARED_SECRET: &str = "the secret of the operators";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// The end of the log that a failed test shows.
const LOG_SHOWN_BYTES: usize = 20_000;

/// A homeserver that is configured but not started.
pub struct Setup {
    folder: TempDir,
    config: Table,
    port: u16,
    metrics_port: u16,
}

impl Setup {
    /// An empty homeserver on an engine; on PostgreSQL, in a new database of the shared cluster.
    pub fn new(engine: Engine) -> Self {
        match engine {
            Engine::Postgres => Self::on_database(&Postgres::shared().create_database()),
            Engine::Sqlite => {
                let setup = Self::on_database("");
                let file = setup.folder.path().join("myelin.db");
                setup.set("database.url", format!("sqlite://{}", file.display()))
            }
        }
    }

    /// A homeserver on a database of one's own.
    pub fn on_database(url: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("myelin-test-").tempdir().expect("make a folder");
        let (port, metrics_port) = (free_port(), free_port());
        let listener = |port: u16, resources: &[&str]| {
            let mut table = Table::new();
            table.insert("address".to_owned(), format!("127.0.0.1:{port}").into());
            table.insert("resources".to_owned(), resources.to_vec().into());
            Value::Table(table)
        };
        let listeners =
            vec![listener(port, &["client", "admin", "health"]), listener(metrics_port, &["metrics", "health"])];
        let data = folder.path().join("data").display().to_string();
        Self { folder, config: Table::new(), port, metrics_port }
            .set("server_name", SERVER_NAME)
            .set("public_baseurl", format!("http://127.0.0.1:{port}"))
            .set("data_dir", data)
            .set("database.url", url)
            .set("listeners", listeners)
            .set("registration.enabled", true)
            .set("registration.require_token", false)
            .set("registration.shared_secret", SHARED_SECRET)
            .set("rate_limits.enabled", false)
    }

    /// Sets a configuration key, given as `section.key`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let (sections, key) = key.rsplit_once('.').unwrap_or(("", key));
        let mut table = &mut self.config;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            table = table
                .entry(section)
                .or_insert_with(|| Table::new().into())
                .as_table_mut()
                .expect("a section of the configuration is a table");
        }
        table.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a listener.
    #[must_use]
    pub fn listen(mut self, listener: Value) -> Self {
        let listeners = self.config.get_mut("listeners").and_then(Value::as_array_mut);
        listeners.expect("listeners are set from the beginning").push(listener);
        self
    }

    /// The port that clients are served on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the homeserver and waits until it is ready.
    pub async fn start(self) -> Homeserver {
        let mut server =
            Homeserver { api: Api::new(format!("http://127.0.0.1:{}", self.port)), setup: self, child: None };
        server.start_again().await;
        server
    }

    /// Starts the homeserver and waits until it gives up, as it must.
    ///
    /// # Panics
    ///
    /// When it runs on.
    pub async fn fail(self) -> Exit {
        let mut child = self.spawn();
        let api = Api::new(format!("http://127.0.0.1:{}", self.metrics_port));
        let gives_up = exit(&mut child, "the homeserver gives up", START_TIMEOUT);
        let status = tokio::select! {
            status = gives_up => Some(status),
            () = ready(&api) => None,
        };
        let Some(status) = status else {
            child.kill().and_then(|()| child.wait()).expect("kill the homeserver");
            panic!("the homeserver started, which it must not:\n{}", self.log_text());
        };
        Exit { status, log: self.log_text() }
    }

    fn spawn(&self) -> Child {
        let file = self.folder.path().join("myelin.toml");
        fs::write(&file, toml::to_string(&self.config).expect("write TOML")).expect("write the configuration");
        let log = OpenOptions::new().create(true).append(true).open(self.log()).expect("open the log");
        let mut command = mortal(&binary());
        command
            .arg("serve")
            .arg("--config")
            .arg(&file)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log);
        spawn(command).expect("start the homeserver")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn log_text(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let shown = &log[log.len().saturating_sub(LOG_SHOWN_BYTES)..];
        String::from_utf8_lossy(shown).into_owned()
    }
}

/// How a homeserver that could not start ended.
#[derive(Debug)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote.
    pub log: String,
}

/// The release binary, running, with its data in a folder that is removed with it.
pub struct Homeserver {
    setup: Setup,
    api: Api,
    child: Option<Child>,
}

impl Homeserver {
    /// Starts an empty homeserver that lets everybody register, and waits until it is ready.
    pub async fn start(engine: Engine) -> Self {
        Setup::new(engine).start().await
    }

    /// Starts it again on the same data after [`Self::kill`] or [`Self::terminate`], and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it is running, ends, or is not ready in time.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "the homeserver is already running");
        let child = self.child.insert(self.setup.spawn());
        let gives_up = exit(child, "the homeserver is ready", START_TIMEOUT);
        tokio::select! {
            () = ready(&self.api) => {}
            status = gives_up => panic!("the homeserver did not start: {status}"),
        }
    }

    /// Ends it in the middle of what it does, as `kill -9` or a loss of power to the process does.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the homeserver is running");
        child.kill().and_then(|()| child.wait()).expect("kill the homeserver");
    }

    /// Runs another command of the program on the same configuration, as an operator does beside the running server.
    ///
    /// # Panics
    ///
    /// When it cannot be run.
    pub fn command(&self, arguments: &[&str], input: &str) -> Output {
        let file = self.setup.folder.path().join("myelin.toml");
        let mut command = Command::new(binary());
        command.args(arguments).arg("--config").arg(file).current_dir(self.setup.folder.path());
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("run the program");
        let mut stdin = child.stdin.take().expect("its input is piped");
        stdin.write_all(input.as_bytes()).expect("write its input");
        drop(stdin);
        child.wait_with_output().expect("wait for the program")
    }

    /// Asks it to end, as a service manager does, and does not wait.
    pub fn ask_to_end(&self) {
        self.signal("-TERM");
    }

    /// Asks it to read its configuration again.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    /// The number of its process.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn process(&self) -> u32 {
        self.child.as_ref().expect("the homeserver is running").id()
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.process().to_string()]).status().expect("run kill");
        assert!(status.success(), "kill: {status}");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the homeserver is running");
        let status = exit(child, "the homeserver ends", STOP_TIMEOUT).await;
        self.child = None;
        status
    }

    /// Asks it to end and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.ask_to_end();
        self.ended().await
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Where clients reach it, such as `http://127.0.0.1:12345`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.setup.port)
    }

    /// A client that has not logged in.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A client of the listener that gives metrics.
    pub fn metrics(&self) -> Api {
        Api::new(format!("http://127.0.0.1:{}", self.setup.metrics_port))
    }

    /// Registers an account.
    pub async fn register(&self, name: &str) -> Person {
        Person::register(&self.api, name).await
    }

    /// The configuration it runs with, to be started again with changes once it has ended.
    pub fn into_setup(mut self) -> Setup {
        assert!(self.child.is_none(), "the homeserver has ended");
        let unused = Setup::on_database("");
        std::mem::replace(&mut self.setup, unused)
    }

    /// What it wrote last.
    pub fn log_text(&self) -> String {
        self.setup.log_text()
    }
}

impl Drop for Homeserver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the homeserver wrote\n{}\n----", self.log_text());
        }
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// Waits until the homeserver says that it is ready.
async fn ready(api: &Api) {
    loop {
        if let Ok(answer) = api.send(reqwest::Method::GET, "/health/ready", "").await
            && answer.status == 200
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until a child has ended.
async fn exit(child: &mut Child, what: &str, deadline: Duration) -> ExitStatus {
    eventually(what, deadline, || {
        let status = child.try_wait().expect("ask for the homeserver's status");
        async move { status }
    })
    .await
}

/// The program under test: `MYELIN_BINARY`, or the release build in the target folder that this test was built in.
///
/// # Panics
///
/// When it is not there.
pub fn binary() -> PathBuf {
    let built = || {
        let test = std::env::current_exe().expect("the path of this test");
        test.ancestors().nth(3).expect("a test lies in TARGET/PROFILE/deps").join("release/myelin")
    };
    let path = std::env::var_os("MYELIN_BINARY").map_or_else(built, PathBuf::from);
    assert!(
        path.is_file(),
        "no homeserver at {}: build it with `cargo build --release`, or set MYELIN_BINARY to its path",
        path.display()
    );
    path
}
