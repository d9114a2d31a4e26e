//! What the upstream is told: who asks, on what licence, where from, under which request id.

use std::net::IpAddr;

use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Version};
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

/// Everything that the upstream's headers depend on.
pub(super) struct Forward<'a> {
    pub(super) downstream: &'a RequestHeader,
    pub(super) facts: &'a Facts,
    pub(super) ruling: &'a Ruling,
    /// The headers that may name the tenant.
    pub(super) tenant_headers: &'a [HeaderName],
    pub(super) request_id: &'a HeaderValue,
    pub(super) peer: Option<IpAddr>,
}

impl Forward<'_> {
    /// Rewrite a request on its way upstream. Runs after everything else that touches its headers.
    ///
    /// Pingora keeps a second map with the letter case of every header's name, and keeping both in step costs more than all
    /// else that the gate does. So the request is taken apart and put together without it: names go upstream in lower or
    /// title case, which no recipient may tell apart (RFC 9110 section 5.1).
    pub(super) fn rewrite(&self, upstream: &mut RequestHeader) -> Result<()> {
        let from_uri = upstream.uri.path_and_query().map(|target| target.as_str().as_bytes());
        let verbatim = (from_uri != Some(upstream.raw_path())).then(|| upstream.raw_path().to_vec());
        let (empty, ()) = http::Request::new(()).into_parts();
        let mut parts = http::request::Parts::from(std::mem::replace(upstream, empty.into()));
        self.rewrite_headers(&mut parts.headers);
        *upstream = parts.into();
        match verbatim {
            Some(target) => upstream.set_raw_path(&target),
            None => Ok(()),
        }
    }

    fn rewrite_headers(&self, headers: &mut HeaderMap) {
        for name in &self.facts.strip {
            headers.remove(name);
        }
        if self.downstream.version == Version::HTTP_2 {
            join_cookies(headers);
        }
        headers.reserve(8);
        self.tell_tenant(headers);
        self.tell_licence(headers);
        headers.insert(X_REQUEST_ID, self.request_id.clone());
        self.tell_origin(headers);
    }

    /// The tenant in canonical form, under `X-Tenant-ID` and under every header that it may be named by.
    fn tell_tenant(&self, headers: &mut HeaderMap) {
        let ruling = self.ruling;
        let value = match (&ruling.entry, ruling.tenant) {
            (Some(entry), _) => entry.tenant_header.clone(),
            (None, Some(tenant)) => ascii(&tenant.to_string()),
            // A refusal that is not acted on yet leaves the request as it came.
            (None, None) if ruling.outcome == Outcome::Shadowed => return,
            (None, None) => {
                headers.remove(X_TENANT_ID);
                for name in self.tenant_headers {
                    headers.remove(name);
                }
                return;
            }
        };
        for name in self.tenant_headers {
            if *name != X_TENANT_ID && headers.contains_key(name) {
                headers.insert(name, value.clone());
            }
        }
        headers.insert(X_TENANT_ID, value);
    }

    fn tell_licence(&self, headers: &mut HeaderMap) {
        if let Some(entry) = &self.ruling.entry {
            headers.insert(X_LICENSE_PLAN, entry.plan_header.clone());
            headers.insert(X_LICENSE_FEATURES, entry.features_header.clone());
        }
        if let Some(fallback) = self.ruling.fallback {
            headers.insert(X_LICENSE_FALLBACK, HeaderValue::from_static(fallback));
        }
        if let Some(until) = self.ruling.grace_until {
            headers.insert(X_LICENSE_GRACE_UNTIL, ascii(&until.to_string()));
        }
    }

    /// `X-Forwarded-*`: what a trusted proxy said is kept and its own address appended; anyone else's word was stripped.
    fn tell_origin(&self, headers: &mut HeaderMap) {
        let trusted = self.facts.trusted;
        if let Some(peer) = self.peer {
            let before = trusted.then(|| joined(self.downstream, &X_FORWARDED_FOR)).flatten();
            let value = match before {
                Some(before) => ascii(&format!("{before}, {peer}")),
                None => ascii(&peer.to_string()),
            };
            headers.insert(X_FORWARDED_FOR, value);
        }
        if !(trusted && headers.contains_key(X_FORWARDED_PROTO)) {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        if !(trusted && headers.contains_key(X_FORWARDED_HOST))
            && let Some(host) = host(self.downstream)
        {
            headers.insert(X_FORWARDED_HOST, host);
        }
    }
}

/// HTTP/2 may cut a cookie header into several; outside of it they are one (RFC 9113 section 8.2.3), and many a backend
/// reads the first alone.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
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
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
