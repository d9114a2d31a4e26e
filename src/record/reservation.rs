//! The right of one request to be counted: settled when it is known what became of the request.

use std::fmt;
use std::sync::Arc;

use licensing::quota::Period;
use licensing::tenant::TenantId;

use super::lease::Lease;
use super::lines::Use;
use super::pending::Pending;

/// One use of a feature that is under way. Whoever drops it does not know what became of it: then it counts.
#[must_use = "what is not settled counts"]
pub(crate) struct Reservation {
    taken_from: TakenFrom,
    /// The number of the day on which it is counted: that of the decision.
    day: i64,
    settled: bool,
}

/// What remains of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remaining {
    /// What the licence allows.
    pub(crate) limit: u64,
    /// What is left for further requests, as far as is known here.
    pub(crate) left: u64,
    /// Over which period that is counted.
    pub(crate) period: Period,
}

enum TakenFrom {
    Lease {
        lease: Arc<Lease>,
        limit: u64,
        remaining: u64,
    },
    /// There is no limit, or it is not kept.
    Nothing {
        uses: Arc<Pending<Use>>,
        tenant: TenantId,
        feature: Arc<str>,
    },
}

impl Reservation {
    /// One that was taken from a lease, under `limit`, and left so many of it.
    pub(super) fn leased(lease: &Arc<Lease>, limit: u64, remaining: u64, day: i64) -> Self {
        let taken_from = TakenFrom::Lease { lease: Arc::clone(lease), limit, remaining };
        Self { taken_from, day, settled: false }
    }

    /// One that needs no lease.
    pub(super) fn unleased(uses: &Arc<Pending<Use>>, tenant: TenantId, feature: &Arc<str>, day: i64) -> Self {
        let taken_from = TakenFrom::Nothing { uses: Arc::clone(uses), tenant, feature: Arc::clone(feature) };
        Self { taken_from, day, settled: false }
    }

    /// It was a use.
    pub(crate) fn consume(mut self) {
        self.settle(true);
    }

    /// It was none.
    pub(crate) fn refund(mut self) {
        self.settle(false);
    }

    /// What remains of the limit; none: it was not taken from one.
    pub(crate) fn remaining(&self) -> Option<Remaining> {
        match &self.taken_from {
            TakenFrom::Lease { lease, limit, remaining } => {
                Some(Remaining { limit: *limit, left: *remaining, period: lease.key.period })
            }
            TakenFrom::Nothing { .. } => None,
        }
    }

    fn settle(&mut self, consumes: bool) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        match &self.taken_from {
            TakenFrom::Lease { lease, .. } if consumes => {
                let feature = Arc::clone(&lease.key.feature);
                lease.uses.add(lease.key.tenant, self.day, Use { feature, count: 1, unleased: 0 });
                lease.holding().consume();
            }
            TakenFrom::Lease { lease, limit, .. } => {
                let is_news = lease.holding().refund(*limit);
                if is_news {
                    lease.news.notify_waiters();
                }
            }
            TakenFrom::Nothing { uses, tenant, feature } if consumes => {
                let feature = Arc::clone(feature);
                uses.add(*tenant, self.day, Use { feature, count: 1, unleased: 1 });
            }
            TakenFrom::Nothing { .. } => {}
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.settle(true);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("remaining", &self.remaining()).finish_non_exhaustive()
    }
}
