//! Ids that nobody has heard of, by the thousand, and a cold tenant that everybody asks for at once.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::Value;
use uuid::Uuid;

use super::{Tenants, count, listening, times};
use crate::harness::{Ask, Load, Samples, World, world};

/// 100,000 a minute, and a hundred a second of tenants in use.
const RATE: u32 = 1_667 + 100;

const LASTS: Duration = Duration::from_secs(10);

/// A licence for what, and what it said.
struct Flood {
    samples: Samples,
    log: Vec<Value>,
    queries: usize,
    probes: usize,
    seconds: f64,
    most_tracked: i64,
}

async fn tracked(world: &World) -> i64 {
    let mut redis = world.redis.connect().await;
    let info: String = redis::cmd("INFO").arg("stats").query_async(&mut redis).await.expect("statistics");
    let keys = info.lines().find_map(|line| line.strip_prefix("tracking_total_keys:"));
    keys.and_then(|keys| keys.trim().parse().ok()).expect("a number of keys")
}

async fn flood(world: &World, tenants: &Tenants) -> Flood {
    let log_before = world.proxy.access_log().len();
    world.postgres_wire.reset();
    let tenants = tenants.clone();
    let choose = move |number: u64| {
        let turn = usize::try_from(number / 18).expect("few");
        match number % 18 {
            0 if turn % 2 == 0 => Ask::get("/api/v1/crm", tenants.starters[turn / 2 % 10], "starter"),
            0 => Ask::get("/api/v1/crm", tenants.professionals[turn / 2 % 10], "professional"),
            _ => Ask::get("/api/v1/crm", Uuid::new_v4(), "unknown"),
        }
    };
    let begun = Instant::now();
    let load = Load::on(world.proxy.address()).rate(RATE).start(choose);
    let mut most_tracked = 0;
    while begun.elapsed() < LASTS {
        most_tracked = most_tracked.max(tracked(world).await);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let samples = load.stop().await;
    let seconds = begun.elapsed().as_secs_f64();
    let queries = world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id");
    let probes = world.postgres_wire.count("FROM tenant_licenses LIMIT 1");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let log = world.proxy.access_log().split_off(log_before);
        if log.len() >= samples.len() {
            return Flood { samples, log, queries, probes, seconds, most_tracked };
        }
        assert!(Instant::now() < deadline, "{} lines of {}", log.len(), samples.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Flood {
    fn print(&self, what: &str) {
        let Flood { samples, queries, probes, seconds, most_tracked, .. } = self;
        let unknown = samples.of("unknown");
        println!(
            "{what}: {} unknown ids in {seconds:.1} s, {queries} queries and {probes} probes ({:.1}/s); {:?}; \
             p50/p99/max ms unknown {}, known {}; at most {most_tracked} keys tracked",
            unknown.len(),
            (queries + probes) as f64 / seconds,
            unknown.by_status(),
            times(&unknown),
            times(&samples.only(|sample| sample.label != "unknown")),
        );
    }

    fn known_are_decided(&self) {
        assert!(self.samples.errors().is_empty(), "{:?}", self.samples.errors());
        assert!(self.samples.of("starter").by_status().keys().eq(&[402]));
        assert!(self.samples.of("professional").by_status().keys().eq(&[200]));
        let is_known = |line: &Value| line["reason"] != "no_license" && !line["layer"].is_null();
        let known = count(&self.log, is_known);
        let of_layer = |layer: &str| count(&self.log, |line| is_known(line) && line["layer"] == layer);
        // Once a second, Redis is asked before somebody is denied from memory.
        let (memory, redis) = (of_layer("memory"), of_layer("redis"));
        let hits = memory + redis;
        println!("  {known} requests of known tenants: {memory} answered from memory, {redis} by Redis");
        assert!(known > 500 && hits * 100 >= known * 99, "{hits} of {known}");
    }
}

#[tokio::test]
async fn unknown_ids_by_the_thousand() {
    let world = World::start_with(listening).await;
    let tenants = Tenants::settle(&world, 1).await;
    world.proxy.live().await;
    for tenant in tenants.starters.iter().chain(&tenants.professionals) {
        world.get("/api/v1/crm", *tenant).await;
    }
    let before = world.proxy.rss_bytes();
    let flood = flood(&world, &tenants).await;
    let peak = world.proxy.peak_rss_bytes();
    flood.print("flood");
    println!("  {} MiB before, {} MiB at the most", before >> 20, peak >> 20);
    flood.known_are_decided();
    let unknown = flood.samples.of("unknown").by_status();
    // Whom a busy machine keeps waiting for longer than a look-up may take is told to come again, and let in by nobody.
    let told = |status| unknown.get(&status).copied().unwrap_or(0);
    assert!(unknown.keys().all(|status| [402, 503].contains(status)), "{unknown:?}");
    assert!(told(503) * 20 <= told(402), "{unknown:?}\n{}", world.proxy.stderr());
    assert!((flood.queries + flood.probes) as f64 <= 50.0 * flood.seconds);
    assert!(flood.most_tracked <= 2_000, "{} keys", flood.most_tracked);
    assert!(peak < before + (100 << 20), "{} MiB", peak >> 20);
    let tracked = tracked(&world).await;
    assert!(tracked <= 50, "{tracked} keys are tracked afterwards");
    let mut redis = world.redis.connect().await;
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut redis).await.expect("a count");
    assert!(keys <= 50, "{keys} keys lie in Redis");
}

/// A store that is slow under a flood: who is not known waits or is told to come again, and is let in by nobody.
#[tokio::test]
async fn unknown_ids_while_postgres_is_slow() {
    let world = World::start_with(listening).await;
    let tenants = Tenants::settle(&world, 1).await;
    world.proxy.live().await;
    for tenant in tenants.starters.iter().chain(&tenants.professionals) {
        world.get("/api/v1/crm", *tenant).await;
    }
    // Either way.
    world.postgres_wire.slow(Duration::from_millis(60));
    let flood = flood(&world, &tenants).await;
    flood.print("flood, Postgres 120 ms away");
    flood.known_are_decided();
    let opened = *flood.samples.of("unknown").by_status().get(&200).unwrap_or(&0);
    let confirmed = world.proxy.stderr().contains("a store is down");
    println!("  {opened} let in, an outage was {}confirmed", if confirmed { "" } else { "not " });
    assert!(opened == 0 || confirmed);
    assert!((flood.queries + flood.probes) as f64 <= 50.0 * flood.seconds);
}

#[tokio::test]
async fn a_thousand_requests_of_one_cold_tenant() {
    let world = World::start_with(|builder| listening(builder).set("/licenses/lookup_deadline", "5s")).await;
    let replica = world.second_replica().await;
    for proxy in [&world.proxy, &replica] {
        proxy.live().await;
        world::get(proxy, "/api/v1/crm", world.tenant("starter").await).await;
    }
    for round in 0..3 {
        let tenant = world.tenant("starter").await;
        world.postgres_wire.reset();
        world.postgres_wire.slow(Duration::from_millis(20));
        let ask = |i: usize| {
            let proxy = if i.is_multiple_of(2) { &world.proxy } else { &replica };
            world::get(proxy, "/api/v1/crm", tenant)
        };
        let answers = join_all((0..1_000).map(ask)).await;
        world.postgres_wire.restore();
        assert!(answers.iter().all(|answer| answer.status == 402), "{:?}", answers[0].status);
        let queries = world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id");
        println!("round {round}: {queries} queries for a thousand requests at two replicas");
        assert!((1..=2).contains(&queries), "{queries} queries");
    }
}
