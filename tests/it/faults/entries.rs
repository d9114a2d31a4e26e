//! What lies under one tenant's key, or in its row, can't be read: a fault of that entry, which harms nobody else.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{count, listening};
use crate::harness::{Ask, Load, World};

/// What makes a row unreadable.
const BROKEN: [&str; 18] = [
    "features = 'null'",
    "features = '[]'",
    "features = '\"crm\"'",
    "features = '7'",
    "features = '{\"crm\": \"yes\"}'",
    "features = '{\"crm\": {\"enabled\": true}}'",
    "features = jsonb_build_object(repeat('x', 1048576), true)",
    "features = NULL",
    "usage_limits = NULL",
    "usage_limits = '[]'",
    "features_until = NULL",
    "features_until = '[]'",
    "features_until = '{\"crm\": true}'",
    "features_until = jsonb_build_object(repeat('x', 1048576), 'infinity')",
    "plan_tier = NULL",
    "valid_from = NULL",
    "valid_until = NULL",
    "usage_limits = jsonb_build_object(repeat('x', 1048576), 1)",
];

/// What is odd, but says clearly enough what is meant; the answers of a starter then, for `tickets` and `crm`.
const ODD: [(&str, u16, u16); 6] = [
    ("plan_tier = 'gold'", 200, 402),
    ("plan_tier = ''", 200, 402),
    ("auto_renew = NULL", 200, 402),
    ("auto_renew = false, valid_until = valid_from - interval '1 day'", 402, 402),
    ("valid_until = 'infinity'", 200, 402),
    ("valid_from = 'infinity', valid_until = '-infinity'", 402, 402),
];

/// The table as somebody may have made it by hand.
const WITHOUT_CONSTRAINTS: &str = "ALTER TABLE tenant_licenses
    ALTER plan_tier DROP NOT NULL, ALTER features DROP NOT NULL, ALTER features_until DROP NOT NULL,
    ALTER usage_limits DROP NOT NULL,
    ALTER valid_from DROP NOT NULL, ALTER valid_until DROP NOT NULL, ALTER auto_renew DROP NOT NULL";

async fn update(world: &World, tenant: Uuid, set: &str) {
    world.database.execute(&format!("UPDATE tenant_licenses SET {set} WHERE tenant_id = '{tenant}'")).await;
}

/// Until `target` is answered so, and not for want of a licence; how long that took.
async fn decided(world: &World, target: &str, tenant: Uuid, status: u16) -> Duration {
    let since = Instant::now();
    loop {
        let answer = world.get(target, tenant).await;
        let as_licensed = answer.status != 200 || world.upstream.last().header("X-License-Fallback").is_none();
        if answer.status == status && as_licensed {
            return since.elapsed();
        }
        let late = since.elapsed() > Duration::from_secs(10);
        assert!(!late, "{target} as {tenant}: {} {}\n{}", answer.status, answer.text(), world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn rows_that_can_not_be_read() {
    let world = World::start_with(listening).await;
    world.database.execute(WITHOUT_CONSTRAINTS).await;
    world.proxy.live().await;
    let (mut hot, mut cold) = (Vec::new(), Vec::new());
    for _ in BROKEN {
        hot.push(world.tenant("starter").await);
        cold.push(world.tenant("starter").await);
    }
    for tenant in &hot {
        assert_eq!(world.get("/api/v1/crm", *tenant).await.status, 402);
    }
    let errors = async || world.proxy.metrics().await.value("dotmac_store_errors_total", &[("store", "postgres")]);
    assert_eq!(errors().await, Some(0.0));
    for ((set, hot), cold) in BROKEN.iter().zip(&hot).zip(&cold) {
        update(&world, *hot, set).await;
        update(&world, *cold, set).await;
    }
    // Until the change is seen, the licence from before it stands.
    for (set, tenant) in BROKEN.iter().zip(&hot) {
        let since = Instant::now();
        loop {
            assert_eq!(world.get("/api/v1/tickets", *tenant).await.status, 200, "{set}");
            if world.upstream.last().header("X-License-Fallback") == Some("stale") {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "{set}: {}", world.proxy.stderr());
        }
        assert_eq!(world.get("/api/v1/crm", *tenant).await.status, 402, "{set}: the last known licence");
    }
    for (set, tenant) in BROKEN.iter().zip(&cold) {
        assert_eq!(world.get("/api/v1/crm", *tenant).await.status, 200, "{set}: on_failure: allow");
        assert_eq!(world.upstream.last().header("X-License-Fallback"), Some("open"), "{set}");
    }

    // However many requests come, the row is asked for once a second.
    world.postgres_wire.reset();
    let log_before = world.proxy.access_log().len();
    let tenants: Vec<Uuid> = hot.iter().chain(&cold).copied().collect();
    let all = tenants.len();
    let choose = move |number: u64| {
        Ask::get("/api/v1/tickets", tenants[usize::try_from(number).expect("few") % tenants.len()], "broken")
    };
    let begun = Instant::now();
    let load = Load::on(world.proxy.address()).rate(200).start(choose);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let samples = load.stop().await;
    let seconds = begun.elapsed().as_secs_f64();
    let queries = world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id");
    let errors_counted = errors().await.expect("a counter");
    println!("{} requests of {all} broken rows in {seconds:.1} s: {queries} queries", samples.len());
    let late = samples.only(|sample| sample.answer == Ok(503)).0;
    assert!(samples.by_status().keys().eq(&[200]), "{:?} {late:?}", samples.by_status());
    assert!(queries as f64 <= all as f64 * (seconds + 1.0), "{queries} queries");
    assert!(errors_counted >= all as f64, "{errors_counted}");
    world.proxy.wait_for_log(|line| line["fallback"] == "open").await;
    let log = world.proxy.access_log().split_off(log_before);
    assert_eq!(count(&log, |line| line["fallback"].is_null()), 0);
    let said = world.proxy.stderr();
    for (set, tenant) in BROKEN.iter().chain(&BROKEN).zip(hot.iter().chain(&cold)) {
        let lines = said.lines().filter(|line| line.contains(&tenant.to_string())).count();
        assert_eq!(lines, 1, "{set}: {said}");
    }

    // A repaired row acts at once.
    let repaired = "plan_tier = 'professional', features = '{\"crm\": true}', usage_limits = '{}',
                    valid_from = timezone('utc', now()) - interval '1 day', valid_until = 'infinity'";
    let mut worst = Duration::ZERO;
    for tenant in hot.iter().chain(&cold) {
        update(&world, *tenant, repaired).await;
        worst = worst.max(decided(&world, "/api/v1/crm", *tenant, 200).await);
        worst = worst.max(decided(&world, "/api/v1/tickets", *tenant, 402).await);
    }
    println!("a repaired row acts within {worst:.1?}");
    assert!(worst < Duration::from_secs(2), "{worst:?}");
}

#[tokio::test]
async fn odd_rows_are_decided() {
    let world = World::start_with(listening).await;
    world.database.execute(WITHOUT_CONSTRAINTS).await;
    for (set, tickets, crm) in ODD {
        let tenant = world.tenant("starter").await;
        update(&world, tenant, set).await;
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, tickets, "{set}");
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, crm, "{set}");
        assert!(!world.proxy.stderr().contains(&tenant.to_string()), "{set}: nothing to complain of");
    }
    assert_eq!(world.proxy.metrics().await.sum("dotmac_store_errors_total"), 0.0);
}

/// A broken row is no reason to deny, unless that is what is configured.
#[tokio::test]
async fn a_broken_row_where_failures_deny() {
    let world = World::start_with(|builder| builder.set("/licenses/on_failure", "deny")).await;
    let tenant = world.tenant("starter").await;
    update(&world, tenant, "features = '[]'").await;
    let answer = world.get("/api/v1/tickets", tenant).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!("store_unavailable")));
}

