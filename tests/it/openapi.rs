//! docs/openapi.json against what the proxy really answers.

use std::collections::BTreeSet;

use futures::StreamExt;
use jsonschema::Validator;
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

use crate::harness::{RawClient, RawResponse, World, world};

/// The document, and which of its answers were seen.
pub(crate) struct Document {
    root: Value,
    seen: BTreeSet<(String, String, u16)>,
}

impl Document {
    pub(crate) fn read() -> Document {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let text = std::fs::read_to_string(path).expect("the document is there");
        Document { root: serde_json::from_str(&text).expect("JSON"), seen: BTreeSet::new() }
    }

    /// What a JSON pointer leads to, a `$ref` there followed.
    pub(crate) fn at(&self, pointer: &str) -> Value {
        let value = self.root.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not described")).clone();
        match value.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.at(reference.trim_start_matches('#')),
            None => value,
        }
    }

    /// A schema of the document, with those that it refers to (OpenAPI 3.1: JSON Schema 2020-12).
    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.root["components"].clone();
        jsonschema::draft202012::options().should_validate_formats(true).build(&schema).expect("a schema")
    }

    fn assert_valid(&self, schema: &Value, instance: &Value, what: &str) {
        let validator = self.validator(schema);
        let errors: Vec<_> = validator.iter_errors(instance).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{what}: {errors:#?}\n{instance}");
    }

    /// Compares an answer with the description of the operation's answer of that status.
    fn check(&mut self, method: &str, path: &str, answer: &RawResponse) {
        let what = format!("{method} {path} {}", answer.status);
        let operation = format!("/paths/{}/{}", path.replace('/', "~1"), method.to_lowercase());
        let described = self.at(&format!("{operation}/responses/{}", answer.status));
        self.assert_described(&described, answer, &what);
        self.seen.insert((method.to_owned(), path.to_owned(), answer.status));
    }

    /// Compares headers and body with a description of an answer.
    pub(crate) fn assert_described(&self, described: &Value, answer: &RawResponse, what: &str) {
        for (name, header) in described["headers"].as_object().into_iter().flatten() {
            let header = match header.get("$ref").and_then(Value::as_str) {
                Some(reference) => self.at(reference.trim_start_matches('#')),
                None => header.clone(),
            };
            let value = match answer.header(name) {
                None if header["required"] != true => continue,
                value => value.unwrap_or_else(|| panic!("{what}: no {name}")),
            };
            self.assert_valid(&header["schema"], &json!(value), &format!("{what}: {name}"));
        }
        match described.get("content").and_then(Value::as_object) {
            None => assert!(answer.body.is_empty(), "{what}: a body that is not described"),
            Some(contents) => {
                let content_type = answer.header("Content-Type").expect("a media type");
                let content = contents.get(content_type).unwrap_or_else(|| panic!("{what}: {content_type}"));
                self.assert_valid(&content["schema"], &answer.json(), what);
            }
        }
    }
}

/// A request with a body on a connection of its own.
async fn send(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let mut client = RawClient::connect(world.proxy.address()).await;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    client.send(format!("{head}\r\n{body}")).await.expect("sent");
    if method == "HEAD" { client.head_response().await } else { client.response().await }
}

#[test]
fn the_document_is_one() {
    let document = Document::read();
    assert_eq!(document.root["openapi"], "3.1.0");
    let mut operations = BTreeSet::new();
    for (path, item) in document.root["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(operations.insert(id.to_owned()), "{id} is there twice");
            for status in operation["responses"].as_object().expect("responses").keys() {
                document.at(&format!("/paths/{}/{method}/responses/{status}", path.replace('/', "~1")));
            }
        }
    }
    for (name, schema) in document.root["components"]["schemas"].as_object().expect("schemas") {
        document.validator(schema);
        let schema = json!({ "$ref": format!("#/components/schemas/{name}") });
        assert!(!document.validator(&schema).is_valid(&json!(1)), "{name} takes anything");
    }
}

