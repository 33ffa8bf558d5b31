//! Tokens: places between the positions of the stream.
//!
//! `t5` stands after everything up to position 5 and before everything from 6 on. `s5_1700` does so too, and says
//! besides which typing notifications and presence a client has been told of. `s5_1700_3` says that messages to the
//! device were told up to position 3 only: there were too many for one answer. `p5_…` comes from sliding sync, and is
//! as good as `t5` where history is asked for.

use std::{fmt, str::FromStr};

/// A text that is none of our tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this server")]
pub struct InvalidToken;

/// A place in the stream: what `next_batch`, `since`, `prev_batch`, `from` and `to` hold.
///
/// Backward from a token come the events with `pos <= token.pos`, forward those with `pos > token.pos`. History that
/// was fetched later has negative positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The last position before the place.
    pub pos: i64,
    /// The last of what is not kept (typing, presence) that was told; only in the tokens of `/sync`.
    pub serial: Option<u64>,
    /// The last position up to which messages to the device were told, where that is before [`Token::pos`].
    pub to_device: Option<i64>,
}

impl Token {
    /// A place in a room's timeline.
    #[must_use]
    pub fn timeline(pos: i64) -> Self {
        Self { pos, serial: None, to_device: None }
    }

    /// The end of an answer of `/sync`.
    #[must_use]
    pub fn sync(pos: i64, serial: u64) -> Self {
        Self { pos, serial: Some(serial), to_device: None }
    }

    /// The same with messages to the device told up to a position only.
    #[must_use]
    pub fn with_to_device(self, pos: Option<i64>) -> Self {
        Self { to_device: pos.filter(|pos| *pos < self.pos), ..self }
    }

    /// The last position up to which messages to the device were told.
    #[must_use]
    pub fn to_device_pos(&self) -> i64 {
        self.to_device.unwrap_or(self.pos)
    }

    /// The place right before an event.
    #[must_use]
    pub fn before(pos: i64) -> Self {
        Self::timeline(pos.saturating_sub(1))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.serial, self.to_device) {
            (Some(serial), Some(to_device)) => write!(f, "s{}_{serial}_{to_device}", self.pos),
            (Some(serial), None) => write!(f, "s{}_{serial}", self.pos),
            (None, _) => write!(f, "t{}", self.pos),
        }
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if let Some(pos) = text.strip_prefix('t') {
            return Ok(Self::timeline(number(pos)?));
        }
        // "A pos token can be used in /messages and /relations APIs, in the same way as a next_batch".
        if let Some(pos) = text.strip_prefix('p') {
            return Ok(Self::timeline(number(pos.split('_').next().unwrap_or_default())?));
        }
        let (pos, serial) = text.strip_prefix('s').and_then(|rest| rest.split_once('_')).ok_or(InvalidToken)?;
        let (serial, to_device) = match serial.split_once('_') {
            Some((serial, to_device)) => (serial, Some(number(to_device)?)),
            None => (serial, None),
        };
        let token = Self::sync(number(pos)?, number(serial)?);
        match to_device {
            Some(to_device) if !(0..token.pos).contains(&to_device) => Err(InvalidToken),
            to_device => Ok(token.with_to_device(to_device)),
        }
    }
}

/// A number as we write it: no plus sign, no zeros in front.
fn number<T: FromStr + fmt::Display>(text: &str) -> Result<T, InvalidToken> {
    let number: T = text.parse().map_err(|_| InvalidToken)?;
    if number.to_string() == text { Ok(number) } else { Err(InvalidToken) }
}

#[cfg(test)]
mod tests {
    use super::{InvalidToken, Token};

    /// What is written can be read.
    #[test]
    fn round_trip() {
        let sync = Token::sync(12, 1_700_000_000_000);
        for token in [Token::timeline(0), Token::timeline(-7), Token::before(1), sync, sync.with_to_device(Some(7))] {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        assert_eq!(Token::before(8).to_string(), "t7");
    }

    /// Anything else is refused, however odd.
    #[test]
    fn refuses_foreign_tokens() {
        for text in [
            "",
            "s",
            "t",
            "s1",
            "s1_",
            "s_1",
            "t1_1",
            "s1_2_3",
            "s1_2_-1",
            "s5_2_",
            "s5_2_3_4",
            "s+1_2",
            "t01",
            "x5",
            "s1_-2",
            "t99999999999999999999",
            "ß1",
        ] {
            assert_eq!(text.parse::<Token>(), Err(InvalidToken), "{text}");
        }
    }
}
