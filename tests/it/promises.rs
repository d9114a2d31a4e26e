//! docs/promises.md: every promise names the tests that hold it, or says that none does; and every test that it names exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGE: &str = "docs/promises.md";

/// Beside an empty second column, this is how a line says that nothing holds it.
const NONE: &str = "not held by a test: ";

/// A line of the page.
struct Promise {
    line: usize,
    text: String,
    held_by: String,
}

fn promises() -> Vec<Promise> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(path).expect("the page");
    let rows = page.lines().enumerate().filter_map(|(index, line)| {
        let (text, held_by) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        (text != "promise").then(|| Promise { line: index + 1, text: text.to_owned(), held_by: held_by.to_owned() })
    });
    rows.collect()
}

/// The names between backticks.
fn names(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// What this binary would run.
fn tests_of_this_binary() -> BTreeSet<String> {
    let own = std::env::current_exe().expect("this binary");
    let listed = Command::new(own).args(["--list", "--format", "terse"]).output().expect("it runs");
    assert!(listed.status.success(), "{listed:?}");
    let listed = String::from_utf8(listed.stdout).expect("names");
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Whether a test stands beside the code under this name, `licensing::routes::tests::name`.
fn is_beside_the_code(name: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, path) = match name.split_once("::") {
        Some(("licensing", path)) => (root.join("crates/licensing/src"), path),
        Some(("dotmac_license_proxy", path)) => (root.join("src"), path),
        _ => return false,
    };
    let steps: Vec<&str> = path.split("::").collect();
    let Some((test, modules)) = steps.split_last() else { return false };
    // A module's tests stand in its own file, in `tests.rs` beside it, or in a `mod tests` within.
    let file = |modules: &[&str]| modules.iter().collect::<PathBuf>().with_extension("rs");
    let without_tests = modules.strip_suffix(&["tests"]).unwrap_or(modules);
    let candidates = [file(modules), modules.iter().collect::<PathBuf>().join("mod.rs"), file(without_tests)];
    let is_test = |text: &str| {
        text.match_indices(&format!("fn {test}(")).any(|(at, _)| {
            let before = &text[..at];
            let attributes = before.rfind("\n\n").map_or(before, |gap| &before[gap..]);
            attributes.contains("#[test]") || attributes.contains("#[tokio::test") || in_proptest(before)
        })
    };
    candidates.iter().any(|file| std::fs::read_to_string(source.join(file)).is_ok_and(|text| is_test(&text)))
}

/// Whether it is a file that `scripts/test` runs beside this binary: a program, or tests of the chart or the frontend.
fn is_run_beside(name: &str) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let steps = std::fs::read_to_string(root.join("scripts/test")).expect("the script");
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let is_of_frontend = folder.starts_with("frontend/") && name.contains(".test.ts") && steps.contains("&& npm test ");
    let is_a_step = steps.contains(&format!("&& {name}\n"))
        || steps.contains(&format!("--start-directory {folder}\n"))
        || is_of_frontend;
    !folder.is_empty() && root.join(name).is_file() && is_a_step
}

/// Whether the last attribute before is within `proptest!`, where `#[test]` may stand before others.
fn in_proptest(before: &str) -> bool {
    before.rfind("proptest!").is_some_and(|at| before[at..].contains("#[test]"))
}

#[test]
fn every_promise_names_tests_that_exist() {
    let promises = promises();
    assert!(promises.len() > 80, "{} lines were read", promises.len());
    let of_this_binary = tests_of_this_binary();
    let mut problems = Vec::new();
    let mut unheld = Vec::new();
    let mut seen = BTreeSet::new();
    for Promise { line, text, held_by } in &promises {
        let mut problem = |what: &str| problems.push(format!("{PAGE}:{line}: {text}: {what}"));
        if !seen.insert(text) {
            problem("stands there twice");
        }
        match held_by.strip_prefix(NONE) {
            Some(why) if why.len() > 20 => unheld.push(format!("{text}: {why}")),
            Some(_) => problem("why does nothing hold it?"),
            None if names(held_by).is_empty() => problem("names no test, and does not say so"),
            None => {
                for name in names(held_by) {
                    if !of_this_binary.contains(name) && !is_beside_the_code(name) && !is_run_beside(name) {
                        problem(&format!("there is no test {name}"));
                    }
                }
            }
        }
    }
    println!("{} promises; not held by a test:\n  {}", promises.len(), unheld.join("\n  "));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(unheld.len() * 10 < promises.len(), "too much of it is held by nothing");
}

/// The look into the sources finds what is there, and nothing else.
#[test]
fn tests_beside_the_code_are_found() {
    for name in [
        "licensing::routes::tests::no_spelling_gets_past_the_gate",
        "licensing::reason::serde_metrics_and_answers_use_one_name",
        "dotmac_license_proxy::stores::postgres_usage::tests::a_lease_is_one_round_trip",
    ] {
        assert!(is_beside_the_code(name), "{name}");
    }
    for name in [
        "licensing::routes::tests::some_spelling_gets_past_the_gate",
        "licensing::reason::name",
        "licensing::nowhere::tests::no_spelling_gets_past_the_gate",
        "routes::tests::no_spelling_gets_past_the_gate",
        "dotmac_license_proxy::server::start",
    ] {
        assert!(!is_beside_the_code(name), "{name}");
    }
}
