//! The access log: one JSON line a request, gathered in memory and written by a thread of its own.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus::IntCounter;

/// How often lines are written: a request never makes a system call for its line. Often enough that a busy second's lines
/// are still in the processor's cache.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

/// The most that waits to be written, in bytes. Beyond it lines are dropped and counted: a log that nobody reads must not
/// stop requests or eat memory.
const MAX_BUFFERED: usize = 4 << 20;

/// What becomes of a request that the proxy serves itself, as the log names it.
pub(crate) const ANSWERED: &str = "answered";

/// What becomes of a request that is answered with a failure before the gate has ruled on it.
pub(crate) const REFUSED: &str = "refused";

/// One line. A member that is unknown is null.
pub(crate) struct Line<'a> {
    /// When the request's headers had been read.
    pub begun: SystemTime,
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
    /// The licence's age.
    pub license_age: Option<Duration>,
    /// What stood in for a confirmed licence.
    pub fallback: Option<&'a str>,
    /// The mode that applied.
    pub mode: &'a str,
    /// Of the configuration that applied.
    pub config_hash: &'a str,
    /// What the upstream answered, if it did.
    pub upstream_status: Option<u16>,
    /// Spent deciding.
    pub gate: Duration,
    /// The whole request.
    pub total: Duration,
    /// The raw target, query string and all, where configuration asks for it.
    pub target: Option<&'a str>,
}

/// Where lines are gathered.
#[derive(Clone)]
pub(crate) struct AccessLog {
    shared: Arc<Shared>,
    dropped: IntCounter,
}

struct Shared {
    buffer: Mutex<Buffer>,
    /// Whoever writes holds it from before the lines are taken, so that lines stay in order and none is on its way when the
    /// last are written.
    sink: Mutex<Box<dyn Write + Send>>,
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
        let shared = Arc::new(Shared { buffer: Mutex::default(), sink: Mutex::new(Box::new(sink)) });
        let lines_of = Arc::downgrade(&shared);
        #[expect(clippy::disallowed_methods, reason = "a thread of its own, which runs no task")]
        std::thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let mut spare = Vec::new();
            while let Some(shared) = lines_of.upgrade() {
                shared.write_out(&mut spare);
                drop(shared);
                std::thread::sleep(FLUSH_INTERVAL);
            }
        })?;
        Ok(Self { shared, dropped })
    }

    /// Put down one line.
    pub(crate) fn write(&self, line: &Line<'_>) {
        let mut buffer = self.shared.buffer.lock();
        let Buffer { lines, clock } = &mut *buffer;
        if lines.len() > MAX_BUFFERED {
            self.dropped.inc();
            return;
        }
        line.write(clock, lines);
    }

    /// Write everything that has been put down so far. For the end of the program.
    pub(crate) fn flush(&self) {
        self.shared.write_out(&mut Vec::new());
    }
}

impl Shared {
    /// Write the lines that wait; `spare` takes their place and is given back empty.
    fn write_out(&self, spare: &mut Vec<u8>) {
        let mut sink = self.sink.lock();
        std::mem::swap(&mut self.buffer.lock().lines, spare);
        if !spare.is_empty() {
            // Whoever closed our standard output does not want the lines.
            let _ = sink.write_all(spare).and_then(|()| sink.flush());
            spare.clear();
        }
    }
}

impl Line<'_> {
    /// Write the line as JSON. By hand: a general serialiser took more than a quarter of all the
    /// instructions that the gate added to a request.
    fn write(&self, clock: &mut Clock, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"ts\":\"");
        clock.write(self.begun, out);
        out.push(b'"');
        token(out, ",\"request_id\":", Some(self.request_id));
        token(out, ",\"trace_id\":", self.trace_id);
        token(out, ",\"tenant_id\":", self.tenant_id);
        token(out, ",\"method\":", Some(self.method));
        text(out, ",\"path\":", Some(self.path));
        number(out, ",\"status\":", Some(self.status));
        token(out, ",\"decision\":", Some(self.decision));
        token(out, ",\"reason\":", self.reason);
        token(out, ",\"feature\":", self.feature);
        text(out, ",\"rule\":", self.rule);
        text(out, ",\"plan\":", self.plan);
        number(out, ",\"revision\":", self.revision);
        token(out, ",\"layer\":", self.layer);
        number(out, ",\"license_age_ms\":", self.license_age.map(|age| age.as_millis()));
        token(out, ",\"fallback\":", self.fallback);
        token(out, ",\"mode\":", Some(self.mode));
        token(out, ",\"config_hash\":", Some(self.config_hash));
        number(out, ",\"upstream_status\":", self.upstream_status);
        number(out, ",\"gate_us\":", Some(self.gate.as_micros()));
        number(out, ",\"total_ms\":", Some(self.total.as_millis()));
        out.push(b'.');
        decimals(self.total.subsec_micros() % 1000, out);
        if self.target.is_some() {
            text(out, ",\"target\":", self.target);
        }
        out.extend_from_slice(b"}\n");
    }
}

