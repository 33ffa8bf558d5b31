//! Getting keys from their server, or from a notary.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use myelin_rooms::remote::WantedKeys;
use myelin_store::{KeyDocument, ServerKey};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedServerName, ServerName, UInt,
    api::federation::discovery::{
        ServerSigningKeys, get_remote_server_keys_batch::v2 as batch, get_server_keys::v2 as direct,
    },
    serde::{Base64, Raw},
};
use tokio::time;

use super::{
    BATCH_PARALLEL, FETCHES, Missing, document,
    document::{Document, DocumentError, Source},
    is_current, is_supported, now_ms, satisfies,
};
use crate::Client;

/// The time for asking all servers of a batch. Those that are slower are left to the notaries.
const SERVERS_DEADLINE: Duration = Duration::from_secs(25);
/// The time for asking the notaries.
const NOTARIES_DEADLINE: Duration = Duration::from_secs(40);
/// Servers in one question to a notary.
const NOTARY_BATCH: usize = 100;

impl Client {
    /// Asks servers for their own keys.
    pub(super) async fn fetch_from_servers(&self, missing: &Missing) {
        let asking = stream::iter(missing.clone()).for_each_concurrent(BATCH_PARALLEL, async |(server, wanted)| {
            self.fetch_from_server(&server, Some(&wanted)).await;
        });
        // Each one has its own deadline; this is for many that are slow.
        let _ = time::timeout(SERVERS_DEADLINE, Box::pin(asking)).await;
    }

    /// Asks a server for its keys, unless that was done lately, or what is wanted has come meanwhile.
    pub(super) async fn fetch_from_server(&self, server: &ServerName, wanted: Option<&WantedKeys>) {
        let flight = self.keys.flight(server);
        let _alone = flight.lock().await;
        if let Some(wanted) = wanted
            && satisfies(&*self.known(server).await, wanted)
        {
            return;
        }
        if !self.keys.attempts.may_ask(server, Source::Server) {
            return;
        }
        // The semaphore is never closed.
        let Ok(_place) = self.keys.fetches.acquire().await else { return };
        let outcome = match self.call(server, direct::Request::new()).await {
            Ok(answer) => match document::check(answer.server_key.json().get(), server) {
                Ok(document) => self.learn(server, &document, Source::Server).await,
                Err(error) => {
                    tracing::info!(server.name = %server, %error, "{server} publishes no good keys: {error}");
                    "bad"
                }
            },
            Err(error) => {
                tracing::debug!(server.name = %server, %error, "the keys of {server} cannot be had from it: {error}");
                "unreachable"
            }
        };
        FETCHES.with_label_values(&["server", outcome]).inc();
        self.keys.attempts.note(server, Source::Server, outcome == "ok");
    }

    /// Asks notaries for the keys of servers, one after the other, until all are there.
    pub(super) async fn fetch_from_notaries(&self, missing: &Missing) {
        let asking = async {
            for notary in &self.options.trusted_key_servers {
                let mut asked = self.missing(missing.clone()).await;
                asked.retain(|(server, _)| server != notary && self.keys.attempts.may_ask(server, Source::Notary));
                if asked.is_empty() || *notary == self.options.server_name {
                    continue;
                }
                for some in asked.chunks(NOTARY_BATCH) {
                    self.fetch_from_notary(notary, some).await;
                }
            }
        };
        let is_done = time::timeout(NOTARIES_DEADLINE, Box::pin(asking)).await.is_ok();
        if is_done {
            for (server, wanted) in missing {
                let is_had = satisfies(&*self.known(server).await, wanted);
                self.keys.attempts.note(server, Source::Notary, is_had);
            }
        }
    }

