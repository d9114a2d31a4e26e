//! PgBouncer in transaction mode: what many platforms put between a program and Postgres.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio_postgres::NoTls;

use super::background;
use super::postgres::{Database, PASSWORD, USER};
use super::process::{OnOrphaned, Process, free_port, is_root, server_dir};
use super::wire::Wire;

/// A running `pgbouncer` in front of one database; it lends a server's connection for a transaction at a time.
pub(crate) struct Pooler {
    process: Process,
    port: u16,
    dir: TempDir,
}

impl Pooler {
    /// In front of this database's server, with at most `pool_size` connections to it.
    pub(crate) async fn start(database: &Database, pool_size: usize) -> Pooler {
        for _ in 0..5 {
            let (dir, port) = (server_dir(), free_port());
            let text = format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
                 default_pool_size = {pool_size}\nmax_client_conn = 500\nserver_login_retry = 1\n\
                 ignore_startup_parameters = extra_float_digits,options\n",
                database.place.port,
                dir.path().join("users.txt").display(),
            );
            for (name, text) in [("pgbouncer.ini", text), ("users.txt", format!("\"{USER}\" \"{PASSWORD}\"\n"))] {
                let path = dir.path().join(name);
                std::fs::write(&path, text).expect("the directory is writable");
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("it is our file");
            }
            let mut pooler = Pooler { process: start_program(&dir), port, dir };
            if pooler.wait_until_up(database).await {
                return pooler;
            }
            let printed = pooler.process.stderr();
            assert!(printed.contains("Address already in use"), "pgbouncer does not start:\n{printed}");
        }
        panic!("no free port for pgbouncer in five attempts");
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Through the pooler to a database of the server.
    pub(crate) fn url(&self, database: &Database) -> String {
        database.url_at("127.0.0.1", self.port)
    }

    /// A wire to the pooler: see [`Database::url_via`].
    pub(crate) fn wire(&self) -> Wire {
        Wire::postgres(self.port)
    }

    /// Stops the pooler with SIGSTOP: sockets stay open and nobody answers.
    pub(crate) fn pause(&mut self) {
        self.process.signal("STOP");
    }

    /// Lets a paused pooler go on.
    pub(crate) fn resume(&mut self) {
        self.process.signal("CONT");
    }

    /// Ends the pooler at once: connections break, later ones are refused.
    pub(crate) fn kill(&mut self) {
        self.process.stop("KILL", Duration::from_secs(5));
    }

    /// Starts the pooler again on the same port.
    pub(crate) async fn restart(&mut self, database: &Database) {
        self.kill();
        self.process = start_program(&self.dir);
        assert!(self.wait_until_up(database).await, "pgbouncer does not start again:\n{}", self.process.stderr());
    }

    async fn wait_until_up(&mut self, database: &Database) -> bool {
        let (url, deadline) = (self.url(database), Instant::now() + Duration::from_secs(20));
        while self.process.exited().is_none() && Instant::now() < deadline {
            let url = url.clone();
            let asked = background().spawn(async move {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
                tokio::spawn(connection);
                client.simple_query("SELECT 1").await
            });
            if asked.await.expect("asking does not panic").is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

fn start_program(dir: &TempDir) -> Process {
    let config = dir.path().join("pgbouncer.ini").display().to_string();
    let command = [program().display().to_string(), config];
    // It refuses to run as root.
    Process::start("pgbouncer", dir.path(), &command, &[], OnOrphaned::Kill, is_root().then_some(USER))
}

/// Debian keeps it where only root's PATH leads.
fn program() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs = std::env::split_paths(&paths).chain([PathBuf::from("/usr/sbin")]);
    let found = dirs.find_map(|dir| Some(dir.join("pgbouncer")).filter(|program| program.is_file()));
    found.expect("pgbouncer is not installed (not in PATH or /usr/sbin). On Debian: apt-get install pgbouncer")
}
