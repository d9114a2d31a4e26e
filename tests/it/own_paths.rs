//! The proxy's own paths under attack: bodies that lie, requests behind others, and a replica that is killed while it sells.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future;
use serde_json::json;
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::harness::world::get;
use crate::harness::{Proxy, ProxyBuilder, RawClient, World, process};

const UPGRADE: &str = "/api/v1/license/upgrade";
const LIMIT: Duration = Duration::from_secs(20);

/// Owners may go to any plan.
fn selling(builder: ProxyBuilder) -> ProxyBuilder {
    let allow = json!({ "header": "X-User-Role", "values": ["owner"] });
    builder.set("/upgrade", json!({ "allow": allow, "downgrade": true })).set("/licenses/change_feed", "listen")
}

fn owner(tenant: Uuid) -> String {
    format!("Host: app\r\nX-Tenant-ID: {tenant}\r\nX-User-Role: owner\r\nContent-Type: application/json\r\n")
}

/// Each request is cut where the backend would cut it, or the connection ends: what is behind it is a request of its own, or
/// nothing.
#[tokio::test]
async fn what_comes_behind_a_request_to_our_own_paths() {
    let world = World::start_with(selling).await;
    let tenant = world.tenant("starter").await;
    let owner = owner(tenant);
    let behind = "GET /api/v1/network/behind HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
    let body = r#"{"new_plan":"professional"}"#;
    let length = body.len();
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (name, request, status, served) in [
        ("GET", format!("GET /license HTTP/1.1\r\n{owner}\r\n"), 200, Some(true)),
        ("GET with a body", format!("GET /license HTTP/1.1\r\n{owner}Content-Length: 5\r\n\r\nhello"), 200, None),
        (
            "GET with chunks",
            format!("GET /license HTTP/1.1\r\n{owner}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
            200,
            None,
        ),
        (
            "chunks",
            format!(
                "POST {UPGRADE} HTTP/1.1\r\n{owner}Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
            ),
            200,
            Some(true),
        ),
        (
            "length",
            format!("POST {UPGRADE} HTTP/1.1\r\n{owner}Content-Length: {length}\r\n\r\n{body}"),
            409,
            Some(true),
        ),
        ("no body", format!("POST {UPGRADE} HTTP/1.1\r\n{owner}\r\n"), 400, Some(true)),
        (
            "too large",
            format!("POST {UPGRADE} HTTP/1.1\r\n{owner}Content-Length: 40000\r\n\r\n{}", "x".repeat(40_000)),
            413,
            Some(true),
        ),
        (
            "too short a length",
            format!("POST {UPGRADE} HTTP/1.1\r\n{owner}Content-Length: {}\r\n\r\n{body}", length - 3),
            400,
            Some(false),
        ),
        (
            "no chunk",
            format!("POST {UPGRADE} HTTP/1.1\r\n{owner}Transfer-Encoding: chunked\r\n\r\nzz\r\n{body}\r\n0\r\n\r\n"),
            400,
            Some(false),
        ),
        (
            "a chunk of all memory",
            format!("POST {UPGRADE} HTTP/1.1\r\n{owner}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{body}"),
            400,
            Some(false),
        ),
        ("another method", format!("PUT {UPGRADE} HTTP/1.1\r\n{owner}Content-Length: 2\r\n\r\n{{}}"), 405, None),
        ("a bad handshake", format!("GET /ws/license HTTP/1.1\r\n{owner}{websocket}\r\n"), 426, Some(true)),
        (
            "a handshake with a body",
            format!(
                "GET /ws/license HTTP/1.1\r\n{owner}{websocket}Sec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\nhello"
            ),
            400,
            None,
        ),
    ] {
        let before = world.upstream.count();
        let mut client = RawClient::connect(world.proxy.address()).await;
        client.send(format!("{request}{behind}")).await.expect("sent");
        let answer = client.response().await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        let was_served = if answer.header("Connection") == Some("close") || served == Some(false) {
            let rest = client.bytes().await.unwrap_or_default();
            // What can't be a request is answered by 400 at most.
            assert!(
                rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "),
                "{name}: {}",
                String::from_utf8_lossy(&rest)
            );
            false
        } else {
            assert_eq!(client.response().await.status, 200, "{name}");
            true
        };
        assert_eq!(world.upstream.count() - before, usize::from(was_served), "{name}");
        assert!(served.is_none_or(|served| served == was_served), "{name}: {was_served}");
    }
    assert!(world.upstream.requests().iter().all(|request| request.target == "/api/v1/network/behind"));
    let refused = world.proxy.wait_for_log(|line| line["path"] == UPGRADE && line["status"] == 400).await;
    assert_eq!(refused["decision"], "answered");
}

/// Clients that wait to be told send their body then (RFC 9110 section 10.1.1), and not at all where it is not wanted.
#[tokio::test]
async fn a_body_is_sent_when_it_is_asked_for() {
    let world = World::start_with(selling).await;
    let tenant = world.tenant("starter").await;
    let body = r#"{"new_plan":"professional"}"#;
    let expect = format!("Expect: 100-Continue\r\nContent-Length: {}\r\n", body.len());
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(format!("POST {UPGRADE} HTTP/1.1\r\n{}{expect}\r\n", owner(tenant))).await.expect("sent");
    assert_eq!(client.raw_head().await.lines().next(), Some("HTTP/1.1 100 Continue"));
    client.send(body).await.expect("open");
    let answer = client.response().await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    client.send(format!("POST {UPGRADE} HTTP/1.1\r\nHost: app\r\n{expect}\r\n")).await.expect("open");
    assert_eq!(client.response().await.status, 401, "at once, since it is refused whatever the body is");
}

/// A body that stops is the client's fault, and ends its connection.
#[tokio::test]
async fn a_body_that_does_not_come() {
    let world = World::start_with(|builder| selling(builder).set("/limits/drain_timeout", "1s")).await;
    let tenant = world.tenant("starter").await;
    let head = format!("POST {UPGRADE} HTTP/1.1\r\n{}Content-Length: 27\r\n\r\n{{\"new_plan\":", owner(tenant));
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(&head).await.expect("sent");
    let answer = client.response().await;
    assert_eq!((answer.status, &answer.json()["reason"]), (408, &json!("request_timeout")));
    assert_eq!(answer.header("Connection"), Some("close"));
    assert!(client.closes_within(LIMIT).await);

    let mut gone = RawClient::connect(world.proxy.address()).await;
    gone.send(&head).await.expect("sent");
    gone.finish_sending().await.expect("open");
    let rest = gone.bytes().await.unwrap_or_default();
    assert!(!rest.starts_with(b"HTTP/1.1 5"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(get(&world.proxy, "/license", tenant).await.json()["planTier"], "starter");
}

/// Fifty at once on five licences by two replicas, one of which is killed in the middle, several times: each licence is as its
/// last entry in the audit says, every entry begins where the one before it ended, and both replicas show what is there.
#[tokio::test]
async fn a_replica_that_is_killed_while_it_sells() {
    const TENANTS: usize = 5;
    let world = World::start_with(selling).await;
    let tenants = future::join_all((0..TENANTS).map(|_| world.tenant("starter"))).await;
    let plans = ["starter", "professional", "enterprise"];
    let mut statuses = BTreeMap::new();
    let mut second = world.second_replica().await;
    for round in 0..4 {
        let orders = (0..50).map(|i| {
            let proxy = if i % 2 == 0 { &world.proxy } else { &second };
            order(proxy, tenants[i % TENANTS], plans[(i * 7 + round) % plans.len()])
        });
        let pid = second.pid().to_string();
        let killed = async {
            tokio::time::sleep(Duration::from_millis(15 + 25 * round as u64)).await;
            process::run(&["kill", "-KILL", &pid]);
        };
        for status in future::join(future::join_all(orders), killed).await.0 {
            *statuses.entry(status).or_insert(0) += 1;
        }
        second = world.second_replica().await;
        for tenant in &tenants {
            consistent(&world, &second, *tenant).await;
        }
    }
    println!("answered, or none where the replica was killed: {statuses:?}");
    assert!(statuses.keys().all(|status| matches!(status, None | Some(200 | 409))), "{statuses:?}");
    assert!(statuses[&Some(200)] > 0);
}

/// An upgrade or downgrade; the status, if there was an answer.
async fn order(proxy: &Proxy, tenant: Uuid, plan: &str) -> Option<u16> {
    let mut client = RawClient::over(TcpStream::connect(proxy.address()).await.ok()?);
    let body = json!({ "new_plan": plan }).to_string();
    let head = format!("POST {UPGRADE} HTTP/1.1\r\n{}Connection: close\r\n", owner(tenant));
    client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len())).await.ok()?;
    let answer = client.bytes().await.ok()?;
    std::str::from_utf8(answer.get("HTTP/1.1 ".len()..)?.get(..3)?).ok()?.parse().ok()
}

async fn consistent(world: &World, second: &Proxy, tenant: Uuid) {
    let value = async |sql: String| world.database.value(&sql).await;
    let held = value(format!("SELECT plan_tier || ' ' || revision FROM tenant_licenses WHERE tenant_id = '{tenant}'"));
    let held = held.await.expect("a licence");
    let entries = format!(
        "(SELECT after->'license'->>'plan' AS plan, (before->'license'->>'revision')::bigint AS begun,
                 (after->'license'->>'revision')::bigint AS ended
            FROM license_audit WHERE tenant_id = '{tenant}' AND outcome = 'applied') AS entries"
    );
    let last = value(format!("SELECT plan || ' ' || ended FROM {entries} ORDER BY ended DESC LIMIT 1")).await;
    assert!(last.is_none_or(|last| last == held), "{held}");
    let gaps = value(format!(
        "SELECT count(*)::text FROM (SELECT begun, lag(ended) OVER (ORDER BY ended) AS former FROM {entries}) AS pairs
          WHERE former IS NOT NULL AND begun <> former"
    ));
    assert_eq!(gaps.await.as_deref(), Some("0"), "a change without its entry, or an entry without its change");
    let begun = Instant::now();
    for proxy in [&world.proxy, second] {
        while get(proxy, "/license", tenant).await.json()["planTier"].as_str() != held.split(' ').next() {
            assert!(begun.elapsed() < Duration::from_secs(3), "a replica shows another plan than {held}");
        }
    }
}
