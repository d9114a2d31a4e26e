//! The keys that tokens are verified with, from a JWK set (RFC 7517).

use std::collections::HashSet;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use licensing::tenant::TokenFault;
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::Value;

use super::jws::Jws;

/// The shortest RSA modulus and the longest, in bits; the latter is ring's bound.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The shortest secret, in bytes: as long as the hash (RFC 7518 section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// The length of a coordinate of the curve P-256 and of an Ed25519 key, in bytes.
const COORDINATE_BYTES: usize = 32;

/// The keys of one issuer; never empty.
pub(super) struct Keys(Vec<Key>);

struct Key {
    id: Option<String>,
    verifier: Verifier,
}

/// A key together with the one algorithm that it is used for, so that no token can choose another: an RSA key that
/// everybody knows would make a fine HMAC secret.
enum Verifier {
    Hs256(hmac::Key),
    Rs256 { modulus: Vec<u8>, exponent: Vec<u8> },
    Es256(UnparsedPublicKey<Vec<u8>>),
    EdDsa(UnparsedPublicKey<Vec<u8>>),
}

/// A set as it is written. Members that are not known are allowed.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

/// A key as it is written.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

impl Keys {
    /// Read a JWK set. Keys that are for something else, or for algorithms that are not known here, are passed over, as RFC
    /// 7517 section 5 wants it: an issuer's set holds what all its clients need.
    ///
    /// # Errors
    /// A sentence, when the text is no JWK set, when a key is damaged, weak, private or named like another, or when none is
    /// left.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("is no JWK set (RFC 7517): {error}"))?;
        let mut keys = Vec::new();
        for (i, key) in set.keys.into_iter().enumerate() {
            let key: Jwk = serde_json::from_value(key).map_err(|error| format!("keys[{i}] is no JWK: {error}"))?;
            let verifier = key.verifier().map_err(|why| format!("keys[{i}] {why}"))?;
            keys.extend(verifier.map(|verifier| Key { id: key.kid, verifier }));
        }
        let mut ids = HashSet::new();
        if let Some(id) = keys.iter().filter_map(|key| key.id.as_ref()).find(|id| !ids.insert(*id)) {
            return Err(format!("two keys have the kid {id:?}: a token could mean either"));
        }
        if keys.is_empty() {
            return Err("has no key for signatures by HS256, RS256, ES256 or EdDSA".to_owned());
        }
        Ok(Self(keys))
    }

    /// Check a token's signature.
    ///
    /// # Errors
    /// When no key made it, or when it can't be told which key should have.
    pub(super) fn verify(&self, jws: &Jws<'_>) -> Result<(), TokenFault> {
        let key = self.key_for(jws).ok_or(TokenFault::Untrusted)?;
        key.verifier.verify(jws.signed(), jws.signature()).map_err(|_| TokenFault::Untrusted)
    }

    /// The key that a token names, or the only one that may be meant. In either case its own algorithm is the token's.
    fn key_for(&self, jws: &Jws<'_>) -> Option<&Key> {
        let fitting = || self.0.iter().filter(|key| key.verifier.is_for(jws.algorithm()));
        let named = |key: &&Key| key.id.is_some() && key.id.as_deref() == jws.key_id();
        if let Some(key) = fitting().find(named) {
            return Some(key);
        }
        let mut unnamed = fitting().filter(|key| key.id.is_none() || jws.key_id().is_none());
        let only = unnamed.next();
        only.filter(|_| unnamed.next().is_none())
    }
}

