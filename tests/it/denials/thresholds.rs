//! Shares of a limit that are used up: each is said once, to the log, a metric, and every socket of the tenant.

use std::time::{Duration, Instant};

use futures::future;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{LIMIT, World, ask, prompt};
use crate::harness::{License, Proxy, ProxyBuilder, Upstream};
use crate::websocket::Socket;

/// Within which a socket hears of it: a flush and a message.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

/// How long nothing more is waited for.
const QUIET: Duration = Duration::from_millis(1_200);

fn metered(builder: ProxyBuilder) -> ProxyBuilder {
    prompt(builder).set("/routes/rules/4/meter", json!({ "methods": ["POST"], "window": "month" }))
}

fn listening(builder: ProxyBuilder) -> ProxyBuilder {
    metered(builder).set("/licenses/change_feed", "listen")
}

/// A tenant that may use so many tickets.
async fn limited(world: &World, tickets: u64) -> Uuid {
    let tenant = Uuid::new_v4();
    let usage_limits = json!({ "tickets": tickets });
    world.insert(License { usage_limits, ..License::valid(tenant, "starter") }).await;
    tenant
}

/// A socket that has been told the licence.
async fn open(proxy: &Proxy, tenant: Uuid) -> Socket {
    let mut socket = Socket::open(proxy, tenant).await;
    assert_eq!(socket.message().await["type"], "license");
    socket
}

async fn use_tickets(proxy: &Proxy, tenant: Uuid, times: usize) {
    ask(proxy, "POST", "/api/v1/tickets", tenant, times, 200).await;
}

/// The first of the next month, as Postgres has it.
async fn next_month(world: &World) -> Value {
    let sql = "SELECT to_char(date_trunc('month', timezone('utc', now())) + interval '1 month', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    json!(world.database.value(sql).await)
}

fn message(percent: u64, used: u64, limit: u64, resets_at: &Value) -> Value {
    json!({
        "type": "usage_threshold", "feature": "tickets", "percent": percent, "used": used, "limit": limit, "resetsAt": resets_at,
    })
}

/// All of them are told this, and the time that took since the last request.
async fn all_are_told(sockets: &mut [Socket], expected: &Value) -> Duration {
    let since = Instant::now();
    for told in future::join_all(sockets.iter_mut().map(Socket::message)).await {
        assert_eq!(told, *expected);
    }
    assert!(since.elapsed() < TOLD_WITHIN, "{:?}", since.elapsed());
    since.elapsed()
}

async fn all_are_quiet(sockets: &mut [Socket]) {
    let quiet = future::join_all(sockets.iter_mut().map(|socket| socket.is_quiet(QUIET))).await;
    assert!(quiet.iter().all(|quiet| *quiet), "{quiet:?}");
}

/// How often the metric counted a threshold, over all replicas.
async fn crossings(proxies: &[&Proxy], threshold: &str) -> f64 {
    let labels = [("feature", "tickets"), ("threshold", threshold)];
    let counts = proxies.iter().map(async |proxy| {
        proxy.metrics().await.value("dotmac_quota_threshold_crossings_total", &labels).expect("zero from the start")
    });
    future::join_all(counts).await.iter().sum()
}

#[tokio::test]
async fn each_is_told_once_to_every_socket() {
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    future::join(world.proxy.live(), replica.live()).await;
    let [tenant, other] = [limited(&world, 10).await, limited(&world, 10).await];
    let mut sockets = Vec::new();
    for proxy in [&world.proxy, &replica, &replica] {
        sockets.push(open(proxy, tenant).await);
    }
    let mut bystander = [open(&world.proxy, other).await];
    let resets_at = next_month(&world).await;
    use_tickets(&world.proxy, tenant, 4).await;
    use_tickets(&replica, tenant, 4).await;
    let took = all_are_told(&mut sockets, &message(80, 8, 10, &resets_at)).await;
    println!("a threshold was told to 3 sockets on 2 replicas {took:?} after the request, with a flush every 200 ms");
    use_tickets(&replica, tenant, 2).await;
    all_are_told(&mut sockets, &message(100, 10, 10, &resets_at)).await;
    // What is refused is no use, and no news.
    ask(&world.proxy, "POST", "/api/v1/tickets", tenant, 3, 402).await;
    all_are_quiet(&mut sockets).await;
    all_are_quiet(&mut bystander).await;
    let proxies = [&world.proxy, &replica];
    assert_eq!([crossings(&proxies, "80").await, crossings(&proxies, "100").await], [1.0, 1.0]);
    let said = proxies.iter().flat_map(|proxy| proxy.log()).filter(|line| line["percent"] == 80);
    let said: Vec<_> = said.map(|line| (line["tenant"].clone(), line["used"].clone())).collect();
    assert_eq!(said, [(json!(tenant.to_string()), json!(8))]);

    // More is bought: the licence is told, and the same share of it later.
    let raise = format!("UPDATE tenant_licenses SET usage_limits = '{{\"tickets\": 20}}' WHERE tenant_id = '{tenant}'");
    world.database.execute(&raise).await;
    for told in future::join_all(sockets.iter_mut().map(Socket::message)).await {
        assert_eq!(
            (&told["type"], &told["license"]["usageLimits"]),
            (&json!("license_updated"), &json!({ "tickets": 20 }))
        );
    }
    use_tickets(&world.proxy, tenant, 1).await;
    all_are_quiet(&mut sockets).await;
    use_tickets(&world.proxy, tenant, 6).await;
    all_are_told(&mut sockets, &message(80, 17, 20, &resets_at)).await;
    all_are_quiet(&mut sockets).await;
}

