//! Where usage is kept: what has been counted, how much of a limit is left, and which denials there were.
//!
//! Whatever is written has an id, and is done once however often it is asked for: whoever does not hear the answer asks again
//! with the same id.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::Date;
use licensing::quota::Period;
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use licensing::view::{Threshold, Usage};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;

/// A limit's place: whose it is, of which feature, and in which period.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct QuotaKey {
    /// Whose.
    pub(crate) tenant: TenantId,
    /// Of which feature.
    pub(crate) feature: Arc<str>,
    /// Over which period.
    pub(crate) period: Period,
}

/// How a limit stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// Consumed, as far as that has been reported.
    pub(crate) used: u64,
    /// Leased by all replicas together, and neither reported as consumed nor given back.
    pub(crate) reserved: u64,
}

/// What is asked of a limit: some of it, to be used here without asking again.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRequest {
    /// The same for each attempt.
    pub(crate) id: Uuid,
    /// Of which limit.
    pub(crate) key: QuotaKey,
    /// What the licence allows.
    pub(crate) limit: u64,
    /// What was consumed of earlier leases and has not been reported.
    pub(crate) spent: u64,
    /// What is given back of earlier leases.
    pub(crate) returned: u64,
    /// How many requests wait for it: granted before all else, as far as there is so much.
    pub(crate) needed: u64,
    /// How much would be of use, so that it lasts for a while; near the limit it is less.
    pub(crate) wished: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// How much was granted.
    pub(crate) granted: u64,
    /// How the limit stands, this lease included.
    pub(crate) standing: Standing,
}

/// Usage and denials of some seconds, written as a whole or not at all.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// The same for each attempt.
    pub(crate) id: Uuid,
    /// What was consumed.
    pub(crate) counts: Vec<Count>,
    /// What became of leases. Windows of which nothing is new but a lease are listed too, with zeros: their thresholds are
    /// looked at.
    pub(crate) settlements: Vec<Settlement>,
    /// What was denied.
    pub(crate) denials: Vec<DenialCount>,
    /// At how many percent of a limit something is said, in ascending order.
    pub(crate) thresholds: Arc<[u8]>,
}

/// How often a feature was used on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    /// By whom.
    pub(crate) tenant: TenantId,
    /// Which feature.
    pub(crate) feature: Arc<str>,
    /// The day, UTC.
    pub(crate) day: Date,
    /// How often.
    pub(crate) count: u64,
    /// How often of these without a lease: where there is a limit, it is counted as used.
    pub(crate) unleased: u64,
}

/// What became of leases of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settlement {
    /// Of which limit.
    pub(crate) key: QuotaKey,
    /// What the licence allowed when it was last asked for.
    pub(crate) limit: u64,
    /// What was consumed and has not been reported.
    pub(crate) spent: u64,
    /// What is given back.
    pub(crate) returned: u64,
}

/// How often a tenant was denied a feature for one reason in one minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DenialCount {
    /// Who.
    pub(crate) tenant: TenantId,
    /// Which feature.
    pub(crate) feature: Arc<str>,
    /// Why.
    pub(crate) reason: Reason,
    /// The minute's beginning.
    pub(crate) minute: Timestamp,
    /// Whether it would only have been denied if the tenant were enforced.
    pub(crate) shadow: bool,
    /// How often.
    pub(crate) count: u64,
}

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Posted {
    /// How much was left out, since its tenants have no licence.
    pub(crate) without_license: u64,
    /// How the limits stand whose leases were settled, in the order in which they were asked about. None: there is no such
    /// window, or the batch had been posted before.
    pub(crate) standings: Vec<Option<Standing>>,
    /// The thresholds that were passed, for the first time in their period.
    pub(crate) crossings: Vec<Crossing>,
}

/// A threshold that was passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    /// Whose limit, of which feature, in which period.
    pub(crate) key: QuotaKey,
    /// The threshold, in percent of the limit.
    pub(crate) percent: u8,
    /// What is used.
    pub(crate) used: u64,
    /// What the licence allows.
    pub(crate) limit: u64,
}

/// What replicas tell each other of a threshold that was passed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct CrossingNotice {
    /// The batch by which it was passed: what is heard twice is told apart from what happened twice.
    pub(crate) batch: Uuid,
    /// Whose limit.
    pub(crate) tenant: TenantId,
    /// Which share of which.
    #[serde(flatten)]
    pub(crate) threshold: Threshold,
}

/// From which day on usage is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Since {
    /// Of features that are not named.
    pub(crate) day: Date,
    /// By feature.
    pub(crate) of: Vec<(Arc<str>, Date)>,
}

impl Crossing {
    /// As the tenant is told.
    pub(crate) fn threshold(&self) -> Threshold {
        let Self { key: QuotaKey { feature, period, .. }, percent, used, limit } = self;
        let (feature, resets_at) = ((&**feature).into(), period.resets_at());
        Threshold { feature, percent: *percent, used: *used, limit: *limit, resets_at }
    }
}

/// Where usage is read, by people and frontends; nothing that is decided depends on it.
#[async_trait]
pub(crate) trait UsageSource: Send + Sync {
    /// How often `tenant` has used each feature.
    ///
    /// # Errors
    /// When it can't be asked or does not answer in time.
    async fn usage(&self, tenant: TenantId, since: &Since) -> Result<Usage, StoreError>;
}

/// Where usage is kept.
#[async_trait]
pub(crate) trait UsageStore: Send + Sync {
    /// Write a batch.
    ///
    /// # Errors
    /// When it can't be told whether it is written. The same batch may be posted again, and must not be forgotten.
    async fn post(&self, batch: &Batch) -> Result<Posted, StoreError>;

    /// Take a lease.
    ///
    /// # Errors
    /// When it can't be told whether one is taken. The same request may be made again.
    async fn lease(&self, request: &LeaseRequest) -> Result<Lease, StoreError>;

    /// The day on which the anchored windows of `tenant` begin: put down when it is first asked for, and never moved.
    ///
    /// # Errors
    /// When it can't be asked.
    async fn anchor(&self, tenant: TenantId) -> Result<Date, StoreError>;

    /// Whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    async fn probe(&self) -> Result<(), StoreError>;

    /// A person has followed the way to an upgrade: the denials of `feature` of the 24 hours before `at` are marked.
    ///
    /// # Errors
    /// When that can't be told.
    async fn clicked(&self, tenant: TenantId, feature: &str, at: Timestamp) -> Result<(), StoreError>;

    /// Give back what lies idle. Called every few seconds.
    fn close_idle(&self) {}
}
