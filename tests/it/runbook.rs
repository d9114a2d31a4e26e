//! `docs/runbook.md`: every command of it run as written, in a world in which the trouble is real, until it has gone.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::process::free_port;
use crate::harness::proxy::Metrics;
use crate::harness::world::{FEATURES, features_of, get};
use crate::harness::{Block, Desk, License, Page, Proxy, ProxyBuilder, World};

const PAGE: &str = "docs/runbook.md";
const TOKEN: &str = "admin-secret-word";
/// What the contract promises for a licence that is changed, and what a busy machine may add.
const LICENCE: Duration = Duration::from_millis(1_500);
/// What the page promises for a configuration that is changed.
const RELOAD: Duration = Duration::from_secs(2);

/// Two replicas with their stores, and somebody on call at a desk.
struct Night {
    world: World,
    replica: Proxy,
    desk: Desk,
}

/// The commands of a section, in order. Whoever opens it runs them all.
struct Section {
    heading: &'static str,
    blocks: std::vec::IntoIter<Block>,
}

fn section(heading: &'static str) -> Section {
    let blocks: Vec<_> = Page::read(PAGE).under(heading, "sh").into_iter().cloned().collect();
    Section { heading, blocks: blocks.into_iter() }
}

impl Section {
    fn next(&mut self) -> Block {
        self.blocks.next().unwrap_or_else(|| panic!("\"{}\" has no more commands", self.heading))
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        let left: Vec<_> = self.blocks.by_ref().map(|block| block.place).collect();
        assert!(left.is_empty() || std::thread::panicking(), "\"{}\": {left:?} are run by nobody", self.heading);
    }
}

impl Night {
    async fn begin() -> Night {
        Night::begin_with(|builder| builder).await
    }

