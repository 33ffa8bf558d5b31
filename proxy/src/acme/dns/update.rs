//! Records made by updates of the zone (RFC 2136), signed with a shared key (TSIG, RFC 8945).

use std::{
    fmt, io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode, update_message},
    rr::{
        Name, RData, Record, RecordSet, RecordType, TSigner,
        rdata::{
            TXT,
            tsig::{TsigAlgorithm, TsigError},
        },
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::{DnsError, TxtRecord};

/// How long a question may take.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// The pause until a server that does not show the record is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// How much the clocks may differ, in seconds (RFC 8945, section 10: "a value of 300 seconds is RECOMMENDED").
const CLOCK_SECONDS: u16 = 300;
/// The port of DNS.
const PORT: u16 = 53;

/// Updates that one of the zone's servers takes.
#[derive(Clone, Debug)]
pub struct DnsUpdate {
    /// The server: a host or an address, and its port if it is not 53.
    pub server: String,
    /// The zone; if there is none, the server is asked in which of its zones a name is.
    pub zone: Option<String>,
    /// What the updates are signed with.
    pub key: DnsKey,
    /// How long others may remember the record.
    pub ttl: Duration,
    /// Other servers of the zone, which must show the record before the authority is asked to look.
    pub others: Vec<String>,
    /// How long they, and the server itself, may take for that.
    pub wait: Duration,
}

/// A key that is shared with a DNS server.
#[derive(Clone)]
pub struct DnsKey {
    name: Name,
    algorithm: DnsKeyAlgorithm,
    secret: Vec<u8>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsKeyAlgorithm {
    /// `hmac-sha256`
    HmacSha256,
    /// `hmac-sha512`
    HmacSha512,
}

/// Why a key is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsKeyError {
    /// Its name is none for DNS.
    #[error("`{0}` cannot be the name of a DNS key")]
    Name(String),
    /// Its secret is not in base64, or empty.
    #[error("the secret of a DNS key is not in base64, as `tsig-keygen` writes it")]
    Secret,
}

impl DnsKey {
    /// A key as the server knows it: its name, and its secret in base64.
    pub fn new(name: &str, algorithm: DnsKeyAlgorithm, secret: &str) -> Result<Self, DnsKeyError> {
        let name = dns_name(name).ok_or_else(|| DnsKeyError::Name(name.to_owned()))?;
        let secret = BASE64_STANDARD.decode(secret.trim()).map_err(|_| DnsKeyError::Secret)?;
        if secret.is_empty() {
            return Err(DnsKeyError::Secret);
        }
        Ok(Self { name, algorithm, secret })
    }

    fn signer(&self) -> Result<TSigner, DnsError> {
        let algorithm = match self.algorithm {
            DnsKeyAlgorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
            DnsKeyAlgorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
        };
        let signer = TSigner::new(self.secret.clone(), algorithm, self.name.clone(), CLOCK_SECONDS);
        // Both algorithms are supported.
        signer.map_err(|_| DnsKeyError::Secret.into())
    }
}

impl fmt::Debug for DnsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsKey").field("name", &self.name).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// What is done with a record.
#[derive(Clone, Copy)]
enum Act {
    Add,
    Delete,
}

impl DnsUpdate {
    pub(super) fn describe(&self) -> String {
        format!("{} {} {}", self.server, self.zone.as_deref().unwrap_or_default(), shown(&self.key.name))
    }

    pub(super) async fn set(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.change(Act::Add, record).await
    }

    pub(super) async fn clear(&self, record: &TxtRecord) -> Result<(), DnsError> {
        self.change(Act::Delete, record).await
    }

    /// Waits until the zone's servers show the records.
    pub(super) async fn wait(&self, records: &[TxtRecord]) -> Result<(), DnsError> {
        let until = Instant::now() + self.wait;
        for server in std::iter::once(&self.server).chain(&self.others) {
            for record in records {
                let name = name_of(record)?;
                while !shows(server, &name, &record.value).await? {
                    if Instant::now() >= until {
                        let (server, name) = (server.clone(), record.name.clone());
                        return Err(DnsError::NotShown { server, name, time: self.wait });
                    }
                    sleep(LOOK_AGAIN).await;
                }
            }
        }
        Ok(())
    }

    async fn change(&self, act: Act, record: &TxtRecord) -> Result<(), DnsError> {
        let name = name_of(record)?;
        let zone = self.zone_of(&name).await?;
        let ttl = u32::try_from(self.ttl.as_secs()).unwrap_or(u32::MAX);
        let txt = RData::TXT(TXT::new(vec![record.value.clone()]));
        let records = RecordSet::from(Record::from_rdata(name, ttl, txt));
        // Other values of the name stay: a name and its wildcard are proven at the same time.
        let message = match act {
            Act::Add => update_message::append(records, zone, false, false),
            Act::Delete => update_message::delete_by_rdata(records, zone, false),
        };
        self.send(message, &record.name).await
    }

    /// The zone that a name is in.
    async fn zone_of(&self, name: &Name) -> Result<Name, DnsError> {
        let none = || DnsError::NoZone { server: self.server.clone(), name: shown(name) };
        if let Some(zone) = &self.zone {
            let zone = dns_name(zone).ok_or_else(|| DnsError::Name(zone.clone()))?;
            return if zone.zone_of(name) { Ok(zone) } else { Err(none()) };
        }
        let mut zone = name.clone();
        while !zone.is_root() {
            let answer = ask(&self.server, &zone, RecordType::SOA).await?;
            let found = answer.answers.iter().any(|found| found.record_type() == RecordType::SOA && found.name == zone);
            if answer.metadata.authoritative && found {
                return Ok(zone);
            }
            zone = zone.base_name();
        }
        Err(none())
    }

    /// Sends a signed update, and believes nobody but the server that it is done.
    async fn send(&self, mut message: Message, name: &str) -> Result<(), DnsError> {
        let server = &self.server;
        let wrong = |reason: String| DnsError::Answer { server: server.clone(), reason };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let verifier = message.finalize(&self.key.signer()?, now).map_err(|error| wrong(error.to_string()))?;
        let mut verifier = verifier.ok_or_else(|| wrong("it could not be signed".to_owned()))?;
        let bytes = message.to_vec().map_err(|error| wrong(error.to_string()))?;
        let answer = exchange(server, &bytes).await?;
        let read = Message::from_vec(&answer).map_err(|error| wrong(error.to_string()))?;
        if read.metadata.id != message.metadata.id || read.metadata.op_code != OpCode::Update {
            return Err(wrong("it is one to another question".to_owned()));
        }
        if read.metadata.response_code != ResponseCode::NoError {
            // A server that does not know the key cannot sign what it says. To believe that it did not work is no harm.
            let error = read.signature().and_then(|signature| signature.data.error);
            let reason = self.reason(read.metadata.response_code, error);
            return Err(DnsError::Refused { server: server.clone(), name: name.to_owned(), reason });
        }
        verifier.verify(&answer).map_err(|error| wrong(format!("it is not signed with our key: {error}")))?;
        Ok(())
    }

    /// What a refusal means, for who has to correct it.
    fn reason(&self, code: ResponseCode, error: Option<TsigError>) -> String {
        let key = shown(&self.key.name);
        match (error, code) {
            (Some(TsigError::BadKey), _) => format!("it does not know the key {key}, or has it for another algorithm"),
            (Some(TsigError::BadSig), _) => format!("it has another secret for the key {key}"),
            (Some(TsigError::BadTime), _) => "its clock and the one of this machine differ by minutes".to_owned(),
            (_, ResponseCode::Refused) => format!("the key {key} may not change it (REFUSED)"),
            (_, ResponseCode::NotAuth) => {
                "it is not the zone's primary server, or wants another key (NOTAUTH)".to_owned()
            }
            (_, ResponseCode::NotZone) => "it is not in the zone (NOTZONE)".to_owned(),
            (_, ResponseCode::NotImp) => "it takes no updates (NOTIMP)".to_owned(),
            (_, code) => code.to_string(),
        }
    }
}

fn dns_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    (!name.is_root()).then(|| name.to_lowercase())
}

