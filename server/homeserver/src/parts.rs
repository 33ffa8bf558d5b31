//! What a server is made of, opened and closed in order.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow};
use futures_util::FutureExt as _;
use myelin_accounts::{Accounts, AccountsOptions};
use myelin_client_api::{CallOptions, RoomProfiles, TurnOptions};
use myelin_encryption::Encryption;
use myelin_federation::{
    Client, ClientOptions, DeviceEdus, WebClient,
    sender::{Sender, SenderOptions},
};
use myelin_federation_api::Inbound;
use myelin_http::{LayerOptions, RateLimit, RateLimiter, RateLimits};
use myelin_media::{Media, MediaOptions};
use myelin_process::{
    config::{self, Config, Secret, SecretError},
    shutdown::Shutdown,
};
use myelin_push::{Duty, HttpGateways, Pushers};
use myelin_rooms::{
    Rooms,
    search::{Indexer, IndexerOptions},
};
use myelin_store::{DatabaseOptions, Error, SoleServer, Store, StoreOptions};
use myelin_sync::{Sync, SyncOptions};
use ruma::signatures::Ed25519KeyPair;
use tokio::sync::broadcast::error::RecvError;
use url::Url;

use crate::{
    exit::{Exit, Failure},
    health::Probe,
};

/// A handler that takes longer than this is named in the log.
const SLOW: Duration = Duration::from_secs(1);
/// The share of `cache.memory` that sessions and filters have; the store has the others.
const ACCOUNTS_SHARE: u64 = 8;

/// The capabilities, all open.
pub(crate) struct Parts {
    pub(crate) store: Arc<Store>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) sync: Arc<Sync>,
    pub(crate) encryption: Arc<Encryption>,
    /// `None` where federation is off.
    pub(crate) federation: Option<Federation>,
    pub(crate) media: Arc<Media>,
    pub(crate) pushers: Arc<Pushers>,
    /// Tells push gateways.
    push: Arc<Duty>,
    pub(crate) rate_limiter: Arc<RateLimiter>,
    pub(crate) calls: Arc<CallOptions>,
    /// Makes what is written findable.
    indexer: Arc<Indexer>,
    /// Keeps other processes from serving an embedded database.
    _sole_server: Option<SoleServer>,
}

/// What rooms are shared with other servers by.
pub(crate) struct Federation {
    pub(crate) client: Arc<Client>,
    pub(crate) sender: Arc<Sender>,
    pub(crate) inbound: Arc<Inbound>,
}

impl Federation {
    /// Opens the way to other servers, and shows it to those who use it.
    async fn open(
        config: &Config,
        store: &Arc<Store>,
        rooms: &Rooms,
        encryption: &Arc<Encryption>,
    ) -> Result<Option<Self>, Failure> {
        if !config.federation.enabled {
            return Ok(None);
        }
        let options = ClientOptions::from_config(config.server_name.clone(), &config.federation);
        let client = Client::new(Arc::clone(store), options)
            .await
            .context("prepare requests to other servers")
            .map_err(|error| Failure::new(Exit::Config, error))?;
        let options = SenderOptions {
            presence: config.presence.enabled,
            sources: vec![Arc::new(DeviceEdus(Arc::clone(encryption)))],
            ..SenderOptions::new(config.server_name.clone())
        };
        let sender = Sender::new(Arc::clone(store), client.clone(), options);
        rooms.connect(client.clone());
        encryption.connect(client.clone(), sender.clone());
        Ok(Some(Self { client, sender, inbound: Arc::default() }))
    }

