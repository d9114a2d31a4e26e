//! Requests that two readers could cut differently, and what becomes of the bytes behind a refusal.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::harness::{RawClient, World, process};

const HOST: &str = "Host: app\r\n";

/// Whatever backends would make of these: they are refused, and so is all that comes behind them.
#[tokio::test]
async fn framing_that_can_be_read_in_two_ways() {
    let world = World::start().await;
    let behind = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";
    let with = |headers: &str| format!("POST /x HTTP/1.1\r\n{HOST}{headers}\r\n");
    for head in [
        with("Content-Length: 2\r\nContent-Length: 2\r\n"),
        with("Content-Length: 2\r\ncontent-length: 3\r\n"),
        with("Content-Length: 2, 2\r\n"),
        with("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n"),
        with("Transfer-Encoding: chunked\r\nCONTENT-LENGTH: 0\r\n"),
        with("Content-Length: -2\r\n"),
        with("Content-Length: +2\r\n"),
        with("Content-Length: 0x2\r\n"),
        with("Content-Length: \r\n"),
        with("Transfer-Encoding: chunked, identity\r\n"),
        with("Transfer-Encoding: xchunked\r\n"),
        with("Transfer-Encoding: gzip\r\n"),
        with("Content-Length : 2\r\n"),
        with("X-A: 1\r\n Content-Length: 2\r\n"),
        with("X-A: 1\0\r\n"),
        with("X A: 1\r\n"),
        with("Host: other\r\n"),
        with("hOST: app\r\n"),
        "POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\n\r\n".to_owned(),
        "GET /x HTTP/1.1\r\nX-A: 1\r\n\r\n".to_owned(),
        format!("get /x HTTP/1.1\r\n{HOST}\r\n"),
        format!("Get /x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET http://app/x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET app:80 HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET ?/x HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET * HTTP/1.1\r\n{HOST}\r\n"),
        format!("GET /x HTTP/3.0\r\n{HOST}\r\n"),
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("{head}hi{behind}")).await.expect("sent");
        let answer = connection.response().await;
        assert_eq!(answer.status, 400, "{head:?}");
        assert_eq!(world.upstream.count(), 0, "{head:?} reached the backend: {:?}", world.upstream.requests());
    }
    // Pingora refuses some of these itself, without a word; the others are answered as any refusal.
    for headers in [
        "Content-Length: 2, 2\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
    ] {
        let mut connection = RawClient::connect(world.proxy.address()).await;
        connection.send(format!("{}hi{behind}", with(headers))).await.expect("sent");
        let answer = connection.response().await;
        assert_eq!(
            (&answer.json()["reason"], answer.header("Connection")),
            (&json!("request_malformed"), Some("close"))
        );
        assert!(connection.closes_within(Duration::from_secs(20)).await, "{headers}");
    }
    assert_eq!((world.upstream.count(), world.upstream.malformed().len()), (0, 0));
}

#[tokio::test]
async fn methods_about_the_server_itself() {
    let world = World::start().await;
    let mut connection = RawClient::connect(world.proxy.address()).await;
    for _ in 0..2 {
        connection.send(format!("OPTIONS * HTTP/1.1\r\n{HOST}\r\n")).await.expect("still open");
        assert_eq!(connection.response().await.status, 204);
    }
    connection.send(format!("CONNECT app:443 HTTP/1.1\r\n{HOST}\r\n")).await.expect("still open");
    assert_eq!(connection.response().await.status, 405);
    assert_eq!(world.upstream.count(), 0);

    // HTTP/1.0 needs no Host.
    let mut old = RawClient::connect(world.proxy.address()).await;
    old.send("GET /api/v1/network/x HTTP/1.0\r\n\r\n").await.expect("sent");
    assert_eq!(old.response().await.status, 200);
}

/// Clients that send the whole of their upload before they read get to read the 402.
#[tokio::test]
async fn a_denied_upload_is_read_by_curl() {
    let world = World::start().await;
    let (file, url, tenant) = upload(&world).await;
    for expect in [
        &[][..],
        &["-H", "Expect:"],
        &["-H", "Expect:", "-H", "Transfer-Encoding: chunked"],
        &["--http2-prior-knowledge"],
    ] {
        for round in 0..20 {
            let data = format!("@{}", file.path().display());
            let output = Command::new("curl")
                .args(["-sS", "--data-binary", &data, "-H", &tenant, "-w", "\n%{http_code}"])
                .args(expect)
                .arg(&url)
                .output()
                .expect("curl is installed");
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{expect:?}, round {round}: {err}");
            assert!(
                out.starts_with("{\"error\":\"Feature not available\"") && out.ends_with("\n402"),
                "{expect:?}: {out}"
            );
        }
    }
    assert_eq!(world.upstream.count(), 0);
}

#[tokio::test]
async fn a_denied_upload_is_read_by_python() {
    let world = World::start().await;
    let (file, url, tenant) = upload(&world).await;
    let script = r#"
import http.client, json, sys, urllib.parse
file, url, tenant = sys.argv[1:]
url = urllib.parse.urlsplit(url)
whole = open(file, "rb").read()
def pieces():
    for at in range(0, len(whole), 65536):
        yield whole[at:at + 65536]
for chunked in (False, True):
    for _ in range(20):
        connection = http.client.HTTPConnection(url.netloc, timeout=30)
        headers = dict([tenant.split(": ")])
        connection.request("POST", url.path, pieces() if chunked else whole, headers)
        answer = connection.getresponse()
        assert answer.status == 402, answer.status
        assert json.load(answer)["reason"] == "feature_not_in_plan"
"#;
    process::run(&["python3", "-c", script, &file.path().display().to_string(), &url, &tenant]);
    assert_eq!(world.upstream.count(), 0);
}

/// A file of 8 MB, where it is refused, and the header that says to whom.
async fn upload(world: &World) -> (tempfile::NamedTempFile, String, String) {
    let tenant = world.tenant("starter").await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![b'x'; 8_000_000]).expect("room for it");
    (file, format!("{}/api/v1/crm/import", world.proxy.url()), format!("X-Tenant-ID: {tenant}"))
}

/// How much and for how long is bounded: whoever never ends an upload is cut.
#[tokio::test]
async fn draining_has_an_end() {
    let world =
        World::start_with(|builder| builder.set("/limits/drain_bytes", "1MiB").set("/limits/drain_timeout", "1s"))
            .await;
    let tenant = world.tenant("starter").await;
    let head =
        |framing: &str| format!("POST /api/v1/crm HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\n{framing}\r\n\r\n");

    // One that sends nothing.
    let mut silent = RawClient::connect(world.proxy.address()).await;
    silent.send(head("Content-Length: 10")).await.expect("sent");
    assert_eq!(silent.response().await.status, 402);
    assert!(silent.closes_within(Duration::from_secs(20)).await);

    // One that sends a little at a time, for ever; and one that sends as fast as it can.
    for (piece, pause) in [(1, Duration::from_millis(20)), (65_536, Duration::ZERO)] {
        let mut endless = RawClient::connect(world.proxy.address()).await;
        endless.send(head("Content-Length: 100000000000")).await.expect("sent");
        assert_eq!(endless.response().await.status, 402);
        let cut = async {
            while endless.send(vec![0; piece]).await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), cut).await.expect("the proxy closes the connection");
    }
}
