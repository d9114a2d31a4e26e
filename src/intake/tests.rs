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
    read_at(intake, "app", peer, headers)
}

fn read_at(intake: &Intake, host: &str, peer: IpAddr, headers: &[(&str, &str)]) -> Result<Facts, Fault> {
    let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
    let mut raw = b"GET / HTTP/1.1\r\n".to_vec();
    for (name, value) in [("Host", host)].iter().chain(headers) {
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
        // All that gateways say under names that begin so, and all that we do.
        ("X-Forwarded-User", false, true),
        ("X-Forwarded-Client-Cert", false, true),
        ("X_Forwarded_Email", true, true),
        ("X-Forwardedfor", false, false),
        ("X-Original-Host", false, true),
        ("X-License-Anything", true, true),
        ("X-Licensed", false, false),
        // What gunicorn believes from loopback, in the spellings that it folds.
        ("SCRIPT_NAME", true, true),
        ("script-name", true, true),
        ("Path_Info", true, true),
        ("X-Script-Name", true, true),
        // What some FastCGI servers fold.
        ("X.License.Plan", true, true),
        ("X-Original!URL", true, true),
        ("X.Custom", false, false),
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
        &[("X-Tenant_ID", A)],
        &[("X.Tenant.ID", A)],
        &[("x-tenant~id", A)],
        &[("Host", "other")],
        &[("Content-Length", "2"), ("Content-Length", "2")],
        &[("Content-Length", "2, 2")],
        &[("Transfer-Encoding", "chunked"), ("content-length", "2")],
        &[("Connection", "close, x-tenant-id")],
        &[("Connection", "X-License-Plan")],
        &[("Connection", "X-Forwarded-For")],
        &[("Connection", "X-Request-ID")],
        &[("Connection", "keep-alive"), ("Connection", "close,\tX-TENANT-ID ,")],
        &[("Connection", "X-Forwarded-User")],
        &[("Connection", "X-License-Anything")],
        &[("Connection", "Authorization")],
        &[("Connection", "cookie")],
        &[("Connection", "Host")],
        &[("Connection", "Sec-WebSocket-Protocol")],
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
    let late_other = token(json!({ "exp": -1000, "tenant_id": B }));
    let late_nobody = token(json!({ "exp": -1000, "tenant_id": null }));
    let early = token(json!({ "nbf": 90 }));
    let forged = Signer::new("HS256", "k").token(&json!({ "iss": "us", "exp": 100, "tenant_id": A }));
    let untrusted = Identity::BadToken(TokenFault::Untrusted);
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
        (vec![("X-Tenant-ID", B.to_owned()), ("Cookie", cookie(&expired))], bad, Some(Via::Header)),
        (vec![("X-Tenant-ID", "acme".to_owned()), ("Cookie", cookie(&expired))], bad, None),
        (vec![("Authorization", bearer(&expired)), ("Cookie", cookie(&late_other))], bad, None),
        (vec![("Authorization", bearer(&good)), ("Cookie", cookie(&late_other))], bad, Some(Via::Token)),
        (vec![("Authorization", bearer(&good)), ("Cookie", cookie(&forged))], untrusted, Some(Via::Token)),
        // Its time alone is wrong, and it names nobody else: browsers carry stale cookies.
        (vec![("Authorization", bearer(&good)), ("Cookie", cookie(&expired))], a, Some(Via::Token)),
        (vec![("Authorization", bearer(&expired)), ("Cookie", cookie(&good))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("{}; {}", cookie(&expired), cookie(&good)))], a, Some(Via::Cookie)),
        (vec![("X-Tenant-ID", A.to_owned()), ("Cookie", cookie(&expired))], a, Some(Via::Header)),
        (vec![("X-Tenant-ID", A.to_owned()), ("Cookie", cookie(&early))], a, Some(Via::Header)),
        (vec![("X-Tenant-ID", A.to_owned()), ("Cookie", cookie(&late_nobody))], a, Some(Via::Header)),
        // However it is spelled.
        (vec![("Authorization", format!("Bearer\t{good}"))], a, Some(Via::Token)),
        (vec![("Cookie", format!("access_token=%65{}", &good[1..]))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("access_token={}", good.replace('.', "%2E")))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("access_token=\"\\145\\{}\"", &good[1..]))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("access_token\t= {good}"))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("x=y access_token={good}"))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("x=y, access_token ={good} z=a.b.c"))], a, Some(Via::Cookie)),
        (vec![("Cookie", format!("access_token=; access_token=x; access_token={good}"))], a, Some(Via::Cookie)),
        (
            vec![("X-Tenant-ID", B.to_owned()), ("Cookie", format!("x=y access_token=\\145{}", &good[1..]))],
            Identity::Conflicting,
            None,
        ),
        (vec![("Cookie", format!("my_access_token={good}; access_token_2={good}"))], Identity::Missing, None),
        (vec![("Cookie", "access_token=s%3Aopaque.%zz.%+1%\\+12\\".to_owned())], Identity::Missing, None),
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

