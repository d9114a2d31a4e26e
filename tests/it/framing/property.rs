//! Requests put together at random from what is read in more than one way.
//!
//! Whatever the backend is sent, all readers cut alike, the parsers of real servers among them; and it is sent nothing but what all of them, whichever stood before
//! the proxy, would have found in what the client sent. `FRAMING_CASES` says how many, `FRAMING_SEED` which.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use uuid::Uuid;

use super::readers::{Prefers, Request, agreed, lenient};
use super::{World, world};
use crate::harness::RawClient;

/// How many in the ordinary suite.
const CASES: u64 = 800;

/// How many between two looks at what the backend was sent.
const BATCH: u64 = 400;

/// How long no answer must come before it is thought that none will. Too short a time can't make a case fail.
const SILENCE: Duration = Duration::from_millis(120);

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const ODD_LINE_ENDS: [&str; 6] = ["\n", "\r", "\r\r\n", "\n\r", "\r\n ", "\r\n\t"];

const NAMES: [&str; 12] = [
    "Transfer-Encoding",
    "Content-Length",
    "Transfer_Encoding",
    "Content_Length",
    "Transfer-Encoding ",
    " Transfer-Encoding",
    "Content-Length\t",
    "Transfer-Encoding\x0b",
    "X",
    "Expect",
    "Connection",
    "Upgrade",
];

const CODINGS: [&str; 14] = [
    "chunked",
    "chunked",
    "Chunked",
    "xchunked",
    "chunked, chunked",
    "identity",
    "identity, chunked",
    "chunked;a",
    "\"chunked\"",
    "\x0bchunked",
    "chunked\x0c",
    "gzip, chunked",
    " chunked\t",
    "chunked\r\n x",
];

const OTHER_VALUES: [&str; 10] =
    ["1", "100-continue", "close", "keep-alive", "websocket", "h2c", "Transfer-Encoding", "Content-Length", "", "\t"];

const SIZES: [&str; 14] =
    ["", "0", "+", "-", "0x", " ", "\t", "_", "0000000000000000", ";a", ";a=\"b", ";\\", " ;", ";a=\"\r"];

/// One case: what is sent, every request with a target of its own.
fn bytes(random: &mut Random, case: u64) -> Vec<u8> {
    let mut sent = String::new();
    for request in 0..=random.below(3) {
        let target = format!("/{case}/{request}");
        let inner = format!("GET /{case}/smuggled{request} HTTP/1.1\r\nHost: app\r\n\r\n");
        let method = random.pick(&["POST", "POST", "POST", "GET", "DELETE"]);
        let version = random.pick(&["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"]);
        sent += &match random.below(24) {
            0 => format!("{method}  {target} {version}"),
            1 => format!("{method}\t{target} {version}"),
            2 => format!("{method} {target} {version} "),
            3 => format!("\r\n{method} {target} {version}"),
            4 => format!("\n{method} {target} {version}"),
            _ => format!("{method} {target} {version}"),
        };
        let mut lines = vec!["Host: app".to_owned()];
        let (body, framing) = body(random, &inner);
        lines.extend(framing);
        for _ in 0..random.below(3) {
            if random.one_in(3) {
                let name = random.pick(&NAMES);
                let value = match random.below(3) {
                    0 => random.pick(&CODINGS).to_owned(),
                    1 => random.below(60).to_string(),
                    _ => random.pick(&OTHER_VALUES).to_owned(),
                };
                let at = random.below(lines.len() + 1);
                lines.insert(at, format!("{name}: {value}"));
            }
        }
        for line in lines {
            sent += line_end(random);
            sent += &line;
        }
        sent += line_end(random);
        sent += line_end(random);
        sent += &body;
    }
    sent.into_bytes()
}

fn line_end(random: &mut Random) -> &'static str {
    if random.one_in(80) { random.pick(&ODD_LINE_ENDS) } else { "\r\n" }
}

/// A body with a request in it, and the headers that say where it ends, or nearly so.
fn body(random: &mut Random, inner: &str) -> (String, Option<String>) {
    match random.below(6) {
        0 => (String::new(), None),
        1 | 2 => {
            let length = match random.below(8) {
                0 => inner.len() + 1 + random.below(20),
                1 => random.below(inner.len()),
                _ => inner.len(),
            };
            let length = match random.below(12) {
                0 => format!("+{length}"),
                1 => format!("0{length}"),
                2 => format!("{length},{length}"),
                3 => format!("0x{length:x}"),
                _ => length.to_string(),
            };
            (inner.to_owned(), Some(format!("Content-Length: {length}")))
        }
        _ => {
            let mut body = String::new();
            for _ in 0..random.below(3) {
                let size = if random.one_in(12) { inner.len() - 1 } else { inner.len() };
                let size =
                    if random.one_in(10) { format!("{size:X}{}", random.pick(&SIZES)) } else { format!("{size:x}") };
                let size = if random.one_in(20) { format!("{}{size}", random.pick(&SIZES)) } else { size };
                body += &[&size, line_end(random), inner, line_end(random)].concat();
            }
            body += ["0", "0", "0", "00", "0;a", "-0", ""][random.below(7)];
            body += line_end(random);
            if random.one_in(5) {
                let trailer =
                    random.pick(&["X: 1", "Content-Length: 30", "Transfer-Encoding: chunked", "GET /1/1 HTTP/1.1"]);
                body += &[trailer, line_end(random)].concat();
            }
            body += line_end(random);
            let coding = if random.one_in(6) { random.pick(&CODINGS) } else { "chunked" };
            (body, Some(format!("Transfer-Encoding: {coding}")))
        }
    }
}

