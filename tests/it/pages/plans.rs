//! docs/plans.md: what the page sells is sold, command by command.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{TENANT, Terminal, section, shows, until};
use crate::harness::world::get;
use crate::harness::{License, Page, RawClient, World};

const PAGE: &str = "docs/plans.md";
const CRM: &str = "/api/v1/crm/customers";
const FIELDOPS: &str = "/api/v1/fieldops/jobs";

#[tokio::test]
async fn plans_are_sold_as_the_page_says() {
    let page = Page::read(PAGE);
    let sold: Value = serde_saphyr::from_str(&page.under("What is sold", "yaml")[0].text).expect("YAML");
    let meter =
        json!({ "match": { "path": "/api/v1/tickets", "methods": ["POST"] }, "feature": "tickets", "meter": {} });
    let world = World::start_with(|builder| {
        builder
            .set("/licenses/change_feed", "listen")
            .set("/usage/flush_interval", "200ms")
            .set("/routes/rules/-", meter)
            .set("/plans", sold["plans"].clone())
    })
    .await;
    world.proxy.live().await;
    let (tenant, other, due) = (Uuid::new_v4(), Uuid::new_v4(), Uuid::new_v4());
    for tenant in [tenant, other] {
        let limits = json!({ "tickets": 100 });
        world.insert(License { usage_limits: limits, ..License::valid(tenant, "starter") }).await;
    }
    world.insert(License { valid_until: "10 hours", ..License::valid(due, "professional") }).await;

    let mut terminal = Terminal::new();
    terminal.stands_for(TENANT, tenant.to_string());
    let config = world.proxy.config_file();
    terminal.desk.set("DOTMAC_LICENSE_CONFIG", config.display().to_string());
    terminal.desk.set("DATABASE_URL", world.database.url());
    terminal.desk.set("REDIS_URL", world.redis.url());
    let mut typed = Vec::new();
    let mut types = async |heading: &str, nth: usize| {
        let block = page.under(heading, "sh")[nth];
        typed.push(block.place.clone());
        terminal.passes(block).await
    };
    let answers = async |path: &str, status: u16| until(status, async || get(&world.proxy, path, tenant).await).await;

    types("Plans, add-ons, renewals: selling with it", 0).await;
    let printed = types("What is sold", 0).await;
    shows(
        &format!("tenant {tenant}\nplan starter\n{other} starter valid … tickets\n{due} professional valid … crm, …"),
        &printed,
    );

    // What the page shows of a 402 is what comes.
    let mut denied = answers(CRM, 402).await.json();
    denied["request_id"] = "…".into();
    let shown: Value =
        serde_json::from_str(&section(&page, "What a customer sees who has not bought it")[0].text).expect("JSON");
    assert_eq!(shown, denied);

    types("Upgrades", 0).await;
    answers(CRM, 200).await;
    types("Downgrades", 0).await;
    answers(CRM, 402).await;

    answers(FIELDOPS, 402).await;
    types("Add-ons", 0).await;
    answers(FIELDOPS, 200).await;
    answers("/api/v1/analytics", 200).await;
    let printed = types("Add-ons", 1).await;
    shows("limits tickets 100 → tickets 150", &printed);
    types("Add-ons", 2).await;
    answers(FIELDOPS, 402).await;
    answers("/api/v1/analytics", 200).await;

    // The plan is edited: nobody has more by that alone.
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let mut edited: Value = serde_json::from_str(&text).expect("JSON");
    edited["plans"][0]["features"] = json!(["crm", "tickets"]);
    std::fs::write(&config, edited.to_string()).expect("written");
    let mut reapply = page.under("A plan changes", "sh")[0].clone();
    typed_alone(&mut reapply, 0);
    shows(
        &format!("{tenant} features: … → … crm…\n2 licences looked at, 2 would change"),
        &terminal.passes(&reapply).await,
    );
    answers(CRM, 402).await;
    shows("2 licences looked at, 2 changed", &types("A plan changes", 0).await);
    answers(CRM, 200).await;
    answers("/api/v1/analytics", 200).await;

    let ends = async |tenant: Uuid| {
        let days = "round(extract(epoch FROM valid_until - timezone('utc', now())) / 86400)";
        world.database.value(&format!("SELECT {days} FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await
    };
    assert_eq!((ends(tenant).await.as_deref(), ends(due).await.as_deref()), (Some("30"), Some("0")));
    let printed = types("Renewals, and the end", 0).await;
    shows("1 would be renewed by 1mon\n1 renewed by 1mon", &printed);
    assert_eq!(ends(tenant).await.as_deref(), Some("60"));
    assert!(matches!(ends(due).await.as_deref(), Some("28" | "29" | "30" | "31")));

    let all: Vec<_> = page.all("sh").iter().map(|block| block.place.clone()).collect();
    assert_eq!(typed, all, "a block that nobody has typed");
    does_it_sell(&page, &world, other).await;
}

/// Leaves one command of a block.
fn typed_alone(block: &mut crate::harness::Block, nth: usize) {
    block.text = super::commands(block)[nth].clone() + "\n";
}

/// The page's queries, over denials, a click and an upgrade that happened.
async fn does_it_sell(page: &Page, world: &World, other: Uuid) {
    let queries = page.under("Does it sell?", "sql");
    let [conversion, by_feature, shadow] = queries[..] else { panic!("{} queries", queries.len()) };
    // Three tenants are denied projects; one of them clicks and buys.
    let buyer = world.tenant("starter").await;
    for tenant in [world.tenant("starter").await, buyer, other] {
        assert_eq!(get(&world.proxy, "/api/v1/projects", tenant).await.status, 402);
    }
    let rows = "SELECT count(*) FROM feature_denial_events WHERE feature_name = 'projects'";
    until_value(world, rows, "3").await;
    let mut client = RawClient::connect(world.proxy.address()).await;
    let (address, body) = (world.proxy.address(), r#"{"feature":"projects"}"#);
    let click = format!(
        "POST /api/v1/license/upgrade-click HTTP/1.1\r\nHost: {address}\r\nX-Tenant-ID: {buyer}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(click).await.expect("sent");
    assert_eq!(client.response().await.status, 204);
    until_value(world, &format!("{rows} AND clicked_upgrade"), "1").await;
    let command = ["license", "set-plan", &buyer.to_string(), "professional", "--actor", "ada", "--reason", "sold"];
    assert!(world.builder.run(&command).await.status.success());

    let of_projects = format!(
        "SELECT * FROM ({}) AS q WHERE feature_name = 'projects'",
        by_feature.text.trim().trim_end_matches(';')
    );
    let row = world.database.value(&format!("SELECT row_to_json(r) FROM ({of_projects}) AS r")).await.expect("a row");
    let row: Value = serde_json::from_str(&row).expect("JSON");
    assert_eq!(row, json!({ "feature_name": "projects", "denied": 3, "clicked": 1, "bought": 1 }));
    let all = world.database.value("SELECT count(*) FROM feature_denial_events").await.expect("a number");
    let rate: f64 = world.database.value(&conversion.text).await.and_then(|text| text.parse().ok()).expect("a share");
    let expected = 1.0 / all.parse::<f64>().expect("a number");
    assert!((rate - expected).abs() < 1e-9, "{rate} and not 1 in {all}");

    let insert = "INSERT INTO shadow_denial_events (id, tenant_id, feature_name, reason, minute, count)
                  VALUES (gen_random_uuid(), gen_random_uuid(), 'crm', 'feature_not_in_plan', now(), 7)";
    world.database.execute(insert).await;
    let requests = format!("SELECT requests FROM ({}) AS q", shadow.text.trim().trim_end_matches(';'));
    assert_eq!(world.database.value(&requests).await.as_deref(), Some("7"));
}

async fn until_value(world: &World, sql: &str, expected: &str) {
    let begun = std::time::Instant::now();
    while world.database.value(sql).await.as_deref() != Some(expected) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(20), "{sql} is not {expected}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
