//! One Postgres server: a small pool, opened lazily, its idle connections closed, and beside it a connection for probes.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, Timeouts};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Error, NoTls, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::breaker::within;
use super::postgres_url::{PostgresUrl, cause};
use super::{StoreError, StoreName, UrlError, tls};
use crate::secret::Secret;

/// How long the connection for probes is kept after the last one: while probing goes on it is not opened anew each time.
const PROBE_IDLE: Duration = Duration::from_secs(5);

/// How many times as long as one query it may take to open the connection for probes.
const PROBE_CONNECT_SHARE: u32 = 5;

/// How the pool behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolOptions {
    /// The most connections held at once, the one for probes apart.
    pub max_connections: usize,
    /// How long a connection may lie unused before it is closed.
    pub idle_timeout: Duration,
    /// How long one operation may take, waiting for a connection included.
    pub timeout: Duration,
}

/// A server and the connections to it.
pub(super) struct Server {
    url: Secret,
    options: PoolOptions,
    /// What is used for new connections.
    current: ArcSwap<Current>,
    /// Not of the pool: whoever exhausts that must not make the server look dead.
    probe: Mutex<Option<Connection>>,
}

/// A URL as it is in use.
struct Current {
    url: SecretString,
    connector: Connector,
    pool: Pool,
}

impl Server {
    /// Prepare a pool for `url`. Nothing is connected yet.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used.
    pub(super) fn new(url: &Secret, options: PoolOptions) -> Result<Self, UrlError> {
        let current = ArcSwap::from_pointee(Current::new(url.first().clone(), options)?);
        Ok(Self { url: url.clone(), options, current, probe: Mutex::new(None) })
    }

    /// Run `work` on a connection of the pool, until `deadline`. A connection that did not answer in time is closed,
    /// since whoever used it next would wait for the same answer.
    ///
    /// # Errors
    /// [`StoreError::Late`] when the time has passed, [`StoreError::Unavailable`] for all else.
    pub(super) async fn run<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let allowed = deadline.saturating_duration_since(Instant::now());
        let client = async {
            match self.current.load_full().pool.get().await {
                Err(PoolError::Backend(error)) if is_rejected(&error) => {
                    if self.renew() {
                        return self.current.load_full().pool.get().await;
                    }
                    // A connection from better days must not say that all is well.
                    if let Ok(mut slot) = self.probe.try_lock() {
                        *slot = None;
                    }
                    Err(PoolError::Backend(error))
                }
                client => client,
            }
        };
        let client = match timeout_at(deadline, client).await {
            Ok(Err(PoolError::Backend(error))) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
                return self.run_on_spare(deadline, work, &error).await;
            }
            Ok(client) => client.map_err(|error| pool_failure(&error))?,
            Err(_) => return Err(too_slow(allowed)),
        };
        match timeout_at(deadline, work(&client)).await {
            Ok(done) => done.map_err(|error| failure(&error)),
            Err(_) => {
                drop(Object::take(client));
                Err(too_slow(allowed))
            }
        }
    }

    /// Work on the connection for probes, if there is one: all that is left where the server takes no more connections. Else
    /// probes would find it well for as long as nobody is answered.
    async fn run_on_spare<T>(
        &self,
        deadline: Instant,
        work: impl AsyncFnOnce(&Client) -> Result<T, Error>,
        refused: &Error,
    ) -> Result<T, StoreError> {
        let allowed = deadline.saturating_duration_since(Instant::now());
        let Ok(mut slot) = timeout_at(deadline, self.probe.lock()).await else { return Err(too_slow(allowed)) };
        // If this ends early, the connection has been taken out, and is closed.
        let Some(mut spare) = slot.take() else { return Err(failure(refused)) };
        let done = timeout_at(deadline, work(&spare.client)).await.map_err(|_| too_slow(allowed))?;
        spare.last_used = Instant::now();
        *slot = (!spare.client.is_closed()).then_some(spare);
        done.map_err(|error| failure(&error))
    }

    /// Run a query without parameters on the connection for probes, within [`PoolOptions::timeout`]. The connection is opened
    /// if it is not there, which may take longer: that a server is slow to greet does not mean that it is slow to answer.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub(super) async fn probe(&self, sql: &str) -> Result<Vec<Row>, StoreError> {
        let limit = self.options.timeout;
        let mut slot = self.probe.lock().await;
        // If this ends early, the connection has been taken out, and is closed.
        if let Some(mut kept) = slot.take() {
            match within(limit, kept.client.query_typed(sql, &[])).await {
                Some(Ok(rows)) => {
                    kept.last_used = Instant::now();
                    *slot = Some(kept);
                    return Ok(rows);
                }
                // A kept connection that fails says nothing: the server may have been restarted since.
                Some(Err(_)) => {}
                None => return Err(self.late_probe(limit)),
            }
        }
        let connect = async {
            match self.current.load_full().connector.connect().await {
                // Whatever it is, another URL may be the end of it: a pooler says in its own way that a password is wrong.
                Err(_) if self.renew() => self.current.load_full().connector.connect().await,
                connection => connection,
            }
        };
        let patience = limit * PROBE_CONNECT_SHARE;
        let Some(fresh) = within(patience, connect).await else { return Err(self.late_probe(patience)) };
        let fresh = fresh.map_err(|error| failure(&error))?;
        let Some(rows) = within(limit, fresh.client.query_typed(sql, &[])).await else {
            return Err(self.late_probe(limit));
        };
        let rows = rows.map_err(|error| failure(&error))?;
        *slot = Some(fresh);
        Ok(rows)
    }

    fn late_probe(&self, allowed: Duration) -> StoreError {
        // A host that answers nobody may have been moved: that is for the next probe to see.
        self.renew();
        too_slow(allowed)
    }

    /// Read the URL's file again, where it came from one. True if it says another URL than before: new connections use that
    /// from now on. Those in use go on.
    fn renew(&self) -> bool {
        let Some(url) = self.url.changed(&self.current.load().url) else { return false };
        match Current::new(url, self.options) {
            Ok(current) => {
                self.current.store(Arc::new(current));
                tracing::info!("the Postgres URL has changed; new connections use it");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the Postgres URL has changed, but can't be used");
                false
            }
        }
    }

    /// Close what lies idle.
    pub(super) fn close_idle(&self) {
        self.current.load().pool.retain(|_, metrics| metrics.last_used() < self.options.idle_timeout);
        if let Ok(mut slot) = self.probe.try_lock() {
            slot.take_if(|kept| kept.last_used.elapsed() >= PROBE_IDLE.min(self.options.idle_timeout));
        }
    }
}

