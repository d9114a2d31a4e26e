//! What becomes of an upload that is refused: its client gets to read why, and what it still sends has an end.

use std::process::Command;
use std::time::Duration;

use crate::harness::{RawClient, World, process};

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
