//! What operators type: the rollbacks of the contract, and that nobody is denied by mistake on the way.

use std::time::{Duration, Instant};

use serde_json::Value;
use uuid::Uuid;

use super::PROMISED;
use crate::harness::world::features_of;
use crate::harness::{Proxy, ProxyBuilder, World, world};

fn listening(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/licenses/change_feed", "listen")
}

/// Asks for `crm` until `proxy` answers `wanted`; how long that took from `since`.
async fn seen(proxy: &Proxy, tenant: Uuid, wanted: u16, since: Instant) -> Duration {
    loop {
        let status = world::get(proxy, "/api/v1/crm", tenant).await.status;
        let took = since.elapsed();
        if status == wanted {
            return took;
        }
        assert!(status == 200 || status == 402, "{status}");
        assert!(took < 10 * PROMISED, "{wanted} is not seen:\n{}", proxy.stderr());
    }
}

/// Rows by the thousand.
async fn insert_many(world: &World, count: u32) {
    let sql = format!(
        "INSERT INTO tenant_licenses (tenant_id, plan_tier, features)
         SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'starter', '{{\"tickets\": true}}'
           FROM generate_series(1, {count}) AS i"
    );
    world.database.execute(&sql).await;
}

/// How often `kind` was heard of.
async fn heard(proxy: &Proxy, kind: &str) -> f64 {
    proxy.metrics().await.value("dotmac_license_changes_total", &[("kind", kind)]).unwrap_or_default()
}

