//! What an operator has set: the configuration file, and from the environment what must not stand in a file.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::secret::Secret;
use licensing::config::{self, Config, LicenseSource, Problem};

/// A configuration with its secrets.
pub(crate) struct Settings {
    /// The file's content, with what the environment overrides.
    pub config: Config,
    /// The file; relative paths in it are relative to where it lies.
    pub file: PathBuf,
    /// From the environment.
    pub secrets: Secrets,
    /// What is doubtful about the file.
    pub warnings: Vec<Problem>,
    /// What the environment overrides, a sentence each.
    pub overrides: Vec<String>,
}

/// What comes from the environment only. Never printed: the type does not print its content.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    /// Postgres, for writes and the change feed.
    pub database_url: Option<Secret>,
    /// Postgres, for reads: a replica may do.
    pub license_db_url: Option<Secret>,
    /// Redis.
    pub redis_url: Option<Secret>,
    /// What the admin API asks for.
    pub admin_token: Option<Secret>,
}

/// Settings that can't be used, as sentences with their places.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct SettingsError(pub String);

impl Settings {
    /// Read the file, then the environment as `variable` gives it.
    ///
    /// # Errors
    /// When the file or a variable can't be used.
    pub(crate) fn load(file: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| SettingsError(format!("{}: can't be read: {error}", file.display())))?;
        Self::from_text(file, &text, variable)
    }

    /// The same for a text that is at hand.
    ///
    /// # Errors
    /// When the text or a variable can't be used.
    pub(crate) fn from_text(
        file: &Path,
        text: &str,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let parsed = config::parse(&file.display().to_string(), text).map_err(|e| SettingsError(e.to_string()))?;
        let mut config = parsed.config;
        let mut overrides = Vec::new();
        if let Some(Found { name, text, .. }) = first(variable, &["DOTMAC_LICENSE_CACHE_TTL", "CACHE_TTL"])? {
            let ttl = duration(&text)
                .ok_or_else(|| SettingsError(format!("{name}: expected seconds or a duration such as 5m")))?;
            overrides.push(format!("{name} sets licenses.ttl to {text}"));
            config.licenses.ttl = ttl;
        }
        Ok(Self {
            config,
            file: file.to_owned(),
            secrets: secrets_from_environment(variable)?,
            warnings: parsed.warnings,
            overrides,
        })
    }

    /// The files, beside the configuration's own, that a request's treatment depends on.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        self.config.files_of_requests().into_iter().map(|file| directory.join(file)).collect()
    }

    /// See that what rules count can be written where it is kept: in the primary, or in memory beside licences in a file.
    ///
    /// # Errors
    /// When it can't.
    pub(crate) fn require_place_for_usage(&self) -> Result<(), SettingsError> {
        let is_kept =
            matches!(self.config.licenses.source, LicenseSource::File(_)) || self.secrets.database_url.is_some();
        if is_kept || self.config.routes.rules.iter().all(|rule| rule.meter.is_none()) {
            return Ok(());
        }
        Err(SettingsError(
            "rules have a `meter`, but neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL is set: the primary, where what is \
             counted is written"
                .to_owned(),
        ))
    }

    /// What everything that matters is told apart by: a short hash of the effective configuration.
    pub(crate) fn config_hash(&self) -> String {
        self.config.fingerprint()
    }
}

/// The secrets alone, for commands that need no configuration.
///
/// # Errors
/// When a file that a variable names can't be read.
pub(crate) fn secrets_from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Secrets, SettingsError> {
    let secret = |names: &[&str]| {
        let found = first(variable, names)?;
        Ok(found.map(|Found { text, file, .. }| match file {
            Some(file) => Secret::from_file(text, file),
            None => Secret::new(text),
        }))
    };
    Ok(Secrets {
        database_url: secret(&["DOTMAC_LICENSE_DATABASE_URL", "DATABASE_URL"])?,
        license_db_url: secret(&["DOTMAC_LICENSE_LICENSE_DB_URL", "DOTMAC_LICENSE_DB_URL", "LICENSE_DB_URL"])?,
        redis_url: secret(&["DOTMAC_LICENSE_REDIS_URL", "REDIS_URL"])?,
        admin_token: secret(&["DOTMAC_LICENSE_ADMIN_TOKEN", "ADMIN_TOKEN"])?,
    })
}

impl Secrets {
    /// Where licences are read from.
    pub(crate) fn read_url(&self) -> Option<&Secret> {
        self.license_db_url.as_ref().or(self.database_url.as_ref())
    }
}

/// What tells whether any of these files has changed, its absence included.
pub(crate) fn fingerprint(files: impl IntoIterator<Item = PathBuf>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        std::fs::read(file).ok().hash(&mut hasher);
    }
    hasher.finish()
}

