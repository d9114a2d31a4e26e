//! The section `routes`: which paths need which feature.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::licenses::OnFailure;
use super::names::{FeatureName, Method};
use super::text_type::text_type;
use super::written_rule::WrittenRule;
use crate::enforcement::Mode;
use crate::routes::{Access, Pattern, Place, RouteError, RouteOptions, Routes, Rule, answers};

/// After so many problems of the rules the rest is left for the next run.
const MAX_PROBLEMS: usize = 50;

/// Which paths need which feature.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteSettings {
    /// What becomes of a request that no rule matches. Default: allow, so that core modules need no rule.
    pub unmatched: Unmatched,
    /// What becomes of a path that backends may read in several ways: judged by its strictest reading, or refused with 400.
    /// Default: strictest.
    pub ambiguous: Ambiguous,
    /// Prefixes under which the backend answers as well (its root_path). Default: none.
    pub path_aliases: Vec<PathPattern>,
    /// The rules, in any order: the most specific one that matches wins. Default: none.
    pub rules: Vec<RuleSettings>,
}

/// What becomes of a request that no rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unmatched {
    /// It goes on.
    #[default]
    Allow,
    /// It is refused with 403.
    Deny,
}

/// What becomes of a path that backends may read in several ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ambiguous {
    /// It is judged by its strictest reading.
    #[default]
    Strictest,
    /// It is refused with 400.
    Refuse,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "WrittenRule", into = "WrittenRule")]
pub struct RuleSettings {
    /// Which paths it is for.
    pub scope: Scope,
    /// Which methods it is for; empty is all.
    pub methods: Vec<Method>,
    /// What it demands.
    pub demand: Demand,
    /// How its requests are counted.
    pub meter: Option<Meter>,
    /// What becomes of its requests when no store answers, where that differs from `licenses.on_failure`.
    pub on_failure: Option<OnFailure>,
    /// What becomes of its denials, where that differs from `enforcement.mode`.
    pub mode: Option<Mode>,
}

/// Which paths a rule is for.
#[derive(Clone, Debug, PartialEq)]
pub enum Scope {
    /// A path and all below it.
    Prefix(PathPattern),
    /// A path alone.
    Path(PathPattern),
}

/// What a rule demands.
#[derive(Clone, Debug, PartialEq)]
pub enum Demand {
    /// A licence with this feature.
    Feature(FeatureName),
    /// Nothing, or what no one has.
    Access(AccessKind),
}

/// A rule that asks for no feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessKind {
    /// Everyone, tenant or not: a core module.
    Always,
    /// No one.
    Deny,
}

/// How requests are counted: one for each that the backend has served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// The methods that count; GET includes HEAD. Default: all.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Which answers count. success: 2xx, 3xx and 101; all: 4xx and 5xx of the backend as well. Default: success.
    #[serde(default)]
    pub count: CountKind,
    /// When the licence's limit begins anew, at 00:00 UTC: each day, on the first of each month, each month on the day on which
    /// the tenant began (anchored), or never (lifetime). All rules that meter a feature agree on it. Default: month.
    #[serde(default)]
    pub window: Window,
    /// hard: refused once the licence's limit is used up; soft: marked and counted only. Default: hard.
    #[serde(default)]
    pub limit: LimitKind,
}

/// Which answers of the backend count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CountKind {
    /// Those by which it has done what was asked: 2xx, 3xx and 101.
    #[default]
    Success,
    /// Every one.
    All,
}

/// When counting begins anew, at 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// Each day.
    Day,
    /// On the first of each month.
    #[default]
    Month,
    /// Each month, on the day on which the tenant began.
    Anchored,
    /// Never.
    Lifetime,
}

/// What becomes of a request beyond the limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LimitKind {
    /// It is refused.
    #[default]
    Hard,
    /// It is counted.
    Soft,
}

/// A path of literal segments and placeholders: `/api/v1/customers/{id}/tickets`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern(String);

impl Window {
    /// As configuration, metrics and tables write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Month => "month",
            Self::Anchored => "anchored",
            Self::Lifetime => "lifetime",
        }
    }
}

impl Meter {
    /// Whether requests of this method count. As with rules, GET includes HEAD.
    pub fn counts(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| answers(own.as_str(), method))
    }
}