impl Current {
    fn new(url: SecretString, options: PoolOptions) -> Result<Self, UrlError> {
        let connector = Connector::new(&url)?;
        let pool = connector.pool(options)?;
        Ok(Self { url, connector, pool })
    }
}

/// One connection of its own, outside of any pool, for work that outlasts a look-up.
///
/// # Errors
/// When the URL can't be used or the server can't be reached.
pub(crate) async fn connect(url: &SecretString) -> Result<Client, StoreError> {
    let (client, connection) = dial(url).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "a Postgres connection ended");
        }
    });
    Ok(client)
}

/// What a connection of [`dial`] runs on.
type Link = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// A connection that is still to be driven.
///
/// # Errors
/// As [`connect`].
pub(super) async fn dial(url: &SecretString) -> Result<(Client, Link), StoreError> {
    let url = PostgresUrl::from_str(url.expose_secret()).map_err(|error| unavailable(error.to_string()))?;
    let tls = tls::client_config(url.verify, url.ca_file.as_deref()).map_err(unavailable)?;
    url.config.connect(MakeRustlsConnect::new(tls)).await.map_err(|error| failure(&error))
}

/// A URL, made ready for connecting.
struct Connector {
    config: tokio_postgres::Config,
    tls: Option<MakeRustlsConnect>,
}

impl Connector {
    fn new(url: &SecretString) -> Result<Self, UrlError> {
        let PostgresUrl { config, verify, ca_file } = url.expose_secret().parse()?;
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => None,
            _ => Some(MakeRustlsConnect::new(tls::client_config(verify, ca_file.as_deref()).map_err(UrlError)?)),
        };
        Ok(Self { config, tls })
    }

    fn pool(&self, options: PoolOptions) -> Result<Pool, UrlError> {
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match &self.tls {
            None => Manager::from_config(self.config.clone(), NoTls, manager_config),
            Some(tls) => Manager::from_config(self.config.clone(), tls.clone(), manager_config),
        };
        let timeouts =
            Timeouts { wait: Some(options.timeout), create: Some(options.timeout), recycle: Some(options.timeout) };
        Pool::builder(manager)
            .max_size(options.max_connections)
            .timeouts(timeouts)
            .runtime(Runtime::Tokio1)
            .build()
            .map_err(|error| UrlError(error.to_string()))
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let (client, driver) = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                (client, tokio::spawn(async move { drop(connection.await) }))
            }
        };
        Ok(Connection { client, driver, last_used: Instant::now() })
    }
}

/// A connection outside of the pool, closed when it is dropped, whether or not the server answers.
struct Connection {
    client: Client,
    driver: JoinHandle<()>,
    last_used: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pub(super) fn unavailable(message: String) -> StoreError {
    StoreError::unavailable(StoreName::Postgres, message)
}

fn late(message: String) -> StoreError {
    StoreError::late(StoreName::Postgres, message)
}

fn too_slow(allowed: Duration) -> StoreError {
    // Rounded, since what another server has left over is no round number.
    late(format!("no answer within {} ms", allowed.as_millis()))
}

fn pool_failure(error: &PoolError) -> StoreError {
    match error {
        PoolError::Backend(error) => failure(error),
        PoolError::Timeout(_) => late("no connection became free in time".to_owned()),
        other => unavailable(other.to_string()),
    }
}

/// Whether a server refused us for who we say we are: the password, or the user (SQLSTATE class 28).
fn is_rejected(error: &Error) -> bool {
    error.code().is_some_and(|code| code.code().starts_with("28"))
}

pub(super) fn failure(error: &Error) -> StoreError {
    match error.code() {
        // A statement_timeout of the server's or the URL's is a time-out like our own, and so is a lock that somebody holds.
        Some(&(SqlState::QUERY_CANCELED | SqlState::LOCK_NOT_AVAILABLE)) => late(explain(error)),
        Some(code) if is_about_content(code) => {
            StoreError::Refused { store: StoreName::Postgres, message: explain(error) }
        }
        _ => unavailable(explain(error)),
    }
}

/// Whether it is what was sent that can't be taken: a value (SQLSTATE class 22), a constraint (23, 44), a limit of the server's
/// (54), or a trigger of somebody's own (P0).
fn is_about_content(code: &SqlState) -> bool {
    ["22", "23", "44", "54", "P0"].iter().any(|class| code.code().starts_with(class))
}

pub(super) fn explain(error: &Error) -> String {
    if matches!(error.code(), Some(&SqlState::UNDEFINED_TABLE | &SqlState::UNDEFINED_COLUMN)) {
        return format!("{}; run `dotmac-license-proxy migrate`", cause(error));
    }
    format!("{error}: {}", cause(error))
}
