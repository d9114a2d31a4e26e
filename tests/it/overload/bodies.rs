//! Bodies that take long, or are large.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::{CORE, LIMIT, SHORT, Site, refused};
use crate::harness::Reply;

fn post(target: &str, headers: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: app\r\n{headers}\r\n")
}

#[tokio::test]
async fn a_body_that_stops_is_answered_408_and_frees_the_upstream() {
    let site = Site::with(json!({ "body_timeout": SHORT })).await;
    let files = site.open_files();
    for (headers, sent) in [
        ("Content-Length: 100\r\n", "ninety are missing"),
        ("Content-Length: 100\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5"),
    ] {
        let mut client = site.connect().await;
        client.send(post(CORE, headers) + sent).await.expect("sent");
        let answer = client.response().await;
        refused(&answer, 408, "request_timeout");
        assert_eq!(answer.header("Connection"), Some("close"));
        assert!(client.closes_within(LIMIT).await);
    }
    site.met("body_timeout", 4.0).await;
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    super::until("the upstream's connections are closed", async || site.open_files() <= files).await;
    assert!(site.upstream.requests().iter().all(|request| !request.complete), "half a request is none");
    let line = site.proxy.wait_for_log(|line| line["status"] == 408).await;
    assert_eq!((&line["path"], &line["decision"]), (&json!(CORE), &json!("open")));
    assert_eq!(site.proxy.metric("dotmac_upstream_errors_total").await, 0.0, "none of it is the upstream's fault");
}

/// Slow is not stopped: only pauses are bounded.
#[tokio::test]
async fn a_slow_upload_arrives() {
    let site = Site::with(json!({ "body_timeout": SHORT, "header_timeout": SHORT, "idle_timeout": SHORT })).await;
    let mut client = site.connect().await;
    client.send(post(CORE, "Content-Length: 12\r\n")).await.expect("sent");
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.send("x").await.expect("still open");
    }
    assert_eq!(client.response().await.status, 200);
    assert_eq!(site.upstream.last().body_bytes, 12);
    assert_eq!(site.proxy.metrics().await.sum("dotmac_limited_total"), 0.0);
}

/// Whether the length is announced or not, and whatever the protocol.
#[tokio::test]
async fn bodies_beyond_the_limit_are_answered_413() {
    let site = Site::with(json!({ "body_bytes": "100kB" })).await;
    for (size, status) in [(100_000, "200"), (100_001, "413"), (5_000_000, "413")] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), vec![b'x'; size]).expect("room for it");
        for how in [
            &["-H", "Expect:"][..],
            &["-H", "Transfer-Encoding: chunked", "-H", "Expect:"],
            &["--http2-prior-knowledge"],
        ] {
            let output = Command::new("curl")
                .args(["-sS", "--data-binary", &format!("@{}", file.path().display()), "-w", "\n%{http_code}"])
                .args(how)
                .arg(format!("{}{CORE}", site.proxy.url()))
                .output()
                .expect("curl is installed");
            let out = String::from_utf8_lossy(&output.stdout);
            let (body, code) = out.rsplit_once('\n').expect("a status");
            assert_eq!(code, status, "{size} bytes, {how:?}: {out}{}", String::from_utf8_lossy(&output.stderr));
            let reason = serde_json::from_str::<serde_json::Value>(body).expect("JSON")["reason"].take();
            assert_eq!(reason == "body_too_large", status == "413", "{body}");
        }
    }
    let whole = site.upstream.requests().iter().filter(|request| request.complete).count();
    assert_eq!(whole, 3, "nothing larger arrives as a whole");
    assert_eq!(site.limited("body_bytes").await, 6.0);
    site.proxy.wait_for_log(|line| line["status"] == 413 && line["path"] == CORE).await;
}

/// A WebSocket of the backend may be silent for longer than an upload.
#[tokio::test]
async fn a_tunnel_may_be_silent() {
    let site = Site::with(json!({ "body_timeout": SHORT, "idle_timeout": SHORT, "write_timeout": SHORT })).await;
    site.upstream.on("/ws", Reply::WebSocket);
    let mut client = site.connect().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    client.send(format!("GET /ws HTTP/1.1\r\nHost: app\r\n{upgrade}\r\n")).await.expect("sent");
    assert_eq!(client.response_head().await.status, 101);
    site.gauge("dotmac_tunnels", 1.0).await;
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // "hi", masked with zeros (RFC 6455 section 5.2), comes back unmasked.
    client.send(b"\x81\x82\0\0\0\0hi").await.expect("still open");
    assert_eq!(client.bytes().await.expect("an answer"), b"\x81\x02hi");
    drop(client);
    site.gauge("dotmac_tunnels", 0.0).await;
}
