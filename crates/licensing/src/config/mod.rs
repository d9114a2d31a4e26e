//! The configuration file: its types, its JSON schema, and how it is read with all its problems located.
//!
//! The types hold what the file says, checked as far as one value can be checked alone. What takes two values to see is in
//! `check`. No secret is ever part of a configuration, so all of it can be printed.

mod address;
mod api;
mod check;
mod host_pattern;
mod license_file;
mod licenses;
mod names;
mod node;
mod origin;
mod policy;
mod problem;
mod quantity;
mod read;
mod read_error;
mod routes;
mod schema;
mod server;
mod tenant;
mod text_type;
mod usage;
mod written_rule;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::address::{Address, InvalidAddress, Network, UpstreamAddress};
pub use self::api::{ApiSettings, CorsSettings};
pub use self::host_pattern::{HostPattern, InvalidHostPattern};
pub use self::license_file::{LicenseEntry, LicenseFile, parse_licenses};
pub use self::licenses::{
    ChangeFeed, FileSettings, LicenseSettings, LicenseSource, OnFailure, PostgresSettings, RedisSettings,
};
pub use self::names::{FeatureName, HeaderName, InvalidName, Method, PlanName, Tenant};
pub use self::origin::{InvalidOrigin, Origin};
pub use self::policy::{
    ClaimValues, DenySettings, EnforcementSettings, Limit, PlanSettings, RolloutSettings, UpgradeAllow, UpgradeMode,
    UpgradeSettings,
};
pub use self::problem::{Place, Problem, Problems, Severity};
pub use self::quantity::{ByteSize, Duration, InvalidQuantity};
pub use self::routes::{
    AccessKind, Ambiguous, CountKind, Demand, InvalidPattern, LimitKind, Meter, PathPattern, RouteSettings,
    RuleSettings, Scope, Unmatched, Window,
};
pub use self::schema::schema;
pub use self::server::{Limits, Listen, Log, LogLevel, Shutdown, Upstream};
pub use self::tenant::{Jwt, Missing, TenantSettings, TenantSource, TokenPlace};
pub use self::usage::UsageSettings;

use self::node::{Node, Value};
use self::problem::Collector;
use crate::plans::Plans;

/// The version of the configuration that this program reads.
pub const VERSION: u32 = 1;

/// The configuration of dotmac-license-proxy. Durations are written as 250ms, 5s, 5m or 72h, sizes as 16KiB or 64MiB.
/// Secrets are never written here: they come from the environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "dotmac-license-proxy configuration")]
pub struct Config {
    /// The version of this file's format: 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// Where this process listens.
    #[serde(default)]
    pub listen: Listen,
    /// The backend that requests are forwarded to.
    pub upstream: Upstream,
    /// Networks whose identity, role and X-Forwarded-* headers are believed; from anyone else they are stripped. Required
    /// where a header names tenant or role. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// Where a request says whose it is.
    pub tenant: TenantSettings,
    /// Where licences come from and for how long they are believed.
    pub licenses: LicenseSettings,
    /// Which paths need which feature.
    #[serde(default)]
    pub routes: RouteSettings,
    /// The plans, cheapest first: the order is what "required plan" and "downgrade" mean. Default: none.
    #[serde(default)]
    pub plans: Vec<PlanSettings>,
    /// Whether denials are acted on.
    #[serde(default)]
    pub enforcement: EnforcementSettings,
    /// Upgrades through the proxy. Default: nobody upgrades through it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeSettings>,
    /// Where the proxy serves its own licence API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<ApiSettings>,
    /// Browsers on other origins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<CorsSettings>,
    /// How refusals are answered.
    #[serde(default)]
    pub deny: DenySettings,
    /// How usage and denials are counted.
    #[serde(default)]
    pub usage: UsageSettings,
    /// What a request may be at most.
    #[serde(default)]
    pub limits: Limits,
    /// How the process ends on SIGTERM.
    #[serde(default)]
    pub shutdown: Shutdown,
    /// What is logged.
    #[serde(default)]
    pub log: Log,
}

impl Config {
    /// What is sold and can be sold, as managed writes read it: the plans, and the features that rules ask for.
    pub fn catalogue(&self) -> Plans {
        let asked_for = self.routes.rules.iter().filter_map(|rule| Some(rule.feature()?.shared()));
        PlanSettings::plans(&self.plans).with_features(asked_for)
    }
}

/// A configuration that can be used, and what is doubtful about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The configuration, defaults filled in.
    pub config: Config,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
}

