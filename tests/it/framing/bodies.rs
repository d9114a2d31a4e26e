//! Bodies: chunks, extensions and trailers go upstream in one form, whatever form they came in, or not at all.

use std::time::Duration;

use super::{CLOSING, HOST, SMUGGLED, World, forwarded, received, seen, summary, world};
use crate::harness::RawClient;

/// A request in chunked coding with this body, and one behind it.
fn chunked(body: &str) -> String {
    format!("POST /x HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{body}GET /behind HTTP/1.1\r\n{HOST}\r\n")
}

/// Bodies that end, by the letter of RFC 9112 section 7.1 or nearly so, all of them `hi`.
fn bodies_that_end() -> Vec<String> {
    let mut bodies: Vec<String> = [
        "2\r\nhi\r\n0\r\n\r\n",
        "1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        "2\r\nhi\r\n00000000\r\n\r\n",
        "0000000000000002\r\nhi\r\n0\r\n\r\n",
        "2 \r\nhi\r\n0\r\n\r\n",
        "2\t\r\nhi\r\n0 \r\n\r\n",
        "2;\r\nhi\r\n0\r\n\r\n",
        "2;a\r\nhi\r\n0;b=c\r\n\r\n",
        "2;a=b;c=\"d\"\r\nhi\r\n0\r\n\r\n",
        "2;a=\"5;b\"\r\nhi\r\n0\r\n\r\n",
        "2 ; a = b\r\nhi\r\n0\r\n\r\n",
        "2;a=\"\\\"\"\r\nhi\r\n0\r\n\r\n",
        // Trailers, among them some that would be news to a backend, and a request.
        "2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n",
        "2\r\nhi\r\n0\r\nContent-Length: 40\r\nTransfer-Encoding: identity\r\nHost: other\r\n\r\n",
        "2\r\nhi\r\n0\r\nX-Tenant-ID: 11111111-1111-4111-8111-111111111111\r\nX-License-Plan: enterprise\r\n\r\n",
        "2\r\nhi\r\n0\r\nGET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n",
        "2\r\nhi\r\n0\r\nno trailer at all\r\n folded\r\n\r\n",
    ]
    .map(str::to_owned)
    .into();
    bodies.push(format!("2;{}\r\nhi\r\n0\r\n\r\n", "x".repeat(4000)));
    bodies.push(format!("2\r\nhi\r\n0\r\n{}\r\n", "X-Trailer: 1\r\n".repeat(1000)));
    bodies
}

#[tokio::test]
async fn chunks_go_upstream_in_one_form() {
    let world = world().await;
    for body in bodies_that_end() {
        forwarded(&world, chunked(&body), &[("/x", "hi"), ("/behind", "")]).await;
    }
    let (one, all) = ("x".repeat(70_000), "x".repeat(210_000));
    let chunk = format!("{:X};{}\r\n{one}\r\n", one.len(), "x".repeat(100));
    forwarded(&world, chunked(&format!("{}0\r\n\r\n", chunk.repeat(3))), &[("/x", &all), ("/behind", "")]).await;
}

/// Trailers are not passed on: nothing that names a tenant can come by them, and nobody can have judged them.
#[tokio::test]
async fn trailers_are_dropped() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let request = format!(
        "POST /api/v1/tickets HTTP/1.1\r\n{HOST}X-Tenant-ID: {tenant}\r\nTrailer: X-Tenant-ID, X-License-Features\r\nTE: trailers\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Tenant-ID: 11111111-1111-4111-8111-111111111111\r\n\
         X-License-Features: crm\r\nX-Other: 1\r\n\r\n"
    );
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(request).await.expect("sent");
    assert_eq!(connection.response().await.status, 200);
    let raw = world.upstream.raw().concat();
    let text = String::from_utf8_lossy(&raw).to_lowercase();
    assert!(text.ends_with("\r\n\r\n2\r\nhi\r\n0\r\n\r\n"), "{text}");
    assert!(!text.contains("\r\ntrailer:") && !text.contains("\r\nte:"), "nobody is to wait for them: {text}");
    assert_eq!(world.upstream.last().header("X-Tenant-ID"), Some(&*tenant.to_string()));
    assert_eq!(summary(&seen(&world, "trailers")), [("/api/v1/tickets", "hi")]);
}

