//! Usage at the gate: holds what a licence allows against what is used of it, and charges a request once it is served.

use std::sync::Arc;

use http::StatusCode;
use licensing::config::{CountKind, LimitKind, Meter};
use licensing::decide::Allowance;
use licensing::license::License;
use licensing::quota::{Exhausted, Limit, Quota, rate_limit, rate_limit_policy};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use smallvec::SmallVec;

use crate::metrics::Metrics;
use crate::record::{Attempt, Moment, NoLease, QuotaAsk, Recorder, Reservation};

/// A feature of which a request is counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metered<'p> {
    /// The feature.
    pub(super) feature: &'p Arc<str>,
    /// How it is counted.
    pub(super) meter: &'p Meter,
    /// Whether its requests go on where no store can tell how much is left.
    pub(super) fails_open: bool,
}

/// What a request is charged once it is served. Unless it is settled, it is charged as served: nobody knows that it was not.
#[derive(Debug, Default)]
pub(crate) struct Charges {
    list: SmallVec<[Charge; 1]>,
    /// The soft limits that are used up.
    beyond: Vec<(Arc<str>, Exhausted)>,
}

/// How a metered feature stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FeatureUse {
    /// The feature.
    pub(crate) feature: Arc<str>,
    /// The limit, how much of it is used, those included that are under way, and over which period that is counted; none:
    /// there is no limit, or it was not looked at.
    pub(crate) of_limit: Option<Exhausted>,
}

/// One use of one feature.
#[derive(Debug)]
struct Charge {
    feature: Arc<str>,
    reservation: Reservation,
    /// Which answers count.
    count: CountKind,
}

/// What the licence leaves to a request: what it will be charged, or why it can't be.
pub(super) struct Held<'p> {
    charges: Charges,
    /// Of which there was nothing to be had; charged all the same, if the request goes on.
    unheld: SmallVec<[Metered<'p>; 1]>,
    shortage: Option<Shortage<'p>>,
}

/// Why a hard limit leaves nothing.
#[derive(Clone, Copy)]
enum Shortage<'p> {
    Exhausted { feature: &'p Arc<str>, exhausted: Exhausted },
    Unknown { feature: &'p Arc<str>, allow: bool },
}

/// Who reserves what requests will use.
pub(super) struct Till {
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
}

impl Till {
    /// Reserve with `recorder`.
    pub(super) fn new(recorder: Arc<Recorder>, metrics: Arc<Metrics>) -> Self {
        Self { recorder, metrics }
    }

    /// Who counts.
    pub(super) fn recorder(&self) -> &Arc<Recorder> {
        &self.recorder
    }

    /// Reserve one use of each feature without waiting; none: the store has to be asked.
    pub(super) fn hold_now<'p>(&self, metered: &[Metered<'p>], license: &License, now: Moment) -> Option<Held<'p>> {
        let mut held = Held::nothing();
        for metered in metered {
            let outcome = match self.limit_of(license, metered.feature) {
                Limit::Unlimited => Ok(Ok(self.recorder.unleased(license.tenant, metered.feature, now.wall))),
                Limit::AtMost(limit) => match self.recorder.reserve_now(&ask(license.tenant, metered, limit), now) {
                    Attempt::Reserved(reservation) => Ok(Ok(reservation)),
                    Attempt::Exhausted(exhausted) => Ok(Err(exhausted)),
                    Attempt::Wait => {
                        held.charges.settle(None);
                        return None;
                    }
                },
            };
            held.add(*metered, outcome);
        }
        Some(held)
    }

    /// The same, and wait for the store where it has to be asked.
    pub(super) async fn hold<'p>(&self, metered: &[Metered<'p>], license: &License, now: Moment) -> Held<'p> {
        let until = tokio::time::Instant::from_std(now.at) + self.recorder.deadline();
        let mut held = Held::nothing();
        for metered in metered {
            let outcome = match self.limit_of(license, metered.feature) {
                Limit::Unlimited => Ok(Ok(self.recorder.unleased(license.tenant, metered.feature, now.wall))),
                Limit::AtMost(limit) => self.recorder.reserve(&ask(license.tenant, metered, limit), now, until).await,
            };
            held.add(*metered, outcome);
        }
        held
    }

    /// Charge a request that goes on whatever is used already.
    pub(super) fn charge(&self, charges: &mut Charges, metered: &[Metered<'_>], tenant: TenantId, now: Timestamp) {
        for metered in metered {
            charges.push(*metered, self.recorder.unleased(tenant, metered.feature, now));
        }
    }

    /// Charge a request that was ruled on: all that is held if it goes on, else nothing.
    pub(super) fn close(&self, held: Held<'_>, tenant: TenantId, goes_on: bool, now: Timestamp) -> Charges {
        let Held { mut charges, unheld, .. } = held;
        if goes_on {
            self.charge(&mut charges, &unheld, tenant, now);
        } else {
            charges.settle(None);
        }
        charges
    }

    fn limit_of(&self, license: &License, feature: &str) -> Limit {
        license.limit(feature).unwrap_or_else(|error| {
            self.metrics.limits_unreadable.inc();
            tracing::debug!(tenant = %license.tenant, feature, %error, "a limit can't be read and is none");
            Limit::Unlimited
        })
    }
}

