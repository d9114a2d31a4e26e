//! The primitives that `jsonwebtoken` verifies signatures with: those of `ring`, as everywhere else in this program. The
//! library's own choices are AWS-LC, a second provider of cryptography beside the one of rustls, and the crate `rsa` with
//! its open advisory (RUSTSEC-2023-0071).

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error as Mismatch, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::hmac;
use ring::signature as public;

static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| Ok(Box::new(RingVerifier::new(*algorithm, key)?)),
    // Only for making JWKs and their thumbprints, which this program does not.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Have the library verify with `ring`. It has one provider in a process, and keeps the first that it is given.
pub(super) fn install() {
    // An error says that this has been done before.
    RING.install_default().ok();
}

/// The bytes of an unsigned integer without the zeros before them, which some issuers write and `ring` refuses.
pub(super) fn significant(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    &integer[zeros..]
}

/// A key and what it is used for.
struct RingVerifier {
    algorithm: Algorithm,
    primitive: Primitive,
    key: DecodingKey,
}

enum Primitive {
    Secret(hmac::Algorithm),
    Rsa(&'static public::RsaParameters),
    Curve(&'static dyn public::VerificationAlgorithm),
}

impl RingVerifier {
    fn new(algorithm: Algorithm, key: &DecodingKey) -> Result<Self> {
        if algorithm.family() != key.family() {
            return Err(ErrorKind::InvalidKeyFormat.into());
        }
        Ok(Self { algorithm, primitive: Primitive::of(algorithm)?, key: key.clone() })
    }
}

impl Primitive {
    fn of(algorithm: Algorithm) -> Result<Self> {
        Ok(match algorithm {
            Algorithm::HS256 => Self::Secret(hmac::HMAC_SHA256),
            Algorithm::HS384 => Self::Secret(hmac::HMAC_SHA384),
            Algorithm::HS512 => Self::Secret(hmac::HMAC_SHA512),
            Algorithm::RS256 => Self::Rsa(&public::RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => Self::Rsa(&public::RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => Self::Rsa(&public::RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => Self::Rsa(&public::RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => Self::Rsa(&public::RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => Self::Rsa(&public::RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => Self::Curve(&public::ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => Self::Curve(&public::ECDSA_P384_SHA384_FIXED),
            Algorithm::EdDSA => Self::Curve(&public::ED25519),
            _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
        })
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, signed: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Mismatch> {
        let verified = match (&self.primitive, self.key.kind()) {
            (Primitive::Secret(hash), DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(*hash, secret), signed, signature)
            }
            (Primitive::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = public::RsaPublicKeyComponents { n: significant(n), e: significant(e) };
                key.verify(parameters, signed, signature)
            }
            (Primitive::Curve(curve), DecodingKeyKind::SecretOrDer(point)) => {
                public::UnparsedPublicKey::new(*curve, point).verify(signed, signature)
            }
            _ => return Err(Mismatch::new()),
        };
        verified.map_err(|_| Mismatch::new())
    }
}
