//! `backfill`: every tenant of a table gets a licence, whatever the table looks like and however often it is run.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::proxy::Ended;
use crate::harness::world::get;
use crate::harness::{Database, License, Pooler, Postgres, Proxy, ProxyBuilder, Running, World};

const LONG: Duration = Duration::from_secs(300);

/// How many tenants the large table has; the environment may say another number.
const MANY: u64 = 200_000;

/// What the design allows it to take, for a million tenants.
const MEMORY_LIMIT: u64 = 128 << 20;
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// A migrated database with a table of tenants, and the command's configuration.
struct Site {
    database: Database,
    builder: ProxyBuilder,
}

impl Site {
    /// `tenants` fills the database.
    async fn new(tenants: &str) -> Site {
        let database = Postgres::shared().await.database().await;
        let builder = Proxy::builder("127.0.0.1:9").env("DATABASE_URL", database.url());
        let migrated = builder.run(&["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        database.execute(tenants).await;
        Site { database, builder }
    }

    fn begin(&self, arguments: &[&str]) -> Running {
        self.builder.begin(&[&["backfill", "--plan", "professional"], arguments].concat())
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.begin(arguments).end(LONG).await
    }

    /// What it prints when it succeeds.
    async fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    }

    async fn count(&self, what: &str) -> u64 {
        let count = self.database.value(&format!("SELECT count(*) FROM {what}")).await;
        count.and_then(|count| count.parse().ok()).expect("a number")
    }

    /// The audit of all runs, the oldest first.
    async fn audit(&self) -> Vec<Value> {
        let sql = "SELECT coalesce(jsonb_agg(to_jsonb(a) - 'id' - 'at' ORDER BY at), '[]') FROM license_audit AS a";
        let rows = self.database.value(sql).await.expect("an array");
        serde_json::from_str(&rows).expect("JSON")
    }
}

/// So many tenants with random ids, in a table without any index.
fn many(tenants: u64) -> String {
    format!("CREATE TABLE tenants AS SELECT gen_random_uuid() AS id FROM generate_series(1, {tenants})")
}

/// Ids whose order is known: the one that ends in `number`, in hexadecimal.
fn numbered(number: u64) -> Uuid {
    Uuid::from_u128(number.into())
}

/// Every spelling of a UUID counts once, and what is none is counted, named and passed over.
#[tokio::test]
async fn each_tenant_gets_one_licence_and_what_is_there_is_not_touched() {
    let (a, b, c) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    let licensed = Uuid::new_v4();
    let site = Site::new(&format!(
        "CREATE TABLE tenants (id TEXT);
         INSERT INTO tenants VALUES ('{a}'), (upper('{a}')), ('{{{a}}}'), (' urn:uuid:{a} '), ('{}'), ('{c}'), ('{licensed}'),
             ('acme'), ('42'), (''), (repeat('x', 500)), (NULL), (NULL);
         INSERT INTO tenant_licenses (tenant_id, plan_tier, features, valid_until, auto_renew)
             VALUES ('{licensed}', 'starter', '{{\"crm\": false}}', '2020-01-01', false)",
        b.simple()
    ))
    .await;
    let there = format!("SELECT xmin || ' ' || l::text FROM tenant_licenses AS l WHERE tenant_id = '{licensed}'");
    let before = site.database.value(&there).await;

    let said = "13 rows of tenants (id): 3 VERB a licence of professional, 1 have one already, 3 duplicates, 4 are no UUID, 2 null";
    let dry = site.succeed(&["--dry-run"]).await;
    assert_eq!(dry.lines().next(), Some(&*said.replace("VERB", "would get")), "{dry}");
    assert_eq!((site.count("tenant_licenses").await, site.audit().await), (1, vec![]), "it only counts");

    let ends =
        ["--valid-until", "never", "--auto-renew", "false", "--reason", "the first day", "--actor", "ops@example.com"];
    let done = site.succeed(&ends).await;
    assert_eq!(done.lines().next(), Some(&*said.replace("VERB", "got")), "{done}");
    let (_, examples) = done.split_once("no UUID, such as: ").expect("they are named");
    assert!(examples.contains("\"acme\"") && examples.contains("\"42\"") && examples.len() < 100, "{examples}");

    let rows = "SELECT jsonb_agg(jsonb_build_array(plan_tier, features, usage_limits, valid_until, auto_renew,
                       valid_from BETWEEN timezone('utc', now()) - interval '1 minute' AND timezone('utc', now())))
                  FROM tenant_licenses WHERE tenant_id IN";
    let rows = site.database.value(&format!("{rows} ('{a}', '{b}', '{c}')")).await.expect("rows");
    let features = json!({ "crm": true, "tickets": true, "projects": true, "analytics": true });
    let row = json!(["professional", features, {}, "infinity", false, true]);
    assert_eq!(serde_json::from_str::<Value>(&rows).expect("JSON"), json!([row, row, row]));
    assert_eq!(site.database.value(&there).await, before);
    let counts = json!({ "read": 13, "added": 3, "licensed": 1, "duplicates": 3, "unusable": 4, "null": 2 });
    let command =
        json!({ "from": "tenants (id)", "plan": "professional", "valid_until": "infinity", "auto_renew": false });
    let audit = json!({
        "tenant_id": null, "action": "backfill", "actor": "ops@example.com", "reason": "the first day", "outcome": "applied",
        "command": command, "before": null, "after": { "counts": counts, "ended": "complete" },
        "request_id": null, "idempotency_key": null,
    });
    assert_eq!(site.audit().await, [audit]);

    let all = "SELECT string_agg(xmin || ' ' || l::text, ' ' ORDER BY tenant_id) FROM tenant_licenses AS l";
    let before = site.database.value(all).await;
    let again = site.succeed(&ends).await;
    assert!(again.contains(": 0 got a licence of professional, 4 have one already, 3 duplicates"), "{again}");
    assert_eq!(site.database.value(all).await, before);
}

