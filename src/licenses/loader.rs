//! The only one who asks the source: few queries, however many tenants are asked for.
//!
//! Tenants that somebody has heard of go at once, and in batches when there are more of them than connections. All others
//! may be made up, a hundred thousand a minute: they share one connection and a fixed number of queries a second, so that
//! a flood of them costs the source next to nothing, and a real tenant among them waits some tens of milliseconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use licensing::license::License;
use licensing::tenant::TenantId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::metrics::Metrics;
use crate::stores::{Source, StoreError};

/// The most tenants one query asks for: more would make a query that others wait for too long.
const BATCH: usize = 500;

/// The most strangers that wait. At [`STRANGER_INTERVAL`] a query they would wait half a second, which is beyond any
/// look-up's deadline: more of them are better told at once.
const WAITING_STRANGERS: usize = 10_000;

/// Between two queries for strangers, once the burst is spent: 40 a second.
const STRANGER_INTERVAL: Duration = Duration::from_millis(25);

/// How many queries for strangers may follow each other at once after a quiet time.
const STRANGER_BURST: u32 = 10;

/// Whether a tenant that is asked for is likely to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Memory or Redis has heard of it.
    Known,
    /// Nobody has heard of it: a real tenant that is merely cold, or an id that a client has made up.
    Stranger,
}

/// Asks the source, in batches where many ask.
pub(crate) struct Loader {
    shared: Arc<Shared>,
    /// Where queries run: not on the caller's task, which may end while others still wait for the same query.
    runtime: Handle,
}

struct Shared {
    source: Arc<dyn Source>,
    metrics: Arc<Metrics>,
    /// How many queries for known tenants may be under way.
    known_slots: usize,
    state: Mutex<State>,
}

struct State {
    /// Known tenants that wait for a slot. Not bounded by itself: each is a tenant that exists, asked for once.
    known: VecDeque<Waiting>,
    known_under_way: usize,
    strangers: VecDeque<Waiting>,
    /// Somebody serves them: waits for the budget, or for the one query that may be under way.
    strangers_served: bool,
    budget: Budget,
}

/// Somebody who waits for an answer, unless they have left.
struct Waiting {
    tenant: TenantId,
    answer: oneshot::Sender<Result<Option<License>, StoreError>>,
}

impl Loader {
    /// Ask `source` on `runtime`. One of the connections that it has is kept free of known tenants, for strangers, and they
    /// never take another.
    pub(crate) fn new(source: Arc<dyn Source>, runtime: Handle, metrics: Arc<Metrics>) -> Self {
        let state = State {
            known: VecDeque::new(),
            known_under_way: 0,
            strangers: VecDeque::new(),
            strangers_served: false,
            budget: Budget::new(Instant::now()),
        };
        let known_slots = source.queries_at_once().saturating_sub(1).max(1);
        Self { shared: Arc::new(Shared { source, metrics, known_slots, state: Mutex::new(state) }), runtime }
    }

    /// The licence of `tenant`, or none. Whoever stops waiting costs nothing further.
    ///
    /// # Errors
    /// When the source can't be asked, does not answer in time, or holds an entry that can't be read; [`StoreError::Shed`]
    /// when too many strangers wait. [`StoreError::Late`] comes in the strangers' lane alone: there it may be the doing of
    /// those who ask.
    pub(crate) async fn load(&self, tenant: TenantId, lane: Lane) -> Result<Option<License>, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.join(Waiting { tenant, answer }, lane)?;
        let given_up = || {
            let message = "the query was given up".to_owned();
            StoreError::Unavailable { store: self.shared.source.name(), message }
        };
        answered.await.unwrap_or_else(|_| Err(given_up()))
    }

    fn join(&self, waiting: Waiting, lane: Lane) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        match lane {
            Lane::Known if state.known_under_way < self.shared.known_slots => {
                state.known_under_way += 1;
                self.runtime.spawn(Serving::new(&self.shared, lane).known(vec![waiting]));
            }
            Lane::Known => state.known.push_back(waiting),
            Lane::Stranger if state.strangers.len() >= WAITING_STRANGERS => return Err(StoreError::Shed),
            Lane::Stranger => {
                state.strangers.push_back(waiting);
                if !state.strangers_served {
                    state.strangers_served = true;
                    self.runtime.spawn(Serving::new(&self.shared, lane).strangers());
                }
            }
        }
        Ok(())
    }
}

