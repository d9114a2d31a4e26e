//! Channels that die in every way there is: "live" ends in time, answers keep their bound, and the gap is made good.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Asker, Fleet, LIVE_WITHIN, Mode, Node, PROMISED, REVALIDATE_AFTER, SLACK, seen};
use crate::harness::{Pooler, Redis, Wire};

/// How a wire fails.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// All connections, and each new one.
    Cut,
    /// Connections stay open, nothing passes.
    Frozen,
    /// What is sent arrives; nothing comes back.
    HalfOpen,
    /// Everything is swallowed.
    Dark,
}

const FAULTS: [Fault; 4] = [Fault::Cut, Fault::Frozen, Fault::HalfOpen, Fault::Dark];

async fn break_wire(wire: &Wire, fault: Fault) {
    match fault {
        Fault::Cut => wire.cut().await,
        Fault::Frozen => wire.freeze(),
        Fault::HalfOpen => wire.swallow_replies(),
        Fault::Dark => wire.black_hole(),
    }
}

/// Breaks a channel of the first proxy and looks at what follows: `break_it` and `restore` act on what that proxy hears by.
async fn gap(fleet: &Fleet, what: &str, break_it: impl AsyncFnOnce(&Fleet), restore: impl AsyncFnOnce(&Fleet)) {
    let node = &fleet.nodes[0];
    node.live().await;
    let (early, late) = (fleet.tenant().await, fleet.tenant().await);
    fleet.warm(&[early, late], 0).await;
    let begun = Instant::now();
    break_it(fleet).await;
    // Nobody is to hear of the first by chance: what Redis tells of it is told by the other proxy.
    fleet.update(early, 1).await;
    let since = Instant::now();
    let (down, early_seen) = tokio::join!(node.down(), seen(&node.proxy, early, 1, since));
    let down_after = down.max(since - begun);
    assert!(early_seen < REVALIDATE_AFTER + PROMISED, "{what}: seen after {early_seen:?}");
    // One in the midst of it, and one just before the end.
    let since = fleet.update(early, 2).await;
    let middle_seen = seen(&node.proxy, early, 2, since).await;
    assert!(middle_seen < REVALIDATE_AFTER + PROMISED, "{what}: in the midst seen after {middle_seen:?}");
    let since = fleet.update(late, 1).await;
    restore(fleet).await;
    let restored = Instant::now();
    let late_seen = seen(&fleet.nodes[0].proxy, late, 1, since).await;
    assert!(late_seen < REVALIDATE_AFTER + PROMISED, "{what}: at the end seen after {late_seen:?}");
    fleet.nodes[0].live().await;
    let live_after = restored.elapsed();
    println!(
        "{what}: down after {down_after:.2?}; a change at its beginning is seen after {early_seen:.2?}, in the midst after \
         {middle_seen:.2?}, at its end after {late_seen:.2?}; live again after {live_after:.2?}"
    );
    // All is as before: a change is heard of at once.
    let since = fleet.update(early, 3).await;
    for took in fleet.seen_by_all(early, 3, since).await {
        assert!(took < PROMISED + SLACK, "{what}: afterwards {took:?}");
    }
}

#[tokio::test]
async fn the_listening_connection_dies() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 2, &redis).await;
    for fault in FAULTS {
        gap(
            &fleet,
            &format!("Postgres feed {fault:?}"),
            async |fleet| break_wire(&fleet.nodes[0].feed, fault).await,
            async |fleet| fleet.nodes[0].feed.restore(),
        )
        .await;
    }
}

/// Nobody is left who could take entries out of Redis, so these must not count for longer than their age allows.
#[tokio::test]
async fn every_listening_connection_dies() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 2, &redis).await;
    for fault in [Fault::Cut, Fault::Frozen] {
        gap(
            &fleet,
            &format!("every Postgres feed {fault:?}"),
            async |fleet| {
                for node in &fleet.nodes {
                    break_wire(&node.feed, fault).await;
                }
            },
            async |fleet| fleet.nodes.iter().for_each(|node| node.feed.restore()),
        )
        .await;
    }
}

