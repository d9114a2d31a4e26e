//! docs/support.md: each reason is produced for real; the page's commands show why, and what it advises ends in a 200.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::{TENANT, Terminal, reason, section, shows, until};
use crate::harness::{Block, License, Page, Proxy, RawResponse, World, client};

const PAGE: &str = "docs/support.md";
const CRM: (&str, &str) = ("GET", "/api/v1/crm/customers");
const NEW_TICKET: (&str, &str) = ("POST", "/api/v1/tickets");

/// The reasons that a change of a licence helps against.
const OF_LICENCES: [&str; 5] =
    ["feature_not_in_plan", "no_license", "license_expired", "license_not_yet_valid", "usage_limit_exceeded"];

async fn site(change: impl FnOnce(crate::harness::ProxyBuilder) -> crate::harness::ProxyBuilder) -> World {
    let meter =
        json!({ "match": { "path": "/api/v1/tickets", "methods": ["POST"] }, "feature": "tickets", "meter": {} });
    let world = World::start_with(|builder| {
        change(
            builder
                .set("/licenses/change_feed", "listen")
                .set("/usage/flush_interval", "200ms")
                .set("/plans/0/limits", json!({ "tickets": 2 }))
                .set("/routes/rules/-", meter)
                .set("/routes/rules/-", json!({ "prefix": "/internal", "access": "deny" })),
        )
    })
    .await;
    world.proxy.live().await;
    world
}

/// A terminal that reaches this proxy, and the page's first block typed in it.
async fn terminal(page: &Page, world: &World, proxy: &Proxy, tenant: Uuid) -> Terminal {
    let mut terminal = Terminal::new();
    terminal.stands_for(TENANT, tenant.to_string());
    terminal.desk.set("DOTMAC_LICENSE_CONFIG", proxy.config_file().display().to_string());
    terminal.desk.set("DATABASE_URL", world.database.url().replace("postgres://", "postgresql+asyncpg://"));
    terminal.desk.set("REDIS_URL", world.redis.url());
    terminal.desk.set("OPS", proxy.ops_url());
    terminal.passes(page.under("First", "sh")[0]).await;
    terminal
}

async fn ask(proxy: &Proxy, (method, target): (&str, &str), tenant: Option<&str>) -> RawResponse {
    let header = tenant.map(|tenant| ("X-Tenant-ID", tenant));
    client::request(proxy.address(), method, target, header.as_slice()).await
}

/// Asks for what is refused, for this reason.
async fn refused(proxy: &Proxy, what: (&str, &str), tenant: Option<&str>, expected: &str) -> RawResponse {
    let answer = ask(proxy, what, tenant).await;
    assert_eq!(reason(&answer), expected, "{what:?} of {tenant:?}: {} {}", answer.status, answer.text());
    let named = answer.header("Proxy-Status").unwrap_or_default();
    assert!(named.starts_with("dotmac-license-proxy;"), "the page tells the gate's refusals by it: {named}");
    let row = format!("| [{expected}](#{expected}) | {} | ", answer.status);
    assert!(text().contains(&row), "the page's table does not say: {row}");
    answer
}

fn text() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/support.md")).expect("the page")
}

/// Whether a block changes something.
fn is_fix(block: &Block) -> bool {
    block.language == "sh" && (block.text.contains("--reason") || block.text.contains("UPDATE"))
}

/// Types the blocks of a section that look, and compares with what the page shows below each.
async fn looks(terminal: &Terminal, blocks: &[&Block]) -> usize {
    let mut printed = None;
    let mut typed = 0;
    for block in blocks {
        match block.language.as_str() {
            "sh" if !is_fix(block) => {
                let ended = terminal.types(block).await;
                printed = Some(ended.stdout + &ended.stderr);
                typed += 1;
            }
            "text" => {
                let printed = printed.as_deref().expect("something was typed before");
                shows(&terminal.here(&block.text), printed);
            }
            _ => {}
        }
    }
    typed
}

/// What the proxy knows: the reasons in its metrics, present from the start.
#[tokio::test]
async fn every_reason_has_a_section_and_every_section_a_reason() {
    let world = World::start().await;
    let metrics = world.proxy.metrics().await;
    let denials = metrics.named("dotmac_feature_denials_total");
    let reasons: BTreeSet<String> = denials.iter().map(|sample| sample.labels["reason"].clone()).collect();
    assert!(reasons.len() >= 11, "{reasons:?}");

    let text = text();
    let headings = text.lines().filter_map(|line| line.strip_prefix("## ")).filter(|heading| *heading != "First");
    assert_eq!(headings.map(str::to_owned).collect::<BTreeSet<_>>(), reasons);
    let links = text.lines().filter_map(|line| line.strip_prefix("| [")?.split(']').next());
    assert_eq!(links.map(str::to_owned).collect::<BTreeSet<_>>(), reasons, "the table");
    // The other tests here type what stands under these headings, all of it.
    let page = Page::read(PAGE);
    for block in page.all("sh") {
        assert!(block.heading == "First" || reasons.contains(&block.heading), "{}", block.place);
    }
}

