//! The Grafana dashboard: every panel's query is asked of a real Prometheus that scrapes the real proxy and a relay, or of the
//! real Postgres.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures::future;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::process::run;
use crate::harness::prometheus::Series;
use crate::harness::world::get;
use crate::harness::{Ask, License, Load, Page, Prometheus, Proxy, RawClient, RawResponse, World, client};
use crate::websocket::Socket;

const TOP: &str = env!("CARGO_MANIFEST_DIR");
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/dotmac-license-proxy/files/dashboard.json");

/// As operators type them: the hit rate, the 95th percentile, the denials, and the share that led to a click.
const OPERATORS: [&str; 4] = [
    "dotmac_license_cache_hits / dotmac_license_cache_requests",
    "histogram_quantile(0.95, dotmac_api_duration_seconds)",
    "dotmac_feature_denials_total",
    "SELECT COUNT(CASE WHEN clicked_upgrade THEN 1 END)::float / COUNT(*) AS conversion_rate FROM feature_denial_events \
     WHERE created_at > NOW() - INTERVAL '7 days';",
];

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(FILE).expect("the dashboard")).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key}: {value}"))
}

/// Every query of every panel.
pub(crate) fn targets() -> Vec<Value> {
    list(&dashboard(), "panels").iter().flat_map(|panel| list(panel, "targets")).cloned().collect()
}

/// A query as Grafana asks it, with "All" chosen and a window that holds everything since the test began.
fn chosen(query: &str) -> String {
    let values = [("$namespace", ".*"), ("$job", ".*"), ("$__rate_interval", "1m"), ("$__range", "1m")];
    values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value))
}

fn words(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_file_is_what_the_script_writes() {
    let printed = run(&["python3", &format!("{TOP}/scripts/dashboard"), "--print"]);
    assert!(printed == std::fs::read_to_string(FILE).expect("the dashboard"), "run scripts/dashboard");
}

/// What Grafana relies on: ids and places that are each panel's own, data sources by variable, and variables that there are.
#[test]
fn it_is_a_dashboard_for_any_grafana() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| version >= 39));
    assert!(dashboard["id"].is_null(), "an id is one Grafana's own");
    let variables = list(&dashboard["templating"], "list");
    let names: BTreeSet<&str> = variables.iter().map(|variable| text(variable, "name")).collect();
    assert_eq!(names.len(), variables.len());
    let panels = list(&dashboard, "panels");
    let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels with one id");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |key| panel["gridPos"][key].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{}", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(!list(panel, "targets").is_empty(), "{}", panel["title"]);
        for target in list(panel, "targets") {
            let source = match target["rawSql"].is_null() {
                true => ("prometheus", "${prometheus}"),
                false => ("grafana-postgresql-datasource", "${postgres}"),
            };
            for place in [&target["datasource"], &panel["datasource"]] {
                assert_eq!((text(place, "type"), text(place, "uid")), source, "{}", panel["title"]);
            }
            let query = target["expr"].as_str().or(target["rawSql"].as_str()).expect("a query");
            let used = query
                .split('$')
                .skip(1)
                .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default());
            for name in used {
                assert!(names.contains(name) || name.starts_with("__"), "{}: ${name} is no variable", panel["title"]);
            }
        }
    }
}

#[test]
fn the_queries_that_people_type_are_on_it_to_the_letter() {
    let targets = targets();
    let queries: BTreeSet<&str> =
        targets.iter().filter_map(|target| target["expr"].as_str().or(target["rawSql"].as_str())).collect();
    for query in OPERATORS {
        assert!(queries.contains(query), "{query}");
    }
    // Those of the pages, with what is chosen in the place of their examples.
    let examples = [("2026-11-01", "$month"), ("2026-12-01", "$next_month"), ("'…'", "'$tenant'")];
    let on_it: BTreeSet<String> = queries.iter().map(|query| words(query)).collect();
    let mut found = 0;
    for page in ["docs/denials.md", "docs/usage.md"] {
        for block in Page::read(page).all("sql") {
            let without_comments: String =
                block.text.lines().filter(|line| !line.starts_with("--")).map(|line| format!("{line}\n")).collect();
            for statement in without_comments.split_inclusive(';').filter(|statement| !statement.trim().is_empty()) {
                let query = examples.iter().fold(words(statement), |query, (from, to)| query.replace(from, to));
                assert!(on_it.contains(&query), "{}: not on the dashboard: {query}", block.place);
                found += 1;
            }
        }
    }
    assert_eq!(found, 5, "three of denials, two of usage");
}

