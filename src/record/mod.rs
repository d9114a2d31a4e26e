//! Usage and denials: counted in memory, held against limits by leases, and written behind the requests.
//!
//! A request reserves before it is forwarded and settles when its answer begins. Both touch memory alone, except where a
//! limit is new here or nearly used up. What is counted is written by [`Recorder::run`], a batch at a time.

mod asking;
mod clicks;
mod lease;
mod leases;
mod lines;
#[cfg(test)]
mod model;
mod outbox;
mod pending;
mod reader;
mod reservation;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::civil::Date;
use licensing::config::Window;
use licensing::quota::Exhausted;
use licensing::reason::Reason;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, Semaphore, broadcast};

use self::clicks::Clicks;
use self::lease::Idling;
use self::leases::Leases;
use self::lines::{Denied, Use, day_of, minute_of};
use self::outbox::Outbox;
use self::pending::Pending;
pub(crate) use self::reader::UsageReader;
pub(crate) use self::reservation::Reservation;
use crate::clock::wall_clock;
use crate::metrics::Metrics;
use crate::stores::{Breaker, Crossing, StoreError, UsageStore};

/// How many denials wait that concern tenants without a licence: their ids may be made up, and must not push out others.
const STRANGERS: usize = 1_000;

/// Of how many tenants it is remembered when their anchored windows begin.
const ANCHORS: u64 = 100_000;

/// How log and metrics name the breaker: what is written has its own, since it goes to the primary, and look-ups may not.
const BREAKER: &str = "usage";

/// How many asks for leases are under way at once.
const ASKS: usize = 16;

/// How many thresholds that were passed wait for those who listen.
const CROSSINGS: usize = 1_024;

/// How often the store is told to give back what lies idle, it is seen whether too much waits for the next flush, and one that
/// failed is tried again at the latest.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// How usage is counted.
#[derive(Clone, Debug)]
pub(crate) struct RecordOptions {
    /// How often what is counted is written.
    pub(crate) flush_interval: Duration,
    /// How long a lease is kept that is not used. Where a limit is nearly used up, it is one flush.
    pub(crate) lease_idle: Duration,
    /// How many counts may wait while the store is away; and as many denials.
    pub(crate) pending: usize,
    /// At how many percent of a limit something is said, in ascending order.
    pub(crate) thresholds: Arc<[u8]>,
    /// How long a request may wait for a lease.
    pub(crate) deadline: Duration,
}

/// One moment by both clocks: days and periods go by the one on the wall, ages by the one that never goes back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// By this machine's clock.
    pub(crate) wall: Timestamp,
    /// By the monotonic clock.
    pub(crate) at: Instant,
}

/// What is asked of a limit: one use of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QuotaAsk<'a> {
    /// Whose limit.
    pub(crate) tenant: TenantId,
    /// Of which feature.
    pub(crate) feature: &'a Arc<str>,
    /// When counting begins anew.
    pub(crate) window: Window,
    /// What the licence allows.
    pub(crate) limit: u64,
}

/// What comes of asking without waiting.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// There was some of it here.
    Reserved(Reservation),
    /// It is known to be used up.
    Exhausted(Exhausted),
    /// The store has to be asked: [`Recorder::reserve`].
    Wait,
}

/// No lease was to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoLease {
    /// Whether it is an outage that a probe has confirmed; only then may anything be let through uncounted.
    pub(crate) certain: bool,
}

/// What an ask for a lease came to, as the label `outcome` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LeaseOutcome {
    /// Something was granted.
    Granted,
    /// Nothing was left.
    Exhausted,
    /// It was not answered.
    Failed,
}

/// What posting a batch came to, as the label `outcome` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum FlushOutcome {
    /// It is written.
    Posted,
    /// That is not known; it is posted again.
    Failed,
    /// The store refused its content.
    Refused,
}

