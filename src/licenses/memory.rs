//! Licences in this process's memory: bounded in bytes, least useful out first; unknown tenants apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use licensing::license::License;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use moka::sync::Cache;
use rustc_hash::FxBuildHasher;

/// How many unknown tenants are remembered. Random ids must not push real tenants out, so they have a place of their own.
const UNKNOWN_TENANTS: u64 = 10_000;

/// What an entry takes beside its licence, roughly, in bytes.
const ENTRY_OVERHEAD: usize = 256;

/// What is known of a tenant, as of when, and whether it may still be said.
#[derive(Debug)]
pub(super) struct Mark {
    /// From before the source was asked, on this process's monotonic clock: the age counts from here.
    pub(super) read_at: Instant,
    /// From when on a change would have been heard of: when it was read, or when it was taken from a Redis that is told
    /// of every change.
    pub(super) known_at: Instant,
    /// How often everything had become doubtful when the reading began.
    generation: u64,
    /// Whether it has become doubtful: what was heard of it since has to be seen first.
    suspect: AtomicBool,
    /// The revision that was announced.
    announced: AtomicI64,
    /// Whether a request has used it.
    used: AtomicBool,
    /// When Redis was last asked whether it has something newer, in milliseconds of age.
    rechecked: AtomicU64,
}

impl Mark {
    pub(super) fn new(read_at: Instant, known_at: Instant, generation: u64) -> Self {
        Self {
            read_at,
            known_at,
            generation,
            suspect: AtomicBool::new(false),
            announced: AtomicI64::new(i64::MIN),
            used: AtomicBool::new(false),
            rechecked: AtomicU64::new(0),
        }
    }

    /// How long ago the source was asked.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.read_at)
    }

    /// The least revision that may replace this.
    pub(super) fn announced(&self) -> i64 {
        self.announced.load(Ordering::Relaxed)
    }

    /// From now on it may not be used before a store has been asked.
    pub(super) fn doubt(&self, announced: i64) {
        self.announced.fetch_max(announced, Ordering::Relaxed);
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether Redis should be asked for something newer: true at most once in `interval`.
    pub(super) fn recheck(&self, now: Instant, interval: Duration) -> bool {
        let age = u64::try_from(self.age(now).as_millis()).unwrap_or(u64::MAX);
        let last = self.rechecked.load(Ordering::Relaxed);
        u128::from(age.saturating_sub(last)) >= interval.as_millis()
            && self.rechecked.compare_exchange(last, age, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Whether requests use it.
    pub(super) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// A request uses it. Written once, since the cache line is read by every core.
    pub(super) fn use_it(&self) {
        if !self.is_used() {
            self.used.store(true, Ordering::Relaxed);
        }
    }
}

/// A licence in memory, with all that a request needs of it made ready.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The licence.
    pub license: License,
    /// `X-License-Plan`.
    pub plan_header: HeaderValue,
    /// `X-License-Features` of all of them.
    features_header: HeaderValue,
    pub(super) mark: Mark,
}

impl Entry {
    pub(super) fn new(license: License, mark: Mark) -> Self {
        Self {
            plan_header: header(license.plan.to_string()),
            features_header: header(license.features.joined()),
            license,
            mark,
        }
    }

    /// `X-License-Features` at `now`: without those that have ended.
    pub(crate) fn features_header(&self, now: Timestamp) -> HeaderValue {
        if self.license.features_until.is_empty() {
            return self.features_header.clone();
        }
        header(self.license.features_at(now).collect::<Vec<_>>().join(","))
    }

    /// How long ago the source was asked.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.mark.age(now)
    }
}

