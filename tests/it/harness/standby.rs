//! A physical replica of a private Postgres, whose replay can be stopped.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use tokio_postgres::types::PgLsn;

use super::postgres::{Database, Postgres, USER, lay_out_around, programs, run_as_owner};
use super::process::{is_root, run, server_dir};

/// A hot standby that streams from its primary; otherwise a private server like others.
pub(crate) struct Standby {
    server: Postgres,
}

impl Deref for Standby {
    type Target = Postgres;

    fn deref(&self) -> &Postgres {
        &self.server
    }
}

impl DerefMut for Standby {
    fn deref_mut(&mut self) -> &mut Postgres {
        &mut self.server
    }
}

impl Postgres {
    /// A replica of this private server as it is now, which follows it over the Unix socket, past any wire.
    pub(crate) async fn standby(&mut self) -> Standby {
        let mut settings = self.own().settings.clone();
        settings.push(("wal_retrieve_retry_interval".to_owned(), "100ms".to_owned()));
        let dir = server_dir();
        lay_out_around(dir.path());
        let data = dir.path().join("data").display().to_string();
        run(&["mkdir", "-m", "700", &data]);
        if is_root() {
            run(&["chown", &format!("{USER}:"), &data]);
        }
        let mut backup = vec![programs().join("pg_basebackup").display().to_string()];
        let options =
            ["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "--no-password", "-U", USER, "-D", &data];
        backup.extend(options.map(str::to_owned));
        backup.extend(["-h".to_owned(), self.socket_dir().display().to_string()]);
        backup.extend(["-p".to_owned(), self.port().to_string()]);
        run_as_owner(&backup);
        Standby { server: Postgres::start_in(dir, settings).await }
    }

    /// Where the next record of a primary's log will go: a standby that has replayed that far has all there is now, also
    /// what was committed with `synchronous_commit = off`.
    pub(crate) async fn inserted_lsn(&self) -> PgLsn {
        self.lsn("pg_current_wal_insert_lsn()").await
    }

    async fn lsn(&self, function: &str) -> PgLsn {
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        client.query_one(&format!("SELECT {function}"), &[]).await.expect("a row").get(0)
    }
}

impl Standby {
    /// The same database as it is here: its `url_via` takes a wire to this server.
    pub(crate) fn copy_of(&self, database: &Database) -> Database {
        Database { name: database.name().to_owned(), place: self.place.clone(), drop_it: false }
    }

    /// Goes on receiving and stops replaying: queries see nothing newer.
    pub(crate) async fn pause_replay(&self) {
        self.tell("pg_wal_replay_pause()").await;
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        let deadline = Instant::now() + Duration::from_secs(20);
        // It is only asked for at first.
        loop {
            let row = client.query_one("SELECT pg_get_wal_replay_pause_state()", &[]).await.expect("a row");
            if row.get::<_, &str>(0) == "paused" {
                return;
            }
            assert!(Instant::now() < deadline, "the standby is still replaying");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn resume_replay(&self) {
        self.tell("pg_wal_replay_resume()").await;
    }

    /// How far queries here see.
    pub(crate) async fn replayed_lsn(&self) -> PgLsn {
        self.lsn("pg_last_wal_replay_lsn()").await
    }

    /// Waits until everything is seen here that has been written on `primary` so far.
    pub(crate) async fn caught_up_with(&self, primary: &Postgres) {
        let (written, deadline) = (primary.inserted_lsn().await, Instant::now() + Duration::from_secs(20));
        while self.replayed_lsn().await < written {
            assert!(Instant::now() < deadline, "the standby has not replayed {written}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Becomes a primary of its own.
    pub(crate) async fn promote(self) -> Postgres {
        self.tell("pg_promote()").await;
        self.server
    }

    async fn tell(&self, function: &str) {
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        client.query(&format!("SELECT {function}"), &[]).await.unwrap_or_else(|error| panic!("{function}: {error:?}"));
    }
}
