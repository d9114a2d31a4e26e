//! docs/adopt.md: followed from the first command to the last, with FastAPI under uvicorn, and with Alembic.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::net::TcpStream;
use uuid::Uuid;

use super::{TENANT, Terminal, commands, section, shows};
use crate::harness::process::{Process, free_port};
use crate::harness::proxy::run_binary;
use crate::harness::{Block, Database, Page, Postgres, RawResponse, Redis, client};

const PAGE: &str = "docs/adopt.md";
/// From nothing to enforced, in order.
const WAY: [&str; 4] = ["The backend, on a socket", "The map", "In shadow", "Enforced, for one tenant"];
/// As the page counts them.
const NUMBERS: [&str; 6] = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"];
const CRM: &str = "/api/v1/crm/customers";
const ORIGIN: (&str, &str) = ("Origin", "https://app.example.com");

/// The directory of somebody's backend, with its own database and Redis.
struct Site {
    page: Page,
    terminal: Terminal,
    database: Database,
    _redis: Redis,
    proxy: SocketAddr,
    ops: SocketAddr,
}

impl Site {
    async fn new() -> Site {
        let database = Postgres::shared().await.database().await;
        let redis = Redis::start().await;
        let mut terminal = Terminal::new();
        for file in ["main.py", "models.py"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/backends/adopting").join(file);
            terminal.desk.write(file, &std::fs::read_to_string(&path).expect("a file of the repository"));
        }
        let local = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let (proxy, ops) = (local(free_port()), local(free_port()));
        terminal.stands_for("127.0.0.1:8080", proxy.to_string());
        terminal.stands_for("127.0.0.1:9464", ops.to_string());
        terminal.stands_for("/srv/backend", terminal.desk.dir().display().to_string());
        terminal.desk.set("DATABASE_URL", asyncpg(&database));
        terminal.desk.set("REDIS_URL", redis.url());
        terminal.desk.set("PYTHONDONTWRITEBYTECODE", "1");
        Site { page: Page::read(PAGE), terminal, database, _redis: redis, proxy, ops }
    }

    fn config(&self) -> PathBuf {
        self.terminal.desk.dir().join("license-proxy.yaml")
    }

    /// Changes the configuration, and waits until it is read again.
    async fn edit(&self, change: impl FnOnce(&str) -> String) {
        let before = self.hash().await;
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        let changed = change(&text);
        assert_ne!(text, changed);
        std::fs::write(self.config(), changed).expect("the directory is writable");
        self.reloaded(&before).await;
    }

    /// The configuration that runs.
    async fn hash(&self) -> String {
        let metrics = client::request(self.ops, "GET", "/metrics", &[]).await.text();
        let hash = metrics.split("config_hash=\"").nth(1).and_then(|rest| rest.split('"').next());
        hash.expect("dotmac_build_info names it").to_owned()
    }

