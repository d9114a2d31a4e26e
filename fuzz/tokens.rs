//! Tokens: none is believed that was not signed by a key of the set, or says other than what is taken from it.

use std::io::Write;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use licensing::config::{Config, TokenPlace};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use ring::signature::{self, Ed25519KeyPair, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Value, json};

use super::target;
use crate::identity::jwt::{Signer, hmac_sha256};
use crate::identity::{NamedTenant, Tokens, Word};

/// The time of every request, in seconds: that at which the examples of RFC 7515 were good.
pub(super) const NOW: i64 = 1_300_819_000;

/// Tenants that good tokens name.
pub(super) const A: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";
pub(super) const B: &str = "00000000-0000-4000-8000-000000000001";

// Keys that everybody knows: RFC 7515 appendices A.1 and A.3, RFC 8037 appendix A.1.
const SECRET: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
const X: &str = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
const Y: &str = "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
const ED_SEED: &str = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A";
const ED_POINT: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
/// RFC 7515 appendix A.3.
const ES256_EXAMPLE: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxl\
    LmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

/// The sources of the configuration that [`Tokens`] are read by: two, since a token may be one's and not the other's. `HOST`
/// is for one that is a host.
pub(super) const SOURCES: &str = "[{ header: X-Tenant-ID }, HOST{ jwt: { from: [authorization, { cookie: access_token }, \
    websocket_protocol], claim: tenant_id, keys: KEYS } }, { jwt: { from: [{ cookie: session }, authorization], claim: \
    org.id, issuer: joe, audience: app, leeway: 10s, keys: KEYS } }]";

/// Good tokens, by each of the algorithms: for A, for B, and for nobody.
pub(super) static GOOD: LazyLock<Vec<String>> = LazyLock::new(|| {
    let claims = |tenant: &str| json!({ "exp": NOW + 300, "tenant_id": tenant, "sub": "someone", "role": "owner" });
    let foreign = json!({ "iss": "joe", "aud": ["app"], "exp": NOW + 300, "org": { "id": A } });
    let rsa = Signer::new("RS256", "rs");
    vec![
        signed("HS256", &json!({ "alg": "HS256", "kid": "hs" }).to_string(), &claims(A).to_string()),
        signed("HS256", &json!({ "alg": "HS256" }).to_string(), &claims(B).to_string()),
        rsa.token(&claims(A)),
        signed("EdDSA", &json!({ "alg": "EdDSA", "kid": "ed" }).to_string(), &claims(B).to_string()),
        signed("HS256", &json!({ "alg": "HS256", "kid": "hs" }).to_string(), &foreign.to_string()),
        ES256_EXAMPLE.to_owned(),
    ]
});

/// What tokens are made of; the good ones stand before these.
const FRAGMENTS: &[&str] =
    &[".", "eyJhbGciOiJub25lIn0", "eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9", "e30", "ew", "ey", "=", "==", ".."];

/// What headers and claims are made of.
const CLAIMS: &[&str] = &[
    "{\"alg\":\"HS256\"",
    ",\"kid\":\"hs\"",
    ",\"crit\":[]",
    "}",
    "{\"exp\":1300819300",
    ",\"tenant_id\":\"",
    "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11",
    "\"",
    ",\"nbf\":",
    ",\"iss\":\"joe\"",
    ",\"aud\":\"app\"",
    "[",
    "]",
    ",\"org\":{\"id\":\"",
    ",\"org.id\":\"",
    "null",
    "1e300",
    "-1",
    "1300819000",
    "\n",
    ",\"exp\":",
    ",\"alg\":\"none\"",
    ",\"kid\":",
    "\\u0000",
    ",\"role\":",
    "owner",
    ",\"typ\":\"JWT\"",
    "00000000-0000-4000-8000-000000000001",
    ",",
    "{\"a\":",
    "18446744073709551616",
];

target!(that_nobody_signed, good_or_fragments(), read_token);
target!(that_say_anything, CLAIMS, sign_and_read);

fn good_or_fragments() -> &'static [&'static str] {
    static ALL: LazyLock<Vec<&'static str>> =
        LazyLock::new(|| GOOD.iter().map(String::as_str).chain(FRAGMENTS.iter().copied()).collect());
    &ALL
}

/// The configuration with these sources, and with `host` before the tokens, and the tokens that it reads.
pub(super) fn config(host: &str) -> (Config, Tokens) {
    let es = json!({ "kty": "EC", "crv": "P-256", "x": X, "y": Y, "kid": "es", "alg": "ES256" });
    let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": ED_POINT, "kid": "ed" });
    let hs = json!({ "kty": "oct", "k": SECRET, "kid": "hs", "alg": "HS256" });
    let keys = json!({ "keys": [hs, Signer::new("RS256", "rs").jwk(), es, ed] });
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(keys.to_string().as_bytes()).expect("written");
    let sources = SOURCES.replace("KEYS", &file.path().display().to_string()).replace("HOST", host);
    let text = format!(
        "version: 1\nupstream: {{ address: 127.0.0.1:1 }}\ntrusted_proxies: [10.0.0.0/8]\n\
         tenant: {{ sources: {sources} }}\nlicenses: {{ source: {{ postgres: {{}} }} }}\n\
         upgrade: {{ allow: {{ header: X-User-Role, values: [owner, admin] }} }}\n"
    );
    let config = licensing::config::parse("fuzz", &text).unwrap_or_else(|problems| panic!("{problems}")).config;
    let tokens = Tokens::load(&config, file.path()).unwrap_or_else(|error| panic!("{error}"));
    (config, tokens)
}

