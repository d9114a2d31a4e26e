//! Tokens for the tests: signs JWTs by each algorithm and gives the JWK set that verifies them.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
    RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
};
use ring::{hmac, rand};
use serde_json::{Value, json};

// The example key of RFC 7515 appendix A.2: everybody knows it, and ring makes no RSA keys.
const N: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yR\
    T-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXB\
    dQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9ia\
    GNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
const D: &str = "Eq5xpGnNCivDflJsRQBXHx1hdR1k6Ulwe2JZD50LpXyWPEAeP88vLNO97IjlA7_GQ5sLKMgvfTeXZx9SE-7YwVol2NXOoAJe46su\
    i395IW_GO-pWJ1O0BkTGoVEn2bKVRUCgu-GjBVaYLU6f3l9kJfFNS3E0QbVdxzubSu3Mkqzjkn439X0M_V51gfpRLI9JYanrC4D4\
    qAdGcopV_0ZHHzQlBjudU2QvXt4ehNYTCBr6XCLQUShb1juUO1ZdiYoFaFQT5Tw8bGUl_x_jTj3ccPDVZFD9pIuhLhBOneufuBiB\
    4cS98l2SR_RQyGWSeWjnczT0QU91p1DhOVRuOopznQ";
const P: &str = "4BzEEOtIpmVdVEZNCqS7baC4crd0pqnRH_5IB3jw3bcxGn6QLvnEtfdUdiYrqBdss1l58BQ3KhooKeQTa9AB0Hw_Py5PJdTJNPY8\
    cQn7ouZ2KKDcmnPGBY5t7yLc1QlQ5xHdwW1VhvKn-nXqhJTBgIPgtldC-KDV5z-y2XDwGUc";
const Q: &str = "uQPEfgmVtjL0Uyyx88GZFF1fOunH3-7cepKmtH4pxhtCoHqpWmT8YAmZxaewHgHAjLYsp1ZSe7zFYHj7C6ul7TjeLQeZD_YwD66t\
    62wDmpe_HlB-TnBA-njbglfIsRLtXlnDzQkv5dTltRJ11BKBBypeeF6689rjcJIDEz9RWdc";
const DP: &str = "BwKfV3Akq5_MFZDFZCnW-wzl-CCo83WoZvnLQwCTeDv8uzluRSnm71I3QCLdhrqE2e9YkxvuxdBfpT_PI7Yz-FOKnu1R6HsJeDCj\
    n12Sk3vmAktV2zb34MCdy7cpdTh_YVr7tss2u6vneTwrA86rZtu5Mbr1C1XsmvkxHQAdYo0";
const DQ: &str = "h_96-mK1R_7glhsum81dZxjTnYynPbZpHziZjeeHcXYsXaaMwkOlODsWa7I9xXDoRwbKgB719rrmI2oKr6N3Do9U0ajaHF-NKJnw\
    gjMd2w9cjz3_-kyNlxAr2v4IKhGNpmM5iIgOS1VZnOZ68m6_pbLBSp3nssTdlqvd0tIiTHU";
const QI: &str = "IYd7DHOhrWvxkwPQsRM2tOgrjbcrfvtQJipd-DlcxyVuuM9sQLdgjVk2oy26F0EmpScGLq2MowX7fhd_QJQ3ydy5cY7YIBi87w93\
    IKLEdfnbJtoOPLUW0ITrJReOgo1cq9SbsxYawBgfp_gh6A5603k2-ZQwVK0JKSHuLFkuQ3U";

/// What comes before a key in its SubjectPublicKeyInfo: rsaEncryption, without parameters (RFC 3279 section 2.3.1).
const RSA_SPKI: [u8; 24] =
    [0x30, 0x82, 1, 0x22, 0x30, 0x0D, 6, 9, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1, 5, 0, 3, 0x82, 1, 0x0F, 0];

/// A key that signs tokens.
pub(crate) struct Signer {
    id: String,
    algorithm: &'static str,
    key: Key,
}

