//! The licence look-up: memory, then Redis, then the source, under one deadline, one load per tenant at a time; and what
//! is heard of changes meanwhile.

mod announce;
mod coverage;
mod feed;
mod flight;
mod hear;
mod loader;
mod memory;
mod pulse;
mod watch;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use licensing::config::ChangeFeed;
use licensing::license::Validity;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::runtime::Handle;

pub(crate) use self::announce::{Announcer, Told};
pub(crate) use self::coverage::Channel;
use self::coverage::Coverage;
pub(crate) use self::feed::Feed;
use self::flight::Flight;
use self::hear::Trust;
use self::loader::Loader;
pub(crate) use self::memory::Entry;
use self::memory::{Mark, Memory};
use self::pulse::Sessions;
use self::watch::Watchers;
pub(crate) use self::watch::{News, Watch};
use crate::metrics::Metrics;
use crate::stores::{Breaker, BreakerState, CrossingNotice, Redis, Source, StoreError, StoreName};

/// How long a threshold is known again that is heard of twice, and how many are.
const THRESHOLDS_FOR: Duration = Duration::from_secs(60);
const THRESHOLDS: u64 = 10_000;

/// How old a licence may be, and how long a look-up may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freshness {
    /// How long a licence is used before the source is asked again, while every change would be heard of.
    pub ttl: Duration,
    /// The same while changes may go unheard, counted from when it was last certain that there was none.
    pub revalidate_after: Duration,
    /// How old a last known licence may be that is used while no store answers, counted alike.
    pub stale_if_error: Duration,
    /// How long one look-up may take, all layers together.
    pub deadline: Duration,
    /// The most that licences may take in memory, in bytes.
    pub memory_bytes: u64,
}

/// Which layer answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layer {
    /// This process.
    Memory,
    /// Redis.
    Redis,
    /// Postgres or the licence file.
    Source,
}

impl Layer {
    /// Every layer.
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Redis, Self::Source];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Source => "source",
        }
    }
}

/// What is known of a tenant.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Its licence.
    License(Arc<Entry>),
    /// That it has none.
    Nothing,
    /// Its last known licence: no store answers, but it is not older than `stale_if_error`.
    Stale(Arc<Entry>),
    /// Nothing, for want of an answer.
    Failed {
        /// Whether it is the entry that is at fault, or an outage that a probe has confirmed; only then may anything be
        /// let through without a licence.
        certain: bool,
    },
}

/// The answer to one look-up.
#[derive(Clone, Debug)]
pub(crate) struct LookUp {
    /// What is known.
    pub found: Found,
    /// Which layer said so, if one did.
    pub layer: Option<Layer>,
}

/// All layers, what is being loaded, and what is heard of changes.
pub(crate) struct Licenses {
    memory: Memory,
    coverage: Coverage,
    redis: Option<(Arc<Redis>, Arc<Breaker>)>,
    trust: AtomicU8,
    source: Arc<dyn Source>,
    loader: Loader,
    source_breaker: Arc<Breaker>,
    freshness: Freshness,
    loading: Mutex<HashMap<TenantId, Arc<Flight>>>,
    /// Whether anybody tells of changes in the source.
    has_feed: bool,
    /// The feeds that are heard by way of Redis, where that is how changes come.
    relayed: Option<Mutex<Sessions>>,
    /// Whether somebody has dropped the tables to turn licensing off.
    off: AtomicBool,
    /// Those who are told of changes.
    watchers: Watchers,
    /// The thresholds that were heard of lately.
    thresholds: Cache<CrossingNotice, ()>,
    /// Where loads run: not on the request's task, which ends when its client leaves while others still wait.
    runtime: Handle,
    metrics: Arc<Metrics>,
    reached: AtomicBool,
    redis_refuses_writes: AtomicBool,
    jitter: u64,
}

/// Whether something in memory may still be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Fresh,
    /// Yes, and it should be asked for again behind the request.
    Renew,
    /// No: a store has to be asked first.
    Due,
}

