//! A circuit breaker: opens only on an outage that a background probe has confirmed, closes as soon as a probe succeeds.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{StoreError, StoreName};

/// How long after a failed probe the next one follows.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// How long after one look into a store that answers the next one may follow.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How often the log may say that a request failed although the store answers probes.
const NEWS_INTERVAL: Duration = Duration::from_secs(30);

/// What is known of a store's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// It answers.
    Closed,
    /// A request failed; a probe is under way, and requests go on trying meanwhile.
    Suspect,
    /// A probe failed too: an outage. Nobody waits for the store until a probe succeeds.
    Open,
}

/// The health of one store, shared by everything that asks it.
///
/// Requests only report failures; whether these are an outage is for a probe of the breaker's own to say. So no client can
/// make the gate believe in an outage by sending requests that time out.
#[derive(Debug)]
pub(crate) struct Breaker {
    name: &'static str,
    /// How long the probe may take that confirms an outage: those who wait for what it says have a deadline.
    verdict_within: Duration,
    state: watch::Sender<BreakerState>,
    /// A probe of [`Breaker::look_into`] is under way, or was a moment ago.
    looking: AtomicBool,
    /// When the store last answered a request.
    answered_at: Mutex<Option<Instant>>,
    /// When the log last said that a request had failed.
    said_at: Mutex<Option<Instant>>,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(store: StoreName, verdict_within: Duration) -> Arc<Self> {
        Self::named(store.as_str(), verdict_within)
    }

    /// A closed breaker of something that is no store by itself; `name` stands in the log.
    pub(crate) fn named(name: &'static str, verdict_within: Duration) -> Arc<Self> {
        Arc::new(Self {
            name,
            verdict_within,
            state: watch::Sender::new(BreakerState::Closed),
            looking: AtomicBool::new(false),
            answered_at: Mutex::new(None),
            said_at: Mutex::new(None),
        })
    }

    /// The state now.
    pub(crate) fn state(&self) -> BreakerState {
        *self.state.borrow()
    }

    /// Wait for a probe's verdict, if one is under way.
    pub(crate) async fn settled(&self) {
        // The sender lives as long as `self`, so waiting can't fail.
        let _ = self.state.subscribe().wait_for(|state| *state != BreakerState::Suspect).await;
    }

    /// Wait for an outage.
    pub(crate) async fn opened(&self) {
        let _ = self.state.subscribe().wait_for(|state| *state == BreakerState::Open).await;
    }

    /// Whether the store may be asked.
    pub(crate) fn allows(&self) -> bool {
        self.state() != BreakerState::Open
    }

    /// The store has answered a request: a probe that takes too long just then is no evidence of an outage.
    pub(crate) fn answered(&self) {
        *self.answered_at.lock() = Some(Instant::now());
    }

    /// A request found the store unavailable. The first such report starts probing on `runtime`, until a probe succeeds.
    pub(crate) fn report_failure<P, F>(self: &Arc<Self>, runtime: &Handle, error: &StoreError, probe: P)
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if !self.moves(BreakerState::Closed, BreakerState::Suspect) {
            return;
        }
        let is_news = self.is_news();
        if is_news {
            tracing::warn!(store = self.name, %error, "a store failed; probing it");
        }
        let breaker = Arc::clone(self);
        runtime.spawn(async move {
            let outage = breaker.confirm(&probe).await.err();
            if let Some(error) = &outage {
                breaker.open(BreakerState::Suspect, error);
                breaker.wait_out(&probe).await;
            }
            breaker.state.send_replace(BreakerState::Closed);
            if is_news || outage.is_some() {
                tracing::info!(store = breaker.name, "the store answers again");
            }
        });
    }

    /// Somebody is not answered soon, who may have asked for too much: that is no evidence against the store, but a reason
    /// to look. One probe at a time sees whether it answers.
    pub(crate) fn look_into<P, F>(self: &Arc<Self>, runtime: &Handle, probe: P)
    where
        P: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if self.state() != BreakerState::Closed || self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let breaker = Arc::clone(self);
        runtime.spawn(async move {
            match breaker.confirm(&probe).await {
                Err(error) if breaker.open(BreakerState::Closed, &error) => {
                    breaker.wait_out(&probe).await;
                    breaker.state.send_replace(BreakerState::Closed);
                    tracing::info!(store = breaker.name, "the store answers again");
                }
                // A failure was reported meanwhile, and whoever probes for that goes on until the store answers.
                Err(error) => drop(breaker.open(BreakerState::Suspect, &error)),
                Ok(()) => sleep(LOOK_INTERVAL).await,
            }
            breaker.looking.store(false, Ordering::Release);
        });
    }

    /// A probe that decides whether this is an outage. One that hangs while requests are answered decides nothing, and is
    /// sent again: they may have been answered just before the outage.
    async fn confirm<F>(&self, probe: &(impl Fn() -> F + Sync)) -> Result<(), String>
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        const PROBES: usize = 3;
        for _ in 0..PROBES {
            let begun = Instant::now();
            if let Some(verdict) = within(self.verdict_within, probe()).await {
                return verdict.map_err(|error| error.to_string());
            }
            if self.answered_at.lock().is_none_or(|answered_at| answered_at < begun) {
                return Err(format!("no answer to a probe within {:?}", self.verdict_within));
            }
        }
        Ok(())
    }

    /// Probe until it answers.
    async fn wait_out<F>(&self, probe: &(impl Fn() -> F + Sync))
    where
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        loop {
            sleep(PROBE_INTERVAL).await;
            if probe().await.is_ok() {
                return;
            }
        }
    }

    fn is_news(&self) -> bool {
        let now = Instant::now();
        let mut said_at = self.said_at.lock();
        let is_news = said_at.is_none_or(|said_at| now >= said_at + NEWS_INTERVAL);
        if is_news {
            *said_at = Some(now);
        }
        is_news
    }

    fn open(&self, from: BreakerState, error: &str) -> bool {
        let opens = self.moves(from, BreakerState::Open);
        if opens {
            tracing::error!(store = self.name, %error, "a store is down; it is no longer asked");
        }
        opens
    }

    fn moves(&self, from: BreakerState, to: BreakerState) -> bool {
        self.state.send_if_modified(|state| {
            let moves = *state == from;
            if moves {
                *state = to;
            }
            moves
        })
    }
}