/// One of those who serve a lane until nobody waits in it any more. Its place is free again however it ends.
struct Serving {
    shared: Arc<Shared>,
    lane: Lane,
    has_left: bool,
}

impl Serving {
    fn new(shared: &Arc<Shared>, lane: Lane) -> Self {
        Self { shared: Arc::clone(shared), lane, has_left: false }
    }

    async fn known(mut self, mut batch: Vec<Waiting>) {
        let shared = Arc::clone(&self.shared);
        while !batch.is_empty() {
            self.ask(batch).await;
            let mut state = shared.state.lock();
            batch = take(&mut state.known);
            if batch.is_empty() {
                // Under the same lock, so that nobody joins the queue of one who has just left.
                self.leave(&mut state);
            }
        }
    }

    async fn strangers(mut self) {
        let shared = Arc::clone(&self.shared);
        loop {
            let wait = {
                let mut state = shared.state.lock();
                if state.strangers.is_empty() {
                    return self.leave(&mut state);
                }
                state.budget.wait(Instant::now())
            };
            if wait > Duration::ZERO {
                // Whoever comes meanwhile goes along.
                sleep(wait).await;
            }
            let batch = {
                let mut state = shared.state.lock();
                let batch = take(&mut state.strangers);
                if batch.is_empty() {
                    continue;
                }
                state.budget.spend(Instant::now());
                batch
            };
            self.ask(batch).await;
        }
    }

