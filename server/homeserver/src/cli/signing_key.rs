//! `myelin signing-key show`, `myelin signing-key rotate` and `myelin signing-key import`
//!
//! They work on the database, whether servers run on it or not. A running server goes on with the key that it started
//! with. So that several can be restarted one after the other, the old key counts for a while beside the new one, and
//! each of them publishes both meanwhile.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use myelin_process::config::Config;
use myelin_store::{SigningKey, Store};
use ruma::{
    serde::{Base64, base64::Standard},
    signatures::Ed25519KeyPair,
};

use super::{ConfigFiles, print};
use crate::{
    exit::{Exit, Failure},
    parts,
};

/// The largest file that is looked at for a key, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// The longest version of a key, in bytes.
const VERSION_BYTES_MAX: usize = 100;
/// Bytes of the secret that a key is made of.
const SEED_BYTES: usize = 32;
/// What stands before the secret in a PKCS#8 document of ed25519 (RFC 8410, section 7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[derive(Debug, Subcommand)]
pub(crate) enum SigningKeyCommand {
    /// Show the key by which this server signs, and those before it.
    Show(ConfigFiles),
    /// Make a new key. The old one is published as one that was used before.
    Rotate(Rotate),
    /// Take over the key of another homeserver that had this server's name.
    Import(Import),
}

#[derive(Debug, Args)]
pub(crate) struct Rotate {
    #[command(flatten)]
    files: ConfigFiles,
    #[command(flatten)]
    overlap: Overlap,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    #[command(flatten)]
    files: ConfigFiles,
    #[command(flatten)]
    overlap: Overlap,
    /// The file with the key: `ed25519 a_Bcde SECRET` in one line.
    file: PathBuf,
}

#[derive(Debug, Args)]
struct Overlap {
    /// How long the old key still counts, for servers that were not restarted yet. With 0, whoever has stolen it can do
    /// nothing more with it, nor can servers that still run.
    #[arg(long, value_name = "MINUTES", default_value_t = 60)]
    overlap_minutes: u32,
}

impl Overlap {
    fn time(&self) -> Duration {
        Duration::from_secs(60 * u64::from(self.overlap_minutes))
    }
}

impl SigningKeyCommand {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Show(files) => with_store(&files.load()?, async |store| show(store, SystemTime::now()).await),
            Self::Rotate(Rotate { files, overlap }) => with_store(&files.load()?, async |store| {
                let now_ms = ms(SystemTime::now());
                replace(store, SigningKey::generate(now_ms), overlap.time()).await
            }),
            Self::Import(Import { files, overlap, file }) => {
                let (config, new) = (files.load()?, read(&file)?);
                with_store(&config, async |store| replace(store, new, overlap.time()).await)
            }
        }
    }
}

/// Does something with the database, and tells of it.
fn with_store(config: &Config, work: impl AsyncFnOnce(&Arc<Store>) -> Result<String, Failure>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::System, error))?;
    let told = runtime.block_on(async {
        let store = parts::open_store(config).await?;
        let result = work(&store).await;
        store.close().await;
        result
    });
    print(&told?)
}

async fn keys(store: &Store) -> Result<Vec<(SigningKey, Ed25519KeyPair)>, Failure> {
    let stored = store.signing_keys().await.map_err(|error| Failure::new(Exit::Unavailable, error))?;
    stored.into_iter().map(|key| Ok((key.clone(), pair(&key)?))).collect()
}

fn pair(key: &SigningKey) -> Result<Ed25519KeyPair, Failure> {
    let damaged = |error| Failure::new(Exit::Software, anyhow!("the key ed25519:{} is damaged: {error}", key.version));
    Ed25519KeyPair::from_der(&key.document, key.version.clone()).map_err(damaged)
}

fn public(pair: &Ed25519KeyPair) -> String {
    Base64::<Standard, _>::new(pair.public_key()).encode()
}

async fn show(store: &Store, now: SystemTime) -> Result<String, Failure> {
    let mut text = String::new();
    for (key, pair) in keys(store).await? {
        let mut line =
            |name: &str, value: &str| writeln!(text, "{name:<10}{value}").expect("a String takes every write");
        line("key", &format!("ed25519:{}", key.version));
        line("public", &public(&pair));
        line("since", &date(key.created_ts));
        if let Some(until) = key.expired_ts {
            line(if until > ms(now) { "counts to" } else { "ended" }, &date(until));
        }
        text.push('\n');
    }
    if text.is_empty() {
        text.push_str(
            "There is no key yet: the first start makes one, or `myelin signing-key import` takes one over.\n",
        );
    }
    Ok(text)
}

