//! `explain`: says before a request, or after a complaint, what the gate does with it; and never another thing than it does.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::proxy::Ended;
use crate::harness::{License, World, client, process};

async fn explain(world: &World, arguments: &[&str]) -> Ended {
    world.builder.run(&[&["explain"], arguments].concat()).await
}

async fn explained(world: &World, tenant: &str, method: &str, path: &str) -> (Value, Option<i32>) {
    let mut arguments = vec!["--method", method, "-o", "json", path];
    if !tenant.is_empty() {
        arguments.extend(["--tenant", tenant]);
    }
    let ended = explain(world, &arguments).await;
    let json = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
    (json, ended.status.code())
}

/// For each request: what explain says, and what the proxy does.
#[tokio::test]
async fn it_says_what_is_done() {
    let shadowed = Uuid::new_v4();
    let world = World::start_with(|builder| {
        builder
            .set("/enforcement", json!({ "rollout": { "exclude": [shadowed] } }))
            .set("/routes/rules/-", json!({ "prefix": "/internal", "access": "deny" }))
    })
    .await;
    let starter = world.tenant("starter").await.to_string();
    let enterprise = world.tenant("enterprise").await.to_string();
    let (expired, in_grace, future) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    world.insert(License { valid_until: "-1 day", auto_renew: false, ..License::valid(expired, "enterprise") }).await;
    world.insert(License { valid_until: "-1 hour", ..License::valid(in_grace, "enterprise") }).await;
    world.insert(License { valid_from: "1 day", ..License::valid(future, "enterprise") }).await;
    world.insert(License::valid(shadowed, "starter")).await;
    let (expired, in_grace, future) = (expired.to_string(), in_grace.to_string(), future.to_string());
    let (shadowed, stranger) = (shadowed.to_string(), Uuid::new_v4().to_string());
    for (tenant, method, path, decision, reason) in [
        (&*starter, "GET", "/api/v1/tickets/7?page=2", "allowed", None),
        (&*starter, "GET", "/api/v1/crm/customers", "denied", Some("feature_not_in_plan")),
        (&*starter, "POST", "/api/v1/crm/customers", "denied", Some("feature_not_in_plan")),
        (&*enterprise, "GET", "/api/v1/crm/customers", "allowed", None),
        (&*starter, "GET", "/api/v1/%63rm", "denied", Some("feature_not_in_plan")),
        (&*starter, "GET", "/api/v1/crm/%", "denied", Some("request_malformed")),
        (&*expired, "GET", "/api/v1/crm", "denied", Some("license_expired")),
        (&*in_grace, "GET", "/api/v1/crm", "allowed", None),
        (&*future, "GET", "/api/v1/crm", "denied", Some("license_not_yet_valid")),
        (&*stranger, "GET", "/api/v1/crm", "denied", Some("no_license")),
        (&*shadowed, "GET", "/api/v1/crm", "shadowed", Some("feature_not_in_plan")),
        ("", "GET", "/api/v1/crm", "denied", Some("tenant_missing")),
        (&*starter, "GET", "/api/v1/network/devices", "open", None),
        ("", "GET", "/nowhere", "open", None),
        (&*enterprise, "GET", "/internal/metrics", "denied", Some("route_denied")),
        (&*starter, "GET", "/license?x=1", "answered", None),
    ] {
        let (said, code) = explained(&world, tenant, method, path).await;
        let case = format!("{method} {path} of {tenant:?}: {said:#}");
        assert_eq!((&said["decision"], &said["reason"]), (&json!(decision), &json!(reason)), "{case}");
        assert_eq!(code, Some(if decision == "denied" { 3 } else { 0 }), "{case}");

        let headers = [("X-Tenant-ID", tenant)];
        let headers = if tenant.is_empty() { &[][..] } else { &headers[..] };
        let done = client::request(world.proxy.address(), method, path, headers).await;
        let status = said["status"].as_u64().unwrap_or(200);
        assert_eq!(u64::from(done.status), status, "{case}");
        if decision == "denied" {
            let mut body = done.json();
            body.as_object_mut().expect("an object").remove("request_id");
            assert_eq!(said["answer"], body, "{case}");
        }
        let logged = world.proxy.wait_for_log(|line| line["request_id"].as_str() == done.header("X-Request-ID"));
        if let Some(id) = done.header("X-Request-ID") {
            let line = logged.await;
            assert_eq!((&line["decision"], &line["reason"]), (&said["decision"], &said["reason"]), "{id}: {case}");
            assert_eq!(line["rule"], said["rules"].get(0).map_or(Value::Null, |rule| rule["rule"].clone()), "{case}");
            assert_eq!(line["mode"], said["mode"]["applied"], "{case}");
        }
    }
}

