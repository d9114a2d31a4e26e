//! Real servers for the tests: Postgres, PgBouncer, Redis and its sentinels, a recording upstream and the proxy's own binary;
//! and a real browser.
//!
//! A test usually begins with [`World::start`]. Every server listens on the loopback interface only, belongs to one test
//! (the shared Postgres apart, where the database does), and is gone when the test is, however it ends. A program that is
//! not installed fails the test with a sentence; nothing is skipped.
//!
//! The harness's own sockets are served by threads beside the test's runtime, so a test may block.

#![allow(dead_code, unused_imports, reason = "a vocabulary for tests: not every word is in use at every moment")]

pub(crate) mod backend;
pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod jwt;
pub(crate) mod load;
pub(crate) mod pages;
pub(crate) mod pooler;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod prometheus;
mod protocol;
pub(crate) mod proxy;
pub(crate) mod raw_h2;
pub(crate) mod redis;
mod runtime;
pub(crate) mod sentinel;
pub(crate) mod standby;
pub(crate) mod tls;
pub(crate) mod transport;
pub(crate) mod upstream;
pub(crate) mod wire;
pub(crate) mod world;

pub(crate) use backend::Backend;
pub(crate) use browser::{Browser, Tab};
pub(crate) use client::{RawClient, RawResponse};
pub(crate) use jwt::Signer;
pub(crate) use load::{Ask, Load, Samples};
pub(crate) use pages::{Block, Desk, Page};
pub(crate) use pooler::Pooler;
pub(crate) use postgres::{Database, Postgres, Session};
pub(crate) use prometheus::Prometheus;
pub(crate) use proxy::{Proxy, ProxyBuilder, Running};
pub(crate) use redis::{Redis, RedisOptions};
use runtime::background;
pub(crate) use sentinel::Sentinel;
pub(crate) use standby::Standby;
pub(crate) use transport::Transport;
pub(crate) use upstream::{Recorded, Reply, Upstream};
pub(crate) use wire::{Held, Wire};
pub(crate) use world::{License, World};
