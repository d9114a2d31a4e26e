//! What a limit means: its values, windows, kinds, and what becomes of it when it changes.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{ask, is_counted, is_written, metered, soon, tenant, window};
use crate::harness::{Proxy, World};

/// How many of so many requests pass.
async fn passed(proxy: &Proxy, attempts: u64, target: &str, tenant: Uuid) -> u64 {
    let mut passed = 0;
    for _ in 0..attempts {
        let answer = ask(proxy, "POST", target, tenant).await;
        assert!(matches!(answer.status, 200 | 402), "{}: {}", answer.status, answer.text());
        passed += u64::from(answer.status == 200);
    }
    passed
}

#[tokio::test]
async fn values() {
    let world = World::start_with(metered).await;
    for (limit, passes) in [
        (json!(0), 0),
        (json!(1), 1),
        (json!(3), 3),
        (json!("3"), 3),
        (json!(3.0), 3),
        (json!(null), 6),
        (json!(-1), 6),
        (json!(true), 6),
        (json!("many"), 6),
        (json!(2.5), 6),
        (json!({}), 6),
        (json!(u64::MAX), 6),
    ] {
        let tenant = tenant(&world, json!({ "tickets": limit })).await;
        assert_eq!(passed(&world.proxy, 6, "/api/v1/tickets", tenant).await, passes, "{limit}");
        is_written(&world, tenant, "tickets", passes).await;
    }
    assert_eq!(world.proxy.metric("dotmac_usage_limits_unreadable_total").await, 24.0);
    // A limit that no request is counted towards is none.
    let tenant = tenant(&world, json!({ "tickets": 0 })).await;
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/tickets", tenant).await.status, 200);
}

/// Each kind of window is a row of its own, from its first day to the day after its last.
#[tokio::test]
async fn windows() {
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({ "tickets": 2, "analytics": 2, "crm": 2, "fieldops": 2 })).await;
    let sql = format!("UPDATE tenant_licenses SET valid_from = '2024-01-31' WHERE tenant_id = '{tenant}'");
    world.database.execute(&sql).await;
    for feature in ["tickets", "analytics", "crm", "fieldops"] {
        assert_eq!(passed(&world.proxy, 4, &format!("/api/v1/{feature}"), tenant).await, 2, "{feature}");
    }
    let row = async |feature: &str, sql: &str| {
        let sql = format!(
            "SELECT concat_ws(' ', window_kind, start_date = ({sql}), end_date) FROM usage_windows
              WHERE tenant_id = '{tenant}' AND feature = '{feature}'"
        );
        world.database.value(&sql).await.expect("a row")
    };
    let today = "timezone('utc', now())::date";
    let text = async |sql: &str| world.database.value(&format!("SELECT {sql}")).await.expect("a date");
    let tomorrow = text(&format!("{today} + 1")).await;
    let next_month = text("(date_trunc('month', timezone('utc', now())) + interval '1 month')::date").await;
    assert_eq!(row("analytics", today).await, format!("day t {tomorrow}"));
    assert_eq!(row("tickets", &format!("date_trunc('month', {today})::date")).await, format!("month t {next_month}"));
    assert_eq!(row("crm", "'0001-01-01'::date").await, "lifetime t infinity");
    // Of the 31st: the last day of a month that has none.
    let last = |months: i32| {
        format!(
            "(date_trunc('month', timezone('utc', now())) + interval '{} months' - interval '1 day')::date",
            months + 1
        )
    };
    let is_last = text(&format!("{today} = {}", last(0))).await == "t";
    // A month of 31 days begins on its 31st, any other on its last.
    let (start, end) = if is_last { (last(0), last(1)) } else { (last(-1), last(0)) };
    assert_eq!(row("fieldops", &start).await, format!("anchored t {}", text(&end).await));
    // What was used in a window before this one counts no longer.
    for (kind, feature) in [("day", "analytics"), ("month", "tickets"), ("anchored", "fieldops")] {
        is_counted(&world, tenant, feature, 2).await;
        let sql = format!(
            "UPDATE usage_windows SET start_date = start_date - 40, end_date = start_date - 9
              WHERE tenant_id = '{tenant}' AND window_kind = '{kind}';
             UPDATE feature_usage SET usage_date = usage_date - 40
              WHERE tenant_id = '{tenant}' AND feature_name = '{feature}'"
        );
        world.database.execute(&sql).await;
        let fresh = world.second_replica().await;
        assert_eq!(passed(&fresh, 4, &format!("/api/v1/{feature}"), tenant).await, 2, "{kind}");
    }
}

