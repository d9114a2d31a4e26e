//! What is counted beside leases: uses of a feature by day, denials by minute.

use std::sync::Arc;

use licensing::reason::Reason;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;

use super::pending::Line;
use crate::stores::{Count, DenialCount};

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// Microseconds of a minute.
const MINUTE: i64 = 60_000_000;

/// How often a feature was used.
pub(super) struct Use {
    pub(super) feature: Arc<str>,
    pub(super) count: u64,
    /// How often of these without a lease.
    pub(super) unleased: u64,
}

/// How often a feature was denied.
pub(super) struct Denied {
    pub(super) feature: Arc<str>,
    pub(super) reason: Reason,
    pub(super) shadow: bool,
    pub(super) count: u64,
}

/// The number of the day, UTC, in which `now` lies.
pub(super) fn day_of(now: Timestamp) -> i64 {
    now.as_micros().div_euclid(DAY)
}

/// The number of the minute in which `now` lies.
pub(super) fn minute_of(now: Timestamp) -> i64 {
    now.as_micros().div_euclid(MINUTE)
}

impl Use {
    /// As the store takes it.
    pub(super) fn on(self, tenant: TenantId, day: i64) -> Count {
        let day = Timestamp::from_micros(day.saturating_mul(DAY)).day();
        Count { tenant, feature: self.feature, day, count: self.count, unleased: self.unleased }
    }
}

impl Denied {
    /// As the store takes it.
    pub(super) fn in_minute(self, tenant: TenantId, minute: i64) -> DenialCount {
        let Self { feature, reason, shadow, count } = self;
        let minute = Timestamp::from_micros(minute.saturating_mul(MINUTE));
        DenialCount { tenant, feature, reason, minute, shadow, count }
    }
}

impl Line for Use {
    fn is_like(&self, other: &Self) -> bool {
        is_same(&self.feature, &other.feature)
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.unleased += other.unleased;
    }

    fn amount(&self) -> u64 {
        self.count
    }
}

impl Line for Denied {
    fn is_like(&self, other: &Self) -> bool {
        self.reason == other.reason && self.shadow == other.shadow && is_same(&self.feature, &other.feature)
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
    }

    fn amount(&self) -> u64 {
        self.count
    }
}

/// Whether both are the same name. Nearly always they are even the same text: rules share it.
pub(super) fn is_same(one: &Arc<str>, other: &Arc<str>) -> bool {
    Arc::ptr_eq(one, other) || **one == **other
}
