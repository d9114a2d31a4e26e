//! What is sold: plans in the order of their price, and which of them include a feature.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A plan as it is sold today. Editing it changes no licence that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name, as in `tenant_licenses.plan_tier`.
    pub name: Arc<str>,
    /// The features it includes.
    pub features: Vec<Arc<str>>,
    /// How often a feature may be used in a window; what is not named is unlimited.
    pub limits: BTreeMap<Arc<str>, u64>,
}

/// All plans, cheapest first: the order is what "required plan" and "downgrade" mean.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    plans: Vec<Plan>,
    /// Features that no plan need include, since they are sold one by one.
    others: BTreeSet<Arc<str>>,
}

impl Plan {
    /// Whether it includes `feature`.
    pub fn includes(&self, feature: &str) -> bool {
        self.features.iter().any(|included| &**included == feature)
    }
}

impl Plans {
    /// These plans, cheapest first.
    pub fn new(plans: Vec<Plan>) -> Self {
        Self { plans, others: BTreeSet::new() }
    }

    /// The same, where these features are known too, although no plan may include them: rules ask for them.
    #[must_use]
    pub fn with_features(mut self, features: impl IntoIterator<Item = Arc<str>>) -> Self {
        self.others.extend(features);
        self
    }

    /// Whether a plan or a rule names `feature`. Another is a misspelt one.
    pub fn know(&self, feature: &str) -> bool {
        self.others.contains(feature) || self.including(feature).next().is_some()
    }

    /// The place of a plan in the order of prices, if it is still sold.
    pub fn rank(&self, name: &str) -> Option<usize> {
        self.plans.iter().position(|plan| &*plan.name == name)
    }

    /// The names of the plans that include `feature`, cheapest first.
    pub fn including<'a>(&'a self, feature: &'a str) -> impl Iterator<Item = &'a str> {
        self.plans.iter().filter(move |plan| plan.includes(feature)).map(|plan| &*plan.name)
    }

    /// The names of the plans that include `feature` and allow more of it than `limit`, cheapest first.
    pub fn allowing_more<'a>(&'a self, feature: &'a str, limit: u64) -> impl Iterator<Item = &'a str> {
        let more = move |plan: &&Plan| plan.limits.get(feature).is_none_or(|of_plan| *of_plan > limit);
        self.plans.iter().filter(move |plan| plan.includes(feature)).filter(more).map(|plan| &*plan.name)
    }

    /// The plan of this name, if it is still sold.
    pub fn get(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| &*plan.name == name)
    }

    /// All of them, cheapest first.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.plans.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_of_a_feature_is_a_higher_limit_or_none() {
        let plan = |name: &str, features: &[&str], limits: &[(&str, u64)]| Plan {
            name: name.into(),
            features: features.iter().map(|feature| (*feature).into()).collect(),
            limits: limits.iter().map(|(feature, limit)| ((*feature).into(), *limit)).collect(),
        };
        let plans = Plans::new(vec![
            plan("trial", &["crm"], &[("tickets", 1000)]),
            plan("starter", &["tickets"], &[("tickets", 100), ("crm", 1)]),
            plan("professional", &["crm", "tickets"], &[("tickets", 500), ("crm", 0)]),
            plan("enterprise", &["crm", "tickets"], &[]),
        ]);
        let more = |feature, limit| plans.allowing_more(feature, limit).collect::<Vec<_>>().join(" ");
        assert_eq!(more("tickets", 99), "starter professional enterprise");
        assert_eq!(more("tickets", 100), "professional enterprise");
        assert_eq!(more("tickets", 500), "enterprise");
        assert_eq!(more("tickets", u64::MAX), "enterprise", "no limit is more than any");
        assert_eq!(more("crm", 0), "trial enterprise");
        assert_eq!(more("sms", 0), "");
    }
}
