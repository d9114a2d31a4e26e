//! Licences in Postgres: the source. One small pool, opened lazily, its idle connections closed.

use std::error::Error;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts};
use licensing::license::{License, LicenseRow, MAX_FEATURES_BYTES, Unreadable};
use licensing::tenant::TenantId;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::postgres_url::PostgresUrl;
use super::{Source, StoreError, StoreName, UrlError, tls};

/// How the pool behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolOptions {
    /// The most connections held at once.
    pub max_connections: usize,
    /// How long a connection may lie unused before it is closed.
    pub idle_timeout: Duration,
    /// How long one operation may take, waiting for a connection included.
    pub timeout: Duration,
}

/// A pool of connections to the Postgres that holds `tenant_licenses`.
pub(crate) struct Postgres {
    pool: Pool,
    options: PoolOptions,
}

/// A document larger than what is read is not sent over the wire: its size alone says what is wrong.
const LOAD: &str = "SELECT plan_tier::text, \
     CASE WHEN octet_length(features::text) <= $2 THEN features::text END, octet_length(features::text), \
     CASE WHEN octet_length(usage_limits::text) <= $2 THEN usage_limits::text END, octet_length(usage_limits::text), \
     valid_from, valid_until, coalesce(auto_renew, true), revision \
     FROM tenant_licenses WHERE tenant_id = $1";

impl Postgres {
    /// Prepare a pool for `url`. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(crate) fn new(url: &SecretString, options: PoolOptions) -> Result<Self, UrlError> {
        let url = PostgresUrl::from_str(url.expose_secret())?;
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = if url.config.get_ssl_mode() == tokio_postgres::config::SslMode::Disable {
            Manager::from_config(url.config, NoTls, manager_config)
        } else {
            let tls = tls::client_config(url.verify, url.ca_file.as_deref()).map_err(UrlError)?;
            Manager::from_config(url.config, MakeRustlsConnect::new(tls), manager_config)
        };
        let timeouts =
            Timeouts { wait: Some(options.timeout), create: Some(options.timeout), recycle: Some(options.timeout) };
        let pool = Pool::builder(manager)
            .max_size(options.max_connections)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| UrlError(error.to_string()))?;
        Ok(Self { pool, options })
    }

    /// Run one query within the time allowed. A connection that did not answer in time is closed, since whoever used it
    /// next would wait for the same answer.
    async fn query(&self, sql: &str, parameters: &[(&(dyn ToSql + Sync), Type)]) -> Result<Option<Row>, StoreError> {
        let deadline = Instant::now() + self.options.timeout;
        let too_slow = || unavailable(format!("no answer within {:?}", self.options.timeout));
        let client = match timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(unavailable(explain_pool(&error))),
            Err(_) => return Err(too_slow()),
        };
        // Unnamed statements: one round trip, and nothing that a pooler in transaction mode would mix up.
        match timeout_at(deadline, client.query_typed_opt(sql, parameters)).await {
            Ok(Ok(row)) => Ok(row),
            Ok(Err(error)) => Err(unavailable(explain(&error))),
            Err(_) => {
                drop(Object::take(client));
                Err(too_slow())
            }
        }
    }
}

/// One connection of its own, outside of any pool, for work that outlasts a look-up.
///
/// # Errors
/// When the URL can't be used or the server can't be reached.
pub(crate) async fn connect(url: &SecretString) -> Result<Client, StoreError> {
    let url = PostgresUrl::from_str(url.expose_secret()).map_err(|error| unavailable(error.to_string()))?;
    let tls = tls::client_config(url.verify, url.ca_file.as_deref()).map_err(unavailable)?;
    let (client, connection) =
        url.config.connect(MakeRustlsConnect::new(tls)).await.map_err(|error| unavailable(explain(&error)))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "a Postgres connection ended");
        }
    });
    Ok(client)
}

#[async_trait]
impl Source for Postgres {
    async fn load(&self, tenant: TenantId) -> Result<Option<License>, StoreError> {
        let bound = i32::try_from(MAX_FEATURES_BYTES).unwrap_or(i32::MAX);
        match self.query(LOAD, &[(tenant.as_uuid(), Type::UUID), (&bound, Type::INT4)]).await? {
            None => Ok(None),
            Some(row) => read(tenant, &row).map(Some).map_err(|cause| StoreError::Unreadable {
                store: StoreName::Postgres,
                tenant,
                cause,
            }),
        }
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.query("SELECT 1 FROM tenant_licenses LIMIT 1", &[]).await.map(|_| ())
    }

    fn name(&self) -> StoreName {
        StoreName::Postgres
    }

    fn close_idle(&self) {
        self.pool.retain(|_, metrics| metrics.last_used() < self.options.idle_timeout);
    }
}

/// Microseconds since the Unix epoch, from `TIMESTAMP` (taken as UTC) or `TIMESTAMPTZ`; both infinities are extreme values.
struct Micros(i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        /// From 1970-01-01, the Unix epoch, to 2000-01-01, Postgres's.
        const BETWEEN_EPOCHS: i64 = 946_684_800_000_000;
        let since_2000 = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(match since_2000 {
            i64::MAX | i64::MIN => since_2000,
            finite => finite.saturating_add(BETWEEN_EPOCHS),
        }))
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::TIMESTAMP | Type::TIMESTAMPTZ)
    }
}

/// Read a row of [`LOAD`]. Tables made by hand may lack constraints: a column that is null or of another type is a fault of
/// the row.
fn read(tenant: TenantId, row: &Row) -> Result<License, Unreadable> {
    fn get<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Unreadable> {
        row.try_get(index).map_err(|error| Unreadable::Foreign(explain(&error)))
    }
    let document = |column, index| match get::<Option<String>>(row, index)? {
        Some(document) => Ok(document),
        None => match get::<Option<i32>>(row, index + 1)? {
            Some(bytes) => Err(Unreadable::TooLarge { column, bytes: usize::try_from(bytes).unwrap_or_default() }),
            None => Err(Unreadable::NotAnObject { column }),
        },
    };
    let row = LicenseRow {
        plan: get(row, 0)?,
        features: document("features", 1)?,
        usage_limits: document("usage_limits", 3)?,
        valid_from: get::<Micros>(row, 5)?.0,
        valid_until: get::<Micros>(row, 6)?.0,
        auto_renew: get(row, 7)?,
        revision: get(row, 8)?,
    };
    License::from_row(tenant, &row)
}

fn unavailable(message: String) -> StoreError {
    StoreError::unavailable(StoreName::Postgres, message)
}

fn explain_pool(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) => explain(error),
        PoolError::Timeout(_) => "no connection became free in time".to_owned(),
        other => other.to_string(),
    }
}

fn explain(error: &tokio_postgres::Error) -> String {
    if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN)) {
        return format!("{}; run `dotmac-license-proxy migrate`", super::postgres_url::cause(error));
    }
    format!("{error}: {}", super::postgres_url::cause(error))
}
