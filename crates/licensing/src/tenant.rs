//! Who asks: a tenant's id, read from any usual spelling and canonical afterwards, and why a token is no proof of one.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A tenant's UUID. Always written in its canonical form, lower case with hyphens (RFC 9562, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TenantId(Uuid);

/// A text is no UUID in any usual spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tenant id is a UUID, such as 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11")]
pub struct InvalidTenantId;

/// Why a signed token that should name the tenant is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFault {
    /// Its time is over.
    #[error("The token has expired.")]
    Expired,
    /// Its time has not come.
    #[error("The token is not valid yet.")]
    NotYetValid,
    /// Its signature is wrong, or it can't be told whose it should be.
    #[error("The token is not signed by a key that is trusted here.")]
    Untrusted,
    /// It is meant for somebody else.
    #[error("The token is meant for another audience.")]
    WrongAudience,
    /// It can't be read, demands extensions, or does not say when it expires.
    #[error("The token is malformed.")]
    Malformed,
}

impl TenantId {
    /// The tenant with this UUID.
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID itself.
    pub const fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// Read a UUID with or without hyphens, in any letter case, in braces or as a `urn:uuid:`. Blanks around it, as
    /// RFC 9110 section 5.5 allows around any header value, are passed over.
    ///
    /// # Errors
    /// For everything else, a list of two ids among it.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidTenantId> {
        Uuid::try_parse_ascii(text.trim_ascii()).map(Self).map_err(|_| InvalidTenantId)
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl std::str::FromStr for TenantId {
    type Err = InvalidTenantId;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_read_and_written_canonically() {
        let canonical = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";
        for text in [
            canonical,
            "6F1C1C5E-8F3E-4A58-9A3C-0A4E1F0F7B11",
            "6f1c1c5e8f3e4a589a3c0a4e1f0f7b11",
            "{6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11}",
            "urn:uuid:6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11",
            " 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11\t",
        ] {
            assert_eq!(TenantId::parse(text.as_bytes()).map(|id| id.to_string()).as_deref(), Ok(canonical), "{text:?}");
        }
    }

    #[test]
    fn nothing_else_is_read() {
        let one = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";
        for text in ["", " ", "acme", "42", &format!("{one},{one}"), &format!("{one} {one}"), &one[1..], "{}"] {
            assert_eq!(TenantId::parse(text.as_bytes()), Err(InvalidTenantId), "{text:?}");
        }
    }
}
