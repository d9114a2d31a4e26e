//! The change feed: hears from Postgres what was committed, and sees to it that memory and Redis do not say otherwise.
//!
//! A `serve` with `change_feed: listen` runs one for itself; a `relay` runs one for everybody and publishes what it hears.
//! A session begins when Postgres listens for us. What happened before it was heard by another feed that is in order, and
//! is so still, or by nobody: then the epoch in Redis ends, and with it all that lies there.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use licensing::tenant::TenantId;
use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use super::Licenses;
use super::coverage::{Channel, LIVE_FOR};
use super::hear::Trust;
use super::pulse::{Heard, Pulse};
use crate::metrics::{ChangeKind, Metrics};
use crate::secret::Secret;
use crate::stores::{Change, CrossingNotice, Notice, PostgresFeed, Redis, StoreError, StoreName, Vitals};

/// How often a feed proves that it hears.
const BEAT: Duration = Duration::from_secs(1);

/// How many changes are announced at once.
const BATCH: usize = 256;

/// A change feed.
pub(crate) struct Feed {
    url: Secret,
    redis: Option<Arc<Redis>>,
    /// Whose memory it serves; none in a relay, which publishes instead.
    licenses: Option<Arc<Licenses>>,
    metrics: Arc<Metrics>,
    tables_seen: Arc<AtomicBool>,
    /// Which table held the licences when it was last looked at, and whether it counted.
    table: Mutex<Option<(i64, bool)>>,
    /// Whether all that it has heard is announced, as of now.
    in_order: AtomicBool,
}

/// One connection, from when it listens until it breaks.
struct Session<'a> {
    feed: &'a Feed,
    id: String,
    postgres: PostgresFeed,
    standing: Standing,
    beats: u64,
    heard_at: Instant,
}

/// How this session stands with Redis.
enum Standing {
    /// What lies there is current: this feed takes out what changes, and what came before is accounted for.
    InOrder,
    /// It listens, but who has announced what came before is not known yet.
    Joining {
        /// The epoch after listening began. If another has begun since, nothing from before counts any more.
        epoch: String,
        /// Another feed in order, and the first of its beats that was seen.
        other: Option<(String, u64)>,
        since: Instant,
    },
    /// Redis was not reached when it should have been told something: what lies there may be outdated.
    Behind,
    /// Redis has not been reached yet.
    Unreached,
}

impl Feed {
    /// For the memory of this process, and Redis where there is one.
    pub(crate) fn of(licenses: &Arc<Licenses>, url: Secret, metrics: Arc<Metrics>) -> Self {
        let redis = licenses.redis.as_ref().map(|(redis, _)| Arc::clone(redis));
        Self::new(url, redis, Some(Arc::clone(licenses)), metrics)
    }

    /// For everybody who listens to Redis.
    pub(crate) fn relay(url: Secret, redis: Redis, metrics: Arc<Metrics>) -> Self {
        Self::new(url, Some(Arc::new(redis)), None, metrics)
    }

    fn new(url: Secret, redis: Option<Arc<Redis>>, licenses: Option<Arc<Licenses>>, metrics: Arc<Metrics>) -> Self {
        Self {
            url,
            redis,
            licenses,
            metrics,
            tables_seen: Arc::default(),
            table: Mutex::default(),
            in_order: AtomicBool::new(false),
        }
    }

    /// Whether all that it has heard is announced.
    pub(crate) fn is_in_order(&self) -> bool {
        self.in_order.load(Ordering::Relaxed)
    }

