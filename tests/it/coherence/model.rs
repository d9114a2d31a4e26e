//! Changes, evictions, flushes and broken connections in random order, while readers ask without end; afterwards each answer
//! is held against what had been committed when its request began.
//!
//! `COHERENCE_SECONDS` makes it longer, `COHERENCE_SEED` repeats a sequence (as far as a real system repeats itself).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Answer, Asker, Fleet, Mode, PROMISED, REVALIDATE_AFTER, SLACK, histogram, print, record};
use crate::harness::{Redis, Wire};

const TENANTS: usize = 20;
const READERS_PER_NODE: usize = 3;

/// For one look-up.
const DEADLINE: Duration = Duration::from_millis(600);

/// So long after a channel was restored, all may not be as usual yet.
const AFTERMATH: Duration = Duration::from_secs(6);

/// Of each stretch of time the first part is calm, so that what is promised while the channels live is tried as well.
const STRETCH: Duration = Duration::from_secs(20);
const CALM_AT_FIRST: Duration = Duration::from_secs(5);
const UNREST: Duration = Duration::from_secs(5);

/// One request, and what it was decided by.
struct Request {
    node: usize,
    tenant: usize,
    start: Instant,
    end: Instant,
    answer: Answer,
}

/// One version of one tenant's licence.
#[derive(Clone, Copy)]
struct Commit {
    version: u64,
    /// Before it was asked for.
    begun: Instant,
    /// It was certain by then.
    done: Instant,
    /// There is no licence.
    deleted: bool,
}

/// Something that happened, for the report.
struct Event {
    at: Instant,
    /// Whom it concerns; none: everybody.
    node: Option<usize>,
    tenant: Option<usize>,
    what: String,
}

/// From when until when something was wrong with what a node hears by.
struct Disturbance {
    what: &'static str,
    /// None: all of them.
    node: Option<usize>,
    from: Instant,
    until: Option<Instant>,
}

struct Run {
    fleet: Fleet,
    tenants: Vec<Uuid>,
    random: Random,
    begun: Instant,
    commits: Vec<Vec<Commit>>,
    events: Vec<Event>,
    disturbances: Vec<Disturbance>,
    /// Wires to be restored: when, which, and the disturbance that ends with it.
    broken: Vec<(Instant, Place, usize)>,
    flushes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Reads(usize),
    Feed(usize),
    Redis(usize),
    RelayFeed,
    RelayRedis,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(usize::try_from(to - from).expect("small")) as u64)
    }
}

impl Run {
    fn wire(&self, place: Place) -> &Wire {
        match place {
            Place::Reads(node) => &self.fleet.nodes[node].reads,
            Place::Feed(node) => &self.fleet.nodes[node].feed,
            Place::Redis(node) => &self.fleet.nodes[node].redis,
            Place::RelayFeed => &self.fleet.relays[0].feed,
            Place::RelayRedis => &self.fleet.relays[0].redis,
        }
    }

    fn event(&mut self, node: Option<usize>, tenant: Option<usize>, what: String) {
        self.events.push(Event { at: Instant::now(), node, tenant, what });
    }

    fn next_version(&self, tenant: usize) -> u64 {
        self.commits[tenant].last().map_or(0, |commit| commit.version + 1)
    }

    fn committed(&mut self, tenant: usize, version: u64, begun: Instant, deleted: bool) {
        self.commits[tenant].push(Commit { version, begun, done: Instant::now(), deleted });
        self.event(None, Some(tenant), format!("committed {version}{}", if deleted { ", deleted" } else { "" }));
    }

    async fn step(&mut self) {
        let tenant = self.random.below(TENANTS);
        let (id, version, begun) = (self.tenants[tenant], self.next_version(tenant), Instant::now());
        let choice = if self.in_unrest() { self.random.below(130) } else { self.random.below(86) };
        match choice {
            0..55 => {
                self.fleet.update(id, version).await;
                self.committed(tenant, version, begun, false);
            }
            55..63 => {
                let delete = "DELETE FROM tenant_licenses WHERE tenant_id = $1";
                self.fleet.writer.execute(delete, &[&id]).await.expect("deleted");
                self.committed(tenant, version, begun, true);
                tokio::time::sleep(self.random.millis(1, 300)).await;
                let begun = Instant::now();
                self.fleet.insert(id, version + 1).await;
                self.committed(tenant, version + 1, begun, false);
            }
            63..67 => {
                let all = "UPDATE tenant_licenses SET plan_tier = 'p' || (substr(plan_tier, 2)::bigint + 1)";
                self.fleet.writer.execute(all, &[]).await.expect("updated");
                for tenant in 0..TENANTS {
                    self.committed(tenant, self.next_version(tenant), begun, false);
                }
            }
            67..70 => {
                let rolled_back = format!(
                    "BEGIN; UPDATE tenant_licenses SET plan_tier = 'p999999999' WHERE tenant_id = '{id}'; ROLLBACK"
                );
                self.fleet.writer.batch_execute(&rolled_back).await.expect("rolled back");
                self.event(None, Some(tenant), "an update is rolled back".to_owned());
            }
            70..82 => {
                let _: i64 = self.fleet.command(&["DEL", &format!("license:{id}")]).await;
                self.event(None, Some(tenant), "DEL".to_owned());
            }
            82..86 => {
                let _: () = self.fleet.command(&["FLUSHDB"]).await;
                self.flushes += 1;
                self.event(None, None, "FLUSHDB".to_owned());
            }
            _ => self.disturb().await,
        }
        let pause = self.random.millis(2, 60);
        tokio::time::sleep(pause).await;
        self.restore(false);
    }

