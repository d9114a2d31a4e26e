//! Which requests count, and for whom.

use futures::{SinkExt, StreamExt};
use serde_json::json;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

use super::{FLUSH, ask, counted, is_counted, is_written, metered, soon, tenant, window};
use crate::harness::{RawClient, Reply, Transport, World, raw_h2};

#[tokio::test]
async fn what_the_backend_says_decides() {
    let world = World::start_with(metered).await;
    let mut all = Vec::new();
    for (status, success) in [
        (200, true),
        (201, true),
        (204, true),
        (301, true),
        (304, true),
        (307, true),
        (400, false),
        (404, false),
        (429, false),
        (500, false),
        (503, false),
    ] {
        world.upstream.on("*", Reply::status(status));
        let tenant = tenant(&world, json!({ "tickets": 10, "analytics": null })).await;
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, status);
        assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm/customers/7?a=b", tenant).await.status, status);
        assert_eq!(ask(&world.proxy, "GET", "/api/v1/analytics", tenant).await.status, status);
        all.push((tenant, u64::from(success)));
    }
    for (tenant, counts) in &all {
        is_written(&world, *tenant, "crm", 1).await;
        is_written(&world, *tenant, "tickets", *counts).await;
        is_written(&world, *tenant, "analytics", *counts).await;
    }
    tokio::time::sleep(2 * FLUSH).await;
    for (tenant, counts) in &all {
        for (feature, counts) in [("crm", 1), ("tickets", *counts), ("analytics", *counts)] {
            assert_eq!(counted(&world.database, *tenant, feature).await, counts, "{feature}");
        }
        assert_eq!(window(&world.database, *tenant, "tickets").await.0, *counts);
    }
    // A gRPC call that fails at once says so beside a 200; one that has begun to answer counts.
    for (grpc_status, counts) in [(Some("7"), 0), (Some("0"), 1), (None, 1)] {
        let status = grpc_status.map(|status| ("grpc-status", status.to_owned()));
        let headers = [("content-type", "application/grpc".to_owned())].into_iter().chain(status).collect();
        world.upstream.on("*", Reply::Full { status: 200, headers, body: "".into() });
        let tenant = tenant(&world, json!({ "analytics": 10 })).await;
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/analytics", tenant).await.status, 200);
        is_counted(&world, tenant, "analytics", counts).await;
    }
    // Only 101 that was asked for is a success; the others are no final answers.
    world.upstream.on(
        "*",
        Reply::Raw(
            "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".into(),
        ),
    );
    let tenant = tenant(&world, json!({})).await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    let head = format!("GET /api/v1/analytics HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    connection.send(head).await.expect("sent");
    let mut answer = connection.response().await;
    while answer.status < 200 {
        answer = connection.response().await;
    }
    assert_eq!(answer.status, 500);
    is_counted(&world, tenant, "analytics", 0).await;
}

#[tokio::test]
async fn methods_paths_and_tenants_decide_before_that() {
    let world = World::start_with(|builder| metered(builder).set("/tenant/missing", "allow")).await;
    let owner = tenant(&world, json!({ "tickets": 100 })).await;
    // GET includes HEAD where it is named, and all count where none is.
    for (method, target, feature, counts) in [
        ("GET", "/api/v1/tickets", "tickets", 0),
        ("PUT", "/api/v1/tickets", "tickets", 0),
        ("POST", "/api/v1/tickets/7/notes", "tickets", 0),
        ("POST", "/api/v1/tickets", "tickets", 1),
        ("POST", "/api/v1/%74ickets?x=1", "tickets", 2),
        ("HEAD", "/api/v1/crm", "crm", 1),
        ("OPTIONS", "/api/v1/crm", "crm", 2),
        ("PROPFIND", "/api/v1/crm", "crm", 3),
        ("GET", "/api/v1/network/devices", "crm", 3),
        ("GET", "/nowhere", "crm", 3),
    ] {
        assert_eq!(ask(&world.proxy, method, target, owner).await.status, 200, "{method} {target}");
        is_counted(&world, owner, feature, counts).await;
    }
    let headers = [("Content-Type", "application/grpc"), ("TE", "trailers"), ("X-Tenant-ID", &owner.to_string())];
    let grpc = crate::harness::client::request(world.proxy.address(), "POST", "/api/v1/crm", &headers).await;
    assert_eq!(grpc.status, 200);
    is_counted(&world, owner, "crm", 4).await;
    for transport in [Transport::Http1, Transport::Http2] {
        let line = format!("X-Tenant-ID: {owner}");
        assert_eq!(transport.ask(world.proxy.address(), "app", "/api/v1/crm", &[&line]).await, Some(200));
    }
    is_counted(&world, owner, "crm", 6).await;

    // Nobody in particular, nobody who has a licence, and somebody who has not got the feature.
    let before = world.database.value("SELECT sum(usage_count) FROM feature_usage").await;
    let nobody = crate::harness::client::request(world.proxy.address(), "GET", "/api/v1/crm", &[]).await;
    assert_eq!(nobody.status, 200);
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", Uuid::new_v4()).await.status, 402);
    let starter = world.tenant("starter").await;
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", starter).await.status, 402);
    tokio::time::sleep(3 * FLUSH).await;
    assert_eq!(world.database.value("SELECT sum(usage_count) FROM feature_usage").await, before);
}

