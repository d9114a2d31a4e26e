//! The harness tested against real servers, without the proxy.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use redis::AsyncCommands;
use tokio_postgres::NoTls;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::process::{OnOrphaned, Process, server_dir};
use crate::harness::proxy::Metrics;
use crate::harness::tls::client_trusting;
use crate::harness::upstream::{fingerprint, generated_block};
use crate::harness::{Postgres, RawClient, Redis, RedisOptions, Reply, Upstream, client};

async fn connect(url: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the server accepts connections");
    tokio::spawn(connection);
    client
}

#[tokio::test]
async fn tests_share_a_server_and_have_their_own_databases() {
    let (first, second) = (Postgres::shared().await, Postgres::shared().await);
    assert_eq!(first.port(), second.port());
    let (a, b) = (first.database().await, second.database().await);
    a.execute("CREATE TABLE mine (n int); INSERT INTO mine VALUES (7)").await;
    assert_eq!(a.value("SELECT n FROM mine").await.as_deref(), Some("7"));
    assert_eq!(b.value("SELECT to_regclass('mine')").await, None);
}

#[tokio::test]
async fn a_database_is_dropped_with_its_value() {
    let postgres = Postgres::shared().await;
    let (kept, dropped) = (postgres.database().await, postgres.database().await);
    let exists = format!("SELECT count(*) FROM pg_database WHERE datname = '{}'", dropped.name());
    assert_eq!(kept.value(&exists).await.as_deref(), Some("1"));
    drop(dropped);
    assert_eq!(kept.value(&exists).await.as_deref(), Some("0"));
}

#[tokio::test]
async fn postgres_is_reached_over_tcp_unix_socket_and_tls() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let query =
        "SELECT current_database()::text, coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)";
    for url in [database.url(), database.unix_url()] {
        let row = connect(&url).await.query_one(query, &[]).await.expect("a row");
        assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), (database.name(), false), "{url}");
    }

    let tls = || tokio_postgres_rustls::MakeRustlsConnect::new(client_trusting(&database.ca_file()));
    let by_name = database.url_at("localhost", postgres.port()) + "?sslmode=require";
    let (client, connection) =
        tokio_postgres::connect(&by_name, tls()).await.expect("the certificate is for localhost");
    tokio::spawn(connection);
    assert!(client.query_one(query, &[]).await.expect("a row").get::<_, bool>(1));
    let by_address = database.url() + "?sslmode=require";
    assert!(tokio_postgres::connect(&by_address, tls()).await.is_err(), "the certificate is for localhost only");

    let wrong = database.url().replace("pg-secret-word", "guess");
    assert!(tokio_postgres::connect(&wrong, NoTls).await.is_err(), "passwords are checked");
}

#[tokio::test]
async fn a_private_postgres_has_its_own_settings_and_can_be_paused_killed_and_restarted() {
    let mut postgres = Postgres::private(&[("timezone", "Asia/Tokyo")]).await;
    let database = postgres.database().await;
    assert_eq!(database.value("SHOW timezone").await.as_deref(), Some("Asia/Tokyo"));
    database.execute("CREATE TABLE kept (n int)").await;

    let client = connect(&database.url()).await;
    postgres.pause();
    let answer = tokio::time::timeout(Duration::from_millis(200), client.simple_query("SELECT 1")).await;
    assert!(answer.is_err(), "a paused server must not answer");
    postgres.resume();
    client.simple_query("SELECT 1").await.expect("a resumed server answers");

    postgres.kill();
    assert!(client.simple_query("SELECT 1").await.is_err());
    assert!(tokio_postgres::connect(&database.url(), NoTls).await.is_err());
    postgres.restart().await;
    assert_eq!(database.value("SELECT count(*) FROM kept").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_postgres_wire_counts_each_statement_executed() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let wire = postgres.wire();
    let client = connect(&database.url_via(&wire)).await;
    assert_eq!((wire.connections(), wire.messages()), (1, 0));

    client.batch_execute("CREATE TABLE tenant_licenses (n int)").await.expect("DDL");
    let statement = client.prepare("SELECT n FROM tenant_licenses WHERE n = $1").await.expect("a valid query");
    assert_eq!(wire.count("FROM tenant_licenses"), 0, "prepared, not executed");
    for n in 0..3 {
        client.query(&statement, &[&n]).await.expect("rows");
    }
    client.query("SELECT 2", &[]).await.expect("rows");
    assert_eq!(wire.count("FROM tenant_licenses"), 3);
    assert_eq!(wire.count("SELECT 2"), 1);
    assert_eq!(wire.calls().len(), 5, "{:?}", wire.calls());

    let before = wire.messages();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(wire.messages(), before);
    wire.reset();
    assert_eq!((wire.calls().len(), wire.messages(), wire.connections()), (0, 0, 0));
}

#[tokio::test]
#[should_panic(expected = "nothing can be counted")]
async fn a_wire_refuses_to_count_what_it_cannot_read() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let wire = postgres.wire();
    let tls = tokio_postgres_rustls::MakeRustlsConnect::new(client_trusting(&database.ca_file()));
    let url = database.url_at("localhost", wire.port()) + "?sslmode=require";
    let (client, connection) = tokio_postgres::connect(&url, tls).await.expect("TLS passes through");
    tokio::spawn(connection);
    client.simple_query("SELECT 1").await.expect("an answer");
    wire.count("SELECT");
}

