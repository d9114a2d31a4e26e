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

    /// The plan of this name, if it is still sold.
    pub fn get(&self, name: &str) -> Option<&Plan> {
        self.plans.iter().find(|plan| &*plan.name == name)
    }

    /// All of them, cheapest first.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.plans.iter()
    }
}
