//! `myelin user create`, `myelin user set-password`, `myelin user registration-token`
//!
//! They work on the database, whether a server runs on it or not.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use myelin_accounts::{Accounts, Error, NewUser};
use myelin_process::config::Config;
use ruma::{OwnedUserId, UserId};

use super::{ConfigFiles, print};
use crate::{
    exit::{Exit, Failure},
    parts,
};

/// The longest line that is taken for a password, in bytes; the limit on passwords is below it.
const PASSWORD_LINE_BYTES_MAX: u64 = 4096;

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make an account.
    Create(Create),
    /// Give an account a new password, and log its devices out.
    SetPassword(SetPassword),
    /// Print the token that people need to register.
    RegistrationToken(ConfigFiles),
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    files: ConfigFiles,
    /// The account's name: `alice`, or `@alice:example.org`.
    name: String,
    /// Let the account use the operators' API.
    #[arg(long)]
    admin: bool,
    /// Take the password from the standard input instead of asking for it.
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetPassword {
    #[command(flatten)]
    files: ConfigFiles,
    /// The account's name: `alice`, or `@alice:example.org`.
    name: String,
    /// Take the password from the standard input instead of asking for it.
    #[arg(long)]
    password_stdin: bool,
}

impl UserCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Create(create) => create.run(),
            Self::SetPassword(set_password) => set_password.run(),
            Self::RegistrationToken(files) => {
                let config = files.load()?;
                with_accounts(&config, async |accounts| print(&format!("{}\n", accounts.registration_token())))
            }
        }
    }
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let config = self.files.load()?;
        let user_id = own_user_id(&config, &self.name)?;
        let password = password(self.password_stdin)?;
        with_accounts(&config, async |accounts| {
            let new = NewUser {
                username: user_id.localpart(),
                password: &password,
                is_admin: self.admin,
                display_name: None,
            };
            let user_id = accounts.create_user(new).await.map_err(|error| refusal(&user_id, error))?;
            print(&format!("{user_id} can log in now.\n"))
        })
    }
}

impl SetPassword {
    fn run(self) -> Result<(), Failure> {
        let config = self.files.load()?;
        let user_id = own_user_id(&config, &self.name)?;
        let password = password(self.password_stdin)?;
        with_accounts(&config, async |accounts| {
            accounts.reset_password(&user_id, &password).await.map_err(|error| match error {
                Error::WrongPassword => Failure::new(Exit::Usage, anyhow!("there is no account {user_id}")),
                error => refusal(&user_id, error),
            })?;
            print(&format!(
                "{user_id} has the new password. Its devices are logged out, by a running server within some seconds.\n"
            ))
        })
    }
}

/// Does something with the accounts and writes all down.
fn with_accounts(config: &Config, work: impl AsyncFnOnce(&Accounts) -> Result<(), Failure>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::System, anyhow::Error::new(error).context("start a runtime")))?;
    runtime.block_on(async {
        let store = parts::open_store(config).await?;
        let accounts = parts::open_accounts(config, Arc::clone(&store)).await?;
        let result = work(&accounts).await;
        accounts.close().await;
        store.close().await;
        result
    })
}

/// The account that is meant by its name or its whole identifier; of this server in any case.
fn own_user_id(config: &Config, name: &str) -> Result<OwnedUserId, Failure> {
    let usage = |error: anyhow::Error| Failure::new(Exit::Usage, error);
    if name.is_empty() {
        return Err(usage(anyhow!("the account's name is empty")));
    }
    let user_id = UserId::parse_with_server_name(name, &config.server_name)
        .map_err(|error| usage(anyhow!("{name:?} is no account's name: {error}")))?;
    if *user_id.server_name() != *config.server_name {
        return Err(usage(anyhow!("{user_id} is not an account of {}", config.server_name)));
    }
    Ok(user_id)
}

fn refusal(user_id: &UserId, error: Error) -> Failure {
    let exit = match &error {
        Error::Store(_) => Exit::Unavailable,
        Error::Hash(_) | Error::HashParameters(_) | Error::HashThread(_) => Exit::Software,
        _ => Exit::Usage,
    };
    Failure::new(exit, anyhow::Error::new(error).context(format!("the account {user_id}")))
}

/// The password: a line of the standard input, or typed twice without being shown.
fn password(from_stdin: bool) -> Result<String, Failure> {
    let io = |error: anyhow::Error| Failure::new(Exit::Io, error);
    if from_stdin {
        let mut line = String::new();
        io::Read::take(io::stdin().lock(), PASSWORD_LINE_BYTES_MAX)
            .read_line(&mut line)
            .context("read the password")
            .map_err(io)?;
        return Ok(line.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !io::stdin().is_terminal() {
        let error = anyhow!("the password cannot be asked for: this is no terminal");
        return Err(Failure::new(Exit::Usage, error).hint("Pass --password-stdin and write it to the standard input."));
    }
    let ask = |prompt| rpassword::prompt_password(prompt).context("read the password").map_err(io);
    let first = ask("Password: ")?;
    if ask("The same again: ")? != first {
        return Err(Failure::new(Exit::Usage, anyhow!("the two passwords differ")));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use myelin_process::config::Config;

    use super::own_user_id;

    /// A bare name and a whole identifier mean the same account; another server's is refused.
    #[test]
    fn names_are_of_this_server() {
        let config = Config::embedded_default();
        assert_eq!(own_user_id(&config, "alice").unwrap(), "@alice:localhost");
        assert_eq!(own_user_id(&config, "@alice:localhost").unwrap(), "@alice:localhost");
        assert!(own_user_id(&config, "@alice:example.org").is_err());
        assert!(own_user_id(&config, "").is_err());
    }
}
