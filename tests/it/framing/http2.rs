//! HTTP/2 with frames of our own making: what no client library would send, and what it could become in HTTP/1.1.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{HOST, Request, World, received, summary, world};
use crate::harness::client;
use crate::harness::raw_h2::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, block,
};

/// A header's name and value.
pub(crate) type Field<'a> = (&'a [u8], &'a [u8]);

const METHOD: Field<'_> = (b":method", b"GET");
const SCHEME: Field<'_> = (b":scheme", b"http");
const PATH: Field<'_> = (b":path", b"/x");
const AUTHORITY: Field<'_> = (b":authority", b"app");

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outcome {
    Status(u16),
    /// By its error code.
    Reset(u32),
    /// The connection was ended.
    Closed,
}

/// A connection by prior knowledge.
struct Connection {
    stream: TcpStream,
}

impl Connection {
    async fn open(address: SocketAddr) -> Connection {
        Connection { stream: raw_h2::connect(address).await }
    }

    /// Whether there was still somebody to send it to.
    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.stream.write_all(&raw_h2::frame(kind, flags, stream, payload)).await.is_ok()
    }

    /// What is answered on a stream. Other frames are acknowledged or passed over.
    async fn outcome(&mut self, stream: u32) -> Outcome {
        let outcome = async {
            while let Some(frame) = raw_h2::next(&mut self.stream).await {
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => drop(self.send(SETTINGS, ACK, 0, b"").await),
                    HEADERS if frame.stream == stream => return Outcome::Status(raw_h2::status(&frame.payload)),
                    RST_STREAM if frame.stream == stream => {
                        return Outcome::Reset(u32::from_be_bytes(frame.payload.try_into().expect("four bytes")));
                    }
                    GOAWAY => break,
                    _ => {}
                }
            }
            Outcome::Closed
        };
        tokio::time::timeout(Duration::from_secs(20), outcome).await.expect("an outcome in twenty seconds")
    }
}

/// One request without a body on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, fields: &[Field<'_>]) -> Outcome {
    let mut connection = Connection::open(address).await;
    connection.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields)).await;
    connection.outcome(1).await
}

