//! One load at a time for each tenant: Redis, then the source, and back up; read again if something was heard meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use licensing::license::License;
use licensing::tenant::TenantId;
use tokio::sync::watch;

use super::hear::Trust;
use super::loader::Lane;
use super::memory::{Entry, Mark};
use super::{Found, Freshness, Layer, Licenses, LookUp};
use crate::stores::{Cached, FillToken, Filled, Hit, StoreError, StoreName};

/// A load under way.
pub(super) struct Flight {
    pub(super) result: watch::Receiver<Option<LookUp>>,
    /// Something was heard of the tenant since the reading began.
    dirty: AtomicBool,
    /// The greatest revision that was announced meanwhile.
    announced: AtomicI64,
    /// Only whether Redis has something newer than memory is asked.
    recheck: bool,
}

/// One attempt of a load.
struct Attempt<'a> {
    tenant: TenantId,
    flight: &'a Flight,
    /// How often everything had become doubtful when it began.
    generation: u64,
    begun: Instant,
}

/// What one attempt has found.
struct Reading {
    look_up: LookUp,
    /// From before the source was asked.
    read_at: Instant,
    /// Whether memory does not have it yet.
    is_new: bool,
    /// Whether the key in Redis was taken from us: something has happened to it.
    overtaken: bool,
}

/// What Redis knows of a tenant.
enum RedisSays {
    /// A licence that may be used.
    License(Arc<Entry>),
    /// Nothing that memory does not know.
    NothingNewer(Arc<Entry>),
    /// Nothing of use; with the token, the source's answer may be put there.
    Nothing(Option<FillToken>),
}

impl Licenses {
    /// Join the load of `tenant` that is under way, or begin one; true for whoever began it.
    pub(super) fn load(self: &Arc<Self>, tenant: TenantId, recheck: bool) -> (Arc<Flight>, bool) {
        let mut loading = self.loading.lock();
        if let Some(flight) = loading.get(&tenant) {
            return (Arc::clone(flight), false);
        }
        let (sender, result) = watch::channel(None);
        let (dirty, announced) = (AtomicBool::new(false), AtomicI64::new(i64::MIN));
        let flight = Arc::new(Flight { result, dirty, announced, recheck });
        loading.insert(tenant, Arc::clone(&flight));
        let (this, begun) = (Arc::clone(self), Arc::clone(&flight));
        self.runtime.spawn(async move {
            let _ends = Ends { licenses: &this, tenant, flight: &begun };
            let look_up = this.load_through(tenant, &begun).await;
            sender.send_replace(Some(look_up));
        });
        (flight, true)
    }

    /// Read until nothing was heard of the tenant in the meantime, and remember what was read.
    async fn load_through(&self, tenant: TenantId, flight: &Flight) -> LookUp {
        const ATTEMPTS: usize = 3;
        for attempt in 1.. {
            flight.dirty.store(false, Ordering::Release);
            let generation = self.memory.generation();
            let read = self.read_through(&Attempt { tenant, flight, generation, begun: Instant::now() }).await;
            // Whatever is heard from here on finds the result in memory.
            let mut loading = self.loading.lock();
            let dirty = flight.dirty.load(Ordering::Acquire) || read.overtaken;
            if dirty && attempt < ATTEMPTS && read.look_up.layer.is_some() {
                continue;
            }
            let doubtful = flight.dirty.load(Ordering::Acquire);
            match &read.look_up.found {
                Found::License(entry) if read.is_new => {
                    // It may answer whoever waits, but nobody who comes later.
                    if doubtful {
                        entry.mark.doubt(flight.announced.load(Ordering::Relaxed));
                    }
                    let before = self.memory.license(&tenant);
                    self.memory.put(Arc::clone(entry));
                    if before.is_none_or(|before| before.license != entry.license) {
                        self.watchers.tell(&tenant);
                    }
                }
                Found::Nothing if !doubtful => {
                    self.memory.put_unknown(tenant, Mark::new(read.read_at, read.read_at, generation));
                    self.watchers.tell(&tenant);
                }
                _ => {}
            }
            // Out of the table before the answer is known: who comes now finds it in memory, or asks anew.
            loading.remove(&tenant);
            return read.look_up;
        }
        unreachable!("the last attempt returns")
    }

