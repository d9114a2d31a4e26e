//! The access log: one JSON line a request, gathered in memory and written by a thread of its own.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus::IntCounter;
use serde::Serialize;

/// How often lines are written: a request never makes a system call for its line.
const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

/// The most that waits to be written, in bytes. Beyond it lines are dropped and counted: a log that nobody reads must not
/// stop requests or eat memory.
const MAX_BUFFERED: usize = 4 << 20;

/// One line. A member that is unknown is null.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
    /// When the request's headers had been read, RFC 3339.
    pub ts: &'a str,
    /// The request's id, also the upstream's.
    pub request_id: &'a str,
    /// From `traceparent` (W3C Trace Context).
    pub trace_id: Option<&'a str>,
    /// Canonical.
    pub tenant_id: Option<&'a str>,
    /// As it came.
    pub method: &'a str,
    /// Without the query string, which may hold secrets.
    pub path: &'a str,
    /// What the client was answered; 0 if it left before.
    pub status: u16,
    /// What became of the request.
    pub decision: &'a str,
    /// Why it was denied, or would have been.
    pub reason: Option<&'a str>,
    /// The feature that decided.
    pub feature: Option<&'a str>,
    /// The rule that decided.
    pub rule: Option<&'a str>,
    /// The licence's plan.
    pub plan: Option<&'a str>,
    /// The licence's revision.
    pub revision: Option<i64>,
    /// The layer that answered.
    pub layer: Option<&'a str>,
    /// The licence's age in milliseconds.
    pub license_age_ms: Option<u64>,
    /// What stood in for a confirmed licence.
    pub fallback: Option<&'a str>,
    /// The mode that applied.
    pub mode: &'a str,
    /// Of the configuration that applied.
    pub config_hash: &'a str,
    /// What the upstream answered, if it did.
    pub upstream_status: Option<u16>,
    /// Spent deciding, in microseconds.
    pub gate_us: u64,
    /// The whole request, in milliseconds.
    pub total_ms: f64,
    /// The raw target, query string and all, where configuration asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<&'a str>,
}

/// Where lines are gathered.
#[derive(Clone)]
pub(crate) struct AccessLog {
    buffer: Arc<Mutex<Vec<u8>>>,
    dropped: IntCounter,
}

impl AccessLog {
    /// Gather lines for `sink`, which a new thread writes them to.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(sink: impl Write + Send + 'static, dropped: IntCounter) -> std::io::Result<Self> {
        let log = Self { buffer: Arc::default(), dropped };
        let buffer = Arc::downgrade(&log.buffer);
        #[expect(clippy::disallowed_methods, reason = "a thread of its own, which runs no task")]
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut sink = sink;
            let mut lines = Vec::new();
            while let Some(buffer) = buffer.upgrade() {
                std::mem::swap(&mut *buffer.lock(), &mut lines);
                drop(buffer);
                if !lines.is_empty() {
                    // Whoever closed our standard output does not want the lines.
                    let _ = sink.write_all(&lines).and_then(|()| sink.flush());
                    lines.clear();
                }
                std::thread::sleep(FLUSH_INTERVAL);
            }
        })?;
        Ok(log)
    }

    /// Put down one line.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut buffer = self.buffer.lock();
        if buffer.len() > MAX_BUFFERED {
            self.dropped.inc();
            return;
        }
        let before = buffer.len();
        if serde_json::to_writer(&mut *buffer, line).is_ok() {
            buffer.push(b'\n');
        } else {
            buffer.truncate(before);
        }
    }

    /// Wait until everything put down so far has been taken up for writing. For the end of the program.
    #[expect(clippy::disallowed_methods, reason = "called by a thread that runs no task")]
    pub(crate) fn flush(&self) {
        let deadline = std::time::Instant::now() + 5 * FLUSH_INTERVAL;
        while !self.buffer.lock().is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(FLUSH_INTERVAL / 10);
        }
        std::thread::sleep(FLUSH_INTERVAL / 10);
    }
}

/// `now` as RFC 3339 in UTC with milliseconds.
pub(crate) fn format_time(now: SystemTime) -> String {
    jiff::Timestamp::try_from(now).map(|time| format!("{time:.3}")).unwrap_or_default()
}
