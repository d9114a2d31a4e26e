//! What becomes of a request, and why, told to people and programs. It asks the gate itself, and counts nothing.

use std::fmt;
use std::sync::Arc;

use licensing::answer::Format;
use licensing::enforcement::{Mode, Rollout};
use licensing::license::{License, Validity};
use licensing::path::{Reading, Target};
use licensing::reason::Reason;
use licensing::routes::{Access, Matched, Refusal};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::access_log::ANSWERED;
use crate::clock::wall_clock;
use crate::gate::{FeatureUse, Gate, Identity, Policy, Ruling};
use crate::metrics::Outcome;
use crate::snapshot::Snapshots;

/// The request that is asked about.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Who sends it; none: nobody that can be told.
    pub tenant: Option<TenantId>,
    /// Its method.
    pub method: String,
    /// Its target as it is sent, query and all.
    pub path: String,
}

/// Explains by what is in use.
#[derive(Clone)]
pub(crate) struct Explainer {
    gate: Arc<Gate>,
    snapshots: Snapshots,
}

/// What becomes of a request, and why.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// As metrics and log write it.
    decision: &'static str,
    /// The status of our refusal; none where there is none.
    status: Option<u16>,
    /// Why it is refused, or would be in `enforce`.
    reason: Option<&'static str>,
    /// A sentence.
    message: String,
    tenant: Option<TenantId>,
    method: String,
    path: String,
    /// The feature that decided.
    feature: Option<Arc<str>>,
    /// The rules that decided; the first is the one that the access log names.
    rules: Vec<ExplainedRule>,
    /// Each way in which a backend may read the path, and the most specific rule there.
    readings: Vec<ExplainedReading>,
    mode: ExplainedMode,
    license: Option<ExplainedLicense>,
    /// The features that the request is counted for, and how much of their limits is used without it.
    usage: Vec<ExplainedUse>,
    /// The body of our answer.
    answer: Option<Value>,
    /// What would change the decision.
    remedies: Vec<Remedy>,
    config_hash: String,
    at: Timestamp,
}

/// A rule that decided.
#[derive(Debug, Serialize)]
struct ExplainedRule {
    /// As the access log names it.
    rule: String,
    /// Its place in the configuration.
    key: String,
    /// What it demands: a feature, `always` or `deny`.
    demands: String,
}

/// One way to read a path.
#[derive(Debug, Serialize)]
struct ExplainedReading {
    path: String,
    rule: Option<String>,
}

/// Which mode applied, and why.
#[derive(Debug, Serialize)]
struct ExplainedMode {
    applied: &'static str,
    configured: &'static str,
    because: String,
}

/// The licence that was decided on.
#[derive(Debug, Serialize)]
struct ExplainedLicense {
    plan: Arc<str>,
    features: Vec<String>,
    valid_from: Timestamp,
    valid_until: Timestamp,
    auto_renew: bool,
    /// `valid`, `grace`, `expired` or `not_yet_valid`.
    state: &'static str,
    grace_until: Option<Timestamp>,
    revision: i64,
    /// Which layer had it: memory, redis or source.
    layer: Option<&'static str>,
    /// How long ago the source was asked, in milliseconds.
    age_ms: Option<u128>,
    /// `stale` where no store answered.
    fallback: Option<&'static str>,
}

/// How a feature stands that is metered.
#[derive(Debug, Serialize)]
struct ExplainedUse {
    feature: Arc<str>,
    /// None: as much as is asked for, or nobody has looked, see `decision` and `reason`.
    limit: Option<u64>,
    /// Of that limit, what is under way included.
    used: Option<u64>,
    /// `day`, `month`, `anchored` or `lifetime`.
    window: Option<&'static str>,
    /// None: never, or of no use.
    resets_at: Option<Timestamp>,
}

/// Something that would change the decision.
#[derive(Debug, Serialize)]
struct Remedy {
    what: String,
    /// As it is typed, if it is a command.
    command: Option<String>,
}

impl Explainer {
    /// By what this gate and these snapshots say.
    pub(crate) fn new(gate: Arc<Gate>, snapshots: Snapshots) -> Self {
        Self { gate, snapshots }
    }

    /// Decide as for a request, and tell how.
    pub(crate) async fn explain(&self, asked: Asked) -> Explanation {
        let snapshot = self.snapshots.load_full();
        let policy = &snapshot.policy;
        if snapshot.api.endpoint(asked.path.as_bytes()).is_some() {
            return Explanation::of_own(asked, policy.enforcement.mode(), snapshot.config_hash.clone());
        }
        let route = policy.routes.resolve(&asked.method, asked.path.as_bytes());
        let rules = route.as_ref().map(|route| route.rules().to_vec()).unwrap_or_default();
        let refusal = route.as_ref().err().copied();
        let identity = asked.tenant.map_or(Identity::Missing, Identity::Tenant);
        let (ruling, uses) = self.gate.try_out(policy, &asked.method, route, identity).await;
        let (now, uses) = (ruling.decided_at, &*uses);
        let case = Case { policy, asked: &asked, ruling: &ruling, rules: &rules, uses, refusal, now };
        case.explain(snapshot.config_hash.clone(), self.gate.is_off())
    }
}

