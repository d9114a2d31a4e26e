//! Contradictions among what is counted, what is limited, and how that is written down.

use std::collections::{HashMap, HashSet};

use super::Checker;
use crate::config::names::{FeatureName, Method};
use crate::config::node::Step;
use crate::config::quantity::Duration;

/// How many thresholds there may be.
const MAX_THRESHOLDS: usize = 8;

impl Checker<'_, '_> {
    /// Methods that a rule never sees, and rules that begin one count anew at different times.
    pub(super) fn meters(&mut self) {
        let mut windows = HashMap::new();
        for (i, rule) in self.config.routes.rules.iter().enumerate() {
            let (Some(meter), Some(feature)) = (&rule.meter, rule.feature()) else { continue };
            let of_rule = rule.rule();
            let seen = |method: &Method| of_rule.is_for(method.as_str());
            if !meter.methods.is_empty() && !meter.methods.iter().any(seen) {
                let message = format!("nothing is counted: the rule is for {} alone", of_rule.methods.join(" and "));
                self.error(&at!["routes", "rules", i, "meter", "methods"], message);
            } else {
                for (j, method) in meter.methods.iter().enumerate().filter(|(_, method)| !seen(method)) {
                    let message = format!("{method} is not counted, since the rule is not for it");
                    self.warning(&at!["routes", "rules", i, "meter", "methods", j], message);
                }
            }
            let (first, window) = *windows.entry(feature).or_insert((i, meter.window));
            if window != meter.window {
                let line = self.line(&at!["routes", "rules", first, "meter"]);
                let message = format!(
                    "`{feature}` has one limit and so one window, but routes.rules[{first}] in line {line} has another: {} and not {}",
                    window.as_str(),
                    meter.window.as_str()
                );
                self.error(&at!["routes", "rules", i, "meter", "window"], message);
            }
        }
    }

    /// Limits that nothing counts towards.
    pub(super) fn limits(&mut self) {
        let metered = self.config.routes.rules.iter().filter(|rule| rule.meter.is_some());
        let metered: HashSet<&FeatureName> = metered.filter_map(|rule| rule.feature()).collect();
        for (i, plan) in self.config.plans.iter().enumerate() {
            for (feature, limit) in plan.limits.iter().flatten() {
                if limit.0.is_some() && !metered.contains(feature) {
                    let message = format!("no rule meters `{feature}`, so that the limit is never reached");
                    self.warning(&at!["plans", i, "limits", feature.as_str()], message);
                }
            }
        }
    }

    /// How often, how much and at what.
    pub(super) fn usage(&mut self) {
        let usage = &self.config.usage;
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        let spans: [(&[Step<'_>], Duration, Duration, &str); 2] = [
            (&at!["usage", "flush_interval"], usage.flush_interval, Duration::from_millis(100), "100ms to 1h"),
            (&at!["usage", "lease_idle"], usage.lease_idle, second, "1s to 1h"),
        ];
        for (path, span, least, range) in spans {
            if !(least..=hour).contains(&span) {
                self.error(path, format!("must be from {range}"));
            }
        }
        if !(1_000..=10_000_000).contains(&usage.pending_entries) {
            self.error(&at!["usage", "pending_entries"], "must be from 1000 to 10000000");
        }
        if usage.thresholds.len() > MAX_THRESHOLDS {
            let message = format!("there are {}: at most {MAX_THRESHOLDS} are taken", usage.thresholds.len());
            self.error(&at!["usage", "thresholds"], message);
        }
        for (i, percent) in usage.thresholds.iter().enumerate() {
            if *percent == 0 {
                self.error(&at!["usage", "thresholds", i], "must be from 1 to 255 percent");
            } else if i > 0 && *percent <= usage.thresholds[i - 1] {
                let message = format!("must be more than the one before, which is {}", usage.thresholds[i - 1]);
                self.error(&at!["usage", "thresholds", i], message);
            }
        }
    }
}
