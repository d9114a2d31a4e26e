//! The gate against real routers: whenever a gated handler ran for a tenant without the feature, the gate has failed.
//!
//! Some hundred targets for each backend; `DIFFERENTIAL_TARGETS=20000` asks for more, `DIFFERENTIAL_SEED=7` for others.
//! What each backend made of them is printed: `cargo nextest run --test it --no-capture -E 'test(/^differential::/)'`.

mod attacks;
mod backends;
mod targets;

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;
use uuid::Uuid;

use self::backends::{Backend, Kind};
use self::targets::{Ask, GATED, asks};
use crate::harness::process::server_dir;
use crate::harness::{Proxy, RawClient, RawResponse};

/// How many connections ask at the same time.
const CONNECTIONS: usize = 8;

/// How long a backend may take that does not know what to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// A gated handler ran, or a gated file was sent.
    Gated,
    /// Refused for want of a licence.
    PaymentRequired,
    /// Refused for its form.
    BadRequest,
    /// Anything else; none, where there was no answer.
    Other(Option<u16>),
}

impl Outcome {
    fn of(answer: Option<RawResponse>) -> Outcome {
        let Some(answer) = answer else { return Outcome::Other(None) };
        let is_gated_file = answer.body.starts_with(b"gated file");
        match (answer.header("X-Handler"), answer.status) {
            (Some("gated"), _) => Outcome::Gated,
            (None, 200 | 206) if is_gated_file => Outcome::Gated,
            (None, 402) => Outcome::PaymentRequired,
            (None, 400) => Outcome::BadRequest,
            (_, status) => Outcome::Other(Some(status)),
        }
    }
}

/// The proxy before a backend, and two tenants.
struct Site {
    backend: Backend,
    proxy: Proxy,
    licensed: Uuid,
    unlicensed: Uuid,
    _licenses: TempDir,
}

impl Site {
    async fn before(kind: &Kind) -> Site {
        let backend = Backend::start(kind).await;
        let (licensed, unlicensed) = (Uuid::new_v4(), Uuid::new_v4());
        let licenses = server_dir();
        let file = licenses.path().join("licenses.yaml");
        let written = json!({ "tenants": [
            { "tenant_id": licensed, "plan": "professional" },
            { "tenant_id": unlicensed, "plan": "starter" },
        ]});
        std::fs::write(&file, written.to_string()).expect("the directory is writable");
        let path = |path: &str| json!({ "match": { "path": path }, "feature": "crm" });
        let proxy = Proxy::builder(&backend.address().to_string())
            .set("/licenses", json!({ "source": { "file": { "path": file } } }))
            .set("/routes/path_aliases", kind.aliases)
            .set(
                "/routes/rules",
                json!([
                    { "prefix": "/api/v1/network", "access": "always" },
                    { "prefix": "/api/v1/crm", "feature": "crm" },
                    { "prefix": "/api/v1/crm/help", "access": "always" },
                    { "prefix": "/static/premium", "feature": "crm" },
                    path("/api/v1/reports"),
                    path("/api/v1/accounts/{id}/export"),
                ]),
            )
            .start()
            .await;
        Site { backend, proxy, licensed, unlicensed, _licenses: licenses }
    }

    async fn direct(&self, asks: &[Ask]) -> Vec<Outcome> {
        send_all(self.backend.address(), asks, "").await
    }

    async fn through_the_gate(&self, asks: &[Ask], tenant: Uuid) -> Vec<Outcome> {
        send_all(self.proxy.address(), asks, &format!("X-Tenant-ID: {tenant}\r\n")).await
    }

    /// How often gated handlers have run, as the backend itself counts.
    async fn runs(&self) -> u64 {
        let mut connection = Connection::to(self.backend.address());
        let answer = connection.ask(&Ask::get(b"/-/runs"), "").await.expect("the backend answers");
        answer.json()["runs"].as_u64().expect("a number")
    }

    /// The smallest request that still gets past the gate.
    async fn smallest(&self, tree: &mut impl ValueTree<Value = Ask>) -> Ask {
        let mut smallest = tree.current();
        let mut smaller = tree.simplify();
        while smaller {
            let ask = tree.current();
            let outcomes = self.through_the_gate(std::slice::from_ref(&ask), self.unlicensed).await;
            smaller = if outcomes == [Outcome::Gated] {
                smallest = ask;
                tree.simplify()
            } else {
                tree.complicate()
            };
        }
        smallest
    }
}