#[tokio::test]
async fn a_redis_wire_counts_commands_and_can_be_frozen_slowed_and_cut() {
    let redis = Redis::start().await;
    let wire = redis.wire();
    let client = redis::Client::open(redis.url_via(&wire)).expect("a valid URL");
    let mut connection = client.get_multiplexed_async_connection().await.expect("the server accepts connections");
    wire.reset();
    let _: () = connection.set("license:a", "x").await.expect("OK");
    let value: String = connection.get("license:a").await.expect("a value");
    assert_eq!(value, "x");
    assert_eq!(wire.calls(), ["SET license:a x", "GET license:a"]);
    assert_eq!((wire.messages(), wire.count("GET license:")), (2, 1));

    wire.slow(Duration::from_millis(40));
    let start = Instant::now();
    let _: String = connection.get("license:a").await.expect("a value");
    assert!(start.elapsed() >= Duration::from_millis(80), "each way is slowed: {:?}", start.elapsed());

    wire.freeze();
    let mut waiting = connection.clone();
    let frozen = tokio::time::timeout(Duration::from_millis(100), waiting.get::<_, String>("license:a"));
    assert!(frozen.await.is_err(), "a frozen wire must not pass anything on");
    wire.restore();
    let _: String = connection.get("license:a").await.expect("a value");

    wire.drop_connections().await;
    assert!(connection.get::<_, String>("license:a").await.is_err());
    let mut connection = client.get_multiplexed_async_connection().await.expect("new connections work");
    let _: String = connection.get("license:a").await.expect("a value");

    wire.cut().await;
    assert!(connection.get::<_, String>("license:a").await.is_err());
    assert!(client.get_multiplexed_async_connection().await.is_err());
    wire.restore();
    client.get_multiplexed_async_connection().await.expect("new connections work again");
}

#[tokio::test]
async fn redis_is_reached_over_tcp_unix_socket_and_tls_with_its_password() {
    let options = RedisOptions { tls: true, password: Some("redis-secret-word"), ..RedisOptions::default() };
    let redis = Redis::start_with(options).await;
    let mut tcp = redis.connect().await;
    let _: () = tcp.set("key", "value").await.expect("OK");

    let unix = redis::Client::open(redis.unix_url()).expect("a valid URL");
    let mut unix = unix.get_multiplexed_async_connection().await.expect("the socket accepts connections");
    assert_eq!(unix.get::<_, String>("key").await.expect("a value"), "value");
    let mut tls = redis.connect_with_tls().await;
    assert_eq!(tls.get::<_, String>("key").await.expect("a value"), "value");

    let anonymous = redis::Client::open(format!("redis://127.0.0.1:{}", redis.port())).expect("a valid URL");
    let refused = match anonymous.get_multiplexed_async_connection().await {
        Ok(mut connection) => connection.get::<_, String>("key").await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "the password is asked for");
}

#[tokio::test]
async fn redis_can_be_paused_killed_and_restarted() {
    let mut redis =
        Redis::start_with(RedisOptions { arguments: vec!["--maxmemory", "64mb"], ..Default::default() }).await;
    let mut connection = redis.connect().await;
    redis.pause();
    let paused = tokio::time::timeout(Duration::from_millis(100), connection.exists::<_, bool>("key")).await;
    assert!(paused.is_err(), "a paused server must not answer");
    redis.resume();
    redis.kill();
    assert!(connection.exists::<_, bool>("key").await.is_err());
    redis.restart().await;
    let limit: Vec<String> = redis::cmd("CONFIG")
        .arg(&["GET", "maxmemory"])
        .query_async(&mut redis.connect().await)
        .await
        .expect("a setting");
    assert_eq!(limit, ["maxmemory", "67108864"]);
}

