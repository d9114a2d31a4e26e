use serde_json::{Value, json};

use super::jwt::{Signer, jwk_set};
use super::*;

const TENANT: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";

/// Seconds since the epoch.
const NOW: i64 = 1_790_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn claims() -> Value {
    json!({ "iss": "https://id.example", "aud": "app", "exp": NOW + 300, "tenant_id": TENANT })
}

/// A source with these settings and keys.
fn source(settings: &str, keys: &Value) -> Source {
    let jwt: Jwt =
        serde_json::from_value(serde_json::from_str(&format!(r#"{{ "keys": "x"{settings} }}"#)).expect("JSON"))
            .expect("settings");
    let role = ClaimValues { claim: "realm_access.roles".into(), values: vec!["owner".into(), "admin".into()] };
    let keys = Keys::parse(keys.to_string().as_bytes()).unwrap_or_else(|why| panic!("{why}"));
    Source::new(&jwt, keys, Some(role))
}

/// What a token is to a source: the fault, whose it is, or that it is somebody else's.
fn word(source: &Source, token: &str, second: i64) -> Result<String, Option<TokenFault>> {
    match source.read(token.as_bytes(), at(second)) {
        Word::NotOurs => Err(None),
        Word::Refused(fault) | Word::Late(fault, _) => Err(Some(fault)),
        Word::Verified(verified) => Ok(match &verified.tenant {
            NamedTenant::Is(tenant, header) => {
                assert_eq!(header.to_str().ok(), Some(tenant.to_string().as_str()));
                tenant.to_string()
            }
            NamedTenant::None => "nobody".to_owned(),
            NamedTenant::Invalid => "invalid".to_owned(),
        }),
    }
}

fn refused(fault: TokenFault) -> Result<String, Option<TokenFault>> {
    Err(Some(fault))
}

#[test]
fn each_algorithm_is_verified_with_its_own_key() {
    let algorithms =
        ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
    let signers = algorithms.map(|algorithm| Signer::new(algorithm, algorithm));
    let all = source("", &jwk_set(&signers.each_ref()));
    for signer in &signers {
        let (algorithm, token) = (signer.algorithm(), signer.token(&claims()));
        assert_eq!(word(&all, &token, NOW).as_deref(), Ok(TENANT), "{algorithm}");
        // One that names no key, but an algorithm that has only one.
        let unnamed = signer.token_with(&json!({ "alg": algorithm }), &claims());
        assert_eq!(word(&all, &unnamed, NOW).as_deref(), Ok(TENANT), "{algorithm}");
        // Every bit of the signature counts, and every bit of what is signed.
        let (signed, signature) = token.rsplit_once('.').expect("a signature");
        let other = signer.token(&json!({ "exp": NOW + 300, "tenant_id": TENANT, "role": "owner" }));
        let (other, _) = other.rsplit_once('.').expect("a signature");
        for forged in [format!("{other}.{signature}"), format!("{signed}."), format!("{signed}.{}", &signature[4..])] {
            assert_eq!(word(&all, &forged, NOW), refused(TokenFault::Untrusted), "{algorithm}");
        }
        // The same key under another id, another key under the same id.
        let stranger = Signer::new(if matches!(&algorithm[..1], "R" | "P") { "ES256" } else { algorithm }, algorithm);
        assert_eq!(word(&all, &stranger.token(&claims()), NOW), refused(TokenFault::Untrusted), "{algorithm}");
        let lost = signer.token_with(&json!({ "alg": algorithm, "kid": "gone" }), &claims());
        assert_eq!(word(&all, &lost, NOW), refused(TokenFault::Untrusted), "{algorithm}");
    }
}

/// Examples that others have made: RFC 7515 appendices A.1 to A.3.
#[test]
fn the_examples_of_the_standard_are_verified() {
    let payload = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = Signer::new("RS256", "rsa").jwk();
    for (header, key, signature) in [
        (
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            json!({ "kty": "oct",
                "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow" }),
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            "eyJhbGciOiJSUzI1NiJ9",
            rsa,
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdb\
             F9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383\
             LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWy\
             wlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            "eyJhbGciOiJFUzI1NiJ9",
            json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" }),
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let source = source(r#", "claim": "iss""#, &json!({ "keys": [key] }));
        let token = format!("{header}.{payload}.{signature}");
        assert_eq!(word(&source, &token, 1_300_819_379).as_deref(), Ok("invalid"), "joe is no UUID");
        assert_eq!(word(&source, &token, 1_300_819_440), refused(TokenFault::Expired), "a minute's leeway");
    }
}

#[test]
fn no_token_chooses_how_it_is_verified() {
    let (rsa, secret) = (Signer::new("RS256", "rsa"), Signer::new("HS256", "secret"));
    let both = source("", &jwk_set(&[&rsa, &secret]));
    let only_rsa = source("", &jwk_set(&[&rsa]));
    let header = |header: Value| secret.token_with(&header, &claims());
    for known in Signer::rsa_spellings() {
        let signed = format!("{}.{}", jwt::encode(r#"{"alg":"HS256","kid":"rsa"}"#), jwt::encode(claims().to_string()));
        let confused = format!("{signed}.{}", jwt::encode(jwt::hmac_sha256(&known, signed.as_bytes())));
        assert_eq!(word(&only_rsa, &confused, NOW), refused(TokenFault::Untrusted), "{}", known.escape_ascii());
    }
    let unsigned = |alg: &str| {
        format!("{}.{}.", jwt::encode(json!({ "alg": alg }).to_string()), jwt::encode(claims().to_string()))
    };
    for (source, token, fault) in [
        (&both, unsigned("none"), TokenFault::Untrusted),
        (&both, unsigned("nOnE"), TokenFault::Untrusted),
        (&both, unsigned(""), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "kid": "rsa" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "RS256", "kid": "secret" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS512", "kid": "secret" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "hs256", "kid": "secret" })), TokenFault::Untrusted),
        (&both, unsigned("None"), TokenFault::Untrusted),
        (&both, unsigned("NONE"), TokenFault::Untrusted),
        (&both, unsigned("none "), TokenFault::Untrusted),
        // A key that comes with the token, or stands where the token says, is nobody's key.
        (&only_rsa, header(json!({ "alg": "HS256", "jwk": secret.jwk() })), TokenFault::Untrusted),
        (
            &both,
            header(json!({ "alg": "HS256", "kid": "x", "jku": "https://evil.example/keys" })),
            TokenFault::Untrusted,
        ),
        (&both, header(json!({ "alg": "HS256", "kid": "x", "x5u": "https://evil.example/x" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "kid": "../../secret" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "kid": "secret\u{0}" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "kid": "x' UNION SELECT 'secret" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "kid": ["secret"] })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": "HS256", "crit": ["exp"] })), TokenFault::Malformed),
        (&both, header(json!({ "alg": "HS256", "crit": [] })), TokenFault::Malformed),
        (&both, header(json!({ "kid": "secret" })), TokenFault::Untrusted),
        (&both, header(json!({ "alg": ["HS256"] })), TokenFault::Malformed),
        (&both, header(json!({ "alg": "HS256", "kid": 1 })), TokenFault::Untrusted),
    ] {
        assert_eq!(word(source, &token, NOW), refused(fault), "{token}");
    }
}

#[test]
fn a_token_without_a_key_id_needs_a_set_that_leaves_no_choice() {
    let (a, b) = (Signer::new("ES256", "a"), Signer::new("ES256", "b"));
    let unnamed = b.token_with(&json!({ "alg": "ES256" }), &claims());
    assert_eq!(word(&source("", &jwk_set(&[&b])), &unnamed, NOW).as_deref(), Ok(TENANT));
    assert_eq!(word(&source("", &jwk_set(&[&a, &b])), &unnamed, NOW), refused(TokenFault::Untrusted));
    // A key without an id may be any that has one.
    let mut anonymous = b.jwk();
    anonymous.as_object_mut().expect("an object").remove("kid");
    let set = source("", &json!({ "keys": [a.jwk(), anonymous] }));
    assert_eq!(word(&set, &b.token(&claims()), NOW).as_deref(), Ok(TENANT));
    assert_eq!(word(&set, &a.token(&claims()), NOW).as_deref(), Ok(TENANT));
}

#[test]
fn what_is_claimed_is_checked() {
    let signer = Signer::new("EdDSA", "k");
    let strict = r#", "issuer": "https://id.example", "audience": "app", "leeway": "30s""#;
    let source = source(strict, &jwk_set(&[&signer]));
    for (change, expected) in [
        (json!({}), Ok(TENANT)),
        (json!({ "exp": NOW - 29 }), Ok(TENANT)),
        (json!({ "exp": NOW - 30 }), Err(Some(TokenFault::Expired))),
        (json!({ "exp": NOW as f64 - 29.5 }), Ok(TENANT)),
        (json!({ "exp": 1e300 }), Ok(TENANT)),
        (json!({ "exp": -1e300 }), Err(Some(TokenFault::Expired))),
        (json!({ "exp": (NOW + 300).to_string() }), Err(Some(TokenFault::Malformed))),
        (json!({ "exp": null }), Err(Some(TokenFault::Malformed))),
        (json!({ "nbf": NOW + 30 }), Ok(TENANT)),
        (json!({ "nbf": NOW + 31 }), Err(Some(TokenFault::NotYetValid))),
        (json!({ "nbf": "soon" }), Err(Some(TokenFault::Malformed))),
        (json!({ "iss": "https://other.example" }), Err(None)),
        (json!({ "iss": ["https://id.example"] }), Err(None)),
        (json!({ "iss": null, "exp": 0 }), Err(None)),
        (json!({ "aud": ["x", "app"] }), Ok(TENANT)),
        (json!({ "aud": "application" }), Err(Some(TokenFault::WrongAudience))),
        (json!({ "aud": [] }), Err(Some(TokenFault::WrongAudience))),
        (json!({ "aud": null }), Err(Some(TokenFault::WrongAudience))),
        (json!({ "tenant_id": TENANT.to_uppercase() }), Ok(TENANT)),
        (json!({ "tenant_id": null }), Ok("nobody")),
        (json!({ "tenant_id": "acme" }), Ok("invalid")),
        (json!({ "tenant_id": [TENANT] }), Ok("invalid")),
        (json!({ "tenant_id": format!("{TENANT},{TENANT}") }), Ok("invalid")),
    ] {
        let mut claims = claims();
        claims.as_object_mut().expect("an object").extend(change.as_object().cloned().unwrap_or_default());
        let said = word(&source, &signer.token(&claims), NOW);
        assert_eq!(said.as_deref().map_err(Clone::clone), expected, "{change}");
    }
    let missing = json!({ "iss": "https://id.example", "aud": "app", "tenant_id": TENANT });
    assert_eq!(word(&source, &signer.token(&missing), NOW), refused(TokenFault::Malformed), "no exp");
}

/// An object with two members of one name is two objects to two readers.
#[test]
fn nothing_is_said_twice() {
    let signer = Signer::new("HS256", "k");
    let source = source(r#", "claim": "org.id""#, &jwk_set(&[&signer]));
    let other = "00000000-0000-4000-8000-000000000001";
    let header = r#"{"alg":"HS256","kid":"k"}"#;
    let good = format!(r#"{{"exp":{},"list":[1,-1,0.5,true,null,{{}}],"org":{{"id":"{TENANT}"}}}}"#, NOW + 300);
    assert_eq!(word(&source, &signer.token_of(header, &good), NOW).as_deref(), Ok(TENANT));
    for (header, claims, fault) in [
        (header, good.replace("{\"id\"", &format!("{{\"id\":\"{other}\",\"id\"")), TokenFault::Malformed),
        (header, good.replace("\"org\"", &format!("\"org\":{{\"id\":\"{other}\"}},\"org\"")), TokenFault::Malformed),
        (header, good.replace("\"exp\"", "\"exp\":0,\"\\u0065xp\""), TokenFault::Malformed),
        (header, good.replace("{}", "{\"a\":1,\"a\":1}"), TokenFault::Malformed),
        (r#"{"alg":"none","alg":"HS256","kid":"k"}"#, good.clone(), TokenFault::Untrusted),
        (r#"{"alg":"HS256","kid":"k","kid":"k"}"#, good.clone(), TokenFault::Untrusted),
        (r#"{"alg":"HS256","kid":"k","crit":["x"],"crit":null}"#, good.clone(), TokenFault::Untrusted),
    ] {
        assert_eq!(word(&source, &signer.token_of(header, &claims), NOW), refused(fault), "{header} {claims}");
    }
}

#[test]
fn claims_are_found_by_name_or_by_path() {
    let signer = Signer::new("ES256", "k");
    for (claim, more, expected) in [
        ("https://app.example/tenant", json!({ "https://app.example/tenant": TENANT }), TENANT),
        ("org.id", json!({ "org": { "id": TENANT } }), TENANT),
        ("org.id", json!({ "org.id": TENANT, "org": { "id": "acme" } }), TENANT),
        ("org.id", json!({ "org": TENANT }), "nobody"),
    ] {
        let source = source(&format!(r#", "claim": "{claim}""#), &jwk_set(&[&signer]));
        let mut claims = json!({ "exp": NOW + 1 });
        claims.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        assert_eq!(word(&source, &signer.token(&claims), NOW).as_deref(), Ok(expected), "{claim} {more}");
    }
}

#[test]
fn roles_are_exact() {
    let signer = Signer::new("ES256", "k");
    let source = source("", &jwk_set(&[&signer]));
    for (roles, expected) in [
        (json!("owner"), true),
        (json!(["viewer", "admin"]), true),
        (json!("Owner"), false),
        (json!("owner admin"), false),
        (json!({ "owner": true }), false),
        (json!(null), false),
    ] {
        let mut claims = claims();
        claims["realm_access"] = json!({ "roles": roles });
        let Word::Verified(verified) = source.read(signer.token(&claims).as_bytes(), at(NOW)) else {
            panic!("{roles}: not verified")
        };
        assert_eq!(verified.may_upgrade, expected, "{roles}");
        assert_eq!(verified.expires, at(NOW + 360), "with the leeway");
    }
}

#[test]
fn what_is_no_token_is_somebody_elses() {
    let signer = Signer::new("HS256", "k");
    let source = source("", &jwk_set(&[&signer]));
    let token = signer.token(&claims());
    for text in [
        "",
        "opaque",
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "v4.public.payload",
        "a.b.c",
        "eyJhbGciOiJub25lIn0",
        "eyJhbGciOiJSU0EtT0FFUCJ9.key.iv.text.tag",
    ] {
        assert_eq!(word(&source, text, NOW), Err(None), "{text}");
    }
    let (head, rest) = token.split_once('.').expect("a header");
    for text in [
        format!("{token}="),
        format!("{head}=.{rest}"),
        format!(" {token}").trim_start().replacen("eyJ", "eyJ ", 1),
        token.replacen('.', ".!", 1),
        "ey..".to_owned(),
        "eyJhbGciOiJIUzI1NiJ9.W10.".to_owned(),
        format!("{head}.{}.x", "A".repeat(8 << 10)),
    ] {
        assert_eq!(word(&source, &text, NOW), refused(TokenFault::Malformed), "{text}");
    }
}

/// A token is verified once a minute: after that, and past its end, the memory of it is worth nothing.
#[test]
fn a_good_token_is_remembered_and_nothing_else() {
    let signer = Signer::new("ES256", "k");
    let source = source(r#", "leeway": "0s""#, &jwk_set(&[&signer]));
    let mut claims = claims();
    claims["exp"] = (NOW + 100).into();
    claims["nbf"] = NOW.into();
    let token = signer.token(&claims);
    let since = |second| match source.read(token.as_bytes(), at(second)) {
        Word::Verified(verified) => Ok(verified.since),
        Word::Refused(fault) | Word::Late(fault, _) => Err(fault),
        Word::NotOurs => panic!("ours"),
    };
    assert_eq!(since(NOW - 1), Err(TokenFault::NotYetValid));
    assert_eq!(since(NOW), Ok(at(NOW)), "a refusal is not remembered");
    assert_eq!(since(NOW + 59), Ok(at(NOW)));
    assert_eq!(since(NOW + 60), Ok(at(NOW + 60)));
    assert_eq!(since(NOW - 1), Err(TokenFault::NotYetValid), "a clock that was set back");
    assert_eq!(since(NOW + 99), Ok(at(NOW + 60)));
    assert_eq!(since(NOW + 100), Err(TokenFault::Expired));
    let forged = format!("{}A", &token[..token.len() - 1]);
    let word = source.read(forged.as_bytes(), at(NOW + 61));
    assert!(forged == token || matches!(word, Word::Refused(_)), "{word:?}");
}

#[test]
fn sets_that_cannot_be_used() {
    let rsa = Signer::new("RS256", "a").jwk();
    let ec = Signer::new("ES256", "b").jwk();
    let with = |key: &Value, change: Value| {
        let mut key = key.clone();
        key.as_object_mut().expect("an object").extend(change.as_object().cloned().unwrap_or_default());
        key
    };
    let short = jwt::encode([0xFF; 255]);
    let none = "has no key for signatures that can be verified here";
    let incomplete = "keys[0] lacks a member that a key of its type has, or has one that is no text";
    for (keys, expected) in [
        (json!([]), none),
        (json!([with(&rsa, json!({ "use": "enc" }))]), none),
        (json!([with(&rsa, json!({ "alg": "RSA-OAEP" }))]), none),
        (json!([with(&rsa, json!({ "alg": "HS256" }))]), none),
        (json!([with(&ec, json!({ "alg": "ES384" }))]), none),
        (json!([with(&ec, json!({ "crv": "P-521" }))]), none),
        (json!([with(&ec, json!({ "crv": "secp256k1" }))]), none),
        (json!([with(&ec, json!({ "key_ops": ["sign"] }))]), none),
        (json!([rsa, with(&ec, json!({ "kid": "a" }))]), "two keys have the kid \"a\": a token could mean either"),
        (json!([with(&rsa, json!({ "n": short }))]), "keys[0] is an RSA key of 2040 bits: expected 2048 to 8192"),
        (json!([with(&rsa, json!({ "e": "AQ" }))]), "keys[0] has an exponent `e` that RSA can't have"),
        (json!([with(&rsa, json!({ "e": "AQAA" }))]), "keys[0] has an exponent `e` that RSA can't have"),
        (
            json!([ec, with(&rsa, json!({ "n": "a b" }))]),
            "keys[1] is damaged: Base64 error: Invalid symbol 32, offset 1.",
        ),
        (json!([{ "kty": "RSA", "e": "AQAB" }]), incomplete),
        (json!([with(&ec, json!({ "y": 1 }))]), incomplete),
        (json!([{ "kid": "a" }]), incomplete),
        (json!([{ "kty": "OKP", "crv": "Ed25519" }]), incomplete),
        (json!([with(&ec, json!({ "x": "AAAA" }))]), "keys[0] is a point of 36 bytes: expected 65"),
        (json!([with(&ec, json!({ "crv": "P-384", "alg": "ES384" }))]), "keys[0] is a point of 65 bytes: expected 97"),
        (json!([{ "kty": "OKP", "crv": "Ed25519", "x": "AAAA" }]), "keys[0] is a point of 3 bytes: expected 32"),
        (json!([{ "kty": "oct", "k": "c2VjcmV0" }]), "keys[0] is a secret of 6 bytes: at least 32 are needed"),
        (
            json!([{ "kty": "oct", "alg": "HS512", "k": jwt::encode([7; 63]) }]),
            "keys[0] is a secret of 63 bytes: at least 64 are needed",
        ),
        (
            json!([with(&ec, json!({ "d": "AAAA" }))]),
            "keys[0] is a private key: whoever reads this file could sign tokens; give the public part",
        ),
        (json!([with(&ec, json!({ "kid": 1 }))]), "keys[0] is no JWK: invalid type: integer `1`, expected a string"),
        (json!(["ec"]), "keys[0] is no JWK: invalid type: string \"ec\", expected struct Jwk"),
    ] {
        let text = json!({ "keys": keys }).to_string();
        assert_eq!(Keys::parse(text.as_bytes()).err().as_deref(), Some(expected), "{text}");
    }
    for text in ["", "[]", "{}", "-----BEGIN PUBLIC KEY-----"] {
        let why = Keys::parse(text.as_bytes()).err().unwrap_or_default();
        assert!(why.starts_with("is no JWK set (RFC 7517): "), "{text}: {why}");
    }
    // Zeros before a number change nothing.
    let signer = Signer::new("RS256", "a");
    let padded = jwt::encode([&[0], &*jwt::decode(rsa["n"].as_str().expect("a modulus"))].concat());
    let padded = source("", &json!({ "keys": [with(&rsa, json!({ "n": padded, "e": "AAEAAQ" }))] }));
    assert_eq!(word(&padded, &signer.token(&claims()), NOW).as_deref(), Ok(TENANT));
    // What others need is passed over.
    let mixed = json!({ "keys": [with(&rsa, json!({ "use": "enc", "alg": "RSA-OAEP" })), { "kty": "AKP" }, ec] });
    assert!(Keys::parse(mixed.to_string().as_bytes()).is_ok());
}
