//! The browser side of licensing in a real browser: the portal of `frontend/apps/customer` on an origin of its own, against
//! the real proxy. What it shows is held against what the gate answers.

mod away;
mod buying;
mod changes;
mod tabs;
mod types;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::world::FEATURES;
use crate::harness::{Browser, ProxyBuilder, Reply, Signer, Tab, Upstream, World, client, jwt};

/// Within which an interface shows each change.
const PROMISED: Duration = Duration::from_secs(1);

/// Within which it shows what holds once a proxy that was away is back: that doubts what it finds in Redis, and asks for it
/// again behind the requests (docs/coherence.md).
const RECOVERED: Duration = Duration::from_secs(4);

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Each state of the navigation since the page began, in `window.seen`, and that the page was never left.
const WATCH: &str = r#"() => {
    const entries = () => [...document.querySelectorAll("nav [data-entry]")].map(({ dataset }) => dataset.entry);
    window.seen = [entries()];
    new MutationObserver(() => {
        const now = entries();
        if (String(now) !== String(window.seen.at(-1))) window.seen.push(now);
    }).observe(document.body, { childList: true, subtree: true });
}"#;

/// The portal on one origin, the proxy on another, and a browser that has not gone there yet.
struct Site {
    world: World,
    portal: Upstream,
    browser: Browser,
    signer: Signer,
    _keys: tempfile::NamedTempFile,
}

impl Site {
    async fn start() -> Site {
        Site::start_with(|builder| builder).await
    }

