//! Several proxies over one Postgres and one Redis say the same, and nothing outdated, whatever happens between them.

mod channels;
mod commands;
mod failover;
mod fleet;
mod interleavings;
mod lagging;
mod model;
mod rollbacks;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::{Database, Postgres, Proxy, ProxyBuilder, RawClient, Redis, Reply, Upstream, Wire};

/// How old an answer may be while a channel is down, in these tests.
const REVALIDATE_AFTER: Duration = Duration::from_secs(3);

/// What the contract promises while the channels are live.
const PROMISED: Duration = Duration::from_secs(1);

/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(500);

/// How long a channel that works again may take to be live.
const LIVE_WITHIN: Duration = Duration::from_secs(15);

/// How proxies hear of changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Each listens to Postgres.
    Listen,
    /// By Redis, from relays.
    Relay,
}

/// One proxy or relay, on wires of its own.
struct Node {
    proxy: Proxy,
    /// To where licences are read.
    reads: Wire,
    /// To where changes are listened for. The same server, but another address, so that one fails without the other.
    feed: Wire,
    redis: Wire,
}

/// Proxies over the same stores, and relays where they are what tells of changes.
struct Fleet {
    nodes: Vec<Node>,
    relays: Vec<Node>,
    mode: Mode,
    upstream: Upstream,
    redis_port: u16,
    database: Database,
    /// Writes past any wire.
    writer: Client,
    /// What `usage_limits` of a new licence is, in SQL.
    limits: String,
    change: fn(ProxyBuilder) -> ProxyBuilder,
}

impl Fleet {
    /// `nodes` proxies, and in [`Mode::Relay`] one relay, all live.
    async fn start(mode: Mode, nodes: usize, redis: &Redis) -> Fleet {
        Fleet::start_with(mode, nodes, redis, |builder| builder).await
    }

    async fn start_with(mode: Mode, nodes: usize, redis: &Redis, change: fn(ProxyBuilder) -> ProxyBuilder) -> Fleet {
        let database = Postgres::shared().await.database().await;
        let relays = usize::from(mode == Mode::Relay);
        let mut fleet = Fleet::empty(mode, redis.port(), database, change).await;
        for _ in 0..relays {
            let relay = fleet.new_relay().await;
            fleet.relays.push(relay);
        }
        for _ in 0..nodes {
            let node = fleet.new_node().await;
            fleet.nodes.push(node);
        }
        fleet.all_live().await;
        fleet
    }

    /// Nobody yet; the tables are there.
    async fn empty(mode: Mode, redis_port: u16, database: Database, change: fn(ProxyBuilder) -> ProxyBuilder) -> Fleet {
        let upstream = Upstream::start();
        upstream.on("*", Reply::verified());
        let migrated = Proxy::builder(upstream.address())
            .env("DOTMAC_LICENSE_DATABASE_URL", database.url())
            .run(&["migrate"])
            .await;
        assert!(migrated.status.success(), "migrate: {}{}", migrated.stdout, migrated.stderr);
        let writer = database.connect().await;
        let limits = "'{}'".to_owned();
        Fleet { nodes: Vec::new(), relays: Vec::new(), mode, upstream, redis_port, database, writer, limits, change }
    }

    /// Wires to the stores, and a configuration that leads over them.
    fn wired(&self) -> (ProxyBuilder, Wire, Wire, Wire) {
        let port = self.database_port();
        let (reads, feed, redis) = (Wire::postgres(port), Wire::postgres(port), Wire::redis(self.redis_port));
        let feed_mode = match self.mode {
            Mode::Listen => "listen",
            Mode::Relay => "redis",
        };
        let builder = Proxy::builder(self.upstream.address())
            .set("/licenses/change_feed", feed_mode)
            .set("/licenses/revalidate_after", format!("{}s", REVALIDATE_AFTER.as_secs()))
            .set("/listen/workers", 1)
            .env("DOTMAC_LICENSE_REDIS_URL", format!("redis://127.0.0.1:{}", redis.port()))
            .env("DOTMAC_LICENSE_LICENSE_DB_URL", self.database.url_via(&reads))
            .env("DOTMAC_LICENSE_DATABASE_URL", self.database.url_via(&feed));
        (builder, reads, feed, redis)
    }

    fn database_port(&self) -> u16 {
        let url = self.database.url();
        let (_, rest) = url.rsplit_once(':').expect("a port");
        rest.split('/').next().and_then(|port| port.parse().ok()).expect("a port")
    }

    async fn new_node(&self) -> Node {
        let (builder, reads, feed, redis) = self.wired();
        let builder = (self.change)(builder);
        Node { proxy: builder.start().await, reads, feed, redis }
    }

    async fn new_relay(&self) -> Node {
        let (builder, reads, feed, redis) = self.wired();
        Node { proxy: builder.start_relay().await, reads, feed, redis }
    }

    async fn all_live(&self) {
        for node in &self.nodes {
            node.live().await;
        }
    }

    /// A new tenant whose licence is at version 0.
    async fn tenant(&self) -> Uuid {
        let tenant = Uuid::new_v4();
        self.insert(tenant, 0).await;
        tenant
    }

    async fn insert(&self, tenant: Uuid, version: u64) {
        let sql = format!(
            "INSERT INTO tenant_licenses (tenant_id, plan_tier, features, usage_limits, valid_from, valid_until)
             VALUES ($1, $2, '{{\"tickets\":true}}', {}, timezone('utc', now()) - interval '1 day',
                     timezone('utc', now()) + interval '30 days')",
            self.limits
        );
        self.writer.execute(&sql, &[&tenant, &plan(version)]).await.expect("inserted");
    }