#[tokio::test]
async fn any_table_and_column_will_do() {
    let ids = "SELECT gen_random_uuid() AS \"Tenant Id\" FROM generate_series(1, 7)";
    let site = Site::new(&format!(
        r#"CREATE SCHEMA "my.schema"; CREATE TABLE "my.schema"."Ten""ants" AS {ids};
           CREATE SCHEMA billing; CREATE TABLE billing.accounts AS SELECT "Tenant Id"::varchar(36) AS uuid FROM ({ids}) AS ids;
           CREATE VIEW active AS SELECT uuid FROM billing.accounts LIMIT 3;
           CREATE TABLE tenants AS SELECT "Tenant Id"::text::char(40) AS id FROM ({ids}) AS ids"#
    ))
    .await;
    for (from, id, added) in [
        (r#""my.schema"."Ten""ants""#, "Tenant Id", 7),
        ("active", "uuid", 3),
        ("billing.accounts", "uuid", 4),
        ("tenants", "id", 7),
    ] {
        let done = site.succeed(&["--from", from, "--id", id, "--valid-until", "never"]).await;
        assert!(done.contains(&format!(": {added} got a licence")), "{from}: {done}");
    }
    assert_eq!(site.count("tenant_licenses WHERE valid_until = 'infinity'").await, 21);
}

/// Whatever the server's time zone is, and also where the column has one.
#[tokio::test]
async fn the_end_is_what_was_said() {
    let site = Site::new(&many(1)).await;
    site.database.execute(&format!("ALTER DATABASE {} SET timezone = 'Asia/Tokyo'", site.database.name())).await;
    let end = "SELECT valid_until AT TIME ZONE 'UTC' = timestamptz '2099-03-01T10:30:00Z' FROM tenant_licenses";
    for (sql, end) in [
        ("SELECT", end.to_owned()),
        (
            "ALTER TABLE tenant_licenses ALTER valid_until TYPE timestamptz USING valid_until AT TIME ZONE 'UTC'",
            end.replace(" AT TIME ZONE 'UTC' =", " ="),
        ),
    ] {
        site.database.execute(&format!("TRUNCATE tenant_licenses CASCADE; {sql}")).await;
        site.succeed(&["--valid-until", "2099-03-01T12:30:00+02:00"]).await;
        assert_eq!(site.database.value(&end).await.as_deref(), Some("t"), "{sql}");
    }
}

/// A default that denies everybody in a month is said aloud, with the flag that avoids it.
#[tokio::test]
async fn without_an_end_it_is_thirty_days_and_that_is_said() {
    let site = Site::new(&many(3)).await;
    for (renewed, says) in [
        (
            "true",
            "they are served for a grace of 72h after that, and then everyone is denied, unless `license renew` runs",
        ),
        ("false", "everyone is denied from then on"),
    ] {
        site.database.execute("TRUNCATE tenant_licenses CASCADE").await;
        let ended = site.run(&["--auto-renew", renewed]).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(
            ended.stderr.starts_with("warning: without --valid-until these licences end in thirty days, at 20"),
            "{ended:?}"
        );
        assert!(
            ended.stderr.contains(says) && ended.stderr.contains("Say --valid-until never, or a date"),
            "{ended:?}"
        );
        let meant = format!(
            "tenant_licenses WHERE auto_renew = {renewed} AND valid_until - timezone('utc', now())
               BETWEEN interval '30 days' - interval '1 minute' AND interval '30 days'"
        );
        assert_eq!(site.count(&meant).await, 3);
    }
    let told = site.run(&["--valid-until", "2099-01-01"]).await;
    assert_eq!(told.stderr, "", "nothing is to be said");
}

#[tokio::test]
async fn what_it_cannot_do_is_a_sentence() {
    let site = Site::new("CREATE TABLE tenants (uuid UUID, name TEXT)").await;
    for (arguments, code, says) in [
        (
            &["--plan", "gold"][..],
            2,
            "error: there is no plan \"gold\"; the plans are: starter, professional, enterprise",
        ),
        (&["--plan", "starter", "--valid-until", "2020-01-01"], 2, "has passed: everyone would be denied"),
        (&["--plan", "starter", "--valid-until", "-infinity"], 2, "error: "),
        (&["--plan", "starter", "--valid-until", "tomorrow"], 2, "invalid value 'tomorrow'"),
        (&["--plan", "starter", "--from", "a.b.c"], 2, "error: \"a.b.c\" is no table: expected NAME or SCHEMA.NAME"),
        (
            &["--plan", "starter", "--from", "Tenants"],
            1,
            "there is no table \"Tenants\"; names are taken letter by letter",
        ),
        (&["--plan", "starter"], 1, "\"tenants\" has no column \"id\", but uuid, name: name it with --id"),
    ] {
        let ended = site.builder.run(&[&["backfill"], arguments].concat()).await;
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(says) && ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    }
    let file = site.builder.clone().set("/licenses/source", json!({ "file": { "path": "licenses.yaml" } }));
    let ended = file.run(&["backfill", "--plan", "starter"]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("licenses.source is a file"), "{ended:?}");

    // Without a key nothing would keep a second licence of a tenant out.
    site.database
        .execute(
            "ALTER TABLE tenant_licenses DROP CONSTRAINT tenant_licenses_pkey CASCADE;
             INSERT INTO tenants VALUES (gen_random_uuid(), 'acme')",
        )
        .await;
    let ended = site.run(&["--id", "uuid"]).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("tenant_licenses has no primary key on tenant_id"), "{ended:?}");
    let audit = site.audit().await;
    let told = audit[0]["after"]["ended"].as_str().expect("how it ended");
    assert!(audit.len() == 1 && told.contains("no primary key"), "a run that fails is written down as well: {audit:?}");
}

