//! Bodies and WebSockets: as they come, both ways, without being held.
//!
//! Where one thing must not wait for another, the test plays the backend and lets the second happen only after the first
//! has arrived.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::{Error, Message, client::IntoClientRequest};

use crate::harness::upstream::generated_block;
use crate::harness::{RawClient, Reply, World};

const GIB: u64 = 1 << 30;
const MEMORY: u64 = 64 << 20;
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

#[tokio::test]
async fn a_response_arrives_while_it_is_being_written() {
    let (world, backend) = World::behind_a_played_backend().await;
    // Of a response of known length pingora holds back what is below 1,460 bytes.
    let large = format!("{}one", " ".repeat(2000));
    let lengthy = format!("Content-Length: {}", large.len() + 3);
    for (framing, pieces) in [
        ("Transfer-Encoding: chunked", ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"]),
        (&lengthy, [&large, "two", ""]),
        ("X-Ends-With: the connection", ["one", "two", ""]),
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send("GET /stream HTTP/1.1\r\nHost: app\r\n\r\n").await.expect("sent");
        let (mut upstream, _) = backend.request().await;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{framing}\r\n\r\n");
        upstream.send(head).await.expect("sent");
        upstream.send(pieces[0]).await.expect("sent");
        connection.until("one").await;
        upstream.send(pieces[1]).await.expect("sent");
        connection.until("two").await;
        upstream.send(pieces[2]).await.expect("sent");
        drop(upstream);
        if framing != lengthy {
            connection.until("0\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn a_request_arrives_while_it_is_being_written() {
    let (world, backend) = World::behind_a_played_backend().await;
    for (framing, pieces) in [
        ("Transfer-Encoding: chunked", ["3\r\none\r\n", "3\r\ntwo\r\n", "0\r\n\r\n"]),
        ("Content-Length: 6", ["one", "two", ""]),
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        let head = format!("POST /stream HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n");
        connection.send(head).await.expect("sent");
        let (mut upstream, head) = backend.request().await;
        assert!(head.contains(framing), "{head}");
        for (piece, word) in pieces.iter().zip(["one", "two"]) {
            connection.send(piece).await.expect("sent");
            upstream.until(word).await;
            // The answer may begin before the request has ended.
            if word == "one" {
                upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").await.expect("sent");
                assert_eq!(connection.response_head().await.status, 200);
                connection.until("early").await;
            }
        }
        connection.send(pieces[2]).await.expect("sent");
        if framing != "Content-Length: 6" {
            upstream.until("0\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn server_sent_events() {
    let world = World::start().await;
    let tenant = world.tenant("professional").await;
    world.upstream.on("/api/v1/crm/events", Reply::events(5, Duration::from_millis(20)));
    let events = world.get("/api/v1/crm/events", tenant).await;
    assert_eq!(events.header("Content-Type"), Some("text/event-stream"));
    assert_eq!(events.text(), "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n");
}

/// A slow sender is no slow backend: the time for an answer runs from the latest piece of the request.
#[tokio::test]
async fn a_slow_upload_is_not_cut() {
    let world = World::start_with(|builder| builder.set("/upstream/response_timeout", "3s")).await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 14\r\n\r\n").await.expect("sent");
    for _ in 0..14 {
        connection.send("x").await.expect("sent");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(world.upstream.last().body, [b'x'; 14]);
}

#[tokio::test]
async fn a_gibibyte_each_way_in_little_memory() {
    let world = World::start().await;
    let tenant = world.tenant("enterprise").await.to_string();
    world.upstream.on("/api/v1/projects/export", Reply::Bytes(GIB));
    let (download, upload) = tokio::join!(
        tokio::spawn(download(world.proxy.address(), tenant.clone())),
        tokio::spawn(upload(world.proxy.address(), tenant.clone())),
    );
    assert_eq!(download.expect("no panic"), GIB);
    assert!(upload.expect("no panic").starts_with("HTTP/1.1 200 "));
    let requests = world.upstream.wait_for(2).await;
    let import = requests.iter().find(|request| request.method == "POST").expect("the upload");
    assert_eq!(import.body_bytes, GIB);
    assert_eq!(import.body_fingerprint, fingerprint_of_a_gibibyte());
    let peak = world.proxy.peak_rss_bytes();
    assert!(peak < MEMORY, "{} MiB at the most", peak >> 20);
}

/// Reads the answer to its end, comparing each byte, and returns the length of its body.
async fn download(proxy: SocketAddr, tenant: String) -> u64 {
    let mut stream = TcpStream::connect(proxy).await.expect("the proxy listens");
    let request = format!("GET /api/v1/projects/export HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let block = generated_block();
    let mut buffer = vec![0; 256 * 1024];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    assert!(String::from_utf8_lossy(&head).contains("Content-Length: 1073741824\r\n"), "{head:?}");
    let mut length = 0;
    while length < GIB {
        let read = stream.read(&mut buffer).await.expect("the body");
        assert!(read > 0, "cut off after {length} bytes");
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            let at = usize::try_from(length % block.len() as u64).expect("a small number");
            let (piece, after) = rest.split_at(rest.len().min(block.len() - at));
            assert!(piece == &block[at..at + piece.len()], "other bytes near {length}");
            length += piece.len() as u64;
            rest = after;
        }
    }
    length
}

/// Sends a gibibyte in chunks and returns the head of the answer.
async fn upload(proxy: SocketAddr, tenant: String) -> String {
    let mut stream = TcpStream::connect(proxy).await.expect("the proxy listens");
    let head = format!(
        "POST /api/v1/projects/import HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend_from_slice(&generated_block());
    chunk.extend_from_slice(b"\r\n");
    for _ in 0..GIB / generated_block().len() as u64 {
        stream.write_all(&chunk).await.expect("sent");
    }
    stream.write_all(b"0\r\n\r\n").await.expect("sent");
    RawClient::over(stream).raw_head().await
}

fn fingerprint_of_a_gibibyte() -> u64 {
    let block = generated_block();
    crate::harness::upstream::fingerprint_of((0..GIB / block.len() as u64).map(|_| &*block))
}

/// Who asks first whether it may send hears the backend's word, and a refusal comes without an invitation to send.
#[tokio::test]
async fn expect_100_continue() {
    let (world, backend) = World::behind_a_played_backend().await;
    let tenant = world.tenant("starter").await;
    let head = |target: &str| {
        format!(
            "POST {target} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nExpect: 100-continue\r\n\
             Content-Length: 5\r\n\r\n"
        )
    };
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(head("/api/v1/tickets")).await.expect("sent");
    let (mut upstream, seen) = backend.request().await;
    assert!(seen.to_lowercase().contains("\r\nexpect: 100-continue\r\n"), "{seen}");
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await.expect("sent");
    assert_eq!(connection.response_head().await.status, 100);
    connection.send("hello").await.expect("sent");
    upstream.until("hello").await;
    upstream.send("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.expect("sent");
    assert_eq!(connection.response().await.status, 201);

    // The backend may refuse as well.
    connection.send(head("/api/v1/tickets")).await.expect("still open");
    upstream.raw_head().await;
    upstream.send("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.expect("sent");
    let answer = connection.response().await;
    assert_eq!((answer.status, answer.header("Connection")), (417, Some("close")));

    let mut denied = RawClient::connect(world.proxy.address()).await;
    denied.send(head("/api/v1/crm")).await.expect("sent");
    let answer = denied.response().await;
    assert_eq!((answer.status, answer.header("Connection")), (402, Some("close")));
}

#[tokio::test]
async fn websockets_of_the_licensed() {
    let world = World::start().await;
    let tenant = world.tenant("professional").await;
    let denied = world.tenant("starter").await;
    world.upstream.on("/api/v1/crm/live", Reply::WebSocket);
    let request = |tenant: uuid::Uuid| {
        let mut request =
            format!("ws://{}/api/v1/crm/live?x=1", world.proxy.address()).into_client_request().expect("a URL");
        request.headers_mut().insert("X-Tenant-ID", tenant.to_string().parse().expect("a header"));
        request
    };
    let (mut socket, answer) = tokio_tungstenite::connect_async(request(tenant)).await.expect("101");
    assert_eq!(answer.status(), 101);
    let seen = world.upstream.last();
    assert_eq!(seen.header("X-License-Plan"), Some("professional"));
    assert_eq!(seen.header("Connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
    for length in [0_usize, 1, 125, 126, 65_535, 65_536, 1_000_000] {
        let sent = Message::Binary(Bytes::from(vec![length as u8; length]));
        socket.send(sent.clone()).await.expect("open");
        assert_eq!(socket.next().await.expect("open").expect("a message"), sent);
    }
    socket.send(Message::Ping(Bytes::from_static(b"?"))).await.expect("open");
    assert_eq!(socket.next().await.expect("open").expect("a message"), Message::Pong(Bytes::from_static(b"?")));
    socket.close(None).await.expect("open");
    while let Some(message) = socket.next().await {
        assert!(message.expect("an orderly end").is_close());
    }
    let line = world.proxy.wait_for_log(|line| line["status"] == 101).await;
    assert_eq!((&line["decision"], &line["upstream_status"]), (&"allowed".into(), &101.into()));

    let before = world.upstream.count();
    match tokio_tungstenite::connect_async(request(denied)).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), 402),
        other => panic!("no 402: {other:?}"),
    }
    assert_eq!(world.upstream.count(), before);
}

/// What either side sends ahead of the other's word arrives, in order, at its earliest (pingora's issue 946).
#[tokio::test]
async fn a_websocket_in_a_hurry() {
    let (world, backend) = World::behind_a_played_backend().await;
    let accept = derive_accept_key(KEY.as_bytes());
    let request = format!(
        "GET /live HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    let upgraded = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    for round in 0..20 {
        // What the client sends with the request, and while the backend has not answered.
        for (with_it, after_it) in [("", ""), ("<early>", ""), ("", "<early>"), ("<ea", "rly>")] {
            let mut connection = RawClient::connect(world.proxy.address()).await;
            connection.send(format!("{request}{with_it}")).await.expect("sent");
            let (mut upstream, _) = backend.request().await;
            if !after_it.is_empty() {
                connection.send(after_it).await.expect("sent");
            }
            upstream.send(format!("{upgraded}<behind the 101>")).await.expect("sent");
            assert_eq!(connection.response_head().await.status, 101, "{round} {with_it} {after_it}");
            connection.until("<behind the 101>").await;
            if !(with_it.is_empty() && after_it.is_empty()) {
                upstream.until("<early>").await;
            }
            for _ in 0..3 {
                connection.send("<up>").await.expect("open");
                upstream.until("<up>").await;
                upstream.send("<down>").await.expect("open");
                connection.until("<down>").await;
            }
            drop(upstream);
            assert!(connection.closes_within(Duration::from_secs(20)).await);
        }
    }
}

/// A backend that does not upgrade gives an ordinary answer.
#[tokio::test]
async fn an_upgrade_that_the_backend_refuses() {
    let world = World::start().await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let request = format!(
        "GET /api/v1/network HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    for _ in 0..2 {
        connection.send(&request).await.expect("still open");
        assert_eq!(connection.response().await.status, 200);
    }
}
