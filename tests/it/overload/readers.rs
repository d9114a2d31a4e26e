//! Clients that do not read what they asked for.

use std::time::Duration;

use serde_json::json;

use super::{CORE, LIMIT, SHORT, Site, get};
use crate::harness::Reply;

/// The connection to the upstream is given up with the client, and what it has sent is not kept.
#[tokio::test]
async fn who_reads_nothing_is_let_go() {
    const READERS: usize = 50;
    let site = Site::with(json!({ "write_timeout": SHORT })).await;
    site.upstream.on("/large", Reply::Bytes(256 << 20));
    assert!(site.serves().await);
    let (before, files) = (site.proxy.rss_bytes(), site.open_files());
    let mut clients = Vec::new();
    for _ in 0..READERS {
        let mut client = site.connect().await;
        client.send(get("/large", None)).await.expect("sent");
        clients.push(client);
    }
    site.met("write_timeout", READERS as f64).await;
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    site.gauge("dotmac_connections", 0.0).await;
    super::until("the upstream's connections are closed", async || site.open_files() <= files).await;
    let grown = site.proxy.peak_rss_bytes().saturating_sub(before);
    println!("{READERS} readers of nothing of 256 MiB each: {} KiB more at most", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes");
    assert!(site.serves().await);
}

/// Heads, too, are written to somebody who takes them: thousands of short answers, none of which is read.
#[tokio::test]
async fn who_asks_and_never_reads_is_let_go() {
    let site = Site::with(json!({ "write_timeout": SHORT })).await;
    let mut client = site.connect().await;
    let many = get(CORE, None).repeat(1_000);
    let sending = async { while client.send(&many).await.is_ok() {} };
    tokio::time::timeout(2 * LIMIT, sending).await.expect("it is closed in the end");
    site.met("write_timeout", 1.0).await;
    site.gauge("dotmac_connections", 0.0).await;
}

/// Slow is not stopped: who takes something now and then gets all.
#[tokio::test]
async fn a_slow_reader_gets_all() {
    const LENGTH: usize = 24 << 20;
    let site = Site::with(json!({ "write_timeout": SHORT })).await;
    site.upstream.on("/large", Reply::Bytes(LENGTH as u64));
    let mut client = site.connect().await;
    client.send(get("/large", None)).await.expect("sent");
    assert_eq!(client.response_head().await.status, 200);
    let (mut read, mut pauses) = (0, 0);
    while read < LENGTH {
        if read / (4 << 20) > pauses {
            pauses += 1;
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let bytes = client.bytes().await.expect("still open");
        assert!(!bytes.is_empty(), "closed after {read} bytes");
        read += bytes.len();
    }
    assert_eq!((read, site.limited("write_timeout").await), (LENGTH, 0.0));
}