/// A connection for one request after the other, and another one where that was the last.
struct Connection {
    peer: SocketAddr,
    open: Option<RawClient>,
}

impl Connection {
    fn to(peer: SocketAddr) -> Connection {
        Connection { peer, open: None }
    }

    /// The answer, or none where the peer closed the connection without one.
    async fn ask(&mut self, ask: &Ask, headers: &str) -> Option<RawResponse> {
        let mut request = format!("{} ", ask.method).into_bytes();
        request.extend_from_slice(&ask.target);
        let length = if ask.method == "POST" { "Content-Length: 0\r\n" } else { "" };
        request.extend_from_slice(format!(" HTTP/1.1\r\nHost: app\r\n{length}{headers}\r\n").as_bytes());
        let is_new = self.open.is_none();
        if let Some(answer) = self.try_ask(&request, ask.method == "HEAD").await {
            return Some(answer);
        }
        // A connection that has carried a request may end at any time.
        if is_new { None } else { self.try_ask(&request, ask.method == "HEAD").await }
    }

    async fn try_ask(&mut self, request: &[u8], head_only: bool) -> Option<RawResponse> {
        let mut connection = match self.open.take() {
            Some(connection) => connection,
            None => RawClient::connect(self.peer).await,
        };
        connection.send(request).await.ok()?;
        let answer = timeout(PATIENCE, connection.try_response(head_only)).await.ok()?.ok()?;
        // Waitress sends bodies behind the answers to HEAD.
        let is_last =
            head_only || answer.status == 400 || answer.header("Connection").is_some_and(|value| value != "keep-alive");
        self.open = (!is_last).then_some(connection);
        Some(answer)
    }
}

async fn send_all(peer: SocketAddr, asks: &[Ask], headers: &str) -> Vec<Outcome> {
    let share = asks.len().div_ceil(CONNECTIONS).max(1);
    let shares = asks.chunks(share).map(async |asks| {
        let mut connection = Connection::to(peer);
        let mut outcomes = Vec::new();
        for ask in asks {
            outcomes.push(Outcome::of(connection.ask(ask, headers).await));
        }
        outcomes
    });
    join_all(shares).await.concat()
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

/// Every gated target in many disguises, and every known attack on it.
async fn nobody_gets_past_the_gate(kind: Kind) {
    let site = Site::before(&kind).await;
    let (count, seed) = (from_environment("DIFFERENTIAL_TARGETS", 300), from_environment("DIFFERENTIAL_SEED", 1));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let plain: Vec<Ask> = GATED.iter().map(|path| Ask::get(path.as_bytes())).collect();
    let answers = site.direct(&plain).await;
    let routes: Vec<_> =
        GATED.iter().zip(answers).filter(|(_, own)| *own == Outcome::Gated).map(|(path, _)| *path).collect();
    assert!(routes.len() >= 6, "{} has only {routes:?}", kind.name);
    let strategy = asks(routes, kind.aliases, kind.taste);
    let mut trees: Vec<_> = (0..count).map(|_| strategy.new_tree(&mut runner).expect("no filters")).collect();
    let generated = trees.len();
    let attacks = attacks::on(&["/api/v1/crm/items", "/api/v1/reports"]);
    let known = attacks.iter().map(|target| Ask::get(target)).chain(plain);
    let asks: Vec<Ask> = trees.iter().map(ValueTree::current).chain(known).collect();

    let direct = site.direct(&asks).await;
    let runs_before = site.runs().await;
    let gate = site.through_the_gate(&asks, site.unlicensed).await;
    let runs = site.runs().await - runs_before;

    let mut past = Vec::new();
    for (index, _) in gate.iter().enumerate().filter(|(_, outcome)| **outcome == Outcome::Gated) {
        match trees.get_mut(index) {
            Some(tree) => past.push(format!("{:?}, of {:?}", site.smallest(tree).await, asks[index])),
            None => past.push(format!("{:?}", asks[index])),
        }
    }
    past.sort();
    past.dedup_by_key(|past| past.split(", of ").next().map(str::to_owned));
    assert!(past.is_empty(), "{} let through {}:\n{}", kind.name, past.len(), past.join("\n"));
    assert_eq!(runs, 0, "{}: gated handlers ran, though no answer says so", kind.name);

    // All that the gate refused for want of a licence, and the backend takes for a gated route.
    let reached: Vec<usize> = (0..asks.len()).filter(|index| direct[*index] == Outcome::Gated).collect();
    let with = |outcome| reached.iter().filter(|index| gate[**index] == outcome).count();
    let (unpaid, malformed) = (with(Outcome::PaymentRequired), with(Outcome::BadRequest));
    let hits = reached.iter().filter(|index| **index < generated).count();
    println!(
        "{}: {generated} generated, {hits} reach a gated handler of the backend itself; {} known, {} reach one; of all \
         that do the gate answers 402 to {unpaid}, 400 to {malformed}",
        kind.name,
        asks.len() - generated,
        reached.len() - hits
    );
    assert!(hits * 5 >= generated, "{}: {hits} of {generated} reach a gated handler: hardly worth trying", kind.name);
    let elsewhere = reached.iter().filter(|at| !matches!(gate[**at], Outcome::PaymentRequired | Outcome::BadRequest));
    let elsewhere: Vec<_> = elsewhere.map(|at| (&asks[*at], gate[*at])).collect();
    assert!(elsewhere.is_empty(), "{}: neither refused nor passed on as they came: {elsewhere:#?}", kind.name);

    // With a licence the same targets lead where they lead without the proxy. Two bytes apart that pingora does not leave as
    // they are, for the gate as for the backend: a blank becomes %20, and a fragment is cut off.
    let verbatim = |ask: &Ask| !ask.target.iter().any(|byte| matches!(byte, b' ' | b'#'));
    let passes = |at: &&usize| gate[**at] == Outcome::PaymentRequired && verbatim(&asks[**at]);
    let paid: Vec<Ask> = reached.iter().filter(passes).map(|at| asks[*at].clone()).collect();
    let licensed = site.through_the_gate(&paid, site.licensed).await;
    let lost: Vec<_> = paid.iter().zip(licensed).filter(|(_, outcome)| *outcome != Outcome::Gated).collect();
    assert!(lost.is_empty(), "{}: changed on their way: {lost:#?}", kind.name);
}

macro_rules! backends {
    ($($test:ident: $kind:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                nobody_gets_past_the_gate(backends::$kind).await;
            }
        )*
    };
}

