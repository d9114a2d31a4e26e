//! A tenant's licence: what it includes and for how long, and its JSON form in Redis.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::tenant::TenantId;
use crate::time::Timestamp;

/// The largest `features` document that is read, in bytes. A larger one is a fault of the row.
pub const MAX_FEATURES_BYTES: usize = 64 * 1024;

/// How far ahead of our clock `valid_from` may lie without denying anyone: clocks differ.
pub const CLOCK_SKEW: Duration = Duration::from_mins(5);

/// What a tenant has bought, as one row of `tenant_licenses` says.
#[derive(Clone, Debug, PartialEq)]
pub struct License {
    /// Whose licence it is.
    pub tenant: TenantId,
    /// The plan's name; what the licence includes is in `features` alone.
    pub plan: Arc<str>,
    /// The features that are included.
    pub features: Features,
    /// Limits by feature, as the row has them: absent, null or -1 is unlimited.
    pub usage_limits: Map<String, Value>,
    /// From when it holds.
    pub valid_from: Timestamp,
    /// Until when it holds; the instant itself is outside.
    pub valid_until: Timestamp,
    /// Whether it is renewed by itself, and hence served for a grace period after `valid_until`.
    pub auto_renew: bool,
    /// Grows with every change of the row: the greater of two is the newer.
    pub revision: i64,
}

/// A licence as it lies in a store, its JSON documents still to be read.
#[derive(Clone, Debug, Default)]
pub struct LicenseRow {
    /// `plan_tier`.
    pub plan: String,
    /// `features`, as JSON text.
    pub features: String,
    /// `usage_limits`, as JSON text.
    pub usage_limits: String,
    /// `valid_from`, in microseconds since the Unix epoch, UTC.
    pub valid_from: i64,
    /// `valid_until`, likewise.
    pub valid_until: i64,
    /// `auto_renew`.
    pub auto_renew: bool,
    /// `revision`.
    pub revision: i64,
}

/// A licence that is there but can't be understood: a fault of that entry, never a "no".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// `features` or `usage_limits` is no JSON object.
    #[error("{column} is no JSON object")]
    NotAnObject {
        /// The column.
        column: &'static str,
    },
    /// A feature's value is neither true, false nor null.
    #[error("the feature {feature:?} is neither true nor false")]
    NotABoolean {
        /// The feature.
        feature: String,
    },
    /// A document is larger than [`MAX_FEATURES_BYTES`].
    #[error("{column} has {bytes} bytes, more than {MAX_FEATURES_BYTES}")]
    TooLarge {
        /// The column.
        column: &'static str,
        /// Its size.
        bytes: usize,
    },
    /// A cached entry is not the JSON that this program writes.
    #[error("the cached entry is no licence: {0}")]
    Foreign(String),
}

impl License {
    /// Read a row.
    ///
    /// # Errors
    /// When one of its documents can't be understood. Nothing is guessed: a licence half understood would deny what was
    /// paid for, or give away what was not.
    pub fn from_row(tenant: TenantId, row: &LicenseRow) -> Result<Self, Unreadable> {
        Ok(Self {
            tenant,
            plan: row.plan.as_str().into(),
            features: Features::from_json(&object("features", &row.features)?)?,
            usage_limits: object("usage_limits", &row.usage_limits)?,
            valid_from: Timestamp::from_micros(row.valid_from),
            valid_until: Timestamp::from_micros(row.valid_until),
            auto_renew: row.auto_renew,
            revision: row.revision,
        })
    }

    /// Read the JSON of `license:{tenant}` in Redis.
    ///
    /// # Errors
    /// When it is not what [`License::to_json`] writes for this tenant, whoever wrote it.
    pub fn from_json(tenant: TenantId, json: &[u8]) -> Result<Self, Unreadable> {
        if json.len() > 2 * MAX_FEATURES_BYTES {
            return Err(Unreadable::TooLarge { column: "the cached entry", bytes: json.len() });
        }
        let cached: Cached = serde_json::from_slice(json).map_err(|error| Unreadable::Foreign(error.to_string()))?;
        if cached.tenant_id != tenant {
            return Err(Unreadable::Foreign(format!("it is of tenant {}", cached.tenant_id)));
        }
        Ok(Self {
            tenant,
            plan: cached.plan,
            features: Features::from_json(&cached.features)?,
            usage_limits: cached.usage_limits,
            valid_from: cached.valid_from,
            valid_until: cached.valid_until,
            auto_renew: cached.auto_renew,
            revision: cached.revision,
        })
    }

