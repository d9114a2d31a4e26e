//! The only place where parts are put together: stores, look-up, gate, listeners, and their end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::Router;
use licensing::config::{Address, ChangeFeed, Config, LicenseSource};
use pingora::listeners::ListenerConfig;
use pingora::protocols::l4::stream::L4BufferSettings;
use pingora::proxy::http_proxy;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch};
use pingora::services::listening::Service;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::access_log::AccessLog;
use crate::api::admin::{self, Admin, Guard};
use crate::api::clicks::Clicks;
use crate::api::license::LicenseApi;
use crate::api::listener;
use crate::api::ops::{self, Ops};
use crate::api::upgrade::UpgradeApi;
use crate::explain::Explainer;
use crate::gate::Gate;
use crate::licenses::{Announcer, Feed, Freshness, Licenses};
use crate::load::Load;
use crate::manage::Manage;
use crate::metrics::Metrics;
use crate::open_files;
use crate::proxy::{Connections, Doorman, Proxy};
use crate::record::{RecordOptions, Recorder, UsageReader};
use crate::reload::Reload;
use crate::settings::Settings;
use crate::snapshot::{Limits, Snapshot, Snapshots};
use crate::stores::{
    FileSource, Ledger, MemoryUsage, Nowhere, PoolOptions, Postgres, PostgresLedger, PostgresUsage, Redis, Source,
    UsageSource, UsageStore,
};

/// The share of the look-up deadline that Redis may take: the rest is for asking Postgres where Redis does not answer.
const REDIS_SHARE: u32 = 2;

/// What the last flush may take where requests have left it no time.
const LAST_FLUSH: Duration = Duration::from_secs(1);

/// What each connection reads into before anybody asks for it, in bytes: enough for most requests' headers, and bodies are
/// read past it. Pingora's own 64 KiB are more than an idle WebSocket may take in all.
const READ_BUFFER: usize = 4 << 10;

/// Everything, put together and ready to run.
pub(crate) struct Assembly {
    settings: Settings,
    runtime: Runtime,
    licenses: Arc<Licenses>,
    license_api: Arc<LicenseApi>,
    recorder: Arc<Recorder>,
    change_feed: ChangeFeed,
    feed: Option<Arc<Feed>>,
    gate: Arc<Gate>,
    snapshots: Snapshots,
    /// None: licences can only be read here.
    manage: Option<Arc<Manage>>,
    load: Arc<Load>,
    metrics: Arc<Metrics>,
    draining: Arc<AtomicBool>,
}

/// Where licences come from, and where they are changed, if that is known.
struct Stores {
    source: Arc<dyn Source>,
    ledger: Option<Arc<dyn Ledger>>,
    /// Where usage is written.
    usage: Arc<dyn UsageStore>,
    /// Where it is read for people: a replica perhaps.
    used: Arc<dyn UsageSource>,
}

impl Assembly {
    /// Put the parts together. Nothing is connected or bound yet.
    ///
    /// # Errors
    /// When settings don't suffice or can't be used.
    pub(crate) fn new(settings: Settings) -> anyhow::Result<Self> {
        let metrics = metrics(&settings)?;
        let stores = stores(&settings, &metrics)?;
        Self::put_together(settings, stores, metrics)
    }

    /// The same with another source of licences than the settings name.
    ///
    /// # Errors
    /// As [`Assembly::new`].
    pub(crate) fn with_source(settings: Settings, source: Arc<FileSource>) -> anyhow::Result<Self> {
        let metrics = metrics(&settings)?;
        Self::put_together(settings, Stores::of_file(source), metrics)
    }

