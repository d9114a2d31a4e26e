//! The real binary as a child process: its configuration, addresses, metrics, log and end.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client;
use super::process::{OnOrphaned, Process, free_port, server_dir};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_dotmac-license-proxy");
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running `dotmac-license-proxy serve`, or another command that runs until it is told to end.
pub(crate) struct Proxy {
    process: Process,
    role: Role,
    proxy_port: u16,
    ops_port: u16,
    dir: TempDir,
}

/// What a proxy is started with; a clone starts another with the same.
#[derive(Clone)]
pub(crate) struct ProxyBuilder {
    config: Value,
    /// Stands in for `config` where the test brings a text of its own.
    text: Option<String>,
    envs: BTreeMap<String, String>,
    wait: Wait,
}

/// Which command.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Serve,
    /// Has no proxy listener.
    Relay,
}

/// What counts as started.
#[derive(Clone, Copy)]
enum Wait {
    /// `/readyz` answers 200.
    Ready,
    /// `/livez` answers 200.
    Live,
}

/// A command that ends by itself and has not yet.
pub(crate) struct Running {
    process: Process,
    peak_rss_bytes: u64,
    _dirs: [TempDir; 2],
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The samples of one scrape.
#[derive(Debug)]
pub(crate) struct Metrics {
    samples: Vec<Sample>,
}

/// One line of the text format.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) value: f64,
}

impl Proxy {
    /// In front of `upstream` (as the configuration spells it), with DotMac's routes and plans.
    ///
    /// The stores' addresses are left to the caller: [`ProxyBuilder::env`].
    pub(crate) fn builder(upstream: &str) -> ProxyBuilder {
        let feature = |prefix: &str, feature: &str| json!({ "prefix": prefix, "feature": feature });
        let core = |prefix: &str| json!({ "prefix": prefix, "access": "always" });
        let config = json!({
            "version": 1,
            "listen": { "proxy": "filled in at the start", "ops": "filled in at the start" },
            "upstream": { "address": upstream },
            "trusted_proxies": ["127.0.0.0/8"],
            "tenant": { "sources": [{ "header": "X-Tenant-ID" }] },
            "licenses": { "source": { "postgres": {} }, "change_feed": "none" },
            "routes": {
                "unmatched": "allow",
                "rules": [
                    core("/api/v1/network"),
                    core("/api/v1/billing"),
                    core("/api/v1/auth"),
                    feature("/api/v1/crm", "crm"),
                    feature("/api/v1/tickets", "tickets"),
                    feature("/api/v1/projects", "projects"),
                    feature("/api/v1/fieldops", "fieldops"),
                    feature("/api/v1/analytics", "analytics"),
                    { "match": { "path": "/api/v1/customers/{id}/tickets", "methods": ["POST"] }, "feature": "tickets" },
                ],
            },
            "plans": [
                { "name": "starter", "features": ["tickets"] },
                { "name": "professional", "features": ["crm", "tickets", "projects", "analytics"] },
                { "name": "enterprise", "features": ["crm", "tickets", "projects", "fieldops", "analytics"] },
            ],
        });
        ProxyBuilder { config, text: None, envs: BTreeMap::new(), wait: Wait::Ready }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        assert!(self.role == Role::Serve, "only `serve` proxies");
        (Ipv4Addr::LOCALHOST, self.proxy_port).into()
    }

    /// The listener of `/livez`, `/readyz` and `/metrics`.
    pub(crate) fn ops_url(&self) -> String {
        format!("http://{}", self.ops_address())
    }

