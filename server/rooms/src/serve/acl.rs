//! Server access control lists.
//!
//! [Specification](https://spec.matrix.org/v1.19/client-server-api/#server-access-control-lists-acls-for-rooms)

use std::{collections::HashSet, sync::Arc};

use myelin_store::{Event, RoomName};
use ruma::{RoomId, ServerName};
use serde_json::{Map, Value};

use super::{ACL_LOADS, ACL_REFUSALS, Weight};
use crate::{Error, Result, Rooms};

/// The longest host name of a server, in bytes: "dns-name = 1*255dns-char".
const HOST_BYTES_MAX: usize = 255;
/// Words of 64 places that a host name takes, with the place behind its end.
const WORDS: usize = 4;

/// An access control list, read from an `m.room.server_acl` event.
#[derive(Debug)]
pub(crate) struct ServerAcl {
    allows_ip_literals: bool,
    deny: Globs,
    allow: Globs,
}

impl ServerAcl {
    /// Reads an event's content. What has a wrong type counts as absent.
    fn parse(content: &str) -> Self {
        let content: Map<String, Value> = serde_json::from_str(content).unwrap_or_default();
        let globs = |name: &str| {
            let list = content.get(name).and_then(Value::as_array);
            Globs::new(list.into_iter().flatten().filter_map(Value::as_str))
        };
        Self {
            // "Defaults to true if missing or otherwise not a boolean."
            allows_ip_literals: content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true),
            deny: globs("deny"),
            allow: globs("allow"),
        }
    }

    /// Decides about a server, in the specification's order; the first step is that there is a list at all.
    fn allows(&self, server: &ServerName) -> bool {
        // "2. If the server name is an IP address (v4 or v6) literal, and allow_ip_literals is present and false, deny."
        if server.is_ip_literal() && !self.allows_ip_literals {
            return false;
        }
        // "When comparing against the server ACLs, the suspect server's port number must not be considered."
        let Some(host) = Host::new(server.host()) else { return false };
        // "3. If the server name matches an entry in the deny list, deny."
        // "4. If the server name matches an entry in the allow list, allow."
        // "5. Otherwise, deny."
        !self.deny.match_any(&host) && self.allow.match_any(&host)
    }
}

impl Weight for Arc<ServerAcl> {
    fn weight(&self) -> u64 {
        (128 + self.deny.weight() + self.allow.weight()) as u64
    }
}

/// Patterns in which `*` is any text, and `?` any one character.
#[derive(Debug, Default)]
struct Globs {
    /// Those without either.
    names: HashSet<Box<str>>,
    patterns: Vec<Box<str>>,
}

impl Globs {
    fn new<'a>(list: impl Iterator<Item = &'a str>) -> Self {
        let mut globs = Self::default();
        for glob in list {
            let glob = glob.to_ascii_lowercase().into_boxed_str();
            if glob.contains(['*', '?']) {
                globs.patterns.push(glob);
            } else {
                globs.names.insert(glob);
            }
        }
        globs
    }

    fn match_any(&self, host: &Host) -> bool {
        self.names.contains(&*host.name) || self.patterns.iter().any(|pattern| host.matches(pattern))
    }

    fn weight(&self) -> usize {
        self.names.iter().chain(&self.patterns).map(|glob| glob.len() + 32).sum()
    }
}

/// A set of places in a host name.
type Places = [u64; WORDS];

/// A host name, made ready to be compared with many patterns.
///
/// A pattern is read once from left to right, whatever it is made of: after each of its characters we know at which
/// places of the name the part read so far can end.
struct Host {
    name: String,
    /// For each ASCII character, the places where the name has it.
    places: Box<[Places; 128]>,
}

impl Host {
    /// `None` for what cannot be a host name.
    fn new(host: &str) -> Option<Self> {
        if host.len() > HOST_BYTES_MAX || !host.is_ascii() {
            return None;
        }
        let name = host.to_ascii_lowercase();
        let mut places = Box::new([[0; WORDS]; 128]);
        for (place, byte) in name.bytes().enumerate() {
            places[usize::from(byte)][place / 64] |= 1 << (place % 64);
        }
        Some(Self { name, places })
    }

    fn matches(&self, pattern: &str) -> bool {
        // Before the first character, the part read so far is empty and ends at the beginning.
        let mut ends: Places = [1, 0, 0, 0];
        for character in pattern.chars() {
            ends = match character {
                '*' => from_first(&ends),
                '?' => next(&ends),
                _ => match self.places.get(character as usize) {
                    Some(places) => next(&both(&ends, places)),
                    None => return false,
                },
            };
            if ends == [0; WORDS] {
                return false;
            }
        }
        let end = self.name.len();
        ends[end / 64] >> (end % 64) & 1 == 1
    }
}

fn both(a: &Places, b: &Places) -> Places {
    std::array::from_fn(|word| a[word] & b[word])
}

/// One place further. What goes beyond the last place is no match.
fn next(places: &Places) -> Places {
    std::array::from_fn(|word| places[word] << 1 | if word > 0 { places[word - 1] >> 63 } else { 0 })
}

/// The first place and all that follow.
fn from_first(places: &Places) -> Places {
    let mut is_behind = false;
    std::array::from_fn(|word| {
        let filled = match (is_behind, places[word]) {
            (true, _) => u64::MAX,
            (false, 0) => 0,
            (false, bits) => u64::MAX << bits.trailing_zeros(),
        };
        is_behind |= filled != 0;
        filled
    })
}

