//! A portal on another origin, in a real browser: it shows the licence, is told of changes, and sells an upgrade. A page that
//! is not listed can do none of it, with the same visitor's cookies.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::harness::jwt::{self, Signer};
use crate::harness::{Reply, Upstream, World, browser};

const CRM: &str = "/api/v1/crm/customers";

/// What the page does. `PROXY` and `TOKEN` are filled in.
const SCRIPT: &str = r#"<!doctype html><pre id="seen"></pre><script>
document.cookie = "access_token=TOKEN";
const bearer = { "Authorization": "Bearer TOKEN" };
// The browser is done when no request is under way, whatever sockets are open: one is until all has been seen.
let holding = true;
(async () => { while (holding) await fetch("/hold"); })();
const get = async (path, options) => {
    try {
        const answer = await fetch("http://PROXY" + path, options);
        const body = answer.status == 200 ? await answer.json() : {};
        return [answer.status, body.planTier ?? null, answer.headers.get("ETag")];
    } catch (error) {
        return error.name;
    }
};
const open = (protocols) => {
    const socket = new WebSocket("ws://PROXY/ws/license", protocols);
    const queue = [];
    let wake = () => {};
    socket.onmessage = (message) => { queue.push(JSON.parse(message.data)); wake(); };
    socket.onclose = () => { queue.push(null); wake(); };
    return async () => {
        while (!queue.length) await new Promise((resolve) => wake = resolve);
        const message = queue.shift();
        return message && [message.type, message.license.planTier, socket.protocol];
    };
};
(async () => {
    const seen = {};
    const first = await get("/license", { headers: bearer });
    seen.license = Array.isArray(first) ? [first[0], first[1], first[2] !== null] : first;
    const again = await get("/license", { headers: { ...bearer, "If-None-Match": first[2] } });
    seen.again = Array.isArray(again) ? again[0] : again;
    const by_token = open(["dotmac-license", "TOKEN"]), by_cookie = open([]);
    seen.by_token = await by_token();
    seen.by_cookie = await by_cookie();
    const wish = { method: "POST", credentials: "include", body: JSON.stringify({ new_plan: "professional" }) };
    await fetch("http://PROXY/api/v1/license/upgrade", { ...wish, mode: "no-cors" }).catch(() => {});
    const sold = await get("/api/v1/license/upgrade", { ...wish, headers: { "Content-Type": "application/json" } });
    seen.sold = Array.isArray(sold) ? [sold[0], sold[1]] : sold;
    if (seen.sold[0] == 200) {
        seen.told = [await by_token(), await by_cookie()];
    }
    seen.crm = (await get("CRM", { headers: bearer }))[0];
    document.getElementById("seen").textContent = JSON.stringify(seen);
    holding = false;
})();
</script>"#;

async fn see(server: &Upstream, world: &World, token: &str) -> Value {
    let proxy = world.proxy.address().to_string();
    let script = SCRIPT.replace("PROXY", &proxy).replace("TOKEN", token).replace("CRM", CRM);
    let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
    server.on("/page", Reply::Full { status: 200, headers, body: Bytes::from(script) });
    server.on("/hold", Reply::after(Duration::from_millis(200), Reply::status(204)));
    let page = browser::page(&format!("http://{}/page", server.address())).await;
    let seen = page.split_once(r#"<pre id="seen">"#).and_then(|(_, rest)| rest.split_once("</pre>"));
    let (seen, _) = seen.unwrap_or_else(|| panic!("no such page: {page}"));
    serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error}: {page}"))
}

#[tokio::test]
async fn it_shows_is_told_and_sells_and_no_other_page_can() {
    let (listed, unlisted) = (Upstream::start(), Upstream::start());
    let origin = format!("http://{}", listed.address());
    let signer = Signer::new("ES256", "k");
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let from = json!(["authorization", { "cookie": "access_token" }, "websocket_protocol"]);
    let world = World::start_with(|builder| {
        builder
            .set("/licenses/change_feed", "listen")
            .set("/cors", json!({ "allow_origins": [origin], "allow_credentials": true }))
            .set("/tenant/sources", json!([{ "jwt": { "from": from, "keys": keys.path() } }]))
            .set("/upgrade", json!({ "allow": { "jwt": { "claim": "role", "values": ["owner"] } } }))
    })
    .await;
    world.proxy.live().await;
    let headers = vec![("Access-Control-Allow-Origin", origin.clone())];
    world.upstream.on(CRM, Reply::Full { status: 200, headers, body: Bytes::from_static(b"{}") });
    let tenant = world.tenant("starter").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let token = signer.token(&json!({ "tenant_id": tenant, "role": "owner", "sub": "ada", "exp": now + 600 }));

    let seen = see(&unlisted, &world, &token).await;
    let nothing = json!({
        "license": "TypeError", "again": "TypeError", "by_token": null, "by_cookie": null, "sold": "TypeError", "crm": "T",
    });
    assert_eq!(seen, nothing);
    let plan = format!("SELECT plan_tier FROM tenant_licenses WHERE tenant_id = '{tenant}'");
    assert_eq!(world.database.value(&plan).await.as_deref(), Some("starter"));

    let seen = see(&listed, &world, &token).await;
    let everything = json!({
        "license": [200, "starter", true],
        "again": 304,
        "by_token": ["license", "starter", "dotmac-license"],
        "by_cookie": ["license", "starter", ""],
        "sold": [200, "professional"],
        "told": [["license_updated", "professional", "dotmac-license"], ["license_updated", "professional", ""]],
        "crm": 200,
    });
    assert_eq!(seen, everything);
    assert_eq!(world.database.value(&plan).await.as_deref(), Some("professional"));
    let audit =
        format!("SELECT string_agg(actor || ' ' || outcome, ', ') FROM license_audit WHERE tenant_id = '{tenant}'");
    assert_eq!(world.database.value(&audit).await.as_deref(), Some("ada applied"));
}
