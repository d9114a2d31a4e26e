//! Pingora's phases, and nothing else: each asks the module whose business it is.

mod connection;
mod doorman;
pub(crate) mod forward;
mod frames;
mod handover;
mod own;
mod paced;
mod respond;
mod upgrade;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Method, StatusCode};
use licensing::answer::{Answer, Failure};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::proxy::{FailToProxy, ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

pub(crate) use self::connection::Connections;
pub(crate) use self::doorman::Doorman;
use self::forward::Forward;
use self::handover::Handover;
use self::paced::Paced;
use crate::access_log::{ANSWERED, AccessLog, Line, REFUSED};
use crate::api::clicks::{Clicks, is_prefetch};
use crate::api::license::{Basis, LicenseApi};
use crate::api::paths::Endpoint;
use crate::api::upgrade::UpgradeApi;
use crate::gate::{Gate, Ruling, Step};
use crate::intake::{Facts, Fault};
use crate::load::{self, Load};
use crate::metrics::{Limit, Metrics};
use crate::request_id;
use crate::snapshot::{DrainBounds, Snapshot, Snapshots};

/// What a body that is larger than it may be is called on its way from one phase to another.
const TOO_LARGE: u16 = 413;

/// What the phases share.
pub(crate) struct Proxy {
    pub(crate) gate: Arc<Gate>,
    pub(crate) load: Arc<Load>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) snapshots: Snapshots,
    pub(crate) license_api: Arc<LicenseApi>,
    pub(crate) upgrade_api: UpgradeApi,
    pub(crate) clicks: Clicks,
    pub(crate) access_log: Option<AccessLog>,
    /// Once true, connections are closed after the request they carry.
    pub(crate) draining: Arc<std::sync::atomic::AtomicBool>,
}

/// What one request gathers on its way.
pub(crate) struct Context {
    begun: Instant,
    begun_wall: SystemTime,
    /// By which configuration it is judged.
    snapshot: Arc<Snapshot>,
    request_id: HeaderValue,
    facts: Option<Facts>,
    ruling: Option<Ruling>,
    /// Whether it has been sent upstream, or a part of it.
    sent: bool,
    upstream_status: Option<u16>,
    /// Whether it had its answer without the gate.
    answered: bool,
    /// What such an answer of the licence API was made of.
    basis: Basis,
    /// What the connection becomes after this request, if it is no longer one of HTTP.
    handover: Mutex<Option<Handover>>,
    /// Its place among the requests in flight.
    in_flight: load::Request,
    /// How much of its body has been forwarded, in bytes.
    body_bytes: u64,
}

/// What becomes of a request on which the gate does not rule.
enum Instead {
    Answer(Answer),
    Fail(Failure),
    Own(Endpoint),
}