    pub(crate) fn ops_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ops_port).into()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The file the proxy was started with; writing it anew is how a reload is tested.
    pub(crate) fn config_file(&self) -> std::path::PathBuf {
        self.dir.path().join("proxy.yaml")
    }

    /// A scrape of `/metrics`.
    pub(crate) async fn metrics(&self) -> Metrics {
        let response = client::request(self.ops_address(), "GET", "/metrics", &[]).await;
        assert_eq!(response.status, 200, "{}", response.text());
        Metrics::parse(&response.text())
    }

    /// The sum of a metric over all labels, from a scrape of its own; panics when there is none of that name.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        self.metrics().await.sum(name)
    }

    /// Whether changes are heard of: by the feed from Postgres, and from Redis.
    pub(crate) async fn is_live(&self) -> (bool, bool) {
        let metrics = self.metrics().await;
        let live = |channel| metrics.value("dotmac_change_feed_live", &[("channel", channel)]) == Some(1.0);
        (live("feed"), live("redis"))
    }

    /// Waits until every change is heard of; how long that took.
    pub(crate) async fn live(&self) -> Duration {
        let begun = Instant::now();
        while self.is_live().await != (true, true) {
            assert!(begun.elapsed() < START_LIMIT, "the channels are not live:\n{}", self.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        begun.elapsed()
    }

    /// The access log so far: every JSON line on standard output that has a `decision`.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let stdout = self.process.stdout();
        let lines = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line.get("decision").is_some()).collect()
    }

    /// The first line of the access log that `wanted` accepts, waiting for it, since the log is written in batches.
    pub(crate) async fn wait_for_log(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let log = self.access_log();
            if let Some(line) = log.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            assert!(Instant::now() < deadline, "no such line in the access log:\n{}", self.process.stdout());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The program's own log so far: the JSON lines on standard error.
    pub(crate) fn log(&self) -> Vec<Value> {
        self.process.stderr().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The first line of the program's own log that `wanted` accepts, waiting for it.
    pub(crate) async fn wait_for_event(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(line) = self.log().into_iter().find(&wanted) {
                return line;
            }
            assert!(Instant::now() < deadline, "no such event in the log:\n{}", self.process.stderr());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn stdout(&self) -> String {
        self.process.stdout()
    }

    pub(crate) fn stderr(&self) -> String {
        self.process.stderr()
    }

    /// Resident memory now.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory it has had.
    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Sends a signal by name, for example "HUP".
    pub(crate) fn signal(&mut self, signal: &str) {
        self.process.signal(signal);
    }

    /// Stops it with SIGSTOP: sockets stay open and nobody answers.
    pub(crate) fn pause(&mut self) {
        self.process.signal("STOP");
    }

    /// Lets a paused one go on.
    pub(crate) fn resume(&mut self) {
        self.process.signal("CONT");
    }

    /// Ends it at once with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.process.stop("KILL", Duration::from_secs(5));
    }

    /// Asks it to end with SIGTERM and waits for that.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.wait(Duration::from_secs(40)).await
    }

    /// Waits for the end of the process.
    pub(crate) async fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.process.wait(limit).await
    }

    /// Starts one again that has ended, on the same ports, with the configuration and environment of `builder`; panics with
    /// its error output if it does not start. What it prints follows what the former one did.
    pub(crate) async fn start_again(&mut self, builder: &ProxyBuilder) {
        assert!(self.exited().is_some(), "the proxy is still running: kill() or terminate() it first");
        self.process = builder.spawn_in(&self.dir, self.role, self.proxy_port, self.ops_port);
        let ended = self.wait_until_up(builder.wait).await;
        assert!(ended.is_none(), "the proxy does not start again: {ended:?}");
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.process.exited()
    }

    fn memory(&self, field: &str) -> u64 {
        memory(self.pid(), field).expect("the proxy is running, and Linux tells the memory of a process")
    }
}

impl ProxyBuilder {
    /// Sets a value of the configuration by JSON pointer, `/licenses/ttl`, making objects on the way; an array grows by
    /// `-` as the last step.
    pub(crate) fn set(mut self, pointer: &str, value: impl Into<Value>) -> ProxyBuilder {
        let mut place = &mut self.config;
        for step in pointer.split('/').skip(1) {
            let step = step.replace("~1", "/").replace("~0", "~");
            place = if let Value::Array(items) = place {
                let index = if step == "-" { items.len() } else { step.parse().expect("an index into an array") };
                if index == items.len() {
                    items.push(Value::Null);
                }
                &mut items[index]
            } else {
                &mut place[step]
            };
        }
        *place = value.into();
        self
    }

    /// Takes a key out of the configuration.
    pub(crate) fn remove(mut self, pointer: &str) -> ProxyBuilder {
        let (parent, key) = pointer.rsplit_once('/').expect("a JSON pointer");
        let parent = self.config.pointer_mut(parent).and_then(Value::as_object_mut);
        parent.and_then(|object| object.remove(key)).unwrap_or_else(|| panic!("{pointer} is not set"));
        self
    }

    /// Takes this text as the configuration; `PROXY_ADDRESS`, `OPS_ADDRESS` and `ADMIN_ADDRESS` in it become the addresses to
    /// listen on.
    pub(crate) fn text(mut self, text: String) -> ProxyBuilder {
        self.text = Some(text);
        self
    }

