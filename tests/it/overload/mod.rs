//! Clients that are slow, large or many: each is answered, or let go, within its limit, and nobody else has to do with it.

mod bodies;
mod crowds;
mod heads;
mod http2;
mod operators;
mod readers;
mod tenants;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Proxy, ProxyBuilder, RawClient, RawResponse, Upstream};

/// What a short limit is set to.
const SHORT: &str = "500ms";

/// Far more than a short limit takes, and far less than none at all.
const LIMIT: Duration = Duration::from_secs(15);

/// A path of the core, which needs no tenant.
const CORE: &str = "/api/v1/network";

/// A proxy in front of a recording upstream, with licences from a file.
struct Site {
    proxy: Proxy,
    upstream: Upstream,
    _licenses: tempfile::NamedTempFile,
}

impl Site {
    /// With these `limits`. The first hundred tenants have a licence for everything.
    async fn with(limits: Value) -> Site {
        Site::start(|builder| builder.set("/limits", limits)).await
    }

    async fn start(change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Site {
        let licenses = tempfile::NamedTempFile::new().expect("a file");
        let tenants: Vec<_> =
            (0..100).map(|n| json!({ "tenant_id": tenant(n).to_string(), "plan": "enterprise" })).collect();
        std::fs::write(licenses.path(), json!({ "tenants": tenants }).to_string()).expect("room for it");
        let upstream = Upstream::start();
        let file = json!({ "file": { "path": licenses.path() } });
        let builder = Proxy::builder(upstream.address()).set("/licenses", json!({ "source": file }));
        let proxy = change(builder).start().await;
        Site { proxy, upstream, _licenses: licenses }
    }

    async fn connect(&self) -> RawClient {
        RawClient::connect(self.proxy.address()).await
    }

    /// Whether an ordinary request of an ordinary client is served.
    async fn serves(&self) -> bool {
        let mut client = self.connect().await;
        client.send(get(CORE, Some(tenant(99)))).await.expect("sent");
        client.response().await.status == 200
    }

    /// How often this limit was met.
    async fn limited(&self, limit: &str) -> f64 {
        let metrics = self.proxy.metrics().await;
        metrics.value("dotmac_limited_total", &[("limit", limit)]).expect("there from the start")
    }

    /// Waits until `limit` was met `times` in all.
    async fn met(&self, limit: &str, times: f64) {
        until(&format!("{limit} is met {times} times"), async || self.limited(limit).await == times).await;
    }

    /// Waits until a gauge has this value.
    async fn gauge(&self, name: &str, value: f64) {
        until(&format!("{name} is {value}"), async || self.proxy.metric(name).await == value).await;
    }

    /// How many files the proxy has open.
    fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.proxy.pid())).expect("it runs").count()
    }
}

/// One of the licensed tenants.
fn tenant(n: u128) -> Uuid {
    Uuid::from_u128(0x0000_0000_0000_4000_8000_0000_0000_0000 + n)
}

/// `GET target` on a connection that is kept.
fn get(target: &str, tenant: Option<Uuid>) -> String {
    let tenant = tenant.map(|tenant| format!("X-Tenant-ID: {tenant}\r\n")).unwrap_or_default();
    format!("GET {target} HTTP/1.1\r\nHost: app\r\n{tenant}\r\n")
}

/// Holds an answer of the proxy's own against what each of them has.
#[track_caller]
fn refused(answer: &RawResponse, status: u16, reason: &str) {
    let body = answer.json();
    assert_eq!((answer.status, &body["reason"]), (status, &json!(reason)), "{}", answer.text());
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Cache-Control"), Some("no-store"));
    assert!(answer.header("Date").is_some());
    assert_eq!(answer.header("X-Request-ID"), body["request_id"].as_str());
    let about = answer.header("Proxy-Status").expect("RFC 9209");
    assert!(about.starts_with("dotmac-license-proxy; ") && about.contains(reason), "{about}");
    assert_eq!(answer.header("Retry-After"), (status == 503).then_some("1"));
}

/// Waits for `wanted`.
async fn until(what: &str, wanted: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !wanted().await {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
