use serde_json::{Value, json};

use super::*;
use crate::config::Window;
use crate::license::{License, LicenseRow};
use crate::plans::Plan;
use crate::quota::Period;
use crate::tenant::TenantId;

/// 2026-11-23T08:00:00Z.
const NOW: Timestamp = Timestamp::from_micros(1_795_420_800_000_000);

fn plans() -> Plans {
    let plan = |name: &str, features: &[&str], limits: &[(&str, u64)]| Plan {
        name: name.into(),
        features: features.iter().map(|f| (*f).into()).collect(),
        limits: limits.iter().map(|(feature, limit)| ((*feature).into(), *limit)).collect(),
    };
    Plans::new(vec![
        plan("starter", &["tickets"], &[("tickets", 100)]),
        plan("professional", &["crm", "tickets"], &[("tickets", 500)]),
        plan("enterprise", &["crm", "tickets", "fieldops"], &[]),
    ])
}

fn starter() -> License {
    let row = LicenseRow {
        plan: "starter".into(),
        features: r#"{"tickets":true}"#.into(),
        features_until: "{}".into(),
        usage_limits: "{}".into(),
        valid_until: 1_769_817_600_000_000,
        ..LicenseRow::default()
    };
    License::from_row(TenantId::new(uuid::Uuid::nil()), &row).expect("a licence")
}

fn answers() -> Answers {
    Answers::new("/billing/upgrade?feature={feature}".into(), [])
}

fn say(reason: Reason, feature: Option<&str>, format: Format) -> Answer {
    let license = starter();
    let license = matches!(reason, Reason::FeatureNotInPlan | Reason::LicenseExpired).then_some(&license);
    let denial = Denial { reason, feature, license, token: None, usage: None };
    answers().denial(&denial, &plans(), NOW, "req-1", format)
}

/// That `used` of `limit` tickets are used in the current period of `window`.
fn say_used_up(answers: &Answers, limit: u64, used: u64, window: Window, format: Format) -> Answer {
    let period = Period::of(window, None, NOW).expect("a period");
    let license = starter();
    let denial = Denial {
        reason: Reason::UsageLimitExceeded,
        feature: Some("tickets"),
        license: Some(&license),
        token: None,
        usage: Some(Exhausted { limit, used, period }),
    };
    answers.denial(&denial, &plans(), NOW, "req-1", format)
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str())
}

