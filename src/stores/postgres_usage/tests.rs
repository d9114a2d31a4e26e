//! The store against real servers: what it grants and writes, once, whatever happens on the way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::civil::date;
use licensing::reason::Reason;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use secrecy::SecretString;
use uuid::Uuid;

use super::*;
use crate::stores::postgres::USAGE;
use crate::stores::postgres_batch::{COUNT, SETTLE};
use crate::stores::postgres_denials::{MARK_CLICKED, MARK_UPGRADED};
use crate::stores::servers::pooler::Pooler;
use crate::stores::servers::postgres::{Database, Postgres};
use crate::stores::servers::wire::{Held, Wire};
use crate::stores::usage::{Count, Crossing, DenialCount, Settlement};
use crate::stores::{AgingTable, TransactionOutcome};

const NOVEMBER: Period = Period { window: Window::Month, start: date(2026, 11, 1), end: Some(date(2026, 12, 1)) };

/// A migrated database and a store on it.
struct Site {
    database: Database,
    store: PostgresUsage,
    metrics: TransactionMetrics,
}

impl Site {
    async fn new() -> Site {
        Site::on(&Postgres::shared().await).await
    }

    async fn on(server: &Postgres) -> Site {
        let database = server.database().await;
        crate::migrations::migrate(&SecretString::from(database.url())).await.expect("migrated");
        let metrics = metrics();
        let store = store(&database.url(), &metrics);
        Site { database, store, metrics }
    }

    /// Another replica's.
    fn another(&self) -> PostgresUsage {
        store(&self.database.url(), &self.metrics)
    }

    /// A store that reaches the server by a wire.
    fn via(&self, wire: &Wire) -> PostgresUsage {
        store(&self.database.url_via(wire), &self.metrics)
    }

    async fn tenant(&self) -> TenantId {
        let tenant = TenantId::new(Uuid::new_v4());
        self.database.execute(&format!("INSERT INTO tenant_licenses (tenant_id) VALUES ('{tenant}')")).await;
        tenant
    }

    async fn text(&self, sql: &str) -> String {
        self.database.value(sql).await.unwrap_or_default()
    }

    async fn number(&self, sql: &str) -> i64 {
        self.text(sql).await.parse().unwrap_or_else(|_| panic!("no number: {sql}"))
    }

    /// `used` and `reserved` of the only window of a tenant.
    async fn window(&self, tenant: TenantId) -> Standing {
        let sql = format!("SELECT used || ' ' || reserved FROM usage_windows WHERE tenant_id = '{tenant}'");
        let text = self.text(&sql).await;
        let (used, reserved) = text.split_once(' ').expect("two numbers");
        Standing { used: used.parse().expect("a number"), reserved: reserved.parse().expect("a number") }
    }

    async fn put_window(&self, tenant: TenantId, used: i64, reserved: i64) {
        let sql = format!(
            "INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date, used, reserved)
             VALUES ('{tenant}', 'tickets', 'month', '2026-11-01', '2026-12-01', {used}, {reserved})"
        );
        self.database.execute(&sql).await;
    }

    /// The sum of all usage of a tenant.
    async fn usage(&self, tenant: TenantId) -> i64 {
        let sql = format!("SELECT coalesce(sum(usage_count), 0) FROM feature_usage WHERE tenant_id = '{tenant}'");
        self.number(&sql).await
    }

    /// Waits until a transaction has done everything but its `COMMIT`, which is held.
    async fn in_transaction(&self, held: &HeldCommit) {
        held.reached().await;
        let sql = "SELECT count(*) FROM pg_stat_activity
                    WHERE datname = current_database() AND state = 'idle in transaction'";
        while self.number(sql).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn counted(&self, name: TransactionName, outcome: TransactionOutcome) -> u64 {
        self.metrics.total.with_label_values(&[name.as_str(), outcome.as_str()]).get()
    }
}

/// The next `COMMIT` of a wire, or its answer, held back.
struct HeldCommit {
    /// "READ COMMITTED" is found as well, and comes first.
    begin: Held,
    commit: Held,
}

impl HeldCommit {
    fn itself(wire: &Wire) -> HeldCommit {
        HeldCommit { begin: wire.hold("BEGIN ISOLATION LEVEL READ COMMITTED"), commit: wire.hold("COMMIT") }
    }

    fn answer(wire: &Wire) -> HeldCommit {
        HeldCommit { begin: wire.hold("BEGIN ISOLATION LEVEL READ COMMITTED"), commit: wire.hold_reply("COMMIT") }
    }

