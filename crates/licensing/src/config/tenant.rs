//! The section `tenant`: where a request says whose it is.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::host_pattern::HostPattern;
use super::names::{HeaderName, Tenant};
use super::quantity::Duration;

/// Where a request says whose it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantSettings {
    /// The places to look at. All that name a tenant must name the same one.
    #[schemars(length(min = 1))]
    pub sources: Vec<TenantSource>,
    /// What becomes of a request for a feature that names no tenant. Default: deny (401).
    #[serde(default)]
    pub missing: Missing,
}

/// One place that names a tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TenantSource {
    /// A request header, believed from `trusted_proxies` alone.
    Header(HeaderName),
    /// A claim of a signed token.
    Jwt(Jwt),
    /// The name of the host that is asked, by a pattern such as {tenant}.isp.example.com, where {tenant} is a UUID. Believed
    /// from `trusted_proxies`, or, if none are listed, from everyone.
    Host(HostPattern),
    /// Always this tenant: for a deployment that has but one.
    Fixed(Tenant),
}

/// A signed token (RFC 7519) that names the tenant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// Where the token stands. Default: authorization alone.
    #[serde(default = "authorization")]
    #[schemars(length(min = 1))]
    pub from: Vec<TokenPlace>,
    /// The claim that names the tenant; dots lead into claims that are objects. Default: tenant_id.
    #[serde(default = "tenant_id")]
    pub claim: String,
    /// A file of keys as a JWK set (RFC 7517), relative to the configuration file: for HMAC, RSA, ECDSA and EdDSA.
    pub keys: PathBuf,
    /// The issuer whose tokens these are; other issuers' are left to the backend. Default: every token is ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The audience that tokens must name. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// How far clocks may differ. Default: 60s.
    #[serde(default = "leeway")]
    pub leeway: Duration,
}

/// Where a token stands in a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenPlace {
    /// `Authorization: Bearer …`.
    Authorization,
    /// A subprotocol that a WebSocket client offers, beside `dotmac-license` or the backend's own.
    WebsocketProtocol,
    /// A cookie of this name.
    Cookie(String),
}

/// What becomes of a request that names no tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// It is refused with 401.
    #[default]
    Deny,
    /// It goes on.
    Allow,
}

impl TenantSettings {
    /// The sources that are tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &Jwt> {
        self.sources.iter().filter_map(|source| match source {
            TenantSource::Jwt(jwt) => Some(jwt),
            TenantSource::Header(_) | TenantSource::Host(_) | TenantSource::Fixed(_) => None,
        })
    }
}

impl Jwt {
    /// The file of keys, seen from where `config_file` lies.
    pub fn keys_file(&self, config_file: &Path) -> PathBuf {
        config_file.parent().unwrap_or(Path::new("")).join(&self.keys)
    }
}

fn authorization() -> Vec<TokenPlace> {
    vec![TokenPlace::Authorization]
}

fn tenant_id() -> String {
    "tenant_id".to_owned()
}

fn leeway() -> Duration {
    Duration::from_secs(60)
}
