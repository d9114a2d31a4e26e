//! Many connections: how many there may be, what they cost, and what is left of them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::future;
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{CORE, LIMIT, Site, get, refused, tenant};
use crate::harness::{RawClient, Reply, client};

/// Raises what this process and those it starts may have open.
fn allow_open_files(count: usize) {
    let (pid, limit) = (std::process::id().to_string(), format!("--nofile={count}:"));
    let raised = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).output().expect("util-linux");
    assert!(raised.status.success(), "this test needs {count} open files: {}", String::from_utf8_lossy(&raised.stderr));
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// With the limits as they are shipped, in a process that may use no more than 256 MiB.
#[tokio::test]
async fn ten_thousand_idle_connections() {
    const CONNECTIONS: usize = 10_000;
    const MOST: u64 = 256 << 20;
    allow_open_files(CONNECTIONS + 1_000);
    let site = Site::with(json!({ "idle_timeout": "10m" })).await;
    assert!(site.serves().await);
    site.gauge("dotmac_connections", 0.0).await;
    let (before, files) = (site.proxy.rss_bytes(), site.open_files());
    let address = site.proxy.address();
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for batch in 0..CONNECTIONS / 100 {
        connections.extend(future::join_all((0..100).map(|_| connect(address))).await);
        // Half of them have had a request, and wait for the next.
        if batch == CONNECTIONS / 200 {
            let silent = site.proxy.rss_bytes().saturating_sub(before) / connections.len() as u64;
            println!("{} that have sent nothing: {silent} bytes each", connections.len());
        }
        if batch >= CONNECTIONS / 200 {
            let last = connections.len() - 100;
            for stream in &mut connections[last..] {
                stream.write_all(get(CORE, Some(tenant(1))).as_bytes()).await.expect("open");
            }
            for stream in &mut connections[last..] {
                let mut answer = [0; 4096];
                let read = stream.read(&mut answer).await.expect("an answer");
                assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
            }
            site.upstream.forget();
        }
    }
    site.gauge("dotmac_connections", CONNECTIONS as f64).await;
    let (with, most) = (site.proxy.rss_bytes(), site.proxy.peak_rss_bytes());
    println!(
        "{CONNECTIONS} idle connections: {} MiB, {} MiB at most, {} bytes each",
        with >> 20,
        most >> 20,
        with.saturating_sub(before) / CONNECTIONS as u64
    );
    assert!(most < MOST, "{most} bytes");
    let begun = Instant::now();
    for _ in 0..100 {
        assert!(site.serves().await);
    }
    println!("100 requests beside them took {:?}", begun.elapsed());
    // Each of them is still good for a request.
    for stream in connections.iter_mut().step_by(97) {
        stream.write_all(get(CORE, None).as_bytes()).await.expect("open");
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).await.expect("an answer");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200 "));
    }
    drop(connections);
    site.gauge("dotmac_connections", 0.0).await;
    super::until("all files are closed", async || site.open_files() <= files + 4).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_answered_503() {
    const MOST: usize = 20;
    let site = Site::with(json!({ "connections": MOST })).await;
    site.upstream.on("/ws", Reply::WebSocket);
    let upgrade = |target: &str| {
        format!(
            "GET {target} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            tenant(1)
        )
    };
    // Silent ones, those that have had a request, and WebSockets, the backend's and our own.
    let mut held = Vec::new();
    for n in 0..MOST {
        let mut connection = site.connect().await;
        match n % 4 {
            0 => {}
            1 => {
                connection.send(get(CORE, None)).await.expect("open");
                assert_eq!(connection.response().await.status, 200);
            }
            n => {
                connection.send(upgrade(if n == 2 { "/ws" } else { "/ws/license" })).await.expect("open");
                assert_eq!(connection.response_head().await.status, 101);
            }
        }
        held.push(connection);
    }
    site.gauge("dotmac_connections", MOST as f64).await;
    for head in [get(CORE, None), get(&format!("/{}", "x".repeat(10_000)), None), String::new()] {
        let mut late = site.connect().await;
        // It may have been answered before it has asked.
        let _ = late.send(head).await;
        let answer = late.response().await;
        refused(&answer, 503, "overloaded");
        assert_eq!(answer.header("Connection"), Some("close"));
        assert!(late.closes_within(LIMIT).await);
    }
    assert_eq!(site.limited("connections").await, 3.0);
    site.proxy.wait_for_log(|line| line["status"] == 503 && line["decision"] == "refused").await;
    assert_eq!(client::request(site.proxy.ops_address(), "GET", "/livez", &[]).await.status, 200);
    // Those who have a place keep it, and whoever leaves makes room for one, whatever the connection was.
    held[1].send(get(CORE, None)).await.expect("open");
    assert_eq!(held[1].response().await.status, 200);
    for n in 0..4 {
        drop(held.remove(0));
        site.gauge("dotmac_connections", (MOST - 1) as f64).await;
        let mut next = site.connect().await;
        next.send(get(CORE, None)).await.expect("open");
        assert_eq!(next.response().await.status, 200, "after {n}");
        held.push(next);
    }
}

