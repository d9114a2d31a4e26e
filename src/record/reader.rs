//! How much a tenant has used: asked of the stores for the licence API alone, never on a request's way through the gate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use licensing::tenant::TenantId;
use licensing::view::Usage;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::stores::{Since, UsageSource};

/// For how long an answer is given again, at the most: whoever looks all the time costs the source little.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// How many tenants are remembered, the least used out first.
const REMEMBERED: u64 = 10_000;

/// How many may wait for an answer; more are given what is known.
const WAITING: usize = 256;

/// What is known of tenants' use, and who asks for more.
pub(crate) struct UsageReader {
    source: Arc<dyn UsageSource>,
    /// Where queries run: not on the caller's task, which may end while others still wait for the same answer.
    runtime: Handle,
    /// How long a caller waits.
    deadline: Duration,
    fresh_for: Duration,
    known: Cache<TenantId, Arc<Slot>>,
    waiting: Arc<Semaphore>,
    /// One query at a time: look-ups of licences use the same connections.
    asking: Arc<Semaphore>,
}

/// What is known of one tenant.
#[derive(Default)]
struct Slot {
    last: Mutex<Option<Reading>>,
    /// Held by whoever asks.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Reading {
    since: Since,
    tried_at: Instant,
    /// The last that was read of it.
    usage: Option<Arc<Usage>>,
}

impl UsageReader {
    /// Ask `source` on `runtime`; whoever reads waits no longer than `deadline`. What is read changes every `interval`, and is
    /// not asked for more often.
    pub(crate) fn new(source: Arc<dyn UsageSource>, runtime: Handle, deadline: Duration, interval: Duration) -> Self {
        Self {
            source,
            runtime,
            deadline,
            fresh_for: interval.min(FRESH_FOR),
            known: Cache::builder().max_capacity(REMEMBERED).build(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            asking: Arc::new(Semaphore::new(1)),
        }
    }

    /// What `tenant` has used since then, a few seconds old perhaps; none if nobody can tell. `ask`: whether there is a point in
    /// asking the source.
    pub(crate) async fn of(&self, tenant: TenantId, since: &Since, ask: bool) -> Option<Arc<Usage>> {
        let slot = self.known.get_with(tenant, Arc::default);
        if ask
            && !slot.is_fresh(since, self.fresh_for)
            && let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned()
        {
            let (source, asking, slot) = (Arc::clone(&self.source), Arc::clone(&self.asking), Arc::clone(&slot));
            let (since, fresh_for) = (since.clone(), self.fresh_for);
            let asked = self.runtime.spawn(async move {
                let _place = place;
                let _turn = slot.turn.lock().await;
                let Ok(_asking) = asking.acquire().await else { return };
                if slot.is_fresh(&since, fresh_for) {
                    return;
                }
                let usage = source.usage(tenant, &since).await;
                if let Err(error) = &usage {
                    tracing::warn!(%error, "the use of licences can't be read");
                }
                slot.put(since, usage.ok());
            });
            // Too late: what it finds is for those who come later.
            let _ = tokio::time::timeout(self.deadline, asked).await;
        }
        slot.last_of(since)
    }
}

impl Slot {
    /// Whether somebody has asked just now, in vain or not.
    fn is_fresh(&self, since: &Since, fresh_for: Duration) -> bool {
        let last = self.last.lock();
        last.as_ref().is_some_and(|last| last.since == *since && last.tried_at.elapsed() < fresh_for)
    }

    fn last_of(&self, since: &Since) -> Option<Arc<Usage>> {
        self.last.lock().as_ref().filter(|last| last.since == *since)?.usage.clone()
    }

    fn put(&self, since: Since, usage: Option<Usage>) {
        let usage = usage.map(Arc::new).or_else(|| self.last_of(&since));
        *self.last.lock() = Some(Reading { since, tried_at: Instant::now(), usage });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use jiff::civil::Date;
    use uuid::Uuid;

    use super::*;
    use crate::stores::{StoreError, StoreName};

    fn november() -> Since {
        Since { day: Date::constant(2026, 11, 1), of: Vec::new() }
    }

    fn december() -> Since {
        Since { day: Date::constant(2026, 12, 1), of: Vec::new() }
    }

    /// Answers with the number of the question, or not at all.
    #[derive(Default)]
    struct Fake {
        asked: AtomicUsize,
        fails: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl UsageSource for Fake {
        async fn usage(&self, _: TenantId, since: &Since) -> Result<Usage, StoreError> {
            tokio::task::yield_now().await;
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            match self.fails.load(Ordering::Relaxed) {
                true => Err(StoreError::unavailable(StoreName::File, "as the test wants")),
                false => Ok(Usage::from([(since.day.to_string().into(), i64::try_from(number).expect("small"))])),
            }
        }
    }

    fn tenant(id: u128) -> TenantId {
        TenantId::new(Uuid::from_u128(id))
    }

    fn reader() -> (Arc<Fake>, UsageReader) {
        let fake = Arc::new(Fake::default());
        let reader = UsageReader::new(Arc::clone(&fake) as _, Handle::current(), Duration::from_secs(5), FRESH_FOR);
        (fake, reader)
    }

    #[tokio::test]
    async fn many_who_ask_at_once_are_one_question() {
        let (fake, reader) = reader();
        let november = november();
        let answers = futures_util::future::join_all((0..100).map(|_| reader.of(tenant(1), &november, true))).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        let expected = Arc::new(Usage::from([("2026-11-01".into(), 0)]));
        assert!(answers.iter().all(|answer| answer.as_ref() == Some(&expected)));
        reader.of(tenant(2), &november, true).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2, "each tenant for itself");
    }

    #[tokio::test]
    async fn another_period_ends_what_was_known() {
        let (fake, reader) = reader();
        reader.of(tenant(1), &november(), true).await;
        let december = reader.of(tenant(1), &december(), true).await;
        assert_eq!(december, Some(Arc::new(Usage::from([("2026-12-01".into(), 1)]))));
        fake.fails.store(true, Ordering::Relaxed);
        assert_eq!(
            reader.of(tenant(1), &november(), true).await,
            None,
            "what was of another period is not of this one"
        );
    }

    #[tokio::test]
    async fn a_failure_leaves_what_was_known() {
        let (fake, reader) = reader();
        let known = reader.of(tenant(1), &november(), true).await;
        fake.fails.store(true, Ordering::Relaxed);
        let slot = reader.known.get(&tenant(1)).expect("known");
        slot.last.lock().as_mut().expect("read").tried_at -= FRESH_FOR;
        assert_eq!(reader.of(tenant(1), &november(), true).await, known);
        assert_eq!(reader.of(tenant(1), &november(), true).await, known);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2, "a failure is not tried again at once");
        assert_eq!(reader.of(tenant(2), &november(), true).await, None);
        assert_eq!(reader.of(tenant(3), &november(), false).await, None);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3, "nobody is asked where there is no point");
    }
}