    async fn start_with(change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Site {
        let portal = Upstream::start();
        serve_portal(&portal);
        let origin = format!("http://{}", portal.address());
        let signer = Signer::new("ES256", "k");
        let keys = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(keys.path(), jwt::jwk_set(&[&signer]).to_string()).expect("written");
        let source = json!([{ "jwt": { "from": ["authorization", "websocket_protocol"], "keys": keys.path() } }]);
        let world = World::start_with(|builder| {
            change(
                builder
                    .set("/licenses/change_feed", "listen")
                    // Browsers take the processors for a while when they start.
                    .set("/licenses/lookup_deadline", "2s")
                    .set("/usage", json!({ "flush_interval": "200ms" }))
                    .set("/cors", json!({ "allow_origins": [origin] }))
                    .set("/tenant/sources", source)
                    .set("/upgrade", json!({ "allow": { "jwt": { "claim": "role", "values": ["owner"] } } })),
            )
        })
        .await;
        let headers = vec![("Content-Type", "application/json".to_owned()), ("Access-Control-Allow-Origin", origin)];
        world.upstream.on("*", Reply::Full { status: 200, headers, body: Bytes::from_static(br#"{"backend":true}"#) });
        world.proxy.live().await;
        Site { world, portal, browser: Browser::start().await, signer, _keys: keys }
    }

    /// A token of an owner of `tenant`.
    fn token(&self, tenant: Uuid) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        self.signer.token(&json!({ "tenant_id": tenant, "role": "owner", "sub": "ada", "exp": now + 3600 }))
    }

    /// Whoever opens the portal from now on is signed in for `tenant`.
    fn sign_in(&self, tenant: Uuid) {
        let settings = json!({
            "baseUrl": self.world.proxy.url(), "webSocketUrl": "/ws/license", "token": self.token(tenant),
        });
        let headers = vec![("Content-Type", "application/json".to_owned())];
        self.portal.on("/portal.json", Reply::Full { status: 200, headers, body: settings.to_string().into() });
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.portal.address())
    }

    /// A tab in which `tenant`'s portal is open, up to date, and watched.
    async fn open(&self, tenant: Uuid, path: &str) -> Tab {
        self.sign_in(tenant);
        let tab = self.browser.tab().await;
        tab.goto(&self.url(path)).await;
        connected(&tab).await;
        tab.evaluate(WATCH, ()).await;
        tab
    }

    /// The features that the gate lets `tenant` pass with.
    async fn passed(&self, tenant: Uuid) -> BTreeSet<String> {
        let authorization = format!("Bearer {}", self.token(tenant));
        let mut passed = BTreeSet::new();
        for feature in FEATURES {
            let path = format!("/api/v1/{feature}");
            let headers = [("Authorization", authorization.as_str())];
            let answer = client::request(self.world.proxy.address(), "GET", &path, &headers).await;
            match answer.status {
                200 => drop(passed.insert(feature.to_owned())),
                402 => {}
                other => panic!("{path}: {other}: {}", answer.text()),
            }
        }
        passed
    }

    /// Waits until page and gate both stand for exactly these features; how long that took. More than [`PROMISED`] is too
    /// much.
    async fn shows(
        &self,
        tab: &Tab,
        tenant: Uuid,
        expected: &BTreeSet<String>,
        since: Instant,
        what: &str,
    ) -> Duration {
        self.shows_within(PROMISED, tab, tenant, expected, since, what).await
    }

    /// The same within another time.
    async fn shows_within(
        &self,
        limit: Duration,
        tab: &Tab,
        tenant: Uuid,
        expected: &BTreeSet<String>,
        since: Instant,
        what: &str,
    ) -> Duration {
        loop {
            let shown = shown(tab).await;
            let passed = self.passed(tenant).await;
            let passing = since.elapsed();
            if shown == *expected && passed == *expected {
                return passing;
            }
            let problem = format!("{what}: after {passing:?} the page shows {shown:?}, the gate passes {passed:?}");
            assert!(passing <= limit, "{problem}, and the licence has {expected:?}");
        }
    }
}

/// Waits until the page knows the licence and hears of changes.
async fn connected(tab: &Tab) {
    let connected = "() => {
        const plan = document.querySelector('.plan');
        return plan?.dataset.connection === 'live' && !plan.textContent.includes('looked up');
    }";
    tab.wait_until(connected, (), LIMIT).await;
}

/// The features whose entries are in the navigation.
async fn shown(tab: &Tab) -> BTreeSet<String> {
    let entries = "() => [...document.querySelectorAll('nav [data-entry]')].map(({ dataset }) => dataset.entry)";
    features(&tab.evaluate(entries, ()).await)
}

/// The features to which entries belong. What needs none must be there.
fn features(entries: &Value) -> BTreeSet<String> {
    let mut entries: BTreeSet<_> =
        entries.as_array().expect("a list").iter().map(|entry| entry.as_str().expect("a name").to_owned()).collect();
    for always in ["dashboard", "network"] {
        assert!(entries.remove(always), "{always} is missing beside {entries:?}");
    }
    if entries.remove("support") {
        entries.insert("tickets".to_owned());
    }
    entries
}

/// Every state of the navigation since [`WATCH`], without a reload.
async fn history(tab: &Tab) -> Vec<BTreeSet<String>> {
    let seen = tab.evaluate("() => window.seen ?? null", ()).await;
    seen.as_array().expect("the page was not left or loaded again").iter().map(features).collect()
}

fn set(features: &[&str]) -> BTreeSet<String> {
    features.iter().map(|feature| (*feature).to_owned()).collect()
}

/// Serves the built portal: its page wherever a route of it may be.
fn serve_portal(portal: &Upstream) {
    let dist = dist();
    let file = |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reply = |media_type: &str, body: Vec<u8>| Reply::Full {
        status: 200,
        headers: vec![("Content-Type", media_type.to_owned())],
        body: body.into(),
    };
    portal.on("*", reply("text/html; charset=utf-8", file(&dist.join("index.html"))));
    for entry in std::fs::read_dir(dist.join("assets")).expect("the portal has assets") {
        let path = entry.expect("an asset").path();
        let media_type = match path.extension().and_then(|extension| extension.to_str()) {
            Some("js") => "text/javascript",
            Some("css") => "text/css",
            _ => "application/octet-stream",
        };
        let name = path.file_name().expect("a name").to_string_lossy();
        portal.on(&format!("/assets/{name}"), reply(media_type, file(&path)));
    }
}

/// The built portal, no older than what it was built from.
pub(crate) fn dist() -> PathBuf {
    let frontend = Path::new(env!("CARGO_MANIFEST_DIR")).join("frontend");
    let dist = frontend.join("apps/customer/dist");
    let hint = "run scripts/test, or `npm ci --prefix frontend && npm run build --prefix frontend`";
    let built = std::fs::metadata(dist.join("index.html")).and_then(|file| file.modified());
    let built = built.unwrap_or_else(|error| panic!("the portal is not built ({error}): {hint}"));
    for sources in ["apps/customer/src", "packages/licensing/src"] {
        for entry in std::fs::read_dir(frontend.join(sources)).expect("sources") {
            let entry = entry.expect("a file");
            let changed = entry.metadata().and_then(|file| file.modified()).expect("a time");
            assert!(changed <= built, "{} is newer than the built portal: {hint}", entry.path().display());
        }
    }
    dist
}
