//! A table of wrong and doubtful files, each with every problem and its place.

use super::{Problem, parse};

/// The smallest file without a warning, one top-level key a line.
pub(super) const MINIMAL: &str = "\
version: 1
upstream: { address: 127.0.0.1:8000 }
trusted_proxies: [10.0.0.0/8]
tenant: { sources: [{ header: X-Tenant-ID }] }
licenses: { source: { postgres: {} } }
plans: [{ name: all, features: [crm, tickets] }]
routes: { rules: [{ prefix: /crm, feature: crm }] }
";

/// [`MINIMAL`] with the lines of some keys replaced, and others added as line 8 and following.
pub(super) fn file(changes: &[&str]) -> String {
    let mut lines: Vec<&str> = MINIMAL.lines().collect();
    for change in changes {
        let key = change.split_inclusive(':').next().unwrap_or_default();
        match lines.iter_mut().find(|line| line.starts_with(key)) {
            Some(line) => *line = change,
            None => lines.push(change),
        }
    }
    lines.join("\n") + "\n"
}

fn problems(text: &str) -> Vec<String> {
    let problems = match parse("c.yaml", text) {
        Ok(parsed) => parsed.warnings,
        Err(problems) => problems.0,
    };
    problems.iter().map(Problem::to_string).collect()
}

#[track_caller]
fn expect(text: &str, expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(|problem| format!("c.yaml:{problem}")).collect();
    assert_eq!(problems(text), expected, "{text}");
}

#[test]
fn each_problem_is_told_with_its_place() {
    for (changes, expected) in CHANGES {
        expect(&file(changes), expected);
    }
}

#[test]
fn what_is_no_configuration_at_all_is_told_too() {
    for (text, expected) in TEXTS {
        expect(text, expected);
    }
}

#[test]
fn a_role_in_a_token_needs_a_token() {
    let upgrade = "upgrade: { allow: { jwt: { claim: role, values: [owner] } } }";
    let said = |changes: &[&str]| {
        problems(&file(changes)).iter().any(|problem| problem.contains("no source in `tenant` is a token"))
    };
    assert!(said(&[upgrade]));
    assert!(!said(&[upgrade, "tenant: { sources: [{ jwt: { keys: jwks.json } }] }"]));
}

type Case = (&'static [&'static str], &'static [&'static str]);

