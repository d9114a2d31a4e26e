//! Usage where there is no place for it: no primary is named. Rules that meter requests are refused there, and what is left,
//! denials and clicks, is forgotten.

use async_trait::async_trait;
use jiff::civil::Date;
use licensing::tenant::TenantId;
use licensing::time::Timestamp;

use super::usage::{Batch, Lease, LeaseRequest, Posted, UsageStore};
use super::{StoreError, StoreName};

/// No place.
pub(crate) struct Nowhere;

fn nowhere() -> StoreError {
    StoreError::unavailable(StoreName::Postgres, "no primary is named, so there is no place for usage")
}

#[async_trait]
impl UsageStore for Nowhere {
    async fn post(&self, _: &Batch) -> Result<Posted, StoreError> {
        Ok(Posted::default())
    }

    async fn lease(&self, _: &LeaseRequest) -> Result<Lease, StoreError> {
        Err(nowhere())
    }

    async fn anchor(&self, _: TenantId) -> Result<Date, StoreError> {
        Err(nowhere())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn clicked(&self, _: TenantId, _: &str, _: Timestamp) -> Result<(), StoreError> {
        Err(nowhere())
    }
}
