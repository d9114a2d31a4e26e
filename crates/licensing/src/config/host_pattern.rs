//! Patterns of host names that name the tenant, and what a host says by them.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use super::address::is_host_name;
use super::text_type::text_type;
use crate::tenant::{InvalidTenantId, TenantId};

/// What stands for the tenant.
const PLACEHOLDER: &str = "{tenant}";

/// The one domain of a single label: browsers take every name below it for their own machine (RFC 6761 section 6.3).
const LOCALHOST: &str = "localhost";

/// A pattern of host names, `{tenant}.isp.example.com`: the tenant's UUID is the first label, a domain follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// The domain and the dot before it, in lower case.
    domain: Arc<str>,
}

/// Why a text is no pattern of host names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidHostPattern(String);

impl HostPattern {
    /// The tenant that a host names, as `Host` or HTTP/2's authority have it: in any letter case, with one dot at its end
    /// and a port or without. None for a host that does not fit, be it that it has a label more.
    pub fn tenant(&self, host: &[u8]) -> Option<Result<TenantId, InvalidTenantId>> {
        let name = without_port(host);
        let name = name.strip_suffix(b".").unwrap_or(name);
        let (label, domain) = name.split_at_checked(name.len().checked_sub(self.domain.len())?)?;
        if label.is_empty() || label.contains(&b'.') || !domain.eq_ignore_ascii_case(self.domain.as_bytes()) {
            return None;
        }
        // Of a UUID's spellings those that a label can have (RFC 1123 section 2.1).
        let is_label = label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
        Some(if is_label { TenantId::parse(label) } else { Err(InvalidTenantId) })
    }
}

/// A host without its port (RFC 3986 section 3.2.3), which may be empty.
fn without_port(host: &[u8]) -> &[u8] {
    match host.iter().rposition(|b| *b == b':') {
        Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) => &host[..colon],
        _ => host,
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: &str| {
            Err(InvalidHostPattern(format!(
                "{text:?} is no pattern of hosts: {why}; expected one such as {PLACEHOLDER}.isp.example.com"
            )))
        };
        let Some(domain) = text.strip_prefix(PLACEHOLDER) else { return wrong("{tenant} must be its first label") };
        if domain.contains(PLACEHOLDER) {
            return wrong("{tenant} stands there twice");
        }
        let Some(name) = domain.strip_prefix('.').filter(|name| !name.is_empty()) else {
            return wrong("a dot and a domain must follow {tenant}");
        };
        if name.contains(':') {
            return wrong("ports are not compared: leave it out");
        }
        if name.ends_with('.') {
            return wrong("the dot at its end is not compared: leave it out");
        }
        if !is_host_name(name) || name.parse::<Ipv4Addr>().is_ok() {
            return wrong("its domain is no name");
        }
        if !name.contains('.') && name != LOCALHOST {
            return wrong("its domain must have two labels at least, or be localhost");
        }
        Ok(Self { domain: domain.to_ascii_lowercase().into() })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PLACEHOLDER}{}", self.domain)
    }
}

text_type!(HostPattern, pattern: "^\\{tenant\\}((\\.[A-Za-z0-9_-]+){2,}|\\.localhost)$", examples: ["{tenant}.isp.example.com"]);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";

    #[test]
    fn patterns_are_a_tenant_and_a_domain() {
        for (text, expected) in [
            ("{tenant}.isp.example.com", "{tenant}.isp.example.com"),
            ("{tenant}.Example.COM", "{tenant}.example.com"),
            ("{tenant}.app_1.internal", "{tenant}.app_1.internal"),
            ("{tenant}.localhost", "{tenant}.localhost"),
            ("{tenant}.app.localhost", "{tenant}.app.localhost"),
        ] {
            assert_eq!(text.parse::<HostPattern>().map(|pattern| pattern.to_string()).as_deref(), Ok(expected));
        }
        for text in [
            "",
            "isp.example.com",
            "{tenant}",
            "{tenant}.",
            "{tenant}.com",
            "{tenant}.com.",
            "{tenant}.localhost.",
            "{tenant}.localhost:8080",
            "{tenant}localhost",
            "{tenant}.example.com.",
            "{tenant}.example.com:8080",
            "{tenant}-x.example.com",
            "x-{tenant}.example.com",
            "a.{tenant}.example.com",
            "{tenant}.{tenant}.example.com",
            "{tenant}..example.com",
            "{tenant}.exa mple.com",
            "{tenant}.10.0.0.1",
            "{Tenant}.example.com",
            "{}.example.com",
            "*.example.com",
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_hosts_say() {
        let pattern: HostPattern = "{tenant}.isp.example.com".parse().expect("a pattern");
        let tenant = Some(Ok(ID.parse().expect("a UUID")));
        let (upper, simple) = (ID.to_uppercase(), ID.replace('-', ""));
        for (host, expected) in [
            (format!("{ID}.isp.example.com"), tenant),
            (format!("{ID}.isp.example.com."), tenant),
            (format!("{ID}.isp.example.com:8443"), tenant),
            (format!("{ID}.isp.example.com.:80"), tenant),
            (format!("{ID}.isp.example.com:"), tenant),
            (format!("{upper}.ISP.Example.Com"), tenant),
            (format!("{simple}.isp.example.com"), tenant),
            // It fits, and is no UUID as a label can have it.
            ("www.isp.example.com".to_owned(), Some(Err(InvalidTenantId))),
            (format!("{{{ID}}}.isp.example.com"), Some(Err(InvalidTenantId))),
            (format!("{ID}%00.isp.example.com"), Some(Err(InvalidTenantId))),
            (format!("{ID} .isp.example.com"), Some(Err(InvalidTenantId))),
            (format!("{ID}:80.isp.example.com"), Some(Err(InvalidTenantId))),
            // It does not fit.
            (String::new(), None),
            (ID.to_owned(), None),
            ("isp.example.com".to_owned(), None),
            (".isp.example.com".to_owned(), None),
            (format!("{ID}.example.com"), None),
            (format!("{ID}.isp.example.com.."), None),
            (format!("{ID}.isp.example.com.evil.example"), None),
            (format!("{ID}.xisp.example.com"), None),
            (format!("{ID}isp.example.com"), None),
            (format!("x.{ID}.isp.example.com"), None),
            (format!("{ID}.isp.example.com:80:80"), None),
            (format!("{ID}.isp.example.com:x"), None),
            (format!("{ID}.isp.example.com,{ID}.isp.example.com"), None),
            (format!("[{ID}.isp.example.com]"), None),
        ] {
            assert_eq!(pattern.tenant(host.as_bytes()), expected, "{host}");
        }
    }
}
