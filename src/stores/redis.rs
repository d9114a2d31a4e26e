//! Licences in Redis: the cache between replicas, and how they hear of changes.
//!
//! One multiplexed connection speaks RESP3 with client tracking on: Redis tells it of each change to a key that it has
//! read, and of what is published for everyone. What it tells goes to one listener, in the order in which it arrives.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use licensing::license::{License, Unreadable};
use licensing::tenant::TenantId;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisError,
    Script, TlsCertificates, Value,
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::breaker::within;
use super::{Change, StoreError, StoreName, UrlError, tls};
use crate::secret::Secret;

static READ: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/read.lua")));
static FILL: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/fill.lua")));
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/announce.lua")));
static VOID: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/void.lua")));
static BEAT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/beat.lua")));

const TOKEN_PREFIX: &[u8] = b"fill:";
const EPOCH_KEY: &str = "license:~epoch";
const FEED_KEY: &str = "license:~feed";

/// A client of one Redis.
pub(crate) struct Redis {
    url: Secret,
    ca_file: Option<String>,
    /// What is used for new connections: a URL and its client.
    in_use: ArcSwap<(SecretString, Client)>,
    timeout: Duration,
    /// How long a licence may be used, counted from before it was read from the source.
    ttl: Duration,
    /// Where changes are published. Channels are common to all databases of a server, so the database is in its name.
    channel: String,
    connection: Mutex<Option<Connected>>,
    /// The number of the connection that is there; 0: none.
    current: Arc<AtomicU64>,
    opened: AtomicU64,
    listener: OnceLock<Listener>,
}

type Listener = Arc<dyn Fn(Push) + Send + Sync>;

#[derive(Clone)]
struct Connected {
    id: u64,
    connection: MultiplexedConnection,
    server: Arc<str>,
}

/// What Redis tells without being asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// The connection is there: from now on nothing is missed.
    Connected,
    /// It is gone: what happens from now on is missed.
    Lost,
    /// The key of this tenant was changed, deleted, or has expired.
    Changed(TenantId),
    /// The database was flushed.
    Flushed,
    /// Published by a change feed, for everyone.
    Published(String),
}

/// What lies under a tenant's key.
#[derive(Debug)]
pub(crate) enum Cached {
    /// A licence.
    Hit(Hit),
    /// Nothing: the caller has the right to fill it in with this token.
    Vacant(FillToken),
    /// Nothing, and nothing can be written there: the server is full, or a replica.
    Unwritable,
    /// Another replica is asking the source right now.
    Busy,
    /// Something that is no licence. The caller may replace it with the source's answer by this token.
    Unreadable(FillToken, Unreadable),
}

/// A licence that lies in Redis.
#[derive(Debug)]
pub(crate) struct Hit {
    /// The licence.
    pub(crate) license: License,
    /// How long ago it was read from the source.
    pub(crate) age: Duration,
    /// The right to replace it by what the source says now.
    pub(crate) token: FillToken,
}

/// The right to fill in one tenant's licence.
#[derive(Debug)]
pub(crate) struct FillToken {
    /// What must still lie under the key for the fill to be written.
    lies: Vec<u8>,
    /// The epoch in which the source is asked.
    epoch: String,
}

/// What became of a fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It is there.
    Yes,
    /// Something has happened to the key meanwhile.
    Overtaken,
    /// Nothing can be written there.
    Unwritable,
}

impl Redis {
    /// Prepare a client for `url`. Nothing is connected yet. `ca_file` is a PEM file of authorities for `rediss://`, the
    /// system's are used without one.
    ///
    /// # Errors
    /// When the URL or its CA file can't be used. The message never holds the URL, which holds a password.
    pub(crate) fn new(url: &Secret, ca_file: Option<&str>, ttl: Duration, timeout: Duration) -> Result<Self, UrlError> {
        let (client, channel) = client(url.first(), ca_file)?;
        Ok(Self {
            in_use: ArcSwap::from_pointee((url.first().clone(), client)),
            url: url.clone(),
            ca_file: ca_file.map(str::to_owned),
            timeout,
            ttl,
            channel,
            connection: Mutex::new(None),
            current: Arc::default(),
            opened: AtomicU64::new(0),
            listener: OnceLock::new(),
        })
    }

