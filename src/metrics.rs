//! All metrics, in one struct: their names, help texts and labels are here and nowhere else.

use std::sync::Arc;
use std::time::Duration;

use licensing::enforcement::Mode;
use licensing::reason::Reason;
use licensing::time::Timestamp;
use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::api::websocket::Cause;
use crate::licenses::{Channel, Layer, Licenses};
use crate::load::Load;
use crate::record::{DropCause, FlushOutcome, LeaseOutcome};
use crate::stores::{BreakerState, StoreName, TransactionMetrics, TransactionName, TransactionOutcome};

/// What became of a request, as the label `outcome` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// Forwarded, and no licence was needed.
    Open,
    /// Forwarded: licensed.
    Allowed,
    /// Forwarded, though it would be denied once its tenant is enforced.
    Shadowed,
    /// Forwarded without a licence, since no store could tell.
    FailedOpen,
    /// Answered here.
    Denied,
}

impl Outcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 5] = [Self::Open, Self::Allowed, Self::Shadowed, Self::FailedOpen, Self::Denied];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Allowed => "allowed",
            Self::Shadowed => "shadowed",
            Self::FailedOpen => "failed_open",
            Self::Denied => "denied",
        }
    }
}

/// What was heard of changes, as the label `kind` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ChangeKind {
    /// One licence.
    License,
    /// One licence that has to be asked for again, changed or not.
    Refresh,
    /// Many at once: each is asked for again.
    Everything,
    /// Tenants were added.
    Added,
    /// A key in Redis.
    Key,
    /// All of Redis.
    Flush,
}

impl ChangeKind {
    /// Every kind.
    pub(crate) const ALL: [Self; 6] =
        [Self::License, Self::Refresh, Self::Everything, Self::Added, Self::Key, Self::Flush];

    /// As metrics and log write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::License => "license",
            Self::Refresh => "refresh",
            Self::Everything => "everything",
            Self::Added => "added",
            Self::Key => "redis_key",
            Self::Flush => "redis_flush",
        }
    }
}

/// What became of reading the configuration again, as the label `outcome` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ReloadOutcome {
    /// It has changed and is in use.
    Applied,
    /// It is as it was.
    Unchanged,
    /// It can't be used; what was in use stays.
    Refused,
}

impl ReloadOutcome {
    /// Every outcome.
    pub(crate) const ALL: [Self; 3] = [Self::Applied, Self::Unchanged, Self::Refused];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Refused => "refused",
        }
    }
}

/// Which limit a client has met, as the label `limit` says: by the key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Limit {
    /// Connections: 503.
    Connections,
    /// Requests at once: 503.
    Requests,
    /// Requests of one tenant at once: 503.
    TenantRequests,
    /// The time for a head: 408.
    HeaderTimeout,
    /// The number or the size of headers: 431.
    Headers,
    /// The length of the target: 414.
    UriBytes,
    /// The size of the body: 413.
    BodyBytes,
    /// The pauses within a body: 408.
    BodyTimeout,
    /// The time in which a client takes nothing: closed.
    WriteTimeout,
    /// Streams cancelled as soon as they are open, over HTTP/2: closed.
    Resets,
}

impl Limit {
    /// Every limit.
    pub(crate) const ALL: [Self; 10] = [
        Self::Connections,
        Self::Requests,
        Self::TenantRequests,
        Self::HeaderTimeout,
        Self::Headers,
        Self::UriBytes,
        Self::BodyBytes,
        Self::BodyTimeout,
        Self::WriteTimeout,
        Self::Resets,
    ];

    /// As metrics write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests_in_flight",
            Self::TenantRequests => "requests_in_flight_per_tenant",
            Self::HeaderTimeout => "header_timeout",
            Self::Headers => "headers",
            Self::UriBytes => "uri_bytes",
            Self::BodyBytes => "body_bytes",
            Self::BodyTimeout => "body_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Resets => "resets",
        }
    }
}

/// One counter for each member of a closed set, found without a look-up.
pub(crate) struct CounterSet<K: 'static>(Vec<(K, IntCounter)>);

impl<K: Copy + PartialEq> CounterSet<K> {
    fn new(vec: &IntCounterVec, keys: &[K], label: impl Fn(K) -> &'static str) -> Self {
        Self(keys.iter().map(|key| (*key, vec.with_label_values(&[label(*key)]))).collect())
    }

    /// The counter of `key`.
    pub(crate) fn of(&self, key: K) -> &IntCounter {
        // The sets are built from `ALL`, so the first entry stands in for nothing that can happen.
        self.0.iter().find(|(k, _)| *k == key).map_or(&self.0[0].1, |(_, counter)| counter)
    }
}