    async fn reached(&self) {
        self.begin.reached().await;
        self.begin.release();
        self.commit.reached().await;
    }
}

fn store(url: &str, metrics: &TransactionMetrics) -> PostgresUsage {
    PostgresUsage::new(&Secret::new(url.to_owned()), metrics.clone()).expect("a good URL")
}

fn metrics() -> TransactionMetrics {
    TransactionMetrics {
        total: IntCounterVec::new(Opts::new("total", "total"), &["name", "outcome"]).expect("a counter"),
        duration: HistogramVec::new(HistogramOpts::new("duration", "duration"), &["name"]).expect("a histogram"),
    }
}

fn key(tenant: TenantId) -> QuotaKey {
    QuotaKey { tenant, feature: Arc::from("tickets"), period: NOVEMBER }
}

fn ask(tenant: TenantId, limit: u64, needed: u64, wished: u64) -> LeaseRequest {
    LeaseRequest { id: Uuid::new_v4(), key: key(tenant), limit, spent: 0, returned: 0, needed, wished }
}

fn count(tenant: TenantId, count: u64, unleased: u64) -> Count {
    Count { tenant, feature: Arc::from("tickets"), day: date(2026, 11, 23), count, unleased }
}

fn settlement(tenant: TenantId, limit: u64, spent: u64, returned: u64) -> Settlement {
    Settlement { key: key(tenant), limit, spent, returned }
}

fn denial(tenant: TenantId, minute: &str, count: u64) -> DenialCount {
    let minute = Timestamp::parse(minute).expect("a time");
    DenialCount { tenant, feature: Arc::from("crm"), reason: Reason::FeatureNotInPlan, minute, shadow: false, count }
}

fn batch() -> Batch {
    Batch { id: Uuid::new_v4(), counts: vec![], settlements: vec![], denials: vec![], thresholds: Arc::from([80, 100]) }
}

fn counts(counts: Vec<Count>) -> Batch {
    Batch { counts, ..batch() }
}

fn settlements(settlements: Vec<Settlement>) -> Batch {
    Batch { settlements, ..batch() }
}

fn denials(denials: Vec<DenialCount>) -> Batch {
    Batch { denials, ..batch() }
}

/// How much is granted, as the design says it.
fn expected(request: &LeaseRequest, before: Standing) -> Lease {
    let used = before.used + request.spent;
    let reserved = before.reserved.saturating_sub(request.spent + request.returned);
    let available = request.limit.saturating_sub(used + reserved);
    let granted = available.min(request.needed.max(request.wished.min(available / 8)));
    Lease { granted, standing: Standing { used, reserved: reserved + granted } }
}

#[tokio::test]
async fn a_lease_is_large_far_from_the_limit_and_single_near_it() {
    let site = Site::new().await;
    for (limit, used, reserved, spent, returned, needed, wished, granted) in [
        (1_000_000, 0, 0, 0, 0, 1, 256, 256),
        (1_000_000, 0, 0, 0, 0, 1, 16_384, 16_384),
        (1_000, 0, 0, 0, 0, 1, 256, 125),
        (1_000, 900, 20, 0, 0, 1, 256, 10),
        (1_000, 990, 0, 0, 0, 1, 256, 1),
        (1_000, 990, 0, 0, 0, 0, 256, 1),
        (1_000, 993, 0, 0, 0, 0, 256, 0),
        (1_000, 993, 0, 0, 0, 7, 256, 7),
        (1_000, 993, 0, 0, 0, 8, 256, 7),
        (1_000, 999, 1, 0, 0, 1, 256, 0),
        // The limit was lowered.
        (1_000, 2_000, 0, 0, 0, 1, 256, 0),
        // What is reported first makes room, or takes it.
        (1_000, 900, 100, 0, 100, 1, 256, 12),
        (1_000, 900, 100, 60, 40, 1, 256, 5),
        (1_000, 900, 100, 100, 0, 1, 256, 0),
        // More is reported than was reserved: a window that was made anew.
        (1_000, 0, 10, 100, 100, 1, 256, 112),
        (0, 0, 0, 0, 0, 1, 256, 0),
        (u64::MAX, 0, 0, 0, 0, 1, 256, 256),
    ] {
        let tenant = TenantId::new(Uuid::new_v4());
        site.put_window(tenant, used, reserved).await;
        let request = LeaseRequest { spent, returned, ..ask(tenant, limit, needed, wished) };
        let lease = site.store.lease(&request).await.expect("a lease");
        let case = format!("{request:?} {used} {reserved}");
        assert_eq!(lease.granted, granted, "{case}");
        let before = Standing { used: used.unsigned_abs(), reserved: reserved.unsigned_abs() };
        assert_eq!(lease, expected(&request, before), "{case}");
        assert_eq!(site.window(tenant).await, lease.standing, "{case}");
        // Asked again, it is not granted again.
        assert_eq!(site.store.lease(&request).await.expect("the same"), lease, "{case}");
        assert_eq!(site.window(tenant).await, lease.standing, "{case}");
    }
    assert_eq!(site.counted(TransactionName::Lease, TransactionOutcome::Retried), 0);
}

/// One round trip, on a connection that is there: all is sent before anything is answered.
#[tokio::test]
async fn a_lease_is_one_round_trip() {
    let server = Postgres::shared().await;
    let (site, wire) = (Site::on(&server).await, server.wire());
    let (store, tenant) = (site.via(&wire), site.tenant().await);
    store.lease(&ask(tenant, 1_000_000, 1, 256)).await.expect("a lease");
    wire.reset();
    wire.slow(Duration::from_millis(100));
    let begun = Instant::now();
    store.lease(&ask(tenant, 1_000_000, 1, 256)).await.expect("a lease");
    let took = begun.elapsed();
    assert!((200..390).contains(&took.as_millis()), "{took:?}: one way and back are 200 ms, twice 400");
    assert_eq!(wire.count("UPDATE usage_windows"), 1);
    assert_eq!(wire.connections(), 0);
}

/// What was used in a window before there was a limit counts; what was used elsewhere does not.
#[tokio::test]
async fn the_first_lease_adds_up_what_was_used() {
    let site = Site::new().await;
    let (tenant, other) = (site.tenant().await, site.tenant().await);
    let rows = [
        (tenant, "tickets", "2026-11-01", 10),
        (tenant, "tickets", "2026-11-30", 20),
        // Another program's row for the same day.
        (tenant, "tickets", "2026-11-30", 3),
        (tenant, "tickets", "2026-10-31", 1_000),
        (tenant, "tickets", "2026-12-01", 1_000),
        (tenant, "crm", "2026-11-10", 1_000),
        (other, "tickets", "2026-11-10", 1_000),
    ];
    for (tenant, feature, day, count) in rows {
        let sql = format!(
            "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
             VALUES ('{tenant}', '{feature}', {count}, '{day}')"
        );
        site.database.execute(&sql).await;
    }
    let lease = site.store.lease(&ask(tenant, 1_000, 1, 256)).await.expect("a lease");
    assert_eq!(lease, Lease { granted: 120, standing: Standing { used: 33, reserved: 120 } });
    let lifetime = Period { window: Window::Lifetime, start: date(1, 1, 1), end: None };
    let request = ask(tenant, 10_000, 1, 256);
    let request = LeaseRequest { key: QuotaKey { period: lifetime, ..request.key }, ..request };
    let lease = site.store.lease(&request).await.expect("a lease");
    assert_eq!(lease.standing.used, 2_033);
    let window = "SELECT start_date || ' ' || end_date FROM usage_windows WHERE window_kind = 'lifetime'";
    assert_eq!(site.text(window).await, "0001-01-01 infinity");
}

/// Many ask at once, each until nothing is left: what is granted is the limit, to the last.
#[tokio::test]
async fn replicas_that_ask_at_once_get_the_limit_and_no_more() {
    const LIMIT: u64 = 1_000;
    let site = Site::new().await;
    let tenant = site.tenant().await;
    let replicas = (0..4).map(|_| site.another()).collect::<Vec<_>>();
    let drain = async |store: &PostgresUsage, needed: u64| {
        let (mut granted, mut spent) = (0, 0);
        loop {
            // Of each lease one is given back, where there is more than one, and the rest is used.
            let returned = u64::from(spent > 1);
            let request = LeaseRequest { spent: spent - returned, returned, ..ask(tenant, LIMIT, needed, 256) };
            let lease = store.lease(&request).await.expect("a lease");
            granted += spent - returned;
            spent = lease.granted;
            if lease.granted == 0 {
                return granted;
            }
        }
    };
    let granted = join_all(replicas.iter().zip(1..).map(|(store, needed)| drain(store, needed))).await;
    let granted: u64 = granted.iter().sum();
    // What was given back last is left for whoever comes then.
    let mut last = 0;
    loop {
        let lease = site.store.lease(&ask(tenant, LIMIT, 1, 1)).await.expect("a lease");
        last += lease.granted;
        if lease.granted == 0 {
            break;
        }
    }
    assert_eq!(granted + last, LIMIT);
    assert_eq!(site.window(tenant).await, Standing { used: granted, reserved: last });
}

/// The same request on two connections at once, as when the answer to the first is late.
#[tokio::test]
async fn the_same_request_on_two_connections_is_granted_once() {
    let site = Site::new().await;
    let replicas = [site.another(), site.another()];
    for _ in 0..50 {
        let tenant = TenantId::new(Uuid::new_v4());
        site.put_window(tenant, 0, 0).await;
        let request = ask(tenant, 1_000, 1, 256);
        let leases = join_all(replicas.iter().map(|store| store.lease(&request))).await;
        let granted: Vec<u64> = leases.into_iter().map(|lease| lease.expect("a lease").granted).collect();
        assert_eq!(granted, [125, 125]);
        assert_eq!(site.window(tenant).await, Standing { used: 0, reserved: 125 });
    }
}

/// The server has done it, and nobody hears of it.
#[tokio::test]
async fn an_answer_that_is_lost_is_no_second_lease_and_no_second_batch() {
    let server = Postgres::shared().await;
    let (site, wire) = (Site::on(&server).await, server.wire());
    let (store, tenant) = (site.via(&wire), site.tenant().await);
    store.probe().await.expect("it answers");

    // The connection is cut: it is asked again on another.
    store.lease(&ask(tenant, 1_000, 1, 8)).await.expect("a lease");
    let held = wire.hold_reply("UPDATE usage_windows");
    let request = ask(tenant, 1_000, 1, 8);
    let cut = async {
        held.reached().await;
        wire.reset_connections().await;
        held.release();
    };
    let (lease, ()) = tokio::join!(store.lease(&request), cut);
    let lease = lease.expect("a lease");
    assert_eq!((lease.granted, site.window(tenant).await.reserved), (8, 16));
    assert_eq!(site.counted(TransactionName::Lease, TransactionOutcome::Retried), 1);

    let held = HeldCommit::answer(&wire);
    let first = Batch { settlements: vec![settlement(tenant, 1_000, 8, 0)], ..counts(vec![count(tenant, 8, 0)]) };
    let cut = async {
        held.reached().await;
        while site.usage(tenant).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        wire.reset_connections().await;
        held.commit.release();
    };
    let (posted, ()) = tokio::join!(store.post(&first), cut);
    assert_eq!(posted.expect("posted").standings, [None], "it was there already");
    assert_eq!((site.usage(tenant).await, site.window(tenant).await), (8, Standing { used: 8, reserved: 8 }));

    // The connection stays, and nothing comes: then the caller asks again.
    wire.swallow_replies();
    let second = Batch { id: Uuid::new_v4(), ..first };
    let error = store.post(&second).await.expect_err("nobody can tell");
    assert!(matches!(error, StoreError::Late { .. }), "{error}");
    wire.restore();
    let posted = store.post(&second).await.expect("posted");
    assert_eq!(posted, Posted { standings: vec![None], ..Posted::default() });
    assert_eq!((site.usage(tenant).await, site.window(tenant).await), (16, Standing { used: 16, reserved: 0 }));
}

#[tokio::test]
async fn what_is_refused_for_its_content_is_told_from_what_may_be_taken_later() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    let error = async || site.store.post(&counts(vec![count(tenant, 1, 0)])).await.expect_err("a refusal");
    site.database.execute("ALTER TABLE feature_usage ADD CONSTRAINT own CHECK (feature_name <> 'tickets')").await;
    let refused = error().await;
    assert!(matches!(refused, StoreError::Refused { .. }), "a constraint: {refused}");
    let raise = "ALTER TABLE feature_usage DROP CONSTRAINT own;
        CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not here'; END $$;
        CREATE TRIGGER own BEFORE INSERT ON feature_usage FOR EACH ROW EXECUTE FUNCTION own()";
    site.database.execute(raise).await;
    let refused = error().await;
    assert!(matches!(refused, StoreError::Refused { .. }), "a trigger: {refused}");
    // Somebody will run `migrate`, or has yet to.
    site.database.execute("ALTER TABLE usage_batches RENAME TO elsewhere").await;
    let unavailable = error().await;
    assert!(matches!(unavailable, StoreError::Unavailable { .. }), "a table that is missing: {unavailable}");
    assert_eq!(site.usage(tenant).await, 0);
}