    /// Who hears what Redis tells. Set once, before the first connection. It must not block.
    pub(crate) fn listen(&self, listener: impl Fn(Push) + Send + Sync + 'static) {
        let first = self.listener.set(Arc::new(listener)).is_ok();
        debug_assert!(first, "there is one listener");
    }

    /// Look a tenant up. Where nothing is found, the key is claimed for `claim`.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses; that is not a miss.
    pub(crate) async fn read(&self, tenant: TenantId, claim: Duration) -> Result<Cached, StoreError> {
        let token = [TOKEN_PREFIX, Uuid::new_v4().simple().to_string().as_bytes()].concat();
        let (what, value, pttl, epoch): (String, Vec<u8>, i64, String) = self
            .run(async |connected| {
                let mut script = READ.key(key(tenant));
                let new_epoch = format!("{}{}", connected.server, Uuid::new_v4().simple());
                script.key(EPOCH_KEY).arg(&token).arg(millis(claim)).arg(&*connected.server).arg(new_epoch);
                script.invoke_async(&mut connected.connection).await
            })
            .await?;
        Ok(match what.as_str() {
            "unwritable" => Cached::Unwritable,
            "claimed" => Cached::Vacant(FillToken { lies: token, epoch }),
            "busy" => Cached::Busy,
            _ => match understand(tenant, &value, pttl) {
                Ok((license, age)) => Cached::Hit(Hit { license, age, token: FillToken { lies: value, epoch } }),
                Err(cause) => Cached::Unreadable(FillToken { lies: value, epoch }, cause),
            },
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
    ) -> Result<Filled, StoreError> {
        let left = self.ttl.saturating_sub(age).max(Duration::from_millis(1));
        let value = license.map(|license| self.entry(license, &token.epoch)).unwrap_or_default();
        let mut script = FILL.key(key(tenant));
        script.arg(&token.lies).arg(value).arg(millis(left)).arg(license.map_or(0, |license| license.revision));
        let filled = self.run(async |connected| script.invoke_async::<i64>(&mut connected.connection).await).await?;
        Ok(match filled {
            1 => Filled::Yes,
            0 => Filled::Overtaken,
            _ => Filled::Unwritable,
        })
    }

    /// Take out what has changed, and publish it where `publish`, after `preface`.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses: the entries may still lie there.
    pub(crate) async fn announce(&self, changes: &[Change], publish: bool, preface: &str) -> Result<(), StoreError> {
        let mut script = ANNOUNCE.prepare_invoke();
        for change in changes {
            script.key(key(change.tenant));
        }
        script.arg(self.channel_if(publish)).arg(preface);
        for change in changes {
            script.arg(change.to_string());
        }
        self.run(async |connected| script.invoke_async::<i64>(&mut connected.connection).await).await.map(drop)
    }

    /// Take out what lies there of `tenant`, whatever it is, and publish these messages.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses: the entry may still lie there.
    pub(crate) async fn forget(&self, tenant: TenantId, messages: &[&str]) -> Result<(), StoreError> {
        let mut pipe = redis::pipe();
        pipe.cmd("DEL").arg(key(tenant)).ignore();
        for message in messages {
            pipe.cmd("PUBLISH").arg(&self.channel).arg(message).ignore();
        }
        self.run(async |connected| pipe.query_async::<()>(&mut connected.connection).await).await
    }

    /// The epoch in which entries count now; empty where none has begun.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses.
    pub(crate) async fn epoch(&self) -> Result<String, StoreError> {
        let get = redis::cmd("GET").arg(EPOCH_KEY).to_owned();
        let epoch = self.run(async |c| get.query_async::<Option<String>>(&mut c.connection).await).await?;
        Ok(epoch.unwrap_or_default())
    }

    /// Publish for everyone who listens.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses.
    pub(crate) async fn publish(&self, messages: &[&str]) -> Result<(), StoreError> {
        let mut pipe = redis::pipe();
        for message in messages {
            pipe.cmd("PUBLISH").arg(&self.channel).arg(message).ignore();
        }
        self.run(async |connected| pipe.query_async::<()>(&mut connected.connection).await).await
    }

    /// End the epoch, or just this one: nothing that lies in the cache counts any more.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses: the entries still count.
    pub(crate) async fn void(&self, epoch: Option<&str>) -> Result<(), StoreError> {
        let mut script = VOID.key(EPOCH_KEY);
        script.arg(epoch.unwrap_or_default());
        self.run(async |connected| script.invoke_async::<i64>(&mut connected.connection).await).await.map(drop)
    }

    /// Tell that this feed is in order as of `beat` (none: not yet), and learn the last beat of the one that holds the key.
    ///
    /// # Errors
    /// When Redis can't be reached or refuses.
    pub(crate) async fn beat(
        &self,
        session: &str,
        beat: Option<u64>,
        counts_for: Duration,
        published: Option<&str>,
    ) -> Result<Option<(String, u64)>, StoreError> {
        let mut script = BEAT.key(FEED_KEY);
        script.arg(session).arg(beat.map(|beat| beat.to_string()).unwrap_or_default()).arg(millis(counts_for));
        script.arg(self.channel_if(published.is_some())).arg(published.unwrap_or_default());
        let holder = self.run(async |c| script.invoke_async::<String>(&mut c.connection).await).await?;
        Ok(holder.split_once(':').and_then(|(session, beat)| Some((session.to_owned(), beat.parse().ok()?))))
    }

    /// Whether it answers at all. Looks, too, whether it is still the server that it was: a replica that becomes the
    /// primary may lack what the old one had, and hold what that had taken out.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        let look = async || self.run(async |connected| server(&mut connected.connection).await).await;
        let server = match look().await {
            Err(_) if self.renew() => look().await?,
            answer => answer?,
        };
        if let Some(connected) = self.connection.lock().await.as_mut()
            && *connected.server != *server
        {
            tracing::warn!("Redis has changed its role; nothing that lies there counts");
            connected.server = server;
        }
        Ok(())
    }

    /// Read the URL's file again, where it came from one. True if it says another URL than before, which is used from now on.
    fn renew(&self) -> bool {
        let Some(url) = self.url.changed(&self.in_use.load().0) else { return false };
        match client(&url, self.ca_file.as_deref()) {
            Ok((client, _)) => {
                self.in_use.store(Arc::new((url, client)));
                self.lose(self.current.load(Ordering::Acquire));
                tracing::info!("the Redis URL has changed; new connections use it");
                true
            }
            Err(error) => {
                tracing::error!(%error, "the Redis URL has changed, but can't be used");
                false
            }
        }
    }

    /// Run one command within the time allowed. A connection that broke or did not answer is given up.
    async fn run<T>(
        &self,
        command: impl AsyncFnOnce(&mut Connected) -> Result<T, RedisError>,
    ) -> Result<T, StoreError> {
        let mut id = None;
        let work = async {
            let mut connected = self.connected().await?;
            id = Some(connected.id);
            command(&mut connected).await
        };
        // Losing the connection costs more than one late answer: what was known is asked for again.
        let error = match within(self.timeout, work).await {
            Some(Ok(value)) => return Ok(value),
            // The server answered, if only to refuse: the connection is sound.
            Some(Err(error)) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => {
                return Err(unavailable(error.to_string()));
            }
            Some(Err(error)) => error.to_string(),
            None => format!("no answer within {:?}", self.timeout),
        };
        if let Some(id) = id {
            self.lose(id);
        }
        Err(unavailable(error))
    }

    async fn connected(&self) -> Result<Connected, RedisError> {
        let mut slot = self.connection.lock().await;
        if let Some(connected) = &*slot
            && connected.id == self.current.load(Ordering::Acquire)
        {
            return Ok(connected.clone());
        }
        *slot = None;
        let id = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        let (listener, current) = (self.listener.get().cloned(), Arc::clone(&self.current));
        let config = AsyncConnectionConfig::new()
            // Those who ask have a limit of their own, which knows when it is this process that is late.
            .set_connection_timeout(Some(self.timeout * 5))
            .set_response_timeout(Some(self.timeout * 5))
            .set_push_sender(move |info: PushInfo| -> Result<(), std::convert::Infallible> {
                // The end of a connection that has been given up already says nothing about the next one.
                let ends = info.kind == PushKind::Disconnection;
                let current = !ends || current.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire).is_ok();
                if let (Some(listener), true) = (&listener, current) {
                    pushes(info).for_each(|push| listener(push));
                }
                Ok(())
            });
        let client = self.in_use.load().1.clone();
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let track = redis::cmd("CLIENT").arg(&["TRACKING", "ON", "NOLOOP"]).to_owned();
        track.query_async::<()>(&mut connection).await?;
        connection.subscribe(&self.channel).await?;
        let server = server(&mut connection).await?;
        let connected = Connected { id, connection, server };
        *slot = Some(connected.clone());
        self.current.store(id, Ordering::Release);
        self.tell(Push::Connected);
        Ok(connected)
    }

