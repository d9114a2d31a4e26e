//! Licences in this process's memory: bounded in bytes, least useful out first; unknown tenants apart.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use licensing::license::License;
use licensing::tenant::TenantId;
use moka::sync::Cache;
use rustc_hash::FxBuildHasher;

/// How many unknown tenants are remembered. Random ids must not push real tenants out, so they have a place of their own.
const UNKNOWN_TENANTS: u64 = 10_000;

/// What an entry takes beside its licence, roughly, in bytes.
const ENTRY_OVERHEAD: usize = 256;

/// A licence in memory, with all that a request needs of it made ready.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The licence.
    pub license: License,
    /// `X-License-Plan`.
    pub plan_header: HeaderValue,
    /// `X-License-Features`.
    pub features_header: HeaderValue,
    /// From before the source was asked, on this process's monotonic clock.
    pub(super) read_at: Instant,
}

impl Entry {
    pub(super) fn new(license: License, read_at: Instant) -> Self {
        Self {
            plan_header: header(license.plan.to_string()),
            features_header: header(license.features.joined()),
            license,
            read_at,
        }
    }

    /// How long ago the source was asked.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.read_at)
    }
}

/// What is remembered of tenants.
pub(super) struct Memory {
    licenses: Cache<TenantId, Arc<Entry>, FxBuildHasher>,
    unknown: Cache<TenantId, Instant>,
}

impl Memory {
    /// At most `max_bytes` of licences, each forgotten after `forget_after`.
    pub(super) fn new(max_bytes: u64, forget_after: Duration) -> Self {
        let licenses = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_, entry: &Arc<Entry>| {
                u32::try_from(entry.license.size_bytes() + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
            })
            .time_to_live(forget_after)
            // Only ids of real tenants come in, so nobody can choose them to collide.
            .build_with_hasher(FxBuildHasher);
        Self { licenses, unknown: Cache::builder().max_capacity(UNKNOWN_TENANTS).build() }
    }

    pub(super) fn license(&self, tenant: &TenantId) -> Option<Arc<Entry>> {
        self.licenses.get(tenant)
    }

    /// How long ago `tenant` was found to have no licence, if it was.
    pub(super) fn unknown_for(&self, tenant: &TenantId, now: Instant) -> Option<Duration> {
        self.unknown.get(tenant).map(|since| now.saturating_duration_since(since))
    }

    /// Remember a licence. Of two revisions the newer stays, whichever arrives last.
    pub(super) fn put(&self, entry: Arc<Entry>) {
        self.unknown.invalidate(&entry.license.tenant);
        let tenant = entry.license.tenant;
        self.licenses.entry(tenant).and_upsert_with(|old| match old.map(moka::Entry::into_value) {
            Some(old) if old.license.revision > entry.license.revision => old,
            _ => entry,
        });
    }

    pub(super) fn put_unknown(&self, tenant: TenantId, now: Instant) {
        self.licenses.invalidate(&tenant);
        self.unknown.insert(tenant, now);
    }

    /// How many licences, and their bytes.
    pub(super) fn usage(&self) -> (u64, u64) {
        // The cache counts in batches, which traffic alone would bring about.
        self.licenses.run_pending_tasks();
        (self.licenses.entry_count(), self.licenses.weighted_size())
    }
}

/// A header value of whatever text a database holds; what no header may carry (RFC 9110 section 5.5) becomes `?`.
fn header(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("?"))
}

#[cfg(test)]
mod tests {
    use licensing::license::LicenseRow;
    use uuid::Uuid;

    use super::*;

    fn entry(tenant: u128, revision: i64) -> Arc<Entry> {
        let row = LicenseRow {
            plan: "starter".into(),
            features: r#"{"crm":true}"#.into(),
            usage_limits: "{}".into(),
            revision,
            ..LicenseRow::default()
        };
        let tenant = TenantId::new(Uuid::from_u128(tenant));
        Arc::new(Entry::new(License::from_row(tenant, &row).expect("a licence"), Instant::now()))
    }

    #[test]
    fn an_older_revision_never_replaces_a_newer() {
        let memory = Memory::new(1 << 20, Duration::from_hours(1));
        let revision = || memory.license(&entry(1, 0).license.tenant).map(|e| e.license.revision);
        memory.put(entry(1, 5));
        memory.put(entry(1, 4));
        assert_eq!(revision(), Some(5));
        memory.put(entry(1, 6));
        assert_eq!(revision(), Some(6));
    }

    #[test]
    fn it_stays_within_its_bytes_and_unknown_tenants_push_nobody_out() {
        let memory = Memory::new(64 << 10, Duration::from_hours(1));
        memory.put(entry(0, 1));
        for i in 0..50_000 {
            memory.put_unknown(TenantId::new(Uuid::from_u128(1 << 64 | i)), Instant::now());
        }
        memory.unknown.run_pending_tasks();
        assert!(memory.unknown.entry_count() <= UNKNOWN_TENANTS);
        assert!(memory.license(&entry(0, 1).license.tenant).is_some());
        for i in 1..5_000 {
            memory.put(entry(i, 1));
            assert!(memory.license(&entry(0, 1).license.tenant).is_some(), "the one in use was pushed out by {i}");
        }
        let (entries, bytes) = memory.usage();
        assert!(bytes <= 64 << 10, "{bytes} bytes");
        assert!(entries > 50);
    }

    #[test]
    fn known_and_unknown_exclude_each_other() {
        let memory = Memory::new(1 << 20, Duration::from_hours(1));
        let tenant = entry(1, 1).license.tenant;
        memory.put_unknown(tenant, Instant::now());
        memory.put(entry(1, 1));
        assert!(memory.unknown_for(&tenant, Instant::now()).is_none());
        memory.put_unknown(tenant, Instant::now());
        assert!(memory.license(&tenant).is_none());
    }
}
