//! What a client is told of limits: headers while there is something left, and the refusal when there is not.

use serde_json::json;
use uuid::Uuid;

use super::{ask, is_counted, metered, soon, tenant, window};
use crate::harness::{License, RawResponse, Reply, World, client, world};
use crate::openapi::Document;

/// The parameters of a quota, `"tickets";q=3;w=2592000`: its name, what is counted, and the seconds.
fn quota(header: Option<&str>) -> (String, u64, Option<u64>) {
    let header = header.expect("a quota");
    let mut parts = header.split(';');
    let name = parts.next().expect("a name").trim_matches('"').to_owned();
    let mut number = || parts.next().map(|part| part[2..].parse().expect("a number"));
    (name, number().expect("a count"), number())
}

/// Seconds from now until a moment that Postgres tells.
async fn seconds_until(world: &World, sql: &str) -> u64 {
    let sql = format!("SELECT floor(extract(epoch FROM ({sql}) - timezone('utc', now())))::bigint");
    world.database.value(&sql).await.and_then(|seconds| seconds.parse().ok()).expect("a number")
}

const NEXT_MONTH: &str = "date_trunc('month', timezone('utc', now())) + interval '1 month'";
const TOMORROW: &str = "date_trunc('day', timezone('utc', now())) + interval '1 day'";

#[tokio::test]
async fn while_something_is_left() {
    let world = World::start_with(metered).await;
    let limits = json!({ "tickets": 3, "analytics": 1_000, "crm": 50, "projects": 2, "fieldops": 9 });
    let tenant = tenant(&world, limits).await;
    let rate = |answer: &RawResponse| (quota(answer.header("RateLimit-Policy")), quota(answer.header("RateLimit")));
    for left in [2, 1, 0] {
        let answer = ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
        let ((name, q, w), (also, r, t)) = rate(&answer);
        assert_eq!((&*name, &*also, q, r, answer.status), ("tickets", "tickets", 3, left, 200));
        let days = w.expect("a month ends") / 86_400;
        assert!((28..=31).contains(&days), "{days}");
        let until = seconds_until(&world, NEXT_MONTH).await;
        assert!(t.expect("a month ends").abs_diff(until) <= 2, "{t:?} {until}");
    }
    let (policy, limit) = rate(&ask(&world.proxy, "GET", "/api/v1/analytics", tenant).await);
    assert_eq!(
        (policy, limit.0, limit.1),
        (("analytics".to_owned(), 1_000, Some(86_400)), "analytics".to_owned(), 999)
    );
    assert!(limit.2.expect("a day ends").abs_diff(seconds_until(&world, TOMORROW).await) <= 2);
    let (policy, limit) = rate(&ask(&world.proxy, "GET", "/api/v1/crm", tenant).await);
    assert_eq!((policy, limit), (("crm".to_owned(), 50, None), ("crm".to_owned(), 49, None)), "a lifetime has no end");

    // Not where there is nothing to tell: no limit, no metered method, no feature at all.
    let unlimited = super::tenant(&world, json!({ "crm": null })).await;
    for (method, target, of) in [
        ("GET", "/api/v1/crm", unlimited),
        ("GET", "/api/v1/tickets", tenant),
        ("GET", "/api/v1/network", tenant),
        ("GET", "/nowhere", tenant),
    ] {
        let answer = ask(&world.proxy, method, target, of).await;
        assert_eq!(
            (answer.status, answer.header("RateLimit"), answer.header("RateLimit-Policy")),
            (200, None, None),
            "{target}"
        );
    }

    // An error of the backend's tells them too, and is not counted; what the backend says of limits of its own stays.
    let own = vec![("RateLimit", "\"backend\";r=7;t=9".to_owned()), ("RateLimit-Policy", "\"backend\";q=8".to_owned())];
    world.upstream.on("/api/v1/analytics", Reply::Full { status: 500, headers: own, body: "".into() });
    let answer = ask(&world.proxy, "GET", "/api/v1/analytics", tenant).await;
    let both: Vec<_> = answer.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("ratelimit")).collect();
    assert_eq!(both.len(), 2, "{:?}", answer.headers);
    is_counted(&world, tenant, "analytics", 1).await;
    is_counted(&world, tenant, "tickets", 3).await;
}