    /// Give this connection up, if it is still the one in use.
    fn lose(&self, id: u64) {
        if self.current.compare_exchange(id, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.tell(Push::Lost);
        }
    }

    fn tell(&self, push: Push) {
        if let Some(listener) = self.listener.get() {
            listener(push);
        }
    }

    fn channel_if(&self, publish: bool) -> &str {
        if publish { &self.channel } else { "" }
    }

    /// The value of a key: the licence's JSON, and in it how long entries live, so that a reader can tell the age from
    /// `PTTL` alone and needs no clock that agrees with the writer's. The scripts know what it begins with.
    fn entry(&self, license: &License, epoch: &str) -> String {
        format!("{{\"ttl_ms\":{},\"epoch\":\"{epoch}\",{}", millis(self.ttl), &license.to_json()[1..])
    }
}

/// Which server this is, as long as it loses nothing: its process, and its replication history, which changes when a
/// replica becomes the primary.
async fn server(connection: &mut MultiplexedConnection) -> Result<Arc<str>, RedisError> {
    let (server, replication): (String, String) =
        redis::pipe().cmd("INFO").arg("server").cmd("INFO").arg("replication").query_async(connection).await?;
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().chars().take(12).collect::<String>()
    };
    Ok(format!("{}.{}.", field(&server, "run_id"), field(&replication, "master_replid")).into())
}

