//! A private Prometheus for one test, with the rules that are shipped, scraping each second.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::client;
use super::process::{OnOrphaned, Process, free_port, server_dir};
use super::proxy::Proxy;

/// The rules that are shipped.
pub(crate) const RULES: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/helm/dotmac-license-proxy/files/prometheus-rules.yaml");

/// A running Prometheus; gone when the test is.
pub(crate) struct Prometheus {
    port: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

/// One series of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) labels: BTreeMap<String, String>,
    /// It may be no number: NaN.
    pub(crate) value: f64,
}

impl Prometheus {
    /// Scrapes these, each under a job of this name in the namespace `shop`.
    pub(crate) async fn scraping(jobs: &[(&str, &Proxy)]) -> Prometheus {
        let dir = server_dir();
        let jobs = jobs.iter().map(|(job, process)| {
            let target = process.ops_address().to_string();
            json!({ "job_name": job, "static_configs": [{ "targets": [target], "labels": { "namespace": "shop" } }] })
        });
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [RULES],
            "scrape_configs": jobs.collect::<Vec<_>>(),
        });
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config.to_string()).expect("the directory is writable");
        require("prometheus");
        for _ in 0..5 {
            let port = free_port();
            let command = [
                "prometheus".to_owned(),
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", dir.path().join(format!("data-{port}")).display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ];
            let mut process = Process::start("prometheus", dir.path(), &command, &[], OnOrphaned::Kill, None);
            let deadline = Instant::now() + Duration::from_secs(60);
            while process.exited().is_none() {
                let address = ([127, 0, 0, 1], port).into();
                let listens = tokio::net::TcpStream::connect(address).await.is_ok();
                if listens && client::request(address, "GET", "/-/ready", &[]).await.status == 200 {
                    return Prometheus { port, _process: process.show_output_on_panic(), _dir: dir };
                }
                assert!(Instant::now() < deadline, "Prometheus is not ready after a minute:\n{}", process.stderr());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let printed = process.stderr();
            assert!(printed.contains("address already in use"), "Prometheus does not start:\n{printed}");
        }
        panic!("no free port for Prometheus in five attempts");
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// The first value of a query; `None` while there is none, or no number.
    pub(crate) async fn query(&self, query: &str) -> Option<f64> {
        self.series(query).await.first().map(|series| series.value).filter(|value| value.is_finite())
    }

    /// All series that a query has now; panics where Prometheus can't understand it.
    pub(crate) async fn series(&self, query: &str) -> Vec<Series> {
        let encoded: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let target = format!("/api/v1/query?query={encoded}");
        let answer = client::request(self.address(), "GET", &target, &[]).await.json();
        assert_eq!(answer["status"], "success", "{query}\n{answer}");
        let found = answer["data"]["result"].as_array().unwrap_or_else(|| panic!("no vector: {query}\n{answer}"));
        found.iter().map(series).collect()
    }

    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }
}

fn series(sample: &Value) -> Series {
    let labels = sample["metric"].as_object().expect("labels").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    Series {
        labels: labels.map(|(name, value)| (name.clone(), text(value))).collect(),
        value: text(&sample["value"][1]).parse().expect("a number, NaN or Inf"),
    }
}

/// Panics with a sentence where one of Prometheus's programs is not installed.
pub(crate) fn require(program: &str) {
    let installed = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    assert!(installed, "{program} is not installed (not in PATH): scripts/test installs it by apt-get");
}
