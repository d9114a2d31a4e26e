//! What a change of `tenant_licenses` announces on the channel `dotmac_license_changes`, whoever makes it and however.

use uuid::Uuid;

use crate::harness::postgres::Listener;
use crate::harness::{Database, Postgres};
use crate::migrations::Site;

const CHANNEL: &str = "dotmac_license_changes";

async fn site() -> (Site, Listener) {
    let site = Site::new().await;
    site.migrate().await;
    let listener = site.database.listen(CHANNEL).await;
    (site, listener)
}

/// `<tenant>:<revision>` of every licence, sorted.
async fn licenses(database: &Database) -> Vec<String> {
    let sql = "SELECT string_agg(tenant_id || ':' || revision, ' ') FROM tenant_licenses";
    sorted(database.value(sql).await.unwrap_or_default().split_whitespace().map(str::to_owned).collect())
}

fn sorted(mut payloads: Vec<String>) -> Vec<String> {
    payloads.sort();
    payloads
}

fn insert(rows: usize) -> String {
    format!("INSERT INTO tenant_licenses (tenant_id) SELECT gen_random_uuid() FROM generate_series(1, {rows})")
}

#[tokio::test]
async fn every_statement_announces_the_rows_it_changed() {
    let (site, mut listener) = site().await;
    let tenant = Uuid::new_v4();
    for sql in [
        format!("INSERT INTO tenant_licenses (tenant_id) VALUES ('{tenant}')"),
        format!("UPDATE tenant_licenses SET features = '{{\"crm\": true}}' WHERE tenant_id = '{tenant}'"),
        format!(
            "INSERT INTO tenant_licenses (tenant_id) VALUES ('{tenant}'), (gen_random_uuid())
               ON CONFLICT (tenant_id) DO UPDATE SET tenant_id = EXCLUDED.tenant_id, plan_tier = 'enterprise'"
        ),
        "UPDATE tenant_licenses SET plan_tier = 'professional'".to_owned(),
    ] {
        site.database.execute(&sql).await;
        assert_eq!(sorted(listener.heard().await), licenses(&site.database).await, "{sql}");
    }
    // By a session that looks for names elsewhere, and by one that ordinary triggers don't fire for.
    for setting in ["search_path = ''", "session_replication_role = replica"] {
        site.database.execute(&format!("SET {setting}; UPDATE public.tenant_licenses SET plan_tier = 'starter'")).await;
        assert_eq!(sorted(listener.heard().await), licenses(&site.database).await, "{setting}");
    }
    for nothing in [
        "UPDATE tenant_licenses SET plan_tier = 'x' WHERE plan_tier = 'no such plan'",
        "DELETE FROM tenant_licenses WHERE plan_tier = 'no such plan'",
        "INSERT INTO tenant_licenses SELECT * FROM tenant_licenses ON CONFLICT DO NOTHING",
        "BEGIN; UPDATE tenant_licenses SET plan_tier = 'x'; DELETE FROM tenant_licenses; ROLLBACK",
    ] {
        site.database.execute(nothing).await;
        assert_eq!(listener.heard().await, [] as [String; 0], "{nothing}");
    }

    let revision = site.revision(tenant).await;
    site.database.execute(&format!("DELETE FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await;
    let [gone] = &listener.heard().await[..] else { panic!("one announcement") };
    let (id, gone) = gone.split_once(':').expect("tenant and revision");
    assert_eq!(id, tenant.to_string());
    assert!(gone.parse::<i64>().expect("a number") > revision, "a deletion is newer than what it deletes");
    site.database.execute("TRUNCATE tenant_licenses CASCADE").await;
    assert_eq!(listener.heard().await, ["*"]);
}

/// A deletion is newer than the row even where the clock was set back, and a licence that comes after it is newer still.
#[tokio::test]
async fn a_deletion_is_newer_than_the_row() {
    let (site, mut listener) = site().await;
    let tenant = site.insert_by_plain_sql().await;
    let ahead = "SET session_replication_role = replica; UPDATE tenant_licenses SET revision = 9000000000000000";
    site.database.execute(ahead).await;
    assert_eq!(listener.heard().await[1..], [format!("{tenant}:9000000000000000")]);
    site.database.execute("DELETE FROM tenant_licenses").await;
    assert_eq!(listener.heard().await, [format!("{tenant}:9000000000000001")]);
}

#[tokio::test]
async fn more_than_five_hundred_rows_are_announced_as_one() {
    let (site, mut listener) = site().await;
    for (rows, inserted, changed) in [(500, 500, 500), (501, 1, 1)] {
        for (sql, count, as_one) in [
            (insert(rows), inserted, "+"),
            ("UPDATE tenant_licenses SET plan_tier = 'professional'".to_owned(), changed, "*"),
            ("DELETE FROM tenant_licenses".to_owned(), changed, "*"),
        ] {
            site.database.execute(&sql).await;
            let heard = listener.heard().await;
            assert_eq!(heard.len(), count, "{sql}, {rows} rows");
            assert!(heard.iter().all(|payload| (payload == as_one) == (count == 1)), "{heard:?}");
        }
    }
    for (rows, expected) in [(2, 2), (600, 1)] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let lines: String = (0..rows).map(|_| format!("{}\n", Uuid::new_v4())).collect();
        std::fs::write(file.path(), lines).expect("written");
        let copy = format!("\\copy tenant_licenses (tenant_id) FROM '{}'", file.path().display());
        site.database.psql(&["-c", &copy]);
        assert_eq!(listener.heard().await.len(), expected, "COPY of {rows} rows");
    }
}

/// The id that a row had is a licence that is gone.
#[tokio::test]
async fn a_changed_id_announces_the_old_one_too() {
    let (site, mut listener) = site().await;
    let (old, new) = (site.insert_by_plain_sql().await, Uuid::new_v4());
    site.insert_by_plain_sql().await;
    listener.heard().await;
    site.database.execute(&format!("UPDATE tenant_licenses SET tenant_id = '{new}' WHERE tenant_id = '{old}'")).await;
    let revision = site.revision(new).await;
    assert_eq!(sorted(listener.heard().await), sorted(vec![format!("{old}:{revision}"), format!("{new}:{revision}")]));
    // Bounded as everything is: 500 old ids, and one "*" for the rest and for the new ids.
    site.database.execute(&insert(600)).await;
    listener.heard().await;
    site.database.execute("UPDATE tenant_licenses SET tenant_id = gen_random_uuid()").await;
    let heard = listener.heard().await;
    assert_eq!((heard.len(), heard.iter().filter(|payload| *payload == "*").count()), (501, 1));
}

/// All that `grants.sql` gives is enough to write and to be heard.
#[tokio::test]
async fn a_role_without_ddl_announces() {
    let (site, mut listener) = site().await;
    let role = format!("proxy_{}", Uuid::new_v4().simple());
    site.database.execute(&format!("CREATE ROLE {role}")).await;
    site.psql_file("grants.sql", &["-v", &format!("role={role}")]);
    for sql in [
        "INSERT INTO tenant_licenses (tenant_id) VALUES (gen_random_uuid())",
        "UPDATE tenant_licenses SET plan_tier = 'enterprise'",
        "DELETE FROM tenant_licenses",
    ] {
        site.database.execute(&format!("SET ROLE {role}; {sql}")).await;
        assert_eq!(listener.heard().await.len(), 1, "{sql}");
    }
    site.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// A dump of rows into a table that is there is an INSERT like any other. A dump of the table creates the triggers after the
/// rows, so that the rows keep their revisions and nobody hears of them: an UPDATE of all rows afterwards is what tells.
#[tokio::test]
async fn what_a_restore_announces() {
    let (site, mut listener) = site().await;
    for _ in 0..2 {
        site.insert_by_plain_sql().await;
    }
    let dumped = licenses(&site.database).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().display().to_string();
    let whole = ["--format=custom", "--table=tenant_licenses", "--table=feature_usage", "--file", &path];
    let triggers = "SELECT string_agg(concat_ws(' ', tgenabled, pg_get_triggerdef(oid)), E'\\n' ORDER BY tgname)
                      FROM pg_trigger WHERE tgrelid = 'tenant_licenses'::regclass AND NOT tgisinternal";
    let created = site.database.value(triggers).await;
    site.database.pg_dump(&whole);
    site.database.execute("UPDATE tenant_licenses SET plan_tier = 'enterprise'").await;
    let newer = licenses(&site.database).await;

    // Rows into a re-created table: fresh revisions, announced.
    site.database.execute("DROP TABLE tenant_licenses, feature_usage CASCADE").await;
    site.migrate().await;
    listener.heard().await;
    site.database.pg_restore(&["--data-only", &path]);
    let restored = licenses(&site.database).await;
    assert_eq!(sorted(listener.heard().await), restored);
    assert!(restored.iter().zip(&newer).all(|(restored, newer)| restored > newer), "{newer:?} → {restored:?}");

    // The table with its rows: the revisions of the dump, not announced.
    site.database.pg_restore(&["--clean", "--if-exists", &path]);
    assert_eq!(licenses(&site.database).await, dumped);
    assert_eq!(listener.heard().await, [] as [String; 0]);
    assert_eq!(site.database.value(triggers).await, created, "the triggers are back as they were");
    assert_eq!(site.migrate().await, "nothing to do: the schema is up to date\n");
    site.database.execute("UPDATE tenant_licenses SET tenant_id = tenant_id").await;
    let announced = licenses(&site.database).await;
    assert_eq!(sorted(listener.heard().await), announced);
    assert!(announced.iter().zip(&restored).all(|(announced, restored)| announced > restored));

    // As a restore runs where triggers and foreign keys are to sleep: the revisions of the dump, announced.
    let rows = site.database.pg_dump(&["--data-only", "--inserts", "--table=tenant_licenses"]);
    // Without psql's own commands.
    let rows: String = rows.split_inclusive('\n').filter(|line| !line.starts_with('\\')).collect();
    let replica = format!("SET session_replication_role = replica; DELETE FROM tenant_licenses; {rows}");
    site.database.execute(&replica).await;
    assert_eq!(licenses(&site.database).await, announced);
    let heard = listener.heard().await;
    assert!(announced.iter().all(|payload| heard.contains(payload)), "{heard:?}");
}

/// Rows that a subscription applies are announced there, with the revision of their origin.
#[tokio::test]
async fn what_logical_replication_brings_is_announced() {
    let postgres = Postgres::private(&[("wal_level", "logical")]).await;
    let (origin, copy) = (Site::on(&postgres).await, Site::on(&postgres).await);
    origin.migrate().await;
    copy.migrate().await;
    let tenant = origin.insert_by_plain_sql().await;
    let mut listener = copy.database.listen(CHANNEL).await;
    let publication = "CREATE PUBLICATION licenses FOR TABLE tenant_licenses";
    origin.database.execute(publication).await;
    // Within one server the subscription can't create its own slot: it would wait for itself.
    origin.database.execute("SELECT pg_create_logical_replication_slot('licenses', 'pgoutput')").await;
    let subscription = format!(
        "CREATE SUBSCRIPTION licenses CONNECTION 'host={} port={} user=postgres dbname={}'
           PUBLICATION licenses WITH (create_slot = false, slot_name = 'licenses')",
        postgres.socket_dir().display(),
        postgres.port(),
        origin.database.name()
    );
    copy.database.execute(&subscription).await;
    assert_eq!(listener.next().await, format!("{tenant}:{}", origin.revision(tenant).await), "the first copy");
    origin.database.execute("UPDATE tenant_licenses SET plan_tier = 'enterprise'").await;
    assert_eq!(listener.next().await, format!("{tenant}:{}", origin.revision(tenant).await), "a later change");
    origin.database.execute("DELETE FROM tenant_licenses").await;
    let gone = listener.next().await;
    assert!(gone.starts_with(&format!("{tenant}:")), "{gone}");
    copy.database
        .execute("ALTER SUBSCRIPTION licenses DISABLE; ALTER SUBSCRIPTION licenses SET (slot_name = NONE)")
        .await;
}
