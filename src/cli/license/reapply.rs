//! `license reapply-plan`: editing a plan changes no licence that exists; this does, and shows beforehand what it would do.

use anyhow::anyhow;
use clap::Args;
use licensing::amend::{Command, Holding, amend};
use licensing::tenant::TenantId;

use super::print::{Changed, Listing, change_line};
use super::{Common, Failure, Who};
use crate::clock::wall_clock;
use crate::manage::{Author, Filter, Manage, ManageError};
use crate::stores::StoreError;

#[derive(Args)]
#[group(id = "which", required = true, multiple = false, args = ["tenant", "plan", "all"])]
pub(super) struct Options {
    /// One tenant's
    tenant: Option<TenantId>,
    /// Every licence of this plan
    #[arg(long)]
    plan: Option<String>,
    /// Every licence
    #[arg(long)]
    all: bool,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Why; it is kept in the audit
    #[arg(long, required_unless_present = "dry_run", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: Option<String>,
    /// Who, for the audit [default: the user's name]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// One run.
struct Work<'a> {
    manage: &'a Manage,
    /// None: nothing is changed.
    author: Option<Author>,
    listing: Listing,
    counts: Counts,
}

/// What has become of the licences that were looked at.
#[derive(Default)]
struct Counts {
    seen: u64,
    differ: u64,
    failed: u64,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        if let Some(plan) = &self.plan {
            let settings = self.common.config.load()?;
            if settings.config.catalogue().get(plan).is_none() {
                let sold = settings.config.plans.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", ");
                return Err(Failure::Usage(format!("error: no plan is called {plan}: there are {sold}")));
            }
        }
        let author = match (&self.reason, self.dry_run) {
            (Some(reason), false) => {
                Some(Who { reason: reason.clone(), actor: self.actor.clone(), idempotency_key: None }.author()?)
            }
            _ => None,
        };
        self.common.with(async |manage, _| {
            let mut work =
                Work { manage, author, listing: Listing::begin(self.common.output), counts: Counts::default() };
            let ended = match self.tenant {
                Some(tenant) => work.one(tenant).await,
                None => work.many(Filter { plan: self.plan.clone(), ..Filter::default() }).await,
            };
            work.listing.end()?;
            let Counts { seen, differ, failed } = work.counts;
            eprintln!("{seen} licences looked at, {differ} {}", if self.dry_run { "would change" } else { "changed" });
            match failed {
                0 => ended,
                count => {
                    ended.and(Err(anyhow!("{count} licences could not be brought in line with their plan").into()))
                }
            }
        })
    }
}

impl Work<'_> {
    async fn many(&mut self, filter: Filter) -> Result<(), Failure> {
        let mut after = None;
        loop {
            let page = self.manage.page(&filter, after).await?;
            for (tenant, _) in page.licenses {
                after = Some(tenant);
                self.one(tenant).await?;
            }
            if page.is_last {
                return Ok(());
            }
        }
    }

    /// What is wrong with one licence is said, and the next one's turn comes.
    async fn one(&mut self, tenant: TenantId) -> Result<(), Failure> {
        self.counts.seen += 1;
        match self.apply(tenant).await {
            Ok(None) => Ok(()),
            Ok(Some((before, after))) => {
                self.counts.differ += 1;
                let changed = Changed::new(tenant, &before, &after);
                self.listing.item(&changed, || change_line(&changed))
            }
            Err(error @ (ManageError::Refused { .. } | ManageError::Store(StoreError::Unreadable { .. }))) => {
                self.counts.failed += 1;
                eprintln!("{tenant}: {error}");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What a licence was and is, or would be, if that differs. Only then it is written, and audited.
    async fn apply(&self, tenant: TenantId) -> Result<Option<(Holding, Holding)>, ManageError> {
        let plans = self.manage.plans();
        let before = self.manage.holding(tenant).await?;
        let after = amend(tenant, &before, &Command::Reapply, &plans, wall_clock()).map_err(|refused| {
            ManageError::Refused { refused, message: refused.explain(&before, &Command::Reapply, &plans) }
        })?;
        if after == before {
            return Ok(None);
        }
        match &self.author {
            None => Ok(Some((before, after))),
            Some(author) => {
                let amended = self.manage.amend(tenant, &Command::Reapply, author).await?;
                Ok(Some((amended.before, amended.after)))
            }
        }
    }
}
