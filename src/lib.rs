//! dotmac-license-proxy: a reverse proxy that runs beside a multi-tenant backend and enforces, per request, what the
//! tenant's licence includes.
//!
//! A request walks one way: `proxy` reads it, `gate` rules on it with what `licenses` finds in `stores`, and
//! `proxy` forwards it or answers. The rules themselves are the crate `licensing`, which does no I/O.

mod access_log;
mod api;
pub mod cli;
mod clock;
mod explain;
#[cfg(test)]
#[path = "../fuzz/mod.rs"]
mod fuzz;
mod gate;
mod identity;
mod intake;
mod licenses;
mod load;
mod manage;
mod metrics;
mod migrations;
mod open_files;
mod proxy;
mod record;
mod reload;
mod request_id;
mod secret;
mod server;
mod settings;
mod snapshot;
mod stores;

/// The version that is released, of all parts alike: Cargo.toml has it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, `-dirty` where something differs from it, or "unknown".
pub(crate) const COMMIT: &str = env!("DOTMAC_LICENSE_COMMIT");

/// Both, as `--version` prints them.
pub(crate) const VERSION_AND_COMMIT: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("DOTMAC_LICENSE_COMMIT"), ")");
