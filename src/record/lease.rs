//! One limit of one tenant in one period, as this process holds a share of it: what is left, under way, spent and owed.
//!
//! Of what the store has granted, each unit is in one place at any time: left, promised to one that waits, under way with a
//! request, spent, surplus, or in what was told to the store and not answered yet. None is ever made here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use licensing::quota::Period;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use uuid::Uuid;

use super::lines::Use;
use super::pending::Pending;
use crate::stores::{Lease as Granted, LeaseRequest, QuotaKey, Settlement, Standing};

/// The least that is wished for, so that far from a limit few requests in a hundred cost a question.
const LEAST_WISHED: u64 = 256;

/// The most: what a killed process leaves reserved.
const MOST_WISHED: u64 = 16_384;

/// A lease that lasts less than this should be larger.
const SHORT: Duration = Duration::from_secs(1);

/// A lease that lasts longer than this may be smaller.
const LONG: Duration = Duration::from_secs(10);

/// Of what is left of a limit, the store grants an eighth at once.
const SHARE: u64 = 8;

/// With less than this to be granted at once a limit is nearly used up: nothing is taken from it in advance, and nothing kept.
const NEAR: u64 = 16;

/// How long it is remembered that nothing is left.
const EXHAUSTED_FOR: Duration = Duration::from_secs(1);

/// After an ask that failed, how long none is made in advance.
const PAUSE: Duration = Duration::from_millis(100);

/// A limit in one period.
pub(super) struct Lease {
    /// Which.
    pub(super) key: QuotaKey,
    from: Timestamp,
    until: Timestamp,
    holding: Mutex<Holding>,
    /// Told whenever one that waits may find something new.
    pub(super) news: Notify,
    /// Where its uses are counted.
    pub(super) uses: Arc<Pending<Use>>,
}

/// What this process holds of it.
#[derive(Debug)]
pub(super) struct Holding {
    /// What the licence allowed when it was last asked for.
    limit: u64,
    left: u64,
    /// Set aside for requests that wait: never more than there are of them.
    promised: u64,
    waiting: u64,
    under_way: u64,
    spent: u64,
    /// To be given back, and not to be used.
    surplus: u64,
    /// The highest limit under which something of what is left was granted.
    left_under: u64,
    /// As the store last said.
    standing: Standing,
    last: Option<Grant>,
    wished: u64,
    exhausted_at: Option<Instant>,
    ask: Option<Box<Ask>>,
    /// The store has refused an ask: the next one tells it nothing, in case that is the cause.
    refused: bool,
    not_before: Option<Instant>,
    used: bool,
    used_at: Instant,
    /// The store should look at it with the next batch, for thresholds.
    look: bool,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    granted: u64,
    at: Instant,
}

/// What was asked and not answered. Whether it is done is not known, so it is asked again as it is until there is an answer.
#[derive(Debug)]
struct Ask {
    request: LeaseRequest,
    /// Somebody is at it.
    runs: bool,
}

/// What became of taking one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// It is under way. So many remain of the limit, as far as is known.
    Taken { remaining: u64 },
    /// The limit is known to be used up: so many are used, or under way.
    Exhausted { used: u64 },
    /// Nothing is left here; the store has to be asked.
    Wait,
}

/// What becomes of leases that are not used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Idling {
    /// After how long one is given back.
    pub(super) after: Duration,
    /// The same where the limit is nearly used up, so that others may want it.
    pub(super) after_near: Duration,
    /// Everything is given back at once.
    pub(super) at_once: bool,
}

impl Lease {
    /// Nothing yet.
    pub(super) fn new(
        tenant: TenantId,
        feature: &Arc<str>,
        period: Period,
        uses: &Arc<Pending<Use>>,
        at: Instant,
    ) -> Self {
        Self {
            key: QuotaKey { tenant, feature: Arc::clone(feature), period },
            from: Timestamp::midnight(period.start),
            until: period.resets_at().unwrap_or(Timestamp::INFINITY),
            holding: Mutex::new(Holding::new(at)),
            news: Notify::new(),
            uses: Arc::clone(uses),
        }
    }

    /// What is held of it.
    pub(super) fn holding(&self) -> MutexGuard<'_, Holding> {
        self.holding.lock()
    }

    /// Whether `now` is in its period.
    pub(super) fn covers(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }

    /// Whether its period is over at `now`.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        self.until <= now
    }
}

