//! The command line: exit codes, located messages, help, and what comes from the environment.

use std::net::TcpListener;
use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::process::{self, server_dir};
use crate::harness::proxy::{Ended, run_binary};
use crate::harness::world::get;
use crate::harness::{Proxy, World};

const COMMANDS: [&str; 10] =
    ["serve", "demo", "relay", "check-config", "explain", "license", "migrate", "backfill", "prune", "completions"];

/// A configuration in which nothing is doubtful.
const GOOD: &str = "version: 1
listen: { proxy: 127.0.0.1:18080, ops: 127.0.0.1:19464 }
upstream: { address: 127.0.0.1:8000 }
trusted_proxies: [127.0.0.1]
tenant: { sources: [{ header: X-Tenant-ID }] }
licenses: { source: { postgres: {} } }
routes:
  rules:
    - { prefix: /api/v1/crm, feature: crm }
plans: [{ name: pro, features: [crm] }]
";

/// A directory with one configuration in it.
struct Written {
    dir: TempDir,
    file: PathBuf,
}

impl Written {
    fn new(text: &str) -> Written {
        let dir = server_dir();
        let file = dir.path().join("proxy.yaml");
        std::fs::write(&file, text).expect("the directory is writable");
        Written { dir, file }
    }

    fn path(&self) -> String {
        self.file.display().to_string()
    }

    /// Runs a command with `--config` and these variables.
    async fn run(&self, command: &str, arguments: &[&str], envs: &[(&str, &str)]) -> Ended {
        let path = self.path();
        run(&[&[command, "--config", &path], arguments].concat(), envs).await
    }

    async fn check(&self, arguments: &[&str]) -> Ended {
        self.run("check-config", arguments, &[]).await
    }
}

async fn run(arguments: &[&str], envs: &[(&str, &str)]) -> Ended {
    let envs: Vec<_> = envs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let ended = run_binary(arguments, &envs).await;
    assert!(!ended.stderr.contains("panicked"), "{arguments:?}: {ended:?}");
    ended
}

