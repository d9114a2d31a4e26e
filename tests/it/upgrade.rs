//! Upgrades through the proxy: sold with one request, in effect with the next, on every replica within a second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use crate::harness::world::get;
use crate::harness::{License, Proxy, ProxyBuilder, RawClient, RawResponse, Signer, World, client, jwt};

const UPGRADE: &str = "/api/v1/license/upgrade";

/// A world whose owners and admins may upgrade.
async fn world() -> World {
    World::start_with(|builder| selling(builder).set("/licenses/change_feed", "listen")).await
}

fn selling(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/upgrade", json!({ "allow": { "header": "X-User-Role", "values": ["owner", "admin"] } }))
}

/// POSTs a body as JSON on a connection of its own; later headers do not replace earlier ones.
async fn post(proxy: &Proxy, target: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let mut head = format!("POST {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", proxy.address());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut client = RawClient::connect(proxy.address()).await;
    client
        .send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()))
        .await
        .expect("the peer accepts a request");
    client.response().await
}

/// What an owner sends who upgrades.
async fn upgrade(proxy: &Proxy, tenant: Uuid, plan: &str) -> RawResponse {
    upgrade_with(proxy, tenant, plan, &[]).await
}

async fn upgrade_with(proxy: &Proxy, tenant: Uuid, plan: &str, more: &[(&str, &str)]) -> RawResponse {
    let tenant = tenant.to_string();
    let owner = [("X-Tenant-ID", tenant.as_str()), ("X-User-Role", "owner"), ("Content-Type", "application/json")];
    post(proxy, UPGRADE, &[&owner[..], more].concat(), &json!({ "new_plan": plan }).to_string()).await
}

