//! Real Postgres servers: one shared by all tests of a run, private ones for tests that kill, pause or configure theirs.
//!
//! **The shared server.** Each test is a process of its own, so no test can own the server. The first one starts
//! `postgres_supervisor.sh`, detached, with the server as its child. Every test holds a shared `flock` until it ends, and
//! the kernel releases it whatever ended the test; the supervisor stops the server and removes its files when nobody has
//! held the lock for twenty seconds. Should the supervisor itself be killed, the server gets SIGQUIT through its
//! parent-death signal. So nothing outlives a run, SIGKILL included, and runs that follow each other share one server.
//!
//! **Private servers** are children of the test process with a parent-death signal.
//!
//! `initdb` runs once and its result is copied. Servers listen on 127.0.0.1 (password, TLS offered) and on a Unix socket
//! (trusted), and run as user `postgres` when the tests run as root, since Postgres refuses root.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel as bounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};
use uuid::Uuid;

use super::background;
use super::process::{OnOrphaned, Process, change_to, free_port, is_root, run, send_signal, server_dir};
use super::tls::Certificates;
use super::wire::Wire;

/// The superuser of every test server, and its password over TCP: a word to search outputs for.
pub(crate) const USER: &str = "postgres";
pub(crate) const PASSWORD: &str = "pg-secret-word";

const IDLE_SECONDS: u32 = 20;
const START_LIMIT: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Postgres {
    pub(super) place: Place,
    own: Option<OwnServer>,
}

/// Where a server is reached.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) port: u16,
    pub(super) dir: PathBuf,
}

pub(super) struct OwnServer {
    process: Process,
    pub(super) settings: Vec<(String, String)>,
    /// While the server is paused: what resumes it when we end.
    paused: Option<Child>,
    _dir: TempDir,
}

/// What is announced on a channel (LISTEN), in the order of the commits.
pub(crate) struct Listener {
    client: Client,
    channel: String,
    payloads: Receiver<String>,
}

/// A database of one test, dropped with this value if it is on the shared server.
pub(crate) struct Database {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) drop_it: bool,
}

/// A client's connection as the server sees it, in `pg_stat_activity`.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) pid: i32,
    pub(crate) application_name: String,
    /// `active`, `idle`, `idle in transaction`, …
    pub(crate) state: String,
    /// What it asks, or asked last.
    pub(crate) query: String,
}

impl Postgres {
    /// The server that the tests of a run share, started if nobody has done so yet.
    pub(crate) async fn shared() -> Postgres {
        static HELD_UNTIL_EXIT: Mutex<Option<File>> = Mutex::new(None);
        let shared_dir = shared_dir();
        let start = lock_exclusively(shared_dir.join("start.lock")).await;
        {
            let mut held = HELD_UNTIL_EXIT.lock().expect("nobody panics with this lock");
            if held.is_none() {
                let users = open_lock(&shared_dir.join("users.lock"));
                users.lock_shared().expect("a shared lock on users.lock");
                *held = Some(users);
            }
        }
        let place = match running_shared_server(&shared_dir).await {
            Some(place) => place,
            None => start_shared_server(&shared_dir).await,
        };
        drop(start);
        Postgres { place, own: None }
    }

    /// A server of this test's own, with settings as in `postgresql.conf`, for example `("timezone", "Asia/Tokyo")`.
    pub(crate) async fn private(settings: &[(&str, &str)]) -> Postgres {
        let dir = server_dir();
        lay_out(dir.path()).await;
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Postgres::start_in(dir, settings).await
    }

    /// A server of this test's own over a directory that is laid out.
    pub(super) async fn start_in(dir: TempDir, settings: Vec<(String, String)>) -> Postgres {
        for _ in 0..5 {
            let place = Place { port: free_port(), dir: dir.path().to_owned() };
            let mut process = start_private(&place, &settings);
            match wait_until_up(&place, || process.exited().is_none()).await {
                Ok(()) => {
                    return Postgres { place, own: Some(OwnServer { process, settings, paused: None, _dir: dir }) };
                }
                Err(_) if process.stderr().contains("Address already in use") => {}
                Err(why) => panic!("the private Postgres does not start: {why}\n{}", process.stderr()),
            }
        }
        panic!("no free port for Postgres in five attempts");
    }

    /// A new, empty database.
    pub(crate) async fn database(&self) -> Database {
        let name = format!("t_{}", Uuid::new_v4().simple());
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        client
            .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0"))
            .await
            .expect("the superuser creates databases");
        Database { name, place: self.place.clone(), drop_it: self.own.is_none() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.place.port
    }

    /// The directory of the Unix socket.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        self.place.socket_dir()
    }

