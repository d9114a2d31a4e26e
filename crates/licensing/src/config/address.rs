//! Where to listen, where the upstream is, and which networks are trusted.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::text_type::text_type;

/// The longest path that the address of a Unix socket can hold, in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// An address to listen on: an IP address and a port, or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// An address to connect to: a host and a port, or `unix:/path`. A DNS name is resolved by who connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamAddress {
    /// A DNS name or an IP address (IPv6 without brackets), and a port.
    Tcp {
        /// The DNS name or IP address.
        host: String,
        /// The port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// A network, as `10.0.0.0/8`; a plain address is the network of that address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAddress(String);

impl Address {
    /// Whether only this host can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl Network {
    /// The network itself.
    pub const fn get(&self) -> IpNet {
        self.0
    }

    /// Whether `address` is in it. An IPv4 address that came over an IPv6 socket (`::ffff:10.0.0.1`) is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let wrong =
            || InvalidAddress(format!("{text:?} is no address: expected IP:PORT, such as 0.0.0.0:8080, or unix:/path"));
        let address = text.parse::<SocketAddr>().map_err(|_| wrong())?;
        port(address.port(), text)?;
        Ok(Self::Tcp(address))
    }
}

impl FromStr for UpstreamAddress {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path).map(Self::Unix);
        }
        let wrong = |why: &str| {
            InvalidAddress(format!(
                "{text:?} is no address: {why}; expected HOST:PORT, such as 127.0.0.1:8000, or unix:/path"
            ))
        };
        if text.contains("://") {
            return Err(wrong("it is a URL"));
        }
        let (host, number) = text.rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
        let number = number.parse().map_err(|_| wrong("its port is no number from 1 to 65535"))?;
        port(number, text)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']').unwrap_or_default()) {
            Some(ip) => {
                ip.parse::<Ipv6Addr>().map_err(|_| wrong("what is in brackets is no IPv6 address"))?.to_string()
            }
            None if is_host_name(host) => host.to_ascii_lowercase(),
            None => {
                return Err(wrong("its host is neither a name nor an IP address (IPv6 goes in brackets)"));
            }
        };
        Ok(Self::Tcp { host, port: number })
    }
}

impl FromStr for Network {
    type Err = InvalidAddress;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(|net| Self(unmapped(net))).map_err(|_| {
            InvalidAddress(format!("{text:?} is no network: expected 10.0.0.0/8, fd00::/8 or one IP address"))
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

text_type!(Address, pattern: "^(unix:/.+|[0-9.]+:[0-9]+|\\[[0-9a-fA-F:.]+\\]:[0-9]+)$",
    examples: ["0.0.0.0:8080", "[::]:8080", "unix:/run/license-proxy/proxy.sock"]);
text_type!(UpstreamAddress, pattern: "^(unix:/.+|[A-Za-z0-9._-]+:[0-9]+|\\[[0-9a-fA-F:.]+\\]:[0-9]+)$",
    examples: ["127.0.0.1:8000", "backend:8000", "unix:/run/app/app.sock"]);
text_type!(Network, pattern: "^([0-9.]+|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)(/[0-9]+)?$",
    examples: ["10.0.0.0/8", "fd00::/8", "127.0.0.1"]);

/// A network of IPv4 addresses that is written as one of IPv6 (`::ffff:10.0.0.0/104`, RFC 4291 section 2.5.5.2) is that of
/// IPv4, as its addresses are.
fn unmapped(net: IpNet) -> IpNet {
    let IpNet::V6(mapped) = net else { return net };
    let v4 = mapped.addr().to_ipv4_mapped().zip(mapped.prefix_len().checked_sub(96));
    v4.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

fn port(port: u16, text: &str) -> Result<(), InvalidAddress> {
    match port {
        0 => Err(InvalidAddress(format!("{text:?} has port 0: expected a port from 1 to 65535"))),
        _ => Ok(()),
    }
}

fn socket_path(path: &str) -> Result<PathBuf, InvalidAddress> {
    if !Path::new(path).is_absolute() {
        return Err(InvalidAddress(format!("the path of a Unix socket must be absolute, such as unix:/run/{path}")));
    }
    if path.len() > MAX_SOCKET_PATH_BYTES || path.contains('\0') {
        let length = path.len();
        return Err(InvalidAddress(format!(
            "the path of a Unix socket can have {MAX_SOCKET_PATH_BYTES} bytes, this one has {length}"
        )));
    }
    Ok(path.into())
}

/// A DNS name or an IPv4 address (RFC 1123 section 2.1; `_` occurs in container networks). Only digits and dots is an
/// address, and must be one.
pub(super) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let name = host.strip_suffix('.').unwrap_or(host);
    if numeric { host.parse::<std::net::Ipv4Addr>().is_ok() } else { host.len() <= 253 && name.split('.').all(label) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["0.0.0.0:8080", "[::1]:9090", "unix:/run/a b/proxy.sock"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "8080", ":8080", "localhost:8080", "0.0.0.0:0", "0.0.0.0:70000", "unix:", "unix:run/x"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert!(format!("unix:/{}", "x".repeat(107)).parse::<Address>().is_err());
    }

    #[test]
    fn upstreams_may_have_names() {
        for text in ["127.0.0.1:8000", "[::1]:8000", "backend:8000", "my_app.prod.svc.:80", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<UpstreamAddress>().map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "backend",
            "backend:",
            "backend:x",
            "http://backend:80",
            "::1:80",
            "[x]:80",
            "1.2.3:80",
            "a..b:80",
            "b:0",
            "a/b:80",
        ] {
            assert!(text.parse::<UpstreamAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_plain_address_is_a_network_of_one() {
        let network = |text: &str| text.parse::<Network>().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(network("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(network("::1").to_string(), "::1/128");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap_or_else(|error| panic!("{error}"));
        assert!(network("10.0.0.0/8").contains(ip("10.200.0.1")));
        assert!(network("10.0.0.0/8").contains(ip("::ffff:10.200.0.1")));
        assert!(!network("10.0.0.0/8").contains(ip("11.0.0.1")));
        assert!(network("::ffff:10.0.0.0/104").contains(ip("10.200.0.1")));
        assert!(!network("::ffff:10.0.0.0/104").contains(ip("11.0.0.1")) && !network("::/0").contains(ip("10.0.0.1")));
        assert!("10.0.0.0/33".parse::<Network>().is_err() && "localhost".parse::<Network>().is_err());
    }
}
