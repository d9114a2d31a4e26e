//! Ways past the gate that no single part would notice: what stands between two requests, two tenants or two answers.

use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::harness::upstream::Reply;
use crate::harness::{RawClient, World};

/// What hides behind a request. A gateway that cuts the stream elsewhere would have sent it as the body of its client's
/// request; here it would be one of the gateway's own, with whatever tenant the client likes.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11\r\n\r\n";

/// What is answered with 204 before the connection is closed.
const LAST: &str = "OPTIONS * HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";

/// What is answered without the gate is framed as strictly as what passes it: no path or method keeps a connection open
/// whose bytes could be cut in two ways.
#[tokio::test]
async fn no_answer_of_our_own_leaves_a_request_behind() {
    let world = World::start_with(|builder| {
        builder.set("/cors", json!({ "allow_origins": ["https://app.example.com"] })).set(
            "/upgrade",
            json!({
                "allow": { "header": "X-User-Role", "values": ["owner"] }
            }),
        )
    })
    .await;
    let tenant = world.tenant("starter").await;
    let who = format!("Host: app\r\nX-Tenant-ID: {tenant}\r\n");
    let preflight = "Origin: https://app.example.com\r\nAccess-Control-Request-Method: PUT\r\n";
    for request in [
        format!("OPTIONS * HTTP/1.1\r\n{who}"),
        format!("OPTIONS /api/v1/crm HTTP/1.1\r\n{who}{preflight}"),
        format!("GET /license HTTP/1.1\r\n{who}"),
        format!("DELETE /license HTTP/1.1\r\n{who}"),
        format!("POST /api/v1/license/upgrade HTTP/1.1\r\n{who}X-User-Role: nobody\r\n"),
        format!("GET /ws/license HTTP/1.1\r\n{who}Upgrade: websocket\r\nConnection: Upgrade\r\n"),
        format!("GET /api/v1/crm HTTP/1.1\r\n{who}"),
        format!("GET /api/v1/tickets HTTP/1.1\r\n{who}"),
        format!("CONNECT app:443 HTTP/1.1\r\n{who}"),
    ] {
        let length = HIDDEN.len();
        for (framing, body) in [
            (format!("Content-Length: {length}\r\n"), HIDDEN.to_owned()),
            ("Transfer-Encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n")),
            (format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", length + 5), format!("0\r\n\r\n{HIDDEN}")),
            (format!("Transfer-Encoding: chunked\r\nContent-Length: {}\r\n", length + 5), format!("0\r\n\r\n{HIDDEN}")),
            ("Content-Length: 0\r\nContent-Length: 99\r\n".to_owned(), HIDDEN.to_owned()),
            ("Content-Length: 0, 99\r\n".to_owned(), HIDDEN.to_owned()),
        ] {
            world.upstream.forget();
            let mut connection = RawClient::connect(world.proxy.address()).await;
            // What comes last ends the connection, if it is still one.
            connection.send(format!("{request}{framing}\r\n{body}{LAST}")).await.expect("sent");
            let answers = connection.bytes().await.unwrap_or_default();
            let answers = String::from_utf8_lossy(&answers).into_owned();
            let reached: Vec<String> = world.upstream.requests().into_iter().map(|request| request.target).collect();
            assert!(!reached.contains(&"/smuggled".to_owned()), "{request}{framing}: {reached:?}");
            let (count, last) = (answers.matches("HTTP/1.1 ").count(), answers.matches("HTTP/1.1 204").count());
            let own = usize::from(request.starts_with("OPTIONS"));
            assert!(count == 1 || (count == 2 && last == 1 + own), "{request}{framing}: {answers}");
        }
    }
}

/// The same where there is no room: an overload is no time to be lax about framing.
#[tokio::test]
async fn no_overload_leaves_a_request_behind() {
    let world = World::start_with(|builder| builder.set("/limits/requests_in_flight", 1)).await;
    world.upstream.on("/slow", Reply::after(Duration::from_secs(3), Reply::Describe));
    let mut busy = RawClient::connect(world.proxy.address()).await;
    busy.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n").await.expect("sent");
    world.upstream.wait_for(1).await;

    let framing = format!("Content-Length: {}\r\nTransfer-Encoding: chunked\r\n", HIDDEN.len() + 5);
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(format!("POST /x HTTP/1.1\r\nHost: app\r\n{framing}\r\n0\r\n\r\n")).await.expect("sent");
    let refused = connection.response().await.status;
    assert!([400, 503].contains(&refused), "{refused}");
    assert_eq!(busy.response().await.status, 200);
    // Now there is room for it.
    let answered = match connection.send(HIDDEN).await {
        Ok(()) => connection.try_response(false).await.is_ok(),
        Err(_) => false,
    };
    assert!(!answered, "what came behind is no request");
    assert_eq!(world.upstream.count(), 1);
}

