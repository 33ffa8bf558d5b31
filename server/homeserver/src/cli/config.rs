//! `myelin config check` and `myelin config generate`

use clap::Subcommand;
use myelin_process::config::{Config, Problem, Severity};
use ruma::OwnedServerName;

use super::{ConfigFiles, print};
use crate::{exit::Failure, front_door};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Look for mistakes in the configuration, without starting anything.
    Check(ConfigFiles),
    /// Write a commented configuration file to the standard output.
    Generate {
        /// The server's name, such as example.org.
        server_name: OwnedServerName,
    },
}

impl ConfigCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Check(files) => {
                let config = files.load()?;
                for warning in warnings(&config) {
                    print(&format!("{warning}\n"))?;
                }
                print(&format!("The configuration of {} is in order.\n", config.server_name))
            }
            Self::Generate { server_name } => print(&Config::generate(&server_name)),
        }
    }
}

/// What the server cannot start with.
pub(super) fn errors(config: &Config) -> impl Iterator<Item = Problem> {
    problems(config).filter(|problem| problem.severity == Severity::Error)
}

/// What the operator should know, and the server can start with.
pub(crate) fn warnings(config: &Config) -> impl Iterator<Item = Problem> {
    problems(config).filter(|problem| problem.severity == Severity::Warning)
}

fn problems(config: &Config) -> impl Iterator<Item = Problem> {
    config.check().into_iter().chain(front_door::problems(config))
}