    fn put_together(settings: Settings, stores: Stores, metrics: Arc<Metrics>) -> anyhow::Result<Self> {
        let config = &settings.config;
        // Loads, probes and our own listeners run here, apart from the proxy's threads: a pool must live on a runtime that
        // outlives the requests that use it.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("stores")
            .enable_all()
            .build()
            .context("the runtime can't be started")?;
        let snapshots = Arc::new(ArcSwap::from_pointee(Snapshot::of(&settings)?));
        let redis = redis(&settings, redis_timeout(config))?;
        let change_feed = match config.licenses.source {
            LicenseSource::Postgres(_) => config.licenses.change_feed,
            LicenseSource::File(_) => ChangeFeed::None,
        };
        if change_feed == ChangeFeed::Redis && redis.is_none() {
            bail!("licenses.change_feed is redis, but neither DOTMAC_LICENSE_REDIS_URL nor REDIS_URL is set");
        }
        let (handle, counts) = (runtime.handle().clone(), Arc::clone(&metrics));
        let licenses = Licenses::new(stores.source, redis, freshness(config), change_feed, handle, counts);
        let feed = match (change_feed, &settings.secrets.database_url) {
            (ChangeFeed::Listen, Some(url)) => Some(Feed::of(&licenses, url.clone(), Arc::clone(&metrics))),
            (ChangeFeed::Listen, None) => bail!(
                "licenses.change_feed is listen, but neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL is set: \
                 the primary, since a replica tells of no changes"
            ),
            (ChangeFeed::Redis | ChangeFeed::None, _) => None,
        };
        let manage = stores.ledger.map(|ledger| {
            let announcer = Announcer::of(&licenses, Arc::clone(&metrics));
            Arc::new(Manage::new(ledger, announcer, config.catalogue(), runtime.handle().clone()))
        });
        let handle = runtime.handle();
        let recorder = Recorder::new(stores.usage, record_options(config), handle.clone(), Arc::clone(&metrics));
        let (deadline, interval) = (config.licenses.lookup_deadline.get(), config.usage.flush_interval.get());
        let used = UsageReader::new(stores.used, handle.clone(), deadline, interval);
        let license_api = LicenseApi::new(Arc::clone(&licenses), used, Arc::clone(&recorder));
        let gate = Arc::new(Gate::new(Arc::clone(&licenses), Arc::clone(&recorder), Arc::clone(&metrics)));
        Ok(Self {
            settings,
            runtime,
            licenses,
            license_api: Arc::new(license_api),
            recorder,
            change_feed,
            feed: feed.map(Arc::new),
            gate,
            snapshots,
            manage,
            load: Arc::default(),
            metrics,
            draining: Arc::default(),
        })
    }

    /// The runtime for what runs beside the proxy.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What tells what becomes of a request.
    pub(crate) fn explainer(&self) -> Explainer {
        Explainer::new(Arc::clone(&self.gate), Arc::clone(&self.snapshots))
    }

    /// Give back what was taken of limits: the process ends without having served.
    pub(crate) fn give_back(&self) {
        let until = tokio::time::Instant::now() + LAST_FLUSH;
        self.runtime.block_on(self.recorder.finish(until));
    }

    /// Bind, serve until a signal ends it, and end the process.
    ///
    /// # Errors
    /// When usage has no place, or something can't be bound or resolved; once it serves, it does not return.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        self.settings.require_place_for_usage()?;
        let config = &self.settings.config;
        open_files::allow_for(&config.limits);
        check_bindable(&config.listen.proxy, "listen.proxy")?;
        let listening = Arc::new(AtomicBool::new(false));
        self.serve_ops(&listening)?;
        self.serve_admin()?;
        self.runtime.spawn(Arc::clone(&self.licenses).keep_house());
        self.runtime.spawn(Arc::clone(&self.licenses).keep_watched());
        self.runtime.spawn(Arc::clone(&self.recorder).run());
        if self.change_feed == ChangeFeed::None {
            self.runtime.spawn(Arc::clone(&self.licenses).tell_thresholds(self.recorder.crossings()));
        }
        if let Some(feed) = &self.feed {
            self.runtime.spawn(Arc::clone(feed).run());
        }
        if let Some(manage) = &self.manage {
            self.runtime.spawn(Arc::clone(manage).keep_house());
        }
        self.runtime.spawn(await_listener(config.listen.proxy.clone(), Arc::clone(&listening)));

