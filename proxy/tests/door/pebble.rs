//! A certificate authority for the test: Debian's `pebble`, with its DNS server, on free ports.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::harness::eventually;

/// The key of the external account `kid-1`, in base64url.
pub(crate) const EXTERNAL_KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";

/// What the authority does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Habits {
    /// It refuses nonces, and takes its time to look.
    pub(crate) strict: bool,
    /// Accounts need an external one.
    pub(crate) external_account: bool,
    /// The port of the DNS server that it asks, in place of its own.
    pub(crate) dns: Option<u16>,
}

/// An authority that runs until it is dropped.
pub(crate) struct Pebble {
    folder: PathBuf,
    port: u16,
    habits: Habits,
    dns_management: u16,
    http_port: u16,
    tls_port: u16,
    children: Vec<Child>,
    /// The authority of the directory's own certificate.
    pub(crate) trusted: Vec<u8>,
}

/// Whether there is such an authority on this machine.
pub(crate) fn is_there() -> bool {
    let there = Command::new("pebble").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    assert!(there || std::env::var_os("CI").is_none(), "the Debian package pebble is not installed");
    if !there {
        eprintln!("skipped: the Debian package pebble is not installed");
    }
    there
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Pebble {
    /// Prepares one that looks for proofs at these ports. It does not run yet.
    pub(crate) fn prepare(folder: &Path, habits: Habits, http_port: u16, tls_port: u16) -> Self {
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let own = own.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join("api.pem"), own.pem()).unwrap();
        std::fs::write(folder.join("api.key"), key.serialize_pem()).unwrap();
        Self {
            folder: folder.to_owned(),
            port: free_port(),
            habits,
            dns_management: free_port(),
            http_port,
            tls_port,
            children: Vec::new(),
            trusted: authority.pem().into_bytes(),
        }
    }

    pub(crate) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.port)
    }

    /// Runs it, with nothing that it knew before.
    pub(crate) async fn start(&mut self) {
        self.stop();
        let (dns, management) = (free_port(), free_port());
        let config = json!({ "pebble": {
            "listenAddress": format!("127.0.0.1:{}", self.port),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": self.folder.join("api.pem"),
            "privateKey": self.folder.join("api.key"),
            "httpPort": self.http_port,
            "tlsPort": self.tls_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.habits.external_account,
            "externalAccountMACKeys": { "kid-1": EXTERNAL_KEY },
            "domainBlocklist": ["blocked.example"],
            "retryAfter": { "authz": 1, "order": 1 },
        }});
        let path = self.folder.join("pebble.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let help = Command::new("pebble-challtestsrv").arg("-h").output().unwrap();
        let help = [help.stdout, help.stderr].concat();
        // The option for the DNS server's address was renamed after 2.6.
        let new = help.windows(10).any(|window| window == b"-dnsserver");
        let mut names = Command::new("pebble-challtestsrv");
        names.args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", "", "-defaultIPv4", "127.0.0.1"]);
        names.args([if new { "-dnsserver" } else { "-dns01" }, &format!("127.0.0.1:{dns}")]);
        names.args(["-management", &format!("127.0.0.1:{}", self.dns_management)]);
        if help.windows(5).any(|window| window == b"-doh ") {
            names.args(["-doh", ""]);
        }
        let mut pebble = Command::new("pebble");
        let asked = self.habits.dns.unwrap_or(dns);
        pebble.arg("-config").arg(&path).args(["-dnsserver", &format!("127.0.0.1:{asked}")]);
        pebble.arg(if self.habits.strict { "-strict=true" } else { "-strict=false" });
        if self.habits.strict {
            pebble.env("PEBBLE_WFE_NONCEREJECT", "20");
        } else {
            pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
        }
        pebble.env("PEBBLE_AUTHZREUSE", "0");
        for (mut command, name) in [(names, "names.log"), (pebble, "pebble.log")] {
            let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join(name)).unwrap();
            let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
            self.children.push(child);
        }
        let (port, management) = (self.port, self.dns_management);
        eventually("pebble listens", async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
                && TcpStream::connect(("127.0.0.1", management)).await.is_ok()
        })
        .await;
    }

    pub(crate) fn stop(&mut self) {
        for mut child in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Lets the lookups of a name fail by which it wants to validate it, or no longer.
    pub(crate) async fn lookups_fail(&self, name: &str, fail: bool) {
        let (path, body) = (if fail { "set-servfail" } else { "clear-servfail" }, json!({ "host": name }).to_string());
        let request = format!("POST /{path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(("127.0.0.1", self.dns_management)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    /// How many certificates it has issued, ever.
    pub(crate) fn issued(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default();
        log.matches("Issued certificate serial").count()
    }

    /// A program that makes DNS records where the authority looks.
    pub(crate) fn dns_command(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;

        let script = format!(
            "#!/usr/bin/env python3\nimport json, sys, urllib.request\nact, name, value = sys.argv[1:]\n\
             body = json.dumps({{'host': name + '.', 'value': value}}).encode()\n\
             urllib.request.urlopen('http://127.0.0.1:{}/' + {{'set': 'set-txt', 'clear': 'clear-txt'}}[act], body)\n",
            self.dns_management
        );
        let path = self.folder.join("dns-command");
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
    }
}
