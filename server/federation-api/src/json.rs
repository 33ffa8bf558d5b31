//! Answers that are put together from JSON texts.

use bytes::Bytes;
use myelin_http::RawJson;
use serde::Serialize;

/// A JSON object under construction.
pub(crate) struct Object(String);

impl Object {
    /// An object of about so many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut json = String::with_capacity(bytes + 64);
        json.push('{');
        Self(json)
    }

    fn name(&mut self, name: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&serde_json::Value::from(name).to_string());
        self.0.push(':');
    }

    /// A field whose value is JSON already.
    pub(crate) fn json(mut self, name: &str, json: &str) -> Self {
        self.name(name);
        self.0.push_str(json);
        self
    }

    /// A field whose value has yet to be written.
    pub(crate) fn value(self, name: &str, value: &impl Serialize) -> Result<Self, serde_json::Error> {
        let json = serde_json::to_string(value)?;
        Ok(self.json(name, &json))
    }

    /// A field that holds a list of values that are JSON already.
    pub(crate) fn list<'a>(mut self, name: &str, list: impl IntoIterator<Item = &'a str>) -> Self {
        self.name(name);
        self.0.push('[');
        for (place, json) in list.into_iter().enumerate() {
            if place > 0 {
                self.0.push(',');
            }
            self.0.push_str(json);
        }
        self.0.push(']');
        self
    }

    /// The object's text.
    pub(crate) fn text(mut self) -> String {
        self.0.push('}');
        self.0
    }

    /// The object as an answer.
    pub(crate) fn finish(self) -> RawJson {
        RawJson(Bytes::from(self.text()))
    }
}

/// The form of old endpoints, which "returns a HTTP-style status code" within the answer.
pub(crate) fn with_status(object: &str) -> RawJson {
    RawJson(Bytes::from(format!("[200,{object}]")))
}
