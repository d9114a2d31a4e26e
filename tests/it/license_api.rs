//! The licence API: what a tenant sees of its licence is what the gate does.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::client;
use crate::harness::{License, Proxy, RawClient, RawResponse, World, world};

async fn ask(proxy: &Proxy, method: &str, target: &str, headers: &[(&str, &str)]) -> RawResponse {
    client::request(proxy.address(), method, target, headers).await
}

async fn license(proxy: &Proxy, tenant: Uuid) -> RawResponse {
    world::get(proxy, "/license", tenant).await
}

#[tokio::test]
async fn the_document_and_its_entity_tag() {
    let world = World::start().await;
    let tenant = Uuid::new_v4();
    let usage_limits = json!({ "tickets": 1000 });
    world.insert(License { usage_limits, ..License::valid(tenant, "professional") }).await;
    let usage = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
         SELECT '{tenant}', feature, count, date_trunc('month', timezone('utc', now()))::date + day
           FROM (VALUES ('tickets', 200, 0), ('tickets', 45, 0), ('crm', 7, 0), ('tickets', 1000, -1)) AS u(feature, count, day)"
    );
    world.database.execute(&usage).await;

    let answer = license(&world.proxy, tenant).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (name, value) in
        [("Content-Type", "application/json"), ("Cache-Control", "no-cache, private"), ("Vary", "x-tenant-id")]
    {
        assert_eq!(answer.header(name), Some(value));
    }
    let document = answer.json();
    assert_eq!(
        (&document["planTier"], &document["features"], &document["usageLimits"], &document["currentUsage"]),
        (
            &json!("professional"),
            &json!({ "analytics": true, "crm": true, "projects": true, "tickets": true }),
            &json!({ "tickets": 1000 }),
            &json!({ "crm": 7, "tickets": 245 })
        )
    );
    assert_eq!(document["autoRenew"], json!(true));
    assert!(document["revision"].as_i64().is_some_and(|revision| revision > 0), "{document}");
    let row =
        "SELECT to_char(valid_from, 'YYYY-MM-DD\"T\"HH24:MI:SS'), to_char(valid_until, 'YYYY-MM-DD\"T\"HH24:MI:SS'),
                      to_char(valid_until + interval '72 hours', 'YYYY-MM-DD\"T\"HH24:MI:SS')
                 FROM tenant_licenses WHERE tenant_id = $1";
    let row = world.database.connect().await.query_one(row, &[&tenant]).await.expect("a row");
    for (i, member) in ["validFrom", "validUntil", "graceUntil"].into_iter().enumerate() {
        let (told, stored) = (document[member].as_str().expect("a time"), row.get::<_, &str>(i));
        assert!(told.starts_with(stored) && told.ends_with('Z'), "{member}: {told} for {stored}");
    }

    let tag = answer.header("ETag").expect("an entity tag").to_owned();
    assert_eq!(
        ask(&world.proxy, "GET", "/api/v1/license?x=1", &[("X-Tenant-ID", &tenant.to_string())]).await.body,
        answer.body
    );
    let head = ask(&world.proxy, "HEAD", "/license", &[("X-Tenant-ID", &tenant.to_string())]).await;
    assert_eq!((head.status, head.header("ETag")), (200, Some(&*tag)));
    assert_eq!(head.header("Content-Length"), Some(&*answer.body.len().to_string()));

    let if_none_match = async |value: &str| {
        let headers = [("X-Tenant-ID", &*tenant.to_string()), ("If-None-Match", value)];
        ask(&world.proxy, "GET", "/license", &headers).await
    };
    for value in [&*tag, "*", &format!("\"other\", W/{tag}")] {
        let answer = if_none_match(value).await;
        assert_eq!((answer.status, answer.header("ETag"), answer.body.len()), (304, Some(&*tag), 0), "{value}");
        assert_eq!(answer.header("Cache-Control"), Some("no-cache, private"));
        assert_eq!((answer.header("Vary"), answer.header("Content-Length")), (Some("x-tenant-id"), None));
    }
    assert_eq!(if_none_match("\"other\"").await.status, 200);
    world
        .database
        .execute(&format!("UPDATE tenant_licenses SET plan_tier = 'other' WHERE tenant_id = '{tenant}'"))
        .await;
    redis::cmd("FLUSHALL").exec_async(&mut world.redis.connect().await).await.expect("OK");
    let mut changed = if_none_match(&tag).await;
    for _ in 0..100 {
        if changed.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        changed = if_none_match(&tag).await;
    }
    assert_eq!((changed.status, &changed.json()["planTier"]), (200, &json!("other")));
    assert_eq!(world.upstream.count(), 0, "nothing of this is the backend's");
}

