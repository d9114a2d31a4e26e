//! `license get`, `list` and `audit`: what there is.

use anyhow::anyhow;
use clap::Args;
use licensing::config::Duration;
use licensing::tenant::TenantId;

use super::print::{Listing, Shown, audit_line, describe, list_line};
use super::{Common, Failure};
use crate::manage::Filter;

#[derive(Args)]
pub(super) struct Get {
    tenant: TenantId,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(super) struct List {
    /// Those of this plan
    #[arg(long)]
    plan: Option<String>,
    /// Those that include this feature now
    #[arg(long)]
    feature: Option<String>,
    /// Those that end within this time from now, as 12h or 30d
    #[arg(long, value_name = "DURATION")]
    expiring_within: Option<Duration>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(super) struct Audit {
    tenant: TenantId,
    /// The latest so many
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u32,
    #[command(flatten)]
    common: Common,
}

impl Get {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.common.with(async |manage, clock| {
            let holding = manage.holding(self.tenant).await?;
            if holding.license.is_none() && holding.addons.is_empty() {
                return Err(
                    anyhow!("the tenant {} has no licence: `license set-plan` gives it one", self.tenant).into()
                );
            }
            let shown = Shown::new(&holding, clock);
            self.common.output.print(&shown, || describe(self.tenant, &holding, clock))
        })
    }
}

impl List {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.common.with(async |manage, clock| {
            let now = clock.now;
            let filter = Filter {
                plan: self.plan.clone(),
                feature: self.feature.clone(),
                ends_from: self.expiring_within.map(|_| now),
                ends_before: self.expiring_within.map(|span| now.plus(span.get())),
            };
            let mut listing = Listing::begin(self.common.output);
            let (mut after, mut left) = (None, self.limit.unwrap_or(usize::MAX));
            let mut unreadable = 0;
            'pages: loop {
                let page = manage.page(&filter, after).await?;
                for (tenant, answer) in page.licenses {
                    after = Some(tenant);
                    match answer {
                        Ok(Some(license)) if self.feature.as_ref().is_none_or(|name| license.includes(name, now)) => {
                            if left == 0 {
                                break 'pages;
                            }
                            left -= 1;
                            listing.item(&license, || list_line(&license, clock))?;
                        }
                        // Gone since its page was read, or the feature has ended.
                        Ok(_) => {}
                        Err(cause) => {
                            unreadable += 1;
                            eprintln!("warning: the licence of {tenant} can't be read: {cause}");
                        }
                    }
                }
                if page.is_last {
                    break;
                }
            }
            listing.end()?;
            match unreadable {
                0 => Ok(()),
                count => Err(anyhow!("{count} licences can't be read").into()),
            }
        })
    }
}

impl Audit {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.common.with(async |manage, _| {
            let entries = manage.audit(self.tenant, self.limit).await?;
            let mut listing = Listing::begin(self.common.output);
            for entry in &entries {
                listing.item(entry, || audit_line(entry))?;
            }
            listing.end()
        })
    }
}
