//! Tokens that say who asks: which sources the configuration names, and what a token says to all of them.
//!
//! `jsonwebtoken` reads tokens and keys and verifies; what is asked here beside that is why a token is somebody else's, its
//! times by the caller's clock, and what its claims mean to us.

mod claims;
mod keys;
mod provider;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use jsonwebtoken::dangerous::insecure_decode_claims;
use licensing::config::{ClaimValues, Config, Jwt, TokenPlace};
use licensing::tenant::{TenantId, TokenFault};
use licensing::time::Timestamp;
use moka::sync::Cache;

use self::claims::Claims;
use self::keys::Keys;

/// The longest token that is verified, in bytes: browsers keep no cookie that is half as long.
const MAX_BYTES: usize = 8 << 10;

/// How much memory verified tokens may take, in bytes, for each source: some 4,000 tokens of usual size.
const CACHE_BYTES: u64 = 4 << 20;

/// What a cached token takes beside its text, in bytes.
const CACHE_ENTRY_BYTES: u32 = 256;

/// How long a token is not verified again. Between two verifications only its signature is taken for granted.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The sources of the configuration that are tokens.
pub(crate) struct Tokens {
    sources: Vec<Source>,
    /// The places that are cookies, each once.
    cookies: Vec<TokenPlace>,
}

/// What a token says once its signature, its times and its audience have been checked.
#[derive(Debug)]
pub(crate) struct Verified {
    /// Whose the request is.
    pub(crate) tenant: NamedTenant,
    /// When it is no longer accepted: its `exp`, and the leeway for clocks that differ.
    pub(crate) expires: Timestamp,
    /// Whether it has one of the roles that may upgrade.
    pub(crate) may_upgrade: bool,
    /// Whom it is about: `sub`.
    pub(crate) subject: Option<Arc<str>>,
    since: Timestamp,
}

/// What the tenant's claim holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NamedTenant {
    /// Nothing: the token is for something else, but good.
    None,
    /// No tenant id.
    Invalid,
    /// This tenant; as a header, its canonical id.
    Is(TenantId, HeaderValue),
}

/// What a text that may be a token is to one source.
#[derive(Debug)]
pub(crate) enum Word {
    /// No token, or another issuer's: somebody else's business.
    NotOurs,
    /// A token for us, and a bad one.
    Refused(TokenFault),
    /// One that is good at another time: why it is not now, and what its tenant's claim holds.
    Late(TokenFault, NamedTenant),
    /// A good one.
    Verified(Arc<Verified>),
}

/// Keys that can't be used: a sentence with the file's name.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UnusableKeys(String);

/// One source.
struct Source {
    places: Vec<TokenPlace>,
    claim: String,
    issuer: Option<String>,
    audience: Option<String>,
    leeway: Duration,
    role: Option<ClaimValues>,
    keys: Keys,
    /// Good tokens by their whole text.
    verified: Cache<Arc<[u8]>, Arc<Verified>>,
}

impl Tokens {
    /// Read the keys of every source. `config_file` is what relative paths are relative to.
    ///
    /// # Errors
    /// When a file of keys can't be read or used.
    pub(crate) fn load(config: &Config, config_file: &Path) -> Result<Self, UnusableKeys> {
        let role = config.upgrade.as_ref().and_then(|upgrade| upgrade.allow.jwt.as_ref());
        let sources = config.tenant.tokens().map(|jwt| {
            let keys = read_keys(&jwt.keys_file(config_file))?;
            Ok(Source::new(jwt, keys, role.cloned()))
        });
        let sources: Vec<Source> = sources.collect::<Result<_, _>>()?;
        let mut cookies: Vec<TokenPlace> = Vec::new();
        for place in sources.iter().flat_map(|source| &source.places) {
            if matches!(place, TokenPlace::Cookie(_)) && !cookies.contains(place) {
                cookies.push(place.clone());
            }
        }
        Ok(Self { sources, cookies })
    }

    /// Whether some source looks there.
    pub(crate) fn look_at(&self, place: &TokenPlace) -> bool {
        self.sources.iter().any(|source| source.places.contains(place))
    }

    /// The cookies that some source looks at: the name and the place of each.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = (&[u8], &TokenPlace)> {
        self.cookies.iter().filter_map(|place| match place {
            TokenPlace::Cookie(name) => Some((name.as_bytes(), place)),
            TokenPlace::Authorization | TokenPlace::WebsocketProtocol => None,
        })
    }

    /// What a text that stands in `place` is to each source that looks there.
    pub(crate) fn read(&self, text: &[u8], place: &TokenPlace, now: Timestamp) -> impl Iterator<Item = Word> {
        self.sources
            .iter()
            .filter(move |source| source.places.contains(place))
            .map(move |source| source.read(text, now))
    }
}