/// A tenant who is refused for this reason, such that this advice is the right one.
async fn tenant_with(world: &World, reason: &str, advice: &Block) -> Uuid {
    let tenant = Uuid::new_v4();
    let professional = License::valid(tenant, "professional");
    match reason {
        "feature_not_in_plan" if advice.text.contains("reapply-plan") => {
            world.insert(License { features: json!({ "tickets": true }), ..professional }).await;
        }
        "feature_not_in_plan" => world.insert(License::valid(tenant, "starter")).await,
        "no_license" => {
            let sql = "CREATE TABLE IF NOT EXISTS tenants (id uuid PRIMARY KEY)";
            world.database.execute(&format!("{sql}; INSERT INTO tenants VALUES ('{tenant}')")).await;
        }
        "license_expired" => {
            let lapsed = advice.text.contains("--lapsed");
            let valid_until = if lapsed { "-10 days" } else { "-1 hour" };
            let license = License { valid_from: "-40 days", valid_until, auto_renew: lapsed, ..professional };
            world.insert(license).await;
        }
        "license_not_yet_valid" => world.insert(License { valid_from: "1 day", ..professional }).await,
        "usage_limit_exceeded" => {
            world.insert(License { usage_limits: json!({ "tickets": 2 }), ..License::valid(tenant, "starter") }).await;
            for _ in 0..2 {
                assert_eq!(ask(&world.proxy, NEW_TICKET, Some(&tenant.to_string())).await.status, 200);
            }
        }
        other => panic!("no licence helps against {other}"),
    }
    tenant
}

#[tokio::test]
async fn what_a_licence_changes_is_a_200_after_the_pages_commands() {
    let page = Page::read(PAGE);
    let world = site(|builder| builder).await;
    for expected in OF_LICENCES {
        let what = if expected == "usage_limit_exceeded" { NEW_TICKET } else { CRM };
        let blocks = section(&page, expected);
        let fixes: Vec<_> = blocks.iter().filter(|block| is_fix(block)).collect();
        assert!(!fixes.is_empty(), "{expected} has no advice");
        for (index, fix) in fixes.iter().enumerate() {
            let tenant = tenant_with(&world, expected, fix).await;
            let id = tenant.to_string();
            let terminal = terminal(&page, &world, &world.proxy, tenant).await;
            refused(&world.proxy, what, Some(&id), expected).await;
            if index == 0 {
                assert!(looks(&terminal, &blocks).await > 0, "{expected} has nothing to look at");
                refused(&world.proxy, what, Some(&id), expected).await;
            }
            terminal.passes(fix).await;
            until(200, async || ask(&world.proxy, what, Some(&id)).await).await;
        }
        println!("{expected}: {} ways out", fixes.len());
    }
    let actors = "SELECT string_agg(DISTINCT actor, ' ') FROM license_audit";
    assert_eq!(world.database.value(actors).await.as_deref(), Some("ada"), "the audit has the name of who typed");
}

#[tokio::test]
async fn what_is_done_first_finds_the_customer_and_the_reason() {
    let page = Page::read(PAGE);
    let world = site(|builder| builder).await;
    let tenant = world.tenant("starter").await;
    let mut terminal = terminal(&page, &world, &world.proxy, tenant).await;
    let denied = refused(&world.proxy, CRM, Some(&tenant.to_string()), "feature_not_in_plan").await;
    let request_id = denied.header("X-Request-ID").expect("each answer has one").to_owned();
    world.proxy.wait_for_log(|line| line["request_id"] == *request_id).await;
    terminal.desk.set("REQUEST_ID", request_id.clone());

    let blocks = page.under("First", "sh");
    let [_, by_request, by_tenant, explain] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    let line = logged(&terminal, &world.proxy, by_request).await;
    let line: Value = serde_json::from_str(line.trim()).unwrap_or_else(|error| panic!("{error}: {line}"));
    assert_eq!((&line["tenant_id"], &line["path"]), (&json!(tenant), &json!(CRM.1)));
    assert_eq!((&line["reason"], &line["request_id"]), (&json!("feature_not_in_plan"), &json!(request_id)));

    let recorded = async || world.database.value("SELECT count(*) FROM feature_denial_events").await;
    while recorded().await.as_deref() != Some("1") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shows("… | crm | feature_not_in_plan | 1", &terminal.passes(by_tenant).await);

    let ended = terminal.types(explain).await;
    assert_eq!(ended.status.code(), Some(3), "{ended:?}");
    assert!(ended.stdout.starts_with("denied with 402, feature_not_in_plan\n"), "{ended:?}");

    // The way out for everyone at once.
    let config = std::fs::read_to_string(world.proxy.config_file()).expect("the configuration");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["enforcement"] = json!({ "mode": "shadow" });
    std::fs::write(world.proxy.config_file(), config.to_string()).expect("written");
    until(200, async || ask(&world.proxy, CRM, Some(&tenant.to_string())).await).await;
}

