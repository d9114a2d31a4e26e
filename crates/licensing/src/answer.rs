//! How the proxy answers: refusals with status, headers and body, as JSON, problem details (RFC 9457) or gRPC; and the
//! licence itself.

use serde::Serialize;

use crate::amend::Refused;
use crate::decide::Denial;
use crate::plans::Plans;
use crate::quota::{Exhausted, Quota, rate_limit, rate_limit_policy};
use crate::reason::Reason;
use crate::tenant::TokenFault;
use crate::time::Timestamp;

/// The name under which this program answers in `Proxy-Status` (RFC 9209).
pub const PROXY_NAME: &str = "dotmac-license-proxy";

/// How long a client is asked to wait before it tries again while no store answers, in seconds.
const RETRY_AFTER_SECONDS: &str = "1";

/// The version of the WebSocket protocol that is spoken (RFC 6455 section 4.1).
const WEBSOCKET_VERSION: &str = "13";

/// What a client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/problem+json`, RFC 9457.
    Problem,
    /// A gRPC status without a message body.
    Grpc,
}

/// A complete answer, independent of any HTTP library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers beside `Content-Length`, which is the writer's.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A failure of the upstream or of the exchange with it, which is no denial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection to the upstream could be made.
    UpstreamUnreachable,
    /// The upstream closed or broke the connection before it had answered.
    UpstreamBroken,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// The request's headers are more or larger than `limits` allow.
    HeadersTooLarge,
    /// The request's target is longer than `limits` allow.
    TargetTooLong,
    /// The request can't be read to its end.
    RequestBroken,
    /// The request did not arrive in time.
    RequestTimeout,
    /// The path is the proxy's own and does not answer this method.
    MethodNotAllowed {
        /// The methods that it answers, as `Allow` lists them.
        allow: &'static str,
    },
    /// The request is no opening handshake of a WebSocket, but should be (RFC 6455 section 4.2.1).
    HandshakeMalformed,
    /// The path is a WebSocket, and the request asks for something else or for another version of it.
    UpgradeRequired,
    /// A page of another origin, which is not listed, acts for its visitor.
    OriginNotAllowed,
    /// Whoever asks for an upgrade has no role that may.
    RoleNotAllowed,
    /// The body is of another media type than the path takes.
    UnsupportedMediaType,
    /// The body is larger than the path takes.
    BodyTooLarge,
    /// The body is not what the path takes.
    BodyInvalid,
    /// The body does not say which way to an upgrade was followed.
    ClickInvalid,
    /// No rule asks for the feature.
    FeatureUnknown,
    /// The value of `Idempotency-Key` is none.
    IdempotencyKeyInvalid,
    /// The key was used with another request.
    IdempotencyKeyReused,
    /// What was asked for may have been done or not.
    OutcomeUnknown,
    /// There are as many connections or requests as `limits` allow.
    Overloaded,
    /// Something in this program failed.
    Internal,
}

/// The templates and overrides of the configuration's `deny` section.
#[derive(Clone, Debug)]
pub struct Answers {
    upgrade_url: String,
    status: Vec<(Reason, u16)>,
}

/// What a failure means to a client.
struct FailureMeaning {
    status: u16,
    /// The member `error`.
    title: &'static str,
    /// The member `reason`.
    reason: &'static str,
    /// The error of `Proxy-Status` (RFC 9209 section 2.3).
    error: &'static str,
    /// The gRPC status code.
    grpc: u8,
    /// The member `message`.
    text: &'static str,
}