/// Every metric. All are present at zero from the start; none has a tenant in a label.
pub(crate) struct Metrics {
    registry: Registry,
    denials: IntCounterVec,
    shadow_denials: IntCounterVec,
    /// Feature look-ups that asked no Postgres, negative ones included.
    pub cache_hits: IntCounter,
    /// Feature look-ups.
    pub cache_requests: IntCounter,
    /// Look-ups by the layer that answered.
    pub look_ups: CounterSet<Layer>,
    /// Requests by outcome.
    pub decisions: CounterSet<Outcome>,
    /// Whole requests, in seconds.
    pub api_duration: Histogram,
    /// Time spent deciding, in seconds: the gate's own share.
    pub gate_duration: Histogram,
    /// Queries to the source of licences, each for one tenant or many.
    pub source_queries: IntCounter,
    /// Look-ups of unknown tenants that were not made, since too many waited.
    pub lookups_shed: IntCounter,
    /// Answers of a read replica that had not replayed what the primary is known to have.
    pub replica_lagging: IntCounter,
    /// Failures by store.
    pub store_errors: CounterSet<StoreName>,
    /// Requests served on a last known licence while no store answered.
    pub stale_served: IntCounter,
    /// Requests let through on a licence in its grace period.
    pub grace_served: IntCounter,
    /// Clients that met a limit, by the limit.
    pub limited: CounterSet<Limit>,
    connections: IntGauge,
    in_flight: IntGauge,
    tunnels: IntGauge,
    websockets: IntGauge,
    websockets_closed: CounterSet<Cause>,
    /// Access-log lines that were dropped because they could not be written fast enough.
    pub access_log_dropped: IntCounter,
    /// Requests whose upstream could not be reached, broke off or was too slow.
    pub upstream_errors: IntCounter,
    /// Changes heard of, by kind.
    pub changes: CounterSet<ChangeKind>,
    /// Whether the configuration holds what takes effect only when the process is started again.
    pub restart_required: IntGauge,
    reloads: CounterSet<ReloadOutcome>,
    reload_refused: IntGauge,
    info: IntGaugeVec,
    /// Transactions in Postgres.
    pub transactions: TransactionMetrics,
    /// Changes made here that Redis could not be told of.
    pub untold: IntCounter,
    /// Counts that wait to be written, lines.
    pub usage_pending: IntGauge,
    /// Uses of features that are not written, and won't be.
    pub usage_dropped: CounterSet<DropCause>,
    /// Uses of features that are written.
    pub usage_recorded: IntCounter,
    /// Batches of usage and denials that were posted.
    pub usage_flushes: CounterSet<FlushOutcome>,
    /// How long posting one took, in seconds.
    pub usage_flush_duration: Histogram,
    /// Asks for leases of limits.
    pub quota_leases: CounterSet<LeaseOutcome>,
    threshold_crossings: IntCounterVec,
    /// Limits that can't be read, and count as none.
    pub limits_unreadable: IntCounter,
    beyond_limit: IntCounterVec,
    /// Denials that are not written, and won't be.
    pub denial_events_dropped: IntCounter,
    /// Denials that wait to be written, lines.
    pub denial_events_pending: IntGauge,
    breaker_state: IntGaugeVec,
    live: IntGaugeVec,
    off: IntGauge,
    expiring: IntGaugeVec,
    overdue: IntGauge,
    memory_entries: IntGauge,
    memory_bytes: IntGauge,
}