/// Whatever the method, a gated path needs the feature: frameworks serve several by one handler.
#[tokio::test]
async fn no_method_opens_a_gated_path() {
    let world =
        World::start_with(|builder| builder.set("/cors", json!({ "allow_origins": ["https://app.example.com"] })))
            .await;
    let tenant = world.tenant("starter").await;
    for method in [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "PROPFIND",
        "M-SEARCH", "PURGE", "LOCK", "XGET", "GET_", "PRI", "_", "G!",
    ] {
        for extra in [
            "",
            "Origin: https://evil.example.com\r\nAccess-Control-Request-Method: GET\r\n",
            "Origin: https://app.example.com\r\nAccess-Control-Request-Method: GET\r\n",
            "Upgrade: websocket\r\nConnection: Upgrade\r\n",
            "Expect: 100-continue\r\nContent-Length: 0\r\n",
            "X-HTTP-Method-Override: OPTIONS\r\n",
        ] {
            let mut connection = RawClient::connect(world.proxy.address()).await;
            let head =
                format!("{method} /api/v1/crm/leads HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n{extra}\r\n");
            connection.send(head).await.expect("sent");
            let status = connection.response_head().await.status;
            let is_preflight = method == "OPTIONS" && extra.contains("//app.example.com");
            let expected: &[u16] = if is_preflight { &[204] } else { &[402, 400, 405] };
            assert!(expected.contains(&status), "{method} {extra}: {status}");
        }
    }
    assert_eq!(world.upstream.count(), 0, "{:?}", world.upstream.requests());
}

/// Tenants that share a connection, as they do behind a gateway, are told apart request by request, however quickly they
/// come, also when the one before was refused or carried a body. (A refused one that carries a body ends its connection.)
#[tokio::test]
async fn tenants_on_one_connection_are_not_mixed_up() {
    let world = World::start().await;
    let (rich, poor) = (world.tenant("enterprise").await, world.tenant("starter").await);
    let who = |n: usize| if n.is_multiple_of(3) { Some(rich) } else { (n % 3 == 1).then_some(poor) };
    let expected = |n| {
        if who(n) == Some(rich) {
            200
        } else if who(n) == Some(poor) {
            402
        } else {
            401
        }
    };
    let request = |connection: usize, n: usize| {
        let identity = who(n).map(|tenant| format!("X-Tenant-ID: {tenant}\r\n")).unwrap_or_default();
        let (method, body) =
            if n.is_multiple_of(6) { ("POST", "Content-Length: 4\r\n\r\nGET ") } else { ("GET", "\r\n") };
        format!("{method} /api/v1/crm/{connection}/{n} HTTP/1.1\r\nHost: app\r\n{identity}{body}")
    };
    let mut connections = Vec::new();
    for connection in 0..4 {
        let mut client = RawClient::connect(world.proxy.address()).await;
        client.send((0..60).map(|n| request(connection, n)).collect::<String>()).await.expect("sent");
        connections.push(client);
    }
    for client in &mut connections {
        for n in 0..60 {
            assert_eq!(client.response().await.status, expected(n), "request {n}");
        }
    }
    let seen = world.upstream.requests();
    assert_eq!(seen.len(), 4 * 20);
    assert!(seen.iter().all(|request| request.headers_named("X-Tenant-ID") == [rich.to_string()]));

    // And over HTTP/2, where they come at the same time.
    world.upstream.forget();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let requests = (0..60).map(|n| {
        let request = http2.get(format!("{}/api/v1/crm/{n}", world.proxy.url()));
        let request = match who(n) {
            Some(tenant) => request.header("X-Tenant-ID", tenant.to_string()),
            None => request,
        };
        async move { (n, request.send().await.expect("an answer").status().as_u16()) }
    });
    for (n, status) in futures::future::join_all(requests).await {
        assert_eq!(status, expected(n), "stream {n}");
    }
    assert!(world.upstream.requests().iter().all(|request| request.headers_named("X-Tenant-ID") == [rich.to_string()]));
    assert_eq!(world.upstream.count(), 20);
}

/// A tenant's word about itself is no licence: neither in the request nor in what the backend is told.
#[tokio::test]
async fn nobody_brings_a_licence_along() {
    let world = World::start().await;
    let poor = world.tenant("starter").await;
    for header in [
        "X-License-Plan: enterprise",
        "X-License-Features: crm",
        "X_License_Features: crm",
        "X-License-Fallback: open",
        "X-License-Anything: crm",
        "Connection: X-License-Features",
    ] {
        for (target, expected) in [("/api/v1/crm", 402), ("/api/v1/tickets", 200)] {
            let mut connection = RawClient::connect(world.proxy.address()).await;
            let head = format!("GET {target} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {poor}\r\n{header}\r\n\r\n");
            connection.send(head).await.expect("sent");
            let status = connection.response().await.status;
            assert!(status == expected || (status == 400 && header.starts_with("Connection")), "{header}: {status}");
        }
    }
    for seen in world.upstream.requests() {
        assert_eq!(seen.headers_named("X-License-Features"), ["tickets"]);
        assert_eq!(seen.headers_named("X-License-Plan"), ["starter"]);
        assert_eq!(seen.header("X_License_Features"), None);
        assert_eq!(seen.header("X-License-Anything"), None);
        assert_eq!(seen.header("X-License-Fallback"), None);
    }
    // Nor does an unknown tenant get what the one before it had.
    let stranger = world.get("/api/v1/tickets", Uuid::new_v4()).await;
    assert_eq!((stranger.status, stranger.json()["reason"].clone()), (402, json!("no_license")));
}