/// Nobody who has just paid is refused by a memory: before it denies, Redis is asked, once a second.
#[tokio::test]
async fn a_denial_from_memory_asks_redis_first() {
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let tenant = world.tenant("starter").await;
    let deny = async || assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    deny().await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let asked = || world.redis_wire.count(&format!("license:{tenant}"));
    let (redis, postgres) = (asked(), world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id"));
    for _ in 0..5 {
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    }
    assert_eq!(asked(), redis, "what is allowed is not asked again");
    for _ in 0..5 {
        deny().await;
    }
    assert_eq!(asked(), redis + 1);
    world.redis_wire.freeze();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let since = Instant::now();
    deny().await;
    assert!(since.elapsed() < Duration::from_secs(2), "Redis is not waited for in vain");
    assert_eq!(
        world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id"),
        postgres,
        "and Postgres is not bothered"
    );
}

/// Section 4's rollback: everyone gets everything by one statement over thousands of rows.
#[tokio::test]
async fn a_mass_update_acts_everywhere() {
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    insert_many(&world, 3_000).await;
    let tenants = [world.tenant("starter").await, world.tenant("starter").await, world.tenant("starter").await];
    for proxy in [&world.proxy, &replica] {
        proxy.live().await;
        for tenant in tenants {
            assert_eq!(world::get(proxy, "/api/v1/crm", tenant).await.status, 402);
        }
    }
    let all = r#"{"crm": true, "tickets": true, "projects": true, "fieldops": true, "analytics": true}"#;
    world.database.execute(&format!("UPDATE tenant_licenses SET features = '{all}'")).await;
    let since = Instant::now();
    for proxy in [&world.proxy, &replica] {
        for tenant in tenants {
            assert!(seen(proxy, tenant, 200, since).await < PROMISED);
        }
        assert_eq!(heard(proxy, "everything").await, 1.0);
        assert!(proxy.stderr().contains("many licences changed at once"), "one line says so");
    }
    let added = heard(&world.proxy, "added").await;
    assert_eq!(added, 1.0, "3,000 new tenants were no reason to ask for every licence again");
}

/// Section 5's: a key and the whole cache. Nothing is lost but warmth, and what was changed behind the triggers is seen.
#[tokio::test]
async fn del_and_flushdb_reach_every_memory() {
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    let (one, other) = (world.tenant("starter").await, world.tenant("starter").await);
    for proxy in [&world.proxy, &replica] {
        proxy.live().await;
        for tenant in [one, other] {
            assert_eq!(world::get(proxy, "/api/v1/crm", tenant).await.status, 402);
        }
    }
    let silently = async |sql: String| {
        world.database.execute(&format!("SET session_replication_role = replica; ALTER TABLE tenant_licenses DISABLE TRIGGER ALL; {sql}; ALTER TABLE tenant_licenses ENABLE TRIGGER ALL; RESET session_replication_role")).await;
    };
    silently("UPDATE tenant_licenses SET features = '{\"crm\": true}'".to_owned()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for tenant in [one, other] {
        let status = world::get(&world.proxy, "/api/v1/crm", tenant).await.status;
        assert_eq!(status, 402, "nothing was said: else this test would prove nothing");
    }
    let mut redis = world.redis.connect().await;
    let _: i64 = redis::cmd("DEL").arg(format!("license:{one}")).query_async(&mut redis).await.expect("deleted");
    let since = Instant::now();
    for proxy in [&world.proxy, &replica] {
        assert!(seen(proxy, one, 200, since).await < PROMISED);
        assert!(heard(proxy, "redis_key").await >= 1.0);
        assert_eq!(world::get(proxy, "/api/v1/crm", other).await.status, 402, "the other one was not concerned");
    }
    let _: () = redis::cmd("FLUSHDB").query_async(&mut redis).await.expect("flushed");
    let since = Instant::now();
    for proxy in [&world.proxy, &replica] {
        assert!(seen(proxy, other, 200, since).await < PROMISED);
        assert_eq!(heard(proxy, "redis_flush").await, 1.0);
        assert!(proxy.stderr().contains("Redis was flushed"), "one line says so");
    }
}

/// A restore puts another table in place of the old one, and no trigger says so.
#[tokio::test]
async fn another_table_in_its_place_is_noticed() {
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    let tenant = world.tenant("starter").await;
    for proxy in [&world.proxy, &replica] {
        proxy.live().await;
        assert_eq!(world::get(proxy, "/api/v1/crm", tenant).await.status, 402);
    }
    let swap = "BEGIN;
        ALTER TABLE tenant_licenses RENAME TO before_the_restore;
        CREATE TABLE tenant_licenses (LIKE before_the_restore INCLUDING ALL);
        INSERT INTO tenant_licenses SELECT * FROM before_the_restore;
        UPDATE tenant_licenses SET features = '{\"crm\": true}', revision = revision - 1000000;
        COMMIT";
    world.database.execute(swap).await;
    let since = Instant::now();
    for proxy in [&world.proxy, &replica] {
        let took = seen(proxy, tenant, 200, since).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    for proxy in [&world.proxy, &replica] {
        let says = |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("another table holds"));
        proxy.wait_for_event(says).await;
    }
}

/// Section 4's last: both tables are dropped. Nobody is denied from then on, `migrate` gives the tables back, and nobody is
/// denied before they hold licences again.
#[tokio::test]
async fn dropping_the_tables_turns_licensing_off() {
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    let tenant = world.tenant("starter").await;
    let proxies = [&world.proxy, &replica];
    for proxy in proxies {
        proxy.live().await;
        assert_eq!(world::get(proxy, "/api/v1/crm", tenant).await.status, 402);
        assert_eq!(proxy.metric("dotmac_licensing_off").await, 0.0);
    }
    world.database.execute("DROP TABLE tenant_licenses, feature_usage CASCADE").await;
    let since = Instant::now();
    for proxy in proxies {
        let took = seen(proxy, tenant, 200, since).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(world::get(proxy, "/api/v1/crm", Uuid::new_v4()).await.status, 200);
        assert_eq!(proxy.metric("dotmac_licensing_off").await, 1.0);
        assert!(proxy.stderr().contains("LICENSING IS OFF"), "{}", proxy.stderr());
    }
    println!("off after {:.1} s", since.elapsed().as_secs_f64());

    let restarted = world.second_replica().await;
    let migrated = world.builder.run(&["migrate"]).await;
    assert!(migrated.status.success(), "{}{}", migrated.stdout, migrated.stderr);
    restarted.live().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let restarted_later = world.second_replica().await;
    restarted_later.live().await;
    for proxy in [&world.proxy, &replica, &restarted, &restarted_later] {
        assert_eq!(world::get(proxy, "/api/v1/crm", tenant).await.status, 200, "the table is empty: by mistake");
    }

    world.insert_license(tenant, "starter", features_of("starter")).await;
    let paying = world.tenant("professional").await;
    let since = Instant::now();
    for proxy in [&world.proxy, &replica, &restarted, &restarted_later] {
        let took = seen(proxy, tenant, 402, since).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(world::get(proxy, "/api/v1/crm", paying).await.status, 200);
        assert_eq!(proxy.metric("dotmac_licensing_off").await, 0.0);
        assert!(proxy.stderr().contains("licensing is on again"), "{}", proxy.stderr());
    }
}
