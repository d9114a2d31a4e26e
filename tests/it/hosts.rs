//! Tenants from host names: over each transport, for the backend and for the proxy's own paths; and who is believed.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::harness::{RawClient, RawResponse, Reply, Signer, Transport, World, jwt};

const CRM: &str = "/api/v1/crm/socket";
const CORE: &str = "/api/v1/network/socket";

/// It reaches the upstream.
const PASSED: u16 = 0;

/// A world in which headers, tokens and hosts name the tenant.
async fn world(trusted: &Value, keys: Value) -> World {
    let world = World::start_with(|builder| {
        let sources = json!([
            { "header": "X-Tenant-ID" },
            { "jwt": { "keys": keys } },
            { "host": "{tenant}.isp.example.com" },
            { "host": "{tenant}.example.net" },
        ]);
        let allow = json!({ "header": "X-User-Role", "values": ["owner"] });
        builder.set("/tenant/sources", sources).set("/trusted_proxies", trusted.clone()).set("/upgrade/allow", allow)
    })
    .await;
    world.upstream.on(CRM, Reply::WebSocket);
    world.upstream.on(CORE, Reply::WebSocket);
    world
}

fn host_of(tenant: impl std::fmt::Display) -> String {
    format!("{tenant}.isp.example.com")
}

#[tokio::test]
async fn a_host_names_the_tenant() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::new("HS256", "k");
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let world = world(&json!(["127.0.0.0/8"]), json!(keys)).await;
    let (a, b) = (world.tenant("enterprise").await.to_string(), world.tenant("enterprise").await.to_string());
    let poor = world.tenant("starter").await.to_string();
    let exp = jiff::Timestamp::now().as_second() + 300;
    let token = format!("Authorization: Bearer {}", signer.token(&json!({ "exp": exp, "tenant_id": a })));
    let (header, other) = (format!("X-Tenant-ID: {a}"), format!("X-Tenant-ID: {b}"));
    let (at_a, at_b) = (host_of(&a), host_of(&b));
    let (shouted, simple) = (at_a.to_uppercase(), host_of(a.replace('-', "")));
    let (full, at_net, deeper) = (format!("{at_a}.:8443"), format!("{a}.example.net"), format!("x.{at_a}"));
    let (forwarded, original) = (format!("X-Forwarded-Host: {at_b}"), format!("X-Original-Host: {at_b}"));
    let standard = format!("Forwarded: for=192.0.2.1;host=\"{at_b}\"");
    // On a route that needs a feature, and on any other.
    let (passes, lacking, nobody, refused) = ((PASSED, PASSED), (402, PASSED), (401, PASSED), (400, 400));
    for (host, lines, expected) in [
        (&*at_a, &[][..], passes),
        (&shouted, &[], passes),
        (&full, &[], passes),
        (&simple, &[], passes),
        (&at_net, &[], passes),
        (&host_of(&poor), &[], lacking),
        // No other header is taken for the host, by us or by the backend.
        (&at_a, &[&*forwarded, &original, &standard], passes),
        ("app", &[&*forwarded, &original, &standard], nobody),
        // No host of a tenant's.
        (&deeper, &[], nobody),
        ("isp.example.com", &[], nobody),
        ("evil.example", &[], nobody),
        ("www.isp.example.com", &[], (400, PASSED)),
        // Beside other sources.
        ("www.isp.example.com", &[&*header], passes),
        ("api.isp.example.com", &[&*token], passes),
        (&at_a, &[&*header, &token], passes),
        (&at_a, &[&*other], refused),
        (&at_b, &[&*header], refused),
        (&at_b, &[&*token], refused),
    ] {
        for transport in Transport::ALL {
            for (target, status) in [(CRM, expected.0), (CORE, expected.1)] {
                let reply = if transport == Transport::Upgrade { Reply::WebSocket } else { Reply::status(200) };
                world.upstream.on(target, reply);
                world.upstream.forget();
                let context = format!("{host} {lines:?} {target} over {transport:?}");
                let found = transport.ask(world.proxy.address(), host, target, lines).await;
                let arrived = world.upstream.requests();
                if status != PASSED {
                    assert_eq!((found, arrived.len()), (Some(status), 0), "{context}");
                    continue;
                }
                assert_eq!((found, arrived.len()), (Some(transport.passed()), 1), "{context}");
                let seen = &arrived[0];
                assert_eq!(seen.headers_named("Host"), [host], "{context}");
                let told = seen.headers_named("X-Tenant-ID");
                match (expected, target) {
                    ((PASSED, _), _) => assert_eq!(told, [&a], "{context}"),
                    ((402, _), _) => assert_eq!(told, [&poor], "{context}"),
                    _ => assert_eq!(told, [""; 0], "{context}"),
                }
                if expected == passes && host == at_a {
                    assert_eq!(seen.headers_named("X-Forwarded-Host"), [host], "{context}");
                    assert!(seen.headers.iter().all(|(_, value)| !value.contains(&*b)), "{context}: {seen:?}");
                }
            }
        }
    }
}

/// `GET` or `POST` of ours, as JSON.
async fn ask(world: &World, line: &str, host: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let mut head =
        format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(format!("{head}\r\n{body}")).await.expect("sent");
    connection.response().await
}

