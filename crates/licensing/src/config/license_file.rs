//! The file source: licences written by hand, for demos and tests.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::Deserialize;

use super::names::{FeatureName, PlanName, Tenant};
use super::node::{Node, Step, written};
use super::policy::Limit;
use super::problem::{Collector, Problem, Problems};
use super::{Config, PlanSettings, parse_tree, read};
use crate::tenant::TenantId;
use crate::time::Timestamp;

/// A licence as a file has it, all that was left out filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct LicenseEntry {
    /// Whose licence it is.
    pub tenant: TenantId,
    /// The plan's name.
    pub plan: Arc<str>,
    /// The features: those of the entry, or else those of its plan.
    pub features: Vec<Arc<str>>,
    /// Limits by feature; none is unlimited.
    pub limits: BTreeMap<Arc<str>, Option<u64>>,
    /// From when it holds; minus infinity where the entry does not say.
    pub valid_from: Timestamp,
    /// Until when it holds; infinity where the entry does not say.
    pub valid_until: Timestamp,
    /// Whether it is renewed by itself; false where the entry does not say.
    pub auto_renew: bool,
}

/// The licences of a file, and what is doubtful about them.
#[derive(Clone, Debug, PartialEq)]
pub struct LicenseFile {
    /// One for each tenant, in the order of the file.
    pub entries: Vec<LicenseEntry>,
    /// What is probably not meant.
    pub warnings: Vec<Problem>,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    tenants: Vec<WrittenEntry>,
}

/// One entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEntry {
    tenant_id: Tenant,
    plan: PlanName,
    features: Option<Vec<FeatureName>>,
    #[serde(default)]
    limits: BTreeMap<FeatureName, Limit>,
    valid_from: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    #[serde(default)]
    auto_renew: bool,
}

/// Read a file of licences. `plans` are those of the configuration: an entry without `features` has those of its plan.
/// `file_name` is only named in problems.
///
/// # Errors
/// With everything that is wrong, as [`super::parse`] does.
pub fn parse_licenses(file_name: &str, text: &str, plans: &[PlanSettings]) -> Result<LicenseFile, Problems> {
    let mut problems = Collector::new(file_name, text);
    let entries = parse_tree(text, &mut problems, |tree, problems| {
        let file: Written = read::read(tree, problems)?;
        Some(check(file, tree, plans, problems))
    });
    let (entries, warnings) = problems.finish(entries)?;
    Ok(LicenseFile { entries, warnings })
}

impl Config {
    /// Read a file of licences for this configuration; see [`parse_licenses`].
    ///
    /// # Errors
    /// With everything that is wrong.
    pub fn parse_licenses(&self, file_name: &str, text: &str) -> Result<LicenseFile, Problems> {
        parse_licenses(file_name, text, &self.plans)
    }
}

fn check(file: Written, tree: &Node, plans: &[PlanSettings], problems: &mut Collector<'_>) -> Vec<LicenseEntry> {
    let mut tenants = HashMap::new();
    let mut entries = Vec::new();
    for (i, entry) in file.tenants.into_iter().enumerate() {
        let at = |key| [Step::Key("tenants"), Step::Index(i), Step::Key(key)];
        let mut problem = |key, message: String| problems.error(tree.place_of(&at(key)), written(&at(key)), message);
        let line = tree.place_of(&at("tenant_id")).line;
        if let Some(first) = tenants.insert(entry.tenant_id, line) {
            problem("tenant_id", format!("this tenant has a licence in line {first} already"));
        }
        let plan = plans.iter().find(|plan| plan.name == entry.plan);
        if plan.is_none() && entry.features.is_none() {
            let names = plans.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", ");
            problem("plan", format!("there is no plan `{}` ({names}): add it, or list the `features`", entry.plan));
        }
        let valid_from = entry.valid_from.unwrap_or(Timestamp::NEG_INFINITY);
        let valid_until = entry.valid_until.unwrap_or(Timestamp::INFINITY);
        if valid_until <= valid_from {
            problem("valid_until", format!("must be later than `valid_from`, which is {valid_from}"));
        }
        let features = entry.features.as_deref().or(plan.map(|plan| plan.features.as_slice())).unwrap_or_default();
        entries.push(LicenseEntry {
            tenant: entry.tenant_id.0,
            plan: entry.plan.shared(),
            features: features.iter().map(FeatureName::shared).collect(),
            limits: entry.limits.iter().map(|(feature, limit)| (feature.shared(), limit.0)).collect(),
            valid_from,
            valid_until,
            auto_renew: entry.auto_renew,
        });
    }
    entries
}
