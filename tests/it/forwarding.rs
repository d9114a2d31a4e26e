//! What passes through: connections, targets, headers, ids, and answers without bodies.

use serde_json::json;

use crate::harness::upstream::fingerprint;
use crate::harness::{Backend, RawClient, Reply, Upstream, World, client};

/// A request without a body on a connection that is kept, as bytes.
fn get(target: &str, tenant: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n")
}

#[tokio::test]
async fn connections_are_kept_both_ways() {
    let world = World::start_with(|builder| builder.set("/upstream/idle_timeout", "60s")).await;
    let tenant = world.tenant("starter").await.to_string();
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for _ in 0..10 {
        for (target, status) in [("/api/v1/tickets", 200), ("/api/v1/crm", 402), ("/api/v1/network", 200)] {
            connection.send(get(target, &tenant)).await.expect("still open");
            let answer = connection.response().await;
            assert_eq!((answer.status, answer.header("Connection")), (status, Some("keep-alive")), "{target}");
        }
        let upload = format!("POST /api/v1/tickets HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n");
        connection.send(upload + "Content-Length: 5\r\n\r\nhello").await.expect("still open");
        assert_eq!(connection.response().await.status, 200);
    }
    assert_eq!(world.upstream.count(), 30);
    assert_eq!(world.upstream.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_get_a_decision_each() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await.to_string();
    let upload = format!("POST /api/v1/tickets/3 HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n");
    let upload = upload + "Content-Length: 5\r\n\r\nhello";
    let all = [get("/api/v1/tickets/1", &tenant), get("/api/v1/crm/2", &tenant), upload, get("/nowhere/4", &tenant)];

    // All at once, and the second while the first is under way.
    let mut at_once = RawClient::connect(world.proxy.address()).await;
    at_once.send(all.concat()).await.expect("sent");
    for status in [200, 402, 200, 200] {
        assert_eq!(at_once.response().await.status, status);
    }
    let targets = || world.upstream.requests().into_iter().map(|request| request.target).collect::<Vec<_>>();
    assert_eq!(targets(), ["/api/v1/tickets/1", "/api/v1/tickets/3", "/nowhere/4"]);
    assert_eq!(world.upstream.requests()[1].body, b"hello");

    let backend = Backend::start().await;
    let world = World::start_with(|builder| {
        builder.set("/upstream/address", backend.address()).set("/upstream/idle_timeout", "60s")
    })
    .await;
    let mut under_way = RawClient::connect(world.proxy.address()).await;
    under_way.send(get("/nowhere/1", &tenant)).await.expect("sent");
    let (mut upstream, head) = backend.request().await;
    assert!(head.starts_with("GET /nowhere/1 "), "{head}");
    under_way.send(get("/nowhere/2", &tenant)).await.expect("sent");
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1").await.expect("sent");
    assert_eq!(under_way.response().await.text(), "1");
    assert!(upstream.raw_head().await.starts_with("GET /nowhere/2 "));
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2").await.expect("sent");
    assert_eq!(under_way.response().await.text(), "2");
}

#[tokio::test]
async fn http2_without_tls() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await.to_string();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let url = |target: &str| format!("{}{target}", world.proxy.url());

    let body = vec![7; 300_000];
    let request = http2.post(url("/api/v1/tickets?a=b%2Fc")).header("X-Tenant-ID", &tenant).body(body.clone());
    let answer = request.header("Cookie", "a=1").header("Cookie", "b=2").send().await.expect("an answer");
    assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_2));
    let seen = world.upstream.last();
    assert_eq!(seen.line, b"POST /api/v1/tickets?a=b%2Fc HTTP/1.1");
    assert_eq!(seen.header("Host"), Some(&*world.proxy.address().to_string()));
    assert_eq!(seen.header("X-Forwarded-Host"), seen.header("Host"));
    assert_eq!(seen.headers_named("X-Tenant-ID"), [tenant.as_str()]);
    assert_eq!(seen.headers_named("Cookie"), ["a=1; b=2"], "one header (RFC 9113 section 8.2.3)");
    assert_eq!((seen.body_bytes, seen.body_fingerprint), (300_000, fingerprint(&body)));

    let denied = http2.get(url("/api/v1/crm")).header("X-Tenant-ID", &tenant).send().await.expect("an answer");
    assert_eq!((denied.status().as_u16(), denied.version()), (402, reqwest::Version::HTTP_2));
    let denied: serde_json::Value = denied.json().await.expect("JSON");
    assert_eq!(denied["reason"], "feature_not_in_plan");
    let head = http2.head(url("/api/v1/crm")).header("X-Tenant-ID", &tenant).send().await.expect("an answer");
    assert_eq!(head.status().as_u16(), 402);

    // Refused uploads are drained here too, and the connection serves on.
    for _ in 0..3 {
        let upload = http2.post(url("/api/v1/crm")).header("X-Tenant-ID", &tenant).body(vec![1; 8 << 20]);
        assert_eq!(upload.send().await.expect("an answer").status().as_u16(), 402);
    }
    assert_eq!(world.upstream.count(), 1);
}

