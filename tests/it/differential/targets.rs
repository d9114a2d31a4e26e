//! Request lines that a backend may take for one of its gated routes: each is such a route, changed a few times.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A method and a raw target.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub(super) method: &'static str,
    pub(super) target: Vec<u8>,
}

impl Ask {
    pub(super) fn get(target: &[u8]) -> Ask {
        Ask { method: "GET", target: target.to_vec() }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.target.escape_ascii())
    }
}

/// The gated routes, as their clients spell them. No backend has all of them.
pub(super) const GATED: &[&str] = &[
    "/api/v1/crm",
    "/api/v1/crm/items",
    "/api/v1/crm/items/7",
    "/api/v1/crm/files/a/b.txt",
    "/api/v1/crm/folder/",
    "/api/v1/reports",
    "/api/v1/accounts/7/export",
    "/static/premium/report.txt",
];

/// What a router overlooks the most.
#[derive(Clone, Copy)]
pub(super) enum Taste {
    /// Percent-encoding.
    Escapes,
    /// Letter case.
    Case,
}

/// One of `routes`, behind one of `aliases` or none, in disguise.
pub(super) fn asks(
    routes: Vec<&'static str>,
    aliases: &'static [&'static str],
    taste: Taste,
) -> impl Strategy<Value = Ask> {
    let aliases: Vec<&str> = [""].into_iter().chain(aliases.iter().copied()).collect();
    let methods = prop_oneof![24 => Just("GET"), 3 => Just("HEAD"), 4 => Just("POST"), 1 => select(vec!["get", "Get"])];
    let changes = prop_oneof![6 => vec(change(taste), 1), 4 => vec(change(taste), 2), 2 => vec(change(taste), 3..=5)];
    (methods, select(aliases), select(routes), changes).prop_map(|(method, alias, route, changes)| {
        let mut target = format!("{alias}{route}").into_bytes();
        for change in &changes {
            change.apply(&mut target);
        }
        // No line ends: they cut a request, which is another test's business.
        target.retain(|byte| !matches!(byte, b'\r' | b'\n'));
        Ask { method, target }
    })
}

