//! The gate: facts about a request become a licence, the licence a ruling. The only place that fails open.

mod charges;

use std::sync::Arc;
use std::time::{Duration, Instant};

use licensing::answer::Answers;
use licensing::config::{Meter, OnFailure};
use licensing::decide::{Allowance, Decision, Denial, Need, Standing, decide};
use licensing::enforcement::{Enforcement, Mode};
use licensing::license::License;
use licensing::plans::Plans;
use licensing::quota::Exhausted;
use licensing::reason::Reason;
use licensing::routes::{Access, Matched, Refusal, Route, Routes, Rule};
use licensing::tenant::{TenantId, TokenFault};
use licensing::time::Timestamp;
use smallvec::SmallVec;

pub(crate) use self::charges::{Charges, FeatureUse};
use self::charges::{Held, Metered, Till};
use crate::clock::wall_clock;
use crate::licenses::{Entry, Found, Layer, Licenses, LookUp};
use crate::metrics::{Metrics, Outcome};
use crate::record::{Moment, Recorder};

/// What configuration says of rules, plans and enforcement, compiled.
pub(crate) struct Policy {
    /// The rules.
    pub routes: Routes,
    /// What a rule adds to the match, by its place.
    pub rules: Vec<RulePolicy>,
    /// The plans, cheapest first.
    pub plans: Plans,
    /// Off, shadow or enforce, and for whom.
    pub enforcement: Enforcement,
    /// How refusals are said.
    pub answers: Answers,
    /// How long past its end an `auto_renew` licence is served.
    pub grace: Duration,
    /// What becomes of requests whose licence no store can tell.
    pub on_failure: OnFailure,
    /// Whether requests without a tenant pass.
    pub without_tenant: bool,
}

/// What a rule says beside what it matches.
pub(crate) struct RulePolicy {
    /// As the access log names it.
    pub label: Arc<str>,
    /// Overrides the mode of [`Policy::enforcement`]; for whom it holds is the rollout's matter all the same.
    pub mode: Option<Mode>,
    /// Overrides [`Policy::on_failure`].
    pub on_failure: Option<OnFailure>,
    /// How its requests are counted, if they are.
    pub meter: Option<Meter>,
}

/// Who a request claims to come from, by the configured sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A tenant.
    Tenant(TenantId),
    /// No source names one.
    Missing,
    /// What names it is no tenant id.
    Invalid,
    /// A token is there that should name it, and is not to be believed.
    BadToken(TokenFault),
    /// There are several, and a backend might pick another than we do. Refused on every route.
    Conflicting,
}

/// The right to be forwarded. Only the gate makes one, so no request reaches the upstream around it.
#[derive(Debug)]
pub(crate) struct Permit(());

/// What became of a request, and everything there is to say about why.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// There if the request goes on.
    pub permit: Option<Permit>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was refused, or would have been in `enforce`.
    pub reason: Option<Reason>,
    /// The feature that decided.
    pub feature: Option<Arc<str>>,
    /// The rule that decided, as the access log names it.
    pub rule: Option<Arc<str>>,
    /// What is wrong with the token that should have named the tenant, where that is the reason.
    pub token: Option<TokenFault>,
    /// The limit that is used up, where that is the reason.
    pub usage: Option<Exhausted>,
    /// The licence it was decided on.
    pub entry: Option<Arc<Entry>>,
    /// Where that came from.
    pub layer: Option<Layer>,
    /// Its age.
    pub age: Option<Duration>,
    /// What it is charged once it is served.
    pub charges: Charges,
    /// What was used in place of a confirmed licence: `stale` or `open`.
    pub fallback: Option<&'static str>,
    /// When the grace period ends that lets the request through.
    pub grace_until: Option<Timestamp>,
    /// The mode that applied.
    pub mode: Mode,
    /// The moment it was decided for.
    pub decided_at: Timestamp,
    /// How long it took to decide.
    pub took: Duration,
}

/// How far a request has come.
pub(crate) enum Step<'p> {
    /// It is decided.
    Ruled(Ruling),
    /// The stores have to be asked first.
    Ask(Question<'p>),
}

/// A request that memory can't decide on.
pub(crate) struct Question<'p> {
    case: Case<'p>,
    tenant: TenantId,
    about: About,
}

