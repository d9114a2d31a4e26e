//! The shipped files, the JSON schema, and that everything printed reads back.

use std::path::PathBuf;

use super::reference::reference;
use super::tests::{MINIMAL, file};
use super::*;
use crate::routes::Route;

/// A file of the repository's directory `config`.
fn shipped(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(shipped(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[track_caller]
fn clean(name: &str, text: &str) -> Config {
    let parsed = parse(name, text).unwrap_or_else(|problems| panic!("{problems:#}"));
    assert_eq!(parsed.warnings, [], "{name}");
    parsed.config
}

#[test]
fn the_shipped_configurations_are_clean_and_name_their_schema() {
    for name in ["dotmac.yaml", "embedded.yaml"] {
        let text = read(name);
        assert!(text.starts_with("# yaml-language-server: $schema=./schema.json\n"), "{name}");
        clean(name, &text);
    }
}

#[test]
fn the_embedded_configuration_needs_no_server_and_has_a_tenant_of_each_plan() {
    let config = clean("embedded.yaml", &read("embedded.yaml"));
    let LicenseSource::File(file) = &config.licenses.source else { panic!("no file source") };
    assert_eq!(
        file.resolve(std::path::Path::new("/etc/proxy/embedded.yaml")),
        PathBuf::from("/etc/proxy/licenses.yaml")
    );
    assert!(config.listen.proxy.is_local() && config.listen.ops.is_local());

    let licenses = config.parse_licenses("licenses.yaml", &read("licenses.yaml"));
    let licenses = licenses.unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(licenses.warnings, []);
    let plans: Vec<(String, &str)> =
        licenses.entries.iter().map(|entry| (entry.tenant.to_string(), &*entry.plan)).collect();
    let expected = ["starter", "professional", "enterprise"].into_iter().enumerate();
    let expected: Vec<_> =
        expected.map(|(i, plan)| (format!("00000000-0000-4000-8000-00000000000{}", i + 1), plan)).collect();
    assert_eq!(plans, expected);
    for (entry, plan) in licenses.entries.iter().zip(PlanSettings::plans(&config.plans).iter()) {
        assert_eq!(entry.features, plan.features);
    }
}

#[test]
fn dotmacs_map_gates_what_is_sold_and_nothing_else() {
    let routes = clean("dotmac.yaml", &read("dotmac.yaml")).routes.routes().unwrap_or_else(|error| panic!("{error}"));
    for (method, path, feature) in [
        ("GET", "/api/v1/crm/contacts", "crm"),
        ("GET", "/api/v1/tickets", "tickets"),
        ("GET", "/api/v1/support/1", "tickets"),
        ("GET", "/api/v1/projects", "projects"),
        ("GET", "/api/v1/fieldops/jobs", "fieldops"),
        ("GET", "/api/v1/field-operations/jobs", "fieldops"),
        ("GET", "/api/v1/analytics", "analytics"),
        ("POST", "/api/v1/tickets/", "tickets"),
        ("POST", "/api/v1/customers/7/tickets", "tickets"),
        ("GET", "/api/v1/customers/7/tickets", "-"),
        ("GET", "/api/v1/network/olts", "-"),
        ("GET", "/api/v1/billing/invoices", "-"),
        ("POST", "/api/v1/auth/login", "-"),
        ("GET", "/api/v1/licensing", "-"),
        ("GET", "/api/v1/crmx", "-"),
        ("GET", "/", "-"),
    ] {
        let route = routes.resolve(method, path.as_bytes()).unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
        let found = match route {
            Route::Gated(rules) => match &rules[0].rule.access {
                crate::routes::Access::Feature(feature) => feature.to_string(),
                other => format!("{other:?}"),
            },
            Route::Always(_) | Route::Unmatched => "-".to_owned(),
            Route::Denied(_) => "denied".to_owned(),
        };
        assert_eq!(found, feature, "{method} {path}");
    }
}

#[test]
fn dotmac_counts_the_tickets_that_are_opened_and_nothing_else() {
    let config = clean("dotmac.yaml", &read("dotmac.yaml"));
    let routes = config.routes.routes().unwrap_or_else(|error| panic!("{error}"));
    for (method, path, counted) in [
        ("POST", "/api/v1/tickets", true),
        ("POST", "/api/v1/tickets/", true),
        ("POST", "/api/v1/support", true),
        ("POST", "/api/v1/customers/7/tickets", true),
        ("GET", "/api/v1/tickets", false),
        ("POST", "/api/v1/tickets/7/comments", false),
        ("PUT", "/api/v1/tickets/7", false),
        ("POST", "/api/v1/crm/contacts", false),
    ] {
        let route = routes.resolve(method, path.as_bytes()).unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
        let meters = |index: usize| config.routes.rules[index].meter.as_ref().is_some_and(|meter| meter.counts(method));
        assert_eq!(route.rules().iter().any(|matched| meters(matched.index)), counted, "{method} {path}");
    }
    let plans = PlanSettings::plans(&config.plans);
    let limits: Vec<_> = plans.iter().map(|plan| plan.limits.get("tickets").copied()).collect();
    assert_eq!(limits, [Some(100), None, None]);
}

#[test]
fn the_schema_file_is_the_one_of_the_types() {
    let schema = serde_json::to_string_pretty(&schema()).unwrap_or_default() + "\n";
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(shipped("schema.json"), &schema).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(read("schema.json") == schema, "config/schema.json is old: run the tests once with UPDATE_SCHEMA=1");
}

#[test]
fn the_reference_is_the_one_of_the_types() {
    let page = reference(&schema());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &page).unwrap_or_else(|error| panic!("{error}"));
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/configuration.md is old: run the tests once with UPDATE_SCHEMA=1");
}

/// Whatever key the schema has, however deep, the reference has it too: found here by another way than there.
#[test]
fn the_reference_has_every_key() {
    fn keys(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        let mut visit = |schema: &serde_json::Value, path: String| {
            found.push(path.clone());
            keys(schema, &path, found);
        };
        for (name, property) in schema.get("properties").and_then(|it| it.as_object()).into_iter().flatten() {
            visit(property, if path.is_empty() { name.clone() } else { format!("{path}.{name}") });
        }
        for property in schema.get("patternProperties").and_then(|it| it.as_object()).into_iter().flatten() {
            visit(property.1, format!("{path}.NAME"));
        }
        if let Some(items) = schema.get("items") {
            keys(items, &format!("{path}[]"), found);
        }
        for choice in ["oneOf", "anyOf", "allOf"] {
            let choices = schema.get(choice).and_then(|choices| choices.as_array());
            choices.into_iter().flatten().for_each(|one| keys(one, path, found));
        }
    }
    let mut wanted = Vec::new();
    keys(&schema(), "", &mut wanted);
    let page = reference(&schema());
    assert!(wanted.len() > 100, "{wanted:?}");
    for key in wanted {
        let shown = if key.contains('.') { format!("| `{key}` | ") } else { format!("\n## {key}\n") };
        assert_eq!(page.matches(&shown).count(), 1, "{key}");
    }
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        assert!(!line.contains("|  |"), "a column is empty: {line}");
    }
}

/// The comments say what the defaults are, and the reference takes their word for it.
#[test]
fn documented_defaults_are_the_defaults() {
    fn visit(schema: &serde_json::Value, compared: &mut usize) {
        let described = schema.get("description").and_then(|text| text.as_str()).unwrap_or_default();
        let described = described.split_whitespace().collect::<Vec<_>>().join(" ");
        if let (Some((_, said)), Some(default)) = (described.split_once("Default: "), schema.get("default")) {
            let default = match default {
                serde_json::Value::String(text) => text.clone(),
                serde_json::Value::Array(items) if items.is_empty() => "none".to_owned(),
                other => other.as_f64().map_or(other.to_string(), |number| number.to_string()),
            };
            let words = said.replace(['[', ']', '"', ',', '(', ')'], " ");
            let first = words.split_whitespace().next().unwrap_or_default().trim_end_matches('.');
            let wanted = default.replace(['[', ']', '"', ','], " ");
            let wanted = wanted.split_whitespace().next().unwrap_or("empty");
            let same_time = first.parse::<Duration>().ok().zip(wanted.parse().ok()).is_some_and(|(a, b)| a == b);
            assert!(
                first == wanted || same_time || matches!((wanted, first), ("{}", "none") | ("none", "all")),
                "{described}: it is {default}"
            );
            *compared += 1;
        }
        match schema {
            serde_json::Value::Object(members) => members.values().for_each(|member| visit(member, compared)),
            serde_json::Value::Array(items) => items.iter().for_each(|item| visit(item, compared)),
            _ => {}
        }
    }
    let mut compared = 0;
    visit(&schema(), &mut compared);
    assert!(compared > 40, "{compared}");
}

#[test]
fn the_schema_is_closed_and_explains_every_key() {
    fn visit(schema: &serde_json::Value, path: &str) {
        if let Some(properties) = schema.get("properties").and_then(|properties| properties.as_object()) {
            assert_eq!(schema.get("additionalProperties"), Some(&false.into()), "{path} is open");
            for (key, property) in properties {
                // The variants of a choice are explained where the choice is.
                let explained = property.get("description").or(schema.get("description"));
                assert!(explained.is_some(), "{path}.{key} has no description");
            }
        }
        match schema {
            serde_json::Value::Object(members) => {
                members.iter().for_each(|(key, member)| visit(member, &format!("{path}/{key}")));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| visit(item, path)),
            _ => {}
        }
    }
    let schema = schema();
    visit(&schema, "");
    assert_eq!(schema["title"], "dotmac-license-proxy configuration");
    assert!(schema.get("$id").is_none());
}

proptest::proptest! {
    #[test]
    fn no_damage_to_a_file_makes_the_reader_panic(from in 0..4_000_usize, length in 0..40_usize, graft in "[ \\n\\t:{}\\[\\]&*a-c0-9'\"<|>-]{0,8}") {
        let whole = read("dotmac.yaml");
        let cut = |at: usize| whole.char_indices().map(|(i, _)| i).nth(at).unwrap_or(whole.len());
        let damaged = [&whole[..cut(from)], &graft, &whole[cut(from + length)..]].concat();
        for problem in parse("c.yaml", &damaged).map_or_else(|problems| problems.0, |parsed| parsed.warnings) {
            let lines = damaged.lines().count() + 1;
            proptest::prop_assert!(problem.place.line >= 1 && problem.place.line as usize <= lines, "{problem:#}");
        }
    }
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let odd = file(&[
        "listen: { proxy: '[::]:8080', ops: 'unix:/run/a b.sock', workers: 3 }",
        "upstream: { address: 'unix:/run/app.sock', connect_timeout: 1500ms, retries: 0 }",
        "tenant: { sources: [{ fixed: 6F1C1C5E8F3E4A589A3C0A4E1F0F7B11 }], missing: allow }",
        "licenses: { source: { file: { path: 'off' } }, ttl: 90s, memory_bytes: 2000kB, grace: 0s }",
        "routes: { path_aliases: [/v1/], rules: [{ prefix: '/crm/{id}', feature: crm, on_failure: deny, meter: \
         { methods: [GET, PUT], count: all, window: anchored, limit: soft } }, \
         { match: { prefix: '/null', methods: [POST] }, access: deny }, { match: { path: '/~' }, access: always }] }",
        "plans: [{ name: 'true', features: [crm] }, { name: '0755', features: [] }, { name: 1e3, features: ['2026-01-01'] }]",
        "enforcement: { mode: off, rollout: { percent: 12.5, salt: \"a: #b\\n- 'c' \\t \" } }",
        &format!(
            "deny: {{ upgrade_url: 'https://x/{}?f={{feature}}', status: {{ no_license: 403 }} }}",
            "long/".repeat(40)
        ),
        "log: { level: debug, access: false, raw_target: true }",
        "usage: { flush_interval: 250ms, pending_entries: 5000, lease_idle: 90s, thresholds: [] }",
    ]);
    let dotmac = read("dotmac.yaml");
    for text in [MINIMAL, &dotmac, &odd] {
        let config = parse("c.yaml", text).unwrap_or_else(|problems| panic!("{problems:#}")).config;
        let printed = config.to_yaml().unwrap_or_else(|error| panic!("{error}"));
        let again = parse("printed.yaml", &printed).unwrap_or_else(|problems| panic!("{problems:#}\n{printed}")).config;
        assert_eq!(config, again, "{printed}");
    }
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let printed = clean("c.yaml", MINIMAL).to_yaml().unwrap_or_else(|error| panic!("{error}"));
    insta::assert_snapshot!(printed);
}

#[test]
fn a_problem_shows_its_line() {
    let problems = parse("c.yaml", &file(&["log: { level: loud }"])).expect_err("no such level");
    assert_eq!(
        format!("{:#}", problems.0[0]),
        "c.yaml:8:15: error: log.level: `loud` is not known here; expected one of `error`, `warn`, `info`, `debug`, `trace`\
         \n 8 | log: { level: loud }\
         \n   |               ^"
    );
}

#[test]
fn ten_thousand_rules_are_read() {
    let mut text = MINIMAL.replace("routes: { rules: [{ prefix: /crm, feature: crm }] }\n", "routes:\n  rules:\n");
    for i in 0..10_000 {
        text.push_str(&format!("    - {{ prefix: /api/v1/module-{i}, feature: crm }}\n"));
    }
    assert_eq!(clean("c.yaml", &text).routes.rules.len(), 10_000);
}

#[test]
fn anchors_and_merged_keys_are_read() {
    let text = file(&[
        "plans: [&base { name: a, features: &all [crm] }, { <<: *base, name: b }, { name: c, features: *all }]",
    ]);
    let plans = clean("c.yaml", &text).plans;
    assert!(plans.iter().all(|plan| plan.features.len() == 1));
}

#[test]
fn wrong_licence_files_are_told_with_their_places() {
    let plans = clean("c.yaml", MINIMAL).plans;
    let id = "00000000-0000-4000-8000-000000000001";
    for (text, expected) in [
        ("", "l.yaml:1:1: error: the file is empty"),
        ("tenants: {}", "l.yaml:1:10: error: tenants: expected a list, found an empty mapping"),
        (
            &format!("tenants:\n  - {{ tenant_id: {id}, plan: all }}\n  - {{ tenant_id: {id}, plan: all }}"),
            "l.yaml:3:18: error: tenants[1].tenant_id: this tenant has a licence in line 2 already",
        ),
        (
            &format!("tenants: [{{ tenant_id: {id}, plan: gold }}]"),
            "l.yaml:1:68: error: tenants[0].plan: there is no plan `gold` (all): add it, or list the `features`",
        ),
        (
            &format!("tenants: [{{ tenant_id: {id}, plan: all, valid_from: 2026-02-01, valid_until: 2026-01-01 }}]"),
            "l.yaml:1:110: error: tenants[0].valid_until: must be later than `valid_from`, which is 2026-02-01T00:00:00Z",
        ),
        (
            &format!("tenants: [{{ tenant_id: {id}, plan: all, limits: {{ crm: -2 }} }}]"),
            "l.yaml:1:88: error: tenants[0].limits.crm: expected a number from 0, or -1 for unlimited, found -2",
        ),
        (
            "tenants: [{ tenantid: 1, plan: all }]",
            "l.yaml:1:11: error: tenants[0]: the key `tenant_id` is missing\n\
             l.yaml:1:13: error: tenants[0].tenantid: unknown key `tenantid`; did you mean `tenant_id`?",
        ),
    ] {
        let problems = parse_licenses("l.yaml", text, &plans).expect_err(expected);
        assert_eq!(problems.to_string(), expected);
    }
    let full = format!(
        "tenants: [{{ tenant_id: {id}, plan: gold, features: [sms], limits: {{ sms: 5, crm: -1, x: }}, \
         valid_from: 2026-01-01T00:00:00+01:00, valid_until: never, auto_renew: true }}]"
    );
    let entry = &parse_licenses("l.yaml", &full, &plans).unwrap_or_else(|problems| panic!("{problems}")).entries[0];
    let limits: Vec<_> = entry.limits.iter().map(|(feature, limit)| (&**feature, *limit)).collect();
    assert_eq!(limits, [("crm", None), ("sms", Some(5)), ("x", None)]);
    assert_eq!((entry.valid_from.to_string().as_str(), entry.auto_renew), ("2025-12-31T23:00:00Z", true));
    assert_eq!(entry.valid_until, crate::time::Timestamp::INFINITY);
}
