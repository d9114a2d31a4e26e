//! A signed token in its compact form (RFC 7515 section 7.1), taken apart.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use licensing::tenant::TokenFault;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// The longest token that is verified, in bytes: browsers keep no cookie that is half as long.
const MAX_BYTES: usize = 8 << 10;

/// A token's parts, none of them to be believed yet.
pub(super) struct Jws<'a> {
    header: Header,
    /// What is signed: header and payload, encoded, and the dot between them.
    signed: &'a [u8],
    payload: &'a [u8],
    signature: Vec<u8>,
}

/// What a token says of itself (RFC 7515 section 4.1). Keys that come with it (`jwk`, `jku`, `x5c`) are not looked at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that have to be understood. None is.
    crit: Option<IgnoredAny>,
}

impl<'a> Jws<'a> {
    /// Whether a text is meant to be a signed token: three parts, of which the first begins as the encoding of a JSON object
    /// does. What else stands behind `Bearer` is no JWT, and not for us.
    pub(super) fn is_one(text: &[u8]) -> bool {
        let begins = text.starts_with(b"ey") || text.starts_with(b"ew");
        begins && text.iter().filter(|b| **b == b'.').count() == 2
    }

    /// Take a text apart of which [`Jws::is_one`] holds.
    ///
    /// # Errors
    /// When a part is not what it has to be.
    pub(super) fn split(text: &'a [u8]) -> Result<Self, TokenFault> {
        let malformed = || TokenFault::Malformed;
        if text.len() > MAX_BYTES {
            return Err(malformed());
        }
        let last_dot = memchr::memrchr(b'.', text).ok_or_else(malformed)?;
        let (signed, signature) = (&text[..last_dot], &text[last_dot + 1..]);
        let first_dot = memchr::memchr(b'.', signed).ok_or_else(malformed)?;
        let header: Header = serde_json::from_slice(&decode(&signed[..first_dot])?).map_err(|_| malformed())?;
        if header.crit.is_some() {
            return Err(malformed());
        }
        Ok(Self { header, signed, payload: &signed[first_dot + 1..], signature: decode(signature)? })
    }

    /// The algorithm that the token claims to be signed by.
    pub(super) fn algorithm(&self) -> &str {
        &self.header.alg
    }

    /// The id of the key that the token claims to be signed by.
    pub(super) fn key_id(&self) -> Option<&str> {
        self.header.kid.as_deref()
    }

    /// What is signed.
    pub(super) fn signed(&self) -> &[u8] {
        self.signed
    }

    /// The signature.
    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The payload, decoded.
    ///
    /// # Errors
    /// When it is no base64url.
    pub(super) fn payload(&self) -> Result<Vec<u8>, TokenFault> {
        decode(self.payload)
    }
}

fn decode(part: &[u8]) -> Result<Vec<u8>, TokenFault> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenFault::Malformed)
}
