//! Everything that a request reads of the configuration: taken once a request, swapped as a whole.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use licensing::config::{
    ByteSize, Config, Missing, PlanSettings, TenantSettings, TenantSource, TokenPlace, UpgradeSettings,
    UpstreamAddress, Window,
};
use licensing::cors::Cors;
use licensing::routes::Routes;
use licensing::upgrade_link::UpgradeLinks;
use licensing::{answer::Answers, config};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};

use crate::api::offers::OffersDocument;
use crate::api::paths::ApiPaths;
use crate::gate::{Policy, RulePolicy};
use crate::identity::Tokens;
use crate::intake::{Facts, Intake};
use crate::settings::{Settings, fingerprint};

/// The snapshot in use. A request goes by the one that it took at its beginning, whatever is swapped in meanwhile.
pub(crate) type Snapshots = Arc<ArcSwap<Snapshot>>;

/// A configuration, compiled.
pub(crate) struct Snapshot {
    pub(crate) policy: Policy,
    pub(crate) intake: Intake,
    pub(crate) cors: Cors,
    pub(crate) api: ApiPaths,
    /// What is sold, as frontends are told.
    pub(crate) offers: OffersDocument,
    /// None: nobody upgrades here.
    pub(crate) upgrade: Option<UpgradeSettings>,
    /// Where denials lead to.
    pub(crate) upgrade_links: UpgradeLinks,
    /// The features that rules ask for, and how long their limits last.
    pub(crate) features: Features,
    /// The request headers that may say whose licence is asked for, as `Vary` lists them.
    pub(crate) vary: String,
    pub(crate) upstream: Upstream,
    pub(crate) drain: DrainBounds,
    pub(crate) limits: Limits,
    pub(crate) log_raw_target: bool,
    pub(crate) config_hash: String,
    /// What tells whether the files that the configuration names were the same.
    pub(crate) inputs: u64,
}

/// How much of a refused upload is still read, so that its sender gets to read the answer: a client that is still writing
/// when the connection is reset sees a broken pipe and never the 402.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainBounds {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

impl DrainBounds {
    /// Nothing is read any more.
    pub(crate) const NONE: Self = Self { bytes: 0, time: Duration::ZERO };
}

/// How many there may be at once, how long clients may take, and how much they may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections: u32,
    pub(crate) requests: u32,
    /// Of one tenant, or of none.
    pub(crate) requests_per_tenant: u32,
    pub(crate) headers: u16,
    pub(crate) header_bytes: usize,
    pub(crate) uri_bytes: usize,
    pub(crate) body_bytes: Option<u64>,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) body_timeout: Duration,
    pub(crate) write_timeout: Duration,
}

/// The upstream, as pingora wants to have it described.
pub(crate) struct Upstream {
    /// For requests without hop-by-hop headers: nothing has to be looked for.
    plain: HttpPeer,
    /// For all others: pingora strips what is not to be forwarded. Both share one pool of connections.
    stripping: HttpPeer,
}

impl Snapshot {
    /// Compile what `settings` say.
    ///
    /// # Errors
    /// When rules contradict each other, the upstream's name can't be resolved, or the keys of tokens can't be used.
    pub(crate) fn of(settings: &Settings) -> anyhow::Result<Self> {
        let config = &settings.config;
        let limits = &config.limits;
        // Before the files are read: one that is swapped in between counts as changed when they are looked at again.
        let inputs = fingerprint(settings.files());
        let policy = policy(config)?;
        let features = Features::of(config);
        let links = features.names().map(|feature| (Arc::clone(feature), policy.answers.upgrade_url(feature)));
        Ok(Self {
            offers: OffersDocument::of(config, &policy.plans),
            upgrade_links: UpgradeLinks::new(links),
            features,
            policy,
            intake: Intake::new(config, Tokens::load(config, &settings.file)?),
            cors: config.cors.as_ref().map(Cors::new).unwrap_or_default(),
            upgrade: config.upgrade.clone(),
            api: ApiPaths::new(&config.api.clone().unwrap_or_default(), config.upgrade.is_some()),
            vary: vary(&config.tenant),
            upstream: Upstream::of(&config.upstream)?,
            drain: DrainBounds { bytes: limits.drain_bytes.bytes(), time: limits.drain_timeout.get() },
            limits: Limits::of(config),
            log_raw_target: config.log.raw_target,
            config_hash: settings.config_hash(),
            inputs,
        })
    }
}

/// The features that rules ask for.
#[derive(Debug, Default)]
pub(crate) struct Features {
    /// In alphabetical order, each with the window in which its requests are counted, if they are.
    list: Vec<(Arc<str>, Option<Window>)>,
}

