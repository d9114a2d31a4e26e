//! A Redis that fails over: a master, its replica, and three sentinels that watch them.

use std::time::{Duration, Instant};

use redis::FromRedisValue;
use tempfile::TempDir;

use super::process::{OnOrphaned, Process, free_port, server_dir};
use super::redis::{Redis, RedisOptions, connect, wait_until_up};

/// What the sentinels call the master.
pub(crate) const MASTER_NAME: &str = "licenses";

/// How long an agreement may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Milliseconds. Sentinels look and talk more often than usual; a busy machine does not make them distrust their clocks for
/// half a minute; and they ping well within the 500 ms after which silence is a death, or else each new master is nearly
/// dead before its first ping, and they fail over to and fro. Redis before 7.0 knows no such settings.
const HASTE: &[&str] = &[
    "PING-PERIOD",
    "100",
    "INFO-PERIOD",
    "500",
    "PUBLISH-PERIOD",
    "300",
    "TILT-TRIGGER",
    "20000",
    "TILT-PERIOD",
    "2000",
];

/// The user that replicas come as, so that they can be locked out.
const REPLICATION: &[&str] = &[
    "--user",
    "replica",
    "on",
    ">replica-word",
    "+psync",
    "+replconf",
    "+ping",
    "--masteruser",
    "replica",
    "--masterauth",
    "replica-word",
    "--repl-diskless-sync-delay",
    "0",
];

/// Two servers, of which the sentinels agree that one is the master.
pub(crate) struct Sentinel {
    nodes: Vec<Redis>,
    sentinels: Vec<Watcher>,
    /// The master that the sentinels last agreed on, as far as we know.
    master: u16,
}

struct Watcher {
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Sentinel {
    pub(crate) async fn start() -> Sentinel {
        Sentinel::start_with(&[]).await
    }

    /// With more directives for both servers: `["--maxmemory", "2mb"]`.
    pub(crate) async fn start_with(arguments: &[&'static str]) -> Sentinel {
        let options = RedisOptions { arguments: [REPLICATION, arguments].concat(), ..RedisOptions::default() };
        let nodes = vec![Redis::start_with(options.clone()).await, Redis::start_with(options).await];
        let master = nodes[0].port();
        let _: String = ask(nodes[1].port(), &["REPLICAOF", "127.0.0.1", &master.to_string()]).await.expect("OK");
        let deadline = Instant::now() + LIMIT;
        while !info(nodes[1].port(), "replication").await.contains("master_link_status:up") {
            assert!(Instant::now() < deadline, "the replica has no link to its master");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(Watcher::start(master).await);
        }
        let all = Sentinel { nodes, sentinels, master };
        all.agreed("the sentinels know each other and the replica", async |port| {
            let info = info(port, "sentinel").await;
            info.contains("status=ok") && info.contains("slaves=1,sentinels=3")
        })
        .await;
        all
    }

    /// Where the sentinels are asked for [`MASTER_NAME`].
    pub(crate) fn sentinel_ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.port).collect()
    }

    /// The master's port as the sentinels tell it now; panics when two of them differ.
    pub(crate) async fn master_port(&self) -> u16 {
        let mut told = Vec::new();
        for sentinel in &self.sentinels {
            told.push(told_by(sentinel.port).await.expect("a running sentinel"));
        }
        told.dedup();
        assert_eq!(told.len(), 1, "the sentinels do not agree");
        told[0]
    }

    /// The server that was the master when the sentinels were last asked to agree: at the start, and by
    /// [`Sentinel::wait_for_failover`].
    pub(crate) fn master(&mut self) -> &mut Redis {
        let master = self.master;
        self.nodes.iter_mut().find(|node| node.port() == master).expect("one of the two")
    }

    /// The other one.
    pub(crate) fn replica(&mut self) -> &mut Redis {
        let master = self.master;
        self.nodes.iter_mut().find(|node| node.port() != master).expect("one of the two")
    }

