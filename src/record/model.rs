//! What tests of this module share, a store that fails as it is told to; and the test of all: replicas that share a limit
//! while answers get lost, held against what their upstreams have seen.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use jiff::civil::Date;
use licensing::config::Window;
use licensing::enforcement::Mode;
use licensing::license::License;
use licensing::quota::Period;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::*;
use crate::stores::{Answer, Batch, Lease, LeaseRequest, MemoryUsage, Posted, QuotaKey, Source, StoreName};

/// 2026-03-01T08:00:00Z.
pub(super) const MARCH: Timestamp = Timestamp::from_micros(1_772_352_000_000_000);

pub(super) const DEADLINE: Duration = Duration::from_millis(200);

/// Everybody has a licence, since 2026-01-31, but for those.
#[derive(Default)]
pub(super) struct Everybody {
    pub(super) but: HashSet<TenantId>,
}

/// A store in memory that does what it is told, or does not, or does and does not say so.
pub(super) struct Moody {
    pub(super) kept: MemoryUsage,
    pub(super) mood: Mutex<Mood>,
    /// How often it was asked for leases.
    pub(super) leases: AtomicUsize,
    /// How often a batch was posted.
    pub(super) posts: AtomicUsize,
    pub(super) anchors: AtomicUsize,
    /// Which asks there were.
    pub(super) asked: Mutex<Vec<LeaseRequest>>,
    pub(super) posted: Mutex<Vec<Batch>>,
}

/// What it is told.
#[derive(Clone, Debug, Default)]
pub(super) struct Mood {
    /// Nothing is done or answered, probes included.
    pub(super) is_down: bool,
    /// What is asked is late, and done. Probes are answered.
    pub(super) is_late: bool,
    /// How long everything takes.
    pub(super) takes: Duration,
    /// Of a hundred, how many are not done, and how many are done and not answered.
    pub(super) fails: (u8, u8),
    /// Whose lines it refuses.
    pub(super) refuses: Option<TenantId>,
    /// Leases that tell it anything are refused.
    pub(super) refuses_reports: bool,
    pub(super) panics: bool,
    /// The state of what is random.
    pub(super) seed: u64,
}

impl Moody {
    pub(super) fn new(licenses: Everybody) -> Arc<Self> {
        Arc::new(Self {
            kept: MemoryUsage::new(Arc::new(licenses)),
            mood: Mutex::default(),
            leases: AtomicUsize::new(0),
            posts: AtomicUsize::new(0),
            anchors: AtomicUsize::new(0),
            asked: Mutex::default(),
            posted: Mutex::default(),
        })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Mood)) {
        change(&mut self.mood.lock());
    }

    /// Do `work`, or not, and answer, or not.
    async fn moodily<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let (mood, dice) = {
            let mut mood = self.mood.lock();
            // A linear congruential generator, by Knuth's numbers.
            mood.seed = mood.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (mood.clone(), u8::try_from((mood.seed >> 33) % 100).expect("below 100"))
        };
        sleep(mood.takes).await;
        assert!(!mood.panics, "as the test wants");
        let unavailable = || Err(StoreError::unavailable(StoreName::Postgres, "as the test wants"));
        if mood.is_down || dice < mood.fails.0 {
            return unavailable();
        }
        let done = work.await;
        if dice < mood.fails.0 + mood.fails.1 {
            return unavailable();
        }
        if mood.is_late {
            return Err(StoreError::late(StoreName::Postgres, "as the test wants"));
        }
        done
    }
}

