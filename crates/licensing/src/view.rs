//! The licence as its tenant sees it: the document of the licence API, its entity tag, and the messages of its WebSocket.
//!
//! It says what the gate would do at the same moment: a feature is there if a request for it would pass.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::license::{License, Validity};
use crate::time::Timestamp;

/// How often each feature was used in the current period of its window; where nothing meters it, since the first of the
/// month, UTC.
pub type Usage = BTreeMap<Box<str>, i64>;

/// The licence at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View<'a> {
    plan_tier: &'a str,
    /// Each is true; what is not included is left out.
    features: BTreeMap<&'a str, bool>,
    usage_limits: &'a Map<String, Value>,
    current_usage: Option<&'a Usage>,
    valid_from: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    grace_until: Option<Timestamp>,
    auto_renew: bool,
    revision: i64,
}

/// Which message of the WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The first: the licence as it is.
    Current,
    /// Each further one: the licence as it has become.
    Updated,
}

/// A share of a limit that is used up, for the first time in its period.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Threshold {
    /// Of which feature.
    pub feature: Box<str>,
    /// Which share, in percent.
    pub percent: u8,
    /// What is used.
    pub used: u64,
    /// What the licence allows.
    pub limit: u64,
    /// When counting begins anew; none: never.
    pub resets_at: Option<Timestamp>,
}

impl<'a> View<'a> {
    /// The licence as of `now`. `grace` is how long past its end an `auto_renew` licence is served; `usage` is none where it
    /// is not known.
    pub fn new(license: &'a License, grace: Duration, usage: Option<&'a Usage>, now: Timestamp) -> Self {
        let features = match license.validity(grace, now) {
            Validity::Valid | Validity::Grace { .. } => {
                license.features_at(now).map(|feature| (feature, true)).collect()
            }
            Validity::NotYet | Validity::Expired => BTreeMap::new(),
        };
        let finite = |time: Timestamp| time.is_finite().then_some(time);
        let has_grace = license.auto_renew && !grace.is_zero();
        Self {
            plan_tier: &license.plan,
            features,
            usage_limits: &license.usage_limits,
            current_usage: usage,
            valid_from: finite(license.valid_from),
            valid_until: finite(license.valid_until),
            grace_until: finite(license.valid_until).filter(|_| has_grace).map(|end| end.plus(grace)),
            auto_renew: license.auto_renew,
            revision: license.revision,
        }
    }

    /// The same without what it says of usage, which changes with every request and is no news of the licence.
    #[must_use]
    pub fn without_usage(&self) -> Self {
        Self { current_usage: None, ..self.clone() }
    }

