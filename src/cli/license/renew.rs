//! `license renew`: extends what is due, and clears away what has ended. No prompts, exit 0 when nothing is, and safe to run
//! at any time.

use anyhow::{Context, anyhow};
use clap::Args;
use licensing::config::{Duration, LicenseSource};
use licensing::renewal::{Due, Period};

use super::Common;
use crate::cli::{Failure, interrupted, user};
use crate::clock::wall_clock;
use crate::manage::renew::{Renew, Renewal};
use crate::server;

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    common: Common,
    /// Licences that end within this time are due
    #[arg(long, value_name = "TIME", default_value = "24h")]
    within: Duration,
    /// By how much they are extended, from their former end on: 30d, or months of the calendar as 1mon
    #[arg(long, value_name = "PERIOD", default_value = "30d")]
    by: Period,
    /// Revive licences too that have ended longer ago than licenses.grace
    #[arg(long)]
    lapsed: bool,
    /// Count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Why, for the audit
    #[arg(long, default_value = "due for renewal")]
    reason: String,
    /// Who, for the audit [default: the user's name]
    #[arg(long)]
    actor: Option<String>,
}

impl Options {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let settings = self.common.config.load()?;
        let config = &settings.config;
        if matches!(config.licenses.source, LicenseSource::File(_)) {
            return Err(Failure::Usage("error: licenses.source is a file: its licences end when it says".to_owned()));
        }
        let url = settings.secrets.database_url.as_ref().ok_or_else(|| {
            let message = "error: license renew needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL: the primary";
            Failure::Usage(message.to_owned())
        })?;
        if self.by.shortest() <= self.within.get() {
            return Err(Failure::Usage(format!(
                "error: --by {} is no longer than --within {}: whoever was renewed would be due again at once",
                self.by, self.within
            )));
        }
        let now = wall_clock();
        let renew = Renew {
            now,
            due: Due::new(now, self.within.get(), config.licenses.grace.get()),
            by: self.by,
            lapsed: self.lapsed,
            dry_run: self.dry_run,
            actor: self.actor.clone().or_else(user).unwrap_or_else(|| "license renew".to_owned()),
            reason: self.reason.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| anyhow!(e))?;
        let manage = server::manage(&settings, runtime.handle().clone())?;
        let renewal = runtime.block_on(async {
            let stop = interrupted()?;
            let renewed = renew.run(url.first(), &manage, stop).await;
            renewed.context("license renew: what was renewed stays; run it again")
        })?;
        self.common.output.print(&renewal, || self.summary(&renewal, config.licenses.grace))?;
        if renewal.interrupted {
            return Err(Failure::Failed(anyhow!("interrupted: what was renewed stays; run it again for the rest")));
        }
        Ok(())
    }

    fn summary(&self, renewal: &Renewal, grace: Duration) -> String {
        let Renewal { renewed, lapsed, left, tidied, unreadable, .. } = renewal;
        let would = if self.dry_run { "would be " } else { "" };
        let mut text = format!("{renewed} {would}renewed by {}", self.by);
        if *lapsed > 0 {
            text += &format!(", {lapsed} ended more than {grace} ago and stay so (--lapsed revives them)");
        }
        if *left > 0 {
            text += &format!(", {left} are due still: somebody else was changing them, the next run will see");
        }
        if *tidied > 0 {
            text += &format!(", what has ended {would}cleared away of {tidied}");
        }
        if *unreadable > 0 {
            text += &format!(", {unreadable} have what can't be read: see above");
        }
        text + "\n"
    }
}