#[tokio::test]
async fn the_same_batch_on_two_connections_is_written_once() {
    let site = Site::new().await;
    let replicas = [site.another(), site.another(), site.another()];
    let (tenant, mut expected) = (site.tenant().await, 0_i64);
    site.put_window(tenant, 0, 0).await;
    for _ in 0..30 {
        expected += 7;
        let posted = Batch {
            denials: vec![denial(tenant, "2026-11-23T10:00:00Z", 3)],
            settlements: vec![settlement(tenant, 1_000_000, 7, 0)],
            ..counts(vec![count(tenant, 7, 0)])
        };
        let answers = join_all(replicas.iter().map(|store| store.post(&posted))).await;
        let answers: Vec<Posted> = answers.into_iter().map(|posted| posted.expect("posted")).collect();
        assert_eq!(answers.iter().filter(|posted| posted.standings != [None]).count(), 1, "{answers:?}");
        assert_eq!((site.usage(tenant).await, site.window(tenant).await.used), (expected, expected.unsigned_abs()));
    }
    assert_eq!(site.number("SELECT count FROM feature_denial_events").await, 30 * 3);
}

/// Batches and leases go on while the server crashes and comes back, each until it is answered.
#[tokio::test]
async fn a_server_that_crashes_loses_nothing_and_counts_nothing_twice() {
    let mut server = Postgres::private(&[]).await;
    let site = Site::on(&server).await;
    let tenant = site.tenant().await;
    let stopped = std::sync::atomic::AtomicBool::new(false);
    let replicas = [site.another(), site.another()];
    let work = async |store: &PostgresUsage| {
        let (mut consumed, mut granted) = (0, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let request = ask(tenant, 1_000_000_000, 1, 10);
            let lease = loop {
                match store.lease(&request).await {
                    Ok(lease) => break lease,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            granted += lease.granted;
            consumed += lease.granted - 1;
            let posted = Batch {
                settlements: vec![settlement(tenant, 1_000_000_000, lease.granted - 1, 1)],
                ..counts(vec![count(tenant, lease.granted - 1, 0)])
            };
            while store.post(&posted).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        (consumed, granted)
    };
    let crash = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            server.restart().await;
        }
        tokio::time::sleep(Duration::from_millis(400)).await;
        stopped.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (a, b, ()) = tokio::join!(work(&replicas[0]), work(&replicas[1]), crash);
    let consumed = a.0 + b.0;
    assert!(a.1 >= 20 && b.1 >= 20, "something was done: {a:?} {b:?}");
    assert_eq!(site.usage(tenant).await.unsigned_abs(), consumed);
    assert_eq!(site.window(tenant).await, Standing { used: consumed, reserved: 0 });
}

/// Whose licence is gone is left out and counted, and spoils nothing for the others.
#[tokio::test]
async fn a_tenant_without_a_licence_spoils_no_batch() {
    let site = Site::new().await;
    let (tenant, unknown) = (site.tenant().await, TenantId::new(Uuid::new_v4()));
    let posted = site.store.post(&counts(vec![count(tenant, 5, 0), count(unknown, 7, 7)])).await.expect("posted");
    assert_eq!(posted.without_license, 7);
    assert_eq!((site.usage(tenant).await, site.usage(unknown).await), (5, 0));

    // It is being removed at that moment.
    let leaving = site.tenant().await;
    let other = site.database.connect().await;
    let delete = format!("BEGIN; DELETE FROM tenant_licenses WHERE tenant_id = '{leaving}'");
    other.batch_execute(&delete).await.expect("deleted");
    let lines = counts(vec![count(tenant, 5, 0), count(leaving, 9, 0)]);
    let commit = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        other.batch_execute("COMMIT").await.expect("committed");
    };
    let (posted, ()) = tokio::join!(site.store.post(&lines), commit);
    assert_eq!(posted.expect("posted").without_license, 9);
    assert_eq!((site.usage(tenant).await, site.usage(leaving).await), (10, 0));
    assert_eq!(site.counted(TransactionName::Usage, TransactionOutcome::Retried), 1);
}

/// The table is public: rows of other programs are theirs, and the column is an INTEGER.
#[tokio::test]
async fn the_public_table_is_respected() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    let theirs = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
         VALUES ('{tenant}', 'tickets', 40, '2026-11-23')"
    );
    site.database.execute(&theirs).await;
    site.store.post(&counts(vec![count(tenant, 2, 0)])).await.expect("posted");
    site.another().post(&counts(vec![count(tenant, 3, 0)])).await.expect("posted");
    let rows = "SELECT string_agg(usage_count::text, ' ' ORDER BY usage_count) FROM feature_usage";
    assert_eq!(site.text(rows).await, "5 40");
    let ours = Uuid::new_v5(tenant.as_uuid(), b"tickets/2026-11-23");
    let row =
        format!("SELECT concat_ws(' ', usage_count, feature_name, usage_date) FROM feature_usage WHERE id = '{ours}'");
    assert_eq!(site.text(&row).await, "5 tickets 2026-11-23");

    site.database.execute(&format!("UPDATE feature_usage SET usage_count = NULL WHERE id = '{ours}'")).await;
    site.store.post(&counts(vec![count(tenant, 4, 0)])).await.expect("posted");
    assert_eq!(site.usage(tenant).await, 44);

    for wide in [false, true] {
        if wide {
            site.database.execute("ALTER TABLE feature_usage ALTER usage_count TYPE BIGINT").await;
        }
        let before = site.usage(tenant).await;
        for amount in [i32::MAX as u64 - 10, 100, 3 * i32::MAX as u64 + 5, 1] {
            site.store.post(&counts(vec![count(tenant, amount, 0)])).await.expect("posted");
        }
        assert_eq!(site.usage(tenant).await - before, 4 * i64::from(i32::MAX) + 96, "wide: {wide}");
    }
    // Lines that say the same twice are one.
    let before = site.usage(tenant).await;
    site.store.post(&counts(vec![count(tenant, 1, 0), count(tenant, 2, 0)])).await.expect("posted");
    assert_eq!(site.usage(tenant).await - before, 3);
}