    async fn reloaded(&self, before: &str) {
        let begun = Instant::now();
        while self.hash().await == before {
            assert!(begun.elapsed() < Duration::from_secs(5), "the page says: within two seconds");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> RawResponse {
        client::request(self.proxy, method, target, headers).await
    }

    /// Types the page up to where the backend listens.
    async fn backend(&self) -> Process {
        let blocks = section(&self.page, WAY[0]);
        let uvicorn = self.terminal.leaves_running(blocks[0]);
        let begun = Instant::now();
        while !uvicorn.stderr().contains("Uvicorn running on unix socket") {
            assert!(begun.elapsed() < Duration::from_secs(30), "uvicorn: {}", uvicorn.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for block in &blocks[1..] {
            self.terminal.passes(block).await;
        }
        uvicorn
    }

    /// Saves the file, and types what follows it.
    async fn map(&self) {
        let [yaml, check] = section(&self.page, WAY[1])[..] else { panic!("a file and a block of commands") };
        assert_eq!((yaml.language.as_str(), check.language.as_str()), ("yaml", "sh"));
        std::fs::write(self.config(), self.terminal.here(&yaml.text)).expect("the directory is writable");
        let printed = self.terminal.passes(check).await;
        shows("POST /api/v1/tickets tickets (prefix /api/v1/tickets)\n5 operations, 0 without a rule", &printed);
    }

    /// Waits until the gate is ready and hears of changes.
    async fn until_up(&self, gate: &Process) {
        let begun = Instant::now();
        let is_up = async || {
            gate.stderr().contains("listening to Postgres for changes")
                && TcpStream::connect(self.proxy).await.is_ok()
                && TcpStream::connect(self.ops).await.is_ok()
                && client::request(self.ops, "GET", "/readyz", &[]).await.status == 200
        };
        while !is_up().await {
            assert!(begun.elapsed() < Duration::from_secs(30), "serve: {}", gate.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Types what lets the gate serve in shadow, and returns it with what is still to be typed.
    async fn serve(&self) -> (Process, Block) {
        let [prepare, serve, ask] = section(&self.page, WAY[2])[..] else { panic!("three blocks of commands") };
        let printed = self.terminal.passes(prepare).await;
        shows("3 rows of tenants (id): 3 would get a licence …\n3 rows of tenants (id): 3 got a licence …", &printed);
        let gate = self.terminal.leaves_running(serve);
        self.until_up(&gate).await;
        (gate, ask.clone())
    }
}

/// As SQLAlchemy has it.
fn asyncpg(database: &Database) -> String {
    database.url().replace("postgres://", "postgresql+asyncpg://")
}

#[tokio::test]
async fn a_fastapi_backend_is_adopted_in_at_most_fifteen_commands() {
    let site = Site::new().await;
    let (tenant, other) = (("X-Tenant-ID", TENANT), Uuid::new_v4().to_string());
    let sql = format!(
        "CREATE TABLE tenants (id uuid PRIMARY KEY); INSERT INTO tenants VALUES ('{TENANT}'), ('{other}'), (gen_random_uuid())"
    );
    site.database.execute(&sql).await;

    let typed: Vec<_> = WAY.iter().flat_map(|heading| site.page.under(heading, "sh")).flat_map(commands).collect();
    assert!((10..=15).contains(&typed.len()), "{} commands: {typed:#?}", typed.len());
    let text = std::fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(PAGE)).expect("the page");
    assert!(text.contains(&format!("in {} commands", NUMBERS[typed.len() - 10])), "it counts {}", typed.len());

    let _uvicorn = site.backend().await;
    site.map().await;
    let (gate, ask) = site.serve().await;
    assert_eq!(site.ask("GET", CRM, &[tenant]).await.status, 200);
    let printed = site.terminal.passes(&ask).await;
    shows("plan professional → starter\nshadowed, feature_not_in_plan", &printed);
    assert_eq!(site.ask("GET", CRM, &[tenant]).await.status, 200, "in shadow everything goes on");
    let unsold = format!("UPDATE tenant_licenses SET features = '{{\"tickets\": true}}' WHERE tenant_id = '{other}'");
    site.database.execute(&unsold).await;

    let [enforce, denied, paid] = section(&site.page, WAY[3])[..] else { panic!("three blocks of commands") };
    let before = site.hash().await;
    site.terminal.passes(enforce).await;
    site.reloaded(&before).await;
    assert!(gate.stderr().contains("the configuration is changed"), "{}", gate.stderr());
    let printed = site.terminal.passes(denied).await;
    shows(
        "HTTP/1.1 402 Payment Required\n…\"reason\":\"feature_not_in_plan\"…\"required_plan\":\"professional\"…",
        &printed,
    );
    assert_eq!(site.ask("GET", CRM, &[("X-Tenant-ID", &other)]).await.status, 200, "everyone else is in shadow");
    let printed = site.terminal.passes(paid).await;
    shows(&format!("plan starter → professional\nHTTP/1.1 200 OK\n…\"tenant\":\"{TENANT}\"…"), &printed);

    // What the page says of the command line of uvicorn: a scheme and a client that are the gateway's, one connection for
    // many requests.
    let seen = site.ask("GET", "/api/v1/network/devices", &[tenant, ("X-Forwarded-Proto", "https")]).await.json();
    assert_eq!(seen["scheme"], "https");
    assert_eq!(site.ask("GET", CRM, &[tenant]).await.json()["client"], "127.0.0.1");
    assert!(!gate.stderr().contains("mismatch") && !gate.stdout().contains("mismatch"), "{}", gate.stderr());
}

#[tokio::test]
async fn preflights_and_probes() {
    let site = Site::new().await;
    let sql = format!("CREATE TABLE tenants (id uuid); INSERT INTO tenants VALUES ('{TENANT}')");
    site.database.execute(&sql).await;
    let mut uvicorn = site.backend().await;
    site.map().await;
    let prepare = section(&site.page, WAY[2]);
    site.terminal.passes(prepare[0]).await;
    let gate = site.terminal.leaves_running(prepare[1]);
    site.until_up(&gate).await;
    site.edit(|text| text.replace("mode: shadow, rollout: { percent: 0,", "mode: enforce, rollout: { percent: 100,"))
        .await;

    // The gate answers listed origins, and its own answers can be read by their pages.
    let [rules, preflight] = section(&site.page, "CORS")[..] else { panic!("rules and a command") };
    let printed = site.terminal.passes(preflight).await.to_lowercase();
    shows("http/1.1 204 no content\naccess-control-allow-origin: https://app.example.com\nx-request-id: …", &printed);
    assert!(!printed.contains("uvicorn"), "{printed}");
    let stranger = ("X-Tenant-ID", "00000000-0000-4000-8000-00000000dead");
    let denied = site.ask("GET", CRM, &[ORIGIN, stranger]).await;
    assert_eq!((denied.status, denied.header("Access-Control-Allow-Origin")), (402, Some(ORIGIN.1)));
    let served = site.ask("GET", CRM, &[ORIGIN, ("X-Tenant-ID", TENANT)]).await;
    assert_eq!(
        (served.status, served.header("Access-Control-Allow-Origin")),
        (200, Some(ORIGIN.1)),
        "the backend's own"
    );

    // Without an origin listed a preflight is a request like any other, until it has a rule: then the backend answers it.
    site.edit(|text| text.lines().filter(|line| !line.starts_with("cors:")).collect::<Vec<_>>().join("\n") + "\n")
        .await;
    assert_eq!(site.ask("OPTIONS", CRM, &[ORIGIN]).await.status, 401);
    site.edit(|text| text.replace("  rules:\n", &format!("  rules:\n{}", rules.text))).await;
    let printed = site.terminal.passes(preflight).await.to_lowercase();
    shows("http/1.1 200 ok\nserver: uvicorn\naccess-control-allow-origin: https://app.example.com", &printed);
    let denied = site.ask("GET", CRM, &[ORIGIN, stranger]).await;
    assert_eq!((denied.status, denied.header("Access-Control-Allow-Origin")), (402, None), "unread by pages");

    // Probes, as the kubelet would run them: the way of requests, and inside of the container.
    let [probes] = section(&site.page, "Probes")[..] else { panic!("one block") };
    let socket = site.terminal.desk.dir().join("app.sock").display().to_string();
    let probes: Value = serde_saphyr::from_str(&probes.text.replace("/run/app/app.sock", &socket)).expect("YAML");
    let path = probes["readinessProbe"]["httpGet"]["path"].as_str().expect("a path");
    let command = &probes["livenessProbe"]["exec"]["command"];
    let words: Vec<_> = command.as_array().expect("a list").iter().map(|word| word.as_str().expect("a text")).collect();
    let [python, "-c", script] = words[..] else { panic!("{words:?}") };
    site.terminal.desk.write("probe.py", script);
    let probe = Block {
        heading: "Probes".to_owned(),
        language: "sh".to_owned(),
        text: format!("{python} -c \"$(cat probe.py)\"\n"),
        place: format!("{PAGE}:0"),
    };
    assert_eq!(site.ask("GET", path, &[]).await.status, 200);
    assert!(site.terminal.types(&probe).await.status.success());
    uvicorn.stop("KILL", Duration::from_secs(5));
    assert_eq!(site.ask("GET", path, &[]).await.status, 502, "a backend that is gone is not ready");
    assert!(!site.terminal.types(&probe).await.status.success(), "nor alive");
    for own in ["/livez", "/readyz"] {
        assert_eq!(client::request(site.ops, "GET", own, &[]).await.status, 200, "the gate is");
    }
}

/// What the chart is given is what was tried on one machine, and the program takes it.
#[tokio::test]
async fn the_chart_gets_the_same_configuration() {
    let page = Page::read(PAGE);
    let yaml = |heading: &str| -> Value {
        serde_saphyr::from_str(&page.under(heading, "yaml")[0].text)
            .unwrap_or_else(|error| panic!("{heading}: {error}"))
    };
    let (tried, values) = (yaml("The map"), yaml("In the pod"));
    let mut config = values["config"].clone();
    for key in ["tenant", "licenses", "routes", "plans"] {
        assert_eq!(config[key], tried[key], "{key}");
    }
    let uvicorn = values["backend"]["command"].as_array().expect("words");
    let uvicorn: Vec<_> = uvicorn.iter().map(|word| word.as_str().expect("a text")).collect();
    let typed =
        commands(section(&page, WAY[0])[0])[0].replace("\"$PWD/app.sock\"", "/run/app/app.sock").replace('\'', "");
    assert_eq!(uvicorn.join(" "), typed);

    // The chart sets these two itself.
    config["listen"] = json!({ "proxy": "0.0.0.0:8080", "ops": "0.0.0.0:9464" });
    config["upstream"] = json!({ "address": "unix:/run/app/app.sock" });
    let terminal = Terminal::new();
    let file = terminal.desk.write("proxy.yaml", &config.to_string()).display().to_string();
    let checked = run_binary(&["check-config", "--config", &file], &[]).await;
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
}

/// A real project of Alembic, as `alembic init` makes it, beside the tables of `migrate`.
#[tokio::test]
async fn alembic_leaves_our_tables_alone() {
    let site = Site::new().await;
    let run = async |text: &str| {
        let (heading, language, place) = (String::new(), "sh".to_owned(), "a project of Alembic:0".to_owned());
        site.terminal.types(&Block { heading, language, text: text.to_owned(), place }).await
    };
    let passes = async |text: &str| {
        let ended = run(text).await;
        assert!(ended.status.success(), "{text}: {ended:?}");
        ended.stdout + &ended.stderr
    };
    let dir = site.terminal.desk.dir();
    passes("alembic init -t async migrations").await;
    let edit = |file: &str, from: &str, to: &str| {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path).expect("written by `alembic init`");
        assert_eq!(text.matches(from).count(), 1, "{from} in {file}");
        std::fs::write(&path, text.replace(from, to)).expect("the directory is writable");
    };
    edit("alembic.ini", "driver://user:pass@localhost/dbname", &asyncpg(&site.database));
    let metadata = "from models import Base\n\ntarget_metadata = Base.metadata\n";
    edit("migrations/env.py", "target_metadata = None\n", metadata);
    passes("alembic revision --autogenerate -m first && alembic upgrade head").await;
    passes("dotmac-license-proxy migrate").await;

    // What the page lists is what is there, beside what the backend has.
    let [hook, insert] = section(&site.page, "Alembic")[..] else { panic!("the hook, and how it gets in") };
    let listed: BTreeSet<&str> =
        hook.text.lines().filter_map(|line| line.trim().strip_suffix("\",")?.strip_prefix('"')).collect();
    let sql = "SELECT json_agg(tablename) FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ('alembic_version', 'tenants', 'customers')";
    let there: BTreeSet<String> =
        serde_json::from_str(&site.database.value(sql).await.expect("tables")).expect("a list");
    assert_eq!(listed, there.iter().map(String::as_str).collect());

    // Without the hook it would drop them all.
    let ended = run("alembic check").await;
    assert!(!ended.status.success(), "{ended:?}");
    for table in &listed {
        assert!(
            ended.stdout.contains(&format!("('remove_table', Table('{table}'"))
                || ended.stderr.contains(&format!("removed table '{table}'")),
            "{table}: {ended:?}"
        );
    }
    passes("alembic revision --autogenerate -m dropping && cat migrations/versions/*_dropping.py >dropping.txt && rm migrations/versions/*_dropping.py").await;
    let dropping = std::fs::read_to_string(dir.join("dropping.txt")).expect("a revision");
    assert!(dropping.contains("op.drop_table('tenant_licenses')"), "{dropping}");

    // With it there is nothing to do, and what the backend changes is still seen.
    edit("migrations/env.py", metadata, &format!("{metadata}\n{}", hook.text));
    let printed = site.terminal.passes(insert).await;
    assert!(printed.contains("No new upgrade operations detected."), "{printed}");
    passes("alembic revision --autogenerate -m nothing").await;
    let nothing = passes("cat migrations/versions/*_nothing.py && rm migrations/versions/*_nothing.py").await;
    assert!(!nothing.contains("op.drop") && nothing.matches("\n    pass\n").count() == 2, "{nothing}");
    edit(
        "models.py",
        "class Customer(Base):",
        "class Region(Base):\n    __tablename__ = \"regions\"\n\n    id: Mapped[UUID] = mapped_column(primary_key=True)\n\n\nclass Customer(Base):",
    );
    let ended = run("alembic check").await;
    let printed = ended.stdout + &ended.stderr;
    assert!(printed.contains("'add_table', Table('regions'") && !printed.contains("remove_"), "{printed}");
    // Back and forth: ours stay.
    passes("alembic downgrade base && alembic upgrade head").await;
    assert_eq!(site.database.value(sql).await.map(|text| text.matches('"').count() / 2), Some(listed.len()));
}
