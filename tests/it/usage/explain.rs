//! `explain` for requests that are counted: it tells what is left and what would change it, and uses nothing up.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{FLUSH, ask, is_counted, metered, soon, tenant, window};
use crate::harness::{ProxyBuilder, World};

async fn explain(builder: &ProxyBuilder, tenant: Uuid, arguments: &[&str]) -> (Value, Option<i32>) {
    let tenant = tenant.to_string();
    let ended = builder.run(&[&["explain", "-o", "json", "--tenant", &tenant], arguments].concat()).await;
    let said = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}{}", ended.stdout, ended.stderr));
    assert_eq!(ended.stderr, "", "nothing is wrong");
    (said, ended.status.code())
}

const TICKETS: [&str; 3] = ["--method", "POST", "/api/v1/tickets"];

fn selling(builder: ProxyBuilder) -> ProxyBuilder {
    metered(builder)
        .set("/plans/0/limits", json!({ "tickets": 3 }))
        .set("/plans/1/limits", json!({ "tickets": 10 }))
        .set("/plans/2/limits", json!({ "tickets": 500 }))
}

#[tokio::test]
async fn it_tells_limits_and_uses_nothing() {
    let world = World::start_with(selling).await;
    let tenant = tenant(&world, json!({ "tickets": 3, "projects": 1 })).await;
    for used in 0..3 {
        for _ in 0..2 {
            let (said, code) = explain(&world.builder, tenant, &TICKETS).await;
            assert_eq!((&said["decision"], code), (&json!("allowed"), Some(0)), "{said:#}");
            let usage = &said["usage"][0];
            let of = (&usage["feature"], &usage["limit"], &usage["used"], &usage["window"]);
            assert_eq!(of, (&json!("tickets"), &json!(3), &json!(used), &json!("month")), "{said:#}");
            assert!(usage["resets_at"].is_string());
            soon("it has given back what it took", async || {
                window(&world.database, tenant, "tickets").await == (used, 0)
            })
            .await;
        }
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
        is_counted(&world, tenant, "tickets", used + 1).await;
        soon("it is settled", async || window(&world.database, tenant, "tickets").await == (used + 1, 0)).await;
    }
    let (said, code) = explain(&world.builder, tenant, &TICKETS).await;
    assert_eq!((&said["decision"], &said["reason"], code), (&json!("denied"), &json!("usage_limit_exceeded"), Some(3)));
    assert_eq!((&said["usage"][0]["limit"], &said["usage"][0]["used"]), (&json!(3), &json!(3)), "{said:#}");
    assert_eq!((&said["answer"]["limit"], &said["status"]), (&json!(3), &json!(402)));
    let remedies: Vec<_> = said["remedies"].as_array().expect("a list").iter().collect();
    let commands: Vec<_> = remedies.iter().filter_map(|remedy| remedy["command"].as_str()).collect();
    let command = |text: &str| format!("dotmac-license-proxy license {text} --reason '…'");
    assert_eq!(
        commands,
        [
            command(&format!("set-plan {tenant} professional")),
            command(&format!("set-plan {tenant} enterprise")),
            command(&format!("grant {tenant} tickets --limit-delta 100")),
        ]
    );
    assert!(
        remedies.last().is_some_and(|last| last["what"].as_str().is_some_and(|what| what.starts_with("wait until ")))
    );
    // One of these does what it says: what the plan allows by now, and so many more.
    let id = tenant.to_string();
    let grant = ["license", "grant", &id, "tickets", "--limit-delta", "100", "--reason", "…", "--actor", "ops"];
    let granted = world.builder.run(&grant).await;
    assert!(granted.status.success(), "{}", granted.stderr);
    let (said, code) = explain(&world.builder, tenant, &TICKETS).await;
    assert_eq!((&said["usage"][0]["limit"], &said["usage"][0]["used"], code), (&json!(600), &json!(3), Some(0)));

    // Soft, unlimited, and not counted at all.
    ask(&world.proxy, "GET", "/api/v1/projects", tenant).await;
    soon("it is used up", async || window(&world.database, tenant, "projects").await.0 == 1).await;
    let (said, _) = explain(&world.builder, tenant, &["/api/v1/projects"]).await;
    assert_eq!((&said["decision"], &said["usage"][0]["used"]), (&json!("allowed"), &json!(1)), "{said:#}");
    let (said, _) = explain(&world.builder, tenant, &["/api/v1/crm"]).await;
    assert_eq!((&said["usage"][0]["feature"], &said["usage"][0]["limit"]), (&json!("crm"), &Value::Null), "{said:#}");
    let (said, _) = explain(&world.builder, tenant, &["/api/v1/tickets"]).await;
    assert_eq!(said["usage"], json!([]), "{said:#}");
    tokio::time::sleep(3 * FLUSH).await;
    is_counted(&world, tenant, "tickets", 3).await;
    is_counted(&world, tenant, "projects", 1).await;
    assert_eq!(world.database.value("SELECT count(*) FROM feature_denial_events").await.as_deref(), Some("0"));

    let text = world.builder.run(&[&["explain", "--tenant", &id], &TICKETS[..]].concat()).await.stdout;
    assert!(text.contains("usage     tickets: 3 of 600 used, window month, until "), "{text}");
}

/// Where nothing but a replica for reading is named, it says what is written, and writes nothing.
#[tokio::test]
async fn it_works_without_a_primary() {
    let world = World::start_with(selling).await;
    let tenant = tenant(&world, json!({ "tickets": 2 })).await;
    let reading = world
        .builder
        .clone()
        .set("/licenses/change_feed", "none")
        .env("DOTMAC_LICENSE_DATABASE_URL", "")
        .env("LICENSE_DB_URL", world.database.url());
    let begun = std::time::Instant::now();
    for used in 0..3 {
        let (said, code) = explain(&reading, tenant, &TICKETS).await;
        let expected = if used < 2 { ("allowed", Some(0)) } else { ("denied", Some(3)) };
        assert_eq!((said["decision"].as_str(), code), (Some(expected.0), expected.1), "{said:#}");
        assert_eq!((&said["usage"][0]["limit"], &said["usage"][0]["used"]), (&json!(2), &json!(used)), "{said:#}");
        ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
        is_counted(&world, tenant, "tickets", (used + 1).min(2)).await;
    }
    assert!(begun.elapsed() < super::SOON);
    // To serve would be to count into nothing.
    let ended = match reading.try_start().await {
        Err(ended) => ended,
        Ok(_) => panic!("it serves"),
    };
    assert!(ended.stderr.contains("rules have a `meter`"), "{}", ended.stderr);
}
