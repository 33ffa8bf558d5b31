//! Finds what is wrong with a configuration that could be read, before anything is started.

use std::{
    collections::HashSet,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tracing_subscriber::EnvFilter;
use url::Url;

use super::{Config, RateLimit, Resource, Secret, SecretError};

/// The least memory for caches that makes sense, in bytes.
const CACHE_BYTES_MIN: u64 = 1024 * 1024;
/// The smallest bound on JSON bodies: an event may have 65,536 bytes, and needs room around it.
const BODY_BYTES_MIN: u64 = 128 * 1024;

/// Something in the configuration that stands in the way, or that the operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the server can start with it.
    pub severity: Severity,
    /// The key, with its sections; empty if it is about a file as a whole.
    pub key: String,
    /// Where the key was written, if that is known: a file, or an environment variable.
    pub source: Option<String>,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Whether a server can start with a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It can, but it will not do what one might think.
    Warning,
    /// It cannot.
    Error,
}

impl Problem {
    pub(super) fn error(key: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, key: key.to_owned(), source: None, message: message.into() }
    }

    pub(super) fn warning(key: &str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key, message) }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.severity == Severity::Warning {
            f.write_str("warning: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        match &self.source {
            Some(source) => write!(f, "{} ({source})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Config {
    /// Everything that is wrong, without changing anything: files that cannot be read, settings that exclude each
    /// other, values out of range, and what this release cannot do.
    #[must_use]
    pub fn check(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        self.check_names(&mut found);
        self.check_database(&mut found);
        self.check_listeners(&mut found);
        self.check_acme(&mut found);
        self.check_well_known(&mut found);
        self.check_registration(&mut found);
        self.check_calls(&mut found);
        self.check_files(&mut found);
        self.check_rate_limits(&mut found);
        self.check_sizes(&mut found);
        found
    }

    fn check_names(&self, found: &mut Vec<Problem>) {
        let exposed = self
            .listeners
            .iter()
            .any(|listener| listener.resources.contains(&Resource::Client) && !listener.address.ip().is_loopback());
        if self.server_name == "localhost" && exposed {
            found.push(Problem::warning(
                "server_name",
                "`localhost` is for trying it out on one machine: the name can never change, and no other server \
                 can ever reach this one",
            ));
        }
        if let Some(url) = &self.public_baseurl {
            if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
                found.push(Problem::error("public_baseurl", "it must begin with https:// (or http://) and a host"));
            } else if url.query().is_some() || url.fragment().is_some() {
                found.push(Problem::error("public_baseurl", "it must end with the path: no `?` and no `#`"));
            } else if url.scheme() == "http" && !is_local(url) {
                found.push(Problem::warning("public_baseurl", "clients refuse http:// except to their own machine"));
            }
        }
        match fs::metadata(&self.data_dir) {
            Ok(metadata) if !metadata.is_dir() => {
                found.push(Problem::error("data_dir", format!("{} is not a folder", self.data_dir.display())))
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => found
                .push(Problem::error("data_dir", format!("{} cannot be looked at: {error}", self.data_dir.display()))),
            // It is made at start.
            Ok(_) | Err(_) => {}
        }
    }

    fn check_database(&self, found: &mut Vec<Problem>) {
        let database = &self.database;
        if let Some(url) = check_secret(found, "database.url", database.url.as_ref(), database.url_file.as_deref())
            && let Err(message) = check_database_url(url.expose())
        {
            found.push(Problem::error("database.url", message));
        }
        if database.max_connections == 0 {
            found.push(Problem::error("database.max_connections", "it must be at least 1"));
        }
    }

    fn check_listeners(&self, found: &mut Vec<Problem>) {
        let serves = |resource| self.listeners.iter().any(|listener| listener.resources.contains(&resource));
        if self.listeners.is_empty() {
            found.push(Problem::error("listeners", "there is none, so nobody could reach the server"));
        } else if !serves(Resource::Client) {
            found.push(Problem::warning("listeners", "none has the resource `client`, so nobody can log in"));
        }
        for (number, listener) in self.listeners.iter().enumerate() {
            let key = |field: &str| format!("listeners[{number}].{field}");
            if self.listeners[..number].iter().any(|other| overlap(other.address, listener.address)) {
                let message = format!("{} is taken by a listener above", listener.address);
                found.push(Problem::error(&key("address"), message));
            }
            let mut seen = HashSet::new();
            if let Some(twice) = listener.resources.iter().find(|resource| !seen.insert(**resource)) {
                found.push(Problem::error(&key("resources"), format!("`{twice}` is there twice")));
            }
            listener.check_connections(key, found);
            if listener.resources.is_empty() && !listener.redirect_to_https {
                found.push(Problem::error(&key("resources"), "it is empty, so nothing would be answered there"));
            }
            if listener.resources.contains(&Resource::Federation) && !self.federation.enabled {
                let message = "`federation` answers nothing, since federation.enabled is false";
                found.push(Problem::warning(&key("resources"), message));
            }
        }
        if self.listeners.iter().any(|listener| listener.tls) {
            self.tls.check(found);
        }
    }

    fn check_well_known(&self, found: &mut Vec<Problem>) {
        for (number, contact) in self.well_known.contacts.iter().enumerate() {
            if contact.matrix_id.is_none() && contact.email_address.is_none() {
                let message = "it has neither `matrix_id` nor `email_address`";
                found.push(Problem::error(&format!("well_known.contacts[{number}]"), message));
            }
        }
        if let Some(page) = &self.well_known.support_page
            && !matches!(page.scheme(), "https" | "http")
        {
            found.push(Problem::error("well_known.support_page", "it must begin with https://"));
        }
        if self.well_known.client.contains_key("m.homeserver") {
            found.push(Problem::error("well_known.client", "`m.homeserver` follows from public_baseurl"));
        }
    }

    fn check_registration(&self, found: &mut Vec<Problem>) {
        let registration = &self.registration;
        let token = registration.token.as_ref();
        let token = check_secret(found, "registration.token", token, registration.token_file.as_deref());
        if token.is_some_and(|token| !is_registration_token(token.expose())) {
            let message = "it must be 1 to 64 letters, digits, `.`, `_`, `~` or `-`";
            found.push(Problem::error("registration.token", message));
        }
        let secret = registration.shared_secret.as_ref();
        let file = registration.shared_secret_file.as_deref();
        check_secret(found, "registration.shared_secret", secret, file);
        if registration.enabled && !registration.require_token {
            let message = "anyone may register, and on a public server spammers will";
            found.push(Problem::warning("registration.require_token", message));
        }
    }

    fn check_calls(&self, found: &mut Vec<Problem>) {
        let turn = &self.turn;
        let (secret, file) = (turn.shared_secret.as_ref(), turn.shared_secret_file.as_deref());
        let secret = check_secret(found, "turn.shared_secret", secret, file);
        for (number, uri) in turn.uris.iter().enumerate() {
            if !uri.starts_with("turn:") && !uri.starts_with("turns:") {
                found.push(Problem::error(&format!("turn.uris[{number}]"), "it must begin with turn: or turns:"));
            }
        }
        let has_file = turn.shared_secret_file.is_some();
        if turn.uris.is_empty() && secret.is_some() {
            found.push(Problem::warning("turn.uris", "without an address, nobody uses the TURN server"));
        } else if !turn.uris.is_empty() && secret.is_none() && !has_file {
            found.push(Problem::error("turn.shared_secret", "the TURN server lets nobody in without it"));
        }
        // A client has to ask again before it ends.
        if !(60..=30 * 24 * 60 * 60).contains(&turn.lifetime_seconds) {
            found.push(Problem::error("turn.lifetime_seconds", "it must be from a minute to 30 days"));
        }
        if let Some(url) = &self.rtc.livekit_service_url
            && !matches!(url.scheme(), "https" | "http")
        {
            found.push(Problem::error("rtc.livekit_service_url", "it must begin with https://"));
        }
    }

    fn check_files(&self, found: &mut Vec<Problem>) {
        if let Some(path) = &self.federation.trusted_ca_file {
            check_readable(found, "federation.trusted_ca_file", path);
        }
        for path in &self.appservices.registration_files {
            check_readable(found, "appservices.registration_files", path);
        }
        if !self.appservices.registration_files.is_empty() {
            let message = "application services come with a later release and are not called yet";
            found.push(Problem::warning("appservices.registration_files", message));
        }
    }

    fn check_rate_limits(&self, found: &mut Vec<Problem>) {
        let limits = &self.rate_limits;
        let kinds = [
            ("login", limits.login),
            ("registration", limits.registration),
            ("joins", limits.joins),
            ("messages", limits.messages),
            ("other", limits.other),
        ];
        for (kind, RateLimit { per_second, burst }) in kinds {
            // Below one a day is more likely a mistake than a wish, and above a million is no limit.
            if !(1e-5..=1e6).contains(&per_second) {
                let message = "it must be between 0.00001 and 1000000";
                found.push(Problem::error(&format!("rate_limits.{kind}.per_second"), message));
            }
            if burst == 0 {
                found.push(Problem::error(&format!("rate_limits.{kind}.burst"), "it must be at least 1"));
            }
        }
    }

    fn check_sizes(&self, found: &mut Vec<Problem>) {
        let limits = &self.limits;
        let sizes = [
            ("cache.memory", self.cache.memory, CACHE_BYTES_MIN),
            ("media.max_upload_bytes", self.media.max_upload_bytes, 1),
            ("limits.max_body_bytes", limits.max_body_bytes, BODY_BYTES_MIN),
            ("limits.request_deadline_seconds", limits.request_deadline_seconds, 1),
            ("limits.max_sync_timeout_seconds", limits.max_sync_timeout_seconds, 1),
            ("limits.shutdown_seconds", limits.shutdown_seconds, 1),
            ("limits.max_connections_per_address", limits.max_connections_per_address, 1),
        ];
        for (key, value, least) in sizes {
            if value < least {
                found.push(Problem::error(key, format!("it must be at least {least}")));
            }
        }
        if let Err(error) = EnvFilter::try_new(&self.log.level) {
            found.push(Problem::error("log.level", format!("it cannot be understood: {error}")));
        }
    }
}

/// The secret of a setting or its `_file` twin, if they give one.
fn check_secret(found: &mut Vec<Problem>, key: &str, given: Option<&Secret>, file: Option<&Path>) -> Option<Secret> {
    if given.is_some() && file.is_some() {
        found.push(Problem::error(key, "it and its _file twin are both set; keep one"));
    }
    match Secret::resolve(given, file) {
        Ok(secret) => secret,
        Err(error) => {
            let key = match &error {
                SecretError::Unreadable { .. } | SecretError::Empty { path: Some(_) } => format!("{key}_file"),
                SecretError::Empty { path: None } => key.to_owned(),
            };
            found.push(Problem::error(&key, error.to_string()));
            None
        }
    }
}

/// Says what is wrong with a database's URL, without repeating it: there is a password in it.
fn check_database_url(url: &str) -> Result<(), String> {
    if let Some(file) = url.strip_prefix("sqlite:") {
        let file = file.strip_prefix("//").unwrap_or(file);
        return match file.split('?').next() {
            None | Some("") => Err("there is no file behind sqlite://".to_owned()),
            Some(":memory:") => Err("a database in memory would lose everything when the server stops".to_owned()),
            Some(_) => Ok(()),
        };
    }
    match Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "postgres" | "postgresql") => Ok(()),
        Ok(url) => Err(format!("it begins with {}://; known are sqlite:// and postgres://", url.scheme())),
        Err(error) => Err(format!(
            "it is not a URL such as sqlite:///path or postgres://user:password@host/database ({error}; \
             special characters in the password are written as %XX)"
        )),
    }
}

