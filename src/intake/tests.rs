use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use licensing::tenant::TokenFault;
use serde_json::json;

use super::*;
use crate::identity::jwt::{Signer, jwk_set};

const A: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";
const B: &str = "00000000-0000-4000-8000-000000000001";
const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn intake(sources: &str) -> Intake {
    intake_with(sources, None, Path::new("none"))
}

/// `file` is what the files of keys are relative to.
fn intake_with(sources: &str, upgrade: Option<serde_json::Value>, file: &Path) -> Intake {
    let text = format!(
        "version: 1\nupstream: {{ address: 127.0.0.1:1 }}\ntrusted_proxies: [10.0.0.0/8]\n\
         tenant: {{ sources: {sources} }}\nlicenses: {{ source: {{ postgres: {{}} }} }}\n"
    );
    let parsed = licensing::config::parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let upgrade = upgrade.map(|upgrade| serde_json::from_value(upgrade).expect("settings of upgrades"));
    let config = Config { upgrade, ..parsed.config };
    Intake::new(&config, Tokens::load(&config, file).unwrap_or_else(|error| panic!("{error}")))
}

fn read(sources: &str, peer: IpAddr, headers: &[(&str, &str)]) -> Result<Facts, Fault> {
    read_by(&intake(sources), peer, headers)
}

fn read_by(intake: &Intake, peer: IpAddr, headers: &[(&str, &str)]) -> Result<Facts, Fault> {
    let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
    let mut raw = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in [("Host", "app")].iter().chain(headers) {
        raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        request.append_header((*name).to_owned(), *value).expect("a header");
    }
    intake.read(&request, || raw.into(), Some(peer), NOW)
}

#[test]
fn identities() {
    let (a, b) = (A.parse().expect("a UUID"), B.parse().expect("a UUID"));
    let one = "[{ header: X-Tenant-ID }]";
    let two = "[{ header: X-Tenant-ID }, { header: X-Org }]";
    let fixed = format!("[{{ fixed: {B} }}]");
    let list = format!("{A}, {A}");
    for (sources, peer, headers, expected) in [
        (one, GATEWAY, &[][..], Identity::Missing),
        (one, GATEWAY, &[("X-Tenant-ID", A)], Identity::Tenant(a)),
        (one, STRANGER, &[("X-Tenant-ID", A)], Identity::Missing),
        (one, GATEWAY, &[("X-Tenant-ID", "")], Identity::Invalid),
        (one, GATEWAY, &[("X-Tenant-ID", "acme")], Identity::Invalid),
        (one, GATEWAY, &[("X-Tenant-ID", A), ("X-Tenant-ID", A)], Identity::Conflicting),
        (one, GATEWAY, &[("X-Tenant-ID", &list)], Identity::Conflicting),
        (two, GATEWAY, &[("X-Org", A)], Identity::Tenant(a)),
        (two, GATEWAY, &[("X-Org", A), ("X-Tenant-ID", A)], Identity::Tenant(a)),
        (two, GATEWAY, &[("X-Org", A), ("X-Tenant-ID", B)], Identity::Conflicting),
        (two, GATEWAY, &[("X-Org", "acme"), ("X-Tenant-ID", B)], Identity::Conflicting),
        (two, GATEWAY, &[("X-Org", B), ("X-Tenant-ID", "acme")], Identity::Conflicting),
        (&fixed, STRANGER, &[("X-Tenant-ID", A)], Identity::Tenant(b)),
    ] {
        let found = read(sources, peer, headers).map(|facts| facts.identity).ok();
        assert_eq!(found, Some(expected), "{sources} {headers:?}");
    }
}