impl<'p> Metered<'p> {
    /// Another rule counts the same feature for the same request: the stricter of both says how.
    pub(super) fn join(&mut self, other: Self) {
        if self.meter.limit == LimitKind::Soft {
            self.meter = other.meter;
        }
        self.fails_open &= other.fails_open;
    }
}

impl<'p> Held<'p> {
    fn nothing() -> Self {
        Self { charges: Charges::default(), unheld: SmallVec::new(), shortage: None }
    }

    /// What the limits leave, for the decision.
    pub(super) fn allowance(&self) -> Allowance<'p> {
        match self.shortage {
            None => Allowance::Within,
            Some(Shortage::Exhausted { feature, exhausted }) => Allowance::Exhausted { feature, exhausted },
            Some(Shortage::Unknown { feature, allow }) => Allowance::Unknown { feature, allow },
        }
    }

    fn add(&mut self, metered: Metered<'p>, outcome: Result<Result<Reservation, Exhausted>, NoLease>) {
        let Metered { feature, meter, fails_open } = metered;
        let is_hard = meter.limit == LimitKind::Hard;
        let shortage = match outcome {
            Ok(Ok(reservation)) => return self.charges.push(metered, reservation),
            Ok(Err(exhausted)) if is_hard => Some(Shortage::Exhausted { feature, exhausted }),
            Ok(Err(exhausted)) => {
                self.charges.beyond.push((Arc::clone(feature), exhausted));
                None
            }
            // Without a confirmed outage nothing opens: otherwise a client could open the gate by being slow.
            Err(NoLease { certain }) if is_hard => Some(Shortage::Unknown { feature, allow: certain && fails_open }),
            Err(_) => None,
        };
        self.unheld.push(metered);
        // The first refusal is said; what merely could not be told gives way to one.
        if !matches!(self.shortage, Some(Shortage::Exhausted { .. } | Shortage::Unknown { allow: false, .. })) {
            self.shortage = shortage.or(self.shortage);
        }
    }
}

impl Charges {
    /// What became of the request: the status of the backend's answer, or none, where it was not sent to the backend.
    pub(crate) fn settle(&mut self, status: Option<StatusCode>) {
        for charge in self.list.drain(..) {
            let served = status.is_some_and(|status| {
                let success =
                    status.is_success() || status.is_redirection() || status == StatusCode::SWITCHING_PROTOCOLS;
                success || charge.count == CountKind::All
            });
            if served { charge.reservation.consume() } else { charge.reservation.refund() }
        }
    }

    /// The features whose soft limits are used up.
    pub(crate) fn beyond(&self) -> impl Iterator<Item = &str> {
        self.beyond.iter().map(|(feature, _)| &**feature)
    }

    /// The values of `RateLimit-Policy` and `RateLimit`; none where there is no limit.
    pub(crate) fn rate_limits(&self, now: Timestamp) -> Option<(String, String)> {
        let beyond = self.beyond.iter().map(|(feature, exhausted)| Quota {
            feature,
            limit: exhausted.limit,
            remaining: 0,
            period: exhausted.period,
        });
        let quotas: SmallVec<[Quota<'_>; 1]> = self.list.iter().filter_map(Charge::quota).chain(beyond).collect();
        (!quotas.is_empty()).then(|| (rate_limit_policy(&quotas), rate_limit(&quotas, now)))
    }

    /// How the features stand that are charged, without this request.
    pub(crate) fn uses(&self) -> impl Iterator<Item = FeatureUse> {
        let beyond = self.beyond.iter();
        let beyond =
            beyond.map(|(feature, exhausted)| FeatureUse { feature: Arc::clone(feature), of_limit: Some(*exhausted) });
        let is_beyond = |charge: &&Charge| self.beyond.iter().any(|(feature, _)| *feature == charge.feature);
        self.list.iter().filter(move |charge| !is_beyond(charge)).map(Charge::stands).chain(beyond)
    }

    fn push(&mut self, metered: Metered<'_>, reservation: Reservation) {
        let Metered { feature, meter, .. } = metered;
        self.list.push(Charge { feature: Arc::clone(feature), reservation, count: meter.count });
    }
}

impl Charge {
    fn stands(&self) -> FeatureUse {
        let of_limit = self.reservation.remaining().map(|remaining| Exhausted {
            limit: remaining.limit,
            used: remaining.limit.saturating_sub(remaining.left.saturating_add(1)),
            period: remaining.period,
        });
        FeatureUse { feature: Arc::clone(&self.feature), of_limit }
    }

    fn quota(&self) -> Option<Quota<'_>> {
        let remaining = self.reservation.remaining()?;
        Some(Quota {
            feature: &self.feature,
            limit: remaining.limit,
            remaining: remaining.left,
            period: remaining.period,
        })
    }
}

fn ask<'a>(tenant: TenantId, metered: &Metered<'a>, limit: u64) -> QuotaAsk<'a> {
    QuotaAsk { tenant, feature: metered.feature, window: metered.meter.window, limit }
}
