//! The look-up: which layer answers, how often each store is asked, and what happens when one does not answer.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use uuid::Uuid;

use crate::harness::{License, Postgres, Proxy, ProxyBuilder, Redis, RedisOptions, World, client, world};

/// How often the proxies have asked Postgres for a licence.
fn asked_postgres(world: &World) -> usize {
    world.postgres_wire.count("FROM tenant_licenses WHERE tenant_id")
}

fn asked_redis(world: &World, tenant: Uuid) -> usize {
    world.redis_wire.count(&format!("license:{tenant}"))
}

#[tokio::test]
async fn memory_then_redis_then_postgres() {
    let world = World::start().await;
    // The first look-up of all brings the scripts to Redis.
    assert_eq!(world.get("/api/v1/tickets", world.tenant("starter").await).await.status, 200);
    world.postgres_wire.reset();
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    assert_eq!((asked_redis(&world, tenant), asked_postgres(&world)), (2, 1), "a read and a fill, one query");

    for _ in 0..5 {
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    }
    assert_eq!((asked_redis(&world, tenant), asked_postgres(&world)), (2, 1), "memory asks neither store");

    let replica = world.second_replica().await;
    for _ in 0..5 {
        assert_eq!(world::get(&replica, "/api/v1/tickets", tenant).await.status, 200);
        assert_eq!(world::get(&replica, "/api/v1/crm", tenant).await.status, 402);
    }
    assert_eq!((asked_redis(&world, tenant), asked_postgres(&world)), (3, 1), "a second replica asks Redis alone");

    let layers: Vec<_> = [("memory", 5.0), ("redis", 0.0), ("source", 2.0)].into();
    let metrics = world.proxy.metrics().await;
    for (layer, expected) in layers {
        assert_eq!(metrics.value("dotmac_license_lookups_total", &[("layer", layer)]), Some(expected), "{layer}");
    }
    assert_eq!(metrics.sum("dotmac_license_cache_requests"), 7.0);
    assert_eq!(metrics.sum("dotmac_license_cache_hits"), 5.0);
    let metrics = replica.metrics().await;
    assert_eq!(metrics.value("dotmac_license_lookups_total", &[("layer", "redis")]), Some(1.0));
    assert_eq!(metrics.sum("dotmac_license_cache_hits"), 10.0, "Redis is a hit");
}

#[tokio::test]
async fn what_lies_in_redis_is_readable_and_expires() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    let mut redis = world.redis.connect().await;
    let key = format!("license:{tenant}");
    let text: String = redis::cmd("GET").arg(&key).query_async(&mut redis).await.expect("an entry");
    let entry: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&entry["tenant_id"], &entry["plan"]), (&json!(tenant), &json!("starter")));
    assert_eq!(entry["features"], json!({ "tickets": true }));
    assert!(entry["revision"].as_i64().is_some_and(|revision| revision > 1_700_000_000_000_000));
    let ttl: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut redis).await.expect("an expiry");
    assert!((200_000..=300_000).contains(&ttl), "{ttl}");
}

/// Entries that no version of this program has written are asked for again and replaced.
#[tokio::test]
async fn foreign_entries_in_redis_are_replaced() {
    let world = World::start().await;
    let mut redis = world.redis.connect().await;
    let foreign =
        ["", "null", "garbage", "{}", "[1]", "{\"plan\":\"enterprise\",\"features\":{\"crm\":true}}", "\u{1}\u{2}"];
    for value in foreign {
        let tenant = world.tenant("starter").await;
        let key = format!("license:{tenant}");
        let _: () = redis::cmd("SET").arg(&key).arg(value).query_async(&mut redis).await.expect("set");
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402, "{value:?}");
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200, "{value:?}");
        let now: String = redis::cmd("GET").arg(&key).query_async(&mut redis).await.expect("an entry");
        assert!(now.contains("\"plan\":\"starter\""), "{value:?} became {now:?}");
    }
    // A licence of another tenant under this one's key is foreign too.
    let (rich, poor) = (world.tenant("enterprise").await, world.tenant("starter").await);
    assert_eq!(world.get("/api/v1/crm", rich).await.status, 200);
    let copied = redis::cmd("COPY").arg(format!("license:{rich}")).arg(format!("license:{poor}")).to_owned();
    let _: i64 = copied.query_async(&mut redis).await.expect("copied");
    assert_eq!(world.get("/api/v1/crm", poor).await.status, 402);
}

