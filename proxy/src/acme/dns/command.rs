//! Records made by a program.

use std::{path::PathBuf, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use super::{DnsError, TxtRecord};

/// How long the program may take.
const COMMAND_TIME: Duration = Duration::from_secs(120);

/// A program that makes DNS records.
#[derive(Clone, Debug)]
pub struct DnsCommand {
    /// The program. It is called as `program set|clear _acme-challenge.name value`.
    pub program: PathBuf,
    /// How long the record takes to reach all servers of the zone.
    pub wait: Duration,
}

impl DnsCommand {
    pub(super) async fn call(&self, act: &str, record: &TxtRecord) -> Result<(), DnsError> {
        let mut command = Command::new(&self.program);
        command.args([act, &record.name, &record.value]).kill_on_drop(true).stdin(Stdio::null());
        let failed = |reason: String| {
            let call = format!("{} {act} {}", self.program.display(), record.name);
            Err(DnsError::Command { call, reason })
        };
        match timeout(COMMAND_TIME, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                failed(format!("{}, {}", output.status, said.lines().last().unwrap_or_default()))
            }
            Ok(Err(error)) => failed(error.to_string()),
            Err(_) => failed(format!("not done after {} seconds", COMMAND_TIME.as_secs())),
        }
    }
}
