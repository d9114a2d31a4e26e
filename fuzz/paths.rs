//! The path reader and the rules: no spelling of a gated path that a backend could undo gets past them.

use licensing::path::Target;
use licensing::routes::{Access, Ambiguous, Pattern, Route, RouteOptions, Routes, Rule, Unmatched};

use super::target;

/// What paths and their disguises are made of.
const FRAGMENTS: &[&str] = &[
    "/api/v1/crm",
    "/public",
    "/api",
    "/v1",
    "crm",
    "/customers/7/tickets",
    "/internal",
    "/",
    "//",
    "/./",
    "/../",
    "..",
    "%2f",
    "%2F",
    "%252f",
    "%5c",
    "\\",
    "%255C",
    "%2e",
    "%252e",
    "%25",
    "%2525",
    "%63",
    "%2563",
    "%43",
    ";v=1",
    "%3b",
    "%253B",
    "%20",
    ".",
    ".json",
    "%3f",
    "%23",
    "%2",
    "%0a",
    "%00",
    "%E2%84%AA",
    "%c5%bf",
    "%C4%B1",
    "?",
    "#",
    "%ff",
    "/x",
    "/x/..",
    "/x%2f..",
    "//host",
    "/API/V1/CRM",
    "POST",
    "HEAD",
    "%09",
    "%250a",
    "%70ublic",
];

target!(as_a_backend_reads_them, FRAGMENTS, read_as_a_backend);
target!(in_any_single_disguise, FRAGMENTS, disguise);
target!(another_rule_loosens_nothing, FRAGMENTS, add_a_rule);

/// All rules that the targets choose from; the first are the [usual](usual) ones.
fn rules() -> Vec<Rule> {
    let prefix = |path: &str| Pattern::Prefix(path.to_owned());
    let path = |path: &str| Pattern::Path(path.to_owned());
    let feature = |name: &str| Access::Feature(name.into());
    [
        (prefix("/api/v1/crm"), "", feature("crm")),
        (prefix("/api/v1/crm/public"), "", Access::Always),
        (path("/api/v1/customers/{id}/tickets"), "POST", feature("tickets")),
        (prefix("/internal"), "", Access::Deny),
        (prefix("/api"), "", feature("api")),
        (path("/api/v1/crm"), "", Access::Always),
        (path("/api/v1/crm/"), "", Access::Always),
        (prefix("/{any}/v1"), "", feature("any")),
        (path("/api/v1/{module}/public"), "GET", feature("module")),
        (prefix("/api/v1/customers"), "", Access::Always),
        (path("/api/v1/customers/7/tickets"), "POST", Access::Always),
        (prefix("/"), "", feature("root")),
        (prefix("/x"), "POST", feature("x")),
        (path("/"), "", Access::Always),
        (prefix("/api/v1/crm/{id}"), "", feature("id")),
        (prefix("/host"), "HEAD", Access::Always),
    ]
    .map(|(pattern, method, access)| {
        let methods = method.split_terminator(' ').map(str::to_owned).collect();
        Rule { pattern, methods, access }
    })
    .into()
}

fn routes(rules: Vec<Rule>, options: RouteOptions) -> Option<Routes> {
    Routes::try_new(rules, options).ok()
}

/// A gated module with an exception in it, a gated operation, and a closed part.
fn usual() -> Routes {
    routes(rules().into_iter().take(4).collect(), RouteOptions::default()).expect("rules")
}

/// A target that begins as targets do: what does not is refused, which the readings' own tests see to.
fn rooted(text: &[u8]) -> Vec<u8> {
    if text.starts_with(b"/") { text.to_vec() } else { [b"/", text].concat() }
}

/// How strict a route is.
fn rank(route: &Route<'_>) -> u8 {
    match route {
        Route::Unmatched | Route::Always(_) => 0,
        Route::Gated(_) => 1,
        Route::Denied(_) => 2,
    }
}

fn needs(route: &Route<'_>, feature: &str) -> bool {
    route.rules().iter().any(|matched| matches!(&matched.rule.access, Access::Feature(name) if **name == *feature))
}

/// A backend does some things to the path, in some order and decoding at most twice, and then compares segments. If that
/// makes it run a gated handler, the gate has seen it coming. The input is a list of things to do, a zero byte, a target.
fn read_as_a_backend(input: &[u8]) {
    let (steps, target) =
        input.iter().position(|byte| *byte == 0).map_or((&[][..], input), |at| (&input[..at.min(8)], &input[at + 1..]));
    let target = rooted(target);
    let routes = usual();
    let Ok(read) = Target::parse(&target) else { return };
    let readings: Vec<&[u8]> = read.readings().map(licensing::path::Reading::bytes).collect();
    assert_eq!(readings.first(), Some(&read.path()), "the first reading is the path as it came");
    assert!(readings.iter().all(|reading| reading.starts_with(b"/")), "{readings:?}");
    assert!(readings.len() <= 128 && readings.iter().map(|reading| reading.len()).sum::<usize>() <= 128 * 1024 + 2);
    assert_eq!(read.is_ambiguous(), readings.len() > 1);

    let path = backend::path(steps, read.path());
    for method in ["GET", "POST", "HEAD"] {
        let route = routes.route(method, &read).expect("a route");
        let shown = String::from_utf8_lossy(&target);
        match backend::handler(method, &path) {
            Some("internal") => assert_eq!(rank(&route), 2, "{shown} by {steps:?}"),
            Some(feature) => {
                assert!(rank(&route) == 2 || needs(&route, feature), "{shown} runs {feature} by {steps:?}: {route:?}");
            }
            None => {}
        }
    }
}