#[test]
fn a_402_in_full() {
    let answer = say(Reason::FeatureNotInPlan, Some("crm"), Format::Json);
    assert_eq!(answer.status, 402);
    assert_eq!(
        String::from_utf8(answer.body.clone()).expect("UTF-8"),
        r#"{"error":"Feature not available","feature":"crm","upgrade_url":"/billing/upgrade?feature=crm","reason":"feature_not_in_plan","message":"The plan starter does not include crm. It is included in professional, enterprise.","plan":"starter","required_plan":"professional","available_in":["professional","enterprise"],"request_id":"req-1"}"#
    );
    assert_eq!(header(&answer, "Content-Type"), Some("application/json"));
    assert_eq!(header(&answer, "Cache-Control"), Some("no-store"));
    assert_eq!(header(&answer, "X-Request-ID"), Some("req-1"));
    assert_eq!(
        header(&answer, "Proxy-Status"),
        Some(r#"dotmac-license-proxy; error=http_request_denied; details="feature_not_in_plan""#)
    );
}

#[test]
fn every_reason_has_its_status_and_the_same_members() {
    for (reason, status, feature, extra) in [
        (Reason::FeatureNotInPlan, 402, true, None),
        (Reason::NoLicense, 402, true, None),
        (Reason::LicenseExpired, 402, true, None),
        (Reason::LicenseNotYetValid, 402, true, None),
        (Reason::UsageLimitExceeded, 402, true, None),
        (Reason::TenantMissing, 401, true, Some("WWW-Authenticate")),
        (Reason::TenantInvalid, 400, true, None),
        (Reason::RequestMalformed, 400, false, None),
        (Reason::RequestAmbiguous, 400, false, None),
        (Reason::StoreUnavailable, 503, true, Some("Retry-After")),
        (Reason::RouteDenied, 403, false, None),
    ] {
        let answer = say(reason, feature.then_some("crm"), Format::Json);
        assert_eq!(answer.status, status, "{reason}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let members: Vec<_> = body.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(
            members,
            [
                "error",
                "feature",
                "upgrade_url",
                "reason",
                "message",
                "plan",
                "required_plan",
                "available_in",
                "request_id"
            ]
        );
        assert_eq!(body["reason"], reason.name());
        let offers = status == 402;
        assert_eq!(
            body["upgrade_url"],
            if offers { json!("/billing/upgrade?feature=crm") } else { Value::Null },
            "{reason}"
        );
        assert_eq!(body["available_in"].as_array().map(Vec::is_empty), Some(!offers), "{reason}");
        if offers {
            assert_eq!(body["error"], "Feature not available");
        }
        if let Some(extra) = extra {
            assert!(header(&answer, extra).is_some(), "{reason} lacks {extra}");
        }
    }
}

#[test]
fn problem_details_have_the_same_members_and_their_own() {
    let answer = say(Reason::FeatureNotInPlan, Some("crm"), Format::Problem);
    assert_eq!(header(&answer, "Content-Type"), Some("application/problem+json"));
    let problem: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let plain: Value =
        serde_json::from_slice(&say(Reason::FeatureNotInPlan, Some("crm"), Format::Json).body).expect("JSON");
    for (member, value) in plain.as_object().expect("an object") {
        assert_eq!(&problem[member], value, "{member}");
    }
    assert_eq!((&problem["title"], &problem["detail"]), (&plain["error"], &plain["message"]));
    assert_eq!(problem["status"], 402);
    assert_eq!(problem["type"], "urn:dotmac-license-proxy:feature_not_in_plan");
}

#[test]
fn grpc_is_a_status_in_headers() {
    let answer = say(Reason::FeatureNotInPlan, Some("crm"), Format::Grpc);
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    assert_eq!(header(&answer, "Content-Type"), Some("application/grpc"));
    assert_eq!(header(&answer, "grpc-status"), Some("7"));
    assert!(header(&answer, "grpc-message").is_some_and(|m| m.is_ascii() && !m.contains('\n')));
}

#[test]
fn formats_are_negotiated() {
    for (content_type, accept, expected) in [
        (None, None, Format::Json),
        (None, Some("*/*"), Format::Json),
        (None, Some("application/json, text/plain"), Format::Json),
        (None, Some("application/problem+json"), Format::Problem),
        (None, Some("application/json, Application/Problem+JSON;q=0.9"), Format::Problem),
        (None, Some("application/problem+json;q=0"), Format::Json),
        (Some("application/grpc+proto"), Some("application/problem+json"), Format::Grpc),
        (Some("application/json"), None, Format::Json),
    ] {
        let found = Format::negotiate(content_type.map(str::as_bytes), accept.map(str::as_bytes));
        assert_eq!(found, expected, "{content_type:?} {accept:?}");
    }
}

#[test]
fn statuses_can_be_overridden_and_urls_are_encoded() {
    let answers = Answers::new("/up?f={feature}".into(), [(Reason::UsageLimitExceeded, 429)]);
    let feature = Some("field ops&x=1_a-b.c");
    let denial = Denial { reason: Reason::UsageLimitExceeded, feature, license: None, token: None, usage: None };
    let answer = answers.denial(&denial, &plans(), NOW, "r", Format::Json);
    assert_eq!(answer.status, 429);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["upgrade_url"], "/up?f=field%20ops%26x%3D1_a-b.c");
    assert_eq!((&body["required_plan"], &body["available_in"]), (&Value::Null, &json!([])));
}

#[test]
fn failures_name_themselves() {
    for (failure, status) in [
        (Failure::UpstreamUnreachable, 502),
        (Failure::UpstreamBroken, 502),
        (Failure::UpstreamTimeout, 504),
        (Failure::HeadersTooLarge, 431),
        (Failure::TargetTooLong, 414),
        (Failure::RequestBroken, 400),
        (Failure::RequestTimeout, 408),
        (Failure::MethodNotAllowed { allow: "GET" }, 405),
        (Failure::HandshakeMalformed, 400),
        (Failure::UpgradeRequired, 426),
        (Failure::OriginNotAllowed, 403),
        (Failure::Internal, 500),
    ] {
        let answer = answers().failure(failure, "req-2", Format::Json);
        assert_eq!(answer.status, status);
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(body["request_id"], "req-2");
        assert!(header(&answer, "Proxy-Status").is_some_and(|v| v.starts_with("dotmac-license-proxy; error=")));
    }
}