#[tokio::test]
async fn unknown_tenants_are_remembered_apart_and_leave_nothing_in_redis() {
    let world = World::start().await;
    let unknown = Uuid::new_v4();
    for _ in 0..5 {
        assert_eq!(world.get("/api/v1/crm", unknown).await.json()["reason"], "no_license");
    }
    assert_eq!(asked_postgres(&world), 1);
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_license_cache_hits"), 4.0, "negatives included");
    assert_eq!(metrics.sum("dotmac_license_memory_entries"), 0.0);
    let mut redis = world.redis.connect().await;
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.expect("the keys");
    assert_eq!(keys, ["license:~epoch"]);
}

#[tokio::test]
async fn one_load_per_tenant_at_a_time() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let replica = world.second_replica().await;
    for proxy in [&world.proxy, &replica] {
        let other = world.tenant("starter").await;
        assert_eq!(world::get(proxy, "/api/v1/tickets", other).await.status, 200, "there is a connection");
    }
    world.postgres_wire.reset();
    // Slow enough that many requests come while the first still waits.
    world.postgres_wire.slow(Duration::from_millis(15));
    let ask = |i: usize| {
        let proxy = if i.is_multiple_of(2) { &world.proxy } else { &replica };
        world::get(proxy, "/api/v1/tickets", tenant)
    };
    let answers = join_all((0..100).map(ask)).await;
    assert!(
        answers.iter().all(|answer| answer.status == 200),
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    assert_eq!(asked_postgres(&world), 1, "one query over both replicas");
}

#[tokio::test]
async fn without_redis_postgres_answers() {
    let world = World::start().await;
    world.redis_wire.cut().await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    assert_eq!(asked_postgres(&world), 1);
    let metrics = world.proxy.metrics().await;
    assert!(metrics.value("dotmac_store_errors_total", &[("store", "redis")]) >= Some(1.0));

    world.redis_wire.reset();
    world.redis_wire.restore();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while world.redis_wire.count("license:") == 0 {
        assert!(tokio::time::Instant::now() < deadline, "Redis is not asked again");
        assert_eq!(world.get("/api/v1/tickets", world.tenant("starter").await).await.status, 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// While no store answers, the last known licence stands; without one, an outage that is confirmed opens, and no other.
#[tokio::test]
async fn in_an_outage_the_last_known_licence_then_on_failure() {
    let world =
        World::start_with(|builder| builder.set("/licenses/revalidate_after", "1s").set("/licenses/ttl", "1s")).await;
    let (known, cold) = (world.tenant("starter").await, world.tenant("starter").await);
    assert_eq!(world.get("/api/v1/tickets", known).await.status, 200);
    world.redis_wire.cut().await;
    world.postgres_wire.cut().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..3 {
        assert_eq!(world.get("/api/v1/tickets", known).await.status, 200);
        assert_eq!(world.upstream.last().header("X-License-Fallback"), Some("stale"));
        assert_eq!(world.get("/api/v1/crm", known).await.status, 402, "a last known licence denies too");
    }
    wait_for_outage(&world.proxy).await;
    let answer = world.get("/api/v1/crm", cold).await;
    assert_eq!(answer.status, 200, "on_failure: allow");
    assert_eq!(world.upstream.last().header("X-License-Fallback"), Some("open"));
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.value("dotmac_decisions_total", &[("outcome", "failed_open")]), Some(1.0));
    assert!(metrics.sum("dotmac_license_stale_served_total") >= 3.0);

    world.postgres_wire.restore();
    world.redis_wire.restore();
    wait_until_decided(&world, cold, 402).await;
    assert_eq!(world.get("/api/v1/tickets", known).await.status, 200);
    assert_eq!(world.upstream.last().header("X-License-Fallback"), None, "what was let through was not cached");
}

#[tokio::test]
async fn on_failure_deny_globally_and_by_rule() {
    let world = World::start_with(|builder| {
        builder.set("/licenses/on_failure", "deny").set("/routes/rules/3/on_failure", "allow")
    })
    .await;
    world.redis_wire.cut().await;
    world.postgres_wire.cut().await;
    world.get("/api/v1/crm", Uuid::new_v4()).await;
    wait_for_outage(&world.proxy).await;
    let answer = world.get("/api/v1/tickets", Uuid::new_v4()).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!("store_unavailable")));
    assert!(answer.header("Retry-After").is_some());
    assert_eq!(world.get("/api/v1/crm", Uuid::new_v4()).await.status, 200, "crm's own rule says allow");
}

