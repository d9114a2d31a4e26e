//! Enforcement comes tenant by tenant: off, shadow, a growing share, lists, and rules of their own.

use std::collections::HashSet;

use serde_json::json;
use uuid::Uuid;

use crate::harness::world::get;
use crate::harness::{License, World, client};

/// Tenants of a roll-out: enough for a share to be seen, few enough to ask for each.
const TENANTS: usize = 120;

#[tokio::test]
async fn a_growing_share_keeps_whom_it_has_and_every_replica_draws_the_same() {
    let world = World::start_with(|builder| builder.set("/enforcement/rollout", json!({ "percent": 0 }))).await;
    let tenants: Vec<Uuid> = (0..TENANTS).map(|_| Uuid::new_v4()).collect();
    for tenant in &tenants {
        world.insert(License::valid(*tenant, "starter")).await;
    }
    let mut enforced = HashSet::new();
    for percent in [0, 5, 25, 75, 100] {
        let rollout = json!({ "percent": percent });
        let replicas = [
            world.builder.clone().set("/enforcement/rollout", rollout.clone()).start().await,
            world.builder.clone().set("/enforcement/rollout", rollout).start().await,
        ];
        let mut now = HashSet::new();
        for tenant in &tenants {
            let statuses = [
                get(&replicas[0], "/api/v1/crm", *tenant).await.status,
                get(&replicas[1], "/api/v1/crm", *tenant).await.status,
            ];
            assert_eq!(statuses[0], statuses[1], "two replicas disagree on {tenant} at {percent} %");
            if statuses[0] == 402 {
                now.insert(*tenant);
            }
        }
        println!("{percent} %: {} of {TENANTS} tenants are enforced", now.len());
        assert!(enforced.is_subset(&now), "a tenant fell out at {percent} %");
        // Six standard deviations; the share itself is asserted on 10,000 tenants where it is computed.
        let share = now.len() as f64 / TENANTS as f64 * 100.0;
        assert!((share - f64::from(percent)).abs() < 28.0, "{percent} % gave {share} %");
        enforced = now;
    }
    assert_eq!(enforced.len(), TENANTS);
}

/// What is not enforced yet goes on unchanged, is counted apart, and says in the log what it would have been.
#[tokio::test]
async fn shadow_is_harmless_and_counted_apart() {
    let (listed, excluded) = (Uuid::new_v4(), Uuid::new_v4());
    let rollout = json!({ "percent": 0, "include": [listed, excluded], "exclude": [excluded] });
    let world = World::start_with(|builder| builder.set("/enforcement/rollout", rollout)).await;
    for tenant in [listed, excluded] {
        world.insert(License::valid(tenant, "starter")).await;
    }
    assert_eq!(world.get("/api/v1/crm", listed).await.status, 402);
    assert_eq!(world.get("/api/v1/crm", excluded).await.status, 200, "an exclusion wins");
    let unchanged = world.upstream.last();
    assert_eq!(unchanged.header("X-Tenant-ID"), Some(excluded.to_string().as_str()));
    for (target, tenant) in [("/api/v1/crm/%", excluded.to_string()), ("/api/v1/crm", "acme".to_owned())] {
        let answer = client::request(world.proxy.address(), "GET", target, &[("X-Tenant-ID", &tenant)]).await;
        assert_eq!(answer.status, 200, "{target} of {tenant}");
        assert_eq!(world.upstream.last().target, target);
        assert_eq!(world.upstream.last().header("X-Tenant-ID"), Some(tenant.as_str()));
    }
    let nobody = client::request(world.proxy.address(), "GET", "/api/v1/crm", &[]).await;
    assert_eq!(nobody.status, 200, "without a tenant nobody can tell who is in");

    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.sum("dotmac_feature_denials_total"), 1.0);
    assert_eq!(metrics.sum("dotmac_shadow_denials_total"), 4.0);
    let shadowed = ("outcome", "shadowed");
    assert_eq!(metrics.value("dotmac_decisions_total", &[shadowed]), Some(4.0));
    let line = world.proxy.wait_for_log(|line| line["tenant_id"] == json!(excluded) && line["status"] == 200).await;
    let expected = json!(["shadowed", "feature_not_in_plan", "crm", "shadow"]);
    assert_eq!(json!([line["decision"], line["reason"], line["feature"], line["mode"]]), expected);
}

/// A rule's own mode beats the mode of all, in both directions; the rollout holds for it all the same.
#[tokio::test]
async fn a_rule_may_have_a_mode_of_its_own() {
    let outside = Uuid::new_v4();
    for (mode, of_rule, expected) in
        [("enforce", "shadow", 200), ("enforce", "off", 200), ("shadow", "enforce", 402), ("off", "enforce", 402)]
    {
        let world = World::start_with(|builder| {
            builder
                .set("/enforcement", json!({ "mode": mode, "rollout": { "exclude": [outside] } }))
                .set("/routes/rules/3/mode", of_rule)
        })
        .await;
        let tenant = world.tenant("starter").await;
        world.insert(License::valid(outside, "starter")).await;
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, expected, "{mode}, {of_rule} for crm");
        assert_eq!(world.get("/api/v1/crm", outside).await.status, 200, "{mode}, {of_rule} for crm, excluded");
        let others = if mode == "enforce" { 402 } else { 200 };
        assert_eq!(world.get("/api/v1/projects", tenant).await.status, others, "{mode}: the other rules");
        world.database.execute("DELETE FROM tenant_licenses").await;
    }
    let useless = crate::harness::Proxy::builder("127.0.0.1:8000").set("/routes/rules/0/mode", "shadow");
    let checked = useless.run(&["check-config"]).await;
    assert_eq!(checked.status.code(), Some(2));
    assert!(checked.stderr.contains("`mode` is for rules that can refuse"), "{}", checked.stderr);
}
