//! How the process begins and ends.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use crate::harness::process::free_port;
use crate::harness::proxy::{Ended, Proxy, ProxyBuilder, run_binary};
use crate::harness::{Backend, RawClient, World, client, world};

/// Longer than anything here takes, shorter than the time after which the process gives up waiting.
const PROMPT: Duration = Duration::from_secs(15);

async fn readiness(proxy: &Proxy) -> u16 {
    client::request(proxy.ops_address(), "GET", "/readyz", &[]).await.status
}

/// Waits until the proxy says that it is about to end.
async fn draining(proxy: &Proxy) {
    let deadline = Instant::now() + PROMPT;
    while readiness(proxy).await != 503 {
        assert!(Instant::now() < deadline, "still ready");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn sigterm_lets_everything_finish() {
    let backend = Backend::start().await;
    let mut world = World::start_with(|builder| {
        builder.set("/upstream/address", backend.address()).set("/shutdown/drain", "3s").set("/shutdown/timeout", "60s")
    })
    .await;
    let tenant = world.tenant("starter").await;
    let address = world.proxy.address();
    let slow = |name: &str| format!("GET /{name} HTTP/1.1\r\nHost: app\r\nConnection: keep-alive\r\n\r\n");
    let mut before = RawClient::connect(address).await;
    before.send(slow("before")).await.expect("sent");
    let (mut upstream_before, _) = backend.request().await;
    let mut idle = RawClient::connect(address).await;
    idle.send(format!("GET /api/v1/crm HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n")).await.expect("sent");
    assert_eq!(idle.response().await.header("Connection"), Some("keep-alive"));

    world.proxy.signal("TERM");
    draining(&world.proxy).await;
    assert_eq!(client::request(world.proxy.ops_address(), "GET", "/livez", &[]).await.status, 200);
    // Balancers that have not noticed yet lose nothing: new requests are served, and told to come elsewhere next.
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    idle.send(format!("GET /api/v1/crm HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n")).await.expect("sent");
    let answer = idle.response().await;
    assert_eq!((answer.status, answer.header("Connection")), (402, Some("close")));
    let mut during = RawClient::connect(address).await;
    during.send(slow("during")).await.expect("sent");
    let (mut upstream_during, _) = backend.request().await;

    // Once the listener is closed, those two are what the process waits for.
    let deadline = Instant::now() + PROMPT;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "still accepting");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (upstream, connection) in [(&mut upstream_before, &mut before), (&mut upstream_during, &mut during)] {
        assert_eq!(world.proxy.exited(), None);
        upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole").await.expect("the proxy waits");
        let answer = connection.response().await;
        assert_eq!((answer.status, answer.text()), (200, "whole".to_owned()));
    }
    let status = world.proxy.wait(PROMPT).await;
    assert_eq!(status.code(), Some(0));
    let mut paths: Vec<_> = world.proxy.access_log().iter().map(|line| line["path"].clone()).collect();
    paths.sort_by_key(ToString::to_string);
    assert_eq!(paths, ["/api/v1/crm", "/api/v1/crm", "/api/v1/crm", "/before", "/during"]);
}

/// No line of the log is lost, however busy it is when the end comes.
#[tokio::test]
async fn every_answer_is_in_the_log() {
    let mut world = World::start_with(|builder| builder.set("/shutdown/drain", "1s")).await;
    let address = world.proxy.address();
    let clients: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn(async move {
                let mut answers = 0;
                // Until nobody accepts any more.
                while let Ok(stream) = TcpStream::connect(address).await {
                    let mut connection = RawClient::over(stream);
                    let request = "GET /api/v1/network HTTP/1.1\r\nHost: app\r\n\r\n";
                    while connection.send(request).await.is_ok() && connection.try_response(false).await.is_ok() {
                        answers += 1;
                    }
                }
                answers
            })
        })
        .collect();
    world.upstream.wait_for(100).await;
    world.proxy.signal("TERM");
    let status = world.proxy.wait(PROMPT).await;
    assert_eq!(status.code(), Some(0));
    let mut answers = 0;
    for client in clients {
        answers += client.await.expect("no panic");
    }
    assert!(answers > 100, "{answers} answers");
    assert_eq!(world.proxy.access_log().len(), answers);
}

