//! Puts the parts together, runs them, and takes them apart in order.

use std::{
    fmt::Write as _, fs::DirBuilder, io, net::SocketAddr, os::unix::fs::DirBuilderExt as _, sync::Arc, time::Duration,
};

use anyhow::Context as _;
use axum::{Router, routing::get};
use myelin_admin_api::AdminServices;
use myelin_http::layers_with;
use myelin_process::{
    config::{Config, Listener, Resource},
    limits,
    logs::{self, Logs},
    notify,
    shutdown::{Shutdown, Signal, Signals},
};
use myelin_proxy::Binder;
use tokio::net::TcpListener;

use crate::{
    cli::{self, ConfigFiles},
    exit::{Exit, Failure},
    front_door::{self, Routes},
    gauges,
    health::{self, Health},
    landing,
    parts::{self, Parts},
    well_known,
};

/// Open files that are kept for the database, media and outgoing requests; the others may be connections.
const RESERVED_FILES: u64 = 512;
/// Connections that are allowed however few files may be open.
const CONNECTIONS_MIN: u64 = 64;

/// What the routers are made of.
struct Services {
    config: Config,
    parts: Arc<Parts>,
    health: Health,
}

/// Serves until a signal ends it.
pub(crate) async fn serve(files: ConfigFiles, mut config: Config) -> Result<(), Failure> {
    let logs = logs::init(&config.log).map_err(|error| Failure::new(Exit::Software, error))?;
    for warning in cli::config::warnings(&config) {
        tracing::warn!("{warning}");
    }
    // Before anything is started, so that no signal is missed.
    let signals = Signals::listen().context("listen for signals").map_err(|error| Failure::new(Exit::System, error))?;
    let connections = connections_max();
    make_data_dir(&config)?;

    let shutdown = Shutdown::new();
    // A port that is taken is known at once, a database that is away after some seconds.
    let listeners = bind_all(&config.listeners)?;
    // Port 0 is any free port: from here on the address is the one that it became.
    for (settings, (_, _, address)) in config.listeners.iter_mut().zip(&listeners) {
        settings.address = *address;
    }
    let parts = Arc::new(Parts::open(&config).await?);
    let encryption = front_door::encryption(&config, &parts, &shutdown).await?;
    parts.start(&shutdown);
    let health = Health::new(shutdown.clone(), vec![("database", parts.database_probe())]);
    let services = Services { health, parts: Arc::clone(&parts), config };
    let door = front_door::open(&services.config, connections, &shutdown);
    for ((socket, resources, address), settings) in listeners.into_iter().zip(&services.config.listeners) {
        tracing::info!(listener.address = %address, "listening on {address} for {}", names(&resources));
        let listening = front_door::listening(&services.config, settings, socket, &encryption);
        door.open(listening, Routes(resources_router(&services, &resources)));
    }
    notify::watchdog(&shutdown);
    notify::ready();
    greet(&files, &services)?;

    run_until_told(signals, &files, &logs, &parts).await;
    let stopped = stop(&shutdown, services.config.limits.shutdown()).await;
    parts.close().await;
    stopped?;
    tracing::info!("stopped");
    Ok(())
}

/// What a listener with these resources answers.
fn resources_router(services: &Services, resources: &[Resource]) -> Router {
    let router = resources.iter().fold(Router::new(), |router, resource| match resource {
        Resource::Client => router
            .merge(landing::routes(&services.config, services.health.clone()))
            .merge(myelin_client_api::router(client_services(&services.config, &services.parts))),
        Resource::WellKnown => router.merge(well_known::routes(&services.config)),
        Resource::Health => router.merge(health::routes(services.health.clone())),
        Resource::Metrics => {
            let parts = Arc::clone(&services.parts);
            router.route("/metrics", get(async move || gauges::show(&parts)))
        }
        Resource::Admin => router.merge(myelin_admin_api::router(AdminServices {
            accounts: Arc::clone(&services.parts.accounts),
            store: Arc::clone(&services.parts.store),
            rate_limiter: Arc::clone(&services.parts.rate_limiter),
        })),
        Resource::Federation => match federation_services(&services.parts) {
            Some(federation) => router.merge(myelin_federation_api::router(federation)),
            None => router,
        },
    });
    layers_with(router, parts::layer_options(&services.config))
}

fn federation_services(parts: &Parts) -> Option<myelin_federation_api::Services> {
    let federation = parts.federation.as_ref()?;
    Some(myelin_federation_api::Services {
        store: Arc::clone(&parts.store),
        accounts: Arc::clone(&parts.accounts),
        rooms: Arc::clone(&parts.rooms),
        writes: Arc::new(Arc::clone(&parts.rooms)),
        encryption: Arc::clone(&parts.encryption),
        media: Arc::clone(&parts.media),
        sync: Arc::clone(&parts.sync),
        peers: federation.client.clone(),
        inbound: Arc::clone(&federation.inbound),
        rate_limiter: Arc::clone(&parts.rate_limiter),
        is_enabled: true,
    })
}

