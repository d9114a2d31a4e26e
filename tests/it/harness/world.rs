//! Everything at once: a migrated database, Redis, an upstream, and the proxy between them.

use serde_json::{Value, json};
use uuid::Uuid;

use super::backend::Backend;
use super::client::{self, RawResponse};
use super::postgres::{Database, Postgres};
use super::proxy::{Proxy, ProxyBuilder};
use super::redis::Redis;
use super::upstream::Upstream;
use super::wire::Wire;

/// The plans of the configuration, cheapest first, with what they include.
pub(crate) const PLANS: [(&str, &[&str]); 3] = [
    ("starter", &["tickets"]),
    ("professional", &["crm", "tickets", "projects", "analytics"]),
    ("enterprise", &["crm", "tickets", "projects", "fieldops", "analytics"]),
];

/// Every feature that some plan includes; `/api/v1/FEATURE` is gated by it.
pub(crate) const FEATURES: [&str; 5] = ["crm", "tickets", "projects", "fieldops", "analytics"];

/// The proxy among real servers; it reaches its stores through wires that count and can be cut.
pub(crate) struct World {
    pub(crate) proxy: Proxy,
    pub(crate) builder: ProxyBuilder,
    pub(crate) upstream: Upstream,
    pub(crate) postgres_wire: Wire,
    pub(crate) redis_wire: Wire,
    pub(crate) redis: Redis,
    pub(crate) database: Database,
    pub(crate) postgres: Postgres,
}

/// A row of `tenant_licenses`. Times are Postgres intervals from now, in UTC: `"-1 day"`, `"30 days"`.
pub(crate) struct License<'a> {
    pub(crate) tenant: Uuid,
    pub(crate) plan: &'a str,
    pub(crate) features: Value,
    pub(crate) usage_limits: Value,
    pub(crate) valid_from: &'a str,
    pub(crate) valid_until: &'a str,
    pub(crate) auto_renew: bool,
}

impl World {
    /// With the shared Postgres and the configuration of [`Proxy::builder`].
    pub(crate) async fn start() -> World {
        World::start_with(|builder| builder).await
    }

    /// With a configuration or environment that the test has changed.
    pub(crate) async fn start_with(change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> World {
        World::start_on(Postgres::shared().await, change).await
    }

    /// On a Postgres server of the test's choice.
    pub(crate) async fn start_on(postgres: Postgres, change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> World {
        let database = postgres.database().await;
        let redis = Redis::start().await;
        let (postgres_wire, redis_wire) = (postgres.wire(), redis.wire());
        let upstream = Upstream::start();
        let builder = Proxy::builder(upstream.address())
            .env("DOTMAC_LICENSE_DATABASE_URL", database.url_via(&postgres_wire))
            .env("DOTMAC_LICENSE_REDIS_URL", redis.url_via(&redis_wire));
        let builder = change(builder);
        let migrated = builder.run(&["migrate"]).await;
        assert!(migrated.status.success(), "migrate: {}\n{}{}", migrated.status, migrated.stdout, migrated.stderr);
        postgres_wire.reset();
        let proxy = builder.start().await;
        World { proxy, builder, upstream, postgres_wire, redis_wire, redis, database, postgres }
    }

    /// In front of a backend that the test plays step by step.
    pub(crate) async fn behind_a_played_backend() -> (World, Backend) {
        World::behind_a_played_backend_with(|builder| builder).await
    }

    /// The same with a configuration that the test has changed.
    pub(crate) async fn behind_a_played_backend_with(
        change: impl FnOnce(ProxyBuilder) -> ProxyBuilder,
    ) -> (World, Backend) {
        let backend = Backend::start().await;
        let world = World::start_with(|builder| {
            change(builder).set("/upstream/address", backend.address()).set("/upstream/idle_timeout", "60s")
        })
        .await;
        (world, backend)
    }

    /// Another proxy with the same configuration and stores, through the same wires.
    pub(crate) async fn second_replica(&self) -> Proxy {
        self.builder.start().await
    }

    /// A new tenant with a valid licence of `plan` and the features that plan includes.
    pub(crate) async fn tenant(&self, plan: &str) -> Uuid {
        let tenant = Uuid::new_v4();
        self.insert_license(tenant, plan, features_of(plan)).await;
        tenant
    }

    /// A valid licence with these features: `json!({"crm": true})`.
    pub(crate) async fn insert_license(&self, tenant: Uuid, plan: &str, features: Value) {
        self.insert(License { features, ..License::valid(tenant, plan) }).await;
    }

    /// Inserts a row with plain SQL, as an operator's program would.
    pub(crate) async fn insert(&self, license: License<'_>) {
        let License { tenant, plan, features, usage_limits, valid_from, valid_until, auto_renew } = license;
        let sql = "INSERT INTO tenant_licenses
                     (tenant_id, plan_tier, features, usage_limits, valid_from, valid_until, auto_renew)
                   VALUES ($1, $2, $3::text::jsonb, $4::text::jsonb, timezone('utc', now()) + $5::text::interval,
                           timezone('utc', now()) + $6::text::interval, $7)";
        let (features, usage_limits) = (features.to_string(), usage_limits.to_string());
        let client = self.database.connect().await;
        client
            .execute(sql, &[&tenant, &plan, &features, &usage_limits, &valid_from, &valid_until, &auto_renew])
            .await
            .expect("the licence is inserted");
    }

    /// `GET target` as `tenant`, on a connection of its own.
    pub(crate) async fn get(&self, target: &str, tenant: Uuid) -> RawResponse {
        get(&self.proxy, target, tenant).await
    }
}

impl<'a> License<'a> {
    /// From yesterday for thirty days, with the features of the plan.
    pub(crate) fn valid(tenant: Uuid, plan: &'a str) -> License<'a> {
        License {
            tenant,
            plan,
            features: features_of(plan),
            usage_limits: json!({}),
            valid_from: "-1 day",
            valid_until: "30 days",
            auto_renew: true,
        }
    }
}

/// `GET target` as `tenant` from one of several proxies.
pub(crate) async fn get(proxy: &Proxy, target: &str, tenant: Uuid) -> RawResponse {
    client::request(proxy.address(), "GET", target, &[("X-Tenant-ID", &tenant.to_string())]).await
}

/// A new tenant with a licence of `plan`, by the least of plain SQL: all else is as the table has it.
pub(crate) async fn least_license(database: &Database, plan: &str) -> Uuid {
    let (tenant, features) = (Uuid::new_v4(), features_of(plan));
    let sql = format!(
        "INSERT INTO tenant_licenses (tenant_id, plan_tier, features) VALUES ('{tenant}', '{plan}', '{features}')"
    );
    database.execute(&sql).await;
    tenant
}

/// What a plan includes, as the `features` column holds it; nothing for a plan that does not exist.
pub(crate) fn features_of(plan: &str) -> Value {
    let included = PLANS.iter().find(|(name, _)| *name == plan).map_or(&[][..], |(_, features)| features);
    included.iter().map(|feature| ((*feature).to_owned(), Value::Bool(true))).collect::<serde_json::Map<_, _>>().into()
}