    /// Listen for as long as the program runs.
    pub(crate) async fn run(self: Arc<Self>) {
        const PAUSE: Duration = Duration::from_millis(500);
        /// How many different complaints are said in one outage: not one for each attempt.
        const COMPLAINTS: usize = 5;
        let mut behind = false;
        let mut complaints = Vec::new();
        loop {
            let Err(error) = match self.open(behind).await {
                Ok(mut session) => {
                    complaints.clear();
                    tracing::info!(session = session.id, "listening to Postgres for changes");
                    let ended = session.hear().await;
                    behind = matches!(session.standing, Standing::Behind);
                    ended
                }
                Err(error) => Err(error),
            };
            self.in_order.store(false, Ordering::Relaxed);
            if let Some(licenses) = &self.licenses {
                licenses.coverage.lost(Channel::Feed);
                licenses.trust(if behind { Trust::Behind } else { Trust::ByAge });
            }
            let message = error.to_string();
            if complaints.len() < COMPLAINTS && !complaints.contains(&message) {
                tracing::warn!(%error, "no changes are heard from Postgres; licences are asked for again as they grow old");
                complaints.push(message);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn open(&self, behind: bool) -> Result<Session<'_>, StoreError> {
        const LIMIT: Duration = Duration::from_secs(2);
        let id = Uuid::new_v4().simple().to_string();
        let url = self.url.changed(self.url.first()).unwrap_or_else(|| self.url.first().clone());
        let postgres = PostgresFeed::open(&url, &id, &self.tables_seen, LIMIT).await?;
        let standing = if behind { Standing::Behind } else { Standing::Unreached };
        Ok(Session { feed: self, id, postgres, standing, beats: 0, heard_at: Instant::now() })
    }
}

impl Session<'_> {
    /// Until it breaks.
    async fn hear(&mut self) -> Result<Infallible, StoreError> {
        let broken = |message| Err(StoreError::unavailable(StoreName::Postgres, message));
        let mut beats = tokio::time::interval(BEAT);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = None;
        loop {
            let notice = match waiting.take() {
                Some(notice) => notice,
                None => tokio::select! {
                    notice = self.postgres.next() => match notice {
                        Some(notice) => notice,
                        None => return broken("the connection that listens has ended"),
                    },
                    _ = beats.tick() => {
                        if self.heard_at.elapsed() >= LIVE_FOR {
                            return broken("its notifications don't arrive (LISTEN needs a connection of its own: a pooler \
                                           in transaction mode has none)");
                        }
                        self.postgres.beat().await?;
                        continue;
                    }
                },
            };
            match notice {
                Notice::Change(change) => waiting = self.changed(change).await?,
                Notice::Doubt(tenant) => self.doubted(tenant).await?,
                Notice::Everything => self.everything_changed().await?,
                Notice::Added => self.tenants_added().await?,
                Notice::Threshold(notice) => self.threshold_passed(notice).await,
                Notice::Beat(vitals) => self.beat(&vitals).await?,
            }
        }
    }

    /// One change, and those that wait behind it. Answers what comes after them, if that is here already.
    async fn changed(&mut self, first: Change) -> Result<Option<Notice>, StoreError> {
        let mut changes = vec![first];
        let mut next = None;
        while changes.len() < BATCH && next.is_none() {
            match self.postgres.next_now() {
                Some(Notice::Change(change)) => changes.push(change),
                Some(other) => next = Some(other),
                None => break,
            }
        }
        self.feed.metrics.changes.of(ChangeKind::License).inc_by(changes.len() as u64);
        let preface = self.preface().await?;
        self.tell_memory(|licenses| {
            for Change { tenant, revision } in &changes {
                licenses.doubt(*tenant, Some(*revision));
            }
        });
        if let Some(redis) = &self.feed.redis {
            let announced = redis.announce(&changes, self.publishes(), &preface).await;
            self.announced(announced);
        }
        // Again: until Redis was told, somebody may have read there what was outdated.
        self.tell_memory(|licenses| {
            for Change { tenant, revision } in &changes {
                licenses.changed(*tenant, Some(*revision));
            }
        });
        Ok(next)
    }

    /// Somebody wants a licence to be asked for again.
    async fn doubted(&mut self, tenant: TenantId) -> Result<(), StoreError> {
        self.feed.metrics.changes.of(ChangeKind::Refresh).inc();
        let preface = self.preface().await?;
        self.tell_memory(|licenses| _ = licenses.doubt(tenant, None));
        if let Some(redis) = &self.feed.redis {
            let messages = [preface, Heard::Doubt(tenant).to_string()];
            let messages: Vec<&str> = messages.iter().filter(|_| self.publishes()).map(String::as_str).collect();
            let told = redis.forget(tenant, &messages).await;
            self.announced(told);
        }
        self.tell_memory(|licenses| licenses.changed(tenant, None));
        Ok(())
    }

    async fn everything_changed(&mut self) -> Result<(), StoreError> {
        self.feed.metrics.changes.of(ChangeKind::Everything).inc();
        tracing::warn!("many licences changed at once: every licence is asked for again");
        let preface = self.preface().await?;
        self.tell_memory(|licenses| licenses.everything_changed());
        if let Some(redis) = &self.feed.redis {
            let mut told = redis.void(None).await;
            if told.is_ok() && self.publishes() {
                told = redis.publish(&[&preface, &Heard::Everything.to_string()]).await;
            }
            self.announced(told);
            self.tell_memory(|licenses| licenses.everything_changed());
        }
        Ok(())
    }

    async fn tenants_added(&mut self) -> Result<(), StoreError> {
        self.feed.metrics.changes.of(ChangeKind::Added).inc();
        let preface = self.preface().await?;
        self.tell_memory(|licenses| licenses.tenants_added());
        if let (Some(redis), true) = (&self.feed.redis, self.publishes()) {
            let told = redis.publish(&[&preface, &Heard::Added.to_string()]).await;
            self.announced(told);
        }
        Ok(())
    }

    /// A share of a limit is used up. It is said once and to those who are there; nothing that is decided depends on it.
    async fn threshold_passed(&mut self, notice: CrossingNotice) {
        self.tell_memory(|licenses| licenses.threshold_heard(&notice));
        if let (Some(redis), true) = (&self.feed.redis, self.publishes())
            && let Err(error) = redis.publish(&[&Heard::Threshold(notice).to_string()]).await
        {
            self.feed.metrics.store_errors.of(StoreName::Redis).inc();
            tracing::warn!(%error, "Redis can't be told of a limit's threshold");
        }
    }

    /// A beat has come back: all that was committed before it was sent has been heard.
    async fn beat(&mut self, vitals: &Vitals) -> Result<(), StoreError> {
        let now = Instant::now();
        let begins = self.beats == 0;
        self.beats += 1;
        self.heard_at = now;
        let table = (vitals.table, vitals.off);
        if self.feed.table.lock().replace(table).is_some_and(|before| before != table) {
            tracing::warn!("another table holds the licences than before, or none");
            self.everything_changed().await?;
        }
        self.tell_memory(|licenses| {
            licenses.source.require(vitals.position);
            if begins {
                // After a failover the log may be shorter than the former primary's.
                licenses.source.restart_from(vitals.position);
                licenses.coverage.begin(Channel::Feed, now);
            }
            licenses.coverage.heard(Channel::Feed, now);
            licenses.turn(vitals.off);
        });
        if let Err(error) = self.settle(vitals).await {
            tracing::debug!(%error, "Redis can't be told that the feed is in order");
        }
        let in_order = self.feed.redis.is_none() || matches!(self.standing, Standing::InOrder);
        self.feed.in_order.store(in_order, Ordering::Relaxed);
        let trust = match self.standing {
            Standing::InOrder => Trust::Current,
            Standing::Behind => Trust::Behind,
            Standing::Joining { .. } | Standing::Unreached => Trust::ByAge,
        };
        self.tell_memory(|licenses| licenses.trust(trust));
        Ok(())
    }

    /// Come into order with Redis, or say that we still are.
    async fn settle(&mut self, vitals: &Vitals) -> Result<(), StoreError> {
        let Some(redis) = &self.feed.redis else { return Ok(()) };
        // Asked anew: the beat may have set out before the change that could not be told.
        let preface = match self.standing {
            Standing::Behind => self.preface().await?,
            _ => String::new(),
        };
        let publishes = self.publishes();
        match &mut self.standing {
            Standing::InOrder => {
                let pulse = Pulse { session: self.id.clone(), position: Some(vitals.position), off: vitals.off };
                let pulse = self.publishes().then(|| Heard::Pulse(pulse).to_string());
                redis.beat(&self.id, Some(self.beats), LIVE_FOR, pulse.as_deref()).await?;
            }
            Standing::Behind => {
                redis.void(None).await?;
                // Nor was anybody who listens there, and for them this session may go on without a gap.
                if publishes {
                    redis.publish(&[&preface, &Heard::Everything.to_string()]).await?;
                }
                self.standing = Standing::InOrder;
                tracing::warn!("Redis was not told of every change: nothing that lies there counts any more");
            }
            Standing::Unreached => {
                let epoch = redis.epoch().await?;
                // Without one, nothing that lies there counts already.
                self.standing = match epoch.is_empty() {
                    true => Standing::InOrder,
                    false => Standing::Joining { epoch, other: None, since: Instant::now() },
                };
            }
            Standing::Joining { epoch, other, since } => {
                let holder = redis.beat(&self.id, None, LIVE_FOR, None).await?;
                match (holder, &other) {
                    // It has sent this beat after we began to listen, and had announced all that came before.
                    (Some((session, beat)), Some((same, first))) if session == *same => {
                        if beat >= first + 2 {
                            self.standing = Standing::InOrder;
                        }
                    }
                    (Some(holder), None) if since.elapsed() < LIVE_FOR => *other = Some(holder),
                    // Nobody is there, or not for long enough.
                    _ => {
                        redis.void(Some(epoch)).await?;
                        self.standing = Standing::InOrder;
                        tracing::info!("no other feed was in order: what lay in Redis counts no more");
                    }
                }
            }
        }
        Ok(())
    }

    fn announced(&mut self, told: Result<(), StoreError>) {
        let Err(error) = told else { return };
        self.feed.metrics.store_errors.of(StoreName::Redis).inc();
        if !matches!(self.standing, Standing::Behind) {
            tracing::warn!(%error, "Redis can't be told of a change; nothing that lies there counts until it can");
            self.standing = Standing::Behind;
        }
        self.tell_memory(|licenses| licenses.trust(Trust::Behind));
        self.feed.in_order.store(false, Ordering::Relaxed);
    }

    /// What a replica must have replayed before its rows count, for those who read from one.
    async fn preface(&self) -> Result<String, StoreError> {
        let reads_replica = self.feed.licenses.as_ref().is_some_and(|licenses| licenses.source.reads_replica());
        if !self.publishes() && !reads_replica {
            return Ok(String::new());
        }
        let position = self.postgres.position().await?;
        self.tell_memory(|licenses| licenses.source.require(position));
        if !self.publishes() {
            return Ok(String::new());
        }
        Ok(Heard::Position(position).to_string())
    }

    fn publishes(&self) -> bool {
        self.feed.licenses.is_none()
    }

    fn tell_memory(&self, tell: impl FnOnce(&Arc<Licenses>)) {
        if let Some(licenses) = &self.feed.licenses {
            tell(licenses);
        }
    }
}
