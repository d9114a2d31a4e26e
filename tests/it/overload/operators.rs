//! The listeners for operators: nobody keeps the kubelet from asking.

use std::time::Duration;

use serde_json::json;

use super::{LIMIT, SHORT, Site};
use crate::harness::{RawClient, client};

#[tokio::test]
async fn slow_and_idle_clients_are_let_go() {
    let site = Site::with(json!({ "header_timeout": SHORT })).await;
    let address = site.proxy.ops_address();
    let mut idle = Vec::new();
    // More than it takes at once: the others wait until these have been let go.
    for n in 0..400 {
        let mut client = RawClient::connect(address).await;
        if n % 2 == 0 {
            client.send("GET /metrics HTTP/1.1\r\nX-A: ").await.expect("sent");
        }
        idle.push(client);
    }
    assert_eq!(client::request(address, "GET", "/livez", &[]).await.status, 200);
    for client in &mut idle {
        let ended = tokio::time::timeout(LIMIT, async { while client.bytes().await.is_ok_and(|b| !b.is_empty()) {} });
        assert!(ended.await.is_ok());
    }
    let mut client = RawClient::connect(address).await;
    client.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    assert_eq!(client.response().await.status, 200);
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("still open");
    assert_eq!(client.response().await.status, 200);
}
