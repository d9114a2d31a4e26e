//! The gate against real routers: whenever a gated handler ran for a tenant without the feature, the gate has failed.
//!
//! Some hundred targets for each backend; `DIFFERENTIAL_TARGETS=20000` asks for more, `DIFFERENTIAL_SEED=7` for others.
//! What each backend made of them is printed: `cargo nextest run --test it --no-capture -E 'test(/^differential::/)'`.

mod attacks;
mod backends;
mod targets;

use std::collections::BTreeMap;
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

/// How many requests that got past the gate are shrunk: a failure is known by the first.
const MAX_SHRUNK: usize = 50;

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

/// What was tried on a backend.
struct Trial {
    /// The generated requests, then the known ones.
    asks: Vec<Ask>,
    generated: usize,
    /// What the backend makes of each by itself.
    direct: Vec<Outcome>,
    /// What comes of each through the gate, for the tenant without the feature.
    gate: Vec<Outcome>,
}

impl Trial {
    /// The places of the requests that the backend takes for a gated route.
    fn reached(&self) -> impl Iterator<Item = usize> {
        (0..self.asks.len()).filter(|at| self.direct[*at] == Outcome::Gated)
    }

    /// Prints how much of it was worth trying, and insists on a fifth.
    fn report(&self, kind: &Kind) {
        let with = |outcome| self.reached().filter(|at| self.gate[*at] == outcome).count();
        let (unpaid, malformed) = (with(Outcome::PaymentRequired), with(Outcome::BadRequest));
        let (name, generated, known) = (kind.name, self.generated, self.asks.len() - self.generated);
        let hits = self.reached().filter(|at| *at < generated).count();
        println!(
            "{name}: {generated} generated, {hits} reach a gated handler of the backend itself; {known} known, {} reach \
             one; of all that do the gate answers 402 to {unpaid}, 400 to {malformed}",
            self.reached().count() - hits
        );
        assert!(hits * 5 >= generated, "{name}: {hits} of {generated} reach a gated handler: hardly worth trying");
        let refused = |at: &usize| matches!(self.gate[*at], Outcome::PaymentRequired | Outcome::BadRequest);
        let others: Vec<_> =
            self.reached().filter(|at| !refused(at)).map(|at| (&self.asks[at], self.gate[at])).collect();
        assert!(others.is_empty(), "{name}: neither refused nor passed on as they came: {others:#?}");
    }

    /// With a licence the same targets lead where they lead without the proxy.
    async fn repeat_with_a_licence(&self, kind: &Kind, site: &Site) {
        // Two bytes apart that pingora does not leave as they are, for the gate as for the backend: a blank becomes %20, and
        // a fragment is cut off.
        let verbatim = |at: &usize| !self.asks[*at].target.iter().any(|byte| matches!(byte, b' ' | b'#'));
        let unpaid = self.reached().filter(|at| self.gate[*at] == Outcome::PaymentRequired);
        let asks: Vec<Ask> = unpaid.filter(verbatim).map(|at| self.asks[at].clone()).collect();
        let licensed = site.through_the_gate(&asks, site.licensed).await;
        let lost: Vec<_> = asks.iter().zip(licensed).filter(|(_, outcome)| *outcome != Outcome::Gated).collect();
        assert!(lost.is_empty(), "{}: changed on their way: {lost:#?}", kind.name);
    }
}

/// Every gated route in many disguises, and every known attack on two of them.
async fn nobody_gets_past_the_gate(kind: Kind) {
    let site = Site::before(&kind).await;
    let plain: Vec<Ask> = GATED.iter().map(|path| Ask::get(path.as_bytes())).collect();
    let own = GATED.iter().zip(site.direct(&plain).await).filter(|(_, outcome)| *outcome == Outcome::Gated);
    let routes: Vec<_> = own.map(|(path, _)| *path).collect();
    assert!(routes.len() >= 6, "{} has only {routes:?}", kind.name);

    let strategy = asks(routes, kind.aliases, kind.taste);
    let mut runner = seeded_runner();
    let count = from_environment("DIFFERENTIAL_TARGETS", 300);
    let mut trees: Vec<_> = (0..count).map(|_| strategy.new_tree(&mut runner).expect("no filters")).collect();
    let attacks = attacks::on(&["/api/v1/crm/items", "/api/v1/reports"]);
    let known = attacks.iter().map(|target| Ask::get(target)).chain(plain);
    let asks: Vec<Ask> = trees.iter().map(ValueTree::current).chain(known).collect();

    let direct = site.direct(&asks).await;
    let before = site.runs().await;
    let gate = site.through_the_gate(&asks, site.unlicensed).await;
    let runs = site.runs().await - before;

    let mut past = BTreeMap::new();
    for at in (0..asks.len()).filter(|at| gate[*at] == Outcome::Gated).take(MAX_SHRUNK) {
        let smallest = match trees.get_mut(at) {
            Some(tree) => site.smallest(tree).await,
            None => asks[at].clone(),
        };
        past.insert(format!("{smallest:?}"), &asks[at]);
    }
    assert!(past.is_empty(), "{} let through, each with what it was shrunk from: {past:#?}", kind.name);
    assert_eq!(runs, 0, "{}: gated handlers ran, though no answer says so", kind.name);

    let trial = Trial { asks, generated: trees.len(), direct, gate };
    trial.report(&kind);
    trial.repeat_with_a_licence(&kind, &site).await;
}

fn seeded_runner() -> TestRunner {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&from_environment("DIFFERENTIAL_SEED", 1).to_le_bytes());
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
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
