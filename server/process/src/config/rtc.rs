//! `[rtc]`

use url::Url;

use super::section::section;

section! {
    /// Calls of many people, by MatrixRTC.
    pub struct Rtc {
        /// The service that lets the users of this server into a LiveKit server. Clients learn of it here and at
        /// `/.well-known/matrix/client`.
        pub livekit_service_url: Option<Url> = None => "\"https://livekit.example.org/\"",
    }
}