impl Metrics {
    /// Register everything; `features` are those that rules name, so that each is present at zero.
    ///
    /// # Errors
    /// When two metrics have one name, which is a mistake in this file.
    pub(crate) fn new(features: &[&str], mode: Mode, config_hash: &str) -> prometheus::Result<Self> {
        let registry = Registry::new_custom(None, None)?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let r = &registry;

        let denials = counters(
            r,
            "dotmac_feature_denials_total",
            "Requests denied, by feature and reason.",
            &["feature", "reason"],
        )?;
        let shadow_denials = counters(
            r,
            "dotmac_shadow_denials_total",
            "Requests that would have been denied if their tenant were enforced.",
            &["feature", "reason"],
        )?;
        let look_ups =
            counters(r, "dotmac_license_lookups_total", "Feature look-ups, by the layer that answered.", &["layer"])?;
        let decisions = counters(r, "dotmac_decisions_total", "Requests, by what became of them.", &["outcome"])?;
        let store_errors = counters(r, "dotmac_store_errors_total", "Failed operations, by store.", &["store"])?;
        let breaker_state = gauges(
            r,
            "dotmac_store_breaker_state",
            "Circuit breaker by store (usage: the primary, as what is counted is written there): 0 closed, 1 suspect (a probe is \
             under way), 2 open (an outage, confirmed by a probe).",
            &["store"],
        )?;
        let websockets_closed =
            counters(r, "dotmac_websocket_closed_total", "WebSockets that were closed, by cause.", &["cause"])?;
        let changes = counters(r, "dotmac_license_changes_total", "Changes that were heard of, by kind.", &["kind"])?;
        let transactions = TransactionMetrics {
            total: counters(
                r,
                "dotmac_transactions_total",
                "Transactions in Postgres by name and outcome; those that were tried again count as retried as well.",
                &["name", "outcome"],
            )?,
            duration: histograms(
                r,
                "dotmac_transaction_duration_seconds",
                "Transactions in Postgres, from asking for a connection to the end, retries included.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0],
                &["name"],
            )?,
        };
        for name in TransactionName::ALL {
            transactions.duration.with_label_values(&[name.as_str()]);
            for outcome in TransactionOutcome::ALL {
                transactions.total.with_label_values(&[name.as_str(), outcome.as_str()]);
            }
        }
        let limited = counters(
            r,
            "dotmac_limited_total",
            "Requests and connections that met a limit of the configuration, by the limit.",
            &["limit"],
        )?;
        let usage_dropped = counters(
            r,
            "dotmac_usage_dropped_total",
            "Uses of features that were counted and are not written: too much was waiting, the tenant has no licence any more, or the store refused it.",
            &["cause"],
        )?;
        let usage_flushes = counters(
            r,
            "dotmac_usage_flushes_total",
            "Batches of usage and denials that were posted, by outcome; those that failed were posted again.",
            &["outcome"],
        )?;
        let quota_leases = counters(
            r,
            "dotmac_quota_leases_total",
            "Leases of limits that were asked for, by outcome.",
            &["outcome"],
        )?;
        let live = gauges(
            r,
            "dotmac_change_feed_live",
            "Whether changes are heard of: by the feed from Postgres, and from Redis. 1: yes, as of the last three seconds. \
             A channel that is not in use is absent.",
            &["channel"],
        )?;
        let beyond_limit = counters(
            r,
            "dotmac_usage_beyond_limit_total",
            "Requests that were forwarded although a soft limit is used up, by feature.",
            &["feature"],
        )?;
        let info = gauges(
            r,
            "dotmac_build_info",
            "Always 1; its labels say what is running.",
            &["version", "commit", "mode", "config_hash"],
        )?;
        let reloads = counters(
            r,
            "dotmac_config_reloads_total",
            "How often the configuration was read again, by what became of it.",
            &["outcome"],
        )?;

        let metrics = Self {
            cache_hits: counter(
                r,
                "dotmac_license_cache_hits",
                "Feature look-ups that asked no Postgres, negative ones included.",
            )?,
            cache_requests: counter(r, "dotmac_license_cache_requests", "Feature look-ups.")?,
            look_ups: CounterSet::new(&look_ups, &Layer::ALL, Layer::as_str),
            decisions: CounterSet::new(&decisions, &Outcome::ALL, Outcome::as_str),
            api_duration: histogram(
                r,
                "dotmac_api_duration_seconds",
                "Whole requests, from their header read to their last byte sent.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0],
            )?,
            gate_duration: histogram(
                r,
                "dotmac_gate_duration_seconds",
                "Deciding, look-ups included: the proxy's own share of a request.",
                &[5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.2, 0.5],
            )?,
            source_queries: counter(
                r,
                "dotmac_license_source_queries_total",
                "Queries to the source of licences, each for one tenant or many.",
            )?,
            lookups_shed: counter(
                r,
                "dotmac_license_lookups_shed_total",
                "Look-ups of unknown tenants that were not made, since too many waited.",
            )?,
            replica_lagging: counter(
                r,
                "dotmac_license_replica_lagging_total",
                "Answers of a read replica that had not replayed what the primary is known to have.",
            )?,
            store_errors: CounterSet::new(&store_errors, &StoreName::ALL, StoreName::as_str),
            stale_served: counter(
                r,
                "dotmac_license_stale_served_total",
                "Requests served on a last known licence while no store answered.",
            )?,
            grace_served: counter(
                r,
                "dotmac_license_grace_served_total",
                "Requests served on a licence in its grace period.",
            )?,
            untold: counter(
                r,
                "dotmac_license_changes_untold_total",
                "Changes made by this process that Redis could not be told of.",
            )?,
            transactions,
            usage_pending: gauge(
                r,
                "dotmac_usage_pending",
                "Counts of usage that wait to be written, by tenant, feature and day.",
            )?,
            usage_dropped: CounterSet::new(&usage_dropped, &DropCause::ALL, DropCause::as_str),
            usage_recorded: counter(r, "dotmac_usage_recorded_total", "Uses of features that are written.")?,
            usage_flushes: CounterSet::new(&usage_flushes, &FlushOutcome::ALL, FlushOutcome::as_str),
            usage_flush_duration: histogram(
                r,
                "dotmac_usage_flush_duration_seconds",
                "Posting one batch of usage and denials.",
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0],
            )?,
            quota_leases: CounterSet::new(&quota_leases, &LeaseOutcome::ALL, LeaseOutcome::as_str),
            threshold_crossings: counters(
                r,
                "dotmac_quota_threshold_crossings_total",
                "Limits of which a share was used up, by feature and by that share in percent.",
                &["feature", "threshold"],
            )?,
            limits_unreadable: counter(
                r,
                "dotmac_usage_limits_unreadable_total",
                "Metered requests whose limit in usage_limits is none that can be read, so that they count as unlimited.",
            )?,
            beyond_limit,
            denial_events_dropped: counter(
                r,
                "dotmac_denial_events_dropped_total",
                "Denials that are not written, since too many were waiting or the store refused them.",
            )?,
            denial_events_pending: gauge(
                r,
                "dotmac_denial_events_pending",
                "Denials that wait to be written, by tenant, feature, reason and minute.",
            )?,
            websockets: gauge(r, "dotmac_websocket_connections", "WebSockets of the licence API that are open.")?,
            websockets_closed: CounterSet::new(&websockets_closed, &Cause::ALL, Cause::as_str),
            limited: CounterSet::new(&limited, &Limit::ALL, Limit::as_str),
            connections: gauge(
                r,
                "dotmac_connections",
                "Connections to the proxy that are open, WebSockets included.",
            )?,
            in_flight: gauge(r, "dotmac_requests_in_flight", "Requests that are being served.")?,
            tunnels: gauge(r, "dotmac_tunnels", "WebSockets and other tunnels to the upstream that are open.")?,
            access_log_dropped: counter(
                r,
                "dotmac_access_log_dropped_total",
                "Access-log lines that could not be written fast enough.",
            )?,
            upstream_errors: counter(
                r,
                "dotmac_upstream_errors_total",
                "Requests whose upstream could not be reached, broke off or was too slow.",
            )?,
            memory_entries: gauge(r, "dotmac_license_memory_entries", "Licences in memory.")?,
            memory_bytes: gauge(r, "dotmac_license_memory_bytes", "What the licences in memory take, roughly.")?,
            expiring: gauges(
                r,
                "dotmac_licenses_expiring",
                "Licences in this process's memory that end within a time, by valid_until, whether or not they renew themselves.",
                &["within"],
            )?,
            overdue: gauge(
                r,
                "dotmac_licenses_overdue",
                "Licences in this process's memory that renew themselves, have ended without having been renewed, and are served in their grace.",
            )?,
            off: gauge(
                r,
                "dotmac_licensing_off",
                "1 while nothing is enforced, since the tables were dropped or hold nothing since they were created again.",
            )?,
            changes: CounterSet::new(&changes, &ChangeKind::ALL, ChangeKind::as_str),
            restart_required: gauge(
                r,
                "dotmac_config_restart_required",
                "1 if the configuration has changed in what takes effect only when the process is started again.",
            )?,
            reloads: CounterSet::new(&reloads, &ReloadOutcome::ALL, ReloadOutcome::as_str),
            reload_refused: gauge(
                r,
                "dotmac_config_refused",
                "1 while the configuration as it was last read can't be used, so that an earlier one is.",
            )?,
            info,
            live,
            breaker_state,
            denials,
            shadow_denials,
            registry,
        };
        metrics.describe(features, mode, config_hash);
        Ok(metrics)
    }

    /// Another configuration is in use. What counts its features is there at zero.
    pub(crate) fn describe(&self, features: &[&str], mode: Mode, config_hash: &str) {
        for feature in features.iter().copied().chain([""]) {
            for reason in Reason::ALL {
                self.denials.with_label_values(&[feature, reason.name()]);
                self.shadow_denials.with_label_values(&[feature, reason.name()]);
            }
            if !feature.is_empty() {
                self.beyond_limit.with_label_values(&[feature]);
            }
        }
        self.info.reset();
        self.info.with_label_values(&[crate::VERSION, crate::COMMIT, mode.as_str(), config_hash]).set(1);
    }

    /// Thresholds in percent, each there at zero for every one of `features`.
    pub(crate) fn describe_thresholds(&self, features: &[&str], thresholds: &[u8]) {
        for feature in features {
            for percent in thresholds {
                self.threshold_crossings.with_label_values(&[feature, itoa::Buffer::new().format(*percent)]);
            }
        }
    }

    /// A limit of `feature` has passed this threshold.
    pub(crate) fn threshold_crossed(&self, feature: &str, percent: u8) {
        self.threshold_crossings.with_label_values(&[feature, itoa::Buffer::new().format(percent)]).inc();
    }

    /// How often that has happened.
    #[cfg(test)]
    pub(crate) fn crossed_so_far(&self, feature: &str, percent: u8) -> u64 {
        self.threshold_crossings.with_label_values(&[feature, itoa::Buffer::new().format(percent)]).get()
    }

    /// The configuration was read again.
    pub(crate) fn reloaded(&self, outcome: ReloadOutcome) {
        self.reloads.of(outcome).inc();
        self.reload_refused.set(i64::from(outcome == ReloadOutcome::Refused));
    }

    /// Count a denial that was answered. `feature` is empty where none is concerned.
    pub(crate) fn denied(&self, feature: &str, reason: Reason) {
        self.denials.with_label_values(&[feature, reason.name()]).inc();
    }

    /// Count a denial that was not acted on.
    pub(crate) fn shadowed(&self, feature: &str, reason: Reason) {
        self.shadow_denials.with_label_values(&[feature, reason.name()]).inc();
    }

    /// Count a request that is forwarded although a soft limit of `feature` is used up.
    pub(crate) fn beyond_limit(&self, feature: &str) {
        self.beyond_limit.with_label_values(&[feature]).inc();
    }

    /// How many WebSockets of the licence API are open.
    pub(crate) fn websockets(&self) -> i64 {
        self.websockets.get()
    }

    /// Whether changes are heard of by this channel.
    pub(crate) fn set_live(&self, channel: Channel, live: bool) {
        self.live.with_label_values(&[channel.as_str()]).set(live.into());
    }

    /// Take down what is only known when asked, at `now`, where licences are served for `grace` past their end.
    pub(crate) fn observe(&self, licenses: &Licenses, load: &Load, grace: Duration, now: Timestamp) {
        let counts = load.counts();
        for (gauge, count) in [
            (&self.connections, counts.connections),
            (&self.in_flight, counts.requests),
            (&self.tunnels, counts.tunnels),
        ] {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        const DAY: Duration = Duration::from_hours(24);
        const WITHIN: [(&str, Duration); 3] =
            [("24h", DAY), ("7d", DAY.saturating_mul(7)), ("30d", DAY.saturating_mul(30))];
        let ending = licenses.ending_within(WITHIN.map(|(_, span)| span), now);
        for ((within, _), count) in WITHIN.iter().zip(ending) {
            self.expiring.with_label_values(&[within]).set(count);
        }
        for (store, state) in licenses.breakers() {
            self.set_breaker(store.as_str(), state);
        }
        self.overdue.set(licenses.overdue(grace, now));
        // One that is not in use is not down.
        for channel in Channel::ALL.into_iter().filter(|channel| licenses.has(*channel)) {
            self.set_live(channel, licenses.is_live(channel));
        }
        self.off.set(licenses.is_off().into());
        let (entries, bytes) = licenses.memory_use();
        self.memory_entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
        self.memory_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Take down how a breaker stands: that of a store of licences, or `usage`.
    pub(crate) fn set_breaker(&self, store: &str, state: BreakerState) {
        let value = match state {
            BreakerState::Closed => 0,
            BreakerState::Suspect => 1,
            BreakerState::Open => 2,
        };
        self.breaker_state.with_label_values(&[store]).set(value);
    }

    /// Everything, in Prometheus's text format.
    ///
    /// # Errors
    /// When a metric can't be written as text.
    pub(crate) fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Counts a WebSocket for as long as it is open, however it ends.
pub(crate) struct OpenSocket(Arc<Metrics>);

impl OpenSocket {
    /// It is open from now on.
    pub(crate) fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.websockets.inc();
        Self(Arc::clone(metrics))
    }

    /// It has ended.
    pub(crate) fn closed(self, cause: Cause) {
        self.0.websockets_closed.of(cause).inc();
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.websockets.dec();
    }
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
    register(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
}

fn histograms(
    registry: &Registry,
    name: &str,
    help: &str,
    buckets: &[f64],
    labels: &[&str],
) -> prometheus::Result<HistogramVec> {
    register(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
}
