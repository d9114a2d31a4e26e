//! The proxy away, frozen or started again while a page is open: the page keeps what it knows, closes what ends, and comes
//! back by itself.

use std::time::{Duration, Instant, SystemTime};

use super::{LIMIT, RECOVERED, Site, connected, history, set, shown};

#[tokio::test]
async fn a_proxy_started_again_is_found_again() {
    let mut site = Site::start().await;
    let tenant = site.world.tenant("starter").await;
    let tab = site.open(tenant, "/").await;
    let mut expected = vec![set(&["tickets"])];
    for (ends, features) in [("TERM", set(&["crm", "tickets"])), ("KILL", set(&["fieldops"]))] {
        match ends {
            "TERM" => assert!(site.world.proxy.terminate().await.success()),
            _ => site.world.proxy.kill(),
        }
        tab.wait_until("() => document.querySelector('.plan').dataset.connection === 'reconnecting'", (), LIMIT).await;
        // Nobody can tell, so what was known last stands.
        assert_eq!(shown(&tab).await, *expected.last().expect("a state"));
        let column = features.iter().map(|feature| format!("\"{feature}\": true")).collect::<Vec<_>>().join(", ");
        let sql = format!("UPDATE tenant_licenses SET features = '{{{column}}}' WHERE tenant_id = '{tenant}'");
        site.world.database.execute(&sql).await;
        let builder = site.world.builder.clone();
        let since = Instant::now();
        site.world.proxy.start_again(&builder).await;
        let up = since.elapsed();
        connected(&tab).await;
        let found = since.elapsed();
        println!("SIG{ends}: the proxy is up after {up:?}, the page has found it after {found:?}");
        let shown = site.shows_within(RECOVERED, &tab, tenant, &features, since, "the page has come back").await;
        println!("and shows what holds after {shown:?}");
        expected.push(features);
    }
    assert_eq!(history(&tab).await, expected);
    // It hears of changes again, and is not told only by what it asked when it came back.
    site.world.proxy.live().await;
    let since = Instant::now();
    site.world.database.execute(&format!("DELETE FROM tenant_licenses WHERE tenant_id = '{tenant}'")).await;
    site.shows(&tab, tenant, &set(&[]), since, "the licence is deleted").await;
}

/// The proxy is frozen: nobody says a word, and the clock closes what has ended.
#[tokio::test]
async fn what_ends_is_closed_without_a_message() {
    const LASTS: u64 = 5;
    let mut site = Site::start().await;
    let tenant = site.world.tenant("professional").await;
    let tab = site.open(tenant, "/crm").await;
    tab.wait_for_text("/api/v1/crm → 200").await;
    let before = set(&["crm", "tickets", "projects", "analytics"]);
    let sql = format!(
        "UPDATE tenant_licenses SET valid_until = timezone('utc', now()) + INTERVAL '{LASTS} seconds', auto_renew = false \
         WHERE tenant_id = '{tenant}'"
    );
    let ends_at = SystemTime::now() + Duration::from_secs(LASTS);
    site.world.database.execute(&sql).await;
    // Told, and shown by nothing yet.
    let page_knows = "() => new Promise((done) => setTimeout(() => done(true), 1000))";
    tab.wait_until(page_knows, (), LIMIT).await;
    assert_eq!(shown(&tab).await, before);
    site.world.proxy.pause();
    let closed = "() => !document.querySelector('nav [data-entry=crm]') && Date.now()";
    let closed_at = tab.wait_until(closed, (), LIMIT).await.as_u64().expect("a time");
    let ended_at = ends_at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
    let late = i128::from(closed_at) - i128::try_from(ended_at).expect("this century");
    println!("closed {late} ms after the end");
    assert!((-100..=1500).contains(&late), "{late} ms");
    tab.wait_for_text("Your licence has ended").await;
    assert_eq!(history(&tab).await, [before, set(&[])]);
    site.world.proxy.resume();
    site.shows(&tab, tenant, &set(&[]), Instant::now(), "the gate thinks so too").await;
    // And a renewal opens it again.
    let since = Instant::now();
    let sql = format!("UPDATE tenant_licenses SET valid_until = 'infinity' WHERE tenant_id = '{tenant}'");
    site.world.database.execute(&sql).await;
    let passes = set(&["crm", "tickets", "projects", "analytics"]);
    site.shows_within(RECOVERED, &tab, tenant, &passes, since, "the licence is renewed").await;
}