#[tokio::test]
async fn a_websocket_counts_once_when_it_opens() {
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({ "analytics": 5 })).await;
    world.upstream.on("/api/v1/analytics/live", Reply::WebSocket);
    let url = format!("ws://{}/api/v1/analytics/live", world.proxy.address());
    let mut request = url.into_client_request().expect("a URL");
    request.headers_mut().insert("X-Tenant-ID", tenant.to_string().parse().expect("a header"));
    let (mut socket, answer) = connect_async(request).await.expect("101");
    assert!(answer.headers().contains_key("RateLimit"), "{answer:?}");
    is_counted(&world, tenant, "analytics", 1).await;
    for _ in 0..3 {
        socket.send(Message::text("hello")).await.expect("open");
        assert_eq!(socket.next().await.expect("open").expect("an echo"), Message::text("hello"));
    }
    socket.close(None).await.expect("open");
    is_counted(&world, tenant, "analytics", 1).await;
    assert_eq!(window(&world.database, tenant, "analytics").await.0, 1);
}

/// What never reached the backend is not counted; what may have is.
#[tokio::test]
async fn broken_connections() {
    let (world, backend) = World::behind_a_played_backend_with(metered).await;
    let tenant = tenant(&world, json!({ "tickets": 10 })).await;
    let post =
        format!("POST /api/v1/tickets HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nContent-Length: 0\r\n\r\n");

    // The backend has the request and ends the connection without an answer: it may have done it.
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(&post).await.expect("sent");
    let (upstream, _) = backend.request().await;
    drop(upstream);
    assert_eq!(client.response().await.status, 502);
    is_counted(&world, tenant, "tickets", 1).await;

    // The client leaves before there is an answer.
    let mut client = RawClient::connect(world.proxy.address()).await;
    client.send(&post).await.expect("sent");
    let (upstream, _) = backend.request().await;
    drop(client);
    is_counted(&world, tenant, "tickets", 2).await;
    drop(upstream);

    // The client leaves in the midst of the answer, which had begun well; or badly.
    for (status, counts) in [("200 OK", 3), ("500 Internal Server Error", 3)] {
        let mut client = RawClient::connect(world.proxy.address()).await;
        client.send(&post).await.expect("sent");
        let (mut upstream, _) = backend.request().await;
        let head = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n");
        upstream.send(head).await.expect("sent");
        client.response_head().await;
        drop((client, upstream));
        is_counted(&world, tenant, "tickets", counts).await;
    }
    assert_eq!(window(&world.database, tenant, "tickets").await.0, 3);

    // Nobody listens.
    drop(backend);
    for _ in 0..20 {
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 502);
    }
    is_counted(&world, tenant, "tickets", 3).await;
    soon("what was reserved is given back", async || window(&world.database, tenant, "tickets").await == (3, 0)).await;
}

/// HTTP/2 clients that end their streams, before and after the backend has the request.
#[tokio::test]
async fn streams_that_are_reset() {
    let world = World::start_with(metered).await;
    let slow = Reply::after(std::time::Duration::from_millis(300), Reply::status(200));
    world.upstream.on("/api/v1/analytics", slow);
    let tenant = tenant(&world, json!({ "analytics": 10 })).await;
    let id = tenant.to_string();
    let mut stream = raw_h2::connect(world.proxy.address()).await;
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "app"),
        (":path", "/api/v1/analytics"),
        ("x-tenant-id", &id),
    ];
    let head = raw_h2::frame(raw_h2::HEADERS, raw_h2::END_STREAM | raw_h2::END_HEADERS, 1, &raw_h2::block(&fields));
    tokio::io::AsyncWriteExt::write_all(&mut stream, &head).await.expect("sent");
    world.upstream.wait_for(1).await;
    let reset = raw_h2::frame(raw_h2::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    tokio::io::AsyncWriteExt::write_all(&mut stream, &reset).await.expect("sent");
    is_counted(&world, tenant, "analytics", 1).await;
    soon("nothing stays reserved", async || window(&world.database, tenant, "analytics").await == (1, 0)).await;
}