/// What is used without a lease counts where there is a limit on that day, and nowhere else.
#[tokio::test]
async fn usage_without_a_lease_counts_in_the_windows_that_are_there() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    for (kind, start, end) in [
        ("day", "2026-11-23", "2026-11-24"),
        ("day", "2026-11-22", "2026-11-23"),
        ("month", "2026-11-01", "2026-12-01"),
        ("anchored", "2026-11-24", "2026-12-24"),
        ("lifetime", "0001-01-01", "infinity"),
    ] {
        let sql = format!(
            "INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date, used)
             VALUES ('{tenant}', 'tickets', '{kind}', '{start}', '{end}', 10)"
        );
        site.database.execute(&sql).await;
    }
    let posted = site.store.post(&counts(vec![count(tenant, 9, 4)])).await.expect("posted");
    assert_eq!(posted, Posted::default());
    let windows =
        "SELECT string_agg(window_kind || ' ' || used, ', ' ORDER BY window_kind, start_date) FROM usage_windows";
    assert_eq!(site.text(windows).await, "anchored 10, day 10, day 14, lifetime 14, month 14");
    let both = Batch { settlements: vec![settlement(tenant, 100, 2, 0)], ..counts(vec![count(tenant, 3, 1)]) };
    let posted = site.store.post(&both).await.expect("posted");
    assert_eq!(posted.standings, [Some(Standing { used: 17, reserved: 0 })]);
}

/// A window that begins while usage without a lease is being written counts it, one way or the other.
#[tokio::test]
async fn no_usage_falls_between_a_batch_and_the_beginning_of_a_window() {
    let server = Postgres::shared().await;
    let (site, wire) = (Site::on(&server).await, server.wire());
    let (store, tenant) = (site.via(&wire), site.tenant().await);
    let held = HeldCommit::itself(&wire);
    let posted = counts(vec![count(tenant, 100, 100)]);
    let request = ask(tenant, 1_000, 1, 8);
    let lease = async {
        site.in_transaction(&held).await;
        let release = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert_eq!(site.number("SELECT count(*) FROM usage_windows").await, 0, "it waits for the batch");
            held.commit.release();
        };
        tokio::join!(site.store.lease(&request), release).0
    };
    let (posted, lease) = tokio::join!(store.post(&posted), lease);
    posted.expect("posted");
    assert_eq!(lease.expect("a lease").standing, Standing { used: 100, reserved: 8 });
}

