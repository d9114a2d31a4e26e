//! Usage in this process's memory: for licences in a file, where there is one process and nothing outlasts it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::Date;
use licensing::config;
use licensing::quota::Period;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use licensing::view::Usage;
use parking_lot::Mutex;
use uuid::Uuid;

use super::usage::{
    Batch, Count, Crossing, Lease, LeaseRequest, Posted, QuotaKey, Settlement, Since, Standing, UsageSource, UsageStore,
};
use super::{Source, StoreError};
use crate::clock::wall_clock;

/// How many batches and leases are known again.
const KNOWN: usize = 10_000;

/// Of what is left of a limit, so much is granted at once: one part in so many.
const SHARE: u64 = 8;

/// Usage that is kept in memory.
pub(crate) struct MemoryUsage {
    /// Who has a licence, and since when.
    licenses: Arc<dyn Source>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    days: BTreeMap<(TenantId, Arc<str>, Date), u64>,
    windows: BTreeMap<QuotaKey, Window>,
    anchors: HashMap<TenantId, Date>,
    /// What was done under which id, and how much was granted.
    done: HashMap<Uuid, u64>,
    order: VecDeque<Uuid>,
}

/// A limit in one period.
#[derive(Debug, Default)]
struct Window {
    standing: Standing,
    /// The highest threshold that has been told.
    announced: u8,
}

impl MemoryUsage {
    /// Nothing is used yet. `licenses` says who has one.
    pub(crate) fn new(licenses: Arc<dyn Source>) -> Self {
        Self { licenses, kept: Mutex::default() }
    }

    /// How a limit stands; none: nothing was ever leased of it.
    #[cfg(test)]
    pub(crate) fn standing(&self, key: &QuotaKey) -> Option<Standing> {
        self.kept.lock().windows.get(key).map(|window| window.standing)
    }

    /// How often `tenant` has used all features on all days.
    #[cfg(test)]
    pub(crate) fn counted(&self, tenant: TenantId) -> u64 {
        self.kept.lock().days.iter().filter(|((of, ..), _)| *of == tenant).map(|(_, count)| count).sum()
    }

    /// How often `tenant` has used `feature` on `day`.
    #[cfg(test)]
    pub(crate) fn count_on(&self, tenant: TenantId, feature: &Arc<str>, day: Date) -> u64 {
        self.kept.lock().days.get(&(tenant, Arc::clone(feature), day)).copied().unwrap_or_default()
    }

    /// The tenants of `counts` that have no licence.
    async fn without_license(&self, counts: &[Count]) -> Result<HashSet<TenantId>, StoreError> {
        let tenants: HashSet<TenantId> = counts.iter().map(|count| count.tenant).collect();
        let tenants = Vec::from_iter(tenants);
        let answers = self.licenses.load(&tenants).await?;
        let has_none = tenants.into_iter().zip(answers).filter(|(_, answer)| matches!(answer, Ok(None)));
        Ok(has_none.map(|(tenant, _)| tenant).collect())
    }
}

#[async_trait]
impl UsageSource for MemoryUsage {
    async fn usage(&self, tenant: TenantId, since: &Since) -> Result<Usage, StoreError> {
        let mut usage = Usage::new();
        let kept = self.kept.lock();
        let from_tenant = kept.days.range((tenant, Arc::from(""), Date::MIN)..);
        for ((_, feature, day), count) in from_tenant.take_while(|((of, ..), _)| *of == tenant) {
            let named = since.of.iter().find(|(named, _)| named == feature);
            if *day >= named.map_or(since.day, |(_, day)| *day) {
                *usage.entry((&**feature).into()).or_default() += i64::try_from(*count).unwrap_or(i64::MAX);
            }
        }
        Ok(usage)
    }
}