enum Key {
    Secret(hmac::Algorithm, Vec<u8>),
    Rsa(&'static dyn RsaEncoding, Box<RsaKeyPair>),
    Ec(&'static str, Box<EcdsaKeyPair>),
    Ed(Box<Ed25519KeyPair>),
}

impl Signer {
    /// A new key for this algorithm (RFC 7518 section 3.1, RFC 8037); those of RSA have always the same one.
    pub(crate) fn new(algorithm: &'static str, id: &str) -> Signer {
        let key = match algorithm {
            "HS256" => Key::secret(hmac::HMAC_SHA256),
            "HS384" => Key::secret(hmac::HMAC_SHA384),
            "HS512" => Key::secret(hmac::HMAC_SHA512),
            "RS256" => Key::rsa(&RSA_PKCS1_SHA256),
            "RS384" => Key::rsa(&RSA_PKCS1_SHA384),
            "RS512" => Key::rsa(&RSA_PKCS1_SHA512),
            "PS256" => Key::rsa(&RSA_PSS_SHA256),
            "PS384" => Key::rsa(&RSA_PSS_SHA384),
            "PS512" => Key::rsa(&RSA_PSS_SHA512),
            "ES256" => Key::ec("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            "ES384" => Key::ec("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
            "EdDSA" => {
                let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("an Ed25519 key");
                Key::Ed(Box::new(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("an Ed25519 key")))
            }
            other => panic!("{other} is none of them"),
        };
        Signer { id: id.to_owned(), algorithm, key }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        self.algorithm
    }

    /// What verifies its tokens.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Key::Secret(_, secret) => json!({ "kty": "oct", "k": encode(secret) }),
            Key::Rsa(..) => json!({ "kty": "RSA", "n": N, "e": "AQAB" }),
            Key::Ec(curve, pair) => {
                let (x, y) = pair.public_key().as_ref()[1..].split_at(pair.public_key().as_ref().len() / 2);
                json!({ "kty": "EC", "crv": curve, "x": encode(x), "y": encode(y) })
            }
            Key::Ed(pair) => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(pair.public_key().as_ref()) }),
        };
        jwk["kid"] = self.id.as_str().into();
        jwk["alg"] = self.algorithm.into();
        jwk
    }

    /// What an RSA key may be written as: whoever verifies HMAC with one of these takes what everybody knows for a secret.
    pub(crate) fn rsa_spellings() -> Vec<Vec<u8>> {
        let modulus = decode(N);
        // RSAPublicKey (RFC 8017 appendix A.1.1) with a modulus of 2048 bits and 65537, and SubjectPublicKeyInfo around it.
        let pkcs1 = [&[0x30, 0x82, 1, 0x0A, 2, 0x82, 1, 1, 0][..], &modulus, &[2, 3, 1, 0, 1]].concat();
        let spki = [&RSA_SPKI[..], &pkcs1].concat();
        let pem = |label: &str, der: &[u8]| {
            let text = BASE64_STANDARD.encode(der);
            let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
            format!("-----BEGIN {label}-----\n{}\n-----END {label}-----", lines.join("\n"))
        };
        let (outer, inner) = (pem("PUBLIC KEY", &spki), pem("RSA PUBLIC KEY", &pkcs1));
        let jwk = Signer::new("RS256", "rsa").jwk().to_string();
        let lines = [format!("{outer}\n"), format!("{inner}\n"), outer, inner, N.to_owned(), jwk];
        lines.map(String::into_bytes).into_iter().chain([modulus, pkcs1, spki]).collect()
    }

    /// A token with the usual header.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.token_with(&json!({ "typ": "JWT", "alg": self.algorithm(), "kid": self.id }), claims)
    }

    /// A token with a header of the test's choice, signed by this key's algorithm whatever that says.
    pub(crate) fn token_with(&self, header: &Value, claims: &Value) -> String {
        self.token_of(&header.to_string(), &claims.to_string())
    }

    /// A token of two texts, whatever they are.
    pub(crate) fn token_of(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        let signature = match &self.key {
            Key::Secret(hash, secret) => hmac::sign(&hmac::Key::new(*hash, secret), message).as_ref().to_vec(),
            Key::Rsa(encoding, pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(*encoding, &random, message, &mut signature).expect("signed");
                signature
            }
            Key::Ec(_, pair) => pair.sign(&random, message).expect("signed").as_ref().to_vec(),
            Key::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        };
        format!("{signed}.{}", encode(signature))
    }
}

impl Key {
    fn secret(hash: hmac::Algorithm) -> Key {
        let secret = rand::generate::<[u8; 64]>(&SystemRandom::new()).expect("random bytes").expose();
        Key::Secret(hash, secret[..hash.digest_algorithm().output_len()].to_vec())
    }

    fn rsa(encoding: &'static dyn RsaEncoding) -> Key {
        let public_key = PublicKeyComponents { n: decode(N), e: decode("AQAB") };
        let [d, p, q] = [D, P, Q].map(decode);
        let (dp, dq, inverse) = (decode(DP), decode(DQ), decode(QI));
        let components = KeyPairComponents { public_key, d, p, q, dP: dp, dQ: dq, qInv: inverse };
        Key::Rsa(encoding, Box::new(RsaKeyPair::from_components(&components).expect("an RSA key")))
    }

    fn ec(curve: &'static str, algorithm: &'static EcdsaSigningAlgorithm) -> Key {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("an EC key");
        Key::Ec(curve, Box::new(EcdsaKeyPair::from_pkcs8(algorithm, key.as_ref(), &random).expect("an EC key")))
    }
}

/// A JWK set of these keys.
pub(crate) fn jwk_set(signers: &[&Signer]) -> Value {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() })
}

pub(crate) fn hmac_sha256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec()
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(text: &str) -> Vec<u8> {
    BASE64_URL_SAFE_NO_PAD.decode(text).expect("base64url")
}
