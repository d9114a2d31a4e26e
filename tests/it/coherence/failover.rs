//! A Redis that fails over and loses writes: the replica that becomes the master still holds what the old one had taken out.

use std::time::{Duration, Instant};

use super::{Asker, Fleet, Mode, PROMISED, REVALIDATE_AFTER, seen};
use crate::harness::{Postgres, Sentinel};

async fn lost_writes(mode: Mode) {
    let mut sentinel = Sentinel::start().await;
    let database = Postgres::shared().await.database().await;
    // Nothing is asked for again by its age while this test runs: only the failover itself can tell.
    let change = |builder: crate::harness::ProxyBuilder| builder.set("/licenses/revalidate_after", "5m");
    let mut fleet = Fleet::empty(mode, sentinel.master().port(), database, change).await;
    if mode == Mode::Relay {
        let relay = fleet.new_relay().await;
        fleet.relays.push(relay);
    }
    for _ in 0..2 {
        let node = fleet.new_node().await;
        fleet.nodes.push(node);
    }
    fleet.all_live().await;
    for node in if mode == Mode::Relay { &fleet.relays } else { &fleet.nodes } {
        node.in_order().await;
    }
    // One is taken out by the change, one is replaced by the new licence as well, one was never in a memory of the second.
    // Two are not asked for again until all is settled.
    let (asleep, cold) = (fleet.tenant().await, fleet.tenant().await);
    let (taken_out, replaced, elsewhere) = (fleet.tenant().await, fleet.tenant().await, fleet.tenant().await);
    fleet.warm(&[taken_out, replaced], 0).await;
    for tenant in [asleep, cold] {
        assert_eq!(Asker::of(&fleet.nodes[0].proxy).ask(tenant).await.version, Some(0));
    }
    assert_eq!(Asker::of(&fleet.nodes[0].proxy).ask(elsewhere).await.version, Some(0));
    let on_replica = format!("redis://127.0.0.1:{}", sentinel.replica().port());
    let mut replica =
        redis::Client::open(on_replica).expect("a URL").get_multiplexed_async_connection().await.expect("up");
    let keys = [taken_out, replaced, elsewhere, asleep, cold].map(|tenant| format!("license:{tenant}"));
    let deadline = Instant::now() + Duration::from_secs(5);
    while redis::cmd("EXISTS").arg(&keys).query_async::<i64>(&mut replica).await.expect("a number") < 5 {
        assert!(Instant::now() < deadline, "the replica does not have the entries");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    sentinel.pause_replication().await;
    let since = fleet.update(taken_out, 1).await;
    fleet.update(replaced, 1).await;
    for tenant in [elsewhere, asleep, cold] {
        fleet.update(tenant, 1).await;
    }
    for took in fleet.seen_by_all(replaced, 1, since).await {
        assert!(took < PROMISED, "{took:?}");
    }
    sentinel.master().kill();
    let master = sentinel.wait_for_failover().await;
    fleet.redis_port = master;
    for tenant in [taken_out, replaced, elsewhere] {
        assert_eq!(fleet.cached(tenant).await, Some(0), "the old licence lies in the new master");
    }
    // An address that moves, a moment later for the second proxy than for the first.
    for node in fleet.relays.iter().chain(&fleet.nodes) {
        node.redis.point_to(master).await;
        for _ in 0..3 {
            for tenant in [taken_out, replaced, elsewhere] {
                for node in &fleet.nodes {
                    assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1));
                }
            }
        }
    }
    let moved = Instant::now();
    while moved.elapsed() < REVALIDATE_AFTER + PROMISED {
        for tenant in [taken_out, replaced, elsewhere] {
            for node in &fleet.nodes {
                assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1), "after {:?}", moved.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fleet.all_live().await;
    let newcomer = fleet.new_node().await;
    newcomer.live().await;
    if mode == Mode::Listen {
        newcomer.in_order().await;
    }
    for (tenant, proxy) in [(asleep, &newcomer.proxy), (cold, &fleet.nodes[1].proxy)] {
        assert_eq!(fleet.cached(tenant).await, Some(0), "nobody has asked for it");
        assert_eq!(Asker::of(proxy).ask(tenant).await.version, Some(1));
    }
    for tenant in [taken_out, replaced, elsewhere] {
        assert_eq!(Asker::of(&newcomer.proxy).ask(tenant).await.version, Some(1));
        assert_ne!(fleet.cached(tenant).await, Some(0), "somebody has replaced it");
    }
    // And all works as before.
    let since = fleet.update(taken_out, 2).await;
    for took in fleet.seen_by_all(taken_out, 2, since).await {
        assert!(took < PROMISED, "{took:?}");
    }
    assert!(seen(&newcomer.proxy, taken_out, 2, since).await < PROMISED);
}

#[tokio::test]
async fn a_failover_that_lost_writes_revives_nothing_when_proxies_listen() {
    lost_writes(Mode::Listen).await;
}

#[tokio::test]
async fn a_failover_that_lost_writes_revives_nothing_when_a_relay_listens() {
    lost_writes(Mode::Relay).await;
}
