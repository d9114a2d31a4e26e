//! The licence look-up: memory, then Redis, then the source, under one deadline, one load per tenant at a time.

mod loader;
mod memory;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use licensing::license::License;
use licensing::tenant::TenantId;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;

use self::loader::{Lane, Loader};
pub(crate) use self::memory::Entry;
use self::memory::Memory;
use crate::metrics::Metrics;
use crate::stores::{Breaker, BreakerState, Cached, FillToken, Redis, Source, StoreError, StoreName};

/// How old a licence may be, and how long a look-up may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freshness {
    /// How long a licence is used without asking anyone. While no change feed is live this is `revalidate_after`, where
    /// that is shorter than the TTL.
    pub fresh_for: Duration,
    /// How old a last known licence may be that is used while no store answers.
    pub stale_if_error: Duration,
    /// How long one look-up may take, all layers together.
    pub deadline: Duration,
    /// The most that licences may take in memory, in bytes.
    pub memory_bytes: u64,
}

/// Which layer answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Layer {
    /// This process.
    Memory,
    /// Redis.
    Redis,
    /// Postgres or the licence file.
    Source,
}

impl Layer {
    /// Every layer.
    pub(crate) const ALL: [Self; 3] = [Self::Memory, Self::Redis, Self::Source];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "redis",
            Self::Source => "source",
        }
    }
}

/// What is known of a tenant.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Its licence.
    License(Arc<Entry>),
    /// That it has none.
    Nothing,
    /// Its last known licence: no store answers, but it is not older than `stale_if_error`.
    Stale(Arc<Entry>),
    /// Nothing, for want of an answer.
    Failed {
        /// Whether it is the entry that is at fault, or an outage that a probe has confirmed; only then may anything be
        /// let through without a licence.
        certain: bool,
    },
}

/// The answer to one look-up.
#[derive(Clone, Debug)]
pub(crate) struct LookUp {
    /// What is known.
    pub found: Found,
    /// Which layer said so, if one did.
    pub layer: Option<Layer>,
}

/// All layers, and what is being loaded.
pub(crate) struct Licenses {
    memory: Memory,
    redis: Option<(Arc<Redis>, Arc<Breaker>)>,
    source: Arc<dyn Source>,
    loader: Loader,
    source_breaker: Arc<Breaker>,
    freshness: Freshness,
    loading: Mutex<HashMap<TenantId, watch::Receiver<Option<LookUp>>>>,
    /// Where loads run: not on the request's task, which ends when its client leaves while others still wait.
    runtime: Handle,
    metrics: Arc<Metrics>,
    reached: AtomicBool,
    jitter: u64,
}