    /// Commits the version; the moment by which that was certain.
    async fn update(&self, tenant: Uuid, version: u64) -> Instant {
        let sql = "UPDATE tenant_licenses SET plan_tier = $2 WHERE tenant_id = $1";
        assert_eq!(self.writer.execute(sql, &[&tenant, &plan(version)]).await.expect("updated"), 1);
        Instant::now()
    }

    /// The same without any trigger: nobody is told.
    async fn update_silently(&self, tenant: Uuid, version: u64) -> Instant {
        let sql = format!(
            "BEGIN; ALTER TABLE tenant_licenses DISABLE TRIGGER tenant_licenses_announce_update;
             UPDATE tenant_licenses SET plan_tier = '{}' WHERE tenant_id = '{tenant}';
             ALTER TABLE tenant_licenses ENABLE TRIGGER tenant_licenses_announce_update; COMMIT",
            plan(version)
        );
        self.writer.batch_execute(&sql).await.expect("updated");
        Instant::now()
    }

    /// Asks every proxy once for each tenant, so that they are in memory.
    async fn warm(&self, tenants: &[Uuid], version: u64) {
        for node in &self.nodes {
            let mut asker = Asker::of(&node.proxy);
            for tenant in tenants {
                assert_eq!(asker.ask(*tenant).await.version, Some(version));
            }
        }
    }

    /// Waits until every proxy decides by `version`; how long each took since `since`.
    async fn seen_by_all(&self, tenant: Uuid, version: u64, since: Instant) -> Vec<Duration> {
        let waits = self.nodes.iter().map(|node| seen(&node.proxy, tenant, version, since));
        futures::future::join_all(waits).await
    }

    async fn redis(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.redis_port)).expect("a URL");
        client.get_multiplexed_async_connection().await.expect("Redis accepts connections")
    }

    async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut self.redis().await).await.expect("Redis answers")
    }

    /// What lies in Redis of a tenant: the version of its licence, if there is one.
    async fn cached(&self, tenant: Uuid) -> Option<u64> {
        let value: Option<String> = self.command(&["GET", &format!("license:{tenant}")]).await;
        let value: serde_json::Value = serde_json::from_str(&value?).ok()?;
        value["plan"].as_str()?.strip_prefix('p')?.parse().ok()
    }
}

impl Node {
    /// Waits until every channel is live.
    async fn live(&self) -> Duration {
        self.channels(LIVE_WITHIN, "live", |feed, redis| feed && redis).await
    }

    /// Waits until one channel or the other is down; at most the four seconds that are promised.
    async fn down(&self) -> Duration {
        self.channels(Duration::from_secs(4), "down", |feed, redis| !(feed && redis)).await
    }

    async fn channels(&self, limit: Duration, what: &str, wanted: impl Fn(bool, bool) -> bool) -> Duration {
        let since = Instant::now();
        loop {
            let (feed, redis) = self.proxy.is_live().await;
            if wanted(feed, redis) {
                return since.elapsed();
            }
            assert!(since.elapsed() < limit, "not {what} in {limit:?}: feed {feed}, redis {redis}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Waits until its feed vouches for what lies in Redis.
    async fn in_order(&self) {
        let deadline = Instant::now() + LIVE_WITHIN;
        let mark = "license:~feed ";
        let beats = |call: &String| {
            let mut words = call.split_once(mark)?.1.split(' ');
            words.nth(1).filter(|beat| !beat.is_empty()).map(drop)
        };
        while self.redis.calls().iter().find_map(beats).is_none() {
            assert!(Instant::now() < deadline, "the feed has not come into order");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    fn log_says(&self, text: &str) -> bool {
        self.proxy.stderr().contains(text)
    }
}

/// A client with a connection of its own to one proxy.
struct Asker {
    address: SocketAddr,
    client: Option<RawClient>,
}

/// What a request was decided by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    /// None: by no licence.
    version: Option<u64>,
    /// `X-License-Fallback`.
    fallback: Option<String>,
}

impl Asker {
    fn of(proxy: &Proxy) -> Asker {
        Asker { address: proxy.address(), client: None }
    }

    async fn ask(&mut self, tenant: Uuid) -> Answer {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => RawClient::connect(self.address).await,
        };
        let head = format!("GET /api/v1/tickets HTTP/1.1\r\nHost: {}\r\nX-Tenant-ID: {tenant}\r\n\r\n", self.address);
        client.send(head).await.expect("the proxy accepts a request");
        let response = client.response().await;
        if !response.header("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.client = Some(client);
        }
        let version = response.header("X-License-Plan").and_then(|plan| plan.strip_prefix('p')?.parse().ok());
        Answer { status: response.status, version, fallback: response.header("X-License-Fallback").map(str::to_owned) }
    }
}

/// Asks until `version` or a later one decides; how long that took since `since`.
async fn seen(proxy: &Proxy, tenant: Uuid, version: u64, since: Instant) -> Duration {
    let mut asker = Asker::of(proxy);
    loop {
        let answer = asker.ask(tenant).await;
        let took = since.elapsed();
        if answer.version >= Some(version) && answer.fallback.is_none() {
            return took;
        }
        assert!(took < Duration::from_secs(20), "version {version} is not seen, but {answer:?}:\n{}", proxy.stderr());
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

fn plan(version: u64) -> String {
    format!("p{version}")
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("a histogram")
}

fn record(times: &mut Histogram<u64>, took: Duration) {
    times.record(u64::try_from(took.as_micros()).expect("short")).expect("in range");
}

fn print(what: &str, times: &Histogram<u64>) {
    let ms = |us: u64| f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1000.0;
    let at = |quantile| ms(times.value_at_quantile(quantile));
    println!(
        "{what}: n {}, p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
        times.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        ms(times.max())
    );
}
