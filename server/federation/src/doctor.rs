//! What is right and wrong with a server, as others see it.

mod answers;
mod tls;

use std::sync::Arc;

use ruma::{OwnedServerName, ServerName};
use serde::Serialize;

use crate::{
    discovery::{Discovery, Dns, Route, Step, fetch, ip_literal},
    http::{DialError, Dialer, Endpoint, Host, HttpError},
    options::{ClientOptions, SetupError},
    tls::Tls,
};

/// All that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The server.
    pub server: OwnedServerName,
    /// The checks, in the order in which another server would fail at them.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What: `well_known`, `srv`, `addresses`, `tls`, `keys`, `version` or `clock`.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, and may not for long, or not for everybody.
    Warning,
    /// It does not work.
    Bad,
    /// Not looked at, because of something before it, or because it plays no part.
    Skipped,
}

impl Report {
    /// Whether other servers cannot talk with this one as it is.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.checks.iter().any(|check| check.verdict == Verdict::Bad)
    }

    fn add(&mut self, name: &'static str, verdict: Verdict, found: impl Into<String>) {
        self.checks.push(Check { name, verdict, found: found.into(), advice: None });
    }

    fn advise(&mut self, name: &'static str, verdict: Verdict, found: impl Into<String>, advice: impl Into<String>) {
        self.checks.push(Check { name, verdict, found: found.into(), advice: Some(advice.into()) });
    }
}

/// What the checks are made with.
struct Doctor {
    tls: Tls,
    dns: Arc<dyn Dns>,
    dialer: Arc<Dialer>,
    discovery: Discovery,
    options: ClientOptions,
}

/// Looks at a server from here, as another server would, by the specification's steps. Nothing is signed, so neither a
/// database nor a key is needed.
///
/// # Errors
///
/// If the certificate authorities or the resolver cannot be had.
pub async fn examine(options: &ClientOptions, server: &ServerName) -> Result<Report, SetupError> {
    let tls = Tls::new(options)?;
    let dns = options.dns()?;
    let dialer = Arc::new(Dialer::new(dns.clone(), options.allow_private_addresses, options.connect_timeout));
    let discovery = Discovery::new(dns.clone(), dialer.clone(), tls.files.clone(), options.ports);
    let doctor = Doctor { tls, dns, dialer, discovery, options: options.clone() };
    let mut report = Report { server: server.to_owned(), checks: Vec::new() };
    Box::pin(doctor.examine(server, &mut report)).await;
    Ok(report)
}

impl Doctor {
    async fn examine(&self, server: &ServerName, report: &mut Report) {
        self.well_known(server, report).await;
        let route = match self.discovery.find(server).await {
            Ok(route) => route,
            Err(error) => {
                let advice = "A server name is a name of the DNS, or an address; this one can have no certificate.";
                report.advise("srv", Verdict::Bad, error.to_string(), advice);
                return;
            }
        };
        self.srv(&route, report).await;
        if !self.addresses(&route, report).await {
            for name in ["tls", "keys", "version", "clock"] {
                report.add(name, Verdict::Skipped, "there is nothing to connect to");
            }
            return;
        }
        if !self.tls(&route, report).await {
            for name in ["keys", "version", "clock"] {
                report.add(name, Verdict::Skipped, "there is no connection to ask by");
            }
            return;
        }
        self.answers(server, &route, report).await;
    }

    async fn well_known(&self, server: &ServerName, report: &mut Report) {
        const NAME: &str = "well_known";
        if ip_literal(server).is_some() || server.port().is_some() {
            report.add(NAME, Verdict::Skipped, "a server name that is an address, or has a port, is not delegated");
            return;
        }
        let host = server.host();
        let url = format!("https://{host}/.well-known/matrix/server");
        match fetch(&self.dialer, &self.tls.files, self.options.ports, host).await {
            Ok(found) => {
                let hours = found.keep.as_secs() / 3600;
                report.add(NAME, Verdict::Ok, format!("{url} delegates to {}, for {hours} hours", found.server));
            }
            Err(error) if error.is_absence() => {
                report.add(NAME, Verdict::Ok, format!("{url} does not exist: nothing is delegated"));
            }
            Err(error) => {
                let advice = format!(
                    "Without delegation this does no harm, though others wait for it: answer with 404. To delegate, \
                     answer {{\"m.server\": \"HOST:PORT\"}} with status 200 and a good certificate for {host}."
                );
                report.advise(NAME, Verdict::Warning, format!("{url} cannot be used: {error}"), advice);
            }
        }
    }

    async fn srv(&self, route: &Route, report: &mut Report) {
        let endpoints = route.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let found = format!(
            "step {} of the specification: {endpoints}, as {}, with a certificate for {}",
            route.step.number(),
            route.host,
            route.tls_name.to_str()
        );
        match route.step {
            _ if route.endpoints.is_empty() => {
                let found = format!("the service record of {} says that there is no such service", route.host);
                report.advise("srv", Verdict::Bad, found, "Remove the record whose target is `.`, or correct it.");
            }
            Step::OldService | Step::DelegatedOldService => {
                let advice = "_matrix._tcp is deprecated: name the record _matrix-fed._tcp, or use .well-known.";
                report.advise("srv", Verdict::Warning, found, advice);
            }
            Step::IpLiteral | Step::Port | Step::DelegatedIpLiteral | Step::DelegatedPort => {
                report.add("srv", Verdict::Skipped, found);
            }
            _ => match self.dns.services(&format!("_matrix-fed._tcp.{}", route.host)).await {
                Ok(_) => report.add("srv", Verdict::Ok, found),
                Err(error) => {
                    let advice = "The name server should answer that there is no such record, and quickly.";
                    report.advise("srv", Verdict::Warning, format!("{found}; {error}"), advice);
                }
            },
        }
    }

    /// True if there is something to connect to.
    async fn addresses(&self, route: &Route, report: &mut Report) -> bool {
        let mut is_any = false;
        for endpoint in &route.endpoints {
            match self.dialer.addresses(endpoint).await {
                Ok(addresses) => {
                    is_any = true;
                    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
                    report.add("addresses", Verdict::Ok, format!("{endpoint} is {}", addresses.join(", ")));
                }
                Err(error) => {
                    let advice = address_advice(&error, endpoint);
                    report.advise("addresses", Verdict::Bad, error.to_string(), advice);
                }
            }
        }
        is_any
    }
}

fn address_advice(error: &DialError, endpoint: &Endpoint) -> String {
    let name = match &endpoint.host {
        Host::Name(name) => name.clone(),
        Host::Address(address) => address.to_string(),
    };
    match error {
        DialError::Private(_) => format!(
            "Other servers connect to public addresses only: give {name} one. In a private federation set \
             federation.allow_private_addresses."
        ),
        DialError::NoAddress(_) => format!("Give {name} an A or AAAA record."),
        _ => format!("See that the name servers of {name} answer, and those of this machine."),
    }
}

/// A failure to ask, in the words of the report.
fn unanswered(error: &HttpError) -> String {
    format!("no answer: {error}")
}

#[cfg(test)]
mod tests;
