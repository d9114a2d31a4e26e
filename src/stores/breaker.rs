//! A circuit breaker: opens only on an outage that a background probe has confirmed, closes as soon as a probe succeeds.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{StoreError, StoreName};

/// How long after a failed probe the next one follows.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

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
    state: watch::Sender<BreakerState>,
    /// A probe of [`Breaker::look_into`] is under way, or was a moment ago.
    looking: AtomicBool,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(store: StoreName) -> Arc<Self> {
        Self::named(store.as_str())
    }

    /// A closed breaker of something that is no store by itself; `name` stands in the log.
    pub(super) fn named(name: &'static str) -> Arc<Self> {
        Arc::new(Self { name, state: watch::Sender::new(BreakerState::Closed), looking: AtomicBool::new(false) })
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

    /// Whether the store may be asked.
    pub(crate) fn allows(&self) -> bool {
        self.state() != BreakerState::Open
    }

    /// A request found the store unavailable. The first such report starts probing on `runtime`, until a probe succeeds.
    pub(crate) fn report_failure<P, F>(self: &Arc<Self>, runtime: &Handle, error: &StoreError, probe: P)
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if !self.moves(BreakerState::Closed, BreakerState::Suspect) {
            return;
        }
        tracing::warn!(store = self.name, %error, "a store failed; probing it");
        let breaker = Arc::clone(self);
        runtime.spawn(async move {
            while let Err(error) = probe().await {
                if breaker.moves(BreakerState::Suspect, BreakerState::Open) {
                    tracing::error!(store = breaker.name, %error, "a store is down; it is no longer asked");
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            breaker.state.send_replace(BreakerState::Closed);
            tracing::info!(store = breaker.name, "the store answers again");
        });
    }

    /// Somebody was not answered in time who may have asked for too much: that is no evidence against the store, but a
    /// reason to look. One probe at a time sees whether it answers; only if it does not is that a failure to report.
    pub(crate) fn look_into<P, F>(self: &Arc<Self>, runtime: &Handle, probe: P)
    where
        P: Fn() -> F + Send + 'static,
        F: Future<Output = Result<(), StoreError>> + Send,
    {
        if self.state() != BreakerState::Closed || self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let breaker = Arc::clone(self);
        runtime.spawn(async move {
            match probe().await {
                Err(error) => breaker.report_failure(&Handle::current(), &error, probe),
                Ok(()) => tokio::time::sleep(PROBE_INTERVAL).await,
            }
            breaker.looking.store(false, Ordering::Release);
        });
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn failure() -> StoreError {
        StoreError::unavailable(StoreName::Redis, "gone")
    }

    #[tokio::test(start_paused = true)]
    async fn opens_on_a_failed_probe_only_and_closes_on_success() {
        let breaker = Breaker::new(StoreName::Redis);
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
        let breaker = Breaker::new(StoreName::Postgres);
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
        assert!(probes.load(Ordering::SeqCst) <= 2, "one in {PROBE_INTERVAL:?}");

        up.store(false, Ordering::SeqCst);
        tokio::time::sleep(PROBE_INTERVAL).await;
        look();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(breaker.state(), BreakerState::Open, "two probes have failed");
        up.store(true, Ordering::SeqCst);
        tokio::time::sleep(2 * PROBE_INTERVAL).await;
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