    /// The JSON of `license:{tenant}` in Redis, readable by people and other programs.
    pub fn to_json(&self) -> String {
        let cached = Cached {
            revision: self.revision,
            tenant_id: self.tenant,
            plan: Arc::clone(&self.plan),
            features: self.features.iter().map(|feature| (feature.to_owned(), Value::Bool(true))).collect(),
            usage_limits: self.usage_limits.clone(),
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            auto_renew: self.auto_renew,
        };
        serde_json::to_string(&cached).unwrap_or_default()
    }

    /// Where `now` lies in the licence's life. `grace` is how long past `valid_until` an `auto_renew` licence is served.
    pub fn validity(&self, grace: Duration, now: Timestamp) -> Validity {
        if now.plus(CLOCK_SKEW) < self.valid_from {
            return Validity::NotYet;
        }
        if now < self.valid_until {
            return Validity::Valid;
        }
        let end = self.valid_until.plus(grace);
        if self.auto_renew && now < end { Validity::Grace { until: end } } else { Validity::Expired }
    }

    /// What it takes in memory, roughly, in bytes.
    pub fn size_bytes(&self) -> usize {
        let limits: usize =
            self.usage_limits.iter().map(|(name, value)| name.len() + value.to_string().len() + 96).sum();
        size_of::<Self>() + self.plan.len() + self.features.size_bytes() + limits
    }
}

/// Where a moment lies in a licence's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Before `valid_from`, by more than [`CLOCK_SKEW`].
    NotYet,
    /// Inside.
    Valid,
    /// Past `valid_until`, but awaiting renewal and served until then.
    Grace {
        /// When the grace period ends.
        until: Timestamp,
    },
    /// Over.
    Expired,
}

/// A set of features, in alphabetical order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(Box<[Box<str>]>);

impl Features {
    /// Whether `feature` is among them.
    pub fn contains(&self, feature: &str) -> bool {
        self.0.binary_search_by(|f| (**f).cmp(feature)).is_ok()
    }

    /// All of them, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|feature| &**feature)
    }

    /// All of them, separated by commas: the value of `X-License-Features`.
    pub fn joined(&self) -> String {
        self.0.join(",")
    }

    fn from_json(document: &Map<String, Value>) -> Result<Self, Unreadable> {
        let mut granted = Vec::new();
        for (feature, value) in document {
            match value {
                Value::Bool(true) => granted.push(feature.as_str()),
                Value::Bool(false) | Value::Null => {}
                _ => return Err(Unreadable::NotABoolean { feature: feature.clone() }),
            }
        }
        Ok(granted.into_iter().collect())
    }

    fn size_bytes(&self) -> usize {
        self.0.iter().map(|feature| feature.len() + size_of::<Box<str>>()).sum()
    }
}

impl<'a> FromIterator<&'a str> for Features {
    fn from_iter<I: IntoIterator<Item = &'a str>>(features: I) -> Self {
        let mut features: Vec<Box<str>> = features.into_iter().map(Box::from).collect();
        features.sort_unstable();
        features.dedup();
        Self(features.into())
    }
}

/// The members of `license:{tenant}`. Members that later versions add are passed over.
#[derive(Serialize, Deserialize)]
struct Cached {
    /// First, where the scripts in Redis look for it.
    revision: i64,
    tenant_id: TenantId,
    plan: Arc<str>,
    features: Map<String, Value>,
    #[serde(default)]
    usage_limits: Map<String, Value>,
    valid_from: Timestamp,
    valid_until: Timestamp,
    auto_renew: bool,
}

