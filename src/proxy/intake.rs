//! What a request's headers say: who asks, whom we believe, what is stripped, and what no sane client sends.
//!
//! Every backend reads headers in its own way: some take the first of two, some the last, some join them; WSGI servers
//! fold `_` to `-`; frameworks let a header override the method or the path. What could make the backend see another
//! tenant or another path than the gate did is refused or stripped here.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Version};
use licensing::config::{ByteSize, Config, Network, TenantSource};
use licensing::tenant::TenantId;
use pingora::http::RequestHeader;
use smallvec::SmallVec;

use crate::gate::Identity;

/// Headers that frameworks obey over the request line, and headers that only this program may set: never passed on, from
/// whomever they come.
const NEVER_PASSED: [&str; 12] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-prefix",
    "x-middleware-subrequest",
    "x-license-plan",
    "x-license-features",
    "x-license-fallback",
    "x-license-grace-until",
];

/// Headers that say where a request came from: believed from trusted proxies, stripped from anyone else.
const FROM_TRUSTED: [&str; 8] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-real-ip",
];

/// Headers that this program always writes itself.
const ALWAYS_OURS: [&str; 2] = ["x-tenant-id", "x-request-id"];

/// Under this name the upstream is told who asks, under whatever name the gateway said it.
pub(super) const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");

/// How requests are read, from configuration.
pub(crate) struct Intake {
    tenant_headers: Vec<HeaderName>,
    fixed: Option<TenantId>,
    trusted: Vec<Network>,
    max_headers: usize,
    max_header_bytes: usize,
    max_target_bytes: usize,
}

/// What was found. All of it in one pass: each look-up in a header map costs as much as several headers seen in passing.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Who asks.
    pub(crate) identity: Identity,
    /// The tenant's canonical id, if there is one.
    pub(crate) tenant: Option<HeaderValue>,
    /// Whether the request carries exactly that under `X-Tenant-ID`, and nothing else under the tenant's other headers.
    pub(crate) tenant_in_place: bool,
    /// Whether the peer is a trusted proxy.
    pub(crate) trusted: bool,
    /// The peer's address, unless it is on a Unix socket.
    pub(crate) peer: Option<IpAddr>,
    /// Whether a header is there that concerns this connection alone (RFC 9110 section 7.6.1), so that pingora has to look
    /// for what must not be forwarded.
    pub(crate) hop_by_hop: bool,
    /// Names that are not passed on.
    pub(crate) strip: Vec<HeaderName>,
    /// What a trusted proxy has said of where the request came from.
    pub(crate) forwarded: Forwarded,
    /// `Host`, or over HTTP/2 the authority.
    pub(crate) host: Option<HeaderValue>,
    /// The client's `X-Request-ID`, if it sent one.
    pub(crate) request_id: Option<HeaderValue>,
    /// `traceparent`.
    pub(crate) trace: Option<HeaderValue>,
}

/// Which `X-Forwarded-*` headers came from a trusted proxy.
#[derive(Debug, Default)]
pub(crate) struct Forwarded {
    /// `X-Forwarded-For`, its values in order.
    pub(crate) chain: Vec<HeaderValue>,
    /// `X-Forwarded-Proto`.
    pub(crate) proto: bool,
    /// `X-Forwarded-Host`.
    pub(crate) host: bool,
}

/// Why a request is refused for its headers alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its framing or its hop-by-hop headers could be read in two ways.
    Malformed,
    /// Too many headers, or too large.
    HeadersTooLarge,
    /// The target is too long.
    TargetTooLong,
}

impl Intake {
    pub(crate) fn new(config: &Config) -> Self {
        let mut tenant_headers = Vec::new();
        let mut fixed = None;
        for source in &config.tenant.sources {
            match source {
                TenantSource::Header(name) => tenant_headers.extend(HeaderName::try_from(name.as_str()).ok()),
                TenantSource::Fixed(tenant) => fixed = Some(tenant.0),
                // Configurations that name these are refused: they are not built in this version.
                TenantSource::Jwt(_) | TenantSource::Host(_) => {}
            }
        }
        let limits = &config.limits;
        let bytes = |size: ByteSize| usize::try_from(size.bytes()).unwrap_or(usize::MAX);
        Self {
            tenant_headers,
            fixed,
            trusted: config.trusted_proxies.clone(),
            max_headers: usize::from(limits.headers),
            max_header_bytes: bytes(limits.header_bytes),
            max_target_bytes: bytes(limits.uri_bytes),
        }
    }

