//! Origins of pages (RFC 6454), as browsers write them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::address::is_host_name;
use super::text_type::text_type;

/// An origin, `https://app.example.com` or `http://localhost:3000`, or `*` for every one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin(Arc<str>);

/// Why a text is no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidOrigin(String);

impl Origin {
    /// The origin as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for every origin.
    pub fn is_any(&self) -> bool {
        &*self.0 == "*"
    }
}

impl FromStr for Origin {
    type Err = InvalidOrigin;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: &str| {
            Err(InvalidOrigin(format!("{text:?} is no origin: {why}; expected one such as https://app.example.com")))
        };
        if text == "*" {
            return Ok(Self(text.into()));
        }
        if text == "null" {
            return wrong("it is what many pages say that have nothing else in common");
        }
        let Some((scheme, authority)) = text.split_once("://") else { return wrong("the scheme is missing") };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return wrong("browsers write it in lower case");
        }
        let is_scheme = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(is_scheme) {
            return wrong("that is no scheme");
        }
        if authority.contains(['/', '?', '#', '@']) {
            return wrong("nothing stands behind host and port");
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if !ipv6.map_or(is_host_name(host), |ip| ip.parse::<std::net::Ipv6Addr>().is_ok()) {
            return wrong("that is no host");
        }
        match (scheme, port) {
            ("http", Some("80")) | ("https", Some("443")) => wrong("browsers leave out the usual port"),
            (_, Some(port)) if !port.parse().is_ok_and(|number: u16| number > 0 && number.to_string() == port) => {
                wrong("its port is no number from 1 to 65535")
            }
            _ => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

text_type!(Origin, pattern: "^(\\*|[a-z][a-z0-9+.-]*://[^/?#@]+)$",
    examples: ["https://app.example.com", "http://localhost:3000"]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_write_them() {
        for text in [
            "https://app.example.com",
            "http://localhost:3000",
            "http://127.0.0.1:8080",
            "https://[::1]",
            "https://[::1]:8443",
            "http://x:443",
            "capacitor://localhost",
            "*",
        ] {
            assert_eq!(text.parse::<Origin>().map(|origin| origin.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "null",
            "app.example.com",
            "https://",
            "https://App.example.com",
            "https://app.example.com/",
            "https://app.example.com/x",
            "https://user@app.example.com",
            "https://*.example.com",
            "https://app.example.com:443",
            "http://app.example.com:80",
            "http://x:0",
            "http://x:080",
            "http://x:",
            "http://x:65536",
            "https://[::1",
            "https://[x]",
            "1http://x",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