impl Holding {
    fn new(at: Instant) -> Self {
        Self {
            limit: 0,
            left: 0,
            promised: 0,
            waiting: 0,
            under_way: 0,
            spent: 0,
            surplus: 0,
            left_under: 0,
            standing: Standing::default(),
            last: None,
            wished: LEAST_WISHED,
            exhausted_at: None,
            ask: None,
            refused: false,
            not_before: None,
            used: false,
            used_at: at,
            look: false,
        }
    }

    /// Take one, for a request whose licence allows `limit`.
    pub(super) fn take(&mut self, limit: u64, at: Instant) -> Take {
        self.used = true;
        self.adopt(limit);
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return self.taken();
        }
        match self.exhausted_at {
            Some(since) if at.saturating_duration_since(since) < EXHAUSTED_FOR => {
                // What is used beyond a soft limit may pass a threshold too.
                self.look = true;
                let Standing { used, reserved } = self.standing;
                // What has been given back since then is known to the store, and soon here.
                Take::Exhausted { used: used.saturating_add(reserved).max(limit) }
            }
            _ => {
                self.exhausted_at = None;
                Take::Wait
            }
        }
    }

    /// The same for a request that waits, and waits no longer unless it has to.
    pub(super) fn claim(&mut self, limit: u64, at: Instant) -> Take {
        self.adopt(limit);
        let take = match self.promised.checked_sub(1) {
            Some(promised) => {
                self.promised = promised;
                self.taken()
            }
            None => self.take(limit, at),
        };
        if take != Take::Wait {
            self.waiting = self.waiting.saturating_sub(1);
        }
        take
    }

    /// One more waits.
    pub(super) fn wait(&mut self) {
        self.waiting += 1;
    }

    /// One waits no longer, and has taken nothing.
    pub(super) fn leave(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
        let excess = self.promised.saturating_sub(self.waiting);
        self.promised -= excess;
        self.left += excess;
    }

    fn taken(&mut self) -> Take {
        self.under_way += 1;
        let held = self.left.saturating_add(self.promised);
        Take::Taken { remaining: self.room().saturating_add(held).min(self.limit.saturating_sub(1)) }
    }

    /// One that was under way is consumed.
    pub(super) fn consume(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        self.spent += 1;
    }

    /// One that was taken under `limit` is not needed after all. True: those who wait should look.
    pub(super) fn refund(&mut self, limit: u64) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.put(1, limit)
    }

    /// Something of the limit comes to hand.
    fn put(&mut self, units: u64, limit: u64) -> bool {
        if limit > self.limit {
            self.surplus += units;
            return false;
        }
        self.left_under = if self.left + self.promised == 0 { limit } else { self.left_under.max(limit) };
        let promised = units.min(self.waiting.saturating_sub(self.promised));
        self.promised += promised;
        self.left += units - promised;
        promised > 0
    }

    /// What the licence allows has changed, perhaps. Less of it: what was had under a higher limit is no longer used.
    fn adopt(&mut self, limit: u64) {
        if self.limit == limit {
            return;
        }
        if limit < self.left_under {
            self.give_up();
        }
        self.limit = limit;
        self.exhausted_at = None;
    }

    /// Nothing of what is here is used any more.
    pub(super) fn give_up(&mut self) {
        self.surplus += std::mem::take(&mut self.left) + std::mem::take(&mut self.promised);
    }

    /// What nobody has leased, as far as is known.
    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.standing.used.saturating_add(self.standing.reserved))
    }

    fn is_near(&self) -> bool {
        self.room() / SHARE < NEAR
    }

    /// Whether half of the last grant is used, and the next one should be asked for before the rest is.
    pub(super) fn runs_low(&self, at: Instant) -> bool {
        let half = self.last.map_or(0, |last| last.granted / 2);
        self.left <= half
            && !self.is_near()
            && self.ask.as_ref().is_none_or(|ask| !ask.runs)
            && self.not_before.is_none_or(|then| then <= at)
    }

    /// What to ask the store; none while somebody asks already. The caller sees that it is asked, and says what came of it.
    pub(super) fn begin_ask(&mut self, key: &QuotaKey, at: Instant) -> Option<LeaseRequest> {
        match &mut self.ask {
            Some(ask) if ask.runs => None,
            Some(ask) => {
                ask.runs = true;
                Some(ask.request.clone())
            }
            None => {
                self.wish(at);
                let (spent, returned) = match self.refused {
                    true => (0, 0),
                    false => (std::mem::take(&mut self.spent), std::mem::take(&mut self.surplus)),
                };
                let request = LeaseRequest {
                    id: Uuid::new_v4(),
                    key: key.clone(),
                    limit: self.limit,
                    spent,
                    returned,
                    needed: self.waiting.saturating_sub(self.promised),
                    wished: self.wished,
                };
                self.ask = Some(Box::new(Ask { request: request.clone(), runs: true }));
                Some(request)
            }
        }
    }

    /// How much to wish for, by how long the half of the last grant lasted that is used by now. What was less than wished
    /// for says nothing.
    fn wish(&mut self, at: Instant) {
        let Some(last) = self.last.filter(|last| last.granted >= self.wished) else { return };
        let lasted = at.saturating_duration_since(last.at) * 2;
        if lasted < SHORT {
            self.wished = (self.wished * 2).min(MOST_WISHED);
        } else if lasted > LONG {
            self.wished = (self.wished / 2).max(LEAST_WISHED);
        }
    }

    /// What was asked is answered.
    pub(super) fn answered(&mut self, request: &LeaseRequest, answer: Granted, at: Instant) {
        self.ask = None;
        self.not_before = None;
        self.standing = answer.standing;
        self.look = true;
        self.last = Some(Grant { granted: answer.granted, at });
        self.put(answer.granted, request.limit);
        if request.limit == self.limit && (answer.granted < request.needed || self.room() == 0) {
            self.exhausted_at = Some(at);
        }
    }

    /// What was asked is not answered. True: it should be asked again, since requests wait for it.
    pub(super) fn failed(&mut self, at: Instant) -> bool {
        self.not_before = Some(at + PAUSE);
        let goes_on = self.waiting > 0;
        if let Some(ask) = &mut self.ask {
            ask.runs = goes_on;
        }
        goes_on
    }

    /// What was asked is refused, and so certainly not done. What it would have told is for the next batch to tell. True: that
    /// is news.
    pub(super) fn refused(&mut self, at: Instant) -> bool {
        self.not_before = Some(at + PAUSE);
        if let Some(ask) = self.ask.take() {
            self.spent += ask.request.spent;
            self.surplus += ask.request.returned;
        }
        !std::mem::replace(&mut self.refused, true)
    }

    /// Nobody is at it any longer, and nothing is known of what came of it.
    pub(super) fn stopped(&mut self) {
        if let Some(ask) = &mut self.ask {
            ask.runs = false;
        }
    }

    /// Note whether it has been used since the last time.
    pub(super) fn look_whether_used(&mut self, at: Instant) {
        if std::mem::take(&mut self.used) {
            self.used_at = at;
        }
    }

    /// Whether nobody would miss it.
    pub(super) fn is_done(&self, at: Instant) -> bool {
        !self.holds() && self.waiting == 0 && !self.look && !self.used && self.used_at < at
    }

    /// Whether there is something that the store does not know, or that has to be given back in the end.
    pub(super) fn holds(&self) -> bool {
        self.left + self.promised + self.under_way + self.spent + self.surplus > 0 || self.ask.is_some()
    }

    /// Whether something was asked, is not answered, and nobody is at it.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.ask.as_ref().is_some_and(|ask| !ask.runs)
    }

    /// Leave an ask in doubt that tells the store nothing. If it was done, what it was granted stays reserved.
    pub(super) fn drop_doubt(&mut self) {
        self.ask = self.ask.take().filter(|ask| ask.runs || ask.request.spent + ask.request.returned > 0);
    }

    /// Whether there is anything to tell the store.
    pub(super) fn is_due(&self, idling: &Idling, at: Instant) -> bool {
        self.spent + self.surplus > 0 || self.look || (self.left > 0 && self.is_idle(idling, at))
    }

    fn is_idle(&self, idling: &Idling, at: Instant) -> bool {
        let after = if self.is_near() { idling.after_near } else { idling.after };
        idling.at_once || (!self.used && at.saturating_duration_since(self.used_at) >= after)
    }

    /// Take out what there is to tell the store. It has to be told, in the end.
    pub(super) fn settle(&mut self, key: &QuotaKey, idling: &Idling, at: Instant) -> Option<Settlement> {
        if !self.is_due(idling, at) {
            return None;
        }
        if self.is_idle(idling, at) {
            self.surplus += std::mem::take(&mut self.left);
        }
        let (spent, returned) = (std::mem::take(&mut self.spent), std::mem::take(&mut self.surplus));
        (self.look, self.refused) = (false, false);
        self.standing.used = self.standing.used.saturating_add(spent);
        self.standing.reserved = self.standing.reserved.saturating_sub(spent.saturating_add(returned));
        Some(Settlement { key: key.clone(), limit: self.limit, spent, returned })
    }

    /// How the limit stands, as the store says.
    pub(super) fn stands(&mut self, standing: Standing) {
        self.standing = standing;
    }
}

