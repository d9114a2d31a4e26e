//! The alerts that are shipped: each is tried, explained in docs/alerts.md, and asks for metrics that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::process::run;
use crate::harness::prometheus::{RULES, require};
use crate::harness::world::get;
use crate::harness::{Desk, License, Page, Prometheus, Proxy, World};

const TOP: &str = env!("CARGO_MANIFEST_DIR");
const PAGE: &str = "docs/alerts.md";
const PAGE_URL: &str = "https://github.com/dotmac/dotmac-license-proxy/blob/main/docs/alerts.md";

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// A rule that alerts.
struct Alert {
    name: String,
    rule: Value,
}

fn yaml(path: &str) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn rules() -> Vec<Value> {
    list(&yaml(RULES), "groups").iter().flat_map(|group| list(group, "rules")).cloned().collect()
}

fn alerts() -> Vec<Alert> {
    let named = |rule: Value| rule["alert"].as_str().map(str::to_owned).map(|name| Alert { name, rule });
    rules().into_iter().filter_map(named).collect()
}

fn names(alerts: &[Alert]) -> BTreeSet<&str> {
    alerts.iter().map(|alert| alert.name.as_str()).collect()
}

async fn becomes(proxy: &Proxy, metric: &str, expected: f64) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let value = proxy.metric(metric).await;
        if value == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{metric} is {value} and not {expected}:\n{}", proxy.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn promtool_accepts_the_rules() {
    require("promtool");
    let printed = run(&["promtool", "check", "rules", "--lint=all", RULES]);
    assert!(printed.contains(&format!("{} rules found", rules().len())), "{printed}");
}

