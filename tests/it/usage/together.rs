//! Several replicas under load while everything around them fails: what is written is what was served, and a hard limit is
//! served to its last unit and not beyond.
//!
//! `USAGE_REQUESTS=1000000` makes the first of these the long run, in which Postgres is down for a minute.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Crowd, SOON, Wish, counted, metered, served, soon, tenant, window};
use crate::harness::{Postgres, Proxy, Reply, Wire, World};

/// How many requests the first test makes where nothing else is said.
const REQUESTS: u64 = 30_000;

/// From how many requests on the run is a long one.
const LONG: u64 = 500_000;

fn requests() -> u64 {
    std::env::var("USAGE_REQUESTS").ok().and_then(|requests| requests.parse().ok()).unwrap_or(REQUESTS)
}

/// Waits until a share of the requests is done, in percent.
async fn at(crowd: &Crowd, requests: u64, percent: u64) {
    while crowd.done() < requests * percent / 100 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What is written is what was served; answers how much that is. Of each feature: whether failures count as well.
async fn every_use_is_written(world: &World, tenants: &[Uuid], features: &[(&str, bool)]) -> u64 {
    let served = served(world);
    let mut sum = 0;
    for tenant in tenants {
        for (feature, counts_all) in features {
            let (good, bad) = served.get(&(*tenant, (*feature).to_owned())).copied().unwrap_or_default();
            let expected = if *counts_all { good + bad } else { good };
            assert_eq!(counted(&world.database, *tenant, feature).await, expected, "{feature} of {tenant}");
            sum += expected;
        }
    }
    sum
}

#[tokio::test]
async fn every_request_served_is_written_once_whatever_fails() {
    let requests = requests();
    let down_for = Duration::from_secs(if requests >= LONG { 60 } else { 4 });
    let postgres = Postgres::private(&[]).await;
    let mut world = World::start_on(postgres, |builder| {
        metered(builder).set("/usage/flush_interval", "500ms").set("/shutdown/drain", "500ms").set("/log/access", false)
    })
    .await;
    world.upstream.on("*", Reply::Tally(&[200, 201, 404, 200, 301, 500, 204]));
    let mut replicas = [world.second_replica().await, world.second_replica().await, world.second_replica().await];
    let mut tenants = Vec::new();
    for number in 0..20 {
        // Some without a limit, some far from one.
        let limits =
            if number % 2 == 0 { json!({}) } else { json!({ "tickets": 100_000_000, "analytics": 100_000_000 }) };
        tenants.push(tenant(&world, limits).await);
    }
    let crowd = Crowd::of(replicas.iter().chain([&world.proxy]), 12);
    let wishes = tenants.clone();
    let choose = move |number: u64| {
        let tenant = wishes[usize::try_from(number).expect("small") / 4 % wishes.len()];
        let (method, path) = [
            ("POST", "/api/v1/tickets"),
            ("GET", "/api/v1/crm"),
            ("PUT", "/api/v1/analytics"),
            ("GET", "/api/v1/tickets"),
        ][usize::try_from(number % 4).expect("small")];
        Wish { tenant, method, path }
    };
    let begun = Instant::now();
    let (load, under_load) = (crowd.clone(), crowd.clone());
    let load = tokio::spawn(async move { load.send(requests, choose).await });

    at(&under_load, requests, 10).await;
    let mut redis = world.redis.connect().await;
    ::redis::cmd("FLUSHALL").exec_async(&mut redis).await.expect("flushed");
    at(&under_load, requests, 20).await;
    world.redis.kill();
    at(&under_load, requests, 30).await;
    world.redis.restart().await;
    // A connection is cut while its COMMIT is under way: done, but nobody hears of it.
    at(&under_load, requests, 35).await;
    let commit = world.postgres_wire.hold_reply("INSERT INTO usage_batches (id) VALUES ($1)");
    commit.reached().await;
    world.postgres_wire.reset_connections().await;
    commit.release();
    at(&under_load, requests, 40).await;
    world.postgres.kill();
    tokio::time::sleep(down_for).await;
    let waited = replicas[0].metrics().await.sum("dotmac_usage_pending");
    world.postgres.restart().await;
    at(&under_load, requests, 75).await;
    assert_eq!(replicas[2].terminate().await.code(), Some(0));
    let answers = load.await.expect("the load ends");
    let took = begun.elapsed();
    for replica in replicas[..2].iter_mut().chain([&mut world.proxy]) {
        assert_eq!(replica.terminate().await.code(), Some(0));
    }

    let written =
        every_use_is_written(&world, &tenants, &[("crm", true), ("analytics", false), ("tickets", false)]).await;
    println!(
        "{requests} requests over four replicas in {took:.1?}: {:?}, slowest {:?}; {written} uses written, each once; \
         {waited} lines waited while Postgres was down for {down_for:?}",
        answers.statuses, answers.slowest
    );
    assert!(answers.statuses.keys().all(|status| [0, 200, 201, 204, 301, 404, 500].contains(status)), "{answers:?}");
    assert!(answers.of(0) < requests / 100, "{answers:?}");
    for tenant in &tenants {
        let (used, reserved) = window(&world.database, *tenant, "analytics").await;
        assert_eq!(reserved, 0, "every lease is given back");
        let limited = used > 0;
        assert!(!limited || used == counted(&world.database, *tenant, "analytics").await, "{used}");
    }
}

/// Four replicas, a limit of a thousand, and an answer in five that does not count.
async fn a_limit_under_load(kill: &str) -> (u64, (u64, u64)) {
    const LIMIT: u64 = 1_000;
    let world = World::start_with(|builder| metered(builder).set("/shutdown/drain", "200ms")).await;
    world.upstream.on("*", Reply::Tally(&[200, 200, 500, 200, 200]));
    let mut replicas = [world.second_replica().await, world.second_replica().await, world.second_replica().await];
    let tenant = tenant(&world, json!({ "tickets": LIMIT })).await;
    let crowd = Crowd::of(replicas.iter().chain([&world.proxy]), 16);
    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (crowd, over) = (crowd.clone(), Arc::clone(&over));
        async move {
            while !over.load(Ordering::Relaxed) {
                crowd.send(200, move |_| Wish::ticket(tenant)).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    let used = || served(&world).get(&(tenant, "tickets".to_owned())).map_or(0, |(good, _)| *good);
    soon("a third is used", async || used() > LIMIT / 3).await;
    let mut redis = world.redis.connect().await;
    ::redis::cmd("FLUSHDB").exec_async(&mut redis).await.expect("flushed");
    soon("half is used", async || used() > LIMIT / 2).await;
    if kill == "TERM" {
        assert_eq!(replicas[0].terminate().await.code(), Some(0));
    } else {
        replicas[0].kill();
    }
    // Until nobody gets anything any more, however often they try.
    let mut last = (used(), Instant::now());
    while last.1.elapsed() < Duration::from_secs(5) && !(used() == LIMIT && last.1.elapsed() > Duration::from_secs(2)) {
        assert!(used() <= LIMIT, "{} were served", used());
        if used() != last.0 {
            last = (used(), Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    over.store(true, Ordering::Relaxed);
    load.await.expect("the load ends");
    let again = Crowd::of(replicas[1..].iter().chain([&world.proxy]), 4).send(100, move |_| Wish::ticket(tenant)).await;
    assert_eq!(again.of(402), 100, "{again:?}");
    let served = used();
    assert!(served <= LIMIT, "{served} were served");
    let window = window(&world.database, tenant, "tickets").await;
    if kill == "TERM" {
        soon("all is written", async || counted(&world.database, tenant, "tickets").await == served).await;
    }
    (served, window)
}

#[tokio::test]
async fn a_limit_is_served_to_its_last_unit_and_not_beyond() {
    let (served, window) = a_limit_under_load("TERM").await;
    println!("limit 1000, four replicas, SIGTERM of one: {served} served, window {window:?}");
    assert_eq!(served, 1_000);
    assert_eq!(window, (1_000, 0));
}

#[tokio::test]
async fn a_replica_that_is_killed_makes_nobody_go_beyond_a_limit() {
    let (served, (used, reserved)) = a_limit_under_load("KILL").await;
    println!("limit 1000, four replicas, SIGKILL of one: {served} served, used {used}, reserved {reserved}");
    // What it had not reported stays reserved.
    assert_eq!(used + reserved, 1_000);
    assert!(served <= 1_000 && served >= used, "{served}");
}

/// What a kill costs: what was counted since the last flush, and nothing else.
#[tokio::test]
async fn sigkill_loses_at_most_one_flush_interval() {
    let mut world = World::start_with(|builder| metered(builder).set("/usage/flush_interval", "1s")).await;
    world.upstream.on("*", Reply::Tally(&[200]));
    let tenant = tenant(&world, json!({ "crm": 1_000_000 })).await;
    let crowd = Crowd::of([&world.proxy], 4);
    let wish = Wish { tenant, method: "GET", path: "/api/v1/crm" };
    let load = tokio::spawn({
        let crowd = crowd.clone();
        async move { crowd.send(u64::MAX, move |_| wish).await }
    });
    let tally = world.upstream.shared_tally();
    let tallied = || tally().values().flat_map(std::collections::BTreeMap::values).sum::<u64>();
    // The tally is taken down all the time, to see afterwards how far back the last written count was.
    let mut history = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(3_700) {
        history.push((Instant::now(), tallied()));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let pid = world.proxy.pid();
    crate::harness::process::send_signal(pid, "KILL");
    let killed = Instant::now();
    load.abort();
    world.proxy.wait(SOON).await;
    let (served, written) = (tallied(), counted(&world.database, tenant, "crm").await);
    let (used, reserved) = window(&world.database, tenant, "crm").await;
    let behind = history.iter().rev().find(|(_, tallied)| *tallied <= written).map(|(then, _)| killed - *then);
    println!(
        "SIGKILL with flush_interval 1s: {served} served, {written} written, {} lost: what was served in the last {behind:?}; \
         used {used}, reserved {reserved}",
        served - written
    );
    assert!(written > 0 && written <= served, "{written} of {served}");
    assert!(behind.is_some_and(|behind| behind < Duration::from_millis(1_300)), "{behind:?}");
    assert!(used + reserved >= served, "of a limit nobody gains anything");
}

/// The answer to a COMMIT is lost for one replica, again and again: each batch and each lease is done once.
#[tokio::test]
async fn answers_that_are_lost_count_once() {
    let world = World::start_with(metered).await;
    world.upstream.on("*", Reply::Tally(&[200]));
    let wire = Wire::postgres(world.postgres.port());
    let replica: Proxy =
        world.builder.clone().env("DOTMAC_LICENSE_DATABASE_URL", world.database.url_via(&wire)).start().await;
    let tenant = tenant(&world, json!({ "tickets": 100_000, "crm": 100 })).await;
    let crowd = Crowd::of([&replica], 4);
    let mut answers = Vec::new();
    for _ in 0..5 {
        answers.push(crowd.send(300, move |_| Wish::ticket(tenant)).await);
        // What Postgres says from now on is lost, and all connections with it.
        wire.swallow_replies();
        let (load, done) = (crowd.clone(), crowd.done());
        let load = tokio::spawn(async move { load.send(200, move |_| Wish::ticket(tenant)).await });
        while crowd.done() < done + 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        wire.restore();
        answers.push(load.await.expect("the load ends"));
    }
    let served = served(&world)[&(tenant, "tickets".to_owned())].0;
    let sent: u64 = answers.iter().map(|answers| answers.statuses.values().sum::<u64>()).sum();
    println!("{sent} requests, {served} served, answers {:?}", answers.iter().map(|a| &a.statuses).collect::<Vec<_>>());
    soon("all is written", async || counted(&world.database, tenant, "tickets").await >= served).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counted(&world.database, tenant, "tickets").await, served);
    soon("and no lease is held", async || window(&world.database, tenant, "tickets").await == (served, 0)).await;
}
