//! What is done to a key in Redis reaches every memory, although Postgres tells of nothing.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Fleet, Mode, PROMISED, histogram, print, record};
use crate::harness::Redis;

/// Each way to take an entry out. The row is changed beforehand with the triggers asleep, so only Redis's push can tell.
async fn every_command(mode: Mode) {
    let redis = Redis::start().await;
    // Nothing is asked for again by its age while this test runs.
    let fleet = Fleet::start_with(mode, 2, &redis, |builder| builder.set("/licenses/revalidate_after", "5m")).await;
    let mut times = histogram();
    for round in 0..3 {
        for what in ["DEL", "SET", "SET XX", "PEXPIRE", "FLUSHDB", "FLUSHALL ASYNC", "RENAME", "LPUSH"] {
            let (tenant, other) = (fleet.tenant().await, fleet.tenant().await);
            let key = format!("license:{tenant}");
            fleet.warm(&[tenant, other], 0).await;
            fleet.update_silently(tenant, 1).await;
            fleet.warm(&[tenant], 0).await;
            let mut since = Instant::now();
            match what {
                "DEL" => assert_eq!(fleet.command::<i64>(&["DEL", &key]).await, 1),
                "SET" => fleet.command(&["SET", &key, "somebody else's text"]).await,
                "SET XX" => fleet.command(&["SET", &key, "{}", "XX", "PX", "100000"]).await,
                "PEXPIRE" => {
                    assert_eq!(fleet.command::<i64>(&["PEXPIRE", &key, "300"]).await, 1);
                    since += Duration::from_millis(300);
                }
                "FLUSHDB" => fleet.command(&["FLUSHDB"]).await,
                "FLUSHALL ASYNC" => fleet.command(&["FLUSHALL", "ASYNC"]).await,
                "RENAME" => fleet.command(&["RENAME", &key, "elsewhere"]).await,
                // At once, since a reader that comes between would put a licence there.
                _ => {
                    let script = "redis.call('DEL', KEYS[1]) return redis.call('LPUSH', KEYS[1], 'a', 'list')";
                    assert_eq!(fleet.command::<i64>(&["EVAL", script, "1", &key]).await, 2);
                }
            }
            for took in fleet.seen_by_all(tenant, 1, since).await {
                assert!(took < PROMISED, "{what} in round {round}: {took:?}");
                record(&mut times, took);
            }
        }
    }
    print(&format!("{mode:?}: from a command in Redis to the first request on each of two replicas"), &times);
}

#[tokio::test]
async fn commands_in_redis_reach_every_memory_when_proxies_listen() {
    every_command(Mode::Listen).await;
}

#[tokio::test]
async fn commands_in_redis_reach_every_memory_when_a_relay_listens() {
    every_command(Mode::Relay).await;
}

/// Tracking ends with each push, so it has to be taken up again each time.
#[tokio::test]
async fn one_key_again_and_again() {
    let redis = Redis::start().await;
    let fleet =
        Fleet::start_with(Mode::Listen, 2, &redis, |builder| builder.set("/licenses/revalidate_after", "5m")).await;
    let tenant: Uuid = fleet.tenant().await;
    fleet.warm(&[tenant], 0).await;
    let mut times = histogram();
    for version in 1..=50 {
        fleet.update_silently(tenant, version).await;
        let since = Instant::now();
        match version % 3 {
            0 => fleet.command(&["FLUSHDB"]).await,
            1 => drop(fleet.command::<i64>(&["DEL", &format!("license:{tenant}")]).await),
            _ => fleet.command(&["SET", &format!("license:{tenant}"), "x"]).await,
        }
        for took in fleet.seen_by_all(tenant, version, since).await {
            assert!(took < PROMISED, "version {version}: {took:?}");
            record(&mut times, took);
        }
    }
    print("one key, 50 times", &times);
}
