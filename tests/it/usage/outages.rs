//! Counts and limits while Postgres is away.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{Crowd, FLUSH, Wish, ask, counted, is_counted, served, soon, tenant, window};
use crate::harness::{Load, ProxyBuilder, Reply, World};

/// Longer than a request may wait for a lease, in a debug build among other tests.
const PATIENCE: Duration = Duration::from_millis(700);

/// With the usual deadline.
fn metered(builder: ProxyBuilder) -> ProxyBuilder {
    super::metered(builder).set("/licenses/lookup_deadline", "200ms")
}

/// Leases at hand go on being used; then requests pass, marked, since an outage is confirmed. All is written afterwards.
#[tokio::test]
async fn fail_open() {
    let world = World::start_with(metered).await;
    let (far, near, unlimited) = (
        tenant(&world, json!({ "tickets": 100_000 })).await,
        tenant(&world, json!({ "tickets": 10 })).await,
        tenant(&world, json!({})).await,
    );
    for tenant in [far, near, unlimited] {
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
    }
    world.postgres_wire.cut().await;
    let mut fallbacks = Vec::new();
    for tenant in [far, near, unlimited] {
        for _ in 0..30 {
            let begun = Instant::now();
            let answer = ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
            fallbacks.push((tenant, world.upstream.last().header("X-License-Fallback").map(str::to_owned)));
        }
    }
    let marked =
        |tenant: Uuid| fallbacks.iter().filter(|(of, mark)| *of == tenant && mark.as_deref() == Some("open")).count();
    assert_eq!((marked(far), marked(unlimited)), (0, 0), "there is a lease, or no limit");
    assert!(marked(near) >= 20, "{} of 30", marked(near));
    let opened = world.proxy.metrics().await.value("dotmac_decisions_total", &[("outcome", "failed_open")]);
    assert_eq!(opened, Some(marked(near) as f64));
    world.postgres_wire.restore();
    for tenant in [far, near, unlimited] {
        is_counted(&world, tenant, "tickets", 31).await;
    }
    soon("it knows what passed", async || window(&world.database, near, "tickets").await == (31, 0)).await;
    assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", near).await.status, 402);
}

/// `on_failure: deny`: 503 instead; nothing is used, and who has no limit is not concerned.
#[tokio::test]
async fn fail_closed() {
    let deny = |builder: ProxyBuilder| metered(builder).set("/licenses/on_failure", "deny");
    let world = World::start_with(deny).await;
    let (near, unlimited) = (tenant(&world, json!({ "tickets": 10 })).await, tenant(&world, json!({})).await);
    for tenant in [near, unlimited] {
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
    }
    soon("its lease is back", async || window(&world.database, near, "tickets").await == (1, 0)).await;
    world.postgres_wire.cut().await;
    for _ in 0..10 {
        let begun = Instant::now();
        let answer = ask(&world.proxy, "POST", "/api/v1/tickets", near).await;
        assert_eq!(
            (answer.status, answer.json()["reason"].as_str()),
            (503, Some("store_unavailable")),
            "{}",
            answer.text()
        );
        assert!(answer.header("Retry-After").is_some());
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", unlimited).await.status, 200);
    }
    world.postgres_wire.restore();
    is_counted(&world, unlimited, "tickets", 11).await;
    soon("it is asked again", async || ask(&world.proxy, "POST", "/api/v1/tickets", near).await.status == 200).await;
    is_counted(&world, near, "tickets", 2).await;
}

/// A locked row is no outage: who waits for it is told to come again, and nobody passes uncounted.
#[tokio::test]
async fn a_locked_window_opens_nothing() {
    let world = World::start_with(metered).await;
    let (locked, other) =
        (tenant(&world, json!({ "tickets": 10 })).await, tenant(&world, json!({ "tickets": 10 })).await);
    assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", locked).await.status, 200);
    soon("its lease is back", async || window(&world.database, locked, "tickets").await == (1, 0)).await;
    let holder = world.database.connect().await;
    holder
        .batch_execute(&format!("BEGIN; SELECT FROM usage_windows WHERE tenant_id = '{locked}' FOR UPDATE"))
        .await
        .expect("locked");
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", locked).await.status, 503);
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", other).await.status, 200);
    }
    assert_eq!(world.upstream.count(), 6);
    holder.batch_execute("ROLLBACK").await.expect("unlocked");
    soon("it goes on", async || ask(&world.proxy, "POST", "/api/v1/tickets", locked).await.status == 200).await;
    is_counted(&world, locked, "tickets", 2).await;
    is_counted(&world, other, "tickets", 5).await;
}

/// While Postgres is away counts wait in bounded memory: what has its line there goes on counting, what finds no room is
/// dropped, and is said to be.
#[tokio::test]
async fn what_waits_is_bounded() {
    let world = World::start_with(|builder| metered(builder).set("/usage/pending_entries", 1_000)).await;
    world.upstream.on("*", Reply::Tally(&[200]));
    let sql = "INSERT INTO tenant_licenses (tenant_id, plan_tier, features)
               SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'enterprise', '{\"crm\": true}'
                 FROM generate_series(0, 1499) AS n";
    world.database.execute(sql).await;
    let cold = |number: u64| Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(number));
    let wish = move |number: u64| Wish { tenant: cold(number % 1_500), method: "GET", path: "/api/v1/crm" };
    let crowd = Crowd::of([&world.proxy], 8);
    // Until all licences are in memory; nothing of that waits any more.
    assert_eq!(crowd.send(1_500, wish).await.of(200), 1_500);
    soon("all is written", async || world.proxy.metric("dotmac_usage_pending").await == 0.0).await;
    world.postgres_wire.cut().await;
    let answers = crowd.send(4_500, wish).await;
    assert_eq!(answers.of(200), 4_500, "nobody is the worse for it: {answers:?}");
    let metrics = world.proxy.metrics().await;
    let full = metrics.value("dotmac_usage_dropped_total", &[("cause", "full")]).expect("a counter");
    assert_eq!(metrics.sum("dotmac_usage_pending"), 1_000.0);
    assert!(full >= 1_000.0, "{full}");
    world.postgres_wire.restore();
    soon("all that waited is written", async || world.proxy.metric("dotmac_usage_pending").await == 0.0).await;
    let written: f64 = world
        .database
        .value("SELECT sum(usage_count) FROM feature_usage")
        .await
        .and_then(|sum| sum.parse().ok())
        .expect("a sum");
    assert_eq!(written + full, 6_000.0, "what is not written is told");
    assert_eq!(served(&world).values().map(|(good, _)| good).sum::<u64>(), 6_000);
}

