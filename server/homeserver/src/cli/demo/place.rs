//! Where the servers run: their ports, their files, and what they trust.

use std::{
    fs, io,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use rand::Rng as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::exit::{Exit, Failure};

/// The users, one a server.
pub(super) const NAMES: [&str; 3] = ["alice", "bob", "carol"];

const PASSWORD_LENGTH: usize = 12;
/// The end of each log that is shown when something failed.
const LOG_BYTES_SHOWN: usize = 2000;

/// The folder in which the servers keep everything, with the certificate that all of them have. It is removed when
/// this is dropped.
pub(super) struct Site {
    folder: TempDir,
    /// The password of every user.
    pub(super) password: String,
    /// Where each server is.
    pub(super) places: Vec<Place>,
}

/// Where one of the servers is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its user.
    pub(super) name: &'static str,
    /// For clients.
    pub(super) port: u16,
    federation_port: u16,
    folder: PathBuf,
}

impl Site {
    /// Makes the folder and finds ports from one on upwards.
    pub(super) fn new(first_port: u16) -> Result<Self, Failure> {
        let cannot = |error: anyhow::Error| Failure::new(Exit::CannotCreate, error);
        let folder = tempfile::Builder::new().prefix("myelin-demo-").tempdir();
        let folder = folder.context("make a temporary folder").map_err(cannot)?;
        let mut ports = free_ports(first_port);
        let mut port = || {
            let none = || anyhow!("too few ports are free from {first_port} on");
            ports.next().ok_or_else(|| Failure::new(Exit::Unavailable, none()).hint("Try another --first-port."))
        };
        let mut places = Vec::with_capacity(NAMES.len());
        for name in NAMES {
            let folder = folder.path().join(name);
            places.push(Place { name, port: port()?, federation_port: port()?, folder });
        }
        let password =
            rand::rng().sample_iter(rand::distr::Alphanumeric).take(PASSWORD_LENGTH).map(char::from).collect();
        let site = Self { folder, password, places };
        site.write_certificate().map_err(cannot)?;
        for place in &site.places {
            site.write_config(place)
                .with_context(|| format!("write the configuration {}", place.config().display()))
                .map_err(cannot)?;
        }
        Ok(site)
    }

    /// The folder.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Shows the ends of what the servers wrote, before it is removed.
    pub(super) fn show_logs(&self) {
        for place in &self.places {
            let log = fs::read(place.log()).unwrap_or_default();
            let end = String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_BYTES_SHOWN)..]);
            eprintln!("{} wrote:\n{end}", place.server_name());
        }
    }

    /// A certificate of an authority that nobody else trusts, and whose key nobody keeps.
    fn write_certificate(&self) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        // Names that differ: OpenSSL takes a certificate that names itself as its issuer for a root.
        params.distinguished_name.push(DnType::CommonName, "myelin demo");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate()?;
        let root = params.self_signed(&root_key)?;
        let key = KeyPair::generate()?;
        let mut names = CertificateParams::new(vec!["localhost".to_owned()])?;
        names.distinguished_name.push(DnType::CommonName, "localhost");
        let certificate = names.signed_by(&key, &Issuer::new(params, root_key))?;
        fs::write(self.file("root.pem"), root.pem())?;
        fs::write(self.file("certificate.pem"), certificate.pem())?;
        fs::write(self.file("key.pem"), key.serialize_pem())?;
        Ok(())
    }

    fn write_config(&self, place: &Place) -> anyhow::Result<()> {
        fs::create_dir(&place.folder)?;
        let text = format!(
            "server_name = {name}\n\
             public_baseurl = {baseurl}\n\
             data_dir = {data}\n\
             [[listeners]]\n\
             address = '127.0.0.1:{port}'\n\
             resources = ['client', 'well_known', 'health']\n\
             [[listeners]]\n\
             address = '127.0.0.1:{federation_port}'\n\
             resources = ['federation']\n\
             tls = true\n\
             [tls]\n\
             mode = 'files'\n\
             certificate = {certificate}\n\
             private_key = {key}\n\
             [federation]\n\
             trusted_ca_file = {root}\n\
             allow_private_addresses = true\n\
             allowed_servers = ['localhost']\n\
             trusted_key_servers = []\n",
            name = quote(&place.server_name()),
            baseurl = quote(&place.baseurl()),
            data = quote_path(&place.folder)?,
            port = place.port,
            federation_port = place.federation_port,
            certificate = quote_path(&self.file("certificate.pem"))?,
            key = quote_path(&self.file("key.pem"))?,
            root = quote_path(&self.file("root.pem"))?,
        );
        fs::write(place.config(), text)?;
        Ok(())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Place {
    /// What the server is called.
    pub(super) fn server_name(&self) -> String {
        format!("localhost:{}", self.federation_port)
    }

    /// Where clients find it.
    pub(super) fn baseurl(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Its configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.folder.join("myelin.toml")
    }

    /// What it writes.
    pub(super) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// The ports of loopback that nobody listens on.
fn free_ports(first: u16) -> impl Iterator<Item = u16> {
    (first.max(1)..=u16::MAX).filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}

fn quote_path(path: &Path) -> io::Result<String> {
    let text = path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))?;
    Ok(quote(text))
}

/// A string of TOML, whose escapes are those of JSON.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use myelin_process::config::Config;

    use super::Site;
    use crate::cli::config;

    /// What is written can be read and has no mistakes; no two servers share anything; nothing is left behind.
    #[test]
    fn writes_good_configurations() {
        let site = Site::new(20_000).unwrap();
        let mut own = BTreeSet::new();
        for place in &site.places {
            let config = Config::load_with(&[place.config()], []).unwrap();
            assert_eq!(config::errors(&config).count(), 0);
            assert_eq!(config.server_name.as_str(), place.server_name());
            own.insert(config.data_dir.clone());
            own.extend(config.listeners.iter().map(|listener| listener.address.to_string().into()));
        }
        assert_eq!(own.len(), 9);
        let folder = site.folder().to_owned();
        drop(site);
        assert!(!folder.exists());
    }
}
