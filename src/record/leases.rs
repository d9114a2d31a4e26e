//! All leases of this process: found by tenant and feature, looked after between two flushes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use licensing::config::Window;
use licensing::quota::Period;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Moment;
use super::lease::{Idling, Lease};
use super::lines::{Use, is_same};
use super::pending::Pending;
use crate::stores::Settlement;

/// Into how many parts the tenants are divided, so that the threads of requests seldom meet.
const SHARDS: usize = 64;

/// Of so many leases asks may be in doubt. There are that many only if the store answers probes and nothing else, and all that
/// more of them could do is to give back what they may have been granted.
pub(super) const DOUBTS: usize = 10_000;

type Shard = HashMap<TenantId, SmallVec<[Arc<Lease>; 1]>>;

/// The leases, each for one tenant, feature and period. About midnight a feature has two.
pub(super) struct Leases {
    shards: [Mutex<Shard>; SHARDS],
    /// Where the next settling begins.
    next: AtomicUsize,
}

/// What was found by looking after all leases.
#[derive(Default)]
pub(super) struct Tidied {
    /// How many have something to tell the store.
    pub(super) due: usize,
    /// Those that have asked something, and don't know what came of it.
    pub(super) in_doubt: Vec<Arc<Lease>>,
}

impl Leases {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), next: AtomicUsize::new(0) }
    }

    /// The lease of `feature` in the period of `window` in which `now` lies, if there is one. It stays in its place as long as
    /// `then` is at it.
    pub(super) fn with<R>(
        &self,
        tenant: TenantId,
        feature: &Arc<str>,
        window: Window,
        now: Timestamp,
        then: impl FnOnce(&Arc<Lease>) -> R,
    ) -> Option<R> {
        let shard = self.shard(tenant).lock();
        let is_asked = |lease: &&Arc<Lease>| {
            is_same(&lease.key.feature, feature) && lease.key.period.window == window && lease.covers(now)
        };
        shard.get(&tenant)?.iter().find(is_asked).map(then)
    }

    /// The lease of `feature` in `period`, which is there from now on.
    pub(super) fn with_new<R>(
        &self,
        tenant: TenantId,
        feature: &Arc<str>,
        period: Period,
        uses: &Arc<Pending<Use>>,
        at: Instant,
        then: impl FnOnce(&Arc<Lease>) -> R,
    ) -> R {
        let mut shard = self.shard(tenant).lock();
        let leases = shard.entry(tenant).or_default();
        let is_asked = |lease: &&Arc<Lease>| is_same(&lease.key.feature, feature) && lease.key.period == period;
        if let Some(lease) = leases.iter().find(is_asked) {
            return then(lease);
        }
        let lease = Arc::new(Lease::new(tenant, feature, period, uses, at));
        let done = then(&lease);
        leases.push(lease);
        done
    }

    /// End what is over, forget what is done with, and see what has to be told to the store.
    pub(super) fn tidy(&self, idling: &Idling, now: Moment) -> Tidied {
        let mut tidied = Tidied::default();
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retain(|_, leases| {
                leases.retain(|lease| tidied.keeps(lease, idling, now));
                !leases.is_empty()
            });
            if shard.len() * 4 < shard.capacity() {
                let room = shard.len() * 2;
                shard.shrink_to(room);
            }
        }
        tidied
    }

    /// Take out what there is to tell the store, of so many leases at the most.
    pub(super) fn settle(&self, most: usize, idling: &Idling, at: Instant) -> Vec<(Arc<Lease>, Settlement)> {
        let mut settled = Vec::new();
        let first = self.next.load(Ordering::Acquire);
        for number in first..first + SHARDS {
            let shard = self.shards[number % SHARDS].lock();
            self.next.store(number % SHARDS, Ordering::Release);
            for lease in shard.values().flatten() {
                if settled.len() >= most {
                    return settled;
                }
                let settlement = lease.holding().settle(&lease.key, idling, at);
                settled.extend(settlement.map(|settlement| (Arc::clone(lease), settlement)));
            }
        }
        settled
    }

    /// Whether any of them holds something.
    pub(super) fn hold_something(&self) -> bool {
        self.shards.iter().any(|shard| shard.lock().values().flatten().any(|lease| lease.holding().holds()))
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().values().map(SmallVec::len).sum::<usize>()).sum()
    }

    fn shard(&self, tenant: TenantId) -> &Mutex<Shard> {
        &self.shards[usize::from(tenant.as_uuid().as_bytes()[15]) % SHARDS]
    }
}

impl Tidied {
    /// Look after one; false: it can be forgotten.
    fn keeps(&mut self, lease: &Arc<Lease>, idling: &Idling, now: Moment) -> bool {
        let mut holding = lease.holding();
        if lease.is_over(now.wall) {
            holding.give_up();
        }
        holding.look_whether_used(now.at);
        if self.in_doubt.len() >= DOUBTS {
            holding.drop_doubt();
        }
        if holding.is_done(now.at) {
            return false;
        }
        self.due += usize::from(holding.is_due(idling, now.at));
        if holding.is_in_doubt() {
            self.in_doubt.push(Arc::clone(lease));
        }
        true
    }
}