impl Rooms {
    /// Refuses a server that a room's access control list shuts out. A room that we do not know has none.
    ///
    /// # Errors
    ///
    /// [`Error::Forbidden`].
    pub async fn check_acl(&self, origin: &ServerName, room_id: &RoomId) -> Result<()> {
        match self.store.room(room_id).await? {
            Some(room) => self.check_acl_of(origin, &room).await,
            None => Ok(()),
        }
    }

    /// The same for a room at hand.
    pub async fn check_acl_of(&self, origin: &ServerName, room: &RoomName) -> Result<()> {
        let root = self.state_root(room).await?;
        self.check_acl_at(origin, root).await
    }

    pub(super) async fn check_acl_at(&self, origin: &ServerName, root: i64) -> Result<()> {
        // "1. If there is no m.room.server_acl event in the room state, allow."
        let Some(event) = self.state_event_at(root, "m.room.server_acl", "").await? else { return Ok(()) };
        if self.acl(&event).allows(origin) {
            return Ok(());
        }
        ACL_REFUSALS.inc();
        Err(Error::forbidden("the room's access control list does not let your server take part"))
    }

    fn acl(&self, event: &Event) -> Arc<ServerAcl> {
        // An event has one content before it is redacted, and one after.
        let key = (event.nid, event.redacted_by.is_some());
        if let Some(acl) = self.serving.acls.get(&key) {
            return acl;
        }
        ACL_LOADS.inc();
        let acl = Arc::new(ServerAcl::parse(event.content()));
        self.serving.acls.insert(key, acl.clone());
        self.serving.show_weight();
        acl
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn allows(content: &str, server: &str) -> bool {
        ServerAcl::parse(content).allows(<&ServerName>::try_from(server).unwrap())
    }

    /// Each rule of the specification, in its order.
    #[test]
    fn the_specified_order() {
        let list = r#"{"allow":["*"],"deny":["evil.com","*.evil.com"],"allow_ip_literals":false}"#;
        for server in ["good.com", "notevil.com", "evil.com.org", "evil.co"] {
            assert!(allows(list, server), "{server}");
        }
        for server in
            ["evil.com", "EVIL.com", "evil.com:8448", "a.evil.com:1", "a.b.evil.com", "1.2.3.4", "[::1]", "1.2.3.4:5"]
        {
            assert!(!allows(list, server), "{server}");
        }
    }

    /// What is missing or has a wrong type: nobody is in the list, and literals are allowed.
    #[test]
    fn odd_lists() {
        assert!(!allows("{}", "good.com"));
        assert!(!allows(r#"{"allow":"*"}"#, "good.com"));
        assert!(!allows(r#"{"allow":[7,null,{}]}"#, "good.com"));
        assert!(allows(r#"{"allow":[7,"good.com"]}"#, "good.com"));
        assert!(allows(r#"{"allow":["*"],"allow_ip_literals":"no","deny":5}"#, "1.2.3.4"));
        assert!(allows(r#"{"allow":["[::*"]}"#, "[::1]:8448"));
        assert!(!allows(r#"{"allow":["good.com:8448"]}"#, "good.com:8448"));
    }

    /// The patterns agree with a plain definition of them, tried on all short texts.
    #[test]
    fn patterns_mean_what_they_say() {
        fn plain(pattern: &[u8], text: &[u8]) -> bool {
            match (pattern.first(), text.first()) {
                (None, None) => true,
                (Some(b'*'), _) => plain(&pattern[1..], text) || !text.is_empty() && plain(pattern, &text[1..]),
                (Some(b'?'), Some(_)) => plain(&pattern[1..], &text[1..]),
                (Some(a), Some(b)) if a == b => plain(&pattern[1..], &text[1..]),
                _ => false,
            }
        }
        fn words(letters: &[u8], length: usize) -> Vec<Vec<u8>> {
            let mut all = vec![Vec::new()];
            let mut last = all.clone();
            for _ in 0..length {
                last = last
                    .iter()
                    .flat_map(|word| letters.iter().map(|letter| [&word[..], &[*letter]].concat()))
                    .collect();
                all.extend(last.iter().cloned());
            }
            all
        }
        for text in words(b"ab", 5) {
            let host = Host::new(std::str::from_utf8(&text).unwrap()).unwrap();
            for pattern in words(b"ab*?", 5) {
                let readable = std::str::from_utf8(&pattern).unwrap();
                assert_eq!(host.matches(readable), plain(&pattern, &text), "{readable} {}", host.name);
            }
        }
        // Over the borders of words.
        for length in [63, 64, 65, 127, 128, 200, 255] {
            let host = Host::new(&"a".repeat(length)).unwrap();
            assert!(host.matches("*"));
            assert!(host.matches(&"?".repeat(length)));
            assert!(!host.matches(&"?".repeat(length + 1)));
            assert!(!host.matches(&"a".repeat(length - 1)));
            assert!(host.matches(&format!("a*{}", "a".repeat(length - 1))));
            assert!(!host.matches("*ä"));
        }
        assert!(Host::new(&"a".repeat(256)).is_none());
    }

    /// A list as bad as an event can hold is gone through at once.
    #[test]
    fn a_hostile_list_takes_no_time() {
        let pattern = format!("{}b", "*a".repeat(120));
        let list = serde_json::json!({ "allow": ["*"], "deny": vec![pattern; 260] }).to_string();
        let acl = ServerAcl::parse(&list);
        let server = "a".repeat(250);
        let server = <&ServerName>::try_from(&*server).unwrap();
        let start = Instant::now();
        assert!(acl.allows(server));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
