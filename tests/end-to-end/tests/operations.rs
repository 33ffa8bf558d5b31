//! What an operator meets: starting, failing to start, watching, ending.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::TcpListener, process::Command, time::Duration};

use hmac::{Hmac, Mac};
use myelin_end_to_end::{
    Engine, Exit, Homeserver, Person, SERVER_NAME, SHARED_SECRET, Setup, eventually, free_port, on_both_engines,
};
use serde_json::json;
use sha1::Sha1;

on_both_engines!(
    wrong_server_name_is_refused,
    waiting_requests_are_answered_at_the_end,
    hangup_is_survived,
    metrics_are_given,
    health_is_told,
    front_page_says_what_this_is,
    operators_tools_register_accounts,
    commands_make_accounts,
);

const PATIENCE: Duration = Duration::from_secs(30);

/// The codes of `sysexits.h` for what is not to be had and for a wrong configuration.
const UNAVAILABLE: i32 = 69;
const CONFIG: i32 = 78;

/// A refusal to start says what is wrong in words, and where.
fn says(exit: &Exit, code: i32, words: &[&str]) {
    assert_eq!(exit.status.code(), Some(code), "{exit:?}");
    for word in words {
        assert!(exit.log.contains(word), "it says {word:?}:\n{}", exit.log);
    }
    assert!(!exit.log.contains("panicked"), "{}", exit.log);
}

/// A port that another program has is named.
#[test]
fn taken_port_is_named() {
    myelin_end_to_end::run(async {
        let setup = Setup::new(Engine::Sqlite);
        let port = setup.port();
        let _taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
        says(&setup.fail().await, UNAVAILABLE, &[&format!("127.0.0.1:{port}"), "in use"]);
    });
}

/// A key that nobody knows is named with the file it stands in, and so is a value of the wrong kind.
#[test]
fn wrong_keys_are_named() {
    myelin_end_to_end::run(async {
        let unknown = Setup::new(Engine::Sqlite).set("registration.enabeld", true);
        says(&unknown.fail().await, CONFIG, &["registration.enabeld", "myelin.toml"]);
        let mistyped = Setup::new(Engine::Sqlite).set("rate_limits.enabled", "sometimes");
        says(&mistyped.fail().await, CONFIG, &["rate_limits.enabled", "myelin.toml"]);
    });
}

/// A database that does not answer is named, and its password is not.
#[test]
fn database_that_is_down_is_named() {
    myelin_end_to_end::run(async {
        let port = free_port();
        let setup = Setup::on_database(&format!("postgres://myelin:hunter2@127.0.0.1:{port}/myelin"));
        let exit = setup.fail().await;
        says(&exit, UNAVAILABLE, &["database", "127.0.0.1"]);
        assert!(!exit.log.contains("hunter2"), "a password is not for the log:\n{}", exit.log);
    });
}

/// An embedded database is served by one process at a time; when that was killed, by the next at once.
#[test]
fn embedded_database_is_served_once() {
    myelin_end_to_end::run(async {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("myelin.db").display());
        let mut first = Setup::on_database(&url).start().await;
        says(&Setup::on_database(&url).fail().await, UNAVAILABLE, &["another process", "myelin.db"]);
        first.kill();
        let mut second = Setup::on_database(&url).start().await;
        assert!(second.terminate().await.success());
    });
}

/// A database belongs to one server name for ever.
async fn wrong_server_name_is_refused(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    assert!(server.terminate().await.success());
    let renamed = server.into_setup().set("server_name", "other.test");
    says(&renamed.fail().await, CONFIG, &[SERVER_NAME, "other.test"]);
}