/// A row that can't be read is a fault of that row: its tenant is let through, the others are decided.
#[tokio::test]
async fn unreadable_rows_harm_nobody_else() {
    let world = World::start().await;
    let large = json!({ "x".repeat(70_000): true });
    for features in [json!([]), json!("crm"), json!(true), json!({ "crm": "yes" }), large] {
        let tenant = Uuid::new_v4();
        world.insert_license(tenant, "starter", features).await;
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200);
        assert_eq!(world.upstream.last().header("X-License-Fallback"), Some("open"));
        let log = world.proxy.stderr();
        assert!(log.contains(&tenant.to_string()), "the log names the tenant");
    }
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
}

/// Both sources of licences behave alike.
#[tokio::test]
async fn postgres_and_file_behave_alike() {
    let world = World::start().await;
    suite(&world.proxy, async |license: License<'_>| world.insert(license).await).await;

    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("licenses.yaml");
    std::fs::write(&path, "tenants: []\n").expect("written");
    let file = world
        .builder
        .clone()
        .set("/licenses/source", json!({ "file": { "path": path } }))
        .set("/licenses/revalidate_after", "100ms")
        .start()
        .await;
    let entries = std::sync::Mutex::new(Vec::new());
    suite(&file, async |license: License<'_>| {
        let features: Vec<_> = license.features.as_object().expect("an object").keys().cloned().collect();
        let time = |interval: &str| {
            let (count, unit) = interval.split_once(' ').expect("a count and a unit");
            let seconds = count.parse::<i64>().expect("a count") * if unit.starts_with("day") { 86_400 } else { 1 };
            jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
        };
        let mut entries = entries.lock().expect("no panic");
        entries.push(json!({
            "tenant_id": license.tenant, "plan": license.plan, "features": features,
            "valid_from": time(license.valid_from).to_string(), "valid_until": time(license.valid_until).to_string(),
            "auto_renew": license.auto_renew,
        }));
        std::fs::write(&path, json!({ "tenants": *entries }).to_string()).expect("written");
    })
    .await;
}