#[cfg(test)]
mod tests {
    use licensing::config::Window;
    use licensing::quota::Period;

    use super::*;

    fn key() -> QuotaKey {
        let tenant = TenantId::new(Uuid::from_u128(1));
        let period = Period::of(Window::Lifetime, None, Timestamp::from_micros(0)).expect("a period");
        QuotaKey { tenant, feature: "tickets".into(), period }
    }

    /// A holding that was granted so many of a limit.
    fn granted(granted: u64, limit: u64, at: Instant) -> Holding {
        let mut holding = Holding::new(at);
        holding.adopt(limit);
        answer(&mut holding, granted, at);
        holding
    }

    /// Ask, and be granted so many.
    fn answer(holding: &mut Holding, granted: u64, at: Instant) -> LeaseRequest {
        let request = holding.begin_ask(&key(), at).expect("nobody asks");
        let Standing { used, reserved } = holding.standing;
        let reserved = reserved + granted - request.spent - request.returned;
        let standing = Standing { used: used + request.spent, reserved };
        holding.answered(&request, Granted { granted, standing }, at);
        request
    }

    #[test]
    fn what_was_promised_to_one_who_leaves_is_left_for_others() {
        let now = Instant::now();
        let mut holding = Holding::new(now);
        holding.adopt(100);
        (0..3).for_each(|_| holding.wait());
        let request = answer(&mut holding, 5, now);
        assert_eq!((request.needed, holding.promised, holding.left), (3, 3, 2));
        // Nobody else takes what those wait for.
        assert!(
            matches!(holding.take(100, now), Take::Taken { .. })
                && matches!(holding.take(100, now), Take::Taken { .. })
        );
        assert_eq!(holding.take(100, now), Take::Wait);
        holding.leave();
        assert!(matches!(holding.take(100, now), Take::Taken { .. }));
        assert_eq!(holding.take(100, now), Take::Wait);
        for _ in 0..2 {
            assert!(matches!(holding.claim(100, now), Take::Taken { .. }));
        }
        assert_eq!((holding.waiting, holding.promised, holding.left, holding.under_way), (0, 0, 0, 5));
    }