#[test]
fn tenants_are_told_canonically() {
    let (upper, simple, blanks) = (A.to_uppercase(), A.replace('-', ""), format!("{}    ", A.replace('-', "")));
    for (spelling, in_place) in [(A, true), (&upper, false), (&simple, false), (&blanks, false)] {
        let facts = read("[{ header: X-Tenant-ID }]", GATEWAY, &[("X-Tenant-ID", spelling)]).expect("no fault");
        assert_eq!(facts.tenant.as_ref().map(HeaderValue::as_bytes), Some(A.as_bytes()), "{spelling:?}");
        assert_eq!(facts.tenant_in_place, in_place, "{spelling:?}");
    }
    let facts = read("[{ header: X-Org }]", GATEWAY, &[("X-Org", A)]).expect("no fault");
    assert!(facts.tenant.is_some() && !facts.tenant_in_place, "not under our name yet");
}

#[test]
fn what_is_stripped_from_whom() {
    for (name, from_gateway, from_stranger) in [
        ("Accept", false, false),
        ("X-Custom", false, false),
        ("Under_Score", false, false),
        ("X-Tenant-ID", false, true),
        ("X-Forwarded-For", false, true),
        ("Forwarded", false, true),
        ("X-Real-IP", false, true),
        ("X-License-Plan", true, true),
        ("X-HTTP-Method-Override", true, true),
        ("X-Original-URL", true, true),
        ("X-Forwarded-Prefix", true, true),
        ("x-middleware-subrequest", true, true),
        ("X_License_Features", true, true),
        ("X-Forwarded_For", true, true),
        ("x_http_method_override", true, true),
    ] {
        for (peer, expected) in [(GATEWAY, from_gateway), (STRANGER, from_stranger)] {
            let facts = read("[{ header: X-Tenant-ID }]", peer, &[(name, A)]);
            let stripped = facts.map(|facts| facts.strip.iter().any(|n| n.as_str().eq_ignore_ascii_case(name)));
            assert_eq!(stripped.ok(), Some(expected), "{name} from {peer}");
        }
    }
}

#[test]
fn what_no_sane_client_sends() {
    let one = "[{ header: X-Tenant-ID }]";
    for headers in [
        &[("X_Tenant_ID", A)][..],
        &[("Host", "other")],
        &[("Content-Length", "2"), ("Content-Length", "2")],
        &[("Content-Length", "2, 2")],
        &[("Transfer-Encoding", "chunked"), ("content-length", "2")],
        &[("Connection", "close, x-tenant-id")],
        &[("Connection", "X-License-Plan")],
        &[("Connection", "X-Forwarded-For")],
        &[("Connection", "X-Request-ID")],
    ] {
        assert_eq!(read(one, GATEWAY, headers).err(), Some(Fault::Malformed), "{headers:?}");
    }
    for headers in [
        &[("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")][..],
        &[("Connection", "X-Whatever")],
        &[("Transfer-Encoding", "chunked")],
        &[("X-Content-Length", "2"), ("Transfer-Encoding", "chunked")],
    ] {
        assert!(read(one, GATEWAY, headers).is_ok_and(|facts| facts.hop_by_hop), "{headers:?}");
    }
    let many: Vec<_> = (0..100).map(|_| ("X-A", "1")).collect();
    assert_eq!(read(one, GATEWAY, &many).err(), Some(Fault::HeadersTooLarge), "100 and Host");
    assert_eq!(read(one, GATEWAY, &[("X-A", &"x".repeat(65_536))]).err(), Some(Fault::HeadersTooLarge));
}