/// The day on which anchored windows begin is put down once; neither an upgrade nor a new begin moves it.
#[tokio::test]
async fn an_anchor_stays() {
    let world = World::start_with(|builder| metered(builder).set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let tenant = tenant(&world, json!({ "fieldops": 3 })).await;
    assert_eq!(passed(&world.proxy, 2, "/api/v1/fieldops", tenant).await, 2);
    let anchor =
        async || world.database.value(&format!("SELECT anchor FROM usage_anchors WHERE tenant_id = '{tenant}'")).await;
    let before = anchor().await;
    let id = tenant.to_string();
    let set = ["license", "set-plan", &id, "professional", "--reason", "sold", "--actor", "ops"];
    let set = world.builder.run(&set).await;
    assert!(set.status.success(), "{}", set.stderr);
    let sql = format!(
        "UPDATE tenant_licenses SET valid_from = '2020-02-29', features = '{{\"fieldops\": true}}', plan_tier = 'moved',
                usage_limits = '{{\"fieldops\": 3}}' WHERE tenant_id = '{tenant}'"
    );
    world.database.execute(&sql).await;
    let fresh = world.second_replica().await;
    fresh.live().await;
    for proxy in [&world.proxy, &fresh] {
        soon("the licence is seen", async || {
            let explained = ask(proxy, "GET", "/license", tenant).await;
            explained.json()["planTier"] == "moved"
        })
        .await;
    }
    assert_eq!(passed(&fresh, 2, "/api/v1/fieldops", tenant).await, 1, "it is the same window");
    assert_eq!(passed(&world.proxy, 1, "/api/v1/fieldops", tenant).await, 0);
    assert_eq!(anchor().await, before);
    let windows = format!("SELECT count(*) FROM usage_windows WHERE tenant_id = '{tenant}' AND feature = 'fieldops'");
    assert_eq!(world.database.value(&windows).await.as_deref(), Some("1"));
}

/// What was used before there was a limit counts, as soon as there is one.
#[tokio::test]
async fn a_limit_that_comes_later() {
    let world = World::start_with(|builder| metered(builder).set("/licenses/change_feed", "listen")).await;
    world.proxy.live().await;
    let tenant = tenant(&world, json!({})).await;
    assert_eq!(passed(&world.proxy, 7, "/api/v1/tickets", tenant).await, 7);
    is_counted(&world, tenant, "tickets", 7).await;
    assert_eq!(window(&world.database, tenant, "tickets").await, (0, 0));
    limit(&world, tenant, "10").await;
    let mut served = 7;
    while ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status == 200 {
        served += 1;
    }
    // What is not written yet when the limit comes may go beyond it, and is counted all the same.
    assert!((10..30).contains(&served), "{served}");
    is_counted(&world, tenant, "tickets", served).await;
    soon("all of it is in the window", async || window(&world.database, tenant, "tickets").await == (served, 0)).await;
}

/// Beyond a soft limit requests go on, marked for the backend and for the client, and counted.
#[tokio::test]
async fn soft() {
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({ "projects": 3 })).await;
    for attempt in 1..=6 {
        let answer = ask(&world.proxy, "GET", "/api/v1/projects", tenant).await;
        assert_eq!(answer.status, 200);
        let left = 3_i32.saturating_sub(attempt).max(0);
        let rate = answer.header("RateLimit").expect("a limit").to_owned();
        assert!(rate.starts_with(&format!("\"projects\";r={left};t=")), "{attempt}: {rate}");
        let marked = world.upstream.last().header("X-License-Over-Limit").map(str::to_owned);
        assert_eq!(marked.as_deref(), (attempt > 3).then_some("projects"), "{attempt}");
    }
    is_counted(&world, tenant, "projects", 6).await;
    soon("all of it is in the window", async || window(&world.database, tenant, "projects").await == (6, 0)).await;
    let beyond = world.proxy.metrics().await.value("dotmac_usage_beyond_limit_total", &[("feature", "projects")]);
    assert_eq!(beyond, Some(3.0));
    // A client can't say that of itself.
    let forged = [("X-Tenant-ID", &*tenant.to_string()), ("X-License-Over-Limit", "crm")];
    crate::harness::client::request(world.proxy.address(), "GET", "/api/v1/crm", &forged).await;
    assert_eq!(world.upstream.last().header("X-License-Over-Limit"), None);
}

async fn limit(world: &World, tenant: Uuid, limit: &str) {
    let sql = format!(
        "UPDATE tenant_licenses SET usage_limits = jsonb_set(usage_limits, '{{tickets}}', '{limit}')
          WHERE tenant_id = '{tenant}'"
    );
    world.database.execute(&sql).await;
}

