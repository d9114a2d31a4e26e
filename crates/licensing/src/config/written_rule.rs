//! A rule in the shape in which it is written, and from there to what it means and back.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::licenses::OnFailure;
use super::names::{FeatureName, Method};
use super::routes::{AccessKind, Demand, Meter, PathPattern, RuleSettings, Scope};
use crate::enforcement::Mode;

/// A rule as it is written: exactly one of `prefix` and `match`, exactly one of `feature` and `access`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("allOf" = [
    { "oneOf": [{ "required": ["prefix"] }, { "required": ["match"] }] },
    { "oneOf": [{ "required": ["feature"] }, { "required": ["access"] }] }
]))]
pub(super) struct WrittenRule {
    /// A path and all below it, on segment boundaries. {name} stands for any one segment; to a gated rule an empty one
    /// counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<PathPattern>,
    /// A path alone, or a prefix, for some methods.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    matches: Option<WrittenMatch>,
    /// The feature that the licence must include.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    feature: Option<FeatureName>,
    /// always: everyone, tenant or not (a core module); deny: no one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<AccessKind>,
    /// How its requests are counted. Default: they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    meter: Option<Meter>,
    /// What becomes of its requests when no store answers. Default: as licenses.on_failure says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on_failure: Option<OnFailure>,
    /// off, shadow or enforce for this rule alone; the rollout holds for it all the same. Default: as enforcement.mode says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<Mode>,
}

/// Exactly one of `path` and `prefix`, and the methods.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{ "required": ["path"] }, { "required": ["prefix"] }]))]
struct WrittenMatch {
    /// This path alone. {name} stands for any one segment; to a gated rule an empty one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathPattern>,
    /// A path and all below it. {name} stands for any one segment; to a gated rule an empty one counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prefix: Option<PathPattern>,
    /// The methods that the rule is for; GET includes HEAD. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    methods: Vec<Method>,
}

impl TryFrom<WrittenRule> for RuleSettings {
    type Error = &'static str;

    fn try_from(rule: WrittenRule) -> Result<Self, Self::Error> {
        let WrittenRule { prefix, matches, feature, access, meter, on_failure, mode } = rule;
        let (scope, methods) = match (prefix, matches) {
            (Some(prefix), None) => (Scope::Prefix(prefix), Vec::new()),
            (None, Some(WrittenMatch { path: Some(path), prefix: None, methods })) => (Scope::Path(path), methods),
            (None, Some(WrittenMatch { path: None, prefix: Some(prefix), methods })) => {
                (Scope::Prefix(prefix), methods)
            }
            (None, Some(_)) => return Err("`match` needs exactly one of `path` and `prefix`"),
            _ => return Err("a rule needs exactly one of `prefix` and `match`"),
        };
        let demand = match (feature, access) {
            (Some(feature), None) => Demand::Feature(feature),
            (None, Some(access)) => Demand::Access(access),
            _ => return Err("a rule needs exactly one of `feature` and `access`"),
        };
        if matches!(demand, Demand::Access(_)) && (meter.is_some() || on_failure.is_some()) {
            return Err("`meter` and `on_failure` are for rules with a `feature`: without one no licence is looked up");
        }
        if matches!(demand, Demand::Access(AccessKind::Always)) && mode.is_some() {
            return Err("`mode` is for rules that can refuse: `access: always` refuses nothing");
        }
        Ok(Self { scope, methods, demand, meter, on_failure, mode })
    }
}

impl From<RuleSettings> for WrittenRule {
    fn from(rule: RuleSettings) -> Self {
        let RuleSettings { scope, methods, demand, meter, on_failure, mode } = rule;
        let (prefix, matches) = match scope {
            Scope::Prefix(prefix) if methods.is_empty() => (Some(prefix), None),
            Scope::Prefix(prefix) => (None, Some(WrittenMatch { path: None, prefix: Some(prefix), methods })),
            Scope::Path(path) => (None, Some(WrittenMatch { path: Some(path), prefix: None, methods })),
        };
        let (feature, access) = match demand {
            Demand::Feature(feature) => (Some(feature), None),
            Demand::Access(access) => (None, Some(access)),
        };
        Self { prefix, matches, feature, access, meter, on_failure, mode }
    }
}