/// Tokens stand in headers, cookies and subprotocols, and all that is believed must name the same tenant.
#[test]
fn tokens() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::new("HS256", "k");
    std::fs::write(dir.path().join("k.json"), jwk_set(&[&signer]).to_string()).expect("written");
    let sources = "[{ header: X-Tenant-ID }, { jwt: { from: [authorization, { cookie: access_token }, websocket_protocol], \
                   keys: k.json, issuer: us } }]";
    let allow = json!({ "allow": { "jwt": { "claim": "role", "values": ["owner"] } } });
    let intake = intake_with(sources, Some(allow), &dir.path().join("proxy.yaml"));
    let token = |claims: serde_json::Value| {
        let mut all = json!({ "iss": "us", "exp": 100, "tenant_id": A, "role": "owner" });
        all.as_object_mut().expect("an object").extend(claims.as_object().cloned().unwrap_or_default());
        signer.token(&all)
    };
    let (a, b) = (Identity::Tenant(A.parse().expect("a UUID")), Identity::Tenant(B.parse().expect("a UUID")));
    let (good, longer) = (token(json!({})), token(json!({ "exp": 200, "role": "viewer" })));
    let (other, expired) = (token(json!({ "tenant_id": B })), token(json!({ "exp": -1000 })));
    let (nobody, wrong) = (token(json!({ "tenant_id": null })), token(json!({ "tenant_id": "acme" })));
    let foreign = token(json!({ "iss": "them", "exp": 0 }));
    let bearer = |token: &str| format!("Bearer {token}");
    let cookie = |token: &str| format!("a=b; access_token={token}; c");
    let offer = |token: &str| format!("dotmac-license, {token}");
    let bad = Identity::BadToken(TokenFault::Expired);
    for (headers, expected, via) in [
        (vec![("Authorization", bearer(&good))], a, Some(Via::Token)),
        (vec![("Authorization", format!("bEARER   {good}"))], a, Some(Via::Token)),
        (vec![("Cookie", cookie(&good))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("access_token=\"{good}\""))], a, Some(Via::Cookie)),
        (vec![("Cookie", "x=y".to_owned()), ("Cookie", cookie(&good))], a, Some(Via::Cookie)),
        (vec![("Sec-WebSocket-Protocol", offer(&good))], a, Some(Via::Subprotocol)),
        (vec![("X-Tenant-ID", A.to_owned())], a, Some(Via::Header)),
        (vec![("X-Tenant-ID", A.to_owned()), ("Cookie", cookie(&good))], a, Some(Via::Cookie)),
        (vec![("Cookie", cookie(&good)), ("Authorization", bearer(&longer))], a, Some(Via::Token)),
        // Somebody else's business.
        (vec![("Authorization", bearer(&foreign))], Identity::Missing, None),
        (vec![("Authorization", bearer("opaque"))], Identity::Missing, None),
        (vec![("Authorization", "Basic dXNlcjpwYXNz".to_owned())], Identity::Missing, None),
        (vec![("Authorization", good.clone())], Identity::Missing, None),
        (vec![("Cookie", format!("token={good}"))], Identity::Missing, None),
        (vec![("X-Token", bearer(&good))], Identity::Missing, None),
        (vec![("X-Tenant-ID", B.to_owned()), ("Authorization", bearer(&foreign))], b, Some(Via::Header)),
        (vec![("X-Tenant-ID", B.to_owned()), ("Authorization", bearer(&nobody))], b, Some(Via::Header)),
        (vec![("Authorization", bearer(&nobody))], Identity::Missing, None),
        // Not to be believed, whatever else is said.
        (vec![("Authorization", bearer(&expired))], bad, None),
        (vec![("Authorization", bearer(&expired)), ("Cookie", cookie(&good))], bad, Some(Via::Cookie)),
        (vec![("X-Tenant-ID", A.to_owned()), ("Cookie", cookie(&expired))], bad, Some(Via::Header)),
        (vec![("X-Tenant-ID", "acme".to_owned()), ("Cookie", cookie(&expired))], bad, None),
        (vec![("Authorization", bearer(&wrong))], Identity::Invalid, None),
        // Two that disagree.
        (vec![("X-Tenant-ID", A.to_owned()), ("Authorization", bearer(&other))], Identity::Conflicting, None),
        (vec![("Cookie", cookie(&good)), ("Authorization", bearer(&other))], Identity::Conflicting, None),
        (vec![("Cookie", format!("{}; {}", cookie(&good), cookie(&other)))], Identity::Conflicting, None),
        (vec![("Sec-WebSocket-Protocol", format!("{good}, {other}"))], Identity::Conflicting, None),
        (vec![("Authorization", bearer(&good)), ("Authorization", bearer(&good))], Identity::Conflicting, None),
        (vec![("Authorization", bearer(&good)), ("Authorization", "Basic eA".to_owned())], Identity::Conflicting, None),
        (
            vec![("X-Tenant-ID", B.to_owned()), ("Cookie", cookie(&good)), ("Authorization", bearer(&expired))],
            Identity::Conflicting,
            None,
        ),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let facts = read_by(&intake, GATEWAY, &headers).expect("no fault");
        assert_eq!((facts.identity, facts.via), (expected, via), "{headers:?}");
        let said = matches!(facts.identity, Identity::Tenant(_)) || via.is_some();
        assert_eq!(facts.tenant.is_some(), said, "{headers:?}");
        let by_token = via.is_some_and(|via| via > Via::Header);
        assert_eq!(facts.may_upgrade, by_token && facts.identity == a, "{headers:?}");
        assert_eq!(facts.expires.is_some(), by_token, "{headers:?}");
    }
    // From a stranger a token is as good, and the header is not looked at.
    let facts = read_by(&intake, STRANGER, &[("X-Tenant-ID", B), ("Authorization", &bearer(&good))]).expect("no fault");
    assert_eq!((facts.identity, facts.tenant_in_place, facts.strip.len()), (a, false, 1));
    assert_eq!(facts.tenant.as_ref().map(HeaderValue::as_bytes), Some(A.as_bytes()));
    // Also where no header names the tenant, a stranger's is not passed on under the name that the backend goes by.
    let only_tokens = intake_with("[{ jwt: { keys: k.json } }]", None, &dir.path().join("proxy.yaml"));
    let facts = read_by(&only_tokens, STRANGER, &[("X-Tenant-ID", B)]).expect("no fault");
    assert_eq!((facts.identity, facts.strip.as_slice()), (Identity::Missing, &[X_TENANT_ID][..]));
    // The first of several to expire, with the leeway.
    let both = [("Authorization", bearer(&good)), ("Cookie", cookie(&longer))];
    let facts = read_by(&intake, STRANGER, &both.each_ref().map(|(name, value)| (*name, value.as_str())));
    assert_eq!(facts.map(|facts| facts.expires).ok(), Some(Some((NOW + Duration::from_secs(160)).into())));
}

