//! Canonical JSON of what other servers signed.
//!
//! A request is signed over its parsed body, and the body of a transaction holds events that others have made: some have
//! numbers that canonical JSON does not know (room versions 1 to 5 allow them). Such an event has to fail alone, not
//! the transaction and with it everything that its sender has for us. So numbers are taken as they are written, which is
//! how their sender signed them; whether an event may have them is decided where the event is checked.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize as _;

/// Deeper JSON is refused: no server signs it, since their parsers have bounds like this one.
const DEPTH_MAX: usize = 512;

/// The text is no JSON, or too deep.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not JSON that can be signed")]
pub(crate) struct Unreadable;

/// Writes a JSON text in its canonical form: keys sorted, no space, the shortest escapes.
pub(crate) fn canonical(json: &str, to: &mut Vec<u8>) -> Result<(), Unreadable> {
    let mut scanner = Scanner { rest: json };
    let node = scanner.value(0)?;
    scanner.skip_space();
    if !scanner.rest.is_empty() {
        return Err(Unreadable);
    }
    node.write(to)
}

enum Node<'a> {
    /// A number, `true`, `false` or `null`, as it is written.
    Literal(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    Object(BTreeMap<Cow<'a, str>, Node<'a>>),
}

impl Node<'_> {
    fn write(&self, to: &mut Vec<u8>) -> Result<(), Unreadable> {
        match self {
            Self::Literal(text) => to.extend_from_slice(text.as_bytes()),
            Self::String(text) => write_string(text, to)?,
            Self::Array(nodes) => {
                to.push(b'[');
                for (place, node) in nodes.iter().enumerate() {
                    if place > 0 {
                        to.push(b',');
                    }
                    node.write(to)?;
                }
                to.push(b']');
            }
            // Keys are sorted "lexicographically by unicode codepoint", which is the order of their UTF-8.
            Self::Object(fields) => {
                to.push(b'{');
                for (place, (key, node)) in fields.iter().enumerate() {
                    if place > 0 {
                        to.push(b',');
                    }
                    write_string(key, to)?;
                    to.push(b':');
                    node.write(to)?;
                }
                to.push(b'}');
            }
        }
        Ok(())
    }
}

fn write_string(text: &str, to: &mut Vec<u8>) -> Result<(), Unreadable> {
    text.serialize(&mut serde_json::Serializer::new(to)).map_err(|_| Unreadable)
}

struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    fn value(&mut self, depth: usize) -> Result<Node<'a>, Unreadable> {
        if depth > DEPTH_MAX {
            return Err(Unreadable);
        }
        self.skip_space();
        match self.rest.bytes().next().ok_or(Unreadable)? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string().map(Node::String),
            _ => self.literal(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Node<'a>, Unreadable> {
        let mut fields = BTreeMap::new();
        self.advance(1);
        if self.closes(b'}') {
            return Ok(Node::Object(fields));
        }
        loop {
            self.skip_space();
            let key = self.string()?;
            self.skip_space();
            self.expect(b':')?;
            // Of two fields with one name the last counts, as it does for those who sign.
            fields.insert(key, self.value(depth + 1)?);
            if self.closes(b'}') {
                return Ok(Node::Object(fields));
            }
            self.expect(b',')?;
        }
    }

    fn array(&mut self, depth: usize) -> Result<Node<'a>, Unreadable> {
        let mut nodes = Vec::new();
        self.advance(1);
        if self.closes(b']') {
            return Ok(Node::Array(nodes));
        }
        loop {
            nodes.push(self.value(depth + 1)?);
            if self.closes(b']') {
                return Ok(Node::Array(nodes));
            }
            self.expect(b',')?;
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, Unreadable> {
        let bytes = self.rest.as_bytes();
        if bytes.first() != Some(&b'"') {
            return Err(Unreadable);
        }
        let mut at = 1;
        let mut is_plain = true;
        loop {
            match bytes.get(at).ok_or(Unreadable)? {
                b'"' => break,
                b'\\' => {
                    is_plain = false;
                    at += 2;
                }
                _ => at += 1,
            }
        }
        let quoted = self.rest.get(..=at).ok_or(Unreadable)?;
        self.advance(at + 1);
        // Without escapes, what remains to be refused are bare control characters.
        if is_plain && !quoted.bytes().any(|byte| byte < b' ') {
            return Ok(Cow::Borrowed(&quoted[1..at]));
        }
        serde_json::from_str(quoted).map(Cow::Owned).map_err(|_| Unreadable)
    }

    fn literal(&mut self) -> Result<Node<'a>, Unreadable> {
        let end = self.rest.find([',', ']', '}', ' ', '\t', '\r', '\n']).unwrap_or(self.rest.len());
        let text = &self.rest[..end];
        let is_known = matches!(text, "true" | "false" | "null");
        // JSON's numbers of whatever size; a value of another kind would have begun otherwise.
        if !is_known && (text.len() > 1024 || serde_json::from_str::<serde::de::IgnoredAny>(text).is_err()) {
            return Err(Unreadable);
        }
        self.advance(end);
        Ok(Node::Literal(text))
    }

    fn closes(&mut self, with: u8) -> bool {
        self.skip_space();
        self.expect(with).is_ok()
    }

    fn expect(&mut self, byte: u8) -> Result<(), Unreadable> {
        if self.rest.as_bytes().first() != Some(&byte) {
            return Err(Unreadable);
        }
        self.advance(1);
        Ok(())
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use ruma::CanonicalJsonValue;

    use super::*;

    fn written(json: &str) -> Result<String, Unreadable> {
        let mut bytes = Vec::new();
        canonical(json, &mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    /// What canonical JSON knows is written as the library writes it.
    #[test]
    fn agrees_with_the_library() {
        for json in [
            r#"{}"#,
            r#" { "b" : 1 , "a" : [ ] , "c":{"é":"\u00e9","日":"本","\n":"\/\\\"\b\f\u001f\u007f"} } "#,
            r#"{"one":1,"two":[1,-2,true,false,null,"x",{"b":{},"a":[[[]]]}],"":""}"#,
            r#"{"a":"\ud83d\ude00","z":9007199254740991,"Z":-9007199254740991}"#,
            "[1,\t2\r\n]",
        ] {
            let expected: CanonicalJsonValue = serde_json::from_str(json).unwrap();
            assert_eq!(written(json).unwrap(), expected.to_string(), "{json}");
        }
    }

    /// Numbers that it does not know stay as they are written.
    #[test]
    fn numbers_are_left_alone() {
        let json = r#"{"a":1.5,"b":[1e+16,-0.0,123456789012345678901234567890]}"#;
        assert_eq!(written(json).unwrap(), json);
    }

    /// What is no JSON is refused, and so is what would exhaust the stack.
    #[test]
    fn bad_json_is_refused() {
        for json in [
            "",
            "{",
            "[",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "tru",
            "01",
            "1.",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"a\nb\"",
            "1 2",
            "[1 2]",
            "{\"a\":1 \"b\":2}",
            "--1",
            "NaN",
            "é",
        ] {
            assert_eq!(written(json), Err(Unreadable), "{json}");
        }
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(written(&nested(DEPTH_MAX)).is_ok());
        assert!(written(&nested(100_000)).is_err());
    }
}
