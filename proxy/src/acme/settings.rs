//! What is asked of which authority.

use std::time::Duration;

use super::{AcmeError, Dns};

/// A kind of proof that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeKind {
    /// A file at `http://name/.well-known/acme-challenge/`.
    Http01,
    /// A certificate at `name:443`.
    TlsAlpn01,
    /// A TXT record at `_acme-challenge.name`.
    Dns01,
}

impl ChallengeKind {
    /// Its name in the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        }
    }
}

/// The key that ties the ACME account to one at the authority.
#[derive(Clone)]
pub struct ExternalAccount {
    /// Which one.
    pub key_id: String,
    /// The key, in base64url.
    pub hmac_key: String,
}

/// What is asked of which authority.
#[derive(Clone)]
pub struct AcmeSettings {
    /// The directory of the authority.
    pub directory: String,
    /// A directory to practise with, before the first certificate is asked for.
    pub staging: Option<String>,
    /// An address for the authority's warnings.
    pub contact: Option<String>,
    /// The names that the certificate is for.
    pub names: Vec<String>,
    /// The kinds of proof that can be given, the best one first. Each further attempt begins with the next one.
    pub challenges: Vec<ChallengeKind>,
    /// The account at the authority.
    pub external_account: Option<ExternalAccount>,
    /// More authorities to trust when the directory is asked, in PEM.
    pub trusted: Option<Vec<u8>>,
    /// Which kind of certificate, where the authority has several.
    pub profile: Option<String>,
    /// What makes DNS records.
    pub dns: Option<Dns>,
    /// When to try again.
    pub pace: Pace,
}

/// The times of attempts.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often it is looked whether there is something to do, or another replica has done it.
    pub poll: Duration,
    /// The pause after a first failure. It doubles with each further one.
    pub retry_first: Duration,
    /// The longest pause after failures.
    pub retry_max: Duration,
    /// The least time between two certificates, whatever clocks and authorities say.
    pub renew_min: Duration,
    /// How long the authority has to look at a proof, or to issue.
    pub answer: Duration,
}

impl AcmeSettings {
    /// What is asked for, in one text.
    pub(super) fn wanted(&self) -> String {
        let kinds: Vec<_> = self.challenges.iter().map(|kind| kind.as_str()).collect();
        let account = self.external_account.as_ref().map_or("", |account| account.key_id.as_str());
        let profile = self.profile.as_deref().unwrap_or_default();
        let dns = self.dns.as_ref().map_or_else(String::new, Dns::describe);
        format!("{} {} {} {account} {profile} {dns}", self.directory, self.names.join(","), kinds.join(","))
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(15),
            // Authorities count failures by the hour: the strictest in use allow five.
            retry_first: Duration::from_secs(5 * 60),
            retry_max: Duration::from_secs(12 * 3600),
            renew_min: Duration::from_secs(12 * 3600),
            answer: Duration::from_secs(120),
        }
    }
}

impl ExternalAccount {
    pub(super) fn key(&self) -> Result<instant_acme::ExternalAccountKey, AcmeError> {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

        let key = self.hmac_key.trim_end_matches('=').replace('+', "-").replace('/', "_");
        let key = BASE64_URL_SAFE_NO_PAD.decode(key).map_err(|_| AcmeError::ExternalAccountKey)?;
        Ok(instant_acme::ExternalAccountKey::new(self.key_id.clone(), &key))
    }
}
