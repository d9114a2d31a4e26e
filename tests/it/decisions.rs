//! What is answered to whom: plans, features, validity, modes and formats, with exact bodies.

use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::world::{FEATURES, PLANS};
use crate::harness::{License, RawClient, World, client};

#[tokio::test]
async fn every_plan_and_feature_with_the_exact_body() {
    let world = World::start().await;
    for (plan, included) in PLANS {
        let tenant = world.tenant(plan).await;
        for feature in FEATURES {
            let target = format!("/api/v1/{feature}/items?page=2");
            let id = format!("{plan}-{feature}");
            let tenant_header = tenant.to_string();
            let headers = [("X-Tenant-ID", tenant_header.as_str()), ("X-Request-ID", &id)];
            let before = world.upstream.count();
            let answer = client::request(world.proxy.address(), "GET", &target, &headers).await;
            if included.contains(&feature) {
                assert_eq!(answer.status, 200, "{plan} {feature}: {}", answer.text());
                let seen = world.upstream.last();
                assert_eq!(seen.target, target);
                assert_eq!(seen.header("X-License-Plan"), Some(plan));
                assert_eq!(seen.headers_named("X-Tenant-ID"), [tenant_header.as_str()]);
                continue;
            }
            assert_eq!(answer.status, 402, "{plan} {feature}");
            assert_eq!(world.upstream.count(), before, "{plan} {feature} reached the backend");
            let available: Vec<&str> =
                PLANS.iter().filter(|(_, all)| all.contains(&feature)).map(|(name, _)| *name).collect();
            let expected = format!(
                "{{\"error\":\"Feature not available\",\"feature\":\"{feature}\",\
                 \"upgrade_url\":\"/billing/upgrade?feature={feature}\",\"reason\":\"feature_not_in_plan\",\
                 \"message\":\"The plan {plan} does not include {feature}. It is included in {}.\",\
                 \"plan\":\"{plan}\",\"required_plan\":\"{}\",\"available_in\":{},\"request_id\":\"{id}\"}}",
                available.join(", "),
                available[0],
                json!(available),
            );
            assert_eq!(answer.text(), expected);
            assert_eq!(answer.header("Content-Type"), Some("application/json"));
            assert_eq!(answer.header("Cache-Control"), Some("no-store"));
            assert_eq!(answer.header("X-Request-ID"), Some(id.as_str()));
            assert_eq!(
                answer.header("Proxy-Status"),
                Some("dotmac-license-proxy; error=http_request_denied; details=\"feature_not_in_plan\"")
            );
        }
    }
    let metrics = world.proxy.metrics().await;
    let denials = |feature| {
        metrics.value("dotmac_feature_denials_total", &[("feature", feature), ("reason", "feature_not_in_plan")])
    };
    assert_eq!(FEATURES.map(denials), [Some(1.0), Some(0.0), Some(1.0), Some(2.0), Some(1.0)]);
}

/// The row is judged by the clock at each request, and every 402 names its reason.
#[tokio::test]
async fn validity_and_missing_licences() {
    let world = World::start().await;
    for (valid_from, valid_until, auto_renew, expected) in [
        ("-1 day", "1 day", false, None),
        ("4 minutes", "1 day", false, None),
        ("6 minutes", "1 day", false, Some("license_not_yet_valid")),
        ("-2 days", "-1 second", false, Some("license_expired")),
        ("-2 days", "-1 day", true, None),
        ("-9 days", "-4 days", true, Some("license_expired")),
        ("1 day", "-1 day", false, Some("license_not_yet_valid")),
    ] {
        let tenant = Uuid::new_v4();
        let license = License { valid_from, valid_until, auto_renew, ..License::valid(tenant, "enterprise") };
        world.insert(license).await;
        let answer = world.get("/api/v1/crm", tenant).await;
        let reason = (answer.status == 402).then(|| answer.json()["reason"].as_str().map(str::to_owned)).flatten();
        assert_eq!(reason.as_deref(), expected, "{valid_from} to {valid_until}, auto_renew {auto_renew}");
    }
    let in_grace =
        world.upstream.requests().iter().filter_map(|r| r.header("X-License-Grace-Until").map(str::to_owned)).count();
    assert_eq!(in_grace, 1);

    let nobody = world.get("/api/v1/crm", Uuid::new_v4()).await;
    assert_eq!((nobody.status, &nobody.json()["reason"]), (402, &json!("no_license")));
    assert_eq!(nobody.json()["required_plan"], "professional");
}

