//! `migrate` and `migrations/*.sql`: on empty databases, on tables made by hand, in other time zones, at once and again.

use serde_json::json;
use uuid::Uuid;

use crate::harness::proxy::{Ended, ProxyBuilder};
use crate::harness::world::get;
use crate::harness::{Database, Postgres, Proxy, Upstream};

/// A database that nobody has migrated, and what is needed to serve from it.
pub(crate) struct Site {
    pub(crate) builder: ProxyBuilder,
    upstream: Upstream,
    pub(crate) database: Database,
}

/// What `migrations/V001__add_licensing_tables.sql` promises to other programs, in the words of the catalogue.
const PUBLIC_COLUMNS: &str = "\
feature_usage.id uuid NOT NULL DEFAULT gen_random_uuid()
feature_usage.tenant_id uuid NOT NULL
feature_usage.feature_name character varying(100) NOT NULL
feature_usage.usage_count integer DEFAULT 0
feature_usage.usage_date date NOT NULL
feature_usage.created_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP
tenant_licenses.tenant_id uuid NOT NULL
tenant_licenses.plan_tier character varying(50) NOT NULL DEFAULT 'starter'::character varying
tenant_licenses.features jsonb NOT NULL DEFAULT '{}'::jsonb
tenant_licenses.usage_limits jsonb NOT NULL DEFAULT '{}'::jsonb
tenant_licenses.valid_from timestamp without time zone NOT NULL DEFAULT CURRENT_TIMESTAMP
tenant_licenses.valid_until timestamp without time zone NOT NULL DEFAULT (CURRENT_TIMESTAMP + '30 days'::interval)
tenant_licenses.auto_renew boolean DEFAULT true
tenant_licenses.created_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP
tenant_licenses.updated_at timestamp without time zone DEFAULT CURRENT_TIMESTAMP";

/// What later files add, in the words of the catalogue.
const OUR_COLUMNS: &str = "\
feature_denial_events.id uuid NOT NULL
feature_denial_events.tenant_id uuid NOT NULL
feature_denial_events.feature_name character varying(100) NOT NULL
feature_denial_events.reason character varying(50) NOT NULL
feature_denial_events.minute timestamp with time zone NOT NULL
feature_denial_events.count bigint NOT NULL DEFAULT 1
feature_denial_events.clicked_upgrade boolean NOT NULL DEFAULT false
feature_denial_events.clicked_at timestamp with time zone
feature_denial_events.upgraded_at timestamp with time zone
feature_denial_events.created_at timestamp with time zone NOT NULL DEFAULT now()
license_audit.id uuid NOT NULL DEFAULT gen_random_uuid()
license_audit.at timestamp without time zone NOT NULL DEFAULT timezone('utc'::text, now())
license_audit.tenant_id uuid
license_audit.action character varying(50) NOT NULL
license_audit.actor text NOT NULL
license_audit.reason text
license_audit.outcome character varying(50) NOT NULL
license_audit.command jsonb
license_audit.before jsonb
license_audit.after jsonb
license_audit.request_id text
license_audit.idempotency_key text
shadow_denial_events.id uuid NOT NULL
shadow_denial_events.tenant_id uuid NOT NULL
shadow_denial_events.feature_name character varying(100) NOT NULL
shadow_denial_events.reason character varying(50) NOT NULL
shadow_denial_events.minute timestamp with time zone NOT NULL
shadow_denial_events.count bigint NOT NULL DEFAULT 1
shadow_denial_events.created_at timestamp with time zone NOT NULL DEFAULT now()
tenant_addons.tenant_id uuid NOT NULL
tenant_addons.feature character varying(100) NOT NULL
tenant_addons.limit_delta bigint
tenant_addons.valid_until timestamp without time zone NOT NULL DEFAULT 'infinity'::timestamp without time zone
tenant_addons.reason text
tenant_addons.created_at timestamp without time zone NOT NULL DEFAULT timezone('utc'::text, now())
tenant_licenses.revision bigint NOT NULL DEFAULT 0
tenant_licenses.features_until jsonb NOT NULL DEFAULT '{}'::jsonb
upgrade_marks.tenant_id uuid NOT NULL
upgrade_marks.feature character varying(100) NOT NULL
upgrade_marks.clicked_at timestamp with time zone
upgrade_marks.upgraded_at timestamp with time zone
usage_anchors.tenant_id uuid NOT NULL
usage_anchors.anchor date NOT NULL
usage_anchors.created_at timestamp with time zone NOT NULL DEFAULT now()
usage_batches.id uuid NOT NULL
usage_batches.granted bigint
usage_batches.at timestamp with time zone NOT NULL DEFAULT now()
usage_windows.tenant_id uuid NOT NULL
usage_windows.feature character varying(100) NOT NULL
usage_windows.window_kind character varying(20) NOT NULL
usage_windows.start_date date NOT NULL
usage_windows.end_date date NOT NULL
usage_windows.used bigint NOT NULL DEFAULT 0
usage_windows.reserved bigint NOT NULL DEFAULT 0
usage_windows.granted bigint NOT NULL DEFAULT 0
usage_windows.announced integer NOT NULL DEFAULT 0";

