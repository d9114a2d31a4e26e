//! Pages of other origins: preflights, what they may read of our answers, and a page in a real browser.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};

use crate::harness::{RawClient, Reply, Signer, Upstream, World, browser, client, jwt};

const APP: &str = "https://app.example.com";
const CRM: &str = "/api/v1/crm/customers";
const CORE: &str = "/api/v1/billing/invoices";

async fn world(origins: &[&str], allow_credentials: bool) -> World {
    let cors = json!({ "allow_origins": origins, "allow_credentials": allow_credentials });
    World::start_with(|builder| builder.set("/cors", cors)).await
}

#[tokio::test]
async fn preflights_of_listed_origins_are_answered_here() {
    let world = world(&[APP], true).await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for (target, method) in [(CRM, "GET"), (CORE, "DELETE"), ("/anything?x=1", "PATCH")] {
        let request = format!(
            "OPTIONS {target} HTTP/1.1\r\nHost: app\r\nOrigin: {APP}\r\nX-Request-ID: pre-{method}\r\n\
             Access-Control-Request-Method: {method}\r\nAccess-Control-Request-Headers: authorization,content-type\r\n\r\n"
        );
        connection.send(request).await.expect("still open");
        let answer = connection.response().await;
        assert_eq!(answer.status, 204, "{target}");
        let names = [
            ("Access-Control-Allow-Origin", Some(APP)),
            ("Access-Control-Allow-Methods", Some("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            ("Access-Control-Allow-Headers", Some("authorization, content-type")),
            ("Access-Control-Allow-Credentials", Some("true")),
            ("Access-Control-Max-Age", Some("600")),
            ("X-Request-ID", Some(&format!("pre-{method}"))),
            ("Content-Length", None),
            ("Transfer-Encoding", None),
        ];
        assert_eq!(names.map(|(name, _)| (name, answer.header(name))), names, "{target}");
        let vary: Vec<_> = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("Vary")).collect();
        let vary: Vec<_> = vary.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(vary.join(", "), "Origin, Access-Control-Request-Method, Access-Control-Request-Headers");
        let line = world.proxy.wait_for_log(|line| line["request_id"] == format!("pre-{method}")).await;
        assert_eq!((&line["status"], &line["decision"]), (&json!(204), &json!("answered")));
    }
    assert_eq!(world.upstream.count(), 0);

    // All else is a request like any other: for the gate, and for the backend where nothing is gated.
    for (headers, expected) in [
        (vec![("Origin", "https://evil.example.com"), ("Access-Control-Request-Method", "GET")], None),
        (vec![("Origin", "null"), ("Access-Control-Request-Method", "GET")], None),
        (vec![("Origin", APP), ("Origin", APP), ("Access-Control-Request-Method", "GET")], None),
        (vec![("Access-Control-Request-Method", "GET")], None),
        (vec![("Origin", APP)], Some(APP)),
        (vec![("Origin", APP), ("Access-Control-Request-Method", "a b")], Some(APP)),
    ] {
        let before = world.upstream.count();
        let gated = client::request(world.proxy.address(), "OPTIONS", CRM, &headers).await;
        let allowed = gated.header("Access-Control-Allow-Origin");
        assert_eq!((gated.status, allowed, gated.header("Vary")), (401, expected, Some("Origin")), "{headers:?}");
        let open = client::request(world.proxy.address(), "OPTIONS", CORE, &headers).await;
        assert_eq!((open.status, world.upstream.count()), (200, before + 1), "{headers:?}");
        assert_eq!(world.upstream.last().method, "OPTIONS");
    }
}

#[tokio::test]
async fn our_answers_can_be_read_and_the_backends_are_its_own() {
    let world = world(&[APP], false).await;
    let starter = world.tenant("starter").await.to_string();
    let ask = async |target: &str, origin: &str| {
        let headers = [("X-Tenant-ID", starter.as_str()), ("Origin", origin)];
        client::request(world.proxy.address(), "GET", target, &headers).await
    };
    let too_long = format!("/{}", "x".repeat(20_000));
    let refused = "/api/v1/%00";
    for (target, status) in [(CRM, 402), (refused, 400), (too_long.as_str(), 414)] {
        let answer = ask(target, APP).await;
        let names = [
            ("Access-Control-Allow-Origin", Some(APP)),
            (
                "Access-Control-Expose-Headers",
                Some("X-Request-ID, Date, ETag, Retry-After, RateLimit, RateLimit-Policy"),
            ),
            ("Access-Control-Allow-Credentials", None),
            ("Vary", Some("Origin")),
        ];
        assert_eq!((answer.status, names.map(|(name, _)| (name, answer.header(name)))), (status, names));
        let answer = ask(target, "https://evil.example.com").await;
        let found = names.map(|(name, _)| answer.header(name));
        assert_eq!((answer.status, found), (status, [None, None, None, Some("Origin")]));
    }
    // The backend says who may read what is the backend's.
    let answer = ask(CORE, APP).await;
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Origin"), answer.header("Vary")), (200, None, None));
    let headers = vec![("Access-Control-Allow-Origin", "https://theirs.example.com".to_owned())];
    world.upstream.on(CORE, Reply::Full { status: 200, headers, body: Bytes::new() });
    let answer = ask(CORE, APP).await;
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://theirs.example.com"));

    // Without the section nothing is added.
    let silent = World::start().await;
    let answer = client::request(silent.proxy.address(), "GET", CRM, &[("Origin", APP)]).await;
    assert_eq!((answer.status, answer.header("Vary"), answer.header("Access-Control-Allow-Origin")), (401, None, None));
}

/// The same page twice, from a listed origin and from another: what `fetch` lets it see.
#[tokio::test]
async fn a_page_of_another_origin_in_a_browser() {
    let (listed, unlisted) = (Upstream::start(), Upstream::start());
    let origin = format!("http://{}", listed.address());
    let signer = Signer::new("ES256", "k");
    let keys = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(keys.path(), jwt::jwk_set(&[&signer]).to_string()).expect("written");
    let cors = json!({ "allow_origins": [origin], "allow_credentials": true });
    let token = json!({ "jwt": { "from": ["authorization", { "cookie": "access_token" }], "keys": keys.path() } });
    let world = World::start_with(|builder| builder.set("/cors", cors).set("/tenant/sources/-", token)).await;
    let starter = world.tenant("starter").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let claims = |in_seconds: i64| {
        let expires = Duration::from_secs(now.as_secs().saturating_add_signed(in_seconds));
        json!({ "tenant_id": starter, "exp": expires.as_secs() })
    };
    let (good, expired) = (signer.token(&claims(600)), signer.token(&claims(-600)));
    world.upstream.on(
        CORE,
        Reply::Full {
            status: 200,
            headers: vec![("Access-Control-Allow-Origin", origin.clone())],
            body: Bytes::from_static(br#"{"reason":"from the backend"}"#),
        },
    );

    let asked = json!([
        ["nobody", CRM, {}],
        ["token", CRM, { "headers": { "Authorization": format!("Bearer {good}") } }],
        ["expired", CRM, { "headers": { "Authorization": format!("Bearer {expired}") } }],
        ["cookie", CRM, { "credentials": "include" }],
        ["write", CRM, { "method": "PATCH", "body": "{}", "credentials": "include",
            "headers": { "Content-Type": "application/json" } }],
        ["forwarded", CORE, {}],
        ["silent backend", "/api/v1/network", {}],
    ]);
    let script = format!(
        r#"<!doctype html><pre id="seen"></pre><script>
        document.cookie = "access_token={good}";
        (async () => {{
            const seen = {{}};
            for (const [name, path, options] of {asked}) {{
                try {{
                    const answer = await fetch("{proxy}" + path, options);
                    const id = answer.headers.get("X-Request-ID") !== null;
                    const date = answer.headers.get("Date");
                    const dated = date !== null && Math.abs(Date.parse(date) - Date.now()) < 60_000;
                    seen[name] = [answer.status, (await answer.json()).reason, id, dated];
                }} catch (error) {{
                    seen[name] = error.name;
                }}
            }}
            document.getElementById("seen").textContent = JSON.stringify(seen);
        }})();
        </script>"#,
        proxy = world.proxy.url(),
    );
    let see = async |server: &Upstream| -> Value {
        let headers = vec![("Content-Type", "text/html; charset=utf-8".to_owned())];
        server.on("/page", Reply::Full { status: 200, headers, body: Bytes::from(script.clone()) });
        let page = browser::page(&format!("http://{}/page", server.address())).await;
        let seen = page.split_once(r#"<pre id="seen">"#).and_then(|(_, rest)| rest.split_once("</pre>"));
        let (seen, _) = seen.unwrap_or_else(|| panic!("no such page: {page}"));
        serde_json::from_str(seen).unwrap_or_else(|error| panic!("{error}: {page}"))
    };
    let expected = json!({
        "nobody": [401, "tenant_missing", true, true],
        "token": [402, "feature_not_in_plan", true, true],
        "expired": [401, "tenant_missing", true, true],
        "cookie": [402, "feature_not_in_plan", true, true],
        "write": [402, "feature_not_in_plan", true, true],
        "forwarded": [200, "from the backend", false, false],
        "silent backend": "TypeError",
    });
    assert_eq!(see(&listed).await, expected);
    let nothing = asked.as_array().expect("a list").iter().map(|ask| (ask[0].as_str().expect("a name"), "TypeError"));
    assert_eq!(see(&unlisted).await, nothing.collect::<Value>());
}
