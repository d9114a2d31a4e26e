//! Reads the configuration again on SIGHUP and when its content changes, and swaps it in if it can be used.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, sleep};

use crate::manage::Manage;
use crate::metrics::{Metrics, ReloadOutcome};
use crate::settings::{Settings, environment, fingerprint};
use crate::snapshot::{Snapshot, Snapshots};

/// How often the files are looked at. Their content is compared: a ConfigMap is swapped by a symlink, editors write another
/// file in place of the first, and neither a time nor an inode can be relied on.
const INTERVAL: Duration = Duration::from_secs(1);

/// What could not be used is tried again at each of so many looks.
const RETRY: u32 = 10;
/// For how long a content that has changed must have stayed the same: whoever writes the file in place may be half through,
/// and half a list of rules may well be a valid one.
const SETTLED: Duration = Duration::from_millis(200);

/// Keeps what requests are judged by as the files say.
pub(crate) struct Reload {
    /// What runs.
    running: Settings,
    /// The content that was last looked at, whether or not it could be used.
    seen: u64,
    /// Why it could not be used.
    refused: Option<String>,
    snapshots: Snapshots,
    /// Sells what the plans say.
    manage: Option<Arc<Manage>>,
    metrics: Arc<Metrics>,
}

impl Reload {
    /// For a process that runs with `running`, which `snapshots` holds compiled.
    pub(crate) fn new(
        running: Settings,
        snapshots: Snapshots,
        manage: Option<Arc<Manage>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let seen = look_at(&running);
        Self { running, seen, refused: None, snapshots, manage, metrics }
    }

    /// Watch for as long as the program runs; on a runtime of several threads.
    pub(crate) async fn run(mut self) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                tracing::error!(%error, "SIGHUP can't be handled; the configuration is not read again");
                return;
            }
        };
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for tick in 0_u32.. {
            let asked = tokio::select! {
                hangup = hangups.recv() => hangup.is_some(),
                _ = ticks.tick() => false,
            };
            let settled = asked || self.has_settled().await;
            // Files are read and the upstream's name is resolved, which may take seconds: look-ups share this thread.
            tokio::task::block_in_place(|| self.look(asked, settled, tick % RETRY == 0));
        }
    }

    /// Whether the files are as they were a moment ago.
    async fn has_settled(&self) -> bool {
        let seen = look_at(&self.running);
        if seen == self.seen {
            return true;
        }
        sleep(SETTLED).await;
        look_at(&self.running) == seen
    }

    /// Reload if somebody has asked for it, if the content is another, or, once in a while, if it could not be used: a name
    /// may be resolved by now.
    fn look(&mut self, asked: bool, settled: bool, again: bool) {
        let seen = look_at(&self.running);
        if asked || (settled && seen != self.seen) {
            self.seen = seen;
            self.refused = None;
            self.reload();
        } else if again && self.refused.is_some() {
            self.reload();
        }
    }

    /// Validate whole, then swap. What can't be used changes nothing.
    fn reload(&mut self) {
        let outcome = match self.read() {
            Ok(None) => {
                tracing::info!(config_hash = self.running.config_hash(), "the configuration is as it was");
                ReloadOutcome::Unchanged
            }
            Ok(Some((settings, snapshot, waiting))) => {
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "these take effect when the process is started again");
                }
                self.metrics.restart_required.set(i64::from(!waiting.is_empty()));
                let config = &settings.config;
                self.metrics.describe(&config.gated_features(), config.enforcement.mode, &snapshot.config_hash);
                self.metrics.describe_thresholds(&config.metered_features(), &config.usage.thresholds);
                tracing::info!(
                    config_hash = snapshot.config_hash,
                    mode = config.enforcement.mode.as_str(),
                    "the configuration is changed"
                );
                self.snapshots.store(Arc::new(snapshot));
                if let Some(manage) = &self.manage {
                    manage.sell(&config.plans, config.catalogue());
                }
                self.running = settings;
                ReloadOutcome::Applied
            }
            Err(error) => {
                let error = format!("{error:#}");
                if self.refused.as_ref() == Some(&error) {
                    // Said already.
                    return;
                }
                tracing::error!(error, "the configuration can't be used; what was in use before stays");
                self.refused = Some(error);
                ReloadOutcome::Refused
            }
        };
        if outcome != ReloadOutcome::Refused {
            self.refused = None;
        }
        self.metrics.reloaded(outcome);
    }

    /// The files as they are now, and what of them waits for a restart; none if nothing has changed.
    fn read(&self) -> anyhow::Result<Option<(Settings, Snapshot, Vec<&'static str>)>> {
        let mut settings = Settings::load(&self.running.file, &environment)?;
        for warning in &settings.warnings {
            tracing::warn!(%warning, "configuration");
        }
        let waiting = settings.config.keep_fixed(&self.running.config);
        settings.require_place_for_usage()?;
        let snapshot = Snapshot::of(&settings)?;
        let same = settings.config == self.running.config && snapshot.inputs == self.snapshots.load().inputs;
        Ok((!same || !waiting.is_empty()).then_some((settings, snapshot, waiting)))
    }
}

fn look_at(settings: &Settings) -> u64 {
    fingerprint(settings.files().into_iter().chain([settings.file.clone()]))
}
