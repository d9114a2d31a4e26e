//! Requests that two readers could cut differently, judged by what a recording backend was sent.
//!
//! Each case asks for `/smuggled` where only a misreading would make a request of it, and ends with a probe over the same
//! connection to the backend: what a request leaves behind there would become part of the probe.

mod bodies;
mod early;
mod heads;
pub(crate) mod http2;
mod pipelines;
mod property;
mod readers;
mod uploads;

use std::time::Duration;

use self::readers::{Request, agreed};
use crate::harness::{RawClient, RawResponse, World, client};

/// What a `Host` is good for here.
const HOST: &str = "Host: app\r\n";

/// A request that must never arrive.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: app\r\n\r\n";

/// How long the proxy may take to close a connection.
const CLOSING: Duration = Duration::from_secs(20);

/// A proxy that keeps its connections to a recording backend.
async fn world() -> World {
    World::start_with(|builder| builder.set("/upstream/idle_timeout", "60s")).await
}

/// Sends `bytes` and asserts that they are refused with `status`, the connection ends, and the backend hears nothing of it.
async fn refused(world: &World, bytes: impl AsRef<[u8]>, status: u16) -> RawResponse {
    let shown = bytes.as_ref().escape_ascii().to_string();
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(bytes).await.expect("sent");
    let answer = connection.try_response(false).await.unwrap_or_else(|error| panic!("no answer ({error}) to {shown}"));
    assert_eq!((answer.status, answer.header("Connection")), (status, Some("close")), "{shown}");
    assert!(connection.closes_within(CLOSING).await, "still open after {shown}");
    assert_eq!(received(world, &shown).await, [], "{shown}");
    answer
}

/// Sends `bytes` and asserts that exactly these requests reach the backend, target and body, and are answered 200.
async fn forwarded(world: &World, bytes: impl AsRef<[u8]>, expected: &[(&str, &str)]) -> RawClient {
    let shown = bytes.as_ref().escape_ascii().to_string();
    let mut connection = RawClient::connect(world.proxy.address()).await;
    connection.send(bytes).await.expect("sent");
    for _ in expected {
        let answer = connection.try_response(false).await.unwrap_or_else(|error| panic!("{error} after {shown}"));
        assert_eq!(answer.status, 200, "{shown}: {}", answer.text());
    }
    let seen = received(world, &shown).await;
    assert_eq!(summary(&seen), *expected, "{shown}");
    connection
}

/// Sends a probe and returns what the backend was sent before it, as all readers read it; then forgets all that.
async fn received(world: &World, case: &str) -> Vec<Request> {
    let answer = client::request(world.proxy.address(), "GET", "/probe", &[]).await;
    assert_eq!(answer.status, 200, "the probe after {case}");
    let mut requests = seen(world, case);
    world.upstream.forget();
    let probes = requests.iter().filter(|request| request.target == "/probe").count();
    assert_eq!(probes, 1, "the probe after {case}: {requests:?}");
    requests.retain(|request| request.target != "/probe");
    requests
}

/// What the backend was sent, as all readers read it, in the order of arrival. The marker is never among it.
fn seen(world: &World, case: &str) -> Vec<Request> {
    let connections = world.upstream.raw();
    let requests = connections.iter().flat_map(|bytes| agreed(bytes).unwrap_or_else(|why| panic!("{case}: {why}")));
    let mut requests: Vec<_> = requests.collect();
    // Several connections: in the order in which their requests arrived.
    let arrived = world.upstream.requests();
    requests.sort_by_key(|request| arrived.iter().position(|other| other.target == request.target));
    assert!(requests.iter().all(|request| request.target != "/smuggled"), "{case}: {requests:?}");
    assert_eq!(world.upstream.malformed(), Vec::<Vec<u8>>::new(), "{case}");
    requests
}

/// Targets and bodies.
fn summary(requests: &[Request]) -> Vec<(&str, &str)> {
    requests.iter().map(|request| (&*request.target, std::str::from_utf8(&request.body).unwrap_or("no text"))).collect()
}
