//! Several tabs, tabs that slept, and pages that hear nothing of their own.

use std::time::{Duration, Instant};

use super::{LIMIT, PROMISED, RECOVERED, Site, WATCH, connected, history, set, shown};

/// A page behind something that lets no WebSocket through.
const NO_WEBSOCKET: &str = "window.WebSocket = class {
    constructor() { setTimeout(() => this.onclose?.({ code: 1006 }), 10); }
    send() {}
    close() {}
};";

/// A connection that seems to be there, and on which nothing ever comes: the other end is gone without a word.
const DEAF: &str = "window.WebSocket = class {
    constructor() { setTimeout(() => this.onopen?.(), 10); }
    send() {}
    close() {}
};";

fn grant(tenant: uuid::Uuid, features: &str) -> String {
    format!("UPDATE tenant_licenses SET features = '{features}' WHERE tenant_id = '{tenant}'")
}

#[tokio::test]
async fn every_tab_shows_the_same_and_one_that_slept_catches_up() {
    let site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    let tabs = [site.open(tenant, "/").await, site.open(tenant, "/network").await, site.open(tenant, "/crm").await];
    let [one, other, asleep] = &tabs;
    asleep.freeze().await;
    let since = Instant::now();
    site.world.database.execute(&grant(tenant, r#"{"crm": true}"#)).await;
    for tab in [one, other] {
        site.shows(tab, tenant, &set(&["crm"]), since, "every tab is told").await;
    }
    site.world.database.execute(&grant(tenant, r#"{"crm": true, "fieldops": true}"#)).await;
    tokio::time::sleep(PROMISED).await;
    assert_eq!(shown(asleep).await, set(&["tickets"]), "it sleeps");
    let since = Instant::now();
    asleep.thaw().await;
    site.shows(asleep, tenant, &set(&["crm", "fieldops"]), since, "it wakes").await;
    asleep.wait_for_text("/api/v1/crm → 200").await;
    for tab in [one, other] {
        assert_eq!(history(tab).await, [set(&["tickets"]), set(&["crm"]), set(&["crm", "fieldops"])]);
    }
}

/// The connection ends while the tab sleeps.
#[tokio::test]
async fn a_tab_that_slept_through_a_restart_catches_up() {
    let mut site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    let tab = site.open(tenant, "/").await;
    tab.freeze().await;
    site.world.proxy.kill();
    site.world.database.execute(&grant(tenant, r#"{"analytics": true}"#)).await;
    let builder = site.world.builder.clone();
    site.world.proxy.start_again(&builder).await;
    site.world.proxy.live().await;
    let since = Instant::now();
    tab.thaw().await;
    let shown = site.shows_within(RECOVERED, &tab, tenant, &set(&["analytics"]), since, "it wakes").await;
    println!("it shows what holds after {shown:?}");
    connected(&tab).await;
}

#[tokio::test]
async fn a_tab_without_a_connection_hears_from_another_or_when_it_is_told_to_ask() {
    let site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    site.sign_in(tenant);
    let cut_off = site.browser.tab().await;
    cut_off.add_init_script(NO_WEBSOCKET).await;
    cut_off.goto(&site.url("/")).await;
    cut_off.wait_for_text("Plan: starter").await;
    // Long enough for its pauses to be longer than what is waited for.
    tokio::time::sleep(Duration::from_secs(4)).await;

    site.world.database.execute(&grant(tenant, r#"{"crm": true}"#)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let since = Instant::now();
    cut_off.evaluate("() => window.dispatchEvent(new CustomEvent('license:refresh'))", ()).await;
    site.shows(&cut_off, tenant, &set(&["crm"]), since, "license:refresh").await;

    let connected = site.open(tenant, "/").await;
    let since = Instant::now();
    site.world.database.execute(&grant(tenant, r#"{"projects": true}"#)).await;
    for tab in [&connected, &cut_off] {
        site.shows(tab, tenant, &set(&["projects"]), since, "one is told and the other hears").await;
    }
}

/// An interface that shows too much heals on the first denied call, whoever made it.
#[tokio::test]
async fn the_first_denied_call_heals_a_page_that_hears_nothing() {
    let site = Site::start().await;
    let tenant = site.world.tenant("professional").await;
    site.sign_in(tenant);
    let tab = site.browser.tab().await;
    tab.add_init_script(DEAF).await;
    tab.goto(&site.url("/")).await;
    tab.wait_for_text("Plan: professional").await;
    connected(&tab).await;
    tab.evaluate(WATCH, ()).await;
    site.world.database.execute(&grant(tenant, r#"{"tickets": true}"#)).await;
    tokio::time::sleep(PROMISED).await;
    let before = set(&["crm", "tickets", "projects", "analytics"]);
    assert_eq!(shown(&tab).await, before, "it hears nothing");
    let since = Instant::now();
    tab.click("button", "Look up customers").await;
    site.shows(&tab, tenant, &set(&["tickets"]), since, "a call is denied").await;
    tab.wait_until("() => document.querySelector('.dotmac-payment-required')", (), LIMIT).await;
    assert_eq!(history(&tab).await, [before, set(&["tickets"])]);
}
