//! The `Authorization` headers of other servers.
//!
//! <https://spec.matrix.org/v1.19/server-server-api/#request-authentication>

use http::{HeaderMap, header::AUTHORIZATION};
use ruma::{OwnedServerName, ServerName, ServerSigningKeyId, SigningKeyAlgorithm, serde::Base64};

/// How many signatures a request may bring: a server that changes its key signs by both for a while.
const HEADERS_MAX: usize = 4;
/// Parameters of a header at the most: those that the specification has, and some to come.
const PARAMETERS_MAX: usize = 16;
const SIGNATURE_BYTES: usize = 64;

/// What the headers of one request say about who sent it. Nothing of it is true before a signature was verified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The sender.
    pub(crate) origin: OwnedServerName,
    /// The receiver; senders older than version 1.3 do not name it.
    pub(crate) destination: Option<OwnedServerName>,
    /// At least one, all of the origin.
    pub(crate) signatures: Vec<Signature>,
}

/// A signature and the key that it was made by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    /// For example `ed25519:1`.
    pub(crate) key_id: String,
    pub(crate) bytes: Vec<u8>,
}

/// Why there is no claim.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("there is no X-Matrix authorization header")]
    Missing,
    #[error("the X-Matrix authorization header cannot be read: {0}")]
    Header(&'static str),
    #[error("the X-Matrix authorization headers name different servers")]
    Contradiction,
}

impl Claim {
    /// Reads all `X-Matrix` headers of a request. Other schemes are no business of ours.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Malformed> {
        let mut claim: Option<Self> = None;
        for value in headers.get_all(AUTHORIZATION) {
            let Some(parameters) = x_matrix(value.as_bytes()) else { continue };
            let next = Self::parse(parameters)?;
            match &mut claim {
                None => claim = Some(next),
                Some(claim) if claim.origin != next.origin || claim.destination != next.destination => {
                    return Err(Malformed::Contradiction);
                }
                Some(claim) if claim.signatures.len() == HEADERS_MAX => {
                    return Err(Malformed::Header("there are too many of them"));
                }
                Some(claim) => claim.signatures.extend(next.signatures),
            }
        }
        claim.ok_or(Malformed::Missing)
    }

    fn parse(parameters: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(parameters).map_err(|_| Malformed::Header("it is not UTF-8"))?;
        let mut origin = None;
        let mut destination = None;
        let mut key = None;
        let mut signature = None;
        for (name, value) in Parameters::parse(text)? {
            let slot = match name.to_ascii_lowercase().as_str() {
                "origin" => &mut origin,
                "destination" => &mut destination,
                "key" => &mut key,
                "sig" => &mut signature,
                // "Unknown parameters are ignored."
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(Malformed::Header("a parameter is there twice"));
            }
        }
        let missing = Malformed::Header("origin, key or sig is missing");
        let (Some(origin), Some(key), Some(signature)) = (origin, key, signature) else { return Err(missing) };
        let destination = destination.map(|name| server_name(&name)).transpose()?;
        let bytes: Base64 = Base64::parse(&signature).map_err(|_| Malformed::Header("sig is not Base64"))?;
        let bytes = bytes.into_inner();
        if bytes.len() != SIGNATURE_BYTES {
            return Err(Malformed::Header("sig has not the length of a signature"));
        }
        Ok(Self {
            origin: server_name(&origin)?,
            destination,
            signatures: vec![Signature { key_id: ed25519(key)?, bytes }],
        })
    }
}

fn server_name(name: &str) -> Result<OwnedServerName, Malformed> {
    ServerName::parse(name).map_err(|_| Malformed::Header("a server's name is none"))
}

fn ed25519(key: String) -> Result<String, Malformed> {
    let id = <&ServerSigningKeyId>::try_from(key.as_str()).map_err(|_| Malformed::Header("key is no key's id"))?;
    if id.algorithm() != SigningKeyAlgorithm::Ed25519 {
        return Err(Malformed::Header("key is of an unknown algorithm"));
    }
    Ok(key)
}

/// What follows the scheme, if that is ours: "the header begins with authorisation scheme X-Matrix, followed by one or
/// more spaces".
fn x_matrix(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"X-Matrix";
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    (scheme.eq_ignore_ascii_case(SCHEME) && rest.first().is_none_or(|byte| *byte == b' ')).then_some(rest)
}

/// "a comma-separated list of parameters written as name=value pairs".
struct Parameters<'a> {
    rest: &'a str,
}

impl<'a> Parameters<'a> {
    fn parse(text: &'a str) -> Result<Vec<(&'a str, String)>, Malformed> {
        let mut parser = Self { rest: text };
        let mut parameters = Vec::new();
        loop {
            parser.skip_space();
            // RFC 9110, section 5.6.1: "A recipient MUST parse and ignore a reasonable number of empty list elements".
            if !parser.rest.is_empty() && !parser.rest.starts_with(',') {
                parameters.push(parser.parameter()?);
            }
            if parameters.len() > PARAMETERS_MAX {
                return Err(Malformed::Header("there are too many parameters"));
            }
            parser.skip_space();
            if parser.rest.is_empty() {
                return Ok(parameters);
            }
            parser.expect(',')?;
        }
    }

