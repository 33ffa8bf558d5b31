//! Myelin behind other people's proxies, with the very snippets that `docs/reverse-proxies.md` gives to operators: only
//! names, ports and certificates are changed.

use std::{fs, net::IpAddr, path::Path, time::Duration};

use myelin_end_to_end::{Api, Authority, Engine, Homeserver, Person, Program, Setup, eventually, free_port, http, run};
use reqwest::{Certificate, Client, header::HeaderMap};
use serde_json::json;
use tempfile::TempDir;
use toml::{Table, Value};

/// What operators read.
const DOCUMENTATION: &str = include_str!("../../../docs/reverse-proxies.md");
/// Where clients call from: an address that is not the proxy's.
const CLIENT: &str = "127.0.0.2";
/// Whom they pretend to be.
const PRETENDED: &str = "203.0.113.7";
const START_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn nginx() {
    run(async {
        let scene = Scene::set(&[]).await;
        let snippet = scene.snippet("nginx", 0);
        let config = format!(
            "user root;\ndaemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n\
             client_body_temp_path {0}/body;\nproxy_temp_path {0}/proxy;\nfastcgi_temp_path {0}/fastcgi;\n\
             uwsgi_temp_path {0}/uwsgi;\nscgi_temp_path {0}/scgi;\n{snippet}\n}}\n",
            scene.folder().display()
        );
        let file = scene.write("nginx.conf", &config);
        let _nginx = Program::start("nginx", ["-p", &scene.path(""), "-c", &file]);
        scene.is_served().await;
    });
}

#[test]
fn caddy() {
    run(async {
        let scene = Scene::set(&[]).await;
        let names = format!("localhost:{}, localhost:{}", scene.https, scene.federation);
        let certificate = format!("{{\n    tls {} {}\n", scene.certificate(), scene.key());
        let snippet = scene.snippet("caddyfile", 0).replacen("{\n", &certificate, 1);
        let snippet = snippet.replace(&format!("localhost, localhost:{}", scene.federation), &names);
        let config = format!("{{\n    admin off\n    auto_https off\n}}\n{snippet}");
        let file = scene.write("Caddyfile", &config);
        let _caddy = Program::start("caddy", ["run", "--adapter", "caddyfile", "--config", &file]);
        scene.is_served().await;
    });
}

#[test]
fn apache() {
    run(async {
        let scene = Scene::set(&[]).await;
        let modules = ["mpm_event", "authz_core", "ssl", "socache_shmcb", "proxy", "proxy_http"]
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
            .concat();
        let config = format!(
            "{modules}ServerRoot {0}\nDefaultRuntimeDir {0}\nPidFile {0}/pid\nErrorLog /dev/stderr\nUser www-data\n\
             Group www-data\nListen {1}\n{2}",
            scene.folder().display(),
            scene.https,
            scene.snippet("apache", 0)
        );
        let file = scene.write("apache.conf", &config);
        let _apache = Program::start("apache2", ["-X", "-d", &scene.path(""), "-f", &file]);
        scene.is_served().await;
    });
}

#[test]
fn haproxy() {
    run(async {
        let scene = Scene::set(&[]).await;
        let config = format!("defaults\n    timeout connect 5s\n{}", scene.snippet("haproxy", 0));
        let file = scene.write("haproxy.cfg", &config);
        let _haproxy = Program::start("haproxy", ["-db", "-f", &file]);
        scene.is_served().await;
    });
}

/// A balancer that hands on bytes, and tells by the PROXY protocol whose they are.
#[test]
fn haproxy_with_bytes() {
    run(async {
        let tls = free_port();
        let scene = Scene::set(&[("address", format!("127.0.0.1:{tls}").into()), ("tls", true.into())]).await;
        for version in ["send-proxy-v2", "send-proxy"] {
            let backend = scene.snippet("haproxy", 1).replace("10.0.0.5:443", &format!("127.0.0.1:{tls}"));
            let config = format!(
                "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
                 frontend bytes\n    bind 127.0.0.1:{}\n    default_backend myelin-tls\n{}\n",
                scene.https,
                backend.replace("send-proxy-v2", version)
            );
            let file = scene.write("haproxy.cfg", &config);
            let _haproxy = Program::start("haproxy", ["-db", "-f", &file]);
            scene.is_served().await;
        }
        // Nobody else may say whose bytes these are, and nobody may leave it out.
        let direct = scene.client(None).get(format!("https://localhost:{tls}/_matrix/client/versions")).send().await;
        assert!(direct.is_err(), "{direct:?}");
    });
}

