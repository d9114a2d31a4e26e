//! Redis plays no part in limits: whatever becomes of it, nobody gets more than the licence allows, and nobody less.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{Crowd, Wish, counted, metered, served, soon, tenant, window};
use crate::harness::{Reply, Sentinel, World};

const LIMIT: u64 = 600;

/// Two replicas and a limit, while `disturb` does to Redis what it does.
async fn undisturbed(mut world: World, disturb: impl AsyncFnOnce(&mut World, &dyn Fn() -> u64)) {
    world.upstream.on("*", Reply::Tally(&[200, 500, 200]));
    let other = world.second_replica().await;
    let tenant = tenant(&world, json!({ "tickets": LIMIT })).await;
    let crowd = Crowd::of([&world.proxy, &other], 6);
    let over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (crowd, over) = (crowd.clone(), Arc::clone(&over));
        async move {
            let mut answers = super::Answers::default();
            while !over.load(Ordering::Relaxed) {
                let some = crowd.send(60, move |_| Wish::ticket(tenant)).await;
                for (status, count) in some.statuses {
                    *answers.statuses.entry(status).or_default() += count;
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            answers
        }
    });
    let tally = world.upstream.shared_tally();
    let used = move || tally().values().map(|statuses| statuses.get(&200).copied().unwrap_or_default()).sum::<u64>();
    soon("some is used", async || used() > LIMIT / 4).await;
    disturb(&mut world, &used).await;
    soon("all of it is used", async || used() == LIMIT).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    over.store(true, Ordering::Relaxed);
    let answers = load.await.expect("the load ends");
    assert_eq!(served(&world)[&(tenant, "tickets".to_owned())].0, LIMIT, "{answers:?}");
    assert!(answers.statuses.keys().all(|status| [200, 402, 500].contains(status)), "{answers:?}");
    soon("all is written", async || {
        counted(&world.database, tenant, "tickets").await == LIMIT
            && window(&world.database, tenant, "tickets").await == (LIMIT, 0)
    })
    .await;
}

#[tokio::test]
async fn flushed_again_and_again() {
    undisturbed(World::start_with(metered).await, async |world, used| {
        let mut redis = world.redis.connect().await;
        while used() < LIMIT {
            ::redis::cmd("FLUSHDB").exec_async(&mut redis).await.expect("flushed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn restarted_and_killed() {
    undisturbed(World::start_with(metered).await, async |world, used| {
        world.redis.restart().await;
        let before = used();
        soon("it goes on", async || used() > before).await;
        world.redis.kill();
    })
    .await;
}

#[tokio::test]
async fn failed_over() {
    let mut sentinel = Sentinel::start().await;
    let world = World::start_with(metered).await;
    world.redis_wire.point_to(sentinel.master().port()).await;
    undisturbed(world, async move |world, used| {
        sentinel.master().kill();
        let master = sentinel.wait_for_failover().await;
        world.redis_wire.point_to(master).await;
        let before = used();
        soon("it goes on", async || used() > before || used() == LIMIT).await;
    })
    .await;
}
