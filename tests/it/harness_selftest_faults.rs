//! The harness's faults, tested against real servers: wires, failovers, poolers, and load.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::NoTls;

use crate::harness::{Ask, Database, Load, Pooler, Postgres, Redis, Reply, Sentinel, Upstream, Wire, World};

const SHORT: Duration = Duration::from_millis(150);

/// A connection whose bytes the test sees: Redis answers PING with one line.
async fn raw(wire: &Wire) -> TcpStream {
    TcpStream::connect(("127.0.0.1", wire.port())).await.expect("a wire accepts connections")
}

async fn ping(stream: &mut TcpStream) {
    stream.write_all(b"*1\r\n$4\r\nPING\r\n").await.expect("sent");
}

async fn pong(stream: &mut TcpStream) {
    let mut answer = [0; 7];
    timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await.expect("in time").expect("an answer");
    assert_eq!(&answer, b"+PONG\r\n");
}

async fn silent(stream: &mut TcpStream) {
    let read = timeout(SHORT, stream.read_u8()).await;
    assert!(read.is_err(), "neither an answer nor an end: {read:?}");
}

async fn is_reset(stream: &mut TcpStream) {
    let read = timeout(Duration::from_secs(10), stream.read_u8()).await.expect("an end in time");
    assert_eq!(read.expect_err("no answer").kind(), ErrorKind::ConnectionReset);
}

async fn connect(database: &Database, wire: &Wire) -> tokio_postgres::Client {
    let connected = tokio_postgres::connect(&database.url_via(wire), NoTls).await;
    let (client, connection) = connected.expect("the server accepts connections");
    tokio::spawn(connection);
    client
}

async fn via(redis: &Redis, wire: &Wire) -> MultiplexedConnection {
    let client = redis::Client::open(redis.url_via(wire)).expect("a valid URL");
    client.get_multiplexed_async_connection().await.expect("the server accepts connections")
}

#[tokio::test]
async fn a_black_hole_swallows_for_good() {
    let redis = Redis::start().await;
    let wire = redis.wire();
    let mut present = raw(&wire).await;
    ping(&mut present).await;
    pong(&mut present).await;

    wire.black_hole();
    let mut new = raw(&wire).await;
    for stream in [&mut present, &mut new] {
        stream.write_all(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\nlost\r\n").await.expect("sent");
        silent(stream).await;
    }
    assert_eq!(wire.count("SET k lost"), 2, "what is asked in vain is counted");
    wire.restore();
    is_reset(&mut present).await;
    is_reset(&mut new).await;
    assert!(!redis.connect().await.exists::<_, bool>("k").await.expect("an answer"));
    let mut healed = raw(&wire).await;
    ping(&mut healed).await;
    pong(&mut healed).await;
}

#[tokio::test]
async fn swallowed_replies_leave_a_connection_half_open() {
    let redis = Redis::start().await;
    let wire = redis.wire();
    let mut present = raw(&wire).await;
    ping(&mut present).await;
    pong(&mut present).await;

    wire.swallow_replies();
    let mut new = raw(&wire).await;
    for (stream, key) in [(&mut present, "a"), (&mut new, "b")] {
        let set = format!("*3\r\n$3\r\nSET\r\n$1\r\n{key}\r\n$4\r\ndone\r\n");
        stream.write_all(set.as_bytes()).await.expect("sent");
        silent(stream).await;
    }
    let done: (String, String) = redis.connect().await.mget(&["a", "b"]).await.expect("both were set");
    assert_eq!(done, ("done".to_owned(), "done".to_owned()));
    wire.restore();
    is_reset(&mut present).await;
    is_reset(&mut new).await;
}

#[tokio::test]
async fn connections_can_be_reset_and_a_wire_can_be_pointed_elsewhere() {
    let (first, second) = (Redis::start().await, Redis::start().await);
    let wire = first.wire();
    let mut stream = raw(&wire).await;
    ping(&mut stream).await;
    pong(&mut stream).await;
    wire.reset_connections().await;
    is_reset(&mut stream).await;
    let mut connection = via(&first, &wire).await;
    let _: () = connection.set("where", "first").await.expect("new connections work");

    wire.point_to(second.port()).await;
    assert!(connection.get::<_, String>("where").await.is_err(), "present connections are closed");
    let mut connection = via(&first, &wire).await;
    assert_eq!(connection.get::<_, Option<String>>("where").await.expect("an answer"), None);
}

#[tokio::test]
async fn a_call_is_held_before_it_reaches_the_server() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    database.execute("CREATE TABLE plans (n int); INSERT INTO plans VALUES (1)").await;
    let wire = postgres.wire();
    let (held, other) = (connect(&database, &wire).await, connect(&database, &wire).await);
    let statement = held.prepare("SELECT n FROM plans WHERE n > $1").await.expect("a valid query");

    let hold = wire.hold("FROM plans");
    assert!(!hold.is_held());
    let reader = tokio::spawn(async move { held.query_one(&statement, &[&0]).await.expect("a row").get::<_, i32>(0) });
    hold.reached().await;
    // Only that one call; the next one like it goes on.
    let row = other.query_one("SELECT n FROM plans", &[]).await.expect("others go on");
    assert_eq!(row.get::<_, i32>(0), 1);
    database.execute("UPDATE plans SET n = 2").await;
    assert!(hold.is_held() && !reader.is_finished());
    hold.release();
    assert_eq!(reader.await.expect("a row"), 2, "read after the change");

    // What is sent before it, in the same piece, goes on.
    let redis = Redis::start().await;
    let wire = redis.wire();
    let mut stream = raw(&wire).await;
    let hold = wire.hold("GET k");
    stream.write_all(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n$4\r\nPING\r\n").await.expect("sent");
    pong(&mut stream).await;
    hold.reached().await;
    silent(&mut stream).await;
    let _: () = redis.connect().await.set("k", "v").await.expect("OK");
    drop(hold);
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).await.expect("the rest");
    assert_eq!(&answer, b"$1\r\nv\r\n+PONG\r\n");
}

