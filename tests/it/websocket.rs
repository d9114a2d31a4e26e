//! The licence API's WebSocket: who may open one, what it tells and when, and what it costs.

use std::time::{Duration, Instant, SystemTime};

use futures::{SinkExt, StreamExt, future};
use http::HeaderValue;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

use crate::harness::{License, Proxy, ProxyBuilder, RawClient, Signer, World, jwt, world};

/// Within which every change is told.
const PROMISED: Duration = Duration::from_secs(1);

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// The client's end of a socket.
pub(crate) struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    pub(crate) async fn open(proxy: &Proxy, tenant: Uuid) -> Socket {
        let tenant = tenant.to_string();
        Self::try_open(proxy, "/ws/license", &[("X-Tenant-ID", &tenant)]).await.expect("101").0
    }

    async fn try_open(
        proxy: &Proxy,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<(Socket, Response), Error> {
        let mut request = format!("ws://{}{path}", proxy.address()).into_client_request().expect("a URL");
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_str(value).expect("a header"));
        }
        connect_async(request).await.map(|(socket, answer)| (Socket(socket), answer))
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Value {
        let message = tokio::time::timeout(LIMIT, self.0.next()).await.expect("a message").expect("open");
        let text = message.expect("a message").into_text().expect("text");
        serde_json::from_str(&text).expect("JSON")
    }

    /// The next message's type and licence.
    async fn told(&mut self) -> (String, Value) {
        let mut message = self.message().await;
        assert_eq!(message.as_object().map(serde_json::Map::len), Some(2), "{message}");
        (message["type"].as_str().expect("a type").to_owned(), message["license"].take())
    }

    /// Whether nothing is told for this long.
    pub(crate) async fn is_quiet(&mut self, span: Duration) -> bool {
        tokio::time::timeout(span, self.0.next()).await.is_err()
    }

    /// The code it is closed with.
    async fn closed(mut self) -> u16 {
        loop {
            match tokio::time::timeout(LIMIT, self.0.next()).await.expect("in time") {
                Some(Ok(Message::Close(frame))) => return frame.expect("a code").code.into(),
                Some(Ok(_)) => {}
                other => panic!("it broke: {other:?}"),
            }
        }
    }
}

fn listening(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/licenses/change_feed", "listen")
}

/// How many were closed for this cause.
async fn closed(proxy: &Proxy, cause: &str) -> f64 {
    proxy.metrics().await.value("dotmac_websocket_closed_total", &[("cause", cause)]).expect("at zero from the start")
}