/// Short requests of HTTP/1.0 are no beginning of HTTP/2's preface: HAProxy's health check is one.
#[tokio::test]
async fn a_request_shorter_than_the_preface_of_http2() {
    let world = World::start().await;
    for (method, line) in [("OPTIONS", "OPTIONS / HTTP/1.0\r\n\r\n"), ("GET", "GET / HTTP/1.0\r\n\r\n")] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(line).await.expect("sent");
        assert_eq!(connection.response().await.status, 200);
        assert_eq!(world.upstream.last().method, method);
    }
}

#[tokio::test]
async fn the_target_goes_upstream_byte_for_byte() {
    let world = World::start().await;
    let tenant = world.tenant("enterprise").await.to_string();
    for target in [
        "/",
        "/?",
        "//",
        "/api/v1/crm//x",
        "//api/v1/crm",
        "/api/v1/crm/a%2Fb%2fc",
        "/api/v1/%63rm/%7e~%7E",
        "/api/v1/crm;a=b/c;d",
        "/api/v1/./crm/../crm/.",
        "/api/v1/crm/%252F%25",
        "/api/v1/crm/x%20y+z",
        "/api/v1/crm/%C3%A9%E9",
        "/api/v1/crm\\x",
        "/api/v1/crm?",
        "/api/v1/crm?a=%2F&b=/..//;&a=?&%zz=%&c={}|^`[]'",
        "/Api/V1/CRM/!$&'()*,:@",
    ] {
        let answer = client::request(world.proxy.address(), "GET", target, &[("X-Tenant-ID", &tenant)]).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        assert_eq!(String::from_utf8_lossy(&world.upstream.last().line), format!("GET {target} HTTP/1.1"));
    }
    assert_eq!(world.upstream.malformed(), [&b""[..]; 0]);
}

