//! `[acme]`

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Config, Problem, Secret, SecretError, TlsMode, check::check_readable, section::section};

section! {
    /// The certificate authority, for `tls.mode = "acme"`.
    pub struct Acme {
        /// Whether you accept the authority's terms of service. Without it no certificate is asked for.
        pub accept_terms: bool = false,
        /// The authority's directory. The default is that of Let's Encrypt.
        pub directory: Url = Url::parse(LETS_ENCRYPT).expect("it is an address"),
        /// A directory to practise with before the first certificate is asked for, so that mistakes do not count against
        /// the limits of the real one.
        pub staging_directory: Option<Url> = None => "\"https://acme-staging-v02.api.letsencrypt.org/directory\"",
        /// An address of e-mail for the authority's warnings.
        pub contact: Option<String> = None => "\"admin@example.org\"",
        /// The names of the certificate. Empty: the server's name and the host of `public_baseurl`.
        pub names: Vec<String> = Vec::new(),
        /// How the authority sees that the names are this server's: `tls_alpn_01` (it connects to port 443, to a listener
        /// with `tls = true`), `http_01` (port 80, to a listener without), `dns_01` (by `dns_server` or `dns_command`). The first
        /// one is tried first, and after a failure the next one.
        pub challenges: Vec<AcmeChallenge> = vec![AcmeChallenge::TlsAlpn01, AcmeChallenge::Http01],
        /// The DNS server that takes updates of the zone (RFC 2136), for `dns_01`: a host, and its port if it is not 53.
        pub dns_server: Option<String> = None => "\"ns1.example.org\"",
        /// The zone that is updated. Without it the server is asked in which of its zones each name is.
        pub dns_zone: Option<String> = None => "\"example.org\"",
        /// The name of the key that updates are signed with (TSIG).
        pub dns_key_name: Option<String> = None => "\"myelin\"",
        /// What the key is for: `hmac-sha256` or `hmac-sha512`.
        pub dns_key_algorithm: DnsKeyAlgorithm = DnsKeyAlgorithm::HmacSha256,
        /// The key's secret, in base64.
        pub dns_key_secret: Option<Secret> = None => "\"c2VjcmV0\"",
        /// The file that the secret stands in.
        pub dns_key_secret_file: Option<PathBuf> = None => "\"/etc/myelin/dns_key\"",
        /// Seconds that others may remember a record.
        pub dns_ttl_seconds: u32 = 60,
        /// Other servers of the zone that must know a new record before the authority is asked to look.
        pub dns_other_servers: Vec<String> = Vec::new(),
        /// A program that makes TXT records, for `dns_01`. It is called as `program set NAME VALUE` and
        /// `program clear NAME VALUE`, with a name such as `_acme-challenge.example.org`.
        pub dns_command: Option<PathBuf> = None => "\"/etc/myelin/dns-record\"",
        /// Seconds until all of the zone's servers know a new record: `dns_command` is given so many, of `dns_server` and
        /// `dns_other_servers` it is seen, and after so many given up.
        pub dns_wait_seconds: u64 = 30,
        /// The id of an account at the authority that this server's account is to belong to (external account binding).
        pub external_account_id: Option<String> = None => "\"kid-1\"",
        /// The key of that account, in base64url.
        pub external_account_key: Option<Secret> = None => "\"c2VjcmV0\"",
        /// The file that the key stands in.
        pub external_account_key_file: Option<PathBuf> = None => "\"/etc/myelin/acme_key\"",
        /// Which of the authority's kinds of certificate is wanted.
        pub profile: Option<String> = None => "\"shortlived\"",
        /// Certificate authorities, in PEM, that are trusted besides those of the operating system when the directory is
        /// asked.
        pub trusted_ca_file: Option<PathBuf> = None => "\"/etc/myelin/acme-ca.pem\"",
    }
}

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// How an authority sees that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum AcmeChallenge {
    /// By a certificate.
    #[serde(rename = "tls_alpn_01")]
    TlsAlpn01,
    /// By a file.
    #[serde(rename = "http_01")]
    Http01,
    /// By a record.
    #[serde(rename = "dns_01")]
    Dns01,
}

/// What the key of a DNS server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum DnsKeyAlgorithm {
    /// HMAC with SHA-256.
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    /// HMAC with SHA-512.
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