/// A backend as simple as it gets, written without a look at the reader.
mod backend {
    /// What becomes of a path by these steps.
    pub(super) fn path(steps: &[u8], raw: &[u8]) -> Vec<u8> {
        let mut path = raw.to_vec();
        let mut decoded = 0;
        for step in steps {
            path = match step % 9 {
                0 | 1 if decoded == 2 => path,
                keeps_slashes @ (0 | 1) => {
                    decoded += 1;
                    decode(&path, keeps_slashes == 1)
                }
                2 => path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect(),
                3 => segments(&path, |all| {
                    let last = all.len() - 1;
                    all.iter()
                        .enumerate()
                        .filter(|(i, s)| *i == last || !s.is_empty())
                        .map(|(_, s)| s.clone())
                        .collect()
                }),
                4 => segments(&path, resolve),
                5 => segments(&path, |all| all.iter().map(|s| cut(s, |byte| byte == b';')).collect()),
                6 => segments(&path, |all| all.iter().map(|s| trimmed(s)).collect()),
                7 => without_host(&path),
                _ => path.to_ascii_lowercase(),
            };
        }
        path
    }

    /// Which handler runs: the feature that it belongs to, or `internal`.
    pub(super) fn handler(method: &str, path: &[u8]) -> Option<&'static str> {
        let path = cut(path, |byte| byte == b'?' || byte == b'#');
        let text = String::from_utf8_lossy(&path).to_lowercase();
        let segments: Vec<&str> = text.strip_suffix('/').unwrap_or(&text).split('/').skip(1).collect();
        match segments.as_slice() {
            // The exception, wherever it is spelled otherwise too.
            ["api", "v1", "crm", "public", ..] => None,
            ["api", "v1", "crm" | "crm.json", ..] => Some("crm"),
            ["api", "v1", "customers", id, "tickets" | "tickets.json"] if !id.is_empty() && method == "POST" => {
                Some("tickets")
            }
            ["internal", ..] => Some("internal"),
            _ => None,
        }
    }

    fn segments(path: &[u8], change: impl Fn(&[Vec<u8>]) -> Vec<Vec<u8>>) -> Vec<u8> {
        let all: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').skip(1).map(<[u8]>::to_vec).collect();
        if all.is_empty() {
            return path.to_vec();
        }
        change(&all).iter().flat_map(|segment| [b"/", segment.as_slice()].concat()).collect()
    }

    fn resolve(all: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut kept = Vec::new();
        for segment in all {
            match segment.as_slice() {
                b"." => {}
                b".." => drop(kept.pop()),
                _ => kept.push(segment.clone()),
            }
        }
        if matches!(all.last().map(Vec::as_slice), Some(b"." | b"..")) {
            kept.push(Vec::new());
        }
        kept
    }

    fn cut(segment: &[u8], at: impl Fn(u8) -> bool) -> Vec<u8> {
        segment.iter().copied().take_while(|byte| !at(*byte)).collect()
    }

    fn trimmed(segment: &[u8]) -> Vec<u8> {
        let inner = segment.trim_ascii();
        if matches!(inner, b"." | b"..") {
            return inner.to_vec();
        }
        let mut end = inner.len();
        while end > 0 && (inner[end - 1] == b'.' || inner[end - 1].is_ascii_whitespace()) {
            end -= 1;
        }
        inner[..end].to_vec()
    }

    fn without_host(path: &[u8]) -> Vec<u8> {
        if !path.starts_with(b"//") {
            return path.to_vec();
        }
        let host = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
        let rest = path[host..].iter().position(|byte| *byte == b'/').map_or(path.len(), |at| host + at);
        if rest == path.len() { b"/".to_vec() } else { path[rest..].to_vec() }
    }

    fn decode(path: &[u8], keep_slashes: bool) -> Vec<u8> {
        let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let (mut out, mut at) = (Vec::new(), 0);
        while at < path.len() {
            let byte = digit(at + 1).zip(digit(at + 2)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
            match byte {
                Some(byte) if path[at] == b'%' && !(keep_slashes && byte == b'/') => {
                    out.push(byte);
                    at += 3;
                }
                _ => {
                    out.push(path[at]);
                    at += 1;
                }
            }
        }
        out
    }
}

