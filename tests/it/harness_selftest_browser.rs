//! The harness's browser, tested on small pages; and a proxy that is ended and started again under one of them.

use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::harness::process::server_dir;
use crate::harness::{Browser, Reply, Tab, Upstream, World};
use crate::harness_selftest::{all_end, kill_a_copy};

const SOON: Duration = Duration::from_secs(10);

/// What is wrong with this page is what a test adds to it. No script runs in it but its own.
fn page(body: &str) -> Reply {
    let html = format!(
        r#"<!doctype html><html lang="en"><head><title>A page</title><link rel="icon" href="data:,">
        <script src="/page.js" defer></script></head><body><main><h1>A page</h1>{body}</main></body></html>"#
    );
    let policy = "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data:";
    let headers =
        vec![("Content-Type", "text/html; charset=utf-8".to_owned()), ("Content-Security-Policy", policy.to_owned())];
    Reply::Full { status: 200, headers, body: Bytes::from(html) }
}

fn script(js: &'static str) -> Reply {
    let headers = vec![("Content-Type", "text/javascript; charset=utf-8".to_owned())];
    Reply::Full { status: 200, headers, body: Bytes::from(js) }
}

/// A server with a page at `/page` and its script.
fn serving(body: &str, js: &'static str) -> (Upstream, String) {
    let server = Upstream::start();
    server.on("/page", page(body));
    server.on("/page.js", script(js));
    let url = format!("http://{}/page", server.address());
    (server, url)
}

/// The status of the answer that the page gets and reads, or the name of its error.
async fn fetched(tab: &Tab, path: &str) -> Value {
    let read = "async (path) => {
        try {
            const answer = await fetch(path);
            await answer.text();
            return answer.status;
        } catch (error) {
            return error.name;
        }
    }";
    tab.evaluate(read, path).await
}

#[tokio::test]
async fn a_page_is_worked_in_by_role_and_name() {
    let body = r#"<form><label>Name <input name="name"></label><button>Greet</button></form><p role="status"></p>
        <p hidden>Hello, hidden</p>"#;
    let js = r#"document.forms[0].addEventListener("submit", (event) => {
        event.preventDefault();
        const name = document.forms[0].elements.name.value;
        setTimeout(() => { document.querySelector("[role=status]").textContent = `Hello, ${name}`; }, 50);
    });"#;
    let (_server, url) = serving(body, js);
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    tab.add_init_script("window.starts = [document.readyState, Intl.DateTimeFormat().resolvedOptions().timeZone];")
        .await;
    tab.goto(&url).await;
    assert_eq!(tab.url().await, url);
    assert_eq!(tab.evaluate("() => window.starts", ()).await, json!(["loading", "UTC"]));
    assert_eq!((tab.count("button", "Greet").await, tab.count("button", "Gre").await), (1, 0));

    tab.fill("Name", "Ada").await;
    tab.click("button", "Greet").await;
    tab.wait_for_text("hello, ada").await;
    assert_eq!(tab.text("[role=status]").await, "Hello, Ada");
    tab.fill("Name", "Grace").await;
    tab.press("Enter").await;
    tab.wait_for_text("Hello, Grace").await;
    tab.press("Tab").await;
    assert_eq!(tab.evaluate("() => document.activeElement.textContent", ()).await, "Greet");

    assert_eq!(tab.evaluate("(x) => x.a + 1", json!({ "a": 1 })).await, 2);
    assert_eq!(tab.evaluate("async (x) => [await x]", "later").await, json!(["later"]));
    assert_eq!(tab.evaluate("function () {}", ()).await, Value::Null);
    let counted = "async (enough) => { window.n = (window.n ?? 0) + 1; return window.n >= enough && window.n; }";
    assert_eq!(tab.wait_until(counted, 4, SOON).await, 4, "a promise of no is no");

    tab.reload().await;
    assert_eq!(tab.text("[role=status]").await, "");
    let dir = server_dir();
    tab.screenshot(&dir.path().join("page.png")).await;
    let image = std::fs::read(dir.path().join("page.png")).expect("the picture");
    assert!(image.starts_with(b"\x89PNG"));
    assert_eq!(tab.problems().await, [""; 0]);
}

#[tokio::test]
async fn tabs_share_their_storage_and_are_asked_side_by_side() {
    let (_server, url) = serving("", "addEventListener('storage', (event) => { window.heard = event.newValue; });");
    let browser = Browser::start().await;
    let (first, second) = (browser.tab().await, browser.tab().await);
    tokio::join!(first.goto(&url), second.goto(&url));
    let heard = first.wait_until("() => window.heard", (), SOON);
    let told = second.evaluate("(text) => { localStorage.setItem('told', text); }", "news");
    let (heard, _) = tokio::join!(heard, told);
    assert_eq!(heard, "news");
    assert_eq!(first.evaluate("() => localStorage.getItem('told')", ()).await, "news");
    second.close().await;
    assert_eq!(first.evaluate("() => document.visibilityState", ()).await, "visible");
}