async fn audit(world: &World, tenant: Uuid) -> Vec<(String, String)> {
    let client = world.database.connect().await;
    let sql = "SELECT action, outcome FROM license_audit WHERE tenant_id = $1 ORDER BY at, id";
    let rows = client.query(sql, &[&tenant]).await.expect("the audit is there");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// A starter tenant gets 402 on /api/v1/crm/customers, POSTs the upgrade to professional, 200, and the next request on any
/// connection is a 200; on a second replica within a second.
#[tokio::test]
async fn the_next_request_on_any_connection_is_a_200() {
    let world = world().await;
    let second = world.second_replica().await;
    world.proxy.live().await;
    second.live().await;
    let tenant = world.tenant("starter").await;
    let request = format!("GET /api/v1/crm/customers HTTP/1.1\r\nHost: x\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(&request).await.expect("open");
        assert_eq!(connection.response().await.status, 402);
        open.push(connection);
    }
    assert_eq!(get(&second, "/api/v1/crm/customers", tenant).await.status, 402);

    let answer = upgrade(&world.proxy, tenant, "professional").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let acknowledged = Instant::now();
    for connection in &mut open {
        connection.send(&request).await.expect("open");
        assert_eq!(connection.response().await.status, 200, "a connection that was open before");
    }
    assert_eq!(world.get("/api/v1/crm/customers", tenant).await.status, 200, "a new connection");
    while get(&second, "/api/v1/crm/customers", tenant).await.status != 200 {
        assert!(acknowledged.elapsed() < Duration::from_secs(1), "the second replica");
    }
    println!("the second replica after {:?}", acknowledged.elapsed());

    let license = answer.json();
    assert_eq!(license["planTier"], "professional");
    assert_eq!(license["features"], json!({ "analytics": true, "crm": true, "projects": true, "tickets": true }));
    let shown = world.get("/license", tenant).await;
    assert_eq!(shown.json(), license, "what is answered is the licence as it is shown");
    assert_eq!(audit(&world, tenant).await, [("upgrade".to_owned(), "applied".to_owned())]);
}

/// The role is a claim of the token that names the tenant, and the audit names whom it is about. A browser sends cookies for any
/// page, so that with them the page has to be one of ours.
#[tokio::test]
async fn a_token_says_who_may() {
    const APP: &str = "https://app.example.com";
    let signer = Signer::new("ES256", "k");
    let keys = tempfile::tempdir().expect("a directory");
    let file = keys.path().join("jwks.json");
    std::fs::write(&file, jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let world = World::start_with(|builder| {
        let jwt = json!({ "from": ["authorization", { "cookie": "access_token" }], "keys": file });
        builder
            .set("/tenant/sources/-", json!({ "jwt": jwt }))
            .set("/upgrade", json!({ "allow": { "jwt": { "claim": "role", "values": ["owner"] } } }))
            .set("/cors", json!({ "allow_origins": [APP], "allow_credentials": true }))
    })
    .await;
    let tenant = world.tenant("starter").await;
    let token = |role: Value| {
        let claims = json!({ "sub": "user-1", "exp": 4_102_444_800_u64, "tenant_id": tenant, "role": role });
        signer.token(&claims)
    };
    let (owner, member) = (token(json!("owner")), token(json!(["member", "Owner"])));
    let carriers = |token: &str| {
        [("Authorization", format!("Bearer {token}")), ("Cookie", format!("theme=dark; access_token={token}"))]
    };
    let ([owner, owner_cookie], [member, member_cookie]) = (carriers(&owner), carriers(&member));
    let (ours, evil) = (Some(APP), Some("https://evil.example.com"));
    let expected = [
        (&member, None, "professional", 403, "not_allowed"),
        (&member_cookie, ours, "professional", 403, "not_allowed"),
        (&owner_cookie, evil, "professional", 403, "origin_not_allowed"),
        (&owner_cookie, Some("null"), "professional", 403, "origin_not_allowed"),
        (&owner_cookie, None, "professional", 403, "origin_not_allowed"),
        (&owner, None, "professional", 200, ""),
        (&owner_cookie, ours, "enterprise", 200, ""),
    ];
    for ((name, value), origin, plan, status, reason) in expected {
        let mut headers = vec![(*name, value.as_str()), ("Content-Type", "application/json")];
        // What a header says of the role is nobody's word here.
        headers.push(("X-User-Role", "owner"));
        headers.extend(origin.map(|origin| ("Origin", origin)));
        let answer = post(&world.proxy, UPGRADE, &headers, &json!({ "new_plan": plan }).to_string()).await;
        let said = answer.json();
        assert_eq!(answer.status, status, "{name} {origin:?}: {}", answer.text());
        assert_eq!(said["reason"].as_str().unwrap_or_default(), reason, "{name} {origin:?}");
    }
    let client = world.database.connect().await;
    let sql = "SELECT actor FROM license_audit WHERE tenant_id = $1";
    let rows = client.query(sql, &[&tenant]).await.expect("the audit is there");
    let actors: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(actors, ["user-1", "user-1"]);
}

#[tokio::test]
async fn who_may_and_what_is_refused() {
    let world = world().await;
    let tenant = world.tenant("professional").await;
    let id = tenant.to_string();
    let own = ("X-Tenant-ID", id.as_str());
    let (owner, json_type) = (("X-User-Role", "owner"), ("Content-Type", "application/json"));
    let to = |plan: &str| json!({ "new_plan": plan }).to_string();
    let enterprise = to("enterprise");
    for (headers, body, status, reason) in [
        (&[own, json_type][..], &*enterprise, 403, "not_allowed"),
        (&[own, json_type, ("X-User-Role", "member")], &enterprise, 403, "not_allowed"),
        (&[own, json_type, ("X-User-Role", "Owner")], &enterprise, 403, "not_allowed"),
        (&[own, json_type, owner, ("X-User-Role", "member")], &enterprise, 403, "not_allowed"),
        (&[owner, json_type], &enterprise, 401, "tenant_missing"),
        (&[("X-Tenant-ID", "acme"), owner, json_type], &enterprise, 400, "tenant_invalid"),
        (&[own, owner, json_type], &to("platinum"), 422, "unknown_plan"),
        (&[own, owner, json_type], &to("professional"), 409, "same_plan"),
        (&[own, owner, json_type], &to("starter"), 403, "downgrade_not_allowed"),
        (&[own, owner], &enterprise, 415, "unsupported_media_type"),
        (&[own, owner, ("Content-Type", "text/plain")], &enterprise, 415, "unsupported_media_type"),
        (
            &[own, owner, ("Content-Type", "application/x-www-form-urlencoded")],
            "new_plan=enterprise",
            415,
            "unsupported_media_type",
        ),
        (&[own, owner, json_type], "{", 400, "body_invalid"),
        (&[own, owner, json_type], "{}", 400, "body_invalid"),
        (&[own, owner, json_type], r#"{"new_plan":7}"#, 400, "body_invalid"),
        (&[own, owner, json_type], r#"["enterprise"]"#, 400, "body_invalid"),
        (&[own, owner, json_type], r#"{"new_plan":"\u0000"}"#, 400, "body_invalid"),
        (&[own, owner, json_type], r#"{"new_plan":"starter","new_plan":"enterprise"}"#, 400, "body_invalid"),
    ] {
        let answer = post(&world.proxy, UPGRADE, headers, body).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)), "{headers:?} {body}");
        assert_eq!(answer.header("Cache-Control"), Some("no-store"), "{reason}");
        assert!(answer.json()["error"].is_string() && answer.json()["message"].is_string(), "{}", answer.text());
        assert_eq!(answer.json()["request_id"].as_str(), answer.header("X-Request-ID"), "{reason}");
    }
    let large = json!({ "new_plan": "x".repeat(100_000) }).to_string();
    let answer = post(&world.proxy, UPGRADE, &[own, owner, json_type], &large).await;
    assert_eq!(answer.status, 413, "{}", answer.text());
    for method in ["GET", "PUT", "DELETE"] {
        let answer = client::request(world.proxy.address(), method, UPGRADE, &[own, owner]).await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("POST")), "{method}");
    }
    let stranger = upgrade(&world.proxy, Uuid::new_v4(), "professional").await;
    assert_eq!((stranger.status, &stranger.json()["reason"]), (402, &json!("no_license")), "{}", stranger.text());

    assert_eq!(world.upstream.count(), 0, "nothing of this is the backend's business");
    assert_eq!(world.get("/api/v1/fieldops", tenant).await.status, 402, "nothing has changed");
    let refused: Vec<String> = audit(&world, tenant).await.into_iter().map(|(_, outcome)| outcome).collect();
    let expected = ["unknown_plan", "same_plan", "downgrade_not_allowed"].map(|reason| format!("refused: {reason}"));
    assert_eq!(refused, expected, "what somebody was allowed to try is audited");

    // The plan is one that may be bought; another media type with a parameter is the same one.
    let typed = [own, owner, ("Content-Type", "Application/JSON; charset=utf-8")];
    assert_eq!(post(&world.proxy, UPGRADE, &typed, &enterprise).await.status, 200);
    assert_eq!(world.get("/api/v1/fieldops", tenant).await.status, 200);
}

/// Without the section `upgrade` the path belongs to the backend; a role from a peer that is not trusted is nobody's.
#[tokio::test]
async fn off_where_it_is_not_configured_and_refused_to_strangers() {
    let silent = World::start().await;
    let tenant = silent.tenant("starter").await;
    assert_eq!(upgrade(&silent.proxy, tenant, "professional").await.status, 200, "the backend's answer");
    assert_eq!((silent.upstream.count(), silent.upstream.last().target.as_str()), (1, UPGRADE));
    assert_eq!(silent.get("/api/v1/crm", tenant).await.status, 402);

    let strangers = World::start_with(|builder| {
        selling(builder)
            .set("/trusted_proxies", json!(["10.0.0.0/8"]))
            .set("/tenant/sources", json!([{ "fixed": tenant }]))
    })
    .await;
    strangers.insert(License::valid(tenant, "starter")).await;
    let answer = upgrade(&strangers.proxy, tenant, "professional").await;
    assert_eq!((answer.status, &answer.json()["reason"]), (403, &json!("not_allowed")));
}

#[tokio::test]
async fn downgrades_where_allowed_and_add_ons_and_usage_stay() {
    let world = World::start_with(|builder| selling(builder).set("/upgrade/downgrade", true)).await;
    let tenant = world.tenant("enterprise").await;
    let sql = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
         VALUES ('{tenant}', 'tickets', 41, (timezone('utc', now()))::date), ('{tenant}', 'tickets', 1, (timezone('utc', now()))::date);
         INSERT INTO tenant_addons (tenant_id, feature, reason) VALUES ('{tenant}', 'fieldops', 'bought by itself')"
    );
    world.database.execute(&sql).await;
    let before = world.get("/license", tenant).await.json();
    assert_eq!(before["currentUsage"], json!({ "tickets": 42 }));

    let answer = upgrade(&world.proxy, tenant, "starter").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let after = world.get("/license", tenant).await.json();
    assert_eq!(after["features"], json!({ "fieldops": true, "tickets": true }), "the add-on is kept");
    assert_eq!(after["currentUsage"], before["currentUsage"], "usage is not reset");
    assert_eq!((&after["validFrom"], &after["validUntil"]), (&before["validFrom"], &before["validUntil"]));
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    assert_eq!(world.get("/api/v1/fieldops", tenant).await.status, 200);
}