#[async_trait]
impl UsageStore for Moody {
    async fn post(&self, batch: &Batch) -> Result<Posted, StoreError> {
        self.posts.fetch_add(1, Ordering::Relaxed);
        self.posted.lock().push(batch.clone());
        if let Some(refused) = self.mood.lock().refuses {
            let of_counts = batch.counts.iter().map(|count| count.tenant);
            let of_settlements = batch.settlements.iter().map(|settlement| settlement.key.tenant);
            let of_denials = batch.denials.iter().map(|denial| denial.tenant);
            if of_counts.chain(of_settlements).chain(of_denials).any(|tenant| tenant == refused) {
                return Err(StoreError::Refused { store: StoreName::Postgres, message: "as the test wants".into() });
            }
        }
        self.moodily(self.kept.post(batch)).await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease, StoreError> {
        self.leases.fetch_add(1, Ordering::Relaxed);
        self.asked.lock().push(request.clone());
        if self.mood.lock().refuses_reports && request.spent + request.returned > 0 {
            return Err(StoreError::Refused { store: StoreName::Postgres, message: "as the test wants".into() });
        }
        self.moodily(self.kept.lease(request)).await
    }

    async fn anchor(&self, tenant: TenantId) -> Result<Date, StoreError> {
        self.anchors.fetch_add(1, Ordering::Relaxed);
        self.moodily(self.kept.anchor(tenant)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        match self.mood.lock().is_down {
            true => Err(StoreError::unavailable(StoreName::Postgres, "as the test wants")),
            false => Ok(()),
        }
    }

    async fn clicked(&self, _: TenantId, _: &str, _: Timestamp) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Source for Everybody {
    async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError> {
        let license = |tenant: &TenantId| License {
            tenant: *tenant,
            plan: "starter".into(),
            features: ["tickets"].into_iter().collect(),
            features_until: BTreeMap::new(),
            usage_limits: serde_json::Map::new(),
            valid_from: Timestamp::parse("2026-01-31").expect("a day"),
            valid_until: Timestamp::INFINITY,
            auto_renew: true,
            revision: 1,
        };
        Ok(tenants.iter().map(|tenant| Ok((!self.but.contains(tenant)).then(|| license(tenant)))).collect())
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
}

/// A store, and a clock that runs with the runtime's.
pub(super) struct World {
    pub(super) store: Arc<Moody>,
    pub(super) feature: Arc<str>,
    begun: Instant,
    /// What the wall clock has been put forward by.
    ahead: Mutex<Duration>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Everybody::default())
    }

    pub(super) fn with(licenses: Everybody) -> Self {
        Self { store: Moody::new(licenses), feature: "tickets".into(), begun: Instant::now(), ahead: Mutex::default() }
    }

    pub(super) fn options() -> RecordOptions {
        RecordOptions {
            flush_interval: Duration::from_secs(5),
            lease_idle: Duration::from_secs(30),
            pending: 10_000,
            thresholds: Arc::from([80, 100]),
            deadline: DEADLINE,
        }
    }

    /// One of the processes that share the store.
    pub(super) fn replica(&self) -> Arc<Recorder> {
        self.replica_with(Self::options())
    }

    pub(super) fn replica_with(&self, options: RecordOptions) -> Arc<Recorder> {
        let metrics = Arc::new(Metrics::new(&[], Mode::Enforce, "").expect("metrics"));
        Recorder::new(Arc::clone(&self.store) as _, options, Handle::current(), metrics)
    }

    pub(super) fn now(&self) -> Moment {
        let now = Instant::now();
        Moment { wall: MARCH.plus(*self.ahead.lock() + (now - self.begun)), at: now.into_std() }
    }

    pub(super) fn put_forward(&self, by: Duration) {
        *self.ahead.lock() += by;
    }

    pub(super) fn ask(&self, tenant: TenantId, limit: u64) -> QuotaAsk<'_> {
        QuotaAsk { tenant, feature: &self.feature, window: Window::Day, limit }
    }

    pub(super) fn key(&self, tenant: TenantId, window: Window, now: Timestamp) -> QuotaKey {
        let period = Period::of(window, None, now).expect("a window without an anchor");
        QuotaKey { tenant, feature: Arc::clone(&self.feature), period }
    }

    /// Used and reserved of today's limit, as the store has it.
    pub(super) fn standing(&self, tenant: TenantId) -> (u64, u64) {
        let standing = self.store.kept.standing(&self.key(tenant, Window::Day, self.now().wall)).unwrap_or_default();
        (standing.used, standing.reserved)
    }

    /// How often the feature was used, as the store has it.
    pub(super) fn counted(&self, tenant: TenantId) -> u64 {
        self.store.kept.counted(tenant)
    }

    pub(super) async fn reserve(&self, replica: &Arc<Recorder>, ask: &QuotaAsk<'_>) -> Got {
        replica.reserve(ask, self.now(), Instant::now() + DEADLINE).await
    }
}

pub(super) type Got = Result<Result<Reservation, licensing::quota::Exhausted>, NoLease>;

pub(super) fn tenant(id: u128) -> TenantId {
    TenantId::new(Uuid::from_u128(id))
}

/// A step of a random story.
#[derive(Clone, Debug)]
enum Step {
    /// So many requests at once.
    Requests {
        replica: usize,
        tenant: u128,
        number: usize,
    },
    /// One of those under way ends.
    Settle {
        which: usize,
        how: How,
    },
    Unleased {
        replica: usize,
    },
    Flush {
        replica: usize,
    },
    Wait {
        millis: u64,
    },
    NextDay,
    Limit {
        limit: u64,
    },
    Fails {
        before: u8,
        after: u8,
    },
    IsDown {
        is_down: bool,
    },
    Exit {
        replica: usize,
    },
    Crash {
        replica: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Consume,
    Refund,
    Drop,
}

const REPLICAS: usize = 3;

/// Those below go by the limit alone. This one is also used beyond it.
const BEYOND: u128 = 2;

fn step(crashes: bool) -> impl Strategy<Value = Step> {
    let replica = 0..REPLICAS;
    let how = prop_oneof![3 => Just(How::Consume), 2 => Just(How::Refund), 1 => Just(How::Drop)];
    let request = (replica.clone(), 0..=BEYOND, 1_usize..12).prop_map(|(replica, tenant, number)| Step::Requests {
        replica,
        tenant,
        number,
    });
    prop_oneof![
        12 => request,
        12 => (any::<usize>(), how).prop_map(|(which, how)| Step::Settle { which, how }),
        2 => replica.clone().prop_map(|replica| Step::Unleased { replica }),
        6 => replica.clone().prop_map(|replica| Step::Flush { replica }),
        4 => (0..8_000_u64).prop_map(|millis| Step::Wait { millis }),
        2 => prop_oneof![0..60_u64, Just(100_000)].prop_map(|limit| Step::Limit { limit }),
        3 => (0..40_u8, 0..40_u8).prop_map(|(before, after)| Step::Fails { before, after }),
        1 => any::<bool>().prop_map(|is_down| Step::IsDown { is_down }),
        1 => replica.clone().prop_map(|replica| Step::Exit { replica }),
        1 => replica.prop_map(move |replica| if crashes && replica > 0 { Step::Crash { replica } } else { Step::NextDay }),
    ]
}

/// Who used what, as the upstreams saw it.
#[derive(Default)]
struct Truth {
    /// By the day of the request. Under way or consumed.
    taken: HashMap<(TenantId, Date), u64>,
    consumed: HashMap<(TenantId, Date), u64>,
    /// The highest limit under which any was taken. What was leased under it may be used once it is lower again: the store
    /// had it within the limit then.
    highest: HashMap<(TenantId, Date), u64>,
}

struct UnderWay {
    replica: usize,
    tenant: TenantId,
    day: Date,
    reservation: Reservation,
}

async fn play(steps: Vec<Step>, seed: u64) {
    let world = World::new();
    world.store.set(|mood| mood.seed = seed);
    let options = || RecordOptions {
        lease_idle: Duration::from_secs(6),
        flush_interval: Duration::from_secs(2),
        ..World::options()
    };
    let mut replicas: Vec<Arc<Recorder>> = (0..REPLICAS).map(|_| world.replica_with(options())).collect();
    let (mut truth, mut under_way) = (Truth::default(), Vec::<UnderWay>::new());
    let (mut limit, mut has_crashed) = (30, false);
    let settle = |truth: &mut Truth, it: UnderWay, how| {
        let place = (it.tenant, it.day);
        match how {
            How::Consume => it.reservation.consume(),
            How::Refund => it.reservation.refund(),
            How::Drop => drop(it.reservation),
        }
        match how {
            How::Refund => *truth.taken.get_mut(&place).expect("taken") -= 1,
            How::Consume | How::Drop => *truth.consumed.entry(place).or_default() += 1,
        }
    };
    for step in steps {
        match step {
            Step::Requests { replica, tenant: id, number } => {
                let ask = world.ask(tenant(id), limit);
                let asked = (0..number).map(|_| world.reserve(&replicas[replica], &ask));
                let got: Vec<Got> = join_all(asked).await;
                for got in got {
                    let Ok(Ok(reservation)) = got else { continue };
                    let remaining = reservation.remaining().expect("leased");
                    assert!(remaining.limit == limit && remaining.left < limit);
                    let day = remaining.period.start;
                    let highest = truth.highest.entry((tenant(id), day)).or_default();
                    *highest = limit.max(*highest);
                    let taken = truth.taken.entry((tenant(id), day)).or_default();
                    *taken += 1;
                    assert!(id == BEYOND || *taken <= *highest, "{taken} of {highest} were let through");
                    under_way.push(UnderWay { replica, tenant: tenant(id), day, reservation });
                }
            }
            Step::Settle { which, how } if !under_way.is_empty() => {
                let it = under_way.swap_remove(which % under_way.len());
                settle(&mut truth, it, how);
            }
            Step::Settle { .. } => {}
            Step::Unleased { replica } => {
                let now = world.now().wall;
                let reservation = replicas[replica].unleased(tenant(BEYOND), &world.feature, now);
                *truth.taken.entry((tenant(BEYOND), now.day())).or_default() += 1;
                under_way.push(UnderWay { replica, tenant: tenant(BEYOND), day: now.day(), reservation });
            }
            Step::Flush { replica } => drop(replicas[replica].flush(world.now()).await),
            Step::Wait { millis } => sleep(Duration::from_millis(millis)).await,
            Step::NextDay => world.put_forward(Duration::from_hours(24)),
            Step::Limit { limit: new } => limit = new,
            Step::Fails { before, after } => world.store.set(|mood| mood.fails = (before, after)),
            Step::IsDown { is_down } => world.store.set(|mood| mood.is_down = is_down),
            Step::Exit { replica } => {
                let (of_it, others): (Vec<_>, Vec<_>) = under_way.into_iter().partition(|it| it.replica == replica);
                under_way = others;
                of_it.into_iter().for_each(|it| settle(&mut truth, it, How::Consume));
                world.store.set(|mood| (mood.is_down, mood.fails) = (false, (0, 0)));
                assert!(replicas[replica].finish(Instant::now() + Duration::from_secs(60)).await);
                assert!(!replicas[replica].is_busy());
                replicas[replica] = world.replica_with(options());
            }
            Step::Crash { replica } => {
                // What was under way with it is gone, and may have been used.
                under_way.retain(|it| it.replica != replica);
                replicas[replica] = world.replica_with(options());
                has_crashed = true;
            }
        }
    }
    world.store.set(|mood| (mood.is_down, mood.fails) = (false, (0, 0)));
    under_way.into_iter().for_each(|it| settle(&mut truth, it, How::Consume));
    for replica in &replicas {
        assert!(replica.finish(Instant::now() + Duration::from_secs(60)).await, "everything is written");
        assert!(!replica.is_busy());
    }
    for (place, taken) in truth.taken {
        let (tenant, day) = place;
        let consumed = truth.consumed.get(&place).copied().unwrap_or_default();
        let key = world.key(tenant, Window::Day, Timestamp::midnight(day));
        let standing = world.store.kept.standing(&key);
        let counted = world.store.kept.count_on(tenant, &world.feature, day);
        if has_crashed {
            assert!(counted <= taken, "{counted} of {taken} counted");
            let held = standing.map_or(0, |standing| standing.used + standing.reserved);
            assert!(tenant == self::tenant(BEYOND) || held >= taken, "{held} of {taken} are known");
        } else {
            assert_eq!(counted, consumed, "each use is counted once");
            if let Some(standing) = standing {
                assert_eq!((standing.used, standing.reserved), (consumed, 0), "nothing stays reserved");
            }
        }
    }
}

fn run(story: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_limit_holds_and_every_use_counts_once(steps in vec(step(false), 1..120), seed in any::<u64>()) {
        run(play(steps, seed));
    }

    #[test]
    fn a_limit_holds_when_replicas_crash(steps in vec(step(true), 1..120), seed in any::<u64>()) {
        run(play(steps, seed));
    }
}