/// However a body is cut into packets.
#[tokio::test]
async fn chunks_byte_by_byte() {
    let world = world().await;
    for body in bodies_that_end().into_iter().filter(|body| body.len() < 200) {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        let (head, rest) = chunked(&body)
            .split_once("\r\n\r\n")
            .map(|(head, rest)| (format!("{head}\r\n\r\n"), rest.to_owned()))
            .expect("a head");
        connection.send(head).await.expect("sent");
        for byte in rest.bytes() {
            connection.send([byte]).await.expect("sent");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        for _ in 0..2 {
            assert_eq!(connection.response().await.status, 200, "{body:?}");
        }
        assert_eq!(summary(&received(&world, &body).await), [("/x", "hi"), ("/behind", "")]);
    }
}

/// Chunks that no two readers need to agree on end the connection, and what the backend has been sent of them has no end.
#[tokio::test]
async fn chunks_that_are_none() {
    let world = world().await;
    let mut bodies: Vec<String> = [
        "+2",
        "-2",
        "-0",
        "0x2",
        "0X2",
        "2x",
        "x2",
        " 2",
        "\t2",
        "_2",
        "2_",
        "2,",
        "2.0",
        "g",
        "2 2",
        "2 a",
        "2\0",
        "\x002",
        "2\x0b",
        "\x0b2",
        "\u{662}",
        "ffffffffffffffff",
        "10000000000000002",
        "00000000000000002",
        "fffffffffffffffff2",
        "2\n",
        "2\r",
        "2\r\r",
        "2;\r",
        "2;a\r\r",
        "2;a\rb",
        "2 \n",
        "\n2",
        "\r2",
    ]
    .map(|size| format!("{size}\r\nhi\r\n0\r\n\r\n"))
    .into();
    bodies.extend(
        [
            "2\nhi\n0\n\n",
            "2\nhi\r\n0\r\n\r\n",
            "2\rhi\r\n0\r\n\r\n",
            "2\r\nhi\n0\r\n\r\n",
            "2\r\nhi\r0\r\n\r\n",
            "2\r\nhi0\r\n\r\n",
            "2\r\nhixx0\r\n\r\n",
            "2\r\nhi\n\n0\r\n\r\n",
            "2\r\nhi\r\r0\r\n\r\n",
            "2\r\nhi \r\n0\r\n\r\n",
            "2\r\nhi\r\n0\n\n",
            "2\r\nhi\r\n0\r\n\n",
            "2\r\nhi\r\n0\r\nX: 1\n\r\n",
            "2\r\nhi\r\n0\r\nX: 1\r\n\n",
            "2\r\nhi\r\n0\r\nX: 1\rY: 2\r\n\r\n",
            "2\r\nhi\r\n0\r\n\n\n",
            "2\r\nhi\r\n0\r\n\rGET /smuggled HTTP/1.1\r\n\r\n",
        ]
        .map(str::to_owned),
    );
    bodies.push(format!("2;{}\r\nhi\r\n0\r\n\r\n", "x".repeat(100_000)));
    bodies.push(format!("2\r\nhi\r\n0\r\nX: {}\r\n\r\n", "x".repeat(200_000)));
    // What our parser takes for the last chunk is not one either, but comes to the same: the rest, up to an empty line, is
    // taken for trailers and dropped.
    for last in ["", ";2", "\r\n2"] {
        let body = format!("{last}\r\nhi\r\n0\r\n\r\n");
        forwarded(&world, chunked(&body), &[("/x", ""), ("/behind", "")]).await;
    }
    for body in bodies {
        let shown = &body[..body.len().min(60)];
        let mut connection = RawClient::connect(world.proxy.address()).await;
        let sent = format!("POST /x HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}");
        connection.send(sent).await.expect("sent");
        ends_with_400(&world, connection, shown).await;
    }
}

/// There is at most one answer, a 400, and then the connection ends; what the backend was sent, if anything, has no end.
async fn ends_with_400(world: &World, mut connection: RawClient, case: &str) {
    match connection.try_response(false).await {
        Ok(answer) => assert_eq!((answer.status, answer.header("Connection")), (400, Some("close")), "{case:?}"),
        Err(error) => panic!("no answer ({error}) to {case:?}"),
    }
    assert!(connection.closes_within(CLOSING).await, "still open after {case:?}");
    unfinished(world, case).await;
}

async fn unfinished(world: &World, case: &str) {
    let seen = received(world, case).await;
    let unfinished = |request: &super::Request| request.target == "/x" && !request.complete;
    assert!(seen.len() <= 1 && seen.iter().all(unfinished), "{case:?}: {seen:?}");
}

/// A client that leaves in the middle has asked for nothing, and whoever comes next is not taken for the rest.
#[tokio::test]
async fn bodies_without_an_end() {
    let world = world().await;
    for rest in [
        "Content-Length: 100\r\n\r\n",
        "Content-Length: 100\r\n\r\nhi",
        "Transfer-Encoding: chunked\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nh",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: 1\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r",
        "Transfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\nhi\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\nhi\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nfffffffffffffff0\r\nhi\r\n0\r\n\r\n",
        "Content-Length: 9223372036854775808\r\n\r\nhi",
        "Content-Length: 18446744073709551615\r\n\r\nhi",
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("POST /x HTTP/1.1\r\n{HOST}{rest}")).await.expect("sent");
        // Either the backend has heard of it, or never will.
        tokio::time::sleep(Duration::from_millis(20)).await;
        connection.finish_sending().await.expect("open");
        assert!(
            connection.bytes().await.unwrap_or_default().is_empty() || connection.closes_within(CLOSING).await,
            "{rest:?}"
        );
        unfinished(&world, rest).await;
    }
}

/// A body where none is usual is one all the same, and what is behind a request without one is a request.
#[tokio::test]
async fn bodies_where_none_is_usual() {
    let world = world().await;
    let smuggled_body = SMUGGLED.len();
    for method in ["GET", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "X"] {
        let head = format!("{method} /x HTTP/1.1\r\n{HOST}");
        let behind = format!("GET /behind HTTP/1.1\r\n{HOST}\r\n");
        for framed in [
            format!("Content-Length: {smuggled_body}\r\n\r\n{SMUGGLED}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{smuggled_body:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"),
        ] {
            forwarded(&world, format!("{head}{framed}{behind}"), &[("/x", SMUGGLED), ("/behind", "")]).await;
        }
        for framed in ["\r\n", "Content-Length: 0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"] {
            forwarded(&world, format!("{head}{framed}{behind}"), &[("/x", ""), ("/behind", "")]).await;
        }
    }
    // HEAD has an answer without a body.
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let head = format!("HEAD /x HTTP/1.1\r\n{HOST}Content-Length: {smuggled_body}\r\n\r\n{SMUGGLED}");
    connection.send(format!("{head}GET /behind HTTP/1.1\r\n{HOST}\r\n")).await.expect("sent");
    assert_eq!(connection.head_response().await.status, 200);
    assert_eq!(connection.response().await.status, 200);
    assert_eq!(summary(&received(&world, "HEAD").await), [("/x", SMUGGLED), ("/behind", "")]);
}
