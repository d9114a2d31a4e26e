//! Who asks, by the headers: only whom a trusted source names literally, and the backend is told of nobody else.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Version};
use licensing::enforcement::Mode;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use pingora::http::RequestHeader;

use super::target;
use super::tokens::{A, B, GOOD, NOW, config};
use crate::gate::{Charges, Identity, Ruling};
use crate::intake::{Intake, X_TENANT_ID};
use crate::metrics::Outcome;
use crate::proxy::forward::Forward;

/// What headers are made of; the good tokens stand before these.
const FRAGMENTS: &[&str] = &[
    "\n",
    "X-Tenant-ID: ",
    "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11",
    "00000000-0000-4000-8000-000000000001",
    "Authorization: Bearer ",
    "Cookie: access_token=",
    "; access_token=",
    "Sec-WebSocket-Protocol: dotmac-license, ",
    ",",
    "X_Tenant_ID: ",
    "x-tenant_id: ",
    "X-User-Role: owner",
    "X_User_Role: owner",
    "Connection: X-Tenant-ID",
    "Connection: ",
    "X-License-Features: crm",
    "X-License_Plan: enterprise",
    "X-Forwarded-For: 10.0.0.1",
    "X-HTTP-Method-Override: DELETE",
    "X-Original-URL: /api/v1/crm",
    "Host: other",
    "Content-Length: 2",
    "Transfer-Encoding: chunked",
    "\"",
    " ",
    "\t",
    "6F1C1C5E8F3E4A589A3C0A4E1F0F7B11",
    "{6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11}",
    "urn:uuid:6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11",
    "bearer ",
    "Cookie: ",
    "session=",
    "Upgrade: websocket",
    ";",
    "=",
    "X-Request-ID: ",
    "Expect: 100-continue",
    "X-Forwarded_Host: ",
    "$Version=1; ",
    "acme",
    "Forwarded: for=1",
    "X-Real-IP: ",
    "access_token",
    "Authorization: ",
    "X-License-Fallback: open",
    "x-middleware-subrequest: 1",
    "Host: ",
    ".example.com",
    "X.Tenant.ID: ",
    "X-Host: ",
    "host",
];

target!(name_only_whom_they_may, fragments(), read_headers);

fn fragments() -> &'static [&'static str] {
    static ALL: LazyLock<Vec<&'static str>> =
        LazyLock::new(|| GOOD.iter().map(String::as_str).chain(FRAGMENTS.iter().copied()).collect());
    &ALL
}

/// One that goes by tokens and a header, and one by the host too.
fn intakes() -> &'static [Intake; 2] {
    static INTAKES: LazyLock<[Intake; 2]> = LazyLock::new(|| {
        ["", "{ host: \"{tenant}.example.com\" }, "].map(|host| {
            let (config, tokens) = config(host);
            Intake::new(&config, tokens)
        })
    });
    &INTAKES
}

/// The tenants that are named literally: by a header or a host that is believed, and by good tokens where tokens
/// are looked for.
fn named_literally(headers: &[(HeaderName, HeaderValue)], trusted: bool, by_host: bool) -> Vec<TenantId> {
    let tenants: [TenantId; 2] = [A, B].map(|id| id.parse().expect("a UUID"));
    let [a, b] = tenants;
    let by_token = [Some(a), Some(b), Some(a), Some(b), Some(a), None];
    let mut named = Vec::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        match name.as_str() {
            "x-tenant-id" if trusted => {
                let digits: String = value.trim().trim_start_matches("urn:uuid:").replace(['-', '{', '}'], "");
                named.extend(u128::from_str_radix(&digits, 16).ok().map(|id| TenantId::new(uuid::Uuid::from_u128(id))));
            }
            "host" if trusted && by_host => {
                let label = value.split('.').next().unwrap_or_default().replace('-', "");
                named.extend(u128::from_str_radix(&label, 16).ok().map(|id| TenantId::new(uuid::Uuid::from_u128(id))));
            }
            "authorization" | "cookie" | "sec-websocket-protocol" => {
                let tokens = GOOD.iter().zip(by_token).filter(|(token, _)| value.contains(token.as_str()));
                named.extend(tokens.filter_map(|(_, tenant)| tenant));
            }
            _ => {}
        }
    }
    named
}

