//! Tokens: random, told once, kept as hashes.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{Rng as _, distr::Alphanumeric, seq::IndexedRandom as _};
use sha2::{Digest as _, Sha256};

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// The prefix of access tokens, by which tools that look for leaked secrets know them.
const ACCESS: &str = "myl_";
/// The prefix of refresh tokens.
const REFRESH: &str = "mylr_";
/// The prefix of login tokens.
const LOGIN: &str = "myll_";
/// The prefix of tokens that tell who a user is.
const OPENID: &str = "mylo_";
/// The prefix of names of places where devices meet.
const RENDEZVOUS: &str = "myld_";

pub(crate) type Hash = [u8; 32];

/// A token and what is kept of it.
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) hash: Hash,
}

impl Token {
    pub(crate) fn access() -> Self {
        Self::new(ACCESS)
    }

    pub(crate) fn refresh() -> Self {
        Self::new(REFRESH)
    }

    pub(crate) fn login() -> Self {
        Self::new(LOGIN)
    }

    pub(crate) fn openid() -> Self {
        Self::new(OPENID)
    }

    pub(crate) fn rendezvous() -> Self {
        Self::new(RENDEZVOUS)
    }

    fn new(prefix: &str) -> Self {
        let text = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; TOKEN_BYTES]>()));
        let hash = hash(&text);
        Self { text, hash }
    }
}

/// What is kept of a token. It has more entropy than anyone can guess, so one round without salt is enough.
pub(crate) fn hash(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

/// A random text of letters and digits.
pub(crate) fn readable(length: usize) -> String {
    rand::rng().sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

/// A random text of these characters.
pub(crate) fn of_characters(characters: &[u8], length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).filter_map(|_| characters.choose(&mut rng).copied().map(char::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Token, hash, of_characters, readable};

    /// Tokens differ, show what they are, and are known again by their hash.
    #[test]
    fn tokens_are_random_and_marked() {
        let (one, two) = (Token::access(), Token::access());
        assert_ne!(one.text, two.text);
        assert_eq!(hash(&one.text), one.hash);
        assert!(one.text.starts_with("myl_") && one.text.len() == 4 + 43);
        assert!(Token::refresh().text.starts_with("mylr_") && Token::login().text.starts_with("myll_"));
        assert_eq!((readable(24).len(), of_characters(b"AB", 10).len()), (24, 10));
    }
}
