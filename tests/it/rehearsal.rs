//! `scripts/rehearse`: walks through the whole roll-out with this binary, and notices when something is wrong with it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::process::{OnOrphaned, Process, server_dir};
use crate::harness::proxy::{BINARY, Ended};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rehearse");
const LIMIT: Duration = Duration::from_secs(90);

/// The steps, and whether replicas show when they follow.
const STEPS: [(&str, bool); 12] = [
    ("off", false),
    ("backfill", false),
    ("shadow", true),
    ("5 %", true),
    ("25 %", true),
    ("100 %", true),
    ("new pods", false),
    ("upgrade", true),
    ("rollback: off", true),
    ("roll forward: 100 %", true),
    ("rollback: licence", true),
    ("roll forward: licence", true),
];

/// A rehearsal that is under way, its files in a directory of its own.
struct Rehearsal {
    process: Process,
    dir: TempDir,
    _wrapper: Option<TempDir>,
}

impl Rehearsal {
    fn begin(binary: &Path, seconds: &str) -> Rehearsal {
        let dir = server_dir();
        let arguments = ["--binary", &binary.display().to_string(), "--seconds", seconds, "--rate", "60"];
        let command: Vec<String> =
            ["python3", SCRIPT].iter().chain(&arguments).map(|word| (*word).to_owned()).collect();
        let envs = [("TMPDIR".to_owned(), dir.path().display().to_string())];
        let process = Process::start("rehearse", dir.path(), &command, &envs, OnOrphaned::Kill, None);
        Rehearsal { process: process.show_output_on_panic(), dir, _wrapper: None }
    }

    /// With a program in the place of the binary: a few lines of bash that end in `exec "$REAL" …`.
    fn begin_with(script: &str) -> Rehearsal {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = server_dir();
        let wrapper = dir.path().join("wrapper");
        let script = format!("#!/usr/bin/env bash\nset -eu\nREAL={BINARY}\n{script}\n");
        std::fs::write(&wrapper, script).expect("the directory is writable");
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
        Rehearsal { _wrapper: Some(dir), ..Rehearsal::begin(&wrapper, "0.3") }
    }

    async fn end(&mut self) -> Ended {
        let status = self.process.wait(LIMIT).await;
        Ended { status, stdout: self.process.stdout(), stderr: self.process.stderr() }
    }

    /// What the rehearsal has left behind: the folder with its logs.
    fn left(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).expect("the directory is there");
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir()).collect()
    }

    /// Command lines of processes that use the rehearsal's files.
    fn servers(&self) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        let processes = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let lines = processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
        lines.filter(|line| line.contains(&format!("{dir}/rehearse."))).collect()
    }
}

#[tokio::test]
async fn every_request_gets_its_answer_and_every_change_is_in_time() {
    let begun = Instant::now();
    let mut rehearsal = Rehearsal::begin(Path::new(BINARY), "0.8");
    let ended = rehearsal.end().await;
    let took = begun.elapsed();
    println!("{}\n{took:?}", ended.stdout);
    assert!(ended.status.success(), "{}\n{}", ended.stdout, ended.stderr);
    assert!(took < Duration::from_secs(45), "{took:?}");
    let mut lines = ended.stdout.lines().filter(|line| !line.starts_with("    "));
    assert!(lines.next().is_some_and(|head| head.starts_with("step ") && head.ends_with(" promise")));
    for (name, followed) in STEPS {
        let line = lines.next().unwrap_or_else(|| panic!("no line of {name}:\n{}", ended.stdout));
        let cells: Vec<_> =
            line.strip_prefix(name).unwrap_or_else(|| panic!("{name}: {line}")).split_whitespace().collect();
        let requests: u32 = cells[0].parse().expect("a number");
        assert!(requests >= 20, "{line}");
        assert_eq!(cells[1..4], ["0", "0", "0.00%"], "{line}");
        let promise = cells.last().expect("the promise");
        assert_eq!(*promise != "-", followed || *promise == "s", "{line}");
        let effects = cells.iter().filter(|cell| **cell == "ms").count();
        assert_eq!(effects, if followed { 3 } else { 1 }, "p95, and each replica that follows: {line}");
    }
    assert!(ended.stdout.contains("each got the answer that it should"), "{}", ended.stdout);
    assert!(
        rehearsal.left().is_empty() && rehearsal.servers().is_empty(),
        "{:?}{:?}",
        rehearsal.left(),
        rehearsal.servers()
    );
}

/// A replica that never reads its configuration again.
#[tokio::test]
async fn a_replica_that_does_not_follow_is_noticed() {
    let script = r#"if [[ $1 == serve && $3 == *replica-2* ]]; then
        cat "$3" >"${3%/*}/as-it-was.yaml"
        exec "$REAL" serve --config "${3%/*}/as-it-was.yaml"
    fi
    exec "$REAL" "$@""#;
    let mut rehearsal = Rehearsal::begin_with(script);
    let ended = rehearsal.end().await;
    assert_eq!(ended.status.code(), Some(1), "{}\n{}", ended.stdout, ended.stderr);
    assert!(
        ended.stderr.contains("failed at shadow: replica 2 shows nothing of it"),
        "{}\n{}",
        ended.stdout,
        ended.stderr
    );
    let logs = rehearsal.left();
    assert!(logs.len() == 1 && logs[0].join("replica-2.log").is_file(), "{logs:?}");
    assert!(ended.stderr.contains(&format!("the logs are in {}", logs[0].display())), "{}", ended.stderr);
    assert!(rehearsal.servers().is_empty(), "{:?}", rehearsal.servers());
}

/// Everybody gets more than was asked for: nobody is refused by mistake, and it is wrong all the same.
#[tokio::test]
async fn a_wrong_plan_is_noticed() {
    let script = r#"[[ $1 != backfill ]] || set -- "${@/professional/enterprise}"
    exec "$REAL" "$@""#;
    let ended = Rehearsal::begin_with(script).end().await;
    assert_eq!(ended.status.code(), Some(1), "{}\n{}", ended.stdout, ended.stderr);
    for text in
        ["failed at shadow: ", "and plan professional, got 200, the backend told of tenant", "and plan enterprise"]
    {
        assert!(ended.stderr.contains(text), "{text}:\n{}", ended.stderr);
    }
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_behind() {
    let mut rehearsal = Rehearsal::begin(Path::new(BINARY), "30");
    let begun = Instant::now();
    while !rehearsal.process.stdout().contains("step ") {
        assert!(begun.elapsed() < LIMIT && rehearsal.process.exited().is_none(), "{}", rehearsal.process.stderr());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(rehearsal.servers().len() >= 4, "{:?}", rehearsal.servers());
    rehearsal.process.signal("INT");
    let ended = rehearsal.end().await;
    assert_eq!(ended.status.code(), Some(130), "{}", ended.stderr);
    assert!(rehearsal.left().is_empty(), "{:?}", rehearsal.left());
    assert!(rehearsal.servers().is_empty(), "{:?}", rehearsal.servers());
}
