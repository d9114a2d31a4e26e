//! Reserving: from the lease that is here, or by asking the store for one, of which many requests wait for the same answer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::civil::Date;
use licensing::config::Window;
use licensing::quota::{Exhausted, Period};
use licensing::tenant::TenantId;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::lease::{Lease, Take};
use super::lines::day_of;
use super::reservation::Reservation;
use super::{Attempt, LeaseOutcome, Moment, NoLease, QuotaAsk, Recorder};
use crate::stores::{LeaseRequest, StoreError, StoreName};

/// Between two attempts to ask for the same.
const RETRY: Duration = Duration::from_millis(25);

/// The most that one attempt may take: the store has limits of its own, which are shorter.
const ASK_WITHIN: Duration = Duration::from_secs(10);

impl Recorder {
    /// Reserve one use without waiting: from the lease that is here, or not at all since the limit is known to be used up.
    pub(crate) fn reserve_now(self: &Arc<Self>, ask: &QuotaAsk<'_>, now: Moment) -> Attempt {
        let take = |lease: &Arc<Lease>| {
            let mut holding = lease.holding();
            let attempt = ask.attempt(holding.take(ask.limit, now.at), lease, now);
            let is_due =
                matches!(attempt, Attempt::Reserved(_)) && holding.runs_low(now.at) && self.may_ask_in_advance();
            let next = if is_due { holding.begin_ask(&lease.key, now.at) } else { None };
            (attempt, next.map(|request| (Arc::clone(lease), request)))
        };
        let Some((attempt, next)) = self.leases.with(ask.tenant, ask.feature, ask.window, now.wall, take) else {
            return Attempt::Wait;
        };
        if let Some((lease, request)) = next {
            self.ask(lease, request);
        }
        attempt
    }

    /// Reserve one use, and wait for a lease if there is none here, at most until `until`.
    ///
    /// # Errors
    /// When none is to be had.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        ask: &QuotaAsk<'_>,
        now: Moment,
        until: Instant,
    ) -> Result<Result<Reservation, Exhausted>, NoLease> {
        let begun = Instant::now();
        loop {
            match self.reserve_now(ask, now.later(begun.elapsed())) {
                Attempt::Reserved(reservation) => return Ok(Ok(reservation)),
                Attempt::Exhausted(exhausted) => return Ok(Err(exhausted)),
                Attempt::Wait => {}
            }
            if !self.breaker.allows() {
                return Err(NoLease { certain: true });
            }
            let anchor = match ask.window {
                Window::Anchored => Some(self.anchor(ask.tenant, until).await?),
                Window::Day | Window::Month | Window::Lifetime => None,
            };
            let joined_at = now.later(begun.elapsed());
            let Some(period) = Period::of(ask.window, anchor, joined_at.wall) else {
                return Err(NoLease { certain: false });
            };
            let join = |lease: &Arc<Lease>| Waiting::new(lease, ask);
            let (tenant, feature) = (ask.tenant, ask.feature);
            let mut waiting = self.leases.with_new(tenant, feature, period, &self.uses, joined_at.at, join);
            let lease = Arc::clone(&waiting.lease);
            loop {
                // From before the look on, so that no news is missed.
                let news = lease.news.notified();
                let now = now.later(begun.elapsed());
                match waiting.claim(now) {
                    Claim::Settled(Attempt::Reserved(reservation)) => return Ok(Ok(reservation)),
                    Claim::Settled(Attempt::Exhausted(exhausted)) => return Ok(Err(exhausted)),
                    // The period is over: there is another by now.
                    Claim::Settled(Attempt::Wait) => break,
                    Claim::Ask(request) => self.ask(Arc::clone(&lease), request),
                    Claim::Wait => {}
                }
                self.patiently(until, news).await?;
            }
        }
    }

    fn may_ask_in_advance(&self) -> bool {
        self.breaker.allows() && !self.ends.load(Ordering::Acquire)
    }

    /// The day on which the anchored windows of `tenant` begin. It never changes.
    ///
    /// # Errors
    /// When it is not known by `until`.
    pub(crate) async fn anchor(&self, tenant: TenantId, until: Instant) -> Result<Date, NoLease> {
        let known = self.anchors.get_with(tenant, Arc::default);
        loop {
            match self.patiently(until, known.get_or_try_init(|| self.store.anchor(tenant))).await? {
                Ok(anchor) => {
                    self.breaker.answered();
                    return Ok(*anchor);
                }
                Err(error) => self.report(&error),
            }
            self.patiently(until, sleep(RETRY)).await?;
        }
    }

    /// Wait for `work`, unless it takes too long or an outage is confirmed. A request that learns nothing by its deadline is
    /// refused, unless it is known by then that this is an outage. So somebody has to look while there is time.
    async fn patiently<T>(&self, until: Instant, work: impl Future<Output = T>) -> Result<T, NoLease> {
        let mut work = pin!(work);
        loop {
            let look_at = (Instant::now() + self.options.deadline * 3 / 20).min(until);
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = self.breaker.opened() => return Err(NoLease { certain: true }),
                () = sleep_until(look_at) => {
                    if look_at == until {
                        return Err(NoLease { certain: !self.breaker.allows() });
                    }
                    self.breaker.look_into(&self.runtime, self.probe());
                }
            }
        }
    }

    /// See to it that `request` is answered, or known to be in doubt.
    pub(super) fn ask(self: &Arc<Self>, lease: Arc<Lease>, request: LeaseRequest) {
        let asking = Asking { recorder: Arc::clone(self), lease, is_over: false };
        self.runtime.spawn(asking.run(request));
    }
}