const OUR_KEYS_AND_INDEXES: &str = "\
CREATE INDEX idx_feature_denial_events_created ON public.feature_denial_events USING btree (created_at) \
INCLUDE (clicked_upgrade)
CREATE INDEX idx_feature_denial_events_tenant ON public.feature_denial_events \
USING btree (tenant_id, feature_name, minute)
CREATE INDEX idx_feature_usage_date ON public.feature_usage USING btree (usage_date)
CREATE INDEX idx_license_audit_tenant_at ON public.license_audit USING btree (tenant_id, at DESC)
CREATE INDEX idx_shadow_denial_events_created ON public.shadow_denial_events USING btree (created_at)
CREATE INDEX idx_usage_batches_at ON public.usage_batches USING btree (at)
CREATE INDEX idx_usage_windows_end ON public.usage_windows USING btree (end_date)
CREATE INDEX idx_usage_windows_tenant_end ON public.usage_windows USING btree (tenant_id, feature, end_date)
CREATE UNIQUE INDEX feature_denial_events_pkey ON public.feature_denial_events USING btree (id)
CREATE UNIQUE INDEX idx_license_audit_idempotency_key ON public.license_audit USING btree (tenant_id, idempotency_key) \
WHERE (idempotency_key IS NOT NULL)
CREATE UNIQUE INDEX license_audit_pkey ON public.license_audit USING btree (id)
CREATE UNIQUE INDEX shadow_denial_events_pkey ON public.shadow_denial_events USING btree (id)
CREATE UNIQUE INDEX tenant_addons_pkey ON public.tenant_addons USING btree (tenant_id, feature)
CREATE UNIQUE INDEX upgrade_marks_pkey ON public.upgrade_marks USING btree (tenant_id, feature)
CREATE UNIQUE INDEX usage_anchors_pkey ON public.usage_anchors USING btree (tenant_id)
CREATE UNIQUE INDEX usage_batches_pkey ON public.usage_batches USING btree (id)
CREATE UNIQUE INDEX usage_windows_pkey ON public.usage_windows \
USING btree (tenant_id, feature, window_kind, start_date)
feature_denial_events: PRIMARY KEY (id)
license_audit: PRIMARY KEY (id)
shadow_denial_events: PRIMARY KEY (id)
tenant_addons: PRIMARY KEY (tenant_id, feature)
upgrade_marks: PRIMARY KEY (tenant_id, feature)
usage_anchors: PRIMARY KEY (tenant_id)
usage_batches: PRIMARY KEY (id)
usage_windows: CHECK ((reserved >= 0))
usage_windows: CHECK ((used >= 0))
usage_windows: PRIMARY KEY (tenant_id, feature, window_kind, start_date)";

const KEYS_AND_INDEXES: &str = "\
CREATE INDEX idx_feature_usage_tenant_date ON public.feature_usage USING btree (tenant_id, usage_date)
CREATE UNIQUE INDEX feature_usage_pkey ON public.feature_usage USING btree (id)
CREATE UNIQUE INDEX tenant_licenses_pkey ON public.tenant_licenses USING btree (tenant_id)
feature_usage: FOREIGN KEY (tenant_id) REFERENCES tenant_licenses(tenant_id)
feature_usage: PRIMARY KEY (id)
tenant_licenses: PRIMARY KEY (tenant_id)";

/// Tables as a program that is no friend of defaults may have made them, with one column less and one more.
pub(crate) const TABLES_MADE_BY_HAND: &str = "
CREATE TABLE tenant_licenses (
    tenant_id UUID PRIMARY KEY, plan_tier TEXT NOT NULL, features JSON NOT NULL,
    valid_from TIMESTAMP NOT NULL, valid_until TIMESTAMP NOT NULL, auto_renew BOOLEAN,
    created_at TIMESTAMP, updated_at TIMESTAMP, salesperson TEXT);
