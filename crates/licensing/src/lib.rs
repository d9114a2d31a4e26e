//! The pure core of dotmac-license-proxy.
//!
//! What a request path means ([`path`], [`routes`]), who asks ([`tenant`]), what the tenant has bought ([`license`],
//! [`plans`]) and how that changes ([`amend`], [`renewal`]), what follows from it ([`decide`], [`enforcement`]) and how that
//! is said ([`answer`], [`view`], [`offers`]), also to pages of other origins ([`cors`]). Nothing here does I/O, reads a
//! clock or knows of an async runtime: time is always an argument, so every rule can be tested with a table.

pub mod amend;
pub mod answer;
pub mod config;
pub mod cors;
pub mod decide;
pub mod enforcement;
pub mod license;
pub mod offers;
pub mod openapi;
pub mod path;
pub mod plans;
pub mod quota;
pub mod reason;
pub mod renewal;
pub mod routes;
pub mod tenant;
pub mod time;
pub mod upgrade_link;
pub mod view;