async fn suite(proxy: &Proxy, insert: impl AsyncFn(License<'_>)) {
    let [rich, poor, ended, unborn, grace] = std::array::from_fn(|_| Uuid::new_v4());
    insert(License::valid(rich, "enterprise")).await;
    insert(License::valid(poor, "starter")).await;
    insert(License {
        valid_from: "-2 days",
        valid_until: "-1 day",
        auto_renew: false,
        ..License::valid(ended, "enterprise")
    })
    .await;
    insert(License { valid_from: "1 day", valid_until: "2 days", ..License::valid(unborn, "enterprise") }).await;
    insert(License {
        valid_from: "-2 days",
        valid_until: "-1 day",
        auto_renew: true,
        ..License::valid(grace, "enterprise")
    })
    .await;
    for (tenant, target, status, reason) in [
        (rich, "/api/v1/crm", 200, None),
        (poor, "/api/v1/tickets", 200, None),
        (poor, "/api/v1/crm", 402, Some("feature_not_in_plan")),
        (ended, "/api/v1/crm", 402, Some("license_expired")),
        (unborn, "/api/v1/crm", 402, Some("license_not_yet_valid")),
        (grace, "/api/v1/crm", 200, None),
        (Uuid::new_v4(), "/api/v1/crm", 402, Some("no_license")),
    ] {
        let answer = world::get(proxy, target, tenant).await;
        let found = (answer.status == 402).then(|| answer.json()["reason"].as_str().map(str::to_owned)).flatten();
        assert_eq!((answer.status, found.as_deref()), (status, reason), "{target}");
    }
    let late = Uuid::new_v4();
    assert_eq!(world::get(proxy, "/api/v1/crm", late).await.status, 402);
}

/// A change of the file acts without a restart.
#[tokio::test]
async fn a_changed_licence_file_is_read_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("licenses.yaml");
    let tenant = Uuid::new_v4();
    let write = |plan: &str| {
        std::fs::write(&path, json!({ "tenants": [{ "tenant_id": tenant, "plan": plan }] }).to_string())
            .expect("written");
    };
    write("starter");
    let upstream = crate::harness::Upstream::start();
    let proxy = Proxy::builder(upstream.address())
        .set("/licenses/source", json!({ "file": { "path": path } }))
        .set("/licenses/revalidate_after", "200ms")
        .start()
        .await;
    assert_eq!(world::get(&proxy, "/api/v1/crm", tenant).await.status, 402);
    write("professional");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while world::get(&proxy, "/api/v1/crm", tenant).await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the change was not seen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Without a change feed nothing is older than `revalidate_after`, and whoever is in use never waits for a store.
#[tokio::test]
async fn a_change_is_seen_within_revalidate_after() {
    let world = World::start_with(|builder| builder.set("/licenses/revalidate_after", "1s")).await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    world
        .database
        .execute(&format!("UPDATE tenant_licenses SET features = '{{\"crm\":true}}' WHERE tenant_id = '{tenant}'"))
        .await;
    let changed = tokio::time::Instant::now();
    while world.get("/api/v1/crm", tenant).await.status != 200 {
        assert!(changed.elapsed() < Duration::from_secs(10), "the change was not seen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn stores_over_tls_and_unix_sockets() {
    let postgres = Postgres::shared().await;
    let ca = postgres.ca_file().display().to_string();
    let redis =
        Redis::start_with(RedisOptions { tls: true, password: Some("s3cret"), ..RedisOptions::default() }).await;
    let world = World::start_on(postgres, |builder| builder).await;
    let redis_ca = redis.ca_file().display().to_string();
    let with_ca = |builder: ProxyBuilder| builder.set("/licenses/redis/ca_file", redis_ca.clone());
    let ours = |mode: &str| format!("sslmode={mode}&sslrootcert={ca}");
    for (host, query, works) in [
        ("127.0.0.1", "sslmode=disable".to_owned(), true),
        ("127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("127.0.0.1", "sslmode=require".to_owned(), true),
        ("127.0.0.1", ours("verify-ca"), true),
        // The certificate is for localhost alone.
        ("localhost", ours("verify-full"), true),
        ("127.0.0.1", ours("verify-full"), false),
        // Without our authority nothing vouches for the server.
        ("localhost", "sslmode=verify-ca".to_owned(), false),
        ("localhost", "sslmode=verify-full".to_owned(), false),
    ] {
        let url = format!("{}?{query}", world.database.url_at(host, world.postgres.port()));
        let proxy = with_ca(world.builder.clone())
            .env("DOTMAC_LICENSE_DATABASE_URL", url.replacen("postgresql://", "postgresql+asyncpg://", 1))
            .env("DOTMAC_LICENSE_REDIS_URL", redis.tls_url())
            .set("/licenses/lookup_deadline", "2s")
            .wait_for_live_only()
            .start()
            .await;
        let tenant = world.tenant("starter").await;
        let answer = world::get(&proxy, "/api/v1/crm", tenant).await;
        let decided = answer.status == 402;
        assert_eq!(decided, works, "{host} {query}: {} {}", answer.status, answer.text());
        assert_eq!(
            proxy.metrics().await.value("dotmac_store_errors_total", &[("store", "redis")]),
            Some(0.0),
            "{query}"
        );
    }
    let proxy = world
        .builder
        .clone()
        .env("DOTMAC_LICENSE_DATABASE_URL", world.database.unix_url())
        .env("DOTMAC_LICENSE_REDIS_URL", world.redis.unix_url())
        .start()
        .await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world::get(&proxy, "/api/v1/crm", tenant).await.status, 402);
    assert_eq!(proxy.metrics().await.sum("dotmac_store_errors_total"), 0.0);
    let mut encrypted = redis.connect_with_tls().await;
    let keys: i64 = redis::cmd("DBSIZE").query_async(&mut encrypted).await.expect("a count");
    assert!(keys >= 5, "the proxies filled Redis over TLS");
}

/// Connections are opened by the first look-up and closed when they lie idle.
#[tokio::test]
async fn connections_are_lazy_bounded_and_given_back() {
    let world = World::start_with(|builder| {
        builder.set("/licenses/source/postgres", json!({ "max_connections": 2, "idle_timeout": "1s" }))
    })
    .await;
    let open = async || -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dotmac-license-proxy' AND datname = current_database()";
        world.database.value(sql).await.and_then(|count| count.parse().ok()).unwrap_or(-1)
    };
    let tenants = join_all((0..40).map(|_| world.tenant("starter"))).await;
    world.postgres_wire.slow(Duration::from_millis(5));
    let answers = join_all(tenants.iter().map(|tenant| world.get("/api/v1/tickets", *tenant))).await;
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 503)));
    assert!(open().await <= 2);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while open().await > 0 {
        assert!(tokio::time::Instant::now() < deadline, "idle connections stay open");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut redis = world.redis.connect().await;
    let clients: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut redis).await.expect("the clients");
    assert_eq!(
        clients.lines().count(),
        2,
        "one connection, by which Redis tells of changes, and the test's: {clients}"
    );
    world.postgres_wire.restore();
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
}

