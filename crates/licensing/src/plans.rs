//! What is sold: plans in the order of their price, and which of them include a feature.

use std::sync::Arc;

/// A plan as it is sold today. Editing it changes no licence that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its name, as in `tenant_licenses.plan_tier`.
    pub name: Arc<str>,
    /// The features it includes.
    pub features: Vec<Arc<str>>,
}

/// All plans, cheapest first: the order is what "required plan" and "downgrade" mean.
#[derive(Clone, Debug, Default)]
pub struct Plans(Vec<Plan>);

impl Plans {
    /// These plans, cheapest first.
    pub fn new(plans: Vec<Plan>) -> Self {
        Self(plans)
    }

    /// The names of the plans that include `feature`, cheapest first.
    pub fn including<'a>(&'a self, feature: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |plan| plan.features.iter().any(|f| &**f == feature)).map(|plan| &*plan.name)
    }

    /// The plan of this name, if it is still sold.
    pub fn get(&self, name: &str) -> Option<&Plan> {
        self.0.iter().find(|plan| &*plan.name == name)
    }

    /// All of them, cheapest first.
    pub fn iter(&self) -> impl Iterator<Item = &Plan> {
        self.0.iter()
    }
}