/// Whatever a header, a token and the host say, from whomever: one tenant, or nobody, or a refusal.
#[test]
fn every_source_beside_every_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let signer = Signer::new("HS256", "k");
    std::fs::write(dir.path().join("k.json"), jwk_set(&[&signer]).to_string()).expect("written");
    let sources = "[{ header: X-Tenant-ID }, { jwt: { keys: k.json } }, { host: '{tenant}.isp.example.com' }]";
    let intake = intake_with(sources, None, &dir.path().join("proxy.yaml"));
    let tenant = |id: &str| Identity::Tenant(id.parse().expect("a UUID"));
    let token = |claim, exp: i64| Some(signer.token(&json!({ "exp": exp, "tenant_id": claim })));
    let (good, late) = (100, -1000);
    let forged = Signer::new("HS256", "k").token(&json!({ "exp": good, "tenant_id": A }));

    // What each says, and whom it names; of a token also why it is not believed, and whether its time alone is wrong.
    let headers = [None, Some((A, tenant(A))), Some((B, tenant(B))), Some(("acme", Identity::Invalid))];
    let tokens = [
        (None, Identity::Missing, None),
        (token(Some(A), good), tenant(A), None),
        (token(Some(B), good), tenant(B), None),
        (token(None, good), Identity::Missing, None),
        (token(Some("acme"), good), Identity::Invalid, None),
        (token(Some(A), late), tenant(A), Some((TokenFault::Expired, true))),
        (token(Some(B), late), tenant(B), Some((TokenFault::Expired, true))),
        (token(None, late), Identity::Missing, Some((TokenFault::Expired, true))),
        (token(Some("acme"), late), Identity::Invalid, Some((TokenFault::Expired, true))),
        (Some(forged), tenant(A), Some((TokenFault::Untrusted, false))),
    ];
    let hosts = [("app", None), (A, Some(Ok(tenant(A)))), (B, Some(Ok(tenant(B)))), ("www", Some(Err(())))];
    let mut seen = 0;
    for (header, (token, claim, fault), (label, host), peer) in each_with_each(&headers, &tokens, &hosts) {
        let bearer = token.as_ref().map(|token| format!("Bearer {token}"));
        let mut sent: Vec<_> = header.iter().map(|(value, _)| ("X-Tenant-ID", *value)).collect();
        sent.extend(bearer.iter().map(|value| ("Authorization", value.as_str())));
        let name = if host.is_some() { format!("{label}.ISP.example.com.:8080") } else { (*label).to_owned() };
        let facts = read_at(&intake, &name, peer, &sent).expect("no fault");

        let believed = peer == GATEWAY;
        let mut words = Vec::new();
        words.extend(header.filter(|_| believed).map(|(_, named)| named));
        words.extend(Some(*claim).filter(|claim| fault.is_none() && *claim != Identity::Missing));
        words.extend(host.filter(|_| believed).and_then(Result::ok));
        let agreed = words.iter().all(|word| *word == words[0]);
        let first = words.first().copied();
        let harmless =
            first.is_some_and(|first| first != Identity::Invalid && [first, Identity::Missing].contains(claim));
        let expected = match (first, fault) {
            _ if !agreed => Identity::Conflicting,
            (_, Some((fault, only_late))) if !(*only_late && harmless) => Identity::BadToken(*fault),
            (Some(first), _) => first,
            (None, _) if believed && *host == Some(Err(())) => Identity::Invalid,
            (None, _) => Identity::Missing,
        };
        assert_eq!(facts.identity, expected, "{sent:?} at {name} from {peer}");
        let told = facts.tenant.as_ref().and_then(|tenant| tenant.to_str().ok()).map(tenant);
        let named = first.filter(|first| agreed && *first != Identity::Invalid);
        assert_eq!(told, named, "{sent:?} at {name} from {peer}");
        seen += 1;
    }
    assert_eq!(seen, 4 * 10 * 4 * 2);
}