    /// The certificate of the authority that signed the server's certificate (which is for `localhost`).
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.place.ca_file()
    }

    /// A wire to this server over TCP: see [`Wire`].
    pub(crate) fn wire(&self) -> Wire {
        Wire::postgres(self.place.port)
    }

    /// The process id of a private server.
    pub(crate) fn pid(&mut self) -> u32 {
        self.own().process.pid()
    }

    /// Stops every process of a private server with SIGSTOP: sockets stay open and nobody answers.
    ///
    /// A stopped process heeds no signal but SIGKILL, so a shell waits for the end of its input, which comes when we end or
    /// drop it, and lets the server go on, which then finds out that its parent has died.
    pub(crate) fn pause(&mut self) {
        let own = self.own();
        let server = own.process.pid();
        send_signal(server, "STOP");
        let pids = std::iter::once(server).chain(children_of(server)).map(|pid| pid.to_string());
        let mut guard = Command::new("setsid");
        guard.args(["sh", "-c", r#"kill -s STOP "$@"; echo; read -r _; kill -s CONT "$@""#, "sh"]).args(pids);
        let mut guard =
            guard.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("setsid and sh");
        let mut stopped = [0];
        guard.stdout.take().expect("a pipe").read_exact(&mut stopped).expect("the shell says when it has stopped them");
        own.paused = Some(guard);
    }

    /// Lets a paused server go on.
    pub(crate) fn resume(&mut self) {
        if let Some(mut guard) = self.own().paused.take() {
            guard.wait().ok(); // which closes its input first
        }
    }

    /// Ends a private server at once, as a crash would: connections break, later ones are refused.
    pub(crate) fn kill(&mut self) {
        self.resume();
        self.own().process.stop("QUIT", Duration::from_secs(10));
    }

    /// Starts a killed private server again, on the same port and with its data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        let place = self.place.clone();
        let own = self.own();
        own.process = start_private(&place, &own.settings);
        let process = &mut own.process;
        if let Err(why) = wait_until_up(&place, || process.exited().is_none()).await {
            panic!("Postgres does not start again: {why}\n{}", process.stderr());
        }
    }

    /// From now on a private server asks this role for its password on the Unix socket too, as it asks everybody over TCP.
    pub(crate) async fn demand_password(&mut self, role: &str) {
        self.own();
        let rules = self.place.data_dir().join("pg_hba.conf");
        let others = std::fs::read_to_string(&rules).expect("initdb writes pg_hba.conf");
        std::fs::write(&rules, format!("local all {role} scram-sha-256\n{others}")).expect("pg_hba.conf is writable");
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        client.execute("SELECT pg_reload_conf()", &[]).await.expect("the superuser may");
    }

    /// The clients' connections to a database now, oldest first.
    pub(crate) async fn connections_to(&self, database: &Database) -> Vec<Session> {
        let sql = "SELECT pid, coalesce(application_name, ''), coalesce(state, ''), coalesce(query, '')
                   FROM pg_stat_activity
                   WHERE datname = $1::text AND backend_type = 'client backend' AND pid <> pg_backend_pid()
                   ORDER BY backend_start, pid";
        let client = self.place.connect("postgres").await.expect("the server accepts connections");
        let rows = client.query(sql, &[&database.name]).await.expect("the superuser sees them");
        let session = |row: &tokio_postgres::Row| Session {
            pid: row.get(0),
            application_name: row.get(1),
            state: row.get(2),
            query: row.get(3),
        };
        rows.iter().map(session).collect()
    }

    pub(super) fn own(&mut self) -> &mut OwnServer {
        self.own.as_mut().expect("only a private server is killed or paused: other tests use the shared one")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.own.is_some() {
            self.resume();
            self.own().process.stop("QUIT", Duration::from_secs(5));
        }
    }
}

impl Database {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Over TCP with the password: `postgres://postgres:…@127.0.0.1:PORT/NAME`.
    pub(crate) fn url(&self) -> String {
        self.url_at("127.0.0.1", self.place.port)
    }

    /// The same with another host or port, for example `localhost` (the name in the certificate) or a wire's port.
    pub(crate) fn url_at(&self, host: &str, port: u16) -> String {
        format!("postgres://{USER}:{PASSWORD}@{host}:{port}/{}", self.name)
    }

    /// Over TCP as a role that the test has made, with its password.
    pub(crate) fn url_as(&self, role: &str, password: &str) -> String {
        format!("postgres://{role}:{password}@127.0.0.1:{}/{}", self.place.port, self.name)
    }