#[tokio::test]
async fn concurrent_upgrades_end_in_one_of_them_both_audited() {
    let world = Arc::new(world().await);
    let second = Arc::new(world.second_replica().await);
    for _ in 0..10 {
        let tenant = world.tenant("starter").await;
        let (a, b) =
            tokio::join!(upgrade(&world.proxy, tenant, "professional"), upgrade(&second, tenant, "enterprise"),);
        let statuses = [a.status, b.status];
        assert!(matches!(statuses, [200, 200] | [403, 200]), "{statuses:?}: {} {}", a.text(), b.text());
        assert_eq!(audit(&world, tenant).await.len(), 2);
        let plan =
            world.database.value(&format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await;
        assert_eq!(plan.as_deref(), Some("enterprise"), "the dearer one: after it the other would be a downgrade");
        let acknowledged = Instant::now();
        for proxy in [&world.proxy, &*second] {
            while get(proxy, "/api/v1/fieldops", tenant).await.status != 200 {
                assert!(acknowledged.elapsed() < Duration::from_secs(1));
            }
        }
    }
}

/// The same key again is the same upgrade, told again: also from another replica, and when another has come between.
#[tokio::test]
async fn an_idempotency_key_is_honoured() {
    let world = world().await;
    let second = world.second_replica().await;
    let tenant = world.tenant("starter").await;
    let key = [("Idempotency-Key", "7f3c-1")];
    let first = upgrade_with(&world.proxy, tenant, "professional", &key).await;
    assert_eq!(first.status, 200, "{}", first.text());
    for proxy in [&world.proxy, &second] {
        let again = upgrade_with(proxy, tenant, "professional", &key).await;
        assert_eq!(again.status, 200, "not same_plan: {}", again.text());
        assert_eq!(again.json()["planTier"], "professional");
    }
    assert_eq!(audit(&world, tenant).await.len(), 1);
    let other = upgrade_with(&world.proxy, tenant, "enterprise", &key).await;
    assert_eq!((other.status, &other.json()["reason"]), (422, &json!("idempotency_key_reused")), "{}", other.text());
    // Keys are the tenant's own.
    let neighbour = world.tenant("starter").await;
    assert_eq!(upgrade_with(&world.proxy, neighbour, "enterprise", &key).await.status, 200);
    // Two at once with one key are one upgrade.
    let tenant = world.tenant("starter").await;
    let key = [("Idempotency-Key", "twice")];
    let (a, b) = tokio::join!(
        upgrade_with(&world.proxy, tenant, "professional", &key),
        upgrade_with(&second, tenant, "professional", &key)
    );
    assert_eq!((a.status, b.status), (200, 200), "{} {}", a.text(), b.text());
    assert_eq!(audit(&world, tenant).await.len(), 1);
}

/// `mode: request` records and announces; somebody else applies it.
#[tokio::test]
async fn a_request_changes_nothing_and_is_announced() {
    let world = World::start_with(|builder| selling(builder).set("/upgrade/mode", "request")).await;
    let tenant = world.tenant("starter").await;
    let mut billing = world.database.listen("dotmac_license_requests").await;
    let answer = upgrade(&world.proxy, tenant, "professional").await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    assert_eq!((&answer.json()["status"], &answer.json()["new_plan"]), (&json!("requested"), &json!("professional")));
    let heard: Value = serde_json::from_str(&billing.next().await).expect("JSON");
    assert_eq!((&heard["tenant_id"], &heard["command"]["plan"]), (&json!(tenant), &json!("professional")));
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    assert_eq!(audit(&world, tenant).await, [("upgrade".to_owned(), "requested".to_owned())]);
    let refused = upgrade(&world.proxy, tenant, "starter").await;
    assert_eq!((refused.status, &refused.json()["reason"]), (409, &json!("same_plan")));

    // Where the same key comes to one that applies, what was only asked for is not told as done.
    let applying = world.builder.clone().set("/upgrade/mode", "apply").start().await;
    let key = [("Idempotency-Key", "9b1d")];
    assert_eq!(upgrade_with(&world.proxy, tenant, "enterprise", &key).await.status, 202);
    let answer = upgrade_with(&applying, tenant, "enterprise", &key).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (422, &json!("idempotency_key_reused")), "{}", answer.text());
    assert_eq!(upgrade_with(&world.proxy, tenant, "enterprise", &key).await.status, 202, "told again");
}

