//! The commands of a page of documentation, run as they stand there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{OnOrphaned, Process, server_dir};
use super::proxy::{BINARY, Ended};

/// How long a command of a page may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Stands in for `kubectl` and `helm`, since there is no cluster: see the file.
const KUBECTL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/kubectl.sh");

/// A page of Markdown: its fenced blocks of code.
pub(crate) struct Page {
    name: String,
    blocks: Vec<Block>,
}

/// A fenced block of code.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// The heading that it stands under, without its `#`s.
    pub(crate) heading: String,
    /// What follows the fence's backticks: `sh`, `yaml`, `sql`.
    pub(crate) language: String,
    pub(crate) text: String,
    /// Where it begins, for messages: `docs/runbook.md:42`.
    pub(crate) place: String,
}

impl Page {
    /// Reads a page by its path from the repository's top.
    pub(crate) fn read(name: &str) -> Page {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        Page { name: name.to_owned(), blocks: blocks(name, &text) }
    }

    /// Every block of a language, in order.
    pub(crate) fn all(&self, language: &str) -> Vec<&Block> {
        self.blocks.iter().filter(|block| block.language == language).collect()
    }

    /// The blocks of a language below a heading, which must have some.
    pub(crate) fn under(&self, heading: &str, language: &str) -> Vec<&Block> {
        let found: Vec<_> =
            self.blocks.iter().filter(|block| block.heading == heading && block.language == language).collect();
        assert!(!found.is_empty(), "{} has no block of {language} under \"{heading}\"", self.name);
        found
    }
}

fn blocks(name: &str, text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut heading = String::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(language)) => {
                let place = format!("{name}:{}", number + 1);
                let language = language.trim().to_owned();
                open = Some(Block { heading: heading.clone(), language, text: String::new(), place });
            }
            (None, None) if line.starts_with('#') => heading = line.trim_start_matches('#').trim().to_owned(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{name}: a block is not closed");
    found
}

/// Where somebody sits who types the commands of a page: a directory, variables, and the programs that the page names.
pub(crate) struct Desk {
    dir: TempDir,
    envs: Vec<(String, String)>,
    /// Run before each block.
    prelude: String,
}

impl Desk {
    /// With `dotmac-license-proxy`, the stand-in for `kubectl` and `helm`, and the Python programs of the tests on its path.
    pub(crate) fn new() -> Desk {
        let dir = server_dir();
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).expect("a fresh directory");
        for (target, name) in [(BINARY, "dotmac-license-proxy"), (KUBECTL, "kubectl"), (KUBECTL, "helm")] {
            std::os::unix::fs::symlink(target, bin.join(name)).expect("a link");
        }
        let installed = concat!(env!("CARGO_MANIFEST_DIR"), "/.test-tools/venv/bin");
        let path = format!("{}:{installed}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
        let mut desk = Desk { dir, envs: Vec::new(), prelude: String::new() };
        desk.set("PATH", path);
        desk.set("DESK", desk.dir.path().display().to_string());
        desk
    }

    /// A variable that the page speaks of.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) {
        self.envs.retain(|(known, _)| known != name);
        self.envs.push((name.to_owned(), value.into()));
    }

    /// Runs this block before each other, in the same shell: the page's variables.
    pub(crate) fn prepare(&mut self, block: &Block) {
        self.prelude.push_str(&block.text);
    }

    /// What the stand-in for `kubectl` prints for these two words, such as `get configmap`.
    pub(crate) fn answer(&self, words: [&str; 2], text: &str) {
        self.write(&format!("answer-{}", words.join("-")), text);
    }

    /// What the stand-in for a program was asked, a line each; `kubectl`'s or `helm`'s.
    pub(crate) fn asked(&self, program: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir().join(format!("{program}.log"))).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// The directory in which commands run.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file into the directory.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the directory is writable");
        path
    }

    /// Starts a block and leaves it running; ended with what is returned.
    pub(crate) fn begin(&self, block: &Block) -> Process {
        self.shell(&format!("{}{}", self.prelude, block.text))
    }

    /// Runs a block to its end.
    pub(crate) async fn run(&self, block: &Block) -> Ended {
        let mut process = self.shell(&format!("set -eu -o pipefail\n{}{}", self.prelude, block.text));
        let status = process.wait(LIMIT).await;
        Ended { status, stdout: process.stdout(), stderr: process.stderr() }
    }

    /// The same, which must succeed; what it printed.
    pub(crate) async fn passes(&self, block: &Block) -> String {
        let ended = self.run(block).await;
        assert!(
            ended.status.success(),
            "{}: {}\n{}--- printed\n{}{}",
            block.place,
            ended.status,
            block.text,
            ended.stdout,
            ended.stderr
        );
        ended.stdout
    }

    fn shell(&self, script: &str) -> Process {
        let files = self.dir.path().join(format!("run-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&files).expect("the directory is writable");
        let script = format!("cd \"$DESK\"\n{script}");
        let command = ["bash", "-c", &script].map(str::to_owned);
        Process::start("bash", &files, &command, &self.envs, OnOrphaned::Kill, None)
    }
}