#[async_trait]
impl ProxyHttp for Proxy {
    /// Boxed, since pingora moves it about.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::new(Context {
            begun: Instant::now(),
            begun_wall: SystemTime::now(),
            snapshot: self.snapshots.load_full(),
            request_id: HeaderValue::from_static(""),
            facts: None,
            ruling: None,
            sent: false,
            upstream_status: None,
            answered: false,
            basis: Basis::default(),
            handover: Mutex::new(None),
            in_flight: self.load.request(),
            body_bytes: 0,
        })
    }

    /// No module: responses are passed on as they come.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(&self, session: &mut Session, context: &mut Box<Context>) -> Result<bool> {
        if self.draining.load(std::sync::atomic::Ordering::Relaxed) {
            session.set_keepalive(None);
        }
        // Without it pingora drops what a client sends before it has read its answer: the next request, or, where the
        // upgrade to a WebSocket is under way, its first messages.
        session.set_pipelining_enabled(true);
        let limits = &context.snapshot.limits;
        session.set_read_timeout(Some(limits.body_timeout));
        match session.stream().and_then(Paced::of) {
            Some(paced) => paced.pass(),
            // Over HTTP/2 a client may read all that comes and still let one stream wait.
            None => session.set_write_timeout(Some(limits.write_timeout)),
        }
        let request = session.req_header();
        if request.method == Method::OPTIONS && request.raw_path() == b"*" {
            return Box::pin(self.answer_options(session)).await;
        }
        match self.judge(session, context).await {
            Ok(ruling) if ruling.permit.is_some() => {
                context.ruling = Some(ruling);
                self.see_click(session.req_header(), context);
                Ok(false)
            }
            Ok(ruling) => Box::pin(self.deny(session, context, ruling)).await,
            Err(Instead::Fail(failure)) => Box::pin(self.fail(session, context, failure)).await,
            Err(Instead::Answer(answer)) => Box::pin(self.answer(session, context, answer)).await,
            Err(Instead::Own(endpoint)) => Box::pin(self.serve_own(session, context, endpoint)).await,
        }
    }

    async fn upstream_peer(&self, session: &mut Session, context: &mut Box<Context>) -> Result<Box<HttpPeer>> {
        match (context.ruling.as_ref().and_then(|ruling| ruling.permit.as_ref()), &context.facts) {
            (Some(_permit), Some(facts)) => {
                let upstream = context.snapshot.upstream.peer_for(facts);
                let upgrade = session.is_upgrade_req();
                Ok(Box::new(if upgrade { upgrade::peer_for_upgrade(upstream) } else { upstream.clone() }))
            }
            _ => Error::e_explain(ErrorType::InternalError, "a request without a permit"),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        let (Some(facts), Some(ruling)) = (&context.facts, &context.ruling) else {
            return Error::e_explain(ErrorType::InternalError, "a request without a ruling");
        };
        let forward = Forward {
            facts,
            ruling,
            tenant_headers: context.snapshot.intake.tenant_headers(),
            request_id: &context.request_id,
            is_http2: session.is_http2(),
        };
        context.sent = true;
        forward.rewrite(upstream)
    }

    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        _: bool,
        context: &mut Box<Context>,
    ) -> Result<()> {
        // Counted as it comes, whatever its coding: a length that was announced was looked at before.
        context.body_bytes += body.as_ref().map_or(0, |body| body.len() as u64);
        match context.snapshot.limits.body_bytes {
            Some(most) if context.body_bytes > most => Err(Error::new_down(ErrorType::HTTPStatus(TOO_LARGE))),
            _ => Ok(()),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        context: &mut Box<Context>,
    ) -> Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req() {
            // What follows would be told apart from an answer by nobody.
            return Error::e_explain(ErrorType::InvalidHTTPHeader, "a 101 that nobody asked for")
                .map_err(|error| error.into_up());
        }
        // A connection whose request has not been read to its end is closed after the answer, which a 100 is not.
        session.set_close_on_response_before_downstream_finish(!response.status.is_informational());
        context.upstream_status = Some(response.status.as_u16());
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            // How long a tunnel may be silent is the upstream's timeout alone.
            session.set_read_timeout(None);
            context.in_flight.becomes_tunnel();
        }
        let is_final = !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS;
        match &mut context.ruling {
            Some(ruling) if is_final => bill(ruling, response),
            _ => Ok(()),
        }
    }

    /// A connection that could not be made carried nothing, so any method may try again; how often, pingora counts.
    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        _: &mut Box<Context>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(!matches!(error.etype(), ErrorType::ConnectTimedout));
        error
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, context: &mut Box<Context>) -> FailToProxy {
        // An upstream that waits for the rest of a body is not slow: its client is.
        let starved = is_timeout_of_upstream(error) && !session.as_downstream_mut().is_body_done();
        let failure = if starved { Some(Failure::RequestTimeout) } else { failure_of(error) };
        if let Some(limit) = limit_of(failure, error) {
            self.metrics.limited.of(limit).inc();
        }
        if *error.esource() == ErrorSource::Upstream && !starved {
            self.metrics.upstream_errors.inc();
            let request_id = context.request_id.to_str().unwrap_or_default();
            tracing::warn!(request_id, %error, "the upstream failed");
        } else {
            tracing::debug!(%error, "a request failed");
        }
        let written = session.response_written().filter(|head| !head.status.is_informational());
        let error_code = match (written, failure) {
            (Some(head), _) => head.status.as_u16(),
            (None, None) => 0,
            (None, Some(failure)) => {
                session.set_keepalive(None);
                let status = self.say_failure(session, context, failure).await;
                status.unwrap_or(0)
            }
        };
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// Everything is in the access log, or has been logged where it was handled.
    fn suppress_error_log(&self, _: &Session, _: &Box<Context>, _: &Error) -> bool {
        true
    }

    fn persist_connection_context(
        &self,
        _: &Session,
        context: &Box<Context>,
    ) -> Option<Box<dyn std::any::Any + Send + Sync>> {
        context.handover.lock().take().map(|handover| Box::new(handover) as _)
    }

    async fn logging(&self, session: &mut Session, _: Option<&Error>, context: &mut Box<Context>) {
        if let Some(ruling) = context.ruling.as_mut().filter(|_| !context.sent) {
            ruling.charges.settle(None);
        }
        let elapsed = context.begun.elapsed();
        self.metrics.api_duration.observe(elapsed.as_secs_f64());
        if let Some(log) = &self.access_log {
            self.write_line(log, session, context, elapsed);
        }
    }
}