#[async_trait]
impl UsageStore for MemoryUsage {
    async fn post(&self, batch: &Batch) -> Result<Posted, StoreError> {
        let without_license = self.without_license(&batch.counts).await?;
        let mut kept = self.kept.lock();
        let mut posted = Posted { standings: vec![None; batch.settlements.len()], ..Posted::default() };
        if kept.done.contains_key(&batch.id) {
            return Ok(posted);
        }
        for count in &batch.counts {
            match without_license.contains(&count.tenant) {
                true => posted.without_license += count.count,
                false => kept.count(count),
            }
        }
        for (settlement, standing) in batch.settlements.iter().zip(&mut posted.standings) {
            let Some(window) = kept.windows.get_mut(&settlement.key) else { continue };
            window.settle(settlement.spent, settlement.returned);
            *standing = Some(window.standing);
            posted.crossings.extend(window.cross(settlement, &batch.thresholds));
        }
        kept.remember(batch.id, 0);
        Ok(posted)
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Lease, StoreError> {
        let mut kept = self.kept.lock();
        let known = kept.done.get(&request.id).copied();
        let window = kept.window(&request.key);
        if let Some(granted) = known {
            return Ok(Lease { granted, standing: window.standing });
        }
        window.settle(request.spent, request.returned);
        let Standing { used, reserved } = &mut window.standing;
        let room = request.limit.saturating_sub(used.saturating_add(*reserved));
        let granted = request.wished.min(room / SHARE).max(request.needed).min(room);
        *reserved += granted;
        let lease = Lease { granted, standing: window.standing };
        kept.remember(request.id, granted);
        Ok(lease)
    }

    async fn anchor(&self, tenant: TenantId) -> Result<Date, StoreError> {
        let licenses = self.licenses.load(&[tenant]).await?;
        let since = licenses.into_iter().find_map(|answer| Some(answer.ok()??.valid_from));
        let today = || since.filter(|since| since.is_finite()).unwrap_or_else(wall_clock).day();
        Ok(*self.kept.lock().anchors.entry(tenant).or_insert_with(today))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn clicked(&self, _: TenantId, _: &str, _: Timestamp) -> Result<(), StoreError> {
        // Denials are metrics and log alone here: nobody could ask for them.
        Ok(())
    }
}

impl Kept {
    fn count(&mut self, count: &Count) {
        let Count { tenant, feature, day, .. } = count;
        *self.days.entry((*tenant, Arc::clone(feature), *day)).or_default() += count.count;
        if count.unleased > 0 {
            let first = Period { window: config::Window::Day, start: Date::MIN, end: None };
            let from = QuotaKey { tenant: *tenant, feature: Arc::clone(feature), period: first };
            let is_same = |key: &QuotaKey| key.tenant == *tenant && key.feature == *feature;
            for (key, window) in self.windows.range_mut(from..).take_while(|(key, _)| is_same(key)) {
                if key.period.contains(*day) {
                    window.standing.used += count.unleased;
                }
            }
        }
    }

    /// The window of `key`, which is there from now on. What was counted before there was a limit counts.
    fn window(&mut self, key: &QuotaKey) -> &mut Window {
        match self.windows.entry(key.clone()) {
            Entry::Occupied(window) => window.into_mut(),
            Entry::Vacant(place) => {
                let Period { start, end, .. } = key.period;
                let place_of = |day| (key.tenant, Arc::clone(&key.feature), day);
                let days = self.days.range(place_of(start)..=place_of(Date::MAX));
                let used = days.filter(|((.., day), _)| end.is_none_or(|end| *day < end)).map(|(_, count)| count).sum();
                place.insert(Window { standing: Standing { used, reserved: 0 }, announced: 0 })
            }
        }
    }

    fn remember(&mut self, id: Uuid, granted: u64) {
        self.done.insert(id, granted);
        self.order.push_back(id);
        if self.order.len() > KNOWN
            && let Some(first) = self.order.pop_front()
        {
            self.done.remove(&first);
        }
    }
}

impl Window {
    fn settle(&mut self, spent: u64, returned: u64) {
        let Standing { used, reserved } = &mut self.standing;
        *used = used.saturating_add(spent);
        *reserved = reserved.saturating_sub(spent.saturating_add(returned));
    }

    /// The thresholds that are passed, and had not been. A limit that is raised takes back those that it is below again.
    fn cross(&mut self, settlement: &Settlement, thresholds: &[u8]) -> Vec<Crossing> {
        let Settlement { key, limit, .. } = settlement;
        let used = self.standing.used;
        let is_passed = |percent: u8| *limit > 0 && u128::from(used) * 100 >= u128::from(*limit) * u128::from(percent);
        let passed = thresholds.iter().copied().filter(|percent| is_passed(*percent));
        let news = passed.clone().filter(|percent| *percent > self.announced);
        let crossing = |percent| Crossing { key: key.clone(), percent, used, limit: *limit };
        let crossings = news.map(crossing).collect();
        self.announced = passed.max().unwrap_or_default();
        crossings
    }
}
