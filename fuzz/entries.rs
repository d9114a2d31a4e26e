//! Licences as they lie in the stores: what is no licence never becomes one, and what becomes one says so literally.

use std::time::Duration;

use licensing::license::{License, LicenseRow, MAX_FEATURES_BYTES};
use licensing::tenant::TenantId;
use serde_json::Value;

use super::target;
use crate::stores::{Change, understand_entry};

const TENANT: &str = "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11";

/// What entries are made of.
const FRAGMENTS: &[&str] = &[
    "{\"ttl_ms\":300000,\"epoch\":\"e\",\"revision\":7,\"tenant_id\":\"6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11\",\
     \"plan\":\"starter\",\"features\":{",
    "},\"usage_limits\":{",
    "},\"valid_from\":\"2026-01-01T00:00:00Z\",\"valid_until\":\"infinity\",\"auto_renew\":true}",
    "\"crm\":true",
    "\"crm\":false",
    "\"tickets\":null",
    "\"tickets\":",
    ",",
    "},\"features_until\":{",
    "\"crm\":\"",
    "2026-01-01T00:00:00Z",
    "-infinity",
    "\"",
    "{",
    "}",
    "[",
    "]",
    "{\"a\":",
    "1e400",
    "-1",
    "\"features\":{\"crm\":true}",
    "\"tenant_id\":\"00000000-0000-4000-8000-000000000001\"",
    "\"revision\":",
    "9223372036854775808",
    "\\u0000",
    "\\ud800",
    "\"ttl_ms\":",
    "true",
    "null",
    "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11:7",
    "fill:",
    "\"valid_until\":",
    "+275760-09-13",
    "\"auto_renew\":1",
    "\"CRM\":true",
    "\"crm\\u0000\":true",
    "\t",
    "\n",
    "0001-01-01T00:00:00+23:59",
];

target!(in_redis, FRAGMENTS, read_entry);
target!(in_rows, FRAGMENTS, read_row);
target!(announced, FRAGMENTS, read_announcement);

fn tenant() -> TenantId {
    TENANT.parse().expect("a UUID")
}

/// Whether each feature that is included stands there as true, and every other as something else.
fn assert_literal(license: &License, features: &Value, shown: &str) {
    let features = features.as_object().unwrap_or_else(|| panic!("{shown} is read, but has no features"));
    for (feature, value) in features {
        assert!(value.is_boolean() || value.is_null(), "{shown}");
        assert_eq!(license.features.contains(feature), *value == Value::Bool(true), "{feature:?} of {shown}");
    }
    assert!(license.features.iter().all(|feature| features.contains_key(feature)), "{shown}");
    assert!(license.size_bytes() <= 64 * MAX_FEATURES_BYTES);
}

/// The value of `license:{tenant}`, and its time to live.
fn read_entry(value: &[u8]) {
    let shown = String::from_utf8_lossy(value);
    for left_ms in [-2, -1, 0, 1, 300_000, i64::MAX] {
        let Ok((license, age)) = understand_entry(tenant(), value, left_ms) else { continue };
        assert!(left_ms >= 0, "an entry that never goes is not ours: {shown}");
        let document: Value = serde_json::from_slice(value).expect("JSON");
        assert_eq!(document["tenant_id"].as_str().and_then(|id| id.parse().ok()), Some(tenant()), "{shown}");
        assert_eq!(license.tenant, tenant());
        assert_eq!(document["revision"].as_i64(), Some(license.revision), "{shown}");
        assert_eq!(document["auto_renew"].as_bool(), Some(license.auto_renew), "{shown}");
        assert_literal(&license, &document["features"], &shown);
        let ttl = Duration::from_millis(document["ttl_ms"].as_u64().expect("a time to live"));
        assert!(age <= ttl, "{shown}");
        assert_eq!(License::from_json(tenant(), license.to_json().as_bytes()).as_ref(), Ok(&license), "{shown}");
    }
    let stranger = "00000000-0000-4000-8000-000000000002".parse().expect("a UUID");
    assert!(understand_entry(stranger, value, 1).is_err() || shown.contains("000000000002"), "{shown}");
}

/// The three documents of a row, a line each.
fn read_row(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.split('\n').map(str::to_owned);
    let mut next = || lines.next().unwrap_or_else(|| "{}".to_owned());
    let row = LicenseRow { features: next(), features_until: next(), usage_limits: next(), ..LicenseRow::default() };
    let Ok(license) = License::from_row(tenant(), &row) else { return };
    let features = serde_json::from_str(&row.features).expect("JSON");
    assert_literal(&license, &features, &row.features);
    assert_eq!(License::from_json(tenant(), license.to_json().as_bytes()), Ok(license));
}

/// A change as Postgres and Redis tell it.
fn read_announcement(message: &[u8]) {
    let Ok(text) = std::str::from_utf8(message) else { return };
    if let Ok(change) = text.parse::<Change>() {
        assert_eq!(change.to_string().parse::<Change>().map(|again| again.to_string()), Ok(change.to_string()));
    }
}