/// Where the database can't be written nothing is changed, and the client is told to come again.
#[tokio::test]
async fn without_a_database_it_is_a_503() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    world.postgres_wire.cut().await;
    let answer = upgrade(&world.proxy, tenant, "professional").await;
    assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!("store_unavailable")), "{}", answer.text());
    assert!(answer.header("Retry-After").is_some());
    world.postgres_wire.restore();
    let begun = Instant::now();
    while upgrade(&world.proxy, tenant, "professional").await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "it does not come back");
        sleep(Duration::from_millis(50)).await;
    }
    // Without Redis the database alone is enough.
    world.redis_wire.cut().await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    let answer = upgrade(&world.proxy, tenant, "professional").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200, "the next request here");
}

/// A body that does not come is its sender's fault, and nothing is asked for.
#[tokio::test]
async fn a_body_that_does_not_come() {
    let world = World::start_with(|builder| selling(builder).set("/limits/drain_timeout", "200ms")).await;
    let tenant = world.tenant("starter").await;
    let head = format!(
        "POST {UPGRADE} HTTP/1.1\r\nHost: x\r\nX-Tenant-ID: {tenant}\r\nX-User-Role: owner\r\n\
         Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
    );
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(head).await.expect("the peer accepts a request");
    let answer = client.response().await;
    assert_eq!((answer.status, &answer.json()["reason"]), (408, &json!("request_timeout")), "{}", answer.text());
    assert!(audit(&world, tenant).await.is_empty());
}

