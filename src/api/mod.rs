//! What the proxy serves itself, beside the answers of the gate.

pub(crate) mod ops;
