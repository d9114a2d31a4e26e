//! The ops listener: liveness and readiness for the kubelet, metrics for Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::get};

use crate::clock::wall_clock;
use crate::licenses::{Channel, Feed, Licenses};
use crate::load::Load;
use crate::metrics::Metrics;
use crate::record::Recorder;
use crate::snapshot::Snapshots;

/// What the handlers look at.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) licenses: Arc<Licenses>,
    pub(crate) load: Arc<Load>,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Arc<Metrics>,
    /// Whether the proxy's own listener accepts connections.
    pub(crate) listening: Arc<AtomicBool>,
    /// Whether the program is about to end.
    pub(crate) draining: Arc<AtomicBool>,
}

/// `/livez`, `/readyz` and `/metrics`.
pub(crate) fn router(ops: Ops) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(ops)
}

/// Ready once requests can be decided: some store has answered. It does not fall back when a store fails later, since
/// then there is a last known licence, and taking every replica out of service would make an outage of a store one of
/// the backend.
async fn readyz(State(ops): State<Ops>) -> (StatusCode, &'static str) {
    if ops.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if !ops.listening.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "not listening yet\n")
    } else if !ops.licenses.has_reached_a_store() {
        (StatusCode::SERVICE_UNAVAILABLE, "no store has answered yet\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let grace = ops.snapshots.load().policy.grace;
    ops.metrics.observe(&ops.licenses, &ops.load, grace, wall_clock());
    ops.recorder.observe();
    text(&ops.metrics)
}

/// What a relay answers: it is ready while it relays.
pub(crate) fn relay_router(feed: Arc<Feed>, metrics: Arc<Metrics>) -> Router {
    async fn readyz(State((feed, _)): State<(Arc<Feed>, Arc<Metrics>)>) -> (StatusCode, &'static str) {
        if feed.is_in_order() {
            (StatusCode::OK, "ok\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "changes are not relayed now: see the log\n")
        }
    }
    async fn metrics_of(State((feed, metrics)): State<(Arc<Feed>, Arc<Metrics>)>) -> Response {
        metrics.set_live(Channel::Feed, feed.is_in_order());
        text(&metrics)
    }
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_of))
        .with_state((feed, metrics))
}

fn text(metrics: &Metrics) -> Response {
    match metrics.render() {
        Ok(text) => {
            let content_type = HeaderValue::from_static(prometheus::TEXT_FORMAT);
            ([(header::CONTENT_TYPE, content_type)], text).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "metrics can't be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