    /// One query for all of them, and to each its answer.
    async fn ask(&self, batch: Vec<Waiting>) {
        let tenants: Vec<TenantId> = batch.iter().map(|waiting| waiting.tenant).collect();
        let source = &self.shared.source;
        self.shared.metrics.source_queries.inc();
        match source.load(&tenants).await {
            Ok(answers) => {
                for (Waiting { tenant, answer }, found) in batch.into_iter().zip(answers) {
                    let unreadable = |cause| StoreError::Unreadable { store: source.name(), tenant, cause };
                    // Whoever has left needs no answer.
                    let _ = answer.send(found.map_err(unreadable));
                }
            }
            Err(error) => {
                let error = match self.lane {
                    Lane::Known => error.held_against_the_store(),
                    Lane::Stranger => error,
                };
                for waiting in batch {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }

    fn leave(&mut self, state: &mut State) {
        self.has_left = true;
        match self.lane {
            Lane::Known => state.known_under_way -= 1,
            Lane::Stranger => state.strangers_served = false,
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Only where a query has panicked: without this nobody would be served after it.
        if !self.has_left {
            let shared = Arc::clone(&self.shared);
            self.leave(&mut shared.state.lock());
        }
    }
}

/// The next batch, without those who have left.
fn take(queue: &mut VecDeque<Waiting>) -> Vec<Waiting> {
    let mut batch = Vec::new();
    while batch.len() < BATCH
        && let Some(waiting) = queue.pop_front()
    {
        if !waiting.answer.is_closed() {
            batch.push(waiting);
        }
    }
    batch
}

/// A token bucket: [`STRANGER_BURST`] at once, one more each [`STRANGER_INTERVAL`].
struct Budget {
    /// When the bucket will be full again.
    full_at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// How long until there is a token.
    fn wait(&self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now).saturating_sub(STRANGER_INTERVAL * (STRANGER_BURST - 1))
    }

    /// Take a token, which there must be.
    fn spend(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + STRANGER_INTERVAL;
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use licensing::enforcement::Mode;
    use licensing::license::Unreadable;
    use uuid::Uuid;

    use super::*;
    use crate::stores::{Answer, StoreName};

    /// From here on, ids are those of known tenants, for the tests to tell queries apart.
    const KNOWN: u128 = 1 << 100;

    /// Answers that nobody has a licence, after a while, and remembers what it was asked.
    #[derive(Default)]
    struct Fake {
        takes: Duration,
        queries_at_once: usize,
        /// When each query began, in which lane, and for how many tenants.
        queries: Mutex<Vec<(Instant, Lane, usize)>>,
        under_way: Mutex<(usize, usize)>,
        says: Mutex<Option<Result<Answer, StoreError>>>,
        panics: Mutex<bool>,
    }

    #[async_trait]
    impl Source for Fake {
        async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
            let lane = if tenants[0].as_uuid().as_u128() < KNOWN { Lane::Stranger } else { Lane::Known };
            self.queries.lock().push((Instant::now(), lane, tenants.len()));
            {
                let mut under_way = self.under_way.lock();
                under_way.0 += 1;
                under_way.1 = under_way.1.max(under_way.0);
            }
            sleep(self.takes).await;
            self.under_way.lock().0 -= 1;
            assert!(!*self.panics.lock(), "as the test wants");
            match self.says.lock().clone() {
                None => Ok(vec![Ok(None); tenants.len()]),
                Some(answer) => answer.map(|answer| vec![answer; tenants.len()]),
            }
        }

        async fn probe(&self) -> Result<(), StoreError> {
            Ok(())
        }

        fn queries_at_once(&self) -> usize {
            self.queries_at_once
        }

        fn name(&self) -> StoreName {
            StoreName::Postgres
        }
    }

    struct Case {
        source: Arc<Fake>,
        loader: Arc<Loader>,
        metrics: Arc<Metrics>,
        next: Mutex<u128>,
    }

    impl Case {
        /// Four connections, a query takes `takes`.
        fn new(takes: Duration) -> Self {
            let source = Arc::new(Fake { takes, queries_at_once: 4, ..Fake::default() });
            let metrics = Arc::new(Metrics::new(&[], Mode::Enforce, "").expect("metrics"));
            let loader = Loader::new(Arc::clone(&source) as Arc<dyn Source>, Handle::current(), Arc::clone(&metrics));
            Self { source, loader: Arc::new(loader), metrics, next: Mutex::new(0) }
        }

        /// Ask for a tenant that nobody has asked for; how long it took, and the answer.
        fn ask(&self, lane: Lane) -> tokio::task::JoinHandle<(Duration, Result<Option<License>, StoreError>)> {
            let mut next = self.next.lock();
            *next += 1;
            let id = *next + if lane == Lane::Known { KNOWN } else { 0 };
            let (loader, tenant) = (Arc::clone(&self.loader), TenantId::new(Uuid::from_u128(id)));
            tokio::spawn(async move {
                let begun = Instant::now();
                let answer = loader.load(tenant, lane).await;
                (begun.elapsed(), answer)
            })
        }

        /// How many tenants each query asked for.
        fn sizes(&self) -> Vec<usize> {
            self.source.queries.lock().iter().map(|(_, _, tenants)| *tenants).collect()
        }

        fn most_under_way(&self) -> usize {
            self.source.under_way.lock().1
        }

        /// The most queries for strangers that began in any second, both its ends included.
        fn most_in_a_second(&self) -> usize {
            let queries = self.source.queries.lock();
            let begun: Vec<_> = queries.iter().filter(|(_, lane, _)| *lane == Lane::Stranger).map(|q| q.0).collect();
            let within = |from: Instant| begun.iter().filter(|at| (from..=from + SECOND).contains(at)).count();
            begun.iter().map(|at| within(*at)).max().unwrap_or_default()
        }

        fn assert_at_rest(&self) {
            let state = self.loader.shared.state.lock();
            assert_eq!((state.known.len(), state.strangers.len()), (0, 0));
            assert_eq!((state.known_under_way, state.strangers_served), (0, false));
            assert_eq!(self.metrics.source_queries.get(), self.source.queries.lock().len() as u64);
        }
    }

    const SECOND: Duration = Duration::from_secs(1);
    const QUERY: Duration = Duration::from_millis(2);

    /// A hundred thousand made-up ids in a minute, and each second a real tenant who is known, and one who is not.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_strangers_costs_few_queries_and_delays_nobody() {
        let case = Case::new(QUERY);
        let (mut strangers, mut known) = (Vec::new(), Vec::new());
        let begun = Instant::now();
        for tick in 0..60_000_u32 {
            // 5 in each 3 ms are 1,667 a second.
            for _ in 0..if tick.is_multiple_of(3) { 1 } else { 2 } {
                strangers.push(case.ask(Lane::Stranger));
            }
            if tick.is_multiple_of(100) {
                known.push(case.ask(Lane::Known));
            }
            tokio::time::sleep_until(begun + Duration::from_millis(1) * (tick + 1)).await;
        }
        let mut worst = [Duration::ZERO; 2];
        let asked = strangers.len();
        for (worst, asked) in worst.iter_mut().zip([strangers, known]) {
            for asked in asked {
                let (took, answer) = asked.await.expect("no panic");
                assert!(matches!(answer, Ok(None)), "{answer:?}");
                *worst = took.max(*worst);
            }
        }
        let queries = case.sizes().len();
        let most = case.most_in_a_second();
        println!(
            "{asked} strangers in {:?}: {queries} queries with those of 600 known tenants, at most {most} in a second; \
             the longest wait {:?}, of a known tenant {:?}",
            begun.elapsed(),
            worst[0],
            worst[1]
        );
        assert!(most <= 50, "{most} queries for strangers in a second");
        assert!(worst[0] < Duration::from_millis(100), "a stranger waited {:?}", worst[0]);
        assert!(worst[1] <= QUERY + Duration::from_millis(1), "a known tenant waited {:?}", worst[1]);
        assert!(case.most_under_way() <= 2, "one for strangers, one for known");
        case.assert_at_rest();
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_alone_never_have_more_than_fifty_queries_in_a_second() {
        // Instant answers: nothing but the budget holds them back. Quiet seconds fill the bucket again.
        let case = Case::new(Duration::ZERO);
        let mut asked = Vec::new();
        for second in 0..12 {
            for _ in 0..1_667 {
                asked.push(case.ask(Lane::Stranger));
                sleep(Duration::from_micros(if second % 4 == 3 { 1_000 } else { 600 })).await;
            }
            if second % 4 == 3 {
                sleep(Duration::from_secs(1)).await;
            }
        }
        for asked in asked {
            let (took, answer) = asked.await.expect("no panic");
            assert!(answer.is_ok() && took < Duration::from_millis(100), "{answer:?} after {took:?}");
        }
        let most = case.most_in_a_second();
        println!("at most {most} queries in a second");
        assert!(most <= 50, "{most} queries in a second");
        case.assert_at_rest();
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_stranger_goes_at_once() {
        let case = Case::new(QUERY);
        for _ in 0..20 {
            let (took, _) = case.ask(Lane::Stranger).await.expect("no panic");
            assert!(took <= QUERY + Duration::from_millis(1), "{took:?}");
            sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(case.sizes(), [1; 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn known_tenants_go_at_once_then_in_batches() {
        let case = Case::new(QUERY);
        let asked: Vec<_> = (0..1_203).map(|_| case.ask(Lane::Known)).collect();
        let mut worst = Duration::ZERO;
        for asked in asked {
            worst = worst.max(asked.await.expect("no panic").0);
        }
        assert_eq!(case.sizes(), [1, 1, 1, 500, 500, 200], "three at once, then whole batches");
        assert_eq!(case.most_under_way(), 3, "one connection of the four is for strangers");
        assert!(worst <= 2 * QUERY + Duration::from_millis(2), "{worst:?}");
        case.assert_at_rest();
    }

    /// Strangers whose query hangs hold one connection, and no known tenant up; nor do known tenants hold up strangers.
    #[tokio::test(start_paused = true)]
    async fn neither_lane_starves_the_other() {
        let case = Case::new(Duration::from_millis(200));
        let strangers: Vec<_> = (0..5_000).map(|_| case.ask(Lane::Stranger)).collect();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(case.most_under_way(), 1, "one query for strangers at a time");
        let known: Vec<_> = (0..100).map(|_| case.ask(Lane::Known)).collect();
        for known in known {
            assert!(known.await.expect("no panic").0 <= Duration::from_millis(402));
        }
        assert_eq!(case.most_under_way(), 4);
        for stranger in strangers {
            assert!(stranger.await.expect("no panic").1.is_ok());
        }
        case.assert_at_rest();
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_ten_thousand_strangers_are_turned_away() {
        let case = Case::new(Duration::from_millis(200));
        let asked: Vec<_> = (0..10_500).map(|_| case.ask(Lane::Stranger)).collect();
        let mut shed = 0;
        for asked in asked {
            match asked.await.expect("no panic") {
                (_, Ok(_)) => {}
                (took, Err(StoreError::Shed)) => {
                    assert_eq!(took, Duration::ZERO);
                    shed += 1;
                }
                (_, Err(error)) => panic!("{error}"),
            }
        }
        assert!((499..=500).contains(&shed), "{shed} were turned away");
        case.assert_at_rest();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_query_fails_all_who_wait_for_it() {
        let case = Case::new(QUERY);
        let late = StoreError::Late { store: StoreName::Postgres, message: "no answer".into() };
        let unreadable: Answer = Err(Unreadable::Foreign("nonsense".into()));
        for (says, known, stranger) in [
            (Err(late), "postgres: no answer", "postgres: no answer"),
            (Ok(unreadable), "can't be read", "can't be read"),
        ] {
            *case.source.says.lock() = Some(says);
            let asked: Vec<_> =
                (0..200).flat_map(|_| [Lane::Known, Lane::Stranger].map(|l| (l, case.ask(l)))).collect();
            for (lane, asked) in asked {
                let error = asked.await.expect("no panic").1.expect_err("an error");
                let expected = if lane == Lane::Known { known } else { stranger };
                assert!(error.to_string().contains(expected), "{error}");
                assert!(
                    !matches!((lane, &error), (Lane::Known, StoreError::Late { .. }))
                        && !matches!((lane, &error), (Lane::Stranger, StoreError::Unavailable { .. })),
                    "a known tenant's time-out is the store's fault, a stranger's need not be: {error:?}"
                );
            }
        }
        *case.source.says.lock() = None;
        assert!(case.ask(Lane::Known).await.expect("no panic").1.is_ok());
        case.assert_at_rest();
    }

    #[tokio::test(start_paused = true)]
    async fn a_query_that_panics_takes_nobody_else_along() {
        let case = Case::new(QUERY);
        *case.source.panics.lock() = true;
        for lane in [Lane::Known, Lane::Stranger] {
            let error = case.ask(lane).await.expect("it is the query that panics").1.expect_err("an error");
            assert!(error.to_string().contains("given up"), "{error}");
        }
        *case.source.panics.lock() = false;
        for lane in [Lane::Known, Lane::Stranger] {
            assert!(case.ask(lane).await.expect("no panic").1.is_ok());
        }
        case.assert_at_rest();
    }

    /// Whoever leaves is asked for by no later query, and nothing is kept for them.
    #[tokio::test(start_paused = true)]
    async fn who_has_left_is_not_asked_for() {
        let case = Case::new(Duration::from_millis(200));
        let asked: Vec<_> = (0..1_000).flat_map(|_| [case.ask(Lane::Known), case.ask(Lane::Stranger)]).collect();
        sleep(Duration::from_millis(1)).await;
        let under_way = case.sizes();
        assert_eq!(under_way.len(), 4);
        for asked in asked {
            asked.abort();
        }
        sleep(SECOND).await;
        assert_eq!(case.sizes(), under_way, "nobody else was asked for");
        case.assert_at_rest();
        assert_eq!(Arc::strong_count(&case.loader.shared), 1, "nobody serves an empty queue");
    }
}
