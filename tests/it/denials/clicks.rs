//! `clicked_upgrade` and `upgraded_at`: who follows a denial to an upgrade, and who gets it.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{CONVERSION, World, ask, click, clicked, denied, early_in_the_minute, post, prompt, world};
use crate::harness::jwt::{self, Signer};
use crate::harness::{Proxy, client};

/// Which features' denials of a tenant were clicked.
fn followed(tenant: Uuid) -> String {
    format!(
        "SELECT coalesce(string_agg(feature_name, ' ' ORDER BY feature_name), '') FROM feature_denial_events
          WHERE tenant_id = '{tenant}' AND clicked_upgrade AND clicked_at BETWEEN minute AND now()"
    )
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test]
async fn a_frontend_tells_of_a_click() {
    let world = World::start_with(prompt).await;
    let [tenant, other] = [world.tenant("starter").await, world.tenant("starter").await];
    early_in_the_minute(20).await;
    for feature in ["crm", "fieldops"] {
        denied(&world.proxy, feature, tenant, 3).await;
    }
    for feature in ["crm", "projects"] {
        denied(&world.proxy, feature, other, 1).await;
    }
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "4").await;
    clicked(&world.proxy, "crm", tenant).await;
    world.database.becomes(&followed(tenant), "crm").await;
    assert_eq!(world.database.value(&followed(other)).await.as_deref(), Some(""));
    assert_eq!(world.database.value(CONVERSION).await.as_deref(), Some("0.25"));
    // What is older than a day was not what they clicked.
    let earlier = format!(
        "INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute)
         SELECT gen_random_uuid(), '{other}', 'crm', 'feature_not_in_plan', now() - hours * interval '1 hour'
           FROM generate_series(22, 25) AS hours"
    );
    world.database.execute(&earlier).await;
    clicked(&world.proxy, "crm", other).await;
    let marked = "SELECT count(*) FILTER (WHERE clicked_upgrade) || ' of ' || count(*) FROM feature_denial_events";
    world.database.becomes(marked, "4 of 8").await;
    assert_eq!(world.database.value(CONVERSION).await.as_deref(), Some("0.5"));
    let first = format!("SELECT max(clicked_at)::text FROM feature_denial_events WHERE tenant_id = '{tenant}'");
    let at = world.database.value(&first).await;
    clicked(&world.proxy, "crm", tenant).await;
    // The next flush has come and gone with a click of somebody else's.
    denied(&world.proxy, "fieldops", other, 1).await;
    clicked(&world.proxy, "fieldops", other).await;
    world.database.becomes(&followed(other), "crm crm crm fieldops").await;
    assert_eq!(world.database.value(&first).await, at, "the first click counts");
    assert_eq!(world.upstream.count(), 0, "the backend hears nothing of it");
}