    /// Through a wire to the server, in clear text: the server offers TLS, and a wire can't count what it can't read.
    pub(crate) fn url_via(&self, wire: &Wire) -> String {
        self.url_at("127.0.0.1", wire.port()) + "?sslmode=disable"
    }

    /// Over the Unix socket, its directory percent-encoded in the place of the host.
    pub(crate) fn unix_url(&self) -> String {
        let dir = self.place.socket_dir().display().to_string().replace('/', "%2F");
        self.url_at(&dir, self.place.port)
    }

    /// The authority to trust with `sslmode=verify-full`.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.place.ca_file()
    }

    /// A connection of the test's own, past any wire.
    pub(crate) async fn connect(&self) -> Client {
        self.place.connect(&self.name).await.expect("the server accepts connections")
    }

    /// Hears what is announced on a channel from here on.
    pub(crate) async fn listen(&self, channel: &str) -> Listener {
        let config = self.place.config(&self.name);
        let (sender, payloads) = bounded_channel(10_000); // more than a test makes
        let connecting = background().spawn(async move {
            let (client, mut connection) = config.connect(NoTls).await?;
            background().spawn(async move {
                while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                    if let AsyncMessage::Notification(notification) = message {
                        sender.send(notification.payload().to_owned()).await.ok();
                    }
                }
            });
            Ok::<_, tokio_postgres::Error>(client)
        });
        let client = connecting.await.expect("connecting does not panic").expect("the server accepts connections");
        client.batch_execute(&format!("LISTEN {channel}")).await.expect("anybody may listen");
        Listener { client, channel: channel.to_owned(), payloads }
    }

    /// Runs SQL statements, past any wire.
    pub(crate) async fn execute(&self, sql: &str) {
        let client = self.connect().await;
        if let Err(error) = client.batch_execute(sql).await {
            panic!("{sql}\n{error:?}");
        }
    }

    /// The first column of the only row of a query, as Postgres prints it; `None` for NULL.
    pub(crate) async fn value(&self, sql: &str) -> Option<String> {
        let client = self.connect().await;
        let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}\n{error:?}"));
        let mut rows = messages.iter().filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = rows.next().unwrap_or_else(|| panic!("no row: {sql}"));
        assert!(rows.next().is_none(), "more than one row: {sql}");
        row.get(0).map(str::to_owned)
    }

    /// Waits until [`Database::value`] is this; panics when it has not become so in twenty seconds.
    pub(crate) async fn becomes(&self, sql: &str, expected: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let value = self.value(sql).await;
            if value.as_deref() == Some(expected) {
                return;
            }
            assert!(Instant::now() < deadline, "not {expected:?} but {value:?}: {sql}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

impl Listener {
    /// What was announced since the last call, by transactions that have ended by now.
    pub(crate) async fn heard(&mut self) -> Vec<String> {
        let mark = Uuid::new_v4().to_string();
        let notify = format!("NOTIFY {}, '{mark}'", self.channel);
        self.client.batch_execute(&notify).await.expect("anybody may notify");
        let mut heard = Vec::new();
        loop {
            match self.next().await {
                payload if payload == mark => return heard,
                payload => heard.push(payload),
            }
        }
    }

    /// The next announcement, waited for.
    pub(crate) async fn next(&mut self) -> String {
        let next = tokio::time::timeout(Duration::from_secs(30), self.payloads.recv()).await;
        next.expect("an announcement within 30 s").expect("the connection lasts")
    }
}

impl Database {
    /// Runs `psql` as operators do, stopping at the first error, and returns what it printed; panics when it fails.
    pub(crate) fn psql(&self, arguments: &[&str]) -> String {
        self.client_program("psql", &[&["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1"], arguments].concat())
    }

    /// Runs `pg_dump`, and returns what it printed; panics when it fails.
    pub(crate) fn pg_dump(&self, arguments: &[&str]) -> String {
        self.client_program("pg_dump", arguments)
    }

    /// Runs `pg_restore` into this database; panics when it fails.
    pub(crate) fn pg_restore(&self, arguments: &[&str]) -> String {
        self.client_program("pg_restore", &[&["--exit-on-error"], arguments].concat())
    }

    fn client_program(&self, name: &str, arguments: &[&str]) -> String {
        let (program, url) = (programs().join(name).display().to_string(), self.url());
        run(&[&[&program, "--dbname", &url], arguments].concat())
    }
}

impl Drop for Database {
    /// Best effort: what is left goes with the server.
    fn drop(&mut self) {
        if !self.drop_it {
            return;
        }
        let (place, name) = (self.place.clone(), self.name.clone());
        let dropped = std::thread::spawn(move || {
            background().block_on(async {
                let drop = async {
                    if let Ok(client) = place.connect("postgres").await {
                        client.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await.ok();
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), drop).await.ok();
            });
        });
        dropped.join().ok();
    }
}

impl Place {
    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.dir.join("socket")
    }

    fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Over the Unix socket, where no password is asked.
    fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket_dir()).port(self.port).user(USER).dbname(database);
        config
    }

    pub(super) async fn connect(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let config = self.config(database);
        background()
            .spawn(async move {
                let (client, connection) = config.connect(NoTls).await?;
                background().spawn(connection);
                Ok(client)
            })
            .await
            .expect("connecting does not panic")
    }
}