    /// Redis, then the source, and back into Redis.
    async fn read_through(&self, attempt: &Attempt<'_>) -> Reading {
        let Attempt { tenant, flight, generation, begun } = *attempt;
        let token = match self.ask_redis(attempt).await {
            RedisSays::License(entry) => {
                return Reading::new(LookUp { found: Found::License(entry), layer: Some(Layer::Redis) }, begun);
            }
            RedisSays::NothingNewer(entry) => {
                let look_up = LookUp { found: Found::License(entry), layer: Some(Layer::Redis) };
                return Reading { is_new: false, ..Reading::new(look_up, begun) };
            }
            RedisSays::Nothing(token) => token,
        };
        // Redis does not answer, and nothing speaks against what memory knows.
        if let (true, None, Some(known)) = (flight.recheck, &token, self.undoubted(tenant)) {
            let look_up = LookUp { found: Found::License(known), layer: Some(Layer::Memory) };
            return Reading { is_new: false, ..Reading::new(look_up, begun) };
        }
        if !self.source_breaker.allows() {
            self.give_up(tenant, token, begun).await;
            return Reading::new(self.without_stores(tenant, true), begun);
        }
        // What Redis knows is in memory by now.
        let lane = if self.memory.license(&tenant).is_some() { Lane::Known } else { Lane::Stranger };
        let mut tried = false;
        loop {
            let read_at = Instant::now();
            let answer = tokio::select! {
                answer = self.loader.load(tenant, lane) => answer,
                // Nobody waits any longer for a store that is known to be down.
                () = self.source_breaker.opened() => {
                    self.metrics.store_errors.of(self.source.name()).inc();
                    self.give_up(tenant, token, begun).await;
                    return Reading::new(self.without_stores(tenant, true), begun);
                }
            };
            let error = match answer {
                Ok(license) => {
                    self.source_breaker.answered();
                    self.reached.store(true, Ordering::Release);
                    let found = match license {
                        Some(license) => {
                            Found::License(Arc::new(Entry::new(license, Mark::new(read_at, read_at, generation))))
                        }
                        None => Found::Nothing,
                    };
                    // A slow Redis must not keep the answer from those who wait for it.
                    let left = (self.freshness.deadline * 3 / 4).saturating_sub(begun.elapsed());
                    let filled = tokio::time::timeout(left, self.fill(tenant, token, &found, read_at)).await;
                    let look_up = LookUp { found, layer: Some(Layer::Source) };
                    let overtaken = filled == Ok(Some(Filled::Overtaken));
                    return Reading { overtaken, ..Reading::new(look_up, read_at) };
                }
                Err(error) => error,
            };
            let unreadable = self.report(&error);
            if unreadable {
                self.memory.put_faulty(tenant);
            }
            // Whoever waits may still be told that it is an outage, if the probe is quick to say so.
            self.source_breaker.settled().await;
            // A connection that broke says nothing about the next one, where the server answers.
            let broke = matches!(error, StoreError::Unavailable { .. }) && self.source_breaker.allows();
            if broke && !tried && begun.elapsed() < self.freshness.deadline / 2 {
                tried = true;
                continue;
            }
            self.give_up(tenant, token, begun).await;
            return Reading::new(self.without_stores(tenant, unreadable), begun);
        }
    }

    /// Put the source's answer into Redis, where the caller has the right to.
    async fn fill(
        &self,
        tenant: TenantId,
        token: Option<FillToken>,
        found: &Found,
        read_at: Instant,
    ) -> Option<Filled> {
        let (Some(token), Some((redis, _))) = (token, &self.redis) else { return None };
        let license: Option<&License> = match found {
            Found::License(entry) => Some(&entry.license),
            _ => None,
        };
        match redis.fill(tenant, &token, license, read_at.elapsed()).await {
            Ok(filled) => {
                self.redis_takes_writes(filled != Filled::Unwritable);
                Some(filled)
            }
            Err(error) => {
                self.report(&error);
                None
            }
        }
    }

    /// The claim on a key is of no use any more: whoever comes next may ask the source at once.
    async fn give_up(&self, tenant: TenantId, token: Option<FillToken>, begun: Instant) {
        if self.redis.as_ref().is_some_and(|(_, breaker)| breaker.allows()) {
            self.fill(tenant, token, &Found::Nothing, begun).await;
        }
    }