/// What changed while nobody listened still lies in Redis afterwards, where nobody has asked for it. Whoever comes then, and
/// knows nothing, must not believe it, although every feed is in order again.
async fn a_gap_of_all_feeds(mode: Mode) {
    let redis = Redis::start().await;
    let fleet = Fleet::start(mode, 2, &redis).await;
    let feeds = if mode == Mode::Relay { &fleet.relays } else { &fleet.nodes };
    for node in feeds {
        node.in_order().await;
    }
    let asleep = fleet.tenant().await;
    fleet.warm(&[asleep], 0).await;
    for node in feeds {
        node.feed.cut().await;
    }
    fleet.update(asleep, 1).await;
    for node in feeds {
        node.feed.restore();
        node.redis.reset();
    }
    for node in feeds {
        node.in_order().await;
    }
    fleet.all_live().await;
    assert_eq!(fleet.cached(asleep).await, Some(0), "nobody has asked for it");
    let newcomer = fleet.new_node().await;
    newcomer.live().await;
    if mode == Mode::Listen {
        newcomer.in_order().await;
    }
    for proxy in [&newcomer.proxy, &fleet.nodes[0].proxy, &fleet.nodes[1].proxy] {
        assert_eq!(Asker::of(proxy).ask(asleep).await.version, Some(1));
    }
}

#[tokio::test]
async fn what_changed_in_a_gap_is_not_believed_later_when_proxies_listen() {
    a_gap_of_all_feeds(Mode::Listen).await;
}

#[tokio::test]
async fn what_changed_in_a_gap_is_not_believed_later_when_a_relay_listens() {
    a_gap_of_all_feeds(Mode::Relay).await;
}

async fn redis_dies(mode: Mode) {
    let redis = Redis::start().await;
    let fleet = Fleet::start(mode, 2, &redis).await;
    for fault in FAULTS {
        gap(
            &fleet,
            &format!("{mode:?}: Redis connection {fault:?}"),
            async |fleet| break_wire(&fleet.nodes[0].redis, fault).await,
            async |fleet| fleet.nodes[0].redis.restore(),
        )
        .await;
    }
}

#[tokio::test]
async fn the_connection_to_redis_dies_when_proxies_listen() {
    redis_dies(Mode::Listen).await;
}

#[tokio::test]
async fn the_connection_to_redis_dies_when_a_relay_listens() {
    redis_dies(Mode::Relay).await;
}

/// A reset is over before anybody can measure it: the change falls into it, and is not missed.
#[tokio::test]
async fn connections_that_are_reset_lose_nothing() {
    let redis = Redis::start().await;
    for mode in [Mode::Listen, Mode::Relay] {
        let fleet = Fleet::start(mode, 2, &redis).await;
        let tenant = fleet.tenant().await;
        fleet.warm(&[tenant], 0).await;
        for version in 1..=6 {
            let all = fleet.nodes.iter().chain(&fleet.relays);
            let wires: Vec<&Wire> = match version % 3 {
                0 => all.map(|node| &node.redis).collect(),
                1 => all.map(|node| &node.feed).collect(),
                _ => all.flat_map(|node| [&node.redis, &node.feed]).collect(),
            };
            futures::future::join_all(wires.iter().map(|wire| wire.reset_connections())).await;
            let since = fleet.update(tenant, version).await;
            let took = fleet.seen_by_all(tenant, version, since).await;
            assert!(took.iter().all(|took| *took < REVALIDATE_AFTER + PROMISED), "version {version}: {took:?}");
            fleet.all_live().await;
        }
    }
}

#[tokio::test]
async fn the_relay_loses_postgres() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Relay, 2, &redis).await;
    for fault in FAULTS {
        gap(
            &fleet,
            &format!("the relay's Postgres connection {fault:?}"),
            async |fleet| break_wire(&fleet.relays[0].feed, fault).await,
            async |fleet| fleet.relays[0].feed.restore(),
        )
        .await;
    }
}

/// The proxies' Redis is well: nothing but the silence tells.
#[tokio::test]
async fn the_relay_loses_redis() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Relay, 2, &redis).await;
    for fault in FAULTS {
        gap(
            &fleet,
            &format!("the relay's Redis connection {fault:?}"),
            async |fleet| break_wire(&fleet.relays[0].redis, fault).await,
            async |fleet| fleet.relays[0].redis.restore(),
        )
        .await;
    }
}

#[tokio::test]
async fn the_relay_dies() {
    let redis = Redis::start().await;
    let mut fleet = Fleet::start(Mode::Relay, 2, &redis).await;
    let pid = fleet.relays[0].proxy.pid();
    gap(
        &fleet,
        "the relay is paused",
        async |_| crate::harness::process::send_signal(pid, "STOP"),
        async |_| crate::harness::process::send_signal(pid, "CONT"),
    )
    .await;
    // Killed, with another one begun later.
    let tenant = fleet.tenant().await;
    fleet.warm(&[tenant], 0).await;
    fleet.relays[0].proxy.kill();
    let since = fleet.update(tenant, 1).await;
    let killed = Instant::now();
    let (down, took) = tokio::join!(fleet.nodes[0].down(), fleet.seen_by_all(tenant, 1, since));
    assert!(took.iter().all(|took| *took < REVALIDATE_AFTER + PROMISED), "{took:?}");
    fleet.update(tenant, 2).await;
    fleet.relays[0] = fleet.new_relay().await;
    fleet.all_live().await;
    let took = fleet.seen_by_all(tenant, 2, Instant::now()).await;
    println!("the relay is killed: down after {down:.2?}, another is live {:.2?} later", killed.elapsed());
    assert!(took.iter().all(|took| *took < REVALIDATE_AFTER), "{took:?}");
    heard_at_once(&fleet, tenant, 3).await;
}

