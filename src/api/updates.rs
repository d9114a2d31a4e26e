//! What a WebSocket tells: the licence, then each other licence that it becomes, by a change or by the clock, and shares of limits
//! that are used up.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::time::Duration;

use licensing::time::Timestamp;
use licensing::view::{Message, View};
use rustc_hash::FxBuildHasher;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::license::{Held, LicenseApi};
use super::websocket::Updates;
use crate::clock::wall_clock;
use crate::licenses::{News, Watch};
use crate::snapshot::Snapshots;

/// The longest that a licence is not looked at, whatever is heard: clocks are set, and configurations change.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// After how long it is tried again where no store could tell.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What the client of one socket is told of one tenant's licence.
pub(crate) struct LicenseUpdates {
    api: Arc<LicenseApi>,
    snapshots: Snapshots,
    watch: Watch,
    /// A hash of what was told last; none: nothing yet.
    told: Option<u64>,
    /// When to look again if nothing is heard.
    look_at: Instant,
}

impl LicenseUpdates {
    /// Tell of what `watch` watches.
    pub(crate) fn new(api: Arc<LicenseApi>, snapshots: Snapshots, watch: Watch) -> Self {
        Self { api, snapshots, watch, told: None, look_at: Instant::now() }
    }

    /// The message about what is held now, if that is another than was told last.
    async fn look(&mut self) -> Option<Utf8Bytes> {
        let tenant = self.watch.tenant();
        let Ok((held, _)) = self.api.held(tenant).await else {
            self.look_at = Instant::now() + RETRY_AFTER;
            return None;
        };
        let snapshot = self.snapshots.load_full();
        let (now, grace) = (wall_clock(), snapshot.policy.grace);
        let look_at = Instant::now() + until_turn(&held, grace, now);
        let told = FxBuildHasher.hash_one(Told(&held, grace, now));
        if self.told == Some(told) {
            self.look_at = look_at;
            return None;
        }
        let document = match &held {
            Some(entry) => Some(self.api.document(tenant, &entry.license, &snapshot).await),
            None => None,
        };
        let message = if self.told.is_none() { Message::Current } else { Message::Updated };
        // From here on nothing is waited for: it is told, or not, as a whole.
        (self.told, self.look_at) = (Some(told), look_at);
        Some(message.about(document.as_deref()).into())
    }
}

impl Updates for LicenseUpdates {
    async fn next(&mut self) -> Utf8Bytes {
        loop {
            if self.look_at <= Instant::now()
                // Boxed, since every socket that is open would hold the place for it.
                && let Some(message) = Box::pin(self.look()).await
            {
                return message;
            }
            tokio::select! {
                news = self.watch.news() => match news {
                    News::License => self.look_at = Instant::now(),
                    News::Threshold(threshold) if self.told.is_some() => return threshold.to_message().into(),
                    // The licence comes first, and with it what is used.
                    News::Threshold(_) => {}
                },
                () = sleep_until(self.look_at) => {}
            }
        }
    }
}

/// What of a licence is news: everything but its use.
struct Told<'a>(&'a Held, Duration, Timestamp);

impl Hash for Told<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let Self(held, grace, now) = self;
        held.as_ref().map(|entry| View::new(&entry.license, *grace, None, *now).to_json()).hash(state);
    }
}

/// How long until the clock changes what is held, or it should be looked at anyway.
fn until_turn(held: &Held, grace: Duration, now: Timestamp) -> Duration {
    /// Clocks are not read to the microsecond.
    const MARGIN: Duration = Duration::from_millis(1);
    let turn = held.as_ref().and_then(|entry| entry.license.next_turn(grace, now));
    let micros = turn.map(|turn| turn.as_micros().saturating_sub(now.as_micros()));
    let until =
        micros.and_then(|micros| u64::try_from(micros).ok()).map(|micros| Duration::from_micros(micros) + MARGIN);
    until.unwrap_or(LOOK_EVERY).min(LOOK_EVERY)
}