    fn in_unrest(&self) -> bool {
        let stretch = STRETCH.as_millis();
        let at = self.begun.elapsed().as_millis() % stretch;
        (CALM_AT_FIRST.as_millis()..(CALM_AT_FIRST + UNREST).as_millis()).contains(&at)
    }

    async fn disturb(&mut self) {
        let node = self.random.below(self.fleet.nodes.len());
        let with_relay = self.fleet.mode == Mode::Relay;
        let place = match self.random.below(if with_relay { 6 } else { 3 }) {
            0 => Place::Reads(node),
            1 => Place::Feed(node),
            2 => Place::Redis(node),
            3 => Place::RelayFeed,
            4 => Place::RelayRedis,
            _ => return self.replace_relay().await,
        };
        if self.broken.iter().any(|(_, other, _)| *other == place) {
            return;
        }
        let node = match place {
            Place::Reads(node) | Place::Feed(node) | Place::Redis(node) => Some(node),
            Place::RelayFeed | Place::RelayRedis => None,
        };
        let kind = self.random.below(5);
        let name = ["reset", "frozen", "dark", "half-open", "cut"][kind];
        let what = match place {
            Place::Reads(_) => "reads",
            Place::Feed(_) => "feed",
            Place::Redis(_) => "redis",
            Place::RelayFeed | Place::RelayRedis => "relay",
        };
        self.disturbances.push(Disturbance { what, node, from: Instant::now(), until: None });
        self.event(node, None, format!("{place:?} is {name}"));
        let wire = self.wire(place);
        match kind {
            0 => wire.reset_connections().await,
            1 => wire.freeze(),
            2 => wire.black_hole(),
            3 => wire.swallow_replies(),
            _ => wire.cut().await,
        }
        let lasts = if kind == 0 { Duration::ZERO } else { self.random.millis(30, 2500) };
        self.broken.push((Instant::now() + lasts, place, self.disturbances.len() - 1));
    }

    async fn replace_relay(&mut self) {
        self.disturbances.push(Disturbance { what: "relay", node: None, from: Instant::now(), until: None });
        let at = self.disturbances.len() - 1;
        self.event(None, None, "the relay is killed".to_owned());
        self.fleet.relays[0].proxy.kill();
        // What was broken of it ends with it.
        let ended: Vec<usize> = {
            let of_relay = |place: &Place| matches!(place, Place::RelayFeed | Place::RelayRedis);
            let ended = self.broken.iter().filter(|(_, place, _)| of_relay(place)).map(|(_, _, at)| *at).collect();
            self.broken.retain(|(_, place, _)| !of_relay(place));
            ended
        };
        self.fleet.relays[0] = self.fleet.new_relay().await;
        self.event(None, None, "another relay has begun".to_owned());
        for at in ended.into_iter().chain([at]) {
            self.disturbances[at].until = Some(Instant::now());
        }
    }

    fn restore(&mut self, all: bool) {
        let now = Instant::now();
        let due: Vec<_> = self.broken.iter().filter(|(until, ..)| all || *until <= now).copied().collect();
        self.broken.retain(|(until, ..)| !(all || *until <= now));
        for (_, place, at) in due {
            self.wire(place).restore();
            self.disturbances[at].until = Some(Instant::now());
            self.event(self.disturbances[at].node, None, format!("{place:?} is restored"));
        }
    }

    /// Whether something was wrong with what `node` hears by, at some moment from `from` to `to` or shortly before.
    fn disturbed(&self, node: usize, from: Instant, to: Instant) -> bool {
        self.disturbances.iter().any(|disturbance| {
            disturbance.node.is_none_or(|of| of == node)
                && disturbance.from <= to
                && disturbance.until.is_none_or(|until| until + AFTERMATH >= from)
        })
    }