/// A name as people write it, without the root's dot.
fn shown(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_owned()
}

fn name_of(record: &TxtRecord) -> Result<Name, DnsError> {
    dns_name(&record.name).ok_or_else(|| DnsError::Name(record.name.clone()))
}

/// Whether the server says that `name` has this value.
async fn shows(server: &str, name: &Name, value: &str) -> Result<bool, DnsError> {
    let answer = ask(server, name, RecordType::TXT).await?;
    Ok(answer.answers.iter().any(|record| match &record.data {
        RData::TXT(txt) => record.name == *name && txt.txt_data.concat() == value.as_bytes(),
        _ => false,
    }))
}

/// Asks a server for what it knows itself.
async fn ask(server: &str, name: &Name, of: RecordType) -> Result<Message, DnsError> {
    let wrong = |reason: String| DnsError::Answer { server: server.to_owned(), reason };
    let mut message = Message::query();
    message.metadata.recursion_desired = false;
    message.add_query(Query::query(name.clone(), of));
    let bytes = message.to_vec().map_err(|error| wrong(error.to_string()))?;
    let answer = Message::from_vec(&exchange(server, &bytes).await?).map_err(|error| wrong(error.to_string()))?;
    if answer.metadata.id != message.metadata.id {
        return Err(wrong("it is one to another question".to_owned()));
    }
    Ok(answer)
}