/// Tenants for everything that can become of a request.
struct Cast {
    paying: Uuid,
    starter: Uuid,
    shadowed: Uuid,
    metered: Uuid,
    over: Uuid,
    in_grace: Uuid,
    ending: Uuid,
    nobody: Uuid,
}

async fn post(proxy: &Proxy, path: &str, tenant: Uuid, body: &str) -> RawResponse {
    let mut client = RawClient::connect(proxy.address()).await;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\nX-Tenant-ID: {tenant}\r\nX-User-Role: owner\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head).await.expect("open");
    client.response().await
}

async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn world(cast: &Cast) -> World {
    World::start_with(|builder| {
        let meter = |limit: &str| json!({ "window": "month", "limit": limit });
        builder
            .set("/licenses/change_feed", "redis")
            // So that an outage of stores is met within the test.
            .set("/licenses/revalidate_after", "1s")
            .set("/licenses/ttl", "2s")
            .set("/routes/rules/4/meter", meter("hard"))
            .set("/routes/rules/5/meter", meter("soft"))
            .set(
                "/enforcement",
                json!({ "mode": "enforce", "rollout": { "percent": 100, "exclude": [cast.shadowed] } }),
            )
            .set("/upgrade", json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } }))
            .set("/usage/flush_interval", "500ms")
    })
    .await
}