#[tokio::test]
async fn a_licence_ends_on_the_dot_while_it_lies_in_memory() {
    let world = World::start().await;
    let tenant = Uuid::new_v4();
    let license =
        License { valid_until: "1500 milliseconds", auto_renew: false, ..License::valid(tenant, "enterprise") };
    world.insert(license).await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let answer = world.get("/api/v1/crm", tenant).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (402, &json!("license_expired")));
    assert_eq!(world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id"), 1, "the clock needs no store");
}

#[tokio::test]
async fn who_asks() {
    let world = World::start().await;
    let tenant = world.tenant("enterprise").await.to_string();
    let ask = async |target: &str, headers: &[(&str, &str)]| {
        client::request(world.proxy.address(), "GET", target, headers).await
    };
    let spellings = [
        tenant.to_uppercase(),
        tenant.replace('-', ""),
        format!("{{{tenant}}}"),
        format!("urn:uuid:{tenant}"),
        format!("  {tenant} "),
    ];
    for spelling in &spellings {
        assert_eq!(ask("/api/v1/crm", &[("X-Tenant-ID", spelling)]).await.status, 200, "{spelling}");
        assert_eq!(world.upstream.last().headers_named("X-Tenant-ID"), [tenant.as_str()], "{spelling}");
    }

    let other = Uuid::new_v4().to_string();
    let both = format!("{tenant}, {tenant}");
    for (headers, status, reason) in [
        (&[][..], 401, "tenant_missing"),
        (&[("X-Tenant-ID", "")], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", "acme")], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", &both)], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", &tenant), ("x-tenant-id", &other)], 400, "tenant_invalid"),
        (&[("X-Tenant-ID", &tenant), ("X_Tenant_ID", &other)], 400, "request_malformed"),
        (&[("X-Tenant-ID", &tenant), ("Connection", "close, X-Tenant-ID")], 400, "request_malformed"),
    ] {
        let before = world.upstream.count();
        let answer = ask("/api/v1/crm", headers).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)), "{headers:?}");
        assert_eq!(world.upstream.count(), before, "{headers:?} reached the backend");
    }
    assert!(ask("/api/v1/crm", &[]).await.header("WWW-Authenticate").is_some());

    // On core and unmatched routes the tenant is optional, and nothing is looked up.
    world.postgres_wire.reset();
    for target in ["/api/v1/network/devices", "/nowhere"] {
        let forged =
            [("X-License-Plan", "enterprise"), ("X-License-Features", "crm"), ("X_License_Plan", "enterprise")];
        assert_eq!(ask(target, &forged).await.status, 200, "{target}");
        let seen = world.upstream.last();
        assert!(seen.headers.iter().all(|(name, _)| !name.to_lowercase().replace('_', "-").starts_with("x-license")));
        assert_eq!(ask(target, &[("X-Tenant-ID", &spellings[0])]).await.status, 200);
        assert_eq!(world.upstream.last().header("X-Tenant-ID"), Some(tenant.as_str()));
        assert_eq!(ask(target, &[("X-Tenant-ID", "acme")]).await.status, 200);
        assert_eq!(world.upstream.last().header("X-Tenant-ID"), None);
        assert_eq!(ask(target, &[("X-Tenant-ID", &tenant), ("X-Tenant-ID", &other)]).await.status, 400);
    }
    assert_eq!(world.postgres_wire.messages(), 0);
}