#[tokio::test]
async fn a_reply_is_held_after_the_server_has_answered() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    database.execute("CREATE TABLE plans (n int); INSERT INTO plans VALUES (1)").await;
    let wire = postgres.wire();
    let (held, other) = (connect(&database, &wire).await, connect(&database, &wire).await);
    let hold = wire.hold_reply("FROM plans");
    let reader = tokio::spawn(async move {
        let first = held.query_one("SELECT n FROM plans", &[]).await.expect("a row").get::<_, i32>(0);
        (first, held.query_one("SELECT n FROM plans", &[]).await.expect("a row").get::<_, i32>(0))
    });
    hold.reached().await;
    other.execute("UPDATE plans SET n = 2", &[]).await.expect("others go on");
    assert!(!reader.is_finished());
    hold.release();
    assert_eq!(reader.await.expect("rows"), (1, 2), "the first was read before the change");

    // Released before there was anything to hold.
    wire.hold("SELECT 1").release();
    drop(wire.hold_reply("SELECT 1"));
    other.query("SELECT 1", &[]).await.expect("nothing is held");
}

#[tokio::test]
async fn a_standby_follows_and_its_replay_can_be_stopped() {
    let mut primary = Postgres::private(&[]).await;
    let database = primary.database().await;
    database.execute("CREATE TABLE plans (n int); INSERT INTO plans VALUES (1)").await;
    let mut standby = primary.standby().await;
    let copy = standby.copy_of(&database);
    let wire = standby.wire();
    let reader = connect(&copy, &wire).await;
    let seen = async || reader.query_one("SELECT n FROM plans", &[]).await.expect("a row").get::<_, i32>(0);
    assert_eq!(seen().await, 1);
    let refused = reader.execute("UPDATE plans SET n = 0", &[]).await.expect_err("a standby is read-only");
    assert_eq!(refused.code().map(|code| code.code()), Some("25006"));
    assert_eq!(wire.count("FROM plans"), 1);

    standby.pause_replay().await;
    let before = standby.replayed_lsn().await;
    database.execute("UPDATE plans SET n = 2").await;
    tokio::time::sleep(SHORT).await;
    assert_eq!((seen().await, standby.replayed_lsn().await), (1, before));
    assert!(primary.inserted_lsn().await > before);
    standby.resume_replay().await;
    standby.caught_up_with(&primary).await;
    assert_eq!(seen().await, 2);

    // It survives its primary, and follows it again.
    primary.kill();
    assert_eq!(seen().await, 2);
    primary.restart().await;
    database.execute("UPDATE plans SET n = 3").await;
    standby.caught_up_with(&primary).await;
    assert_eq!(seen().await, 3);
    standby.kill();
    standby.restart().await;
    assert_eq!(copy.value("SELECT n FROM plans").await.as_deref(), Some("3"));
    primary.kill();
    let _promoted = standby.promote().await;
    copy.execute("UPDATE plans SET n = 4").await;
}

