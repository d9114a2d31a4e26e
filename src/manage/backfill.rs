//! A licence for every tenant of a table that has none yet, in batches that commit each.

use licensing::tenant::TenantId;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::stores::{BulkAudit, NewLicense, NewLicenses, StoreError, TenantIds, TenantTable};

/// How many tenants are looked at in one transaction.
const BATCH: usize = 5_000;

/// How many ids that are none are remembered to be named.
const EXAMPLES: usize = 5;

/// Of an id that is none, this many characters are named.
const EXAMPLE_CHARS: usize = 40;

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Backfill {
    /// Whose tenants.
    pub source: TenantTable,
    /// What each of them gets.
    pub license: NewLicense,
    /// Whether only to count.
    pub dry_run: bool,
    /// Who does it.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
}

/// How many rows of the source came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Rows that were looked at: the sum of all others.
    pub read: u64,
    /// Tenants that got a licence, or would.
    pub added: u64,
    /// Tenants that had one: nothing about it was touched.
    pub licensed: u64,
    /// Rows that name a tenant once more.
    pub duplicates: u64,
    /// Rows whose id is no UUID.
    pub unusable: u64,
    /// Rows without an id.
    pub null: u64,
}

/// What was done.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// What came of the rows.
    pub counts: Counts,
    /// The first few ids that are none.
    pub examples: Vec<String>,
    /// Whether it ended before all rows had been looked at.
    pub interrupted: bool,
}

impl Backfill {
    /// Do it, until `stop` resolves: then it ends after the batch that is being written. What has been written stays, so it
    /// may be run again at any time. `progress` is told after each batch, with the number of rows that there are.
    ///
    /// It leaves one row in `license_audit`, whether it gets to the end or not.
    ///
    /// # Errors
    /// When the source can't be read or a batch not be written.
    pub(crate) async fn run(
        &self,
        url: &SecretString,
        stop: impl Future<Output = ()>,
        progress: &mut dyn FnMut(&Counts, u64),
    ) -> Result<Report, StoreError> {
        let mut ids = TenantIds::open(url, &self.source).await?;
        let licenses = NewLicenses::open(url).await?;
        let mut pass =
            Pass { backfill: self, licenses, batch: Vec::with_capacity(BATCH), last: None, report: Report::new() };
        let ended = pass.all(&mut ids, stop, progress).await;
        if !self.dry_run {
            // On a connection of its own: the other one may be what has failed.
            let audited = async { NewLicenses::open(url).await?.audit(&self.audit(&pass.report, &ended)).await };
            let audited = audited.await;
            ended.and(audited)?;
        } else {
            ended?;
        }
        Ok(pass.report)
    }

    fn audit(&self, report: &Report, ended: &Result<(), StoreError>) -> BulkAudit<'_> {
        let NewLicense { plan, valid_until, auto_renew, .. } = &self.license;
        let ended = match ended {
            Err(error) => error.to_string(),
            Ok(()) if report.interrupted => "interrupted".to_owned(),
            Ok(()) => "complete".to_owned(),
        };
        BulkAudit {
            action: "backfill",
            actor: &self.actor,
            reason: self.reason.as_deref(),
            command: json!({
                "from": self.source.to_string(), "plan": plan, "valid_until": valid_until, "auto_renew": auto_renew,
            }),
            after: json!({ "counts": report.counts, "ended": ended }),
        }
    }
}

impl Report {
    fn new() -> Self {
        Self { counts: Counts::default(), examples: Vec::new(), interrupted: false }
    }
}

/// A backfill on its way through the source.
struct Pass<'a> {
    backfill: &'a Backfill,
    licenses: NewLicenses,
    batch: Vec<Uuid>,
    /// The tenant before: rows come in order, so a duplicate follows at once.
    last: Option<Uuid>,
    report: Report,
}

impl Pass<'_> {
    async fn all(
        &mut self,
        ids: &mut TenantIds,
        stop: impl Future<Output = ()>,
        progress: &mut dyn FnMut(&Counts, u64),
    ) -> Result<(), StoreError> {
        tokio::pin!(stop);
        let total = ids.total();
        progress(&self.report.counts, total);
        loop {
            let id = tokio::select! {
                biased;
                () = &mut stop => {
                    self.report.interrupted = true;
                    return Ok(());
                }
                id = ids.next() => id?,
            };
            match id {
                Some(id) => self.take(id),
                None if self.batch.is_empty() => break,
                None => {
                    self.write().await?;
                    break;
                }
            }
            if self.batch.len() == BATCH {
                self.write().await?;
                progress(&self.report.counts, total);
            }
        }
        progress(&self.report.counts, total);
        Ok(())
    }

    fn take(&mut self, id: Option<String>) {
        let counts = &mut self.report.counts;
        let Some(id) = id else {
            counts.read += 1;
            counts.null += 1;
            return;
        };
        match id.parse::<TenantId>() {
            Ok(tenant) if self.last == Some(*tenant.as_uuid()) => {
                counts.read += 1;
                counts.duplicates += 1;
            }
            Ok(tenant) => {
                self.last = Some(*tenant.as_uuid());
                self.batch.push(*tenant.as_uuid());
            }
            Err(_) => {
                counts.read += 1;
                counts.unusable += 1;
                if self.report.examples.len() < EXAMPLES {
                    self.report.examples.push(id.chars().take(EXAMPLE_CHARS).collect());
                }
            }
        }
    }

    /// Write what has been gathered.
    async fn write(&mut self) -> Result<(), StoreError> {
        let tenants = self.batch.len() as u64;
        let added = match self.backfill.dry_run {
            false => self.licenses.add(&self.batch, &self.backfill.license).await?,
            true => tenants.saturating_sub(self.licenses.count_licensed(&self.batch).await?),
        };
        let counts = &mut self.report.counts;
        counts.read += tenants;
        counts.added += added;
        counts.licensed += tenants.saturating_sub(added);
        self.batch.clear();
        Ok(())
    }
}
