//! Requests for an upgrade, and bytes that come before the word on it: they belong to nobody but the connection's own.

use std::time::Duration;

use bytes::Bytes;

use super::{CLOSING, HOST, SMUGGLED, forwarded, received, refused, seen, summary, world};
use crate::harness::{RawClient, Reply};

const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Behind an upgrade that is denied comes a request, if anything, and it is judged.
#[tokio::test]
async fn bytes_behind_a_denied_upgrade() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let who = format!("{HOST}X-Tenant-ID: {tenant}\r\n");
    let upgrade = format!("GET /api/v1/crm/live HTTP/1.1\r\n{who}{WEBSOCKET}\r\n");
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(format!("{upgrade}GET /api/v1/crm/behind HTTP/1.1\r\n{who}\r\n")).await.expect("sent");
    for _ in 0..2 {
        assert_eq!(connection.response().await.status, 402);
    }
    assert_eq!(received(&world, "a request behind a denial").await, []);

    // A frame of a WebSocket is no request.
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection
        .send([upgrade.as_bytes(), b"\x81\x85\x01\x02\x03\x04ig`de\r\n\r\n", SMUGGLED.as_bytes()].concat())
        .await
        .expect("sent");
    assert_eq!(connection.response().await.status, 402);
    assert_eq!(connection.response().await.status, 400);
    assert!(connection.closes_within(CLOSING).await);
    assert_eq!(received(&world, "a frame behind a denial").await, []);
}

/// A backend that does not upgrade would read what is behind as a request of its own: it never gets it unjudged, at whatever
/// moment it comes.
#[tokio::test]
async fn bytes_behind_an_upgrade_that_the_backend_refuses() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let who = format!("{HOST}X-Tenant-ID: {tenant}\r\n");
    let behind = format!("GET /api/v1/crm/smuggled HTTP/1.1\r\n{who}\r\n");
    for status in [200, 400, 403, 426, 500] {
        let refusal = Reply::Full { status, headers: Vec::new(), body: Bytes::from_static(b"no") };
        world.upstream.on("/api/v1/tickets/live", Reply::after(Duration::from_millis(60), refusal));
        for upgrade in [WEBSOCKET, "Connection: Upgrade\r\nUpgrade: x\r\n", "Upgrade: websocket\r\n"] {
            for pause in [Duration::ZERO, Duration::from_millis(30)] {
                let case = format!("{status} {upgrade} {pause:?}");
                let request = format!("GET /api/v1/tickets/live HTTP/1.1\r\n{who}{upgrade}\r\n");
                let mut connection = RawClient::connect(world.proxy.address()).await;
                if pause.is_zero() {
                    connection.send(format!("{request}{behind}")).await.expect("sent");
                } else {
                    connection.send(request).await.expect("sent");
                    tokio::time::sleep(pause).await;
                    connection.send(&behind).await.expect("sent");
                }
                assert_eq!(connection.response().await.status, status, "{case}");
                assert_eq!(connection.response().await.status, 402, "{case}: judged by itself");
                assert_eq!(summary(&received(&world, &case).await), [("/api/v1/tickets/live", "")], "{case}");
            }
        }
    }
}

/// The body of such a request is a body. One for a WebSocket has none: some parsers would take it for what comes behind the
/// upgrade.
#[tokio::test]
async fn an_upgrade_with_a_body() {
    let world = world().await;
    let length = SMUGGLED.len();
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{SMUGGLED}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
    ] {
        for upgrade in [h2c, "Upgrade: x\r\n"] {
            forwarded(&world, format!("POST /x HTTP/1.1\r\n{HOST}{upgrade}{framing}"), &[("/x", SMUGGLED)]).await;
        }
        for upgrade in [WEBSOCKET, "Upgrade: websocket\r\n", "Upgrade: WebSocket\r\n", "Upgrade: x, websocket/13\r\n"] {
            for method in ["GET", "POST"] {
                refused(&world, format!("{method} /x HTTP/1.1\r\n{HOST}{upgrade}{framing}"), 400).await;
            }
        }
    }
    forwarded(&world, format!("GET /x HTTP/1.1\r\n{HOST}{WEBSOCKET}Content-Length: 0\r\n\r\n"), &[("/x", "")]).await;
}

/// Nobody upgrades to a protocol in which requests could be sent past the gate.
#[tokio::test]
async fn other_protocols_than_websocket() {
    let world = world().await;
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for upgrade in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Upgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade: \r\n",
        "Connection: HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ] {
        world.upstream.on("/x", Reply::Describe);
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("GET /x HTTP/1.1\r\n{HOST}{upgrade}\r\n")).await.expect("sent");
        assert_eq!(connection.response().await.status, 200, "{upgrade}");
        let seen = world.upstream.last();
        let upgrades = seen.headers_named("upgrade");
        assert!(upgrades.is_empty() || upgrades == ["websocket"], "{upgrade}: {upgrades:?}");
        assert_eq!(seen.headers_named("http2-settings"), Vec::<&str>::new(), "{upgrade}");
        received(&world, upgrade).await;

        // A backend that says yes all the same gets no tunnel, unless to a WebSocket.
        let yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n";
        world.upstream.on("/x", Reply::Raw(Bytes::from_static(yes.as_bytes())));
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("GET /x HTTP/1.1\r\n{HOST}{upgrade}\r\n{preface}{SMUGGLED}")).await.expect("sent");
        let answer = connection.response().await;
        assert!(answer.status == 502 || upgrades == ["websocket"], "{upgrade}: {}", answer.status);
        received(&world, upgrade).await;
    }
    // Not asked for, not by HTTP/1.0.
    let yes = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    world.upstream.on("/x", Reply::Raw(Bytes::from_static(yes.as_bytes())));
    for request in [
        format!("GET /x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET /x HTTP/1.0\r\n{HOST}{WEBSOCKET}\r\n"),
        format!("GET /x HTTP/1.1\r\n{HOST}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("{request}{SMUGGLED}")).await.expect("sent");
        assert_eq!(connection.response().await.status, 502, "{request}");
        received(&world, &request).await;
    }
    drop(seen(&world, "all of them"));
}
