use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn readings(raw: &str) -> BTreeSet<String> {
    let target = Target::parse(raw.as_bytes()).unwrap_or_else(|refused| panic!("{raw} is refused: {refused}"));
    target.readings().map(|reading| String::from_utf8_lossy(reading.bytes()).into_owned()).collect()
}

#[test]
fn a_plain_path_is_its_own_and_only_reading() {
    for raw in [
        "/",
        "/api/v1/crm",
        "/api/v1/crm/",
        "/API/v1/Reports.csv",
        "/a/.well-known/x",
        "/a/..b/c",
        "/files/v1.2.tar.gz",
        "/users/@me/~a/b+c,d=e&f:g!(h)*$'",
    ] {
        let target = Target::parse(raw.as_bytes()).expect("plain");
        assert!(!target.is_ambiguous(), "{raw}");
        assert_eq!(target.readings.bytes.capacity(), 0, "{raw} must not allocate");
        assert_eq!(readings(raw), BTreeSet::from([raw.to_owned()]));
    }
}

#[test]
fn the_query_is_not_part_of_the_path() {
    for raw in ["/a?", "/a?/../b", "/a?x=%zz&y=//;%00", "/a?b?c"] {
        let target = Target::parse(raw.as_bytes()).expect("the query is not judged");
        assert_eq!(target.path(), b"/a");
        assert!(!target.is_ambiguous());
    }
}

#[test]
fn what_no_sane_client_sends_is_refused() {
    for (raw, why) in [
        (&b""[..], Malformed::Form),
        (b"?/x", Malformed::Form),
        (b"*", Malformed::Form),
        (b"a:80", Malformed::Form),
        (b"premium/report", Malformed::Form),
        (b"\\premium\\report", Malformed::Form),
        (b"http://host/premium", Malformed::Form),
        (b"%2Fpremium", Malformed::Form),
        (b" /premium", Malformed::Form),
        (b"/a#b", Malformed::Fragment),
        (b"/a#?b", Malformed::Fragment),
        (b"/caf\xc3\xa9", Malformed::NotAscii),
        (b"/a\xff", Malformed::NotAscii),
        (b"/a b", Malformed::Control),
        (b"/a\tb", Malformed::Control),
        (b"/a\r\n", Malformed::Control),
        (b"/a\0", Malformed::Control),
        (b"/a\x7f", Malformed::Control),
        (b"/%", Malformed::Escape),
        (b"/%2", Malformed::Escape),
        (b"/%zz", Malformed::Escape),
        (b"/%+1", Malformed::Escape),
        (b"/%%35", Malformed::Escape),
        (b"/%u002f", Malformed::Escape),
        (b"/a%00", Malformed::EncodedControl),
        (b"/report%0a", Malformed::EncodedControl),
        (b"/a%1F", Malformed::EncodedControl),
        (b"/a%7f", Malformed::EncodedControl),
    ] {
        let found = Target::parse(raw).map(|target| target.path().to_vec());
        assert_eq!(found, Err(why), "{}", String::from_utf8_lossy(raw));
        assert!(why.to_string().len() > 20);
    }
}

#[test]
fn readings_are_what_backends_make_of_a_path() {
    for (raw, expected) in [
        ("/a%20b", &["/a%20b", "/a b"][..]),
        ("/projects/group%2Fname", &["/projects/group%2Fname", "/projects/group/name"]),
        ("/a%252Fb", &["/a%252Fb", "/a%2Fb", "/a/b"]),
        // Only the second decoding meets the broken escape, and leaves it.
        ("/a%25zz%2541", &["/a%25zz%2541", "/a%zz%41", "/a%zzA"]),
        ("/100%25", &["/100%25", "/100%"]),
        ("/a%250ab", &["/a%250ab", "/a%0ab", "/a\nb"]),
        ("/a\\b", &["/a\\b", "/a/b"]),
        ("/a//b", &["/a//b", "/a/b"]),
        ("//a/b", &["//a/b", "/a/b", "/b"]),
        ("//a", &["//a", "/a", "/"]),
        ("/a/../b", &["/a/../b", "/b"]),
        ("/../a", &["/../a", "/a"]),
        ("/a/..", &["/a/..", "/"]),
        ("/a/b/.", &["/a/b/.", "/a/b/"]),
        ("/a//../b", &["/a//../b", "/a/../b", "/a/b", "/b"]),
        // To some a `;` begins the query.
        ("/a;v=1/b", &["/a;v=1/b", "/a/b", "/a"]),
        ("/a/..;x/b", &["/a/..;x/b", "/a/../b", "/b", "/a/..", "/"]),
        ("/a%3Fb/c", &["/a%3Fb/c", "/a?b/c", "/a"]),
        ("/a%23b/c", &["/a%23b/c", "/a#b/c", "/a"]),
        ("/a./b..", &["/a./b..", "/a/b"]),
        ("/a%20", &["/a%20", "/a ", "/a"]),
        ("/a/%20b", &["/a/%20b", "/a/ b", "/a/b"]),
        ("/a/..%20/b", &["/a/..%20/b", "/a/.. /b", "/a/../b", "/b"]),
        ("/%E2%84%AA%C5%BF%C4%B1", &["/%E2%84%AA%C5%BF%C4%B1", "/\u{212a}\u{17f}\u{131}", "/ksi"]),
        // What is full-width, and what is encoded in more bytes than it needs.
        ("/%EF%BC%A1%ef%bd%82%EF%BC%8Fc", &["/%EF%BC%A1%ef%bd%82%EF%BC%8Fc", "/\u{ff21}\u{ff42}\u{ff0f}c", "/Ab/c"]),
        ("/a%E2%88%95b%E2%81%84c", &["/a%E2%88%95b%E2%81%84c", "/a\u{2215}b\u{2044}c", "/a/b/c"]),
        // The dots are resolved before the slash is decoded, or after, or the slash is never decoded.
        ("/a%2Fb/%2e%2e/c", &["/a%2Fb/%2e%2e/c", "/a%2Fb/../c", "/a/b/../c", "/a/c", "/c"]),
    ] {
        assert_eq!(readings(raw), expected.iter().map(ToString::to_string).collect(), "{raw}");
    }
}