/// Waits until so many were closed for this cause: they are counted behind the close frame. More are too many.
async fn closed_becomes(proxy: &Proxy, cause: &str, count: f64) {
    let deadline = Instant::now() + LIMIT;
    while closed(proxy, cause).await < count {
        assert!(Instant::now() < deadline, "{cause}: not {count}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(closed(proxy, cause).await, count, "{cause}");
}

/// Waits until so many sockets are open.
async fn open_sockets(proxy: &Proxy, count: f64) {
    let deadline = Instant::now() + LIMIT;
    while proxy.metric("dotmac_websocket_connections").await != count {
        assert!(Instant::now() < deadline, "not {count}: {}", proxy.metric("dotmac_websocket_connections").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_licence_first_and_then_each_change() {
    const CHANGES: u64 = 50;
    let world = World::start_with(listening).await;
    let replica = world.second_replica().await;
    let writer = world.database.connect().await;
    let tenant = world.tenant("starter").await;
    future::join(world.proxy.live(), replica.live()).await;
    let mut sockets = Vec::new();
    for proxy in [&world.proxy, &replica, &world.proxy] {
        let mut socket = Socket::open(proxy, tenant).await;
        let (kind, license) = socket.told().await;
        let by_get = world::get(proxy, "/license", tenant).await.json();
        assert_eq!((kind.as_str(), &license), ("license", &by_get));
        sockets.push(socket);
    }
    open_sockets(&world.proxy, 2.0).await;
    open_sockets(&replica, 1.0).await;

    let mut times = hdrhistogram::Histogram::<u64>::new(3).expect("three digits");
    for change in 1..=CHANGES {
        let sql =
            "UPDATE tenant_licenses SET usage_limits = jsonb_build_object('tickets', $2::bigint) WHERE tenant_id = $1";
        let change = i64::try_from(change).expect("small");
        writer.execute(sql, &[&tenant, &change]).await.expect("written");
        let since = Instant::now();
        let told = sockets.iter_mut().map(async |socket| {
            let (kind, license) = socket.told().await;
            assert_eq!((kind.as_str(), &license["usageLimits"]), ("license_updated", &json!({ "tickets": change })));
            since.elapsed()
        });
        for took in future::join_all(told).await {
            assert!(took < PROMISED, "change {change} took {took:?}");
            times.record(took.as_micros().try_into().expect("not long")).expect("in range");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "from a commit to the message on each of 3 sockets on 2 replicas, {CHANGES} changes: p50 {} µs, max {} µs",
        times.value_at_quantile(0.5),
        times.max()
    );
    for socket in &mut sockets {
        socket.0.close(None).await.expect("open");
    }
    open_sockets(&world.proxy, 0.0).await;
    closed_becomes(&world.proxy, "client", 2.0).await;
    let line = world.proxy.wait_for_log(|line| line["status"] == 101).await;
    assert_eq!(
        (&line["path"], &line["decision"], &line["tenant_id"], &line["plan"]),
        (&"/ws/license".into(), &"answered".into(), &json!(tenant.to_string()), &"starter".into())
    );
}

/// Changes that concern everybody, and those from or to nothing.
#[tokio::test]
async fn all_kinds_of_changes() {
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let [tenant, other] = [world.tenant("starter").await, world.tenant("starter").await];
    let mut socket = Socket::open(&world.proxy, tenant).await;
    let mut bystander = Socket::open(&world.proxy, other).await;
    assert_eq!(socket.told().await.0, "license");
    assert_eq!(bystander.told().await.0, "license");
    let mut redis = world.redis.connect().await;
    for command in [&["FLUSHDB"][..], &["DEL", &format!("license:{tenant}")]] {
        redis::cmd(command[0]).arg(&command[1..]).exec_async(&mut redis).await.expect("OK");
        assert!(socket.is_quiet(Duration::from_millis(600)).await, "{command:?} changes no licence");
    }
    let told_of = async |socket: &mut Socket, sql: String| {
        world.database.execute(&sql).await;
        let since = Instant::now();
        let (kind, license) = socket.told().await;
        assert!(since.elapsed() < PROMISED, "{sql} took {:?}", since.elapsed());
        assert_eq!(kind, "license_updated", "{sql}");
        license
    };
    let upgraded = told_of(
        &mut socket,
        format!(
            "UPDATE tenant_licenses SET plan_tier = 'enterprise', features = '{{\"crm\": true}}' WHERE tenant_id = '{tenant}'"
        ),
    );
    assert_eq!(upgraded.await["features"], json!({ "crm": true }));
    assert!(bystander.is_quiet(Duration::from_millis(300)).await, "it is nobody else's");
    assert_eq!(
        told_of(&mut socket, format!("DELETE FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await,
        Value::Null
    );
    assert!(socket.is_quiet(Duration::from_millis(1_500)).await, "said once");
    let mut without = Socket::open(&world.proxy, tenant).await;
    assert_eq!(without.told().await, ("license".to_owned(), Value::Null), "whoever comes back hears the same");
    let insert = format!("INSERT INTO tenant_licenses (tenant_id, plan_tier) VALUES ('{tenant}', 'professional')");
    assert_eq!(told_of(&mut socket, insert).await["planTier"], "professional");
    assert_eq!(without.told().await.1["planTier"], "professional");

    // So many rows at once are announced as everything.
    let many = "INSERT INTO tenant_licenses (tenant_id) SELECT gen_random_uuid() FROM generate_series(1, 3000)";
    world.database.execute(many).await;
    assert!(socket.is_quiet(Duration::from_millis(600)).await);
    let mass = "UPDATE tenant_licenses SET features = '{\"tickets\": true, \"fieldops\": true}'".to_owned();
    let features = json!({ "fieldops": true, "tickets": true });
    assert_eq!(told_of(&mut socket, mass).await["features"], features);
    assert_eq!(bystander.told().await.1["features"], features);
}

/// Whoever has bought sees it, wherever they are connected.
#[tokio::test]
async fn an_upgrade_is_told() {
    let allow = json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } });
    let world = World::start_with(|builder| listening(builder).set("/upgrade", allow)).await;
    let replica = world.second_replica().await;
    future::join(world.proxy.live(), replica.live()).await;
    let tenant = world.tenant("starter").await;
    let mut sockets = [Socket::open(&world.proxy, tenant).await, Socket::open(&replica, tenant).await];
    for socket in &mut sockets {
        assert_eq!(socket.told().await.1["planTier"], "starter");
    }
    let mut buyer = RawClient::connect(world.proxy.address()).await;
    let request = format!(
        "POST /license/upgrade HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nX-User-Role: owner\r\n\
         Content-Type: application/json\r\nContent-Length: 27\r\n\r\n{{\"new_plan\":\"professional\"}}"
    );
    buyer.send(request).await.expect("open");
    let bought = buyer.response().await;
    let since = Instant::now();
    assert_eq!(bought.status, 200, "{}", bought.text());
    for socket in &mut sockets {
        assert_eq!(socket.told().await, ("license_updated".to_owned(), bought.json()));
        assert!(since.elapsed() < PROMISED, "{:?}", since.elapsed());
    }
}

/// Nobody announces that time passes.
#[tokio::test]
async fn what_the_clock_changes() {
    let world = World::start_with(|builder| builder.set("/licenses/grace", "2s")).await;
    let tenant = Uuid::new_v4();
    world.insert(License { valid_until: "2 seconds", ..License::valid(tenant, "starter") }).await;
    let mut socket = Socket::open(&world.proxy, tenant).await;
    let (_, license) = socket.told().await;
    assert_eq!(license["features"], json!({ "tickets": true }));
    let end: String = license["graceUntil"].as_str().expect("a time").to_owned();
    let (kind, ended) = socket.told().await;
    assert_eq!((kind.as_str(), &ended["features"]), ("license_updated", &json!({})));
    let now = world.database.value("SELECT to_char(timezone('utc', now()), 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')").await;
    let now = now.expect("a time");
    assert!(now > end, "{now}: not before {end}");
    assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 402);
    // The end of the licence, before that of its grace, changed nothing that is told.
    assert!(socket.is_quiet(Duration::from_millis(300)).await);
}

/// While no change is heard of, licences are asked for again.
#[tokio::test]
async fn without_a_change_feed() {
    const REVALIDATE_AFTER: Duration = Duration::from_secs(3);
    let world = World::start_with(|builder| {
        builder.set("/licenses/change_feed", "none").set("/licenses/revalidate_after", "3s").set("/licenses/ttl", "30s")
    })
    .await;
    let tenant = world.tenant("starter").await;
    let mut socket = Socket::open(&world.proxy, tenant).await;
    socket.told().await;
    let sql = format!("UPDATE tenant_licenses SET plan_tier = 'other' WHERE tenant_id = '{tenant}'");
    world.database.execute(&sql).await;
    let since = Instant::now();
    assert_eq!(socket.told().await.1["planTier"], "other");
    assert!(since.elapsed() < REVALIDATE_AFTER + PROMISED, "{:?}", since.elapsed());
}

/// A change in a gap is told once the gap is over, and an outage is no change.
#[tokio::test]
async fn after_a_gap() {
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let tenant = world.tenant("starter").await;
    let mut socket = Socket::open(&world.proxy, tenant).await;
    socket.told().await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let sql = format!("UPDATE tenant_licenses SET plan_tier = 'other' WHERE tenant_id = '{tenant}'");
    world.database.execute(&sql).await;
    assert!(socket.is_quiet(Duration::from_secs(2)).await);
    world.postgres_wire.restore();
    world.redis_wire.restore();
    let (kind, license) = socket.told().await;
    assert_eq!((kind.as_str(), &license["planTier"]), ("license_updated", &json!("other")));
}

#[tokio::test]
async fn who_may_open_one() {
    let origins = json!({ "allow_origins": ["https://app.example.com"] });
    let world = World::start_with(|builder| builder.set("/cors", origins)).await;
    let tenant = world.tenant("starter").await.to_string();
    let own_origin = format!("http://{}", world.proxy.address());
    for (headers, expected) in [
        (&[("X-Tenant-ID", &*tenant)][..], 101),
        (&[("X-Tenant-ID", &tenant), ("Origin", "https://app.example.com")], 101),
        (&[("X-Tenant-ID", &tenant), ("Origin", &own_origin)], 101),
        (&[("X-Tenant-ID", &tenant), ("Origin", "https://evil.example.com")], 403),
        (&[("X-Tenant-ID", &tenant), ("Origin", "null")], 403),
        (&[("Origin", "https://app.example.com")], 401),
        (&[("X-Tenant-ID", "acme")], 400),
        (&[("X-Tenant-ID", &tenant), ("X-Tenant-ID", &tenant)], 400),
    ] {
        let status = match Socket::try_open(&world.proxy, "/license", headers).await {
            Ok((mut socket, answer)) => {
                assert_eq!(answer.headers().get("Sec-WebSocket-Protocol"), None);
                assert_eq!(socket.told().await.0, "license");
                answer.status()
            }
            Err(Error::Http(answer)) => answer.status(),
            Err(error) => panic!("{headers:?}: {error}"),
        };
        assert_eq!(status, expected, "{headers:?}");
    }
    let offered = [("X-Tenant-ID", &*tenant), ("Sec-WebSocket-Protocol", "dotmac-license")];
    let (_, answer) = Socket::try_open(&world.proxy, "/license", &offered).await.expect("101");
    assert_eq!(answer.headers().get("Sec-WebSocket-Protocol"), Some(&HeaderValue::from_static("dotmac-license")));
    assert_eq!(world.upstream.count(), 0, "nothing of this is the backend's");
}

/// Browsers can't set headers: a token in a cookie, or offered as a subprotocol, says who they are, until it expires.
#[tokio::test]
async fn tokens_open_one_until_they_expire() {
    let signer = Signer::new("HS256", "key");
    let keys = tempfile::tempdir().expect("a directory");
    std::fs::write(keys.path().join("jwks.json"), jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let world = World::start_with(|builder| {
        let from = json!(["authorization", { "cookie": "access_token" }, "websocket_protocol"]);
        let jwt = json!({ "from": from, "keys": keys.path().join("jwks.json"), "leeway": "0s" });
        builder
            .set("/tenant/sources", json!([{ "jwt": jwt }]))
            .set("/cors", json!({ "allow_origins": ["https://app.example.com"] }))
    })
    .await;
    let tenant = world.tenant("starter").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = |seconds: u64| signer.token(&json!({ "tenant_id": tenant, "exp": now + seconds }));
    let long = token(300);
    let (cookie, bearer) = (format!("access_token={long}"), format!("Bearer {long}"));
    let offered = format!("dotmac-license, {long}");
    let (listed, evil) = (("Origin", "https://app.example.com"), ("Origin", "https://evil.example.com"));
    for (headers, expected) in [
        (&[("Cookie", &*cookie), listed][..], 101),
        // Whatever a cookie is sent for may be another page's doing.
        (&[("Cookie", &cookie)], 403),
        (&[("Cookie", &cookie), evil], 403),
        (&[("Authorization", &bearer)], 101),
        (&[("Sec-WebSocket-Protocol", &offered), listed], 101),
        (&[("Sec-WebSocket-Protocol", &offered), evil], 403),
        (&[("Cookie", "access_token=a.b.c"), listed], 401),
    ] {
        let status = match Socket::try_open(&world.proxy, "/license", headers).await {
            Ok((mut socket, answer)) => {
                assert_eq!(socket.told().await.1["planTier"], "starter");
                // The token is never sent back.
                let expected = headers[0].0.starts_with("Sec-").then_some("dotmac-license");
                let protocol = answer.headers().get("Sec-WebSocket-Protocol");
                assert_eq!(protocol.map(|value| value.to_str().expect("text")), expected);
                101
            }
            Err(Error::Http(answer)) => answer.status().as_u16(),
            Err(error) => panic!("{headers:?}: {error}"),
        };
        assert_eq!(status, expected, "{headers:?}");
    }

    let expires = now + 4;
    let short = format!("dotmac-license, {}", token(4));
    let headers = [("Sec-WebSocket-Protocol", &*short), listed];
    let (mut socket, _) = Socket::try_open(&world.proxy, "/license", &headers).await.expect("101");
    socket.told().await;
    assert_eq!(socket.closed().await, 1008);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    assert!((expires..expires + 2).contains(&now), "at {now}, not {expires}");
    closed_becomes(&world.proxy, "expired", 1.0).await;
}

#[tokio::test]
async fn what_is_no_handshake() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let handshake = |change: fn(String) -> String| {
        change(format!(
            "GET /ws/license HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        ))
    };
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for (change, status) in [
        ((|text| text.replace("Upgrade: websocket\r\n", "")) as fn(String) -> String, 426),
        (|text| text.replace("Version: 13", "Version: 8"), 426),
        (|text| text.replace("Connection: Upgrade\r\n", ""), 400),
        (|text| text.replace("ZQ==", ""), 400),
        (|text| text.replace("GET", "POST"), 400),
    ] {
        connection.send(handshake(change)).await.expect("still open");
        let answer = connection.response().await;
        assert_eq!(answer.status, status, "{}", handshake(change));
        assert_eq!(answer.header("Sec-WebSocket-Version"), (status == 426).then_some("13"));
    }
    // The same connection will do once the handshake is right.
    connection.send(handshake(|text| text)).await.expect("still open");
    let answer = connection.response_head().await;
    assert_eq!((answer.status, answer.header("Sec-WebSocket-Accept")), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    connection.until("\"planTier\":\"starter\"").await;
    drop(connection);
    open_sockets(&world.proxy, 0.0).await;
    closed_becomes(&world.proxy, "lost", 1.0).await;

    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
    let by_http2 = async |path: &str| {
        let request = http2.get(format!("{}{path}", world.proxy.url())).header("X-Tenant-ID", tenant.to_string());
        request.send().await.expect("an answer").status()
    };
    assert_eq!((by_http2("/ws/license").await.as_u16(), by_http2("/license").await.as_u16()), (400, 200));
    assert_eq!(world.upstream.count(), 0);
}

#[tokio::test]
async fn what_clients_may_send() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let mut socket = Socket::open(&world.proxy, tenant).await;
    socket.told().await;
    socket.0.send(Message::text("what a client says is passed over")).await.expect("open");
    socket.0.send(Message::Ping("?".into())).await.expect("open");
    assert_eq!(socket.0.next().await.expect("open").expect("a message"), Message::Pong("?".into()));
    // A client that is still sending gets to read why it is closed.
    socket.0.send(Message::binary(vec![0; 200_000])).await.expect("open");
    assert_eq!(socket.closed().await, 1009);

    let mut flood = Socket::open(&world.proxy, tenant).await;
    for _ in 0..500 {
        if flood.0.send(Message::Ping("".into())).await.is_err() {
            break;
        }
    }
    assert_eq!(flood.closed().await, 1008);
    open_sockets(&world.proxy, 0.0).await;
    closed_becomes(&world.proxy, "too_large", 1.0).await;
    closed_becomes(&world.proxy, "flood", 1.0).await;
}

/// Whoever does not read is closed, and nobody else waits for them.
#[tokio::test]
async fn a_reader_that_stalls() {
    const CHANGES: i32 = 20;
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let tenant = world.tenant("starter").await;
    let mut stalled = RawClient::connect(world.proxy.address()).await;
    stalled.send(handshake(tenant)).await.expect("open");
    assert_eq!(stalled.response_head().await.status, 101);
    let mut reader = Socket::open(&world.proxy, tenant).await;
    reader.told().await;
    let begun = Instant::now();
    for change in 0..CHANGES {
        let sql = format!(
            "UPDATE tenant_licenses SET features = (SELECT jsonb_object_agg('feature-' || i || '-{change}', true)
               FROM generate_series(1, 2000) AS i) WHERE tenant_id = '{tenant}'"
        );
        world.database.execute(&sql).await;
        let since = Instant::now();
        assert_eq!(reader.told().await.1["features"].as_object().map(serde_json::Map::len), Some(2000));
        assert!(since.elapsed() < PROMISED, "{:?}", since.elapsed());
    }
    let deadline = begun + Duration::from_secs(30);
    while closed(&world.proxy, "stalled").await == 0.0 {
        assert!(Instant::now() < deadline, "still open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9), "{took:?}: a pause is no stall");
    println!("a reader that stalls is closed {took:?} after {CHANGES} messages of 40 KiB began to be sent");
    open_sockets(&world.proxy, 1.0).await;
    assert!(reader.is_quiet(Duration::from_millis(300)).await);
}

#[tokio::test]
async fn clients_are_told_to_come_back_elsewhere() {
    let mut world = World::start_with(|builder| builder.set("/shutdown/drain", "1s")).await;
    let tenant = world.tenant("starter").await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        let mut socket = Socket::open(&world.proxy, tenant).await;
        socket.told().await;
        sockets.push(socket);
    }
    // One that does not answer is not waited for.
    let mut silent = RawClient::connect(world.proxy.address()).await;
    silent.send(handshake(tenant)).await.expect("open");
    assert_eq!(silent.response_head().await.status, 101);
    world.proxy.signal("TERM");
    let begun = Instant::now();
    for code in future::join_all(sockets.into_iter().map(Socket::closed)).await {
        assert_eq!(code, 1001);
    }
    assert!(begun.elapsed() > Duration::from_secs(1), "not while the listener is open: they would come back here");
    assert_eq!(world.proxy.wait(Duration::from_secs(15)).await.code(), Some(0));
}

/// What an idle socket costs in memory, each of another tenant.
#[tokio::test]
async fn five_thousand_idle_sockets() {
    const SOCKETS: usize = 5_000;
    const EACH: u64 = 20 << 10;
    allow_open_files(4 * SOCKETS);
    let world = World::start_with(listening).await;
    world.proxy.live().await;
    let rows = format!(
        "INSERT INTO tenant_licenses (tenant_id, plan_tier, features)
         SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(i), 12, '0'))::uuid, 'starter', '{{\"tickets\": true}}'
           FROM generate_series(1, {SOCKETS}) AS i"
    );
    world.database.execute(&rows).await;
    let tenant = |i: usize| Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 + i as u128);
    // What is there anyway, once it is in use.
    for i in 1..=50 {
        assert_eq!(world.get("/license", tenant(i)).await.status, 200);
    }
    let without = world.proxy.rss_bytes();
    let mut sockets = Vec::new();
    for batch in (1..=SOCKETS).collect::<Vec<_>>().chunks(50) {
        sockets.extend(future::join_all(batch.iter().map(|i| quiet_socket(&world.proxy, tenant(*i)))).await);
    }
    open_sockets(&world.proxy, SOCKETS as f64).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let with = world.proxy.rss_bytes();
    let each = with.saturating_sub(without) / SOCKETS as u64;
    println!("{SOCKETS} idle sockets: {} KiB without, {} KiB with them: {each} bytes each", without >> 10, with >> 10);
    assert!(each <= EACH, "{each} bytes each");

    // All of them hear of a change that concerns all.
    world.database.execute("UPDATE tenant_licenses SET plan_tier = 'other'").await;
    let since = Instant::now();
    for socket in &mut sockets {
        let message = frame(socket).await;
        assert!(message.contains(r#""planTier":"other""#), "{message}");
    }
    let took = since.elapsed();
    println!("all {SOCKETS} have heard of a change of everything after {took:?}");
    let with = world.proxy.rss_bytes();
    let each = with.saturating_sub(without) / SOCKETS as u64;
    println!("{SOCKETS} sockets after that: {} KiB: {each} bytes each", with >> 10);
    assert!(each <= EACH, "{each} bytes each");
    drop(sockets);
    open_sockets(&world.proxy, 0.0).await;
}

fn handshake(tenant: Uuid) -> String {
    format!(
        "GET /ws/license HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// A socket that has been told its licence, with next to nothing on this side.
async fn quiet_socket(proxy: &Proxy, tenant: Uuid) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    stream.write_all(handshake(tenant).as_bytes()).await.expect("open");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    let first = frame(&mut stream).await;
    assert!(first.starts_with(r#"{"type":"license","license":{"planTier":"starter""#), "{first}");
    stream
}

/// The next frame's text (RFC 6455 section 5.2): a short one of a server, unmasked and whole.
async fn frame(stream: &mut TcpStream) -> String {
    assert_eq!(stream.read_u8().await.expect("a frame"), 0x81);
    let length = match stream.read_u8().await.expect("a length") {
        126 => stream.read_u16().await.expect("a length").into(),
        length => usize::from(length),
    };
    let mut text = vec![0; length];
    stream.read_exact(&mut text).await.expect("the text");
    String::from_utf8(text).expect("UTF-8")
}

/// Lets this process, and those it starts, have so many files open.
fn allow_open_files(count: usize) {
    let (pid, limit) = (std::process::id().to_string(), format!("--nofile={count}:"));
    let raised = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).output().expect("util-linux");
    assert!(raised.status.success(), "this test needs {count} open files: {}", String::from_utf8_lossy(&raised.stderr));
}