    /// Whether requests from `peer` may say who asks and where from. A peer without an address is on a Unix socket, which
    /// the file system guards.
    pub(crate) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| self.trusted.iter().any(|network| network.contains(peer)))
    }

    /// Read a request's headers. `raw_head` is the head as it came over HTTP/1, empty over HTTP/2.
    pub(crate) fn read(
        &self,
        request: &RequestHeader,
        raw_head: impl FnOnce() -> bytes::Bytes,
        peer: Option<IpAddr>,
    ) -> Result<Facts, Fault> {
        if request.raw_path().len() > self.max_target_bytes {
            return Err(Fault::TargetTooLong);
        }
        if request.headers.len() > self.max_headers {
            return Err(Fault::HeadersTooLarge);
        }
        let mut facts = Facts::of(peer, self.trusts(peer));
        let (mut bytes, mut hosts, mut lengths, mut request_ids) = (0, 0, 0, 0);
        let mut coded = false;
        let mut named = SmallVec::<[(&HeaderName, &HeaderValue); 2]>::new();
        for (name, value) in &request.headers {
            bytes += name.as_str().len() + value.len() + 4;
            match name.as_str() {
                "host" => {
                    hosts += 1;
                    facts.host = Some(value.clone());
                }
                "content-length" => lengths += 1 + value.as_bytes().iter().filter(|b| **b == b',').count(),
                "transfer-encoding" => coded = true,
                "connection" if self.nominates_ours(value) => return Err(Fault::Malformed),
                "x-request-id" => {
                    request_ids += 1;
                    facts.request_id = Some(value.clone());
                }
                "traceparent" => facts.trace = Some(value.clone()),
                "x-forwarded-for" if facts.trusted => facts.forwarded.chain.push(value.clone()),
                "x-forwarded-proto" if facts.trusted => facts.forwarded.proto = true,
                "x-forwarded-host" if facts.trusted => facts.forwarded.host = true,
                _ if self.tenant_headers.contains(name) && facts.trusted => named.push((name, value)),
                _ => match self.passes(name, facts.trusted) {
                    Passes::Yes => {}
                    Passes::No => facts.strip.push(name.clone()),
                    Passes::Never => return Err(Fault::Malformed),
                },
            }
            facts.hop_by_hop |= is_hop_by_hop(name.as_str());
        }
        if bytes > self.max_header_bytes {
            return Err(Fault::HeadersTooLarge);
        }
        // RFC 9112 sections 3.2 and 6: one Host, one length, and never a length beside a transfer coding. Pingora takes
        // Content-Length away where Transfer-Encoding is present, so only the raw head shows both.
        let hostless = hosts == 0 && request.version == Version::HTTP_11;
        if hostless || hosts > 1 || lengths > 1 || (coded && names_content_length(&raw_head())) {
            return Err(Fault::Malformed);
        }
        if request.version == Version::HTTP_2 {
            let authority = request.uri.authority().map(|authority| authority.as_str());
            facts.host = authority.and_then(|authority| HeaderValue::from_str(authority).ok());
        }
        if request_ids > 1 {
            facts.request_id = None;
        }
        self.identify(&mut facts, &named);
        Ok(facts)
    }

    /// Whether a `Connection` header nominates one of ours: it would be stripped on the way (RFC 9110 section 7.6.1).
    fn nominates_ours(&self, value: &HeaderValue) -> bool {
        value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|token| {
            !token.eq_ignore_ascii_case(b"keep-alive")
                && !token.eq_ignore_ascii_case(b"close")
                && !token.eq_ignore_ascii_case(b"upgrade")
                && self.is_protected(&String::from_utf8_lossy(token).to_ascii_lowercase())
        })
    }

    fn passes(&self, name: &HeaderName, trusted: bool) -> Passes {
        let name_text = name.as_str();
        if name_text.contains('_') {
            let folded = name_text.replace('_', "-");
            if folded == "x-tenant-id" || self.tenant_headers.iter().any(|header| header.as_str() == folded) {
                return Passes::Never;
            }
            return if self.is_protected(&folded) { Passes::No } else { Passes::Yes };
        }
        // All other protected names begin with these letters; most names do not.
        let strippable = match name_text.as_bytes().first() {
            Some(b'x') => NEVER_PASSED.contains(&name_text) || (!trusted && FROM_TRUSTED.contains(&name_text)),
            Some(b'f') => !trusted && name_text == "forwarded",
            _ => false,
        };
        if strippable || (!trusted && self.tenant_headers.contains(name)) { Passes::No } else { Passes::Yes }
    }

    /// Whether the backend takes a header of this lower-case name from us, and hence from nobody else.
    fn is_protected(&self, name: &str) -> bool {
        ALWAYS_OURS.contains(&name)
            || NEVER_PASSED.contains(&name)
            || FROM_TRUSTED.contains(&name)
            || self.tenant_headers.iter().any(|header| header.as_str() == name)
    }

    /// Who asks, by what the tenant's headers say.
    fn identify(&self, facts: &mut Facts, named: &[(&HeaderName, &HeaderValue)]) {
        let mut identity = self.fixed.map_or(Identity::Missing, Identity::Tenant);
        for (i, (name, value)) in named.iter().enumerate() {
            let repeated = named[..i].iter().any(|(earlier, _)| earlier == name);
            let said = match TenantId::parse(value.as_bytes()) {
                _ if repeated || value.as_bytes().contains(&b',') => Identity::Conflicting,
                Ok(tenant) => Identity::Tenant(tenant),
                Err(_) => Identity::Invalid,
            };
            identity = match (identity, said) {
                (Identity::Missing, said) => said,
                (before, said) if before == said => before,
                _ => Identity::Conflicting,
            };
        }
        facts.identity = identity;
        let Identity::Tenant(tenant) = identity else { return };
        let all_canonical = named.iter().all(|(_, value)| is_canonical(value.as_bytes()));
        facts.tenant_in_place = all_canonical && named.iter().any(|(name, _)| *name == X_TENANT_ID);
        facts.tenant = match named.first() {
            Some((_, value)) if all_canonical => Some((*value).clone()),
            _ => HeaderValue::from_str(&tenant.to_string()).ok(),
        };
    }

    /// The headers that may name the tenant.
    pub(crate) fn tenant_headers(&self) -> &[HeaderName] {
        &self.tenant_headers
    }
}