fn object(column: &'static str, json: &str) -> Result<Map<String, Value>, Unreadable> {
    if json.len() > MAX_FEATURES_BYTES {
        return Err(Unreadable::TooLarge { column, bytes: json.len() });
    }
    serde_json::from_str(json).map_err(|_| Unreadable::NotAnObject { column })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";

    fn tenant() -> TenantId {
        TENANT.parse().expect("a UUID")
    }

    fn row(features: &str) -> LicenseRow {
        LicenseRow {
            plan: "starter".into(),
            features: features.into(),
            usage_limits: "{}".into(),
            valid_until: i64::MAX,
            ..LicenseRow::default()
        }
    }

    fn read(features: &str) -> Result<String, Unreadable> {
        License::from_row(tenant(), &row(features)).map(|license| license.features.joined())
    }

    #[test]
    fn true_grants_and_nothing_is_guessed() {
        assert_eq!(read("{}").as_deref(), Ok(""));
        assert_eq!(read(r#"{"tickets":true,"crm":true,"projects":false,"old":null}"#).as_deref(), Ok("crm,tickets"));
        for not_an_object in ["null", "[]", r#"["crm"]"#, "true", "\"crm\"", "", "{"] {
            assert_eq!(read(not_an_object), Err(Unreadable::NotAnObject { column: "features" }), "{not_an_object}");
        }
        for not_a_boolean in ["1", "\"true\"", "{}", "[]"] {
            let expected = Err(Unreadable::NotABoolean { feature: "crm".into() });
            assert_eq!(read(&format!(r#"{{"crm":{not_a_boolean}}}"#)), expected, "{not_a_boolean}");
        }
        let large = format!(r#"{{"{}":true}}"#, "x".repeat(MAX_FEATURES_BYTES));
        assert!(matches!(read(&large), Err(Unreadable::TooLarge { column: "features", .. })));
    }

    #[test]
    fn the_cached_form_is_read_back_and_nothing_else_is() {
        let license = License {
            usage_limits: object("usage_limits", r#"{"tickets":100}"#).expect("an object"),
            valid_from: Timestamp::NEG_INFINITY,
            valid_until: Timestamp::from_micros(1_769_817_600_123_456),
            revision: 42,
            ..License::from_row(tenant(), &row(r#"{"crm":true}"#)).expect("a licence")
        };
        assert_eq!(License::from_json(tenant(), license.to_json().as_bytes()), Ok(license.clone()));

        let grown = license.to_json().replacen('{', r#"{"added_later":1,"#, 1);
        assert_eq!(License::from_json(tenant(), grown.as_bytes()), Ok(license.clone()));

        let other = TenantId::new(uuid::Uuid::nil());
        assert!(matches!(License::from_json(other, license.to_json().as_bytes()), Err(Unreadable::Foreign(_))));
        for garbage in ["", "null", "fill:1", "{}", r#"{"plan":"starter"}"#] {
            assert!(
                matches!(License::from_json(tenant(), garbage.as_bytes()), Err(Unreadable::Foreign(_))),
                "{garbage}"
            );
        }
    }

    #[test]
    fn validity_by_the_clock() {
        let hours = |h: i64| Timestamp::from_micros(h * 3_600_000_000);
        let grace = Duration::from_hours(72);
        let mut license = License {
            valid_from: hours(100),
            valid_until: hours(200),
            ..License::from_row(tenant(), &row("{}")).expect("a licence")
        };
        assert_eq!(license.validity(grace, hours(99)), Validity::NotYet);
        assert_eq!(
            license.validity(grace, Timestamp::from_micros(100 * 3_600_000_000 - 300_000_001)),
            Validity::NotYet
        );
        assert_eq!(license.validity(grace, Timestamp::from_micros(100 * 3_600_000_000 - 300_000_000)), Validity::Valid);
        assert_eq!(license.validity(grace, hours(199)), Validity::Valid);
        assert_eq!(license.validity(grace, hours(200)), Validity::Expired, "others end on the dot");
        license.auto_renew = true;
        assert_eq!(license.validity(grace, hours(200)), Validity::Grace { until: hours(272) });
        assert_eq!(license.validity(grace, hours(272)), Validity::Expired);
        assert_eq!(license.validity(Duration::ZERO, hours(200)), Validity::Expired);
        license.valid_until = Timestamp::INFINITY;
        assert_eq!(license.validity(grace, hours(1_000_000)), Validity::Valid);
        license.valid_until = Timestamp::NEG_INFINITY;
        assert_eq!(license.validity(grace, hours(150)), Validity::Expired, "valid_until before valid_from");
    }
}
