//! Who asks: what headers, tokens and the host say, put together.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use licensing::config::TokenPlace;
use licensing::tenant::{InvalidTenantId, TenantId, TokenFault};
use licensing::time::Timestamp;

use crate::gate::Identity;
use crate::identity::{NamedTenant, Tokens, Word};

/// The subprotocol that our WebSocket speaks.
const SUBPROTOCOL: &str = "dotmac-license";

/// What said who asks, from what a page of another origin can fake most to what it can least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Via {
    /// The configuration: it is always the same tenant.
    Fixed,
    /// The host that is asked: every page chooses for itself which one that is.
    Host,
    /// A header from a trusted proxy, which may have gone by a cookie.
    Header,
    /// A token in a cookie, which a browser sends whoever has made it ask.
    Cookie,
    /// A token that a WebSocket client offered as a subprotocol.
    Subprotocol,
    /// A token behind `Authorization: Bearer`.
    Token,
}

/// A header that may hold a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bearer {
    Authorization,
    Cookie,
    Subprotocol,
}

/// What has been heard so far. All that name a tenant must name the same one.
pub(super) struct Who {
    /// By all that are believed.
    pub(super) named: Identity,
    pub(super) via: Option<Via>,
    /// Where a token named the tenant: its canonical id.
    pub(super) canonical: Option<HeaderValue>,
    /// When the first of the tokens that named the tenant is no longer accepted.
    pub(super) expires: Option<Timestamp>,
    /// Whether such a token has a role that may upgrade.
    pub(super) may_upgrade: bool,
    /// Whom such a token is about.
    pub(super) subject: Option<Arc<str>>,
    /// What is wrong with a token that is not to be believed at all.
    fault: Option<TokenFault>,
    /// What is wrong with tokens that are good at another time, and whom they name.
    late: Option<(TokenFault, Identity)>,
}

impl Who {
    /// Nobody has said anything yet, or `fixed` asks, whatever is said.
    pub(super) fn new(fixed: Option<TenantId>) -> Self {
        let named = fixed.map_or(Identity::Missing, Identity::Tenant);
        let via = fixed.map(|_| Via::Fixed);
        Self { named, via, canonical: None, expires: None, may_upgrade: false, subject: None, fault: None, late: None }
    }

    /// Who asks, all in all. A token that is not believed outweighs what others say, however good: the backend may look at
    /// that token alone. One that is only past its time or before it does no harm beside a good word for the same tenant:
    /// whichever the backend looks at, that is whose request it is. Browsers carry stale cookies for long.
    pub(super) fn identity(&self) -> Identity {
        match (self.named, self.fault, self.late) {
            (Identity::Conflicting, ..) | (_, None, None) => self.named,
            (_, Some(fault), _) => Identity::BadToken(fault),
            (Identity::Tenant(_), None, Some((_, late))) if late == Identity::Missing || late == self.named => {
                self.named
            }
            (_, None, Some((fault, _))) => Identity::BadToken(fault),
        }
    }

    /// A header of the tenant's, the second of its name or not.
    pub(super) fn hear_header(&mut self, value: &HeaderValue, repeated: bool) {
        let said = match TenantId::parse(value.as_bytes()) {
            _ if repeated || value.as_bytes().contains(&b',') => Identity::Conflicting,
            Ok(tenant) => Identity::Tenant(tenant),
            Err(_) => Identity::Invalid,
        };
        self.hear(said, Via::Header);
    }

    /// What the host says. Comes last: where another source names the tenant, a host such as www names nobody.
    pub(super) fn hear_host(&mut self, said: Result<TenantId, InvalidTenantId>) {
        match said {
            Ok(tenant) => self.hear(Identity::Tenant(tenant), Via::Host),
            Err(_) if self.named == Identity::Missing => self.hear(Identity::Invalid, Via::Host),
            Err(_) => {}
        }
    }

    /// Headers that may hold tokens.
    pub(super) fn hear_tokens(&mut self, bearers: &[(Bearer, &HeaderValue)], tokens: &Tokens, now: Timestamp) {
        for (bearer, value) in bearers {
            let value = value.as_bytes();
            match bearer {
                Bearer::Authorization => {
                    if let Some(text) = behind_bearer(value) {
                        self.weigh(tokens.read(text, &TokenPlace::Authorization, now), Via::Token);
                    }
                }
                Bearer::Cookie => {
                    for (name, place) in tokens.cookies() {
                        for text in values_of(value, name) {
                            self.weigh(tokens.read(&text, place, now), Via::Cookie);
                        }
                    }
                }
                Bearer::Subprotocol => {
                    for text in items(value) {
                        self.weigh(tokens.read(text, &TokenPlace::WebsocketProtocol, now), Via::Subprotocol);
                    }
                }
            }
        }
        // RFC 9110 section 11.6.2 knows one only: of two, a backend may pick the other.
        if bearers.iter().filter(|(bearer, _)| *bearer == Bearer::Authorization).count() > 1 {
            self.named = Identity::Conflicting;
        }
    }