/// What the stores are asked.
enum About {
    /// The licence; `again`: memory has an answer, a denial, that may be outdated.
    License { again: bool },
    /// How much is left of what this licence allows.
    Usage(LookUp),
}

/// What a request comes to before its licence is known.
enum Considered<'p> {
    Ruled(Ruling),
    NeedsLicense(Case<'p>, TenantId),
}

/// The gate.
pub(crate) struct Gate {
    licenses: Arc<Licenses>,
    till: Till,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// Put it together.
    pub(crate) fn new(licenses: Arc<Licenses>, recorder: Arc<Recorder>, metrics: Arc<Metrics>) -> Self {
        Self { licenses, till: Till::new(recorder, Arc::clone(&metrics)), metrics }
    }

    /// Decide on a request: its method, its raw target, and who it claims to come from. Nearly every request ends here,
    /// without waiting; where memory does not know the licence, the question is left for [`Gate::ask`].
    pub(crate) fn rule<'p>(
        &self,
        policy: &'p Policy,
        method: &str,
        raw_target: &[u8],
        identity: Identity,
        now: Instant,
    ) -> Step<'p> {
        let route = policy.routes.resolve(method, raw_target);
        let (case, tenant) = match self.consider(policy, method, route, identity, now) {
            Considered::Ruled(ruling) => return Step::Ruled(self.count(ruling, identity)),
            Considered::NeedsLicense(case, tenant) => (case, tenant),
        };
        self.metrics.cache_requests.inc();
        let Some(look_up) = self.licenses.peek(tenant, now) else {
            return Step::Ask(Question { case, tenant, about: About::License { again: false } });
        };
        let ruling = match self.rule_now(&case, look_up) {
            Ok(ruling) if self.may_be_outdated(&ruling, now) => {
                return Step::Ask(Question { case, tenant, about: About::License { again: true } });
            }
            Ok(ruling) => ruling,
            Err(look_up) => {
                self.metrics.cache_hits.inc();
                return Step::Ask(Question { case, tenant, about: About::Usage(look_up) });
            }
        };
        self.metrics.cache_hits.inc();
        Step::Ruled(self.count(ruling, identity))
    }

    /// Ask the stores, and decide.
    pub(crate) async fn ask(&self, question: Question<'_>) -> Ruling {
        let Question { case, tenant, about } = question;
        let (look_up, asked_source) = match about {
            About::License { again: true } => self.licenses.ask_again(tenant).await,
            About::License { again: false } => self.licenses.ask(tenant).await,
            // Counted when it was looked up.
            About::Usage(look_up) => (look_up, true),
        };
        if !asked_source {
            self.metrics.cache_hits.inc();
        }
        let ruling = self.rule_patiently(&case, look_up).await;
        self.count(ruling, case.identity)
    }

    /// Whether licensing is off, since somebody has dropped its tables.
    pub(crate) fn is_off(&self) -> bool {
        self.licenses.is_off()
    }

    /// Decide as for a request, from beginning to end, and count nothing. Beside the ruling: how the features stand of which
    /// the request would have been counted.
    pub(crate) async fn try_out<'p>(
        &self,
        policy: &'p Policy,
        method: &str,
        route: Result<Route<'p>, Refusal>,
        identity: Identity,
    ) -> (Ruling, Vec<FeatureUse>) {
        let now = Instant::now();
        let mut ruling = match self.consider(policy, method, route, identity, now) {
            Considered::Ruled(ruling) => ruling,
            Considered::NeedsLicense(case, tenant) => {
                let look_up = match self.licenses.peek(tenant, now) {
                    Some(look_up) => look_up,
                    None => self.licenses.ask(tenant).await.0,
                };
                let mut ruling = self.rule_patiently(&case, look_up).await;
                if self.may_be_outdated(&ruling, now) {
                    ruling.charges.settle(None);
                    ruling = self.rule_patiently(&case, self.licenses.ask_again(tenant).await.0).await;
                }
                ruling
            }
        };
        let usage = ruling.charges.uses().collect();
        ruling.charges.settle(None);
        (ruling, usage)
    }

    /// Decide on a licence, and on what is left of its limits as far as that is known here.
    ///
    /// # Errors
    /// With the licence, when the store has to be asked how much is left.
    fn rule_now(&self, case: &Case<'_>, look_up: LookUp) -> Result<Ruling, LookUp> {
        if case.metered.is_empty() {
            return Ok(case.rule_on(Some(look_up), Allowance::Within));
        }
        let ruling = case.rule_on(Some(look_up.clone()), Allowance::Within);
        let Some((license, now)) = case.held_against(&ruling) else { return Ok(self.charge(case, ruling)) };
        match self.till.hold_now(&case.metered, license, now) {
            Some(held) => Ok(self.close(case, look_up, ruling, held)),
            None => Err(look_up),
        }
    }

    /// The same, and ask the store where that has to be.
    async fn rule_patiently(&self, case: &Case<'_>, look_up: LookUp) -> Ruling {
        let look_up = match self.rule_now(case, look_up) {
            Ok(ruling) => return ruling,
            Err(look_up) => look_up,
        };
        let ruling = case.rule_on(Some(look_up.clone()), Allowance::Within);
        let Some((license, now)) = case.held_against(&ruling) else { return self.charge(case, ruling) };
        let held = self.till.hold(&case.metered, license, now).await;
        self.close(case, look_up, ruling, held)
    }

    /// Charge a request whatever is used, if it goes on: there is no licence whose limits it could be held against, or it is
    /// denied anyway once it is enforced.
    fn charge(&self, case: &Case<'_>, mut ruling: Ruling) -> Ruling {
        if let Some(tenant) = case.identity.tenant()
            && ruling.permit.is_some()
            && !self.licenses.is_off()
        {
            self.till.charge(&mut ruling.charges, &case.metered, tenant, ruling.decided_at);
        }
        ruling
    }

    /// Decide once more where limits leave nothing, and charge what is held.
    fn close(&self, case: &Case<'_>, look_up: LookUp, within: Ruling, held: Held<'_>) -> Ruling {
        let mut ruling = match held.allowance() {
            Allowance::Within => within,
            allowance => case.rule_on(Some(look_up), allowance),
        };
        if let Some(tenant) = case.identity.tenant() {
            ruling.charges = self.till.close(held, tenant, ruling.permit.is_some(), ruling.decided_at);
        }
        ruling.took = case.begun.elapsed();
        ruling
    }

    /// A request whose headers alone are reason enough to refuse it, in any mode: framing is not a matter of licences.
    pub(crate) fn refuse_framing(&self, policy: &Policy, now: Instant) -> Ruling {
        let case = Case { mode: Mode::Enforce, ..Case::of(policy, Identity::Missing, now) };
        let ruling = case.conclude(Need::Refused(Reason::RequestMalformed), None, Allowance::Within);
        self.count(ruling, Identity::Missing)
    }

    /// As far as it goes without a licence.
    fn consider<'p>(
        &self,
        policy: &'p Policy,
        method: &str,
        route: Result<Route<'p>, Refusal>,
        identity: Identity,
        now: Instant,
    ) -> Considered<'p> {
        let rules = route.as_ref().map(Route::rules).unwrap_or_default();
        let mode = match self.licenses.is_off() {
            true => Mode::Off,
            false => policy.mode_for(rules, identity.tenant().as_ref()),
        };
        let case = Case { mode, ..Case::of(policy, identity, now) };
        let ruled = |case: Case<'_>, need| Considered::Ruled(case.conclude(need, None, Allowance::Within));
        let route = match route {
            Ok(_) if identity == Identity::Conflicting => return ruled(case, Need::Refused(Reason::TenantInvalid)),
            Err(Refusal::Malformed(_)) => return ruled(case, Need::Refused(Reason::RequestMalformed)),
            Err(Refusal::Ambiguous) => return ruled(case, Need::Refused(Reason::RequestAmbiguous)),
            Ok(route) => route,
        };
        let rule = route.rules().first().map(|matched| &policy.rules[matched.index].label);
        let case = Case { rule, ..case };
        let need = match route {
            Route::Denied(_) => return ruled(case, Need::Denied),
            Route::Always(_) | Route::Unmatched => return ruled(case, Need::Nothing),
            Route::Gated(rules) => rules,
        };
        let features = need.iter().filter_map(|matched| feature_of(matched.rule)).collect();
        let allow_on_failure = need.iter().all(|matched| policy.fails_open(matched.index));
        let case = Case { features, allow_on_failure, metered: policy.metered(method, &need), ..case };
        match identity {
            Identity::Tenant(tenant) if mode != Mode::Off => Considered::NeedsLicense(case, tenant),
            _ => {
                let ruling = case.rule_on(None, Allowance::Within);
                Considered::Ruled(self.charge(&case, ruling))
            }
        }
    }

    /// Whether memory denies what Redis may know to be allowed by now.
    fn may_be_outdated(&self, ruling: &Ruling, now: Instant) -> bool {
        ruling.outcome == Outcome::Denied
            && ruling.entry.as_ref().is_some_and(|entry| self.licenses.may_be_outdated(entry, now))
    }

    fn count(&self, ruling: Ruling, identity: Identity) -> Ruling {
        let metrics = &self.metrics;
        if let Some(layer) = ruling.layer {
            metrics.look_ups.of(layer).inc();
        }
        metrics.decisions.of(ruling.outcome).inc();
        if let Some(reason) = ruling.reason {
            let feature = ruling.feature.as_deref().unwrap_or_default();
            match ruling.outcome {
                Outcome::Denied => metrics.denied(feature, reason),
                _ => metrics.shadowed(feature, reason),
            }
            if let (Some(tenant), Some(feature)) = (identity.tenant(), &ruling.feature) {
                let shadow = ruling.outcome != Outcome::Denied;
                self.till.recorder().denied(tenant, feature, reason, shadow, ruling.decided_at);
            }
        }
        for feature in ruling.charges.beyond() {
            metrics.beyond_limit(feature);
        }
        if ruling.fallback == Some("stale") {
            metrics.stale_served.inc();
        }
        if ruling.grace_until.is_some() {
            metrics.grace_served.inc();
        }
        metrics.gate_duration.observe(ruling.took.as_secs_f64());
        ruling
    }
}

