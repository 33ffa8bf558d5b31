//! Where a server is: <https://spec.matrix.org/v1.19/server-server-api/#resolving-server-names>.

mod dns;
mod services;
mod well_known;

use std::{net::IpAddr, sync::Arc};

use ruma::ServerName;
use rustls::ClientConfig;

pub use self::dns::{Dns, DnsError, Srv};
pub(crate) use self::{
    dns::SystemDns,
    services::in_order,
    well_known::{WellKnowns, fetch},
};
use crate::{
    http::{Dialer, Endpoint, Host},
    options::Ports,
};

/// How a server was found: the steps of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// 1: its name is an IP literal.
    IpLiteral,
    /// 2: its name has a port.
    Port,
    /// 3.1: it delegates to an IP literal.
    DelegatedIpLiteral,
    /// 3.2: it delegates to a name with a port.
    DelegatedPort,
    /// 3.3: it delegates to a name that has a service record.
    DelegatedService,
    /// 3.4: it delegates to a name that has a service record of the old kind.
    DelegatedOldService,
    /// 3.5: it delegates to a name without service records.
    DelegatedAddress,
    /// 4: its name has a service record.
    Service,
    /// 5: its name has a service record of the old kind.
    OldService,
    /// 6: by the address of its name.
    Address,
}

impl Step {
    /// The number of the specification.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Self::IpLiteral => "1",
            Self::Port => "2",
            Self::DelegatedIpLiteral => "3.1",
            Self::DelegatedPort => "3.2",
            Self::DelegatedService => "3.3",
            Self::DelegatedOldService => "3.4",
            Self::DelegatedAddress => "3.5",
            Self::Service => "4",
            Self::OldService => "5",
            Self::Address => "6",
        }
    }
}

/// Where a server is and how it is to be spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// How it was found.
    pub step: Step,
    /// The `Host` header.
    pub host: String,
    /// Whose certificate is expected.
    pub tls_name: rustls_pki_types::ServerName<'static>,
    /// What to connect to, in the order to try.
    pub endpoints: Vec<Endpoint>,
}

/// Why a server cannot be found.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0} is no name that a certificate can have")]
pub(crate) struct NoTlsName(String);

/// Finds servers.
pub(crate) struct Discovery {
    dns: Arc<dyn Dns>,
    well_knowns: WellKnowns,
    ports: Ports,
}

impl Discovery {
    pub(crate) fn new(dns: Arc<dyn Dns>, dialer: Arc<Dialer>, config: Arc<ClientConfig>, ports: Ports) -> Self {
        Self { dns, well_knowns: WellKnowns::new(dialer, config, ports), ports }
    }

    /// Where a server is, by the steps of the specification.
    pub(crate) async fn find(&self, server: &ServerName) -> Result<Route, NoTlsName> {
        // 1. If the hostname is an IP literal, then that IP address should be used, together with the given port
        // number, or 8448 if no port is given.
        // 2. If the hostname is not an IP literal, and the server name includes an explicit port, resolve the
        // hostname to an IP address.
        if let Some(route) = self.direct(server, Step::IpLiteral, Step::Port)? {
            return Ok(route);
        }
        // 3. If the hostname is not an IP literal, a regular HTTPS request is made to
        // https://<hostname>/.well-known/matrix/server.
        if let Some(delegated) = self.well_knowns.delegate(server.host()).await {
            // 3.1 and 3.2: the same for the delegated name.
            if let Some(route) = self.direct(&delegated, Step::DelegatedIpLiteral, Step::DelegatedPort)? {
                return Ok(route);
            }
            // 3.3 to 3.5: the service records of the delegated name, else its address.
            let steps = [Step::DelegatedService, Step::DelegatedOldService, Step::DelegatedAddress];
            return self.by_service(&delegated, steps).await;
        }
        // 4 to 6: the service records of the hostname, else its address.
        self.by_service(server, [Step::Service, Step::OldService, Step::Address]).await
    }

    /// The route to a name that needs no records but addresses.
    fn direct(&self, name: &ServerName, literal: Step, with_port: Step) -> Result<Option<Route>, NoTlsName> {
        let (step, host, port) = match (ip_literal(name), name.port()) {
            (Some(address), port) => (literal, Host::Address(address), port.unwrap_or(self.ports.federation)),
            (None, Some(port)) => (with_port, Host::Name(name.host().to_owned()), port),
            (None, None) => return Ok(None),
        };
        route(name, step, vec![Endpoint { host, port }]).map(Some)
    }

    /// The route to a name without a port. The certificate is the name's own, not that of what a record points to.
    async fn by_service(&self, name: &ServerName, [new, old, address]: [Step; 3]) -> Result<Route, NoTlsName> {
        let record = |service: &str| format!("{service}._tcp.{}", name.host());
        // Both at once: a name server that does not answer costs its time once.
        let (new_record, old_record) = (record("_matrix-fed"), record("_matrix"));
        let found = tokio::join!(self.services(&new_record), self.services(&old_record));
        for (found, step) in [(found.0, new), (found.1, old)] {
            if !found.is_empty() {
                return route(name, step, in_order(found, &mut rand::rng()));
            }
        }
        let endpoint = Endpoint { host: Host::Name(name.host().to_owned()), port: self.ports.federation };
        route(name, address, vec![endpoint])
    }

    async fn services(&self, record: &str) -> Vec<Srv> {
        self.dns.services(record).await.unwrap_or_else(|error| {
            // Some name servers answer nothing at all for types that they do not know.
            tracing::debug!(%error, "there is taken to be no {record}: {error}");
            Vec::new()
        })
    }

    /// How many `.well-known` answers are remembered.
    pub(crate) fn well_knowns(&self) -> usize {
        self.well_knowns.len()
    }
}

fn route(name: &ServerName, step: Step, endpoints: Vec<Endpoint>) -> Result<Route, NoTlsName> {
    Ok(Route { step, host: name.to_string(), tls_name: tls_name(name)?, endpoints })
}

/// Whose certificate a server with this name has.
pub(crate) fn tls_name(name: &ServerName) -> Result<rustls_pki_types::ServerName<'static>, NoTlsName> {
    if let Some(address) = ip_literal(name) {
        return Ok(rustls_pki_types::ServerName::IpAddress(address.into()));
    }
    let host = name.host().trim_end_matches('.').to_owned();
    rustls_pki_types::ServerName::try_from(host).map_err(|_| NoTlsName(name.to_string()))
}

/// The address that a name is.
pub(crate) fn ip_literal(name: &ServerName) -> Option<IpAddr> {
    name.host().trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests;
