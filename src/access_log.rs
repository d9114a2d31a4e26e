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

/// One line, behind its time. A member that is unknown is null.
#[derive(Serialize)]
pub(crate) struct Line<'a> {
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
    buffer: Arc<Mutex<Buffer>>,
    dropped: IntCounter,
}

#[derive(Default)]
struct Buffer {
    lines: Vec<u8>,
    clock: Clock,
}

/// Writes times as RFC 3339 in UTC with milliseconds. Requests of the same second share all but these.
#[derive(Default)]
struct Clock {
    second: u64,
    text: String,
}

impl AccessLog {
    /// Gather lines for `sink`, which a new thread writes them to.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(sink: impl Write + Send + 'static, dropped: IntCounter) -> std::io::Result<Self> {
        let log = Self { buffer: Arc::default(), dropped };
        let buffer = Arc::downgrade(&log.buffer);
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut sink = sink;
            let mut lines = Vec::new();
            while let Some(buffer) = buffer.upgrade() {
                std::mem::swap(&mut buffer.lock().lines, &mut lines);
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

    /// Put down one line: a request whose headers had been read at `begun`.
    pub(crate) fn write(&self, begun: SystemTime, line: &Line<'_>) {
        let mut buffer = self.buffer.lock();
        let Buffer { lines, clock } = &mut *buffer;
        if lines.len() > MAX_BUFFERED {
            self.dropped.inc();
            return;
        }
        let start = lines.len();
        lines.extend_from_slice(b"{\"ts\":\"");
        clock.write(begun, lines);
        lines.push(b'"');
        let members = lines.len();
        if serde_json::to_writer(&mut *lines, line).is_ok() {
            // The object's members follow those already there.
            lines[members] = b',';
            lines.push(b'\n');
        } else {
            lines.truncate(start);
        }
    }

    /// Wait until everything put down so far has been taken up for writing. For the end of the program.
    pub(crate) fn flush(&self) {
        let deadline = std::time::Instant::now() + 5 * FLUSH_INTERVAL;
        while !self.buffer.lock().lines.is_empty() && std::time::Instant::now() < deadline {
            std::thread::sleep(FLUSH_INTERVAL / 10);
        }
        std::thread::sleep(FLUSH_INTERVAL / 10);
    }
}

impl Clock {
    fn write(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second != since_epoch.as_secs() || self.text.is_empty() {
            self.second = since_epoch.as_secs();
            let second = i64::try_from(self.second).unwrap_or_default();
            self.text = jiff::Timestamp::from_second(second).unwrap_or_default().to_string();
            self.text.pop();
        }
        out.extend_from_slice(self.text.as_bytes());
        let millis = since_epoch.subsec_millis();
        let digit = |place: u32| b'0' + u8::try_from(millis / place % 10).unwrap_or_default();
        out.extend_from_slice(&[b'.', digit(100), digit(10), digit(1), b'Z']);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let mut clock = Clock::default();
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (7, "1970-01-01T00:00:00.007Z"),
            (1_790_000_000_120, "2026-09-21T14:13:20.120Z"),
            (1_790_000_000_999, "2026-09-21T14:13:20.999Z"),
            (1_790_000_001_000, "2026-09-21T14:13:21.000Z"),
        ] {
            let mut out = Vec::new();
            clock.write(SystemTime::UNIX_EPOCH + Duration::from_millis(millis), &mut out);
            assert_eq!(String::from_utf8_lossy(&out), expected);
        }
    }
}
