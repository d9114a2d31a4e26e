//! What is heard of changes, from the feed and from Redis, and what becomes of what was known.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use licensing::tenant::TenantId;
use tokio::sync::broadcast::{self, error::RecvError};

use super::Licenses;
use super::coverage::Channel;
use super::pulse::{Beat, Heard, Sessions};
use crate::metrics::ChangeKind;
use crate::stores::{Crossing, CrossingNotice, Push};

/// How far what lies in Redis is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Trust {
    /// As far as its age allows: nobody vouches for it.
    ByAge,
    /// It is current: a feed that misses nothing takes out what has changed.
    Current,
    /// Not at all: a change that was heard of may not have reached it.
    Behind,
}

impl Licenses {
    /// `tenant` has changed, to `revision` if that is known: what memory has, and what is being read, is in doubt. Answers
    /// whether requests use it.
    pub(super) fn doubt(&self, tenant: TenantId, revision: Option<i64>) -> bool {
        let loading = self.loading.lock();
        if let Some(flight) = loading.get(&tenant) {
            flight.disturb(revision);
        }
        self.memory.doubt(&tenant, revision)
    }

    /// The same, and Redis knows too: whoever is in use, or watched, is asked for at once.
    pub(super) fn changed(self: &Arc<Self>, tenant: TenantId, revision: Option<i64>) {
        let in_use = self.doubt(tenant, revision);
        if (in_use || self.watchers.has(&tenant)) && self.source_breaker.allows() {
            drop(self.load(tenant, false));
        }
    }

    /// Anything may have changed.
    pub(super) fn everything_changed(&self) {
        let loading = self.loading.lock();
        loading.values().for_each(|flight| flight.disturb(None));
        self.memory.doubt_everything();
        self.watchers.doubt_everything();
    }

    /// Tenants that were unknown may have a licence now.
    pub(super) fn tenants_added(&self) {
        let loading = self.loading.lock();
        loading.values().for_each(|flight| flight.disturb(None));
        self.memory.forget_unknown();
        self.watchers.doubt_everything();
    }

    /// The tables were dropped to turn licensing off, or are there again.
    pub(super) fn turn(&self, off: bool) {
        if self.off.swap(off, Ordering::Relaxed) == off {
            return;
        }
        if off {
            tracing::error!(
                "LICENSING IS OFF: the tables tenant_licenses and feature_usage were dropped, or were created again and \
                 hold no licence yet; every request is forwarded"
            );
        } else {
            tracing::warn!("licensing is on again: tenant_licenses is there and holds licences");
        }
    }

    /// What Redis tells without being asked.
    pub(super) fn pushed(self: &Arc<Self>, push: Push) {
        let now = Instant::now();
        match push {
            Push::Connected => {
                self.coverage.begin(Channel::Redis, now);
                tracing::info!("Redis tells of changes");
            }
            Push::Lost => {
                self.coverage.lost(Channel::Redis);
                self.relay_lost();
                tracing::warn!("the connection to Redis is lost: changes there go unheard until it is back");
            }
            Push::Changed(tenant) => {
                self.metrics.changes.of(ChangeKind::Key).inc();
                self.changed(tenant, None);
            }
            Push::Flushed => {
                self.metrics.changes.of(ChangeKind::Flush).inc();
                self.everything_changed();
                tracing::warn!("Redis was flushed: every licence is asked for again");
            }
            Push::Published(message) => match message.parse() {
                Ok(heard) => self.heard(&heard, now),
                Err(()) => tracing::warn!(message, "a message in a form that is not known was published"),
            },
        }
    }

    fn heard(self: &Arc<Self>, heard: &Heard, now: Instant) {
        match heard {
            Heard::Change(change) => {
                self.metrics.changes.of(ChangeKind::License).inc();
                self.changed(change.tenant, Some(change.revision));
            }
            Heard::Doubt(tenant) => {
                self.metrics.changes.of(ChangeKind::Refresh).inc();
                self.changed(*tenant, None);
            }
            Heard::Everything => {
                self.metrics.changes.of(ChangeKind::Everything).inc();
                self.everything_changed();
                tracing::warn!("many licences changed at once: every licence is asked for again");
            }
            Heard::Added => {
                self.metrics.changes.of(ChangeKind::Added).inc();
                self.tenants_added();
            }
            Heard::Position(position) => self.source.require(*position),
            Heard::Threshold(notice) => self.threshold_heard(notice),
            Heard::Pulse(pulse) => {
                let Some(relayed) = &self.relayed else { return };
                if let Some(position) = pulse.position {
                    self.source.require(position);
                }
                match relayed.lock().heard(&pulse.session, now) {
                    Beat::Aside => return,
                    Beat::Continues => {}
                    Beat::Begins => {
                        // After a failover the log may be shorter than the former primary's.
                        if let Some(position) = pulse.position {
                            self.source.restart_from(position);
                        }
                        self.coverage.begin(Channel::Feed, now);
                        tracing::info!(session = pulse.session, "a relay tells of changes");
                    }
                }
                self.coverage.heard(Channel::Feed, now);
                self.trust(Trust::Current);
                self.turn(pulse.off);
            }
        }
    }

    /// A share of a limit is used up. There may be several who tell of it: two relays, say.
    pub(super) fn threshold_heard(&self, notice: &CrossingNotice) {
        if self.watchers.has(&notice.tenant) && self.thresholds.entry(notice.clone()).or_insert(()).is_fresh() {
            self.watchers.tell_threshold(&notice.tenant, &notice.threshold);
        }
    }

    /// For as long as the program runs: tell of the shares that this replica finds used up, where there is no feed by which it
    /// would hear of them as of all others.
    pub(crate) async fn tell_thresholds(self: Arc<Self>, mut crossings: broadcast::Receiver<Crossing>) {
        loop {
            match crossings.recv().await {
                Ok(crossing) => self.watchers.tell_threshold(&crossing.key.tenant, &crossing.threshold()),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Messages were missed: what the relays have said since is unknown.
    fn relay_lost(&self) {
        if let Some(relayed) = &self.relayed {
            *relayed.lock() = Sessions::default();
            self.coverage.lost(Channel::Feed);
        }
    }

    pub(super) fn trust(&self, trust: Trust) {
        self.trust.store(trust as u8, Ordering::Release);
    }

    pub(super) fn trusted(&self, now: Instant) -> Trust {
        const BEHIND: u8 = Trust::Behind as u8;
        const CURRENT: u8 = Trust::Current as u8;
        match self.trust.load(Ordering::Acquire) {
            BEHIND => Trust::Behind,
            CURRENT if self.coverage.live(now) => Trust::Current,
            _ => Trust::ByAge,
        }
    }
}
