//! One relay for twenty proxies: who holds connections, and how soon all of them know.

use std::time::{Duration, Instant};

use futures::future::join_all;
use uuid::Uuid;

use super::{Asker, Fleet, Mode, Node, PROMISED, histogram, print, record};
use crate::harness::Redis;

const PROXIES: usize = 20;
const CHANGES: u64 = 200;

#[tokio::test]
async fn twenty_proxies_and_one_relay() {
    let redis = Redis::start().await;
    let change = |builder: crate::harness::ProxyBuilder| {
        builder.set("/licenses/source/postgres/idle_timeout", "1s").set("/licenses/revalidate_after", "60s")
    };
    let mut fleet = Fleet::start_with(Mode::Relay, 0, &redis, change).await;
    while fleet.nodes.len() < PROXIES {
        let some = join_all((0..4).map(|_| fleet.new_node())).await;
        fleet.nodes.extend(some);
    }
    fleet.all_live().await;
    let mut tenants: Vec<Uuid> = Vec::new();
    for _ in 0..12 {
        tenants.push(fleet.tenant().await);
    }
    fleet.warm(&tenants, 0).await;
    only_the_relay_is_connected(&fleet).await;

    let mut askers: Vec<Asker> = fleet.nodes.iter().map(|node| Asker::of(&node.proxy)).collect();
    let (mut each, mut last) = (histogram(), histogram());
    for change in 0..CHANGES {
        let tenant = tenants[usize::try_from(change).expect("small") % tenants.len()];
        let version = change / tenants.len() as u64 + 1;
        let since = fleet.update(tenant, version).await;
        // In turns, since twenty that ask at once would measure each other.
        let mut waiting: Vec<&mut Asker> = askers.iter_mut().collect();
        let mut slowest = Duration::ZERO;
        while !waiting.is_empty() {
            let mut still = Vec::new();
            for asker in waiting {
                let answer = asker.ask(tenant).await;
                let took = since.elapsed();
                if answer.version == Some(version) {
                    record(&mut each, took);
                    slowest = slowest.max(took);
                } else {
                    assert!(took < PROMISED, "change {change}: {answer:?} after {took:?}");
                    still.push(asker);
                }
            }
            waiting = still;
        }
        record(&mut last, slowest);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    print("20 proxies, 1 relay: from a commit to the first request that each proxy decides by it", &each);
    print("20 proxies, 1 relay: from a commit to the last of the proxies", &last);
    assert!(each.max() < 1_000_000);
    // All of it was read by way of Postgres's pools, which are closed again when idle.
    only_the_relay_is_connected(&fleet).await;
}

/// The proxies decide by what they have in memory, and Postgres knows nobody but the relay.
async fn only_the_relay_is_connected(fleet: &Fleet) {
    let postgres = crate::harness::Postgres::shared().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let ours: i32 = fleet.writer.query_one("SELECT pg_backend_pid()", &[]).await.expect("a row").get(0);
    loop {
        let mut sessions = postgres.connections_to(&fleet.database).await;
        sessions.retain(|session| session.pid != ours);
        let open: Vec<usize> = fleet.nodes.iter().map(open_connections).collect();
        if sessions.len() == 2 && open.iter().all(|open| *open == 0) {
            assert_eq!(open_connections(&fleet.relays[0]), 2, "both are the relay's");
            println!("Postgres's connections: {:?}", sessions.iter().map(|s| (s.pid, &s.query)).collect::<Vec<_>>());
            return;
        }
        assert!(Instant::now() < deadline, "{open:?}: {sessions:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn open_connections(node: &Node) -> usize {
    node.reads.open_connections() + node.feed.open_connections()
}

/// The same without a relay, and fewer proxies.
#[tokio::test]
async fn proxies_that_listen() {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 3, &redis).await;
    let mut tenants: Vec<Uuid> = Vec::new();
    for _ in 0..10 {
        tenants.push(fleet.tenant().await);
    }
    fleet.warm(&tenants, 0).await;
    let mut times = histogram();
    for change in 0..CHANGES {
        let tenant = tenants[usize::try_from(change).expect("small") % tenants.len()];
        let version = change / tenants.len() as u64 + 1;
        let since = fleet.update(tenant, version).await;
        for took in fleet.seen_by_all(tenant, version, since).await {
            assert!(took < PROMISED, "change {change}: {took:?}");
            record(&mut times, took);
        }
    }
    print("3 proxies that listen: from a commit to the first request that each proxy decides by it", &times);
}
