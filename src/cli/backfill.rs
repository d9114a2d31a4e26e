//! `backfill`: a licence for every tenant that has none yet.

use anyhow::{Context, anyhow};
use clap::{ArgAction, Args};
use licensing::amend::DEFAULT_TERM;
use licensing::config::{Config, LicenseSource};
use licensing::time::Timestamp;
use serde_json::{Map, Value};

use super::progress::Progress;
use super::{ConfigFile, Failure, interrupted, start_log, user};
use crate::clock::wall_clock;
use crate::manage::backfill::{Backfill, Counts, Report};
use crate::stores::{NewLicense, TenantTable};

#[derive(Args)]
pub(super) struct Options {
    #[command(flatten)]
    config: ConfigFile,
    /// The plan that everyone gets, with its features and limits as the configuration has them
    #[arg(long)]
    plan: String,
    /// The table or view with a row for each tenant: NAME or SCHEMA.NAME, in the same database
    #[arg(long, value_name = "TABLE", default_value = "tenants")]
    from: String,
    /// Its column with the tenant's id: a UUID, or the text of one
    #[arg(long, value_name = "COLUMN", default_value = "id")]
    id: String,
    /// Until when the licences hold: a date, an RFC 3339 time, or never [default: thirty days from now]
    #[arg(long, value_name = "TIME", value_parser = Timestamp::parse)]
    valid_until: Option<Timestamp>,
    /// Whether they are extended by `license renew`, and served for a grace period until it has run
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    auto_renew: bool,
    /// Count, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Why, for the audit
    #[arg(long)]
    reason: Option<String>,
    /// Who, for the audit [default: the user's name]
    #[arg(long)]
    actor: Option<String>,
}

pub(super) fn run(options: &Options) -> Result<(), Failure> {
    start_log("warn");
    let settings = options.config.load()?;
    let config = &settings.config;
    if matches!(config.licenses.source, LicenseSource::File(_)) {
        return Err(Failure::Usage("error: licenses.source is a file: there is no table to fill".to_owned()));
    }
    let url = settings.secrets.database_url.as_ref().ok_or_else(|| {
        Failure::Usage("error: backfill needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL: the primary".to_owned())
    })?;
    let backfill = Backfill {
        source: TenantTable::new(&options.from, &options.id).map_err(|e| Failure::Usage(format!("error: {e}")))?,
        license: license(options, config, wall_clock())?,
        dry_run: options.dry_run,
        actor: options.actor.clone().or_else(user).unwrap_or_else(|| "backfill".to_owned()),
        reason: options.reason.clone(),
    };
    let ends = backfill.license.valid_until;
    if options.valid_until.is_none() {
        eprintln!("{}", warn_of_the_end(ends, options.auto_renew, config));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| anyhow!(e))?;
    let mut progress = Progress::new("backfill");
    let report = runtime.block_on(async {
        let mut show = |counts: &Counts, total: u64| progress.at(counts.read, total, added(counts, options.dry_run));
        let stop = interrupted()?;
        backfill.run(url.first(), stop, &mut show).await.context("backfill: what was written stays; run it again")
    });
    progress.end();
    let report = report?;
    println!("{}", summary(&report, &backfill));
    if report.interrupted {
        return Err(Failure::Failed(anyhow!("interrupted: what was written stays; run it again for the rest")));
    }
    Ok(())
}

/// What each tenant gets.
fn license(options: &Options, config: &Config, now: Timestamp) -> Result<NewLicense, Failure> {
    let plans = config.catalogue();
    let plan = plans.get(&options.plan).ok_or_else(|| {
        let names: Vec<_> = plans.iter().map(|plan| &*plan.name).collect();
        Failure::Usage(format!("error: there is no plan {:?}; the plans are: {}", options.plan, names.join(", ")))
    })?;
    let valid_until = options.valid_until.unwrap_or_else(|| now.plus(DEFAULT_TERM));
    if valid_until <= now {
        return Err(Failure::Usage(format!("error: --valid-until {valid_until} has passed: everyone would be denied")));
    }
    let features: Map<_, _> = plan.features.iter().map(|feature| (feature.to_string(), true.into())).collect();
    let limits: Map<_, _> = plan.limits.iter().map(|(feature, limit)| (feature.to_string(), (*limit).into())).collect();
    Ok(NewLicense {
        plan: plan.name.to_string(),
        features: Value::from(features).to_string(),
        usage_limits: Value::from(limits).to_string(),
        valid_until,
        auto_renew: options.auto_renew,
    })
}

/// A default that denies everyone in a month must not come as a surprise.
fn warn_of_the_end(ends: Timestamp, auto_renew: bool, config: &Config) -> String {
    let then = match auto_renew {
        true => format!(
            "they are served for a grace of {} after that, and then everyone is denied, unless `license renew` runs",
            config.licenses.grace
        ),
        false => "everyone is denied from then on".to_owned(),
    };
    format!(
        "warning: without --valid-until these licences end in thirty days, at {ends}: {then}. \
         Say --valid-until never, or a date, to choose another end."
    )
}

fn added(counts: &Counts, dry_run: bool) -> String {
    format!("{} {}", counts.added, if dry_run { "to be added" } else { "added" })
}

fn summary(report: &Report, backfill: &Backfill) -> String {
    let Counts { read, licensed, duplicates, unusable, null, .. } = report.counts;
    let verb = if backfill.dry_run { "would get" } else { "got" };
    let mut text = format!(
        "{read} rows of {}: {} {verb} a licence of {}, {licensed} have one already, {duplicates} duplicates, \
         {unusable} are no UUID, {null} null",
        backfill.source, report.counts.added, backfill.license.plan
    );
    if !report.examples.is_empty() {
        let examples: Vec<_> = report.examples.iter().map(|example| format!("{example:?}")).collect();
        text += &format!("\nno UUID, such as: {}", examples.join(", "));
    }
    text
}