/// Stores that hang hold no request beyond the deadline, and once that is known to be an outage not at all.
#[tokio::test]
async fn hanging_stores_are_waited_for_within_the_deadline() {
    let world = World::start_with(|builder| builder.set("/licenses/lookup_deadline", "300ms")).await;
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
    world.postgres_wire.freeze();
    world.redis_wire.freeze();
    let begun = tokio::time::Instant::now();
    let answer = world.get("/api/v1/crm", Uuid::new_v4()).await;
    let took = begun.elapsed();
    assert_eq!(answer.status, 200, "the outage is confirmed in time for the first who asks");
    assert!(took >= Duration::from_millis(100) && took < Duration::from_secs(3), "{took:?}");
    wait_for_outage(&world.proxy).await;
    let cold = Uuid::new_v4().to_string();
    let headers = [("X-Tenant-ID", cold.as_str()), ("X-Request-ID", "in-the-outage")];
    let answer = client::request(world.proxy.address(), "GET", "/api/v1/crm", &headers).await;
    assert_eq!(answer.status, 200, "on_failure: allow");
    let line = world.proxy.wait_for_log(|line| line["request_id"] == "in-the-outage").await;
    assert_eq!(line["fallback"], "open");
    assert!(line["gate_us"].as_u64().is_some_and(|gate_us| gate_us < 290_000), "{line}");
}

