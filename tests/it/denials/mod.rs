//! Denials on their way into Postgres, who follows them to an upgrade, and what tenants are told of their use.

mod clicks;
mod events;
mod shown;
mod thresholds;

use std::time::Duration;

use uuid::Uuid;

use crate::harness::{Proxy, ProxyBuilder, RawClient, RawResponse, World, world};

/// As the operators type it.
const CONVERSION: &str = "SELECT COUNT(CASE WHEN clicked_upgrade THEN 1 END)::float / COUNT(*) AS conversion_rate FROM \
                          feature_denial_events WHERE created_at > NOW() - INTERVAL '7 days';";

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);

/// Counts are written soon after.
fn prompt(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/usage/flush_interval", "200ms")
}

/// Waits until the minute has so many seconds left at least: what is denied from then on is of one minute.
async fn early_in_the_minute(seconds: u64) {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let gone = now().as_secs() % 60;
    if gone + seconds >= 60 {
        tokio::time::sleep(Duration::from_secs(61 - gone)).await;
    }
}

/// `times` requests for a feature's path on one connection; all are answered with `status`.
async fn ask(proxy: &Proxy, method: &str, path: &str, tenant: Uuid, times: usize, status: u16) {
    let mut client = RawClient::connect(proxy.address()).await;
    for _ in 0..times {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nContent-Length: 0\r\n\r\n");
        client.send(head).await.expect("open");
        let answer = client.response().await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
    }
}

/// So many requests of `tenant` for `/api/v1/FEATURE` are denied.
async fn denied(proxy: &Proxy, feature: &str, tenant: Uuid, times: usize) {
    ask(proxy, "GET", &format!("/api/v1/{feature}"), tenant, times, 402).await;
}

/// A click, as the frontend tells it.
async fn click(proxy: &Proxy, feature: &str, headers: &[(&str, &str)]) -> RawResponse {
    post(proxy, "/api/v1/license/upgrade-click", headers, &format!(r#"{{"feature":"{feature}"}}"#)).await
}

/// The same as `tenant`; it is taken.
async fn clicked(proxy: &Proxy, feature: &str, tenant: Uuid) {
    let answer =
        click(proxy, feature, &[("X-Tenant-ID", &tenant.to_string()), ("Content-Type", "application/json")]).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{}", answer.text());
}

async fn post(proxy: &Proxy, path: &str, headers: &[(&str, &str)], body: &str) -> RawResponse {
    let mut client = RawClient::connect(proxy.address()).await;
    let mut head =
        format!("POST {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    client.send(format!("{head}\r\n{body}")).await.expect("open");
    client.response().await
}
