//! The gate: facts about a request become a licence, the licence a ruling. The only place that fails open.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use licensing::answer::Answers;
use licensing::config::OnFailure;
use licensing::decide::{Decision, Denial, Need, Standing, decide};
use licensing::enforcement::{Enforcement, Mode};
use licensing::path::Target;
use licensing::plans::Plans;
use licensing::reason::Reason;
use licensing::routes::{Access, Refusal, Route, Routes, Rule};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;

use crate::licenses::{Entry, Found, Layer, Licenses, LookUp};
use crate::metrics::{Metrics, Outcome};

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
    /// Overrides [`Policy::on_failure`].
    pub on_failure: Option<OnFailure>,
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
    /// Whose request it is; only what a configured source said.
    pub tenant: Option<TenantId>,
    /// The licence it was decided on.
    pub entry: Option<Arc<Entry>>,
    /// Where that came from.
    pub layer: Option<Layer>,
    /// Its age.
    pub age: Option<Duration>,
    /// What was used in place of a confirmed licence: `stale` or `open`.
    pub fallback: Option<&'static str>,
    /// When the grace period ends that lets the request through.
    pub grace_until: Option<Timestamp>,
    /// The mode that applied.
    pub mode: Mode,
}

/// The gate.
pub(crate) struct Gate {
    policy: Policy,
    licenses: Arc<Licenses>,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// Put it together.
    pub(crate) fn new(policy: Policy, licenses: Arc<Licenses>, metrics: Arc<Metrics>) -> Self {
        Self { policy, licenses, metrics }
    }

    /// What configuration says.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decide on a request: its method, its raw target, and who it claims to come from.
    pub(crate) async fn rule(&self, method: &str, raw_target: &[u8], identity: Identity) -> Ruling {
        let begun = Instant::now();
        let ruling = match Target::parse(raw_target) {
            Ok(target) => match self.policy.routes.route(method, &target) {
                Ok(route) => self.rule_on(&route, identity, begun).await,
                Err(refusal) => self.refuse(refusal, identity),
            },
            Err(malformed) => self.refuse(malformed.into(), identity),
        };
        self.count(&ruling, begun);
        ruling
    }

