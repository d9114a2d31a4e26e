//! Documents as frameworks write them.

use serde_json::json;

use super::*;

/// What FastAPI writes for an application with a router, a catch-all and a mounted `root_path`.
fn fastapi() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": { "title": "DotMac", "version": "1" },
        "servers": [{ "url": "/backend" }],
        "paths": {
            "/api/v1/crm/contacts": {
                "get": { "summary": "List", "operationId": "list_contacts", "responses": { "200": {} } },
                "post": { "operationId": "create_contact", "responses": { "200": {} } }
            },
            "/api/v1/customers/{customer_id}/tickets": {
                "parameters": [{ "name": "customer_id", "in": "path" }],
                "post": { "operationId": "open_ticket", "responses": {} }
            },
            "/files/{path}.{ext}": { "get": { "responses": {} } },
            "/docs": { "$ref": "#/components/pathItems/Docs" }
        },
        "components": { "pathItems": { "Docs": { "get": { "operationId": "docs", "responses": {} } } } }
    })
}

fn lines(document: &Value) -> Vec<String> {
    let resolve = |method: &str, path: &str| match path.trim_start_matches("/backend") {
        path if path.starts_with("/api/v1/crm") => Match::Rule(0),
        "/api/v1/customers/x/tickets" if method == "POST" => Match::Rule(1),
        _ => Match::Unmatched,
    };
    let report = Report::new(document, resolve).unwrap_or_else(|error| panic!("{error}"));
    let line = |operation: &Operation| {
        let Operation { method, template, example, id, matched } = operation;
        format!("{method} {template} {example} {} {matched:?}", id.as_deref().unwrap_or("-"))
    };
    assert_eq!(report.unmatched().count(), report.operations.iter().filter(|o| o.matched == Match::Unmatched).count());
    report.operations.iter().map(line).collect()
}

#[test]
fn every_operation_is_listed_with_and_without_the_root_path() {
    assert_eq!(
        lines(&fastapi()),
        [
            "GET /backend/api/v1/crm/contacts /backend/api/v1/crm/contacts list_contacts Rule(0)",
            "GET /api/v1/crm/contacts /api/v1/crm/contacts list_contacts Rule(0)",
            "POST /backend/api/v1/crm/contacts /backend/api/v1/crm/contacts create_contact Rule(0)",
            "POST /api/v1/crm/contacts /api/v1/crm/contacts create_contact Rule(0)",
            "POST /backend/api/v1/customers/{customer_id}/tickets /backend/api/v1/customers/x/tickets open_ticket Rule(1)",
            "POST /api/v1/customers/{customer_id}/tickets /api/v1/customers/x/tickets open_ticket Rule(1)",
            "GET /backend/files/{path}.{ext} /backend/files/x.x - Unmatched",
            "GET /files/{path}.{ext} /files/x.x - Unmatched",
            "GET /backend/docs /backend/docs docs Unmatched",
            "GET /docs /docs docs Unmatched",
        ]
    );
}

#[test]
fn servers_give_the_base_path() {
    let base = |servers: Value| {
        let document = json!({ "openapi": "3.0.3", "servers": servers, "paths": { "/a": { "get": {} } } });
        let report = Report::new(&document, |_, _| Match::Unmatched).unwrap_or_else(|error| panic!("{error}"));
        report.operations.into_iter().map(|operation| operation.template).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(base(json!([])), "/a");
    assert_eq!(base(json!([{ "url": "/" }])), "/a");
    assert_eq!(base(json!([{ "url": "https://api.example.com" }])), "/a");
    assert_eq!(base(json!([{ "url": "https://api.example.com/v1/" }, { "url": "//eu.example.com/v1" }])), "/v1/a");
    assert_eq!(base(json!([{ "url": "https://x/{base}", "variables": { "base": { "default": "v2" } } }])), "/v2/a");
    assert_eq!(base(json!([{ "url": "https://x/v1" }, { "url": "/api" }])), "/v1/a /api/a /a");
}

#[test]
fn a_path_or_an_operation_may_have_servers_of_its_own() {
    let own = json!([{ "url": "https://x/own" }]);
    let document = json!({
        "openapi": "3.0.3",
        "servers": [{ "url": "https://x/v1" }],
        "paths": { "/a": { "servers": own, "get": {} }, "/b": { "get": {}, "put": { "servers": own } } }
    });
    let report = Report::new(&document, |_, _| Match::Unmatched).unwrap_or_else(|error| panic!("{error}"));
    let templates: Vec<_> = report.operations.iter().map(|operation| operation.template.as_str()).collect();
    assert_eq!(templates, ["/own/a", "/v1/b", "/own/b"]);
}

#[test]
fn what_is_no_openapi_document_is_refused() {
    for (document, message) in [
        (json!([]), "expected an OpenAPI document of version 3, found a document without the member `openapi`"),
        (json!({ "swagger": "2.0" }), "expected an OpenAPI document of version 3, found Swagger \"2.0\""),
        (json!({ "openapi": "4.0" }), "expected an OpenAPI document of version 3, found version 4.0"),
        (json!({ "openapi": "3.1.0", "paths": [] }), "/paths: expected an object"),
        (json!({ "openapi": "3.1.0", "paths": { "a": {} } }), "/paths/a: expected a path that starts with a slash"),
        (json!({ "openapi": "3.1.0", "paths": { "/a": { "get": 1 } } }), "/paths/~1a/get: expected an object"),
        (
            json!({ "openapi": "3.1.0", "paths": { "/a": { "$ref": "b.yaml#/a" } } }),
            "/paths/~1a: the reference \"b.yaml#/a\" leads out of the document: bundle it first",
        ),
        (
            json!({ "openapi": "3.1.0", "paths": { "/a": { "$ref": "#/paths/~1a" } } }),
            "/paths/~1a: expected a reference that ends",
        ),
    ] {
        let error = Report::new(&document, |_, _| Match::Unmatched).expect_err(message);
        assert_eq!(error.to_string(), message);
    }
}