/// Wait for `work`, at most `limit` of the time in which this process runs: while it is starved of processors, nothing is
/// too late but itself, and whoever starves it by a flood must not make a store look dead.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    const STEP: Duration = Duration::from_millis(10);
    let mut work = pin!(work);
    let mut left = limit;
    while left > Duration::ZERO {
        let begun = Instant::now();
        if let Ok(done) = timeout(STEP.min(left), &mut work).await {
            return Some(done);
        }
        left = left.saturating_sub(begun.elapsed().min(2 * STEP));
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const WITHIN: Duration = Duration::from_millis(120);

    fn failure() -> StoreError {
        StoreError::unavailable(StoreName::Redis, "gone")
    }

    #[tokio::test(start_paused = true)]
    async fn opens_on_a_failed_probe_only_and_closes_on_success() {
        let breaker = Breaker::new(StoreName::Redis, WITHIN);
        let up = Arc::new(AtomicBool::new(true));
        let report = |breaker: &Arc<Breaker>| {
            let up = Arc::clone(&up);
            breaker.report_failure(&Handle::current(), &failure(), move || {
                let up = up.load(Ordering::SeqCst);
                async move { if up { Ok(()) } else { Err(failure()) } }
            });
        };

        report(&breaker);
        assert_eq!(breaker.state(), BreakerState::Suspect, "a request's failure opens nothing by itself");
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), BreakerState::Closed, "the probe found it healthy");

        up.store(false, Ordering::SeqCst);
        report(&breaker);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.allows());
        report(&breaker);
        tokio::time::sleep(10 * PROBE_INTERVAL).await;
        assert_eq!(breaker.state(), BreakerState::Open, "it stays open while probes fail");

        up.store(true, Ordering::SeqCst);
        tokio::time::sleep(2 * PROBE_INTERVAL).await;
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    /// A flood that is too much for a healthy store: no suspicion, and few probes.
    #[tokio::test(start_paused = true)]
    async fn looking_into_it_is_no_suspicion() {
        let breaker = Breaker::new(StoreName::Postgres, WITHIN);
        let (up, probes) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let look = || {
            let (up, probes) = (Arc::clone(&up), Arc::clone(&probes));
            breaker.look_into(&Handle::current(), move || {
                probes.fetch_add(1, Ordering::SeqCst);
                let up = up.load(Ordering::SeqCst);
                async move { if up { Ok(()) } else { Err(failure()) } }
            });
        };
        for _ in 0..1_000 {
            look();
            assert_eq!(breaker.state(), BreakerState::Closed);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
        assert!(probes.load(Ordering::SeqCst) <= 20, "one in {LOOK_INTERVAL:?}");

        up.store(false, Ordering::SeqCst);
        tokio::time::sleep(LOOK_INTERVAL).await;
        look();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), BreakerState::Open, "a probe has failed");
        up.store(true, Ordering::SeqCst);
        tokio::time::sleep(2 * PROBE_INTERVAL).await;
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    /// A probe that hangs is an outage in time for those who wait, unless somebody is answered meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_probe_that_hangs() {
        for (answered, state) in [(false, BreakerState::Open), (true, BreakerState::Closed)] {
            let breaker = Breaker::new(StoreName::Postgres, WITHIN);
            breaker.look_into(&Handle::current(), std::future::pending::<Result<(), StoreError>>);
            tokio::time::sleep(WITHIN / 2).await;
            if answered {
                breaker.answered();
            }
            assert_eq!(breaker.state(), BreakerState::Closed);
            tokio::time::sleep(WITHIN / 2 + Duration::from_millis(5)).await;
            assert_eq!(breaker.state(), state);
            tokio::time::sleep(WITHIN + Duration::from_millis(5)).await;
            assert_eq!(breaker.state(), BreakerState::Open, "nobody has been answered since");
        }
    }

    /// What was late in a process that did not run may have arrived long since.
    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_process_stands_still_does_not_count() {
        let work = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::time::sleep(WITHIN / 2).await;
        };
        assert_eq!(within(WITHIN, work).await, Some(()));
        assert_eq!(within(WITHIN, tokio::time::sleep(2 * WITHIN)).await, None);
    }
}