#[tokio::test]
async fn passwords_of_roles_are_demanded_and_connections_counted() {
    let mut postgres = Postgres::private(&[]).await;
    let database = postgres.database().await;
    assert!(postgres.connections_to(&database).await.is_empty());
    database.execute("CREATE ROLE gate LOGIN PASSWORD 'old-word'").await;
    let unix = database.unix_url().replace("postgres:pg-secret-word", "gate:wrong");
    let is_let_in = async |url: &str| tokio_postgres::connect(url, NoTls).await.is_ok();
    assert!(is_let_in(&unix).await, "the socket trusts");
    postgres.demand_password("gate").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while is_let_in(&unix).await {
        assert!(Instant::now() < deadline, "a password is demanded once the server has read its rules");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(is_let_in(&unix.replace("wrong", "old-word")).await);
    database.execute("ALTER ROLE gate PASSWORD 'new-word'").await;
    assert!(!is_let_in(&database.url_as("gate", "old-word")).await, "rotated");

    let url = database.url_as("gate", "new-word") + "?application_name=selftest";
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("the new password");
    tokio::spawn(connection);
    client.batch_execute("BEGIN; SELECT 7").await.expect("an open transaction");
    // Those above may take a moment to end.
    let sessions = loop {
        let sessions = postgres.connections_to(&database).await;
        assert!(Instant::now() < deadline, "more than one connection: {sessions:?}");
        if sessions.len() == 1 {
            break sessions;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let session = &sessions[0];
    assert_eq!((&*session.application_name, &*session.state), ("selftest", "idle in transaction"));
    assert_eq!(session.query, "BEGIN; SELECT 7");
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("a row").get(0);
    assert_eq!(session.pid, pid);
}

#[tokio::test]
async fn sentinels_fail_over_and_unreplicated_writes_are_lost() {
    let mut sentinel = Sentinel::start().await;
    let (first, second) = (sentinel.master().port(), sentinel.replica().port());
    assert_eq!(sentinel.master_port().await, first);
    let wire = sentinel.master().wire();
    let mut virtual_address = via(sentinel.master(), &wire).await;
    let _: () = virtual_address.set("kept", "1").await.expect("OK");
    let mut replica = sentinel.replica().connect().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !replica.exists::<_, bool>("kept").await.expect("an answer") {
        assert!(Instant::now() < deadline, "nothing is replicated");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    sentinel.pause_replication().await;
    let _: () = virtual_address.set("lost", "1").await.expect("OK");
    sentinel.master().kill();
    assert_eq!(sentinel.wait_for_failover().await, second);
    assert_eq!((sentinel.master().port(), sentinel.replica().port()), (second, first));
    wire.point_to(second).await;
    let mut virtual_address = via(sentinel.master(), &wire).await;
    let found: (Option<String>, Option<String>) = virtual_address.mget(&["kept", "lost"]).await.expect("an answer");
    assert_eq!(found, (Some("1".to_owned()), None));

    sentinel.replica().restart().await;
    sentinel.wait_for_replica().await;
    assert!(sentinel.replica().connect().await.exists::<_, bool>("kept").await.expect("an answer"));
}

#[tokio::test]
async fn a_pooler_lends_a_connection_for_a_transaction() {
    let postgres = Postgres::shared().await;
    let database = postgres.database().await;
    let mut pooler = Pooler::start(&database, 2).await;
    let wire = pooler.wire();
    let clients = [connect(&database, &wire).await, connect(&database, &wire).await, connect(&database, &wire).await];
    let backend = async |client: &tokio_postgres::Client| {
        let answer = client.simple_query("SELECT pg_backend_pid()").await.expect("an answer");
        let row = answer.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        row.expect("a row")
    };
    for client in &clients {
        backend(client).await;
    }
    assert_eq!(wire.count("pg_backend_pid"), 3);
    assert!(postgres.connections_to(&database).await.len() <= 2, "three clients share them");

    // In a transaction a connection belongs to one client; LISTEN ends with it, and nobody is told.
    clients[0].batch_execute("LISTEN changes; BEGIN").await.expect("no error");
    let first = backend(&clients[0]).await;
    assert_ne!(backend(&clients[1]).await, first);
    clients[0].batch_execute("COMMIT").await.expect("committed");

    pooler.kill();
    assert!(clients[0].simple_query("SELECT 1").await.is_err());
    pooler.restart(&database).await;
    backend(&connect(&database, &wire).await).await;
}

#[tokio::test]
async fn a_load_is_sent_when_it_is_due() {
    let upstream = Upstream::start();
    upstream.on("*", Reply::verified());
    upstream.on("/slow", Reply::after(Duration::from_millis(300), Reply::verified()));
    upstream.on("/gone", Reply::status(410));
    let address = upstream.address().parse().expect("an address");
    let hot = uuid::Uuid::new_v4();
    let load =
        Load::on(address).rate(200).keep_headers(&["X-Tenant-ID", "X-License-Plan"]).start(move |n| match n % 10 {
            0 => Ask::get("/slow", uuid::Uuid::new_v4(), "cold"),
            1 => Ask { target: "/gone".to_owned(), tenant: None, label: "gone" },
            _ => Ask::get("/api", hot, "hot"),
        });
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let so_far = load.so_far().len();
    assert!((150..=400).contains(&so_far), "{so_far}");
    upstream.stop().await;
    let stopped = Instant::now();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let samples = load.stop().await;

    let before = samples.between(begin - Duration::from_secs(1), stopped - Duration::from_secs(1));
    assert_eq!(before.by_status().keys().copied().collect::<Vec<_>>(), [200, 410]);
    assert_eq!(before.of("hot").by_header("x-tenant-id").keys().collect::<Vec<_>>(), [&hot.to_string()]);
    assert_eq!(before.by_header("X-License-Plan").keys().collect::<Vec<_>>(), [""]);
    assert!(before.of("cold").percentile(0.0) >= Duration::from_millis(300));
    assert!(before.of("hot").percentile(0.5) < Duration::from_millis(300), "slow ones stop nobody");
    let tenants: std::collections::HashSet<_> = before.of("cold").0.iter().map(|sample| sample.tenant).collect();
    assert_eq!(tenants.len(), before.of("cold").len());
    let after = samples.between(stopped + Duration::from_millis(50), Instant::now());
    assert_eq!(after.by_status().keys().copied().collect::<Vec<_>>(), [0]);
    assert!(after.errors().keys().any(|error| error.contains("refused")), "{:?}", after.errors());
    assert!(after.len() > 40, "it goes on against a closed door: {}", after.len());
    assert!(upstream.connections() < 60, "connections are kept: {}", upstream.connections());
    assert!(upstream.echoed() > 50 && upstream.count() < 50, "only others are recorded");
}

#[tokio::test]
async fn the_proxy_is_paused_killed_and_its_log_is_read() {
    let world = World::start().await;
    let mut first = world.second_replica().await;
    let serving = first.wait_for_event(|line| line["message"] == "serving").await;
    assert_eq!(serving["proxy"], first.address().to_string());
    first.pause();
    let mut stream = TcpStream::connect(first.address()).await.expect("the socket is still open");
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: app\r\n\r\n").await.expect("sent");
    silent(&mut stream).await;
    first.resume();
    let answer = timeout(Duration::from_secs(10), stream.read_u8()).await.expect("in time");
    assert_eq!(answer.expect("an answer"), b'H');

    first.kill();
    assert!(first.exited().is_some_and(|status| !status.success()));
    assert!(TcpStream::connect(first.address()).await.is_err());
}

#[tokio::test]
async fn a_load_shows_what_the_gate_decided_on() {
    let world = World::start().await;
    world.upstream.on("*", Reply::verified());
    let (starter, professional) = (world.tenant("starter").await, world.tenant("professional").await);
    let headers = ["X-License-Plan", "X-License-Features", "X-Tenant-ID"];
    let load = Load::on(world.proxy.address()).rate(50).on_new_connections().keep_headers(&headers).start(move |n| {
        let (tenant, label) = if n % 2 == 0 { (starter, "starter") } else { (professional, "professional") };
        Ask::get("/api/v1/crm", tenant, label)
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let samples = load.stop().await;
    assert_eq!(samples.errors(), Default::default());
    assert_eq!(samples.of("starter").by_status().keys().collect::<Vec<_>>(), [&402]);
    let let_through = samples.of("professional");
    assert_eq!(let_through.by_status().keys().collect::<Vec<_>>(), [&200]);
    assert_eq!(let_through.by_header("X-License-Plan").keys().collect::<Vec<_>>(), ["professional"]);
    assert_eq!(let_through.by_header("X-Tenant-ID").keys().collect::<Vec<_>>(), [&professional.to_string()]);
}
