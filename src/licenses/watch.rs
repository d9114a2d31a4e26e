//! Who wants to be told when a licence changes: the open WebSockets, by tenant.
//!
//! Nobody asks for them in turns. What is heard of a change makes the licence be read again at once, as it does for tenants
//! that send requests, and whoever watches is told when memory holds something else than before. So what the sockets show
//! and what the gate enforces change at the same moment. What can't be heard of (a channel is down, or was) is found since
//! licences that are watched are renewed when they grow old, once a second, instead of at the next request.
//!
//! They are also told of shares of limits that are used up, which is said once: whoever is not there does not hear of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use licensing::tenant::TenantId;
use licensing::view::Threshold;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};

use super::{Licenses, Standing};

/// How many thresholds of one tenant wait for one that watches; then the oldest are passed over.
const THRESHOLDS: usize = 16;

/// Those who watch.
#[derive(Default)]
pub(super) struct Watchers {
    tenants: Mutex<HashMap<TenantId, Topic>>,
    /// All of them may be out of date.
    everything: Notify,
}

/// A tenant that is watched, and by how many.
struct Topic {
    news: watch::Sender<()>,
    thresholds: broadcast::Sender<Arc<Threshold>>,
    watchers: usize,
}

/// Somebody watches the licence of one tenant.
pub(crate) struct Watch {
    licenses: Arc<Licenses>,
    tenant: TenantId,
    ear: Ear,
}

/// Hears what is told of one tenant.
struct Ear {
    news: watch::Receiver<()>,
    thresholds: broadcast::Receiver<Arc<Threshold>>,
}

/// What somebody who watches is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The licence is perhaps another than before. Whoever is told looks for themselves.
    License,
    /// A share of a limit is used up.
    Threshold(Arc<Threshold>),
}

impl Watch {
    /// Whose licence.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    /// Wait for what there is to tell since this was called last. Whoever stops waiting misses nothing.
    pub(crate) async fn news(&mut self) -> News {
        self.ear.hear().await
    }
}

