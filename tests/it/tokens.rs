//! Tenants from signed tokens: what is believed, what is refused, and what is left to the backend.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::{RawClient, RawResponse, Reply, Signer, Transport, Upstream, World, client, jwt};

const CRM: &str = "/api/v1/crm";
const CORE: &str = "/api/v1/auth/login";

/// A world in which tokens name the tenant, and headers only where `trusted` has sent them.
async fn world(keys: &Path, trusted: &str) -> World {
    World::start_with(|builder| {
        let from = json!(["authorization", { "cookie": "access_token" }, "websocket_protocol"]);
        let jwt = json!({ "from": from, "keys": keys, "issuer": "us", "audience": "app" });
        builder.set("/tenant/sources/-", json!({ "jwt": jwt })).set("/trusted_proxies", json!([trusted]))
    })
    .await
}

fn key_file(signers: &[&Signer]) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    write_keys(&dir, signers);
    dir
}

fn write_keys(dir: &TempDir, signers: &[&Signer]) {
    std::fs::write(dir.path().join("jwks.json"), jwt::jwk_set(signers).to_string()).expect("written");
}

/// Claims for this tenant that expire in so many seconds.
fn claims(tenant: Uuid, expires_in: i64) -> Value {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let expires = i64::try_from(now).expect("a time") + expires_in;
    json!({ "iss": "us", "aud": "app", "sub": "user-1", "exp": expires, "tenant_id": tenant })
}

