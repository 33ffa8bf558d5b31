//! Documents in which servers tell of their keys: <https://spec.matrix.org/v1.19/server-server-api/#publishing-keys>.

use std::collections::BTreeMap;

use myelin_store::ServerKey;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName,
    serde::{Base64, base64::Standard},
    signatures::{PublicKeyMap, VerificationError, verify_json},
};

/// The largest document that is looked at, in bytes.
const BYTES_MAX: usize = 64 * 1024;
/// The most keys in a document.
const KEYS_MAX: usize = 100;
/// The longest identifier of a key, in bytes.
const KEY_ID_MAX: usize = 255;
/// The length of a public key of ed25519.
const PUBLIC_KEY_BYTES: usize = 32;
/// "Servers MUST use the lesser of this field and 7 days into the future."
pub(super) const VALID_MAX_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLarge,
    #[error("it is no canonical JSON object: {0}")]
    Json(#[from] serde_json::Error),
    #[error("`{0}` is missing, or not what it should be")]
    Field(&'static str),
    #[error("it is of {0:?}")]
    OtherServer(String),
    #[error("it has more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("it tells of no ed25519 key in use")]
    NoKeys,
    #[error("it is not signed by its own keys: {0}")]
    Signature(#[from] VerificationError),
    #[error("it is not signed by the notary: {0}")]
    Notary(VerificationError),
}

/// A document that its server signed.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    /// Until when it may be believed, as it says itself, in milliseconds since 1970.
    pub(crate) valid_until_ts: i64,
    /// The keys in use, and those used no more, with the time that they were used last.
    pub(crate) keys: Vec<DocumentKey>,
    /// The JSON with the signatures of its own server only.
    pub(crate) object: CanonicalJsonObject,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DocumentKey {
    pub(crate) key_id: String,
    pub(crate) public_key: Vec<u8>,
    pub(crate) expired_ts: Option<i64>,
}

/// Whose word there is for a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The server's own, authenticated by TLS.
    Server,
    /// A notary's.
    Notary,
}

/// Reads the server name of a document that nothing was checked of.
pub(super) fn parse(json: &str) -> Result<(String, CanonicalJsonObject), DocumentError> {
    if json.len() > BYTES_MAX {
        return Err(DocumentError::TooLarge);
    }
    let object: CanonicalJsonObject = serde_json::from_str(json)?;
    match object.get("server_name") {
        Some(CanonicalJsonValue::String(name)) => Ok((name.clone(), object)),
        _ => Err(DocumentError::Field("server_name")),
    }
}

/// Checks that a document is of `server` and signed by its keys.
pub(crate) fn check(json: &str, server: &ServerName) -> Result<Document, DocumentError> {
    let (name, mut object) = parse(json)?;
    if name != server.as_str() {
        return Err(DocumentError::OtherServer(name.chars().take(KEY_ID_MAX).collect()));
    }
    let valid_until_ts = integer(&object, "valid_until_ts").ok_or(DocumentError::Field("valid_until_ts"))?;
    let current = keys(&object, "verify_keys")?;
    let old = keys(&object, "old_verify_keys")?;
    if current.len() + old.len() > KEYS_MAX {
        return Err(DocumentError::TooManyKeys);
    }
    if current.is_empty() {
        return Err(DocumentError::NoKeys);
    }
    keep_signatures_of(&mut object, server.as_str());
    let trusted = current.iter().map(|(id, (key, _))| (id.clone(), Base64::new(key.clone()))).collect();
    verify_json(&PublicKeyMap::from([(server.to_string(), trusted)]), &object)?;
    let mut all = Vec::with_capacity(current.len() + old.len());
    all.extend(current.into_iter().map(|(key_id, (public_key, _))| DocumentKey {
        key_id,
        public_key,
        expired_ts: None,
    }));
    for (key_id, (public_key, expired_ts)) in old {
        let in_use = all.iter().any(|key| key.key_id == key_id);
        // Without a time, nothing that it signed can be believed.
        if let Some(expired_ts) = expired_ts.filter(|_| !in_use) {
            all.push(DocumentKey { key_id, public_key, expired_ts: Some(expired_ts) });
        }
    }
    Ok(Document { valid_until_ts, keys: all, object })
}

/// Checks that a notary signed a document, by its keys in use.
pub(super) fn check_notary(
    json: &str,
    notary: &ServerName,
    keys: BTreeMap<String, Base64>,
) -> Result<(), DocumentError> {
    let (_, mut object) = parse(json)?;
    keep_signatures_of(&mut object, notary.as_str());
    verify_json(&PublicKeyMap::from([(notary.to_string(), keys)]), &object).map_err(DocumentError::Notary)
}

/// `verify_json` wants a good signature of every server that there are signatures of, and accepts it when there is
/// none of any: the one that counts is left, as an empty object if need be.
fn keep_signatures_of(object: &mut CanonicalJsonObject, server: &str) {
    let own = match object.remove("signatures") {
        Some(CanonicalJsonValue::Object(mut signatures)) => signatures.remove(server),
        _ => None,
    };
    let own = own.unwrap_or_else(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    let signatures = CanonicalJsonObject::from([(server.to_owned(), own)]);
    object.insert("signatures".to_owned(), CanonicalJsonValue::Object(signatures));
}

type Keys = BTreeMap<String, (Vec<u8>, Option<i64>)>;

/// The keys of one of the two lists, without those that we could not use.
fn keys(object: &CanonicalJsonObject, field: &'static str) -> Result<Keys, DocumentError> {
    let list = match object.get(field) {
        Some(CanonicalJsonValue::Object(list)) => list,
        None if field == "old_verify_keys" => return Ok(Keys::new()),
        _ => return Err(DocumentError::Field(field)),
    };
    if list.len() > KEYS_MAX {
        return Err(DocumentError::TooManyKeys);
    }
    let usable = list.iter().filter_map(|(key_id, value)| {
        let CanonicalJsonValue::Object(value) = value else { return None };
        let CanonicalJsonValue::String(key) = value.get("key")? else { return None };
        let key = Base64::<Standard>::parse(key).ok()?.into_inner();
        let fits = key_id.starts_with("ed25519:") && key_id.len() <= KEY_ID_MAX && key.len() == PUBLIC_KEY_BYTES;
        fits.then(|| (key_id.clone(), (key, integer(value, "expired_ts"))))
    });
    Ok(usable.collect())
}

fn integer(object: &CanonicalJsonObject, field: &str) -> Option<i64> {
    match object.get(field) {
        Some(CanonicalJsonValue::Integer(number)) => Some(i64::from(*number)).filter(|number| *number >= 0),
        _ => None,
    }
}

/// What is known of a server's keys after a document; `None` for a key of which nothing new is to be believed.
pub(super) fn merged(
    known: Option<&ServerKey>,
    document: &Document,
    key: &DocumentKey,
    source: Source,
    now: i64,
) -> Option<ServerKey> {
    let valid_until_ts = key.expired_ts.unwrap_or(document.valid_until_ts).min(now.saturating_add(VALID_MAX_MS));
    let told = ServerKey {
        key_id: key.key_id.clone(),
        public_key: key.public_key.clone(),
        valid_until_ts,
        expired_ts: key.expired_ts,
    };
    match (known, source) {
        (None, _) | (Some(_), Source::Server) => Some(told),
        // A notary may have an older document, and cannot give a key that we know another meaning.
        (Some(known), Source::Notary) => {
            let is_news = known.public_key == told.public_key
                && known.expired_ts.is_none()
                && (told.expired_ts.is_some() || told.valid_until_ts > known.valid_until_ts);
            is_news.then_some(told)
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        CanonicalJsonObject, CanonicalJsonValue,
        serde::Base64,
        server_name,
        signatures::{Ed25519KeyPair, sign_json},
    };
    use serde_json::{Value, json};

    use super::{DocumentError, DocumentKey, Source, VALID_MAX_MS, check, check_notary, merged};

    fn pair(version: &str) -> Ed25519KeyPair {
        Ed25519KeyPair::from_der(&Ed25519KeyPair::generate(), version.to_owned()).unwrap()
    }

    fn public(pair: &Ed25519KeyPair) -> String {
        Base64::<ruma::serde::base64::Standard>::new(pair.public_key().to_vec()).encode()
    }

    fn signed(value: Value, by: &[(&str, &Ed25519KeyPair)]) -> String {
        let CanonicalJsonValue::Object(mut object) = value.try_into().unwrap() else { panic!("no object") };
        for (name, pair) in by {
            sign_json(name, *pair, &mut object).unwrap();
        }
        serde_json::to_string(&object).unwrap()
    }

    fn document(pair: &Ed25519KeyPair) -> Value {
        json!({
            "server_name": "a.example",
            "valid_until_ts": 1000,
            "verify_keys": { "ed25519:1": { "key": public(pair) } },
            "old_verify_keys": {},
            "more": { "of": ["it"] },
        })
    }

    /// What a server tells of itself is taken with the keys in use, the old ones, and all else that it signed.
    #[test]
    fn good_documents() {
        let (one, old) = (pair("1"), pair("0"));
        let mut value = document(&one);
        value["old_verify_keys"]["ed25519:0"] = json!({ "key": public(&old), "expired_ts": 500 });
        value["old_verify_keys"]["ed25519:timeless"] = json!({ "key": public(&old) });
        value["verify_keys"]["curve:1"] = json!({ "key": "AAAA" });
        let found = check(&signed(value, &[("a.example", &one), ("notary", &old)]), server_name!("a.example")).unwrap();
        assert_eq!(found.valid_until_ts, 1000);
        let key = |id: &str, pair: &Ed25519KeyPair, expired_ts| DocumentKey {
            key_id: id.to_owned(),
            public_key: pair.public_key().to_vec(),
            expired_ts,
        };
        assert_eq!(found.keys, [key("ed25519:1", &one, None), key("ed25519:0", &old, Some(500))]);
        let CanonicalJsonValue::Object(signatures) = &found.object["signatures"] else { panic!("no signatures") };
        assert_eq!(signatures.keys().collect::<Vec<_>>(), ["a.example"]);
        assert!(found.object.contains_key("more"));
    }

    /// Unsigned, signed by another key or for another name, changed after signing, of another server: all refused.
    #[test]
    fn forged_documents() {
        let (one, two) = (pair("1"), pair("1"));
        let refused = |json: &str| check(json, server_name!("a.example")).unwrap_err();
        let good = signed(document(&one), &[("a.example", &one)]);
        check(&good, server_name!("a.example")).unwrap();
        let changed = good.replace("\"valid_until_ts\":1000", "\"valid_until_ts\":9000");
        assert_ne!(changed, good);
        for forged in [
            changed,
            signed(document(&one), &[]),
            signed(document(&one), &[("a.example", &two)]),
            signed(document(&one), &[("b.example", &one)]),
            signed(document(&one), &[("a.example", &pair("2"))]),
        ] {
            assert!(matches!(refused(&forged), DocumentError::Signature(_)), "{forged}");
        }
        let mut other = document(&one);
        other["server_name"] = json!("b.example");
        assert!(matches!(refused(&signed(other, &[("a.example", &one)])), DocumentError::OtherServer(_)));
        // An old key does not vouch for the document.
        let mut old = document(&one);
        old["old_verify_keys"]["ed25519:2"] = json!({ "key": public(&two), "expired_ts": 5 });
        assert!(matches!(refused(&signed(old, &[("a.example", &pair("2"))])), DocumentError::Signature(_)));
    }

    /// Whatever comes instead of a document is refused.
    #[test]
    fn nonsense() {
        let one = pair("1");
        let refused = |json: &str| check(json, server_name!("a.example")).unwrap_err();
        for text in ["", "[]", "{}", "null", r#"{"server_name":"a.example"}"#, r#"{"a":1.5}"#, r#"{"server_name":3}"#] {
            refused(text);
        }
        for (field, value) in [
            ("valid_until_ts", json!("1")),
            ("valid_until_ts", json!(-1)),
            ("verify_keys", json!({})),
            ("verify_keys", json!([])),
            ("verify_keys", json!({ "ed25519:1": { "key": "AAAA" } })),
            ("verify_keys", json!({ "ed25519:1": "AAAA" })),
            ("old_verify_keys", json!(3)),
        ] {
            let mut changed = document(&one);
            changed[field] = value;
            refused(&signed(changed, &[("a.example", &one)]));
        }
        let mut many = document(&one);
        for n in 0..200 {
            many["verify_keys"][format!("ed25519:x{n}")] = json!({ "key": public(&one) });
        }
        assert!(matches!(refused(&signed(many, &[("a.example", &one)])), DocumentError::TooManyKeys));
        let mut large = document(&one);
        large["padding"] = json!("x".repeat(70_000));
        assert!(matches!(refused(&signed(large, &[("a.example", &one)])), DocumentError::TooLarge));
    }

    /// A notary's word counts if it is the notary's.
    #[test]
    fn notaries() {
        let (one, notary) = (pair("1"), pair("n"));
        let keys = || [("ed25519:n".to_owned(), Base64::new(notary.public_key().to_vec()))].into();
        let both = signed(document(&one), &[("a.example", &one), ("n.example", &notary)]);
        check_notary(&both, server_name!("n.example"), keys()).unwrap();
        let alone = signed(document(&one), &[("a.example", &one)]);
        check_notary(&alone, server_name!("n.example"), keys()).unwrap_err();
        let forged = signed(document(&one), &[("a.example", &one), ("n.example", &pair("n"))]);
        check_notary(&forged, server_name!("n.example"), keys()).unwrap_err();
    }

    /// A server may change its keys; a notary may only tell more. Nothing is valid for more than a week.
    #[test]
    fn what_is_believed() {
        let (one, two) = (pair("1"), pair("1"));
        let document =
            |valid_until_ts| super::Document { valid_until_ts, keys: Vec::new(), object: CanonicalJsonObject::new() };
        let key = |pair: &Ed25519KeyPair, expired_ts| DocumentKey {
            key_id: "ed25519:1".to_owned(),
            public_key: pair.public_key().to_vec(),
            expired_ts,
        };
        let now = 1_000_000;
        let first = merged(None, &document(i64::MAX), &key(&one, None), Source::Notary, now).unwrap();
        assert_eq!(first.valid_until_ts, now + VALID_MAX_MS);
        let from = |source, valid, key: &DocumentKey| merged(Some(&first), &document(valid), key, source, now);
        assert_eq!(from(Source::Notary, i64::MAX, &key(&two, None)), None);
        assert_eq!(from(Source::Notary, now, &key(&one, None)), None);
        assert_eq!(from(Source::Server, now, &key(&two, None)).unwrap().public_key, two.public_key());
        let expired = from(Source::Notary, now, &key(&one, Some(7))).unwrap();
        assert_eq!((expired.valid_until_ts, expired.expired_ts), (7, Some(7)));
        let again = |source| merged(Some(&expired), &document(now), &key(&one, None), source, now);
        assert_eq!(again(Source::Notary), None);
        assert_eq!(again(Source::Server).unwrap().expired_ts, None);
    }
}