        let access_log = match config.log.access {
            true => Some(AccessLog::start(std::io::stdout(), self.metrics.access_log_dropped.clone())?),
            false => None,
        };
        let mut server = Server::new_with_opt_and_conf(None, server_conf(config));
        server.bootstrap();
        let mut service = self.proxy_service(&server, access_log.clone());
        let listener = match &config.listen.proxy {
            Address::Tcp(address) => ListenerConfig::tcp(address.to_string()),
            Address::Unix(path) => ListenerConfig::uds(path.to_string_lossy()),
        };
        service.add_listener(listener.l4_buffer(L4BufferSettings::default().read(READ_BUFFER)));
        server.add_service(service);

        let phases = server.watch_execution_phase();
        let drain = config.shutdown.drain.get();
        let timeout = config.shutdown.timeout.get().saturating_sub(drain);
        let (load, metrics) = (Arc::clone(&self.load), Arc::clone(&self.metrics));
        let (recorder, runtime) = (Arc::clone(&self.recorder), self.runtime.handle().clone());
        let end = End { load, metrics, manage: self.manage.clone(), recorder, runtime, access_log, timeout };
        std::thread::Builder::new().name("shutdown".to_owned()).spawn(move || end.after(phases))?;
        tracing::info!(
            proxy = %config.listen.proxy, ops = %config.listen.ops, upstream = %config.upstream.address,
            mode = config.enforcement.mode.as_str(), config_hash = self.settings.config_hash(),
            "serving"
        );
        let shutdown_signal = Box::new(Signals { draining: self.draining, drain });
        self.runtime.spawn(Reload::new(self.settings, self.snapshots, self.manage, self.metrics).run());
        server.run(RunArgs { shutdown_signal });
        Ok(())
    }

    fn serve_ops(&self, listening: &Arc<AtomicBool>) -> anyhow::Result<()> {
        let router = ops::router(Ops {
            licenses: Arc::clone(&self.licenses),
            load: Arc::clone(&self.load),
            recorder: Arc::clone(&self.recorder),
            snapshots: Arc::clone(&self.snapshots),
            metrics: Arc::clone(&self.metrics),
            listening: Arc::clone(listening),
            draining: Arc::clone(&self.draining),
        });
        let config = &self.settings.config;
        serve(&self.runtime, &config.listen.ops, "listen.ops", router, config.limits.header_timeout.get())
    }

    fn serve_admin(&self) -> anyhow::Result<()> {
        let Some(address) = &self.settings.config.listen.admin else { return Ok(()) };
        let guard = Guard::new(self.settings.secrets.admin_token.clone(), address);
        if !guard.has_token() {
            tracing::warn!("the admin API lets nobody in: neither DOTMAC_LICENSE_ADMIN_TOKEN nor ADMIN_TOKEN is set");
        }
        let (manage, explainer, guard) = (self.manage.clone(), self.explainer(), Arc::new(guard));
        let router = admin::router(Admin { manage, explainer, guard });
        serve(&self.runtime, address, "listen.admin", router, self.settings.config.limits.header_timeout.get())
    }

    fn proxy_service(&self, server: &Server, access_log: Option<AccessLog>) -> Service<Connections> {
        let license_api = Arc::clone(&self.license_api);
        let proxy = Proxy {
            gate: Arc::clone(&self.gate),
            load: Arc::clone(&self.load),
            metrics: Arc::clone(&self.metrics),
            snapshots: Arc::clone(&self.snapshots),
            upgrade_api: UpgradeApi::new(self.manage.clone(), Arc::clone(&license_api)),
            license_api,
            clicks: Clicks::new(Arc::clone(&self.recorder)),
            access_log: access_log.clone(),
            draining: Arc::clone(&self.draining),
        };
        let doorman = Doorman {
            gate: Arc::clone(&self.gate),
            metrics: Arc::clone(&self.metrics),
            snapshots: Arc::clone(&self.snapshots),
            access_log,
        };
        let proxy = http_proxy(&server.configuration, proxy);
        let limits = Limits::of(&self.settings.config);
        Service::new("proxy".to_owned(), Connections::new(proxy, limits, Arc::clone(&self.load), doorman))
    }
}

