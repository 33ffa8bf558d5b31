//! `[log]`

use serde::{Deserialize, Serialize};

use super::section::section;

section! {
    /// Logs, written to the standard error stream.
    pub struct Log {
        /// `text` for people, `json` for collectors (one object a line).
        pub format: LogFormat = LogFormat::Text,
        /// `error`, `warn`, `info`, `debug` or `trace`, or a list of `module=level`, such as
        /// `info,myelin_store=debug`. Read again on SIGHUP.
        pub level: String = "info".to_owned(),
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}