#[tokio::test]
async fn sigint_ends_at_once() {
    let mut world =
        World::start_with(|builder| builder.set("/shutdown/drain", "60s").set("/shutdown/timeout", "90s")).await;
    assert_eq!(client::request(world.proxy.address(), "GET", "/api/v1/network", &[]).await.status, 200);
    let _idle = RawClient::connect(world.proxy.address()).await;
    world.proxy.signal("INT");
    assert_eq!(world.proxy.wait(PROMPT).await.code(), Some(0));
    assert_eq!(world.proxy.access_log().len(), 1);
}

/// Who is waited for has a limit.
#[tokio::test]
async fn the_end_comes_at_last() {
    let backend = Backend::start().await;
    let mut world = World::start_with(|builder| {
        builder
            .set("/upstream/address", backend.address())
            .set("/shutdown/drain", "10ms")
            .set("/shutdown/timeout", "1s")
    })
    .await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send("GET /never HTTP/1.1\r\nHost: app\r\n\r\n").await.expect("sent");
    let _upstream = backend.request().await;
    world.proxy.signal("TERM");
    assert_eq!(world.proxy.wait(PROMPT).await.code(), Some(0));
    assert!(world.proxy.stderr().contains("ending with requests in flight"));
}

#[tokio::test]
async fn what_can_not_be_started() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let taken = taken.local_addr().expect("a bound listener").to_string();
    let licenses = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(licenses.path(), "tenants: []\n").expect("room for it");
    let config = |proxy: &str, ops: &str| {
        Proxy::builder("127.0.0.1:9")
            .set("/listen/proxy", proxy)
            .set("/listen/ops", ops)
            .set("/licenses/source", json!({ "file": { "path": licenses.path() } }))
    };
    let free = &format!("127.0.0.1:{}", free_port());
    let other = &format!("127.0.0.1:{}", free_port());
    for (builder, code, sentence) in [
        (config(&taken, free), 1, format!("listen.proxy {taken}: Address already in use")),
        (config(free, &taken), 1, format!("listen.ops {taken}: Address already in use")),
        (config(free, other).set("/enforcement/mode", "strict"), 2, "enforcement.mode".to_owned()),
        (config(free, other).set("/licences", json!({})), 2, "licences".to_owned()),
        (config(free, other).set("/licenses/source", json!({ "postgres": {} })), 2, "DATABASE_URL".to_owned()),
    ] {
        let ended = serve(&builder).await;
        assert_eq!(ended.status.code(), Some(code), "{}", ended.stderr);
        assert!(ended.stderr.contains(&sentence), "{sentence}: {}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

/// Runs `serve` with exactly this configuration until it ends.
async fn serve(builder: &ProxyBuilder) -> Ended {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), builder.config_text()).expect("room for it");
    run_binary(&["serve", "--config", &file.path().display().to_string()], &[]).await
}

/// A pod that starts during an outage of both stores is up for what needs no licence, and gets ready when one is back.
#[tokio::test]
async fn a_start_without_stores() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let proxy = world.builder.clone().wait_for_live_only().start().await;
    let why_not_ready = async || client::request(proxy.ops_address(), "GET", "/readyz", &[]).await.text();
    let deadline = Instant::now() + PROMPT;
    while why_not_ready().await != "no store has answered yet\n" {
        assert!(Instant::now() < deadline, "{}", why_not_ready().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world::get(&proxy, "/api/v1/network", tenant).await.status, 200);
    assert_eq!(readiness(&proxy).await, 503);

    world.redis_wire.restore();
    world.postgres_wire.restore();
    let deadline = Instant::now() + PROMPT;
    while readiness(&proxy).await != 200 {
        assert!(Instant::now() < deadline, "not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let decided = async |target: &str, status: u16| {
        let deadline = Instant::now() + PROMPT;
        loop {
            let answer = world::get(&proxy, target, tenant).await;
            // Until a probe has closed the breakers, what is allowed is so for want of a licence.
            let fallback = world.upstream.last().header("X-License-Fallback").is_some();
            if answer.status == status && (status == 402 || !fallback) {
                return;
            }
            assert!(Instant::now() < deadline, "{target}: {} {}", answer.status, answer.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    decided("/api/v1/tickets", 200).await;
    decided("/api/v1/crm", 402).await;

    // Losing them again does not take it out of service.
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    assert_eq!(world::get(&proxy, "/api/v1/tickets", tenant).await.status, 200);
    assert_eq!(readiness(&proxy).await, 200);
}
