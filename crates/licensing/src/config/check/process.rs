//! Contradictions among sockets, spans of time and numbers.

use std::net::SocketAddr;

use super::Checker;
use crate::config::address::{Address, UpstreamAddress};
use crate::config::node::Step;
use crate::config::quantity::Duration;
use crate::config::{Config, LicenseSource};

impl Checker<'_, '_> {
    pub(super) fn sockets(&mut self) {
        let listen = &self.config.listen;
        if same_socket(&listen.proxy, &listen.ops) {
            self.error(&at!["listen", "ops"], format!("{} is where `listen.proxy` listens already", listen.ops));
        }
        if let Some(admin) = &listen.admin {
            for (other, key) in [(&listen.proxy, "listen.proxy"), (&listen.ops, "listen.ops")] {
                if same_socket(other, admin) {
                    self.error(&at!["listen", "admin"], format!("{admin} is where `{key}` listens already"));
                }
            }
            if !admin.is_local() {
                let message = "other hosts can reach it, and its token travels in clear text: use a loopback address or unix:/path";
                self.warning(&at!["listen", "admin"], message);
            }
        }
        let upstream = &self.config.upstream.address;
        let loops = match (&listen.proxy, upstream) {
            (Address::Unix(own), UpstreamAddress::Unix(theirs)) => own == theirs,
            (Address::Tcp(own), UpstreamAddress::Tcp { host, port }) => {
                let theirs = if host == "localhost" { Ok(own.ip()) } else { host.parse() };
                theirs.is_ok_and(|ip| {
                    let reached = ip == own.ip() || (own.ip().is_unspecified() && ip.is_loopback());
                    reached && own.port() == *port
                })
            }
            _ => false,
        };
        if loops {
            let message = "this is where the proxy itself listens: expected the backend's address";
            self.error(&at!["upstream", "address"], message);
        }
    }

    /// Spans of time that can't be zero, and pairs that must be in order.
    pub(super) fn spans(&mut self) {
        let Config { upstream, licenses, limits, shutdown, .. } = self.config;
        let postgres_idle = match &licenses.source {
            LicenseSource::Postgres(postgres) => postgres.idle_timeout,
            LicenseSource::File(_) => Duration::from_secs(1),
        };
        let zero_is_wrong: [(&[Step<'_>], Duration); 13] = [
            (&at!["upstream", "connect_timeout"], upstream.connect_timeout),
            (&at!["upstream", "response_timeout"], upstream.response_timeout),
            (&at!["upstream", "idle_timeout"], upstream.idle_timeout),
            (&at!["licenses", "ttl"], licenses.ttl),
            (&at!["licenses", "revalidate_after"], licenses.revalidate_after),
            (&at!["licenses", "lookup_deadline"], licenses.lookup_deadline),
            (&at!["licenses", "source", "postgres", "idle_timeout"], postgres_idle),
            (&at!["limits", "drain_timeout"], limits.drain_timeout),
            (&at!["limits", "header_timeout"], limits.header_timeout),
            (&at!["limits", "idle_timeout"], limits.idle_timeout),
            (&at!["limits", "body_timeout"], limits.body_timeout),
            (&at!["limits", "write_timeout"], limits.write_timeout),
            (&at!["shutdown", "timeout"], shutdown.timeout),
        ];
        for (path, span) in zero_is_wrong {
            if span.is_zero() {
                self.error(path, "must be longer than zero");
            }
        }
        if !shutdown.timeout.is_zero() && shutdown.drain >= shutdown.timeout {
            let message = format!("must be shorter than `shutdown.timeout`, which is {}", shutdown.timeout);
            self.error(&at!["shutdown", "drain"], message);
        }
        if shutdown.timeout > Duration::from_secs(25) {
            let message = "Kubernetes kills a pod 30s after the signal: make sure that it waits longer";
            self.warning(&at!["shutdown", "timeout"], message);
        }
        if licenses.lookup_deadline > Duration::from_secs(5) {
            let message = "requests wait for so long while a store hangs: 200ms is usual";
            self.warning(&at!["licenses", "lookup_deadline"], message);
        }
        if licenses.revalidate_after > licenses.ttl {
            let message = format!("has no effect beyond `licenses.ttl`, which is {}", licenses.ttl);
            self.warning(&at!["licenses", "revalidate_after"], message);
        }
    }

    pub(super) fn numbers(&mut self) {
        let Config { listen, upstream, limits, licenses, .. } = self.config;
        let mib = 1 << 20;
        let connections = match &licenses.source {
            LicenseSource::Postgres(postgres) => u64::from(postgres.max_connections),
            LicenseSource::File(_) => 1,
        };
        let per_tenant = limits.requests_in_flight_per_tenant();
        let in_flight = u64::from(limits.requests_in_flight);
        let any = u64::from(u32::MAX);
        let ranges: [(&[Step<'_>], u64, u64, u64, &str); 11] = [
            (&at!["listen", "workers"], listen.workers.map_or(1, u64::from), 1, 1024, "1 to 1024"),
            (&at!["upstream", "pool_size"], upstream.pool_size.into(), 1, 65_536, "1 to 65536"),
            (&at!["upstream", "retries"], upstream.retries.into(), 0, 10, "0 to 10"),
            (&at!["limits", "headers"], limits.headers.into(), 1, 256, "1 to 256"),
            (&at!["limits", "header_bytes"], limits.header_bytes.bytes(), 1 << 10, mib, "1KiB to 1MiB"),
            (&at!["limits", "uri_bytes"], limits.uri_bytes.bytes(), 256, mib, "256B to 1MiB"),
            (&at!["limits", "connections"], limits.connections.into(), 1, any, "1 upwards"),
            (&at!["limits", "requests_in_flight"], in_flight, 1, any, "1 upwards"),
            (&at!["limits", "requests_in_flight_per_tenant"], per_tenant.into(), 1, any, "1 upwards"),
            (&at!["licenses", "memory_bytes"], licenses.memory_bytes.bytes(), mib, 1 << 40, "1MiB to 1024GiB"),
            (&at!["licenses", "source", "postgres", "max_connections"], connections, 1, 1_000, "1 to 1000"),
        ];
        for (path, value, least, most, range) in ranges {
            if !(least..=most).contains(&value) {
                self.error(path, format!("must be from {range}"));
            }
        }
        if limits.requests_in_flight_per_tenant.is_some_and(|share| share > limits.requests_in_flight) {
            let message =
                format!("has no effect beyond `limits.requests_in_flight`, which is {}", limits.requests_in_flight);
            self.warning(&at!["limits", "requests_in_flight_per_tenant"], message);
        }
    }
}

fn same_socket(a: &Address, b: &Address) -> bool {
    let overlap =
        |a: &SocketAddr, b: &SocketAddr| a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
    match (a, b) {
        (Address::Tcp(a), Address::Tcp(b)) => a.port() == b.port() && overlap(a, b),
        (Address::Unix(a), Address::Unix(b)) => a == b,
        _ => false,
    }
}