/// All that a proxy can meet, once.
async fn exercise(world: &World, cast: &Cast) {
    let proxy = &world.proxy;
    let status = async |path: &str, tenant: Uuid| get(proxy, path, tenant).await.status;
    for (path, tenant, expected) in [
        ("/api/v1/crm", cast.paying, 200),
        ("/api/v1/network", cast.paying, 200),
        ("/api/v1/crm", cast.starter, 402),
        ("/api/v1/crm", cast.nobody, 402),
        ("/api/v1/crm", cast.shadowed, 200),
        ("/api/v1/crm", cast.in_grace, 200),
        ("/api/v1/crm", cast.ending, 200),
        ("/api/v1/projects", cast.over, 200),
        ("/api/v1/projects", cast.over, 200),
        ("/api/v1/tickets", cast.metered, 200),
        ("/api/v1/tickets", cast.metered, 200),
        ("/api/v1/tickets", cast.metered, 402),
    ] {
        assert_eq!(status(path, tenant).await, expected, "{path} of {tenant}");
    }
    let long = format!("/api/v1/crm/{}", "x".repeat(20_000));
    assert_eq!(client::request(proxy.address(), "GET", &long, &[]).await.status, 414);

    // A portal that is open while its tenant follows a denial to an upgrade.
    let mut socket = Socket::open(proxy, cast.starter).await;
    assert_eq!(socket.message().await["type"], "license");
    let written = "SELECT count(*)::text FROM feature_denial_events WHERE clicked_upgrade IS NOT NULL";
    until("the denials are written", async || world.database.value(written).await.as_deref() >= Some("3")).await;
    assert_eq!(post(proxy, "/api/v1/license/upgrade-click", cast.starter, r#"{"feature":"crm"}"#).await.status, 204);
    let upgraded = post(proxy, "/api/v1/license/upgrade", cast.starter, r#"{"new_plan":"professional"}"#).await;
    assert_eq!(upgraded.status, 200, "{}", upgraded.text());
    assert_eq!(socket.message().await["type"], "license_updated");
    assert_eq!(status("/api/v1/crm", cast.starter).await, 200);
    drop(socket);

    // Another file, a wrong one, and the first again.
    let file = proxy.config_file();
    let first = std::fs::read_to_string(&file).expect("the configuration");
    let reloads = async |outcome: &str| {
        proxy
            .metrics()
            .await
            .value("dotmac_config_reloads_total", &[("outcome", outcome)])
            .expect("at zero from the start")
    };
    let write = |text: &str| std::fs::write(&file, text).expect("writable");
    write(&first.replace("\"version\": 1", "\"version\": 2"));
    until("a wrong file is refused", async || reloads("refused").await > 0.0).await;
    write(&first.replace("\"unmatched\": \"allow\"", "\"unmatched\": \"deny\""));
    until("another file is applied", async || reloads("applied").await > 0.0).await;
    write(&first);

    // That nothing is left of a limit is remembered for a second, and then asked again.
    assert_eq!(status("/api/v1/tickets", cast.metered).await, 402);

    // Redis is away for a moment, then both stores: last known licences, and for whom none is known, none.
    world.redis_wire.cut().await;
    until("Redis's outage is known", async || {
        assert_eq!(status("/api/v1/crm", cast.paying).await, 200);
        proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", "redis")]) == Some(2.0)
    })
    .await;
    world.postgres_wire.cut().await;
    let decided = async |outcome: &str| proxy.metrics().await.value("dotmac_decisions_total", &[("outcome", outcome)]);
    until("both are away, and it shows", async || {
        status("/api/v1/crm", cast.paying).await;
        status("/api/v1/crm", Uuid::new_v4()).await;
        decided("failed_open").await > Some(0.0) && proxy.metric("dotmac_license_stale_served_total").await > 0.0
    })
    .await;
    world.postgres_wire.restore();
    world.redis_wire.restore();
    proxy.live().await;
}

/// What the exercise must have brought about, as Prometheus has it: a series that is more than zero.
const BROUGHT_ABOUT: [&str; 27] = [
    r#"dotmac_decisions_total{outcome="open"}"#,
    r#"dotmac_decisions_total{outcome="allowed"}"#,
    r#"dotmac_decisions_total{outcome="shadowed"}"#,
    r#"dotmac_decisions_total{outcome="failed_open"}"#,
    r#"dotmac_decisions_total{outcome="denied"}"#,
    r#"dotmac_feature_denials_total{feature="crm",reason="feature_not_in_plan"}"#,
    r#"dotmac_feature_denials_total{feature="crm",reason="no_license"}"#,
    r#"dotmac_feature_denials_total{feature="tickets",reason="usage_limit_exceeded"}"#,
    r#"dotmac_shadow_denials_total{feature="crm",reason="feature_not_in_plan"}"#,
    r#"dotmac_usage_beyond_limit_total{feature="projects"}"#,
    r#"dotmac_quota_threshold_crossings_total{feature="tickets",threshold="100"}"#,
    r#"dotmac_quota_leases_total{outcome="granted"}"#,
    r#"dotmac_quota_leases_total{outcome="exhausted"}"#,
    r#"dotmac_limited_total{limit="uri_bytes"}"#,
    r#"dotmac_license_lookups_total{layer="memory"}"#,
    r#"dotmac_license_lookups_total{layer="source"}"#,
    r#"dotmac_store_errors_total{store="redis"}"#,
    r#"dotmac_license_changes_total{kind="license"}"#,
    r#"dotmac_config_reloads_total{outcome="refused"}"#,
    r#"dotmac_transactions_total{name="amend",outcome="committed"}"#,
    r#"dotmac_usage_flushes_total{outcome="posted"}"#,
    "dotmac_license_stale_served_total",
    "dotmac_license_grace_served_total",
    "dotmac_usage_recorded_total",
    "max_over_time(dotmac_licenses_overdue[1m])",
    r#"dotmac_licenses_expiring{within="24h"}"#,
    r#"sum(dotmac_websocket_closed_total)"#,
];

#[tokio::test]
async fn every_panel_has_something_to_show() {
    let id = Uuid::new_v4;
    let cast = Cast {
        paying: id(),
        starter: id(),
        shadowed: id(),
        metered: id(),
        over: id(),
        in_grace: id(),
        ending: id(),
        nobody: id(),
    };
    let world = world(&cast).await;
    let relay = world.builder.start_relay().await;
    let prometheus = Prometheus::scraping(&[("backend", &world.proxy), ("relay", &relay)]).await;
    let limits = json!({ "tickets": 2, "projects": 1 });
    for license in [
        License::valid(cast.paying, "professional"),
        License::valid(cast.starter, "starter"),
        License::valid(cast.shadowed, "starter"),
        License { usage_limits: limits.clone(), ..License::valid(cast.metered, "starter") },
        License { usage_limits: limits, ..License::valid(cast.over, "professional") },
        License { valid_until: "-1 hour", ..License::valid(cast.in_grace, "professional") },
        License { valid_until: "1 hour", ..License::valid(cast.ending, "professional") },
    ] {
        world.insert(license).await;
    }
    future::join(world.proxy.live(), async {
        let live = async || relay.metrics().await.value("dotmac_change_feed_live", &[("channel", "feed")]) == Some(1.0);
        until("the relay is in order", live).await;
    })
    .await;
    // The first scrape comes some seconds after Prometheus is ready; what rates are counted from has to be before the load.
    until("both are scraped", async || prometheus.query("count(dotmac_build_info)").await == Some(2.0)).await;
    let (paying, starter, in_grace) = (cast.paying, cast.starter, cast.in_grace);
    let load = Load::on(world.proxy.address()).rate(50).start(move |number| {
        let tenant = [starter, in_grace, paying, paying, paying][usize::try_from(number % 5).expect("below five")];
        Ask::get("/api/v1/analytics", tenant, "load")
    });
    exercise(&world, &cast).await;

    // Two scrapes after it.
    let seen = async |query: &str| prometheus.series(query).await.iter().any(|series| series.value > 0.0);
    for query in BROUGHT_ABOUT {
        until(query, async || seen(query).await).await;
    }
    tokio::time::sleep(Duration::from_millis(2_500)).await;

    let mut asked = 0;
    for panel in list(&dashboard(), "panels") {
        let title = text_or(panel, "title");
        let mut any = false;
        for target in list(panel, "targets") {
            if let Some(query) = target["expr"].as_str() {
                let found = prometheus.series(&chosen(query)).await;
                any |= found.iter().any(|series| series.value.is_finite());
                assert!(!found.is_empty(), "{title}: no series: {query}");
                assert_legend(title, text_or(target, "legendFormat"), &found);
                let literal = OPERATORS.contains(&query);
                if panel["fieldConfig"]["defaults"]["unit"] == "percentunit" {
                    // A relay looks nothing up: what operators type is 0 / 0 for it, and Grafana leaves that out.
                    let of_proxy = found.iter().filter(|series| !literal || series.labels["job"] == "backend");
                    for Series { labels, value } in of_proxy {
                        assert!((0.0..=1.0).contains(value), "{title}: {value} for {labels:?}: {query}");
                    }
                }
                asked += 1;
            }
        }
        if panel["targets"][0]["expr"].is_string() {
            assert!(any, "{title}: nothing but NaN");
        }
    }
    assert!(asked > 60, "{asked} queries");
    println!("{asked} queries of Prometheus");
    let samples = load.stop().await;
    let by_status = samples.by_status();
    assert!(by_status.keys().all(|status| [200, 402, 403].contains(status)), "{by_status:?}");
    assert!(prometheus.query("count(dotmac_build_info{namespace=\"shop\",job=~\"backend|relay\"})").await == Some(2.0));
    ask_postgres(&world, &cast);
}

fn text_or<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// What a legend names is a label of what it stands for.
fn assert_legend(title: &str, legend: &str, found: &[Series]) {
    for label in legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
        let there = found.iter().all(|series| series.labels.contains_key(label));
        assert!(there, "{title}: the legend names {label}: {:?}", found[0].labels);
    }
}

/// Every query of the database, with the variables as the dashboard's own queries fill them.
fn ask_postgres(world: &World, cast: &Cast) {
    let rows = |sql: &str| world.database.psql(&["--no-psqlrc", "-At", "-c", sql]).trim().to_owned();
    let dashboard = dashboard();
    let mut values = BTreeMap::from([("$tenant", cast.metered.to_string())]);
    for (variable, name) in [("month", "$month"), ("next_month", "$next_month")] {
        let variables = list(&dashboard["templating"], "list");
        let query =
            variables.iter().find(|of| of["name"] == variable).map(|of| text(of, "query")).expect("the variable");
        let query = values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
        let options = rows(&query);
        values.insert(name, options.lines().next().expect("an option").to_owned());
    }
    let mut asked = 0;
    for panel in list(&dashboard, "panels") {
        for sql in list(panel, "targets").iter().filter_map(|target| target["rawSql"].as_str()) {
            let query = values.iter().fold(sql.to_owned(), |query, (name, value)| query.replace(name, value));
            let answer = rows(&query);
            assert!(!answer.is_empty(), "{}: no row: {query}", panel["title"]);
            if sql == OPERATORS[3] {
                let rate: f64 = answer.parse().unwrap_or_else(|_| panic!("no share: {answer:?}"));
                assert!(rate > 0.0 && rate < 1.0, "{rate}");
            }
            if sql.contains("usage_windows") {
                assert!(answer.starts_with("tickets|month|") && answer.ends_with("|2|0"), "{answer}");
            }
            asked += 1;
        }
    }
    assert_eq!(asked, 5);
    println!("{asked} queries of Postgres");
}
