use std::time::Instant;

use licensing::amend::End;
use licensing::config::ChangeFeed;
use licensing::enforcement::Mode;
use licensing::time::Timestamp;

use super::*;
use crate::licenses::{Found, Freshness, Licenses};
use crate::metrics::Metrics;
use crate::stores::FileSource;

const TENANT: TenantId = TenantId::new(uuid::Uuid::from_u128(7));
const LICENSES: &str = "tenants: [{ tenant_id: 00000000-0000-0000-0000-000000000007, plan: starter }]";

fn plans(more: &str) -> Vec<PlanSettings> {
    let plans =
        format!(r#"[{{"name":"starter","features":["tickets"]}},{{"name":"professional","features":["crm"{more}]}}]"#);
    serde_json::from_str(&plans).expect("plans")
}

/// Licences from a text, looked up and changed as a process that serves does it.
fn process() -> (Manage, Arc<Licenses>) {
    let metrics = Arc::new(Metrics::new(&["crm"], Mode::Enforce, "test").expect("metrics"));
    let file = Arc::new(FileSource::from_text("licenses.yaml", LICENSES, &plans("")).expect("a text"));
    let hour = Duration::from_hours(1);
    let freshness = Freshness {
        ttl: hour,
        revalidate_after: hour,
        stale_if_error: hour,
        deadline: Duration::from_secs(5),
        memory_bytes: 1 << 20,
    };
    let runtime = Handle::current();
    let source = Arc::clone(&file) as Arc<dyn crate::stores::Source>;
    let licenses = Licenses::new(source, None, freshness, ChangeFeed::None, runtime.clone(), Arc::clone(&metrics));
    let announcer = Announcer::of(&licenses, metrics);
    (Manage::new(file, announcer, PlanSettings::plans(&plans("")), runtime), licenses)
}

/// What the next request is decided on.
async fn features(licenses: &Arc<Licenses>) -> String {
    let look_up = match licenses.peek(TENANT, Instant::now()) {
        Some(look_up) => look_up,
        None => licenses.ask(TENANT).await.0,
    };
    match look_up.found {
        Found::License(entry) => entry.license.features.joined(),
        other => panic!("{other:?}"),
    }
}

fn author(key: Option<&str>) -> Author {
    Author { actor: "Ada".into(), idempotency_key: key.map(str::to_owned), ..Author::default() }
}

fn upgrade(plan: &str) -> Command {
    Command::Upgrade { plan: plan.into(), downgrade: false, grace: Duration::ZERO }
}

#[tokio::test]
async fn the_next_request_sees_what_was_changed() {
    let (manage, licenses) = process();
    assert_eq!(features(&licenses).await, "tickets");
    let amended = manage.amend(TENANT, &upgrade("professional"), &author(None)).await.expect("an upgrade");
    assert_eq!(features(&licenses).await, "crm");
    let revision = |holding: &Holding| holding.license.as_ref().map(|license| license.revision);
    assert!(revision(&amended.after) > revision(&amended.before));
    assert_eq!(amended.redis, Told::Nobody);
    for i in 0..50 {
        let command = if i % 2 == 0 {
            Command::Revoke { feature: "crm".into() }
        } else {
            Command::Grant { feature: "crm".into(), limit_delta: None, end: End::At(Timestamp::INFINITY) }
        };
        manage.amend(TENANT, &command, &author(None)).await.expect("a change");
        assert_eq!(features(&licenses).await, if i % 2 == 0 { "" } else { "crm" });
    }
}

#[tokio::test]
async fn what_is_only_asked_for_changes_nothing() {
    let (manage, licenses) = process();
    let before = manage.holding(TENANT).await.expect("a holding");
    manage.request_upgrade(TENANT, &upgrade("professional"), &author(None)).await.expect("a request");
    assert_eq!(manage.holding(TENANT).await.expect("a holding"), before);
    assert_eq!(features(&licenses).await, "tickets");
    for (plan, name) in [("starter", "same_plan"), ("gold", "unknown_plan")] {
        let refused = manage.request_upgrade(TENANT, &upgrade(plan), &author(None)).await.expect_err(plan);
        assert_eq!(refused.name(), name);
    }
}

#[tokio::test]
async fn a_key_stands_for_one_request() {
    let (manage, licenses) = process();
    let first = manage.amend(TENANT, &upgrade("professional"), &author(Some("k"))).await.expect("an upgrade");
    let revoke = Command::Revoke { feature: "crm".into() };
    manage.amend(TENANT, &revoke, &author(None)).await.expect("a change");
    let again = manage.amend(TENANT, &upgrade("professional"), &author(Some("k"))).await.expect("the same");
    assert_eq!((first.repeated, again.repeated, &again.after), (false, true, &first.after));
    assert_eq!(features(&licenses).await, "", "nothing was done again");
    let other = manage.amend(TENANT, &upgrade("starter"), &author(Some("k"))).await.expect_err("another request");
    assert_eq!(other.name(), "idempotency_key_reused");
}

#[tokio::test]
async fn what_is_sold_may_change() {
    let (manage, licenses) = process();
    manage.amend(TENANT, &upgrade("professional"), &author(None)).await.expect("an upgrade");
    let today = plans(r#","sms""#);
    manage.sell(&today, PlanSettings::plans(&today));
    assert_eq!(features(&licenses).await, "crm", "a licence that exists is not changed by that");
    manage.amend(TENANT, &Command::Reapply, &author(None)).await.expect("a change");
    assert_eq!(features(&licenses).await, "crm,sms");
}

/// Nobody waits for the answer: it is made all the same.
#[tokio::test]
async fn a_change_outlives_its_caller() {
    let (manage, licenses) = process();
    let change = Box::pin(async { manage.amend(TENANT, &upgrade("professional"), &author(None)).await });
    // Polled once, as by a client that has sent its request and is gone.
    drop(futures_util::future::select(change, std::future::ready(())).await);
    while features(&licenses).await != "crm" {
        tokio::task::yield_now().await;
    }
}