/// The memory it takes does not depend on how many there are, and a million take no more than five minutes.
#[tokio::test]
async fn many_tenants_take_little_memory_and_time() {
    let tenants = std::env::var("BACKFILL_TENANTS").map_or(MANY, |text| text.parse().expect("a number"));
    let site = Site::new(&many(tenants)).await;
    for dry_run in [true, false] {
        let begun = Instant::now();
        let mut running = site.begin(if dry_run { &["--dry-run"][..] } else { &["--valid-until", "never"] });
        let ended = running.end(TIME_LIMIT).await;
        let (took, peak) = (begun.elapsed(), running.peak_rss_bytes());
        println!("{tenants} tenants, dry run {dry_run}: {took:.1?}, at most {} MiB", peak >> 20);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let verb = if dry_run { "would get" } else { "got" };
        assert!(ended.stdout.contains(&format!(": {tenants} {verb} a licence")), "{ended:?}");
        assert!((1 << 20..MEMORY_LIMIT).contains(&peak), "{peak} bytes");
        assert!(took.mul_f64(1e6 / tenants as f64) < TIME_LIMIT || tenants < 1_000_000, "{took:?}");
        let lines = ended.stderr.lines().filter(|line| line.starts_with("backfill: ")).count();
        assert!(lines as u64 <= 1 + took.as_secs() / 4, "a line every five seconds: {ended:?}");
    }
    assert_eq!(site.count("tenant_licenses").await, tenants);
}