#[test]
fn each_fires_when_it_should_and_not_in_the_harmless_case() {
    require("promtool");
    let alerts = alerts();
    let expected = [
        "DotmacCacheHitRateLow",
        "DotmacChangeFeedDown",
        "DotmacConfigReloadFailed",
        "DotmacDenialSpike",
        "DotmacFailingOpen",
        "DotmacQueueDrops",
        "DotmacRenewalOverdue",
        "DotmacSlowRequests",
        "DotmacStaleLicencesServed",
        "DotmacStoreBreakerOpen",
    ];
    assert_eq!(names(&alerts).into_iter().collect::<Vec<_>>(), expected);

    let mut files = vec!["promtool".to_owned(), "test".to_owned(), "rules".to_owned()];
    for name in expected {
        let file = format!("{TOP}/tests/alerts/{name}.yaml");
        let tests = yaml(&file);
        // A case that fires for each rule of that name, told apart by the labels that it sets; and a test in which none does.
        let mut fired = BTreeSet::new();
        let mut silent = false;
        for test in list(&tests, "tests") {
            let checks = list(test, "alert_rule_test");
            assert!(checks.iter().all(|check| check["alertname"] == name), "{file}: another alert's name");
            silent |= checks.iter().all(|check| list(check, "exp_alerts").is_empty());
            for alert in checks.iter().flat_map(|check| list(check, "exp_alerts")) {
                let annotations = alert["exp_annotations"].as_object().map(serde_json::Map::len);
                assert_eq!(annotations, Some(3), "{file}: annotations that are not held against anything");
                for rule in alerts.iter().filter(|rule| rule.name == name) {
                    let labels = rule.rule["labels"].as_object().expect("labels");
                    if labels.iter().all(|(label, value)| &alert["exp_labels"][label] == value) {
                        fired.insert(rule.rule["labels"].to_string());
                    }
                }
            }
        }
        assert!(silent, "{file}: no test in which it stays silent");
        let of_that_name = alerts.iter().filter(|rule| rule.name == name).count();
        assert_eq!(fired.len(), of_that_name, "{file}: not every rule of this name fires");
        files.push(file);
    }
    let there = std::fs::read_dir(format!("{TOP}/tests/alerts")).expect("the folder").count();
    assert_eq!(there, expected.len(), "tests of alerts that there are not");
    run(&files.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn each_says_what_customers_notice_and_where_to_read_on() {
    let alerts = alerts();
    for Alert { name, rule } in &alerts {
        let text =
            |place: &str| rule.pointer(place).and_then(Value::as_str).unwrap_or_else(|| panic!("{name}: {place}"));
        assert!(["page", "ticket"].contains(&text("/labels/severity")), "{name}");
        assert_ne!(text("/for"), "0m", "{name}");
        assert!(text("/annotations/description").to_lowercase().contains("customer"), "{name}: what do they notice?");
        assert!(!text("/annotations/summary").is_empty(), "{name}");
        let anchor = name.to_lowercase();
        assert_eq!(text("/annotations/runbook_url"), format!("{PAGE_URL}#{anchor}"), "{name}");
    }
    let page = std::fs::read_to_string(format!("{TOP}/{PAGE}")).expect("the page");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let of_alerts: BTreeSet<&str> = sections.iter().copied().filter(|section| section.starts_with("Dotmac")).collect();
    assert_eq!(of_alerts, names(&alerts), "sections and alerts");
    assert_eq!(sections.iter().filter(|section| section.starts_with("Dotmac")).count(), of_alerts.len(), "twice");
    for (section, body) in page.split("\n## ").filter_map(|part| part.split_once('\n')) {
        if section.starts_with("Dotmac") {
            for part in ["**Customers**", "**Look", "**Fix", "**Escalate**"] {
                assert!(body.contains(part), "{section}: {part} is missing");
            }
        }
    }
}

/// The names of metrics in a query.
pub(crate) fn metrics_of(query: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = query.split(|c| !word(c)).filter(|text| ["dotmac_", "process_"].iter().any(|of| text.starts_with(of)));
    words.map(str::to_owned).collect()
}

/// What rules and dashboard ask for is there from the start, under that name; and whatever is there is on the dashboard.
#[tokio::test]
async fn every_metric_asked_for_exists_and_every_metric_is_on_the_dashboard() {
    let world = World::start_with(|builder| {
        let meter = json!({ "window": "month", "limit": "hard" });
        builder.set("/licenses/change_feed", "redis").set("/routes/rules/4/meter", meter)
    })
    .await;
    let relay = world.builder.start_relay().await;
    let there: BTreeSet<String> = world.proxy.metrics().await.names();
    let recorded: BTreeSet<_> = rules().iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect();
    let exists = |name: &String| there.contains(name) || recorded.contains(name);

    let rules = rules();
    let of_rules: BTreeSet<String> =
        rules.iter().flat_map(|rule| metrics_of(rule["expr"].as_str().expect("expr"))).collect();
    assert!(of_rules.len() > 15, "{of_rules:?}");
    let of_dashboard: BTreeSet<String> = crate::dashboard::targets()
        .iter()
        .flat_map(|target| metrics_of(target["expr"].as_str().unwrap_or_default()))
        .collect();
    let missing: Vec<_> = of_rules.union(&of_dashboard).filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "no such metrics: {missing:?}");

    let base = |name: &str| {
        ["_bucket", "_count", "_sum"].iter().fold(name.to_owned(), |name, end| name.trim_end_matches(end).to_owned())
    };
    let shown: BTreeSet<String> = of_dashboard.iter().map(|name| base(name)).collect();
    let overlooked: BTreeSet<_> = there
        .iter()
        .filter(|name| name.starts_with("dotmac_"))
        .map(|name| base(name))
        .filter(|name| !shown.contains(name))
        .collect();
    assert!(overlooked.is_empty(), "not on the dashboard: {overlooked:?}");

    let of_relay = relay.metrics().await;
    assert!(of_relay.value("dotmac_change_feed_live", &[("channel", "feed")]).is_some());
    assert!(of_relay.value("dotmac_build_info", &[]).is_some());
}

/// One that is not in use has no series, so that it is not taken for one that is down.
#[tokio::test]
async fn a_channel_that_is_not_in_use_is_not_reported() {
    let world = World::start().await;
    let channels = async |proxy: &Proxy| -> BTreeMap<String, f64> {
        let metrics = proxy.metrics().await;
        let samples = metrics.named("dotmac_change_feed_live");
        samples.iter().map(|sample| (sample.labels["channel"].clone(), sample.value)).collect()
    };
    let keys = |channels: BTreeMap<String, f64>| channels.into_keys().collect::<Vec<_>>();
    assert_eq!(keys(channels(&world.proxy).await), ["redis"], "change_feed: none");
    let listening = world.builder.clone().set("/licenses/change_feed", "listen").start().await;
    assert_eq!(keys(channels(&listening).await), ["feed", "redis"]);
    listening.live().await;
    // One that is down is reported.
    world.redis_wire.cut().await;
    let deadline = Instant::now() + LIMIT;
    while channels(&listening).await.get("redis") != Some(&0.0) {
        assert!(Instant::now() < deadline, "{:?}", channels(&listening).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Those in grace alone, and no more once they are renewed, though nobody asks for them.
#[tokio::test]
async fn an_overdue_renewal_is_told_from_one_that_is_near() {
    let world = World::start_with(|builder| builder.set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let [in_grace, too, soon, lapsed, fixed] = [(); 5].map(|()| Uuid::new_v4());
    for (tenant, valid_until, auto_renew) in [
        (in_grace, "-1 hour", true),
        (too, "-71 hours", true),
        (soon, "1 hour", true),
        (lapsed, "-73 hours", true),
        (fixed, "-1 hour", false),
    ] {
        world.insert(License { valid_until, auto_renew, ..License::valid(tenant, "professional") }).await;
        get(&world.proxy, "/api/v1/crm", tenant).await;
    }
    assert_eq!(world.proxy.metric("dotmac_licenses_overdue").await, 2.0);
    let ended = world.builder.run(&["license", "renew", "--within", "0s"]).await;
    assert!(ended.stdout.starts_with("2 renewed"), "{ended:?}");
    becomes(&world.proxy, "dotmac_licenses_overdue", 0.0).await;

    // A shorter grace, by a reload: what was in it is over.
    world.database.execute("UPDATE tenant_licenses SET valid_until = timezone('utc', now()) - INTERVAL '1 hour'").await;
    assert_eq!(get(&world.proxy, "/api/v1/crm", in_grace).await.status, 200);
    becomes(&world.proxy, "dotmac_licenses_overdue", 1.0).await;
    let file = world.proxy.config_file();
    let text = std::fs::read_to_string(&file).expect("the configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    config["licenses"]["grace"] = json!("30m");
    std::fs::write(&file, config.to_string()).expect("writable");
    becomes(&world.proxy, "dotmac_licenses_overdue", 0.0).await;
}

/// The commands of docs/alerts.md, as written, each section with what it is about.
#[tokio::test]
async fn the_commands_of_the_page_do_what_it_says() {
    let world = World::start_with(|builder| {
        let meter = json!({ "methods": ["POST"], "window": "month", "limit": "hard" });
        builder
            .set("/licenses/change_feed", "listen")
            .set("/routes/rules/4/meter", meter)
            .set("/usage/flush_interval", "200ms")
    })
    .await;
    world.proxy.live().await;
    let prometheus = Prometheus::scraping(&[("backend", &world.proxy)]).await;
    let page = Page::read(PAGE);
    let config = world.proxy.config_file();
    let mut desk = desk(&world, &prometheus);
    let run = async |desk: &Desk, section: &str| {
        let mut printed = Vec::new();
        for block in page.under(section, "sh") {
            printed.push(desk.passes(block).await);
        }
        printed
    };

    // Somebody without crm asks and asks; three have no licence at all.
    let [starter, unreadable, overdue] = [(); 3].map(|()| Uuid::new_v4());
    world.insert(License::valid(starter, "starter")).await;
    let tenants =
        "CREATE TABLE tenants (id uuid); INSERT INTO tenants SELECT gen_random_uuid() FROM generate_series(1, 3)";
    world.database.execute(tenants).await;
    for _ in 0..40 {
        assert_eq!(get(&world.proxy, "/api/v1/crm/customers", starter).await.status, 402);
    }
    let deadline = Instant::now() + LIMIT;
    while world.database.value("SELECT coalesce(sum(count), 0)::text FROM feature_denial_events").await.as_deref()
        != Some("40")
    {
        assert!(Instant::now() < deadline, "the denials are not written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.proxy.wait_for_log(|line| line["decision"] == "denied").await;
    while prometheus.query("histogram_quantile(0.95, dotmac_api_duration_seconds)").await.is_none() {
        assert!(Instant::now() < deadline, "Prometheus has no percentile yet");
        get(&world.proxy, "/api/v1/crm/customers", starter).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    desk.set("TENANT", starter.to_string());
    desk.write("pod.log", &(world.proxy.stdout() + &world.proxy.stderr()));
    run(&desk, "Set these first").await;
    let printed = run(&desk, "DotmacDenialSpike").await;
    let id = starter.to_string();
    for (block, said) in [
        (0, "feature_not_in_plan |       1 |"),
        (0, id.as_str()),
        (1, r#"dotmac_feature_denials_total{feature="crm",reason="feature_not_in_plan"} "#),
        (1, r#"{"reason":"feature_not_in_plan","feature":"crm","rule":"prefix /api/v1/crm""#),
        (2, "denied with 402, feature_not_in_plan"),
        (3, "3"),
    ] {
        assert!(printed[block].contains(said), "block {block} does not say {said:?}:\n{}", printed[block]);
    }

    let printed = run(&desk, "DotmacCacheHitRateLow").await;
    for said in ["dotmac_license_lookups_total{layer=\"memory\"} ", "evicted_keys:0", "maxmemory_policy:"] {
        assert!(printed[0].contains(said), "{said:?}:\n{}", printed[0]);
    }

    // A row that another program has written wrong.
    world.insert(License { features: json!(["crm"]), ..License::valid(unreadable, "starter") }).await;
    assert_eq!(get(&world.proxy, "/api/v1/crm/customers", unreadable).await.status, 200);
    assert_eq!(world.proxy.metrics().await.value("dotmac_decisions_total", &[("outcome", "failed_open")]), Some(1.0));
    desk.set("TENANT", unreadable.to_string());
    let printed = run(&desk, "DotmacFailingOpen").await;
    for (block, said) in [
        (0, r#"dotmac_decisions_total{outcome="failed_open"} 1"#),
        (1, unreadable.to_string().as_str()),
        (1, "(1 row)"),
        (2, "UPDATE 1"),
        (4, "tenant_licenses | feature_usage"),
        (5, "up to date"),
    ] {
        assert!(printed[block].contains(said), "block {block} does not say {said:?}:\n{}", printed[block]);
    }
    assert_eq!(get(&world.proxy, "/api/v1/crm/customers", unreadable).await.status, 200);
    assert_eq!(world.proxy.metrics().await.value("dotmac_decisions_total", &[("outcome", "failed_open")]), Some(1.0));

    let printed = run(&desk, "DotmacChangeFeedDown").await;
    for (block, said) in [(0, "\tfeed\t1"), (1, "(1 row)"), (1, "| O"), (2, "redis_version:")] {
        assert!(printed[block].contains(said), "block {block} does not say {said:?}:\n{}", printed[block]);
    }
    let printed = run(&desk, "DotmacStaleLicencesServed").await;
    assert!(
        printed[0].contains("PONG") && printed[0].contains("dotmac_license_stale_served_total 0"),
        "{}",
        printed[0]
    );
    let printed = run(&desk, "DotmacStoreBreakerOpen").await;
    for said in ["PONG", "maxclients:", "connections | most"] {
        assert!(printed[0].contains(said), "{said:?}:\n{}", printed[0]);
    }
    let printed = run(&desk, "DotmacQueueDrops").await;
    for said in [r#"dotmac_usage_dropped_total{cause="full"} 0"#, "dotmac_usage_pending 0", "FOREIGN KEY (tenant_id)"] {
        assert!(printed[0].contains(said), "{said:?}:\n{}", printed[0]);
    }

    // A mistake in the file, as the pod has it.
    let text = std::fs::read_to_string(&config).expect("the configuration");
    std::fs::write(&config, text.replace("\"unmatched\"", "\"unmached\"")).expect("writable");
    becomes(&world.proxy, "dotmac_config_refused", 1.0).await;
    let printed = run(&desk, "DotmacConfigReloadFailed").await;
    assert!(printed[0].contains("dotmac_config_refused 1"), "{}", printed[0]);
    std::fs::write(&config, text).expect("writable");
    becomes(&world.proxy, "dotmac_config_refused", 0.0).await;

    desk.write(
        "pod.log",
        &(world.proxy.stdout()
            + r#"{"path":"/slow","total_ms":250.5,"gate_us":9,"layer":"memory","upstream_status":200}"#
            + "\n"),
    );
    let printed = run(&desk, "DotmacSlowRequests").await;
    assert!(printed[0].contains(r#"{"path":"/slow","total_ms":250.5"#), "{}", printed[0]);
    assert!(
        printed[0].lines().take(2).all(|line| line.parse::<f64>().is_ok_and(|seconds| seconds > 0.0)),
        "{}",
        printed[0]
    );

    world.insert(License { valid_until: "-1 hour", ..License::valid(overdue, "starter") }).await;
    let printed = run(&desk, "DotmacRenewalOverdue").await;
    assert!(printed[0].contains("       1 |"), "{}", printed[0]);
    assert!(printed[1].matches("1 ").count() >= 2 && printed[1].contains("1 renewed by 30d"), "{}", printed[1]);
    let left = "SELECT count(*)::text FROM tenant_licenses WHERE valid_until < timezone('utc', now())";
    assert_eq!(world.database.value(left).await.as_deref(), Some("0"));

    // Whatever stands on the page in sh was run: a section that is not an alert's has none but the first.
    let headings: BTreeSet<_> = page.all("sh").iter().map(|block| block.heading.clone()).collect();
    let alerts = alerts();
    let known: BTreeSet<_> = names(&alerts).into_iter().chain(["Set these first"]).map(str::to_owned).collect();
    assert_eq!(headings, known);
}

/// Where somebody sits who is on call: `kubectl logs` gives what is in `pod.log`.
fn desk(world: &World, prometheus: &Prometheus) -> Desk {
    let mut desk = Desk::new();
    desk.set("DATABASE_URL", world.database.url());
    desk.set("REDIS_URL", world.redis.url());
    desk.set("OPS", world.proxy.ops_url());
    desk.set("PROMETHEUS", prometheus.url());
    desk.set("DOTMAC_LICENSE_CONFIG", world.proxy.config_file().display().to_string());
    desk.write("pod.log", "");
    desk
}