/// Whether a file of keys can be used.
///
/// # Errors
/// When it can't be.
pub(crate) fn check_keys(file: &Path) -> Result<(), UnusableKeys> {
    read_keys(file).map(drop)
}

fn read_keys(file: &Path) -> Result<Keys, UnusableKeys> {
    let unusable = |why: String| UnusableKeys(format!("{}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| unusable(format!("can't be read: {error}")))?;
    Keys::parse(&text).map_err(unusable)
}

impl Source {
    fn new(jwt: &Jwt, keys: Keys, role: Option<ClaimValues>) -> Self {
        let size = |token: &Arc<[u8]>, _: &Arc<Verified>| {
            u32::try_from(token.len()).unwrap_or(u32::MAX).saturating_add(CACHE_ENTRY_BYTES)
        };
        Self {
            places: jwt.from.clone(),
            claim: jwt.claim.clone(),
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            leeway: jwt.leeway.get(),
            role,
            keys,
            verified: Cache::builder().max_capacity(CACHE_BYTES).weigher(size).build(),
        }
    }

    fn read(&self, text: &[u8], now: Timestamp) -> Word {
        if let Some(verified) = self.verified.get(text)
            && verified.since <= now
            && now < verified.expires.min(verified.since.plus(REMEMBERED))
        {
            return Word::Verified(verified);
        }
        if !is_token(text) {
            return Word::NotOurs;
        }
        let claims = match self.verify(text) {
            Ok(Some(claims)) => claims,
            Ok(None) => return Word::NotOurs,
            Err(fault) => return Word::Refused(fault),
        };
        let tenant = NamedTenant::from(claims.get(&self.claim));
        let expires = match claims.check_times(self.leeway, now) {
            Ok(expires) => expires,
            Err(late @ (TokenFault::Expired | TokenFault::NotYetValid)) => return Word::Late(late, tenant),
            Err(fault) => return Word::Refused(fault),
        };
        let verified = Arc::new(Verified {
            tenant,
            expires,
            may_upgrade: self.role.as_ref().is_some_and(|role| claims.has_one_of(&role.claim, &role.values)),
            subject: claims.get("sub").and_then(|subject| subject.as_str()).map(Arc::from),
            since: now,
        });
        self.verified.insert(text.into(), Arc::clone(&verified));
        Word::Verified(verified)
    }

    /// What a token claims whose signature and audience are right. `None` for another issuer's, on which only that
    /// issuer's word counts.
    fn verify(&self, text: &[u8]) -> Result<Option<Claims>, TokenFault> {
        if text.len() > MAX_BYTES {
            return Err(TokenFault::Malformed);
        }
        // Not to be believed yet: it only tells whose keys would have to have signed it.
        let said: Claims = insecure_decode_claims(text).map_err(|_| TokenFault::Malformed)?;
        if self.issuer.as_ref().is_some_and(|issuer| said.issuer() != Some(issuer)) {
            return Ok(None);
        }
        self.keys.verify(text, self.audience.as_deref()).map(Some)
    }
}

/// Whether a text is meant to be a signed token: three parts, of which the first begins as the encoding of a JSON object does.
/// What else stands behind `Bearer` is no JWT, and not for us.
fn is_token(text: &[u8]) -> bool {
    let begins = text.starts_with(b"ey") || text.starts_with(b"ew");
    begins && text.iter().filter(|b| **b == b'.').count() == 2
}

impl From<Option<&serde_json::Value>> for NamedTenant {
    fn from(claim: Option<&serde_json::Value>) -> Self {
        let text = match claim {
            None | Some(serde_json::Value::Null) => return Self::None,
            Some(claim) => claim.as_str().unwrap_or_default(),
        };
        let tenant = TenantId::parse(text.as_bytes()).ok();
        let named = tenant.and_then(|tenant| Some(Self::Is(tenant, HeaderValue::from_str(&tenant.to_string()).ok()?)));
        named.unwrap_or(Self::Invalid)
    }
}

#[cfg(test)]
#[path = "../../tests/it/harness/jwt.rs"]
pub(crate) mod jwt;
#[cfg(test)]
mod tests;
