//! Targets as real applications use them, through the real proxy: none is refused, and each arrives byte for byte.

use std::collections::BTreeMap;

use serde_json::json;
use uuid::Uuid;

use crate::harness::process::server_dir;
use crate::harness::{Proxy, RawClient, Upstream};

const CORPUS: &str = include_str!("../corpus/legitimate.txt");
const DOTMAC: &str = include_str!("../../config/dotmac.yaml");

/// How many requests are under way on a connection.
const PIPELINED: usize = 32;

/// The lines of the corpus: the feature that gates the target, or nothing, and the target.
fn corpus() -> Vec<(&'static str, &'static str)> {
    let lines = CORPUS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap_or(("", line))).collect()
}

/// `config/dotmac.yaml`, with its licences in a file and its upgrades and stores left out.
fn dotmac(upstream: &Upstream, licenses: &str) -> String {
    let mut text = DOTMAC.to_owned();
    for (shipped, here) in [
        ("proxy: 0.0.0.0:8080", "proxy: PROXY_ADDRESS"),
        ("ops: 0.0.0.0:9464", "ops: OPS_ADDRESS"),
        ("admin: 127.0.0.1:9090", "admin: ADMIN_ADDRESS"),
        ("address: 127.0.0.1:8000", &format!("address: {}", upstream.address())),
        ("  - 10.0.0.0/8", "  - 127.0.0.0/8"),
        ("    postgres: {} ", &format!("    file: {{ path: \"{licenses}\" }} ")),
    ] {
        assert_eq!(text.matches(shipped).count(), 1, "{shipped}");
        text = text.replace(shipped, here);
    }
    text
}

#[tokio::test]
async fn every_target_of_real_applications_arrives_as_it_came() {
    let upstream = Upstream::start();
    let (tenant, dir) = (Uuid::new_v4(), server_dir());
    let licenses = dir.path().join("licenses.yaml");
    // A plan's name, and none of its features.
    let written = json!({ "tenants": [{ "tenant_id": tenant, "plan": "starter", "features": [] }] });
    std::fs::write(&licenses, written.to_string()).expect("the directory is writable");
    let text = dotmac(&upstream, &licenses.display().to_string());
    let proxy = Proxy::builder(upstream.address()).text(text).start().await;

    // What the proxy answers itself is no business of the backend.
    let corpus: Vec<_> = corpus().into_iter().filter(|(_, target)| !is_own(target)).collect();
    assert!(corpus.len() > 2_000);
    let mut statuses = BTreeMap::<(&str, u16), usize>::new();
    let mut wrong = Vec::new();
    let mut connection = RawClient::connect(proxy.address()).await;
    'all: for batch in corpus.chunks(PIPELINED) {
        let mut requests = String::new();
        for (_, target) in batch {
            requests += &format!("GET {target} HTTP/1.1\r\nHost: app.isp.example\r\nX-Tenant-ID: {tenant}\r\n\r\n");
        }
        connection.send(requests).await.expect("the proxy reads requests behind one another");
        for (feature, target) in batch {
            let Ok(answer) = connection.try_response(false).await else {
                wrong.push(format!("no answer to {target}"));
                break 'all;
            };
            let expected = if feature.is_empty() { 200 } else { 402 };
            if answer.status != expected {
                wrong.push(format!("{} {feature} {target}", answer.status));
            }
            *statuses.entry((feature, answer.status)).or_default() += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("answers by feature and status: {statuses:?}");

    let expected = corpus.iter().filter(|(feature, _)| feature.is_empty());
    let expected: Vec<_> = expected.map(|(_, target)| format!("GET {target} HTTP/1.1").into_bytes()).collect();
    let arrived: Vec<_> = upstream.requests().into_iter().map(|request| request.line).collect();
    for (expected, arrived) in expected.iter().zip(&arrived) {
        assert_eq!(expected.escape_ascii().to_string(), arrived.escape_ascii().to_string());
    }
    assert_eq!(expected.len(), arrived.len());
}

fn is_own(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    ["/license", "/api/v1/license", "/ws/license"].contains(&path)
}