#[tokio::test]
async fn the_licence_of_the_host() {
    let dir = tempfile::tempdir().expect("a directory");
    let keys = dir.path().join("jwks.json");
    std::fs::write(&keys, jwt::jwk_set(&[&Signer::new("HS256", "k")]).to_string()).expect("written");
    let world = world(&json!(["127.0.0.0/8"]), json!(keys)).await;
    let host = host_of(world.tenant("starter").await);
    assert_eq!(ask(&world, "GET /license", &host, &[], "").await.json()["planTier"], "starter");
    assert_eq!(ask(&world, "GET /license", "app", &[], "").await.status, 401);
    assert_eq!(ask(&world, "GET /license", "www.isp.example.com", &[], "").await.status, 400);
    let own = format!("Origin: https://{host}");
    for (lines, expected) in
        [(&[][..], 101), (&[&*own], 101), (&["Origin: https://evil.example"], 403), (&["Origin: null"], 403)]
    {
        let status = Transport::Upgrade.ask(world.proxy.address(), &host, "/ws/license", lines).await;
        assert_eq!(status, Some(expected), "{lines:?}");
    }
    // Any page can have its visitor's browser ask any host: an upgrade is no page's business but the host's own.
    let (json, role) = (("Content-Type", "application/json"), ("X-User-Role", "owner"));
    let own = format!("https://{host}");
    let upgrade = "POST /api/v1/license/upgrade";
    for (more, expected) in [
        (&[json, role, ("Origin", "https://evil.example")][..], 403),
        (&[json], 403),
        (&[json, role, ("Origin", &own)], 200),
    ] {
        let answer = ask(&world, upgrade, &host, more, r#"{"new_plan":"professional"}"#).await;
        assert_eq!(answer.status, expected, "{more:?}: {}", answer.text());
    }
    assert_eq!(ask(&world, "GET /license", &host, &[], "").await.json()["planTier"], "professional");
    assert_eq!(Transport::Http1.ask(world.proxy.address(), &host, "/api/v1/crm/1", &[]).await, Some(200));
}

/// From whom the host is believed: from those who are listed, or from everyone where nobody is.
#[tokio::test]
async fn who_is_believed() {
    let host = json!([{ "host": "{tenant}.isp.example.com" }]);
    for (trusted, gated, check) in [
        (json!(["127.0.0.1"]), 200, ""),
        (json!(["::ffff:127.0.0.0/104"]), 200, ""),
        (json!(["10.0.0.0/8"]), 401, ""),
        (json!(["::1"]), 401, ""),
        (json!([]), 200, "tenant.sources[0].host: `trusted_proxies` is empty"),
    ] {
        let world = World::start_with(|builder| {
            builder.set("/tenant/sources", host.clone()).set("/trusted_proxies", trusted.clone())
        })
        .await;
        let tenant = world.tenant("enterprise").await;
        let status = Transport::Http1.ask(world.proxy.address(), &host_of(tenant), "/api/v1/crm", &[]).await;
        assert_eq!(status, Some(gated), "{trusted}");
        let checked = world.builder.run(&["check-config"]).await;
        let said = format!("{}{}", checked.stdout, checked.stderr);
        assert!(checked.status.success() && said.contains(check), "{trusted}: {said}");
        assert_eq!(said.contains("warning: tenant"), !check.is_empty(), "{trusted}: {said}");
    }
}

/// A listener of IPv6 sees peers of IPv4 as `::ffff:127.0.0.1`; on a Unix socket they have no address, and are trusted.
#[tokio::test]
async fn peers_of_other_listeners() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("proxy.sock");
    let port = crate::harness::process::free_port();
    let listeners = [format!("[::ffff:127.0.0.1]:{port}"), format!("unix:{}", socket.display())];
    for (listener, trusted, expected) in [
        (&listeners[0], "127.0.0.0/8", " 200 "),
        (&listeners[0], "10.0.0.0/8", " 401 "),
        (&listeners[1], "10.0.0.0/8", " 200 "),
    ] {
        let world = World::start_with(|builder| builder.set("/trusted_proxies", json!([trusted]))).await;
        let tenant = world.tenant("enterprise").await;
        let request =
            format!("GET /api/v1/crm HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nConnection: close\r\n\r\n");
        let mut config: Value = serde_json::from_str(&world.builder.config_text()).expect("JSON");
        config["listen"] = json!({ "proxy": listener, "ops": "OPS_ADDRESS" });
        let _other = world.builder.clone().text(config.to_string()).begin(&["serve"]);
        let mut answer = String::new();
        let begun = std::time::Instant::now();
        while answer.is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{listener}: no answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if listener.starts_with("unix:") {
                let Ok(mut stream) = UnixStream::connect(&socket).await else { continue };
                stream.write_all(request.as_bytes()).await.expect("sent");
                stream.read_to_string(&mut answer).await.expect("an answer");
            } else {
                let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await else { continue };
                stream.write_all(request.as_bytes()).await.expect("sent");
                stream.read_to_string(&mut answer).await.expect("an answer");
            }
        }
        assert!(answer.lines().next().is_some_and(|line| line.contains(expected)), "{listener} {trusted}: {answer}");
        assert_eq!(world.upstream.count(), usize::from(expected == " 200 "), "{listener} {trusted}");
    }
}