/// All that is known of a request that was tried out.
struct Case<'a> {
    policy: &'a Policy,
    asked: &'a Asked,
    ruling: &'a Ruling,
    rules: &'a [Matched<'a>],
    uses: &'a [FeatureUse],
    refusal: Option<Refusal>,
    now: Timestamp,
}

impl Case<'_> {
    fn explain(&self, config_hash: String, off: bool) -> Explanation {
        let Self { policy, asked, ruling, .. } = self;
        let answer =
            ruling.denial().map(|denial| policy.answers.denial(&denial, &policy.plans, self.now, "", Format::Json));
        let body = answer.as_ref().and_then(|answer| serde_json::from_slice::<Value>(&answer.body).ok());
        let said = body.as_ref().and_then(|body| body["message"].as_str().map(str::to_owned));
        let denied = ruling.outcome == Outcome::Denied;
        Explanation {
            decision: ruling.outcome.as_str(),
            status: ruling.reason.filter(|_| denied).map(|reason| policy.answers.status(reason)),
            reason: ruling.reason.map(Reason::name),
            message: self.message(said),
            tenant: asked.tenant,
            method: asked.method.clone(),
            path: asked.path.clone(),
            feature: ruling.feature.clone(),
            rules: self.rules.iter().map(ExplainedRule::of).collect(),
            readings: self.readings(),
            mode: self.mode(off),
            license: ruling.entry.as_ref().map(|entry| self.license(&entry.license)),
            usage: self.usage(),
            answer: body.filter(|_| denied).map(without_request_id),
            remedies: self.remedies(),
            config_hash,
            at: self.now,
        }
    }

    fn message(&self, said: Option<String>) -> String {
        let ruling = self.ruling;
        let feature = ruling.feature.as_deref().unwrap_or_default();
        match ruling.outcome {
            Outcome::Denied => match self.refusal {
                Some(refusal) => format!("{} ({refusal})", said.unwrap_or_default()),
                None => said.unwrap_or_default(),
            },
            Outcome::Shadowed => format!("It goes on, but once enforced: {}", said.unwrap_or_default()),
            Outcome::FailedOpen => {
                "It goes on without a licence, since no store can tell it and on_failure is allow.".to_owned()
            }
            Outcome::Open if self.rules.is_empty() => "It goes on: no rule matches.".to_owned(),
            Outcome::Open => "It goes on: the rule asks for no licence.".to_owned(),
            Outcome::Allowed if ruling.mode == Mode::Off => "It goes on: no licence is looked up.".to_owned(),
            Outcome::Allowed => match (ruling.grace_until, &ruling.entry) {
                (Some(until), _) => {
                    format!("It goes on: the licence includes {feature}, has ended, and is in its grace until {until}.")
                }
                (None, Some(_)) => format!("It goes on: the licence includes {feature}."),
                (None, None) => "It goes on without a tenant, since tenant.missing is allow.".to_owned(),
            },
        }
    }

    /// Empty where the path can be read in one way, or in none.
    fn readings(&self) -> Vec<ExplainedReading> {
        let Ok(target) = Target::parse(self.asked.path.as_bytes()) else { return Vec::new() };
        if !target.is_ambiguous() {
            return Vec::new();
        }
        let read = |(reading, matched): (Reading<'_>, Option<Matched<'_>>)| ExplainedReading {
            path: String::from_utf8_lossy(reading.bytes()).into_owned(),
            rule: matched.map(|matched| matched.rule.to_string()),
        };
        self.policy.routes.readings(&self.asked.method, &target).map(read).collect()
    }

    fn mode(&self, off: bool) -> ExplainedMode {
        let enforcement = &self.policy.enforcement;
        // Of several rules the one by which [`Policy::mode_for`] has decided.
        let modes = self.rules.iter().map(|matched| self.policy.rules[matched.index].mode);
        let of_rule = modes.max_by_key(|mode| enforcement.mode_for(*mode, self.asked.tenant.as_ref())).flatten();
        let named = match of_rule {
            Some(mode) => format!("the rule's mode is {}", mode.as_str()),
            None => format!("enforcement.mode is {}", enforcement.mode().as_str()),
        };
        let because = match (off, of_rule.unwrap_or(enforcement.mode())) {
            (true, _) => "licensing is off, since its tables were dropped".to_owned(),
            (false, Mode::Enforce) => format!("{named}, {}", in_rollout(enforcement.rollout(), self.asked.tenant)),
            (false, _) => named,
        };
        ExplainedMode { applied: self.ruling.mode.as_str(), configured: enforcement.mode().as_str(), because }
    }

    fn license(&self, license: &License) -> ExplainedLicense {
        let (state, grace_until) = match license.validity(self.policy.grace, self.now) {
            Validity::NotYet => ("not_yet_valid", None),
            Validity::Valid => ("valid", None),
            Validity::Grace { until } => ("grace", Some(until)),
            Validity::Expired => ("expired", None),
        };
        ExplainedLicense {
            plan: Arc::clone(&license.plan),
            features: license.features_at(self.now).map(str::to_owned).collect(),
            valid_from: license.valid_from,
            valid_until: license.valid_until,
            auto_renew: license.auto_renew,
            state,
            grace_until,
            revision: license.revision,
            layer: self.ruling.layer.map(crate::licenses::Layer::as_str),
            age_ms: self.ruling.age.map(|age| age.as_millis()),
            fallback: self.ruling.fallback,
        }
    }

    /// What the ruling says of a limit comes first: it is the one that decided.
    fn usage(&self) -> Vec<ExplainedUse> {
        let decided = self.ruling.usage.zip(self.ruling.feature.clone());
        let decided = decided.map(|(exhausted, feature)| FeatureUse { feature, of_limit: Some(exhausted) });
        let named = decided.as_ref().map(|of| Arc::clone(&of.feature));
        let others = self.uses.iter().filter(|of| named.as_ref() != Some(&of.feature)).cloned();
        decided.into_iter().chain(others).map(ExplainedUse::of).collect()
    }

    /// What an operator can do about a refusal.
    fn remedies(&self) -> Vec<Remedy> {
        let Some(reason) = self.ruling.reason else { return Vec::new() };
        let tenant = self.asked.tenant.map(|tenant| tenant.to_string()).unwrap_or_default();
        let feature = self.ruling.feature.as_deref().unwrap_or_default();
        let plans = || self.policy.plans.including(feature);
        let set_plan = |plan: &str| {
            Remedy::command(format!("put it on {plan}"), format!("license set-plan {tenant} {plan} --reason '…'"))
        };
        let say = |what: &str| vec![Remedy { what: what.to_owned(), command: None }];
        match reason {
            Reason::FeatureNotInPlan => {
                let grant = format!("license grant {tenant} {feature} --for 4h --reason '…'");
                plans()
                    .map(set_plan)
                    .chain([Remedy::command(format!("give it {feature} for a while"), grant)])
                    .collect()
            }
            Reason::NoLicense => plans().map(set_plan).collect(),
            Reason::LicenseExpired => {
                let extend = format!("license extend {tenant} --for 30d --reason '…'");
                vec![Remedy::command("extend it".to_owned(), extend)]
            }
            Reason::LicenseNotYetValid => say("wait until it begins, or set its valid_from to an earlier time"),
            Reason::UsageLimitExceeded => {
                let limit = self.ruling.usage.map_or(0, |usage| usage.limit);
                let grant = format!("license grant {tenant} {feature} --limit-delta 100 --reason '…'");
                let wait = self.ruling.usage.and_then(|usage| usage.resets_at());
                let wait = wait.map(|then| Remedy { what: format!("wait until {then}"), command: None });
                let plans = self.policy.plans.allowing_more(feature, limit);
                // That the tenant's own plan would allow more by now, it gets by being put on it again.
                plans
                    .map(set_plan)
                    .chain([Remedy::command(format!("give it more of {feature}"), grant)])
                    .chain(wait)
                    .collect()
            }
            Reason::TenantMissing => {
                say("send what tenant.sources name, from one of trusted_proxies where it is a header")
            }
            Reason::TenantInvalid => say("send one tenant id, a UUID"),
            Reason::RequestMalformed => say("send a path that can be read"),
            Reason::RequestAmbiguous => say("send a plain path, or set routes.ambiguous to strictest"),
            Reason::StoreUnavailable => say("see that Postgres or Redis answers: /metrics says which does not"),
            Reason::RouteDenied => say("change the rule, or routes.unmatched where no rule matches"),
        }
    }
}