impl Failure {
    /// The table.
    const fn meaning(self) -> FailureMeaning {
        const fn row(
            status: u16,
            title: &'static str,
            reason: &'static str,
            error: &'static str,
            grpc: u8,
            text: &'static str,
        ) -> FailureMeaning {
            FailureMeaning { status, title, reason, error, grpc, text }
        }
        match self {
            Self::UpstreamUnreachable => row(
                502,
                "Bad gateway",
                "upstream_unreachable",
                "destination_unavailable",
                14,
                "The application can't be reached.",
            ),
            Self::UpstreamBroken => row(
                502,
                "Bad gateway",
                "upstream_broken",
                "connection_terminated",
                14,
                "The application ended the connection.",
            ),
            Self::UpstreamTimeout => row(
                504,
                "Gateway timeout",
                "upstream_timeout",
                "http_response_timeout",
                4,
                "The application did not answer in time.",
            ),
            Self::HeadersTooLarge => row(
                431,
                "Request header fields too large",
                "headers_too_large",
                "http_request_error",
                8,
                "The request's headers are too many or too large.",
            ),
            Self::TargetTooLong => row(
                414,
                "URI too long",
                "target_too_long",
                "http_request_error",
                3,
                "The request's target is too long.",
            ),
            Self::RequestBroken => {
                row(400, "Request malformed", "request_malformed", "http_request_error", 3, "The request is malformed.")
            }
            Self::RequestTimeout => row(
                408,
                "Request timeout",
                "request_timeout",
                "http_request_error",
                4,
                "The request did not arrive in time.",
            ),
            Self::MethodNotAllowed { .. } => row(
                405,
                "Method not allowed",
                "method_not_allowed",
                "http_request_error",
                12,
                "The path does not answer this method.",
            ),
            Self::HandshakeMalformed => row(
                400,
                "WebSocket handshake malformed",
                "websocket_malformed",
                "http_request_error",
                3,
                "A WebSocket is opened over HTTP/1.1 as RFC 6455 has it.",
            ),
            Self::UpgradeRequired => row(
                426,
                "Upgrade required",
                "upgrade_required",
                "http_request_error",
                9,
                "The path is a WebSocket of version 13.",
            ),
            Self::OriginNotAllowed => row(
                403,
                "Origin not allowed",
                "origin_not_allowed",
                "http_request_denied",
                7,
                "Pages of this origin may not act for their visitors here.",
            ),
            Self::RoleNotAllowed => row(
                403,
                "Not allowed",
                "not_allowed",
                "http_request_denied",
                7,
                "Upgrading takes a role that this request does not come with.",
            ),
            Self::UnsupportedMediaType => row(
                415,
                "Unsupported media type",
                "unsupported_media_type",
                "http_request_error",
                3,
                "The body must be application/json.",
            ),
            Self::BodyTooLarge => {
                row(413, "Content too large", "body_too_large", "http_request_error", 8, "The body is too large.")
            }
            Self::BodyInvalid => row(
                400,
                "Body invalid",
                "body_invalid",
                "http_request_error",
                3,
                "The body must be a JSON object such as {\"new_plan\":\"professional\"}.",
            ),
            Self::ClickInvalid => row(
                400,
                "Body invalid",
                "body_invalid",
                "http_request_error",
                3,
                "The body must be a JSON object such as {\"feature\":\"crm\"}.",
            ),
            Self::FeatureUnknown => {
                row(422, "Feature unknown", "unknown_feature", "http_request_error", 3, "There is no such feature.")
            }
            Self::IdempotencyKeyInvalid => row(
                400,
                "Idempotency key invalid",
                "idempotency_key_invalid",
                "http_request_error",
                3,
                "One Idempotency-Key of 1 to 255 characters of ASCII is taken.",
            ),
            Self::IdempotencyKeyReused => row(
                422,
                "Idempotency key reused",
                "idempotency_key_reused",
                "http_request_error",
                9,
                "The Idempotency-Key has been used for another request.",
            ),
            Self::OutcomeUnknown => row(
                503,
                "Outcome unknown",
                "outcome_unknown",
                "proxy_internal_error",
                14,
                "The change may have been made or not; the same request with the same Idempotency-Key tells.",
            ),
            Self::Overloaded => row(
                503,
                "Overloaded",
                "overloaded",
                "http_request_denied",
                14,
                "Too much is going on at once; please try again in a moment.",
            ),
            Self::Internal => {
                row(500, "Internal error", "proxy_error", "proxy_internal_error", 13, "The licence proxy failed.")
            }
        }
    }
}

impl Format {
    /// What the request's `Content-Type` and `Accept` ask for. gRPC clients are known by the former; problem details are
    /// given to those that list them and do not weigh them with zero (RFC 9110 section 12.5.1).
    pub fn negotiate(content_type: Option<&[u8]>, accept: Option<&[u8]>) -> Self {
        if content_type.is_some_and(|value| starts_with_ignoring_case(value, b"application/grpc")) {
            return Self::Grpc;
        }
        let accepts_problem = accept.is_some_and(|value| {
            value.split(|b| *b == b',').any(|range| {
                let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
                let named = parts.next().is_some_and(|t| t.eq_ignore_ascii_case(b"application/problem+json"));
                named && !parts.any(|p| matches!(p, b"q=0" | b"q=0.0" | b"q=0.00" | b"q=0.000"))
            })
        });
        if accepts_problem { Self::Problem } else { Self::Json }
    }
}

