//! Races that are not left to luck: one side is held at the worst moment, and the other runs past it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{Asker, Fleet, Mode, Node, REVALIDATE_AFTER, SLACK, seen};
use crate::harness::wire::Held;
use crate::harness::{ProxyBuilder, Redis};

/// Long enough for a look-up to be held while others go on.
fn patient(builder: ProxyBuilder) -> ProxyBuilder {
    builder.set("/licenses/lookup_deadline", "5s")
}

/// All that Redis does, as it tells it itself.
struct Monitor {
    told: Arc<Mutex<String>>,
    redis: redis::aio::MultiplexedConnection,
}

impl Monitor {
    async fn start(redis: &Redis) -> Monitor {
        let told = Arc::new(Mutex::new(String::new()));
        let mut stream = TcpStream::connect(("127.0.0.1", redis.port())).await.expect("Redis accepts connections");
        stream.write_all(b"MONITOR\r\n").await.expect("sent");
        let hears = Arc::clone(&told);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let mut told = hears.lock().expect("no panic");
                told.push_str(&line);
                told.push('\n');
            }
        });
        let monitor = Monitor { told, redis: redis.connect().await };
        monitor.up_to_now().await;
        monitor
    }

    async fn up_to_now(&self) {
        let mark = Uuid::new_v4().to_string();
        let _: String = redis::cmd("ECHO").arg(&mark).query_async(&mut self.redis.clone()).await.expect("an echo");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.told.lock().expect("no panic").contains(&mark) {
            assert!(Instant::now() < deadline, "Redis does not tell what it does");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The plans of the licences that scripts have put there for a tenant, oldest first.
    async fn written(&self, tenant: Uuid) -> Vec<String> {
        self.up_to_now().await;
        let told = self.told.lock().expect("no panic");
        let set = format!("\"SET\" \"license:{tenant}\" \"{{");
        let plan = |line: &str| Some(line.split_once(r#"\"plan\":\""#)?.1.split_once('\\')?.0.to_owned());
        told.lines().filter(|line| line.contains(" lua] ") && line.contains(&set)).filter_map(plan).collect()
    }
}

/// What happens to the key in Redis between the change and the late fill.
#[derive(Clone, Copy, Debug)]
enum Between {
    Nothing,
    Flush,
    Delete,
}

/// Where the reader stalls.
#[derive(Clone, Copy, Debug)]
enum Stall {
    /// The row is read; Postgres's answer has not arrived.
    Answer,
    /// The answer has arrived; the fill has not reached Redis.
    Fill,
}

impl Stall {
    /// Holds back the next reader of a licence at version 0.
    fn hold(self, node: &Node) -> Held {
        match self {
            Stall::Answer => node.reads.hold_reply("FROM tenant_licenses WHERE tenant_id = ANY"),
            // The fill is the only call that carries the licence.
            Stall::Fill => node.redis.hold("\"plan\":\"p0\""),
        }
    }
}

/// A reader that has read the old row stalls, the change commits and is announced and seen, and the reader goes on.
async fn late_fill(mode: Mode) {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(mode, 2, &redis, patient).await;
    if mode == Mode::Listen {
        for node in &fleet.nodes {
            node.in_order().await;
        }
    }
    let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
    // The scripts are in Redis, and the pools have connections.
    fleet.warm(&[fleet.tenant().await], 0).await;
    let monitor = Monitor::start(&redis).await;
    for stall in [Stall::Answer, Stall::Fill] {
        for between in [Between::Nothing, Between::Flush, Between::Delete] {
            let tenant = fleet.tenant().await;
            let held = stall.hold(a);
            let mut asker = Asker::of(&a.proxy);
            let late = tokio::spawn(async move { asker.ask(tenant).await });
            held.reached().await;
            let since = fleet.update(tenant, 1).await;
            // B sees it, which it can't before the claim of A has been taken out.
            let took = seen(&b.proxy, tenant, 1, since).await;
            assert!(took < Duration::from_secs(1), "{stall:?} {between:?}: {took:?}");
            match between {
                Between::Nothing => {}
                Between::Flush => fleet.command(&["FLUSHDB"]).await,
                Between::Delete => drop(fleet.command::<i64>(&["DEL", &format!("license:{tenant}")]).await),
            }
            held.release();
            let late = late.await.expect("answered");
            println!("{mode:?} {stall:?} {between:?}: the late reader says {late:?}");
            // Not even for a moment: somebody who knows nothing could have read it.
            let written = monitor.written(tenant).await;
            assert!(
                !written.is_empty() && written.iter().all(|plan| plan == "p1"),
                "{stall:?} {between:?}: {written:?}"
            );
            for node in &fleet.nodes {
                let answer = Asker::of(&node.proxy).ask(tenant).await;
                assert_eq!(answer.version, Some(1), "{stall:?} {between:?}");
            }
            assert_ne!(fleet.cached(tenant).await, Some(0), "{stall:?} {between:?}");
        }
    }
}

#[tokio::test]
async fn a_late_fill_never_brings_back_the_old_row_when_proxies_listen() {
    late_fill(Mode::Listen).await;
}

#[tokio::test]
async fn a_late_fill_never_brings_back_the_old_row_when_a_relay_listens() {
    late_fill(Mode::Relay).await;
}

/// The reader does not even hear of the change: its own feed hangs. Only the key, which another proxy has taken out, tells.
#[tokio::test]
async fn a_late_fill_of_a_reader_whose_feed_hangs() {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(Mode::Listen, 2, &redis, patient).await;
    let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
    fleet.warm(&[fleet.tenant().await], 0).await;
    let monitor = Monitor::start(&redis).await;
    for stall in [Stall::Answer, Stall::Fill] {
        let tenant = fleet.tenant().await;
        a.live().await;
        a.in_order().await;
        a.feed.freeze();
        let held = stall.hold(a);
        let mut asker = Asker::of(&a.proxy);
        let late = tokio::spawn(async move { asker.ask(tenant).await });
        held.reached().await;
        let since = fleet.update(tenant, 1).await;
        let took = seen(&b.proxy, tenant, 1, since).await;
        held.release();
        let late = late.await.expect("answered");
        println!("{stall:?}: B after {took:?}, the late reader says {late:?}");
        let written = monitor.written(tenant).await;
        assert!(!written.is_empty() && written.iter().all(|plan| plan == "p1"), "{stall:?}: {written:?}");
        assert_eq!(Asker::of(&a.proxy).ask(tenant).await.version, Some(1));
        a.feed.restore();
    }
}

/// As a token and a flush allow: the reader's claim is gone, another reader has filled in the new row, and even that is gone.
#[tokio::test]
async fn nothing_of_two_old_readers_survives_a_flush() {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(Mode::Listen, 2, &redis, patient).await;
    let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
    fleet.warm(&[fleet.tenant().await], 0).await;
    let monitor = Monitor::start(&redis).await;
    let tenant = fleet.tenant().await;
    let (held_a, held_b) = (a.redis.hold("\"plan\":\"p0\""), b.redis.hold("\"plan\":\"p0\""));
    let (mut asks_a, mut asks_b) = (Asker::of(&a.proxy), Asker::of(&b.proxy));
    let late_a = tokio::spawn(async move { asks_a.ask(tenant).await });
    held_a.reached().await;
    // Without A's claim, B reads the row as well.
    let _: () = fleet.command(&["FLUSHDB"]).await;
    let late_b = tokio::spawn(async move { asks_b.ask(tenant).await });
    held_b.reached().await;
    fleet.update(tenant, 1).await;
    let _: () = fleet.command(&["FLUSHDB"]).await;
    held_a.release();
    held_b.release();
    late_a.await.expect("answered");
    late_b.await.expect("answered");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(monitor.written(tenant).await.iter().all(|version| version == "p1"));
    assert_ne!(fleet.cached(tenant).await, Some(0));
    for node in &fleet.nodes {
        assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1));
    }
}

/// A proxy that hears of a change and can't reach Redis can't take the entry out. Nothing that lies there counts for it
/// until it is back and has made it so.
async fn redis_out_of_reach(dark: bool) {
    let redis = Redis::start().await;
    let fleet = Fleet::start(Mode::Listen, 2, &redis).await;
    for node in &fleet.nodes {
        node.in_order().await;
    }
    let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
    let tenants = [fleet.tenant().await, fleet.tenant().await];
    fleet.warm(&tenants, 0).await;
    // Nobody else takes it out either.
    for node in [a, b] {
        if dark { node.redis.black_hole() } else { node.redis.freeze() }
    }
    for tenant in tenants {
        let since = fleet.update(tenant, 1).await;
        for took in fleet.seen_by_all(tenant, 1, since).await {
            assert!(took < Duration::from_secs(1), "told by Postgres: {took:?}");
        }
    }
    assert_eq!(fleet.cached(tenants[0]).await, Some(0), "the old entry still lies there");
    a.redis.restore();
    b.redis.restore();
    let deadline = Instant::now() + Duration::from_secs(6);
    while Instant::now() < deadline {
        for tenant in tenants {
            assert_eq!(Asker::of(&a.proxy).ask(tenant).await.version, Some(1));
            assert_eq!(Asker::of(&b.proxy).ask(tenant).await.version, Some(1));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A replica that comes now, and knows nothing, believes nothing old either.
    let newcomer = fleet.new_node().await;
    for tenant in tenants {
        assert_eq!(Asker::of(&newcomer.proxy).ask(tenant).await.version, Some(1));
    }
}

#[tokio::test]
async fn a_change_announced_while_redis_is_dark_leaves_nothing_old_that_counts() {
    redis_out_of_reach(true).await;
}

#[tokio::test]
async fn a_change_announced_while_redis_is_frozen_leaves_nothing_old_that_counts() {
    redis_out_of_reach(false).await;
}

/// In redis mode the push and the message arrive while what they concern is still being read.
#[tokio::test]
async fn a_push_that_overtakes_its_answer_is_not_lost() {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(Mode::Relay, 2, &redis, patient).await;
    let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
    fleet.warm(&[fleet.tenant().await], 0).await;
    for old_is_cached in [false, true] {
        let tenant = fleet.tenant().await;
        if old_is_cached {
            assert_eq!(Asker::of(&b.proxy).ask(tenant).await.version, Some(0));
        }
        // The answer to the read, and every push after it, wait on the wire, and then arrive at once.
        let held = a.redis.hold_reply(&format!("license:{tenant}"));
        let mut asker = Asker::of(&a.proxy);
        let late = tokio::spawn(async move { asker.ask(tenant).await });
        held.reached().await;
        let since = fleet.update(tenant, 1).await;
        let took = seen(&b.proxy, tenant, 1, since).await;
        held.release();
        let late = late.await.expect("answered");
        println!("old cached {old_is_cached}: B after {took:?}, the late reader says {late:?}");
        for node in &fleet.nodes {
            let answer = Asker::of(&node.proxy).ask(tenant).await;
            assert_eq!(answer.version, Some(1), "old cached: {old_is_cached}");
        }
        assert_ne!(fleet.cached(tenant).await, Some(0));
        still_new(&fleet, tenant).await;
    }
}

/// The same where nothing but the push tells, and it tells no revision: the load alone can know that it was overtaken.
#[tokio::test]
async fn a_push_without_a_revision_that_overtakes_its_answer_is_not_lost() {
    let redis = Redis::start().await;
    for mode in [Mode::Listen, Mode::Relay] {
        let fleet = Fleet::start_with(mode, 2, &redis, patient).await;
        let [a, b] = &fleet.nodes[..] else { unreachable!("two") };
        fleet.warm(&[fleet.tenant().await], 0).await;
        let tenant = fleet.tenant().await;
        assert_eq!(Asker::of(&b.proxy).ask(tenant).await.version, Some(0), "it lies in Redis");
        let held = a.redis.hold_reply(&format!("license:{tenant}"));
        let mut asker = Asker::of(&a.proxy);
        let late = tokio::spawn(async move { asker.ask(tenant).await });
        held.reached().await;
        fleet.update_silently(tenant, 1).await;
        assert_eq!(fleet.command::<i64>(&["DEL", &format!("license:{tenant}")]).await, 1);
        held.release();
        let late = late.await.expect("answered");
        println!("{mode:?}: the late reader says {late:?}");
        for node in &fleet.nodes {
            assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1), "{mode:?}");
        }
    }
}

/// No Redis, so no token: the load alone can know that the row it reads has changed.
#[tokio::test]
async fn a_change_that_is_heard_while_the_row_is_read() {
    let redis = Redis::start().await;
    let fleet = Fleet::start_with(Mode::Listen, 1, &redis, patient).await;
    let node = &fleet.nodes[0];
    fleet.warm(&[fleet.tenant().await], 0).await;
    node.redis.cut().await;
    node.down().await;
    let tenant = fleet.tenant().await;
    let heard = node.proxy.metric("dotmac_license_changes_total").await;
    let held = node.reads.hold_reply("FROM tenant_licenses WHERE tenant_id = ANY");
    let mut asker = Asker::of(&node.proxy);
    let late = tokio::spawn(async move { asker.ask(tenant).await });
    held.reached().await;
    fleet.update(tenant, 1).await;
    let deadline = Instant::now() + Duration::from_secs(4);
    while node.proxy.metric("dotmac_license_changes_total").await <= heard && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    held.release();
    let late = late.await.expect("answered");
    println!("the late reader says {late:?}");
    assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1));
}

/// Nothing old comes back later.
async fn still_new(fleet: &Fleet, tenant: Uuid) {
    tokio::time::sleep(REVALIDATE_AFTER / 4 + SLACK).await;
    for node in &fleet.nodes {
        assert_eq!(Asker::of(&node.proxy).ask(tenant).await.version, Some(1));
    }
}