/// Why usage is not written, as the label `cause` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DropCause {
    /// Too much was waiting.
    Full,
    /// Its tenant has no licence any more.
    NoLicense,
    /// The store refused it.
    Refused,
}

/// What is counted, and how much of which limit is held. One a process.
pub(crate) struct Recorder {
    store: Arc<dyn UsageStore>,
    options: RecordOptions,
    /// Where asks run: not on the request's task, which ends when its client leaves while others still wait.
    runtime: Handle,
    metrics: Arc<Metrics>,
    breaker: Arc<Breaker>,
    leases: Leases,
    /// Places for asks that are under way. The others wait here, each with its turn, and not for one of the store's few
    /// connections.
    asks: Semaphore,
    /// By day.
    uses: Arc<Pending<Use>>,
    /// By minute.
    denials: Pending<Denied>,
    /// The same of tenants without a licence.
    strangers: Pending<Denied>,
    clicks: Clicks,
    /// What has left these, and is not known to be written.
    outbox: tokio::sync::Mutex<Outbox>,
    anchors: Cache<TenantId, Arc<OnceCell<Date>>>,
    crossings: broadcast::Sender<Crossing>,
    /// Nothing is kept any more: the process ends.
    ends: AtomicBool,
}

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        Self { wall: wall_clock(), at: tokio::time::Instant::now().into_std() }
    }

    /// So much later.
    fn later(self, by: Duration) -> Self {
        Self { wall: self.wall.plus(by), at: self.at + by }
    }
}

impl LeaseOutcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 3] = [Self::Granted, Self::Exhausted, Self::Failed];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Exhausted => "exhausted",
            Self::Failed => "failed",
        }
    }
}

impl FlushOutcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 3] = [Self::Posted, Self::Failed, Self::Refused];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Posted => "posted",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl DropCause {
    /// Every cause.
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::NoLicense, Self::Refused];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::NoLicense => "no_license",
            Self::Refused => "refused",
        }
    }
}

impl Recorder {
    /// Nothing is counted yet, and nothing connected.
    pub(crate) fn new(
        store: Arc<dyn UsageStore>,
        options: RecordOptions,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let dropped = |counter: &prometheus::IntCounter| counter.clone();
        Arc::new(Self {
            // Together with the patience of those who wait, shorter than their deadline, as for look-ups.
            breaker: Breaker::named(BREAKER, options.deadline * 7 / 10),
            leases: Leases::new(),
            asks: Semaphore::new(ASKS),
            uses: Arc::new(Pending::new(options.pending, dropped(metrics.usage_dropped.of(DropCause::Full)))),
            denials: Pending::new(options.pending, dropped(&metrics.denial_events_dropped)),
            strangers: Pending::new(STRANGERS, dropped(&metrics.denial_events_dropped)),
            clicks: Clicks::default(),
            outbox: tokio::sync::Mutex::default(),
            anchors: Cache::new(ANCHORS),
            crossings: broadcast::Sender::new(CROSSINGS),
            ends: AtomicBool::new(false),
            store,
            options,
            runtime,
            metrics,
        })
    }

    /// Count a use that no limit holds back: none is set, it is soft and passed, or nobody could be asked.
    pub(crate) fn unleased(&self, tenant: TenantId, feature: &Arc<str>, now: Timestamp) -> Reservation {
        Reservation::unleased(&self.uses, tenant, feature, day_of(now))
    }

    /// Count a denial; `shadow`: it was not acted on. Only what is about the licence is counted.
    pub(crate) fn denied(&self, tenant: TenantId, feature: &Arc<str>, reason: Reason, shadow: bool, now: Timestamp) {
        if !reason.is_about_licence() {
            return;
        }
        let pending = if reason == Reason::NoLicense { &self.strangers } else { &self.denials };
        pending.add(tenant, minute_of(now), Denied { feature: Arc::clone(feature), reason, shadow, count: 1 });
    }

    /// How long a request may wait for a lease.
    pub(crate) fn deadline(&self) -> Duration {
        self.options.deadline
    }