fn tokens() -> &'static Tokens {
    static TOKENS: LazyLock<Tokens> = LazyLock::new(|| config("").1);
    &TOKENS
}

/// What the two sources make of a text that stands in `Authorization`.
fn words(text: &[u8]) -> Vec<Word> {
    tokens().read(text, &TokenPlace::Authorization, Timestamp::from_micros(NOW * 1_000_000)).collect()
}

fn signed(algorithm: &str, header: &str, claims: &str) -> String {
    let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
    let signature = match algorithm {
        "HS256" => hmac_sha256(&decode(SECRET), signed.as_bytes()),
        _ => {
            let key = Ed25519KeyPair::from_seed_unchecked(&decode(ED_SEED)).expect("a seed");
            key.sign(signed.as_bytes()).as_ref().to_vec()
        }
    };
    format!("{signed}.{}", BASE64.encode(signature))
}

fn decode(text: &str) -> Vec<u8> {
    BASE64.decode(text).expect("base64url")
}

/// The claims of a token if one of the keys made its signature by the algorithm that is in its header; found out without
/// the library that the product uses.
fn verified_claims(token: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(token).ok()?;
    let [header, claims, signature] = text.split('.').collect::<Vec<_>>().try_into().ok()?;
    let message = format!("{header}.{claims}");
    let signature = BASE64.decode(signature).ok()?;
    let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
    let verifies = |algorithm: &'static dyn signature::VerificationAlgorithm, key: Vec<u8>| {
        UnparsedPublicKey::new(algorithm, key).verify(message.as_bytes(), &signature).is_ok()
    };
    let (key, good) = match header.get("alg")?.as_str()? {
        "HS256" => ("hs", hmac_sha256(&decode(SECRET), message.as_bytes()) == signature),
        "RS256" => {
            let modulus = Signer::new("RS256", "rs").jwk()["n"].as_str().map(decode)?;
            let key = RsaPublicKeyComponents { n: modulus, e: vec![1, 0, 1] };
            let good = key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message.as_bytes(), &signature);
            ("rs", good.is_ok())
        }
        "ES256" => {
            let point = [vec![4], decode(X), decode(Y)].concat();
            ("es", verifies(&signature::ECDSA_P256_SHA256_FIXED, point))
        }
        "EdDSA" => ("ed", verifies(&signature::ED25519, decode(ED_POINT))),
        _ => return None,
    };
    let names = header.get("kid").is_none_or(|kid| kid.is_null() || kid == key);
    (good && names && header.get("crit").is_none_or(Value::is_null))
        .then(|| serde_json::from_slice(&BASE64.decode(claims).ok()?).ok())?
}

/// Whether what is taken from a verified token is what its claims say.
fn assert_taken(words: &[Word], claims: Option<&Value>, shown: &str) {
    for (source, word) in words.iter().enumerate() {
        let Word::Verified(verified) = word else { continue };
        let claims = claims.unwrap_or_else(|| panic!("{shown} is believed, but nobody signed it"));
        let (claim, leeway) = if source == 0 {
            (claims.get("tenant_id"), 60.0)
        } else {
            assert_eq!(claims.get("iss").and_then(Value::as_str), Some("joe"), "{shown}");
            let audience = &claims["aud"];
            let is_ours = |one: &Value| one == "app";
            assert!(is_ours(audience) || audience.as_array().is_some_and(|all| all.iter().any(is_ours)), "{shown}");
            (claims.get("org.id").or_else(|| claims.get("org")?.get("id")), 10.0)
        };
        #[expect(clippy::cast_precision_loss, reason = "seconds of this century")]
        let now = NOW as f64;
        assert!(claims["exp"].as_f64().is_some_and(|exp| now < exp + leeway), "{shown}");
        assert!(claims.get("nbf").is_none_or(|nbf| nbf.as_f64().is_some_and(|nbf| nbf <= now + leeway)), "{shown}");
        match &verified.tenant {
            NamedTenant::None => assert!(claim.is_none_or(Value::is_null), "{shown}"),
            NamedTenant::Invalid => {
                assert!(claim.is_some_and(|claim| claim.as_str().is_none_or(|id| id.parse::<TenantId>().is_err())));
            }
            NamedTenant::Is(tenant, header) => {
                assert_eq!(claim.and_then(Value::as_str).and_then(|id| id.parse().ok()), Some(*tenant), "{shown}");
                assert_eq!(header.to_str().ok(), Some(tenant.to_string().as_str()));
            }
        }
    }
}

/// A text that may be a token: if it is believed, one of the keys signed it.
fn read_token(text: &[u8]) {
    let shown = String::from_utf8_lossy(text);
    assert_taken(&words(text), verified_claims(text).as_ref(), &shown);
}

/// A header and claims, a line each, signed by the key that they name: what is taken is what they say.
fn sign_and_read(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let (header, claims) = text.split_once('\n').unwrap_or(("{\"alg\":\"HS256\"}", &text));
    let token = signed(if header.contains("EdDSA") { "EdDSA" } else { "HS256" }, header, claims);
    assert_taken(&words(token.as_bytes()), verified_claims(token.as_bytes()).as_ref(), &format!("{header} {claims}"));
}

#[test]
fn the_good_ones_are_good() {
    for (i, token) in GOOD.iter().enumerate() {
        let words = words(token.as_bytes());
        let believed = words.iter().filter(|word| matches!(word, Word::Verified(_))).count();
        assert_eq!(believed, if i == 4 { 2 } else { 1 }, "{token}: {words:?}");
        assert!(verified_claims(token.as_bytes()).is_some(), "{token}");
    }
}
