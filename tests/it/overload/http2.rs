//! The same over HTTP/2, where one connection carries many requests.

use std::time::Duration;

use bytes::Bytes;
use futures::future;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Request, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{CORE, LIMIT, SHORT, Site};
use crate::harness::raw_h2::{self, CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, block, frame};
use crate::harness::{Proxy, Reply};

/// A connection whose frames the test writes itself.
struct Frames(TcpStream);

impl Frames {
    async fn open(proxy: &Proxy) -> Frames {
        Frames(raw_h2::connect(proxy.address()).await)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.expect("still open");
    }

    /// The next frame's type, flags and payload; none at the end.
    async fn next(&mut self) -> Option<(u8, u8, Vec<u8>)> {
        let next = tokio::time::timeout(LIMIT, raw_h2::next(&mut self.0)).await.expect("an end within the limit");
        next.map(|frame| (frame.kind, frame.flags, frame.payload))
    }

    /// Whether the connection ends; what comes before that is passed over.
    async fn ends(&mut self) -> bool {
        while self.next().await.is_some() {}
        true
    }
}

fn request_block(method: &str) -> Vec<u8> {
    block(&[(":method", method), (":scheme", "http"), (":authority", "app"), (":path", CORE)])
}

/// A client that takes what it is sent as soon as it is told to.
async fn client(proxy: &Proxy) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    (client, tokio::spawn(async move { drop(connection.await) }))
}

fn request(target: &str) -> Request<()> {
    Request::builder().uri(format!("http://app{target}")).body(()).expect("a request")
}