impl Licenses {
    /// Put the layers together. Nothing is connected yet.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        redis: Option<Redis>,
        freshness: Freshness,
        runtime: Handle,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::new(freshness.memory_bytes, freshness.stale_if_error.max(freshness.fresh_for)),
            redis: redis.map(|redis| (Arc::new(redis), Breaker::new(StoreName::Redis))),
            source_breaker: Breaker::new(source.name()),
            loader: Loader::new(Arc::clone(&source), runtime.clone(), Arc::clone(&metrics)),
            source,
            freshness,
            loading: Mutex::default(),
            runtime,
            metrics,
            reached: AtomicBool::new(false),
            jitter: uuid::Uuid::new_v4().as_u64_pair().1,
        })
    }

    /// What memory knows and may still say. This is where nearly every request ends, so it waits for nothing: an answer
    /// that is about to become too old is renewed behind it, and in an outage the last known one is given at once.
    pub(crate) fn peek(self: &Arc<Self>, tenant: TenantId, now: Instant) -> Option<LookUp> {
        let from_memory = |found| Some(LookUp { found, layer: Some(Layer::Memory) });
        let Freshness { fresh_for, stale_if_error, .. } = self.freshness;
        let Some(entry) = self.memory.license(&tenant) else {
            let unknown_for = self.memory.unknown_for(&tenant, now)?;
            return if unknown_for < fresh_for { from_memory(Found::Nothing) } else { None };
        };
        let age = entry.age(now);
        if age < self.renew_at(tenant) {
            return from_memory(Found::License(entry));
        }
        let outage = !self.source_breaker.allows();
        if age < fresh_for {
            if !outage {
                drop(self.load(tenant));
            }
            return from_memory(Found::License(entry));
        }
        if outage && age < stale_if_error { from_memory(Found::Stale(entry)) } else { None }
    }

    /// Ask the stores, or wait for whoever is asking them already; at most `deadline`. The second value tells whether this
    /// call was the one that asked the source.
    pub(crate) async fn ask(self: &Arc<Self>, tenant: TenantId) -> (LookUp, bool) {
        let (mut result, leads) = self.load(tenant);
        let waited = tokio::time::timeout(self.freshness.deadline, result.wait_for(Option::is_some)).await;
        let answer = match waited {
            Ok(Ok(answer)) => answer.clone(),
            // Too late, or the load has died: what it finds later is for those who come later.
            Ok(Err(_)) | Err(_) => None,
        };
        let look_up = answer.unwrap_or_else(|| self.without_stores(tenant, false));
        let asked_source = leads && look_up.layer != Some(Layer::Redis);
        (look_up, asked_source)
    }

    /// Whether a store has ever answered: from then on this replica can decide.
    pub(crate) fn has_reached_a_store(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Try the stores until one answers, then close what lies idle, for as long as the program runs.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(1);
        loop {
            if !self.has_reached_a_store() {
                let redis = async { Some(self.redis.as_ref()?.0.probe().await) };
                let (source, redis) = tokio::join!(self.source.warm_up(), redis);
                match (source, redis) {
                    (Ok(()), _) | (_, Some(Ok(()))) => self.reached.store(true, Ordering::Release),
                    (Err(error), _) => tracing::warn!(%error, "no store answers yet"),
                }
            }
            self.source.close_idle();
            if let Some((redis, _)) = &self.redis {
                redis.close_idle();
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// The state of the breakers, by store.
    pub(crate) fn breakers(&self) -> impl Iterator<Item = (StoreName, BreakerState)> {
        let redis = self.redis.as_ref().map(|(_, breaker)| (StoreName::Redis, breaker.state()));
        [(self.source.name(), self.source_breaker.state())].into_iter().chain(redis)
    }

    /// How many licences memory holds, and their bytes.
    pub(crate) fn memory_use(&self) -> (u64, u64) {
        self.memory.usage()
    }

    /// Join the load of `tenant` that is under way, or begin one; true for whoever began it.
    fn load(self: &Arc<Self>, tenant: TenantId) -> (watch::Receiver<Option<LookUp>>, bool) {
        let mut loading = self.loading.lock();
        if let Some(result) = loading.get(&tenant) {
            return (result.clone(), false);
        }
        let (sender, result) = watch::channel(None);
        loading.insert(tenant, result.clone());
        let this = Arc::clone(self);
        self.runtime.spawn(async move {
            let ends = Ends { licenses: &this, tenant };
            let look_up = this.load_through(tenant).await;
            // Out of the table before the answer is known: who comes now finds it in memory, or asks anew.
            drop(ends);
            sender.send_replace(Some(look_up));
        });
        (result, true)
    }

    /// Redis, then the source, and back up through the layers.
    async fn load_through(&self, tenant: TenantId) -> LookUp {
        let begun = Instant::now();
        let token = match self.ask_redis(tenant, begun).await {
            RedisSays::License(entry) => {
                return LookUp { found: Found::License(entry), layer: Some(Layer::Redis) };
            }
            RedisSays::Nothing(token) => token,
        };
        if !self.source_breaker.allows() {
            self.give_up(tenant, token, begun).await;
            return self.without_stores(tenant, true);
        }
        // What Redis knows is in memory by now.
        let lane = if self.memory.license(&tenant).is_some() { Lane::Known } else { Lane::Stranger };
        let read_at = Instant::now();
        match self.loader.load(tenant, lane).await {
            Ok(license) => {
                self.reached.store(true, Ordering::Release);
                self.keep(tenant, license, token, read_at).await
            }
            Err(error) => {
                let unreadable = self.report(&error);
                self.give_up(tenant, token, begun).await;
                // Whoever waits may still be told that it is an outage, if the probe is quick to say so.
                self.source_breaker.settled().await;
                self.without_stores(tenant, unreadable)
            }
        }
    }

    /// Put the source's answer into memory and Redis.
    async fn keep(
        &self,
        tenant: TenantId,
        license: Option<License>,
        token: Option<FillToken>,
        read_at: Instant,
    ) -> LookUp {
        let found = match license {
            Some(license) => {
                let entry = Arc::new(Entry::new(license, read_at));
                self.memory.put(Arc::clone(&entry));
                Found::License(entry)
            }
            None => {
                self.memory.put_unknown(tenant, read_at);
                Found::Nothing
            }
        };
        if let (Some(token), Some((redis, _))) = (token, &self.redis) {
            let license = match &found {
                Found::License(entry) => Some(&entry.license),
                _ => None,
            };
            if let Err(error) = redis.fill(tenant, &token, license, read_at.elapsed()).await {
                self.report(&error);
            }
        }
        LookUp { found, layer: Some(Layer::Source) }
    }

    /// The claim on a key is of no use any more: whoever comes next may ask the source at once.
    async fn give_up(&self, tenant: TenantId, token: Option<FillToken>, begun: Instant) {
        if let (Some(token), Some((redis, breaker))) = (token, &self.redis)
            && breaker.allows()
            && let Err(error) = redis.fill(tenant, &token, None, begun.elapsed()).await
        {
            self.report(&error);
        }
    }

    async fn ask_redis(&self, tenant: TenantId, begun: Instant) -> RedisSays {
        /// How often a key that another replica is filling is looked at again.
        const POLL: Duration = Duration::from_millis(5);
        let Some((redis, breaker)) = &self.redis else { return RedisSays::Nothing(None) };
        let deadline = self.freshness.deadline;
        loop {
            if !breaker.allows() {
                return RedisSays::Nothing(None);
            }
            match redis.read(tenant, deadline).await {
                Ok(Cached::Hit { license, age, token }) => {
                    self.reached.store(true, Ordering::Release);
                    let Some(read_at) = Instant::now().checked_sub(age) else { return RedisSays::Nothing(Some(token)) };
                    let entry = Arc::new(Entry::new(license, read_at));
                    self.memory.put(Arc::clone(&entry));
                    if age < self.freshness.fresh_for {
                        return RedisSays::License(entry);
                    }
                    // Older than promised: the source has to confirm it.
                    return RedisSays::Nothing(Some(token));
                }
                Ok(Cached::Vacant(token)) => return RedisSays::Nothing(Some(token)),
                Ok(Cached::Unreadable(token, cause)) => {
                    self.report(&StoreError::Unreadable { store: StoreName::Redis, tenant, cause });
                    return RedisSays::Nothing(Some(token));
                }
                // Another replica asks the source; half of the time allowed is left for asking it ourselves.
                Ok(Cached::Busy) if begun.elapsed() < deadline / 2 => tokio::time::sleep(POLL).await,
                Ok(Cached::Busy) => return RedisSays::Nothing(None),
                Err(error) => {
                    self.report(&error);
                    return RedisSays::Nothing(None);
                }
            }
        }
    }

    /// What remains when no store answers: the last known licence within its bound.
    fn without_stores(&self, tenant: TenantId, certain: bool) -> LookUp {
        match self.memory.license(&tenant) {
            Some(entry) if entry.age(Instant::now()) < self.freshness.stale_if_error => {
                LookUp { found: Found::Stale(entry), layer: Some(Layer::Memory) }
            }
            _ => LookUp { found: Found::Failed { certain: certain || !self.source_breaker.allows() }, layer: None },
        }
    }

    /// Count a store's failure and have its breaker look into it. True if the failure is the entry's own.
    fn report(&self, error: &StoreError) -> bool {
        if let Some(store) = error.store() {
            self.metrics.store_errors.of(store).inc();
        }
        match error {
            StoreError::Shed => {
                self.metrics.lookups_shed.inc();
                false
            }
            StoreError::Unreadable { .. } => {
                tracing::error!(%error, "a licence can't be read");
                true
            }
            StoreError::Unavailable { store: StoreName::Redis, .. } => {
                if let Some((redis, breaker)) = &self.redis {
                    let redis = Arc::clone(redis);
                    breaker.report_failure(&self.runtime, error, move || {
                        let redis = Arc::clone(&redis);
                        async move { redis.probe().await }
                    });
                }
                false
            }
            StoreError::Unavailable { .. } | StoreError::Late { .. } => {
                let source = Arc::clone(&self.source);
                let probe = move || {
                    let source = Arc::clone(&source);
                    async move { source.probe().await }
                };
                match error {
                    // Only strangers' time-outs come here as such: they may have brought it about themselves.
                    StoreError::Late { .. } => self.source_breaker.look_into(&self.runtime, probe),
                    _ => self.source_breaker.report_failure(&self.runtime, error, probe),
                }
                false
            }
        }
    }

    /// At which age a licence is renewed in the background: between 70 and 90 % of its time, another share for each tenant
    /// and process, so that neither a fleet nor a replica renews all at once.
    fn renew_at(&self, tenant: TenantId) -> Duration {
        let bits = tenant.as_uuid().as_u64_pair().1 ^ self.jitter;
        let share = 70 + u32::try_from(bits % 21).unwrap_or_default();
        self.freshness.fresh_for * share / 100
    }
}

/// What Redis knows of a tenant.
enum RedisSays {
    /// A licence that may be used.
    License(Arc<Entry>),
    /// Nothing of use; with the token, the source's answer may be put there.
    Nothing(Option<FillToken>),
}

/// Takes a load out of the table however it ends.
struct Ends<'a> {
    licenses: &'a Licenses,
    tenant: TenantId,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.licenses.loading.lock().remove(&self.tenant);
    }
}
