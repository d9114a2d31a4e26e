//! `license`: what tenants have, and changes of it, for operators and support.

mod change;
mod print;
mod reapply;
mod refresh;
mod renew;
mod show;

use anyhow::anyhow;
use clap::{Args, Subcommand};

use self::print::{Clock, Format};
use super::{ConfigFile, Failure, start_log, user};
use crate::clock::wall_clock;
use crate::manage::{Author, Manage, ManageError};
use crate::server;

#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What a tenant has: its licence and its add-ons, from the primary
    Get(show::Get),
    /// The licences that match, in the order of their tenants
    List(show::List),
    /// Who asked for what, why, and what became of it
    Audit(show::Audit),
    /// Put a tenant on a plan, or give it its first licence; add-ons stay, and unless it is said so, the validity
    SetPlan(change::SetPlan),
    /// One feature more, beside the plan: a trial, break-glass, or sold by itself; it survives changes of the plan
    Grant(change::Grant),
    /// One feature less; if the plan gives it, the licence differs from its plan until `reapply-plan`
    Revoke(change::Revoke),
    /// A later end
    Extend(change::Extend),
    /// Extend the licences with auto_renew that are due, and clear away what has ended; fit for a CronJob
    Renew(renew::Options),
    /// Give licences what their plan includes today; what neither that nor an add-on explains goes
    ReapplyPlan(reapply::Options),
    /// Have every replica ask for a tenant's licence again
    Refresh(refresh::Refresh),
    /// Have every replica ask for every licence again
    Flush(refresh::Flush),
}

/// Where, and how it is printed.
#[derive(Args)]
struct Common {
    #[command(flatten)]
    config: ConfigFile,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Who changes something, and why.
#[derive(Args)]
struct Who {
    /// Why; it is kept in the audit
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    /// Who, for the audit [default: the user's name]
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// The same key with the same change makes it once, and answers as it did then
    #[arg(long, value_name = "KEY", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    idempotency_key: Option<String>,
}

pub(super) fn run(options: Options) -> Result<(), Failure> {
    start_log("error");
    match options.command {
        Command::Get(options) => options.run(),
        Command::List(options) => options.run(),
        Command::Audit(options) => options.run(),
        Command::SetPlan(options) => options.run(),
        Command::Grant(options) => options.run(),
        Command::Revoke(options) => options.run(),
        Command::Extend(options) => options.run(),
        Command::Renew(options) => options.run(),
        Command::ReapplyPlan(options) => options.run(),
        Command::Refresh(options) => options.run(),
        Command::Flush(options) => options.run(),
    }
}

impl Common {
    /// Do `work` with the write side that the configuration and the environment lead to.
    fn with(&self, work: impl AsyncFnOnce(&Manage, Clock) -> Result<(), Failure>) -> Result<(), Failure> {
        let settings = self.config.load()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| anyhow!(e))?;
        let manage = server::manage(&settings, runtime.handle().clone());
        let manage = manage.map_err(|error| Failure::Usage(format!("error: {error:#}")))?;
        let clock = Clock { now: wall_clock(), grace: settings.config.licenses.grace.get() };
        runtime.block_on(work(&manage, clock))
    }
}

impl Who {
    fn author(&self) -> Result<Author, Failure> {
        let actor = self.actor.clone().or_else(user);
        let actor = actor.ok_or_else(|| Failure::Usage("error: who are you? Say so by --actor".to_owned()))?;
        Ok(Author {
            actor,
            reason: Some(self.reason.clone()),
            request_id: None,
            idempotency_key: self.idempotency_key.clone(),
        })
    }
}

impl From<ManageError> for Failure {
    fn from(error: ManageError) -> Self {
        Self::Failed(match error {
            ManageError::Refused { refused, message } => anyhow!("refused: {message} ({refused})"),
            other => anyhow!(other),
        })
    }
}
