//! Removes what has grown old, in batches that commit each, with a pause after each; fit for running anywhere, at any time,
//! twice.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use licensing::time::Timestamp;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;

use crate::stores::{AgingTable, BulkAudit, NewLicenses, Pruning, StoreError};

/// A batch or a lease whose answer was lost is asked for again within minutes. After this long nobody does any more.
const BATCHES_LAST: Duration = Duration::from_hours(7 * 24);

/// The longest pause. It is as long as the batch before it took, so that half of the server's time is left to others.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Prune {
    /// Now.
    pub now: Timestamp,
    /// How old usage may grow, and limits after their period; none: it stays.
    pub usage_for: Option<Duration>,
    /// How old denials may grow; none: they stay.
    pub denials_for: Option<Duration>,
    /// How many rows a batch has.
    pub batch: u32,
    /// Whether only to count.
    pub dry_run: bool,
    /// What was asked for, as the audit has it.
    pub command: serde_json::Value,
    /// Who does it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Pruned {
    /// How many rows were removed, or would be, by table.
    pub removed: BTreeMap<&'static str, u64>,
    /// Whether it ended before all was looked at.
    pub interrupted: bool,
}

impl Prune {
    /// Do it, until `stop` resolves: then it ends after the batch that is being removed. `progress` is told after each batch
    /// how many rows of how many are gone.
    ///
    /// It leaves one row in `license_audit`, whether it gets to the end or not.
    ///
    /// # Errors
    /// When the database can't be reached, or a batch not be removed. What was removed before is gone.
    pub(crate) async fn run(
        &self,
        url: &SecretString,
        stop: impl Future<Output = ()>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Pruned, StoreError> {
        let pruning = Pruning::open(url).await?;
        let (mut pruned, mut total) = (Pruned::default(), 0);
        for (table, before) in self.due() {
            let rows = pruning.count(table, before).await?;
            total += rows;
            pruned.removed.insert(table.name(), if self.dry_run { rows } else { 0 });
        }
        if self.dry_run {
            return Ok(pruned);
        }
        progress(0, total);
        tokio::pin!(stop);
        let ended = self.remove(&pruning, &mut pruned, stop, &mut |done| progress(done, total)).await;
        // On a connection of its own: the other one may be what has failed.
        let audited = async { NewLicenses::open(url).await?.audit(&self.audit(&pruned, &ended)).await };
        let audited = audited.await;
        ended.and(audited)?;
        Ok(pruned)
    }

    /// The tables that are pruned, and from when on their rows stay.
    fn due(&self) -> impl Iterator<Item = (AgingTable, Timestamp)> {
        AgingTable::ALL.into_iter().filter_map(|table| {
            let lasts = match table {
                AgingTable::FeatureUsage | AgingTable::UsageWindows => self.usage_for?,
                AgingTable::FeatureDenialEvents | AgingTable::ShadowDenialEvents | AgingTable::UpgradeMarks => {
                    self.denials_for?
                }
                AgingTable::UsageBatches => BATCHES_LAST,
            };
            Some((table, self.now.minus(lasts)))
        })
    }

    async fn remove(
        &self,
        pruning: &Pruning,
        pruned: &mut Pruned,
        mut stop: Pin<&mut impl Future<Output = ()>>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        let mut done = 0;
        for (table, before) in self.due() {
            let mut from = None;
            loop {
                let begun = Instant::now();
                let batch = pruning.remove(table, before, from.as_deref(), self.batch).await?;
                *pruned.removed.entry(table.name()).or_default() += batch.rows;
                done += batch.rows;
                progress(done);
                let pause = tokio::time::sleep(begun.elapsed().min(LONGEST_PAUSE));
                tokio::select! {
                    biased;
                    () = stop.as_mut() => {
                        pruned.interrupted = true;
                        return Ok(());
                    }
                    () = pause => {}
                }
                if batch.rows < u64::from(self.batch) {
                    break;
                }
                from = batch.reached;
            }
        }
        Ok(())
    }

    fn audit(&self, pruned: &Pruned, ended: &Result<(), StoreError>) -> BulkAudit<'_> {
        let ended = match ended {
            Err(error) => error.to_string(),
            Ok(()) if pruned.interrupted => "interrupted".to_owned(),
            Ok(()) => "complete".to_owned(),
        };
        BulkAudit {
            action: "prune",
            actor: &self.actor,
            reason: self.reason.as_deref(),
            command: self.command.clone(),
            after: json!({ "removed": pruned.removed, "ended": ended }),
        }
    }
}
