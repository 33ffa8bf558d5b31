//! Reads the files and the environment, and names each key that is wrong, all of them at once.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use figment::{
    Error, Figment, Metadata, Profile, Provider,
    error::Kind,
    providers::{Format as _, Serialized, Toml},
    value::{Dict, Map, Value},
};

use super::{Config, Problem};

/// What the names of environment variables begin with.
const PREFIX: &str = "MYELIN_";
/// Keys whose text from the environment is never read as a number, a truth value or a list.
const VERBATIM: &[&[&str]] = &[
    &["acme", "external_account_key"],
    &["acme", "external_account_id"],
    &["registration", "token"],
    &["registration", "shared_secret"],
    &["database", "url"],
    &["public_baseurl"],
];

/// The configuration could not be read: every reason that was found.
#[derive(Debug, thiserror::Error)]
pub struct LoadError {
    problems: Vec<Problem>,
}

impl LoadError {
    /// The reasons; there is at least one.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads `paths`, later ones over earlier ones, and the environment over them.
    ///
    /// Without paths, the embedded default takes their place. The environment variable for the key `url` of the
    /// section `database` is `MYELIN_DATABASE__URL`; lists are written as in TOML.
    ///
    /// # Errors
    /// If a file cannot be read or is not TOML, a key is unknown or has a value of another type, or files were
    /// given and none says `server_name`.
    pub fn load(paths: &[PathBuf]) -> Result<Self, LoadError> {
        // A variable that is not text cannot be one of ours, whose names and values are.
        let variables =
            env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::load_with(paths, variables)
    }

    /// [`Config::load`] with the given environment.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load_with(
        paths: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, LoadError> {
        let mut problems = Vec::new();
        let mut figment = Figment::new();
        if paths.is_empty() {
            figment = figment.merge(Serialized::defaults(Self::embedded_default()));
        }
        for path in paths {
            let file = Toml::file_exact(path);
            match file.data() {
                Ok(_) => figment = figment.merge(file),
                Err(error) => problems.extend(error.into_iter().map(|error| unreadable(path, &error))),
            }
        }
        figment = figment.merge(Environment::new(environment));

        let config = extract(&figment, &mut problems);
        if !paths.is_empty() && problems.is_empty() && !figment.contains("server_name") {
            let message = "it is missing, and has no default: the name behind the colon of every user here";
            problems.push(Problem::error("server_name", message));
        }
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(LoadError { problems }),
        }
    }
}

/// Makes the configuration of what was read. Each key that is in the way is named and taken out, and the rest tried
/// again, so that one run finds them all.
fn extract(figment: &Figment, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut value = match figment.find_value("") {
        Ok(value) => value,
        Err(error) => {
            problems.extend(error.into_iter().map(|error| Problem::error("", error.kind.to_string())));
            return None;
        }
    };
    loop {
        let error = match value.deserialize::<Config>() {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let Some(culprit) = remove(&mut value, &error.path) else {
            problems.push(Problem::error(&error.path.join("."), describe(&error.kind)));
            return None;
        };
        let mut problem = Problem::error(&dotted(&error.path), describe(&error.kind));
        problem.source = figment.get_metadata(culprit.tag()).and_then(|metadata| source(metadata, &error.path));
        problems.push(problem);
    }
}

/// Takes the value at `path` out; if it stands in a list, the whole list, so that no item gets another's place.
fn remove(value: &mut Value, path: &[String]) -> Option<Value> {
    let Value::Dict(_, dict) = value else { return None };
    let (key, rest) = path.split_first()?;
    match dict.get_mut(key) {
        Some(inner @ Value::Dict(..)) if !rest.is_empty() => remove(inner, rest),
        _ => dict.remove(key),
    }
}

/// `["listeners", "0", "tls"]` as `listeners[0].tls`.
fn dotted(path: &[String]) -> String {
    path.iter().fold(String::new(), |mut whole, part| {
        if part.parse::<usize>().is_ok() {
            whole.push('[');
            whole.push_str(part);
            whole.push(']');
        } else {
            if !whole.is_empty() {
                whole.push('.');
            }
            whole.push_str(part);
        }
        whole
    })
}

/// Where a value was written.
fn source(metadata: &Metadata, path: &[String]) -> Option<String> {
    if metadata.name == Environment::NAME {
        let names: Vec<_> =
            path.iter().take_while(|part| part.parse::<usize>().is_err()).map(|part| part.to_uppercase()).collect();
        return Some(format!("environment variable {PREFIX}{}", names.join("__")));
    }
    metadata.source.as_ref().and_then(|source| source.file_path()).map(|path| path.display().to_string())
}

/// What is wrong with a value, without the value: it might be a secret.
fn describe(kind: &Kind) -> String {
    match kind {
        Kind::UnknownField(_, known) => format!("unknown key; known here: {}", known.join(", ")),
        Kind::UnknownVariant(_, known) => format!("unknown value; one of: {}", known.join(", ")),
        Kind::InvalidType(_, wanted) => format!("wrong type; wanted {wanted}"),
        kind => kind.to_string(),
    }
}

/// A file that cannot be read, or is not TOML.
fn unreadable(path: &Path, error: &Error) -> Problem {
    let mut problem = Problem::error("", format!("cannot be read: {}", error.kind.to_string().trim_end()));
    problem.source = Some(path.display().to_string());
    problem
}

/// The settings in environment variables.
struct Environment(Dict);

impl Environment {
    const NAME: &str = "the environment";

    fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut dict = Dict::new();
        let mut variables: Vec<_> = variables.into_iter().collect();
        variables.sort();
        for (name, text) in variables {
            if let Some(name) = name.strip_prefix(PREFIX).filter(|name| !is_foreign(name)) {
                let name = name.to_ascii_lowercase();
                let path: Vec<&str> = name.split("__").collect();
                insert(&mut dict, &path, read(&path, text));
            }
        }
        Self(dict)
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named(Self::NAME)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Ok(Profile::Default.collect(self.0.clone()))
    }
}

