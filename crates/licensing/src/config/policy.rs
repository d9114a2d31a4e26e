//! The sections about what is sold and what follows from it: `plans`, `enforcement`, `upgrade`, `deny`.

use std::collections::{BTreeMap, HashSet};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::names::{FeatureName, HeaderName, PlanName, Tenant};
use crate::enforcement::{Enforcement, Mode, Rollout};
use crate::plans::{Plan, Plans};
use crate::reason::Reason;

/// A plan as it is sold. Editing it changes no licence that exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlanSettings {
    /// Its name, as in tenant_licenses.plan_tier.
    pub name: PlanName,
    /// The features it includes.
    pub features: Vec<FeatureName>,
    /// Limits by feature, in metered requests a window. Default: unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<FeatureName, Limit>>,
}

/// How often a feature may be used in a window: a whole number, or unlimited (null or -1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limit(pub Option<u64>);

/// Whether denials are acted on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnforcementSettings {
    /// off: no look-ups; shadow: denials are counted, requests go on; enforce: denials are answered. Default: enforce.
    pub mode: Mode,
    /// For which tenants `enforce` holds already; the others are shadowed.
    pub rollout: RolloutSettings,
}

/// Which share of the tenants is enforced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutSettings {
    /// The share in percent, drawn by tenant. Who is in stays in as it grows. Default: 100.
    #[schemars(range(min = 0, max = 100))]
    pub percent: f64,
    /// Tenants that are in whatever the share is. Default: none.
    pub include: Vec<Tenant>,
    /// Tenants that are out whatever the share is. Default: none.
    pub exclude: Vec<Tenant>,
    /// Another text draws other tenants. Default: empty.
    pub salt: String,
}

/// Upgrades through the proxy. Absent: nobody upgrades through it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeSettings {
    /// apply: the licence is changed at once; request: recorded and announced, and billing applies it. Default: apply.
    #[serde(default)]
    pub mode: UpgradeMode,
    /// Who may upgrade their tenant.
    pub allow: UpgradeAllow,
    /// Whether a cheaper plan may be chosen. Default: false.
    #[serde(default)]
    pub downgrade: bool,
}

/// What an upgrade does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeMode {
    /// The licence is changed at once.
    #[default]
    Apply,
    /// It is recorded and announced; billing applies it.
    Request,
}

/// Who may upgrade: whose role, by a header or by a claim, is one of these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpgradeAllow {
    /// The header that names the role, believed from `trusted_proxies` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderName>,
    /// The roles, where a header names them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<Vec<String>>,
    /// The claim that names the role, and the roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt: Option<ClaimValues>,
}

/// A claim of the tenant's token and the values it may have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimValues {
    /// The claim, a text or a list of texts; dots lead into claims that are objects, as in realm_access.roles.
    pub claim: String,
    /// The values.
    pub values: Vec<String>,
}

/// How refusals are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DenySettings {
    /// Where a plan with the feature is bought: a path or a URL, in which {feature} is the feature that was asked for.
    /// Default: /billing/upgrade?feature={feature}.
    pub upgrade_url: String,
    /// Other HTTP statuses by reason, 400 to 599. Default: none.
    #[schemars(schema_with = "status_schema")]
    pub status: BTreeMap<Reason, u16>,
}

impl PlanSettings {
    /// The plans as the decision reads them, in the same order.
    pub fn plans(settings: &[Self]) -> Plans {
        let plan = |plan: &Self| Plan {
            name: plan.name.shared(),
            features: plan.features.iter().map(FeatureName::shared).collect(),
            limits: plan.limits.iter().flatten().filter_map(|(name, limit)| Some((name.shared(), limit.0?))).collect(),
        };
        Plans::new(settings.iter().map(plan).collect())
    }
}

impl EnforcementSettings {
    /// The settings as the decision reads them.
    pub fn enforcement(&self) -> Enforcement {
        let RolloutSettings { percent, include, exclude, salt } = &self.rollout;
        let ids = |tenants: &[Tenant]| tenants.iter().map(|tenant| tenant.0).collect::<HashSet<_>>();
        let rollout = Rollout { percent: *percent, include: ids(include), exclude: ids(exclude), salt: salt.clone() };
        Enforcement::new(self.mode, rollout)
    }
}

impl Default for EnforcementSettings {
    fn default() -> Self {
        Self { mode: Mode::Enforce, rollout: RolloutSettings::default() }
    }
}

impl Default for RolloutSettings {
    fn default() -> Self {
        Self { percent: 100.0, include: Vec::new(), exclude: Vec::new(), salt: String::new() }
    }
}

impl Default for DenySettings {
    fn default() -> Self {
        Self { upgrade_url: "/billing/upgrade?feature={feature}".to_owned(), status: BTreeMap::new() }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Option::<i64>::deserialize(deserializer)? {
            None | Some(-1) => Ok(Self(None)),
            Some(limit) => u64::try_from(limit).map(|limit| Self(Some(limit))).map_err(|_| {
                serde::de::Error::custom(format!("expected a number from 0, or -1 for unlimited, found {limit}"))
            }),
        }
    }
}

impl JsonSchema for Limit {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": ["integer", "null"], "minimum": -1 })
    }
}

fn status_schema(_: &mut SchemaGenerator) -> Schema {
    let statuses: serde_json::Map<_, _> = Reason::ALL
        .into_iter()
        .map(|reason| {
            let usual = reason.meaning().status;
            let description = format!("What a refusal for this reason is answered with. Default: {usual}.");
            let schema = serde_json::json!({
                "type": "integer", "minimum": 400, "maximum": 599, "description": description
            });
            (reason.name().to_owned(), schema)
        })
        .collect();
    schemars::json_schema!({ "type": "object", "properties": statuses, "additionalProperties": false })
}
