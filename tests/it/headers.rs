//! Every header that a backend could be misled by: sent over HTTP/1.1, over HTTP/2 and with an upgrade, by the gateway and by
//! a stranger; judged by what the upstream received and by the status.

use serde_json::json;

use crate::harness::raw_h2::{self, Field};
use crate::harness::{RawClient, Recorded, Reply, Transport, World};

const HOST: &str = "app.example";

/// Gated by what an enterprise has; a WebSocket for whoever asks for one.
const GATED: &str = "/api/v1/crm/socket";

/// Open to everyone.
const CORE: &str = "/api/v1/network/socket";

/// What becomes of header lines.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// They arrive as they were sent.
    Arrive,
    /// The request goes on without them.
    Stripped,
    /// The request goes on, and what they say of the tenant is told in canonical form.
    Believed,
    /// The request is refused with this status, and nothing arrives.
    Refused(u16),
}

/// Header lines, and what becomes of them from the gateway and from a stranger. `$A` is the tenant that the gateway names, `$B`
/// another. Where the lines name the tenant themselves, the gateway's own line is left out.
struct Case {
    lines: &'static str,
    instead: bool,
    gateway: Fate,
    stranger: Fate,
}

const fn beside(lines: &'static str, gateway: Fate, stranger: Fate) -> Case {
    Case { lines, instead: false, gateway, stranger }
}

const fn instead(lines: &'static str, gateway: Fate) -> Case {
    Case { lines, instead: true, gateway, stranger: Fate::Stripped }
}

use Fate::{Arrive, Believed, Refused, Stripped};

