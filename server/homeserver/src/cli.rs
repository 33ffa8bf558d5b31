//! The command line. One file a subcommand.

mod cert;
pub(crate) mod config;
mod demo;
mod doctor;
mod media;
mod serve;
mod signing_key;
mod user;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use myelin_process::config::Config;

use crate::exit::{Exit, Failure};

/// The Matrix homeserver Myelin.
///
/// Without a subcommand it serves. Without a configuration file it serves for trying it out: as `localhost`, with an
/// embedded database in ./myelin-data, for clients on this machine.
#[derive(Debug, Parser)]
#[command(name = "myelin", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until it is told to stop.
    Serve(serve::Serve),
    /// Look after the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Look after the certificate.
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Look after accounts.
    #[command(subcommand)]
    User(user::UserCommand),
    /// Look after the key by which this server signs.
    #[command(subcommand)]
    SigningKey(signing_key::SigningKeyCommand),
    /// Look after files.
    #[command(subcommand)]
    Media(media::MediaCommand),
    /// Look at a server as other servers see it, and say what is wrong.
    Doctor(doctor::Doctor),
    /// Run three homeservers on this machine that share a room, to try federation out.
    Demo(demo::Demo),
    /// Print the version.
    Version,
}

/// Where the configuration is.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ConfigFiles {
    /// A configuration file; of several, later ones win.
    #[arg(long = "config", short = 'c', value_name = "FILE", env = "MYELIN_CONFIG")]
    pub(crate) paths: Vec<PathBuf>,
}

impl ConfigFiles {
    /// Reads the configuration and refuses one with errors; warnings are for the caller to show.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        let config = Config::load(&self.paths).map_err(|error| Failure::new(Exit::Config, error).hint(HINT))?;
        let errors: Vec<_> = config::errors(&config).map(|problem| format!("\n  {problem}")).collect();
        if errors.is_empty() {
            return Ok(config);
        }
        let error = anyhow::anyhow!("the configuration cannot be used{}", errors.concat());
        Err(Failure::new(Exit::Config, error).hint(HINT))
    }
}

/// Said below every refused configuration.
const HINT: &str = "Correct this, and try `myelin config check`; `myelin config generate NAME` shows every setting.";

/// Runs what the command line asks for.
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked_for) => {
            // Help and the version are answers, not mistakes. Nothing can be done if they cannot be printed.
            let _ = asked_for.print();
            return if asked_for.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        None => cli.serve.run(),
        Some(Command::Serve(serve)) => serve.run(),
        Some(Command::Config(command)) => command.run(),
        Some(Command::Cert(command)) => command.run(),
        Some(Command::User(command)) => command.run(),
        Some(Command::SigningKey(command)) => command.run(),
        Some(Command::Media(command)) => command.run(),
        Some(Command::Doctor(doctor)) => doctor.run(),
        Some(Command::Demo(demo)) => demo.run(),
        Some(Command::Version) => print(concat!("myelin ", env!("CARGO_PKG_VERSION"), "\n")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

/// Writes `text` to the standard output. A reader that went away, as `head` does, is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write as _};

    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new(Exit::Io, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Command, ConfigFiles, Exit};

    /// clap's own rules: no name is given twice, and so on.
    #[test]
    fn is_consistent() {
        Cli::command().debug_assert();
    }

    /// A bare `myelin` serves, with or without files; files may be given several times.
    #[test]
    fn serving_needs_no_subcommand() {
        let cli = Cli::try_parse_from(["myelin", "--config", "a.toml"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.files.paths, [Path::new("a.toml")]);
        let cli = Cli::try_parse_from(["myelin", "serve", "-c", "a.toml", "-c", "b.toml"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Serve(serve)) if serve.files.paths.len() == 2));
        assert!(Cli::try_parse_from(["myelin", "dance"]).is_err());
    }

    /// A configuration with errors is refused with the code for it, and every error is told.
    #[test]
    fn a_wrong_configuration_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("myelin.toml");
        std::fs::write(&path, "server_name = 'a.example'\nlisteners = []\n[cache]\nmemory = 1").unwrap();
        let failure = ConfigFiles { paths: vec![path.clone()] }.load().unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        let told = failure.to_string();
        assert!(told.contains("listeners:") && told.contains("cache.memory:"), "{told}");
        std::fs::write(&path, "servername = 'a.example'").unwrap();
        let failure = ConfigFiles { paths: vec![path] }.load().unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.to_string().contains("servername") && failure.to_string().contains("myelin.toml"), "{failure}");
    }
}
