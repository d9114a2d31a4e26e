//! Denials that led to an upgrade: marked by the upgrade itself, whoever makes it, in its own transaction.

use serde_json::json;
use uuid::Uuid;

use crate::harness::{License, World};

/// Denials of these features, `minutes` ago.
async fn denied(world: &World, tenant: Uuid, denials: &[(&str, &str, i64)]) {
    for (feature, reason, minutes) in denials {
        let sql = format!(
            "INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute)
             VALUES (gen_random_uuid(), '{tenant}', '{feature}', '{reason}', now() - {minutes} * interval '1 minute')"
        );
        world.database.execute(&sql).await;
    }
}

/// Which of a tenant's denials are marked.
async fn upgraded(world: &World, tenant: Uuid) -> String {
    let sql = format!(
        "SELECT string_agg(feature_name || ' ' || reason, ', ' ORDER BY feature_name, reason) FROM feature_denial_events
          WHERE tenant_id = '{tenant}' AND upgraded_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute'"
    );
    world.database.value(&sql).await.unwrap_or_default()
}

/// The features for which denials that are written later will be marked.
async fn marks(world: &World, tenant: Uuid) -> String {
    let sql = format!(
        "SELECT string_agg(feature, ' ' ORDER BY feature) FROM upgrade_marks WHERE tenant_id = '{tenant}' AND upgraded_at IS NOT NULL"
    );
    world.database.value(&sql).await.unwrap_or_default()
}

async fn license(world: &World, arguments: &[&str]) {
    let ended = world.builder.run(&[&["license"], arguments, &["--reason", "sold", "--actor", "Ada"]].concat()).await;
    assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
}

#[tokio::test]
async fn an_upgrade_marks_the_denials_of_what_it_brings() {
    let world = World::start().await;
    let (tenant, other) = (Uuid::new_v4(), Uuid::new_v4());
    for tenant in [tenant, other] {
        world.insert(License { features: json!({ "tickets": true }), ..License::valid(tenant, "starter") }).await;
        let month = 30 * 24 * 60;
        let denials = [
            ("crm", "feature_not_in_plan", 5),
            ("crm", "license_expired", month - 5),
            ("crm", "no_license", month + 5),
            ("fieldops", "feature_not_in_plan", 5),
            ("tickets", "feature_not_in_plan", 5),
        ];
        denied(&world, tenant, &denials).await;
    }
    let id = tenant.to_string();
    license(&world, &["set-plan", &id, "professional"]).await;
    assert_eq!(upgraded(&world, tenant).await, "crm feature_not_in_plan, crm license_expired");
    assert_eq!(marks(&world, tenant).await, "analytics crm projects");
    assert_eq!((upgraded(&world, other).await, marks(&world, other).await), (String::new(), String::new()));

    // What was marked keeps its time; what comes later is marked by what comes later.
    let before = "SELECT upgraded_at::text FROM feature_denial_events WHERE upgraded_at IS NOT NULL LIMIT 1";
    let time = world.database.value(before).await;
    license(&world, &["grant", &id, "fieldops", "--for", "4h"]).await;
    assert_eq!(
        upgraded(&world, tenant).await,
        "crm feature_not_in_plan, crm license_expired, fieldops feature_not_in_plan"
    );
    assert_eq!(world.database.value(&format!("{before} OFFSET 0")).await, time);
    // Nothing is gained.
    license(&world, &["set-plan", &other.to_string(), "starter"]).await;
    license(&world, &["revoke", &id, "crm"]).await;
    assert_eq!(upgraded(&world, other).await, "");
}

/// More of a feature is a gain as well: that is what a tenant pays for who has used up a limit.
#[tokio::test]
async fn a_higher_limit_marks_the_denials_of_the_lower_one() {
    let world = World::start_with(|builder| {
        builder.set("/plans/0/limits", json!({ "tickets": 100 })).set("/plans/1/limits", json!({ "tickets": 1000 }))
    })
    .await;
    let tenant = Uuid::new_v4();
    world.insert(License::valid(tenant, "starter")).await;
    license(&world, &["set-plan", &tenant.to_string(), "professional"]).await;
    denied(&world, tenant, &[("tickets", "usage_limit_exceeded", 5), ("crm", "feature_not_in_plan", 5)]).await;
    license(&world, &["set-plan", &tenant.to_string(), "starter"]).await;
    assert_eq!(upgraded(&world, tenant).await, "", "a downgrade sells nothing");
    license(&world, &["set-plan", &tenant.to_string(), "enterprise"]).await;
    assert_eq!(upgraded(&world, tenant).await, "crm feature_not_in_plan, tickets usage_limit_exceeded");
}

/// A licence that had ended includes nothing; to go on with it brings back all of it.
#[tokio::test]
async fn an_extension_of_what_had_ended_is_a_gain() {
    let world = World::start().await;
    let tenant = Uuid::new_v4();
    world.insert(License::valid(tenant, "professional")).await;
    let ended = format!(
        "UPDATE tenant_licenses SET valid_until = '2020-01-01', auto_renew = false WHERE tenant_id = '{tenant}'"
    );
    world.database.execute(&ended).await;
    denied(&world, tenant, &[("crm", "license_expired", 5)]).await;
    license(&world, &["extend", &tenant.to_string(), "--until", "2099-01-01"]).await;
    assert_eq!(upgraded(&world, tenant).await, "crm license_expired");
    // Later still brings nothing more.
    denied(&world, tenant, &[("crm", "usage_limit_exceeded", 1)]).await;
    license(&world, &["extend", &tenant.to_string(), "--until", "2099-02-01"]).await;
    assert_eq!(upgraded(&world, tenant).await, "crm license_expired");
}

/// A tenant that was denied every minute of a month: the upgrade marks the latest, and is done in time.
#[tokio::test]
async fn an_upgrade_marks_no_more_than_it_has_time_for() {
    let world = World::start().await;
    let tenant = Uuid::new_v4();
    world.insert(License { features: json!({}), ..License::valid(tenant, "starter") }).await;
    let rows = format!(
        "INSERT INTO feature_denial_events (id, tenant_id, feature_name, reason, minute)
           SELECT gen_random_uuid(), '{tenant}', 'crm', 'feature_not_in_plan', now() - n * interval '1 minute'
             FROM generate_series(1, 43000) AS n"
    );
    world.database.execute(&rows).await;
    license(&world, &["grant", &tenant.to_string(), "crm"]).await;
    let marked =
        "SELECT count(*) || ' ' || (min(minute) > now() - 10010 * interval '1 minute') FROM feature_denial_events
                   WHERE upgraded_at IS NOT NULL";
    assert_eq!(world.database.value(marked).await.as_deref(), Some("10000 true"));
}
