//! `prune`: what is older than it need be goes, in batches, and nothing else does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::proxy::Ended;
use crate::harness::{Database, Pooler, Postgres, Proxy, ProxyBuilder, Running, Wire};

const LONG: Duration = Duration::from_secs(120);

/// A migrated database with one licence, and the command's configuration.
struct Site {
    database: Database,
    builder: ProxyBuilder,
    tenant: Uuid,
}

impl Site {
    async fn new() -> Site {
        let (database, tenant) = (Postgres::shared().await.database().await, Uuid::new_v4());
        let builder = Proxy::builder("127.0.0.1:9").env("DATABASE_URL", database.url());
        let migrated = builder.run(&["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        database.execute(&format!("INSERT INTO tenant_licenses (tenant_id) VALUES ('{tenant}')")).await;
        Site { database, builder, tenant }
    }

    /// From now on it reaches the database by a wire.
    async fn on_a_wire(&mut self) -> Wire {
        let wire = Postgres::shared().await.wire();
        self.builder = self.builder.clone().env("DATABASE_URL", self.database.url_via(&wire));
        wire
    }

    /// A row for each of these ages in days, in every table that has rows by moment or day.
    async fn fill(&self, ages: &str) {
        let tenant = self.tenant;
        let sql = format!(
            "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
               SELECT '{tenant}', 'crm', age, (now() AT TIME ZONE 'UTC')::date - age FROM unnest(ARRAY[{ages}]) AS age;
             INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute, count, created_at)
               SELECT gen_random_uuid(), '{tenant}', 'crm', 'feature_not_in_plan', at, age, at
                 FROM (SELECT age, now() - age * interval '1 day' AS at FROM unnest(ARRAY[{ages}]) AS age) AS list;
             INSERT INTO shadow_denial_events (id, tenant_id, feature_name, reason, minute, count, created_at)
               SELECT id, tenant_id, feature_name, reason, minute, count, created_at FROM feature_denial_events;
             INSERT INTO upgrade_marks (tenant_id, feature, clicked_at)
               SELECT gen_random_uuid(), 'crm', now() - age * interval '1 day' FROM unnest(ARRAY[{ages}]) AS age;
             INSERT INTO usage_batches (id, at)
               SELECT gen_random_uuid(), now() - age * interval '1 day' FROM unnest(ARRAY[{ages}]) AS age;
             INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date, used)
               SELECT '{tenant}', 'crm', 'day', today - age - 1, today - age, age
                 FROM (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock, unnest(ARRAY[{ages}]) AS age"
        );
        self.database.execute(&sql).await;
    }

    /// The ages that are left of what [`Site::fill`] has put there.
    async fn left(&self, table: &str) -> String {
        let age = match table {
            "feature_usage" => "usage_count",
            "usage_windows" => "used",
            "usage_batches" => "(extract(epoch FROM now() - at) / 86400)::int",
            "upgrade_marks" => "(extract(epoch FROM now() - greatest(clicked_at, upgraded_at)) / 86400)::int",
            _ => "count",
        };
        let sql = format!("SELECT string_agg(({age})::text, ' ' ORDER BY {age}) FROM {table}");
        self.database.value(&sql).await.unwrap_or_default()
    }

    async fn count(&self, what: &str) -> u64 {
        let count = self.database.value(&format!("SELECT count(*) FROM {what}")).await;
        count.and_then(|count| count.parse().ok()).expect("a number")
    }

    fn begin(&self, arguments: &[&str]) -> Running {
        self.builder.begin(&[&["prune"], arguments].concat())
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.begin(arguments).end(LONG).await
    }

    /// What it prints as JSON when it succeeds.
    async fn succeed(&self, arguments: &[&str]) -> Value {
        let ended = self.run(&[arguments, &["-o", "json"]].concat()).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    }

    /// What was asked for and done, the latest last.
    async fn audit(&self) -> Value {
        let sql = "SELECT coalesce(jsonb_agg(jsonb_build_array(actor, reason, command, after) ORDER BY at), '[]')
                     FROM license_audit WHERE action = 'prune'";
        serde_json::from_str(&self.database.value(sql).await.expect("an array")).expect("JSON")
    }
}

#[tokio::test]
async fn what_is_old_goes_and_what_is_younger_stays() {
    let site = Site::new().await;
    site.fill("1, 6, 8, 89, 91, 399, 400, 402").await;
    let lifetime = format!(
        "INSERT INTO usage_windows (tenant_id, feature, window_kind, start_date, end_date, used)
         VALUES ('{}', 'crm', 'lifetime', '0001-01-01', 'infinity', 0)",
        site.tenant
    );
    site.database.execute(&lifetime).await;
    let removed = json!({
        "feature_usage": 1, "usage_windows": 1, "feature_denial_events": 4, "shadow_denial_events": 4, "upgrade_marks": 4,
        "usage_batches": 6,
    });
    let dry = site.succeed(&["--dry-run"]).await;
    assert_eq!(dry, json!({ "removed": removed, "interrupted": false }));
    assert_eq!(
        (site.left("feature_usage").await, site.audit().await),
        ("1 6 8 89 91 399 400 402".to_owned(), json!([]))
    );

    let done = site.succeed(&["--actor", "ops", "--reason", "the books are closed"]).await;
    assert_eq!(done, dry);
    for (table, left) in [
        ("feature_usage", "1 6 8 89 91 399 400"),
        ("usage_windows", "0 1 6 8 89 91 399 400"),
        ("feature_denial_events", "1 6 8 89"),
        ("shadow_denial_events", "1 6 8 89"),
        ("upgrade_marks", "1 6 8 89"),
        ("usage_batches", "1 6"),
    ] {
        assert_eq!(site.left(table).await, left, "{table}");
    }
    let command = json!({ "usage_older_than": "9600h", "denials_older_than": "2160h" });
    let entry = json!(["ops", "the books are closed", command, { "removed": removed, "ended": "complete" }]);
    assert_eq!(site.audit().await, json!([entry]));

    // Other ages, and none at all.
    site.succeed(&["--usage-older-than", "never", "--denials-older-than", "80d"]).await;
    assert_eq!(site.left("feature_usage").await, "1 6 8 89 91 399 400");
    assert_eq!(site.left("feature_denial_events").await, "1 6 8");
    let ended = site.run(&["--usage-older-than", "2000h", "--denials-older-than", "never"]).await;
    assert!(ended.stdout.contains("feature_usage                     4 removed\n"), "{ended:?}");
    assert!(!ended.stdout.contains("denial"), "{ended:?}");
    assert_eq!(site.left("feature_usage").await, "1 6 8");
    assert_eq!(site.count("tenant_licenses").await, 1);
}

/// What is being counted, or marked, is not removed by a slip.
#[tokio::test]
async fn ages_that_reach_into_the_present_need_force() {
    let site = Site::new().await;
    site.fill("1, 20").await;
    for (arguments, says) in [
        (&["--usage-older-than", "31d"][..], "--usage-older-than 744h is under 32d: usage of a month that is not over"),
        (
            &["--denials-older-than", "30d"],
            "--denials-older-than 720h is under 31d: upgrades mark the denials of 30 days",
        ),
        (&["--usage-older-than", "tomorrow"], "or never"),
        (&["--batch", "0"], "0 is not in 1..=100000"),
    ] {
        let ended = site.run(arguments).await;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(says) && ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    }
    assert_eq!(site.left("feature_usage").await, "1 20");
    site.succeed(&["--usage-older-than", "10d", "--denials-older-than", "0s", "--force"]).await;
    assert_eq!(
        (site.left("feature_usage").await, site.left("feature_denial_events").await),
        ("1".into(), String::new())
    );

    let file = site.builder.clone().set("/licenses/source", json!({ "file": { "path": "licenses.yaml" } }));
    let ended = file.run(&["prune"]).await;
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("licenses.source is a file"), "{ended:?}");
}

