//! `[well_known]`

use ruma::{OwnedServerName, OwnedUserId};
use serde::{Deserialize, Serialize};
use url::Url;

use super::section::section;

section! {
    /// What is told at `/.well-known/matrix` of listeners with the resource `well_known`. They have to be reached at
    /// `https://` and the server name. Clients are told `public_baseurl`.
    pub struct WellKnown {
        /// Where other servers connect to: a host with an optional port. Unset: they use port 8448 of the server name.
        pub server: Option<OwnedServerName> = None => "\"matrix.example.org:443\"",
        /// More that clients are told, beside `m.homeserver`.
        pub client: toml::Table = toml::Table::new(),
        /// Who helps, such as `{ role = "m.role.admin", matrix_id = "@admin:example.org", email_address =
        /// "admin@example.org" }`. Roles are `m.role.admin`, `m.role.security`, or one of one's own.
        pub contacts: Vec<Contact> = Vec::new(),
        /// A page with help.
        pub support_page: Option<Url> = None => "\"https://example.org/support\"",
    }
}

/// Somebody who helps; reached at one address at least.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Contact {
    /// What for.
    pub role: String,
    /// A Matrix user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matrix_id: Option<OwnedUserId>,
    /// An address of e-mail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email_address: Option<String>,
}
