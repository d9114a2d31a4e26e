//! Why the admin API refuses, and how it says so: one status and one shape for each.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::manage::ManageError;

/// A refusal, to be written once the request's id is known.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    /// As programs read it.
    pub(super) reason: &'static str,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), header: None }
    }

    /// The request is not one that can be understood.
    pub(super) fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, message)
    }

    /// With a header beside it.
    pub(super) fn with(self, name: HeaderName, value: &'static str) -> Self {
        Self { header: Some((name, HeaderValue::from_static(value))), ..self }
    }

    /// Put it into the response that carries it.
    pub(super) fn write(self, response: &mut Response, request_id: &HeaderValue) {
        let body = json!({
            "error": self.status.canonical_reason(), "reason": self.reason, "message": self.message,
            "request_id": request_id.to_str().ok(),
        });
        *response.status_mut() = self.status;
        *response.body_mut() = Body::from(body.to_string());
        let headers = response.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<ManageError> for Refusal {
    fn from(error: ManageError) -> Self {
        let status = match &error {
            ManageError::Refused { refused, .. } => StatusCode::from_u16(refused.status()).unwrap_or_default(),
            ManageError::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            ManageError::Unknown(_) | ManageError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.name(), error.to_string())
    }
}