/// Ten batches, of which the fifth waits for another program: that is when the signal comes.
#[tokio::test]
async fn it_may_be_interrupted_or_killed_and_run_again() {
    let site = Site::new(
        "CREATE TABLE tenants AS SELECT lpad(to_hex(n), 32, '0')::uuid AS id FROM generate_series(50000, 1, -1) AS n",
    )
    .await;
    for signal in ["INT", "TERM", "KILL"] {
        site.database.execute("TRUNCATE tenant_licenses CASCADE; TRUNCATE license_audit").await;
        let other = site.database.connect().await;
        let theirs = numbered(22_500);
        let hold = format!("BEGIN; INSERT INTO tenant_licenses (tenant_id, plan_tier) VALUES ('{theirs}', 'theirs')");
        other.batch_execute(&hold).await.expect("a row that nobody else sees");
        let mut running = site.begin(&["--valid-until", "never"]);
        let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'";
        let begun = Instant::now();
        while site.count(waits).await == 0 {
            assert!(begun.elapsed() < LONG, "it does not get to the fifth batch");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(site.count("tenant_licenses").await, 20_000, "four batches are there");
        running.signal(signal);
        if signal == "KILL" {
            running.end(LONG).await;
            other.batch_execute("COMMIT").await.expect("committed");
        } else {
            // The batch under way is finished first.
            other.batch_execute("COMMIT").await.expect("committed");
            let ended = running.end(LONG).await;
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            assert!(
                ended.stderr.contains("interrupted: what was written stays; run it again for the rest"),
                "{ended:?}"
            );
            assert!(ended.stdout.starts_with("25000 rows of tenants (id): 24999 got a licence"), "{ended:?}");
            let audit = site.audit().await;
            assert_eq!((audit.len(), &audit[0]["after"]["ended"]), (1, &json!("interrupted")));
            assert_eq!(audit[0]["after"]["counts"]["added"], 24_999);
            assert_eq!(site.count("tenant_licenses").await, 25_000);
        }
        let again = site.succeed(&["--valid-until", "never"]).await;
        assert!(again.starts_with("50000 rows of tenants (id): "), "{again}");
        assert_eq!(site.count("tenant_licenses").await, 50_000, "{signal}");
        assert_eq!(site.count("tenant_licenses WHERE plan_tier = 'theirs'").await, 1);
    }
}

#[tokio::test]
async fn two_at_once_add_each_licence_once() {
    let site = Site::new(&many(30_000)).await;
    let arguments = ["--valid-until", "never"];
    let (a, b) = tokio::join!(site.succeed(&arguments), site.succeed(&arguments));
    let added = |text: &str| -> u64 {
        let number = text.split(": ").nth(1).and_then(|rest| rest.split(' ').next());
        number.and_then(|number| number.parse().ok()).expect("a number")
    };
    assert_eq!(added(&a) + added(&b), 30_000, "{a}{b}");
    assert_eq!(site.count("tenant_licenses").await, 30_000);
}

/// It needs two of the pooler's connections: one reads while the other writes.
#[tokio::test]
async fn a_pooler_in_transaction_mode_will_do() {
    let mut site = Site::new(&many(12_000)).await;
    let pooler = Pooler::start(&site.database, 2).await;
    site.builder = site.builder.env("DATABASE_URL", pooler.url(&site.database));
    let done = site.succeed(&["--valid-until", "never"]).await;
    assert!(done.contains(": 12000 got a licence"), "{done}");
    assert_eq!(site.audit().await.len(), 1);
}

/// Tenants that were refused for want of a licence are served at once, and who had one notices nothing.
#[tokio::test]
async fn a_running_proxy_notices() {
    let world = World::start_with(|builder| builder.set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let (new, old) = (Uuid::new_v4(), Uuid::new_v4());
    world.insert(License { features: json!({}), ..License::valid(old, "starter") }).await;
    for tenant in [new, old] {
        assert_eq!(get(&world.proxy, "/api/v1/crm", tenant).await.status, 402);
    }
    let rows = format!(
        "CREATE TABLE tenants AS SELECT gen_random_uuid() AS id FROM generate_series(1, 2000); \
                        INSERT INTO tenants VALUES ('{new}'), ('{old}')"
    );
    world.database.execute(&rows).await;
    let ended = world.builder.run(&["backfill", "--plan", "professional", "--valid-until", "never"]).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let begun = Instant::now();
    while get(&world.proxy, "/api/v1/crm", new).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(5), "it is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("noticed within {:?}", begun.elapsed());
    assert_eq!(get(&world.proxy, "/api/v1/crm", old).await.status, 402);
}

/// Add-ons outlive a rollback that drops the licences: who gets a licence anew has them again, by the rules of every other
/// managed write.
#[tokio::test]
async fn add_ons_that_are_in_force_are_part_of_it() {
    let mut site = Site::new(&many(3)).await;
    site.builder = site.builder.set("/plans/1/limits", json!({ "crm": 100, "tickets": 10 }));
    site.database
        .execute(
            "INSERT INTO tenant_addons (tenant_id, feature, limit_delta, valid_until)
             SELECT id, feature, delta, valid_until FROM (SELECT id FROM tenants LIMIT 1) AS one, (VALUES
               ('fieldops', 7::bigint, 'infinity'::timestamp), ('sms', NULL, '2099-01-01 10:00:00.5'), ('fax', -3, 'infinity'),
               ('crm', 50, '2099-01-01'), ('tickets', -20, 'infinity'), ('projects', 5, 'infinity'), ('ended', 5, '2020-01-01')
             ) AS addon (feature, delta, valid_until)",
        )
        .await;
    site.succeed(&["--valid-until", "never"]).await;
    let row = "SELECT jsonb_build_array(features, features_until, usage_limits) FROM tenant_licenses
                WHERE tenant_id = (SELECT min(tenant_id::text)::uuid FROM tenant_addons)";
    let row: Value = serde_json::from_str(&site.database.value(row).await.expect("a row")).expect("JSON");
    let features = ["analytics", "crm", "fax", "fieldops", "projects", "sms", "tickets"];
    let features: serde_json::Map<_, _> = features.iter().map(|feature| ((*feature).to_owned(), json!(true))).collect();
    let limits = json!({ "crm": 150, "tickets": 0, "fieldops": 7, "fax": 0 });
    assert_eq!(row, json!([features, { "sms": "2099-01-01T10:00:00.500000Z" }, limits]));
    assert_eq!(site.count("tenant_licenses WHERE features_until = '{}'").await, 2, "the others have none");

    let revisions = "SELECT string_agg(tenant_id || ':' || revision, ' ' ORDER BY tenant_id) FROM tenant_licenses";
    let before = site.database.value(revisions).await;
    let reapply = ["license", "reapply-plan", "--plan", "professional", "--reason", "to see", "--actor", "ops"];
    let reapplied = site.builder.run(&reapply).await;
    assert_eq!(reapplied.status.code(), Some(0), "{reapplied:?}");
    assert_eq!(site.database.value(revisions).await, before, "to apply the plan again changes nothing");
}
