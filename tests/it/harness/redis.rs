//! A private Redis for each test: TCP, Unix socket, TLS and password by option; gone when the test process is.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Client, TlsCertificates};
use tempfile::TempDir;

use super::background;
use super::process::{OnOrphaned, Process, free_port, server_dir};
use super::tls::Certificates;
use super::wire::Wire;

/// A running `redis-server` without persistence.
pub(crate) struct Redis {
    process: Process,
    options: RedisOptions,
    port: u16,
    tls: Option<(u16, Certificates)>,
    dir: TempDir,
}

/// How a server differs from the plain one.
#[derive(Clone, Default)]
pub(crate) struct RedisOptions {
    /// Also listens with TLS, with a certificate for `localhost`.
    pub(crate) tls: bool,
    /// The password of the default user.
    pub(crate) password: Option<&'static str>,
    /// More directives as on the command line: `["--maxmemory", "2mb"]`.
    pub(crate) arguments: Vec<&'static str>,
}

impl Redis {
    pub(crate) async fn start() -> Redis {
        Redis::start_with(RedisOptions::default()).await
    }

    pub(crate) async fn start_with(options: RedisOptions) -> Redis {
        let dir = server_dir();
        let certificates = options.tls.then(|| Certificates::write(dir.path()));
        for _ in 0..5 {
            let port = free_port();
            let tls = certificates.clone().map(|certificates| (free_port(), certificates));
            let mut process = start_server(&dir, &options, port, tls.as_ref());
            if wait_until_up(&mut process, &url(port, &options)).await {
                return Redis { process, options, port, tls, dir };
            }
            let printed = process.stdout() + &process.stderr();
            assert!(printed.contains("Address already in use"), "redis-server does not start:\n{printed}");
        }
        panic!("no free port for Redis in five attempts");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `redis://[:password@]127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        url(self.port, &self.options)
    }

    /// Through a wire to the server.
    pub(crate) fn url_via(&self, wire: &Wire) -> String {
        url(wire.port(), &self.options)
    }

    /// `rediss://[:password@]localhost:PORT`, the name in the certificate.
    pub(crate) fn tls_url(&self) -> String {
        let (port, _) = self.tls.as_ref().expect("started with TLS");
        format!("rediss://{}localhost:{port}", credentials(&self.options))
    }

    /// The authority to trust over TLS.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.tls.as_ref().expect("started with TLS").1.ca.clone()
    }

    /// `unix:///path[?pass=password]`
    pub(crate) fn unix_url(&self) -> String {
        let query = self.options.password.map(|password| format!("?pass={password}")).unwrap_or_default();
        format!("unix://{}{query}", self.dir.path().join("redis.sock").display())
    }

    /// A wire to this server over TCP: see [`Wire`].
    pub(crate) fn wire(&self) -> Wire {
        Wire::redis(self.port)
    }

    /// A connection of the test's own, past any wire.
    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        connect(&self.url(), None).await.expect("the server accepts connections")
    }

    /// A connection over TLS that trusts the server's own authority only.
    pub(crate) async fn connect_with_tls(&self) -> MultiplexedConnection {
        let ca = std::fs::read(self.ca_file()).expect("the authority's certificate");
        connect(&self.tls_url(), Some(ca)).await.expect("the server accepts TLS connections")
    }

    /// Stops the server with SIGSTOP: sockets stay open and nobody answers.
    pub(crate) fn pause(&mut self) {
        self.process.signal("STOP");
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&mut self) {
        self.process.signal("CONT");
    }

    /// Ends the server at once: connections break, later ones are refused.
    pub(crate) fn kill(&mut self) {
        self.process.stop("KILL", Duration::from_secs(5));
    }

    /// Starts the server again on the same ports, empty.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.process = start_server(&self.dir, &self.options, self.port, self.tls.as_ref());
        let up = wait_until_up(&mut self.process, &url(self.port, &self.options)).await;
        assert!(up, "redis-server does not start again:\n{}", self.process.stdout());
    }
}

fn credentials(options: &RedisOptions) -> String {
    options.password.map(|password| format!(":{password}@")).unwrap_or_default()
}

fn url(port: u16, options: &RedisOptions) -> String {
    format!("redis://{}127.0.0.1:{port}", credentials(options))
}

/// Waits until the server at `url` answers and is `process`, not another one on the same port.
pub(super) async fn wait_until_up(process: &mut Process, url: &str) -> bool {
    let process_id = format!("process_id:{}", process.pid());
    let deadline = Instant::now() + Duration::from_secs(20);
    while process.exited().is_none() && Instant::now() < deadline {
        if let Ok(mut connection) = connect(url, None).await {
            let info: redis::RedisResult<String> = redis::cmd("INFO").arg("server").query_async(&mut connection).await;
            if info.is_ok_and(|info| info.lines().any(|line| line == process_id)) {
                return true;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

pub(super) async fn connect(url: &str, ca: Option<Vec<u8>>) -> redis::RedisResult<MultiplexedConnection> {
    let client = match ca {
        Some(_) => Client::build_with_tls(url, TlsCertificates { client_tls: None, root_cert: ca })?,
        None => Client::open(url)?,
    };
    background()
        .spawn(async move { client.get_multiplexed_async_connection().await })
        .await
        .expect("connecting does not panic")
}

fn start_server(dir: &TempDir, options: &RedisOptions, port: u16, tls: Option<&(u16, Certificates)>) -> Process {
    let dir = dir.path();
    let text = |path: &std::path::Path| path.display().to_string();
    let mut command: Vec<String> =
        ["redis-server", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"].map(str::to_owned).to_vec();
    let mut directive = |name: &str, value: String| command.extend([format!("--{name}"), value]);
    directive("port", port.to_string());
    directive("unixsocket", text(&dir.join("redis.sock")));
    directive("unixsocketperm", "777".to_owned());
    directive("dir", text(dir));
    if let Some(password) = options.password {
        directive("requirepass", password.to_owned());
    }
    if let Some((port, certificates)) = tls {
        directive("tls-port", port.to_string());
        directive("tls-cert-file", text(&certificates.cert));
        directive("tls-key-file", text(&certificates.key));
        directive("tls-ca-cert-file", text(&certificates.ca));
        directive("tls-auth-clients", "no".to_owned());
    }
    command.extend(options.arguments.iter().map(|argument| (*argument).to_owned()));
    require_program();
    Process::start("redis", dir, &command, &[], OnOrphaned::Kill, None)
}

fn require_program() {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|dir| dir.join("redis-server").is_file());
    assert!(found, "redis-server is not installed (not in PATH). On Debian: apt-get install redis-server");
}