/// By way of Redis, from two relays that both heard it.
#[tokio::test]
async fn relays_tell_it_once() {
    let world = World::start_with(|builder| metered(builder).set("/licenses/change_feed", "redis")).await;
    let relays = future::join(world.builder.start_relay(), world.builder.start_relay()).await;
    let replica = world.second_replica().await;
    future::join(world.proxy.live(), replica.live()).await;
    let deadline = Instant::now() + LIMIT;
    // Both are heard: each has sent beats.
    for relay in [&relays.0, &relays.1] {
        while relay.metrics().await.value("dotmac_change_feed_live", &[("channel", "feed")]) != Some(1.0) {
            assert!(Instant::now() < deadline, "a relay is not in order: {}", relay.stderr());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let tenant = limited(&world, 5).await;
    let mut sockets = [open(&world.proxy, tenant).await, open(&replica, tenant).await];
    let resets_at = next_month(&world).await;
    world.redis_wire.reset();
    use_tickets(&world.proxy, tenant, 4).await;
    all_are_told(&mut sockets, &message(80, 4, 5, &resets_at)).await;
    all_are_quiet(&mut sockets).await;
    assert_eq!(world.redis_wire.count("\"percent\":80"), 2, "both relays have said it");
}

/// Without a change feed there is nobody from whom other replicas could hear it.
#[tokio::test]
async fn without_a_change_feed_the_replica_tells_what_it_finds() {
    let world = World::start_with(metered).await;
    let replica = world.second_replica().await;
    let tenant = limited(&world, 5).await;
    let mut here = [open(&world.proxy, tenant).await];
    let mut there = [open(&replica, tenant).await];
    let resets_at = next_month(&world).await;
    use_tickets(&world.proxy, tenant, 4).await;
    all_are_told(&mut here, &message(80, 4, 5, &resets_at)).await;
    all_are_quiet(&mut there).await;
    all_are_quiet(&mut here).await;
}

#[tokio::test]
async fn licences_in_a_file() {
    let licences = tempfile::tempdir().expect("a directory");
    let (tenant, path) = (Uuid::new_v4(), licences.path().join("licenses.yaml"));
    let text = format!("tenants: [{{ tenant_id: {tenant}, plan: starter, limits: {{ tickets: 5 }} }}]");
    std::fs::write(&path, text).expect("written");
    let upstream = Upstream::start();
    let builder = metered(Proxy::builder(upstream.address()))
        .set("/licenses", json!({ "source": { "file": { "path": path } } }))
        .set("/routes/rules/4/meter/window", "lifetime");
    let proxy = builder.start().await;
    let mut sockets = [open(&proxy, tenant).await];
    use_tickets(&proxy, tenant, 4).await;
    all_are_told(&mut sockets, &message(80, 4, 5, &Value::Null)).await;
    use_tickets(&proxy, tenant, 1).await;
    all_are_told(&mut sockets, &message(100, 5, 5, &Value::Null)).await;
    ask(&proxy, "POST", "/api/v1/tickets", tenant, 1, 402).await;
    all_are_quiet(&mut sockets).await;
}

/// A lifetime has no end, a batch may pass several at once, and what the notification says is JSON for whoever listens.
#[tokio::test]
async fn several_at_once_and_for_other_listeners() {
    let world = World::start_with(|builder| {
        listening(builder).set("/routes/rules/4/meter/window", "lifetime").set("/usage/flush_interval", "1s")
    })
    .await;
    world.proxy.live().await;
    let tenant = limited(&world, 4).await;
    let mut listener = world.database.listen("dotmac_license_thresholds").await;
    let mut sockets = [open(&world.proxy, tenant).await];
    let counted = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
         VALUES ('{tenant}', 'tickets', 3, '2020-02-29')"
    );
    world.database.execute(&counted).await;
    use_tickets(&world.proxy, tenant, 1).await;
    for percent in [80, 100] {
        all_are_told(&mut sockets, &message(percent, 4, 4, &Value::Null)).await;
        let mut heard: Value = serde_json::from_str(&listener.next().await).expect("JSON");
        assert!(heard["batch"].take().as_str().is_some_and(|batch| batch.parse::<Uuid>().is_ok()));
        let expected = json!({
            "batch": null, "tenant": tenant, "feature": "tickets", "percent": percent, "used": 4, "limit": 4, "resetsAt": null,
        });
        assert_eq!(heard, expected);
    }
    all_are_quiet(&mut sockets).await;
    world.database.becomes("SELECT used || ' ' || announced FROM usage_windows", "4 100").await;
    // Nobody takes it for a change of a licence.
    let changes = world.proxy.metrics().await.value("dotmac_license_changes_total", &[("kind", "everything")]);
    assert_eq!(changes, Some(0.0));
}