/// Sends a case and reads answers until there are no more.
async fn run(world: &World, sent: &[u8]) {
    let mut connection = RawClient::connect(world.proxy.address()).await;
    // It may be refused before all of it is sent.
    connection.send(sent).await.ok();
    while let Ok(Ok(1..)) =
        tokio::time::timeout(SILENCE, async { connection.bytes().await.map(|bytes| bytes.len()) }).await
    {}
}

/// Asserts that the parsers of real servers, h11 and httptools, cut what the backend was sent as our readers do.
fn real_parsers_agree(seed: u64, connections: &[(Vec<u8>, Vec<Request>)]) {
    let root = env!("CARGO_MANIFEST_DIR");
    let python = format!("{root}/.test-tools/venv/bin/python");
    let mut child = Command::new(&python)
        .arg(format!("{root}/tests/backends/readers.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| {
            panic!("{error}: {python} is missing: scripts/test installs it with h11 and httptools")
        });
    let texts: Vec<String> = connections.iter().map(|(raw, _)| BASE64_STANDARD.encode(raw)).collect();
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(json!(texts).to_string().as_bytes())
        .expect("it reads all of it first");
    let output = child.wait_with_output().expect("it ends");
    let read: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for parser in ["h11", "httptools"] {
        for ((raw, ours), theirs) in connections.iter().zip(read[parser].as_array().expect("a list of connections")) {
            // What a wrong length leaves of a method may be another one, which httptools need not know.
            let known = |request: &Request| ["POST", "GET", "DELETE"].contains(&&*request.method);
            if parser == "httptools" && !ours.iter().all(known) {
                continue;
            }
            let complete = ours.iter().filter(|request| request.complete);
            let ours: Value = complete
                .map(|request| json!([request.method, request.target, String::from_utf8_lossy(&request.body)]))
                .collect();
            assert_eq!(*theirs, ours, "FRAMING_SEED={seed}, by {parser}: {}", raw.escape_ascii());
        }
    }
}

#[tokio::test]
async fn nobody_reads_it_in_two_ways() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("FRAMING_SEED").unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
    let cases = number("FRAMING_CASES").unwrap_or(CASES);
    println!("FRAMING_SEED={seed} FRAMING_CASES={cases}");
    let world = world().await;
    let (mut forwarded, mut silent) = (0, 0);
    for first in (0..cases).step_by(usize::try_from(BATCH).expect("small")) {
        let batch: BTreeMap<u64, Vec<u8>> = (first..cases.min(first + BATCH))
            .map(|case| (case, bytes(&mut Random(seed ^ (case << 20)), case)))
            .collect();
        stream::iter(batch.values()).for_each_concurrent(24, |sent| run(&world, sent)).await;
        let mut arrived: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let connections = world.upstream.raw().into_iter().filter(|raw| !raw.is_empty()).map(|raw| {
            let requests = agreed(&raw).unwrap_or_else(|why| panic!("FRAMING_SEED={seed}: {why}"));
            (raw, requests)
        });
        let connections: Vec<_> = connections.collect();
        real_parsers_agree(seed, &connections);
        for (_, requests) in connections {
            for request in requests.into_iter().filter(|request| request.complete) {
                let case =
                    request.target.split('/').nth(1).and_then(|case| case.parse().ok()).expect("a case's target");
                arrived.entry(case).or_default().push(request.target);
            }
        }
        assert_eq!(world.upstream.malformed(), Vec::<Vec<u8>>::new(), "FRAMING_SEED={seed}");
        for (case, sent) in &batch {
            let Some(targets) = arrived.get(case) else {
                silent += 1;
                continue;
            };
            forwarded += 1;
            for preference in [Prefers::Coding, Prefers::FirstLength, Prefers::LastLength] {
                let wanted: Vec<String> = lenient(sent, preference).into_iter().map(|request| request.target).collect();
                assert!(
                    targets.iter().all(|target| wanted.contains(target)),
                    "FRAMING_SEED={seed}, case {case}: {targets:?} arrived of {wanted:?} by {preference:?}:\n{}",
                    sent.escape_ascii()
                );
            }
        }
        world.upstream.forget();
    }
    println!("{forwarded} forwarded at least in part, {silent} not at all");
    assert!(
        forwarded > cases / 5 && silent > cases / 5,
        "{forwarded} of {cases}: too few of one kind to mean anything"
    );
}
