//! One order, from the account to the certificate.

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Error,
    Identifier, KeyAuthorization, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};

use super::{AcmeError, AcmeSettings, ChallengeKind, Proof, Storage, client::Client, dns::TxtRecord};

/// What one attempt works with.
pub(super) struct Attempt<'a, S> {
    pub(super) settings: &'a AcmeSettings,
    pub(super) storage: &'a S,
    /// How many failed before: the kinds of proof are taken in turns.
    pub(super) failures: u32,
}

/// A chain and its key, in PEM.
pub(super) struct Answer {
    pub(super) chain: String,
    pub(super) private_key: String,
}

/// What was prepared for the authority to see, to be cleared away.
#[derive(Default)]
struct Prepared {
    proofs: Vec<Proof>,
    records: Vec<TxtRecord>,
    /// Which name is proven how.
    kinds: Vec<(String, ChallengeKind)>,
}

impl<S: Storage> Attempt<'_, S> {
    /// Gets a certificate from the authority at `directory`, in place of `replaces`.
    pub(super) async fn run(
        &self,
        directory: &str,
        replaces: Option<CertificateIdentifier<'static>>,
    ) -> Result<Answer, AcmeError> {
        let client = Client::new(self.settings.trusted.as_deref())?;
        let outcome = match self.order(&client, directory, replaces.clone(), false).await {
            Err(error) if error.is_lost_account() => {
                tracing::warn!("the certificate authority has forgotten our account; making another one");
                self.order(&client, directory, replaces, true).await
            }
            outcome => outcome,
        };
        outcome.map_err(|error| explain(error, &client))
    }

    /// The account at `directory`: the one that is kept, or a new one.
    pub(super) async fn account(&self, client: &Client, directory: &str, anew: bool) -> Result<Account, AcmeError> {
        let builder = Account::builder_with_http(Box::new(client.clone()));
        if !anew && let Some(kept) = self.storage.account(directory).await? {
            let credentials: AccountCredentials = serde_json::from_str(&kept).map_err(Error::from)?;
            return Ok(builder.from_credentials(credentials).await?);
        }
        let contact = self.settings.contact.as_ref().map(|address| format!("mailto:{address}"));
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = self.settings.external_account.as_ref().map(|account| account.key()).transpose()?;
        let (account, credentials) = builder.create(&new, directory.to_owned(), external.as_ref()).await?;
        let credentials = serde_json::to_string(&credentials).map_err(Error::from)?;
        self.storage.save_account(directory, &credentials).await?;
        tracing::info!(acme.directory = directory, "made an account at the certificate authority");
        Ok(account)
    }

    async fn order(
        &self,
        client: &Client,
        directory: &str,
        replaces: Option<CertificateIdentifier<'static>>,
        new_account: bool,
    ) -> Result<Answer, AcmeError> {
        let account = self.account(client, directory, new_account).await?;
        let identifiers: Vec<_> = self.settings.names.iter().map(|name| identifier(name)).collect();
        let new = || {
            let order = NewOrder::new(&identifiers);
            match &self.settings.profile {
                Some(profile) => order.profile(profile),
                None => order,
            }
        };
        let mut order = match replaces {
            // Authorities without renewal information, and those that know nothing of the old one, refuse it.
            Some(replaces) => match account.new_order(&new().replaces(replaces)).await {
                Ok(order) => order,
                Err(Error::Api(problem)) if is_rate_limit(problem.r#type.as_deref()) => {
                    return Err(Error::Api(problem).into());
                }
                Err(error) => {
                    tracing::debug!(%error, "the old certificate cannot be named in the order");
                    account.new_order(&new()).await?
                }
            },
            None => account.new_order(&new()).await?,
        };
        let mut prepared = Prepared::default();
        let answer = self.complete(&mut order, &mut prepared).await;
        self.clear(prepared).await;
        answer
    }

    async fn complete(&self, order: &mut Order, prepared: &mut Prepared) -> Result<Answer, AcmeError> {
        self.prepare(order, prepared).await?;
        if let (Some(dns), false) = (&self.settings.dns, prepared.records.is_empty()) {
            dns.wait(&prepared.records).await?;
        }
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            if let Some((_, kind)) = prepared.kinds.iter().find(|(of, _)| *of == name)
                && let Some(mut challenge) = authorization.challenge(challenge_type(*kind))
            {
                challenge.set_ready().await?;
            }
        }
        let patience = RetryPolicy::new().timeout(self.settings.pace.answer);
        match order.poll_ready(&patience).await {
            Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
            Ok(_) => return Err(not_proven(order, prepared, None).await),
            Err(Error::Api(problem)) => return Err(not_proven(order, prepared, Some(problem.to_string())).await),
            Err(Error::Timeout(_)) => return Err(AcmeError::Timeout(self.settings.pace.answer)),
            Err(error) => return Err(error.into()),
        }
        let private_key = order.finalize().await?;
        let chain = order.poll_certificate(&patience).await?;
        Ok(Answer { chain, private_key })
    }

    /// Puts a proof for each name where the authority will look for it.
    async fn prepare(&self, order: &mut Order, prepared: &mut Prepared) -> Result<(), AcmeError> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let identifier = authorization.identifier();
            let (name, shown) = (identifier.identifier, identifier.to_string());
            let bare = match name {
                Identifier::Dns(name) => name.clone(),
                other => other.authorized(false).to_string(),
            };
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // The authority remembers an earlier proof.
                AuthorizationStatus::Valid => continue,
                status => {
                    let reason = format!("its authorisation is {status:?}");
                    return Err(AcmeError::NotProven { name: shown, kind: "an earlier proof", reason });
                }
            }
            let offered: Vec<_> = authorization.challenges.iter().map(|challenge| challenge.r#type.clone()).collect();
            let kind = self
                .kind(&offered)
                .ok_or_else(|| AcmeError::NoChallenge { name: shown.clone(), offered: format!("{offered:?}") })?;
            let Some(challenge) = authorization.challenge(challenge_type(kind)) else { continue };
            let (token, authorised) = (challenge.token.clone(), challenge.key_authorization());
            self.show(kind, &bare, token, &authorised, prepared).await?;
            prepared.kinds.push((shown, kind));
        }
        Ok(())
    }

    /// The best kind that is offered; after failures, the one after it.
    fn kind(&self, offered: &[ChallengeType]) -> Option<ChallengeKind> {
        let possible: Vec<_> = self
            .settings
            .challenges
            .iter()
            .filter(|kind| **kind != ChallengeKind::Dns01 || self.settings.dns.is_some())
            .filter(|kind| offered.contains(&challenge_type(**kind)))
            .collect();
        let turn = usize::try_from(self.failures).unwrap_or(0);
        possible.get(turn.checked_rem(possible.len())?).map(|kind| **kind)
    }

    async fn show(
        &self,
        kind: ChallengeKind,
        name: &str,
        token: String,
        authorised: &KeyAuthorization,
        prepared: &mut Prepared,
    ) -> Result<(), AcmeError> {
        let proof = match (kind, &self.settings.dns) {
            (ChallengeKind::Http01, _) => {
                Proof { kind: kind.as_str(), subject: token, value: authorised.as_str().to_owned() }
            }
            (ChallengeKind::TlsAlpn01, _) => {
                Proof { kind: kind.as_str(), subject: name.to_owned(), value: hex(authorised.digest().as_ref()) }
            }
            (ChallengeKind::Dns01, Some(dns)) => {
                let record = TxtRecord { name: format!("_acme-challenge.{name}"), value: authorised.dns_value() };
                prepared.records.push(record.clone());
                return Ok(dns.set(&record).await?);
            }
            // It is not chosen then.
            (ChallengeKind::Dns01, None) => {
                let offered = kind.as_str().to_owned();
                return Err(AcmeError::NoChallenge { name: name.to_owned(), offered });
            }
        };
        prepared.proofs.push(proof.clone());
        Ok(self.storage.save_proof(&proof).await?)
    }

    /// Takes away what the authority has seen. What fails is no harm: nobody asks for it again.
    async fn clear(&self, prepared: Prepared) {
        for proof in &prepared.proofs {
            if let Err(error) = self.storage.forget_proof(proof).await {
                tracing::warn!(error, "a proof for the certificate authority could not be removed");
            }
        }
        for record in &prepared.records {
            let Some(dns) = &self.settings.dns else { return };
            if let Err(error) = dns.clear(record).await {
                tracing::warn!(%error, "a DNS record for the certificate authority could not be removed");
            }
        }
    }
}