#[test]
fn names_that_are_not_utf8_are_bytes() {
    let target = Target::parse(b"/caf%E9").expect("legacy names are real");
    let readings: Vec<_> = target.readings().map(Reading::bytes).collect();
    assert_eq!(readings, [&b"/caf%E9"[..], b"/caf\xe9"]);
}

#[test]
fn overlong_utf8_is_read_as_careless_decoders_do() {
    for raw in ["/x%c1%a1y%c0%afz", "/x%e0%81%a1y%e0%80%afz", "/x%f0%80%81%a1y%f0%80%80%afz"] {
        assert!(readings(raw).contains("/xay/z"), "{raw}");
    }
    // No more than that: these are other characters, or none.
    for raw in ["/x%c3%a1y", "/x%e0%a1%a1y", "/x%c1y", "/x%e0%81y", "/x%f0%80%81", "/x%ef%bc%80", "/x%ef%bd%9f"] {
        assert_eq!(readings(raw).len(), 2, "{raw}");
    }
}

#[test]
fn real_paths_stay_far_from_the_bound() {
    for (raw, at_most) in [
        ("/customers/J%C3%BCrgen%20M%C3%BCller", 2),
        ("/customers/I%C5%9F%C4%B1k", 3),
        ("/files/Quarterly%20report%20v1.2%20%28final%29.pdf", 2),
        ("/files/Acme%20Inc.", 4),
        ("/repos/group%2Fsub%2Fname/files/src%2Fmain%2Ers", 3),
        ("/proxy/https%3A%2F%2Fexample.com%2Fa%2520b%3Fq%3D1%23top", 13),
        ("/callback/https%3A%2F%2Fa.example%2F%3Fr%3Dhttps%253A%252F%252Fb.example%252Fx", 13),
        ("/a;jsessionid=0123456789abcdef/b;v=1.2", 3),
        ("//api//v1//crm//", 8),
        ("//a;v=1//b%2Fc.", 29),
    ] {
        let count = readings(raw).len();
        assert!(count <= at_most, "{raw} has {count} readings");
    }
}

#[test]
fn layers_upon_layers_are_refused() {
    let raw = "/%252e%2e%5c%255c%2f;%3b%253b/%252f/.%20/%2520.//\\..;/%25e2%2584%25aa/...%2f..";
    assert_eq!(Target::parse(raw.as_bytes()).map(|_| ()), Err(Malformed::Readings));
    let long = format!("/{}", "%25/..//;\\x. ".replace(' ', "%20").repeat(4096));
    assert_eq!(Target::parse(long.as_bytes()).map(|_| ()), Err(Malformed::Readings));
}

#[test]
fn a_long_path_with_plain_escapes_is_not_refused() {
    let raw = format!("/{}", "%20".repeat(65_535 / 3));
    assert!(Target::parse(format!("{raw}x").as_bytes()).is_ok());
    let plain = format!("/{}", "x".repeat(1 << 20));
    assert!(Target::parse(plain.as_bytes()).is_ok());
}

/// The rewrites once more, on strings and without traits.
fn every_rewrite(path: &[u8]) -> Vec<Vec<u8>> {
    let apply = |rewrite: &Rewrite| {
        let mut out = Vec::new();
        (rewrite.apply)(path, &mut out);
        out
    };
    REWRITES.iter().map(apply).collect()
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_bounded(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(target) = Target::parse(&raw) {
            prop_assert!(target.readings().len() <= MAX_READINGS);
        }
    }

    #[test]
    fn readings_are_distinct_closed_and_begin_with_a_slash(
        tail in "(/|//|\\\\|a|b|\\.|\\.\\.|;|%20|%2[eEfF5]|%252[ef]|%5[cC]|%3[bB]|%E2%84%AA){0,12}",
    ) {
        let raw = format!("/{tail}");
        let Ok(target) = Target::parse(raw.as_bytes()) else { return Ok(()) };
        let readings: Vec<_> = target.readings().map(Reading::bytes).collect();
        prop_assert_eq!(readings[0], raw.as_bytes());
        let set: BTreeSet<_> = readings.iter().copied().collect();
        prop_assert_eq!(set.len(), readings.len());
        for reading in &readings {
            prop_assert!(reading.starts_with(b"/"));
            for rewritten in every_rewrite(reading) {
                let text = String::from_utf8_lossy(&rewritten);
                prop_assert!(set.contains(rewritten.as_slice()), "{:?} lacks {:?}", raw, text);
            }
        }
        let mut once = Vec::new();
        decode(raw.as_bytes(), &mut once);
        let mut twice = Vec::new();
        decode(&once, &mut twice);
        prop_assert!(set.contains(once.as_slice()) && set.contains(twice.as_slice()));
    }
}