const CASES: &[Case] = &[
    // The tenant's header.
    instead("X-Tenant-ID: $A", Believed),
    instead("x-TENANT-id:$A", Believed),
    instead("X-Tenant-ID: {$A}", Believed),
    instead("X-Tenant-ID: urn:uuid:$A", Believed),
    instead("X-Tenant-ID:  \t$A \t", Believed),
    instead("X-Tenant-ID:", Refused(400)),
    instead("X-Tenant-ID: acme", Refused(400)),
    instead("X-Tenant-ID: $A\u{e9}", Refused(400)),
    instead("X-Tenant-ID: $A;q=1", Refused(400)),
    instead("X-Tenant-ID: \"$A\"", Refused(400)),
    instead("X-Tenant-ID: $A, $B", Refused(400)),
    instead("X-Tenant-ID: $A,", Refused(400)),
    instead("X-Tenant-ID: $A $B", Refused(400)),
    beside("X-Tenant-ID: $B", Refused(400), Stripped),
    beside("X-Tenant-ID: $A", Refused(400), Stripped),
    beside("X-Tenant-ID:", Refused(400), Stripped),
    // Names that some reader takes for it.
    beside("X_Tenant_ID: $B", Refused(400), Refused(400)),
    beside("x-tenant_id: $B", Refused(400), Refused(400)),
    beside("X.Tenant.ID: $B", Refused(400), Refused(400)),
    beside("X-Tenant-ID : $B", Refused(400), Refused(400)),
    beside("X-Tenant-ID\t: $B", Refused(400), Refused(400)),
    beside("X-Tenant-ID\u{b}: $B", Refused(400), Refused(400)),
    beside("X-Tenant-ID\0: $B", Refused(400), Refused(400)),
    beside("X Tenant-ID: $B", Refused(400), Refused(400)),
    beside("(X-Tenant-ID): $B", Refused(400), Refused(400)),
    beside(": $B", Refused(400), Refused(400)),
    // Lines that some reader begins elsewhere.
    beside("X-A: 1\r\n X-Tenant-ID: $B", Refused(400), Refused(400)),
    beside("X-A: 1\r\n\tfolded", Refused(400), Refused(400)),
    beside("X-A: 1\rX-Tenant-ID: $B", Refused(400), Refused(400)),
    beside("X-A: 1\0X-Tenant-ID: $B", Refused(400), Refused(400)),
    // The role's header.
    beside("X-User-Role: owner", Arrive, Stripped),
    beside("X_User_Role: owner", Refused(400), Refused(400)),
    beside("X-User.Role: owner", Refused(400), Refused(400)),
    // What a connection's own header would take away on the way.
    beside("Connection: X-Tenant-ID", Refused(400), Refused(400)),
    beside("Connection: close, x-tenant-ID", Refused(400), Refused(400)),
    beside("Connection: close\r\nConnection: keep-alive ,\tX-TENANT-ID,", Refused(400), Refused(400)),
    beside("Connection: \"X-Tenant-ID\"", Refused(400), Refused(400)),
    beside("Connection: X-User-Role", Refused(400), Refused(400)),
    beside("Connection: X-License-Plan", Refused(400), Refused(400)),
    beside("Connection: X-License-Anything", Refused(400), Refused(400)),
    beside("Connection: X-Request-ID", Refused(400), Refused(400)),
    beside("Connection: X-Forwarded-For", Refused(400), Refused(400)),
    beside("Connection: X-Forwarded-User", Refused(400), Refused(400)),
    beside("Connection: Authorization", Refused(400), Refused(400)),
    beside("Connection: Cookie", Refused(400), Refused(400)),
    beside("Connection: Host", Refused(400), Refused(400)),
    beside("Connection: :authority", Refused(400), Refused(400)),
    beside("Connection: a,b,c,d,e,f,g,h,i,j,k,l", Refused(400), Refused(400)),
    beside("Connection: X-Hop\r\nX-Hop: 1", Stripped, Stripped),
    // What concerns one connection alone.
    beside("Keep-Alive: X-Tenant-ID", Stripped, Stripped),
    beside("Proxy-Connection: X-Tenant-ID", Stripped, Stripped),
    beside("Proxy-Authorization: Basic eDp5", Stripped, Stripped),
    beside("TE: trailers", Stripped, Stripped),
    beside("TE: X-Tenant-ID", Stripped, Stripped),
    beside("Trailer: X-Tenant-ID", Stripped, Stripped),
    beside("Connection: HTTP2-Settings, Upgrade\r\nHTTP2-Settings: AAMAAABk\r\nUpgrade: h2c", Stripped, Stripped),
    // What frameworks obey over the request line.
    beside("X-HTTP-Method-Override: DELETE", Stripped, Stripped),
    beside("X-HTTP-Method: DELETE", Stripped, Stripped),
    beside("X-Method-Override: DELETE", Stripped, Stripped),
    beside("x_http_method_override: DELETE", Stripped, Stripped),
    beside("X-Original-URL: /api/v1/crm", Stripped, Stripped),
    beside("X.Original.URL: /api/v1/crm", Stripped, Stripped),
    beside("X-Original-URI: /api/v1/crm", Stripped, Stripped),
    beside("X-Rewrite-URL: /api/v1/crm", Stripped, Stripped),
    beside("X-Rewrite_URL: /api/v1/crm", Stripped, Stripped),
    beside("X-Forwarded-Prefix: /api", Stripped, Stripped),
    beside("X_Forwarded_Prefix: /api", Stripped, Stripped),
    beside("X-Script-Name: /api", Stripped, Stripped),
    beside("SCRIPT_NAME: /api", Stripped, Stripped),
    beside("script_name: /api", Stripped, Stripped),
    beside("Script-Name: /api", Stripped, Stripped),
    beside("PATH_INFO: /api/v1/crm", Stripped, Stripped),
    beside("x-middleware-subrequest: middleware", Stripped, Stripped),
    beside("X_Middleware_Subrequest: middleware", Stripped, Stripped),
    // What only the proxy says.
    beside("X-License-Plan: sneaked", Stripped, Stripped),
    beside("X-License-Plan: sneaked\r\nX-License-Plan: again", Stripped, Stripped),
    beside("X_License_Plan: sneaked", Stripped, Stripped),
    beside("X-License-Features: sneaked", Stripped, Stripped),
    beside("X-License-Fallback: sneaked", Stripped, Stripped),
    beside("X-License-Grace-Until: sneaked", Stripped, Stripped),
    beside("X-License-Anything: sneaked", Stripped, Stripped),
    beside("X_Request_ID: sneaked", Stripped, Stripped),
    beside("X-Request-ID: two words", Stripped, Stripped),
    // Where a request came from, and for whom.
    beside("Forwarded: for=192.0.2.1;host=evil.example", Arrive, Stripped),
    beside("X-Forwarded-Host: evil.example", Arrive, Stripped),
    beside("X-Forwarded-Proto: https", Arrive, Stripped),
    beside("X-Forwarded-Port: 443", Arrive, Stripped),
    beside("X-Forwarded-User: root", Arrive, Stripped),
    beside("X-Forwarded-Client-Cert: Hash=1", Arrive, Stripped),
    beside("X_Forwarded_User: root", Stripped, Stripped),
    beside("X-Forwarded_For: 192.0.2.1", Stripped, Stripped),
    beside("X-Real-IP: 192.0.2.1", Arrive, Stripped),
    beside("X_Real_IP: 192.0.2.1", Stripped, Stripped),
    beside("X-Original-Host: evil.example", Arrive, Stripped),
    beside("X-Host: evil.example", Arrive, Stripped),
    beside("X-HTTP-Host-Override: evil.example", Arrive, Stripped),
    // What is nobody's business but the backend's.
    beside("X_Under_Score: kept", Arrive, Arrive),
    beside("X.Dotted: kept", Arrive, Arrive),
    beside("!#$%&'*+.^`|~: kept", Arrive, Arrive),
    beside("X-Empty:", Arrive, Arrive),
    beside("X-Latin: caf\u{e9}", Arrive, Arrive),
    beside("X-Licensed: kept", Arrive, Arrive),
    beside("X-Tenant: $B", Arrive, Arrive),
    beside("X-Tenant-ID-2: $B", Arrive, Arrive),
    beside("Tenant-ID: $B", Arrive, Arrive),
    beside("Origin: https://app.example", Arrive, Arrive),
    beside("Max-Forwards: 0", Arrive, Arrive),
];

