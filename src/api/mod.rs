//! What the proxy serves itself, beside the answers of the gate.

pub(crate) mod admin;
mod body;
pub(crate) mod clicks;
pub(crate) mod handshake;
pub(crate) mod headers;
pub(crate) mod license;
pub(crate) mod listener;
pub(crate) mod offers;
pub(crate) mod ops;
pub(crate) mod paths;
pub(crate) mod updates;
pub(crate) mod upgrade;
pub(crate) mod websocket;
