//! The connections of the proxy's listener: how many there may be, which protocol they speak, and who takes them over that
//! become WebSockets.

use std::any::Any;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::{Shutdown, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Proxy;
use super::doorman::{Doorman, GO_AWAY, Refusal};
use super::handover::Handover;
use super::paced::{Pace, Paced};
use crate::load::{Connection, Load};
use crate::snapshot::{Limits, Snapshots};

/// How many streams a client may have open at once over HTTP/2; it is told at the beginning of the connection.
const STREAMS: u32 = 100;

/// What may wait to be sent to a client on one stream, in bytes. The library's own 400 KiB would be 40 MiB a connection.
const STREAM_BUFFER: usize = 64 << 10;

/// What a request line may have beside its target, in bytes: the method, the version and two blanks.
const LINE_ROOM: usize = 64;

/// What HTTP/2 counts for each header beyond its bytes (RFC 9113 section 6.5.2).
const HEADER_ROOM: u64 = 32;

/// How many that are turned away are heard out at once, so that they read why. The others are told so too, but may find the
/// connection reset.
const HEARD_OUT: usize = 128;

/// For how long they are waited for.
const HEARING: Duration = Duration::from_secs(1);

/// Takes connections.
///
/// Pingora itself waits for all 24 bytes of the preface before it takes a connection for HTTP/1, and so for ever for those
/// of a shorter request: HAProxy's health check, `OPTIONS / HTTP/1.0` without a header, has 22.
pub(crate) struct Connections {
    proxy: Arc<HttpProxy<Proxy>>,
    load: Arc<Load>,
    snapshots: Snapshots,
    doorman: Arc<Doorman>,
    /// Places among those that are turned away and heard out.
    heard_out: Semaphore,
}

impl Connections {
    /// `limits` are those that HTTP/2 is told at the beginning of a connection: what it goes by is settled here, once.
    pub(crate) fn new(mut proxy: HttpProxy<Proxy>, limits: Limits, load: Arc<Load>, doorman: Doorman) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(limits.idle_timeout);
        proxy.server_options = Some(options);
        proxy.h2_options = Some(h2_options(limits));
        let snapshots = Arc::clone(&doorman.snapshots);
        Self {
            proxy: Arc::new(proxy),
            load,
            snapshots,
            doorman: Arc::new(doorman),
            heard_out: Semaphore::new(HEARD_OUT),
        }
    }

    /// As pingora serves HTTP/1: one request after the other, until one may not be followed by another, or has made the
    /// connection a WebSocket. `small` says whether this runs on a task that has been made for it.
    async fn serve_http1(
        self: Arc<Self>,
        stream: Box<Paced>,
        place: Connection,
        mut shutdown: ShutdownWatch,
        small: bool,
    ) {
        let mut session = ServerSession::new_http1(stream);
        // The stream itself knows how long it may be idle: 0 is for ever.
        session.set_keepalive((!*shutdown.borrow()).then_some(0));
        let mut served = self.proxy.process_new_http(session, &shutdown).await;
        while let Some((stream, mut settings)) = served.map(ReusedHttpStream::consume) {
            let context = settings.as_mut().and_then(HttpPersistentSettings::take_user_context);
            if let Some(Ok(handover)) = context.map(<Box<dyn Any + Send + Sync>>::downcast::<Handover>) {
                tokio::spawn(handover.serve(stream, place, shutdown));
                return;
            }
            let Some(mut stream) = Paced::given_back(stream) else { return };
            if stream.nothing_is_left() {
                match stream.begins().now_or_never() {
                    Some(Ok(())) => {}
                    Some(Err(_)) => return,
                    // What pingora settles between two requests is settled anew, but all of it is as it is at the beginning.
                    None if !small => return drop(tokio::spawn(self.wait_and_serve_http1(stream, place, shutdown))),
                    // Pingora would hold the room of a whole request meanwhile, four times that of the connection itself.
                    None => {
                        if !begins(&mut stream, &mut shutdown).await {
                            return;
                        }
                    }
                }
            }
            let mut session = ServerSession::new_http1(stream);
            if let Some(settings) = settings {
                settings.apply_to_session(&mut session);
            }
            served = self.proxy.process_new_http(session, &shutdown).await;
        }
    }

    /// The same once there is something to serve.
    fn wait_and_serve_http1(
        self: Arc<Self>,
        mut stream: Box<Paced>,
        place: Connection,
        mut shutdown: ShutdownWatch,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            if begins(&mut stream, &mut shutdown).await {
                self.serve_http1(stream, place, shutdown, true).await;
            }
        })
    }

    /// Say that there is no room. A flood of connections must take neither memory nor time: most are told without being
    /// waited for.
    async fn turn_away(&self, stream: Stream, limits: &Limits) {
        let mut stream = Paced::new(stream, pace(limits), Arc::clone(&self.doorman));
        if let Ok(_place) = self.heard_out.try_acquire() {
            if let Ok(Ok(true)) = timeout(HEARING, stream.speaks_http2()).await {
                self.doorman.answer(Refusal::Overloaded, Duration::ZERO);
                stream.write_at_once(GO_AWAY).await;
            } else {
                stream.refuse(Refusal::Overloaded);
                Shutdown::shutdown(&mut stream).await;
            }
        } else {
            let answer = self.doorman.answer(Refusal::Overloaded, Duration::ZERO);
            stream.write_at_once(&answer).await;
        }
    }

    /// Serve a connection on which the first bytes have come.
    async fn serve(
        self: Arc<Self>,
        mut stream: Box<Paced>,
        http2: io::Result<bool>,
        place: Connection,
        shutdown: ShutdownWatch,
        small: bool,
    ) {
        match http2 {
            Ok(true) => drop(self.proxy.process_new(stream, &shutdown).await),
            Ok(false) => self.serve_http1(stream, place, shutdown, small).await,
            // It was closed, or nothing came, or too little.
            Err(_) => Shutdown::shutdown(&mut *stream).await,
        }
    }
}

