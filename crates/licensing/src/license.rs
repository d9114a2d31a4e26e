//! A tenant's licence: what it includes and for how long, and its JSON form in Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::quota::{Limit, UnreadableLimit};
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
    /// The features that are included, those with an end of their own among them: see [`License::includes`].
    pub features: Features,
    /// Features that end before the licence does, and when; the instant itself is outside. What is not in `features` is not
    /// included, whatever this says.
    pub features_until: BTreeMap<Box<str>, Timestamp>,
    /// Limits by feature, as the row has them: see [`License::limit`].
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
    /// `features_until`, as JSON text.
    pub features_until: String,
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
    /// `features`, `features_until` or `usage_limits` is no JSON object.
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
    /// When a feature ends is no time.
    #[error("the end of the feature {feature:?} is no time")]
    NotATime {
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
            features_until: ends(&object("features_until", &row.features_until)?)?,
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
        // Three documents, each within its bound, and the rest.
        if json.len() > 4 * MAX_FEATURES_BYTES {
            return Err(Unreadable::TooLarge { column: "the cached entry", bytes: json.len() });
        }
        let cached: Cached = serde_json::from_slice(json).map_err(|error| Unreadable::Foreign(error.to_string()))?;
        if cached.tenant_id != tenant {
            return Err(Unreadable::Foreign(format!("it is of tenant {}", cached.tenant_id)));
        }
        Self::try_from(cached)
    }

    /// The JSON of `license:{tenant}` in Redis, readable by people and other programs.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether it includes `feature` at `now`. Whether it is valid then is another question: [`License::validity`].
    pub fn includes(&self, feature: &str, now: Timestamp) -> bool {
        self.features.contains(feature) && self.features_until.get(feature).is_none_or(|end| now < *end)
    }

    /// The features that it includes at `now`, in alphabetical order.
    pub fn features_at(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        self.features.iter().filter(move |feature| self.features_until.get(*feature).is_none_or(|end| now < *end))
    }

    /// How much of `feature` it allows in one period.
    ///
    /// # Errors
    /// When what the row says of it is neither a limit nor the absence of one.
    pub fn limit(&self, feature: &str) -> Result<Limit, UnreadableLimit> {
        Limit::of(self.usage_limits.get(feature))
    }

    /// The next moment after `now` at which something about it changes by the clock alone: it begins, a feature ends, it
    /// ends, or its grace does. None: nothing ever will.
    pub fn next_turn(&self, grace: Duration, now: Timestamp) -> Option<Timestamp> {
        let end_of_grace = self.auto_renew.then(|| self.valid_until.plus(grace));
        let turns = [self.valid_from.minus(CLOCK_SKEW), self.valid_until].into_iter().chain(end_of_grace);
        let ends = self.features_until.iter().filter(|(feature, _)| self.features.contains(feature));
        turns.chain(ends.map(|(_, end)| *end)).filter(|turn| turn.is_finite() && *turn > now).min()
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
        let ends: usize = self.features_until.keys().map(|feature| feature.len() + 48).sum();
        size_of::<Self>() + self.plan.len() + self.features.size_bytes() + ends + limits
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

/// The same form as in Redis, for documents that hold a licence among other things.
impl Serialize for License {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cached = Cached {
            revision: self.revision,
            tenant_id: self.tenant,
            plan: Arc::clone(&self.plan),
            features: self.features.iter().map(|feature| (feature.to_owned(), Value::Bool(true))).collect(),
            features_until: self.features_until.clone(),
            usage_limits: self.usage_limits.clone(),
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            auto_renew: self.auto_renew,
        };
        cached.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for License {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(Cached::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl TryFrom<Cached> for License {
    type Error = Unreadable;

    fn try_from(cached: Cached) -> Result<Self, Unreadable> {
        Ok(Self {
            tenant: cached.tenant_id,
            plan: cached.plan,
            features: Features::from_json(&cached.features)?,
            features_until: cached.features_until,
            usage_limits: cached.usage_limits,
            valid_from: cached.valid_from,
            valid_until: cached.valid_until,
            auto_renew: cached.auto_renew,
            revision: cached.revision,
        })
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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    features_until: BTreeMap<Box<str>, Timestamp>,
    #[serde(default)]
    usage_limits: Map<String, Value>,
    valid_from: Timestamp,
    valid_until: Timestamp,
    auto_renew: bool,
}

fn ends(document: &Map<String, Value>) -> Result<BTreeMap<Box<str>, Timestamp>, Unreadable> {
    let end = |(feature, value): (&String, &Value)| {
        let end = value.as_str().and_then(|text| Timestamp::parse(text).ok());
        end.map(|end| (feature.as_str().into(), end)).ok_or_else(|| Unreadable::NotATime { feature: feature.clone() })
    };
    document.iter().map(end).collect()
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
            features_until: "{}".into(),
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
    fn a_feature_with_an_end_is_included_until_then() {
        let ends = r#"{"crm":"1970-01-01T00:01:00Z","sms":"infinity","gone":"1970-01-01"}"#;
        let row = LicenseRow { features_until: ends.into(), ..row(r#"{"crm":true,"sms":true,"tickets":true}"#) };
        let license = License::from_row(tenant(), &row).expect("a licence");
        let at = |micros| license.features_at(Timestamp::from_micros(micros)).collect::<Vec<_>>().join(",");
        assert_eq!((at(59_999_999).as_str(), at(60_000_000).as_str()), ("crm,sms,tickets", "sms,tickets"));
        for (feature, micros, included) in
            [("crm", 59_999_999, true), ("crm", 60_000_000, false), ("sms", i64::MAX - 1, true), ("gone", -1, false)]
        {
            assert_eq!(license.includes(feature, Timestamp::from_micros(micros)), included, "{feature} at {micros}");
        }
        for not_a_time in ["1", "null", "\"tomorrow\"", "{}"] {
            let row = LicenseRow { features_until: format!(r#"{{"crm":{not_a_time}}}"#), ..row.clone() };
            let expected = Err(Unreadable::NotATime { feature: "crm".into() });
            assert_eq!(License::from_row(tenant(), &row), expected, "{not_a_time}");
        }
        let row = LicenseRow { features_until: "[]".into(), ..row };
        assert_eq!(License::from_row(tenant(), &row), Err(Unreadable::NotAnObject { column: "features_until" }));
    }

    /// Between two turns nothing changes, and at each of them something does.
    #[test]
    fn each_turn_of_a_life_is_foreseen() {
        let hours = |hours: i64| Timestamp::from_micros(hours * 3_600_000_000);
        let license = License {
            valid_from: hours(100),
            valid_until: hours(200),
            auto_renew: true,
            features_until: [("crm".into(), hours(150)), ("not included".into(), hours(160))].into(),
            ..License::from_row(tenant(), &row(r#"{"crm":true}"#)).expect("a licence")
        };
        let grace = Duration::from_hours(72);
        let turns: Vec<_> =
            std::iter::successors(license.next_turn(grace, hours(0)), |turn| license.next_turn(grace, *turn)).collect();
        assert_eq!(turns, [hours(100).minus(CLOCK_SKEW), hours(150), hours(200), hours(272)]);
        let state = |now: Timestamp| (license.validity(grace, now), license.includes("crm", now));
        for turn in turns {
            assert_ne!(state(turn), state(Timestamp::from_micros(turn.as_micros() - 1)), "{turn}");
        }
        let forever = License { valid_from: Timestamp::NEG_INFINITY, valid_until: Timestamp::INFINITY, ..license };
        assert_eq!(forever.next_turn(grace, hours(150)), None);
    }

    #[test]
    fn the_cached_form_is_read_back_and_nothing_else_is() {
        let license = License {
            usage_limits: object("usage_limits", r#"{"tickets":100}"#).expect("an object"),
            features_until: [("crm".into(), Timestamp::from_micros(7))].into(),
            valid_from: Timestamp::NEG_INFINITY,
            valid_until: Timestamp::from_micros(1_769_817_600_123_456),
            revision: 42,
            ..License::from_row(tenant(), &row(r#"{"crm":true}"#)).expect("a licence")
        };
        assert_eq!(License::from_json(tenant(), license.to_json().as_bytes()), Ok(license.clone()));

        let grown = license.to_json().replacen('{', r#"{"added_later":1,"#, 1);
        assert_eq!(License::from_json(tenant(), grown.as_bytes()), Ok(license.clone()));

        // As a version without such ends has written it, and as this one writes it where there are none.
        let endless = License { features_until: BTreeMap::new(), ..license.clone() };
        assert!(!endless.to_json().contains("features_until"));
        assert_eq!(License::from_json(tenant(), endless.to_json().as_bytes()), Ok(endless));

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