/// SIGTERM answers those who wait, and the homeserver ends in order and soon.
async fn waiting_requests_are_answered_at_the_end(engine: Engine) {
    const POLLS: usize = 5;
    let mut server = Homeserver::start(engine).await;
    let alice = server.register("alice").await;
    let since = alice.sync(None, &json!({})).await["next_batch"].as_str().unwrap().to_owned();
    let mut polls = Vec::new();
    for _ in 0..POLLS {
        let (alice, path) = (alice.clone(), format!("sync?timeout=50000&since={since}"));
        polls.push(tokio::spawn(async move { alice.get(&path).await.ok() }));
    }
    let metrics = server.metrics();
    eventually("the requests wait", PATIENCE, || async {
        let text = metrics.get("/metrics").await.text();
        (value(&text, "myelin_sync_waiters")? >= POLLS as f64).then_some(())
    })
    .await;

    server.ask_to_end();
    for poll in polls {
        let answer = tokio::time::timeout(PATIENCE, poll).await.expect("long before its time").unwrap();
        assert!(answer["next_batch"].is_string(), "{answer}");
    }
    assert!(server.ended().await.success());
    server.start_again().await;
    alice.get(&format!("sync?timeout=0&since={since}")).await.ok();
}

/// SIGHUP asks for the configuration to be read again, and must not end the process, as it would by default.
async fn hangup_is_survived(engine: Engine) {
    let mut server = Homeserver::start(engine).await;
    server.hang_up();
    eventually("the hang-up is noticed", PATIENCE, || async {
        server.log_text().to_lowercase().contains("configuration again").then_some(())
    })
    .await;
    assert!(server.is_running());
    server.register("alice").await;
}

/// Prometheus finds what the manual promises, and clients do not.
async fn metrics_are_given(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let alice = server.register("alice").await;
    let room = alice.create_public_room().await;
    alice.say(&room, "one", "one").await;
    alice.sync(None, &json!({})).await;

    let answer = server.metrics().get("/metrics").await;
    assert_eq!(answer.status, 200);
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let text = answer.text();
    for family in FAMILIES {
        assert!(text.contains(&format!("# TYPE {family} ")), "{family} is among them:\n{text}");
    }
    assert!(value(&text, "myelin_store_events_written_total").is_some_and(|events| events >= 7.0), "{text}");
    assert!(!text.contains(&room) && !text.contains("alice"), "no room and no person is named");

    server.api().get("/metrics").await.refused(404, "M_UNRECOGNIZED");
}

const FAMILIES: &[&str] = &[
    "myelin_http_requests_total",
    "myelin_http_request_duration_seconds",
    "myelin_sync_waiters",
    "myelin_store_events_written_total",
    "myelin_store_commit_batch_size",
    "myelin_store_commit_duration_seconds",
    "myelin_store_stream_position",
    "myelin_database_connections",
    "myelin_cache_bytes",
    "myelin_cache_hits_total",
    "myelin_jemalloc_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
];

/// Liveness and readiness are told without a token, on both listeners.
async fn health_is_told(engine: Engine) {
    let server = Homeserver::start(engine).await;
    for api in [server.api(), &server.metrics()] {
        assert_eq!(api.get("/health/live").await.status, 200);
        assert_eq!(api.get("/health/ready").await.status, 200);
    }
    let versions = server.api().get("/_matrix/client/versions").await.ok();
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.11")), "{versions}");
}

/// Who opens the address in a browser learns what answers there.
async fn front_page_says_what_this_is(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let page = server.api().get("/").await;
    assert_eq!(page.status, 200);
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert!(page.text().contains("Myelin") && page.text().contains(SERVER_NAME), "{page}");
}

/// Tools that know the shared secret register accounts, once a nonce; others do not.
async fn operators_tools_register_accounts(engine: Engine) {
    const PATH: &str = "/_synapse/admin/v1/register";
    let server = Homeserver::start(engine).await;
    let api = server.api();
    let request = |nonce: &str, secret: &str| {
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update([nonce, "carol", Person::PASSWORD, "notadmin"].join("\0").as_bytes());
        let mac: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "nonce": nonce, "username": "carol", "password": Person::PASSWORD, "admin": false, "mac": mac })
    };
    let nonce = async || api.get(PATH).await.ok()["nonce"].as_str().unwrap().to_owned();

    api.post(PATH, request(&nonce().await, "a guess")).await.refused(403, "M_UNKNOWN");
    api.post(PATH, request("made-up", SHARED_SECRET)).await.refused(400, "M_UNKNOWN");
    let spent = nonce().await;
    let session = api.post(PATH, request(&spent, SHARED_SECRET)).await.ok();
    assert_eq!(session["user_id"], format!("@carol:{SERVER_NAME}"));
    let carol = api.with_token(session["access_token"].as_str().unwrap());
    assert_eq!(carol.get("account/whoami").await.ok()["user_id"], session["user_id"]);
    api.post(PATH, request(&spent, SHARED_SECRET)).await.refused(400, "M_UNKNOWN");
}

