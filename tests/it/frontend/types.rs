//! The package's types and readers against what the real proxy sends: the compiler holds real answers against the types,
//! and the readers must give back all that there is.

use std::path::Path;
use std::process::{Command, Output};

use futures::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

use crate::harness::{License, World, world};

const FRONTEND: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/frontend");

/// A real answer, by the type that describes it.
struct Sample {
    r#type: &'static str,
    value: Value,
}

/// Real answers of every kind, and several of each.
async fn samples() -> Vec<Sample> {
    let upgrade = json!({ "allow": { "header": "X-User-Role", "values": ["owner"] } });
    let world = World::start_with(|builder| {
        let metered = builder.set("/routes/rules/4/meter", json!({})).set("/usage/flush_interval", "200ms");
        metered.set("/licenses/change_feed", "listen").set("/upgrade", upgrade)
    })
    .await;
    world.proxy.live().await;
    let mut samples = Vec::new();
    let mut add = |r#type, value| samples.push(Sample { r#type, value });
    let limited = |tenant, plan, limit: i64| License {
        usage_limits: json!({ "tickets": limit, "crm": null }),
        ..License::valid(tenant, plan)
    };
    let ids = [(); 7].map(|()| Uuid::new_v4());
    world.insert(License::valid(ids[0], "enterprise")).await;
    world.insert(limited(ids[1], "starter", 2)).await;
    world.insert(License { auto_renew: false, valid_until: "-1 hour", ..License::valid(ids[2], "starter") }).await;
    world.insert(License { valid_from: "1 day", ..License::valid(ids[3], "starter") }).await;
    world.insert(limited(ids[4], "starter", 0)).await;
    world.insert(License::valid(ids[6], "starter")).await;
    let forever = "UPDATE tenant_licenses SET valid_from = '-infinity', valid_until = 'infinity' WHERE tenant_id =";
    world.database.execute(&format!("{forever} '{}'", ids[0])).await;

    let mut request = format!("ws://{}/license", world.proxy.address()).into_client_request().expect("a URL");
    request.headers_mut().insert("X-Tenant-ID", ids[1].to_string().parse().expect("a header"));
    let (mut socket, _) = connect_async(request).await.expect("101");
    let mut next = async || -> Value {
        let message = socket.next().await.expect("open").expect("a message").into_text().expect("text");
        serde_json::from_str(&message).expect("JSON")
    };
    add("LicenseMessage", next().await);
    for _ in 0..2 {
        assert_eq!(world.get("/api/v1/tickets", ids[1]).await.status, 200);
    }
    let thresholds = [next().await, next().await];
    assert!(thresholds.iter().any(|message| message["percent"] == 100), "{thresholds:?}");
    for message in thresholds {
        add("ThresholdMessage", message);
    }

    let refused = [
        ("feature_not_in_plan", "crm", ids[1]),
        ("usage_limit_exceeded", "tickets", ids[1]),
        ("license_expired", "tickets", ids[2]),
        ("license_not_yet_valid", "tickets", ids[3]),
        ("usage_limit_exceeded", "tickets", ids[4]),
        ("no_license", "crm", ids[5]),
    ];
    for (reason, feature, tenant) in refused {
        let answer = world.get(&format!("/api/v1/{feature}"), tenant).await;
        assert_eq!((answer.status, &answer.json()["reason"]), (402, &json!(reason)));
        add("Refusal", answer.json());
    }
    for tenant in &ids[..5] {
        let answer = world::get(&world.proxy, "/license", *tenant).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        add("License", answer.json());
    }
    add("Offers", world::get(&world.proxy, "/license/plans", ids[0]).await.json());
    let tenant = ids[1].to_string();
    let sql =
        format!("UPDATE tenant_licenses SET plan_tier = 'odd', usage_limits = '{{}}' WHERE tenant_id = '{tenant}'");
    world.database.execute(&sql).await;
    add("LicenseMessage", next().await);
    world
        .database
        .execute(&format!("DELETE FROM feature_usage; DELETE FROM tenant_licenses WHERE tenant_id = '{tenant}'"))
        .await;
    add("LicenseMessage", next().await);

    // What was never asked of Postgres nobody can tell.
    assert_eq!(world.get("/api/v1/tickets", ids[6]).await.status, 200);
    world.postgres_wire.cut().await;
    let document = world::get(&world.proxy, "/license", ids[6]).await.json();
    assert!(document["currentUsage"].is_null(), "{document}");
    add("License", document);
    samples
}

/// What the compiler says of these values, each said to be of its type.
fn compile(samples: &[(&str, Value)]) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    let types = format!("{FRONTEND}/packages/licensing/src/types.js");
    let mut source = format!("import type * as Api from {types:?};\nexport const samples = [\n");
    for (r#type, value) in samples {
        source += &format!("  {value} satisfies Api.{type},\n");
    }
    source += "];\n";
    std::fs::write(dir.path().join("samples.ts"), source).expect("written");
    let config = json!({
        "extends": format!("{FRONTEND}/tsconfig.base.json"),
        "compilerOptions": { "noEmit": true },
        "files": ["samples.ts"],
    });
    std::fs::write(dir.path().join("tsconfig.json"), config.to_string()).expect("written");
    let tsc = Path::new(FRONTEND).join("node_modules/typescript/bin/tsc");
    assert!(tsc.is_file(), "frontend/node_modules is missing: run scripts/test, or `npm ci --prefix frontend`");
    Command::new("node").arg(tsc).arg("--project").arg(dir.path()).output().expect("node")
}

fn assert_compiles(samples: &[(&str, Value)]) {
    let output = compile(samples);
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// What the package's readers make of these values, in the same order.
fn read(samples: &[Sample]) -> Vec<Value> {
    let script = format!(
        r#"
        import {{ readLicense, readMessage, readOffers, readRefusal }} from "{FRONTEND}/packages/licensing/dist/read.js";
        const message = (value) => readMessage(JSON.stringify(value));
        const readers = {{ License: readLicense, Refusal: readRefusal, Offers: readOffers,
            LicenseMessage: message, ThresholdMessage: message }};
        const samples = JSON.parse(process.argv[1]);
        console.log(JSON.stringify(samples.map(([type, value]) => readers[type](value) ?? "nothing")));
        "#
    );
    let given: Value = samples.iter().map(|sample| json!([sample.r#type, sample.value])).collect();
    let output = Command::new("node")
        .args(["--input-type=module", "--eval", &script, &given.to_string()])
        .output()
        .expect("node");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a list")
}

#[tokio::test]
async fn what_the_proxy_sends_is_what_the_types_say() {
    super::dist();
    let samples = samples().await;
    let typed: Vec<_> = samples.iter().map(|sample| (sample.r#type, sample.value.clone())).collect();
    assert_compiles(&typed);
    let expected: Vec<_> = samples.iter().map(|sample| sample.value.clone()).collect();
    assert_eq!(read(&samples), expected, "the readers lose something, or add to it");

    // It would be noticed if a member were missing, of another type, or one that the types don't know.
    let license = &samples.iter().find(|sample| sample.r#type == "License").expect("one").value;
    for (member, value) in
        [("planTier", json!(7)), ("revision", json!("7")), ("seats", json!(7)), ("validUntil", json!(true))]
    {
        let mut other = license.clone();
        other[member] = value;
        assert!(!compile(&[("License", other)]).status.success(), "{member}");
    }
    for member in license.as_object().expect("members").keys() {
        let mut other = license.clone();
        other.as_object_mut().expect("members").remove(member);
        assert!(!compile(&[("License", other)]).status.success(), "without {member}");
    }
    println!("{} real answers are of their types", samples.len());
}
