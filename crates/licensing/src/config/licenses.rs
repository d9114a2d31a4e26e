//! The section `licenses`: where they come from and for how long they are believed.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::{ByteSize, Duration};

/// Where licences come from and for how long they are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LicenseSettings {
    /// The source of truth: Postgres, or a file for demos and tests.
    pub source: LicenseSource,
    /// Redis, used where a URL for it is given in the environment.
    #[serde(default)]
    pub redis: RedisSettings,
    /// How changes in Postgres are noticed. Default: listen.
    #[serde(default)]
    pub change_feed: ChangeFeed,
    /// For how long an entry is kept in Redis and in memory while every change would be noticed. Default: 5m.
    #[serde(default = "ttl")]
    pub ttl: Duration,
    /// After how long an entry is asked for again while changes may go unnoticed and some store answers. Default: 60s.
    #[serde(default = "revalidate_after")]
    pub revalidate_after: Duration,
    /// For how long after its last confirmation a licence is served while no store answers. Default: 24h.
    #[serde(default = "stale_if_error")]
    pub stale_if_error: Duration,
    /// What becomes of a request whose licence no store can tell. Default: allow. A rule may say otherwise.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How long a whole look-up may take, Redis and Postgres together. Default: 200ms.
    #[serde(default = "lookup_deadline")]
    pub lookup_deadline: Duration,
    /// How much memory licences may take. Default: 64MiB.
    #[serde(default = "memory_bytes")]
    pub memory_bytes: ByteSize,
    /// How long past its end a licence with auto_renew is served, while billing renews it. Default: 72h.
    #[serde(default = "grace")]
    pub grace: Duration,
}

/// The source of truth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LicenseSource {
    /// The table tenant_licenses of the Postgres that the environment names (DOTMAC_LICENSE_DATABASE_URL).
    Postgres(PostgresSettings),
    /// A YAML file: needs no server.
    File(FileSettings),
}

/// How Postgres is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PostgresSettings {
    /// The most connections that this process opens for look-ups; each is opened when it is needed. Default: 4.
    #[schemars(range(min = 1))]
    pub max_connections: u16,
    /// After how long an idle connection is closed. Default: 60s.
    pub idle_timeout: Duration,
}

/// A file of licences.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The file, relative to the configuration file.
    pub path: PathBuf,
}

/// How Redis is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RedisSettings {
    /// A PEM file with the authorities that a rediss:// server's certificate is checked against. Default: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// How changes in Postgres are noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeFeed {
    /// This process listens to Postgres itself, on a connection of its own.
    #[default]
    Listen,
    /// A relay listens and tells everyone by way of Redis: for fleets in which each process can't have connections.
    Redis,
    /// They are not: entries grow old.
    None,
}

/// What becomes of a request whose licence no store can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// It goes on.
    #[default]
    Allow,
    /// It is refused with 503.
    Deny,
}

impl FileSettings {
    /// The file's path, seen from where `config_file` lies.
    pub fn resolve(&self, config_file: &Path) -> PathBuf {
        config_file.parent().unwrap_or(Path::new("")).join(&self.path)
    }
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self { max_connections: 4, idle_timeout: Duration::from_secs(60) }
    }
}

fn ttl() -> Duration {
    Duration::from_secs(5 * 60)
}

fn revalidate_after() -> Duration {
    Duration::from_secs(60)
}

fn stale_if_error() -> Duration {
    Duration::from_secs(24 * 3600)
}

fn lookup_deadline() -> Duration {
    Duration::from_millis(200)
}

fn memory_bytes() -> ByteSize {
    ByteSize::from_mib(64)
}

fn grace() -> Duration {
    Duration::from_secs(72 * 3600)
}