/// Whatever the document says is there passes, and all else is denied.
#[tokio::test]
async fn what_is_seen_is_what_is_enforced() {
    let world = World::start().await;
    let mut tenants = Vec::new();
    for (plan, valid_from, valid_until, auto_renew) in [
        ("starter", "-1 day", "30 days", true),
        ("enterprise", "-1 day", "30 days", false),
        ("enterprise", "-1 day", "-1 minute", false),
        ("enterprise", "-10 days", "-71 hours", true),
        ("enterprise", "-10 days", "-73 hours", true),
        ("enterprise", "4 minutes", "30 days", true),
        ("enterprise", "6 minutes", "30 days", true),
        ("unheard of", "-1 day", "infinity", true),
    ] {
        let tenant = Uuid::new_v4();
        if valid_until == "infinity" {
            world.insert(License { plan, ..License::valid(tenant, plan) }).await;
            let forever = format!("UPDATE tenant_licenses SET valid_until = 'infinity' WHERE tenant_id = '{tenant}'");
            world.database.execute(&forever).await;
        } else {
            world.insert(License { valid_from, valid_until, auto_renew, ..License::valid(tenant, plan) }).await;
        }
        tenants.push((tenant, plan, valid_until));
    }
    let trial = world.tenant("enterprise").await;
    let ends = format!(
        "UPDATE tenant_licenses SET features_until = '{{\"crm\": \"2020-01-01T00:00:00Z\"}}' WHERE tenant_id = '{trial}'"
    );
    world.database.execute(&ends).await;
    tenants.push((trial, "a trial that is over", "30 days"));
    for (tenant, plan, until) in tenants {
        let document = license(&world.proxy, tenant).await.json();
        for feature in world::FEATURES {
            let passes = world.get(&format!("/api/v1/{feature}"), tenant).await.status == 200;
            let seen = document["features"].get(feature) == Some(&Value::Bool(true));
            assert_eq!(seen, passes, "{plan} until {until}: {feature}, {document}");
        }
        if until == "infinity" {
            assert_eq!((&document["validUntil"], &document["graceUntil"]), (&Value::Null, &Value::Null));
        }
    }
}

#[tokio::test]
async fn who_may_not_see_one_is_told_why() {
    let world = World::start_with(|builder| builder.set("/licenses/lookup_deadline", "300ms")).await;
    let tenant = world.tenant("starter").await.to_string();
    let stranger = Uuid::new_v4().to_string();
    for (headers, status, reason) in [
        (&[][..], 401, "tenant_missing"),
        (&[("X-Tenant-ID", "acme")], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", &*tenant), ("X-Tenant-ID", &*stranger)], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", &*stranger)], 402, "no_license"),
    ] {
        let answer = ask(&world.proxy, "GET", "/license", headers).await;
        let body = answer.json();
        assert_eq!((answer.status, body["reason"].as_str()), (status, Some(reason)), "{headers:?}");
        assert_eq!((body["feature"].clone(), body["upgrade_url"].clone()), (Value::Null, Value::Null));
        assert_eq!(answer.header("Cache-Control"), Some("no-store"));
        let accept = ("Accept", "application/problem+json");
        let headers: Vec<_> = headers.iter().copied().chain([accept]).collect();
        let problem = ask(&world.proxy, "GET", "/license", &headers).await;
        assert_eq!(problem.header("Content-Type"), Some("application/problem+json"));
        let line = world.proxy.wait_for_log(|line| line["reason"] == reason).await;
        assert_eq!((&line["status"], &line["decision"]), (&status.into(), &"answered".into()));
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = ask(&world.proxy, method, "/license", &[("X-Tenant-ID", &*tenant)]).await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")), "{method}");
        assert_eq!(answer.json()["reason"], "method_not_allowed");
    }
    assert_eq!(world.upstream.count(), 0);
    // Another spelling of the path is the backend's.
    for target in ["/license/", "/License", "//license", "/licens%65"] {
        assert_eq!(ask(&world.proxy, "GET", target, &[("X-Tenant-ID", &*tenant)]).await.status, 200, "{target}");
    }
    assert_eq!(world.upstream.count(), 4);

    let line = {
        assert_eq!(license(&world.proxy, tenant.parse().expect("a UUID")).await.status, 200);
        world.proxy.wait_for_log(|line| line["status"] == 200 && line["path"] == "/license").await
    };
    assert_eq!(
        (&line["decision"], &line["tenant_id"], &line["plan"], &line["layer"]),
        (&"answered".into(), &json!(tenant), &"starter".into(), &"source".into())
    );

    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let outage = license(&world.proxy, Uuid::new_v4()).await;
    assert_eq!((outage.status, outage.header("Retry-After")), (503, Some("1")));
    let known = license(&world.proxy, tenant.parse().expect("a UUID")).await;
    assert_eq!((known.status, &known.json()["planTier"]), (200, &json!("starter")), "last known");
}