impl Facts {
    fn of(peer: Option<IpAddr>, trusted: bool) -> Self {
        Self {
            identity: Identity::Missing,
            tenant: None,
            tenant_in_place: false,
            trusted,
            peer,
            hop_by_hop: false,
            strip: Vec::new(),
            forwarded: Forwarded::default(),
            host: None,
            request_id: None,
            trace: None,
        }
    }
}

/// Headers that pingora strips or rewrites on their way upstream.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

enum Passes {
    Yes,
    /// It is stripped.
    No,
    /// The request is refused: a backend that folds `_` to `-` could take it for the tenant's header.
    Never,
}

/// Whether the text of a tenant id is its canonical one. Of all spellings that are read only one has this length and this
/// hyphen; letters are what remains to be seen.
fn is_canonical(id: &[u8]) -> bool {
    id.len() == uuid::fmt::Hyphenated::LENGTH && id[8] == b'-' && !id.iter().any(u8::is_ascii_uppercase)
}

fn names_content_length(raw_head: &[u8]) -> bool {
    const NAME: &[u8] = b"content-length";
    raw_head.split(|b| *b == b'\n').any(|line| {
        line.len() > NAME.len()
            && line[..NAME.len()].eq_ignore_ascii_case(NAME)
            && matches!(line[NAME.len()], b':' | b' ' | b'\t')
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const A: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";
    const B: &str = "00000000-0000-4000-8000-000000000001";
    const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));
    const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn intake(sources: &str) -> Intake {
        let text = format!(
            "version: 1\nupstream: {{ address: 127.0.0.1:1 }}\ntrusted_proxies: [10.0.0.0/8]\n\
             tenant: {{ sources: {sources} }}\nlicenses: {{ source: {{ postgres: {{}} }} }}\n"
        );
        let parsed = licensing::config::parse("test", &text).unwrap_or_else(|problems| panic!("{problems}"));
        Intake::new(&parsed.config)
    }

    fn read(sources: &str, peer: IpAddr, headers: &[(&str, &str)]) -> Result<Facts, Fault> {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        let mut raw = b"GET / HTTP/1.1\r\n".to_vec();
        for (name, value) in [("Host", "app")].iter().chain(headers) {
            raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            request.append_header((*name).to_owned(), *value).expect("a header");
        }
        intake(sources).read(&request, || raw.into(), Some(peer))
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
}