/// What the tests of all runs in this target directory share: locks, the address of the server, the result of `initdb`. Cargo
/// names the directory to integration tests only; the tests of the library find the server of the same run in the usual place.
fn shared_dir() -> PathBuf {
    let target = option_env!("CARGO_TARGET_TMPDIR").unwrap_or(concat!(env!("CARGO_MANIFEST_DIR"), "/target/tmp"));
    let dir = Path::new(target).join("postgres");
    std::fs::create_dir_all(&dir).expect("the target directory is writable");
    dir
}

fn open_lock(path: &Path) -> File {
    File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

async fn lock_exclusively(path: PathBuf) -> File {
    tokio::task::spawn_blocking(move || {
        let file = open_lock(&path);
        file.lock().unwrap_or_else(|error| panic!("cannot lock {}: {error}", path.display()));
        file
    })
    .await
    .expect("locking does not panic")
}

/// The shared server, if `server.json` names one that answers and is the one meant.
async fn running_shared_server(shared_dir: &Path) -> Option<Place> {
    let state: serde_json::Value = serde_json::from_slice(&std::fs::read(shared_dir.join("server.json")).ok()?).ok()?;
    let place =
        Place { port: u16::try_from(state["port"].as_u64()?).ok()?, dir: PathBuf::from(state["dir"].as_str()?) };
    let data_dir = async {
        let client = place.connect("postgres").await.ok()?;
        client.query_one("SHOW data_directory", &[]).await.ok()?.try_get::<_, String>(0).ok()
    };
    let data_dir = tokio::time::timeout(Duration::from_secs(10), data_dir).await.ok()??;
    (Path::new(&data_dir) == place.data_dir()).then_some(place)
}

/// Starts the supervisor with the shared server; the caller holds `start.lock`.
async fn start_shared_server(shared_dir: &Path) -> Place {
    let log = shared_dir.join("postgres.log");
    for _ in 0..5 {
        let dir = server_dir().keep();
        lay_out(&dir).await;
        let place = Place { port: free_port(), dir };
        std::fs::write(&log, "").expect("the target directory is writable");
        let mut command = Command::new("setsid");
        command
            .args(["bash", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/postgres_supervisor.sh")])
            .args([shared_dir, &place.dir])
            .arg(IDLE_SECONDS.to_string())
            .args(["setpriv", "--pdeathsig", "QUIT"]);
        if is_root() {
            command.args(change_to(USER));
        }
        let mut supervisor = command
            .args(server_command(&place, &[]))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::options().append(true).open(&log).expect("the log was just written"))
            .spawn()
            .expect("setsid (util-linux) and bash are installed");
        let up = wait_until_up(&place, || matches!(supervisor.try_wait(), Ok(None))).await;
        let printed = std::fs::read_to_string(&log).unwrap_or_default();
        match up {
            Ok(()) => {
                let state = json!({ "port": place.port, "dir": place.dir });
                std::fs::write(shared_dir.join("server.json"), state.to_string()).expect("the directory is writable");
                return place;
            }
            Err(_) if printed.contains("Address already in use") => {}
            Err(why) => panic!("the shared Postgres does not start: {why}\n{printed}"),
        }
    }
    panic!("no free port for Postgres in five attempts");
}

fn start_private(place: &Place, settings: &[(String, String)]) -> Process {
    let user = is_root().then_some(USER);
    Process::start("postgres", &place.dir, &server_command(place, settings), &[], OnOrphaned::Quit, user)
}

/// Waits until the server answers a query; `running` says whether it still can.
async fn wait_until_up(place: &Place, mut running: impl FnMut() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let running = running();
        let answer = match place.connect("postgres").await {
            Ok(client) => client.simple_query("SELECT 1").await.map(drop),
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => return Ok(()),
            Err(_) if !running => return Err("it has exited".to_owned()),
            Err(error) if Instant::now() > deadline => return Err(format!("no answer in {START_LIMIT:?}: {error}")),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The command line of a server: safe from its own crash and not from the machine's, TLS on, then the test's own settings.
///
/// `synchronous_commit` stays on, or a killed server would forget what it has acknowledged.
fn server_command(place: &Place, settings: &[(String, String)]) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let mut command = vec![path(programs().join("postgres")), "-D".to_owned(), path(place.data_dir())];
    let defaults = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", place.port.to_string()),
        ("unix_socket_directories", path(place.socket_dir())),
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", path(place.dir.join("server.crt"))),
        ("ssl_key_file", path(place.dir.join("server.key"))),
        ("max_connections", "300".to_owned()),
        ("shared_buffers", "32MB".to_owned()),
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("timezone", "UTC".to_owned()),
        ("log_timezone", "UTC".to_owned()),
        ("logging_collector", "off".to_owned()),
    ];
    let defaults = defaults.into_iter().map(|(name, value)| format!("{name}={value}"));
    let settings = settings.iter().map(|(name, value)| format!("{name}={value}"));
    command.extend(defaults.chain(settings).flat_map(|setting| ["-c".to_owned(), setting]));
    command
}

/// Fills the directory of a new server: data, socket directory, certificates.
async fn lay_out(dir: &Path) {
    let template = template().await;
    let data = dir.join("data");
    run(&["cp", "-a", &template.display().to_string(), &data.display().to_string()]);
    lay_out_around(dir);
    if is_root() {
        run(&["chown", "-R", &format!("{USER}:"), &data.display().to_string()]);
    }
}

/// All of it but the data.
pub(super) fn lay_out_around(dir: &Path) {
    let socket = dir.join("socket");
    std::fs::create_dir(&socket).expect("the server's directory is writable");
    let certificates = Certificates::write(dir);
    let key = certificates.key.display().to_string();
    run(&["chmod", "600", &key]);
    if is_root() {
        run(&["chown", "-R", &format!("{USER}:"), &socket.display().to_string(), &key]);
    }
}

/// The data directory that `initdb` makes, made once for a version of Postgres.
async fn template() -> PathBuf {
    let shared_dir = shared_dir();
    let _lock = lock_exclusively(shared_dir.join("template.lock")).await;
    let version = run(&[&programs().join("postgres").display().to_string(), "--version"]);
    let version: String = version.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
    let template = shared_dir.join(format!("initdb-{version}"));
    if !template.exists() {
        // In a directory that user postgres can reach, which the target directory may not be.
        let dir = server_dir();
        let data = dir.path().join("data").display().to_string();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, PASSWORD).expect("the directory is writable");
        if is_root() {
            run(&["chown", &format!("{USER}:"), &dir.path().display().to_string()]);
        }
        let mut command = Vec::new();
        command.extend([programs().join("initdb").display().to_string(), "--pgdata".to_owned(), data.clone()]);
        command.extend([format!("--username={USER}"), format!("--pwfile={}", password_file.display())]);
        let options = ["--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"];
        command.extend(options.map(str::to_owned));
        run_as_owner(&command);

        let partial = shared_dir.join("initdb-partial").display().to_string();
        run(&["rm", "-rf", &partial]);
        run(&["cp", "-a", &data, &partial]);
        std::fs::rename(&partial, &template).expect("a rename within the directory");
    }
    template
}

/// Runs a program as the user that owns the servers' data.
pub(super) fn run_as_owner(command: &[String]) {
    let user = if is_root() { change_to(USER).to_vec() } else { Vec::new() };
    let setpriv = ["setpriv".to_owned()].into_iter().filter(|_| is_root());
    let command: Vec<String> = setpriv.chain(user).chain(command.iter().cloned()).collect();
    run(&command.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The directory of `initdb` and `postgres`, which Debian keeps out of PATH.
pub(super) fn programs() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let mut dirs = Vec::new();
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
            dirs.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        }
        let mut packaged: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect())
            .unwrap_or_default();
        packaged.sort();
        dirs.extend(packaged.into_iter().rev());
        dirs.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let found = dirs.iter().find(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file());
        found.cloned().unwrap_or_else(|| {
            panic!(
                "the PostgreSQL server programs (initdb, postgres) are not installed: looked in {dirs:?}. \
                 On Debian: apt-get install postgresql"
            )
        })
    })
}

/// The processes whose parent is `parent`.
fn children_of(parent: u32) -> Vec<u32> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        // pid (name, which may hold anything) state ppid …
        let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        if after_name.split(' ').nth(1).and_then(|ppid| ppid.parse().ok()) == Some(parent) {
            children.push(pid);
        }
    }
    children
}