    /// What of a node is broken at some moment.
    fn broken_at(&self, node: usize, at: Instant) -> String {
        let broken = self.disturbances.iter().filter(|disturbance| {
            disturbance.node.is_none_or(|of| of == node)
                && disturbance.from <= at
                && disturbance.until.is_none_or(|until| until >= at)
        });
        let mut broken: Vec<&str> = broken.map(|disturbance| disturbance.what).collect();
        broken.sort_unstable();
        broken.join(" and ")
    }

    fn describe(&self, at: Instant) -> String {
        format!("{:9.3}s", (at - self.begun).as_secs_f64())
    }

    /// What happened around a request, so that a person can see why.
    fn report(&self, request: &Request, why: &str, requests: &[Request]) -> String {
        let (from, to) = (request.start.checked_sub(Duration::from_secs(8)), request.end + Duration::from_millis(200));
        let from = from.unwrap_or(self.begun);
        let mut lines: Vec<(Instant, String)> = Vec::new();
        for event in &self.events {
            let concerns = event.node.is_none_or(|node| node == request.node)
                && event.tenant.is_none_or(|tenant| tenant == request.tenant);
            if concerns && (from..to).contains(&event.at) {
                lines.push((event.at, event.what.clone()));
            }
        }
        let mut last = None;
        for other in requests {
            let same = other.node == request.node && other.tenant == request.tenant;
            if same && (from..to).contains(&other.start) && last.replace(&other.answer) != Some(&other.answer) {
                let took = other.end - other.start;
                lines.push((other.start, format!("    a request is decided by {:?} ({took:.1?})", other.answer)));
            }
        }
        lines.sort_by_key(|(at, _)| *at);
        let mut text = format!("node {}, tenant {}: {why}\n", request.node, self.tenants[request.tenant]);
        for (at, what) in lines {
            writeln!(text, "  {} {what}", self.describe(at)).expect("a String takes anything");
        }
        writeln!(text, "  {} the request: {:?}", self.describe(request.start), request.answer).expect("the same");
        text
    }
}

async fn random_run(mode: Mode) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("COHERENCE_SEED").unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
    let lasts = Duration::from_secs(number("COHERENCE_SECONDS").unwrap_or(20));
    println!("{mode:?}: COHERENCE_SEED={seed} COHERENCE_SECONDS={}", lasts.as_secs());
    let redis = Redis::start().await;
    // Less than all tenants take, with the ballast that follows.
    let change = |builder: crate::harness::ProxyBuilder| {
        builder
            .set("/licenses/memory_bytes", "1MiB")
            .set("/licenses/lookup_deadline", format!("{}ms", DEADLINE.as_millis()))
    };
    let mut fleet = Fleet::start_with(mode, 3, &redis, change).await;
    fleet.limits =
        "(SELECT jsonb_object_agg(repeat('x', 900) || i, 1) FROM generate_series(1, 60) AS ballast (i))".to_owned();
    let mut tenants = Vec::new();
    let mut commits = Vec::new();
    for _ in 0..TENANTS {
        let begun = Instant::now();
        tenants.push(fleet.tenant().await);
        commits.push(vec![Commit { version: 0, begun, done: Instant::now(), deleted: false }]);
    }
    fleet.warm(&tenants, 0).await;
    let ends = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for (node, member) in fleet.nodes.iter().enumerate() {
        for reader in 0..READERS_PER_NODE {
            let (mut asker, tenants, ends) = (Asker::of(&member.proxy), tenants.clone(), Arc::clone(&ends));
            let mut random = Random(seed ^ (node * READERS_PER_NODE + reader) as u64);
            readers.push(tokio::spawn(async move {
                let mut requests = Vec::new();
                while !ends.load(Ordering::Relaxed) {
                    let tenant = random.below(TENANTS);
                    let start = Instant::now();
                    let answer = asker.ask(tenants[tenant]).await;
                    requests.push(Request { node, tenant, start, end: Instant::now(), answer });
                    tokio::time::sleep(random.millis(1, 12)).await;
                }
                requests
            }));
        }
    }
    let (events, disturbances, broken) = (Vec::new(), Vec::new(), Vec::new());
    let begun = Instant::now();
    let random = Random(seed);
    let mut run = Run { fleet, tenants, random, begun, commits, events, disturbances, broken, flushes: 0 };
    while run.begun.elapsed() < lasts {
        run.step().await;
    }
    run.restore(true);
    tokio::time::sleep(PROMISED).await;
    ends.store(true, Ordering::Relaxed);
    let mut requests: Vec<Request> = Vec::new();
    for reader in readers {
        requests.extend(reader.await.expect("a reader"));
    }
    requests.sort_by_key(|request| request.start);
    for node in &run.fleet.nodes {
        let metrics = node.proxy.metrics().await;
        let kept = metrics.sum("dotmac_license_memory_entries");
        let by = |layer| metrics.value("dotmac_license_lookups_total", &[("layer", layer)]).unwrap_or_default();
        println!("  look-ups by memory {}, redis {}, source {}; {kept} kept", by("memory"), by("redis"), by("source"));
    }
    judge(&run, mode, seed, &requests);
    // In the end all is well, whatever has happened.
    run.fleet.all_live().await;
    for tenant in 0..TENANTS {
        let version = run.next_version(tenant);
        let since = run.fleet.update(run.tenants[tenant], version).await;
        for took in run.fleet.seen_by_all(run.tenants[tenant], version, since).await {
            assert!(took < PROMISED + SLACK, "afterwards: {took:?}");
        }
    }
}

