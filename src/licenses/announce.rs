//! Telling of changes that this process makes itself: its own memory, and everyone else by way of Redis.
//!
//! The feed does the same for changes that others make. It will hear of ours as well, but whoever is waiting for the answer to
//! an upgrade comes back before that, and without a feed there is nobody else who tells.

use std::sync::Arc;

use licensing::tenant::TenantId;

use super::Licenses;
use super::pulse::Heard;
use crate::metrics::Metrics;
use crate::stores::{Change, Position, Redis, StoreError, StoreName};

/// Tells of changes.
pub(crate) struct Announcer {
    redis: Option<Arc<Redis>>,
    /// This process's memory, where it has one.
    licenses: Option<Arc<Licenses>>,
    metrics: Arc<Metrics>,
}

/// Whether one of those who have to hear of something was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was.
    Yes,
    /// It was not, and why.
    No(String),
    /// There is none.
    Nobody,
}

impl Announcer {
    /// For a process that serves.
    pub(crate) fn of(licenses: &Arc<Licenses>, metrics: Arc<Metrics>) -> Self {
        let redis = licenses.redis.as_ref().map(|(redis, _)| Arc::clone(redis));
        Self { redis, licenses: Some(Arc::clone(licenses)), metrics }
    }

    /// For a command, which keeps no licences.
    pub(crate) fn apart(redis: Option<Redis>, metrics: Arc<Metrics>) -> Self {
        Self { redis: redis.map(Arc::new), licenses: None, metrics }
    }

    /// A licence has changed; `position` is where the primary's log was afterwards. From when this returns, no request here is
    /// answered by what was before.
    pub(crate) async fn changed(&self, change: Change, position: Option<Position>) -> Told {
        self.require(position);
        self.tell_memory(|licenses| _ = licenses.doubt(change.tenant, Some(change.revision)));
        let told = self.tell_redis(async |redis| redis.announce(&[change], true, &preface(position)).await).await;
        // Again: until Redis was told, somebody may have read there what was outdated.
        self.tell_memory(|licenses| licenses.changed(change.tenant, Some(change.revision)));
        told
    }

    /// A licence has to be asked for again, whether or not it has changed.
    pub(crate) async fn doubt(&self, tenant: TenantId, position: Option<Position>) -> Told {
        self.require(position);
        self.tell_memory(|licenses| _ = licenses.doubt(tenant, None));
        let messages = [preface(position), Heard::Doubt(tenant).to_string()];
        let messages: Vec<&str> = messages.iter().map(String::as_str).filter(|message| !message.is_empty()).collect();
        let told = self.tell_redis(async |redis| redis.forget(tenant, &messages).await).await;
        self.tell_memory(|licenses| licenses.changed(tenant, None));
        told
    }

    /// Every licence has to be asked for again.
    pub(crate) async fn everything(&self, position: Option<Position>) -> Told {
        self.require(position);
        self.tell_memory(|licenses| licenses.everything_changed());
        let messages = [preface(position), Heard::Everything.to_string()];
        let messages: Vec<&str> = messages.iter().map(String::as_str).filter(|message| !message.is_empty()).collect();
        let void = async |redis: &Redis| {
            redis.void(None).await?;
            redis.publish(&messages).await
        };
        let told = self.tell_redis(void).await;
        self.tell_memory(|licenses| licenses.everything_changed());
        told
    }

    async fn tell_redis(&self, tell: impl AsyncFnOnce(&Redis) -> Result<(), StoreError>) -> Told {
        let Some(redis) = &self.redis else { return Told::Nobody };
        let Err(error) = tell(redis).await else { return Told::Yes };
        self.metrics.store_errors.of(StoreName::Redis).inc();
        self.metrics.untold.inc();
        tracing::warn!(%error, "Redis can't be told of a change; other replicas see it as their channels and ages allow");
        Told::No(error.to_string())
    }

    fn require(&self, position: Option<Position>) {
        if let Some(position) = position {
            self.tell_memory(|licenses| licenses.source.require(position));
        }
    }

    fn tell_memory(&self, tell: impl FnOnce(&Arc<Licenses>)) {
        if let Some(licenses) = &self.licenses {
            tell(licenses);
        }
    }
}

/// What a replica must have replayed before its rows count.
fn preface(position: Option<Position>) -> String {
    position.map(|position| Heard::Position(position).to_string()).unwrap_or_default()
}
