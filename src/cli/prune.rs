//! `prune`: removes usage and denials that are older than they need be.

use std::fmt;
use std::str::FromStr;
use std::time::Duration as Span;

use anyhow::{Context, anyhow};
use clap::Args;
use licensing::config::{Duration, LicenseSource};
use licensing::time::Timestamp;
use serde_json::json;

use super::output::Format;
use super::progress::Progress;
use super::{ConfigFile, Failure, interrupted, start_log, user};
use crate::clock::wall_clock;
use crate::manage::prune::{Prune, Pruned};

/// Usage that is younger may be of a month that is not over, or of an anchored one.
const LEAST_USAGE: Span = Span::from_hours(32 * 24);

/// Denials that are younger are marked by an upgrade, see `upgraded_at`.
const LEAST_DENIALS: Span = Span::from_hours(31 * 24);

#[derive(Args)]
#[command(
    after_help = "Usage of a month that is not over is what /license shows as currentUsage, and what a limit begins with that \
                  is put on a feature later. Limits that are in force keep what is used by themselves, lifetime limits for good.
Fit for a CronJob: it may be interrupted, run again and run in two places at once."
)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// Remove usage older than this, and limits whose period ended longer ago; never: keep it
    #[arg(long, value_name = "TIME", default_value = "400d")]
    usage_older_than: Age,
    /// Remove denials older than this, and with them shadow denials and marks of upgrades; never: keep them
    #[arg(long, value_name = "TIME", default_value = "90d")]
    denials_older_than: Age,
    /// How many rows are removed in one transaction
    #[arg(long, value_name = "ROWS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Allow ages that reach into what is being counted still: usage under 32d, denials under 31d
    #[arg(long)]
    force: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Why, for the audit
    #[arg(long)]
    reason: Option<String>,
    /// Who, for the audit [default: the user's name]
    #[arg(long)]
    actor: Option<String>,
}

/// How old something may grow.
#[derive(Clone, Copy, Debug)]
enum Age {
    /// As old as it likes.
    Never,
    /// So old.
    After(Duration),
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    start_log("warn");
    let settings = options.config.load()?;
    if matches!(settings.config.licenses.source, LicenseSource::File(_)) {
        return Err(Failure::Usage("error: licenses.source is a file: there is no table to prune".to_owned()));
    }
    let url = settings.secrets.database_url.as_ref().ok_or_else(|| {
        Failure::Usage("error: prune needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL: the primary".to_owned())
    })?;
    let prune = options.prune(wall_clock())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| anyhow!(e))?;
    let mut progress = Progress::new("prune");
    let pruned = runtime.block_on(async {
        let mut show = |done: u64, total: u64| progress.at(done, total, "removed".to_owned());
        let stop = interrupted()?;
        prune
            .run(url.first(), stop, &mut show)
            .await
            .context("prune: what was removed is gone; run it again for the rest")
    });
    progress.end();
    let pruned = pruned?;
    options.output.print(&pruned, || options.summary(&pruned))?;
    if pruned.interrupted {
        return Err(Failure::Failed(anyhow!("interrupted: what was removed is gone; run it again for the rest")));
    }
    Ok(())
}

impl Options {
    fn prune(&self, now: Timestamp) -> Result<Prune, Failure> {
        for (flag, age, least, why) in [
            (
                "--usage-older-than",
                self.usage_older_than,
                LEAST_USAGE,
                "usage of a month that is not over may be among it",
            ),
            ("--denials-older-than", self.denials_older_than, LEAST_DENIALS, "upgrades mark the denials of 30 days"),
        ] {
            if !self.force && age.span().is_some_and(|span| span < least) {
                let days = least.as_secs() / 86_400;
                return Err(Failure::Usage(format!(
                    "error: {flag} {age} is under {days}d: {why}. Say --force to remove it all the same"
                )));
            }
        }
        Ok(Prune {
            now,
            usage_for: self.usage_older_than.span(),
            denials_for: self.denials_older_than.span(),
            batch: self.batch,
            dry_run: self.dry_run,
            command: json!({
                "usage_older_than": self.usage_older_than.to_string(),
                "denials_older_than": self.denials_older_than.to_string(),
            }),
            actor: self.actor.clone().or_else(user).unwrap_or_else(|| "prune".to_owned()),
            reason: self.reason.clone(),
        })
    }

    fn summary(&self, pruned: &Pruned) -> String {
        let verb = if self.dry_run { "would be removed" } else { "removed" };
        pruned.removed.iter().map(|(table, rows)| format!("{table:<22} {rows:>12} {verb}\n")).collect()
    }
}

impl Age {
    fn span(self) -> Option<Span> {
        match self {
            Self::Never => None,
            Self::After(age) => Some(age.get()),
        }
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            age => age.parse().map(Self::After).map_err(|error| format!("{error}; or never")),
        }
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::After(age) => age.fmt(f),
        }
    }
}