    async fn fetch_from_notary(&self, notary: &ServerName, asked: &[(OwnedServerName, WantedKeys)]) {
        let notary_keys = self.notary_keys(notary).await;
        if notary_keys.is_empty() {
            FETCHES.with_label_values(&["notary", "unknown_notary"]).inc();
            tracing::warn!("the keys of the notary {notary} cannot be had, so it cannot be asked");
            return;
        }
        let answer = match self.call(notary, question(asked)).await {
            Ok(answer) => answer,
            Err(error) => {
                FETCHES.with_label_values(&["notary", "unreachable"]).inc();
                tracing::info!(%error, "the notary {notary} does not answer: {error}");
                return;
            }
        };
        let expected: BTreeSet<&str> = asked.iter().map(|(server, _)| server.as_str()).collect();
        for told in &answer.server_keys {
            let outcome = match notarised(told, notary, &notary_keys, &expected) {
                Ok((server, document)) => self.learn(&server, &document, Source::Notary).await,
                Err(error) => {
                    tracing::info!(%error, "the notary {notary} tells of keys that are not good: {error}");
                    "bad"
                }
            };
            FETCHES.with_label_values(&["notary", outcome]).inc();
        }
    }

    /// The keys by which a notary signs now, from itself.
    async fn notary_keys(&self, notary: &ServerName) -> BTreeMap<String, Base64> {
        let wanted = WantedKeys { key_ids: BTreeSet::new(), valid_at_ts: now_ms().unsigned_abs() };
        if !satisfies(&*self.known(notary).await, &wanted) {
            self.fetch_from_server(notary, Some(&wanted)).await;
        }
        let now = now_ms();
        let known = self.known(notary).await;
        let current = known.values().filter(|key| is_current(key, now));
        current.map(|key| (key.key_id.clone(), Base64::new(key.public_key.clone()))).collect()
    }

    /// Writes down what a document tells and is to be believed.
    async fn learn(&self, server: &ServerName, document: &Document, source: Source) -> &'static str {
        let now = now_ms();
        let known = self.known(server).await;
        let news: Vec<ServerKey> = document
            .keys
            .iter()
            .filter_map(|key| document::merged(known.get(&key.key_id), document, key, source, now))
            .collect();
        if news.is_empty() {
            return "nothing_new";
        }
        let json = match serde_json::to_string(&document.object) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, "the key document of {server} cannot be written");
                return "bad";
            }
        };
        let stored = KeyDocument { fetched_ts: now, valid_until_ts: document.valid_until_ts, json };
        if let Err(error) = self.store.store_server_keys(server.as_str(), &stored, &news).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the keys of {server} cannot be written down");
        }
        let mut together = known.as_ref().clone();
        together.extend(news.into_iter().map(|key| (key.key_id.clone(), key)));
        self.keys.known.insert(server.to_owned(), Arc::new(together));
        "ok"
    }
}

fn question(asked: &[(OwnedServerName, WantedKeys)]) -> batch::Request {
    let mut servers = BTreeMap::new();
    for (server, wanted) in asked {
        let mut criteria = batch::QueryCriteria::new();
        let valid_at = wanted.valid_at_ts.min(now_ms().unsigned_abs());
        criteria.minimum_valid_until_ts = UInt::new(valid_at).map(MilliSecondsSinceUnixEpoch);
        let key_ids = wanted.key_ids.iter().filter(|key_id| is_supported(key_id));
        let keys = key_ids.filter_map(|key_id| Some((key_id.as_str().try_into().ok()?, criteria.clone()))).collect();
        servers.insert(server.clone(), keys);
    }
    batch::Request::new(servers)
}

/// A document that a notary gives us of a server that we asked for.
fn notarised(
    told: &Raw<ServerSigningKeys>,
    notary: &ServerName,
    notary_keys: &BTreeMap<String, Base64>,
    expected: &BTreeSet<&str>,
) -> Result<(OwnedServerName, Document), DocumentError> {
    let json = told.json().get();
    let (name, _) = document::parse(json)?;
    let server = OwnedServerName::try_from(name.as_str()).map_err(|_| DocumentError::Field("server_name"))?;
    if !expected.contains(name.as_str()) {
        return Err(DocumentError::OtherServer(name));
    }
    document::check_notary(json, notary, notary_keys.clone())?;
    let document = document::check(json, &server)?;
    Ok((server, document))
}