impl Config {
    /// The names that a certificate is asked for.
    #[must_use]
    pub fn acme_names(&self) -> Vec<String> {
        if !self.acme.names.is_empty() {
            return self.acme.names.clone();
        }
        let mut names = vec![self.server_name.host().trim_matches(['[', ']']).to_owned()];
        let base = self.client_baseurl().host_str().map(|host| host.trim_matches(['[', ']']).to_owned());
        names.extend(base.filter(|base| !names.contains(base)));
        names
    }

    /// The key of the external account, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn acme_external_account_key(&self) -> Result<Option<Secret>, SecretError> {
        Secret::resolve(self.acme.external_account_key.as_ref(), self.acme.external_account_key_file.as_deref())
    }

    /// The secret of the key that DNS updates are signed with, if there is one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty.
    pub fn acme_dns_key_secret(&self) -> Result<Option<Secret>, SecretError> {
        Secret::resolve(self.acme.dns_key_secret.as_ref(), self.acme.dns_key_secret_file.as_deref())
    }

    /// What is wrong with how certificates are asked for.
    pub(super) fn check_acme(&self, found: &mut Vec<Problem>) {
        let acme = &self.acme;
        if self.tls.mode != TlsMode::Acme || !self.listeners.iter().any(|listener| listener.tls) {
            return;
        }
        if !acme.accept_terms {
            let message = "set it to true if you accept the terms of service of the certificate authority";
            found.push(Problem::error("acme.accept_terms", message));
        }
        for (key, url) in
            [("acme.directory", Some(&acme.directory)), ("acme.staging_directory", acme.staging_directory.as_ref())]
        {
            if url.is_some_and(|url| url.scheme() != "https" || url.host().is_none()) {
                found.push(Problem::error(key, "it must begin with https:// and a host"));
            }
        }
        for name in self.acme_names() {
            self.check_acme_name(&name, found);
        }
        if acme.challenges.is_empty() {
            found.push(Problem::error("acme.challenges", "there is none, so no name could ever be proven"));
        }
        let plain = self.listeners.iter().any(|listener| !listener.tls);
        if acme.challenges == [AcmeChallenge::Http01] && !plain {
            let message = "`http_01` needs a listener without TLS, which the authority reaches at port 80";
            found.push(Problem::error("acme.challenges", message));
        }
        self.check_acme_dns(found);
        for (key, path) in [("acme.dns_command", &acme.dns_command), ("acme.trusted_ca_file", &acme.trusted_ca_file)] {
            if let Some(path) = path {
                check_readable(found, key, path);
            }
        }
        match self.acme_external_account_key() {
            Err(error) => found.push(Problem::error("acme.external_account_key_file", error.to_string())),
            Ok(key) if key.is_some() != acme.external_account_id.is_some() => found.push(Problem::error(
                "acme.external_account_id",
                "an external account needs both external_account_id and external_account_key",
            )),
            Ok(_) => {}
        }
    }

    fn check_acme_dns(&self, found: &mut Vec<Problem>) {
        let acme = &self.acme;
        let mut wrong = |key: &str, message: &str| found.push(Problem::error(key, message));
        if acme.challenges.contains(&AcmeChallenge::Dns01) && acme.dns_command.is_none() && acme.dns_server.is_none() {
            wrong("acme.dns_server", "it is missing, and so is dns_command, but acme.challenges has `dns_01`");
        }
        if acme.dns_server.is_none() {
            return;
        }
        if acme.dns_command.is_some() {
            wrong("acme.dns_command", "it cannot be used together with dns_server");
        }
        if acme.dns_key_name.is_none() {
            wrong("acme.dns_key_name", "it is missing: updates of dns_server have to be signed");
        }
        match self.acme_dns_key_secret() {
            Err(error) => wrong("acme.dns_key_secret_file", &error.to_string()),
            Ok(None) => wrong("acme.dns_key_secret", "it is missing: updates of dns_server have to be signed"),
            Ok(Some(_)) => {}
        }
    }

    fn check_acme_name(&self, name: &str, found: &mut Vec<Problem>) {
        let is_name = name.len() <= 253
            && name.trim_start_matches("*.").split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            });
        if name.parse::<std::net::IpAddr>().is_err() && !is_name {
            found.push(Problem::error("acme.names", format!("`{name}` is no DNS name")));
        } else if name.starts_with("*.") && !self.acme.challenges.contains(&AcmeChallenge::Dns01) {
            found.push(Problem::error("acme.names", format!("`{name}` can be proven by `dns_01` only")));
        } else if !name.contains(['.', ':']) {
            let message = format!("no public authority issues a certificate for `{name}`");
            found.push(Problem::warning("acme.names", message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AcmeChallenge, Config, Secret, TlsMode};
    use crate::config::Listener;

    fn problems(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config { server_name: "example.org".try_into().unwrap(), ..Config::default() };
        config.tls.mode = TlsMode::Acme;
        config.acme.accept_terms = true;
        config.listeners.push(Listener { address: "127.0.0.1:443".parse().unwrap(), tls: true, ..Listener::default() });
        change(&mut config);
        config.check().into_iter().map(|problem| problem.key).collect()
    }

    /// What no authority could do anything with is refused before one is asked.
    #[test]
    fn refuses_what_cannot_be_issued() {
        assert!(problems(|_| {}).is_empty(), "{:?}", problems(|_| {}));
        assert_eq!(problems(|config| config.acme.accept_terms = false), ["acme.accept_terms"]);
        assert_eq!(problems(|config| config.acme.directory = "http://a.example/".parse().unwrap()), ["acme.directory"]);
        for name in ["a b.example", "", "*.example.org", "-_.example", "localhost", "a..example"] {
            assert_eq!(problems(|config| config.acme.names = vec![name.to_owned()]), ["acme.names"], "{name}");
        }
        assert_eq!(problems(|config| config.acme.challenges.clear()), ["acme.challenges"]);
        let dns = |config: &mut Config| config.acme.challenges = vec![AcmeChallenge::Dns01];
        assert_eq!(problems(dns), ["acme.dns_server"]);
        let update = |config: &mut Config| {
            dns(config);
            config.acme.names = vec!["*.example.org".to_owned()];
            config.acme.dns_server = Some("127.0.0.1:53".to_owned());
        };
        assert_eq!(problems(update), ["acme.dns_key_name", "acme.dns_key_secret"]);
        let signed = |config: &mut Config| {
            update(config);
            config.acme.dns_key_name = Some("myelin".to_owned());
            config.acme.dns_key_secret = Some(Secret::new("c2VjcmV0".to_owned()));
        };
        assert!(problems(signed).is_empty());
        let both = |config: &mut Config| {
            signed(config);
            config.acme.dns_command = Some("/bin/true".into());
        };
        assert_eq!(problems(both), ["acme.dns_command"]);
        let unreadable = |config: &mut Config| {
            signed(config);
            config.acme.dns_key_secret = None;
            config.acme.dns_key_secret_file = Some("/nonexistent/key".into());
        };
        assert_eq!(problems(unreadable), ["acme.dns_key_secret_file"]);
        let http = |config: &mut Config| {
            config.acme.challenges = vec![AcmeChallenge::Http01];
            config.listeners.iter_mut().for_each(|listener| listener.tls = true);
        };
        assert_eq!(problems(http), ["acme.challenges"]);
        let key = |config: &mut Config| config.acme.external_account_key = Some(Secret::new("key".to_owned()));
        assert_eq!(problems(key), ["acme.external_account_id"]);
        let missing = |config: &mut Config| config.acme.trusted_ca_file = Some("/nonexistent/ca.pem".into());
        assert_eq!(problems(missing), ["acme.trusted_ca_file"]);
    }

    /// The certificate is for the server's name and the base URL's host, unless other names are given.
    #[test]
    fn names_follow_from_the_server() {
        let mut config = Config { server_name: "example.org".try_into().unwrap(), ..Config::default() };
        assert_eq!(config.acme_names(), ["example.org"]);
        config.public_baseurl = Some("https://matrix.example.org/".parse().unwrap());
        assert_eq!(config.acme_names(), ["example.org", "matrix.example.org"]);
        config.acme.names = vec!["a.example".to_owned()];
        assert_eq!(config.acme_names(), ["a.example"]);
    }
}
