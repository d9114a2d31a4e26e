//! Names: of features, plans, methods and headers, and tenant ids as the configuration writes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::text_type::text_type;
use crate::tenant::TenantId;

/// A feature's name: up to 100 letters, digits, `_`, `-`, `.` and `:`. Features are sold, so they stand in headers, labels
/// and links.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeatureName(Arc<str>);

/// A plan's name: up to 50 letters, digits, `_`, `-`, `.` and `:`, as in `tenant_licenses.plan_tier`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanName(Arc<str>);

/// A header's name (a token, RFC 9110 section 5.1), kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HeaderName(Arc<str>);

/// A request method (a token, RFC 9110 section 9.1) in upper case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(Arc<str>);

/// A tenant's UUID, in any usual spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(pub TenantId);

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(String);

macro_rules! shared_text {
    ($($type:ident),*) => {
        $(impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name as shared text.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        })*
    };
}

shared_text!(FeatureName, PlanName, HeaderName, Method);

impl FromStr for FeatureName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        plain(text, "a feature", 100).map(Self)
    }
}

impl FromStr for PlanName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        plain(text, "a plan", 50).map(Self)
    }
}

impl FromStr for HeaderName {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !is_token(text) {
            return Err(InvalidName(format!("{text:?} is no header name: expected one such as X-Tenant-ID")));
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl FromStr for Method {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !is_token(text) {
            return Err(InvalidName(format!("{text:?} is no method: expected one such as GET")));
        }
        let upper = text.to_ascii_uppercase();
        if text != upper {
            return Err(InvalidName(format!("methods are upper case: write {upper}, not {text}")));
        }
        Ok(Self(upper.into()))
    }
}

impl FromStr for Tenant {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|error: crate::tenant::InvalidTenantId| InvalidName(format!("{error}, not {text:?}")))
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(FeatureName, pattern: "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}$", examples: ["crm", "field-ops"]);
text_type!(PlanName, pattern: "^[A-Za-z0-9][A-Za-z0-9_.:-]{0,49}$", examples: ["starter", "professional"]);
text_type!(HeaderName, pattern: "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", examples: ["X-Tenant-ID"]);
text_type!(Method, pattern: "^[A-Z0-9!#$%&'*+.^_`|~-]+$", examples: ["GET", "POST"]);
text_type!(Tenant, pattern: "^[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}$",
    examples: ["6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11"]);

fn plain(text: &str, what: &str, longest: usize) -> Result<Arc<str>, InvalidName> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':');
    let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if begins_well && text.len() <= longest && text.bytes().all(allowed) {
        return Ok(text.into());
    }
    let bounds = format!("1 to {longest} letters, digits, `_`, `-`, `.` or `:`, the first a letter or a digit");
    Err(InvalidName(format!("{text:?} is no name of {what}: expected {bounds}")))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!("X-Tenant-ID".parse::<HeaderName>().map(|name| name.to_string()).as_deref(), Ok("x-tenant-id"));
        for text in ["", "X Tenant", "X-Tenant:", "Tenänt"] {
            assert!(text.parse::<HeaderName>().is_err(), "{text}");
        }
        for text in ["", "a,b", "a b", "-a", "é", &"x".repeat(101)] {
            assert!(text.parse::<FeatureName>().is_err(), "{text}");
        }
        assert!("x".repeat(100).parse::<FeatureName>().is_ok() && "x".repeat(51).parse::<PlanName>().is_err());
        let error = "post".parse::<Method>().expect_err("lower case");
        assert_eq!(error.to_string(), "methods are upper case: write POST, not post");
        let id = "6F1C1C5E8F3E4A589A3C0A4E1F0F7B11".parse::<Tenant>().map(|tenant| tenant.to_string());
        assert_eq!(id.as_deref(), Ok("6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11"));
    }
}