/// A listener of our own, beside the proxy's; `key` is what its address is called in the configuration, `header_timeout` how
/// long a request's head may take.
///
/// # Errors
/// When the address can't be bound.
fn serve(
    runtime: &Runtime,
    address: &Address,
    key: &str,
    router: Router,
    header_timeout: Duration,
) -> anyhow::Result<()> {
    let _runtime = runtime.enter();
    match address {
        Address::Tcp(address) => {
            let listener = TcpListener::bind(address).with_context(|| format!("{key} {address}"))?;
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            runtime.spawn(listener::serve(listener, router, header_timeout));
        }
        Address::Unix(path) => {
            remove_stale_socket(path)?;
            let listener =
                tokio::net::UnixListener::bind(path).with_context(|| format!("{key} unix:{}", path.display()))?;
            runtime.spawn(listener::serve(listener, router, header_timeout));
        }
    }
    Ok(())
}

/// A change feed for a whole fleet, which is told by way of Redis.
pub(crate) struct Relay {
    ops: Address,
    header_timeout: Duration,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
}

impl Relay {
    /// Put it together. Nothing is connected or bound yet.
    ///
    /// # Errors
    /// When settings don't suffice or can't be used.
    pub(crate) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let config = &settings.config;
        if matches!(config.licenses.source, LicenseSource::File(_)) {
            bail!("licenses.source is a file: there is nothing to relay");
        }
        let Some(url) = settings.secrets.database_url.clone() else {
            bail!("a relay needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL: the primary, which tells of changes")
        };
        let Some(redis) = redis(settings, redis_timeout(config))? else {
            bail!("a relay needs DOTMAC_LICENSE_REDIS_URL or REDIS_URL: where it tells of changes")
        };
        let metrics = metrics(settings)?;
        let feed = Arc::new(Feed::relay(url, redis, Arc::clone(&metrics)));
        let header_timeout = config.limits.header_timeout.get();
        Ok(Self { ops: config.listen.ops.clone(), header_timeout, feed, metrics })
    }

    /// Listen and tell until a signal ends it.
    ///
    /// # Errors
    /// When the ops listener can't be bound.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("the runtime can't be started")?;
        let router = ops::relay_router(Arc::clone(&self.feed), self.metrics);
        serve(&runtime, &self.ops, "listen.ops", router, self.header_timeout)?;
        tracing::info!(ops = %self.ops, "relaying changes");
        runtime.block_on(async {
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            // A relay reads nothing of the configuration that could change while it runs; the signal must not end it.
            let mut hangup = signal(SignalKind::hangup())?;
            let ignore_hangups = async {
                while hangup.recv().await.is_some() {
                    tracing::info!("SIGHUP: a relay has nothing to read again");
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = self.feed.run() => {}
                () = ignore_hangups => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopped");
            Ok(())
        })
    }
}

fn metrics(settings: &Settings) -> anyhow::Result<Arc<Metrics>> {
    let config = &settings.config;
    let (features, mode) = (config.gated_features(), config.enforcement.mode);
    let metrics = Metrics::new(&features, mode, &settings.config_hash()).context("metrics")?;
    metrics.describe_thresholds(&config.metered_features(), &config.usage.thresholds);
    Ok(Arc::new(metrics))
}

impl Stores {
    fn of_file(file: Arc<FileSource>) -> Self {
        let source: Arc<dyn Source> = Arc::clone(&file) as _;
        let usage = Arc::new(MemoryUsage::new(Arc::clone(&source)));
        Self { source, ledger: Some(file), usage: Arc::clone(&usage) as _, used: usage }
    }
}

/// The write side alone, for commands, which run on `runtime`.
///
/// # Errors
/// When settings don't suffice or can't be used.
pub(crate) fn manage(settings: &Settings, runtime: Handle) -> anyhow::Result<Manage> {
    if matches!(settings.config.licenses.source, LicenseSource::File(_)) {
        bail!("licenses.source is a file: licences are changed there, with an editor");
    }
    /// No request waits.
    const PATIENCE: Duration = Duration::from_secs(2);
    let metrics = metrics(settings)?;
    let Some(ledger) = ledger(settings, &metrics)? else {
        bail!("licences are changed in the primary: set DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL")
    };
    let announcer = Announcer::apart(redis(settings, PATIENCE)?, metrics);
    Ok(Manage::new(ledger, announcer, settings.config.catalogue(), runtime))
}

