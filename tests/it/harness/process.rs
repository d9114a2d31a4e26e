//! Child processes that never outlive the test process, and the ports they listen on.
//!
//! Every server is started through `setpriv --pdeathsig`, so the kernel ends it when its parent goes, also when the parent
//! is killed with SIGKILL. The kernel's "parent" is the thread that forked, so all forking is done by one thread that lives
//! as long as the process.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// The signal that the kernel sends to a child when the test process dies.
#[derive(Clone, Copy)]
pub(crate) enum OnOrphaned {
    /// At once: for processes without children of their own.
    Kill,
    /// SIGQUIT, Postgres's "immediate shutdown": SIGKILL would leave its own children a moment longer.
    Quit,
}

/// A running child process, its output going to two files in `dir`.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    exit: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
    show_output_on_panic: bool,
}

impl Process {
    /// Starts `command` (program first), output appended to `dir/NAME.out` and `dir/NAME.err`.
    ///
    /// With `user`, a process of root changes to that user first.
    pub(crate) fn start(
        name: &'static str,
        dir: &Path,
        command: &[String],
        envs: &[(String, String)],
        orphaned: OnOrphaned,
        user: Option<&str>,
    ) -> Process {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        let mut guarded = Command::new("setpriv");
        guarded.args([
            "--pdeathsig",
            match orphaned {
                OnOrphaned::Kill => "KILL",
                OnOrphaned::Quit => "QUIT",
            },
        ]);
        if let Some(user) = user {
            guarded.args(change_to(user));
        }
        guarded
            .args(command)
            .env_clear()
            .envs(kept_environment())
            .envs(envs.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(append_to(&stdout))
            .stderr(append_to(&stderr));
        let child = spawn_for_good(guarded)
            .unwrap_or_else(|error| panic!("cannot start {name} through setpriv (util-linux): {error}"));
        Process { name, child, exit: None, stdout, stderr, show_output_on_panic: false }
    }

    /// Prints the end of the process's standard error when the test that owns it fails.
    pub(crate) fn show_output_on_panic(mut self) -> Process {
        self.show_output_on_panic = true;
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    pub(crate) fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("a child can be waited for");
        }
        self.exit
    }

    /// Waits for the process to end by itself; panics when it has not within `limit`.
    pub(crate) async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} is still running after {limit:?}", self.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal by name ("TERM", "STOP"), to this process only.
    pub(crate) fn signal(&mut self, signal: &str) {
        if self.exited().is_none() {
            send_signal(self.pid(), signal);
        }
    }

    /// Sends a signal and waits, blocking, for the end; SIGKILL follows when `limit` has passed.
    pub(crate) fn stop(&mut self, signal: &str, limit: Duration) {
        self.signal(signal);
        let deadline = Instant::now() + limit;
        while self.exited().is_none() {
            if Instant::now() > deadline {
                self.child.kill().ok();
            }
            sleep_blocking(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.show_output_on_panic && std::thread::panicking() {
            let stderr = self.stderr();
            let lines: Vec<&str> = stderr.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "--- standard error of {} (pid {}), the end ---\n{}\n---",
                self.name,
                self.pid(),
                tail.join("\n")
            );
        }
        if self.exited().is_none() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// `setpriv` options that make a process of root run as `user`.
pub(crate) fn change_to(user: &str) -> [String; 3] {
    [format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".to_owned()]
}

/// Sends a signal by name to one process; the shell's own `kill` is there on the smallest machine.
pub(crate) fn send_signal(pid: u32, signal: &str) {
    Command::new("sh").args(["-c", "kill -s \"$1\" \"$2\" 2>/dev/null", "sh", signal, &pid.to_string()]).status().ok();
}

/// Runs a short command to its end and returns what it printed; panics with its error output when it fails.
pub(crate) fn run(command: &[&str]) -> String {
    let output = Command::new(command[0])
        .args(&command[1..])
        .current_dir("/")
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", command[0]));
    assert!(
        output.status.success(),
        "`{}` failed with {}:\n{}",
        command.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether this process is root, which Postgres refuses to run as.
pub(crate) fn is_root() -> bool {
    static ROOT: LazyLock<bool> = LazyLock::new(|| run(&["id", "-u"]).trim() == "0");
    *ROOT
}

/// A port on 127.0.0.1 that was free a moment ago.
///
/// Taken below the range that Linux gives to outgoing connections, so that only another server can take it meanwhile;
/// whoever starts one tries again with another port then.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = 12_000 + u16::try_from(Uuid::new_v4().as_u128() % 20_000).expect("below 20,000");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// A fresh directory for one server, short enough for Unix socket paths and searchable by other users.
pub(crate) fn server_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("dlp-it-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir();
    dir.expect("the temporary directory is writable")
}

/// Blocks the thread: for `Drop` and for threads that run no async code.
#[expect(clippy::disallowed_methods, reason = "the one place that blocks, and says so in its name")]
pub(crate) fn sleep_blocking(time: Duration) {
    std::thread::sleep(time);
}

/// What a child keeps of our environment: a variable of the developer's shell must not configure the proxy under test.
fn kept_environment() -> impl Iterator<Item = (String, String)> {
    ["PATH", "HOME", "TMPDIR", "LLVM_PROFILE_FILE"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok().map(|value| (name.to_owned(), value)))
        .chain([("LC_ALL".to_owned(), "C".to_owned())])
}

fn append_to(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Spawns from a thread that never ends while this process runs.
fn spawn_for_good(command: Command) -> io::Result<Child> {
    type Order = (Command, SyncSender<io::Result<Child>>);
    static SPAWNER: LazyLock<SyncSender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = sync_channel::<Order>(1);
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                answer.send(command.spawn()).ok();
            }
        });
        orders
    });
    let (answer, child) = sync_channel(1);
    SPAWNER.send((command, answer)).expect("the spawning thread never ends");
    child.recv().expect("the spawning thread answers")
}
