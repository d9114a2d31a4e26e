//! How much a tenant has used this month: asked of the source for the licence API alone, never on a request's way through
//! the gate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use licensing::view::Usage;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::stores::Source;

/// For how long an answer is given again: whoever looks all the time costs the source little.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// How many tenants are remembered, the least used out first.
const REMEMBERED: u64 = 10_000;

/// How many may wait for an answer; more are given what is known.
const WAITING: usize = 256;

/// What is known of tenants' use, and who asks for more.
pub(super) struct UsageReader {
    source: Arc<dyn Source>,
    /// Where queries run: not on the caller's task, which may end while others still wait for the same answer.
    runtime: Handle,
    /// How long a caller waits.
    deadline: Duration,
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
    month: Date,
    tried_at: Instant,
    /// The last that was read in this month.
    usage: Option<Arc<Usage>>,
}

impl UsageReader {
    pub(super) fn new(source: Arc<dyn Source>, runtime: Handle, deadline: Duration) -> Self {
        Self {
            source,
            runtime,
            deadline,
            known: Cache::builder().max_capacity(REMEMBERED).build(),
            waiting: Arc::new(Semaphore::new(WAITING)),
            asking: Arc::new(Semaphore::new(1)),
        }
    }

    /// What `tenant` has used in the month of `now`, a few seconds old perhaps; none if nobody can tell. `ask`: whether
    /// there is a point in asking the source.
    pub(super) async fn of(&self, tenant: TenantId, now: Timestamp, ask: bool) -> Option<Arc<Usage>> {
        let month = first_of_month(now)?;
        let slot = self.known.get_with(tenant, Arc::default);
        if ask
            && !slot.is_fresh(month)
            && let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned()
        {
            let (source, asking, slot) = (Arc::clone(&self.source), Arc::clone(&self.asking), Arc::clone(&slot));
            let asked = self.runtime.spawn(async move {
                let _place = place;
                let _turn = slot.turn.lock().await;
                let Ok(_asking) = asking.acquire().await else { return };
                if slot.is_fresh(month) {
                    return;
                }
                let usage = source.usage(tenant, month).await;
                if let Err(error) = &usage {
                    tracing::warn!(%error, "the use of licences can't be read");
                }
                slot.put(month, usage.ok());
            });
            // Too late: what it finds is for those who come later.
            let _ = tokio::time::timeout(self.deadline, asked).await;
        }
        slot.last_of(month)
    }
}

impl Slot {
    /// Whether somebody has asked just now, in vain or not.
    fn is_fresh(&self, month: Date) -> bool {
        let last = self.last.lock();
        last.as_ref().is_some_and(|last| last.month == month && last.tried_at.elapsed() < FRESH_FOR)
    }

    fn last_of(&self, month: Date) -> Option<Arc<Usage>> {
        self.last.lock().as_ref().filter(|last| last.month == month)?.usage.clone()
    }

    fn put(&self, month: Date, usage: Option<Usage>) {
        let usage = usage.map(Arc::new).or_else(|| self.last_of(month));
        *self.last.lock() = Some(Reading { month, tried_at: Instant::now(), usage });
    }
}

fn first_of_month(now: Timestamp) -> Option<Date> {
    let now = jiff::Timestamp::from_microsecond(now.as_micros()).ok()?;
    Some(now.to_zoned(TimeZone::UTC).date().first_of_month())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::stores::{Answer, StoreError, StoreName};

    /// 2026-11-23T08:00:00Z.
    const NOVEMBER: Timestamp = Timestamp::from_micros(1_795_420_800_000_000);
    /// 2026-12-01T00:00:00Z.
    const DECEMBER: Timestamp = Timestamp::from_micros(1_796_083_200_000_000);

    /// Answers with the number of the question, or not at all.
    #[derive(Default)]
    struct Fake {
        asked: AtomicUsize,
        fails: std::sync::atomic::AtomicBool,
    }

    #[async_trait]
    impl Source for Fake {
        async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
            Ok(vec![Ok(None); tenants.len()])
        }

        async fn probe(&self) -> Result<(), StoreError> {
            Ok(())
        }

        fn queries_at_once(&self) -> usize {
            1
        }

        fn name(&self) -> StoreName {
            StoreName::File
        }

        async fn usage(&self, _: TenantId, since: Date) -> Result<Usage, StoreError> {
            tokio::task::yield_now().await;
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            match self.fails.load(Ordering::Relaxed) {
                true => Err(StoreError::unavailable(StoreName::File, "as the test wants")),
                false => Ok(Usage::from([(since.to_string().into(), i64::try_from(number).expect("small"))])),
            }
        }
    }

    fn tenant(id: u128) -> TenantId {
        TenantId::new(Uuid::from_u128(id))
    }

    fn reader() -> (Arc<Fake>, UsageReader) {
        let fake = Arc::new(Fake::default());
        let reader = UsageReader::new(Arc::clone(&fake) as _, Handle::current(), Duration::from_secs(5));
        (fake, reader)
    }

    #[tokio::test]
    async fn many_who_ask_at_once_are_one_question() {
        let (fake, reader) = reader();
        let answers = futures_util::future::join_all((0..100).map(|_| reader.of(tenant(1), NOVEMBER, true))).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
        let expected = Arc::new(Usage::from([("2026-11-01".into(), 0)]));
        assert!(answers.iter().all(|answer| answer.as_ref() == Some(&expected)));
        reader.of(tenant(2), NOVEMBER, true).await;
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2, "each tenant for itself");
    }

    #[tokio::test]
    async fn a_month_ends_what_was_known() {
        let (fake, reader) = reader();
        reader.of(tenant(1), NOVEMBER, true).await;
        let december = reader.of(tenant(1), DECEMBER, true).await;
        assert_eq!(december, Some(Arc::new(Usage::from([("2026-12-01".into(), 1)]))));
        fake.fails.store(true, Ordering::Relaxed);
        assert_eq!(reader.of(tenant(1), NOVEMBER, true).await, None, "what was of another month is not of this one");
    }

    #[tokio::test]
    async fn a_failure_leaves_what_was_known() {
        let (fake, reader) = reader();
        let known = reader.of(tenant(1), NOVEMBER, true).await;
        fake.fails.store(true, Ordering::Relaxed);
        let slot = reader.known.get(&tenant(1)).expect("known");
        slot.last.lock().as_mut().expect("read").tried_at -= FRESH_FOR;
        assert_eq!(reader.of(tenant(1), NOVEMBER, true).await, known);
        assert_eq!(reader.of(tenant(1), NOVEMBER, true).await, known);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 2, "a failure is not tried again at once");
        assert_eq!(reader.of(tenant(2), NOVEMBER, true).await, None);
        assert_eq!(reader.of(tenant(3), NOVEMBER, false).await, None);
        assert_eq!(fake.asked.load(Ordering::Relaxed), 3, "nobody is asked where there is no point");
    }
}
