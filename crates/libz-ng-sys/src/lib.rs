//! Stands in for `libz-ng-sys`, which builds zlib-ng with CMake.
//!
//! Pingora asks for zlib-ng to compress responses, which this proxy never does: responses pass as they come. So that a
//! fresh machine needs no CMake to build it, the same functions come from stock zlib here, which needs a C compiler only.

pub use libz_sys::*;