/// From a peer outside `trusted_proxies` nothing that says who asks or where from is believed.
#[tokio::test]
async fn strangers_are_not_believed() {
    let world = World::start_with(|builder| builder.set("/trusted_proxies", json!(["10.0.0.0/8"]))).await;
    let tenant = world.tenant("enterprise").await.to_string();
    let headers = [
        ("X-Tenant-ID", tenant.as_str()),
        ("X-Forwarded-For", "10.1.2.3"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.example"),
        ("Forwarded", "for=10.1.2.3"),
        ("X-Real-IP", "10.1.2.3"),
    ];
    let answer = client::request(world.proxy.address(), "GET", "/api/v1/crm", &headers).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (401, &json!("tenant_missing")));
    let answer = client::request(world.proxy.address(), "GET", "/api/v1/network", &headers).await;
    assert_eq!(answer.status, 200);
    let seen = world.upstream.last();
    assert_eq!(seen.headers_named("X-Forwarded-For"), ["127.0.0.1"]);
    assert_eq!(seen.headers_named("X-Forwarded-Proto"), ["http"]);
    assert_ne!(seen.headers_named("X-Forwarded-Host"), ["evil.example"]);
    for name in ["X-Tenant-ID", "Forwarded", "X-Real-IP"] {
        assert_eq!(seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn off_and_shadow_let_everything_through_and_count() {
    for mode in ["off", "shadow"] {
        let world = World::start_with(|builder| builder.set("/enforcement/mode", mode)).await;
        let tenant = world.tenant("starter").await;
        assert_eq!(world.get("/api/v1/crm/x", tenant).await.status, 200, "{mode}");
        assert_eq!(world.get("/api/v1/crm/x%0a", tenant).await.status, 200, "{mode}: refusals of the path too");
        assert_eq!(world.upstream.last().target, "/api/v1/crm/x%0a");
        let nobody = client::request(world.proxy.address(), "GET", "/api/v1/crm", &[("X-Tenant-ID", "acme")]).await;
        assert_eq!(nobody.status, 200, "{mode}: refusals of the tenant too");
        assert_eq!(world.upstream.last().header("X-Tenant-ID"), Some("acme"), "unchanged");
        let broken = client::request(world.proxy.address(), "GET", "/", &[("Content-Length", "1, 1")]).await;
        assert_eq!(broken.status, 400, "{mode}: framing is refused in any mode");

        let metrics = world.proxy.metrics().await;
        let shadow =
            |feature, reason| metrics.value("dotmac_shadow_denials_total", &[("feature", feature), ("reason", reason)]);
        let looked_up = if mode == "off" { 0.0 } else { 1.0 };
        assert_eq!(shadow("crm", "feature_not_in_plan"), Some(looked_up), "{mode}");
        assert_eq!(shadow("crm", "tenant_invalid"), Some(1.0), "{mode}");
        assert_eq!(shadow("", "request_malformed"), Some(1.0), "{mode}");
        assert_eq!(metrics.sum("dotmac_feature_denials_total"), 1.0, "{mode}: the framing");
    }
}

#[tokio::test]
async fn a_tenant_outside_the_rollout_is_shadowed() {
    let (inside, outside) = (Uuid::new_v4(), Uuid::new_v4());
    let rollout = json!({ "percent": 0, "include": [inside] });
    let world = World::start_with(|builder| builder.set("/enforcement/rollout", rollout)).await;
    for tenant in [inside, outside] {
        world.insert(License::valid(tenant, "starter")).await;
    }
    assert_eq!(world.get("/api/v1/crm", inside).await.status, 402);
    assert_eq!(world.get("/api/v1/crm", outside).await.status, 200);
}

#[tokio::test]
async fn problem_details_head_and_grpc() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await.to_string();
    let headers = [("X-Tenant-ID", tenant.as_str()), ("Accept", "application/problem+json, application/json;q=0.5")];
    let answer = client::request(world.proxy.address(), "GET", "/api/v1/crm", &headers).await;
    let body = answer.json();
    assert_eq!((answer.status, answer.header("Content-Type")), (402, Some("application/problem+json")));
    assert_eq!(
        (&body["title"], &body["status"], &body["reason"]),
        (&json!("Feature not available"), &json!(402), &json!("feature_not_in_plan"))
    );
    assert_eq!(body["detail"], body["message"]);

    let plain = world.get("/api/v1/crm", tenant.parse().expect("a UUID")).await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let request = |method: &str| format!("{method} /api/v1/crm HTTP/1.1\r\nHost: a\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    connection.send(request("HEAD")).await.expect("sent");
    let head = connection.head_response().await;
    assert_eq!((head.status, head.header("Content-Type")), (402, Some("application/json")));
    assert_eq!(head.header("Content-Length"), plain.header("Content-Length"));
    connection.send(request("GET")).await.expect("sent");
    assert_eq!(connection.response().await.status, 402, "a HEAD without a body leaves the connection usable");

    let headers = [("X-Tenant-ID", tenant.as_str()), ("Content-Type", "application/grpc")];
    let grpc = client::request(world.proxy.address(), "GET", "/api/v1/crm", &headers).await;
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("7")));
}

#[tokio::test]
async fn statuses_and_urls_as_configured() {
    let world = World::start_with(|builder| {
        builder
            .set("/deny/upgrade_url", "https://shop.example/plans?need={feature}")
            .set("/deny/status", json!({ "feature_not_in_plan": 403 }))
    })
    .await;
    let tenant = world.tenant("starter").await;
    let answer = world.get("/api/v1/crm", tenant).await;
    let expected: Value = json!("https://shop.example/plans?need=crm");
    assert_eq!((answer.status, &answer.json()["upgrade_url"]), (403, &expected));
}
