//! Names to addresses.

use std::{net::IpAddr, time::Duration};

use futures_util::future::BoxFuture;
use hickory_resolver::{
    TokioResolver,
    proto::rr::{RData, RecordType},
};

/// The longest time for one look-up.
const DEADLINE: Duration = Duration::from_secs(5);
/// The longest time that an answer is remembered, whatever its zone says.
const TTL_MAX: Duration = Duration::from_secs(60 * 60);
/// The longest time that the absence of an answer is remembered.
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5 * 60);
/// Answers that are remembered.
const CACHE: u64 = 4096;

/// A service record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Srv {
    /// Lower ones are tried first.
    pub priority: u16,
    /// The share among those of the same priority.
    pub weight: u16,
    /// The port.
    pub port: u16,
    /// The host, without the last dot; empty if there is decidedly no such service.
    pub target: String,
}

/// Why a name could not be looked up. A name that does not exist is not an error: it has no records.
#[derive(Clone, Debug, thiserror::Error)]
#[error("look up {name}: {reason}")]
pub struct DnsError {
    /// The name.
    pub name: String,
    /// What happened.
    pub reason: String,
}

/// Looks names up.
pub trait Dns: Send + Sync {
    /// The addresses of a host, by CNAME, AAAA and A records; empty if it has none.
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsError>>;

    /// The service records of a name; empty if it has none.
    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Srv>, DnsError>>;
}

/// The resolver that the system is configured to use.
pub(crate) struct SystemDns(TokioResolver);

impl SystemDns {
    pub(crate) fn new() -> Result<Self, String> {
        let mut builder = TokioResolver::builder_tokio().map_err(|error| error.to_string())?;
        let options = builder.options_mut();
        options.cache_size = CACHE;
        options.positive_max_ttl = Some(TTL_MAX);
        options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
        // Both kinds, so that a host of which one kind does not work is reached by the other.
        options.ip_strategy = hickory_resolver::config::LookupIpStrategy::Ipv4AndIpv6;
        builder.build().map(Self).map_err(|error| error.to_string())
    }
}

impl Dns for SystemDns {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, DnsError>> {
        Box::pin(async move {
            match tokio::time::timeout(DEADLINE, self.0.lookup_ip(host)).await {
                Ok(Ok(found)) => Ok(found.iter().collect()),
                Ok(Err(error)) if error.is_no_records_found() => Ok(Vec::new()),
                Ok(Err(error)) => Err(failed(host, &error)),
                Err(_) => Err(failed(host, &"no answer in time")),
            }
        })
    }

    fn services<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<Srv>, DnsError>> {
        Box::pin(async move {
            // The last dot keeps the system's search domains out.
            let lookup = self.0.lookup(format!("{name}."), RecordType::SRV);
            match tokio::time::timeout(DEADLINE, lookup).await {
                Ok(Ok(found)) => Ok(found.answers().iter().filter_map(|record| srv(&record.data)).collect()),
                Ok(Err(error)) if error.is_no_records_found() => Ok(Vec::new()),
                Ok(Err(error)) => Err(failed(name, &error)),
                Err(_) => Err(failed(name, &"no answer in time")),
            }
        })
    }
}

fn srv(data: &RData) -> Option<Srv> {
    let RData::SRV(srv) = data else { return None };
    let target = srv.target.to_ascii();
    Some(Srv {
        priority: srv.priority,
        weight: srv.weight,
        port: srv.port,
        target: target.trim_end_matches('.').to_owned(),
    })
}

fn failed(name: &str, reason: &dyn std::fmt::Display) -> DnsError {
    DnsError { name: name.to_owned(), reason: reason.to_string() }
}