impl RuleSettings {
    /// The rule as the router reads it.
    pub fn rule(&self) -> Rule {
        Rule {
            pattern: match &self.scope {
                Scope::Prefix(prefix) => Pattern::Prefix(prefix.as_str().to_owned()),
                Scope::Path(path) => Pattern::Path(path.as_str().to_owned()),
            },
            methods: self.methods.iter().map(Method::to_string).collect(),
            access: match &self.demand {
                Demand::Feature(feature) => Access::Feature(feature.shared()),
                Demand::Access(AccessKind::Always) => Access::Always,
                Demand::Access(AccessKind::Deny) => Access::Deny,
            },
        }
    }

    /// The feature it asks for, if it asks for one.
    pub fn feature(&self) -> Option<&FeatureName> {
        match &self.demand {
            Demand::Feature(feature) => Some(feature),
            Demand::Access(_) => None,
        }
    }
}

impl RouteSettings {
    /// The router that these settings make.
    ///
    /// # Errors
    /// For the first rule or alias that is wrong, or matches what an earlier one does. A configuration that was read by
    /// [`super::parse`] has none.
    pub fn routes(&self) -> Result<Routes, RouteError> {
        Routes::try_new(self.rules.iter().map(RuleSettings::rule).collect(), self.options())
    }

    /// How the router applies the rules.
    pub fn options(&self) -> RouteOptions {
        RouteOptions {
            unmatched: match self.unmatched {
                Unmatched::Allow => crate::routes::Unmatched::Allow,
                Unmatched::Deny => crate::routes::Unmatched::Deny,
            },
            ambiguous: match self.ambiguous {
                Ambiguous::Strictest => crate::routes::Ambiguous::Strictest,
                Ambiguous::Refuse => crate::routes::Ambiguous::Refuse,
            },
            path_aliases: self.path_aliases.iter().map(PathPattern::to_string).collect(),
        }
    }

    /// All that is wrong with the rules and aliases as a whole. What is wrong is left out, and the rest tried again.
    pub(super) fn problems(&self) -> Vec<(Place, String, Option<usize>)> {
        let mut options = self.options();
        let mut rules: Vec<(usize, Rule)> = self.rules.iter().map(RuleSettings::rule).enumerate().collect();
        let mut aliases: Vec<usize> = (0..options.path_aliases.len()).collect();
        let mut found = Vec::new();
        while found.len() < MAX_PROBLEMS {
            let tried = rules.iter().map(|(_, rule)| rule.clone()).collect();
            let Err(error) = Routes::try_new(tried, options.clone()) else {
                break;
            };
            let other = error.other().map(|index| rules[index].0);
            let place = match error.place() {
                Place::Rule(index) => Place::Rule(rules.remove(index).0),
                Place::Alias(index) => {
                    options.path_aliases.remove(index);
                    Place::Alias(aliases.remove(index))
                }
            };
            found.push((place, error.to_string(), other));
        }
        found
    }
}

/// Why a text is no pattern of paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidPattern(String);

impl PathPattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PathPattern {
    type Err = InvalidPattern;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The router says what a pattern is: a rule of this one alone must be possible.
        let rule = Rule { pattern: Pattern::Prefix(text.to_owned()), methods: Vec::new(), access: Access::Deny };
        match Routes::try_new(vec![rule], RouteOptions::default()) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(error) => Err(InvalidPattern(format!("{text:?}: {error}"))),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_type!(PathPattern, pattern: r"^/[^ \\?#%;*<>]*$", examples: ["/api/v1/crm", "/api/v1/customers/{id}/tickets"]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_configuration_name_windows_alike() {
        for window in [Window::Day, Window::Month, Window::Anchored, Window::Lifetime] {
            assert_eq!(serde_json::to_value(window).expect("a text"), window.as_str());
        }
    }

    #[test]
    fn a_meter_counts_its_methods() {
        let method = |name: &str| name.parse::<Method>().expect("a method");
        let meter = |methods: &[&str]| Meter {
            methods: methods.iter().map(|name| method(name)).collect(),
            count: CountKind::default(),
            window: Window::default(),
            limit: LimitKind::default(),
        };
        for (methods, asked, counts) in [
            (&[][..], "POST", true),
            (&[], "PROPFIND", true),
            (&["POST", "PUT"], "PUT", true),
            (&["POST", "PUT"], "GET", false),
            (&["GET"], "HEAD", true),
            (&["HEAD"], "GET", false),
        ] {
            assert_eq!(meter(methods).counts(asked), counts, "{asked} by {methods:?}");
        }
    }
}
