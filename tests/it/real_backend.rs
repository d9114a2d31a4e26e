//! The shipped `config/dotmac.yaml` before a real FastAPI application under uvicorn, with real Postgres and Redis.

use std::time::{Duration, Instant};

use redis::AsyncCommands;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::process::{OnOrphaned, Process, free_port, server_dir};
use crate::harness::proxy::ProxyBuilder;
use crate::harness::world::{PLANS, least_license};
use crate::harness::{Database, Postgres, Proxy, RawClient, RawResponse, Redis, client};

const DOTMAC: &str = include_str!("../../config/dotmac.yaml");

/// A prefix and the feature that gates it.
const SOLD: [(&str, &str); 7] = [
    ("crm", "crm"),
    ("tickets", "tickets"),
    ("projects", "projects"),
    ("fieldops", "fieldops"),
    ("analytics", "analytics"),
    ("support", "tickets"),
    ("field-operations", "fieldops"),
];

const CORE: [&str; 4] = ["network", "billing", "auth", "licensing"];

/// `tests/backends/fastapi_app.py` under uvicorn.
struct Backend {
    /// As the configuration spells it.
    address: String,
    _process: Process,
    _dirs: Vec<TempDir>,
}

impl Backend {
    async fn on_tcp() -> Backend {
        for _ in 0..5 {
            let port = free_port();
            let started = Backend::try_start(&["--port", &port.to_string()], format!("127.0.0.1:{port}")).await;
            if let Some(backend) = started {
                return backend;
            }
        }
        panic!("no free port for uvicorn in five attempts");
    }

    async fn on_a_unix_socket() -> Backend {
        let dir = server_dir();
        let socket = dir.path().join("app.sock").display().to_string();
        let backend = Backend::try_start(&["--uds", &socket], format!("unix:{socket}")).await;
        let mut backend = backend.expect("nobody else has this socket");
        backend._dirs.push(dir);
        backend
    }

