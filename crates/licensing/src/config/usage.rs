//! The section `usage`: how what is counted is written down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quantity::Duration;

/// How usage and denials are counted. Which requests are is a matter of rules: see `meter` there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UsageSettings {
    /// How often counts are written; a killed process loses at most one interval. 100ms to 1h. Default: 5s.
    pub flush_interval: Duration,
    /// How much may wait while Postgres is away: sums by tenant, feature and day, and denials by tenant, feature, reason and
    /// minute. What finds no place is dropped and counted. 1000 to 10000000, of some 200 bytes each. Default: 100000.
    #[schemars(range(min = 1_000, max = 10_000_000))]
    pub pending_entries: u32,
    /// After how long without a request what is left of a lease is given back, so that other replicas have it. 1s to 1h.
    /// Default: 30s.
    pub lease_idle: Duration,
    /// At how many percent of a limit it is announced, once a period: in the log, in metrics and on the tenant's WebSocket. At
    /// most 8, ascending, each from 1 to 255. Default: [80, 100].
    #[schemars(length(max = 8), inner(range(min = 1)))]
    pub thresholds: Vec<u8>,
}

impl Default for UsageSettings {
    fn default() -> Self {
        Self {
            flush_interval: Duration::from_secs(5),
            pending_entries: 100_000,
            lease_idle: Duration::from_secs(30),
            thresholds: vec![80, 100],
        }
    }
}