/// A homeserver that waits for what a proxy brings, and the ports of the proxy.
struct Scene {
    _server: Homeserver,
    authority: Authority,
    files: TempDir,
    /// Where Myelin takes the proxy's requests.
    inside: u16,
    https: u16,
    federation: u16,
}

impl Scene {
    /// Starts a homeserver with a listener for a proxy, and another one that takes bytes if it is described.
    async fn set(bytes: &[(&str, Value)]) -> Self {
        let (inside, https, federation) = (free_port(), free_port(), free_port());
        let authority = Authority::new();
        let mut listener = documented_listener();
        listener.insert("address".to_owned(), format!("127.0.0.1:{inside}").into());
        listener.insert("resources".to_owned(), vec!["client", "federation", "well_known", "health"].into());
        let mut setup = Setup::new(Engine::Sqlite)
            .listen(listener.into())
            .set("public_baseurl", format!("https://localhost:{https}"))
            .set("tls.mode", "files")
            .set("tls.certificate", authority.certificate().display().to_string())
            .set("tls.private_key", authority.private_key().display().to_string());
        if !bytes.is_empty() {
            let mut listener: Table = bytes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
            listener.insert("resources".to_owned(), vec!["client", "well_known"].into());
            listener.insert("proxy_protocol".to_owned(), true.into());
            listener.insert("trusted_proxies".to_owned(), vec!["127.0.0.1"].into());
            setup = setup.listen(listener.into());
        }
        let files = tempfile::Builder::new().prefix("myelin-proxies-").tempdir().expect("make a folder");
        Self { _server: setup.start().await, authority, files, inside, https, federation }
    }

    /// The documentation's snippet in this language, the first of them or a later one, for this scene.
    fn snippet(&self, language: &str, number: usize) -> String {
        let both = [self.authority.certificate(), self.authority.private_key()]
            .map(|path| fs::read_to_string(path).expect("read the certificate"))
            .concat();
        let changes = [
            ("matrix.example.org:8448", format!("localhost:{}", self.federation)),
            ("/etc/letsencrypt/live/matrix.example.org/fullchain.pem", self.certificate()),
            ("/etc/letsencrypt/live/matrix.example.org/privkey.pem", self.key()),
            ("/etc/haproxy/certs", self.write("both.pem", &both)),
            ("matrix.example.org", "localhost".to_owned()),
            ("127.0.0.1:8008", format!("127.0.0.1:{}", self.inside)),
            ("bind :443", format!("bind 127.0.0.1:{}", self.https)),
            ("bind :8448", format!("bind 127.0.0.1:{}", self.federation)),
            ("listen 443", format!("listen 127.0.0.1:{}", self.https)),
            ("listen 8448", format!("listen 127.0.0.1:{}", self.federation)),
            ("*:443", format!("*:{}", self.https)),
        ];
        let text = documented(language, number);
        changes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    fn folder(&self) -> &Path {
        self.files.path()
    }

    fn path(&self, name: &str) -> String {
        self.folder().join(name).display().to_string()
    }

    fn certificate(&self) -> String {
        self.authority.certificate().display().to_string()
    }

    fn key(&self) -> String {
        self.authority.private_key().display().to_string()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.folder().join(name), text).expect("write a file");
        self.path(name)
    }

    /// A client elsewhere that trusts the certificate, and may write whose request this is.
    fn client(&self, pretends: Option<&str>) -> Client {
        let root = fs::read(self.authority.root()).expect("read the root");
        let mut headers = HeaderMap::new();
        for (name, before) in [("x-forwarded-for", ""), ("forwarded", "for="), ("x-real-ip", "")] {
            if let Some(address) = pretends {
                headers.insert(name, format!("{before}{address}").parse().expect("a header's value"));
            }
        }
        http()
            .local_address(CLIENT.parse::<IpAddr>().expect("an address"))
            .default_headers(headers)
            .tls_certs_only([Certificate::from_pem(&root).expect("a root")])
            .build()
            .expect("make an HTTP client")
    }

