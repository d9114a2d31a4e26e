//! A real browser, without a screen: what a page becomes once its scripts have run, and tabs that a test works in.
//!
//! A [`Browser`] is Chromium under Playwright, whose driver is `browser.mjs`; each call to it is a connection of its own over
//! a Unix socket, so calls may run side by side.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::process::{OnOrphaned, Process, server_dir};

/// How long a page may take, start and end of the browser included.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a call to a tab may take, unless the test says otherwise: [`Tab::within`].
const CALL_LIMIT: Duration = Duration::from_secs(30);

const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/browser.mjs");
const PLAYWRIGHT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/frontend/node_modules/playwright-core/package.json");
const AXE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/frontend/node_modules/axe-core/axe.min.js");

/// What every Chromium here is started with: root has no sandbox, and nothing but the tests' pages is to be asked for.
const FLAGS: [&str; 9] = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
];

/// The page at this URL as Chromium has it when its scripts have nothing left to wait for, as HTML.
pub(crate) async fn page(url: &str) -> String {
    let dir = server_dir();
    let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
    // Time passes only while no request is under way: that is how long scripts may wait for anything else.
    let of_this_page = ["--headless", &profile, "--virtual-time-budget=10000", "--dump-dom", url];
    let command: Vec<_> =
        ["chromium"].iter().chain(&FLAGS).chain(&of_this_page).map(|word| (*word).to_owned()).collect();
    let mut browser = Process::start("chromium", dir.path(), &command, &[], OnOrphaned::Kill, None);
    let status = browser.wait(LIMIT).await;
    assert!(status.success(), "chromium: {status}\n{}", browser.stderr());
    browser.stdout()
}

/// A running Chromium with one profile, empty at first. It is gone when this value is, or when the test process is.
pub(crate) struct Browser {
    driver: Process,
    socket: PathBuf,
    _dir: TempDir,
}

/// A tab of a [`Browser`], 1280 by 720, English, in UTC. A clone is the same tab.
///
/// Every call panics when it cannot do what it says within the tab's limit, with what the page has said since its start.
#[derive(Clone)]
pub(crate) struct Tab {
    socket: PathBuf,
    number: u64,
    limit: Duration,
}

impl Browser {
    pub(crate) async fn start() -> Browser {
        let missing = "frontend/node_modules is missing: run scripts/test, or `npm ci --prefix frontend`";
        assert!(Path::new(PLAYWRIGHT).is_file() && Path::new(AXE).is_file(), "{missing}");
        let (node, chromium) = (program("node", "nodejs"), program("chromium", "chromium"));
        let dir = server_dir();
        let socket = dir.path().join("driver.sock");
        let driver = [node.as_path(), Path::new(DRIVER), &socket, &chromium].map(|word| word.display().to_string());
        let command: Vec<_> = driver.into_iter().chain(FLAGS.map(str::to_owned)).collect();
        // The profile is kept with the rest.
        let envs = [("TMPDIR".to_owned(), dir.path().display().to_string())];
        let driver = Process::start("browser", dir.path(), &command, &envs, OnOrphaned::Kill, None);
        let mut browser = Browser { driver: driver.show_output_on_panic(), socket, _dir: dir };
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(&browser.socket).await.is_err() {
            let ended = browser.driver.exited();
            assert!(ended.is_none(), "the browser does not start: {ended:?}\n{}", browser.driver.stderr());
            assert!(Instant::now() < deadline, "the browser has not started in {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        browser
    }

    /// A new tab. All tabs share cookies and storage.
    pub(crate) async fn tab(&self) -> Tab {
        let number = call(&self.socket, None, CALL_LIMIT, "tab", json!([])).await;
        let number = number.as_u64().expect("the driver numbers its tabs");
        Tab { socket: self.socket.clone(), number, limit: CALL_LIMIT }
    }

    /// Takes the network from all tabs, or gives it back: requests fail, and pages are told by `online` and `offline`.
    ///
    /// What is under way goes on, an open stream of events too, as it may where a network has just gone.
    pub(crate) async fn set_offline(&self, offline: bool) {
        call(&self.socket, None, CALL_LIMIT, "setOffline", json!([offline])).await;
    }

    /// The driver and every process of the browser, at this moment.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let processes = std::fs::read_dir("/proc").expect("Linux lists its processes");
        let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
        let mut found = vec![self.driver.pid()];
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            found.extend(parents.iter().filter(|(_, other)| *other == parent).map(|(pid, _)| pid));
            next += 1;
        }
        found
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        self.driver.stop("TERM", Duration::from_secs(5));
    }
}

impl Tab {
    /// The same tab with another limit for its calls.
    pub(crate) fn within(&self, limit: Duration) -> Tab {
        Tab { limit, ..self.clone() }
    }

    /// Goes to this URL and waits for the page's `load`, whatever the status is.
    pub(crate) async fn goto(&self, url: &str) {
        self.call("goto", json!([url])).await;
    }

    pub(crate) async fn reload(&self) {
        self.call("reload", json!([])).await;
    }

    /// The address it is at.
    pub(crate) async fn url(&self) -> String {
        text(&self.call("url", json!([])).await)
    }

    pub(crate) async fn close(self) {
        self.call("close", json!([])).await;
    }

    /// What the function of this text makes of `argument` in the page: `(x) => x + 1`. A promise is awaited; what JSON cannot
    /// say is null.
    pub(crate) async fn evaluate(&self, js: &str, argument: impl Into<Value>) -> Value {
        self.call("evaluate", json!([js, argument.into()])).await
    }

