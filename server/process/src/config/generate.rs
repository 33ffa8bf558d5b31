//! Writes a configuration file that explains itself.

use ruma::ServerName;

use super::{
    Config,
    section::{Section, Setting},
};

/// The first lines of the file.
const HEAD: &str = "\
# Configuration of Myelin, the Matrix homeserver.
#
# Lines that begin with `# ` explain; lines that begin with `#` and a key show a setting's default (or, where it has
# none, an example): take the `#` away to change it. `myelin config check` looks for mistakes. A setting may also come
# from the environment: MYELIN_DATABASE__URL is `url` of the section `database`.
";

impl Config {
    /// A commented configuration file for the server `server_name`, with every other setting at its default.
    #[must_use]
    pub fn generate(server_name: &ServerName) -> String {
        let config = Self { server_name: server_name.to_owned(), ..Self::default() };
        let mut file = HEAD.to_owned();
        for setting in config.settings() {
            let Some(section) = config.section(setting.key) else {
                write_setting(&mut file, &setting, setting.key == "server_name");
                continue;
            };
            file.push_str("\n\n");
            write_docs(&mut file, section.about);
            for settings in section.settings {
                match section.repeated {
                    true => file.push_str(&format!("\n#[[{}]]\n", setting.key)),
                    false => file.push_str(&format!("[{}]\n", setting.key)),
                }
                for setting in &settings {
                    write_setting(&mut file, setting, false);
                }
            }
        }
        file
    }

    /// The section behind a key of the top level; none if the key is a plain setting.
    fn section(&self, key: &str) -> Option<Group> {
        Some(match key {
            "database" => Group::of(&self.database),
            "listeners" => Group {
                about: super::Listener::ABOUT,
                settings: self.listeners.iter().map(Section::settings).collect(),
                repeated: true,
            },
            "tls" => Group::of(&self.tls),
            "acme" => Group::of(&self.acme),
            "well_known" => Group::of(&self.well_known),
            "registration" => Group::of(&self.registration),
            "federation" => Group::of(&self.federation),
            "outbound" => Group::of(&self.outbound),
            "appservices" => Group::of(&self.appservices),
            "rate_limits" => Group::of(&self.rate_limits),
            "cache" => Group::of(&self.cache),
            "log" => Group::of(&self.log),
            "presence" => Group::of(&self.presence),
            "turn" => Group::of(&self.turn),
            "rtc" => Group::of(&self.rtc),
            "media" => Group::of(&self.media),
            "limits" => Group::of(&self.limits),
            _ => return None,
        })
    }
}

/// A section as it is written: a table, or one table for each item of a list.
struct Group {
    about: &'static [&'static str],
    settings: Vec<Vec<Setting>>,
    repeated: bool,
}

impl Group {
    fn of<S: Section>(section: &S) -> Self {
        Self { about: S::ABOUT, settings: vec![section.settings()], repeated: false }
    }
}

fn write_docs(file: &mut String, docs: &[&str]) {
    for line in docs {
        file.push('#');
        file.push_str(line);
        file.push('\n');
    }
}

fn write_setting(file: &mut String, setting: &Setting, chosen: bool) {
    file.push('\n');
    write_docs(file, setting.docs);
    let value = match (&setting.value, setting.example) {
        (Some(value), _) => value.to_string(),
        (None, Some(example)) => example.to_owned(),
        (None, None) => return,
    };
    let mark = if chosen { "" } else { "#" };
    file.push_str(&format!("{mark}{} = {value}\n", setting.key));
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::{Config, Section as _};

    fn load(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("myelin.toml");
        std::fs::write(&path, text).unwrap();
        Config::load_with(&[path], []).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn without_marks(text: &str) -> String {
        let lines = text.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// The file says what the program would do without it.
    #[test]
    fn loads_back_as_the_defaults() {
        let expected = Config { server_name: server_name!("example.org").to_owned(), ..Config::default() };
        assert_eq!(load(&Config::generate(server_name!("example.org"))), expected);
    }

    /// Every line that is shown as a default is the default, and every example is one that loads.
    #[test]
    fn shown_values_are_the_defaults() {
        let mut shown = load(&without_marks(&Config::generate(server_name!("example.org"))));
        // The settings without a default, which have examples.
        assert_eq!(shown.public_baseurl.take().unwrap().as_str(), "https://matrix.example.org/");
        assert!(shown.database.url.take().is_some() && shown.database.url_file.take().is_some());
        assert!(shown.tls.certificate.take().is_some() && shown.tls.private_key.take().is_some());
        assert!(shown.well_known.server.take().is_some() && shown.well_known.support_page.take().is_some());
        let acme = &mut shown.acme;
        assert!(acme.staging_directory.take().is_some() && acme.contact.take().is_some());
        assert!(acme.dns_command.take().is_some() && acme.external_account_id.take().is_some());
        assert!(acme.external_account_key.take().is_some() && acme.external_account_key_file.take().is_some());
        assert!(acme.dns_server.take().is_some() && acme.dns_zone.take().is_some());
        assert!(acme.dns_key_name.take().is_some() && acme.dns_key_secret.take().is_some());
        assert!(acme.dns_key_secret_file.take().is_some());
        assert!(acme.profile.take().is_some() && acme.trusted_ca_file.take().is_some());
        let registration = &mut shown.registration;
        assert!(registration.token.take().is_some() && registration.token_file.take().is_some());
        assert!(registration.shared_secret.take().is_some() && registration.shared_secret_file.take().is_some());
        assert!(shown.federation.trusted_ca_file.take().is_some());
        assert!(shown.turn.shared_secret.take().is_some() && shown.turn.shared_secret_file.take().is_some());
        assert!(shown.rtc.livekit_service_url.take().is_some());
        shown.server_name = Config::default().server_name;
        assert_eq!(shown, Config::default());
    }

    /// No setting is left out, and none is without its explanation.
    #[test]
    fn everything_is_explained() {
        let config = Config::default();
        let file = Config::generate(server_name!("example.org"));
        for setting in config.settings() {
            assert!(!setting.docs.is_empty(), "{}", setting.key);
            match config.section(setting.key) {
                None => assert!(file.contains(&format!("{} = ", setting.key)), "{}", setting.key),
                Some(section) => {
                    for inner in section.settings.iter().flatten() {
                        assert!(!inner.docs.is_empty(), "{}.{}", setting.key, inner.key);
                        assert!(file.contains(&format!("{} = ", inner.key)), "{}.{}", setting.key, inner.key);
                    }
                }
            }
        }
    }

    /// The manual's page holds the generated file, so that it cannot fall behind.
    #[test]
    fn manual_shows_the_generated_file() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let page = std::fs::read_to_string(page).unwrap();
        let expected = Config::generate(server_name!("example.org"));
        let shown = page.split("```toml\n").find(|block| block.starts_with("# Configuration of Myelin"));
        let shown = shown.and_then(|block| block.split("```").next()).unwrap_or_default();
        assert_eq!(
            shown, expected,
            "put the output of `myelin config generate example.org` into docs/configuration.md"
        );
    }
}