/// A settlement is written whatever has become of its window.
#[tokio::test]
async fn what_is_settled_never_goes_below_nothing() {
    let site = Site::new().await;
    let (there, gone) = (site.tenant().await, site.tenant().await);
    site.put_window(there, 5, 3).await;
    let lines = vec![settlement(gone, 100, 4, 4), settlement(there, 100, 10, 10), settlement(there, 100, 1, 1)];
    let posted = site.store.post(&settlements(lines)).await.expect("posted");
    let standing = Some(Standing { used: 16, reserved: 0 });
    assert_eq!(posted.standings, [None, standing, standing]);
    assert_eq!(site.number("SELECT count(*) FROM usage_windows").await, 1);
}

/// Each threshold is announced by one batch, once; a higher limit takes back what it had announced above its share.
#[tokio::test]
async fn each_threshold_is_crossed_once() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    site.put_window(tenant, 0, 0).await;
    for (limit, spent, crossed) in [
        (100, 79, &[][..]),
        (100, 1, &[(80, 80)]),
        (100, 19, &[]),
        (100, 0, &[]),
        (100, 1, &[(100, 100)]),
        (100, 50, &[]),
        // Raised: 150 of 1,000.
        (1_000, 0, &[]),
        (1_000, 700, &[(80, 850)]),
        (2_000, 0, &[]),
        // Both at once.
        (2_000, 1_150, &[(80, 2_000), (100, 2_000)]),
        (0, 0, &[]),
        (2_000, 0, &[]),
        (u64::MAX, 0, &[]),
    ] {
        let posted = site.store.post(&settlements(vec![settlement(tenant, limit, spent, 0)])).await.expect("posted");
        let expected =
            crossed.iter().map(|(percent, used)| Crossing { key: key(tenant), percent: *percent, used: *used, limit });
        assert_eq!(posted.crossings, expected.collect::<Vec<_>>(), "{limit} {spent}");
    }

    // Replicas that report at once.
    let tenant = site.tenant().await;
    site.put_window(tenant, 0, 0).await;
    let replicas = (0..5).map(|_| site.another()).collect::<Vec<_>>();
    let report = async |store: &PostgresUsage| {
        let mut crossings = Vec::new();
        for _ in 0..20 {
            let posted = store.post(&settlements(vec![settlement(tenant, 100, 1, 0)])).await.expect("posted");
            crossings.extend(posted.crossings);
        }
        crossings
    };
    let crossings = join_all(replicas.iter().map(report)).await.concat();
    let mut crossed: Vec<_> = crossings.iter().map(|crossing| (crossing.percent, crossing.used)).collect();
    crossed.sort_unstable();
    assert_eq!(crossed, [(80, 80), (100, 100)]);
}

/// One row for each minute, whoever denies; a click marks those of the day before it, and those that are written after it.
#[tokio::test]
async fn denials_are_one_row_a_minute_and_a_click_marks_them() {
    let site = Site::new().await;
    let tenant = TenantId::new(Uuid::new_v4());
    let at = |time: &str| denial(tenant, time, 2);
    let shadow = DenialCount { shadow: true, ..at("2026-11-23T10:00:00Z") };
    let first = vec![at("2026-11-22T09:59:00Z"), at("2026-11-22T10:01:00Z"), at("2026-11-23T10:00:00Z"), shadow];
    site.store.post(&denials(first.clone())).await.expect("posted");
    site.another().post(&denials(first)).await.expect("posted");
    let events = "SELECT string_agg(to_char(minute, 'DD HH24:MI ') || count || CASE WHEN clicked_upgrade
                         THEN ' clicked ' || to_char(clicked_at, 'HH24:MI:SS') ELSE '' END, ', ' ORDER BY minute)
                    FROM feature_denial_events";
    assert_eq!(site.text(events).await, "22 09:59 4, 22 10:01 4, 23 10:00 4");
    assert_eq!(site.number("SELECT count FROM shadow_denial_events").await, 4);
    let row = "SELECT concat_ws(' ', feature_name, reason, created_at > now() - interval '1 minute') \
                 FROM feature_denial_events WHERE minute = '2026-11-23 10:00Z'";
    assert_eq!(site.text(row).await, "crm feature_not_in_plan t");

    let click = |time: &str| Timestamp::parse(time).expect("a time");
    site.store.clicked(tenant, "tickets", click("2026-11-23T10:00:30Z")).await.expect("another feature");
    site.store.clicked(tenant, "crm", click("2026-11-23T10:00:30Z")).await.expect("clicked");
    site.store.clicked(tenant, "crm", click("2026-11-23T10:00:40Z")).await.expect("clicked again");
    let marked = "22 09:59 4, 22 10:01 4 clicked 10:00:30, 23 10:00 4 clicked 10:00:30";
    assert_eq!(site.text(events).await, marked);

    // What another replica writes late.
    let late = vec![
        at("2026-11-22T10:00:00Z"),
        at("2026-11-23T09:00:00Z"),
        at("2026-11-23T10:00:00Z"),
        at("2026-11-23T10:01:00Z"),
    ];
    site.another().post(&denials(late)).await.expect("posted");
    let marked = "22 09:59 4, 22 10:00 2, 22 10:01 4 clicked 10:00:30, 23 09:00 2 clicked 10:00:40, \
                  23 10:00 6 clicked 10:00:30, 23 10:01 2";
    assert_eq!(site.text(events).await, marked);
    let operators = "SELECT COUNT(CASE WHEN clicked_upgrade THEN 1 END)::float / COUNT(*) AS conversion_rate FROM \
                     feature_denial_events WHERE created_at > NOW() - INTERVAL '7 days'";
    assert_eq!(site.text(operators).await, "0.5");
}

/// A click that comes while denials before it are being written waits for them.
#[tokio::test]
async fn no_denial_falls_between_a_batch_and_a_click() {
    let server = Postgres::shared().await;
    let (site, wire) = (Site::on(&server).await, server.wire());
    let (store, tenant) = (site.via(&wire), TenantId::new(Uuid::new_v4()));
    let held = HeldCommit::itself(&wire);
    let posted = denials(vec![denial(tenant, "2026-11-23T10:00:00Z", 1)]);
    let click = async {
        site.in_transaction(&held).await;
        let release = async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert_eq!(site.number("SELECT count(*) FROM upgrade_marks").await, 0, "it waits for the batch");
            held.commit.release();
        };
        let at = Timestamp::parse("2026-11-23T10:00:30Z").expect("a time");
        tokio::join!(site.store.clicked(tenant, "crm", at), release).0
    };
    let (posted, clicked) = tokio::join!(store.post(&posted), click);
    posted.expect("posted");
    clicked.expect("clicked");
    assert_eq!(site.text("SELECT clicked_upgrade FROM feature_denial_events").await, "t");
}