    /// Be told of thresholds that are passed. Each is told by the replica that finds it.
    #[cfg_attr(not(test), allow(dead_code, reason = "until the WebSocket of the licence API listens"))]
    pub(crate) fn crossings(&self) -> broadcast::Receiver<Crossing> {
        self.crossings.subscribe()
    }

    /// Write what is counted, for as long as the program runs.
    pub(crate) async fn run(self: Arc<Self>) {
        let RecordOptions { flush_interval: interval, pending, .. } = self.options;
        // Replicas that began together do not write together.
        let bits = uuid::Uuid::new_v4().as_u64_pair().1;
        let share = f64::from(u32::try_from(bits % 1024).unwrap_or_default()) / 1024.0;
        let mut flushes = tokio::time::interval_at(tokio::time::Instant::now() + interval.mul_f64(share), interval);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        for ticks in [&mut flushes, &mut housekeeping] {
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                _ = flushes.tick() => {
                    if !self.flush(Moment::now()).await {
                        flushes.reset_after(interval.min(HOUSEKEEPING));
                    }
                }
                _ = housekeeping.tick() => {
                    self.store.close_idle();
                    if self.uses.len().max(self.denials.len()) > pending / 2 {
                        flushes.reset_immediately();
                    }
                }
            }
        }
    }

    /// Give all leases back and write everything, before the process ends: no request is under way any more, or will not be
    /// waited for. False: something could not be written until `deadline`; it is lost, and what was leased stays reserved
    /// until its period ends.
    pub(crate) async fn finish(self: &Arc<Self>, deadline: tokio::time::Instant) -> bool {
        const PAUSE: Duration = Duration::from_millis(20);
        self.ends.store(true, Ordering::Release);
        let finishing = async {
            loop {
                if self.flush(Moment::now()).await && !self.is_busy() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let finished = tokio::time::timeout_at(deadline, finishing).await.is_ok();
        if !finished {
            let (counts, denials) = (self.uses.len(), self.denials.len() + self.strangers.len());
            tracing::error!(counts, denials, "usage could not be written before the end");
        }
        finished
    }

    /// Whether something is counted that is not written, or leased and not given back.
    pub(crate) fn is_busy(&self) -> bool {
        let waits = self.uses.len() + self.denials.len() + self.strangers.len() + self.clicks.len() > 0;
        waits || self.outbox.try_lock().map_or(true, |outbox| !outbox.is_empty()) || self.leases.hold_something()
    }

    /// Take down how much waits and whether the store answers, for the metrics.
    pub(crate) fn observe(&self) {
        self.metrics.set_breaker(BREAKER, self.breaker.state());
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.usage_pending.set(gauge(self.uses.len()));
        self.metrics.denial_events_pending.set(gauge(self.denials.len() + self.strangers.len()));
    }

    fn idling(&self) -> Idling {
        Idling {
            after: self.options.lease_idle,
            // A little less than one flush interval, which is never quite kept.
            after_near: self.options.flush_interval / 2,
            at_once: self.ends.load(Ordering::Acquire),
        }
    }

    /// Count a failure of the store, and have the breaker look into it.
    fn report(&self, error: &StoreError) {
        if let Some(store) = error.store() {
            self.metrics.store_errors.of(store).inc();
        }
        match error {
            StoreError::Unavailable { .. } => self.breaker.report_failure(&self.runtime, error, self.probe()),
            // Others may hold the row that it is about: that is no outage.
            StoreError::Late { .. } => self.breaker.look_into(&self.runtime, self.probe()),
            // It has answered.
            StoreError::Refused { .. } | StoreError::Unreadable { .. } | StoreError::Shed => {}
        }
    }

    fn probe(&self) -> impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync + 'static {
        let store = Arc::clone(&self.store);
        move || {
            let store = Arc::clone(&store);
            async move { store.probe().await }.boxed()
        }
    }
}
