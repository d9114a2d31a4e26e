//! `license set-plan`, `grant`, `revoke` and `extend`: changes of one tenant's licence.

use clap::Args;
use licensing::amend::{Command, End};
use licensing::config::Duration;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;

use super::print::{Changed, describe_change};
use super::{Common, Failure, Who};
use crate::licenses::Told;
use crate::manage::Manage;

#[derive(Args)]
pub(super) struct SetPlan {
    tenant: TenantId,
    plan: String,
    /// Until when the licence holds: a date, a time or `never` [default: as it is; a first licence: 30 days]
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    valid_until: Option<Timestamp>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(super) struct Grant {
    tenant: TenantId,
    feature: String,
    /// For how long, as 4h or 30d [default: for good]
    #[arg(long = "for", value_name = "DURATION", conflicts_with = "until")]
    span: Option<Duration>,
    /// Until when: a date, a time or `never` [default: for good]
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    until: Option<Timestamp>,
    /// What it adds to the feature's limit; where the plan does not include the feature, this is the limit
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    limit_delta: Option<i64>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(super) struct Revoke {
    tenant: TenantId,
    feature: String,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[group(id = "end", required = true, multiple = false, args = ["until", "by"])]
pub(super) struct Extend {
    tenant: TenantId,
    /// Until when: a date, a time or `never`
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    until: Option<Timestamp>,
    /// By how much, as 30d: from its present end, or from now if that has passed
    #[arg(long, visible_alias = "for", value_name = "DURATION")]
    by: Option<Duration>,
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    common: Common,
}

impl SetPlan {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = Command::SetPlan { plan: self.plan, valid_until: self.valid_until };
        self.common.with(async |manage, _| amend(manage, self.tenant, &command, &self.who, &self.common).await)
    }
}

impl Grant {
    pub(super) fn run(self) -> Result<(), Failure> {
        let span = self.span.map(|span| End::after(span.get()));
        let end = span.unwrap_or_else(|| End::At(self.until.unwrap_or(Timestamp::INFINITY)));
        let command = Command::Grant { feature: self.feature, limit_delta: self.limit_delta, end };
        self.common.with(async |manage, _| amend(manage, self.tenant, &command, &self.who, &self.common).await)
    }
}

impl Revoke {
    pub(super) fn run(self) -> Result<(), Failure> {
        let command = Command::Revoke { feature: self.feature };
        self.common.with(async |manage, _| amend(manage, self.tenant, &command, &self.who, &self.common).await)
    }
}

impl Extend {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let span = self.by.map(Duration::get).unwrap_or_default();
        let command = Command::Extend { end: self.until.map_or_else(|| End::after(span), End::At) };
        self.common.with(async |manage, _| amend(manage, self.tenant, &command, &self.who, &self.common).await)
    }
}

/// Make one change, and print what it has changed.
async fn amend(
    manage: &Manage,
    tenant: TenantId,
    command: &Command,
    who: &Who,
    common: &Common,
) -> Result<(), Failure> {
    let amended = manage.amend(tenant, command, &who.author()?).await?;
    if let (Command::SetPlan { valid_until: None, .. }, None, Some(license)) =
        (command, &amended.before.license, &amended.after.license)
    {
        eprintln!("note: without --valid-until, this first licence holds until {}", license.valid_until);
    }
    if let Told::No(message) = &amended.redis {
        eprintln!(
            "warning: the change is made, but Redis could not be told of it ({message}): replicas without a change \
                   feed see it only as what they know grows old"
        );
    }
    if amended.repeated {
        eprintln!("note: this was done when its idempotency key was used first");
    }
    let changed = Changed::new(tenant, &amended.before, &amended.after);
    common.output.print(&changed, || describe_change(&changed))
}
