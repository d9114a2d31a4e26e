//! `feature_denial_events`: what is written, when, and what becomes of it where Postgres is slow or gone.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{LIMIT, World, ask, denied, early_in_the_minute, prompt, world};
use crate::harness::client;
use crate::harness::load::{Ask, Load};
use crate::harness::{License, Proxy};

/// Every row, as text.
const ROWS: &str = "SELECT coalesce(string_agg(tenant_id || ' ' || feature_name || ' ' || reason || ' ' || count, ', '
                           ORDER BY tenant_id, feature_name), '') FROM feature_denial_events";

#[tokio::test]
async fn one_row_a_minute_over_all_replicas() {
    let world = World::start_with(|builder| {
        let closed = json!({ "prefix": "/api/v1/closed", "access": "deny" });
        prompt(builder).set("/routes/rules/-", closed)
    })
    .await;
    let replica = world.second_replica().await;
    let [starter, expired, unknown] = [0x1, 0x2, 0x3].map(|n| Uuid::from_u128(n << 64 | 0x4000_8000_0000_0000_0000));
    world.insert(License::valid(starter, "starter")).await;
    world.insert(License { valid_until: "-1 hour", auto_renew: false, ..License::valid(expired, "enterprise") }).await;
    early_in_the_minute(25).await;
    tokio::join!(
        denied(&world.proxy, "crm", starter, 7),
        denied(&replica, "crm", starter, 5),
        denied(&replica, "fieldops", starter, 3),
        denied(&world.proxy, "crm", expired, 2),
        denied(&world.proxy, "tickets", unknown, 2),
    );
    // Nothing of this is about a licence, or nobody's.
    ask(&world.proxy, "GET", "/api/v1/closed", starter, 1, 403).await;
    ask(&world.proxy, "GET", "/api/v1/%00", starter, 1, 400).await;
    ask(&world.proxy, "GET", "/api/v1/tickets", starter, 3, 200).await;
    let bad = client::request(world.proxy.address(), "GET", "/api/v1/crm", &[("X-Tenant-ID", "acme")]).await;
    let none = client::request(world.proxy.address(), "GET", "/api/v1/crm", &[]).await;
    assert_eq!((bad.status, none.status), (400, 401));
    let expected = [
        format!("{starter} crm feature_not_in_plan 12"),
        format!("{starter} fieldops feature_not_in_plan 3"),
        format!("{expired} crm license_expired 2"),
        format!("{unknown} tickets no_license 2"),
    ];
    world.database.becomes(ROWS, &expected.join(", ")).await;
    let times = "SELECT count(*) FROM feature_denial_events
                  WHERE minute = date_trunc('minute', now()) AND now() - created_at < '1 minute'
                    AND NOT clicked_upgrade AND clicked_at IS NULL AND upgraded_at IS NULL";
    assert_eq!(world.database.value(times).await.as_deref(), Some("4"));
    // Later ones of the same minute come to the same row, and all that was counted is written at the end.
    denied(&world.proxy, "crm", starter, 4).await;
    let mut ending = replica;
    denied(&ending, "crm", starter, 4).await;
    assert_eq!(ending.terminate().await.code(), Some(0));
    world.database.becomes(ROWS, &expected.join(", ").replacen("plan 12", "plan 20", 1)).await;
    assert_eq!(world.proxy.metric("dotmac_denial_events_dropped_total").await, 0.0);
    assert_eq!(world.database.value("SELECT count(*) FROM shadow_denial_events").await.as_deref(), Some("0"));
}

/// Whoever is not enforced is not denied, and what they would have been denied is kept apart.
#[tokio::test]
async fn shadow_denials_are_apart() {
    let excluded = Uuid::new_v4();
    let world = World::start_with(|builder| {
        prompt(builder)
            .set("/enforcement", json!({ "mode": "enforce", "rollout": { "exclude": [excluded.to_string()] } }))
            .set("/routes/rules/5/mode", "shadow")
            .set("/routes/rules/6/mode", "off")
    })
    .await;
    world.insert(License::valid(excluded, "starter")).await;
    let starter = world.tenant("starter").await;
    early_in_the_minute(20).await;
    ask(&world.proxy, "GET", "/api/v1/crm", excluded, 3, 200).await;
    ask(&world.proxy, "GET", "/api/v1/projects", starter, 4, 200).await;
    ask(&world.proxy, "GET", "/api/v1/fieldops", starter, 5, 200).await;
    denied(&world.proxy, "crm", starter, 2).await;
    let shadow = "SELECT string_agg(feature_name || ' ' || reason || ' ' || count, ', ' ORDER BY feature_name)
                    FROM shadow_denial_events";
    world.database.becomes(shadow, "crm feature_not_in_plan 3, projects feature_not_in_plan 4").await;
    world.database.becomes(ROWS, &format!("{starter} crm feature_not_in_plan 2")).await;
    assert_eq!(world.upstream.count(), 12);
}