#[tokio::test]
async fn when_nothing_is_left() {
    let document = Document::read();
    let described = document.at("/components/responses/Denied");
    let world = World::start_with(|builder| {
        metered(builder)
            .set("/plans/0/limits", json!({ "tickets": 2 }))
            .set("/plans/1/limits", json!({ "tickets": 500 }))
            .set("/cors", json!({ "allow_origins": ["https://app.example.com"] }))
    })
    .await;
    let tenant = Uuid::new_v4();
    let limits = json!({ "tickets": 2 });
    world.insert(License { usage_limits: limits, ..License::valid(tenant, "starter") }).await;
    for _ in 0..2 {
        assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
    }
    let denied = ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
    assert_eq!(denied.status, 402);
    document.assert_described(&described, &denied, "a limit that is used up");
    let mut body = denied.json();
    let next_month =
        world.database.value(&format!("SELECT to_char({NEXT_MONTH}, 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")).await;
    let until = next_month.expect("a time");
    let message = body["message"].take();
    assert!(message.as_str().is_some_and(|text| text.contains("limit of 2 for tickets is used up")), "{message}");
    let id = body["request_id"].take();
    assert_eq!(Some(id.as_str().expect("an id")), denied.header("X-Request-ID"));
    assert_eq!(
        body,
        json!({
            "error": "Feature not available", "feature": "tickets", "upgrade_url": "/billing/upgrade?feature=tickets",
            "reason": "usage_limit_exceeded", "message": null, "plan": "starter", "required_plan": "professional",
            "available_in": ["professional", "enterprise"], "limit": 2, "used": 2, "resets_at": until, "request_id": null,
        })
    );
    let retry_after: u64 = denied.header("Retry-After").and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert!(retry_after.abs_diff(seconds_until(&world, NEXT_MONTH).await) <= 2);
    let (_, left, t) = quota(denied.header("RateLimit"));
    assert_eq!((left, t), (0, Some(retry_after)));
    assert_eq!(quota(denied.header("RateLimit-Policy")).1, 2);
    assert_eq!(denied.header("Cache-Control"), Some("no-store"));
    assert_eq!(
        denied.header("Proxy-Status"),
        Some("dotmac-license-proxy; error=http_request_denied; details=\"usage_limit_exceeded\"")
    );
    let line = world.proxy.wait_for_log(|line| line["reason"] == "usage_limit_exceeded").await;
    assert_eq!(
        (&line["status"], &line["decision"], &line["feature"]),
        (&json!(402), &json!("denied"), &json!("tickets"))
    );

    // The same for those who want it otherwise, and for scripts in browsers.
    let id = tenant.to_string();
    let own = ("X-Tenant-ID", &*id);
    let post = async |headers: &[(&str, &str)]| {
        client::request(world.proxy.address(), "POST", "/api/v1/tickets", &[&[own], headers].concat()).await
    };
    let problem = post(&[("Accept", "application/problem+json")]).await;
    document.assert_described(&described, &problem, "the same as a problem");
    assert_eq!((&problem.json()["limit"], &problem.json()["used"]), (&json!(2), &json!(2)));
    let grpc = post(&[("Content-Type", "application/grpc")]).await;
    assert_eq!((grpc.status, grpc.header("grpc-status")), (200, Some("8")), "RESOURCE_EXHAUSTED: {:?}", grpc.headers);
    let script = post(&[("Origin", "https://app.example.com")]).await;
    let exposed = script.header("Access-Control-Expose-Headers").expect("listed").to_ascii_lowercase();
    for name in ["retry-after", "ratelimit", "ratelimit-policy"] {
        assert!(exposed.split(", ").any(|exposed| exposed == name), "{name}: {exposed}");
    }
    assert_eq!(world.upstream.count(), 2, "what is refused goes no further");
}

/// Nothing is gained by waiting for a limit of none, or for a lifetime's end.
#[tokio::test]
async fn where_waiting_is_of_no_use() {
    let document = Document::read();
    let described = document.at("/components/responses/Denied");
    let world = World::start_with(metered).await;
    let tenant = tenant(&world, json!({ "tickets": 0, "crm": 1 })).await;
    assert_eq!(ask(&world.proxy, "GET", "/api/v1/crm", tenant).await.status, 200);
    for (method, target, limit) in [("POST", "/api/v1/tickets", 0), ("GET", "/api/v1/crm", 1)] {
        let denied = ask(&world.proxy, method, target, tenant).await;
        assert_eq!((denied.status, denied.header("Retry-After")), (402, None), "{target}");
        document.assert_described(&described, &denied, target);
        let body = denied.json();
        assert_eq!((&body["limit"], &body["used"], &body["resets_at"]), (&json!(limit), &json!(limit), &json!(null)));
    }
}

/// `used` is what all have used, wherever: also what another replica has not reported yet.
#[tokio::test]
async fn what_others_use_is_told() {
    let world = World::start_with(metered).await;
    let other = world.second_replica().await;
    let tenant = tenant(&world, json!({ "tickets": 6 })).await;
    for proxy in [&world.proxy, &other, &world.proxy, &other, &world.proxy, &other] {
        assert_eq!(ask(proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
    }
    for proxy in [&world.proxy, &other] {
        let denied = ask(proxy, "POST", "/api/v1/tickets", tenant).await;
        assert_eq!((denied.status, &denied.json()["used"]), (402, &json!(6)), "{}", denied.text());
    }
}

#[tokio::test]
async fn another_status() {
    let world =
        World::start_with(|builder| metered(builder).set("/deny/status", json!({ "usage_limit_exceeded": 429 }))).await;
    let tenant = tenant(&world, json!({ "tickets": 1 })).await;
    assert_eq!(ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await.status, 200);
    let denied = ask(&world.proxy, "POST", "/api/v1/tickets", tenant).await;
    assert_eq!((denied.status, &denied.json()["reason"]), (429, &json!("usage_limit_exceeded")));
    assert!(denied.header("Retry-After").is_some());
    let other = world::get(&world.proxy, "/api/v1/crm", Uuid::new_v4()).await;
    assert_eq!(other.status, 402, "of other reasons it is as it was");
    soon("all is settled", async || window(&world.database, tenant, "tickets").await == (1, 0)).await;
}

/// Who has not got a feature does not hear of its limit, and a licence that has ended is said to have ended.
#[tokio::test]
async fn of_several_reasons_the_limit_comes_last() {
    let world = World::start_with(metered).await;
    let (without, ended) = (Uuid::new_v4(), Uuid::new_v4());
    let limits = json!({ "crm": 0 });
    world.insert(License { usage_limits: limits.clone(), ..License::valid(without, "starter") }).await;
    let license = License { valid_until: "-1 day", auto_renew: false, ..License::valid(ended, "enterprise") };
    world.insert(License { usage_limits: limits, ..license }).await;
    for (tenant, reason) in [(without, "feature_not_in_plan"), (ended, "license_expired")] {
        let denied = ask(&world.proxy, "GET", "/api/v1/crm", tenant).await;
        assert_eq!((denied.json()["reason"].as_str(), denied.header("RateLimit")), (Some(reason), None));
    }
}
