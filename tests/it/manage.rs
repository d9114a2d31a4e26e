//! `license`: changes of licences on real parts, who sees them when, and what the audit says.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::proxy::Ended;
use crate::harness::world::get;
use crate::harness::{Pooler, Postgres, Proxy, Redis, Upstream, World};
use crate::migrations::{Site, TABLES_MADE_BY_HAND};

/// What the contract promises to other replicas, and what a busy machine may add.
const SEEN_WITHIN: Duration = Duration::from_millis(1500);

impl World {
    /// `license WORDS…`, by Ada.
    async fn license(&self, words: &str, reason: &str) -> Ended {
        let mut arguments: Vec<&str> = std::iter::once("license").chain(words.split(' ')).collect();
        if !reason.is_empty() {
            arguments.extend(["--actor", "Ada", "--reason", reason]);
        }
        let ended = self.builder.run(&arguments).await;
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
        ended
    }

    /// The same, which must succeed; what it printed.
    async fn licensed(&self, words: &str, reason: &str) -> String {
        let ended = self.license(words, reason).await;
        assert_eq!(ended.status.code(), Some(0), "{words}: {ended:?}");
        ended.stdout
    }

    /// `action by actor (reason): outcome`, the earliest first.
    async fn audit(&self, tenant: Uuid) -> Vec<String> {
        let sql = format!(
            "SELECT coalesce(json_agg(concat(action, ' by ', actor, ' (', reason, '): ', outcome) ORDER BY at), '[]')
               FROM license_audit WHERE tenant_id = '{tenant}'"
        );
        serde_json::from_str(&self.database.value(&sql).await.expect("a list")).expect("a list of texts")
    }

    /// `plan features features_until`, as the row has them.
    async fn row(&self, tenant: Uuid) -> String {
        let sql = format!(
            "SELECT concat_ws(' ', plan_tier, features, features_until) FROM tenant_licenses WHERE tenant_id = '{tenant}'"
        );
        self.database.value(&sql).await.expect("a row")
    }
}

