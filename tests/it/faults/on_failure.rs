//! What remains when no store answers: the last known licence within its bound, then what is configured.

use std::time::{Duration, Instant};

use serde_json::json;
use uuid::Uuid;

use super::{DEADLINE, RECOVERS_WITHIN, SLACK, listening};
use crate::harness::{World, world};

/// The answer and whether it was given for want of a licence.
async fn ask(world: &World, target: &str, tenant: Uuid) -> (u16, Option<String>) {
    let begun = Instant::now();
    let status = world.get(target, tenant).await.status;
    assert!(begun.elapsed() < DEADLINE + SLACK, "{:?}", begun.elapsed());
    let fallback = (status == 200).then(|| world.upstream.last().header("X-License-Fallback").map(str::to_owned));
    (status, fallback.flatten())
}

#[tokio::test]
async fn a_last_known_licence_has_an_end() {
    for (on_failure, then) in [("allow", (200, Some("open".to_owned()))), ("deny", (503, None))] {
        let world = World::start_with(|builder| {
            listening(builder)
                .set("/licenses/on_failure", on_failure)
                .set("/licenses/ttl", "1s")
                .set("/licenses/revalidate_after", "1s")
                .set("/licenses/stale_if_error", "4s")
        })
        .await;
        world.proxy.live().await;
        let tenant = world.tenant("starter").await;
        assert_eq!(ask(&world, "/api/v1/crm", tenant).await, (402, None));
        world.redis_wire.cut().await;
        world.postgres_wire.cut().await;
        let cut = Instant::now();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let mut ended = None;
        while cut.elapsed() < Duration::from_secs(8) {
            let (crm, tickets) =
                (ask(&world, "/api/v1/crm", tenant).await, ask(&world, "/api/v1/tickets", tenant).await);
            match ended {
                None if crm == then => {
                    ended = Some(cut.elapsed());
                }
                None => {
                    assert_eq!(crm, (402, None), "{on_failure}: a last known licence denies too");
                    // Its end may come between the two.
                    assert!(tickets == (200, Some("stale".to_owned())) || tickets == then, "{on_failure}: {tickets:?}");
                }
                Some(_) => assert_eq!((&crm, &tickets), (&then, &then), "{on_failure}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = ended.expect("an end");
        println!("on_failure {on_failure}: last known licences were used until {ended:.1?} after the stores were cut");
        assert!((2_500..5_500).contains(&ended.as_millis()), "{ended:?}");

        // What was let through without a licence is remembered nowhere.
        world.redis_wire.restore();
        world.postgres_wire.restore();
        let restored = Instant::now();
        while ask(&world, "/api/v1/crm", tenant).await != (402, None) {
            assert!(restored.elapsed() < RECOVERS_WITHIN, "{}", world.proxy.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(ask(&world, "/api/v1/tickets", tenant).await, (200, None));
    }
}

/// Each rule may say otherwise, and says so from the first request on.
#[tokio::test]
async fn each_rule_may_say_otherwise() {
    for (on_failure, of_crm, tickets, crm) in [("deny", "allow", 503, 200), ("allow", "deny", 200, 503)] {
        let world = World::start_with(|builder| {
            builder.set("/licenses/on_failure", on_failure).set("/routes/rules/3/on_failure", of_crm)
        })
        .await;
        let tenant = world.tenant("starter").await;
        world.redis_wire.freeze();
        world.postgres_wire.freeze();
        for _ in 0..3 {
            assert_eq!(ask(&world, "/api/v1/tickets", tenant).await.0, tickets, "on_failure {on_failure}");
            assert_eq!(ask(&world, "/api/v1/crm", tenant).await.0, crm, "crm {of_crm}");
        }
        let answer = world.get(if crm == 503 { "/api/v1/crm" } else { "/api/v1/tickets" }, tenant).await;
        assert_eq!(answer.json()["reason"], json!("store_unavailable"));
        assert_eq!(world.get("/api/v1/network", tenant).await.status, 200, "no licence is needed");
    }
}

/// Nobody opens the gate by being slow: one look-up that hangs, while the store answers others, is no outage.
#[tokio::test]
async fn one_query_that_hangs_is_no_outage() {
    let world = World::start().await;
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
    let held = world.postgres_wire.hold_reply("FROM tenant_licenses WHERE tenant_id");
    let answer = world::get(&world.proxy, "/api/v1/crm", Uuid::new_v4()).await;
    assert!(held.is_held());
    assert_eq!((answer.status, &answer.json()["reason"]), (503, &json!("store_unavailable")));
    let breaker = super::breaker(&world.proxy, "postgres").await;
    assert!(breaker < 2.0, "the probe was answered");
    held.release();
    assert_eq!(world.get("/api/v1/crm", world.tenant("starter").await).await.status, 402);
}
