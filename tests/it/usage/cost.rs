//! What limits cost: round trips to Postgres, and time on a request's way.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Crowd, Wish, ask, metered, soon, tenant, window};
use crate::harness::{Ask, Load, ProxyBuilder, Reply, World};

/// A part of the statement by which leases are taken, and of no other.
const LEASE: &str = "WITH prior AS";

/// Anything about usage or limits. Licences are read by `tenant_licenses` alone.
fn asked(world: &World) -> usize {
    let about_usage = ["usage_windows", "usage_batches", "feature_usage", "BEGIN"];
    let calls = world.postgres_wire.calls();
    calls.iter().filter(|call| about_usage.iter().any(|table| call.contains(table))).count()
}

/// So long between two flushes that none falls into a test.
fn without_flushes(builder: ProxyBuilder) -> ProxyBuilder {
    metered(builder).set("/usage/flush_interval", "1h").set("/usage/lease_idle", "1h").set("/log/access", false)
}

async fn calm(world: &World) {
    // The first flush comes at a random moment of the first interval, and the rest is house-keeping.
    world.upstream.on("*", Reply::Tally(&[200]));
    world.postgres_wire.reset();
}

#[tokio::test]
async fn features_without_a_limit_cost_nothing() {
    let world = World::start_with(without_flushes).await;
    let tenant = tenant(&world, json!({ "crm": 10, "tickets": -1 })).await;
    calm(&world).await;
    let answers = Crowd::of([&world.proxy], 4).send(2_000, move |_| Wish::ticket(tenant)).await;
    assert_eq!(answers.of(200), 2_000, "{answers:?}");
    assert_eq!(asked(&world), 0, "{:#?}", world.postgres_wire.calls());
}

#[tokio::test]
async fn far_from_a_limit_few_requests_ask() {
    const REQUESTS: u64 = 5_000;
    let world = World::start_with(without_flushes).await;
    for limit in [20_000, 1_000_000] {
        let tenant = tenant(&world, json!({ "tickets": limit })).await;
        calm(&world).await;
        let answers = Crowd::of([&world.proxy], 4).send(REQUESTS, move |_| Wish::ticket(tenant)).await;
        assert_eq!(answers.of(200), REQUESTS, "{answers:?}");
        let leases = world.postgres_wire.count(LEASE);
        // The first also finds that there is no window, begins one, and asks again.
        println!("limit {limit}: {REQUESTS} requests, {leases} leases, slowest request {:?}", answers.slowest);
        assert!(leases as u64 * 100 <= REQUESTS, "{leases} leases");
    }
}

/// The next lease is asked for while there is something left of the last: whoever comes meanwhile has that, however long the
/// answer takes.
#[tokio::test]
async fn the_next_lease_comes_before_the_last_is_used_up() {
    let world = World::start_with(without_flushes).await;
    let tenant = tenant(&world, json!({ "tickets": 1_000_000 })).await;
    calm(&world).await;
    let one = Crowd::of([&world.proxy], 1);
    assert_eq!(one.send(1, move |_| Wish::ticket(tenant)).await.of(200), 1);
    for round in 0..3 {
        let held = world.postgres_wire.hold(LEASE);
        let mut sent = 0;
        while !held.is_held() {
            assert_eq!(one.send(8, move |_| Wish::ticket(tenant)).await.of(200), 8);
            sent += 8;
            assert!(sent < 2_000, "round {round}: nobody asks");
        }
        let meanwhile = one.send(100, move |_| Wish::ticket(tenant)).await;
        assert!(held.is_held(), "it is still not answered");
        println!(
            "round {round}: asked for after {sent} requests; 100 more while it was held, slowest {:?}",
            meanwhile.slowest
        );
        assert_eq!(meanwhile.of(200), 100, "{meanwhile:?}");
        held.release();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same in numbers: while Postgres stands still for a while, no request is slower for it.
#[tokio::test]
async fn far_from_a_limit_nobody_waits() {
    let world = World::start_with(metered).await;
    world.upstream.on("*", Reply::Tally(&[200]));
    let tenants: Vec<Uuid> = {
        let mut tenants = Vec::new();
        for _ in 0..4 {
            tenants.push(tenant(&world, json!({ "crm": 1_000_000 })).await);
        }
        tenants
    };
    for tenant in &tenants {
        assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", *tenant).await.status, 200);
    }
    let turns = tenants.clone();
    let load = Load::on(world.proxy.address()).rate(300).start(move |number| {
        Ask::get("/api/v1/crm", turns[usize::try_from(number).expect("small") % turns.len()], "crm")
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut stood_still = Vec::new();
    for _ in 0..6 {
        let begun = Instant::now();
        world.postgres_wire.freeze();
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.postgres_wire.restore();
        stood_still.push((begun, Instant::now()));
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let samples = load.stop().await;
    let during = samples.only(|sample| stood_still.iter().any(|(from, to)| (*from..*to).contains(&sample.start)));
    let (frozen, well) = (during.percentile(0.99), samples.percentile(0.99));
    println!(
        "{} requests while Postgres stood still: p99 {frozen:?}, of all {} p99 {well:?}",
        during.len(),
        samples.len()
    );
    assert!(samples.by_status().keys().eq(&[200]), "{:?} {:?}", samples.by_status(), samples.errors());
    // Whoever waited would have waited until the end of it.
    assert!(during.percentile(0.95) < Duration::from_millis(100), "{:?}", during.percentile(0.95));
}

/// A flood beyond a limit costs a statement a second, however many there are.
#[tokio::test]
async fn a_flood_of_denials() {
    let world = World::start_with(without_flushes).await;
    let tenant = tenant(&world, json!({ "tickets": 3 })).await;
    calm(&world).await;
    let crowd = Crowd::of([&world.proxy], 8);
    let first = crowd.send(50, move |_| Wish::ticket(tenant)).await;
    assert_eq!((first.of(200), first.of(402)), (3, 47), "{first:?}");
    world.postgres_wire.reset();
    let begun = Instant::now();
    let (mut denied, mut slowest) = (0, Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(3) {
        let answers = crowd.send(500, move |_| Wish::ticket(tenant)).await;
        assert_eq!(answers.of(402), 500, "{answers:?}");
        denied += 500;
        slowest = slowest.max(answers.slowest);
    }
    let leases = world.postgres_wire.count(LEASE);
    println!("{denied} denials in {:?}: {leases} leases asked for, slowest {slowest:?}", begun.elapsed());
    let seconds = usize::try_from(begun.elapsed().as_secs()).expect("few") + 1;
    assert!(leases <= seconds, "{leases} in {seconds} s");
}

/// Near the limit requests ask, but many together: what a crowd costs is less than one question each.
#[tokio::test]
async fn near_the_limit_many_share_one_question() {
    let world = World::start_with(without_flushes).await;
    let tenant = tenant(&world, json!({ "tickets": 100 })).await;
    calm(&world).await;
    let answers = Crowd::of([&world.proxy], 20).send(100, move |_| Wish::ticket(tenant)).await;
    assert_eq!(answers.of(200), 100, "{answers:?}");
    let leases = world.postgres_wire.count(LEASE);
    println!("a limit of 100 used up by 20 clients: {leases} leases");
    assert!(leases <= 100, "{leases}");
    soon("it is used up", async || ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status == 402).await;
    assert_eq!(
        window(&world.database, tenant, "tickets").await.0 + window(&world.database, tenant, "tickets").await.1,
        100
    );
}
