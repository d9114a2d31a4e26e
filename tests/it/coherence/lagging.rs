//! Licences are read from a streaming replica that lags: no proxy decides by what it still says.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Asker, Fleet, Mode, Node, PROMISED, SLACK, histogram, print, record};
use crate::harness::{Postgres, Redis, Standby, Wire};

struct Lagging {
    fleet: Fleet,
    standby: Standby,
    primary: Postgres,
    _redis: Redis,
}

/// A fleet that reads from a standby, each through a wire of its own.
async fn lagging(mode: Mode) -> Lagging {
    let redis = Redis::start().await;
    let mut primary = Postgres::private(&[]).await;
    let database = primary.database().await;
    let mut fleet = Fleet::empty(mode, redis.port(), database, |builder| builder).await;
    let standby = primary.standby().await;
    // The backup has begun a new segment of the log; a position after nothing but its header is never replayed.
    fleet.tenant().await;
    standby.caught_up_with(&primary).await;
    let copy = standby.copy_of(&fleet.database);
    if mode == Mode::Relay {
        let relay = fleet.new_relay().await;
        fleet.relays.push(relay);
    }
    for _ in 0..2 {
        let (builder, _, feed, redis) = fleet.wired();
        let reads: Wire = standby.wire();
        let builder = builder.env("DOTMAC_LICENSE_LICENSE_DB_URL", copy.url_via(&reads));
        fleet.nodes.push(Node { proxy: builder.start().await, reads, feed, redis });
    }
    fleet.all_live().await;
    Lagging { fleet, standby, primary, _redis: redis }
}

async fn never_by_the_replica_that_lags(mode: Mode) {
    let Lagging { fleet, standby, primary, _redis } = lagging(mode).await;
    let tenants: Vec<Uuid> = vec![fleet.tenant().await, fleet.tenant().await, fleet.tenant().await];
    standby.caught_up_with(&primary).await;
    fleet.warm(&tenants, 0).await;
    let asked_replica = |fleet: &Fleet| {
        fleet.nodes.iter().map(|node| node.reads.count("FROM tenant_licenses WHERE tenant_id")).sum::<usize>()
    };
    assert!(asked_replica(&fleet) > 0, "the replica is where licences are read");

    standby.pause_replay().await;
    let mut times = histogram();
    for version in 1..=20 {
        for (i, tenant) in tenants.iter().enumerate() {
            let since = fleet.update(*tenant, version).await;
            // What takes the entry out of the way of the announcement makes it worse: a reader comes before it.
            match (version + i as u64) % 3 {
                0 => fleet.command(&["FLUSHDB"]).await,
                1 => drop(fleet.command::<i64>(&["DEL", &format!("license:{tenant}")]).await),
                _ => {}
            }
            for took in fleet.seen_by_all(*tenant, version, since).await {
                assert!(took < PROMISED, "version {version}: {took:?}");
                record(&mut times, took);
            }
        }
        // Once it is seen, nothing older is seen any more.
        for tenant in &tenants {
            for node in &fleet.nodes {
                let answer = Asker::of(&node.proxy).ask(*tenant).await;
                assert_eq!(answer.version, Some(version));
            }
        }
    }
    let steady = Instant::now();
    while steady.elapsed() < Duration::from_secs(4) {
        let _: () = fleet.command(&["FLUSHDB"]).await;
        for tenant in &tenants {
            for node in &fleet.nodes {
                assert_eq!(Asker::of(&node.proxy).ask(*tenant).await.version, Some(20), "asked anew");
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut lagged = 0.0;
    for node in &fleet.nodes {
        lagged += node.proxy.metric("dotmac_license_replica_lagging_total").await;
    }
    assert!(lagged > 0.0, "the replica's answers were put aside");
    print(&format!("{mode:?}: the replica lags, {lagged} of its answers put aside"), &times);

    standby.resume_replay().await;
    standby.caught_up_with(&primary).await;
    tokio::time::sleep(PROMISED + SLACK).await;
    for node in &fleet.nodes {
        node.feed.reset();
        node.reads.reset();
    }
    let _: () = fleet.command(&["FLUSHDB"]).await;
    fleet.warm(&tenants, 20).await;
    assert!(asked_replica(&fleet) > 0);
    let asked_primary: usize =
        fleet.nodes.iter().map(|node| node.feed.count("FROM tenant_licenses WHERE tenant_id")).sum();
    assert_eq!(asked_primary, 0, "the replica counts again");
}

#[tokio::test]
async fn a_replica_that_lags_decides_nothing_when_proxies_listen() {
    never_by_the_replica_that_lags(Mode::Listen).await;
}

#[tokio::test]
async fn a_replica_that_lags_decides_nothing_when_a_relay_listens() {
    never_by_the_replica_that_lags(Mode::Relay).await;
}

/// One of the two hangs or is cut off while the other answers: nobody waits for it, from two seconds after that on.
async fn one_of_two_servers_hangs(wire: fn(&Node) -> &Wire) {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 1, &redis).await;
    let node = &fleet.nodes[0];
    fleet.warm(&[fleet.tenant().await], 0).await;
    for how in ["half-open", "frozen", "dark", "cut"] {
        match how {
            "half-open" => wire(node).swallow_replies(),
            "frozen" => wire(node).freeze(),
            "dark" => wire(node).black_hole(),
            _ => wire(node).cut().await,
        }
        let mut asker = Asker::of(&node.proxy);
        let mut times = histogram();
        let (mut late, begun) = (0, Instant::now());
        while begun.elapsed() < Duration::from_secs(7) {
            let cold = fleet.tenant().await;
            let since = Instant::now();
            let answer = asker.ask(cold).await;
            if begun.elapsed() > Duration::from_secs(2) {
                record(&mut times, since.elapsed());
                late += u32::from(answer.version != Some(0) || since.elapsed() > Duration::from_millis(150));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        print(&format!("one of two servers is {how}: a cold tenant's look-up, {late} late or failed"), &times);
        assert_eq!(late, 0, "{how}: held up, or decided by nothing");
        wire(node).restore();
        node.live().await;
    }
}

#[tokio::test]
async fn a_primary_that_hangs_holds_up_nobody() {
    one_of_two_servers_hangs(|node| &node.feed).await;
}

#[tokio::test]
async fn a_replica_that_hangs_holds_up_nobody() {
    one_of_two_servers_hangs(|node| &node.reads).await;
}