impl ExplainedRule {
    fn of(matched: &Matched<'_>) -> Self {
        let demands = match &matched.rule.access {
            Access::Feature(feature) => format!("feature {feature}"),
            Access::Always => "always".to_owned(),
            Access::Deny => "deny".to_owned(),
        };
        Self { rule: matched.rule.to_string(), key: format!("routes.rules[{}]", matched.index), demands }
    }
}

impl ExplainedUse {
    fn of(stands: FeatureUse) -> Self {
        let FeatureUse { feature, of_limit } = stands;
        Self {
            feature,
            limit: of_limit.map(|of| of.limit),
            used: of_limit.map(|of| of.used),
            window: of_limit.map(|of| of.period.window.as_str()),
            resets_at: of_limit.and_then(|of| of.resets_at()),
        }
    }
}

/// `tickets: 20 of 100 in this month, until 2026-12-01T00:00:00Z`
impl fmt::Display for ExplainedUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(limit), Some(used), Some(window)) = (self.limit, self.used, self.window) else {
            return write!(f, "{}: counted, no limit holds", self.feature);
        };
        write!(f, "{}: {used} of {limit} used, window {window}", self.feature)?;
        match self.resets_at {
            Some(resets_at) => write!(f, ", until {resets_at}"),
            None => Ok(()),
        }
    }
}