CREATE TABLE feature_usage (
    id UUID PRIMARY KEY, tenant_id UUID NOT NULL REFERENCES tenant_licenses (tenant_id),
    feature_name TEXT NOT NULL, usage_count INTEGER, usage_date DATE NOT NULL, created_at TIMESTAMP)";

impl Site {
    pub(crate) async fn new() -> Site {
        Site::on(&Postgres::shared().await).await
    }

    pub(crate) async fn on(postgres: &Postgres) -> Site {
        let (database, upstream) = (postgres.database().await, Upstream::start());
        let builder = Proxy::builder(upstream.address()).env("DATABASE_URL", database.url());
        Site { builder, upstream, database }
    }

    /// `migrate`, which must succeed, and what it printed.
    pub(crate) async fn migrate(&self) -> String {
        let ended = self.builder.run(&["migrate"]).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    }

    async fn status(&self) -> String {
        let ended = self.builder.run(&["migrate", "--status"]).await;
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    }

    /// Runs a file of `migrations/` by `psql -f`.
    pub(crate) fn psql_file(&self, name: &str, more: &[&str]) {
        self.database.psql(&[&["-f", &migration_file(name)], more].concat());
    }

    async fn columns(&self) -> String {
        let sql = "SELECT string_agg(concat_ws(' ', table_name || '.' || column_name,
                          data_type || '(' || character_maximum_length || ')',
                          CASE WHEN character_maximum_length IS NULL THEN data_type END,
                          CASE is_nullable WHEN 'NO' THEN 'NOT NULL' END, 'DEFAULT ' || column_default),
                      E'\\n' ORDER BY table_name, ordinal_position)
                     FROM information_schema.columns
                    WHERE table_schema = 'public' AND table_name <> 'refinery_schema_history'";
        self.database.value(sql).await.unwrap_or_default()
    }

    async fn keys_and_indexes(&self) -> String {
        let sql = "SELECT string_agg(line, E'\\n' ORDER BY line COLLATE \"C\") FROM (
                     SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'refinery_schema_history'
                      UNION ALL
                     SELECT conrelid::regclass || ': ' || pg_get_constraintdef(oid) FROM pg_constraint
                      WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
                        AND conrelid <> coalesce(to_regclass('refinery_schema_history'), 0)
                   ) AS all_lines (line)";
        self.database.value(sql).await.unwrap_or_default()
    }

    pub(crate) async fn revision(&self, tenant: Uuid) -> i64 {
        let sql = format!("SELECT revision FROM tenant_licenses WHERE tenant_id = '{tenant}'");
        self.database.value(&sql).await.expect("a revision").parse().expect("a number")
    }

    /// A customer that another program takes on, in plain SQL, saying as little as it may.
    pub(crate) async fn insert_by_plain_sql(&self) -> Uuid {
        let tenant = Uuid::new_v4();
        self.database
            .execute(&format!(
                "INSERT INTO tenant_licenses (tenant_id, features) VALUES ('{tenant}', '{{\"crm\": true}}')"
            ))
            .await;
        tenant
    }
}