impl Proxy {
    /// Read a request and have the gate rule on it.
    ///
    /// # Errors
    /// When it can't be read, or has its answer without the gate.
    async fn judge(&self, session: &mut Session, context: &mut Context) -> std::result::Result<Ruling, Instead> {
        let Context { snapshot, facts, request_id, begun, begun_wall, in_flight, .. } = context;
        let limits = &snapshot.limits;
        let request = session.req_header();
        if !in_flight.enter(limits.requests) {
            *request_id = request_id::said_in(request);
            close_behind_a_body(session);
            return Err(self.limited(Limit::Requests, Failure::Overloaded));
        }
        let raw_head = || session.as_http1().map(|http1| http1.get_headers_raw_bytes()).unwrap_or_default();
        let facts = match snapshot.intake.read(request, raw_head, peer_ip(session), *begun_wall) {
            Ok(read) => facts.insert(read),
            Err(fault) => {
                *request_id = request_id::said_in(request);
                let (limit, failure) = match fault {
                    Fault::Malformed => {
                        // What comes after such a request on this connection can't be told apart from its body.
                        session.set_keepalive(None);
                        return Ok(self.gate.refuse_framing(&snapshot.policy, *begun));
                    }
                    Fault::HeadersTooLarge => (Limit::Headers, Failure::HeadersTooLarge),
                    Fault::TargetTooLong => (Limit::UriBytes, Failure::TargetTooLong),
                };
                return Err(self.limited(limit, failure));
            }
        };
        *request_id = request_id::of(facts.request_id.as_ref());
        if !in_flight.enter_as(facts.identity.tenant(), limits.requests_per_tenant) {
            return Err(self.limited(Limit::TenantRequests, Failure::Overloaded));
        }
        if limits.body_bytes.is_some_and(|most| announced_bytes(request) > most) {
            return Err(self.limited(Limit::BodyBytes, Failure::BodyTooLarge));
        }
        if let Some(answer) = respond::preflight(session, &snapshot.cors) {
            return Err(Instead::Answer(answer));
        }
        let (method, target) = (request.method.as_str(), request.raw_path());
        if let Some(endpoint) = snapshot.api.endpoint(target) {
            return Err(Instead::Own(endpoint));
        }
        match self.gate.rule(&snapshot.policy, method, target, facts.identity, *begun) {
            Step::Ruled(ruling) => Ok(ruling),
            // Boxed, as is every branch that waits: pingora moves this future about with each request.
            Step::Ask(question) => Ok(Box::pin(self.gate.ask(question)).await),
        }
    }

    /// A request is forwarded that may lead from a denial to an upgrade.
    fn see_click(&self, request: &RequestHeader, context: &Context) {
        let Some(facts) = &context.facts else { return };
        if let Some(tenant) = facts.identity.tenant()
            && request.method == Method::GET
            && context.snapshot.upgrade_links.lead_to(request.raw_path())
            && !is_prefetch(&request.headers)
        {
            let host = facts.host.as_ref().map(HeaderValue::as_bytes);
            self.clicks.seen(tenant, &context.snapshot, host, request.raw_path());
        }
    }

    /// A request that is refused since a limit is met.
    fn limited(&self, limit: Limit, failure: Failure) -> Instead {
        self.metrics.limited.of(limit).inc();
        Instead::Fail(failure)
    }