/// A tenant's entry, `pttl` milliseconds before it goes: the licence, and how long ago it was read from the source.
///
/// # Errors
/// When it is nothing that [`Redis::fill`] writes for this tenant.
pub(crate) fn understand(tenant: TenantId, value: &[u8], pttl: i64) -> Result<(License, Duration), Unreadable> {
    #[derive(Deserialize)]
    struct Life {
        ttl_ms: u64,
    }
    let license = License::from_json(tenant, value)?;
    let life: Life = serde_json::from_slice(value).map_err(|error| Unreadable::Foreign(error.to_string()))?;
    let left = u64::try_from(pttl).map_err(|_| Unreadable::Foreign("it never expires".to_owned()))?;
    Ok((license, Duration::from_millis(life.ttl_ms.saturating_sub(left))))
}

/// What a push of the protocol means to us.
fn pushes(info: PushInfo) -> impl Iterator<Item = Push> {
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    };
    let pushes: Vec<Push> = match (info.kind, info.data.as_slice()) {
        (PushKind::Disconnection, _) => vec![Push::Lost],
        (PushKind::Invalidate, [Value::Array(keys)]) => {
            let tenants = keys.iter().filter_map(|key| text(key)?.strip_prefix("license:")?.parse().ok());
            tenants.map(Push::Changed).collect()
        }
        (PushKind::Invalidate, _) => vec![Push::Flushed],
        (PushKind::Message, [_, message]) => text(message).map(Push::Published).into_iter().collect(),
        _ => Vec::new(),
    };
    pushes.into_iter()
}

/// A client for a URL, and the channel on which changes are published there.
fn client(url: &SecretString, ca_file: Option<&str>) -> Result<(Client, String), UrlError> {
    let unusable = |error: RedisError| {
        UrlError(format!("the Redis URL can't be read (redis://, rediss:// or unix://): {}", error.category()))
    };
    let info = url.expose_secret().trim().into_connection_info().map_err(unusable)?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let channel = format!("license:~changes:{}", settings.db());
    let info = info.set_redis_settings(settings);
    let client = match ca_file {
        None => Client::open(info),
        Some(path) => {
            let root_cert = Some(tls::read_pem(path).map_err(UrlError)?);
            Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })
        }
    };
    Ok((client.map_err(unusable)?, channel))
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