fn migration_file(name: &str) -> String {
    format!("{}/migrations/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The names of `migrations/V*.sql`, in their order.
fn migration_files() -> Vec<String> {
    let entries = std::fs::read_dir(migration_file("")).expect("the directory is there");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<_> = names.filter(|name| name.starts_with('V')).collect();
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    names
}

#[tokio::test]
async fn the_first_file_makes_exactly_the_public_tables() {
    let site = Site::new().await;
    site.psql_file("V001__add_licensing_tables.sql", &[]);
    assert_eq!(site.columns().await, PUBLIC_COLUMNS);
    assert_eq!(site.keys_and_indexes().await, KEYS_AND_INDEXES);
    let tables = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relkind = 'r'
                   AND relnamespace = 'public'::regnamespace";
    assert_eq!(site.database.value(tables).await.as_deref(), Some("feature_usage tenant_licenses"));
}

/// Afterwards the public columns are as they were, but that their clock is UTC.
#[tokio::test]
async fn migrate_makes_the_public_tables_with_defaults_in_utc() {
    let site = Site::new().await;
    site.migrate().await;
    let columns = site.columns().await;
    let (ours, public): (Vec<&str>, Vec<&str>) =
        columns.lines().partition(|line| OUR_COLUMNS.lines().any(|ours| ours == *line));
    assert_eq!(ours.join("\n"), OUR_COLUMNS);
    assert_eq!(public.join("\n"), PUBLIC_COLUMNS.replace("CURRENT_TIMESTAMP", "timezone('utc'::text, now())"));
    let both = site.keys_and_indexes().await;
    let (ours, public): (Vec<&str>, Vec<&str>) =
        both.lines().partition(|line| OUR_KEYS_AND_INDEXES.lines().any(|ours| ours == *line));
    assert_eq!(ours.join("\n"), OUR_KEYS_AND_INDEXES);
    assert_eq!(public.join("\n"), KEYS_AND_INDEXES);
}

#[tokio::test]
async fn psql_may_run_every_file_again_and_again() {
    let site = Site::new().await;
    for _ in 0..2 {
        for file in migration_files() {
            site.psql_file(&file, &[]);
        }
    }
    let by_psql = (site.columns().await, site.keys_and_indexes().await);
    let tenant = site.insert_by_plain_sql().await;
    site.migrate().await;
    assert_eq!((site.columns().await, site.keys_and_indexes().await), by_psql, "`migrate` after psql changes nothing");
    let proxy = site.builder.start().await;
    assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200);
}

#[tokio::test]
async fn status_tells_what_migrate_would_do() {
    let site = Site::new().await;
    let names: Vec<_> = migration_files().iter().map(|file| file.trim_end_matches(".sql").to_owned()).collect();
    let lines = |state| names.iter().map(|name| format!("{state} {name}\n")).collect::<String>();
    assert_eq!(site.status().await, lines("pending  "));
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace";
    assert_eq!(site.database.value(tables).await.as_deref(), Some("0"), "--status changes nothing");

    let first = site.migrate().await;
    assert_eq!(first, lines("applied") + &format!("{} applied: the schema is up to date\n", names.len()));
    assert_eq!(site.status().await, lines("applied  "));
    assert_eq!(site.migrate().await, "nothing to do: the schema is up to date\n");
}

#[tokio::test]
async fn processes_that_migrate_at_once_all_succeed_and_one_of_them_does_it() {
    for processes in [2, 5] {
        let site = Site::new().await;
        let outputs = futures::future::join_all((0..processes).map(|_| site.migrate())).await;
        let idle = outputs.iter().filter(|output| output.starts_with("nothing to do")).count();
        assert_eq!(idle, processes - 1, "{outputs:?}");
        let applied = site.database.value("SELECT count(*) FROM refinery_schema_history").await;
        assert_eq!(applied, Some(migration_files().len().to_string()));
    }
}

#[tokio::test]
async fn tables_made_by_hand_keep_their_rows_and_serve() {
    let site = Site::new().await;
    site.database.execute(TABLES_MADE_BY_HAND).await;
    let tenant = Uuid::new_v4();
    site.database
        .execute(&format!(
            "INSERT INTO tenant_licenses VALUES ('{tenant}', 'professional', '{{\"crm\": true}}', '2020-01-01',
               '9999-01-01', NULL, NULL, NULL, 'Ada');
             INSERT INTO feature_usage VALUES (gen_random_uuid(), '{tenant}', 'crm', 7, '2026-01-31', NULL)"
        ))
        .await;
    let before = "SELECT concat_ws('|', plan_tier, l.features, valid_from, valid_until, salesperson, usage_count)
                    FROM tenant_licenses l JOIN feature_usage USING (tenant_id) WHERE feature_name = 'crm'";
    let rows = site.database.value(before).await;
    site.migrate().await;
    assert_eq!(site.database.value(before).await, rows);
    assert!(site.keys_and_indexes().await.contains("idx_feature_usage_tenant_date"));

    let proxy = site.builder.start().await;
    assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200);
    assert_eq!(get(&proxy, "/api/v1/tickets", tenant).await.status, 402);
    assert_eq!(site.upstream.last().header("X-License-Plan"), Some("professional"));
    // What had no default has one: the least that plain SQL may say is enough on these tables too.
    let customer = site.insert_by_plain_sql().await;
    assert_eq!(get(&proxy, "/api/v1/crm", customer).await.status, 200);
    let usage = format!(
        "INSERT INTO feature_usage (tenant_id, feature_name, usage_date) VALUES ('{customer}', 'crm', '2026-01-31')"
    );
    site.database.execute(&usage).await;
    assert!(site.revision(tenant).await > 1_700_000_000_000_000);
}

