//! `myelin-proxy`: the front door as a program of its own, in front of several servers.

use std::{
    collections::HashSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use http::{HeaderName, HeaderValue};
use myelin_process::{
    config::{ForwardedHeader, Log, Network},
    limits, logs, notify,
    shutdown::{Shutdown, Signal, Signals},
};
use myelin_proxy::{
    Binder, Certificate, Certificates, FrontDoor, HostHeaders, Limits, Listening, Manners, Route, Router, StaticFiles,
    Target, Tls, TrustedProxies, UpstreamAddress, Upstreams,
    acme::{
        Acme, AcmeSettings, ChallengeKind, Challenges, Dns, DnsCommand, DnsKey, DnsKeyAlgorithm, DnsUpdate,
        ExternalAccount, Folder, Pace,
    },
    certificate_files::{self, CertificateFiles},
    well_known::{Contact, WellKnown},
};
use serde::Deserialize;

/// Open files that are kept for connections to upstreams.
const CONNECTIONS_SHARE: u64 = 2;
/// The share of all connections that may be open without having asked for anything.
const NEWCOMERS_SHARE: usize = 4;
/// How long requests under way have when the process stops.
const STOP_TIME: Duration = Duration::from_secs(30);

/// The front door: TLS, certificates, routing by host and path.
#[derive(Debug, Parser)]
#[command(name = "myelin-proxy", version)]
struct Cli {
    /// The configuration file.
    #[arg(long, short, env = "MYELIN_PROXY_CONFIG", default_value = "/etc/myelin/proxy.toml")]
    config: PathBuf,
    /// Look for mistakes in the configuration, and start nothing.
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    #[serde(default = "default_data_dir")]
    data_dir: PathBuf,
    #[serde(default = "default_per_address")]
    max_connections_per_address: usize,
    #[serde(default = "default_level")]
    log_level: String,
    listeners: Vec<Listener>,
    #[serde(default)]
    tls: TlsConfig,
    routes: Vec<RouteConfig>,
    #[serde(default)]
    headers: Vec<HeaderConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: SocketAddr,
    #[serde(default)]
    tls: bool,
    /// The port that everybody is sent to.
    redirect_to_https: Option<u16>,
    #[serde(default)]
    proxy_protocol: bool,
    #[serde(default)]
    trusted_proxies: Vec<Network>,
    #[serde(default)]
    client_address_header: ForwardedHeader,
}

/// Where the certificate comes from.
#[derive(Debug, Default, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
enum TlsConfig {
    #[default]
    None,
    SelfSigned {
        names: Vec<String>,
    },
    Files {
        certificate: PathBuf,
        private_key: PathBuf,
    },
    Acme {
        names: Vec<String>,
        directory: Option<String>,
        staging_directory: Option<String>,
        contact: Option<String>,
        accept_terms: bool,
        external_account_id: Option<String>,
        external_account_key_file: Option<PathBuf>,
        trusted_ca_file: Option<PathBuf>,
        profile: Option<String>,
        /// With it names are proven by DNS, otherwise by connections.
        dns: Option<Box<DnsConfig>>,
    },
}

/// What makes DNS records: a program, or updates that a server takes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DnsConfig {
    command: Option<PathBuf>,
    server: Option<String>,
    zone: Option<String>,
    key_name: Option<String>,
    key_secret_file: Option<PathBuf>,
    #[serde(default)]
    key_algorithm: KeyAlgorithm,
    #[serde(default = "default_ttl_seconds")]
    ttl_seconds: u32,
    #[serde(default)]
    other_servers: Vec<String>,
    #[serde(default = "default_wait_seconds")]
    wait_seconds: u64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
enum KeyAlgorithm {
    #[default]
    #[serde(rename = "hmac-sha256")]
    HmacSha256,
    #[serde(rename = "hmac-sha512")]
    HmacSha512,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    host: Option<String>,
    #[serde(default = "default_path")]
    path: String,
    /// `http://host:port` or `unix:/path`.
    #[serde(default)]
    upstreams: Vec<String>,
    /// A path of the upstreams that tells whether they are well.
    health: Option<String>,
    #[serde(default = "default_answer_seconds")]
    answer_seconds: u64,
    /// A folder.
    files: Option<PathBuf>,
    well_known: Option<WellKnownConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WellKnownConfig {
    client: Option<String>,
    server: Option<String>,
    support_page: Option<String>,
    #[serde(default)]
    contacts: Vec<ContactConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContactConfig {
    role: String,
    matrix_id: Option<String>,
    email_address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderConfig {
    host: Option<String>,
    name: String,
    value: String,
}

fn default_data_dir() -> PathBuf {
    "/var/lib/myelin-proxy".into()
}

fn default_per_address() -> usize {
    1000
}

fn default_level() -> String {
    "info".to_owned()
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_ttl_seconds() -> u32 {
    60
}

fn default_wait_seconds() -> u64 {
    30
}

fn default_answer_seconds() -> u64 {
    360
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("myelin-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    let config = load(&cli.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start worker threads")?;
    runtime.block_on(async {
        if cli.check {
            let shutdown = Shutdown::new();
            routes(&config, &shutdown)?;
            headers(&config)?;
            if matches!(config.tls, TlsConfig::Acme { .. }) {
                acme_settings(&config.tls)?;
            }
            return Ok(());
        }
        serve(config).await
    })
}

fn load(path: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    ensure!(!config.listeners.is_empty(), "there are no [[listeners]]");
    let encrypted = config.listeners.iter().any(|listener| listener.tls);
    ensure!(!encrypted || !matches!(config.tls, TlsConfig::None), "a listener wants TLS, and [tls] is missing");
    for listener in &config.listeners {
        ensure!(
            !listener.proxy_protocol || !listener.trusted_proxies.is_empty(),
            "{}: proxy_protocol needs trusted_proxies",
            listener.address
        );
        ensure!(
            !listener.tls || listener.redirect_to_https.is_none(),
            "{}: redirect_to_https is for a listener without TLS",
            listener.address
        );
    }
    Ok(config)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let log = Log { level: config.log_level.clone(), ..Log::default() };
    let _logs = logs::init(&log).context("set logging up")?;
    let mut signals = Signals::listen().context("listen for signals")?;
    let shutdown = Shutdown::new();
    let routes = routes(&config, &shutdown)?;
    let headers = headers(&config)?;
    let mut binder = Binder::from_env().context("take the sockets that the service manager holds")?;
    let mut sockets = Vec::new();
    for listener in &config.listeners {
        let socket = binder.bind(listener.address).with_context(|| format!("listen on {}", listener.address))?;
        sockets.push(socket);
    }
    let (tls, challenges) = encryption(&config, &shutdown).await?;
    let door = open(&config, &shutdown);
    for (socket, listener) in sockets.into_iter().zip(&config.listeners) {
        let trusted =
            TrustedProxies { networks: listener.trusted_proxies.clone(), header: listener.client_address_header };
        let manners = Manners {
            trusted,
            redirect_to_https: listener.redirect_to_https,
            headers: headers.clone(),
            challenges: challenges.clone(),
        };
        let tls = tls.clone().filter(|_| listener.tls);
        tracing::info!(listener.address = %listener.address, "listening on {}", listener.address);
        let listening = Listening { socket, tls, proxy_protocol: listener.proxy_protocol, manners };
        door.open(listening, Router::new(routes.clone(), listener.tls));
    }
    notify::watchdog(&shutdown);
    notify::ready();
    while signals.next().await == Signal::Reload {
        tracing::info!("certificates in files are looked at anyway; the configuration is read at start");
    }
    notify::stopping();
    shutdown.close(STOP_TIME).await.context("stop")
}

fn open(config: &Config, shutdown: &Shutdown) -> FrontDoor {
    let files = match limits::raise_open_files() {
        Ok(files) => files.now.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised: {error}");
            1024
        }
    };
    // Each connection may need one to an upstream.
    let connections = usize::try_from(files / CONNECTIONS_SHARE).unwrap_or(usize::MAX);
    let limits = Limits {
        connections,
        connections_per_address: config.max_connections_per_address,
        newcomers: connections / NEWCOMERS_SHARE,
        ..Limits::default()
    };
    let proxies = config.listeners.iter().flat_map(|listener| listener.trusted_proxies.iter().copied());
    FrontDoor::new(limits, proxies.collect(), shutdown.clone())
}

/// What encrypts, and what is shown to certificate authorities.
type Encryption = (Option<Tls>, Option<Arc<dyn Challenges>>);

async fn encryption(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Encryption> {
    let certificates = match &config.tls {
        TlsConfig::None => return Ok((None, None)),
        TlsConfig::SelfSigned { names } => Certificates::new(Certificate::self_signed(names)?),
        TlsConfig::Files { certificate, private_key } => {
            let files = CertificateFiles { certificate: certificate.clone(), private_key: private_key.clone() };
            let certificates = Certificates::new(files.load()?);
            shutdown.spawn(certificate_files::watch(files, Arc::clone(&certificates), shutdown.clone()));
            certificates
        }
        TlsConfig::Acme { .. } => {
            let storage = Folder::open(config.data_dir.join("acme")).context("make the folder for certificates")?;
            let acme = Arc::new(Acme::open(acme_settings(&config.tls)?, Arc::new(storage)).await?);
            let (certificates, challenges) = (acme.certificates(), acme.challenges());
            shutdown.spawn(acme.run(shutdown.clone()));
            return Ok((Some(Tls::new(certificates)?.with_challenges(Arc::clone(&challenges))), Some(challenges)));
        }
    };
    Ok((Some(Tls::new(certificates)?), None))
}

fn acme_settings(config: &TlsConfig) -> anyhow::Result<AcmeSettings> {
    let TlsConfig::Acme {
        names,
        directory,
        staging_directory,
        contact,
        accept_terms,
        external_account_id,
        external_account_key_file,
        trusted_ca_file,
        profile,
        dns,
    } = config
    else {
        bail!("tls.mode is not \"acme\"");
    };
    ensure!(accept_terms, "tls.accept_terms: set it to true if you accept the authority's terms of service");
    let key = external_account_key_file.as_ref().map(std::fs::read_to_string).transpose();
    let key = key.context("read external_account_key_file")?.map(|key| key.trim().to_owned());
    let external_account = external_account_id.clone().zip(key);
    let dns = dns.as_deref().map(dns_settings).transpose().context("tls.dns")?;
    let challenges = match dns {
        Some(_) => vec![ChallengeKind::Dns01],
        None => vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01],
    };
    Ok(AcmeSettings {
        directory: directory.clone().unwrap_or_else(|| "https://acme-v02.api.letsencrypt.org/directory".to_owned()),
        staging: staging_directory.clone(),
        contact: contact.clone(),
        names: names.clone(),
        challenges,
        external_account: external_account.map(|(key_id, hmac_key)| ExternalAccount { key_id, hmac_key }),
        trusted: trusted_ca_file.as_ref().map(std::fs::read).transpose().context("read trusted_ca_file")?,
        profile: profile.clone(),
        dns,
        pace: Pace::default(),
    })
}

fn dns_settings(config: &DnsConfig) -> anyhow::Result<Dns> {
    let wait = Duration::from_secs(config.wait_seconds);
    let server = match (&config.server, &config.command) {
        (Some(server), None) => server.clone(),
        (None, Some(program)) => return Ok(Dns::Command(DnsCommand { program: program.clone(), wait })),
        _ => bail!("it needs one of `server` and `command`"),
    };
    let name = config.key_name.as_deref().context("key_name is missing: updates have to be signed")?;
    let file = config.key_secret_file.as_ref().context("key_secret_file is missing: updates have to be signed")?;
    let secret = std::fs::read_to_string(file).context("read key_secret_file")?;
    let algorithm = match config.key_algorithm {
        KeyAlgorithm::HmacSha256 => DnsKeyAlgorithm::HmacSha256,
        KeyAlgorithm::HmacSha512 => DnsKeyAlgorithm::HmacSha512,
    };
    let key = DnsKey::new(name, algorithm, &secret).context("key_name and key_secret_file")?;
    let ttl = Duration::from_secs(config.ttl_seconds.into());
    let (zone, others) = (config.zone.clone(), config.other_servers.clone());
    Ok(Dns::Update(DnsUpdate { server, zone, key, ttl, others, wait }))
}

fn routes(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Vec<Route>> {
    let mut seen = HashSet::new();
    let mut routes = Vec::new();
    for route in &config.routes {
        let host = route.host.as_ref().map(|host| host.to_ascii_lowercase());
        let shown = format!("the route for {}{}", host.as_deref().unwrap_or("any host"), route.path);
        ensure!(route.path.starts_with('/'), "{shown}: the path must begin with /");
        ensure!(seen.insert((host.clone(), route.path.clone())), "{shown} is there twice");
        let target = target(route, shutdown).context(shown)?;
        routes.push(Route { host, path: route.path.clone(), target });
    }
    Ok(routes)
}

fn target(route: &RouteConfig, shutdown: &Shutdown) -> anyhow::Result<Target> {
    match (&route.upstreams[..], &route.files, &route.well_known) {
        ([_, ..], None, None) => {
            let addresses: Vec<UpstreamAddress> =
                route.upstreams.iter().map(|address| address.parse()).collect::<Result<_, _>>().context("upstreams")?;
            let time = Duration::from_secs(route.answer_seconds.max(1));
            let upstreams = Upstreams::new(addresses, route.health.clone(), time, shutdown.clone());
            shutdown.spawn(Arc::clone(&upstreams).look_after());
            Ok(Target::Upstreams(upstreams))
        }
        ([], Some(files), None) => {
            let files = StaticFiles::new(files, &route.path).with_context(|| format!("open {}", files.display()))?;
            Ok(Target::Files(Arc::new(files)))
        }
        ([], None, Some(well_known)) => {
            let contact = |contact: &ContactConfig| Contact {
                role: contact.role.clone(),
                matrix_id: contact.matrix_id.clone(),
                email_address: contact.email_address.clone(),
            };
            Ok(Target::well_known(&WellKnown {
                client: well_known.client.clone(),
                server: well_known.server.clone(),
                support_page: well_known.support_page.clone(),
                contacts: well_known.contacts.iter().map(contact).collect(),
                ..WellKnown::default()
            }))
        }
        _ => bail!("it needs one of `upstreams`, `files` and `well_known`"),
    }
}

fn headers(config: &Config) -> anyhow::Result<HostHeaders> {
    let header = |header: &HeaderConfig| {
        let name = HeaderName::try_from(&header.name).with_context(|| format!("the header {}", header.name))?;
        let value = HeaderValue::try_from(&header.value).with_context(|| format!("the header {}", header.name))?;
        Ok((header.host.as_ref().map(|host| host.to_ascii_lowercase()), name, value))
    };
    config.headers.iter().map(header).collect::<anyhow::Result<_>>().map(HostHeaders)
}

#[cfg(test)]
mod tests {
    use myelin_process::shutdown::Shutdown;

    use super::{Cli, TlsConfig, acme_settings, load, routes};

    fn check(text: &str) -> Result<usize, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("proxy.toml");
        std::fs::write(&path, text).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let config = load(&path).map_err(|error| format!("{error:#}"))?;
        if matches!(config.tls, TlsConfig::Acme { .. }) {
            acme_settings(&config.tls).map_err(|error| format!("{error:#}"))?;
        }
        routes(&config, &Shutdown::new()).map(|routes| routes.len()).map_err(|error| format!("{error:#}"))
    }

    /// clap's own rules.
    #[test]
    fn is_consistent() {
        use clap::CommandFactory as _;

        Cli::command().debug_assert();
    }

    /// What is right is taken, and what is not is named.
    #[test]
    fn refuses_what_cannot_be() {
        const START: &str = "[[listeners]]\naddress = '127.0.0.1:0'\n";
        let with = |more: &str| check(&format!("{START}{more}"));
        let route = "[[routes]]\nhost = 'a.example'\npath = '/_matrix'\n";
        assert_eq!(with(&format!("{route}upstreams = ['http://127.0.0.1:8008', 'unix:/run/x']")), Ok(1));
        assert_eq!(with(&format!("{route}well_known = {{ server = 'a.example:443' }}")), Ok(1));
        let folder = tempfile::tempdir().unwrap();
        let (secret, nonsense) = (folder.path().join("secret"), folder.path().join("nonsense"));
        std::fs::write(&secret, "c2VjcmV0\n").unwrap();
        std::fs::write(&nonsense, "no base64!").unwrap();
        let acme =
            "tls = true\n[[routes]]\nfiles = '/'\n[tls]\nmode = 'acme'\nnames = ['*.a.example']\naccept_terms = true\n";
        let update = format!("{acme}dns.server = 'ns.a.example'\n");
        let signed = |file: &std::path::Path| {
            with(&format!("{update}dns.key_name = 'k'\ndns.key_secret_file = '{}'", file.display()))
        };
        assert_eq!(signed(&secret), Ok(1));
        assert!(signed(&nonsense).unwrap_err().contains("not in base64"), "{:?}", signed(&nonsense));
        assert_eq!(with(&format!("{acme}dns.command = '/bin/true'")), Ok(1));
        for (wrong, message) in [
            (update.as_str(), "key_name is missing"),
            (&format!("{update}dns.command = '/bin/true'"), "one of `server` and `command`"),
            (&format!("{acme}dns.key_algorithm = 'hmac-md5'"), "hmac-md5"),
            ("tls = true\n[[routes]]\nfiles = '/'", "[tls] is missing"),
            ("proxy_protocol = true\n[[routes]]\nfiles = '/'", "trusted_proxies"),
            ("[[routes]]\nupstreams = ['https://a.example']", "http://host:port"),
            ("[[routes]]\npath = 'x'\nfiles = '/'", "begin with /"),
            ("[[routes]]\nfiles = '/nonexistent/www'", "/nonexistent/www"),
            ("[[routes]]\nfiles = '/'\nupstreams = ['http://a']", "one of"),
            ("[[routes]]\nfiles = '/'\n[[routes]]\nfiles = '/'", "twice"),
            ("[[routes]]\ncolour = 'red'", "colour"),
            ("colour = 'red'\nroutes = []", "colour"),
        ] {
            let error = with(wrong).unwrap_err();
            assert!(error.contains(message), "{wrong}: {error}");
        }
    }
}