/// The first byte says who sends it, by which version, and whether the host may name the tenant; the rest is headers, a line
/// each.
fn read_headers(input: &[u8]) {
    let Some((first, lines)) = input.split_first() else { return };
    let (trusted, http2, by_host) = (first & 1 != 0, first & 2 != 0, first & 4 != 0);
    let intake = &intakes()[usize::from(by_host)];
    let peer = IpAddr::V4(if trusted { Ipv4Addr::new(10, 1, 2, 3) } else { Ipv4Addr::new(192, 0, 2, 1) });
    let mut request = RequestHeader::build("GET", b"/api/v1/crm", Some(8)).expect("a request");
    let mut raw = b"GET /api/v1/crm HTTP/1.1\r\n".to_vec();
    if http2 {
        request.set_version(Version::HTTP_2);
        request.set_uri(http::Uri::from_static("http://app/api/v1/crm"));
    } else if !by_host {
        request.append_header("Host", "app").expect("a header");
    }
    let mut headers = Vec::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else { continue };
        request.append_header(name.clone(), value.clone()).expect("a header");
        raw.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        headers.push((name, value));
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
    let Ok(facts) = intake.read(&request, || Bytes::from(raw), Some(peer), now) else { return };

    let shown = format!("{} {headers:?}", if trusted { "gateway" } else { "stranger" });
    let named = named_literally(&headers, trusted, by_host);
    let tenant = match facts.identity {
        Identity::Tenant(tenant) => {
            assert!(named.contains(&tenant), "{tenant} of {shown}");
            let mut ours = headers.iter().filter(|(name, _)| *name == X_TENANT_ID);
            if let (true, Some((_, value))) = (trusted, ours.next()) {
                assert_eq!(TenantId::parse(value.as_bytes()), Ok(tenant), "{shown}");
                assert!(ours.next().is_none(), "two headers: {shown}");
            }
            Some(tenant)
        }
        _ => None,
    };
    assert_eq!(facts.tenant.is_some(), tenant.is_some(), "{shown}");
    let has_owner =
        headers.iter().any(|(name, value)| *name == "x-user-role" && (value == "owner" || value == "admin"));
    assert!(!facts.may_upgrade || (trusted && has_owner && tenant.is_some()), "{shown}");

    // What the backend gets.
    let host = facts.host.clone();
    let ruling = Ruling {
        permit: None,
        outcome: Outcome::Open,
        reason: None,
        feature: None,
        rule: None,
        token: None,
        usage: None,
        entry: None,
        layer: None,
        age: None,
        charges: Charges::default(),
        fallback: None,
        grace_until: None,
        mode: Mode::Enforce,
        decided_at: Timestamp::from_micros(0),
        took: Duration::ZERO,
    };
    let request_id = HeaderValue::from_static("id");
    let tenant_headers = intake.tenant_headers();
    let forward = Forward { facts: &facts, ruling: &ruling, tenant_headers, request_id: &request_id, is_http2: http2 };
    forward.rewrite(&mut request).expect("rewritten");
    for (name, value) in &request.headers {
        match folded(name).as_str() {
            // Whoever is not to be believed is not told of: by no spelling, and as one value.
            "x-tenant-id" => {
                assert!(name == X_TENANT_ID, "{name} of {shown}");
                let said = value.to_str().ok().map(str::to_owned);
                assert_eq!(said, tenant.map(|tenant| tenant.to_string()), "{shown}");
            }
            "x-user-role" => assert!(trusted && name == "x-user-role", "{shown}"),
            "x-request-id" => assert!(name == "x-request-id" && value == "id", "{shown}"),
            folded if NEVER.contains(&folded) => panic!("{name} reaches the backend: {shown}"),
            "x-forwarded-for" => assert!(value.as_bytes().ends_with(peer.to_string().as_bytes()), "{shown}"),
            "x-real-ip" | "forwarded" => assert!(trusted, "{shown}"),
            "x-forwarded-host" => assert!(trusted || Some(value) == host.as_ref(), "{shown}"),
            _ => {}
        }
    }
    assert!(request.headers.get_all(X_TENANT_ID).iter().count() <= 1, "{shown}");
    assert_eq!(request.headers.contains_key(X_TENANT_ID), tenant.is_some(), "{shown}");
}

/// A name as CGI makes it: what is neither letter nor digit is one to some servers.
fn folded(name: &HeaderName) -> String {
    name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-")
}

/// What frameworks obey, or take for the gate's own word, and hence never get from a client.
const NEVER: [&str; 15] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-prefix",
    "x-script-name",
    "script-name",
    "path-info",
    "x-middleware-subrequest",
    "x-license-plan",
    "x-license-features",
    "x-license-fallback",
    "x-license-grace-until",
];
