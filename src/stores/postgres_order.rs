//! Who writes first: locks that keep those who add usage and denials apart from those who must have seen all of them.
//!
//! Whoever looks at what there is and then puts down what follows from it (the first lease of a window adds up the usage so
//! far; a click marks the denials before it) would miss what another transaction has written and not committed yet, and that
//! other one would not see what was put down. So the former hold these locks alone, and the latter in common, from before
//! they look at what was put down until they commit.

use licensing::tenant::TenantId;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

/// The class of these locks among advisory locks of two numbers: "dotm" in ASCII.
const CLASS: i32 = 0x646f_746d;

/// How many locks there are. A transaction that writes for many tenants holds them all; the server has room for some thousands.
const LOCKS: u128 = 16;

const IN_COMMON: &str = "SELECT pg_advisory_xact_lock_shared($1, lock) FROM unnest($2) AS list (lock)";

const ALONE: &str = "SELECT pg_advisory_xact_lock($1, $2)";

/// The locks of `tenants`, in the order in which everybody takes them.
pub(super) fn locks_of(tenants: impl Iterator<Item = TenantId>) -> Vec<i32> {
    let mut locks: Vec<_> = tenants.map(lock_of).collect();
    locks.sort_unstable();
    locks.dedup();
    locks
}

/// Be one of those who write, until the transaction ends.
pub(super) async fn hold_in_common(client: &Client, locks: &[i32]) -> Result<(), Error> {
    if locks.is_empty() {
        return Ok(());
    }
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&CLASS, Type::INT4), (&locks, Type::INT4_ARRAY)];
    client.query_typed(IN_COMMON, &parameters).await.map(drop)
}

/// Be the only one who writes for `tenant`, until the transaction ends.
pub(super) async fn hold_alone(client: &Client, tenant: TenantId) -> Result<(), Error> {
    let lock = lock_of(tenant);
    client.query_typed(ALONE, &[(&CLASS, Type::INT4), (&lock, Type::INT4)]).await.map(drop)
}

fn lock_of(tenant: TenantId) -> i32 {
    // The last bits of a UUID are random in every version that tenants have.
    i32::try_from(tenant.as_uuid().as_u128() % LOCKS).unwrap_or_default()
}