/// What is neither the proxy's own nor hop-by-hop arrives as it was sent, but for the letter case of names.
#[tokio::test]
async fn other_headers_are_left_alone() {
    let world = World::start().await;
    let sent = [
        ("User-Agent", "it"),
        ("accept", "*/*"),
        ("ACCEPT-encoding", "gzip, br"),
        ("X-Many", "1"),
        ("Authorization", "Bearer abc.def"),
        ("x-many", "2,  3"),
        ("X_Under_Score", "kept"),
        ("Cookie", "a=1; b=\"2\""),
        ("X-Empty", ""),
        ("X-Latin", "caf\u{e9}"),
        ("If-None-Match", "W/\"x\""),
        ("Range", "bytes=0-9"),
        ("Cache-Control", "no-cache"),
        ("Origin", "https://app.example"),
        ("Via", "1.1 edge"),
        ("Content-Type", "text/plain; charset=UTF-8"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "a=1,b=2"),
    ];
    let mut head = "POST /api/v1/network HTTP/1.1\r\nHost: App.Example:8080\r\n".to_owned();
    for (name, value) in sent {
        head += &format!("{name}: {value}\r\n");
    }
    let hop_by_hop = "Keep-Alive: timeout=5\r\nX-Hop: 1\r\nTE: trailers\r\nProxy-Connection: keep-alive\r\n\
                      Connection: keep-alive, X-Hop\r\n";
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(format!("{head}{hop_by_hop}Content-Length: 2\r\n\r\nhi")).await.expect("sent");
    assert_eq!(connection.response().await.status, 200);

    let lower = |(name, value): (String, String)| (name.to_lowercase(), value);
    let mut seen: Vec<_> = world.upstream.last().headers.into_iter().map(lower).collect();
    let ours = ["x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];
    seen.retain(|(name, _)| !ours.contains(&name.as_str()));
    let mut expected = vec![("host".to_owned(), "App.Example:8080".to_owned())];
    expected.extend(sent.map(|(name, value)| (name.to_lowercase(), value.to_owned())));
    expected.push(("content-length".to_owned(), "2".to_owned()));
    // The order of values counts among headers of one name only (RFC 9110 section 5.3); the sort is stable.
    seen.sort_by(|(a, _), (b, _)| a.cmp(b));
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(seen, expected);

    let line = world.proxy.wait_for_log(|line| line["path"] == "/api/v1/network").await;
    assert_eq!(line["trace_id"], "0af7651916cd43dd8448eb211c80319c");
}

#[tokio::test]
async fn headers_of_one_connection_end_with_it() {
    let world = World::start().await;
    for (name, value) in [
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("Proxy-Authenticate", "Basic"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
        ("Connection", "keep-alive"),
        ("Connection", "X-Hop"),
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        let request = format!("GET /api/v1/network HTTP/1.1\r\nHost: app\r\nX-Hop: 1\r\n{name}: {value}\r\n\r\n");
        connection.send(request).await.expect("sent");
        assert_eq!(connection.response().await.status, 200, "{name}");
        let seen = world.upstream.last();
        assert_eq!(seen.header(name), None, "{name}: {value}");
        assert_eq!(seen.header("X-Hop").is_some(), value != "X-Hop", "{name}: {value}");
    }
}

#[tokio::test]
async fn headers_that_backends_obey_never_arrive() {
    let world = World::start().await;
    for name in [
        "X-HTTP-Method-Override",
        "X-HTTP-Method",
        "X-Method-Override",
        "X-Original-URL",
        "X-Original-URI",
        "X-Rewrite-URL",
        "X-Forwarded-Prefix",
        "x-middleware-subrequest",
        "X-License-Plan",
        "X-License-Features",
        "X-License-Fallback",
        "X-License-Grace-Until",
    ] {
        let underscored = name.replace('-', "_");
        let headers = [(name, "1"), (&underscored, "2"), (&name.to_lowercase(), "3")];
        let answer = client::request(world.proxy.address(), "GET", "/api/v1/network", &headers).await;
        assert_eq!(answer.status, 200, "{name}");
        let folded = name.to_lowercase();
        let seen = world.upstream.last().headers;
        assert!(seen.iter().all(|(other, _)| other.to_lowercase().replace('_', "-") != folded), "{name}: {seen:?}");
    }
    // The other spelling of what only a trusted proxy, or we, may say.
    for name in ["X_Forwarded_For", "x_forwarded-host", "X_Real_IP", "X_Request_ID", "X-Forwarded_Proto"] {
        client::request(world.proxy.address(), "GET", "/api/v1/network", &[(name, "1")]).await;
        assert!(world.upstream.last().headers.iter().all(|(other, _)| !other.contains('_')), "{name}");
    }
}

#[tokio::test]
async fn where_a_request_came_from() {
    let trusted = World::start().await;
    let untrusted = World::start_with(|builder| builder.set("/trusted_proxies", json!(["10.0.0.0/8"]))).await;
    let said = [
        ("X-Forwarded-For", "192.0.2.1, 10.0.0.1"),
        ("X-Forwarded-For", "10.0.0.2"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
    ];
    for (world, headers, expected) in [
        (&trusted, &said[..], ["192.0.2.1, 10.0.0.1, 10.0.0.2, 127.0.0.1", "https", "shop.example"]),
        (&trusted, &[], ["127.0.0.1", "http", "app.example"]),
        (&untrusted, &said, ["127.0.0.1", "http", "app.example"]),
        (&untrusted, &[], ["127.0.0.1", "http", "app.example"]),
    ] {
        let mut head = "GET /api/v1/network HTTP/1.1\r\nHost: app.example\r\nConnection: close\r\n".to_owned();
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(head + "\r\n").await.expect("sent");
        assert_eq!(connection.response().await.status, 200);
        let seen = world.upstream.last();
        let names = ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"];
        assert_eq!(names.map(|name| seen.header(name).unwrap_or_default()), expected, "{headers:?}");
    }
}

/// One id for the backend, the client and the log.
#[tokio::test]
async fn request_ids() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await.to_string();
    for (sent, kept) in [(Some("abc-1.2:3"), true), (Some("a b"), false), (Some("<x>"), false), (None, false)] {
        let mut headers = vec![("X-Tenant-ID", tenant.as_str())];
        headers.extend(sent.map(|id| ("X-Request-ID", id)));
        let allowed = client::request(world.proxy.address(), "GET", "/api/v1/tickets", &headers).await;
        assert_eq!(allowed.status, 200);
        let seen = world.upstream.last();
        let denied = client::request(world.proxy.address(), "GET", "/api/v1/crm", &headers).await;
        assert_eq!(denied.json()["request_id"].as_str(), denied.header("X-Request-ID"));
        for (id, status) in [(seen.header("X-Request-ID"), 200), (denied.header("X-Request-ID"), 402)] {
            let id = id.expect("an id").to_owned();
            assert_eq!(Some(id.as_str()) == sent, kept, "{sent:?}");
            assert!(kept || uuid::Uuid::parse_str(&id).is_ok(), "{id}");
            world.proxy.wait_for_log(|line| line["request_id"] == *id && line["status"] == status).await;
        }
    }
}

#[tokio::test]
async fn answers_without_a_body() {
    let world = World::start_with(|builder| builder.set("/upstream/idle_timeout", "60s")).await;
    world.upstream.on("/none", Reply::status(204));
    let headers = vec![("ETag", "\"1\"".to_owned())];
    world.upstream.on("/same", Reply::Full { status: 304, headers, body: bytes::Bytes::new() });
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let request = |method: &str, target: &str| format!("{method} {target} HTTP/1.1\r\nHost: app\r\n\r\n");
    for _ in 0..3 {
        for (target, status) in [("/none", 204), ("/same", 304)] {
            connection.send(request("GET", target)).await.expect("still open");
            let answer = connection.response().await;
            assert_eq!(answer.status, status);
            assert_eq!((answer.header("Content-Length"), answer.header("Transfer-Encoding")), (None, None));
        }
        connection.send(request("GET", "/api/v1/network")).await.expect("still open");
        let whole = connection.response().await;
        connection.send(request("HEAD", "/api/v1/network")).await.expect("still open");
        let head = connection.head_response().await;
        assert_eq!(world.upstream.last().method, "HEAD");
        // A description of HEAD is one letter longer than one of GET; only the length is told.
        let length = |answer: &crate::harness::RawResponse| answer.header("Content-Length")?.parse::<usize>().ok();
        assert!(length(&head) > length(&whole), "{:?} {:?}", head.headers, whole.headers);
    }
    // None is used again after HEAD.
    assert_eq!(world.upstream.connections(), 3);
}

/// Pingora passes no trailers over HTTP/1.1; the body they end is whole, and both connections stay usable.
#[tokio::test]
async fn trailers_end_a_body_and_nothing_else() {
    let backend = Backend::start().await;
    let world = World::start_with(|builder| {
        builder.set("/upstream/address", backend.address()).set("/upstream/idle_timeout", "60s")
    })
    .await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let request = "POST /x HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                   3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Tenant-ID: sneaked\r\n\r\n";
    connection.send(request).await.expect("sent");
    let (mut upstream, _) = backend.request().await;
    assert_eq!(upstream.until("0\r\n\r\n").await, "3\r\nabc\r\n0\r\n\r\n");
    let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 2\r\n\r\n";
    upstream.send(response).await.expect("sent");
    assert_eq!(connection.response().await.text(), "hi");
    connection.send("GET /y HTTP/1.1\r\nHost: app\r\n\r\n").await.expect("still open");
    assert!(upstream.raw_head().await.starts_with("GET /y "), "the same upstream connection");
    upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await.expect("sent");
    assert_eq!(connection.response().await.status, 204);
}

#[tokio::test]
async fn an_upstream_on_a_unix_socket() {
    let upstream = Upstream::start_unix();
    let world = World::start_with(|builder| {
        builder.set("/upstream/address", upstream.address()).set("/upstream/idle_timeout", "60s")
    })
    .await;
    let tenant = world.tenant("starter").await;
    for _ in 0..3 {
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    }
    assert_eq!((upstream.count(), upstream.connections()), (3, 1));
    assert_eq!(upstream.last().headers_named("Host"), [world.proxy.address().to_string()]);
}

/// 100 headers and 64 KiB pass; more is answered 431, a longer target 414, and the connection ends.
#[tokio::test]
async fn limits_of_the_head() {
    let world = World::start().await;
    let ask = async |target: &str, headers: &[(String, String)]| {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        client::request(world.proxy.address(), "GET", target, &headers).await
    };
    let many = |count: usize| (0..count).map(|n| (format!("X-{n}"), "v".to_owned())).collect::<Vec<_>>();
    let large = |bytes: usize| vec![("X-Large".to_owned(), "v".repeat(bytes))];
    let long = |bytes: usize| format!("/{}", "p".repeat(bytes - 1));

    // Host and Connection are the client's two others.
    for (target, headers) in [("/", many(98)), ("/", large(63 << 10)), (&long(16 << 10), many(0))] {
        assert_eq!(ask(target, &headers).await.status, 200);
    }
    assert_eq!(world.upstream.count(), 3);
    for (target, headers, status, reason) in [
        ("/", many(99), 431, "headers_too_large"),
        ("/", large(65 << 10), 431, "headers_too_large"),
        (&long((16 << 10) + 1), many(0), 414, "target_too_long"),
    ] {
        let answer = ask(target, &headers).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (status, &json!(reason)));
        assert_eq!(answer.json()["request_id"].as_str(), answer.header("X-Request-ID"));
        assert_eq!(answer.header("Connection"), Some("close"));
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        let line = world.proxy.wait_for_log(|line| line["status"] == status).await;
        assert_eq!(line["decision"], "refused");
    }
    assert_eq!(world.upstream.count(), 3);
}

/// What waitress sends behind its answer to HEAD, when the framework does not cut it, is the body that GET would have. On a
/// connection that is used again it would be the next answer, to anybody.
#[tokio::test]
async fn what_a_server_sends_behind_an_answer_to_head_is_nobodys_answer() {
    let (world, backend) = World::behind_a_played_backend().await;
    let tenant = world.tenant("starter").await.to_string();
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(get("/first", &tenant).replace("GET", "HEAD")).await.expect("sent");
    let (mut first, head) = backend.request().await;
    assert!(head.to_lowercase().contains("\r\nconnection: close\r\n"), "{head}");
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 45\r\n\r\n").await.expect("sent");
    let answer = client.head_response().await;
    assert_eq!((answer.status, answer.header("Content-Length")), (200, Some("45")));
    assert_eq!(answer.header("Connection"), Some("keep-alive"));
    // Too late for the proxy to see it at the end of the answer.
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npoison!").await.ok();

    client.send(get("/second", &tenant)).await.expect("the client's connection is kept");
    let (mut second, _) = backend.request().await;
    second.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nclean").await.expect("sent");
    assert_eq!(client.response().await.text(), "clean");
}
