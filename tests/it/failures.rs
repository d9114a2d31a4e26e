//! An upstream that is down, slow or broken, and clients that leave.

use std::time::Duration;

use serde_json::json;

use crate::harness::{RawClient, RawResponse, Reply, World, client};

const GET: &str = "GET /x HTTP/1.1\r\nHost: app\r\n\r\n";
const POST: &str = "POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi";
const EMPTY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// An answer that says what failed, to the client and to whoever reads the log.
async fn assert_failure(world: &World, answer: &RawResponse, status: u16, reason: &str, proxy_status: &str) {
    assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)));
    let id = answer.header("X-Request-ID").expect("an id");
    assert_eq!(answer.json()["request_id"], id);
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    let proxy_status = format!("dotmac-license-proxy; error={proxy_status}; details=\"{reason}\"");
    assert_eq!(answer.header("Proxy-Status"), Some(proxy_status.as_str()));
    let line = world.proxy.wait_for_log(|line| line["request_id"] == id).await;
    assert_eq!((&line["status"], &line["upstream_status"]), (&json!(status), &json!(null)));
}

#[tokio::test]
async fn an_upstream_that_is_down() {
    let world = World::start().await;
    world.upstream.stop().await;
    let tenant = world.tenant("starter").await;
    for method in ["GET", "POST"] {
        let headers = [("X-Tenant-ID", &*tenant.to_string())];
        let answer = client::request(world.proxy.address(), method, "/api/v1/tickets", &headers).await;
        assert_failure(&world, &answer, 502, "upstream_unreachable", "destination_unavailable").await;
    }
    // An upload is read, so that the answer is.
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let head = format!("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", 8 << 20);
    connection.send(head).await.expect("sent");
    connection.send(vec![0; 8 << 20]).await.expect("no broken pipe");
    assert_eq!(connection.response().await.status, 502);
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402, "a denial needs no upstream");
    assert_eq!(client::request(world.proxy.ops_address(), "GET", "/readyz", &[]).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_is_slow() {
    let world = World::start_with(|builder| builder.set("/upstream/response_timeout", "300ms")).await;
    world.upstream.on("/slow", Reply::after(Duration::from_secs(60), Reply::Describe));
    let answer = client::request(world.proxy.address(), "GET", "/slow", &[]).await;
    assert_failure(&world, &answer, 504, "upstream_timeout", "http_response_timeout").await;
    assert_eq!(world.upstream.count(), 1, "a slow backend is not asked twice");
    assert_eq!(client::request(world.proxy.address(), "GET", "/quick", &[]).await.status, 200);
}

#[tokio::test]
async fn an_upstream_that_speaks_no_http() {
    let world = World::start().await;
    for nonsense in ["", "hello\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"] {
        world.upstream.on("/x", Reply::Raw(nonsense.into()));
        let answer = client::request(world.proxy.address(), "GET", "/x", &[]).await;
        assert_failure(&world, &answer, 502, "upstream_broken", "connection_terminated").await;
    }
}

/// Half a response never looks like a whole one.
#[tokio::test]
async fn an_upstream_that_ends_within_a_response() {
    let world = World::start().await;
    for half in ["Content-Length: 10\r\n\r\nhalf", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"] {
        world.upstream.on("/x", Reply::Raw(format!("HTTP/1.1 200 OK\r\n{half}").into()));
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(GET).await.expect("sent");
        let error = connection.try_response(false).await.expect_err("half a body");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{half}");

        let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
        let answer = http2.get(format!("{}/x", world.proxy.url())).send().await.expect("a head");
        assert!(answer.bytes().await.is_err(), "{half}: a whole body over HTTP/2");
    }
    assert_eq!(client::request(world.proxy.address(), "GET", "/y", &[]).await.status, 200);
}

/// A backend closes a connection that has been idle just when the next request is sent: what may be sent again is, once.
#[tokio::test]
async fn a_kept_connection_that_ends() {
    for (request, again) in [(GET, true), (POST, false)] {
        let (world, backend) = World::behind_a_played_backend().await;
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(GET).await.expect("sent");
        let (mut upstream, _) = backend.request().await;
        upstream.send(EMPTY).await.expect("sent");
        assert_eq!(connection.response().await.status, 200);

        connection.send(request).await.expect("sent");
        upstream.raw_head().await;
        drop(upstream);
        if again {
            let (mut upstream, head) = backend.request().await;
            assert!(head.starts_with("GET /x "), "{head}");
            upstream.send(EMPTY).await.expect("sent");
            assert_eq!(connection.response().await.status, 200);
            // Once is enough.
            connection.send(request).await.expect("sent");
            upstream.raw_head().await;
            drop(upstream);
            drop(backend.request().await);
        }
        assert_eq!(connection.response().await.status, 502);
        assert!(!backend.is_asked_within(Duration::from_millis(300)).await, "{request}");
    }
}

/// A new connection that ends before an answer has shown that the backend read the request: nothing is sent again.
#[tokio::test]
async fn a_new_connection_that_ends() {
    let (world, backend) = World::behind_a_played_backend().await;
    for request in [GET, POST] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(request).await.expect("sent");
        drop(backend.request().await);
        assert_eq!(connection.response().await.status, 502);
        assert!(!backend.is_asked_within(Duration::from_millis(300)).await, "{request}");
    }
}

/// An upload that the backend refuses while it is on its way.
#[tokio::test]
async fn an_early_answer_of_the_backend() {
    let (world, backend) = World::behind_a_played_backend().await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\nbegin").await.expect("sent");
    let (mut upstream, _) = backend.request().await;
    upstream.until("begin").await;
    upstream.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\n\r\nlong").await.expect("sent");
    let answer = connection.response().await;
    assert_eq!((answer.status, answer.text(), answer.header("Connection")), (413, "long".to_owned(), Some("close")));
}

/// Who has left is waited for by nobody.
#[tokio::test]
async fn a_client_that_leaves() {
    let (world, backend) = World::behind_a_played_backend().await;
    for request in [GET, POST, "POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nhalf"] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(request).await.expect("sent");
        let (mut upstream, _) = backend.request().await;
        if !request.starts_with("GET") {
            upstream.until(&request[request.len() - 2..]).await;
        }
        drop(connection);
        assert!(upstream.closes_within(Duration::from_secs(20)).await, "{request}");
    }
    let gone = world.proxy.wait_for_log(|line| line["status"] == 0).await;
    assert_eq!(gone["decision"], "open");
}