    /// Starts what runs beside requests.
    fn start(&self, rooms: &Arc<Rooms>, shutdown: &Shutdown) {
        let (client, stop) = (Arc::clone(&self.client), shutdown.token());
        shutdown.spawn(async move { stop.run_until_cancelled(client.keep_swept()).await });
        shutdown.spawn(Arc::clone(&self.sender).run(shutdown.token()));
        let (sender, stop, mut heard) = (Arc::clone(&self.sender), shutdown.token(), self.client.heard());
        shutdown.spawn(async move {
            stop.run_until_cancelled(async move {
                loop {
                    match heard.recv().await {
                        Ok(server) => sender.wake(&server),
                        // Those that were missed are heard from again.
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return,
                    }
                }
            })
            .await
        });
        let (rooms, stop) = (Arc::clone(rooms), shutdown.token());
        shutdown.spawn(async move {
            stop.run_until_cancelled(async move {
                if let Err(error) = Box::pin(rooms.resume_inbound()).await {
                    tracing::warn!(%error, "events that were acknowledged wait until the next start: {error}");
                }
            })
            .await
        });
    }
}

impl Parts {
    /// Opens everything.
    pub(crate) async fn open(config: &Config) -> Result<Self, Failure> {
        let rate_limiter = RateLimiter::new(&rate_limits(config)).map_err(|error| Failure::new(Exit::Config, error))?;
        let store = open_store(config).await?;
        let sole_server = store.serve_alone().await.map_err(|error| unavailable(config, error))?;
        let (version, document) = store.signing_key().await.map_err(|error| unavailable(config, error))?;
        let key = Ed25519KeyPair::from_der(&document, version).map_err(|error| {
            Failure::new(Exit::Software, anyhow!("the signing key in the database is damaged: {error}"))
        })?;
        let rooms = Rooms::new(Arc::clone(&store), config.server_name.clone(), key);
        let accounts = open_accounts(config, Arc::clone(&store)).await?;
        accounts.observe(Arc::new(RoomProfiles::new(Arc::clone(&rooms))));
        let folder = config.data_dir.join("media");
        let media = Media::open(Arc::clone(&store), media_options(config))
            .await
            .with_context(|| format!("open the folder of uploaded files {}", folder.display()))
            .map_err(|error| Failure::new(Exit::CannotCreate, error))?;
        let options = SyncOptions { timeout_max: config.limits.max_sync_timeout(), presence: config.presence.enabled };
        let sync = Sync::new(Arc::clone(&store), Arc::clone(&rooms), options);
        let gateways = HttpGateways::new(&config.outbound)
            .context("prepare requests to push gateways")
            .map_err(|error| Failure::new(Exit::Config, error))?;
        let push = Duty::new(Arc::clone(&store), Arc::clone(&sync), Arc::new(gateways));
        let pushers = Arc::new(Pushers::new(Arc::clone(&store), config.outbound.allow_private_addresses));
        let encryption = Encryption::new(Arc::clone(&store), config.server_name.clone());
        let federation = Federation::open(config, &store, &rooms, &encryption).await?;
        let calls = call_options(config)?;
        let indexer = Indexer::new(Arc::clone(&rooms), IndexerOptions::default());
        if let Some(federation) = &federation {
            media.connect(federation.client.clone());
        }
        if config.media.url_previews {
            let web = WebClient::new(&config.outbound)
                .context("prepare requests for web pages")
                .map_err(|error| Failure::new(Exit::Config, error))?;
            media.connect_web(Arc::new(web), config.media.denied_preview_hosts.clone());
        }
        Ok(Self {
            store,
            accounts,
            rooms,
            sync,
            encryption,
            federation,
            media,
            pushers,
            push,
            rate_limiter: Arc::new(rate_limiter),
            calls: Arc::new(calls),
            indexer,
            _sole_server: sole_server,
        })
    }

    /// Looks whether the database answers.
    pub(crate) fn database_probe(&self) -> Probe {
        let store = Arc::clone(&self.store);
        Box::new(move || {
            let store = Arc::clone(&store);
            async move {
                if store.database().is_reachable().await {
                    return Ok(());
                }
                Err(anyhow!("the database does not answer; see that it runs and that database.url is right"))
            }
            .boxed()
        })
    }