/// Waits until `proxy` answers so; how long that took.
async fn answers(proxy: &Proxy, path: &str, tenant: Uuid, status: u16) -> Duration {
    let begun = Instant::now();
    while get(proxy, path, tenant).await.status != status {
        assert!(begun.elapsed() < Duration::from_secs(20), "{path} is not answered by {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    begun.elapsed()
}

/// Without any change feed: those who change a licence tell of it themselves.
#[tokio::test]
async fn what_is_changed_is_seen_everywhere_within_a_second() {
    let world = World::start_with(|builder| builder.set("/licenses/change_feed", "none")).await;
    let second = world.second_replica().await;
    let tenant = world.tenant("starter").await;
    for (words, path, status) in [
        ("set-plan T professional", "/api/v1/crm", 200),
        ("revoke T crm", "/api/v1/crm", 402),
        ("grant T fieldops", "/api/v1/fieldops", 200),
        ("revoke T fieldops", "/api/v1/fieldops", 402),
        ("reapply-plan T", "/api/v1/crm", 200),
    ] {
        for proxy in [&world.proxy, &second] {
            assert_ne!(get(proxy, path, tenant).await.status, status, "before {words}");
        }
        world.licensed(&words.replace('T', &tenant.to_string()), "a test").await;
        for proxy in [&world.proxy, &second] {
            let took = answers(proxy, path, tenant, status).await;
            assert!(took < SEEN_WITHIN, "{words}: {took:?}");
        }
    }
    // A tenant that was known to have no licence.
    let stranger = Uuid::new_v4();
    for proxy in [&world.proxy, &second] {
        assert_eq!(get(proxy, "/api/v1/tickets", stranger).await.status, 402);
    }
    let ended = world.license(&format!("set-plan {stranger} starter"), "a new customer").await;
    assert!(ended.stderr.starts_with("note: without --valid-until, this first licence holds until "), "{ended:?}");
    for proxy in [&world.proxy, &second] {
        assert!(answers(proxy, "/api/v1/tickets", stranger, 200).await < SEEN_WITHIN);
    }
    let thirty_days = format!(
        "SELECT valid_until - valid_from = INTERVAL '30 days' AND valid_from BETWEEN timezone('utc', now())
                - INTERVAL '1 minute' AND timezone('utc', now()) FROM tenant_licenses WHERE tenant_id = '{stranger}'"
    );
    assert_eq!(world.database.value(&thirty_days).await.as_deref(), Some("t"));
}

#[tokio::test]
async fn a_grant_survives_a_change_of_the_plan_and_plain_sql_ends_its_end() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let validity = format!("SELECT concat(valid_from, valid_until) FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    let before = world.database.value(&validity).await;
    world.licensed(&format!("grant {tenant} fieldops --until 2100-01-01 --limit-delta 50"), "a trial").await;
    let expected = r#"starter {"tickets": true, "fieldops": true} {"fieldops": "2100-01-01T00:00:00Z"}"#;
    assert_eq!(world.row(tenant).await, expected);
    world.licensed(&format!("set-plan {tenant} enterprise"), "bought").await;
    assert!(world.row(tenant).await.ends_with(" {}"), "the plan gives it for good");
    world.licensed(&format!("set-plan {tenant} professional"), "sold back").await;
    assert!(world.row(tenant).await.ends_with(r#" {"fieldops": "2100-01-01T00:00:00Z"}"#));
    assert_eq!(world.database.value(&validity).await, before, "a plan moves no validity");
    let addon = format!(
        "SELECT concat_ws('|', feature, limit_delta, valid_until, reason) FROM tenant_addons WHERE tenant_id = '{tenant}'"
    );
    assert_eq!(world.database.value(&addon).await.as_deref(), Some("fieldops|50|2100-01-01 00:00:00|a trial"));

    // An operator's word is the last one, ends included.
    let plain = format!(
        "UPDATE tenant_licenses SET features = '{{\"crm\": true, \"fieldops\": true}}' WHERE tenant_id = '{tenant}'"
    );
    world.database.execute(&plain).await;
    assert_eq!(world.row(tenant).await, r#"professional {"crm": true, "fieldops": true} {}"#);
    // And the next grant touches its own feature alone.
    world.licensed(&format!("grant {tenant} tickets --for 30d"), "a favour").await;
    assert!(
        world
            .row(tenant)
            .await
            .starts_with(r#"professional {"crm": true, "tickets": true, "fieldops": true} {"tickets": "#)
    );
}

/// By the clock alone, and what the backend is told goes with it.
#[tokio::test]
async fn a_granted_feature_ends_on_the_dot() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    world.licensed(&format!("grant {tenant} crm --for 4s"), "break-glass").await;
    let ends = format!("SELECT features_until ->> 'crm' FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    let ends = world.database.value(&ends).await.expect("an end");
    let left = format!("SELECT extract(epoch FROM '{ends}'::timestamptz - clock_timestamp())");
    let left = world.database.value(&left).await.expect("a number").parse().expect("seconds");
    let end = Instant::now() + Duration::from_secs_f64(left);
    world.get("/api/v1/tickets", tenant).await;
    let queries = world.postgres_wire.count("FROM tenant_licenses WHERE");
    let mut before = 0;
    while Instant::now() < end {
        let answer = world.get("/api/v1/crm", tenant).await;
        if Instant::now() < end - Duration::from_millis(20) {
            assert_eq!(answer.status, 200, "{:?} before its end", end - Instant::now());
            assert_eq!(world.upstream.last().header("X-License-Features"), Some("crm,tickets"));
            before += 1;
        }
    }
    assert!(before > 0, "nobody has asked while it was granted");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let answer = world.get("/api/v1/crm", tenant).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (402, &json!("feature_not_in_plan")));
    assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    assert_eq!(world.upstream.last().header("X-License-Features"), Some("tickets"));
    assert_eq!(world.postgres_wire.count("FROM tenant_licenses WHERE"), queries, "the clock needs no store");
}

#[tokio::test]
async fn the_audit_says_who_why_and_what_was_refused() {
    let world = World::start().await;
    let tenant = world.tenant("professional").await;
    let nobody = Uuid::new_v4();
    for (words, says) in [
        (
            format!("set-plan {tenant} gold"),
            "no plan is called gold: there are starter, professional, enterprise (unknown_plan)",
        ),
        (format!("grant {tenant} crn"), "no plan includes crn and no rule asks for it (unknown_feature)"),
        (format!("revoke {tenant} fieldops"), "the tenant has not got fieldops (not_granted)"),
        (format!("extend {tenant} --until 2020-01-01"), "(valid_longer)"),
        (format!("grant {nobody} crm"), "the tenant has no licence: a plan has to be set first (no_license)"),
    ] {
        let ended = world.license(&words, "why not").await;
        assert_eq!((ended.status.code(), ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
        assert!(ended.stderr.starts_with("error: refused: ") && ended.stderr.contains(says), "{words}: {ended:?}");
    }
    world.licensed(&format!("extend {tenant} --by 30d"), "paid").await;
    assert_eq!(
        world.audit(tenant).await,
        [
            "set_plan by Ada (why not): refused: unknown_plan",
            "grant by Ada (why not): refused: unknown_feature",
            "revoke by Ada (why not): refused: not_granted",
            "extend by Ada (why not): refused: valid_longer",
            "extend by Ada (paid): applied",
        ]
    );
    assert_eq!(world.audit(nobody).await, ["grant by Ada (why not): refused: no_license"]);
    let documents = format!(
        "SELECT json_build_array(command, before -> 'license' ->> 'plan', (after -> 'license' ->> 'valid_until')::timestamp
                  - (before -> 'license' ->> 'valid_until')::timestamp, (after -> 'license' ->> 'revision')::bigint
                  = (SELECT revision FROM tenant_licenses WHERE tenant_id = '{tenant}'))
           FROM license_audit WHERE tenant_id = '{tenant}' AND outcome = 'applied'"
    );
    let documents: Value = serde_json::from_str(&world.database.value(&documents).await.expect("a row")).expect("JSON");
    assert_eq!(documents[0]["action"], "extend");
    assert_eq!(
        (&documents[1], &documents[2], &documents[3]),
        (&json!("professional"), &json!("30 days"), &json!(true))
    );

    let printed = world.licensed(&format!("audit {tenant} --limit 1"), "").await;
    assert!(
        printed.contains("  extend       in_seconds=2592000") && printed.ends_with("\n  applied; by Ada: paid\n"),
        "{printed}"
    );
    let printed = world.licensed(&format!("audit {tenant} -o json"), "").await;
    let entries: Value = serde_json::from_str(&printed).expect("JSON");
    assert_eq!((entries.as_array().map(Vec::len), &entries[4]["outcome"]), (Some(5), &json!("refused: unknown_plan")));
}

#[tokio::test]
async fn changes_at_once_end_in_one_of_them() {
    let world = World::start().await;
    let (tenant, new) = (world.tenant("starter").await, Uuid::new_v4());
    let changes = (0..8).map(|i| {
        let (tenant, plan) = if i < 4 { (tenant, "professional") } else { (new, "starter") };
        let plan = if i % 2 == 0 { plan } else { "enterprise" };
        let words = format!("set-plan {tenant} {plan}");
        let world = &world;
        async move { world.licensed(&words, "at once").await }
    });
    futures::future::join_all(changes).await;
    for tenant in [tenant, new] {
        assert_eq!(world.audit(tenant).await, vec!["set_plan by Ada (at once): applied"; 4]);
        // Each begins where another ended.
        let chain = format!(
            "SELECT json_agg(json_build_array(before -> 'license' -> 'revision', after -> 'license' -> 'revision') ORDER BY at)
               FROM license_audit WHERE tenant_id = '{tenant}'"
        );
        let chain: Vec<(Value, Value)> =
            serde_json::from_str(&world.database.value(&chain).await.expect("a list")).expect("pairs");
        assert!(chain.windows(2).all(|pair| pair[0].1 == pair[1].0), "{chain:?}");
        let last = format!(
            "SELECT plan_tier = (SELECT after -> 'license' ->> 'plan' FROM license_audit WHERE tenant_id = '{tenant}'
               ORDER BY at DESC LIMIT 1) FROM tenant_licenses WHERE tenant_id = '{tenant}'"
        );
        assert_eq!(world.database.value(&last).await.as_deref(), Some("t"));
    }
}

/// The connection ends before the change is committed: it is made all the same, once. If it ends while that is under way,
/// nobody can tell; who asks again with the same key finds out.
#[tokio::test]
async fn a_connection_that_is_lost() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let held = world.postgres_wire.hold("INSERT INTO license_audit");
    let words = format!("set-plan {tenant} professional");
    let (changed, ()) = tokio::join!(world.license(&words, "before"), async {
        held.reached().await;
        world.postgres_wire.drop_connections().await;
    });
    assert_eq!(changed.status.code(), Some(0), "{changed:?}");
    assert_eq!(world.audit(tenant).await, ["set_plan by Ada (before): applied"]);

    for (arrives, feature) in [(true, "fieldops"), (false, "crm")] {
        let words = format!("grant {tenant} {feature} --idempotency-key {feature}");
        let wire = &world.postgres_wire;
        // The first is in `READ COMMITTED`, at the begin.
        let begin = wire.hold("COMMIT");
        let held = if arrives { wire.hold_reply("COMMIT") } else { wire.hold("COMMIT") };
        let (changed, ()) = tokio::join!(world.license(&words, "meanwhile"), async {
            begin.reached().await;
            begin.release();
            held.reached().await;
            wire.drop_connections().await;
        });
        assert_eq!(changed.status.code(), Some(1), "{changed:?}");
        assert!(changed.stderr.contains("it may have been made or not"), "{changed:?}");
        let again = world.license(&words, "meanwhile").await;
        assert_eq!(again.status.code(), Some(0), "{again:?}");
        assert_eq!(again.stderr.contains("this was done"), arrives, "{again:?}");
        assert_eq!(world.audit(tenant).await.last().map(String::as_str), Some("grant by Ada (meanwhile): applied"));
    }
    assert_eq!(world.audit(tenant).await.len(), 3, "each was done once");
}

/// The same key with the same change does it once; with another, nothing.
#[tokio::test]
async fn an_idempotency_key_is_used_once() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let key = "--idempotency-key invoice-7";
    let first = world.licensed(&format!("set-plan {tenant} professional {key} -o json"), "paid").await;
    world.licensed(&format!("set-plan {tenant} enterprise"), "upgraded since").await;
    let again = world.license(&format!("set-plan {tenant} professional {key} -o json"), "paid").await;
    assert_eq!((again.status.code(), &again.stdout), (Some(0), &first), "{again:?}");
    assert_eq!(again.stderr, "note: this was done when its idempotency key was used first\n");
    assert!(world.row(tenant).await.starts_with("enterprise "), "nothing was done again");
    let other = world.license(&format!("set-plan {tenant} starter {key}"), "paid").await;
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert_eq!(other.stderr, "error: the idempotency key has been used for another request\n");
    // A refusal stands as well, whatever has changed since.
    let refused = format!("revoke {tenant} sms --idempotency-key r");
    for _ in 0..2 {
        assert!(world.license(&refused, "x").await.stderr.ends_with("(not_granted)\n"));
    }
    assert_eq!(
        world.audit(tenant).await,
        [
            "set_plan by Ada (paid): applied",
            "set_plan by Ada (upgraded since): applied",
            "set_plan by Ada (paid): refused: idempotency_key_reused",
            "revoke by Ada (x): refused: not_granted",
        ]
    );
}

#[tokio::test]
async fn through_pgbouncer_in_transaction_mode() {
    let world = World::start().await;
    let pooler = Pooler::start(&world.database, 2).await;
    let through = world.builder.clone().env("DOTMAC_LICENSE_DATABASE_URL", pooler.url(&world.database));
    let tenants = [world.tenant("starter").await, world.tenant("starter").await, Uuid::new_v4()];
    let run = async |tenant: Uuid, words: &str| {
        let mut arguments = vec!["license"];
        let words = words.replace('T', &tenant.to_string());
        arguments.extend(words.split(' '));
        arguments.extend(["--actor", "Ada", "--reason", "by a pooler"]);
        let ended = through.run(&arguments).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    };
    let lives = tenants.map(async |tenant| {
        for words in ["set-plan T professional", "grant T fieldops --for 2h", "revoke T crm", "extend T --until never"]
        {
            run(tenant, words).await;
        }
    });
    futures::future::join_all(lives).await;
    for tenant in tenants {
        let row = world.row(tenant).await;
        let features = r#"professional {"tickets": true, "fieldops": true, "projects": true, "analytics": true} "#;
        assert!(row.starts_with(features) && row.contains(r#"{"fieldops": ""#), "{row}");
        assert_eq!(world.audit(tenant).await.len(), 4);
    }
    // What was said for one transaction is not said for the next one on the same connection.
    let plain = "UPDATE tenant_licenses SET features = '{}'";
    let (client, connection) =
        tokio_postgres::connect(&pooler.url(&world.database), tokio_postgres::NoTls).await.expect("the pooler is up");
    tokio::spawn(connection);
    client.batch_execute(plain).await.expect("an update");
    assert_eq!(world.row(tenants[0]).await, "professional {} {}");
}

/// Two that wait for each other: Postgres ends one of them, and what it ends is done again.
#[tokio::test]
async fn a_deadlock_with_plain_sql() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    world.licensed(&format!("grant {tenant} crm"), "a favour").await;
    let mut other = world.database.connect().await;
    let other = other.transaction().await.expect("a transaction");
    let addon = format!("UPDATE tenant_addons SET reason = 'by hand' WHERE tenant_id = '{tenant}'");
    other.batch_execute(&addon).await.expect("an update");
    let held = world.postgres_wire.hold("DELETE FROM tenant_addons");
    let words = format!("revoke {tenant} crm");
    let (revoked, ended) = tokio::join!(world.license(&words, "no more"), async {
        held.reached().await;
        held.release();
        // It waits for the add-on first, so it is the first to look around, and what Postgres ends.
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while world.database.value(waits).await.as_deref() != Some("1") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let license = format!("UPDATE tenant_licenses SET auto_renew = false WHERE tenant_id = '{tenant}'");
        let ended = other.batch_execute(&license).await;
        other.commit().await.expect("a commit");
        ended
    });
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(revoked.status.code(), Some(0), "{revoked:?}");
    assert_eq!(world.audit(tenant).await, ["grant by Ada (a favour): applied", "revoke by Ada (no more): applied"]);
    assert_eq!(world.row(tenant).await, r#"starter {"tickets": true} {}"#);
    assert_eq!(world.postgres_wire.count("DELETE FROM tenant_addons"), 2, "it was done again");
}

/// Other types and another time zone, where times that are written as text could mean other times.
#[tokio::test]
async fn tables_made_by_hand_in_another_time_zone() {
    let postgres = Postgres::private(&[("timezone", "Asia/Tokyo")]).await;
    for tables in [TABLES_MADE_BY_HAND.to_owned(), TABLES_MADE_BY_HAND.replace("TIMESTAMP", "TIMESTAMPTZ")] {
        let site = Site::on(&postgres).await;
        site.database.execute(&tables).await;
        site.migrate().await;
        let tenant = Uuid::new_v4();
        let until = |hours: &str| {
            format!("SELECT to_char(timezone('utc', now()) + INTERVAL '{hours}', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
        };
        let (soon, later) = (site.database.value(&until("1 hour")).await, site.database.value(&until("5 hours")).await);
        let (soon, later) = (soon.expect("a time"), later.expect("a time"));
        for words in [
            format!("set-plan {tenant} starter --valid-until {soon}"),
            format!("grant {tenant} crm --until {soon}"),
            format!("extend {tenant} --until {later}"),
        ] {
            let mut arguments: Vec<&str> = std::iter::once("license").chain(words.split(' ')).collect();
            arguments.extend(["--actor", "Ada", "--reason", "by hand"]);
            let ended = site.builder.run(&arguments).await;
            assert_eq!(ended.status.code(), Some(0), "{words}: {ended:?}");
        }
        let shown = site.builder.run(&["license", "get", &tenant.to_string(), "-o", "json"]).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap_or_else(|error| panic!("{error}: {shown:?}"));
        assert_eq!(shown["license"]["valid_until"], json!(later), "{tables}");
        assert_eq!(shown["license"]["features_until"]["crm"], json!(soon), "{tables}");
        assert_eq!((&shown["addons"][0]["valid_until"], &shown["state"]), (&json!(soon), &json!("valid")), "{tables}");
        for (within, listed) in [("4h", 0), ("6h", 1)] {
            let list = site.builder.run(&["license", "list", "--expiring-within", within]).await;
            assert_eq!(list.stdout.lines().count(), listed, "{within}: {list:?}");
        }
        let proxy = site.builder.start().await;
        assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200);
    }
}

/// Without a feed nobody but the command tells how far the primary is, and the replica that licences are read from lags.
#[tokio::test]
async fn a_read_replica_that_lags_hides_no_change() {
    let mut primary = Postgres::private(&[]).await;
    // The database has to be there before it is copied.
    let database = primary.database().await;
    let migrated = Proxy::builder("127.0.0.1:1").env("DATABASE_URL", database.url()).run(&["migrate"]).await;
    assert!(migrated.status.success(), "{migrated:?}");
    let standby = primary.standby().await;
    let (upstream, redis) = (Upstream::start(), Redis::start().await);
    let builder = Proxy::builder(upstream.address())
        .env("DATABASE_URL", database.url())
        .env("LICENSE_DB_URL", standby.copy_of(&database).url())
        .env("REDIS_URL", redis.url());
    let proxies = [builder.start().await, builder.start().await];
    let tenant = Uuid::new_v4();
    let run = async |words: &str| {
        let words = words.replace('T', &tenant.to_string());
        let mut arguments: Vec<&str> = std::iter::once("license").chain(words.split(' ')).collect();
        arguments.extend(["--actor", "Ada", "--reason", "a lag"]);
        let ended = builder.run(&arguments).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    };
    run("set-plan T starter").await;
    standby.caught_up_with(&primary).await;
    standby.pause_replay().await;
    for (words, status) in [("set-plan T professional", 200), ("revoke T crm", 402), ("grant T crm", 200)] {
        for proxy in &proxies {
            assert_ne!(get(proxy, "/api/v1/crm", tenant).await.status, status, "before {words}");
        }
        run(words).await;
        for proxy in &proxies {
            let took = answers(proxy, "/api/v1/crm", tenant, status).await;
            assert!(took < SEEN_WITHIN, "{words}: {took:?}");
        }
    }
    assert!(proxies[0].metric("dotmac_license_replica_lagging_total").await > 0.0, "it was the replica that was asked");
}

/// Redis is down: the change is made and said to be untold; with it, the feed is what tells.
#[tokio::test]
async fn redis_is_down_during_a_change() {
    let mut world = World::start_with(|builder| builder.set("/licenses/revalidate_after", "1s")).await;
    let tenant = world.tenant("starter").await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
    world.redis.kill();
    let ended = world.license(&format!("set-plan {tenant} professional"), "paid").await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.starts_with("warning: the change is made, but Redis could not be told of it"), "{ended:?}");
    assert_eq!(world.audit(tenant).await, ["set_plan by Ada (paid): applied"]);
    answers(&world.proxy, "/api/v1/crm", tenant, 200).await;

    let refreshed = world.licensed(&format!("refresh {tenant} -o json"), "").await;
    let refreshed: Value = serde_json::from_str(&refreshed).expect("JSON");
    assert_eq!(refreshed["postgres"], "told");
    assert!(refreshed["redis"].as_str().is_some_and(|said| said.starts_with("failed: ")), "{refreshed}");
}

/// The row is changed with the triggers asleep, so nothing but the command can tell.
#[tokio::test]
async fn refresh_and_flush_reach_every_replica() {
    for feed in ["none", "listen"] {
        let world = World::start_with(|builder| {
            builder.set("/licenses/revalidate_after", "5m").set("/licenses/change_feed", feed)
        })
        .await;
        let replicas = [world.second_replica().await, {
            // Hears of nothing by Redis; with a feed, Postgres tells it.
            let alone = world.builder.clone().env("DOTMAC_LICENSE_REDIS_URL", "");
            alone.start().await
        }];
        let mut all = vec![&world.proxy, &replicas[0]];
        if feed == "listen" {
            all.push(&replicas[1]);
            for proxy in &all[..2] {
                proxy.live().await;
            }
            while !replicas[1].is_live().await.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        for command in ["refresh T", "flush"] {
            let tenant = world.tenant("starter").await;
            for proxy in &all {
                assert_eq!(get(proxy, "/api/v1/crm", tenant).await.status, 402);
            }
            let silently = format!(
                "ALTER TABLE tenant_licenses DISABLE TRIGGER USER;
                 UPDATE tenant_licenses SET features = '{{\"crm\": true}}', revision = revision + 1
                  WHERE tenant_id = '{tenant}';
                 ALTER TABLE tenant_licenses ENABLE TRIGGER USER"
            );
            world.database.execute(&silently).await;
            let printed = world.licensed(&command.replace('T', &tenant.to_string()), "").await;
            assert_eq!(printed, "redis     told\npostgres  told\n");
            for proxy in &all {
                let took = answers(proxy, "/api/v1/crm", tenant, 200).await;
                assert!(took < SEEN_WITHIN, "{command}, change_feed {feed}: {took:?}");
            }
        }
    }
}

/// Editing a plan changes no licence that exists; this shows what would change, and does it.
#[tokio::test]
async fn reapply_plan() {
    let world = World::start().await;
    let (old, same, other) = (world.tenant("starter").await, Uuid::new_v4(), world.tenant("enterprise").await);
    world.insert_license(same, "starter", json!({"tickets": true, "crm": true})).await;
    let edited = world
        .builder
        .clone()
        .set("/plans/0/features", json!(["tickets", "crm"]))
        .set("/plans/2/features", json!(["crm", "tickets", "projects", "fieldops"]));
    let run = async |words: &str| {
        let ended = edited.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.status.code(), Some(0), "{words}: {ended:?}");
        (ended.stdout, ended.stderr)
    };
    let before = world.row(old).await;
    let line = format!("{old}  features: tickets → crm, tickets\n");
    let (shown, summary) = run("license reapply-plan --plan starter --dry-run").await;
    assert_eq!((shown, summary.as_str()), (line.clone(), "2 licences looked at, 1 would change\n"));
    assert_eq!((world.row(old).await, world.audit(old).await.len()), (before, 0), "nothing has changed");
    let (done, summary) = run("license reapply-plan --plan starter --actor Ada --reason more-for-less").await;
    assert_eq!((done, summary.as_str()), (line, "2 licences looked at, 1 changed\n"));
    assert_eq!(world.audit(old).await, ["reapply_plan by Ada (more-for-less): applied"]);
    assert_eq!(world.audit(same).await.len(), 0, "what does not differ is not touched");

    let (shown, _) = run(&format!("license reapply-plan {other} --dry-run -o json")).await;
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(shown[0]["before"]["license"]["features"]["analytics"], true);
    assert_eq!(shown[0]["after"]["license"]["features"]["analytics"], Value::Null);
    let (shown, _) = run("license reapply-plan --all --dry-run").await;
    assert_eq!(shown.lines().count(), 1);
    let unknown = edited.run(&["license", "reapply-plan", "--plan", "gold", "--dry-run"]).await;
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
}

#[tokio::test]
async fn lists_are_filtered_and_complete() {
    let world = World::start().await;
    // More than a page, of one plan; a few others.
    world
        .database
        .execute(
            "INSERT INTO tenant_licenses (tenant_id, features, valid_until)
             SELECT gen_random_uuid(), '{\"tickets\": true}', timezone('utc', now()) + INTERVAL '90 days'
               FROM generate_series(1, 1203)",
        )
        .await;
    let soon = world.tenant("professional").await;
    let list = async |words: &str| -> Vec<Value> {
        let printed = world.licensed(&format!("list {words} -o json").replace("  ", " "), "").await;
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{words}: {error}: {printed}"))
    };
    let all = list("").await;
    let mut tenants: Vec<&str> = all.iter().filter_map(|license| license["tenant_id"].as_str()).collect();
    assert_eq!(tenants.len(), 1204);
    assert!(tenants.is_sorted());
    tenants.dedup();
    assert_eq!(tenants.len(), 1204, "each once");
    let ids = |licenses: &[Value]| licenses.iter().map(|l| l["tenant_id"].to_string()).collect::<Vec<_>>();
    for words in
        ["--plan professional", "--feature crm", "--expiring-within 31d", "--expiring-within 31d --feature crm"]
    {
        assert_eq!(ids(&list(words).await), [format!("\"{soon}\"")], "{words}");
    }
    assert_eq!(list("--limit 3 --plan starter").await.len(), 3);
    assert_eq!(list("--plan none").await, Vec::<Value>::new());
    assert_eq!(world.licensed("list --plan none", "").await, "");
    let table = world.licensed("list --feature crm", "").await;
    // A time's fraction has as many digits as it needs: the columns are told apart by their gaps.
    let columns: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(columns[..3], [&*soon.to_string(), "professional", "valid"], "{table}");
    assert!(columns[3].ends_with('Z'), "{table}");
    assert_eq!(columns[4..], ["analytics,", "crm,", "projects,", "tickets"], "{table}");
    assert_eq!(table.lines().count(), 1, "{table}");
    let yaml = world.licensed("list --feature crm -o yaml", "").await;
    assert!(yaml.starts_with("- revision: ") && yaml.contains(&format!("tenant_id: {soon}")), "{yaml}");
}

#[tokio::test]
async fn what_is_printed() {
    let world = World::start().await;
    let tenant = Uuid::new_v4();
    let words = format!("set-plan {tenant} starter --valid-until 2100-01-01");
    let printed = world.licensed(&words, "a new customer").await;
    let expected = format!(
        "tenant       {tenant}\nplan         none → starter\nvalid until  none → 2100-01-01T00:00:00Z\n\
         features     none → tickets\n"
    );
    // `limits` goes from no licence to none of them.
    assert_eq!(printed, expected);
    let printed =
        world.licensed(&format!("grant {tenant} crm --until 2099-01-01 --limit-delta 50"), "a long trial").await;
    let expected = format!(
        "tenant       {tenant}\nfeatures     tickets → crm (until 2099-01-01T00:00:00Z), tickets\n\
         limits       none → crm 50\nadd-ons      none → crm, until 2099-01-01T00:00:00Z, limit +50: a long trial\n"
    );
    assert_eq!(printed, expected);

    let shown = world.licensed(&format!("get {tenant}"), "").await;
    let shown: Vec<&str> =
        shown.lines().filter(|l| !l.starts_with("valid from") && !l.starts_with("revision")).collect();
    assert_eq!(
        shown,
        [
            &*format!("tenant       {tenant}"),
            "plan         starter",
            "state        valid",
            "valid until  2100-01-01T00:00:00Z",
            "auto renew   yes",
            "features     crm (until 2099-01-01T00:00:00Z), tickets",
            "limits       crm 50",
            "add-on       crm, until 2099-01-01T00:00:00Z, limit +50: a long trial",
        ]
    );
    let json: Value = serde_json::from_str(&world.licensed(&format!("get {tenant} -o json"), "").await).expect("JSON");
    assert_eq!((&json["state"], &json["features_now"]), (&json!("valid"), &json!(["crm", "tickets"])));
    assert_eq!(json["license"]["features_until"], json!({"crm": "2099-01-01T00:00:00Z"}));
    assert_eq!(json["license"]["usage_limits"], json!({"crm": 50}));
    assert_eq!(json["addons"][0]["reason"], "a long trial");
    let yaml = world.licensed(&format!("get {tenant} -o yaml"), "").await;
    assert!(yaml.starts_with("state: valid\n"), "{yaml}");

    // 1 failed, 2 bad usage.
    let nobody = world.license(&format!("get {}", Uuid::new_v4()), "").await;
    assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    for (words, says) in [
        (format!("grant {tenant} crm"), "--reason <REASON>"),
        (format!("grant {tenant} crm --reason x"), "who are you? Say so by --actor"),
        (format!("grant {tenant} crm --for 4 --actor a --reason x"), "4 has no unit"),
        (format!("grant {tenant} crm --for 4h --until never --actor a --reason x"), "cannot be used with"),
        ("get acme".to_owned(), "acme"),
        (format!("extend {tenant} --actor a --reason x"), "--until"),
        ("reapply-plan --dry-run".to_owned(), "--all"),
    ] {
        let ended = world.license(&words, "").await;
        assert_eq!(ended.status.code(), Some(2), "{words}: {ended:?}");
        assert!(ended.stderr.contains(says), "{words}: {ended:?}");
    }
    let no_url = world.builder.clone().env("DOTMAC_LICENSE_DATABASE_URL", "");
    let ended = no_url.run(&["license", "get", &tenant.to_string()]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("set DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL"), "{ended:?}");
}