#[test]
fn a_client_with_a_bad_token_is_told_so() {
    let say = |token| {
        let denial = Denial { reason: Reason::TenantMissing, feature: Some("crm"), license: None, token, usage: None };
        let answer = answers().denial(&denial, &plans(), NOW, "req-1", Format::Json);
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        (answer.status, header(&answer, "WWW-Authenticate").map(str::to_owned), body["message"].clone())
    };
    let expected = r#"Bearer realm="tenant", error="invalid_token", error_description="The token has expired.""#;
    assert_eq!(say(Some(TokenFault::Expired)), (401, Some(expected.to_owned()), json!("The token has expired.")));
    assert_eq!(say(None), (401, Some(r#"Bearer realm="tenant""#.to_owned()), json!("The request names no tenant.")));
}

#[test]
fn what_some_failures_say_in_headers() {
    let say = |failure| answers().failure(failure, "req-1", Format::Json);
    assert_eq!(header(&say(Failure::MethodNotAllowed { allow: "GET, HEAD" }), "Allow"), Some("GET, HEAD"));
    let upgrade = say(Failure::UpgradeRequired);
    assert_eq!(
        (header(&upgrade, "Upgrade"), header(&upgrade, "Sec-WebSocket-Version")),
        (Some("websocket"), Some("13"))
    );
}

#[test]
fn a_licence_and_that_it_is_known() {
    let document = Answer::document(Some("{}".to_owned()), "\"1\"".to_owned(), "x-tenant-id", "req-1");
    assert_eq!((document.status, document.body.as_slice()), (200, &b"{}"[..]));
    assert_eq!(header(&document, "Content-Type"), Some("application/json"));
    let known = Answer::document(None, "\"1\"".to_owned(), "x-tenant-id", "req-1");
    assert_eq!((known.status, known.body.len()), (304, 0));
    for answer in [document, known] {
        for (name, value) in [
            ("ETag", "\"1\""),
            ("Cache-Control", "no-cache, private"),
            ("Vary", "x-tenant-id"),
            ("X-Request-ID", "req-1"),
        ] {
            assert_eq!(header(&answer, name), Some(value));
        }
    }
}

#[test]
fn without_a_licence_and_a_feature_in_question() {
    let answer = say(Reason::NoLicense, None, Format::Json);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(
        (&body["message"], &body["upgrade_url"], &body["feature"]),
        (&json!("There is no licence for this tenant."), &Value::Null, &Value::Null)
    );
}

#[test]
fn a_limit_that_is_used_up_in_full() {
    let answer = say_used_up(&answers(), 100, 103, Window::Month, Format::Json);
    assert_eq!(answer.status, 402);
    assert_eq!(
        String::from_utf8(answer.body.clone()).expect("UTF-8"),
        r#"{"error":"Feature not available","feature":"tickets","upgrade_url":"/billing/upgrade?feature=tickets","reason":"usage_limit_exceeded","message":"The licence's limit of 100 for tickets is used up; counting begins anew on 2026-12-01. There is more in professional, enterprise.","plan":"starter","required_plan":"professional","available_in":["professional","enterprise"],"limit":100,"used":103,"resets_at":"2026-12-01T00:00:00Z","request_id":"req-1"}"#
    );
    // Seven days and sixteen hours.
    assert_eq!(header(&answer, "Retry-After"), Some("662400"));
    assert_eq!(header(&answer, "RateLimit-Policy"), Some(r#""tickets";q=100;w=2592000"#));
    assert_eq!(header(&answer, "RateLimit"), Some(r#""tickets";r=0;t=662400"#));
}

#[test]
fn what_waiting_does_not_bring_back_is_not_waited_for() {
    for (limit, window, message, required) in [
        (
            100,
            Window::Lifetime,
            "The licence's limit of 100 for tickets is used up. There is more in professional, enterprise.",
            json!("professional"),
        ),
        (
            500,
            Window::Lifetime,
            "The licence's limit of 500 for tickets is used up. There is more in enterprise.",
            json!("enterprise"),
        ),
        (
            0,
            Window::Month,
            "The licence's limit for tickets is 0. There is more in professional, enterprise.",
            json!("professional"),
        ),
    ] {
        let answer = say_used_up(&answers(), limit, limit, window, Format::Json);
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!((&body["message"], &body["required_plan"]), (&json!(message), &required));
        assert_eq!((&body["limit"], &body["used"], &body["resets_at"]), (&json!(limit), &json!(limit), &Value::Null));
        assert!(body.as_object().is_some_and(|members| members.contains_key("resets_at")));
        assert_eq!(header(&answer, "Retry-After"), None, "{message}");
        assert!(header(&answer, "RateLimit").is_some_and(|value| value.starts_with(r#""tickets";r=0"#)));
    }
}

#[test]
fn a_used_up_limit_in_other_formats_and_with_another_status() {
    let json: Value =
        serde_json::from_slice(&say_used_up(&answers(), 100, 100, Window::Day, Format::Json).body).expect("JSON");
    let problem = say_used_up(&answers(), 100, 100, Window::Day, Format::Problem);
    let body: Value = serde_json::from_slice(&problem.body).expect("JSON");
    for (member, value) in json.as_object().expect("an object") {
        assert_eq!(&body[member], value, "{member}");
    }
    assert_eq!(
        (&body["type"], &body["status"]),
        (&json!("urn:dotmac-license-proxy:usage_limit_exceeded"), &json!(402))
    );

    let grpc = say_used_up(&answers(), 100, 100, Window::Day, Format::Grpc);
    // RESOURCE_EXHAUSTED.
    assert_eq!((grpc.status, header(&grpc, "grpc-status")), (200, Some("8")));
    assert!(
        header(&grpc, "grpc-message").is_some_and(|message| message.contains("counting begins anew on 2026-11-24"))
    );

    let other = Answers::new(String::new(), [(Reason::UsageLimitExceeded, 429)]);
    let answer = say_used_up(&other, 100, 100, Window::Day, Format::Problem);
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!((answer.status, &body["status"], &body["limit"]), (429, &json!(429), &json!(100)));
    for answer in [problem, grpc, answer] {
        assert_eq!(header(&answer, "Retry-After"), Some("57600"), "sixteen hours");
        assert_eq!(header(&answer, "RateLimit"), Some(r#""tickets";r=0;t=57600"#));
    }
}
