//! The write side: changes of licences, each with its audit, and everyone told of them. Command and API share it.

pub(crate) mod backfill;
pub(crate) mod prune;
pub(crate) mod renew;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use licensing::amend::{Command, Holding, Refused};
use licensing::config::PlanSettings;
use licensing::plans::Plans;
use licensing::tenant::TenantId;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::clock::wall_clock;
use crate::licenses::{Announcer, Told};
pub(crate) use crate::stores::{AuditEntry, Author, Filter, Page};
use crate::stores::{Change, Entered, Ledger, LedgerError, Order, Outcome, StoreError, StoreName};

/// How much is under way at once. All wait for the same few connections, so that the last would wait for seconds.
const ROOM: usize = 64;

/// Changes licences, and sees to it that what was is not used any more.
pub(crate) struct Manage {
    shared: Arc<Shared>,
    /// Where changes are made: not on the caller's task, which ends when its client leaves.
    runtime: Handle,
    /// Room for what is under way.
    room: Arc<Semaphore>,
}

struct Shared {
    ledger: Arc<dyn Ledger>,
    announcer: Announcer,
    plans: ArcSwap<Plans>,
}

/// A change that was made.
#[derive(Clone, Debug)]
pub(crate) struct Amended {
    /// What the tenant had.
    pub before: Holding,
    /// What it has now, its licence's revision included.
    pub after: Holding,
    /// Whether it was made when its idempotency key was used first.
    pub repeated: bool,
    /// Whether Redis was told, and by way of it all replicas. If not, they see it as their change feed and their ages allow.
    pub redis: Told,
}

/// Who was told that licences have to be asked for again. This process's own memory always is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refreshed {
    /// Redis, and by way of it all replicas.
    pub redis: Told,
    /// Whoever listens to Postgres.
    pub postgres: Told,
}

/// Why a change was not made.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ManageError {
    /// The rules speak against it. The audit says so.
    #[error("{message}")]
    Refused {
        /// Why.
        refused: Refused,
        /// The same as a sentence.
        message: String,
    },
    /// Its idempotency key has been used for another.
    #[error("the idempotency key has been used for another request")]
    KeyReused,
    /// It may have been made or not.
    #[error("{0}")]
    Unknown(String),
    /// No store could be asked. Nothing was done.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Manage {
    /// Put it together. Nothing is connected yet.
    pub(crate) fn new(ledger: Arc<dyn Ledger>, announcer: Announcer, plans: Plans, runtime: Handle) -> Self {
        Self {
            shared: Arc::new(Shared { ledger, announcer, plans: ArcSwap::from_pointee(plans) }),
            runtime,
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// What is sold has changed: the plans, and all that can be sold, see [`licensing::config::Config::catalogue`].
    pub(crate) fn sell(&self, plans: &[PlanSettings], catalogue: Plans) {
        self.shared.plans.store(Arc::new(catalogue));
        self.shared.ledger.sell(plans);
    }

    /// What is sold now.
    pub(crate) fn plans(&self) -> Arc<Plans> {
        self.shared.plans.load_full()
    }

    /// Make a change. Once this answers, the next request to this process sees it, and those to others do within a second. It
    /// is made even if nobody waits for the answer any more.
    ///
    /// # Errors
    /// When it was refused, or could not be made.
    pub(crate) async fn amend(
        &self,
        tenant: TenantId,
        command: &Command,
        author: &Author,
    ) -> Result<Amended, ManageError> {
        let (shared, command, author) = (Arc::clone(&self.shared), command.clone(), author.clone());
        let work = async move { shared.amend(tenant, &command, &author).await };
        self.apart(work).await
    }

    /// Write down that a change is asked for, and announce it to whoever makes it; nothing changes.
    ///
    /// # Errors
    /// When it would be refused, or could not be written down.
    pub(crate) async fn request_upgrade(
        &self,
        tenant: TenantId,
        command: &Command,
        author: &Author,
    ) -> Result<(), ManageError> {
        let (shared, command, author) = (Arc::clone(&self.shared), command.clone(), author.clone());
        let work = async move { shared.enter(tenant, &command, &author, false).await.map(drop) };
        self.apart(work).await
    }

    /// Have everyone ask for a licence again.
    ///
    /// # Errors
    /// When neither Redis nor Postgres could be told although there is one.
    pub(crate) async fn refresh(&self, tenant: TenantId) -> Result<Refreshed, ManageError> {
        let shared = Arc::clone(&self.shared);
        self.apart(async move { shared.refresh(Some(tenant)).await }).await
    }

    /// Have everyone ask for every licence again.
    ///
    /// # Errors
    /// As [`Manage::refresh`].
    pub(crate) async fn flush(&self) -> Result<Refreshed, ManageError> {
        let shared = Arc::clone(&self.shared);
        self.apart(async move { shared.refresh(None).await }).await
    }

    /// What a tenant has: from the source, past every cache.
    ///
    /// # Errors
    /// When the source can't be asked, or holds what can't be read.
    pub(crate) async fn holding(&self, tenant: TenantId) -> Result<Holding, ManageError> {
        let shared = Arc::clone(&self.shared);
        self.apart(async move { Ok(shared.ledger.holding(tenant).await?) }).await
    }

    /// The licences that match, in the order of their tenants, beginning after one.
    ///
    /// # Errors
    /// When the source can't be asked.
    pub(crate) async fn page(&self, filter: &Filter, after: Option<TenantId>) -> Result<Page, ManageError> {
        let (shared, filter) = (Arc::clone(&self.shared), filter.clone());
        self.apart(async move { Ok(shared.ledger.page(&filter, after).await?) }).await
    }

    /// What was asked for of a tenant's licence: the latest `limit` entries, the latest first.
    ///
    /// # Errors
    /// When the source can't be asked.
    pub(crate) async fn audit(&self, tenant: TenantId, limit: u32) -> Result<Vec<AuditEntry>, ManageError> {
        let shared = Arc::clone(&self.shared);
        self.apart(async move { Ok(shared.ledger.audit(tenant, limit).await?) }).await
    }

    /// Whether something is under way, perhaps for a client that has left.
    pub(crate) fn is_busy(&self) -> bool {
        self.room.available_permits() < ROOM
    }

    /// For as long as the program runs: close what lies idle.
    pub(crate) async fn keep_house(self: Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(10);
        loop {
            tokio::time::sleep(INTERVAL).await;
            self.shared.ledger.close_idle();
        }
    }

    /// On a task of its own, which no client ends.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ManageError>> + Send + 'static,
    ) -> Result<T, ManageError> {
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            let message = "more changes are under way than are made at once";
            return Err(StoreError::unavailable(StoreName::Postgres, message).into());
        };
        let work = async move {
            let _room = room;
            work.await
        };
        let ended = self.runtime.spawn(work).await;
        ended.unwrap_or_else(|error| Err(ManageError::Unknown(format!("the task that made the change ended: {error}"))))
    }
}

