//! Tells HTTP/2 from HTTP/1 by the first bytes of a connection, and hands over those that become WebSockets.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, ReusedHttpStream, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::time::timeout;

use super::Proxy;
use super::handover::Handover;

/// How HTTP/2's preface begins, and no request of HTTP/1 does (RFC 9113 section 3.4).
const PREFACE_BEGINS: &[u8; 4] = b"PRI ";

/// How long a new connection may stay silent, in seconds; pingora's own for the first request of a connection.
const SILENCE: u64 = 60;

/// The connections of the proxy's listener.
///
/// Pingora itself waits for all 24 bytes of the preface before it takes a connection for HTTP/1, and so for ever for those
/// of a shorter request: HAProxy's health check, `OPTIONS / HTTP/1.0` without a header, has 22.
pub(crate) struct Connections {
    proxy: Arc<HttpProxy<Proxy>>,
}

impl Connections {
    /// `proxy` must have `h2c` among its options.
    pub(crate) fn new(proxy: HttpProxy<Proxy>) -> Self {
        Self { proxy: Arc::new(proxy) }
    }

    /// As pingora serves HTTP/1: one request after the other, until one may not be followed by another, or has made the
    /// connection a WebSocket.
    async fn serve_http1(&self, stream: Stream, shutdown: &ShutdownWatch) {
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive((!*shutdown.borrow()).then_some(SILENCE));
        let mut served = self.proxy.process_new_http(session, shutdown).await;
        while let Some((stream, mut settings)) = served.map(ReusedHttpStream::consume) {
            let context = settings.as_mut().and_then(HttpPersistentSettings::take_user_context);
            if let Some(Ok(handover)) = context.map(<Box<dyn Any + Send + Sync>>::downcast::<Handover>) {
                // On a task of its own: this one holds the room that a request needs.
                tokio::spawn(handover.serve(stream, shutdown.clone()));
                return;
            }
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            served = self.proxy.process_new_http(session, shutdown).await;
        }
    }
}

#[async_trait]
impl ServerApp for Connections {
    async fn process_new(self: &Arc<Self>, mut stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let mut first = [0; PREFACE_BEGINS.len()];
        let peeked = timeout(Duration::from_secs(SILENCE), stream.try_peek(&mut first)).await;
        match peeked {
            Ok(Ok(true)) if first == *PREFACE_BEGINS => return self.proxy.process_new(stream, shutdown).await,
            Ok(Ok(_)) => self.serve_http1(stream, shutdown).await,
            // It was closed, or nothing came.
            Ok(Err(_)) | Err(_) => {}
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.cleanup().await;
    }
}
