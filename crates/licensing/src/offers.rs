//! What is sold, as a frontend is told: which plan has a feature that is missing, and where it is bought.
//!
//! A denial says the same of the one feature that was asked for; this is for pages that nobody has been denied yet.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::config::{UpgradeMode, UpgradeSettings};
use crate::plans::{Plan, Plans};

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Offers<'a> {
    /// Cheapest first.
    plans: Vec<Offer<'a>>,
    /// Where a plan with a feature is bought: `{feature}` stands for its name.
    upgrade_url: &'a str,
    /// What an upgrade through the proxy does; none: nobody upgrades through it.
    upgrade: Option<Upgrading>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Offer<'a> {
    name: &'a str,
    features: Vec<&'a str>,
    /// What is not named is unlimited.
    limits: BTreeMap<&'a str, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Upgrading {
    mode: UpgradeMode,
    downgrade: bool,
}

impl<'a> Offers<'a> {
    /// These plans, with the template of the link to an upgrade, and what an upgrade does.
    pub fn new(plans: &'a Plans, upgrade_url: &'a str, upgrade: Option<&UpgradeSettings>) -> Self {
        let upgrading = |settings: &UpgradeSettings| Upgrading { mode: settings.mode, downgrade: settings.downgrade };
        Self { plans: plans.iter().map(Offer::of).collect(), upgrade_url, upgrade: upgrade.map(upgrading) }
    }

    /// The document.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl<'a> Offer<'a> {
    fn of(plan: &'a Plan) -> Self {
        Self {
            name: &plan.name,
            features: plan.features.iter().map(|feature| &**feature).collect(),
            limits: plan.limits.iter().map(|(feature, limit)| (&**feature, *limit)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpgradeAllow;

    #[test]
    fn the_document() {
        let plan = |name: &str, features: &[&str], limits: &[(&str, u64)]| Plan {
            name: name.into(),
            features: features.iter().map(|feature| (*feature).into()).collect(),
            limits: limits.iter().map(|(feature, limit)| ((*feature).into(), *limit)).collect(),
        };
        let plans = Plans::new(vec![
            plan("starter", &["tickets"], &[("tickets", 100), ("crm", 0)]),
            plan("basic", &["tickets", "crm"], &[]),
        ]);
        let sold = r#""plans":[{"name":"starter","features":["tickets"],"limits":{"crm":0,"tickets":100}},{"name":"basic","features":["tickets","crm"],"limits":{}}]"#;
        let allow = UpgradeAllow { header: None, values: None, jwt: None };
        let settings = |mode, downgrade| Some(UpgradeSettings { mode, allow: allow.clone(), downgrade });
        for (upgrade, expected) in [
            (None, "null"),
            (settings(UpgradeMode::Apply, false), r#"{"mode":"apply","downgrade":false}"#),
            (settings(UpgradeMode::Request, true), r#"{"mode":"request","downgrade":true}"#),
        ] {
            let document = Offers::new(&plans, "/buy?f={feature}", upgrade.as_ref()).to_json();
            assert_eq!(document, format!(r#"{{{sold},"upgradeUrl":"/buy?f={{feature}}","upgrade":{expected}}}"#));
        }
        let nothing = Offers::new(&Plans::default(), "/buy", None).to_json();
        assert_eq!(nothing, r#"{"plans":[],"upgradeUrl":"/buy","upgrade":null}"#);
    }
}