#[test]
fn roles() {
    let allow = json!({ "allow": { "header": "X-User-Role", "values": ["owner", "admin"] } });
    let intake = intake_with("[{ header: X-Tenant-ID }]", Some(allow), Path::new("none"));
    for (peer, headers, expected) in [
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "owner")][..], true),
        (GATEWAY, &[("X-User-Role", "admin"), ("X-Tenant-ID", A)], true),
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "Owner")], false),
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "owner, admin")], false),
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "")], false),
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "viewer"), ("X-User-Role", "owner")], false),
        (GATEWAY, &[("X-Tenant-ID", A), ("X-User-Role", "owner"), ("X-User-Role", "owner")], false),
        (GATEWAY, &[("X-Tenant-ID", A)], false),
        (GATEWAY, &[("X-User-Role", "owner")], false),
        (STRANGER, &[("X-Tenant-ID", A), ("X-User-Role", "owner")], false),
    ] {
        let facts = read_by(&intake, peer, headers).expect("no fault");
        assert_eq!(facts.may_upgrade, expected, "{headers:?} from {peer}");
        let stripped = facts.strip.iter().any(|name| name == "x-user-role");
        assert_eq!(stripped, peer == STRANGER, "{headers:?}");
    }
    for headers in [&[("X_User_Role", "owner")], &[("X-User_Role", "owner")], &[("Connection", "x-user-role")]] {
        assert_eq!(read_by(&intake, GATEWAY, headers).err(), Some(Fault::Malformed), "{headers:?}");
    }
}