/// Denials are answered as fast as ever, and all of them are written once Postgres is well again.
#[tokio::test]
async fn nobody_waits_for_them() {
    const SPAN: Duration = Duration::from_secs(2);
    let world = World::start_with(prompt).await;
    let tenant = world.tenant("starter").await;
    denied(&world.proxy, "crm", tenant, 1).await;
    let load = Load::on(world.proxy.address()).rate(200).start(move |_| Ask::get("/api/v1/crm", tenant, "denied"));
    let mut phases = Vec::new();
    for phase in ["well", "slow", "frozen", "gone", "back"] {
        match phase {
            "slow" => world.postgres_wire.slow(Duration::from_millis(700)),
            "frozen" => world.postgres_wire.freeze(),
            "gone" => world.postgres_wire.cut().await,
            _ => world.postgres_wire.restore(),
        }
        let begun = Instant::now();
        tokio::time::sleep(SPAN).await;
        phases.push((phase, begun, Instant::now()));
    }
    let samples = load.stop().await;
    assert_eq!(
        samples.by_status().keys().collect::<Vec<_>>(),
        [&402],
        "{:?} {:?}",
        samples.by_status(),
        samples.errors()
    );
    for (phase, from, to) in phases {
        let during = samples.between(from, to);
        let (p50, p99, max) = (during.percentile(0.5), during.percentile(0.99), during.percentile(1.0));
        println!("Postgres {phase}: {} denials, p50 {p50:?}, p99 {p99:?}, max {max:?}", during.len());
        // Whoever waited for Postgres would wait for longer, and for ever while it is frozen.
        assert!(p99 < Duration::from_millis(500), "Postgres {phase}: {p99:?}");
    }
    let sum = "SELECT sum(count) FROM feature_denial_events";
    world.database.becomes(sum, &(samples.len() + 1).to_string()).await;
    assert_eq!(world.proxy.metric("dotmac_denial_events_dropped_total").await, 0.0);
}

/// Memory is bounded: while Postgres is away, what finds no room is dropped and counted, and what is there goes on counting.
#[tokio::test]
async fn what_finds_no_room_is_counted() {
    const TENANTS: usize = 1_200;
    let world = World::start_with(|builder| {
        prompt(builder).set("/usage/pending_entries", 1_000).set("/licenses/lookup_deadline", "1s")
    })
    .await;
    let rows = format!(
        "INSERT INTO tenant_licenses (tenant_id, features)
         SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, '{{}}' FROM generate_series(1, {TENANTS}) AS i"
    );
    world.database.execute(&rows).await;
    let tenant = |i: usize| Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 + i as u128);
    // They are in memory, and what they are denied here is not written.
    for i in 1..=TENANTS {
        ask(&world.proxy, "GET", "/license", tenant(i), 1, 200).await;
    }
    early_in_the_minute(40).await;
    world.postgres_wire.cut().await;
    for i in 1..=TENANTS {
        denied(&world.proxy, "crm", tenant(i), 2).await;
    }
    let metrics = world.proxy.metrics().await;
    let dropped = 2.0 * (TENANTS - 1_000) as f64;
    assert_eq!(metrics.sum("dotmac_denial_events_dropped_total"), dropped);
    assert_eq!(metrics.sum("dotmac_denial_events_pending"), 1_000.0);
    assert_eq!(metrics.value("dotmac_store_breaker_state", &[("store", "usage")]), Some(2.0), "open");
    world.postgres_wire.restore();
    let counts = "SELECT count(*) || ' ' || sum(count) FROM feature_denial_events";
    world.database.becomes(counts, "1000 2000").await;
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_denial_events_pending"), 0.0);
    assert_eq!(metrics.value("dotmac_store_breaker_state", &[("store", "usage")]), Some(0.0), "closed");
    // There is room again.
    denied(&world.proxy, "crm", tenant(TENANTS), 1).await;
    world.database.becomes(counts, "1001 2001").await;
}

/// Ids can be made up: they have little room, and push out nobody who has a licence.
#[tokio::test]
async fn made_up_tenants_push_out_nobody() {
    const STRANGERS: usize = 1_500;
    let mut world = World::start_with(|builder| {
        builder.set("/usage/flush_interval", "1h").set("/usage/pending_entries", 1_000).set("/shutdown/drain", "0s")
    })
    .await;
    let starter = world.tenant("starter").await;
    flood(&world.proxy, STRANGERS).await;
    denied(&world.proxy, "crm", starter, 3).await;
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_denial_events_dropped_total"), (STRANGERS - 1_000) as f64);
    assert_eq!(metrics.sum("dotmac_denial_events_pending"), 1_001.0);
    world.proxy.signal("TERM");
    assert_eq!(world.proxy.wait(LIMIT).await.code(), Some(0));
    let counts = "SELECT string_agg(reason || ' ' || sum, ', ' ORDER BY reason)
                    FROM (SELECT reason, sum(count) FROM feature_denial_events GROUP BY reason) AS s";
    world.database.becomes(counts, "feature_not_in_plan 3, no_license 1000").await;
}

async fn flood(proxy: &Proxy, strangers: usize) {
    let asks = (0..30).map(|_| async {
        for _ in 0..strangers / 30 {
            let answer = world::get(proxy, "/api/v1/crm", Uuid::new_v4()).await;
            assert_eq!(answer.status, 402, "{}", answer.text());
        }
    });
    futures::future::join_all(asks).await;
}
