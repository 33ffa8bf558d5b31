//! `/.well-known/matrix`: where clients, servers and people in need of help find what belongs to a name.
//!
//! - <https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixclient>
//! - <https://spec.matrix.org/v1.19/server-server-api/#getwell-knownmatrixserver>
//! - <https://spec.matrix.org/v1.19/client-server-api/#getwell-knownmatrixsupport>

use http::{
    HeaderValue, Response,
    header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONTENT_TYPE},
};
use serde_json::{Map, Value, json};

/// How long the answers may be kept.
const CACHE: &str = "public, max-age=3600";

/// What is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WellKnown {
    /// The base URL for clients.
    pub client: Option<String>,
    /// More for clients: properties of the answer beside `m.homeserver`.
    pub client_more: Map<String, Value>,
    /// Where other servers connect to: a host with an optional port.
    pub server: Option<String>,
    /// Who helps.
    pub contacts: Vec<Contact>,
    /// A page about it.
    pub support_page: Option<String>,
}

/// Somebody who helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// `m.role.admin`, `m.role.security`, or one of one's own.
    pub role: String,
    /// A Matrix user.
    pub matrix_id: Option<String>,
    /// An address of e-mail.
    pub email_address: Option<String>,
}

impl WellKnown {
    /// The answers: a path and its JSON each. What nothing is known about has none.
    pub fn documents(&self) -> Vec<(&'static str, String)> {
        let mut documents = Vec::new();
        if let Some(client) = &self.client {
            let mut document = self.client_more.clone();
            document.insert("m.homeserver".to_owned(), json!({ "base_url": client }));
            documents.push(("/.well-known/matrix/client", Value::Object(document).to_string()));
        }
        if let Some(server) = &self.server {
            documents.push(("/.well-known/matrix/server", json!({ "m.server": server }).to_string()));
        }
        if !self.contacts.is_empty() || self.support_page.is_some() {
            documents.push(("/.well-known/matrix/support", self.support().to_string()));
        }
        documents
    }

    fn support(&self) -> Value {
        let contact = |contact: &Contact| {
            let mut fields = Map::from_iter([("role".to_owned(), json!(contact.role))]);
            fields.extend(contact.matrix_id.iter().map(|id| ("matrix_id".to_owned(), json!(id))));
            fields.extend(contact.email_address.iter().map(|address| ("email_address".to_owned(), json!(address))));
            Value::Object(fields)
        };
        let mut support = Map::new();
        if !self.contacts.is_empty() {
            support.insert("contacts".to_owned(), self.contacts.iter().map(contact).collect());
        }
        support.extend(self.support_page.iter().map(|page| ("support_page".to_owned(), json!(page))));
        Value::Object(support)
    }
}

/// One of the [`WellKnown::documents`] as an answer that web pages of other origins may read.
pub fn response<B: From<String>>(document: &str) -> Response<B> {
    let mut response = Response::new(B::from(document.to_owned()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(CACHE));
    response
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Contact, WellKnown};

    fn read(well_known: &WellKnown) -> Vec<(&'static str, Value)> {
        let documents = well_known.documents();
        documents.into_iter().map(|(path, text)| (path, serde_json::from_str(&text).unwrap())).collect()
    }

    /// Each document has what the specification requires, and is missing if there is nothing to tell.
    #[test]
    fn documents() {
        assert!(WellKnown::default().documents().is_empty());
        let mut well_known = WellKnown {
            client: Some("https://matrix.example.org".to_owned()),
            server: Some("matrix.example.org:443".to_owned()),
            support_page: Some("https://example.org/help".to_owned()),
            ..WellKnown::default()
        };
        well_known.client_more.insert("m.homeserver".to_owned(), json!("not this"));
        well_known.client_more.insert("org.example.thing".to_owned(), json!({ "a": 1 }));
        well_known.contacts.push(Contact {
            role: "m.role.admin".to_owned(),
            matrix_id: Some("@admin:example.org".to_owned()),
            email_address: None,
        });
        let client = json!({
            "m.homeserver": { "base_url": "https://matrix.example.org" }, "org.example.thing": { "a": 1 }
        });
        let support = json!({
            "contacts": [{ "role": "m.role.admin", "matrix_id": "@admin:example.org" }],
            "support_page": "https://example.org/help"
        });
        assert_eq!(
            read(&well_known),
            [
                ("/.well-known/matrix/client", client),
                ("/.well-known/matrix/server", json!({ "m.server": "matrix.example.org:443" })),
                ("/.well-known/matrix/support", support),
            ]
        );
    }
}
