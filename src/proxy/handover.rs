//! A connection on its way from pingora to a WebSocket: what `request_filter` has found out goes along with it.

use std::future::pending;
use std::time::Duration;

use licensing::time::Timestamp;
use pingora::protocols::Stream;
use pingora::protocols::l4::ext::set_snd_buf;
use pingora::server::ShutdownWatch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::updates::LicenseUpdates;
use crate::api::websocket::{self, Cause};
use crate::clock::wall_clock;
use crate::load::Connection;
use crate::metrics::OpenSocket;

/// How much the kernel takes for a client that does not read, in bytes (it takes twice what it is told). By itself it would
/// take megabytes, and whoever does not read would not be noticed before.
const SEND_BUFFER: usize = 32 << 10;

/// Over how long the ends of all sockets are spread when the program ends: their clients come back, elsewhere.
const PARTING: Duration = Duration::from_secs(1);

/// A WebSocket whose handshake has been answered.
pub(super) struct Handover {
    updates: LicenseUpdates,
    expires: Option<Instant>,
    open: OpenSocket,
}

impl Handover {
    /// `expires` is when whoever opened it is not believed any longer.
    pub(super) fn new(updates: LicenseUpdates, expires: Option<Timestamp>, open: OpenSocket) -> Self {
        Self { updates, expires: expires.and_then(instant), open }
    }

    /// Serve it to its end; `_place` is its place among the connections.
    pub(super) async fn serve(self, stream: Stream, _place: Connection, shutdown: ShutdownWatch) {
        if let Err(error) = set_snd_buf(stream.id(), SEND_BUFFER) {
            tracing::debug!(%error, "the send buffer of a WebSocket can't be set");
        }
        let cause = websocket::serve(stream, self.updates, end(self.expires, shutdown)).await;
        self.open.closed(cause);
    }
}

async fn end(expires: Option<Instant>, mut shutdown: ShutdownWatch) -> Cause {
    let expiry = async {
        match expires {
            Some(at) => sleep_until(at).await,
            None => pending().await,
        }
    };
    // Whoever could say that it ends is gone: it has ended.
    let ends = async { drop(shutdown.wait_for(|ends| *ends).await) };
    tokio::select! {
        () = expiry => Cause::Expired,
        () = ends => {
            let share = uuid::Uuid::new_v4().as_u64_pair().1 % 1000;
            sleep(PARTING.mul_f64(share as f64 / 1000.0)).await;
            Cause::Shutdown
        }
    }
}

/// When that is by the monotonic clock; none: never.
fn instant(time: Timestamp) -> Option<Instant> {
    let micros = time.is_finite().then(|| time.as_micros().saturating_sub(wall_clock().as_micros()))?;
    Instant::now().checked_add(Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
}
