//! The proxy tested from outside: its real binary among real servers.

mod decisions;
mod failures;
mod forwarding;
mod framing;
mod harness;
mod harness_selftest;
mod layers;
mod lifecycle;
mod streaming;