impl Remedy {
    fn command(what: String, arguments: String) -> Self {
        Self { what, command: Some(format!("dotmac-license-proxy {arguments}")) }
    }
}

impl Explanation {
    /// Of a request that the proxy serves itself: the gate has no say in it.
    fn of_own(asked: Asked, mode: Mode, config_hash: String) -> Self {
        let Asked { tenant, method, path } = asked;
        let message =
            "The proxy answers it itself, whatever the rules say: it is a path of the licence API, see `api`.";
        let because = format!("enforcement.mode is {}", mode.as_str());
        Self {
            decision: ANSWERED,
            status: None,
            reason: None,
            message: message.to_owned(),
            tenant,
            method,
            path,
            feature: None,
            rules: Vec::new(),
            readings: Vec::new(),
            mode: ExplainedMode { applied: mode.as_str(), configured: mode.as_str(), because },
            license: None,
            usage: Vec::new(),
            answer: None,
            remedies: Vec::new(),
            config_hash,
            at: wall_clock(),
        }
    }

    /// Whether the request is refused.
    pub(crate) fn is_denial(&self) -> bool {
        self.status.is_some()
    }
}

/// A page for a person.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.decision)?;
        if let Some(status) = self.status {
            write!(f, " with {status}")?;
        }
        if let Some(reason) = self.reason {
            write!(f, ", {reason}")?;
        }
        let mut line = |name: &str, text: &dyn fmt::Display| write!(f, "\n  {name:<9} {text}");
        let tenant = self.tenant.map_or("none".to_owned(), |tenant| tenant.to_string());
        line("request", &format_args!("{} {}", self.method, self.path))?;
        line("tenant", &tenant)?;
        line("why", &self.message)?;
        for rule in &self.rules {
            line("rule", &format_args!("{} ({}): {}", rule.rule, rule.key, rule.demands))?;
        }
        if self.rules.is_empty() {
            line("rule", &if self.decision == ANSWERED { "none is asked" } else { "none matches" })?;
        }
        for reading in &self.readings {
            line("reading", &format_args!("{}: {}", reading.path, reading.rule.as_deref().unwrap_or("no rule")))?;
        }
        line("mode", &format_args!("{}, since {}", self.mode.applied, self.mode.because))?;
        match &self.license {
            Some(license) => {
                line("licence", &format_args!("plan {}: {}", license.plan, license.features.join(", ")))?;
                let renew = if license.auto_renew { ", renewed by itself" } else { "" };
                let span = format!("{} to {}{renew}", license.valid_from, license.valid_until);
                line("", &format_args!("{}, {span}", license.state))?;
                let layer = license.layer.unwrap_or("nowhere");
                let age = license.age_ms.unwrap_or_default();
                line("", &format_args!("revision {}, from {layer}, {age} ms old", license.revision))?;
            }
            None => line("licence", &"none was looked at, or there is none")?,
        }
        for usage in &self.usage {
            line("usage", usage)?;
        }
        for remedy in &self.remedies {
            line("remedy", &remedy.what)?;
            if let Some(command) = &remedy.command {
                line("", &format_args!("  {command}"))?;
            }
        }
        line("config", &self.config_hash)
    }
}

fn in_rollout(rollout: &Rollout, tenant: Option<TenantId>) -> String {
    let percent = rollout.percent;
    match tenant {
        None => format!("and {percent} % of the tenants are enforced: a request without one only once all are"),
        Some(tenant) if rollout.exclude.contains(&tenant) => "but the rollout excludes the tenant".to_owned(),
        Some(tenant) if rollout.include.contains(&tenant) => "and the rollout includes the tenant by name".to_owned(),
        Some(_) if percent >= 100.0 => "for all tenants".to_owned(),
        Some(tenant) => {
            let place = rollout.place(&tenant);
            let word = if place < percent { "and" } else { "but" };
            format!("{word} the rollout is at {percent} %, and the tenant's place is {place:.2} %")
        }
    }
}

/// There was no request, so there is no id to look for.
fn without_request_id(mut body: Value) -> Value {
    if let Some(members) = body.as_object_mut() {
        members.remove("request_id");
    }
    body
}