    /// The document.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Message {
    /// The message about a licence with this document; none: there is no licence any more, or not yet.
    pub fn about(self, document: Option<&str>) -> String {
        let kind = match self {
            Self::Current => "license",
            Self::Updated => "license_updated",
        };
        format!(r#"{{"type":"{kind}","license":{}}}"#, document.unwrap_or("null"))
    }
}

impl Threshold {
    /// The message about it.
    pub fn to_message(&self) -> String {
        #[derive(Serialize)]
        struct Message<'a> {
            r#type: &'static str,
            #[serde(flatten)]
            threshold: &'a Threshold,
        }
        serde_json::to_string(&Message { r#type: "usage_threshold", threshold: self }).unwrap_or_default()
    }
}

/// The strong entity tag of a document (RFC 9110 section 8.8.3), quotes included.
pub fn entity_tag(document: &[u8]) -> String {
    format!("\"{:032x}\"", xxhash_rust::xxh3::xxh3_128(document))
}

/// Whether a value of `If-None-Match` names the entity tag `current`, or any: then there is nothing new to send (RFC 9110
/// section 13.1.2). The comparison is the weak one. A list is read as far as it follows the grammar.
pub fn none_match_names(value: &[u8], current: &str) -> bool {
    let mut rest = value.trim_ascii();
    if rest == b"*" {
        return true;
    }
    loop {
        while let [b',' | b' ' | b'\t', after @ ..] = rest {
            rest = after;
        }
        let Some(opaque) = rest.strip_prefix(b"W/").unwrap_or(rest).strip_prefix(b"\"") else { return false };
        let Some(end) = memchr::memchr(b'"', opaque) else { return false };
        if current.as_bytes().strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\"")) == Some(&opaque[..end]) {
            return true;
        }
        rest = &opaque[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::license::LicenseRow;

    const HOUR: i64 = 3_600_000_000;
    const GRACE: Duration = Duration::from_hours(72);

    fn hours(hours: i64) -> Timestamp {
        Timestamp::from_micros(hours * HOUR)
    }

    /// From hour 100 to hour 200.
    fn license(auto_renew: bool) -> License {
        let row = LicenseRow {
            plan: "professional".into(),
            features: r#"{"tickets":true,"crm":true,"old":false}"#.into(),
            usage_limits: r#"{"tickets":1000,"crm":null}"#.into(),
            valid_from: 100 * HOUR,
            valid_until: 200 * HOUR,
            auto_renew,
            revision: 7,
            features_until: r#"{"crm":"1970-01-12T00:00:00Z"}"#.into(),
        };
        License::from_row("6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11".parse().expect("a UUID"), &row).expect("a licence")
    }

    fn features(license: &License, now: Timestamp) -> Vec<&str> {
        View::new(license, GRACE, None, now).features.into_keys().collect()
    }

    #[test]
    fn the_document() {
        let license = license(true);
        let usage = Usage::from([("tickets".into(), 245)]);
        let view = View::new(&license, GRACE, Some(&usage), hours(150));
        let document: Value = serde_json::from_str(&view.to_json()).expect("JSON");
        assert_eq!(
            document,
            json!({
                "planTier": "professional",
                "features": { "crm": true, "tickets": true },
                "usageLimits": { "tickets": 1000, "crm": null },
                "currentUsage": { "tickets": 245 },
                "validFrom": "1970-01-05T04:00:00Z",
                "validUntil": "1970-01-09T08:00:00Z",
                "graceUntil": "1970-01-12T08:00:00Z",
                "autoRenew": true,
                "revision": 7,
            })
        );
        assert_eq!(view.without_usage(), View::new(&license, GRACE, None, hours(150)));
    }

    #[test]
    fn features_are_those_that_would_pass_now() {
        let renewed = license(true);
        assert_eq!(features(&renewed, hours(99)), [""; 0], "not begun, beyond the skew of clocks");
        assert_eq!(features(&renewed, Timestamp::from_micros(100 * HOUR - 1)), ["crm", "tickets"]);
        assert_eq!(features(&renewed, hours(263)), ["crm", "tickets"], "in the grace period");
        assert_eq!(features(&renewed, hours(264)), ["tickets"], "one ends before the others");
        assert_eq!(features(&renewed, hours(271)), ["tickets"]);
        assert_eq!(features(&renewed, hours(272)), [""; 0]);
        assert_eq!(features(&license(false), hours(200)), [""; 0], "others end on the dot");
    }

    #[test]
    fn what_has_no_end_has_no_grace() {
        let never = |auto_renew| License { valid_until: Timestamp::INFINITY, ..license(auto_renew) };
        for (license, grace, expected) in [
            (license(true), GRACE, Some(hours(272))),
            (license(true), Duration::ZERO, None),
            (license(false), GRACE, None),
            (never(true), GRACE, None),
        ] {
            let view = View::new(&license, grace, None, hours(150));
            assert_eq!(view.grace_until, expected);
            assert_eq!(view.valid_until.is_none(), license.valid_until == Timestamp::INFINITY);
        }
    }

    #[test]
    fn entity_tags() {
        let tag = entity_tag(b"{}");
        assert_eq!((tag.len(), &tag), (34, &entity_tag(b"{}")));
        assert_ne!(tag, entity_tag(b"{ }"));
        for (value, names) in [
            ("*".to_owned(), true),
            (tag.clone(), true),
            (format!("W/{tag}"), true),
            (format!("\"a,b\" ,, \"\", W/\"*\",{tag}"), true),
            (format!(" {tag}\t"), true),
            ("\"*\"".to_owned(), false),
            (String::new(), false),
            (tag.replace('"', ""), false),
            (format!("a, {tag}"), false),
            (format!("w/{tag}"), false),
            (tag[..33].to_owned(), false),
            (format!("*, {tag}"), false),
        ] {
            assert_eq!(none_match_names(value.as_bytes(), &tag), names, "{value}");
        }
    }

    #[test]
    fn messages() {
        for (message, document, expected) in [
            (Message::Current, Some("{}"), r#"{"type":"license","license":{}}"#),
            (Message::Updated, Some("{}"), r#"{"type":"license_updated","license":{}}"#),
            (Message::Updated, None, r#"{"type":"license_updated","license":null}"#),
        ] {
            assert_eq!(message.about(document), expected);
        }
        let threshold = Threshold { feature: "tickets".into(), percent: 80, used: 81, limit: 100, resets_at: None };
        let limited = Threshold { resets_at: Some(hours(24)), ..threshold.clone() };
        for (threshold, resets_at) in [(threshold, "null"), (limited, r#""1970-01-02T00:00:00Z""#)] {
            let fields =
                r#""type":"usage_threshold","feature":"tickets","percent":80,"used":81,"limit":100,"resetsAt""#;
            assert_eq!(threshold.to_message(), format!("{{{fields}:{resets_at}}}"));
        }
    }
}