/// Changes of [`MINIMAL`] and what is said of them.
const CHANGES: &[Case] = &[
    (
        &["upstream: { address: 127.0.0.1:8000, retrys: 2 }"],
        &["2:38: error: upstream.retrys: unknown key `retrys`; did you mean `retries`?"],
    ),
    (
        &["upstream: { address: 127.0.0.1:8000, connect_timeout: 200 }"],
        &["2:55: error: upstream.connect_timeout: 200 has no unit: write a duration as 200ms, 200s, 200m or 200h"],
    ),
    (
        &["upstream: { address: 127.0.0.1:8000, connect_timeout: 0s, retries: 300 }"],
        &["2:68: error: upstream.retries: expected a whole number from 0 to 255, found 300"],
    ),
    (&["upstream: { }"], &["2:11: error: upstream: the key `address` is missing"]),
    (
        &["upstream:"],
        &[
            "2:9: error: upstream: expected a mapping of address, connect_timeout, response_timeout, idle_timeout, pool_size, retries, found nothing",
        ],
    ),
    (
        &["upstream: [a]"],
        &[
            "2:11: error: upstream: expected a mapping of address, connect_timeout, response_timeout, idle_timeout, pool_size, retries, found a list",
        ],
    ),
    (
        &["upstream: { address: 'http://x' }", "lisen: {}", "log: { access: yes, level: loud }"],
        &[
            "2:22: error: upstream.address: \"http://x\" is no address: it is a URL; expected HOST:PORT, such as 127.0.0.1:8000, or unix:/path",
            "8:1: error: lisen: unknown key `lisen`; did you mean `listen`?",
            "9:16: error: log.access: expected true or false, found \"yes\"",
            "9:28: error: log.level: `loud` is not known here; expected one of `error`, `warn`, `info`, `debug`, `trace`",
        ],
    ),
    (
        &["listen: { proxy: 0.0.0.0:80, ops: 127.0.0.1:80, admin: 127.0.0.1:9, workers: 0 }"],
        &[
            "8:35: error: listen.ops: 127.0.0.1:80 is where `listen.proxy` listens already",
            "8:78: error: listen.workers: must be from 1 to 1024",
        ],
    ),
    (
        &["listen: { proxy: 0.0.0.0:80, admin: 127.0.0.1:80 }"],
        &["8:37: error: listen.admin: 127.0.0.1:80 is where `listen.proxy` listens already"],
    ),
    (
        &["listen: { ops: 'unix:/run/x.sock', admin: 'unix:/run/x.sock' }"],
        &["8:43: error: listen.admin: unix:/run/x.sock is where `listen.ops` listens already"],
    ),
    (
        &["listen: { admin: 10.0.0.1:9090 }"],
        &[
            "8:18: warning: listen.admin: other hosts can reach it, and its token travels in clear text: use a loopback address or unix:/path",
        ],
    ),
    (
        &["trusted_proxies: [10.0.0.5/8, 0.0.0.0/0]"],
        &[
            "3:19: warning: trusted_proxies[0]: 10.0.0.5/8 means 10.0.0.0/8, all of it",
            "3:31: warning: trusted_proxies[1]: everyone is trusted: any client can name any tenant",
        ],
    ),
    (
        &["trusted_proxies: [10.0.0.0/99, x]"],
        &[
            "3:19: error: trusted_proxies[0]: \"10.0.0.0/99\" is no network: expected 10.0.0.0/8, fd00::/8 or one IP address",
            "3:32: error: trusted_proxies[1]: \"x\" is no network: expected 10.0.0.0/8, fd00::/8 or one IP address",
        ],
    ),
    (
        &["trusted_proxies: []"],
        &[
            "4:31: error: tenant.sources[0].header: any client can send x-tenant-id: name in `trusted_proxies` those from whom it is believed",
        ],
    ),
    (
        &["tenant: { sources: [] }"],
        &["4:20: error: tenant.sources: at least one source is needed, such as `- header: X-Tenant-ID`"],
    ),
    (
        &["tenant: { sources: [header] }"],
        &["4:21: error: tenant.sources[0]: `header` needs a value: write `header: …`"],
    ),
    (
        &["tenant: { sources: [{ header: X-A, fixed: 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11 }] }"],
        &[
            "4:21: error: tenant.sources[0]: expected exactly one of header, jwt, host, fixed, found a mapping with header, fixed",
        ],
    ),
    (
        &["tenant: { sources: [{ heder: X-A }, {header: 'a b'}, {header: Host}] }"],
        &[
            "4:23: error: tenant.sources[0]: `heder` is not known here; did you mean `header`?",
            "4:46: error: tenant.sources[1].header: \"a b\" is no header name: expected one such as X-Tenant-ID",
        ],
    ),
    (
        &["tenant: { sources: [{ fixed: abc }] }"],
        &[
            "4:30: error: tenant.sources[0].fixed: a tenant id is a UUID, such as 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11, not \"abc\"",
        ],
    ),
    (
        &[
            "tenant: { sources: [{ fixed: 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11 }, { header: X-A }, {header: x-a}, {jwt: {keys: a}}, {host: '{tenant}.x.y'}] }",
        ],
        &[
            "4:21: error: tenant.sources[0]: `fixed` names one tenant for every request: no other source may stand beside it",
            "4:87: error: tenant.sources[2]: is the same as source 1 (line 4)",
        ],
    ),
    (
        &[
            "tenant: { sources: [{ host: '{tenant}.a.example' }, { host: '{tenant}.b.example' }, { host: '{tenant}.A.example' }] }",
        ],
        &["4:85: error: tenant.sources[2]: is the same as source 0 (line 4)"],
    ),
    (
        &["trusted_proxies: []", "tenant: { sources: [{ host: '{tenant}.a.example' }] }"],
        &[
            "4:29: warning: tenant.sources[0].host: `trusted_proxies` is empty, so that any client names the tenant by the host that it asks: that is for public sites, whose backend checks who asks",
        ],
    ),
    (
        &["tenant: { sources: [{ host: '*.example.com' }, { host: '{tenant}.example.com:80' }, { host: 5 }] }"],
        &[
            "4:29: error: tenant.sources[0].host: \"*.example.com\" is no pattern of hosts: {tenant} must be its first label; expected one such as {tenant}.isp.example.com",
            "4:56: error: tenant.sources[1].host: \"{tenant}.example.com:80\" is no pattern of hosts: ports are not compared: leave it out; expected one such as {tenant}.isp.example.com",
            "4:93: error: tenant.sources[2].host: \"5\" is no pattern of hosts: {tenant} must be its first label; expected one such as {tenant}.isp.example.com",
        ],
    ),
    (
        &[
            "tenant: { sources: [{ jwt: { keys: '', claim: '', from: [] } }, { jwt: { keys: k, from: [{ cookie: 'a b' }, header] } }] }",
        ],
        &[
            "4:109: error: tenant.sources[1].jwt.from[1]: `header` is not known here; expected one of `authorization`, `websocket_protocol`, `cookie`",
        ],
    ),
    (
        &[
            "tenant: { sources: [{ jwt: { keys: '', claim: '', from: [] } }, { jwt: { keys: k, from: [{ cookie: 'a b' }] } }] }",
        ],
        &[
            "4:36: error: tenant.sources[0].jwt.keys: expected the path of a file",
            "4:47: error: tenant.sources[0].jwt.claim: expected the name of a claim",
            "4:57: error: tenant.sources[0].jwt.from: expected at least one of authorization, websocket_protocol and a cookie",
            "4:100: error: tenant.sources[1].jwt.from[0].cookie: \"a b\" is no name of a cookie: expected one such as access_token",
        ],
    ),
    (
        &["cors: { allow_origins: ['*', https://app.example.com], allow_credentials: true }"],
        &[
            "8:25: error: cors.allow_origins[0]: with `allow_credentials` any page could ask in its visitors' names: list the origins",
        ],
    ),
    (
        &["cors: { allow_origins: [https://app.example.com/, 'null'] }"],
        &[
            "8:25: error: cors.allow_origins[0]: \"https://app.example.com/\" is no origin: nothing stands behind host and port; expected one such as https://app.example.com",
            "8:51: error: cors.allow_origins[1]: \"null\" is no origin: it is what many pages say that have nothing else in common; expected one such as https://app.example.com",
        ],
    ),
    (
        &["licenses: { source: { postgres: {}, file: {path: x} } }"],
        &["5:21: error: licenses.source: expected exactly one of postgres, file, found a mapping with postgres, file"],
    ),
    (
        &[
            "licenses: { source: { postgres: { max_connections: 0 } }, change_feed: kafka, ttl: 10s, lookup_deadline: 0ms, memory_bytes: 1 }",
        ],
        &[
            "5:72: error: licenses.change_feed: `kafka` is not known here; expected one of `listen`, `redis`, `none`",
            "5:125: error: licenses.memory_bytes: 1 has no unit: write a size as 1B, 1KiB, 1MiB or 1GiB",
        ],
    ),
    (
        &["licenses: { source: postgres, lookup_deadline: 10s }"],
        &["5:21: error: licenses.source: `postgres` needs a value: write `postgres: …`"],
    ),
    (
        &["licenses: { source: { file: { path: '' } } }"],
        &["5:37: error: licenses.source.file.path: expected the path of a file"],
    ),
    (
        &["licenses: { source: { mysql: {} } }"],
        &["5:23: error: licenses.source: `mysql` is not known here; expected one of `postgres`, `file`"],
    ),
    (&["routes: { rules: [] }"], &["7:9: warning: routes: there are no rules: nothing is gated"]),
    (
        &[
            "routes: { rules: [{ prefix: crm, feature: crm }, {prefix: /a/, feature: x}, { match: {path: /a, methods: [post]}, access: always}] }",
        ],
        &[
            "7:29: error: routes.rules[0].prefix: \"crm\": a path must begin with a slash",
            "7:107: error: routes.rules[2].match.methods[0]: methods are upper case: write POST, not post",
        ],
    ),
    (
        &[
            "routes: { rules: [{ prefix: '/c/{a}', feature: crm }, {prefix: '/c/{b}/', access: deny }, {match: {path: '/c/{x}', methods: [GET, POST]}, access: always},{match: {path: '/c/{x}', methods: [POST]}, access: always}] }",
        ],
        &[
            "7:55: error: routes.rules[1]: an earlier rule matches the same path and method: see routes.rules[0] in line 7",
            "7:155: error: routes.rules[3]: an earlier rule matches the same path and method: see routes.rules[2] in line 7",
        ],
    ),
    (
        &[
            "routes: { rules: [{ feature: crm }, {prefix: /a}, {prefix: /a, match: {path: /b}, feature: crm}, {prefix: /a, access: always, on_failure: deny}, {match: {}, access: deny}, {prefix: /m, feature: crm, meter: {}}] }",
        ],
        &[
            "7:19: error: routes.rules[0]: a rule needs exactly one of `prefix` and `match`",
            "7:37: error: routes.rules[1]: a rule needs exactly one of `feature` and `access`",
            "7:51: error: routes.rules[2]: a rule needs exactly one of `prefix` and `match`",
            "7:98: error: routes.rules[3]: `meter` and `on_failure` are for rules with a `feature`: without one no licence is looked up",
            "7:146: error: routes.rules[4]: `match` needs exactly one of `path` and `prefix`",
        ],
    ),
    (
        &[
            "routes: { rules: [{prefix: '/a/*', access: deny},{prefix: '/a/{x', access: deny}, {prefix: '/a//b', access: deny}, {prefix: '/a?b', access: deny}, {prefix: '/a%20b', access: deny}, {prefix: /a, feature: nope}], path_aliases: [/], unmatched: maybe }",
        ],
        &[
            "7:28: error: routes.rules[0].prefix: \"/a/*\": `*` is not a template: write {name} as a whole segment, or use a prefix for all that follows",
            "7:59: error: routes.rules[1].prefix: \"/a/{x\": `{x` is not a template: write {name} as a whole segment, or use a prefix for all that follows",
            "7:92: error: routes.rules[2].prefix: \"/a//b\": a path must not hold an empty segment (`//`)",
            "7:125: error: routes.rules[3].prefix: \"/a?b\": a path must not hold '?': write it decoded, without query, parameters or blanks",
            "7:157: error: routes.rules[4].prefix: \"/a%20b\": a path must not hold '%': write it decoded, without query, parameters or blanks",
            "7:242: error: routes.unmatched: `maybe` is not known here; expected one of `allow`, `deny`",
        ],
    ),
    (
        &["plans: [{ name: a, features: [crm, crm] }, { name: a, features: [], limits: {crm: 1} }]"],
        &[
            "6:36: warning: plans[0].features[1]: `crm` is listed twice",
            "6:52: error: plans[1].name: the plan `a` stands in line 6 already",
            "6:83: warning: plans[1].limits.crm: no rule meters `crm`, so that the limit is never reached",
        ],
    ),
    (&["plans: []"], &["6:8: warning: plans: there are no plans: denials can't say which one has the feature"]),
    (
        &["plans: [{ features: [crm] }, {name: 'a b', features: crm}]"],
        &[
            "6:9: error: plans[0]: the key `name` is missing",
            "6:37: error: plans[1].name: \"a b\" is no name of a plan: expected 1 to 50 letters, digits, `_`, `-`, `.` or `:`, the first a letter or a digit",
            "6:54: error: plans[1].features: expected a list, found \"crm\"",
        ],
    ),
    (
        &[
            "enforcement: { mode: off, rollout: { percent: 101, include: [6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11], exclude: [6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11] } }",
        ],
        &[
            "8:47: error: enforcement.rollout.percent: must be from 0 to 100",
            "8:111: warning: enforcement.rollout.exclude[0]: 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11 is in `include` as well: it stays excluded",
        ],
    ),
    (
        &["enforcement: { rollout: { percent: all } }"],
        &["8:36: error: enforcement.rollout.percent: expected a number, found \"all\""],
    ),
    (
        &["deny: { upgrade_url: '/x?f={feature}&p={plan}', status: { no_license: 200, foo: 402 } }"],
        &[
            "8:76: error: deny.status.foo: `foo` is not known here; expected one of `feature_not_in_plan`, `no_license`, `license_expired`, `license_not_yet_valid`, `usage_limit_exceeded`, `tenant_missing`, `tenant_invalid`, `request_malformed`, `request_ambiguous`, `store_unavailable`, `route_denied`",
        ],
    ),
    (
        &["deny: { upgrade_url: 'x y', status: { no_license: 200, route_denied: 404 } }"],
        &[
            "8:22: error: deny.upgrade_url: has a character that URLs can't have: write it percent-encoded",
            "8:51: error: deny.status.no_license: must be from 400 to 599: a refusal is an error",
        ],
    ),
    (
        &["deny: { status: { no_license: 70000 } }"],
        &["8:31: error: deny.status.no_license: expected a whole number from 0 to 65535, found 70000"],
    ),
    (
        &[
            "upgrade: { allow: { header: X-User-Role, values: [owner] } }",
            "trusted_proxies: []",
            "api: {}",
            "cors: {}",
            "usage: {}",
        ],
        &[
            "4:31: error: tenant.sources[0].header: any client can send x-tenant-id: name in `trusted_proxies` those from whom it is believed",
            "8:29: error: upgrade.allow.header: any client can send x-user-role: name in `trusted_proxies` those from whom it is believed",
        ],
    ),
    (
        &["upgrade: { allow: { header: x-tenant-id, values: [owner] } }"],
        &["8:29: error: upgrade.allow.header: x-tenant-id names the tenant: expected a header that names a role"],
    ),
    (&["api: { paths: [], websocket: [] }"], &[]),
    // The list of what a placeholder stands for is gated as well, unless a rule of its own says otherwise.
    (
        &["routes: { rules: [{ prefix: '/a/{id}', feature: crm }, { match: { path: '/b/{id}' }, feature: crm }, \
           { match: { path: '/b/' }, access: always }, { match: { path: '/c/{id}/d/' }, feature: crm }, \
           { prefix: '/d/{id}', access: always }, { match: { path: '/e/{id}/', methods: [PUT] }, feature: crm }, \
           { prefix: /e, feature: crm }, { prefix: '/{x}/f/{id}', feature: crm }] }"],
        &[
            "7:19: warning: routes.rules[0]: /a/ is gated too, since some backends take it for an entry without a name: if it is not sold, add `{ match: { path: /a/ }, access: always }`",
            "7:234: warning: routes.rules[5]: /e/ is gated too, since some backends take it for an entry without a name: if it is not sold, add `{ match: { path: /e/ }, access: always }`",
        ],
    ),
    (
        &["api: { paths: [/license, /crm/license, /crm] }"],
        &[
            "8:26: warning: api.paths[1]: /crm/license is answered by the proxy itself: the rule `prefix /crm` has no say there",
            "8:40: warning: api.paths[2]: /crm is answered by the proxy itself: the rule `prefix /crm` has no say there",
        ],
    ),
    (
        &["routes: { rules: [{ prefix: /license, access: always }, { prefix: /ws, access: deny }], unmatched: deny }"],
        &[
            "1:1: warning: api.websocket[1]: /ws/license is answered by the proxy itself: the rule `prefix /ws` has no say there",
        ],
    ),
    (
        &[
            "api: { paths: [license, /a//b, /l, /l, /v~1/l-x_y.z], websocket: [/l, /l/upgrade, /x/../y, /w/, '/w%20', /, /l/plans] }",
        ],
        &[
            "8:16: error: api.paths[0]: expected a path that starts with a slash",
            "8:25: error: api.paths[1]: expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end",
            "8:36: error: api.paths[3]: /l is listed twice",
            "8:71: error: api.websocket[1]: /l/upgrade is served already, as a part of /l",
            "8:83: error: api.websocket[2]: expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end",
            "8:92: error: api.websocket[3]: expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end",
            "8:97: error: api.websocket[4]: expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end",
            "8:106: error: api.websocket[5]: expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end",
            "8:109: error: api.websocket[6]: /l/plans is served already, as a part of /l",
        ],
    ),
    (
        &["usage:"],
        &[
            "8:6: error: usage: expected a mapping of flush_interval, pending_entries, lease_idle, thresholds, found nothing",
        ],
    ),
    (&["usage: {}"], &[]),
    (
        &["usage: { flush_interval: 99ms, pending_entries: 999, lease_idle: 61m, thresholds: [0, 80, 80, 100, 90] }"],
        &[
            "8:26: error: usage.flush_interval: must be from 100ms to 1h",
            "8:49: error: usage.pending_entries: must be from 1000 to 10000000",
            "8:66: error: usage.lease_idle: must be from 1s to 1h",
            "8:84: error: usage.thresholds[0]: must be from 1 to 255 percent",
            "8:91: error: usage.thresholds[2]: must be more than the one before, which is 80",
            "8:100: error: usage.thresholds[4]: must be more than the one before, which is 100",
        ],
    ),
    (
        &[
            "usage: { flush_interval: 1h, pending_entries: 10000000, lease_idle: 1s, thresholds: [1, 2, 3, 4, 5, 6, 7, 8, 255] }",
        ],
        &["8:85: error: usage.thresholds: there are 9: at most 8 are taken"],
    ),
    (
        &["usage: { thresholds: [80, 300] }"],
        &["8:27: error: usage.thresholds[1]: expected a whole number from 0 to 255, found 300"],
    ),
    // One feature has one limit, and so one window.
    (
        &[
            "routes: { rules: [{ prefix: /a, feature: crm, meter: {} }, { prefix: /b, feature: tickets, meter: { window: day } }, \
           { prefix: /c, feature: crm, meter: { window: month, limit: soft, count: all } }, \
           { prefix: /d, feature: crm, meter: { window: lifetime } }, { prefix: /e, feature: tickets, meter: {} }] }",
        ],
        &[
            "7:244: error: routes.rules[3].meter.window: `crm` has one limit and so one window, but routes.rules[0] in line 7 has another: month and not lifetime",
            "7:297: error: routes.rules[4].meter.window: `tickets` has one limit and so one window, but routes.rules[1] in line 7 has another: day and not month",
        ],
    ),
    // What a rule never sees it does not count. GET includes HEAD.
    (
        &[
            "routes: { rules: [{ match: { prefix: /a, methods: [GET, POST] }, feature: crm, meter: { methods: [HEAD, PUT, POST] } }, \
           { match: { prefix: /b, methods: [PUT, PATCH] }, feature: crm, meter: { methods: [GET, POST] } }] }",
        ],
        &[
            "7:105: warning: routes.rules[0].meter.methods[1]: PUT is not counted, since the rule is not for it",
            "7:201: error: routes.rules[1].meter.methods: nothing is counted: the rule is for PUT and PATCH alone",
        ],
    ),
    (
        &["routes: { rules: [{ prefix: /a, feature: crm, meter: { methods: [POST], windw: day, limit: firm } }] }"],
        &[
            "7:73: error: routes.rules[0].meter.windw: unknown key `windw`; did you mean `window`?",
            "7:92: error: routes.rules[0].meter.limit: `firm` is not known here; expected one of `hard`, `soft`",
        ],
    ),
    // A limit needs something that counts towards it; counting needs no limit.
    (
        &[
            "plans: [{ name: a, features: [crm], limits: { crm: 5, tickets: -1, sms: 0 } }]",
            "routes: { rules: [{ prefix: /a, feature: crm, meter: {} }] }",
        ],
        &["6:73: warning: plans[0].limits.sms: no rule meters `sms`, so that the limit is never reached"],
    ),
    (&["routes: { rules: [{ prefix: /a, feature: crm, meter: { methods: [POST] } }] }"], &[]),
    (
        &["limits: { header_timeout: 0s, connections: 0, requests_in_flight: 4, headers: 1000, header_bytes: 10MiB, \
             requests_in_flight_per_tenant: 5 }"],
        &[
            "8:27: error: limits.header_timeout: must be longer than zero",
            "8:44: error: limits.connections: must be from 1 upwards",
            "8:79: error: limits.headers: must be from 1 to 256",
            "8:99: error: limits.header_bytes: must be from 1KiB to 1MiB",
            "8:137: warning: limits.requests_in_flight_per_tenant: has no effect beyond `limits.requests_in_flight`, which is 4",
        ],
    ),
    (
        &["shutdown: { drain: 30s, timeout: 30s }"],
        &[
            "8:20: error: shutdown.drain: must be shorter than `shutdown.timeout`, which is 30s",
            "8:34: warning: shutdown.timeout: Kubernetes kills a pod 30s after the signal: make sure that it waits longer",
        ],
    ),
    (&["log: [a]"], &["8:6: error: log: expected a mapping of level, access, raw_target, found a list"]),
];

