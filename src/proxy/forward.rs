//! What the upstream is told: who asks, on what licence, where from, under which request id.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};

use http::header::{CONNECTION, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pingora::Result;
use pingora::http::RequestHeader;

use crate::gate::Ruling;
use crate::intake::{Facts, X_TENANT_ID};
use crate::metrics::Outcome;

const X_LICENSE_PLAN: HeaderName = HeaderName::from_static("x-license-plan");
const X_LICENSE_FEATURES: HeaderName = HeaderName::from_static("x-license-features");
const X_LICENSE_FALLBACK: HeaderName = HeaderName::from_static("x-license-fallback");
const X_LICENSE_GRACE_UNTIL: HeaderName = HeaderName::from_static("x-license-grace-until");
const X_LICENSE_OVER_LIMIT: HeaderName = HeaderName::from_static("x-license-over-limit");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Everything that the upstream's headers depend on.
pub(crate) struct Forward<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) ruling: &'a Ruling,
    /// The headers that may name the tenant.
    pub(crate) tenant_headers: &'a [HeaderName],
    pub(crate) request_id: &'a HeaderValue,
    pub(crate) is_http2: bool,
}

impl Forward<'_> {
    /// Rewrite a request on its way upstream. Runs after everything else that touches its headers.
    ///
    /// Pingora keeps a second map with the letter case of every header's name, and keeping both in step costs more than all
    /// else that the gate does. So the request is taken apart and put together without it: names go upstream in lower or
    /// title case, which no recipient may tell apart (RFC 9110 section 5.1).
    pub(crate) fn rewrite(&self, upstream: &mut RequestHeader) -> Result<()> {
        let from_uri = upstream.uri.path_and_query().map(|target| target.as_str().as_bytes());
        let verbatim = (from_uri != Some(upstream.raw_path())).then(|| upstream.raw_path().to_vec());
        let (empty, ()) = http::Request::new(()).into_parts();
        let mut parts = http::request::Parts::from(std::mem::replace(upstream, empty.into()));
        self.rewrite_headers(&mut parts.headers);
        if parts.method == Method::HEAD {
            // Some servers send the body all the same (waitress, whatever the framework does not cut). It would be the
            // beginning of the next answer on this connection, to whomever: so there is none.
            parts.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
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
        if self.is_http2 {
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
        match &self.facts.tenant {
            Some(_) if self.facts.tenant_in_place => {}
            Some(tenant) => {
                for name in self.tenant_headers {
                    if headers.contains_key(name) {
                        headers.insert(name, tenant.clone());
                    }
                }
                headers.insert(X_TENANT_ID, tenant.clone());
            }
            // A refusal that is not acted on yet leaves the request as it came.
            None if self.ruling.outcome == Outcome::Shadowed => {}
            None => {
                headers.remove(X_TENANT_ID);
                for name in self.tenant_headers {
                    headers.remove(name);
                }
            }
        }
    }

    fn tell_licence(&self, headers: &mut HeaderMap) {
        if let Some(entry) = &self.ruling.entry {
            headers.insert(X_LICENSE_PLAN, entry.plan_header.clone());
            headers.insert(X_LICENSE_FEATURES, entry.features_header(self.ruling.decided_at));
        }
        if let Some(fallback) = self.ruling.fallback {
            headers.insert(X_LICENSE_FALLBACK, HeaderValue::from_static(fallback));
        }
        if let Some(until) = self.ruling.grace_until {
            headers.insert(X_LICENSE_GRACE_UNTIL, ascii(&until.to_string()));
        }
        let over: Vec<&str> = self.ruling.charges.beyond().collect();
        if !over.is_empty() {
            headers.insert(X_LICENSE_OVER_LIMIT, ascii(&over.join(", ")));
        }
    }

    /// `X-Forwarded-*`: what a trusted proxy said is kept and its own address appended; anyone else's word was stripped.
    fn tell_origin(&self, headers: &mut HeaderMap) {
        let Facts { peer, forwarded, host, .. } = self.facts;
        if let Some(peer) = *peer {
            headers.insert(X_FORWARDED_FOR, chain(&forwarded.chain, peer));
        }
        if !forwarded.proto {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        }
        if let Some(host) = host
            && !forwarded.host
        {
            headers.insert(X_FORWARDED_HOST, host.clone());
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

/// `X-Forwarded-For`: the proxies before (all values of a list header are one, RFC 9110 section 5.3), then the peer.
fn chain(before: &[HeaderValue], peer: IpAddr) -> HeaderValue {
    thread_local! {
        /// A sidecar's requests come from few peers, mostly from the one before.
        static LAST: RefCell<(IpAddr, HeaderValue)> =
            const { RefCell::new((IpAddr::V4(Ipv4Addr::UNSPECIFIED), HeaderValue::from_static("0.0.0.0"))) };
    }
    if before.is_empty() {
        return LAST.with_borrow_mut(|(address, value)| {
            if *address != peer {
                (*address, *value) = (peer, ascii(&peer.to_string()));
            }
            value.clone()
        });
    }
    let before = before.iter().filter_map(|value| value.to_str().ok());
    ascii(&before.chain([peer.to_string().as_str()]).collect::<Vec<_>>().join(", "))
}

/// Text that is known to be ASCII without control characters.
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