#[tokio::test]
async fn it_names_rule_licence_mode_and_what_would_change_it() {
    let world = World::start_with(|builder| builder.set("/enforcement/rollout", json!({ "percent": 99.5 }))).await;
    let tenant = "00000000-0000-4000-8000-000000000007";
    world.insert_license(tenant.parse().expect("a UUID"), "starter", json!({ "tickets": true })).await;

    let (first, _) = explained(&world, tenant, "GET", "/api/v1/crm").await;
    assert_eq!(
        first["rules"],
        json!([{ "rule": "prefix /api/v1/crm", "key": "routes.rules[3]", "demands": "feature crm" }])
    );
    assert_eq!(first["license"]["layer"], "source");
    let (second, _) = explained(&world, tenant, "GET", "/api/v1/crm").await;
    assert_eq!(second["license"]["layer"], "redis");
    assert!(second["license"]["age_ms"].as_u64() >= Some(1), "{second:#}");
    assert_eq!(second["license"]["revision"], first["license"]["revision"]);
    let because = second["mode"]["because"].as_str().unwrap_or_default();
    assert!(
        because.starts_with("enforcement.mode is enforce, and the rollout is at 99.5 %, and the tenant's place is"),
        "{because}"
    );
    let commands: Vec<_> =
        second["remedies"].as_array().expect("a list").iter().map(|r| r["command"].clone()).collect();
    let command = |text: &str| json!(format!("dotmac-license-proxy license {text} --reason '…'"));
    let expected = [
        command(&format!("set-plan {tenant} professional")),
        command(&format!("set-plan {tenant} enterprise")),
        command(&format!("grant {tenant} crm --for 4h")),
    ];
    assert_eq!(commands, expected);

    let (ambiguous, _) = explained(&world, tenant, "GET", "/api/v1/tickets/%2e%2e/crm").await;
    let readings = ambiguous["readings"].as_array().expect("a list");
    assert!(readings.len() > 1);
    assert!(readings.iter().any(|reading| reading["path"] == "/api/v1/crm" && reading["rule"] == "prefix /api/v1/crm"));

    let text = explain(&world, &["--tenant", tenant, "/api/v1/crm"]).await.stdout;
    assert!(text.starts_with("denied with 402, feature_not_in_plan\n"), "{text}");
    for line in ["rule      prefix /api/v1/crm (routes.rules[3]): feature crm", "licence   plan starter: tickets"] {
        assert!(text.contains(line), "{line}:\n{text}");
    }
    let yaml = explain(&world, &["--tenant", tenant, "-o", "yaml", "/api/v1/crm"]).await.stdout;
    assert!(yaml.starts_with("decision: denied\n"), "{yaml}");

    // Where no store answers, that is what it says.
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let (open, code) = explained(&world, tenant, "GET", "/api/v1/crm").await;
    assert!(matches!(open["decision"].as_str(), Some("failed_open" | "denied")), "{open:#}");
    assert_eq!(code, Some(if open["decision"] == "denied" { 3 } else { 0 }));
    for (arguments, expected) in [
        (&["--tenant", "acme", "/x"][..], "a tenant id is a UUID"),
        (&["--config", "/nonexistent.yaml", "/x"], "can't be read"),
        (&[], "<PATH>"),
    ] {
        let ended = explain(&world, arguments).await;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}");
        assert!(ended.stderr.contains(expected), "{arguments:?}: {}", ended.stderr);
    }
}