async fn text(mut body: RecvStream) -> Result<String, h2::Error> {
    let mut text = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        text.extend_from_slice(&piece);
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn prefaces_and_header_blocks_have_their_time() {
    let site = Site::with(json!({ "header_timeout": SHORT, "idle_timeout": "60s" })).await;
    let mut preface = TcpStream::connect(site.proxy.address()).await.expect("the proxy listens");
    preface.write_all(b"PRI * HTTP/2.0\r\n").await.expect("open");
    let whole = request_block("GET");
    let first = frame(HEADERS, END_STREAM, 1, &whole[..10]);
    let trickles = [
        // A frame's header, a block that ends within its frame, and one that goes on for ever in frames of its own.
        vec![first[..5].to_vec()],
        vec![first[..first.len() - 3].to_vec()],
        std::iter::once(first.clone()).chain(vec![frame(CONTINUATION, 0, 1, b""); 200]).collect(),
    ];
    let slow = trickles.map(|pieces| async {
        let mut frames = Frames::open(&site.proxy).await;
        for piece in pieces {
            if frames.0.write_all(&piece).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        frames.ends().await
    });
    let all = future::join_all(slow);
    let (ended, preface_ended) = tokio::join!(all, async {
        let mut rest = Vec::new();
        tokio::time::timeout(LIMIT, preface.read_to_end(&mut rest)).await.is_ok()
    });
    assert!(ended.iter().all(|ended| *ended) && preface_ended);
    assert_eq!(site.limited("header_timeout").await, 4.0);
    assert_eq!(site.upstream.count(), 0);

    // A block in two frames that comes in time, after a pause in which nothing was under way.
    let mut frames = Frames::open(&site.proxy).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    frames.send(&first).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    frames.send(&frame(CONTINUATION, END_HEADERS, 1, &whole[10..])).await;
    site.upstream.wait_for(1).await;
}

#[tokio::test]
async fn idle_connections_end_and_busy_ones_do_not() {
    let site = Site::with(json!({ "idle_timeout": SHORT, "header_timeout": SHORT })).await;
    site.upstream.on("/late", Reply::after(Duration::from_millis(1_500), Reply::status(204)));
    let (mut busy, ended) = client(&site.proxy).await;
    let (answer, _) = busy.send_request(request("/late"), true).expect("open");
    assert!(Frames::open(&site.proxy).await.ends().await, "nothing was ever asked for");
    assert_eq!(answer.await.expect("an answer").status(), StatusCode::NO_CONTENT);
    tokio::time::timeout(LIMIT, ended).await.expect("ends when it is idle").expect("no panic");
    site.gauge("dotmac_connections", 0.0).await;
}

#[tokio::test]
async fn large_lists_of_headers_are_answered_431_and_take_no_memory() {
    let site = Site::with(json!({})).await;
    let (mut client, _connection) = client(&site.proxy).await;
    for (count, length) in [(101, 1), (70, 1_000), (400, 200)] {
        let mut large = request(CORE);
        for n in 0..count {
            let name = http::HeaderName::try_from(format!("x-{n}")).expect("a name");
            large.headers_mut().insert(name, "x".repeat(length).parse().expect("a value"));
        }
        let (answer, _) = client.send_request(large, true).expect("open");
        assert_eq!(answer.await.expect("an answer").status(), 431, "{count} headers of {length} bytes");
    }
    let mut long = request(CORE);
    *long.uri_mut() = format!("http://app/{}", "x".repeat(20 << 10)).parse().expect("a URI");
    let (answer, _) = client.send_request(long, true).expect("open");
    let answer = answer.await.expect("an answer");
    assert_eq!(answer.status(), 414);
    assert!(text(answer.into_body()).await.expect("a body").contains(r#""reason":"target_too_long""#));
    let (answer, _) = client.send_request(request(CORE), true).expect("open");
    assert_eq!(answer.await.expect("an answer").status(), 200, "the connection goes on");

    // A header of 3,000 bytes goes into the table once and is then named ten thousand times, by one byte each.
    let before = site.proxy.rss_bytes();
    let mut bomb = request_block("GET");
    bomb.extend(b"\x40\x03x-a\x7f");
    bomb.extend([0xb9, 0x16]); // 127 + 0x39 + 0x16 * 128 = 3,000
    bomb.extend([b'x'; 3_000]);
    bomb.extend([0xbe; 10_000]);
    let bombs = (0..50).map(|_| async {
        let mut frames = Frames::open(&site.proxy).await;
        for n in 0..20_u32 {
            // The first ends the connection.
            let _ = frames.0.write_all(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &bomb)).await;
        }
        frames.ends().await
    });
    assert!(future::join_all(bombs).await.into_iter().all(|ended| ended));
    let grown = site.proxy.peak_rss_bytes().saturating_sub(before);
    println!("fifty connections with header lists of 30 MB each: {} KiB more at most", grown >> 10);
    assert!(grown < 64 << 20, "{grown} bytes");
    assert_eq!(site.upstream.count(), 1);
}

/// Asking and cancelling at once costs a client next to nothing, and the backend a request each time (CVE-2023-44487).
#[tokio::test]
async fn streams_that_are_cancelled_end_the_connection() {
    let site = Site::with(json!({})).await;
    site.upstream.on("*", Reply::after(LIMIT, Reply::status(204)));
    // As fast as can be: the library itself notices. And so that each is taken up first, which it does not.
    for (pause, met) in [(None, 0.0), (Some(Duration::from_millis(2)), 1.0)] {
        site.upstream.forget();
        let mut frames = Frames::open(&site.proxy).await;
        let asked = async {
            for n in 0..100_000_u32 {
                let ask = frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &request_block("GET"));
                if frames.0.write_all(&ask).await.is_err() {
                    break;
                }
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                if frames.0.write_all(&frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes())).await.is_err() {
                    break;
                }
            }
        };
        tokio::time::timeout(2 * LIMIT, asked).await.expect("it ends");
        assert!(frames.ends().await);
        site.met("resets", met).await;
        site.gauge("dotmac_requests_in_flight", 0.0).await;
        println!("{} requests reached the upstream before the end, with a pause of {pause:?}", site.upstream.count());
        assert!(site.upstream.count() <= 300, "{} requests", site.upstream.count());
    }
}

#[tokio::test]
async fn a_body_that_stops_ends_with_the_upstreams_patience() {
    let site = Site::start(|builder| builder.set("/upstream/response_timeout", SHORT)).await;
    let (mut client, _connection) = client(&site.proxy).await;
    let mut post = request(CORE);
    *post.method_mut() = http::Method::POST;
    let (answer, mut body) = client.send_request(post, false).expect("open");
    body.send_data("half of it".into(), false).expect("open");
    let answer = tokio::time::timeout(LIMIT, answer).await.expect("in time").expect("an answer");
    assert_eq!(answer.status(), 408);
    assert!(text(answer.into_body()).await.expect("a body").contains(r#""reason":"request_timeout""#));
    assert_eq!(site.limited("body_timeout").await, 1.0);
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    // What the upstream itself is slow with is its own fault.
    site.upstream.on("/slow", Reply::after(LIMIT, Reply::status(204)));
    let (answer, _) = client.send_request(request("/slow"), true).expect("open");
    assert_eq!(answer.await.expect("an answer").status(), 504);
    assert_eq!(site.limited("body_timeout").await, 1.0);
}

/// A client may read its connection and still take nothing of one stream: it opens no window for it.
#[tokio::test]
async fn a_stream_that_nobody_reads_is_ended_and_its_neighbours_are_not() {
    let site = Site::with(json!({ "write_timeout": SHORT })).await;
    site.upstream.on("/large", Reply::Bytes(64 << 20));
    let stream = TcpStream::connect(site.proxy.address()).await.expect("the proxy listens");
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 30);
    let (mut client, connection) = builder.handshake::<_, Bytes>(stream).await.expect("HTTP/2");
    let _connection = tokio::spawn(connection);
    let (unread, _) = client.send_request(request("/large"), true).expect("open");
    let mut unread = unread.await.expect("an answer").into_body();
    site.met("write_timeout", 1.0).await;
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    let (answer, _) = client.send_request(request(CORE), true).expect("open");
    assert_eq!(answer.await.expect("an answer").status(), 200, "the connection goes on");
    let mut ended = Ok(());
    while let Some(piece) = unread.data().await {
        match piece {
            Ok(piece) => drop(unread.flow_control().release_capacity(piece.len())),
            Err(error) => ended = Err(error),
        }
        if ended.is_err() {
            break;
        }
    }
    assert!(ended.expect_err("cut off").reason().is_some_and(|reason| reason != Reason::NO_ERROR));
}

/// A client that does not read its connection at all.
#[tokio::test]
async fn a_connection_that_nobody_reads_is_ended() {
    let site = Site::with(json!({ "write_timeout": SHORT })).await;
    site.upstream.on("*", Reply::Bytes(64 << 20));
    let mut frames = Frames::open(&site.proxy).await;
    // As large as windows may be, for the connection and for each stream.
    frames.send(&frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff])).await;
    frames.send(&frame(8, 0, 0, &[0x7f, 0, 0, 0])).await;
    for n in 0..20_u32 {
        frames.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &request_block("GET"))).await;
    }
    site.gauge("dotmac_requests_in_flight", 20.0).await;
    site.gauge("dotmac_requests_in_flight", 0.0).await;
    site.gauge("dotmac_connections", 0.0).await;
    assert!(site.limited("write_timeout").await >= 1.0);
}

/// Beyond the number of connections a client is told in its own words.
#[tokio::test]
async fn no_room_for_a_connection() {
    let site = Site::with(json!({ "connections": 1 })).await;
    // Whoever looked whether the proxy listens has had a connection of its own.
    while !site.serves().await {}
    site.gauge("dotmac_connections", 0.0).await;
    let before = site.limited("connections").await;
    let _held = site.connect().await;
    site.gauge("dotmac_connections", 1.0).await;
    let mut frames = Frames::open(&site.proxy).await;
    assert_eq!(frames.next().await.map(|(kind, ..)| kind), Some(4));
    let (kind, _, payload) = frames.next().await.expect("GOAWAY");
    assert_eq!((kind, &payload[..]), (GOAWAY, &[0, 0, 0, 0, 0, 0, 0, 0xb][..]), "no stream taken up, and calm down");
    assert!(frames.ends().await);
    let (mut client, connection) = client(&site.proxy).await;
    let error = match client.send_request(request(CORE), true) {
        Ok((answer, _)) => answer.await.expect_err("no answer"),
        Err(error) => error,
    };
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    connection.await.expect("no panic");
    assert_eq!(site.limited("connections").await - before, 2.0);
}