/// Each batch is a transaction of its own, and begins where the one before it ended.
#[tokio::test]
async fn it_goes_in_batches() {
    let mut site = Site::new().await;
    let wire = site.on_a_wire().await;
    let rows = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
           SELECT '{}', 'crm', 1, date '2020-01-01' + n / 100 FROM generate_series(0, 1049) AS n",
        site.tenant
    );
    site.database.execute(&rows).await;
    let done = site.succeed(&["--batch", "250", "--denials-older-than", "never"]).await;
    assert_eq!(done["removed"], json!({ "feature_usage": 1050, "usage_windows": 0, "usage_batches": 0 }));
    assert_eq!(wire.count("DELETE FROM feature_usage"), 5);
    assert_eq!(site.count("feature_usage").await, 0);
}

/// What somebody else has locked is left to the next run; two at once share the work.
#[tokio::test]
async fn two_at_once_are_in_nobodys_way() {
    let site = Site::new().await;
    let rows = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
           SELECT '{}', 'crm', 1, date '2020-01-01' + n / 100 FROM generate_series(0, 19999) AS n",
        site.tenant
    );
    site.database.execute(&rows).await;
    let other = site.database.connect().await;
    let hold = "BEGIN; UPDATE feature_usage SET usage_count = 2 WHERE usage_date = '2020-01-03'";
    other.batch_execute(hold).await.expect("updated");
    let arguments = ["--batch", "500"];
    let (a, b) = tokio::join!(site.succeed(&arguments), site.succeed(&arguments));
    let removed = |done: &Value| done["removed"]["feature_usage"].as_u64().expect("a number");
    assert_eq!(removed(&a) + removed(&b), 19_900, "{a} {b}");
    assert_eq!(site.count("feature_usage").await, 100);
    other.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(removed(&site.succeed(&arguments).await), 100);
}