    async fn begin_with(change: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> Night {
        let admin: SocketAddr = (Ipv4Addr::LOCALHOST, free_port()).into();
        let world = World::start_with(|builder| {
            let builder = builder
                .set("/listen/admin", admin.to_string())
                .set("/licenses/change_feed", "listen")
                .set("/enforcement", json!({ "mode": "enforce", "rollout": { "percent": 100 } }))
                .set("/usage/flush_interval", "1s")
                .env("ADMIN_TOKEN", TOKEN);
            change(builder)
        })
        .await;
        let replica = world.builder.clone().remove("/listen/admin").start().await;
        world.proxy.live().await;
        replica.live().await;
        let mut desk = Desk::new();
        for (name, value) in [
            ("DATABASE_URL", world.database.url()),
            ("REDIS_URL", world.redis.url()),
            ("DOTMAC_LICENSE_CONFIG", world.proxy.config_file().display().to_string()),
            ("ADMIN_TOKEN", TOKEN.to_owned()),
            ("OPS", world.proxy.ops_url()),
            ("ADMIN", format!("http://{admin}")),
            ("API", world.proxy.url()),
        ] {
            desk.set(name, value);
        }
        desk.prepare(&section("Set these first").next());
        Night { world, replica, desk }
    }

    /// The commands are about this tenant.
    fn about(&mut self, tenant: Uuid) {
        self.desk.set("TENANT", tenant.to_string());
        self.desk.set("WHO", format!("X-Tenant-ID: {tenant}"));
    }

    fn proxies(&self) -> [&Proxy; 2] {
        [&self.world.proxy, &self.replica]
    }

    /// Asks until each replica answers `wanted`; how long that took.
    async fn everywhere(&self, target: &str, tenant: Uuid, wanted: u16) -> Duration {
        let since = Instant::now();
        for proxy in self.proxies() {
            loop {
                let status = get(proxy, target, tenant).await.status;
                if status == wanted {
                    break;
                }
                let waited = since.elapsed();
                assert!(waited < Duration::from_secs(10), "{target}: {status} and no {wanted}\n{}", proxy.stderr());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        since.elapsed()
    }

    /// Changes a licence so that nobody hears of it.
    async fn update_silently(&self, set: &str, tenant: Uuid) {
        let sql = format!(
            "ALTER TABLE tenant_licenses DISABLE TRIGGER ALL;
             UPDATE tenant_licenses SET {set} WHERE tenant_id = '{tenant}';
             ALTER TABLE tenant_licenses ENABLE TRIGGER ALL;
             ALTER TABLE tenant_licenses ENABLE REPLICA TRIGGER tenant_licenses_announce_replicated"
        );
        self.world.database.execute(&sql).await;
    }

    /// The configuration as the first replica has it.
    fn config(&self) -> Value {
        let text = std::fs::read_to_string(self.world.proxy.config_file()).expect("the configuration is there");
        serde_saphyr::from_str(&text).expect("YAML")
    }

    /// Brings a configuration to both pods as the kubelet does: another folder, and a link that is swapped.
    fn publish(&self, config: &Value) {
        for proxy in self.proxies() {
            let file = proxy.config_file();
            let dir = file.parent().expect("a directory");
            let mut config = config.clone();
            config["listen"] = json!({
                "proxy": proxy.address().to_string(),
                "ops": proxy.ops_address().to_string(),
            });
            if std::ptr::eq(proxy, &raw const self.world.proxy) {
                config["listen"]["admin"] = self.config()["listen"]["admin"].clone();
            }
            let folder = format!("..{}", Uuid::new_v4());
            std::fs::create_dir(dir.join(&folder)).expect("the directory is writable");
            std::fs::write(dir.join(&folder).join("proxy.yaml"), yaml(&config)).expect("the directory is writable");
            for (target, link) in [(folder.as_str(), "..data"), ("..data/proxy.yaml", "proxy.yaml")] {
                symlink(target, dir.join("..new")).expect("a link");
                std::fs::rename(dir.join("..new"), dir.join(link)).expect("a link");
            }
        }
    }
}

fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("YAML")
}

/// As `kubectl get configmap -o yaml` prints it.
fn config_map(config: &Value) -> String {
    let text: String = yaml(config).lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: v1\ndata:\n  config.yaml: |\n{text}kind: ConfigMap\nmetadata:\n  name: backend-dotmac-license-proxy-config\n"
    )
}

/// The configuration that is in a ConfigMap.
fn config_in(config_map: &str) -> Value {
    let map: Value = serde_saphyr::from_str(config_map).expect("YAML");
    assert_eq!(
        (&map["kind"], &map["metadata"]["name"]),
        (&json!("ConfigMap"), &json!("backend-dotmac-license-proxy-config"))
    );
    serde_saphyr::from_str(map["data"]["config.yaml"].as_str().expect("a file")).expect("YAML")
}

/// The rows of a table as psql prints it, cells trimmed; without its head.
fn rows(printed: &str) -> Vec<Vec<String>> {
    let lines = printed.lines().skip_while(|line| !line.starts_with("--")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('('));
    lines.map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

// ---- The page itself ----

/// Each section with commands is opened by a test here, and whoever opens one runs all of it.
#[test]
fn no_command_of_the_page_is_left_out() {
    let tests = include_str!("runbook.rs");
    let headings: Vec<_> = Page::read(PAGE).all("sh").into_iter().map(|block| block.heading.clone()).collect();
    assert!(headings.len() > 40, "{headings:?}");
    let headings: BTreeSet<_> = headings.into_iter().collect();
    for heading in &headings {
        assert!(tests.contains(&format!("section(\"{heading}\")")), "nobody runs the commands under \"{heading}\"");
    }
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/runbook.md")).expect("the page");
    for heading in &headings {
        let times = text.lines().filter(|line| line.trim_start_matches('#').trim() == heading.as_str()).count();
        assert_eq!(times, 1, "two sections are called \"{heading}\"");
    }
}

/// Addresses and secrets are taken from the cluster where the shell has none.
#[tokio::test]
async fn the_variables_come_from_the_cluster() {
    let mut desk = Desk::new();
    // base64 of postgresql+asyncpg://app:x@db/main
    desk.answer(["get", "secret"], "cG9zdGdyZXNxbCthc3luY3BnOi8vYXBwOnhAZGIvbWFpbg==\n");
    desk.set("CUSTOMER_TOKEN", "abc");
    let mut set = section("Set these first").next();
    set.text += "printf '%s\\n' \"$DATABASE_URL\" \"$WHO\" \"$OPS\" \"$TENANT\"\n";
    let printed = desk.passes(&set).await;
    let expected = [
        "postgresql://app:x@db/main",
        "Authorization: Bearer abc",
        "http://127.0.0.1:9464",
        "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11",
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    assert!(desk.asked("kubectl")[0].starts_with("get secret backend -o jsonpath="), "{:?}", desk.asked("kubectl"));
}

// ---- A customer is denied ----

#[tokio::test]
async fn three_commands_to_the_reason_and_one_to_let_them_in() {
    let mut night = Night::begin().await;
    let tenant = night.world.tenant("starter").await;
    night.about(tenant);
    night.everywhere("/api/v1/crm/customers", tenant, 402).await;

    let mut why = section("A paying customer sees a 402 at 3 a.m.");
    let said = night.desk.run(&why.next()).await;
    assert_eq!(said.status.code(), Some(3), "{}{}", said.stdout, said.stderr);
    for line in [
        "denied with 402, feature_not_in_plan\n",
        "mode      enforce, since enforcement.mode is enforce, for all tenants\n",
        "licence   plan starter: tickets\n",
        &format!("dotmac-license-proxy license grant {tenant} crm --for 4h --reason"),
    ] {
        assert!(said.stdout.contains(line), "{line}:\n{}", said.stdout);
    }
    let has = night.desk.passes(&why.next()).await;
    assert!(has.contains("plan         starter\n") && has.contains("state        valid\n"), "{has}");
    assert_eq!(night.desk.passes(&why.next()).await, "", "nobody has written an upgrade: that is the reason");
    let audit = section("A paying customer sees a 402 at 3 a.m.").last();

    night.desk.passes(&section("Let them in").next()).await;
    let took = night.everywhere("/api/v1/crm/customers", tenant, 200).await;
    println!("let in {took:?} after the command");
    assert!(took < LICENCE, "{took:?}");
    let audit = night.desk.passes(&audit).await;
    assert!(audit.contains("paying customer denied, on call") && audit.contains("by on-call"), "{audit}");
    let until = "SELECT valid_until < timezone('utc', now()) + INTERVAL '4 hours' FROM tenant_addons";
    assert_eq!(night.world.database.value(until).await.as_deref(), Some("t"), "it ends by itself");
}

/// In order of likelihood: it was never written; the gate goes by something older.
#[tokio::test]
async fn not_accessible_after_an_upgrade() {
    let mut night = Night::begin().await;
    let target = "/api/v1/crm/customers";

    // Billing has said nothing.
    let tenant = night.world.tenant("starter").await;
    night.about(tenant);
    night.everywhere(target, tenant, 402).await;
    let mut commands = section("Not accessible after an upgrade");
    let [what_they_have, write_it, what_is_answered, what_a_pod_goes_by, ask_again, are_changes_heard] =
        std::array::from_fn(|_| commands.next());
    let has = night.desk.passes(&what_they_have).await;
    assert!(has.contains("plan         starter\n"), "{has}");
    night.desk.passes(&write_it).await;
    assert!(night.everywhere(target, tenant, 200).await < LICENCE);

    // Somebody has written it behind the triggers' back: the row is right, and everything else older.
    let tenant = night.world.tenant("starter").await;
    night.about(tenant);
    night.everywhere(target, tenant, 402).await;
    night
        .update_silently(&format!("plan_tier = 'professional', features = '{}'", features_of("professional")), tenant)
        .await;
    let has = night.desk.passes(&what_they_have).await;
    assert!(has.contains("plan         professional\n"), "{has}");
    let answer = night.desk.passes(&what_is_answered).await;
    assert!(answer.starts_with("HTTP/1.1 402 "), "{answer}");
    assert!(
        answer.contains("Proxy-Status: dotmac-license-proxy; ") && answer.contains(r#""plan":"starter""#),
        "{answer}"
    );
    let goes_by = night.desk.passes(&what_a_pod_goes_by).await;
    for line in [r#""decision":"denied""#, r#""reason":"feature_not_in_plan""#, r#""plan":"starter""#, r#""layer":""#] {
        assert!(goes_by.contains(line), "{line}:\n{goes_by}");
    }
    assert!(!goes_by.contains(r#""layer":"source""#), "{goes_by}");
    let heard = Metrics::parse(&night.desk.passes(&are_changes_heard).await);
    assert_eq!(heard.sum("dotmac_change_feed_live"), 2.0);
    night.desk.passes(&ask_again).await;
    let took = night.everywhere(target, tenant, 200).await;
    println!("asked again {took:?} after the command");
    assert!(took < LICENCE, "{took:?}");

    // Nobody hears of anything.
    night.world.postgres_wire.cut().await;
    night.world.redis_wire.cut().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while night.world.proxy.is_live().await != (false, false) {
        assert!(Instant::now() < deadline, "{}", night.world.proxy.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let heard = Metrics::parse(&night.desk.passes(&are_changes_heard).await);
    for channel in ["feed", "redis"] {
        assert_eq!(heard.value("dotmac_change_feed_live", &[("channel", channel)]), Some(0.0));
    }
}

// ---- Rolling out ----

#[tokio::test]
async fn the_checklist_is_green_when_all_is_well_and_red_when_it_is_not() {
    let mut night = Night::begin_with(|builder| builder.set("/enforcement/mode", "shadow")).await;
    night.world.database.execute("CREATE TABLE tenants (id UUID PRIMARY KEY)").await;
    let tenant = night.world.tenant("starter").await;
    night.about(tenant);
    night.world.database.execute(&format!("INSERT INTO tenants VALUES ('{tenant}')")).await;
    let mut commands = section("Deployment checklist");

    let configuration = commands.next();
    let said = night.desk.passes(&configuration).await;
    assert!(said.contains(": ok (9 rules, 3 plans, shadow, config_hash "), "{said}");
    let tables = commands.next();
    let applied = night.desk.passes(&tables).await;
    assert!(applied.lines().count() >= 6 && applied.lines().all(|line| line.starts_with("applied ")), "{applied}");
    let redis = night.desk.passes(&commands.next()).await;
    let version = redis.lines().find_map(|line| line.strip_prefix("redis_version:")).expect("a version");
    assert!(version.split('.').next().and_then(|major| major.parse().ok()) >= Some(6), "{redis}");
    assert!(redis.contains("maxmemory_policy:"), "{redis}");
    assert!(!night.desk.passes(&commands.next()).await.is_empty(), "/readyz says something");
    let heard_of = commands.next();
    let heard = Metrics::parse(&night.desk.passes(&heard_of).await);
    assert_eq!(heard.sum("dotmac_change_feed_live"), 2.0);
    for quiet in ["dotmac_store_breaker_state", "dotmac_config_refused", "dotmac_licensing_off"] {
        assert_eq!(heard.sum(quiet), 0.0, "{quiet}");
    }
    let everyone = commands.next();
    assert_eq!(rows(&night.desk.passes(&everyone).await), [["0", "0"]]);
    let renewed = night.desk.passes(&commands.next()).await;
    assert!(renewed.contains("0 would be renewed"), "{renewed}");
    let shadow = commands.next();
    assert_eq!(rows(&night.desk.passes(&shadow).await).len(), 0);
    drop(commands);
    let asked = night.desk.asked("kubectl");
    for line in ["rollout status deployment/backend --timeout=5m", "get cronjobs"] {
        assert!(asked.iter().any(|other| other == line), "{line}: {asked:?}");
    }

    // And now each with its fault.
    let ending = Uuid::new_v4();
    night.world.insert(License { valid_until: "3 days", auto_renew: false, ..License::valid(ending, "starter") }).await;
    let sql = format!("INSERT INTO tenants VALUES ('{ending}'), (gen_random_uuid()), (gen_random_uuid())");
    night.world.database.execute(&sql).await;
    assert_eq!(rows(&night.desk.passes(&everyone).await), [["2", "1"]]);
    for _ in 0..3 {
        assert_eq!(night.world.get("/api/v1/crm", tenant).await.status, 200);
    }
    let deadline = Instant::now() + Duration::from_secs(15);
    let denied = loop {
        let denied = rows(&night.desk.passes(&shadow).await);
        if !denied.is_empty() || Instant::now() > deadline {
            break denied;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(denied[0][..5], [tenant.to_string().as_str(), "starter", "crm", "feature_not_in_plan", "3"]);
    night.world.database.execute("DROP TABLE feature_denial_events").await;
    let missing = night.desk.run(&tables).await;
    assert!(
        !missing.status.success() || missing.stdout.lines().any(|line| !line.starts_with("applied ")),
        "{missing:?}"
    );
    night.world.redis_wire.cut().await;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let heard = Metrics::parse(&night.desk.passes(&heard_of).await);
        if heard.value("dotmac_change_feed_live", &[("channel", "redis")]) == Some(0.0) {
            break;
        }
        assert!(Instant::now() < deadline, "{heard:?}");
    }
    let broken = night.desk.write("broken.yaml", "version: 1\nroutes: 7\n");
    night.desk.set("DOTMAC_LICENSE_CONFIG", broken.display().to_string());
    let refused = night.desk.run(&configuration).await;
    assert_eq!(refused.status.code(), Some(2), "{}{}", refused.stdout, refused.stderr);
}

#[tokio::test]
async fn the_canary_is_watched() {
    let night = Night::begin_with(|builder| builder.set("/enforcement/mode", "shadow")).await;
    let tenants: Vec<Uuid> =
        (1..=120).map(|n| Uuid::from_u128(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834_u128.wrapping_mul(n))).collect();
    let values: Vec<_> = tenants.iter().map(|t| format!("('{t}', 'starter', '{{\"tickets\": true}}')")).collect();
    let sql = format!("INSERT INTO tenant_licenses (tenant_id, plan_tier, features) VALUES {}", values.join(", "));
    night.world.database.execute(&sql).await;

    let mut canary = section("Canary");
    night.desk.passes(&canary.next()).await;
    let chart = "./helm/dotmac-license-proxy";
    assert_eq!(
        night.desk.asked("helm"),
        [format!("upgrade backend {chart} --reuse-values -f {chart}/canary/values-5.yaml")]
    );
    night.desk.passes(&canary.next()).await;
    let annotated = "annotate pods -l app.kubernetes.io/instance=backend --overwrite config-wanted=";
    assert!(
        night.desk.asked("kubectl").iter().any(|line| line.starts_with(annotated)),
        "{:?}",
        night.desk.asked("kubectl")
    );

    let mut config = night.config();
    config["enforcement"] = json!({ "mode": "enforce", "rollout": { "percent": 5 } });
    let in_effect = section("Is it in effect?").next();
    night.publish(&config);
    let since = Instant::now();
    loop {
        let said = Metrics::parse(&night.desk.passes(&in_effect).await);
        assert_eq!(said.sum("dotmac_config_refused"), 0.0);
        if said.label("dotmac_build_info", "mode") == "enforce" {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{said:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = since.elapsed();
    println!("in effect {took:?} after the swap");
    assert!(took < RELOAD, "{took:?}");
    while night.replica.metrics().await.label("dotmac_build_info", "mode") != "enforce" {
        assert!(since.elapsed() < Duration::from_secs(10), "{}", night.replica.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let mut denied = BTreeSet::new();
    for tenant in &tenants {
        let statuses = [
            get(&night.world.proxy, "/api/v1/crm", *tenant).await.status,
            get(&night.replica, "/api/v1/crm", *tenant).await.status,
        ];
        assert_eq!(statuses[0], statuses[1], "{tenant}");
        if statuses[0] == 402 {
            denied.insert(tenant.to_string());
        }
    }
    assert!((1..=20).contains(&denied.len()), "5 % of {}: {}", tenants.len(), denied.len());
    let mut watch = section("What to watch");
    let (who, requests) = (watch.next(), watch.next());
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let lines = rows(&night.desk.passes(&who).await);
        let listed: BTreeSet<_> = lines.iter().map(|line| line[0].clone()).collect();
        let counted: u32 = lines.iter().map(|line| line[4].parse::<u32>().expect("a number")).sum();
        if listed == denied && counted as usize == 2 * denied.len() {
            assert!(lines.iter().all(|line| line[1..4] == ["starter", "crm", "feature_not_in_plan"]), "{lines:?}");
            break;
        }
        assert!(Instant::now() < deadline, "{listed:?}, {counted} instead of {denied:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let outcomes = Metrics::parse(&night.desk.passes(&requests).await);
    let of =
        |outcome| outcomes.value("dotmac_decisions_total", &[("outcome", outcome)]).expect("present from the start");
    assert_eq!((of("denied") as usize, of("failed_open")), (denied.len(), 0.0));
    assert_eq!(of("shadowed") as usize, tenants.len() - denied.len());

    // What can't be used is told, and changes nothing.
    config["enforcement"] = json!({ "mode": "enforced" });
    night.publish(&config);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let said = Metrics::parse(&night.desk.passes(&in_effect).await);
        if said.sum("dotmac_config_refused") == 1.0 {
            break;
        }
        assert!(Instant::now() < deadline, "{said:?}");
    }
}

// ---- Rolling back ----

/// Off, as the page says it, while the stores are away, too.
#[tokio::test]
async fn enforcement_is_off_within_seconds() {
    let night = Night::begin_with(|builder| builder.set("/licenses/on_failure", "deny")).await;
    let starter = night.world.tenant("starter").await;
    night.everywhere("/api/v1/crm", starter, 402).await;
    let original = night.config();
    night.desk.answer(["get", "configmap"], &config_map(&original));

    // Nobody can look a licence up, and the operator wants it closed then: who is not known yet is refused.
    night.world.postgres_wire.cut().await;
    night.world.redis_wire.cut().await;
    let newcomer = Uuid::new_v4();
    night.everywhere("/api/v1/tickets", newcomer, 503).await;

    let mut off = section("Enforcement off");
    night.desk.passes(&off.next()).await;
    let applied = std::fs::read_to_string(night.desk.dir().join("applied.yaml")).expect("it was applied");
    let applied = config_in(&applied);
    let mut expected = original.clone();
    expected["enforcement"]["mode"] = json!("off");
    assert_eq!(applied, expected, "nothing else has changed");
    let asked = night.desk.asked("kubectl");
    assert!(asked.iter().any(|line| line == "get configmap backend-dotmac-license-proxy-config -o yaml"), "{asked:?}");
    assert!(asked.iter().any(|line| line.starts_with("annotate pods -l ")), "{asked:?}");

    night.publish(&applied);
    let since = Instant::now();
    night.everywhere("/api/v1/crm", starter, 200).await;
    let took = since.elapsed();
    println!("off {took:?} after the swap, with no store");
    assert!(took < RELOAD, "{took:?}");
    assert_eq!(get(&night.replica, "/api/v1/tickets", newcomer).await.status, 200);

    night.desk.passes(&off.next()).await;
    assert_eq!(
        night.desk.asked("helm"),
        ["upgrade backend ./helm/dotmac-license-proxy --reuse-values --set config.enforcement.mode=off"]
    );
    drop(off);

    // And on again.
    night.world.postgres_wire.restore();
    night.world.redis_wire.restore();
    for proxy in night.proxies() {
        proxy.live().await;
    }
    night.publish(&original);
    night.everywhere("/api/v1/crm", starter, 402).await;
}

#[tokio::test]
async fn the_cache_is_emptied_and_the_image_is_put_back() {
    let night = Night::begin().await;
    let upgraded = format!("plan_tier = 'professional', features = '{}'", features_of("professional"));
    let mut cache = section("The cache");
    for command in [cache.next(), cache.next()] {
        let tenant = night.world.tenant("starter").await;
        night.everywhere("/api/v1/crm", tenant, 402).await;
        night.update_silently(&upgraded, tenant).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        for proxy in night.proxies() {
            assert_eq!(
                get(proxy, "/api/v1/crm", tenant).await.status,
                402,
                "nothing was said: else this proves nothing"
            );
        }
        night.desk.passes(&command).await;
        let took = night.everywhere("/api/v1/crm", tenant, 200).await;
        println!("{}: seen by both {took:?} after the command", command.place);
        assert!(took < LICENCE, "{took:?}");
    }

    let mut image = section("The image");
    night.desk.passes(&image.next()).await;
    night.desk.passes(&image.next()).await;
    let asked = night.desk.asked("kubectl");
    for line in [
        "set image deployment/backend license-proxy=ghcr.io/dotmac/license-proxy:0.0.0",
        "rollout status deployment/backend --timeout=5m",
    ] {
        assert!(asked.iter().any(|other| other == line), "{line}: {asked:?}");
    }
    assert_eq!(night.desk.asked("helm"), ["rollback backend --wait --timeout 5m"]);
}

/// Each way back from licences that are wrong, with twenty thousand of them.
#[tokio::test]
async fn licences_are_put_back() {
    const TENANTS: u32 = 20_000;
    let mut night = Night::begin().await;
    let database = &night.world.database;
    let bulk = format!(
        "INSERT INTO tenant_licenses (tenant_id, plan_tier, features, valid_until)
         SELECT gen_random_uuid(), 'professional', '{}', now() + interval '1 year' FROM generate_series(1, {TENANTS})",
        features_of("professional")
    );
    database.execute(&bulk).await;
    let (paying, renewed, trial) = (
        night.world.tenant("professional").await,
        night.world.tenant("professional").await,
        night.world.tenant("starter").await,
    );
    let of_the_gate = async |arguments: &[&str]| {
        let ended = night
            .world
            .builder
            .run(&[&["license"], arguments, &["--reason", "a test", "--actor", "test"]].concat())
            .await;
        assert!(ended.status.success(), "{}{}", ended.stdout, ended.stderr);
    };
    of_the_gate(&["grant", &trial.to_string(), "crm", "--for", "4h"]).await;
    night.everywhere("/api/v1/crm", trial, 200).await;
    let before = Instant::now();
    night.desk.passes(&section("A copy first").next()).await;
    println!("copied {:?}", before.elapsed());
    let snapshot = "SELECT md5(string_agg(concat(tenant_id, plan_tier, features, features_until, usage_limits), '' ORDER BY tenant_id))
                      FROM tenant_licenses WHERE tenant_id IN (SELECT tenant_id FROM tenant_licenses_before)";
    let as_it_was = database.value(snapshot).await;

    // A script that should have been about one tenant.
    database
        .execute("UPDATE tenant_licenses SET features = '{}', plan_tier = 'starter', usage_limits = '{\"crm\": 0}'")
        .await;
    database
        .execute(&format!("UPDATE tenant_licenses SET valid_until = '2099-01-01' WHERE tenant_id = '{renewed}'"))
        .await;
    // A feature that ends keeps its end where the gate itself takes away another.
    let managed = format!(
        "BEGIN; SELECT set_config('dotmac_license.managed', '1', true);
         UPDATE tenant_licenses SET features_until = b.features_until FROM tenant_licenses_before b
          WHERE b.tenant_id = tenant_licenses.tenant_id AND b.tenant_id = '{trial}'; COMMIT"
    );
    database.execute(&managed).await;
    let newcomer = night.world.tenant("starter").await;
    for tenant in [paying, trial] {
        night.everywhere("/api/v1/crm", tenant, 402).await;
    }
    let since = Instant::now();
    night.desk.passes(&section("Back to the copy").next()).await;
    for tenant in [paying, renewed, trial] {
        night.everywhere("/api/v1/crm", tenant, 200).await;
    }
    println!("{TENANTS} licences are back by the copy after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    assert_eq!(database.value(snapshot).await, as_it_was);
    let kept = format!("SELECT valid_until FROM tenant_licenses WHERE tenant_id = '{renewed}'");
    assert_eq!(database.value(&kept).await.as_deref(), Some("2099-01-01 00:00:00"), "what was renewed stays so");
    assert_eq!(night.world.get("/api/v1/tickets", newcomer).await.status, 200, "who came later is left alone");

    // The same by the gate's own commands: two changes of one tenant, one of another.
    let now = database.value("SELECT timezone('utc', clock_timestamp())").await.expect("a time");
    of_the_gate(&["set-plan", &paying.to_string(), "starter"]).await;
    of_the_gate(&["set-plan", &paying.to_string(), "enterprise"]).await;
    of_the_gate(&["revoke", &trial.to_string(), "tickets"]).await;
    of_the_gate(&["extend", &renewed.to_string(), "--until", "2100-01-01"]).await;
    night.everywhere("/api/v1/tickets", trial, 402).await;
    night.everywhere("/api/v1/fieldops", paying, 200).await;
    let since = Instant::now();
    let by_the_audit = section("Back by the audit").next();
    let mut desk = std::mem::replace(&mut night.desk, Desk::new());
    desk.set("SINCE", now);
    desk.passes(&by_the_audit).await;
    night.desk = desk;
    night.everywhere("/api/v1/tickets", trial, 200).await;
    night.everywhere("/api/v1/fieldops", paying, 402).await;
    println!("back by the audit after {:?}", since.elapsed());
    let database = &night.world.database;
    assert_eq!(database.value(snapshot).await, as_it_was);
    assert_eq!(database.value(&kept).await.as_deref(), Some("2100-01-01 00:00:00"), "and is not shortened");

    // Everybody gets it.
    night.desk.passes(&section("A feature for everyone").next()).await;
    assert!(night.everywhere("/api/v1/crm", newcomer, 200).await < LICENCE);
    night.desk.passes(&section("Back to the copy").next()).await;

    // Tables and all.
    let mut tables = section("Licensing off, tables and all");
    let since = Instant::now();
    night.desk.passes(&tables.next()).await;
    night.everywhere("/api/v1/fieldops", paying, 200).await;
    println!("off {:?} after the tables were dropped", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(6), "{:?}", since.elapsed());
    for proxy in night.proxies() {
        assert!(proxy.stderr().contains("LICENSING IS OFF"), "{}", proxy.stderr());
        assert_eq!(proxy.metric("dotmac_licensing_off").await, 1.0);
    }
    let since = Instant::now();
    night.desk.passes(&tables.next()).await;
    night.everywhere("/api/v1/fieldops", paying, 402).await;
    println!("{TENANTS} licences are back from the dump after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(60), "{:?}", since.elapsed());
    assert_eq!(night.world.database.value(snapshot).await, as_it_was);
    for feature in FEATURES {
        let wanted = if feature == "fieldops" { 402 } else { 200 };
        night.everywhere(&format!("/api/v1/{feature}"), paying, wanted).await;
    }
}

// ---- The other complaints ----

/// Redis is away, and Postgres is asked in its place; and somebody makes up tenants.
#[tokio::test]
async fn database_load_from_licence_checks() {
    let mut night = Night::begin_with(|builder| builder.set("/licenses/revalidate_after", "1s")).await;
    let mut tenants = Vec::new();
    for _ in 0..20 {
        tenants.push(night.world.tenant("starter").await);
    }
    let ask_all = async |night: &Night, seconds: u64| {
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(seconds) {
            for tenant in &tenants {
                assert_eq!(night.world.get("/api/v1/tickets", *tenant).await.status, 200);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut commands = section("Database load from licence checks");
    let [is_it_us, what_is_asked, does_redis_answer, who_are_they] = std::array::from_fn(|_| commands.next());
    let read = async |night: &Night| Metrics::parse(&night.desk.passes(&what_is_asked).await);
    let by_source = |metrics: &Metrics| {
        metrics.value("dotmac_license_lookups_total", &[("layer", "source")]).expect("from the start")
    };
    let breaker = |metrics: &Metrics| metrics.value("dotmac_store_breaker_state", &[("store", "redis")]);

    // As it should be: nothing grows.
    ask_all(&night, 1).await;
    let first = read(&night).await;
    ask_all(&night, 3).await;
    let second = read(&night).await;
    assert_eq!(by_source(&first), by_source(&second));
    assert_eq!(second.sum("dotmac_license_source_queries_total"), first.sum("dotmac_license_source_queries_total"));
    assert_eq!(breaker(&second), Some(0.0));
    let answers = night.desk.passes(&does_redis_answer).await;
    assert!(answers.starts_with("PONG\n") && answers.contains("evicted_keys:0"), "{answers}");

    night.world.redis.kill();
    ask_all(&night, 5).await;
    let third = read(&night).await;
    assert_eq!(breaker(&third), Some(2.0), "{third:?}");
    assert_eq!(third.value("dotmac_change_feed_live", &[("channel", "redis")]), Some(0.0));
    let queries = |metrics: &Metrics| metrics.sum("dotmac_license_source_queries_total");
    assert!(queries(&third) > queries(&second), "{third:?}");
    let activity = rows(&night.desk.passes(&is_it_us).await);
    assert!(activity.iter().any(|line| line[0] == "dotmac-license-proxy"), "{activity:?}");
    let away = night.desk.run(&does_redis_answer).await;
    assert!(!away.status.success() && away.stderr.contains("Connection refused"), "{away:?}");

    night.world.redis.restart().await;
    night.world.proxy.live().await;
    ask_all(&night, 2).await;
    let fourth = read(&night).await;
    ask_all(&night, 3).await;
    let fifth = read(&night).await;
    assert_eq!(breaker(&fifth), Some(0.0));
    assert_eq!(queries(&fourth), queries(&fifth), "nothing else had to be done");
    assert!(night.desk.passes(&does_redis_answer).await.starts_with("PONG\n"));

    let stranger = Uuid::new_v4();
    for _ in 0..7 {
        assert_eq!(night.world.get("/api/v1/crm", stranger).await.status, 402);
    }
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let lines = rows(&night.desk.passes(&who_are_they).await);
        if lines == [[stranger.to_string(), "7".to_owned()]] {
            break;
        }
        assert!(Instant::now() < deadline, "{lines:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// An origin that is not listed; then the document itself is out of date.
#[tokio::test]
async fn frontend_not_updating() {
    let mut night = Night::begin().await;
    let tenant = night.world.tenant("starter").await;
    night.about(tenant);
    let mut commands = section("Frontend not updating");
    let [what_it_is_told, does_the_socket_come, do_they_stay] = std::array::from_fn(|_| commands.next());

    let refused = night.desk.passes(&does_the_socket_come).await;
    assert!(refused.starts_with("HTTP/1.1 403 ") && refused.contains("origin_not_allowed"), "{refused}");
    let page = Page::read(PAGE);
    let listed: Value = serde_saphyr::from_str(&page.under("Frontend not updating", "yaml")[0].text).expect("YAML");
    let mut config = night.config();
    config["cors"] = listed["cors"].clone();
    night.publish(&config);
    let since = Instant::now();
    let opened = loop {
        let opened = night.desk.passes(&does_the_socket_come).await;
        if opened.starts_with("HTTP/1.1 101 ") {
            break opened;
        }
        assert!(since.elapsed() < Duration::from_secs(10), "{opened}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(opened.contains(r#"{"type":"license","license":{"planTier":"starter","#), "{opened}");
    let sockets = Metrics::parse(&night.desk.passes(&do_they_stay).await);
    assert_eq!(sockets.sum("dotmac_websocket_connections") + sockets.sum("dotmac_websocket_closed_total"), 1.0);

    let told = night.desk.passes(&what_it_is_told).await;
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains(r#""planTier":"starter""#), "{told}");
    assert!(told.contains("Cache-Control: no-cache, private"), "{told}");
    night
        .update_silently(&format!("plan_tier = 'professional', features = '{}'", features_of("professional")), tenant)
        .await;
    let told = night.desk.passes(&what_it_is_told).await;
    assert!(told.contains(r#""planTier":"starter""#), "wrong, so it is the complaint above:\n{told}");
    let refresh = section("Not accessible after an upgrade").nth(4);
    night.desk.passes(&refresh).await;
    let since = Instant::now();
    while !night.desk.passes(&what_it_is_told).await.contains(r#""planTier":"professional""#) {
        assert!(since.elapsed() < LICENCE, "{}", night.world.proxy.stderr());
    }
}

impl Section {
    /// The last of its commands; the others are another test's.
    fn last(mut self) -> Block {
        self.blocks.by_ref().last().expect("a section has commands")
    }

    /// One of its commands; the others are another test's.
    fn nth(mut self, number: usize) -> Block {
        self.blocks.by_ref().skip(number).collect::<Vec<_>>().swap_remove(0)
    }
}