/// A request finds the stores down; a probe confirms it.
async fn wait_for_outage(proxy: &Proxy) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", "postgres")]) != Some(2.0) {
        assert!(tokio::time::Instant::now() < deadline, "the outage was not confirmed");
        world::get(proxy, "/api/v1/crm", Uuid::new_v4()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait_until_decided(world: &World, tenant: Uuid, status: u16) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while world.get("/api/v1/crm", tenant).await.status != status {
        assert!(tokio::time::Instant::now() < deadline, "the stores are not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Passwords rotate under a running program: whatever comes first, the file or the role, no restart is needed.
#[tokio::test]
async fn a_rotated_password_is_read_from_its_file_again() {
    let world = World::start_on(Postgres::private(&[]).await, |builder| builder).await;
    let role = format!("app_{}", Uuid::new_v4().simple());
    world
        .database
        .execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'one'; GRANT SELECT ON tenant_licenses TO {role}"))
        .await;
    let directory = crate::harness::process::server_dir();
    let file = directory.path().join("database-url");
    let write = |password: &str| {
        let host = format!("127.0.0.1:{}", world.postgres_wire.port());
        let url = format!("postgres://{role}:{password}@{host}/{}?sslmode=disable\n", world.database.name());
        // As a Kubernetes secret changes: at once and whole.
        std::fs::write(directory.path().join("new"), url).expect("written");
        std::fs::rename(directory.path().join("new"), &file).expect("renamed");
    };
    let rotate = async |password: &str| {
        world.database.execute(&format!("ALTER ROLE {role} PASSWORD '{password}'")).await;
        let sql = format!("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}'");
        world.database.value(&sql).await;
    };
    write("one");
    let proxy = world
        .builder
        .clone()
        .env("DOTMAC_LICENSE_DATABASE_URL", "")
        .env("DOTMAC_LICENSE_DATABASE_URL_FILE", file.display().to_string())
        .start()
        .await;
    let decide = async || world::get(&proxy, "/api/v1/crm", world.tenant("starter").await).await.status;
    assert_eq!(decide().await, 402);

    rotate("two").await;
    wait_for_outage(&proxy).await;
    assert_eq!(decide().await, 200, "on_failure: allow");
    write("two");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while decide().await != 402 {
        assert!(tokio::time::Instant::now() < deadline, "the new password is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    write("three");
    rotate("three").await;
    for _ in 0..20 {
        assert_eq!(decide().await, 402, "the file was first: nobody notices");
    }
    let said = proxy.stderr();
    assert!(["one@", "two@", "three@", ":one", ":two", ":three"].iter().all(|word| !said.contains(word)), "{said}");
}

#[tokio::test]
async fn a_rotated_redis_password_is_read_from_its_file_again() {
    let world = World::start().await;
    let directory = crate::harness::process::server_dir();
    let file = directory.path().join("redis-url");
    let write = |password: &str| {
        let url = format!("redis://:{password}@127.0.0.1:{}\n", world.redis_wire.port());
        std::fs::write(&file, url).expect("written");
    };
    let mut redis = world.redis.connect().await;
    let mut rotate = async |password: &str| {
        let mut set = redis::cmd("CONFIG");
        let _: () = set.arg(&["SET", "requirepass", password]).query_async(&mut redis).await.expect("set");
        // Who listens to what is published counts as another type of client.
        for of_type in ["normal", "pubsub"] {
            let mut kill = redis::cmd("CLIENT");
            let kill = kill.arg(&["KILL", "TYPE", of_type, "SKIPME", "yes"]);
            let _: i64 = kill.query_async(&mut redis).await.expect("killed");
        }
    };
    rotate("one").await;
    write("one");
    let proxy = world
        .builder
        .clone()
        .env("DOTMAC_LICENSE_REDIS_URL", "")
        .env("DOTMAC_LICENSE_REDIS_URL_FILE", file.display().to_string())
        .start()
        .await;
    let errors = async || proxy.metrics().await.value("dotmac_store_errors_total", &[("store", "redis")]);
    let decide = async || world::get(&proxy, "/api/v1/crm", world.tenant("starter").await).await.status;
    assert_eq!(decide().await, 402);
    assert_eq!(errors().await, Some(0.0));

    rotate("two").await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", "redis")]) != Some(2.0) {
        assert!(tokio::time::Instant::now() < deadline, "the outage was not confirmed");
        assert_eq!(decide().await, 402, "Postgres answers");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    write("two");
    while proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", "redis")]) != Some(0.0) {
        assert!(tokio::time::Instant::now() < deadline, "the new password is not used");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = errors().await;
    for _ in 0..5 {
        assert_eq!(decide().await, 402);
    }
    assert_eq!(errors().await, before, "Redis is asked again, and answers");
}

/// Licences are read from the replica alone while it is up, and from the primary while it is not.
#[tokio::test]
async fn a_read_replica_spares_the_primary_until_it_is_down() {
    let mut world = World::start_on(Postgres::private(&[]).await, |builder| builder).await;
    let mut standby = world.postgres.standby().await;
    let wire = standby.wire();
    let url = standby.copy_of(&world.database).url_via(&wire);
    let proxy = world.builder.clone().env("LICENSE_DB_URL", url).start().await;
    let replicated = async |tenant: Uuid| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let copy = standby.copy_of(&world.database);
        let sql = format!("SELECT EXISTS (SELECT FROM tenant_licenses WHERE tenant_id = '{tenant}')");
        while copy.value(&sql).await.as_deref() != Some("t") {
            assert!(tokio::time::Instant::now() < deadline, "the standby does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let decide = async |tenant: Uuid| world::get(&proxy, "/api/v1/crm", tenant).await;
    world.postgres_wire.reset();
    wire.reset();
    for _ in 0..3 {
        let tenant = world.tenant("starter").await;
        replicated(tenant).await;
        assert_eq!(decide(tenant).await.json()["reason"], "feature_not_in_plan");
    }
    assert_eq!((wire.count("FROM tenant_licenses WHERE tenant_id"), asked_postgres(&world)), (3, 0));
    let calls = wire.calls();
    for calls in calls.chunks(4) {
        let order = ["BEGIN", "SELECT pg_is_in_recovery()", "SELECT tenant_id", "COMMIT"];
        assert!(calls.iter().zip(order).all(|(call, begins)| call.starts_with(begins)), "{calls:?}");
    }
    assert_eq!(calls.len(), 12, "{calls:?}");

    standby.kill();
    for _ in 0..5 {
        let tenant = world.tenant("starter").await;
        assert_eq!(decide(tenant).await.json()["reason"], "feature_not_in_plan", "the primary answers");
    }
    assert_eq!(asked_postgres(&world), 5);
    assert_eq!(proxy.metric("dotmac_license_replica_lagging_total").await, 0.0);
    let breaker = proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", "postgres")]);
    assert_eq!(breaker, Some(0.0), "licences can be looked up");

    standby.restart().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let before = wire.count("FROM tenant_licenses WHERE tenant_id");
    while wire.count("FROM tenant_licenses WHERE tenant_id") == before {
        assert!(tokio::time::Instant::now() < deadline, "the replica is not asked again");
        assert_eq!(decide(Uuid::new_v4()).await.status, 402);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Made-up ids by the thousand: few queries, each tenant answered, and nobody believes in an outage.
#[tokio::test]
async fn a_flood_of_made_up_ids_costs_few_queries() {
    let world = World::start_with(|builder| builder.set("/licenses/lookup_deadline", "5s")).await;
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
    world.postgres_wire.reset();
    let begun = tokio::time::Instant::now();
    let mut asked = 0;
    let mut worst = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(3) {
        let cold = world.tenant("starter").await;
        let stranger = || async { world.get("/api/v1/crm", Uuid::new_v4()).await.json()["reason"].clone() };
        let real = async {
            let begun = tokio::time::Instant::now();
            let reason = world.get("/api/v1/crm", cold).await.json()["reason"].clone();
            (reason, begun.elapsed())
        };
        let (reasons, (reason, took)) = tokio::join!(join_all((0..100).map(|_| stranger())), real);
        assert!(reasons.iter().all(|reason| reason == "no_license"), "{reasons:?}");
        assert_eq!(reason, "feature_not_in_plan", "a real tenant among them");
        asked += reasons.len();
        worst = worst.max(took);
    }
    let (queries, elapsed) = (asked_postgres(&world), begun.elapsed());
    println!("{asked} made-up ids in {elapsed:.1?}: {queries} queries; a real tenant waited {worst:?} at most");
    let allowed = 10 + elapsed.as_millis().div_ceil(25);
    assert!(queries as u128 <= allowed, "{queries} queries for {asked} ids in {elapsed:?}");
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_store_errors_total"), 0.0);
    assert_eq!(metrics.sum("dotmac_license_lookups_shed_total"), 0.0);
}