    async fn answer(&self, session: &mut Session, context: &mut Context, mut answer: Answer) -> Result<bool> {
        let Snapshot { cors, drain, .. } = &*context.snapshot;
        context.answered = true;
        answer.headers.push(("X-Request-ID", context.request_id.to_str().unwrap_or_default().to_owned()));
        respond::respond(session, answer, cors, *drain).await?;
        Ok(true)
    }

    async fn deny(&self, session: &mut Session, context: &mut Context, ruling: Ruling) -> Result<bool> {
        let Snapshot { policy, cors, drain, .. } = &*context.snapshot;
        let ruling = context.ruling.insert(ruling);
        if let Some(denial) = ruling.denial() {
            let id = context.request_id.to_str().unwrap_or_default();
            let format = respond::format_for(session);
            let answer = policy.answers.denial(&denial, &policy.plans, ruling.decided_at, id, format);
            respond::respond(session, answer, cors, *drain).await?;
        }
        Ok(true)
    }

    async fn fail(&self, session: &mut Session, context: &Context, failure: Failure) -> Result<bool> {
        // Whoever comes too often must not be made to connect anew as well.
        if failure != Failure::Overloaded {
            session.set_keepalive(None);
        }
        self.say_failure(session, context, failure).await?;
        Ok(true)
    }

    async fn say_failure(&self, session: &mut Session, context: &Context, failure: Failure) -> Result<u16> {
        let id = context.request_id.to_str().unwrap_or_default();
        let Snapshot { policy, cors, drain, .. } = &*context.snapshot;
        let answer = policy.answers.failure(failure, id, respond::format_for(session));
        let status = answer.status;
        // What did not come in time is waited for no longer.
        let drain = if failure == Failure::RequestTimeout { DrainBounds::NONE } else { *drain };
        respond::respond(session, answer, cors, drain).await?;
        Ok(status)
    }

    /// `OPTIONS *` asks about the server as a whole (RFC 9110 section 9.3.7): that is this program.
    async fn answer_options(&self, session: &mut Session) -> Result<bool> {
        close_behind_a_body(session);
        let head = ResponseHeader::build(204, Some(2))?;
        session.as_downstream_mut().write_response_header(Box::new(head)).await?;
        Ok(true)
    }

    fn write_line(&self, log: &AccessLog, session: &Session, context: &Context, elapsed: std::time::Duration) {
        let request = session.req_header();
        let snapshot = &context.snapshot;
        let ruling = context.ruling.as_ref();
        let basis = &context.basis;
        let entry = ruling.and_then(|ruling| ruling.entry.as_ref()).or(basis.entry.as_ref());
        let target = request.raw_path();
        let path = memchr::memchr(b'?', target).map_or(target, |query| &target[..query]);
        let facts = context.facts.as_ref();
        let without_ruling = if context.answered { ANSWERED } else { REFUSED };
        log.write(&Line {
            begun: context.begun_wall,
            request_id: context.request_id.to_str().unwrap_or_default(),
            trace_id: facts.and_then(|facts| trace_id(facts.trace.as_ref()?)),
            tenant_id: facts.and_then(|facts| facts.tenant.as_ref()?.to_str().ok()),
            method: request.method.as_str(),
            path: &String::from_utf8_lossy(path),
            status: session.response_written().map_or(0, |head| head.status.as_u16()),
            decision: ruling.map_or(without_ruling, |ruling| ruling.outcome.as_str()),
            reason: ruling.and_then(|ruling| ruling.reason).or(basis.reason).map(licensing::reason::Reason::name),
            feature: ruling.and_then(|ruling| ruling.feature.as_deref()),
            rule: ruling.and_then(|ruling| ruling.rule.as_deref()),
            plan: entry.map(|entry| &*entry.license.plan),
            revision: entry.map(|entry| entry.license.revision),
            layer: ruling.and_then(|ruling| ruling.layer).or(basis.layer).map(crate::licenses::Layer::as_str),
            license_age: ruling.and_then(|ruling| ruling.age),
            fallback: ruling.and_then(|ruling| ruling.fallback),
            mode: ruling.map_or_else(|| snapshot.policy.enforcement.mode(), |ruling| ruling.mode).as_str(),
            config_hash: &snapshot.config_hash,
            upstream_status: context.upstream_status,
            gate: ruling.map_or(std::time::Duration::ZERO, |ruling| ruling.took),
            total: elapsed,
            target: snapshot.log_raw_target.then(|| String::from_utf8_lossy(target)).as_deref(),
        });
    }
}