/// A proxy that listens to the gateway, which is this test, or takes it for a stranger.
async fn world(trusted: &str) -> World {
    let world = World::start_with(|builder| {
        let allow = json!({ "header": "X-User-Role", "values": ["owner"] });
        builder.set("/trusted_proxies", json!([trusted])).set("/upgrade/allow", allow)
    })
    .await;
    world.upstream.on("*", Reply::status(200));
    world
}

/// Over HTTP/2 a field that concerns the connection makes a request malformed, and so does one that is none (RFC 9113
/// sections 8.2.1 and 8.2.2); what is several lines elsewhere is one there.
fn fits_http2(line: &str) -> bool {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    let name = name.to_ascii_lowercase();
    let of_connection = ["connection", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"];
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_name = !name.is_empty() && name.bytes().all(is_token) && !of_connection.contains(&&*name);
    let is_text = !value.bytes().any(|b| b.is_ascii_control() && b != b'\t');
    is_name && is_text && (name != "te" || value.trim() == "trailers")
}

/// The name as CGI has it.
fn folded(name: &str) -> String {
    name.to_ascii_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

/// Checks that what arrived is what `fate` says of these lines.
fn check(seen: &Recorded, fate: Fate, lines: &[&str], told: &[&str], context: &str) {
    assert_eq!(seen.headers_named("X-Tenant-ID"), told, "{context}");
    assert_eq!(seen.headers_named("Host"), [HOST], "{context}");
    let of_tenant = seen.headers.iter().filter(|(name, _)| folded(name) == "X_TENANT_ID").count();
    assert_eq!(of_tenant, told.len(), "{context}: {:?}", seen.headers);
    for (name, value) in lines.iter().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let arrived = |same: fn(&str, &str) -> bool| {
            seen.headers.iter().filter(|(other, sent)| same(other, name) && sent == value).count()
        };
        match fate {
            Fate::Arrive => assert_eq!(arrived(str::eq_ignore_ascii_case), 1, "{context}: {:?}", seen.headers),
            Fate::Stripped if !["connection", "upgrade"].contains(&&*name.to_lowercase()) => {
                assert_eq!(arrived(|a, b| folded(a) == folded(b)), 0, "{context}: {:?}", seen.headers);
            }
            Fate::Stripped | Fate::Believed => {}
            Fate::Refused(_) => panic!("{context}: it arrived: {seen:?}"),
        }
    }
    let upgrades = [seen.headers_named("Connection"), seen.headers_named("Upgrade")];
    let is_socket = seen.header("Sec-WebSocket-Key").is_some();
    let expected = if is_socket { [vec!["Upgrade"], vec!["websocket"]] } else { [vec![], vec![]] };
    assert_eq!(upgrades, expected, "{context}");
}

#[tokio::test]
async fn every_header_over_every_transport_from_everyone() {
    let (gateway, stranger) = (world("127.0.0.0/8").await, world("10.0.0.0/8").await);
    let (a, b) = (gateway.tenant("enterprise").await.to_string(), gateway.tenant("enterprise").await.to_string());
    stranger.insert_license(a.parse().expect("a UUID"), "enterprise", json!({ "crm": true })).await;
    stranger.insert_license(b.parse().expect("a UUID"), "enterprise", json!({ "crm": true })).await;
    let named = format!("X-Tenant-ID: {a}");
    for case in CASES {
        let text = case.lines.replace("$A", &a).replace("$B", &b);
        for transport in Transport::ALL {
            // Lines that continue the one before are no lines of their own.
            let lines: Vec<_> = match text.contains("\r\n ") || text.contains("\r\n\t") {
                true => vec![&*text],
                false => text.split("\r\n").collect(),
            };
            let malformed = transport == Transport::Http2 && !lines.iter().all(|line| fits_http2(line));
            let of = |fate| if malformed { Refused(400) } else { fate };
            let passed = transport.passed();
            for (world, fate, is_gateway) in [(&gateway, of(case.gateway), true), (&stranger, of(case.stranger), false)]
            {
                let context = format!("{text:?} over {transport:?}, from the gateway: {is_gateway}");
                let mut sent: Vec<&str> = Some(&*named).into_iter().filter(|_| is_gateway && !case.instead).collect();
                sent.extend(&lines);
                let target = if is_gateway { GATED } else { CORE };
                for target in [target, GATED] {
                    for path in [GATED, CORE] {
                        let reply = if passed == 101 { Reply::WebSocket } else { Reply::status(200) };
                        world.upstream.on(path, reply);
                    }
                    world.upstream.forget();
                    let status = transport.ask(world.proxy.address(), HOST, target, &sent).await;
                    let arrived = world.upstream.requests();
                    match fate {
                        Refused(expected) => {
                            // Some are found only on the way upstream, where a stranger does not get.
                            let without_tenant = !is_gateway && target == GATED && status == Some(401);
                            let ended = malformed && status.is_none();
                            let refused = status == Some(expected) || ended || without_tenant;
                            assert!(refused && arrived.is_empty(), "{context}: {status:?} {arrived:?}");
                        }
                        // Whatever a stranger says, it names no tenant.
                        _ if !is_gateway && target == GATED => {
                            assert_eq!((status, arrived.len()), (Some(401), 0), "{context}");
                        }
                        _ => {
                            assert_eq!((status, arrived.len()), (Some(passed), 1), "{context}");
                            let told = if is_gateway { vec![&*a] } else { vec![] };
                            check(&arrived[0], fate, &lines, &told, &context);
                            let plan = if is_gateway { vec!["enterprise"] } else { vec![] };
                            assert_eq!(arrived[0].headers_named("X-License-Plan"), plan, "{context}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!((gateway.upstream.malformed().len(), stranger.upstream.malformed().len()), (0, 0));
}

/// One host, and one that is a name; over HTTP/2 the authority, and nothing else beside it.
#[tokio::test]
async fn hosts() {
    let world = world("127.0.0.0/8").await;
    let address = world.proxy.address();
    for (lines, expected) in [
        ("Host: app.example", 200),
        ("host:APP.example.:8080", 200),
        ("Host: [::1]:8080", 200),
        ("Host:", 200),
        ("X-A: 1", 400),
        ("Host: a\r\nHost: a", 400),
        ("Host: a\r\nhOST: b", 400),
        ("Host: a\r\n b", 400),
        ("Host : a", 400),
        ("Host: a b", 400),
        ("Host: user@a", 400),
        ("Host: a/b", 400),
        ("Host: a\\b", 400),
        ("Host: a#b", 400),
        ("Host: \u{e9}", 400),
        ("Host: a\0", 400),
        ("Host: a\r\nX-Tenant-ID", 400),
    ] {
        for upgrade in ["", "Connection: Upgrade\r\nUpgrade: websocket\r\n"] {
            world.upstream.forget();
            let mut connection = RawClient::connect(address).await;
            let request = format!("GET /x HTTP/1.1\r\n{lines}\r\n{upgrade}\r\n");
            connection.send(request).await.expect("sent");
            assert_eq!(connection.response().await.status, expected, "{lines:?}");
            let arrived: Vec<_> = world.upstream.requests();
            assert_eq!(arrived.len(), usize::from(expected == 200), "{lines:?}");
            if let Some(seen) = arrived.first() {
                assert_eq!(seen.headers_named("Host"), [lines[5..].trim()], "{lines:?}");
                assert_eq!(seen.headers_named("X-Forwarded-Host"), [lines[5..].trim()], "{lines:?}");
            }
        }
    }
    for (fields, expected) in [
        (&[(":authority", "app.example")][..], Some("app.example")),
        (&[(":authority", "app.example:80"), ("host", "app.example:80")], Some("app.example:80")),
        (&[("host", "app.example")], Some("app.example")),
        (&[], None),
        (&[(":authority", "app.example"), ("host", "other")], None),
        (&[(":authority", "app.example"), ("host", "app.example:80")], None),
        (&[(":authority", "app.example"), ("host", "")], None),
        (&[(":authority", "app.example"), ("host", "app.example"), ("host", "other")], None),
        (&[("host", "app.example"), ("host", "app.example")], None),
        (&[(":authority", "a"), (":authority", "b")], None),
        (&[(":authority", "user@app.example")], None),
        (&[(":authority", "a b")], None),
        (&[("host", "a b")], None),
    ] {
        world.upstream.forget();
        let pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/x")];
        let all: Vec<Field> =
            pseudo.iter().chain(fields).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let status = raw_h2::request(address, &all).await;
        let arrived = world.upstream.requests();
        match expected {
            Some(host) => {
                assert_eq!((status, arrived.len()), (Some(200), 1), "{fields:?}");
                assert_eq!(arrived[0].headers_named("Host"), [host], "{fields:?}");
                assert_eq!(arrived[0].headers_named("X-Forwarded-Host"), [host], "{fields:?}");
            }
            None => assert!(matches!(status, None | Some(400)) && arrived.is_empty(), "{fields:?}: {status:?}"),
        }
    }
}

/// So many headers that one could hide among them, or push the gate's own view out of somebody's bounds.
#[tokio::test]
async fn very_many_headers() {
    let world = world("127.0.0.0/8").await;
    let tenant = world.tenant("enterprise").await;
    let named = format!("X-Tenant-ID: {tenant}");
    let many: Vec<String> = (0..100).map(|i| format!("X-{i}: 1")).collect();
    let large = format!("X-A: {}", "x".repeat(65_536));
    let hidden = "X-Tenant-ID: 00000000-0000-4000-8000-000000000001";
    world.upstream.on(GATED, Reply::WebSocket);
    for transport in [Transport::Upgrade, Transport::Http1, Transport::Http2] {
        if transport == Transport::Http1 {
            world.upstream.on(GATED, Reply::status(200));
        }
        world.upstream.forget();
        let most: Vec<&str> = many.iter().map(String::as_str).collect();
        let passed = transport.passed();
        for (before, lines, after, expected) in [
            (&named, &most[..90], None, passed),
            (&named, &most[..90], Some(hidden), 400),
            (&named, &most[..], None, 431),
            (&named, &[&*large], None, 431),
        ] {
            let lines: Vec<&str> = [before.as_str()].into_iter().chain(lines.iter().copied()).chain(after).collect();
            let status = transport.ask(world.proxy.address(), HOST, GATED, &lines).await;
            assert_eq!(status, Some(expected), "{transport:?}: {} lines", lines.len());
        }
        assert_eq!(world.upstream.count(), 1, "{transport:?}");
    }
}

/// Trailer fields name nobody: what comes behind the body is not passed on.
#[tokio::test]
async fn trailers_over_http2() {
    let (world, backend) = World::behind_a_played_backend().await;
    let tenant = world.tenant("enterprise").await.to_string();
    let field = |(name, value): (&str, &str)| (name.into(), value.into());
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/api/v1/crm"),
        ("x-tenant-id", &tenant),
        ("trailer", "x-tenant-id, x-sum"),
    ];
    let fields: Vec<Field> = fields.into_iter().map(field).collect();
    let trailers = [("x-sum", "1"), ("x-tenant-id", "00000000-0000-4000-8000-000000000001"), ("x-license-plan", "x")];
    let trailers: Vec<Field> = trailers.into_iter().map(field).collect();
    let played = async {
        let (mut upstream, head) = backend.request().await;
        let body = upstream.until("0\r\n\r\n").await;
        upstream.send("HTTP/1.1 204 No Content\r\n\r\n").await.expect("sent");
        (head, body)
    };
    let asked = raw_h2::request_with_trailers(world.proxy.address(), &fields, b"hello", &trailers);
    let ((head, body), status) = tokio::join!(played, asked);
    assert_eq!((status, body.as_str()), (Some(204), "5\r\nhello\r\n0\r\n\r\n"));
    let head = head.to_ascii_lowercase();
    assert_eq!(head.matches("x-tenant-id").count(), 1, "{head}");
    assert!(head.contains(&format!("x-tenant-id: {tenant}\r\n")) && !head.contains("trailer:"), "{head}");
}