/// Types a block that reads the access log by `kubectl logs`.
async fn logged(terminal: &Terminal, proxy: &Proxy, block: &Block) -> String {
    terminal.desk.write("container.log", &proxy.stdout());
    let logs = "kubectl() { [[ $1 == logs ]] && cat \"$DESK/container.log\"; }";
    let text = format!("{logs}\n{}\nunset -f kubectl", block.text);
    terminal.passes(&Block { text, ..block.clone() }).await
}

#[tokio::test]
async fn what_no_licence_changes_is_shown_by_the_pages_commands() {
    let page = Page::read(PAGE);
    let world = site(|builder| builder.set("/routes/ambiguous", "refuse")).await;
    let tenant = world.tenant("professional").await;
    let id = tenant.to_string();
    let terminal = terminal(&page, &world, &world.proxy, tenant).await;
    let typed = async |reason: &str, wanted: usize| {
        let blocks = section(&page, reason);
        assert_eq!(looks(&terminal, &blocks).await, wanted, "{reason}");
    };

    refused(&world.proxy, ("GET", "/api/v1/crm/%zz"), Some(&id), "request_malformed").await;
    typed("request_malformed", 1).await;
    refused(&world.proxy, ("GET", "/api/v1/tickets/%2e%2e/crm"), Some(&id), "request_ambiguous").await;
    typed("request_ambiguous", 1).await;
    refused(&world.proxy, ("GET", "/internal/metrics"), Some(&id), "route_denied").await;
    typed("route_denied", 1).await;

    refused(&world.proxy, CRM, Some("acme"), "tenant_invalid").await;
    world.proxy.wait_for_log(|line| line["reason"] == "tenant_invalid").await;
    let blocks = section(&page, "tenant_invalid");
    assert_eq!(blocks.len(), 1);
    let lines = logged(&terminal, &world.proxy, blocks[0]).await;
    assert!(lines.lines().count() == 1 && lines.contains(CRM.1), "{lines}");
}

/// A gateway whose address is not trusted: the page shows the two addresses, and what it advises helps.
#[tokio::test]
async fn a_gateway_that_has_moved() {
    let page = Page::read(PAGE);
    let world = site(|builder| builder.set("/trusted_proxies", json!(["10.1.0.0/16"]))).await;
    let tenant = world.tenant("professional").await;
    let id = tenant.to_string();
    let answer = refused(&world.proxy, CRM, Some(&id), "tenant_missing").await;
    assert!(answer.header("WWW-Authenticate").is_some());
    let terminal = terminal(&page, &world, &world.proxy, tenant).await;
    let blocks = section(&page, "tenant_missing");
    let printed = terminal.passes(blocks[0]).await;
    assert!(blocks.len() == 1 && printed.contains("10.1.0.0/16") && !printed.contains("127.0.0"), "{printed}");

    let file = world.proxy.config_file();
    let config = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, config.replace("10.1.0.0/16", "127.0.0.0/8")).expect("written");
    until(200, async || ask(&world.proxy, CRM, Some(&id)).await).await;
}

#[tokio::test]
async fn no_store_answers() {
    let page = Page::read(PAGE);
    let world = site(|builder| builder.set("/licenses/on_failure", "deny")).await;
    let tenant = world.tenant("professional").await;
    let terminal = terminal(&page, &world, &world.proxy, tenant).await;
    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    let denied = until(503, async || ask(&world.proxy, CRM, Some(&tenant.to_string())).await).await;
    assert_eq!(reason(&denied), "store_unavailable");
    assert!(denied.header("Retry-After").is_some());
    // The breaker opens with what fails, so there is a request now and then.
    let open = async || {
        ask(&world.proxy, CRM, Some(&tenant.to_string())).await;
        let metrics = world.proxy.metrics().await;
        metrics.value("dotmac_store_breaker_state", &[("store", "postgres")]) == Some(2.0)
    };
    while !open().await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused(&world.proxy, CRM, Some(&tenant.to_string()), "store_unavailable").await;
    let blocks = section(&page, "store_unavailable");
    assert_eq!(looks(&terminal, &blocks).await, 1);
    shows("dotmac_store_breaker_state{store=\"postgres\"} 2", &terminal.passes(blocks[0]).await);

    // What the page advises for the time being.
    let file = world.proxy.config_file();
    let config = std::fs::read_to_string(&file).expect("the configuration");
    let config = config.replace("\"on_failure\": \"deny\"", "\"on_failure\": \"allow\"");
    assert!(config.contains("\"allow\""));
    std::fs::write(&file, config).expect("written");
    until(200, async || ask(&world.proxy, CRM, Some(&tenant.to_string())).await).await;
}
