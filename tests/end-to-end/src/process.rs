use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{LazyLock, mpsc},
    thread,
};

/// A loopback port that nobody listens on.
///
/// It lies below the range that the kernel hands out to outgoing connections: a client that keeps dialling a port of
/// that range while nobody listens may one day be given the same port to dial from, and so talk to itself.
///
/// # Panics
///
/// When no port of many tried is free.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| rand::random_range(12_000..32_000))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one loopback port of a thousand is free")
}

/// The command that runs `program` and is killed by the kernel when the test process dies, however it dies.
pub(crate) fn mortal(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Spawns a [`mortal`] command.
///
/// The kernel watches the thread that spawned a child, not its process, so all are spawned by one thread that stays as
/// long as the process does.
pub(crate) fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    // Whoever ordered has gone when the answer finds no reader; the child dies with this process.
                    drop(answer.send(command.spawn()));
                }
            })
            .expect("start the spawner thread");
        orders
    });
    let (answer, child) = mpsc::channel();
    SPAWNER.send((command, answer)).expect("the spawner thread lives as long as the process");
    child.recv().expect("the spawner thread answers each order")
}

/// Another program, running until this is dropped. What it wrote is shown if the test fails.
pub struct Program {
    name: &'static str,
    folder: tempfile::TempDir,
    child: Child,
}

impl Program {
    /// Starts a program of the machine, with an empty folder as its home.
    ///
    /// # Panics
    ///
    /// When it cannot be started.
    pub fn start<'a>(name: &'static str, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        let folder = tempfile::Builder::new().prefix("myelin-program-").tempdir().expect("make a folder");
        let output = File::create(folder.path().join("output")).expect("make a file");
        let mut command = mortal(Path::new(name));
        command
            .args(arguments)
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("share the file"))
            .stdout(output);
        let child = spawn(command).unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name, folder, child }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if thread::panicking() {
            let output = fs::read(self.folder.path().join("output")).unwrap_or_default();
            eprintln!("---- {} wrote\n{}\n----", self.name, String::from_utf8_lossy(&output));
        }
        self.child.kill().and_then(|()| self.child.wait()).expect("end the program");
    }
}
