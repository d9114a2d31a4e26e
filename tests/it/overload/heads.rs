//! Heads of requests that take long, or grow large, over HTTP/1.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{CORE, LIMIT, SHORT, Site, get, refused, tenant};
use crate::harness::{RawClient, RawResponse, Reply};

/// Sends `text` byte by byte until it is answered.
async fn trickle(client: &mut RawClient, text: &str) -> RawResponse {
    let begun = Instant::now();
    for byte in text.bytes().chain(std::iter::repeat(b'x')) {
        assert!(begun.elapsed() < LIMIT, "a trickle is never answered");
        if client.send([byte]).await.is_err() {
            break;
        }
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), client.try_response(false)).await {
            return answer.expect("an answer before the end");
        }
    }
    client.response().await
}

#[tokio::test]
async fn a_trickle_is_answered_408_wherever_it_begins() {
    let site = Site::with(json!({ "header_timeout": SHORT })).await;
    let mut kept = site.connect().await;
    kept.send(get(CORE, None)).await.expect("sent");
    assert_eq!(kept.response().await.status, 200);
    let mut pipelined = site.connect().await;
    pipelined.send(get(CORE, None) + "G").await.expect("sent");
    assert_eq!(pipelined.response().await.status, 200);
    let served = site.upstream.count();

    let begun = Instant::now();
    let (mut first, mut silent) = (site.connect().await, site.connect().await);
    // Less than it takes to tell the protocol, and then nothing more.
    silent.send("GE").await.expect("sent");
    let head = "GET /api/v1/network HTTP/1.1\r\nHost: app\r\nX-A: ";
    let (first_answer, second_answer, pipelined_answer, silent_answer) = tokio::join!(
        trickle(&mut first, head),
        trickle(&mut kept, head),
        trickle(&mut pipelined, &head[1..]),
        silent.response()
    );
    println!("408 to four trickles within {:?}, with a limit of {SHORT}", begun.elapsed());
    for answer in [&first_answer, &second_answer, &pipelined_answer, &silent_answer] {
        refused(answer, 408, "request_timeout");
        assert_eq!(answer.header("Connection"), Some("close"));
    }
    for mut client in [first, kept, pipelined, silent] {
        assert!(client.closes_within(LIMIT).await);
    }
    assert_eq!(site.upstream.count(), served);
    assert_eq!(site.limited("header_timeout").await, 4.0);
    let line = site.proxy.wait_for_log(|line| line["status"] == 408).await;
    assert_eq!(
        (&line["decision"], &line["request_id"]),
        (&json!("refused"), &first_or(&line, [&first_answer, &second_answer, &pipelined_answer, &silent_answer,]))
    );
    assert!(site.serves().await);
}

/// The id of the answer that a line is about.
fn first_or(line: &serde_json::Value, answers: [&RawResponse; 4]) -> serde_json::Value {
    let mut ids = answers.iter().map(|answer| answer.json()["request_id"].clone());
    ids.find(|id| *id == line["request_id"]).expect("a line of one of them")
}