#[tokio::test]
async fn the_upstream_records_exactly_what_was_sent() {
    let upstream = Upstream::start();
    let address = upstream.address().parse().expect("an address");
    let mut client = RawClient::connect(address).await;
    let head = "POST /a//b/../%63?q=%2F HTTP/1.1\r\nhost: x\r\nX-oDD: 1\r\nX-odd: 2\r\nContent-Length: 5\r\n\r\nhello";
    client.send(head).await.expect("sent");
    let described = client.response().await;
    assert_eq!((described.status, described.header("content-type")), (200, Some("application/json")));
    assert_eq!(described.json()["target"], "/a//b/../%63?q=%2F");
    assert_eq!(described.json()["headers"][1], serde_json::json!(["X-oDD", "1"]));

    let recorded = upstream.last();
    assert_eq!(recorded.line, b"POST /a//b/../%63?q=%2F HTTP/1.1");
    let headers: Vec<_> = recorded.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(headers, [("host", "x"), ("X-oDD", "1"), ("X-odd", "2"), ("Content-Length", "5")]);
    assert_eq!((&*recorded.body, recorded.body_bytes, recorded.complete), (&b"hello"[..], 5, true));
    assert_eq!(recorded.body_fingerprint, fingerprint(b"hello"));
    assert_eq!(recorded.headers_named("x-odd"), ["1", "2"]);

    // The same connection, a chunked body, a response to HEAD.
    client
        .send("PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n")
        .await
        .expect("sent");
    assert_eq!(client.response().await.json()["body_bytes"], 5);
    assert_eq!(upstream.last().body_fingerprint, fingerprint(b"abcde"));
    client.send("HEAD /c HTTP/1.1\r\n\r\n").await.expect("sent");
    assert_eq!(client.head_response().await.status, 200);
    assert_eq!((upstream.count(), upstream.connections(), upstream.last().connection), (3, 1, 0));

    client.send("no request\r\n\r\n").await.expect("sent");
    assert_eq!(client.response().await.status, 400);
    assert_eq!(upstream.malformed(), [b"no request\r\n\r\n"]);
    assert_eq!(upstream.wait_for(3).await.len(), 3);
}

#[tokio::test]
async fn the_upstream_answers_as_it_is_told() {
    let upstream = Upstream::start();
    let address = upstream.address().parse().expect("an address");
    upstream
        .on("/teapot", Reply::Full { status: 418, headers: vec![("X-Pot", "1".to_owned())], body: Bytes::from("no") });
    upstream.on("/gone", Reply::status(204));
    upstream.on("/slow", Reply::after(Duration::from_millis(60), Reply::status(200)));
    upstream.on("/events", Reply::events(3, Duration::from_millis(30)));
    upstream.on("/big", Reply::Bytes(200_000));
    upstream.on("/cut", Reply::Raw(Bytes::from("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")));
    let get = |target: &'static str| client::request(address, "GET", target, &[]);

    let teapot = get("/teapot?tea=1").await;
    assert_eq!((teapot.status, teapot.header("x-pot"), teapot.text()), (418, Some("1"), "no".to_owned()));
    assert_eq!(get("/gone").await.status, 204);
    let start = Instant::now();
    assert_eq!(get("/slow").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(60));
    assert_eq!(get("/events").await.text(), "data: 0\n\ndata: 1\n\ndata: 2\n\n");
    let big = get("/big").await.body;
    assert_eq!(big.len(), 200_000);
    assert_eq!(big[..65_536], generated_block());
    assert_eq!(get("/elsewhere").await.json()["method"], "GET");

    let mut client = RawClient::connect(address).await;
    client.send("GET /cut HTTP/1.1\r\n\r\n").await.expect("sent");
    let broken = client.try_response(false).await.expect_err("the body is cut");
    assert_eq!(broken.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(
        client.closes_within(Duration::from_secs(1)).await || !client.bytes().await.expect("half a body").is_empty()
    );

    upstream.stop().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "a stopped upstream refuses connections");
}

#[tokio::test]
async fn the_upstream_streams_bodies_and_knows_100_continue() {
    let upstream = Upstream::start();
    let address = upstream.address().parse().expect("an address");
    upstream.on("/echo", Reply::EchoBody);
    upstream.on("/refuse", Reply::Unread(413));

    let mut client = RawClient::connect(address).await;
    client.send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nping\r\n").await.expect("sent");
    assert_eq!(client.response_head().await.status, 200);
    assert_eq!(client.bytes().await.expect("an echo before the end"), b"4\r\nping\r\n");
    client.send("0\r\n\r\n").await.expect("sent");
    assert_eq!(client.bytes().await.expect("the end"), b"0\r\n\r\n");

    let expecting = "HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    client.send(format!("POST /x {expecting}")).await.expect("sent");
    assert_eq!(client.response().await.status, 100);
    client.send("ok").await.expect("sent");
    assert_eq!(client.response().await.json()["body_bytes"], 2);

    client.send(format!("POST /refuse {expecting}")).await.expect("sent");
    assert_eq!(client.response().await.status, 413);
    assert!(client.closes_within(Duration::from_secs(1)).await);
    assert!(!upstream.last().complete);
}

