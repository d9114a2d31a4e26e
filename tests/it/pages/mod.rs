//! The pages that people follow, followed: their commands are typed as they stand there, and what they promise comes about.

mod adopt;
mod plans;
mod support;

use std::time::{Duration, Instant};

use crate::harness::process::Process;
use crate::harness::proxy::Ended;
use crate::harness::{Block, Desk, Page, RawResponse};

/// A customer of whom every page speaks.
const TENANT: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";

/// A terminal in which somebody follows a page: what one block exports and defines, the next one has.
struct Terminal {
    desk: Desk,
    /// Words of the page, and what stands in their place here.
    words: Vec<(String, String)>,
}

impl Terminal {
    fn new() -> Terminal {
        let mut desk = Desk::new();
        desk.set("USER", "ada");
        Terminal { desk, words: Vec::new() }
    }

    /// Where the page says `word`, we say `here`: an address, a directory, a customer.
    fn stands_for(&mut self, word: &str, here: impl Into<String>) {
        self.words.push((word.to_owned(), here.into()));
    }

    /// A text of the page with what stands here for its words.
    fn here(&self, text: &str) -> String {
        self.words.iter().fold(text.to_owned(), |text, (word, here)| text.replace(word, here))
    }

    /// Types a block to its end; it may fail.
    async fn types(&self, block: &Block) -> Ended {
        let text = format!(
            "[[ ! -e .session ]] || . ./.session\n{}\n{{ export -p; declare -f; }} >.session",
            self.here(&block.text)
        );
        self.desk.run(&Block { text, ..block.clone() }).await
    }

    /// The same, which must succeed; what it printed, on either stream.
    async fn passes(&self, block: &Block) -> String {
        let ended = self.types(block).await;
        assert!(ended.status.success(), "{}: {}\n{}\n{ended:?}", block.place, ended.status, block.text);
        ended.stdout + &ended.stderr
    }

    /// Types a block of one command in a terminal of its own and leaves it running; ended with what is returned.
    fn leaves_running(&self, block: &Block) -> Process {
        let commands = commands(block);
        assert_eq!(commands.len(), 1, "{}: {commands:?}", block.place);
        let text = format!("exec {}", self.here(&commands[0]));
        self.desk.begin(&Block { text, ..block.clone() }).show_output_on_panic()
    }
}

/// What stands under a heading, in order and in whatever language.
fn section<'a>(page: &'a Page, heading: &str) -> Vec<&'a Block> {
    let languages = ["sh", "yaml", "json", "python", "sql", "text"];
    let mut blocks: Vec<_> = languages.iter().flat_map(|language| page.all(language)).collect();
    blocks.retain(|block| block.heading == heading);
    blocks.sort_by_key(|block| line(block));
    assert!(!blocks.is_empty(), "nothing stands under {heading:?}");
    blocks
}

/// Where a block begins.
fn line(block: &Block) -> usize {
    block.place.rsplit_once(':').and_then(|(_, line)| line.parse().ok()).expect("a place ends in its line")
}

/// The commands of a block: its lines, without comments, those together that end in a backslash.
fn commands(block: &Block) -> Vec<String> {
    let joined = block.text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Asserts that each line that the page shows is among the printed ones; `…` stands for anything, and blanks are one.
#[track_caller]
fn shows(expected: &str, printed: &str) {
    let blanks = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let is_shown = |expected: &str, printed: &str| {
        let mut rest = printed;
        expected.split('…').map(str::trim).all(|part| match rest.find(part) {
            Some(at) => {
                rest = &rest[at + part.len()..];
                true
            }
            None => false,
        })
    };
    for expected in expected.lines().map(blanks) {
        assert!(
            printed.lines().map(blanks).any(|line| is_shown(&expected, &line)),
            "{expected:?} is not in\n{printed}"
        );
    }
}

/// Asks until the answer has this status: what a page changes acts soon, and not in a moment.
async fn until(status: u16, ask: impl AsyncFn() -> RawResponse) -> RawResponse {
    let begun = Instant::now();
    loop {
        let answer = ask().await;
        if answer.status == status {
            return answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "no {status} but {}: {}", answer.status, answer.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `reason` of a refusal.
fn reason(answer: &RawResponse) -> String {
    answer.json()["reason"].as_str().unwrap_or_default().to_owned()
}
