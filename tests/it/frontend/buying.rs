//! From a 402 to the upgrade and the same call as a 200, by what a visitor sees, clicks and types.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use super::{LIMIT, Site, history, set};
use crate::harness::{Reply, Tab, Upstream};

/// Whether every denial of the feature was followed, and how many there are.
fn followed(tenant: Uuid) -> String {
    format!(
        "SELECT bool_and(clicked_upgrade) || ' ' || sum(count) FROM feature_denial_events \
         WHERE tenant_id = '{tenant}' AND feature_name = 'crm'"
    )
}

/// The status that the portal says a call came to.
async fn outcome(tab: &Tab, action: &str, status: u16) {
    let js = "([action, status]) => document.querySelector(`output[aria-label='Outcome of: ${action}']`)?.dataset.status === status";
    tab.wait_until(js, json!([action, status.to_string()]), LIMIT).await;
}

async fn accessible(tab: &Tab, what: &str) {
    let violations = tab.accessibility().await;
    assert!(violations.is_empty(), "{what}: {violations:#?}");
}

/// Nothing but the refusals themselves, which browsers list as errors.
async fn clean(tab: &Tab) {
    let problems = tab.problems().await;
    let others: Vec<_> = problems.iter().filter(|problem| !problem.contains("status of 402")).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[tokio::test]
async fn a_denial_leads_to_an_upgrade_and_the_same_call_passes() {
    let site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    let tab = site.open(tenant, "/").await;
    accessible(&tab, "the dashboard").await;
    tab.click("button", "Look up customers").await;
    outcome(&tab, "Look up customers", 402).await;
    let prompt = tab.text(".dotmac-payment-required").await;
    for expected in ["CRM is not in your plan", "Professional or Enterprise", "See plans with CRM", "Not now"] {
        assert!(prompt.contains(expected), "{expected}: {prompt}");
    }
    let said = "() => document.querySelector('[role=alert]').textContent.includes('CRM is not in your plan')";
    assert_eq!(tab.evaluate(said, ()).await, true, "screen readers say it");
    accessible(&tab, "the prompt").await;
    site.world.database.becomes(&followed(tenant), "false 1").await;

    tab.click("link", "See plans with CRM").await;
    tab.wait_for_text("Plans with CRM").await;
    assert_eq!(tab.url().await, site.url("/billing/upgrade?feature=crm"));
    site.world.database.becomes(&followed(tenant), "true 1").await;
    accessible(&tab, "the plans").await;
    assert_eq!(tab.count("button", "Change to starter").await, 0, "what one has is not for sale");
    tab.click("button", "Change to professional").await;
    tab.wait_for_text("Your plan is professional now.").await;
    assert_eq!(tab.count("link", "See plans with CRM").await, 0, "the prompt is gone");
    let bought = set(&["crm", "tickets", "projects", "analytics"]);
    site.shows(&tab, tenant, &bought, Instant::now(), "the plan is bought").await;

    tab.click("link", "Dashboard").await;
    tab.click("button", "Look up customers").await;
    outcome(&tab, "Look up customers", 200).await;
    tab.click("link", "CRM").await;
    tab.wait_for_text("/api/v1/crm → 200").await;
    accessible(&tab, "a module").await;
    assert_eq!(history(&tab).await, [set(&["tickets"]), bought], "without a reload");
    clean(&tab).await;
    let plan = format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    assert_eq!(site.world.database.value(&plan).await.as_deref(), Some("professional"));
    site.world.database.becomes(&format!(
            "SELECT count(*)::text FROM feature_denial_events WHERE tenant_id = '{tenant}' AND upgraded_at IS NOT NULL"
        ),
        "1",
    )
    .await;
}

/// Nobody touches a mouse.
#[tokio::test]
async fn the_way_to_an_upgrade_goes_by_the_keyboard_alone() {
    let site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    let tab = site.open(tenant, "/crm").await;
    tab.wait_for_text("CRM is not in your plan").await;
    accessible(&tab, "a gate").await;
    let focused = "() => document.activeElement?.textContent?.trim() ?? ''";
    let reach = async |name: &str| {
        for _ in 0..40 {
            tab.press("Tab").await;
            if tab.evaluate(focused, ()).await == name {
                return;
            }
        }
        panic!("{name} can't be reached by Tab");
    };
    reach("See plans with CRM").await;
    tab.press("Enter").await;
    tab.wait_for_text("Plans with CRM").await;
    reach("Change to enterprise").await;
    tab.press("Space").await;
    tab.wait_for_text("Your plan is enterprise now.").await;
    reach("Go to CRM").await;
    tab.press("Enter").await;
    tab.wait_for_text("/api/v1/crm → 200").await;
    clean(&tab).await;
}

/// The page that sells is somebody else's, and the portal is left for it at the same moment.
#[tokio::test]
async fn a_click_counts_where_plans_are_sold_elsewhere() {
    let shop = Upstream::start();
    let html = vec![("Content-Type", "text/html".to_owned())];
    shop.on("/buy", Reply::Full { status: 200, headers: html, body: Bytes::from_static(b"<p>the shop</p>") });
    let url = format!("http://{}/buy?feature={{feature}}", shop.address());
    let site = Site::start_with(|builder| builder.set("/deny", json!({ "upgrade_url": url }))).await;
    let tenant = site.world.tenant("starter").await;
    let tab = site.open(tenant, "/").await;
    tab.click("button", "Look up customers").await;
    outcome(&tab, "Look up customers", 402).await;
    tab.click("link", "See plans with CRM").await;
    tab.wait_for_text("the shop").await;
    assert_eq!(tab.url().await, format!("http://{}/buy?feature=crm", shop.address()));
    site.world.database.becomes(&followed(tenant), "true 1").await;
}

/// A limit is used up before everyone's eyes, and a higher one ends that.
#[tokio::test]
async fn a_limit_that_is_used_up_is_said_and_an_upgrade_lifts_it() {
    let plan = json!({ "name": "starter", "features": ["tickets"], "limits": { "tickets": 3 } });
    let site = Site::start_with(|builder| {
        builder.set("/routes/rules/4/meter", json!({ "limit": "hard" })).set("/plans/0", plan)
    })
    .await;
    let tenant = site.world.tenant("starter").await;
    let limit = format!("UPDATE tenant_licenses SET usage_limits = '{{\"tickets\": 3}}' WHERE tenant_id = '{tenant}'");
    site.world.database.execute(&limit).await;
    let tab = site.open(tenant, "/").await;
    tab.wait_for_text("Tickets this period: 0 of 3").await;
    for opened in 1..=3 {
        tab.click("button", "Open a ticket").await;
        let deadline = Instant::now() + LIMIT;
        while tab.requests("/api/v1/tickets").await.len() < opened {
            assert!(Instant::now() < deadline, "ticket {opened} is not answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        outcome(&tab, "Open a ticket", 200).await;
    }
    // Told, before anyone is refused.
    tab.wait_for_text("Support is used up").await;
    tab.wait_for_text("Tickets this period: 3 of 3").await;
    accessible(&tab, "a limit").await;
    tab.click("button", "Open a ticket").await;
    tab.wait_until("() => document.querySelector('.dotmac-payment-required')", (), LIMIT).await;
    let prompt = tab.text(".dotmac-payment-required").await;
    for expected in ["The limit of 3 for Support is used up.", "Counting begins anew on", "Professional or Enterprise"]
    {
        assert!(prompt.contains(expected), "{expected}: {prompt}");
    }
    tab.press("Escape").await;
    tab.wait_until("() => !document.querySelector('.dotmac-payment-required')", (), LIMIT).await;
    tab.click("link", "See plans with Support").await;
    tab.click("button", "Change to professional").await;
    tab.wait_for_text("Your plan is professional now.").await;
    tab.click("link", "Dashboard").await;
    assert_eq!(tab.count("link", "See plans with Support").await, 0);
    tab.click("button", "Open a ticket").await;
    outcome(&tab, "Open a ticket", 200).await;
    clean(&tab).await;
}
