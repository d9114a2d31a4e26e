//! The configuration is read again on SIGHUP and when its content changes: under load, whole, or not at all.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::proxy::Metrics;
use crate::harness::{Proxy, RawClient, World};

/// The configuration that a proxy runs with. JSON is YAML.
fn written(proxy: &Proxy) -> Value {
    let text = std::fs::read(proxy.config_file()).expect("the configuration is there");
    serde_json::from_slice(&text).expect("the harness writes JSON")
}

/// Puts another file in place of the configuration at once, as editors do.
fn write(proxy: &Proxy, config: &Value) {
    let draft = proxy.config_file().with_extension("draft");
    std::fs::write(&draft, config.to_string()).expect("the directory is writable");
    std::fs::rename(&draft, proxy.config_file()).expect("the directory is writable");
}

/// Waits until the configuration was read again as often as this, with this outcome.
async fn reloaded(proxy: &Proxy, outcome: &str, times: f64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while proxy.metrics().await.value("dotmac_config_reloads_total", &[("outcome", outcome)]) < Some(times) {
        assert!(Instant::now() < deadline, "{outcome} is not {times}:\n{}", proxy.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two configurations that differ in four sections, each of which shows in every denial. No answer is a mixture of both, no
/// request fails, and no connection is closed.
#[tokio::test]
async fn under_load_no_request_fails_or_sees_half_of_a_configuration() {
    const CONNECTIONS: usize = 8;
    const SWAPS: usize = 30;
    let mut world = World::start().await;
    let tenant = world.tenant("starter").await;
    let first = written(&world.proxy);
    let variant = |name: &str, status: u16| {
        let mut config = first.clone();
        config["deny"] =
            json!({ "upgrade_url": format!("/{name}?f={{feature}}"), "status": { "feature_not_in_plan": status } });
        config["plans"][1]["name"] = json!(name);
        config["plans"][2]["features"] = json!(["tickets"]);
        config["routes"]["rules"][3]["feature"] = json!(format!("crm-{name}"));
        config["plans"][1]["features"] = json!([format!("crm-{name}")]);
        config
    };
    let variants = [variant("a", 402), variant("b", 451)];
    write(&world.proxy, &variants[0]);
    reloaded(&world.proxy, "applied", 1.0).await;

    let stop = Arc::new(AtomicBool::new(false));
    let address = world.proxy.address();
    let load = (0..CONNECTIONS).map(|_| {
        let stop = Arc::clone(&stop);
        tokio::spawn(async move {
            let request = format!("GET /api/v1/crm HTTP/1.1\r\nHost: x\r\nX-Tenant-ID: {tenant}\r\n\r\n");
            let mut client = RawClient::connect(address).await;
            let mut seen = [0usize; 2];
            while !stop.load(Ordering::Relaxed) {
                client.send(&request).await.expect("the connection stays open");
                let answer = client.response().await;
                let body = answer.json();
                let of = usize::from(answer.status == 451);
                let name = ["a", "b"][of];
                let expected = (
                    json!(format!("crm-{name}")),
                    json!(format!("/{name}?f=crm-{name}")),
                    json!([name]),
                    [402, 451][of],
                );
                let got = (&body["feature"], &body["upgrade_url"], &body["available_in"], answer.status);
                assert_eq!(got, (&expected.0, &expected.1, &expected.2, expected.3), "half of a configuration");
                seen[of] += 1;
            }
            seen
        })
    });
    let load: Vec<_> = load.collect();
    for swap in 1..=SWAPS {
        write(&world.proxy, &variants[swap % 2]);
        world.proxy.signal("HUP");
        reloaded(&world.proxy, "applied", 1.0 + swap as f64).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut total = [0, 0];
    for connection in load {
        let seen = connection.await.expect("every answer is of one configuration");
        total = [total[0] + seen[0], total[1] + seen[1]];
    }
    println!("{SWAPS} swaps under {total:?} requests on {CONNECTIONS} connections");
    assert!(total[0] > 50 && total[1] > 50, "{total:?}");
    assert!(world.proxy.exited().is_none());
}

#[tokio::test]
async fn what_cant_be_used_changes_nothing_and_is_told_with_its_place() {
    let mut world = World::start().await;
    let tenant = world.tenant("starter").await;
    let good = written(&world.proxy);
    let hash = |metrics: &Metrics| metrics.label("dotmac_build_info", "config_hash");
    let before = hash(&world.proxy.metrics().await);
    for broken in ["version: 1\nlisten: [", "version: 1\nroutes:\n  rules:\n    - { prefix: crm, feature: crm }\n", ""]
    {
        let refused = world.proxy.metrics().await.value("dotmac_config_reloads_total", &[("outcome", "refused")]);
        std::fs::write(world.proxy.config_file(), broken).expect("the directory is writable");
        reloaded(&world.proxy, "refused", refused.unwrap_or_default() + 1.0).await;
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
        assert_eq!(world.get("/api/v1/tickets", tenant).await.status, 200);
    }
    let metrics = world.proxy.metrics().await;
    assert_eq!(hash(&metrics), before);
    assert_eq!(metrics.value("dotmac_config_refused", &[]), Some(1.0));
    let told =
        |text: &'static str| move |event: &Value| event["error"].as_str().is_some_and(|error| error.contains(text));
    world.proxy.wait_for_event(told("proxy.yaml:4:")).await;

    // A file that is gone for a moment is a file that can't be used.
    std::fs::remove_file(world.proxy.config_file()).expect("it is there");
    world.proxy.wait_for_event(told("can't be read")).await;
    write(&world.proxy, &good);
    reloaded(&world.proxy, "unchanged", 1.0).await;
    assert_eq!(world.proxy.metrics().await.value("dotmac_config_refused", &[]), Some(0.0));

    world.proxy.signal("HUP");
    reloaded(&world.proxy, "unchanged", 2.0).await;

    // What can't change while the process runs is named, and the rest takes effect.
    let mut moved = good.clone();
    moved["listen"]["ops"] = json!("127.0.0.1:1");
    moved["licenses"]["ttl"] = json!("7s");
    moved["enforcement"] = json!({ "mode": "shadow" });
    write(&world.proxy, &moved);
    reloaded(&world.proxy, "applied", 1.0).await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200, "in shadow");
    assert_eq!(world.proxy.metrics().await.value("dotmac_config_restart_required", &[]), Some(1.0));
    world.proxy.wait_for_event(|event| event["keys"] == "listen, licenses.ttl").await;
    write(&world.proxy, &good);
    reloaded(&world.proxy, "applied", 2.0).await;
    let metrics = world.proxy.metrics().await;
    assert_eq!(metrics.value("dotmac_config_restart_required", &[]), Some(0.0));
    assert_eq!(hash(&metrics), before);
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
}

/// Whoever writes the file in place may be half through just then, and half of the rules are a valid configuration, in which
/// less is gated.
#[tokio::test]
async fn a_file_that_is_being_written_is_not_used() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let file = world.proxy.config_file();
    let mut whole = written(&world.proxy);
    let rules = whole["routes"]["rules"].take();
    let members = whole.as_object_mut().expect("an object");
    members.remove("routes");
    let mut first: String = members.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    first += "routes:\n  rules:\n";
    let rules = rules.as_array().expect("a list");
    let core = rules.iter().position(|rule| rule["feature"].is_string()).expect("a gated rule");
    let lines = |rules: &[Value]| rules.iter().map(|rule| format!("    - {rule}\n")).collect::<String>();
    let (core, rest) = (lines(&rules[..core]), lines(&rules[core..]));
    first += &core;
    // The half is one that could be used.
    std::fs::write(&file, &first).expect("the directory is writable");
    reloaded(&world.proxy, "applied", 1.0).await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 200);
    std::fs::write(&file, format!("{first}{rest}")).expect("the directory is writable");
    reloaded(&world.proxy, "applied", 2.0).await;

    let (stop, stopped) = mpsc::sync_channel::<()>(0);
    let writer = std::thread::spawn(move || {
        let pause = || stopped.recv_timeout(Duration::from_millis(15)) == Err(mpsc::RecvTimeoutError::Timeout);
        let write = |text: String| std::fs::write(&file, text).expect("the directory is writable");
        let mut times = 0;
        while pause() {
            times += 1;
            write(format!("# {times}\n{first}"));
            let goes_on = pause();
            write(format!("# {times}\n{first}{rest}"));
            if !goes_on {
                break;
            }
        }
        times
    });
    let begun = Instant::now();
    let mut asked = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402, "half of the rules");
        asked += 1;
    }
    drop(stop);
    let written = writer.join().expect("no panic");
    println!("{asked} requests while the file was written {written} times");
    // What is there at the end is what was there at the beginning, apart from a comment.
    reloaded(&world.proxy, "unchanged", 1.0).await;
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);
}

