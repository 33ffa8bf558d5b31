//! Whom we believe to be who they say.

use std::{path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::options::{ClientOptions, SetupError};

/// HTTP/2 where the server offers it.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The settings of TLS for federation, and those for files, which come by HTTP/1.1.
pub(crate) struct Tls {
    pub(crate) federation: Arc<ClientConfig>,
    pub(crate) files: Arc<ClientConfig>,
}

impl Tls {
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, SetupError> {
        let roots = Arc::new(roots(options)?);
        let mut federation = config(&roots)?;
        federation.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
        let files = config(&roots)?;
        Ok(Self { federation: Arc::new(federation), files: Arc::new(files) })
    }
}

fn config(roots: &Arc<RootCertStore>) -> Result<ClientConfig, SetupError> {
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth())
}

fn roots(options: &ClientOptions) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    if !options.only_trusted_ca_file {
        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            tracing::warn!(%error, "some certificate authorities of the system cannot be read: {error}");
        }
        let (taken, _) = roots.add_parsable_certificates(native.certs);
        if taken == 0 && options.trusted_ca_file.is_none() {
            tracing::warn!(
                "the system has no certificate authorities, so no other server can be believed; install ca-certificates"
            );
        }
    }
    if let Some(path) = &options.trusted_ca_file {
        add_file(&mut roots, path)?;
    }
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), SetupError> {
    let unreadable = |source| SetupError::TrustedCa { path: path.to_owned(), source };
    let mut taken = 0;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        roots.add(certificate).map_err(|_| SetupError::NoTrustedCa { path: path.to_owned() })?;
        taken += 1;
    }
    if taken == 0 {
        return Err(SetupError::NoTrustedCa { path: path.to_owned() });
    }
    Ok(())
}