/// A flood beyond the limit costs no memory, and those who have a place do not notice.
#[tokio::test]
async fn a_flood_of_connections() {
    const FLOOD: usize = 5_000;
    allow_open_files(FLOOD + 1_000);
    let site = Site::with(json!({ "connections": 50 })).await;
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(site.connect().await);
    }
    for connection in &mut held {
        connection.send(get(CORE, None)).await.expect("open");
        assert_eq!(connection.response().await.status, 200);
    }
    let (before, files) = (site.proxy.rss_bytes(), site.open_files());
    let address = site.proxy.address();
    let flood = tokio::spawn(async move {
        let mut answered = 0;
        let mut kept = Vec::new();
        for _ in 0..FLOOD / 100 {
            let streams = future::join_all((0..100).map(|_| connect(address))).await;
            kept.extend(streams);
        }
        for mut stream in kept {
            let mut answer = [0; 64];
            if matches!(stream.read(&mut answer).await, Ok(1..)) {
                answered += usize::from(answer.starts_with(b"HTTP/1.1 503 "));
            }
        }
        answered
    });
    while !flood.is_finished() {
        for connection in held.iter_mut().step_by(10) {
            connection.send(get(CORE, None)).await.expect("open");
            assert_eq!(connection.response().await.status, 200);
        }
    }
    let answered = flood.await.expect("no panic");
    let grown = site.proxy.peak_rss_bytes().saturating_sub(before);
    println!("{FLOOD} connections beyond the limit: {answered} read a 503, {} KiB more at most", grown >> 10);
    // They had sent nothing, so that none is reset before it has read.
    assert_eq!(answered, FLOOD);
    assert!(grown < 32 << 20, "{grown} bytes");
    site.met("connections", FLOOD as f64).await;
    super::until("all files are closed", async || site.open_files() <= files + 4).await;
}

/// Clients that come and go in every way there is: nothing is left of them.
#[tokio::test]
async fn nothing_leaks() {
    const ROUNDS: usize = 6;
    const EACH: usize = 200;
    let site = Site::start(|builder| builder.set("/upstream/idle_timeout", "300ms")).await;
    site.upstream.on("/slow", Reply::after(Duration::from_millis(300), Reply::status(204)));
    site.upstream.on("/large", Reply::Bytes(4 << 20));
    let address = site.proxy.address();
    let upload = format!("POST {CORE} HTTP/1.1\r\nHost: app\r\nContent-Length: 1000000\r\n\r\nhalf");
    let comers = [
        "G".to_owned(),
        "PRI * HTTP/2.0".to_owned(),
        "GET /x HTTP/1.1\r\nHost".to_owned(),
        "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
        get(CORE, None),
        get("/slow", Some(tenant(1))),
        get("/large", None),
        upload,
    ];
    let mut sizes = Vec::new();
    let mut files = None;
    for _ in 0..ROUNDS {
        for text in &comers {
            let visits = (0..EACH).map(|n| async move {
                let mut stream = connect(address).await;
                stream.write_all(text.as_bytes()).await.expect("open");
                if n % 2 == 0 {
                    // Gone with a reset.
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
                }
            });
            future::join_all(visits).await;
        }
        site.gauge("dotmac_connections", 0.0).await;
        site.gauge("dotmac_requests_in_flight", 0.0).await;
        // The upstream's idle connections are closed a little later.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let first = *files.get_or_insert(site.open_files());
        super::until("all files are closed", async || site.open_files() <= first + 4).await;
        sizes.push(site.proxy.rss_bytes());
        site.upstream.forget();
    }
    println!(
        "after each {} clients: {:?} KiB",
        EACH * comers.len(),
        sizes.iter().map(|size| size >> 10).collect::<Vec<_>>()
    );
    // How much it takes at once differs from round to round. If as little as the buffers of each client were left, every
    // round would end 6 MiB above the one before.
    let (early, late) = sizes.split_at(ROUNDS / 2);
    let (most, least) = (early.iter().max().expect("rounds"), late.iter().min().expect("rounds"));
    assert!(*least < most + (4 << 20), "{least} bytes at the least in the later rounds, {most} at the most before");
    assert!(site.serves().await);
    let mut quiet = RawClient::connect(address).await;
    quiet.send(get(CORE, None)).await.expect("open");
    assert_eq!(quiet.response().await.status, 200);
}
