//! DNS servers for the test: Debian's `bind9`, one that takes updates of `example.org`, and one that copies it.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, RecordType},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{harness::eventually, pebble::free_port};

/// Keys that the first server knows: name, algorithm, secret, and what they may change.
const KEYS: [(&str, &str, &str, &str); 3] = [
    ("short", "hmac-sha256", SECRET, "zonesub TXT"),
    ("long", "hmac-sha512", SECRET, "zonesub TXT"),
    ("elsewhere", "hmac-sha256", SECRET, "subdomain elsewhere.example.org. TXT"),
];

/// The secret of all of them.
pub(crate) const SECRET: &str = "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IQ==";

/// A server that runs until it is dropped.
pub(crate) struct Bind {
    pub(crate) port: u16,
    child: Child,
    log: PathBuf,
}

/// Whether there is such a server on this machine.
pub(crate) fn is_there() -> bool {
    let there = Command::new("named").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "the Debian package bind9 is not installed");
    if !there {
        eprintln!("skipped: the Debian package bind9 is not installed");
    }
    there
}

/// One that takes updates, and one that copies it.
pub(crate) async fn pair(folder: &Path) -> (Bind, Bind) {
    let (first, second) = (free_port(), free_port());
    let mut keys = String::new();
    let mut grants = String::new();
    for (name, algorithm, secret, may) in KEYS {
        writeln!(keys, "key \"{name}\" {{ algorithm {algorithm}; secret \"{secret}\"; }};").unwrap();
        writeln!(grants, "grant {name} {may};").unwrap();
    }
    let zone = format!(
        "{keys} zone \"example.org\" {{ type primary; file \"zone\"; notify explicit; also-notify {{ 127.0.0.1 port \
         {second}; }}; update-policy {{ {grants} }}; }};"
    );
    let copy =
        format!("zone \"example.org\" {{ type secondary; file \"zone\"; primaries {{ 127.0.0.1 port {first}; }}; }};");
    let text = "$TTL 60\n@ SOA ns admin 1 60 60 60 60\n@ NS ns\n@ A 127.0.0.1\nns A 127.0.0.1\nmatrix A 127.0.0.1\n";
    let first = Bind::run(&folder.join("first"), first, &zone, Some(text)).await;
    let second = Bind::run(&folder.join("second"), second, &copy, None).await;
    eventually("the zone is copied", async || second.has(RecordType::SOA, "example.org").await.len() == 1).await;
    (first, second)
}

impl Bind {
    async fn run(folder: &Path, port: u16, zones: &str, text: Option<&str>) -> Self {
        std::fs::create_dir(folder).unwrap();
        let config = format!(
            "options {{ directory \"{}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; recursion no; \
             pid-file none; session-keyfile none; dnssec-validation no; allow-transfer {{ any; }}; notify-delay 0; \
             notify-rate 1000; startup-notify-rate 1000; }};\ncontrols {{ }};\n{zones}\n",
            folder.display()
        );
        std::fs::write(folder.join("named.conf"), config).unwrap();
        if let Some(text) = text {
            std::fs::write(folder.join("zone"), text).unwrap();
        }
        let log = folder.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command = Command::new("named");
        command.args(["-g", "-4", "-n", "1", "-c"]).arg(folder.join("named.conf"));
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let bind = Self { port, child, log };
        eventually("the DNS server listens", async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;
        bind
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many updates were made of it.
    pub(crate) fn updates(&self, what: &str) -> usize {
        std::fs::read_to_string(&self.log).unwrap().matches(what).count()
    }

    /// What it has of a name.
    pub(crate) async fn has(&self, of: RecordType, name: &str) -> Vec<String> {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), of));
        let question = question.to_vec().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
        stream.write_all(&question).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let shown = |data: &RData| data.to_string();
        Message::from_vec(&answer).unwrap().answers.iter().map(|record| shown(&record.data)).collect()
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