/// Whatever somebody puts under a tenant's key, in use or not: the source decides, and its answer takes the place.
#[tokio::test]
async fn foreign_things_under_a_licence_key() {
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let mut redis = world.redis.connect().await;
    let megabyte = "x".repeat(1 << 20);
    let in_use = world.tenant("starter").await;
    let good = format!(r#""tenant_id":"{in_use}","plan":"enterprise","usage_limits":{{}},"features":{{"crm":true}}"#);
    let things: Vec<Vec<&str>> = vec![
        vec!["RPUSH", "1", "2"],
        vec!["HSET", "plan", "enterprise"],
        vec!["SADD", "crm"],
        vec!["ZADD", "1", "crm"],
        vec!["SET", "garbage"],
        vec!["SET", "{}"],
        vec!["SET", "{\"ttl_ms\":300000,\"epoch\":\"x\"}"],
        vec!["SET", "{\"plan\":\"enterprise\",\"features\":[\"crm\"]}"],
        vec!["SET", "{\"plan\":\"enterprise\",\"features\":{\"crm\":\"yes\"}}"],
        vec!["SET", "fill:"],
        vec!["SET", &good],
        vec!["SET", &megabyte],
    ];
    for thing in &things {
        assert_eq!(world.get("/api/v1/crm", in_use).await.status, 402);
        let cold = world.tenant("starter").await;
        for tenant in [in_use, cold] {
            let key = format!("license:{tenant}");
            let mut put = redis::cmd(thing[0]);
            put.arg(&key).arg(&thing[1..]);
            // At once: the proxy hears of it and puts the licence back.
            let mut both = redis::pipe();
            both.atomic().cmd("DEL").arg(&key).ignore().add_command(put).ignore();
            let _: () = both.query_async(&mut redis).await.expect("put there");
        }
        let name = thing.join(" ");
        let name = &name[..name.len().min(60)];
        for tenant in [in_use, cold] {
            for _ in 0..3 {
                assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402, "{name}");
                assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200, "{name}");
                assert_eq!(world.upstream.last().header("X-License-Fallback"), None, "{name}");
            }
        }
    }
    let errors = world.proxy.metrics().await.value("dotmac_store_errors_total", &[("store", "redis")]);
    let said = world.proxy.stderr();
    let lines = said.lines().filter(|line| line.contains(&in_use.to_string())).count();
    println!(
        "{} foreign things under two keys each: {errors:?} errors, {lines} lines about the one in use",
        things.len()
    );
    // Other types than strings are taken out of the way before anybody has to read them.
    assert!(errors >= Some(7.0), "{errors:?}");
    assert_eq!(lines, 1, "{said}");
}