/// Variables that share our prefix and are not settings: those of the command line and of the project's tests, and
/// those that Kubernetes gives every pod for a service called `myelin` or `myelin-…`.
fn is_foreign(name: &str) -> bool {
    matches!(name, "CONFIG" | "BINARY" | "BUILD_CACHE" | "PORT")
        || name.starts_with("TEST_")
        || name.starts_with("PORT_")
        || name.ends_with("SERVICE_HOST")
        || name.contains("SERVICE_PORT")
        || name.ends_with("_PORT")
        || (name.contains("_PORT_") && !name.contains("__"))
}

/// The value that a variable's text means: as in TOML, and what is not TOML is a text without its quotes.
fn read(path: &[&str], text: String) -> Value {
    if VERBATIM.contains(&path) {
        return Value::from(text);
    }
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().and_then(|mut table| {
        // A text with line breaks could hold more keys.
        let value = table.remove("value").filter(|value| table.is_empty() && !value.is_datetime())?;
        Value::serialize(value).ok()
    });
    parsed.unwrap_or_else(|| Value::from(text))
}

fn insert(dict: &mut Dict, path: &[&str], value: Value) {
    match path {
        [] => {}
        [key] => {
            dict.insert((*key).to_owned(), value);
        }
        [key, rest @ ..] => {
            let inner = dict.entry((*key).to_owned()).or_insert_with(|| Dict::new().into());
            if !matches!(inner, Value::Dict(..)) {
                *inner = Dict::new().into();
            }
            if let Value::Dict(_, inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Config, LoadError};
    use crate::config::{LogFormat, Resource};

    fn load(files: &[&str], environment: &[(&str, &str)]) -> Result<Config, LoadError> {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files
            .iter()
            .enumerate()
            .map(|(number, text)| {
                let path = folder.path().join(format!("{number}.toml"));
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        Config::load_with(&paths, environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn problems(files: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
        load(files, environment).unwrap_err().problems().iter().map(ToString::to_string).collect()
    }

    /// Later files win over earlier ones, the environment over files, and what nobody says has its default.
    #[test]
    fn layers() {
        let config = load(
            &[
                "server_name = 'a.example'\n[log]\nlevel = 'warn'\n[cache]\nmemory = 16777216",
                "server_name = 'b.example'\n[database]\nmax_connections = 3\n[rate_limits.login]\nper_second = 2\nburst = 4",
            ],
            &[("MYELIN_LOG__FORMAT", "json"), ("MYELIN_DATABASE__MAX_CONNECTIONS", "5"), ("OTHER_LOG__LEVEL", "x")],
        )
        .unwrap();
        assert_eq!(config.server_name, "b.example");
        assert_eq!((config.log.level.as_str(), config.log.format), ("warn", LogFormat::Json));
        assert_eq!(config.database.max_connections, 5);
        assert_eq!(config.cache.memory, 16 << 20);
        assert_eq!(config.rate_limits.login.burst, 4);
        assert_eq!(config.rate_limits.joins, Config::default().rate_limits.joins);
        assert!(!config.registration.enabled);
    }

    /// Without a file, the embedded default is the lowest layer, and the environment still counts.
    #[test]
    fn embedded_default_takes_the_environment() {
        assert_eq!(load(&[], &[]).unwrap(), Config::embedded_default());
        let config = load(
            &[],
            &[
                ("MYELIN_SERVER_NAME", "example.org"),
                ("MYELIN_REGISTRATION__TOKEN", "0123"),
                ("MYELIN_LISTENERS", "[{address = '0.0.0.0:80', resources = ['client']}]"),
            ],
        )
        .unwrap();
        assert_eq!(config.server_name, "example.org");
        assert!(config.registration.enabled);
        assert_eq!(config.registration_token().unwrap().unwrap().expose(), "0123");
        assert_eq!(config.listeners.len(), 1);
        assert_eq!(config.listeners[0].resources, [Resource::Client]);
    }

    /// Every wrong key is named with its place in one go, and no value is repeated, as it might be a secret.
    #[test]
    fn names_file_and_key_of_every_mistake() {
        let found = problems(
            &["server_name = 'not a name'\ncolour = 'red'\n[database]\nmax_connections = 'hunter2'\nurll = 'x'\n\
               [[listeners]]\naddress = '127.0.0.1:1'\nresources = ['client', 'cheese']"],
            &[("MYELIN_PRESENCE__ENABLED", "hunter3"), ("MYELIN_DATABASE__UR", "x")],
        );
        let all = found.join("\n");
        for (key, place) in [
            ("server_name", "0.toml"),
            ("colour", "0.toml"),
            ("database.max_connections", "0.toml"),
            ("database.urll", "0.toml"),
            ("listeners[0].resources[1]", "0.toml"),
            ("presence.enabled", "MYELIN_PRESENCE__ENABLED"),
            ("database.ur", "MYELIN_DATABASE__UR"),
        ] {
            let named = found.iter().any(|line| line.contains(&format!("{key}:")) && line.contains(place));
            assert!(named, "{key} in {place} is not named:\n{all}");
        }
        assert_eq!(found.len(), 7, "{all}");
        assert!(!all.contains("hunter"), "{all}");
    }

    /// A missing file, one that is not TOML, and one without the server's name are refused.
    #[test]
    fn refuses_unusable_files() {
        let missing = Config::load_with(&["/nonexistent/myelin.toml".into()], []).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/myelin.toml"), "{missing}");
        let broken = problems(&["server_name = "], &[]).join("\n");
        assert!(broken.contains("0.toml"), "{broken}");
        let nameless = problems(&["[log]\nlevel = 'info'"], &[]).join("\n");
        assert!(nameless.contains("server_name"), "{nameless}");
        assert!(load(&["[log]\nlevel = 'info'"], &[("MYELIN_SERVER_NAME", "example.org")]).is_ok());
    }

    /// What Kubernetes and the test run put into the environment is not taken for settings.
    #[test]
    fn foreign_variables_are_left_alone() {
        let foreign = [
            "MYELIN_SERVICE_HOST",
            "MYELIN_SERVICE_PORT",
            "MYELIN_SERVICE_PORT_HTTP",
            "MYELIN_PORT",
            "MYELIN_PORT_8008_TCP",
            "MYELIN_PORT_8008_TCP_ADDR",
            "MYELIN_METRICS_PORT",
            "MYELIN_METRICS_PORT_9000_TCP",
            "MYELIN_CONFIG",
            "MYELIN_BINARY",
            "MYELIN_TEST_POSTGRES",
        ];
        let environment: Vec<_> = foreign.iter().map(|name| (*name, "tcp://10.0.0.1:8008")).collect();
        assert_eq!(load(&[], &environment).unwrap(), Config::embedded_default());
        assert!(load(&[], &[("MYELIN_SERVERNAME", "example.org")]).is_err());
    }
}