impl Policy {
    /// The mode for what falls under `rules`: of several the strictest, as with the rules themselves.
    pub(crate) fn mode_for(&self, rules: &[Matched<'_>], tenant: Option<&TenantId>) -> Mode {
        let modes = rules.iter().map(|matched| self.enforcement.mode_for(self.rules[matched.index].mode, tenant));
        modes.max().unwrap_or_else(|| self.enforcement.mode_for(None, tenant))
    }

    /// The features that these rules count for a request of this method, each once: hard where one rule says so.
    fn metered<'p>(&'p self, method: &str, rules: &[Matched<'p>]) -> SmallVec<[Metered<'p>; 1]> {
        let mut list: SmallVec<[Metered<'p>; 1]> = SmallVec::new();
        for matched in rules {
            let (Some(meter), Some(feature)) = (&self.rules[matched.index].meter, feature_of(matched.rule)) else {
                continue;
            };
            if !meter.counts(method) {
                continue;
            }
            let metered = Metered { feature, meter, fails_open: self.fails_open(matched.index) };
            match list.iter_mut().find(|other| other.feature == feature) {
                None => list.push(metered),
                Some(other) => other.join(metered),
            }
        }
        list
    }

    fn fails_open(&self, rule: usize) -> bool {
        self.rules[rule].on_failure.unwrap_or(self.on_failure) == OnFailure::Allow
    }
}

impl Ruling {
    /// The denial, to be said.
    pub(crate) fn denial(&self) -> Option<Denial<'_>> {
        Some(Denial {
            reason: self.reason?,
            feature: self.feature.as_deref(),
            license: self.entry.as_deref().map(|entry| &entry.license),
            token: self.token,
            usage: self.usage,
        })
    }
}

impl Identity {
    /// The tenant, if there is one that is believed.
    pub(crate) fn tenant(self) -> Option<TenantId> {
        match self {
            Self::Tenant(tenant) => Some(tenant),
            Self::Missing | Self::Invalid | Self::BadToken(_) | Self::Conflicting => None,
        }
    }
}

/// What is known of a request before its licence.
struct Case<'p> {
    policy: &'p Policy,
    identity: Identity,
    mode: Mode,
    rule: Option<&'p Arc<str>>,
    features: SmallVec<[&'p Arc<str>; 1]>,
    /// Those of which it is counted.
    metered: SmallVec<[Metered<'p>; 1]>,
    allow_on_failure: bool,
    begun: Instant,
}

impl<'p> Case<'p> {
    fn of(policy: &'p Policy, identity: Identity, begun: Instant) -> Self {
        let (features, metered) = (SmallVec::new(), SmallVec::new());
        let (mode, rule, allow_on_failure) = (Mode::Enforce, None, false);
        Self { policy, identity, mode, rule, features, metered, allow_on_failure, begun }
    }

    /// Decide on a route that needs features.
    fn rule_on(&self, look_up: Option<LookUp>, allowance: Allowance<'_>) -> Ruling {
        let names: SmallVec<[&str; 1]> = self.features.iter().copied().map(|feature| &**feature).collect();
        self.conclude(Need::Features(&names), look_up, allowance)
    }

    /// The licence against whose limits this is to be held that passes otherwise, and as of when.
    fn held_against<'r>(&self, ruling: &'r Ruling) -> Option<(&'r License, Moment)> {
        let passes = ruling.outcome == Outcome::Allowed && self.mode != Mode::Off;
        let entry = ruling.entry.as_ref().filter(|_| passes)?;
        Some((&entry.license, Moment { wall: ruling.decided_at, at: self.begun }))
    }

    /// Decide, and put down all that is known.
    fn conclude(&self, need: Need<'_>, look_up: Option<LookUp>, allowance: Allowance<'_>) -> Ruling {
        let LookUp { found, layer } = look_up.unwrap_or(LookUp { found: Found::Nothing, layer: None });
        let stale = matches!(found, Found::Stale(_));
        let (entry, failed) = match found {
            Found::License(entry) | Found::Stale(entry) => (Some(entry), None),
            Found::Nothing => (None, None),
            // Without a confirmed outage nothing opens: otherwise a client could open the gate by being slow.
            Found::Failed { certain } => (None, Some(certain && self.allow_on_failure)),
        };
        let standing = match (self.identity, &entry, failed) {
            (Identity::Missing, ..) => Standing::NoTenant { allow: self.policy.without_tenant },
            (Identity::Invalid | Identity::Conflicting, ..) => Standing::InvalidTenant,
            (Identity::BadToken(fault), ..) => Standing::BadToken(fault),
            (Identity::Tenant(_), Some(entry), _) => Standing::Licensed(&entry.license),
            (Identity::Tenant(_), None, Some(allow)) => Standing::Unknown { allow },
            (Identity::Tenant(_), None, None) => Standing::Unlicensed,
        };
        let decided_at = wall_clock();
        let decision = decide(need, standing, allowance, self.mode, self.policy.grace, decided_at);
        let opens = failed == Some(true) || matches!(allowance, Allowance::Unknown { allow: true, .. });
        let failed_open = opens && matches!(decision, Decision::Allow { .. });
        let (outcome, denial, grace_until) = match decision {
            Decision::Allow { grace_until } if failed_open => (Outcome::FailedOpen, None, grace_until),
            Decision::Allow { grace_until } if self.features.is_empty() => (Outcome::Open, None, grace_until),
            Decision::Allow { grace_until } => (Outcome::Allowed, None, grace_until),
            Decision::Shadow(denial) => (Outcome::Shadowed, Some(denial), None),
            Decision::Deny(denial) => (Outcome::Denied, Some(denial), None),
        };
        let named = denial.and_then(|denial| denial.feature);
        let feature = self.features.iter().find(|feature| named.is_none_or(|named| ****feature == *named));
        Ruling {
            permit: (outcome != Outcome::Denied).then_some(Permit(())),
            outcome,
            reason: denial.map(|denial| denial.reason),
            token: denial.and_then(|denial| denial.token),
            usage: denial.and_then(|denial| denial.usage),
            charges: Charges::default(),
            feature: feature.map(|feature| Arc::clone(feature)),
            rule: self.rule.map(Arc::clone),
            age: entry.as_ref().map(|entry| entry.age(self.begun)),
            layer,
            fallback: if failed_open { Some("open") } else { stale.then_some("stale") },
            grace_until,
            mode: self.mode,
            decided_at,
            took: self.begun.elapsed(),
            entry,
        }
    }
}

fn feature_of(rule: &Rule) -> Option<&Arc<str>> {
    match &rule.access {
        Access::Feature(feature) => Some(feature),
        Access::Always | Access::Deny => None,
    }
}