    #[test]
    fn the_faster_a_lease_is_used_the_larger_is_the_next() {
        let mut now = Instant::now();
        let mut holding = granted(256, 1_000_000, now);
        let wished = |holding: &mut Holding, now: Instant| answer(holding, holding.wished, now).wished;
        for expected in [512, 1_024, 2_048, 4_096, 8_192, 16_384, 16_384] {
            now += Duration::from_millis(499);
            assert_eq!(wished(&mut holding, now), expected);
            holding.last = Some(Grant { granted: expected, at: now });
        }
        now += Duration::from_secs(3);
        assert_eq!(wished(&mut holding, now), 16_384, "that is as it should be");
        for expected in [8_192, 4_096, 2_048, 1_024, 512, 256, 256] {
            now += Duration::from_secs(6);
            assert_eq!(wished(&mut holding, now), expected);
        }
        // Where less was granted than wished for, the limit is what counts.
        holding.last = Some(Grant { granted: 20, at: now });
        assert_eq!(wished(&mut holding, now), 256);
    }

    #[test]
    fn the_next_lease_is_asked_for_in_time_far_from_the_limit_alone() {
        let now = Instant::now();
        for (limit, far) in [(100_000, true), (256 + 8 * NEAR, true), (256 + 8 * NEAR - 1, false), (256, false)] {
            let mut holding = granted(256, limit, now);
            for taken in 1..=256 {
                assert!(matches!(holding.take(limit, now), Take::Taken { .. }));
                assert_eq!(holding.runs_low(now), far && taken >= 128, "{taken} of {limit}");
            }
        }
        // Not while somebody asks, and not at once after a failure.
        let mut holding = granted(2, 100_000, now);
        holding.take(100_000, now);
        assert!(holding.runs_low(now) && holding.begin_ask(&key(), now).is_some() && !holding.runs_low(now));
        assert!(!holding.failed(now) && !holding.runs_low(now) && holding.runs_low(now + PAUSE));
    }
}
