//! Requests at once: how many in all, and how many of one tenant.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use super::{CORE, LIMIT, Site, get, refused, tenant, until};
use crate::harness::{Ask, Load, RawClient, Reply, client};

/// Sends a request and leaves its answer for later.
async fn send(site: &Site, target: &str, tenant: Option<Uuid>) -> RawClient {
    let mut client = site.connect().await;
    client.send(get(target, tenant)).await.expect("sent");
    client
}

#[tokio::test]
async fn a_tenant_has_its_share_and_all_have_theirs() {
    let site = Site::with(json!({ "requests_in_flight": 10 })).await;
    site.upstream.on("/slow", Reply::after(Duration::from_secs(3), Reply::status(204)));
    let (one, other) = (Some(tenant(1)), Some(tenant(2)));
    // Half of them: what a tenant may have, and what those without one may.
    let mut slow = Vec::new();
    for whose in [one, None] {
        for _ in 0..4 {
            slow.push(send(&site, "/slow", whose).await);
        }
    }
    until("they are under way", async || site.upstream.count() == 8).await;
    slow.push(send(&site, "/slow", one).await);
    until("it is under way", async || site.upstream.count() == 9).await;
    site.gauge("dotmac_requests_in_flight", 9.0).await;

    // The sixth is one too many, on a connection that is kept. What it needs or does is of no importance.
    let mut sixth = site.connect().await;
    for target in ["/slow", CORE, "/api/v1/crm/x", "/license", "//"] {
        sixth.send(get(target, one)).await.expect("still open");
        let answer = sixth.response().await;
        refused(&answer, 503, "overloaded");
        assert_eq!(answer.header("Connection"), Some("keep-alive"));
    }
    assert_eq!(site.limited("requests_in_flight_per_tenant").await, 5.0);
    let line = site.proxy.wait_for_log(|line| line["status"] == 503).await;
    assert_eq!((&line["decision"], &line["tenant_id"]), (&json!("refused"), &json!(tenant(1).to_string())));

    // Another tenant has the last place, and there is no more.
    slow.push(send(&site, "/slow", other).await);
    until("it is under way", async || site.upstream.count() == 10).await;
    let mut late = send(&site, CORE, Some(tenant(3))).await;
    refused(&late.response().await, 503, "overloaded");
    assert_eq!(site.limited("requests_in_flight").await, 1.0);
    assert_eq!(client::request(site.proxy.ops_address(), "GET", "/livez", &[]).await.status, 200);
    assert_eq!(client::request(site.proxy.ops_address(), "GET", "/readyz", &[]).await.status, 200);

    // Who has waited is served, and makes room.
    for mut client in slow {
        assert_eq!(client.response().await.status, 204);
    }
    assert_eq!(site.upstream.count(), 10, "nothing more has reached it");
    for client in [&mut sixth, &mut late] {
        client.send(get(CORE, one)).await.expect("still open");
        assert_eq!(client.response().await.status, 200);
    }
    site.gauge("dotmac_requests_in_flight", 0.0).await;
}

/// However requests end, and whoever has given up: what they held is free.
#[tokio::test]
async fn every_end_makes_room() {
    let site = Site::with(json!({ "requests_in_flight": 2, "requests_in_flight_per_tenant": 2 })).await;
    site.upstream.on("/slow", Reply::after(LIMIT, Reply::status(204)));
    site.upstream.on("/broken", Reply::Raw("no HTTP".into()));
    let whose = Some(tenant(1));
    for round in 1..=10 {
        let gone = [send(&site, "/slow", whose).await, send(&site, "/slow", whose).await];
        site.gauge("dotmac_requests_in_flight", 2.0).await;
        drop(gone);
        site.gauge("dotmac_requests_in_flight", 0.0).await;
        let mut client = site.connect().await;
        for (target, status) in [("/broken", 502), ("/api/v1/crm", 200), ("/x%zz", 400), ("/license", 200)] {
            client.send(get(target, whose)).await.expect("still open");
            let answer = client.response().await;
            assert_eq!(answer.status, status, "{target}, round {round}");
            if answer.header("Connection") == Some("close") {
                client = site.connect().await;
            }
        }
        // What has just been answered may still be being written down.
        site.gauge("dotmac_requests_in_flight", 0.0).await;
    }
    assert_eq!(site.proxy.metrics().await.sum("dotmac_limited_total"), 0.0);
}

