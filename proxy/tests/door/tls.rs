//! Encrypted connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use myelin_process::shutdown::Shutdown;
use myelin_proxy::{
    Certificates, Limits,
    certificate_files::{self, CertificateFiles},
};
use rustls::HandshakeKind;

use crate::harness::{Door, certificate, client, client_config, connect, eventually, get_http1, get_http2};

/// HTTP/2 and HTTP/1.1 by ALPN, HTTP/1.1 without it, and a later connection resumes the session.
#[tokio::test]
async fn protocols_by_alpn() {
    let own = certificate();
    let door = Door::tls(Limits::default(), Certificates::new(own.clone()));
    for (alpn, version) in [(vec!["h2", "http/1.1"], "HTTP/2.0"), (vec!["http/1.1"], "HTTP/1.1"), (vec![], "HTTP/1.1")]
    {
        let connector = client(&[&own], &alpn);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let stream = connect(&connector, door.address).await.unwrap();
            assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind), "{alpn:?}");
            let (status, body) = match version {
                "HTTP/2.0" => get_http2(stream, "/").await.unwrap(),
                _ => get_http1(stream, "/").await.unwrap(),
            };
            assert!(status.is_success() && body.ends_with(version), "{alpn:?}: {body}");
        }
    }
}

/// TLS 1.2 is spoken with those who know no better, and resumes as well.
#[tokio::test]
async fn older_clients() {
    let own = certificate();
    let door = Door::tls(Limits::default(), Certificates::new(own.clone()));
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates({
            let mut roots = rustls::RootCertStore::empty();
            roots.add(own.chain()[0].clone()).unwrap();
            roots
        })
        .with_no_client_auth();
    config.alpn_protocols = client_config(&[], &["http/1.1"]).alpn_protocols;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let stream = connect(&connector, door.address).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        assert!(get_http1(stream, "/").await.unwrap().0.is_success());
    }
}

/// Writes a certificate's files; whoever looks in between sees a key that does not fit.
fn write(files: &CertificateFiles) -> rcgen::Certificate {
    let key = rcgen::KeyPair::generate().unwrap();
    let made = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(&files.certificate, made.pem()).unwrap();
    std::fs::write(&files.private_key, key.serialize_pem()).unwrap();
    made
}

/// Certificates are exchanged in their files again and again while clients connect and ask: no request fails, and a
/// connection from before goes on.
#[tokio::test(flavor = "multi_thread")]
async fn certificate_swap_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let files =
        CertificateFiles { certificate: folder.path().join("chain.pem"), private_key: folder.path().join("key.pem") };
    write(&files);
    let certificates = Certificates::new(files.load().unwrap());
    let door = Door::tls(Limits::default(), Arc::clone(&certificates));
    let shutdown = Shutdown::new();
    let period = Duration::from_millis(10);
    shutdown.spawn(certificate_files::watch_every(period, files.clone(), Arc::clone(&certificates), shutdown.clone()));

    // The client's own check of the certificate is not what is tested: it takes whichever is there.
    let mut config = client_config(&[], &["h2", "http/1.1"]);
    config.dangerous().set_certificate_verifier(Arc::new(anything::Goes));
    config.resumption = rustls::client::Resumption::disabled();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let old = connect(&connector, door.address).await.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU32::new(0));
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (connector, address, done, asked) = (connector.clone(), door.address, done.clone(), asked.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let stream = connect(&connector, address).await.expect("connects");
                    assert!(get_http2(stream, "/").await.expect("is answered").0.is_success());
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..20 {
        let made = write(&files);
        eventually("the new certificate is used", async || certificates.current().chain()[0] == *made.der()).await;
    }
    eventually("clients ask", async || asked.load(Ordering::Relaxed) > 100).await;
    done.store(true, Ordering::Relaxed);
    for asker in askers {
        asker.await.unwrap();
    }
    assert!(get_http2(old, "/").await.unwrap().0.is_success());
    shutdown.close(Duration::from_secs(5)).await.unwrap();
}

/// Files that cannot be used change nothing; when they are right again, they are taken.
#[tokio::test]
async fn broken_files_keep_the_old_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let files =
        CertificateFiles { certificate: folder.path().join("chain.pem"), private_key: folder.path().join("key.pem") };
    let first = write(&files);
    let certificates = Certificates::new(files.load().unwrap());
    let door = Door::tls(Limits::default(), Arc::clone(&certificates));
    let shutdown = Shutdown::new();
    let period = Duration::from_millis(5);
    shutdown.spawn(certificate_files::watch_every(period, files.clone(), Arc::clone(&certificates), shutdown.clone()));

    let expired = {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let refused = || {
        let text = myelin_process::metrics::render();
        let line =
            text.lines().find(|line| line.starts_with("myelin_tls_certificate_reloads_total{outcome=\"refused\"}"));
        line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse::<u32>().unwrap())
    };
    let own = myelin_proxy::Certificate::from_der(
        vec![first.der().clone()],
        rustls::pki_types::pem::PemObject::from_pem_file(&files.private_key).unwrap(),
    )
    .unwrap();
    let connector = client(&[&own], &["http/1.1"]);
    for (chain, key) in [(first.pem(), "nonsense".to_owned()), (first.pem(), expired.1.clone()), expired] {
        let before = refused();
        std::fs::write(&files.certificate, chain).unwrap();
        std::fs::write(&files.private_key, key).unwrap();
        eventually("the refusal is counted", async || refused() > before).await;
        let stream = connect(&connector, door.address).await.unwrap();
        assert!(get_http1(stream, "/").await.unwrap().0.is_success());
    }
    let made = write(&files);
    eventually("the new certificate is used", async || certificates.current().chain()[0] == *made.der()).await;
}

mod anything {
    //! A client that trusts everybody.

    use rustls::{
        DigitallySignedStruct, Error, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::ring,
        pki_types::{CertificateDer, ServerName, UnixTime},
    };

    #[derive(Debug)]
    pub(super) struct Goes;

    impl ServerCertVerifier for Goes {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = ring::default_provider().signature_verification_algorithms;
            rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = ring::default_provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            ring::default_provider().signature_verification_algorithms.supported_schemes()
        }
    }
}
