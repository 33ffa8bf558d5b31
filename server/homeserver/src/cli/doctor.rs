//! `myelin doctor [SERVER_NAME]`
//!
//! Looks at a server as others see it, by the network alone; it needs no database and no running server.

use std::fmt::Write as _;

use anyhow::{Context as _, anyhow};
use clap::Args;
use myelin_federation::{
    ClientOptions,
    doctor::{Report, Verdict, examine},
};
use ruma::OwnedServerName;

use super::{ConfigFiles, print};
use crate::exit::{Exit, Failure};

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    files: ConfigFiles,
    /// The server to look at; without it, this one, by `server_name` of the configuration.
    #[arg(value_name = "SERVER_NAME")]
    server: Option<OwnedServerName>,
    /// Print the report as JSON, for programs.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = self.files.load()?;
        let server = self.server.unwrap_or_else(|| config.server_name.clone());
        let options = ClientOptions::from_config(config.server_name, &config.federation);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::System, anyhow::Error::new(error).context("start a runtime")))?;
        let report = runtime
            .block_on(examine(&options, &server))
            .map_err(|error| Failure::new(Exit::Unavailable, error).hint("See the section [federation]."))?;
        print(&if self.json { json(&report)? } else { text(&report) })?;
        verdict(&report)
    }
}

/// The end of the program: an error if other servers cannot talk with this one.
fn verdict(report: &Report) -> Result<(), Failure> {
    let bad = report.checks.iter().filter(|check| check.verdict == Verdict::Bad).count();
    match bad {
        0 => Ok(()),
        1 => Err(Failure::new(Exit::Unavailable, anyhow!("{}: one check is bad", report.server))),
        _ => Err(Failure::new(Exit::Unavailable, anyhow!("{}: {bad} checks are bad", report.server))),
    }
}

fn json(report: &Report) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(report).context("write the report");
    text.map(|text| text + "\n").map_err(|error| Failure::new(Exit::Software, error))
}

fn text(report: &Report) -> String {
    let mut text = format!("{}\n", report.server);
    for check in &report.checks {
        let mark = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warn",
            Verdict::Bad => "BAD",
            Verdict::Skipped => "-",
        };
        let mut line = |mark: &str, name: &str, found: &str| {
            // What a server says may hold what a terminal would obey.
            let found = found.replace(char::is_control, " ");
            writeln!(text, "  {mark:<5} {name:<11} {found}").expect("a String takes every write");
        };
        line(mark, check.name, &check.found);
        if let Some(advice) = &check.advice {
            line("", "", &format!("-> {advice}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use myelin_federation::doctor::{Check, Report, Verdict};
    use ruma::owned_server_name;

    use super::Exit;

    fn report(verdicts: &[Verdict]) -> Report {
        let check = |verdict: &Verdict| Check {
            name: "tls",
            verdict: *verdict,
            found: "what \u{1b}[31m was found".to_owned(),
            advice: (*verdict == Verdict::Bad).then(|| "Do this.".to_owned()),
        };
        Report { server: owned_server_name!("a.example"), checks: verdicts.iter().map(check).collect() }
    }

    /// Only what is bad ends the program with an error.
    #[test]
    fn bad_is_bad() {
        super::verdict(&report(&[Verdict::Ok, Verdict::Warning, Verdict::Skipped])).unwrap();
        let failure = super::verdict(&report(&[Verdict::Ok, Verdict::Bad, Verdict::Bad])).unwrap_err();
        assert_eq!(failure.exit, Exit::Unavailable);
        assert!(failure.to_string().contains("2 checks"), "{failure}");
    }

    /// People see each verdict with what to do below it, and no terminal obeys a server.
    #[test]
    fn reports_are_readable() {
        let text = super::text(&report(&[Verdict::Ok, Verdict::Bad]));
        assert!(text.starts_with("a.example\n  ok    tls"), "{text}");
        assert!(text.contains("  BAD   tls") && text.contains("-> Do this."), "{text}");
        assert!(!text.contains('\u{1b}'));
        let json: serde_json::Value = serde_json::from_str(&super::json(&report(&[Verdict::Bad])).unwrap()).unwrap();
        assert_eq!((&json["checks"][0]["verdict"], &json["server"]), (&"bad".into(), &"a.example".into()));
    }
}