fn judge(run: &Run, mode: Mode, seed: u64, requests: &[Request]) {
    let (mut calm, mut unrest) = (histogram(), histogram());
    let (mut in_calm, mut fallbacks, mut late) = (0_usize, 0_usize, 0_usize);
    let mut violations: Vec<String> = Vec::new();
    let mut kinds: HashMap<&str, usize> = HashMap::new();
    let mut broken_then: BTreeMap<String, usize> = BTreeMap::new();
    for request in requests {
        let Request { node, tenant, start, end, answer } = request;
        let recent = start.checked_sub(Duration::from_secs(2)).unwrap_or(run.begun);
        let disturbed = run.disturbed(*node, recent, *end);
        in_calm += usize::from(!disturbed);
        let mut violated = |kind: &'static str, why: &str| {
            *kinds.entry(kind).or_default() += 1;
            if violations.len() < 5 {
                violations.push(run.report(request, why, requests));
            }
        };
        // While stores are broken the last known licence is right, however old; otherwise it is an answer like any other.
        if answer.fallback.is_some() || answer.status == 503 {
            fallbacks += 1;
            *broken_then.entry(run.broken_at(*node, *start)).or_default() += 1;
            if disturbed {
                continue;
            }
            // A machine that is too busy to answer within the deadline says nothing about coherence.
            if answer.fallback.as_deref() != Some("stale") {
                if *end - *start >= DEADLINE {
                    late += 1;
                } else {
                    violated("failure", "let through or refused for want of a licence although nothing was wrong");
                }
                continue;
            }
        }
        let commits = &run.commits[*tenant];
        // The newest that it may have been decided by.
        let decided_by = match answer.version {
            Some(version) => commits.iter().rev().find(|commit| commit.version == version && !commit.deleted),
            None => commits.iter().rev().find(|commit| commit.deleted && commit.begun <= *end),
        };
        let Some(decided_by) = decided_by.filter(|commit| commit.begun <= *end) else {
            violated("never committed", "decided by what was never committed");
            continue;
        };
        let newer = commits.iter().filter(|commit| commit.version > decided_by.version && commit.done < *start);
        let mut oldest = None;
        for missed in newer {
            let age = *start - missed.done;
            let shortly_before = missed.done.checked_sub(Duration::from_secs(1)).unwrap_or(run.begun);
            let disturbed = run.disturbed(*node, shortly_before, *start);
            let bound = if disturbed { REVALIDATE_AFTER + SLACK } else { PROMISED } + SLACK;
            if oldest.is_none() {
                record(if disturbed { &mut unrest } else { &mut calm }, age);
            }
            if age > bound {
                let why = format!(
                    "version {} was committed {age:.2?} before the request, which is decided by {}",
                    missed.version, decided_by.version
                );
                violated(if disturbed { "older than revalidate_after" } else { "older than promised" }, &why);
                break;
            }
            oldest.get_or_insert(age);
        }
    }
    let changes: usize = run.commits.iter().map(Vec::len).sum();
    println!(
        "{mode:?}: {} requests ({in_calm} in calm, {fallbacks} by a fallback), {changes} commits, {} flushes, {} disturbances",
        requests.len(),
        run.flushes,
        run.disturbances.len()
    );
    println!("  {late} of those in calm were answered too late to say anything");
    println!("  fallbacks by what was broken then: {broken_then:?}");
    print("  requests decided by what was outdated when they began, in calm: since when", &calm);
    print("  requests decided by what was outdated when they began, in unrest: since when", &unrest);
    let ended_with = format!("COHERENCE_SEED={seed}: {kinds:?}\n\n{}", violations.join("\n"));
    assert!(violations.is_empty(), "{ended_with}");
    assert!(late * 100 <= in_calm, "{late} of {in_calm} look-ups in calm took all the time allowed");
}

#[tokio::test]
async fn no_request_is_decided_by_what_is_too_old_when_proxies_listen() {
    random_run(Mode::Listen).await;
}

#[tokio::test]
async fn no_request_is_decided_by_what_is_too_old_when_a_relay_listens() {
    random_run(Mode::Relay).await;
}