/// Whatever the path, its spelling, the tenant, the licence's state and the mode, the endpoint and the proxy agree.
#[tokio::test]
async fn it_never_says_another_thing_than_is_done() {
    const CASES: usize = 400;
    const PATHS: [&str; 37] = [
        "/api/v1/crm",
        "/api/v1/crm/",
        "/api/v1/crm/x?y=/api/v1/network",
        "/api/v1/crm?a%",
        "/api/v1/%63rm",
        "/api//v1/crm",
        "//api/v1/crm",
        "/API/v1/crm",
        "/api/v1/crm;x=1",
        "/api/v1/crm;/../network",
        "/api/v1/tickets/../crm",
        "/api/v1/tickets/%2e%2e/crm",
        "/api/v1/tickets%2fx",
        "/api/v1/tickets/%E4%B8",
        "/api/v1/network/..%2fcrm",
        "/api/v1/.%2e/v1/crm",
        "/x/./api/v1/crm/..",
        "/api/v1/crm%252f",
        "/api/v1/crm%00",
        "/api/v1/crm/%",
        "/api/v1\\crm",
        "/app/api/v1/fieldops",
        "/app/app/api/v1/fieldops",
        "/internal/x",
        "/%69nternal",
        "/nowhere",
        "/api/v1/in-shadow/x",
        "/api/v1/off/x",
        "/api/v1/customers/7/tickets",
        "/api/v1/customers/%37/tickets/",
        "/license",
        "/license?x",
        "/license/",
        "/licens%65",
        "/ws/license",
        "/license/upgrade",
        "/api/v1/crm/license/upgrade",
    ];
    const METHODS: [&str; 5] = ["GET", "POST", "DELETE", "HEAD", "OPTIONS"];
    let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, process::free_port()));
    let excluded = Uuid::new_v4();
    let world = World::start_with(|builder| {
        let rule = |prefix: &str, mode: &str| json!({ "prefix": prefix, "feature": "fieldops", "mode": mode });
        builder
            .set("/listen/admin", admin.to_string())
            .env("ADMIN_TOKEN", "word")
            .set("/upgrade", json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } }))
            .set("/api", json!({ "paths": ["/license", "/api/v1/crm/license"] }))
            .set("/enforcement/rollout", json!({ "percent": 60, "exclude": [excluded] }))
            .set("/routes/path_aliases", json!(["/app"]))
            .set("/routes/rules/-", json!({ "prefix": "/internal", "access": "deny" }))
            .set("/routes/rules/-", rule("/api/v1/in-shadow", "shadow"))
            .set("/routes/rules/-", rule("/api/v1/off", "off"))
    })
    .await;
    world.insert(License::valid(excluded, "starter")).await;
    let mut tenants = vec![None, Some(Uuid::new_v4()), Some(excluded)];
    for _ in 0..3 {
        for plan in ["starter", "professional", "enterprise"] {
            tenants.push(Some(world.tenant(plan).await));
        }
        for (valid_from, valid_until, auto_renew) in [
            ("-9 days", "-1 hour", true),
            ("-9 days", "-1 hour", false),
            ("-90 days", "-10 days", true),
            ("1 hour", "2 days", true),
            ("2 minutes", "2 days", true),
            ("5 days", "-5 days", true),
        ] {
            let tenant = Uuid::new_v4();
            let license = License { valid_from, valid_until, auto_renew, ..License::valid(tenant, "professional") };
            world.insert(license).await;
            tenants.push(Some(tenant));
        }
    }
    let mut random = 7_u64;
    let mut pick = |among: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap_or_default() % among
    };
    let mut cases = BTreeMap::new();
    for number in 0..CASES {
        let tenant = tenants[pick(tenants.len())].map(|tenant| tenant.to_string());
        let (path, method) = (PATHS[pick(PATHS.len())], METHODS[pick(METHODS.len())]);
        let mut query = url::form_urlencoded::Serializer::new("/admin/explain?".to_owned());
        query.extend_pairs(tenant.iter().map(|tenant| ("tenant", tenant)));
        let target = query.append_pair("method", method).append_pair("path", path).finish();
        let said = client::request(admin, "GET", &target, &[("Authorization", "Bearer word")]).await.json();

        let id = format!("case-{number}");
        let mut headers = vec![("X-Request-ID", id.as_str())];
        headers.extend(tenant.iter().map(|tenant| ("X-Tenant-ID", tenant.as_str())));
        let done = client::request(world.proxy.address(), method, path, &headers).await;
        cases.insert(id, (said, done.status));
    }
    world.proxy.wait_for_log(|line| line["request_id"] == format!("case-{}", CASES - 1)).await;
    let mut decisions = BTreeMap::<String, usize>::new();
    for line in world.proxy.access_log() {
        let id = line["request_id"].as_str().unwrap_or_default();
        let (said, status) = cases.remove(id).unwrap_or_else(|| panic!("{id} is there twice"));
        let case = format!("said {said:#}, done {status} {line:#}");
        assert_eq!(line["decision"], said["decision"], "{case}");
        assert_eq!(line["rule"], said["rules"].get(0).map_or(Value::Null, |rule| rule["rule"].clone()), "{case}");
        assert_eq!(line["mode"], said["mode"]["applied"], "{case}");
        // What the licence API makes of it is not for the gate to say.
        if line["decision"] != "answered" {
            assert_eq!((&line["reason"], &line["feature"]), (&said["reason"], &said["feature"]), "{case}");
            assert_eq!(u64::from(status), said["status"].as_u64().unwrap_or(200), "{case}");
        }
        *decisions.entry(line["decision"].to_string()).or_default() += 1;
    }
    assert!(cases.is_empty(), "not in the log: {cases:?}");
    println!("{CASES} cases: {decisions:?}");
    assert_eq!(decisions.len(), 5, "allowed, answered, denied, open and shadowed: {decisions:?}");
}