impl Ear {
    async fn hear(&mut self) -> News {
        loop {
            tokio::select! {
                biased;
                Ok(()) = self.news.changed() => return News::License,
                threshold = self.thresholds.recv() => match threshold {
                    Ok(threshold) => return News::Threshold(threshold),
                    Err(RecvError::Lagged(_)) => {}
                    // The senders live as long as somebody listens.
                    Err(RecvError::Closed) => std::future::pending().await,
                },
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.licenses.watchers.leave(self.tenant);
    }
}

impl Watchers {
    fn join(&self, tenant: TenantId) -> Ear {
        let mut tenants = self.tenants.lock();
        let topic = tenants.entry(tenant).or_insert_with(|| Topic {
            news: watch::Sender::new(()),
            thresholds: broadcast::Sender::new(THRESHOLDS),
            watchers: 0,
        });
        topic.watchers += 1;
        Ear { news: topic.news.subscribe(), thresholds: topic.thresholds.subscribe() }
    }

    /// One of those who watch `tenant` leaves.
    fn leave(&self, tenant: TenantId) {
        let mut tenants = self.tenants.lock();
        if let Entry::Occupied(mut topic) = tenants.entry(tenant) {
            topic.get_mut().watchers -= 1;
            if topic.get().watchers == 0 {
                topic.remove();
            }
        }
    }

    /// Whether somebody watches `tenant`.
    pub(super) fn has(&self, tenant: &TenantId) -> bool {
        self.tenants.lock().contains_key(tenant)
    }

    /// Memory holds something else for `tenant` than before.
    pub(super) fn tell(&self, tenant: &TenantId) {
        if let Some(topic) = self.tenants.lock().get(tenant) {
            topic.news.send_replace(());
        }
    }

    /// A share of a limit of `tenant` is used up.
    pub(super) fn tell_threshold(&self, tenant: &TenantId, threshold: &Threshold) {
        if let Some(topic) = self.tenants.lock().get(tenant) {
            // Somebody may just be leaving.
            let _ = topic.thresholds.send(Arc::new(threshold.clone()));
        }
    }

    /// Any licence may have changed.
    pub(super) fn doubt_everything(&self) {
        self.everything.notify_one();
    }

    fn tenants(&self) -> Vec<TenantId> {
        self.tenants.lock().keys().copied().collect()
    }
}

impl Licenses {
    /// Watch the licence of `tenant`. Look at it after this, not before: what changes in between would be missed.
    pub(crate) fn watch(self: &Arc<Self>, tenant: TenantId) -> Watch {
        Watch { licenses: Arc::clone(self), tenant, ear: self.watchers.join(tenant) }
    }

    /// For as long as the program runs: have the licences that are watched renewed.
    pub(crate) async fn keep_watched(self: Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(1);
        /// The most by which this replica comes later than others that have heard the same.
        const APART: u64 = 100;
        let apart = Duration::from_millis(self.jitter % APART);
        loop {
            if tokio::time::timeout(INTERVAL, self.watchers.everything.notified()).await.is_ok() {
                tokio::time::sleep(apart).await;
            }
            self.renew_watched().await;
        }
    }

    /// Have those read again that have to be, as many at once as the stores answer without effort: requests want them too.
    async fn renew_watched(self: &Arc<Self>) {
        const AT_ONCE: usize = 64;
        let tenants = self.watchers.tenants();
        let now = Instant::now();
        // In an outage nothing is learnt by asking.
        let due = tenants.into_iter().filter(|tenant| self.source_breaker.allows() && self.should_renew(tenant, now));
        let renewed = stream::iter(due).map(|tenant| async move {
            let (flight, _) = self.load(tenant, false);
            let mut result = flight.result.clone();
            let answered = result.wait_for(Option::is_some);
            // If it takes longer, the next round sees to it.
            drop(tokio::time::timeout(self.freshness.deadline, answered).await);
        });
        renewed.buffer_unordered(AT_ONCE).collect::<()>().await;
    }

    fn should_renew(&self, tenant: &TenantId, now: Instant) -> bool {
        if self.memory.is_faulty(tenant) {
            return false;
        }
        match (self.memory.license(tenant), self.memory.unknown(tenant)) {
            (Some(entry), _) => self.standing(&entry.mark, *tenant, now) != Standing::Fresh,
            (None, Some(mark)) => self.standing(&mark, *tenant, now) != Standing::Fresh,
            (None, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    fn is_told(ear: &mut Ear) -> bool {
        ear.hear().now_or_never() == Some(News::License)
    }

    #[test]
    fn those_who_watch_a_tenant_are_told_of_it_and_forgotten_when_they_leave() {
        let (a, b) = (TenantId::new(Uuid::from_u128(1)), TenantId::new(Uuid::from_u128(2)));
        let watchers = Watchers::default();
        let (mut one, mut two, mut other) = (watchers.join(a), watchers.join(a), watchers.join(b));
        watchers.tell(&a);
        watchers.tell(&a);
        assert!(is_told(&mut one) && is_told(&mut two));
        assert!(!is_told(&mut one), "once, however often it was said");
        assert!(!is_told(&mut other));

        let thresholds =
            [80, 100].map(|percent| Threshold { feature: "crm".into(), percent, used: 9, limit: 9, resets_at: None });
        thresholds.iter().for_each(|threshold| watchers.tell_threshold(&a, threshold));
        for ear in [&mut one, &mut two] {
            let told = [(); 3].map(|()| ear.hear().now_or_never());
            let [first, second] = thresholds.clone().map(|threshold| Some(News::Threshold(Arc::new(threshold))));
            assert_eq!(told, [first, second, None]);
        }
        assert_eq!(other.hear().now_or_never(), None);

        watchers.leave(a);
        assert!(watchers.has(&a), "the other one still does");
        watchers.tell(&a);
        assert!(is_told(&mut two));
        watchers.leave(a);
        assert!(!watchers.has(&a) && watchers.has(&b));
        assert_eq!(watchers.tenants(), [b]);
    }
}
