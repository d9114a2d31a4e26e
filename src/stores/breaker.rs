//! A circuit breaker: opens only on an outage that a background probe has confirmed, closes as soon as a probe succeeds.

use std::future::Future;
use std::sync::Arc;
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
    store: StoreName,
    state: watch::Sender<BreakerState>,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(store: StoreName) -> Arc<Self> {
        Arc::new(Self { store, state: watch::Sender::new(BreakerState::Closed) })
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
        tracing::warn!(store = self.store.as_str(), %error, "a store failed; probing it");
        let breaker = Arc::clone(self);
        runtime.spawn(async move {
            while let Err(error) = probe().await {
                if breaker.moves(BreakerState::Suspect, BreakerState::Open) {
                    tracing::error!(store = breaker.store.as_str(), %error, "a store is down; it is no longer asked");
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
            breaker.state.send_replace(BreakerState::Closed);
            tracing::info!(store = breaker.store.as_str(), "the store answers again");
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
    use std::sync::atomic::{AtomicBool, Ordering};

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
}