/// One message and its answer, by TCP, where nobody can send an answer in the server's name and none is too long (RFC
/// 1035, section 4.2.2: "the message is prefixed with a two byte length field").
async fn exchange(server: &str, message: &[u8]) -> Result<Vec<u8>, DnsError> {
    let exchanged = async {
        let length = u16::try_from(message.len()).map_err(|_| io::Error::other("the question is too long"))?;
        let mut stream = match server.parse::<std::net::IpAddr>() {
            Ok(address) => TcpStream::connect((address, PORT)).await?,
            Err(_) if server.contains(':') => TcpStream::connect(server).await?,
            Err(_) => TcpStream::connect((server, PORT)).await?,
        };
        stream.write_all(&[&length.to_be_bytes(), message].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    let answered: io::Result<_> = match timeout(ANSWER_TIME, exchanged).await {
        Ok(answered) => answered,
        Err(_) => Err(io::Error::other(format!("no answer within {} seconds", ANSWER_TIME.as_secs()))),
    };
    answered.map_err(|error| DnsError::Unreachable { server: server.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hickory_proto::op::Message;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::{DnsKey, DnsKeyAlgorithm, DnsKeyError, DnsUpdate};
    use crate::acme::dns::{DnsError, TxtRecord};

    fn update(server: String) -> DnsUpdate {
        DnsUpdate {
            server,
            zone: Some("example.org".to_owned()),
            key: DnsKey::new("myelin.example.org", DnsKeyAlgorithm::HmacSha512, "c2VjcmV0").unwrap(),
            ttl: Duration::from_secs(60),
            others: Vec::new(),
            wait: Duration::ZERO,
        }
    }

    fn record(name: &str) -> TxtRecord {
        TxtRecord { name: name.to_owned(), value: "v".to_owned() }
    }

    /// Keys are as `tsig-keygen` writes them; what is none is refused, and a key's secret is shown to nobody.
    #[test]
    fn keys() {
        let of = |name: &str, secret: &str| DnsKey::new(name, DnsKeyAlgorithm::HmacSha256, secret);
        let key = of("Key.example.org.", " c2VjcmV0\n").unwrap();
        assert_eq!((key.secret.as_slice(), key.name.to_ascii().as_str()), (&b"secret"[..], "key.example.org."));
        assert!(!format!("{key:?}").contains("115"), "{key:?}");
        for secret in ["", "no base64!", "c2VjcmV"] {
            assert_eq!(of("key", secret).unwrap_err(), DnsKeyError::Secret, "{secret}");
        }
        for name in ["", ".", "a..b", &"a".repeat(64)] {
            assert_eq!(of(name, "c2VjcmV0").unwrap_err(), DnsKeyError::Name(name.to_owned()));
        }
    }

    /// A name outside of the zone, and one that is none, are told before anybody is asked.
    #[tokio::test]
    async fn names_are_in_the_zone() {
        let update = update("127.0.0.1:1".to_owned());
        let error = update.set(&record("_acme-challenge.example.com")).await.unwrap_err();
        assert!(matches!(error, DnsError::NoZone { .. }), "{error}");
        let error = update.set(&record("_acme-challenge..org")).await.unwrap_err();
        assert!(matches!(error, DnsError::Name(_)), "{error}");
        let error = update.set(&record("_acme-challenge.example.org")).await.unwrap_err();
        assert!(matches!(error, DnsError::Unreachable { .. }), "{error}");
    }

    /// That it is done is believed only if it is signed: not from who cannot sign, talks nonsense, or hangs up.
    #[tokio::test]
    async fn unsigned_answers_do_not_count() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let update = update(listener.local_addr().unwrap().to_string());
        let liar = async {
            for act in 0..4 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut asked).await.unwrap();
                let asked = Message::from_vec(&asked).unwrap();
                let mut done = Message::response(asked.metadata.id, asked.metadata.op_code);
                let answer = match act {
                    0 => done.to_vec().unwrap(),
                    // With the signature of the question.
                    1 => {
                        done.set_signature(asked.signature.clone().unwrap());
                        done.to_vec().unwrap()
                    }
                    2 => b"nonsense".to_vec(),
                    _ => continue,
                };
                stream.write_all(&u16::try_from(answer.len()).unwrap().to_be_bytes()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        };
        let asker = async {
            for reason in ["not signed", "not signed", "does not count", "ask the DNS server"] {
                let error = update.set(&record("_acme-challenge.example.org")).await.unwrap_err().to_string();
                assert!(error.contains(reason), "{error}");
            }
        };
        tokio::join!(liar, asker);
    }
}