impl Features {
    fn of(config: &Config) -> Self {
        let mut list: Vec<(Arc<str>, Option<Window>)> = Vec::new();
        for rule in &config.routes.rules {
            let Some(feature) = rule.feature() else { continue };
            // All rules that meter a feature agree on the window.
            let window = rule.meter.as_ref().map(|meter| meter.window);
            match list.iter_mut().find(|(other, _)| **other == *feature.as_str()) {
                Some((_, known)) => *known = known.or(window),
                None => list.push((feature.shared(), window)),
            }
        }
        list.sort_unstable();
        Self { list }
    }

    /// Their names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.list.iter().map(|(feature, _)| feature)
    }

    /// The feature of this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<str>> {
        self.names().find(|feature| ***feature == *name)
    }

    /// Those whose requests are counted, and in which window.
    pub(crate) fn metered(&self) -> impl Iterator<Item = (&Arc<str>, Window)> {
        self.list.iter().filter_map(|(feature, window)| Some((feature, (*window)?)))
    }
}

impl Limits {
    /// What `config` says.
    pub(crate) fn of(config: &Config) -> Self {
        let limits = &config.limits;
        // Where there is but one tenant, there are no others to leave room for.
        let alone = config.tenant.sources.iter().any(|source| matches!(source, TenantSource::Fixed(_)));
        let share = match limits.requests_in_flight_per_tenant {
            None if alone => limits.requests_in_flight,
            _ => limits.requests_in_flight_per_tenant(),
        };
        Self {
            connections: limits.connections,
            requests: limits.requests_in_flight,
            requests_per_tenant: share,
            headers: limits.headers,
            header_bytes: limits.header_bytes.in_memory(),
            uri_bytes: limits.uri_bytes.in_memory(),
            body_bytes: limits.body_bytes.map(ByteSize::bytes),
            header_timeout: limits.header_timeout.get(),
            idle_timeout: limits.idle_timeout.get(),
            body_timeout: limits.body_timeout.get(),
            write_timeout: limits.write_timeout.get(),
        }
    }
}

impl Upstream {
    fn of(settings: &config::Upstream) -> anyhow::Result<Self> {
        let mut peer = match &settings.address {
            UpstreamAddress::Unix(path) => HttpPeer::new_uds(&path.to_string_lossy(), false, String::new())
                .map_err(|error| anyhow!("upstream.address: {error}"))?,
            UpstreamAddress::Tcp { .. } => {
                let address = settings.address.to_string();
                let resolved: Option<SocketAddr> =
                    address.to_socket_addrs().with_context(|| format!("upstream.address {address}"))?.next();
                let Some(resolved) = resolved else { bail!("upstream.address {address} has no address") };
                HttpPeer::new(resolved, false, String::new())
            }
        };
        peer.options.connection_timeout = Some(settings.connect_timeout.get());
        peer.options.total_connection_timeout = Some(settings.connect_timeout.get());
        peer.options.read_timeout = Some(settings.response_timeout.get());
        peer.options.write_timeout = Some(settings.response_timeout.get());
        peer.options.idle_timeout = Some(settings.idle_timeout.get());
        let mut plain = peer.clone();
        plain.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        Ok(Self { plain, stripping: peer })
    }

    pub(crate) fn peer_for(&self, facts: &Facts) -> &HttpPeer {
        if facts.hop_by_hop { &self.stripping } else { &self.plain }
    }
}

/// The rules, plans and templates of a configuration, compiled.
///
/// # Errors
/// When the rules contradict each other.
pub(crate) fn policy(config: &Config) -> anyhow::Result<Policy> {
    let rules: Vec<_> = config.routes.rules.iter().map(|rule| rule.rule()).collect();
    let policies = rules.iter().zip(&config.routes.rules).map(|(rule, settings)| RulePolicy {
        label: rule.to_string().into(),
        mode: settings.mode,
        on_failure: settings.on_failure,
        meter: settings.meter.clone(),
    });
    Ok(Policy {
        rules: policies.collect(),
        routes: Routes::try_new(rules, config.routes.options()).map_err(|error| anyhow!("routes: {error}"))?,
        plans: PlanSettings::plans(&config.plans),
        enforcement: config.enforcement.enforcement(),
        answers: Answers::new(config.deny.upgrade_url.clone(), config.deny.status.clone()),
        grace: config.licenses.grace.get(),
        on_failure: config.licenses.on_failure,
        without_tenant: config.tenant.missing == Missing::Allow,
    })
}

/// The headers that the tenant's sources read.
fn vary(tenant: &TenantSettings) -> String {
    let mut headers = Vec::new();
    for source in &tenant.sources {
        match source {
            TenantSource::Header(name) => headers.push(name.as_str()),
            TenantSource::Jwt(jwt) => headers.extend(jwt.from.iter().map(|place| match place {
                TokenPlace::Authorization => "authorization",
                TokenPlace::Cookie(_) => "cookie",
                TokenPlace::WebsocketProtocol => "sec-websocket-protocol",
            })),
            TenantSource::Host(_) | TenantSource::Fixed(_) => {}
        }
    }
    headers.sort_unstable();
    headers.dedup();
    headers.join(", ")
}
