//! `myelin user create` and `myelin user set-password`

use clap::{Args, Subcommand};

use super::ConfigFiles;

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Make an account.
    Create(Create),
    /// Give an account a new password, and log its devices out.
    SetPassword(SetPassword),
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