/// Each with each, from either peer.
fn each_with_each<'a, H, T, N>(
    headers: &'a [H],
    tokens: &'a [T],
    hosts: &'a [N],
) -> impl Iterator<Item = (&'a H, &'a T, &'a N, IpAddr)> {
    let pairs = headers.iter().flat_map(move |header| tokens.iter().map(move |token| (header, token)));
    pairs.flat_map(move |(header, token)| {
        hosts.iter().flat_map(move |host| [GATEWAY, STRANGER].map(|peer| (header, token, host, peer)))
    })
}

#[test]
fn what_a_host_says_and_to_whom() {
    let (a, b) = (Identity::Tenant(A.parse().expect("a UUID")), Identity::Tenant(B.parse().expect("a UUID")));
    let two = "[{ host: '{tenant}.isp.example.com' }, { host: '{tenant}.example.net' }]";
    let (at_isp, at_net, www) = (format!("{A}.isp.example.com"), format!("{B}.example.net:443"), "www.example.net");
    let beside = "[{ header: X-Tenant-ID }, { host: '{tenant}.example.net' }]";
    for (sources, host, headers, expected, via) in [
        (two, at_isp.as_str(), &[][..], a, Some(Via::Host)),
        (two, &at_net, &[], b, Some(Via::Host)),
        (two, www, &[], Identity::Invalid, None),
        (two, "isp.example.com", &[], Identity::Missing, None),
        // Nobody else's word for the host counts.
        (two, "app", &[("X-Forwarded-Host", at_isp.as_str())], Identity::Missing, None),
        (two, &at_net, &[("X-Forwarded-Host", &at_isp), ("X-Host", &at_isp)], b, Some(Via::Host)),
        (beside, &at_net, &[("X-Tenant-ID", B)], b, Some(Via::Header)),
        (beside, &at_net, &[("X-Tenant-ID", A)], Identity::Conflicting, None),
        (beside, www, &[("X-Tenant-ID", A)], a, Some(Via::Header)),
    ] {
        let facts = read_at(&intake(sources), host, GATEWAY, headers).expect("no fault");
        assert_eq!((facts.identity, facts.via), (expected, via), "{host} {headers:?}");
    }
    // Where no proxy is listed, everybody's word counts; where some are, theirs alone.
    let listed = intake(two);
    let text = "version: 1\nupstream: { address: 127.0.0.1:1 }\ntenant: { sources: [{ host: '{tenant}.isp.example.com' }] }\n\
                licenses: { source: { postgres: {} } }\n";
    let config = licensing::config::parse("test", text).unwrap_or_else(|problems| panic!("{problems}")).config;
    let public = Intake::new(&config, Tokens::load(&config, Path::new("none")).expect("no keys"));
    for (intake, expected) in [(&listed, Identity::Missing), (&public, a)] {
        let facts = read_at(intake, &at_isp, STRANGER, &[]).expect("no fault");
        assert_eq!(facts.identity, expected);
    }
    // What else could be taken for the host is not passed on, where the host names the tenant.
    let others = [
        ("Forwarded", "for=192.0.2.1;HOST=x"),
        ("X-Forwarded-Host", "x"),
        ("X-Original-Host", "x"),
        ("X-Forwarded-For", "192.0.2.1"),
    ];
    for (host, expected, kept) in [(at_isp.as_str(), &["forwarded", "x-original-host"][..], false), ("app", &[], true)]
    {
        let facts = read_at(&listed, host, GATEWAY, &others).expect("no fault");
        let strip: Vec<_> = facts.strip.iter().map(HeaderName::as_str).collect();
        assert_eq!(
            (strip.as_slice(), facts.forwarded.host, facts.forwarded.chain.len()),
            (expected, kept, 1),
            "{host}"
        );
    }
    let facts = read_at(&listed, &at_isp, GATEWAY, &[("Forwarded", "for=192.0.2.1;proto=https")]).expect("no fault");
    assert!(facts.strip.is_empty(), "it says nothing of hosts");
}