/// Asserts that it is refused one way or another, and that nothing of it reaches the backend.
async fn refused(world: &World, fields: &[Field<'_>]) {
    let outcome = ask(world.proxy.address(), fields).await;
    let shown = shown(fields);
    assert!(
        matches!(outcome, Outcome::Closed | Outcome::Reset(_) | Outcome::Status(400..=499)),
        "{outcome:?}: {shown}"
    );
    assert_eq!(received(world, &shown).await, [], "{shown}");
}

/// Asserts that it is forwarded, and returns it as the backend has it.
async fn forwarded(world: &World, fields: &[Field<'_>]) -> Request {
    let shown = shown(fields);
    assert_eq!(ask(world.proxy.address(), fields).await, Outcome::Status(200), "{shown}");
    let mut seen = received(world, &shown).await;
    assert_eq!(seen.len(), 1, "{shown}: {seen:?}");
    seen.remove(0)
}

fn shown(fields: &[Field<'_>]) -> String {
    let fields = fields.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    fields.collect::<Vec<_>>().join(" ")
}

/// The four pseudo-headers, one of them replaced.
fn with(name: &'static [u8], value: &'static [u8]) -> Vec<Field<'static>> {
    let fields = [METHOD, SCHEME, PATH, AUTHORITY];
    fields.into_iter().map(|field| if field.0 == name { (name, value) } else { field }).collect()
}

fn and(more: &[Field<'static>]) -> Vec<Field<'static>> {
    [&[METHOD, SCHEME, PATH, AUTHORITY], more].concat()
}

#[tokio::test]
async fn pseudo_headers() {
    let world = world().await;
    assert_eq!(forwarded(&world, &and(&[])).await.target, "/x");
    for path in [
        &b""[..],
        b" ",
        b"x",
        b"*",
        b"?/x",
        b"\\x",
        b" /x",
        b"/x ",
        b"/x y",
        b"/x\ty",
        b"/x\r",
        b"/x\n",
        b"/x\r\nX: 1",
        b"/x\nX: 1",
        b"/x\0",
        b"/x\x7f",
        b"/x HTTP/1.1",
        b"/x HTTP/1.1\r\nHost: app\r\n\r\nGET /smuggled",
        b"/x%0d%0aX: 1",
        b"/x%00",
        b"/x%",
        b"app:80",
        b"http://app/x",
        b"http://other/x",
        b"HTTP://app/x",
        b"http:/x",
        b"http:\\\\app/x",
        b"/\xff",
    ] {
        refused(&world, &with(b":path", path)).await;
    }
    // A fragment is none of the target, neither to the gate nor to the backend.
    for (path, seen) in [(&b"/x#y"[..], "/x"), (b"#/smuggled", "/"), (b"/x?y#/smuggled", "/x?y")] {
        assert_eq!(forwarded(&world, &with(b":path", path)).await.target, seen);
    }
    for method in [
        &b""[..],
        b" ",
        b"get",
        b"G ET",
        b"GET ",
        b" GET",
        b"GET\r\n",
        b"GET\t",
        b"GET\0",
        b"GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\nGET",
        b"GET /smuggled",
        b"CONNECT",
        b"PRI",
        b"*",
    ] {
        let fields = with(b":method", method);
        // Of those a token is one that the backend may know.
        if matches!(method, b"PRI" | b"*") {
            assert_eq!(forwarded(&world, &fields).await.method.as_bytes(), method);
        } else {
            refused(&world, &fields).await;
        }
    }
    for scheme in [&b""[..], b"http ", b"ht tp", b"http\r\n", b"http://app/smuggled", b"http:", b"/", b"1http"] {
        // The library takes some of them for none, and none is passed on.
        let fields = with(b":scheme", scheme);
        let outcome = ask(world.proxy.address(), &fields).await;
        let expected: &[_] = if outcome == Outcome::Status(200) { &[("/x", "")] } else { &[] };
        assert_eq!(summary(&received(&world, &shown(&fields)).await), *expected, "{}", scheme.escape_ascii());
    }
    for authority in [
        &b"app/x"[..],
        b"app\\x",
        b"app?x",
        b"app#x",
        b"app x",
        b"app\r\nX: 1",
        b"app\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n",
        b"app\n",
        b"app\0",
        b"user@app",
        b"user:word@app",
        b"http://app",
    ] {
        refused(&world, &with(b":authority", authority)).await;
    }
    for fields in [
        &[METHOD, SCHEME, AUTHORITY][..],
        &[METHOD, PATH, AUTHORITY],
        &[SCHEME, PATH, AUTHORITY],
        &[METHOD, SCHEME, PATH],
        &[METHOD, METHOD, SCHEME, PATH, AUTHORITY],
        &[METHOD, SCHEME, SCHEME, PATH, AUTHORITY],
        &[METHOD, SCHEME, PATH, (b":path", b"/smuggled"), AUTHORITY],
        &[METHOD, SCHEME, PATH, PATH, AUTHORITY],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":authority", b"other")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":status", b"200")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":x", b"1")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":", b"1")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b":protocol", b"websocket")],
        &[METHOD, SCHEME, (b"x", b"1"), PATH, AUTHORITY],
        &[METHOD, SCHEME, PATH, (b"x", b"1"), AUTHORITY],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"x", b"1"), (b":path", b"/smuggled")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"host", b"other")],
        &[METHOD, SCHEME, PATH, AUTHORITY, (b"host", b"app"), (b"host", b"app")],
        &[METHOD, SCHEME, PATH, (b"host", b"app"), (b"host", b"other")],
        &[(b":method", b"CONNECT"), AUTHORITY],
        &[(b":method", b"CONNECT"), SCHEME, PATH, AUTHORITY],
        &[(b":method", b"CONNECT"), SCHEME, PATH, AUTHORITY, (b":protocol", b"websocket")],
        &[(b":Method", b"GET"), SCHEME, PATH, AUTHORITY],
    ] {
        refused(&world, fields).await;
    }
    forwarded(&world, &and(&[(b"host", b"app")])).await;
}