/// Whole texts and what is said of them.
const TEXTS: &[(&str, &[&str])] = &[
    ("", &["1:1: error: the file is empty"]),
    ("a", &["1:1: error: expected a mapping, found \"a\""]),
    ("[]", &["1:1: error: expected a mapping, found a list"]),
    ("version: 1\n\tx: 1", &["1:10: error: while scanning a plain scalar, found a tab"]),
    ("version: 1\nversion: 1", &["2:1: error: the key `version` stands here for the second time"]),
    ("version: 1\n---\nversion: 1", &["3:1: error: expected one document, found a second one"]),
    ("a: [1", &["1:4: error: unclosed bracket '['"]),
    ("a: b: c", &["1:5: error: mapping values are not allowed in this context"]),
    ("x: *a", &["1:4: error: alias references unknown anchor"]),
    ("version: 2\nfoo: 1", &["1:10: error: version: this program reads version 1, not version 2"]),
    ("version: 1\n", &["1:1: error: the key `upstream` is missing"]),
    ("# only\n", &["1:1: error: the file is empty"]),
    ("---\n", &["1:1: error: the file is empty"]),
    ("a: &a [*a]\n", &["1:8: error: recursive references require weak recursion types"]),
    ("? [a]\n: 1\n", &["1:3: error: expected string scalar"]),
];