/// Batches that touch the same rows in any order, and clicks among them, are in nobody's way for good.
#[tokio::test]
async fn nobody_waits_for_each_other_for_ever() {
    const ROUNDS: usize = 10;
    let site = Site::new().await;
    let mut tenants = Vec::new();
    for _ in 0..20 {
        tenants.push(site.tenant().await);
        site.put_window(tenants[tenants.len() - 1], 0, 0).await;
    }
    let replicas = (0..4).map(|_| site.another()).collect::<Vec<_>>();
    let at = Timestamp::parse("2026-11-23T10:55:00Z").expect("a time");
    let of_minute = |tenants: &[TenantId], minute: u32| {
        let minute = format!("2026-11-23T10:{minute:02}:00Z");
        tenants.iter().map(|tenant| denial(*tenant, &minute, 1)).collect::<Vec<_>>()
    };
    let work = async |place: usize, store: &PostgresUsage| {
        for round in 0..ROUNDS {
            let mut order = tenants.clone();
            order.rotate_left((place * 7 + round) % tenants.len());
            if place.is_multiple_of(2) {
                order.reverse();
            }
            // All of it in one batch, and each kind by itself: else those who wait for the first kind never meet at the next.
            let all = Batch {
                counts: order.iter().map(|tenant| count(*tenant, 1, 1)).collect(),
                settlements: order.iter().map(|tenant| settlement(*tenant, 100, 1, 0)).collect(),
                denials: (0..30).flat_map(|minute| of_minute(&order, minute)).collect(),
                ..batch()
            };
            for (with_counts, with_settlements, with_denials) in
                [(true, true, true), (true, false, false), (false, true, false), (false, false, true)]
            {
                let mut part = Batch { id: Uuid::new_v4(), ..all.clone() };
                part.counts.retain(|_| with_counts);
                part.settlements.retain(|_| with_settlements);
                part.denials.retain(|_| with_denials);
                store.post(&part).await.expect("posted");
            }
            store.clicked(order[0], "crm", at).await.expect("clicked");
            store.lease(&ask(order[1], 1_000, 1, 8)).await.expect("a lease");
        }
    };
    join_all(replicas.iter().enumerate().map(|(place, store)| work(place, store))).await;
    let each = 4 * 2 * i64::try_from(ROUNDS).expect("few");
    assert_eq!(site.number("SELECT sum(usage_count) FROM feature_usage").await, each * 20);
    assert_eq!(site.number("SELECT sum(used) FROM usage_windows").await, 2 * each * 20);
    assert_eq!(site.number("SELECT sum(count) FROM feature_denial_events").await, each * 20 * 30);
    for name in [TransactionName::Usage, TransactionName::Click, TransactionName::Lease] {
        assert_eq!(site.counted(name, TransactionOutcome::Retried), 0, "{name:?}: no deadlock had to be broken");
    }
}

