//! Usage is counted once and limits hold, whatever happens between replicas, Postgres and Redis.
//!
//! The backend's own tally is the truth: what it has served is what must be written, and what a limit allows is how often it
//! may have served. The process's clock can't be set from here; that days and periods end at midnight is tested where the
//! clock is an argument, in `src/record` and `licensing::quota`.

mod answers;
mod cost;
mod counting;
mod explain;
mod limits;
mod outages;
mod redis;
mod together;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::harness::world::features_of;
use crate::harness::{Database, License, Proxy, ProxyBuilder, RawClient, RawResponse, World, client};

/// How often counts are written, in these tests.
const FLUSH: Duration = Duration::from_millis(200);

/// How long anything may take that is to happen soon, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// Rules that meter: tickets where one is made, hard and by month; crm whatever comes of it; projects softly; analytics by day.
/// Requests may wait longer than they usually may, since other tests have the processors as well.
fn metered(builder: ProxyBuilder) -> ProxyBuilder {
    builder
        .set(
            "/routes/rules",
            json!([
                { "prefix": "/api/v1/network", "access": "always" },
                { "prefix": "/api/v1/tickets", "feature": "tickets" },
                { "match": { "path": "/api/v1/tickets", "methods": ["POST"] }, "feature": "tickets",
                  "meter": { "window": "month" } },
                { "prefix": "/api/v1/crm", "feature": "crm", "meter": { "count": "all", "window": "lifetime" } },
                { "prefix": "/api/v1/projects", "feature": "projects", "meter": { "limit": "soft" } },
                { "prefix": "/api/v1/analytics", "feature": "analytics", "meter": { "window": "day" } },
                { "prefix": "/api/v1/fieldops", "feature": "fieldops", "meter": { "window": "anchored" } },
            ]),
        )
        .set("/usage/flush_interval", format!("{}ms", FLUSH.as_millis()))
        .set("/usage/lease_idle", "1s")
        .set("/licenses/lookup_deadline", "1s")
}

/// A tenant that has every feature, and these limits.
async fn tenant(world: &World, limits: Value) -> Uuid {
    let tenant = Uuid::new_v4();
    let license = License::valid(tenant, "enterprise");
    world.insert(License { usage_limits: limits, features: features_of("enterprise"), ..license }).await;
    tenant
}

/// One request as `tenant`, on a connection of its own.
async fn ask(proxy: &Proxy, method: &str, target: &str, tenant: Uuid) -> RawResponse {
    client::request(proxy.address(), method, target, &[("X-Tenant-ID", &tenant.to_string())]).await
}

/// What is written of a tenant's use of a feature, all days together.
async fn counted(database: &Database, tenant: Uuid, feature: &str) -> u64 {
    let sql = format!(
        "SELECT coalesce(sum(usage_count), 0) FROM feature_usage WHERE tenant_id = '{tenant}' AND feature_name = '{feature}'"
    );
    database.value(&sql).await.and_then(|sum| sum.parse().ok()).expect("a number")
}

/// `used` and `reserved` of the windows of a tenant's feature, all together.
async fn window(database: &Database, tenant: Uuid, feature: &str) -> (u64, u64) {
    let sql = format!(
        "SELECT coalesce(sum(used), 0) || ' ' || coalesce(sum(reserved), 0) FROM usage_windows
          WHERE tenant_id = '{tenant}' AND feature = '{feature}'"
    );
    let text = database.value(&sql).await.expect("a row");
    let (used, reserved) = text.split_once(' ').expect("two numbers");
    (used.parse().expect("a number"), reserved.parse().expect("a number"))
}

/// Waits until so much is written, and sees that it stays so.
async fn is_counted(world: &World, tenant: Uuid, feature: &str, expected: u64) {
    is_written(world, tenant, feature, expected).await;
    tokio::time::sleep(2 * FLUSH).await;
    assert_eq!(counted(&world.database, tenant, feature).await, expected, "{feature}");
}