fn shipped(name: &str) -> String {
    format!("{}/config/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_good_configuration_is_one_line_and_exit_0() {
    for file in [Written::new(GOOD).path(), shipped("dotmac.yaml"), shipped("embedded.yaml")] {
        let ended = run(&["check-config", "--config", &file], &[]).await;
        assert_eq!(ended.status.code(), Some(0), "{file}: {ended:?}");
        assert!(ended.stdout.starts_with(&format!("{file}: ok (")), "{ended:?}");
        assert_eq!((ended.stdout.lines().count(), ended.stderr.as_str()), (1, ""), "{ended:?}");
        let by_variable = run(&["check-config"], &[("DOTMAC_LICENSE_CONFIG", &file)]).await;
        assert_eq!(by_variable.stdout, ended.stdout, "DOTMAC_LICENSE_CONFIG names it as well");
    }
}

/// Each kind of mistake, with its line, column, key and what was expected.
#[tokio::test]
async fn mistakes_are_located_and_exit_2() {
    let rule = "    - { prefix: /api/v1/crm, feature: crm }\n";
    let second = |more: &str| GOOD.replace(rule, &format!("{rule}{more}"));
    let cases = [
        (
            second("    - { prefix: /api/v1/crm, access: always }\n"),
            "10:7: error: routes.rules[1]: an earlier rule matches the same path and method: see routes.rules[0] in line 9",
        ),
        (
            second("    - { prefix: api/v1/crm, access: always }\n"),
            "10:17: error: routes.rules[1].prefix: \"api/v1/crm\": a path must begin with a slash",
        ),
        (
            GOOD.replace("postgres: {} }", "postgres: {} }, lookup_deadline: 0ms"),
            "6:56: error: licenses.lookup_deadline: must be longer than zero",
        ),
        (GOOD.replace("postgres: {} }", "postgres: {} }, ttl: 5"), "6:44: error: licenses.ttl: 5 has no unit"),
        (
            GOOD.replace("trusted_proxies: [127.0.0.1]", "trusted_proxies: []"),
            "5:31: error: tenant.sources[0].header: any client can send x-tenant-id: name in `trusted_proxies`",
        ),
        (
            GOOD.replace("upstream:", "upstraem:"),
            "3:1: error: upstraem: unknown key `upstraem`; did you mean `upstream`?",
        ),
        (
            second("    - { prefix: /x, feature: crm, tenant: y }\n"),
            "10:35: error: routes.rules[1].tenant: unknown key `tenant`; expected one of",
        ),
        (format!("{GOOD}version: 1\n"), "11:1: error: the key `version` stands here for the second time"),
        (
            format!("{GOOD}usage: {{ flush_interval: 0s }}\n"),
            "11:26: error: usage.flush_interval: must be from 100ms to 1h",
        ),
        (GOOD.replace("version: 1", "version: 7"), "1:10: error: version: this program reads version 1"),
        (
            GOOD.replace("127.0.0.1:8000", "127.0.0.1:99999"),
            "3:22: error: upstream.address: \"127.0.0.1:99999\" is no address",
        ),
        (GOOD.replace("features: [crm] }]", "features: [crm }]"), "10:32: error: "),
    ];
    for (text, expected) in cases {
        let written = Written::new(&text);
        let expected = format!("{}:{expected}", written.path());
        for command in ["check-config", "serve"] {
            let ended = written.run(command, &[], &[("DATABASE_URL", "postgres://app:hunter2@127.0.0.1/main")]).await;
            assert_eq!(ended.status.code(), Some(2), "{command} {expected}: {ended:?}");
            let located = ended.stderr.lines().any(|line| line.starts_with(&expected));
            assert!(located, "{command}: expected {expected}\nfound {}", ended.stderr);
            assert_eq!(ended.stdout, "", "{command} {expected}");
        }
    }
}

/// All mistakes at once: nobody wants to find the next one by the next run.
#[tokio::test]
async fn every_mistake_of_a_file_is_reported() {
    let text = GOOD.replace("upstream: { address: 127.0.0.1:8000 }", "upstream: {}").replace("pro,", "a b,");
    let ended = Written::new(&text).check(&[]).await;
    assert_eq!(ended.status.code(), Some(2));
    let places: Vec<_> =
        ended.stderr.lines().filter_map(|line| line.split(".yaml:").nth(1)?.split(':').next()).collect();
    assert_eq!(places, ["3", "10"], "{ended:?}");
}

#[tokio::test]
async fn what_is_doubtful_is_a_warning_and_exit_0() {
    let written = Written::new(&GOOD.replace("feature: crm }", "feature: crn }"));
    let ended = written.check(&[]).await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let expected = format!("{}:9:39: warning: routes.rules[0].feature: no plan grants `crn`", written.path());
    assert!(ended.stderr.starts_with(&expected), "{ended:?}");
    assert!(ended.stdout.contains(": ok ("), "{ended:?}");
}

/// Licences in a file are part of what is checked.
#[tokio::test]
async fn a_licence_file_is_checked_with_its_configuration() {
    let written = Written::new(&GOOD.replace("postgres: {}", "file: { path: tenants.yaml }"));
    let absent = written.check(&[]).await;
    assert_eq!(absent.status.code(), Some(0), "{absent:?}");
    assert!(absent.stderr.contains("warning: the licence file") && absent.stdout.contains(": ok ("), "{absent:?}");
    let tenants = written.dir.path().join("tenants.yaml");
    for (plan, code) in [("pro", 0), ("gold", 2)] {
        let text = format!("tenants:\n  - tenant_id: 00000000-0000-4000-8000-000000000001\n    plan: {plan}\n");
        std::fs::write(&tenants, text).expect("the directory is writable");
        for arguments in [&[][..], &["--print-effective"]] {
            let ended = written.check(arguments).await;
            assert_eq!(ended.status.code(), Some(code), "{plan}: {ended:?}");
            let located = format!("{}:3:11: error: ", tenants.display());
            assert_eq!(ended.stderr.starts_with(&located), code == 2, "{plan}: {ended:?}");
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_exit_2() {
    for (path, why) in [("/nonexistent/proxy.yaml", "No such file"), ("/", "directory")] {
        for command in ["check-config", "serve"] {
            let ended = run(&[command, "--config", path], &[]).await;
            assert_eq!(ended.status.code(), Some(2), "{ended:?}");
            assert!(ended.stderr.starts_with(path) && ended.stderr.contains(why), "{ended:?}");
        }
    }
}

#[tokio::test]
async fn the_effective_configuration_is_a_configuration_and_holds_no_secret() {
    let envs = [
        ("DOTMAC_LICENSE_DATABASE_URL", "postgres://app:hunter2@db.example/main"),
        ("LICENSE_DB_URL", "postgres://app:hunter3@replica.example/main"),
        ("REDIS_URL", "rediss://:hunter4@redis.example:6379/0"),
        ("ADMIN_TOKEN", "hunter5"),
        ("CACHE_TTL", "90"),
    ];
    let shipped = ["dotmac.yaml", "embedded.yaml"].map(|name| std::fs::read_to_string(shipped(name)).expect(name));
    let texts = shipped.into_iter().chain([GOOD.to_owned()]);
    for text in texts {
        let written = Written::new(&text);
        let first = written.run("check-config", &["--print-effective"], &envs).await;
        assert_eq!(first.status.code(), Some(0), "{first:?}");
        for secret in ["hunter", "db.example", "replica.example", "redis.example"] {
            assert!(!first.stdout.contains(secret) && !first.stderr.contains(secret), "{secret}: {first:?}");
        }
        assert!(first.stdout.contains("ttl: 90s") || first.stdout.contains("ttl: 1m30s"), "{}", first.stdout);

        let effective = Written::new(&first.stdout);
        let second = effective.check(&["--print-effective"]).await;
        assert_eq!(second.status.code(), Some(0), "{second:?}");
        assert_eq!(second.stdout, first.stdout);
        let hash = |ended: &Ended| ended.stdout.split("config_hash ").nth(1).map(str::to_owned);
        let summaries = [written.run("check-config", &[], &envs).await, effective.check(&[]).await];
        let [of_first, of_second] = summaries.each_ref().map(hash);
        assert!(of_first.is_some() && of_first == of_second, "{summaries:?}");
    }
}

#[tokio::test]
async fn every_command_explains_itself() {
    let top = run(&["--help"], &[]).await;
    assert_eq!(top.status.code(), Some(0));
    assert!(top.stdout.contains("Exit status: 0 ok, 1 failed, 2 bad usage or configuration."), "{}", top.stdout);
    for variable in ["DATABASE_URL", "LICENSE_DB_URL", "REDIS_URL", "CACHE_TTL"] {
        assert!(top.stdout.contains(&format!("(or {variable})")), "{variable}: {}", top.stdout);
    }
    for command in COMMANDS {
        assert!(top.stdout.contains(&format!("\n  {command} ")), "{}", top.stdout);
        for help in ["--help", "-h"] {
            let ended = run(&[command, help], &[]).await;
            assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""), "{command} {help}");
            let usage = format!("Usage: dotmac-license-proxy {command}");
            assert!(ended.stdout.contains(&usage), "{command} {help}: {}", ended.stdout);
        }
    }
    let short = run(&["-h"], &[]).await;
    assert_eq!((short.status.code(), short.stderr.as_str()), (Some(0), ""));
    let version = run(&["--version"], &[]).await;
    let commit = env!("DOTMAC_LICENSE_COMMIT");
    assert_eq!(version.stdout, format!("dotmac-license-proxy {} (commit {commit})\n", env!("CARGO_PKG_VERSION")));
    let known = commit.trim_end_matches("-dirty");
    assert!(known == "unknown" || known.len() == 12 && known.bytes().all(|b| b.is_ascii_hexdigit()), "{commit}");
}

/// By bash itself: what it offers after a word that is begun.
#[tokio::test]
async fn completions() {
    let script = run(&["completions", "bash"], &[]).await;
    assert_eq!((script.status.code(), script.stderr.as_str()), (Some(0), ""));
    let dir = server_dir();
    let file = dir.path().join("completions.bash");
    std::fs::write(&file, &script.stdout).expect("the directory is writable");
    let offered = |words: &str| {
        let typed = format!(
            "source {}; COMP_WORDS=(dotmac-license-proxy {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             complete=$(complete -p dotmac-license-proxy | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); \
             $complete dotmac-license-proxy \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"; echo \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        process::run(&["bash", "-c", &typed]).trim().to_owned()
    };
    assert_eq!(offered("lic"), "license");
    assert_eq!(offered("license set"), "set-plan");
    assert_eq!(offered("explain --ten"), "--tenant");
    for shell in ["zsh", "fish"] {
        let script = run(&["completions", shell], &[]).await;
        assert_eq!(script.status.code(), Some(0), "{shell}");
        assert!(COMMANDS.iter().all(|command| script.stdout.contains(command)), "{shell}");
    }
    assert_eq!(run(&["completions", "tcl"], &[]).await.status.code(), Some(2));
}

#[tokio::test]
async fn bad_usage_is_exit_2() {
    let written = Written::new(GOOD);
    let path = written.path();
    for arguments in [
        &[][..],
        &["nonsense"],
        &["--nonsense"],
        &["serve"],
        &["serve", "--config"],
        &["serve", "--config", &path, "--nonsense"],
        &["check-config"],
        &["check-config", "--config", &path, "--strict"],
        &["check-config", "--config", &path, "--openapi", "/nonexistent.json"],
        &["check-config", "--config", &path, "--openapi", &path],
        &["migrate", "--config", &path],
        &["migrate"],
        &["backfill", "--config", &path],
        &["demo", "--port", "99999"],
    ] {
        let ended = run(arguments, &[]).await;
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.len() > 30 && ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    }
}

/// Both ports are taken: whoever binds before checking would say so.
#[tokio::test]
async fn serve_refuses_before_it_binds() {
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let [proxy, ops] = taken.each_ref().map(|listener| listener.local_addr().expect("bound").to_string());
    let text = GOOD.replace("127.0.0.1:18080", &proxy).replace("127.0.0.1:19464", &ops);
    let good = Written::new(&text);
    let bad = Written::new(&text.replace("pro,", "a b,"));
    let relayed = Written::new(&text.replace("postgres: {} }", "postgres: {} }, change_feed: redis"));
    let url = ("DATABASE_URL", "postgres://app:hunter2@127.0.0.1:1/main");
    for (envs, says) in [
        (&[url][..], "a relay needs DOTMAC_LICENSE_REDIS_URL or REDIS_URL"),
        (&[("REDIS_URL", "redis://redis")], "a relay needs DOTMAC_LICENSE_DATABASE_URL or DATABASE_URL"),
    ] {
        let ended = relayed.run("relay", &[], envs).await;
        assert_eq!(ended.status.code(), Some(2), "{envs:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
    }
    for (written, envs, says) in [
        (&bad, &[url][..], "10:17: error: plans[0].name:"),
        (&good, &[], "neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL"),
        (&good, &[("DATABASE_URL", "")], "neither DOTMAC_LICENSE_DATABASE_URL nor DATABASE_URL"),
        (&good, &[("DATABASE_URL", "mysql://app:hunter2@db/main")], "postgresql://"),
        (&good, &[url, ("REDIS_URL", "http://:hunter2@redis")], "edis"),
        (&good, &[url, ("CACHE_TTL", "soon")], "CACHE_TTL: expected seconds or a duration"),
        (&good, &[("DATABASE_URL_FILE", "/nonexistent")], "DATABASE_URL_FILE: /nonexistent can't be read"),
        (&good, &[("LICENSE_DB_URL", url.1)], "licenses.change_feed is listen, but neither"),
        (&relayed, &[url], "licenses.change_feed is redis, but neither"),
    ] {
        let ended = written.run("serve", &[], envs).await;
        assert_eq!(ended.status.code(), Some(2), "{envs:?}: {ended:?}");
        assert!(ended.stderr.contains(says), "{says}: {ended:?}");
        let lower = ended.stderr.to_lowercase();
        assert!(!lower.contains("in use") && !lower.contains("hunter2"), "{ended:?}");
    }
    let ended = good.run("serve", &[], &[url]).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("listen.") && ended.stderr.contains("in use"), "{ended:?}");
}

#[tokio::test]
async fn an_override_is_said_once_in_the_log() {
    let licenses = shipped("licenses.yaml");
    let builder = Proxy::builder("127.0.0.1:9")
        .set("/licenses", serde_json::json!({ "source": { "file": { "path": licenses } }, "ttl": "5m" }))
        .env("CACHE_TTL", "90");
    let proxy = builder.start().await;
    let lines: Vec<Value> =
        proxy.stderr().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let said: Vec<_> = lines.iter().filter(|line| line.to_string().contains("CACHE_TTL")).collect();
    assert_eq!(said.len(), 1, "{lines:?}");
    assert_eq!(said[0]["environment"], "CACHE_TTL sets licenses.ttl to 90");
    let checked = builder.run(&["check-config"]).await;
    assert_eq!(checked.stderr, "environment: CACHE_TTL sets licenses.ttl to 90\n");
}

#[tokio::test]
async fn secrets_in_files_are_used_and_never_printed() {
    let world = World::start().await;
    let secrets = server_dir();
    let file = |name: &str, value: String| {
        let path = secrets.path().join(name);
        std::fs::write(&path, format!("{value}\n")).expect("the directory is writable");
        path.display().to_string()
    };
    let database_url = file("database", world.database.url_via(&world.postgres_wire));
    let redis_url = file("redis", world.redis.url_via(&world.redis_wire));
    let builder = world
        .builder
        .clone()
        .env("DOTMAC_LICENSE_DATABASE_URL", "")
        .env("DOTMAC_LICENSE_REDIS_URL", "")
        .env("DOTMAC_LICENSE_DATABASE_URL_FILE", database_url)
        .env("REDIS_URL_FILE", redis_url);
    let tenant = world.tenant("professional").await;
    world.postgres_wire.reset();
    world.redis_wire.reset();
    let proxy = builder.start().await;
    assert_eq!(get(&proxy, "/api/v1/crm", tenant).await.status, 200);
    assert_eq!(world.postgres_wire.count("FROM tenant_licenses WHERE"), 1);
    assert!(world.redis_wire.count(&format!("license:{tenant}")) > 0, "{:?}", world.redis_wire.calls());
    assert!(!format!("{}{}", proxy.stdout(), proxy.stderr()).contains("pg-secret-word"));
}
