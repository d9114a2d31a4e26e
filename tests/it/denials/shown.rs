//! `currentUsage`: what tenants are shown of their use.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use super::{World, ask, prompt, world};
use crate::harness::{License, Proxy, ProxyBuilder, Upstream};
use crate::websocket::Socket;

/// Tickets by the day, projects from the tenant's own day on, fieldops for ever.
fn metered(builder: ProxyBuilder) -> ProxyBuilder {
    prompt(builder)
        .set("/routes/rules/3/meter", json!({}))
        .set("/routes/rules/4/meter", json!({ "window": "day" }))
        .set("/routes/rules/5/meter", json!({ "window": "anchored" }))
        .set("/routes/rules/6/meter", json!({ "window": "lifetime" }))
}

async fn shown(proxy: &Proxy, tenant: Uuid) -> Value {
    let answer = world::get(proxy, "/license", tenant).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["currentUsage"].clone()
}

/// Each feature counts from the beginning of its own window; analytics, which nothing meters, from the first of the month.
#[tokio::test]
async fn by_the_current_period_of_each_feature() {
    let world = World::start_with(metered).await;
    let tenant = Uuid::new_v4();
    world.insert(License { valid_from: "-75 days", ..License::valid(tenant, "enterprise") }).await;
    // One use on each of the last hundred days.
    let usage = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
         SELECT '{tenant}', feature, 1, timezone('utc', now())::date - day
           FROM unnest(ARRAY['crm', 'tickets', 'projects', 'fieldops', 'analytics']) AS feature, generate_series(0, 99) AS day"
    );
    world.database.execute(&usage).await;
    let since = |sql: &str| format!("SELECT timezone('utc', now())::date - ({sql}) + 1");
    let month = since("date_trunc('month', timezone('utc', now()))::date");
    let anchored = since(&format!(
        "SELECT max(day) FROM (SELECT (valid_from::date + make_interval(months => n))::date AS day
                                 FROM tenant_licenses, generate_series(0, 3) AS n WHERE tenant_id = '{tenant}') AS days
          WHERE day <= timezone('utc', now())::date"
    ));
    let count = async |sql: &str| world.database.value(sql).await.expect("a number").parse::<u64>().expect("a number");
    let (month, anchored) = (count(&month).await, count(&anchored).await);
    let expected = json!({ "crm": month, "tickets": 1, "projects": anchored, "fieldops": 100, "analytics": month });
    assert_eq!(shown(&world.proxy, tenant).await, expected);
    let mut socket = Socket::open(&world.proxy, tenant).await;
    assert_eq!(socket.message().await["license"]["currentUsage"], expected);
}

/// What is used is shown within two flushes.
#[tokio::test]
async fn within_seconds_of_the_use() {
    const FLUSH: Duration = Duration::from_secs(1);
    let world = World::start_with(|builder| metered(builder).set("/usage/flush_interval", "1s")).await;
    let tenant = Uuid::new_v4();
    world.insert(License { usage_limits: json!({ "crm": 100 }), ..License::valid(tenant, "enterprise") }).await;
    let mut slowest = Duration::ZERO;
    for round in 1..=5 {
        for feature in ["crm", "fieldops"] {
            ask(&world.proxy, "GET", &format!("/api/v1/{feature}"), tenant, 2, 200).await;
        }
        let since = Instant::now();
        let expected = json!({ "crm": 2 * round, "fieldops": 2 * round });
        while shown(&world.proxy, tenant).await != expected {
            assert!(since.elapsed() < 2 * FLUSH + Duration::from_millis(700), "{}", shown(&world.proxy, tenant).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        slowest = slowest.max(since.elapsed());
    }
    println!("use was shown {slowest:?} after it at the latest, with a flush every {FLUSH:?}");
    let mut socket = Socket::open(&world.proxy, tenant).await;
    assert_eq!(socket.message().await["license"]["currentUsage"], json!({ "crm": 10, "fieldops": 10 }));
}

#[tokio::test]
async fn licences_in_a_file() {
    let licences = tempfile::tempdir().expect("a directory");
    let (tenant, path) = (Uuid::new_v4(), licences.path().join("licenses.yaml"));
    std::fs::write(&path, format!("tenants: [{{ tenant_id: {tenant}, plan: enterprise }}]")).expect("written");
    let upstream = Upstream::start();
    let builder = metered(Proxy::builder(upstream.address()));
    let proxy = builder.set("/licenses", json!({ "source": { "file": { "path": path } } })).start().await;
    assert_eq!(shown(&proxy, tenant).await, json!({}));
    for (feature, times) in [("crm", 1), ("tickets", 2), ("projects", 3), ("fieldops", 4), ("analytics", 5)] {
        ask(&proxy, "GET", &format!("/api/v1/{feature}"), tenant, times, 200).await;
    }
    let expected = json!({ "crm": 1, "tickets": 2, "projects": 3, "fieldops": 4 });
    let deadline = Instant::now() + super::LIMIT;
    while shown(&proxy, tenant).await != expected {
        assert!(Instant::now() < deadline, "{}", shown(&proxy, tenant).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut socket = Socket::open(&proxy, tenant).await;
    assert_eq!(socket.message().await["license"]["currentUsage"], expected);
}