/// The limits are those of the configuration as it is now.
#[tokio::test]
async fn limits_change_while_it_runs() {
    let site = Site::with(json!({ "requests_in_flight": 1 })).await;
    site.upstream.on("/slow", Reply::after(LIMIT, Reply::status(204)));
    let _slow = send(&site, "/slow", None).await;
    site.gauge("dotmac_requests_in_flight", 1.0).await;
    let mut client = send(&site, CORE, None).await;
    assert_eq!(client.response().await.status, 503);
    let text = std::fs::read(site.proxy.config_file()).expect("the configuration is there");
    let mut config: serde_json::Value = serde_json::from_slice(&text).expect("the harness writes JSON");
    config["limits"]["requests_in_flight"] = json!(4);
    std::fs::write(site.proxy.config_file(), config.to_string()).expect("writable");
    until("it is read again", async || {
        site.proxy.metrics().await.value("dotmac_config_reloads_total", &[("outcome", "applied")]) == Some(1.0)
    })
    .await;
    client.send(get(CORE, None)).await.expect("still open");
    assert_eq!(client.response().await.status, 200);
}

/// One tenant asks for more than a slow backend can do, all the time. The others get what they got before: no request of
/// theirs is refused or left without an answer. How long they take is printed, for people to judge.
#[tokio::test]
async fn a_flood_of_one_tenant_is_its_own() {
    const FLOOD: usize = 100;
    let site = Site::with(json!({ "requests_in_flight": 60 })).await;
    site.upstream.on("/slow", Reply::after(Duration::from_millis(300), Reply::status(204)));
    site.upstream.on("*", Reply::verified());
    let others = || {
        Load::on(site.proxy.address())
            .rate(200)
            .start(|n| Ask::get("/api/v1/crm/x", tenant(u128::from(n) % 50 + 10), "others"))
    };
    let for_a_while = async |seconds| {
        let load = others();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        load.stop().await
    };
    // Their first requests, which open connections and ask for licences, are not what a flood is held against.
    for_a_while(1).await;
    let quiet = for_a_while(3).await;

    let address = site.proxy.address();
    let flood: Vec<_> = (0..FLOOD)
        .map(|n| {
            tokio::spawn(async move {
                // Not all in step.
                tokio::time::sleep(Duration::from_millis(3 * n as u64)).await;
                let mut client = RawClient::connect(address).await;
                let mut answers = BTreeMap::<u16, usize>::new();
                loop {
                    client.send(get("/slow", Some(tenant(1)))).await.expect("still open");
                    let status = client.response().await.status;
                    *answers.entry(status).or_default() += 1;
                    if status == 503 {
                        // As it is told, only sooner.
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                    if answers.values().sum::<usize>() >= 18 {
                        return answers;
                    }
                }
            })
        })
        .collect();
    until("the flood is at its height", async || site.limited("requests_in_flight_per_tenant").await > 100.0).await;
    let load = others();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut beside = load.so_far();
    let flooded = !flood.iter().all(tokio::task::JoinHandle::is_finished);
    beside.0.extend(load.stop().await.0.into_iter().skip(beside.len()));
    let mut answers = BTreeMap::<u16, usize>::new();
    for client in flood {
        client
            .await
            .expect("every request is answered")
            .into_iter()
            .for_each(|(k, n)| *answers.entry(k).or_default() += n);
    }
    let (before, after) = (quiet.percentile(0.99), beside.percentile(0.99));
    println!(
        "others' p99: {before:?} alone, {after:?} beside a flood: {:.2} times; {} and {} requests; the flood got {answers:?}",
        after.as_secs_f64() / before.as_secs_f64(),
        quiet.len(),
        beside.len(),
    );
    assert!(flooded, "the flood was over too soon to tell");
    assert_eq!(quiet.by_status().keys().collect::<Vec<_>>(), [&200]);
    assert_eq!(beside.by_status().keys().collect::<Vec<_>>(), [&200], "{:?}", beside.errors());
    assert!(answers[&503] > 0 && answers[&204] > 0 && answers.len() == 2, "{answers:?}");
    assert_eq!(site.limited("requests_in_flight").await, 0.0);
}