#[tokio::test]
async fn what_is_no_click() {
    let signer = Signer::new("HS256", "key");
    let keys = tempfile::tempdir().expect("a directory");
    std::fs::write(keys.path().join("jwks.json"), jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let world = World::start_with(|builder| {
        let jwt = json!({ "jwt": { "from": [{ "cookie": "access_token" }], "keys": keys.path().join("jwks.json") } });
        let cors = json!({ "allow_origins": ["https://app.example.com"], "allow_credentials": true });
        prompt(builder).set("/tenant/sources/-", jwt).set("/cors", cors).set("/limits/drain_timeout", "500ms")
    })
    .await;
    let tenant = world.tenant("starter").await;
    denied(&world.proxy, "crm", tenant, 1).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let cookie = format!("access_token={}", signer.token(&json!({ "tenant_id": tenant, "exp": now + 300 })));
    let (id, cookie) = (tenant.to_string(), ("Cookie", cookie.as_str()));
    let own = ("X-Tenant-ID", id.as_str());
    let (good, large) = (r#"{"feature":"crm"}"#, format!(r#"{{"feature":"{}"}}"#, "x".repeat(20_000)));
    let path = "/license/upgrade-click";
    for (headers, body, status, reason) in [
        (vec![own, JSON], "nonsense", 400, "body_invalid"),
        (vec![own, JSON], "{}", 400, "body_invalid"),
        (vec![own, JSON], r#"{"feature":null}"#, 400, "body_invalid"),
        (vec![own, JSON], r#"["crm"]"#, 400, "body_invalid"),
        (vec![own, JSON], large.as_str(), 413, "body_too_large"),
        (vec![own, JSON], r#"{"feature":"network"}"#, 422, "unknown_feature"),
        (vec![own, JSON], r#"{"feature":"CRM"}"#, 422, "unknown_feature"),
        (vec![own], good, 415, "unsupported_media_type"),
        (vec![own, ("Content-Type", "text/plain")], good, 415, "unsupported_media_type"),
        (vec![JSON], good, 401, "tenant_missing"),
        (vec![JSON, ("X-Tenant-ID", "acme")], good, 400, "tenant_invalid"),
        (vec![JSON, cookie], good, 403, "origin_not_allowed"),
        (vec![JSON, cookie, ("Origin", "https://evil.example.com")], good, 403, "origin_not_allowed"),
    ] {
        let answer = post(&world.proxy, path, &headers, body).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)), "{headers:?} {body:.40}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"));
        let line = world.proxy.wait_for_log(|line| line["request_id"] == answer.json()["request_id"]).await;
        assert_eq!((&line["status"], &line["path"]), (&json!(status), &json!(path)));
    }
    let answer = client::request(world.proxy.address(), "GET", path, &[own]).await;
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("POST")));
    denied(&world.proxy, "fieldops", tenant, 1).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "2").await;
    assert_eq!(world.database.value("SELECT count(*) FROM upgrade_marks").await.as_deref(), Some("0"));

    // A page of a listed origin may, with its visitor's cookie, once the browser has asked.
    let origin = ("Origin", "https://app.example.com");
    let asks = [origin, ("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type")];
    let preflight = client::request(world.proxy.address(), "OPTIONS", path, &asks).await;
    let allowed = ["Access-Control-Allow-Origin", "Access-Control-Allow-Headers"].map(|name| preflight.header(name));
    assert_eq!((preflight.status, allowed), (204, [Some("https://app.example.com"), Some("content-type")]));
    let answer = post(&world.proxy, path, &[JSON, cookie, origin], good).await;
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Origin")), (204, Some("https://app.example.com")));
    world.database.becomes(&followed(tenant), "crm").await;
    assert_eq!(world.upstream.count(), 0);
}

/// A method, a target, headers, and the features of which it is a click.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str);

/// Whoever goes to the page of a denial's `upgrade_url` by way of the proxy has clicked.
#[tokio::test]
async fn the_link_is_seen_on_its_way() {
    let world = World::start_with(prompt).await;
    let page = "/billing/upgrade?feature=crm";
    let cases: [Case; 13] = [
        ("GET", page, &[], "crm"),
        ("GET", "/billing/upgrade?from=mail&feature=crm", &[], "crm"),
        ("GET", "/billing/upgrade?feature=fieldops&feature=crm", &[], "crm fieldops"),
        ("GET", page, &[("Sec-Purpose", "prefetch")], ""),
        ("GET", page, &[("Sec-Purpose", "prefetch;prerender")], ""),
        ("GET", page, &[("Purpose", "prefetch")], ""),
        ("GET", page, &[("X-Purpose", "preview")], ""),
        ("GET", page, &[("X-Moz", "prefetch")], ""),
        ("HEAD", page, &[], ""),
        ("POST", page, &[("Content-Length", "0")], ""),
        ("GET", "/billing/upgrade", &[], ""),
        ("GET", "/billing/upgrade?feature=analytics", &[], ""),
        ("GET", "/billing/upgrades?feature=crm", &[], ""),
    ];
    let mut tenants = Vec::new();
    for (method, target, headers, expected) in cases {
        let tenant = world.tenant("starter").await;
        for feature in ["crm", "fieldops"] {
            denied(&world.proxy, feature, tenant, 1).await;
        }
        let id = tenant.to_string();
        let headers = [&[("X-Tenant-ID", id.as_str())], headers].concat();
        let before = world.upstream.count();
        let answer = client::request(world.proxy.address(), method, target, &headers).await;
        assert_eq!((answer.status, world.upstream.count()), (200, before + 1), "{method} {target}");
        assert_eq!(world.upstream.last().target, target);
        tenants.push((tenant, expected));
    }
    // Nobody's.
    assert_eq!(client::request(world.proxy.address(), "GET", page, &[]).await.status, 200);
    for (number, (tenant, expected)) in tenants.iter().enumerate() {
        world.database.becomes(&followed(*tenant), expected).await;
        assert_eq!(world.database.value(&followed(*tenant)).await.as_deref(), Some(*expected), "{:?}", cases[number]);
    }
    // Everything before this one is written.
    let last = world.tenant("starter").await;
    denied(&world.proxy, "crm", last, 1).await;
    clicked(&world.proxy, "crm", last).await;
    world.database.becomes(&followed(last), "crm").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let all = "SELECT count(*) FROM feature_denial_events WHERE clicked_upgrade";
    assert_eq!(world.database.value(all).await.as_deref(), Some("5"));
}

