//! The sections about the process and its sockets: `listen`, `upstream`, `limits`, `shutdown`, `log`.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::address::{Address, UpstreamAddress};
use super::quantity::{ByteSize, Duration};

/// Where this process listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// The proxy itself: IP:PORT or unix:/path. Default: 0.0.0.0:8080.
    pub proxy: Address,
    /// /livez, /readyz and /metrics, for the kubelet and Prometheus. Default: 0.0.0.0:9464.
    pub ops: Address,
    /// The admin API, for operators alone: a loopback address or unix:/path. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin: Option<Address>,
    /// Threads that serve requests. Default: one per core.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub workers: Option<u16>,
}

/// The backend that requests are forwarded to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// HOST:PORT or unix:/path. A Unix socket is about a quarter cheaper and reachable by nobody else.
    pub address: UpstreamAddress,
    /// How long a connection may take to be made. Default: 1s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Duration,
    /// How long the backend may take to send its response headers, and then between two pieces of the body. Default: 60s.
    #[serde(default = "response_timeout")]
    pub response_timeout: Duration,
    /// How long an idle connection is kept; below the backend's own keep-alive (uvicorn's is 5s). Default: 3s.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Duration,
    /// How many idle connections are kept. Default: 512.
    #[serde(default = "pool_size")]
    pub pool_size: u32,
    /// How often a request is tried again that could not be sent, or that is idempotent. Default: 1.
    #[serde(default = "retries")]
    #[schemars(range(max = 10))]
    pub retries: u8,
}

/// What a request may be at most, how long a client may take, and how many there may be at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// All request headers together; 431 beyond. Default: 64KiB.
    pub header_bytes: ByteSize,
    /// The number of request headers; 431 beyond. Default: 100.
    #[schemars(range(min = 1, max = 256))]
    pub headers: u16,
    /// The request target; 414 beyond. Default: 16KiB.
    pub uri_bytes: ByteSize,
    /// How much of a refused upload is read, so that the client reads the answer and not a broken pipe. Default: 64MiB.
    pub drain_bytes: ByteSize,
    /// For how long a refused upload is read. Default: 10s.
    pub drain_timeout: Duration,
    /// A request's body, in whatever coding it comes; 413 beyond. Default: no limit, the backend decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<ByteSize>,
    /// How long a client may take to send a request's headers, from their first byte to their last; 408 beyond.
    /// Default: 10s.
    pub header_timeout: Duration,
    /// How long a connection is kept on which no request is under way. Default: 60s.
    pub idle_timeout: Duration,
    /// How long a client may pause within a request's body; 408 beyond. Default: 60s.
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent to it; its connection is closed then. Default: 60s.
    pub write_timeout: Duration,
    /// The number of connections, WebSockets included; 503 beyond. Default: 10240.
    #[schemars(range(min = 1))]
    pub connections: u32,
    /// The number of requests that are served at once; 503 beyond. Default: 4096.
    #[schemars(range(min = 1))]
    pub requests_in_flight: u32,
    /// How many of them may be one tenant's, or of no tenant; 503 beyond. Default: half of requests_in_flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_in_flight_per_tenant: Option<u32>,
}

/// How the process ends on SIGTERM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long requests are still accepted after readiness has failed, while load balancers take notice. Default: 5s.
    pub drain: Duration,
    /// When the process ends at the latest, counted from the signal. Default: 20s.
    pub timeout: Duration,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The least severe messages that are written. Default: info.
    pub level: LogLevel,
    /// Whether each request is written, as one JSON line. Default: true.
    pub access: bool,
    /// Whether those lines hold the raw request target, query string included. Queries may hold secrets. Default: false.
    pub raw_target: bool,
}

/// How severe a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What may need one.
    Warn,
    /// What changed.
    Info,
    /// What happened.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As configuration and log filters write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        let everywhere = |port| Address::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)));
        Self { proxy: everywhere(8080), ops: everywhere(9464), admin: None, workers: None }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: ByteSize::from_kib(64),
            headers: 100,
            uri_bytes: ByteSize::from_kib(16),
            drain_bytes: ByteSize::from_mib(64),
            drain_timeout: Duration::from_secs(10),
            body_bytes: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(60),
            connections: 10_240,
            requests_in_flight: 4_096,
            requests_in_flight_per_tenant: None,
        }
    }
}

impl Limits {
    /// How many requests of one tenant are served at once. By default no tenant alone can use up what there is for all.
    pub fn requests_in_flight_per_tenant(&self) -> u32 {
        self.requests_in_flight_per_tenant.unwrap_or(self.requests_in_flight.div_ceil(2))
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { drain: Duration::from_secs(5), timeout: Duration::from_secs(20) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LogLevel::Info, access: true, raw_target: false }
    }
}

fn connect_timeout() -> Duration {
    Duration::from_secs(1)
}

fn response_timeout() -> Duration {
    Duration::from_secs(60)
}

fn idle_timeout() -> Duration {
    Duration::from_secs(3)
}

fn pool_size() -> u32 {
    512
}

fn retries() -> u8 {
    1
}