/// A signal ends it after the batch that is being removed; what is gone is gone, and the next run does the rest.
#[tokio::test]
async fn it_may_be_interrupted() {
    let mut site = Site::new().await;
    let wire = site.on_a_wire().await;
    let rows = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_count, usage_date)
           SELECT '{}', 'crm', 1, date '2020-01-01' + n / 100 FROM generate_series(0, 999) AS n",
        site.tenant
    );
    site.database.execute(&rows).await;
    let first = wire.hold("DELETE FROM feature_usage");
    let held = wire.hold("DELETE FROM feature_usage");
    let mut running = site.begin(&["--batch", "100"]);
    first.reached().await;
    first.release();
    held.reached().await;
    running.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    held.release();
    let ended = running.end(LONG).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("interrupted: what was removed is gone; run it again for the rest"), "{ended:?}");
    assert!(ended.stdout.contains("feature_usage                   200 removed\n"), "{ended:?}");
    assert_eq!(site.count("feature_usage").await, 800);
    assert_eq!(site.audit().await[0][3]["ended"], "interrupted");
    site.succeed(&[]).await;
    assert_eq!(site.count("feature_usage").await, 0);
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_will_do() {
    let mut site = Site::new().await;
    site.fill("1, 500").await;
    let pooler = Pooler::start(&site.database, 1).await;
    site.builder = site.builder.clone().env("DATABASE_URL", pooler.url(&site.database));
    site.succeed(&[]).await;
    assert_eq!((site.left("feature_usage").await, site.left("feature_denial_events").await), ("1".into(), "1".into()));
}

/// A hundred thousand rows take seconds, and half of the time is left to others.
#[tokio::test]
async fn many_rows_take_seconds() {
    let site = Site::new().await;
    let rows = "INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute, created_at)
                  SELECT gen_random_uuid(), gen_random_uuid(), 'crm', 'no_license', at, at
                    FROM (SELECT timestamptz '2020-01-01Z' + n * interval '1 second' AS at
                            FROM generate_series(1, 100000) AS n) AS list";
    site.database.execute(rows).await;
    let begun = Instant::now();
    let done = site.succeed(&[]).await;
    println!("100,000 rows in {:?}", begun.elapsed());
    assert_eq!(done["removed"]["feature_denial_events"], 100_000);
    assert!(begun.elapsed() < Duration::from_secs(60));
}
