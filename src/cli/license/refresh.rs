//! `license refresh` and `flush`: have every replica ask again.

use clap::Args;
use licensing::tenant::TenantId;
use serde::Serialize;

use super::{Common, Failure};
use crate::licenses::Told;
use crate::manage::Refreshed;

#[derive(Args)]
pub(super) struct Refresh {
    tenant: TenantId,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
pub(super) struct Flush {
    #[command(flatten)]
    common: Common,
}

/// Who was told.
#[derive(Serialize)]
struct Report {
    redis: String,
    postgres: String,
}

impl Refresh {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.common.with(async |manage, _| report(&self.common, &manage.refresh(self.tenant).await?))
    }
}

impl Flush {
    pub(super) fn run(&self) -> Result<(), Failure> {
        self.common.with(async |manage, _| report(&self.common, &manage.flush().await?))
    }
}

fn report(common: &Common, refreshed: &Refreshed) -> Result<(), Failure> {
    let word = |told: &Told| match told {
        Told::Yes => "told".to_owned(),
        Told::No(message) => format!("failed: {message}"),
        Told::Nobody => "not configured".to_owned(),
    };
    let report = Report { redis: word(&refreshed.redis), postgres: word(&refreshed.postgres) };
    if let Told::No(message) = &refreshed.redis {
        eprintln!("warning: Redis could not be told ({message}): only replicas with `change_feed: listen` have heard");
    }
    common.output.print(&report, || format!("redis     {}\npostgres  {}\n", report.redis, report.postgres))
}