fn client_services(config: &Config, parts: &Parts) -> myelin_client_api::Services {
    myelin_client_api::Services {
        store: Arc::clone(&parts.store),
        accounts: Arc::clone(&parts.accounts),
        rooms: Arc::clone(&parts.rooms),
        sync: Arc::clone(&parts.sync),
        encryption: Arc::clone(&parts.encryption),
        media: Arc::clone(&parts.media),
        pushers: Arc::clone(&parts.pushers),
        rate_limiter: Arc::clone(&parts.rate_limiter),
        client_baseurl: config.client_baseurl().as_str().into(),
        calls: Arc::clone(&parts.calls),
    }
}

/// How many connections there may be at once.
fn connections_max() -> usize {
    let files = match limits::raise_open_files() {
        Ok(files) => files.now.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised: {error}");
            1024
        }
    };
    let connections = files.saturating_sub(RESERVED_FILES).max(CONNECTIONS_MIN);
    usize::try_from(connections).unwrap_or(usize::MAX)
}

/// Makes the data folder, for the eyes of the server's own user.
fn make_data_dir(config: &Config) -> Result<(), Failure> {
    let path = &config.data_dir;
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("make the data folder {}", path.display()));
        Failure::new(Exit::CannotCreate, error)
            .hint("Make it by hand and give it to the user that the server runs as, or set data_dir to another one.")
    })
}

/// Takes every address, or says which one is not to be had.
fn bind_all(listeners: &[Listener]) -> Result<Vec<(TcpListener, Vec<Resource>, SocketAddr)>, Failure> {
    let mut bound = Vec::with_capacity(listeners.len());
    let mut binder = Binder::from_env()
        .context("take the sockets that the service manager holds")
        .map_err(|error| Failure::new(Exit::System, error))?;
    for settings in listeners {
        let listener = binder.bind(settings.address).map_err(|error| not_bound(settings.address, error))?;
        let address = listener.local_addr().map_err(|error| not_bound(settings.address, error))?;
        bound.push((listener, settings.resources.clone(), address));
    }
    Ok(bound)
}

fn not_bound(address: SocketAddr, error: io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "Another program listens there already; perhaps a second myelin. `ss -ltnp 'sport = :{}'` shows which.",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "Ports below 1024 need a permission: run it by its systemd unit, or take another port than {}.",
            address.port()
        ),
        io::ErrorKind::AddrNotAvailable => {
            "No network interface of this machine has this address; 0.0.0.0 or [::] takes all of them.".to_owned()
        }
        _ => "See `address` of the section [[listeners]] in the configuration.".to_owned(),
    };
    Failure::new(Exit::Unavailable, anyhow::Error::new(error).context(format!("listen on {address}"))).hint(hint)
}

fn names(resources: &[Resource]) -> String {
    resources.iter().map(|resource| resource.as_str()).collect::<Vec<_>>().join(", ")
}

/// Tells who tries it out what to do next. Who wrote a configuration file knows, and a service's output is a log, in
/// which a token has no place.
fn greet(files: &ConfigFiles, services: &Services) -> Result<(), Failure> {
    if !files.paths.is_empty() {
        return Ok(());
    }
    let registration = &services.config.registration;
    let token = services.parts.accounts.registration_token();
    let token = (registration.enabled && registration.require_token).then_some(token);
    cli::print(&greeting(&services.config, token))
}

fn greeting(config: &Config, token: Option<&str>) -> String {
    let baseurl = config.client_baseurl();
    let mut text = format!("\nMyelin {} is running, as {}.\n\n", env!("CARGO_PKG_VERSION"), config.server_name);
    let mut line = |name: &str, value: &str| {
        writeln!(text, "  {name:<20}{value}").expect("a String takes every write");
    };
    line("for clients", baseurl.as_str());
    if let Some(address) = config.listener_for(Resource::Metrics) {
        line("metrics", &format!("http://{address}/metrics"));
    }
    line("data", &config.data_dir.display().to_string());
    if let Some(token) = token {
        line("registration token", token);
    }
    text.push_str(&format!(
        "\nNext: open {baseurl} in a browser; it says how to connect a client. Ctrl+C stops the server.\n\
         For more than trying it out, write a configuration: myelin config generate your.domain > myelin.toml\n\n"
    ));
    text
}