/// Puts a key in the place of the one in use, unless that is no good idea.
async fn replace(store: &Store, new: SigningKey, overlap: Duration) -> Result<String, Failure> {
    let usage = |error| Failure::new(Exit::Usage, error);
    let new_pair = pair(&new)?;
    let known = keys(store).await?;
    for (key, pair) in &known {
        let in_use = if key.expired_ts.is_none() { "signs with" } else { "has signed with" };
        if pair.public_key() == new_pair.public_key() {
            return Err(usage(anyhow!("this server {in_use} this key already, as ed25519:{}", key.version)));
        }
        if key.version == new.version {
            let error = anyhow!("this server {in_use} another key of the id ed25519:{}", key.version);
            return Err(usage(error).hint("Servers that know the one would refuse what the other signs."));
        }
    }
    let now = SystemTime::now();
    let old = known.iter().find(|(key, _)| key.expired_ts.is_none()).map(|(key, _)| key.version.as_str());
    let until = ms(now + overlap);
    let is_done = store.replace_signing_key(old, &new, until).await;
    if !is_done.map_err(|error| Failure::new(Exit::Unavailable, error))? {
        return Err(Failure::new(Exit::Unavailable, anyhow!("somebody else has changed the key just now")));
    }
    let mut text =
        format!("This server signs with ed25519:{} now, whose public key is {}.\n", new.version, public(&new_pair));
    if let Some(old) = old {
        let restart = match overlap.is_zero() {
            true => "ends now. Restart every running server at once: what they sign with it is refused.".to_owned(),
            false => format!("counts until {}. Restart every running server before, one after the other.", date(until)),
        };
        writeln!(text, "The key before it, ed25519:{old}, {restart}").expect("a String takes every write");
    }
    Ok(text)
}

/// Reads a key in the form in which other homeservers have it.
fn read(path: &Path) -> Result<SigningKey, Failure> {
    let shown = path.display();
    let text = || -> anyhow::Result<String> {
        let bytes_max = std::fs::metadata(path)?.len();
        anyhow::ensure!(bytes_max <= FILE_BYTES_MAX, "it has more than {FILE_BYTES_MAX} bytes");
        Ok(std::fs::read_to_string(path)?)
    };
    let text = text().with_context(|| format!("read {shown}")).map_err(|error| Failure::new(Exit::Io, error))?;
    parse(&text).map_err(|error| {
        Failure::new(Exit::Usage, error.context(format!("{shown} has no key to import")))
            .hint("It must have one line: `ed25519`, the key's version, and the secret in Base64.")
    })
}

fn parse(text: &str) -> anyhow::Result<SigningKey> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let line = lines.next().context("it is empty")?;
    anyhow::ensure!(lines.next().is_none(), "it has several lines");
    // The secret is not repeated in any message.
    let [algorithm, version, secret] = line.split_ascii_whitespace().collect::<Vec<_>>()[..] else {
        return Err(anyhow!("the line has not three parts"));
    };
    anyhow::ensure!(algorithm == "ed25519", "the key is not of the kind ed25519");
    let is_word = version.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    anyhow::ensure!(
        is_word && version.len() <= VERSION_BYTES_MAX,
        "the version has other characters than a-z, A-Z, 0-9 and _"
    );
    let secret = Base64::<Standard>::parse(secret).map_err(|_| anyhow!("the secret is not Base64"))?;
    anyhow::ensure!(secret.as_bytes().len() == SEED_BYTES, "the secret has not {SEED_BYTES} bytes");
    let document = [&PKCS8_HEAD[..], secret.as_bytes()].concat();
    let created_ts = ms(SystemTime::now());
    Ok(SigningKey { version: version.to_owned(), document, created_ts, expired_ts: None })
}

