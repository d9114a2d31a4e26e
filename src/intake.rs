//! What a request's headers say: who asks, whom we believe, what is stripped, and what no sane client sends.
//!
//! Every backend reads headers in its own way: some take the first of two, some the last, some join them; WSGI servers
//! fold `_` to `-`; frameworks let a header override the method or the path. What could make the backend see another
//! tenant or another path than the gate did is refused or stripped here.

mod framing;
mod who;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, Version};
use licensing::config::{Address, Config, HostPattern, Network, TenantSource, TokenPlace};
use licensing::tenant::{InvalidTenantId, TenantId};
use licensing::time::Timestamp;
use pingora::http::RequestHeader;
use smallvec::SmallVec;

use self::framing::Framing;
pub(crate) use self::who::Via;
use self::who::{Bearer, Who};
use crate::gate::Identity;
use crate::identity::Tokens;

/// Headers that frameworks obey over the request line: never passed on, from whomever they come. `SCRIPT_NAME` and
/// `PATH_INFO` are gunicorn's (`forwarder_headers`): it believes them from loopback, where a sidecar is, and takes
/// `/x/crm` with `SCRIPT_NAME: /x` for `/crm`.
const NEVER_PASSED: [&str; 11] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-forwarded-prefix",
    "x-script-name",
    "x-middleware-subrequest",
    "script-name",
    "path-info",
];

/// How the names of headers begin that only this program may set.
const OURS_ALONE: &str = "x-license-";

/// Headers that say where a request came from: believed from trusted proxies, stripped from anyone else, as is all that
/// begins with [`FORWARDED`].
const FROM_TRUSTED: [&str; 5] = ["forwarded", "x-real-ip", OTHER_HOSTS[0], OTHER_HOSTS[1], OTHER_HOSTS[2]];

/// How the names of what gateways say begin: of addresses and hosts, and also of users.
const FORWARDED: &str = "x-forwarded-";

/// Headers that some backends believe over `Host`.
const OTHER_HOSTS: [&str; 3] = ["x-host", "x-original-host", "x-http-host-override"];

/// Headers for the backend that are stripped on the way where `Connection` nominates them, so that it would judge by less
/// than was judged here.
const END_TO_END: [&str; 4] = ["authorization", "cookie", "host", "sec-websocket-protocol"];

/// Headers that this program always writes itself.
const ALWAYS_OURS: [&str; 2] = [TENANT_ID, "x-request-id"];

const FORWARDED_HEADER: HeaderName = HeaderName::from_static("forwarded");

/// Under this name the upstream is told who asks, under whatever name the gateway said it.
pub(crate) const X_TENANT_ID: HeaderName = HeaderName::from_static(TENANT_ID);
const TENANT_ID: &str = "x-tenant-id";

/// How requests are read, from configuration.
pub(crate) struct Intake {
    tenant_headers: Vec<HeaderName>,
    hosts: Vec<HostPattern>,
    fixed: Option<TenantId>,
    tokens: Tokens,
    /// Which headers may hold a token.
    bearers: Bearers,
    role: Option<Role>,
    /// The names of all headers that say who someone is, to us or to the backend, as CGI folds them.
    identity: Vec<String>,
    trusted: Vec<Network>,
    /// Whether peers have no addresses, but a socket in the file system, which guards it.
    on_unix_socket: bool,
    max_headers: usize,
    max_header_bytes: usize,
    max_target_bytes: usize,
}

/// Which headers may hold a token.
struct Bearers {
    authorization: bool,
    cookie: bool,
    subprotocol: bool,
}

/// The header that says whether its sender may upgrade the tenant, and the values that say so.
struct Role {
    header: HeaderName,
    values: Vec<String>,
}

