//! `demo`, as a newcomer meets it: the lines it prints are pasted into a shell.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::frontend;
use crate::harness::process::{OnOrphaned, Process, free_port, server_dir};
use crate::harness::{Browser, RawClient, RawResponse};

const BINARY: &str = env!("CARGO_BIN_EXE_dotmac-license-proxy");

struct Demo {
    process: Process,
    _dir: TempDir,
}

impl Demo {
    /// Started, and all that it prints at first.
    async fn start(arguments: &[&str]) -> (Demo, String) {
        let dir = server_dir();
        let command: Vec<String> = [BINARY, "demo"].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        // Whatever a newcomer's shell has set is none of its business.
        let envs = [
            ("DATABASE_URL", "nonsense"),
            ("REDIS_URL", "nonsense"),
            ("CACHE_TTL", "nonsense"),
            ("DOTMAC_LICENSE_CONFIG", "/nonexistent"),
        ];
        let envs = envs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let process = Process::start("demo", dir.path(), &command, &envs, OnOrphaned::Kill, None);
        let mut demo = Demo { process: process.show_output_on_panic(), _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let printed = demo.process.stdout();
            if printed.contains("/metrics") && printed.ends_with('\n') {
                return (demo, printed);
            }
            assert!(demo.process.exited().is_none(), "it has ended: {printed}");
            assert!(Instant::now() < deadline, "nothing to paste after a minute: {printed:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn interrupt(mut self) {
        self.process.signal("INT");
        assert_eq!(self.process.wait(Duration::from_secs(20)).await.code(), Some(0), "{}", self.process.stderr());
        assert_eq!(self.process.stderr(), "", "a clean day leaves nothing in the log");
    }
}

/// The lines to paste, in order.
fn curl_lines(printed: &str) -> Vec<&str> {
    printed.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect()
}

/// What a shell prints for a line.
fn paste(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The status and the body that `curl -i` shows.
fn answer(line: &str) -> (String, Value) {
    let shown = paste(line);
    let (head, body) = shown.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {shown}"));
    let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

#[tokio::test]
async fn every_printed_line_works_when_pasted() {
    let (port, ops_port) = (free_port().to_string(), free_port().to_string());
    let (demo, printed) = Demo::start(&["--port", &port, "--ops-port", &ops_port]).await;
    for plan in ["starter", "professional", "enterprise"] {
        assert!(printed.contains(plan), "{printed}");
    }
    let lines = curl_lines(&printed);
    assert_eq!(lines.len(), 8, "{printed}");
    let hint = "npm ci --prefix frontend && npm run build --prefix frontend\n";
    assert!(printed.contains(hint) && !printed.contains(".localhost"), "{printed}");

    let (status, body) = answer(lines[0]);
    assert_eq!((status.as_str(), &body["backend"]), ("200", &Value::from("stub")), "{body}");
    let features = body["received"]["x-license-features"].as_str().unwrap_or_default();
    assert!(features.contains("crm") && body["received"]["x-license-plan"].is_string(), "{body}");

    let (status, body) = answer(lines[1]);
    assert_eq!((status.as_str(), &body["reason"]), ("402", &Value::from("feature_not_in_plan")), "{body}");
    assert_eq!(body["upgrade_url"], "/billing/upgrade?feature=crm");

    let opened = paste(lines[2]);
    let statuses: Vec<_> =
        opened.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.split(' ').next()).collect();
    assert_eq!(statuses, ["200", "200", "200", "402"], "{opened}");
    assert!(opened.contains(r#""reason":"usage_limit_exceeded""#), "{opened}");

    let (status, license) = answer(lines[3]);
    assert_eq!((status.as_str(), &license["planTier"]), ("200", &Value::from("professional")), "{license}");
    let (status, body) = answer(lines[4]);
    assert_eq!((status.as_str(), &body["received"]["x-license-plan"]), ("200", &Value::from("professional")), "{body}");
    let (status, shown) = answer(lines[5]);
    assert_eq!((status.as_str(), &shown["revision"]), ("200", &license["revision"]), "{shown}");

    let (status, body) = answer(lines[6]);
    assert_eq!((status.as_str(), &body["path"]), ("200", &Value::from("/api/v1/network/devices")), "{body}");
    assert!(body["received"].get("x-license-plan").is_none(), "{body}");

    let metrics = paste(lines[7]);
    assert!(metrics.lines().all(|line| line.starts_with("dotmac_")), "{metrics}");
    let denial = "dotmac_feature_denials_total{feature=\"crm\",reason=\"feature_not_in_plan\"} 1";
    for counted in [denial, "dotmac_license_cache_requests 7"] {
        assert!(metrics.lines().any(|line| line == counted), "{counted}: {metrics}");
    }
    demo.interrupt().await;
}

/// Something else usually has 8080.
#[tokio::test]
async fn taken_ports_are_replaced_by_free_ones() {
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let ports = taken.each_ref().map(|listener| listener.local_addr().expect("bound").port().to_string());
    let (demo, printed) = Demo::start(&["--port", &ports[0], "--ops-port", &ports[1]]).await;
    let lines = curl_lines(&printed);
    for port in &ports {
        let on_it = printed.contains(&format!(":{port}/")) || printed.contains(&format!(":{port},"));
        assert!(!on_it, "{port} is taken: {printed}");
    }
    assert_eq!(answer(lines[0]).0, "200");
    assert!(paste(lines[7]).contains("dotmac_license_cache_requests 1"));
    demo.interrupt().await;
}

/// `--access-log` shows the requests, after the lines to paste.
#[tokio::test]
async fn the_access_log_is_shown_on_request() {
    let (mut demo, printed) = Demo::start(&["--port", "0", "--ops-port", "0", "--access-log"]).await;
    assert_eq!(answer(curl_lines(&printed)[1]).0, "402");
    demo.process.signal("INT");
    assert_eq!(demo.process.wait(Duration::from_secs(20)).await.code(), Some(0));
    let stdout = demo.process.stdout();
    let line = stdout.lines().find(|line| line.starts_with('{')).expect("a line of the access log");
    let line: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!((&line["status"], &line["decision"]), (&Value::from(402), &Value::from("denied")));
}

const STARTER: &str = "00000000-0000-4000-8000-000000000001";
const INDEX: &str = "<!doctype html><title>portal</title>";
const SCRIPT: &str = "console.log(1)";

/// The demo with a portal that is built, and the folder of that, beside which lies what is nobody's business.
async fn with_portal() -> (Demo, String, SocketAddr, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let portal = dir.path().join("dist");
    std::fs::create_dir_all(portal.join("assets")).expect("a directory");
    for (name, text) in [("dist/index.html", INDEX), ("dist/assets/app-1a2b.js", SCRIPT), ("secret.txt", "secret")] {
        std::fs::write(dir.path().join(name), text).expect("the directory is writable");
    }
    let (port, ops_port) = (free_port(), free_port().to_string());
    let portal = portal.to_str().expect("UTF-8");
    let (demo, printed) =
        Demo::start(&["--port", &port.to_string(), "--ops-port", &ops_port, "--portal", portal]).await;
    (demo, printed, SocketAddr::from(([127, 0, 0, 1], port)), dir)
}

/// A request to this host, which is this machine.
async fn ask(proxy: SocketAddr, host: &str, line: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let mut head = format!("{line} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut client = RawClient::connect(proxy).await;
    client.send(format!("{head}\r\n{body}")).await.expect("sent");
    client.response().await
}

#[tokio::test]
async fn a_portal_that_is_built_is_served() {
    let (demo, printed, proxy, _dir) = with_portal().await;
    let port = proxy.port();
    let host = format!("{STARTER}.localhost:{port}");
    assert_eq!(curl_lines(&printed).len(), 8, "{printed}");
    assert!(printed.contains("\nIn a browser, ") && !printed.contains("npm "), "{printed}");
    let get = async |target: &str| ask(proxy, &host, &format!("GET {target}"), &[], "").await;
    for target in ["/", "/index.html", "/crm", "/billing/upgrade?feature=crm", "/assets/gone.js", "/apis"] {
        let answer = get(target).await;
        let shown = (answer.status, answer.header("Content-Type"), answer.text());
        assert_eq!(shown, (200, Some("text/html"), INDEX.to_owned()), "{target}");
        assert_eq!(answer.header("Cache-Control"), Some("no-cache"));
    }
    let script = get("/assets/app-1a2b.js").await;
    let shown = (script.status, script.header("Content-Type"), script.text());
    assert_eq!(shown, (200, Some("text/javascript"), SCRIPT.to_owned()));

    let settings = get("/portal.json").await;
    let tenants = ["starter", "professional", "enterprise"].into_iter().enumerate().map(|(i, plan)| {
        let url = format!("http://00000000-0000-4000-8000-00000000000{}.localhost:{port}/", i + 1);
        assert!(printed.contains(&url), "{url}: {printed}");
        json!({ "name": plan, "url": url })
    });
    let expected = json!({
        "baseUrl": "",
        "headers": { "X-User-Role": "owner" },
        "webSocketUrl": "/ws/license",
        "tenants": tenants.collect::<Vec<_>>(),
    });
    assert_eq!((settings.status, settings.header("Content-Type")), (200, Some("application/json")));
    assert_eq!(settings.json(), expected);

    for line in ["GET /api/v1/network/devices", "POST /api/v1/billing/x?y=1"] {
        let echoed = ask(proxy, &host, line, &[("Content-Type", "application/json")], "").await;
        assert_eq!((echoed.status, &echoed.json()["backend"]), (200, &json!("stub")), "{line}");
    }
    for target in [
        "/../secret.txt",
        "/..%2fsecret.txt",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/secret.txt",
        "/%2e%2e/",
        "/assets/../../secret.txt",
        "/assets/..%2f..%2fsecret.txt",
        "/assets/..%5c..%5csecret.txt",
        "//etc/passwd",
        "/%2fetc/passwd",
        "/index.html%00",
    ] {
        let answer = get(target).await;
        let is_ours = answer.text() == INDEX || (400..500).contains(&answer.status);
        assert!(is_ours && !answer.text().contains("root:"), "{target}: {} {}", answer.status, answer.text());
    }
    demo.interrupt().await;
}

/// Browsers can't set headers on a WebSocket, and need not: the host says whose page it is, and `Origin` that it is one.
#[tokio::test]
async fn a_tenants_page_is_its_own_host() {
    let (demo, _, proxy, _dir) = with_portal().await;
    let port = proxy.port();
    let host = format!("{STARTER}.localhost:{port}");
    let (own, evil) = (format!("http://{host}"), format!("http://evil.localhost:{port}"));
    let crm = "GET /api/v1/crm/customers";
    let denied = ask(proxy, &host, crm, &[], "").await;
    assert_eq!((denied.status, &denied.json()["required_plan"]), (402, &json!("professional")));
    let elsewhere = format!("127.0.0.1:{port}");
    for (host, headers, status) in [
        (&*elsewhere, vec![], 401),
        (&elsewhere, vec![("X-Tenant-ID", STARTER)], 402),
        (&elsewhere, vec![("X-Tenant-ID", "00000000-0000-4000-8000-000000000002")], 200),
        (&host, vec![("X-Tenant-ID", "00000000-0000-4000-8000-000000000002")], 400),
        ("localhost", vec![], 401),
        ("www.localhost", vec![], 400),
    ] {
        assert_eq!(ask(proxy, host, crm, &headers, "").await.status, status, "{host} {headers:?}");
    }

    let open = async |origin: Option<&str>| {
        let mut request = format!("ws://{host}/ws/license").into_client_request().expect("a URL");
        if let Some(origin) = origin {
            request.headers_mut().insert("Origin", origin.parse().expect("a header"));
        }
        client_async(request, TcpStream::connect(proxy).await.expect("it listens")).await
    };
    let (mut socket, _) = open(Some(&own)).await.expect("101");
    for origin in [&*evil, "http://127.0.0.1", "null"] {
        let Err(Error::Http(refused)) = open(Some(origin)).await else { panic!("{origin} is let in") };
        assert_eq!(refused.status(), 403, "{origin}");
    }

    let upgrade = async |headers: &[(&str, &str)]| {
        let headers = [headers, &[("Content-Type", "application/json")]].concat();
        ask(proxy, &host, "POST /api/v1/license/upgrade", &headers, r#"{"new_plan":"professional"}"#).await
    };
    let role = ("X-User-Role", "owner");
    for (headers, reason) in [
        (vec![role, ("Origin", &*evil)], "origin_not_allowed"),
        (vec![role, ("Origin", "null")], "origin_not_allowed"),
        (vec![("Origin", &*own)], "not_allowed"),
    ] {
        let refused = upgrade(&headers).await;
        assert_eq!((refused.status, &refused.json()["reason"]), (403, &json!(reason)), "{headers:?}");
    }
    let sold = upgrade(&[role, ("Origin", &own)]).await;
    assert_eq!((sold.status, &sold.json()["planTier"]), (200, &json!("professional")), "{}", sold.text());
    for (kind, plan) in [("license", "starter"), ("license_updated", "professional")] {
        let message = socket.next().await.expect("open").expect("a message").into_text().expect("text");
        let message: Value = serde_json::from_str(&message).expect("JSON");
        assert_eq!((&message["type"], &message["license"]["planTier"]), (&json!(kind), &json!(plan)));
    }
    assert_eq!(ask(proxy, &host, crm, &[], "").await.status, 200);
    drop(socket);
    demo.interrupt().await;
}

/// The real portal, as a newcomer meets it: 402, the prompt, the upgrade, 200.
#[tokio::test]
async fn a_newcomer_clicks_through_it_in_a_browser() {
    const LIMIT: Duration = Duration::from_secs(20);
    let portal = frontend::dist().display().to_string();
    let port = free_port().to_string();
    let (demo, printed) = Demo::start(&["--port", &port, "--ops-port", "0", "--portal", &portal]).await;
    let browser = Browser::start().await;
    let tab = browser.tab().await;
    // Without a tenant there is a choice of them.
    tab.goto(&format!("http://127.0.0.1:{port}/")).await;
    tab.wait_for_text("Who are you?").await;
    for plan in ["starter", "professional", "enterprise"] {
        assert_eq!(tab.count("link", &format!("Go on as the tenant with the plan {plan}")).await, 1);
    }
    assert!(tab.accessibility().await.is_empty());
    tab.click("link", "Go on as the tenant with the plan starter").await;
    tab.wait_for_text("Plan: starter").await;
    assert!(printed.contains(&tab.url().await), "{printed}");
    tab.wait_until("() => document.querySelector('.plan').dataset.connection === 'live'", (), LIMIT).await;
    tab.evaluate("() => { window.here = true; }", ()).await;
    assert_eq!(tab.count("link", "CRM").await, 0);
    tab.click("button", "Look up customers").await;
    tab.wait_for_text("/api/v1/crm/customers → 402").await;
    tab.click("link", "See plans with CRM").await;
    tab.click("button", "Change to professional").await;
    tab.wait_for_text("Your plan is professional now.").await;
    tab.click("link", "Dashboard").await;
    tab.click("button", "Look up customers").await;
    tab.wait_for_text("/api/v1/crm/customers → 200").await;
    assert_eq!(tab.count("link", "CRM").await, 1);
    assert_eq!(tab.evaluate("() => window.here", ()).await, true, "the page was loaded again");
    drop(browser);
    demo.interrupt().await;
}