impl Answer {
    /// A document of the licence API with its entity tag; none: the client has that already, and is told so (RFC 9110 section
    /// 15.4.5). `vary` lists the request headers that tell who asks.
    pub fn document(document: Option<String>, entity_tag: String, vary: &str, request_id: &str) -> Self {
        let mut headers = vec![
            ("Cache-Control", "no-cache, private".to_owned()),
            ("ETag", entity_tag),
            ("X-Request-ID", request_id.to_owned()),
        ];
        if !vary.is_empty() {
            headers.push(("Vary", vary.to_owned()));
        }
        match document {
            None => Self { status: 304, headers, body: Vec::new() },
            Some(document) => {
                headers.push(("Content-Type", "application/json".to_owned()));
                Self { status: 200, headers, body: document.into_bytes() }
            }
        }
    }

    /// What was asked for is done, and there is nothing to say of it.
    pub fn done(request_id: &str) -> Self {
        let headers = vec![("Cache-Control", "no-store".to_owned()), ("X-Request-ID", request_id.to_owned())];
        Self { status: 204, headers, body: Vec::new() }
    }

    /// An upgrade that was asked for, and is left to somebody else.
    pub fn requested(new_plan: &str, request_id: &str) -> Self {
        let body = serde_json::json!({ "status": "requested", "new_plan": new_plan, "request_id": request_id });
        let headers = vec![
            ("Cache-Control", "no-store".to_owned()),
            ("X-Request-ID", request_id.to_owned()),
            ("Content-Type", "application/json".to_owned()),
        ];
        Self { status: 202, headers, body: body.to_string().into_bytes() }
    }
}

impl Answers {
    /// `upgrade_url` may hold `{feature}`; `status` sets other statuses by reason.
    pub fn new(upgrade_url: String, status: impl IntoIterator<Item = (Reason, u16)>) -> Self {
        Self { upgrade_url, status: status.into_iter().collect() }
    }

    /// The status that a refusal for `reason` is answered with.
    pub fn status(&self, reason: Reason) -> u16 {
        let overridden = self.status.iter().find(|(r, _)| *r == reason);
        overridden.map_or(reason.meaning().status, |(_, status)| *status)
    }

    /// Say no, at `now`.
    pub fn denial(
        &self,
        denial: &Denial<'_>,
        plans: &Plans,
        now: Timestamp,
        request_id: &str,
        format: Format,
    ) -> Answer {
        let reason = denial.reason;
        let meaning = reason.meaning();
        let status = self.status(reason);
        let about_licence = reason.is_about_licence();
        let feature = denial.feature;
        let available_in = if about_licence { available_in(denial, plans) } else { Vec::new() };
        let members = Members {
            error: meaning.title,
            feature,
            upgrade_url: feature.filter(|_| about_licence).map(|feature| self.upgrade_url(feature)),
            reason: meaning.name,
            message: message(denial, &available_in),
            plan: denial.license.map(|license| &*license.plan),
            required_plan: available_in.first().copied(),
            available_in,
            usage: denial.usage.as_ref().map(UsageMembers::of),
            request_id,
        };
        let error = if reason == Reason::StoreUnavailable { "proxy_internal_error" } else { "http_request_denied" };
        let mut headers = common_headers(error, meaning.name, request_id);
        match reason {
            Reason::TenantMissing => headers.push(("WWW-Authenticate", challenge(denial.token))),
            Reason::StoreUnavailable => headers.push(("Retry-After", RETRY_AFTER_SECONDS.to_owned())),
            _ => {}
        }
        if let (Some(exhausted), Some(feature)) = (&denial.usage, feature) {
            headers.extend(limit_headers(exhausted, feature, now));
        }
        render(status, headers, &members, meaning.grpc, format)
    }

    /// Say that the exchange with the upstream failed.
    pub fn failure(&self, failure: Failure, request_id: &str, format: Format) -> Answer {
        let FailureMeaning { status, title, reason, error, grpc, text } = failure.meaning();
        let members = Members {
            error: title,
            feature: None,
            upgrade_url: None,
            reason,
            message: text.to_owned(),
            plan: None,
            required_plan: None,
            available_in: Vec::new(),
            usage: None,
            request_id,
        };
        let mut headers = common_headers(error, reason, request_id);
        match failure {
            Failure::OutcomeUnknown | Failure::Overloaded => {
                headers.push(("Retry-After", RETRY_AFTER_SECONDS.to_owned()));
            }
            Failure::MethodNotAllowed { allow } => headers.push(("Allow", allow.to_owned())),
            // RFC 9110 section 15.5.22, RFC 6455 section 4.4.
            Failure::UpgradeRequired => headers
                .extend([("Upgrade", "websocket".to_owned()), ("Sec-WebSocket-Version", WEBSOCKET_VERSION.to_owned())]),
            _ => {}
        }
        render(status, headers, &members, grpc, format)
    }