    /// What one text is to all sources that look at it: it is good if it is to one of them.
    fn weigh(&mut self, words: impl Iterator<Item = Word>, via: Via) {
        let (mut good, mut fault, mut late) = (false, None, None);
        for word in words {
            let verified = match word {
                Word::NotOurs => continue,
                Word::Refused(why) => {
                    fault = fault.or(Some(why));
                    continue;
                }
                Word::Late(why, named) => {
                    late = late.or(Some((why, Identity::from(named))));
                    continue;
                }
                Word::Verified(verified) => verified,
            };
            good = true;
            match &verified.tenant {
                NamedTenant::None => {}
                NamedTenant::Invalid => self.hear(Identity::Invalid, via),
                NamedTenant::Is(tenant, canonical) => {
                    self.hear(Identity::Tenant(*tenant), via);
                    self.canonical = Some(canonical.clone());
                    self.expires = Some(self.expires.map_or(verified.expires, |other| other.min(verified.expires)));
                    // Of several whoever may upgrade, since that is who is asked for.
                    if !self.may_upgrade && (verified.may_upgrade || self.subject.is_none()) {
                        self.subject.clone_from(&verified.subject);
                    }
                    self.may_upgrade |= verified.may_upgrade;
                }
            }
        }
        match (good, late) {
            (true, _) => {}
            (false, Some((why, named))) => {
                let (first, before) = self.late.unwrap_or((why, Identity::Missing));
                self.late = Some((first, both(before, named)));
            }
            (false, None) => self.fault = self.fault.or(fault),
        }
    }

    fn hear(&mut self, said: Identity, via: Via) {
        self.via = self.via.max(Some(via));
        self.named = both(self.named, said);
    }
}

/// What two say together.
fn both(before: Identity, said: Identity) -> Identity {
    match (before, said) {
        (before, Identity::Missing) => before,
        (Identity::Missing, said) => said,
        (before, said) if before == said => before,
        _ => Identity::Conflicting,
    }
}

impl From<NamedTenant> for Identity {
    fn from(named: NamedTenant) -> Self {
        match named {
            NamedTenant::None => Self::Missing,
            NamedTenant::Invalid => Self::Invalid,
            NamedTenant::Is(tenant, _) => Self::Tenant(tenant),
        }
    }
}

/// Our subprotocol, if it is among those that a client offers.
pub(super) fn our_subprotocol(offered: &HeaderValue) -> Option<HeaderValue> {
    let ours = items(offered.as_bytes()).any(|item| item == SUBPROTOCOL.as_bytes());
    ours.then_some(HeaderValue::from_static(SUBPROTOCOL))
}

/// What stands behind `Bearer` (RFC 6750 section 2.1). Some readers take a tab for the blank.
fn behind_bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, text) = value.split_at_checked(7)?;
    let is_bearer = scheme[..6].eq_ignore_ascii_case(b"bearer") && matches!(scheme[6], b' ' | b'\t');
    is_bearer.then(|| text.trim_ascii())
}

/// The items of a list (RFC 9110 section 5.6.1).
fn items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii)
}

/// What some reader takes for the value of this cookie. Pairs are parted by `;` (RFC 6265 section 4.2.1); by blanks too for
/// Python's `http.cookies` and aiohttp.
fn values_of<'a>(header: &'a [u8], name: &'a [u8]) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let parts = |b: &u8| matches!(b, b';' | b',' | b' ' | b'\t');
    memchr::memmem::find_iter(header, name).filter_map(move |at| {
        let (before, behind) = (&header[..at], &header[at + name.len()..]);
        let value = behind.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
        let value = value.strip_prefix(b"\"").unwrap_or(value);
        let end = value.iter().position(|b| parts(b) || *b == b'"').unwrap_or(value.len());
        before.last().is_none_or(parts).then(|| unescaped(&value[..end]))
    })
}

/// A cookie's value without the escapes that many readers resolve: `%65` (Express, Rails, PHP), `\145` and `\e` (Django,
/// Starlette, Werkzeug).
fn unescaped(value: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'\\', value).is_none() {
        return Cow::Borrowed(value);
    }
    let mut plain = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [first, behind @ ..] = rest {
        let code = match first {
            b'%' => coded(behind, 2, 16),
            b'\\' => coded(behind, 3, 8),
            _ => None,
        };
        rest = match code {
            Some((byte, behind)) => {
                plain.push(byte);
                behind
            }
            None => {
                plain.extend(Some(*first).filter(|b| *b != b'\\'));
                behind
            }
        };
    }
    Cow::Owned(plain)
}

/// The byte that so many digits stand for, and what comes after them.
fn coded(text: &[u8], digits: usize, radix: u32) -> Option<(u8, &[u8])> {
    let (digits, after) = text.split_at_checked(digits)?;
    let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
    Some((u8::from_str_radix(digits, radix).ok()?, after))
}
