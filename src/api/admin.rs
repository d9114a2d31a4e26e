//! The admin API: operators look at licences and change them, each change with its audit.

mod guard;
mod refusal;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{RequestExt, Router};
use licensing::amend::{Command, End, Holding};
use licensing::config::Duration;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) use self::guard::Guard;
use self::refusal::Refusal;
use crate::api::body;
use crate::api::headers::{MAX_KEY_BYTES, idempotency_key};
use crate::explain::{Asked, Explainer};
use crate::licenses::Told;
use crate::manage::{Amended, Author, Manage};
use crate::request_id;

/// The largest body that is read, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// Who is written down where nobody is named.
const ACTOR: &str = "admin-api";

/// What the handlers work with.
#[derive(Clone)]
pub(crate) struct Admin {
    /// The write side; none: there is no primary to write to.
    pub(crate) manage: Option<Arc<Manage>>,
    /// What tells what becomes of a request.
    pub(crate) explainer: Explainer,
    /// Who may call.
    pub(crate) guard: Arc<Guard>,
}

/// `/admin/…`, all of it behind the guard.
pub(crate) fn router(admin: Admin) -> Router {
    let routes = Router::new()
        .route("/admin/license/flush", post(flush))
        .route("/admin/license/refresh/{tenant}", post(refresh))
        .route("/admin/license/{tenant}", get(show).put(set_plan))
        .route("/admin/license/{tenant}/grant", post(grant))
        .route("/admin/license/{tenant}/revoke", post(revoke))
        .route("/admin/license/{tenant}/extend", post(extend))
        .route("/admin/license/{tenant}/reapply-plan", post(reapply_plan))
        .route("/admin/explain", get(explain))
        .fallback(async || Refusal::new(StatusCode::NOT_FOUND, "not_found", "there is nothing under this path"))
        .method_not_allowed_fallback(async || {
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "see the header Allow")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(admin.clone());
    // Around all of it: routes with layers of their own would still tell strangers, by `Allow`, which of them there are.
    Router::new().fallback_service(routes).layer(from_fn_with_state(admin, around))
}

/// What all requests have in common: an id, the guard, and no cache on the way back.
async fn around(State(admin): State<Admin>, mut request: Request, next: Next) -> Response {
    let id = request_id::only_of(request.headers());
    let mut response = match admin.guard.admit(&request) {
        Ok(()) => {
            request.extensions_mut().insert(RequestId(id.clone()));
            next.run(request).await
        }
        Err(refusal) => {
            tracing::warn!(reason = refusal.reason, request_id = ?id, "a request to the admin API was refused");
            refusal.into_response()
        }
    };
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        refusal.write(&mut response, &id);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert("x-request-id", id);
    response
}

async fn show(State(admin): State<Admin>, Tenant(tenant): Tenant) -> Result<Json<Value>, Refusal> {
    let holding = admin.manage()?.holding(tenant).await?;
    if holding.license.is_none() {
        return Err(Refusal::new(StatusCode::NOT_FOUND, "no_license", "the tenant has no licence"));
    }
    Ok(Json(holding_of(tenant, &holding)))
}

async fn refresh(State(admin): State<Admin>, Tenant(tenant): Tenant) -> Result<Json<Value>, Refusal> {
    let refreshed = admin.manage()?.refresh(tenant).await?;
    tracing::info!(%tenant, "admin API: a licence is asked for again everywhere");
    Ok(Json(json!({ "tenant_id": tenant, "redis": told(&refreshed.redis), "postgres": told(&refreshed.postgres) })))
}

async fn flush(State(admin): State<Admin>) -> Result<Json<Value>, Refusal> {
    let refreshed = admin.manage()?.flush().await?;
    tracing::warn!("admin API: every licence is asked for again everywhere");
    Ok(Json(json!({ "redis": told(&refreshed.redis), "postgres": told(&refreshed.postgres) })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetPlan {
    plan: String,
    valid_until: Option<Timestamp>,
    reason: String,
    actor: Option<String>,
}

async fn set_plan(State(admin): State<Admin>, Tenant(tenant): Tenant, order: Order<SetPlan>) -> Answer {
    let author = order.author(&order.body.reason, order.body.actor.as_deref())?;
    let SetPlan { plan, valid_until, .. } = order.body;
    admin.amend(tenant, Command::SetPlan { plan, valid_until }, author).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grant {
    feature: String,
    #[serde(rename = "for")]
    span: Option<Duration>,
    until: Option<Timestamp>,
    limit_delta: Option<i64>,
    reason: String,
    actor: Option<String>,
}

async fn grant(State(admin): State<Admin>, Tenant(tenant): Tenant, order: Order<Grant>) -> Answer {
    let author = order.author(&order.body.reason, order.body.actor.as_deref())?;
    let Grant { feature, span, until, limit_delta, .. } = order.body;
    let end = end_of(span, until)?;
    admin.amend(tenant, Command::Grant { feature, limit_delta, end }, author).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Revoke {
    feature: String,
    reason: String,
    actor: Option<String>,
}

async fn revoke(State(admin): State<Admin>, Tenant(tenant): Tenant, order: Order<Revoke>) -> Answer {
    let author = order.author(&order.body.reason, order.body.actor.as_deref())?;
    admin.amend(tenant, Command::Revoke { feature: order.body.feature }, author).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Extend {
    #[serde(rename = "for")]
    span: Option<Duration>,
    until: Option<Timestamp>,
    reason: String,
    actor: Option<String>,
}

async fn extend(State(admin): State<Admin>, Tenant(tenant): Tenant, order: Order<Extend>) -> Answer {
    let author = order.author(&order.body.reason, order.body.actor.as_deref())?;
    let end = end_of(order.body.span, order.body.until)?;
    admin.amend(tenant, Command::Extend { end }, author).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReapplyPlan {
    reason: String,
    actor: Option<String>,
}

async fn reapply_plan(State(admin): State<Admin>, Tenant(tenant): Tenant, order: Order<ReapplyPlan>) -> Answer {
    let author = order.author(&order.body.reason, order.body.actor.as_deref())?;
    admin.amend(tenant, Command::Reapply, author).await
}

/// What becomes of a request: `?tenant=&method=&path=`.
async fn explain(State(admin): State<Admin>, RawQuery(query): RawQuery) -> Answer {
    let (mut tenant, mut method, mut path) = (None, "GET".to_owned(), None);
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            // An empty one names nobody, as a form sends it.
            "tenant" if value.is_empty() => {}
            "tenant" => tenant = Some(tenant_id(&value)?),
            "method" => method = value.into_owned(),
            "path" => path = Some(value.into_owned()),
            _ => {
                return Err(Refusal::bad(
                    "query_invalid",
                    format!("unknown parameter {name:?}: there are tenant, method and path"),
                ));
            }
        }
    }
    let path = path.ok_or_else(|| Refusal::bad("query_invalid", "the parameter path is missing"))?;
    let explanation = admin.explainer.explain(Asked { tenant, method, path }).await;
    Ok(Json(json!(explanation)))
}

/// JSON, or why not.
type Answer = Result<Json<Value>, Refusal>;

impl Admin {
    fn manage(&self) -> Result<&Manage, Refusal> {
        self.manage.as_deref().ok_or_else(|| {
            let message = "this process has no primary: set DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no_primary", message)
        })
    }

    async fn amend(&self, tenant: TenantId, command: Command, author: Author) -> Answer {
        let Amended { after, repeated, redis, .. } = self.manage()?.amend(tenant, &command, &author).await?;
        let mut answer = holding_of(tenant, &after);
        answer["repeated"] = repeated.into();
        answer["redis"] = told(&redis);
        Ok(Json(answer))
    }
}

fn holding_of(tenant: TenantId, holding: &Holding) -> Value {
    json!({ "tenant_id": tenant, "license": holding.license, "addons": holding.addons })
}

/// Whether one of those who hear of changes was told.
fn told(told: &Told) -> Value {
    match told {
        Told::Yes => "told".into(),
        Told::No(why) => format!("failed: {why}").into(),
        Told::Nobody => "not configured".into(),
    }
}

/// An end that is given as a span, or as a time.
fn end_of(span: Option<Duration>, until: Option<Timestamp>) -> Result<End, Refusal> {
    match (span, until) {
        (Some(span), None) => Ok(End::after(span.get())),
        (None, Some(until)) => Ok(End::At(until)),
        _ => Err(Refusal::bad(
            "body_invalid",
            "say either for, such as 4h, or until: a date, an RFC 3339 time, or never",
        )),
    }
}

fn tenant_id(text: &str) -> Result<TenantId, Refusal> {
    text.parse().map_err(|error: licensing::tenant::InvalidTenantId| Refusal::bad("tenant_invalid", error.to_string()))
}

/// The request's id.
#[derive(Clone)]
struct RequestId(HeaderValue);

/// The tenant that the path names.
struct Tenant(TenantId);

impl<S: Send + Sync> FromRequestParts<S> for Tenant {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = path.map_err(|error| Refusal::bad("tenant_invalid", error.body_text()))?;
        tenant_id(&text).map(Self)
    }
}

/// A body, and what its request says beside it.
struct Order<T> {
    body: T,
    request_id: Option<String>,
    idempotency_key: Option<String>,
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Order<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let request_id = request.extensions().get::<RequestId>().and_then(|id| id.0.to_str().ok()).map(str::to_owned);
        let idempotency_key = key_of(request.headers())?;
        let bytes: Result<Bytes, BytesRejection> = request.extract().await;
        let bytes = bytes.map_err(|error| match error.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("the body has more than {MAX_BODY_BYTES} bytes");
                Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
            }
            _ => Refusal::bad("body_invalid", error.body_text()),
        })?;
        let body = body::read(&bytes).map_err(|error| Refusal::bad("body_invalid", error))?;
        Ok(Self { body, request_id, idempotency_key })
    }
}

impl<T> Order<T> {
    fn author(&self, reason: &str, actor: Option<&str>) -> Result<Author, Refusal> {
        let reason = reason.trim();
        if reason.is_empty() {
            return Err(Refusal::bad("body_invalid", "a reason is needed, for the audit"));
        }
        let actor = actor.map(str::trim).filter(|actor| !actor.is_empty()).unwrap_or(ACTOR);
        Ok(Author {
            actor: actor.to_owned(),
            reason: Some(reason.to_owned()),
            request_id: self.request_id.clone(),
            idempotency_key: self.idempotency_key.clone(),
        })
    }
}

/// The key of a request.
fn key_of(headers: &http::HeaderMap) -> Result<Option<String>, Refusal> {
    let key = idempotency_key(headers).map(|key| key.map(str::to_owned));
    key.map_err(|()| {
        let message = format!("one Idempotency-Key, of 1 to {MAX_KEY_BYTES} characters of ASCII");
        Refusal::bad("idempotency_key_invalid", message)
    })
}