    async fn ask_redis(&self, attempt: &Attempt<'_>) -> RedisSays {
        /// How often a key that another replica is filling is looked at again.
        const POLL: Duration = Duration::from_millis(5);
        let Some((redis, breaker)) = &self.redis else { return RedisSays::Nothing(None) };
        let deadline = self.freshness.deadline;
        loop {
            if !breaker.allows() {
                return RedisSays::Nothing(None);
            }
            let asked_at = Instant::now();
            match redis.read(attempt.tenant, deadline).await {
                Ok(Cached::Hit(hit)) => {
                    self.reached.store(true, Ordering::Release);
                    return self.judge(attempt, hit, asked_at);
                }
                Ok(Cached::Vacant(token)) => return RedisSays::Nothing(Some(token)),
                Ok(Cached::Unwritable) => {
                    self.redis_takes_writes(false);
                    return RedisSays::Nothing(None);
                }
                Ok(Cached::Unreadable(token, cause)) => {
                    let tenant = attempt.tenant;
                    self.report(&StoreError::Unreadable { store: StoreName::Redis, tenant, cause });
                    return RedisSays::Nothing(Some(token));
                }
                // Another replica asks the source; half of the time allowed is left for asking it ourselves.
                Ok(Cached::Busy) if attempt.begun.elapsed() < deadline / 2 => tokio::time::sleep(POLL).await,
                Ok(Cached::Busy) => return RedisSays::Nothing(None),
                Err(error) => {
                    self.report(&error);
                    return RedisSays::Nothing(None);
                }
            }
        }
    }

    /// Whether what lies in Redis will do. It will not if it may be older than what was heard of, or is no newer than what
    /// memory knows already.
    fn judge(&self, attempt: &Attempt<'_>, hit: Hit, asked_at: Instant) -> RedisSays {
        let Attempt { tenant, flight, generation, .. } = *attempt;
        let Hit { license, age, token } = hit;
        let Some(read_at) = asked_at.checked_sub(age) else { return RedisSays::Nothing(Some(token)) };
        let trust = self.trusted(asked_at);
        let Freshness { ttl, revalidate_after, .. } = self.freshness;
        let known = self.memory.license(&tenant);
        let announced = flight.announced.load(Ordering::Relaxed);
        let announced = known.as_ref().map_or(announced, |known| known.mark.announced().max(announced));
        let revision = license.revision;
        let bound = if trust == Trust::Current { ttl } else { revalidate_after.min(ttl) };
        let known_at = if trust == Trust::Current { asked_at } else { read_at };
        let entry = Arc::new(Entry::new(license, Mark::new(read_at, known_at, generation)));
        let credible = trust != Trust::Behind && revision >= announced;
        let Some(known) = known else {
            if credible && age < bound {
                return RedisSays::License(entry);
            }
            // Something to go by if the source does not answer.
            entry.mark.doubt(announced);
            self.memory.put(entry);
            self.watchers.tell(&tenant);
            return RedisSays::Nothing(Some(token));
        };
        // The age is told in milliseconds and by way of another clock: only a clear difference means anything.
        let newer = revision > known.license.revision || read_at > known.mark.read_at + bound / 8;
        // Another replica has renewed what memory holds as well, at about the same time: its push is what made us look. To
        // ask the source and put the same there again would make that one look, and so on in turn.
        let renewed = self.memory.doubts(&known.mark) && age < bound / 2;
        if credible && (newer || renewed) && revision >= known.license.revision && age < bound {
            return RedisSays::License(entry);
        }
        if flight.recheck && revision == known.license.revision && !self.memory.doubts(&known.mark) {
            return RedisSays::NothingNewer(known);
        }
        RedisSays::Nothing(Some(token))
    }

    fn undoubted(&self, tenant: TenantId) -> Option<Arc<Entry>> {
        self.memory.license(&tenant).filter(|known| !self.memory.doubts(&known.mark))
    }

    fn redis_takes_writes(&self, takes: bool) {
        if !takes {
            self.metrics.store_errors.of(StoreName::Redis).inc();
        }
        if self.redis_refuses_writes.swap(!takes, Ordering::Relaxed) != takes {
            return;
        }
        if takes {
            tracing::info!("Redis takes writes again");
        } else {
            tracing::warn!("Redis refuses writes (full, or a replica): what is asked of the source is not shared");
        }
    }
}

impl Flight {
    /// Something was heard of the tenant: what is being read may be older.
    pub(super) fn disturb(&self, announced: Option<i64>) {
        if let Some(revision) = announced {
            self.announced.fetch_max(revision, Ordering::Relaxed);
        }
        self.dirty.store(true, Ordering::Release);
    }
}

impl Reading {
    fn new(look_up: LookUp, read_at: Instant) -> Self {
        Self { look_up, read_at, is_new: true, overtaken: false }
    }
}

/// Takes a load out of the table however it ends.
struct Ends<'a> {
    licenses: &'a Licenses,
    tenant: TenantId,
    flight: &'a Arc<Flight>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut loading = self.licenses.loading.lock();
        if loading.get(&self.tenant).is_some_and(|flight| Arc::ptr_eq(flight, self.flight)) {
            loading.remove(&self.tenant);
        }
    }
}