/// A member whose value holds nothing that JSON escapes (RFC 8259 section 7): names of ours, ids, methods.
fn token(out: &mut Vec<u8>, member: &str, value: Option<&str>) {
    out.extend_from_slice(member.as_bytes());
    match value {
        None => out.extend_from_slice(b"null"),
        Some(value) => {
            out.push(b'"');
            out.extend_from_slice(value.as_bytes());
            out.push(b'"');
        }
    }
}

/// A member whose value may hold anything.
fn text(out: &mut Vec<u8>, member: &str, value: Option<&str>) {
    // Without an early end, so that many bytes are looked at at once.
    let escapes = |value: &str| value.bytes().fold(false, |any, b| any | (b < 0x20) | (b == b'"') | (b == b'\\'));
    match value {
        Some(value) if escapes(value) => {
            out.extend_from_slice(member.as_bytes());
            // Writing to a vector can't fail, and a str is always valid JSON text.
            let _ = serde_json::to_writer(out, value);
        }
        value => token(out, member, value),
    }
}

fn number(out: &mut Vec<u8>, member: &str, value: Option<impl itoa::Integer>) {
    out.extend_from_slice(member.as_bytes());
    match value {
        None => out.extend_from_slice(b"null"),
        Some(value) => out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes()),
    }
}

/// A number below 1000, with leading zeros.
fn decimals(thousandths: u32, out: &mut Vec<u8>) {
    let digit = |place: u32| b'0' + u8::try_from(thousandths / place % 10).unwrap_or_default();
    out.extend_from_slice(&[digit(100), digit(10), digit(1)]);
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
        out.push(b'.');
        decimals(since_epoch.subsec_millis(), out);
        out.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_json_whatever_is_in_it() {
        let nasty = "/a\"b\\c\u{7f}\u{1}\n/é\u{2028}";
        let full = Line {
            begun: SystemTime::UNIX_EPOCH,
            request_id: "id",
            trace_id: Some("t"),
            tenant_id: Some("tenant"),
            method: "GET",
            path: nasty,
            status: 402,
            decision: "denied",
            reason: Some("no_license"),
            feature: Some("crm"),
            rule: Some(nasty),
            plan: Some(nasty),
            revision: Some(-1),
            layer: Some("memory"),
            license_age: Some(Duration::from_millis(1234)),
            fallback: Some("stale"),
            mode: "enforce",
            config_hash: "0",
            upstream_status: Some(200),
            gate: Duration::from_nanos(12_999),
            total: Duration::from_micros(3_045_007),
            target: Some(nasty),
        };
        let empty = Line {
            trace_id: None,
            tenant_id: None,
            reason: None,
            feature: None,
            rule: None,
            plan: None,
            revision: None,
            layer: None,
            license_age: None,
            fallback: None,
            upstream_status: None,
            target: None,
            ..full
        };
        let written = |line: &Line<'_>| -> serde_json::Value {
            let mut out = Vec::new();
            line.write(&mut Clock::default(), &mut out);
            assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1, "one line");
            serde_json::from_slice(&out).expect("JSON")
        };
        let json = written(&full);
        for member in ["path", "rule", "plan", "target"] {
            assert_eq!(json[member], nasty, "{member}");
        }
        assert_eq!(
            (&json["gate_us"], &json["license_age_ms"], &json["revision"]),
            (&12.into(), &1234.into(), &(-1).into())
        );
        assert_eq!(json["total_ms"].as_f64(), Some(3045.007));
        let json = written(&empty);
        assert!(json["plan"].is_null() && json["revision"].is_null() && json.get("target").is_none());
        assert_eq!(json.as_object().map(serde_json::Map::len), Some(21));
    }

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
