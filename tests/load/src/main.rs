//! `myelin-load`: loads a Matrix homeserver through the client-server API, and as other servers do, and measures what it
//! costs.
//!
//! It knows nothing of any one server, so that several can be measured alike. See the README beside it.

mod accounts;
mod client;
mod edge;
mod follow;
mod measure;
mod options;
mod peers;
mod processes;
mod report;
mod run;
mod scenarios;
mod statistics;
mod table;

use std::{fs, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::Parser as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    options::{Command, CommandLine, Scenario},
    report::Report,
    run::Run,
};

// One thread keeps our own use of the CPU low and leaves the other cores to the server.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let CommandLine { command, options } = CommandLine::parse();
    let scenarios = match command {
        Command::Table { files } => {
            print!("{}", table::markdown(&read_reports(&files)?));
            return Ok(ExitCode::SUCCESS);
        }
        Command::Authority { folder } => {
            peers::authority::make(&folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Edge(options) => {
            raise_file_limit();
            print!("{}", edge::run(&options).await?);
            return Ok(ExitCode::SUCCESS);
        }
        Command::EdgeUpstream { address } => {
            raise_file_limit();
            edge::serve_upstream(address).await?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Federation => Scenario::FEDERATION.to_vec(),
        Command::Scenario(scenario) => vec![scenario],
        Command::All { skip } => Scenario::ALL.into_iter().filter(|scenario| !skip.contains(scenario)).collect(),
    };
    raise_file_limit();
    let json = options.json.clone();
    let (mut run, mut report) = Run::new(options)?;
    let ran = run.run(&scenarios, &mut report).await;
    if let Some(path) = json {
        write_report(&path, &report)?;
    }
    ran?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A connection for each long poll needs more files than a shell allows by default.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        eprintln!("cannot raise the limit of open files: {error}");
    }
}

fn read_reports(files: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Report>> {
    let read = |path: &Path| -> anyhow::Result<Report> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    };
    files.iter().map(|path| read(path.as_ref())).collect()
}

fn write_report(path: &Path, report: &Report) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(report)?;
    text.push(b'\n');
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