/// From when on `proxy` answers so.
async fn answers(proxy: &Proxy, tenant: Uuid, wanted: u16, since: Instant) -> Duration {
    loop {
        let answer = ask(proxy, "POST", "/api/v1/tickets", tenant).await;
        if answer.status == wanted {
            return since.elapsed();
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{}: {}", answer.status, answer.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// More of a limit acts at once, however it is given: by SQL, by an upgrade through the proxy, by a command.
#[tokio::test]
async fn raised() {
    let world = World::start_with(|builder| {
        metered(builder)
            .set("/licenses/change_feed", "listen")
            .set("/plans/0/limits", json!({ "tickets": 5 }))
            .set("/plans/1/limits", json!({ "tickets": 50 }))
            .set("/upgrade", json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } }))
    })
    .await;
    let other = world.second_replica().await;
    for proxy in [&world.proxy, &other] {
        proxy.live().await;
    }
    let tenant = Uuid::new_v4();
    let license = crate::harness::License::valid(tenant, "starter");
    world.insert(crate::harness::License { usage_limits: json!({ "tickets": 5 }), ..license }).await;
    assert_eq!(passed(&world.proxy, 8, "/api/v1/tickets", tenant).await, 5);
    assert_eq!(passed(&other, 2, "/api/v1/tickets", tenant).await, 0);

    let mut heard = Vec::new();
    let since = Instant::now();
    limit(&world, tenant, "20").await;
    heard.push(("SQL", answers(&world.proxy, tenant, 200, since).await, answers(&other, tenant, 200, since).await));
    soon("used up again", async || passed(&world.proxy, 20, "/api/v1/tickets", tenant).await == 0).await;
    assert_eq!(passed(&other, 3, "/api/v1/tickets", tenant).await, 0);

    let since = Instant::now();
    let (id, body) = (tenant.to_string(), r#"{"new_plan":"professional"}"#);
    let mut client = crate::harness::RawClient::connect(world.proxy.address()).await;
    let head = format!(
        "POST /api/v1/license/upgrade HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {id}\r\nX-User-Role: owner\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head).await.expect("sent");
    let upgraded = client.response().await;
    assert_eq!(upgraded.status, 200, "{}", upgraded.text());
    assert_eq!(upgraded.json()["usageLimits"]["tickets"], 50);
    let next = ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
    assert_eq!(next.status, 200, "the very next request: {}", next.text());
    heard.push(("upgrade", since.elapsed(), answers(&other, tenant, 200, since).await));
    soon("used up again", async || passed(&other, 60, "/api/v1/tickets", tenant).await == 0).await;
    soon("here too", async || passed(&world.proxy, 5, "/api/v1/tickets", tenant).await == 0).await;

    let since = Instant::now();
    let grant = ["license", "grant", &id, "tickets", "--limit-delta", "7", "--reason", "goodwill", "--actor", "ops"];
    let granted = world.builder.run(&grant).await;
    assert!(granted.status.success(), "{}{}", granted.stdout, granted.stderr);
    let done = since.elapsed();
    heard.push(("grant", answers(&world.proxy, tenant, 200, since).await, answers(&other, tenant, 200, since).await));
    println!("a raised limit acts: {heard:?}; the command took {done:?}");
    for (how, here, there) in heard {
        let bound = Duration::from_millis(1_500) + if how == "grant" { done } else { Duration::ZERO };
        assert!(here < bound && there < bound, "{how}: {here:?} {there:?}");
    }
    soon("to the last one", async || {
        passed(&other, 5, "/api/v1/tickets", tenant).await + passed(&world.proxy, 5, "/api/v1/tickets", tenant).await
            == 0
    })
    .await;
    is_counted(&world, tenant, "tickets", 57).await;
}

/// A lower limit holds at once too: what was leased under the higher one is not used.
#[tokio::test]
async fn lowered() {
    let world = World::start_with(|builder| metered(builder).set("/licenses/change_feed", "listen")).await;
    let other = world.second_replica().await;
    for proxy in [&world.proxy, &other] {
        proxy.live().await;
    }
    let tenant = tenant(&world, json!({ "tickets": 100_000 })).await;
    for proxy in [&world.proxy, &other] {
        assert_eq!(passed(proxy, 10, "/api/v1/tickets", tenant).await, 10);
    }
    let since = Instant::now();
    limit(&world, tenant, "15").await;
    for proxy in [&world.proxy, &other] {
        let took = answers(proxy, tenant, 402, since).await;
        println!("a lowered limit holds after {took:?}");
        assert!(took < Duration::from_millis(1_500), "{took:?}");
    }
    // Some that asked may have come before the news.
    soon("all is given back", async || window(&world.database, tenant, "tickets").await.1 == 0).await;
    let (used, _) = window(&world.database, tenant, "tickets").await;
    assert!((20..30).contains(&used), "{used}");
    is_counted(&world, tenant, "tickets", used).await;
    limit(&world, tenant, "0").await;
    let since = Instant::now();
    answers(&world.proxy, tenant, 402, since).await;
    // And up again, where it is: nothing was lost on the way.
    soon("all is given back", async || window(&world.database, tenant, "tickets").await.1 == 0).await;
    limit(&world, tenant, &(used + 6).to_string()).await;
    answers(&world.proxy, tenant, 200, Instant::now()).await;
    assert_eq!(passed(&world.proxy, 9, "/api/v1/tickets", tenant).await, 5);
}