/// Usage is upserted by its id, so that a table made without a key gets one; room in its pages is the owner's to choose.
#[tokio::test]
async fn usage_tables_made_by_hand_get_what_upserts_need() {
    for (by_hand, index, option) in [
        (TABLES_MADE_BY_HAND.to_owned(), "feature_usage_pkey", "fillfactor=80"),
        (
            TABLES_MADE_BY_HAND.replace("id UUID PRIMARY KEY, tenant_id", "id UUID, tenant_id"),
            "idx_feature_usage_id",
            "fillfactor=80",
        ),
        (format!("{TABLES_MADE_BY_HAND} WITH (fillfactor = 70)"), "feature_usage_pkey", "fillfactor=70"),
    ] {
        let site = Site::new().await;
        site.database.execute(&by_hand).await;
        site.migrate().await;
        let unique = "SELECT string_agg(indexrelid::regclass::text, ' ') FROM pg_index
                       WHERE indrelid = 'feature_usage'::regclass AND indisunique";
        assert_eq!(site.database.value(unique).await.as_deref(), Some(index));
        let options = "SELECT array_to_string(reloptions, ' ') FROM pg_class WHERE oid = 'feature_usage'::regclass";
        assert_eq!(site.database.value(options).await.as_deref(), Some(option));
    }
}

/// Somebody who uses the table for long does not have everybody else wait behind a migration.
#[tokio::test]
async fn a_migration_that_has_to_wait_gives_up() {
    let site = Site::new().await;
    site.migrate().await;
    let pending = "DROP INDEX idx_feature_usage_date; DELETE FROM refinery_schema_history WHERE version = 6";
    site.database.execute(pending).await;
    let other = site.database.connect().await;
    other.batch_execute("BEGIN; LOCK feature_usage IN ROW EXCLUSIVE MODE").await.expect("locked");
    let ended = site.builder.run(&["migrate"]).await;
    assert!(failed(&ended, "pg-secret-word").contains("lock timeout"), "{ended:?}");
    other.batch_execute("COMMIT").await.expect("released");
    site.migrate().await;
}

/// A default that somebody chose is theirs to choose.
#[tokio::test]
async fn defaults_of_tables_made_by_hand_are_kept() {
    let site = Site::new().await;
    site.psql_file("V001__add_licensing_tables.sql", &[]);
    let own = "ALTER TABLE tenant_licenses ALTER plan_tier SET DEFAULT 'trial',
                 ALTER valid_until SET DEFAULT CURRENT_TIMESTAMP + INTERVAL '14 days'";
    site.database.execute(own).await;
    site.migrate().await;
    let columns = site.columns().await;
    for kept in ["DEFAULT 'trial'::character varying", "DEFAULT (CURRENT_TIMESTAMP + '14 days'::interval)"] {
        assert!(columns.contains(kept), "{kept}:\n{columns}");
    }
}

/// Somebody drops tables, or puts the first file's in their place: the history alone proves nothing.
#[tokio::test]
async fn what_was_dropped_is_created_again() {
    let site = Site::new().await;
    site.migrate().await;
    let whole = (site.columns().await, site.keys_and_indexes().await);
    for (sql, missing) in [
        ("DROP TABLE feature_usage", "table feature_usage"),
        ("DROP TRIGGER tenant_licenses_set_revision ON tenant_licenses", "trigger tenant_licenses_set_revision"),
        ("DROP FUNCTION tenant_licenses_announce CASCADE", "trigger tenant_licenses_announce_truncate"),
        ("DROP TABLE tenant_addons", "table tenant_addons"),
        ("DROP TABLE usage_windows, usage_anchors", "table usage_anchors"),
        ("DROP TABLE feature_denial_events", "table feature_denial_events"),
        ("DROP TABLE tenant_licenses, feature_usage CASCADE", "table tenant_licenses"),
    ] {
        site.database.execute(sql).await;
        let status = site.status().await;
        assert!(status.contains(&format!("missing   {missing}: `migrate` creates it again\n")), "{sql}: {status}");
        site.migrate().await;
        assert_eq!((site.columns().await, site.keys_and_indexes().await), whole, "{sql}");
        assert_eq!(site.migrate().await, "nothing to do: the schema is up to date\n", "{sql}");
        // What tells the proxies that the drop meant "off", and only that.
        let comment = "SELECT obj_description('tenant_licenses'::regclass, 'pg_class')";
        let says = "dotmac-license-proxy: created again after a drop; enforces nothing until it holds a licence";
        let expected = (missing == "table tenant_licenses").then_some(says);
        assert_eq!(site.database.value(comment).await.as_deref(), expected, "{sql}");
    }
    site.database.execute("DROP TABLE tenant_licenses, feature_usage CASCADE").await;
    site.psql_file("V001__add_licensing_tables.sql", &[]);
    site.migrate().await;
    assert_eq!((site.columns().await, site.keys_and_indexes().await), whole);
    let proxy = site.builder.start().await;
    let tenant = site.insert_by_plain_sql().await;
    assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200);
}