/// Whichever is written first, the denial by one replica or the click by another.
#[tokio::test]
async fn a_click_elsewhere_before_the_denial_is_written() {
    let world = World::start_with(|builder| builder.set("/usage/flush_interval", "3s")).await;
    let quick = prompt(world.builder.clone()).start().await;
    let tenant = world.tenant("starter").await;
    early_in_the_minute(25).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "0").await;
    denied(&world.proxy, "crm", tenant, 2).await;
    clicked(&quick, "crm", tenant).await;
    world.database.becomes("SELECT count(*) FROM upgrade_marks WHERE clicked_at IS NOT NULL", "1").await;
    let order = "SELECT string_agg(count || ' ' || clicked_upgrade || ' ' || (created_at > clicked_at), ', ')
                   FROM feature_denial_events";
    world.database.becomes(order, "2 true true").await;
    // And the other way around.
    denied(&quick, "fieldops", tenant, 1).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "2").await;
    clicked(&world.proxy, "fieldops", tenant).await;
    world.database.becomes(&followed(tenant), "crm fieldops").await;
}

/// A click is not lost since Postgres is away, and no number of them is felt there.
#[tokio::test]
async fn clicks_wait_and_no_flood_reaches_postgres() {
    const CLICKS: usize = 3_000;
    let world = World::start_with(|builder| builder.set("/usage/flush_interval", "500ms")).await;
    let tenant = world.tenant("starter").await;
    denied(&world.proxy, "crm", tenant, 1).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "1").await;
    world.postgres_wire.cut().await;
    clicked(&world.proxy, "crm", tenant).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.postgres_wire.restore();
    world.database.becomes(&followed(tenant), "crm").await;

    world.postgres_wire.reset();
    let begun = std::time::Instant::now();
    let body = r#"{"feature":"crm"}"#;
    let mut connection = crate::harness::RawClient::connect(world.proxy.address()).await;
    for _ in 0..CLICKS {
        let request = format!(
            "POST /license/upgrade-click HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(request).await.expect("open");
        assert_eq!(connection.response().await.status, 204);
    }
    let (took, transactions) = (begun.elapsed(), world.postgres_wire.count("upgrade_marks"));
    println!("{CLICKS} clicks in {took:?}: {transactions} transactions");
    assert!(transactions as f64 <= took.as_secs_f64() / 0.5 + 2.0, "{transactions} in {took:?}");

    // Made-up tenants leave nothing behind.
    let strangers: Vec<_> = (0..50).map(|_| Uuid::new_v4()).collect();
    for stranger in &strangers {
        clicked(&world.proxy, "crm", *stranger).await;
    }
    let other = world.tenant("starter").await;
    clicked(&world.proxy, "crm", other).await;
    world.database.becomes(&format!("SELECT count(*) FROM upgrade_marks WHERE tenant_id = '{other}'"), "1").await;
    assert_eq!(world.database.value("SELECT count(*) FROM upgrade_marks").await.as_deref(), Some("2"));
}

/// The end of the process loses none.
#[tokio::test]
async fn clicks_are_written_before_the_end() {
    let mut world =
        World::start_with(|builder| builder.set("/usage/flush_interval", "1h").set("/shutdown/drain", "0s")).await;
    let tenant = world.tenant("starter").await;
    denied(&world.proxy, "crm", tenant, 1).await;
    clicked(&world.proxy, "crm", tenant).await;
    world.proxy.signal("TERM");
    assert_eq!(world.proxy.wait(Duration::from_secs(20)).await.code(), Some(0));
    assert_eq!(world.database.value(&followed(tenant)).await.as_deref(), Some("crm"));
}

/// Whoever turns licensing off by dropping the tables leaves no click behind that is tried for ever.
#[tokio::test]
async fn clicks_after_the_tables_were_dropped() {
    let mut world = World::start_with(|builder| prompt(builder).set("/shutdown/drain", "0s")).await;
    let tenant = world.tenant("starter").await;
    denied(&world.proxy, "crm", tenant, 1).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "1").await;
    world.database.execute("DROP TABLE tenant_licenses, feature_usage CASCADE").await;
    clicked(&world.proxy, "crm", tenant).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tried = world.postgres_wire.count("INSERT INTO upgrade_marks");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((tried, world.postgres_wire.count("INSERT INTO upgrade_marks")), (1, 1));
    let begun = std::time::Instant::now();
    world.proxy.signal("TERM");
    assert_eq!(world.proxy.wait(Duration::from_secs(20)).await.code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(!world.proxy.stderr().contains("could not be written"), "{}", world.proxy.stderr());
}

