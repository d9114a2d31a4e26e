//! Inputs that nobody thought of, for all that reads what strangers write. Each file is one reader and what must hold of it
//! whatever it reads; README.md says how a target is run for hours.

mod configuration;
mod entries;
mod headers;
mod paths;
mod tokens;

use std::path::Path;
use std::time::Duration;

/// How long a target draws random inputs in an ordinary run, after its corpus.
const RANDOM: Duration = Duration::from_secs(2);

/// The longest random input, in bytes.
const MAX_BYTES: usize = 256;

/// What the committed corpora may take, in bytes.
const MAX_CORPUS_BYTES: u64 = 300_000;

/// A test that gives `$check` every input of its corpus and random ones; under `cargo bolero`, what a fuzzer makes up. The
/// inputs are [expanded](expand) by `$fragments` first.
macro_rules! target {
    ($name:ident, $fragments:expr, $check:expr) => {
        #[test]
        fn $name() {
            $crate::fuzz::assert_corpus(module_path!(), stringify!($name));
            bolero::check!()
                .with_test_time($crate::fuzz::RANDOM)
                .with_max_len($crate::fuzz::MAX_BYTES)
                .for_each(|input: &[u8]| $check(&$crate::fuzz::expand(input, $fragments)));
        }
    };
}
use target;

/// The bytes that an input stands for: from 0x80 on a fragment each, so that few bytes make a text that gets past the first
/// check; below, themselves, so that a corpus can be read. Beyond the fragments, themselves too. New fragments go to the
/// end: what the corpus holds keeps its meaning.
fn expand(input: &[u8], fragments: &[&str]) -> Vec<u8> {
    let fragment = |byte: u8| byte.checked_sub(0x80).and_then(|index| fragments.get(usize::from(index)));
    let mut text = Vec::with_capacity(2 * input.len());
    for byte in input {
        match fragment(*byte) {
            Some(fragment) => text.extend_from_slice(fragment.as_bytes()),
            None => text.push(*byte),
        }
    }
    text
}

/// Where the corpora lie, one directory for each target.
fn corpora() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/__fuzz__")
}

/// Bolero passes over a corpus that is not there; a renamed target would go on without one.
fn assert_corpus(module: &str, name: &str) {
    let module = module.split_once("::").map_or(module, |(_, path)| path).replace("::", "__");
    let corpus = corpora().join(format!("{module}__{name}/corpus"));
    let inputs = std::fs::read_dir(&corpus).map_or(0, Iterator::count);
    assert!(inputs > 0 || cfg!(fuzzing), "{} has no inputs", corpus.display());
}

#[test]
fn the_corpora_are_small_and_each_has_its_target() {
    let sources = ["configuration", "entries", "headers", "paths", "tokens"].map(|module| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fuzz/{module}.rs"));
        (module, std::fs::read_to_string(source).expect("a source"))
    });
    let is_target = |directory: &str| {
        sources.iter().any(|(module, source)| {
            let name = directory.strip_prefix(&format!("fuzz__{module}__"));
            name.is_some_and(|name| source.contains(&format!("target!({name},")))
        })
    };
    let mut bytes = 0;
    for target in std::fs::read_dir(corpora()).expect("corpora") {
        let target = target.expect("a corpus");
        let name = target.file_name().into_string().expect("a name");
        assert!(is_target(&name), "{name} is no target's");
        for kind in std::fs::read_dir(target.path()).expect("a directory") {
            let inputs = std::fs::read_dir(kind.expect("a directory").path()).expect("inputs");
            bytes += inputs.map(|input| input.and_then(|input| input.metadata()).expect("an input").len()).sum::<u64>();
        }
    }
    assert!(bytes <= MAX_CORPUS_BYTES, "{bytes} bytes: reduce the corpora, as README.md says");
}