/// The environment of this process.
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The value of a variable.
struct Found {
    /// The variable's name.
    name: String,
    text: String,
    /// The file it was read from, if the variable names one.
    file: Option<PathBuf>,
}

/// The first of these variables that is set, or the content of the file that it names with `_FILE` behind it. Empty is not
/// set: that is what a missing key of a Kubernetes secret looks like.
fn first(variable: &dyn Fn(&str) -> Option<String>, names: &[&str]) -> Result<Option<Found>, SettingsError> {
    for name in names {
        if let Some(value) = variable(name).filter(|value| !value.trim().is_empty()) {
            return Ok(Some(Found { name: (*name).to_owned(), text: value.trim().to_owned(), file: None }));
        }
        let name = format!("{name}_FILE");
        if let Some(path) = variable(&name).filter(|path| !path.trim().is_empty()) {
            let file = PathBuf::from(path.trim());
            let value = std::fs::read_to_string(&file)
                .map_err(|error| SettingsError(format!("{name}: {path} can't be read: {error}")))?;
            return Ok(Some(Found { name, text: value.trim().to_owned(), file: Some(file) }));
        }
    }
    Ok(None)
}

/// Seconds, as operators write CACHE_TTL, or a duration as the file has it.
fn duration(text: &str) -> Option<config::Duration> {
    let ttl = match text.parse() {
        Ok(seconds) => config::Duration::from_secs(seconds),
        Err(_) => text.parse().ok()?,
    };
    (ttl.get() > Duration::ZERO).then_some(ttl)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use secrecy::ExposeSecret;

    use super::*;

    const MINIMAL: &str = "version: 1
upstream: { address: 127.0.0.1:8000 }
trusted_proxies: [127.0.0.1]
tenant: { sources: [{ header: X-Tenant-ID }] }
licenses: { source: { postgres: {} } }
";

    fn load(variables: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let variables: HashMap<String, String> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::from_text(Path::new("test.yaml"), MINIMAL, &|name| variables.get(name).cloned())
    }

    fn database_url(variables: &[(&str, &str)]) -> Option<String> {
        let settings = load(variables).unwrap_or_else(|error| panic!("{error}"));
        settings.secrets.database_url.map(|url| url.first().expose_secret().to_owned())
    }

    #[test]
    fn secrets_come_by_either_name_or_from_a_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "postgresql://from-file\n").expect("written");
        let path = file.path().to_str().expect("UTF-8");
        for (variables, expected) in [
            (&[][..], None),
            (&[("DATABASE_URL", "postgresql://bare")], Some("postgresql://bare")),
            (&[("DATABASE_URL", "")], None),
            (&[("DATABASE_URL_FILE", path)], Some("postgresql://from-file")),
            (
                &[("DATABASE_URL", "postgresql://bare"), ("DOTMAC_LICENSE_DATABASE_URL", "postgresql://ours")],
                Some("postgresql://ours"),
            ),
            (
                &[("DATABASE_URL", "postgresql://bare"), ("DOTMAC_LICENSE_DATABASE_URL_FILE", path)],
                Some("postgresql://from-file"),
            ),
        ] {
            assert_eq!(database_url(variables).as_deref(), expected, "{variables:?}");
        }
        let missing = load(&[("REDIS_URL_FILE", "/nonexistent")]).err().map(|error| error.to_string());
        assert!(missing.is_some_and(|message| message.starts_with("REDIS_URL_FILE: /nonexistent can't be read")));
    }

    #[test]
    fn secrets_are_never_printed() {
        let settings = load(&[("DATABASE_URL", "postgresql://app:hunter2@db"), ("REDIS_URL", "redis://:hunter2@r")]);
        let settings = settings.unwrap_or_else(|error| panic!("{error}"));
        assert!(!format!("{:?}", settings.secrets).contains("hunter2"));
        assert!(!settings.config.to_yaml().expect("YAML").contains("hunter2"));
    }

    #[test]
    fn cache_ttl_beats_the_file() {
        for (text, seconds) in [("90", Some(90)), ("2m", Some(120)), ("0", None), ("soon", None)] {
            let loaded = load(&[("CACHE_TTL", text)]);
            match (loaded, seconds) {
                (Ok(settings), Some(seconds)) => {
                    assert_eq!(settings.config.licenses.ttl.get(), Duration::from_secs(seconds), "{text}");
                    assert_eq!(settings.overrides.len(), 1);
                }
                (Err(error), None) => assert!(error.to_string().starts_with("CACHE_TTL:"), "{error}"),
                (loaded, _) => panic!("{text}: {:?}", loaded.map(|settings| settings.config.licenses.ttl)),
            }
        }
    }
}
