//! `license renew`: what renews itself is extended in time, once, whoever runs it and how often; and the grace until then.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::proxy::Ended;
use crate::harness::world::get;
use crate::harness::{Database, License, Pooler, Postgres, Proxy, ProxyBuilder, World};

/// A migrated database and the command's configuration.
struct Site {
    database: Database,
    builder: ProxyBuilder,
}

impl Site {
    async fn new() -> Site {
        let database = Postgres::shared().await.database().await;
        let builder = Proxy::builder("127.0.0.1:9").env("DATABASE_URL", database.url());
        let migrated = builder.run(&["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        Site { database, builder }
    }

    async fn run(&self, arguments: &[&str]) -> Ended {
        self.builder.run(&[&["license", "renew"], arguments].concat()).await
    }

    /// What it prints when it succeeds.
    async fn succeed(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments).await;
        assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{ended:?}");
        ended.stdout
    }

    /// A licence that ends so long from now, in Postgres's words.
    async fn license(&self, ends: &str, auto_renew: &str) -> Uuid {
        let tenant = Uuid::new_v4();
        let end = match ends {
            "infinity" | "-infinity" => format!("'{ends}'"),
            interval => format!("timezone('utc', now()) + interval '{interval}'"),
        };
        let insert = "INSERT INTO tenant_licenses (tenant_id, valid_from, valid_until, auto_renew)";
        self.database.execute(&format!("{insert} VALUES ('{tenant}', '2020-01-01', {end}, {auto_renew})")).await;
        tenant
    }

    /// The row but for its end, and its end.
    async fn row(&self, tenant: Uuid) -> (String, String) {
        let row = "to_jsonb(l) - 'valid_until' - 'revision' - 'updated_at'";
        let of = |what: &str| format!("SELECT {what} FROM tenant_licenses AS l WHERE tenant_id = '{tenant}'");
        let (rest, end) = (self.database.value(&of(row)).await, self.database.value(&of("valid_until")).await);
        (rest.expect("a row"), end.expect("an end"))
    }

    async fn number(&self, sql: &str) -> u64 {
        self.database.value(sql).await.and_then(|number| number.parse().ok()).expect("a number")
    }
}

/// Each that is due by exactly one period, the others not at all, and nothing else of any of them.
#[tokio::test]
async fn what_is_due_is_extended_and_nothing_else_is_touched() {
    let site = Site::new().await;
    let mut licenses = Vec::new();
    for (ends, auto_renew, extended) in [
        ("2 hours", "true", Some("30 days")),
        ("23 hours 59 minutes", "true", Some("30 days")),
        ("-1 minute", "true", Some("30 days")),
        ("-71 hours", "true", Some("30 days")),
        ("2 hours", "NULL", Some("30 days")),
        ("25 hours", "true", None),
        ("2 hours", "false", None),
        ("-1 minute", "false", None),
        ("-73 hours", "true", None),
        ("infinity", "true", None),
        ("-infinity", "true", None),
    ] {
        let tenant = site.license(ends, auto_renew).await;
        licenses.push((tenant, ends, extended, site.row(tenant).await));
    }
    let dry = site.succeed(&["--dry-run"]).await;
    assert_eq!(dry, "5 would be renewed by 30d, 1 ended more than 72h ago and stay so (--lapsed revives them)\n");
    for (tenant, ends, _, before) in &licenses {
        assert_eq!(site.row(*tenant).await, *before, "{ends}: it only counts");
    }
    let done = site.succeed(&["--reason", "paid", "--actor", "billing"]).await;
    assert_eq!(done, dry.replace("would be renewed", "renewed"));
    for (tenant, ends, extended, (rest, end)) in &licenses {
        let (rest_after, end_after) = site.row(*tenant).await;
        assert_eq!(rest_after, *rest, "{ends}");
        let later =
            site.database.value(&format!("SELECT timestamp '{end}' + interval '{}'", extended.unwrap_or("0"))).await;
        assert_eq!(Some(end_after), later, "{ends}");
    }
    let audit = "SELECT jsonb_agg(jsonb_build_array(action, actor, reason, outcome, command, before, after))
                   FROM license_audit WHERE tenant_id =";
    let (tenant, .., (_, end)) = &licenses[0];
    let rows = site.database.value(&format!("{audit} '{tenant}'")).await.expect("it is audited");
    let utc = |text: &str| format!("{}Z", text.replace(' ', "T"));
    let (revision, later) = (
        site.number(&format!("SELECT revision FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await,
        site.row(*tenant).await.1,
    );
    let expected = json!([[
        "renew", "billing", "paid", "applied", { "action": "renew", "by": "30d", "periods": 1 },
        { "license": { "valid_until": utc(end) } }, { "license": { "valid_until": utc(&later), "revision": revision } },
    ]]);
    assert_eq!(serde_json::from_str::<Value>(&rows).expect("JSON"), expected);
    assert_eq!(site.number("SELECT count(*) FROM license_audit").await, 5);

    // A CronJob runs again.
    let again = site.succeed(&[]).await;
    assert_eq!(again, "0 renewed by 30d, 1 ended more than 72h ago and stay so (--lapsed revives them)\n");
    assert_eq!(site.number("SELECT count(*) FROM license_audit").await, 5);
}

/// A calendar's month keeps day and time; what has lapsed is revived only when asked, by as many periods as it takes.
#[tokio::test]
async fn by_months_and_for_the_lapsed() {
    let site = Site::new().await;
    let [due, lapsed, old] = [
        site.license("2 hours", "true").await,
        site.license("-100 days", "true").await,
        site.license("-infinity", "true").await,
    ];
    let ends = [site.row(due).await.1, site.row(lapsed).await.1];
    assert_eq!(
        site.succeed(&["--by", "1mon"]).await,
        "1 renewed by 1mon, 1 ended more than 72h ago and stay so (--lapsed revives them)\n"
    );
    let month_later = site.database.value(&format!("SELECT timestamp '{}' + interval '1 month'", ends[0])).await;
    assert_eq!(Some(site.row(due).await.1), month_later);

    assert_eq!(site.succeed(&["--lapsed", "--dry-run"]).await, "1 would be renewed by 30d\n");
    assert_eq!(site.succeed(&["--lapsed"]).await, "1 renewed by 30d\n");
    let revived = site.database.value(&format!("SELECT timestamp '{}' + interval '120 days'", ends[1])).await;
    assert_eq!(Some(site.row(lapsed).await.1), revived, "no longer than it takes");
    let periods = "SELECT command ->> 'periods' FROM license_audit WHERE tenant_id =";
    assert_eq!(site.database.value(&format!("{periods} '{lapsed}'")).await.as_deref(), Some("4"));
    assert_eq!(site.row(old).await.1, "-infinity");
    assert_eq!(site.succeed(&["--lapsed"]).await, "0 renewed by 30d\n");
}

#[tokio::test]
async fn bad_usage_is_a_sentence_and_exit_2() {
    let site = Site::new().await;
    for (arguments, says) in [
        (
            &["--within", "30d"][..],
            "--by 30d is no longer than --within 720h: whoever was renewed would be due again at once",
        ),
        (&["--by", "1mon", "--within", "28d"], "--by 1mon is no longer than --within 672h"),
        (&["--by", "0d"], "\"0d\" is no period"),
        (&["--by", "fortnight"], "\"fortnight\" is no period: expected days such as 30d, months such as 1mon"),
        (&["--within", "1"], "1 has no unit"),
    ] {
        let ended = site.run(arguments).await;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{arguments:?}: {ended:?}");
    }
}

/// Many, by two processes at once, while a third holds one of them: each is extended once, and audited once.
#[tokio::test]
async fn two_at_once_extend_nobody_twice() {
    let tenants = std::env::var("RENEW_LICENSES").map_or(20_000, |text| text.parse().expect("a number"));
    let site = Site::new().await;
    site.database
        .execute(&format!(
            "INSERT INTO tenant_licenses (tenant_id, valid_until)
             SELECT gen_random_uuid(), timezone('utc', now()) + interval '1 hour' FROM generate_series(1, {tenants})"
        ))
        .await;
    let held = site.license("1 hour", "true").await;
    let other = site.database.connect().await;
    let hold = format!("BEGIN; UPDATE tenant_licenses SET plan_tier = 'theirs' WHERE tenant_id = '{held}'");
    other.batch_execute(&hold).await.expect("a lock");
    let begun = Instant::now();
    let processes = [0, 1].map(|_| site.builder.begin(&["license", "renew"]));
    let ends = processes.map(|mut running| async move {
        let ended = running.end(Duration::from_secs(300)).await;
        (ended, running.peak_rss_bytes())
    });
    let ended = futures::future::join_all(ends).await;
    println!(
        "{tenants} licences by two processes: {:.1?}, at most {} MiB",
        begun.elapsed(),
        ended.iter().map(|(_, peak)| peak).max().expect("two") >> 20
    );
    let mut renewed = 0;
    for (ended, peak) in &ended {
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let number = ended.stdout.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        renewed += number.expect("how many");
        assert!((1 << 20..128 << 20).contains(peak), "{peak} bytes");
    }
    assert_eq!(renewed, tenants, "{ended:?}");
    let last = ended.iter().any(|(ended, _)| ended.stdout.contains("1 are due still: somebody else was changing them"));
    assert!(last, "{ended:?}");
    let twice = "SELECT count(*) FROM tenant_licenses WHERE valid_until > timezone('utc', now()) + interval '31 days'";
    assert_eq!(site.number(twice).await, 0);
    let audited = "SELECT count(DISTINCT tenant_id) FROM license_audit WHERE action = 'renew'";
    assert_eq!(
        (site.number(audited).await, site.number("SELECT count(*) FROM license_audit").await),
        (tenants, tenants)
    );

    other.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(site.succeed(&[]).await, "1 renewed by 30d\n");
    assert_eq!(
        site.database
            .value(&format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{held}'"))
            .await
            .as_deref(),
        Some("theirs")
    );
}

/// Between the end and the renewal tenants are served, which their backend and the operators are told; then they are not.
#[tokio::test]
async fn a_grace_until_it_is_renewed() {
    let world = World::start_with(|builder| builder.set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let [in_grace, soon, lapsed, fixed] = [(); 4].map(|()| Uuid::new_v4());
    for (tenant, valid_until, auto_renew) in
        [(in_grace, "-1 hour", true), (soon, "1 hour", true), (lapsed, "-73 hours", true), (fixed, "-1 hour", false)]
    {
        world.insert(License { valid_until, auto_renew, ..License::valid(tenant, "professional") }).await;
    }
    let status = async |tenant| get(&world.proxy, "/api/v1/crm", tenant).await.status;
    for (tenant, expected) in [(in_grace, 200), (soon, 200), (lapsed, 402), (fixed, 402)] {
        assert_eq!(status(tenant).await, expected);
    }
    let requests = world.upstream.requests();
    let until: Vec<_> = requests.iter().map(|request| request.header("X-License-Grace-Until")).collect();
    let end = format!(
        "SELECT to_char(valid_until + interval '72 hours', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM tenant_licenses WHERE tenant_id = '{in_grace}'"
    );
    let end = world.database.value(&end).await.expect("an end");
    let said = until[0].expect("the backend is told").trim_end_matches('Z').to_owned();
    assert_eq!((said.as_str(), until[1]), (end.trim_end_matches('0'), None));
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_license_grace_served_total"), 1.0);
    let expiring = |within| metrics.value("dotmac_licenses_expiring", &[("within", within)]);
    assert_eq!((expiring("24h"), expiring("7d"), expiring("30d")), (Some(1.0), Some(1.0), Some(1.0)));

    let ended = world.builder.run(&["license", "renew"]).await;
    assert_eq!(
        ended.stdout, "2 renewed by 30d, 1 ended more than 72h ago and stay so (--lapsed revives them)\n",
        "{ended:?}"
    );
    let begun = Instant::now();
    loop {
        assert_eq!(status(in_grace).await, 200);
        let requests = world.upstream.requests();
        let last = requests.last().expect("it arrived");
        if last.header("X-License-Grace-Until").is_none() {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "the renewal is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("noticed within {:?}", begun.elapsed());
    let ended = world.builder.run(&["license", "renew", "--lapsed"]).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let begun = Instant::now();
    while status(lapsed).await != 200 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the renewal is not noticed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(status(fixed).await, 402, "others end on the dot");
}

/// What has ended goes from licence, limits and add-ons, whatever somebody else's rows hold; what has not ended stays.
#[tokio::test]
async fn what_has_ended_is_cleared_away() {
    let site = Site::new().await;
    let [trial, both, broken, mistyped, alone] = [(); 5].map(|()| Uuid::new_v4());
    let (past, future) = ("2024-02-29T12:00:00Z", "2099-01-01T00:00:00Z");
    for (tenant, features_until) in [
        (trial, json!({ "crm": past, "analytics": future })),
        (both, json!({ "crm": past })),
        (broken, json!(["crm"])),
        (mistyped, json!({ "crm": "soon" })),
    ] {
        site.database
            .execute(&format!(
                "INSERT INTO tenant_licenses (tenant_id, features, features_until, usage_limits, valid_until) VALUES ('{tenant}',
                   '{{\"tickets\": true, \"crm\": true, \"analytics\": true}}', '{features_until}', '{{\"crm\": 5}}', 'infinity');
                 INSERT INTO tenant_addons (tenant_id, feature, limit_delta, valid_until)
                   VALUES ('{tenant}', 'crm', 5, '{past}'), ('{tenant}', 'analytics', NULL, '{future}')"
            ))
            .await;
    }
    site.database
        .execute(&format!(
            "INSERT INTO tenant_addons (tenant_id, feature, valid_until) VALUES ('{alone}', 'crm', '{past}')"
        ))
        .await;
    let dry = site.succeed(&["--dry-run"]).await;
    assert_eq!(dry, "0 would be renewed by 30d, what has ended would be cleared away of 5\n");
    assert_eq!(site.number("SELECT count(*) FROM tenant_addons").await, 9);

    for (ended, audited) in [(3, 3), (0, 3)] {
        let done = site.run(&["--actor", "cron"]).await;
        let cleared = if ended > 0 { format!(", what has ended cleared away of {ended}") } else { String::new() };
        assert_eq!(
            done.stdout,
            format!("0 renewed by 30d{cleared}, 2 have what can't be read: see above\n"),
            "{done:?}"
        );
        for tenant in [broken, mistyped] {
            assert!(done.stderr.contains(&tenant.to_string()), "{done:?}");
        }
        assert_eq!(
            site.number("SELECT count(*) FROM license_audit").await,
            audited,
            "what changes nothing is not audited"
        );
    }
    let row = "SELECT jsonb_build_array(features, features_until, usage_limits,
                 (SELECT jsonb_agg(feature) FROM tenant_addons AS a WHERE a.tenant_id = l.tenant_id)) FROM tenant_licenses AS l";
    for tenant in [trial, both] {
        let row = site.database.value(&format!("{row} WHERE tenant_id = '{tenant}'")).await.expect("a row");
        let ends = if tenant == trial { json!({ "analytics": future }) } else { json!({}) };
        let expected = json!([{ "tickets": true, "analytics": true }, ends, {}, ["analytics"]]);
        assert_eq!(serde_json::from_str::<Value>(&row).expect("JSON"), expected);
    }
    let kept = "SELECT count(*) FROM tenant_addons WHERE feature = 'crm'";
    assert_eq!(site.number(kept).await, 2, "what can't be read is not touched");
    let audit =
        format!("SELECT action || ' ' || actor || ' ' || outcome FROM license_audit WHERE tenant_id = '{alone}'");
    assert_eq!(site.database.value(&audit).await.as_deref(), Some("addon_ended cron applied"));
}

/// Where a pooler lends connections a transaction at a time, the server is in another time zone, and columns have one.
#[tokio::test]
async fn through_a_pooler_and_in_any_time_zone() {
    let mut site = Site::new().await;
    let tenant = site.license("2 hours", "true").await;
    let end = format!(
        "SELECT extract(epoch FROM valid_until AT TIME ZONE 'UTC') FROM tenant_licenses WHERE tenant_id = '{tenant}'"
    );
    let before: f64 = site.database.value(&end).await.and_then(|end| end.parse().ok()).expect("a number");
    site.database
        .execute(&format!(
            "ALTER TABLE tenant_licenses ALTER valid_until TYPE timestamptz USING valid_until AT TIME ZONE 'UTC';
             ALTER DATABASE {} SET timezone = 'Asia/Tokyo'",
            site.database.name()
        ))
        .await;
    let pooler = Pooler::start(&site.database, 1).await;
    site.builder = site.builder.env("DATABASE_URL", pooler.url(&site.database));
    assert_eq!(site.succeed(&[]).await, "1 renewed by 30d\n");
    assert_eq!(site.succeed(&[]).await, "0 renewed by 30d\n");
    let end = format!("SELECT extract(epoch FROM valid_until) FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    let after: f64 = site.database.value(&end).await.and_then(|end| end.parse().ok()).expect("a number");
    assert!((after - before - 30.0 * 86_400.0).abs() < 1e-3, "{before} {after}");
}

#[tokio::test]
async fn programs_read_it_as_json() {
    let site = Site::new().await;
    site.license("2 hours", "true").await;
    site.license("-80 hours", "true").await;
    let told: Value = serde_json::from_str(&site.succeed(&["-o", "json"]).await).expect("JSON");
    let expected = json!({ "renewed": 1, "lapsed": 1, "left": 0, "tidied": 0, "unreadable": 0, "interrupted": false });
    assert_eq!(told, expected);
}