/// A ConfigMap is a symlink to a symlink to a directory; an update swaps the one in the middle. The file's time may be older.
#[tokio::test]
async fn a_config_map_is_swapped() {
    let world = World::start().await;
    let tenant = world.tenant("starter").await;
    let file = world.proxy.config_file();
    let dir = file.parent().expect("a directory");
    let mut config = written(&world.proxy);
    let publish = |name: &str, config: &Value| {
        std::fs::create_dir(dir.join(name)).expect("a directory");
        std::fs::write(dir.join(name).join("proxy.yaml"), config.to_string()).expect("the directory is writable");
        symlink(name, dir.join("..data_tmp")).expect("a link");
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("a link");
    };
    publish("..first", &config);
    std::fs::remove_file(&file).expect("it is there");
    symlink("..data/proxy.yaml", &file).expect("a link");
    assert_eq!(world.get("/api/v1/crm", tenant).await.status, 402);

    config["routes"]["rules"][3]["mode"] = json!("shadow");
    let begun = Instant::now();
    publish("..second", &config);
    while world.get("/api/v1/crm", tenant).await.status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("seen after {:?}", begun.elapsed());
}

/// The first SIGHUP ends a program that does not handle it.
#[tokio::test]
async fn a_relay_stays() {
    let world = World::start().await;
    let mut relay = world.builder.clone().set("/licenses/change_feed", "redis").start_relay().await;
    relay.signal("HUP");
    relay.wait_for_event(|event| event["message"].as_str().is_some_and(|text| text.starts_with("SIGHUP"))).await;
    assert!(relay.exited().is_none());
}