    /// Say that a change of a licence is refused, and why.
    pub fn change_refused(&self, refused: Refused, message: String, request_id: &str, format: Format) -> Answer {
        let members = Members {
            error: "Change refused",
            feature: None,
            upgrade_url: None,
            reason: refused.name(),
            message,
            plan: None,
            required_plan: None,
            available_in: Vec::new(),
            usage: None,
            request_id,
        };
        let headers = common_headers("http_request_denied", refused.name(), request_id);
        // gRPC: FAILED_PRECONDITION.
        render(refused.status(), headers, &members, 9, format)
    }

    /// Where a plan with `feature` is bought.
    pub fn upgrade_url(&self, feature: &str) -> String {
        let encoded = percent_encoding::utf8_percent_encode(feature, percent_encoding::NON_ALPHANUMERIC);
        // Unreserved characters (RFC 3986 section 2.3) stay readable.
        let encoded = encoded.to_string().replace("%2D", "-").replace("%5F", "_").replace("%2E", ".");
        self.upgrade_url.replace("{feature}", &encoded)
    }
}

#[derive(Serialize)]
struct Members<'a> {
    error: &'a str,
    feature: Option<&'a str>,
    upgrade_url: Option<String>,
    reason: &'a str,
    message: String,
    plan: Option<&'a str>,
    required_plan: Option<&'a str>,
    available_in: Vec<&'a str>,
    /// Where a limit is the reason; left out elsewhere.
    #[serde(flatten)]
    usage: Option<UsageMembers>,
    request_id: &'a str,
}

/// What there is to say of a limit that is used up.
#[derive(Serialize)]
struct UsageMembers {
    limit: u64,
    used: u64,
    resets_at: Option<Timestamp>,
}

impl UsageMembers {
    fn of(exhausted: &Exhausted) -> Self {
        Self { limit: exhausted.limit, used: exhausted.used, resets_at: exhausted.resets_at() }
    }
}

/// RFC 9457's members before our own.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(flatten)]
    members: &'a Members<'a>,
}