/// The audit names nobody by what a stranger says, or somebody who may not.
#[test]
fn whose_upgrade_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::new("HS256", "k");
    std::fs::write(dir.path().join("k.json"), jwk_set(&[&signer]).to_string()).expect("written");
    let sources =
        "[{ header: X-Tenant-ID }, { jwt: { from: [authorization, { cookie: access_token }], keys: k.json } }]";
    let allow = json!({ "allow": { "header": "X-User-Role", "values": ["owner"],
                                   "jwt": { "claim": "role", "values": ["owner"] } } });
    let intake = intake_with(sources, Some(allow), &dir.path().join("proxy.yaml"));
    let token = |role: &str, subject: Option<&str>| {
        signer.token(&json!({ "exp": 100, "tenant_id": A, "role": role, "sub": subject }))
    };
    let bearer = |role, subject| format!("Bearer {}", token(role, subject));
    let cookie = |role, subject| format!("access_token={}", token(role, subject));
    let (authorization, role) = ("Authorization", "X-User-Role");
    for (peer, headers, expected) in [
        (STRANGER, vec![(authorization, bearer("owner", Some("jane")))], "jane"),
        (STRANGER, vec![(authorization, bearer("owner", None))], "the tenant"),
        (STRANGER, vec![(authorization, bearer("owner", None)), (role, "owner".to_owned())], "the tenant"),
        (GATEWAY, vec![(authorization, bearer("owner", None)), (role, "viewer".to_owned())], "the tenant"),
        (GATEWAY, vec![("X-Tenant-ID", A.to_owned()), (role, "owner".to_owned())], "role owner"),
        (GATEWAY, vec![(authorization, bearer("viewer", Some("joe"))), (role, "owner".to_owned())], "joe"),
        (
            STRANGER,
            vec![(authorization, bearer("owner", Some("jane"))), ("Cookie", cookie("viewer", Some("joe")))],
            "jane",
        ),
        (
            STRANGER,
            vec![("Cookie", cookie("viewer", Some("joe"))), (authorization, bearer("owner", Some("jane")))],
            "jane",
        ),
        (
            STRANGER,
            vec![("Cookie", cookie("viewer", Some("joe"))), (authorization, bearer("owner", None))],
            "the tenant",
        ),
    ] {
        let pairs: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let facts = read_by(&intake, peer, &pairs).expect("no fault");
        assert!(facts.may_upgrade, "{headers:?}");
        let header = |(name, value): &(&str, &str)| Some((name.parse().ok()?, HeaderValue::from_str(value).ok()?));
        let map: HeaderMap = pairs.iter().filter_map(header).collect();
        assert_eq!(intake.actor(&facts, &map), expected, "{headers:?}");
    }
}

#[test]
fn what_a_websocket_is_answered_and_a_page_is_asked_for() {
    let find = |headers: &[(&str, &str)]| {
        let facts = read("[{ header: X-Tenant-ID }]", STRANGER, headers).expect("no fault");
        let text = |value: Option<HeaderValue>| value.map(|value| value.to_str().unwrap_or_default().to_owned());
        (text(facts.subprotocol), text(facts.origin))
    };
    let ours = Some("dotmac-license".to_owned());
    assert_eq!(find(&[("Sec-WebSocket-Protocol", "graphql-ws,dotmac-license")]), (ours.clone(), None));
    assert_eq!(find(&[("Sec-WebSocket-Protocol", "x"), ("Sec-WebSocket-Protocol", "dotmac-license")]), (ours, None));
    assert_eq!(find(&[("Sec-WebSocket-Protocol", "graphql-ws, Dotmac-License")]), (None, None));
    assert_eq!(find(&[("Origin", "https://a")]), (None, Some("https://a".to_owned())));
    assert_eq!(find(&[("Origin", "https://a"), ("Origin", "https://a")]), (None, Some("null".to_owned())));
}