/// The relay's Redis is away for so short a time that nobody notices, and a change falls into it. The proxies hear the same
/// relay beat on as if nothing had happened.
#[tokio::test]
async fn what_a_relay_could_not_publish_is_not_lost() {
    let redis = Redis::start().await;
    let fleet =
        Fleet::start_with(Mode::Relay, 2, &redis, |builder| builder.set("/licenses/revalidate_after", "5m")).await;
    let tenants = [fleet.tenant().await, fleet.tenant().await];
    for version in 1..=4 {
        let fault = FAULTS[usize::try_from(version - 1).expect("small")];
        fleet.warm(&tenants, version - 1).await;
        break_wire(&fleet.relays[0].redis, fault).await;
        let since = Instant::now();
        for tenant in tenants {
            fleet.update(tenant, version).await;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        fleet.relays[0].redis.restore();
        for tenant in tenants {
            let took = fleet.seen_by_all(tenant, version, since).await;
            println!("{fault:?}: {took:.2?}");
            assert!(took.iter().all(|took| *took < Duration::from_secs(5)), "{fault:?}: {took:?}");
        }
        fleet.all_live().await;
    }
}

/// Two relays: one may die at any moment.
#[tokio::test]
async fn of_two_relays_one_may_die() {
    let redis = Redis::start().await;
    let mut fleet = Fleet::start(Mode::Relay, 2, &redis).await;
    let second = fleet.new_relay().await;
    second.in_order().await;
    fleet.relays.push(second);
    let tenant = fleet.tenant().await;
    fleet.warm(&[tenant], 0).await;
    // Each proxy has heard of both.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let watched = fleet.nodes[0].proxy.ops_address();
    let watching = tokio::spawn(async move {
        let mut times_down = 0;
        let end = Instant::now() + Duration::from_secs(8);
        while Instant::now() < end {
            let response = crate::harness::client::request(watched, "GET", "/metrics", &[]).await;
            let down = response
                .text()
                .lines()
                .any(|line| line.starts_with("dotmac_change_feed_live{") && line.ends_with(" 0"));
            times_down += u32::from(down);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        times_down
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    fleet.relays[0].proxy.kill();
    let mut version = 0;
    let end = Instant::now() + Duration::from_secs(7);
    while Instant::now() < end {
        version += 1;
        heard_at_once(&fleet, tenant, version).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(watching.await.expect("watched"), 0, "it was not live at some moment");
    println!("one of two relays killed: {version} changes, each heard at once, and never not live");
}

async fn heard_at_once(fleet: &Fleet, tenant: Uuid, version: u64) {
    let since = fleet.update(tenant, version).await;
    for took in fleet.seen_by_all(tenant, version, since).await {
        assert!(took < PROMISED, "version {version}: {took:?}");
    }
}

/// LISTEN by way of a pooler in transaction mode succeeds, and nothing ever arrives.
#[tokio::test]
async fn behind_a_pooler_in_transaction_mode() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 1, &redis).await;
    let pooler = Pooler::start(&fleet.database, 5).await;
    let (builder, reads, feed, redis_wire) = fleet.wired();
    let builder = builder.env("DOTMAC_LICENSE_DATABASE_URL", pooler.url(&fleet.database));
    let pooled = Node { proxy: builder.start().await, reads, feed, redis: redis_wire };
    let tenant = fleet.tenant().await;
    let mut asker = Asker::of(&pooled.proxy);
    let end = Instant::now() + Duration::from_secs(9);
    let mut version = 0;
    let mut worst = Duration::ZERO;
    while Instant::now() < end {
        assert_eq!(asker.ask(tenant).await.status, 200);
        let (feed, _) = pooled.proxy.is_live().await;
        assert!(!feed, "nothing arrives there, so it is not live");
        version += 1;
        let since = fleet.update(tenant, version).await;
        worst = worst.max(seen(&pooled.proxy, tenant, version, since).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(worst < REVALIDATE_AFTER + PROMISED, "{worst:?}");
    println!("behind a pooler: never live, {version} changes, seen after {worst:.2?} at most");
    let said = Instant::now();
    while !pooled.log_says("a pooler in transaction mode") {
        assert!(said.elapsed() < LIVE_WITHIN, "the log says nothing about poolers");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