fn ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn date(ms: i64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use myelin_store::{SigningKey, Store, testing::Fresh};
    use ruma::signatures::Ed25519KeyPair;

    use super::{Exit, parse, public, replace, show};

    /// The first example of the specification's appendix on signing, as a homeserver has it in its file.
    const FILE: &str = "ed25519 a_Bc1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n";
    const PUBLIC: &str = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI";

    /// The key of a file is the one that its public key says.
    #[test]
    fn files_of_other_homeservers_are_read() {
        for text in [FILE.to_owned(), format!("# our key\n\n  {FILE}\n")] {
            let key = parse(&text).unwrap();
            assert_eq!(key.version, "a_Bc1");
            let pair = Ed25519KeyPair::from_der(&key.document, key.version).unwrap();
            assert_eq!(public(&pair), PUBLIC);
        }
    }

    /// What is no key is refused with what is wrong, and without the secret.
    #[test]
    fn bad_files_are_refused() {
        let secret = FILE.split(' ').nth(2).unwrap().trim();
        for (text, reason) in [
            (String::new(), "empty"),
            (format!("{FILE}{FILE}"), "several lines"),
            (format!("ed25519 {secret}"), "three parts"),
            (format!("ed25519 a {secret} more"), "three parts"),
            (format!("rsa a {secret}"), "kind"),
            (format!("ed25519 a:b {secret}"), "characters"),
            (format!("ed25519 {} {secret}", "a".repeat(101)), "characters"),
            (format!("ed25519 a {secret}!"), "Base64"),
            (format!("ed25519 a {}", &secret[..40]), "32 bytes"),
            (format!("ed25519 a {secret}AAAA"), "32 bytes"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(reason) && !error.contains(&secret[..20]), "{text}: {error}");
        }
    }

    async fn store(fresh: &Fresh) -> Arc<Store> {
        fresh.open().await
    }

    /// A key is taken over before the first start, replaced by others, and shown with those before it.
    #[tokio::test]
    async fn keys_are_taken_over_and_rotated() {
        let fresh = Fresh::sqlite();
        let (store, hour) = (store(&fresh).await, Duration::from_secs(3600));
        assert!(show(&store, SystemTime::now()).await.unwrap().contains("no key yet"));
        let told = replace(&store, parse(FILE).unwrap(), hour).await.unwrap();
        assert!(told.contains("ed25519:a_Bc1") && told.contains(PUBLIC) && !told.contains("Restart"), "{told}");
        assert_eq!(store.signing_key().await.unwrap().0, "a_Bc1");
        let shown = show(&store, SystemTime::now()).await.unwrap();
        assert!(shown.contains(PUBLIC) && !shown.contains("counts to"), "{shown}");

        let told = replace(&store, SigningKey::generate(1), hour).await.unwrap();
        assert!(told.contains("a_Bc1, counts until") && told.contains("Restart"), "{told}");
        let shown = show(&store, SystemTime::now()).await.unwrap();
        assert!(shown.contains("counts to") && shown.contains("a_Bc1") && !shown.contains("ended"), "{shown}");
        let shown = show(&store, SystemTime::now() + 2 * hour).await.unwrap();
        assert!(shown.contains("ended"), "{shown}");
        let told = replace(&store, SigningKey::generate(1), Duration::ZERO).await.unwrap();
        assert!(told.contains("ends now"), "{told}");
        store.close().await;
    }

    /// A key that is or was in use is not taken again, nor is its id; nothing changes.
    #[tokio::test]
    async fn keys_are_used_once() {
        let fresh = Fresh::sqlite();
        let store = store(&fresh).await;
        let refused = async |key: SigningKey| {
            let before = store.signing_keys().await.unwrap();
            let failure = replace(&store, key, Duration::ZERO).await.unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert_eq!(store.signing_keys().await.unwrap(), before);
            failure.to_string()
        };
        replace(&store, parse(FILE).unwrap(), Duration::ZERO).await.unwrap();
        assert!(refused(parse(FILE).unwrap()).await.contains("signs with this key already"));
        assert!(refused(parse(&FILE.replace("a_Bc1", "b")).unwrap()).await.contains("as ed25519:a_Bc1"));
        let same_id = SigningKey { version: "a_Bc1".to_owned(), ..SigningKey::generate(1) };
        assert!(refused(same_id.clone()).await.contains("another key of the id ed25519:a_Bc1"));
        replace(&store, SigningKey::generate(1), Duration::ZERO).await.unwrap();
        assert!(refused(parse(FILE).unwrap()).await.contains("has signed with this key"));
        assert!(refused(same_id).await.contains("has signed with another key"));
        store.close().await;
    }
}