    /// The denial of a ruling, to be said.
    pub(crate) fn denial<'a>(&self, ruling: &'a Ruling) -> Option<Denial<'a>> {
        Some(Denial {
            reason: ruling.reason?,
            feature: ruling.feature.as_deref(),
            license: ruling.entry.as_deref().map(|entry| &entry.license),
        })
    }

    /// A request whose headers alone are reason enough to refuse it, in any mode: framing is not a matter of licences.
    pub(crate) fn refuse_framing(&self, identity: Identity) -> Ruling {
        let need = Need::Refused(Reason::RequestMalformed);
        let ruling = self.conclude(Case { mode: Mode::Enforce, ..Case::of(need, identity) });
        self.count(&ruling, Instant::now());
        ruling
    }

    fn refuse(&self, refusal: Refusal, identity: Identity) -> Ruling {
        let reason = match refusal {
            Refusal::Malformed(_) => Reason::RequestMalformed,
            Refusal::Ambiguous => Reason::RequestAmbiguous,
        };
        let mode = self.policy.enforcement.mode_for(identity.tenant().as_ref());
        self.conclude(Case { mode, ..Case::of(Need::Refused(reason), identity) })
    }

    async fn rule_on(&self, route: &Route<'_>, identity: Identity, now: Instant) -> Ruling {
        let tenant = identity.tenant();
        let mode = self.policy.enforcement.mode_for(tenant.as_ref());
        let rules = route.rules();
        let rule = rules.first().map(|matched| Arc::clone(&self.policy.rules[matched.index].label));
        let case = |need| Case { mode, rule, ..Case::of(need, identity) };

        let features: smallvec::SmallVec<[&Arc<str>; 1]> =
            rules.iter().filter_map(|matched| feature_of(matched.rule)).collect();
        match route {
            _ if identity == Identity::Conflicting => self.conclude(case(Need::Refused(Reason::TenantInvalid))),
            Route::Denied(_) => self.conclude(case(Need::Denied)),
            Route::Always(_) | Route::Unmatched => self.conclude(case(Need::Nothing)),
            Route::Gated(_) => {
                let look_up = match tenant {
                    Some(tenant) if mode != Mode::Off => Some(self.look_up(tenant, now).await),
                    _ => None,
                };
                let allow_on_failure = rules.iter().all(|matched| self.fails_open(matched.index));
                let names: smallvec::SmallVec<[&str; 1]> = features.iter().map(|feature| &***feature).collect();
                let case = case(Need::Features(&names));
                self.conclude(Case { look_up, allow_on_failure, features: &features, now, ..case })
            }
        }
    }

    async fn look_up(&self, tenant: TenantId, now: Instant) -> LookUp {
        self.metrics.cache_requests.inc();
        let (look_up, asked_source) = match self.licenses.peek(tenant, now) {
            Some(look_up) => (look_up, false),
            None => self.licenses.ask(tenant).await,
        };
        if !asked_source {
            self.metrics.cache_hits.inc();
        }
        if let Some(layer) = look_up.layer {
            self.metrics.look_ups.of(layer).inc();
        }
        look_up
    }

    fn fails_open(&self, rule: usize) -> bool {
        self.policy.rules[rule].on_failure.unwrap_or(self.policy.on_failure) == OnFailure::Allow
    }

    /// Decide, and put down all that is known.
    fn conclude(&self, case: Case<'_>) -> Ruling {
        let LookUp { found, layer } = case.look_up.unwrap_or(LookUp { found: Found::Nothing, layer: None });
        let stale = matches!(found, Found::Stale(_));
        let (entry, failed) = match found {
            Found::License(entry) | Found::Stale(entry) => (Some(entry), None),
            Found::Nothing => (None, None),
            // Without a confirmed outage nothing opens: otherwise a client could open the gate by being slow.
            Found::Failed { certain } => (None, Some(certain && case.allow_on_failure)),
        };
        let standing = match (case.identity, &entry, failed) {
            (Identity::Missing, ..) => Standing::NoTenant { allow: self.policy.without_tenant },
            (Identity::Invalid | Identity::Conflicting, ..) => Standing::InvalidTenant,
            (Identity::Tenant(_), Some(entry), _) => Standing::Licensed(&entry.license),
            (Identity::Tenant(_), None, Some(allow)) => Standing::Unknown { allow },
            (Identity::Tenant(_), None, None) => Standing::Unlicensed,
        };
        let decision = decide(case.need, standing, case.mode, self.policy.grace, wall_clock());
        let failed_open = matches!((&decision, failed), (Decision::Allow { .. }, Some(true)));
        let (outcome, denial, grace_until) = match decision {
            Decision::Allow { grace_until } if failed_open => (Outcome::FailedOpen, None, grace_until),
            Decision::Allow { grace_until } if case.features.is_empty() => (Outcome::Open, None, grace_until),
            Decision::Allow { grace_until } => (Outcome::Allowed, None, grace_until),
            Decision::Shadow(denial) => (Outcome::Shadowed, Some(denial), None),
            Decision::Deny(denial) => (Outcome::Denied, Some(denial), None),
        };
        let named = denial.and_then(|denial| denial.feature);
        let feature = case.features.iter().find(|feature| named.is_none_or(|named| ****feature == *named));
        Ruling {
            permit: (outcome != Outcome::Denied).then_some(Permit(())),
            outcome,
            reason: denial.map(|denial| denial.reason),
            feature: feature.map(|feature| Arc::clone(feature)),
            rule: case.rule,
            tenant: case.identity.tenant(),
            age: entry.as_ref().map(|entry| entry.age(case.now)),
            layer,
            fallback: if failed_open { Some("open") } else { stale.then_some("stale") },
            grace_until,
            mode: case.mode,
            entry,
        }
    }

    fn count(&self, ruling: &Ruling, begun: Instant) {
        let metrics = &self.metrics;
        metrics.decisions.of(ruling.outcome).inc();
        if let Some(reason) = ruling.reason {
            let feature = ruling.feature.as_deref().unwrap_or_default();
            match ruling.outcome {
                Outcome::Denied => metrics.denied(feature, reason),
                _ => metrics.shadowed(feature, reason),
            }
        }
        if ruling.fallback == Some("stale") {
            metrics.stale_served.inc();
        }
        if ruling.grace_until.is_some() {
            metrics.grace_served.inc();
        }
        metrics.gate_duration.observe(begun.elapsed().as_secs_f64());
    }
}

impl Identity {
    fn tenant(self) -> Option<TenantId> {
        match self {
            Self::Tenant(tenant) => Some(tenant),
            Self::Missing | Self::Invalid | Self::Conflicting => None,
        }
    }
}

/// Everything a ruling is made from.
struct Case<'a> {
    need: Need<'a>,
    features: &'a [&'a Arc<str>],
    rule: Option<Arc<str>>,
    identity: Identity,
    mode: Mode,
    look_up: Option<LookUp>,
    allow_on_failure: bool,
    now: Instant,
}

impl<'a> Case<'a> {
    fn of(need: Need<'a>, identity: Identity) -> Self {
        Self {
            need,
            identity,
            features: &[],
            rule: None,
            mode: Mode::Enforce,
            look_up: None,
            allow_on_failure: false,
            now: Instant::now(),
        }
    }
}

fn feature_of(rule: &Rule) -> Option<&Arc<str>> {
    match &rule.access {
        Access::Feature(feature) => Some(feature),
        Access::Always | Access::Deny => None,
    }
}

/// The wall clock, for validity and nothing else.
fn wall_clock() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
}