    /// Evaluates the function again and again until it returns something true, or a promise of it, and returns that.
    pub(crate) async fn wait_until(&self, js: &str, argument: impl Into<Value>, limit: Duration) -> Value {
        self.within(limit).call("waitUntil", json!([js, argument.into()])).await
    }

    /// Waits until text that contains this one, whatever its case, is seen on the page.
    pub(crate) async fn wait_for_text(&self, text: &str) {
        self.call("waitForText", json!([text])).await;
    }

    /// The text that is seen of the only element a CSS selector finds, waiting for it.
    pub(crate) async fn text(&self, selector: &str) -> String {
        text(&self.call("text", json!([selector])).await)
    }

    /// How many elements of this role and exact name there are for assistive technology, now.
    pub(crate) async fn count(&self, role: &str, name: &str) -> usize {
        let count = self.call("count", json!([role, name])).await;
        count.as_u64().and_then(|count| usize::try_from(count).ok()).expect("a count")
    }

    /// Clicks the only element of this role and exact name, once it can be clicked: `click("button", "Upgrade")`.
    pub(crate) async fn click(&self, role: &str, name: &str) {
        self.call("click", json!([role, name])).await;
    }

    /// Presses a key or several at once: `Tab`, `Enter`, `Shift+Tab`.
    pub(crate) async fn press(&self, key: &str) {
        self.call("press", json!([key])).await;
    }

    /// Replaces the text of the field with this label.
    pub(crate) async fn fill(&self, label: &str, text: &str) {
        self.call("fill", json!([label, text])).await;
    }

    /// Runs this script at the start of every page from now on, before the page's own.
    pub(crate) async fn add_init_script(&self, js: &str) {
        self.call("addInitScript", json!([js])).await;
    }

    /// Freezes the tab, as Chromium does with one in the background: it is hidden and has lost focus, is told so and then
    /// `freeze`, and runs no timer and hears of no answer, event of a stream or change of the storage until it is thawed.
    ///
    /// [`Tab::evaluate`] still runs in it (what waits for an answer does so in vain), and so do messages of a
    /// `BroadcastChannel`.
    pub(crate) async fn freeze(&self) {
        self.call("freeze", json!([])).await;
    }

    /// Lets a frozen tab go on: `resume`, what it has missed, and it is in front and focused again.
    pub(crate) async fn thaw(&self) {
        self.call("thaw", json!([])).await;
    }

    /// Writes the whole page as a PNG.
    pub(crate) async fn screenshot(&self, path: &Path) {
        self.call("screenshot", json!([path])).await;
    }

    /// What axe-core finds wrong with the page as it is: `id`, `impact`, `help`, and in `nodes` the HTML of each place.
    pub(crate) async fn accessibility(&self) -> Vec<Value> {
        list(self.call("accessibility", json!([])).await)
    }

    /// Every uncaught error, and every error and warning on the console, since the start of the tab.
    pub(crate) async fn problems(&self) -> Vec<String> {
        list(self.call("problems", json!([])).await).iter().map(text).collect()
    }

    /// The requests whose URL contains this, in the order they were sent, once they are answered or have failed: `method`,
    /// `url`, `status` or `failure` (or both), and whether they are `finished`, which a stream is not.
    ///
    /// WebSockets, preflights and the icon of the site are not among them.
    pub(crate) async fn requests(&self, substring: &str) -> Vec<Value> {
        list(self.call("requests", json!([substring])).await)
    }

    async fn call(&self, name: &str, arguments: Value) -> Value {
        call(&self.socket, Some(self.number), self.limit, name, arguments).await
    }
}

/// Has the driver do something and returns what it says; panics with its message when it could not.
async fn call(socket: &Path, tab: Option<u64>, limit: Duration, name: &str, arguments: Value) -> Value {
    let what: String = format!("{name} {arguments}").chars().take(300).collect();
    let asked = json!({ "call": name, "tab": tab, "limit": limit.as_millis(), "arguments": arguments });
    // The driver keeps the limit: it knows more to say.
    let answered = tokio::time::timeout(limit + Duration::from_secs(10), ask(socket, asked.to_string())).await;
    let answered = answered.unwrap_or_else(|_| panic!("{what}: the browser's driver does not answer"));
    let answered = answered.unwrap_or_else(|error| panic!("{what}: the browser has ended: {error}"));
    let mut answer: Value =
        serde_json::from_str(&answered).unwrap_or_else(|error| panic!("{what}: {error}: {answered:?}"));
    if let Some(error) = answer["error"].as_str() {
        let problems: Vec<_> = answer["problems"].as_array().into_iter().flatten().map(text).collect();
        let (url, problems) = (answer["url"].as_str().unwrap_or("no tab"), problems.join("\n"));
        panic!("{what}, at {url}: {error}\n--- problems of the page ---\n{problems}\n---");
    }
    answer["value"].take()
}

async fn ask(socket: &Path, asked: String) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(asked.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answered = String::new();
    stream.read_to_string(&mut answered).await?;
    Ok(answered)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn list(value: Value) -> Vec<Value> {
    let Value::Array(items) = value else { panic!("not a list: {value}") };
    items
}

/// The fourth field of `/proc/PID/stat`, whose second may contain anything in parentheses.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn program(name: &str, package: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|program| program.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed (not in PATH). On Debian: apt-get install {package}"))
}