    fn parameter(&mut self) -> Result<(&'a str, String), Malformed> {
        let name = self.take_while(is_token);
        if name.is_empty() {
            return Err(Malformed::Header("a parameter has no name"));
        }
        // RFC 9110, section 11.2, allows "bad whitespace" here, and makes recipients accept it.
        self.skip_space();
        self.expect('=')?;
        self.skip_space();
        let value = if self.rest.starts_with('"') {
            self.quoted()?
        } else {
            // "the recipient should allow colons to be included in values without requiring the value to be enclosed
            // in quotes"
            self.take_while(|c| is_token(c) || c == ':').to_owned()
        };
        if value.is_empty() {
            return Err(Malformed::Header("a parameter has no value"));
        }
        Ok((name, value))
    }

    /// "a backslash-character pair is replaced by the character that follows the backslash"
    fn quoted(&mut self) -> Result<String, Malformed> {
        const UNFINISHED: Malformed = Malformed::Header("a quoted value does not end");
        self.expect('"')?;
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(value);
                }
                '\\' => value.push(chars.next().ok_or(UNFINISHED)?.1),
                c => value.push(c),
            }
        }
        Err(UNFINISHED)
    }

    fn take_while(&mut self, accepts: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !accepts(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn expect(&mut self, c: char) -> Result<(), Malformed> {
        self.rest = self.rest.strip_prefix(c).ok_or(Malformed::Header("it is not a list of parameters"))?;
        Ok(())
    }
}

/// RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SIG: &str = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234w";

    fn read(values: &[&str]) -> Result<Claim, Malformed> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Claim::of(&headers)
    }

    fn origin_of(value: &str) -> String {
        read(&[&value.replace("SIG", SIG)]).unwrap().origin.to_string()
    }

    /// Every form that the specification allows is understood.
    #[test]
    fn allowed_forms_are_read() {
        let plain = read(&[&format!(r#"X-Matrix origin="a.org",destination="b.org",key="ed25519:1",sig="{SIG}""#)]);
        let plain = plain.unwrap();
        assert_eq!(plain.origin, "a.org");
        assert_eq!(plain.destination.as_deref().map(ServerName::as_str), Some("b.org"));
        assert_eq!(plain.signatures[0].key_id, "ed25519:1");
        assert_eq!(plain.signatures[0].bytes.len(), SIGNATURE_BYTES);
        for (value, origin) in [
            (r#"x-matrix origin=a.org,key="ed25519:1",sig="SIG""#, "a.org"),
            (r#"X-Matrix   Origin="a.org" , KEY=ed25519:1	,	sig="SIG""#, "a.org"),
            (r#"X-Matrix origin=a.org:8448,key=ed25519:1,sig="SIG",new="x\"y",other=1"#, "a.org:8448"),
            (r#"X-Matrix origin="\a.o\rg",key="ed25519:1",sig="SIG""#, "a.org"),
            (r#"X-Matrix origin="[::1]:8448",key="ed25519:1",sig="SIG""#, "[::1]:8448"),
            (r#"X-Matrix ,origin = a.org,,key="ed25519:1",sig="SIG","#, "a.org"),
        ] {
            assert_eq!(origin_of(value), origin, "{value}");
        }
    }

    /// Several headers are several signatures of one server; other schemes do not count.
    #[test]
    fn several_headers_agree_or_are_refused() {
        let header = |origin: &str, key: &str| format!(r#"X-Matrix origin="{origin}",key="ed25519:{key}",sig="{SIG}""#);
        let both = read(&["Bearer x", &header("a.org", "1"), &header("a.org", "2")]).unwrap();
        assert_eq!(both.signatures.len(), 2);
        assert_eq!(read(&[&header("a.org", "1"), &header("b.org", "1")]), Err(Malformed::Contradiction));
        let many = vec![header("a.org", "1"); HEADERS_MAX + 1];
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(matches!(read(&many), Err(Malformed::Header(_))));
    }

    /// What is not in the grammar is refused, not guessed at.
    #[test]
    fn malformed_headers_are_refused() {
        for none in [&[][..], &["Bearer x"], &["X-MatrixX origin=a.org"], &["X"]] {
            assert_eq!(read(none), Err(Malformed::Missing), "{none:?}");
        }
        for value in [
            "X-Matrix",
            "X-Matrix ",
            r#"X-Matrix origin="a.org""#,
            r#"X-Matrix origin="a.org",origin="b.org",key="ed25519:1",sig="SIG""#,
            r#"X-Matrix origin="a.org",key="ed25519:1",sig="SIG"#,
            r#"X-Matrix origin="a.org",key="ed25519:1",sig="SIG\"#,
            r#"X-Matrix origin="a.org" key="ed25519:1" sig="SIG""#,
            r#"X-Matrix origin="a org",key="ed25519:1",sig="SIG""#,
            r#"X-Matrix origin="",key="ed25519:1",sig="SIG""#,
            r#"X-Matrix origin="a.org",destination="",key="ed25519:1",sig="SIG""#,
            r#"X-Matrix origin="a.org",key="ed25519",sig="SIG""#,
            r#"X-Matrix origin="a.org",key="rsa:1",sig="SIG""#,
            r#"X-Matrix origin="a.org",key="ed25519:1",sig="c2hvcnQ""#,
            r#"X-Matrix origin="a.org",key="ed25519:1",sig="*""#,
            r#"X-Matrix ="a.org",key="ed25519:1",sig="SIG""#,
            r#"X-Matrix origin="a.org"; key="ed25519:1"; sig="SIG""#,
        ] {
            let value = value.replace("SIG", SIG);
            assert!(matches!(read(&[&value]), Err(Malformed::Header(_))), "{value}");
        }
        let many = (0..100).map(|n| format!("p{n}=x,")).collect::<String>();
        assert!(matches!(read(&[&format!("X-Matrix {many}")]), Err(Malformed::Header(_))));
    }
}
