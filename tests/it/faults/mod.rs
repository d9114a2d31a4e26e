//! What can fail, and what happens then: never a 5xx, nothing beyond the deadline, no wrong answer, and nobody has to
//! restart anything.

mod entries;
mod flood;
mod on_failure;
mod renewal;
mod start_and_end;
mod stores;

use std::time::Duration;

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{Ask, Proxy, ProxyBuilder, Samples, World};

/// `licenses.lookup_deadline`, if nothing is set.
const DEADLINE: Duration = Duration::from_millis(200);

/// What a request may take beyond the deadline, in a debug build on two cores that other tests use as well: what is to be
/// seen here is that nobody waits for a store's own time-outs, which count in seconds.
const SLACK: Duration = Duration::from_millis(300);

/// How long anything may take to be well again.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);

fn listening(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/licenses/change_feed", "listen")
}

/// Tenants that exist: some that are asked for all the time, and thousands that nobody has asked for yet.
#[derive(Clone)]
struct Tenants {
    starters: Vec<Uuid>,
    professionals: Vec<Uuid>,
    /// Rows of starters. Whoever is let through to `crm` as one of them was let through without a licence.
    cold: u64,
}

impl Tenants {
    async fn settle(world: &World, cold: u64) -> Tenants {
        let cold_rows = format!(
            "INSERT INTO tenant_licenses (tenant_id, plan_tier, features, valid_from, valid_until)
             SELECT ('00000000-0000-4000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'starter', '{{\"tickets\": true}}',
                    timezone('utc', now()) - interval '1 day', timezone('utc', now()) + interval '30 days'
             FROM generate_series(0, {cold} - 1) AS n"
        );
        world.database.execute(&cold_rows).await;
        let (mut starters, mut professionals) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            starters.push(world.tenant("starter").await);
            professionals.push(world.tenant("professional").await);
        }
        Tenants { starters, professionals, cold }
    }

    fn cold(&self, n: u64) -> Uuid {
        assert!(n < self.cold, "there are {} cold tenants", self.cold);
        Uuid::from_u128(0x4000_8000_0000_0000_0000 + u128::from(n))
    }

    /// Two of three requests come from tenants in use, each third from one that was never seen before.
    fn mixed(&self) -> impl FnMut(u64) -> Ask + Send + 'static {
        let tenants = self.clone();
        move |number| {
            let turn = usize::try_from(number / 3).expect("few");
            let (tenant, label) = match number % 3 {
                0 => (tenants.cold(number / 3), "cold"),
                1 => (tenants.starters[turn % tenants.starters.len()], "starter"),
                _ => (tenants.professionals[turn % tenants.professionals.len()], "professional"),
            };
            Ask::get("/api/v1/crm", tenant, label)
        }
    }
}

async fn breaker(proxy: &Proxy, store: &str) -> f64 {
    let state = proxy.metrics().await.value("dotmac_store_breaker_state", &[("store", store)]);
    state.expect("a breaker for each store")
}

/// `p50/p99/max` in milliseconds.
fn times(samples: &Samples) -> String {
    if samples.len() == 0 {
        return "-".to_owned();
    }
    let ms = |share| samples.percentile(share).as_secs_f64() * 1e3;
    format!("{:.1}/{:.1}/{:.1}", ms(0.5), ms(0.99), ms(1.0))
}

/// How many lines of the access log `wanted` accepts.
fn count(log: &[Value], wanted: impl Fn(&Value) -> bool) -> usize {
    log.iter().filter(|line| wanted(line)).count()
}
