use std::cell::Cell;

use proptest::{prelude::*, sample::select};

use super::*;

thread_local! {
    static PROBES: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn count_probe() {
    PROBES.set(PROBES.get() + 1);
}

fn feature(name: &str) -> Access {
    Access::Feature(name.into())
}

/// `prefix /x [GET POST]` or `path /x`.
fn rule(text: &str, access: Access) -> Rule {
    let mut words = text.split([' ', '[', ']']).filter(|word| !word.is_empty());
    let (kind, path) = (words.next().expect("a kind"), words.next().expect("a path").to_owned());
    let pattern = if kind == "prefix" { Pattern::Prefix(path) } else { Pattern::Path(path) };
    Rule { pattern, methods: words.map(str::to_owned).collect(), access }
}

fn routes_with(rules: &[(&str, Access)], options: RouteOptions) -> Routes {
    let rules = rules.iter().map(|(text, access)| rule(text, access.clone())).collect();
    Routes::try_new(rules, options).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

fn routes(rules: &[(&str, Access)]) -> Routes {
    routes_with(rules, RouteOptions::default())
}

fn deny_unmatched() -> RouteOptions {
    RouteOptions { unmatched: Unmatched::Deny, ..RouteOptions::default() }
}

/// The route in a word: `crm+tickets`, `always`, `deny`, `unmatched`, or why there is none.
fn outcome(routes: &Routes, method: &str, target: &str) -> String {
    match routes.resolve(method, target.as_bytes()) {
        Err(Refusal::Malformed(_)) => "malformed".to_owned(),
        Err(Refusal::Ambiguous) => "ambiguous".to_owned(),
        Ok(Route::Denied(Some(_))) => "deny".to_owned(),
        Ok(Route::Denied(None)) => "deny unmatched".to_owned(),
        Ok(Route::Always(_)) => "always".to_owned(),
        Ok(Route::Unmatched) => "unmatched".to_owned(),
        Ok(Route::Gated(rules)) => {
            let names = rules.iter().map(|matched| match &matched.rule.access {
                Access::Feature(name) => name.to_string(),
                other => panic!("gated by {other:?}"),
            });
            names.collect::<Vec<_>>().join("+")
        }
    }
}

fn assert_outcomes(routes: &Routes, cases: &[(&str, &str)]) {
    for (request, expected) in cases {
        let (method, target) = request.split_once(' ').unwrap_or(("GET", request));
        assert_eq!(outcome(routes, method, target), *expected, "{request}");
    }
}

fn dotmac() -> Routes {
    routes(&[
        ("prefix /api/v1/network", Access::Always),
        ("prefix /api/v1/crm", feature("crm")),
        ("path /api/v1/crm/public/ping", Access::Always),
        ("prefix /api/v1/crm/help", Access::Always),
        ("prefix /api/v1/tickets", feature("tickets")),
        ("path /api/v1/customers/{id}/tickets [POST]", feature("tickets")),
        ("path /api/v1/reports", feature("analytics")),
        ("prefix /internal", Access::Deny),
    ])
}

#[test]
fn rules_match_on_segment_boundaries() {
    assert_outcomes(
        &dotmac(),
        &[
            ("/api/v1/crm", "crm"),
            ("/api/v1/crm/", "crm"),
            ("/api/v1/crm/customers/42", "crm"),
            ("/api/v1/crm?x=/api/v1/network", "crm"),
            ("/api/v1/crmx", "unmatched"),
            ("/api/v1/crm-archive", "unmatched"),
            ("/api/v1", "unmatched"),
            ("/", "unmatched"),
            ("/api/v1/network/olts", "always"),
            ("/api/v1/reports", "analytics"),
            ("/api/v1/reports/", "analytics"),
            ("/api/v1/reports/7", "unmatched"),
            ("/internal/debug", "deny"),
            ("POST /api/v1/customers/42/tickets", "tickets"),
            ("GET /api/v1/customers/42/tickets", "unmatched"),
            ("POST /api/v1/customers//tickets", "tickets"),
            ("POST /api/v1/customers//tickets/x", "unmatched"),
            ("POST /api/v1/customers/42/notes", "unmatched"),
        ],
    );
}

#[test]
fn the_most_specific_rule_wins() {
    let routes = routes(&[
        ("prefix /", feature("root")),
        ("prefix /a", feature("a")),
        ("path /a", feature("a-alone")),
        ("prefix /a/{x}", feature("a-any")),
        ("prefix /a/{x}/c", feature("a-any-c")),
        ("prefix /a/b", feature("a-b")),
        ("prefix /a/b [GET]", feature("a-b-get")),
        ("path /a/{x}/{y} [PUT]", feature("put")),
        ("prefix /v1", feature("v1")),
        ("prefix /v1.1", feature("v1.1")),
    ]);
    assert_outcomes(
        &routes,
        &[
            ("/", "root"),
            ("/z", "root"),
            ("/a", "a-alone"),
            ("/a/", "a-alone"),
            ("/a/x", "a-any"),
            ("/a/x/c", "a-any-c"),
            // A literal on the left beats a longer pattern with a template there.
            ("POST /a/b/c", "a-b"),
            ("GET /a/b/c", "a-b-get"),
            ("HEAD /a/b/c", "a-b-get"),
            ("PUT /a/x/y", "put"),
            ("PUT /a/b/c", "a-b"),
            ("/v1/x", "v1"),
            ("/v1.0/x", "v1"),
            ("/v1.1/x", "v1.1"),
            ("/v1.1.json", "v1.1"),
        ],
    );
}

#[test]
fn get_includes_head() {
    let routes = routes(&[("path /a [GET]", feature("get")), ("path /b [HEAD]", feature("head"))]);
    assert_outcomes(
        &routes,
        &[
            ("GET /a", "get"),
            ("HEAD /a", "get"),
            ("POST /a", "unmatched"),
            ("HEAD /b", "head"),
            ("GET /b", "unmatched"),
            ("get /a", "malformed"),
            ("Get /a", "malformed"),
        ],
    );
}

#[test]
fn no_spelling_gets_past_the_gate() {
    let routes = dotmac();
    for target in [
        // Percent-encoding, once and twice.
        "/%61pi/v1/crm",
        "/api/v1/%63%72%6d/customers",
        "/api/v1/%2563rm",
        "/api%2Fv1%2Fcrm",
        "/api%2fv1/crm%2Fcustomers",
        "/api%252fv1%252Fcrm",
        "/%2561%2570%2569/v1/crm",
        // Separators.
        "/api\\v1\\crm",
        "/api%5Cv1%5ccrm",
        "/api%255cv1/crm",
        "//api/v1/crm",
        "///api//v1///crm//",
        "/api//v1/crm",
        "/%2Fapi/v1/crm",
        "//host/api/v1/crm",
        "/\\host/api/v1/crm",
        "//user:password@host:80//api/v1/crm",
        // Dot segments.
        "/./api/./v1/./crm",
        "/x/../api/v1/crm",
        "/../../api/v1/crm",
        "/%2e/api/v1/crm",
        "/%2e%2e/api/v1/crm",
        "/%252e%252e%252fapi/v1/crm",
        "/api/v1/network/../crm",
        "/api/v1/network/%2e%2e/crm",
        "/api/v1/network/..%2fcrm",
        "/api/v1/network/..%5ccrm",
        "/api/v1/network/.%2e\\crm",
        "/api/v1/network/%252e%252e/crm",
        "/api/v1/network//../../crm",
        "/api/v1/network//..//crm",
        "/api/v1/network/..;/crm",
        "/api/v1/network/..;a=b;c/crm",
        "/api/v1/network/..%3b/crm",
        "/api/v1/network/..%20/crm",
        "/api/v1/x%2fy/%2e%2e/crm",
        "/;/api/v1/crm",
        "/..;/api/v1/crm",
        "/.;x/api/v1/crm",
        // What routers cut.
        "/api/v1/crm;.css",
        "/api/v1/crm;jsessionid=1",
        "/api;x=y/v1;z/crm",
        "/api/v1/crm%3Bx",
        "/api/v1/crm.json",
        "/api/v1/crm.",
        "/api/v1/crm..",
        "/api/v1/crm%20",
        "/api/v1/crm%20.%20",
        "/api/v1/crm%2520",
        "/api/v1/crm%2500",
        "/api/v1/crm%250a",
        "/api/v1/%20crm",
        "/api./v1./crm./x",
        "/api/v1.json/crm/x",
        "/api/v1/crm%3F.css",
        "/api/v1/crm;/../../../other",
        "/api/v1/crm%EF%BC%8Fx",
        "/api%c0%afv1%c0%afcrm",
        "/api/v1/%EF%BD%83rm",
        "/api/v1/crm%23/x",
        // Letter case, by ASCII and by Unicode.
        "/API/V1/CRM",
        "/api/v1/cRm/X",
        "/Api/v1/%43RM.JSON",
        // Exceptions that are not spelled as they are written.
        "/api/v1/crm/PUBLIC/ping",
        "/api/v1/crm/public/ping/",
        "/api/v1/crm/public/ping.json",
        "/api/v1/crm/public/ping;x",
        "/api/v1/crm/public/%70ing",
        "/api/v1/crm/public//ping",
        "/api/v1/crm/public/ping/x",
        "/API/v1/crm/public/ping",
        "/api/v1/crm/help/../contacts",
        "/api/v1/crm/help/..%2fcontacts",
        "/api/v1/crm/help/%2e%2e%5ccontacts",
        "/api/v1/crm/help/..;/contacts",
        "/api/v1/crm/help//../contacts",
        "/api/v1/crm/help;/contacts",
        "/api/v1/crm/help.x",
        "/api/v1/crm/helpx",
    ] {
        assert_eq!(outcome(&routes, "GET", target), "crm", "{target}");
    }
    for target in [
        "/api/v1/reports/",
        "/api/v1/reports//",
        "/api/v1/reports/.",
        "/api/v1/Reports.csv",
        "/api/v1/reports;a/",
        "/api/v1/reports%2f",
        "/api/v1/reports%3fx/y",
        // Where `;` begins the query.
        "/api/v1/reports;/x",
        "/api/v1/reports;/../../../network",
        "/api/v1/reports%3b/x",
        "/api/v1/x%2Fy/../reports",
    ] {
        assert_eq!(outcome(&routes, "GET", target), "analytics", "{target}");
    }
    for target in [
        "/api/v1/customers/a%2Fb/tickets",
        "/%61pi/v1/customers/a%2Fb/tickets",
        "/api/v1/customers/42/TICKETS/",
        "/api/v1/customers/42;x/tickets;y",
        "/api/v1/customers/42/%E2%84%AA/../tic%E2%84%AAets",
        "/api/v1/customers/%20/tickets%20",
    ] {
        assert_eq!(outcome(&routes, "POST", target), "tickets", "{target}");
    }
    for target in ["/internal%2Fx", "/x/..;/INTERNAL", "/%2569nternal.html", "/api/v1/crm/../../../internal"] {
        assert_eq!(outcome(&routes, "GET", target), "deny", "{target}");
    }
    for target in ["/api/v1/crm%00", "/api/v1/crm%0a", "api/v1/crm", "\\api\\v1\\crm", "/api/v1/crm%", "/api/v1/crm#x"]
    {
        assert_eq!(outcome(&routes, "GET", target), "malformed", "{target}");
    }
}

#[test]
fn no_ordinary_request_is_refused_or_gated() {
    assert_outcomes(
        &dotmac(),
        &[
            ("/projects/group%2Fname", "unmatched"),
            ("/customers/J%C3%BCrgen%20M%C3%BCller", "unmatched"),
            ("/files/caf%E9.txt", "unmatched"),
            ("/files/100%25.txt", "unmatched"),
            ("/files/Acme%20Inc.", "unmatched"),
            ("/search/what%3F", "unmatched"),
            ("/api/v1/crm%20archive", "unmatched"),
            ("/api/v1/crm_old", "unmatched"),
            ("/api/v1/network/group%2Fname", "always"),
            ("/api/v1/network/a//b;c=1/d.", "always"),
            ("/api/v1/network/100%25", "always"),
            ("/api/v1/crm/public/ping", "always"),
            ("/api/v1/crm/public/ping?x", "always"),
            ("/api/v1/crm/help", "always"),
            ("/api/v1/crm/help/", "always"),
            ("/api/v1/crm/help/a%20b%2Fc;d", "always"),
        ],
    );
}

#[test]
fn the_strictest_reading_decides_and_every_feature_counts() {
    let routes = dotmac();
    assert_outcomes(
        &routes,
        &[
            ("/api/v1/crm/../tickets", "crm+tickets"),
            ("/api/v1/tickets/..%2fcrm", "tickets+crm"),
            ("/api/v1/network/../tickets", "tickets"),
            ("/api/v1/network/../other", "always"),
            ("/api/v1/tickets/../../../internal", "deny"),
        ],
    );
    let Ok(Route::Gated(rules)) = routes.resolve("GET", b"/api/v1/crm/../tickets") else { panic!("gated") };
    assert_eq!(rules.iter().map(|matched| matched.index).collect::<Vec<_>>(), [1, 4]);
    assert_eq!(
        routes.rules().nth(4).map(|matched| matched.rule.to_string()).as_deref(),
        Some("prefix /api/v1/tickets")
    );
}

#[test]
fn an_exception_wins_only_where_it_is_more_specific() {
    let routes = routes(&[
        ("prefix /a", Access::Always),
        ("prefix /a/{id}", Access::Always),
        ("prefix /a/crm", feature("crm")),
        ("prefix /b", feature("b")),
        ("prefix /b [GET]", Access::Always),
        ("path /b/{id}/photo", Access::Always),
        ("path /c/", Access::Always),
        ("prefix /c", feature("c")),
        ("prefix /d/", Access::Always),
        ("path /d", feature("d")),
        ("path /e.json", Access::Always),
        ("prefix /e", feature("e")),
        ("path /F", Access::Always),
        ("path /f", Access::Always),
    ]);
    assert_outcomes(
        &routes,
        &[
            ("/a/x", "always"),
            ("/a/crm", "crm"),
            ("/a/CRM.json", "crm"),
            ("GET /b/x", "always"),
            ("HEAD /b/x", "always"),
            ("GET /B/x", "b"),
            ("POST /b/x", "b"),
            ("POST /b/1/photo", "always"),
            ("POST /b/1/Photo", "b"),
            ("POST /b//photo", "b"),
            ("/c/", "always"),
            ("/c", "c"),
            ("/c/x", "c"),
            ("/d", "d"),
            ("/d/", "d"),
            ("/d/x", "always"),
            ("/e.json", "always"),
            ("/e.JSON", "e"),
            ("/e.json.x", "e"),
            ("/F", "always"),
            ("/f", "always"),
        ],
    );
}

#[test]
fn a_template_of_a_gated_rule_stands_for_nothing_unless_another_rule_is_for_that_path() {
    let routes = routes(&[
        ("path /a/{id}", feature("a")),
        ("prefix /b/{id}/c", feature("b")),
        ("path /c/{id}", feature("c")),
        ("path /c/", Access::Always),
        ("path /d/{id}", feature("d-one")),
        ("path /d", feature("d-all")),
        ("prefix /e", feature("e")),
        ("path /e/{id}", Access::Always),
        ("prefix /f", Access::Always),
        ("prefix /f/{id}", feature("f")),
    ]);
    assert_outcomes(
        &routes,
        &[
            ("/a/", "a"),
            ("/a//", "a"),
            ("/a", "unmatched"),
            ("/a/7;/x", "a"),
            ("/a/7%3Fx/y", "a"),
            ("/b//c", "b"),
            ("/b//c/x", "b"),
            ("/b/", "unmatched"),
            ("/c/", "always"),
            ("/c//", "c"),
            ("/d/", "d-all"),
            ("/d/7", "d-one"),
            ("/e/", "e"),
            ("/e/7", "always"),
            ("/e/7/", "e"),
            ("/f", "always"),
            ("/f/", "f"),
        ],
    );
}

#[test]
fn unmatched_deny_holds_for_every_reading() {
    let routes = routes_with(
        &[("prefix /open", Access::Always), ("path /items/{id}", Access::Always), ("prefix /crm", feature("crm"))],
        deny_unmatched(),
    );
    assert_outcomes(
        &routes,
        &[
            ("/open/a%20b;c", "always"),
            ("/crm/a%2Fb", "crm"),
            ("/other", "deny unmatched"),
            ("/OPEN", "deny unmatched"),
            ("/open/../other", "deny unmatched"),
            ("/crm/../other", "deny unmatched"),
            ("/items/a%20b", "always"),
            // One of its readings is a path that no rule lists.
            ("/items/a%2Fb", "deny unmatched"),
        ],
    );
}

#[test]
fn ambiguous_refuse_refuses_every_second_reading() {
    let options = RouteOptions { ambiguous: Ambiguous::Refuse, ..RouteOptions::default() };
    let routes = routes_with(&[("prefix /crm", feature("crm")), ("prefix /open", Access::Always)], options);
    assert_outcomes(
        &routes,
        &[
            ("/crm/42", "crm"),
            ("/CRM.json", "crm"),
            ("/open/x", "always"),
            ("/other", "unmatched"),
            ("/projects/group%2Fname", "ambiguous"),
            ("/open/a%20b", "ambiguous"),
            ("/open//a", "ambiguous"),
            ("/open/a;b", "ambiguous"),
            ("/open/a.", "ambiguous"),
            ("/open/%00", "malformed"),
        ],
    );
}

#[test]
fn an_alias_makes_two_paths_one() {
    let options = RouteOptions { path_aliases: vec!["/api".into(), "/svc/app".into()], ..deny_unmatched() };
    let routes = routes_with(
        &[
            ("prefix /", Access::Deny),
            ("prefix /v1/network", Access::Always),
            ("prefix /api/v1/crm", feature("crm")),
            ("path /v1/crm/ping", Access::Always),
            ("prefix /{region}/tickets", feature("tickets")),
        ],
        options,
    );
    assert_outcomes(
        &routes,
        &[
            ("/v1/network/x", "always"),
            ("/api/v1/network/x", "always"),
            ("/svc/app/v1/network", "always"),
            ("/API/v1/network", "deny"),
            ("/api/api/v1/network", "deny"),
            ("/v1/crm", "crm"),
            ("/api/v1/crm", "crm"),
            ("/api/api/v1/crm", "crm"),
            ("/svc/app/v1/crm/x", "crm"),
            ("/svc/app/api/v1/crm/x", "crm"),
            ("/API.x/v1/crm.json", "crm"),
            // To some it ends at the semicolon, where everything is denied.
            ("/API;x/v1/crm.json", "deny"),
            ("/api/v1/crm/ping", "always"),
            ("/api/v1/CRM/ping", "crm"),
            ("/eu/tickets", "tickets"),
            ("/api/eu/tickets", "tickets"),
            ("/tickets", "tickets"),
            ("/v2", "deny"),
        ],
    );
    let short = RouteOptions { path_aliases: vec!["/api/v1".into()], ..RouteOptions::default() };
    let routes = routes_with(&[("prefix /api", feature("api")), ("path /api/v1", Access::Always)], short);
    assert_outcomes(&routes, &[("/x", "api"), ("/", "always"), ("/api/v1", "always"), ("/api/v2", "api")]);
}

#[test]
fn two_rules_for_the_same_requests_are_refused() {
    let always = || Access::Always;
    for (rules, clash) in [
        ([("prefix /a", feature("a")), ("prefix /a", feature("b"))], true),
        ([("prefix /a", feature("a")), ("prefix /a/", feature("b"))], true),
        ([("prefix /a", feature("a")), ("prefix /A", feature("b"))], true),
        ([("prefix /a", feature("a")), ("prefix /A", always())], true),
        ([("prefix /a/{id}", feature("a")), ("prefix /a/{x}", Access::Deny)], true),
        ([("path /a [GET]", feature("a")), ("path /a [PUT GET]", feature("a"))], true),
        ([("path /a [GET]", feature("a")), ("path /a [HEAD]", feature("b"))], true),
        ([("path /a [HEAD]", feature("a")), ("path /a [GET]", feature("b"))], true),
        ([("path /a", always()), ("path /a", always())], true),
        ([("path /a", always()), ("path /a/", feature("a"))], true),
        ([("path /a", always()), ("path /A", always())], false),
        ([("path /a", always()), ("path /a/", always())], false),
        ([("path /a", feature("a")), ("prefix /a", feature("b"))], false),
        ([("path /a [GET]", feature("a")), ("path /a [PUT]", feature("b"))], false),
        ([("path /a [GET]", feature("a")), ("path /a", feature("b"))], false),
        ([("path /a/{id}", feature("a")), ("path /a/id", feature("b"))], false),
    ] {
        let rules: Vec<_> = rules.iter().map(|(text, access)| rule(text, access.clone())).collect();
        let text = format!("{} and {}", rules[0], rules[1]);
        match Routes::try_new(rules, RouteOptions::default()) {
            Ok(_) => assert!(!clash, "{text}"),
            Err(wrong) => {
                assert!(clash, "{text}");
                assert_eq!((wrong.place(), wrong.other()), (Place::Rule(1), Some(0)), "{text}");
            }
        }
    }
}

#[test]
fn an_alias_lays_bare_rules_that_contradict_each_other() {
    let with = |first: Access, second: Access| {
        let options = RouteOptions { path_aliases: vec!["/api".into()], ..RouteOptions::default() };
        Routes::try_new(vec![rule("prefix /api/v1/crm", first), rule("prefix /v1/crm", second)], options)
    };
    assert!(with(feature("crm"), feature("crm")).is_ok());
    let wrong = with(feature("crm"), Access::Always).expect_err("one path, two answers");
    assert_eq!(wrong.problem(), &Problem::DuplicateByAlias { other: 1 });
    assert_eq!((wrong.place(), wrong.other()), (Place::Rule(0), Some(1)));
}

#[test]
fn impossible_rules_are_refused() {
    let template = |text: &str| Problem::Template(text.to_owned());
    for (path, problem) in [
        ("", Problem::LeadingSlash),
        ("api", Problem::LeadingSlash),
        ("//", Problem::EmptySegment),
        ("//a", Problem::EmptySegment),
        ("/a//b", Problem::EmptySegment),
        ("/a//", Problem::EmptySegment),
        ("/a/./b", Problem::DotSegment),
        ("/a/..", Problem::DotSegment),
        ("/a%20b", Problem::Character('%')),
        ("/a?b", Problem::Character('?')),
        ("/a#b", Problem::Character('#')),
        ("/a\\b", Problem::Character('\\')),
        ("/a;b", Problem::Character(';')),
        ("/a b", Problem::Character(' ')),
        ("/a\tb", Problem::Character('\t')),
        ("/a\u{7f}", Problem::Character('\u{7f}')),
        ("/a/{id", template("{id")),
        ("/a/{id}.json", template("{id}.json")),
        ("/a/{}", template("{}")),
        ("/a/{path:path}", template("{path:path}")),
        ("/a/:id", template(":id")),
        ("/a/<int:id>", template("<int:id>")),
        ("/a/*", template("*")),
    ] {
        for pattern in [Pattern::Prefix(path.to_owned()), Pattern::Path(path.to_owned())] {
            let rules =
                vec![rule("prefix /ok", Access::Always), Rule { pattern, methods: Vec::new(), access: Access::Deny }];
            let wrong = Routes::try_new(rules, RouteOptions::default()).expect_err(path);
            assert_eq!((wrong.place(), wrong.problem(), wrong.other()), (Place::Rule(1), &problem, None), "{path}");
        }
    }
    for (path, problem) in
        [(format!("/{}", "x".repeat(128)), Problem::LongSegment), ("/x".repeat(65), Problem::TooDeep)]
    {
        let rules = vec![Rule { pattern: Pattern::Path(path), methods: Vec::new(), access: Access::Deny }];
        assert_eq!(Routes::try_new(rules, RouteOptions::default()).expect_err("beyond").problem(), &problem);
    }
    for method in ["get", "Get", "", "G ET", "GÉT", "GET,POST"] {
        let rules = vec![Rule { methods: vec!["PUT".into(), method.into()], ..rule("path /a", Access::Deny) }];
        let wrong = Routes::try_new(rules, RouteOptions::default()).expect_err(method);
        assert_eq!(wrong.problem(), &Problem::Method(method.to_owned()));
    }
    for (alias, problem) in [
        ("/", Problem::Alias),
        ("/{x}", Problem::Alias),
        ("api", Problem::LeadingSlash),
        ("/a/../b", Problem::DotSegment),
    ] {
        let options = RouteOptions { path_aliases: vec!["/ok".into(), alias.into()], ..RouteOptions::default() };
        let wrong = Routes::try_new(Vec::new(), options).expect_err(alias);
        assert_eq!((wrong.place(), wrong.problem()), (Place::Alias(1), &problem), "{alias}");
        assert_eq!(wrong.to_string(), problem.to_string());
    }
}

#[test]
fn rules_read_well_in_logs() {
    let text = ["prefix /api/v1/crm", "path /api/v1/customers/{id}/tickets [POST]", "path /a [GET PUT]"];
    for text in text {
        assert_eq!(rule(text, Access::Deny).to_string(), text);
    }
}

#[test]
fn explaining_shows_each_reading_with_its_rule() {
    let routes = dotmac();
    let target = Target::parse(b"/api/v1/network/..%2Fcrm").expect("well formed");
    let readings: Vec<_> = (routes.readings("GET", &target))
        .map(|(reading, rule)| (String::from_utf8_lossy(reading.bytes()), rule.map(|rule| rule.rule.to_string())))
        .map(|(reading, rule)| format!("{reading} {}", rule.unwrap_or_default()))
        .collect();
    assert_eq!(
        readings,
        [
            "/api/v1/network/..%2Fcrm prefix /api/v1/network",
            "/api/v1/network/../crm prefix /api/v1/network",
            "/api/v1/crm prefix /api/v1/crm",
        ]
    );
}

/// Targets as real applications use them, against the shipped map: `tests/corpus/legitimate.txt` says what the lines are.
#[test]
fn no_target_of_real_applications_is_refused() {
    let config = crate::config::parse("dotmac.yaml", include_str!("../../../../config/dotmac.yaml"));
    let config = config.unwrap_or_else(|problems| panic!("{problems}")).config;
    let routes = config.routes.routes().unwrap_or_else(|error| panic!("{error}"));
    let (mut open, mut gated, mut ambiguous) = (0, 0, 0);
    for line in include_str!("../../../../tests/corpus/legitimate.txt").lines() {
        let (needed, target) = line.split_once(' ').unwrap_or(("", line));
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match outcome(&routes, "GET", target).as_str() {
            "always" | "unmatched" if needed.is_empty() => open += 1,
            found => {
                assert_eq!(found, needed, "{target}");
                gated += 1;
            }
        }
        ambiguous += usize::from(Target::parse(target.as_bytes()).expect("routed above").is_ambiguous());
    }
    assert!(open > 2_000 && gated > 100 && ambiguous > 1_000, "{open} open, {gated} gated, {ambiguous} ambiguous");
}

/// Ten rules, and as many more as asked for, both beside them and below the same nodes.
fn many(count: usize) -> Routes {
    let mut rules = vec![
        rule("prefix /api/v1/crm", feature("crm")),
        rule("prefix /api/v1/network", Access::Always),
        rule("prefix /api/v1/tickets", feature("tickets")),
        rule("path /api/v1/customers/{id}/tickets [POST]", feature("tickets")),
    ];
    let more = (rules.len()..count).map(|index| match index % 3 {
        0 => rule(&format!("prefix /api/v1/module-{index}"), feature("other")),
        1 => rule(&format!("path /api/v1/customers/{{id}}/part-{index}"), feature("other")),
        _ => rule(&format!("prefix /api/v2-{index}/crm"), feature("other")),
    });
    rules.extend(more);
    Routes::try_new(rules, RouteOptions::default()).expect("distinct")
}

#[test]
fn a_match_costs_the_same_among_ten_thousand_rules() {
    let (few, plenty) = (many(10), many(10_000));
    let probes = |routes: &Routes, target: &str| {
        PROBES.set(0);
        let outcome = outcome(routes, "POST", target);
        (outcome, PROBES.get())
    };
    for target in [
        "/api/v1/crm/customers/42",
        "/API/v1/network/x",
        "/api/v1/customers/42/tickets",
        "/api/v1/customers/42/other",
        "/nothing/like/it",
        "/api/v1/crm.json",
        "/%61pi//v1/crm",
    ] {
        let (outcome, count) = probes(&few, target);
        let (same_outcome, same_count) = probes(&plenty, target);
        assert_eq!(outcome, same_outcome, "{target}");
        // A segment that is no literal may meet the length of one, and is then looked up in vain: at most once each.
        assert!(same_count <= count + 1, "{target}: {count} look-ups among 10 rules, {same_count} among 10,000");
    }
    assert_eq!(probes(&few, "/api/v1/crm/customers/42"), probes(&plenty, "/api/v1/crm/customers/42"));
}

/// The rules once more, without a trie: every rule is tried, and the best is kept.
mod naive {
    use super::*;

    /// How specific a rule is on a path: per segment a literal (by length), a template, or the end of the pattern: that of a
    /// path, then nothing for a template, then that of a prefix; then named methods.
    type Rank = (Vec<usize>, bool);

    const PREFIX_END: usize = 0;
    const NOTHING: usize = 1;
    const PATH_END: usize = 2;
    const TEMPLATE: usize = 3;

    pub(super) fn best(rules: &[Rule], method: &str, path: &str) -> Option<usize> {
        let ranks = rules.iter().enumerate().filter_map(|(index, rule)| Some((rank(rule, method, path)?, index)));
        ranks.max_by(|one, other| one.0.cmp(&other.0)).map(|(_, index)| index)
    }

    fn rank(rule: &Rule, method: &str, path: &str) -> Option<Rank> {
        if !rule.is_for(method) {
            return None;
        }
        let (pattern, is_path) = match &rule.pattern {
            Pattern::Path(path) => (path, true),
            Pattern::Prefix(path) => (path, false),
        };
        let exact = rule.access == Access::Always;
        let own: Vec<_> = pattern.split('/').skip(1).filter(|segment| !segment.is_empty()).collect();
        let mut given: Vec<_> = path.split('/').skip(1).collect();
        if !exact && is_path && given.len() == own.len() + 1 && given.last() == Some(&"") {
            given.pop();
        }
        if given.len() < own.len() || (is_path && given.len() != own.len()) {
            return None;
        }
        let mut rank = Vec::new();
        for (own, given) in own.iter().zip(given) {
            let is_template = own.starts_with('{');
            let matches = if is_template {
                !(exact && given.is_empty())
            } else if exact {
                *own == given
            } else {
                let (own, given) = (own.to_ascii_lowercase(), given.to_ascii_lowercase());
                given == own || given.starts_with(&format!("{own}."))
            };
            if !matches {
                return None;
            }
            rank.push(match (is_template, given.is_empty()) {
                (true, true) => NOTHING,
                (true, false) => TEMPLATE,
                (false, _) => TEMPLATE + own.len(),
            });
        }
        rank.push(if is_path { PATH_END } else { PREFIX_END });
        Some((rank, !rule.methods.is_empty()))
    }
}

/// Rules over few names, so that they overlap; the first of two that clash is kept.
fn some_rules() -> impl Strategy<Value = Vec<Rule>> {
    let segment = select(vec!["a", "b", "A", "ab", "a.b", "a.b.c", "{id}", "crm"]);
    let path = proptest::collection::vec(segment, 1..4).prop_map(|segments| format!("/{}", segments.join("/")));
    let methods = select(vec![vec![], vec!["GET"], vec!["POST"], vec!["GET", "PUT"]]);
    let access = select(vec![feature("x"), feature("y"), Access::Always, Access::Deny]);
    let rule = (path, any::<bool>(), methods, access).prop_map(|(path, is_path, methods, access)| Rule {
        pattern: if is_path { Pattern::Path(path) } else { Pattern::Prefix(path) },
        methods: methods.into_iter().map(str::to_owned).collect(),
        access,
    });
    proptest::collection::vec(rule, 0..24).prop_map(|rules| {
        let mut kept: Vec<Rule> = Vec::new();
        for rule in rules {
            kept.push(rule);
            if Routes::try_new(kept.clone(), RouteOptions::default()).is_err() {
                kept.pop();
            }
        }
        kept
    })
}

/// A byte of a path as it is, in either case, or encoded once or twice.
fn spelling_of(byte: u8, how: u8) -> String {
    let flipped = if byte.is_ascii_lowercase() { byte.to_ascii_uppercase() } else { byte };
    match how % 8 {
        0 => format!("%{byte:02x}"),
        1 => format!("%{flipped:02X}"),
        2 => format!("%25{byte:02X}"),
        3 => char::from(flipped).to_string(),
        _ => char::from(byte).to_string(),
    }
}

/// Something that backends take for one slash.
fn separator() -> impl Strategy<Value = &'static str> {
    select(vec![
        "/",
        "/",
        "/",
        "//",
        "\\",
        "%2f",
        "%5C",
        "%252F",
        "%255c",
        "/./",
        "/%2e/",
        "/.;x/",
        "/x/../",
        "/x/..;/",
        "/x/%2e%2e/",
        "/x%2f..%2f",
        "/.%20/",
        "///",
        "/x//../",
        "/x%5cy/..%5c../",
    ])
}

/// Something that backends cut from a segment.
fn ending() -> impl Strategy<Value = &'static str> {
    select(vec!["", "", "", "", ".json", ";v=1", "%3bx", ".", "..", "%20", "%2520", ";", ".%20"])
}