#[tokio::test]
async fn answers_are_as_described() {
    let allow = json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } });
    let world = World::start_with(|builder| builder.set("/upgrade", allow).set("/limits/drain_timeout", "500ms")).await;
    let mut document = Document::read();
    let tenant = world.tenant("starter").await.to_string();
    let nobody = Uuid::new_v4().to_string();
    let (own, unknown) = (("X-Tenant-ID", tenant.as_str()), ("X-Tenant-ID", nobody.as_str()));
    let problem = ("Accept", "application/problem+json");
    let websocket = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    for path in ["/license", "/api/v1/license"] {
        let tag = send(&world, "GET", path, &[own], "").await.header("ETag").expect("an entity tag").to_owned();
        let mut cases = vec![
            ("GET", vec![own], 200),
            ("GET", vec![own, ("If-None-Match", &tag)], 304),
            ("GET", vec![("X-Tenant-ID", "acme")], 400),
            ("GET", vec![], 401),
            ("GET", vec![unknown], 402),
            ("GET", vec![unknown, problem], 402),
            ("HEAD", vec![own], 200),
            ("HEAD", vec![own, ("If-None-Match", "*")], 304),
            ("HEAD", vec![unknown], 402),
        ];
        if path == "/license" {
            let version = ("Sec-WebSocket-Version", "13");
            let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
            let evil = ("Origin", "https://evil.example.com");
            cases.push(("GET", [&[own], &websocket[..]].concat(), 426));
            cases.push(("GET", [&[own, version], &websocket[..]].concat(), 400));
            cases.push(("GET", [&[own, version, key, evil], &websocket[..]].concat(), 403));
        }
        for (method, headers, status) in cases {
            let answer = send(&world, method, path, &headers, "").await;
            assert_eq!(answer.status, status, "{method} {path} {headers:?}: {}", answer.text());
            document.check(method, path, &answer);
        }
        let answer = send(&world, "DELETE", path, &[own], "").await;
        assert_eq!(answer.status, 405);
        document.check("GET", path, &answer);
    }
    for path in ["/license/plans", "/api/v1/license/plans"] {
        let tag = send(&world, "GET", path, &[own], "").await.header("ETag").expect("an entity tag").to_owned();
        for (method, headers, status) in [
            ("GET", vec![own], 200),
            ("GET", vec![unknown], 200),
            ("GET", vec![own, ("If-None-Match", &tag)], 304),
            ("GET", vec![("X-Tenant-ID", "acme")], 400),
            ("GET", vec![("X-Tenant-ID", "acme"), problem], 400),
            ("GET", vec![], 401),
            ("HEAD", vec![own], 200),
            ("HEAD", vec![own, ("If-None-Match", &tag)], 304),
            ("HEAD", vec![], 401),
        ] {
            let answer = send(&world, method, path, &headers, "").await;
            assert_eq!(answer.status, status, "{method} {path} {headers:?}: {}", answer.text());
            document.check(method, path, &answer);
        }
        let answer = send(&world, "POST", path, &[own], "").await;
        assert_eq!(answer.status, 405);
        document.check("GET", path, &answer);
    }
    for path in ["/license/upgrade", "/api/v1/license/upgrade"] {
        let (owner, media_type) = (("X-User-Role", "owner"), ("Content-Type", "application/json"));
        let tenant = world.tenant("professional").await.to_string();
        let own = ("X-Tenant-ID", tenant.as_str());
        let large = format!("{{\"new_plan\":\"{}\"}}", "x".repeat(20_000));
        for (headers, body, status) in [
            (vec![own, media_type], r#"{"new_plan":"enterprise"}"#, 403),
            (vec![own, owner], r#"{"new_plan":"enterprise"}"#, 415),
            (vec![own, owner, media_type], "nonsense", 400),
            (vec![own, owner, media_type], &large, 413),
            (vec![own, owner, media_type], r#"{"new_plan":"platinum"}"#, 422),
            (vec![own, owner, media_type], r#"{"new_plan":"professional"}"#, 409),
            (vec![own, owner, media_type, problem], r#"{"new_plan":"starter"}"#, 403),
            (vec![owner, media_type], r#"{"new_plan":"enterprise"}"#, 401),
            (vec![unknown, owner, media_type], r#"{"new_plan":"enterprise"}"#, 402),
            (vec![own, owner, media_type], r#"{"new_plan":"enterprise"}"#, 200),
        ] {
            let answer = send(&world, "POST", path, &headers, body).await;
            assert_eq!(answer.status, status, "{path} {headers:?}: {}", answer.text());
            document.check("POST", path, &answer);
        }
        let answer = send(&world, "GET", path, &[own, owner], "").await;
        assert_eq!(answer.status, 405);
        document.check("POST", path, &answer);
        let answer = send(&world, "POST", path, &[own, owner, media_type, ("Content-Length", "9")], "").await;
        assert_eq!(answer.status, 408, "a body that does not come");
        document.check("POST", path, &answer);
    }

    for path in ["/license/upgrade-click", "/api/v1/license/upgrade-click"] {
        let media_type = ("Content-Type", "application/json");
        let (click, large) = (r#"{"feature":"crm"}"#, format!("{{\"feature\":\"{}\"}}", "x".repeat(20_000)));
        for (headers, body, status) in [
            (vec![own, media_type], click, 204),
            (vec![unknown, media_type], click, 204),
            (vec![own, media_type], "nonsense", 400),
            (vec![own, media_type, problem], "{}", 400),
            (vec![media_type, ("X-Tenant-ID", "acme")], click, 400),
            (vec![media_type], click, 401),
            (vec![own, media_type], &large, 413),
            (vec![own], click, 415),
            (vec![own, media_type, problem], r#"{"feature":"network"}"#, 422),
        ] {
            let answer = send(&world, "POST", path, &headers, body).await;
            assert_eq!(answer.status, status, "{path} {headers:?}: {}", answer.text());
            document.check("POST", path, &answer);
        }
        let answer = send(&world, "GET", path, &[own], "").await;
        assert_eq!(answer.status, 405);
        document.check("POST", path, &answer);
        let answer = send(&world, "POST", path, &[own, media_type, ("Content-Length", "9")], "").await;
        assert_eq!(answer.status, 408, "a body that does not come");
        document.check("POST", path, &answer);
    }

    // The refusals that stand in for the backend's answers.
    let denied = document.at("/components/responses/Denied");
    for (headers, status) in [(vec![own], 402), (vec![own, problem], 402), (vec![unknown], 402), (vec![], 401)] {
        let answer = send(&world, "GET", "/api/v1/crm", &headers, "").await;
        assert_eq!(answer.status, status);
        let content_type = answer.header("Content-Type").expect("a media type");
        document.assert_valid(&denied["content"][content_type]["schema"], &answer.json(), "a denial");
    }

    world.postgres_wire.cut().await;
    world.redis_wire.cut().await;
    for (method, path, body) in [
        ("GET", "/license", ""),
        ("HEAD", "/license", ""),
        ("POST", "/license/upgrade", r#"{"new_plan":"enterprise"}"#),
    ] {
        let stranger = Uuid::new_v4().to_string();
        let headers = [("X-Tenant-ID", &*stranger), ("X-User-Role", "owner"), ("Content-Type", "application/json")];
        let answer = send(&world, method, path, &headers, body).await;
        assert_eq!(answer.status, 503, "{method} {path}: {}", answer.text());
        document.check(method, path, &answer);
    }
    println!("{} answers are as described", document.seen.len());
}

/// An upgrade that is only wanted, and what a WebSocket tells.
#[tokio::test]
async fn requests_and_messages_are_as_described() {
    let upgrade = json!({ "mode": "request", "allow": { "header": "X-User-Role", "values": ["owner"] } });
    let world = World::start_with(|builder| {
        let metered = builder.set("/routes/rules/4/meter", json!({})).set("/usage/flush_interval", "200ms");
        metered.set("/upgrade", upgrade).set("/licenses/change_feed", "listen")
    })
    .await;
    world.proxy.live().await;
    let mut document = Document::read();
    let tenant = world.tenant("starter").await;
    let id = tenant.to_string();
    document.check("GET", "/license/plans", &world.get("/license/plans", tenant).await);
    let headers = [("X-Tenant-ID", &*id), ("X-User-Role", "owner"), ("Content-Type", "application/json")];
    let answer = send(&world, "POST", "/license/upgrade", &headers, r#"{"new_plan":"enterprise"}"#).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    document.check("POST", "/license/upgrade", &answer);

    let mut request = format!("ws://{}/license", world.proxy.address()).into_client_request().expect("a URL");
    request.headers_mut().insert("X-Tenant-ID", id.parse().expect("a header"));
    let (mut socket, _) = connect_async(request).await.expect("101");
    let schema = json!({ "$ref": "#/components/schemas/WebSocketMessage" });
    let limit = |tickets: u64| {
        format!("UPDATE tenant_licenses SET usage_limits = '{{\"tickets\": {tickets}}}' WHERE tenant_id = '{id}'")
    };
    let mut types = BTreeSet::new();
    for change in [
        None,
        Some(limit(1)),
        Some(format!(
            "UPDATE tenant_licenses SET valid_until = 'infinity', valid_from = '-infinity' WHERE tenant_id = '{id}'"
        )),
        Some(format!("DELETE FROM feature_usage; DELETE FROM tenant_licenses WHERE tenant_id = '{id}'")),
    ] {
        if let Some(sql) = &change {
            world.database.execute(sql).await;
        }
        let message = socket.next().await.expect("open").expect("a message").into_text().expect("text");
        let message: Value = serde_json::from_str(&message).expect("JSON");
        document.assert_valid(&schema, &message, "a message");
        if change.is_some() && types.len() == 1 {
            assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
            for percent in [80, 100] {
                let message = socket.next().await.expect("open").expect("a message").into_text().expect("text");
                let message: Value = serde_json::from_str(&message).expect("JSON");
                document.assert_valid(&schema, &message, "a message");
                assert_eq!(message["percent"], percent);
                types.insert(message["type"].to_string());
            }
        }
        types.insert(message["type"].to_string());
    }
    assert_eq!(types.len(), 3, "{types:?}");
    assert_eq!(world::get(&world.proxy, "/license", tenant).await.status, 402);
}
