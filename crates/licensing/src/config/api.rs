//! The sections of what the proxy serves itself, and to whom: `api`, `cors`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::origin::Origin;

/// Where the proxy serves its own licence API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSettings {
    /// Paths of the licence, and below them `/plans`, `/upgrade` and `/upgrade-click`. Default: [/license, /api/v1/license].
    pub paths: Vec<String>,
    /// Paths on which a WebSocket is told of changes. Default: [/license, /ws/license].
    pub websocket: Vec<String>,
}

/// Browsers on other origins.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CorsSettings {
    /// The origins whose pages may ask, and read our answers, such as `https://app.example.com`; `*` for every one, which may
    /// not send cookies. Default: none.
    pub allow_origins: Vec<Origin>,
    /// Whether they may send cookies. Default: false.
    pub allow_credentials: bool,
}

impl Default for ApiSettings {
    fn default() -> Self {
        let paths = |list: [&str; 2]| list.map(str::to_owned).to_vec();
        Self { paths: paths(["/license", "/api/v1/license"]), websocket: paths(["/license", "/ws/license"]) }
    }
}