impl QuotaAsk<'_> {
    fn attempt(&self, take: Take, lease: &Arc<Lease>, now: Moment) -> Attempt {
        match take {
            Take::Taken { remaining } => {
                Attempt::Reserved(Reservation::leased(lease, self.limit, remaining, day_of(now.wall)))
            }
            Take::Exhausted { used } => {
                Attempt::Exhausted(Exhausted { limit: self.limit, used, period: lease.key.period })
            }
            Take::Wait => Attempt::Wait,
        }
    }
}

/// A request that waits for a lease, for as long as this lives.
struct Waiting<'a> {
    lease: Arc<Lease>,
    ask: &'a QuotaAsk<'a>,
    /// It still waits.
    waits: bool,
}

/// What one that waits finds.
enum Claim {
    /// What it waited for, or nothing any more.
    Settled(Attempt),
    /// Nothing yet, and somebody has to ask.
    Ask(LeaseRequest),
    /// Nothing yet.
    Wait,
}

impl<'a> Waiting<'a> {
    fn new(lease: &Arc<Lease>, ask: &'a QuotaAsk<'a>) -> Self {
        lease.holding().wait();
        Self { lease: Arc::clone(lease), ask, waits: true }
    }

    fn claim(&mut self, now: Moment) -> Claim {
        let mut holding = self.lease.holding();
        if !self.lease.covers(now.wall) {
            self.waits = false;
            holding.leave();
            return Claim::Settled(Attempt::Wait);
        }
        let take = holding.claim(self.ask.limit, now.at);
        if take == Take::Wait {
            return holding.begin_ask(&self.lease.key, now.at).map_or(Claim::Wait, Claim::Ask);
        }
        self.waits = false;
        Claim::Settled(self.ask.attempt(take, &self.lease, now))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.lease.holding().leave();
        }
    }
}

/// Who asks the store for one lease, for as long as this lives.
struct Asking {
    recorder: Arc<Recorder>,
    lease: Arc<Lease>,
    is_over: bool,
}

impl Asking {
    async fn run(mut self, mut request: LeaseRequest) {
        let recorder = Arc::clone(&self.recorder);
        loop {
            let error = match self.attempt(&request).await {
                Ok(()) => return,
                Err(error) => error,
            };
            recorder.metrics.quota_leases.of(LeaseOutcome::Failed).inc();
            recorder.report(&error);
            let Some(next) = self.after(&error, request) else { return };
            request = next;
            sleep(RETRY).await;
        }
    }

    async fn attempt(&mut self, request: &LeaseRequest) -> Result<(), StoreError> {
        let Recorder { store, breaker, metrics, asks, .. } = &*self.recorder;
        let unanswered = |message| Err(StoreError::late(StoreName::Postgres, message));
        let asked = async {
            // Nobody closes it.
            let _place = asks.acquire().await;
            timeout(ASK_WITHIN, store.lease(request)).await
        };
        let answer = tokio::select! {
            biased;
            answer = asked => answer.unwrap_or_else(|_| unanswered("a lease was not answered")),
            // Nobody waits any longer for a store that is known to be down.
            () = breaker.opened() => unanswered("a lease was given up"),
        }?;
        breaker.answered();
        let outcome = if answer.granted > 0 { LeaseOutcome::Granted } else { LeaseOutcome::Exhausted };
        metrics.quota_leases.of(outcome).inc();
        self.is_over = true;
        self.lease.holding().answered(request, answer, Instant::now().into_std());
        self.lease.news.notify_waiters();
        Ok(())
    }

    /// What to ask after a failure; none: nothing for now.
    fn after(&mut self, error: &StoreError, request: LeaseRequest) -> Option<LeaseRequest> {
        let allowed = self.recorder.breaker.allows();
        let now = Instant::now().into_std();
        let key = &self.lease.key;
        let mut holding = self.lease.holding();
        let next = if !matches!(error, StoreError::Refused { .. }) {
            (holding.failed(now) && allowed).then_some(request)
        } else {
            if holding.refused(now) {
                tracing::error!(%error, tenant = %key.tenant, feature = &*key.feature, "a lease was refused");
            }
            if request.spent + request.returned > 0 { holding.begin_ask(key, now) } else { None }
        };
        if next.is_none() {
            holding.stopped();
            self.is_over = true;
        }
        next
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // Only where the store has panicked, or the runtime has ended: without this nobody would ask any more.
        if !self.is_over {
            self.lease.holding().stopped();
        }
    }
}