/// Usage is asked for when somebody looks, and not for each of them.
#[tokio::test]
async fn usage_costs_one_query_every_few_seconds() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let asked = || world.postgres_wire.count("FROM feature_usage");
    let request = format!("GET /license HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for _ in 0..50 {
        connection.send(&request).await.expect("open");
        assert_eq!(connection.response().await.json()["currentUsage"], json!({}));
    }
    assert_eq!(asked(), 1);
    for _ in 0..5 {
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    }
    assert_eq!(asked(), 1, "the gate asks for none");
    world.database.execute("DROP TABLE feature_usage CASCADE").await;
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    connection.send(&request).await.expect("open");
    assert_eq!(connection.response().await.json()["currentUsage"], json!({}), "the last that was known");
    let other = world.tenant("starter").await;
    let answer = license(&world.proxy, other).await;
    assert_eq!((answer.status, &answer.json()["currentUsage"]), (200, &Value::Null));
}

/// It can be put elsewhere, and turned off.
#[tokio::test]
async fn paths_are_configured() {
    let world =
        World::start_with(|builder| builder.set("/api", json!({ "paths": ["/my/license"], "websocket": [] }))).await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/my/license", tenant).await.json()["planTier"], "starter");
    assert_eq!(world.upstream.count(), 0);
    assert_eq!(world.get("/my/license/plans", tenant).await.json()["plans"][0]["name"], "starter");
    for target in ["/license", "/license/plans", "/api/v1/license", "/ws/license"] {
        assert_eq!(world.get(target, tenant).await.status, 200);
    }
    assert_eq!(world.upstream.count(), 4, "the backend's");
}

/// The clock by which a licence ends is told with every answer (RFC 9110 section 6.6.1): a page has no other way to know it.
#[tokio::test]
async fn every_answer_tells_the_time() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await.to_string();
    let own = ("X-Tenant-ID", &*tenant);
    let tag = ask(&world.proxy, "GET", "/license", &[own]).await.header("ETag").expect("an entity tag").to_owned();
    for (method, target, headers, status) in [
        ("GET", "/license", vec![own], 200),
        ("HEAD", "/license", vec![own], 200),
        ("GET", "/license", vec![own, ("If-None-Match", &*tag)], 304),
        ("GET", "/license/plans", vec![own], 200),
        ("GET", "/license/plans", vec![own, ("If-None-Match", "*")], 304),
        ("GET", "/license", vec![], 401),
        ("GET", "/api/v1/crm", vec![own], 402),
        ("GET", "/api/v1/crm", vec![own, ("Accept", "application/problem+json")], 402),
    ] {
        // Dates are in whole seconds, and one may be kept for the rest of its second.
        let begun = Timestamp::now().as_second() - 1;
        let answer = ask(&world.proxy, method, target, &headers).await;
        let date = answer.header("Date").expect("a date");
        let told = jiff::fmt::rfc2822::parse(date).unwrap_or_else(|error| panic!("{date}: {error}"));
        let told = told.timestamp().as_second();
        assert_eq!(answer.status, status, "{method} {target}");
        assert!((begun..=Timestamp::now().as_second()).contains(&told), "{method} {target}: {date}");
        assert!(date.ends_with(" GMT"), "{date}");
    }
}