    /// `None` if somebody else has taken the port meanwhile.
    async fn try_start(arguments: &[&str], address: String) -> Option<Backend> {
        let root = env!("CARGO_MANIFEST_DIR");
        let python = format!("{root}/.test-tools/venv/bin/python");
        assert!(
            std::path::Path::new(&python).exists(),
            "FastAPI and uvicorn are not installed ({python} is missing): scripts/test installs them"
        );
        let dir = server_dir();
        let app_dir = format!("{root}/tests/backends");
        let command = [python.as_str(), "-m", "uvicorn", "--app-dir", &app_dir, "fastapi_app:app"];
        let command: Vec<String> = command.iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let envs = [("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned())];
        let process = Process::start("uvicorn", dir.path(), &command, &envs, OnOrphaned::Kill, None);
        let mut process = process.show_output_on_panic();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !process.stderr().contains("Uvicorn running on") {
            if process.exited().is_some() {
                let printed = process.stderr();
                assert!(printed.contains("address already in use"), "uvicorn does not start:\n{printed}");
                return None;
            }
            assert!(Instant::now() < deadline, "uvicorn is not up after a minute");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(Backend { address, _process: process, _dirs: vec![dir] })
    }
}

/// Everything, running the shipped configuration.
struct Site {
    proxy: Proxy,
    builder: ProxyBuilder,
    database: Database,
    redis: Redis,
    _backend: Backend,
}

/// `config/dotmac.yaml` with no more changed than where it runs.
fn dotmac(backend: &str) -> String {
    let mut text = DOTMAC.to_owned();
    for (shipped, here) in [
        ("proxy: 0.0.0.0:8080", "proxy: PROXY_ADDRESS"),
        ("ops: 0.0.0.0:9464", "ops: OPS_ADDRESS"),
        ("admin: 127.0.0.1:9090", "admin: ADMIN_ADDRESS"),
        ("address: 127.0.0.1:8000", &format!("address: {backend}")),
        ("  - 10.0.0.0/8", "  - 127.0.0.0/8"),
    ] {
        assert_eq!(text.matches(shipped).count(), 1, "{shipped}");
        text = text.replace(shipped, here);
    }
    text
}

impl Site {
    async fn before(backend: Backend) -> Site {
        let database = Postgres::shared().await.database().await;
        let redis = Redis::start().await;
        let builder = Proxy::builder(&backend.address)
            .text(dotmac(&backend.address))
            .env("DATABASE_URL", database.url())
            .env("REDIS_URL", redis.url());
        let migrated = builder.run(&["migrate"]).await;
        assert!(migrated.status.success(), "{migrated:?}");
        let proxy = builder.start().await;
        Site { proxy, builder, database, redis, _backend: backend }
    }

    /// A new tenant, by the least of plain SQL.
    async fn tenant(&self, plan: &str) -> Uuid {
        least_license(&self.database, plan).await
    }

    async fn ask(&self, method: &str, target: &str, tenant: Option<Uuid>) -> RawResponse {
        let tenant = tenant.map(|tenant| tenant.to_string());
        let headers: Vec<_> = tenant.iter().map(|tenant| ("X-Tenant-ID", tenant.as_str())).collect();
        client::request(self.proxy.address(), method, target, &headers).await
    }

    async fn post(&self, target: &str, tenant: Uuid, body: &Value) -> RawResponse {
        let mut connection = RawClient::connect(self.proxy.address()).await;
        let (host, body) = (self.proxy.address(), body.to_string());
        let request = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\nX-Tenant-ID: {tenant}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(request).await.expect("sent");
        connection.response().await
    }
}

/// What every plan gets of every module, on the shipped map.
async fn the_whole_table(site: &Site) {
    for (plan, included) in PLANS {
        let tenant = site.tenant(plan).await;
        for (prefix, feature) in SOLD {
            for target in [format!("/api/v1/{prefix}/items?page=2"), format!("/api/v1/{prefix}/items/7")] {
                let answer = site.ask("GET", &target, Some(tenant)).await;
                let body = answer.json();
                if included.contains(&feature) {
                    assert_eq!((answer.status, &body["module"]), (200, &json!(feature)), "{plan} {target}: {body}");
                    assert_eq!(body["saw"]["x-tenant-id"], tenant.to_string());
                    assert_eq!(body["saw"]["x-license-plan"], plan);
                } else {
                    assert_eq!((answer.status, &body["feature"]), (402, &json!(feature)), "{plan} {target}: {body}");
                    assert_eq!(body["upgrade_url"], format!("/billing/upgrade?feature={feature}"));
                }
            }
        }
        // Opening a ticket for a customer needs tickets, which every plan has, and not crm.
        let ticket = site.post("/api/v1/customers/c-1/tickets", tenant, &json!({ "name": "no link" })).await;
        assert_eq!((ticket.status, &ticket.json()["customer"]), (201, &json!("c-1")), "{plan}");
        for prefix in CORE {
            let answer = site.ask("GET", &format!("/api/v1/{prefix}/items"), Some(tenant)).await;
            assert_eq!((answer.status, &answer.json()["module"]), (200, &json!(prefix)), "{plan} {prefix}");
        }
        let entry: Option<String> =
            site.redis.connect().await.get(format!("license:{tenant}")).await.expect("Redis answers");
        assert!(entry.is_some_and(|entry| entry.contains(plan)), "the licence is in Redis");
    }
    for prefix in CORE {
        assert_eq!(site.ask("GET", &format!("/api/v1/{prefix}/items"), None).await.status, 200, "{prefix}");
    }
    let nobody = site.ask("GET", "/api/v1/crm/items", None).await;
    assert_eq!((nobody.status, &nobody.json()["reason"]), (401, &json!("tenant_missing")));
    let unknown = site.ask("GET", "/api/v1/crm/items", Some(Uuid::new_v4())).await;
    assert_eq!((unknown.status, &unknown.json()["reason"]), (402, &json!("no_license")));
}

/// The framework's own answers arrive as it gives them.
async fn what_the_framework_does_itself(site: &Site) {
    let tenant = site.tenant("professional").await;
    let created = site.post("/api/v1/crm/items", tenant, &json!({ "name": "Ada", "quantity": 3 })).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.json()["item"], json!({ "name": "Ada", "quantity": 3 }));
    let refused = site.post("/api/v1/crm/items", tenant, &json!({ "quantity": "many" })).await;
    assert_eq!((refused.status, refused.json()["detail"].as_array().map(Vec::len)), (422, Some(2)));
    assert_eq!(site.ask("DELETE", "/api/v1/crm/items/7", Some(tenant)).await.status, 204);
    assert_eq!(site.ask("PUT", "/api/v1/crm/items/7", Some(tenant)).await.status, 405);
    assert_eq!(site.ask("GET", "/api/v1/crm/nothing", Some(tenant)).await.status, 404);
    assert_eq!(site.ask("GET", "/docs", None).await.status, 200);
    // A redirect leads back to where the client came from, not to the backend's own address.
    let redirect = site.ask("GET", "/api/v1/crm/items/", Some(tenant)).await;
    let back = format!("http://{}/api/v1/crm/items", site.proxy.address());
    assert_eq!((redirect.status, redirect.header("Location")), (307, Some(back.as_str())));
}

#[tokio::test]
async fn every_plan_and_module_over_tcp() {
    let site = Site::before(Backend::on_tcp().await).await;
    the_whole_table(&site).await;
    what_the_framework_does_itself(&site).await;
}

#[tokio::test]
async fn every_plan_and_module_over_a_unix_socket() {
    let site = Site::before(Backend::on_a_unix_socket().await).await;
    the_whole_table(&site).await;
    what_the_framework_does_itself(&site).await;
}

/// The backend's own document, as it comes through the proxy, against the shipped map and against maps with a gap.
#[tokio::test]
async fn every_operation_of_the_backend_falls_under_a_rule() {
    let site = Site::before(Backend::on_tcp().await).await;
    let document = site.ask("GET", "/openapi.json", None).await;
    assert_eq!(document.status, 200);
    let operations: usize = document.json()["paths"]
        .as_object()
        .expect("paths")
        .values()
        .map(|item| item.as_object().map_or(0, serde_json::Map::len))
        .sum();
    assert_eq!(operations, (CORE.len() + SOLD.len()) * 4 + 1);
    let dir = server_dir();
    let file = dir.path().join("openapi.json");
    std::fs::write(&file, &document.body).expect("the directory is writable");
    let file = file.display().to_string();
    let arguments = ["check-config", "--openapi", &file, "--strict"];

    let shipped = site.builder.run(&arguments).await;
    assert_eq!(shipped.status.code(), Some(0), "{shipped:?}");
    let lines: Vec<&str> = shipped.stdout.lines().collect();
    assert_eq!(lines.len(), operations + 1, "{shipped:?}");
    assert_eq!(lines[operations], format!("{operations} operations, 0 without a rule"));
    let rule_of = |start: &str| {
        let line = lines.iter().find(|line| line.split_whitespace().take(2).eq(start.split(' ')));
        line.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_default()
    };
    for (operation, rule) in [
        ("GET /api/v1/crm/items", "crm"),
        ("DELETE /api/v1/support/items/{item_id}", "tickets"),
        ("POST /api/v1/field-operations/items", "fieldops"),
        ("GET /api/v1/network/items/{item_id}", "always"),
        ("POST /api/v1/customers/{customer_id}/tickets", "tickets"),
    ] {
        assert_eq!(rule_of(operation), rule, "{operation}: {}", shipped.stdout);
    }

    for (line, missing) in [
        ("    - { prefix: /api/v1/support, feature: tickets }\n", 4),
        (
            "    - { match: { path: \"/api/v1/customers/{id}/tickets\", methods: [POST] }, feature: tickets, meter: { window: month, \
             limit: hard } }\n",
            1,
        ),
    ] {
        let text = dotmac("127.0.0.1:8000");
        assert!(text.contains(line), "{line}");
        let gap = site.builder.clone().text(text.replace(line, ""));
        let ended = gap.run(&arguments).await;
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert_eq!(ended.stdout.lines().filter(|line| line.ends_with("  no rule")).count(), missing, "{ended:?}");
        assert!(ended.stderr.contains(&format!("{missing} of ")), "{ended:?}");
        let lenient = gap.run(&arguments[..3]).await;
        assert_eq!((lenient.status.code(), lenient.stdout), (Some(0), ended.stdout));
    }
}
