//! Real servers for the tests of stores: the harness of `tests/it`, as much of it as stores need.

#![allow(dead_code, reason = "a vocabulary for tests: not every word is in use at every moment")]

#[path = "../../tests/it/harness/pooler.rs"]
pub(super) mod pooler;
#[path = "../../tests/it/harness/postgres.rs"]
pub(super) mod postgres;
#[path = "../../tests/it/harness/process.rs"]
mod process;
#[path = "../../tests/it/harness/protocol.rs"]
mod protocol;
#[path = "../../tests/it/harness/runtime.rs"]
mod runtime;
#[path = "../../tests/it/harness/tls.rs"]
mod tls;
#[path = "../../tests/it/harness/wire.rs"]
pub(super) mod wire;

use runtime::background;