/// Pingora's task for a connection holds the room of a handshake for as long as that is open, 9 KiB. So who has nothing to
/// say is waited for on a task of its own; requests that are there already are served at once.
#[async_trait]
impl ServerApp for Connections {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        let limits = self.snapshots.load().limits;
        let Some(place) = self.load.connect(limits.connections) else {
            Box::pin(self.turn_away(stream, &limits)).await;
            return None;
        };
        let mut stream = Box::new(Paced::new(stream, pace(&limits), Arc::clone(&self.doorman)));
        let (connections, shutdown) = (Arc::clone(self), shutdown.clone());
        match stream.speaks_http2().now_or_never() {
            Some(http2) => connections.serve(stream, http2, place, shutdown, false).await,
            None => {
                tokio::spawn(async move {
                    let http2 = stream.speaks_http2().await;
                    connections.serve(stream, http2, place, shutdown, true).await;
                });
            }
        }
        None
    }

    async fn cleanup(&self) {
        self.proxy.cleanup().await;
    }
}

/// Wait for the next request. False: there is none, or the program ends.
async fn begins(stream: &mut Paced, shutdown: &mut ShutdownWatch) -> bool {
    tokio::select! {
        biased;
        begun = stream.begins() => begun.is_ok(),
        _ = shutdown.wait_for(|ends| *ends) => false,
    }
}

fn pace(limits: &Limits) -> Pace {
    let first_line_bytes = limits.uri_bytes.saturating_add(LINE_ROOM);
    Pace {
        idle: limits.idle_timeout,
        head: limits.header_timeout,
        write: limits.write_timeout,
        head_bytes: limits.header_bytes.saturating_add(first_line_bytes),
        first_line_bytes,
    }
}

/// Lists of headers that are larger than this are answered 431 by the library, before they take memory.
fn h2_options(limits: Limits) -> H2Options {
    let list = limits.header_bytes.saturating_add(limits.uri_bytes) as u64 + u64::from(limits.headers) * HEADER_ROOM;
    let mut options = default_h2_options();
    options.max_concurrent_streams(STREAMS);
    options.max_send_buffer_size(STREAM_BUFFER);
    options.max_header_list_size(u32::try_from(list).unwrap_or(u32::MAX));
    options
}
