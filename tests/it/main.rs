//! The proxy tested from outside: its real binary among real servers.

mod cli;
mod decisions;
mod demo;
mod harness;
mod harness_selftest;
mod migrations;
mod operations;
mod real_backend;