/// What is slow is not the head: requests that are answered late, and connections between two requests.
#[tokio::test]
async fn who_is_not_slow_is_not_hurried() {
    let site = Site::with(json!({ "header_timeout": SHORT, "body_timeout": SHORT, "write_timeout": SHORT })).await;
    site.upstream.on("/late", Reply::after(Duration::from_millis(1_500), Reply::status(204)));
    let mut client = site.connect().await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    for target in ["/late", CORE] {
        client.send(get(target, None)).await.expect("still open");
        assert_eq!(client.response().await.status / 100, 2);
        // Between two requests nobody is in a hurry.
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    // In two pieces, each in time.
    client.send("GET /x HTTP/1.1\r\nHo").await.expect("still open");
    tokio::time::sleep(Duration::from_millis(150)).await;
    client.send("st: app\r\n\r\n").await.expect("still open");
    assert_eq!(client.response().await.status, 200);
    assert_eq!(site.proxy.metrics().await.sum("dotmac_limited_total"), 0.0);
}

#[tokio::test]
async fn idle_connections_are_closed_without_a_word() {
    let site = Site::with(json!({ "idle_timeout": SHORT })).await;
    site.upstream.on("/late", Reply::after(Duration::from_millis(1_500), Reply::status(204)));
    let (mut fresh, mut used) = (site.connect().await, site.connect().await);
    // A request that takes longer than connections may be idle is no idle connection.
    used.send(get("/late", None)).await.expect("sent");
    assert_eq!(used.response().await.status, 204);
    assert!(fresh.closes_within(LIMIT).await);
    assert!(used.closes_within(LIMIT).await);
    site.gauge("dotmac_connections", 0.0).await;
    assert_eq!(site.proxy.metrics().await.sum("dotmac_limited_total"), 0.0);
}

#[tokio::test]
async fn large_heads_are_answered_and_take_no_memory() {
    let site = Site::with(json!({})).await;
    let before = site.proxy.rss_bytes();
    let headers = |count: usize| "X-A: 1\r\n".repeat(count);
    let head = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nHost: app\r\n{headers}\r\n");
    let long = |length: usize| "x".repeat(length);
    let value = |length: usize| format!("X-A: {}\r\n", long(length));
    for (what, head, status, reason) in [
        ("a hundred and one headers", head("/x", &headers(100)), 431, "headers_too_large"),
        ("more than pingora reads", head("/x", &headers(300)), 431, "headers_too_large"),
        ("a hundred thousand", head("/x", &headers(100_000)), 431, "headers_too_large"),
        ("65 KiB in one", head("/x", &value(65 << 10)), 431, "headers_too_large"),
        ("a mebibyte in one", head("/x", &value(1 << 20)), 431, "headers_too_large"),
        ("a mebibyte in ninety", head("/x", &value(12 << 10).repeat(90)), 431, "headers_too_large"),
        ("a long target", head(&format!("/{}", long(17 << 10)), ""), 414, "target_too_long"),
        ("a longer one", head(&format!("/{}", long(100 << 10)), ""), 414, "target_too_long"),
        ("one without an end", format!("GET /{}", long(1 << 20)), 414, "target_too_long"),
        ("no request at all", long(1 << 10) + "\r\n\r\n", 400, "request_malformed"),
        ("a space in a name", head("/x", "X A: 1\r\n"), 400, "request_malformed"),
    ] {
        let mut client = site.connect().await;
        // Whoever still writes when it is answered may find the connection closed.
        let _ = client.send(&head).await;
        let answer = client.try_response(false).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.status, status, "{what}: {}", answer.text());
        refused(&answer, status, reason);
        assert_eq!(answer.header("Connection"), Some("close"), "{what}");
    }
    assert_eq!((site.limited("headers").await, site.limited("uri_bytes").await), (6.0, 3.0));
    // What is exactly as large as it may be is served.
    let mut client = site.connect().await;
    client.send(head("/x", &headers(99))).await.expect("sent");
    assert_eq!(client.response().await.status, 200);
    let target = format!("/{}", long((16 << 10) - 1));
    client.send(head(&target, &value((64 << 10) - 100))).await.expect("sent");
    assert_eq!(client.response().await.status, 200);
    assert_eq!(site.upstream.last().target, target);

    // Two hundred at once, each of which would be a mebibyte.
    let bomb = format!("GET /x HTTP/1.1\r\nHost: app\r\nX-A: {}", long((1 << 20) - 100));
    let bombs = (0..200).map(|_| async {
        let mut client = site.connect().await;
        let _ = client.send(&bomb).await;
        client
    });
    let clients = futures::future::join_all(bombs).await;
    let grown = site.proxy.peak_rss_bytes().saturating_sub(before);
    println!("200 heads of a mebibyte: {} KiB more at most", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes");
    drop(clients);
    assert_eq!(site.upstream.count(), 2);
    assert!(site.serves().await);
}

/// Pingora refuses some heads without a word; they are answered as any other refusal, logged and counted.
#[tokio::test]
async fn what_is_no_request_is_answered_like_any_refusal() {
    let site = Site::with(json!({})).await;
    let mut client = site.connect().await;
    client.send(get(CORE, Some(tenant(1)))).await.expect("sent");
    assert_eq!(client.response().await.status, 200);
    client.send("GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /y HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
    let answer = client.response().await;
    refused(&answer, 400, "request_malformed");
    assert!(client.closes_within(LIMIT).await, "what follows is not read");
    let line = site.proxy.wait_for_log(|line| line["status"] == 400).await;
    assert_eq!((&line["decision"], &line["reason"]), (&json!("denied"), &json!("request_malformed")));
    let counted = [("feature", ""), ("reason", "request_malformed")];
    assert_eq!(site.proxy.metrics().await.value("dotmac_feature_denials_total", &counted), Some(1.0));
    assert_eq!(site.upstream.count(), 1);
}