/// A row that somebody holds fails a lease soon, and leaves no connection behind that waits.
#[tokio::test]
async fn a_lock_does_not_hang_a_lease() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    site.put_window(tenant, 0, 0).await;
    let other = site.database.connect().await;
    other.batch_execute("BEGIN; SELECT FROM usage_windows FOR UPDATE").await.expect("locked");
    let begun = Instant::now();
    let error = site.store.lease(&ask(tenant, 1_000, 1, 8)).await.expect_err("it is locked");
    assert!(matches!(error, StoreError::Late { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    assert_eq!(site.number(waiting).await, 0);
    other.batch_execute("COMMIT").await.expect("released");
    assert_eq!(site.store.lease(&ask(tenant, 1_000, 1, 8)).await.expect("a lease").granted, 8);
}

/// Whoever gives up waiting leaves a connection that is fit for use.
#[tokio::test]
async fn a_lease_that_nobody_waits_for_does_no_harm() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    site.put_window(tenant, 0, 0).await;
    for wait in 0..40 {
        let (request, wait) = (ask(tenant, 1_000_000, 1, 1), Duration::from_micros(wait * 50));
        let _ = tokio::time::timeout(wait, site.store.lease(&request)).await;
        let lease = site.store.lease(&request).await.expect("the same");
        assert_eq!((lease.granted, lease.standing.reserved), (1, 1));
        let back = LeaseRequest { returned: 1, ..ask(tenant, 1_000_000, 0, 0) };
        assert_eq!(site.store.lease(&back).await.expect("given back").standing.reserved, 0);
    }
    let stuck = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'";
    assert_eq!(site.number(stuck).await, 0);
}

/// From the licence's begin, once and for all.
#[tokio::test]
async fn an_anchor_is_put_down_once() {
    let site = Site::new().await;
    let today = "SELECT (now() AT TIME ZONE 'UTC')::date";
    for (from, expected) in [
        ("'2026-01-31 23:59:59'", Some("2026-01-31")),
        ("'-infinity'", None),
        ("'infinity'", None),
        ("'12026-01-01'", None),
    ] {
        let tenant = site.tenant().await;
        let valid_from = format!("UPDATE tenant_licenses SET valid_from = {from} WHERE tenant_id = '{tenant}'");
        site.database.execute(&valid_from).await;
        let (before, (anchor, same)) =
            (site.text(today).await, tokio::join!(site.store.anchor(tenant), site.store.anchor(tenant)));
        let anchor = anchor.expect("an anchor");
        assert_eq!(same.expect("the same"), anchor);
        let expected = expected.map_or(before, str::to_owned);
        // Midnight may have passed meanwhile.
        assert!(anchor.to_string() == expected || anchor.to_string() == site.text(today).await, "{from}: {anchor}");
        let moved = format!("UPDATE tenant_licenses SET valid_from = '2020-02-02' WHERE tenant_id = '{tenant}'");
        site.database.execute(&moved).await;
        assert_eq!(site.another().anchor(tenant).await.expect("the same"), anchor, "nothing moves it");
    }
    let unknown = site.store.anchor(TenantId::new(Uuid::new_v4())).await.expect("an anchor");
    assert_eq!(unknown.to_string(), site.text(today).await);
}

/// A server that can't be written is as good as none; so is one without the tables.
#[tokio::test]
async fn a_probe_finds_out_whether_it_can_be_written() {
    let site = Site::new().await;
    site.store.probe().await.expect("it answers");
    site.store.probe().await.expect("and again");
    let name = site.database.name();
    site.database.execute(&format!("ALTER DATABASE {name} SET default_transaction_read_only = on")).await;
    let error = site.another().probe().await.expect_err("it can't be written");
    assert!(error.to_string().contains("read-only transaction"), "{error}");
    // A default of the server's is none of a lease's.
    site.another().lease(&ask(TenantId::new(Uuid::new_v4()), 10, 1, 1)).await.expect("a lease");
    site.database
        .execute(&format!("BEGIN READ WRITE; ALTER DATABASE {name} RESET ALL; DROP TABLE usage_batches; COMMIT"))
        .await;
    let error = site.another().probe().await.expect_err("no table");
    assert!(error.to_string().contains("run `dotmac-license-proxy migrate`"), "{error}");
}

/// What many platforms put between a program and Postgres: each transaction may run on another of its connections.
#[tokio::test]
async fn a_pooler_in_transaction_mode_will_do() {
    let site = Site::new().await;
    let pooler = Pooler::start(&site.database, 2).await;
    let replicas = (0..4).map(|_| store(&pooler.url(&site.database), &site.metrics)).collect::<Vec<_>>();
    let tenant = site.tenant().await;
    let work = async |store: &PostgresUsage| {
        for _ in 0..10 {
            let lease = store.lease(&ask(tenant, 1_000_000, 1, 5)).await.expect("a lease");
            let posted = Batch {
                settlements: vec![settlement(tenant, 1_000_000, lease.granted, 0)],
                denials: vec![denial(tenant, "2026-11-23T10:00:00Z", 1)],
                ..counts(vec![count(tenant, lease.granted, 0)])
            };
            store.post(&posted).await.expect("posted");
            store.anchor(tenant).await.expect("an anchor");
            store
                .clicked(tenant, "crm", Timestamp::parse("2026-11-23T10:05:00Z").expect("a time"))
                .await
                .expect("clicked");
        }
    };
    join_all(replicas.iter().map(work)).await;
    assert_eq!((site.usage(tenant).await, site.window(tenant).await), (200, Standing { used: 200, reserved: 0 }));
    assert_eq!(site.text("SELECT count || ' ' || clicked_upgrade FROM feature_denial_events").await, "40 true");
}

/// A crash of the server must not give a lease twice, even where commits are not waited for: then the log is safe up to its
/// end as soon as there is an answer.
#[tokio::test]
async fn a_lease_waits_for_its_commit() {
    let server = Postgres::private(&[("synchronous_commit", "off"), ("wal_writer_delay", "10s")]).await;
    let site = Site::on(&server).await;
    let tenant = site.tenant().await;
    let client = site.database.connect().await;
    for _ in 0..20 {
        site.store.lease(&ask(tenant, 1_000_000, 1, 1)).await.expect("a lease");
        let row = client.query_one("SELECT pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()", &[]).await;
        assert!(row.expect("two positions").get::<_, bool>(0));
    }
}

/// A hundred thousand rows: whatever runs often, or while somebody waits, goes by an index.
#[tokio::test]
async fn nothing_reads_a_whole_table() {
    let site = Site::new().await;
    let fill = "
        INSERT INTO tenant_licenses (tenant_id) SELECT md5('t' || n)::uuid FROM generate_series(1, 20000) AS n;
        INSERT INTO feature_usage (id, tenant_id, feature_name, usage_count, usage_date)
          SELECT gen_random_uuid(), md5('t' || 1 + n % 20000)::uuid, 'tickets', 1, date '2026-11-23' - n / 300
            FROM generate_series(0, 99999) AS n;
        INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute, clicked_upgrade, created_at)
          SELECT gen_random_uuid(), md5('t' || 1 + n % 20000)::uuid, 'crm', 'feature_not_in_plan',
                 date_trunc('minute', at), n % 50 = 0, at
            FROM (SELECT n, now() - n * interval '90 seconds' AS at FROM generate_series(0, 99999) AS n) AS list;
        INSERT INTO shadow_denial_events (id, tenant_id, feature_name, reason, minute, created_at)
          SELECT id, tenant_id, feature_name, reason, minute, created_at FROM feature_denial_events;
        INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date)
          SELECT md5('t' || n)::uuid, 'tickets', 'month', month, (month + interval '1 month')::date
            FROM generate_series(1, 3000) AS n, generate_series('2026-01-01', '2026-11-01', interval '1 month') AS month;
        INSERT INTO usage_batches (id, at) SELECT gen_random_uuid(), now() - n * interval '10 minutes'
            FROM generate_series(0, 50000) AS n";
    site.database.execute(fill).await;
    site.database.execute("VACUUM ANALYZE").await;
    let uuids =
        site.text("SELECT quote_literal(array_agg(md5('t' || n)::uuid)) FROM generate_series(1, 100) AS n").await;
    let client = site.database.connect().await;
    client.batch_execute("SET timezone = 'UTC'; SET plan_cache_mode = force_custom_plan").await.expect("set");
    let tenant = "md5('t7')::uuid";
    let key = format!("{tenant}, 'tickets', 'month', '2026-11-01'");
    let columns = |rest: &str| format!("{uuids}, array_fill('tickets'::text, ARRAY[100]), {rest}");
    let (texts, numbers) = (
        |text: &str| format!("array_fill('{text}'::text, ARRAY[100])"),
        "array_fill(1::bigint, ARRAY[100])".to_owned(),
    );
    let conversion = "SELECT COUNT(CASE WHEN clicked_upgrade THEN 1 END)::float / COUNT(*) AS conversion_rate \
                      FROM feature_denial_events WHERE created_at > NOW() - INTERVAL '7 days'";
    let prune =
        |table: AgingTable| (table.remove_sql(), "text, text, bigint", "'2026-02-10Z', '-infinity', 1000".to_owned());
    let statements: Vec<(String, &str, String, &[&str])> = vec![
        (conversion.to_owned(), "", String::new(), &["idx_feature_denial_events_created"]),
        (
            LEASE.to_owned(),
            "uuid, uuid, text, text, text, bigint, bigint, bigint, bigint, bigint",
            format!("gen_random_uuid(), {key}, 1000, 0, 0, 1, 256"),
            &["usage_windows_pkey", "usage_batches_pkey"],
        ),
        (
            BEGIN_WINDOW.to_owned(),
            "uuid, text, text, text, text",
            format!("{key}, '2026-12-01'"),
            &["idx_feature_usage_tenant_date"],
        ),
        (
            USAGE.to_owned(),
            "uuid, text, text[], text[]",
            format!("{tenant}, '2026-11-01', '{{crm,tickets}}', '{{2026-10-31,2026-11-23}}'"),
            &["Index Cond: ((tenant_id = '", "(usage_date >= $0)"],
        ),
        (
            COUNT.to_owned(),
            "uuid[], uuid[], text[], text[], bigint[]",
            format!("{uuids}, {}", columns(&format!("{}, {numbers}", texts("2026-11-23")))),
            &["tenant_licenses_pkey"],
        ),
        (
            SETTLE.to_owned(),
            "uuid[], text[], text[], text[], bigint[], bigint[], bigint[], uuid[], text[], text[], bigint[], int[], uuid",
            format!(
                "{}, {}, '{{80,100}}', gen_random_uuid()",
                columns(&format!("{}, {}, {numbers}, {numbers}, {numbers}", texts("month"), texts("2026-11-01"))),
                columns(&format!("{}, {numbers}", texts("2026-11-23")))
            ),
            &["usage_windows_pkey", "idx_usage_windows_tenant_end"],
        ),
        (
            MARK_CLICKED.to_owned(),
            "uuid, text, text",
            format!("{tenant}, 'crm', '2026-11-23T10:00:00Z'"),
            &["idx_feature_denial_events_tenant", "feature_denial_events_pkey"],
        ),
        (
            MARK_UPGRADED.to_owned(),
            "uuid, text[], text",
            format!("{tenant}, '{{crm,tickets}}', '2026-11-23T10:00:00Z'"),
            &["idx_feature_denial_events_tenant", "feature_denial_events_pkey"],
        ),
    ];
    let pruned = [
        (AgingTable::FeatureUsage, "idx_feature_usage_date"),
        (AgingTable::FeatureDenialEvents, "idx_feature_denial_events_created"),
        (AgingTable::ShadowDenialEvents, "idx_shadow_denial_events_created"),
        (AgingTable::UsageWindows, "idx_usage_windows_end"),
        (AgingTable::UsageBatches, "idx_usage_batches_at"),
    ];
    let pruned = pruned.iter().map(|(table, index)| {
        let (sql, types, arguments) = prune(*table);
        (sql, types, arguments, std::slice::from_ref(index))
    });
    for (sql, types, arguments, indexes) in statements.into_iter().chain(pruned) {
        let types = if types.is_empty() { String::new() } else { format!("({types})") };
        let arguments = if arguments.is_empty() { arguments } else { format!("({arguments})") };
        let prepare = format!("DEALLOCATE ALL; PREPARE planned {types} AS {sql}");
        client.batch_execute(&prepare).await.unwrap_or_else(|error| panic!("{prepare}: {error:?}"));
        let explain = format!("EXPLAIN (COSTS OFF) EXECUTE planned {arguments}");
        let rows = client.simple_query(&explain).await.unwrap_or_else(|error| panic!("{explain}: {error:?}"));
        let lines = rows.iter().filter_map(|row| match row {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan = lines.collect::<Vec<_>>().join("\n");
        assert!(!plan.contains("Seq Scan"), "{sql}\n{plan}");
        for index in indexes {
            assert!(plan.contains(index), "{index}:\n{sql}\n{plan}");
        }
    }
    // Of these alone is the query answered, without a look at the rows.
    let plan = site.text(&format!("EXPLAIN (FORMAT JSON, ANALYZE) {conversion}")).await;
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("JSON");
    let text = plan.to_string();
    assert!(text.contains(r#""Node Type":"Index Only Scan""#) && text.contains(r#""Heap Fetches":0"#), "{plan:#}");
}

/// Whether the store has answered that it won't have just this.
fn is_refused<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> bool {
    assert!(answer.is_err(), "{answer:?}");
    matches!(answer, Err(StoreError::Refused { .. }))
}

/// An owner's constraints and triggers on the public table, and numbers that do not fit.
#[tokio::test]
async fn what_the_server_will_not_have_is_refused() {
    let site = Site::new().await;
    let (good, bad) = (site.tenant().await, site.tenant().await);
    for (rule, undo) in [
        (
            format!(
                "CREATE UNIQUE INDEX own ON feature_usage (tenant_id, usage_date);
                 INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
                 VALUES ('{bad}', 'other', 1, '2026-11-23')"
            ),
            "DROP INDEX own",
        ),
        (
            format!("ALTER TABLE feature_usage ADD CONSTRAINT own CHECK (tenant_id <> '{bad}') NOT VALID"),
            "ALTER TABLE feature_usage DROP CONSTRAINT own",
        ),
        (
            format!(
                "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF NEW.tenant_id = '{bad}' THEN RAISE EXCEPTION 'the books are closed'; END IF;
                   RETURN NEW; END $$;
                 CREATE TRIGGER own BEFORE INSERT ON feature_usage FOR EACH ROW EXECUTE FUNCTION own()"
            ),
            "DROP TRIGGER own ON feature_usage",
        ),
    ] {
        site.database.execute(&rule).await;
        let before = site.usage(bad).await;
        let mut batch = counts(vec![count(good, 1, 0), count(bad, 1, 0)]);
        assert!(is_refused(site.store.post(&batch).await), "{rule}");
        assert_eq!(site.usage(bad).await, before, "all of it is undone");
        batch.counts.truncate(1);
        site.store.post(&batch).await.expect("posted: the id is free, and the connection well");
        site.database.execute(undo).await;
        site.store.post(&counts(vec![count(bad, 1, 0)])).await.expect("posted");
    }
    assert_eq!(site.usage(good).await, 3);

    site.put_window(good, i64::MAX, 0).await;
    let overflow = LeaseRequest { spent: 1, ..ask(good, 10, 1, 1) };
    assert!(is_refused(site.store.lease(&overflow).await));
    assert_eq!(site.store.lease(&ask(good, 10, 1, 1)).await.expect("answered").granted, 0);
    // What is missing, or not allowed, is not about the content.
    site.database.execute("DROP TABLE usage_windows").await;
    assert!(!is_refused(site.store.lease(&ask(good, 10, 1, 1)).await));
    assert!(!is_refused(site.store.post(&settlements(vec![settlement(good, 10, 1, 0)])).await));
}

/// Licensing is turned off by dropping the public tables: counts go with them, all else is written.
#[tokio::test]
async fn counts_whose_tables_were_dropped_hold_up_nothing() {
    let site = Site::new().await;
    let tenant = site.tenant().await;
    site.store.lease(&ask(tenant, 100, 1, 8)).await.expect("a lease");
    let batch = Batch {
        settlements: vec![settlement(tenant, 100, 1, 7)],
        denials: vec![denial(tenant, "2026-11-23T12:00:00Z", 2)],
        ..counts(vec![count(tenant, 5, 4)])
    };
    site.database.execute("DROP TABLE feature_usage, tenant_licenses CASCADE").await;
    for _ in 0..2 {
        let posted = site.store.post(&batch).await.expect("posted");
        let first = posted.standings[0].is_some();
        assert_eq!(posted.without_license, if first { 5 } else { 0 });
    }
    assert_eq!(site.window(tenant).await, Standing { used: 1, reserved: 0 });
    assert_eq!(site.number("SELECT sum(count) FROM feature_denial_events").await, 2);
}