pub(super) fn check_readable(found: &mut Vec<Problem>, key: &str, path: &PathBuf) {
    if let Err(error) = fs::File::open(path) {
        found.push(Problem::error(key, format!("{} cannot be read: {error}", path.display())));
    }
}

/// Whether two listeners cannot both be had. Port 0 is any free one.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    let same_address = a.ip() == b.ip() || (same_family && (a.ip().is_unspecified() || b.ip().is_unspecified()));
    a.port() != 0 && a.port() == b.port() && same_address
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// <https://spec.matrix.org/v1.19/client-server-api/#token-authenticated-registration>: the opaque identifier
/// grammar's characters, 64 at most.
fn is_registration_token(token: &str) -> bool {
    (1..=64).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-'))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{Config, Severity};
    use crate::config::{Listener, RateLimit, Resource, Secret};

    /// The keys of the errors that a change to the defaults causes.
    fn errors(change: impl FnOnce(&mut Config)) -> Vec<String> {
        found(change, Severity::Error)
    }

    fn found(change: impl FnOnce(&mut Config), severity: Severity) -> Vec<String> {
        let mut config = Config::default();
        change(&mut config);
        config.check().into_iter().filter(|problem| problem.severity == severity).map(|problem| problem.key).collect()
    }

    fn listener(address: &str, resources: &[Resource]) -> Listener {
        Listener { address: address.parse().unwrap(), resources: resources.to_vec(), ..Listener::default() }
    }

    /// The defaults are in order, so whatever a test below finds is its own doing.
    #[test]
    fn defaults_are_fine() {
        assert_eq!(Config::default().check(), []);
    }

    /// A password in a URL is not repeated in the message about it.
    #[test]
    fn database_urls() {
        let with = |url: &str| errors(|config| config.database.url = Some(Secret::new(url.to_owned())));
        assert!(with("postgres://u:p@localhost/db").is_empty());
        assert!(with("postgresql:///db?host=/run/postgresql").is_empty());
        assert!(with("sqlite://./x.db").is_empty() && with("sqlite:/x.db").is_empty());
        for wrong in ["mysql://u:hunter2@h/d", "postgres://u:hunter2@h:port/d", "sqlite://", "sqlite://:memory:", ""] {
            assert_eq!(with(wrong), ["database.url"], "{wrong}");
        }
        let mut config = Config::default();
        config.database.url = Some(Secret::new("postgres://u:hunter2@h:port/d".to_owned()));
        assert!(!format!("{:?}", config.check()).contains("hunter2"));
    }

    /// Secrets: both twins at once, an unreadable file, a token that no client may send.
    #[test]
    fn secrets() {
        let secret = |text: &str| Some(Secret::new(text.to_owned()));
        let file = || Some("/nonexistent/secret".into());
        assert_eq!(errors(|config| config.database.url_file = file()), ["database.url_file"]);
        assert_eq!(errors(|config| config.registration.token_file = file()), ["registration.token_file"]);
        assert_eq!(
            errors(|config| config.registration.shared_secret_file = file()),
            ["registration.shared_secret_file"]
        );
        assert_eq!(errors(|config| config.registration.shared_secret = secret("")), ["registration.shared_secret"]);
        assert_eq!(errors(|config| config.registration.token = secret("with space")), ["registration.token"]);
        let both = |config: &mut Config| {
            config.registration.token = secret("token");
            config.registration.token_file = file();
        };
        assert_eq!(errors(both), ["registration.token"]);
    }

    /// A TURN server that lets nobody in, addresses that are none, times out of range.
    #[test]
    fn calls() {
        let with = |change: fn(&mut Config)| {
            errors(|config| {
                config.turn.uris = vec!["turn:turn.example.org".to_owned()];
                config.turn.shared_secret = Some(Secret::new("north".to_owned()));
                change(config);
            })
        };
        assert!(with(|_| ()).is_empty());
        assert_eq!(with(|config| config.turn.shared_secret = None), ["turn.shared_secret"]);
        assert_eq!(with(|config| config.turn.uris.push("https://x".to_owned())), ["turn.uris[1]"]);
        assert_eq!(with(|config| config.turn.lifetime_seconds = 1), ["turn.lifetime_seconds"]);
        let url = |config: &mut Config| config.rtc.livekit_service_url = Some("ftp://x".parse().unwrap());
        assert_eq!(with(url), ["rtc.livekit_service_url"]);
    }

    /// Listeners that cannot be had together, that answer nothing, or that want TLS.
    #[test]
    fn listeners() {
        use Resource::{Client, Federation, Metrics};
        let with = |listeners: Vec<Listener>| errors(|config| config.listeners = listeners);
        assert_eq!(with(vec![]), ["listeners"]);
        let twice = vec![listener("127.0.0.1:80", &[Client]), listener("0.0.0.0:80", &[Metrics])];
        assert_eq!(with(twice), ["listeners[1].address"]);
        assert!(with(vec![listener("127.0.0.1:0", &[Client]), listener("127.0.0.1:0", &[Metrics])]).is_empty());
        assert_eq!(with(vec![listener("127.0.0.1:80", &[])]), ["listeners[0].resources"]);
        assert_eq!(with(vec![listener("127.0.0.1:80", &[Client, Client])]), ["listeners[0].resources"]);
        let tls = Listener { tls: true, ..listener("127.0.0.1:80", &[Client]) };
        assert_eq!(with(vec![tls]), ["tls.certificate", "tls.private_key"]);
        let federation = |config: &mut Config| {
            config.federation.enabled = false;
            config.listeners[0].resources.push(Federation);
        };
        assert_eq!(found(federation, Severity::Warning), ["listeners[0].resources"]);
    }

    /// Names: a public server called localhost, a base URL that is none, a data folder that is a file.
    #[test]
    fn names() {
        let public: SocketAddr = "0.0.0.0:8008".parse().unwrap();
        assert_eq!(found(|config| config.listeners[0].address = public, Severity::Warning), ["server_name"]);
        let baseurl = |url: &str| errors(|config| config.public_baseurl = Some(url.parse().unwrap()));
        assert!(baseurl("https://example.org/matrix/").is_empty());
        assert_eq!(baseurl("ftp://example.org"), ["public_baseurl"]);
        assert_eq!(baseurl("https://example.org/?x"), ["public_baseurl"]);
        assert_eq!(errors(|config| config.data_dir = "/dev/null".into()), ["data_dir"]);
    }

    /// Numbers out of range, files that are not there, a level that means nothing.
    #[test]
    fn values() {
        let never = RateLimit { per_second: 0.0, burst: 0 };
        assert_eq!(
            errors(|config| config.rate_limits.joins = never),
            ["rate_limits.joins.per_second", "rate_limits.joins.burst"]
        );
        let nan = RateLimit { per_second: f64::NAN, burst: 1 };
        assert_eq!(errors(|config| config.rate_limits.login = nan), ["rate_limits.login.per_second"]);
        assert_eq!(errors(|config| config.cache.memory = 0), ["cache.memory"]);
        assert_eq!(errors(|config| config.limits.max_body_bytes = 10), ["limits.max_body_bytes"]);
        assert_eq!(errors(|config| config.database.max_connections = 0), ["database.max_connections"]);
        assert_eq!(errors(|config| config.log.level = "info,=x=".to_owned()), ["log.level"]);
        let missing = "/nonexistent/ca.pem";
        assert_eq!(
            errors(|config| config.federation.trusted_ca_file = Some(missing.into())),
            ["federation.trusted_ca_file"]
        );
        assert_eq!(
            errors(|config| config.appservices.registration_files = vec![missing.into()]),
            ["appservices.registration_files"]
        );
    }
}