/// What is sold is in the configuration: it is told while no store answers, and costs none of them anything.
#[tokio::test]
async fn plans_are_told_without_any_store() {
    let allow = json!({ "header": "X-User-Role", "values": ["owner"] });
    let world = World::start_with(|builder| {
        builder.set("/plans/0/limits", json!({ "tickets": 100 })).set("/upgrade", json!({ "allow": allow }))
    })
    .await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    world.postgres_wire.reset();
    world.redis_wire.reset();
    let tenant = Uuid::new_v4().to_string();
    let own = ("X-Tenant-ID", &*tenant);
    let answer = ask(&world.proxy, "GET", "/license/plans", &[own]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (name, value) in
        [("Content-Type", "application/json"), ("Cache-Control", "no-cache, private"), ("Vary", "x-tenant-id")]
    {
        assert_eq!(answer.header(name), Some(value));
    }
    assert!(answer.header("X-Request-ID").is_some());
    let plans = world::PLANS.map(|(name, features)| {
        let limits = if name == "starter" { json!({ "tickets": 100 }) } else { json!({}) };
        json!({ "name": name, "features": features, "limits": limits })
    });
    let document = json!({
        "plans": plans,
        "upgradeUrl": "/billing/upgrade?feature={feature}",
        "upgrade": { "mode": "apply", "downgrade": false },
    });
    assert_eq!(answer.json(), document);

    let tag = answer.header("ETag").expect("an entity tag").to_owned();
    for (method, headers, status, length) in [
        ("GET", vec![own], 200, Some(answer.body.len())),
        ("HEAD", vec![own], 200, Some(answer.body.len())),
        ("GET", vec![own, ("If-None-Match", &*tag)], 304, None),
        ("HEAD", vec![own, ("If-None-Match", "*")], 304, None),
        ("GET", vec![own, ("If-None-Match", "\"other\"")], 200, Some(answer.body.len())),
    ] {
        let again = ask(&world.proxy, method, "/api/v1/license/plans?x=1", &headers).await;
        assert_eq!((again.status, again.header("ETag")), (status, Some(&*tag)), "{method} {headers:?}");
        assert_eq!(again.header("Content-Length"), length.map(|length| length.to_string()).as_deref());
        assert_eq!(
            (again.header("Cache-Control"), again.header("Vary")),
            (Some("no-cache, private"), Some("x-tenant-id"))
        );
    }
    for (headers, status, reason) in [
        (&[][..], 401, "tenant_missing"),
        (&[("X-Tenant-ID", "acme")], 400, "tenant_invalid"),
        (&[own, ("X-Tenant-ID", "00000000-0000-4000-8000-000000000001")], 400, "tenant_invalid"),
    ] {
        let refused = ask(&world.proxy, "GET", "/license/plans", headers).await;
        assert_eq!((refused.status, refused.json()["reason"].as_str()), (status, Some(reason)), "{headers:?}");
        assert_eq!(refused.header("Cache-Control"), Some("no-store"));
        let line = world.proxy.wait_for_log(|line| line["reason"] == reason).await;
        assert_eq!((&line["path"], &line["decision"]), (&json!("/license/plans"), &json!("answered")));
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let refused = ask(&world.proxy, method, "/license/plans", &[own]).await;
        assert_eq!((refused.status, refused.header("Allow")), (405, Some("GET, HEAD")), "{method}");
    }
    assert_eq!(world.upstream.count(), 0);

    world.postgres_wire.restore();
    world.redis_wire.restore();
    for _ in 0..50 {
        assert_eq!(ask(&world.proxy, "GET", "/license/plans", &[own]).await.status, 200);
    }
    let asked_of = |table: &str| world.postgres_wire.count(table);
    assert_eq!((asked_of("tenant_licenses"), asked_of("feature_usage"), world.redis_wire.count(&tenant)), (0, 0, 0));
    assert_eq!(world.proxy.metric("dotmac_license_cache_requests").await, 0.0);
}

/// They are those of the configuration in use.
#[tokio::test]
async fn plans_follow_the_configuration() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let first = world.get("/license/plans", tenant).await;
    assert_eq!((first.status, &first.json()["upgrade"]), (200, &Value::Null), "nobody upgrades here");
    let text = std::fs::read(world.proxy.config_file()).expect("the configuration is there");
    let mut config: Value = serde_json::from_slice(&text).expect("the harness writes JSON");
    config["plans"][0]["features"] = json!(["tickets", "crm"]);
    config["deny"] = json!({ "upgrade_url": "https://shop.example.com/{feature}" });
    config["upgrade"] =
        json!({ "mode": "request", "downgrade": true, "allow": { "header": "X-User-Role", "values": ["owner"] } });
    std::fs::write(world.proxy.config_file(), config.to_string()).expect("the directory is writable");
    let tag = first.header("ETag").expect("an entity tag");
    let begun = Instant::now();
    let changed = loop {
        let headers = [("X-Tenant-ID", &*tenant.to_string()), ("If-None-Match", tag)];
        let answer = ask(&world.proxy, "GET", "/license/plans", &headers).await;
        if answer.status == 200 {
            break answer;
        }
        assert_eq!(answer.status, 304);
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let document = changed.json();
    assert_eq!(
        (&document["plans"][0]["features"], &document["upgradeUrl"], &document["upgrade"]),
        (
            &json!(["tickets", "crm"]),
            &json!("https://shop.example.com/{feature}"),
            &json!({ "mode": "request", "downgrade": true })
        )
    );
    assert_ne!(changed.header("ETag"), Some(tag));
}
