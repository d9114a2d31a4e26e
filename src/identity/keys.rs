//! The keys that tokens are verified with, from a JWK set (RFC 7517).

use std::collections::HashSet;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, OtherKeyParameters, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Header, Validation, decode, decode_header};
use licensing::tenant::TokenFault;
use serde::Deserialize;
use serde_json::Value;

use super::claims::Claims;
use super::provider::{self, significant};

/// The shortest RSA modulus and the longest, in bits; the latter is ring's bound.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The keys of one issuer; never empty.
pub(super) struct Keys(Vec<Key>);

/// A key together with the one algorithm that it is used for, so that no token can choose another: an RSA key that
/// everybody knows would make a fine HMAC secret.
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// A set as it is written. Members that are not known are allowed.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

impl Keys {
    /// Read a JWK set. Keys that are for something else, or for algorithms that are not known here, are passed over, as RFC
    /// 7517 section 5 wants it: an issuer's set holds what all its clients need.
    ///
    /// # Errors
    /// A sentence, when the text is no JWK set, when a key is damaged, weak, private or named like another, or when none is
    /// left.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        provider::install();
        let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("is no JWK set (RFC 7517): {error}"))?;
        let mut keys = Vec::new();
        for (i, jwk) in set.keys.into_iter().enumerate() {
            keys.extend(Key::parse(jwk).map_err(|why| format!("keys[{i}] {why}"))?);
        }
        let mut ids = HashSet::new();
        if let Some(id) = keys.iter().filter_map(|key: &Key| key.id.as_ref()).find(|id| !ids.insert(*id)) {
            return Err(format!("two keys have the kid {id:?}: a token could mean either"));
        }
        if keys.is_empty() {
            return Err("has no key for signatures that can be verified here".to_owned());
        }
        Ok(Self(keys))
    }

    /// What a token claims whose signature is right, and which is for `audience`, if one is given. Its times are not looked
    /// at: the library would go by a clock of its own.
    ///
    /// # Errors
    /// When no key made the signature, when it can't be told which key should have, or when the token can't be read.
    pub(super) fn verify(&self, token: &[u8], audience: Option<&str>) -> Result<Claims, TokenFault> {
        let header = decode_header(token).map_err(|error| header_fault(&error))?;
        if header.crit.is_some() {
            return Err(TokenFault::Malformed);
        }
        let key = self.key_for(&header).ok_or(TokenFault::Untrusted)?;
        let mut validation = Validation::new(key.algorithm);
        validation.validate_exp = false;
        validation.validate_aud = audience.is_some();
        validation.set_audience(audience.as_slice());
        validation.set_required_spec_claims(audience.map(|_| "aud").as_slice());
        let token = decode(token, &key.key, &validation).map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenFault::Untrusted,
            ErrorKind::InvalidAudience | ErrorKind::MissingRequiredClaim(_) => TokenFault::WrongAudience,
            _ => TokenFault::Malformed,
        })?;
        Ok(token.claims)
    }

    /// The key that a token names, or the only one that may be meant. In either case its own algorithm is the token's.
    fn key_for(&self, header: &Header) -> Option<&Key> {
        let fitting = || self.0.iter().filter(|key| key.algorithm == header.alg);
        let named = |key: &&Key| key.id.is_some() && key.id == header.kid;
        if let Some(key) = fitting().find(named) {
            return Some(key);
        }
        let mut unnamed = fitting().filter(|key| key.id.is_none() || header.kid.is_none());
        let only = unnamed.next();
        only.filter(|_| unnamed.next().is_none())
    }
}

impl Key {
    /// `None` for a key that is not for signatures, or for those of an algorithm that is not known here.
    fn parse(jwk: Value) -> Result<Option<Self>, String> {
        // The library's type has no place for it.
        let is_private = jwk.get("d").is_some();
        let jwk: Jwk = serde_json::from_value(jwk).map_err(|error| format!("is no JWK: {error}"))?;
        let Some(algorithm) = algorithm(&jwk)? else { return Ok(None) };
        let key = DecodingKey::from_jwk(&jwk).map_err(|error| format!("is damaged: {error}"))?;
        check_strength(&key, algorithm)?;
        if is_private {
            return Err("is a private key: whoever reads this file could sign tokens; give the public part".to_owned());
        }
        Ok(Some(Self { id: jwk.common.key_id, algorithm, key }))
    }
}

/// The algorithm that a key is for: the one that it names, or the usual one of its type.
fn algorithm(jwk: &Jwk) -> Result<Option<Algorithm>, String> {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512};

    let usage = jwk.common.public_key_use.as_ref();
    let operations = jwk.common.key_operations.as_ref();
    if usage.is_some_and(|usage| *usage != PublicKeyUse::Signature)
        || operations.is_some_and(|operations| !operations.contains(&KeyOperations::Verify))
    {
        return Ok(None);
    }
    let possible: &[Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::OctetKey(_) => &[HS256, HS384, HS512],
        AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => &[ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => &[ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => &[EdDSA],
        AlgorithmParameters::Other(key) if is_incomplete(key) => {
            return Err("lacks a member that a key of its type has, or has one that is no text".to_owned());
        }
        _ => &[],
    };
    Ok(match jwk.common.key_algorithm {
        None => possible.first().copied(),
        Some(named) => Algorithm::try_from(named).ok().filter(|named| possible.contains(named)),
    })
}

/// Whether a key that the library does not know is one of those that it should, were it whole.
fn is_incomplete(key: &OtherKeyParameters) -> bool {
    let member = |name| key.fields.get(name).and_then(Value::as_str);
    match member("kty") {
        None | Some("oct" | "RSA") => true,
        Some("EC" | "OKP") => matches!(member("crv"), None | Some("P-256" | "P-384" | "Ed25519")),
        Some(_) => false,
    }
}

/// What the library asks of no key: that it is as long as it has to be.
fn check_strength(key: &DecodingKey, algorithm: Algorithm) -> Result<(), String> {
    let bytes = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, e } => return check_rsa(significant(n), significant(e)),
        DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
    };
    let secret = |least| match bytes {
        bytes if bytes < least => Err(format!("is a secret of {bytes} bytes: at least {least} are needed")),
        _ => Ok(()),
    };
    let point = |expected| match bytes {
        bytes if bytes != expected => Err(format!("is a point of {bytes} bytes: expected {expected}")),
        _ => Ok(()),
    };
    match algorithm {
        // As long as the hash: RFC 7518 section 3.2.
        Algorithm::HS256 => secret(32),
        Algorithm::HS384 => secret(48),
        Algorithm::HS512 => secret(64),
        // Both coordinates and the byte before them: SEC 1 section 2.3.3.
        Algorithm::ES256 => point(1 + 32 + 32),
        Algorithm::ES384 => point(1 + 48 + 48),
        Algorithm::EdDSA => point(32),
        _ => Ok(()),
    }
}

fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), String> {
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
        return Err(format!("is an RSA key of {bits} bits: expected {least} to {most}"));
    }
    if matches!(exponent, [] | [0..=2]) || exponent.last().is_some_and(|byte| byte % 2 == 0) {
        return Err("has an exponent `e` that RSA can't have".to_owned());
    }
    Ok(())
}

/// The library reads no header that names an algorithm that it does not know, such as `none`: what is JSON, but not of its
/// kind, is signed by none of our keys.
fn header_fault(error: &Error) -> TokenFault {
    match error.kind() {
        ErrorKind::Json(error) if error.is_data() => TokenFault::Untrusted,
        _ => TokenFault::Malformed,
    }
}