#[tokio::test]
async fn the_upstream_echoes_websocket_messages() {
    let upstream = Upstream::start();
    upstream.on("/ws", Reply::WebSocket);
    let url = format!("ws://{}/ws", upstream.address());
    let (mut socket, response) = tokio_tungstenite::connect_async(url).await.expect("101");
    assert_eq!(response.status(), 101);
    socket.send(Message::text("hello")).await.expect("sent");
    let echo = socket.next().await.expect("a message").expect("no error");
    assert_eq!(echo, Message::text("hello"));
    socket.close(None).await.expect("closed");
}

#[tokio::test]
async fn the_upstream_listens_on_a_unix_socket() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = Upstream::start_unix();
    let path = upstream.address().strip_prefix("unix:").expect("as the configuration spells it");
    let mut stream = tokio::net::UnixStream::connect(path).await.expect("connected");
    stream.write_all(b"GET /u HTTP/1.1\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(upstream.last().target, "/u");
}

#[test]
fn fingerprints_do_not_depend_on_how_a_body_is_cut() {
    let body: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let upstream = fingerprint(&body);
    assert_ne!(upstream, fingerprint(&body[..999]));
    assert_ne!(fingerprint(b"\0"), fingerprint(b"\0\0"));
}

#[test]
fn a_child_ends_with_its_owner_and_is_signalled_by_id() {
    let dir = server_dir();
    let command = ["sh", "-c", "echo out; echo err >&2; exec sleep 600"].map(str::to_owned);
    let mut process = Process::start("sleeper", dir.path(), &command, &[], OnOrphaned::Kill, None);
    let proc_entry = format!("/proc/{}", process.pid());
    process.stop("TERM", Duration::from_secs(5));
    assert!(process.exited().is_some_and(|status| !status.success()));
    let running = Process::start("sleeper", dir.path(), &command, &[], OnOrphaned::Kill, None);
    let running_entry = format!("/proc/{}", running.pid());
    assert!(std::path::Path::new(&running_entry).exists());
    drop(running);
    assert!(!std::path::Path::new(&running_entry).exists());
    assert!(!std::path::Path::new(&proc_entry).exists());
}

/// In two roles: the test, and a copy of itself that it starts and kills.
#[tokio::test]
async fn a_killed_test_leaves_no_server_behind() {
    const VICTIM: &str = "HARNESS_SELFTEST_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let redis = Redis::start().await;
        let mut postgres = Postgres::private(&[]).await;
        postgres.pause();
        println!("started {} {}", redis.pid(), postgres.pid());
        std::future::pending::<()>().await;
    }
    let servers = kill_a_copy("harness_selftest::a_killed_test_leaves_no_server_behind", VICTIM);
    all_end(&servers).await;
}

/// Runs one of these tests in another process, told by the variable `victim` that it is the one, and kills it when it has
/// printed `started PID PID …`: those, which were running then.
pub(crate) fn kill_a_copy(test: &str, victim: &str) -> Vec<u32> {
    let left_behind = server_dir();
    let mut copy = Command::new(std::env::current_exe().expect("the path of this test binary"))
        .args(["--exact", test, "--nocapture"])
        .env(victim, "1")
        .env("TMPDIR", left_behind.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary runs");
    let printed = BufReader::new(copy.stdout.take().expect("a pipe"));
    let started = printed.lines().map_while(Result::ok).find(|line| line.contains("started ")).expect("it starts");
    let (_, pids) = started.split_once("started ").expect("it is that line");
    let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().expect("an id")).collect();
    assert!(pids.iter().all(|pid| is_running(&pid.to_string())), "{started}");
    copy.kill().expect("SIGKILL");
    copy.wait().expect("its end");
    pids
}

/// Waits until none of these processes is there.
pub(crate) async fn all_end(pids: &[u32]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while pids.iter().any(|pid| is_running(&pid.to_string())) {
        assert!(Instant::now() < deadline, "still running: {pids:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process exists that has not ended (one that nobody has waited for yet is a zombie).
fn is_running(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains("zombie"))
}

#[test]
fn metrics_are_read_from_the_text_format() {
    let metrics = Metrics::parse(
        "# HELP a Help.\n# TYPE a counter\na{reason=\"x, \\\"y\\\" }\",feature=\"crm\"} 2\na{reason=\"z\",feature=\"crm\"} 3\n\
         b_bucket{le=\"+Inf\"} +Inf\nc 1.5e3 1700000000\n",
    );
    assert_eq!(metrics.sum("a"), 5.0);
    assert_eq!(metrics.value("a", &[("feature", "crm"), ("reason", "x, \"y\" }")]), Some(2.0));
    assert_eq!(metrics.value("a", &[("feature", "none")]), None);
    assert_eq!(metrics.sum("c"), 1500.0);
    assert_eq!(metrics.named("b_bucket")[0].value, f64::INFINITY);
}