/// Something that is done to a target.
#[derive(Clone, Debug)]
enum Change {
    /// A byte is written in another way.
    Respell(Index, Spelling),
    /// Every letter is.
    RespellAll(Spelling),
    /// Another text stands for a slash.
    Separate(Index, &'static [u8]),
    /// A text is put at the end of a segment.
    EndSegment(Index, &'static [u8]),
    /// A text is put at the end.
    End(&'static [u8]),
    /// A text is put before all.
    Begin(&'static [u8]),
    /// A byte is put somewhere.
    Insert(Index, u8),
    /// A segment is taken out, the slashes around it stay.
    Empty(Index),
}

#[derive(Clone, Copy, Debug)]
enum Spelling {
    OtherCase,
    Percent,
    PercentUpper,
    Twice,
    Thrice,
    /// `%u0070`, as IIS reads it.
    Microsoft,
    /// UTF-8 in two bytes, and in three, of what has one.
    Overlong,
    OverlongByThree,
    FullWidth,
    /// A letter that case mappings take for this one.
    Lookalike,
}

fn change(taste: Taste) -> impl Strategy<Value = Change> {
    use Spelling::*;
    let at = any::<Index>;
    let favoured = match taste {
        Taste::Escapes => vec![Percent, PercentUpper],
        Taste::Case => vec![OtherCase],
    };
    let spelling = move || {
        prop_oneof![
            12 => select(favoured.clone()),
            2 => select(vec![Percent, PercentUpper, OtherCase]),
            2 => select(vec![Twice, Thrice]),
            2 => select(vec![Microsoft, Overlong, OverlongByThree, FullWidth, Lookalike]),
        ]
    };
    prop_oneof![
        12 => (at(), spelling()).prop_map(|(at, how)| Change::Respell(at, how)),
        2 => spelling().prop_map(Change::RespellAll),
        4 => (at(), select(SEPARATORS.to_vec())).prop_map(|(at, text)| Change::Separate(at, text)),
        2 => (at(), select(SEGMENT_ENDS.to_vec())).prop_map(|(at, text)| Change::EndSegment(at, text)),
        4 => select(ENDS.to_vec()).prop_map(Change::End),
        2 => select(BEGINNINGS.to_vec()).prop_map(Change::Begin),
        1 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        1 => at().prop_map(Change::Empty),
    ]
}

const SEPARATORS: [&[u8]; 44] = [
    b"%2F",
    b"%2f",
    b"//",
    b"///",
    b"\\",
    b"%5C",
    b"%5c",
    b"%252F",
    b"%252f",
    b"%255c",
    b"/./",
    b"/%2e/",
    b"/%2E%2F",
    b"/x/../",
    b"/x/%2e%2e/",
    b"/x/.%2E/",
    b"/x/%252e%252e/",
    b"/x/..%2f",
    b"/x%2f..%2f",
    b"/x/..%5c",
    b"/x\\..\\",
    b"/network/../",
    b"/network/%2e%2e/",
    b"/help/../",
    b"/help/..%2f",
    b"/static/../",
    b"/x/y/../../",
    b"/x//../",
    b"/../",
    b"/;/",
    b"/.;/",
    b"/x/..;/",
    b"/x/..;a=b/",
    b"/x/..%3b/",
    b"/%20/../",
    b"/x/.. /",
    b"/x/..%00/",
    b"/x/..%09/",
    b"%c0%af",
    b"%e0%80%af",
    b"%ef%bc%8f",
    b"%e2%88%95",
    b"/%3f/../",
    b"/%23/../",
];

const SEGMENT_ENDS: [&[u8]; 20] = [
    b";x=y",
    b";",
    b"%3Bx",
    b".",
    b"..",
    b".json",
    b"%20",
    b" ",
    b"%00",
    b"%09",
    b"\t",
    b"%0a",
    b"%0d%0a",
    b"%c2%a0",
    b"%e2%80%8b",
    b"%ef%bb%bf",
    b"%3f",
    b"%23",
    b"~",
    b"::$DATA",
];

const ENDS: [&[u8]; 44] = [
    b"/",
    b"//",
    b"?",
    b"?x=/../..",
    b"??",
    b"?/../../network",
    b"?;/",
    b"#",
    b"#x",
    b"#/../..",
    b"%23",
    b"%23/../../x",
    b"%3f",
    b"%3Fx=y",
    b"%3f/../x",
    b"%253f",
    b";",
    b";x=y",
    b";/x",
    b";/../../network",
    b"%3b/x",
    b";.css",
    b".json",
    b".css",
    b".html",
    b".",
    b"..",
    b"/.",
    b"/..",
    b"/../",
    b"/x/..",
    b"/x/%2e%2e",
    b"%2f",
    b"%2F.",
    b"\\",
    b"%5c",
    b"%20",
    b" ",
    b"%00",
    b"%00.css",
    b"%0a",
    b"%250a",
    b"&x=y",
    b"+",
];

const BEGINNINGS: [&[u8]; 34] = [
    b"/",
    b"//",
    b"/.",
    b"/./",
    b"/..",
    b"/%2e%2e",
    b"/x/..",
    b"/x/%2e%2e",
    b"/x/..;",
    b"/api/v1/network/../../..",
    b"/api/v1/network/%2e%2e/%2e%2e/%2e%2e",
    b"/api/v1/network/..%2f..%2f..",
    b"/static/..",
    b"/static/%2e%2e",
    b"/static/..%2f",
    b"/mnt",
    b"/svc",
    b"/svc/svc",
    b"/;x",
    b"/%2f",
    b"/%5c",
    b"/\\",
    b"\\",
    b"//app",
    b"///app",
    b"/\\app",
    b"//app:80/x/..",
    b"http://app",
    b"HTTP://app:80",
    b"https://user:word@app",
    b"http:",
    b"http:///",
    b"ws://app",
    b"app:80",
];

impl Change {
    fn apply(&self, target: &mut Vec<u8>) {
        match self {
            Change::Respell(at, how) => {
                let at = at.index(target.len());
                let spelled = how.of(target[at]);
                target.splice(at..=at, spelled);
            }
            Change::RespellAll(how) => {
                let spell = |byte: u8| if byte.is_ascii_alphabetic() { how.of(byte) } else { vec![byte] };
                *target = target.iter().copied().flat_map(spell).collect();
            }
            Change::Separate(at, text) => {
                if let Some(slash) = pick(slashes(target), at) {
                    target.splice(slash..=slash, text.iter().copied());
                }
            }
            Change::EndSegment(at, text) => {
                let ends: Vec<usize> = slashes(target).into_iter().skip(1).chain([target.len()]).collect();
                if let Some(end) = pick(ends, at) {
                    target.splice(end..end, text.iter().copied());
                }
            }
            Change::End(text) => target.extend_from_slice(text),
            Change::Begin(text) => {
                target.splice(0..0, text.iter().copied());
            }
            Change::Insert(at, byte) => target.insert(at.index(target.len() + 1), *byte),
            Change::Empty(at) => {
                if let Some(slash) = pick(slashes(target), at) {
                    let length = target[slash + 1..].iter().take_while(|byte| **byte != b'/').count();
                    target.drain(slash + 1..=slash + length);
                }
            }
        }
    }
}

fn slashes(target: &[u8]) -> Vec<usize> {
    (0..target.len()).filter(|at| target[*at] == b'/').collect()
}

fn pick(places: Vec<usize>, at: &Index) -> Option<usize> {
    (!places.is_empty()).then(|| places[at.index(places.len())])
}

impl Spelling {
    fn of(self, byte: u8) -> Vec<u8> {
        let text = match self {
            Spelling::OtherCase if byte.is_ascii_lowercase() => return vec![byte.to_ascii_uppercase()],
            Spelling::OtherCase => return vec![byte.to_ascii_lowercase()],
            Spelling::Percent => format!("%{byte:02x}"),
            Spelling::PercentUpper => format!("%{byte:02X}"),
            Spelling::Twice => format!("%25{byte:02x}"),
            Spelling::Thrice => format!("%2525{byte:02x}"),
            Spelling::Microsoft => format!("%u00{byte:02x}"),
            Spelling::Overlong => format!("%{:02x}%{:02x}", 0xc0 | byte >> 6, 0x80 | byte & 0x3f),
            Spelling::OverlongByThree => format!("%e0%{:02x}%{:02x}", 0x80 | byte >> 6, 0x80 | byte & 0x3f),
            Spelling::FullWidth => {
                let wide = char::from_u32(0xfee0 + u32::from(byte)).unwrap_or('\u{ff0f}');
                wide.to_string().bytes().map(|byte| format!("%{byte:02X}")).collect()
            }
            Spelling::Lookalike => match byte.to_ascii_lowercase() {
                b'k' => "%E2%84%AA".to_owned(),
                b's' => "%C5%BF".to_owned(),
                b'i' => "%C4%B1".to_owned(),
                _ => return vec![byte],
            },
        };
        text.into_bytes()
    }
}
