//! `demo`, as a newcomer meets it: the lines it prints are pasted into a shell.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::process::{OnOrphaned, Process, free_port, server_dir};

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