/// There is no table where licences are in a file; nothing else is different.
#[tokio::test]
async fn clicks_with_licences_in_a_file() {
    let licences = tempfile::tempdir().expect("a directory");
    let (tenant, path) = (Uuid::new_v4(), licences.path().join("licenses.yaml"));
    std::fs::write(&path, format!("tenants: [{{ tenant_id: {tenant}, plan: starter }}]")).expect("written");
    let upstream = crate::harness::Upstream::start();
    let builder = prompt(Proxy::builder(upstream.address()));
    let proxy = builder.set("/licenses", json!({ "source": { "file": { "path": path } } })).start().await;
    denied(&proxy, "crm", tenant, 2).await;
    clicked(&proxy, "crm", tenant).await;
    assert_eq!(world::get(&proxy, "/billing/upgrade?feature=crm", tenant).await.status, 200);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let metrics = proxy.metrics().await;
    let names = ["dotmac_denial_events_pending", "dotmac_denial_events_dropped_total", "dotmac_store_errors_total"];
    assert_eq!(names.map(|name| metrics.sum(name)), [0.0; 3]);
    assert!(!proxy.stderr().contains("\"level\":\"ERROR\""), "{}", proxy.stderr());
}

/// Whoever is denied, clicks and buys; whatever the way in which it is sold.
#[tokio::test]
async fn an_upgrade_marks_the_denials_that_it_answers() {
    let allow = json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } });
    let world = World::start_with(|builder| prompt(builder).set("/upgrade", allow)).await;
    let upgraded = |tenant: Uuid| {
        format!(
            "SELECT coalesce(string_agg(feature_name, ' ' ORDER BY feature_name), '') FROM feature_denial_events
              WHERE tenant_id = '{tenant}' AND upgraded_at BETWEEN minute AND now()"
        )
    };
    for (way, expected) in [("api", "crm"), ("set-plan", "crm"), ("grant", "fieldops")] {
        let tenant = world.tenant("starter").await;
        for feature in ["crm", "fieldops"] {
            denied(&world.proxy, feature, tenant, 1).await;
        }
        let there = format!("SELECT count(*) FROM feature_denial_events WHERE tenant_id = '{tenant}'");
        world.database.becomes(&there, "2").await;
        // One of each kind waits still.
        let id = tenant.to_string();
        let (own, owner) = (("X-Tenant-ID", id.as_str()), ("X-User-Role", "owner"));
        match way {
            "api" => {
                let body = r#"{"new_plan":"professional"}"#;
                let sold = post(&world.proxy, "/license/upgrade", &[own, owner, JSON], body).await;
                assert_eq!(sold.status, 200, "{}", sold.text());
            }
            way => {
                let what = if way == "grant" { "fieldops" } else { "professional" };
                let ended =
                    world.builder.run(&["license", way, &id, what, "--reason", "sold", "--actor", "sales"]).await;
                assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
            }
        }
        world.database.becomes(&upgraded(tenant), expected).await;
        let path = format!("/api/v1/{expected}");
        let deadline = std::time::Instant::now() + super::LIMIT;
        while world::get(&world.proxy, &path, tenant).await.status != 200 {
            assert!(std::time::Instant::now() < deadline, "{way}: not sold");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // What was denied and not written before the upgrade is marked as well.
    let late = world.builder.clone().set("/usage/flush_interval", "2s").start().await;
    let tenant = world.tenant("starter").await;
    denied(&late, "crm", tenant, 1).await;
    let ended = world
        .builder
        .run(&["license", "set-plan", &tenant.to_string(), "professional", "--reason", "sold", "--actor", "sales"])
        .await;
    assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    world.database.becomes(&upgraded(tenant), "crm").await;
    ask(&late, "GET", "/api/v1/network", tenant, 1, 200).await;
}

/// A click is taken from a browser's page for a tenant of no licence, and where no rule says who that is.
#[tokio::test]
async fn whoever_has_no_licence_clicks_too() {
    let world = World::start_with(prompt).await;
    let tenant = Uuid::new_v4();
    denied(&world.proxy, "crm", tenant, 1).await;
    world.database.becomes("SELECT count(*) FROM feature_denial_events", "1").await;
    let id = tenant.to_string();
    assert_eq!(click(&world.proxy, "crm", &[("X-Tenant-ID", &id), JSON]).await.status, 204);
    world.database.becomes(&followed(tenant), "crm").await;
    world.database.becomes(CONVERSION, "1").await;
}
