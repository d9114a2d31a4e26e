//! What the upstream is told: who asks, on what licence, where from, under which request id.

use std::net::IpAddr;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Version};
use pingora::Result;
use pingora::http::RequestHeader;

use super::intake::Facts;
use crate::gate::Ruling;
use crate::metrics::Outcome;

const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
const X_LICENSE_PLAN: HeaderName = HeaderName::from_static("x-license-plan");
const X_LICENSE_FEATURES: HeaderName = HeaderName::from_static("x-license-features");
const X_LICENSE_FALLBACK: HeaderName = HeaderName::from_static("x-license-fallback");
const X_LICENSE_GRACE_UNTIL: HeaderName = HeaderName::from_static("x-license-grace-until");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Rewrite the headers of a request on its way upstream. Runs after everything else that touches them.
pub(super) fn rewrite(
    upstream: &mut RequestHeader,
    downstream: &RequestHeader,
    facts: &Facts,
    ruling: &Ruling,
    tenant_headers: &[HeaderName],
    request_id: &HeaderValue,
    peer: Option<IpAddr>,
) -> Result<()> {
    for name in &facts.strip {
        upstream.remove_header(name);
    }
    tell_tenant(upstream, ruling, tenant_headers)?;
    tell_licence(upstream, ruling)?;
    upstream.insert_header(X_REQUEST_ID, request_id.clone())?;
    tell_origin(upstream, downstream, facts.trusted, peer)
}

/// The tenant in canonical form, under `X-Tenant-ID` and under every header that it may be named by.
fn tell_tenant(upstream: &mut RequestHeader, ruling: &Ruling, tenant_headers: &[HeaderName]) -> Result<()> {
    let value = match (&ruling.entry, ruling.tenant) {
        (Some(entry), _) => entry.tenant_header.clone(),
        (None, Some(tenant)) => ascii(tenant.to_string()),
        // A refusal that is not acted on yet leaves the request as it came.
        (None, None) if ruling.outcome == Outcome::Shadowed => return Ok(()),
        (None, None) => {
            upstream.remove_header(&X_TENANT_ID);
            for name in tenant_headers {
                upstream.remove_header(name);
            }
            return Ok(());
        }
    };
    for name in tenant_headers {
        if *name != X_TENANT_ID && upstream.headers.contains_key(name) {
            upstream.insert_header(name.clone(), value.clone())?;
        }
    }
    upstream.insert_header(X_TENANT_ID, value)
}

fn tell_licence(upstream: &mut RequestHeader, ruling: &Ruling) -> Result<()> {
    if let Some(entry) = &ruling.entry {
        upstream.insert_header(X_LICENSE_PLAN, entry.plan_header.clone())?;
        upstream.insert_header(X_LICENSE_FEATURES, entry.features_header.clone())?;
    }
    if let Some(fallback) = ruling.fallback {
        upstream.insert_header(X_LICENSE_FALLBACK, HeaderValue::from_static(fallback))?;
    }
    if let Some(until) = ruling.grace_until {
        upstream.insert_header(X_LICENSE_GRACE_UNTIL, ascii(until.to_string()))?;
    }
    Ok(())
}

/// `X-Forwarded-*`: what a trusted proxy said is kept and its own address appended; anyone else's word was stripped.
fn tell_origin(
    upstream: &mut RequestHeader,
    downstream: &RequestHeader,
    trusted: bool,
    peer: Option<IpAddr>,
) -> Result<()> {
    if let Some(peer) = peer {
        let before = trusted.then(|| joined(downstream, &X_FORWARDED_FOR)).flatten();
        let value = match before {
            Some(before) => ascii(format!("{before}, {peer}")),
            None => ascii(peer.to_string()),
        };
        upstream.insert_header(X_FORWARDED_FOR, value)?;
    }
    if !(trusted && downstream.headers.contains_key(&X_FORWARDED_PROTO)) {
        upstream.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static("http"))?;
    }
    if !(trusted && downstream.headers.contains_key(&X_FORWARDED_HOST))
        && let Some(host) = host(downstream)
    {
        upstream.insert_header(X_FORWARDED_HOST, host)?;
    }
    Ok(())
}

/// All values of a list header as one (RFC 9110 section 5.3).
fn joined(request: &RequestHeader, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(", "))
}

fn host(request: &RequestHeader) -> Option<HeaderValue> {
    if request.version == Version::HTTP_2 {
        return request.uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    }
    request.headers.get(HOST).cloned()
}

/// Text that is known to be ASCII without control characters.
fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