    /// Starts what runs beside requests.
    pub(crate) fn start(&self, shutdown: &Shutdown) {
        let limiter = Arc::clone(&self.rate_limiter);
        let stop = shutdown.token();
        shutdown.spawn(async move { stop.run_until_cancelled(limiter.keep_swept()).await });
        let (media, stop) = (Arc::clone(&self.media), shutdown.token());
        shutdown.spawn(async move { stop.run_until_cancelled(Box::pin(media.keep_swept())).await });
        let (encryption, stop) = (Arc::clone(&self.encryption), shutdown.token());
        shutdown.spawn(async move { stop.run_until_cancelled(Box::pin(encryption.keep())).await });
        shutdown.spawn(Arc::clone(&self.push).run(shutdown.token()));
        if let Some(federation) = &self.federation {
            federation.start(&self.rooms, shutdown);
        }
        let (indexer, stop) = (Arc::clone(&self.indexer), shutdown.token());
        shutdown.spawn(async move {
            let (tell, told) = tokio::sync::watch::channel(false);
            let mut running = Box::pin(indexer.run(told));
            tokio::select! {
                () = &mut running => {}
                () = stop.cancelled() => {
                    // It lets go of its lease.
                    tell.send_replace(true);
                    running.await;
                }
            }
        });
        // Those who wait for news are answered at once when the server stops.
        let (sync, told) = (Arc::clone(&self.sync), shutdown.clone());
        shutdown.spawn(async move {
            told.draining().await;
            sync.stop();
        });
    }

    /// Writes down what is in memory alone and closes the database.
    pub(crate) async fn close(&self) {
        if let Some(federation) = &self.federation {
            federation.sender.close().await;
        }
        self.push.close().await;
        self.accounts.close().await;
        self.store.close().await;
    }
}

/// The bounds on each request.
pub(crate) fn layer_options(config: &Config) -> LayerOptions {
    LayerOptions {
        deadline: config.limits.request_deadline(),
        slow: SLOW,
        json_body_bytes_max: usize::try_from(config.limits.max_body_bytes).unwrap_or(usize::MAX),
    }
}

/// The configured rate limits.
pub(crate) fn rate_limits(config: &Config) -> RateLimits {
    let of = |limit: config::RateLimit| RateLimit { per_second: limit.per_second, burst: limit.burst };
    let limits = &config.rate_limits;
    RateLimits {
        enabled: limits.enabled,
        login: of(limits.login),
        registration: of(limits.registration),
        joins: of(limits.joins),
        messages: of(limits.messages),
        other: of(limits.other),
    }
}

/// Where files are kept, and within which bounds.
pub(crate) fn media_options(config: &Config) -> MediaOptions {
    let media = &config.media;
    let days = |days: u32| Duration::from_secs(u64::from(days) * 24 * 60 * 60);
    MediaOptions {
        upload_bytes_max: media.max_upload_bytes,
        remote_bytes_max: media.max_remote_bytes,
        remote_retention: (media.remote_retention_days > 0).then(|| days(media.remote_retention_days)),
        user_bytes_max: (media.max_user_bytes > 0).then_some(media.max_user_bytes),
        pending_uploads_max: media.max_pending_uploads,
        pending_upload_life: Duration::from_secs(u64::from(media.pending_upload_hours) * 60 * 60),
        thumbnail_pixels_max: media.max_thumbnail_pixels,
        freeze_unauthenticated: media.freeze_unauthenticated,
        ..MediaOptions::new(config.server_name.clone(), config.data_dir.join("media"))
    }
}

/// Opens the database, brings it up to date, and sees that it is this server's.
pub(crate) async fn open_store(config: &Config) -> Result<Arc<Store>, Failure> {
    let url = config.database_url().map_err(secret_failure)?;
    let database =
        DatabaseOptions { max_connections: config.database.max_connections, ..DatabaseOptions::new(url.expose()) };
    let options = StoreOptions {
        database,
        server_name: config.server_name.to_string(),
        cache_bytes: config.cache.memory - config.cache.memory / ACCOUNTS_SHARE,
    };
    Store::open(&options).await.map_err(|error| unavailable(config, error))
}

