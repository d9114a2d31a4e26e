//! Writes the answers that the proxy itself gives.

use bytes::Bytes;
use http::Method;
use licensing::answer::{Answer, Format};
use licensing::cors::Cors;
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use tokio::time::{Instant, timeout_at};

use crate::snapshot::DrainBounds;

/// Write an answer, then drain what the client is still sending.
pub(super) async fn respond(session: &mut Session, answer: Answer, cors: &Cors, bounds: DrainBounds) -> Result<()> {
    let is_head = session.req_header().method == Method::HEAD;
    let mut head = ResponseHeader::build(answer.status, Some(answer.headers.len() + 7))?;
    for (name, value) in cors.headers(origin(session)).into_iter().chain(answer.headers) {
        head.append_header(name, value)?;
    }
    // RFC 9110 section 8.6: a 204 has no length, and a 304 none but that of the answer it stands for.
    if ![204, 304].contains(&answer.status) {
        head.insert_header(http::header::CONTENT_LENGTH, answer.body.len())?;
    }
    let downstream = session.as_downstream_mut();
    downstream.write_response_header(Box::new(head)).await?;
    if is_head || answer.body.is_empty() {
        downstream.finish_body().await?;
    } else {
        downstream.write_response_body(Bytes::from(answer.body), true).await?;
    }
    drain(session, bounds).await;
    Ok(())
}

/// The format that suits the request.
pub(super) fn format_for(session: &Session) -> Format {
    let header = |name| session.get_header(name).map(http::HeaderValue::as_bytes);
    Format::negotiate(header(http::header::CONTENT_TYPE), header(http::header::ACCEPT))
}

/// The answer to a preflight of a listed origin; none if this is no such request.
pub(super) fn preflight(session: &Session, cors: &Cors) -> Option<Answer> {
    let request = session.req_header();
    if request.method != Method::OPTIONS {
        return None;
    }
    let header = |name| request.headers.get(name).map(http::HeaderValue::as_bytes);
    let method = header(http::header::ACCESS_CONTROL_REQUEST_METHOD)?;
    cors.preflight(origin(session)?, method, header(http::header::ACCESS_CONTROL_REQUEST_HEADERS))
}

/// The origin of the page that a browser asks for. No browser sends two.
fn origin(session: &Session) -> Option<&[u8]> {
    let mut origins = session.req_header().headers.get_all(http::header::ORIGIN).iter();
    let first = origins.next()?;
    origins.next().is_none().then_some(first.as_bytes())
}

async fn drain(session: &mut Session, bounds: DrainBounds) {
    let deadline = Instant::now() + bounds.time;
    let mut left = bounds.bytes;
    let downstream = session.as_downstream_mut();
    while !downstream.is_body_done() {
        match timeout_at(deadline, downstream.read_request_body()).await {
            Ok(Ok(Some(chunk))) => match left.checked_sub(chunk.len() as u64) {
                Some(rest) => left = rest,
                None => return,
            },
            // The end of the body, a broken connection, or too slow.
            Ok(Ok(None) | Err(_)) | Err(_) => return,
        }
    }
}