/// What is a header in HTTP/2 is one in HTTP/1.1, or is not passed on.
#[tokio::test]
async fn headers() {
    let world = world().await;
    for (name, value) in [
        (&b"X-Upper"[..], &b"1"[..]),
        (b"", b"1"),
        (b"x y", b"1"),
        (b"x:y", b"1"),
        (b"x\r\ny", b"1"),
        (b"x: 1\r\ny", b"1"),
        (b"x\0", b"1"),
        (b"x\t", b"1"),
        (b"\xff", b"1"),
        (b"x", b"1\r\ny: 2"),
        (b"x", b"1\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"),
        (b"x", b"1\ny: 2"),
        (b"x", b"1\ry"),
        (b"x", b"1\0"),
        (b"x", b"\x7f"),
        (b"cookie", b"a=1\r\nx: 1"),
        (b"transfer-encoding", b"chunked"),
        (b"transfer-encoding", b"identity"),
        (b"transfer_encoding", b"chunked"),
        (b"connection", b"close"),
        (b"connection", b"x-tenant-id"),
        (b"connection", b"upgrade"),
        (b"proxy-connection", b"close"),
        (b"keep-alive", b"1"),
        (b"upgrade", b"websocket"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"te", b"trailers, chunked"),
        (b"content-length", b"5"),
        (b"content-length", b"+0"),
        (b"content-length", b"0,0"),
        (b"content-length", b"00"),
        (b"content-length", b""),
        (b"content-length", b"-1"),
        (b"content_length", b"5"),
        (b"expect", b"x"),
        (b"expect", b"100-continue, x"),
    ] {
        refused(&world, &and(&[(name, value)])).await;
    }
    refused(&world, &and(&[(b"content-length", b"0"), (b"content-length", b"0")])).await;
    refused(&world, &and(&[(b"content-length", b"0"), (b"content-length", b"5")])).await;
    for (name, value) in
        [(&b"te"[..], &b"trailers"[..]), (b"content-length", b"0"), (b"x", b" 1 "), (b"x", b"\t"), (b"x", b"")]
    {
        forwarded(&world, &and(&[(name, value)])).await;
    }
}

/// A length that is not what comes: the stream is reset, and what the backend has of it has no end.
#[tokio::test]
async fn lengths_that_disagree_with_the_data() {
    let world = world().await;
    let post = |path: &str, length: &[u8]| {
        let fields = [(&b":method"[..], &b"POST"[..]), SCHEME, (b":path", path.as_bytes()), AUTHORITY];
        block(&[&fields[..], &[(b"content-length", length)]].concat())
    };
    let smuggled = b"GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
    for (length, pieces) in [
        (&b"2"[..], &[&b"hi!"[..]][..]),
        (b"2", &[b"h"]),
        (b"2", &[b"hi", smuggled]),
        (b"2", &[b"h", b"i", smuggled]),
        (b"0", &[smuggled]),
        (b"40", &[smuggled]),
        (b"1000", &[smuggled]),
        (b"1", &[b""]),
    ] {
        let case = format!("{} {pieces:?}", length.escape_ascii());
        let mut connection = Connection::open(world.proxy.address()).await;
        // The target says what was announced: a request may arrive when the next case is under way already.
        let announced = String::from_utf8_lossy(length);
        connection.send(HEADERS, END_HEADERS, 1, &post(&format!("/x/{announced}"), length)).await;
        for (i, piece) in pieces.iter().enumerate() {
            let end = if i + 1 == pieces.len() { END_STREAM } else { 0 };
            connection.send(DATA, end, 1, piece).await;
        }
        let outcome = connection.outcome(1).await;
        assert!(!matches!(outcome, Outcome::Status(200..=299)), "{case}: {outcome:?}");
        for request in received(&world, &case).await {
            // It has no end, or no more than was announced: what came beyond it came too late to be heard of.
            let announced = request.target.strip_prefix("/x/").and_then(|announced| announced.parse().ok());
            assert!(!request.complete || Some(request.body.len()) == announced, "{case}: {request:?}");
        }
    }
    // The right length, and none at all.
    for fields in [post("/x", b"2"), block(&with(b":method", b"POST"))] {
        let mut connection = Connection::open(world.proxy.address()).await;
        connection.send(HEADERS, END_HEADERS, 1, &fields).await;
        connection.send(DATA, 0, 1, b"h").await;
        connection.send(DATA, END_STREAM, 1, b"i").await;
        assert_eq!(connection.outcome(1).await, Outcome::Status(200));
        let seen = received(&world, "POST").await;
        let whole: Vec<_> = summary(&seen).into_iter().filter(|(target, _)| *target == "/x").collect();
        assert_eq!(whole, [("/x", "hi")]);
    }
}