impl Shared {
    async fn amend(&self, tenant: TenantId, command: &Command, author: &Author) -> Result<Amended, ManageError> {
        let entered = match self.enter(tenant, command, author, true).await {
            Err(error @ ManageError::Unknown(_)) => {
                // If it was made, nobody must go on as before.
                self.announcer.doubt(tenant, None).await;
                return Err(error);
            }
            entered => entered?,
        };
        let Entered { before, after, repeated, position, .. } = entered;
        // Whoever repeats it perhaps heard no answer, and then nobody may have been told.
        let redis = match &after.license {
            Some(license) if repeated || before.license.as_ref() != Some(license) => {
                self.announcer.changed(Change { tenant, revision: license.revision }, position).await
            }
            _ => Told::Nobody,
        };
        Ok(Amended { before, after, repeated, redis })
    }

    /// An order, and its refusal as an error.
    async fn enter(
        &self,
        tenant: TenantId,
        command: &Command,
        author: &Author,
        apply: bool,
    ) -> Result<Entered, ManageError> {
        let plans = self.plans.load_full();
        let order = Order { tenant, command, author, plans: &plans, now: wall_clock(), apply };
        let entered = self.ledger.enter(&order).await?;
        match entered.outcome {
            Outcome::Refused(refused) => {
                let message = refused.explain(&entered.before, command, &plans);
                Err(ManageError::Refused { refused, message })
            }
            Outcome::Applied | Outcome::Requested => Ok(entered),
        }
    }

    async fn refresh(&self, tenant: Option<TenantId>) -> Result<Refreshed, ManageError> {
        let message = tenant.map_or_else(|| "*".to_owned(), |tenant| format!("?{tenant}"));
        let (postgres, position) = match self.ledger.notify(&message).await {
            Ok(Some(position)) => (Told::Yes, Some(position)),
            Ok(None) => (Told::Nobody, None),
            Err(error) => (Told::No(error.to_string()), None),
        };
        let redis = match tenant {
            Some(tenant) => self.announcer.doubt(tenant, position).await,
            None => self.announcer.everything(position).await,
        };
        match (&redis, &postgres) {
            (Told::No(message), Told::No(_) | Told::Nobody) | (Told::Nobody, Told::No(message)) => {
                Err(ManageError::Unknown(format!("no other replica was told: {message}")))
            }
            _ => Ok(Refreshed { redis, postgres }),
        }
    }
}

impl ManageError {
    /// The reason by name, for answers.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Refused { refused, .. } => refused.name(),
            Self::KeyReused => "idempotency_key_reused",
            Self::Unknown(_) => "outcome_unknown",
            Self::Store(_) => "store_unavailable",
        }
    }
}

impl From<LedgerError> for ManageError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::KeyReused => Self::KeyReused,
            unknown @ LedgerError::Unknown(_) => Self::Unknown(unknown.to_string()),
            LedgerError::Store(error) => Self::Store(error),
        }
    }
}

#[cfg(test)]
mod tests;
