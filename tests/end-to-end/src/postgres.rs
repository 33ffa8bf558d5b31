use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::process::free_port;

const SUPERUSER: &str = "myelin";

/// What waits beside a cluster until the test process closes the pipe, by dropping the cluster or by dying, then stops
/// the cluster and removes its folder. Arguments: `pg_ctl`, the folder, and the words that change the user.
const KEEPER: &str = r#"cat >/dev/null; ctl=$1; folder=$2; shift 2
"$@" "$ctl" stop -D "$folder/data" -m immediate -w -t 60; rm -rf "$folder""#;

/// A PostgreSQL cluster of the tests' own, durable as in production, on a loopback port.
///
/// Stopped and removed when dropped, and also when the test process dies.
pub struct Postgres {
    binaries: PathBuf,
    folder: PathBuf,
    port: u16,
    databases: AtomicU32,
    keeper: Child,
}

impl Postgres {
    /// The cluster that the tests of one test binary share. It is removed when the process ends.
    pub fn shared() -> &'static Self {
        static CLUSTER: OnceLock<Postgres> = OnceLock::new();
        CLUSTER.get_or_init(Self::start)
    }

    /// Makes a cluster and starts it.
    ///
    /// # Panics
    ///
    /// When PostgreSQL is not installed, or does not start; the message shows its log.
    pub fn start() -> Self {
        let binaries = binaries();
        let folder = PathBuf::from(output(as_server_user("mktemp").args(["-d", "/tmp/myelin-postgres-XXXXXXXX"])));
        let keeper = keeper(&binaries, &folder);
        let cluster = Self { binaries, folder, port: free_port(), databases: AtomicU32::new(0), keeper };
        output(
            as_server_user(cluster.binaries.join("initdb"))
                .args(["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync"])
                .arg("--pgdata")
                .arg(cluster.data()),
        );
        cluster.configure();
        cluster.start_again();
        cluster
    }

    /// Makes an empty database and returns its URL.
    pub fn create_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        output(
            Command::new(self.binaries.join("createdb"))
                .args(["--host", "127.0.0.1", "--username", SUPERUSER, "--port"])
                .arg(self.port.to_string())
                .arg(&name),
        );
        format!("postgres://{SUPERUSER}@127.0.0.1:{}/{name}", self.port)
    }

    /// Stops the server without a word to its clients and without a checkpoint, as a crash does.
    pub fn stop(&self) {
        self.pg_ctl(["stop", "--mode", "immediate"]);
    }

    /// Starts the server on the data and the port that it had.
    pub fn start_again(&self) {
        self.pg_ctl([OsStr::new("start"), OsStr::new("--log"), self.log().as_os_str()]);
    }

    fn configure(&self) {
        let settings = format!(
            "port = {}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 400\n\
             fsync = on\nsynchronous_commit = on\nfull_page_writes = on\nautovacuum = on\n",
            self.port
        );
        OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(settings.as_bytes()))
            .expect("append to postgresql.conf");
    }

    fn pg_ctl(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
        // Not `output`: the server inherits what pg_ctl writes to, and would hold the pipe open.
        let status = as_server_user(self.binaries.join("pg_ctl"))
            .args(arguments)
            .args(["--wait", "--timeout", "60", "--pgdata"])
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("run pg_ctl");
        assert!(status.success(), "pg_ctl: {status}; its log:\n{}", self.log_text());
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn log_text(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_else(|error| format!("no log: {error}"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            eprintln!("the cluster in {} may be left over: {error}", self.folder.display());
        }
    }
}

/// The folder of the server's programs: `PGBIN`, or the newest that the distribution's packages installed.
fn binaries() -> PathBuf {
    if let Some(folder) = std::env::var_os("PGBIN") {
        return folder.into();
    }
    let version = |folder: &Path| folder.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    installed
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").is_file())
        .max_by_key(|folder| version(folder))
        .expect("PostgreSQL's server programs: install the package `postgresql`, or set PGBIN to their folder")
}

/// A command that runs as a user that PostgreSQL accepts: it refuses root.
fn as_server_user(program: impl AsRef<OsStr>) -> Command {
    let mut words = user_change().iter().map(OsStr::new).chain([program.as_ref()]);
    let mut command = Command::new(words.next().expect("there is at least the program"));
    command.args(words).current_dir("/");
    command
}

fn user_change() -> &'static [&'static str] {
    static ROOT: OnceLock<bool> = OnceLock::new();
    if *ROOT.get_or_init(|| output(Command::new("id").arg("-u")) == "0") {
        &["setpriv", "--reuid", "postgres", "--regid", "postgres", "--init-groups", "--"]
    } else {
        &[]
    }
}

fn keeper(binaries: &Path, folder: &Path) -> Child {
    Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(binaries.join("pg_ctl"))
        .arg(folder)
        .args(user_change())
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // an interrupt from the keyboard must not end it before its work is done
        .spawn()
        .expect("start the shell that removes the cluster")
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(cluster: &Postgres, url: &str, statement: &str) -> String {
        output(Command::new(cluster.binaries.join("psql")).args(["-XAt", "-c", statement, url]))
    }

    /// A cluster keeps its data over a crash, and leaves nothing behind.
    #[test]
    fn cluster_survives_a_crash_and_is_removed() {
        let cluster = Postgres::start();
        let url = cluster.create_database();
        ask(&cluster, &url, "CREATE TABLE word (word text); INSERT INTO word VALUES ('kept')");
        cluster.stop();
        cluster.start_again();
        assert_eq!(ask(&cluster, &url, "SELECT word FROM word"), "kept");
        assert_eq!(ask(&cluster, &url, "SHOW fsync"), "on");

        let folder = cluster.folder.clone();
        assert!(folder.exists());
        drop(cluster);
        assert!(!folder.exists());
    }
}