backends! {
    fastapi_on_uvicorn_with_httptools: FASTAPI_UVICORN_HTTPTOOLS,
    fastapi_on_uvicorn_with_h11: FASTAPI_UVICORN_H11,
    fastapi_under_a_root_path_with_httptools: FASTAPI_ROOT_PATH_HTTPTOOLS,
    fastapi_under_a_root_path_with_h11: FASTAPI_ROOT_PATH_H11,
    fastapi_mounted_with_httptools: FASTAPI_MOUNTED_HTTPTOOLS,
    fastapi_mounted_with_h11: FASTAPI_MOUNTED_H11,
    fastapi_on_hypercorn: FASTAPI_HYPERCORN,
    flask_on_gunicorn: FLASK_GUNICORN,
    flask_on_waitress: FLASK_WAITRESS,
    django_on_gunicorn: DJANGO_GUNICORN,
    django_on_waitress: DJANGO_WAITRESS,
    express_5: EXPRESS_5,
    express_4: EXPRESS_4,
    fastify_5: FASTIFY_5,
    fastify_5_with_a_lenient_router: FASTIFY_5_LENIENT,
    fastify_4: FASTIFY_4,
    hono: HONO,
    koa: KOA,
}

/// Gunicorn takes the path's beginning from a header when the peer is on this machine, as a sidecar is.
#[tokio::test]
async fn no_header_moves_the_path_on_gunicorn() {
    let site = Site::before(&backends::FLASK_GUNICORN).await;
    let ask = Ask::get(b"/x/api/v1/crm/items");
    for header in ["SCRIPT_NAME: /x", "script_name: /x", "PATH_INFO: /api/v1/crm/items", "SCRIPT-NAME: /x"] {
        let direct = send_all(site.backend.address(), std::slice::from_ref(&ask), &format!("{header}\r\n")).await;
        if header.to_ascii_uppercase().starts_with("SCRIPT_") {
            assert_eq!(direct, [Outcome::Gated], "{header}: gunicorn no longer does this");
        }
        let headers = format!("X-Tenant-ID: {}\r\n{header}\r\n", site.unlicensed);
        let gate = send_all(site.proxy.address(), std::slice::from_ref(&ask), &headers).await;
        assert_eq!(gate, [Outcome::Other(Some(200))], "{header}");
    }
}