fn render(
    status: u16,
    mut headers: Vec<(&'static str, String)>,
    members: &Members<'_>,
    grpc: u8,
    format: Format,
) -> Answer {
    let (status, content_type, body) = match format {
        Format::Json => (status, "application/json", serde_json::to_vec(members).unwrap_or_default()),
        Format::Problem => {
            let problem = Problem {
                r#type: format!("urn:{PROXY_NAME}:{}", members.reason),
                title: members.error,
                status,
                detail: &members.message,
                members,
            };
            (status, "application/problem+json", serde_json::to_vec(&problem).unwrap_or_default())
        }
        Format::Grpc => {
            // A "trailers-only" response of the gRPC protocol: the status travels in the header block of a 200.
            let message =
                percent_encoding::utf8_percent_encode(&members.message, percent_encoding::CONTROLS).to_string();
            headers.push(("grpc-status", grpc.to_string()));
            headers.push(("grpc-message", message));
            (200, "application/grpc", Vec::new())
        }
    };
    headers.push(("Content-Type", content_type.to_owned()));
    Answer { status, headers, body }
}

fn common_headers(error: &str, details: &str, request_id: &str) -> Vec<(&'static str, String)> {
    vec![
        ("Cache-Control", "no-store".to_owned()),
        ("X-Request-ID", request_id.to_owned()),
        ("Proxy-Status", format!("{PROXY_NAME}; error={error}; details=\"{details}\"")),
    ]
}

/// The plans that would have let the request through. Of those with a higher limit, the tenant's own is none: what it would
/// be sold today is not what it has.
fn available_in<'a>(denial: &Denial<'a>, plans: &'a Plans) -> Vec<&'a str> {
    match (denial.feature, &denial.usage) {
        (Some(feature), Some(exhausted)) => {
            let own = denial.license.map(|license| &*license.plan);
            plans.allowing_more(feature, exhausted.limit).filter(|plan| Some(*plan) != own).collect()
        }
        (Some(feature), None) => plans.including(feature).collect(),
        (None, _) => Vec::new(),
    }
}

/// How a limit that is used up stands, and when to come back (RFC 9110 section 10.2.3), where there is a point in it.
fn limit_headers(exhausted: &Exhausted, feature: &str, now: Timestamp) -> Vec<(&'static str, String)> {
    let Exhausted { limit, period, .. } = *exhausted;
    let quota = [Quota { feature, limit, remaining: 0, period }];
    let mut headers = vec![("RateLimit-Policy", rate_limit_policy(&quota)), ("RateLimit", rate_limit(&quota, now))];
    if let Some(reset) = exhausted.resets_at() {
        headers.push(("Retry-After", reset.seconds_from(now).max(1).to_string()));
    }
    headers
}

/// RFC 9110 section 11.6.1: a 401 names a scheme. RFC 6750 section 3.1: a client whose token is no good hears that, so that it
/// gets itself a new one.
fn challenge(token: Option<TokenFault>) -> String {
    let challenge = "Bearer realm=\"tenant\"";
    match token {
        Some(fault) => format!("{challenge}, error=\"invalid_token\", error_description=\"{fault}\""),
        None => challenge.to_owned(),
    }
}

/// A sentence for the person who sees it.
fn message(denial: &Denial<'_>, available_in: &[&str]) -> String {
    let feature = denial.feature.unwrap_or("this feature");
    let offer = match available_in {
        [] => String::new(),
        plans => format!(" It is included in {}.", plans.join(", ")),
    };
    match (denial.reason, denial.license) {
        (Reason::FeatureNotInPlan, Some(license)) => {
            format!("The plan {} does not include {feature}.{offer}", license.plan)
        }
        (Reason::FeatureNotInPlan, None) => format!("The licence does not include {feature}.{offer}"),
        (Reason::NoLicense, _) if denial.feature.is_none() => "There is no licence for this tenant.".to_owned(),
        (Reason::NoLicense, _) => format!("There is no licence for this tenant, and {feature} needs one.{offer}"),
        (Reason::LicenseExpired, Some(license)) => {
            format!("The licence ended on {}; {feature} needs a valid one.", license.valid_until)
        }
        (Reason::LicenseExpired, None) => format!("The licence has ended; {feature} needs a valid one."),
        (Reason::LicenseNotYetValid, Some(license)) => format!("The licence begins on {}.", license.valid_from),
        (Reason::LicenseNotYetValid, None) => "The licence has not begun.".to_owned(),
        (Reason::UsageLimitExceeded, _) => used_up(feature, denial.usage.as_ref(), available_in),
        (Reason::TenantMissing, _) => match denial.token {
            Some(fault) => fault.to_string(),
            None => "The request names no tenant.".to_owned(),
        },
        (Reason::TenantInvalid, _) => "The request names no valid tenant, or more than one.".to_owned(),
        (Reason::RequestMalformed, _) => "The request is malformed.".to_owned(),
        (Reason::RequestAmbiguous, _) => "The request's path can be read in more than one way.".to_owned(),
        (Reason::StoreUnavailable, _) => "The licence can't be checked at the moment.".to_owned(),
        (Reason::RouteDenied, _) => "This path is not served.".to_owned(),
    }
}

/// That a limit is used up, when there will be more, and where there is more at once.
fn used_up(feature: &str, exhausted: Option<&Exhausted>, available_in: &[&str]) -> String {
    let offer = match available_in {
        [] => String::new(),
        plans => format!(" There is more in {}.", plans.join(", ")),
    };
    let Some(exhausted) = exhausted else { return format!("The licence's limit for {feature} is used up.{offer}") };
    let limit = exhausted.limit;
    match exhausted.resets_at() {
        Some(reset) => format!(
            "The licence's limit of {limit} for {feature} is used up; counting begins anew on {}.{offer}",
            reset.day()
        ),
        None if limit == 0 => format!("The licence's limit for {feature} is 0.{offer}"),
        None => format!("The licence's limit of {limit} for {feature} is used up.{offer}"),
    }
}

fn starts_with_ignoring_case(value: &[u8], prefix: &[u8]) -> bool {
    value.len() >= prefix.len() && value[..prefix.len()].eq_ignore_ascii_case(prefix)
}

#[cfg(test)]
mod tests;
