//! What operators look at: health, metrics, a real Prometheus, the access log and the program's own log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::world::{FEATURES, get};
use crate::harness::{License, Prometheus, Proxy, RawClient, World, client};

/// What section 9 of the design promises, as far as this version has it: the name, a label and its values.
const PROMISED: [(&str, &str, &[&str]); 33] = [
    ("dotmac_feature_denials_total", "feature", &FEATURES),
    ("dotmac_license_cache_hits", "", &[]),
    ("dotmac_license_cache_requests", "", &[]),
    ("dotmac_api_duration_seconds_count", "", &[]),
    ("dotmac_api_duration_seconds_sum", "", &[]),
    ("dotmac_gate_duration_seconds_count", "", &[]),
    ("dotmac_decisions_total", "outcome", &["open", "allowed", "shadowed", "failed_open", "denied"]),
    ("dotmac_shadow_denials_total", "feature", &FEATURES),
    ("dotmac_license_lookups_total", "layer", &["memory", "redis", "source"]),
    ("dotmac_license_source_queries_total", "", &[]),
    ("dotmac_license_lookups_shed_total", "", &[]),
    ("dotmac_license_replica_lagging_total", "", &[]),
    ("dotmac_store_errors_total", "store", &["postgres", "redis"]),
    ("dotmac_store_breaker_state", "store", &["postgres", "redis", "usage"]),
    ("dotmac_license_stale_served_total", "", &[]),
    ("dotmac_license_grace_served_total", "", &[]),
    ("dotmac_licenses_expiring", "within", &["24h", "7d", "30d"]),
    ("dotmac_licenses_overdue", "", &[]),
    ("dotmac_access_log_dropped_total", "", &[]),
    ("dotmac_upstream_errors_total", "", &[]),
    ("dotmac_license_memory_entries", "", &[]),
    ("dotmac_requests_in_flight", "", &[]),
    ("dotmac_connections", "", &[]),
    ("dotmac_usage_pending", "", &[]),
    ("dotmac_usage_recorded_total", "", &[]),
    ("dotmac_usage_dropped_total", "cause", &["full", "no_license", "refused"]),
    ("dotmac_usage_flushes_total", "outcome", &["posted", "failed", "refused"]),
    ("dotmac_usage_flush_duration_seconds_count", "", &[]),
    ("dotmac_quota_leases_total", "outcome", &["granted", "exhausted", "failed"]),
    ("dotmac_denial_events_dropped_total", "", &[]),
    ("dotmac_denial_events_pending", "", &[]),
    ("dotmac_tunnels", "", &[]),
    (
        "dotmac_limited_total",
        "limit",
        &[
            "connections",
            "requests_in_flight",
            "requests_in_flight_per_tenant",
            "header_timeout",
            "headers",
            "uri_bytes",
            "body_bytes",
            "body_timeout",
            "write_timeout",
            "resets",
        ],
    ),
];

const REASONS: [&str; 11] = [
    "feature_not_in_plan",
    "no_license",
    "license_expired",
    "license_not_yet_valid",
    "usage_limit_exceeded",
    "tenant_missing",
    "tenant_invalid",
    "request_malformed",
    "request_ambiguous",
    "store_unavailable",
    "route_denied",
];

/// The members of a line of the access log, in their order.
const MEMBERS: [&str; 21] = [
    "ts",
    "request_id",
    "trace_id",
    "tenant_id",
    "method",
    "path",
    "status",
    "decision",
    "reason",
    "feature",
    "rule",
    "plan",
    "revision",
    "layer",
    "license_age_ms",
    "fallback",
    "mode",
    "config_hash",
    "upstream_status",
    "gate_us",
    "total_ms",
];

async fn ops(proxy: &Proxy, path: &str) -> (u16, String) {
    let answer = client::request(proxy.ops_address(), "GET", path, &[]).await;
    (answer.status, answer.text())
}