/// Somebody drops the public tables to turn licensing off, under load: requests pass, nothing is held up, the log stays
/// readable, the process ends in time, and `migrate` brings everything back.
#[tokio::test]
async fn dropped_tables() {
    let mut world = World::start_with(|builder| metered(builder).set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let (limited, unlimited) = (tenant(&world, json!({ "crm": 1_000_000 })).await, tenant(&world, json!({})).await);
    let load = Load::on(world.proxy.address()).rate(100).start(move |number| {
        crate::harness::Ask::get("/api/v1/crm", if number % 2 == 0 { limited } else { unlimited }, "crm")
    });
    soon("something is counted", async || counted(&world.database, unlimited, "crm").await > 0).await;
    world.database.execute("DROP TABLE feature_usage, tenant_licenses CASCADE").await;
    soon("licensing is off", async || world.proxy.metric("dotmac_licensing_off").await == 1.0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let samples = load.stop().await;
    assert!(samples.by_status().keys().eq(&[200]), "{:?}", samples.by_status());
    soon("nothing waits", async || world.proxy.metric("dotmac_usage_pending").await == 0.0).await;
    let said = world.proxy.log().iter().filter(|line| line.to_string().contains("usage")).count();
    assert!(said < 40, "{said} lines:\n{}", world.proxy.stderr());
    let migrated = world.builder.run(&["migrate"]).await;
    assert!(migrated.status.success(), "{}", migrated.stderr);
    let again = tenant(&world, json!({ "tickets": 2 })).await;
    soon("licensing is on", async || ask(&world.proxy, "POST", "/api/v1/tickets", again).await.status == 402).await;
    soon("it is counted again", async || counted(&world.database, again, "tickets").await == 2).await;

    world.database.execute("DROP TABLE feature_usage, tenant_licenses CASCADE").await;
    ask(&world.proxy, "GET", "/api/v1/crm", unlimited).await;
    let begun = Instant::now();
    assert_eq!(world.proxy.terminate().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// A line that Postgres will not have is found, told and dropped; all others are written.
#[tokio::test]
async fn a_line_that_is_refused() {
    let world = World::start_with(metered).await;
    let bad = tenant(&world, json!({})).await;
    let mut good = Vec::new();
    for _ in 0..20 {
        good.push(tenant(&world, json!({ "crm": 100 })).await);
    }
    world.database.execute(&format!("ALTER TABLE feature_usage ADD CONSTRAINT own CHECK (tenant_id <> '{bad}')")).await;
    for tenant in good.iter().chain([&bad]) {
        assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", *tenant).await.status, 200);
    }
    for tenant in &good {
        is_counted(&world, *tenant, "crm", 1).await;
    }
    let refused = world.proxy.wait_for_event(|line| line.to_string().contains("usage was refused, and is lost")).await;
    assert!(refused.to_string().contains(&bad.to_string()), "{refused}");
    let dropped = world.proxy.metrics().await.value("dotmac_usage_dropped_total", &[("cause", "refused")]);
    assert_eq!(dropped, Some(1.0));
}

/// A database that has not been migrated to this version: limits can't be kept, which is an outage, and counts wait.
#[tokio::test]
async fn tables_that_are_not_there_yet() {
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({ "crm": 100 })).await;
    world.database.execute("ALTER TABLE usage_batches RENAME TO b; ALTER TABLE usage_windows RENAME TO w").await;
    for _ in 0..20 {
        let answer = ask(&world.proxy, "GET", "/api/v1/crm", tenant).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(world.upstream.last().header("X-License-Fallback"), Some("open"));
    }
    world.proxy.wait_for_event(|line| line.to_string().contains("run `dotmac-license-proxy migrate`")).await;
    tokio::time::sleep(2 * FLUSH).await;
    world.database.execute("ALTER TABLE b RENAME TO usage_batches; ALTER TABLE w RENAME TO usage_windows").await;
    is_counted(&world, tenant, "crm", 20).await;
}

/// Told to end while Postgres is away: it ends in time all the same, and says what is lost.
#[tokio::test]
async fn the_end_while_postgres_is_away() {
    let mut world =
        World::start_with(|builder| metered(builder).set("/shutdown/timeout", "4s").set("/shutdown/drain", "100ms"))
            .await;
    let tenant = tenant(&world, json!({ "crm": 100 })).await;
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", tenant).await.status, 200);
    is_counted(&world, tenant, "crm", 1).await;
    world.postgres_wire.cut().await;
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", tenant).await.status, 200);
    let begun = Instant::now();
    assert_eq!(world.proxy.terminate().await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    let lost =
        world.proxy.wait_for_event(|line| line.to_string().contains("usage could not be written before the end")).await;
    assert!(lost.to_string().contains("\"counts\":1"), "{lost}");
    assert_eq!(counted(&world.database, tenant, "crm").await, 1);
}