#[tokio::test]
async fn the_revision_grows_through_all_that_happens_to_a_row() {
    let site = Site::new().await;
    site.psql_file("V001__add_licensing_tables.sql", &[]);
    let old_row = site.insert_by_plain_sql().await;
    let epoch_micros = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let now =
        async || site.database.value(epoch_micros).await.and_then(|now| now.parse::<i64>().ok()).expect("a number");
    let before = now().await;
    site.migrate().await;
    let tenant = site.insert_by_plain_sql().await;
    let after = now().await;
    for tenant in [old_row, tenant] {
        assert!((before..=after).contains(&site.revision(tenant).await), "it starts from epoch microseconds");
    }

    let row = format!("tenant_licenses WHERE tenant_id = '{tenant}'");
    let insert = format!("INSERT INTO tenant_licenses (tenant_id, revision) VALUES ('{tenant}', 3)");
    let mut last = site.revision(tenant).await;
    for change in [
        format!("UPDATE tenant_licenses SET plan_tier = 'enterprise' WHERE tenant_id = '{tenant}'"),
        format!("UPDATE tenant_licenses SET revision = 1 WHERE tenant_id = '{tenant}'"),
        format!("DELETE FROM {row}; {insert}"),
        format!("BEGIN; DELETE FROM {row}; {insert}; COMMIT"),
        "DROP TABLE tenant_licenses, feature_usage CASCADE".to_owned(),
    ] {
        site.database.execute(&change).await;
        if change.starts_with("DROP") {
            site.migrate().await;
            site.database.execute(&insert).await;
        }
        let revision = site.revision(tenant).await;
        assert!(revision > last, "{change}: {last} → {revision}");
        last = revision;
    }
    // A clock that was set back does not take the revision back.
    let ahead = "ALTER TABLE tenant_licenses DISABLE TRIGGER USER;
                 UPDATE tenant_licenses SET revision = 9000000000000000;
                 ALTER TABLE tenant_licenses ENABLE TRIGGER USER;
                 UPDATE tenant_licenses SET plan_tier = 'starter'";
    site.database.execute(ahead).await;
    assert_eq!(site.revision(tenant).await, 9_000_000_000_000_001);
}