impl Licenses {
    /// Put the layers together. Nothing is connected yet. `change_feed`: how changes come.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        redis: Option<Redis>,
        freshness: Freshness,
        change_feed: ChangeFeed,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        // Together with the patience of those who wait, shorter than their deadline: see `wait_for`. A store that takes longer
        // than this for its simplest answer is as good as down.
        let verdict_within = freshness.deadline * 7 / 10;
        let redis = redis.map(|redis| (Arc::new(redis), Breaker::new(StoreName::Redis, verdict_within)));
        let licenses = Arc::new(Self {
            memory: Memory::new(freshness.memory_bytes, freshness.stale_if_error.max(freshness.ttl)),
            coverage: Coverage::new(redis.is_some(), Instant::now()),
            redis,
            trust: AtomicU8::new(Trust::ByAge as u8),
            source_breaker: Breaker::new(source.name(), verdict_within),
            loader: Loader::new(Arc::clone(&source), runtime.clone(), Arc::clone(&metrics)),
            watchers: Watchers::default(),
            thresholds: Cache::builder().max_capacity(THRESHOLDS).time_to_live(THRESHOLDS_FOR).build(),
            source,
            freshness,
            loading: Mutex::default(),
            has_feed: change_feed != ChangeFeed::None,
            relayed: (change_feed == ChangeFeed::Redis).then(Mutex::default),
            off: AtomicBool::new(false),
            runtime,
            metrics,
            reached: AtomicBool::new(false),
            redis_refuses_writes: AtomicBool::new(false),
            jitter: uuid::Uuid::new_v4().as_u64_pair().1,
        });
        if let Some((redis, _)) = &licenses.redis {
            let this = Arc::downgrade(&licenses);
            redis.listen(move |push| {
                if let Some(licenses) = this.upgrade() {
                    licenses.pushed(push);
                }
            });
        }
        licenses
    }

    /// What memory knows and may still say. This is where nearly every request ends, so it waits for nothing: an answer
    /// that is about to become too old is renewed behind it, and in an outage the last known one is given at once.
    pub(crate) fn peek(self: &Arc<Self>, tenant: TenantId, now: Instant) -> Option<LookUp> {
        let from_memory = |found| Some(LookUp { found, layer: Some(Layer::Memory) });
        let Some(entry) = self.memory.license(&tenant) else {
            let mark = self.memory.unknown(&tenant)?;
            return if self.standing(&mark, tenant, now) == Standing::Due { None } else { from_memory(Found::Nothing) };
        };
        entry.mark.use_it();
        let outage = || !self.source_breaker.allows();
        match self.standing(&entry.mark, tenant, now) {
            Standing::Fresh => from_memory(Found::License(entry)),
            Standing::Renew => {
                if !outage() {
                    drop(self.load(tenant, false));
                }
                from_memory(Found::License(entry))
            }
            Standing::Due if outage() || self.memory.is_faulty(&tenant) => {
                let last_known = self.last_known(tenant, now)?;
                from_memory(Found::Stale(last_known))
            }
            Standing::Due => None,
        }
    }

    /// Ask the stores, or wait for whoever is asking them already; at most `deadline`. The second value tells whether this
    /// call was the one that asked the source.
    pub(crate) async fn ask(self: &Arc<Self>, tenant: TenantId) -> (LookUp, bool) {
        if self.memory.is_faulty(&tenant) {
            return (self.without_stores(tenant, true), false);
        }
        self.wait_for(tenant, self.load(tenant, false)).await
    }

    /// Whether Redis should be asked before `entry`, from memory, is reason enough to deny anything: nobody who has just
    /// paid is to be refused by a memory. True at most once a second for each tenant.
    pub(crate) fn may_be_outdated(&self, entry: &Entry, now: Instant) -> bool {
        const INTERVAL: Duration = Duration::from_secs(1);
        self.redis.as_ref().is_some_and(|(_, breaker)| breaker.allows()) && entry.mark.recheck(now, INTERVAL)
    }

    /// What Redis knows that memory may not; the source is asked only if Redis has nothing at all.
    pub(crate) async fn ask_again(self: &Arc<Self>, tenant: TenantId) -> (LookUp, bool) {
        self.wait_for(tenant, self.load(tenant, true)).await
    }

    async fn wait_for(&self, tenant: TenantId, (flight, leads): (Arc<Flight>, bool)) -> (LookUp, bool) {
        let deadline = self.freshness.deadline;
        let mut result = flight.result.clone();
        let waiting = async {
            // A request that learns nothing by its deadline is refused, unless it is known by then that this is an outage.
            // So somebody has to look while there is time.
            loop {
                match tokio::time::timeout(deadline * 3 / 20, result.wait_for(Option::is_some)).await {
                    Ok(answer) => return answer.ok().and_then(|answer| answer.clone()),
                    Err(_) => self.source_breaker.look_into(&self.runtime, self.source_probe()),
                }
            }
        };
        // Too late, or the load has died: what it finds later is for those who come later.
        let answer = tokio::time::timeout(deadline, waiting).await.ok().flatten();
        let look_up = answer.unwrap_or_else(|| self.without_stores(tenant, false));
        let asked_source = leads && look_up.layer.is_none_or(|layer| layer == Layer::Source);
        (look_up, asked_source)
    }

    /// Whether there is a point in asking the source for anything.
    pub(crate) fn source_answers(&self) -> bool {
        self.source_breaker.allows()
    }

    /// Whether a store has ever answered: from then on this replica can decide.
    pub(crate) fn has_reached_a_store(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Whether licences are to be enforced at all: not after somebody has dropped the tables.
    pub(crate) fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// Whether this channel is there to be heard: a feed in the configuration, a Redis in the environment.
    pub(crate) fn has(&self, channel: Channel) -> bool {
        match channel {
            Channel::Feed => self.has_feed,
            Channel::Redis => self.redis.is_some(),
        }
    }

    /// Whether changes are heard of by this channel now.
    pub(crate) fn is_live(&self, channel: Channel) -> bool {
        self.coverage.is_live(channel, Instant::now())
    }

    /// Once a second for as long as the program runs: try the stores until one answers, see that Redis's pushes arrive,
    /// close what lies idle.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let redis = async {
                let (redis, breaker) = self.redis.as_ref()?;
                if !breaker.allows() {
                    return None;
                }
                let result = redis.probe().await;
                match &result {
                    Ok(()) => self.coverage.heard(Channel::Redis, Instant::now()),
                    Err(error) => drop(self.report(error)),
                }
                Some(result)
            };
            if self.has_reached_a_store() {
                redis.await;
            } else {
                let (source, redis) = tokio::join!(self.source.warm_up(), redis);
                match (source, redis) {
                    (Ok(()), _) | (_, Some(Ok(()))) => self.reached.store(true, Ordering::Release),
                    (Err(error), _) => tracing::warn!(%error, "no store answers yet"),
                }
            }
            self.source.close_idle();
        }
    }

    /// The state of the breakers, by store.
    pub(crate) fn breakers(&self) -> impl Iterator<Item = (StoreName, BreakerState)> {
        let redis = self.redis.as_ref().map(|(_, breaker)| (StoreName::Redis, breaker.state()));
        [(self.source.name(), self.source_breaker.state())].into_iter().chain(redis)
    }

    /// How many licences memory holds, and their bytes.
    pub(crate) fn memory_use(&self) -> (u64, u64) {
        self.memory.usage()
    }

    /// How many of the licences in memory end within each of these spans from `now`, by one pass over them. Those that have
    /// ended are no more among them.
    pub(crate) fn ending_within<const N: usize>(&self, spans: [Duration; N], now: Timestamp) -> [i64; N] {
        let mut counts = [0; N];
        let ends = self.memory.licenses().map(|entry| entry.license.valid_until);
        for end in ends.filter(|end| now < *end && end.is_finite()) {
            for (count, span) in counts.iter_mut().zip(spans) {
                *count += i64::from(end <= now.plus(span));
            }
        }
        counts
    }

    /// How many of the licences in memory are served in their grace at `now`: they renew themselves, have ended and are not
    /// renewed. What nobody has asked for lately may have been renewed meanwhile: it counts only as long as that would have
    /// been heard of, or for `ttl`.
    pub(crate) fn overdue(&self, grace: Duration, now: Timestamp) -> i64 {
        let at = Instant::now();
        let overdue = self.memory.licenses().filter(|entry| {
            let confirmed = self.coverage.confirmed(entry.mark.known_at);
            matches!(entry.license.validity(grace, now), Validity::Grace { .. })
                && !self.memory.doubts(&entry.mark)
                && at.saturating_duration_since(confirmed) < self.freshness.ttl
        });
        i64::try_from(overdue.count()).unwrap_or(i64::MAX)
    }

    /// Whether what is known may still be said. Both the age and the time since the last confirmation have a bound, and
    /// renewal begins between 70 and 90 % of it, another share for each tenant and process, so that neither a fleet nor a
    /// replica renews all at once.
    fn standing(&self, mark: &Mark, tenant: TenantId, now: Instant) -> Standing {
        /// What was known before the channels were heard again is asked for within this time, if it is in use.
        const CATCH_UP: Duration = Duration::from_secs(2);
        if self.memory.doubts(mark) {
            return Standing::Due;
        }
        let bits = tenant.as_uuid().as_u64_pair().1 ^ self.jitter;
        let share = f64::from(u32::try_from(bits % 1024).unwrap_or_default()) / 1024.0;
        let Freshness { ttl, revalidate_after, .. } = self.freshness;
        let mut spent = mark.age(now).as_secs_f64() / ttl.as_secs_f64();
        let live = self.coverage.stretch().filter(|stretch| stretch.is_live(now));
        let mut catch_up = false;
        if !live.is_some_and(|live| live.covers(mark.known_at)) {
            let unconfirmed = now.saturating_duration_since(self.coverage.confirmed(mark.known_at));
            spent = spent.max(unconfirmed.as_secs_f64() / revalidate_after.min(ttl).as_secs_f64());
            catch_up = live.is_some_and(|live| now.saturating_duration_since(live.since) > CATCH_UP.mul_f64(share));
        }
        match spent {
            spent if spent >= 1.0 => Standing::Due,
            spent if spent >= 0.7 + 0.2 * share || catch_up => Standing::Renew,
            _ => Standing::Fresh,
        }
    }

    /// The last known licence, if it is within its bound.
    fn last_known(&self, tenant: TenantId, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.memory.license(&tenant)?;
        let unconfirmed = now.saturating_duration_since(self.coverage.confirmed(entry.mark.known_at));
        (unconfirmed < self.freshness.stale_if_error).then_some(entry)
    }

    /// What remains when no store answers: the last known licence within its bound.
    fn without_stores(&self, tenant: TenantId, certain: bool) -> LookUp {
        match self.last_known(tenant, Instant::now()) {
            Some(entry) => LookUp { found: Found::Stale(entry), layer: Some(Layer::Memory) },
            None => LookUp { found: Found::Failed { certain: certain || !self.source_breaker.allows() }, layer: None },
        }
    }

    fn source_probe(&self) -> impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync + 'static {
        let source = Arc::clone(&self.source);
        move || {
            let source = Arc::clone(&source);
            async move { source.probe().await }.boxed()
        }
    }

    /// Count a store's failure and have its breaker look into it. True if the failure is the entry's own.
    fn report(&self, error: &StoreError) -> bool {
        if let Some(store) = error.store() {
            self.metrics.store_errors.of(store).inc();
        }
        match error {
            StoreError::Shed => {
                self.metrics.lookups_shed.inc();
                false
            }
            StoreError::Unreadable { tenant, .. } => {
                if self.memory.is_news(*tenant) {
                    tracing::error!(%error, "a licence can't be read");
                }
                true
            }
            // It has answered. Look-ups write nothing.
            StoreError::Refused { .. } => false,
            StoreError::Unavailable { store: StoreName::Redis, .. } => {
                if let Some((redis, breaker)) = &self.redis {
                    let redis = Arc::clone(redis);
                    breaker.report_failure(&self.runtime, error, move || {
                        let redis = Arc::clone(&redis);
                        async move { redis.probe().await }
                    });
                }
                false
            }
            StoreError::Unavailable { .. } | StoreError::Late { .. } => {
                let probe = self.source_probe();
                match error {
                    // Only strangers' time-outs come here as such: they may have brought it about themselves.
                    StoreError::Late { .. } => self.source_breaker.look_into(&self.runtime, probe),
                    _ => self.source_breaker.report_failure(&self.runtime, error, probe),
                }
                false
            }
        }
    }
}
