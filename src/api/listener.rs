//! The listeners beside the proxy's own, for operators: nobody who is slow, or many, keeps the others from them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How many connections each has. Further ones wait until one has ended.
const CONNECTIONS: usize = 256;

/// How long a connection may last; whoever it is can come again.
const LASTS: Duration = Duration::from_secs(300);

/// How long it has after that to end what is under way.
const ENDS: Duration = Duration::from_secs(30);

/// The most that is read before a head has ended, in bytes.
const HEAD_BYTES: usize = 64 << 10;

/// Serve `router` for as long as the program runs. `header_timeout` is how long a head may take, and also how long a
/// connection may be idle.
pub(crate) async fn serve<L: Listener>(mut listener: L, router: Router, header_timeout: Duration) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(HEAD_BYTES);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let (stream, _) = listener.accept().await;
        let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router.clone()));
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            // How it ended is its client's business.
            if timeout(LASTS, connection.as_mut()).await.is_err() {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(ENDS, connection).await;
            }
            drop(place);
        });
    }
}
