//! Where licences lie: Postgres or a file as the source, Redis as the cache between replicas.
//!
//! Connections, pools, TLS, SQL and Redis commands stop here. A [`StoreError`] says what kind of failure it is; what
//! follows from it is decided above, in one place.

mod breaker;
mod file;
mod postgres;
mod postgres_url;
mod redis;
mod tls;

use async_trait::async_trait;
use licensing::license::{License, Unreadable};
use licensing::tenant::TenantId;

pub(crate) use self::breaker::{Breaker, BreakerState};
pub(crate) use self::file::FileSource;
pub(crate) use self::postgres::{PoolOptions, Postgres, connect as connect_postgres};
pub(crate) use self::postgres_url::UrlError;
pub(crate) use self::redis::{Cached, FillToken, Redis};

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
}

impl StoreError {
    fn unavailable(store: StoreName, message: impl std::fmt::Display) -> Self {
        Self::Unavailable { store, message: message.to_string() }
    }

    /// The store that failed.
    pub(crate) fn store(&self) -> StoreName {
        match self {
            Self::Unavailable { store, .. } | Self::Unreadable { store, .. } => *store,
        }
    }
}

/// Where licences come from: what it says is the truth.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// The licence of `tenant`, or none.
    async fn load(&self, tenant: TenantId) -> Result<Option<License>, StoreError>;

    /// Whether it answers at all.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Which store it is.
    fn name(&self) -> StoreName;

    /// Give back what lies idle. Called every few seconds.
    fn close_idle(&self) {}
}