/// 1,000 tenants that were refused by both replicas upgrade by the first; the second refuses none of them later than a second
/// after the acknowledgement.
#[tokio::test]
async fn a_thousand_upgrades_and_no_denial_a_second_later() {
    const UPGRADES: usize = 1_000;
    const AT_ONCE: usize = 4;
    let world = world().await;
    let second = world.second_replica().await;
    world.proxy.live().await;
    second.live().await;
    world
        .database
        .execute(
            "INSERT INTO tenant_licenses (tenant_id, plan_tier, features, valid_until)
             SELECT gen_random_uuid(), 'starter', '{\"tickets\": true}', 'infinity' FROM generate_series(1, 1000)",
        )
        .await;
    let rows = world.database.connect().await.query("SELECT tenant_id FROM tenant_licenses", &[]).await.expect("rows");
    let tenants: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(tenants.len(), UPGRADES);
    let upgraded = stream::iter(tenants).map(async |tenant| {
        for proxy in [&world.proxy, &second] {
            assert_eq!(get(proxy, "/api/v1/crm", tenant).await.status, 402, "a starter");
        }
        let answer = upgrade(&world.proxy, tenant, "professional").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let acknowledged = Instant::now();
        let mut denied = (0, Duration::ZERO);
        loop {
            let asked = acknowledged.elapsed();
            if get(&second, "/api/v1/crm", tenant).await.status == 200 {
                return denied;
            }
            denied = (denied.0 + 1, asked);
        }
    });
    let denied: Vec<(usize, Duration)> = upgraded.buffer_unordered(AT_ONCE).collect().await;
    let tenants_denied = denied.iter().filter(|(times, _)| *times > 0).count();
    let times: usize = denied.iter().map(|(times, _)| times).sum();
    let latest = denied.iter().map(|(_, asked)| *asked).max().unwrap_or_default();
    println!(
        "{UPGRADES} upgrades: {times} denials after the acknowledgement, of {tenants_denied} tenants; the last was asked \
         {latest:?} after it"
    );
    assert!(latest < Duration::from_secs(1), "denied {latest:?} after the acknowledgement");
}