/// Trailers are no second head.
#[tokio::test]
async fn trailers() {
    let world = world().await;
    for (trailers, sound) in [
        (&[(&b"x-trailer"[..], &b"1"[..])][..], true),
        (&[(b"content-length", b"40"), (b"x-tenant-id", b"11111111-1111-4111-8111-111111111111")], true),
        // The library lets them pass, and they go no further.
        (&[(b":path", b"/smuggled")], true),
        (&[(b":method", b"GET"), (b":path", b"/smuggled")], true),
        (&[(b"x", b"1\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")], false),
        (&[(b"X", b"1")], false),
    ] {
        let case = shown(trailers);
        let mut connection = Connection::open(world.proxy.address()).await;
        connection.send(HEADERS, END_HEADERS, 1, &block(&with(b":method", b"POST"))).await;
        connection.send(DATA, 0, 1, b"hi").await;
        connection.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers)).await;
        let outcome = connection.outcome(1).await;
        let raw = String::from_utf8_lossy(&world.upstream.raw().concat()).into_owned();
        assert!(!raw.contains("11111111-1111"), "{case}: {raw}");
        let seen = received(&world, &case).await;
        if sound {
            assert_eq!(outcome, Outcome::Status(200), "{case}");
            assert_eq!(summary(&seen), [("/x", "hi")], "{case}");
        } else {
            assert!(
                matches!(outcome, Outcome::Reset(_) | Outcome::Closed | Outcome::Status(400)),
                "{case}: {outcome:?}"
            );
            assert!(seen.iter().all(|request| !request.complete), "{case}: {seen:?}");
        }
    }
}

/// Data behind the end of a stream, headers behind headers, a block that never ends, and thousands of requests that nobody
/// waits for: the connection ends, and others are served.
#[tokio::test]
async fn streams_without_sense() {
    let world = world().await;
    let get = block(&and(&[]));
    let mut connection = Connection::open(world.proxy.address()).await;
    connection.send(HEADERS, END_STREAM | END_HEADERS, 1, &get).await;
    connection.send(DATA, END_STREAM, 1, b"GET /smuggled HTTP/1.1\r\n\r\n").await;
    connection.send(HEADERS, END_STREAM | END_HEADERS, 1, &block(&with(b":path", b"/smuggled"))).await;
    connection.outcome(3).await;
    let seen = received(&world, "data behind the end").await;
    assert!(seen.len() <= 1, "{seen:?}");

    // A block in pieces is one block.
    let mut connection = Connection::open(world.proxy.address()).await;
    connection.send(HEADERS, END_STREAM, 1, &get[..10]).await;
    connection.send(CONTINUATION, 0, 1, &get[10..11]).await;
    connection.send(CONTINUATION, END_HEADERS, 1, &get[11..]).await;
    assert_eq!(connection.outcome(1).await, Outcome::Status(200));
    assert_eq!(summary(&received(&world, "a block in pieces").await), [("/x", "")]);

    // Between its pieces is no room for anything else.
    let mut connection = Connection::open(world.proxy.address()).await;
    connection.send(HEADERS, END_STREAM, 1, &get[..10]).await;
    connection.send(HEADERS, END_STREAM | END_HEADERS, 3, &get).await;
    assert_eq!(connection.outcome(3).await, Outcome::Closed);
    assert_eq!(received(&world, "a block within a block").await, []);

    let field = block(&[(b"x", &[b'x'; 1000])]);
    let mut endless = Connection::open(world.proxy.address()).await;
    endless.send(HEADERS, END_STREAM, 1, &get).await;
    let mut sent = 0;
    while sent < 64 << 20 && endless.send(CONTINUATION, 0, 1, &field.repeat(16)).await {
        sent += field.len() * 16;
    }
    assert!(sent < 64 << 20, "a head of {sent} bytes was read");
    assert_eq!(received(&world, "a block without an end").await, []);

    let mut hasty = Connection::open(world.proxy.address()).await;
    for i in 0..2000 {
        let stream = 2 * i + 1;
        let sent = hasty.send(HEADERS, END_STREAM | END_HEADERS, stream, &get).await
            && hasty.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await;
        if !sent {
            break;
        }
    }
    let answer = client::request(world.proxy.address(), "GET", "/after", &[]).await;
    assert_eq!(answer.status, 200);
    drop(hasty);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let seen = received(&world, "resets").await;
    assert!(seen.iter().all(|request| ["/x", "/after"].contains(&&*request.target)), "{seen:?}");
}

/// HTTP/2 by way of HTTP/1.1 is not spoken: no frames behind it are listened to.
#[tokio::test]
async fn no_upgrade_to_http2() {
    let world = world().await;
    let mut stream = TcpStream::connect(world.proxy.address()).await.expect("the proxy listens");
    let request = format!(
        "GET /x HTTP/1.1\r\n{HOST}Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    assert!(reading.is_ok(), "the connection ends");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("HTTP/1.1 400 "), "{text}");
    assert_eq!(summary(&received(&world, "h2c").await), [("/x", "")]);
}
