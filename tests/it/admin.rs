//! The admin API: what operators can do by it, and who can't.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::process::{free_port, server_dir};
use crate::harness::world::get;
use crate::harness::{License, Proxy, ProxyBuilder, RawClient, RawResponse, World, client};

const TOKEN: &str = "admin-secret-word";

/// A proxy with the admin API.
struct Admin {
    world: World,
    address: SocketAddr,
}

impl Admin {
    async fn start() -> Admin {
        Admin::start_with(|builder| builder.env("ADMIN_TOKEN", TOKEN)).await
    }

    async fn start_with(change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Admin {
        let address = free_address();
        let world = World::start_with(|builder| change(builder.set("/listen/admin", address.to_string()))).await;
        Admin { world, address }
    }

    /// With the token, and a body if there is one.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> RawResponse {
        self.call_with(method, path, body, &[]).await
    }

    async fn call_with(&self, method: &str, path: &str, body: Option<Value>, more: &[(&str, &str)]) -> RawResponse {
        let authorization = format!("Bearer {TOKEN}");
        let body = body.map(|body| body.to_string());
        let json = body.as_ref().map(|_| ("Content-Type", "application/json"));
        let headers: Vec<_> =
            [("Authorization", &*authorization)].into_iter().chain(json).chain(more.iter().copied()).collect();
        send(self.address, method, path, &headers, &body.unwrap_or_default()).await
    }

    /// The audit of a tenant, the oldest first: action, actor, reason and outcome.
    async fn audit(&self, tenant: Uuid) -> Value {
        let sql = format!(
            "SELECT coalesce(jsonb_agg(jsonb_build_array(action, actor, reason, outcome, request_id) ORDER BY at), '[]')
               FROM license_audit WHERE tenant_id = '{tenant}'"
        );
        serde_json::from_str(&self.world.database.value(&sql).await.expect("an array")).expect("JSON")
    }
}

fn free_address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, free_port()).into()
}

/// A request with these headers and no others but Host and, for a body, its length.
async fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let host = headers.iter().all(|(name, _)| *name != "Host").then(|| format!("Host: {address}\r\n"));
    let length = (!body.is_empty()).then(|| format!("Content-Length: {}\r\n", body.len()));
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = [host.unwrap_or_default(), length.unwrap_or_default(), headers].concat();
    let mut connection = RawClient::connect(address).await;
    connection.send(format!("{method} {path} HTTP/1.1\r\n{head}\r\n{body}")).await.expect("sent");
    connection.response().await
}

/// Every refusal has one shape, and its request's id.
fn assert_refusal(answer: &RawResponse, status: u16, reason: &str) {
    let body = answer.json();
    assert_eq!((answer.status, &body["reason"]), (status, &json!(reason)), "{body}");
    assert_eq!(
        body.as_object().map(|members| members.keys().cloned().collect::<Vec<_>>()),
        Some(["error", "reason", "message", "request_id"].map(str::to_owned).to_vec())
    );
    assert!(body["error"].is_string() && body["message"].as_str().is_some_and(|message| message.len() > 10), "{body}");
    assert_eq!(body["request_id"].as_str(), answer.header("X-Request-ID"));
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
}