async fn get(world: &World, target: &str, headers: &[(&str, &str)]) -> RawResponse {
    client::request(world.proxy.address(), "GET", target, headers).await
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn a_token_names_the_tenant_whoever_sends_it() {
    let signers = ["HS256", "RS256", "ES256", "EdDSA"].map(|algorithm| Signer::new(algorithm, algorithm));
    let keys = key_file(&signers.each_ref());
    let world = world(&keys.path().join("jwks.json"), "10.0.0.0/8").await;
    let (tenant, poor) = (world.tenant("enterprise").await, world.tenant("starter").await);
    for signer in &signers {
        let algorithm = signer.algorithm();
        let token = signer.token(&claims(tenant, 300));
        let cookie = format!("theme=dark; access_token={token}");
        for carrier in [("Authorization", bearer(&token)), ("Cookie", cookie)] {
            let id = format!("{algorithm}-{}", carrier.0);
            let headers = [(carrier.0, carrier.1.as_str()), ("X-Tenant-ID", &poor.to_string()), ("X-Request-ID", &id)];
            assert_eq!(get(&world, CRM, &headers).await.status, 200, "{id}");
            let seen = world.upstream.last();
            assert_eq!(seen.headers_named("X-Tenant-ID"), [tenant.to_string()], "{id}");
            assert_eq!(seen.header("X-License-Plan"), Some("enterprise"));
            assert_eq!(seen.headers_named(carrier.0), [carrier.1.as_str()], "the backend gets it as it came");
            let line = world.proxy.wait_for_log(|line| line["request_id"] == *id).await;
            assert_eq!(line["tenant_id"], tenant.to_string());
        }
        let denied = get(&world, CRM, &[("Authorization", &bearer(&signer.token(&claims(poor, 300))))]).await;
        assert_eq!((denied.status, &denied.json()["plan"]), (402, &json!("starter")), "{algorithm}");
    }
}

#[tokio::test]
async fn a_token_that_is_not_to_be_believed() {
    let (rsa, secret) = (Signer::new("RS256", "rsa"), Signer::new("HS256", "secret"));
    let keys = key_file(&[&rsa, &secret]);
    let world = world(&keys.path().join("jwks.json"), "127.0.0.0/8").await;
    let tenant = world.tenant("enterprise").await;
    let good = claims(tenant, 300);
    let part = |json: Value| jwt::encode(json.to_string());
    let unsigned = format!("{}.{}.", part(json!({ "alg": "none" })), part(good.clone()));
    let confused = {
        let signed = format!("{}.{}", part(json!({ "alg": "HS256", "kid": "rsa" })), part(good.clone()));
        let modulus = rsa.jwk()["n"].as_str().expect("a modulus").to_owned();
        format!("{signed}.{}", jwt::encode(jwt::hmac_sha256(modulus.as_bytes(), signed.as_bytes())))
    };
    let with = |change: (&str, Value)| {
        let mut claims = good.clone();
        claims[change.0] = change.1;
        rsa.token(&claims)
    };
    let another = Signer::new("HS256", "secret");
    let untrusted = "The token is not signed by a key that is trusted here.";
    for (token, message) in [
        (unsigned, untrusted),
        (confused, untrusted),
        (another.token(&good), untrusted),
        (rsa.token_with(&json!({ "alg": "RS256", "kid": "gone" }), &good), untrusted),
        (rsa.token(&claims(tenant, -90)), "The token has expired."),
        (with(("nbf", claims(tenant, 90)["exp"].clone())), "The token is not valid yet."),
        (with(("aud", json!("another"))), "The token is meant for another audience."),
        (with(("exp", Value::Null)), "The token is malformed."),
        (rsa.token_with(&json!({ "alg": "RS256", "crit": ["x"] }), &good), "The token is malformed."),
    ] {
        let challenge = format!("Bearer realm=\"tenant\", error=\"invalid_token\", error_description=\"{message}\"");
        // Neither does it help that the gateway names the tenant: the backend may go by the token. But where its time alone
        // is wrong, and it names the same tenant, that would do no harm.
        let alone = vec![("Authorization", bearer(&token))];
        let beside = vec![("Cookie", format!("access_token={token}")), ("X-Tenant-ID", tenant.to_string())];
        let late = message.contains("expired") || message.contains("yet");
        for (headers, harmless) in [(alone, false), (beside, late)] {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let answer = get(&world, CRM, &headers).await;
            if harmless {
                assert_eq!(answer.status, 200, "{token}");
                assert_eq!(world.upstream.last().headers_named("X-Tenant-ID"), [tenant.to_string()]);
                world.upstream.forget();
                continue;
            }
            assert_eq!((answer.status, answer.header("WWW-Authenticate")), (401, Some(challenge.as_str())), "{token}");
            assert_eq!(answer.json()["reason"], "tenant_missing");
            assert_eq!(answer.json()["message"], message);
        }
    }
    assert_eq!(world.upstream.count(), 0);
    // Clocks may differ by a minute.
    assert_eq!(get(&world, CRM, &[("Authorization", &bearer(&rsa.token(&claims(tenant, -30))))]).await.status, 200);

    // Who has to log in again gets to the page where that is done, by a name that is proven or by none.
    let expired = rsa.token(&claims(tenant, -90));
    let cookie = format!("access_token={expired}");
    let id = tenant.to_string();
    for (headers, told) in [
        (vec![("Cookie", cookie.as_str())], vec![]),
        (vec![("Cookie", cookie.as_str()), ("X-Tenant-ID", id.as_str())], vec![id.as_str()]),
    ] {
        assert_eq!(get(&world, CORE, &headers).await.status, 200, "{headers:?}");
        let seen = world.upstream.last();
        assert_eq!((seen.headers_named("X-Tenant-ID"), seen.headers_named("Cookie")), (told, vec![cookie.as_str()]));
    }
}

/// No token says how it is verified, by which key, or where that is to be had; from wherever it comes.
#[tokio::test]
async fn tokens_that_would_verify_themselves() {
    let signers = ["HS256", "RS256", "ES256", "EdDSA"].map(|algorithm| Signer::new(algorithm, algorithm));
    let [secret, rsa, ec, ed] = signers.each_ref();
    let keys = key_file(&signers.each_ref());
    let world = world(&keys.path().join("jwks.json"), "10.0.0.0/8").await;
    world.upstream.on(CRM, Reply::WebSocket);
    let evil = Upstream::start();
    let tenant = world.tenant("enterprise").await;
    let good = claims(tenant, 300);
    let of = |header: &Value| format!("{}.{}", jwt::encode(header.to_string()), jwt::encode(good.to_string()));
    let mut forged = Vec::new();
    for algorithm in ["none", "None", "NONE", "nOnE", "", "HS1", "RS256 "] {
        for kid in [Some("RS256"), None] {
            let signed = of(&json!({ "alg": algorithm, "kid": kid }));
            forged.extend([format!("{signed}."), format!("{signed}.AA")]);
        }
    }
    // What everybody knows is no secret: an RSA key, a point on a curve.
    let points =
        [(ec, "x"), (ed, "x"), (ec, "y")].map(|(key, name)| key.jwk()[name].as_str().expect("a text").to_owned());
    let known = Signer::rsa_spellings().into_iter().chain(points.iter().map(|point| jwt::decode(point)));
    for (i, known) in known.chain([Vec::new(), b"secret".to_vec()]).enumerate() {
        for kid in [Some("RS256"), Some("HS256"), Some(["ES256", "EdDSA"][i % 2]), None] {
            let signed = of(&json!({ "alg": "HS256", "kid": kid }));
            forged.push(format!("{signed}.{}", jwt::encode(jwt::hmac_sha256(&known, signed.as_bytes()))));
        }
    }
    // Keys that the token brings, or points to; and names that lead elsewhere.
    let url = format!("http://{}/jwks.json", evil.address());
    for algorithm in ["HS256", "ES256", "EdDSA", "RS256"] {
        let mine = Signer::new(if algorithm == "RS256" { "ES256" } else { algorithm }, algorithm);
        for (name, value) in [
            ("jwk", mine.jwk()),
            ("jku", json!(url)),
            ("x5u", json!(url)),
            ("x5c", json!([jwt::encode("certificate")])),
            ("kid", json!(url)),
            ("kid", json!("../../../dev/null")),
            ("kid", json!("/proc/sys/kernel/randomize_va_space")),
            ("kid", json!("x' UNION SELECT 'AA")),
            ("kid", json!(format!("{algorithm}\u{0}"))),
            ("kid", json!(algorithm.to_lowercase())),
        ] {
            let mut header = json!({ "alg": algorithm, "kid": algorithm });
            header[name] = value;
            forged.push(mine.token_with(&header, &good));
        }
    }
    // Signed as it should be, and not to be taken for what it is.
    let twice = good.to_string().replacen('{', &format!("{{\"tenant_id\":\"{}\",", Uuid::new_v4()), 1);
    let header = r#"{"alg":"HS256","kid":"HS256"}"#;
    forged.push(secret.token_of(header, &twice));
    forged.push(secret.token_of(r#"{"alg":"none","alg":"HS256","kid":"HS256"}"#, &good.to_string()));
    forged.push(secret.token_with(&json!({ "alg": "HS256", "kid": "HS256", "crit": ["b64"], "b64": false }), &good));
    forged.push(secret.token_with(&json!({ "alg": "HS512", "kid": "HS256" }), &good));
    forged.push(rsa.token_with(&json!({ "alg": "PS256", "kid": "RS256" }), &good));
    let mut huge = good.clone();
    huge["more"] = "x".repeat(9 << 10).into();
    forged.push(secret.token(&huge));

    for (i, token) in forged.iter().enumerate() {
        let line = match i % 3 {
            0 => format!("Authorization: Bearer {token}"),
            1 => format!("Cookie: a=b; access_token={token}"),
            _ => format!("Sec-WebSocket-Protocol: chat, {token}"),
        };
        let transport = Transport::ALL[i / 3 % 3];
        let status = transport.ask(world.proxy.address(), "app", CRM, &[&line]).await;
        assert_eq!(status, Some(401), "{line} over {transport:?}");
    }
    assert!(forged.len() > 100);
    assert_eq!((world.upstream.count(), evil.connections()), (0, 0));
    // The good ones of the same keys, by the same ways.
    for signer in &signers {
        let token = signer.token(&good);
        for line in [format!("Authorization: Bearer {token}"), format!("Sec-WebSocket-Protocol: chat, {token}")] {
            let status = Transport::Upgrade.ask(world.proxy.address(), "app", CRM, &[&line]).await;
            assert_eq!(status, Some(101), "{line}");
        }
    }
}

/// Browsers carry stale cookies. One that names the same tenant as the fresh token beside it costs nobody a refusal; one that
/// names another does, since the backend may go by it.
#[tokio::test]
async fn a_stale_cookie_beside_a_fresh_token() {
    let (signer, other) = (Signer::new("ES256", "k"), Signer::new("ES256", "k"));
    let keys = key_file(&[&signer]);
    let world = world(&keys.path().join("jwks.json"), "10.0.0.0/8").await;
    world.upstream.on(CRM, Reply::WebSocket);
    let (a, b) = (world.tenant("enterprise").await, world.tenant("enterprise").await);
    let fresh = format!("Authorization: Bearer {}", signer.token(&claims(a, 300)));
    let mut nobody = claims(a, -900);
    nobody["tenant_id"] = Value::Null;
    let mut elsewhere = claims(a, -900);
    elsewhere["aud"] = "another".into();
    for (cookie, expected) in [
        (signer.token(&claims(a, 300)), 101),
        (signer.token(&claims(a, -900)), 101),
        (signer.token(&nobody), 101),
        (signer.token(&claims(b, -900)), 401),
        (signer.token(&claims(b, 300)), 400),
        (signer.token(&elsewhere), 401),
        (other.token(&claims(a, -900)), 401),
        (other.token(&claims(a, 300)), 401),
        // However it is spelled: Express resolves the one escape, Django and Starlette the other.
        (format!("%65{}", &signer.token(&claims(a, 300))[1..]), 101),
        (format!("%65{}", &signer.token(&claims(b, 300))[1..]), 400),
        (format!("\"\\145{}\"", &signer.token(&claims(b, 300))[1..]), 400),
        (format!("x y=z access_token={}", signer.token(&claims(b, 300))), 400),
    ] {
        world.upstream.forget();
        let cookie = format!("Cookie: access_token={cookie}");
        let status = Transport::Upgrade.ask(world.proxy.address(), "app", CRM, &[&cookie, &fresh]).await;
        assert_eq!(status, Some(expected), "{cookie}");
        let told: Vec<_> =
            world.upstream.requests().iter().map(|seen| seen.headers_named("X-Tenant-ID").join("+")).collect();
        assert_eq!(told, if expected == 101 { vec![a.to_string()] } else { vec![] }, "{cookie}");
    }
}

#[tokio::test]
async fn what_is_no_token_of_ours_is_left_to_the_backend() {
    let signer = Signer::new("ES256", "k");
    let keys = key_file(&[&signer]);
    let world = world(&keys.path().join("jwks.json"), "127.0.0.0/8").await;
    let tenant = world.tenant("enterprise").await;
    let id = tenant.to_string();
    let mut foreign = claims(tenant, -1000);
    foreign["iss"] = "them".into();
    let foreign = Signer::new("RS256", "theirs").token(&foreign);
    for value in ["Bearer opaque", "Bearer v4.public.c2lnbmVk", "Basic dXNlcjpwYXNz", "Bearer", &bearer(&foreign)] {
        let answer = get(&world, CRM, &[("Authorization", value)]).await;
        let challenge = answer.header("WWW-Authenticate");
        assert_eq!((answer.status, challenge), (401, Some("Bearer realm=\"tenant\"")), "{value}");
        let answer = get(&world, CRM, &[("Authorization", value), ("X-Tenant-ID", &id)]).await;
        assert_eq!(answer.status, 200, "{value}");
        assert_eq!(world.upstream.last().headers_named("Authorization"), [value]);
    }
    // Two that name different tenants are refused on every route, and so are two that a backend could choose from.
    let before = world.upstream.count();
    let token = bearer(&signer.token(&claims(tenant, 300)));
    let other = world.tenant("enterprise").await.to_string();
    for target in [CRM, CORE] {
        for headers in [
            [("Authorization", token.as_str()), ("X-Tenant-ID", &other)],
            [("Authorization", &token), ("Authorization", "Bearer opaque")],
        ] {
            let answer = get(&world, target, &headers).await;
            assert_eq!(
                (answer.status, &answer.json()["reason"]),
                (400, &json!("tenant_invalid")),
                "{target} {headers:?}"
            );
        }
    }
    assert_eq!(world.upstream.count(), before);
}

/// Browsers can set no headers for a WebSocket: the token is one of the subprotocols that they offer.
#[tokio::test]
async fn a_websocket_offers_its_token_as_a_subprotocol() {
    let signer = Signer::new("EdDSA", "k");
    let keys = key_file(&[&signer]);
    let world = world(&keys.path().join("jwks.json"), "10.0.0.0/8").await;
    world.upstream.on(CRM, Reply::WebSocket);
    let (rich, poor) = (world.tenant("enterprise").await, world.tenant("starter").await);
    for (claims, expected) in [(claims(rich, 300), 101), (claims(poor, 300), 402), (claims(rich, -90), 401)] {
        let offer = format!("chat, {}", signer.token(&claims));
        let mut connection = RawClient::connect(world.proxy.address()).await;
        let request = format!(
            "GET {CRM} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {offer}\r\n\r\n"
        );
        connection.send(request).await.expect("sent");
        assert_eq!(connection.response().await.status, expected);
        if expected == 101 {
            let seen = world.upstream.last();
            assert_eq!(seen.headers_named("X-Tenant-ID"), [rich.to_string()]);
            assert_eq!(seen.headers_named("Sec-WebSocket-Protocol"), [offer.as_str()]);
        }
    }
}

/// Keys are rotated by writing their file anew: what the old ones have signed is good no longer, though it was before.
#[tokio::test]
async fn keys_that_are_taken_away() {
    let (old, new) = (Signer::new("ES256", "old"), Signer::new("ES256", "new"));
    let keys = key_file(&[&old]);
    let mut world = world(&keys.path().join("jwks.json"), "10.0.0.0/8").await;
    let tenant = world.tenant("enterprise").await;
    let tokens = [&old, &new].map(|signer| bearer(&signer.token(&claims(tenant, 300))));
    let ask = async |world: &World| {
        let [old, new] = tokens.each_ref().map(|token| [("Authorization", token.as_str())]);
        (get(world, CRM, &old).await.status, get(world, CRM, &new).await.status)
    };
    assert_eq!(ask(&world).await, (200, 401));

    // A file that can't be used changes nothing.
    std::fs::write(keys.path().join("jwks.json"), "{}").expect("written");
    let refused = world.proxy.wait_for_event(|event| event["level"] == "ERROR").await;
    assert!(refused["error"].as_str().is_some_and(|error| error.contains("jwks.json: is no JWK set")), "{refused}");
    assert_eq!(ask(&world).await, (200, 401));
    let refused = world.proxy.metrics().await.value("dotmac_config_reloads_total", &[("outcome", "refused")]);
    assert!(refused >= Some(1.0), "{refused:?}");

    write_keys(&keys, &[&new]);
    world.proxy.signal("HUP");
    let begun = std::time::Instant::now();
    while ask(&world).await != (401, 200) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}: {}", ask(&world).await, world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn keys_that_cannot_be_used() {
    let keys = key_file(&[&Signer::new("ES256", "k")]);
    let file = keys.path().join("jwks.json");
    let world = world(&file, "10.0.0.0/8").await;
    let good = world.builder.run(&["check-config"]).await;
    assert!(good.status.success(), "{}", good.stderr);
    std::fs::write(&file, json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }).to_string()).expect("written");
    let checked = world.builder.run(&["check-config"]).await;
    let ended = world.builder.try_start().await.err().expect("it does not start");
    for ended in [checked, ended] {
        assert_eq!(ended.status.code(), Some(2), "{}", ended.stderr);
        let expected = format!("{}: keys[0] is a secret of 6 bytes: at least 32 are needed", file.display());
        assert!(ended.stderr.contains(&expected), "{}", ended.stderr);
    }
}