#[tokio::test]
async fn a_tab_is_offline_and_online_again() {
    let (server, url) =
        serving("", "for (const type of ['offline', 'online']) addEventListener(type, () => { window.last = type; });");
    server.on("/missing", Reply::status(404));
    server.on("/events", Reply::events(1000, Duration::from_millis(20)));
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    tab.goto(&url).await;
    assert_eq!(fetched(&tab, "/data?n=1").await, 200);
    browser.set_offline(true).await;
    assert_eq!(fetched(&tab, "/data?n=2").await, "TypeError");
    assert_eq!(tab.evaluate("() => [navigator.onLine, window.last]", ()).await, json!([false, "offline"]));
    browser.set_offline(false).await;
    assert_eq!(fetched(&tab, "/data?n=3").await, 200);
    assert_eq!(tab.evaluate("() => [navigator.onLine, window.last]", ()).await, json!([true, "online"]));
    assert_eq!(fetched(&tab, "/missing").await, 404);
    tab.evaluate("() => new Promise((open) => { new EventSource('/events').onopen = () => open(); })", ()).await;

    let seen = tab.requests(server.address()).await;
    let of = |path: &str| {
        let request = seen.iter().find(|request| request["url"].as_str().is_some_and(|url| url.ends_with(path)));
        let request = request.unwrap_or_else(|| panic!("no {path} in {seen:#?}"));
        json!([request["method"], request["status"], request["failure"], request["finished"]])
    };
    let all = ["/page", "/page.js", "/data?n=1", "/data?n=2", "/data?n=3", "/missing", "/events"];
    let expected = [
        json!(["GET", 200, null, true]),
        json!(["GET", 200, null, true]),
        json!(["GET", 200, null, true]),
        json!(["GET", null, "net::ERR_INTERNET_DISCONNECTED", true]),
        json!(["GET", 200, null, true]),
        json!(["GET", 404, null, true]),
        json!(["GET", 200, null, false]),
    ];
    assert_eq!(all.map(of), expected);
    assert_eq!(tab.requests("/data").await.len(), 3);
    assert_eq!(tab.requests("/nothing").await, [Value::Null; 0]);
}