/// Opens the accounts in the database.
pub(crate) async fn open_accounts(config: &Config, store: Arc<Store>) -> Result<Arc<Accounts>, Failure> {
    let expose = |secret: Option<Secret>| secret.map(|secret| secret.expose().to_owned());
    let options = AccountsOptions {
        registration: config.registration.enabled,
        require_registration_token: config.registration.require_token,
        registration_token: expose(config.registration_token().map_err(secret_failure)?),
        guest_access: config.registration.guest_access,
        shared_secret: expose(config.registration_shared_secret().map_err(secret_failure)?),
        cache_bytes: config.cache.memory / ACCOUNTS_SHARE,
        ..AccountsOptions::new(config.server_name.clone())
    };
    Accounts::open(store, options).await.map_err(|error| match error {
        myelin_accounts::Error::Store(error) => unavailable(config, error),
        error => Failure::new(Exit::Software, error),
    })
}

/// What calls need beside this server.
fn call_options(config: &Config) -> Result<CallOptions, Failure> {
    let secret = config.turn_shared_secret().map_err(secret_failure)?;
    let turn = secret.filter(|_| !config.turn.uris.is_empty()).map(|secret| TurnOptions {
        uris: config.turn.uris.clone(),
        shared_secret: secret.expose().to_owned(),
        lifetime: Duration::from_secs(config.turn.lifetime_seconds),
        allow_guests: config.turn.allow_guests,
    });
    let livekit_service_url = config.rtc.livekit_service_url.as_ref().map(|url| url.as_str().to_owned());
    Ok(CallOptions { turn, livekit_service_url })
}

fn secret_failure(error: SecretError) -> Failure {
    Failure::new(Exit::Config, error)
}

/// A database that cannot be used, with what to do about it.
fn unavailable(config: &Config, error: Error) -> Failure {
    let (exit, hint) = match &error {
        Error::UnknownEngine => (Exit::Config, "Correct database.url.".to_owned()),
        Error::CreateFolder { .. } => (
            Exit::CannotCreate,
            "Make the folder by hand and give it to the user that the server runs as, or set database.url.".to_owned(),
        ),
        Error::NewerDatabase { .. } => {
            (Exit::Config, "Run that release or a newer one, or restore the backup from before the upgrade.".to_owned())
        }
        Error::ServerName { pinned, .. } => (
            Exit::Config,
            format!(
                "A server's name can never change: set server_name = \"{pinned}\", or give the new name a database \
                 of its own."
            ),
        ),
        Error::Served => (
            Exit::Unavailable,
            "Stop the other process: see `pgrep -a myelin`, and `systemctl status myelin`.".to_owned(),
        ),
        Error::MigrationLock => {
            (Exit::Unavailable, "See what the other replica does; if it is gone, start again.".to_owned())
        }
        Error::Migrate(_) => (Exit::Unavailable, "Nothing was changed. Report this with the message.".to_owned()),
        _ => (Exit::Unavailable, "See that the database runs and that database.url is right.".to_owned()),
    };
    let database = database_name(config);
    Failure::new(exit, anyhow::Error::new(error).context(format!("open the database {database}"))).hint(hint)
}

/// The database's address without its password.
fn database_name(config: &Config) -> String {
    let shown = config.database_url().ok().and_then(|url| {
        let mut url = Url::parse(url.expose()).ok()?;
        url.set_query(None);
        // A URL without a host has no password.
        let _ = url.set_password(None);
        Some(url.to_string())
    });
    shown.unwrap_or_else(|| "of database.url".to_owned())
}

#[cfg(test)]
mod tests {
    use myelin_process::config::{Config, Secret};

    /// A database is named by its address, never with its password.
    #[test]
    fn a_password_is_not_shown() {
        let mut config = Config::embedded_default();
        assert_eq!(super::database_name(&config), "sqlite://./myelin-data/myelin.db");
        config.database.url = Some(Secret::new("postgres://me:hunter2@10.0.0.1:5433/m?password=hunter2".to_owned()));
        assert_eq!(super::database_name(&config), "postgres://me@10.0.0.1:5433/m");
    }
}
