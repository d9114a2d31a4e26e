//! Usage where there is no place for it: no primary is named. A proxy whose rules meter requests does not start so; what is left
//! are denials and clicks, which are forgotten, and looking on, for `explain`.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::Date;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;

use super::usage::{Batch, Lease, LeaseRequest, Posted, Since, Standing, UsageSource, UsageStore};
use super::{StoreError, StoreName};

/// No place to write.
pub(crate) struct Nowhere {
    /// Where usage is read.
    used: Arc<dyn UsageSource>,
}

impl Nowhere {
    /// Tell of limits by what `used` says.
    pub(crate) fn new(used: Arc<dyn UsageSource>) -> Self {
        Self { used }
    }
}

fn nowhere() -> StoreError {
    StoreError::unavailable(StoreName::Postgres, "no primary is named, so there is no place for usage")
}

#[async_trait]
impl UsageStore for Nowhere {
    async fn post(&self, _: &Batch) -> Result<Posted, StoreError> {
        Ok(Posted::default())
    }

    /// What would be had, as far as it is written what is used. Nothing is taken.
    async fn lease(&self, request: &LeaseRequest) -> Result<Lease, StoreError> {
        let since = Since { day: request.key.period.start, of: Vec::new() };
        let usage = self.used.usage(request.key.tenant, &since).await?;
        let used = usage.get(&*request.key.feature).copied().unwrap_or_default();
        let used = u64::try_from(used).unwrap_or_default();
        let granted = request.needed.min(request.limit.saturating_sub(used));
        Ok(Lease { granted, standing: Standing { used, reserved: granted } })
    }

    async fn anchor(&self, _: TenantId) -> Result<Date, StoreError> {
        Err(nowhere())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn clicked(&self, _: TenantId, _: &str, _: Timestamp) -> Result<(), StoreError> {
        Ok(())
    }
}
