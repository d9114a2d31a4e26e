//! One request behind another: behind a denial, within a body that nobody reads, behind an answer that came too early.

use std::time::Duration;

use super::{CLOSING, HOST, SMUGGLED, received, seen, summary, world};
use crate::harness::{RawClient, Reply};

/// What is in the body of a denied request is no request, and what is behind it is one, judged like any other, in its turn.
#[tokio::test]
async fn behind_a_denial() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let who = format!("{HOST}X-Tenant-ID: {tenant}\r\n");
    let inner = format!("GET /api/v1/network/smuggled HTTP/1.1\r\n{who}\r\n");
    let length = inner.len();
    for (method, body) in [
        ("POST", format!("Content-Length: {length}\r\n\r\n{inner}")),
        ("POST", format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n")),
        ("GET", format!("Content-Length: {length}\r\n\r\n{inner}")),
        ("DELETE", format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\nX: 1\r\n\r\n")),
        ("POST", "\r\n".to_owned()),
        ("GET", "Content-Length: 0\r\n\r\n".to_owned()),
    ] {
        let denied = format!("{method} /api/v1/crm HTTP/1.1\r\n{who}{body}");
        let behind = |target: &str| format!("GET {target} HTTP/1.1\r\n{who}\r\n");
        let all = [behind("/api/v1/tickets/1"), denied, behind("/api/v1/crm/2"), behind("/api/v1/tickets/3")].concat();
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(&all).await.expect("sent");
        assert_eq!(connection.response().await.status, 200, "{all}");
        let denial = connection.response().await;
        assert_eq!(denial.status, 402, "{all}");
        let expected: &[_] = if denial.header("Connection") == Some("close") {
            assert!(connection.closes_within(CLOSING).await, "{all}");
            &[("/api/v1/tickets/1", "")]
        } else {
            assert_eq!(connection.response().await.status, 402, "{all}");
            assert_eq!(connection.response().await.status, 200, "{all}");
            &[("/api/v1/tickets/1", ""), ("/api/v1/tickets/3", "")]
        };
        assert_eq!(summary(&received(&world, &all).await), expected, "{all}");
    }
}

/// A refused body of which the rest comes later, or never.
#[tokio::test]
async fn a_body_that_comes_after_its_denial() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        for framing in [format!("Content-Length: {}\r\n", SMUGGLED.len()), "Transfer-Encoding: chunked\r\n".to_owned()]
        {
            let mut connection = RawClient::connect(world.proxy.address()).await;
            let head = format!("POST /api/v1/crm HTTP/1.1\r\n{HOST}X-Tenant-ID: {tenant}\r\n{expect}{framing}\r\n");
            connection.send(&head).await.expect("sent");
            let answer = connection.response().await;
            assert_eq!((answer.status, answer.header("Connection")), (402, Some("close")), "{head}");
            // As a body, and, to whoever thinks that there will be none, as a request.
            connection.send(SMUGGLED).await.ok();
            connection.send(SMUGGLED).await.ok();
            assert!(connection.closes_within(CLOSING).await, "{head}");
            assert_eq!(received(&world, &head).await, [], "{head}");
        }
    }
}

/// A backend that answers before it has the body: whatever becomes of the rest, it is never taken for a request, neither here
/// nor by the backend over a connection that is used again.
#[tokio::test]
async fn a_body_that_comes_after_its_answer() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let inner = format!("GET /api/v1/crm/smuggled HTTP/1.1\r\n{HOST}X-Tenant-ID: {tenant}\r\n\r\n");
    let length = inner.len();
    for status in [200, 204, 400, 417] {
        world.upstream.on("/api/v1/tickets/early", Reply::Early(status));
        for expect in ["", "Expect: 100-continue\r\n"] {
            for (framing, body) in [
                (format!("Content-Length: {length}\r\n"), inner.clone()),
                ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{inner}\r\n0\r\n\r\n")),
                // As if there were no body: that is what a client could hope the backend believes.
                ("Transfer-Encoding: chunked\r\n".to_owned(), inner.clone()),
            ] {
                let case = format!("{status} {expect}{framing}{body}");
                let mut connection = RawClient::connect(world.proxy.address()).await;
                let head = format!(
                    "POST /api/v1/tickets/early HTTP/1.1\r\n{HOST}X-Tenant-ID: {tenant}\r\n{expect}{framing}\r\n"
                );
                connection.send(head).await.expect("sent");
                let answer = connection.response().await;
                assert_eq!((answer.status, answer.header("Connection")), (status, Some("close")), "{case}");
                connection.send(&body).await.ok();
                connection.send(&inner).await.ok();
                assert!(connection.closes_within(CLOSING).await, "{case}");
                let seen = received(&world, &case).await;
                assert!(seen.len() == 1 && seen[0].target == "/api/v1/tickets/early", "{case}: {seen:?}");
                assert!(seen[0].body.is_empty() || seen[0].body == inner.as_bytes(), "{case}: {seen:?}");
            }
        }
    }
}

/// Clients that ask for leave and have nothing to send, and ones that don't wait for it.
#[tokio::test]
async fn leave_to_continue() {
    let world = world().await;
    let behind = format!("GET /behind HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
    for (request, body) in [
        ("GET /x HTTP/1.1\r\nExpect: 100-continue\r\n", ""),
        ("GET /x HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 0\r\n", ""),
        ("POST /x HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n", "hi"),
        ("POST /x HTTP/1.1\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n", "2\r\nhi\r\n0\r\n\r\n"),
        ("POST /x HTTP/1.0\r\nExpect: 100-continue\r\nConnection: keep-alive\r\nContent-Length: 2\r\n", "hi"),
    ] {
        for pause in [Duration::ZERO, Duration::from_millis(30)] {
            let mut connection = RawClient::connect(world.proxy.address()).await;
            if pause.is_zero() {
                connection.send(format!("{request}{HOST}\r\n{body}{behind}")).await.expect("sent");
            } else {
                connection.send(format!("{request}{HOST}\r\n")).await.expect("sent");
                tokio::time::sleep(pause).await;
                connection.send(format!("{body}{behind}")).await.expect("sent");
            }
            let mut answers = Vec::new();
            while let Ok(answer) = connection.try_response(false).await {
                answers.push(answer.status);
            }
            let continued = usize::from(answers.first() == Some(&100));
            assert!(continued == 0 || request.contains("HTTP/1.1"), "{request}: {answers:?}");
            assert_eq!(answers[continued..], [200, 200], "{request}");
            let body = if body.is_empty() { "" } else { "hi" };
            assert_eq!(summary(&received(&world, request).await), [("/x", body), ("/behind", "")], "{request}");
        }
    }
}

/// A hundred at once, every other one refused, in order and each once.
#[tokio::test]
async fn a_long_pipeline_stays_in_order() {
    let world = world().await;
    let tenant = world.tenant("starter").await;
    let target = |i: usize| format!("/api/v1/{}/{i}", ["tickets", "crm"][i % 2]);
    let all: String =
        (0..100).map(|i| format!("GET {} HTTP/1.1\r\n{HOST}X-Tenant-ID: {tenant}\r\n\r\n", target(i))).collect();
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(all).await.expect("sent");
    for i in 0..100 {
        assert_eq!(connection.response().await.status, [200, 402][i % 2], "{i}");
    }
    let targets: Vec<String> = seen(&world, "a pipeline").into_iter().map(|request| request.target).collect();
    assert_eq!(targets, (0..100).step_by(2).map(target).collect::<Vec<_>>());
}