async fn until(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn liveness_asks_no_store_and_readiness_waits_for_one() {
    let world = World::start().await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let proxy = world.builder.clone().wait_for_live_only().start().await;
    until(Duration::from_secs(20), "listening", async || ops(&proxy, "/readyz").await.1 != "not listening yet\n").await;
    assert_eq!(ops(&proxy, "/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(ops(&proxy, "/readyz").await, (503, "no store has answered yet\n".to_owned()));

    world.postgres_wire.restore();
    until(Duration::from_secs(20), "ready", async || ops(&proxy, "/readyz").await == (200, "ok\n".to_owned())).await;

    // It does not flap: a store's outage must not take every replica out of service.
    world.postgres_wire.cut().await;
    let tenant = Uuid::new_v4();
    for _ in 0..20 {
        get(&proxy, "/api/v1/crm", tenant).await;
        assert_eq!(ops(&proxy, "/readyz").await.0, 200);
        assert_eq!(ops(&proxy, "/livez").await.0, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn not_ready_while_it_drains() {
    let world =
        World::start_with(|builder| builder.set("/shutdown", json!({ "drain": "20s", "timeout": "25s" }))).await;
    let mut proxy = world.second_replica().await;
    proxy.signal("TERM");
    let draining = async || ops(&proxy, "/readyz").await == (503, "draining\n".to_owned());
    until(Duration::from_secs(15), "draining", draining).await;
    assert_eq!(ops(&proxy, "/livez").await.0, 200);
    let answer = client::request(proxy.address(), "GET", "/api/v1/network", &[]).await;
    assert_eq!(answer.status, 200, "it still accepts");
    proxy.signal("INT");
    assert_eq!(proxy.wait(Duration::from_secs(30)).await.code(), Some(0));
}

#[tokio::test]
async fn every_metric_is_present_at_zero_from_the_start() {
    let world = World::start().await;
    let answer = client::request(world.proxy.ops_address(), "GET", "/metrics", &[]).await;
    assert_eq!(answer.header("Content-Type"), Some("text/plain; version=0.0.4"));
    let text = answer.text();
    let metrics = world.proxy.metrics().await;
    for (name, label, values) in PROMISED {
        assert_eq!(metrics.sum(name), 0.0, "{name}");
        for value in values {
            assert_eq!(metrics.value(name, &[(label, value)]), Some(0.0), "{name}{{{label}={value:?}}}");
        }
        if label.is_empty() {
            assert!(metrics.named(name)[0].labels.is_empty(), "{name} has labels: one can't be divided by the other");
        }
        let base = name.trim_end_matches("_count").trim_end_matches("_sum");
        for comment in ["HELP", "TYPE"] {
            assert!(text.contains(&format!("# {comment} {base} ")), "no {comment} for {base}");
        }
    }
    for reason in REASONS {
        for feature in FEATURES.iter().chain(&[""]) {
            let labels = [("feature", *feature), ("reason", reason)];
            assert_eq!(metrics.value("dotmac_feature_denials_total", &labels), Some(0.0), "{labels:?}");
        }
    }
    assert_eq!(metrics.value("dotmac_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    assert!(
        metrics.value("dotmac_build_info", &[("mode", "enforce"), ("commit", env!("DOTMAC_LICENSE_COMMIT"))]).is_some()
    );
    assert!(metrics.sum("process_resident_memory_bytes") > 0.0);
    assert!(text.contains("# TYPE dotmac_api_duration_seconds histogram\n"));
    assert_eq!(ops(&world.proxy, "/nothing").await.0, 404);
}

#[tokio::test]
async fn traffic_is_counted_and_no_label_names_a_tenant() {
    let world = World::start().await;
    let (paying, starter, nobody) = (world.tenant("professional").await, world.tenant("starter").await, Uuid::new_v4());
    for _ in 0..3 {
        assert_eq!(world.get("/api/v1/crm", paying).await.status, 200);
        assert_eq!(world.get("/api/v1/crm", starter).await.status, 402);
        assert_eq!(world.get("/api/v1/crm", nobody).await.status, 402);
        assert_eq!(world.get("/api/v1/network", paying).await.status, 200);
    }
    let address = world.proxy.address();
    assert_eq!(client::request(address, "GET", "/api/v1/crm", &[("X-Tenant-ID", "acme-corp")]).await.status, 400);

    // The last one is counted when its last byte has gone, which the client may see a moment before.
    let counted = async || world.proxy.metric("dotmac_api_duration_seconds_count").await >= 13.0;
    until(Duration::from_secs(10), "every request is counted", counted).await;
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_api_duration_seconds_count"), 13.0);
    assert_eq!(metrics.sum("dotmac_license_cache_requests"), 9.0, "feature look-ups");
    assert_eq!(metrics.sum("dotmac_license_cache_hits"), 6.0, "those that asked no Postgres, negative ones included");
    assert_eq!(metrics.sum("dotmac_license_source_queries_total"), 3.0);
    let outcome = |outcome| metrics.value("dotmac_decisions_total", &[("outcome", outcome)]);
    assert_eq!(["open", "allowed", "denied"].map(outcome), [Some(3.0), Some(3.0), Some(7.0)]);
    let denials = |reason| metrics.value("dotmac_feature_denials_total", &[("feature", "crm"), ("reason", reason)]);
    assert_eq!(["feature_not_in_plan", "no_license", "tenant_invalid"].map(denials), [Some(3.0), Some(3.0), Some(1.0)]);
    assert_eq!(metrics.sum("dotmac_license_memory_entries"), 2.0);

    let text = ops(&world.proxy, "/metrics").await.1;
    for tenant in [paying, starter, nobody] {
        for spelling in [tenant.to_string(), tenant.simple().to_string()] {
            assert!(!text.contains(&spelling), "a tenant's id is in a label");
        }
    }
    assert!(!text.contains("acme-corp"));
}

/// The queries that operators type.
#[tokio::test]
async fn a_real_prometheus_answers_the_operators_queries() {
    let world = World::start().await;
    let tenant = world.tenant("professional").await;
    let prometheus = Prometheus::scraping(&[("proxy", &world.proxy)]).await;
    let mut answers = [None, None];
    let queries = [
        "dotmac_license_cache_hits / dotmac_license_cache_requests",
        "histogram_quantile(0.95, dotmac_api_duration_seconds)",
    ];
    let deadline = Instant::now() + Duration::from_secs(90);
    while answers.iter().any(Option::is_none) {
        assert!(Instant::now() < deadline, "no answer yet: {answers:?}");
        // A rate needs requests between two scrapes.
        for _ in 0..10 {
            assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200);
        }
        for (answer, query) in answers.iter_mut().zip(queries) {
            *answer = answer.or(prometheus.query(query).await);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let [hit_rate, p95] = answers.map(Option::unwrap_or_default);
    assert!(hit_rate > 0.5 && hit_rate < 1.0, "one look-up of many asked Postgres: {hit_rate}");
    assert!(p95 > 0.0 && p95 < 30.0, "{p95}");
    assert_eq!(prometheus.query("up").await, Some(1.0));
    let decided = prometheus.query("sum(dotmac_decisions_total)").await;
    assert!(decided.is_some_and(|requests| requests >= 10.0), "{decided:?}");
}

/// One line for each kind of decision, with exactly the members that are promised.
#[tokio::test]
async fn the_access_log_has_one_line_a_request() {
    let shadowed = Uuid::new_v4();
    let world =
        World::start_with(|builder| builder.set("/enforcement/rollout", json!({ "exclude": [shadowed] }))).await;
    let (paying, starter) = (world.tenant("professional").await, world.tenant("starter").await);
    world.insert(License::valid(shadowed, "starter")).await;
    let ask = async |id: &str, target: &str, tenant: Option<Uuid>| {
        let tenant = tenant.map(|tenant| tenant.to_string());
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let headers: Vec<_> = [("X-Request-ID", id), ("traceparent", trace)]
            .into_iter()
            .chain(tenant.iter().map(|tenant| ("X-Tenant-ID", tenant.as_str())))
            .collect();
        client::request(world.proxy.address(), "GET", target, &headers).await.status
    };
    assert_eq!(ask("open", "/api/v1/network?token=hunter2", None).await, 200);
    assert_eq!(ask("allowed", "/api/v1/crm/items?token=hunter2", Some(paying)).await, 200);
    assert_eq!(ask("again", "/api/v1/crm/items", Some(paying)).await, 200);
    assert_eq!(ask("denied", "/api/v1/crm/items?token=hunter2", Some(starter)).await, 402);
    assert_eq!(ask("nobody", "/api/v1/crm", None).await, 401);
    assert_eq!(ask("shadowed", "/api/v1/crm", Some(shadowed)).await, 200);
    assert_eq!(ask("path", "/api/v1/crm/%0a", Some(paying)).await, 400);
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send("GET /x HTTP/1.1\r\nHost: a\r\nX-Request-ID: framing\r\nContent-Length: 1, 1\r\n\r\n").await.ok();
    assert_eq!(connection.response().await.status, 400);
    drop(connection);
    world.upstream.stop().await;
    assert_eq!(ask("unreachable", "/api/v1/crm/items", Some(paying)).await, 502);
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    // Nobody passes before a probe has confirmed the outage.
    until(Duration::from_secs(20), "an open gate", async || {
        let id = format!("cold-{}", Uuid::new_v4());
        ask(&id, "/api/v1/crm", Some(Uuid::new_v4())).await;
        let line = world.proxy.wait_for_log(|line| line["request_id"] == id).await;
        line["decision"] == "failed_open" && line["fallback"] == "open" && line["layer"].is_null()
    })
    .await;

    let line = async |id: &str| world.proxy.wait_for_log(|line| line["request_id"] == id).await;
    let (crm, rule) = ("/api/v1/crm", "prefix /api/v1/crm");
    let expected = [
        ("open", json!(["/api/v1/network", 200, "open", null, null, "prefix /api/v1/network", null, null, null, 200])),
        (
            "allowed",
            json!(["/api/v1/crm/items", 200, "allowed", null, "crm", rule, "professional", "source", null, 200]),
        ),
        ("again", json!(["/api/v1/crm/items", 200, "allowed", null, "crm", rule, "professional", "memory", null, 200])),
        (
            "denied",
            json!([
                "/api/v1/crm/items",
                402,
                "denied",
                "feature_not_in_plan",
                "crm",
                rule,
                "starter",
                "source",
                null,
                null
            ]),
        ),
        ("nobody", json!([crm, 401, "denied", "tenant_missing", "crm", rule, null, null, null, null])),
        ("shadowed", json!([crm, 200, "shadowed", "feature_not_in_plan", "crm", rule, "starter", "source", null, 200])),
        ("path", json!(["/api/v1/crm/%0a", 400, "denied", "request_malformed", null, null, null, null, null, null])),
        (
            "unreachable",
            json!(["/api/v1/crm/items", 502, "allowed", null, "crm", rule, "professional", "memory", null, null]),
        ),
    ];
    for (id, expected) in expected {
        let line = line(id).await;
        let members =
            ["path", "status", "decision", "reason", "feature", "rule", "plan", "layer", "fallback", "upstream_status"];
        assert_eq!(Value::from(members.map(|member| line[member].clone()).to_vec()), expected, "{id}: {line}");
        assert_eq!((&line["method"], &line["trace_id"]), (&json!("GET"), &json!("0af7651916cd43dd8448eb211c80319c")));
        assert!(line["gate_us"].is_u64() && line["total_ms"].is_f64(), "{line}");
        assert!(line["ts"].as_str().is_some_and(|ts| ts.len() == 24 && ts.ends_with('Z')), "{line}");
        assert_eq!(line["mode"], if id == "shadowed" { "shadow" } else { "enforce" }, "{line}");
    }
    let allowed = line("allowed").await;
    assert_eq!(allowed["tenant_id"], paying.to_string());
    assert!(allowed["revision"].as_i64().is_some_and(|revision| revision > 1_700_000_000_000_000), "{allowed}");
    assert!(allowed["license_age_ms"].is_u64(), "{allowed}");
    let info = world.proxy.metrics().await;
    let hash = &info.named("dotmac_build_info")[0].labels["config_hash"];
    assert_eq!(allowed["config_hash"], hash.as_str());

    let framing = line("framing").await;
    assert_eq!((&framing["path"], &framing["status"]), (&json!("/x"), &json!(400)));
    assert_eq!((&framing["decision"], &framing["reason"]), (&json!("denied"), &json!("request_malformed")));
    let log = world.proxy.access_log();
    let stdout = world.proxy.stdout();
    assert!(!stdout.contains("hunter2") && !stdout.contains('?'), "{stdout}");
    for text in stdout.lines() {
        let line: Value = serde_json::from_str(text).expect("a line of JSON");
        let members: BTreeSet<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(members, BTreeSet::from(MEMBERS));
        let places = MEMBERS.map(|member| text.find(&format!("\"{member}\":")));
        assert!(places.is_sorted(), "in the order of the design: {text}");
    }
    let ids: Vec<_> = log.iter().map(|line| line["request_id"].as_str().unwrap_or_default()).collect();
    assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len(), "one line a request: {ids:?}");
}

/// The raw target, secrets and all, only where configuration asks for it.
#[tokio::test]
async fn the_raw_target_is_logged_on_request_and_the_access_log_can_be_off() {
    let world = World::start_with(|builder| builder.set("/log/raw_target", true)).await;
    client::request(world.proxy.address(), "GET", "/api/v1/network/%61?b=c", &[]).await;
    let line = world.proxy.wait_for_log(|_| true).await;
    assert_eq!((&line["target"], &line["path"]), (&json!("/api/v1/network/%61?b=c"), &json!("/api/v1/network/%61")));
    let members: BTreeSet<&str> = line.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(members, MEMBERS.into_iter().chain(["target"]).collect());

    let mut quiet = world.builder.clone().set("/log/access", false).start().await;
    assert_eq!(client::request(quiet.address(), "GET", "/api/v1/network", &[]).await.status, 200);
    assert_eq!(quiet.terminate().await.code(), Some(0));
    assert_eq!(quiet.stdout(), "");
}

/// Every line on standard error is JSON, good days and bad.
#[tokio::test]
async fn the_programs_own_log_is_json() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    world.get("/api/v1/tickets", tenant).await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    world.upstream.stop().await;
    let told = async || {
        world.get("/api/v1/crm", Uuid::new_v4()).await;
        world.proxy.stderr().contains("a store is down")
    };
    until(Duration::from_secs(20), "the outage is in the log", told).await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send("GET /x HTTP/1.1\r\nHost: a\r\nno header\r\n\r\n").await.ok();
    connection.try_response(false).await.ok();
    let mut world = world;
    assert_eq!(world.proxy.terminate().await.code(), Some(0));
    let stderr = world.proxy.stderr();
    assert!(stderr.contains("\"serving\"") && stderr.contains("\"stopped\""), "{stderr}");
    for line in stderr.lines() {
        let parsed: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for member in ["timestamp", "level", "message", "target"] {
            assert!(parsed[member].is_string(), "{member}: {line}");
        }
        assert!(!line.contains("pg-secret-word"), "{line}");
    }
}