/// Waits until so much is written, and no more.
async fn is_written(world: &World, tenant: Uuid, feature: &str, expected: u64) {
    let begun = Instant::now();
    loop {
        let counted = counted(&world.database, tenant, feature).await;
        if counted == expected {
            return;
        }
        assert!(counted < expected, "{feature}: {counted} are counted, and not {expected}");
        assert!(begun.elapsed() < SOON, "{feature}: {counted} of {expected} are counted\n{}", world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until `wanted` holds; `what` is said if it does not.
async fn soon(what: &str, wanted: impl AsyncFn() -> bool) -> Duration {
    let begun = Instant::now();
    while !wanted().await {
        assert!(begun.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    begun.elapsed()
}

/// A request of a [`Crowd`].
#[derive(Clone, Copy)]
struct Wish {
    tenant: Uuid,
    method: &'static str,
    path: &'static str,
}

impl Wish {
    const fn ticket(tenant: Uuid) -> Wish {
        Wish { tenant, method: "POST", path: "/api/v1/tickets" }
    }
}

/// Clients, each of which asks anew as soon as it is answered, on connections that are kept, now of one proxy and now of
/// another. Who can't reach one goes to the next.
#[derive(Clone)]
struct Crowd {
    proxies: Arc<[SocketAddr]>,
    clients: u64,
    /// How many requests have been answered, or have failed.
    done: Arc<AtomicU64>,
}

/// What became of a crowd's requests: how many got each status, 0 for no answer, and how long the slowest took.
#[derive(Clone, Debug, Default)]
struct Answers {
    statuses: BTreeMap<u16, u64>,
    slowest: Duration,
}

impl Answers {
    fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or_default()
    }
}

impl Crowd {
    fn of<'a>(proxies: impl IntoIterator<Item = &'a Proxy>, clients: u64) -> Crowd {
        let proxies = proxies.into_iter().map(Proxy::address).collect();
        Crowd { proxies, clients, done: Arc::default() }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Makes so many requests; `choose` tells each by its number.
    async fn send(&self, requests: u64, choose: impl Fn(u64) -> Wish + Send + Sync + 'static) -> Answers {
        let (choose, next) = (Arc::new(choose), Arc::new(AtomicU64::new(0)));
        let clients: Vec<_> = (0..self.clients)
            .map(|client| {
                let (crowd, choose, next) = (self.clone(), Arc::clone(&choose), Arc::clone(&next));
                tokio::spawn(async move {
                    let mut one = OneOf { crowd, at: client, connection: None };
                    let mut answers = Answers::default();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= requests {
                            return answers;
                        }
                        let begun = Instant::now();
                        *answers.statuses.entry(one.ask(choose(number)).await).or_default() += 1;
                        answers.slowest = answers.slowest.max(begun.elapsed());
                        one.crowd.done.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let mut all = Answers::default();
        for client in clients {
            let answers = client.await.expect("what came back was HTTP");
            all.slowest = all.slowest.max(answers.slowest);
            for (status, count) in answers.statuses {
                *all.statuses.entry(status).or_default() += count;
            }
        }
        all
    }
}

/// One client of a crowd.
struct OneOf {
    crowd: Crowd,
    at: u64,
    connection: Option<RawClient>,
}

impl OneOf {
    /// The status; 0: none was reached, or the connection ended without an answer.
    async fn ask(&mut self, wish: Wish) -> u16 {
        // Some requests go over one connection, then it is another proxy's turn.
        if self.at % 16 == 15 {
            self.connection = None;
        }
        self.at += 1;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => match self.connect().await {
                Some(connection) => connection,
                None => return 0,
            },
        };
        let Wish { tenant, method, path } = wish;
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: app\r\nX-Tenant-ID: {tenant}\r\nContent-Length: 0\r\n\r\n");
        if connection.send(head).await.is_err() {
            return 0;
        }
        let Ok(answer) = connection.try_response(false).await else { return 0 };
        if answer.header("Connection") != Some("close") {
            self.connection = Some(connection);
        }
        answer.status
    }

    async fn connect(&self) -> Option<RawClient> {
        let proxies = &self.crowd.proxies;
        for number in 0..proxies.len() {
            let place = usize::try_from(self.at / 16).expect("few") + number;
            if let Ok(stream) = TcpStream::connect(proxies[place % proxies.len()]).await {
                return Some(RawClient::over(stream));
            }
        }
        None
    }
}

/// What the backend has answered to requests that are metered, added up by tenant and feature: with 2xx or 3xx, and otherwise.
fn served(world: &World) -> BTreeMap<(Uuid, String), (u64, u64)> {
    let mut served = BTreeMap::new();
    for ((tenant, path), statuses) in world.upstream.tally() {
        if path == "GET /api/v1/tickets" {
            continue;
        }
        let feature = path.split('/').nth(3).expect("a feature's path").to_owned();
        let sum: &mut (u64, u64) = served.entry((tenant.parse().expect("a tenant"), feature)).or_default();
        for (status, count) in statuses {
            if status < 400 { sum.0 += count } else { sum.1 += count }
        }
    }
    served
}
