//! Starting while stores are down, and ending under load.

use std::time::{Duration, Instant};

use super::{DEADLINE, RECOVERS_WITHIN, SLACK, Tenants, listening, times};
use crate::harness::{Load, World, client, world};

#[tokio::test]
async fn a_start_while_stores_are_down() {
    let world = World::start_with(listening).await;
    for (redis_is_up, postgres_is_up) in [(false, true), (true, false), (false, false)] {
        let what = format!("Redis up: {redis_is_up}, Postgres up: {postgres_is_up}");
        if !redis_is_up {
            world.redis_wire.cut().await;
        }
        if !postgres_is_up {
            world.postgres_wire.cut().await;
        }
        let begun = Instant::now();
        let proxy = world.builder.clone().wait_for_live_only().start().await;
        let started = begun.elapsed();
        let get = async |path: &str| client::request(proxy.ops_address(), "GET", path, &[]).await.status;
        assert_eq!(get("/livez").await, 200, "{what}");
        let tenant = world.tenant("starter").await;
        assert_eq!(world::get(&proxy, "/api/v1/network", tenant).await.status, 200, "{what}");
        let asked = Instant::now();
        let answer = world::get(&proxy, "/api/v1/crm", tenant).await;
        let took = asked.elapsed();
        assert_eq!(answer.status, if postgres_is_up { 402 } else { 200 }, "{what}: {}", answer.text());
        assert!(took < DEADLINE + SLACK, "{what}: {took:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ready = get("/readyz").await;
        assert_eq!(ready, if redis_is_up || postgres_is_up { 200 } else { 503 }, "{what}");

        world.redis_wire.restore();
        world.postgres_wire.restore();
        let restored = Instant::now();
        while world::get(&proxy, "/api/v1/crm", tenant).await.status != 402 {
            assert!(restored.elapsed() < RECOVERS_WITHIN, "{what}: {}", proxy.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let decided = restored.elapsed();
        proxy.live().await;
        let heard = restored.elapsed();
        while get("/readyz").await != 200 {
            assert!(restored.elapsed() < RECOVERS_WITHIN, "{what}: {}", proxy.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        println!(
            "{what}: alive after {started:.1?}, the first request took {took:.1?}, ready {ready}; when they came: \
             decided after {decided:.1?}, live after {heard:.1?}, ready after {:.1?}",
            restored.elapsed()
        );
        assert!(heard < RECOVERS_WITHIN, "{what}: {heard:?}");
        let metrics = proxy.metrics().await;
        assert_eq!(metrics.value("dotmac_store_breaker_state", &[("store", "postgres")]), Some(0.0), "{what}");
        assert_eq!(metrics.value("dotmac_store_breaker_state", &[("store", "redis")]), Some(0.0), "{what}");
    }
}

#[tokio::test]
async fn an_end_under_load() {
    for frozen in [false, true] {
        let mut world = World::start_with(|builder| listening(builder).set("/shutdown/drain", "3s")).await;
        let tenants = Tenants::settle(&world, 1_000).await;
        world.proxy.live().await;
        let load = Load::on(world.proxy.address()).rate(150).start(tenants.mixed());
        tokio::time::sleep(Duration::from_secs(1)).await;
        if frozen {
            world.redis_wire.freeze();
            world.postgres_wire.freeze();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        world.proxy.signal("TERM");
        let told = Instant::now();
        // As a balancer does that has seen the readiness fail, and not before.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let samples = load.stop().await;
        let status = world.proxy.wait(Duration::from_secs(25)).await;
        let took = told.elapsed();
        let log = world.proxy.access_log();
        println!(
            "stores {}: ended {took:.1?} after SIGTERM; {} requests, p50/p99/max {} ms, {:?}",
            if frozen { "frozen" } else { "up" },
            samples.len(),
            times(&samples),
            samples.by_status(),
        );
        assert_eq!(status.code(), Some(0));
        assert!(samples.errors().is_empty(), "{:?}", samples.errors());
        assert!(samples.by_status().keys().all(|status| [200, 402].contains(status)), "{:?}", samples.by_status());
        assert_eq!(log.len(), samples.len(), "each is in the log");
        assert!(took < Duration::from_secs(25), "{took:?}");
    }
}