/// Whoever changes `features` in plain SQL says what is included from now on, ends and all; other columns are no concern of it.
#[tokio::test]
async fn plain_sql_on_features_ends_their_ends() {
    for by_hand in [false, true] {
        let site = Site::new().await;
        if by_hand {
            site.database.execute(TABLES_MADE_BY_HAND).await;
        }
        site.migrate().await;
        let insert = "INSERT INTO tenant_licenses (tenant_id, features, features_until)
                      VALUES (gen_random_uuid(), '{\"crm\": true}', '{\"crm\": \"2026-11-24T10:00:00Z\"}')";
        site.database.execute(insert).await;
        let managed = "SELECT set_config('dotmac_license.managed', '1', true)";
        let ends = r#"{"crm": "2026-11-24T10:00:00Z"}"#;
        let other_ends = r#"{"crm": "2027-01-01T00:00:00Z"}"#;
        for (change, expected) in [
            ("UPDATE tenant_licenses SET plan_tier = 'enterprise'".to_owned(), ends),
            (r#"UPDATE tenant_licenses SET features = '{"crm": true}'"#.to_owned(), ends),
            (
                format!(
                    r#"BEGIN; {managed}; UPDATE tenant_licenses SET features = '{{"crm": true, "a": true}}'; COMMIT"#
                ),
                ends,
            ),
            (
                format!(r#"UPDATE tenant_licenses SET features = '{{"crm": true}}', features_until = '{other_ends}'"#),
                other_ends,
            ),
            (r#"UPDATE tenant_licenses SET features = '{"crm": true, "b": true}'"#.to_owned(), "{}"),
        ] {
            site.database.execute(&change).await;
            let found = site.database.value("SELECT features_until FROM tenant_licenses").await;
            assert_eq!(found.as_deref(), Some(expected), "by hand: {by_hand}, {change}");
        }
    }
}

async fn a_new_customer_is_served_at_once_in(time_zone: &str) {
    let postgres = Postgres::private(&[("timezone", time_zone)]).await;
    let site = Site::on(&postgres).await;
    site.psql_file("V001__add_licensing_tables.sql", &[]);
    let dated_by_v001 = site.insert_by_plain_sql().await;
    // As a program does that passes its own local time for each column.
    let dated_by_a_program = Uuid::new_v4();
    let sql = format!(
        "INSERT INTO tenant_licenses (tenant_id, features, valid_from, created_at)
         VALUES ('{dated_by_a_program}', '{{\"crm\": true}}', clock_timestamp(), clock_timestamp())"
    );
    site.database.execute(&sql).await;
    // A beginning in the future that somebody has chosen.
    let chosen = Uuid::new_v4();
    let sql = format!(
        "INSERT INTO tenant_licenses (tenant_id, features, valid_from)
         VALUES ('{chosen}', '{{\"crm\": true}}', CURRENT_TIMESTAMP + INTERVAL '20 hours')"
    );
    site.database.execute(&sql).await;
    site.migrate().await;
    let proxy = site.builder.start().await;
    let dated_by_default = site.insert_by_plain_sql().await;
    for tenant in [dated_by_v001, dated_by_a_program, dated_by_default] {
        let answer = get(&proxy, "/api/v1/crm", tenant).await;
        assert_eq!(answer.status, 200, "{time_zone}: {}", answer.text());
    }
    let answer = get(&proxy, "/api/v1/crm", chosen).await;
    assert_eq!((answer.status, &answer.json()["reason"]), (402, &json!("license_not_yet_valid")), "{time_zone}");
    let utc = format!(
        "SELECT valid_from BETWEEN timezone('utc', now()) - INTERVAL '5 minutes' AND timezone('utc', now())
            AND valid_until - valid_from = INTERVAL '30 days'
            AND created_at = valid_from AND updated_at = valid_from
           FROM tenant_licenses WHERE tenant_id = '{dated_by_default}'"
    );
    assert_eq!(site.database.value(&utc).await.as_deref(), Some("t"), "{time_zone}");

    // Columns that know their zone are as good, and need another default.
    let site = Site::on(&postgres).await;
    site.database.execute(&TABLES_MADE_BY_HAND.replace("TIMESTAMP", "TIMESTAMPTZ")).await;
    let old = Uuid::new_v4();
    let sql = format!(
        "INSERT INTO tenant_licenses VALUES ('{old}', 'starter', '{{\"crm\": true}}', now(),
           now() + INTERVAL '1 hour', false, now(), now(), 'Ada')"
    );
    site.database.execute(&sql).await;
    let dates = "SELECT concat_ws('|', valid_from, valid_until, created_at) FROM tenant_licenses";
    let before = site.database.value(dates).await;
    site.migrate().await;
    assert_eq!(site.database.value(dates).await, before, "{time_zone}");
    let proxy = site.builder.start().await;
    for tenant in [old, site.insert_by_plain_sql().await] {
        let answer = get(&proxy, "/api/v1/crm", tenant).await;
        assert_eq!(answer.status, 200, "{time_zone}: {}", answer.text());
    }
    site.database.execute("UPDATE tenant_licenses SET plan_tier = 'enterprise'").await;
    let recent = "SELECT bool_and(updated_at BETWEEN now() - INTERVAL '5 minutes' AND now()
                    AND valid_until > now() AND valid_from <= now()) FROM tenant_licenses";
    assert_eq!(site.database.value(recent).await.as_deref(), Some("t"), "{time_zone}");
}

#[tokio::test]
async fn a_server_in_tokyo() {
    a_new_customer_is_served_at_once_in("Asia/Tokyo").await;
}

#[tokio::test]
async fn a_server_in_lagos() {
    a_new_customer_is_served_at_once_in("Africa/Lagos").await;
}

#[tokio::test]
async fn a_server_in_los_angeles() {
    a_new_customer_is_served_at_once_in("America/Los_Angeles").await;
}

/// The role of the proxy reads and writes rows, and changes no table.
#[tokio::test]
async fn grants_are_enough_for_a_role_without_ddl() {
    for by_psql in [false, true] {
        let postgres = Postgres::shared().await;
        let site = Site::on(&postgres).await;
        if by_psql {
            migration_files().iter().for_each(|file| site.psql_file(file, &[]));
        } else {
            site.migrate().await;
        }
        let role = format!("proxy_{}", Uuid::new_v4().simple());
        site.database.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'role-secret'")).await;
        let denied = site.builder.clone().env("DATABASE_URL", url_as(&site.database, &postgres, &role));
        let tenant = site.insert_by_plain_sql().await;

        site.psql_file("grants.sql", &["-v", &format!("role={role}")]);
        let proxy = denied.start().await;
        assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200, "by psql: {by_psql}");
        let rows = format!(
            "SET ROLE {role}; UPDATE tenant_licenses SET plan_tier = 'enterprise';
             INSERT INTO feature_usage (tenant_id, feature_name, usage_date) VALUES ('{tenant}', 'crm', '2026-01-31');
             INSERT INTO tenant_addons (tenant_id, feature) VALUES ('{tenant}', 'crm');
             INSERT INTO license_audit (action, actor, outcome) VALUES ('grant', 'Ada', 'applied');
             INSERT INTO usage_batches (id) VALUES ('{tenant}') ON CONFLICT (id) DO UPDATE SET at = now();
             UPDATE usage_windows SET used = 1; UPDATE usage_anchors SET anchor = '2026-01-31';
             UPDATE feature_denial_events SET count = 1; UPDATE shadow_denial_events SET count = 1;
             UPDATE upgrade_marks SET clicked_at = now(); DELETE FROM upgrade_marks; DELETE FROM usage_batches;
             DELETE FROM usage_windows; DELETE FROM feature_denial_events; DELETE FROM shadow_denial_events;
             DELETE FROM tenant_addons; DELETE FROM feature_usage; DELETE FROM tenant_licenses"
        );
        site.database.execute(&rows).await;
        let status = denied.run(&["migrate", "--status"]).await;
        assert_eq!(status.status.code(), Some(0), "{status:?}");
        assert_eq!(status.stdout.contains("pending"), by_psql, "{status:?}");

        site.database.execute("DROP TABLE tenant_licenses, feature_usage CASCADE").await;
        let ended = denied.run(&["migrate"]).await;
        let message = failed(&ended, "role-secret");
        assert!(message.contains("permission denied"), "{message}");
        site.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    }
}