/// Two replicas start at once on one new database, and a word said to one is heard through the other at once.
#[test]
fn replicas_share_a_database() {
    myelin_end_to_end::run(async {
        let database = myelin_end_to_end::Postgres::shared().create_database();
        let (one, mut two) = tokio::join!(Setup::on_database(&database).start(), Setup::on_database(&database).start());
        let alice = one.register("alice").await;
        let bob = Person::register(two.api(), "bob").await;
        let room = alice.create_public_room().await;
        bob.join(&room).await;
        let since = bob.sync(None, &json!({})).await["next_batch"].as_str().unwrap().to_owned();

        let listening = tokio::spawn({
            let (bob, path) = (bob.clone(), format!("sync?timeout=50000&since={since}"));
            async move { bob.get(&path).await.ok() }
        });
        let event = alice.say(&room, "one", "Can you hear me over there?").await;
        let news = tokio::time::timeout(PATIENCE, listening).await.expect("at once").unwrap();
        assert_eq!(news["rooms"]["join"][&room]["timeline"]["events"][0]["event_id"], event, "{news}");

        two.kill();
        let bob = bob.at(one.url());
        let heard = bob.sync(Some(&since), &json!({})).await;
        assert_eq!(heard["rooms"]["join"][&room]["timeline"]["events"][0]["event_id"], event, "{heard}");
        bob.say(&room, "two", "One of us is enough").await;
    });
}

/// The commands that need no server work without one.
#[test]
fn commands_explain_themselves() {
    let run = |arguments: &[&str]| {
        let output = Command::new(myelin_end_to_end::binary()).args(arguments).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (success, version) = run(&["version"]);
    assert!(success && version.to_lowercase().contains("myelin"), "{version}");
    let folder = tempfile::tempdir().unwrap();
    let (success, config) = run(&["config", "generate", "example.org"]);
    assert!(success);
    let file = folder.path().join("myelin.toml");
    std::fs::write(&file, config).unwrap();
    let (success, verdict) = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert!(success && verdict.contains("example.org"), "what it writes is in order: {verdict}");
    let (success, help) = run(&["--help"]);
    assert!(success && ["serve", "config", "user", "version"].iter().all(|word| help.contains(word)), "{help}");
    let (success, _) = run(&["dance"]);
    assert!(!success, "an unknown command is an error");
}

/// An operator makes an account and gives it a new password beside the running server, which heeds both.
async fn commands_make_accounts(engine: Engine) {
    let server = Homeserver::start(engine).await;
    let log_in = async |password: &str| {
        let login = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": "dora" },
            "password": password,
        });
        server.api().post("login", login).await
    };
    let create = ["user", "create", "dora", "--password-stdin"];
    let made = server.command(&create, "first password\n");
    assert!(made.status.success(), "{made:?}");
    let token = log_in("first password").await.ok()["access_token"].as_str().unwrap().to_owned();
    let dora = server.api().with_token(token);
    assert_eq!(dora.get("account/whoami").await.ok()["user_id"], format!("@dora:{SERVER_NAME}"));

    let again = server.command(&create, "other password\n");
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("taken"), "{again:?}");
    let changed = server.command(&["user", "set-password", "dora", "--password-stdin"], "second password\n");
    assert!(changed.status.success(), "{changed:?}");
    log_in("first password").await.refused(403, "M_FORBIDDEN");
    log_in("second password").await.ok();
    eventually("the old session ends", PATIENCE, || async {
        (dora.get("account/whoami").await.status == 401).then_some(())
    })
    .await;
    let unknown = server.command(&["user", "set-password", "nobody", "--password-stdin"], "a password\n");
    assert!(!unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("@nobody"), "{unknown:?}");
    let token = server.command(&["user", "registration-token"], "");
    assert!(token.status.success() && token.stdout.trim_ascii().len() >= 16, "{token:?}");
}

/// The value of a metric without labels.
fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}