/// Which failure a client is told of; none where nobody is left to be told.
fn failure_of(error: &Error) -> Option<Failure> {
    use ErrorType::{
        ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, ConnectionClosed, ReadError, ReadTimedout,
        WriteError, WriteTimedout,
    };
    match (error.esource(), error.etype()) {
        (ErrorSource::Upstream, ConnectTimedout | ReadTimedout | WriteTimedout) => Some(Failure::UpstreamTimeout),
        (ErrorSource::Upstream, ConnectRefused | ConnectNoRoute | ConnectError) => Some(Failure::UpstreamUnreachable),
        (ErrorSource::Upstream, ErrorType::SocketError | ErrorType::BindError | ErrorType::ConnectProxyFailure) => {
            Some(Failure::UpstreamUnreachable)
        }
        (ErrorSource::Upstream, _) => Some(Failure::UpstreamBroken),
        (ErrorSource::Downstream, ReadError | WriteError | WriteTimedout | ConnectionClosed) => None,
        (ErrorSource::Downstream, ErrorType::HTTPStatus(TOO_LARGE)) => Some(Failure::BodyTooLarge),
        (ErrorSource::Downstream, ReadTimedout) => Some(Failure::RequestTimeout),
        (ErrorSource::Downstream, _) => Some(Failure::RequestBroken),
        (ErrorSource::Internal | ErrorSource::Unset, _) => Some(Failure::Internal),
    }
}

/// Charge a request by the head of its answer, which tells what is left of limits. What the backend itself says of limits is
/// about others.
fn bill(ruling: &mut Ruling, response: &mut ResponseHeader) -> Result<()> {
    if let Some((policy, limit)) = ruling.charges.rate_limits(ruling.decided_at) {
        response.append_header("RateLimit-Policy", policy)?;
        response.append_header("RateLimit", limit)?;
    }
    ruling.charges.settle(Some(outcome_of(response)));
    Ok(())
}

/// What has become of a request. A gRPC call that fails before it has answered anything says so in the head, beside a 200.
fn outcome_of(response: &ResponseHeader) -> StatusCode {
    match response.headers.get("grpc-status") {
        Some(status) if status != "0" => StatusCode::INTERNAL_SERVER_ERROR,
        _ => response.status,
    }
}

/// Where a request is answered before its framing has been judged: nothing behind a body is taken for a request.
fn close_behind_a_body(session: &mut Session) {
    let headers = &session.req_header().headers;
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        session.set_keepalive(None);
    }
}

fn is_timeout_of_upstream(error: &Error) -> bool {
    *error.esource() == ErrorSource::Upstream && *error.etype() == ErrorType::ReadTimedout
}

/// Which limit a request met that failed on its way.
fn limit_of(failure: Option<Failure>, error: &Error) -> Option<Limit> {
    match (failure, error.esource(), error.etype()) {
        (Some(Failure::RequestTimeout), ..) => Some(Limit::BodyTimeout),
        (Some(Failure::BodyTooLarge), ..) => Some(Limit::BodyBytes),
        (_, ErrorSource::Downstream, ErrorType::WriteTimedout) => Some(Limit::WriteTimeout),
        _ => None,
    }
}

/// The length of the body, as far as it is announced.
fn announced_bytes(request: &RequestHeader) -> u64 {
    let length = request.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or(0)
}

fn peer_ip(session: &Session) -> Option<IpAddr> {
    session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip().to_canonical())
}

/// The trace's id in `traceparent`: `00-{trace-id}-{parent-id}-{flags}` (W3C Trace Context, section 3.2).
fn trace_id(traceparent: &HeaderValue) -> Option<&str> {
    let id = traceparent.to_str().ok()?.split('-').nth(1)?;
    (id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}