/// Runs until a signal asks for the end, and reads the configuration again when one asks for that.
async fn run_until_told(mut signals: Signals, files: &ConfigFiles, logs: &Logs, parts: &Parts) {
    loop {
        match signals.next().await {
            Signal::Reload => reload(files, logs, parts),
            signal @ (Signal::Terminate | Signal::Interrupt) => {
                tracing::info!("stopping, told by {signal}");
                tokio::spawn(leave_at_second_signal(signals));
                return;
            }
        }
    }
}

/// Takes over what can change without a restart. A configuration with mistakes changes nothing.
fn reload(files: &ConfigFiles, logs: &Logs, parts: &Parts) {
    notify::reloading();
    match take_over(files, logs, parts) {
        Ok(config) => tracing::info!(
            log.level = config.log.level,
            "read the configuration again; the log level and the rate limits count"
        ),
        Err(failure) => tracing::error!("the configuration is not read again: {failure}"),
    }
    notify::ready();
}

fn take_over(files: &ConfigFiles, logs: &Logs, parts: &Parts) -> Result<Config, Failure> {
    let config = files.load()?;
    let refuse = |error: anyhow::Error| Failure::new(Exit::Config, error);
    parts.rate_limiter.reload(&parts::rate_limits(&config)).map_err(|error| refuse(error.into()))?;
    logs.set_level(&config.log.level).map_err(|error| refuse(error.into()))?;
    Ok(config)
}

/// Who asks twice does not want to wait.
async fn leave_at_second_signal(mut signals: Signals) {
    while signals.next().await == Signal::Reload {}
    eprintln!("myelin: told to stop a second time: ending at once");
    #[expect(clippy::disallowed_methods, reason = "at once: what is acknowledged is in the database already")]
    std::process::exit(Exit::Unfinished as i32);
}

/// Ends everything in order: no new connections, answers for those under way, then the background tasks.
async fn stop(shutdown: &Shutdown, time: Duration) -> Result<(), Failure> {
    notify::stopping();
    match shutdown.close(time).await {
        Ok(()) => Ok(()),
        Err(unfinished) => Err(Failure::new(Exit::Unfinished, unfinished)
            .hint("What was acknowledged is safe. limits.shutdown_seconds is the time that requests have to finish.")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::body::Body;
    use http::{Request, StatusCode};
    use myelin_process::{
        config::{Config, Resource},
        shutdown::Shutdown,
    };
    use tower::ServiceExt as _;

    use super::{Exit, Health, Parts, Services};

    /// A listener answers for its resources and for nothing else: metrics are not for everybody.
    #[tokio::test]
    async fn resources_are_apart() {
        use Resource::{Admin, Client, Federation, Health as HealthChecks, Metrics, WellKnown};
        let folder = tempfile::tempdir().unwrap();
        let config = Config { data_dir: folder.path().to_owned(), ..Config::embedded_default() };
        let parts = Arc::new(Parts::open(&config).await.unwrap());
        let services = Services { config, parts, health: Health::new(Shutdown::new(), Vec::new()) };
        let status = async |resources: &[Resource], path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            super::resources_router(&services, resources).oneshot(request).await.unwrap().status()
        };
        let paths = [
            (Client, "/"),
            (Client, "/_matrix/client/versions"),
            (WellKnown, "/.well-known/matrix/client"),
            (HealthChecks, "/health/ready"),
            (Metrics, "/metrics"),
        ];
        let all = [Client, WellKnown, HealthChecks, Metrics, Federation, Admin];
        for (own, path) in paths {
            for other in all {
                let expected = if own == other { StatusCode::OK } else { StatusCode::NOT_FOUND };
                assert_eq!(status(&[other], path).await, expected, "{path} of {other}");
            }
            assert_eq!(status(&all, path).await, StatusCode::OK);
        }
        services.parts.close().await;
    }

    /// A port that is taken is named, with the code for it and a way to find who has it.
    #[tokio::test]
    async fn a_taken_port_is_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::embedded_default();
        config.listeners[0].address = taken.local_addr().unwrap();
        let failure = super::bind_all(&config.listeners).unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        let port = taken.local_addr().unwrap().port().to_string();
        assert!(failure.to_string().matches(&port).count() == 2, "{failure}");
    }

    /// A data folder that cannot be made is told, with its name.
    #[test]
    fn an_impossible_data_folder_is_told() {
        let config = Config { data_dir: "/dev/null/data".into(), ..Config::embedded_default() };
        let failure = super::make_data_dir(&config).unwrap_err();
        assert_eq!(failure.exit, Exit::CannotCreate);
        assert!(failure.to_string().contains("/dev/null/data"), "{failure}");
    }

    /// Who starts it without a file learns where it is and the token.
    #[test]
    fn greeting_has_the_next_step() {
        let text = super::greeting(&Config::embedded_default(), Some("come-on-in"));
        assert!(text.contains("http://localhost:8008/") && text.contains("come-on-in") && text.contains("Next:"));
    }
}
