//! Clicks on the way to an upgrade that wait to be written: after the denials that were counted before them.
//!
//! Whoever clicks asks nothing of the store, so that no flood of clicks does, and none is lost for want of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Recorder;
use crate::stores::StoreError;

/// How many tenants and features may wait.
const MOST: usize = 10_000;

/// How many are written with one flush: each is a transaction of its own, and leases and batches go by the same connections.
const AT_ONCE: usize = 100;

/// After how long with one flush the others wait for the next: batches wait behind them.
const WITHIN: Duration = Duration::from_secs(1);

type Key = (TenantId, Arc<str>);

/// Those that wait, by tenant and feature.
#[derive(Default)]
pub(super) struct Clicks(Mutex<HashMap<Key, Click>>);

#[derive(Clone, Copy)]
struct Click {
    /// The latest.
    at: Timestamp,
    /// How often it could not be written: others go first.
    failures: u32,
}

impl Recorder {
    /// A person follows the way from a denial of `feature` to an upgrade: its denials are marked with the next flush, or with
    /// the first one that the store takes. False: too many wait already.
    pub(crate) fn clicked(&self, tenant: TenantId, feature: &Arc<str>, at: Timestamp) -> bool {
        self.clicks.add((tenant, Arc::clone(feature)), at)
    }

    /// Write some of those that wait. False: the store does not take them now.
    pub(super) async fn write_clicks(&self) -> bool {
        let until = Instant::now() + WITHIN;
        for (key, at) in self.clicks.first(AT_ONCE) {
            if Instant::now() > until {
                break;
            }
            if !self.breaker.allows() {
                return false;
            }
            match self.store.clicked(key.0, &key.1, at).await {
                Ok(()) => {}
                Err(error @ StoreError::Refused { .. }) => {
                    tracing::error!(%error, tenant = %key.0, feature = &*key.1, "a click was refused, and is lost");
                }
                Err(error) => {
                    self.report(&error);
                    self.clicks.failed(&key);
                    tracing::debug!(%error, "a click can't be written down yet");
                    return false;
                }
            }
            self.clicks.left(&key, at);
        }
        true
    }
}

impl Clicks {
    fn add(&self, key: Key, at: Timestamp) -> bool {
        let mut clicks = self.0.lock();
        let waiting = clicks.len();
        match clicks.get_mut(&key) {
            Some(click) => click.at = at.max(click.at),
            None if waiting < MOST => drop(clicks.insert(key, Click { at, failures: 0 })),
            None => return false,
        }
        true
    }

    /// So many of them, which stay until they have [left](Self::left).
    fn first(&self, count: usize) -> Vec<(Key, Timestamp)> {
        let clicks = self.0.lock();
        let mut waiting: Vec<_> = clicks.iter().map(|(key, click)| (click.failures, key, click.at)).collect();
        waiting.sort_unstable();
        waiting.into_iter().take(count).map(|(_, key, at)| (key.clone(), at)).collect()
    }

    fn failed(&self, key: &Key) {
        if let Some(click) = self.0.lock().get_mut(key) {
            click.failures += 1;
        }
    }

    /// One is written. If there was another meanwhile, that one waits.
    fn left(&self, key: &Key, at: Timestamp) {
        let mut clicks = self.0.lock();
        if clicks.get(key).is_some_and(|click| click.at == at) {
            clicks.remove(key);
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn key(id: u128, feature: &str) -> Key {
        (TenantId::new(Uuid::from_u128(id)), feature.into())
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn the_latest_of_each_tenant_and_feature_waits_until_it_is_written() {
        let clicks = Clicks::default();
        for (id, feature, micros) in [(1, "crm", 10), (1, "crm", 30), (1, "crm", 20), (1, "tickets", 5), (2, "crm", 7)]
        {
            assert!(clicks.add(key(id, feature), at(micros)));
        }
        let waiting = [(key(1, "crm"), at(30)), (key(1, "tickets"), at(5)), (key(2, "crm"), at(7))];
        assert_eq!(clicks.first(9), waiting);
        assert_eq!(clicks.first(1), waiting[..1]);

        clicks.add(key(1, "crm"), at(40));
        clicks.left(&key(1, "crm"), at(30));
        clicks.left(&key(2, "crm"), at(7));
        assert_eq!(
            clicks.first(9),
            [(key(1, "crm"), at(40)), (key(1, "tickets"), at(5))],
            "one came while it was written"
        );
    }

    #[test]
    fn one_that_fails_is_in_nobodys_way() {
        let clicks = Clicks::default();
        (1..=3).for_each(|id| assert!(clicks.add(key(id, "crm"), at(0))));
        clicks.failed(&key(1, "crm"));
        clicks.failed(&key(1, "crm"));
        clicks.failed(&key(2, "crm"));
        let order: Vec<_> = clicks.first(9).into_iter().map(|(key, _)| key).collect();
        assert_eq!(order, [key(3, "crm"), key(2, "crm"), key(1, "crm")]);
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let clicks = Clicks::default();
        assert!((0..MOST as u128).all(|id| clicks.add(key(id, "crm"), at(0))));
        assert!(!clicks.add(key(u128::MAX, "crm"), at(0)));
        assert!(clicks.add(key(0, "crm"), at(1)), "who waits already clicks again");
        clicks.left(&key(1, "crm"), at(0));
        assert!(clicks.add(key(u128::MAX, "crm"), at(0)), "there is room again");
        assert_eq!(clicks.len(), MOST);
    }
}