    /// People use Myelin through the proxy, and it knows where they are.
    async fn is_served(&self) {
        let base = format!("https://localhost:{}", self.https);
        let api = Api::by(self.client(Some(PRETENDED)), base.as_str());
        eventually("the proxy answers", START_TIMEOUT, async || {
            let answer = api.send(reqwest::Method::GET, "/_matrix/client/versions", "").await;
            answer.ok().filter(|answer| answer.status == 200)
        })
        .await;
        let known = api.get("/.well-known/matrix/client").await.ok();
        assert!(known["m.homeserver"]["base_url"].as_str().is_some_and(|url| url.starts_with(&base)), "{known}");

        let alice = Person::register(&api, &format!("alice-{}", rand_word())).await;
        let room = alice.create_public_room().await;
        encoded_paths_pass(&alice, &room).await;
        waiting_clients_are_told(&alice, &room).await;
        large_files_pass(&alice).await;

        // It is written down every few seconds.
        let seen = eventually("it is known where she is", START_TIMEOUT, async || {
            tokio::time::sleep(Duration::from_millis(100)).await;
            alice.get("devices").await.ok()["devices"][0]["last_seen_ip"].as_str().map(str::to_owned)
        })
        .await;
        assert_eq!(seen, CLIENT, "it is neither the proxy nor who they say they are");
    }
}

/// What is encoded stays encoded until it is taken apart.
async fn encoded_paths_pass(alice: &Person, room: &str) {
    let (path, key) = (format!("rooms/{room}/state/org.example.note"), "a/b%2F?ä");
    let encoded = format!("{path}/{}", myelin_end_to_end::encode(key));
    alice.put(&encoded, json!({ "text": "there" })).await.ok();
    let state = alice.get(&format!("rooms/{room}/state")).await.ok();
    let keys: Vec<_> =
        state.as_array().into_iter().flatten().filter(|event| event["type"] == "org.example.note").collect();
    assert_eq!(keys.len(), 1);
    assert_eq!(keys[0]["state_key"], key);
    assert_eq!(alice.get(&encoded).await.ok()["text"], "there");
}

/// A client that waits gets the news when there are some.
async fn waiting_clients_are_told(alice: &Person, room: &str) {
    let since = alice.sync(None, &json!({})).await["next_batch"].as_str().expect("a token").to_owned();
    let path = format!("sync?timeout=30000&since={since}");
    let (news, said) = tokio::join!(alice.get(&path), alice.say(room, "one", "Are you there?"));
    let news = news.ok();
    let events = news["rooms"]["join"][room]["timeline"]["events"].as_array().cloned().unwrap_or_default();
    assert!(events.iter().any(|event| event["event_id"] == said.as_str()), "{news}");
}

/// A file that is larger than a proxy takes unless it is told to.
async fn large_files_pass(alice: &Person) {
    let file: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let made = alice.send(reqwest::Method::POST, "/_matrix/media/v3/upload", file.clone()).await;
    let uri = made.expect("an answer").ok()["content_uri"].as_str().expect("a URI").to_owned();
    let path = uri.strip_prefix("mxc://").expect("a URI of media");
    let got = alice.get(&format!("/_matrix/client/v1/media/download/{path}")).await;
    assert_eq!(got.status, 200, "{got}");
    assert!(got.body == file, "it is the same file");
}

/// The listener that the documentation describes.
fn documented_listener() -> Table {
    let table: Table = documented("toml", 0).parse().expect("the documented listener is TOML");
    let listeners = table["listeners"].as_array().expect("there are listeners");
    listeners[0].as_table().expect("a listener is a table").clone()
}

/// The documentation's code block in this language, the first of them or a later one.
fn documented(language: &str, number: usize) -> &'static str {
    let fence = format!("```{language}\n");
    let block = DOCUMENTATION.split(fence.as_str()).nth(number + 1).expect("the documentation has the snippet");
    block.split("```").next().expect("what is split has a first part")
}

fn rand_word() -> u32 {
    rand::random()
}
