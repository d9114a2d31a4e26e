//! The write side of a source of licences: each change with its audit, or neither.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use licensing::amend::{Command, Holding, Refused, amend};
use licensing::config::PlanSettings;
use licensing::plans::Plans;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Answer, Position, StoreError};

/// Who asks for a change, and why, as the audit keeps it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Author {
    /// Who: a person, or what acts for one.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// The request that it came with.
    pub request_id: Option<String>,
    /// The same key with the same request does nothing a second time.
    pub idempotency_key: Option<String>,
}

/// A change to be made, or to be asked for.
#[derive(Clone, Copy)]
pub(crate) struct Order<'a> {
    /// Whose licence.
    pub tenant: TenantId,
    /// What.
    pub command: &'a Command,
    /// By whom.
    pub author: &'a Author,
    /// What is sold.
    pub plans: &'a Plans,
    /// Now.
    pub now: Timestamp,
    /// Whether it is made; else it is only written down for somebody who makes it, and announced.
    pub apply: bool,
}

/// What became of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Applied,
    /// It was written down.
    Requested,
    /// It was refused.
    Refused(Refused),
}

/// An order as it stands in the audit.
#[derive(Clone, Debug)]
pub(crate) struct Entered {
    /// What the tenant had.
    pub before: Holding,
    /// What it has now.
    pub after: Holding,
    /// What became of the order.
    pub outcome: Outcome,
    /// Whether this was done when the key was used first.
    pub repeated: bool,
    /// Where the primary's log was afterwards: what a replica must have replayed.
    pub position: Option<Position>,
}

/// Which licences.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    /// Those of this plan.
    pub plan: Option<String>,
    /// Those whose row lists this feature; it may have ended.
    pub feature: Option<String>,
    /// Those that end at this time or later.
    pub ends_from: Option<Timestamp>,
    /// Those that end before this time.
    pub ends_before: Option<Timestamp>,
}

/// Some licences of a list.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Each with its tenant; what can't be read says why.
    pub licenses: Vec<(TenantId, Answer)>,
    /// Whether no other follows.
    pub is_last: bool,
}

/// An entry of the audit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// What.
    pub action: String,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: Option<String>,
    /// What became of it.
    pub outcome: String,
    /// What in detail.
    pub command: Value,
    /// What the tenant had; null: nothing.
    pub before: Value,
    /// What it had afterwards; null: as before.
    pub after: Value,
    /// The request that it came with.
    pub request_id: Option<String>,
    /// The key by which it was told from others.
    pub idempotency_key: Option<String>,
}

/// Why an order was not entered.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    /// Its idempotency key has been used for another.
    #[error("the idempotency key has been used for another request")]
    KeyReused,
    /// It can't be told whether it was done. Asking again with the same idempotency key finds out.
    #[error("the connection was lost while the change was committed, so it may have been made or not: {0}")]
    Unknown(String),
    /// Nothing was done.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where licences are changed.
#[async_trait]
pub(crate) trait Ledger: Send + Sync {
    /// Make the change and write down who asked for it and why; or write down that it was refused. Must not be cancelled.
    ///
    /// # Errors
    /// When nothing was written, or nobody can tell.
    async fn enter(&self, order: &Order<'_>) -> Result<Entered, LedgerError>;

    /// What a tenant has: from the primary, past every cache.
    ///
    /// # Errors
    /// When it can't be asked, or holds what can't be read.
    async fn holding(&self, tenant: TenantId) -> Result<Holding, StoreError>;

    /// The licences that match, in the order of their tenants, beginning after one.
    ///
    /// # Errors
    /// When the source can't be asked.
    async fn page(&self, filter: &Filter, after: Option<TenantId>) -> Result<Page, StoreError>;

    /// What was asked for of a tenant's licence: the latest `limit` entries, the latest first.
    ///
    /// # Errors
    /// When the source can't be asked.
    async fn audit(&self, tenant: TenantId, limit: u32) -> Result<Vec<AuditEntry>, StoreError>;

    /// Tell whoever listens to the source itself. Answers where the primary's log is now; none: nobody can listen.
    ///
    /// # Errors
    /// When it can't be told.
    async fn notify(&self, message: &str) -> Result<Option<Position>, LedgerError>;

    /// These plans are sold from now on: for a source whose licences are told by the plan's name alone.
    fn sell(&self, plans: &[PlanSettings]) {
        let _ = plans;
    }

    /// Give back what lies idle.
    fn close_idle(&self) {}
}

impl Order<'_> {
    /// Whether it is the order that was entered as `command`, with this outcome. To ask for a change is another order than to
    /// make it: what was only written down is never told as made.
    pub(super) fn repeats(&self, command: &Value, outcome: Outcome) -> bool {
        let same_kind = match outcome {
            Outcome::Applied => self.apply,
            Outcome::Requested => !self.apply,
            Outcome::Refused(_) => true,
        };
        same_kind && *command == json!(self.command)
    }

    /// What becomes of it for whoever holds `before`. The revision is still the former one.
    pub(super) fn outcome(&self, before: &Holding) -> (Holding, Outcome) {
        match amend(self.tenant, before, self.command, self.plans, self.now) {
            Err(refused) => (before.clone(), Outcome::Refused(refused)),
            Ok(_) if !self.apply => (before.clone(), Outcome::Requested),
            Ok(mut after) => {
                // Whatever it has added or changed is there for this reason.
                for addon in &mut after.addons {
                    if addon.reason.is_none() && before.addon(&addon.feature) != Some(addon) {
                        addon.reason.clone_from(&self.author.reason);
                    }
                }
                (after, Outcome::Applied)
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied => f.write_str("applied"),
            Self::Requested => f.write_str("requested"),
            Self::Refused(refused) => write!(f, "refused: {refused}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "applied" => Ok(Self::Applied),
            "requested" => Ok(Self::Requested),
            _ => text.strip_prefix("refused: ").and_then(Refused::named).map(Self::Refused).ok_or(()),
        }
    }
}
