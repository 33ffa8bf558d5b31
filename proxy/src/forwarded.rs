//! Whose request it is that a trusted proxy hands on.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, header::FORWARDED};
use myelin_process::config::{ForwardedHeader, Network};

/// Proxies in a row that are looked at.
const HOPS_MAX: usize = 16;
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The proxies that are believed, and where they tell the client's address.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies {
    /// Their addresses.
    pub networks: Vec<Network>,
    /// The header that they write. The other one is what the client wrote.
    pub header: ForwardedHeader,
}

impl TrustedProxies {
    /// Whether `address` is one of them.
    pub fn contain(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(address))
    }

    /// The address of the client: the last one that was written down by a trusted proxy and is not one itself. The
    /// port is unknown, and 0, if it is not the peer's own.
    pub fn client(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        if !self.contain(peer.ip()) {
            return peer;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => FORWARDED,
        };
        // A proxy that passes on bytes that are not text cannot be understood: they stand for no address.
        let lines = headers.get_all(name).into_iter().rev().map(|value| value.to_str().unwrap_or_default());
        let mut client = peer;
        for hop in lines.flat_map(|line| line.rsplit(',')).take(HOPS_MAX) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => address(hop.trim()),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            };
            // `unknown`, and names that hide: who stands before them said so, and is as far as can be seen.
            let Some(address) = address else { return client };
            client = (address, 0).into();
            if !self.contain(address) {
                return client;
            }
        }
        client
    }
}

/// The parameter `for` of an element of `Forwarded` (RFC 7239, section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    address(value.trim_matches('"'))
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use http::{HeaderMap, HeaderName, HeaderValue};
    use proptest::prelude::{any, proptest};

    use super::{ForwardedHeader, TrustedProxies};

    fn client(header: ForwardedHeader, peer: &str, lines: &[(&str, &str)]) -> String {
        let networks = vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let peer: SocketAddr = peer.parse().unwrap();
        TrustedProxies { networks, header }.client(peer, &headers).ip().to_string()
    }

    /// Only what trusted proxies wrote counts: from the right, past those who are trusted, to the first who is not.
    #[test]
    fn x_forwarded_for() {
        let ask = |peer: &str, lines: &[&str]| {
            let lines: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            client(ForwardedHeader::XForwardedFor, peer, &lines)
        };
        assert_eq!(ask("192.0.2.1:1", &["198.51.100.9"]), "192.0.2.1");
        assert_eq!(ask("10.0.0.1:1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(ask("10.0.0.1:1", &["203.0.113.1, 198.51.100.9"]), "198.51.100.9");
        assert_eq!(ask("10.0.0.1:1", &["203.0.113.1, 198.51.100.9 ,10.9.9.9"]), "198.51.100.9");
        assert_eq!(ask("[::1]:1", &["203.0.113.1", "198.51.100.9"]), "198.51.100.9");
        assert_eq!(ask("10.0.0.1:1", &["2001:db8::5"]), "2001:db8::5");
        assert_eq!(ask("10.0.0.1:1", &["[2001:db8::5]:443"]), "2001:db8::5");
        assert_eq!(ask("10.0.0.1:1", &["198.51.100.9:1234"]), "198.51.100.9");
        assert_eq!(ask("10.0.0.1:1", &["::ffff:198.51.100.9"]), "198.51.100.9");
        assert_eq!(ask("10.0.0.1:1", &["198.51.100.9, nonsense"]), "10.0.0.1");
        assert_eq!(ask("10.0.0.1:1", &["198.51.100.9, nonsense, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(ask("10.0.0.1:1", &[]), "10.0.0.1");
        assert_eq!(ask("10.0.0.1:1", &["10.0.0.2, 10.0.0.3"]), "10.0.0.2");
    }

    /// The standard header, and never the one that is not asked for: a client may have written that.
    #[test]
    fn forwarded() {
        let ask = |line: &str| client(ForwardedHeader::Forwarded, "10.0.0.1:1", &[("forwarded", line)]);
        assert_eq!(ask("for=198.51.100.9;proto=https"), "198.51.100.9");
        assert_eq!(ask("proto=https; For=\"[2001:db8::5]:4711\""), "2001:db8::5");
        assert_eq!(ask("for=203.0.113.1, for=198.51.100.9, for=10.1.1.1"), "198.51.100.9");
        assert_eq!(ask("for=203.0.113.1, for=unknown"), "10.0.0.1");
        assert_eq!(ask("for=_hidden"), "10.0.0.1");
        let both = [("forwarded", "for=203.0.113.1"), ("x-forwarded-for", "198.51.100.9")];
        assert_eq!(client(ForwardedHeader::XForwardedFor, "10.0.0.1:1", &both), "198.51.100.9");
        assert_eq!(client(ForwardedHeader::Forwarded, "10.0.0.1:1", &both), "203.0.113.1");
    }

    proptest! {
        /// Whatever is in the header, it is an answer and not a panic.
        #[test]
        fn survives_anything(bytes in any::<Vec<u8>>()) {
            let Ok(value) = HeaderValue::from_bytes(&bytes) else { return Ok(()) };
            for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
                let mut headers = HeaderMap::new();
                headers.append("x-forwarded-for", value.clone());
                headers.append("forwarded", value.clone());
                let networks = vec!["0.0.0.0/0".parse().unwrap()];
                let _ = TrustedProxies { networks, header }.client("10.0.0.1:1".parse().unwrap(), &headers);
            }
        }
    }
}