/// What was found. All of it in one pass: each look-up in a header map costs as much as several headers seen in passing.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Who asks.
    pub(crate) identity: Identity,
    /// What said so. Of several the one that a page of another origin can fake least.
    pub(crate) via: Option<Via>,
    /// When the token is no longer accepted that says so.
    pub(crate) expires: Option<Timestamp>,
    /// Whether whoever asks may upgrade the tenant, by header or claim. Never without a tenant.
    pub(crate) may_upgrade: bool,
    /// Whom the token is about that says so.
    pub(crate) subject: Option<Arc<str>>,
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
    /// Whether that is among what names the tenant, so that nothing else may be taken for the host.
    pub(crate) named_by_host: bool,
    /// The client's `X-Request-ID`, if it sent one.
    pub(crate) request_id: Option<HeaderValue>,
    /// `traceparent`.
    pub(crate) trace: Option<HeaderValue>,
    /// The page that a browser asks for: `Origin`. `null`, which is nobody's, if there are several.
    pub(crate) origin: Option<HeaderValue>,
    /// The subprotocol that a WebSocket of ours is to speak, if the client offers it. A client that has nowhere else to put
    /// its token offers that as a second one, and is not answered with it:
    /// `new WebSocket(url, ["dotmac-license", token])`.
    pub(crate) subprotocol: Option<HeaderValue>,
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
    /// `tokens` are those of `config`.
    pub(crate) fn new(config: &Config, tokens: Tokens) -> Self {
        let (mut tenant_headers, mut hosts) = (Vec::new(), Vec::new());
        let mut fixed = None;
        for source in &config.tenant.sources {
            match source {
                TenantSource::Header(name) => tenant_headers.extend(HeaderName::try_from(name.as_str()).ok()),
                TenantSource::Fixed(tenant) => fixed = Some(tenant.0),
                // Read by `tokens`.
                TenantSource::Jwt(_) => {}
                TenantSource::Host(pattern) => hosts.push(pattern.clone()),
            }
        }
        let allow = config.upgrade.as_ref().map(|upgrade| &upgrade.allow);
        let role = allow.and_then(|allow| {
            let header = HeaderName::try_from(allow.header.as_ref()?.as_str()).ok()?;
            Some(Role { header, values: allow.values.clone().unwrap_or_default() })
        });
        let limits = &config.limits;
        let bearers = Bearers {
            authorization: tokens.look_at(&TokenPlace::Authorization),
            cookie: tokens.cookies().next().is_some(),
            subprotocol: tokens.look_at(&TokenPlace::WebsocketProtocol),
        };
        let role_header = role.as_ref().map(|role: &Role| role.header.as_str());
        let identity = tenant_headers.iter().map(HeaderName::as_str).chain(role_header).chain([TENANT_ID]);
        let identity = identity.map(folded).collect();
        Self {
            tenant_headers,
            hosts,
            fixed,
            bearers,
            tokens,
            role,
            identity,
            trusted: config.trusted_proxies.clone(),
            on_unix_socket: matches!(config.listen.proxy, Address::Unix(_)),
            max_headers: usize::from(limits.headers),
            max_header_bytes: limits.header_bytes.in_memory(),
            max_target_bytes: limits.uri_bytes.in_memory(),
        }
    }

    /// Whether requests from `peer` may say who asks and where from. On a Unix socket everybody may whom the file system
    /// lets connect.
    fn trusts(&self, peer: Option<IpAddr>) -> bool {
        match peer {
            Some(peer) => self.trusted.iter().any(|network| network.contains(peer)),
            None => self.on_unix_socket,
        }
    }

    /// Read a request's headers. `raw_head` is the head as it came over HTTP/1, empty over HTTP/2; `now` is what tokens are
    /// judged by.
    ///
    /// # Errors
    /// When the headers alone are reason enough to refuse the request.
    pub(crate) fn read(
        &self,
        request: &RequestHeader,
        raw_head: impl FnOnce() -> bytes::Bytes,
        peer: Option<IpAddr>,
        now: SystemTime,
    ) -> Result<Facts, Fault> {
        if request.raw_path().len() > self.max_target_bytes {
            return Err(Fault::TargetTooLong);
        }
        if request.headers.len() > self.max_headers {
            return Err(Fault::HeadersTooLarge);
        }
        let mut facts = Facts::of(peer, self.trusts(peer));
        let (mut bytes, mut hosts, mut request_ids, mut roles) = (0, 0, 0, 0);
        let mut framing = Framing::default();
        let mut named = SmallVec::<[(&HeaderName, &HeaderValue); 2]>::new();
        let mut bearers = SmallVec::<[(Bearer, &HeaderValue); 2]>::new();
        for (name, value) in &request.headers {
            bytes += name.as_str().len() + value.len() + 4;
            match name.as_str() {
                "host" => {
                    hosts += 1;
                    facts.host = Some(value.clone());
                }
                // HTTP/1.0 has nothing to be expected (RFC 9110 section 10.1.1), and clients of it don't know the answer.
                "expect" if request.version == Version::HTTP_10 => facts.strip.push(name.clone()),
                known @ ("content-length" | "transfer-encoding" | "expect" | "upgrade") => framing.see(known, value),
                "connection" if self.nominates_ours(value) => return Err(Fault::Malformed),
                "x-request-id" => {
                    request_ids += 1;
                    facts.request_id = Some(value.clone());
                }
                "traceparent" => facts.trace = Some(value.clone()),
                "origin" => {
                    let first = facts.origin.is_none();
                    facts.origin = Some(if first { value.clone() } else { HeaderValue::from_static("null") });
                }
                "authorization" if self.bearers.authorization => bearers.push((Bearer::Authorization, value)),
                "cookie" if self.bearers.cookie => bearers.push((Bearer::Cookie, value)),
                "sec-websocket-protocol" => {
                    facts.subprotocol = facts.subprotocol.or_else(|| who::our_subprotocol(value));
                    if self.bearers.subprotocol {
                        bearers.push((Bearer::Subprotocol, value));
                    }
                }
                "x-forwarded-for" if facts.trusted => facts.forwarded.chain.push(value.clone()),
                "x-forwarded-proto" if facts.trusted => facts.forwarded.proto = true,
                "x-forwarded-host" if facts.trusted => facts.forwarded.host = true,
                _ if self.tenant_headers.contains(name) && facts.trusted => named.push((name, value)),
                _ if facts.trusted && self.is_role(name) => {
                    roles += 1;
                    facts.may_upgrade = roles == 1 && self.allows_upgrade(value);
                }
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
        // RFC 9112 section 3.2: one Host.
        if hosts > 1 || !framing.is_sound(&raw_head()) {
            return Err(Fault::Malformed);
        }
        // Over HTTP/2 the authority comes first, and a Host beside it must be the same (RFC 9113 section 8.3.1).
        if let Some(authority) = request.uri.authority().filter(|_| request.version == Version::HTTP_2) {
            let authority = HeaderValue::from_str(authority.as_str()).map_err(|_| Fault::Malformed)?;
            if facts.host.replace(authority.clone()).is_some_and(|host| host != authority) {
                return Err(Fault::Malformed);
            }
        }
        let hostless = facts.host.is_none() && matches!(request.version, Version::HTTP_11 | Version::HTTP_2);
        if hostless || facts.host.as_ref().is_some_and(|host| !host.as_bytes().iter().all(is_of_host)) {
            return Err(Fault::Malformed);
        }
        if request_ids > 1 {
            facts.request_id = None;
        }
        self.identify(&mut facts, &named, &bearers, now);
        if facts.named_by_host {
            facts.strip_other_hosts(&request.headers);
        }
        Ok(facts)
    }

    /// Whether a `Connection` header nominates one of ours, or one that the backend needs to see the same as we do: it would
    /// be stripped on the way (RFC 9110 section 7.6.1).
    fn nominates_ours(&self, value: &HeaderValue) -> bool {
        value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).any(|token| {
            !token.eq_ignore_ascii_case(b"keep-alive")
                && !token.eq_ignore_ascii_case(b"close")
                && !token.eq_ignore_ascii_case(b"upgrade")
                && {
                    let name = folded(&String::from_utf8_lossy(token));
                    END_TO_END.contains(&&*name) || self.is_protected(&name)
                }
        })
    }

    fn passes(&self, name: &HeaderName, trusted: bool) -> Passes {
        if *name == X_TENANT_ID || self.tenant_headers.contains(name) || self.is_role(name) {
            return if trusted { Passes::Yes } else { Passes::No };
        }
        let name = name.as_str();
        let is_plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        let folded = if is_plain { Cow::Borrowed(name) } else { Cow::Owned(folded(name)) };
        // Another name, and the same one to somebody.
        if self.is_identity(&folded) || (!is_plain && framing::NAMES.contains(&&*folded)) {
            return Passes::Never;
        }
        let strippable = match is_plain {
            true => is_never_passed(name) || (!trusted && is_from_trusted(name)),
            false => self.is_protected(&folded),
        };
        if strippable { Passes::No } else { Passes::Yes }
    }

    /// Whether the backend takes a header of this folded name from us, and hence from nobody else.
    fn is_protected(&self, name: &str) -> bool {
        ALWAYS_OURS.contains(&name) || is_never_passed(name) || is_from_trusted(name) || self.is_identity(name)
    }

    /// Whether a header of this folded name says who someone is.
    fn is_identity(&self, name: &str) -> bool {
        self.identity.iter().any(|identity| identity == name)
    }

    fn is_role(&self, name: &HeaderName) -> bool {
        self.role.as_ref().is_some_and(|role| role.header == *name)
    }

    fn allows_upgrade(&self, role: &HeaderValue) -> bool {
        let values = self.role.iter().flat_map(|role| &role.values);
        values.into_iter().any(|value| value.as_bytes() == role.as_bytes())
    }

    /// Who it is that may upgrade, for the audit: whom the token is about, or else in which role they come, if that is one to
    /// go by. What anybody else says of themselves is not written down.
    pub(crate) fn actor(&self, facts: &Facts, headers: &HeaderMap) -> String {
        let role = || {
            let value = headers.get(&self.role.as_ref()?.header)?;
            let believed = facts.trusted && self.allows_upgrade(value);
            believed.then(|| format!("role {}", String::from_utf8_lossy(value.as_bytes())))
        };
        let subject = facts.subject.as_ref().map(|subject| subject.to_string());
        subject.or_else(role).unwrap_or_else(|| "the tenant".to_owned())
    }

    /// Who asks, by what the tenant's headers and the tokens say.
    fn identify(
        &self,
        facts: &mut Facts,
        named: &[(&HeaderName, &HeaderValue)],
        bearers: &[(Bearer, &HeaderValue)],
        now: SystemTime,
    ) {
        let mut who = Who::new(self.fixed);
        for (i, (name, value)) in named.iter().enumerate() {
            let repeated = named[..i].iter().any(|(earlier, _)| earlier == name);
            who.hear_header(value, repeated);
        }
        if !bearers.is_empty() {
            who.hear_tokens(bearers, &self.tokens, now.into());
        }
        if let Some(said) = self.said_by_host(facts) {
            who.hear_host(said);
            facts.named_by_host = said.is_ok();
        }
        facts.identity = who.identity();
        facts.may_upgrade = (facts.may_upgrade || who.may_upgrade) && matches!(facts.identity, Identity::Tenant(_));
        let Identity::Tenant(tenant) = who.named else { return };
        facts.via = who.via;
        facts.expires = who.expires;
        facts.subject = who.subject;
        let all_canonical = named.iter().all(|(_, value)| is_canonical(value.as_bytes()));
        facts.tenant_in_place = all_canonical && named.iter().any(|(name, _)| *name == X_TENANT_ID);
        facts.tenant = match named.first() {
            Some((_, value)) if all_canonical => Some((*value).clone()),
            _ => who.canonical.or_else(|| HeaderValue::from_str(&tenant.to_string()).ok()),
        };
    }

    /// What the host says of the tenant: nothing if no pattern fits it, or if anybody may have said it. Without a gateway
    /// that could vouch for it, as where no proxy is listed, everybody's word counts: that is a public site.
    fn said_by_host(&self, facts: &Facts) -> Option<Result<TenantId, InvalidTenantId>> {
        let host = facts.host.as_ref().filter(|_| facts.trusted || self.trusted.is_empty())?;
        self.hosts.iter().find_map(|pattern| pattern.tenant(host.as_bytes()))
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
            via: None,
            expires: None,
            may_upgrade: false,
            subject: None,
            tenant: None,
            tenant_in_place: false,
            trusted,
            peer,
            hop_by_hop: false,
            strip: Vec::new(),
            forwarded: Forwarded::default(),
            host: None,
            named_by_host: false,
            request_id: None,
            trace: None,
            origin: None,
            subprotocol: None,
        }
    }

    /// Pass nothing on that a backend could take for another host than the one that names the tenant, also from trusted
    /// proxies: many pass on what their clients say under these names.
    fn strip_other_hosts(&mut self, headers: &HeaderMap) {
        self.forwarded.host = false;
        let names_host =
            |value: &HeaderValue| value.as_bytes().to_ascii_lowercase().windows(4).any(|word| word == b"host");
        if headers.get_all(FORWARDED_HEADER).iter().any(names_host) {
            self.strip.push(FORWARDED_HEADER);
        }
        self.strip
            .extend(OTHER_HOSTS.into_iter().filter(|name| headers.contains_key(*name)).map(HeaderName::from_static));
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

/// Whether a header of this lower-case name is passed on from nobody.
fn is_never_passed(name: &str) -> bool {
    // Most names begin with other letters.
    matches!(name.as_bytes().first(), Some(b'x' | b's' | b'p'))
        && (name.starts_with(OURS_ALONE) || NEVER_PASSED.contains(&name))
}

/// Whether a header of this lower-case name is passed on from trusted proxies alone.
fn is_from_trusted(name: &str) -> bool {
    matches!(name.as_bytes().first(), Some(b'x' | b'f'))
        && (name.starts_with(FORWARDED) || FROM_TRUSTED.contains(&name))
}

/// The name that CGI makes of this one and of others, in lower case: WSGI servers fold `_` and `-` into one, some FastCGI
/// ones all that is neither letter nor digit.
fn folded(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

/// Whether a byte may occur in `Host` (RFC 9112 section 3.2: else the request is refused; RFC 3986 section 3.2.2). What one
/// reader takes for a name with a strange end, another takes for another name.
fn is_of_host(b: &u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(b)
}

enum Passes {
    Yes,
    /// It is stripped.
    No,
    /// The request is refused: a backend could take it for the tenant's header, or for one of the framing's.
    Never,
}

/// Whether the text of a tenant id is its canonical one. Of all spellings that are read only one has this length and this
/// hyphen; letters are what remains to be seen.
fn is_canonical(id: &[u8]) -> bool {
    id.len() == uuid::fmt::Hyphenated::LENGTH && id[8] == b'-' && !id.iter().any(u8::is_ascii_uppercase)
}

#[cfg(test)]
mod tests;