impl Jwk {
    /// `None` for a key that is not for signatures, or for those of another algorithm.
    fn verifier(&self) -> Result<Option<Verifier>, String> {
        let verifies = |operations: &Vec<String>| operations.iter().any(|operation| operation == "verify");
        let is_usable =
            self.usage.as_deref().is_none_or(|usage| usage == "sig") && self.key_ops.as_ref().is_none_or(verifies);
        let algorithm = self.alg.as_deref();
        let verifier = match (self.kty.as_str(), self.crv.as_deref()) {
            _ if !is_usable => None,
            ("oct", _) if algorithm.is_none_or(|name| name == "HS256") => Some(self.secret()?),
            ("RSA", _) if algorithm.is_none_or(|name| name == "RS256") => Some(self.rsa()?),
            ("EC", Some("P-256")) if algorithm.is_none_or(|name| name == "ES256") => Some(self.p256()?),
            ("OKP", Some("Ed25519")) if algorithm.is_none_or(is_eddsa) => Some(self.ed25519()?),
            _ => None,
        };
        if self.d.is_some() && verifier.is_some() {
            return Err("is a private key: whoever reads this file could sign tokens; give the public part".to_owned());
        }
        Ok(verifier)
    }

    fn secret(&self) -> Result<Verifier, String> {
        let secret = bytes("k", self.k.as_deref())?;
        if secret.len() < MIN_SECRET_BYTES {
            return Err(format!("is a secret of {} bytes: at least {MIN_SECRET_BYTES} are needed", secret.len()));
        }
        Ok(Verifier::Hs256(hmac::Key::new(hmac::HMAC_SHA256, &secret)))
    }

    fn rsa(&self) -> Result<Verifier, String> {
        let (modulus, exponent) = (integer("n", self.n.as_deref())?, integer("e", self.e.as_deref())?);
        let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
            return Err(format!("is an RSA key of {bits} bits: expected {least} to {most}"));
        }
        if matches!(*exponent, [] | [0..=2]) || exponent.last().is_some_and(|byte| byte % 2 == 0) {
            return Err("has an exponent `e` that RSA can't have".to_owned());
        }
        Ok(Verifier::Rs256 { modulus, exponent })
    }

    fn p256(&self) -> Result<Verifier, String> {
        // SEC 1 section 2.3.3: an uncompressed point begins with 4.
        let mut point = vec![4];
        point.extend(coordinate("x", self.x.as_deref())?);
        point.extend(coordinate("y", self.y.as_deref())?);
        Ok(Verifier::Es256(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)))
    }

    fn ed25519(&self) -> Result<Verifier, String> {
        Ok(Verifier::EdDsa(UnparsedPublicKey::new(&ED25519, coordinate("x", self.x.as_deref())?)))
    }
}

impl Verifier {
    fn is_for(&self, algorithm: &str) -> bool {
        match self {
            Self::Hs256(_) => algorithm == "HS256",
            Self::Rs256 { .. } => algorithm == "RS256",
            Self::Es256(_) => algorithm == "ES256",
            Self::EdDsa(_) => is_eddsa(algorithm),
        }
    }

    fn verify(&self, signed: &[u8], signature: &[u8]) -> Result<(), ring::error::Unspecified> {
        match self {
            Self::Hs256(secret) => hmac::verify(secret, signed, signature),
            Self::Rs256 { modulus, exponent } => RsaPublicKeyComponents { n: modulus, e: exponent }.verify(
                &RSA_PKCS1_2048_8192_SHA256,
                signed,
                signature,
            ),
            Self::Es256(key) | Self::EdDsa(key) => key.verify(signed, signature),
        }
    }
}

/// By its old name (RFC 8037) or by its new one (RFC 9864).
fn is_eddsa(algorithm: &str) -> bool {
    matches!(algorithm, "EdDSA" | "Ed25519")
}

fn bytes(member: &str, value: Option<&str>) -> Result<Vec<u8>, String> {
    let value = value.ok_or_else(|| format!("has no `{member}`"))?;
    BASE64_URL_SAFE_NO_PAD.decode(value).map_err(|error| format!("has a damaged `{member}`: {error}"))
}

/// An unsigned integer, its first byte not zero.
fn integer(member: &str, value: Option<&str>) -> Result<Vec<u8>, String> {
    let bytes = bytes(member, value)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes[zeros..].to_vec())
}

fn coordinate(member: &str, value: Option<&str>) -> Result<Vec<u8>, String> {
    let bytes = bytes(member, value)?;
    match bytes.len() {
        COORDINATE_BYTES => Ok(bytes),
        other => Err(format!("has a `{member}` of {other} bytes: expected {COORDINATE_BYTES}")),
    }
}
