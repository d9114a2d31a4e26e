//! How licences, their changes and their audit are printed: as tables for people, as JSON or YAML for programs.

use std::time::Duration;

use anyhow::Context;
use licensing::amend::Holding;
use licensing::license::{License, Validity};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value};

use super::Failure;
pub(super) use crate::cli::output::Format;
use crate::cli::output::{write, yaml};
use crate::manage::AuditEntry;

/// A list that is printed as it comes.
pub(super) struct Listing {
    format: Format,
    items: usize,
}

/// What validity is judged by.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Timestamp,
    /// As the proxies have it.
    pub(super) grace: Duration,
}

/// What a tenant has, and what that amounts to now.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    /// `valid`, `in_grace`, `expired`, `not_yet_valid`, or `none`.
    state: &'static str,
    /// What is included now.
    features_now: Vec<&'a str>,
    #[serde(flatten)]
    holding: &'a Holding,
}

/// What has changed.
#[derive(Serialize)]
pub(super) struct Changed<'a> {
    tenant_id: TenantId,
    before: &'a Holding,
    after: &'a Holding,
}

impl Listing {
    pub(super) fn begin(format: Format) -> Self {
        Self { format, items: 0 }
    }

    pub(super) fn item(&mut self, item: &impl Serialize, line: impl FnOnce() -> String) -> Result<(), Failure> {
        let first = self.items == 0;
        self.items += 1;
        match self.format {
            Format::Table => write(&line()),
            Format::Json => {
                let begin = if first { "[\n" } else { ",\n" };
                write(&format!("{begin}{}", serde_json::to_string(item).context("JSON")?))
            }
            Format::Yaml => write(&yaml(&[item])?),
        }
    }

    /// Close it; a list without items is said to be one.
    pub(super) fn end(self) -> Result<(), Failure> {
        match (self.format, self.items) {
            (Format::Table, _) => Ok(()),
            (Format::Json | Format::Yaml, 0) => write("[]\n"),
            (Format::Json, _) => write("\n]\n"),
            (Format::Yaml, _) => Ok(()),
        }
    }
}

impl<'a> Shown<'a> {
    pub(super) fn new(holding: &'a Holding, clock: Clock) -> Self {
        let license = holding.license.as_ref();
        Self {
            state: license.map_or("none", |license| state(license, clock)),
            features_now: license.map(|license| license.features_at(clock.now).collect()).unwrap_or_default(),
            holding,
        }
    }
}

impl<'a> Changed<'a> {
    pub(super) fn new(tenant: TenantId, before: &'a Holding, after: &'a Holding) -> Self {
        Self { tenant_id: tenant, before, after }
    }
}

/// What a tenant has, a line for each thing.
pub(super) fn describe(tenant: TenantId, holding: &Holding, clock: Clock) -> String {
    let mut text = format!("tenant       {tenant}\n");
    match &holding.license {
        None => text += "licence      none\n",
        Some(license) => {
            text += &format!("plan         {}\n", license.plan);
            text += &format!("state        {}\n", state(license, clock).replace('_', " "));
            text += &format!("valid from   {}\n", license.valid_from);
            text += &format!("valid until  {}\n", license.valid_until);
            text += &format!("auto renew   {}\n", if license.auto_renew { "yes" } else { "no" });
            text += &format!("features     {}\n", or_none(&features(license)));
            text += &format!("limits       {}\n", or_none(&limits(&license.usage_limits)));
            text += &format!("revision     {}\n", license.revision);
        }
    }
    text + &addons(holding)
}

fn addons(holding: &Holding) -> String {
    let line = |addon: &licensing::amend::Addon| {
        let limit = addon.limit_delta.map(|delta| format!(", limit {delta:+}")).unwrap_or_default();
        let reason = addon.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("add-on       {}, {}{limit}{reason}\n", addon.feature, until(addon.valid_until))
    };
    holding.addons.iter().map(line).collect()
}

/// What has changed, a line for each thing.
pub(super) fn describe_change(changed: &Changed<'_>) -> String {
    let mut text = format!("tenant       {}\n", changed.tenant_id);
    let differences = differences(changed);
    if differences.is_empty() {
        return text + "nothing has changed\n";
    }
    for (what, difference) in differences {
        text += &format!("{what:<12} {difference}\n");
    }
    text
}

/// The same in one line.
pub(super) fn change_line(changed: &Changed<'_>) -> String {
    let differences = differences(changed).into_iter().map(|(what, difference)| format!("{what}: {difference}"));
    format!("{}  {}\n", changed.tenant_id, differences.collect::<Vec<_>>().join("; "))
}

fn differences(changed: &Changed<'_>) -> Vec<(&'static str, String)> {
    let view = |holding: &Holding| {
        let license = holding.license.as_ref();
        let text = |of: fn(&License) -> String| license.map_or("none".to_owned(), of);
        [
            ("plan", text(|license| license.plan.to_string())),
            ("valid until", text(|license| license.valid_until.to_string())),
            ("features", text(|license| or_none(&features(license)))),
            ("limits", text(|license| or_none(&limits(&license.usage_limits)))),
            ("add-ons", or_none(&addons(holding).trim_end().replace('\n', "; ").replace("add-on       ", ""))),
        ]
    };
    let pairs = view(changed.before).into_iter().zip(view(changed.after));
    let differing = pairs.filter(|((_, before), (_, after))| before != after);
    differing.map(|((what, before), (_, after))| (what, format!("{before} → {after}"))).collect()
}

/// One licence of a list.
pub(super) fn list_line(license: &License, clock: Clock) -> String {
    let (tenant, plan, until) = (license.tenant, &license.plan, license.valid_until.to_string());
    format!("{tenant}  {plan:<16} {:<14} {until:<27} {}\n", state(license, clock), or_none(&features(license)))
}

/// One entry of the audit.
pub(super) fn audit_line(entry: &AuditEntry) -> String {
    let details = entry.command.as_object().into_iter().flatten().filter(|(name, _)| *name != "action");
    let detail = |(name, value): (&String, &Value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    };
    let details = details.map(detail).collect::<Vec<_>>().join(" ");
    let reason = entry.reason.as_deref().unwrap_or("-");
    let AuditEntry { at, action, actor, outcome, .. } = entry;
    format!("{:<27}  {action:<12} {details}\n  {outcome}; by {actor}: {reason}\n", at.to_string())
}

/// Whether it holds.
fn state(license: &License, clock: Clock) -> &'static str {
    match license.validity(clock.grace, clock.now) {
        Validity::NotYet => "not_yet_valid",
        Validity::Valid => "valid",
        Validity::Grace { .. } => "in_grace",
        Validity::Expired => "expired",
    }
}

fn features(license: &License) -> String {
    let feature = |feature: &str| match license.features_until.get(feature) {
        Some(end) => format!("{feature} ({})", until(*end)),
        None => feature.to_owned(),
    };
    license.features.iter().map(feature).collect::<Vec<_>>().join(", ")
}

fn limits(limits: &Map<String, Value>) -> String {
    limits.iter().map(|(feature, limit)| format!("{feature} {limit}")).collect::<Vec<_>>().join(", ")
}

fn until(end: Timestamp) -> String {
    if end == Timestamp::INFINITY { "for good".to_owned() } else { format!("until {end}") }
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}
