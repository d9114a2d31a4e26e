//! Why a request is refused: a closed set, and the one table of what each member means.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request is refused. The names are part of the public contract: answers, metrics, events and configuration use
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The licence does not include the feature.
    FeatureNotInPlan,
    /// The tenant has no licence.
    NoLicense,
    /// The licence has ended, its grace period included.
    LicenseExpired,
    /// The licence has not begun.
    LicenseNotYetValid,
    /// A limit of the licence is used up.
    UsageLimitExceeded,
    /// No configured source names a tenant, or a token that should is not to be believed.
    TenantMissing,
    /// What names the tenant is no tenant id, or two sources disagree.
    TenantInvalid,
    /// The request is one that no sane client sends.
    RequestMalformed,
    /// The path can be read in several ways, and `routes.ambiguous` is `refuse`.
    RequestAmbiguous,
    /// No store can tell, and `on_failure` is `deny` or no outage is confirmed.
    StoreUnavailable,
    /// A rule denies the path to everyone.
    RouteDenied,
}

/// What a reason means to a client.
#[derive(Clone, Copy, Debug)]
pub struct Meaning {
    /// The member `reason`.
    pub name: &'static str,
    /// The HTTP status (RFC 9110 section 15), where configuration sets no other.
    pub status: u16,
    /// The member `error`.
    pub title: &'static str,
    /// The gRPC status code, for clients that speak gRPC.
    pub grpc: u8,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::FeatureNotInPlan,
        Self::NoLicense,
        Self::LicenseExpired,
        Self::LicenseNotYetValid,
        Self::UsageLimitExceeded,
        Self::TenantMissing,
        Self::TenantInvalid,
        Self::RequestMalformed,
        Self::RequestAmbiguous,
        Self::StoreUnavailable,
        Self::RouteDenied,
    ];

    /// The table.
    pub const fn meaning(self) -> Meaning {
        const fn row(name: &'static str, status: u16, title: &'static str, grpc: u8) -> Meaning {
            Meaning { name, status, title, grpc }
        }
        match self {
            Self::FeatureNotInPlan => row("feature_not_in_plan", 402, "Feature not available", 7),
            Self::NoLicense => row("no_license", 402, "Feature not available", 7),
            Self::LicenseExpired => row("license_expired", 402, "Feature not available", 7),
            Self::LicenseNotYetValid => row("license_not_yet_valid", 402, "Feature not available", 7),
            Self::UsageLimitExceeded => row("usage_limit_exceeded", 402, "Feature not available", 8),
            Self::TenantMissing => row("tenant_missing", 401, "Tenant required", 16),
            Self::TenantInvalid => row("tenant_invalid", 400, "Tenant invalid", 3),
            Self::RequestMalformed => row("request_malformed", 400, "Request malformed", 3),
            Self::RequestAmbiguous => row("request_ambiguous", 400, "Request ambiguous", 3),
            Self::StoreUnavailable => row("store_unavailable", 503, "Licence check unavailable", 14),
            Self::RouteDenied => row("route_denied", 403, "Forbidden", 7),
        }
    }

    /// The member `reason`, also the label in metrics.
    pub const fn name(self) -> &'static str {
        self.meaning().name
    }

    /// Whether an upgrade or a renewal would help, so that the answer links to one.
    pub const fn is_about_licence(self) -> bool {
        matches!(
            self,
            Self::FeatureNotInPlan
                | Self::NoLicense
                | Self::LicenseExpired
                | Self::LicenseNotYetValid
                | Self::UsageLimitExceeded
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_metrics_and_answers_use_one_name() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("a string"), reason.name());
        }
    }
}
