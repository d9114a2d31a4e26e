//! Since when, without a gap, this process would have heard of every change: what "live" means.
//!
//! Two channels bring changes: the feed tells what was committed in Postgres, Redis's pushes tell what was done to a key
//! there. Each proves itself once a second. What was known while both were heard is confirmed as of the last moment that
//! they were; what was known before the present stretch began is not covered by it, since something may have been missed
//! in between.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

/// For how long a channel counts as live after it was last heard: three of its beats.
pub(super) const LIVE_FOR: Duration = Duration::from_secs(3);

/// How many ended stretches are remembered.
const REMEMBERED: usize = 8;

/// What brings changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Channel {
    /// Changes in Postgres.
    Feed,
    /// Changes of keys in Redis.
    Redis,
}

impl Channel {
    /// Every channel.
    pub(crate) const ALL: [Self; 2] = [Self::Feed, Self::Redis];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Feed => "feed",
            Self::Redis => "redis",
        }
    }
}

/// Which stretches of time are covered.
#[derive(Debug)]
pub(super) struct Coverage {
    origin: Instant,
    feed: Beats,
    /// None where no Redis is in use: then there is nothing to hear.
    redis: Option<Beats>,
    /// Stretches that have ended, newest first. Read at every request while a channel is down, hence without a lock.
    former: ArcSwap<Vec<Stretch>>,
}

/// A time in which nothing was missed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    /// Its beginning.
    pub(super) since: Instant,
    /// The last moment of which that is certain.
    pub(super) heard: Instant,
}

/// One channel's present stretch, in nanoseconds from the origin; 0 is "none".
#[derive(Debug, Default)]
struct Beats {
    since: AtomicU64,
    heard: AtomicU64,
}

impl Stretch {
    /// Whether it goes on.
    pub(super) fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.heard) < LIVE_FOR
    }

    /// Whether what was known at `known_at` lies in it.
    pub(super) fn covers(&self, known_at: Instant) -> bool {
        self.since <= known_at
    }
}

impl Coverage {
    /// Nothing is covered yet.
    pub(super) fn new(with_redis: bool, now: Instant) -> Self {
        Self { origin: now, feed: Beats::default(), redis: with_redis.then(Beats::default), former: ArcSwap::default() }
    }

    /// From `now` on nothing is missed. What came before may have been.
    pub(super) fn begin(&self, channel: Channel, now: Instant) {
        self.lost(channel);
        if let Some(beats) = self.channel(channel) {
            let nanos = self.nanos(now);
            beats.heard.store(nanos, Ordering::Relaxed);
            beats.since.store(nanos, Ordering::Release);
        }
    }

    /// The channel has proved that nothing was missed up to `now`.
    pub(super) fn heard(&self, channel: Channel, now: Instant) {
        if let Some(beats) = self.channel(channel) {
            beats.heard.fetch_max(self.nanos(now), Ordering::Relaxed);
        }
    }

    /// The channel has a gap.
    pub(super) fn lost(&self, channel: Channel) {
        let Some(beats) = self.channel(channel) else { return };
        let ended = self.stretch();
        if beats.since.swap(0, Ordering::AcqRel) != 0
            && let Some(ended) = ended
        {
            self.former.rcu(|former| {
                std::iter::once(ended).chain(former.iter().copied()).take(REMEMBERED).collect::<Vec<_>>()
            });
        }
    }

    /// Whether the channel was heard just now.
    pub(super) fn is_live(&self, channel: Channel, now: Instant) -> bool {
        self.channel(channel).and_then(|beats| self.read(beats)).is_some_and(|stretch| stretch.is_live(now))
    }

    /// The time in which every channel that there is is heard; it may have stopped without anybody saying so.
    pub(super) fn stretch(&self) -> Option<Stretch> {
        let feed = self.read(&self.feed)?;
        let Some(redis) = &self.redis else { return Some(feed) };
        let redis = self.read(redis)?;
        Some(Stretch { since: feed.since.max(redis.since), heard: feed.heard.min(redis.heard) })
    }

    /// Whether every channel that there is was heard just now.
    pub(super) fn live(&self, now: Instant) -> bool {
        self.stretch().is_some_and(|stretch| stretch.is_live(now))
    }

    /// Until when it is certain that what was known at `known_at` had not changed.
    pub(super) fn confirmed(&self, known_at: Instant) -> Instant {
        let covering = match self.stretch() {
            Some(stretch) if stretch.covers(known_at) => Some(stretch),
            _ => self.former.load().iter().find(|stretch| stretch.covers(known_at)).copied(),
        };
        covering.map_or(known_at, |stretch| known_at.max(stretch.heard))
    }

    fn read(&self, beats: &Beats) -> Option<Stretch> {
        let since = beats.since.load(Ordering::Acquire);
        let heard = beats.heard.load(Ordering::Relaxed);
        (since != 0).then(|| Stretch { since: self.instant(since), heard: self.instant(heard) })
    }

    fn channel(&self, channel: Channel) -> Option<&Beats> {
        match channel {
            Channel::Feed => Some(&self.feed),
            Channel::Redis => self.redis.as_ref(),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.origin + Duration::from_nanos(nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn live_while_every_channel_is_heard() {
        let origin = Instant::now();
        let at = |n| origin + seconds(n);
        let coverage = Coverage::new(true, origin);
        assert!(!coverage.live(at(1)));
        coverage.begin(Channel::Feed, at(1));
        assert!(!coverage.live(at(1)), "Redis is not heard");
        coverage.begin(Channel::Redis, at(2));
        assert!(coverage.live(at(2)));
        coverage.heard(Channel::Feed, at(5));
        assert!(!coverage.live(at(5)), "Redis was last heard three seconds ago");
        coverage.heard(Channel::Redis, at(5));
        assert!(coverage.live(at(5)), "and has missed nothing meanwhile");
        coverage.lost(Channel::Feed);
        assert!(!coverage.live(at(5)));

        let without_redis = Coverage::new(false, origin);
        without_redis.begin(Channel::Feed, at(1));
        assert!(without_redis.live(at(2)));
    }

    #[test]
    fn what_is_known_is_confirmed_as_long_as_nothing_was_missed() {
        let origin = Instant::now();
        let at = |n| origin + seconds(n);
        let coverage = Coverage::new(false, origin);
        assert_eq!(coverage.confirmed(at(1)), at(1), "never live");
        coverage.begin(Channel::Feed, at(10));
        coverage.heard(Channel::Feed, at(20));
        assert!(coverage.stretch().is_some_and(|stretch| !stretch.covers(at(9)) && stretch.covers(at(10))));
        assert_eq!(coverage.confirmed(at(9)), at(9), "from before the stretch");
        assert_eq!(coverage.confirmed(at(12)), at(20));
        assert_eq!(coverage.confirmed(at(21)), at(21), "from after the last beat");

        coverage.lost(Channel::Feed);
        assert_eq!(coverage.confirmed(at(12)), at(20), "a stretch that has ended still confirms");
        coverage.begin(Channel::Feed, at(30));
        coverage.heard(Channel::Feed, at(40));
        assert_eq!(coverage.confirmed(at(12)), at(20), "but the next one does not: there was a gap");
        assert_eq!(coverage.confirmed(at(25)), at(25), "known in the gap");
        coverage.begin(Channel::Feed, at(50));
        assert_eq!(coverage.confirmed(at(35)), at(40));
        assert_eq!(coverage.confirmed(at(12)), at(20));
    }
}