/// A plain path below a gated prefix stays gated, whatever single thing is done to it. The input is what stands behind the
/// prefix.
fn disguise(input: &[u8]) {
    let plain = input.iter().filter(|byte| byte.is_ascii_alphanumeric() || **byte == b'/').take(24);
    let tail: String = plain.map(|byte| char::from(*byte)).collect();
    let names = tail.split('/').filter(|name| !name.is_empty());
    let path: String =
        ["/api", "/v1", "/crm"].into_iter().map(str::to_owned).chain(names.map(|n| format!("/{n}"))).collect();
    if path.starts_with("/api/v1/crm/public") {
        return;
    }
    let routes = usual();
    let assert_gated = |target: &str| {
        let route = routes.resolve("GET", target.as_bytes()).unwrap_or_else(|why| panic!("{target}: {why}"));
        assert!(needs(&route, "crm"), "{target} is {route:?}");
    };
    assert_gated(&path);
    for (at, byte) in path.bytes().enumerate() {
        let (head, rest) = (&path[..at], &path[at + 1..]);
        if byte == b'/' {
            for slash in ["//", "///", "/./", "/x/../", "/%2e/", "/x/%2e%2e/", "/.;x/", "/x/..;y/", "/x/.%2e%20/"] {
                assert_gated(&format!("{head}{slash}{rest}"));
            }
        } else {
            let flipped = if byte.is_ascii_alphabetic() { char::from(byte ^ 0x20) } else { char::from(byte) };
            assert_gated(&format!("{head}{flipped}{rest}"));
        }
        if at == 0 {
            for above in ["/..", "/../..", "/%2e%2e", "//host", "/.//.."] {
                assert_gated(&format!("{above}{path}"));
            }
            continue;
        }
        for escaped in [format!("%{byte:02x}"), format!("%{byte:02X}"), format!("%25{byte:02x}")] {
            assert_gated(&format!("{head}{escaped}{rest}"));
        }
        if byte == b'/' {
            for slash in
                ["\\", "%5c", "%2f", "%252f", "%255C", "\\%2f", ";v=1/", ";/", "%3bv/", "./", "%20/", "/%20", "%2e/"]
            {
                assert_gated(&format!("{head}{slash}{rest}"));
            }
        }
    }
    for end in ["/", "//", "?", "?x=/../..", ";x", ".json", "/.", "/x/..", "%20", ".", "%3f", "%23x", "%2ejson"] {
        assert_gated(&format!("{path}{end}"));
    }
}

/// A gated rule more, or an exception less, never lets a request through that was stopped before; and the route is that
/// of the strictest reading. The first two bytes choose rules, the third the one that is added or left out.
fn add_a_rule(input: &[u8]) {
    let [first, second, which, target @ ..] = input else { return };
    let target = rooted(target);
    let (chosen, all) = (u16::from_be_bytes([*first, *second]), rules());
    let which = usize::from(*which) % all.len();
    // A denied path below which something is sold is sold on purpose.
    let without: Vec<Rule> = (all.iter().enumerate())
        .filter(|(i, rule)| *i != which && chosen >> i & 1 == 1 && rule.access != Access::Deny)
        .map(|(_, rule)| rule.clone())
        .collect();
    let with = [without.as_slice(), &all[which..=which]].concat();
    let options = RouteOptions::default();
    let deny = RouteOptions { unmatched: Unmatched::Deny, ..options.clone() };
    let refuse = RouteOptions { ambiguous: Ambiguous::Refuse, ..options.clone() };
    let Some(more) = routes(with.clone(), options.clone()) else { return };
    let [fewer, closed, strict] = [(without, options), (with.clone(), deny), (with, refuse)]
        .map(|(rules, options)| routes(rules, options).expect("rules that were good"));
    for method in ["GET", "POST", "HEAD"] {
        let rank_of = |routes: &Routes| routes.resolve(method, &target).map(|route| rank(&route));
        let shown = String::from_utf8_lossy(&target);
        let (more_rank, fewer_rank) = (rank_of(&more), rank_of(&fewer));
        match (&more_rank, &fewer_rank) {
            (Ok(more), Ok(fewer)) if all[which].access == Access::Always => assert!(more <= fewer, "{method} {shown}"),
            (Ok(more), Ok(fewer)) => assert!(more >= fewer, "{method} {shown}"),
            (more, fewer) => assert_eq!(more, fewer, "{method} {shown}"),
        }
        let Ok(read) = Target::parse(&target) else { continue };
        assert!(rank_of(&closed).ok() >= more_rank.ok(), "{method} {shown}");
        assert_eq!(rank_of(&strict).is_err(), read.is_ambiguous());
        let strictest = more.readings(method, &read).map(|(_, matched)| match matched.map(|m| &m.rule.access) {
            None | Some(Access::Always) => 0,
            Some(Access::Feature(_)) => 1,
            Some(Access::Deny) => 2,
        });
        assert_eq!(more_rank.ok(), strictest.max(), "{method} {shown}");
    }
}
