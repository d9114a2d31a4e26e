//! A real browser, without a screen: what a page becomes once its scripts have run.

use std::time::Duration;

use super::process::{OnOrphaned, Process, server_dir};

/// How long a page may take, start and end of the browser included.
const LIMIT: Duration = Duration::from_secs(60);

/// The page at this URL as Chromium has it when its scripts have nothing left to wait for, as HTML.
pub(crate) async fn page(url: &str) -> String {
    let dir = server_dir();
    let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
    let command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--no-proxy-server",
        &profile,
        // Time passes only while no request is under way: that is how long scripts may wait for anything else.
        "--virtual-time-budget=10000",
        "--dump-dom",
        url,
    ];
    let command = command.map(str::to_owned);
    let mut browser = Process::start("chromium", dir.path(), &command, &[], OnOrphaned::Kill, None);
    let status = browser.wait(LIMIT).await;
    assert!(status.success(), "chromium: {status}\n{}", browser.stderr());
    browser.stdout()
}
