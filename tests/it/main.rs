//! The proxy tested from outside: its real binary among real servers.

mod cli;
mod coherence;
mod cors;
mod decisions;
mod demo;
mod explain;
mod failures;
mod faults;
mod forwarding;
mod framing;
mod harness;
mod harness_selftest;
mod harness_selftest_faults;
mod layers;
mod lifecycle;
mod migrations;
mod notifications;
mod operations;
mod real_backend;
mod reload;
mod rollout;
mod streaming;
mod tokens;
mod upgrade;
