//! `myelin media verify`, `purge`, `delete`, `quarantine`, `release` and `block`
//!
//! They work on the database and the folder, whether servers run on them or not.

use std::{fmt::Write as _, str::FromStr, sync::Arc, time::Duration};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use myelin_media::{Error, Media, Owner};
use myelin_process::config::Config;
use myelin_store::Store;
use ruma::{MxcUri, OwnedMxcUri, OwnedUserId, UserId};

use super::{ConfigFiles, print};
use crate::{
    exit::{Exit, Failure},
    parts,
};

#[derive(Debug, Subcommand)]
pub(crate) enum MediaCommand {
    /// Read every file, and say which are missing or damaged.
    Verify(ConfigFiles),
    /// Remove copies of other servers' files that nobody asked for lately. They can be fetched again.
    Purge(Purge),
    /// Remove a file, or all that a user has uploaded.
    Delete(Files),
    /// Withhold a file, or all that a user has uploaded, from everybody.
    Quarantine(Files),
    /// Give a file back that was withheld.
    Release(Files),
    /// Let nobody upload or fetch a content any more, and withhold the files that have it.
    Block(Block),
}

#[derive(Debug, Args)]
pub(crate) struct Purge {
    #[command(flatten)]
    files: ConfigFiles,
    /// How long nobody may have asked for them.
    #[arg(long, value_name = "DAYS")]
    unused_days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Files {
    #[command(flatten)]
    files: ConfigFiles,
    /// A file, `mxc://example.org/abc`, or a user of this server, `@alice:example.org`.
    what: What,
}

#[derive(Debug, Args)]
pub(crate) struct Block {
    #[command(flatten)]
    files: ConfigFiles,
    /// The SHA-256 hash of the content: 64 hexadecimal digits.
    sha256: Sha256,
}

/// What is to be removed, withheld or given back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    File(OwnedMxcUri),
    User(OwnedUserId),
}

impl FromStr for What {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('@') {
            return UserId::parse(text).map(Self::User).map_err(|error| error.to_string());
        }
        let uri = <&MxcUri>::from(text);
        uri.validate().map_err(|error| error.to_string())?;
        Ok(Self::File(uri.to_owned()))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sha256([u8; 32]);

impl FromStr for Sha256 {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a hash has 64 hexadecimal digits";
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        let mut bytes = [0; 32];
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[place * 2..place * 2 + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(Self(bytes))
    }
}

impl MediaCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Verify(files) => with_media(&files.load()?, async |media, _| verify(media).await),
            Self::Purge(Purge { files, unused_days }) => with_media(&files.load()?, async |media, _| {
                let unused = Duration::from_secs(u64::from(unused_days) * 24 * 60 * 60);
                let forgotten = media.forget_unused(unused).await.map_err(failure)?;
                // Contents that lost their last row an hour ago go at once, the others by a running server.
                media.sweep().await.map_err(failure)?;
                Ok(format!("{forgotten} copies are forgotten. Their contents go within about an hour.\n"))
            }),
            Self::Delete(Files { files, what }) => with_media(&files.load()?, async |media, store| {
                let count = media.delete(owner(&what, media, store).await?).await.map_err(failure)?;
                found(count, &what)?;
                Ok(format!("{count} files are removed. Their contents go within about an hour.\n"))
            }),
            Self::Quarantine(Files { files, what }) => with_media(&files.load()?, async |media, store| {
                let count = media.quarantine(owner(&what, media, store).await?).await.map_err(failure)?;
                found(count, &what)?;
                Ok(format!("{count} files are withheld.\n"))
            }),
            Self::Release(Files { files, what }) => with_media(&files.load()?, async |media, store| {
                let Owner::File(server_name, media_id) = owner(&what, media, store).await? else {
                    return Err(Failure::new(Exit::Usage, anyhow!("files are given back one by one")));
                };
                let is_there = media.release(server_name, media_id).await.map_err(failure)?;
                found(u64::from(is_there), &what)?;
                Ok("The file is given back.\n".to_owned())
            }),
            Self::Block(Block { files, sha256 }) => with_media(&files.load()?, async |media, _| {
                media.block(&sha256.0).await.map_err(failure)?;
                Ok("Nobody can upload or fetch this content any more.\n".to_owned())
            }),
        }
    }
}