/// What the authority did not like, as precisely as it tells.
async fn not_proven(order: &mut Order, prepared: &Prepared, said: Option<String>) -> AcmeError {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            break;
        }
        let name = authorization.identifier().to_string();
        let failed = authorization.challenges.iter().find(|challenge| challenge.status == ChallengeStatus::Invalid);
        if let Some(failed) = failed {
            let kind = prepared.kinds.iter().find(|(of, _)| *of == name).map_or("it", |(_, kind)| kind.as_str());
            let reason = failed.error.as_ref().map_or_else(|| "it does not say why".to_owned(), ToString::to_string);
            return AcmeError::NotProven { name, kind, reason };
        }
    }
    let reason = said.unwrap_or_else(|| "it does not say why".to_owned());
    AcmeError::NotProven { name: "a name".to_owned(), kind: "any of the proofs", reason }
}

/// Puts the cause in place of what the library could tell.
fn explain(error: AcmeError, client: &Client) -> AcmeError {
    let trouble = client.trouble.lock();
    match (&error, &trouble.unreachable) {
        (AcmeError::Protocol(Error::Other(_)), Some((host, reason))) => {
            AcmeError::Unreachable { host: host.clone(), reason: reason.clone() }
        }
        _ if is_rate_limit(error.problem()) || trouble.retry_after.is_some() => {
            AcmeError::RateLimited(error.to_string(), trouble.retry_after)
        }
        _ => error,
    }
}

fn is_rate_limit(problem: Option<&str>) -> bool {
    problem == Some("urn:ietf:params:acme:error:rateLimited")
}

fn identifier(name: &str) -> Identifier {
    match name.parse() {
        Ok(address) => Identifier::Ip(address),
        Err(_) => Identifier::Dns(name.to_owned()),
    }
}

fn challenge_type(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::Http01 => ChallengeType::Http01,
        ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        ChallengeKind::Dns01 => ChallengeType::Dns01,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}