/// Read a configuration. `file_name` is only named in problems.
///
/// # Errors
/// With everything that is wrong, as far as it can be seen at once: a text that is no YAML hides all else, and values are
/// compared with each other only once each of them can be read.
pub fn parse(file_name: &str, text: &str) -> Result<Parsed, Problems> {
    let mut problems = Collector::new(file_name, text);
    let config = parse_tree(text, &mut problems, |tree, problems| {
        if let Some(Value::Number(version)) = tree.get("version").map(|node| &node.value)
            && *version != VERSION.to_string()
        {
            let message = format!("this program reads version {VERSION}, not version {version}");
            problems.error(tree.place_of(&["version".into()]), "version".to_owned(), message);
            return None;
        }
        let config: Config = read::read(tree, problems)?;
        check::check(&config, tree, problems);
        Some(config)
    });
    let (config, warnings) = problems.finish(config)?;
    Ok(Parsed { config, warnings })
}

/// Read the YAML and hand its tree to `then`.
fn parse_tree<T>(
    text: &str,
    problems: &mut Collector<'_>,
    then: impl FnOnce(&mut Node, &mut Collector<'_>) -> Option<T>,
) -> Option<T> {
    match Node::parse(text) {
        Ok(Node { value: Value::Null, .. }) => {
            problems.error(Place { line: 1, column: 1 }, String::new(), "the file is empty");
            None
        }
        Ok(mut tree) => then(&mut tree, problems),
        Err((place, message)) => {
            problems.error(place, String::new(), message);
            None
        }
    }
}

impl Config {
    /// The whole configuration with its defaults, as YAML that reads back as the same configuration.
    ///
    /// # Errors
    /// Never in practice: every value here has a YAML form.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser::Error> {
        serde_saphyr::to_string(self)
    }

    /// The features that rules name, each once, in alphabetical order.
    pub fn gated_features(&self) -> Vec<&str> {
        self.features(|_| true)
    }

    /// Every feature whose requests some rule counts, once and in alphabetical order.
    pub fn metered_features(&self) -> Vec<&str> {
        self.features(|rule| rule.meter.is_some())
    }

    fn features(&self, wanted: impl Fn(&RuleSettings) -> bool) -> Vec<&str> {
        let rules = self.routes.rules.iter().filter(|rule| wanted(rule));
        let mut features: Vec<&str> = rules.filter_map(|rule| Some(rule.feature()?.as_str())).collect();
        features.sort_unstable();
        features.dedup();
        features
    }

    /// The files that are named here and that the treatment of requests depends on, relative to the configuration's own.
    pub fn files_of_requests(&self) -> Vec<&Path> {
        self.tenant.tokens().map(|jwt| jwt.keys.as_path()).collect()
    }

    /// Put back what can't change while the program runs, as `running` has it. Answers the keys whose new values wait for a
    /// restart.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        fn keep<T: Clone + PartialEq>(key: &'static str, new: &mut T, running: &T) -> Option<&'static str> {
            (new != running).then(|| {
                running.clone_into(new);
                key
            })
        }
        let (licenses, old) = (&mut self.licenses, &running.licenses);
        let kept = [
            keep("listen", &mut self.listen, &running.listen),
            keep("upstream.pool_size", &mut self.upstream.pool_size, &running.upstream.pool_size),
            keep("upstream.retries", &mut self.upstream.retries, &running.upstream.retries),
            keep("licenses.source", &mut licenses.source, &old.source),
            keep("licenses.redis", &mut licenses.redis, &old.redis),
            keep("licenses.change_feed", &mut licenses.change_feed, &old.change_feed),
            keep("licenses.ttl", &mut licenses.ttl, &old.ttl),
            keep("licenses.revalidate_after", &mut licenses.revalidate_after, &old.revalidate_after),
            keep("licenses.stale_if_error", &mut licenses.stale_if_error, &old.stale_if_error),
            keep("licenses.lookup_deadline", &mut licenses.lookup_deadline, &old.lookup_deadline),
            keep("licenses.memory_bytes", &mut licenses.memory_bytes, &old.memory_bytes),
            keep("usage", &mut self.usage, &running.usage),
            keep("limits.idle_timeout", &mut self.limits.idle_timeout, &running.limits.idle_timeout),
            keep("shutdown", &mut self.shutdown, &running.shutdown),
            keep("log.level", &mut self.log.level, &running.log.level),
            keep("log.access", &mut self.log.access, &running.log.access),
        ];
        kept.into_iter().flatten().collect()
    }

    /// A short name for exactly this configuration, by which logs and metrics tell which one applied.
    pub fn fingerprint(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        format!("{:012x}", xxhash_rust::xxh3::xxh3_64(&json) >> 16)
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;