/// Where licences in Postgres are changed.
fn ledger(settings: &Settings, metrics: &Metrics) -> anyhow::Result<Option<Arc<dyn Ledger>>> {
    let Some(url) = &settings.secrets.database_url else { return Ok(None) };
    Ok(Some(Arc::new(PostgresLedger::new(url, metrics.transactions.clone())?)))
}

fn stores(settings: &Settings, metrics: &Metrics) -> anyhow::Result<Stores> {
    match &settings.config.licenses.source {
        LicenseSource::Postgres(options) => {
            let url = settings.secrets.read_url().ok_or_else(|| {
                anyhow!(
                    "licenses.source is postgres, but neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL \
                     (nor LICENSE_DB_URL for a read replica) is set"
                )
            })?;
            let options = PoolOptions {
                max_connections: usize::from(options.max_connections),
                idle_timeout: options.idle_timeout.get(),
                timeout: settings.config.licenses.lookup_deadline.get(),
            };
            let primary = settings.secrets.database_url.as_ref().filter(|primary| !primary.is_same(url));
            let source = Arc::new(Postgres::new(url, primary, options, metrics.replica_lagging.clone())?);
            let usage: Arc<dyn UsageStore> = match &settings.secrets.database_url {
                Some(url) => Arc::new(PostgresUsage::new(url, metrics.transactions.clone())?),
                None => {
                    tracing::warn!(
                        "denials are not written down: neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL is set"
                    );
                    Arc::new(Nowhere::new(Arc::clone(&source) as _))
                }
            };
            Ok(Stores { source: Arc::clone(&source) as _, ledger: ledger(settings, metrics)?, usage, used: source })
        }
        LicenseSource::File(file) => {
            let path = file.resolve(&settings.file);
            let plans = settings.config.plans.clone();
            let file = FileSource::open(path, plans).map_err(|message| anyhow!(message))?;
            Ok(Stores::of_file(Arc::new(file)))
        }
    }
}

/// Redis, where its URL is set. Without it every replica asks the source itself.
fn redis(settings: &Settings, timeout: Duration) -> anyhow::Result<Option<Redis>> {
    let licenses = &settings.config.licenses;
    let Some(url) = &settings.secrets.redis_url else { return Ok(None) };
    if matches!(licenses.source, LicenseSource::File(_)) {
        return Ok(None);
    }
    let ca_file = licenses.redis.ca_file.as_ref().map(|path| path.to_string_lossy());
    let redis = Redis::new(url, ca_file.as_deref(), licenses.ttl.get(), timeout)?;
    Ok(Some(redis))
}

fn redis_timeout(config: &Config) -> Duration {
    config.licenses.lookup_deadline.get() / REDIS_SHARE
}

fn freshness(config: &Config) -> Freshness {
    let licenses = &config.licenses;
    Freshness {
        ttl: licenses.ttl.get(),
        revalidate_after: licenses.revalidate_after.get(),
        stale_if_error: licenses.stale_if_error.get(),
        deadline: licenses.lookup_deadline.get(),
        memory_bytes: licenses.memory_bytes.bytes(),
    }
}

fn record_options(config: &Config) -> RecordOptions {
    let usage = &config.usage;
    RecordOptions {
        flush_interval: usage.flush_interval.get(),
        lease_idle: usage.lease_idle.get(),
        pending: usize::try_from(usage.pending_entries).unwrap_or(usize::MAX),
        thresholds: usage.thresholds.as_slice().into(),
        deadline: config.licenses.lookup_deadline.get(),
    }
}