/// Requests that fall under two metered rules count for both features; if one of them is used up, for neither.
#[tokio::test]
async fn two_features_of_one_request() {
    let world = World::start_with(|builder| {
        // Two readings of one path are two rules: see docs/paths.md.
        metered(builder).set("/routes/path_aliases", json!([])).set("/routes/ambiguous", "strictest")
    })
    .await;
    let target = "/api/v1/analytics/..%2fcrm";
    let both = tenant(&world, json!({ "analytics": 10, "crm": 5 })).await;
    for attempt in 0..8 {
        let answer = ask(&world.proxy, "GET", target, both).await;
        assert_eq!(answer.status, if attempt < 5 { 200 } else { 402 }, "{attempt}: {}", answer.text());
        if attempt == 5 {
            let body = answer.json();
            assert_eq!((&body["feature"], &body["limit"]), (&json!("crm"), &json!(5)), "{body:#}");
        }
    }
    is_counted(&world, both, "crm", 5).await;
    is_counted(&world, both, "analytics", 5).await;
    soon("the first feature's charge is undone", async || window(&world.database, both, "analytics").await == (5, 0))
        .await;
    // What is left of the other is to be had.
    for attempt in 5..12 {
        let answer = ask(&world.proxy, "GET", "/api/v1/analytics", both).await;
        assert_eq!(answer.status, if attempt < 10 { 200 } else { 402 }, "{attempt}");
    }
}

/// A tenant whose licence is deleted while its requests wait to be counted spoils nobody's batch.
#[tokio::test]
async fn a_tenant_without_a_licence() {
    let world = World::start_with(|builder| metered(builder).set("/usage/flush_interval", "2s")).await;
    let (deleted, other) = (tenant(&world, json!({})).await, tenant(&world, json!({})).await);
    // The next flush is up to two seconds away, and the licences are in memory.
    for tenant in [deleted, other] {
        assert_eq!(ask(&world.proxy, "GET", "/api/v1/analytics", tenant).await.status, 200);
    }
    is_counted(&world, other, "analytics", 1).await;
    for _ in 0..5 {
        for tenant in [deleted, other] {
            assert_eq!(ask(&world.proxy, "GET", "/api/v1/analytics", tenant).await.status, 200);
        }
    }
    let sql = format!(
        "DELETE FROM feature_usage WHERE tenant_id = '{deleted}'; DELETE FROM tenant_licenses WHERE tenant_id = '{deleted}'"
    );
    world.database.execute(&sql).await;
    is_counted(&world, other, "analytics", 6).await;
    assert_eq!(counted(&world.database, deleted, "analytics").await, 0);
    let dropped = world.proxy.metrics().await.value("dotmac_usage_dropped_total", &[("cause", "no_license")]);
    assert_eq!(dropped, Some(5.0));
}

/// Mode `off` counts: that is how usage is known before anybody is enforced. Shadowed tenants count too, and are not denied.
#[tokio::test]
async fn modes() {
    for mode in ["off", "shadow"] {
        let world = World::start_with(|builder| metered(builder).set("/enforcement/mode", mode)).await;
        let tenant = tenant(&world, json!({ "tickets": 2 })).await;
        for _ in 0..5 {
            assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200, "{mode}");
        }
        is_counted(&world, tenant, "tickets", 5).await;
        if mode == "shadow" {
            soon("what passes the limit is used", async || window(&world.database, tenant, "tickets").await == (5, 0))
                .await;
            let shadow = [("reason", "usage_limit_exceeded")];
            let metrics = world.proxy.metrics().await;
            assert_eq!(metrics.value("dotmac_feature_denials_total", &shadow).unwrap_or_default(), 0.0);
            assert_eq!(metrics.value("dotmac_shadow_denials_total", &shadow), Some(3.0));
        } else {
            assert_eq!(window(&world.database, tenant, "tickets").await, (0, 0), "no limit is looked at");
        }
    }
}

/// A backend that answers at once, and then takes a long time over the body: the count is written before its end.
#[tokio::test]
async fn a_long_answer_counts_when_it_begins() {
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({})).await;
    world.upstream.on("*", Reply::events(1_000, std::time::Duration::from_millis(100)));
    let mut client = RawClient::connect(world.proxy.address()).await;
    let head = format!("GET /api/v1/analytics HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n\r\n");
    client.send(head).await.expect("sent");
    assert_eq!(client.response_head().await.status, 200);
    is_counted(&world, tenant, "analytics", 1).await;
    drop(client);
    is_counted(&world, tenant, "analytics", 1).await;
}
