//! Where licences lie: Postgres or a file as the source, Redis as the cache between replicas.
//!
//! Connections, pools, TLS, SQL and Redis commands stop here. A [`StoreError`] says what kind of failure it is; what
//! follows from it is decided above, in one place.

mod breaker;
mod file;
mod ledger;
mod memory_usage;
mod nowhere;
mod position;
mod postgres;
mod postgres_backfill;
mod postgres_batch;
mod postgres_denials;
mod postgres_feed;
mod postgres_ledger;
mod postgres_order;
mod postgres_prune;
mod postgres_renewal;
mod postgres_reports;
mod postgres_server;
mod postgres_url;
mod postgres_usage;
mod redis;
#[cfg(test)]
mod servers;
mod tls;
mod transactions;
mod usage;

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use licensing::license::{License, Unreadable};
use licensing::tenant::TenantId;

pub(crate) use self::breaker::{Breaker, BreakerState};
pub(crate) use self::file::FileSource;
pub(crate) use self::ledger::{AuditEntry, Author, Entered, Filter, Ledger, LedgerError, Order, Outcome, Page};
pub(crate) use self::memory_usage::MemoryUsage;
pub(crate) use self::nowhere::Nowhere;
pub(crate) use self::position::Position;
pub(crate) use self::postgres::Postgres;
pub(crate) use self::postgres_backfill::{BulkAudit, NewLicense, NewLicenses, TenantIds, TenantTable};
pub(crate) use self::postgres_feed::{Notice, PostgresFeed, RECREATED, Vitals};
pub(crate) use self::postgres_ledger::PostgresLedger;
pub(crate) use self::postgres_prune::{AgingTable, Pruning};
pub(crate) use self::postgres_renewal::{DueLicense, RenewalAuthor, Renewals};
pub(crate) use self::postgres_server::{PoolOptions, connect as connect_postgres};
pub(crate) use self::postgres_url::UrlError;
pub(crate) use self::postgres_usage::PostgresUsage;
#[cfg(test)]
pub(crate) use self::redis::understand as understand_entry;
pub(crate) use self::redis::{Cached, FillToken, Filled, Hit, Push, Redis};
pub(crate) use self::transactions::{TransactionMetrics, TransactionName, TransactionOutcome};
pub(crate) use self::usage::{
    Batch, Count, Crossing, CrossingNotice, DenialCount, Lease, LeaseRequest, Posted, QuotaKey, Settlement, Since,
    Standing, UsageSource, UsageStore,
};

/// Which store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StoreName {
    /// The source, Postgres.
    Postgres,
    /// The cache between replicas.
    Redis,
    /// The source, a file.
    File,
}

impl StoreName {
    /// Every store.
    pub(crate) const ALL: [Self; 3] = [Self::Postgres, Self::Redis, Self::File];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::File => "file",
        }
    }
}

/// Why a store did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// It can't be reached, is too slow, or refuses: nothing is known of the tenant. Trying again may help.
    #[error("{}: {message}", store.as_str())]
    Unavailable {
        /// The store.
        store: StoreName,
        /// What it said.
        message: String,
    },
    /// It answered with something that is no licence: a fault of this one entry.
    #[error("{}: the licence of tenant {tenant} can't be read: {cause}", store.as_str())]
    Unreadable {
        /// The store.
        store: StoreName,
        /// Whose entry it is.
        tenant: TenantId,
        /// What is wrong with it.
        cause: Unreadable,
    },
    /// It did not answer in time. That may be its fault, or that of whoever asks for too much; the loader knows which lane
    /// asked, see [`StoreError::held_against_the_store`].
    #[error("{}: {message}", store.as_str())]
    Late {
        /// The store.
        store: StoreName,
        /// What did not happen in time.
        message: String,
    },
    /// It has answered that it won't write just this content, and has written nothing of it: to try again won't help.
    #[error("{}: {message}", store.as_str())]
    Refused {
        /// The store.
        store: StoreName,
        /// What it said.
        message: String,
    },
    /// It was not asked: more unknown tenants wait than may. No fault of any store.
    #[error("too many unknown tenants are being asked for")]
    Shed,
}

impl StoreError {
    pub(crate) fn unavailable(store: StoreName, message: impl std::fmt::Display) -> Self {
        Self::Unavailable { store, message: message.to_string() }
    }

    pub(crate) fn late(store: StoreName, message: impl std::fmt::Display) -> Self {
        Self::Late { store, message: message.to_string() }
    }

    /// The same, where those who asked were few and known: that it was late is the store's fault.
    pub(crate) fn held_against_the_store(self) -> Self {
        match self {
            Self::Late { store, message } => Self::Unavailable { store, message },
            other => other,
        }
    }

    /// The store that failed, if one did.
    pub(crate) fn store(&self) -> Option<StoreName> {
        match self {
            Self::Unavailable { store, .. }
            | Self::Unreadable { store, .. }
            | Self::Late { store, .. }
            | Self::Refused { store, .. } => Some(*store),
            Self::Shed => None,
        }
    }
}

/// A change of one licence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Whose licence.
    pub(crate) tenant: TenantId,
    /// The revision that it has now.
    pub(crate) revision: i64,
}

impl FromStr for Change {
    type Err = ();

    /// From `{tenant}:{revision}`, as the triggers and the scripts write it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (tenant, revision) = text.split_once(':').ok_or(())?;
        Ok(Self { tenant: tenant.parse().map_err(drop)?, revision: revision.parse().map_err(drop)? })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tenant, self.revision)
    }
}

/// What a source says of one tenant: its licence, that it has none, or that its entry can't be read.
pub(crate) type Answer = Result<Option<License>, Unreadable>;

/// Where licences come from: what it says is the truth.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// The licences of `tenants` by one query: an answer for each, in their order.
    ///
    /// # Errors
    /// When it can't be asked or does not answer in time: then nothing is known of any of them.
    async fn load(&self, tenants: &[TenantId]) -> Result<Vec<Answer>, StoreError>;

    /// Whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    async fn probe(&self) -> Result<(), StoreError>;

    /// The same, on what look-ups use: the first of them then finds it open.
    ///
    /// # Errors
    /// When it does not answer.
    async fn warm_up(&self) -> Result<(), StoreError> {
        self.probe().await
    }

    /// How many queries it takes at once; more would wait for each other.
    fn queries_at_once(&self) -> usize;

    /// Which store it is.
    fn name(&self) -> StoreName;

    /// Whether answers may come from a replica, which lags.
    fn reads_replica(&self) -> bool {
        false
    }

    /// Give back what lies idle. Called every few seconds.
    fn close_idle(&self) {}

    /// The primary is known to have been at `position`: nothing that is older than that is an answer any more. An earlier
    /// position than one required before changes nothing.
    fn require(&self, position: Position) {
        // Only replicas are ever behind.
        let _ = position;
    }

    /// The primary is another one, whose log is not the former's: from now on nothing older than `position` is an answer,
    /// whatever was required before.
    fn restart_from(&self, position: Position) {
        let _ = position;
    }
}