async fn verify(media: &Media) -> Result<String, Failure> {
    let found = media.verify().await.map_err(failure)?;
    if found.missing.is_empty() && found.damaged.is_empty() {
        return Ok(format!("All {} contents are whole, {} bytes.\n", found.contents, found.bytes));
    }
    let mut text = format!("of {} contents some are not whole:", found.contents);
    for (state, hashes) in [("missing", &found.missing), ("damaged", &found.damaged)] {
        for hash in hashes {
            write!(text, "\n  {state} {hash}").expect("a String takes every write");
        }
    }
    Err(Failure::new(Exit::Io, anyhow!(text))
        .hint("Put them back from a backup. Copies of other servers' files are fetched again when they are missing."))
}

/// Whose files are meant.
async fn owner<'a>(what: &'a What, media: &Media, store: &Store) -> Result<Owner<'a>, Failure> {
    match what {
        What::File(uri) => {
            let (server_name, media_id) = uri.parts().map_err(|error| Failure::new(Exit::Usage, error))?;
            Ok(Owner::File(server_name, media_id))
        }
        What::User(user_id) if user_id.server_name() != media.server_name() => {
            Err(Failure::new(Exit::Usage, anyhow!("{user_id} is not a user of {}", media.server_name())))
        }
        What::User(user_id) => {
            let user_nid = store.user_nid(user_id).await.map_err(|error| failure(error.into()))?;
            Ok(Owner::User(user_nid))
        }
    }
}

fn found(count: u64, what: &What) -> Result<(), Failure> {
    match what {
        _ if count > 0 => Ok(()),
        What::File(uri) => Err(Failure::new(Exit::Usage, anyhow!("there is no file {uri}"))),
        What::User(user_id) => Err(Failure::new(Exit::Usage, anyhow!("there are no such files of {user_id}"))),
    }
}

fn failure(error: Error) -> Failure {
    let exit = if matches!(error, Error::Store(_)) { Exit::Unavailable } else { Exit::Io };
    Failure::new(exit, error)
}

/// Does something with the files, and tells of it.
fn with_media(
    config: &Config,
    work: impl AsyncFnOnce(&Arc<Media>, &Store) -> Result<String, Failure>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::System, error))?;
    let told = runtime.block_on(async {
        let store = parts::open_store(config).await?;
        let result = match Media::open(Arc::clone(&store), parts::media_options(config)).await {
            Ok(media) => Box::pin(work(&media, &store)).await,
            Err(error) => Err(failure(error)),
        };
        store.close().await;
        result
    });
    print(&told?)
}

#[cfg(test)]
mod tests {
    use super::{Exit, MediaCommand, Purge, Sha256, What};
    use crate::cli::ConfigFiles;

    /// Files, users and hashes are told apart, and from everything else.
    #[test]
    fn arguments_are_read() {
        assert!(matches!("mxc://example.org/abc".parse(), Ok(What::File(_))));
        assert!(matches!("@alice:example.org".parse(), Ok(What::User(_))));
        for wrong in ["alice", "mxc://example.org", "mxc://example.org/a/b", "https://example.org/abc", "@alice", ""] {
            assert!(wrong.parse::<What>().is_err(), "{wrong}");
        }
        let hash = "00ff".repeat(16);
        assert_eq!(hash.parse::<Sha256>().unwrap().0[..3], [0, 255, 0]);
        for wrong in ["", "00", &"zz".repeat(32), &"é".repeat(32), &"0".repeat(65)] {
            assert!(wrong.parse::<Sha256>().is_err(), "{wrong}");
        }
    }

    /// Every command works on an empty server, or says what is not there.
    #[test]
    fn commands_work_on_an_empty_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("myelin.toml");
        let data = folder.path().join("data");
        std::fs::write(&path, format!("server_name = 'a.example'\ndata_dir = '{}'", data.display())).unwrap();
        let files = || ConfigFiles { paths: vec![path.clone()] };
        let what = |what: &str| super::Files { files: files(), what: what.parse().unwrap() };
        MediaCommand::Verify(files()).run().unwrap();
        MediaCommand::Purge(Purge { files: files(), unused_days: 1 }).run().unwrap();
        MediaCommand::Block(super::Block { files: files(), sha256: Sha256([1; 32]) }).run().unwrap();
        for (command, text) in [
            (MediaCommand::Delete(what("mxc://a.example/x")), "no file"),
            (MediaCommand::Release(what("mxc://b.example/x")), "no file"),
            (MediaCommand::Quarantine(what("@alice:a.example")), "no such files"),
            (MediaCommand::Quarantine(what("@alice:b.example")), "not a user"),
            (MediaCommand::Release(what("@alice:a.example")), "one by one"),
        ] {
            let failure = command.run().unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.to_string().contains(text), "{failure}");
        }
    }
}