    /// Sets a variable of the proxy's environment; it gets no others but PATH, HOME and TMPDIR.
    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> ProxyBuilder {
        self.envs.insert(name.to_owned(), value.into());
        self
    }

    /// Counts the proxy as started when it is alive, for tests in which it cannot become ready.
    pub(crate) fn wait_for_live_only(mut self) -> ProxyBuilder {
        self.wait = Wait::Live;
        self
    }

    /// Starts the proxy; panics with its error output if it does not.
    pub(crate) async fn start(&self) -> Proxy {
        started(self.try_start().await)
    }

    /// Starts the proxy, or returns how it ended.
    pub(crate) async fn try_start(&self) -> Result<Proxy, Ended> {
        self.try_start_as(Role::Serve).await
    }

    /// Starts `relay` with this configuration and environment; it has the listener for operators and no other.
    pub(crate) async fn start_relay(&self) -> Proxy {
        started(self.try_start_relay().await)
    }

    /// Starts `relay`, or returns how it ended.
    pub(crate) async fn try_start_relay(&self) -> Result<Proxy, Ended> {
        self.try_start_as(Role::Relay).await
    }

    async fn try_start_as(&self, role: Role) -> Result<Proxy, Ended> {
        for _ in 0..5 {
            let mut proxy = self.spawn(role);
            let Some(status) = proxy.wait_until_up(self.wait).await else {
                return Ok(proxy);
            };
            let ended = Ended { status, stdout: proxy.stdout(), stderr: proxy.stderr() };
            let output = format!("{}{}", ended.stdout, ended.stderr).to_lowercase();
            if !output.contains("address already in use") && !output.contains("addrinuse") {
                return Err(ended);
            }
        }
        panic!("no free ports for the proxy in five attempts");
    }

    /// Runs another command of the binary with this configuration and environment: `run(&["migrate"])`.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Ended {
        self.begin(arguments).end(Duration::from_secs(60)).await
    }

    /// Begins to run another command of the binary.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Running {
        let dir = server_dir();
        let (proxy_port, ops_port) = two_free_ports();
        let builder = self.clone().listening_on(proxy_port, ops_port);
        std::fs::write(dir.path().join("proxy.yaml"), builder.config_text()).expect("the directory is writable");
        let config = dir.path().join("proxy.yaml").display().to_string();
        let envs = builder.env("DOTMAC_LICENSE_CONFIG", config).envs;
        begin_binary(arguments, &envs.into_iter().collect::<Vec<_>>(), dir)
    }

    /// The configuration as it is written to the file. JSON is YAML.
    pub(crate) fn config_text(&self) -> String {
        let listener = |name: &str| self.config["listen"][name].as_str().expect("an address").to_owned();
        match &self.text {
            Some(text) => text
                .replace("PROXY_ADDRESS", &listener("proxy"))
                .replace("OPS_ADDRESS", &listener("ops"))
                .replace("ADMIN_ADDRESS", &format!("127.0.0.1:{}", free_port())),
            None => serde_json::to_string_pretty(&self.config).expect("a JSON value"),
        }
    }

    fn listening_on(self, proxy_port: u16, ops_port: u16) -> ProxyBuilder {
        self.set("/listen/proxy", format!("127.0.0.1:{proxy_port}")).set("/listen/ops", format!("127.0.0.1:{ops_port}"))
    }

    fn spawn(&self, role: Role) -> Proxy {
        let dir = server_dir();
        let (proxy_port, ops_port) = two_free_ports();
        let process = self.spawn_in(&dir, role, proxy_port, ops_port);
        Proxy { process, role, proxy_port, ops_port, dir }
    }

    fn spawn_in(&self, dir: &TempDir, role: Role, proxy_port: u16, ops_port: u16) -> Process {
        let builder = self.clone().listening_on(proxy_port, ops_port);
        let config = dir.path().join("proxy.yaml");
        std::fs::write(&config, builder.config_text()).expect("the directory is writable");
        let (name, command) = match role {
            Role::Serve => ("proxy", "serve"),
            Role::Relay => ("relay", "relay"),
        };
        let command = [BINARY, command, "--config", &config.display().to_string()].map(str::to_owned);
        let envs: Vec<_> = builder.envs.into_iter().collect();
        Process::start(name, dir.path(), &command, &envs, OnOrphaned::Kill, None).show_output_on_panic()
    }
}

/// One may be given twice: it is free until somebody listens there.
fn two_free_ports() -> (u16, u16) {
    let first = free_port();
    loop {
        let second = free_port();
        if second != first {
            return (first, second);
        }
    }
}

