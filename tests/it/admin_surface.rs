//! What operators use cannot be reached where the world comes in: not by any target, host, header or protocol. And what the
//! proxy serves itself is no way around the gate.
//!
//! Every request has the operators' own token, and asks for a change that would be seen: only the way is wrong.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use uuid::Uuid;

use crate::framing::http2::{self, Outcome};
use crate::harness::process::free_port;
use crate::harness::{RawClient, RawResponse, World};

const TOKEN: &str = "admin-secret-word";

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A proxy with the admin API, and a tenant that is not to be changed.
struct Site {
    world: World,
    admin: SocketAddr,
    tenant: Uuid,
}

impl Site {
    async fn start() -> Site {
        let admin: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()).into();
        let world = World::start_with(|builder| {
            let internal = json!({ "prefix": "/api/v1/internal", "access": "deny" });
            let builder = builder.set("/routes/rules/-", internal).set("/listen/admin", admin.to_string());
            builder.env("ADMIN_TOKEN", TOKEN)
        })
        .await;
        let tenant = world.tenant("starter").await;
        Site { world, admin, tenant }
    }

    /// A change of the tenant's plan, by a head of which the lines are given but for the token and the body.
    fn change(&self, method: &str, target: &str, headers: &str) -> String {
        let body = json!({ "plan": "enterprise", "reason": "by the wrong door" }).to_string();
        // A handshake has none.
        let body = if headers.contains(WEBSOCKET) { String::new() } else { body };
        let length = body.len();
        let tenant = self.tenant;
        format!(
            "{method} {target} HTTP/1.1\r\n{headers}Authorization: Bearer {TOKEN}\r\nX-Tenant-ID: {tenant}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }

    /// Asserts that the admin API has heard of nothing, and that nothing has changed.
    async fn untouched(&self, case: &str) {
        let plan = format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{}'", self.tenant);
        assert_eq!(self.world.database.value(&plan).await.as_deref(), Some("starter"), "{case}");
        let audit = self.world.database.value("SELECT count(*)::text FROM license_audit").await;
        assert_eq!(audit.as_deref(), Some("0"), "{case}");
        assert!(!self.world.proxy.stderr().contains("admin API"), "{case}: {}", self.world.proxy.stderr());
    }
}

async fn send(address: SocketAddr, bytes: &str) -> RawResponse {
    let mut connection = RawClient::connect(address).await;
    connection.send(bytes).await.expect("sent");
    connection.response().await
}

/// Whatever it is sent, the proxy's listener passes it on or refuses it.
#[tokio::test]
async fn the_admin_api_is_nowhere_on_the_listener_of_the_proxy() {
    let site = Site::start().await;
    let (admin, tenant) = (site.admin, site.tenant);
    let host = "Host: app\r\n".to_owned();
    let path = format!("/admin/license/{tenant}");
    let passed_on: Vec<String> = [
        "/admin/license/T",
        "/admin/license/T?x=1",
        "/admin/license/T/grant",
        "/admin/license/flush",
        "/admin/license/refresh/T",
        "/admin/explain?tenant=T&method=GET&path=/",
        "//admin/license/T",
        "/./admin/license/T",
        "/x/../admin/license/T",
        "/license/../admin/license/T",
        "/license/..%2fadmin/license/T",
        "/license/%2e%2e/admin/license/T",
        "/license%2f..%2fadmin/license/T",
        "/license/..;/admin/license/T",
        "/license;/../admin/license/T",
        "/license\\..\\admin\\license\\T",
        "/ws/license/../../admin/license/T",
        "/api/v1/license/../../../admin/license/T",
        "/api/v1/license/upgrade/../../../../admin/license/T",
        "/%61dmin/license/T",
        "/%2561dmin/license/T",
        "/admin%2flicense%2fT",
        "/admin;x/license/T",
        "/ADMIN/license/T",
        "/admin/license/T/",
        "/http://ADDRESS/admin/license/T",
        "/@ADDRESS/admin/license/T",
        "//ADDRESS/admin/license/T",
        "/livez",
        "/readyz",
        "/metrics",
    ]
    .map(|target| target.replace('T', &tenant.to_string()).replace("ADDRESS", &admin.to_string()))
    .into();
    for method in ["PUT", "POST", "GET", "DELETE"] {
        for target in &passed_on {
            let answer = send(site.world.proxy.address(), &site.change(method, target, &host)).await;
            assert_eq!(answer.status, 200, "{method} {target}: {}", answer.text());
            assert_eq!(answer.json()["target"], json!(target), "{method} {target}: not the backend's answer");
        }
    }
    let more = [
        format!("Host: {admin}\r\n"),
        "Host: localhost\r\n".to_owned(),
        format!("{host}X-Forwarded-Host: {admin}\r\n"),
        format!("{host}Forwarded: host={admin};proto=http\r\n"),
        format!("{host}X-Original-URL: {path}\r\nX-Rewrite-URL: {path}\r\nX-Forwarded-Prefix: /admin\r\n"),
        format!("{host}X-HTTP-Method-Override: PUT\r\n"),
        format!("{host}{WEBSOCKET}"),
    ];
    for headers in &more {
        for target in [&*path, "/admin/license/flush"] {
            let answer = send(site.world.proxy.address(), &site.change("PUT", target, headers)).await;
            assert_eq!(answer.status, 200, "{headers} {target}: {}", answer.text());
            assert_eq!(answer.json()["target"], json!(target), "{headers} {target}");
        }
        // One of our own, told to be another.
        let own = send(site.world.proxy.address(), &site.change("GET", "/license", headers)).await;
        assert!(matches!(own.status, 101 | 200), "{headers}: {}", own.text());
    }
    let before = site.world.upstream.count();
    for target in [
        format!("http://{admin}{path}"),
        format!("HTTP://{admin}{path}"),
        format!("http://app{path}"),
        format!("http://app@{admin}{path}"),
        format!("http:{path}"),
        format!("{admin}{path}"),
        format!("@{admin}{path}"),
        format!("\\admin\\license\\{tenant}"),
        "admin/license/flush".to_owned(),
        format!("?{path}"),
    ] {
        for headers in [&host, &format!("Host: {admin}\r\n")] {
            let answer = send(site.world.proxy.address(), &site.change("PUT", &target, headers)).await;
            assert_eq!(answer.status, 400, "{target} {headers}: {}", answer.text());
        }
    }
    let connect = send(site.world.proxy.address(), &site.change("CONNECT", &admin.to_string(), &host)).await;
    assert!(matches!(connect.status, 400 | 405), "{}", connect.status);
    assert_eq!(site.world.upstream.count(), before);
    site.untouched("the proxy's listener").await;

    // The same by the right door, so that all of this could have been seen.
    let answer = send(admin, &site.change("PUT", &path, &format!("Host: {admin}\r\n"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let plan = format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    assert_eq!(site.world.database.value(&plan).await.as_deref(), Some("enterprise"));
    let no_token = send(admin, &format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n\r\n")).await;
    assert_eq!(no_token.status, 401);
    site.world.proxy.wait_for_event(|line| line.to_string().contains("a request to the admin API was refused")).await;
}

/// Nor by HTTP/2, whatever it is told to be the authority or the scheme.
#[tokio::test]
async fn nor_by_http2() {
    let site = Site::start().await;
    let (admin, path) = (site.admin.to_string(), format!("/admin/license/{}", site.tenant));
    let bearer = format!("Bearer {TOKEN}");
    for (scheme, authority, target) in [
        ("http", &*admin, &*path),
        ("https", &admin, &path),
        ("http", "localhost", &path),
        ("http", "app", &path),
        ("http", &admin, "/admin/license/flush"),
        ("http", &admin, "/license/../admin/license/flush"),
    ] {
        for method in ["GET", "PUT", "POST"] {
            let outcome = http2::ask(
                site.world.proxy.address(),
                &[
                    (b":method", method.as_bytes()),
                    (b":scheme", scheme.as_bytes()),
                    (b":authority", authority.as_bytes()),
                    (b":path", target.as_bytes()),
                    (b"authorization", bearer.as_bytes()),
                ],
            )
            .await;
            assert_eq!(outcome, Outcome::Status(200), "{method} {authority} {target}");
            assert_eq!(site.world.upstream.last().target, target, "{method} {authority}");
        }
    }
    site.untouched("HTTP/2").await;
}

/// The ops listener shows what it shows, to anybody who gets there, and no more.
#[tokio::test]
async fn the_ops_listener_has_nothing_of_it() {
    let site = Site::start().await;
    let ops = site.world.proxy.ops_address();
    let host = format!("Host: {ops}\r\n");
    for target in [
        format!("/admin/license/{}", site.tenant),
        "/admin/license/flush".to_owned(),
        "/admin/explain?tenant=x&method=GET&path=/".to_owned(),
        "/metrics/../admin/license/flush".to_owned(),
        format!("http://{}/admin/license/flush", site.admin),
        "/license".to_owned(),
        "/api/v1/license/upgrade".to_owned(),
        "/api/v1/crm".to_owned(),
        "/".to_owned(),
        "/debug/pprof".to_owned(),
    ] {
        for method in ["GET", "PUT", "POST", "DELETE"] {
            let answer = send(ops, &site.change(method, &target, &host)).await;
            assert_eq!((answer.status, answer.text().as_str()), (404, ""), "{method} {target}");
        }
    }
    for target in ["/metrics", "/livez", "/readyz"] {
        for method in ["PUT", "POST", "DELETE"] {
            assert_eq!(send(ops, &site.change(method, target, &host)).await.status, 405, "{method} {target}");
        }
    }
    assert_eq!(site.world.upstream.count(), 0);
    site.untouched("the ops listener").await;
}

/// Without the token the admin listener says nothing else than that, of what is there and of what is not.
#[tokio::test]
async fn the_admin_listener_says_nothing_without_the_token() {
    let site = Site::start().await;
    let host = format!("Host: {}\r\n", site.admin);
    let tenant = site.tenant;
    for target in [
        &*format!("/admin/license/{tenant}"),
        &*format!("/admin/license/{tenant}/grant"),
        "/admin/license/flush",
        "/admin/license/not-a-tenant",
        "/admin/license/%ff",
        "/admin/license/",
        "/admin/explain",
        "/admin",
        "/",
        "/livez",
        "/metrics",
        "/license",
        "/api/v1/crm",
        "//admin/license/flush",
        "/admin/../admin/license/flush",
        "*",
    ] {
        for method in ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "X"] {
            for token in
                ["", "Authorization: Bearer\r\n", "Authorization: Bearer wrong\r\n", "Authorization: Basic YTpi\r\n"]
            {
                let mut connection = RawClient::connect(site.admin).await;
                let request = format!("{method} {target} HTTP/1.1\r\n{host}{token}\r\n");
                connection.send(&request).await.expect("sent");
                let answer =
                    if method == "HEAD" { connection.head_response().await } else { connection.response().await };
                assert_eq!(answer.status, 401, "{request}");
                let said = answer.text();
                assert!(said.is_empty() || answer.json()["reason"] == "unauthorized", "{request}: {said}");
                assert!(!said.contains(&tenant.to_string()) && !said.contains("starter"), "{request}: {said}");
                assert_eq!(answer.header("Allow"), None, "{request}");
            }
        }
    }
    // Nor over other protocols, nor before a body has been sent.
    for request in [
        format!("GET http://{}/admin/license/{tenant} HTTP/1.1\r\n{host}\r\n", site.admin),
        format!("GET /admin/license/{tenant} HTTP/1.0\r\n{host}\r\n"),
        format!("PUT /admin/license/{tenant} HTTP/1.1\r\n{host}Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"),
        format!("PUT /admin/license/{tenant} HTTP/1.1\r\n{host}Content-Length: 100000000\r\n\r\n"),
        format!("GET /admin/license/{tenant} HTTP/1.1\r\n{host}{WEBSOCKET}\r\n"),
    ] {
        assert_eq!(send(site.admin, &request).await.status, 401, "{request}");
    }
    let (address, path) = (site.admin.to_string(), format!("/admin/license/{tenant}"));
    for (authority, token) in
        [(&*address, ""), (&address, "Bearer wrong"), ("localhost", "Bearer"), ("app", &format!("Bearer {TOKEN}"))]
    {
        let outcome = http2::ask(
            site.admin,
            &[
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":authority", authority.as_bytes()),
                (b":path", path.as_bytes()),
                (b"authorization", token.as_bytes()),
            ],
        )
        .await;
        assert!(matches!(outcome, Outcome::Closed | Outcome::Status(401 | 403)), "{authority} {token}: {outcome:?}");
    }
    assert_eq!(site.world.upstream.count(), 0);
}

/// Targets that begin like one of our own paths and, to some backend, end elsewhere are judged by where they end.
#[tokio::test]
async fn own_paths_are_no_way_around_the_gate() {
    let site = Site::start().await;
    let tenant = site.tenant;
    for own in ["/license", "/api/v1/license", "/ws/license", "/api/v1/license/upgrade"] {
        let up = "/..".repeat(own.matches('/').count());
        for (gated, status) in [("/api/v1/crm/customers", 402), ("/api/v1/internal/keys", 403)] {
            for target in [
                format!("{own}{up}{gated}"),
                format!("{own}{}{gated}", up.replace("..", "%2e%2e")),
                format!("{own}{}{}", up.replace('/', "%2f"), gated.replace('/', "%2f")),
                format!("{own}{}{gated}", up.replace('/', "\\")),
                format!("{own};{up}{gated}"),
                format!("{own}{}{gated}", up.replace("..", "..;")),
                format!("/{own}/{up}{gated}"),
                format!("{own}/.{up}{gated}"),
                format!("{own}%3f{up}{gated}"),
            ] {
                for (method, headers) in [("GET", ""), ("POST", ""), ("GET", WEBSOCKET)] {
                    let request =
                        format!("{method} {target} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n{headers}\r\n");
                    let answer = send(site.world.proxy.address(), &request).await;
                    assert_eq!(answer.status, status, "{request}: {}", answer.text());
                }
            }
        }
        // A query is none of the path.
        let request =
            format!("GET {own}?{}/api/v1/crm HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n", "/..".repeat(4));
        send(site.world.proxy.address(), &request).await;
    }
    let seen = site.world.upstream.requests();
    assert!(seen.iter().all(|request| request.target.starts_with("/api/v1/license/upgrade?")), "{seen:?}");
}