/// The only tab, and one among others: a page in front is never frozen.
#[tokio::test]
async fn a_frozen_tab_runs_nothing_and_goes_on_when_thawed() {
    let js = r#"window.told = [];
    window.ticks = window.heard = window.stored = 0;
    setInterval(() => { window.ticks += 1; }, 20);
    new EventSource("/events").onmessage = () => { window.heard += 1; };
    addEventListener("storage", () => { window.stored += 1; });
    for (const type of ["visibilitychange", "freeze", "resume"])
        document.addEventListener(type, () => window.told.push(`${type} ${document.visibilityState}`));"#;
    let (server, url) = serving("", js);
    server.on("/events", Reply::events(10_000, Duration::from_millis(20)));
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    tab.goto(&url).await;
    let counts = "() => [window.ticks, window.heard, window.stored]";
    let all_above = "([ticks, heard]) => window.ticks > ticks && window.heard > heard";
    tab.wait_until(all_above, json!([1, 1]), SOON).await;

    let mut other = None;
    for round in 0..2 {
        tab.freeze().await;
        let frozen = tab.evaluate(counts, ()).await;
        if let Some(other) = &other {
            Tab::evaluate(other, "() => { localStorage.setItem('told', 'news'); }", ()).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(tab.evaluate(counts, ()).await, frozen);
        assert_eq!(tab.evaluate("() => window.told", ()).await, json!(["visibilitychange hidden", "freeze hidden"]));
        tab.thaw().await;
        tab.wait_until(all_above, frozen, SOON).await;
        let all = json!(["visibilitychange hidden", "freeze hidden", "resume hidden", "visibilitychange visible"]);
        assert_eq!(tab.evaluate("() => window.told.splice(0)", ()).await, all);
        assert_eq!(tab.evaluate("() => document.hasFocus()", ()).await, true);
        tab.wait_until("(stored) => window.stored === stored", round, SOON).await;

        let opened = browser.tab().await;
        opened.goto(&url).await;
        other = Some(opened);
    }
}

#[tokio::test]
async fn what_goes_wrong_in_a_page_is_told() {
    let js = r#"console.error("an error", 1);
    console.warn("a warning");
    console.log("no problem");
    Promise.reject(new RangeError("rejected"));
    throw new Error("thrown");"#;
    let (server, url) = serving("", js);
    server.on("/missing", Reply::status(404));
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    assert_eq!(tab.problems().await, [""; 0]);
    tab.goto(&url).await;
    fetched(&tab, "/missing").await;
    let address = server.address();
    let mut told = tab.problems().await;
    told.sort();
    let expected = [
        format!(
            "console error: Failed to load resource: the server responded with a status of 404 (Not Found) (http://{address}/missing:1)"
        ),
        format!("console error: an error 1 (http://{address}/page.js:1)"),
        format!("console warning: a warning (http://{address}/page.js:2)"),
        "page error: Error: thrown".to_owned(),
        "page error: RangeError: rejected".to_owned(),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn axe_finds_a_picture_without_words() {
    let (server, url) = serving("<p>Fine.</p>", "");
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    tab.goto(&url).await;
    assert_eq!(tab.accessibility().await, [Value::Null; 0]);
    server.on("/page", page(r#"<img src="data:,">"#));
    tab.reload().await;
    let found = tab.accessibility().await;
    let found: Vec<_> = found.iter().map(|found| (&found["id"], &found["impact"], &found["nodes"])).collect();
    assert_eq!(found, [(&json!("image-alt"), &json!("critical"), &json!([r#"<img src="data:,">"#]))]);
}

#[tokio::test]
async fn what_cannot_be_done_fails_in_time_with_a_sentence() {
    let (_server, url) =
        serving("<button disabled>Buy</button><button>Go</button><button>Go</button>", "console.error('hint')");
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    tab.goto(&url).await;
    let short = tab.within(Duration::from_secs(1));
    let click = async |name: &'static str| {
        let tab = short.clone();
        failure(async move { tab.click("button", name).await }).await
    };
    let begun = Instant::now();
    let sentence = click("Sell").await;
    for part in [r#"click ["button","Sell"]"#, &url, "Timeout 1000ms exceeded", "console error: hint"] {
        assert!(sentence.contains(part), "{part} in {sentence}");
    }
    let sentence = click("Buy").await;
    assert!(sentence.contains("element is not enabled"), "{sentence}");
    let sentence = click("Go").await;
    assert!(sentence.contains("resolved to 2 elements"), "{sentence}");
    let tab = short.clone();
    let sentence = failure(async move { tab.evaluate("() => new Promise(() => {})", ()).await }).await;
    assert!(sentence.contains("nothing within 1000 ms"), "{sentence}");
    let tab = short.clone();
    let limit = Duration::from_millis(100);
    let sentence = failure(async move { tab.wait_until("() => 0", (), limit).await }).await;
    assert!(sentence.contains("still 0 after 100 ms"), "{sentence}");
    let tab = short.clone();
    let sentence = failure(async move { tab.evaluate("1 +", ()).await }).await;
    assert!(sentence.contains("evaluate") && sentence.contains("Unexpected token"), "{sentence}");
    assert!(begun.elapsed() < 2 * SOON, "{:?}", begun.elapsed());

    drop(browser);
    let sentence = failure(async move { short.url().await }).await;
    assert!(sentence.contains("the browser has ended"), "{sentence}");
}

/// How something panics.
async fn failure<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> String {
    let Err(error) = tokio::spawn(call).await else { panic!("it should have failed") };
    *error.into_panic().downcast::<String>().expect("a sentence")
}

/// In two roles: the test, and a copy of itself that it starts and kills.
#[tokio::test]
async fn no_browser_is_left_behind() {
    const VICTIM: &str = "HARNESS_SELFTEST_BROWSER_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let browser = Browser::start().await;
        browser.tab().await;
        let pids: Vec<_> = browser.pids().iter().map(u32::to_string).collect();
        println!("started {}", pids.join(" "));
        std::future::pending::<()>().await;
    }
    let pids = kill_a_copy("harness_selftest_browser::no_browser_is_left_behind", VICTIM);
    assert!(pids.len() > 3, "{pids:?}");
    all_end(&pids).await;

    let browser = Browser::start().await;
    let pids = browser.pids();
    drop(browser);
    all_end(&pids).await;
}

#[tokio::test]
async fn a_proxy_is_started_again_under_a_page() {
    let mut world = World::start().await;
    world.upstream.on("/page", page(""));
    world.upstream.on("/page.js", script(""));
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    let (url, ops_url) = (world.proxy.url(), world.proxy.ops_url());
    tab.goto(&format!("{url}/page")).await;
    assert_eq!(fetched(&tab, "/data").await, 200);

    world.proxy.kill();
    assert_eq!(fetched(&tab, "/data").await, "TypeError");
    world.proxy.start_again(&world.builder).await;
    assert_eq!((world.proxy.url(), world.proxy.ops_url()), (url, ops_url));
    assert_eq!(fetched(&tab, "/data").await, 200);

    // With another configuration.
    let closed = json!({ "prefix": "/data", "access": "deny" });
    let changed = world.builder.clone().set("/routes/rules/-", closed);
    world.proxy.kill();
    world.proxy.start_again(&changed).await;
    assert_eq!(fetched(&tab, "/data").await, 403);
}