#[test]
fn a_host_is_one_name() {
    let one = intake("[{ header: X-Tenant-ID }]");
    for host in ["", "app", "App.Example:8080", "[::1]:8080", "a_b", "a%20b", "a,b"] {
        assert!(read_at(&one, host, STRANGER, &[]).is_ok(), "{host}");
    }
    for host in
        ["a b", "user@app", "app/x", "app\\x", "app?x", "app#x", "\u{e9}.example", "\"app\"", "<app>", "{a}.b.c"]
    {
        assert_eq!(read_at(&one, host, STRANGER, &[]).err(), Some(Fault::Malformed), "{host}");
    }
    // Over HTTP/2 the authority is the host, and a Host beside it is the same one.
    let http2 = |authority: Option<&str>, host: Option<&str>| {
        let uri = http::Uri::builder().path_and_query("/");
        let uri = authority.into_iter().fold(uri, |uri, authority| uri.scheme("http").authority(authority));
        let mut request = http::Request::builder().uri(uri.build().expect("a URI")).version(Version::HTTP_2);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = RequestHeader::from(request.body(()).expect("a request").into_parts().0);
        let facts = one.read(&request, bytes::Bytes::new, Some(STRANGER), NOW)?;
        Ok(facts.host.map(|host| host.to_str().unwrap_or_default().to_owned()))
    };
    assert_eq!(http2(Some("app:80"), None), Ok(Some("app:80".to_owned())));
    assert_eq!(http2(Some("app"), Some("app")), Ok(Some("app".to_owned())));
    assert_eq!(http2(None, Some("app")), Ok(Some("app".to_owned())));
    for (authority, host) in [(Some("app"), Some("other")), (Some("app"), Some("")), (None, None)] {
        assert_eq!(http2(authority, host), Err(Fault::Malformed), "{authority:?} {host:?}");
    }
}

/// Only on a Unix socket may a peer have no address; where one listens on TCP, a peer without one is nobody.
#[test]
fn peers_without_an_address() {
    for (listen, expected) in [("unix:/run/proxy.sock", true), ("0.0.0.0:8080", false)] {
        let text = format!(
            "version: 1\nlisten: {{ proxy: '{listen}' }}\nupstream: {{ address: 127.0.0.1:1 }}\ntrusted_proxies: [10.0.0.0/8]\n\
             tenant: {{ sources: [{{ header: X-Tenant-ID }}] }}\nlicenses: {{ source: {{ postgres: {{}} }} }}\n"
        );
        let config = licensing::config::parse("test", &text).unwrap_or_else(|problems| panic!("{problems}")).config;
        let intake = Intake::new(&config, Tokens::load(&config, Path::new("none")).expect("no keys"));
        assert_eq!(intake.trusts(None), expected, "{listen}");
        assert!(intake.trusts(Some(GATEWAY)) && !intake.trusts(Some(STRANGER)));
        assert!(intake.trusts("::ffff:10.0.0.1".parse().ok()) && !intake.trusts("::ffff:192.0.2.1".parse().ok()));
    }
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

/// Headers may be configured with any sign in their names: the other names that are the same one to somebody are refused.
#[test]
fn names_with_other_signs() {
    let allow = json!({ "allow": { "header": "X_User.Role", "values": ["owner"] } });
    let intake = intake_with("[{ header: X_Org }]", Some(allow), Path::new("none"));
    let facts = read_by(&intake, GATEWAY, &[("X_Org", A), ("X_User.Role", "owner")]).expect("no fault");
    assert_eq!((facts.identity, facts.may_upgrade), (Identity::Tenant(A.parse().expect("a UUID")), true));
    assert!(facts.strip.is_empty());
    let facts = read_by(&intake, STRANGER, &[("X_Org", A), ("X_User.Role", "owner"), ("X-Tenant-ID", A)]);
    let facts = facts.expect("no fault");
    let stripped: Vec<_> = facts.strip.iter().map(HeaderName::as_str).collect();
    assert_eq!((facts.identity, facts.may_upgrade), (Identity::Missing, false));
    assert_eq!(stripped, ["x_org", "x_user.role", "x-tenant-id"]);
    for name in ["X-Org", "X.Org", "X-User-Role", "X_User_Role", "X_Tenant_ID"] {
        for (name, value) in [(name, A), ("Connection", name)] {
            assert_eq!(read_by(&intake, GATEWAY, &[(name, value)]).err(), Some(Fault::Malformed), "{name}: {value}");
        }
    }
    assert_eq!(read_by(&intake, GATEWAY, &[("Connection", "x_org")]).err(), Some(Fault::Malformed));
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
