//! The certificate authority that measured servers are told to trust.

use std::{fs, path::Path, sync::Arc};

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

const ROOT: &str = "root.pem";
const CERTIFICATE: &str = "certificate.pem";
const PRIVATE_KEY: &str = "key.pem";

/// Makes an authority, and a certificate of it for `localhost`: `root.pem`, `certificate.pem` and `key.pem`.
pub(crate) fn make(folder: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Names that differ: OpenSSL takes a certificate that names itself as its issuer for a root.
    params.distinguished_name.push(DnType::CommonName, "The load test's authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let mut names = CertificateParams::new(vec!["localhost".to_owned()])?;
    names.distinguished_name.push(DnType::CommonName, "localhost");
    let key = KeyPair::generate()?;
    let certificate = names.signed_by(&key, &issuer)?;
    for (name, text) in [(ROOT, issuer.pem()), (CERTIFICATE, certificate.pem()), (PRIVATE_KEY, key.serialize_pem())] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// TLS as `localhost`, with what [`make`] wrote.
pub(super) fn tls(folder: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let path = folder.join(CERTIFICATE);
    let certificate =
        CertificateDer::from_pem_file(&path).with_context(|| format!("read the certificate {}", path.display()))?;
    let path = folder.join(PRIVATE_KEY);
    let key = PrivateKeyDer::from_pem_file(&path).with_context(|| format!("read the key {}", path.display()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(config))
}
