//! Licences in Redis: the cache between replicas, one multiplexed connection that is opened lazily and closed when idle.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use licensing::license::{License, Unreadable};
use licensing::tenant::TenantId;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, Script, TlsCertificates};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{SecretUrl, StoreError, StoreName, UrlError, tls};

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read.lua")));
static FILL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/fill.lua")));

const TOKEN_PREFIX: &[u8] = b"fill:";

/// A client of one Redis.
pub(crate) struct Redis {
    url: SecretUrl,
    ca_file: Option<String>,
    /// What is used for new connections: a URL and its client.
    current: ArcSwap<(SecretString, Client)>,
    timeout: Duration,
    idle_timeout: Duration,
    /// How long a licence may be used, counted from before it was read from the source.
    ttl: Duration,
    connection: Mutex<Option<Connected>>,
}

struct Connected {
    connection: MultiplexedConnection,
    last_used: Instant,
}

/// What lies under a tenant's key.
#[derive(Debug)]
pub(crate) enum Cached {
    /// A licence, and how long ago it was read from the source.
    Hit {
        /// The licence.
        license: License,
        /// Its age.
        age: Duration,
        /// The right to replace it by what the source says now.
        token: FillToken,
    },
    /// Nothing: the caller has the right to fill it in with this token.
    Vacant(FillToken),
    /// Another replica is asking the source right now.
    Busy,
    /// Something that is no licence. The caller may replace it with the source's answer by this token.
    Unreadable(FillToken, Unreadable),
}

/// The right to fill in one tenant's licence: what must still lie under the key for the fill to be written.
#[derive(Debug)]
pub(crate) struct FillToken(Vec<u8>);

impl Redis {
    /// Prepare a client for `url`. Nothing is connected yet. `ca_file` is a PEM file of authorities for `rediss://`, the
    /// system's are used without one.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used. The message never holds the URL, which holds a password.
    pub(crate) fn new(
        url: &SecretUrl,
        ca_file: Option<&str>,
        ttl: Duration,
        timeout: Duration,
        idle_timeout: Duration,
    ) -> Result<Self, UrlError> {
        let client = client(url.first(), ca_file)?;
        let current = ArcSwap::from_pointee((url.first().clone(), client));
        let (url, ca_file) = (url.clone(), ca_file.map(str::to_owned));
        Ok(Self { url, ca_file, current, timeout, idle_timeout, ttl, connection: Mutex::new(None) })
    }

    /// Look a tenant up. Where nothing is found, the key is claimed for `claim`.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses; that is not a miss.
    pub(crate) async fn read(&self, tenant: TenantId, claim: Duration) -> Result<Cached, StoreError> {
        let token = [TOKEN_PREFIX, Uuid::new_v4().simple().to_string().as_bytes()].concat();
        let mut script = READ.key(key(tenant));
        script.arg(&token).arg(millis(claim));
        let (value, pttl): (Vec<u8>, i64) = self.run(async |connection| script.invoke_async(connection).await).await?;
        if value == token {
            return Ok(Cached::Vacant(FillToken(token)));
        }
        if value.starts_with(TOKEN_PREFIX) {
            return Ok(Cached::Busy);
        }
        Ok(match self.understand(tenant, &value, pttl) {
            Ok((license, age)) => Cached::Hit { license, age, token: FillToken(value) },
            Err(cause) => Cached::Unreadable(FillToken(value), cause),
        })
    }

    /// Put in what the source said, if the token still lies there. `age` is the time since before the source was asked.
    /// Without a licence the token alone is taken away.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses.
    pub(crate) async fn fill(
        &self,
        tenant: TenantId,
        token: &FillToken,
        license: Option<&License>,
        age: Duration,
    ) -> Result<(), StoreError> {
        let left = self.ttl.saturating_sub(age).max(Duration::from_millis(1));
        let value = license.map(|license| self.entry(license)).unwrap_or_default();
        let mut script = FILL.key(key(tenant));
        script.arg(&token.0).arg(value).arg(millis(left));
        self.run(async |connection| script.invoke_async::<i64>(connection).await).await.map(|_| ())
    }

    /// Whether it answers at all.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        let ping = async || self.run(async |connection| redis::cmd("PING").query_async::<()>(connection).await).await;
        match ping().await {
            Err(_) if self.renew().await => ping().await,
            answer => answer,
        }
    }

    /// Read the URL's file again, where it came from one. True if it says another URL than before, which is used from now on.
    async fn renew(&self) -> bool {
        let Some(url) = self.url.changed(&self.current.load().0) else { return false };
        match client(&url, self.ca_file.as_deref()) {
            Ok(client) => {
                self.current.store(Arc::new((url, client)));
                *self.connection.lock().await = None;
                tracing::info!("the Redis URL has changed; new connections use it");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the Redis URL has changed, but can't be used");
                false
            }
        }
    }

    /// Close the connection if it lies idle.
    pub(crate) fn close_idle(&self) {
        if let Ok(mut slot) = self.connection.try_lock()
            && slot.as_ref().is_some_and(|c| c.last_used.elapsed() >= self.idle_timeout)
        {
            *slot = None;
        }
    }

    /// Run one command within the time allowed. A connection that broke or did not answer is given up.
    async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut MultiplexedConnection) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let work = async {
            let mut connection = self.connection().await?;
            command(&mut connection).await
        };
        let error = match timeout(self.timeout, work).await {
            Ok(Ok(value)) => return Ok(value),
            // The server answered, if only to refuse: the connection is sound.
            Ok(Err(error)) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                return Err(unavailable(error.to_string()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {:?}", self.timeout),
        };
        *self.connection.lock().await = None;
        Err(unavailable(error))
    }

    async fn connection(&self) -> Result<MultiplexedConnection, RedisError> {
        let mut slot = self.connection.lock().await;
        if let Some(connected) = slot.as_mut() {
            connected.last_used = Instant::now();
            return Ok(connected.connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let client = self.current.load().1.clone();
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        *slot = Some(Connected { connection: connection.clone(), last_used: Instant::now() });
        Ok(connection)
    }

    /// The value of a key: the licence's JSON, and in it how long entries live, so that a reader can tell the age from
    /// `PTTL` alone and needs no clock that agrees with the writer's.
    fn entry(&self, license: &License) -> String {
        format!("{{\"ttl_ms\":{},{}", millis(self.ttl), &license.to_json()[1..])
    }

    fn understand(&self, tenant: TenantId, value: &[u8], pttl: i64) -> Result<(License, Duration), Unreadable> {
        #[derive(Deserialize)]
        struct Life {
            ttl_ms: u64,
        }
        let license = License::from_json(tenant, value)?;
        let life: Life = serde_json::from_slice(value).map_err(|error| Unreadable::Foreign(error.to_string()))?;
        let left = u64::try_from(pttl).map_err(|_| Unreadable::Foreign("it never expires".to_owned()))?;
        Ok((license, Duration::from_millis(life.ttl_ms.saturating_sub(left))))
    }
}

fn client(url: &SecretString, ca_file: Option<&str>) -> Result<Client, UrlError> {
    let url = url.expose_secret().trim();
    let client = match ca_file {
        None => Client::open(url),
        Some(path) => {
            let root_cert = Some(tls::read_pem(path).map_err(UrlError)?);
            Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert })
        }
    };
    client.map_err(|error| {
        UrlError(format!("the Redis URL can't be read (redis://, rediss:// or unix://): {}", error.category()))
    })
}

fn key(tenant: TenantId) -> String {
    format!("license:{tenant}")
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn unavailable(message: String) -> StoreError {
    StoreError::unavailable(StoreName::Redis, message)
}
