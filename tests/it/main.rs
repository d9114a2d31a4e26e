//! The proxy tested from outside: its real binary among real servers.

mod cli;
mod decisions;
mod harness;
mod harness_selftest;
mod migrations;
mod real_backend;