    /// Locks the replica out: what is written to the master from now on is lost by a failover.
    ///
    /// The sentinels promote a replica only if it was linked not long before: kill the master within four seconds.
    pub(crate) async fn pause_replication(&self) {
        let _: String = ask(self.master, &["ACL", "SETUSER", "replica", "off"]).await.expect("OK");
        let _: i64 = ask(self.master, &["CLIENT", "KILL", "TYPE", "replica"]).await.expect("a number");
    }

    pub(crate) async fn resume_replication(&self) {
        let _: String = ask(self.master, &["ACL", "SETUSER", "replica", "on"]).await.expect("OK");
    }

    /// Waits until all sentinels tell of another master than before, and it is one; returns its port.
    pub(crate) async fn wait_for_failover(&mut self) -> u16 {
        let (before, after) = (self.master, self.replica().port());
        let what = format!("a failover from {before} to {after}");
        self.agreed(&what, async |sentinel| told_by(sentinel).await.is_ok_and(|port| port == after)).await;
        let deadline = Instant::now() + LIMIT;
        while !info(after, "replication").await.contains("role:master") {
            assert!(Instant::now() < deadline, "{after} is no master");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.master = after;
        after
    }

    /// Waits until the other server, restarted or let go on after a failover, has been made a replica of the master.
    pub(crate) async fn wait_for_replica(&mut self) {
        let (replica, deadline) = (self.replica().port(), Instant::now() + LIMIT);
        loop {
            let info = info(replica, "replication").await;
            if info.contains("role:slave") && info.contains("master_link_status:up") {
                return;
            }
            assert!(Instant::now() < deadline, "{replica} has not become a replica:\n{info}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn logs(&self) -> String {
        let log = |sentinel: &Watcher| format!("--- sentinel {} ---\n{}", sentinel.port, sentinel.process.stdout());
        self.sentinels.iter().map(log).collect()
    }

    async fn agreed(&self, what: &str, says: impl AsyncFn(u16) -> bool) {
        let deadline = Instant::now() + LIMIT;
        for sentinel in &self.sentinels {
            while !says(sentinel.port).await {
                assert!(Instant::now() < deadline, "not in {LIMIT:?}: {what}\n{}", self.logs());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

impl Watcher {
    async fn start(master: u16) -> Watcher {
        for _ in 0..5 {
            let (dir, port) = (server_dir(), free_port());
            let config = dir.path().join("sentinel.conf");
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER_NAME} 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds {MASTER_NAME} 500\nsentinel failover-timeout {MASTER_NAME} 2000\n\
                 sentinel parallel-syncs {MASTER_NAME} 1\n",
                dir.path().display()
            );
            std::fs::write(&config, text).expect("the directory is writable");
            let command = ["redis-server", &config.display().to_string(), "--sentinel"].map(str::to_owned);
            let mut process = Process::start("sentinel", dir.path(), &command, &[], OnOrphaned::Kill, None);
            if wait_until_up(&mut process, &format!("redis://127.0.0.1:{port}")).await {
                let _: redis::RedisResult<String> = ask(port, &[&["SENTINEL", "DEBUG"], HASTE].concat()).await;
                return Watcher { process, port, _dir: dir };
            }
            let printed = process.stdout() + &process.stderr();
            assert!(printed.contains("Address already in use"), "the sentinel does not start:\n{printed}");
        }
        panic!("no free port for a sentinel in five attempts");
    }
}

async fn told_by(sentinel: u16) -> redis::RedisResult<u16> {
    let told: (String, u16) = ask(sentinel, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME]).await?;
    Ok(told.1)
}

/// Empty when nobody answers.
async fn info(port: u16, section: &str) -> String {
    ask(port, &["INFO", section]).await.unwrap_or_default()
}

async fn ask<T: FromRedisValue>(port: u16, words: &[&str]) -> redis::RedisResult<T> {
    let mut connection = connect(&format!("redis://127.0.0.1:{port}"), None).await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
}
