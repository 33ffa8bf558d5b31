//! Certificates of replicas, which share one by their database.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use myelin_end_to_end::{Homeserver, Postgres, SERVER_NAME, Setup, free_port, http, run};
use reqwest::tls::TlsInfo;
use toml::{Table, Value};

/// The certificate authority of the front door's own tests.
#[path = "../../../proxy/tests/door/pebble.rs"]
#[expect(dead_code, reason = "what only the front door's own tests do")]
mod pebble;

mod harness {
    use std::time::Duration;

    /// As the front door's own tests wait.
    pub(crate) async fn eventually(what: &str, mut probe: impl AsyncFnMut() -> bool) {
        const PATIENCE: Duration = Duration::from_secs(120);
        let wait = async {
            while !probe().await {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}: not so after {PATIENCE:?}"));
    }
}

fn replica(database: &str, authority: &pebble::Pebble, trusted: &str, ports: (u16, u16)) -> Setup {
    let listener = |port: u16, tls: bool| {
        let mut table = Table::new();
        table.insert("address".to_owned(), format!("127.0.0.1:{port}").into());
        table.insert("resources".to_owned(), vec!["client"].into());
        table.insert("tls".to_owned(), tls.into());
        Value::Table(table)
    };
    Setup::on_database(database)
        .listen(listener(ports.0, false))
        .listen(listener(ports.1, true))
        .set("tls.mode", "acme")
        .set("acme.accept_terms", true)
        .set("acme.directory", authority.directory())
        .set("acme.trusted_ca_file", trusted)
        .set("acme.names", vec![SERVER_NAME])
        .set("acme.challenges", vec!["tls_alpn_01", "http_01"])
}

/// The certificate that a port shows.
async fn shown(port: u16) -> Vec<u8> {
    let client = http().tls_danger_accept_invalid_certs(true).tls_info(true).build().unwrap();
    let answer = client.get(format!("https://127.0.0.1:{port}/_matrix/client/versions")).send().await.unwrap();
    answer.extensions().get::<TlsInfo>().unwrap().peer_certificate().unwrap().to_vec()
}

/// How many attempts of a replica had this outcome.
async fn attempts(server: &Homeserver, outcome: &str) -> usize {
    let metrics = server.metrics().get("/metrics").await.text();
    let start = format!("myelin_acme_attempts_total{{outcome=\"{outcome}\"}}");
    let line = metrics.lines().find(|line| line.starts_with(&start));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

/// Two replicas that start at once ask for one certificate, the authority's questions may come to either, and both show
/// what was issued. A third one that comes later takes it over and asks nobody.
#[test]
fn replicas_issue_once() {
    run(async {
        if !pebble::is_there() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let ports = [(); 3].map(|()| (free_port(), free_port()));
        let mut authority = pebble::Pebble::prepare(folder.path(), pebble::Habits::default(), ports[0].0, ports[0].1);
        authority.start().await;
        let trusted = folder.path().join("trusted.pem");
        std::fs::write(&trusted, &authority.trusted).unwrap();
        let trusted = trusted.display().to_string();
        let database = Postgres::shared().create_database();
        let (one, two) = tokio::join!(
            replica(&database, &authority, &trusted, ports[0]).start(),
            replica(&database, &authority, &trusted, ports[1]).start()
        );
        harness::eventually("both show the certificate", async || {
            authority.issued() > 0 && shown(ports[0].1).await == shown(ports[1].1).await
        })
        .await;
        let three = replica(&database, &authority, &trusted, ports[2]).start().await;
        harness::eventually("the third shows it", async || shown(ports[2].1).await == shown(ports[0].1).await).await;
        assert_eq!(authority.issued(), 1);
        let mut done = 0;
        for server in [&one, &two, &three] {
            done += attempts(server, "done").await;
        }
        assert_eq!(done, 1);

        // One that is asked for by an operator is shown by all as well.
        let first = shown(ports[0].1).await;
        let output = two.command(&["cert", "renew"], "");
        assert!(output.status.success(), "{output:?}");
        for port in ports {
            harness::eventually("a new one is shown", async || shown(port.1).await != first).await;
        }
        assert_eq!(authority.issued(), 2);
    });
}