fn server_conf(config: &Config) -> ServerConf {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    ServerConf {
        threads: config.listen.workers.map_or_else(cores, usize::from),
        max_retries: 1 + usize::from(config.upstream.retries),
        upstream_keepalive_pool_size: usize::try_from(config.upstream.pool_size).unwrap_or(usize::MAX),
        // `End` ends the process, at `shutdown.timeout` at the latest; pingora must not do so before, the log unwritten.
        grace_period_seconds: Some(config.shutdown.timeout.get().as_secs() + 5),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Pingora binds in a task of its own and panics there if it can't: better to see it here, and say so.
fn check_bindable(address: &Address, key: &str) -> anyhow::Result<()> {
    match address {
        Address::Tcp(address) => {
            TcpListener::bind(address).with_context(|| format!("{key} {address}"))?;
        }
        Address::Unix(path) => remove_stale_socket(path)?,
    }
    Ok(())
}

/// A socket file that nobody listens on is left from a process that was killed.
fn remove_stale_socket(path: &std::path::Path) -> anyhow::Result<()> {
    if path.exists() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path).with_context(|| format!("unix:{}", path.display()))?;
    }
    Ok(())
}

/// Wait until the proxy's listener accepts connections.
async fn await_listener(address: Address, listening: Arc<AtomicBool>) {
    loop {
        let accepts = match &address {
            Address::Tcp(address) => {
                let mut address = *address;
                if address.ip().is_unspecified() {
                    let loopback = match address {
                        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
                    };
                    address.set_ip(loopback);
                }
                tokio::net::TcpStream::connect(address).await.is_ok()
            }
            Address::Unix(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
        };
        if accepts {
            listening.store(true, Ordering::Release);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// SIGTERM: say "not ready", go on accepting until everyone has heard it, then stop. SIGINT: stop at once.
struct Signals {
    draining: Arc<AtomicBool>,
    drain: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            tracing::error!("signals can't be handled");
            return ShutdownSignal::FastShutdown;
        };
        tokio::select! {
            _ = terminate.recv() => {
                self.draining.store(true, Ordering::Release);
                tracing::info!(drain = ?self.drain, "SIGTERM: not ready any more, still accepting");
                tokio::select! {
                    () = tokio::time::sleep(self.drain) => {}
                    _ = interrupt.recv() => {}
                }
            }
            _ = interrupt.recv() => self.draining.store(true, Ordering::Release),
        }
        ShutdownSignal::GracefulTerminate
    }
}

/// Ends the process once the listener is closed and nothing is in flight. Pingora itself would sleep a fixed time.
struct End {
    load: Arc<Load>,
    metrics: Arc<Metrics>,
    manage: Option<Arc<Manage>>,
    recorder: Arc<Recorder>,
    /// Where what is counted is written.
    runtime: Handle,
    access_log: Option<AccessLog>,
    /// How long in-flight requests may still take, and what they have used be written.
    timeout: Duration,
}

impl End {
    #[expect(clippy::disallowed_methods, reason = "a thread that runs no task, and what was to be flushed has been")]
    fn after(self, mut phases: tokio::sync::broadcast::Receiver<pingora::server::ExecutionPhase>) {
        use pingora::server::ExecutionPhase::{ShutdownGracePeriod, ShutdownRuntimes};
        while !matches!(phases.blocking_recv(), Ok(ShutdownGracePeriod | ShutdownRuntimes) | Err(_)) {}
        let deadline = Instant::now() + self.timeout;
        let busy = || self.manage.as_ref().is_some_and(|manage| manage.is_busy());
        // Requests and tunnels, and the WebSockets whose clients are told.
        let unfinished = || {
            let counts = self.load.counts();
            (counts.requests + counts.tunnels, self.metrics.websockets())
        };
        while (unfinished() != (0, 0) || busy()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (requests, websockets) = unfinished();
        // What is still under way then is charged as served: nobody knows that it was not.
        let until = tokio::time::Instant::from_std(deadline.max(Instant::now() + LAST_FLUSH));
        self.runtime.block_on(self.recorder.finish(until));
        if requests > 0 || websockets > 0 {
            tracing::warn!(requests, websockets, "ending with requests in flight or WebSockets open");
        }
        if let Some(access_log) = &self.access_log {
            access_log.flush();
        }
        tracing::info!("stopped");
        std::process::exit(0);
    }
}