/// A path that one fixed pipeline of rewrites leads back to `segments`, with `tail` below it.
fn disguised(segments: &'static [&'static str]) -> impl Strategy<Value = String> {
    let parts: Vec<_> = segments
        .iter()
        .map(|segment| {
            let bytes = proptest::collection::vec(any::<u8>(), segment.len()).prop_map(move |how| {
                segment.bytes().zip(how).map(|(byte, how)| spelling_of(byte, how)).collect::<String>()
            });
            (separator(), bytes, ending()).prop_map(|(separator, bytes, ending)| format!("{separator}{bytes}{ending}"))
        })
        .collect();
    (parts, select(vec!["", "/", "/x", "//", "/x%2Fy", "?q=/"])).prop_map(|(parts, tail)| {
        let path = parts.concat();
        // The first slash is always one.
        if path.starts_with('/') { format!("{path}{tail}") } else { format!("/{path}{tail}") }
    })
}

fn strictness(route: &Route<'_>) -> u8 {
    match route {
        Route::Unmatched => 0,
        Route::Always(_) => 1,
        Route::Gated(_) => 2,
        Route::Denied(_) => 3,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn a_disguised_gated_path_stays_gated(target in disguised(&["api", "v1", "crm"])) {
        let routes = dotmac();
        match routes.resolve("GET", target.as_bytes()) {
            Ok(Route::Gated(rules)) => prop_assert!(rules.iter().any(|matched| matched.index == 1), "{}", target),
            Ok(route) => prop_assert!(false, "{target} is {route:?}"),
            Err(refusal) => prop_assert_eq!(refusal, Refusal::Malformed(Malformed::Readings), "{}", target),
        }
    }

    #[test]
    fn clean_paths_match_as_if_every_rule_were_tried(
        rules in some_rules(),
        segments in proptest::collection::vec(
            select(vec!["a", "b", "A", "aB", "a.b", "a.B.x", "crm", "42", "a.b.c", "ab.x"]),
            1..5,
        ),
        slash in select(vec!["", "/"]),
        method in select(vec!["GET", "POST", "HEAD", "PUT", "DELETE"]),
    ) {
        let path = format!("/{}{slash}", segments.join("/"));
        let routes = Routes::try_new(rules.clone(), RouteOptions::default()).expect("kept only what fits");
        let route = routes.resolve(method, path.as_bytes());
        let found = route.expect("no clean path is refused").rules().first().map(|matched| matched.index);
        prop_assert_eq!(found, naive::best(&rules, method, &path), "{} {} by {:?}", method, path, rules);
    }

    #[test]
    fn any_bytes_get_an_answer(raw in proptest::collection::vec(any::<u8>(), 0..64), method in ".{0,4}") {
        let _ = dotmac().resolve(&method, &raw);
    }

    #[test]
    fn a_route_is_as_strict_as_its_strictest_reading(
        rules in some_rules(),
        target in disguised(&["a", "crm"]),
        deny: bool,
    ) {
        let unmatched = if deny { Unmatched::Deny } else { Unmatched::Allow };
        let options = RouteOptions { unmatched, ..RouteOptions::default() };
        let routes = Routes::try_new(rules, options).expect("kept only what fits");
        let Ok(target) = Target::parse(target.as_bytes()) else { return Ok(()) };
        let route = routes.route("GET", &target).expect("well formed");
        let single: Vec<_> = routes.readings("GET", &target).map(|(_, best)| routes.route_of(best)).collect();
        prop_assert_eq!(Some(strictness(&route)), single.iter().map(strictness).max());
        // No feature that a reading names is lost, unless the request is refused anyway.
        if let Route::Gated(rules) = &route {
            for matched in single.iter().filter(|route| strictness(route) == 2).flat_map(Route::rules) {
                prop_assert!(rules.iter().any(|rule| rule.index == matched.index));
            }
        }
    }
}