/// Nobody tells the replicas of changes here, so that nothing but the command can have made them ask again.
#[tokio::test]
async fn the_operators_curl_refreshes_the_whole_fleet() {
    let admin = Admin::start().await;
    let world = &admin.world;
    // One without an admin listener: the address is taken.
    let second = world.builder.clone().remove("/listen/admin").start().await;
    let replicas = [&world.proxy, &second];
    for what in ["refresh", "flush"] {
        let tenant = world.tenant("professional").await;
        for proxy in replicas {
            assert_eq!(get(proxy, "/api/v1/crm", tenant).await.status, 200);
        }
        world
            .database
            .execute(&format!("UPDATE tenant_licenses SET features = '{{}}' WHERE tenant_id = '{tenant}'"))
            .await;
        for proxy in replicas {
            assert_eq!(get(proxy, "/api/v1/crm", tenant).await.status, 200, "nobody has told it");
        }
        let path = if what == "refresh" { format!("refresh/{tenant}") } else { "flush".to_owned() };
        let line = format!(
            "curl -s -X POST -H \"Authorization: Bearer $TOKEN\" http://{}/admin/license/{path}",
            admin.address
        );
        let output = Command::new("sh").args(["-c", &line]).env("TOKEN", TOKEN).output().expect("curl is installed");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        assert_eq!((&told["redis"], &told["postgres"]), (&json!("told"), &json!("told")), "{told}");
        assert_eq!(get(&world.proxy, "/api/v1/crm", tenant).await.status, 402, "{what}: here at once");
        let begun = Instant::now();
        while get(&second, "/api/v1/crm", tenant).await.status != 402 {
            assert!(begun.elapsed() < Duration::from_secs(3), "{what}: the other replica has not heard of it");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        println!("{what}: the other replica after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn every_verb_is_seen_at_once_and_audited() {
    let admin = Admin::start().await;
    let world = &admin.world;
    let tenant = Uuid::new_v4();
    let status = async |path: &str| get(&world.proxy, path, tenant).await.status;
    let license = format!("/admin/license/{tenant}");
    assert_eq!(status("/api/v1/tickets").await, 402);
    assert_refusal(&admin.call("GET", &license, None).await, 404, "no_license");

    let set = json!({ "plan": "starter", "valid_until": "2099-01-01", "reason": "a new customer", "actor": "jane@example.com" });
    let answer = admin.call_with("PUT", &license, Some(set), &[("X-Request-ID", "call-1")]).await;
    let body = answer.json();
    assert_eq!((answer.status, answer.header("Cache-Control")), (200, Some("no-store")), "{body}");
    assert_eq!((&body["tenant_id"], &body["license"]["plan"]), (&json!(tenant), &json!("starter")));
    assert_eq!(body["license"]["valid_until"], "2099-01-01T00:00:00Z");
    assert_eq!((&body["repeated"], &body["redis"], &body["addons"]), (&json!(false), &json!("told"), &json!([])));
    assert_eq!((status("/api/v1/tickets").await, status("/api/v1/crm").await), (200, 402));

    let answer = admin
        .call("POST", &format!("{license}/grant"), Some(json!({ "feature": "crm", "for": "4h", "reason": "a trial" })))
        .await;
    assert_eq!((answer.status, status("/api/v1/crm").await), (200, 200), "{}", answer.text());
    assert_eq!(answer.json()["addons"][0]["feature"], "crm");
    let answer = admin.call("PUT", &license, Some(json!({ "plan": "enterprise", "reason": "bought" }))).await;
    assert_eq!((answer.status, status("/api/v1/fieldops").await), (200, 200), "{}", answer.text());
    let answer = admin
        .call("POST", &format!("{license}/revoke"), Some(json!({ "feature": "fieldops", "reason": "abuse" })))
        .await;
    assert_eq!((answer.status, status("/api/v1/fieldops").await), (200, 402), "{}", answer.text());
    let answer = admin.call("POST", &format!("{license}/reapply-plan"), Some(json!({ "reason": "cleared up" }))).await;
    assert_eq!((answer.status, status("/api/v1/fieldops").await), (200, 200), "{}", answer.text());
    let answer =
        admin.call("POST", &format!("{license}/extend"), Some(json!({ "until": "never", "reason": "for good" }))).await;
    assert_eq!(
        (answer.status, &answer.json()["license"]["valid_until"]),
        (200, &json!("infinity")),
        "{}",
        answer.text()
    );

    let shown = admin.call("GET", &license, None).await;
    assert_eq!(shown.status, 200);
    let (shown, last) = (shown.json(), answer.json());
    assert_eq!((&shown["license"], &shown["addons"]), (&last["license"], &last["addons"]));

    let audit = admin.audit(tenant).await;
    let rows: Vec<Value> =
        audit.as_array().expect("rows").iter().map(|row| json!([row[0], row[1], row[2], row[3]])).collect();
    let expected = [
        json!(["set_plan", "jane@example.com", "a new customer", "applied"]),
        json!(["grant", "admin-api", "a trial", "applied"]),
        json!(["set_plan", "admin-api", "bought", "applied"]),
        json!(["revoke", "admin-api", "abuse", "applied"]),
        json!(["reapply_plan", "admin-api", "cleared up", "applied"]),
        json!(["extend", "admin-api", "for good", "applied"]),
    ];
    assert_eq!(rows, expected);
    assert_eq!(audit[0][4], "call-1");
    assert_eq!(audit[1][4].as_str().map(str::len), Some(36), "an id of our own");
}

#[tokio::test]
async fn the_same_key_does_it_once() {
    let admin = Admin::start().await;
    let tenant = admin.world.tenant("starter").await;
    let grant = format!("/admin/license/{tenant}/grant");
    let call = async |feature: &str, key: &str| {
        let body = json!({ "feature": feature, "until": "2099-01-01", "reason": "a trial" });
        admin.call_with("POST", &grant, Some(body), &[("Idempotency-Key", key)]).await
    };
    let (first, second) = (call("crm", "k1").await, call("crm", "k1").await);
    assert_eq!((first.status, second.status), (200, 200));
    assert_eq!((&first.json()["repeated"], &second.json()["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(first.json()["license"], second.json()["license"]);
    assert_refusal(&call("projects", "k1").await, 422, "idempotency_key_reused");
    // A span is the same span later on.
    let call_for = async || {
        let body = json!({ "feature": "analytics", "for": "4h", "reason": "a trial" });
        admin.call_with("POST", &grant, Some(body), &[("Idempotency-Key", "k2")]).await
    };
    let first = call_for().await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let second = call_for().await;
    assert_eq!((first.status, second.status), (200, 200), "{}", second.text());
    assert_eq!((&first.json()["addons"], &second.json()["repeated"]), (&second.json()["addons"], &json!(true)));
    for key in ["", &"x".repeat(256)] {
        assert_refusal(&call("crm", key).await, 400, "idempotency_key_invalid");
    }
    let applied = admin.audit(tenant).await.as_array().expect("rows").iter().filter(|row| row[3] == "applied").count();
    assert_eq!(applied, 2);
}

/// A table of what can be wrong with a request, and with what it asks for.
#[tokio::test]
async fn what_cannot_be_done_is_said() {
    let admin = Admin::start().await;
    let tenant = admin.world.tenant("professional").await;
    let (mine, none) = (format!("/admin/license/{tenant}"), format!("/admin/license/{}", Uuid::new_v4()));
    let under = |path: &str, verb: &str| format!("{path}/{verb}");
    let r = "a reason";
    for (method, path, body, status, reason) in [
        ("GET", "/admin/license/acme".to_owned(), None, 400, "tenant_invalid"),
        ("POST", "/admin/license/refresh/acme".to_owned(), None, 400, "tenant_invalid"),
        ("GET", "/".to_owned(), None, 404, "not_found"),
        ("GET", under(&mine, "nonsense"), None, 404, "not_found"),
        ("DELETE", mine.clone(), None, 405, "method_not_allowed"),
        ("GET", under(&mine, "grant"), None, 405, "method_not_allowed"),
        ("GET", "/admin/license/flush".to_owned(), None, 405, "method_not_allowed"),
        ("PUT", mine.clone(), None, 400, "body_invalid"),
        ("PUT", mine.clone(), Some(json!([])), 400, "body_invalid"),
        ("PUT", mine.clone(), Some(json!({ "plan": "starter" })), 400, "body_invalid"),
        ("PUT", mine.clone(), Some(json!({ "plan": "starter", "reason": " " })), 400, "body_invalid"),
        ("PUT", mine.clone(), Some(json!({ "plan": "starter", "reason": r, "paln": 1 })), 400, "body_invalid"),
        (
            "PUT",
            mine.clone(),
            Some(json!({ "plan": "starter", "reason": r, "valid_until": "soon" })),
            400,
            "body_invalid",
        ),
        ("PUT", mine.clone(), Some(json!({ "plan": "gold", "reason": r })), 422, "unknown_plan"),
        ("PUT", mine.clone(), Some(json!({ "plan": "starter", "reason": "\0" })), 400, "body_invalid"),
        ("POST", under(&mine, "grant"), Some(json!({ "feature": "crm", "reason": r })), 400, "body_invalid"),
        (
            "POST",
            under(&mine, "grant"),
            Some(json!({ "feature": "crm", "for": "1h", "until": "never", "reason": r })),
            400,
            "body_invalid",
        ),
        (
            "POST",
            under(&mine, "grant"),
            Some(json!({ "feature": "crm", "for": "1", "reason": r })),
            400,
            "body_invalid",
        ),
        (
            "POST",
            under(&mine, "grant"),
            Some(json!({ "feature": "crn", "for": "1h", "reason": r })),
            422,
            "unknown_feature",
        ),
        (
            "POST",
            under(&mine, "grant"),
            Some(json!({ "feature": "crm", "until": "2020-01-01", "reason": r })),
            422,
            "in_the_past",
        ),
        ("POST", under(&none, "grant"), Some(json!({ "feature": "crm", "for": "1h", "reason": r })), 404, "no_license"),
        ("POST", under(&mine, "revoke"), Some(json!({ "feature": "fieldops", "reason": r })), 409, "not_granted"),
        ("POST", under(&mine, "extend"), Some(json!({ "until": "2020-01-01", "reason": r })), 409, "valid_longer"),
        ("POST", under(&none, "extend"), Some(json!({ "for": "1h", "reason": r })), 404, "no_license"),
        ("GET", "/admin/explain".to_owned(), None, 400, "query_invalid"),
        ("GET", "/admin/explain?path=/&tenant=acme".to_owned(), None, 400, "tenant_invalid"),
        ("GET", "/admin/explain?path=/&verb=GET".to_owned(), None, 400, "query_invalid"),
    ] {
        println!("{method} {path} {body:?}");
        let answer = admin.call(method, &path, body).await;
        assert_refusal(&answer, status, reason);
        if status == 405 {
            assert!(answer.header("Allow").is_some_and(|allow| !allow.is_empty()), "{:?}", answer.headers);
        }
    }
    let large = admin.call("PUT", &mine, Some(json!({ "plan": "starter", "reason": "x".repeat(100_000) }))).await;
    assert_refusal(&large, 413, "body_too_large");
    let authorization = format!("Bearer {TOKEN}");
    for headers in [
        &[("Authorization", &*authorization), ("Content-Type", "text/plain")][..],
        &[("Authorization", &*authorization)],
    ] {
        for path in [mine.clone(), format!("/admin/license/refresh/{tenant}")] {
            let method = if path == mine { "PUT" } else { "POST" };
            assert_refusal(&send(admin.address, method, &path, headers, "{}").await, 415, "unsupported_media_type");
        }
    }
    let broken = send(
        admin.address,
        "PUT",
        &mine,
        &[("Authorization", &*authorization), ("Content-Type", "application/json")],
        "{\"plan\"",
    )
    .await;
    assert_refusal(&broken, 400, "body_invalid");

    // Refusals of what was understood are audited, and nothing has changed.
    let refused: Vec<_> =
        admin.audit(tenant).await.as_array().expect("rows").iter().map(|row| row[3].clone()).collect();
    assert_eq!(
        refused,
        ["unknown_plan", "unknown_feature", "in_the_past", "not_granted", "valid_longer"]
            .map(|reason| json!(format!("refused: {reason}")))
    );
    assert_eq!(get(&admin.world.proxy, "/api/v1/crm", tenant).await.status, 200);
}

/// Nobody without the token, and no page in a browser of somebody who could reach it.
#[tokio::test]
async fn nobody_else_is_let_in() {
    let admin = Admin::start().await;
    let tenant = admin.world.tenant("professional").await;
    let path = format!("/admin/license/{tenant}");
    let right = format!("Bearer {TOKEN}");
    for said in [
        "",
        "Bearer",
        "Bearer ",
        &right[..right.len() - 1],
        &format!("{right}x"),
        TOKEN,
        &format!("Basic {TOKEN}"),
        "Bearer null",
    ] {
        let answer = send(admin.address, "GET", &path, &[("Authorization", said)], "").await;
        assert_refusal(&answer, 401, "unauthorized");
        assert_eq!(answer.header("WWW-Authenticate"), Some("Bearer realm=\"dotmac-license-proxy admin\""));
    }
    assert_refusal(&send(admin.address, "GET", &path, &[], "").await, 401, "unauthorized");
    assert_refusal(&send(admin.address, "GET", "/admin/nothing", &[], "").await, 401, "unauthorized");
    for (name, value, reason) in [
        ("Origin", "https://evil.example", "origin_not_allowed"),
        ("Origin", "null", "origin_not_allowed"),
        ("Host", "evil.example", "host_not_allowed"),
    ] {
        for method in ["GET", "PUT", "OPTIONS"] {
            let answer = send(admin.address, method, &path, &[("Authorization", &right), (name, value)], "").await;
            assert_refusal(&answer, 403, reason);
            assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
        }
    }
    assert_eq!(admin.audit(tenant).await, json!([]));
    // Nor is any of it on the other ports.
    let stray = client::request(admin.world.proxy.ops_address(), "GET", &path, &[("Authorization", &right)]).await;
    assert_eq!(stray.status, 404);
    assert_eq!(admin.call("GET", &path, None).await.status, 200, "the right one is");
    let printed = format!("{}{}", admin.world.proxy.stdout(), admin.world.proxy.stderr());
    assert!(!printed.contains(TOKEN), "the token is never printed");
}

#[tokio::test]
async fn without_a_token_everybody_is_refused() {
    let admin = Admin::start_with(|builder| builder.env("ADMIN_TOKEN", " ")).await;
    for said in ["Bearer ", "Bearer x", ""] {
        let answer = send(admin.address, "POST", "/admin/license/flush", &[("Authorization", said)], "").await;
        assert_refusal(&answer, 403, "no_admin_token");
        assert!(answer.text().contains("ADMIN_TOKEN"), "it says what to set");
    }
    let warned =
        admin.world.proxy.log().iter().filter(|line| line.to_string().contains("the admin API lets nobody in")).count();
    assert_eq!(warned, 1);
}

/// A secret that Kubernetes mounts is replaced while the process runs.
#[tokio::test]
async fn the_token_rotates_in_its_file() {
    let files = server_dir();
    let file = files.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("written");
    let admin = Admin::start_with(|builder| builder.env("ADMIN_TOKEN_FILE", file.display().to_string())).await;
    let status = async |token: &str| {
        let said = format!("Bearer {token}");
        send(admin.address, "GET", "/admin/explain?path=/api/v1/network", &[("Authorization", &said)], "").await.status
    };
    assert_eq!((status(TOKEN).await, status("another").await), (200, 401));
    std::fs::write(&file, "another\n").expect("written");
    assert_eq!((status(TOKEN).await, status("another").await), (401, 200));
    std::fs::remove_file(&file).expect("removed");
    assert_eq!((status(TOKEN).await, status("another").await), (401, 200), "for the moment while it is replaced");
}

#[tokio::test]
async fn it_explains_by_what_is_in_use() {
    let admin = Admin::start().await;
    let tenant = admin.world.tenant("starter").await;
    let answer = admin
        .call("GET", &format!("/admin/explain?tenant={tenant}&method=GET&path=/api/v1/crm/customers%3Fpage%3D2"), None)
        .await;
    let body = answer.json();
    assert_eq!((answer.status, &body["decision"], &body["status"]), (200, &json!("denied"), &json!(402)), "{body}");
    assert_eq!((&body["reason"], &body["license"]["plan"]), (&json!("feature_not_in_plan"), &json!("starter")));
    let open = admin.call("GET", "/admin/explain?path=/api/v1/network", None).await.json();
    assert_eq!((&open["decision"], &open["tenant"]), (&json!("open"), &Value::Null), "{open}");
}

/// Where nobody else on the network, and no page, can come at all.
#[tokio::test]
async fn on_a_unix_socket() {
    let files = server_dir();
    let socket = files.path().join("admin.sock").display().to_string();
    let world =
        World::start_with(|builder| builder.set("/listen/admin", format!("unix:{socket}")).env("ADMIN_TOKEN", TOKEN))
            .await;
    let tenant = world.tenant("starter").await;
    let url = format!("http://localhost/admin/license/{tenant}");
    let authorization = format!("Authorization: Bearer {TOKEN}");
    let output = Command::new("curl")
        .args(["-s", "--unix-socket", &socket, "-H", &authorization, &url])
        .output()
        .expect("curl is installed");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(shown["license"]["plan"], "starter");
}

/// Licences of a file change in memory, for trying things out; without a primary nothing can be changed.
#[tokio::test]
async fn what_it_works_on() {
    let address = free_address();
    let tenant = Uuid::new_v4();
    let files = server_dir();
    let licenses = files.path().join("licenses.yaml");
    std::fs::write(&licenses, format!("tenants:\n  - {{ tenant_id: {tenant}, plan: starter }}\n")).expect("written");
    let upstream = crate::harness::Upstream::start();
    let proxy = Proxy::builder(upstream.address())
        .set("/licenses", json!({ "source": { "file": { "path": licenses.display().to_string() } } }))
        .set("/listen/admin", address.to_string())
        .env("ADMIN_TOKEN", TOKEN)
        .start()
        .await;
    assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 402);
    let authorization = format!("Bearer {TOKEN}");
    let headers = [("Authorization", &*authorization), ("Content-Type", "application/json")];
    let body = json!({ "plan": "professional", "reason": "a demo" }).to_string();
    let answer = send(address, "PUT", &format!("/admin/license/{tenant}"), &headers, &body).await;
    assert_eq!((answer.status, get(&proxy, "/api/v1/crm", tenant).await.status), (200, 200), "{}", answer.text());
    assert_eq!(answer.json()["redis"], "not configured");
    drop(proxy);

    let world = World::start().await;
    world.insert(License::valid(tenant, "starter")).await;
    let url = world.database.url();
    let builder = world
        .builder
        .clone()
        .env("DOTMAC_LICENSE_DATABASE_URL", "")
        .env("LICENSE_DB_URL", url)
        .env("ADMIN_TOKEN", TOKEN);
    let _proxy = builder.set("/listen/admin", address.to_string()).start().await;
    let answer = send(address, "PUT", &format!("/admin/license/{tenant}"), &headers, &body).await;
    assert_refusal(&answer, 503, "no_primary");
}