/// What is remembered of tenants.
pub(super) struct Memory {
    licenses: Cache<TenantId, Arc<Entry>, FxBuildHasher>,
    unknown: Cache<TenantId, Arc<Mark>>,
    /// Tenants whose row can't be read: not asked for again for a moment, since every request would ask.
    faulty: Cache<TenantId, ()>,
    /// Tenants of which the log has just said that something is wrong.
    reported: Cache<TenantId, ()>,
    /// How often everything has become doubtful.
    generation: AtomicU64,
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
        let unknown = Cache::builder().max_capacity(UNKNOWN_TENANTS).time_to_live(forget_after).build();
        let brief = |span| Cache::builder().max_capacity(UNKNOWN_TENANTS).time_to_live(span).build();
        Self {
            licenses,
            unknown,
            faulty: brief(Duration::from_secs(1)),
            reported: brief(Duration::from_mins(1)),
            generation: AtomicU64::new(0),
        }
    }

    pub(super) fn license(&self, tenant: &TenantId) -> Option<Arc<Entry>> {
        self.licenses.get(tenant)
    }

    /// As of when `tenant` was found to have no licence, if it was.
    pub(super) fn unknown(&self, tenant: &TenantId) -> Option<Arc<Mark>> {
        self.unknown.get(tenant)
    }

    /// To be put down before a reading begins.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether something has been heard that makes it doubtful.
    pub(super) fn doubts(&self, mark: &Mark) -> bool {
        mark.suspect.load(Ordering::Acquire) || mark.generation != self.generation()
    }

    /// All that is known may have changed.
    pub(super) fn doubt_everything(&self) {
        self.faulty.invalidate_all();
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Tenants that were unknown may have a licence now.
    pub(super) fn forget_unknown(&self) {
        self.unknown.invalidate_all();
    }

    /// `tenant` may have changed. If it is known which revision it has now, whoever has that already is in no doubt.
    /// Answers whether requests use what is known of it.
    pub(super) fn doubt(&self, tenant: &TenantId, announced: Option<i64>) -> bool {
        self.unknown.invalidate(tenant);
        self.faulty.invalidate(tenant);
        let Some(entry) = self.licenses.get(tenant) else { return false };
        if announced.is_some_and(|revision| entry.license.revision >= revision) {
            return false;
        }
        entry.mark.doubt(announced.unwrap_or(i64::MIN));
        entry.mark.is_used()
    }

    /// Remember a licence.
    pub(super) fn put(&self, entry: Arc<Entry>) {
        self.unknown.invalidate(&entry.license.tenant);
        self.licenses.insert(entry.license.tenant, entry);
    }

    /// Remember that a tenant has none.
    pub(super) fn put_unknown(&self, tenant: TenantId, mark: Mark) {
        self.licenses.invalidate(&tenant);
        self.unknown.insert(tenant, Arc::new(mark));
    }

    /// Remember for a moment that what the source has on a tenant can't be read.
    pub(super) fn put_faulty(&self, tenant: TenantId) {
        self.faulty.insert(tenant, ());
    }

    /// Whether the source was asked just now, and what it has can't be read.
    pub(super) fn is_faulty(&self, tenant: &TenantId) -> bool {
        self.faulty.contains_key(tenant)
    }

    /// Whether a fault of this tenant's entry is worth a line in the log: true once a minute.
    pub(super) fn is_news(&self, tenant: TenantId) -> bool {
        self.reported.entry(tenant).or_insert(()).is_fresh()
    }

    /// Every licence.
    pub(super) fn licenses(&self) -> impl Iterator<Item = Arc<Entry>> {
        self.licenses.iter().map(|(_, entry)| entry)
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

    fn mark(memory: &Memory) -> Mark {
        Mark::new(Instant::now(), Instant::now(), memory.generation())
    }

    fn tenant(id: u128) -> TenantId {
        TenantId::new(Uuid::from_u128(id))
    }

    fn put(memory: &Memory, id: u128, revision: i64) {
        let row = LicenseRow {
            plan: "starter".into(),
            features: r#"{"crm":true}"#.into(),
            features_until: "{}".into(),
            usage_limits: "{}".into(),
            revision,
            ..LicenseRow::default()
        };
        let license = License::from_row(tenant(id), &row).expect("a licence");
        memory.put(Arc::new(Entry::new(license, mark(memory))));
    }

    #[test]
    fn doubt_falls_on_what_is_older_than_what_was_announced() {
        let memory = Memory::new(1 << 20, Duration::from_hours(1));
        let doubted = |id| memory.license(&tenant(id)).map(|entry| memory.doubts(&entry.mark));
        put(&memory, 1, 5);
        put(&memory, 2, 5);
        memory.doubt(&tenant(1), Some(5));
        assert_eq!(doubted(1), Some(false), "that revision is here");
        memory.doubt(&tenant(1), Some(6));
        assert_eq!(doubted(1), Some(true));
        assert_eq!(memory.license(&tenant(1)).map(|entry| entry.mark.announced()), Some(6));
        put(&memory, 1, 6);
        assert_eq!(doubted(1), Some(false));
        memory.doubt(&tenant(1), None);
        assert_eq!((doubted(1), doubted(2)), (Some(true), Some(false)));

        let begun_before = mark(&memory);
        memory.doubt_everything();
        assert_eq!(doubted(2), Some(true));
        assert!(memory.doubts(&begun_before), "what was being read is in doubt as well");
        put(&memory, 2, 5);
        assert_eq!(doubted(2), Some(false));
    }

    #[test]
    fn it_stays_within_its_bytes_and_unknown_tenants_push_nobody_out() {
        let memory = Memory::new(64 << 10, Duration::from_hours(1));
        put(&memory, 0, 1);
        for i in 0..50_000 {
            memory.put_unknown(tenant(1 << 64 | i), mark(&memory));
        }
        memory.unknown.run_pending_tasks();
        assert!(memory.unknown.entry_count() <= UNKNOWN_TENANTS);
        assert!(memory.license(&tenant(0)).is_some());
        for i in 1..5_000 {
            put(&memory, i, 1);
            assert!(memory.license(&tenant(0)).is_some(), "the one in use was pushed out by {i}");
        }
        let (entries, bytes) = memory.usage();
        assert!(bytes <= 64 << 10, "{bytes} bytes");
        assert!(entries > 50);
    }

    #[test]
    fn known_and_unknown_exclude_each_other() {
        let memory = Memory::new(1 << 20, Duration::from_hours(1));
        memory.put_unknown(tenant(1), mark(&memory));
        put(&memory, 1, 1);
        assert!(memory.unknown(&tenant(1)).is_none());
        memory.put_unknown(tenant(1), mark(&memory));
        assert!(memory.license(&tenant(1)).is_none());
        memory.doubt(&tenant(1), Some(1));
        assert!(memory.unknown(&tenant(1)).is_none(), "a change ends not knowing");
    }
}