fn started(attempt: Result<Proxy, Ended>) -> Proxy {
    attempt.unwrap_or_else(|ended| panic!("the proxy does not start: {}\n{}", ended.status, ended.stderr))
}

impl Proxy {
    /// `None` once it is up, the exit status if it ends instead.
    async fn wait_until_up(&mut self, wait: Wait) -> Option<ExitStatus> {
        let path = match wait {
            Wait::Ready => "/readyz",
            Wait::Live => "/livez",
        };
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if let Some(status) = self.process.exited() {
                return Some(status);
            }
            // Nobody may be listening yet, on either port.
            if tokio::net::TcpStream::connect(self.ops_address()).await.is_ok()
                && (self.role == Role::Relay || tokio::net::TcpStream::connect(self.address()).await.is_ok())
                && client::request(self.ops_address(), "GET", path, &[]).await.status == 200
            {
                return None;
            }
            assert!(Instant::now() < deadline, "{path} has not answered 200 in {START_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Runs the binary to its end with nothing but these variables (and PATH, HOME, TMPDIR) in its environment.
pub(crate) async fn run_binary(arguments: &[&str], envs: &[(String, String)]) -> Ended {
    begin_binary(arguments, envs, server_dir()).end(Duration::from_secs(60)).await
}

/// `files` is kept for as long as it runs.
fn begin_binary(arguments: &[&str], envs: &[(String, String)], files: TempDir) -> Running {
    let dir = server_dir();
    let command: Vec<String> = std::iter::once(&BINARY).chain(arguments).map(|word| (*word).to_owned()).collect();
    let process = Process::start("proxy", dir.path(), &command, envs, OnOrphaned::Kill, None);
    Running { process: process.show_output_on_panic(), peak_rss_bytes: 0, _dirs: [dir, files] }
}

impl Running {
    /// Sends a signal by name, for example "INT".
    pub(crate) fn signal(&mut self, signal: &str) {
        self.process.signal(signal);
    }

    /// Waits for its end; panics when it has not come within `limit`.
    pub(crate) async fn end(&mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.process.exited() {
                return Ended { status, stdout: self.process.stdout(), stderr: self.process.stderr() };
            }
            // Once it has ended, Linux tells no more of its memory.
            self.peak_rss_bytes = memory(self.process.pid(), "VmHWM:").unwrap_or(self.peak_rss_bytes);
            assert!(Instant::now() < deadline, "it is still running after {limit:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The most resident memory it has had while somebody waited for its end.
    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        self.peak_rss_bytes
    }
}

/// A field of `/proc/PID/status`, in bytes; none once the process has ended.
fn memory(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

impl Metrics {
    /// Reads the Prometheus text format.
    pub(crate) fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect();
        Metrics { samples }
    }

    /// Every name.
    pub(crate) fn names(&self) -> std::collections::BTreeSet<String> {
        self.samples.iter().map(|sample| sample.name.clone()).collect()
    }

    /// Every sample of that name.
    pub(crate) fn named(&self, name: &str) -> Vec<&Sample> {
        self.samples.iter().filter(|sample| sample.name == name).collect()
    }

    /// The sum over all labels; panics when there is no sample of that name.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let samples = self.named(name);
        assert!(!samples.is_empty(), "no metric is called {name}");
        samples.iter().map(|sample| sample.value).sum()
    }

    /// The value of a label of the only sample of a metric.
    pub(crate) fn label(&self, name: &str, label: &str) -> String {
        let samples = self.named(name);
        assert_eq!(samples.len(), 1, "{name}: {samples:?}");
        samples[0].labels[label].clone()
    }

    /// The sum over the samples that have these labels among theirs; `None` when there is none.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matches = |sample: &&&Sample| {
            labels.iter().all(|(label, value)| sample.labels.get(*label).is_some_and(|other| other == value))
        };
        let samples = self.named(name);
        let matching: Vec<_> = samples.iter().filter(matches).collect();
        (!matching.is_empty()).then(|| matching.iter().map(|sample| sample.value).sum())
    }
}

/// `name{label="value",…} number [timestamp]`
fn sample(line: &str) -> Option<Sample> {
    let (name, mut rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.trim_start_matches(',').trim().to_owned(), value);
            rest = after.trim_start_matches(',');
        }
        rest = &rest[1..];
    }
    let number = rest.split_whitespace().next()?;
    let value = match number {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, escapes resolved, and what follows the quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}
