//! Who is in use is asked for before it grows old, behind the requests, and not all at once.

use std::time::{Duration, Instant};

use futures::future::join_all;
use uuid::Uuid;

use super::{count, listening};
use crate::harness::{Ask, Load, Proxy, World};

async fn waited(proxy: &Proxy, log_before: usize, asked: usize) -> (usize, usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let log = proxy.access_log().split_off(log_before);
        if log.len() >= asked {
            assert_eq!(count(&log, |line| !line["fallback"].is_null()), 0);
            return (count(&log, |line| line["layer"] != "memory"), log.len());
        }
        assert!(Instant::now() < deadline, "{} lines of {asked}", log.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn in_turn(tenants: &[Uuid]) -> impl FnMut(u64) -> Ask + Send + 'static {
    let tenants = tenants.to_vec();
    move |number| Ask::get("/api/v1/tickets", tenants[usize::try_from(number).expect("few") % tenants.len()], "hot")
}

#[tokio::test]
async fn who_is_in_use_waits_for_no_store_again() {
    for feed in ["listen", "none"] {
        let world = World::start_with(|builder| {
            builder
                .set("/licenses/change_feed", feed)
                .set("/licenses/ttl", "2s")
                .set("/licenses/revalidate_after", "2s")
        })
        .await;
        let mut tenants = Vec::new();
        for _ in 0..5 {
            tenants.push(world.tenant("starter").await);
        }
        if feed == "listen" {
            world.proxy.live().await;
            // Who came before the feed was in order with Redis is asked for again once.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        for tenant in &tenants {
            assert_eq!(world.get("/api/v1/tickets", *tenant).await.status, 200);
        }
        // The log is written in batches.
        while world.proxy.access_log().len() < tenants.len() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let before = world.proxy.access_log().len();
        world.postgres_wire.reset();
        let load = Load::on(world.proxy.address()).rate(50).start(in_turn(&tenants));
        tokio::time::sleep(Duration::from_secs(8)).await;
        let samples = load.stop().await;
        let (waited, all) = waited(&world.proxy, before, samples.len()).await;
        let queries = world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id");
        println!("feed {feed}: {waited} of {all} requests waited for a store, {queries} queries");
        assert_eq!(waited, 0, "{}", world.proxy.stderr());
        assert!(queries >= 5, "{queries}: licences were asked for again");
    }
}

/// Replicas share what one of them has renewed; how many requests wait for that is printed.
#[tokio::test]
async fn two_replicas_renew() {
    let world = World::start_with(|builder| {
        listening(builder).set("/licenses/ttl", "2s").set("/licenses/revalidate_after", "2s")
    })
    .await;
    let replica = world.second_replica().await;
    let mut tenants = Vec::new();
    for _ in 0..5 {
        tenants.push(world.tenant("starter").await);
    }
    let mut loads = Vec::new();
    for proxy in [&world.proxy, &replica] {
        proxy.live().await;
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    world.postgres_wire.reset();
    for proxy in [&world.proxy, &replica] {
        loads.push((proxy, Load::on(proxy.address()).rate(50).start(in_turn(&tenants))));
    }
    tokio::time::sleep(Duration::from_secs(8)).await;
    for (proxy, load) in loads {
        let samples = load.stop().await;
        assert!(samples.by_status().keys().eq(&[200]), "{:?}", samples.by_status());
        let (waited, all) = waited(proxy, 0, samples.len()).await;
        println!(
            "two replicas: {waited} of {all} requests waited for a store, the slowest {:?}",
            samples.percentile(1.0)
        );
        assert!(
            waited * 10 <= all,
            "{waited} of {all}, {} queries",
            world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id")
        );
    }
    let queries = world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id");
    println!("two replicas: {queries} queries");
    assert!(queries <= 2 * 5 * 10, "{queries} queries: the replicas renew in turn");
}

#[tokio::test]
async fn renewals_are_spread() {
    const TENANTS: usize = 200;
    const STEP: Duration = Duration::from_millis(100);
    let world =
        World::start_with(|builder| builder.set("/licenses/ttl", "5s").set("/licenses/revalidate_after", "5s")).await;
    let tenants: Vec<Uuid> = (0..TENANTS).map(|_| Uuid::new_v4()).collect();
    let rows: Vec<String> = tenants.iter().map(|tenant| format!("('{tenant}', '{{\"tickets\": true}}')")).collect();
    world
        .database
        .execute(&format!("INSERT INTO tenant_licenses (tenant_id, features) VALUES {}", rows.join(",")))
        .await;
    let begun = Instant::now();
    for some in tenants.chunks(20) {
        let answers = join_all(some.iter().map(|tenant| world.get("/api/v1/tickets", *tenant))).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    println!("{TENANTS} tenants loaded in {:?}", begun.elapsed());
    world.redis_wire.reset();
    let load = Load::on(world.proxy.address()).rate(400).start(in_turn(&tenants));
    let mut renewed: Vec<usize> = Vec::new();
    while begun.elapsed() < Duration::from_secs(6) {
        tokio::time::sleep(STEP).await;
        // A read and a fill each.
        renewed.push(world.redis_wire.count("license:~epoch"));
    }
    let samples = load.stop().await;
    assert!(samples.by_status().keys().eq(&[200]), "{:?}", samples.by_status());
    let steps: Vec<usize> = renewed.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let (total, most) = (steps.iter().sum::<usize>(), steps.iter().max().copied().unwrap_or_default());
    println!("renewals in each {STEP:?}: {steps:?}");
    assert!(total >= TENANTS, "{total} renewals");
    assert!(most * 3 <= TENANTS, "{most} at once");
    assert!(steps.iter().filter(|step| **step > 0).count() >= 6, "{steps:?}");
}
