//! Extends licences that renew themselves, in batches that commit each, and clears away what has ended; fit for running
//! anywhere, at any time, twice.

use std::collections::BTreeMap;
use std::pin::Pin;

use licensing::amend::Command;
use licensing::renewal::{Due, Period};
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use super::{Author, Manage, ManageError};
use crate::stores::{DueLicense, RenewalAuthor, Renewals, StoreError};

/// What is to be done.
#[derive(Clone, Debug)]
pub(crate) struct Renew {
    /// Now.
    pub now: Timestamp,
    /// Which licences are due.
    pub due: Due,
    /// By how much each is extended at a time.
    pub by: Period,
    /// Whether those past their grace are revived.
    pub lapsed: bool,
    /// Whether only to count.
    pub dry_run: bool,
    /// Who does it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Renewal {
    /// Licences that were extended, or would be.
    pub renewed: u64,
    /// Licences past their grace that were left as they are.
    pub lapsed: u64,
    /// Licences that are due still: somebody else was changing them.
    pub left: u64,
    /// Tenants that had something that has ended, which is gone now, or would be.
    pub tidied: u64,
    /// The same where what they have can't be read, so that it stays.
    pub unreadable: u64,
    /// Whether it ended before all were looked at.
    pub interrupted: bool,
}

impl Renew {
    /// Do it, until `stop` resolves: then it ends after what is being written.
    ///
    /// # Errors
    /// When the database can't be reached, or something not be written. What was written before stays.
    pub(crate) async fn run(
        &self,
        url: &SecretString,
        manage: &Manage,
        stop: impl Future<Output = ()>,
    ) -> Result<Renewal, ManageError> {
        let renewals = Renewals::open(url).await?;
        let mut renewal = Renewal::default();
        tokio::pin!(stop);
        if self.dry_run {
            let counts = renewals.count(self.due).await?;
            let revived = if self.lapsed { counts.lapsed } else { 0 };
            renewal.renewed = counts.due + revived;
            renewal.lapsed = counts.lapsed - revived;
        } else {
            self.extend(&renewals, &mut renewal, stop.as_mut()).await?;
        }
        self.tidy(&renewals, manage, &mut renewal, stop).await?;
        Ok(renewal)
    }

    async fn extend(
        &self,
        renewals: &Renewals,
        renewal: &mut Renewal,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), StoreError> {
        let (due, by) = (self.which(), self.by.to_string());
        let command = json!({ "action": "renew", "by": by }).to_string();
        let author = RenewalAuthor { actor: &self.actor, reason: &self.reason, command: &command };
        let renew = |end| self.by.renew(end, self.due.until);
        let mut after = Uuid::nil();
        loop {
            let (found, renewed) = renewals.renew_batch(after, due, renew, author).await?;
            renewal.renewed += renewed;
            let Some(DueLicense { tenant, .. }) = found.last() else { break };
            after = *tenant.as_uuid();
            if is_over(stop.as_mut()).await {
                renewal.interrupted = true;
                break;
            }
        }
        let left = renewals.count(self.due).await?;
        renewal.lapsed = left.lapsed;
        renewal.left = left.due;
        Ok(())
    }

    /// Clear away add-ons and features that have ended. They were not in force any more: this is for the tables' readers.
    async fn tidy(
        &self,
        renewals: &Renewals,
        manage: &Manage,
        renewal: &mut Renewal,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), ManageError> {
        let mut after = Uuid::nil();
        loop {
            let page = renewals.with_ends(after, self.now).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = *last.tenant.as_uuid();
            for found in &page {
                if renewal.interrupted || is_over(stop.as_mut()).await {
                    renewal.interrupted = true;
                    return Ok(());
                }
                if found.has_ended_addon || found.features_until.as_deref().is_some_and(|ends| self.any_has_ended(ends))
                {
                    self.tidy_one(found.tenant, manage, renewal).await?;
                }
            }
        }
    }

    async fn tidy_one(&self, tenant: TenantId, manage: &Manage, renewal: &mut Renewal) -> Result<(), ManageError> {
        if self.dry_run {
            renewal.tidied += 1;
            return Ok(());
        }
        let author = Author { actor: self.actor.clone(), reason: Some("it has ended".to_owned()), ..Author::default() };
        match manage.amend(tenant, &Command::Tidy, &author).await {
            Ok(amended) => renewal.tidied += u64::from(amended.before != amended.after),
            // A fault of this one entry, which the gate reports as well, must not stop the others.
            Err(ManageError::Store(error @ StoreError::Unreadable { .. })) => {
                tracing::error!(%error, "what has ended stays");
                renewal.unreadable += 1;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether one of these ends has passed, or they can't be read, which is for whoever changes the licence to find out.
    fn any_has_ended(&self, features_until: &str) -> bool {
        let ends: Result<BTreeMap<Box<str>, Timestamp>, _> = serde_json::from_str(features_until);
        ends.map_or(true, |ends| ends.values().any(|end| *end <= self.now))
    }

    /// What is looked for.
    fn which(&self) -> Due {
        /// No licence ended before that: 0001-01-01. What did is a mistake that renewing would not mend.
        const FIRST: Timestamp = Timestamp::from_micros(-62_135_596_800_000_000);
        let lapsed = if self.lapsed { FIRST } else { self.due.lapsed };
        Due { lapsed, ..self.due }
    }
}

/// Whether it has resolved by now.
async fn is_over(future: impl Future<Output = ()>) -> bool {
    tokio::select! {
        biased;
        () = future => true,
        () = std::future::ready(()) => false,
    }
}
