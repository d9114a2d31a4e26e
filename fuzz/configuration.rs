//! Configurations and licence files: any text is refused with its place or read, in bounded time, and what was read can be
//! printed and read again.

use std::time::{Duration, Instant};

use licensing::config;

use super::target;

/// What configurations are made of.
const FRAGMENTS: &[&str] = &[
    "version: 1\nupstream: { address: 127.0.0.1:8000 }\ntrusted_proxies: [10.0.0.0/8]\ntenant: { sources: [{ header: \
     X-Tenant-ID }] }\nlicenses: { source: { postgres: {} } }\n",
    "routes:\n",
    "  rules:\n",
    "    - { prefix: /api/v1/crm, feature: crm }\n",
    "    - { prefix: /x, access: always }\n",
    "    - { match: { path: \"/a/{id}/b\", methods: [POST] }, feature: tickets }\n",
    "  unmatched: deny\n",
    "  path_aliases: [/api]\n",
    "plans:\n",
    "  - { name: starter, features: [crm], limits: { crm: 10 } }\n",
    "enforcement: { mode: shadow }\n",
    "upgrade: { allow: { header: X-Role, values: [owner] } }\n",
    "tenants:\n",
    "  - { tenant_id: 6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11, plan: starter }\n",
    "  - ",
    "    ",
    "\n",
    ": ",
    "{",
    "}",
    "[",
    "]",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "!!set ",
    "---\n",
    "...\n",
    "? ",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "# ",
    "5m",
    "1MiB",
    "-1",
    "1e999",
    ".nan",
    "0x10",
    "~",
    "2026-13-01",
    "%YAML 1.2\n",
    "\\u0000",
    "\t",
    "\u{feff}",
    "\u{85}",
    "limits: { headers: 100 }\n",
    "cors: { allow_origins: [\"https://a.example\"] }\n",
    "usage: { flush_interval: 5s }\n",
    "api: { paths: [/license], websocket: [] }\n",
    "deny: { status: { no_license: 403 } }\n",
    "listen: { proxy: \"",
    "0.0.0.0:8080",
    "unix:/run/a.sock",
    "[::1]:1",
    "\" }\n",
    "tenant: { sources: [{ jwt: { keys: k.json } }] }\n",
    "tenant: { sources: [{ host: \"{tenant}.example.com\" }] }\n",
    "features: [crm]",
    "valid_until: infinity",
    "!tag ",
];

/// No text of this size should take a hundredth of this.
const AT_MOST: Duration = Duration::from_secs(20);

target!(of_the_proxy, FRAGMENTS, read_configuration);
target!(of_licences, FRAGMENTS, read_licences);

fn read_configuration(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let started = Instant::now();
    match config::parse("fuzz.yaml", &text) {
        Ok(parsed) => {
            let printed = parsed.config.to_yaml().unwrap_or_else(|error| panic!("{error}: {text}"));
            let again =
                config::parse("printed.yaml", &printed).unwrap_or_else(|problems| panic!("{problems}: {printed}"));
            assert_eq!(again.config, parsed.config, "{text} reads back as {printed}");
            assert_eq!(again.config.fingerprint(), parsed.config.fingerprint());
            assert!(parsed.config.routes.routes().is_ok(), "{text}");
        }
        Err(problems) => assert!(problems.to_string().contains("fuzz.yaml"), "{problems}: {text}"),
    }
    assert!(started.elapsed() < AT_MOST, "{:?}: {text}", started.elapsed());
}

fn read_licences(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let started = Instant::now();
    if let Err(problems) = config::parse_licenses("fuzz.yaml", &text, &[]) {
        assert!(problems.to_string().contains("fuzz.yaml"), "{problems}: {text}");
    }
    assert!(started.elapsed() < AT_MOST, "{:?}: {text}", started.elapsed());
}

/// What a YAML reader is commonly brought down with: references to references, and nesting.
#[test]
fn bombs_are_refused() {
    let laughs: String =
        (1..12).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(", "))).collect();
    let quadratic = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(50_000), vec!["*a"; 20_000].join(", "));
    let merges: String = (1..30).map(|n| format!("m{n}: &m{n} {{ <<: [*m{0}, *m{0}], k{n}: 1 }}\n", n - 1)).collect();
    for (name, bomb) in [
        ("laughs", format!("l0: &l0 lol\n{laughs}")),
        ("quadratic", quadratic),
        ("merges", format!("m0: &m0 {{ k: 1 }}\n{merges}")),
        ("lists", "[".repeat(100_000)),
        ("maps", "{a: ".repeat(100_000)),
        ("blocks", (0..2_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect()),
        ("sequences", "- ".repeat(100_000)),
        ("itself", "a: &a [*a]\n".to_owned()),
    ] {
        let started = Instant::now();
        let problems = config::parse("bomb.yaml", &bomb).map(|_| ()).expect_err(name);
        assert!(started.elapsed() < AT_MOST, "{name}: {:?}", started.elapsed());
        assert!(problems.to_string().len() < 10_000, "{name}: a short answer");
    }
}