fn url_as(database: &Database, postgres: &Postgres, role: &str) -> String {
    format!("postgres://{role}:role-secret@127.0.0.1:{}/{}", postgres.port(), database.name())
}

/// That a command failed with one sentence that does not give the password away.
fn failed(ended: &Ended, password: &str) -> String {
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let printed = format!("{}{}", ended.stdout, ended.stderr);
    assert!(!printed.contains(password), "the password is printed: {ended:?}");
    let message = ended.stderr.lines().last().unwrap_or_default().to_owned();
    assert!(message.starts_with("error: ") && message.len() > 30, "{ended:?}");
    assert!(!printed.contains("panicked") && !printed.contains("stack backtrace"), "{ended:?}");
    message
}

#[tokio::test]
async fn failures_are_sentences_without_the_password() {
    let site = Site::new().await;
    let url = site.database.url();
    let nobody = format!("postgres://app:pg-secret-word@127.0.0.1:{}/main", crate::harness::process::free_port());
    for (url, says) in [
        (nobody.as_str(), "onnection refused"),
        ("mysql://app:pg-secret-word@127.0.0.1/main", "postgresql://"),
        ("app:pg-secret-word@127.0.0.1/main", "postgresql://"),
        ("postgres://app:pg-secret-word@127.0.0.1:port/main", "port"),
        ("postgres://app:pg-secret-word@no-such-host.invalid/main", "failed to lookup address"),
        (&url.replace("postgres:pg-secret", "postgres:not-pg-secret"), "password authentication failed"),
        (&url.replace(site.database.name(), "no_such_database"), "no_such_database"),
        (&(url.clone() + "?sslmode=maybe"), "sslmode"),
    ] {
        for arguments in [&["migrate"][..], &["migrate", "--status"]] {
            let ended = site.builder.clone().env("DATABASE_URL", url).run(arguments).await;
            let message = failed(&ended, "pg-secret-word");
            assert!(message.contains(says), "{url}: {message}");
        }
    }
    let unset = site.builder.clone().env("DATABASE_URL", "").run(&["migrate"]).await;
    assert_eq!(unset.status.code(), Some(2), "{unset:?}");
    assert!(unset.stderr.contains("DATABASE_URL"), "{unset:?}");
}

#[tokio::test]
async fn urls_of_sqlalchemy_and_urls_from_files() {
    let site = Site::new().await;
    let url = site.database.url().replace("postgres://", "postgresql+asyncpg://");
    let from_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(from_file.path(), format!("{url}\n")).expect("written");
    let path = from_file.path().display().to_string();
    let first = site.builder.clone().env("DATABASE_URL", url).run(&["migrate"]).await;
    assert!(first.stdout.contains("applied: the schema is up to date"), "{first:?}");
    let second = site.builder.clone().env("DATABASE_URL", "").env("DOTMAC_LICENSE_DATABASE_URL_FILE", path);
    let second = second.run(&["migrate"]).await;
    assert_eq!((second.status.code(), second.stdout.contains("nothing to do")), (Some(0), true), "{second:?}");
}
