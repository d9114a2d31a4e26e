//! Answers to those whose request was never read, or is not going to be: heads that are too slow, too large or malformed, and
//! connections beyond the limit. They are logged and counted as all others are.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use licensing::answer::{Answer, Failure, Format};
use licensing::reason::Reason;
use pingora::protocols::http::date::get_cached_date;

use crate::access_log::{AccessLog, Line, REFUSED};
use crate::gate::Gate;
use crate::metrics::{Limit, Metrics, Outcome};
use crate::request_id;
use crate::snapshot::Snapshots;

/// What tells HTTP/2 clients that there is no room: no settings, and GOAWAY without any stream taken up, so that all can be
/// tried again elsewhere; ENHANCE_YOUR_CALM (RFC 9113 sections 6.5, 6.8 and 7).
pub(super) const GO_AWAY: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";

/// Why a client is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// What it sent is no request.
    Malformed,
    /// The head has too many lines, or is too large.
    HeadersTooLarge,
    /// The target alone is too large.
    TargetTooLong,
    /// The head did not arrive in time.
    TooSlow,
    /// There are as many connections as may be.
    Overloaded,
}

/// What they are answered from.
pub(crate) struct Doorman {
    pub(crate) gate: Arc<Gate>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) snapshots: Snapshots,
    pub(crate) access_log: Option<AccessLog>,
}

impl Doorman {
    /// A limit was reached.
    pub(super) fn count(&self, limit: Limit) {
        self.metrics.limited.of(limit).inc();
    }

    /// The answer as HTTP/1.1 has it, whatever the client speaks; `took` is how long it was waited for.
    pub(super) fn answer(&self, refusal: Refusal, took: Duration) -> Vec<u8> {
        let snapshot = self.snapshots.load();
        let policy = &snapshot.policy;
        let id = request_id::of(None);
        let id = id.to_str().unwrap_or_default();
        let mut reason = None;
        let failed = |limit, failure| {
            self.count(limit);
            policy.answers.failure(failure, id, Format::Json)
        };
        let answer = match refusal {
            Refusal::Malformed => {
                reason = Some(Reason::RequestMalformed);
                let ruling = self.gate.refuse_framing(policy, Instant::now());
                match ruling.denial() {
                    Some(denial) => policy.answers.denial(&denial, &policy.plans, ruling.decided_at, id, Format::Json),
                    None => policy.answers.failure(Failure::RequestBroken, id, Format::Json),
                }
            }
            Refusal::HeadersTooLarge => failed(Limit::Headers, Failure::HeadersTooLarge),
            Refusal::TargetTooLong => failed(Limit::UriBytes, Failure::TargetTooLong),
            Refusal::TooSlow => failed(Limit::HeaderTimeout, Failure::RequestTimeout),
            Refusal::Overloaded => failed(Limit::Connections, Failure::Overloaded),
        };
        if let Some(log) = &self.access_log {
            log.write(&Line {
                begun: SystemTime::now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH),
                request_id: id,
                trace_id: None,
                tenant_id: None,
                method: "",
                path: "",
                status: answer.status,
                decision: if reason.is_some() { Outcome::Denied.as_str() } else { REFUSED },
                reason: reason.map(Reason::name),
                feature: None,
                rule: None,
                plan: None,
                revision: None,
                layer: None,
                license_age: None,
                fallback: None,
                mode: policy.enforcement.mode().as_str(),
                config_hash: &snapshot.config_hash,
                upstream_status: None,
                gate: Duration::ZERO,
                total: took,
                target: None,
            });
        }
        written(&answer)
    }
}

/// The last answer of a connection, as bytes.
fn written(answer: &Answer) -> Vec<u8> {
    let Answer { status, headers, body } = answer;
    let words = StatusCode::from_u16(*status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let date = get_cached_date();
    let mut head = format!("HTTP/1.1 {status} {words}\r\nDate: {}\r\n", date.to_str().unwrap_or_default());
    for (name, value) in headers {
        // Writing to a string can't fail.
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = write!(head, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_as_http_has_it() {
        let headers = vec![("Retry-After", "1".to_owned())];
        let bytes = written(&Answer { status: 503, headers, body: b"{}".to_vec() });
        let text = String::from_utf8(bytes).expect("text");
        let (first, rest) = text.split_once("\r\nDate: ").expect("a date");
        assert_eq!(first, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(
            rest.split_once("\r\n").expect("a line").1,
            "Retry-After: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        );
    }

    #[test]
    fn http2_is_told_in_two_frames() {
        let mut rest = GO_AWAY;
        let mut kinds = Vec::new();
        while let [_, _, length, kind, _, _, _, _, _, payload @ ..] = rest {
            kinds.push(*kind);
            rest = &payload[usize::from(*length)..];
        }
        assert_eq!((kinds, rest.len()), (vec![4, 7], 0));
    }
}
